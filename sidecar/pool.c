#define _GNU_SOURCE /* seals */
#include "sidecar/pool_internal.h"

#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include "sidecar/step.h"

#define NEEDED_SEALS (F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL)

const char pool_over_limit[] = "the pool is over the limit (pools.size)";
const char pool_no_memory[] = "out of memory";
const char pool_no_descriptor[] = "out of memory, or of descriptors";
static const char pool_not_mapped[] = "the pool cannot be mapped";

bool pool_may_pass(const char *why) {
    return strcmp(why, pool_no_memory) == 0 || why == pool_no_descriptor ||
           why == pool_not_mapped;
}

/* ---- mapping ---- */

/* Without these seals the other side could cut the memory under us. */
static const char *check_seals(int fd) {
    int seals = fcntl(fd, F_GET_SEALS);

    if (seals == -1) {
        return "the pool is not a memfd";
    }
    return (seals & NEEDED_SEALS) != NEEDED_SEALS
               ? "the pool is not sealed against resizing"
               : NULL;
}

static const char *check_fd(int fd, uint64_t limit, pool *p) {
    struct stat st;

    if (fstat(fd, &st) == -1 || st.st_size < (off_t)CAP_HEADER_SIZE) {
        return "the pool is too small";
    }
    if ((uint64_t)st.st_size > limit) {
        return pool_over_limit;
    }
    p->mapped = (uint64_t)st.st_size;
    p->inode = (uint64_t)st.st_ino;
    p->device = (uint64_t)st.st_dev;
    return NULL;
}

/* A UUID, as the module makes it: it names files, too (pool_file.h). */
static bool is_node_id(const char *id) {
    for (size_t i = 0; i < CAP_NODE_ID_SIZE; i++) {
        bool dash = i == 8 || i == 13 || i == 18 || i == 23;
        bool hex =
            (id[i] >= '0' && id[i] <= '9') || (id[i] >= 'a' && id[i] <= 'f');

        if (dash ? id[i] != '-' : !hex) {
            return false;
        }
    }
    return true;
}

static const char *copy_header(pool *p) {
    const cap_header *h = p->header;
    const char *why;

    if (h->magic != CAP_MAGIC) {
        return "the pool has no pool's header";
    }
    if (h->version != CAP_WIRE_VERSION) {
        return "the pool's version is not this sidecar's";
    }
    memcpy(&p->geometry, &h->geometry, sizeof(p->geometry));
    why = cap_layout_check(&p->geometry, p->mapped);
    if (why != NULL) {
        return why;
    }
    memcpy(p->node_id, h->node_id, sizeof(p->node_id));
    return is_node_id(p->node_id) ? NULL : "the nodeId is no UUID";
}

/* ---- places ---- */

/* Memory that is not used is not touched. */
static int make_places(pool *p, uint32_t n) {
    free(p->blocks);
    p->blocks = calloc(n, sizeof(*p->blocks));
    p->max_blocks = n;
    p->nblocks = 0;
    p->free_blocks = POOL_NO_BLOCK;
    if (p->lent == NULL) {
        p->lent = malloc(p->geometry.nblocks * sizeof(*p->lent));
    }
    if (p->blocks == NULL || p->lent == NULL) {
        return -1;
    }
    for (uint32_t i = 0; i < p->geometry.nblocks; i++) {
        p->lent[i] = POOL_AWAY;
    }
    return 0;
}

int pool_use_spool(pool *p, spool *s) {
    p->spool = s;
    return make_places(p, p->geometry.nblocks + spool_slots(s));
}

uint32_t pool_take_place(pool *p) {
    uint32_t place = p->free_blocks;

    if (place != POOL_NO_BLOCK) {
        p->free_blocks = p->blocks[place].next_free;
        return place;
    }
    return p->nblocks < p->max_blocks ? p->nblocks++ : POOL_NO_BLOCK;
}

void pool_free_place(pool *p, uint32_t place) {
    p->blocks[place].next_free = p->free_blocks;
    p->free_blocks = place;
}

static pool *open_any(int fd, uint64_t limit, const char **why) {
    pool *p = calloc(1, sizeof(*p));
    void *base;

    *why = pool_no_memory;
    if (p == NULL) {
        return NULL;
    }
    p->seq = 1;
    TAILQ_INIT(&p->oldest);
    *why = check_fd(fd, limit, p);
    if (*why != NULL) {
        free(p);
        return NULL;
    }
    base = mmap(NULL, p->mapped, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (base == MAP_FAILED) {
        *why = pool_not_mapped;
        free(p);
        return NULL;
    }
    p->header = base;
    /* a core dump must not hold captured bytes */
    (void)madvise(base, p->mapped, MADV_DONTDUMP);
    *why = copy_header(p);
    if (*why == NULL) {
        *why = make_places(p, p->geometry.nblocks) != 0 ? pool_no_memory : NULL;
    }
    if (*why != NULL) {
        pool_free(p);
        return NULL;
    }
    return p;
}

pool *pool_open(int fd, uint64_t limit, const char **why) {
    *why = check_seals(fd);
    return *why == NULL ? open_any(fd, limit, why) : NULL;
}

pool *pool_open_file(int fd, const char **why) {
    return open_any(fd, UINT64_MAX, why);
}

void pool_free(pool *p) {
    pool_free_slabs(p);
    munmap(p->header, p->mapped);
    free(p->old);
    free(p->lent);
    free(p->blocks);
    free(p);
}

int pool_topic(const pool *p, unsigned topic, char name[CAP_TOPIC_NAME_SIZE]) {
    const cap_header *h = p->header;

    memset(name, 0, CAP_TOPIC_NAME_SIZE);
    if (topic == 0) {
        return 0;
    }
    if (topic > CAP_TOPIC_NAMES ||
        topic > atomic_load_explicit(&h->ntopics, memory_order_acquire)) {
        return -1;
    }
    memcpy(name, h->topic_names[topic - 1], CAP_TOPIC_NAME_SIZE - 1);
    return cap_topic_name_good(name, strlen(name)) ? 0 : -1;
}

uint64_t pool_own(pool *p) {
    uint64_t was = atomic_load_explicit(&p->header->owner_generation,
                                        memory_order_relaxed);

    do {
        if (was == CAP_POOL_WITHDRAWN) {
            return 0;
        }
    } while (!atomic_compare_exchange_weak_explicit(
        &p->header->owner_generation, &was, was + 1, memory_order_acq_rel,
        memory_order_relaxed));
    p->owner = was + 1;
    return p->owner;
}

/* ---- lent no more ---- */

/* What a block or a slot is now, where it is still lent as that. */
void pool_come_back(_Atomic uint32_t *generation, uint32_t was) {
    uint32_t now = atomic_load_explicit(generation, memory_order_relaxed);

    if ((now & 1) && (now & 0xffffffu) == (was & 0xffffffu)) {
        atomic_store_explicit(generation, now + 1, memory_order_release);
    }
}

/* For the system, where it can take memory out of the middle. */
static void spend_block(pool *p, uint32_t index, uint32_t generation) {
    cap_block *b = cap_block_at(p->header, &p->geometry, index);

    pool_come_back(&b->generation, generation);
    step(STEP_SPENT);
    (void)madvise(b, CAP_BLOCK_SIZE, MADV_REMOVE);
    if (p->in_file && p->charged > 0) {
        p->charged--;
        spool_uncharge(p->spool, 1);
    }
}

/* ---- the owner ---- */

void pool_keep(pool *p) {
    atomic_store_explicit(&p->header->kept, 1, memory_order_release);
}

bool pool_owned(pool *p) {
    if (atomic_load_explicit(&p->header->owner_generation,
                             memory_order_acquire) != p->owner) {
        p->disowned = true;
    }
    return !p->disowned;
}

void pool_close(pool *p) {
    p->closed = true;
}

void pool_leave(pool *p) {
    p->closed = true;
    p->left = true;
}

/* ---- giving back ---- */

/*
 * The ring cannot overflow with a worker that takes what it gets: a block or
 * a slot comes back once before it is lent again.  With another worker only
 * entries of its own are overwritten.
 */
static void give_back(pool *p, uint64_t entry) {
    atomic_store_explicit(
        cap_return_at(p->header, &p->geometry, p->return_tail), entry,
        memory_order_relaxed);
    p->return_tail++;
    step(STEP_RETURN_ENTRY);
    atomic_store_explicit(&p->header->return_tail, p->return_tail,
                          memory_order_release);
    step(STEP_RETURNED);
}

/* The worker's memory is its own again. */
static void return_memory(pool *p, pool_block *b) {
    TAILQ_REMOVE(&p->oldest, b, oldest);
    p->held--;
    if (p->closed || !pool_owned(p)) {
        p->lent[b->index] = POOL_SPENT;
        if (!p->left && pool_owned(p)) {
            spend_block(p, b->index, b->generation);
        }
        return;
    }
    p->lent[b->index] = POOL_AWAY;
    give_back(p, CAP_RETURN_ENTRY(CAP_RETURN_BLOCK, b->generation, b->index));
    /* the worker: starved, fence, look for blocks */
    atomic_thread_fence(memory_order_seq_cst);
    if (atomic_load_explicit(&p->header->starved, memory_order_relaxed) != 0) {
        pool_wake(p);
    }
}

void pool_return_block(pool *p, uint32_t place) {
    pool_block *b = &p->blocks[place];

    if (b->slot == SPOOL_NO_SLOT) {
        return_memory(p, b);
    } else if (!p->left) {
        pool_leave_spool(p, b->slot);
    }
    pool_free_place(p, place);
}

/* ---- the spool ---- */

void pool_show_spooled(pool *p, uint32_t n) {
    if (pool_owned(p)) {
        atomic_store_explicit(&p->header->spooled, n, memory_order_release);
        step(STEP_SPOOLED);
    }
}

void pool_leave_spool(pool *p, uint32_t slot) {
    p->nspooled -= p->nspooled > 0;
    pool_show_spooled(p, p->nspooled);
    spool_release(p->spool, slot);
}

#define SPILL_BLOCKS 64
#define SPILL_NS 250000000ll

static bool is_crowded(const pool *p, int64_t now_ns) {
    const pool_block *b = TAILQ_FIRST(&p->oldest);
    uint64_t held = p->held, all = p->geometry.nblocks;

    return b != NULL && b->read &&
           (held > all * 3 / 4 ||
            (held > all / 2 && now_ns - b->opened_ns > SPILL_NS));
}

void pool_spill(pool *p, int64_t now_ns) {
    p->now_ns = now_ns;
    if (p->spool == NULL || p->closed) {
        return;
    }
    for (int i = 0; i < SPILL_BLOCKS && is_crowded(p, now_ns); i++) {
        pool_block *b = TAILQ_FIRST(&p->oldest);
        uint32_t slot = spool_put(p->spool, p->node_id, b->data);

        if (slot == SPOOL_NO_SLOT) {
            return;
        }
        pool_show_spooled(p, ++p->nspooled);
        b->slot = slot;
        b->data = spool_block(p->spool, slot);
        return_memory(p, b);
        b->index = POOL_NO_BLOCK;
    }
}

void pool_return_slot(pool *p, uint32_t slot, uint32_t generation) {
    if (p->left || !pool_owned(p)) {
        return;
    }
    if (p->closed) {
        pool_come_back(&cap_slot_at(p->header, &p->geometry, slot)->generation,
                       generation);
    } else {
        give_back(p, CAP_RETURN_ENTRY(CAP_RETURN_SLOT, generation, slot));
    }
}

/* ---- waking ---- */

bool pool_unread(pool *p) {
    uint32_t head = p->ring_head;

    if (p->bad != NULL) {
        return false;
    }
    if (p->reading) {
        if (p->at < p->end) {
            return true;
        }
        if (!p->sealed) {
            const cap_block *b = (const void *)p->blocks[p->block].data;

            return atomic_load_explicit(&b->published, memory_order_acquire) !=
                   p->published;
        }
        head += p->by_ring;
    }
    return p->next_old < p->nold ||
           atomic_load_explicit(&p->header->ring_tail, memory_order_acquire) !=
               head;
}

/*
 * Here: state = asleep, fence, look for bytes.  Worker: publish bytes, fence,
 * look at the state.  One of both sees what the other did, so no wake is
 * missed.
 */
bool pool_sleep(pool *p, enum cap_reader_state state) {
    atomic_store_explicit(&p->header->reader_state, state,
                          memory_order_seq_cst);
    atomic_thread_fence(memory_order_seq_cst);
    if (!pool_unread(p)) {
        return false;
    }
    pool_awake(p);
    return true;
}

void pool_awake(pool *p) {
    atomic_store_explicit(&p->header->reader_state, CAP_READER_AWAKE,
                          memory_order_relaxed);
}
