/*
 * The Java Capture Proxy's metrics, as one request of OTLP: the same names,
 * kinds and units under the same scope, cumulative, without attributes, so
 * that dashboards which were made for it go on working.
 *
 * Instruments that it registers and never records (blocked...,
 * waitingForResponse...) are left out, as they are there.
 */
#ifndef SIDECAR_OTLP_ENCODE_H
#define SIDECAR_OTLP_ENCODE_H

#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#include "sidecar/metrics.h"

#define OTLP_SERVICE "capture"
#define OTLP_SCOPE "captureProxy"

/* Some hundred bytes an instrument, and a histogram's cells. */
#define OTLP_SIZE 16384

/*
 * X(name, kind, unit, value, help); kind: counter, or updown (a sum that also
 * falls).  In `value`: CELL of METRICS, COUNT of a histogram, and `e`, the
 * exchanges.
 */
#define OTLP_SUMS(X)                                                           \
    X(captureConnectionCount, counter, "", COUNT(CONNECTION),                  \
      "connectionIds that have ended")                                         \
    X(captureConnectionExceptionCount, counter, "",                            \
      CELL(CONNECTIONS_ABANDONED), "those that were given up, with a loss")    \
    X(activeConnection, updown, "count", CELL(CONNECTIONS),                    \
      "open connectionIds")                                                    \
    X(unregistered, counter, "count", COUNT(CONNECTION),                       \
      "as captureConnectionCount")                                             \
    X(removed, counter, "count", COUNT(CONNECTION),                            \
      "as captureConnectionCount")                                             \
    X(gatheringRequestCount, counter, "", COUNT(REQUEST),                      \
      "requests that are complete")                                            \
    X(gatheringRequestExceptionCount, counter, "",                             \
      e->reason[CAP_CLIENT_ABORT],                                             \
      "requests whose client left before their end")                           \
    X(blockingRequest, counter, "count", e->wait[CAP_WAIT_HELD],               \
      "requests that were held by capture_wait")                               \
    X(captureSuppressed, counter, "count",                                     \
      e->reason[CAP_RULE] + e->reason[CAP_BYPASS],                             \
      "exchanges that were left out by a rule or by capture_bypass")           \
    X(fullRequest, counter, "count", COUNT(REQUEST),                           \
      "as gatheringRequestCount")                                              \
    X(bytesRead, counter, "bytes", CELL(BYTES_READ), "bytes of requests")      \
    X(gatheringResponseCount, counter, "", COUNT(RESPONSE),                    \
      "responses that are complete")                                           \
    X(gatheringResponseExceptionCount, counter, "", e->truncated,              \
      "captured exchanges that client or source have cut short")               \
    X(bytesWritten, counter, "bytes", CELL(BYTES_WRITTEN),                     \
      "bytes of responses")                                                    \
    X(kafkaCommitCount, counter, "", COUNT(DELIVERY) + CELL(RECORDS_FAILED),   \
      "times that a record was handed to Kafka and reported")                  \
    X(kafkaCommitExceptionCount, counter, "", CELL(RECORDS_FAILED),            \
      "those that were not acknowledged")

/* X(name, histogram of HISTOGRAMS, help), all in ms */
#define OTLP_HISTOGRAMS(X)                                                     \
    X(captureConnectionDuration, CONNECTION,                                   \
      "from a connectionId's first bytes to its end")                          \
    X(gatheringRequestDuration, REQUEST,                                       \
      "from a request's first bytes to its end")                               \
    X(gatheringResponseDuration, RESPONSE,                                     \
      "from a request's end to its response's end")                            \
    X(kafkaCommitDuration, DELIVERY,                                           \
      "from handing a record to Kafka until its acknowledgement")

/*
 * An ExportMetricsServiceRequest of what is known now, in `into`; its length,
 * or 0 where it does not fit.  Times in ns since 1970.  The loop's thread.
 */
size_t otlp_encode(uint8_t *into, size_t size, uint64_t start_ns,
                   uint64_t now_ns);

/* A section of docs/metrics.md. */
void otlp_docs(FILE *out);

#endif
