/* When a connection is due: by time, and sooner when the pool fills up. */
#include "sidecar/assemble_internal.h"

void assemble_untime(assemble *a, conn *c) {
    if (c->is_timed) {
        c->is_timed = false;
        TAILQ_REMOVE(&a->timed, c, timed);
    }
}

void assemble_flush_conn(assemble *a, conn *c) {
    assemble_untime(a, c);
    ledger_flush(a->ledger, c);
}

static void arm(assemble *a) {
    const conn *c = TAILQ_FIRST(&a->timed);

    if (c != NULL && a->timer.heap == 0) {
        loop_timer_set(a->loop, &a->timer, c->due_ns - loop_now_ns(a->loop));
    }
}

void assemble_timer_due(loop_timer *timer) {
    assemble *a =
        (assemble *)(void *)((char *)timer - offsetof(assemble, timer));
    conn *c;

    while ((c = TAILQ_FIRST(&a->timed)) != NULL &&
           c->due_ns <= loop_now_ns(a->loop)) {
        assemble_flush_conn(a, c);
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

void assemble_queued(assemble *a, conn *c) {
    if (c->flushes > 0) {
        return;
    }
    if (c->unsent_cost >= ledger_record_limit(a->ledger, c)) {
        assemble_flush_conn(a, c);
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

/* By a timer, so that not every turn looks at every connection, and one comes
   where no block is left for anything to happen. */
static void watch(assemble *a) {
    if (is_nearly_full(a->pool) && a->relief.heap == 0) {
        loop_timer_set(a->loop, &a->relief, RELIEF_NS);
    }
}

void assemble_relief_due(loop_timer *timer) {
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

void assemble_relieve(assemble *a) {
    pool *p = a->pool;
    conn *c;

    pool_spill(p, loop_now_ns(a->loop));

    while (p->held > p->geometry.nblocks / 2 &&
           (c = TAILQ_FIRST(&a->timed)) != NULL && c->send != NULL &&
           p->ring_head - p->blocks[c->send->block].order >=
               p->geometry.nblocks / 4) {
        assemble_flush_conn(a, c);
    }
    watch(a);
}

void assemble_flush(assemble *a) {
    conn *c;

    while ((c = TAILQ_FIRST(&a->timed)) != NULL) {
        assemble_flush_conn(a, c);
    }
}
