/*
 * A topic that outlives its producers: included by tests in the place of
 * sidecar/kafka.c.  Each topic has partitions of its own, one after the other in
 * broker.partitions.  What a producer hands over is on its way until the test says
 * what became of it; when the producer dies, chance does.
 */
#include <check.h>
#include <stdlib.h>
#include <string.h>

#include "sidecar/kafka.h"
#include "t/unit/fake_topic.c"

#define BROKER_PARTITIONS 3
#define BROKER_TOPICS 2
#define BROKER_ALL (BROKER_TOPICS * BROKER_PARTITIONS)
#define BROKER_SENT 4096

typedef struct {
    char key[64];
    uint8_t *value;
    size_t len;
} broker_record;

typedef struct {
    broker_record *log;
    unsigned n, room;
    int64_t known;   /* to the producer */
    int64_t reading; /* the next offset, or -1: it is not read */
    unsigned reader; /* raised with each start */
} broker_partition;

/* A producer, and a reader, of topic number `topic`. */
typedef struct {
    unsigned topic;
    void *owner;
    kafka_read_cb read;
    void *read_owner;
} broker_end;

typedef struct {
    void *record;
    unsigned topic;
    int32_t partition; /* of it */
    char key[64];
    const void *value;
    size_t len;
} broker_sent;

static struct {
    broker_partition partitions[BROKER_ALL];
    broker_end ends[BROKER_TOPICS];
    broker_sent sent[BROKER_SENT]; /* on the way */
    unsigned nsent;
    const kafka_events *events;
    size_t limit;
    bool ready, blind, known_blind;
    uint32_t producers; /* so far */
    unsigned (*dice)(unsigned n);
} broker;

/* ---- what a test does ---- */

static broker_partition *partition_of(unsigned topic, int32_t partition) {
    return &broker.partitions[topic * BROKER_PARTITIONS + (unsigned)partition];
}

static int64_t broker_append(const broker_sent *s) {
    broker_partition *p = partition_of(s->topic, s->partition);
    broker_record *r;

    if (p->n == p->room) {
        p->room = p->room == 0 ? 64 : 2 * p->room;
        p->log = realloc(p->log, p->room * sizeof(*p->log));
    }
    r = &p->log[p->n];
    memcpy(r->key, s->key, sizeof(r->key));
    r->value = malloc(s->len);
    r->len = s->len;
    memcpy(r->value, s->value, s->len);
    return p->n++;
}

/* The report of sent[i], which is on its way no more. */
static void broker_report(unsigned i, kafka_result result) {
    const broker_sent s = broker.sent[i];
    int64_t offset = -1;

    broker.sent[i] = broker.sent[--broker.nsent];
    if (s.partition < 0 || s.partition >= BROKER_PARTITIONS) {
        result = KAFKA_REJECTED;
    } else if (result == KAFKA_ACKED ||
               (result == KAFKA_IN_DOUBT && broker.dice(2) == 0)) {
        offset = broker_append(&s);
    }
    if (result != KAFKA_ACKED || broker.dice(8) == 0) {
        offset = -1;
    } else if (partition_of(s.topic, s.partition)->known <= offset) {
        partition_of(s.topic, s.partition)->known = offset + 1;
    }
    broker.events->delivered(broker.ends[s.topic].owner, s.record, result,
                             offset, "the test says so");
}

/* The producer is dead; what is on its way arrives or does not. */
static void broker_producer_died(void) {
    for (unsigned i = 0; i < broker.nsent; i++) {
        const broker_sent *s = &broker.sent[i];

        if (s->partition >= 0 && s->partition < BROKER_PARTITIONS &&
            broker.dice(2) == 0) {
            broker_append(s);
        }
    }
    broker.nsent = 0;
    for (unsigned i = 0; i < BROKER_ALL; i++) {
        broker.partitions[i].reading = -1;
    }
}

/* Gives the reader up to `n` records of each partition that it reads. */
static void broker_feed(unsigned n) {
    for (int32_t all = 0; all < BROKER_ALL; all++) {
        broker_partition *p = &broker.partitions[all];
        const broker_end *e = &broker.ends[all / BROKER_PARTITIONS];
        int32_t i = all % BROKER_PARTITIONS;
        unsigned reader = p->reader;

        for (unsigned k = 0; k < n && p->reading >= 0 && p->reader == reader;
             k++) {
            if (broker.blind) {
                p->reading = -1;
                e->read(e->read_owner, i, KAFKA_READ_FAILED, -1, NULL, 0,
                        "the test says so");
            } else if (p->reading < p->n) {
                int64_t at = p->reading++;

                e->read(e->read_owner, i, KAFKA_READ_RECORD, at,
                        p->log[at].value, p->log[at].len, "");
            } else {
                e->read(e->read_owner, i, KAFKA_READ_END, p->reading, NULL, 0,
                        "");
                break;
            }
        }
    }
}

static void broker_clear(void) {
    for (unsigned i = 0; i < BROKER_ALL; i++) {
        broker_partition *p = &broker.partitions[i];

        for (unsigned k = 0; k < p->n; k++) {
            free(p->log[k].value);
        }
        free(p->log);
        memset(p, 0, sizeof(*p));
    }
}

/* ---- sidecar/kafka.h ---- */

/* The topic "second" is the second. */
kafka *kafka_new(const config *c, loop *l, const kafka_events *events,
                 void *owner) {
    unsigned topic = c->topic != NULL && strcmp(c->topic, "second") == 0;
    broker_end *e = &broker.ends[topic];

    (void)l;
    broker.events = events;
    e->topic = topic;
    e->owner = owner;
    broker.producers++;
    broker.nsent = 0;
    for (int32_t i = 0; i < BROKER_PARTITIONS; i++) {
        broker_partition *p = partition_of(topic, i);

        p->known = broker.dice(8) == 0 ? -1 : (int64_t)p->n;
    }
    for (unsigned i = 0; i < BROKER_ALL; i++) {
        broker.partitions[i].reading = -1;
    }
    return (kafka *)e;
}

bool kafka_ready(const kafka *k) {
    (void)k;
    return broker.ready;
}

const char *kafka_not_ready_why(const kafka *k) {
    (void)k;
    return "";
}

bool kafka_readable(const kafka *k) {
    (void)k;
    return !broker.known_blind;
}

size_t kafka_record_limit(const kafka *k) {
    (void)k;
    return broker.limit;
}

/* Another for each producer, as after partitions were added. */
int32_t kafka_partition(const kafka *k, const void *key, size_t len) {
    (void)k;
    return (int32_t)((kafka_murmur2(key, len) + broker.producers) %
                     BROKER_PARTITIONS);
}

int64_t kafka_known_end(const kafka *k, int32_t partition) {
    return partition >= 0 && partition < BROKER_PARTITIONS
               ? partition_of(((const broker_end *)k)->topic, partition)->known
               : -1;
}

uint32_t kafka_murmur2(const void *key, size_t len) {
    uint32_t h = 5381;

    for (size_t i = 0; i < len; i++) {
        h = h * 33 + ((const uint8_t *)key)[i];
    }
    return h;
}

int kafka_produce(kafka *k, int32_t partition, const void *key, size_t key_len,
                  const void *value, size_t len, void *record) {
    broker_sent *s = &broker.sent[broker.nsent];

    ck_assert(broker.ready);
    if (broker.nsent == BROKER_SENT) {
        return -1;
    }
    ck_assert_uint_le(len, broker.limit);
    ck_assert_uint_lt(key_len, sizeof(s->key));
    for (unsigned i = 0; i < broker.nsent; i++) {
        ck_assert_msg(strncmp(broker.sent[i].key, key, key_len) != 0 ||
                          broker.sent[i].key[key_len] != '\0',
                      "two records of %.*s at once", (int)key_len,
                      (const char *)key);
    }
    *s = (broker_sent){.record = record,
                       .topic = ((const broker_end *)k)->topic,
                       .partition = partition,
                       .value = value,
                       .len = len};
    memcpy(s->key, key, key_len);
    broker.nsent++;
    return 0;
}

kafka_reader *kafka_reader_new(kafka *k, kafka_read_cb cb, void *owner) {
    broker_end *e = (broker_end *)k;

    e->read = cb;
    e->read_owner = owner;
    return (kafka_reader *)e;
}

int kafka_reader_start(kafka_reader *r, int32_t partition, int64_t offset) {
    broker_partition *p;

    ck_assert_int_ge(partition, 0);
    ck_assert_int_lt(partition, BROKER_PARTITIONS);
    p = partition_of(((const broker_end *)r)->topic, partition);
    ck_assert_int_eq(p->reading, -1);
    p->reading = offset == KAFKA_READ_BEGINNING ? 0 : offset;
    p->reader++;
    return 0;
}

void kafka_reader_stop(kafka_reader *r, int32_t partition) {
    partition_of(((const broker_end *)r)->topic, partition)->reading = -1;
}

static void free_producer(const kafka *k) {
    (void)k;
    while (broker.nsent > 0) {
        broker_report(0, KAFKA_IN_DOUBT);
    }
}
