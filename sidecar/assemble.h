/*
 * A worker's frames, sorted into connections: the grammar of wire/frame.h is
 * enforced, times are made sound, and it is decided when a connection is due.
 *
 *   due at once   the exchange ends; a client waits for an endOfMessage; the
 *                 connection ends; a record is full
 *   due later     1 s (flush.time) after the first unsent observation, and
 *                 sooner when the pool is half full: the oldest first
 *
 * After its first waited request a connection's exchanges no longer flush at
 * their end: so the next wait need not queue behind that record.
 *
 * One `assemble` a pool.  Conns are its own; the ledger gives them back.
 */
#ifndef SIDECAR_ASSEMBLE_H
#define SIDECAR_ASSEMBLE_H

#include <stdbool.h>
#include <stdint.h>

#include "sidecar/ledger.h"
#include "sidecar/loop.h"
#include "sidecar/pool.h"

typedef struct assemble assemble;

/* What the ledger reports; for ledger_new. */
extern const ledger_events assemble_events;

/* NULL: out of memory.  All three must outlive it. */
assemble *assemble_new(pool *p, ledger *lg, loop *l, int64_t flush_ns);

/*
 * After pool_adopt: takes over the connections that are open in the pool.
 * NULL, or why the link must end.  What they had in work goes on, and what is
 * in doubt is settled, from assemble_adopted on: to be called when all frames
 * that pool_is_old have been read.
 */
const char *assemble_adopt(assemble *a);
bool assemble_adopting(const assemble *a);
void assemble_adopted(assemble *a);

/* Everything is left alone, unsent and uncounted.  Some connections may be
   there until the reports of their records. */
void assemble_discard(assemble *a);

/* After ledger_stop, or when it is empty. */
void assemble_free(assemble *a);

/* Before the frames of a turn: looks at the clocks. */
void assemble_turn(assemble *a);

/* CAP_NONE, or why the link must end (lost reasons), with *why in words. */
enum cap_reason assemble_frame(assemble *a, const pool_frame *f,
                               const char **why);

/*
 * After the frames of a turn: makes the oldest due if the pool fills up; when it
 * is nearly full, gives up what waits for Kafka the longest, alone (ledger.h).
 */
void assemble_relieve(assemble *a);

/* Makes everything due. */
void assemble_flush(assemble *a);

/*
 * No frame will come any more.  CAP_WORKER_EXIT: what was read is sent, and
 * every open connection is closed.  Else: the link broke the rules, what is
 * unsent is lost(reason), and what the topic has is ended there.
 */
void assemble_end(assemble *a, enum cap_reason reason);

/* Time (CLOCK_REALTIME, ns) of the oldest frame that is held; 0: there is none.
   Looks at every connection: for who asks now and then. */
int64_t assemble_oldest_ns(const assemble *a);

/* No connection is left. */
bool assemble_empty(const assemble *a);

#endif
