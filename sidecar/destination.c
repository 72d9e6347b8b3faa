#include "sidecar/destination.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "sidecar/log.h"

#define READERS_NS 1000000000ll /* for consumers that end with the process */

bool destination_has_kafka(const config *c) {
    return config_kafka(c, "bootstrap.servers") != NULL;
}

/* ---- metrics ---- */

static const metrics_destination *measure(void *owner, size_t i) {
    destinations *ds = owner;
    kafka_health h = {.reachable = true};
    metrics_destination *m;
    destination *d;

    if (i >= ds->n) {
        return NULL;
    }
    d = &ds->at[i];
    m = &d->metrics;
    if (d->kafka != NULL) {
        kafka_look(d->kafka, &h);
    }
    m->cell[DESTINATION_READY] = d->kafka == NULL || kafka_ready(d->kafka);
    m->cell[DESTINATION_REACHABLE] = h.reachable;
    m->cell[DESTINATION_READABLE] =
        d->kafka == NULL || kafka_readable(d->kafka);
    m->cell[DESTINATION_CERTIFICATE_EXPIRY] = h.certificate_expiry_s;
    m->cell[DESTINATION_TOKEN_EXPIRY] = h.token_expiry_s;
    m->cell[DESTINATION_DOUBTS] = settle_doubts(d->settle);
    return m;
}

/* ---- life ---- */

/* FNV-1a */
static uint64_t hash_in(uint64_t hash, const char *text) {
    for (; text != NULL && *text != '\0'; text++) {
        hash = (hash ^ (uint8_t)*text) * 1099511628211u;
    }
    return (hash ^ '\n') * 1099511628211u;
}

static uint64_t mark_of(const config *view) {
    uint64_t hash = hash_in(14695981039346656037u, view->topic);

    return hash_in(hash, config_kafka(view, "bootstrap.servers")) | 1;
}

static int open_one(destination *d, const config *c, size_t i, loop *l,
                    const kafka_events *events, settle_verdict_cb settled,
                    void *owner) {
    d->config = c;
    d->number = i;
    d->owner = owner;
    config_view(c, i, &d->view);
    d->mark = mark_of(&d->view);
    d->inflight_size = d->view.inflight_size;
    TAILQ_INIT(&d->due);
    if (d->view.destination != NULL) {
        snprintf(d->to, sizeof(d->to), " to %s", d->view.destination);
    }
    d->metrics.name = config_destination_name(c, i);
    d->metrics.topic = d->view.topic;
    d->metrics.has_kafka = destination_has_kafka(&d->view);
    if (!d->metrics.has_kafka) {
        return 0;
    }
    d->kafka = kafka_new(&d->view, l, events, d);
    if (d->kafka == NULL) {
        return -1;
    }
    d->settle = settle_new(&d->view, l, d->kafka, settled, owner);
    if (d->settle == NULL) {
        log_error("out of memory");
        return -1;
    }
    return 0;
}

destinations *destinations_open(const config *c, loop *l,
                                const kafka_events *events,
                                settle_verdict_cb settled, void *owner) {
    size_t n = c->ndestinations + 1;
    destinations *ds = calloc(1, sizeof(*ds) + n * sizeof(ds->at[0]));

    if (ds == NULL) {
        log_error("out of memory");
        return NULL;
    }
    for (ds->n = 0; ds->n < n;) {
        destination *d = &ds->at[ds->n++];

        if (open_one(d, c, ds->n - 1, l, events, settled, owner) != 0) {
            destinations_stop(ds, 0);
            destinations_free(ds);
            return NULL;
        }
    }
    metrics_register_destinations(measure, ds);
    return ds;
}

void destinations_stop(destinations *ds, int64_t within_ns) {
    kafka *producers[CONFIG_MAX_DESTINATIONS + 1];
    size_t n = 0;

    for (size_t i = 0; i < ds->n; i++) {
        settle_stop(ds->at[i].settle);
        if (ds->at[i].kafka != NULL) {
            producers[n++] = ds->at[i].kafka;
        }
    }
    kafkas_free(producers, n, within_ns);
    for (size_t i = 0; i < ds->n; i++) {
        ds->at[i].kafka = NULL;
    }
}

void destinations_free(destinations *ds) {
    if (ds == NULL) {
        return;
    }
    metrics_register_destinations(NULL, NULL);
    (void)kafka_readers_wait(READERS_NS); /* main looks again */
    for (size_t i = 0; i < ds->n; i++) {
        settle_free(ds->at[i].settle);
    }
    free(ds);
}

void destinations_reload(destinations *ds) {
    for (size_t i = 0; i < ds->n; i++) {
        destination *d = &ds->at[i];

        config_view_again(d->config, d->number, &d->view);
        if (d->kafka != NULL) {
            kafka_reload(d->kafka);
        }
    }
}

/* ---- questions ---- */

destination *destinations_find(destinations *ds, const char *name) {
    if (*name == '\0') {
        return &ds->at[0];
    }
    for (size_t i = 0; i < ds->n; i++) {
        if (strcmp(ds->at[i].metrics.name, name) == 0) {
            return &ds->at[i];
        }
    }
    return NULL;
}

bool destinations_ready(const destinations *ds, const char **why) {
    static char text[640];

    *why = "";
    for (size_t i = 0; i < ds->n; i++) {
        const destination *d = &ds->at[i];

        if (d->kafka == NULL || kafka_ready(d->kafka)) {
            continue;
        }
        *why = kafka_not_ready_why(d->kafka);
        if (ds->n > 1) {
            snprintf(text, sizeof(text), "%s: %s", d->metrics.name, *why);
            *why = text;
        }
        return false;
    }
    return true;
}

bool destinations_idle(const destinations *ds) {
    for (size_t i = 0; i < ds->n; i++) {
        const destination *d = &ds->at[i];

        if (!TAILQ_EMPTY(&d->due) || d->inflight != 0 ||
            !settle_idle(d->settle)) {
            return false;
        }
    }
    return true;
}
