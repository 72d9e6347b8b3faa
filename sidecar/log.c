#include "sidecar/log.h"

#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#define LINE_SIZE 2048
#define LIMIT_NS 1000000000

static const char *const level_names[] = {"error", "warn", "info", "debug"};

/* librdkafka's threads look at it through callbacks */
static _Atomic int current_level = LOG_LEVEL_INFO;

void log_set_level(enum log_level level) {
    atomic_store_explicit(&current_level, level, memory_order_relaxed);
}

int log_level_parse(const char *name) {
    for (int i = LOG_LEVEL_ERROR; i <= LOG_LEVEL_DEBUG; i++)
        if (strcmp(name, level_names[i]) == 0)
            return i;
    return -1;
}

static size_t stamp(char *at, size_t size, enum log_level level) {
    struct timespec ts;
    struct tm tm;
    char date[32];
    clock_gettime(CLOCK_REALTIME, &ts);
    localtime_r(&ts.tv_sec, &tm);
    strftime(date, sizeof(date), "%Y-%m-%d %H:%M:%S", &tm);
    return (size_t)snprintf(at, size, "[%s] %s.%03ld ", level_names[level],
                            date, ts.tv_nsec / 1000000);
}

/* What others told us (brokers, workers) must not make lines of its own. */
static void make_printable(char *s, size_t len) {
    for (size_t i = 0; i < len; i++)
        if ((unsigned char)s[i] < ' ' || s[i] == 0x7f)
            s[i] = ' ';
}

/* One write a line, so that lines of several threads do not mix. */
static void write_line(enum log_level level, uint64_t held, const char *format,
                       va_list args) {
    char line[LINE_SIZE];
    size_t head = stamp(line, sizeof(line), level), len = head;

    int n = vsnprintf(line + len, sizeof(line) - len - 1, format, args);
    if (n < 0)
        return;
    len += (size_t)n;
    if (len > sizeof(line) - 2)
        len = sizeof(line) - 2;
    if (held > 0 && len + 40 < sizeof(line))
        len +=
            (size_t)snprintf(line + len, sizeof(line) - len - 1,
                             " (%llu more like it)", (unsigned long long)held);
    make_printable(line + head, len - head);
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
