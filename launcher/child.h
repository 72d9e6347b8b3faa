/* A process of the unit. */
#ifndef LAUNCHER_CHILD_H
#define LAUNCHER_CHILD_H

#include <stdbool.h>
#include <sys/types.h>

typedef struct {
    const char *name;
    pid_t pid; /* 0: it does not run */
} child;

/* Descriptors that a child gets as systemd gives them: from 3 on, with
   $LISTEN_PID beside what `env` has (which needs room for one more). */
typedef struct {
    char **env;
    const int *fds;
    unsigned nfds;
} child_gift;

/* Starts it in a process group of its own, with output to standard error
   (`quiet`: to nowhere), and so that it ends with us.  0, or -1 with errno. */
int child_start(child *c, char *const argv[], bool quiet);
int child_start_with(child *c, char *const argv[], const child_gift *gift);

/* To the process alone, or to all of its group. */
void child_signal(const child *c, int number);
void child_signal_all(const child *c, int number);

/* How it has ended, as words. */
const char *child_end(int status, char *into, unsigned long size);

#endif
