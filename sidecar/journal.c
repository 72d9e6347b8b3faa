#include "sidecar/journal.h"

#include <errno.h>
#include <inttypes.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "sidecar/journal_db.h"
#include "sidecar/log.h"
#include "sidecar/metrics.h"
#include "sidecar/step.h"

#define MS 1000000ll
#define LAZY_NS (200 * MS) /* of what nobody waits for */
#define SOON_NS (5 * MS)   /* of what only a record waits for, not a client */
#define AGAIN_NS (5000 * MS)
#define TIDY_BYTES (4u << 20) /* written, until the log is emptied */

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

enum job { JOB_COMMIT, JOB_OPEN, JOB_RECOVER };

/* What one commit writes; `put`: whom it releases. */
typedef struct {
    uint64_t commit;
    struct journal_ops ops;
    size_t bytes;
    bool force; /* a client waits */
    bool soon;  /* a record does */
    struct journal_conns put;

    /* the helper's */
    enum job job;
    char node_id[CAP_NODE_ID_SIZE];
    bool failed, damaged;
    char why[JOURNAL_WHY_SIZE];
    int64_t took_ns;
    journal_node *nodes;
    size_t nnodes;
    uint64_t key;
    journal_recovered found;
} group;

enum node_state {
    NODE_WAITING, /* for its pool, or its time */
    NODE_LOST,    /* of another boot: what else there is was not synced */
    NODE_RECOVERING,
    NODE_TAKEN,    /* its pool is here, or was, and is right */
    NODE_RECOVERED /* and what comes later is not */
};

typedef struct {
    char id[CAP_NODE_ID_SIZE];
    enum node_state state;
    int64_t due_ns;
} node;

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

    group groups[2];
    group *filling, *running; /* running: NULL or the other one */
    uint64_t durable;         /* the last commit that is on the disk */
    uint64_t key;
    uint64_t bytes; /* of frames in it */
    struct journal_conns conns;
    node *nodes;
    size_t nnodes;
    journal_recovered *adopting; /* while it is handed to the link stage */
    const char *adopting_id;
    log_limiter log_full;

    /* shared with the helper */
    pthread_t thread;
    bool started;
    pthread_mutex_t lock;
    pthread_cond_t changed;
    group *given, *done;
    bool quit;

    /* the helper's alone */
    journal_db *db;
    uint64_t written;
};

/* ---- the helper ---- */

static int64_t now_ns(void) {
    struct timespec ts;

    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (int64_t)ts.tv_sec * 1000000000 + ts.tv_nsec;
}

/* What cannot be written any more is out of date soon: it must not be found. */
static void give_up(journal *j, group *g) {
    journal_db_close(j->db);
    j->db = NULL;
    g->failed = true;
    step(STEP_JOURNAL_CLOSED);
    if (journal_db_remove(j->dir) != 0) {
        size_t n = strlen(g->why);

        snprintf(g->why + n, sizeof(g->why) - n,
                 "; and it cannot be removed (%s): do so before this host's "
                 "next start",
                 strerror(errno));
    }
}

static void work(journal *j, group *g) {
    int64_t begun = now_ns();

    g->failed = g->damaged = false;
    if (g->job == JOB_OPEN) {
        j->db = journal_db_open(j->dir, &g->nodes, &g->nnodes, &g->key,
                                &g->damaged, g->why);
        g->failed = j->db == NULL;
        return;
    }
    if (!TAILQ_EMPTY(&g->ops) &&
        journal_db_commit(j->db, &g->ops, g->why) != 0) {
        give_up(j, g);
        return;
    }
    g->took_ns = now_ns() - begun;
    j->written += g->bytes + 8192;
    if (g->job == JOB_RECOVER &&
        journal_db_recover(j->db, g->node_id, &g->found, g->why) != 0) {
        journal_db_close(j->db);
        j->db = NULL;
        (void)journal_db_set_aside(j->dir);
        g->failed = true;
    }
}

static void *helper(void *owner) {
    journal *j = owner;
    uint64_t one = 1;

    pthread_mutex_lock(&j->lock);
    for (;;) {
        while (j->given == NULL && !j->quit) {
            pthread_cond_wait(&j->changed, &j->lock);
        }
        if (j->given == NULL) {
            break;
        }
        group *g = j->given;

        j->given = NULL;
        pthread_mutex_unlock(&j->lock);
        work(j, g);
        pthread_mutex_lock(&j->lock);
        j->done = g;
        pthread_mutex_unlock(&j->lock);
        /* who is woken takes the lock at once */
        pthread_cond_broadcast(&j->changed);
        if (write(j->ready.fd, &one, sizeof(one)) == -1) {
            abort(); /* an eventfd's counter is not full after 2 */
        }
        if (j->db != NULL && j->written > TIDY_BYTES) {
            j->written = 0;
            journal_db_tidy(j->db); /* who waited has been told */
        }
        pthread_mutex_lock(&j->lock);
    }
    pthread_mutex_unlock(&j->lock);
    journal_db_close(j->db);
    j->db = NULL;
    return NULL;
}

static void give(journal *j, enum job job) {
    group *g = j->filling;

    g->job = job;
    j->running = g;
    j->filling = &j->groups[(g->commit + 1) & 1];
    j->filling->commit = g->commit + 1;
    pthread_mutex_lock(&j->lock);
    j->given = g;
    pthread_mutex_unlock(&j->lock);
    pthread_cond_broadcast(&j->changed);
}

/* ---- connections ---- */

static void empty_op(journal_op *op) {
    free(op->frames);
    op->frames = NULL;
    op->len = op->room = 0;
}

static void free_ops(group *g) {
    journal_op *op;

    while ((op = TAILQ_FIRST(&g->ops)) != NULL) {
        TAILQ_REMOVE(&g->ops, op, all);
        empty_op(op);
        free(op);
    }
    g->bytes = 0;
    g->force = g->soon = false;
}

static void unput(journal_conn *jc, group *g) {
    unsigned i = (unsigned)(g->commit & 1);

    if (jc->put_seq[i] != 0) {
        jc->put_seq[i] = 0;
        TAILQ_REMOVE(&g->put, jc, put[i]);
    }
}

static void show_bytes(const journal *j) {
    metrics_cell[METRIC_JOURNAL_BYTES] = j->bytes;
}

/* The chunks before `end` are not needed any more. */
static void drop_chunks(journal *j, journal_conn *jc, uint32_t end) {
    uint32_t n = end - jc->first_chunk, left = jc->next_chunk - end;

    if (n == 0) {
        return;
    }
    for (uint32_t i = 0; i < n; i++) {
        j->bytes -= jc->chunk_bytes[i];
    }
    memmove(jc->chunk_seq, jc->chunk_seq + n, left * sizeof(*jc->chunk_seq));
    memmove(jc->chunk_bytes, jc->chunk_bytes + n,
            left * sizeof(*jc->chunk_bytes));
    jc->first_chunk = end;
    show_bytes(j);
}

static void free_conn(journal *j, journal_conn *jc) {
    drop_chunks(j, jc, jc->next_chunk);
    unput(jc, &j->groups[0]);
    unput(jc, &j->groups[1]);
    TAILQ_REMOVE(&j->conns, jc, all);
    jc->conn->journal = NULL;
    free(jc->chunk_seq);
    free(jc->chunk_bytes);
    free(jc);
}

static journal_conn *new_conn(journal *j, conn *c) {
    journal_conn *jc = calloc(1, sizeof(*jc));

    if (jc != NULL) {
        jc->conn = c;
        c->journal = jc;
        TAILQ_INSERT_TAIL(&j->conns, jc, all);
    }
    return jc;
}

/* ---- a group ---- */

static journal_op *new_op(journal *j, enum journal_op_kind kind) {
    journal_op *op = calloc(1, sizeof(*op));

    if (op != NULL) {
        op->kind = kind;
        TAILQ_INSERT_TAIL(&j->filling->ops, op, all);
        j->filling->bytes += sizeof(*op);
    }
    return op;
}

/* Who it is and where it goes was read once: the worker cannot change it. */
static void identify(journal_op *op, const conn *c) {
    cap_slot *s = &op->slot;

    s->id_len = c->base_len;
    memset(s->id, 0, sizeof(s->id));
    memcpy(s->id, c->id, c->base_len);
    s->renames = c->renames;
    s->cluster = 0;
    s->destination = c->destination_mark;
    snprintf(op->topic, sizeof(op->topic), "%s",
             c->topic != NULL ? c->topic : "");
}

/* Slot and intent as a successor would find them now. */
static void snapshot(journal_op *op, const conn *c) {
    const pool *p = c->pool;

    memcpy(&op->slot, cap_slot_at(p->header, &p->geometry, c->slot),
           sizeof(op->slot));
    memcpy(&op->intent, cap_intent_at(p->header, &p->geometry, c->slot),
           sizeof(op->intent));
    if (op->intent.slot_generation != c->generation) {
        atomic_store_explicit(&op->intent.number, 0, memory_order_relaxed);
    }
    identify(op, c);
}

/* What the group that is being filled says of the connection: one op. */
static journal_op *conn_op(journal *j, journal_conn *jc) {
    if (jc->op_commit != j->filling->commit || jc->op->key != jc->key) {
        jc->op = new_op(j, JOURNAL_KEEP);
        if (jc->op == NULL) {
            jc->op_commit = 0;
            return NULL;
        }
        jc->op_commit = j->filling->commit;
        jc->op->key = jc->key;
        jc->op->done_from = jc->op->done_end = jc->first_chunk;
        jc->op->chunk = JOURNAL_MOST_CHUNKS;
        memcpy(jc->op->node_id, jc->conn->pool->node_id, CAP_NODE_ID_SIZE);
        snapshot(jc->op, jc->conn);
    }
    return jc->op;
}

static void forget(journal *j, journal_conn *jc) {
    journal_op *op = conn_op(j, jc);

    if (op == NULL) {
        return; /* what stays is dropped by the next failure or start */
    }
    empty_op(op);
    op->kind = JOURNAL_FORGET;
    op->chunk = JOURNAL_MOST_CHUNKS;
    op->done_end = jc->next_chunk;
    drop_chunks(j, jc, jc->next_chunk);
    jc->live = false;
    jc->intent = 0;
    jc->allowed = j->filling->commit;
    unput(jc, j->filling);
}

static bool have_room(journal_op *op, size_t more) {
    size_t room = op->room == 0 ? 2048 : op->room;
    uint8_t *frames;

    while (room < op->len + more) {
        room *= 2;
    }
    if (room != op->room) {
        frames = realloc(op->frames, room);
        if (frames == NULL) {
            return false;
        }
        op->frames = frames;
        op->room = room;
    }
    return true;
}

/*
 * How the frame is written down.  One that was taken out of the queue is none,
 * but for the end of an exchange whose beginning is in the journal.
 */
static unsigned type_of(const journal_conn *jc, const frame_ref *r) {
    if (r->flags & CONN_FRAME_LOST) {
        return CAP_FRAME_PAD;
    }
    if (r->type != CAP_FRAME_PAD) {
        return r->type;
    }
    return (r->flags & CONN_FRAME_COUNTS) && jc->open ? CAP_FRAME_DROP
                                                      : CAP_FRAME_PAD;
}

static void note(journal_conn *jc, const frame_ref *r, unsigned type) {
    switch (type) {
    case CAP_FRAME_READ:
        jc->open = true;
        break;
    case CAP_FRAME_END:
    case CAP_FRAME_DROP:
    case CAP_FRAME_ABANDON:
        jc->open = false;
        break;
    default:
        break;
    }
    jc->held = type == CAP_FRAME_HOLD;
    jc->last_seq = r->seq;
}

static void add_frame(journal_conn *jc, journal_op *op, const conn *c,
                      const frame_ref *r) {
    unsigned type = type_of(jc, r);
    size_t space = CAP_FRAME_SPACE(r->size);
    cap_frame f = {.size = r->size,
                   .type = (uint8_t)type,
                   .flags = r->flags & CONN_FRAME_WORKERS,
                   .code = r->code,
                   .slot = c->slot,
                   .slot_generation = c->generation,
                   .seq = r->seq,
                   .ts_ns = r->ts_ns};

    if (type == CAP_FRAME_PAD || (type == CAP_FRAME_DROP && r->size > 0)) {
        jc->last_seq = r->seq;
        return;
    }
    memset(op->frames + op->len, 0, space);
    memcpy(op->frames + op->len, &f, sizeof(f));
    if (r->size > 0) {
        memcpy(op->frames + op->len + sizeof(f), pool_payload(c->pool, r),
               r->size);
    }
    op->len += space;
    note(jc, r, type);
}

/* The first frame that is not in the journal. */
static const frame_ref *first_new(const journal_conn *jc, const conn *c) {
    const frame_ref *r = c->head;

    if (jc->live) {
        while (r != NULL && r->seq <= jc->last_seq) {
            r = r->next;
        }
    }
    return r;
}

static int note_chunk(journal_conn *jc, journal_op *op) {
    uint64_t *seq;
    uint32_t *bytes;

    if (op->chunk != JOURNAL_MOST_CHUNKS) {
        return 0;
    }
    if (jc->next_chunk - jc->first_chunk == jc->room) {
        uint32_t room = jc->room == 0 ? 4 : 2 * jc->room;

        seq = realloc(jc->chunk_seq, room * sizeof(*seq));
        if (seq == NULL) {
            return -1;
        }
        jc->chunk_seq = seq;
        bytes = realloc(jc->chunk_bytes, room * sizeof(*bytes));
        if (bytes == NULL) {
            return -1;
        }
        jc->chunk_bytes = bytes;
        jc->room = room;
    }
    op->chunk = jc->next_chunk++;
    jc->chunk_bytes[op->chunk - jc->first_chunk] = 0;
    return 0;
}

/* The rows of before are replaced where they lie, which dirties fewer pages than
   new ones would. */
static void begin(journal *j, journal_conn *jc) {
    if (jc->key == 0 || jc->next_chunk >= JOURNAL_MOST_CHUNKS / 2) {
        jc->key = j->key++;
        jc->first_chunk = jc->next_chunk = 0;
    }
    jc->last_seq = 0;
    jc->open = jc->conn->acked_open && !jc->conn->acked_lost;
    jc->held = false;
    jc->intent = 0;
}

static bool is_full(journal *j, uint64_t need) {
    if (j->bytes + need <= j->config->journal_size &&
        j->filling->bytes + need <= JOURNAL_GROUP_SIZE) {
        return false;
    }
    metrics_cell[METRIC_JOURNAL_FULL]++;
    log_limited(&j->log_full, LOG_LEVEL_WARN,
                "the journal has no room (journal.size %" PRIu64
                " MiB, or a slow disk): requests wait for Kafka",
                j->config->journal_size >> 20);
    return true;
}

static uint64_t space_of(const frame_ref *r) {
    uint64_t n = 0;

    for (; r != NULL; r = r->next) {
        n += CAP_FRAME_SPACE(r->size);
    }
    return n;
}

/* The queue from `r` to its end, behind what is kept of a request that could be
   sent again.  False: nothing was done. */
static bool put_frames(journal *j, journal_conn *jc, const frame_ref *r) {
    const conn *c = jc->conn;
    const frame_ref *kept = !jc->live && c->keeps ? c->kept : NULL;
    uint64_t need = space_of(kept) + space_of(r);
    journal_op *op;
    size_t before;

    if (is_full(j, need) ||
        (jc->live && jc->next_chunk >= JOURNAL_MOST_CHUNKS - 1)) {
        return false;
    }
    if (!jc->live) {
        begin(j, jc);
    }
    op = conn_op(j, jc);
    if (op == NULL || !have_room(op, need) || note_chunk(jc, op) != 0) {
        if (op != NULL && !jc->live) {
            op->kind = JOURNAL_FORGET;
        }
        return false;
    }
    jc->live = true;
    op->kind = JOURNAL_KEEP;
    before = op->len;
    for (; kept != NULL; kept = kept->next) {
        add_frame(jc, op, c, kept);
    }
    for (; r != NULL; r = r->next) {
        add_frame(jc, op, c, r);
    }
    jc->chunk_seq[op->chunk - jc->first_chunk] = jc->last_seq;
    jc->chunk_bytes[op->chunk - jc->first_chunk] +=
        (uint32_t)(op->len - before);
    j->bytes += op->len - before;
    j->filling->bytes += op->len - before;
    show_bytes(j);
    snapshot(op, c);
    return true;
}

/* ---- pools ---- */

static node *find_node(const journal *j, const char *id) {
    for (size_t i = 0; i < j->nnodes; i++) {
        if (memcmp(j->nodes[i].id, id, CAP_NODE_ID_SIZE) == 0) {
            return &j->nodes[i];
        }
    }
    return NULL;
}

/* NULL: out of memory. */
static node *add_node(journal *j, const char *id, enum node_state state) {
    node *more = realloc(j->nodes, (j->nnodes + 1) * sizeof(*more));

    if (more == NULL) {
        return NULL;
    }
    j->nodes = more;
    more += j->nnodes++;
    *more = (node){.state = state};
    memcpy(more->id, id, CAP_NODE_ID_SIZE);
    return more;
}

/* What is there no more, or settled. */
static void drop_node(journal *j, node *n) {
    *n = j->nodes[--j->nnodes];
}

/* All that is written down of a node was ours, or is dropped before.  False: it
   is not, and cannot be told apart. */
static bool note_pool(journal *j, pool *p) {
    const node *n;

    if (!p->journaled) {
        n = find_node(j, p->node_id);
        if (n == NULL) {
            n = add_node(j, p->node_id, NODE_TAKEN);
        }
        p->journaled = n != NULL && n->state == NODE_TAKEN;
    }
    return p->journaled;
}

static bool forget_node(journal *j, const char *id) {
    journal_op *op = new_op(j, JOURNAL_FORGET_NODE);

    if (op == NULL) {
        return false;
    }
    memcpy(op->node_id, id, CAP_NODE_ID_SIZE);
    j->filling->soon = true;
    return true;
}

bool journal_has_node(const journal *j, const char *node_id) {
    const node *n = find_node(j, node_id);

    return n != NULL && n->state < NODE_TAKEN;
}

const char *journal_may_adopt(const journal *j, const pool *p) {
    const node *n = find_node(j, p->node_id);

    if (n == NULL || j->adopting != NULL || n->state == NODE_WAITING ||
        n->state == NODE_TAKEN) {
        return NULL;
    }
    return "it came too late: what clients waited for in it has been recovered "
           "from the journal";
}

const char *journal_adopt_pool(journal *j, pool *p) {
    node *n = find_node(j, p->node_id);

    if (j->adopting != NULL) {
        p->journaled = true; /* it is what is there */
        return NULL;
    }
    if (n != NULL) {
        if (!forget_node(j, p->node_id)) {
            return pool_no_memory;
        }
        p->journal_commit = j->filling->commit;
    } else {
        n = add_node(j, p->node_id, NODE_TAKEN);
        if (n == NULL) {
            return pool_no_memory;
        }
    }
    n->state = NODE_TAKEN;
    step(STEP_JOURNAL_ADOPTED);
    return NULL;
}

bool journal_has_forgotten(journal *j, pool *p) {
    node *n;

    if (!j->broken) {
        if (p->journaled && forget_node(j, p->node_id)) {
            p->journaled = false;
            p->journal_commit = j->filling->commit;
        }
        if (p->journaled || p->journal_commit > j->durable) {
            return false;
        }
        n = find_node(j, p->node_id);
        if (n != NULL && n->state == NODE_TAKEN) {
            drop_node(j, n);
        }
    }
    step(STEP_JOURNAL_FORGOTTEN);
    return true;
}

/* ---- what is put there ---- */

void journal_put(journal *j, conn *c) {
    journal_conn *jc = c->journal;
    const frame_ref *r;
    unsigned i;

    if (!j->puts || c->slot_returned || c->head == NULL ||
        !pool_owned(c->pool)) {
        return;
    }
    if (j->broken) {
        metrics_cell[METRIC_JOURNAL_FULL]++;
        return;
    }
    if (jc == NULL && !note_pool(j, c->pool)) {
        metrics_cell[METRIC_JOURNAL_FULL]++;
        return;
    }
    if (jc == NULL) {
        jc = new_conn(j, c);
    }
    r = jc != NULL ? first_new(jc, c) : NULL;
    if (r == NULL || !put_frames(j, jc, r)) {
        return;
    }
    i = (unsigned)(j->filling->commit & 1);
    if (jc->put_seq[i] == 0) {
        TAILQ_INSERT_TAIL(&j->filling->put, jc, put[i]);
    }
    jc->put_seq[i] = jc->last_seq;
    j->filling->force = true;
    metrics_cell[METRIC_JOURNAL_PUTS]++;
}

void journal_put_more(journal *j, conn *c, enum cap_frame_type type) {
    const journal_conn *jc = c->journal;

    if (jc != NULL && jc->live && (type == CAP_FRAME_DROP || jc->held)) {
        journal_put(j, c);
    }
}

static void journal_intent(journal *j, journal_conn *jc, uint32_t number,
                           bool last) {
    const frame_ref *r = last ? first_new(jc, jc->conn) : NULL;
    journal_op *op;

    if (r != NULL && !put_frames(j, jc, r)) {
        forget(j, jc); /* its end would not be known */
        return;
    }
    op = conn_op(j, jc);
    if (op != NULL) {
        snapshot(op, jc->conn);
        jc->intent = number;
        jc->allowed = j->filling->commit;
    }
}

bool journal_allows(journal *j, conn *c, uint32_t number, bool last) {
    journal_conn *jc = c->journal;
    uint64_t needed = c->pool->journal_commit;

    if (j->broken) {
        return true;
    }
    if (jc != NULL) {
        if (jc->live && jc->intent != number && !c->slot_returned) {
            journal_intent(j, jc, number, last);
        }
        needed = jc->allowed > needed ? jc->allowed : needed;
    }
    if (needed <= j->durable) {
        return true;
    }
    if (needed == j->filling->commit) {
        j->filling->soon = true;
    }
    return false;
}

void journal_acked(journal *j, conn *c) {
    journal_conn *jc = c->journal;
    journal_op *op;
    uint32_t end;

    if (jc == NULL || !jc->live || c->slot_returned) {
        return;
    }
    if (c->acked_seq >= jc->last_seq) {
        forget(j, jc);
        return;
    }
    op = conn_op(j, jc);
    if (op == NULL) {
        return;
    }
    for (end = jc->first_chunk;
         !c->keeps && end < jc->next_chunk && end != op->chunk &&
         jc->chunk_seq[end - jc->first_chunk] <= c->acked_seq;
         end++) {
    }
    drop_chunks(j, jc, end);
    op->done_end = end;
    snapshot(op, c);
    jc->intent = 0;
}

void journal_forget(journal *j, conn *c) {
    journal_conn *jc = c->journal;

    if (jc != NULL && jc->live) {
        forget(j, jc);
    }
}

void journal_renamed(journal *j, conn *c) {
    journal_conn *jc = c->journal;

    if (jc != NULL && jc->live) {
        forget(j, jc);
        journal_put(j, c);
    }
}

void journal_leave(journal *j, conn *c) {
    if (c->journal != NULL) {
        free_conn(j, c->journal);
    }
}

/* ---- what was there ---- */

void journal_adopt_conn(journal *j, conn *c) {
    journal_found *f;
    journal_conn *jc;

    if (j->adopting == NULL || c->slot >= j->adopting->n ||
        memcmp(j->adopting_id, c->pool->node_id, CAP_NODE_ID_SIZE) != 0) {
        return;
    }
    f = &j->adopting->conns[c->slot];
    jc = new_conn(j, c);
    if (jc == NULL) {
        return;
    }
    jc->live = true;
    jc->open = f->open;
    jc->key = f->key;
    jc->last_seq = f->last_seq;
    jc->first_chunk = f->first_chunk;
    jc->next_chunk = f->next_chunk;
    jc->room = f->next_chunk - f->first_chunk;
    jc->chunk_seq = f->chunk_seq;
    jc->chunk_bytes = f->chunk_bytes;
    f->chunk_seq = NULL;
    f->chunk_bytes = NULL;
    j->bytes += f->bytes;
    show_bytes(j);
}

/* What is at hand is a pool whose worker has gone. */
static void adopt(journal *j, group *g) {
    node *n = find_node(j, g->node_id);
    journal_recovered *r = &g->found;
    const char *why = "";

    metrics_cell[METRIC_JOURNAL_DAMAGED] += r->damaged;
    if (r->damaged > 0) {
        log_error("journal %s: rows of %" PRIu64 " connections are damaged, "
                  "and lost",
                  j->dir, r->damaged);
    }
    step(STEP_JOURNAL_FOUND);
    j->adopting = r;
    j->adopting_id = g->node_id;
    if (r->n == 0 || j->events->recovered(j->owner, r->fd, &why) == 0) {
        n->state = NODE_RECOVERED;
        metrics_cell[METRIC_RECOVERED] += r->exchanges;
        log_warn("journal: %" PRIu32 " connections with %" PRIu64
                 " exchanges of a worker whose memory is gone are recovered",
                 r->n, r->exchanges);
    } else {
        log_error("journal: %" PRIu32 " connections cannot be recovered now: "
                  "%s; again in 30 s",
                  r->n, why);
        n->state = NODE_LOST;
        n->due_ns = loop_now_ns(j->loop) + JOURNAL_PATIENCE_NS;
    }
    step(STEP_JOURNAL_RECOVERED);
    j->adopting = NULL;
    journal_recovered_free(r);
}

/* ---- what the helper has done ---- */

/*
 * What is there of pools that came here while it could not be opened, or was
 * ours before it could not be written: they are right, or were recovered.  Of
 * others it is looked at in time.  Returns how many may still come.
 */
static unsigned look_at_nodes(journal *j, const group *g) {
    int64_t now = loop_now_ns(j->loop);
    unsigned waiting = 0;

    for (size_t i = 0; i < g->nnodes; i++) {
        const journal_node *there = &g->nodes[i];
        node *n = find_node(j, there->node_id);

        if (n != NULL) {
            log_info("journal: what there is of a worker whose memory is here, "
                     "or was, is dropped");
            (void)forget_node(j, there->node_id);
            continue;
        }
        n = add_node(j, there->node_id, there->lost ? NODE_LOST : NODE_WAITING);
        if (n == NULL) {
            log_error("journal: out of memory: what there is of a worker is "
                      "left to the next start");
            continue;
        }
        n->due_ns = there->lost ? now : now + JOURNAL_PATIENCE_NS;
        waiting += !there->lost;
    }
    return waiting;
}

static void opened(journal *j, group *g) {
    bool was_broken = j->broken;
    unsigned waiting;

    metrics_cell[METRIC_JOURNAL_DAMAGED] += g->damaged;
    if (g->damaged) {
        log_error("journal %s: it is damaged, or of another version, and set "
                  "aside under another name",
                  j->dir);
    }
    j->broken = g->failed;
    if (g->failed) {
        metrics_cell[METRIC_JOURNAL_FAILED]++;
        log_error("journal %s: %s; requests wait for Kafka, and it is tried "
                  "again every 5 s",
                  j->dir, g->why);
        loop_timer_set(j->loop, &j->again, AGAIN_NS);
        return;
    }
    if (was_broken) {
        log_info("journal %s: the journal is open again", j->dir);
    }
    j->key = g->key > j->key ? g->key : j->key;
    waiting = look_at_nodes(j, g);
    if (waiting > 0) {
        log_info("journal: there is something of %u workers; it is recovered "
                 "if their memory is not offered within 30 s",
                 waiting);
    }
}

/* Nothing in it is true any more. */
static void break_down(journal *j, const char *why) {
    journal_conn *jc;

    metrics_cell[METRIC_JOURNAL_FAILED]++;
    log_error("journal %s: %s; it is removed, requests wait for Kafka, and it "
              "is begun again in 5 s",
              j->dir, why);
    j->broken = true;
    while ((jc = TAILQ_FIRST(&j->conns)) != NULL) {
        free_conn(j, jc);
    }
    free_ops(j->filling);
    j->durable = j->filling->commit; /* of no meaning any more */
    for (size_t i = j->nnodes; i-- > 0;) {
        if (j->nodes[i].state < NODE_TAKEN) {
            drop_node(j, &j->nodes[i]);
        }
    }
    j->bytes = 0;
    show_bytes(j);
    loop_timer_set(j->loop, &j->again, AGAIN_NS);
}

/* Clients that waited for these frames are told. */
static void release(group *g) {
    unsigned i = (unsigned)(g->commit & 1);
    journal_conn *jc;

    while ((jc = TAILQ_FIRST(&g->put)) != NULL) {
        conn *c = jc->conn;

        TAILQ_REMOVE(&g->put, jc, put[i]);
        if (!c->slot_returned && pool_owned(c->pool)) {
            atomic_store_explicit(
                &cap_slot_at(c->pool->header, &c->pool->geometry, c->slot)
                     ->synced,
                jc->put_seq[i], memory_order_release);
            step(STEP_JOURNAL_SYNCED);
            pool_wake(c->pool);
        }
        jc->put_seq[i] = 0;
    }
}

static void finish(journal *j) {
    group *g;

    pthread_mutex_lock(&j->lock);
    g = j->done;
    j->done = NULL;
    pthread_mutex_unlock(&j->lock);
    if (g == NULL) {
        return;
    }
    step(STEP_JOURNAL_TOLD);
    j->running = NULL;
    if (g->job == JOB_OPEN) {
        opened(j, g);
        free(g->nodes);
        g->nodes = NULL;
        g->nnodes = 0;
    } else if (g->failed) {
        break_down(j, g->why);
    } else {
        metrics_cell[METRIC_JOURNAL_COMMITS]++;
        metrics_observe(HISTOGRAM_JOURNAL, (uint64_t)g->took_ns);
        release(g);
        if (g->job == JOB_RECOVER) {
            adopt(j, g);
        }
    }
    j->durable = g->commit > j->durable ? g->commit : j->durable;
    free_ops(g);
    j->events->committed(j->owner);
}

static void ready(loop_io *io, uint32_t events) {
    journal *j = (journal *)(void *)((char *)io - offsetof(journal, ready));
    uint64_t n;

    (void)events;
    if (read(io->fd, &n, sizeof(n)) == sizeof(n)) {
        finish(j);
    }
}

/* ---- turns ---- */

static void lazy_due(loop_timer *t) {
    ((journal *)(void *)((char *)t - offsetof(journal, lazy)))->lazy_due = true;
}

static void again_due(loop_timer *t) {
    ((journal *)(void *)((char *)t - offsetof(journal, again)))->again_due =
        true;
}

static void patience_due(loop_timer *t) {
    (void)t; /* journal_turn looks */
}

/* The next pool that nobody has offered in time. */
static node *next_node(journal *j) {
    int64_t now = loop_now_ns(j->loop), first = INT64_MAX;

    for (size_t i = 0; i < j->nnodes; i++) {
        if (j->nodes[i].state > NODE_LOST) {
            continue;
        }
        if (j->nodes[i].due_ns <= now) {
            return &j->nodes[i];
        }
        first = j->nodes[i].due_ns < first ? j->nodes[i].due_ns : first;
    }
    if (first != INT64_MAX && j->patience.heap == 0) {
        loop_timer_set(j->loop, &j->patience, first - now);
    }
    return NULL;
}

/* A sync that no client waits for holds up the next one: so it waits for
   company, a little. */
static void set_lazy(journal *j, int64_t ns) {
    if (j->lazy.heap == 0 || j->lazy.at_ns > loop_now_ns(j->loop) + ns) {
        loop_timer_set(j->loop, &j->lazy, ns);
    }
}

void journal_turn(journal *j) {
    group *g = j->filling;
    node *n;

    if (j->running != NULL) {
        return;
    }
    if (j->broken) {
        if (j->again_due) {
            j->again_due = false;
            give(j, JOB_OPEN);
        }
        return;
    }
    n = next_node(j);
    if (n != NULL) {
        n->state = NODE_RECOVERING;
        memcpy(g->node_id, n->id, sizeof(g->node_id));
        give(j, JOB_RECOVER);
    } else if (g->force || (j->lazy_due && !TAILQ_EMPTY(&g->ops))) {
        j->lazy_due = false;
        loop_timer_cancel(j->loop, &j->lazy);
        give(j, JOB_COMMIT);
    } else if (!TAILQ_EMPTY(&g->ops)) {
        set_lazy(j, g->soon ? SOON_NS : LAZY_NS);
    }
}

void journal_wait(journal *j) {
    pthread_mutex_lock(&j->lock);
    while (j->running != NULL && j->done == NULL) {
        pthread_cond_wait(&j->changed, &j->lock);
    }
    pthread_mutex_unlock(&j->lock);
    if (j->running != NULL) {
        finish(j);
    }
}

/* ---- life ---- */

/* Only to recover: with durability = kafka. */
static bool is_there(const journal *j) {
    struct stat st;
    char path[512];

    snprintf(path, sizeof(path), "%s/journal.db", j->dir);
    return stat(path, &st) == 0;
}

static int start(journal *j) {
    j->ready.fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    j->ready.ready = ready;
    j->lazy.due = lazy_due;
    j->again.due = again_due;
    j->patience.due = patience_due;
    pthread_mutex_init(&j->lock, NULL);
    pthread_cond_init(&j->changed, NULL);
    TAILQ_INIT(&j->conns);
    for (int i = 0; i < 2; i++) {
        TAILQ_INIT(&j->groups[i].ops);
        TAILQ_INIT(&j->groups[i].put);
        j->groups[i].found.fd = -1;
    }
    j->filling = &j->groups[1];
    j->filling->commit = 1;
    j->key = 1;
    if (j->ready.fd == -1 || loop_add(j->loop, &j->ready, EPOLLIN) != 0 ||
        pthread_create(&j->thread, NULL, helper, j) != 0) {
        return -1;
    }
    j->started = true;
    return 0;
}

static void end_thread(journal *j) {
    if (j->started) {
        pthread_mutex_lock(&j->lock);
        j->quit = true;
        pthread_cond_broadcast(&j->changed);
        pthread_mutex_unlock(&j->lock);
        pthread_join(j->thread, NULL);
    }
    if (j->ready.fd != -1) {
        loop_remove(j->loop, &j->ready);
        close(j->ready.fd);
    }
    loop_timer_cancel(j->loop, &j->lazy);
    loop_timer_cancel(j->loop, &j->again);
    loop_timer_cancel(j->loop, &j->patience);
    for (int i = 0; i < 2; i++) {
        free_ops(&j->groups[i]);
    }
    free(j->nodes);
    free(j);
}

int journal_open(journal **into, const config *c, loop *l,
                 const journal_events *events, void *owner) {
    journal *j = calloc(1, sizeof(*j));

    *into = NULL;
    if (j == NULL) {
        log_error("out of memory");
        return -1;
    }
    j->config = c;
    j->loop = l;
    j->events = events;
    j->owner = owner;
    j->puts = c->durability_disk;
    if ((size_t)snprintf(j->dir, sizeof(j->dir), "%s/journal", c->spool_path) >=
        sizeof(j->dir)) {
        log_error("spool.path is too long");
        free(j);
        return -1;
    }
    if (!j->puts && !is_there(j)) {
        free(j);
        return 0;
    }
    if (start(j) != 0) {
        log_error("the journal's thread cannot start: %s", strerror(errno));
        end_thread(j);
        return -1;
    }
    *into = j;
    give(j, JOB_OPEN);
    journal_wait(j);
    return 0;
}

void journal_close(journal *j) {
    if (j == NULL) {
        return;
    }
    journal_wait(j);
    if (!j->broken && !TAILQ_EMPTY(&j->filling->ops)) {
        give(j, JOB_COMMIT);
        journal_wait(j);
    }
    journal_abort(j);
}

void journal_abort(journal *j) {
    journal_conn *jc;

    while ((jc = TAILQ_FIRST(&j->conns)) != NULL) {
        free_conn(j, jc);
    }
    end_thread(j);
}
