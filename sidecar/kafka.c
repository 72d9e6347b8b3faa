#define _GNU_SOURCE 1 /* pthread_clockjoin_np */

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <time.h>
#include <unistd.h>

#include "sidecar/kafka_internal.h"
#include "sidecar/kafka_token.h"

/* After a fatal error: how long answers to what is in flight are waited for,
   which turns doubt into certainty. */
#define INFLIGHT_GRACE_NS (2 * KAFKA_S)

#define BACKOFF_MIN_NS (1 * KAFKA_S)
#define BACKOFF_MAX_NS (30 * KAFKA_S)

/* A producer that has lived this long has proven itself. */
#define PROVEN_NS (60 * KAFKA_S)

static void serve(kafka *k);
static void fail(kafka *k, rd_kafka_resp_err_t err, const char *why);
static void begin(kafka *k);

static int64_t clock_ns(void) {
    struct timespec ts;
    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (int64_t)ts.tv_sec * KAFKA_S + ts.tv_nsec;
}

/* a record's way */

kafka_result kafka_classify(rd_kafka_msg_status_t status,
                            rd_kafka_resp_err_t err, bool alone) {
    if (status == RD_KAFKA_MSG_STATUS_PERSISTED)
        return KAFKA_ACKED;
    if (status != RD_KAFKA_MSG_STATUS_NOT_PERSISTED)
        return KAFKA_IN_DOUBT;
    switch (err) {
    case RD_KAFKA_RESP_ERR_MSG_SIZE_TOO_LARGE:
    case RD_KAFKA_RESP_ERR_RECORD_LIST_TOO_LARGE:
    case RD_KAFKA_RESP_ERR_INVALID_MSG_SIZE:
    case RD_KAFKA_RESP_ERR_INVALID_RECORD:
    case RD_KAFKA_RESP_ERR_INVALID_TIMESTAMP:
    case RD_KAFKA_RESP_ERR_UNSUPPORTED_FOR_MESSAGE_FORMAT:
        /* in a batch, it may have been another record's fault */
        return alone ? KAFKA_REJECTED : KAFKA_NOT_PERSISTED;
    default:
        return KAFKA_NOT_PERSISTED;
    }
}

/* Whether it is the batch that the broker refuses. */
static bool is_rejection(rd_kafka_resp_err_t err) {
    return kafka_classify(RD_KAFKA_MSG_STATUS_NOT_PERSISTED, err, true) ==
           KAFKA_REJECTED;
}

/* Records that cannot be handed over at all. */
static void report_rejected(loop_timer *timer) {
    kafka *k = (kafka *)((char *)timer - offsetof(kafka, rejected_timer));
    while (k->rejected != NULL) {
        kafka_rejected *r = k->rejected;
        k->rejected = r->next;
        k->events->delivered(k->owner, r->record, KAFKA_REJECTED, -1, r->why);
        free(r);
    }
}

/* `delivered` must not be called before kafka_produce has returned. */
static int reject_later(kafka *k, void *record, const char *why) {
    kafka_rejected *r = malloc(sizeof(*r));
    if (r == NULL)
        return -1;
    r->record = record;
    r->why = why;
    r->next = k->rejected;
    k->rejected = r;
    loop_timer_set(k->l, &k->rejected_timer, 0);
    return 0;
}

int kafka_produce(kafka *k, int32_t partition, const void *key, size_t key_len,
                  const void *value, size_t len, void *record) {
    if (!k->topic.ready || k->state != KAFKA_RUNNING)
        return -1;
    if (len > kafka_record_limit(k))
        return reject_later(k, record,
                            "larger than the topic's max.message.bytes allows");
    /* a topic that was made again with fewer of them; a connection's partition
       never changes */
    if (partition < 0 || partition >= k->topic.partitions)
        return reject_later(k, record, "its partition is gone");
    const kafka_held r = {.record = record,
                          .key = key,
                          .key_len = key_len,
                          .value = value,
                          .len = len};
    if (kafka_pace_take(k, partition, &r) == 0) {
        k->records++;
        k->bytes += len + key_len;
        return 0;
    }
    rd_kafka_resp_err_t err = rd_kafka_last_error();
    if (err == RD_KAFKA_RESP_ERR__UNKNOWN_PARTITION ||
        err == RD_KAFKA_RESP_ERR__UNKNOWN_TOPIC ||
        err == RD_KAFKA_RESP_ERR_TOPIC_AUTHORIZATION_FAILED)
        kafka_topic_suspect(k, WHY_OTHER, rd_kafka_err2str(err));
    return -1;
}

/* The highest known offset of a partition only rises. */
static void raise_end(kafka *k, int32_t partition, int64_t end) {
    if (partition >= 0 && partition < k->topic.partitions &&
        k->topic.ends[partition] < end)
        k->topic.ends[partition] = end;
}

/* What a failed record says of the topic. */
static void learn_from_failure(kafka *k, rd_kafka_resp_err_t err) {
    switch (err) {
    case RD_KAFKA_RESP_ERR__UNKNOWN_TOPIC:
    case RD_KAFKA_RESP_ERR__UNKNOWN_PARTITION:
    case RD_KAFKA_RESP_ERR_UNKNOWN_TOPIC_OR_PART:
    case RD_KAFKA_RESP_ERR_UNKNOWN_TOPIC_ID:
        kafka_topic_suspect(k, WHY_MISSING, rd_kafka_err2str(err));
        return;
    case RD_KAFKA_RESP_ERR_TOPIC_AUTHORIZATION_FAILED:
        kafka_topic_suspect(k, WHY_FORBIDDEN, rd_kafka_err2str(err));
        return;
    default:
        if (is_rejection(err))
            k->want_single = !k->single;
    }
}

static void report(kafka *k, const rd_kafka_message_t *m) {
    kafka_result result =
        kafka_classify(rd_kafka_message_status(m), m->err, k->single);
    k->records--;
    k->bytes -= m->len + m->key_len;
    kafka_pace_reported(k, m->partition, result == KAFKA_ACKED);
    if (result == KAFKA_ACKED) {
        k->refused = false;
        k->reachable = true;
        /* duplicates and implicit acknowledgements have no offset */
        if (m->offset >= 0)
            raise_end(k, m->partition, m->offset + 1);
        k->events->delivered(k->owner, m->_private, result,
                             m->offset >= 0 ? m->offset : -1, "");
        return;
    }
    learn_from_failure(k, m->err);
    /* not rd_kafka_message_errstr(): of what was produced it gives the
       payload, and captured bytes must never reach a log */
    k->events->delivered(k->owner, m->_private, result, -1,
                         rd_kafka_err2str(m->err));
}

static void reports(kafka *k, rd_kafka_event_t *event) {
    const rd_kafka_message_t *m;
    while ((m = rd_kafka_event_message_next(event)) != NULL)
        report(k, m);
}

/* what librdkafka has to say */

static void log_line(const kafka *k, rd_kafka_event_t *event) {
    static log_limiter limits[4];
    const char *facility, *text;
    int level;
    if (rd_kafka_event_log(event, &facility, &text, &level) == -1)
        return;
    /* that gapless is called experimental is nothing an operator can act on,
       and fatal errors come as events too */
    if ((strcmp(facility, "CONFWARN") == 0 &&
         strstr(text, "enable.gapless.guarantee") != NULL) ||
        strcmp(facility, "FATAL") == 0 || strcmp(facility, "FAIL") == 0)
        level = 7;
    /* a broker that is away is not yet an error: what follows from it is said
       by kafka_topic.c */
    enum log_level to = level <= 2   ? LOG_LEVEL_ERROR
                        : level <= 4 ? LOG_LEVEL_WARN
                        : level <= 6 ? LOG_LEVEL_INFO
                                     : LOG_LEVEL_DEBUG;
    if (to == LOG_LEVEL_DEBUG)
        log_debug("kafka%s: %s: %s", k->of, facility,
                  text); /* kafka.debug asked for all */
    else
        log_limited(&limits[to], to, "kafka%s: %s: %s", k->of, facility, text);
}

/* With TLS 1.3 a client's certificate is refused after the handshake, which
   librdkafka takes for a connection that broke. */
static bool is_refusal(rd_kafka_resp_err_t err, const char *text) {
    return err == RD_KAFKA_RESP_ERR__AUTHENTICATION ||
           err == RD_KAFKA_RESP_ERR__SSL ||
           (err == RD_KAFKA_RESP_ERR__TRANSPORT &&
            strstr(text, "SSL alert") != NULL);
}

static void refused(kafka *k, const char *text) {
    k->refused = true;
    if (k->reloading)
        kafka_hurry(k);
    if (!k->topic.ready)
        kafka_topic_not_ready(k, WHY_AUTHENTICATION,
                              "Kafka's brokers refuse us: %s", text);
}

static void unreachable(kafka *k, rd_kafka_resp_err_t err, const char *text) {
    if (err == RD_KAFKA_RESP_ERR__ALL_BROKERS_DOWN)
        k->reachable = false;
    if ((err == RD_KAFKA_RESP_ERR__RESOLVE ||
         err == RD_KAFKA_RESP_ERR__TRANSPORT ||
         err == RD_KAFKA_RESP_ERR__ALL_BROKERS_DOWN) &&
        !k->topic.ready && k->topic.why != WHY_AUTHENTICATION)
        kafka_topic_not_ready(k, WHY_UNREACHABLE, "Kafka cannot be reached: %s",
                              text);
}

static void error(kafka *k, rd_kafka_event_t *event) {
    rd_kafka_resp_err_t err = rd_kafka_event_error(event);
    const char *text = rd_kafka_event_error_string(event);

    if (err == RD_KAFKA_RESP_ERR__FATAL ||
        rd_kafka_event_error_is_fatal(event)) {
        char why[512];
        err = rd_kafka_fatal_error(k->rk, why, sizeof(why));
        fail(k, err, why);
        return;
    }
    if (is_refusal(err, text))
        refused(k, text);
    else
        unreachable(k, err, text);
    if (k->topic.ready && loop_now_ns(k->l) - k->warned_ns >= 10 * KAFKA_S) {
        k->warned_ns = loop_now_ns(k->l);
        log_warn("kafka%s: %s; %zu records wait", k->of, text, k->records);
    }
}

static void dispatch(kafka *k, rd_kafka_event_t *event) {
    switch (rd_kafka_event_type(event)) {
    case RD_KAFKA_EVENT_DR:
        reports(k, event);
        break;
    case RD_KAFKA_EVENT_LOG:
        log_line(k, event);
        break;
    case RD_KAFKA_EVENT_ERROR:
        error(k, event);
        break;
    default:
        kafka_topic_event(k, event);
    }
}

/* a producer's end, and the next one */

static void *destroy(void *arg) {
    kafka_retired *r = arg;
    rd_kafka_destroy(r->rk);
    return NULL;
}

/* Threads that have ended, or all of them until a time. */
static void join_retired(kafka *k, const struct timespec *until) {
    for (kafka_retired **at = &k->retired; *at != NULL;) {
        kafka_retired *r = *at;
        int err = until != NULL ? pthread_clockjoin_np(r->thread, NULL,
                                                       CLOCK_MONOTONIC, until)
                                : pthread_tryjoin_np(r->thread, NULL);
        if (err != 0) {
            at = &r->next;
            continue;
        }
        *at = r->next;
        free(r);
    }
}

/* Destroying waits for librdkafka's threads: never on the loop. */
static void retire(kafka *k) {
    join_retired(k, NULL);
    rd_kafka_queue_io_event_enable(k->queue, -1, NULL, 0);
    rd_kafka_queue_destroy(k->queue);
    rd_kafka_topic_destroy(k->rkt);
    kafka_retired *r = calloc(1, sizeof(*r));
    if (r != NULL) {
        r->rk = k->rk;
        if (pthread_create(&r->thread, NULL, destroy, r) == 0) {
            r->next = k->retired;
            k->retired = r;
            r = NULL;
        } else {
            log_error("kafka: no thread to end a producer with: it stays");
        }
    }
    free(r);
    k->rk = NULL;
    k->rkt = NULL;
    k->queue = NULL;
    k->state = KAFKA_BETWEEN;
    kafka_pace_reset(k, ""); /* nothing is held any more: counts begin anew */
}

static void say_failed(kafka *k, rd_kafka_resp_err_t err, const char *why) {
    if (k->records > 0)
        log_warn("kafka%s: the producer has failed with %zu records not yet "
                 "reported",
                 k->of, k->records);
    if (err == RD_KAFKA_RESP_ERR_CLUSTER_AUTHORIZATION_FAILED ||
        err == RD_KAFKA_RESP_ERR_TOPIC_AUTHORIZATION_FAILED)
        kafka_topic_not_ready(k, WHY_FORBIDDEN,
                              "topic %s is not permitted to this principal: "
                              "allow it Describe and "
                              "Write on the topic (brokers before 2.8 also "
                              "want IdempotentWrite on "
                              "the cluster): %s",
                              k->c->topic, why);
    else
        kafka_topic_not_ready(k, WHY_PRODUCER,
                              "the producer failed and is made anew: %s", why);
}

/* Takes no more records; what is queued is given back at once, what is in
   flight when its answer comes or the grace is over. */
static void fail(kafka *k, rd_kafka_resp_err_t err, const char *why) {
    if (k->state == KAFKA_BETWEEN || (k->state == KAFKA_FAILED && !k->patient))
        return;
    k->state = KAFKA_FAILED;
    k->patient = false;
    k->failed_ns = clock_ns();
    bool proven = k->failed_ns - k->begun_ns > PROVEN_NS;
    k->backoff_ns =
        proven || k->backoff_ns == 0 ? BACKOFF_MIN_NS : k->backoff_ns * 2;
    if (k->backoff_ns > BACKOFF_MAX_NS)
        k->backoff_ns = BACKOFF_MAX_NS;
    kafka_topic_stop(k);
    say_failed(k, err, why);
    kafka_pace_reset(k, why);
    rd_kafka_purge(k->rk,
                   RD_KAFKA_PURGE_F_QUEUE | RD_KAFKA_PURGE_F_NON_BLOCKING);
    loop_timer_set(k->l, &k->timer, INFLIGHT_GRACE_NS);
}

void kafka_restart(kafka *k) {
    if (k->state != KAFKA_RUNNING)
        return;
    k->state = KAFKA_FAILED;
    k->patient = true;
    k->failed_ns = clock_ns();
    k->backoff_ns = 0;
    kafka_topic_stop(k);
    kafka_pace_reset(k, "the producer is made anew");
    loop_timer_set(k->l, &k->timer, 0);
}

void kafka_hurry(kafka *k) {
    if (k->state != KAFKA_FAILED || !k->patient)
        return;
    k->patient = false;
    loop_timer_set(k->l, &k->timer, INFLIGHT_GRACE_NS);
}

/* All reports are in: the next producer may begin, after the backoff. */
static void when_reported(kafka *k) {
    if (k->state != KAFKA_FAILED || k->records > 0)
        return;
    retire(k);
    int64_t wait = k->backoff_ns - (clock_ns() - k->failed_ns);
    loop_timer_set(k->l, &k->timer, wait);
}

static void on_timer(loop_timer *timer) {
    kafka *k = (kafka *)((char *)timer - offsetof(kafka, timer));
    if (k->state == KAFKA_BETWEEN) {
        begin(k);
        return;
    }
    if (k->state == KAFKA_FAILED && k->records > 0 && !k->patient) {
        rd_kafka_purge(k->rk, RD_KAFKA_PURGE_F_QUEUE |
                                  RD_KAFKA_PURGE_F_INFLIGHT |
                                  RD_KAFKA_PURGE_F_NON_BLOCKING);
        loop_timer_set(k->l, &k->timer, INFLIGHT_GRACE_NS);
    }
    serve(k);
}

/* The eventfd is written once until the queue has been emptied. */
static void serve(kafka *k) {
    rd_kafka_event_t *event;
    while (k->queue != NULL &&
           (event = rd_kafka_queue_poll(k->queue, 0)) != NULL) {
        dispatch(k, event);
        rd_kafka_event_destroy(event);
    }
    kafka_pace_continue(k);
    when_reported(k);
}

static void on_ready(loop_io *io, uint32_t epoll_events) {
    kafka *k = (kafka *)((char *)io - offsetof(kafka, io));
    uint64_t n;
    (void)epoll_events;
    if (read(io->fd, &n, sizeof(n)) == -1 && errno != EAGAIN)
        log_error("reading Kafka's eventfd failed: %m");
    serve(k);
}

/* NULL after a line in the log. */
static rd_kafka_t *make_producer(kafka *k) {
    char why[512];
    rd_kafka_conf_t *conf =
        kafka_config_make(k->c, k->batch_size, k->single, stderr);
    if (conf == NULL)
        return NULL;
    rd_kafka_conf_set_events(conf, RD_KAFKA_EVENT_DR | RD_KAFKA_EVENT_ERROR |
                                       RD_KAFKA_EVENT_LOG);
    rd_kafka_t *rk = rd_kafka_new(RD_KAFKA_PRODUCER, conf, why, sizeof(why));
    if (rk == NULL) {
        rd_kafka_conf_destroy(conf);
        log_error("kafka%s: no producer can be made: %s", k->of, why);
        return NULL;
    }
    kafka_token_begin(k->c, rk);
    return rk;
}

static int open_instance(kafka *k) {
    const uint64_t one = 1;
    k->single = k->want_single;
    kafka_fingerprint(k->c, k->fingerprint);
    k->rk = make_producer(k);
    if (k->rk == NULL)
        return -1;
    k->certificate_expiry_s = kafka_certificate_note(k->c);
    k->reloading = false;
    k->refused = false;
    rd_kafka_set_log_queue(k->rk, NULL);
    k->queue = rd_kafka_queue_get_main(k->rk);
    rd_kafka_queue_io_event_enable(k->queue, k->io.fd, &one, sizeof(one));
    /* this asks for the topic, and so creates it where brokers do that */
    k->rkt = rd_kafka_topic_new(k->rk, k->c->topic, NULL);
    if (k->rkt == NULL) {
        log_error("kafka: topic %s: %s", k->c->topic,
                  rd_kafka_err2str(rd_kafka_last_error()));
        rd_kafka_queue_destroy(k->queue);
        rd_kafka_destroy(k->rk);
        k->queue = NULL;
        k->rk = NULL;
        return -1;
    }
    k->state = KAFKA_RUNNING;
    k->begun_ns = clock_ns();
    /* the eventfd tells nothing of what was queued before it was known */
    loop_timer_set(k->l, &k->timer, 0);
    return 0;
}

static void begin(kafka *k) {
    if (open_instance(k) == -1) {
        k->backoff_ns = k->backoff_ns * 2 < BACKOFF_MIN_NS ? BACKOFF_MIN_NS
                                                           : k->backoff_ns * 2;
        if (k->backoff_ns > BACKOFF_MAX_NS)
            k->backoff_ns = BACKOFF_MAX_NS;
        loop_timer_set(k->l, &k->timer, k->backoff_ns);
        return;
    }
    kafka_topic_begin(k);
}

/* the interface */

kafka *kafka_new(const config *c, loop *l, const kafka_events *events,
                 void *owner) {
    kafka *k = calloc(1, sizeof(*k));
    if (k == NULL) {
        log_error("out of memory");
        return NULL;
    }
    k->c = c;
    k->l = l;
    k->events = events;
    k->owner = owner;
    config_of_destination(c, k->of, sizeof(k->of));
    k->state = KAFKA_BETWEEN;
    k->batch_size = KAFKA_BATCH_SIZE;
    k->timer.due = on_timer;
    k->rejected_timer.due = report_rejected;
    k->io.ready = on_ready;
    k->io.fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    kafka_topic_init(k);
    if (k->io.fd == -1 || loop_add(l, &k->io, EPOLLIN) == -1) {
        log_error("eventfd for Kafka failed: %m");
        goto failed;
    }
    if (open_instance(k) == -1)
        goto failed;
    kafka_topic_begin(k);
    return k;

failed:
    if (k->io.fd != -1)
        close(k->io.fd);
    free(k);
    return NULL;
}

void kafka_look(const kafka *k, kafka_health *into) {
    into->reachable = k->reachable;
    into->certificate_expiry_s = k->certificate_expiry_s;
    into->token_expiry_s = kafka_token_expiry(k->c);
}

size_t kafka_queued(const kafka *k) {
    return k->bytes;
}

/* the end of all */

static void poll_some(kafka *k, int ms) {
    rd_kafka_event_t *event;
    for (; k->records > 0; ms = 0) {
        kafka_pace_continue(k);
        event = rd_kafka_queue_poll(k->queue, ms);
        if (event == NULL)
            return;
        dispatch(k, event);
        rd_kafka_event_destroy(event);
    }
}

/* Until all of their records are reported. */
static void poll_until(kafka *const *ks, size_t n, int64_t until_ns) {
    for (;;) {
        int64_t left = until_ns - clock_ns();
        int waiting = 0;
        for (size_t i = 0; i < n; i++)
            waiting += ks[i]->rk != NULL && ks[i]->records > 0;
        if (waiting == 0 || left <= 0)
            return;
        int ms = (int)(left / KAFKA_MS) + 1;
        ms = (ms > 100 ? 100 : ms) / waiting;
        for (size_t i = 0; i < n; i++)
            if (ks[i]->rk != NULL)
                poll_some(ks[i], ms > 0 ? ms : 1);
    }
}

static void begin_end(kafka *k) {
    kafka_topic_stop(k);
    k->topic.ready = false; /* the ledger's retries end here */
    report_rejected(&k->rejected_timer);
}

static void purge(kafka *k) {
    if (k->rk == NULL)
        return;
    kafka_pace_reset(k, "the sidecar ends");
    if (k->records > 0)
        rd_kafka_purge(k->rk, RD_KAFKA_PURGE_F_QUEUE |
                                  RD_KAFKA_PURGE_F_INFLIGHT |
                                  RD_KAFKA_PURGE_F_NON_BLOCKING);
}

static void end_producer(kafka *k) {
    if (k->rk == NULL)
        return;
    if (k->records > 0)
        log_error("kafka%s: %zu records were never reported", k->of,
                  k->records);
    retire(k);
}

static bool hangs;

bool kafka_hangs(void) {
    return hangs;
}

static void free_one(kafka *k, const struct timespec *until) {
    loop_timer_cancel(k->l, &k->timer);
    loop_timer_cancel(k->l, &k->rejected_timer);
    loop_remove(k->l, &k->io);
    close(k->io.fd);
    /* a thread that hangs in a name look-up does not keep the process, and it
       needs nothing of ours but the configuration (kafka_hangs) */
    join_retired(k, until);
    hangs |= k->retired != NULL;
    kafka_topic_free(k);
    kafka_pace_free(k);
    free(k);
}

void kafkas_free(kafka *const *ks, size_t n, int64_t within_ns) {
    int64_t until = clock_ns() + within_ns;
    for (size_t i = 0; i < n; i++)
        begin_end(ks[i]);
    poll_until(ks, n, until);
    for (size_t i = 0; i < n; i++)
        purge(ks[i]);
    poll_until(ks, n, clock_ns() + KAFKA_S);
    for (size_t i = 0; i < n; i++)
        end_producer(ks[i]);
    int64_t last = clock_ns() + 2 * KAFKA_S;
    struct timespec ts = {.tv_sec = last / KAFKA_S, .tv_nsec = last % KAFKA_S};
    for (size_t i = 0; i < n; i++)
        free_one(ks[i], &ts);
}

void kafka_free(kafka *k, int64_t within_ns) {
    kafkas_free(&k, k != NULL, within_ns);
}
