/* Frames, from blocks in the order of `seq`; and what holds them. */
#include "sidecar/pool_internal.h"

#include <stdlib.h>
#include <string.h>

#define SLAB_REFS 1023
#define KEPT_SLABS 4

struct pool_slab {
    struct pool_slab *next;
    frame_ref refs[SLAB_REFS];
};

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
    place = pool_take_place(p);
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
    uint32_t place = pool_take_place(p);
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
        pool_return_block(p, p->block);
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

void pool_free_slabs(pool *p) {
    struct pool_slab *next;

    for (struct pool_slab *s = p->slabs; s != NULL; s = next) {
        next = s->next;
        free(s);
    }
    p->slabs = NULL;
    p->nslabs = 0;
    p->free_refs = NULL;
}

void pool_release(pool *p, frame_ref *r) {
    if (r->block != POOL_NO_BLOCK) {
        pool_block *b = &p->blocks[r->block];

        b->refs--;
        if (b->refs == 0 && b->read) {
            pool_return_block(p, r->block);
        }
    }
    r->next = p->free_refs;
    p->free_refs = r;
    if (--p->refs == 0 && p->nslabs > KEPT_SLABS) {
        pool_free_slabs(p); /* a burst is over */
    }
}
