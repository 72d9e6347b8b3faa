/*
 * One line an event, to stderr: `[LEVEL] 2025-01-31 23:59:59.123 text`, or as
 * JSON `{"time":"2025-01-31T23:59:59.123Z","level":"...","message":"..."}`.
 * Never captured bytes, never a secret.
 */
#ifndef SIDECAR_LOG_H
#define SIDECAR_LOG_H

#include <stddef.h>
#include <stdint.h>

enum log_format { LOG_FORMAT_TEXT, LOG_FORMAT_JSON };

enum log_level {
    LOG_LEVEL_ERROR,
    LOG_LEVEL_WARN,
    LOG_LEVEL_INFO,
    LOG_LEVEL_DEBUG
};

void log_set_level(enum log_level level);
void log_set_format(enum log_format format);

/*
 * From now on `secret` is written as "(hidden)" in every line: for what others
 * say (librdkafka, a token's issuer).  One a name; the next of that name takes
 * its place.  Safe in any thread.
 */
void log_hide(const char *name, const char *secret);
/* Hides them in a text that goes elsewhere; the text does not grow. */
void log_mask(char *text, size_t size);

/* -1 for an unknown name: error, warn, info, debug. */
int log_level_parse(const char *name);
void log_write(enum log_level level, const char *format, ...)
    __attribute__((format(printf, 2, 3)));

#define log_error(...) log_write(LOG_LEVEL_ERROR, __VA_ARGS__)
#define log_warn(...) log_write(LOG_LEVEL_WARN, __VA_ARGS__)
#define log_info(...) log_write(LOG_LEVEL_INFO, __VA_ARGS__)
#define log_debug(...) log_write(LOG_LEVEL_DEBUG, __VA_ARGS__)

/* For lines that can come in floods: at most one a second, and then
   "(N more like it)" is said.  One static limiter a place. */
typedef struct {
    int64_t last_ns;
    uint64_t held;
} log_limiter;
void log_limited(log_limiter *l, enum log_level level, const char *format, ...)
    __attribute__((format(printf, 3, 4)));

#endif
