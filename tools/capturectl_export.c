/*
 * capturectl export: a topic's records as the migration console's export has
 * them, "key|base64(value)" a line, compressed where the name ends in .gz.
 *
 * What such a line cannot hold is an error, and left out.
 */

#include "tools/capturectl.h"
#include "tools/capturectl_text.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <zlib.h>

typedef struct {
    const char *name;
    gzFile file;
    uint64_t records, bytes, left_out;
    bool failed;
} exporter;

static bool ends_with(const char *text, const char *end) {
    size_t n = strlen(text), m = strlen(end);

    return n >= m && strcmp(text + n - m, end) == 0;
}

static void open_file(exporter *e, const char *name) {
    const char *mode = ends_with(name, ".gz") ? "wb9" : "wbT";
    int fd;

    if (strcmp(name, "-") == 0) {
        e->name = "standard output";
        fd = dup(STDOUT_FILENO);
    } else {
        e->name = name;
        fd = open(name, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    }

    if (fd < 0) {
        ctl_die("%s: %s", e->name, strerror(errno));
    }

    e->file = gzdopen(fd, mode);

    if (e->file == NULL) {
        ctl_die("out of memory");
    }
}

static void write_all(exporter *e, const void *data, size_t len) {
    if (!e->failed && len > 0 && gzwrite(e->file, data, (unsigned)len) == 0) {
        ctl_error("%s: writing failed: %s", e->name, strerror(errno));
        e->failed = true;
    }
}

static const char *fault_of(const ctl_value *v) {
    if (v->value == NULL || v->value_len == 0) {
        return "it has no value";
    }

    if (v->key == NULL) {
        return "it has no key";
    }

    if (memchr(v->key, '|', v->key_len) || memchr(v->key, '\n', v->key_len) ||
        memchr(v->key, '\r', v->key_len)) {
        return "its key holds a | or a line end";
    }

    return NULL;
}

static bool on_value(void *ctx, const ctl_value *v) {
    char *text;
    exporter *e = ctx;
    const char *fault = fault_of(v);

    if (fault != NULL) {
        ctl_error("%s: %s: not exported", v->place, fault);
        e->left_out++;
        return true;
    }

    text = text_base64(v->value, v->value_len);
    write_all(e, v->key, v->key_len);
    write_all(e, "|", 1);
    write_all(e, text, strlen(text));
    write_all(e, "\n", 1);
    free(text);
    e->records++;
    e->bytes += v->value_len;

    return !e->failed;
}

void ctl_export(const ctl_options *opt) {
    exporter e = {0};

    if (opt->to == NULL) {
        ctl_remark("where to? --to FILE");
        exit(CTL_USAGE);
    }

    open_file(&e, opt->to);
    ctl_read_topic(opt, on_value, &e);

    if (gzclose(e.file) != Z_OK && !e.failed) {
        ctl_error("%s: writing failed: %s", e.name, strerror(errno));
    }

    if (opt->json && strcmp(opt->to, "-") != 0) {
        cJSON *object = cJSON_CreateObject();

        text_add_int(object, "records", (int64_t)e.records);
        text_add_int(object, "bytes", (int64_t)e.bytes);
        text_add_int(object, "leftOut", (int64_t)e.left_out);
        text_put_json(object);
    }

    if (!opt->quiet) {
        ctl_remark("%" PRIu64 " records of %" PRIu64 " bytes to %s; %" PRIu64
                   " left out",
                   e.records, e.bytes, e.name, e.left_out);
    }
}
