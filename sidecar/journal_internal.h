/*
 * What the journal's files share (journal.h):
 *
 *   journal.c         opening and closing, turns, what is done with a group
 *   journal_conns.c   what there is of a connection: its frames and intents
 *   journal_pools.c   whose pool is right, and whose is recovered
 *   journal_thread.c  the helper thread, which alone waits for the disk
 */
#ifndef SIDECAR_JOURNAL_INTERNAL_H
#define SIDECAR_JOURNAL_INTERNAL_H

#include <pthread.h>

#include "sidecar/journal.h"
#include "sidecar/journal_db.h"
#include "sidecar/log.h"

typedef struct journal_conn {
    conn *conn;
    bool live;         /* has frames in the journal, not all acknowledged */
    bool open;         /* an exchange is, behind last_seq */
    bool held;         /* last_seq is a HOLD: the endOfMessage is to come */
    uint64_t key;      /* of its rows, now and the next time */
    uint64_t last_seq; /* the last frame there */
    uint32_t first_chunk, next_chunk, room;
    uint64_t *chunk_seq;
    uint32_t *chunk_bytes;
    uint32_t intent;  /* number of the record whose intent is there, or 0 */
    uint64_t allowed; /* the commit after which records may go */
    struct journal_op *op; /* in group op_commit */
    uint64_t op_commit;
    uint64_t put_seq[2]; /* by group: what its commit releases; 0: nothing */
    TAILQ_ENTRY(journal_conn) put[2];
    TAILQ_ENTRY(journal_conn) all;
} journal_conn;

TAILQ_HEAD(journal_conns, journal_conn);

enum journal_job { JOURNAL_JOB_COMMIT, JOURNAL_JOB_OPEN, JOURNAL_JOB_RECOVER };

/* What one commit writes; `put`: whom it releases. */
typedef struct {
    uint64_t commit;
    struct journal_ops ops;
    size_t bytes;
    bool force; /* a client waits */
    bool soon;  /* a record does */
    struct journal_conns put;

    /* the helper's */
    enum journal_job job;
    char node_id[CAP_NODE_ID_SIZE];
    bool failed, damaged;
    bool later; /* what is to be recovered has no room now */
    char why[JOURNAL_WHY_SIZE];
    int64_t took_ns;
    journal_node *nodes;
    size_t nnodes;
    uint64_t key;
    journal_recovered found;
} journal_group;

enum journal_known_state {
    NODE_WAITING, /* for its pool, or its time */
    NODE_LOST,    /* of another boot: what else there is was not synced */
    NODE_RECOVERING,
    NODE_TAKEN,     /* its pool is here, or was, and is right */
    NODE_RECOVERED, /* and what comes later is not */
    NODE_MADE       /* it was recovered by an owner before us */
};

/* A pool whose nodeId is known. */
typedef struct {
    char id[CAP_NODE_ID_SIZE];
    enum journal_known_state state;
    bool made; /* anew: what the worker itself has is not right any more */
    int64_t due_ns;
} journal_known;

struct journal {
    const config *config;
    loop *loop;
    const journal_events *events;
    void *owner;
    char dir[480];
    bool puts;   /* durability = disk */
    bool broken; /* cannot be written */
    loop_io ready;
    loop_timer lazy, again, patience;
    bool lazy_due, again_due;

    journal_group groups[2];
    journal_group *filling, *running; /* running: NULL or the other one */
    uint64_t durable;                 /* the last commit that is on the disk */
    uint64_t key;
    uint64_t bytes; /* of frames in it */
    struct journal_conns conns;
    journal_known *nodes;
    size_t nnodes;
    journal_recovered *adopting; /* while it is handed to the link stage */
    const char *adopting_id;
    log_limiter log_full;

    /* shared with the helper */
    pthread_t thread;
    bool started;
    pthread_mutex_t lock;
    pthread_cond_t changed;
    journal_group *given, *done;
    bool quit;

    /* the helper's alone */
    journal_db *db;
};

/* ---- journal_thread.c ---- */

/* 0, or -1 with errno. */
int journal_thread_start(journal *j);
/* After the group that was given to it. */
void journal_thread_end(journal *j);

/* The group that is being filled is the thread's until it is j->done; another one
   is filled then.  Only while none is running. */
void journal_give(journal *j, enum journal_job job);

/* ---- journal_conns.c ---- */

/* In the group that is being filled; NULL: out of memory. */
journal_op *journal_new_op(journal *j, enum journal_op_kind kind);
void journal_free_ops(journal_group *g);
void journal_free_conn(journal *j, journal_conn *jc);
void journal_show_bytes(const journal *j);

/* ---- journal_pools.c ---- */

/* All that is written down of a node was ours, or is dropped before.  False: it
   is not, and cannot be told apart. */
bool journal_note_pool(journal *j, pool *p);

/*
 * It has been opened.  What is there of pools that came here while it could not
 * be, or was ours before it could not be written: they are right, or were
 * recovered.  Of others it is looked at in time.  Returns how many may still come.
 */
unsigned journal_pools_there(journal *j, const journal_group *g);

/* It was removed. */
void journal_pools_gone(journal *j);

/* The next pool that nobody has offered in time. */
journal_known *journal_next_pool(journal *j);

/* What is at hand is a pool whose worker has gone. */
void journal_pool_found(journal *j, journal_group *g);

#endif
