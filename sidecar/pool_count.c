/* The sidecar's counters of a pool's exchanges, and what of them is shown there. */
#include "sidecar/pool.h"

/* Only we write these cells, so that a plain store shows the new value. */
#define SHOW(p, cell)                                                          \
    atomic_store_explicit(&(p)->header->sidecar.cell, (p)->count.cell,         \
                          memory_order_relaxed)

void pool_count_taken(pool *p) {
    p->count.taken++;
    p->count.open++;
    SHOW(p, open);
    SHOW(p, taken);
}

static void count_ended(pool *p) {
    p->count.open--;
    SHOW(p, open);
}

void pool_count_captured(pool *p, bool truncated) {
    p->count.captured++;
    SHOW(p, captured);
    if (truncated) {
        p->count.truncated++;
        SHOW(p, truncated);
    }
    count_ended(p);
}

void pool_count_reason(pool *p, unsigned reason) {
    p->count.reason[reason]++;
    SHOW(p, reason[reason]);
    count_ended(p);
}

void pool_count_class(pool *p, unsigned class) {
    if (class == CAP_ENDING_CAPTURED || class == CAP_ENDING_TRUNCATED) {
        pool_count_captured(p, class == CAP_ENDING_TRUNCATED);
    } else {
        pool_count_reason(p, class);
    }
}

void pool_count_missing(pool *p, unsigned class, uint64_t n) {
    if (n > 0) {
        p->count.taken += n - 1;
        p->count.open += n - 1;
        if (class == CAP_ENDING_CAPTURED || class == CAP_ENDING_TRUNCATED) {
            p->count.captured += n - 1;
        } else {
            p->count.reason[class] += n - 1;
        }
        p->count.open -= n - 1;
        pool_count_taken(p);
        pool_count_class(p, class);
    }
}

void pool_ending(pool *p, unsigned class, uint64_t n) {
    atomic_store_explicit(&p->header->sidecar.ending, CAP_ENDING(class, n),
                          memory_order_release);
}

void pool_doubling(pool *p, uint64_t n) {
    atomic_store_explicit(&p->header->sidecar.doubled_next,
                          p->count.doubled + n, memory_order_relaxed);
}

void pool_doubled(pool *p) {
    p->count.doubled = atomic_load_explicit(&p->header->sidecar.doubled_next,
                                            memory_order_relaxed);
    SHOW(p, doubled);
}

void pool_count_record(pool *p, uint64_t bytes) {
    p->count.records++;
    p->count.bytes += bytes;
    SHOW(p, records);
    SHOW(p, bytes);
}
