#define _GNU_SOURCE /* seals */
#include "sidecar/pool.h"

#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include "sidecar/step.h"

#define SLAB_REFS 1023
#define KEPT_SLABS 4
#define NEEDED_SEALS (F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL)

/* A block that was lent when the pool was offered. */
struct pool_old {
    uint64_t first_seq;
    uint32_t index; /* or POOL_NO_BLOCK: it is in the spool */
    uint32_t slot;
    uint32_t generation;
};

struct pool_slab {
    struct pool_slab *next;
    frame_ref refs[SLAB_REFS];
};

const char pool_over_limit[] = "the pool is over the limit (pools.size)";
const char pool_no_memory[] = "out of memory";
const char pool_no_descriptor[] = "out of memory, or of descriptors";
static const char pool_not_mapped[] = "the pool cannot be mapped";

bool pool_may_pass(const char *why) {
    return strcmp(why, pool_no_memory) == 0 || why == pool_no_descriptor ||
           why == pool_not_mapped;
}

/* ---- mapping ---- */

/* Without these seals the other side could cut the memory under us. */
static const char *check_seals(int fd) {
    int seals = fcntl(fd, F_GET_SEALS);

    if (seals == -1) {
        return "the pool is not a memfd";
    }
    return (seals & NEEDED_SEALS) != NEEDED_SEALS
               ? "the pool is not sealed against resizing"
               : NULL;
}

static const char *check_fd(int fd, uint64_t limit, pool *p) {
    struct stat st;

    if (fstat(fd, &st) == -1 || st.st_size < (off_t)CAP_HEADER_SIZE) {
        return "the pool is too small";
    }
    if ((uint64_t)st.st_size > limit) {
        return pool_over_limit;
    }
    p->mapped = (uint64_t)st.st_size;
    p->inode = (uint64_t)st.st_ino;
    p->device = (uint64_t)st.st_dev;
    return NULL;
}

/* A UUID, as the module makes it: it names files, too (pool_file.h). */
static bool is_node_id(const char *id) {
    for (size_t i = 0; i < CAP_NODE_ID_SIZE; i++) {
        bool dash = i == 8 || i == 13 || i == 18 || i == 23;
        bool hex =
            (id[i] >= '0' && id[i] <= '9') || (id[i] >= 'a' && id[i] <= 'f');

        if (dash ? id[i] != '-' : !hex) {
            return false;
        }
    }
    return true;
}

static const char *copy_header(pool *p) {
    const cap_header *h = p->header;
    const char *why;

    if (h->magic != CAP_MAGIC) {
        return "the pool has no pool's header";
    }
    if (h->version != CAP_WIRE_VERSION) {
        return "the pool's version is not this sidecar's";
    }
    memcpy(&p->geometry, &h->geometry, sizeof(p->geometry));
    why = cap_layout_check(&p->geometry, p->mapped);
    if (why != NULL) {
        return why;
    }
    memcpy(p->node_id, h->node_id, sizeof(p->node_id));
    return is_node_id(p->node_id) ? NULL : "the nodeId is no UUID";
}

/* ---- places ---- */

/* Memory that is not used is not touched. */
static int make_places(pool *p, uint32_t n) {
    free(p->blocks);
    p->blocks = calloc(n, sizeof(*p->blocks));
    p->max_blocks = n;
    p->nblocks = 0;
    p->free_blocks = POOL_NO_BLOCK;
    if (p->lent == NULL) {
        p->lent = malloc(p->geometry.nblocks * sizeof(*p->lent));
    }
    if (p->blocks == NULL || p->lent == NULL) {
        return -1;
    }
    for (uint32_t i = 0; i < p->geometry.nblocks; i++) {
        p->lent[i] = POOL_AWAY;
    }
    return 0;
}

int pool_use_spool(pool *p, spool *s) {
    p->spool = s;
    return make_places(p, p->geometry.nblocks + spool_slots(s));
}

static uint32_t take_place(pool *p) {
    uint32_t place = p->free_blocks;

    if (place != POOL_NO_BLOCK) {
        p->free_blocks = p->blocks[place].next_free;
        return place;
    }
    return p->nblocks < p->max_blocks ? p->nblocks++ : POOL_NO_BLOCK;
}

static void free_place(pool *p, uint32_t place) {
    p->blocks[place].next_free = p->free_blocks;
    p->free_blocks = place;
}

static pool *open_any(int fd, uint64_t limit, const char **why) {
    pool *p = calloc(1, sizeof(*p));
    void *base;

    *why = pool_no_memory;
    if (p == NULL) {
        return NULL;
    }
    p->seq = 1;
    TAILQ_INIT(&p->oldest);
    *why = check_fd(fd, limit, p);
    if (*why != NULL) {
        free(p);
        return NULL;
    }
    base = mmap(NULL, p->mapped, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (base == MAP_FAILED) {
        *why = pool_not_mapped;
        free(p);
        return NULL;
    }
    p->header = base;
    /* a core dump must not hold captured bytes */
    (void)madvise(base, p->mapped, MADV_DONTDUMP);
    *why = copy_header(p);
    if (*why == NULL) {
        *why = make_places(p, p->geometry.nblocks) != 0 ? pool_no_memory : NULL;
    }
    if (*why != NULL) {
        pool_free(p);
        return NULL;
    }
    return p;
}

pool *pool_open(int fd, uint64_t limit, const char **why) {
    *why = check_seals(fd);
    return *why == NULL ? open_any(fd, limit, why) : NULL;
}

pool *pool_open_file(int fd, const char **why) {
    return open_any(fd, UINT64_MAX, why);
}

static void free_slabs(pool *p) {
    struct pool_slab *next;

    for (struct pool_slab *s = p->slabs; s != NULL; s = next) {
        next = s->next;
        free(s);
    }
    p->slabs = NULL;
    p->nslabs = 0;
    p->free_refs = NULL;
}

void pool_free(pool *p) {
    free_slabs(p);
    munmap(p->header, p->mapped);
    free(p->old);
    free(p->lent);
    free(p->blocks);
    free(p);
}

int pool_topic(const pool *p, unsigned topic, char name[CAP_TOPIC_NAME_SIZE]) {
    const cap_header *h = p->header;

    memset(name, 0, CAP_TOPIC_NAME_SIZE);
    if (topic == 0) {
        return 0;
    }
    if (topic > CAP_TOPIC_NAMES ||
        topic > atomic_load_explicit(&h->ntopics, memory_order_acquire)) {
        return -1;
    }
    memcpy(name, h->topic_names[topic - 1], CAP_TOPIC_NAME_SIZE - 1);
    return cap_topic_name_good(name, strlen(name)) ? 0 : -1;
}

uint64_t pool_own(pool *p) {
    uint64_t was = atomic_load_explicit(&p->header->owner_generation,
                                        memory_order_relaxed);

    do {
        if (was == CAP_POOL_WITHDRAWN) {
            return 0;
        }
    } while (!atomic_compare_exchange_weak_explicit(
        &p->header->owner_generation, &was, was + 1, memory_order_acq_rel,
        memory_order_relaxed));
    p->owner = was + 1;
    return p->owner;
}

/* ---- adoption ---- */

static int by_first_seq(const void *a, const void *b) {
    const struct pool_old *x = a, *y = b;

    return (x->first_seq > y->first_seq) - (x->first_seq < y->first_seq);
}

void pool_adopt_counters(pool *p) {
    cap_sidecar_counters *s = &p->header->sidecar;

    p->count.captured =
        atomic_load_explicit(&s->captured, memory_order_relaxed);
    p->count.truncated =
        atomic_load_explicit(&s->truncated, memory_order_relaxed);
    p->count.records = atomic_load_explicit(&s->records, memory_order_relaxed);
    p->count.bytes = atomic_load_explicit(&s->bytes, memory_order_relaxed);
    p->count.doubled = atomic_load_explicit(&s->doubled, memory_order_relaxed);
    p->count.taken = p->count.captured;
    for (int i = 0; i < CAP_REASON_CELLS; i++) {
        p->count.reason[i] =
            atomic_load_explicit(&s->reason[i], memory_order_relaxed);
        p->count.taken += p->count.reason[i];
    }
}

static int add_old(pool *p, uint32_t *room, struct pool_old old) {
    struct pool_old *more;

    if (p->nold == *room) {
        more = realloc(p->old, 2 * (size_t)*room * sizeof(*p->old));
        if (more == NULL) {
            return -1;
        }
        p->old = more;
        *room *= 2;
    }
    p->old[p->nold++] = old;
    return 0;
}

/*
 * How many of its blocks the spool has, for a successor.  Raised when one is
 * there, lowered before it goes: so there are never fewer, unless some were
 * damaged, or given up.
 */
static void show_spooled(pool *p, uint32_t n) {
    if (pool_owned(p)) {
        atomic_store_explicit(&p->header->spooled, n, memory_order_release);
        step(STEP_SPOOLED);
    }
}

static void leave_spool(pool *p, uint32_t slot) {
    p->nspooled -= p->nspooled > 0;
    show_spooled(p, p->nspooled);
    spool_release(p->spool, slot);
}

/* What the spool has of this pool. */
static int find_spooled(pool *p, uint32_t *room) {
    uint32_t slot = 0, found = 0;
    uint32_t told =
        atomic_load_explicit(&p->header->spooled, memory_order_acquire);

    p->nspooled = told;
    while (p->spool != NULL &&
           (slot = spool_claim(p->spool, p->node_id, slot)) != SPOOL_NO_SLOT) {
        const cap_block *b = spool_block(p->spool, slot);

        found++;
        if (!pool_is_old(p, b->first_seq)) {
            leave_spool(p, slot);
        } else if (add_old(p, room,
                           (struct pool_old){b->first_seq, POOL_NO_BLOCK, slot,
                                             b->generation}) != 0) {
            return -1;
        }
    }
    if (found < told) {
        p->bad = "blocks of it are missing in the spool";
    }
    return 0;
}

/* A block that was on its way to the spool is in both places. */
static void drop_twins(pool *p) {
    uint32_t kept = 0;

    for (uint32_t i = 0; i < p->nold; i++) {
        struct pool_old *last = kept > 0 ? &p->old[kept - 1] : NULL;

        if (last == NULL || last->first_seq != p->old[i].first_seq ||
            last->slot == p->old[i].slot) {
            p->old[kept++] = p->old[i];
        } else if (last->slot != SPOOL_NO_SLOT) {
            leave_spool(p, last->slot);
            *last = p->old[i];
        } else {
            leave_spool(p, p->old[i].slot);
        }
    }
    p->nold = kept;
}

/* Those of one that an owner had put there before it could say so, too. */
static void recount_spooled(pool *p) {
    uint32_t n = 0;

    for (uint32_t i = 0; i < p->nold; i++) {
        n += p->old[i].slot != SPOOL_NO_SLOT;
    }
    p->nspooled = n;
    show_spooled(p, n);
}

/*
 * The worker goes on meanwhile.  What is lent stays lent: nothing is given back
 * before all is known here.  Blocks that it takes begin after offered_seq, which
 * is there before their generation is odd; they come by the ring.
 */
const char *pool_adopt(pool *p) {
    const cap_header *h = p->header;
    uint32_t room = p->geometry.nblocks;

    p->old = calloc(room, sizeof(*p->old));
    if (p->old == NULL) {
        return pool_no_memory;
    }
    p->adopted_seq = h->offered_seq;
    p->adopted_handed = h->offered_handed;
    p->ring_head = h->offered_tail;
    p->return_tail =
        atomic_load_explicit(&h->return_tail, memory_order_relaxed);
    for (uint32_t i = 0; i < p->geometry.nblocks; i++) {
        const cap_block *b = cap_block_at(p->header, &p->geometry, i);
        struct pool_old old = {.index = i, .slot = SPOOL_NO_SLOT};

        old.generation =
            atomic_load_explicit(&b->generation, memory_order_acquire);
        old.first_seq = b->first_seq;
        if ((old.generation & 1) && pool_is_old(p, old.first_seq)) {
            (void)add_old(p, &room, old); /* there is room for all of these */
        }
    }
    if (find_spooled(p, &room) != 0) {
        return pool_no_memory;
    }
    qsort(p->old, p->nold, sizeof(*p->old), by_first_seq);
    drop_twins(p);
    if (p->bad == NULL) {
        recount_spooled(p);
    }
    if (p->nold == 0) {
        p->seq = p->adopted_seq + 1;
    }
    pool_adopt_counters(p);
    return NULL;
}

/* ---- what a dead worker does no more ---- */

/* What a block or a slot is now, where it is still lent as that. */
static void come_back(_Atomic uint32_t *generation, uint32_t was) {
    uint32_t now = atomic_load_explicit(generation, memory_order_relaxed);

    if ((now & 1) && (now & 0xffffffu) == (was & 0xffffffu)) {
        atomic_store_explicit(generation, now + 1, memory_order_release);
    }
}

static void come_back_entry(pool *p, uint64_t entry) {
    uint32_t i = CAP_RETURN_INDEX(entry);

    if (CAP_RETURN_KIND(entry) == CAP_RETURN_BLOCK && i < p->geometry.nblocks) {
        come_back(&cap_block_at(p->header, &p->geometry, i)->generation,
                  CAP_RETURN_GEN(entry));
    } else if (CAP_RETURN_KIND(entry) == CAP_RETURN_SLOT &&
               i < p->geometry.nslots) {
        come_back(&cap_slot_at(p->header, &p->geometry, i)->generation,
                  CAP_RETURN_GEN(entry));
    }
}

/* All that was given back and not taken.  Done twice it is the same. */
static void come_back_all(pool *p) {
    cap_header *h = p->header;
    uint32_t tail = atomic_load_explicit(&h->return_tail, memory_order_acquire);
    uint32_t head = atomic_load_explicit(&h->return_head, memory_order_relaxed);

    if (tail - head > p->geometry.return_size) {
        return; /* the worker's memory was no worker's */
    }
    for (; head != tail; head++) {
        come_back_entry(
            p, atomic_load_explicit(cap_return_at(h, &p->geometry, head),
                                    memory_order_relaxed));
    }
    step(STEP_ORPHAN_RETURNS);
    atomic_store_explicit(&h->return_head, tail, memory_order_release);
}

/* No frame of the worker's has a later one. */
static uint64_t last_seq(pool *p) {
    uint64_t last = 0;

    for (uint32_t i = 0; i < p->geometry.nblocks; i++) {
        const cap_block *b = cap_block_at(p->header, &p->geometry, i);

        if ((atomic_load_explicit(&b->generation, memory_order_relaxed) & 1) &&
            b->first_seq > last) {
            last = b->first_seq;
        }
    }
    for (uint32_t i = 0; i < p->geometry.nslots; i++) {
        const cap_slot *s = cap_slot_at(p->header, &p->geometry, i);

        if ((atomic_load_explicit(&s->generation, memory_order_relaxed) & 1) &&
            s->taken_seq > last) {
            last = s->taken_seq;
        }
    }
    last += CAP_BLOCK_SIZE / sizeof(cap_frame);
    return last < CAP_SEQ_LAST ? last : CAP_SEQ_LAST - 1;
}

void pool_orphan(pool *p) {
    cap_header *h = p->header;

    pool_keep(p);
    pool_close(p);
    p->is_orphan = true;
    come_back_all(p);
    h->offered_tail = atomic_load_explicit(&h->ring_tail, memory_order_relaxed);
    h->offered_seq = last_seq(p);
    h->offered_handed =
        atomic_load_explicit(&h->worker.handed, memory_order_relaxed);
    step(STEP_ORPHAN);
}

/* For the system, where it can take memory out of the middle. */
static void spend_block(pool *p, uint32_t index, uint32_t generation) {
    cap_block *b = cap_block_at(p->header, &p->geometry, index);

    come_back(&b->generation, generation);
    step(STEP_SPENT);
    (void)madvise(b, CAP_BLOCK_SIZE, MADV_REMOVE);
    if (p->in_file && p->charged > 0) {
        p->charged--;
        spool_uncharge(p->spool, 1);
    }
}

/* ---- the owner ---- */

void pool_keep(pool *p) {
    atomic_store_explicit(&p->header->kept, 1, memory_order_release);
}

bool pool_owned(pool *p) {
    if (atomic_load_explicit(&p->header->owner_generation,
                             memory_order_acquire) != p->owner) {
        p->disowned = true;
    }
    return !p->disowned;
}

void pool_close(pool *p) {
    p->closed = true;
}

void pool_leave(pool *p) {
    p->closed = true;
    p->left = true;
}

/* ---- giving back ---- */

/*
 * The ring cannot overflow with a worker that takes what it gets: a block or
 * a slot comes back once before it is lent again.  With another worker only
 * entries of its own are overwritten.
 */
static void give_back(pool *p, uint64_t entry) {
    atomic_store_explicit(
        cap_return_at(p->header, &p->geometry, p->return_tail), entry,
        memory_order_relaxed);
    p->return_tail++;
    step(STEP_RETURN_ENTRY);
    atomic_store_explicit(&p->header->return_tail, p->return_tail,
                          memory_order_release);
    step(STEP_RETURNED);
}

/* The worker's memory is its own again. */
static void return_memory(pool *p, pool_block *b) {
    TAILQ_REMOVE(&p->oldest, b, oldest);
    p->held--;
    if (p->closed || !pool_owned(p)) {
        p->lent[b->index] = POOL_SPENT;
        if (!p->left && pool_owned(p)) {
            spend_block(p, b->index, b->generation);
        }
        return;
    }
    p->lent[b->index] = POOL_AWAY;
    give_back(p, CAP_RETURN_ENTRY(CAP_RETURN_BLOCK, b->generation, b->index));
    /* the worker: starved, fence, look for blocks */
    atomic_thread_fence(memory_order_seq_cst);
    if (atomic_load_explicit(&p->header->starved, memory_order_relaxed) != 0) {
        pool_wake(p);
    }
}

static void return_block(pool *p, uint32_t place) {
    pool_block *b = &p->blocks[place];

    if (b->slot == SPOOL_NO_SLOT) {
        return_memory(p, b);
    } else if (!p->left) {
        leave_spool(p, b->slot);
    }
    free_place(p, place);
}

/* ---- the spool ---- */

#define SPILL_BLOCKS 64
#define SPILL_NS 250000000ll

static bool is_crowded(const pool *p, int64_t now_ns) {
    const pool_block *b = TAILQ_FIRST(&p->oldest);
    uint64_t held = p->held, all = p->geometry.nblocks;

    return b != NULL && b->read &&
           (held > all * 3 / 4 ||
            (held > all / 2 && now_ns - b->opened_ns > SPILL_NS));
}

void pool_spill(pool *p, int64_t now_ns) {
    p->now_ns = now_ns;
    if (p->spool == NULL || p->closed) {
        return;
    }
    for (int i = 0; i < SPILL_BLOCKS && is_crowded(p, now_ns); i++) {
        pool_block *b = TAILQ_FIRST(&p->oldest);
        uint32_t slot = spool_put(p->spool, p->node_id, b->data);

        if (slot == SPOOL_NO_SLOT) {
            return;
        }
        show_spooled(p, ++p->nspooled);
        b->slot = slot;
        b->data = spool_block(p->spool, slot);
        return_memory(p, b);
        b->index = POOL_NO_BLOCK;
    }
}

void pool_return_slot(pool *p, uint32_t slot, uint32_t generation) {
    if (p->left || !pool_owned(p)) {
        return;
    }
    if (p->closed) {
        come_back(&cap_slot_at(p->header, &p->geometry, slot)->generation,
                  generation);
    } else {
        give_back(p, CAP_RETURN_ENTRY(CAP_RETURN_SLOT, generation, slot));
    }
}

/* ---- reading ---- */

static int bad(pool *p, const char *why) {
    if (p->bad == NULL) {
        p->bad = why;
    }
    return -1;
}

static int begin_block(pool *p, uint32_t place, uint32_t generation,
                       uint32_t order) {
    pool_block *b = &p->blocks[place];

    b->generation = generation;
    b->order = order;
    b->refs = 0;
    b->read = false;
    b->opened_ns = p->now_ns;
    p->reading = true;
    p->sealed = false;
    p->block = place;
    p->at = p->end = p->published = CAP_BLOCK_HEADER;
    return 1;
}

/* `order`: as if all blocks had come by the ring, for who asks how old one is. */
static int open_block(pool *p, uint32_t index, uint32_t generation,
                      uint32_t order) {
    uint32_t place;
    pool_block *b;

    if (p->lent[index] != POOL_AWAY) {
        return bad(p, "a block was handed over twice");
    }
    place = take_place(p);
    if (place == POOL_NO_BLOCK) {
        return bad(p, "there are more blocks than can be");
    }
    b = &p->blocks[place];
    b->data = (const char *)cap_block_at(p->header, &p->geometry, index);
    b->index = index;
    b->slot = SPOOL_NO_SLOT;
    TAILQ_INSERT_TAIL(&p->oldest, b, oldest);
    p->lent[index] = place;
    p->held++;
    return begin_block(p, place, generation, order);
}

static int open_spooled(pool *p, const struct pool_old *o, uint32_t order) {
    uint32_t place = take_place(p);
    pool_block *b = &p->blocks[place];

    if (place == POOL_NO_BLOCK) {
        return bad(p, "there are more blocks than can be");
    }
    b->data = spool_block(p->spool, o->slot);
    b->index = POOL_NO_BLOCK;
    b->slot = o->slot;
    return begin_block(p, place, o->generation, order);
}

static int next_old_block(pool *p) {
    uint32_t i = p->next_old++;
    const struct pool_old *o = &p->old[i];
    uint32_t order = p->ring_head - p->nold + i;

    if (o->first_seq < p->seq) {
        return bad(p, "blocks have the same frames");
    }
    p->seq = o->first_seq;
    p->by_ring = false;
    return o->index != POOL_NO_BLOCK
               ? open_block(p, o->index, o->generation, order)
               : open_spooled(p, o, order);
}

/* Takes the next block into work.  1, 0: there is none, -1. */
static int next_block(pool *p) {
    uint32_t tail =
        atomic_load_explicit(&p->header->ring_tail, memory_order_acquire);
    uint64_t entry;
    uint32_t index, generation;

    if (p->next_old < p->nold) {
        return next_old_block(p);
    }
    if (tail == p->ring_head) {
        return 0;
    }
    if (tail - p->ring_head > p->geometry.ring_size) {
        return bad(p, "the ring's end is out of range");
    }
    entry =
        atomic_load_explicit(cap_ring_at(p->header, &p->geometry, p->ring_head),
                             memory_order_relaxed);
    index = (uint32_t)entry;
    generation = (uint32_t)(entry >> 32);
    if (index >= p->geometry.nblocks) {
        return bad(p, "block out of range");
    }
    if (atomic_load_explicit(
            &cap_block_at(p->header, &p->geometry, index)->generation,
            memory_order_relaxed) != generation) {
        return bad(p, "a block's generation is not the ring's");
    }
    p->by_ring = true;
    return open_block(p, index, generation, p->ring_head);
}

static void end_block(pool *p) {
    p->reading = false;
    p->ring_head += p->by_ring;
    /* for who looks at the pool from outside; nothing depends on it */
    atomic_store_explicit(&p->header->ring_head, p->ring_head,
                          memory_order_relaxed);
    p->blocks[p->block].read = true;
    if (p->blocks[p->block].refs == 0) {
        return_block(p, p->block);
    }
}

/* How far the block in work may be read now.  0, or -1. */
static int look_further(pool *p) {
    const cap_block *b = (const void *)p->blocks[p->block].data;
    uint32_t value = atomic_load_explicit(&b->published, memory_order_acquire);
    uint32_t end = value & ~CAP_BLOCK_SEALED;

    if (end < CAP_BLOCK_HEADER || end > CAP_BLOCK_SIZE ||
        end % CAP_FRAME_ALIGN != 0) {
        return bad(p, "a block's published length is impossible");
    }
    if (end < p->end) {
        return bad(p, "a block's published length shrank");
    }
    p->published = value;
    p->end = end;
    p->sealed = (value & CAP_BLOCK_SEALED) != 0;
    return 0;
}

/* Makes at < end true.  1, 0: nothing is published, -1. */
static int have_bytes(pool *p) {
    for (;;) {
        if (!p->reading) {
            int rc = next_block(p);

            if (rc != 1) {
                return rc;
            }
        }
        if (p->at < p->end) {
            return 1;
        }
        if (!p->sealed) {
            if (look_further(p) != 0) {
                return -1;
            }
            if (p->at < p->end) {
                return 1;
            }
            if (!p->sealed) {
                return 0;
            }
        }
        end_block(p);
    }
}

int pool_read(pool *p, pool_frame *f) {
    const char *why;
    size_t left;
    int rc;

    if (p->bad != NULL) {
        return -1;
    }
    for (;;) {
        rc = have_bytes(p);
        if (rc != 1) {
            return rc;
        }
        left = p->end - p->at;
        if (left < sizeof(f->head)) {
            return bad(p, "a frame's header is cut");
        }
        memcpy(&f->head, p->blocks[p->block].data + p->at, sizeof(f->head));
        why = cap_frame_check(&f->head, left, p->seq, p->geometry.nslots);
        if (why != NULL) {
            return bad(p, why);
        }
        f->block = p->block;
        f->at = p->at + (uint32_t)sizeof(f->head);
        p->at += (uint32_t)CAP_FRAME_SPACE(f->head.size);
        p->seq++;
        if (f->head.type != CAP_FRAME_PAD) {
            return 1;
        }
    }
}

/* ---- refs ---- */

static frame_ref *new_ref(pool *p) {
    frame_ref *r = p->free_refs;

    if (r == NULL) {
        struct pool_slab *s = malloc(sizeof(*s));

        if (s == NULL) {
            return NULL;
        }
        s->next = p->slabs;
        p->slabs = s;
        p->nslabs++;
        for (size_t i = 0; i < SLAB_REFS; i++) {
            s->refs[i].next = p->free_refs;
            p->free_refs = &s->refs[i];
        }
        r = p->free_refs;
    }
    p->free_refs = r->next;
    p->refs++;
    r->next = NULL;
    return r;
}

frame_ref *pool_hold(pool *p, const pool_frame *f) {
    frame_ref *r = new_ref(p);

    if (r == NULL) {
        return NULL;
    }
    r->seq = f->head.seq;
    r->ts_ns = f->head.ts_ns;
    r->block = f->block;
    r->at = f->at;
    r->size = f->head.size;
    r->type = f->head.type;
    r->flags = f->head.flags;
    r->code = f->head.code;
    p->blocks[f->block].refs++;
    return r;
}

frame_ref *pool_make(pool *p, enum cap_frame_type type, uint16_t code,
                     int64_t ts_ns) {
    frame_ref *r = new_ref(p);

    if (r == NULL) {
        return NULL;
    }
    r->seq = CAP_SEQ_LAST;
    r->ts_ns = ts_ns;
    r->block = POOL_NO_BLOCK;
    r->at = 0;
    r->size = 0;
    r->type = (uint8_t)type;
    r->flags = 0;
    r->code = code;
    return r;
}

void pool_release(pool *p, frame_ref *r) {
    if (r->block != POOL_NO_BLOCK) {
        pool_block *b = &p->blocks[r->block];

        b->refs--;
        if (b->refs == 0 && b->read) {
            return_block(p, r->block);
        }
    }
    r->next = p->free_refs;
    p->free_refs = r;
    if (--p->refs == 0 && p->nslabs > KEPT_SLABS) {
        free_slabs(p); /* a burst is over */
    }
}

/* ---- waking ---- */

bool pool_unread(pool *p) {
    uint32_t head = p->ring_head;

    if (p->bad != NULL) {
        return false;
    }
    if (p->reading) {
        if (p->at < p->end) {
            return true;
        }
        if (!p->sealed) {
            const cap_block *b = (const void *)p->blocks[p->block].data;

            return atomic_load_explicit(&b->published, memory_order_acquire) !=
                   p->published;
        }
        head += p->by_ring;
    }
    return p->next_old < p->nold ||
           atomic_load_explicit(&p->header->ring_tail, memory_order_acquire) !=
               head;
}

/*
 * Here: state = asleep, fence, look for bytes.  Worker: publish bytes, fence,
 * look at the state.  One of both sees what the other did, so no wake is
 * missed.
 */
bool pool_sleep(pool *p, enum cap_reader_state state) {
    atomic_store_explicit(&p->header->reader_state, state,
                          memory_order_seq_cst);
    atomic_thread_fence(memory_order_seq_cst);
    if (!pool_unread(p)) {
        return false;
    }
    pool_awake(p);
    return true;
}

void pool_awake(pool *p) {
    atomic_store_explicit(&p->header->reader_state, CAP_READER_AWAKE,
                          memory_order_relaxed);
}

/* ---- counters ---- */

/* Only we write these cells, so that a plain store shows the new value. */
#define SHOW(p, cell)                                                          \
    atomic_store_explicit(&(p)->header->sidecar.cell, (p)->count.cell,         \
                          memory_order_relaxed)

void pool_count_taken(pool *p) {
    p->count.taken++;
    p->count.open++;
    SHOW(p, open);
    SHOW(p, taken);
}

static void count_ended(pool *p) {
    p->count.open--;
    SHOW(p, open);
}

void pool_count_captured(pool *p, bool truncated) {
    p->count.captured++;
    SHOW(p, captured);
    if (truncated) {
        p->count.truncated++;
        SHOW(p, truncated);
    }
    count_ended(p);
}

void pool_count_reason(pool *p, unsigned reason) {
    p->count.reason[reason]++;
    SHOW(p, reason[reason]);
    count_ended(p);
}

void pool_count_class(pool *p, unsigned class) {
    if (class == CAP_ENDING_CAPTURED || class == CAP_ENDING_TRUNCATED) {
        pool_count_captured(p, class == CAP_ENDING_TRUNCATED);
    } else {
        pool_count_reason(p, class);
    }
}

void pool_count_missing(pool *p, unsigned class, uint64_t n) {
    if (n > 0) {
        p->count.taken += n - 1;
        p->count.open += n - 1;
        if (class == CAP_ENDING_CAPTURED || class == CAP_ENDING_TRUNCATED) {
            p->count.captured += n - 1;
        } else {
            p->count.reason[class] += n - 1;
        }
        p->count.open -= n - 1;
        pool_count_taken(p);
        pool_count_class(p, class);
    }
}

void pool_ending(pool *p, unsigned class, uint64_t n) {
    atomic_store_explicit(&p->header->sidecar.ending, CAP_ENDING(class, n),
                          memory_order_release);
}

void pool_doubling(pool *p, uint64_t n) {
    atomic_store_explicit(&p->header->sidecar.doubled_next,
                          p->count.doubled + n, memory_order_relaxed);
}

void pool_doubled(pool *p) {
    p->count.doubled = atomic_load_explicit(&p->header->sidecar.doubled_next,
                                            memory_order_relaxed);
    SHOW(p, doubled);
}

void pool_count_record(pool *p, uint64_t bytes) {
    p->count.records++;
    p->count.bytes += bytes;
    SHOW(p, records);
    SHOW(p, bytes);
}
