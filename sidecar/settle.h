/*
 * Records that may or may not be in the topic: of a producer that failed, or
 * of a sidecar that died.  Each is looked for, and then it is known.
 *
 * A partition is settled in rounds:
 *
 *   doubts come -> settle.time -> barrier: a record of ours, acknowledged at B
 *                                     |
 *     verdicts  <-  read from the lowest low-water of the doubts up to B
 *                   is it still the same topic?
 *
 * After settle.time nothing that the dead producer had sent can still arrive,
 * so that what is not below B never will be there.  The barrier is a lone
 * `close` under a connectionId of its own, which the contract allows.
 *
 * The partition is read without a group; from its beginning where the low-water
 * is not known.  It cannot be read where we are not permitted, or where the
 * low-water is no longer in the log; nor where the topic of that name is
 * another one than when the record was made, which is asked when all is read.
 */
#ifndef SIDECAR_SETTLE_H
#define SIDECAR_SETTLE_H

#include "sidecar/config.h"
#include "sidecar/conn.h"
#include "sidecar/kafka.h"
#include "sidecar/loop.h"

typedef struct settle settle;

typedef enum {
    SETTLE_FOUND, /* it is in the topic, at `offset` */
    SETTLE_ABSENT,
    SETTLE_UNREADABLE
} settle_verdict;

typedef void (*settle_verdict_cb)(void *owner, conn *c, settle_verdict verdict,
                                  int64_t offset);

/* NULL: out of memory.  All must outlive it. */
settle *settle_new(const config *c, loop *l, kafka *k, settle_verdict_cb cb,
                   void *owner);

/*
 * Looks for record c->next_number of `c` in c->partition, from c->low_water on.
 * The verdict comes later, unless settle_forget comes first.  0, or -1: out of
 * memory.
 */
int settle_add(settle *s, conn *c);

/* Nothing is looked for.  NULL is allowed. */
bool settle_idle(const settle *s);

/* Records that are looked for.  NULL is allowed. */
size_t settle_doubts(const settle *s);

/* No verdict on `c` is wanted any more. */
void settle_forget(settle *s, conn *c);

/* The report of a record that settle has produced (KAFKA_OF_SETTLE). */
void settle_reported(settle *s, void *record, kafka_result result,
                     int64_t offset);

/* Gives no verdict any more; before the producer goes.  NULL is allowed. */
void settle_stop(settle *s);
/* After every connection is discarded.  NULL is allowed. */
void settle_free(settle *s);

#endif
