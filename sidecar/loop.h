/*
 * The event loop: one thread, epoll, timers, one hook before it sleeps.
 *
 * The hook is where batched work happens (records are sent, blocks returned);
 * it says how long the loop may sleep.
 */
#ifndef SIDECAR_LOOP_H
#define SIDECAR_LOOP_H

#include <stdbool.h>
#include <stdint.h>

typedef struct loop loop;

/* Embedded in its owner, which must outlive its registration. */
typedef struct loop_io {
    int fd;
    void (*ready)(struct loop_io *io, uint32_t epoll_events);
} loop_io;

/* Embedded in its owner.  Zero-initialised is "not set". */
typedef struct loop_timer {
    void (*due)(struct loop_timer *timer);
    int64_t at_ns; /* loop_now_ns's clock */
    uint32_t heap; /* the loop's own: index + 1, or 0 when not set */
} loop_timer;

/* Returns NULL with errno set. */
loop *loop_new(void);
void loop_free(loop *l);

/* 0, or -1 with errno.  `events` as epoll's.  Deleting inside a callback is
   safe, also of an io whose event is still to come in this turn. */
int loop_add(loop *l, loop_io *io, uint32_t events);
int loop_change(loop *l, loop_io *io, uint32_t events);
void loop_remove(loop *l, loop_io *io);

/* Sets or moves a timer, to fire once, `after_ns` from now. */
void loop_timer_set(loop *l, loop_timer *t, int64_t after_ns);
void loop_timer_cancel(loop *l, loop_timer *t);

/* CLOCK_MONOTONIC at the start of this turn. */
int64_t loop_now_ns(const loop *l);

/* `before_sleep` returns the longest sleep in ns, 0 to not sleep, -1 for any. */
void loop_run(loop *l, int64_t (*before_sleep)(void *owner), void *owner);
void loop_stop(loop *l);

#endif
