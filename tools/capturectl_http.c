/*
 * capturectl http: exchanges as the Replayer would put them together, one a
 * line or one JSON object a line; with --full heads and bodies, as they were
 * captured.
 */

#include "tools/capturectl.h"
#include "tools/capturectl_accumulate.h"
#include "tools/capturectl_text.h"

#include <string.h>
#include <strings.h>

#define NS_PER_MS 1e6

typedef struct {
    const ctl_options *opt;
    accumulator *accumulator;
    unsigned long records;
} http_view;

typedef struct {
    const char *data;
    size_t len;
} span;

/* The first line, without its end; a request may have empty lines before it. */
static span first_line(const http_message *m) {
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
static size_t head_len(const http_message *m) {
    span line = first_line(m);

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
static span take_word(span *line) {
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
static int status_of(const http_message *m) {
    span line = first_line(m);
    span version = take_word(&line), code = take_word(&line);

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
static double latency_ms(const http_exchange *x) {
    int64_t ns;

    if (__builtin_sub_overflow(x->response.last_ns, x->request.last_ns, &ns)) {
        ns = x->response.last_ns < 0 ? INT64_MIN : INT64_MAX;
    }

    return (double)ns / NS_PER_MS;
}

static const char *status_name(exchange_status status) {
    switch (status) {
    case EXCHANGE_COMPLETE:
        return "complete";
    case EXCHANGE_EXPIRED:
        return "expired";
    case EXCHANGE_OPEN:
        return "open";
    }

    return "";
}

/* readable */

/* Lines with a mark before each, as curl -v shows a message's head. */
static void put_marked(const char *mark, const char *data, size_t len) {
    while (len > 0) {
        const char *nl = memchr(data, '\n', len);
        size_t n = nl ? (size_t)(nl - data) : len;
        size_t shown = n > 0 && data[n - 1] == '\r' ? n - 1 : n;

        ctl_print("%s ", mark);
        text_put_escaped(data, shown);
        ctl_print("\n");

        n += nl != NULL;
        data += n;
        len -= n;
    }
}

static void put_full(const char *mark, const http_message *m) {
    size_t head;

    if (m->len == 0) {
        return;
    }

    head = head_len(m);
    put_marked(mark, m->data, head);

    if (m->len == head) {
        return;
    }

    if (text_is_printable(m->data + head, m->len - head)) {
        ctl_put(m->data + head, m->len - head);
        ctl_print(m->data[m->len - 1] == '\n' ? "" : "\n");

    } else {
        ctl_print("[%zu bytes that are not text]\n", m->len - head);
    }
}

static void put_readable(const ctl_options *opt, const http_exchange *x) {
    int status = status_of(&x->response);
    char time[TEXT_TIME_SIZE];
    span line = first_line(&x->request);

    ctl_print("%s ", text_time(x->request.first_ns, time));
    text_put_escaped(x->node_id.data, x->node_id.len);
    ctl_print(".");
    text_put_escaped(x->connection_id.data, x->connection_id.len);
    ctl_print(".%d \"", x->index);
    text_put_escaped(line.data, line.len);
    ctl_print("\" %zu", x->request.len);

    if (x->response.packets == 0) {
        ctl_print(" -> no response");
    } else if (status == 0) {
        ctl_print(" -> ? %zu %.3fms", x->response.len, latency_ms(x));
    } else {
        ctl_print(" -> %d %zu %.3fms", status, x->response.len, latency_ms(x));
    }

    ctl_print(x->status == EXCHANGE_COMPLETE ? "\n" : " (%s)\n",
              status_name(x->status));

    if (opt->full) {
        put_full(">", &x->request);
        put_full("<", &x->response);
        ctl_print("\n");
    }
}

/* JSON */

static cJSON *add_message(cJSON *object, const char *name,
                          const http_message *m) {
    char time[TEXT_TIME_SIZE];
    cJSON *message = cJSON_AddObjectToObject(object, name);

    cJSON_AddStringToObject(message, "first", text_time(m->first_ns, time));
    cJSON_AddStringToObject(message, "last", text_time(m->last_ns, time));
    text_add_int(message, "packets", m->packets);
    text_add_int(message, "size", (int64_t)m->len);

    return message;
}

static void add_full(cJSON *message, const http_message *m) {
    size_t head = m->len ? head_len(m) : 0;

    text_add_bytes(cJSON_AddObjectToObject(message, "head"), m->data, head);

    if (m->len > head) {
        text_add_bytes(cJSON_AddObjectToObject(message, "body"), m->data + head,
                       m->len - head);
    } else {
        text_add_bytes(cJSON_AddObjectToObject(message, "body"), "", 0);
    }
}

/* A part of the request line, if it can be a JSON string. */
static void add_word(cJSON *message, const char *name, span word) {
    if (word.len > 0 && text_is_printable(word.data, word.len)) {
        text_add_string(message, name, word.data, word.len);
    }
}

static void add_request(cJSON *object, const http_exchange *x, bool full) {
    cJSON *message = add_message(object, "request", &x->request);
    span line = first_line(&x->request);

    add_word(message, "method", take_word(&line));
    add_word(message, "uri", take_word(&line));
    add_word(message, "version", line);

    if (full) {
        add_full(message, &x->request);
    }
}

static void add_response(cJSON *object, const http_exchange *x, bool full) {
    cJSON *message;
    int status = status_of(&x->response);

    if (x->response.packets == 0) {
        return;
    }

    message = add_message(object, "response", &x->response);

    if (status != 0) {
        text_add_int(message, "status", status);
    }

    if (full) {
        add_full(message, &x->response);
    }

    cJSON_AddNumberToObject(object, "latency_ms", latency_ms(x));
}

static void put_json(const ctl_options *opt, const http_exchange *x) {
    cJSON *object = cJSON_CreateObject();

    text_add_string(object, "nodeId", x->node_id.data, x->node_id.len);
    text_add_string(object, "connectionId", x->connection_id.data,
                    x->connection_id.len);
    text_add_int(object, "index", x->index);
    cJSON_AddStringToObject(object, "state", status_name(x->status));
    add_request(object, x, opt->full);
    add_response(object, x, opt->full);
    text_put_json(object);
}

/* the accumulator's callbacks */

static void on_exchange(void *ctx, const http_exchange *x) {
    http_view *view = ctx;

    (view->opt->json ? put_json : put_readable)(view->opt, x);
}

static void on_remark(void *ctx, const char *place, const char *what) {
    (void)ctx;

    ctl_remark("%s: %s", place, what);
}

static void on_error(void *ctx, const char *place, const char *what) {
    (void)ctx;

    ctl_error("%s: %s", place, what);
}

static void on_record(void *ctx, ctl_record *r) {
    http_view *view = ctx;

    view->records++;
    accumulate_record(view->accumulator, r->from->place, &r->info, &r->reader);
}

void ctl_http(const ctl_options *opt) {
    http_view view = {.opt = opt};
    accumulate_counts n;
    accumulate_calls calls = {on_exchange, on_remark, on_error, &view};

    view.accumulator = accumulate_new(&calls, opt->packet_timeout);
    ctl_read_records(opt, on_record, &view);
    n = accumulate_end(view.accumulator);

    if (!opt->quiet && !ctl_output_lost()) {
        ctl_remark("%lu records, %lu exchanges; requests: %lu dropped, %lu "
                   "without an end; "
                   "connections: %lu expired, %lu open",
                   view.records, n.exchanges, n.dropped, n.unfinished,
                   n.expired, n.open);
    }
}
