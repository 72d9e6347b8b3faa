/*
 * capturectl check: whether a snapshot may be taken now.
 *
 * It looks at every node, sends canaries, looks again, and tells the time of
 * the second look's end: from then on whatever changes the source is captured,
 * and nothing that is not is on its way. A worker's row in capture_status can
 * be a quarter of a second old, so the two looks are further apart than that.
 */

#define _GNU_SOURCE 1 /* memmem */

#include "tools/capturectl_fetch.h"
#include "tools/capturectl_kafka.h"
#include "tools/capturectl_text.h"

#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <time.h>

#define NS_PER_MS INT64_C(1000000)
#define NS_PER_SECOND INT64_C(1000000000)
#define BETWEEN_LOOKS (500 * NS_PER_MS)
#define PAUSE_MS 100

#define HEADER "X-Capture-Canary: "

typedef struct {
    char *address, *reason;
} complaint;

typedef struct {
    char token[64];
    char *url;
    bool found;
} canary;

typedef struct {
    const ctl_options *opt;
    fetcher *fetcher;
    complaint *complaints;
    size_t complaints_count;
    canary *canaries;
    size_t canaries_count;
    double captured; /* by all nodes, at the last look */
    const char *how; /* the canaries were found */
    int64_t deadline;
} checker;

static void __attribute__((format(printf, 3, 4)))
complain(checker *c, const char *address, const char *fmt, ...) {
    va_list args;
    char reason[512];
    size_t n = c->complaints_count++;

    va_start(args, fmt);
    vsnprintf(reason, sizeof(reason), fmt, args);
    va_end(args);

    c->complaints =
        ctl_realloc(c->complaints, c->complaints_count * sizeof(complaint));
    c->complaints[n] = (complaint){ctl_strdup(address), ctl_strdup(reason)};
}

static void forget_complaints(checker *c) {
    for (size_t i = 0; i < c->complaints_count; i++) {
        free(c->complaints[i].address);
        free(c->complaints[i].reason);
    }

    c->complaints_count = 0;
}

static void pause_ms(int64_t ms) {
    struct timespec time = {ms / 1000, ms % 1000 * NS_PER_MS};

    nanosleep(&time, NULL);
}

/* a look at a node */

static double number_of(const cJSON *object, const char *name) {
    const cJSON *item = cJSON_GetObjectItemCaseSensitive(object, name);

    return cJSON_IsNumber(item) ? item->valuedouble : 0;
}

static void judge_worker(checker *c, const char *address, const cJSON *row,
                         double newest) {
    double pid = number_of(row, "pid");

    if (!cJSON_IsTrue(cJSON_GetObjectItemCaseSensitive(row, "linked"))) {
        complain(c, address, "worker %.0f is not linked to its sidecar", pid);
    }

    if (number_of(row, "uncaptured") > 0) {
        complain(c, address,
                 "worker %.0f has %.0f requests in flight that may change the "
                 "source and are not captured",
                 pid, number_of(row, "uncaptured"));
    }

    if (number_of(row, "generation") < newest &&
        number_of(row, "excluded") > 0) {
        complain(c, address,
                 "worker %.0f, of an older configuration, has %.0f requests "
                 "in flight that it was told not to capture",
                 pid, number_of(row, "excluded"));
    }
}

static void judge_node(checker *c, const char *address, const cJSON *page) {
    const cJSON *row, *rows = cJSON_GetObjectItemCaseSensitive(page, "workers");
    double newest = 0, count = 0;

    cJSON_ArrayForEach(row, rows) {
        double generation = number_of(row, "generation");

        newest = generation > newest ? generation : newest;
    }

    cJSON_ArrayForEach(row, rows) {
        count += number_of(row, "generation") == newest;
        judge_worker(c, address, row, newest);
    }

    if (count != number_of(page, "worker_processes")) {
        complain(c, address, "%.0f of %.0f workers capture", count,
                 number_of(page, "worker_processes"));
    }

    cJSON_ArrayForEach(row,
                       cJSON_GetObjectItemCaseSensitive(page, "strangers")) {
        complain(c, address,
                 "worker %.0f is of before a reload and captures nothing: it "
                 "still serves connections",
                 row->valuedouble);
    }

    if (number_of(page, "old_master") > 0) {
        complain(c, address,
                 "an older NGINX, master %.0f, still runs beside it: its "
                 "workers are not known here",
                 number_of(page, "old_master"));
    }

    c->captured +=
        number_of(cJSON_GetObjectItemCaseSensitive(page, "total"), "captured");
}

static void look_at(checker *c, const char *address) {
    document d;
    char *url = fetch_url(address, "/capture_status");
    cJSON *page = NULL;

    if (!fetch_get(c->fetcher, url, &d)) {
        complain(c, address, "%s: %s", url, d.why);

    } else {
        page = cJSON_Parse(d.text);

        if (!cJSON_IsObject(page) || !cJSON_HasObjectItem(page, "strangers")) {
            complain(c, address, "%s: not the capture_status of this version",
                     url);
        } else {
            judge_node(c, address, page);
        }
    }

    cJSON_Delete(page);
    free(d.text);
    free(url);
}

static bool look(checker *c) {
    forget_complaints(c);
    c->captured = 0;

    for (int i = 0; i < c->opt->files_count; i++) {
        look_at(c, c->opt->files[i]);
    }

    return c->complaints_count == 0;
}

/* canaries */

/* What goes before the path. */
static char *root_of(const char *address) {
    char *url = fetch_url(address, "/");
    char *path = strchr(strstr(url, "://") + 3, '/');

    *path = '\0';

    return url;
}

static void add_canary(checker *c, const char *address, uint64_t mark) {
    size_t n = c->canaries_count++;
    char *root = root_of(address);
    size_t size = strlen(root) + strlen(c->opt->canary_path) + 2;
    canary *k;

    c->canaries = ctl_realloc(c->canaries, c->canaries_count * sizeof(canary));
    k = &c->canaries[n];
    *k = (canary){.url = ctl_alloc(size)};
    snprintf(k->url, size, "%s%s%s", root,
             c->opt->canary_path[0] == '/' ? "" : "/", c->opt->canary_path);
    snprintf(k->token, sizeof(k->token), "capturectl-%016" PRIx64 "-%zu", mark,
             n);
    free(root);
}

static void add_canaries(checker *c) {
    uint64_t mark = (uint64_t)ctl_now_ns();
    const char *list = c->opt->through;

    if (getrandom(&mark, sizeof(mark), 0) < 0) {
        ctl_remark("no random bytes: the canaries' mark is the time");
    }

    for (int i = 0; list == NULL && i < c->opt->files_count; i++) {
        add_canary(c, c->opt->files[i], mark);
    }

    while (list != NULL && *list) {
        size_t n = strcspn(list, ",");
        char *address = strndup(list, n);

        if (n > 0 && address != NULL) {
            add_canary(c, address, mark);
        }

        free(address);
        list += n + (list[n] == ',');
    }
}

static void free_canaries(checker *c) {
    for (size_t i = 0; i < c->canaries_count; i++) {
        free(c->canaries[i].url);
    }

    free(c->canaries);
    c->canaries = NULL;
    c->canaries_count = 0;
}

static void send_canaries(checker *c) {
    for (size_t i = 0; i < c->canaries_count; i++) {
        document d;
        canary *k = &c->canaries[i];
        char header[128];

        snprintf(header, sizeof(header), HEADER "%s", k->token);

        if (!fetch_nothing(c->fetcher, k->url, header, &d)) {
            complain(c, k->url, "the canary could not be sent: %s", d.why);
            k->found = true; /* that has been said */
        }
    }

    c->deadline = ctl_now_ns() + c->opt->timeout * NS_PER_SECOND;
}

static bool waiting(void *ctx) {
    checker *c = ctx;

    for (size_t i = 0; i < c->canaries_count; i++) {
        if (!c->canaries[i].found) {
            return ctl_now_ns() < c->deadline;
        }
    }

    return false;
}

static bool find_canaries(void *ctx, const ctl_value *v) {
    checker *c = ctx;

    for (size_t i = 0; i < c->canaries_count; i++) {
        canary *k = &c->canaries[i];

        if (v->value != NULL &&
            memmem(v->value, v->value_len, k->token, strlen(k->token))) {
            k->found = true;
        }
    }

    return waiting(c);
}

static int64_t records_since(kafka_client *k) {
    int64_t low, high, sum = 0;

    for (size_t i = 0; i < k->count; i++) {
        kafka_partition *p = &k->partitions[i];

        if (rd_kafka_query_watermark_offsets(k->rk, k->opt->topic, p->number,
                                             &low, &high,
                                             kafka_timeout(k->opt)) == 0) {
            sum += high - p->end;
        }
    }

    return sum;
}

/* Each canary is a connection of its own, and a record at least. */
static void compare_offsets(checker *c, kafka_client *k) {
    c->how = "the topic must not be read: its end offsets have grown";

    while (ctl_now_ns() < c->deadline && !ctl_interrupted()) {
        if (records_since(k) >= (int64_t)c->canaries_count) {
            for (size_t i = 0; i < c->canaries_count; i++) {
                c->canaries[i].found = true;
            }
            return;
        }

        pause_ms(PAUSE_MS);
    }
}

/* False after an error, which is reported. */
static bool try_topic(checker *c) {
    kafka_client k;
    rd_kafka_resp_err_t err;

    if (!kafka_connect(&k, c->opt, RD_KAFKA_CONSUMER)) {
        return false;
    }

    for (size_t i = 0; i < k.count; i++) {
        k.partitions[i].next = k.partitions[i].end;
    }

    send_canaries(c);
    c->how = "read back from the topic";
    err = waiting(c) ? kafka_follow(&k, find_canaries, waiting, c)
                     : RD_KAFKA_RESP_ERR_NO_ERROR;

    if (err == RD_KAFKA_RESP_ERR_TOPIC_AUTHORIZATION_FAILED) {
        compare_offsets(c, &k);
    } else if (err) {
        ctl_error("topic %s: %s", c->opt->topic, rd_kafka_err2str(err));
    }

    kafka_disconnect(&k);

    return !ctl_had_errors();
}

/* Without a topic: what Kafka has acknowledged, by the nodes' own counts. */
static void try_counts(checker *c) {
    double before = c->captured;

    c->how = "counted as captured by the nodes; no topic was given";
    send_canaries(c);

    while (c->complaints_count == 0 && waiting(c) && !ctl_interrupted()) {
        bool enough;

        look(c);
        enough = c->captured >= before + (double)c->canaries_count;

        for (size_t i = 0; i < c->canaries_count; i++) {
            c->canaries[i].found = enough;
        }

        pause_ms(PAUSE_MS);
    }
}

static bool try_canaries(checker *c) {
    bool ok = true;

    if (c->opt->no_canary) {
        c->how = "no canary was sent";
        return true;
    }

    add_canaries(c);

    if (c->opt->brokers != NULL) {
        ok = try_topic(c);
    } else {
        try_counts(c);
    }

    for (size_t i = 0; ok && i < c->canaries_count; i++) {
        if (!c->canaries[i].found) {
            complain(c, c->canaries[i].url,
                     "the canary was not captured within %" PRId64 " s",
                     c->opt->timeout);
        }
    }

    free_canaries(c);

    return ok;
}

/* One attempt. */
static bool is_safe(checker *c) {
    int64_t rest, begun;

    if (!look(c)) {
        return false;
    }

    begun = ctl_now_ns(); /* the first look is over */

    if (!try_canaries(c) || c->complaints_count > 0) {
        return false;
    }

    rest = begun + BETWEEN_LOOKS - ctl_now_ns();
    pause_ms(rest > 0 ? rest / NS_PER_MS + 1 : 0);

    return look(c);
}

/* the answer */

static void put_json(const checker *c, bool safe, const char *after) {
    cJSON *object = cJSON_CreateObject();
    cJSON *list;

    cJSON_AddBoolToObject(object, "safe", safe);

    if (safe) {
        cJSON_AddStringToObject(object, "after", after);
        cJSON_AddStringToObject(object, "canaries", c->how);
    }

    list = cJSON_AddArrayToObject(object, "reasons");

    for (size_t i = 0; i < c->complaints_count; i++) {
        cJSON *reason = cJSON_CreateObject();

        cJSON_AddStringToObject(reason, "address", c->complaints[i].address);
        cJSON_AddStringToObject(reason, "reason", c->complaints[i].reason);
        cJSON_AddItemToArray(list, reason);
    }

    text_put_json(object);
}

static void put_text(const checker *c, bool safe, const char *after) {
    for (size_t i = 0; i < c->complaints_count; i++) {
        ctl_print("%s: %s\n", c->complaints[i].address,
                  c->complaints[i].reason);
    }

    if (safe) {
        ctl_print("canaries: %s\nsafe: a snapshot may begin after %s\n", c->how,
                  after);
    } else {
        ctl_print("not safe\n");
    }
}

void ctl_check(const ctl_options *opt) {
    bool safe;
    char after[TEXT_TIME_SIZE];
    int64_t until = ctl_now_ns() + opt->wait * NS_PER_SECOND;
    checker c = {.opt = opt, .fetcher = fetcher_new(opt->timeout)};

    ctl_catch_signals();
    safe = is_safe(&c);

    while (!safe && !ctl_had_errors() && !ctl_interrupted() &&
           ctl_now_ns() < until) {
        ctl_progress_line("%" PRId64 " s left: %s: %s",
                          (until - ctl_now_ns()) / NS_PER_SECOND,
                          c.complaints[0].address, c.complaints[0].reason);
        pause_ms(PAUSE_MS);
        safe = is_safe(&c);
    }

    text_time(ctl_now_ns(), after);

    if (!ctl_had_errors()) {
        (opt->json ? put_json : put_text)(&c, safe, after);
    }

    if (!safe) {
        ctl_found();
    }

    forget_complaints(&c);
    free(c.complaints);
    fetcher_free(c.fetcher);
}
