/*
 * Keeps descriptors for the sidecar while it is started again: the memory of
 * workers' pools, so that what is in it outlives worker and sidecar both.
 * systemd's FDSTORE protocol (sidecar/keeper.h) on a socket of the run directory.
 */
#ifndef LAUNCHER_KEEPER_H
#define LAUNCHER_KEEPER_H

#include "launcher/child.h"
#include "launcher/rundir.h"
#include "sidecar/loop.h"

typedef struct keeper keeper;

/* NULL with errno. */
keeper *keeper_open(loop *l, const rundir *d);
void keeper_close(keeper *k);

/* What a sidecar that is started now gets; valid until the next call. */
const child_gift *keeper_gift(keeper *k);

#endif
