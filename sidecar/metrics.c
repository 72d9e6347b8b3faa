#include "sidecar/metrics.h"

#include <inttypes.h>
#include <string.h>

uint64_t metrics_cell[METRIC_COUNT];

static metrics_source source;
static void *source_owner;

typedef struct {
    const char *name, *type, *help;
} description;

static const description descriptions[METRIC_COUNT] = {
#define X(sym, name, type, help) [METRIC_##sym] = {name, #type, help},
    METRICS(X)
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

typedef struct {
    unsigned number;
    const char *help;
} reason;

static const reason wait_cells[] = {
#define X(sym, num, name, help) {num, help},
    CAP_WAITS(X)
#undef X
};

static const reason reasons[] = {
#define X(sym, num, cls, name, help) {num, help},
    CAP_REASONS(X)
#undef X
};

#define NREASONS (sizeof(reasons) / sizeof(*reasons))
#define NWAITS (sizeof(wait_cells) / sizeof(*wait_cells))

void metrics_register(metrics_source s, void *owner) {
    source = s;
    source_owner = owner;
}

static void head(FILE *out, const description *d) {
    fprintf(out, "# HELP capture_%s %s\n# TYPE capture_%s %s\n", d->name,
            d->help, d->name, d->type);
}

static void value(FILE *out, const description *d, uint64_t n) {
    head(out, d);
    fprintf(out, "capture_%s %" PRIu64 "\n", d->name, n);
}

/* Every reason, also at 0, so that a rate over it begins with its first. */
static void by_reason(FILE *out, const description *d, enum cap_class class,
                      const metrics_exchanges *e) {
    head(out, d);
    for (size_t i = 0; i < NREASONS; i++)
        if (cap_reason_class(reasons[i].number) == class)
            fprintf(out, "capture_%s{reason=\"%s\"} %" PRIu64 "\n", d->name,
                    cap_reason_name(reasons[i].number),
                    e->reason[reasons[i].number]);
}

void metrics_write(FILE *out) {
    metrics_exchanges e;
    memset(&e, 0, sizeof(e));
    if (source != NULL)
        source(source_owner, &e);
    value(out, &seen, e.seen);
    value(out, &captured, e.captured);
    value(out, &truncated, e.truncated);
    by_reason(out, &filtered, CAP_CLASS_FILTERED, &e);
    by_reason(out, &lost, CAP_CLASS_LOST, &e);
    value(out, &pending, e.pending);
    head(out, &waits);
    for (size_t i = 0; i < NWAITS; i++)
        fprintf(out, "capture_%s{result=\"%s\"} %" PRIu64 "\n", waits.name,
                cap_wait_name(wait_cells[i].number),
                e.wait[wait_cells[i].number]);
    for (int i = 0; i < METRIC_COUNT; i++)
        value(out, &descriptions[i],
              __atomic_load_n(&metrics_cell[i], __ATOMIC_RELAXED));
}

static void document(FILE *out, const description *d, const char *label) {
    fprintf(out, "| `capture_%s%s` | %s | %s |\n", d->name, label, d->type,
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
    document(out, &filtered, "{reason}");
    document(out, &lost, "{reason}");
    document(out, &pending, "");
    document(out, &waits, "{result}");
    for (int i = 0; i < METRIC_COUNT; i++)
        document(out, &descriptions[i], "");
    document_reasons(out, CAP_CLASS_FILTERED, "Reasons of filtered");
    document_reasons(out, CAP_CLASS_LOST, "Reasons of lost");
    fputs("\n## Results of waits\n\n"
          "held = acked + timed_out + lost + left + those held now\n\n"
          "| result | |\n| --- | --- |\n",
          out);
    for (size_t i = 0; i < NWAITS; i++)
        fprintf(out, "| `%s` | %s |\n", cap_wait_name(wait_cells[i].number),
                wait_cells[i].help);
}
