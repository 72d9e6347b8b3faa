/*
 * The workers: the socket where they come, the handshake (wire/hello.h), the
 * doorbell, and what happens when one goes.
 *
 *   accepted --HELLO--> linked --hang-up--> ending --read to the end-->
 *      | 5 s, bad          |                                     finishing
 *      v                   | broke a rule                            |
 *   refused                +-----------------------------> finishing |
 *                                                     all settled:   v
 *                                             counters kept, unmapped, gone
 *
 * Whoever may open the socket may be a worker: its mode and owner, and
 * listen.allowed_uids, say who that is; never a pid.  Nothing that a peer
 * sends ends more than its own link.
 */
#ifndef SIDECAR_LINK_H
#define SIDECAR_LINK_H

#include <stdbool.h>
#include <stdint.h>

#include "sidecar/assemble.h"
#include "sidecar/config.h"
#include "sidecar/keeper.h"
#include "sidecar/loop.h"
#include "sidecar/metrics.h"
#include "sidecar/totals.h"

typedef struct links links;

/*
 * Takes the lock and listens.  NULL after a line in the log: another sidecar
 * owns the socket, or it cannot be made.  All must outlive it; `s` may be NULL.
 */
links *links_open(const config *c, loop *l, ledger *lg, spool *s);

/* With durability = disk (journal.h); before the loop runs. */
void links_use_journal(links *ls, journal *j);

/*
 * The same; `k` keeps the socket, so that workers can come while there is no
 * sidecar, and every pool's memory, until it is retired.
 */
links *links_open_kept(const config *c, loop *l, ledger *lg, spool *s,
                       keeper *k);

/*
 * Takes over a pool whose worker has gone for certain, in `fd` (which stays the
 * caller's; sealed like a worker's): what is in doubt there is settled, the rest
 * is sent, and its connections are closed; then it is retired like a worker's.
 * Its last owner may have died at any time, before or after its worker.
 * pools.size is no reason to refuse what is there already.  0, or -1 with *why.
 */
int links_adopt_orphan(links *ls, int fd, const char **why);

/* The same of a pool in a file of ours (pool_file.h), which nobody else can cut. */
int links_adopt_file(links *ls, int fd, const char **why);

/* The same of a pool that was recovered from the journal: its frames are numbered
   anew, so what the spool has of it is of no use. */
int links_adopt_recovered(links *ls, int fd, const char **why);

/*
 * Nobody goes on with the pool in this file: what was not settled in it is counted
 * as lost(maybe_lost), unless the journal has what clients waited for there; then
 * it is counted when that is recovered.  0, or -1 with *why: it is no sound pool.
 */
int links_lose_file(links *ls, int fd, const char **why);

/*
 * For the loop's hook: reads what the workers have published, a bounded
 * amount.  Returns how long the loop may sleep, in ns: 0 not at all, -1 for
 * ever.
 */
int64_t links_turn(links *ls);

/* Lets go of the pools whose worker has gone and which are settled.  For the
   loop's hook, after the ledger's turn. */
void links_retire(links *ls);

/*
 * Accepts no more workers and reads what is published now, to the end;
 * makes all of it due.  Linked workers are not read again.
 */
void links_drain(links *ls);

/* Counters of pools that are gone are added to `t`.  Before any pool comes. */
void links_use_totals(links *ls, totals *t);

enum links_pool {
    LINKS_NOT,    /* it is not here */
    LINKS_MEMORY, /* it is */
    LINKS_COPY    /* the same pool is, in other memory */
};

/* Whether a pool's memory is mapped here; inode 0 is nobody's. */
enum links_pool links_has(const links *ls, uint64_t device, uint64_t inode,
                          const char *node_id);

/* No worker that has gone is unsettled. */
bool links_settled(const links *ls);

/* All pools, linked and gone (a metrics_source). */
void links_sum(void *owner, metrics_exchanges *into);

/* Hangs up, unmaps; what is pending stays uncounted. */
void links_close(links *ls);

#endif
