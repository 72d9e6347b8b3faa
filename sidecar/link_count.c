/* What became of the exchanges of pools: those that are here, and those that have
   gone. */
#include "sidecar/link_internal.h"

#include <time.h>

#include "sidecar/pool_measure.h"

static void add_pool(const pool *p, metrics_exchanges *to) {
    cap_worker_counters *w = &p->header->worker;
    uint64_t handed = atomic_load_explicit(&w->handed, memory_order_relaxed);

    to->seen += atomic_load_explicit(&w->seen, memory_order_relaxed);
    to->captured += p->count.captured;
    to->truncated += p->count.truncated;
    to->doubled += p->count.doubled;
    to->pending += p->count.open;
    if (handed > p->count.taken) {
        to->pending += handed - p->count.taken;
    }
    for (int i = 0; i < CAP_REASON_CELLS; i++) {
        to->reason[i] +=
            p->count.reason[i] +
            atomic_load_explicit(&w->reason[i], memory_order_relaxed);
    }
    for (int i = 0; i < CAP_WAIT_CELLS; i++) {
        to->wait[i] += atomic_load_explicit(&w->wait[i], memory_order_relaxed);
    }
    for (int i = 0; i < CAP_WAITED_CELLS; i++) {
        to->waited[i] +=
            atomic_load_explicit(&p->header->waited[i], memory_order_relaxed);
    }
    for (int i = 0; i < CAP_REDACT_CELLS; i++) {
        to->redact[i] +=
            atomic_load_explicit(&p->header->redact[i], memory_order_relaxed);
    }
}

/*
 * A pool that goes: what its worker had seen and never handed over in frames
 * is lost with it.  `seen` is taken from the parts, so that the sum holds
 * whatever the worker left there.
 */
void link_count_gone(links *ls, const pool *p, enum cap_reason reason) {
    metrics_exchanges last = {0};
    uint64_t parts;

    add_pool(p, &last);
    last.reason[reason] += last.pending;
    parts = last.captured;
    for (int i = 0; i < CAP_REASON_CELLS; i++) {
        parts += last.reason[i];
    }
    if (last.seen > parts && reason != CAP_BAD_LINK && reason != CAP_INTERNAL) {
        last.reason[CAP_WORKER_EXIT] += last.seen - parts;
        parts = last.seen;
    }
    last.seen = parts;
    last.pending = 0;
    if (ls->totals != NULL) {
        totals_fold(ls->totals, &last, p->node_id);
    } else {
        totals_add(&ls->retired, &last);
    }
}

void links_use_totals(links *ls, totals *t) {
    ls->totals = t;
}

/* Of a frame's time, in ms; 0 where there is none. */
static uint64_t age_ms(int64_t ts_ns) {
    struct timespec now;
    int64_t age;

    clock_gettime(CLOCK_REALTIME, &now);
    age = now.tv_sec * (1000 * MS) + now.tv_nsec - ts_ns;
    return ts_ns != 0 && age > 0 ? (uint64_t)(age / MS) : 0;
}

void links_sum(void *owner, metrics_exchanges *into) {
    links *ls = owner;
    uint64_t age, oldest = 0;
    peer *p;
    pool_measures m;

    *into = ls->totals != NULL ? *totals_sum(ls->totals) : ls->retired;
    pool_measure_begin(&m);
    TAILQ_FOREACH(p, &ls->peers, all) {
        if (p->pool != NULL) {
            add_pool(p->pool, into);
            pool_measure(p->pool, &m);
        }
        if (p->assemble != NULL) {
            age = age_ms(assemble_oldest_ns(p->assemble));
            oldest = age > oldest ? age : oldest;
        }
    }
    metrics_cell[METRIC_POOL_BLOCKS] = m.blocks;
    metrics_cell[METRIC_POOL_BLOCKS_USED] = m.used;
    metrics_cell[METRIC_POOL_FULLEST] = m.fullest_permille;
    metrics_cell[METRIC_POOL_OLDEST] = oldest;
    _Static_assert(METRICS_INFINITE == UINT64_MAX, "as pool_measure.h has it");
    metrics_cell[METRIC_POOL_TIME_TO_FULL] = m.full_ms;
    metrics_cell[METRIC_SPOOL_TIME_TO_FULL] =
        metrics_cell[METRIC_SPOOL_SIZE] == 0
            ? METRICS_INFINITE
            : pool_measure_lasts(metrics_cell[METRIC_SPOOL_SIZE] -
                                     metrics_cell[METRIC_SPOOL_BYTES],
                                 m.bytes_per_s);
}
