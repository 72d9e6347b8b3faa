#define _GNU_SOURCE 1 /* pipe2 */

#include "sidecar/command.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <poll.h>
#include <signal.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

extern char **environ;

#define OUTPUT_MAX ((size_t)65536)
#define ERROR_MAX ((size_t)300)

/* ---- words ---- */

void command_split(char *line, char *argv[COMMAND_WORDS + 1]) {
    char *save;
    size_t n = 0;
    for (char *word = strtok_r(line, " \t", &save);
         word != NULL && n < COMMAND_WORDS; word = strtok_r(NULL, " \t", &save))
        argv[n++] = word;
    argv[n] = NULL;
}

/* Takes one word's quotes away, in place; what follows it, or NULL: a quote has
   no end. */
static char *unquote(char *at) {
    char *to = at, quote = '\0';
    for (; *at != '\0' && (quote != '\0' || strchr(" \t", *at) == NULL); at++) {
        if (*at == '\\' && quote != '\'' && at[1] != '\0')
            *to++ = *++at;
        else if (quote == '\0' && (*at == '"' || *at == '\''))
            quote = *at;
        else if (quote != '\0' && *at == quote)
            quote = '\0';
        else
            *to++ = *at;
    }
    char *rest = *at != '\0' ? at + 1 : at;
    *to = '\0';
    return quote == '\0' ? rest : NULL;
}

int command_split_quoted(char *line, char *argv[COMMAND_WORDS + 1]) {
    size_t n = 0;
    argv[0] = NULL;
    for (line += strspn(line, " \t"); *line != '\0';
         line += strspn(line, " \t")) {
        if (n == COMMAND_WORDS)
            return -1;
        argv[n++] = line;
        argv[n] = NULL;
        line = unquote(line);
        if (line == NULL)
            return -1;
    }
    return 0;
}

/* ---- the process ---- */

typedef struct {
    int fd;
    char *at;
    size_t len, size;
} pipe_end;

typedef struct {
    pid_t pid;
    pipe_end out, err;
} child;

static int64_t clock_ms(clockid_t clock) {
    struct timespec ts;
    clock_gettime(clock, &ts);
    return (int64_t)ts.tv_sec * 1000 + ts.tv_nsec / 1000000;
}

/* With the signals that we block, as a group that can be killed as one. */
static int spawn(child *c, char **argv, const int out[2], const int err[2]) {
    posix_spawn_file_actions_t files;
    posix_spawnattr_t attributes;
    sigset_t none, all;
    sigemptyset(&none);
    sigfillset(&all);
    posix_spawn_file_actions_init(&files);
    posix_spawn_file_actions_addopen(&files, 0, "/dev/null", O_RDONLY, 0);
    posix_spawn_file_actions_adddup2(&files, out[1], 1);
    posix_spawn_file_actions_adddup2(&files, err[1], 2);
    posix_spawnattr_init(&attributes);
    posix_spawnattr_setsigmask(&attributes, &none);
    posix_spawnattr_setsigdefault(&attributes, &all);
    posix_spawnattr_setpgroup(&attributes, 0);
    posix_spawnattr_setflags(&attributes, POSIX_SPAWN_SETSIGMASK |
                                              POSIX_SPAWN_SETSIGDEF |
                                              POSIX_SPAWN_SETPGROUP);
    int rc = posix_spawnp(&c->pid, argv[0], &files, &attributes, argv, environ);
    posix_spawn_file_actions_destroy(&files);
    posix_spawnattr_destroy(&attributes);
    return rc;
}

/* What is more than there is room for is read and dropped. */
static void read_some(pipe_end *p) {
    char drop[4096];
    size_t room = p->size - p->len;
    ssize_t n = read(p->fd, room > 0 ? p->at + p->len : drop,
                     room > 0 ? room : sizeof(drop));
    if (n == -1 && errno == EINTR)
        return;
    if (n <= 0) {
        close(p->fd);
        p->fd = -1;
    } else if (room > 0) {
        p->len += (size_t)n;
        p->at[p->len] = '\0';
    }
}

/* Until both pipes are closed; -1 when the time is over. */
static int read_until(child *c, int64_t until_ms) {
    while (c->out.fd != -1 || c->err.fd != -1) {
        struct pollfd fds[] = {{.fd = c->out.fd, .events = POLLIN},
                               {.fd = c->err.fd, .events = POLLIN}};
        int64_t left = until_ms - clock_ms(CLOCK_MONOTONIC);
        if (left <= 0)
            return -1;
        if (poll(fds, 2, (int)left) == -1 && errno != EINTR)
            return -1;
        if (fds[0].revents != 0)
            read_some(&c->out);
        if (fds[1].revents != 0)
            read_some(&c->err);
    }
    return 0;
}

/* It may have closed its output and go on. */
static int wait_until(pid_t pid, int64_t until_ms, int *status) {
    const struct timespec nap = {.tv_nsec = 10000000};
    for (;;) {
        pid_t rc = waitpid(pid, status, WNOHANG);
        if (rc == pid)
            return 0;
        if (rc == -1 || clock_ms(CLOCK_MONOTONIC) >= until_ms)
            return -1;
        nanosleep(&nap, NULL);
    }
}

/* 0 and its output, or -1 with the reason. */
static int run(child *c, const char *name, char **argv, int64_t timeout_ms,
               char *why, size_t size) {
    int out[2], err[2], status, rc;
    if (pipe2(out, O_CLOEXEC) == -1) {
        snprintf(why, size, "%s: %s", name, strerror(errno));
        return -1;
    }
    if (pipe2(err, O_CLOEXEC) == -1) {
        snprintf(why, size, "%s: %s", name, strerror(errno));
        close(out[0]);
        close(out[1]);
        return -1;
    }
    rc = spawn(c, argv, out, err);
    close(out[1]);
    close(err[1]);
    c->out.fd = out[0];
    c->err.fd = err[0];
    int64_t until = clock_ms(CLOCK_MONOTONIC) + timeout_ms;
    if (rc != 0) {
        snprintf(why, size, "%s: %s cannot be started: %s", name, argv[0],
                 strerror(rc));
        rc = -1;
    } else if (read_until(c, until) == -1 ||
               wait_until(c->pid, until, &status) == -1) {
        kill(-c->pid, SIGKILL);
        waitpid(c->pid, &status, 0);
        snprintf(why, size,
                 "%s: %s has not ended within %" PRId64 " ms (token.timeout)",
                 name, argv[0], timeout_ms);
        rc = -1;
    } else if (!WIFEXITED(status) || WEXITSTATUS(status) != 0) {
        c->err.at[strcspn(c->err.at, "\r\n")] = '\0';
        snprintf(why, size, "%s: %s ended with %s %d: %s", name, argv[0],
                 WIFEXITED(status) ? "status" : "signal",
                 WIFEXITED(status) ? WEXITSTATUS(status) : WTERMSIG(status),
                 c->err.at);
        rc = -1;
    }
    if (c->out.fd != -1)
        close(c->out.fd);
    if (c->err.fd != -1)
        close(c->err.fd);
    return rc;
}

char *command_run(const char *name, char **argv, int64_t timeout_ms, char *why,
                  size_t size) {
    char error[ERROR_MAX + 1] = "";
    child c = {.out = {.at = calloc(1, OUTPUT_MAX + 1), .size = OUTPUT_MAX},
               .err = {.at = error, .size = ERROR_MAX}};
    if (c.out.at == NULL)
        snprintf(why, size, "out of memory");
    else if (run(&c, name, argv, timeout_ms, why, size) == 0)
        return c.out.at;
    command_free(c.out.at);
    return NULL;
}

void command_free(char *output) {
    if (output != NULL)
        explicit_bzero(output, OUTPUT_MAX);
    free(output);
}
