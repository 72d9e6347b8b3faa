#include "sidecar/conn.h"

#include <stdio.h>
#include <string.h>

#include "sidecar/step.h"

/* An observation other than those that end the connection. */
static bool is_content(const frame_ref *r) {
    return !(r->flags & CONN_FRAME_LOST) &&
           (r->type == CAP_FRAME_READ || r->type == CAP_FRAME_EOM ||
            r->type == CAP_FRAME_WRITE || r->type == CAP_FRAME_DROP);
}

static bool is_end(const frame_ref *r) {
    return r->type == CAP_FRAME_ABANDON || r->type == CAP_FRAME_CLOSE ||
           (r->type == CAP_FRAME_END && r->code != CAP_END_COMPLETE);
}

static uint64_t cost(const frame_ref *r) {
    if (is_content(r)) {
        return (uint64_t)r->size + CONN_OBSERVATION_COST;
    }
    return is_end(r) ? CONN_END_COST : 0;
}

static void enters(conn *c, const frame_ref *r) {
    c->unsent_cost += cost(r);
    c->unsent += is_content(r);
    c->unsent_end |= is_end(r);
}

static void leaves(conn *c, const frame_ref *r) {
    c->unsent_cost -= cost(r) - (r == c->send ? c->send_byte : 0);
    c->unsent -= is_content(r);
    if (is_end(r)) {
        c->unsent_end = false;
    }
    if (r->flags & CONN_FRAME_FLUSH) {
        c->flushes--;
    }
    if (r == c->begin) {
        c->begin = NULL;
    }
    if (r == c->eom) {
        c->eom = NULL;
    }
}

void conn_append(conn *c, frame_ref *r) {
    r->next = NULL;
    if (c->tail == NULL) {
        c->head = r;
    } else {
        c->tail->next = r;
    }
    c->tail = r;
    if (c->send == NULL) {
        c->send = r;
        c->send_byte = 0;
    }
    enters(c, r);
}

void conn_mark(conn *c) {
    if (c->send != NULL && !(c->tail->flags & CONN_FRAME_FLUSH)) {
        c->tail->flags |= CONN_FRAME_FLUSH;
        c->flushes++;
    }
}

void conn_withdraw_eom(conn *c) {
    if (c->eom != NULL) {
        c->unsent--;
        c->unsent_cost -= cost(c->eom);
        c->eom->type = CAP_FRAME_PAD;
        c->eom = NULL;
    }
}

bool conn_needs_record(const conn *c) {
    return c->unsent > 0 ||
           (c->unsent_end && (c->next_number > 1 || c->record != NULL));
}

void conn_advance(conn *c) {
    leaves(c, c->send);
    c->send = c->send->next;
    c->send_byte = 0;
}

uint64_t conn_acked(const conn *c) {
    unsigned flags = 0;

    if (c->acked_open) {
        flags |= CAP_ACKED_OPEN;
    }
    if (c->acked_eom) {
        flags |= CAP_ACKED_EOM;
    }
    if (c->acked_end) {
        flags |= CAP_ACKED_END;
    }
    if (c->waits) {
        flags |= CAP_ACKED_WAITS;
    }
    if (c->acked_open && c->keeps) {
        flags |= CAP_ACKED_KEPT;
    }
    if (c->acked_open && c->acked_lost) {
        flags |= CAP_ACKED_LOST;
    }
    return CAP_ACKED(c->acked_seq, flags);
}

/* One store: from here on a successor takes all up to acked_seq for done. */
static void commit(const conn *c) {
    if (!c->slot_returned && pool_owned(c->pool)) {
        atomic_store_explicit(
            &cap_slot_at(c->pool->header, &c->pool->geometry, c->slot)->acked,
            conn_acked(c), memory_order_release);
        step(STEP_COMMITTED);
    }
}

/* The class of the exchange that `r` ends. */
static unsigned class_of(const conn *c, const frame_ref *r) {
    if ((r->flags & CONN_FRAME_LOST) && !(r->flags & CONN_FRAME_COUNTS)) {
        /* without an endOfMessage nothing replays it: then it was dropped */
        return r->type == CAP_FRAME_DROP && !c->acked_eom ? r->code
                                                          : CAP_MAYBE_LOST;
    }
    if (r->type == CAP_FRAME_END) {
        return r->code == CAP_END_COMPLETE ? CAP_ENDING_CAPTURED
                                           : CAP_ENDING_TRUNCATED;
    }
    if ((r->flags & CONN_FRAME_SIDECAR) && c->acked_eom) {
        return CAP_RESPONSE; /* the sidecar itself had to end it */
    }
    return r->code;
}

/* A successor finds what `ending` says, if we die before it is counted. */
static void exchange_ended(conn *c, const frame_ref *r) {
    unsigned class = class_of(c, r);

    if (!c->acked_open && !(r->flags & CONN_FRAME_COUNTS)) {
        return;
    }
    c->acked_open = false;
    c->acked_eom = false;
    c->keeps = false;
    pool_ending(c->pool, class, 1);
    step(STEP_ENDING);
    commit(c);
    pool_count_class(c->pool, class);
    step(STEP_COUNTED);
    pool_ending(c->pool, 0, 0);
    step(STEP_ENDED);
}

static void acknowledge(conn *c, const frame_ref *r, bool keep) {
    c->acked_seq = r->seq;
    c->acked_end |= is_end(r);
    c->acked_lost = (r->flags & CONN_FRAME_LOST) != 0;
    switch (r->type) {
    case CAP_FRAME_READ:
        c->acked_open = true;
        if (r->flags & CAP_FRAME_BEGIN) {
            c->keeps = keep && !c->acked_lost;
        }
        break;
    case CAP_FRAME_EOM:
        c->acked_eom = true;
        c->keeps = false;
        if (r->flags & CAP_FRAME_WAIT) {
            pool_wake(c->pool);
        }
        break;
    case CAP_FRAME_HOLD:
        pool_wake(c->pool);
        break;
    case CAP_FRAME_END:
    case CAP_FRAME_DROP:
    case CAP_FRAME_ABANDON:
        exchange_ended(c, r);
        break;
    default:
        /* what ends it may need a record: a successor must not miss it */
        c->acked_open |= (r->flags & CONN_FRAME_CUT) != 0;
        if (r->flags & CONN_FRAME_COUNTS) {
            exchange_ended(c, r);
        }
        break;
    }
}

void conn_acknowledge(conn *c, bool keep) {
    for (const frame_ref *r = c->head; r != c->send; r = r->next) {
        acknowledge(c, r, keep);
    }
    while (c->send != NULL && !is_content(c->send) &&
           (!is_end(c->send) || !conn_needs_record(c))) {
        acknowledge(c, c->send, keep);
        conn_advance(c);
    }
    c->acked_requests = c->sent_requests;
    c->acked_unterminated = c->sent_unterminated;
    commit(c);
}

static void release_kept(conn *c) {
    frame_ref *r;

    while ((r = c->kept) != NULL) {
        c->kept = r->next;
        pool_release(c->pool, r);
    }
    c->kept_tail = NULL;
}

void conn_keep(conn *c, frame_ref *r) {
    if (r->flags & CAP_FRAME_BEGIN) {
        release_kept(c); /* of an exchange before */
    } else if (c->kept == NULL) {
        pool_release(c->pool, r);
        return;
    }
    r->next = NULL;
    if (c->kept_tail == NULL) {
        c->kept = r;
    } else {
        c->kept_tail->next = r;
    }
    c->kept_tail = r;
}

void conn_release(conn *c) {
    frame_ref *r;

    if (!c->keeps) {
        release_kept(c);
    }
    while ((r = c->head) != c->send) {
        c->head = r->next;
        if (c->keeps) {
            conn_keep(c, r);
        } else {
            pool_release(c->pool, r);
        }
    }
    if (c->head == NULL) {
        c->tail = NULL;
    }
}

/* Ends the queue before `first`, which is unsent; `prev` is the one before. */
static frame_ref *detach(conn *c, frame_ref *prev, frame_ref *first) {
    if (prev == NULL) {
        c->head = NULL;
    } else {
        prev->next = NULL;
    }
    c->tail = prev;
    if (c->send == first) {
        c->send = NULL;
        c->send_byte = 0;
    }
    return first;
}

static void free_frames(conn *c, frame_ref *r) {
    frame_ref *next;

    for (; r != NULL; r = next) {
        next = r->next;
        leaves(c, r);
        pool_release(c->pool, r);
    }
}

/* The frames stay, as nothing, until all before them is acknowledged: a
   successor that found the rest without the first ones could make no sense of
   it. */
bool conn_cut_exchange(conn *c) {
    if (c->begin == NULL) {
        return false;
    }
    for (frame_ref *r = c->begin; r != NULL; r = r->next) {
        c->unsent_cost -= cost(r);
        c->unsent -= is_content(r);
        r->type = CAP_FRAME_PAD;
        if (r->flags & CAP_FRAME_BEGIN) {
            r->flags ^= CAP_FRAME_BEGIN | CONN_FRAME_CUT;
        }
    }
    c->begin = NULL;
    c->eom = NULL;
    return true;
}

void conn_rewind(conn *c, uint32_t byte) {
    c->send = c->head;
    c->send_byte = byte;
    c->unsent = 0;
    c->unsent_cost = 0;
    c->flushes = 0;
    c->unsent_end = false;
    for (const frame_ref *r = c->head; r != NULL; r = r->next) {
        enters(c, r);
        c->flushes += (r->flags & CONN_FRAME_FLUSH) != 0;
    }
    if (c->head == NULL || byte >= c->head->size ||
        (c->head->type != CAP_FRAME_READ && c->head->type != CAP_FRAME_WRITE)) {
        c->send_byte = 0; /* of a frame that has no such byte */
    }
    c->unsent_cost -= c->send_byte;
    c->sent_requests = c->acked_requests;
    c->sent_unterminated = c->acked_unterminated;
}

static void skip_frame(conn *c) {
    switch (is_content(c->send) ? c->send->type : CAP_FRAME_PAD) {
    case CAP_FRAME_READ:
        c->sent_unterminated = true;
        break;
    case CAP_FRAME_EOM:
        c->sent_requests++;
        c->sent_unterminated = false;
        break;
    case CAP_FRAME_DROP:
        c->sent_unterminated = false;
        break;
    default:
        break;
    }
    conn_advance(c);
}

void conn_skip(conn *c) {
    while (c->send != NULL && c->send->seq < c->until_seq) {
        skip_frame(c);
    }
    if (c->send == NULL || c->send->seq != c->until_seq) {
        return;
    }
    if (c->until_byte >= c->send->size) {
        skip_frame(c);
    } else if (c->until_byte > c->send_byte) {
        c->unsent_cost -= c->until_byte - c->send_byte;
        c->send_byte = c->until_byte;
        c->sent_unterminated |= c->send->type == CAP_FRAME_READ;
        if (c->send == c->begin) {
            c->begin = NULL;
        }
    }
}

/* ---- another name ---- */

/*
 * An exchange goes again from its first byte or not at all; with it all that
 * comes after it.  Of an answer to a request that is acknowledged there is no
 * first byte.
 */
conn_plan conn_plan_rename(const conn *c, bool again) {
    conn_plan plan = {0};
    uint64_t begin = c->keeps && c->kept != NULL ? c->kept->seq : 0;

    for (const frame_ref *r = c->head; r != NULL && r->seq <= c->until_seq;
         r = r->next) {
        switch (r->type) {
        case CAP_FRAME_READ:
            begin = r->flags & CAP_FRAME_BEGIN ? r->seq : begin;
            break;
        case CAP_FRAME_EOM:
            if (again && begin != 0) {
                plan.from_seq = plan.from_seq != 0 ? plan.from_seq : begin;
                plan.doubled++;
            }
            begin = 0;
            break;
        case CAP_FRAME_DROP:
            begin = 0;
            break;
        default:
            break;
        }
    }
    if (plan.from_seq == 0) {
        plan.from_seq = begin != 0 ? begin : c->until_seq + 1;
    }
    return plan;
}

static int next_id(const conn *c, uint32_t renames, char *id, size_t size) {
    return snprintf(id, size, "%.*s.%u", (int)c->base_len, c->id,
                    (unsigned)renames);
}

bool conn_can_rename(const conn *c) {
    char id[CAP_ID_SIZE + 12];

    return c->renames < CAP_RENAMES_MOST &&
           next_id(c, c->renames + 1, id, sizeof(id)) <= (int)CAP_ID_SIZE;
}

bool conn_rename(conn *c, uint32_t renames) {
    char id[CAP_ID_SIZE + 12];
    int len = renames > 0 ? next_id(c, renames, id, sizeof(id)) : c->base_len;

    if (renames > CAP_RENAMES_MOST || len > (int)CAP_ID_SIZE) {
        return false;
    }
    if (renames > 0) {
        memcpy(c->id, id, (size_t)len);
    }
    c->renames = renames;
    c->id_len = (uint8_t)len;
    return true;
}

/* What was kept is unacknowledged again. */
static void put_back(conn *c, uint64_t from_seq) {
    if (c->kept == NULL || c->kept->seq != from_seq) {
        release_kept(c);
        return;
    }
    c->kept_tail->next = c->head;
    c->head = c->kept;
    c->tail = c->tail == NULL ? c->kept_tail : c->tail;
    c->kept = c->kept_tail = NULL;
    c->acked_seq = from_seq - 1;
    c->acked_open = false;
}

/* Marks what is passed over; finds what of the open exchange is unsent. */
static void sort_out(conn *c, uint64_t from_seq) {
    bool lost = c->acked_open;

    c->begin = c->eom = NULL;
    for (frame_ref *r = c->head; r != NULL; r = r->next) {
        if (r->type == CAP_FRAME_READ && (r->flags & CAP_FRAME_BEGIN)) {
            lost = r->seq < from_seq;
            c->begin = lost ? NULL : r;
        }
        if (lost || r->seq < from_seq) {
            r->flags |= CONN_FRAME_LOST;
        } else if (r->type == CAP_FRAME_EOM) {
            c->eom = r;
        } else if (r->type == CAP_FRAME_DROP && c->eom != NULL) {
            c->eom->type = CAP_FRAME_PAD; /* now it can be taken back */
        }
        if (r->type == CAP_FRAME_END || r->type == CAP_FRAME_DROP ||
            r->type == CAP_FRAME_ABANDON) {
            c->begin = c->eom = NULL;
            lost = false;
        }
    }
    c->lost = lost && c->phase != CONN_IDLE && c->phase != CONN_ENDED;
}

void conn_restart(conn *c, uint64_t from_seq) {
    put_back(c, from_seq);
    sort_out(c, from_seq);
    c->keeps = false;
    c->until_seq = 0;
    c->waits_ns = 0;
    c->next_number = 1;
    c->partition = -1;
    c->low_water = -1;
    c->acked_requests = 0;
    c->acked_unterminated = false;
    conn_rewind(c, 0);
}

/* The classes of exchanges that begin from `r` on; `open`: one did before. */
static void count_from(conn *c, const frame_ref *r, bool open,
                       unsigned first_reason, unsigned reason) {
    unsigned why = first_reason;

    for (; r != NULL; r = r->next) {
        if (r->flags & CONN_FRAME_COUNTS) {
            pool_count_reason(c->pool, r->code);
            open = false;
        } else if (r->type == CAP_FRAME_READ && (r->flags & CAP_FRAME_BEGIN)) {
            open = true;
            why = reason;
        } else if (r->type == CAP_FRAME_DROP && open) {
            pool_count_reason(c->pool, r->code);
            open = false;
        } else if ((r->type == CAP_FRAME_END || r->type == CAP_FRAME_ABANDON) &&
                   open) {
            pool_count_reason(c->pool, why);
            open = false;
        }
    }
    if (open) {
        pool_count_reason(c->pool, why);
    }
}

/* Of frames before `end`: what was taken out and was still to be counted. */
static void count_cut(conn *c, const frame_ref *r, const frame_ref *end) {
    bool first = true;

    for (; r != end; r = r->next) {
        if (r->flags & CONN_FRAME_COUNTS) {
            pool_count_reason(c->pool, r->code);
            c->acked_open &= !first; /* its beginning is acknowledged */
        }
        first &= r->type != CAP_FRAME_END && r->type != CAP_FRAME_DROP;
    }
}

/* The part of `send` that is in a record stays, as a frame of its own. */
static frame_ref *split_send(conn *c) {
    frame_ref *r = c->send, *rest = r->next;
    uint32_t done = c->send_byte;

    c->unsent--;
    c->unsent_cost -= cost(r) - done;
    if (r->flags & CONN_FRAME_FLUSH) {
        c->flushes--;
    }
    r->size = done;
    r->next = NULL;
    c->tail = r;
    c->send = NULL;
    c->send_byte = 0;
    return rest;
}

static frame_ref *before(const conn *c, const frame_ref *r) {
    frame_ref *prev = NULL;

    for (frame_ref *at = c->head; at != r; at = at->next) {
        prev = at;
    }
    return prev;
}

/*
 * The exchange that `send` is in, if it began before, stays open: the frame
 * that the caller appends ends it.
 */
void conn_cut_unsent(conn *c, unsigned reason) {
    frame_ref *cut, *begin;
    uint32_t byte = c->send_byte;
    bool doubtful = c->until_seq != 0;

    if (doubtful) {
        conn_skip(c); /* what may be in the topic stays, until that is known */
    }
    if (c->send == NULL) {
        if (doubtful) {
            conn_rewind(c, byte);
        }
        return;
    }
    cut = c->send_byte > 0 ? split_send(c)
                           : detach(c, before(c, c->send), c->send);
    begin = cut;
    while (begin != NULL && !(begin->flags & CAP_FRAME_BEGIN)) {
        begin = begin->next;
    }
    count_cut(c, cut, begin);
    count_from(c, begin, false, reason, reason);
    free_frames(c, cut);
    if (doubtful) {
        conn_rewind(c, byte);
    }
}

void conn_cut_all(conn *c, unsigned reason, unsigned with_eom) {
    count_from(c, c->head, c->acked_open, c->acked_eom ? with_eom : reason,
               reason);
    c->acked_open = false;
    c->acked_eom = false;
    conn_forget(c);
}

void conn_forget(conn *c) {
    frame_ref *next;

    release_kept(c);
    for (frame_ref *r = c->head; r != NULL; r = next) {
        next = r->next;
        pool_release(c->pool, r);
    }
    c->head = c->tail = c->send = c->begin = c->eom = NULL;
    c->send_byte = 0;
    c->unsent = 0;
    c->unsent_cost = 0;
    c->flushes = 0;
    c->unsent_end = false;
}
