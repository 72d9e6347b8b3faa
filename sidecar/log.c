#include "sidecar/log.h"

#include <pthread.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#define MESSAGE_SIZE 2048
#define LIMIT_NS 1000000000

/* Shorter ones would hide common words, and protect nothing. */
#define SECRET_MIN ((size_t)6)
#define SECRETS 160
#define HIDDEN "(hidden)"

static const char *const level_names[] = {"error", "warn", "info", "debug"};

/* librdkafka's threads look at it through callbacks */
static _Atomic int current_level = LOG_LEVEL_INFO;

static _Atomic int current_format = LOG_FORMAT_TEXT;

void log_set_format(enum log_format format) {
    atomic_store_explicit(&current_format, format, memory_order_relaxed);
}

void log_set_level(enum log_level level) {
    atomic_store_explicit(&current_level, level, memory_order_relaxed);
}

int log_level_parse(const char *name) {
    for (int i = LOG_LEVEL_ERROR; i <= LOG_LEVEL_DEBUG; i++)
        if (strcmp(name, level_names[i]) == 0)
            return i;
    return -1;
}

/* ---- secrets ---- */

static struct {
    pthread_mutex_t lock;
    struct {
        char name[200];
        char *secret;
    } all[SECRETS];
} secrets = {.lock = PTHREAD_MUTEX_INITIALIZER};

void log_hide(const char *name, const char *secret) {
    char *copy = strlen(secret) >= SECRET_MIN ? strdup(secret) : NULL;
    pthread_mutex_lock(&secrets.lock);
    for (size_t i = 0; i < SECRETS; i++) {
        if (secrets.all[i].name[0] != '\0' &&
            strcmp(secrets.all[i].name, name) != 0)
            continue;
        snprintf(secrets.all[i].name, sizeof(secrets.all[i].name), "%s", name);
        if (secrets.all[i].secret != NULL)
            explicit_bzero(secrets.all[i].secret,
                           strlen(secrets.all[i].secret));
        free(secrets.all[i].secret);
        secrets.all[i].secret = copy;
        copy = NULL;
        break;
    }
    pthread_mutex_unlock(&secrets.lock);
    free(copy);
}

static void mask_one(char *text, const char *secret) {
    size_t n = strlen(secret);
    size_t shown = n < sizeof(HIDDEN) - 1 ? n : sizeof(HIDDEN) - 1;
    for (char *at = text; (at = strstr(at, secret)) != NULL; at += shown) {
        memcpy(at, HIDDEN, shown);
        memmove(at + shown, at + n, strlen(at + n) + 1);
    }
}

/* A secret that the end of a line has cut. */
static void mask_cut(char *text, const char *secret) {
    size_t len = strlen(text), n = strlen(secret);
    for (size_t k = n < len ? n - 1 : len; k >= SECRET_MIN; k--)
        if (memcmp(text + len - k, secret, k) == 0) {
            snprintf(text + len - k, k + 1, "%s", HIDDEN);
            return;
        }
}

void log_mask(char *text, size_t size) {
    pthread_mutex_lock(&secrets.lock);
    for (size_t i = 0; i < SECRETS; i++)
        if (secrets.all[i].secret != NULL) {
            mask_one(text, secrets.all[i].secret);
            if (strlen(text) + 2 >= size)
                mask_cut(text, secrets.all[i].secret);
        }
    pthread_mutex_unlock(&secrets.lock);
}

/* ---- lines ---- */

/* What others told us (brokers, workers) must not make lines of its own. */
static void make_printable(char *s) {
    for (; *s != '\0'; s++)
        if ((unsigned char)*s < ' ' || *s == 0x7f)
            *s = ' ';
}

static size_t head_text(char *at, size_t size, enum log_level level,
                        const struct timespec *ts) {
    struct tm tm;
    char date[32];
    localtime_r(&ts->tv_sec, &tm);
    strftime(date, sizeof(date), "%Y-%m-%d %H:%M:%S", &tm);
    return (size_t)snprintf(at, size, "[%s] %s.%03ld ", level_names[level],
                            date, ts->tv_nsec / 1000000);
}

static size_t head_json(char *at, size_t size, enum log_level level,
                        const struct timespec *ts) {
    struct tm tm;
    char date[32];
    gmtime_r(&ts->tv_sec, &tm);
    strftime(date, sizeof(date), "%Y-%m-%dT%H:%M:%S", &tm);
    return (size_t)snprintf(
        at, size, "{\"time\":\"%s.%03ldZ\",\"level\":\"%s\",\"message\":\"",
        date, ts->tv_nsec / 1000000, level_names[level]);
}

/* A byte of the message as JSON.  What is not ASCII may not be UTF-8 either:
   each such byte becomes a question mark. */
static size_t put_json(char *at, char c) {
    if (c == '"' || c == '\\')
        *at++ = '\\';
    *at = (unsigned char)c >= 0x80 ? '?' : c;
    return c == '"' || c == '\\' ? 2 : 1;
}

static size_t body_json(char *at, const char *message) {
    char *from = at;
    for (; *message != '\0'; message++)
        at += put_json(at, *message);
    memcpy(at, "\"}", 2);
    return (size_t)(at + 2 - from);
}

/* One write a line, so that lines of several threads do not mix. */
static void write_line(enum log_level level, uint64_t held, const char *format,
                       va_list args) {
    char message[MESSAGE_SIZE], line[2 * MESSAGE_SIZE + 128];
    struct timespec ts;
    clock_gettime(CLOCK_REALTIME, &ts);
    int n = vsnprintf(message, sizeof(message), format, args);
    if (n < 0)
        return;
    size_t len = strlen(message);
    if (held > 0)
        snprintf(message + len, sizeof(message) - len, " (%llu more like it)",
                 (unsigned long long)held);
    make_printable(message);
    log_mask(message, sizeof(message));

    bool json = atomic_load_explicit(&current_format, memory_order_relaxed) ==
                LOG_FORMAT_JSON;
    len = (json ? head_json : head_text)(line, 128, level, &ts);
    if (json) {
        len += body_json(line + len, message);
    } else {
        memcpy(line + len, message, strlen(message));
        len += strlen(message);
    }
    line[len++] = '\n';
    if (write(STDERR_FILENO, line, len) == -1)
        return; /* there is nowhere to say it */
}

static int enabled(enum log_level level) {
    return (int)level <=
           atomic_load_explicit(&current_level, memory_order_relaxed);
}

void log_write(enum log_level level, const char *format, ...) {
    va_list args;
    if (!enabled(level))
        return;
    va_start(args, format);
    write_line(level, 0, format, args);
    va_end(args);
}

void log_limited(log_limiter *l, enum log_level level, const char *format,
                 ...) {
    struct timespec ts;
    va_list args;
    if (!enabled(level))
        return;
    clock_gettime(CLOCK_MONOTONIC, &ts);
    int64_t now = (int64_t)ts.tv_sec * LIMIT_NS + ts.tv_nsec;
    if (l->last_ns != 0 && now - l->last_ns < LIMIT_NS) {
        l->held++;
        return;
    }
    va_start(args, format);
    write_line(level, l->held, format, args);
    va_end(args);
    l->last_ns = now;
    l->held = 0;
}
