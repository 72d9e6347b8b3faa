/* A client of Kafka, and what a topic has: partitions and their offsets. */

#include "tools/capturectl_kafka.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define NS_PER_SECOND INT64_C(1000000000)
#define RETRY_NS 100000000

static void on_log(const rd_kafka_t *rk, int level, const char *facility,
                   const char *text) {
    (void)rk;
    (void)level;

    if (strstr(text, "enable.gapless.guarantee")) { /* "experimental" */
        return;
    }

    ctl_remark("kafka: %s: %s", facility, text);
}

/* Taken so that librdkafka does not log each error at every attempt. */
static void on_error(rd_kafka_t *rk, int err, const char *reason,
                     void *opaque) {
    (void)rk;
    (void)err;
    (void)reason;
    (void)opaque;
}

static bool set(rd_kafka_conf_t *conf, const char *name, const char *value) {
    char why[512];

    if (rd_kafka_conf_set(conf, name, value, why, sizeof(why)) !=
        RD_KAFKA_CONF_OK) {
        ctl_error("%s", why);
        return false;
    }

    return true;
}

typedef struct {
    const char *name, *value;
} property;

/*
 * Bounds of what librdkafka reads ahead, which are by partition: by default it
 * may hold 64 MiB of each.
 */
static const property reading_defaults[] = {
    {"queued.max.messages.kbytes", "2048"},
    {"fetch.message.max.bytes", "1048576"},
    {"fetch.max.bytes", "8388608"},
};

/* What reading and writing rely on comes last, so that it wins. */
static const property reading[] = {
    {"isolation.level", "read_uncommitted"},
    {"auto.offset.reset", "error"},
    {"enable.partition.eof", "true"},
    {"allow.auto.create.topics", "false"},
    {"enable.auto.commit", "false"},
};

static const property writing[] = {
    {"enable.idempotence", "true"},
    {"enable.gapless.guarantee", "true"},
    {"acks", "all"},
    {"allow.auto.create.topics", "false"},
};

#define COUNT(table) (sizeof(table) / sizeof(table[0]))

static bool set_all(rd_kafka_conf_t *conf, const property *table, size_t n) {
    for (size_t i = 0; i < n; i++) {
        if (!set(conf, table[i].name, table[i].value)) {
            return false;
        }
    }

    return true;
}

static rd_kafka_conf_t *configuration(const ctl_options *opt,
                                      rd_kafka_type_t type) {
    bool ok = true;
    bool reads = type == RD_KAFKA_CONSUMER;
    rd_kafka_conf_t *conf = rd_kafka_conf_new();

    rd_kafka_conf_set_log_cb(conf, on_log);
    rd_kafka_conf_set_error_cb(conf, on_error);

    if (reads) {
        ok = set_all(conf, reading_defaults, COUNT(reading_defaults));
    } else {
        rd_kafka_conf_set_dr_msg_cb(conf, kafka_report);
    }

    for (size_t i = 0; i < opt->properties_count; i++) {
        ok = set(conf, opt->properties[i].name, opt->properties[i].value) && ok;
    }

    ok = ok && set(conf, "bootstrap.servers", opt->brokers) &&
         (reads ? set_all(conf, reading, COUNT(reading))
                : set_all(conf, writing, COUNT(writing)));

    if (!ok) {
        rd_kafka_conf_destroy(conf);
        return NULL;
    }

    return conf;
}

int kafka_timeout(const ctl_options *opt) {
    return (int)opt->timeout * 1000;
}

static int64_t offset_of(int64_t wanted, int64_t end) {
    if (wanted == INT64_MAX) { /* none of what is there */
        return end;
    }

    return wanted < 0 ? end + wanted : wanted;
}

/* A partition's leader can be another one than a moment ago, or none yet. */
static rd_kafka_resp_err_t query_offsets(kafka_client *c, kafka_partition *p) {
    struct timespec pause = {.tv_nsec = RETRY_NS};
    int64_t deadline = ctl_now_ns() + c->opt->timeout * NS_PER_SECOND;

    for (;;) {
        rd_kafka_resp_err_t err = rd_kafka_query_watermark_offsets(
            c->rk, c->opt->topic, p->number, &p->next, &p->end,
            kafka_timeout(c->opt));

        if ((err != RD_KAFKA_RESP_ERR_NOT_LEADER_FOR_PARTITION &&
             err != RD_KAFKA_RESP_ERR_LEADER_NOT_AVAILABLE) ||
            ctl_now_ns() >= deadline) {
            return err;
        }

        nanosleep(&pause, NULL);
    }
}

static bool ask_offsets(kafka_client *c, kafka_partition *p) {
    int64_t low;
    rd_kafka_resp_err_t err;

    err = query_offsets(c, p);

    if (err) {
        ctl_error("%s [%" PRId32 "]: its offsets: %s", c->opt->topic, p->number,
                  rd_kafka_err2str(err));
        p->next = p->end = 0;
        return false;
    }

    low = p->low = p->next;

    if (c->opt->has_offset) {
        p->next = offset_of(c->opt->offset, p->end);

        if (p->next < low) {
            p->next = low;
        }
    }

    return true;
}

static int by_number(const void *a, const void *b) {
    int32_t x = ((const kafka_partition *)a)->number,
            y = ((const kafka_partition *)b)->number;

    return (x > y) - (x < y);
}

/* The partitions that are wanted, with their offsets. */
static bool list_partitions(kafka_client *c,
                            const rd_kafka_metadata_topic_t *topic) {
    c->partitions =
        ctl_alloc(sizeof(kafka_partition) * (size_t)topic->partition_cnt);

    for (int i = 0; i < topic->partition_cnt; i++) {
        if (c->opt->partition < 0 ||
            c->opt->partition == topic->partitions[i].id) {
            c->partitions[c->count++] =
                (kafka_partition){.number = topic->partitions[i].id};
        }
    }

    if (c->count == 0) {
        ctl_error("%s: it has no partition %" PRId64, c->opt->topic,
                  c->opt->partition);
        return false;
    }

    qsort(c->partitions, c->count, sizeof(kafka_partition), by_number);

    for (size_t i = 0; i < c->count; i++) {
        if (!ask_offsets(c, &c->partitions[i])) {
            return false;
        }
    }

    return true;
}

static bool ask_metadata(kafka_client *c) {
    bool ok;
    rd_kafka_resp_err_t err;
    const rd_kafka_metadata_t *metadata;

    err = rd_kafka_metadata(c->rk, 0, c->handle, &metadata,
                            kafka_timeout(c->opt));

    if (err) {
        ctl_error("no answer about topic %s: %s", c->opt->topic,
                  rd_kafka_err2str(err));
        return false;
    }

    err = metadata->topic_cnt == 1 ? metadata->topics[0].err
                                   : RD_KAFKA_RESP_ERR_UNKNOWN;

    if (err) {
        ctl_error("topic %s: %s", c->opt->topic, rd_kafka_err2str(err));
    }

    ok = !err && list_partitions(c, &metadata->topics[0]);
    rd_kafka_metadata_destroy(metadata);

    return ok;
}

void kafka_disconnect(kafka_client *c) {
    if (c->handle != NULL) {
        rd_kafka_topic_destroy(c->handle);
    }

    if (c->rk != NULL) {
        rd_kafka_destroy(c->rk);
    }

    free(c->partitions);
}

/* On failure everything is reported and taken down again. */
bool kafka_connect(kafka_client *c, const ctl_options *opt,
                   rd_kafka_type_t type) {
    char why[512];
    rd_kafka_conf_t *conf = configuration(opt, type);

    *c = (kafka_client){.opt = opt};

    if (conf == NULL) {
        return false;
    }

    c->rk = rd_kafka_new(type, conf, why, sizeof(why));

    if (c->rk == NULL) {
        rd_kafka_conf_destroy(conf);
        ctl_error("%s", why);
        return false;
    }

    c->handle = rd_kafka_topic_new(c->rk, opt->topic, NULL);

    if (c->handle == NULL) {
        ctl_error("topic %s: %s", opt->topic,
                  rd_kafka_err2str(rd_kafka_last_error()));
    }

    if (c->handle == NULL || !ask_metadata(c)) {
        kafka_disconnect(c);
        return false;
    }

    return true;
}

void ctl_end_offsets(const ctl_options *opt, ctl_end_fn fn, void *ctx) {
    kafka_client c;

    if (!kafka_connect(&c, opt, RD_KAFKA_CONSUMER)) {
        return;
    }

    for (size_t i = 0; i < c.count; i++) {
        fn(ctx, c.partitions[i].number, c.partitions[i].end);
    }

    kafka_disconnect(&c);
}
