#include "sidecar/assemble.h"

#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "sidecar/metrics.h"
#include "sidecar/step.h"

#define DAY_NS 86400000000000ll

/* Of each slot: the connection in it, or the last one that was. */
typedef struct {
    conn *conn;
    uint32_t generation;
    uint8_t reason; /* that one was abandoned; its frames may still come */
    bool used;
} slot_entry;

struct assemble {
    pool *pool;
    ledger *ledger;
    loop *loop;
    bool adopting; /* frames come that another owner may have done */
    int64_t flush_ns;
    int64_t earliest_ns, latest_ns; /* that a time may be, in this turn */
    slot_entry *slots;
    /* where the pool's topics go; NULL: nowhere, once they are `known` */
    struct destination *topics[CAP_TOPIC_NAMES + 1];
    bool known[CAP_TOPIC_NAMES + 1];
    struct conn_list conns; /* all of them */
    struct conn_list timed; /* the first unsent the longest ago */
    loop_timer timer;
    loop_timer relief; /* while the pool is nearly full */
};

static void conn_abandoned(conn *c, unsigned reason);
static void conn_closed(conn *c);
static void late_frame(assemble *a, const slot_entry *e, const cap_frame *f);
static void timer_due(loop_timer *timer);
static void relief_due(loop_timer *timer);
static void watch(assemble *a);
static int64_t sound_time(const assemble *a, conn *c, int64_t ts_ns);
static int end_conn(assemble *a, conn *c, enum cap_reason reason);

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
    a->timer.due = timer_due;
    a->relief.due = relief_due;
    TAILQ_INIT(&a->conns);
    TAILQ_INIT(&a->timed);
    assemble_turn(a);
    return a;
}

static void untime(assemble *a, conn *c) {
    if (c->is_timed) {
        c->is_timed = false;
        TAILQ_REMOVE(&a->timed, c, timed);
    }
}

void assemble_discard(assemble *a) {
    conn *c, *next;

    pool_leave(a->pool); /* what is unsent stays there, for a successor */
    for (c = TAILQ_FIRST(&a->conns); c != NULL; c = next) {
        next = TAILQ_NEXT(c, all);
        untime(a, c);
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

/* ---- when a connection is due ---- */

static void flush(assemble *a, conn *c) {
    untime(a, c);
    ledger_flush(a->ledger, c);
}

static void arm(assemble *a) {
    const conn *c = TAILQ_FIRST(&a->timed);

    if (c != NULL && a->timer.heap == 0) {
        loop_timer_set(a->loop, &a->timer, c->due_ns - loop_now_ns(a->loop));
    }
}

static void timer_due(loop_timer *timer) {
    assemble *a =
        (assemble *)(void *)((char *)timer - offsetof(assemble, timer));
    conn *c;

    while ((c = TAILQ_FIRST(&a->timed)) != NULL &&
           c->due_ns <= loop_now_ns(a->loop)) {
        flush(a, c);
    }
    arm(a);
}

/* All have the same delay, so that the list is in the order of their times. */
static void flush_later(assemble *a, conn *c) {
    c->is_timed = true;
    c->due_ns = loop_now_ns(a->loop) + a->flush_ns;
    TAILQ_INSERT_TAIL(&a->timed, c, timed);
    arm(a);
}

/* Something was appended that need not go at once. */
static void queued(assemble *a, conn *c) {
    if (c->flushes > 0) {
        return;
    }
    if (c->unsent_cost >= ledger_record_limit(a->ledger, c)) {
        flush(a, c);
    } else if (c->unsent == 0) {
        ledger_settle(a->ledger, c);
    } else if (!c->is_timed) {
        flush_later(a, c);
    }
}

#define RELIEF_NS 100000000ll

/* Whether its oldest frame holds a block that many others came after. */
static bool pins(const assemble *a, const conn *c) {
    const pool *p = a->pool;
    const frame_ref *r = c->kept != NULL ? c->kept : c->head;

    return r != NULL && r->block != POOL_NO_BLOCK &&
           p->ring_head - p->blocks[r->block].order >= p->geometry.nblocks / 4;
}

static bool is_nearly_full(const pool *p) {
    return !p->closed && p->held >= p->geometry.nblocks / 8 * 7;
}

static void relief_due(loop_timer *timer) {
    assemble *a =
        (assemble *)(void *)((char *)timer - offsetof(assemble, relief));
    const pool *p = a->pool;
    conn *c, *next;

    if (!is_nearly_full(p)) {
        return;
    }
    for (c = TAILQ_FIRST(&a->conns);
         c != NULL && p->held > p->geometry.nblocks / 2; c = next) {
        next = TAILQ_NEXT(c, all);
        if (pins(a, c) && ledger_is_stuck(a->ledger, c)) {
            ledger_give_up(a->ledger, c);
        }
    }
    watch(a);
}

/* By a timer, so that not every turn looks at every connection, and one comes
   where no block is left for anything to happen. */
static void watch(assemble *a) {
    if (is_nearly_full(a->pool) && a->relief.heap == 0) {
        loop_timer_set(a->loop, &a->relief, RELIEF_NS);
    }
}

void assemble_relieve(assemble *a) {
    pool *p = a->pool;
    conn *c;

    pool_spill(p, loop_now_ns(a->loop));

    while (p->held > p->geometry.nblocks / 2 &&
           (c = TAILQ_FIRST(&a->timed)) != NULL && c->send != NULL &&
           p->ring_head - p->blocks[c->send->block].order >=
               p->geometry.nblocks / 4) {
        flush(a, c);
    }
    watch(a);
}

void assemble_flush(assemble *a) {
    conn *c;

    while ((c = TAILQ_FIRST(&a->timed)) != NULL) {
        flush(a, c);
    }
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

static conn *open_conn(assemble *a, uint32_t slot, uint32_t generation,
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

/* ---- adoption: what another owner of the pool has begun ---- */

static uint8_t phase_of(unsigned flags) {
    return !(flags & CAP_ACKED_OPEN) ? CONN_IDLE
           : flags & CAP_ACKED_EOM   ? CONN_COMPLETE
                                     : CONN_REQUEST;
}

/* Beyond all that comes to pass, and far from the end of their type. */
#define MOST_COUNTED (1u << 30)

static bool numbers_are_good(const conn *c) {
    const cap_intent *i = c->adopted;

    if (c->next_number == 0 || c->next_number > MOST_COUNTED ||
        c->acked_requests > MOST_COUNTED) {
        return false;
    }
    return i == NULL ||
           (atomic_load_explicit(&i->number, memory_order_relaxed) <=
                MOST_COUNTED &&
            i->requests <= MOST_COUNTED &&
            CAP_INTENT_RENAMES(i->flags) <= CAP_RENAMES_MOST);
}

/*
 * Where an intent is valid, it says what its record is: an owner that died on
 * the way from its report to the slot's last store has left a slot whose
 * fields are of different moments.
 */
static bool restore_intent(conn *c, const cap_intent *i) {
    if (atomic_load_explicit(&i->number, memory_order_acquire) == 0 ||
        i->slot_generation != c->generation) {
        return true;
    }
    c->adopted = malloc(sizeof(*c->adopted));
    if (c->adopted == NULL) {
        return false;
    }
    memcpy(c->adopted, i, sizeof(*i));
    c->partition = c->adopted->partition; /* the slot's follows the first ack */
    c->until_seq = c->adopted->last_seq;
    c->until_byte = c->adopted->last_byte;
    c->until_requests = c->adopted->requests;
    c->until_unterminated = c->adopted->unterminated_read != 0;
    c->low_water = c->adopted->low_water;
    c->topic_mark = c->adopted->mark;
    c->resume_byte = c->acked_seq < c->adopted->first_seq &&
                             !(c->adopted->flags & CAP_INTENT_RENAME)
                         ? c->adopted->first_byte
                         : 0;
    return true;
}

/* Its frames are still to be read: nothing is sent before (held).  False: out
   of memory. */
static bool restore(conn *c, const cap_slot *s, uint64_t acked) {
    const cap_intent *i =
        cap_intent_at(c->pool->header, &c->pool->geometry, c->slot);
    unsigned flags = CAP_ACKED_FLAGS(acked);

    c->held = true;
    c->acked_seq = CAP_ACKED_SEQ(acked);
    c->acked_open = (flags & CAP_ACKED_OPEN) != 0;
    c->acked_eom = (flags & CAP_ACKED_EOM) != 0;
    c->waits = (flags & CAP_ACKED_WAITS) != 0;
    c->keeps = (flags & CAP_ACKED_KEPT) != 0;
    c->lost = c->acked_lost = (flags & CAP_ACKED_LOST) != 0;
    c->phase = phase_of(flags);
    c->partition = s->partition;
    c->next_number = s->next_number;
    c->sent_requests = c->acked_requests = s->requests;
    c->sent_unterminated = c->acked_unterminated = s->unterminated_read != 0;
    c->resume_byte =
        atomic_load_explicit(&s->acked_bytes, memory_order_relaxed);
    return restore_intent(c, i);
}

/* What it is called may stand for another topic now, or other brokers. */
static bool is_elsewhere(const conn *c, const cap_slot *s) {
    return c->destination != NULL &&
           (c->next_number > 1 || c->adopted != NULL) && s->destination != 0 &&
           s->destination != ledger_destination_mark(c->destination);
}

static const char *adopt_slot(assemble *a, uint32_t slot) {
    const cap_slot *s = cap_slot_at(a->pool->header, &a->pool->geometry, slot);
    uint32_t generation =
        atomic_load_explicit(&s->generation, memory_order_acquire);
    uint64_t acked = atomic_load_explicit(&s->acked, memory_order_relaxed);
    const char *why;
    conn *c;

    if (!(generation & 1) || !pool_is_old(a->pool, s->taken_seq)) {
        return NULL;
    }
    if (CAP_ACKED_FLAGS(acked) & CAP_ACKED_END) {
        pool_return_slot(a->pool, slot, generation);
        return NULL;
    }
    c = open_conn(a, slot, generation, &why);
    if (c == NULL) {
        return why != NULL ? why : "out of memory";
    }
    if (!conn_rename(c, s->renames)) {
        return "a slot's connectionId cannot be";
    }
    if (!restore(c, s, acked)) {
        return "out of memory";
    }
    if (is_elsewhere(c, s)) {
        c->destination = NULL; /* a connectionId never spans two */
    }
    ledger_adopt(a->ledger, c);
    if (!numbers_are_good(c)) {
        return "a slot's counts are impossible";
    }
    if (c->acked_open) {
        pool_count_taken(a->pool);
    }
    step(STEP_ADOPT_SLOT);
    return NULL;
}

const char *assemble_adopt(assemble *a) {
    const char *why = NULL;

    a->adopting = true;
    for (uint32_t i = 0; i < a->pool->geometry.nslots && why == NULL; i++) {
        why = adopt_slot(a, i);
    }
    return why;
}

/* Whether the last owner has done with this frame. */
static bool is_done(const assemble *a, const cap_frame *f) {
    const slot_entry *e = &a->slots[f->slot];

    return pool_is_old(a->pool, f->seq) &&
           (!e->used || e->generation != f->slot_generation ||
            (e->conn != NULL && f->seq <= e->conn->acked_seq));
}

/* Of a request that is acknowledged in part, and could be sent again.  False:
   out of memory. */
static bool keep(assemble *a, const pool_frame *f) {
    conn *c = a->slots[f->head.slot].conn;
    frame_ref *r;

    if (!a->slots[f->head.slot].used || c == NULL || !c->keeps ||
        c->generation != f->head.slot_generation) {
        return true;
    }
    r = pool_hold(a->pool, f);
    if (r != NULL) {
        r->flags &= CONN_FRAME_WORKERS;
        r->ts_ns = sound_time(a, c, r->ts_ns);
        conn_keep(c, r);
    }
    return r != NULL;
}

/* Exchanges that the last owner has ended and not counted: those that it was
   about to, as what it said; others as lost. */
static void count_the_uncounted(assemble *a) {
    pool *p = a->pool;
    uint64_t ending =
        atomic_load_explicit(&p->header->sidecar.ending, memory_order_acquire);
    uint64_t told = CAP_ENDING_COUNT(ending);
    unsigned class = CAP_ENDING_CLASS(ending);

    if (class != CAP_ENDING_CAPTURED && class != CAP_ENDING_TRUNCATED &&
        (class >= CAP_REASON_CELLS || cap_reason_class(class) == 0)) {
        told = 0;
    }
    if (p->count.taken < p->adopted_handed) {
        uint64_t missing = p->adopted_handed - p->count.taken;

        told = told < missing ? told : missing;
        pool_count_missing(p, class, told);
        step(STEP_MISSING_TOLD);
        if (!p->is_orphan) { /* else its worker had not come to publish them */
            pool_count_missing(p, CAP_LINK_LOST, missing - told);
            step(STEP_MISSING_LOST);
        }
    }
    pool_ending(p, 0, 0);
}

bool assemble_adopting(const assemble *a) {
    return a->adopting;
}

void assemble_adopted(assemble *a) {
    conn *c, *next;

    a->adopting = false;
    count_the_uncounted(a);
    for (c = TAILQ_FIRST(&a->conns); c != NULL; c = next) {
        next = TAILQ_NEXT(c, all);
        if (c->held) {
            conn_rewind(c, c->resume_byte);
            c->resume_byte = 0;
            /* its last record has the end that its last owner made */
            if (c->until_seq != CAP_SEQ_LAST ||
                end_conn(a, c, CAP_WORKER_EXIT) == 0) {
                ledger_resume(a->ledger, c);
            }
            step(STEP_RESUMED);
        }
    }
}

static void conn_abandoned(conn *c, unsigned reason) {
    assemble *a = c->home;
    slot_entry *e = &a->slots[c->slot];

    untime(a, c);
    metrics_cell[METRIC_CONNECTIONS_ABANDONED]++;
    e->conn = NULL;
    e->reason = (uint8_t)reason;
}

static void conn_closed(conn *c) {
    assemble *a = c->home;
    slot_entry *e = &a->slots[c->slot];

    untime(a, c);
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
    c = open_conn(a, f->slot, f->slot_generation, why);
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

static int64_t sound_time(const assemble *a, conn *c, int64_t ts_ns) {
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
    queued(a, c);
}

static void on_eom(assemble *a, conn *c, frame_ref *r) {
    c->eom = r;
    conn_append(c, r);
    if (r->flags & CAP_FRAME_WAIT) {
        c->waits = true;
        flush(a, c);
        ledger_put(a->ledger, c);
    } else {
        queued(a, c);
        ledger_put_more(a->ledger, c, CAP_FRAME_EOM);
    }
}

static void on_hold(assemble *a, conn *c, frame_ref *r) {
    conn_append(c, r);
    c->waits = true;
    flush(a, c);
    ledger_put(a->ledger, c);
}

static void on_end(assemble *a, conn *c, frame_ref *r) {
    c->begin = NULL;
    c->eom = NULL;
    conn_append(c, r);
    if (r->code != CAP_END_COMPLETE || !c->waits) {
        flush(a, c);
    } else {
        queued(a, c);
    }
}

static void on_drop(assemble *a, conn *c, frame_ref *r) {
    spare_doubtful(c, r->seq);
    if (conn_cut_exchange(c)) {
        r->type = CAP_FRAME_PAD;
        r->flags |= CONN_FRAME_COUNTS;
        conn_append(c, r);
        ledger_put_more(a->ledger, c, CAP_FRAME_DROP);
        flush(a, c); /* what was due with it is due now */
        return;
    }
    conn_withdraw_eom(c);
    conn_append(c, r);
    ledger_put_more(a->ledger, c, CAP_FRAME_DROP);
    if (c->waits) {
        queued(a, c);
    } else {
        flush(a, c);
    }
}

static void on_abandon(assemble *a, conn *c, frame_ref *r, bool complete) {
    spare_doubtful(c, r->seq);
    if (!complete && conn_cut_exchange(c)) {
        r->flags |= CONN_FRAME_COUNTS;
    }
    conn_append(c, r);
    flush(a, c);
}

/* Of an exchange of which a part is in doubt for good. */
static void pass_over(assemble *a, conn *c, frame_ref *r) {
    r->flags |= CONN_FRAME_LOST;
    c->lost = c->phase != CONN_IDLE && c->phase != CONN_ENDED;
    conn_append(c, r);
    flush(a, c);
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
        flush(a, c);
        break;
    default: /* WRITE */
        conn_append(c, r);
        queued(a, c);
        break;
    }
}

enum cap_reason assemble_frame(assemble *a, const pool_frame *f,
                               const char **why) {
    enum cap_reason reason;
    frame_ref *r;
    conn *c;
    int phase;

    if (a->adopting && is_done(a, &f->head)) {
        if (!keep(a, f)) {
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
    r->ts_ns = sound_time(a, c, r->ts_ns);
    measure(c, r);
    take(a, c, r, (uint8_t)phase);
    return CAP_NONE;
}

/* ---- the end ---- */

/* 0, or -1: out of memory, and the connection is given up. */
static int end_conn(assemble *a, conn *c, enum cap_reason reason) {
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
    untime(a, c);
    r = pool_make(a->pool, quiet ? CAP_FRAME_CLOSE : CAP_FRAME_ABANDON,
                  quiet ? CAP_NONE : (uint16_t)reason,
                  sound_time(a, c, a->latest_ns - DAY_NS));
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
        (void)end_conn(a, c, reason);
    }
}
