/*
 * The log pump: what NGINX, the sidecar and the launcher itself say.
 *
 *     standard error of all three -> pipe -> ring of PUMP_SIZE -> stdout
 *
 * Nobody who writes ever waits: the pipe does not block, a full ring drops
 * whole lines and counts them, and a thread of its own writes to standard
 * output, which may not be read for as long as it likes.
 *
 * Lines come out as `[LEVEL] 2025-01-31 23:59:59 ...`.
 */
#ifndef LAUNCHER_PUMP_H
#define LAUNCHER_PUMP_H

#include <stddef.h>

#include "sidecar/loop.h"

#define PUMP_SIZE (256 * 1024)
#define PUMP_LINE 4096

typedef struct pump pump;

/* Makes the pipe and puts its end in the place of standard error.  NULL with
   errno. */
pump *pump_open(loop *l);

/* Reads what is left, gives standard output `ms` to take it, and puts the old
   standard error back. */
void pump_close(pump *p, int ms);

/* One line as it came, as it goes out; without line breaks.  `now` is the time
   for lines that bring none.  Returns the length. */
size_t pump_line(const char *line, const char *now, char *into, size_t size);

#endif
