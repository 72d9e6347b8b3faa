/* HTTP exchanges out of records, see capturectl_accumulate.h. */

#include "tools/capturectl_accumulate.h"

#include "tools/capturectl.h"

#include <search.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define NS_PER_SECOND 1000000000

typedef enum { WAITING, IGNORING, READS, WRITES } state;

/* The key must come first: the tree compares connections by it. */
typedef struct connection {
    record_slice node_id;
    record_slice connection_id; /* both in this connection's own memory */
    state state;
    int start_index;
    int resets;   /* as the Replayer counts: its index is the sum */
    int64_t seen; /* stream time of its last observation, seconds */
    struct connection *older, *newer;
    http_message request, response;
} connection;

struct accumulator {
    accumulate_calls calls;
    accumulate_counts counts;
    int64_t packet_timeout;
    size_t keep;
    const char *place;
    void *tree;                  /* of connections, tsearch(3) */
    connection *oldest, *newest; /* by seen */
    int64_t now;                 /* stream time, seconds */
};

/* messages */

/* Of what would be more than `keep`, nothing. */
static void append(char **buf, size_t *len, size_t *cap, record_slice s,
                   size_t keep) {
    size_t n = s.len < keep - *len ? s.len : keep - *len;

    if (n > *cap - *len) {
        *cap = (*len + n) * 2;
        *buf = ctl_realloc(*buf, *cap);
    }

    if (n > 0) {
        memcpy(*buf + *len, s.data, n);
        *len += n;
    }
}

static void touch(http_message *m, int64_t ts) {
    if (m->packets == 0 && !m->in_segment) {
        m->first_ns = ts;
    }

    m->last_ns = ts;
}

static void add_packet(const accumulator *a, http_message *m, int64_t ts,
                       record_slice s) {
    touch(m, ts);
    append(&m->data, &m->len, &m->cap, s, a->keep);
    m->size += s.len;
    m->packets++;
}

static void add_segment(const accumulator *a, http_message *m, int64_t ts,
                        record_slice s) {
    touch(m, ts);
    append(&m->segment, &m->segment_len, &m->segment_cap, s, a->keep);
    m->segment_size += s.len;
    m->in_segment = true;
}

static void end_segment(const accumulator *a, http_message *m, int64_t ts) {
    record_slice s = {(const uint8_t *)m->segment, m->segment_len};

    add_packet(a, m, ts, s);
    m->size += m->segment_size - s.len;
    m->in_segment = false;
    m->segment_len = 0;
    m->segment_size = 0;
}

static void clear(http_message *m) {
    free(m->data);
    free(m->segment);
    *m = (http_message){0};
}

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

static void detach(accumulator *a, connection *c) {
    *(c->older ? &c->older->newer : &a->oldest) = c->newer;
    *(c->newer ? &c->newer->older : &a->newest) = c->older;
}

static void attach_newest(accumulator *a, connection *c) {
    c->older = a->newest;
    c->newer = NULL;
    *(a->newest ? &a->newest->newer : &a->oldest) = c;
    a->newest = c;
}

static connection *new_connection(accumulator *a, const record_info *info) {
    size_t n = info->connection_id.len, m = info->node_id.len;
    uint8_t *ids = ctl_alloc(n + m);
    connection *c = ctl_alloc(sizeof(connection));

    memcpy(ids, info->connection_id.data, n);

    if (m > 0) {
        memcpy(ids + n, info->node_id.data, m);
    }

    /* has and not get for the index, as the Replayer asks (contract, 2.7) */
    *c = (connection){
        .connection_id = {ids, n},
        .node_id = {ids + n, m},
        .state = info->unterminated_read ? IGNORING : WAITING,
        .start_index =
            info->prior_requests + (info->has_unterminated_read ? 1 : 0),
        .seen = a->now,
    };

    if (tsearch(c, &a->tree, compare) == NULL) {
        ctl_die("out of memory");
    }

    attach_newest(a, c);

    return c;
}

static connection *find_connection(accumulator *a, const record_info *info) {
    connection key = {.node_id = info->node_id,
                      .connection_id = info->connection_id};
    connection **found = tfind(&key, &a->tree, compare);

    return found ? *found : new_connection(a, info);
}

static void forget_exchange(connection *c) {
    clear(&c->request);
    clear(&c->response);
}

static void remove_connection(accumulator *a, connection *c) {
    tdelete(c, &a->tree, compare);
    detach(a, c);
    forget_exchange(c);
    free((void *)c->connection_id.data); /* the node's id as well */
    free(c);
}

/* exchanges */

static void error(accumulator *a, const char *what) {
    a->calls.error(a->calls.ctx, a->place, what);
}

/* The Replayer warns of an "unaccounted" observation, and goes on. */
static void ignore(accumulator *a, const record_observation *o,
                   const char *where) {
    char what[96];

    snprintf(what, sizeof(what), "%s within a %s is ignored",
             record_kind_name(o->kind), where);
    a->calls.remark(a->calls.ctx, a->place, what);
}

static void hand_out(accumulator *a, connection *c, exchange_state status) {
    http_exchange x = {
        .node_id = c->node_id,
        .connection_id = c->connection_id,
        .index = c->start_index + c->resets,
        .status = status,
        .request = c->request,
        .response = c->response,
    };

    if (c->response.in_segment && status == EXCHANGE_COMPLETE) {
        error(a, "a response ends within segments, whose bytes are lost");
    }

    a->counts.exchanges++;
    a->calls.exchange(a->calls.ctx, &x);
}

/* The exchange at hand comes to its end, whatever it has. */
static void end_exchange(accumulator *a, connection *c, exchange_state status) {
    if (c->state == WRITES) {
        hand_out(a, c, status);
        c->resets++;

    } else if (c->state == READS) {
        a->counts.unfinished++;
    }

    forget_exchange(c);
    c->state = WAITING;
}

static void expire_old(accumulator *a) {
    while (a->oldest != NULL && a->now - a->oldest->seen > a->packet_timeout) {
        a->counts.expired++;
        end_exchange(a, a->oldest, EXCHANGE_EXPIRED);
        remove_connection(a, a->oldest);
    }
}

/* Any time will do, also far beyond: the differences never overflow. */
static void tick(accumulator *a, connection *c, int64_t ts) {
    int64_t seconds = ts / NS_PER_SECOND;

    a->now = seconds > a->now ? seconds : a->now;
    c->seen = a->now;
    detach(a, c);
    attach_newest(a, c);
    expire_old(a);
}

/* observations */

static void on_end_of_message(accumulator *a, connection *c) {
    if (c->request.in_segment) {
        error(a, "a request ends within segments, whose bytes are lost");
    }

    c->state = WRITES;
}

static void on_dropped(accumulator *a, connection *c) {
    a->counts.dropped++;
    forget_exchange(c);
    c->state = WAITING;
}

static void in_ignoring(accumulator *a, connection *c,
                        const record_observation *o) {
    switch (o->kind) {

    case RECORD_WRITE:
    case RECORD_WRITE_SEGMENT:
    case RECORD_END_OF_MESSAGE:
        c->state = WAITING;
        break;

    case RECORD_DROPPED:
        c->start_index--;
        on_dropped(a, c);
        break;

    default:
        break;
    }
}

static void in_reads(accumulator *a, connection *c, const record_observation *o,
                     int64_t ts) {
    switch (o->kind) {

    case RECORD_READ:
        if (c->request.in_segment) {
            error(a,
                  "a read within segments: the request's bytes change places");
        }
        add_packet(a, &c->request, ts, o->data);
        break;

    case RECORD_READ_SEGMENT:
        add_segment(a, &c->request, ts, o->data);
        break;

    case RECORD_SEGMENT_END:
        if (!c->request.in_segment) {
            error(a, "a segmentEnd without segments, which stops the Replayer");
            break;
        }
        end_segment(a, &c->request, ts);
        break;

    case RECORD_END_OF_MESSAGE:
        on_end_of_message(a, c);
        break;

    case RECORD_DROPPED:
        on_dropped(a, c);
        break;

    default:
        ignore(a, o, "request");
        break;
    }
}

static void in_writes(accumulator *a, connection *c,
                      const record_observation *o, int64_t ts) {
    switch (o->kind) {

    case RECORD_WRITE:
        if (c->response.in_segment) {
            error(
                a,
                "a write within segments: the response's bytes change places");
        }
        add_packet(a, &c->response, ts, o->data);
        break;

    case RECORD_WRITE_SEGMENT:
        add_segment(a, &c->response, ts, o->data);
        break;

    case RECORD_SEGMENT_END:
        if (!c->response.in_segment) {
            error(a, "a segmentEnd without segments, which stops the Replayer");
            break;
        }
        end_segment(a, &c->response, ts);
        break;

    case RECORD_READ:
    case RECORD_READ_SEGMENT:
        end_exchange(a, c, EXCHANGE_COMPLETE);
        c->state = READS;
        in_reads(a, c, o, ts);
        break;

    default:
        ignore(a, o, "response");
        break;
    }
}

/* Returns false when the connection is closed, and gone. */
static bool observe(accumulator *a, connection *c, const record_observation *o,
                    int64_t ts) {
    if (o->kind == RECORD_CLOSE) {
        end_exchange(a, c, EXCHANGE_COMPLETE);
        remove_connection(a, c);
        return false;
    }

    if (o->kind == RECORD_EXCEPTION) {
        end_exchange(a, c, EXCHANGE_COMPLETE);
        c->resets++;
        return true;
    }

    if (c->state == WAITING &&
        (o->kind == RECORD_READ || o->kind == RECORD_READ_SEGMENT)) {
        c->state = READS;
    }

    switch (c->state) {

    case WAITING:
        break;

    case IGNORING:
        in_ignoring(a, c, o);
        break;

    case READS:
        in_reads(a, c, o, ts);
        break;

    case WRITES:
        in_writes(a, c, o, ts);
        break;
    }

    return true;
}

accumulator *accumulate_new(const accumulate_calls *calls,
                            int64_t packet_timeout, size_t keep) {
    accumulator *a = ctl_alloc(sizeof(accumulator));

    *a = (accumulator){.calls = *calls,
                       .packet_timeout = packet_timeout,
                       .keep = keep,
                       .now = INT64_MIN / 4};

    return a;
}

void accumulate_record(accumulator *a, const char *place,
                       const record_info *info, record_reader *reader) {
    connection *c;
    record_observation o;

    a->place = place;
    c = find_connection(a, info);

    while (record_next(reader, &o)) {
        int64_t ts = record_ts_ns(&o);

        tick(a, c, ts);

        if (!observe(a, c, &o, ts)) {
            if (record_next(reader, &o)) {
                error(a, "observations after close are ignored");
            }
            break;
        }
    }
}

accumulate_counts accumulate_end(accumulator *a) {
    accumulate_counts counts;

    a->place = "end of input";

    while (a->oldest != NULL) {
        a->counts.open++;
        end_exchange(a, a->oldest, EXCHANGE_OPEN);
        remove_connection(a, a->oldest);
    }

    counts = a->counts;
    free(a);

    return counts;
}
