/*
 * A loop whose clock a test moves: included by tests in the place of
 * sidecar/loop.c.  Only timers; nothing waits.
 */
#include <stdlib.h>

#include "sidecar/loop.h"

struct loop {
    int64_t now_ns;
    loop_timer *timers[4096];
    unsigned n;
};

loop *loop_new(void) {
    loop *l = calloc(1, sizeof(*l));

    l->now_ns = 1000000000;
    return l;
}

void loop_free(loop *l) {
    free(l);
}

int loop_add(loop *l, loop_io *io, uint32_t events) {
    (void)l, (void)io, (void)events;
    return 0;
}

int loop_change(loop *l, loop_io *io, uint32_t events) {
    return loop_add(l, io, events);
}

void loop_remove(loop *l, loop_io *io) {
    (void)l, (void)io;
}

void loop_timer_cancel(loop *l, loop_timer *t) {
    if (t->heap != 0) {
        l->timers[t->heap - 1] = l->timers[--l->n];
        l->timers[t->heap - 1]->heap = t->heap;
        t->heap = 0;
    }
}

void loop_timer_set(loop *l, loop_timer *t, int64_t after_ns) {
    loop_timer_cancel(l, t);
    t->at_ns = l->now_ns + (after_ns > 0 ? after_ns : 0);
    l->timers[l->n++] = t;
    t->heap = l->n;
}

int64_t loop_now_ns(const loop *l) {
    return l->now_ns;
}

void loop_run(loop *l, int64_t (*before_sleep)(void *owner), void *owner) {
    (void)l, (void)before_sleep, (void)owner;
}

void loop_stop(loop *l) {
    (void)l;
}

/* Moves the clock, firing every timer at its time. */
static void fake_loop_advance(loop *l, int64_t ns) {
    int64_t end = l->now_ns + ns;

    for (;;) {
        loop_timer *first = NULL;

        for (unsigned i = 0; i < l->n; i++) {
            if (l->timers[i]->at_ns <= end &&
                (first == NULL || l->timers[i]->at_ns < first->at_ns)) {
                first = l->timers[i];
            }
        }
        if (first == NULL) {
            break;
        }
        if (l->now_ns < first->at_ns) {
            l->now_ns = first->at_ns;
        }
        loop_timer_cancel(l, first);
        first->due(first);
    }
    l->now_ns = end;
}
