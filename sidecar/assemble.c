/* Connections: their life, their grammar, and what each frame does. */
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "sidecar/assemble_internal.h"
#include "sidecar/metrics.h"
#include "sidecar/step.h"

#define DAY_NS 86400000000000ll

static void conn_abandoned(conn *c, unsigned reason);
static void conn_closed(conn *c);
static void late_frame(assemble *a, const slot_entry *e, const cap_frame *f);

const ledger_events assemble_events = {conn_abandoned, conn_closed};

/* ---- life ---- */

assemble *assemble_new(pool *p, ledger *lg, loop *l, int64_t flush_ns) {
    assemble *a = calloc(1, sizeof(*a));

    if (a == NULL) {
        return NULL;
    }
    a->slots = calloc(p->geometry.nslots, sizeof(*a->slots));
    if (a->slots == NULL) {
        free(a);
        return NULL;
    }
    a->pool = p;
    a->ledger = lg;
    a->loop = l;
    a->flush_ns = flush_ns;
    a->timer.due = assemble_timer_due;
    a->relief.due = assemble_relief_due;
    TAILQ_INIT(&a->conns);
    TAILQ_INIT(&a->timed);
    assemble_turn(a);
    return a;
}

void assemble_discard(assemble *a) {
    conn *c, *next;

    pool_leave(a->pool); /* what is unsent stays there, for a successor */
    for (c = TAILQ_FIRST(&a->conns); c != NULL; c = next) {
        next = TAILQ_NEXT(c, all);
        assemble_untime(a, c);
        ledger_discard(a->ledger, c);
    }
    loop_timer_cancel(a->loop, &a->timer);
    loop_timer_cancel(a->loop, &a->relief);
}

void assemble_free(assemble *a) {
    assemble_discard(a);
    free(a->slots);
    free(a);
}

int64_t assemble_oldest_ns(const assemble *a) {
    const conn *c;
    int64_t oldest = 0;

    TAILQ_FOREACH(c, &a->conns, all) {
        if (c->head != NULL && (oldest == 0 || c->head->ts_ns < oldest)) {
            oldest = c->head->ts_ns;
        }
    }
    return oldest;
}

bool assemble_empty(const assemble *a) {
    return TAILQ_EMPTY(&a->conns);
}

void assemble_turn(assemble *a) {
    struct timespec ts;
    int64_t now;

    clock_gettime(CLOCK_REALTIME, &ts);
    now = (int64_t)ts.tv_sec * 1000000000 + ts.tv_nsec;
    a->earliest_ns = now - DAY_NS;
    a->latest_ns = now + DAY_NS;
}

/* ---- connections ---- */

/* An id goes into keys, into text that is split at `|`, and into names of
   files. */
static bool id_is_good(const char *id, size_t len) {
    if (len == 0 || len > CAP_ID_SIZE) {
        return false;
    }
    for (size_t i = 0; i < len; i++) {
        if (id[i] <= ' ' || id[i] > '~' || id[i] == '|' || id[i] == '/') {
            return false;
        }
    }
    return true;
}

/* What a slot's topic stands for is found once: the worker cannot change it.  0,
   or -1: the pool has no such name. */
static int find_destination(assemble *a, unsigned topic,
                            struct destination **into) {
    char name[CAP_TOPIC_NAME_SIZE];

    if (topic > CAP_TOPIC_NAMES) {
        return -1;
    }
    if (!a->known[topic]) {
        if (pool_topic(a->pool, topic, name) != 0) {
            return -1;
        }
        a->topics[topic] = ledger_destination(a->ledger, name);
        a->known[topic] = true;
    }
    *into = a->topics[topic];
    return 0;
}

conn *assemble_open_conn(assemble *a, uint32_t slot, uint32_t generation,
                         const char **why) {
    const cap_slot *s = cap_slot_at(a->pool->header, &a->pool->geometry, slot);
    slot_entry *e = &a->slots[slot];
    conn *c = calloc(1, sizeof(*c));

    *why = NULL;
    if (c == NULL) {
        return NULL;
    }
    c->id_len = c->base_len = s->id_len;
    memcpy(c->id, s->id, sizeof(c->id));
    if (atomic_load_explicit(&s->generation, memory_order_acquire) !=
        generation) {
        *why = "a frame's connection is not the slot's";
    } else if (s->cluster != 0 ||
               find_destination(a, s->topic, &c->destination) != 0) {
        *why = "a slot's topic has no name";
    } else if (!id_is_good(c->id, c->id_len)) {
        *why = "a connectionId is not printable";
    }
    if (*why != NULL) {
        free(c);
        return NULL;
    }
    c->pool = a->pool;
    c->home = a;
    if (c->destination != NULL) {
        c->topic = ledger_destination_name(c->destination);
        c->destination_mark = ledger_destination_mark(c->destination);
    }
    c->slot = slot;
    c->generation = generation;
    c->next_number = 1;
    c->partition = -1;
    c->low_water = -1;
    TAILQ_INSERT_TAIL(&a->conns, c, all);
    metrics_cell[METRIC_CONNECTIONS]++;
    metrics_cell[METRIC_CONNECTIONS_TOTAL]++;
    e->conn = c;
    e->generation = c->generation;
    e->reason = CAP_NONE;
    e->used = true;
    return c;
}

/*
 * One that has just been opened and has no destination: nothing of it is ever
 * sent, and what its worker begins there before it hears of that is counted by
 * late_frame.
 */
static void refuse_conn(assemble *a, conn *c, const cap_frame *f) {
    slot_entry *e = &a->slots[c->slot];

    pool_ending(a->pool, CAP_NO_TOPIC, 1);
    step(STEP_REFUSE_ENDING);
    pool_return_slot(a->pool, c->slot, c->generation);
    pool_wake(a->pool);
    step(STEP_REFUSE_SLOT);
    conn_abandoned(c, CAP_NO_TOPIC);
    conn_closed(c);
    late_frame(a, e, f);
    step(STEP_REFUSE_COUNTED);
    pool_ending(a->pool, 0, 0);
}

static void conn_abandoned(conn *c, unsigned reason) {
    assemble *a = c->home;
    slot_entry *e = &a->slots[c->slot];

    assemble_untime(a, c);
    metrics_cell[METRIC_CONNECTIONS_ABANDONED]++;
    e->conn = NULL;
    e->reason = (uint8_t)reason;
}

static void conn_closed(conn *c) {
    assemble *a = c->home;
    slot_entry *e = &a->slots[c->slot];

    assemble_untime(a, c);
    TAILQ_REMOVE(&a->conns, c, all);
    metrics_cell[METRIC_CONNECTIONS]--;
    if (c->opened_ns != 0) {
        metrics_observe(HISTOGRAM_CONNECTION,
                        (uint64_t)(c->last_ts_ns - c->opened_ns));
    }
    if (e->conn == c) {
        e->conn = NULL;
    }
    free(c->adopted);
    free(c);
}

/* The worker has not heard yet that this connectionId was abandoned. */
static void late_frame(assemble *a, const slot_entry *e, const cap_frame *f) {
    if (f->type == CAP_FRAME_READ && (f->flags & CAP_FRAME_BEGIN)) {
        pool_count_taken(a->pool);
        pool_count_reason(a->pool, e->reason);
    }
}

/*
 * The connection of a frame.  NULL: the frame is for none (*why is NULL too,
 * and *reason CAP_NONE), or the link must end.
 */
static conn *conn_of(assemble *a, const cap_frame *f, const char **why,
                     enum cap_reason *reason) {
    slot_entry *e = &a->slots[f->slot];
    conn *c;

    *why = NULL;
    *reason = CAP_NONE;
    if (e->used && e->generation == f->slot_generation) {
        if (e->conn == NULL && e->reason == CAP_NONE) {
            *why = "a frame of a closed connection";
            *reason = CAP_BAD_LINK;
        } else if (e->conn == NULL) {
            late_frame(a, e, f);
        }
        return e->conn;
    }
    if (e->conn != NULL) {
        *why = "a slot was taken twice";
        *reason = CAP_BAD_LINK;
        return NULL;
    }
    c = assemble_open_conn(a, f->slot, f->slot_generation, why);
    if (c == NULL) {
        *reason = *why != NULL ? CAP_BAD_LINK : CAP_INTERNAL;
    } else if (c->destination == NULL) {
        refuse_conn(a, c, f);
        c = NULL;
    }
    return c;
}

/* ---- grammar ---- */

/* The phase after a frame, or -1: it must not come in this one. */
static int next_phase(const conn *c, const cap_frame *f) {
    switch (f->type) {
    case CAP_FRAME_READ:
        return c->phase ==
                       (f->flags & CAP_FRAME_BEGIN ? CONN_IDLE : CONN_REQUEST)
                   ? CONN_REQUEST
                   : -1;
    case CAP_FRAME_HOLD:
        return c->phase == CONN_REQUEST ? CONN_REQUEST : -1;
    case CAP_FRAME_EOM:
        return c->phase == CONN_REQUEST ? CONN_COMPLETE : -1;
    case CAP_FRAME_WRITE:
        return c->phase == CONN_COMPLETE || c->phase == CONN_RESPONSE
                   ? CONN_RESPONSE
                   : -1;
    case CAP_FRAME_END:
        if (c->phase != CONN_COMPLETE && c->phase != CONN_RESPONSE) {
            return -1;
        }
        return f->code == CAP_END_COMPLETE ? CONN_IDLE : CONN_ENDED;
    case CAP_FRAME_DROP:
        return c->phase == CONN_REQUEST || c->phase == CONN_COMPLETE ? CONN_IDLE
                                                                     : -1;
    case CAP_FRAME_ABANDON:
        return c->phase != CONN_ENDED ? CONN_ENDED : -1;
    case CAP_FRAME_CLOSE:
        return c->phase == CONN_IDLE ? CONN_ENDED : -1;
    default:
        return -1;
    }
}

static bool code_is_good(const cap_frame *f) {
    switch (f->type) {
    case CAP_FRAME_END:
        return f->code <= CAP_END_TRUNCATED;
    case CAP_FRAME_DROP:
        return cap_reason_class(f->code) == CAP_CLASS_FILTERED;
    case CAP_FRAME_ABANDON:
        return cap_reason_class(f->code) == CAP_CLASS_LOST;
    default:
        return true;
    }
}

/* ---- frames ---- */

int64_t assemble_sound_time(const assemble *a, conn *c, int64_t ts_ns) {
    if (ts_ns < a->earliest_ns) {
        ts_ns = a->earliest_ns;
    }
    if (ts_ns > a->latest_ns) {
        ts_ns = a->latest_ns;
    }
    if (ts_ns < c->last_ts_ns) {
        ts_ns = c->last_ts_ns;
    }
    return c->last_ts_ns = ts_ns;
}

/*
 * What may be in the topic can neither be cut nor withdrawn by a frame that
 * comes after that record.  One that is in it has been at work before it was
 * made: then the same is done again, and the record is the same.
 */
static void spare_doubtful(conn *c, uint64_t seq) {
    if (seq <= c->until_seq) {
        return;
    }
    if (c->begin != NULL && c->begin->seq <= c->until_seq) {
        c->begin = NULL;
    }
    if (c->eom != NULL && c->eom->seq <= c->until_seq) {
        c->eom = NULL;
    }
}

/* What passes, and how long it takes, for /metrics. */
static void measure(conn *c, const frame_ref *r) {
    switch (r->type) {
    case CAP_FRAME_READ:
        metrics_cell[METRIC_BYTES_READ] += r->size;
        if (r->flags & CAP_FRAME_BEGIN) {
            c->begin_ns = r->ts_ns;
        }
        break;
    case CAP_FRAME_EOM:
        if (c->begin_ns != 0) {
            metrics_observe(HISTOGRAM_REQUEST,
                            (uint64_t)(r->ts_ns - c->begin_ns));
        }
        c->eom_ns = r->ts_ns;
        break;
    case CAP_FRAME_WRITE:
        metrics_cell[METRIC_BYTES_WRITTEN] += r->size;
        break;
    case CAP_FRAME_END:
        if (c->eom_ns != 0) {
            metrics_observe(HISTOGRAM_RESPONSE,
                            (uint64_t)(r->ts_ns - c->eom_ns));
        }
        break;
    default:
        break;
    }
    if (c->opened_ns == 0) {
        c->opened_ns = r->ts_ns;
    }
}

static void on_read(assemble *a, conn *c, frame_ref *r) {
    if (r->flags & CAP_FRAME_BEGIN) {
        pool_count_taken(a->pool);
        if (!(c->resume_byte > 0 && c->head == NULL)) {
            c->begin = r;
        }
    }
    conn_append(c, r);
    assemble_queued(a, c);
}

static void on_eom(assemble *a, conn *c, frame_ref *r) {
    c->eom = r;
    conn_append(c, r);
    if (r->flags & CAP_FRAME_WAIT) {
        c->waits = true;
        assemble_flush_conn(a, c);
        ledger_put(a->ledger, c);
    } else {
        assemble_queued(a, c);
        ledger_put_more(a->ledger, c, CAP_FRAME_EOM);
    }
}

static void on_hold(assemble *a, conn *c, frame_ref *r) {
    conn_append(c, r);
    c->waits = true;
    assemble_flush_conn(a, c);
    ledger_put(a->ledger, c);
}

static void on_end(assemble *a, conn *c, frame_ref *r) {
    c->begin = NULL;
    c->eom = NULL;
    conn_append(c, r);
    if (r->code != CAP_END_COMPLETE || !c->waits) {
        assemble_flush_conn(a, c);
    } else {
        assemble_queued(a, c);
    }
}

static void on_drop(assemble *a, conn *c, frame_ref *r) {
    spare_doubtful(c, r->seq);
    if (conn_cut_exchange(c)) {
        r->type = CAP_FRAME_PAD;
        r->flags |= CONN_FRAME_COUNTS;
        conn_append(c, r);
        ledger_put_more(a->ledger, c, CAP_FRAME_DROP);
        assemble_flush_conn(a, c); /* what was due with it is due now */
        return;
    }
    conn_withdraw_eom(c);
    conn_append(c, r);
    ledger_put_more(a->ledger, c, CAP_FRAME_DROP);
    if (c->waits) {
        assemble_queued(a, c);
    } else {
        assemble_flush_conn(a, c);
    }
}

static void on_abandon(assemble *a, conn *c, frame_ref *r, bool complete) {
    spare_doubtful(c, r->seq);
    if (!complete && conn_cut_exchange(c)) {
        r->flags |= CONN_FRAME_COUNTS;
    }
    conn_append(c, r);
    assemble_flush_conn(a, c);
}

/* Of an exchange of which a part is in doubt for good. */
static void pass_over(assemble *a, conn *c, frame_ref *r) {
    r->flags |= CONN_FRAME_LOST;
    c->lost = c->phase != CONN_IDLE && c->phase != CONN_ENDED;
    conn_append(c, r);
    assemble_flush_conn(a, c);
}

static void take(assemble *a, conn *c, frame_ref *r, uint8_t phase) {
    bool complete = c->phase == CONN_COMPLETE || c->phase == CONN_RESPONSE;

    c->phase = phase;
    if (c->lost) {
        pass_over(a, c, r);
        return;
    }
    switch (r->type) {
    case CAP_FRAME_READ:
        on_read(a, c, r);
        break;
    case CAP_FRAME_EOM:
        on_eom(a, c, r);
        break;
    case CAP_FRAME_HOLD:
        on_hold(a, c, r);
        break;
    case CAP_FRAME_END:
        on_end(a, c, r);
        break;
    case CAP_FRAME_DROP:
        on_drop(a, c, r);
        break;
    case CAP_FRAME_ABANDON:
        on_abandon(a, c, r, complete);
        break;
    case CAP_FRAME_CLOSE:
        conn_append(c, r);
        assemble_flush_conn(a, c);
        break;
    default: /* WRITE */
        conn_append(c, r);
        assemble_queued(a, c);
        break;
    }
}

enum cap_reason assemble_frame(assemble *a, const pool_frame *f,
                               const char **why) {
    enum cap_reason reason;
    frame_ref *r;
    conn *c;
    int phase;

    if (a->adopting && assemble_is_done(a, &f->head)) {
        if (!assemble_keep(a, f)) {
            *why = "out of memory";
            return CAP_INTERNAL;
        }
        return CAP_NONE;
    }
    c = conn_of(a, &f->head, why, &reason);
    if (c == NULL) {
        return reason;
    }
    phase = next_phase(c, &f->head);
    if (phase == -1 || !code_is_good(&f->head)) {
        *why = phase == -1 ? "a frame in the wrong place"
                           : "a frame with an impossible code";
        return CAP_BAD_LINK;
    }
    r = pool_hold(a->pool, f);
    if (r == NULL) {
        *why = "out of memory";
        return CAP_INTERNAL;
    }
    r->flags &= CONN_FRAME_WORKERS;
    r->ts_ns = assemble_sound_time(a, c, r->ts_ns);
    measure(c, r);
    take(a, c, r, (uint8_t)phase);
    return CAP_NONE;
}

/* ---- the end ---- */

int assemble_end_conn(assemble *a, conn *c, enum cap_reason reason) {
    bool quiet = c->phase == CONN_IDLE && reason == CAP_WORKER_EXIT;
    bool counts = false;
    frame_ref *r;

    if (c->slot_returned || (c->phase == CONN_ENDED && !c->unsent_end) ||
        (c->phase == CONN_ENDED && reason == CAP_WORKER_EXIT)) {
        return 0; /* its end is on the way */
    }
    if (reason != CAP_WORKER_EXIT) {
        conn_cut_unsent(c, reason);
        if (c->unsent_end) {
            return 0; /* it may be in the topic already */
        }
    } else if (c->phase == CONN_REQUEST) {
        spare_doubtful(c, CAP_SEQ_LAST);
        counts = conn_cut_exchange(c);
    }
    c->phase = CONN_ENDED;
    assemble_untime(a, c);
    r = pool_make(a->pool, quiet ? CAP_FRAME_CLOSE : CAP_FRAME_ABANDON,
                  quiet ? CAP_NONE : (uint16_t)reason,
                  assemble_sound_time(a, c, a->latest_ns - DAY_NS));
    if (r == NULL) {
        conn_cut_all(c, CAP_INTERNAL, CAP_RESPONSE);
        ledger_discard(a->ledger, c);
        return -1;
    }
    r->flags = CONN_FRAME_SIDECAR | (counts ? CONN_FRAME_COUNTS : 0) |
               (c->lost ? CONN_FRAME_LOST : 0);
    conn_append(c, r);
    ledger_flush(a->ledger, c);
    return 0;
}

void assemble_end(assemble *a, enum cap_reason reason) {
    conn *c, *next;

    assemble_turn(a);
    if (a->adopting) {
        assemble_adopted(a); /* with what could be read */
    }
    for (c = TAILQ_FIRST(&a->conns); c != NULL; c = next) {
        next = TAILQ_NEXT(c, all);
        (void)assemble_end_conn(a, c, reason);
    }
}
