/* Between the files of a pool: pool.c, its memory; pool_adopt.c, what an owner
   before us has left; pool_read.c, frames; pool_count.c. */
#ifndef SIDECAR_POOL_INTERNAL_H
#define SIDECAR_POOL_INTERNAL_H

#include "sidecar/pool.h"

/* A block that was lent when the pool was offered. */
struct pool_old {
    uint64_t first_seq;
    uint32_t index; /* or POOL_NO_BLOCK: it is in the spool */
    uint32_t slot;
    uint32_t generation;
};

/* pool.c */

/* A place in pool.blocks, or POOL_NO_BLOCK. */
uint32_t pool_take_place(pool *p);
void pool_free_place(pool *p, uint32_t place);

/* A block or a slot is lent no more, where it still is as `was` has it. */
void pool_come_back(_Atomic uint32_t *generation, uint32_t was);

/* Nothing needs the block any more. */
void pool_return_block(pool *p, uint32_t place);

/*
 * How many of its blocks the spool has, for a successor.  Raised when one is
 * there, lowered before it goes: so there are never fewer, unless some were
 * damaged, or given up.
 */
void pool_show_spooled(pool *p, uint32_t n);
/* Lowered, and gone. */
void pool_leave_spool(pool *p, uint32_t slot);

/* pool_read.c: of all refs */
void pool_free_slabs(pool *p);

#endif
