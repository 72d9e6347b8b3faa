#define _GNU_SOURCE 1

#include "launcher/pump.h"

#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <time.h>
#include <unistd.h>

#define PIPE_SIZE (1024 * 1024)

struct pump {
    loop_io in;
    int old_stderr;
    char line[PUMP_LINE]; /* the one that is being read */
    size_t n;

    pthread_t writer;
    pthread_mutex_t lock;
    pthread_cond_t changed;
    char ring[PUMP_SIZE];
    size_t head, used; /* from `head` on, around the end */
    size_t dropped;    /* lines, since the last one that said so */
    bool ending, gone; /* gone: standard output cannot be written to */
};

/* ---- lines ---- */

/* As NGINX's: 2025/01/31 23:59:59 [error] 12#12: text */
static bool nginx_line(const char *line, char *into, size_t size, size_t *len) {
    int y, mo, d, h, mi, s, n = 0;
    char level[16];
    if (sscanf(line, "%4d/%2d/%2d %2d:%2d:%2d [%15[a-z]] %n", &y, &mo, &d, &h,
               &mi, &s, level, &n) != 7 ||
        n == 0)
        return false;
    for (char *p = level; *p != '\0'; p++)
        *p = (char)toupper((unsigned char)*p);
    *len = (size_t)snprintf(into, size,
                            "[%s] %04d-%02d-%02d %02d:%02d:%02d nginx: %s",
                            level, y, mo, d, h, mi, s, line + n);
    return true;
}

/* As the sidecar's and ours: [info] 2025-01-31 23:59:59.123 text */
static bool own_line(const char *line, char *into, size_t size, size_t *len) {
    int y, n = 0;
    char level[16];
    if (sscanf(line, "[%15[a-z]] %4d-%n", level, &y, &n) != 2 || n == 0)
        return false;
    *len = (size_t)snprintf(into, size, "%s", line);
    for (char *p = into + 1; *p != '\0' && *p != ']'; p++)
        *p = (char)toupper((unsigned char)*p);
    return true;
}

/* As NGINX's before it has a log: nginx: [emerg] text */
static const char *early_level(const char *line) {
    if (strncmp(line, "nginx: [", 8) != 0)
        return "INFO";
    return line[8] == 'e' || line[8] == 'a' || line[8] == 'c' ? "ERROR"
                                                              : "WARN";
}

size_t pump_line(const char *line, const char *now, char *into, size_t size) {
    size_t len;
    if (!nginx_line(line, into, size, &len) &&
        !own_line(line, into, size, &len))
        len = (size_t)snprintf(into, size, "[%s] %s %s", early_level(line), now,
                               line);
    return len < size ? len : size - 1;
}

static void time_text(char *into, size_t size) {
    time_t now = time(NULL);
    struct tm tm;
    localtime_r(&now, &tm);
    strftime(into, size, "%Y-%m-%d %H:%M:%S", &tm);
}

/* ---- the ring; under the lock ---- */

static void put(pump *p, const char *text, size_t len) {
    size_t at = (p->head + p->used) % PUMP_SIZE;
    size_t first = PUMP_SIZE - at < len ? PUMP_SIZE - at : len;
    memcpy(p->ring + at, text, first);
    memcpy(p->ring, text + first, len - first);
    p->used += len;
}

static void put_dropped(pump *p) {
    char now[32], text[160];
    time_text(now, sizeof(now));
    int n = snprintf(text, sizeof(text),
                     "[WARN] %s capture-proxy: %zu log lines were dropped: "
                     "standard output was not read\n",
                     now, p->dropped);
    if (PUMP_SIZE - p->used >= (size_t)n) {
        put(p, text, (size_t)n);
        p->dropped = 0;
    }
}

static void put_line(pump *p) {
    char text[PUMP_LINE + 128], now[32];
    p->line[p->n] = '\0';
    for (size_t i = 0; i < p->n; i++)
        if ((unsigned char)p->line[i] < ' ' || p->line[i] == 0x7f)
            p->line[i] = ' ';
    time_text(now, sizeof(now));
    size_t len = pump_line(p->line, now, text, sizeof(text) - 1);
    text[len++] = '\n';
    p->n = 0;

    pthread_mutex_lock(&p->lock);
    if (p->dropped > 0 && PUMP_SIZE - p->used >= len + 256)
        put_dropped(p);
    if (p->gone || PUMP_SIZE - p->used < len) {
        p->dropped++;
    } else {
        put(p, text, len);
        pthread_cond_signal(&p->changed);
    }
    pthread_mutex_unlock(&p->lock);
}

/* ---- in ---- */

static void take(pump *p, const char *data, size_t len) {
    for (size_t i = 0; i < len; i++) {
        if (data[i] != '\n' && p->n < sizeof(p->line) - 1)
            p->line[p->n++] = data[i];
        else if (data[i] == '\n' && p->n > 0)
            put_line(p);
    }
}

static void readable(loop_io *io, uint32_t events) {
    pump *p = (pump *)(void *)((char *)io - offsetof(pump, in));
    char data[16384];
    (void)events;
    /* a bounded amount: signals want their turn as well */
    for (int i = 0; i < 16; i++) {
        ssize_t n = read(io->fd, data, sizeof(data));
        if (n <= 0)
            return;
        take(p, data, (size_t)n);
    }
}

/* ---- out ---- */

static void *write_out(void *owner) {
    pump *p = owner;
    char data[16384];
    pthread_mutex_lock(&p->lock);
    while (p->used > 0 || !p->ending) {
        if (p->used == 0) {
            pthread_cond_wait(&p->changed, &p->lock);
            continue;
        }
        size_t n =
            PUMP_SIZE - p->head < p->used ? PUMP_SIZE - p->head : p->used;
        n = n < sizeof(data) ? n : sizeof(data);
        memcpy(data, p->ring + p->head, n);
        p->head = (p->head + n) % PUMP_SIZE;
        p->used -= n;
        if (p->dropped > 0)
            put_dropped(p);
        pthread_mutex_unlock(&p->lock);
        for (size_t done = 0; done < n;) {
            ssize_t written = write(STDOUT_FILENO, data + done, n - done);
            if (written > 0) {
                done += (size_t)written;
            } else if (errno == EAGAIN) {
                nanosleep(&(struct timespec){.tv_nsec = 50000000}, NULL);
            } else if (errno != EINTR) {
                p->gone = true; /* nobody reads it any more, for ever */
                break;
            }
        }
        pthread_mutex_lock(&p->lock);
        if (p->gone)
            p->used = 0;
    }
    pthread_mutex_unlock(&p->lock);
    return NULL;
}

/* ---- life ---- */

pump *pump_open(loop *l) {
    pump *p = calloc(1, sizeof(*p));
    int fds[2];
    if (p == NULL)
        return NULL;
    pthread_mutex_init(&p->lock, NULL);
    pthread_condattr_t attributes;
    pthread_condattr_init(&attributes);
    pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC);
    pthread_cond_init(&p->changed, &attributes);
    pthread_condattr_destroy(&attributes);
    if (pipe2(fds, O_CLOEXEC | O_NONBLOCK) == -1)
        goto failed;
    fcntl(fds[0], F_SETPIPE_SZ, PIPE_SIZE); /* fewer bytes will do, too */
    p->in = (loop_io){.fd = fds[0], .ready = readable};
    p->old_stderr = fcntl(STDERR_FILENO, F_DUPFD_CLOEXEC, 3);
    if (loop_add(l, &p->in, EPOLLIN) == -1 ||
        dup2(fds[1], STDERR_FILENO) == -1 ||
        pthread_create(&p->writer, NULL, write_out, p) != 0)
        goto failed;
    close(fds[1]);
    return p;
failed:
    free(p);
    return NULL;
}

void pump_close(pump *p, int ms) {
    struct timespec end;
    char data[16384];
    ssize_t n;
    while ((n = read(p->in.fd, data, sizeof(data))) > 0)
        take(p, data, (size_t)n);
    pthread_mutex_lock(&p->lock);
    p->ending = true;
    pthread_cond_signal(&p->changed);
    pthread_mutex_unlock(&p->lock);
    clock_gettime(CLOCK_MONOTONIC, &end);
    end.tv_sec += ms / 1000;
    end.tv_nsec += ms % 1000 * 1000000L;
    end.tv_sec += end.tv_nsec / 1000000000;
    end.tv_nsec %= 1000000000;
    /* when it does not come back, it and its memory go with the process */
    bool ended =
        pthread_clockjoin_np(p->writer, NULL, CLOCK_MONOTONIC, &end) == 0;
    if (p->old_stderr != -1)
        dup2(p->old_stderr, STDERR_FILENO);
    if (!ended)
        return;
    close(p->in.fd);
    close(p->old_stderr);
    free(p);
}
