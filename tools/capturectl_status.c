/*
 * capturectl status: a table of what capture_status locations and sidecars'
 * /metrics say, once or again and again.
 */

#include "tools/capturectl.h"
#include "tools/capturectl_fetch.h"
#include "tools/capturectl_text.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#define ROW "%-28.28s %-9s %-6s %10s %10s %10s %8s %8s %9s\n"

typedef struct {
    char *address;
    double seen; /* at the last look, for the rate */
    int64_t at;
} target;

typedef struct {
    const ctl_options *opt;
    fetcher *fetcher;
    target *targets;
} status_view;

/* One line of the table, of either side. */
typedef struct {
    const char *who, *linked;
    double seen, captured, filtered, lost, pending;
    double used, total; /* blocks; total 0: not known */
} line;

static double number_of(const cJSON *object, const char *name) {
    const cJSON *item = cJSON_GetObjectItemCaseSensitive(object, name);

    return cJSON_IsNumber(item) ? item->valuedouble : 0;
}

static double sum_of(const cJSON *object, const char *name) {
    double sum = 0;
    const cJSON *item;

    cJSON_ArrayForEach(item, cJSON_GetObjectItemCaseSensitive(object, name)) {
        sum += item->valuedouble;
    }

    return sum;
}

static const char *digits(double value, char out[24]) {
    snprintf(out, 24, "%.0f", value);

    return out;
}

static void put_line(const char *address, const line *l) {
    char seen[24], captured[24], filtered[24], lost[24], pending[24];
    char blocks[24] = "";

    if (l->total > 0) {
        snprintf(blocks, sizeof(blocks), "%.0f%%", 100 * l->used / l->total);
    }

    ctl_print(ROW, address, l->who, l->linked, digits(l->seen, seen),
              digits(l->captured, captured), digits(l->filtered, filtered),
              digits(l->lost, lost), digits(l->pending, pending), blocks);
}

static line line_of(const cJSON *row, const char *who) {
    return (line){
        .who = who,
        .linked = "",
        .seen = number_of(row, "seen"),
        .captured = number_of(row, "captured"),
        .filtered = sum_of(row, "filtered"),
        .lost = sum_of(row, "lost"),
        .pending = number_of(row, "pending"),
        .used = number_of(row, "blocks_used"),
        .total = number_of(row, "blocks"),
    };
}

/* "  lost: pool_full 3, unlinked 1", where there is any */
static void put_reasons(const cJSON *row) {
    bool first = true;
    const cJSON *item;

    cJSON_ArrayForEach(item, cJSON_GetObjectItemCaseSensitive(row, "lost")) {
        if (item->valuedouble > 0) {
            ctl_print("%s%s %.0f", first ? "  lost: " : ", ", item->string,
                      item->valuedouble);
            first = false;
        }
    }

    ctl_print(first ? "" : "\n");
}

static void put_rate(target *t, double seen, int64_t now) {
    if (t->at != 0 && now > t->at && seen >= t->seen) {
        ctl_print("  %.1f exchanges/s\n",
                  (seen - t->seen) * 1e9 / (double)(now - t->at));
    }

    t->seen = seen;
    t->at = now;
}

static void put_nginx(target *t, const cJSON *page) {
    line l;
    char who[24];
    const cJSON *row;
    const char *address = t->address;
    const cJSON *total = cJSON_GetObjectItemCaseSensitive(page, "total");

    cJSON_ArrayForEach(row, cJSON_GetObjectItemCaseSensitive(page, "workers")) {
        snprintf(who, sizeof(who), "%.0f", number_of(row, "pid"));
        l = line_of(row, who);
        l.linked = cJSON_IsTrue(cJSON_GetObjectItemCaseSensitive(row, "linked"))
                       ? "yes"
                       : "NO";
        put_line(address, &l);
        address = "";
    }

    l = line_of(total, "total");
    put_line(address, &l);
    put_reasons(total);
    put_rate(t, l.seen, ctl_now_ns());
}

/* the sidecar's metrics, which become the same kind of object */

/* Name, an optional {reason="..."}, value; false for comments and others'. */
static bool parse_metric(const char *text, size_t len, char name[80],
                         char reason[40], double *value) {
    char buf[256];

    if (len >= sizeof(buf)) {
        return false;
    }

    memcpy(buf, text, len);
    buf[len] = '\0';
    reason[0] = '\0';

    return sscanf(buf, "capture_%79[a-z0-9_]{reason=\"%39[^\"]\"} %lf", name,
                  reason, value) == 3 ||
           sscanf(buf, "capture_%79[a-z0-9_] %lf", name, value) == 2;
}

static void cut_suffix(char *name, const char *suffix) {
    size_t n = strlen(name), m = strlen(suffix);

    if (n > m && strcmp(name + n - m, suffix) == 0) {
        name[n - m] = '\0';
    }
}

static cJSON *parse_metrics(const char *text) {
    bool any = false;
    cJSON *page = cJSON_CreateObject();

    while (*text) {
        size_t n = strcspn(text, "\n");
        char name[80], reason[40];
        double value;

        if (parse_metric(text, n, name, reason, &value)) {
            const char *key = name;
            cJSON *to = page;

            any = true;
            cut_suffix(name, "_total");
            key += strncmp(name, "exchanges_", 10) == 0 ? 10 : 0;

            if (*reason) {
                to = cJSON_GetObjectItemCaseSensitive(page, key);
                to = to ? to : cJSON_AddObjectToObject(page, key);
                key = reason;
            }

            cJSON_DeleteItemFromObjectCaseSensitive(to, key);
            cJSON_AddNumberToObject(to, key, value);
        }

        text += n + (text[n] == '\n');
    }

    if (!any) {
        cJSON_Delete(page);
        return NULL;
    }

    return page;
}

static void put_sidecar(target *t, const cJSON *page) {
    line l = line_of(page, "sidecar");
    char linked[24];

    l.linked = digits(number_of(page, "links"), linked);
    put_line(t->address, &l);
    put_reasons(page);

    if (number_of(page, "kafka_ready") == 0) {
        ctl_print("  the topic cannot be written to\n");
    }

    put_rate(t, l.seen, ctl_now_ns());
}

static void put_json(const char *address, const char *kind, cJSON *page) {
    char time[TEXT_TIME_SIZE];
    cJSON *object = cJSON_CreateObject();

    cJSON_AddStringToObject(object, "address", address);
    cJSON_AddStringToObject(object, "time", text_time(ctl_now_ns(), time));
    cJSON_AddItemToObject(object, kind, page);
    text_put_json(object);
}

static void show(status_view *v, target *t, const char *text) {
    cJSON *page = cJSON_Parse(text);
    bool nginx = cJSON_IsObject(page) && cJSON_HasObjectItem(page, "workers");

    if (!nginx) {
        cJSON_Delete(page);
        page = parse_metrics(text);
    }

    if (page == NULL) {
        ctl_error("%s: neither capture_status nor a sidecar's metrics",
                  t->address);
        return;
    }

    if (v->opt->json) {
        put_json(t->address, nginx ? "nginx" : "sidecar", page);
        return;
    }

    (nginx ? put_nginx : put_sidecar)(t, page);
    cJSON_Delete(page);
}

static void look_at(status_view *v, target *t) {
    document d;
    char *url = fetch_url(t->address, "/capture_status");
    bool ok = fetch_get(v->fetcher, url, &d);

    if (!ok && d.status == 404 && !fetch_has_path(t->address)) {
        free(url);
        free(d.text);
        url = fetch_url(t->address, "/metrics");
        ok = fetch_get(v->fetcher, url, &d);
    }

    if (ok) {
        show(v, t, d.text);
    } else {
        ctl_error("%s: %s", url, d.why);
    }

    free(d.text);
    free(url);
}

static void look(status_view *v) {
    if (!v->opt->json) {
        if (v->opt->watch && isatty(STDOUT_FILENO)) {
            ctl_print("\033[H\033[2J");
        }

        ctl_print(ROW, "ADDRESS", "WORKER", "LINKED", "SEEN", "CAPTURED",
                  "FILTERED", "LOST", "PENDING", "POOL USED");
    }

    for (int i = 0; i < v->opt->files_count; i++) {
        look_at(v, &v->targets[i]);
    }

    ctl_flush();
}

void ctl_status(const ctl_options *opt) {
    size_t n = (size_t)opt->files_count;
    status_view v = {.opt = opt,
                     .fetcher = fetcher_new(opt->timeout),
                     .targets = ctl_alloc(n * sizeof(target))};

    for (size_t i = 0; i < n; i++) {
        v.targets[i] = (target){.address = opt->files[i]};
    }

    if (opt->watch) {
        ctl_catch_signals();
    }

    look(&v);

    while (opt->watch && !ctl_interrupted() && !ctl_output_lost()) {
        struct timespec pause = {.tv_sec = opt->interval};

        if (nanosleep(&pause, NULL) == 0) {
            look(&v);
        }
    }

    free(v.targets);
    fetcher_free(v.fetcher);
}
