#include "sidecar/pool_measure.h"

#include <stddef.h>
#include <string.h>
#include <time.h>

#define MS 1000000
#define S (1000 * (int64_t)MS)

static int64_t clock_ns(clockid_t clock) {
    struct timespec ts;

    clock_gettime(clock, &ts);
    return (int64_t)ts.tv_sec * S + ts.tv_nsec;
}

void pool_measure_begin(pool_measures *m) {
    *m = (pool_measures){.now_ns = clock_ns(CLOCK_MONOTONIC),
                         .real_ns = clock_ns(CLOCK_REALTIME),
                         .full_ms = UINT64_MAX};
}

/* The block that was begun first of those that are held, or POOL_NO_BLOCK. */
static uint32_t oldest(const pool *p) {
    uint32_t found = POOL_NO_BLOCK, age = 0;

    for (uint32_t i = 0; i < p->geometry.nblocks; i++) {
        const pool_block *b = &p->blocks[i];

        if (b->refs > 0 &&
            (found == POOL_NO_BLOCK || p->ring_head - b->order > age)) {
            found = i;
            age = p->ring_head - b->order;
        }
    }
    return found;
}

/* By its first frame's time, as its worker has written it. */
static uint64_t age_ms(const pool *p, uint32_t block, int64_t real_ns) {
    const char *at =
        (const char *)cap_block_at(p->header, &p->geometry, block) +
        CAP_BLOCK_HEADER;
    int64_t ts_ns;

    memcpy(&ts_ns, at + offsetof(cap_frame, ts_ns), sizeof(ts_ns));
    return ts_ns > 0 && ts_ns < real_ns ? (uint64_t)(real_ns - ts_ns) / MS : 0;
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

static void note_age(const pool *p, pool_measures *m) {
    uint32_t block = p->held > 0 ? oldest(p) : POOL_NO_BLOCK;
    uint64_t ms = block != POOL_NO_BLOCK ? age_ms(p, block, m->real_ns) : 0;

    if (ms > m->oldest_ms) {
        m->oldest_ms = ms;
    }
}

static void note_time_to_full(const pool *p, pool_measures *m) {
    double room = (double)(p->geometry.nblocks - p->held) * CAP_BLOCK_SIZE;
    double ms = p->bytes_per_s > 0 ? room / p->bytes_per_s * 1000 : 1e18;

    if (ms < 1e15 && (uint64_t)ms < m->full_ms) {
        m->full_ms = (uint64_t)ms;
    }
}

void pool_measure(pool *p, pool_measures *m) {
    uint64_t permille = (uint64_t)p->held * 1000 / p->geometry.nblocks;

    m->blocks += p->geometry.nblocks;
    m->used += p->held;
    if (permille > m->fullest_permille) {
        m->fullest_permille = permille;
    }
    measure_rate(p, m->now_ns);
    note_age(p, m);
    note_time_to_full(p, m);
}
