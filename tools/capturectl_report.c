/* Standard output and standard error, and memory. */

#include "tools/capturectl.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static bool had_errors;
static int output_errno; /* of the first failed write */

static void say(const char *fmt, va_list args) {
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

    va_start(args, fmt);
    note_output(vfprintf(stdout, fmt, args) < 0);
    va_end(args);
}

void ctl_put(const void *data, size_t len) {
    if (output_errno == 0 && len > 0) {
        note_output(fwrite(data, 1, len, stdout) != len);
    }
}

bool ctl_output_lost(void) {
    return output_errno != 0;
}

int ctl_finish(void) {
    if (output_errno == 0) {
        note_output(fflush(stdout) != 0);
    }

    if (output_errno != 0 && output_errno != EPIPE) {
        ctl_error("writing failed: %s", strerror(output_errno));
    }

    return had_errors ? CTL_ERROR : CTL_OK;
}

void *ctl_alloc(size_t size) {
    return ctl_realloc(NULL, size);
}

void *ctl_realloc(void *p, size_t size) {
    p = realloc(p, size ? size : 1);

    if (p == NULL) {
        ctl_error("out of memory");
        exit(CTL_ERROR);
    }

    return p;
}

char *ctl_strdup(const char *s) {
    size_t len = strlen(s) + 1;

    return memcpy(ctl_alloc(len), s, len);
}
