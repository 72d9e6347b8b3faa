/*
 * The ledger: what was handed to Kafka and what became of it.
 *
 * Connections whose queue is due stand in one line for each destination.
 * ledger_pump takes them from it while there is room: it encodes one record,
 * writes down the intent in the worker's pool, and hands it over.  At most one
 * record of a connection is unacknowledged; what comes meanwhile waits for its
 * report.
 *
 *   report          then
 *   acked           classes, slot, blocks back; the connection goes on
 *   not persisted   the same bytes again after 100 ms, 200 ms, ... 5 s
 *   rejected        the connection is abandoned: lost(record_rejected); what
 *                   the topic has of it is ended by an exception and a close
 *   in doubt        it is looked for in the topic (settle.h), and until then
 *                   nothing more of the connection is sent.  Found: as acked.
 *                   Absent: the same span again under the same number.  Where
 *                   the topic cannot be read the connectionId is given up, and
 *                   the connection goes on under another one: what of it is
 *                   sent again, and may be doubled, or is lost(maybe_lost), is
 *                   conn_plan_rename's to say
 *
 * Without a broker in the configuration the file export is the destination:
 * a record that is written there is acknowledged.
 *
 * Bounds: record buffers together inflight.size, in even shares of the
 * destinations (and one record more each), 8 MiB of free buffers kept.
 */
#ifndef SIDECAR_LEDGER_H
#define SIDECAR_LEDGER_H

#include <stdbool.h>
#include <stddef.h>

#include "sidecar/config.h"
#include "sidecar/conn.h"
#include "sidecar/loop.h"

typedef struct ledger ledger;
typedef struct journal journal;

typedef struct {
    /* Its slot has been returned although the worker did not end it: frames
       that still come for it belong to no one.  `closed` follows. */
    void (*abandoned)(conn *c, unsigned reason);
    /* Nothing refers to it any more: free it. */
    void (*closed)(conn *c);
} ledger_events;

/* Opens Kafka and the export as configured.  NULL after a line in the log. */
ledger *ledger_new(const config *c, loop *l, const ledger_events *events);

/* With durability = disk (journal.h); before any connection. */
void ledger_use_journal(ledger *l, journal *j);

/* The journal has committed: records that had to wait are due again. */
void ledger_ungate(ledger *l);

/* A client waits for what is queued in `c`. */
void ledger_put(ledger *l, conn *c);

/* Of a request that was put: its endOfMessage, written at its release, or that
   it is dropped after all. */
void ledger_put_more(ledger *l, conn *c, enum cap_frame_type type);

/* `c` is one that another owner of its pool had; its slot is restored. */
void ledger_adopt(ledger *l, conn *c);

/* Whether `c` names a broker for its default destination. */
bool ledger_has_kafka(const config *c);

/* Where records go that a worker has for `name`, "" being the default; NULL:
   nowhere, since it is not permitted, which is said in the log. */
struct destination *ledger_destination(ledger *l, const char *name);

/* Of its topic and brokers, as in cap_slot. */
uint64_t ledger_destination_mark(const struct destination *d);

/* What a worker calls it: "" is the default one. */
const char *ledger_destination_name(const struct destination *d);

/* The largest record of `c` in bytes, now. */
size_t ledger_record_limit(const ledger *l, const conn *c);

/* All that is queued in `c` is due.  It may be closed, and gone, afterwards. */
void ledger_flush(ledger *l, conn *c);

/* As far as it needs no record, what is queued takes its class. */
void ledger_settle(ledger *l, conn *c);

/*
 * Of a connection that another owner of the pool had (assemble_adopt), whose
 * unacknowledged frames are queued again: goes on with what c->adopted says of
 * its last record.
 */
void ledger_resume(ledger *l, conn *c);

/* Whether Kafka has not answered for `c` for pinned.time, and has taken what
   was handed to it later. */
bool ledger_is_stuck(const ledger *l, const conn *c);

/* Ends such a connection as lost(pinned): its blocks go back.  Of the record
   that is on its way nothing is counted any more. */
void ledger_give_up(ledger *l, conn *c);

/* Sends nothing more of `c` and counts nothing; `closed` comes at once, or
   with the report of its record. */
void ledger_discard(ledger *l, conn *c);

/* Sends what there is room for.  For the loop's hook. */
void ledger_pump(ledger *l);

/* Nothing is due and nothing unacknowledged. */
bool ledger_idle(const ledger *l);

/* Whether records can be sent now; if not, why. */
bool ledger_ready(const ledger *l, const char **why);
/* HUP: see kafka_reload. */
void ledger_reload(ledger *l);

/*
 * Ends the producer within `within_ns`; nothing is sent afterwards.  What is
 * unacknowledged then stays as it is: pending.
 */
void ledger_stop(ledger *l, int64_t within_ns);
/* After ledger_stop, and after every connection has been discarded. */
void ledger_free(ledger *l);

#endif
