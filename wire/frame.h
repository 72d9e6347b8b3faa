/*
 * Frames: what a worker writes into a block, one observation each.
 *
 *   block   +---------------+-------+---------+-------+---------+--------
 *           | block header  | frame | payload | frame | payload | ...
 *           +---------------+-------+---------+-------+---------+--------
 *           0               64      +32       (8-aligned)
 *
 * One connection (slot, generation) at a time holds one exchange:
 *
 *   ((READ+ HOLD? EOM WRITE* END) | (READ+ HOLD? EOM? DROP))*
 *       (CLOSE | ABANDON)?
 *
 * READ with CAP_FRAME_BEGIN starts an exchange; END and DROP end it.
 * ABANDON ends exchange and connection at any place; END with a code other
 * than 0 does so too.  CLOSE stands between exchanges only.
 *
 * The reader copies a header before it checks it: the other side can write
 * to this memory at any time.
 */
#ifndef WIRE_FRAME_H
#define WIRE_FRAME_H

#include <stddef.h>
#include <stdint.h>

enum cap_frame_type {
    CAP_FRAME_READ = 1, /* bytes of the request */
    CAP_FRAME_EOM,      /* the request is complete; cap_eom */
    CAP_FRAME_WRITE,    /* bytes of the response */
    CAP_FRAME_END,      /* the response is complete; code: see below */
    CAP_FRAME_DROP,     /* requestDropped; code: the reason (filtered) */
    CAP_FRAME_ABANDON,  /* exception and close; code: the reason (lost) */
    CAP_FRAME_CLOSE,    /* the client connection has ended */
    CAP_FRAME_PAD,      /* nothing: fills a reservation that was not used */
    CAP_FRAME_HOLD      /* a client waits for the durability of all before */
};

/* flags */
#define CAP_FRAME_BEGIN 0x01 /* READ: the first bytes of an exchange */
#define CAP_FRAME_WAIT 0x02  /* EOM: a client waits for its durability */

/* code of END */
enum cap_end_code {
    CAP_END_COMPLETE = 0,
    /* the client or the source cut the response: the connection ends */
    CAP_END_TRUNCATED = 1
};

typedef struct {
    uint32_t size; /* bytes of payload, without alignment */
    uint8_t type;
    uint8_t flags;
    uint16_t code;
    uint32_t slot;
    uint32_t slot_generation;
    uint64_t seq;  /* contiguous within a pool, from 1 */
    int64_t ts_ns; /* CLOCK_REALTIME, non-decreasing per connection */
} cap_frame;

/* Payload of EOM (record contract: endOfMessageIndicator). */
typedef struct {
    int32_t first_line; /* bytes of the request line without CRLF */
    int32_t headers;    /* bytes of the header lines without CRLFs */
} cap_eom;

#define CAP_FRAME_ALIGN 8u
#define CAP_FRAME_SPACE(size)                                                  \
    (sizeof(cap_frame) + (((size) + CAP_FRAME_ALIGN - 1) & ~7u))

/*
 * Checks a copied header against the bytes left in the published part of its
 * block (header included) and the sequence number that must come next.
 * Returns NULL, or what is wrong with it in words for a log line.
 */
const char *cap_frame_check(const cap_frame *f, size_t left, uint64_t seq,
                            uint32_t nslots);

#endif
