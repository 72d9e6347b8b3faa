/* A token from a program of the operator's. */
#define _GNU_SOURCE 1 /* pipe2 */

#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <jansson.h>
#include <poll.h>
#include <signal.h>
#include <spawn.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include <openssl/evp.h>

#include "sidecar/kafka_token.h"

extern char **environ;

#define OUTPUT_MAX ((size_t)65536)
#define ERROR_MAX ((size_t)300)
#define ARGUMENTS_MAX 64

/* ---- what it printed ---- */

/* The payload between the two dots; NULL when there is none. */
static json_t *jwt_payload(const char *token) {
    const char *at = strchr(token, '.'), *end;
    if (at == NULL || (end = strchr(++at, '.')) == NULL)
        return NULL;
    size_t len = (size_t)(end - at), padded = (len + 3) / 4 * 4;
    char *text = malloc(padded + 1), *decoded = malloc(padded + 1);
    json_t *payload = NULL;
    if (text != NULL && decoded != NULL) {
        memset(text, '=', padded);
        for (size_t i = 0; i < len; i++)
            text[i] = at[i] == '-' ? '+' : at[i] == '_' ? '/' : at[i];
        int n = EVP_DecodeBlock((unsigned char *)decoded,
                                (const unsigned char *)text, (int)padded);
        n -= (int)(padded - len);
        if (n > 0)
            payload = json_loadb(decoded, (size_t)n, 0, NULL);
    }
    free(text);
    free(decoded);
    return payload;
}

static int read_jwt(const char *text, kafka_token *into) {
    json_t *payload = jwt_payload(text);
    json_t *exp = json_object_get(payload, "exp");
    const char *sub = json_string_value(json_object_get(payload, "sub"));
    int rc = -1;
    if (json_is_number(exp)) {
        into->expires_ms = (int64_t)(json_number_value(exp) * 1000);
        snprintf(into->principal, sizeof(into->principal), "%s",
                 sub != NULL ? sub : "");
        into->value = strdup(text);
        rc = into->value != NULL ? 0 : -1;
    }
    json_decref(payload);
    return rc;
}

/* What an OAuth token endpoint answers with. */
static int read_answer(const char *text, int64_t now_ms, kafka_token *into) {
    json_t *object = json_loads(text, 0, NULL);
    const char *token =
        json_string_value(json_object_get(object, "access_token"));
    json_t *in = json_object_get(object, "expires_in");
    int rc = -1;
    if (token != NULL && json_is_number(in)) {
        into->expires_ms = now_ms + (int64_t)(json_number_value(in) * 1000);
        into->value = strdup(token);
        rc = into->value != NULL ? 0 : -1;
    } else if (token != NULL) {
        rc = read_jwt(token, into);
    }
    json_decref(object);
    return rc;
}

int kafka_token_parse(const char *text, int64_t now_ms, kafka_token *into,
                      char *why, size_t size) {
    while (isspace((unsigned char)*text))
        text++;
    char *copy = strdup(text);
    if (copy == NULL) {
        snprintf(why, size, "out of memory");
        return -1;
    }
    size_t len = strlen(copy);
    while (len > 0 && isspace((unsigned char)copy[len - 1]))
        copy[--len] = '\0';
    int rc =
        *copy == '{' ? read_answer(copy, now_ms, into) : read_jwt(copy, into);
    explicit_bzero(copy, len);
    free(copy);
    if (rc == -1)
        snprintf(why, size,
                 "token.command printed neither a JWT with exp, nor JSON with "
                 "access_token and expires_in");
    return rc;
}

/* ---- the program ---- */

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

/* Splits `line` in place.  Its parts, with NULL behind them. */
static void split(char *line, char **argv) {
    char *save;
    size_t n = 0;
    for (char *word = strtok_r(line, " \t", &save);
         word != NULL && n < ARGUMENTS_MAX; word = strtok_r(NULL, " \t", &save))
        argv[n++] = word;
    argv[n] = NULL;
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
static int run(child *c, char **argv, int64_t timeout_ms, char *why,
               size_t size) {
    int out[2], err[2], status, rc;
    if (pipe2(out, O_CLOEXEC) == -1) {
        snprintf(why, size, "token.command: %s", strerror(errno));
        return -1;
    }
    if (pipe2(err, O_CLOEXEC) == -1) {
        snprintf(why, size, "token.command: %s", strerror(errno));
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
        snprintf(why, size, "token.command: %s cannot be started: %s", argv[0],
                 strerror(rc));
        rc = -1;
    } else if (read_until(c, until) == -1 ||
               wait_until(c->pid, until, &status) == -1) {
        kill(-c->pid, SIGKILL);
        waitpid(c->pid, &status, 0);
        snprintf(why, size,
                 "token.command: %s has not ended within %" PRId64
                 " ms (token.timeout)",
                 argv[0], timeout_ms);
        rc = -1;
    } else if (!WIFEXITED(status) || WEXITSTATUS(status) != 0) {
        c->err.at[strcspn(c->err.at, "\r\n")] = '\0';
        snprintf(why, size, "token.command: %s ended with %s %d: %s", argv[0],
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

int kafka_token_from_command(const config *config, kafka_token *into, char *why,
                             size_t size) {
    char error[ERROR_MAX + 1] = "", *argv[ARGUMENTS_MAX + 1];
    char *line = strdup(config->token_command);
    child c = {.out = {.at = calloc(1, OUTPUT_MAX + 1), .size = OUTPUT_MAX},
               .err = {.at = error, .size = ERROR_MAX}};
    int rc = -1;
    if (line == NULL || c.out.at == NULL) {
        snprintf(why, size, "out of memory");
    } else {
        split(line, argv);
        rc = run(&c, argv, config->token_timeout / 1000000, why, size);
        if (rc == 0)
            rc = kafka_token_parse(c.out.at, clock_ms(CLOCK_REALTIME), into,
                                   why, size);
    }
    if (c.out.at != NULL)
        explicit_bzero(c.out.at, OUTPUT_MAX);
    free(c.out.at);
    free(line);
    return rc;
}
