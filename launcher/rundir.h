/*
 * The run directory: sockets, configurations, temporary files; private.
 */
#ifndef LAUNCHER_RUNDIR_H
#define LAUNCHER_RUNDIR_H

#include <stdbool.h>
#include <stddef.h>
#include <stdio.h>

typedef struct {
    char path[80]; /* short: a socket's path has at most 107 bytes */
    bool ours;     /* made here, so removed at the end */
} rundir;

/* `wanted`, or a new directory where there is room when it is NULL.
   `others`: NGINX's workers are another user, and must get through it to the
   socket.  0, or -1 after a line on `err`. */
int rundir_make(rundir *d, const char *wanted, bool others, FILE *err);
void rundir_remove(const rundir *d);

/* Puts a file there as a whole, by renaming; mode 0600.  0, or -1 with
   errno. */
int rundir_put(const rundir *d, const char *name, const char *text, size_t len);

#endif
