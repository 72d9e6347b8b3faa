/*
 * Protocol buffers by hand (opentelemetry/proto/metrics/v1): a message's length
 * is written when its end is known, as a varint of a fixed four bytes.
 */
#include "sidecar/otlp_encode.h"

#include <stdbool.h>
#include <string.h>

#define CUMULATIVE 2

enum { VARINT = 0, FIXED64 = 1, BYTES = 2 };

#define LENGTH_SIZE 4

typedef struct {
    uint8_t *at;
    size_t len, size;
    bool full;
} writer;

static void put(writer *w, const void *data, size_t len) {
    if (len > w->size - w->len) {
        w->full = true;
        return;
    }
    memcpy(w->at + w->len, data, len);
    w->len += len;
}

static void put_varint(writer *w, uint64_t v) {
    uint8_t text[10];
    size_t n = 0;
    for (; v >= 0x80; v >>= 7)
        text[n++] = (uint8_t)(v | 0x80);
    text[n++] = (uint8_t)v;
    put(w, text, n);
}

static void put_tag(writer *w, unsigned field, unsigned wire) {
    put_varint(w, field << 3 | wire);
}

static void put_little_endian(writer *w, uint64_t v) {
    uint8_t text[8];
    for (unsigned i = 0; i < 8; i++)
        text[i] = (uint8_t)(v >> 8 * i);
    put(w, text, sizeof(text));
}

static uint64_t bits_of(double v) {
    uint64_t bits;
    memcpy(&bits, &v, sizeof(bits));
    return bits;
}

static void put_number(writer *w, unsigned field, uint64_t v) {
    put_tag(w, field, VARINT);
    put_varint(w, v);
}

static void put_fixed(writer *w, unsigned field, uint64_t v) {
    put_tag(w, field, FIXED64);
    put_little_endian(w, v);
}

static void put_text(writer *w, unsigned field, const char *text) {
    put_tag(w, field, BYTES);
    put_varint(w, strlen(text));
    put(w, text, strlen(text));
}

/* A message within another; what is returned is for end(). */
static size_t begin(writer *w, unsigned field) {
    static const uint8_t room[LENGTH_SIZE];
    put_tag(w, field, BYTES);
    put(w, room, sizeof(room));
    return w->len;
}

static void end(writer *w, size_t at) {
    size_t len = w->len - at;
    if (w->full)
        return;
    for (unsigned i = 0; i < LENGTH_SIZE; i++)
        w->at[at - LENGTH_SIZE + i] =
            (uint8_t)((len >> 7 * i & 0x7f) | (i < LENGTH_SIZE - 1 ? 0x80 : 0));
}

/* ---- the metrics ---- */

typedef struct {
    writer w;
    uint64_t start_ns, now_ns;
} request;

/* Metric: name, description, unit; the data follow in the same message. */
static size_t begin_metric(writer *w, const char *name, const char *help,
                           const char *unit) {
    size_t metric = begin(w, 2);
    put_text(w, 1, name);
    put_text(w, 2, help);
    put_text(w, 3, unit);
    return metric;
}

static size_t begin_point(request *r) {
    size_t point = begin(&r->w, 1);
    put_fixed(&r->w, 2, r->start_ns);
    put_fixed(&r->w, 3, r->now_ns);
    return point;
}

static void put_sum(request *r, const char *name, const char *help,
                    const char *unit, bool monotonic, uint64_t value) {
    writer *w = &r->w;
    size_t metric = begin_metric(w, name, help, unit), sum = begin(w, 7),
           point = begin_point(r);
    put_fixed(w, 6, value);
    end(w, point);
    put_number(w, 2, CUMULATIVE);
    put_number(w, 3, monotonic);
    end(w, sum);
    end(w, metric);
}

static void put_histogram(request *r, const char *name, const char *help,
                          const metrics_bounds *d, const metrics_histogram *h) {
    writer *w = &r->w;
    size_t metric = begin_metric(w, name, help, "ms"), data = begin(w, 9),
           point = begin_point(r), packed;
    uint64_t count = 0;
    for (unsigned i = 0; i <= d->n; i++)
        count += h->bucket[i];
    put_fixed(w, 4, count);
    put_fixed(w, 5, bits_of((double)h->sum * d->scale * 1000));
    packed = begin(w, 6);
    for (unsigned i = 0; i <= d->n; i++)
        put_little_endian(w, h->bucket[i]);
    end(w, packed);
    packed = begin(w, 7);
    for (unsigned i = 0; i < d->n; i++)
        put_little_endian(w, bits_of((double)d->bounds[i] * d->scale * 1000));
    end(w, packed);
    end(w, point);
    put_number(w, 2, CUMULATIVE);
    end(w, data);
    end(w, metric);
}

static uint64_t count_of(enum histogram h, const metrics_exchanges *e) {
    const metrics_histogram now = metrics_histogram_of(h, e);
    uint64_t count = 0;
    for (unsigned i = 0; i < METRICS_BUCKETS; i++)
        count += now.bucket[i];
    return count;
}

static uint64_t cell(enum metric m) {
    return __atomic_load_n(&metrics_cell[m], __ATOMIC_RELAXED);
}

#define CELL(sym) cell(METRIC_##sym)
#define COUNT(sym) count_of(HISTOGRAM_##sym, e)
#define IS_counter true
#define IS_updown false

static void put_metrics(request *r, const metrics_exchanges *e) {
#define X(name, kind, unit, value, help)                                       \
    put_sum(r, #name, help, unit, IS_##kind, value);
    OTLP_SUMS(X)
#undef X
#define X(name, sym, help)                                                     \
    {                                                                          \
        const metrics_histogram now =                                          \
            metrics_histogram_of(HISTOGRAM_##sym, e);                          \
        put_histogram(r, #name, help, metrics_bounds_of(HISTOGRAM_##sym),      \
                      &now);                                                   \
    }
    OTLP_HISTOGRAMS(X)
#undef X
}

/* Resource: service.name */
static void put_resource(writer *w) {
    size_t resource = begin(w, 1), attribute = begin(w, 1), value;
    put_text(w, 1, "service.name");
    value = begin(w, 2);
    put_text(w, 1, OTLP_SERVICE);
    end(w, value);
    end(w, attribute);
    end(w, resource);
}

size_t otlp_encode(uint8_t *into, size_t size, uint64_t start_ns,
                   uint64_t now_ns) {
    request r = {.w = {.at = into, .size = size},
                 .start_ns = start_ns,
                 .now_ns = now_ns};
    metrics_exchanges e;
    size_t all, scope_metrics, scope;
    metrics_collect(&e);
    all = begin(&r.w, 1);
    put_resource(&r.w);
    scope_metrics = begin(&r.w, 2);
    scope = begin(&r.w, 1);
    put_text(&r.w, 1, OTLP_SCOPE);
    end(&r.w, scope);
    put_metrics(&r, &e);
    end(&r.w, scope_metrics);
    end(&r.w, all);
    return r.w.full ? 0 : r.w.len;
}

void otlp_docs(FILE *out) {
    fputs("\n## By OTLP\n\n"
          "With `otlp.endpoint`, under the names, kinds and units that the "
          "Java Capture Proxy has:\nscope `" OTLP_SCOPE
          "`, `service.name` = `" OTLP_SERVICE
          "`, cumulative, without attributes. Where there are\nno messages of "
          "Netty's to count (unregistered, removed), it is the nearest that "
          "there is.\n\n"
          "| instrument | kind | unit | |\n| --- | --- | --- | --- |\n",
          out);
#define X(name, kind, unit, value, help)                                       \
    fputs("| `" #name "` | " #kind " | " unit " | " help " |\n", out);
    OTLP_SUMS(X)
#undef X
#define X(name, sym, help)                                                     \
    fputs("| `" #name "` | histogram | ms | " help " |\n", out);
    OTLP_HISTOGRAMS(X)
#undef X
}
