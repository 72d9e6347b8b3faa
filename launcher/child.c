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

#define FIRST_FD 3

/* As snprintf, which is no system call. */
static void write_pid(char *to, pid_t pid) {
    char digits[16];
    int n = 0;
    for (; pid > 0; pid /= 10)
        digits[n++] = (char)('0' + pid % 10);
    while (n > 0)
        *to++ = digits[--n];
    *to = '\0';
}

/* First out of the way of each other, then to their places. */
static void receive(const child_gift *gift) {
    static char var[32] = "LISTEN_PID=";
    static int high[4096];
    char **env = gift->env;
    for (unsigned i = 0; i < gift->nfds; i++)
        high[i] =
            fcntl(gift->fds[i], F_DUPFD_CLOEXEC, FIRST_FD + (int)gift->nfds);
    for (unsigned i = 0; i < gift->nfds; i++)
        if (high[i] == -1 || dup2(high[i], FIRST_FD + (int)i) == -1)
            _exit(127);
    write_pid(var + 11, getpid());
    while (*env != NULL)
        env++;
    *env = var;
}

/* Between fork and exec: other threads may hold locks, so nothing but system
   calls. */
static void become(char *const argv[], pid_t parent, bool quiet,
                   const child_gift *gift) {
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
    if (gift != NULL) {
        receive(gift);
        execve(argv[0], argv, gift->env);
    } else
        execv(argv[0], argv);
    _exit(127);
}

static int start(child *c, char *const argv[], bool quiet,
                 const child_gift *gift) {
    pid_t parent = getpid(), pid = fork();
    if (pid == -1)
        return -1;
    if (pid == 0)
        become(argv, parent, quiet, gift);
    setpgid(pid, pid); /* whoever of the two comes first */
    c->pid = pid;
    return 0;
}

int child_start(child *c, char *const argv[], bool quiet) {
    return start(c, argv, quiet, NULL);
}

int child_start_with(child *c, char *const argv[], const child_gift *gift) {
    return start(c, argv, false, gift);
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
