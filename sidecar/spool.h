/*
 * The disk spool: a second home for blocks of pools whose memory is needed.
 *
 *   DIR/blocks    a table of slots, then slots of 64 KiB: whole blocks, as they
 *                 were in a worker's memory
 *   DIR/pools/    pools whose worker has gone, each a file with a pool's layout
 *                 (pool_file.h)
 *   DIR/totals    totals.h
 *
 * A block that is here is as good as in memory: it is mapped, frames keep their
 * place in it, and what has been acknowledged of it is in the pool's slots, as
 * ever.  So there is no other order, no other format, and nothing to replay:
 * a successor finds blocks by their pool's nodeId, and goes on.
 *
 * The file outlives the process, also by kill -9, not a host that dies before
 * its caches are written: the pools are gone then as well, so that one of
 * another run of the host (boot.h) is emptied.  It grows by fallocate(), so that
 * a full disk is an answer and no signal, and is emptied when no block is left.  A slot has a checksum, looked at when a process finds
 * what another one wrote.
 *
 * One thread; a slow disk holds up the sidecar, and no worker.
 */
#ifndef SIDECAR_SPOOL_H
#define SIDECAR_SPOOL_H

#include <stdbool.h>
#include <stdint.h>

#include "sidecar/config.h"
#include "wire/layout.h"

typedef struct spool spool;

#define SPOOL_NO_SLOT UINT32_MAX

/* Opens c->spool_path, with what is in it.  NULL after a line in the log. */
spool *spool_open(const config *c);
/* What is in it stays. */
void spool_close(spool *s);

/*
 * Copies a sealed block; `block` is where it is mapped.  Returns its slot, or
 * SPOOL_NO_SLOT: spool.size is reached, or the disk is full (logged, tried again
 * later).
 */
uint32_t spool_put(spool *s, const char *node_id, const void *block);
const void *spool_block(const spool *s, uint32_t slot);
void spool_release(spool *s, uint32_t slot);

/*
 * Slots of a pool, in no order: the next one from `from` on whose nodeId it is
 * and which nobody has claimed in this process, or SPOOL_NO_SLOT.  It is
 * claimed then.  One that is damaged is set aside: released, counted and logged.
 */
uint32_t spool_claim(spool *s, const char *node_id, uint32_t from);

/* What was claimed can be claimed again: its pool could not be taken over, and
   that is tried again. */
void spool_unclaim(spool *s, const char *node_id);

/* Releases all that a pool has there, whoever has claimed it.  Returns how many
   blocks that were. */
uint32_t spool_drop(spool *s, const char *node_id);

/* Releases what was found at the start and nobody has claimed: pools that have
   gone with their worker.  Returns how many blocks that were; logged and
   counted.  When each pool that may come has come; one that comes later is
   found to have a hole (cap_header.spooled). */
uint32_t spool_sweep(spool *s);

/* How many slots it may ever have. */
uint32_t spool_slots(const spool *s);

/* DIR. */
int spool_directory(const spool *s);

/* DIR/pools, for pool_file.h. */
int spool_pools(const spool *s);

/* Room that pools take there, in blocks: it counts against spool.size.  False:
   there is none. */
bool spool_charge(spool *s, uint32_t blocks);
/* For what is there already. */
void spool_charge_anyway(spool *s, uint32_t blocks);
void spool_uncharge(spool *s, uint32_t blocks);

#endif
