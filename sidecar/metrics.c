#include "sidecar/metrics.h"

#include <inttypes.h>
#include <string.h>

#define MS 1000000ull
#define S (1000 * MS)

uint64_t metrics_cell[METRIC_COUNT];

static const uint64_t bounds_TIME[] = {
    MS,        5 * MS / 2, 5 * MS,   10 * MS,  25 * MS,
    50 * MS,   100 * MS,   250 * MS, 500 * MS, S,
    5 * S / 2, 5 * S,      10 * S,   30 * S,   60 * S};
static const uint64_t bounds_LONG[] = {10 * MS, 100 * MS, 500 * MS, S,
                                       5 * S,   10 * S,   30 * S,   60 * S,
                                       300 * S, 600 * S,  1800 * S, 3600 * S};
static const uint64_t bounds_SIZE[] = {256,   1024,   4096,   16384,
                                       65536, 262144, 524288, 1048576};
static const uint64_t bounds_WAITED[] = {
#define X(bound) bound,
    CAP_WAITED(X)
#undef X
};

#define SCALE_TIME 1e-9
#define SCALE_LONG 1e-9
#define SCALE_SIZE 1
#define SCALE_WAITED 1e-3

_Static_assert(sizeof(bounds_WAITED) / sizeof(*bounds_WAITED) ==
                       CAP_WAITED_CELLS - 1 &&
                   CAP_WAITED_CELLS <= METRICS_BUCKETS,
               "a cell for each bound and one more");

static metrics_histogram histograms[HISTOGRAM_COUNT];
static const metrics_bounds described[HISTOGRAM_COUNT] = {
#define X(sym, called, of, text)                                               \
    [HISTOGRAM_##sym] = {.name = called,                                       \
                         .help = text,                                         \
                         .bounds = bounds_##of,                                \
                         .n = sizeof(bounds_##of) / sizeof(*bounds_##of),      \
                         .scale = SCALE_##of},
    HISTOGRAMS(X)
#undef X
};

static metrics_source source;
static void *source_owner;
static metrics_destinations destinations;
static void *destinations_owner;

typedef struct {
    const char *name, *type, *help;
} description;

static const description descriptions[METRIC_COUNT] = {
#define X(sym, name, type, help) [METRIC_##sym] = {name, #type, help},
    METRICS(X)
#undef X
};

static const description destination_cells[DESTINATION_COUNT] = {
#define X(sym, name, type, help) [DESTINATION_##sym] = {name, #type, help},
    DESTINATION_METRICS(X)
#undef X
};

/* The exchanges' part: seen = captured + filtered + lost + pending. */
static const description seen = {"exchanges_seen_total", "counter",
                                 "exchanges whose request head was complete"};
static const description captured = {
    "exchanges_captured_total", "counter",
    "exchanges whose records are all acknowledged"};
static const description truncated = {
    "exchanges_truncated_total", "counter",
    "of the captured: cut short by the client or the source"};
static const description doubled = {
    "exchanges_maybe_doubled_total", "counter",
    "times that a request was sent again although it may be in the topic"};
static const description filtered = {"exchanges_filtered_total", "counter",
                                     "exchanges never to be replayed, by rule"};
static const description lost = {
    "exchanges_lost_total", "counter",
    "exchanges of which some byte will never be sent"};
static const description pending = {
    "exchanges_pending", "gauge",
    "exchanges with bytes that are not yet acknowledged"};

static const description waits = {
    "waits_total", "counter",
    "requests that wait (capture_wait), by what became of them"};

static const description redacted = {
    "redacted_total", "counter",
    "what was replaced or left out before it was recorded, by kind"};

typedef struct {
    unsigned number;
    const char *help;
} reason;

static const reason wait_cells[] = {
#define X(sym, num, name, help) {num, help},
    CAP_WAITS(X)
#undef X
};

static const reason redact_cells[] = {
#define X(sym, num, name, help) {num, help},
    CAP_REDACTS(X)
#undef X
};

static const reason reasons[] = {
#define X(sym, num, cls, name, help) {num, help},
    CAP_REASONS(X)
#undef X
};

#define NREASONS (sizeof(reasons) / sizeof(*reasons))
#define NWAITS (sizeof(wait_cells) / sizeof(*wait_cells))
#define NREDACTS (sizeof(redact_cells) / sizeof(*redact_cells))

void metrics_register(metrics_source s, void *owner) {
    source = s;
    source_owner = owner;
}

/* ---- destinations ---- */

void metrics_register_destinations(metrics_destinations s, void *owner) {
    destinations = s;
    destinations_owner = owner;
}

static const metrics_destination *destination_at(size_t i) {
    return destinations != NULL ? destinations(destinations_owner, i) : NULL;
}

static void set_cell(enum metric m, uint64_t value) {
    __atomic_store_n(&metrics_cell[m], value, __ATOMIC_RELAXED);
}

/* 0: there is none */
static uint64_t earlier(uint64_t a, uint64_t b) {
    return a == 0 || (b != 0 && b < a) ? b : a;
}

/* What of them is no sum. */
static void collect_destinations(void) {
    bool any = false, ready = true, reachable = true, readable = true;
    uint64_t certificate = 0, token = 0;
    const metrics_destination *d;

    for (size_t i = 0; (d = destination_at(i)) != NULL; i++) {
        if (!d->has_kafka)
            continue;
        any = true;
        ready &= d->cell[DESTINATION_READY] != 0;
        reachable &= d->cell[DESTINATION_REACHABLE] != 0;
        readable &= d->cell[DESTINATION_READABLE] != 0;
        certificate =
            earlier(certificate, d->cell[DESTINATION_CERTIFICATE_EXPIRY]);
        token = earlier(token, d->cell[DESTINATION_TOKEN_EXPIRY]);
    }
    if (!any)
        return;
    set_cell(METRIC_KAFKA_READY, ready);
    set_cell(METRIC_KAFKA_REACHABLE, reachable);
    set_cell(METRIC_KAFKA_READABLE, readable);
    set_cell(METRIC_CERTIFICATE_EXPIRY, certificate);
    set_cell(METRIC_TOKEN_EXPIRY, token);
}

/* ---- histograms ---- */

const metrics_bounds *metrics_bounds_of(enum histogram h) {
    return &described[h];
}

void metrics_observe(enum histogram h, uint64_t value) {
    const metrics_bounds *d = &described[h];
    unsigned i = 0;
    while (i < d->n && value > d->bounds[i])
        i++;
    histograms[h].bucket[i]++;
    histograms[h].sum += value;
}

metrics_histogram metrics_histogram_of(enum histogram h,
                                       const metrics_exchanges *e) {
    if (h != HISTOGRAM_WAIT)
        return histograms[h];
    metrics_histogram waits = {.sum = e->wait[CAP_WAIT_TIME_MS]};
    memcpy(waits.bucket, e->waited, sizeof(e->waited));
    return waits;
}

void metrics_collect(metrics_exchanges *into) {
    memset(into, 0, sizeof(*into));
    if (source != NULL)
        source(source_owner, into);
    collect_destinations();
}

/* ---- Prometheus' text ---- */

/* As it is called there. */
static const char *type_of(const description *d) {
    return strcmp(d->type, "milli") == 0 ? "gauge" : d->type;
}

static void head(FILE *out, const char *name, const char *type,
                 const char *help) {
    fprintf(out, "# HELP capture_%s %s\n# TYPE capture_%s %s\n", name, help,
            name, type);
}

static void value(FILE *out, const description *d, uint64_t n) {
    head(out, d->name, type_of(d), d->help);
    if (type_of(d) == d->type)
        fprintf(out, "capture_%s %" PRIu64 "\n", d->name, n);
    else if (n == METRICS_INFINITE)
        fprintf(out, "capture_%s +Inf\n", d->name);
    else
        fprintf(out, "capture_%s %" PRIu64 ".%03u\n", d->name, n / 1000,
                (unsigned)(n % 1000));
}

static void histogram(FILE *out, enum histogram h, const metrics_exchanges *e) {
    const metrics_bounds *d = &described[h];
    const metrics_histogram now = metrics_histogram_of(h, e);
    uint64_t below = 0;
    head(out, d->name, "histogram", d->help);
    for (unsigned i = 0; i < d->n; i++) {
        below += now.bucket[i];
        fprintf(out, "capture_%s_bucket{le=\"%.7g\"} %" PRIu64 "\n", d->name,
                (double)d->bounds[i] * d->scale, below);
    }
    below += now.bucket[d->n];
    fprintf(out, "capture_%s_bucket{le=\"+Inf\"} %" PRIu64 "\n", d->name,
            below);
    fprintf(out, "capture_%s_sum %.9g\n", d->name, (double)now.sum * d->scale);
    fprintf(out, "capture_%s_count %" PRIu64 "\n", d->name, below);
}

/* Every reason, also at 0, so that a rate over it begins with its first. */
static void by_reason(FILE *out, const description *d, enum cap_class class,
                      const metrics_exchanges *e) {
    head(out, d->name, d->type, d->help);
    for (size_t i = 0; i < NREASONS; i++)
        if (cap_reason_class(reasons[i].number) == class)
            fprintf(out, "capture_%s{reason=\"%s\"} %" PRIu64 "\n", d->name,
                    cap_reason_name(reasons[i].number),
                    e->reason[reasons[i].number]);
}

static void by_destination(FILE *out) {
    const metrics_destination *d;
    if (destination_at(0) == NULL)
        return;
    for (int m = 0; m < DESTINATION_COUNT; m++) {
        const description *e = &destination_cells[m];
        head(out, e->name, e->type, e->help);
        for (size_t i = 0; (d = destination_at(i)) != NULL; i++)
            fprintf(out,
                    "capture_%s{destination=\"%s\",topic=\"%s\"} %" PRIu64 "\n",
                    e->name, d->name, d->topic, d->cell[m]);
    }
}

void metrics_write(FILE *out) {
    metrics_exchanges e;
    metrics_collect(&e);
    value(out, &seen, e.seen);
    value(out, &captured, e.captured);
    value(out, &truncated, e.truncated);
    value(out, &doubled, e.doubled);
    by_reason(out, &filtered, CAP_CLASS_FILTERED, &e);
    by_reason(out, &lost, CAP_CLASS_LOST, &e);
    value(out, &pending, e.pending);
    head(out, waits.name, waits.type, waits.help);
    for (size_t i = 0; i < NWAITS; i++)
        if (wait_cells[i].number != CAP_WAIT_TIME_MS) /* wait_seconds */
            fprintf(out, "capture_%s{result=\"%s\"} %" PRIu64 "\n", waits.name,
                    cap_wait_name(wait_cells[i].number),
                    e.wait[wait_cells[i].number]);
    head(out, redacted.name, redacted.type, redacted.help);
    for (size_t i = 0; i < NREDACTS; i++)
        fprintf(out, "capture_%s{kind=\"%s\"} %" PRIu64 "\n", redacted.name,
                cap_redact_name(redact_cells[i].number),
                e.redact[redact_cells[i].number]);
    for (int i = 0; i < METRIC_COUNT; i++)
        value(out, &descriptions[i],
              __atomic_load_n(&metrics_cell[i], __ATOMIC_RELAXED));
    by_destination(out);
    for (int i = 0; i < HISTOGRAM_COUNT; i++)
        histogram(out, (enum histogram)i, &e);
}

/* ---- the pages in docs/ ---- */

static void document(FILE *out, const description *d, const char *label) {
    fprintf(out, "| `capture_%s%s` | %s | %s |\n", d->name, label, type_of(d),
            d->help);
}

static void document_reasons(FILE *out, enum cap_class class,
                             const char *title) {
    fprintf(out, "\n## %s\n\n| reason | |\n| --- | --- |\n", title);
    for (size_t i = 0; i < NREASONS; i++)
        if (cap_reason_class(reasons[i].number) == class)
            fprintf(out, "| `%s` | %s |\n", cap_reason_name(reasons[i].number),
                    reasons[i].help);
}

void metrics_docs(FILE *out) {
    fputs("<!-- made from sidecar/metrics.h and wire/counters.h: change them "
          "-->\n"
          "# The sidecar's metrics\n\n"
          "An exchange is counted once in seen, when its request head is "
          "complete, and then in\n"
          "exactly one class: seen = captured + filtered + lost + pending.\n\n"
          "| metric | type | |\n| --- | --- | --- |\n",
          out);
    document(out, &seen, "");
    document(out, &captured, "");
    document(out, &truncated, "");
    document(out, &doubled, "");
    document(out, &filtered, "{reason}");
    document(out, &lost, "{reason}");
    document(out, &pending, "");
    document(out, &waits, "{result}");
    document(out, &redacted, "{kind}");
    for (int i = 0; i < METRIC_COUNT; i++)
        document(out, &descriptions[i], "");
    for (int i = 0; i < DESTINATION_COUNT; i++)
        document(out, &destination_cells[i], "{destination,topic}");
    for (int i = 0; i < HISTOGRAM_COUNT; i++)
        fprintf(out, "| `capture_%s` | histogram | %s |\n", described[i].name,
                described[i].help);
    document_reasons(out, CAP_CLASS_FILTERED, "Reasons of filtered");
    document_reasons(out, CAP_CLASS_LOST, "Reasons of lost");
    fputs("\n## Results of waits\n\n"
          "held = acked + timed_out + lost + left + those held now\n\n"
          "| result | |\n| --- | --- |\n",
          out);
    for (size_t i = 0; i < NWAITS; i++)
        fprintf(out, "| `%s` | %s |\n", cap_wait_name(wait_cells[i].number),
                wait_cells[i].help);
    fputs("\n## What was redacted\n\n| kind | |\n| --- | --- |\n", out);
    for (size_t i = 0; i < NREDACTS; i++)
        fprintf(out, "| `%s` | %s |\n", cap_redact_name(redact_cells[i].number),
                redact_cells[i].help);
}
