/*
 * Steps of what is written for a successor (wire/layout.h).
 *
 * step(STEP_X) stands between two stores into a pool.  It keeps the compiler,
 * and a CPU whose stores have no order of their own (arm64), from moving what
 * comes after it to before it, or the reverse.  A release store alone does the
 * half of that: later plain stores may still be moved to before it.  Who reads
 * is a process that begins when this one is dead; between them is the kernel,
 * which has finished all stores that were begun.  So a fence here is enough,
 * and what it orders may be plain.
 *
 * In a build with CAPTURE_KILL_POINTS (make kill-points) a test lets the
 * process die at one: CAPTURE_KILL_POINT=NAME:COUNT in the environment is
 * SIGKILL at the COUNTth time that NAME is reached.
 */
#ifndef SIDECAR_STEP_H
#define SIDECAR_STEP_H

#include <stdatomic.h>

/* X(name, what has just been done) */
#define STEPS(X)                                                               \
    X(INTENT_NONE, "the slot's last intent is taken back")                     \
    X(INTENT_FIELDS, "the intent is written, and not yet valid")               \
    X(INTENT, "it is valid")                                                   \
    X(PRODUCED, "the record is handed to Kafka")                               \
    X(REPORTED, "its report says that it is acknowledged")                     \
    X(INTENT_ACKED, "so says the intent")                                      \
    X(LAST_OFFSET, "the slot has its offset")                                  \
    X(ENDING, "what an exchange will be counted as is shown")                  \
    X(COMMITTED, "the slot says how far it is acknowledged")                   \
    X(COUNTED, "the exchange is counted")                                      \
    X(ENDED, "nothing is about to be counted")                                 \
    X(ACKNOWLEDGED, "the last commit of a record")                             \
    X(SLOT_FIELDS, "the slot's fields, but for acked_bytes")                   \
    X(SLOT, "the slot is written")                                             \
    X(INTENT_DONE, "the intent is taken back")                                 \
    X(RETURN_ENTRY, "a block or slot is in the ring, not yet returned")        \
    X(RETURNED, "it is returned")                                              \
    X(RELEASED, "the record's blocks have gone back")                          \
    X(CLOSED, "the slot has gone back")                                        \
    X(ABANDON_ENDING, "what the abandoned exchanges will be counted as")       \
    X(ABANDON_SLOT, "the abandoned connection's slot has gone back")           \
    X(ABANDON_COUNTED, "its exchanges are counted")                            \
    X(REFUSE_ENDING, "what an exchange for no destination is counted as")      \
    X(REFUSE_SLOT, "its connection's slot has gone back")                      \
    X(REFUSE_COUNTED, "it is counted")                                         \
    X(OWNED, "a dead owner's pool is ours")                                    \
    X(ADOPT_BLOCKS, "its blocks are known")                                    \
    X(ADOPT_SLOT, "one of its slots is known")                                 \
    X(ADOPTED, "all are")                                                      \
    X(MISSING_TOLD, "what it was about to count is counted")                   \
    X(MISSING_LOST, "and what else it had not")                                \
    X(ORPHAN_RETURNS, "a dead worker's returns are taken")                     \
    X(ORPHAN, "its pool is as it would have offered it")                       \
    X(SPENT, "a block of a dead worker's is lent no more")                     \
    X(SPOOLED, "how many blocks of a pool the spool has is shown")             \
    X(POOL_FILE, "a pool is in a file, and that has no name yet")              \
    X(POOL_FILED, "it has")                                                    \
    X(TOTALS_NEW, "the totals' page is being made")                            \
    X(TOTALS, "the totals' other copy is written, and not yet valid")          \
    X(FOLDED, "a settled pool is in the totals")                               \
    X(RETIRED, "and says so itself")                                           \
    X(RESUMED, "one of its connections goes on")                               \
    X(DOUBT, "a record is to be looked for")                                   \
    X(ROUND, "a round of settling begins")                                     \
    X(BARRIER, "its barrier is handed to Kafka")                               \
    X(BARRIER_ACKED, "and acknowledged")                                       \
    X(READ, "a record was read")                                               \
    X(VERDICT, "it is known of one record whether it is there")                \
    X(RENAME_DOUBLING, "what will be counted as doubled")                      \
    X(RENAME_FROM, "the intent says with what the next connectionId begins")   \
    X(RENAME, "and that there will be one")                                    \
    X(RENAME_SLOT, "the slot has it")                                          \
    X(RENAME_DOUBLED, "what may be doubled is counted")                        \
    X(JOURNAL_OPENED, "the journal is open, and knows which pools are lost")   \
    X(JOURNAL_WRITTEN, "a group is in it, and not committed")                  \
    X(JOURNAL_COMMITTED, "it is on the disk")                                  \
    X(JOURNAL_NUMBERED, "a lost pool's rows have the numbers of the next one") \
    X(JOURNAL_TIDIED, "the journal's log has been emptied")                    \
    X(JOURNAL_CLOSED, "it cannot be written, and is closed")                   \
    X(JOURNAL_REMOVED, "its database is removed, and not its log")             \
    X(JOURNAL_TOLD, "the loop knows what became of a group")                   \
    X(JOURNAL_SYNCED, "a slot says how far it is on the disk")                 \
    X(JOURNAL_FOUND, "what is to be a pool again is at hand")                  \
    X(JOURNAL_RECOVERED, "and it is one")                                      \
    X(JOURNAL_ADOPTED, "a pool that was taken over is to be forgotten")        \
    X(JOURNAL_FORGOTTEN, "one that is settled is forgotten")

enum step {
#define X(name, what) STEP_##name,
    STEPS(X)
#undef X
        STEP_COUNT
};

#ifdef CAPTURE_KILL_POINTS
void step_reached(enum step s);
#else
static inline void step_reached(enum step s) {
    (void)s;
}
#endif

static inline void step(enum step s) {
    atomic_thread_fence(memory_order_release);
    step_reached(s);
}

#endif
