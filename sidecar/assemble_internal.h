/*
 * What assemble.c, assemble_due.c and assemble_adopt.c share.
 */
#ifndef SIDECAR_ASSEMBLE_INTERNAL_H
#define SIDECAR_ASSEMBLE_INTERNAL_H

#include "sidecar/assemble.h"

/* Of each slot: the connection in it, or the last one that was. */
typedef struct {
    conn *conn;
    uint32_t generation;
    uint8_t reason; /* that one was abandoned; its frames may still come */
    bool used;
} slot_entry;

struct assemble {
    pool *pool;
    ledger *ledger;
    loop *loop;
    bool adopting; /* frames come that another owner may have done */
    int64_t flush_ns;
    int64_t earliest_ns, latest_ns; /* that a time may be, in this turn */
    slot_entry *slots;
    /* where the pool's topics go; NULL: nowhere, once they are `known` */
    struct destination *topics[CAP_TOPIC_NAMES + 1];
    bool known[CAP_TOPIC_NAMES + 1];
    struct conn_list conns; /* all of them */
    struct conn_list timed; /* the first unsent the longest ago */
    loop_timer timer;
    loop_timer relief; /* while the pool is nearly full */
};

/* ---- assemble.c ---- */

/* NULL with *why: the slot is not to be believed; without: out of memory. */
conn *assemble_open_conn(assemble *a, uint32_t slot, uint32_t generation,
                         const char **why);

/* 0, or -1: out of memory, and the connection is given up. */
int assemble_end_conn(assemble *a, conn *c, enum cap_reason reason);

/* Within a day of now, and not before the connection's last. */
int64_t assemble_sound_time(const assemble *a, conn *c, int64_t ts_ns);

/* ---- assemble_due.c ---- */

void assemble_timer_due(loop_timer *timer);
void assemble_relief_due(loop_timer *timer);

void assemble_flush_conn(assemble *a, conn *c);
void assemble_untime(assemble *a, conn *c);

/* Something was appended that need not go at once. */
void assemble_queued(assemble *a, conn *c);

/* ---- assemble_adopt.c ---- */

/* Whether the last owner has done with this frame. */
bool assemble_is_done(const assemble *a, const cap_frame *f);

/* Of a request that is acknowledged in part, and could be sent again.  False:
   out of memory. */
bool assemble_keep(assemble *a, const pool_frame *f);

#endif
