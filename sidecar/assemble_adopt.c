/* Adoption: what another owner of the pool has begun. */
#include <stdlib.h>
#include <string.h>

#include "sidecar/assemble_internal.h"
#include "sidecar/step.h"

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
    c = assemble_open_conn(a, slot, generation, &why);
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

bool assemble_is_done(const assemble *a, const cap_frame *f) {
    const slot_entry *e = &a->slots[f->slot];

    return pool_is_old(a->pool, f->seq) &&
           (!e->used || e->generation != f->slot_generation ||
            (e->conn != NULL && f->seq <= e->conn->acked_seq));
}

bool assemble_keep(assemble *a, const pool_frame *f) {
    conn *c = a->slots[f->head.slot].conn;
    frame_ref *r;

    if (!a->slots[f->head.slot].used || c == NULL || !c->keeps ||
        c->generation != f->head.slot_generation) {
        return true;
    }
    r = pool_hold(a->pool, f);
    if (r != NULL) {
        r->flags &= CONN_FRAME_WORKERS;
        r->ts_ns = assemble_sound_time(a, c, r->ts_ns);
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
                assemble_end_conn(a, c, CAP_WORKER_EXIT) == 0) {
                ledger_resume(a->ledger, c);
            }
            step(STEP_RESUMED);
        }
    }
}
