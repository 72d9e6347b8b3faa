/* Included by tests; they define _GNU_SOURCE first, for memfd_create. */
#include "t/unit/fake_worker.h"

#include <check.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

static void make_memory(fake_worker *w) {
    static unsigned workers = 0x12345677;
    char node_id[CAP_NODE_ID_SIZE + 1];

    w->fd = memfd_create("fake-worker", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    ck_assert_int_ne(w->fd, -1);
    ck_assert_int_eq(ftruncate(w->fd, (off_t)w->g.total), 0);
    ck_assert_int_eq(
        fcntl(w->fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL),
        0);
    w->header =
        mmap(NULL, w->g.total, PROT_READ | PROT_WRITE, MAP_SHARED, w->fd, 0);
    ck_assert_ptr_ne(w->header, MAP_FAILED);
    w->header->magic = CAP_MAGIC;
    w->header->version = CAP_WIRE_VERSION;
    w->header->geometry = w->g;
    snprintf(node_id, sizeof(node_id), "%08x-1234-1234-1234-123456789abc",
             ++workers);
    memcpy(w->header->node_id, node_id, CAP_NODE_ID_SIZE);
}

fake_worker *fake_worker_new(uint32_t nblocks, uint32_t nslots) {
    fake_worker *w = calloc(1, sizeof(*w));
    uint64_t bytes = (uint64_t)nblocks * CAP_BLOCK_SIZE;
    struct timespec now;

    while (cap_layout_make(&w->g, bytes, nslots) != 0 ||
           w->g.nblocks < nblocks) {
        bytes += 4096;
    }
    make_memory(w);
    w->free_blocks = calloc(w->g.nblocks, sizeof(uint32_t));
    w->block_generation = calloc(w->g.nblocks, sizeof(uint32_t));
    w->slot_generation = calloc(w->g.nslots, sizeof(uint32_t));
    for (uint32_t i = 0; i < w->g.nblocks; i++) {
        w->free_blocks[w->nfree++] = w->g.nblocks - 1 - i;
    }
    w->block = -1;
    clock_gettime(CLOCK_REALTIME, &now);
    w->ts_ns = (int64_t)now.tv_sec * 1000000000;
    return w;
}

void fake_worker_free(fake_worker *w) {
    munmap(w->header, w->g.total);
    close(w->fd);
    free(w->free_blocks);
    free(w->block_generation);
    free(w->slot_generation);
    free(w);
}

unsigned fake_topic(fake_worker *w, const char *name) {
    uint32_t n = atomic_load(&w->header->ntopics);

    ck_assert_uint_lt(n, CAP_TOPIC_NAMES);
    memcpy(w->header->topic_names[n], name, strlen(name));
    atomic_store_explicit(&w->header->ntopics, n + 1, memory_order_release);
    return n + 1;
}

void fake_take_slot(fake_worker *w, uint32_t slot, const char *id) {
    cap_slot *s = cap_slot_at(w->header, &w->g, slot);

    fake_collect(w);
    ck_assert_uint_eq(w->slot_generation[slot] & 1, 0);
    s->id_len = (uint8_t)strlen(id);
    memcpy(s->id, id, strlen(id));
    s->topic = w->topic;
    s->partition = -1;
    s->next_number = 1;
    s->last_offset = -1;
    s->requests = 0;
    s->unterminated_read = 0;
    s->renames = 0;
    s->taken_seq = w->seq;
    atomic_store(&s->acked, 0);
    atomic_store(&s->acked_bytes, 0);
    atomic_store(&s->synced, 0);
    s->generation = ++w->slot_generation[slot];
}

void fake_offer(fake_worker *w) {
    fake_publish(w);
    fake_collect(w);
    w->header->offered_tail = w->ring_tail;
    w->header->offered_seq = w->seq;
    w->header->offered_handed = w->header->worker.handed;
}

static void take_block(fake_worker *w) {
    uint32_t i = w->free_blocks[--w->nfree];
    cap_block *b = cap_block_at(w->header, &w->g, i);

    b->first_seq = w->seq + 1;
    b->generation = ++w->block_generation[i];
    atomic_store(&b->published, CAP_BLOCK_HEADER);
    atomic_store(cap_ring_at(w->header, &w->g, w->ring_tail),
                 CAP_RING_ENTRY(b->generation, i));
    atomic_store_explicit(&w->header->ring_tail, ++w->ring_tail,
                          memory_order_release);
    w->block = (int)i;
    w->at = CAP_BLOCK_HEADER;
}

bool fake_frame(fake_worker *w, uint32_t slot, unsigned type, unsigned flags,
                unsigned code, const void *data, size_t len) {
    cap_frame f = {.size = (uint32_t)len,
                   .type = (uint8_t)type,
                   .flags = (uint8_t)flags,
                   .code = (uint16_t)code,
                   .slot = slot,
                   .slot_generation = w->slot_generation[slot],
                   .ts_ns = w->ts_ns};
    char *to;

    if (w->block == -1 || w->at + CAP_FRAME_SPACE(len) > CAP_BLOCK_SIZE) {
        fake_collect(w);
        if (w->nfree == 0) {
            return false;
        }
        fake_seal(w);
        take_block(w);
    }
    if (type == CAP_FRAME_READ && (flags & CAP_FRAME_BEGIN)) {
        atomic_fetch_add(&w->header->worker.seen, 1);
        atomic_fetch_add(&w->header->worker.handed, 1);
    }
    f.seq = ++w->seq;
    w->ts_ns += 1000;
    to = (char *)cap_block_at(w->header, &w->g, (uint32_t)w->block) + w->at;
    memcpy(to, &f, sizeof(f));
    if (len > 0) {
        memcpy(to + sizeof(f), data, len);
    }
    w->at += (uint32_t)CAP_FRAME_SPACE(len);
    return true;
}

static void store_published(fake_worker *w, uint32_t value) {
    atomic_store_explicit(
        &cap_block_at(w->header, &w->g, (uint32_t)w->block)->published, value,
        memory_order_release);
}

void fake_publish(fake_worker *w) {
    if (w->block != -1) {
        store_published(w, w->at);
    }
}

void fake_seal(fake_worker *w) {
    if (w->block != -1) {
        store_published(w, w->at | CAP_BLOCK_SEALED);
        w->block = -1;
    }
}

static void come_back(uint32_t *generations, uint32_t i, uint32_t n,
                      uint32_t generation) {
    ck_assert_uint_lt(i, n);
    ck_assert_msg(generations[i] & 1, "%u came back twice", i);
    ck_assert_uint_eq(generations[i] & 0xffffff, generation);
    generations[i]++;
}

void fake_collect(fake_worker *w) {
    uint32_t tail = atomic_load(&w->header->return_tail);

    ck_assert_uint_le(tail - w->return_head, w->g.return_size);
    for (; w->return_head != tail; w->return_head++) {
        uint64_t e =
            atomic_load(cap_return_at(w->header, &w->g, w->return_head));
        uint32_t i = CAP_RETURN_INDEX(e);

        if (CAP_RETURN_KIND(e) == CAP_RETURN_BLOCK) {
            come_back(w->block_generation, i, w->g.nblocks, CAP_RETURN_GEN(e));
            ck_assert_int_ne((int)i, w->block);
            cap_block_at(w->header, &w->g, i)->generation =
                w->block_generation[i];
            w->free_blocks[w->nfree++] = i;
            w->blocks_back++;
        } else {
            ck_assert_uint_eq(CAP_RETURN_KIND(e), CAP_RETURN_SLOT);
            come_back(w->slot_generation, i, w->g.nslots, CAP_RETURN_GEN(e));
            cap_slot_at(w->header, &w->g, i)->generation =
                w->slot_generation[i];
            w->slots_back++;
        }
    }
    atomic_store(&w->header->return_head, tail);
}

void fake_read(fake_worker *w, uint32_t slot, unsigned flags, const char *s) {
    ck_assert(fake_frame(w, slot, CAP_FRAME_READ, flags, 0, s, strlen(s)));
    fake_publish(w);
}

void fake_eom(fake_worker *w, uint32_t slot, unsigned flags) {
    cap_eom eom = {14, 711};

    ck_assert(fake_frame(w, slot, CAP_FRAME_EOM, flags, 0, &eom, sizeof(eom)));
    fake_publish(w);
}

void fake_write(fake_worker *w, uint32_t slot, const char *s) {
    ck_assert(fake_frame(w, slot, CAP_FRAME_WRITE, 0, 0, s, strlen(s)));
    fake_publish(w);
}

void fake_control(fake_worker *w, uint32_t slot, unsigned type, unsigned code) {
    ck_assert(fake_frame(w, slot, type, 0, code, NULL, 0));
    fake_publish(w);
}

void fake_end(fake_worker *w, uint32_t slot, unsigned code) {
    fake_control(w, slot, CAP_FRAME_END, code);
}

void fake_exchange(fake_worker *w, uint32_t slot, const char *request,
                   const char *response) {
    fake_read(w, slot, CAP_FRAME_BEGIN, request);
    fake_eom(w, slot, 0);
    fake_write(w, slot, response);
    fake_end(w, slot, CAP_END_COMPLETE);
}
