/*
 * The producer.  librdkafka never decides that something is lost: no
 * deadline of its own, idempotence, acks=all; every failure comes back as one
 * of four results and the ledger decides.
 *
 * All callbacks run on the loop's thread (librdkafka's queue is an eventfd).
 */
#ifndef SIDECAR_KAFKA_H
#define SIDECAR_KAFKA_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#include "sidecar/config.h"
#include "sidecar/loop.h"

typedef struct kafka kafka;
typedef struct kafka_reader kafka_reader;

/* What every `record` that is produced begins with: whose report it is. */
typedef enum { KAFKA_OF_LEDGER, KAFKA_OF_SETTLE } kafka_owner;

typedef enum {
    KAFKA_ACKED,         /* in the log of all in-sync replicas */
    KAFKA_NOT_PERSISTED, /* certainly not in the log: send it again */
    KAFKA_REJECTED,      /* certainly not, and it never will be */
    KAFKA_IN_DOUBT       /* it may be in the log */
} kafka_result;

typedef struct {
    /* Exactly once for each kafka_produce that returned 0.  offset is -1
       where the report has none. */
    void (*delivered)(void *owner, void *record, kafka_result result,
                      int64_t offset, const char *why);
    /* The topic is known and can be produced to, or no longer. */
    void (*ready)(void *owner, bool ready);
} kafka_events;

/*
 * Checks the properties without any connection (for --check): unknown names,
 * bad values, overrides that would weaken delivery.  0, or -1 after a line a
 * mistake to `err`.
 */
int kafka_check(const config *c, FILE *err);

/* NULL after a line in the log.  `events` and `owner` outlive it. */
kafka *kafka_new(const config *c, loop *l, const kafka_events *events,
                 void *owner);

/* The values of config's properties, or the files that they name, may be
   others now.  A producer with what cannot be used is not made. */
void kafka_reload(kafka *k);

bool kafka_ready(const kafka *k);
const char *kafka_not_ready_why(const kafka *k); /* "" when ready */

/* Whether the topic may be read, as far as is known: brokers without
   authorisation, and old ones, tell nothing. */
bool kafka_readable(const kafka *k);

/*
 * Which topic of that name it is: its id, hashed; 0 where brokers do not tell.
 * kafka_topic_look asks again, as soon as it can; kafka_topic_looked is raised
 * by each answer to a question that was asked after the one before.
 */
uint64_t kafka_topic_mark(const kafka *k);
uint64_t kafka_topic_look(kafka *k); /* the answer has more than this */
uint64_t kafka_topic_looked(const kafka *k);

/* Largest value that the topic takes, at most config's record_size. */
size_t kafka_record_limit(const kafka *k);

/* murmur2 over the key, like Java's default partitioner, over the topic's
   present partition count; -1 while that is not known. */
int32_t kafka_partition(const kafka *k, const void *key, size_t len);

/* The highest offset known of a partition: its end when it was first seen,
   raised by acknowledgements that carry an offset; -1 unknown (no permission,
   no leader yet, or another topic of that name). */
int64_t kafka_known_end(const kafka *k, int32_t partition);

/*
 * Hands over a record.  `key` and `value` stay the caller's and must live
 * until `delivered`.  0, or -1: the queue is full or not ready, try again
 * after the next `delivered` or `ready`.  A record over kafka_record_limit, or
 * whose partition is gone, is taken and reported as KAFKA_REJECTED later.
 */
int kafka_produce(kafka *k, int32_t partition, const void *key, size_t key_len,
                  const void *value, size_t len, void *record);

/* ---- reading a partition (kafka_reader.c) ---- */

typedef enum {
    KAFKA_READ_RECORD, /* `offset`, `value`, `len` */
    KAFKA_READ_END,    /* all below `offset` has been given */
    KAFKA_READ_FAILED  /* it cannot be read: `why`; reading has stopped */
} kafka_read;

typedef void (*kafka_read_cb)(void *owner, int32_t partition, kafka_read what,
                              int64_t offset, const void *value, size_t len,
                              const char *why);

/*
 * A consumer of its own connections, without a group, of uncommitted records
 * too.  NULL after a line in the log.  `k` must outlive it.  What does not work
 * now and may later (a broker away) is not reported.
 */
kafka_reader *kafka_reader_new(kafka *k, kafka_read_cb cb, void *owner);
/* From `offset` on, which must be in the log, or from KAFKA_READ_BEGINNING.  0,
   or -1 after a line. */
#define KAFKA_READ_BEGINNING (-2) /* RD_KAFKA_OFFSET_BEGINNING */
int kafka_reader_start(kafka_reader *r, int32_t partition, int64_t offset);
void kafka_reader_stop(kafka_reader *r, int32_t partition);
/* Does not wait for librdkafka: a helper thread does. */
void kafka_reader_free(kafka_reader *r);
/* At the process's end: until these threads are done, or for so long (whole
   seconds).  False: some are not.  What they use, their configuration too, must
   stay then, and exit()'s own cleaning is too early for them: _exit(). */
bool kafka_readers_wait(int64_t within_ns);

/* Bytes in librdkafka's queue, for metrics. */
size_t kafka_queued(const kafka *k);

typedef struct {
    bool reachable; /* false: all brokers were found down, and none answered */
    uint64_t certificate_expiry_s, token_expiry_s; /* since 1970; 0: none */
} kafka_health;

void kafka_look(const kafka *k, kafka_health *into);

/* Ends the producer within `within_ns`; records still unacknowledged are
   reported as KAFKA_IN_DOUBT or KAFKA_NOT_PERSISTED first. */
void kafka_free(kafka *k, int64_t within_ns);

/* The same of many, side by side: it takes as long as the slowest alone. */
void kafkas_free(kafka *const *ks, size_t n, int64_t within_ns);

/* A thread of a producer that was freed has not ended, and may not for a while: the
   process must end by _exit(), since exit() cleans up what that thread uses. */
bool kafka_hangs(void);

/* murmur2 as Kafka's Java client computes it (for tests). */
uint32_t kafka_murmur2(const void *key, size_t len);

#endif
