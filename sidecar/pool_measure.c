#include "sidecar/pool_measure.h"

#include <time.h>

#define S 1000000000ll

void pool_measure_begin(pool_measures *m) {
    struct timespec ts;

    clock_gettime(CLOCK_MONOTONIC, &ts);
    *m = (pool_measures){.now_ns = ts.tv_sec * S + ts.tv_nsec,
                         .full_ms = UINT64_MAX};
}

/* Bytes that its worker has ever put there, a frame's head among them. */
static uint64_t bytes_in(const pool *p) {
    const cap_worker_counters *w = &p->header->worker;

    return atomic_load_explicit(&w->bytes, memory_order_relaxed) +
           sizeof(cap_frame) *
               atomic_load_explicit(&w->frames, memory_order_relaxed);
}

/* Who looks twice within a second gets the same answer. */
static void measure_rate(pool *p, int64_t now_ns) {
    uint64_t bytes = bytes_in(p);

    if (p->measured_ns != 0 && now_ns - p->measured_ns < S) {
        return;
    }
    p->bytes_per_s = p->measured_ns == 0 || bytes < p->measured_bytes
                         ? 0
                         : (double)(bytes - p->measured_bytes) * S /
                               (double)(now_ns - p->measured_ns);
    p->measured_ns = now_ns;
    p->measured_bytes = bytes;
}

uint64_t pool_measure_lasts(uint64_t bytes, double bytes_per_s) {
    double ms = bytes_per_s > 0 ? (double)bytes / bytes_per_s * 1000 : 1e18;

    return ms < 1e15 ? (uint64_t)ms : UINT64_MAX;
}

void pool_measure(pool *p, pool_measures *m) {
    uint64_t permille = (uint64_t)p->held * 1000 / p->geometry.nblocks, lasts;

    m->blocks += p->geometry.nblocks;
    m->used += p->held;
    if (permille > m->fullest_permille) {
        m->fullest_permille = permille;
    }
    measure_rate(p, m->now_ns);
    m->bytes_per_s += p->bytes_per_s;
    lasts = pool_measure_lasts((uint64_t)(p->geometry.nblocks - p->held) *
                                   CAP_BLOCK_SIZE,
                               p->bytes_per_s);
    if (lasts < m->full_ms) {
        m->full_ms = lasts;
    }
}
