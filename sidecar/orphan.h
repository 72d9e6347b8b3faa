/*
 * Pools that outlived their sidecar: those in the spool's files, whose worker has
 * gone, and those that the keeper has, whose worker may live.
 *
 *   it lives   (it holds a lock on the memory, fcntl's, which the kernel drops
 *              with the process): it comes by itself, with a HELLO
 *   it is dead links_adopt_orphan
 *
 * What cannot be taken over for want of memory or descriptors is tried again for
 * a minute, and stays where it is, for the next sidecar, after that.  When all
 * have been taken over, and every worker that lives has had its time, the spool
 * is swept.
 */
#ifndef SIDECAR_ORPHAN_H
#define SIDECAR_ORPHAN_H

#include "sidecar/keeper.h"
#include "sidecar/link.h"

typedef struct orphans orphans;

/* After so long no worker comes back any more, since that has taken 4 s at most.
   A test may shorten it. */
extern int64_t orphans_sweep_ns;

/* Takes over what needs no worker, and looks after the rest.  `s` may be NULL.
   NULL: out of memory. */
orphans *orphans_open(loop *l, links *ls, spool *s, keeper *k, const totals *t);
void orphans_close(orphans *o);

#endif
