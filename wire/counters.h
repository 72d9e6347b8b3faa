/*
 * The reasons and counters both sides share.
 *
 * An exchange is counted once in `seen`, when its head is complete, and
 * then in exactly one class:
 *
 *     seen = captured + filtered(reason) + lost(reason) + pending
 *
 * filtered: never to be replayed, by rule.  lost: some byte of it will never
 * be sent.  The numbers are part of the wire version (layout.h): append only.
 * /metrics, capture_status and docs/counters.md are made from these tables.
 */
#ifndef WIRE_COUNTERS_H
#define WIRE_COUNTERS_H

#include <stdatomic.h>
#include <stdint.h>

/* X(symbol, number, class, name, help) */
#define CAP_REASONS(X)                                                         \
    X(NONE, 0, NONE, "none", "not a reason")                                   \
    X(BAD_REQUEST, 1, FILTERED, "bad_request",                                 \
      "NGINX refused the request before any phase (400, 414, 494)")            \
    X(NOT_FORWARDED, 2, FILTERED, "not_forwarded",                             \
      "answered before a content handler (return, access, limits)")            \
    X(RULE, 3, FILTERED, "rule", "the variable of `capture` said off")         \
    X(BYPASS, 4, FILTERED, "bypass", "capture_bypass")                         \
    X(UPGRADE, 5, FILTERED, "upgrade",                                         \
      "the connection was upgraded (101) or is a CONNECT tunnel")              \
    X(UNSUPPORTED, 6, FILTERED, "unsupported",                                 \
      "a protocol version that this build does not capture")                   \
    X(UNREPLAYABLE, 7, FILTERED, "unreplayable",                               \
      "the Replayer's limits do not allow it (request line, header sum)")      \
    X(CLIENT_ABORT, 8, FILTERED, "client_abort",                               \
      "the client left before its request was complete")                       \
    X(REFUSED, 9, FILTERED, "refused", "capture_on_failure refuse")            \
    X(UNREAD_BODY, 10, FILTERED, "unread_body",                                \
      "the request was answered, and its body never read to its end")          \
    X(TOO_LARGE, 11, FILTERED, "too_large", "capture_max_request_body")        \
    X(UNREDACTABLE, 12, FILTERED, "unredactable",                              \
      "capture_redact_json cannot read the request's body (coded, or CBOR)")   \
    X(UNLINKED, 32, LOST, "unlinked", "no sidecar was linked to the worker")   \
    X(POOL_FULL, 33, LOST, "pool_full",                                        \
      "capture_buffer had no room for the request")                            \
    X(RESPONSE, 34, LOST, "response",                                          \
      "the request is recorded; a part of its response is not")                \
    X(NO_SLOT, 35, LOST, "no_slot", "no free connection slot in the pool")     \
    X(LINK_LOST, 36, LOST, "link_lost",                                        \
      "the sidecar went away before it said what became of the exchange")      \
    X(WORKER_EXIT, 37, LOST, "worker_exit",                                    \
      "the worker ended in the middle of the exchange")                        \
    X(RECORD_REJECTED, 38, LOST, "record_rejected",                            \
      "the broker refuses the record for good (too large, invalid)")           \
    X(MAYBE_LOST, 39, LOST, "maybe_lost",                                      \
      "in doubt: the broker may or may not hold its record")                   \
    X(BAD_LINK, 40, LOST, "bad_link",                                          \
      "the worker's memory broke the link's rules")                            \
    X(INTERNAL, 41, LOST, "internal", "out of memory, or a bug; see the log")  \
    X(NO_TOPIC, 42, LOST, "no_topic",                                          \
      "capture_topic names a destination that the sidecar does not permit")    \
    X(PINNED, 43, LOST, "pinned",                                              \
      "Kafka took nothing of its connection, whose bytes filled the memory, "  \
      "and much of others meanwhile")

#define CAP_REASON_CELLS 64

/*
 * Requests that wait (capture_wait), whatever becomes of their exchange:
 *     held = acked + timed_out + lost + left + held now
 *
 * X(symbol, number, name, help)
 */
#define CAP_WAITS(X)                                                           \
    X(HELD, 0, "held", "requests that were held")                              \
    X(ACKED, 1, "acked",                                                       \
      "released because their record was durable, or on the disk "             \
      "(durability = disk)")                                                   \
    X(TIMED_OUT, 2, "timed_out", "not durable within capture_wait_timeout")    \
    X(LOST, 3, "lost", "released because their record never will be durable")  \
    X(LEFT, 4, "left", "ended by NGINX or by their client while held")         \
    X(SKIPPED, 5, "skipped",                                                   \
      "should have waited and did not: too many timeouts in a row before")     \
    X(TIME_MS, 6, "ms", "milliseconds that all of them together were held")

#define CAP_WAIT_CELLS 8

enum cap_wait {
#define X(sym, num, name, help) CAP_WAIT_##sym = num,
    CAP_WAITS(X)
#undef X
};

/* NULL for a number that is none. */
const char *cap_wait_name(unsigned cell);

/*
 * How long requests were held: X(upper bound in ms, inclusive), a cell each, and
 * one more for what was longer.
 */
#define CAP_WAITED(X)                                                          \
    X(1)                                                                       \
    X(2)                                                                       \
    X(5)                                                                       \
    X(10)                                                                      \
    X(25)                                                                      \
    X(50)                                                                      \
    X(100)                                                                     \
    X(250)                                                                     \
    X(500)                                                                     \
    X(1000)                                                                    \
    X(2500)                                                                    \
    X(5000)                                                                    \
    X(10000)                                                                   \
    X(30000)                                                                   \
    X(60000)

#define CAP_WAITED_CELLS 16

unsigned cap_waited_cell(uint64_t ms);

/*
 * What was changed or left out before it was recorded (capture_redact_*,
 * capture_max_response_body), whatever became of its exchange.
 *
 * X(symbol, number, name, help)
 */
#define CAP_REDACTS(X)                                                         \
    X(HEADER, 0, "headers", "values of headers and trailers")                  \
    X(ARG, 1, "args", "values of query arguments")                             \
    X(JSON, 2, "json", "strings and numbers in JSON bodies")                   \
    X(UNHASHED, 3, "unhashed",                                                 \
      "of these in JSON: too long for a hash, replaced by a constant")         \
    X(MALFORMED, 4, "malformed",                                               \
      "bodies or lines that are no JSON, replaced from there to their end")    \
    X(OMITTED, 5, "omitted",                                                   \
      "responses recorded without their body: too large, or unredactable")     \
    X(CUT, 6, "cut",                                                           \
      "responses that grew beyond capture_max_response_body: of truncated")

#define CAP_REDACT_CELLS 8

enum cap_redact {
#define X(sym, num, name, help) CAP_REDACT_##sym = num,
    CAP_REDACTS(X)
#undef X
};

/* NULL for a number that is none. */
const char *cap_redact_name(unsigned cell);

enum cap_class { CAP_CLASS_NONE, CAP_CLASS_FILTERED, CAP_CLASS_LOST };

enum cap_reason {
#define X(sym, num, cls, name, help) CAP_##sym = num,
    CAP_REASONS(X)
#undef X
};

/* NULL for a number that is no reason. */
const char *cap_reason_name(unsigned reason);
enum cap_class cap_reason_class(unsigned reason);

/*
 * Cells that the worker writes.  `handed` exchanges were begun in the pool:
 * the sidecar says what becomes of them; all others end in reason[] here.
 *     seen = handed + sum(reason[])
 */
typedef struct {
    _Atomic uint64_t seen;
    _Atomic uint64_t handed;
    _Atomic uint64_t connections; /* connectionIds made */
    _Atomic uint64_t frames;
    _Atomic uint64_t bytes; /* of captured data */
    _Atomic uint64_t doorbells;
    _Atomic uint64_t wait[CAP_WAIT_CELLS];
    uint64_t spare[2];
    _Atomic uint64_t reason[CAP_REASON_CELLS];
} cap_worker_counters;

/*
 * Cells that the sidecar writes.
 *     taken = captured + sum(reason[]) + open
 * Exchanges handed and not yet taken are still in the pool: pending, like
 * the open ones.
 */
typedef struct {
    _Atomic uint64_t taken;
    _Atomic uint64_t captured;
    _Atomic uint64_t truncated; /* of captured: the exchange itself was cut */
    _Atomic uint64_t open;      /* gauge */
    _Atomic uint64_t records;   /* acknowledged */
    _Atomic uint64_t bytes;     /* of acknowledged records */
    /* exchanges that are ending just now, so that a successor can count them:
       CAP_ENDING; 0: none */
    _Atomic uint64_t ending;
    /* requests that were sent again although they may be in the topic, and what
       that will be when the renaming that has begun is done */
    _Atomic uint64_t doubled;
    _Atomic uint64_t doubled_next;
    uint64_t spare[7];
    _Atomic uint64_t reason[CAP_REASON_CELLS];
} cap_sidecar_counters;

/* class: a reason, or one of these */
#define CAP_ENDING_CAPTURED 0x100u
#define CAP_ENDING_TRUNCATED 0x101u
#define CAP_ENDING(class, n) ((uint64_t)(n) << 16 | (class))
#define CAP_ENDING_CLASS(e) ((unsigned)(e)&0xffffu)
#define CAP_ENDING_COUNT(e) ((uint64_t)(e) >> 16)

#endif
