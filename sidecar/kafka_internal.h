/*
 * What kafka.c, kafka_config.c and kafka_topic.c share.
 *
 *   kafka.c         the producer's life: records, reports, fatal errors
 *   kafka_pace.c    how much of a partition's records librdkafka gets at once
 *   kafka_topic.c   when the topic may be written to, and how large a record
 *   kafka_config.c  librdkafka's properties
 *   kafka_reload.c  HUP: other passwords, keys, certificates
 *   kafka_certificate.c  when the client's certificate expires
 *   kafka_token.c   tokens for SASL OAUTHBEARER (kafka_token.h)
 */
#ifndef SIDECAR_KAFKA_INTERNAL_H
#define SIDECAR_KAFKA_INTERNAL_H

#include <librdkafka/rdkafka.h>
#include <pthread.h>

#include "sidecar/kafka.h"
#include "sidecar/log.h"

#define KAFKA_S 1000000000ll
#define KAFKA_MS 1000000ll

/* What a record alone adds to its key and value on the broker's side, with
   room: batch header 61, record header at most 21, a key of 52. */
#define KAFKA_RECORD_OVERHEAD 200u

/* librdkafka's own default, and the most that goes into one batch here */
#define KAFKA_BATCH_SIZE 1000000u

#define KAFKA_FINGERPRINT 32

typedef enum {
    KAFKA_RUNNING,
    KAFKA_FAILED, /* takes no records; waits for the reports of all it has */
    KAFKA_BETWEEN /* no producer: the next one is made by a timer */
} kafka_state;

/* Which question to the broker is open. */
typedef enum {
    TOPIC_IDLE,
    TOPIC_DESCRIBING,
    TOPIC_CONFIGURING,
    TOPIC_LISTING
} kafka_topic_step;

/* Why the topic is not ready; a line is logged when it changes. */
typedef enum {
    WHY_NONE,
    WHY_STARTING,
    WHY_UNREACHABLE,
    WHY_AUTHENTICATION,
    WHY_MISSING,
    WHY_FORBIDDEN,
    WHY_COMPACTED,
    WHY_OFFSETS,
    WHY_PRODUCER,
    WHY_OTHER
} kafka_why;

typedef struct {
    kafka_topic_step step;
    loop_timer timer; /* the next look */
    int64_t backoff_ns;
    bool asked;             /* at least once */
    uint64_t looks, looked; /* begun, and the latest that was answered */
    bool bypassing;         /* the controller: see options_for */

    bool ready;
    kafka_why why;
    char why_text[512];
    int64_t why_logged_ns;

    bool missing; /* it was, at the last look */
    int64_t missing_since_ns;
    int32_t partitions; /* that records may go to */
    int32_t described;  /* of the look under way */
    int64_t *ends;      /* per partition: highest known offset, or -1 */
    int32_t ends_size;
    int64_t ready_ns;   /* since when */
    char id[32];        /* base64 */
    uint64_t mark;      /* of that; 0: it has none */
    size_t max_message; /* the topic's max.message.bytes, or 0: unknown */
    bool configs_noted; /* said that they cannot be read */
    bool isr_warned;
    bool unreadable; /* the brokers have said so */
} kafka_topic;

/* A record that librdkafka does not have yet. */
typedef struct kafka_held {
    struct kafka_held *next;
    void *record;
    const void *key, *value;
    size_t key_len, len;
} kafka_held;

/* One per partition. */
typedef struct {
    kafka_held *first, *last;
    uint32_t out;     /* records that librdkafka has */
    int64_t turn;     /* of the loop, in which the latest burst began */
    size_t room;      /* bytes that this burst may still take */
    int64_t acked_ns; /* when this producer's latest record was; 0: none was */
} kafka_pace;

typedef struct kafka_rejected {
    struct kafka_rejected *next;
    void *record;
    const char *why;
} kafka_rejected;

typedef struct kafka_retired {
    struct kafka_retired *next;
    pthread_t thread;
    rd_kafka_t *rk;
} kafka_retired;

struct kafka {
    const config *c;
    loop *l;
    const kafka_events *events;
    void *owner;

    kafka_state state;
    rd_kafka_t *rk;
    rd_kafka_topic_t *rkt;
    rd_kafka_queue_t *queue; /* of rk: all its events */
    loop_io io;              /* an eventfd: the queue has something */

    size_t records; /* handed over and not reported */
    size_t bytes;   /* of those */

    kafka_pace *paces;
    int32_t npaces;
    size_t held; /* records in them, of `records` */

    size_t batch_size;
    bool single;      /* this producer sends every record alone */
    bool want_single; /* the next one shall */

    bool patient;   /* FAILED by our own wish: nothing is purged */
    bool reloading; /* that wish came from HUP */
    bool refused;   /* the brokers' last word, until one acknowledges */
    bool reachable; /* an answer came after the last "all are down" */
    uint64_t certificate_expiry_s; /* 0: there is none */
    char of[CONFIG_NAME_SIZE + 8]; /* for log lines: " of NAME", or "" */
    unsigned char fingerprint[KAFKA_FINGERPRINT]; /* of what rk was made of */
    loop_timer timer; /* FAILED: purge what is in flight; BETWEEN: begin */
    int64_t backoff_ns;
    int64_t begun_ns;
    int64_t failed_ns;
    int64_t warned_ns; /* of brokers that are away while we are ready */

    kafka_rejected *rejected; /* reported by the timer */
    loop_timer rejected_timer;

    kafka_retired *retired; /* being destroyed by helper threads */
    kafka_topic topic;
};

/* kafka_config.c */

/*
 * All properties for a producer: config's, and those that delivery needs.
 * NULL after a line a mistake to `err`.
 */
rd_kafka_conf_t *kafka_config_make(const config *c, size_t batch_size,
                                   bool single, FILE *err);

/* For a consumer that reads the same topic: as above, but for what only
   producers have. */
rd_kafka_conf_t *kafka_config_reader(const config *c, FILE *err);
/* kafka_reload.c */

/* Of the properties and of the files that they name, except what a producer
   that runs can be given. */
void kafka_fingerprint(const config *c, unsigned char *into);

/* kafka_certificate.c: when the client's certificate expires, s since 1970; 0:
   there is none.  Warns when it is soon, or over. */
uint64_t kafka_certificate_note(const config *c);

/* kafka_pace.c */

int kafka_pace_resize(kafka *k, int32_t partitions);
/* Takes a record for now or later; 0, or -1 as kafka_produce. */
int kafka_pace_take(kafka *k, int32_t partition, const kafka_held *record);
/* A record of this partition has been reported. */
void kafka_pace_reported(kafka *k, int32_t partition, bool acked);
/* Hands over what may go now. */
void kafka_pace_continue(kafka *k);
/* Gives back what librdkafka never had, and begins anew. */
void kafka_pace_reset(kafka *k, const char *why);
void kafka_pace_free(kafka *k);

/* kafka_topic.c: called by kafka.c for a producer that has just begun, for
   its events, and before it goes. */
void kafka_topic_init(kafka *k);
void kafka_topic_begin(kafka *k);
void kafka_topic_event(kafka *k, rd_kafka_event_t *event);
void kafka_topic_stop(kafka *k);
void kafka_topic_free(kafka *k);

/* A record's failure says that the topic is not what it was: not ready until
   it has been looked at again, which is done soon. */
void kafka_topic_suspect(kafka *k, kafka_why why, const char *text);

/* Whether the topic may be read; a line is logged when that changes. */
void kafka_topic_readable(kafka *k, bool readable);

/* Not ready from now on.  Logs when `why` is new, else at most once a minute. */
void kafka_topic_not_ready(kafka *k, kafka_why why, const char *format, ...)
    __attribute__((format(printf, 3, 4)));

/* kafka.c, for kafka_topic.c */

/* Makes another producer, with other properties, once the records of this one
   are reported. */
void kafka_restart(kafka *k);

/* kafka.c, for kafka_reload.c: after kafka_restart, not to wait for ever for
   the reports of a producer that the brokers refuse. */
void kafka_hurry(kafka *k);

/* What the report means.  `alone`: no other record was in its batch. */
kafka_result kafka_classify(rd_kafka_msg_status_t status,
                            rd_kafka_resp_err_t err, bool alone);

#endif
