#include "sidecar/encode.h"

#include <stdio.h>
#include <string.h>

#include "proto/record.h"

/* A piece of a split frame that is smaller waits for the next record. */
#define MIN_PIECE 512u

/* What a record has beside its observations: ids, counts, index. */
#define HEAD_COST (CAP_ID_SIZE + CAP_NODE_ID_SIZE + 32u)

size_t encode_size(const conn *c, size_t limit) {
    uint64_t size = c->unsent_cost + HEAD_COST;

    return size < limit ? (size_t)size : limit;
}

/* All of these return whether the whole of c->send is in the record. */

static bool put_data(conn *c, record_writer *w) {
    const frame_ref *r = c->send;
    uint32_t end = r->size;
    size_t left;
    size_t n = record_room(w, r->ts_ns);
    const char *data = (const char *)pool_payload(c->pool, r) + c->send_byte;

    if (r->seq == c->until_seq && c->until_byte < end) {
        end = c->until_byte;
    }
    left = end - c->send_byte;
    if (n >= left) {
        n = left;
    } else if (n == 0 || (n < MIN_PIECE && w->observations > 0)) {
        return false;
    }
    if (r->type == CAP_FRAME_READ) {
        record_read(w, r->ts_ns, data, n);
        c->sent_unterminated = true;
    } else {
        record_write(w, r->ts_ns, data, n);
    }
    if (r == c->begin) {
        c->begin = NULL;
    }
    if (n < left || end < r->size) {
        c->send_byte += (uint32_t)n;
        c->unsent_cost -= n;
        return false;
    }
    return true;
}

static bool put_eom(conn *c, record_writer *w) {
    cap_eom eom;

    memcpy(&eom, pool_payload(c->pool, c->send), sizeof(eom));
    if (record_end_of_message(w, c->send->ts_ns, eom.first_line, eom.headers) !=
        0) {
        return false;
    }
    c->sent_requests++;
    c->sent_unterminated = false;
    return true;
}

static bool put_dropped(conn *c, record_writer *w) {
    if (record_request_dropped(w, c->send->ts_ns) != 0) {
        return false;
    }
    c->sent_unterminated = false;
    return true;
}

static void end_message(const frame_ref *r, char *text, size_t size) {
    if (r->type == CAP_FRAME_END) {
        snprintf(text, size, "truncated");
    } else if ((r->flags & CONN_FRAME_SIDECAR) && r->code == CAP_WORKER_EXIT) {
        snprintf(text, size, "capture: worker ended");
    } else {
        snprintf(text, size, "capture abandoned: %s", cap_reason_name(r->code));
    }
}

/* The end, with why where it is not a plain close: both or neither. */
static bool put_end(conn *c, record_writer *w) {
    const frame_ref *r = c->send;
    char text[64];

    if (record_room(w, r->ts_ns) < CONN_END_COST - CONN_OBSERVATION_COST &&
        w->observations > 0) {
        return false;
    }
    if (r->type != CAP_FRAME_CLOSE) {
        end_message(r, text, sizeof(text));
        if (record_exception(w, r->ts_ns, text, strlen(text)) != 0) {
            return false;
        }
    }
    return record_close(w, r->ts_ns) == 0;
}

static bool put(conn *c, record_writer *w, bool *last) {
    if (c->send->flags & CONN_FRAME_LOST) {
        return true;
    }
    switch (c->send->type) {
    case CAP_FRAME_READ:
    case CAP_FRAME_WRITE:
        return put_data(c, w);
    case CAP_FRAME_EOM:
        return put_eom(c, w);
    case CAP_FRAME_DROP:
        return put_dropped(c, w);
    case CAP_FRAME_END:
        if (c->send->code == CAP_END_COMPLETE) {
            return true;
        }
        return *last = put_end(c, w);
    case CAP_FRAME_ABANDON:
    case CAP_FRAME_CLOSE:
        return *last = put_end(c, w);
    default:
        return true;
    }
}

size_t encode_record(conn *c, uint8_t *buf, size_t cap, uint32_t number,
                     encode_span *span) {
    record_writer w;
    const frame_ref *r = c->send;
    const record_head head = {.connection_id = c->id,
                              .connection_id_len = c->id_len,
                              .node_id = c->pool->node_id,
                              .node_id_len = sizeof(c->pool->node_id),
                              .prior_requests = c->sent_requests,
                              .unterminated_read = c->sent_unterminated};

    if (record_begin(&w, buf, cap, &head) != 0) {
        return 0;
    }
    span->first_seq = r->seq;
    span->first_byte = c->send_byte;
    span->prior_requests = c->sent_requests;
    span->last = false;
    while (c->send != NULL && !conn_at_until(c) && put(c, &w, &span->last)) {
        r = c->send;
        conn_advance(c);
    }
    if (w.observations == 0) {
        return 0;
    }
    span->last_seq = c->send_byte > 0 ? c->send->seq : r->seq;
    span->last_byte = c->send_byte > 0 ? c->send_byte : r->size;
    return record_finish(&w, (int32_t)number, span->last);
}
