/*
 * Destinations: the topics, each of a cluster, that records may go to.  The
 * first is the default one; the others are what the configuration permits by
 * topic.NAME.  Each has a producer, a settlement, a line of connections that are
 * due and a share of inflight.size of its own, so that one that is away holds
 * no other up.
 *
 * A connection belongs to one for ever (conn.destination).
 */
#ifndef SIDECAR_DESTINATION_H
#define SIDECAR_DESTINATION_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "sidecar/config.h"
#include "sidecar/conn.h"
#include "sidecar/kafka.h"
#include "sidecar/loop.h"
#include "sidecar/metrics.h"
#include "sidecar/settle.h"

typedef struct destination {
    const config *config;
    size_t number; /* in it; 0: the default */
    uint64_t mark; /* of its topic and brokers, as they are configured; not 0 */
    config view;   /* the configuration as this one has it */
    void *owner;   /* the ledger */
    kafka *kafka;  /* NULL: the export is the destination */
    settle *settle;
    struct conn_list due;
    uint64_t inflight;             /* bytes of buffers in use */
    uint64_t inflight_size;        /* its share */
    char to[CONFIG_NAME_SIZE + 4]; /* for log lines: " to NAME", or "" */
    metrics_destination metrics;
} destination;

typedef struct {
    size_t n;
    destination at[];
} destinations;

/* Whether `c` names a broker for its default destination. */
bool destination_has_kafka(const config *c);

/*
 * Opens all that `c` has.  `events` come with the destination for their owner,
 * verdicts with `owner`.  NULL after a line in the log.  All must outlive it.
 */
destinations *destinations_open(const config *c, loop *l,
                                const kafka_events *events,
                                settle_verdict_cb settled, void *owner);

/* By its name, "" and "default" being the default one; NULL: not permitted. */
destination *destinations_find(destinations *ds, const char *name);

/* Whether all of them can be written to; if not, why. */
bool destinations_ready(const destinations *ds, const char **why);

/* Nothing is due, unacknowledged or in doubt. */
bool destinations_idle(const destinations *ds);

/* HUP: see kafka_reload. */
void destinations_reload(destinations *ds);

/* Ends the producers, side by side, within about `within_ns`. */
void destinations_stop(destinations *ds, int64_t within_ns);
/* After destinations_stop, and after every connection has been discarded. */
void destinations_free(destinations *ds);

#endif
