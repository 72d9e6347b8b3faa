/*
 * capturectl gaps: what is missing, doubled, unfinished or in doubt.
 *
 * It keeps a state for each connection that is open, and a few words for each
 * of the last --remember that have ended. A connection that is silent for
 * longer than --packet-timeout of stream time counts as ended too, as it does
 * for the Replayer.
 */

#include "tools/capturectl.h"
#include "tools/capturectl_closed.h"
#include "tools/capturectl_framing.h"
#include "tools/capturectl_text.h"

#include <inttypes.h>
#include <search.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define NS_PER_SECOND INT64_C(1000000000)

#define RECENT 8  /* records of a connection that can be compared */
#define MISSING 8 /* holes of a connection that a late record can fill */

#define KINDS(X)                                                               \
    X(HOLE, "hole")                                                            \
    X(HEADLESS, "headless")                                                    \
    X(LATE, "late")                                                            \
    X(DUPLICATE, "duplicate")                                                  \
    X(CONFLICT, "conflict")                                                    \
    X(AFTER_CLOSE, "after_close")                                              \
    X(MOVED, "moved")                                                          \
    X(UNREADABLE, "unreadable")                                                \
    X(ABANDONED, "abandoned")                                                  \
    X(SILENT, "silent")                                                        \
    X(UNFINISHED, "unfinished")                                                \
    X(TRUNCATED, "truncated")                                                  \
    X(DOUBT, "doubt")

typedef enum {
#define X(symbol, name) symbol,
    KINDS(X)
#undef X
        KIND_COUNT
} kind;

static const char *const kind_names[] = {
#define X(symbol, name) name,
    KINDS(X)
#undef X
};

typedef enum { WAITING, READS, WRITES, BLIND } state;

typedef struct {
    int32_t number;
    uint64_t digest;
} seen_record;

typedef struct {
    int32_t first, last; /* none where first is 0 */
} range;

/* The names must come first: the tree compares connections by them. */
typedef struct connection {
    record_slice node_id;
    record_slice connection_id; /* both in this connection's own memory */
    int32_t partition;
    int32_t next; /* number */
    seen_record recent[RECENT];
    range missing[MISSING];
    state state; /* BLIND: behind a hole, until the next request */
    int request; /* its index */
    bool head_request;
    bool begun; /* the request: its first byte is known */
    framing response;
    int64_t last_ns;
    int64_t seen; /* stream time, seconds */
    struct connection *older, *newer;
} connection;

typedef struct {
    const ctl_options *opt;
    closed_table *closed;
    void *tree;                  /* of open connections, tsearch(3) */
    connection *oldest, *newest; /* by seen */
    int64_t now;                 /* stream time, seconds */
    bool ignored[KIND_COUNT];
    unsigned long found[KIND_COUNT];
    unsigned long records, connections, requests, cut;
    const ctl_value *at; /* the record at hand, NULL at the end */
} gaps;

/* findings */

static void put_line(const gaps *g, kind k, int64_t ns, record_slice node,
                     record_slice id, const char *detail) {
    char time[TEXT_TIME_SIZE];

    ctl_print("%s %-11s ", ns ? text_time(ns, time) : "-", kind_names[k]);
    text_put_escaped(node.data, node.len);
    ctl_print("%s", node.len || id.len ? "." : "-");
    text_put_escaped(id.data, id.len);
    ctl_print(" ");
    text_put_escaped(detail, strlen(detail));
    ctl_print(g->at ? " (%s)\n" : "\n", g->at ? g->at->place : "");
}

static void put_object(const gaps *g, kind k, int64_t ns, record_slice node,
                       record_slice id, const char *detail) {
    char time[TEXT_TIME_SIZE];
    cJSON *object = cJSON_CreateObject();

    cJSON_AddStringToObject(object, "kind", kind_names[k]);

    if (ns != 0) {
        cJSON_AddStringToObject(object, "time", text_time(ns, time));
    }

    text_add_string(object, "nodeId", node.data, node.len);
    text_add_string(object, "connectionId", id.data, id.len);
    cJSON_AddStringToObject(object, "detail", detail);

    if (g->at != NULL) {
        cJSON_AddStringToObject(object, "place", g->at->place);

        if (g->at->partition >= 0) {
            text_add_int(object, "partition", g->at->partition);
            text_add_int(object, "offset", g->at->offset);
        }
    }

    text_put_json(object);
}

static void __attribute__((format(printf, 6, 7)))
find_at(gaps *g, kind k, int64_t ns, record_slice node, record_slice id,
        const char *fmt, ...) {
    va_list args;
    char detail[256];

    if (g->ignored[k]) {
        return;
    }

    va_start(args, fmt);
    vsnprintf(detail, sizeof(detail), fmt, args);
    va_end(args);

    g->found[k]++;
    ctl_found();
    (g->opt->json ? put_object : put_line)(g, k, ns, node, id, detail);
}

#define find(g, k, c, ...)                                                     \
    find_at(g, k, (c)->last_ns, (c)->node_id, (c)->connection_id, __VA_ARGS__)

/* connections */

static int compare_slices(record_slice a, record_slice b) {
    if (a.len != b.len) {
        return a.len < b.len ? -1 : 1;
    }

    return a.len ? memcmp(a.data, b.data, a.len) : 0;
}

static int compare(const void *a, const void *b) {
    const connection *x = a, *y = b;
    int rc = compare_slices(x->connection_id, y->connection_id);

    return rc ? rc : compare_slices(x->node_id, y->node_id);
}

static void detach(gaps *g, connection *c) {
    *(c->older ? &c->older->newer : &g->oldest) = c->newer;
    *(c->newer ? &c->newer->older : &g->newest) = c->older;
}

static void attach_newest(gaps *g, connection *c) {
    c->older = g->newest;
    c->newer = NULL;
    *(g->newest ? &g->newest->newer : &g->oldest) = c;
    g->newest = c;
}

static closed_key key_of(record_slice node, record_slice id) {
    uint64_t seed = closed_digest(node.data, node.len, 1);

    return (closed_key){closed_digest(id.data, id.len, seed),
                        closed_digest(id.data, id.len, ~seed)};
}

static connection *new_connection(gaps *g, const record_info *info) {
    size_t n = info->connection_id.len, m = info->node_id.len;
    uint8_t *ids = ctl_alloc(n + m);
    connection *c = ctl_alloc(sizeof(connection));

    memcpy(ids, info->connection_id.data, n);

    if (m > 0) {
        memcpy(ids + n, info->node_id.data, m);
    }

    *c = (connection){
        .connection_id = {ids, n},
        .node_id = {ids + n, m},
        .partition = g->at->partition,
        .next = 1,
        .request = info->prior_requests,
    };

    if (tsearch(c, &g->tree, compare) == NULL) {
        ctl_die("out of memory");
    }

    attach_newest(g, c);

    return c;
}

static void remove_connection(gaps *g, connection *c, bool silent) {
    seen_record last = c->recent[(unsigned)(c->next - 1) % RECENT];
    closed_connection closed = {
        .key = key_of(c->node_id, c->connection_id),
        .number = c->next - 1,
        .digest = last.digest,
        .silent = silent,
    };

    closed_put(g->closed, &closed);
    tdelete(c, &g->tree, compare);
    detach(g, c);
    framing_clear(&c->response);
    free((void *)c->connection_id.data); /* the node's id as well */
    free(c);
}

/* exchanges */

static bool response_is_whole(const connection *c) {
    return c->state == WRITES && framing_is_whole(&c->response);
}

/* Where in its traffic a connection stands. */
static const char *where(const connection *c) {
    static const char *const names[] = {"between requests", "within a request",
                                        "within a response", "behind a hole"};

    return response_is_whole(c) ? names[WAITING] : names[c->state];
}

/* The exchange at hand has come to its end, whatever it has. */
static void judge_exchange(gaps *g, connection *c) {
    if (c->state == READS) {
        find(g, DOUBT, c, "request %d has no end: it is not replayed",
             c->request);

    } else if (c->state == WRITES && c->response.size == 0) {
        find(g, DOUBT, c, "request %d has no response", c->request);

    } else if (c->state == WRITES && !framing_is_whole(&c->response)) {
        find(g, TRUNCATED, c,
             c->response.state == FRAMING_BROKEN
                 ? "the response to request %d is not one HTTP/1.1 message, "
                   "after %" PRIu64 " bytes"
                 : "the response to request %d is cut after %" PRIu64 " bytes",
             c->request, c->response.size);
    }

    if (c->state == WRITES) {
        c->request++;
    }

    framing_clear(&c->response);
    c->state = WAITING;
}

static void on_read(gaps *g, connection *c, record_slice data) {
    if (c->state == WRITES) {
        judge_exchange(g, c);
    }

    if (c->state != READS) {
        c->state = READS;
        c->begun = false;
    }

    if (!c->begun && data.len > 0) {
        c->head_request = data.len >= 5 && memcmp(data.data, "HEAD ", 5) == 0;
        c->begun = true;
    }
}

static void on_exception(gaps *g, connection *c, record_slice message) {
    find(g, ABANDONED, c, "connectionException %s: %.*s", where(c),
         message.len < 100 ? (int)message.len : 100, message.data);
    judge_exchange(g, c);
}

/* Returns false when the connection is closed, and gone. */
static bool observe(gaps *g, connection *c, const record_observation *o) {
    switch (o->kind) {

    case RECORD_READ:
    case RECORD_READ_SEGMENT:
        on_read(g, c, o->data);
        break;

    case RECORD_END_OF_MESSAGE:
        if (c->state == READS) {
            g->requests++;
            c->state = WRITES;
            framing_start(&c->response, c->head_request);
        }
        break;

    case RECORD_WRITE:
    case RECORD_WRITE_SEGMENT:
        if (c->state == WRITES) {
            framing_feed(&c->response, o->data.data, o->data.len);
        }
        break;

    case RECORD_DROPPED:
        if (c->state != WRITES) {
            c->state = WAITING;
        }
        break;

    case RECORD_EXCEPTION:
        on_exception(g, c, o->data);
        break;

    case RECORD_CLOSE:
        judge_exchange(g, c);
        return false;

    default:
        break;
    }

    return true;
}

static void expire_old(gaps *g) {
    g->at = NULL; /* the record at hand is another connection's */

    while (g->oldest != NULL &&
           g->now - g->oldest->seen > g->opt->packet_timeout) {
        connection *c = g->oldest;

        find(g, SILENT, c, "no close and nothing more for %" PRId64 " s, %s",
             g->opt->packet_timeout, where(c));
        judge_exchange(g, c);
        remove_connection(g, c, true);
    }
}

/* numbers */

static void remember_hole(connection *c, int32_t first, int32_t last) {
    memmove(c->missing + 1, c->missing, sizeof(c->missing) - sizeof(range));
    c->missing[0] = (range){first, last};
}

/* Whether the number was missing; it is not any more. */
static bool fill_hole(connection *c, int32_t number) {
    for (int i = 0; i < MISSING; i++) {
        range r = c->missing[i];

        if (r.first == 0 || number < r.first || number > r.last) {
            continue;
        }

        c->missing[i] = (range){0, 0};

        if (number > r.first) {
            c->missing[i] = (range){r.first, number - 1};
        }

        if (number < r.last) {
            remember_hole(c, number + 1, r.last);
        }

        return true;
    }

    return false;
}

static void judge_again(gaps *g, connection *c, int32_t number,
                        uint64_t digest) {
    const seen_record *r = &c->recent[(unsigned)number % RECENT];

    if (fill_hole(c, number)) {
        find(g, LATE, c, "record %" PRId32 " comes after record %" PRId32,
             number, c->next - 1);
        c->recent[(unsigned)number % RECENT] = (seen_record){number, digest};

    } else if (r->number != number) {
        find(g, DUPLICATE, c,
             "record %" PRId32 " again, too late to compare its bytes", number);

    } else {
        find(g, r->digest == digest ? DUPLICATE : CONFLICT, c,
             "record %" PRId32 " again, with %s bytes", number,
             r->digest == digest ? "the same" : "other");
    }
}

/* Whether the record is the next one, or stands behind a hole. */
static bool judge_number(gaps *g, connection *c, const record_info *info,
                         uint64_t digest) {
    int32_t number = info->number;

    if (number < c->next) {
        judge_again(g, c, number, digest);
        return false;
    }

    if (number > c->next) {
        if (c->next > 1) {
            find(g, HOLE, c,
                 "records %" PRId32 " to %" PRId32 " are missing, of request "
                 "%d on",
                 c->next, number - 1, c->request + response_is_whole(c));
        } else if (g->at->cut) {
            g->cut++;
        } else {
            find(g, HEADLESS, c, "records 1 to %" PRId32 " are missing",
                 number - 1);
        }

        remember_hole(c, c->next, number - 1);
        framing_clear(&c->response);
        c->state = info->unterminated_read ? READS : BLIND;
        c->begun = true;
        c->head_request = false;
        c->request = info->prior_requests;
    }

    c->recent[(unsigned)number % RECENT] = (seen_record){number, digest};
    c->next = number < INT32_MAX ? number + 1 : number;

    return true;
}

/* records */

/* A record of a connection that has ended before; true if that is all. */
static bool judge_closed(gaps *g, const record_info *info, int64_t ns,
                         uint64_t digest, closed_connection *closed) {
    connection *c;

    if (closed->silent) {
        c = new_connection(g, info);
        c->next = closed->number + 1;
        c->recent[(unsigned)closed->number % RECENT] =
            (seen_record){closed->number, closed->digest};
        c->state = info->unterminated_read ? READS : BLIND;
        c->begun = true;
        return false;
    }

    if (info->number == closed->number) {
        find_at(g, closed->digest == digest ? DUPLICATE : CONFLICT, ns,
                info->node_id, info->connection_id,
                "record %" PRId32 " again, with %s bytes", info->number,
                closed->digest == digest ? "the same" : "other");

    } else if (info->number < closed->number) {
        find_at(g, DUPLICATE, ns, info->node_id, info->connection_id,
                "record %" PRId32 " again, or late, after the close",
                info->number);

    } else {
        find_at(g, AFTER_CLOSE, ns, info->node_id, info->connection_id,
                "record %" PRId32 " after the close in record %" PRId32,
                info->number, closed->number);
    }

    return true;
}

/* NULL: the record was one of a connection that has ended. */
static connection *connection_of(gaps *g, const record_info *info, int64_t ns,
                                 uint64_t digest) {
    connection key = {.node_id = info->node_id,
                      .connection_id = info->connection_id};
    connection **found = tfind(&key, &g->tree, compare);
    closed_connection *closed;

    if (found != NULL) {
        return *found;
    }

    closed = closed_find(g->closed, key_of(key.node_id, key.connection_id));

    if (closed != NULL) {
        if (judge_closed(g, info, ns, digest, closed)) {
            return NULL;
        }
        return *(connection **)tfind(&key, &g->tree, compare);
    }

    g->connections++;

    return new_connection(g, info);
}

/* The record's time, which is its last observation's. */
static int64_t time_of(record_reader reader) {
    record_observation o;
    int64_t ns = 0;

    while (record_next(&reader, &o)) {
        ns = record_ts_ns(&o);
    }

    return ns;
}

static void take_record(gaps *g, ctl_record *r) {
    int64_t ns = time_of(r->reader);
    uint64_t digest = closed_digest(g->at->value, g->at->value_len, 0);
    connection *c;
    record_observation o;

    g->now = ns / NS_PER_SECOND > g->now ? ns / NS_PER_SECOND : g->now;
    c = connection_of(g, &r->info, ns, digest);

    if (c != NULL) {
        c->last_ns = ns;
        c->seen = g->now;
        detach(g, c);
        attach_newest(g, c);

        if (c->partition != g->at->partition) {
            find(g, MOVED, c, "from partition %" PRId32 " to %" PRId32,
                 c->partition, g->at->partition);
            c->partition = g->at->partition;
        }

        if (judge_number(g, c, &r->info, digest)) {
            while (record_next(&r->reader, &o)) {
                if (!observe(g, c, &o)) {
                    remove_connection(g, c, false);
                    break;
                }
            }
        }
    }

    expire_old(g);
}

static bool on_value(void *ctx, const ctl_value *v) {
    char why[CTL_FAULT_SIZE];
    gaps *g = ctx;
    ctl_record r;

    g->at = v;
    g->records++;

    if (ctl_open_record(v, &r, why)) {
        take_record(g, &r);
    } else {
        record_slice key = {(const uint8_t *)v->key, v->key ? v->key_len : 0};

        find_at(g, UNREADABLE, 0, (record_slice){NULL, 0}, key, "%s", why);
    }

    return !ctl_output_lost();
}

/* the end */

static void end_all(gaps *g) {
    g->at = NULL;

    while (g->oldest != NULL) {
        connection *c = g->oldest;

        find(g, UNFINISHED, c, "no close, %s", where(c));
        judge_exchange(g, c);
        remove_connection(g, c, false);
    }
}

static void put_summary(const gaps *g) {
    cJSON *found, *object = cJSON_CreateObject();

    cJSON_AddStringToObject(object, "kind", "summary");
    text_add_int(object, "records", (int64_t)g->records);
    text_add_int(object, "connections", (int64_t)g->connections);
    text_add_int(object, "requests", (int64_t)g->requests);
    text_add_int(object, "begunEarlier", (int64_t)g->cut);
    found = cJSON_AddObjectToObject(object, "found");

    for (int k = 0; k < KIND_COUNT; k++) {
        text_add_int(found, kind_names[k], (int64_t)g->found[k]);
    }

    text_put_json(object);
}

static void tell_summary(const gaps *g) {
    char text[512] = "";

    for (int k = 0; k < KIND_COUNT; k++) {
        size_t n = strlen(text);

        if (g->found[k] > 0) {
            snprintf(text + n, sizeof(text) - n, "%s%lu %s", n ? ", " : "",
                     g->found[k], kind_names[k]);
        }
    }

    ctl_remark("%lu records, %lu connections, %lu requests: %s", g->records,
               g->connections, g->requests, *text ? text : "nothing found");

    if (g->cut > 0) {
        ctl_remark("%lu connections began before what was read", g->cut);
    }
}

static void take_ignored(gaps *g, const char *list) {
    while (list != NULL && *list) {
        size_t n = strcspn(list, ",");
        int k = 0;

        while (k < KIND_COUNT && (strlen(kind_names[k]) != n ||
                                  memcmp(kind_names[k], list, n) != 0)) {
            k++;
        }

        if (k == KIND_COUNT) {
            ctl_remark("--ignore %.*s: there is no such kind", (int)n, list);
            exit(CTL_USAGE);
        }

        g->ignored[k] = true;
        list += n + (list[n] == ',');
    }
}

void ctl_gaps(const ctl_options *opt) {
    gaps g = {.opt = opt, .now = INT64_MIN / 4};

    take_ignored(&g, opt->ignore);
    g.closed = closed_new((size_t)opt->remember);
    ctl_read_values(opt, on_value, &g);
    end_all(&g);

    if (opt->json) {
        put_summary(&g);
    }

    if (!opt->quiet) {
        tell_summary(&g);
    }

    closed_free(g.closed);
}
