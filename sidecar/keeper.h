/*
 * The keeper: whoever starts us again and holds descriptors meanwhile, so that
 * pools outlive worker and sidecar both.  systemd's protocol for it, which
 * capture-proxy speaks, too:
 *
 *   to $NOTIFY_SOCKET   READY=1, STOPPING=1
 *                       FDSTORE=1, FDNAME=pool-NODEID, with the descriptor
 *                       FDSTOREREMOVE=1, FDNAME=pool-NODEID
 *   at the start        $LISTEN_FDS descriptors from 3 on, for $LISTEN_PID, with
 *                       $LISTEN_FDNAMES
 *
 * $FDSTORE says how many it takes; without, it is told all the same, and nobody
 * relies on it.  Nothing here waits.
 */
#ifndef SIDECAR_KEEPER_H
#define SIDECAR_KEEPER_H

#include <stdbool.h>

#include "sidecar/loop.h"

#define KEEPER_NAME 64 /* bytes of a name, its end included */

typedef struct keeper keeper;

/* Takes what was kept.  Call it before anything else opens descriptors.  NULL:
   out of memory. */
keeper *keeper_open(void);
void keeper_close(keeper *k);

/* From now on what cannot be said at once is said later. */
void keeper_use_loop(keeper *k, loop *l);

/* Tells it "READY=1" and the like. */
void keeper_say(keeper *k, const char *state);

/* Gives it a copy of `fd`; one that it has already is no other.  True: it has
   been told, and is known to keep what it gets. */
bool keeper_store(keeper *k, const char *name, int fd);
void keeper_remove(keeper *k, const char *name);

/* The next of the descriptors that were kept, and its name: the caller's now.
   -1: there is none. */
int keeper_next(keeper *k, char name[KEEPER_NAME]);
/* The one of this name, or -1. */
int keeper_named(keeper *k, const char *name);

#endif
