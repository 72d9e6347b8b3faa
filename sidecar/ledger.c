#include "sidecar/ledger.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "sidecar/destination.h"
#include "sidecar/encode.h"
#include "sidecar/export.h"
#include "sidecar/journal.h"
#include "sidecar/log.h"
#include "sidecar/metrics.h"
#include "sidecar/step.h"

#define RETRY_FIRST_NS 100000000ll
#define RETRY_MOST_NS 5000000000ll
#define RETRY_EXPORT_NS 1000000000ll

/* Buffers are powers of two, so that a free one fits the next record. */
#define BUFFER_MIN_SHIFT 11
#define BUFFER_CLASSES 11 /* 2 KiB to 2 MiB */
#define BUFFERS_KEPT (8u << 20)

typedef struct buffer {
    struct buffer *next;
} buffer;

typedef struct ledger_record {
    kafka_owner kind; /* KAFKA_OF_LEDGER */
    ledger *ledger;
    conn *conn;
    uint8_t *value;
    size_t len;
    unsigned class; /* of the buffer */
    uint32_t number;
    encode_span span;
    bool exported;     /* was offered to the export */
    bool failed;       /* was handed over before */
    bool out;          /* Kafka has it: a report will come */
    int64_t handed_ns; /* first; 0: not yet */
    int64_t backoff_ns;
    loop_timer retry;
} ledger_record;

struct ledger {
    loop *loop;
    destinations *destinations;
    journal *journal;       /* or NULL */
    struct conn_list gated; /* until its next commit; by `due` */
    export_file *export;
    const ledger_events *events;
    size_t record_size;
    buffer *buffers[BUFFER_CLASSES];
    size_t kept;
    bool stopping;
    bool resend; /* settle.unreadable */
    int64_t pinned_ns;
    int64_t taken_ns; /* when the last of all that is acknowledged was handed
                         over */
    int64_t acked_ns; /* when that was */
    int64_t flows_ns; /* since when there was no long pause in that */
    log_limiter log_retry, log_rejected, log_doubt, log_export, log_internal,
        log_pinned;
    log_limiter log_unknown;
};

static void delivered(void *owner, void *record, kafka_result result,
                      int64_t offset, const char *why);
static void ready(void *owner, bool is_ready);
static void free_record(ledger_record *r);

static void settled(void *owner, conn *c, settle_verdict verdict,
                    int64_t offset);

static const kafka_events events = {delivered, ready};

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
    l->destinations = destinations_open(c, loop, &events, settled, l);
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
    buffer *next;

    if (l->export != NULL) {
        export_close(l->export);
    }
    destinations_free(l->destinations);
    for (unsigned i = 0; i < BUFFER_CLASSES; i++) {
        for (buffer *b = l->buffers[i]; b != NULL; b = next) {
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

/* One whose record is encoded already: the room for it is taken, and others
   may be waiting for that. */
static void enlist_first(conn *c) {
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
        enlist_first(c);
    }
}

static void close_conn(ledger *l, conn *c) {
    unlist(c);
    leave_journal(l, c);
    if (!c->slot_returned) {
        pool_return_slot(c->pool, c->slot, c->generation);
        c->slot_returned = true;
        step(STEP_CLOSED);
    }
    l->events->closed(c);
}

/* What could not be looked for must be there to be sent again. */
static void acknowledge(conn *c) {
    const kafka *k = c->destination != NULL ? c->destination->kafka : NULL;

    conn_acknowledge(c, k != NULL && !kafka_readable(k));
}

/* What a successor needs to go on with the connection (wire/layout.h). */
static void show_slot(const conn *c) {
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

/* No record of `c` is unacknowledged: what becomes of the connection? */
static void go_on(ledger *l, conn *c) {
    if (l->journal != NULL) {
        journal_acked(l->journal, c);
    }
    conn_release(c);
    step(STEP_RELEASED);
    if (c->acked_end) {
        close_conn(l, c);
    } else if (c->flushes > 0 && conn_needs_record(c)) {
        enlist(c);
    }
}

void ledger_settle(ledger *l, conn *c) {
    if (c->record != NULL || c->held) {
        return;
    }
    acknowledge(c);
    go_on(l, c);
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
        free_record(c->record); /* no report will come */
    }
    if (c->record != NULL) {
        c->mute = true;
    } else {
        l->events->closed(c);
    }
}

/* ---- records ---- */

static unsigned buffer_class(size_t size) {
    unsigned class = 0;

    while (((size_t)1 << (BUFFER_MIN_SHIFT + class)) < size) {
        class ++;
    }
    return class;
}

static size_t buffer_size(unsigned class) {
    return (size_t)1 << (BUFFER_MIN_SHIFT + class);
}

static uint8_t *take_buffer(ledger *l, unsigned class) {
    buffer *b = l->buffers[class];

    if (b == NULL) {
        return malloc(buffer_size(class));
    }
    l->buffers[class] = b->next;
    l->kept -= buffer_size(class);
    return (uint8_t *)b;
}

static void put_buffer(ledger *l, uint8_t *value, unsigned class) {
    buffer *b = (buffer *)(void *)value;

    if (l->kept + buffer_size(class) > BUFFERS_KEPT) {
        free(value);
        return;
    }
    b->next = l->buffers[class];
    l->buffers[class] = b;
    l->kept += buffer_size(class);
}

/* Of what is handed over and not acknowledged. */
static void count_inflight(ledger_record *r, uint64_t records, uint64_t bytes) {
    metrics_destination *m = &r->conn->destination->metrics;

    metrics_cell[METRIC_INFLIGHT_RECORDS] += records;
    metrics_cell[METRIC_INFLIGHT_BYTES] += bytes;
    m->cell[DESTINATION_INFLIGHT_RECORDS] += records;
    m->cell[DESTINATION_INFLIGHT_BYTES] += bytes;
}

static ledger_record *new_record(ledger *l, conn *c) {
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
    c->destination->inflight += buffer_size(r->class);
    count_inflight(r, 1, 0);
    c->record = r;
    return r;
}

static void free_record(ledger_record *r) {
    ledger *l = r->ledger;

    r->conn->record = NULL;
    loop_timer_cancel(l->loop, &r->retry);
    r->conn->destination->inflight -= buffer_size(r->class);
    count_inflight(r, (uint64_t)-1, -(uint64_t)r->len);
    put_buffer(l, r->value, r->class);
    free(r);
}

/*
 * The whole intent before the record can reach Kafka; `number` makes it so.
 * The slot's last one may still be there: of a connection that was abandoned.
 */
static void write_intent(const ledger_record *r) {
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

static void intent_acked(const conn *c) {
    if (!c->slot_returned && pool_owned(c->pool)) {
        atomic_store_explicit(
            &cap_intent_at(c->pool->header, &c->pool->geometry, c->slot)->acked,
            1, memory_order_release);
        step(STEP_INTENT_ACKED);
    }
}

static void intent_done(const conn *c) {
    if (!c->slot_returned && pool_owned(c->pool)) {
        atomic_store_explicit(
            &cap_intent_at(c->pool->header, &c->pool->geometry, c->slot)
                 ->number,
            0, memory_order_release);
        step(STEP_INTENT_DONE);
    }
}

/* ---- a connection that cannot go on ---- */

/*
 * Its exchanges end as `reason`, or as `with_eom` where the topic has the
 * request.  `farewell`: what the topic has of it is ended there.
 */
static void abandon(ledger *l, conn *c, unsigned reason, unsigned with_eom,
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
        free_record(c->record);
    }
    if (c->record != NULL) {
        leave_journal(l, c);
        c->mute = true; /* until its report */
        return;
    }
    if (end == NULL) {
        close_conn(l, c);
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
    abandon(l, c, CAP_PINNED, CAP_RESPONSE, false);
}

/* ---- reports ---- */

/*
 * The record of this number is in the topic.  The order of the stores is the
 * point: after the first a successor does the rest again, before it the record
 * is in doubt; blocks go back last, in go_on().
 */
static void confirmed(ledger *l, conn *c, uint32_t number, int64_t offset) {
    cap_slot *s = cap_slot_at(c->pool->header, &c->pool->geometry, c->slot);

    c->next_number = number + 1;
    c->until_seq = 0;
    c->waits_ns = 0;
    step(STEP_REPORTED);
    intent_acked(c);
    if (offset >= 0 && !c->slot_returned && pool_owned(c->pool)) {
        s->last_offset = offset;
        step(STEP_LAST_OFFSET);
    }
    acknowledge(c);
    step(STEP_ACKNOWLEDGED);
    show_slot(c);
    intent_done(c);
    go_on(l, c);
}

static void acked(ledger *l, ledger_record *r, int64_t offset) {
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
    free_record(r);
    confirmed(l, c, number, offset);
}

static void retry_due(loop_timer *timer) {
    ledger_record *r =
        (ledger_record *)(void *)((char *)timer -
                                  offsetof(ledger_record, retry));

    enlist_first(r->conn);
}

static void retry_later(ledger *l, ledger_record *r) {
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
    free_record(r);
    abandon(l, c, CAP_RECORD_REJECTED, CAP_RESPONSE, true);
}

/* ---- doubt ---- */

/* The record from c->send to until_seq and until_byte may be in the topic. */
static void look_for(ledger *l, conn *c) {
    c->held = true;
    c->waits_ns = c->waits_ns != 0 ? c->waits_ns : loop_now_ns(l->loop);
    if (settle_add(c->destination->settle, c) != 0) {
        settled(l, c, SETTLE_UNREADABLE, -1);
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
    free_record(r);
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
        abandon(l, c, CAP_MAYBE_LOST, CAP_MAYBE_LOST, false);
        return;
    }
    rename_slot(c);
    conn_restart(c, from_seq);
    metrics_cell[METRIC_CONNECTIONS_RENAMED]++;
    acknowledge(c);
    step(STEP_ACKNOWLEDGED);
    show_slot(c);
    intent_done(c);
    conn_mark(c);
    if (l->journal != NULL) {
        journal_renamed(l->journal, c);
    }
    go_on(l, c);
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
        abandon(l, c, CAP_MAYBE_LOST, CAP_MAYBE_LOST, false);
        return;
    }
    write_plan(c, &plan);
    carry_out(l, c, plan.from_seq, c->renames + 1);
}

/* The queue passes over a record that is in the topic. */
static void skip_record(conn *c) {
    conn_skip(c);
    c->sent_requests = c->until_requests;
    c->sent_unterminated = c->until_unterminated;
}

static void settled(void *owner, conn *c, settle_verdict verdict,
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
        acknowledge(c);
        conn_release(c);
    } else if (i != NULL) {
        reason = with_eom = CAP_MAYBE_LOST;
    }
    if (c->acked_end) {
        close_conn(l, c);
    } else {
        abandon(l, c, reason, with_eom, false);
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

static void delivered(void *owner, void *record, kafka_result result,
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
        free_record(r);
        l->events->closed(c);
        return;
    }
    if (l->stopping && result != KAFKA_ACKED) {
        free_record(r);
        return;
    }
    metrics_cell[METRIC_RECORDS_FAILED] += result != KAFKA_ACKED;
    d->metrics.cell[DESTINATION_RECORDS_FAILED] += result != KAFKA_ACKED;
    switch (result) {
    case KAFKA_ACKED:
        acked(l, r, offset);
        break;
    case KAFKA_NOT_PERSISTED:
        log_limited(&l->log_retry, LOG_LEVEL_WARN,
                    "record %" PRIu32 " of %.*s%s was not taken: %s; it will "
                    "be sent again",
                    r->number, (int)c->id_len, c->id, d->to, why);
        retry_later(l, r);
        break;
    case KAFKA_REJECTED:
        rejected(l, r, why);
        break;
    case KAFKA_IN_DOUBT:
        in_doubt(l, r, why);
        break;
    }
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
        acked(l, r, -1);
        return;
    }
    log_limited(&l->log_export, LOG_LEVEL_ERROR,
                "the export does not take records, and there is no broker: "
                "they wait");
    retry_later(l, r);
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
    ledger_record *r = new_record(l, c);
    const kafka *k = c->destination->kafka;
    size_t limit = ledger_record_limit(l, c);
    size_t cap;

    if (r == NULL) {
        log_limited(&l->log_internal, LOG_LEVEL_ERROR,
                    "out of memory for a record");
        return false;
    }
    cap = buffer_size(r->class) < limit ? buffer_size(r->class) : limit;
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
        free_record(r);
        return true;
    }
    count_inflight(r, 0, r->len);
    metrics_observe(HISTOGRAM_RECORD_SIZE, r->len);
    conn_mark(c); /* what did not fit follows at once */
    write_intent(r);
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
            abandon(l, c, CAP_INTERNAL, CAP_RESPONSE, false);
            return true;
        }
    }
    unlist(c);
    if (!passes_gate(l, c)) {
        return true;
    }
    if (hand_over(l, c->record) != 0) {
        enlist_first(c);
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
