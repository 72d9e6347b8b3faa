/* A pool that has had an owner before us, and one whose worker is dead. */
#include "sidecar/pool_internal.h"

#include <stdlib.h>

#include "sidecar/step.h"

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
            pool_leave_spool(p, slot);
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
            pool_leave_spool(p, last->slot);
            *last = p->old[i];
        } else {
            pool_leave_spool(p, p->old[i].slot);
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
    pool_show_spooled(p, n);
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

static void come_back_entry(pool *p, uint64_t entry) {
    uint32_t i = CAP_RETURN_INDEX(entry);

    if (CAP_RETURN_KIND(entry) == CAP_RETURN_BLOCK && i < p->geometry.nblocks) {
        pool_come_back(&cap_block_at(p->header, &p->geometry, i)->generation,
                       CAP_RETURN_GEN(entry));
    } else if (CAP_RETURN_KIND(entry) == CAP_RETURN_SLOT &&
               i < p->geometry.nslots) {
        pool_come_back(&cap_slot_at(p->header, &p->geometry, i)->generation,
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
