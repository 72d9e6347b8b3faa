/*
 * Counters of this process, and the page that shows them.
 *
 * METRICS is the one table: name, type, help; /metrics and docs/metrics.md are
 * made from it.  Counters of exchanges come from the pools (wire/counters.h);
 * those of pools that have gone are kept in metrics_retired.
 */
#ifndef SIDECAR_METRICS_H
#define SIDECAR_METRICS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#include "sidecar/loop.h"
#include "wire/counters.h"

/* X(symbol, name without "capture_", type, help).  A "milli" is a gauge whose
   cell counts thousandths, METRICS_INFINITE being +Inf. */
#define METRICS(X)                                                             \
    X(LINKS, "links", gauge, "workers linked now")                             \
    X(LINKS_TOTAL, "links_total", counter, "links accepted since start")       \
    X(LINKS_REFUSED, "links_refused_total", counter,                           \
      "connections to the socket that were refused")                           \
    X(LINKS_BAD, "links_bad_total", counter,                                   \
      "links ended because the worker's memory broke the rules")               \
    X(CONNECTIONS, "connections", gauge, "open connectionIds")                 \
    X(CONNECTIONS_TOTAL, "connections_total", counter,                         \
      "connectionIds that were opened")                                        \
    X(CONNECTIONS_ABANDONED, "connections_abandoned_total", counter,           \
      "connectionIds that were given up because something of them was lost")   \
    X(CONNECTIONS_RENAMED, "connections_renamed_total", counter,               \
      "connectionIds that were given up for a record that stays in doubt: "    \
      "their connections went on under others")                                \
    X(BYTES_READ, "request_bytes_total", counter, "bytes of requests")         \
    X(BYTES_WRITTEN, "response_bytes_total", counter, "bytes of responses")    \
    X(POOLS_ADOPTED, "pools_adopted_total", counter,                           \
      "pools that were taken over from a sidecar that had died")               \
    X(POOLS_ORPHANED, "pools_orphaned", gauge,                                 \
      "pools whose worker has gone, and which are not settled yet")            \
    X(POOLS_FILED, "pools_in_spool", gauge, "of these: in files of the spool") \
    X(POOLS_KEPT, "pools_kept", gauge,                                         \
      "pools that a keeper of descriptors has for workers that have not come " \
      "back yet")                                                              \
    X(POOLS_DAMAGED, "pools_damaged_total", counter,                           \
      "files in the spool's pools/ that are no sound pool's: set aside")       \
    X(POOLS_LOST, "pools_lost_total", counter,                                 \
      "files in the spool's pools/ of before the host's last start: what "     \
      "was not settled in them is lost(maybe_lost)")                           \
    X(POOL_BYTES, "pool_bytes", gauge, "mapped memory of all pools")           \
    X(POOL_BLOCKS, "pool_blocks", gauge, "blocks of all pools, 64 KiB each")   \
    X(POOL_BLOCKS_USED, "pool_blocks_used", gauge,                             \
      "blocks that hold bytes not yet held elsewhere")                         \
    X(SPOOL_SIZE, "spool_size_bytes", gauge,                                   \
      "what the spool may take; 0: none")                                      \
    X(SPOOL_BYTES, "spool_bytes", gauge, "what is in the spool")               \
    X(SPOOL_TIME_TO_FULL, "spool_time_to_full_seconds", milli,                 \
      "how long the spool lasts if all that comes in has to go there")         \
    X(SPOOLED, "spooled_blocks_total", counter,                                \
      "blocks of workers' memory that were moved to the spool")                \
    X(SPOOL_FULL, "spool_full_total", counter,                                 \
      "times that a block found no room in the spool")                         \
    X(SPOOL_DAMAGED, "spool_damaged_blocks_total", counter,                    \
      "blocks in the spool whose checksum was wrong")                          \
    X(SPOOL_SWEPT, "spool_swept_blocks_total", counter,                        \
      "blocks in the spool that were given up, since their pools are gone")    \
    X(JOURNAL_BYTES, "journal_bytes", gauge,                                   \
      "frames in the journal (durability = disk) that Kafka has not "          \
      "acknowledged")                                                          \
    X(JOURNAL_PUTS, "journal_waits_total", counter,                            \
      "times that frames a client waits for were given to the journal")        \
    X(JOURNAL_COMMITS, "journal_commits_total", counter,                       \
      "groups that were written and synced")                                   \
    X(JOURNAL_FULL, "journal_skipped_total", counter,                          \
      "times that they were not: no room, or the disk cannot be written; "     \
      "these requests wait for Kafka")                                         \
    X(JOURNAL_FAILED, "journal_failed_total", counter,                         \
      "times that the journal could not be opened or written")                 \
    X(JOURNAL_DAMAGED, "journal_damaged_total", counter,                       \
      "files that were set aside, and connections that could not be read")     \
    X(RECOVERED, "recovered_exchanges_total", counter,                         \
      "exchanges found in the journal, of workers whose memory is gone: "      \
      "they are in seen and its classes, too")                                 \
    X(POOL_FULLEST, "pool_fullest_ratio", milli,                               \
      "share of its blocks that the fullest pool uses, 0 to 1")                \
    X(POOL_OLDEST, "pool_oldest_seconds", milli,                               \
      "age of the oldest bytes that are not acknowledged, in pools or spool")  \
    X(POOL_TIME_TO_FULL, "pool_time_to_full_seconds", milli,                   \
      "how long the first pool to fill up lasts if nothing goes back any "     \
      "more, by the bytes that came in since the last look")                   \
    X(RECORDS, "records_total", counter, "records acknowledged")               \
    X(RECORD_BYTES, "record_bytes_total", counter,                             \
      "bytes of acknowledged records")                                         \
    X(RECORDS_RETRIED, "records_retried_total", counter,                       \
      "records sent again because they were certainly not persisted")          \
    X(RECORDS_FAILED, "records_failed_total", counter,                         \
      "times that a record was handed to Kafka and not acknowledged")          \
    X(DOUBTS, "records_in_doubt", gauge,                                       \
      "records that may or may not be in the topic, being looked for")         \
    X(DOUBTS_FOUND, "doubts_found_total", counter,                             \
      "records that were in doubt and are in the topic")                       \
    X(DOUBTS_ABSENT, "doubts_absent_total", counter,                           \
      "records that were in doubt, are not there, and were sent again")        \
    X(DOUBTS_UNREADABLE, "doubts_unreadable_total", counter,                   \
      "records in doubt in a partition that cannot be read")                   \
    X(BARRIERS, "barriers_total", counter,                                     \
      "records of ours that only mark a place in a partition")                 \
    X(INFLIGHT_RECORDS, "inflight_records", gauge,                             \
      "records handed to Kafka and not acknowledged")                          \
    X(INFLIGHT_BYTES, "inflight_bytes", gauge, "bytes of those records")       \
    X(INFLIGHT_LIMIT, "inflight_limit_bytes", gauge,                           \
      "what they may be at most (inflight.size)")                              \
    X(DUE, "connections_due", gauge,                                           \
      "connectionIds that have a record to send and no room for it")           \
    X(KAFKA_READY, "kafka_ready", gauge,                                       \
      "1 when the topic can be written; it stays so while brokers are away")   \
    X(KAFKA_READABLE, "kafka_topic_readable", gauge,                           \
      "0 when the topic may not be read: what is in doubt cannot be looked "   \
      "for")                                                                   \
    X(KAFKA_REACHABLE, "kafka_reachable", gauge,                               \
      "0 when no broker has answered since all of them were found down")       \
    X(CERTIFICATE_EXPIRY, "kafka_certificate_expiry_timestamp_seconds", gauge, \
      "when the client's certificate for Kafka expires, 0 without one")        \
    X(TOKEN_EXPIRY, "kafka_token_expiry_timestamp_seconds", gauge,             \
      "when the token of token.source expires, 0 without one")                 \
    X(TOKENS, "kafka_tokens_total", counter, "tokens got from token.source")   \
    X(TOKENS_FAILED, "kafka_token_failures_total", counter,                    \
      "times that token.source gave no token")                                 \
    X(OTLP_EXPORTS, "otlp_exports_total", counter,                             \
      "times that the collector of otlp.endpoint took the metrics")            \
    X(OTLP_EXPORTS_FAILED, "otlp_exports_failed_total", counter,               \
      "times that it did not")                                                 \
    X(EXPORTED, "exported_records_total", counter,                             \
      "records written to the file export")                                    \
    X(EXPORT_FAILED, "export_failed_records_total", counter,                   \
      "records that the file export did not take")

/*
 * X(symbol, name, bounds, help); bounds: TIME, LONG (observed in ns, shown in
 * seconds), SIZE (bytes).  WAITED is the workers', of CAP_WAITED.
 */
#define HISTOGRAMS(X)                                                          \
    X(WAIT, "wait_seconds", WAITED,                                            \
      "how long requests were held by capture_wait")                           \
    X(RECORD_SIZE, "record_size_bytes", SIZE, "bytes of a record")             \
    X(DELIVERY, "delivery_seconds", TIME,                                      \
      "from handing a record to Kafka until its acknowledgement")              \
    X(JOURNAL, "journal_commit_seconds", TIME,                                 \
      "what a group's commit took, the disk's sync included")                  \
    X(REQUEST, "request_seconds", TIME,                                        \
      "from a request's first bytes to its end")                               \
    X(RESPONSE, "response_seconds", TIME,                                      \
      "from a request's end to its response's end")                            \
    X(CONNECTION, "connection_seconds", LONG,                                  \
      "from a connectionId's first bytes to its end")

#define METRICS_INFINITE UINT64_MAX

/* Of each destination, with its name and its topic as labels.  The metrics
   above are the sums, and of what is good or bad the worst. */
#define DESTINATION_METRICS(X)                                                 \
    X(READY, "destination_ready", gauge, "as kafka_ready")                     \
    X(REACHABLE, "destination_reachable", gauge, "as kafka_reachable")         \
    X(READABLE, "destination_readable", gauge, "as kafka_readable")            \
    X(RECORDS, "destination_records_total", counter, "records acknowledged")   \
    X(RECORD_BYTES, "destination_record_bytes_total", counter,                 \
      "bytes of acknowledged records")                                         \
    X(RECORDS_RETRIED, "destination_records_retried_total", counter,           \
      "as records_retried_total")                                              \
    X(RECORDS_FAILED, "destination_records_failed_total", counter,             \
      "as records_failed_total")                                               \
    X(DOUBTS, "destination_records_in_doubt", gauge, "as records_in_doubt")    \
    X(INFLIGHT_RECORDS, "destination_inflight_records", gauge,                 \
      "records handed to Kafka and not acknowledged")                          \
    X(INFLIGHT_BYTES, "destination_inflight_bytes", gauge,                     \
      "bytes of those records; each destination has an even share of "         \
      "inflight.size")                                                         \
    X(DUE, "destination_connections_due", gauge, "as connections_due")         \
    X(CERTIFICATE_EXPIRY, "destination_certificate_expiry_timestamp_seconds",  \
      gauge, "when the client's certificate expires, 0 without one")           \
    X(TOKEN_EXPIRY, "destination_token_expiry_timestamp_seconds", gauge,       \
      "when the token expires, 0 without one")

enum destination_metric {
#define X(sym, name, type, help) DESTINATION_##sym,
    DESTINATION_METRICS(X)
#undef X
        DESTINATION_COUNT
};

typedef struct {
    const char *name, *topic; /* labels: no character that needs a quote */
    bool has_kafka;           /* else the file export is the destination */
    uint64_t cell[DESTINATION_COUNT];
} metrics_destination;

enum metric {
#define X(sym, name, type, help) METRIC_##sym,
    METRICS(X)
#undef X
        METRIC_COUNT
};

/* The loop's thread's; what another sets, it sets atomically. */
extern uint64_t metrics_cell[METRIC_COUNT];

enum histogram {
#define X(sym, name, bounds, help) HISTOGRAM_##sym,
    HISTOGRAMS(X)
#undef X
        HISTOGRAM_COUNT
};

#define METRICS_BUCKETS 16 /* at most; the last one has no bound */

typedef struct {
    uint64_t bucket[METRICS_BUCKETS];
    uint64_t sum;
} metrics_histogram;

/* Its bounds, inclusive, and the number of them; a bound times `scale` is in
   seconds or bytes. */
typedef struct {
    const char *name, *help;
    const uint64_t *bounds;
    unsigned n;
    double scale;
} metrics_bounds;

/* The loop's thread's; a time in ns, or bytes. */
void metrics_observe(enum histogram h, uint64_t value);

/* Sum of all pools' exchange counters, linked and retired. */
typedef struct {
    uint64_t seen, captured, truncated, doubled, pending;
    uint64_t reason[CAP_REASON_CELLS];
    uint64_t wait[CAP_WAIT_CELLS];
    uint64_t waited[CAP_WAITED_CELLS];
    uint64_t redact[CAP_REDACT_CELLS];
} metrics_exchanges;

/* Fills `into` with the sum over all pools, and sets the cells of pools;
   registered by the link stage. */
typedef void (*metrics_source)(void *owner, metrics_exchanges *into);
void metrics_register(metrics_source source, void *owner);
/* The i-th destination as it is now, or NULL: there is none; registered by who
   has them. */
typedef const metrics_destination *(*metrics_destinations)(void *owner,
                                                           size_t i);
void metrics_register_destinations(metrics_destinations source, void *owner);

/* What they say now. */
void metrics_collect(metrics_exchanges *into);

/* `e` for the workers' part. */
metrics_histogram metrics_histogram_of(enum histogram h,
                                       const metrics_exchanges *e);
const metrics_bounds *metrics_bounds_of(enum histogram h);

/* The page, as Prometheus text. */
void metrics_write(FILE *out);
/* docs/metrics.md and docs/counters.md. */
void metrics_docs(FILE *out);

/* HTTP: /metrics, /live, /ready (503 and why until ready).  0, or -1 after a
   line in the log. */
int metrics_listen(loop *l, const char *address,
                   bool (*ready)(void *owner, const char **why), void *owner);
void metrics_close(void);

#endif
