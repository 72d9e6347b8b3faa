#include <errno.h>
#include <librdkafka/rdkafka.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <time.h>
#include <unistd.h>

#include "sidecar/kafka_internal.h"
#include "sidecar/kafka_token.h"

#define TURN_MESSAGES 4096

struct kafka_reader {
    kafka *k;
    kafka_read_cb cb;
    void *owner;
    rd_kafka_t *rk;
    rd_kafka_topic_t *rkt;
    rd_kafka_queue_t *queue;
    loop_io io; /* an eventfd: the queue has something */
};

static void on_ready(loop_io *io, uint32_t events);

/* Not the loop's thread: only to the log, and only what is not a matter of
   course where a broker is away. */
static void log_line(const rd_kafka_t *rk, int level, const char *facility,
                     const char *text) {
    (void)rk;
    (void)level;
    log_debug("kafka reader: %s: %s", facility, text);
}

kafka_reader *kafka_reader_new(kafka *k, kafka_read_cb cb, void *owner) {
    static const uint64_t one = 1;
    char why[512];
    kafka_reader *r = calloc(1, sizeof(*r));
    rd_kafka_conf_t *conf =
        r != NULL ? kafka_config_reader(k->c, stderr) : NULL;
    if (conf == NULL) {
        free(r);
        return NULL;
    }
    r->k = k;
    r->cb = cb;
    r->owner = owner;
    rd_kafka_conf_set_log_cb(conf, log_line);
    r->rk = rd_kafka_new(RD_KAFKA_CONSUMER, conf, why, sizeof(why));
    if (r->rk == NULL) {
        log_error("kafka: no consumer can be made: %s", why);
        rd_kafka_conf_destroy(conf);
        free(r);
        return NULL;
    }
    kafka_token_begin(k->c, r->rk);
    r->rkt = rd_kafka_topic_new(r->rk, k->c->topic, NULL);
    r->queue = rd_kafka_queue_new(r->rk);
    r->io.ready = on_ready;
    r->io.fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (r->rkt == NULL || r->io.fd == -1 ||
        loop_add(k->l, &r->io, EPOLLIN) != 0) {
        log_error("kafka: the consumer of %s: %m", k->c->topic);
        kafka_reader_free(r);
        return NULL;
    }
    rd_kafka_queue_io_event_enable(r->queue, r->io.fd, &one, sizeof(one));
    return r;
}

int kafka_reader_start(kafka_reader *r, int32_t partition, int64_t offset) {
    if (rd_kafka_consume_start_queue(r->rkt, partition, offset, r->queue) == 0)
        return 0;
    log_error("kafka: reading partition %d of %s: %s", (int)partition,
              r->k->c->topic, rd_kafka_err2str(rd_kafka_last_error()));
    return -1;
}

/* It waits for librdkafka's own thread and for no broker: 0.04 ms, and as long
   where all brokers hang. */
void kafka_reader_stop(kafka_reader *r, int32_t partition) {
    rd_kafka_consume_stop(r->rkt, partition);
}

static void failed(kafka_reader *r, const rd_kafka_message_t *m) {
    if (m->err == RD_KAFKA_RESP_ERR_TOPIC_AUTHORIZATION_FAILED)
        kafka_topic_readable(r->k, false);
    kafka_reader_stop(r, m->partition);
    r->cb(r->owner, m->partition, KAFKA_READ_FAILED, -1, NULL, 0,
          rd_kafka_err2str(m->err));
}

static void message(kafka_reader *r, const rd_kafka_message_t *m) {
    switch (m->err) {
    case RD_KAFKA_RESP_ERR_NO_ERROR:
        r->cb(r->owner, m->partition, KAFKA_READ_RECORD, m->offset, m->payload,
              m->len, "");
        break;
    case RD_KAFKA_RESP_ERR__PARTITION_EOF:
        r->cb(r->owner, m->partition, KAFKA_READ_END, m->offset, NULL, 0, "");
        break;
    case RD_KAFKA_RESP_ERR_TOPIC_AUTHORIZATION_FAILED:
    case RD_KAFKA_RESP_ERR_GROUP_AUTHORIZATION_FAILED:
    case RD_KAFKA_RESP_ERR_OFFSET_OUT_OF_RANGE:
    case RD_KAFKA_RESP_ERR__AUTO_OFFSET_RESET:
    case RD_KAFKA_RESP_ERR__UNKNOWN_TOPIC:
    case RD_KAFKA_RESP_ERR__UNKNOWN_PARTITION:
    case RD_KAFKA_RESP_ERR_UNKNOWN_TOPIC_OR_PART:
        failed(r, m);
        break;
    default:
        log_debug("kafka reader: %s", rd_kafka_err2str(m->err));
    }
}

static void on_ready(loop_io *io, uint32_t events) {
    kafka_reader *r =
        (kafka_reader *)(void *)((char *)io - offsetof(kafka_reader, io));
    rd_kafka_message_t *m;
    uint64_t n;
    (void)events;
    if (read(io->fd, &n, sizeof(n)) == -1 && errno != EAGAIN)
        log_error("reading the consumer's eventfd failed: %m");
    for (int i = 0; i < TURN_MESSAGES; i++) {
        m = rd_kafka_consume_queue(r->queue, 0);
        if (m == NULL)
            return;
        message(r, m);
        rd_kafka_message_destroy(m);
    }
    n = 1; /* there is more: the eventfd is written once until it is empty */
    if (write(io->fd, &n, sizeof(n)) == -1)
        log_error("writing the consumer's eventfd failed: %m");
}

/* Consumers that helper threads are about to destroy. */
static pthread_mutex_t going_lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t gone = PTHREAD_COND_INITIALIZER;
static unsigned going;

static void *destroy(void *arg) {
    rd_kafka_destroy(arg);
    pthread_mutex_lock(&going_lock);
    going--;
    pthread_cond_broadcast(&gone);
    pthread_mutex_unlock(&going_lock);
    return NULL;
}

static void destroy_aside(rd_kafka_t *rk) {
    pthread_t thread;
    pthread_mutex_lock(&going_lock);
    if (pthread_create(&thread, NULL, destroy, rk) == 0) {
        pthread_detach(thread);
        going++;
    }
    pthread_mutex_unlock(&going_lock);
}

bool kafka_readers_wait(int64_t within_ns) {
    struct timespec until;
    clock_gettime(CLOCK_REALTIME, &until);
    until.tv_sec += within_ns / KAFKA_S;
    pthread_mutex_lock(&going_lock);
    while (going > 0 &&
           pthread_cond_timedwait(&gone, &going_lock, &until) == 0) {
    }
    bool all = going == 0;
    pthread_mutex_unlock(&going_lock);
    return all;
}

void kafka_reader_free(kafka_reader *r) {
    if (r == NULL)
        return;
    if (r->io.fd != -1) {
        rd_kafka_queue_io_event_enable(r->queue, -1, NULL, 0);
        loop_remove(r->k->l, &r->io);
        close(r->io.fd);
    }
    rd_kafka_queue_destroy(r->queue);
    if (r->rkt != NULL)
        rd_kafka_topic_destroy(r->rkt);
    destroy_aside(r->rk);
    free(r);
}
