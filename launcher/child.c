#define _GNU_SOURCE 1

#include "launcher/child.h"

#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

/* Between fork and exec: other threads may hold locks, so nothing but system
   calls. */
static void become(char *const argv[], pid_t parent, bool quiet) {
    sigset_t none;
    int null = open("/dev/null", O_RDWR);
    setpgid(0, 0);
    prctl(PR_SET_PDEATHSIG, SIGTERM);
    if (getppid() != parent)
        _exit(127);
    if (null != -1)
        dup2(null, STDIN_FILENO);
    dup2(quiet && null != -1 ? null : STDERR_FILENO, STDOUT_FILENO);
    signal(SIGPIPE, SIG_DFL);
    sigemptyset(&none);
    sigprocmask(SIG_SETMASK, &none, NULL);
    execv(argv[0], argv);
    _exit(127);
}

int child_start(child *c, char *const argv[], bool quiet) {
    pid_t parent = getpid(), pid = fork();
    if (pid == -1)
        return -1;
    if (pid == 0)
        become(argv, parent, quiet);
    setpgid(pid, pid); /* whoever of the two comes first */
    c->pid = pid;
    return 0;
}

void child_signal(const child *c, int number) {
    if (c->pid > 0)
        kill(c->pid, number);
}

void child_signal_all(const child *c, int number) {
    if (c->pid > 0)
        kill(-c->pid, number);
}

const char *child_end(int status, char *into, unsigned long size) {
    if (WIFSIGNALED(status))
        snprintf(into, size, "signal %d (%s)", WTERMSIG(status),
                 strsignal(WTERMSIG(status)));
    else if (WEXITSTATUS(status) == 127)
        snprintf(into, size, "status 127: it could not be executed");
    else
        snprintf(into, size, "status %d", WEXITSTATUS(status));
    return into;
}
