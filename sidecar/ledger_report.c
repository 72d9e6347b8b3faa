#include "sidecar/ledger_internal.h"

#include <inttypes.h>
#include <stdlib.h>

#include "sidecar/metrics.h"
#include "sidecar/step.h"

#define RETRY_MOST_NS 5000000000ll

/* ---- acknowledged, again, refused ---- */

/*
 * The record of this number is in the topic.  The order of the stores is the
 * point: after the first a successor does the rest again, before it the record
 * is in doubt; blocks go back last, in ledger_go_on().
 */
static void confirmed(ledger *l, conn *c, uint32_t number, int64_t offset) {
    cap_slot *s = cap_slot_at(c->pool->header, &c->pool->geometry, c->slot);

    c->next_number = number + 1;
    c->until_seq = 0;
    c->waits_ns = 0;
    step(STEP_REPORTED);
    ledger_intent_acked(c);
    if (offset >= 0 && !c->slot_returned && pool_owned(c->pool)) {
        s->last_offset = offset;
        step(STEP_LAST_OFFSET);
    }
    ledger_acknowledge(c);
    step(STEP_ACKNOWLEDGED);
    ledger_show_slot(c);
    ledger_intent_done(c);
    ledger_go_on(l, c);
}

void ledger_acked(ledger *l, ledger_record *r, int64_t offset) {
    conn *c = r->conn;
    uint32_t number = r->number;
    int64_t now = loop_now_ns(l->loop);

    metrics_cell[METRIC_RECORDS]++;
    metrics_cell[METRIC_RECORD_BYTES] += r->len;
    c->destination->metrics.cell[DESTINATION_RECORDS]++;
    c->destination->metrics.cell[DESTINATION_RECORD_BYTES] += r->len;
    metrics_observe(HISTOGRAM_DELIVERY, (uint64_t)(now - r->handed_ns));
    if (l->acked_ns == 0 || now - l->acked_ns >= l->pinned_ns / 2) {
        l->flows_ns = now;
    }
    l->acked_ns = now;
    if (r->handed_ns > l->taken_ns) {
        l->taken_ns = r->handed_ns;
    }
    pool_count_record(c->pool, r->len);
    ledger_record_free(r);
    confirmed(l, c, number, offset);
}

static void retry_due(loop_timer *timer) {
    ledger_record *r =
        (ledger_record *)(void *)((char *)timer -
                                  offsetof(ledger_record, retry));

    ledger_enlist_first(r->conn);
}

void ledger_retry_later(ledger *l, ledger_record *r) {
    r->retry.due = retry_due;
    loop_timer_set(l->loop, &r->retry, r->backoff_ns);
    r->backoff_ns *= 2;
    if (r->backoff_ns > RETRY_MOST_NS) {
        r->backoff_ns = RETRY_MOST_NS;
    }
    r->failed = true;
}

static void rejected(ledger *l, ledger_record *r, const char *why) {
    conn *c = r->conn;

    log_limited(&l->log_rejected, LOG_LEVEL_ERROR,
                "record %" PRIu32 " of %.*s%s (%zu bytes) is refused for good: "
                "%s; the connectionId is abandoned",
                r->number, (int)c->id_len, c->id, c->destination->to, r->len,
                why);
    ledger_record_free(r);
    ledger_abandon(l, c, CAP_RECORD_REJECTED, CAP_RESPONSE, true);
}

/* ---- doubt ---- */

/* The record from c->send to until_seq and until_byte may be in the topic. */
static void look_for(ledger *l, conn *c) {
    c->held = true;
    c->waits_ns = c->waits_ns != 0 ? c->waits_ns : loop_now_ns(l->loop);
    if (settle_add(c->destination->settle, c) != 0) {
        ledger_settled(l, c, SETTLE_UNREADABLE, -1);
    }
}

static void in_doubt(ledger *l, ledger_record *r, const char *why) {
    conn *c = r->conn;

    log_limited(&l->log_doubt, LOG_LEVEL_WARN,
                "record %" PRIu32 " of %.*s%s (%zu bytes) is in doubt: %s; it "
                "is looked for in the topic",
                r->number, (int)c->id_len, c->id, c->destination->to, r->len,
                why);
    c->until_seq = r->span.last_seq;
    c->until_byte = r->span.last_byte;
    c->until_requests = c->sent_requests;
    c->until_unterminated = c->sent_unterminated;
    conn_rewind(c, r->span.first_byte);
    ledger_record_free(r);
    look_for(l, c);
}

/* ---- doubt for good: another name ---- */

/* What becomes of the queue, for a successor too: from the last store on there
   is no way back. */
static void write_plan(const conn *c, const conn_plan *plan) {
    cap_intent *i = cap_intent_at(c->pool->header, &c->pool->geometry, c->slot);

    if (!pool_owned(c->pool)) {
        return;
    }
    pool_doubling(c->pool, plan->doubled);
    step(STEP_RENAME_DOUBLING);
    i->mark = plan->from_seq;
    step(STEP_RENAME_FROM);
    i->flags = CAP_INTENT_RENAMED(c->renames + 1);
    step(STEP_RENAME);
}

static void rename_slot(const conn *c) {
    cap_slot *s = cap_slot_at(c->pool->header, &c->pool->geometry, c->slot);

    if (!pool_owned(c->pool)) {
        return;
    }
    s->renames = c->renames;
    s->last_offset = -1;
    step(STEP_RENAME_SLOT);
    pool_doubled(c->pool);
    step(STEP_RENAME_DOUBLED);
}

/* All of it can be done again, until the intent is gone. */
static void carry_out(ledger *l, conn *c, uint64_t from_seq, uint32_t renames) {
    if (!conn_rename(c, renames)) {
        ledger_abandon(l, c, CAP_MAYBE_LOST, CAP_MAYBE_LOST, false);
        return;
    }
    rename_slot(c);
    conn_restart(c, from_seq);
    metrics_cell[METRIC_CONNECTIONS_RENAMED]++;
    ledger_acknowledge(c);
    step(STEP_ACKNOWLEDGED);
    ledger_show_slot(c);
    ledger_intent_done(c);
    conn_mark(c);
    if (l->journal != NULL) {
        journal_renamed(l->journal, c);
    }
    ledger_go_on(l, c);
}

static void unreadable(ledger *l, conn *c) {
    bool renames = !c->slot_returned && conn_can_rename(c);
    conn_plan plan = {0};

    if (renames) {
        plan = conn_plan_rename(c, l->resend);
    }
    log_limited(&l->log_doubt, LOG_LEVEL_ERROR,
                "record %" PRIu32 " of %.*s stays in doubt, since its "
                "partition cannot be read; the connectionId is abandoned, and "
                "%u of its requests may be doubled",
                c->next_number, (int)c->id_len, c->id, plan.doubled);
    if (!renames) {
        ledger_abandon(l, c, CAP_MAYBE_LOST, CAP_MAYBE_LOST, false);
        return;
    }
    write_plan(c, &plan);
    carry_out(l, c, plan.from_seq, c->renames + 1);
}

/* ---- what is known of it ---- */

/* The queue passes over a record that is in the topic. */
static void skip_record(conn *c) {
    conn_skip(c);
    c->sent_requests = c->until_requests;
    c->sent_unterminated = c->until_unterminated;
}

void ledger_settled(void *owner, conn *c, settle_verdict verdict,
                    int64_t offset) {
    ledger *l = owner;

    c->held = false;
    switch (verdict) {
    case SETTLE_FOUND:
        skip_record(c);
        confirmed(l, c, c->next_number, offset);
        break;
    case SETTLE_ABSENT:
        ledger_flush(l, c);
        break;
    case SETTLE_UNREADABLE:
        unreadable(l, c);
        break;
    }
}

/*
 * Its last owner knew its destination, and we do not: nothing more of it is
 * sent, and what nobody knows of its last record stays so.
 */
static void resume_nowhere(ledger *l, conn *c, const cap_intent *i) {
    unsigned reason = CAP_NO_TOPIC, with_eom = CAP_RESPONSE;

    c->held = false;
    if (i != NULL && atomic_load_explicit(&i->acked, memory_order_relaxed)) {
        skip_record(c);
        c->next_number = i->number + 1;
        c->until_seq = 0;
        ledger_acknowledge(c);
        conn_release(c);
    } else if (i != NULL) {
        reason = with_eom = CAP_MAYBE_LOST;
    }
    if (c->acked_end) {
        ledger_close_conn(l, c);
    } else {
        ledger_abandon(l, c, reason, with_eom, false);
    }
}

/* c->until_seq and c->next_number are the intent's and the slot's. */
void ledger_resume(ledger *l, conn *c) {
    cap_intent *i = c->adopted;

    c->adopted = NULL;
    if (c->destination == NULL) {
        resume_nowhere(l, c, i);
        free(i);
        return;
    }
    if (c->puts_late) {
        c->puts_late = false;
        ledger_put(l, c);
    }
    if (i == NULL) {
        c->held = false;
        ledger_flush(l, c);
        return;
    }
    if (i->flags & CAP_INTENT_RENAME) {
        c->held = false;
        carry_out(l, c, i->mark, CAP_INTENT_RENAMES(i->flags));
    } else if (atomic_load_explicit(&i->acked, memory_order_relaxed)) {
        c->held = false;
        skip_record(c);
        conn_mark(c);
        confirmed(l, c, i->number, -1);
    } else {
        c->next_number = i->number;
        conn_mark(c);
        look_for(l, c);
    }
    free(i);
}

/* ---- reports ---- */

void ledger_delivered(void *owner, void *record, kafka_result result,
                      int64_t offset, const char *why) {
    destination *d = owner;
    ledger *l = d->owner;
    ledger_record *r = record;
    conn *c;

    if (*(kafka_owner *)record == KAFKA_OF_SETTLE) {
        settle_reported(d->settle, record, result, offset);
        return;
    }
    c = r->conn;
    r->out = false;
    if (c->mute) {
        ledger_record_free(r);
        l->events->closed(c);
        return;
    }
    if (l->stopping && result != KAFKA_ACKED) {
        ledger_record_free(r);
        return;
    }
    metrics_cell[METRIC_RECORDS_FAILED] += result != KAFKA_ACKED;
    d->metrics.cell[DESTINATION_RECORDS_FAILED] += result != KAFKA_ACKED;
    switch (result) {
    case KAFKA_ACKED:
        ledger_acked(l, r, offset);
        break;
    case KAFKA_NOT_PERSISTED:
        log_limited(&l->log_retry, LOG_LEVEL_WARN,
                    "record %" PRIu32 " of %.*s%s was not taken: %s; it will "
                    "be sent again",
                    r->number, (int)c->id_len, c->id, d->to, why);
        ledger_retry_later(l, r);
        break;
    case KAFKA_REJECTED:
        rejected(l, r, why);
        break;
    case KAFKA_IN_DOUBT:
        in_doubt(l, r, why);
        break;
    }
}
