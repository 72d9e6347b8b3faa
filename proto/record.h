/*
 * The record encoder: writes one TrafficStream (TrafficCaptureStream.proto)
 * into a flat buffer that the caller owns. No I/O, no allocation, no state but
 * the writer's; a new record format would be another file behind these calls.
 *
 *     record_begin, then any number of observations, then record_finish.
 *
 * The bytes, in the order in which the Java Capture Proxy writes them:
 *
 *   | 1 connectionId | 5 nodeId | [6 prior] | [7 unterminated] |  record_begin
 *   | 2 observation | 2 observation | ...                         record_*
 *   | 3 number  or  4 numberOfThisLastChunk |                     record_finish
 *
 * Every call either writes all of its bytes and returns 0, or returns -1 and
 * leaves the record as it was: then finish it, and begin the next. Room for the
 * index field is set aside by record_begin, so record_finish cannot fail.
 *
 * Times are nanoseconds since 1970, UTC. That they never go back within a
 * connection, that close comes last and that numbers have no gap is the
 * caller's duty (record contract, docs/record-contract.md, sections 2 and 3).
 */

#ifndef PROTO_RECORD_H
#define PROTO_RECORD_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* The longest value that may enter the topic, in bytes (contract, 1.5). */
#define RECORD_SIZE_MAX 1048076

/*
 * What a record with one control observation (anything but a read or a write)
 * needs at most, as long as its two ids take up to 256 bytes together and an
 * exception's message up to 128.
 */
#define RECORD_OVERHEAD_MAX 512

typedef struct {
    uint8_t *buf; /* the caller's, cap bytes; not needed after record_finish */
    size_t len;   /* bytes written */
    size_t cap;
    uint32_t observations; /* written so far */
    size_t tail;           /* bytes reserved for the trailing index field */
} record_writer;

/*
 * What opens a record; used during record_begin only. The ids are UTF-8 and not
 * empty. prior_requests: ended requests of this connection before this record,
 * dropped ones not counted. unterminated_read: earlier records hold reads of a
 * request that had not ended when this record began.
 */
typedef struct {
    const char *connection_id;
    size_t connection_id_len;
    const char *node_id;
    size_t node_id_len;
    uint32_t prior_requests;
    bool unterminated_read;
} record_head;

/*
 * Starts a record in buf[0..cap). -1 when the head and the index do not fit, or
 * when it could never be a valid record: an id is empty or no UTF-8, or
 * prior_requests is above INT32_MAX.
 */
int record_begin(record_writer *w, uint8_t *buf, size_t cap,
                 const record_head *head);

/* Bytes of a request and of a response. They are copied; len may be 0. */
int record_read(record_writer *w, int64_t ts_ns, const void *data, size_t len);
int record_write(record_writer *w, int64_t ts_ns, const void *data, size_t len);

/*
 * The request is complete. ts_ns: that of the read which completed it. Lengths
 * in bytes, both without line ends: the request line's, and the sum of the
 * header lines'; -1 when unknown (contract, 3.3). Both are always written.
 */
int record_end_of_message(record_writer *w, int64_t ts_ns,
                          int32_t first_line_len, int32_t headers_len);

/* The reads since the last end of message are to be forgotten (3.6). */
int record_request_dropped(record_writer *w, int64_t ts_ns);

/*
 * The connection broke; msg says how. Invalid UTF-8 would make the record
 * unreadable, so in a message that holds any, each byte above 0x7f becomes '?'.
 */
int record_exception(record_writer *w, int64_t ts_ns, const char *msg,
                     size_t len);

/* The connection ended: must be the last observation of its last record. */
int record_close(record_writer *w, int64_t ts_ns);

/*
 * The most data bytes that a record_read or record_write with this time could
 * still take, exactly: that many fit, one more does not. 0 if none.
 */
size_t record_room(const record_writer *w, int64_t ts_ns);

/*
 * Ends the record and returns its length. number: 1 for a connection's first
 * record, then one more each, at least 0; last: the connection ends in it.
 * A record without observations must never be finished (contract, 2.14).
 */
size_t record_finish(record_writer *w, int32_t number, bool last);

#endif
