/*
 * A worker's pool, seen from the sidecar: the mapping, and the only code that
 * reads frames from it or gives anything back (wire/layout.h).
 *
 *   ring entry -> block: 64 | frame | frame | ... | `published`
 *                             pool_read, one frame a call, in `seq` order
 *
 *   pool_hold     a frame_ref keeps its block from going back
 *   pool_release  the last ref of a block that is wholly read returns it
 *
 * The other side can write to this memory at any time.  So what decides
 * anything is copied before it is checked, and what must stay true (which
 * blocks are lent to us, how far we have read, every counter) is kept here
 * and only shown there.  A broken rule makes pool_read return -1 for ever;
 * the caller ends that link.
 *
 * One thread.  Memory: 72 B a block, and 40 B a held frame.  A frame takes at
 * least 32 B of its pool, so refs are bounded by 1.25 times the pool's size;
 * they are freed when no frame is held.
 */
#ifndef SIDECAR_POOL_H
#define SIDECAR_POOL_H

#include <stdbool.h>
#include <stdint.h>

#include <sys/queue.h>

#include "sidecar/spool.h"
#include "wire/counters.h"
#include "wire/frame.h"
#include "wire/layout.h"

#define POOL_NO_BLOCK UINT32_MAX

/* A frame that is held: its payload is `size` bytes at `at` in `block`. */
typedef struct frame_ref {
    struct frame_ref *next; /* its owner's list */
    uint64_t seq;
    int64_t ts_ns;
    uint32_t block; /* in pool.blocks; POOL_NO_BLOCK: made by the sidecar, has
                       no payload */
    uint32_t at;    /* bytes from the block's start */
    uint32_t size;
    uint8_t type;
    uint8_t flags;
    uint16_t code;
} frame_ref;

/* A frame as pool_read found it. */
typedef struct {
    cap_frame head; /* the copy that was checked */
    uint32_t block;
    uint32_t at;
} pool_frame;

/*
 * A block that is lent to us, in the worker's memory or in the spool; frames
 * know it by its place in pool.blocks, which does not change when it moves.
 */
typedef struct pool_block {
    const char *data;
    uint32_t index; /* in the worker's memory, or POOL_NO_BLOCK */
    uint32_t slot;  /* in the spool, or SPOOL_NO_SLOT */
    uint32_t generation;
    uint32_t refs;
    uint32_t order; /* ring position: blocks are begun in this order */
    uint32_t next_free;
    bool read; /* wholly: it goes back when no ref is left */
    int64_t opened_ns;
    TAILQ_ENTRY(pool_block) oldest; /* while in the worker's memory */
} pool_block;

TAILQ_HEAD(pool_block_list, pool_block);

/* pool.lent, of each block of the worker's memory: its place in pool.blocks,
   or one of these */
#define POOL_AWAY UINT32_MAX        /* the worker's */
#define POOL_SPENT (UINT32_MAX - 1) /* done with, and the pool is closed */

/* The sidecar's own exchange counters; the pool shows a copy of them. */
typedef struct {
    uint64_t taken, captured, truncated, open, records, bytes, doubled;
    uint64_t reason[CAP_REASON_CELLS];
} pool_counters;

typedef struct pool {
    cap_header *header; /* and start of the mapping */
    uint64_t mapped;    /* bytes */
    uint64_t inode;     /* of the memory: one of all that are mapped */
    uint64_t device;
    cap_geometry geometry;
    char node_id[CAP_NODE_ID_SIZE];
    uint64_t owner;  /* the generation we took */
    bool disowned;   /* another owner has been seen: produce, return nothing */
    bool closed;     /* no block goes back any more */
    bool rings;      /* the worker is to be woken: see pool_wake */
    const char *bad; /* the rule that was broken, in words; NULL: none */

    int64_t now_ns;     /* when pool_spill was called last */
    uint32_t ring_head; /* of the block in work, or of the next */
    uint32_t return_tail;
    uint64_t seq; /* the next frame's */

    /* adopted: blocks that were lent when it was offered, oldest first */
    struct pool_old *old;
    uint32_t nold, next_old;
    uint64_t adopted_seq;
    uint64_t adopted_handed; /* exchanges begun up to there */
    bool is_orphan;          /* its worker was dead when we took it */

    /* the block in work; what was read of its `published` */
    bool reading, sealed, by_ring;
    uint32_t block;
    uint32_t at, end;
    uint32_t published;

    uint64_t journal_commit; /* the journal's: before it nothing is sent */
    bool journaled;          /* and whether something of it may be there */

    spool *spool;      /* or NULL */
    uint32_t nspooled; /* blocks of it that are there */
    bool left;         /* to a successor: nothing is given back or released */
    bool in_file;      /* pool_file.h */
    uint32_t charged;  /* there: blocks of the spool's room that it takes */
    pool_block *blocks;
    uint32_t nblocks;     /* places that have ever been used */
    uint32_t max_blocks;  /* places that there are */
    uint32_t free_blocks; /* list of places by next_free, or POOL_NO_BLOCK */
    uint32_t *lent;
    struct pool_block_list
        oldest;    /* in the worker's memory, first opened first */
    uint32_t held; /* of the worker's memory */
    pool_counters count;

    /* of the last look (pool_measure.h) */
    int64_t measured_ns; /* 0: there was none */
    uint64_t measured_bytes;
    double bytes_per_s;

    frame_ref *free_refs;
    uint32_t refs; /* in use */
    uint32_t nslabs;
    struct pool_slab *slabs;
} pool;

/*
 * Maps the pool in `fd` (which stays the caller's) after checking seals,
 * size (at most `limit` bytes), header and geometry.  NULL with *why set.
 */
extern const char pool_over_limit[]; /* one of *why */
pool *pool_open(int fd, uint64_t limit, const char **why);

/* The same of a pool in a file of our own, which nobody else can cut. */
pool *pool_open_file(int fd, const char **why);

/* Whether this *why (of any of these, or of who calls them) passes by itself:
   nothing has been decided of the pool, and it can be tried again. */
bool pool_may_pass(const char *why);
extern const char pool_no_memory[], pool_no_descriptor[];

/* Unmaps; every frame_ref of it becomes invalid. */
void pool_free(pool *p);

/* Takes ownership: raises the owner's generation by one and returns it; 0 where
   the worker has withdrawn the pool. */
uint64_t pool_own(pool *p);

/*
 * After pool_own, of a pool that had an owner before: pool_read gives what is
 * in the blocks that are lent, and then what comes by the ring.  Counters go on
 * from where the header has them; `open` of them is the caller's to tell.
 * NULL, or why not.  Where blocks that were in the spool are missing, nothing of
 * it can be read (p->bad).
 */
const char *pool_adopt(pool *p);

/* The counters alone, of a pool that nobody goes on with. */
void pool_adopt_counters(pool *p);

/*
 * After pool_own and before pool_adopt, of a pool whose worker is dead: does
 * what that would have done before it offered it again, and closes it.
 */
void pool_orphan(pool *p);

/* Of frames up to this seq (0: none) its owner before us may have done some
   already. */
static inline bool pool_is_old(const pool *p, uint64_t seq) {
    return seq <= p->adopted_seq;
}

/* Whether it is still ours; once it is not, it never is again. */
bool pool_owned(pool *p);

/* 1: *f is the next frame (never a PAD); 0: nothing published; -1: p->bad. */
int pool_read(pool *p, pool_frame *f);

/* A ref of the frame, not in any list; NULL: out of memory. */
frame_ref *pool_hold(pool *p, const pool_frame *f);

/* A ref without payload, for a frame that the sidecar makes itself. */
frame_ref *pool_make(pool *p, enum cap_frame_type type, uint16_t code,
                     int64_t ts_ns);

/* Ends a ref; returns its block when that was the last thing it waited for. */
void pool_release(pool *p, frame_ref *r);

static inline const void *pool_payload(const pool *p, const frame_ref *r) {
    return p->blocks[r->block].data + r->at;
}

/* Before anything is read: blocks may move to the spool.  0, or -1: out of
   memory. */
int pool_use_spool(pool *p, spool *s);

/* Of a block of the worker's memory: its place in pool.blocks, or POOL_NO_BLOCK:
   it is not lent to us, whatever it says itself. */
static inline uint32_t pool_place(const pool *p, uint32_t index) {
    return p->lent[index] < POOL_SPENT ? p->lent[index] : POOL_NO_BLOCK;
}

/*
 * Moves blocks to the spool, the oldest first, while more than three quarters
 * of the worker's memory are held, or more than half and the oldest for longer
 * than a quarter of a second.  A bounded number a call.
 */
void pool_spill(pool *p, int64_t now_ns);

/* The name that a slot's topic stands for, copied and checked; "" for 0.  0, or
   -1: there is none. */
int pool_topic(const pool *p, unsigned topic, char name[CAP_TOPIC_NAME_SIZE]);

/* Gives a slot back, once for each generation. */
void pool_return_slot(pool *p, uint32_t slot, uint32_t generation);

/* Something is there that pool_read has not returned. */
bool pool_unread(pool *p);

/*
 * Tells the worker whether to ring.  Returns true when there is something to
 * read after all: then the state is CAP_READER_AWAKE again.
 */
bool pool_sleep(pool *p, enum cap_reader_state state);
void pool_awake(pool *p);

/* What a client waits for is acknowledged, or never will be: the doorbell is
   to be rung at the turn's end. */
static inline void pool_wake(pool *p) {
    p->rings = true;
}

/* The link is ended by us: its worker must not offer the pool to others. */
void pool_keep(pool *p);

/* A successor will go on: from now on nothing is given back or released. */
void pool_leave(pool *p);

/* The worker has gone: blocks stay here, so what it can still publish ends.
   What is done with is not lent any more, and its memory goes to the system. */
void pool_close(pool *p);

/* Exchange counters; each also shows the new value in the pool. */
void pool_count_taken(pool *p);
/* One open exchange is captured. */
void pool_count_captured(pool *p, bool truncated);
/* One open exchange is filtered or lost. */
void pool_count_reason(pool *p, unsigned reason);
/* `n` exchanges that an owner before us had ended and not counted. */
void pool_count_missing(pool *p, unsigned class, uint64_t n);
/* As CAP_ENDING's class says. */
void pool_count_class(pool *p, unsigned class);
/* Shows what n exchanges are about to be counted as; class 0: nothing. */
void pool_ending(pool *p, unsigned class, uint64_t n);
void pool_count_record(pool *p, uint64_t bytes);
/* `n` requests are going to be sent again that may be there; then they are
   counted, once, also by a successor. */
void pool_doubling(pool *p, uint64_t n);
void pool_doubled(pool *p);

#endif
