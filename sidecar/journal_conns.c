#include "sidecar/journal_internal.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "sidecar/metrics.h"

static void empty_op(journal_op *op) {
    free(op->frames);
    op->frames = NULL;
    op->len = op->room = 0;
}

void journal_free_ops(journal_group *g) {
    journal_op *op;

    while ((op = TAILQ_FIRST(&g->ops)) != NULL) {
        TAILQ_REMOVE(&g->ops, op, all);
        empty_op(op);
        free(op);
    }
    g->bytes = 0;
    g->force = g->soon = false;
}

static void unput(journal_conn *jc, journal_group *g) {
    unsigned i = (unsigned)(g->commit & 1);

    if (jc->put_seq[i] != 0) {
        jc->put_seq[i] = 0;
        TAILQ_REMOVE(&g->put, jc, put[i]);
    }
}

void journal_show_bytes(const journal *j) {
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
    journal_show_bytes(j);
}

void journal_free_conn(journal *j, journal_conn *jc) {
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

/* ---- what a group says of one ---- */

journal_op *journal_new_op(journal *j, enum journal_op_kind kind) {
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
        jc->op = journal_new_op(j, JOURNAL_KEEP);
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

/* ---- its frames ---- */

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
    journal_show_bytes(j);
    snapshot(op, c);
    return true;
}

/* ---- what becomes of it ---- */

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
    if (jc == NULL && !journal_note_pool(j, c->pool)) {
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
        journal_free_conn(j, c->journal);
    }
}

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
    journal_show_bytes(j);
}
