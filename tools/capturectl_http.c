/*
 * capturectl http: exchanges as the Replayer would put them together, one a
 * line or one JSON object a line; with --full heads and bodies, as they were
 * captured.
 */

#include "tools/capturectl.h"
#include "tools/capturectl_exchange.h"
#include "tools/capturectl_filter.h"
#include "tools/capturectl_text.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

typedef struct http_sorter http_sorter;

typedef struct {
    const ctl_options *opt;
    accumulator *accumulator;
    exchange_filter *filter;
    http_sorter *sorter; /* NULL: exchanges are printed as they complete */
    unsigned long records, shown;
} http_view;

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

    head = exchange_head_len(m);
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
    int status = exchange_status(&x->response);
    char time[TEXT_TIME_SIZE];
    span line = exchange_first_line(&x->request);

    ctl_print("%s ", text_time(x->request.first_ns, time));
    text_put_escaped(x->node_id.data, x->node_id.len);
    ctl_print(".");
    text_put_escaped(x->connection_id.data, x->connection_id.len);
    ctl_print(".%d \"", x->index);
    text_put_escaped(line.data, line.len);
    ctl_print("\" %" PRIu64, x->request.size);

    if (x->response.packets == 0) {
        ctl_print(" -> no response");
    } else if (status == 0) {
        ctl_print(" -> ? %" PRIu64 " %.3fms", x->response.size,
                  exchange_latency_ms(x));
    } else {
        ctl_print(" -> %d %" PRIu64 " %.3fms", status, x->response.size,
                  exchange_latency_ms(x));
    }

    ctl_print(x->status == EXCHANGE_COMPLETE ? "\n" : " (%s)\n",
              exchange_state_name(x->status));

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
    text_add_int(message, "size", (int64_t)m->size);

    return message;
}

static void add_full(cJSON *message, const http_message *m) {
    size_t head = m->len ? exchange_head_len(m) : 0;

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
    span line = exchange_first_line(&x->request);

    add_word(message, "method", exchange_word(&line));
    add_word(message, "uri", exchange_word(&line));
    add_word(message, "version", line);

    if (full) {
        add_full(message, &x->request);
    }
}

static void add_response(cJSON *object, const http_exchange *x, bool full) {
    cJSON *message;
    int status = exchange_status(&x->response);

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

    cJSON_AddNumberToObject(object, "latency_ms", exchange_latency_ms(x));
}

static void put_json(const ctl_options *opt, const http_exchange *x) {
    cJSON *object = cJSON_CreateObject();

    text_add_string(object, "nodeId", x->node_id.data, x->node_id.len);
    text_add_string(object, "connectionId", x->connection_id.data,
                    x->connection_id.len);
    text_add_int(object, "index", x->index);
    cJSON_AddStringToObject(object, "state", exchange_state_name(x->status));
    add_request(object, x, opt->full);
    add_response(object, x, opt->full);
    text_put_json(object);
}

/* --sort time: what has been rendered, held until the end */

typedef struct {
    int64_t first_ns;
    size_t at; /* in the order of completion */
    char *text;
    size_t len;
} line;

struct http_sorter {
    line *lines;
    size_t count, cap;
};

static void hold(http_sorter *s, int64_t first_ns, char *text, size_t len) {
    if (s->count == s->cap) {
        s->cap = s->cap * 2 + 1024;
        s->lines = ctl_realloc(s->lines, s->cap * sizeof(line));
    }

    s->lines[s->count] = (line){first_ns, s->count, text, len};
    s->count++;
}

static int by_time(const void *a, const void *b) {
    const line *x = a, *y = b;

    if (x->first_ns != y->first_ns) {
        return x->first_ns < y->first_ns ? -1 : 1;
    }

    return (x->at > y->at) - (x->at < y->at);
}

static void put_sorted(http_sorter *s) {
    if (s->count > 0) {
        qsort(s->lines, s->count, sizeof(line), by_time);
    }

    for (size_t i = 0; i < s->count; i++) {
        ctl_put(s->lines[i].text, s->lines[i].len);
        free(s->lines[i].text);
    }

    free(s->lines);
}

/* the accumulator's callbacks */

static void on_exchange(void *ctx, const http_exchange *x) {
    http_view *view = ctx;

    if (!filter_wants(view->filter, x)) {
        return;
    }

    view->shown++;

    if (view->sorter != NULL) {
        ctl_capture_begin();
    }

    (view->opt->json ? put_json : put_readable)(view->opt, x);

    if (view->sorter != NULL) {
        size_t len;
        char *text = ctl_capture_end(&len);

        hold(view->sorter, x->request.first_ns, text, len);
    }
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
    http_sorter sorter = {0};
    http_view view = {.opt = opt};
    accumulate_counts n;
    accumulate_calls calls = {on_exchange, on_remark, on_error, &view};

    if (strcmp(opt->sort, "time") == 0) {
        view.sorter = &sorter;
    } else if (strcmp(opt->sort, "completion") != 0) {
        ctl_remark("--sort %s: completion or time", opt->sort);
        exit(CTL_USAGE);
    }

    view.filter = filter_new(opt);
    view.accumulator =
        accumulate_new(&calls, opt->packet_timeout,
                       opt->full || opt->body ? SIZE_MAX : EXCHANGE_HEAD_KEPT);
    ctl_read_records(opt, on_record, &view);
    n = accumulate_end(view.accumulator);
    put_sorted(&sorter);

    if (!opt->quiet && !ctl_output_lost()) {
        ctl_remark("%lu records, %lu exchanges; requests: %lu dropped, %lu "
                   "without an end; "
                   "connections: %lu expired, %lu open",
                   view.records, n.exchanges, n.dropped, n.unfinished,
                   n.expired, n.open);

        if (filter_is_set(view.filter)) {
            ctl_remark("%lu exchanges shown", view.shown);
        }
    }

    filter_free(view.filter);
}
