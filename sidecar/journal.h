/*
 * The journal: with `durability = disk`, what a request waits for is the disk.
 *
 *   frames of a connection up to one that a client waits for,
 *   and the intent of each of its records ----> group ----> helper thread:
 *                                                           one commit
 *        slot.synced = that frame, the worker is rung  <---- an eventfd
 *        the record is handed to Kafka
 *
 * It stands beside the pool and is read only when that is gone: the host has
 * died, or worker and sidecar together.  While the pool is there, it alone says
 * what is acknowledged and what is in doubt.  What is in the journal of a
 * connection is what a successor could find in the pool at some moment: its slot,
 * its intent, and its frames from the first unacknowledged one on, up to some
 * frame.  Nothing is produced beyond what a commit on the disk says: so
 *
 *   - a record of a connection that has unacknowledged frames here waits for the
 *     commit of its intent
 *   - the first record after that, for the commit that forgets the connection
 *   - a record of a pool that was taken over, for the one that forgets the pool
 *
 * Connections without waits are not in it, and no record of theirs waits.
 *
 * When it is opened there are pools' nodeIds.  Another boot: their memory is
 * gone, and they are recovered at once.  The same: a worker may live and offer
 * its pool, or another keeper: so they wait for JOURNAL_PATIENCE_NS, and from
 * then on that pool is refused.  A recovered pool is handed to the link stage as
 * one whose worker has gone.  What this process has had of pools meanwhile is
 * right, and dropped there.
 *
 * A pool that was settled is counted when the journal has forgotten it.
 *
 * Where it cannot be written it is removed, since it would be out of date, and
 * begun again every 5 s; meanwhile requests wait for Kafka.
 *
 * Memory: a group, at most JOURNAL_GROUP_SIZE, and the one before it; 150 B for
 * a connection that has waited.  Disk: journal.size of frames.
 */
#ifndef SIDECAR_JOURNAL_H
#define SIDECAR_JOURNAL_H

#include <stdbool.h>
#include <stdint.h>

#include "sidecar/config.h"
#include "sidecar/conn.h"
#include "sidecar/loop.h"

#define JOURNAL_PATIENCE_NS 30000000000ll
#define JOURNAL_GROUP_SIZE (16u << 20)

typedef struct journal journal;

typedef struct {
    /* Records that had to wait may be tried again. */
    void (*committed)(void *owner);
    /* A pool that was recovered (links_adopt_recovered); `fd` stays ours. */
    int (*recovered)(void *owner, int fd, const char **why);
} journal_events;

/*
 * Opens DIR/journal of c->spool_path and starts the helper thread; waits for the
 * disk.  With durability = kafka only if there is one, to recover what is in it;
 * else *j is NULL.  One that cannot be opened is tried again.  0, or -1 after a
 * line in the log.  All must outlive it.
 */
int journal_open(journal **j, const config *c, loop *l,
                 const journal_events *events, void *owner);

/* Commits what is due, and ends the thread.  After every connection has been
   discarded. */
void journal_close(journal *j);

/*
 * The queue of `c` up to its end goes with the next group; when that is on the
 * disk slot.synced says so.  Nothing where there is no room, which is counted:
 * then Kafka's acknowledgement releases.
 */
void journal_put(journal *j, conn *c);

/* The queue's last frame has this type: goes, too, where the journal has a part
   of its request, and would make something else of it. */
void journal_put_more(journal *j, conn *c, enum cap_frame_type type);

/*
 * Whether record `number` of `c`, whose intent is in its slot, may be handed
 * over; `last`: it ends the connection.  If not: again after `committed`.
 */
bool journal_allows(journal *j, conn *c, uint32_t number, bool last);

/* No record of `c` is unacknowledged now, and its slot says so. */
void journal_acked(journal *j, conn *c);

/* The connection is abandoned, nothing of it is to be recovered. */
void journal_forget(journal *j, conn *c);

/* The connection begins anew, under another name: what is there is replaced. */
void journal_renamed(journal *j, conn *c);

/* `c` goes; what is in the journal of it stays. */
void journal_leave(journal *j, conn *c);

/* A connection of a pool that has had an owner, its slot restored. */
void journal_adopt_conn(journal *j, conn *c);

/* A pool that has had an owner is to be taken over: NULL, or why it must be
   refused: it is recovered already. */
const char *journal_may_adopt(const journal *j, const pool *p);

/* It is taken over, and nothing of it sent yet: it is right, and the journal is
   not.  NULL, or why it must be refused. */
const char *journal_adopt_pool(journal *j, pool *p);

/* Whether it has something of a worker whose pool has not come. */
bool journal_has_node(const journal *j, const char *node_id);

/* All of a pool is settled: whether the journal has forgotten it, so that it may
   be counted and go.  If not: again after `committed`. */
bool journal_has_forgotten(journal *j, pool *p);

/* For the loop's hook, behind the ledger's turn: hands the group over, unless
   one is being written. */
void journal_turn(journal *j);

/* Waits until no group is being written.  For tests. */
void journal_wait(journal *j);
/* Without committing what is due, as if the host had died. */
void journal_abort(journal *j);

#endif
