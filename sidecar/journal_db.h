/*
 * The journal's file (journal.h): an SQLite database in WAL mode with
 * synchronous = FULL, so that a commit is one fdatasync() of the log.
 *
 *   DIR/journal.db        conns   a row a connectionId: its slot and intent, as
 *                                 wire/layout.h has them, of one moment
 *                         frames  its frames from the slot's `acked` on, many
 *                                 in a row; id = key << 20 | chunk
 *                         meta    the boot that it was written in, the version,
 *                                 and `lost:NODEID` for each pool of a boot
 *                                 before, until it is recovered or dropped;
 *                                 `made:NODEID` for each that was made anew in
 *                                 this boot, until that is over
 *   DIR/journal.db-wal    SQLite's log: keeps its size while it is open, so that
 *                         a commit does not wait for the file system's journal
 *
 * Rows have a checksum.  Used by the journal's helper thread alone; every call
 * here may wait for the disk.
 */
#ifndef SIDECAR_JOURNAL_DB_H
#define SIDECAR_JOURNAL_DB_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/queue.h>

#include "wire/frame.h"
#include "wire/layout.h"

#define JOURNAL_CHUNK_BITS 20
#define JOURNAL_MOST_CHUNKS (1u << JOURNAL_CHUNK_BITS)
#define JOURNAL_WHY_SIZE 192

typedef struct journal_db journal_db;

enum journal_op_kind {
    JOURNAL_KEEP,       /* slot and intent; frames, if there are any */
    JOURNAL_FORGET,     /* all of the connection */
    JOURNAL_FORGET_NODE /* all of node_id */
};

typedef struct journal_op {
    enum journal_op_kind kind;
    uint64_t key;
    char node_id[CAP_NODE_ID_SIZE];
    char topic[CAP_TOPIC_NAME_SIZE]; /* the name that slot.topic stands for */
    cap_slot slot;
    cap_intent intent;
    uint32_t chunk;     /* where `frames` go */
    uint32_t done_from; /* chunks that are not needed any more */
    uint32_t done_end;
    uint8_t *frames; /* as in blocks; the op's own */
    size_t len, room;
    TAILQ_ENTRY(journal_op) all;
} journal_op;

TAILQ_HEAD(journal_ops, journal_op);

/* A pool that was in an older process's hands. */
typedef struct {
    char node_id[CAP_NODE_ID_SIZE];
    bool there; /* it has rows */
    bool lost;  /* before this boot: its memory is gone */
    bool made;  /* anew, by journal_db_recover: that alone may come */
} journal_node;

/* What there is of a connection; frames have the recovered pool's numbers. */
typedef struct {
    uint64_t key;
    uint32_t first_chunk, next_chunk;
    uint64_t *chunk_seq;   /* last frame of each, from first_chunk on */
    uint32_t *chunk_bytes; /* size of each */
    uint64_t last_seq;
    uint64_t bytes;
    bool open; /* an exchange is, behind the last frame */
} journal_found;

typedef struct {
    int fd; /* a pool (wire/layout.h), sealed; or -1 */
    uint32_t n;
    journal_found *conns; /* by slot */
    uint64_t exchanges;
    uint64_t damaged; /* connections of which something could not be read */
} journal_recovered;

/*
 * Opens `dir`/journal.db, or makes it; one that is damaged or of another
 * version is set aside under another name (*damaged).  *nodes (the caller's)
 * are the pools in it, *key the first free one.  NULL with `why`.
 */
journal_db *journal_db_open(const char *dir, journal_node **nodes,
                            size_t *nnodes, uint64_t *key, bool *damaged,
                            char *why);
void journal_db_close(journal_db *db);

/* All of it in one commit that is on the disk afterwards; 0, or -1 with why. */
int journal_db_commit(journal_db *db, const struct journal_ops *ops, char *why);

/* After a commit: the log has its full size.  When there is time: what is in it
   goes to its place. */
bool journal_db_is_untidy(const journal_db *db);
void journal_db_tidy(journal_db *db);

/*
 * Makes a pool of what there is of node_id, and numbers the rows like it, in
 * one commit.  0; 1 with why: there is no room for that pool now, the rows are
 * there still; or -1 with why.
 */
int journal_db_recover(journal_db *db, const char *node_id,
                       journal_recovered *r, char *why);
void journal_recovered_free(journal_recovered *r);

/* Gives the files names that nobody opens.  0, or -1 with errno.  After
   journal_db_close. */
int journal_db_set_aside(const char *dir);

/* What is there is of no use any more: removes the files.  0, or -1 with errno.
   After journal_db_close. */
int journal_db_remove(const char *dir);

#endif
