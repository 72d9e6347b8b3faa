/*
 * Values out of files and standard input, and records out of values.
 *
 * A file holds lines of base64, each with "key|" before it or not (the forms of
 * the Migration Assistant's exports and of the Replayer's input, record
 * contract, docs/record-contract.md, section 7), or is one raw record
 * (.protocap); gzip is read as well. A raw record gives itself away: every observation begins with
 * the byte 0x12, which no text has.
 */

#include "tools/capturectl.h"

#include <errno.h>
#include <openssl/evp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <zlib.h>

#define SNIFF_SIZE 65536
#define PLACE_SIZE 512

static const char base64_alphabet[] =
    "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

typedef struct {
    gzFile file; /* reads what is not compressed as it is */
    const char *name;
    ctl_value_fn fn;
    void *ctx;
    char *buf;
    size_t len, cap;
    void *decoded; /* the value of the line at hand */
    bool stop;
} source;

/* Appends up to SNIFF_SIZE bytes; false at the end of the file. */
static bool fill(source *s) {
    int n, number;
    const char *why;

    if (s->cap - s->len < SNIFF_SIZE) {
        s->cap = s->cap * 2 + SNIFF_SIZE;
        s->buf = ctl_realloc(s->buf, s->cap);
    }

    n = gzread(s->file, s->buf + s->len, SNIFF_SIZE);
    why = gzerror(s->file, &number);

    if (n < 0 || number == Z_BUF_ERROR) { /* Z_BUF_ERROR: cut off */
        ctl_error("%s: reading failed: %s", s->name,
                  number == Z_ERRNO ? strerror(errno) : why);
        s->stop = true;
        return false;
    }

    s->len += (size_t)n;

    return n > 0;
}

static bool looks_raw(const char *buf, size_t len) {
    for (size_t i = 0; i < len; i++) {
        unsigned char c = (unsigned char)buf[i];

        if (c < 0x20 && c != '\n' && c != '\r' && c != '\t') {
            return true;
        }
    }

    return false;
}

static bool has_suffix(const char *name, const char *suffix) {
    size_t n = strlen(name), m = strlen(suffix);

    return n >= m && strcmp(name + n - m, suffix) == 0;
}

/*
 * Decodes text[0..len), where text[len] is a NUL, into s->decoded. Returns
 * false if it is not standard base64 with its padding; OpenSSL lets '=' pass
 * anywhere.
 */
static bool from_base64(source *s, const char *text, size_t len,
                        size_t *out_len) {
    int n;
    size_t padding = len - strspn(text, base64_alphabet);

    if (len == 0 || len % 4 != 0 || len > INT32_MAX || padding > 2 ||
        memcmp(text + len - padding, "==", padding) != 0) {
        return false;
    }

    s->decoded = ctl_realloc(s->decoded, len / 4 * 3);
    n = EVP_DecodeBlock(s->decoded, (const unsigned char *)text, (int)len);

    if (n < 0) {
        return false;
    }

    *out_len = (size_t)n - padding;

    return true;
}

/* line[len] is writable. */
static void take_line(source *s, char *line, size_t len, unsigned long number) {
    char place[PLACE_SIZE];
    char *bar;
    ctl_value v = {.place = place, .partition = -1, .offset = -1};

    if (len > 0 && line[len - 1] == '\r') {
        len--;
    }

    if (len == 0) {
        return;
    }

    line[len] = '\0';
    snprintf(place, sizeof(place), "%s:%lu", s->name, number);
    bar = memchr(line, '|', len);

    if (bar != NULL) {
        v.key = line;
        v.key_len = (size_t)(bar - line);
        len -= v.key_len + 1;
        line = bar + 1;
    }

    if (!from_base64(s, line, len, &v.value_len)) {
        ctl_error("%s: not base64", place);
        return;
    }

    v.value = s->decoded;
    s->stop = !s->fn(s->ctx, &v);
    ctl_progress(number, 0, "lines");
}

/* Splits what is in the buffer and what follows into lines. */
static void take_lines(source *s) {
    size_t start, seen = 0;
    unsigned long number = 0;
    bool more = true;

    while (more && !s->stop) {
        char *nl;

        for (start = 0; !s->stop; start = seen) {
            nl = seen < s->len ? memchr(s->buf + seen, '\n', s->len - seen)
                               : NULL;

            if (nl == NULL) {
                break;
            }

            seen = (size_t)(nl - s->buf) + 1;
            take_line(s, s->buf + start, seen - start - 1, ++number);
        }

        memmove(s->buf, s->buf + start, s->len - start);
        s->len -= start;
        seen = s->len;
        more = !s->stop && fill(s);
    }

    if (!s->stop && s->len > 0) { /* fill left room behind the last line */
        take_line(s, s->buf, s->len, ++number);
    }
}

static void take_raw(source *s) {
    ctl_value v = {.place = s->name, .partition = -1, .offset = -1};

    while (fill(s)) {
        /* to the end */
    }

    if (!s->stop) {
        v.value = s->buf;
        v.value_len = s->len;
        s->stop = !s->fn(s->ctx, &v);
    }
}

static void take_file(source *s) {
    while (s->len < SNIFF_SIZE && fill(s)) {
        /* enough to tell what it is */
    }

    if (has_suffix(s->name, ".protocap") || looks_raw(s->buf, s->len)) {
        take_raw(s);

    } else {
        take_lines(s);
    }
}

void ctl_read_files(const ctl_options *opt, ctl_value_fn fn, void *ctx) {
    bool stop = false;

    for (int i = 0; i < opt->files_count && !stop; i++) {
        bool is_stdin = strcmp(opt->files[i], "-") == 0;
        source s = {.name = is_stdin ? "standard input" : opt->files[i],
                    .fn = fn,
                    .ctx = ctx};

        s.file =
            is_stdin ? gzdopen(dup(STDIN_FILENO), "rb") : gzopen(s.name, "rb");

        if (s.file == NULL) {
            ctl_error("%s: %s", s.name, strerror(errno));
            continue;
        }

        gzbuffer(s.file, SNIFF_SIZE);
        take_file(&s);
        stop = ctl_output_lost() || ctl_interrupted();
        free(s.buf);
        free(s.decoded);
        gzclose(s.file);
    }
}

bool ctl_open_record(const ctl_value *v, ctl_record *r,
                     char why[CTL_FAULT_SIZE]) {
    const char *fault;

    *r = (ctl_record){.from = v};

    if (v->value == NULL) {
        snprintf(why, CTL_FAULT_SIZE,
                 "it has no value, which stops the Replayer");
        return false;
    }

    if (record_open(&r->reader, v->value, v->value_len, &r->info) != 0) {
        snprintf(why, CTL_FAULT_SIZE, "not a record: %s, at byte %zu",
                 r->reader.error, r->reader.at);
        return false;
    }

    fault = record_fault(&r->info);

    if (fault != NULL) {
        snprintf(why, CTL_FAULT_SIZE, "not a record: %s", fault);
    }

    return fault == NULL;
}

typedef struct {
    ctl_record_fn fn;
    void *ctx;
} record_taker;

static bool take_value(void *ctx, const ctl_value *v) {
    char why[CTL_FAULT_SIZE];
    record_taker *taker = ctx;
    ctl_record r;

    if (!ctl_open_record(v, &r, why)) {
        ctl_error("%s: %s", v->place, why);
        return true;
    }

    if (v->key != NULL &&
        (v->key_len != r.info.connection_id.len ||
         memcmp(v->key, r.info.connection_id.data, v->key_len) != 0)) {
        ctl_remark("%s: its key is not its connectionId", v->place);
    }

    taker->fn(taker->ctx, &r);

    return !ctl_output_lost();
}

void ctl_read_values(const ctl_options *opt, ctl_value_fn fn, void *ctx) {
    if (opt->brokers != NULL) {
        ctl_read_topic(opt, fn, ctx);
    } else {
        ctl_read_files(opt, fn, ctx);
    }
}

void ctl_read_records(const ctl_options *opt, ctl_record_fn fn, void *ctx) {
    record_taker taker = {fn, ctx};

    ctl_read_values(opt, take_value, &taker);
}
