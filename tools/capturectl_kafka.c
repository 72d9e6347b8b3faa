/*
 * Values and end offsets out of a topic.
 *
 * Reading takes no consumer group and commits nothing. It goes from each
 * partition's begin to what was its end when the program started, and merges
 * the partitions by the records' timestamps (by the partition's number where
 * these are equal), so that the output is the same every time and the
 * Replayer's clock, which runs on the records' times, sees them in about their
 * order.
 */

#include "tools/capturectl.h"

#include <errno.h>
#include <inttypes.h>
#include <librdkafka/rdkafka.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define PLACE_SIZE 512

typedef struct {
    int32_t number;
    int64_t next, end;        /* offsets */
    rd_kafka_message_t *head; /* read and not yet handed out */
    bool started;
} partition;

typedef struct {
    const ctl_options *opt;
    rd_kafka_t *rk;
    rd_kafka_topic_t *topic;
    partition *partitions;
    size_t count;
    bool failed; /* an answer is overdue: give up */
} consumer;

static void on_log(const rd_kafka_t *rk, int level, const char *facility,
                   const char *text) {
    (void)rk;
    (void)level;

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

/* What the reading relies on comes last, so that it wins. */
static rd_kafka_conf_t *configuration(const ctl_options *opt) {
    bool ok = true;
    rd_kafka_conf_t *conf = rd_kafka_conf_new();

    rd_kafka_conf_set_log_cb(conf, on_log);
    rd_kafka_conf_set_error_cb(conf, on_error);

    for (size_t i = 0; i < opt->properties_count; i++) {
        ok = set(conf, opt->properties[i].name, opt->properties[i].value) && ok;
    }

    ok = ok && set(conf, "bootstrap.servers", opt->brokers) &&
         set(conf, "isolation.level", "read_uncommitted") &&
         set(conf, "auto.offset.reset", "error") &&
         set(conf, "enable.partition.eof", "true") &&
         set(conf, "allow.auto.create.topics", "false") &&
         set(conf, "enable.auto.commit", "false");

    if (!ok) {
        rd_kafka_conf_destroy(conf);
        return NULL;
    }

    return conf;
}

static bool ask_offsets(consumer *c, partition *p) {
    int64_t low;
    rd_kafka_resp_err_t err;

    err = rd_kafka_query_watermark_offsets(c->rk, c->opt->topic, p->number,
                                           &p->next, &p->end,
                                           c->opt->timeout * 1000);

    if (err) {
        ctl_error("%s [%" PRId32 "]: its offsets: %s", c->opt->topic, p->number,
                  rd_kafka_err2str(err));
        p->next = p->end = 0;
        return false;
    }

    low = p->next;

    if (c->opt->has_offset) {
        p->next = c->opt->offset < 0 ? p->end + c->opt->offset : c->opt->offset;

        if (p->next < low) {
            p->next = low;
        }
    }

    return true;
}

static int by_number(const void *a, const void *b) {
    int32_t x = ((const partition *)a)->number,
            y = ((const partition *)b)->number;

    return (x > y) - (x < y);
}

/* The partitions that are wanted, with their offsets. */
static bool list_partitions(consumer *c,
                            const rd_kafka_metadata_topic_t *topic) {
    c->partitions = ctl_alloc(sizeof(partition) * (size_t)topic->partition_cnt);

    for (int i = 0; i < topic->partition_cnt; i++) {
        if (c->opt->partition < 0 ||
            c->opt->partition == topic->partitions[i].id) {
            c->partitions[c->count++] =
                (partition){.number = topic->partitions[i].id};
        }
    }

    if (c->count == 0) {
        ctl_error("%s: it has no partition %" PRId32, c->opt->topic,
                  c->opt->partition);
        return false;
    }

    qsort(c->partitions, c->count, sizeof(partition), by_number);

    for (size_t i = 0; i < c->count; i++) {
        if (!ask_offsets(c, &c->partitions[i])) {
            return false;
        }
    }

    return true;
}

static bool ask_metadata(consumer *c) {
    bool ok;
    rd_kafka_resp_err_t err;
    const rd_kafka_metadata_t *metadata;

    err = rd_kafka_metadata(c->rk, 0, c->topic, &metadata,
                            c->opt->timeout * 1000);

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

static void disconnect(consumer *c) {
    for (size_t i = 0; i < c->count; i++) {
        partition *p = &c->partitions[i];

        if (p->head != NULL) {
            rd_kafka_message_destroy(p->head);
        }

        if (p->started) {
            rd_kafka_consume_stop(c->topic, p->number);
        }
    }

    if (c->topic != NULL) {
        rd_kafka_topic_destroy(c->topic);
    }

    if (c->rk != NULL) {
        rd_kafka_destroy(c->rk);
    }

    free(c->partitions);
}

/* On failure everything is reported and taken down again. */
static bool connect_to(consumer *c, const ctl_options *opt) {
    char why[512];
    rd_kafka_conf_t *conf = configuration(opt);

    *c = (consumer){.opt = opt};

    if (conf == NULL) {
        return false;
    }

    c->rk = rd_kafka_new(RD_KAFKA_CONSUMER, conf, why, sizeof(why));

    if (c->rk == NULL) {
        rd_kafka_conf_destroy(conf);
        ctl_error("%s", why);
        return false;
    }

    c->topic = rd_kafka_topic_new(c->rk, opt->topic, NULL);

    if (c->topic == NULL) {
        ctl_error("topic %s: %s", opt->topic,
                  rd_kafka_err2str(rd_kafka_last_error()));
    }

    if (c->topic == NULL || !ask_metadata(c)) {
        disconnect(c);
        return false;
    }

    return true;
}

/*
 * What librdkafka hands out instead of a record ends the partition: an error,
 * or its end, where the last offsets hold no records.
 */
static void end_partition(consumer *c, partition *p,
                          const rd_kafka_message_t *m) {
    if (m->err != RD_KAFKA_RESP_ERR__PARTITION_EOF) {
        ctl_error("%s [%" PRId32 "]: %s", c->opt->topic, p->number,
                  rd_kafka_message_errstr(m));
    }

    p->next = p->end;
}

/* Reads until the partition has a head or nothing more to give. */
static void advance(consumer *c, partition *p) {
    while (p->head == NULL && p->next < p->end && !c->failed) {
        rd_kafka_message_t *m =
            rd_kafka_consume(c->topic, p->number, c->opt->timeout * 1000);

        if (m == NULL) {
            ctl_error("%s [%" PRId32 "]: no record within %d s", c->opt->topic,
                      p->number, c->opt->timeout);
            c->failed = true;

        } else if (m->err) {
            end_partition(c, p, m);
            rd_kafka_message_destroy(m);

        } else if (m->offset >= p->end) {
            p->next = p->end;
            rd_kafka_message_destroy(m);

        } else {
            p->next = m->offset + 1;
            p->head = m;
        }

        rd_kafka_poll(c->rk, 0);
    }
}

static partition *earliest(consumer *c) {
    int64_t best_time = 0;
    partition *best = NULL;

    for (size_t i = 0; i < c->count; i++) {
        int64_t time;
        partition *p = &c->partitions[i];

        advance(c, p);

        if (p->head == NULL) {
            continue;
        }

        time = rd_kafka_message_timestamp(p->head, NULL);

        if (best == NULL || time < best_time) {
            best = p;
            best_time = time;
        }
    }

    return c->failed ? NULL : best;
}

static bool hand_out(consumer *c, partition *p, ctl_value_fn fn, void *ctx) {
    bool more;
    char place[PLACE_SIZE];
    rd_kafka_message_t *m = p->head;
    ctl_value v = {
        .place = place,
        .value = m->payload,
        .value_len = m->len,
        .key = m->key,
        .key_len = m->key_len,
        .partition = m->partition,
        .offset = m->offset,
    };

    snprintf(place, sizeof(place), "%s [%" PRId32 "] at offset %" PRId64,
             c->opt->topic, m->partition, m->offset);

    more = fn(ctx, &v);
    rd_kafka_message_destroy(m);
    p->head = NULL;

    return more;
}

static bool start_all(consumer *c) {
    for (size_t i = 0; i < c->count; i++) {
        partition *p = &c->partitions[i];

        if (p->next >= p->end) {
            continue;
        }

        if (rd_kafka_consume_start(c->topic, p->number, p->next) != 0) {
            ctl_error("%s [%" PRId32 "]: %s", c->opt->topic, p->number,
                      rd_kafka_err2str(rd_kafka_last_error()));
            return false;
        }

        p->started = true;
    }

    return true;
}

void ctl_read_topic(const ctl_options *opt, ctl_value_fn fn, void *ctx) {
    consumer c;
    partition *p;

    if (!connect_to(&c, opt)) {
        return;
    }

    if (start_all(&c)) {
        do {
            p = earliest(&c);
        } while (p != NULL && hand_out(&c, p, fn, ctx));
    }

    disconnect(&c);
}

void ctl_end_offsets(const ctl_options *opt, ctl_end_fn fn, void *ctx) {
    consumer c;

    if (!connect_to(&c, opt)) {
        return;
    }

    for (size_t i = 0; i < c.count; i++) {
        fn(ctx, c.partitions[i].number, c.partitions[i].end);
    }

    disconnect(&c);
}
