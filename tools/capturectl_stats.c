/*
 * capturectl stats: rates, sizes, methods, statuses, paths, latencies; with
 * --plan what a topic needs to hold such traffic.
 */

#include "tools/capturectl_exchange.h"
#include "tools/capturectl_filter.h"
#include "tools/capturectl_tally.h"
#include "tools/capturectl_text.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define NS_PER_SECOND INT64_C(1000000000)
#define DAY 86400
#define MINUTE 60

#define TABLE_SIZE 10000 /* paths that are counted at once */
#define KEY_MAX 512      /* bytes of a path */
#define MINUTES 16       /* that records of about the same time can touch */

/* What the broker adds to a key and a value, and its indexes, by and large. */
#define RECORD_OVERHEAD 80

/* What one partition is expected to take, of what brokers are sold for. */
#define PARTITION_BYTES (8 * 1024 * 1024)

/* Over what has been seen. */
#define PLAN_RESERVE 1.2

typedef struct {
    int64_t minute;
    uint64_t bytes;
} minute;

typedef struct {
    const ctl_options *opt;
    accumulator *accumulator;
    exchange_filter *filter;
    uint64_t records, bytes; /* of the topic: with keys and overhead */
    uint64_t value_bytes;
    int64_t first_ns, last_ns;
    minute minutes[MINUTES];
    uint64_t busiest; /* bytes of a minute */
    uint64_t exchanges, no_response;
    tally *methods, *statuses, *paths;
    histogram requests, responses, latency_us;
} stats;

static void count_minute(stats *s, int64_t ns, uint64_t bytes) {
    int64_t at = ns / NS_PER_SECOND / MINUTE;
    minute *m = &s->minutes[(uint64_t)at % MINUTES];

    if (m->minute != at) {
        *m = (minute){at, 0};
    }

    m->bytes += bytes;
    s->busiest = m->bytes > s->busiest ? m->bytes : s->busiest;
}

static void on_record(void *ctx, ctl_record *r) {
    stats *s = ctx;
    record_observation o;
    record_reader reader = r->reader;
    int64_t ns = 0;
    uint64_t bytes =
        r->from->value_len + r->info.connection_id.len + RECORD_OVERHEAD;

    while (record_next(&reader, &o)) {
        ns = record_ts_ns(&o);
        s->first_ns = ns < s->first_ns ? ns : s->first_ns;
        s->last_ns = ns > s->last_ns ? ns : s->last_ns;
    }

    s->records++;
    s->bytes += bytes;
    s->value_bytes += r->from->value_len;
    count_minute(s, ns, bytes);

    accumulate_record(s->accumulator, r->from->place, &r->info, &r->reader);
}

static void count_key(tally *t, span key) {
    tally_add(t, key.len ? key.data : "-",
              key.len == 0        ? 1
              : key.len < KEY_MAX ? key.len
                                  : KEY_MAX);
}

static void on_exchange(void *ctx, const http_exchange *x) {
    stats *s = ctx;
    char status[16] = "none";
    double latency = exchange_latency_ms(x) * 1000;
    span line;

    if (!filter_wants(s->filter, x)) {
        return;
    }

    line = exchange_first_line(&x->request);
    s->exchanges++;
    count_key(s->methods, exchange_word(&line));
    count_key(s->paths, exchange_path(exchange_word(&line)));
    histogram_add(&s->requests, x->request.size);

    if (x->response.packets > 0) {
        snprintf(status, sizeof(status), "%d", exchange_status(&x->response));
        histogram_add(&s->responses, x->response.size);
        histogram_add(&s->latency_us, latency > 0 ? (uint64_t)latency : 0);
    } else {
        s->no_response++;
    }

    count_key(s->statuses, (span){status, strlen(status)});
}

static void on_remark(void *ctx, const char *place, const char *what) {
    (void)ctx;

    ctl_remark("%s: %s", place, what);
}

static void on_error(void *ctx, const char *place, const char *what) {
    (void)ctx;

    ctl_error("%s: %s", place, what);
}

/* what has been counted, in words and in JSON */

static double seconds(const stats *s) {
    double ns = s->records ? (double)s->last_ns - (double)s->first_ns : 0;

    return ns > (double)NS_PER_SECOND ? ns / (double)NS_PER_SECOND : 1;
}

typedef struct {
    double bytes_per_day, peak_per_second;
    uint64_t partitions, retention_ms, retention_bytes, room;
} plan;

static plan make_plan(const stats *s) {
    plan p;
    double mean = (double)s->bytes / seconds(s);
    double peak = (double)s->busiest / MINUTE;

    p.peak_per_second = peak > mean ? peak : mean;
    p.bytes_per_day = mean * DAY;
    p.partitions =
        (uint64_t)(p.peak_per_second * PLAN_RESERVE / PARTITION_BYTES) + 1;
    p.retention_ms = (uint64_t)s->opt->days * DAY * 1000;
    p.room = (uint64_t)(p.bytes_per_day * (double)s->opt->days * PLAN_RESERVE);
    p.retention_bytes = p.room / p.partitions + 1;

    return p;
}

static void put_sizes(const char *name, const histogram *h, const char *unit,
                      double scale) {
    ctl_print("%-10s p50 %.6g, p90 %.6g, p99 %.6g, max %.6g, mean %.6g %s\n",
              name, (double)histogram_quantile(h, 0.5) / scale,
              (double)histogram_quantile(h, 0.9) / scale,
              (double)histogram_quantile(h, 0.99) / scale,
              (double)h->max / scale,
              h->count ? (double)h->sum / (double)h->count / scale : 0.0, unit);
}

static void put_tally(const char *title, tally *t, size_t n) {
    const tally_entry **top = ctl_alloc((n + 1) * sizeof(tally_entry *));

    n = tally_top(t, top, n);
    ctl_print("\n%10s  %s\n", "COUNT", title);

    for (size_t i = 0; i < n; i++) {
        ctl_print("%10" PRIu64 "  ", top[i]->count);
        text_put_escaped(top[i]->key, top[i]->key_len);

        if (top[i]->error > 0) {
            ctl_print("  (at most %" PRIu64 " too high)", top[i]->error);
        }

        ctl_print("\n");
    }

    free(top);
}

static void put_plan(const stats *s) {
    plan p = make_plan(s);

    ctl_print("\nA topic for this, with 20%% in reserve:\n"
              "  %.3g GB a day, %.3g MB/s in the busiest minute, "
              "uncompressed, times the replicas\n"
              "  partitions       %" PRIu64 "  (%d MiB/s each)\n"
              "  retention.ms     %" PRIu64 "  (%" PRId64 " days)\n"
              "  retention.bytes  %" PRIu64 "  (a partition; %.3g GB in all)\n",
              p.bytes_per_day / 1e9, p.peak_per_second / 1e6, p.partitions,
              PARTITION_BYTES / 1024 / 1024, p.retention_ms, s->opt->days,
              p.retention_bytes, (double)p.room / 1e9);
}

static void put_text(stats *s) {
    char from[TEXT_TIME_SIZE], to[TEXT_TIME_SIZE];
    double time = seconds(s);

    if (s->records > 0) {
        ctl_print("from %s to %s\n", text_time(s->first_ns, from),
                  text_time(s->last_ns, to));
    }

    ctl_print("%-10s %" PRIu64 ", %.6g/s, %" PRIu64 " bytes, %.6g bytes/s\n"
              "%-10s %" PRIu64 ", %.6g/s, %" PRIu64 " without a response\n",
              "records", s->records, (double)s->records / time, s->value_bytes,
              (double)s->value_bytes / time, "exchanges", s->exchanges,
              (double)s->exchanges / time, s->no_response);
    put_sizes("requests", &s->requests, "bytes", 1);
    put_sizes("responses", &s->responses, "bytes", 1);
    put_sizes("latency", &s->latency_us, "ms", 1000);
    put_tally("METHOD", s->methods, TABLE_SIZE);
    put_tally("STATUS", s->statuses, TABLE_SIZE);
    put_tally("PATH", s->paths, (size_t)s->opt->top);

    if (s->opt->plan) {
        put_plan(s);
    }
}

static void add_sizes(cJSON *object, const char *name, const histogram *h,
                      double scale) {
    cJSON *sizes = cJSON_AddObjectToObject(object, name);

    cJSON_AddNumberToObject(sizes, "p50",
                            (double)histogram_quantile(h, 0.5) / scale);
    cJSON_AddNumberToObject(sizes, "p90",
                            (double)histogram_quantile(h, 0.9) / scale);
    cJSON_AddNumberToObject(sizes, "p99",
                            (double)histogram_quantile(h, 0.99) / scale);
    cJSON_AddNumberToObject(sizes, "max", (double)h->max / scale);
    cJSON_AddNumberToObject(sizes, "sum", (double)h->sum / scale);
    text_add_int(sizes, "count", (int64_t)h->count);
}

static void add_tally(cJSON *object, const char *name, tally *t, size_t n) {
    const tally_entry **top = ctl_alloc((n + 1) * sizeof(tally_entry *));
    cJSON *list = cJSON_AddArrayToObject(object, name);

    n = tally_top(t, top, n);

    for (size_t i = 0; i < n; i++) {
        cJSON *entry = cJSON_CreateObject();

        if (text_is_printable(top[i]->key, top[i]->key_len)) {
            text_add_string(entry, "key", top[i]->key, top[i]->key_len);
        } else {
            text_add_bytes(entry, top[i]->key, top[i]->key_len);
        }

        text_add_int(entry, "count", (int64_t)top[i]->count);
        text_add_int(entry, "error", (int64_t)top[i]->error);
        cJSON_AddItemToArray(list, entry);
    }

    free(top);
}

static void add_plan(cJSON *object, const stats *s) {
    plan p = make_plan(s);
    cJSON *o = cJSON_AddObjectToObject(object, "plan");

    cJSON_AddNumberToObject(o, "bytesPerDay", p.bytes_per_day);
    cJSON_AddNumberToObject(o, "peakBytesPerSecond", p.peak_per_second);
    text_add_int(o, "days", s->opt->days);
    text_add_int(o, "partitions", (int64_t)p.partitions);
    text_add_int(o, "retention.ms", (int64_t)p.retention_ms);
    text_add_int(o, "retention.bytes", (int64_t)p.retention_bytes);
}

static void put_json(stats *s) {
    char time[TEXT_TIME_SIZE];
    cJSON *object = cJSON_CreateObject();

    if (s->records > 0) {
        cJSON_AddStringToObject(object, "first", text_time(s->first_ns, time));
        cJSON_AddStringToObject(object, "last", text_time(s->last_ns, time));
    }

    cJSON_AddNumberToObject(object, "seconds", seconds(s));
    text_add_int(object, "records", (int64_t)s->records);
    text_add_int(object, "recordBytes", (int64_t)s->value_bytes);
    text_add_int(object, "exchanges", (int64_t)s->exchanges);
    text_add_int(object, "noResponse", (int64_t)s->no_response);
    add_sizes(object, "requestBytes", &s->requests, 1);
    add_sizes(object, "responseBytes", &s->responses, 1);
    add_sizes(object, "latencyMs", &s->latency_us, 1000);
    add_tally(object, "methods", s->methods, TABLE_SIZE);
    add_tally(object, "statuses", s->statuses, TABLE_SIZE);
    add_tally(object, "paths", s->paths, (size_t)s->opt->top);

    if (s->opt->plan) {
        add_plan(object, s);
    }

    text_put_json(object);
}

void ctl_stats(const ctl_options *opt) {
    stats *s = ctl_alloc(sizeof(stats));
    accumulate_calls calls = {on_exchange, on_remark, on_error, s};

    *s = (stats){.opt = opt,
                 .first_ns = INT64_MAX,
                 .last_ns = INT64_MIN,
                 .filter = filter_new(opt),
                 .methods = tally_new(100),
                 .statuses = tally_new(1000),
                 .paths = tally_new(TABLE_SIZE)};
    s->accumulator = accumulate_new(&calls, opt->packet_timeout,
                                    opt->body ? SIZE_MAX : EXCHANGE_HEAD_KEPT);
    ctl_read_records(opt, on_record, s);
    accumulate_end(s->accumulator);
    (opt->json ? put_json : put_text)(s);

    filter_free(s->filter);
    tally_free(s->methods);
    tally_free(s->statuses);
    tally_free(s->paths);
    free(s);
}
