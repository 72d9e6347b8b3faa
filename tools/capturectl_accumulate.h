/*
 * HTTP exchanges out of records, by the rules of the Traffic Replayer's
 * accumulator (record contract, docs/record-contract.md, 3.2). It keeps one
 * state per nodeId and connectionId:
 *
 *   WAITING   read -> READS; the rest is ignored
 *   IGNORING  for a record that begins inside a request: until its end
 *   READS     a request grows; end of message -> WRITES
 *   WRITES    its response grows; complete at next read, close or exception
 *
 * A connection that is silent for packet_timeout seconds expires, and what
 * comes later begins anew. Time is that of the records: the newest timestamp
 * which any connection has shown, compared by whole seconds.
 */

#ifndef TOOLS_CAPTURECTL_ACCUMULATE_H
#define TOOLS_CAPTURECTL_ACCUMULATE_H

#include "proto/decode.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* One direction of an exchange: its bytes, and when they came. */
typedef struct {
    char *data; /* the first ones, up to what the accumulator keeps */
    size_t len, cap;
    uint64_t size;    /* of all of them */
    unsigned packets; /* a read or write each; a run of segments is one */
    int64_t first_ns, last_ns;
    char *segment; /* a run of segments that has not ended */
    size_t segment_len, segment_cap;
    uint64_t segment_size;
    bool in_segment;
} http_message;

typedef enum {
    EXCHANGE_COMPLETE,
    EXCHANGE_EXPIRED, /* the response may go on */
    EXCHANGE_OPEN,    /* the input ended; the response may go on */
} exchange_state;

/* Valid during the callback only. response.packets is 0 if there was none. */
typedef struct {
    record_slice node_id;
    record_slice connection_id;
    int index; /* of the request in its connection, as the Replayer counts */
    exchange_state status;
    http_message request;
    http_message response;
} http_exchange;

typedef struct {
    unsigned long exchanges;
    unsigned long dropped;    /* requests that the capture took back */
    unsigned long unfinished; /* requests without their end: never sent */
    unsigned long expired;    /* connections */
    unsigned long open;       /* connections at the end of the input */
} accumulate_counts;

typedef struct {
    void (*exchange)(void *ctx, const http_exchange *x);
    /* what the Replayer only warns of, and what makes it lose data or stop */
    void (*remark)(void *ctx, const char *place, const char *what);
    void (*error)(void *ctx, const char *place, const char *what);
    void *ctx;
} accumulate_calls;

typedef struct accumulator accumulator;

/* keep: so many bytes of each message, SIZE_MAX for all. */
accumulator *accumulate_new(const accumulate_calls *calls,
                            int64_t packet_timeout, size_t keep);

/* place: where it came from, for remarks and errors. Uses up the reader. */
void accumulate_record(accumulator *a, const char *place,
                       const record_info *info, record_reader *reader);

/* The input ended. Hands out what is open, and frees the accumulator. */
accumulate_counts accumulate_end(accumulator *a);

#endif
