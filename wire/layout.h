/*
 * The pool: one sealed memfd per worker, made by the worker, shared with the
 * sidecar that it is linked to.
 *
 *   +--------+-------+---------+--------+---------+---------------------+
 *   | header | slots | intents | ring   | returns | blocks of 64 KiB    |
 *   +--------+-------+---------+--------+---------+---------------------+
 *   0        4096    ...                           page aligned, to the end
 *
 * worker -> sidecar: `ring` names the blocks in the order they were begun,
 * an entry a block.  A block grows: `published` in its header says how far it
 * may be read, and whether more will come (CAP_BLOCK_SEALED).  So publishing
 * is one release store, and the ring cannot overflow.
 *
 * sidecar -> worker: `returns` gives back blocks whose bytes are held
 * elsewhere, and slots whose connection's close is acknowledged.
 *
 * Resumption: a pool whose sidecar died is offered to the next.  The worker
 * has taken all returns before, so that what is lent is what its header calls
 * lent: odd generations, of blocks and of slots.  Blocks up to offered_seq are
 * found there, in the order of first_seq; those begun later come by the ring,
 * from offered_tail on.  A frame that its slot calls acknowledged is passed
 * over, and so is one whose slot has another generation.
 *
 * Renaming: a connectionId whose record is in doubt for good is given up, and
 * its slot goes on under another one, with no record of its own yet; the worker
 * need not notice.  What goes on is written into the intent of that record
 * (CAP_INTENT_RENAME) before the slot changes, so that a successor does all of
 * it again.
 *
 * When the worker has gone, whoever owns the pool does the worker's part, too:
 * what is done with is not lent any more (its generation is raised here).  So an
 * orphan can be resumed like any other, as often as its owner dies.
 *
 * Destinations: a connectionId belongs to one topic of one cluster for ever. The
 * worker names it (capture_topic) by a place in `topic_names`, which it appends
 * to; what a name stands for, and whether it is permitted, is the sidecar's to
 * say, for itself and each successor.
 *
 * Neither side trusts the other: geometry is copied and checked once
 * (cap_layout_check), indexes and lengths at every use.  All indexes run
 * freely and are masked at use.
 */
#ifndef WIRE_LAYOUT_H
#define WIRE_LAYOUT_H

#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>

#include "wire/counters.h"

#define CAP_MAGIC 0x6c6f6f7070616331ull /* "1cappool" */
#define CAP_WIRE_VERSION 3u

#define CAP_BLOCK_SIZE 65536u
#define CAP_BLOCK_HEADER 64u
#define CAP_HEADER_SIZE 4096u
#define CAP_MIN_BLOCKS 8u
#define CAP_MAX_BLOCKS 262144u /* 16 GiB */
#define CAP_MAX_SLOTS 131072u

#define CAP_ID_SIZE 52u       /* connectionId, not terminated */
#define CAP_RENAMES_MOST 999u /* of a slot's connectionId: four bytes of that */
#define CAP_NODE_ID_SIZE 36u  /* a UUID's text */
#define CAP_BOOT_ID_SIZE 36u  /* too */

#define CAP_TOPIC_NAMES 24u     /* of destinations, in a pool */
#define CAP_TOPIC_NAME_SIZE 64u /* of one, and its NUL */

/* The worker took back a pool that nobody had taken over yet: what is in it has
   been counted, and a sidecar that finds it late leaves it alone. */
#define CAP_POOL_WITHDRAWN UINT64_MAX

typedef struct {
    uint32_t nblocks;
    uint32_t nslots;
    uint32_t ring_size;   /* power of two, >= nblocks */
    uint32_t return_size; /* power of two, >= nblocks + nslots */
    uint64_t slots_at;    /* offsets in bytes */
    uint64_t intents_at;
    uint64_t ring_at;
    uint64_t returns_at;
    uint64_t blocks_at;
    uint64_t total;
} cap_geometry;

/* Whether the sidecar must be woken (reader_state). */
enum cap_reader_state {
    CAP_READER_AWAKE = 0,
    CAP_READER_NAPPING = 1, /* will look by itself soon: ring only for waits */
    CAP_READER_ASLEEP = 2   /* ring */
};

typedef struct {
    /* written once, by the worker, before the pool is handed over */
    uint64_t magic;
    uint32_t version;
    uint32_t pid; /* for log lines only: namespaces differ */
    cap_geometry geometry;
    char node_id[CAP_NODE_ID_SIZE]; /* nodeId of every connection in it */
    uint32_t spare;

    /* the worker's line */
    _Alignas(64) _Atomic uint32_t ring_tail;
    _Atomic uint32_t return_head;
    _Atomic uint32_t starved; /* ring when blocks are given back */

    /* of the moment when it offered the pool; see "Resumption" */
    uint32_t offered_tail;
    uint32_t offered_spare;
    uint64_t offered_seq;
    uint64_t offered_handed;

    /* the sidecar's line */
    _Alignas(64) _Atomic uint32_t ring_head;
    _Atomic uint32_t return_tail;
    _Atomic uint32_t reader_state;
    /* raised by each new owner; an older one must not produce or return */
    _Atomic uint64_t owner_generation; /* or CAP_POOL_WITHDRAWN */
    /* the owner ended the link itself: the pool stays its own for good */
    _Atomic uint32_t kept;
    /* somebody keeps the pool for a successor, also when its worker goes */
    _Atomic uint32_t outlives;
    /* all of it is settled, and its counters are in the sidecar's totals */
    _Atomic uint32_t retired;
    /* blocks of it that the sidecar's spool has, or more are there */
    _Atomic uint32_t spooled;

    _Alignas(64) cap_worker_counters worker;
    _Alignas(64) cap_sidecar_counters sidecar;
    /* the worker's, by time (CAP_WAITED); 0 of a module that is older */
    _Alignas(64) _Atomic uint64_t waited[CAP_WAITED_CELLS];

    /* the worker's; a module that does not count leaves 0 here */
    _Alignas(64) _Atomic uint64_t redact[CAP_REDACT_CELLS];

    /* the worker's; a name is there for good, and before the count (release)
       says so */
    _Alignas(64) _Atomic uint32_t ntopics;
    uint32_t topic_spare;
    char topic_names[CAP_TOPIC_NAMES][CAP_TOPIC_NAME_SIZE];

    /* the sidecar's, in a file of its own: in which run of the host that was
       written; zeros: not known */
    char boot_id[CAP_BOOT_ID_SIZE];
} cap_header;

_Static_assert(sizeof(cap_header) <= CAP_HEADER_SIZE, "header fits its page");

/*
 * One per open connectionId.  The worker writes the first part before the
 * slot's first frame is published; the sidecar the second.  A slot is free
 * again when the sidecar returns it, after the acknowledged close.
 */
typedef struct {
    /* as in frames: raised each time it is taken, then odd, and when it comes
       back; stored last (release) */
    _Atomic uint32_t generation;
    uint8_t id_len;
    uint8_t cluster;
    uint16_t topic; /* 0: the default, else topic_names[topic - 1] */
    char id[CAP_ID_SIZE];
    int64_t opened_ns;

    /* CAP_ACKED: the last frame that is wholly acknowledged, and where in the
       grammar that is; one store, so that both are always of one moment */
    _Atomic uint64_t acked;
    _Atomic uint32_t acked_bytes; /* of the frame after it */
    int32_t partition;            /* fixed at the first record; -1 before */
    uint32_t next_number;
    uint32_t requests; /* endOfMessage in acknowledged records */
    uint32_t unterminated_read;
    uint32_t renames; /* 0: `id` is the connectionId; else with .N behind it */
    int64_t last_offset; /* of its last acknowledged record; -1 unknown */
    uint64_t taken_seq;  /* the worker's: frames of it are later than this */
    /* the last frame that is on the sidecar's disk (durability = disk): who
       waits for it need not wait for Kafka */
    _Atomic uint64_t synced;
    uint64_t destination; /* which topic of which brokers its first record was
                             for: a hash, the sidecar's; 0 before */
    uint64_t spare2[3];
} cap_slot;

/* flags of cap_slot.acked */
#define CAP_ACKED_OPEN 1u  /* an exchange has begun and not ended */
#define CAP_ACKED_EOM 2u   /* and its endOfMessage is among it */
#define CAP_ACKED_END 4u   /* the connection's end is */
#define CAP_ACKED_WAITS 8u /* a request of it has waited */
/* of an open exchange without its endOfMessage: none of its frames has gone
   back, so that it can be sent again whole */
#define CAP_ACKED_KEPT 16u
/* of an open exchange: it is passed over, and will be lost(maybe_lost) */
#define CAP_ACKED_LOST 32u

/* of the frame with which a sidecar ends a connection whose worker has gone:
   behind all of the worker's own, whoever makes it */
#define CAP_SEQ_LAST ((1ull << 56) - 1)

#define CAP_ACKED(seq, flags) ((uint64_t)(seq) << 8 | (flags))
#define CAP_ACKED_SEQ(a) ((uint64_t)(a) >> 8)
#define CAP_ACKED_FLAGS(a) ((unsigned)(a)&0xffu)

_Static_assert(sizeof(cap_slot) == 160, "a slot's size is part of the wire");

/*
 * One per slot, since a connectionId has at most one unacknowledged record:
 * what was handed to Kafka and is not acknowledged yet, so that a successor
 * can tell what is in doubt.  `number` is stored last (release); 0 is none.
 */
typedef struct {
    _Atomic uint32_t number;
    uint32_t slot_generation;
    int32_t partition;
    uint32_t flags;    /* CAP_INTENT_RENAME, or 0 */
    int64_t low_water; /* the partition's highest known offset at produce */
    uint64_t first_seq;
    uint64_t last_seq;
    uint32_t first_byte; /* of first_seq's payload */
    uint32_t last_byte;  /* of last_seq's payload, exclusive */
    uint32_t prior_requests;
    _Atomic uint32_t acked;
    uint32_t requests; /* endOfMessage in all records, this one included */
    uint32_t unterminated_read; /* after this one */
    /* what the topic's id is when the record is first handed over, hashed; 0:
       not known.  CAP_INTENT_RENAME: the first frame that goes on; what is
       before it and not acknowledged is passed over */
    uint64_t mark;
} cap_intent;

/* flags: the connectionId is being given up, and is the slot's renames-th then */
#define CAP_INTENT_RENAME 1u
#define CAP_INTENT_RENAMED(renames)                                            \
    ((uint32_t)(renames) << 1 | CAP_INTENT_RENAME)
#define CAP_INTENT_RENAMES(flags) ((flags) >> 1)

_Static_assert(sizeof(cap_intent) == 72,
               "an intent's size is part of the wire");

/* At the start of each block. */
typedef struct {
    /* bytes from the block's start that may be read; see CAP_BLOCK_SEALED */
    _Atomic uint32_t published;
    /* raised each time it is taken, then odd, and when it comes back; stored
       after first_seq (release) */
    _Atomic uint32_t generation;
    uint64_t first_seq; /* of its first frame */
    uint64_t spare[6];
} cap_block;

_Static_assert(sizeof(cap_block) == CAP_BLOCK_HEADER, "block header");

#define CAP_BLOCK_SEALED 0x80000000u /* in `published`: nothing more comes */

/* ring: generation << 32 | block */
typedef _Atomic uint64_t cap_ring_entry;
#define CAP_RING_ENTRY(gen, block) ((uint64_t)(gen) << 32 | (block))

/* returns: kind << 56 | (generation & 0xffffff) << 32 | index */
enum cap_return_kind { CAP_RETURN_BLOCK = 1, CAP_RETURN_SLOT = 2 };
#define CAP_RETURN_ENTRY(kind, gen, index)                                     \
    ((uint64_t)(kind) << 56 | (uint64_t)((gen)&0xffffffu) << 32 | (index))
#define CAP_RETURN_KIND(e) ((unsigned)((e) >> 56))
#define CAP_RETURN_GEN(e) ((uint32_t)((e) >> 32) & 0xffffffu)
#define CAP_RETURN_INDEX(e) ((uint32_t)(e))

/*
 * The geometry of a pool of at most `bytes` bytes with `nslots` slots.
 * Returns 0, or -1 when that leaves fewer than CAP_MIN_BLOCKS blocks or is
 * over the limits.
 */
int cap_layout_make(cap_geometry *g, uint64_t bytes, uint32_t nslots);

/* Whether `len` bytes are a destination's name: 1 to 63 letters, digits, ".",
   "_" and "-". */
int cap_topic_name_good(const char *name, size_t len);

/*
 * Checks a copied geometry that came from the other side against the size of
 * the mapping.  NULL, or what is wrong in words.
 */
const char *cap_layout_check(const cap_geometry *g, uint64_t mapped);

static inline cap_slot *cap_slot_at(void *base, const cap_geometry *g,
                                    uint32_t i) {
    return (cap_slot *)((char *)base + g->slots_at) + i;
}
static inline cap_intent *cap_intent_at(void *base, const cap_geometry *g,
                                        uint32_t i) {
    return (cap_intent *)((char *)base + g->intents_at) + i;
}
static inline cap_ring_entry *cap_ring_at(void *base, const cap_geometry *g,
                                          uint32_t i) {
    return (cap_ring_entry *)((char *)base + g->ring_at) +
           (i & (g->ring_size - 1));
}
static inline cap_ring_entry *cap_return_at(void *base, const cap_geometry *g,
                                            uint32_t i) {
    return (cap_ring_entry *)((char *)base + g->returns_at) +
           (i & (g->return_size - 1));
}
static inline cap_block *cap_block_at(void *base, const cap_geometry *g,
                                      uint32_t i) {
    return (cap_block *)((char *)base + g->blocks_at +
                         (uint64_t)i * CAP_BLOCK_SIZE);
}

#endif
