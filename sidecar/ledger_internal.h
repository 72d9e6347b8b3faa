/*
 * What the ledger's files share (ledger.h):
 *
 *   ledger.c         who is due, who waits for the journal, who is abandoned, and
 *                    what is handed over
 *   ledger_record.c  records: their buffers, and their intents in the pool
 *   ledger_report.c  what became of them: acknowledged, again, refused, in doubt;
 *                    and what a dead owner had handed over
 */
#ifndef SIDECAR_LEDGER_INTERNAL_H
#define SIDECAR_LEDGER_INTERNAL_H

#include "sidecar/destination.h"
#include "sidecar/encode.h"
#include "sidecar/export.h"
#include "sidecar/journal.h"
#include "sidecar/ledger.h"
#include "sidecar/log.h"

#define LEDGER_BUFFERS 11 /* sizes of them: 2 KiB to 2 MiB */

typedef struct ledger_buffer {
    struct ledger_buffer *next;
} ledger_buffer;

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
    ledger_buffer *buffers[LEDGER_BUFFERS];
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

/* ---- ledger.c ---- */

/* One whose record is encoded already: the room for it is taken, and others
   may be waiting for that. */
void ledger_enlist_first(conn *c);

/* What could not be looked for must be there to be sent again. */
void ledger_acknowledge(conn *c);

/* What a successor needs to go on with the connection (wire/layout.h). */
void ledger_show_slot(const conn *c);

/* No record of `c` is unacknowledged: what becomes of the connection? */
void ledger_go_on(ledger *l, conn *c);

void ledger_close_conn(ledger *l, conn *c);

/*
 * Its exchanges end as `reason`, or as `with_eom` where the topic has the
 * request.  `farewell`: what the topic has of it is ended there.
 */
void ledger_abandon(ledger *l, conn *c, unsigned reason, unsigned with_eom,
                    bool farewell);

/* ---- ledger_record.c ---- */

/* c->record, empty; NULL: out of memory. */
ledger_record *ledger_record_new(ledger *l, conn *c);
void ledger_record_free(ledger_record *r);

size_t ledger_buffer_size(unsigned class);

/* Of what is handed over and not acknowledged. */
void ledger_count_inflight(ledger_record *r, uint64_t records, uint64_t bytes);

/* The whole intent, before the record can reach Kafka; that it is acknowledged;
   that its slot says so. */
void ledger_write_intent(const ledger_record *r);
void ledger_intent_acked(const conn *c);
void ledger_intent_done(const conn *c);

/* ---- ledger_report.c ---- */

void ledger_acked(ledger *l, ledger_record *r, int64_t offset);
void ledger_retry_later(ledger *l, ledger_record *r);

/* kafka_events and settle_verdict_cb */
void ledger_delivered(void *owner, void *record, kafka_result result,
                      int64_t offset, const char *why);
void ledger_settled(void *owner, conn *c, settle_verdict verdict,
                    int64_t offset);

#endif
