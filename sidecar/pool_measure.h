/*
 * How full pools are, and how long they would last: looked at when somebody
 * asks, never in the way of a frame.
 *
 * What the worker's side of the header says is only shown, and nothing follows
 * from it.
 */
#ifndef SIDECAR_POOL_MEASURE_H
#define SIDECAR_POOL_MEASURE_H

#include <stdint.h>

#include "sidecar/pool.h"

typedef struct {
    int64_t now_ns; /* CLOCK_MONOTONIC */
    uint64_t blocks, used;
    uint64_t fullest_permille;
    double bytes_per_s; /* that come in */
    uint64_t full_ms;   /* the first to fill up; UINT64_MAX: nothing comes in */
} pool_measures;

void pool_measure_begin(pool_measures *m);
/* Adds a pool. */
void pool_measure(pool *p, pool_measures *m);
/* How long so many bytes last at that rate, in ms; UINT64_MAX: for ever. */
uint64_t pool_measure_lasts(uint64_t bytes, double bytes_per_s);

#endif
