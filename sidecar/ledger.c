#include "sidecar/ledger_internal.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "sidecar/metrics.h"
#include "sidecar/step.h"

#define RETRY_EXPORT_NS 1000000000ll

static void ready(void *owner, bool is_ready);

static const kafka_events events = {ledger_delivered, ready};

/* ---- life ---- */

bool ledger_has_kafka(const config *c) {
    return destination_has_kafka(c);
}

ledger *ledger_new(const config *c, loop *loop, const ledger_events *ev) {
    ledger *l = calloc(1, sizeof(*l));

    if (l == NULL) {
        log_error("out of memory");
        return NULL;
    }
    l->loop = loop;
    l->events = ev;
    l->record_size = c->record_size;
    l->resend = c->settle_drop == 0;
    l->pinned_ns = c->pinned_time;
    metrics_cell[METRIC_INFLIGHT_LIMIT] = c->inflight_size;
    TAILQ_INIT(&l->gated);
    if (c->export_path != NULL) {
        l->export = export_open(c);
        if (l->export == NULL) {
            free(l);
            return NULL;
        }
    }
    l->destinations = destinations_open(c, loop, &events, ledger_settled, l);
    if (l->destinations == NULL) {
        ledger_free(l);
        return NULL;
    }
    return l;
}

void ledger_stop(ledger *l, int64_t within_ns) {
    l->stopping = true;
    destinations_stop(l->destinations, within_ns);
}

void ledger_free(ledger *l) {
    ledger_buffer *next;

    if (l->export != NULL) {
        export_close(l->export);
    }
    destinations_free(l->destinations);
    for (unsigned i = 0; i < LEDGER_BUFFERS; i++) {
        for (ledger_buffer *b = l->buffers[i]; b != NULL; b = next) {
            next = b->next;
            free(b);
        }
    }
    free(l);
}

struct destination *ledger_destination(ledger *l, const char *name) {
    destination *d = destinations_find(l->destinations, name);

    if (d == NULL) {
        log_limited(&l->log_unknown, LOG_LEVEL_ERROR,
                    "NGINX's capture_topic says \"%s\", and there is no "
                    "topic.%s here: such exchanges are lost(no_topic)",
                    name, name);
    }
    return d;
}

uint64_t ledger_destination_mark(const struct destination *d) {
    return d->mark;
}

const char *ledger_destination_name(const struct destination *d) {
    return d->number == 0 ? "" : d->metrics.name;
}

size_t ledger_record_limit(const ledger *l, const conn *c) {
    return c->destination != NULL && c->destination->kafka != NULL
               ? kafka_record_limit(c->destination->kafka)
               : l->record_size;
}

bool ledger_idle(const ledger *l) {
    return destinations_idle(l->destinations);
}

void ledger_reload(ledger *l) {
    destinations_reload(l->destinations);
}

bool ledger_ready(const ledger *l, const char **why) {
    return destinations_ready(l->destinations, why);
}

static void ready(void *owner, bool is_ready) {
    (void)owner; /* the pump runs before the loop sleeps again */
    (void)is_ready;
}

void ledger_use_journal(ledger *l, journal *j) {
    l->journal = j;
}

/* ---- the lines of those that are due ---- */

static void count_due(conn *c, bool is_due) {
    uint64_t by = is_due ? 1 : (uint64_t)-1;

    c->is_due = is_due;
    metrics_cell[METRIC_DUE] += by;
    c->destination->metrics.cell[DESTINATION_DUE] += by;
}

static void enlist(conn *c) {
    if (!c->is_due) {
        count_due(c, true);
        TAILQ_INSERT_TAIL(&c->destination->due, c, due);
    }
}

void ledger_enlist_first(conn *c) {
    count_due(c, true);
    TAILQ_INSERT_HEAD(&c->destination->due, c, due);
}

static void unlist(conn *c) {
    if (c->is_due) {
        count_due(c, false);
        TAILQ_REMOVE(&c->destination->due, c, due);
    }
}

/* ---- the journal, where there is one ---- */

/* Not while frames of a record in doubt are still to be read: the journal has
   the intent with them. */
void ledger_put(ledger *l, conn *c) {
    if (c->destination == NULL) {
        return; /* it will be given up */
    }
    if (l->journal != NULL && c->adopted != NULL) {
        c->puts_late = true;
    } else if (l->journal != NULL) {
        journal_put(l->journal, c);
    }
}

void ledger_put_more(ledger *l, conn *c, enum cap_frame_type type) {
    if (c->journal != NULL && c->adopted == NULL && c->destination != NULL) {
        journal_put_more(l->journal, c, type);
    }
}

void ledger_adopt(ledger *l, conn *c) {
    if (l->journal != NULL) {
        journal_adopt_conn(l->journal, c);
    }
}

static void leave_gate(ledger *l, conn *c) {
    if (c->is_gated) {
        c->is_gated = false;
        TAILQ_REMOVE(&l->gated, c, due);
    }
}

static void leave_journal(ledger *l, conn *c) {
    leave_gate(l, c);
    if (l->journal != NULL) {
        journal_leave(l->journal, c);
    }
}

/* Whether c's record may go; else it waits until then. */
static bool passes_gate(ledger *l, conn *c) {
    const ledger_record *r = c->record;

    if (l->journal == NULL ||
        journal_allows(l->journal, c, r->number, r->span.last)) {
        return true;
    }
    c->is_gated = true;
    TAILQ_INSERT_TAIL(&l->gated, c, due);
    return false;
}

void ledger_ungate(ledger *l) {
    conn *c;

    while ((c = TAILQ_LAST(&l->gated, conn_list)) != NULL) {
        TAILQ_REMOVE(&l->gated, c, due);
        c->is_gated = false;
        ledger_enlist_first(c);
    }
}

void ledger_close_conn(ledger *l, conn *c) {
    unlist(c);
    leave_journal(l, c);
    if (!c->slot_returned) {
        pool_return_slot(c->pool, c->slot, c->generation);
        c->slot_returned = true;
        step(STEP_CLOSED);
    }
    l->events->closed(c);
}

void ledger_acknowledge(conn *c) {
    const kafka *k = c->destination != NULL ? c->destination->kafka : NULL;

    conn_acknowledge(c, k != NULL && !kafka_readable(k));
}

void ledger_show_slot(const conn *c) {
    cap_slot *s;

    if (c->slot_returned || !pool_owned(c->pool)) {
        return;
    }
    s = cap_slot_at(c->pool->header, &c->pool->geometry, c->slot);
    s->partition = c->partition;
    s->next_number = c->next_number;
    s->requests = c->acked_requests;
    s->unterminated_read = c->acked_unterminated;
    step(STEP_SLOT_FIELDS);
    atomic_store_explicit(&s->acked_bytes, c->send_byte, memory_order_release);
    step(STEP_SLOT);
}

void ledger_go_on(ledger *l, conn *c) {
    if (l->journal != NULL) {
        journal_acked(l->journal, c);
    }
    conn_release(c);
    step(STEP_RELEASED);
    if (c->acked_end) {
        ledger_close_conn(l, c);
    } else if (c->flushes > 0 && conn_needs_record(c)) {
        enlist(c);
    }
}

void ledger_settle(ledger *l, conn *c) {
    if (c->record != NULL || c->held) {
        return;
    }
    ledger_acknowledge(c);
    ledger_go_on(l, c);
}

void ledger_flush(ledger *l, conn *c) {
    conn_mark(c);
    ledger_settle(l, c);
}

void ledger_discard(ledger *l, conn *c) {
    unlist(c);
    leave_journal(l, c);
    if (c->destination != NULL) {
        settle_forget(c->destination->settle, c);
    }
    conn_forget(c);
    c->slot_returned = true;
    if (c->record != NULL && (l->stopping || !c->record->out)) {
        ledger_record_free(c->record); /* no report will come */
    }
    if (c->record != NULL) {
        c->mute = true;
    } else {
        l->events->closed(c);
    }
}

/* ---- a connection that cannot go on ---- */

void ledger_abandon(ledger *l, conn *c, unsigned reason, unsigned with_eom,
                    bool farewell) {
    frame_ref *end = NULL;

    unlist(c);
    leave_gate(l, c);
    if (l->journal != NULL) {
        journal_forget(l->journal, c);
    }
    pool_ending(c->pool, reason, UINT32_MAX);
    step(STEP_ABANDON_ENDING);
    if (!c->slot_returned) {
        /* whatever the slot says is of no meaning from here on */
        pool_return_slot(c->pool, c->slot, c->generation);
        c->slot_returned = true;
        step(STEP_ABANDON_SLOT);
        pool_wake(c->pool);
        l->events->abandoned(c, reason);
    } else {
        farewell = false; /* that was it already, or its worker has gone */
    }
    conn_cut_all(c, reason, with_eom);
    step(STEP_ABANDON_COUNTED);
    pool_ending(c->pool, 0, 0);
    c->until_seq = 0;
    c->sent_requests = c->acked_requests;
    c->sent_unterminated = c->acked_unterminated;
    if (farewell && c->next_number > 1) {
        end = pool_make(c->pool, CAP_FRAME_ABANDON, (uint16_t)reason,
                        c->last_ts_ns);
    }
    if (c->record != NULL && !c->record->out) {
        ledger_record_free(c->record);
    }
    if (c->record != NULL) {
        leave_journal(l, c);
        c->mute = true; /* until its report */
        return;
    }
    if (end == NULL) {
        ledger_close_conn(l, c);
        return;
    }
    end->flags = CONN_FRAME_SIDECAR;
    conn_append(c, end);
    ledger_flush(l, c);
}

/* After an outage of all, each has its time anew from the first that is
   acknowledged again. */
bool ledger_is_stuck(const ledger *l, const conn *c) {
    int64_t now = loop_now_ns(l->loop);

    return c->waits_ns != 0 && !c->slot_returned &&
           now - c->waits_ns >= l->pinned_ns && c->waits_ns < l->taken_ns &&
           now - l->flows_ns >= l->pinned_ns;
}

void ledger_give_up(ledger *l, conn *c) {
    log_limited(&l->log_pinned, LOG_LEVEL_ERROR,
                "partition %" PRId32 " has taken nothing of %.*s for %" PRId64
                " ms, and the worker's memory is nearly full: the connectionId "
                "is abandoned, so that others lose nothing",
                c->partition, (int)c->id_len, c->id,
                (loop_now_ns(l->loop) - c->waits_ns) / 1000000);
    settle_forget(c->destination->settle, c);
    c->held = false;
    ledger_abandon(l, c, CAP_PINNED, CAP_RESPONSE, false);
}

/* ---- handing over ---- */

/* 0, or -1 where the export did not take it. */
static int to_export(ledger *l, ledger_record *r) {
    int rc = export_record(l->export, r->conn->id, r->conn->id_len, r->number,
                           r->value, r->len);

    if (rc == 0) {
        metrics_cell[METRIC_EXPORTED]++;
    } else if (!r->exported) {
        metrics_cell[METRIC_EXPORT_FAILED]++;
    }
    r->exported = true;
    return rc;
}

/* The export is the destination: what it does not take is offered again. */
static void export_only(ledger *l, ledger_record *r) {
    if (to_export(l, r) == 0) {
        ledger_acked(l, r, -1);
        return;
    }
    log_limited(&l->log_export, LOG_LEVEL_ERROR,
                "the export does not take records, and there is no broker: "
                "they wait");
    ledger_retry_later(l, r);
    loop_timer_set(l->loop, &r->retry, RETRY_EXPORT_NS);
}

/* Of a connection that stands in no line.  0, or -1: no room, try later. */
static int hand_over(ledger *l, ledger_record *r) {
    conn *c = r->conn;
    destination *d = c->destination;
    bool again = r->failed;

    if (r->handed_ns == 0) {
        r->handed_ns = loop_now_ns(l->loop);
        c->waits_ns = r->handed_ns;
    }
    if (d->kafka == NULL) {
        export_only(l, r);
        return 0;
    }
    if (l->export != NULL && !r->exported) {
        to_export(l, r);
    }
    if (kafka_produce(d->kafka, c->partition, c->id, c->id_len, r->value,
                      r->len, r) != 0) {
        return -1;
    }
    r->out = true;
    step(STEP_PRODUCED);
    metrics_cell[METRIC_RECORDS_RETRIED] += again;
    d->metrics.cell[DESTINATION_RECORDS_RETRIED] += again;
    return 0;
}

/* Fixed once: added partitions concern new connections only. */
static bool have_partition(conn *c) {
    kafka *k = c->destination->kafka;

    if (k != NULL && c->partition < 0) {
        c->partition = kafka_partition(k, c->id, c->id_len);
    }
    return k == NULL || c->partition >= 0;
}

/* c->record is the next one, or NULL: it cannot be encoded. */
static bool next_record(ledger *l, conn *c) {
    ledger_record *r = ledger_record_new(l, c);
    const kafka *k = c->destination->kafka;
    size_t limit = ledger_record_limit(l, c);
    size_t cap;

    if (r == NULL) {
        log_limited(&l->log_internal, LOG_LEVEL_ERROR,
                    "out of memory for a record");
        return false;
    }
    cap = ledger_buffer_size(r->class) < limit ? ledger_buffer_size(r->class)
                                               : limit;
    if (c->until_seq == 0) {
        c->low_water = k != NULL ? kafka_known_end(k, c->partition) : -1;
        c->topic_mark = k != NULL ? kafka_topic_mark(k) : 0;
    }
    r->len = encode_record(c, r->value, cap, r->number, &r->span);
    c->until_seq = 0;
    if (r->len == 0) {
        log_limited(&l->log_internal, LOG_LEVEL_ERROR,
                    "a record of %.*s cannot be encoded in %zu bytes",
                    (int)c->id_len, c->id, cap);
        ledger_record_free(r);
        return true;
    }
    ledger_count_inflight(r, 0, r->len);
    metrics_observe(HISTOGRAM_RECORD_SIZE, r->len);
    conn_mark(c); /* what did not fit follows at once */
    ledger_write_intent(r);
    return true;
}

/* False: wait for room, for a report, or for Kafka. */
static bool send_one(ledger *l, conn *c) {
    if (!pool_owned(c->pool) || c->held ||
        (c->record == NULL && !conn_needs_record(c))) {
        unlist(c);
        return true;
    }
    if (c->record == NULL) {
        const destination *d = c->destination;

        if (d->inflight >= d->inflight_size || !have_partition(c) ||
            !next_record(l, c)) {
            return false;
        }
        if (c->record == NULL) {
            ledger_abandon(l, c, CAP_INTERNAL, CAP_RESPONSE, false);
            return true;
        }
    }
    unlist(c);
    if (!passes_gate(l, c)) {
        return true;
    }
    if (hand_over(l, c->record) != 0) {
        ledger_enlist_first(c);
        return false;
    }
    return true;
}

/* What is in the way of one destination is none of the others'. */
static void pump(ledger *l, destination *d) {
    conn *c;

    while ((c = TAILQ_FIRST(&d->due)) != NULL) {
        if (l->stopping || (d->kafka != NULL && !kafka_ready(d->kafka)) ||
            !send_one(l, c)) {
            return;
        }
    }
}

void ledger_pump(ledger *l) {
    for (size_t i = 0; i < l->destinations->n; i++) {
        pump(l, &l->destinations->at[i]);
    }
}
