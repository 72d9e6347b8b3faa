/*
 * A connectionId and the queue of its frames: what assemble puts in and the
 * ledger takes out.
 *
 *     head ---------------- send ------------------- tail
 *      | in the record that  | in no record yet        |
 *      | is unacknowledged   | (send_byte: what of it  |
 *      |                     |  is in that record)     |
 *
 * At most one record of a connection is unacknowledged (prefix property), so
 * the queue has one cut.  Three views of the connection follow each other
 * through it, each with its own state here: read (grammar; assemble), sent
 * (what the next record must say; encode) and acked (classes; ledger).
 *
 * Not every frame is an observation: END says that an exchange is complete
 * and takes its class once all before it is acknowledged.
 */
#ifndef SIDECAR_CONN_H
#define SIDECAR_CONN_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/queue.h>

#include "sidecar/pool.h"

/* frame_ref.flags, beyond the worker's own (wire/frame.h) */
#define CONN_FRAME_LOST 0x04    /* of an exchange that is passed over */
#define CONN_FRAME_CUT 0x10     /* began an exchange that was taken out */
#define CONN_FRAME_COUNTS 0x20  /* ends an exchange that was taken out */
#define CONN_FRAME_FLUSH 0x40   /* the queue is due up to here */
#define CONN_FRAME_SIDECAR 0x80 /* made by the sidecar */
#define CONN_FRAME_WORKERS (CAP_FRAME_BEGIN | CAP_FRAME_WAIT)

/* Bytes that a frame needs in a record at most, beyond its payload. */
#define CONN_OBSERVATION_COST 48u
#define CONN_END_COST 256u

/* Where in the grammar the frames that were read have come to. */
enum conn_phase {
    CONN_IDLE = 0, /* between exchanges */
    CONN_REQUEST,
    CONN_COMPLETE, /* endOfMessage, and nothing of the response */
    CONN_RESPONSE,
    CONN_ENDED /* nothing more may come */
};

struct ledger_record;
struct destination;
struct journal_conn;

typedef struct conn {
    pool *pool;
    void *home; /* assemble's */
    /* for ever; NULL: it was adopted and is permitted no longer, so that it
       ends with that */
    struct destination *destination;
    const char *topic;         /* its name, as a worker has it; as long-lived */
    uint64_t destination_mark; /* as in cap_slot */
    uint32_t slot;
    uint32_t generation;
    uint8_t id_len;
    uint8_t base_len; /* of it, as the worker has made it */
    char id[CAP_ID_SIZE];
    uint32_t renames;

    /* read */
    uint8_t phase; /* enum conn_phase */
    bool waits;    /* had a waited request: ends do not flush */
    bool lost;     /* the open exchange is passed over to its end */
    int64_t last_ts_ns;
    int64_t opened_ns, begin_ns, eom_ns; /* for metrics; 0: not known */
    frame_ref *begin; /* the open exchange's first frame while unsent */
    frame_ref *eom;   /* its endOfMessage while unsent */

    frame_ref *kept, *kept_tail; /* acknowledged, of the open exchange */
    frame_ref *head, *tail, *send;
    uint32_t send_byte;
    uint32_t unsent;      /* observations, the connection's end not counted */
    uint64_t unsent_cost; /* bytes in a record, at most */
    uint32_t flushes;     /* unsent frames with CONN_FRAME_FLUSH */
    bool unsent_end;      /* the frame that ends the connection is unsent */

    /* sent */
    uint32_t sent_requests; /* endOfMessage in records */
    bool sent_unterminated; /* reads since the last one or requestDropped */

    /* acked */
    bool acked_open;    /* an exchange has begun and not ended */
    bool acked_eom;     /* and its endOfMessage is acknowledged */
    bool acked_end;     /* the connection's end is */
    bool acked_lost;    /* the open exchange is passed over */
    bool keeps;         /* its frames do not go back before its endOfMessage */
    uint64_t acked_seq; /* of the last frame that is */
    uint32_t acked_requests;
    bool acked_unterminated;
    uint32_t next_number; /* of the next record: 1 is the first */
    int32_t partition;    /* -1: not fixed yet */

    struct ledger_record *record; /* unacknowledged, or NULL */
    int64_t waits_ns; /* for Kafka, since its record was handed over first, or
                         was in doubt; 0: for nothing */

    /*
     * A record that was handed over and may or may not be in the topic: it
     * begins at `head`, and ends with byte until_byte of frame until_seq (0:
     * there is none).  Nothing may be sent until that is settled (`held`);
     * where it is not in the topic, the next record is just that.
     */
    uint64_t until_seq;
    uint32_t until_byte;
    uint32_t until_requests; /* sent_requests after it */
    bool until_unterminated; /* and sent_unterminated */
    bool held;
    int64_t low_water;          /* of that record; -1 unknown */
    uint64_t topic_mark;        /* the topic's then; 0 unknown */
    uint32_t resume_byte;       /* adopted: of the first frame, acknowledged */
    cap_intent *adopted;        /* what its last owner left, until it goes on */
    struct settle_doubt *doubt; /* being looked for, or NULL */

    struct journal_conn *journal; /* what the journal has of it, or NULL */
    bool puts_late; /* for the journal, when what `adopted` says is read */

    bool slot_returned; /* abandoned: the slot may be another's now */
    bool mute;          /* nothing may be sent for it any more */

    bool is_timed; /* assemble's: due by itself at due_ns */
    bool is_due;   /* the ledger's: has a record to send */
    bool is_gated; /* as well: its record waits for the journal (by `due`) */
    int64_t due_ns;
    TAILQ_ENTRY(conn) timed;
    TAILQ_ENTRY(conn) due;
    TAILQ_ENTRY(conn) all; /* of its pool */
} conn;

TAILQ_HEAD(conn_list, conn);

/* Puts a frame, now the queue's, at the end. */
void conn_append(conn *c, frame_ref *r);

/* Marks all that is queued as due. */
void conn_mark(conn *c);

/* The open exchange's endOfMessage, while it is unsent, is never to be: the
   request is dropped instead. */
void conn_withdraw_eom(conn *c);

/* Whether the queue holds something that needs a record of its own.  A lone
   end of a connection with no record is none. */
bool conn_needs_record(const conn *c);

/* The encoder has put all of `send` into a record (or it is none): next. */
void conn_advance(conn *c);

/*
 * All that is in records is acknowledged, and with it what comes next and
 * needs no record: exchanges take their class.  The frames stay until
 * conn_release, so that the caller can first write down what is
 * acknowledged.  Only while no record of the connection is unacknowledged.
 * `keep`: frames of a request that begins here stay until its endOfMessage is
 * acknowledged, so that it could be sent again whole.
 */
void conn_acknowledge(conn *c, bool keep);
void conn_release(conn *c);

/* Another owner of the pool has kept this frame. */
void conn_keep(conn *c, frame_ref *r);

/*
 * Takes the open exchange out of the queue, where nothing of it is in a
 * record.  False, and nothing done, where something is.  The frame that ends
 * it must then be appended with CONN_FRAME_COUNTS, and its reason as code.
 */
bool conn_cut_exchange(conn *c);

/* `send` goes back to the beginning: nothing is in a record any more, of the
   first frame but `byte` bytes. */
void conn_rewind(conn *c, uint32_t byte);

/* Everything up to until_seq and until_byte counts as sent. */
void conn_skip(conn *c);

/* Whether `send` is at the end of the record that may be in the topic. */
static inline bool conn_at_until(const conn *c) {
    return c->until_seq != 0 &&
           (c->send == NULL || c->send->seq > c->until_seq ||
            (c->send->seq == c->until_seq && c->send_byte >= c->until_byte &&
             c->send_byte > 0));
}

/*
 * A record is in doubt for good: what of it can be told apart by what comes
 * next.  `again`: requests whose endOfMessage is in that record are sent again
 * and may be there twice; else they are passed over.
 */
typedef struct {
    uint64_t from_seq; /* the first frame that goes on */
    unsigned doubled;  /* requests that may be there twice then */
} conn_plan;

conn_plan conn_plan_rename(const conn *c, bool again);

/* Whether there is room for another name. */
bool conn_can_rename(const conn *c);

/* The id is the `renames`-th one that the worker's leads to; false: it cannot
   be. */
bool conn_rename(conn *c, uint32_t renames);

/*
 * Begins anew, as if no record had been: with frame from_seq, after those of
 * exchanges that are passed over.  They need conn_acknowledge.
 */
void conn_restart(conn *c, uint64_t from_seq);

/* What cap_slot.acked says of it. */
uint64_t conn_acked(const conn *c);

/*
 * Takes out all that is in no record: exchanges that begin there end as
 * `reason` (those that were dropped there, as filtered).
 */
void conn_cut_unsent(conn *c, unsigned reason);

/* Takes out everything; also an exchange partly acknowledged ends as
   `reason`, or as `with_eom` when its endOfMessage is acknowledged. */
void conn_cut_all(conn *c, unsigned reason, unsigned with_eom);

/* Takes out everything and counts nothing; also what is kept. */
void conn_forget(conn *c);

#endif
