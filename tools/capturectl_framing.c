/* Whether an HTTP/1.1 response is whole, see capturectl_framing.h. */

#define _GNU_SOURCE 1 /* strcasestr */

#include "tools/capturectl_framing.h"

#include "tools/capturectl.h"

#include <stdlib.h>
#include <string.h>
#include <strings.h>

#define LINE_MAX_KEPT 65536

void framing_clear(framing *f) {
    free(f->line);
    *f = (framing){0};
}

void framing_start(framing *f, bool answers_head) {
    framing_clear(f);
    f->no_body = answers_head;
}

bool framing_is_whole(const framing *f) {
    return f->state == FRAMING_WHOLE || f->state == FRAMING_UNTIL_CLOSE;
}

/* The value of a header line, or NULL if it is another one's. */
static const char *value_of(const char *line, const char *name) {
    size_t n = strlen(name);

    if (strncasecmp(line, name, n) != 0 || line[n] != ':') {
        return NULL;
    }

    line += n + 1;

    return line + strspn(line, " \t");
}

static void on_status_line(framing *f) {
    const char *code = strchr(f->line, ' ');
    int status = code ? atoi(code + 1) : 0;

    if (strncmp(f->line, "HTTP/", 5) != 0 || status < 100) {
        f->state = FRAMING_BROKEN;
        return;
    }

    f->interim = status < 200;
    f->no_body = f->no_body || status == 204 || status == 304;
    f->state = FRAMING_HEADERS;
}

static void on_headers_end(framing *f) {
    if (f->interim) {
        f->interim = false;
        f->state = FRAMING_STATUS_LINE;
    } else if (f->no_body) {
        f->state = FRAMING_WHOLE;
    } else if (f->chunked) {
        f->state = FRAMING_CHUNK_SIZE;
    } else if (!f->has_length) {
        f->state = FRAMING_UNTIL_CLOSE;
    } else {
        f->state = f->left ? FRAMING_BODY : FRAMING_WHOLE;
    }
}

static void on_header(framing *f) {
    const char *value;

    if (*f->line == '\0') {
        on_headers_end(f);
        return;
    }

    value = value_of(f->line, "Content-Length");

    if (value != NULL) {
        f->left = strtoull(value, NULL, 10);
        f->has_length = true;
    }

    value = value_of(f->line, "Transfer-Encoding");
    f->chunked = f->chunked || (value && strcasestr(value, "chunked"));
}

static void on_chunk_size(framing *f) {
    char *end;

    f->left = strtoull(f->line, &end, 16);

    if (end == f->line) {
        f->state = FRAMING_BROKEN;
    } else {
        f->state = f->left ? FRAMING_CHUNK : FRAMING_TRAILERS;
    }
}

static void on_line(framing *f) {
    if (f->line_len > 0 && f->line[f->line_len - 1] == '\r') {
        f->line[--f->line_len] = '\0';
    }

    switch (f->state) {
    case FRAMING_STATUS_LINE:
        on_status_line(f);
        break;
    case FRAMING_HEADERS:
        on_header(f);
        break;
    case FRAMING_CHUNK_SIZE:
        on_chunk_size(f);
        break;
    case FRAMING_CHUNK_END:
        f->state = f->line_len ? FRAMING_BROKEN : FRAMING_CHUNK_SIZE;
        break;
    case FRAMING_TRAILERS:
        f->state = f->line_len ? FRAMING_TRAILERS : FRAMING_WHOLE;
        break;
    default:
        break;
    }

    free(f->line);
    f->line = NULL;
    f->line_len = 0;
}

/* Returns how many bytes belong to the line at hand. */
static size_t take_line(framing *f, const char *data, size_t len) {
    const char *nl = memchr(data, '\n', len);
    size_t n = nl ? (size_t)(nl - data) : len;

    if (f->line_len + n > LINE_MAX_KEPT) {
        f->state = FRAMING_BROKEN;
        return len;
    }

    f->line = ctl_realloc(f->line, f->line_len + n + 1);
    memcpy(f->line + f->line_len, data, n);
    f->line_len += n;
    f->line[f->line_len] = '\0';

    if (nl != NULL) {
        on_line(f);
    }

    return n + (nl != NULL);
}

static size_t take_body(framing *f, size_t len) {
    size_t n = len < f->left ? len : (size_t)f->left;

    f->left -= n;

    if (f->left == 0) {
        f->state = f->state == FRAMING_BODY ? FRAMING_WHOLE : FRAMING_CHUNK_END;
    }

    return n;
}

void framing_feed(framing *f, const void *data, size_t len) {
    const char *p = data;

    f->size += len;

    while (len > 0) {
        size_t n = len;

        switch (f->state) {
        case FRAMING_BODY:
        case FRAMING_CHUNK:
            n = take_body(f, len);
            break;
        case FRAMING_WHOLE:
            f->state = FRAMING_BROKEN;
            break;
        case FRAMING_UNTIL_CLOSE:
        case FRAMING_BROKEN:
            break;
        default:
            n = take_line(f, p, len);
            break;
        }

        p += n;
        len -= n;
    }
}
