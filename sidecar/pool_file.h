/*
 * Pools whose worker has gone, as files: DIR/pools/NODEID, with the layout of
 * wire/layout.h.  Only what is lent takes room there; blocks that are in the
 * spool already stay there.
 *
 *   copy block by block -> slots, intents, header -> rename -> mapped in the
 *   memory's place, so that all pointers stay right -> the memory goes
 *
 * Until the rename the memory is the pool, from then on the file is; nothing is
 * written to the pool between.  All that will be written there is allocated, so
 * that a full disk is an answer, and the pool stays in memory.
 *
 * Nothing is synced.  So a file says in which run of the host (boot.h) it was
 * written, and after that run nobody goes on with it.
 *
 * The worker may live, against all it has said, and write to its memory still:
 * which blocks are lent is taken from our own books.
 */
#ifndef SIDECAR_POOL_FILE_H
#define SIDECAR_POOL_FILE_H

#include "sidecar/pool.h"

typedef struct pool_file pool_file;

/* Begins to move `p`, which pool_orphan has seen, to its spool.  NULL with
   errno: ENOSPC is also that spool.size has no room for it. */
pool_file *pool_file_begin(pool *p);

/* Moves some more.  1: there is more; 0: `p` is in its file; -1 with errno: it
   is where it was. */
int pool_file_step(pool_file *f);

/* After -1, or 0, or in the middle: then it stays where it was. */
void pool_file_free(pool_file *f);

/* Of a pool that pool_open_file has opened: its room counts. */
void pool_file_charge(pool *p, spool *s);

/* It is settled, or another is right.  Whether there was one. */
bool pool_file_remove(spool *s, const pool *p);

/* Whether what is in `fd` was written by pool_file_begin in this run of the
   host; `h` has been read from there. */
bool pool_file_is_sound(const cap_header *h);

/* Removes what a process that died was about to make.  Before any pool is moved. */
void pool_file_clean(spool *s);

typedef const char *pool_file_take(void *owner, int fd, const char *name);

/*
 * Calls take(owner, fd, name) for each pool that is there; `fd` is closed
 * afterwards.  One for which it returns why it cannot be taken is set aside as
 * NAME.damaged, logged and counted, and so is what is no pool's file; but not
 * where that may pass (pool_may_pass).  Returns why that was for the last such
 * one: they are to be tried again; else NULL.
 */
const char *pool_file_each(spool *s, pool_file_take *take, void *owner);

#endif
