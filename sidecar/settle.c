#include "sidecar/settle.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/queue.h>
#include <sys/random.h>
#include <time.h>

#include "proto/decode.h"
#include "proto/record.h"
#include "sidecar/log.h"
#include "sidecar/metrics.h"
#include "sidecar/step.h"

#define AGAIN_NS 500000000ll  /* Kafka is not ready, or a barrier failed */
#define LOOK_NS 100000000ll   /* the topic has not been described yet */
#define IDLE_NS 60000000000ll /* the consumer is kept for so long */
#define SLOW_NS 30000000000ll /* a round that takes longer is logged */
#define HASH_SIZE 4096u       /* of doubts by connectionId */
#define PARTITION_LISTS 256u  /* a bad pool can name any */
#define BARRIER_ID_SIZE 64
#define BARRIER_SIZE 256

typedef struct settle_doubt {
    conn *conn; /* NULL: forgotten */
    uint32_t number;
    int64_t low_water;
    uint64_t topic_mark;
    int64_t offset; /* where it was found, or -1 */
    bool found;
    struct settle_doubt *same_hash;
    TAILQ_ENTRY(settle_doubt) all;
} settle_doubt;

TAILQ_HEAD(doubts, settle_doubt);

enum round_state {
    ROUND_NONE,
    ROUND_WAITING, /* for settle.time, or for Kafka */
    ROUND_BARRIER, /* for the barrier's report */
    ROUND_READING,
    ROUND_LOOKING /* whether it is the same topic */
};

typedef struct {
    kafka_owner kind; /* KAFKA_OF_SETTLE: a barrier's report is for us */
    struct partition *partition;
    char id[BARRIER_ID_SIZE];
    size_t id_len;
    uint8_t value[BARRIER_SIZE];
} barrier;

typedef struct partition {
    settle *settle;
    int32_t number;
    enum round_state state;
    struct doubts waiting; /* for the next round */
    struct doubts round;   /* of this one */
    loop_timer timer;
    int64_t begun_ns;
    int64_t end;   /* the barrier's offset */
    uint64_t look; /* kafka_topic_look's */
    barrier barrier;
    LIST_ENTRY(partition) all;
} partition;

struct settle {
    loop *loop;
    kafka *kafka;
    int64_t settle_ns;
    settle_verdict_cb cb;
    void *owner;
    bool stopped;
    kafka_reader *reader;
    unsigned reading; /* partitions */
    size_t doubts;
    const char *topic;
    loop_timer idle;
    settle_doubt *hash[HASH_SIZE];
    LIST_HEAD(, partition) partitions[PARTITION_LISTS]; /* with doubts */
    char prefix[2 * 16 + 1]; /* of barriers' connectionIds */
    uint64_t barriers;
};

static void timer_due(loop_timer *timer);
static void read_event(void *owner, int32_t number, kafka_read what,
                       int64_t offset, const void *value, size_t len,
                       const char *why);

/* ---- life ---- */

static void reader_idle(loop_timer *timer) {
    settle *s = (settle *)(void *)((char *)timer - offsetof(settle, idle));

    kafka_reader_free(s->reader);
    s->reader = NULL;
}

settle *settle_new(const config *c, loop *l, kafka *k, settle_verdict_cb cb,
                   void *owner) {
    settle *s = calloc(1, sizeof(*s));
    uint8_t random[16];

    if (s == NULL || getrandom(random, sizeof(random), 0) != sizeof(random)) {
        free(s);
        return NULL;
    }
    for (size_t i = 0; i < sizeof(random); i++) {
        snprintf(s->prefix + 2 * i, 3, "%02x", random[i]);
    }
    s->loop = l;
    s->kafka = k;
    s->settle_ns = c->settle_time;
    s->topic = c->topic != NULL ? c->topic : "";
    s->cb = cb;
    s->owner = owner;
    s->idle.due = reader_idle;
    for (unsigned i = 0; i < PARTITION_LISTS; i++) {
        LIST_INIT(&s->partitions[i]);
    }
    return s;
}

void settle_stop(settle *s) {
    partition *p;

    if (s == NULL) {
        return;
    }
    s->stopped = true;
    for (unsigned i = 0; i < PARTITION_LISTS; i++) {
        LIST_FOREACH(p, &s->partitions[i], all) {
            loop_timer_cancel(s->loop, &p->timer);
        }
    }
    loop_timer_cancel(s->loop, &s->idle);
    kafka_reader_free(s->reader);
    s->reader = NULL;
}

static void free_doubts(struct doubts *list) {
    settle_doubt *d;

    while ((d = TAILQ_FIRST(list)) != NULL) {
        TAILQ_REMOVE(list, d, all);
        free(d);
    }
}

static void free_partition(partition *p) {
    LIST_REMOVE(p, all);
    free_doubts(&p->waiting);
    free_doubts(&p->round);
    free(p);
}

void settle_free(settle *s) {
    partition *p;

    if (s == NULL) {
        return;
    }
    settle_stop(s);
    for (unsigned i = 0; i < PARTITION_LISTS; i++) {
        while ((p = LIST_FIRST(&s->partitions[i])) != NULL) {
            free_partition(p);
        }
    }
    free(s);
}

static partition *find_partition(settle *s, int32_t number, bool make) {
    partition *p;

    LIST_FOREACH(p, &s->partitions[(uint32_t)number % PARTITION_LISTS], all) {
        if (p->number == number) {
            return p;
        }
    }
    p = make ? calloc(1, sizeof(*p)) : NULL;
    if (p != NULL) {
        p->settle = s;
        p->number = number;
        p->timer.due = timer_due;
        TAILQ_INIT(&p->waiting);
        TAILQ_INIT(&p->round);
        LIST_INSERT_HEAD(&s->partitions[(uint32_t)number % PARTITION_LISTS], p,
                         all);
    }
    return p;
}

/* ---- doubts ---- */

static uint32_t hash_of(const void *id, size_t len) {
    return kafka_murmur2(id, len) % HASH_SIZE;
}

static void hash_in(settle *s, settle_doubt *d) {
    settle_doubt **at = &s->hash[hash_of(d->conn->id, d->conn->id_len)];

    d->same_hash = *at;
    *at = d;
}

static void hash_out(settle *s, settle_doubt *d) {
    settle_doubt **at = &s->hash[hash_of(d->conn->id, d->conn->id_len)];

    while (*at != NULL && *at != d) {
        at = &(*at)->same_hash;
    }
    if (*at == d) {
        *at = d->same_hash;
    }
}

int settle_add(settle *s, conn *c) {
    partition *p;
    settle_doubt *d;

    if (s == NULL || c->partition < 0) {
        return -1;
    }
    p = find_partition(s, c->partition, true);
    d = p != NULL ? calloc(1, sizeof(*d)) : NULL;
    if (d == NULL) {
        return -1;
    }
    d->conn = c;
    d->number = c->next_number;
    d->low_water = c->low_water;
    d->topic_mark = c->topic_mark;
    d->offset = -1;
    c->doubt = d;
    TAILQ_INSERT_TAIL(&p->waiting, d, all);
    metrics_cell[METRIC_DOUBTS]++;
    s->doubts++;
    step(STEP_DOUBT);
    if (p->state == ROUND_NONE) {
        p->state = ROUND_WAITING;
        loop_timer_set(s->loop, &p->timer, s->settle_ns);
    } else if (p->state == ROUND_WAITING) {
        loop_timer_set(s->loop, &p->timer, s->settle_ns);
    }
    return 0;
}

bool settle_idle(const settle *s) {
    return s == NULL || s->doubts == 0;
}

size_t settle_doubts(const settle *s) {
    return s != NULL ? s->doubts : 0;
}

void settle_forget(settle *s, conn *c) {
    settle_doubt *d = c->doubt;

    if (d == NULL) {
        return;
    }
    hash_out(s, d);
    c->doubt = NULL;
    d->conn = NULL;
    metrics_cell[METRIC_DOUBTS]--;
    s->doubts--;
}

/* ---- a round ---- */

/* Nothing can be said of a topic that is no more. */
static bool same_topic(const settle *s, const settle_doubt *d) {
    uint64_t now = kafka_topic_mark(s->kafka);

    return d->topic_mark == 0 || now == 0 || d->topic_mark == now;
}

static void verdicts(partition *p, bool readable) {
    settle *s = p->settle;
    settle_doubt *d;

    while ((d = TAILQ_FIRST(&p->round)) != NULL) {
        conn *c = d->conn;
        settle_verdict verdict = !readable || !same_topic(s, d)
                                     ? SETTLE_UNREADABLE
                                 : d->found ? SETTLE_FOUND
                                            : SETTLE_ABSENT;
        int64_t offset = d->offset;

        TAILQ_REMOVE(&p->round, d, all);
        if (c != NULL) {
            hash_out(s, d);
            c->doubt = NULL;
            metrics_cell[METRIC_DOUBTS]--;
            s->doubts--;
            metrics_cell[METRIC_DOUBTS_FOUND] += verdict == SETTLE_FOUND;
            metrics_cell[METRIC_DOUBTS_ABSENT] += verdict == SETTLE_ABSENT;
            metrics_cell[METRIC_DOUBTS_UNREADABLE] +=
                verdict == SETTLE_UNREADABLE;
        }
        free(d);
        if (c != NULL) {
            step(STEP_VERDICT);
            s->cb(s->owner, c, verdict, offset);
        }
    }
}

/* Of one that waits for nothing: another round, or its end. */
static void next_round(partition *p) {
    if (p->state != ROUND_NONE) {
        return;
    }
    if (TAILQ_EMPTY(&p->waiting)) {
        free_partition(p);
        return;
    }
    p->state = ROUND_WAITING;
    loop_timer_set(p->settle->loop, &p->timer, p->settle->settle_ns);
}

static void round_over(partition *p, bool readable) {
    log_info("topic %s, partition %" PRId32 " is settled%s", p->settle->topic,
             p->number, readable ? "" : ": it cannot be read");
    p->state = ROUND_NONE;
    verdicts(p, readable);
    next_round(p);
}

/* A connectionId that nobody had before, and one close. */
static size_t encode_barrier(settle *s, barrier *b) {
    const record_head head = {.connection_id = b->id,
                              .node_id = s->prefix,
                              .node_id_len = sizeof(s->prefix) - 1};
    record_head h = head;
    struct timespec now;
    record_writer w;
    int64_t ts;

    b->id_len = (size_t)snprintf(b->id, sizeof(b->id), "%s-barrier-%" PRIx64,
                                 s->prefix, ++s->barriers);
    h.connection_id_len = b->id_len;
    clock_gettime(CLOCK_REALTIME, &now);
    ts = (int64_t)now.tv_sec * 1000000000 + now.tv_nsec;
    if (record_begin(&w, b->value, sizeof(b->value), &h) != 0 ||
        record_close(&w, ts) != 0) {
        return 0;
    }
    return record_finish(&w, 1, true);
}

static void send_barrier(partition *p) {
    settle *s = p->settle;
    barrier *b = &p->barrier;
    size_t len;

    if (kafka_ready(s->kafka) && !kafka_readable(s->kafka)) {
        round_over(p, false);
        return;
    }
    b->kind = KAFKA_OF_SETTLE;
    b->partition = p;
    len = encode_barrier(s, b);
    if (!kafka_ready(s->kafka) || len == 0 ||
        kafka_produce(s->kafka, p->number, b->id, b->id_len, b->value, len,
                      b) != 0) {
        loop_timer_set(s->loop, &p->timer, AGAIN_NS);
        return;
    }
    metrics_cell[METRIC_BARRIERS]++;
    p->state = ROUND_BARRIER;
    step(STEP_BARRIER);
}

static void begin_round(partition *p) {
    settle_doubt *d, *next;

    for (d = TAILQ_FIRST(&p->waiting); d != NULL; d = next) {
        next = TAILQ_NEXT(d, all);
        TAILQ_REMOVE(&p->waiting, d, all);
        if (d->conn == NULL) {
            free(d);
            continue;
        }
        hash_in(p->settle, d);
        TAILQ_INSERT_TAIL(&p->round, d, all);
    }
    p->begun_ns = loop_now_ns(p->settle->loop);
}

/* Until it has been described by an answer to what was asked when the barrier
   was there already. */
static void look(partition *p) {
    settle *s = p->settle;

    if (kafka_topic_looked(s->kafka) > p->look) {
        round_over(p, true);
        return;
    }
    (void)kafka_topic_look(s->kafka);
    loop_timer_set(s->loop, &p->timer, LOOK_NS);
}

static void timer_due(loop_timer *timer) {
    partition *p =
        (partition *)(void *)((char *)timer - offsetof(partition, timer));

    if (p->state == ROUND_LOOKING) {
        look(p);
        return;
    }
    if (TAILQ_EMPTY(&p->round)) {
        begin_round(p);
    }
    if (TAILQ_EMPTY(&p->round)) {
        p->state = ROUND_NONE;
        next_round(p);
        return;
    }
    step(STEP_ROUND);
    send_barrier(p);
}

static int start_reading(partition *p) {
    settle *s = p->settle;
    int64_t low = INT64_MAX;
    settle_doubt *d;

    TAILQ_FOREACH(d, &p->round, all) {
        low = d->low_water < low ? d->low_water : low;
    }
    if (low < 0) {
        low = KAFKA_READ_BEGINNING; /* it had no leader when we asked */
    }
    loop_timer_cancel(s->loop, &s->idle);
    if (s->reader == NULL) {
        s->reader = kafka_reader_new(s->kafka, read_event, s);
    }
    if (s->reader == NULL) {
        return -1;
    }
    s->reading++;
    p->state = ROUND_READING;
    if (kafka_reader_start(s->reader, p->number, low) != 0) {
        s->reading--;
        p->state = ROUND_WAITING;
        return -1;
    }
    return 0;
}

/* With the settle.time before it, also one that failed may still arrive: so
   the next has another id, and its own wait. */
void settle_reported(settle *s, void *record, kafka_result result,
                     int64_t offset) {
    partition *p = ((barrier *)record)->partition;

    if (s->stopped) {
        return;
    }
    p->state = ROUND_WAITING;
    p->end = offset;
    if (result == KAFKA_REJECTED) {
        round_over(p, false); /* the partition is gone */
        return;
    }
    step(STEP_BARRIER_ACKED);
    if (result != KAFKA_ACKED || offset < 0 || start_reading(p) != 0) {
        loop_timer_set(s->loop, &p->timer, AGAIN_NS);
    }
}

static void found(settle *s, const void *value, size_t len, int64_t offset) {
    record_reader r;
    record_info info;
    settle_doubt *d;

    if (record_open(&r, value, len, &info) != 0) {
        return; /* not one of ours */
    }
    d = s->hash[hash_of(info.connection_id.data, info.connection_id.len)];
    for (; d != NULL; d = d->same_hash) {
        if (d->conn->id_len == info.connection_id.len &&
            memcmp(d->conn->id, info.connection_id.data, d->conn->id_len) ==
                0 &&
            (int64_t)d->number == info.number) {
            d->found = true;
            d->offset = offset;
        }
    }
}

static void reading_over(partition *p, bool readable) {
    settle *s = p->settle;

    if (--s->reading == 0) {
        loop_timer_set(s->loop, &s->idle, IDLE_NS);
    }
    if (!readable) {
        round_over(p, false);
        return;
    }
    p->state = ROUND_LOOKING;
    p->look = kafka_topic_look(s->kafka);
    look(p);
}

static void read_event(void *owner, int32_t number, kafka_read what,
                       int64_t offset, const void *value, size_t len,
                       const char *why) {
    settle *s = owner;
    partition *p = find_partition(s, number, false);

    if (p == NULL || p->state != ROUND_READING) {
        return; /* what was still queued of a round that is over */
    }
    switch (what) {
    case KAFKA_READ_FAILED:
        log_warn("records in doubt cannot be looked for in topic %s, partition "
                 "%" PRId32 ": %s",
                 s->topic, number, why);
        reading_over(p, false);
        return;
    case KAFKA_READ_RECORD:
        step(STEP_READ);
        if (offset < p->end && value != NULL) {
            found(s, value, len, offset);
        }
        offset++;
        break;
    case KAFKA_READ_END:
        break;
    }
    if (offset > p->end) {
        kafka_reader_stop(s->reader, number);
        reading_over(p, true);
    }
}
