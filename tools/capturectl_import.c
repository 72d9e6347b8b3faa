/*
 * capturectl import: an exported file's records into a topic.
 *
 * A file is read twice: it is checked to its end before the first record is
 * sent. The partition is what Java's producer takes for the key, over the
 * count of partitions at the start, and each partition keeps the file's order.
 */

#include "tools/capturectl_kafka.h"
#include "tools/capturectl_text.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef struct {
    const ctl_options *opt;
    kafka_client client;
    uint64_t sent, acknowledged, bytes;
    bool failed; /* by Kafka */
} importer;

static importer *of_reports; /* librdkafka's callback has no other way */

static const char *fault_of(const ctl_value *v, char why[CTL_FAULT_SIZE]) {
    ctl_record r;

    if (v->key == NULL) {
        return "it has no key: KEY|BASE64";
    }

    if (!ctl_open_record(v, &r, why)) {
        return why;
    }

    if (v->key_len != r.info.connection_id.len ||
        memcmp(v->key, r.info.connection_id.data, v->key_len) != 0) {
        return "its key is not its connectionId";
    }

    return NULL;
}

static bool check(void *ctx, const ctl_value *v) {
    char why[CTL_FAULT_SIZE];
    const char *fault = fault_of(v, why);

    (void)ctx;

    if (fault != NULL) {
        ctl_error("%s: %s", v->place, fault);
    }

    return true;
}

void kafka_report(rd_kafka_t *rk, const rd_kafka_message_t *m, void *opaque) {
    importer *i = of_reports;

    (void)rk;
    (void)opaque;

    if (m->err == RD_KAFKA_RESP_ERR_NO_ERROR) {
        i->acknowledged++;
        return;
    }

    if (!i->failed) {
        ctl_error("%s [%" PRId32 "]: the record of line %zu was not taken: %s",
                  i->opt->topic, m->partition, (size_t)(uintptr_t)m->_private,
                  rd_kafka_err2str(m->err));
    }

    i->failed = true;
}

static bool produce(importer *i, const ctl_value *v) {
    kafka_client *c = &i->client;
    int32_t partition = rd_kafka_msg_partitioner_murmur2(
        c->handle, v->key, v->key_len, (int32_t)c->count, NULL, NULL);

    while (!i->failed && !ctl_interrupted()) {
        if (rd_kafka_produce(c->handle, partition, RD_KAFKA_MSG_F_COPY,
                             (void *)v->value, v->value_len, v->key, v->key_len,
                             (void *)(uintptr_t)(i->sent + 1)) == 0) {
            i->sent++;
            i->bytes += v->value_len;
            rd_kafka_poll(c->rk, 0);
            return true;
        }

        if (rd_kafka_last_error() != RD_KAFKA_RESP_ERR__QUEUE_FULL) {
            ctl_error("%s: %s", v->place,
                      rd_kafka_err2str(rd_kafka_last_error()));
            i->failed = true;
        }

        rd_kafka_poll(c->rk, 100);
    }

    return false;
}

/* Standard input has not been checked before. */
static bool send_value(void *ctx, const ctl_value *v) {
    importer *i = ctx;

    check(ctx, v);

    return !ctl_had_errors() && produce(i, v);
}

/* Records that are in the topic already would be doubled. */
static bool topic_is_empty(importer *i) {
    kafka_client reader;
    uint64_t records = 0;

    if (!kafka_connect(&reader, i->opt, RD_KAFKA_CONSUMER)) {
        return false;
    }

    for (size_t n = 0; n < reader.count; n++) {
        records +=
            (uint64_t)(reader.partitions[n].end - reader.partitions[n].low);
    }

    kafka_disconnect(&reader);

    if (records > 0) {
        ctl_error("topic %s holds %" PRIu64 " records: connectionIds must be "
                  "unique in it; --append if they are",
                  i->opt->topic, records);
    }

    return records == 0;
}

static void flush(importer *i) {
    rd_kafka_t *rk = i->client.rk;

    while (rd_kafka_outq_len(rk) > 0 && !i->failed && !ctl_interrupted()) {
        rd_kafka_poll(rk, 100);
    }

    if (i->failed || ctl_interrupted()) {
        rd_kafka_purge(rk, RD_KAFKA_PURGE_F_QUEUE | RD_KAFKA_PURGE_F_INFLIGHT);
        rd_kafka_flush(rk, kafka_timeout(i->opt));
    }
}

static void tell(const importer *i) {
    if (i->opt->json) {
        cJSON *object = cJSON_CreateObject();

        text_add_int(object, "records", (int64_t)i->acknowledged);
        text_add_int(object, "sent", (int64_t)i->sent);
        text_put_json(object);
    }

    if (!i->opt->quiet || i->acknowledged != i->sent) {
        ctl_remark("%" PRIu64 " records to %s", i->acknowledged, i->opt->topic);
    }

    if (i->acknowledged != i->sent) {
        ctl_error("%" PRIu64 " records were sent and not acknowledged: they "
                  "may be in the topic or not",
                  i->sent - i->acknowledged);
    }
}

void ctl_import(const ctl_options *opt) {
    importer i = {.opt = opt};

    of_reports = &i;

    if (strcmp(opt->files[0], "-") != 0) {
        ctl_read_files(opt, check, NULL);

        if (ctl_had_errors()) {
            ctl_remark("nothing has been sent");
            return;
        }
    }

    if ((!opt->append && !topic_is_empty(&i)) ||
        !kafka_connect(&i.client, opt, RD_KAFKA_PRODUCER)) {
        return;
    }

    ctl_catch_signals();
    ctl_read_files(opt, send_value, &i);

    if (ctl_had_errors() || ctl_interrupted()) {
        ctl_error("it has ended before the file's end");
    }

    flush(&i);
    kafka_disconnect(&i.client);
    tell(&i);
}
