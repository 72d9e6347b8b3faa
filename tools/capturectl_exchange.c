/* What an exchange's bytes say. */

#include "tools/capturectl_exchange.h"

#include <string.h>
#include <strings.h>

#define NS_PER_MS 1e6

/* The first line, without its end; a request may have empty lines before it. */
span exchange_first_line(const http_message *m) {
    const char *end, *p = m->data;
    size_t n = m->len;

    while (n > 0 && (*p == '\r' || *p == '\n')) {
        p++;
        n--;
    }

    end = n ? memchr(p, '\n', n) : NULL;
    n = end ? (size_t)(end - p) : n;

    if (n > 0 && p[n - 1] == '\r') {
        n--;
    }

    return (span){p, n};
}

/* The length of the head with its empty line; all of it if that never comes. */
size_t exchange_head_len(const http_message *m) {
    span line = exchange_first_line(m);

    for (size_t i = (size_t)(line.data - m->data) + line.len; i < m->len; i++) {
        if (m->data[i] != '\n') {
            continue;
        }

        if (i + 1 < m->len && m->data[i + 1] == '\n') {
            return i + 2;
        }

        if (i + 2 < m->len && m->data[i + 1] == '\r' &&
            m->data[i + 2] == '\n') {
            return i + 3;
        }
    }

    return m->len;
}

/* The next word of a line, which is taken from it. */
span exchange_word(span *line) {
    span word = *line;
    const char *blank = line->len ? memchr(line->data, ' ', line->len) : NULL;

    if (blank == NULL) {
        *line = (span){line->data + line->len, 0};
        return word;
    }

    word.len = (size_t)(blank - line->data);
    line->len -= word.len + 1;
    line->data = blank + 1;

    return word;
}

/* 0 if the response does not begin with a status line. */
int exchange_status(const http_message *m) {
    span line = exchange_first_line(m);
    span version = exchange_word(&line), code = exchange_word(&line);

    if (version.len < 5 || strncasecmp(version.data, "HTTP/", 5) != 0 ||
        code.len != 3) {
        return 0;
    }

    for (size_t i = 0; i < 3; i++) {
        if (code.data[i] < '0' || code.data[i] > '9') {
            return 0;
        }
    }

    return (code.data[0] - '0') * 100 + (code.data[1] - '0') * 10 +
           (code.data[2] - '0');
}

/* From the request's last packet to the response's last, as in the tuples. */
double exchange_latency_ms(const http_exchange *x) {
    int64_t ns;

    if (__builtin_sub_overflow(x->response.last_ns, x->request.last_ns, &ns)) {
        ns = x->response.last_ns < 0 ? INT64_MIN : INT64_MAX;
    }

    return (double)ns / NS_PER_MS;
}

const char *exchange_state_name(exchange_state state) {
    switch (state) {
    case EXCHANGE_COMPLETE:
        return "complete";
    case EXCHANGE_EXPIRED:
        return "expired";
    case EXCHANGE_OPEN:
        return "open";
    }

    return "";
}

span exchange_path(span uri) {
    const char *end = uri.len ? memchr(uri.data, '?', uri.len) : NULL;

    return (span){uri.data, end ? (size_t)(end - uri.data) : uri.len};
}
