/*
 * What has become of the exchanges of pools that are settled and gone, over
 * restarts of the sidecar: a page in DIR/totals of the spool, or in memory that
 * the keeper has, or else of this process alone.
 *
 *   two copies, and a sequence that says which is valid, stored last
 *
 * The valid one names the pool that came last into it.  So a pool is counted
 * once: who dies after that store and before the pool is gone has a successor
 * that finds the pool and its name here.
 */
#ifndef SIDECAR_TOTALS_H
#define SIDECAR_TOTALS_H

#include <stdbool.h>

#include "sidecar/keeper.h"
#include "sidecar/metrics.h"
#include "sidecar/spool.h"

typedef struct totals totals;

/* Either may be NULL.  NULL: out of memory. */
totals *totals_open(spool *s, keeper *k);
void totals_close(totals *t);

/* Adds a pool's. */
void totals_fold(totals *t, const metrics_exchanges *pool, const char *node_id);

/* Whether that pool was added last. */
bool totals_has_last(const totals *t, const char *node_id);

const metrics_exchanges *totals_sum(const totals *t);

/* *to += *what, cell by cell. */
void totals_add(metrics_exchanges *to, const metrics_exchanges *what);

#endif
