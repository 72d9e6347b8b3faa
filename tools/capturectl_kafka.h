/*
 * A client of Kafka: the connection, and the topic's partitions with their
 * offsets. What fails is reported where it fails.
 */

#ifndef TOOLS_CAPTURECTL_KAFKA_H
#define TOOLS_CAPTURECTL_KAFKA_H

#include "tools/capturectl.h"

#include <librdkafka/rdkafka.h>

typedef struct {
    int32_t number;
    int64_t low;       /* the first offset that is there */
    int64_t next, end; /* offsets: where to go on, and the end as it was */
    rd_kafka_message_t *head; /* read and not yet handed out */
    bool started;
    bool cut; /* reading begins behind records */
} kafka_partition;

typedef struct {
    const ctl_options *opt;
    rd_kafka_t *rk;
    rd_kafka_topic_t *handle;
    kafka_partition *partitions; /* those that are wanted, by number */
    size_t count;
    bool failed; /* an answer is overdue: give up */
} kafka_client;

/* On failure all is taken down again. */
bool kafka_connect(kafka_client *c, const ctl_options *opt,
                   rd_kafka_type_t type);
void kafka_disconnect(kafka_client *c);

/* --timeout in milliseconds. */
int kafka_timeout(const ctl_options *opt);

/*
 * Records from each partition's `next` on, in the order in which they come,
 * until fn or idle returns false or a signal comes; idle is called when there
 * is nothing. Returns what has ended it otherwise.
 */
rd_kafka_resp_err_t kafka_follow(kafka_client *c, ctl_value_fn fn,
                                 bool (*idle)(void *ctx), void *ctx);

/* A producer's delivery reports: capturectl_import.c. */
void kafka_report(rd_kafka_t *rk, const rd_kafka_message_t *m, void *opaque);

#endif
