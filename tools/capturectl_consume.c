/*
 * Records out of a topic.
 *
 * Reading takes no consumer group and commits nothing. It goes from each
 * partition's begin to what was its end when the program started, and merges
 * the partitions by the records' timestamps (by the partition's number where
 * these are equal), so that the output is the same every time and the
 * Replayer's clock, which runs on the records' times, sees them in about their
 * order. With --follow it goes on, in the order in which records come.
 */

#include "tools/capturectl_kafka.h"
#include "tools/capturectl_text.h"

#include <inttypes.h>
#include <stdio.h>

#define PLACE_SIZE 512
#define FOLLOW_MS 200
#define SINCE_MARGIN 60000 /* ms */
#define NS_PER_MS 1000000

/*
 * What librdkafka hands out instead of a record ends the partition: an error,
 * or its end, where the last offsets hold no records.
 */
static void end_partition(kafka_client *c, kafka_partition *p,
                          const rd_kafka_message_t *m) {
    if (m->err != RD_KAFKA_RESP_ERR__PARTITION_EOF) {
        ctl_error("%s [%" PRId32 "]: %s", c->opt->topic, p->number,
                  rd_kafka_message_errstr(m));
    }

    p->next = p->end;
}

/* Reads until the partition has a head or nothing more to give. */
static void advance(kafka_client *c, kafka_partition *p) {
    while (p->head == NULL && p->next < p->end && !c->failed) {
        rd_kafka_message_t *m =
            rd_kafka_consume(c->handle, p->number, kafka_timeout(c->opt));

        if (m == NULL) {
            ctl_error("%s [%" PRId32 "]: no record within %" PRId64 " s",
                      c->opt->topic, p->number, c->opt->timeout);
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

static kafka_partition *earliest(kafka_client *c) {
    int64_t best_time = 0;
    kafka_partition *best = NULL;

    for (size_t i = 0; i < c->count; i++) {
        int64_t time;
        kafka_partition *p = &c->partitions[i];

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

/* The message is used up; false to end the reading. */
static bool hand_out(kafka_client *c, kafka_partition *p, rd_kafka_message_t *m,
                     ctl_value_fn fn, void *ctx) {
    bool more;
    char place[PLACE_SIZE];
    ctl_value v = {
        .place = place,
        .value = m->payload,
        .value_len = m->len,
        .key = m->key,
        .key_len = m->key_len,
        .partition = m->partition,
        .offset = m->offset,
        .cut = p->cut,
    };

    snprintf(place, sizeof(place), "%s [%" PRId32 "] at offset %" PRId64,
             c->opt->topic, m->partition, m->offset);

    more = fn(ctx, &v);
    rd_kafka_message_destroy(m);

    return more;
}

/* Begins a minute earlier than --since: clocks of machines differ. */
static bool move_to_since(kafka_client *c) {
    bool ok;
    rd_kafka_resp_err_t err;
    rd_kafka_topic_partition_list_t *list;
    int64_t since = ctl_time_option(c->opt->since) / NS_PER_MS - SINCE_MARGIN;

    list = rd_kafka_topic_partition_list_new((int)c->count);

    for (size_t i = 0; i < c->count; i++) {
        rd_kafka_topic_partition_list_add(list, c->opt->topic,
                                          c->partitions[i].number)
            ->offset = since > 0 ? since : 0;
    }

    err = rd_kafka_offsets_for_times(c->rk, list, kafka_timeout(c->opt));
    ok = !err;

    for (size_t i = 0; ok && i < c->count; i++) {
        kafka_partition *p = &c->partitions[i];
        int64_t offset = list->elems[i].offset;

        err = list->elems[i].err;
        ok = !err;
        offset = offset < 0 ? p->end : offset; /* none is so late */
        p->next = offset > p->next ? offset : p->next;
    }

    rd_kafka_topic_partition_list_destroy(list);

    if (!ok) {
        ctl_error("%s: offsets of a time: %s", c->opt->topic,
                  rd_kafka_err2str(err));
    }

    return ok;
}

static bool start_all(kafka_client *c) {
    for (size_t i = 0; i < c->count; i++) {
        kafka_partition *p = &c->partitions[i];

        p->cut = p->next > 0;

        if (p->next >= p->end) {
            continue;
        }

        if (rd_kafka_consume_start(c->handle, p->number, p->next) != 0) {
            ctl_error("%s [%" PRId32 "]: %s", c->opt->topic, p->number,
                      rd_kafka_err2str(rd_kafka_last_error()));
            return false;
        }

        p->started = true;
    }

    return true;
}

static void stop_all(kafka_client *c) {
    for (size_t i = 0; i < c->count; i++) {
        kafka_partition *p = &c->partitions[i];

        if (p->head != NULL) {
            rd_kafka_message_destroy(p->head);
            p->head = NULL;
        }

        if (p->started) {
            rd_kafka_consume_stop(c->handle, p->number);
            p->started = false;
        }
    }
}

/* What was there when the program started, by the records' times. */
static bool read_what_is_there(kafka_client *c, ctl_value_fn fn, void *ctx) {
    uint64_t done = 0, total = 0;
    kafka_partition *p;

    for (size_t i = 0; i < c->count; i++) {
        total += (uint64_t)(c->partitions[i].end - c->partitions[i].next);
    }

    while (!ctl_interrupted() && (p = earliest(c)) != NULL) {
        rd_kafka_message_t *m = p->head;

        p->head = NULL;

        if (!hand_out(c, p, m, fn, ctx)) {
            return false;
        }

        ctl_progress(++done, total, "records");
    }

    return !c->failed;
}

static kafka_partition *partition_of(kafka_client *c, int32_t number) {
    for (size_t i = 0; i < c->count; i++) {
        if (c->partitions[i].number == number) {
            return &c->partitions[i];
        }
    }

    return NULL;
}

rd_kafka_resp_err_t kafka_follow(kafka_client *c, ctl_value_fn fn,
                                 bool (*idle)(void *ctx), void *ctx) {
    bool more = true;
    rd_kafka_resp_err_t err = RD_KAFKA_RESP_ERR_NO_ERROR;
    rd_kafka_queue_t *queue = rd_kafka_queue_new(c->rk);

    for (size_t i = 0; i < c->count; i++) {
        kafka_partition *p = &c->partitions[i];

        p->started = rd_kafka_consume_start_queue(c->handle, p->number, p->next,
                                                  queue) == 0;
    }

    while (more && !err && !ctl_interrupted()) {
        rd_kafka_message_t *m = rd_kafka_consume_queue(queue, FOLLOW_MS);

        rd_kafka_poll(c->rk, 0);

        if (m == NULL) {
            more = idle(ctx);

        } else if (m->err == RD_KAFKA_RESP_ERR_NO_ERROR) {
            more = hand_out(c, partition_of(c, m->partition), m, fn, ctx);

        } else {
            if (m->err != RD_KAFKA_RESP_ERR__PARTITION_EOF) {
                err = m->err;
            }

            more = idle(ctx);
            rd_kafka_message_destroy(m);
        }
    }

    stop_all(c);
    rd_kafka_queue_destroy(queue);

    return err;
}

static bool flush(void *ctx) {
    (void)ctx;

    ctl_flush();

    return !ctl_output_lost();
}

/* What comes from then on. */
static void follow(kafka_client *c, ctl_value_fn fn, void *ctx) {
    rd_kafka_resp_err_t err;

    ctl_flush();
    stop_all(c);
    err = kafka_follow(c, fn, flush, ctx);

    if (err) {
        ctl_error("%s: %s", c->opt->topic, rd_kafka_err2str(err));
    }
}

void ctl_read_topic(const ctl_options *opt, ctl_value_fn fn, void *ctx) {
    kafka_client c;

    if (opt->follow) {
        ctl_catch_signals();
    }

    if (!kafka_connect(&c, opt, RD_KAFKA_CONSUMER)) {
        return;
    }

    if ((opt->since == NULL || opt->has_offset || move_to_since(&c)) &&
        start_all(&c) && read_what_is_there(&c, fn, ctx) && opt->follow) {
        follow(&c, fn, ctx);
    }

    stop_all(&c);
    kafka_disconnect(&c);
}
