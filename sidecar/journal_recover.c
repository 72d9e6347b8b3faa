#define _GNU_SOURCE /* memfd_create */
#include "sidecar/journal_recover.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define SLOT_GENERATION 1u

/* ---- rows ---- */

/* The next frame of a row; false: there is none, or it is cut. */
static bool next_frame(const journal_row *r, size_t *at, cap_frame **frame) {
    cap_frame f;

    if (r->len - *at < sizeof(f)) {
        return false;
    }
    memcpy(&f, r->data + *at, sizeof(f));
    if (f.size > CAP_BLOCK_SIZE - CAP_BLOCK_HEADER - sizeof(f) ||
        CAP_FRAME_SPACE(f.size) > r->len - *at) {
        return false;
    }
    *frame = (cap_frame *)(void *)(r->data + *at);
    *at += CAP_FRAME_SPACE(f.size);
    return true;
}

bool journal_rows_add(journal_rows *r, uint32_t chunk, const void *data,
                      size_t len) {
    journal_row *more = realloc(r->rows, (r->n + 1) * sizeof(*more));
    journal_row *row;
    cap_frame *f;
    size_t at = 0;

    if (more == NULL) {
        return false;
    }
    r->rows = more;
    row = &more[r->n];
    *row = (journal_row){chunk, malloc(len > 0 ? len : 1), len};
    if (row->data == NULL) {
        return false;
    }
    memcpy(row->data, data, len);
    while (next_frame(row, &at, &f)) {
    }
    if (at != len || len == 0) {
        free(row->data);
        return false;
    }
    r->n++;
    return true;
}

static void free_rows(journal_row *rows, uint32_t n) {
    for (uint32_t i = 0; i < n; i++) {
        free(rows[i].data);
    }
    free(rows);
}

void journal_rows_free(journal_rows *r) {
    free_rows(r->rows, r->n);
    *r = (journal_rows){0};
}

/* ---- numbers ---- */

typedef struct {
    uint64_t seq;  /* the new number */
    uint32_t size; /* of that frame; 0: it is none of ours */
    bool exact;    /* it is the very frame */
} place;

/* Where a number of the old pool is: the last frame up to it, or the number
   before the first one. */
static place find(const journal_built *c, uint64_t before, uint64_t seq) {
    place p = {.seq = before};

    for (uint32_t i = 0; i < c->nrows; i++) {
        size_t at = 0;
        cap_frame *f;

        while (next_frame(&c->rows[i], &at, &f)) {
            if (f->seq > seq) {
                return p;
            }
            p.seq++;
            p.size = f->size;
            p.exact = f->seq == seq;
        }
    }
    return p;
}

static void renumber_intent(journal_built *c, uint64_t before) {
    cap_intent *i = &c->intent;
    place first, last;

    i->slot_generation = SLOT_GENERATION;
    if (atomic_load_explicit(&i->number, memory_order_relaxed) == 0) {
        return;
    }
    first = find(c, before, i->first_seq - 1);
    last = find(c, before, i->last_seq);
    if (!find(c, before, i->first_seq).exact) {
        i->first_byte = 0;
    }
    if (!last.exact) {
        i->last_byte = last.size; /* the rest of it is not here */
    }
    if (i->flags & CAP_INTENT_RENAME) {
        i->mark = find(c, before, i->mark - 1).seq + 1;
    }
    i->first_seq = first.seq + 1;
    i->last_seq = last.seq;
}

static void renumber_slot(journal_built *c, uint64_t before) {
    cap_slot *s = &c->slot;
    uint64_t acked = atomic_load_explicit(&s->acked, memory_order_relaxed);
    unsigned flags = CAP_ACKED_FLAGS(acked);
    place p = find(c, before, CAP_ACKED_SEQ(acked));

    atomic_store_explicit(&s->acked, CAP_ACKED(p.seq, flags),
                          memory_order_relaxed);
    atomic_store_explicit(&s->generation, SLOT_GENERATION,
                          memory_order_relaxed);
    s->taken_seq = 0;
    c->exchanges += (flags & CAP_ACKED_OPEN) != 0;
}

static void note_frame(journal_built *c, const cap_frame *f, uint64_t acked) {
    switch (f->type) {
    case CAP_FRAME_READ:
        c->found.open = true;
        c->exchanges += (f->flags & CAP_FRAME_BEGIN) && f->seq > acked;
        break;
    case CAP_FRAME_END:
    case CAP_FRAME_DROP:
    case CAP_FRAME_ABANDON:
        c->found.open = false;
        break;
    default:
        break;
    }
}

static int note_rows(journal_built *c, uint32_t slot, uint64_t *seq) {
    uint64_t acked = CAP_ACKED_SEQ(
        atomic_load_explicit(&c->slot.acked, memory_order_relaxed));
    journal_found *found = &c->found;
    cap_frame *f;

    found->chunk_seq = calloc(c->nrows + 1, sizeof(*found->chunk_seq));
    found->chunk_bytes = calloc(c->nrows + 1, sizeof(*found->chunk_bytes));
    if (found->chunk_seq == NULL || found->chunk_bytes == NULL) {
        return -1;
    }
    for (uint32_t i = 0; i < c->nrows; i++) {
        size_t at = 0;

        while (next_frame(&c->rows[i], &at, &f)) {
            f->seq = ++*seq;
            f->slot = slot;
            f->slot_generation = SLOT_GENERATION;
            note_frame(c, f, acked);
        }
        c->rows[i].chunk = i;
        found->chunk_seq[i] = *seq;
        found->chunk_bytes[i] = (uint32_t)c->rows[i].len;
        found->bytes += c->rows[i].len;
    }
    found->next_chunk = c->nrows;
    found->last_seq = *seq;
    return 0;
}

int journal_builder_add(journal_builder *b, uint64_t key, const cap_slot *slot,
                        const cap_intent *intent, const char *topic,
                        journal_rows *rows) {
    journal_built *c;

    if (b->n == b->room) {
        b->room = b->room == 0 ? 64 : 2 * b->room;
        c = realloc(b->conns, b->room * sizeof(*c));
        if (c == NULL) {
            return -1;
        }
        b->conns = c;
    }
    if (b->seq == 0) {
        b->seq = 1; /* so that the number before a frame is never 0: none */
    }
    c = &b->conns[b->n];
    *c = (journal_built){.rows = rows->rows, .nrows = rows->n};
    *rows = (journal_rows){.damaged = rows->damaged};
    memcpy(&c->slot, slot, sizeof(*slot));
    memcpy(&c->intent, intent, sizeof(*intent));
    snprintf(c->topic, sizeof(c->topic), "%s", topic);
    c->found.key = key;
    renumber_intent(c, b->seq);
    renumber_slot(c, b->seq);
    c->found.open = CAP_ACKED_FLAGS(atomic_load_explicit(
                        &c->slot.acked, memory_order_relaxed)) &
                    CAP_ACKED_OPEN;
    return note_rows(c, b->n++, &b->seq);
}

void journal_builder_free(journal_builder *b) {
    for (uint32_t i = 0; i < b->n; i++) {
        free_rows(b->conns[i].rows, b->conns[i].nrows);
        free(b->conns[i].found.chunk_seq);
        free(b->conns[i].found.chunk_bytes);
    }
    free(b->conns);
    *b = (journal_builder){0};
}

/* ---- the pool ---- */

typedef struct {
    char *base; /* NULL: only counted */
    cap_geometry g;
    uint32_t blocks; /* begun */
    uint32_t at;
} writer;

static void seal(writer *w) {
    if (w->base != NULL && w->blocks > 0) {
        atomic_store_explicit(
            &cap_block_at(w->base, &w->g, w->blocks - 1)->published,
            w->at | CAP_BLOCK_SEALED, memory_order_relaxed);
    }
}

static void write_frame(writer *w, const cap_frame *f) {
    uint32_t space = (uint32_t)CAP_FRAME_SPACE(f->size);
    cap_block *b;

    if (w->blocks == 0 || w->at + space > CAP_BLOCK_SIZE) {
        seal(w);
        w->blocks++;
        w->at = CAP_BLOCK_HEADER;
        if (w->base != NULL) {
            b = cap_block_at(w->base, &w->g, w->blocks - 1);
            b->first_seq = f->seq;
            atomic_store_explicit(&b->generation, 1, memory_order_relaxed);
        }
    }
    if (w->base != NULL) {
        memcpy((char *)cap_block_at(w->base, &w->g, w->blocks - 1) + w->at, f,
               space);
    }
    w->at += space;
}

static void write_frames(writer *w, const journal_builder *b) {
    for (uint32_t i = 0; i < b->n; i++) {
        for (uint32_t k = 0; k < b->conns[i].nrows; k++) {
            size_t at = 0;
            cap_frame *f;

            while (next_frame(&b->conns[i].rows[k], &at, &f)) {
                write_frame(w, f);
            }
        }
    }
    seal(w);
}

/* The place of its topic's name; all were in one pool, so that there is room. */
static void place_topic(cap_header *h, journal_built *c) {
    uint32_t n = atomic_load_explicit(&h->ntopics, memory_order_relaxed), i = 0;

    c->slot.topic = 0;
    if (c->topic[0] == '\0') {
        return;
    }
    while (i < n && strcmp(h->topic_names[i], c->topic) != 0) {
        i++;
    }
    if (i == n && n < CAP_TOPIC_NAMES) {
        memcpy(h->topic_names[n], c->topic, CAP_TOPIC_NAME_SIZE);
        atomic_store_explicit(&h->ntopics, n + 1, memory_order_relaxed);
    }
    c->slot.topic = (uint16_t)(i + 1);
}

static void write_header(writer *w, const journal_builder *b,
                         const char *node_id, uint64_t exchanges) {
    cap_header *h = (cap_header *)(void *)w->base;

    h->magic = CAP_MAGIC; /* and no pid: journal_may_adopt knows it by that */
    h->version = CAP_WIRE_VERSION;
    h->geometry = w->g;
    memcpy(h->node_id, node_id, sizeof(h->node_id));
    h->offered_seq = b->seq;
    h->offered_handed = exchanges;
    atomic_store_explicit(&h->worker.seen, exchanges, memory_order_relaxed);
    atomic_store_explicit(&h->worker.handed, exchanges, memory_order_relaxed);
    /* it has had an owner */
    atomic_store_explicit(&h->owner_generation, 1, memory_order_release);
    for (uint32_t i = 0; i < b->n; i++) {
        place_topic(h, &b->conns[i]);
        memcpy(cap_slot_at(w->base, &w->g, i), &b->conns[i].slot,
               sizeof(cap_slot));
        memcpy(cap_intent_at(w->base, &w->g, i), &b->conns[i].intent,
               sizeof(cap_intent));
    }
}

/* Room for so many blocks.  0, or -1. */
static int geometry(cap_geometry *g, uint32_t blocks, uint32_t slots) {
    uint64_t bytes;

    if (blocks < CAP_MIN_BLOCKS) {
        blocks = CAP_MIN_BLOCKS;
    }
    for (bytes = (uint64_t)(blocks + 1) * CAP_BLOCK_SIZE;
         cap_layout_make(g, bytes, slots) != 0 || g->nblocks < blocks;
         bytes += CAP_BLOCK_SIZE) {
        if (blocks > CAP_MAX_BLOCKS || slots > CAP_MAX_SLOTS) {
            return -1;
        }
    }
    return 0;
}

static int make_memory(writer *w) {
    int fd = memfd_create("capture-journal", MFD_CLOEXEC | MFD_ALLOW_SEALING);

    if (fd == -1) {
        return -1;
    }
    if (ftruncate(fd, (off_t)w->g.total) == 0) {
        w->base =
            mmap(NULL, w->g.total, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    }
    if (w->base == NULL || w->base == MAP_FAILED ||
        fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL) !=
            0) {
        w->base = NULL;
        close(fd);
        return -1;
    }
    return fd;
}

/* What is known of each goes to the caller. */
static int hand_out(journal_builder *b, journal_recovered *r) {
    r->conns = calloc(b->n, sizeof(*r->conns));
    if (r->conns == NULL) {
        return -1;
    }
    r->n = b->n;
    for (uint32_t i = 0; i < b->n; i++) {
        r->conns[i] = b->conns[i].found;
        b->conns[i].found.chunk_seq = NULL;
        b->conns[i].found.chunk_bytes = NULL;
        r->exchanges += b->conns[i].exchanges;
    }
    return 0;
}

int journal_builder_pool(journal_builder *b, const char *node_id,
                         journal_recovered *r, char *why) {
    writer count = {0}, w = {0};

    *r = (journal_recovered){.fd = -1, .damaged = b->damaged};
    if (b->n == 0) {
        return 0;
    }
    write_frames(&count, b);
    if (geometry(&w.g, count.blocks, b->n) != 0) {
        snprintf(why, JOURNAL_WHY_SIZE, "it is too large for a pool");
        return -1;
    }
    if (hand_out(b, r) == 0) {
        r->fd = make_memory(&w);
    }
    if (r->fd == -1) {
        snprintf(why, JOURNAL_WHY_SIZE, "a pool cannot be made: %s",
                 strerror(errno));
        journal_recovered_free(r);
        return -1;
    }
    write_header(&w, b, node_id, r->exchanges);
    write_frames(&w, b);
    munmap(w.base, w.g.total);
    return 0;
}

void journal_recovered_free(journal_recovered *r) {
    for (uint32_t i = 0; i < r->n; i++) {
        free(r->conns[i].chunk_seq);
        free(r->conns[i].chunk_bytes);
    }
    free(r->conns);
    if (r->fd != -1) {
        close(r->fd);
    }
    *r = (journal_recovered){.fd = -1};
}
