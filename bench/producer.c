/*
 * A bare librdkafka producer, with the sidecar's own settings: what a record's
 * round trip costs before anything of ours is added.
 *
 *     bench-producer BROKERS TOPIC SECONDS BYTES [PORT]
 *     bench-producer sync FILE SECONDS BYTES [PORT]      the same of a bare disk:
 *                       written into a file that has its size, and fdatasync()
 *
 * One record in flight: the next is produced when the report of the one before
 * has come.  With PORT a POST of so many bytes to 127.0.0.1:PORT stands between
 * two records, and its time is not counted: so the broker and this thread come
 * out of the same rest, and out of the same cold caches, as when a client's
 * requests wait one after the other.  Prints {"requests", "p50_us", "p99_us"} as
 * load.lua does.
 */
#include <arpa/inet.h>
#include <fcntl.h>
#include <librdkafka/rdkafka.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define WARM 50 /* records that do not count: metadata, connections */
#define MOST 1000000

static int reported; /* of the record in flight; -1: it failed */

static void report(rd_kafka_t *rk, const rd_kafka_message_t *m, void *opaque) {
    (void)rk;
    (void)opaque;
    reported = m->err == RD_KAFKA_RESP_ERR_NO_ERROR ? 1 : -1;
}

static void die(const char *what, const char *why) {
    fprintf(stderr, "bench-producer: %s: %s\n", what, why);
    exit(1);
}

static rd_kafka_t *new_producer(const char *brokers) {
    static const char *const settings[][2] = {
        {"acks", "all"},
        {"enable.idempotence", "true"},
        {"enable.gapless.guarantee", "true"},
        {"linger.ms", "0"},
    };
    char why[256];
    rd_kafka_conf_t *conf = rd_kafka_conf_new();
    rd_kafka_t *rk;

    if (rd_kafka_conf_set(conf, "bootstrap.servers", brokers, why,
                          sizeof(why)) != RD_KAFKA_CONF_OK) {
        die(brokers, why);
    }
    for (size_t i = 0; i < sizeof(settings) / sizeof(settings[0]); i++) {
        if (rd_kafka_conf_set(conf, settings[i][0], settings[i][1], why,
                              sizeof(why)) != RD_KAFKA_CONF_OK) {
            die(settings[i][0], why);
        }
    }
    rd_kafka_conf_set_dr_msg_cb(conf, report);
    rk = rd_kafka_new(RD_KAFKA_PRODUCER, conf, why, sizeof(why));
    if (rk == NULL) {
        die("rd_kafka_new", why);
    }
    return rk;
}

static double now_us(void) {
    struct timespec ts;

    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (double)ts.tv_sec * 1e6 + (double)ts.tv_nsec / 1e3;
}

/* One record there and its report back, in us. */
static double round_trip(rd_kafka_t *rk, const char *topic, char *payload,
                         size_t size) {
    double start = now_us();
    rd_kafka_resp_err_t err;

    reported = 0;
    err =
        rd_kafka_producev(rk, RD_KAFKA_V_TOPIC(topic), RD_KAFKA_V_PARTITION(0),
                          RD_KAFKA_V_VALUE(payload, size), RD_KAFKA_V_END);
    if (err != RD_KAFKA_RESP_ERR_NO_ERROR) {
        die("produce", rd_kafka_err2str(err));
    }
    while (reported == 0) {
        rd_kafka_poll(rk, 1000);
    }
    if (reported < 0) {
        die("produce", "not delivered");
    }
    return now_us() - start;
}

#define FILE_SIZE (4 << 20)

static int open_file(const char *path) {
    static char zeros[1 << 16];
    int fd = open(path, O_RDWR | O_CREAT, 0600);

    for (off_t at = 0; fd != -1 && at < FILE_SIZE; at += sizeof(zeros)) {
        if (pwrite(fd, zeros, sizeof(zeros), at) != sizeof(zeros)) {
            die(path, "cannot be written");
        }
    }
    if (fd == -1 || fsync(fd) != 0) {
        die(path, "cannot be made");
    }
    return fd;
}

/* So many bytes, on the disk, in us. */
static double sync_bytes(int fd, const char *payload, size_t size) {
    static off_t at;
    double start = now_us();

    at = at + (off_t)size > FILE_SIZE ? 0 : at;
    if (pwrite(fd, payload, size, at) != (ssize_t)size || fdatasync(fd) != 0) {
        die("sync", "failed");
    }
    at += (off_t)size;
    return now_us() - start;
}

/* A connection to NGINX on 127.0.0.1. */
static int dial(int port) {
    struct sockaddr_in at = {.sin_family = AF_INET,
                             .sin_port = htons((uint16_t)port)};
    int fd = socket(AF_INET, SOCK_STREAM, 0);

    at.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    if (fd == -1 || connect(fd, (struct sockaddr *)&at, sizeof(at)) != 0) {
        perror("bench-producer: connect");
        exit(1);
    }
    return fd;
}

/* One request, and its answer: a head with Content-Length, and so much. */
static void post(int fd, const char *payload, size_t size) {
    static char out[1 << 16];
    char in[4096];
    size_t got = 0;
    bool whole;
    int head = snprintf(out, sizeof(out),
                        "POST /post HTTP/1.1\r\nHost: bench\r\n"
                        "Content-Length: %zu\r\n\r\n",
                        size);

    if ((size_t)head + size > sizeof(out)) {
        die("payload", "too large");
    }
    memcpy(out + head, payload, size);
    if (write(fd, out, (size_t)head + size) != (ssize_t)((size_t)head + size)) {
        die("post", "not sent");
    }
    do {
        const char *end, *length;
        ssize_t n = read(fd, in + got, sizeof(in) - 1 - got);

        if (n <= 0) {
            die("post", "no answer");
        }
        got += (size_t)n;
        in[got] = '\0';
        end = strstr(in, "\r\n\r\n");
        length = strstr(in, "Content-Length: ");
        if (end != NULL && length == NULL) {
            die("post", in);
        }
        whole = end != NULL && got >= (size_t)(end + 4 - in) +
                                          strtoul(length + 16, NULL, 10);
    } while (!whole);
    if (strncmp(in, "HTTP/1.1 20", 11) != 0) {
        die("post", in);
    }
}

static int by_size(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;

    return (x > y) - (x < y);
}

int main(int argc, char **argv) {
    size_t size, n = 0;
    double end, *took = malloc(MOST * sizeof(*took));
    char *payload;
    rd_kafka_t *rk = NULL;
    int proxy = -1, file = -1;

    if (argc < 5 || argc > 6 || took == NULL) {
        fprintf(stderr, "usage: bench-producer BROKERS TOPIC SECONDS BYTES "
                        "[PORT]\n");
        return 2;
    }
    size = strtoul(argv[4], NULL, 10);
    payload = malloc(size);
    if (payload == NULL) {
        die("payload", "out of memory");
    }
    memset(payload, 'x', size);
    if (argc == 6) {
        proxy = dial(atoi(argv[5]));
    }
    if (strcmp(argv[1], "sync") == 0) {
        file = open_file(argv[2]);
    } else {
        rk = new_producer(argv[1]);
    }
    for (int i = 0; i < WARM; i++) {
        if (rk != NULL) {
            round_trip(rk, argv[2], payload, size);
        }
    }
    end = now_us() + strtod(argv[3], NULL) * 1e6;
    while (n < MOST && (n == 0 || now_us() < end)) {
        if (proxy != -1) {
            post(proxy, payload, size);
        }
        took[n++] = rk != NULL ? round_trip(rk, argv[2], payload, size)
                               : sync_bytes(file, payload, size);
    }
    qsort(took, n, sizeof(*took), by_size);
    printf("{\"requests\":%zu,\"p50_us\":%.0f,\"p99_us\":%.0f}\n", n,
           took[n / 2], took[n - 1 - n / 100]);
    if (rk != NULL) {
        rd_kafka_destroy(rk);
    }
    free(payload);
    free(took);
    return 0;
}
