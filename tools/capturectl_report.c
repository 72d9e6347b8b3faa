/* Standard output and standard error, memory, signals. */

#include "tools/capturectl.h"

#include <errno.h>
#include <inttypes.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#define NS_PER_SECOND 1000000000
#define PROGRESS_LINE 120 /* so that it can be wiped */
#define PROGRESS_NS (NS_PER_SECOND / 4)

static bool had_errors, found, gives_verdict;
static int output_errno; /* of the first failed write */

static bool progress_off, progress_shown;
static volatile sig_atomic_t interrupted;

/* A line of progress is wiped before anything else is said. */
static void wipe_progress(void) {
    if (progress_shown) {
        fputs("\r\033[K", stderr);
        progress_shown = false;
    }
}

static void say(const char *fmt, va_list args) {
    wipe_progress();
    fputs("% ", stderr);
    vfprintf(stderr, fmt, args);
    fputc('\n', stderr);
}

void ctl_remark(const char *fmt, ...) {
    va_list args;

    va_start(args, fmt);
    say(fmt, args);
    va_end(args);
}

void ctl_error(const char *fmt, ...) {
    va_list args;

    had_errors = true;

    va_start(args, fmt);
    say(fmt, args);
    va_end(args);
}

void ctl_die(const char *fmt, ...) {
    va_list args;

    had_errors = true;

    va_start(args, fmt);
    say(fmt, args);
    va_end(args);

    exit(gives_verdict ? CTL_USAGE : CTL_ERROR);
}

static FILE *captured; /* instead of standard output */
static char *captured_text;
static size_t captured_len;

static FILE *out(void) {
    return captured ? captured : stdout;
}

void ctl_capture_begin(void) {
    captured = open_memstream(&captured_text, &captured_len);

    if (captured == NULL) {
        ctl_die("out of memory");
    }
}

char *ctl_capture_end(size_t *len) {
    if (fclose(captured) != 0) {
        ctl_die("out of memory");
    }

    captured = NULL;
    *len = captured_len;

    return captured_text;
}

static void note_output(bool failed) {
    if (failed && output_errno == 0) {
        output_errno = errno ? errno : EIO;
    }
}

void ctl_print(const char *fmt, ...) {
    va_list args;

    if (output_errno != 0) {
        return;
    }

    wipe_progress();

    va_start(args, fmt);
    note_output(vfprintf(out(), fmt, args) < 0);
    va_end(args);
}

void ctl_put(const void *data, size_t len) {
    if (output_errno == 0 && len > 0) {
        wipe_progress();
        note_output(fwrite(data, 1, len, out()) != len);
    }
}

void ctl_flush(void) {
    if (output_errno == 0) {
        note_output(fflush(stdout) != 0);
    }
}

bool ctl_output_lost(void) {
    return output_errno != 0;
}

bool ctl_had_errors(void) {
    return had_errors;
}

void ctl_give_verdict(void) {
    gives_verdict = true;
}

void ctl_found(void) {
    found = true;
}

int ctl_finish(void) {
    wipe_progress();
    ctl_flush();

    if (output_errno != 0 && output_errno != EPIPE) {
        ctl_error("writing failed: %s", strerror(output_errno));
    }

    if (had_errors) {
        return gives_verdict ? CTL_USAGE : CTL_ERROR;
    }

    return found ? CTL_FOUND : CTL_OK;
}

void ctl_progress_off(bool off) {
    progress_off = off || !isatty(STDERR_FILENO);
}

void ctl_progress(uint64_t done, uint64_t total, const char *unit) {
    static int64_t next;
    int64_t now;

    if (progress_off || (done & 63) != 0) { /* the clock costs something */
        return;
    }

    now = ctl_now_ns();

    if (now < next) {
        return;
    }

    next = now + PROGRESS_NS;

    if (total > 0) {
        fprintf(stderr, "\r\033[K%% %" PRIu64 " of %" PRIu64 " %s, %d%%", done,
                total, unit, (int)(100.0 * (double)done / (double)total));
    } else {
        fprintf(stderr, "\r\033[K%% %" PRIu64 " %s", done, unit);
    }

    progress_shown = true;
}

void ctl_progress_line(const char *fmt, ...) {
    va_list args;
    char line[PROGRESS_LINE];

    if (progress_off) {
        return;
    }

    va_start(args, fmt);
    vsnprintf(line, sizeof(line), fmt, args);
    va_end(args);
    fprintf(stderr, "\r\033[K%% %s", line);
    progress_shown = true;
}

static void on_signal(int number) {
    (void)number;

    interrupted = 1;
}

void ctl_catch_signals(void) {
    struct sigaction action = {.sa_handler = on_signal};

    sigaction(SIGINT, &action, NULL);
    sigaction(SIGTERM, &action, NULL);
}

bool ctl_interrupted(void) {
    return interrupted;
}

int64_t ctl_now_ns(void) {
    struct timespec ts;

    clock_gettime(CLOCK_REALTIME, &ts);

    return (int64_t)ts.tv_sec * NS_PER_SECOND + ts.tv_nsec;
}

void *ctl_alloc(size_t size) {
    return ctl_realloc(NULL, size);
}

void *ctl_realloc(void *p, size_t size) {
    p = realloc(p, size ? size : 1);

    if (p == NULL) {
        ctl_die("out of memory");
    }

    return p;
}

char *ctl_strdup(const char *s) {
    size_t len = strlen(s) + 1;

    return memcpy(ctl_alloc(len), s, len);
}
