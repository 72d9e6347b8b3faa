/*
 * How much of a partition's records librdkafka gets at once.
 *
 * An idempotent producer of librdkafka makes no request for a partition while
 * five or more of its records are in flight (records, not requests), and its
 * thread spins, taking a whole core, while others wait for that.  So they wait
 * here: an idle partition gets a burst, which is what one turn of the loop has
 * for it, at most a batch; a busy one gets no more than five records in all.
 * A record that finds its partition idle goes at once, and under load the
 * batches grow as large as the acknowledgements are slow.
 *
 * The first record of a producer in a partition goes alone, and nothing behind
 * it before it is acknowledged.  A broker that has just become the leader can
 * refuse the first request and take the second: it knows no sequence numbers of
 * this producer yet.  librdkafka then concludes from the second one's success
 * that the first is there, and reports it as persisted (KAFKA-15591).  The same
 * after a pause in which the broker may have forgotten them.
 */
#include <stdlib.h>
#include <string.h>

#include "sidecar/kafka_internal.h"

int kafka_pace_resize(kafka *k, int32_t partitions) {
    if (partitions <= k->npaces)
        return 0;
    kafka_pace *paces = realloc(k->paces, (size_t)partitions * sizeof(*paces));
    if (paces == NULL)
        return -1;
    memset(paces + k->npaces, 0,
           (size_t)(partitions - k->npaces) * sizeof(*paces));
    k->paces = paces;
    k->npaces = partitions;
    return 0;
}

/* librdkafka's RD_KAFKA_IDEMP_MAX_INFLIGHT */
#define BUSY 5u

/* Far below producer.id.expiration.ms (a day). */
#define FORGOTTEN_NS (600 * KAFKA_S)

static bool burst_open(const kafka *k, const kafka_pace *p) {
    return p->out > 0 && p->room > 0 && p->turn == loop_now_ns(k->l);
}

/* Whether the leader knows our sequence numbers. */
static bool is_known(const kafka *k, const kafka_pace *p) {
    return p->acked_ns != 0 && loop_now_ns(k->l) - p->acked_ns < FORGOTTEN_NS;
}

static bool may_send(const kafka *k, const kafka_pace *p) {
    return p->out == 0 ||
           (is_known(k, p) && (p->out < BUSY || burst_open(k, p)));
}

static void count_sent(kafka *k, kafka_pace *p, size_t len) {
    if (p->out == 0) {
        p->turn = loop_now_ns(k->l);
        p->room = k->batch_size;
    }
    p->room -= len < p->room ? len : p->room;
    p->out++;
}

static int hand_over(kafka *k, int32_t partition, const kafka_held *r) {
    /* no flags: librdkafka neither copies nor frees the value */
    if (rd_kafka_produce(k->rkt, partition, 0, (void *)r->value, r->len, r->key,
                         r->key_len, r->record) == -1)
        return -1;
    count_sent(k, &k->paces[partition], r->len);
    return 0;
}

static int hold(kafka *k, kafka_pace *p, const kafka_held *record) {
    kafka_held *r = malloc(sizeof(*r));
    if (r == NULL)
        return -1;
    *r = *record;
    r->next = NULL;
    if (p->first == NULL)
        p->first = r;
    else
        p->last->next = r;
    p->last = r;
    k->held++;
    return 0;
}

/* The first one of a partition leaves; the caller has reported or sent it. */
static kafka_held unhold(kafka *k, kafka_pace *p) {
    kafka_held *r = p->first, copy = *r;
    p->first = r->next;
    k->held--;
    free(r);
    return copy;
}

int kafka_pace_take(kafka *k, int32_t partition, const kafka_held *record) {
    kafka_pace *p = &k->paces[partition];
    if (p->first != NULL || !may_send(k, p))
        return hold(k, p, record);
    return hand_over(k, partition, record);
}

void kafka_pace_reported(kafka *k, int32_t partition, bool acked) {
    if (partition < 0 || partition >= k->npaces)
        return;
    if (k->paces[partition].out > 0)
        k->paces[partition].out--;
    if (acked)
        k->paces[partition].acked_ns = loop_now_ns(k->l);
}

static void give_back(kafka *k, kafka_pace *p, const char *why) {
    kafka_held r = unhold(k, p);
    k->records--;
    k->bytes -= r.len + r.key_len;
    k->events->delivered(k->owner, r.record, KAFKA_NOT_PERSISTED, -1, why);
}

void kafka_pace_continue(kafka *k) {
    for (int32_t i = 0; i < k->npaces && k->held > 0; i++)
        while (k->state == KAFKA_RUNNING && k->paces[i].first != NULL &&
               may_send(k, &k->paces[i])) {
            if (hand_over(k, i, k->paces[i].first) == 0) {
                unhold(k, &k->paces[i]);
                continue;
            }
            rd_kafka_resp_err_t err = rd_kafka_last_error();
            kafka_topic_suspect(k, WHY_OTHER, rd_kafka_err2str(err));
            give_back(k, &k->paces[i], rd_kafka_err2str(err));
        }
}

void kafka_pace_reset(kafka *k, const char *why) {
    for (int32_t i = 0; i < k->npaces; i++)
        while (k->paces[i].first != NULL)
            give_back(k, &k->paces[i], why);
    for (int32_t i = 0; i < k->npaces; i++)
        memset(&k->paces[i], 0, sizeof(k->paces[i]));
}

void kafka_pace_free(kafka *k) {
    free(k->paces);
}
