/*
 * Drives sidecar/kafka.c alone, for t/sidecar/test_kafka.py: commands on
 * standard input, events on standard output, a line each.
 *
 *   produce COUNT SIZE   sends records of SIZE bytes with keys of their own;
 *                        what is certainly not persisted is sent again.  Ends
 *                        with `done COUNT acked=... cpu_us=... wall_us=...`
 *   closed COUNT SIZE N  the same with N of them at a time
 *   partition KEY        `partition N end E`
 *   text FILE            records are pieces of it, one after another, instead of
 *                        all the same
 *   read PARTITION       as settlement reads: `read PARTITION records=N`, or
 *                        `read PARTITION failed: WHY`
 *   reload               what HUP does
 *   free MILLISECONDS    kafka_free within that time, and the end
 */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <time.h>
#include <unistd.h>

#include "sidecar/kafka.h"
#include "sidecar/log.h"

typedef struct record {
    struct record *next; /* of those to send */
    char key[24];
    size_t key_len;
    int64_t sent_us;
    const char *value;
} record;

typedef struct {
    loop *l;
    kafka *k;
    config *c;
    loop_io input;
    char line[256];
    size_t line_len;
    bool ended;
    int64_t within_ns;

    record *waiting, **waiting_end;
    char *value, *text;
    size_t size, text_len;
    uint64_t serial, asked, open, acked, retried, rejected, in_doubt, no_offset;
    int64_t cpu_us, wall_us;
    uint64_t to_make;
    uint32_t *latency_us; /* of each acknowledged one */
    kafka_reader *reader;
    uint64_t seen; /* by it */
} probe;

static int64_t cpu_us(void) {
    struct rusage u;
    getrusage(RUSAGE_SELF, &u);
    return (u.ru_utime.tv_sec + u.ru_stime.tv_sec) * 1000000ll +
           u.ru_utime.tv_usec + u.ru_stime.tv_usec;
}

static int64_t wall_us(void) {
    struct timespec ts;
    clock_gettime(CLOCK_MONOTONIC, &ts);
    return ts.tv_sec * 1000000ll + ts.tv_nsec / 1000;
}

static void put(probe *p, record *r) {
    r->next = NULL;
    *p->waiting_end = r;
    p->waiting_end = &r->next;
}

static void make(probe *p) {
    record *r = calloc(1, sizeof(*r));
    r->key_len =
        (size_t)snprintf(r->key, sizeof(r->key), "key-%" PRIu64, p->serial++);
    r->sent_us = wall_us();
    r->value = p->value;
    if (p->text_len > p->size)
        r->value = p->text + (p->serial * p->size) % (p->text_len - p->size);
    p->to_make--;
    put(p, r);
}

static void send_waiting(probe *p) {
    while (p->waiting != NULL) {
        record *r = p->waiting;
        int32_t partition = kafka_partition(p->k, r->key, r->key_len);
        if (kafka_produce(p->k, partition, r->key, r->key_len, r->value,
                          p->size, r) == -1)
            return;
        p->waiting = r->next;
        if (p->waiting == NULL)
            p->waiting_end = &p->waiting;
    }
}

static int by_value(const void *a, const void *b) {
    uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;
    return x < y ? -1 : x > y;
}

static void finish(probe *p) {
    if (p->open > 0)
        return;
    qsort(p->latency_us, p->acked, sizeof(*p->latency_us), by_value);
    printf("done %" PRIu64 " acked=%" PRIu64 " retried=%" PRIu64
           " rejected=%" PRIu64 " in_doubt=%" PRIu64 " no_offset=%" PRIu64
           " cpu_us=%" PRId64 " wall_us=%" PRId64 " p50_us=%u p99_us=%u\n",
           p->asked, p->acked, p->retried, p->rejected, p->in_doubt,
           p->no_offset, cpu_us() - p->cpu_us, wall_us() - p->wall_us,
           p->acked ? p->latency_us[p->acked / 2] : 0,
           p->acked ? p->latency_us[p->acked * 99 / 100] : 0);
    fflush(stdout);
}

static void delivered(void *owner, void *item, kafka_result result,
                      int64_t offset, const char *why) {
    probe *p = owner;
    record *r = item;
    static log_limiter limit;
    if (result != KAFKA_ACKED)
        log_limited(&limit, LOG_LEVEL_INFO, "probe: %s: result %d: %s", r->key,
                    result, why);
    if (result == KAFKA_NOT_PERSISTED) {
        p->retried++;
        put(p, r);
        return;
    }
    if (result == KAFKA_ACKED)
        p->latency_us[p->acked++] = (uint32_t)(wall_us() - r->sent_us);
    p->no_offset += result == KAFKA_ACKED && offset == -1;
    p->rejected += result == KAFKA_REJECTED;
    p->in_doubt += result == KAFKA_IN_DOUBT;
    p->open--;
    free(r);
    if (p->to_make > 0)
        make(p);
    finish(p);
}

static void ready(void *owner, bool yes) {
    probe *p = owner;
    if (yes)
        printf("ready %zu\n", kafka_record_limit(p->k));
    else
        printf("not-ready %s\n", kafka_not_ready_why(p->k));
    fflush(stdout);
}

static void produce(probe *p, uint64_t count, size_t size, uint64_t at_a_time) {
    p->asked = p->open = p->to_make = count;
    p->latency_us = realloc(p->latency_us, count * sizeof(*p->latency_us));
    p->acked = p->retried = p->rejected = p->in_doubt = p->no_offset = 0;
    p->size = size;
    p->value = realloc(p->value, size);
    memset(p->value, 'x', size);
    p->cpu_us = cpu_us();
    p->wall_us = wall_us();
    for (uint64_t i = 0; i < at_a_time; i++)
        make(p);
}

static void read_text(probe *p, const char *file) {
    FILE *in = fopen(file, "re");
    const size_t most = 64 << 20;
    if (in == NULL) {
        log_error("probe: %s: %s", file, strerror(errno));
        return;
    }
    p->text = realloc(p->text, most);
    p->text_len = fread(p->text, 1, most, in);
    fclose(in);
}

static void on_read(void *owner, int32_t partition, kafka_read what,
                    int64_t offset, const void *value, size_t len,
                    const char *why) {
    probe *p = owner;
    (void)offset;
    (void)value;
    (void)len;
    if (what == KAFKA_READ_RECORD) {
        p->seen++;
        return;
    }
    if (what == KAFKA_READ_END) {
        kafka_reader_stop(p->reader, partition);
        printf("read %" PRId32 " records=%" PRIu64 "\n", partition, p->seen);
    } else {
        printf("read %" PRId32 " failed: %s\n", partition, why);
    }
    fflush(stdout);
}

static void read_partition(probe *p, int32_t partition) {
    if (p->reader == NULL)
        p->reader = kafka_reader_new(p->k, on_read, p);
    p->seen = 0;
    if (p->reader == NULL ||
        kafka_reader_start(p->reader, partition, KAFKA_READ_BEGINNING) != 0)
        log_error("probe: partition %" PRId32 " cannot be read", partition);
}

static void command(probe *p, const char *line) {
    uint64_t count, ms, n;
    int32_t partition;
    size_t size;
    char key[64], file[200];
    if (sscanf(line, "produce %" SCNu64 " %zu", &count, &size) == 2) {
        produce(p, count, size, count);
    } else if (sscanf(line, "closed %" SCNu64 " %zu %" SCNu64, &count, &size,
                      &n) == 3) {
        produce(p, count, size, n < count ? n : count);
    } else if (sscanf(line, "partition %63s", key) == 1) {
        int32_t n = kafka_partition(p->k, key, strlen(key));
        printf("partition %" PRId32 " end %" PRId64 "\n", n,
               kafka_known_end(p->k, n));
        fflush(stdout);
    } else if (sscanf(line, "read %" SCNd32, &partition) == 1) {
        read_partition(p, partition);
    } else if (sscanf(line, "text %199s", file) == 1) {
        read_text(p, file);
    } else if (strcmp(line, "reload") == 0) {
        config_resolve_again(p->c, stderr);
        config_hide_secrets(p->c);
        kafka_reload(p->k);
    } else if (sscanf(line, "free %" SCNu64, &ms) == 1) {
        p->within_ns = (int64_t)ms * 1000000;
        p->ended = true;
        loop_stop(p->l);
    } else {
        log_error("probe: unknown command: %s", line);
    }
}

static void on_input(loop_io *io, uint32_t events) {
    probe *p = (probe *)((char *)io - offsetof(probe, input));
    (void)events;
    char *at = p->line + p->line_len, *end;
    ssize_t n = read(io->fd, at, sizeof(p->line) - p->line_len - 1);
    if (n <= 0) {
        command(p, "free 0");
        return;
    }
    p->line_len += (size_t)n;
    p->line[p->line_len] = '\0';
    while ((end = strchr(p->line, '\n')) != NULL) {
        *end = '\0';
        command(p, p->line);
        p->line_len -= (size_t)(end + 1 - p->line);
        memmove(p->line, end + 1, p->line_len + 1);
    }
}

static int64_t before_sleep(void *owner) {
    send_waiting(owner);
    return -1;
}

int main(int argc, char **argv) {
    static const kafka_events events = {.delivered = delivered, .ready = ready};
    config c;
    probe p = {.input = {.fd = STDIN_FILENO, .ready = on_input}};
    p.waiting_end = &p.waiting;
    if (argc != 2 || config_read(&c, argv[1], stderr) == -1 ||
        kafka_check(&c, stderr) == -1)
        return 2;
    p.c = &c;
    config_hide_secrets(&c);
    log_set_level((enum log_level)c.log_level);
    p.l = loop_new();
    p.k = kafka_new(&c, p.l, &events, &p);
    if (p.k == NULL || loop_add(p.l, &p.input, EPOLLIN) == -1)
        return 1;
    loop_run(p.l, before_sleep, &p);
    int64_t began = wall_us();
    if (p.reader != NULL)
        kafka_reader_free(p.reader);
    kafka_free(p.k, p.within_ns);
    printf("freed open=%" PRIu64 " wall_us=%" PRId64 "\n", p.open,
           wall_us() - began);
    if (!kafka_readers_wait(60 * (int64_t)1000000000))
        return 1;
    while (p.waiting != NULL) {
        record *r = p.waiting;
        p.waiting = r->next;
        free(r);
    }
    free(p.value);
    free(p.text);
    free(p.latency_us);
    loop_free(p.l);
    config_free(&c);
    return 0;
}
