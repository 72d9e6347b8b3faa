#include "sidecar/loop.h"

#include <errno.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <time.h>
#include <unistd.h>

#include "sidecar/log.h"

#define BATCH 128
#define NS_PER_MS 1000000
#define NS_PER_S 1000000000

struct loop {
    int epoll;
    bool stopped;
    bool no_pwait2; /* a kernel before 5.11 */
    int64_t now_ns;

    /* binary heap, the earliest first */
    loop_timer **timers;
    uint32_t ntimers;
    uint32_t timers_size;

    /* the events of this turn, so that loop_remove can take out later ones */
    struct epoll_event events[BATCH];
    int nevents;
};

static int64_t clock_ns(void) {
    struct timespec ts;
    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (int64_t)ts.tv_sec * NS_PER_S + ts.tv_nsec;
}

loop *loop_new(void) {
    loop *l = calloc(1, sizeof(*l));
    if (l == NULL)
        return NULL;
    l->epoll = epoll_create1(EPOLL_CLOEXEC);
    if (l->epoll == -1) {
        free(l);
        return NULL;
    }
    l->now_ns = clock_ns();
    return l;
}

void loop_free(loop *l) {
    if (l == NULL)
        return;
    close(l->epoll);
    free(l->timers);
    free(l);
}

int loop_add(loop *l, loop_io *io, uint32_t events) {
    struct epoll_event e = {.events = events, .data.ptr = io};
    return epoll_ctl(l->epoll, EPOLL_CTL_ADD, io->fd, &e);
}

int loop_change(loop *l, loop_io *io, uint32_t events) {
    struct epoll_event e = {.events = events, .data.ptr = io};
    return epoll_ctl(l->epoll, EPOLL_CTL_MOD, io->fd, &e);
}

void loop_remove(loop *l, loop_io *io) {
    epoll_ctl(l->epoll, EPOLL_CTL_DEL, io->fd, NULL);
    for (int i = 0; i < l->nevents; i++)
        if (l->events[i].data.ptr == io)
            l->events[i].data.ptr = NULL;
}

/* The heap.  Every move keeps the timer's own note of its place. */

static void heap_put(loop *l, uint32_t at, loop_timer *t) {
    l->timers[at] = t;
    t->heap = at + 1;
}

static void heap_up(loop *l, uint32_t at, loop_timer *t) {
    while (at > 0) {
        uint32_t parent = (at - 1) / 2;
        if (l->timers[parent]->at_ns <= t->at_ns)
            break;
        heap_put(l, at, l->timers[parent]);
        at = parent;
    }
    heap_put(l, at, t);
}

static void heap_down(loop *l, uint32_t at, loop_timer *t) {
    for (;;) {
        uint32_t child = 2 * at + 1;
        if (child >= l->ntimers)
            break;
        if (child + 1 < l->ntimers &&
            l->timers[child + 1]->at_ns < l->timers[child]->at_ns)
            child++;
        if (t->at_ns <= l->timers[child]->at_ns)
            break;
        heap_put(l, at, l->timers[child]);
        at = child;
    }
    heap_put(l, at, t);
}

static void heap_grow(loop *l) {
    if (l->ntimers < l->timers_size)
        return;
    uint32_t size = l->timers_size ? l->timers_size * 2 : 64;
    loop_timer **timers = realloc(l->timers, size * sizeof(*timers));
    if (timers == NULL) {
        /* a timer that is never due would hang what waits for it */
        log_error("out of memory for %u timers", size);
        abort();
    }
    l->timers = timers;
    l->timers_size = size;
}

void loop_timer_cancel(loop *l, loop_timer *t) {
    if (t->heap == 0)
        return;
    uint32_t at = t->heap - 1;
    loop_timer *last = l->timers[--l->ntimers];
    t->heap = 0;
    if (last == t)
        return;
    if (at > 0 && last->at_ns < l->timers[(at - 1) / 2]->at_ns)
        heap_up(l, at, last);
    else
        heap_down(l, at, last);
}

void loop_timer_set(loop *l, loop_timer *t, int64_t after_ns) {
    loop_timer_cancel(l, t);
    heap_grow(l);
    /* not from the turn's start: a long callback must not make it early */
    t->at_ns = clock_ns() + (after_ns > 0 ? after_ns : 0);
    heap_up(l, l->ntimers++, t);
}

int64_t loop_now_ns(const loop *l) {
    return l->now_ns;
}

/* Fires what was due when the turn began; what a callback sets is for later. */
static void fire_timers(loop *l) {
    for (uint32_t most = l->ntimers; most > 0 && l->ntimers > 0; most--) {
        loop_timer *t = l->timers[0];
        if (t->at_ns > l->now_ns)
            return;
        loop_timer_cancel(l, t);
        t->due(t);
    }
}

/* The shorter of both, -1 being for ever. */
static int64_t shorter(int64_t a, int64_t b) {
    if (a < 0)
        return b;
    return b < 0 || a < b ? a : b;
}

static int64_t until_next_timer(const loop *l) {
    if (l->ntimers == 0)
        return -1;
    int64_t left = l->timers[0]->at_ns - clock_ns();
    return left > 0 ? left : 0;
}

static int wait_events(loop *l, int64_t ns) {
    if (ns > 0 && !l->no_pwait2) {
        struct timespec ts = {.tv_sec = ns / NS_PER_S,
                              .tv_nsec = ns % NS_PER_S};
        int n = epoll_pwait2(l->epoll, l->events, BATCH, &ts, NULL);
        if (n != -1 || errno != ENOSYS)
            return n;
        l->no_pwait2 = true;
    }
    /* rounded up: a timer that is almost due must not make the loop spin */
    int64_t ms = ns <= 0 ? ns : (ns + NS_PER_MS - 1) / NS_PER_MS;
    return epoll_wait(l->epoll, l->events, BATCH,
                      ms > 3600000 ? 3600000 : (int)ms);
}

static void turn(loop *l, int64_t sleep_ns) {
    int n = wait_events(l, shorter(sleep_ns, until_next_timer(l)));
    if (n == -1 && errno != EINTR) {
        log_error("epoll_wait() failed: %m");
        abort();
    }
    l->now_ns = clock_ns();
    l->nevents = n > 0 ? n : 0;
    for (int i = 0; i < l->nevents; i++) {
        loop_io *io = l->events[i].data.ptr;
        if (io != NULL)
            io->ready(io, l->events[i].events);
    }
    l->nevents = 0;
    fire_timers(l);
}

void loop_run(loop *l, int64_t (*before_sleep)(void *owner), void *owner) {
    l->stopped = false;
    l->now_ns = clock_ns();
    while (!l->stopped) {
        int64_t sleep_ns = before_sleep != NULL ? before_sleep(owner) : -1;
        if (!l->stopped)
            turn(l, sleep_ns);
    }
}

void loop_stop(loop *l) {
    l->stopped = true;
}
