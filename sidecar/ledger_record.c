#include "sidecar/ledger_internal.h"

#include <stdlib.h>

#include "sidecar/metrics.h"
#include "sidecar/step.h"

#define RETRY_FIRST_NS 100000000ll

/* Buffers are powers of two, so that a free one fits the next record. */
#define BUFFER_MIN_SHIFT 11
#define BUFFERS_KEPT (8u << 20)

/* ---- buffers ---- */

static unsigned buffer_class(size_t size) {
    unsigned class = 0;

    while (((size_t)1 << (BUFFER_MIN_SHIFT + class)) < size) {
        class ++;
    }
    return class;
}

size_t ledger_buffer_size(unsigned class) {
    return (size_t)1 << (BUFFER_MIN_SHIFT + class);
}

static uint8_t *take_buffer(ledger *l, unsigned class) {
    ledger_buffer *b = l->buffers[class];

    if (b == NULL) {
        return malloc(ledger_buffer_size(class));
    }
    l->buffers[class] = b->next;
    l->kept -= ledger_buffer_size(class);
    return (uint8_t *)b;
}

static void put_buffer(ledger *l, uint8_t *value, unsigned class) {
    ledger_buffer *b = (ledger_buffer *)(void *)value;

    if (l->kept + ledger_buffer_size(class) > BUFFERS_KEPT) {
        free(value);
        return;
    }
    b->next = l->buffers[class];
    l->buffers[class] = b;
    l->kept += ledger_buffer_size(class);
}

/* ---- records ---- */

/* Of what is handed over and not acknowledged. */
void ledger_count_inflight(ledger_record *r, uint64_t records, uint64_t bytes) {
    metrics_destination *m = &r->conn->destination->metrics;

    metrics_cell[METRIC_INFLIGHT_RECORDS] += records;
    metrics_cell[METRIC_INFLIGHT_BYTES] += bytes;
    m->cell[DESTINATION_INFLIGHT_RECORDS] += records;
    m->cell[DESTINATION_INFLIGHT_BYTES] += bytes;
}

ledger_record *ledger_record_new(ledger *l, conn *c) {
    ledger_record *r = calloc(1, sizeof(*r));

    if (r == NULL) {
        return NULL;
    }
    r->class = buffer_class(encode_size(c, ledger_record_limit(l, c)));
    r->value = take_buffer(l, r->class);
    if (r->value == NULL) {
        free(r);
        return NULL;
    }
    r->ledger = l;
    r->conn = c;
    r->number = c->next_number;
    r->backoff_ns = RETRY_FIRST_NS;
    c->destination->inflight += ledger_buffer_size(r->class);
    ledger_count_inflight(r, 1, 0);
    c->record = r;
    return r;
}

void ledger_record_free(ledger_record *r) {
    ledger *l = r->ledger;

    r->conn->record = NULL;
    loop_timer_cancel(l->loop, &r->retry);
    r->conn->destination->inflight -= ledger_buffer_size(r->class);
    ledger_count_inflight(r, (uint64_t)-1, -(uint64_t)r->len);
    put_buffer(l, r->value, r->class);
    free(r);
}

/* ---- intents ---- */

/*
 * The whole intent before the record can reach Kafka; `number` makes it so.
 * The slot's last one may still be there: of a connection that was abandoned.
 */
void ledger_write_intent(const ledger_record *r) {
    const conn *c = r->conn;
    cap_intent *i;

    if (c->slot_returned) {
        return;
    }
    i = cap_intent_at(c->pool->header, &c->pool->geometry, c->slot);
    atomic_store_explicit(&i->number, 0, memory_order_relaxed);
    step(STEP_INTENT_NONE);
    cap_slot_at(c->pool->header, &c->pool->geometry, c->slot)->destination =
        c->destination->mark;
    i->slot_generation = c->generation;
    i->partition = c->partition;
    i->flags = 0;
    i->low_water = c->low_water;
    i->first_seq = r->span.first_seq;
    i->last_seq = r->span.last_seq;
    i->first_byte = r->span.first_byte;
    i->last_byte = r->span.last_byte;
    i->prior_requests = r->span.prior_requests;
    i->requests = c->sent_requests;
    i->unterminated_read = c->sent_unterminated;
    i->mark = c->topic_mark;
    atomic_store_explicit(&i->acked, 0, memory_order_relaxed);
    step(STEP_INTENT_FIELDS);
    atomic_store_explicit(&i->number, r->number, memory_order_release);
    step(STEP_INTENT);
}

void ledger_intent_acked(const conn *c) {
    if (!c->slot_returned && pool_owned(c->pool)) {
        atomic_store_explicit(
            &cap_intent_at(c->pool->header, &c->pool->geometry, c->slot)->acked,
            1, memory_order_release);
        step(STEP_INTENT_ACKED);
    }
}

void ledger_intent_done(const conn *c) {
    if (!c->slot_returned && pool_owned(c->pool)) {
        atomic_store_explicit(
            &cap_intent_at(c->pool->header, &c->pool->geometry, c->slot)
                 ->number,
            0, memory_order_release);
        step(STEP_INTENT_DONE);
    }
}
