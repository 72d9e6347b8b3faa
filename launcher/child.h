/* A process of the unit. */
#ifndef LAUNCHER_CHILD_H
#define LAUNCHER_CHILD_H

#include <stdbool.h>
#include <sys/types.h>

typedef struct {
    const char *name;
    pid_t pid; /* 0: it does not run */
} child;

/* Starts it in a process group of its own, with output to standard error
   (`quiet`: to nowhere), and so that it ends with us.  0, or -1 with errno. */
int child_start(child *c, char *const argv[], bool quiet);

/* To the process alone, or to all of its group. */
void child_signal(const child *c, int number);
void child_signal_all(const child *c, int number);

/* How it has ended, as words. */
const char *child_end(int status, char *into, unsigned long size);

#endif
