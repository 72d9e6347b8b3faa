/*
 * The record decoder: reads one TrafficStream (TrafficCaptureStream.proto) from
 * a flat buffer. No I/O and no allocation; what it hands out points into the
 * caller's buffer, which must stay as it is for as long as that is used.
 *
 *     record_reader r;
 *     record_info info;
 *     record_observation o;
 *
 *     if (record_open(&r, buf, len, &info) != 0) {
 *         ... r.error at byte r.at ...
 *     }
 *     while (record_next(&r, &o)) {
 *         ...
 *     }
 *
 * record_open reads the whole record, so fields may come in any order, and what
 * it accepts is a message that the Replayer's own parser accepts too: unknown
 * fields are passed over, the last of a repeated field counts, an invalid
 * string makes the whole record unreadable (record contract,
 * docs/record-contract.md, 1.9 and 1.10). It is stricter in one point: a length
 * must fit the bytes that are there, also above 32 bits. Whether the record
 * keeps the contract (an id, an index, an observation at least) is another
 * question; record_fault answers it.
 */

#ifndef PROTO_DECODE_H
#define PROTO_DECODE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef struct {
    const uint8_t *data;
    size_t len;
} record_slice;

/* What happened, by its field number; 0 if no known field says so. */
/* clang-format off */
#define RECORD_KINDS(X)                                   \
    X(NONE, 0, "none")                                    \
    X(BIND, 2, "bind")                                    \
    X(CONNECT, 3, "connect")                              \
    X(READ, 4, "read")                                    \
    X(READ_SEGMENT, 5, "readSegment")                     \
    X(RELEASED, 6, "requestReleasedDownstream")           \
    X(WRITE, 8, "write")                                  \
    X(WRITE_SEGMENT, 9, "writeSegment")                   \
    X(DISCONNECT, 10, "disconnect")                       \
    X(CLOSE, 11, "close")                                 \
    X(EXCEPTION, 12, "connectionException")               \
    X(SEGMENT_END, 14, "segmentEnd")                      \
    X(END_OF_MESSAGE, 15, "endOfMessageIndicator")        \
    X(DROPPED, 16, "requestDropped")
/* clang-format on */

typedef enum {
#define X(name, field, text) RECORD_##name = (field),
    RECORD_KINDS(X)
#undef X
} record_kind;

/* The record but for its observations. */
typedef struct {
    record_slice connection_id;
    record_slice node_id;
    bool has_index;
    bool last; /* the index is numberOfThisLastChunk */
    int32_t number;
    bool has_prior_requests;
    int32_t prior_requests;
    bool has_unterminated_read;
    bool unterminated_read;
    size_t observations;
    bool ends_with_close; /* the last observation is one */
} record_info;

typedef struct {
    record_kind kind;
    bool has_ts;
    int64_t ts_seconds; /* since 1970, any value */
    int32_t ts_nanos;   /* as found: any value */
    record_slice data;  /* of reads and writes; an exception's message */
    bool has_first_line_len, has_headers_len;
    int32_t first_line_len, headers_len;
    bool timed_out;
    size_t at; /* where in the record the observation's content begins */
} record_observation;

typedef struct {
    const uint8_t *start;
    const uint8_t *pos;
    const uint8_t *end;
    const char *error; /* why the record is unreadable, else NULL */
    size_t at;         /* and at which byte */
} record_reader;

/* Returns 0, or -1 with r->error and r->at set: the record is unreadable. */
int record_open(record_reader *r, const void *buf, size_t len,
                record_info *info);

/* The next observation in the record's order; false when there is none left. */
bool record_next(record_reader *r, record_observation *o);

/*
 * Why a readable record must not be in the topic all the same, or NULL: no
 * observation stops the Replayer, no connectionId or no index is none of ours.
 */
const char *record_fault(const record_info *info);

/* The schema's name of a kind: "read", "write", ... */
const char *record_kind_name(record_kind kind);

/* The time in nanoseconds since 1970, held at the ends of what fits. */
int64_t record_ts_ns(const record_observation *o);

#endif
