/*
 * NGINX and the sidecar as one unit, under one process that may be PID 1.
 *
 *     start    the sidecar, then NGINX as soon as its socket is there
 *     TERM     NGINX finishes its requests, then the sidecar drains; both
 *              have a deadline
 *     HUP      NGINX reads its configuration and certificates again
 *
 * What NGINX's death ends, and what the sidecar's does not: without NGINX
 * there is no proxy, so the unit ends with 1; without the sidecar clients are
 * served all the same, so it is started again.
 */
#ifndef LAUNCHER_UNIT_H
#define LAUNCHER_UNIT_H

#include "launcher/nginx_conf.h"
#include "launcher/rundir.h"
#include "launcher/settings.h"

/* Exit statuses. */
#define UNIT_OK 0
#define UNIT_FAILED 1  /* it did not start, or NGINX has died */
#define UNIT_USAGE 2   /* the flags are wrong */
#define UNIT_PENDING 3 /* the sidecar could not hand over all that it had */

/* Blocks the signals that the unit answers: before anything is started, so
   that PID 1 does not miss one. */
void unit_block_signals(void);

/* Runs `argv` with standard error as it is, and waits.  Its exit status. */
int unit_check(char *const argv[]);

/* Runs until both have ended; returns the exit status. */
int unit_run(const settings *s, const rundir *d);

#endif
