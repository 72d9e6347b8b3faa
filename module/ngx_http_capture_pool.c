
/*
 * Frames into blocks of shared memory, and blocks back from the sidecar.
 *
 * Owns the pool's bookkeeping of free blocks and slots.  What comes from the
 * shared side (the return ring) is checked against it: a wrong entry marks
 * the pool broken, and link.c gives it up.  Nothing here waits or allocates
 * per frame.
 *
 * Room for the frames that end an exchange and its connection is reserved
 * when they begin: data may take the last blocks only beyond that, so an end
 * can always be written.
 */


#include "ngx_http_capture.h"

#include <sys/mman.h>
#include <sys/random.h>


/* what a block can hold of frames that must not be split */
#define NGX_HTTP_CAPTURE_BLOCK_ROOM                                           \
    (CAP_BLOCK_SIZE - CAP_BLOCK_HEADER - CAP_FRAME_SPACE(sizeof(cap_eom)))

/* less data than this at a block's end is not worth a frame */
#define NGX_HTTP_CAPTURE_MIN_DATA  64


static ngx_int_t ngx_http_capture_pool_map(ngx_http_capture_pool_t *pool,
    ngx_log_t *log);
static ngx_int_t ngx_http_capture_pool_arrays(ngx_http_capture_pool_t *pool,
    ngx_log_t *log);
static void ngx_http_capture_pool_header(ngx_http_capture_pool_t *pool);
static ngx_int_t ngx_http_capture_pool_take_block(
    ngx_http_capture_pool_t *pool);
static void ngx_http_capture_pool_seal(ngx_http_capture_pool_t *pool);
static void ngx_http_capture_pool_ring(ngx_http_capture_pool_t *pool);
static ngx_int_t ngx_http_capture_pool_split(ngx_http_capture_pool_t *pool,
    cap_frame *f, u_char *data, size_t len);
static u_char *ngx_http_capture_pool_grow(ngx_http_capture_pool_t *pool,
    size_t len);
static u_char *ngx_http_capture_pool_frame(ngx_http_capture_pool_t *pool,
    cap_frame *f);
static void ngx_http_capture_pool_return(ngx_http_capture_pool_t *pool,
    uint64_t entry);
static void ngx_http_capture_pool_break(ngx_http_capture_pool_t *pool);


#define ngx_http_capture_header(pool)  ((cap_header *) (pool)->base)

/* whether the block in work has room for data */
#define ngx_http_capture_pool_usable(pool)                                    \
    ((pool)->block                                                            \
     && (pool)->end - (pool)->pos                                             \
        >= (ssize_t) (sizeof(cap_frame) + NGX_HTTP_CAPTURE_MIN_DATA))

/* free blocks that hold what is reserved; the block in work may be data's */
#define ngx_http_capture_pool_kept(pool, more)                                \
    (((pool)->reserved + (more) + NGX_HTTP_CAPTURE_BLOCK_ROOM - 1)            \
     / NGX_HTTP_CAPTURE_BLOCK_ROOM)


/* whether the last frame can take f's data: what it is is not read back */
#define ngx_http_capture_pool_alike(pool, f)                                  \
    ((pool)->last && (pool)->last_type == (f)->type                           \
     && (pool)->last_slot == (f)->slot && !((f)->flags & CAP_FRAME_BEGIN))


ngx_http_capture_pool_t *
ngx_http_capture_pool_create(ngx_http_capture_worker_t *w)
{
    ngx_http_capture_pool_t  *pool;

    pool = ngx_calloc(sizeof(ngx_http_capture_pool_t), w->log);
    if (pool == NULL) {
        return NULL;
    }

    pool->fd = -1;
    pool->doorbell = -1;
    pool->bell_offer = -1;
    pool->epoch = ++w->epoch;

    ngx_queue_init(&pool->spares);

    if (cap_layout_make(&pool->geo, w->buffer, w->nslots) != 0) {
        ngx_log_error(NGX_LOG_ERR, w->log, 0,
                      "capture_buffer %uz is too small for %ui connections",
                      w->buffer, w->nslots);
        ngx_http_capture_pool_destroy(pool);
        return NULL;
    }

    if (ngx_http_capture_pool_map(pool, w->log) != NGX_OK
        || ngx_http_capture_pool_arrays(pool, w->log) != NGX_OK)
    {
        ngx_http_capture_pool_destroy(pool);
        return NULL;
    }

    ngx_http_capture_pool_header(pool);
    ngx_http_capture_topic_init(pool, w->topics);

    return pool;
}


/* The memory. */

static ngx_int_t
ngx_http_capture_pool_map(ngx_http_capture_pool_t *pool, ngx_log_t *log)
{
    void          *base;
    struct flock   lock;

    pool->fd = memfd_create("nginx-capture", MFD_CLOEXEC|MFD_ALLOW_SEALING);

    if (pool->fd == -1) {
        ngx_log_error(NGX_LOG_ERR, log, ngx_errno, "memfd_create() failed");
        return NGX_ERROR;
    }

    if (ftruncate(pool->fd, pool->geo.total) == -1
        || fcntl(pool->fd, F_ADD_SEALS,
                 F_SEAL_SHRINK|F_SEAL_GROW|F_SEAL_SEAL) == -1)
    {
        ngx_log_error(NGX_LOG_ERR, log, ngx_errno,
                      "sizing and sealing %uL bytes of capture memory failed",
                      pool->geo.total);
        return NGX_ERROR;
    }

    /*
     * The kernel drops it with this process, so that whoever has the memory can
     * tell that its worker is dead.  No other descriptor of it is ever closed
     * here, which would drop it, too.
     */

    ngx_memzero(&lock, sizeof(struct flock));
    lock.l_type = F_WRLCK;
    lock.l_whence = SEEK_SET;

    if (fcntl(pool->fd, F_SETLK, &lock) == -1) {
        ngx_log_error(NGX_LOG_ERR, log, ngx_errno,
                      "locking the capture memory failed");
        return NGX_ERROR;
    }

    base = mmap(NULL, pool->geo.total, PROT_READ|PROT_WRITE, MAP_SHARED,
                pool->fd, 0);

    if (base == MAP_FAILED) {
        ngx_log_error(NGX_LOG_ERR, log, ngx_errno,
                      "mmap(%uL) of capture memory failed", pool->geo.total);
        return NGX_ERROR;
    }

    pool->base = base;

    /* a core dump must not hold captured bytes */
    (void) madvise(base, pool->geo.total, MADV_DONTDUMP);

    return NGX_OK;
}


/*
 * Makes the pool ready for a HELLO: a doorbell, and what a successor of its
 * owner needs to find its way (wire/layout.h).
 *
 * No eventfd: with O_NONBLOCK belonging to both sides, the sidecar could make
 * a write block.
 */

ngx_int_t
ngx_http_capture_pool_offer(ngx_http_capture_pool_t *pool, ngx_log_t *log)
{
    int          bell[2];
    cap_header  *h;

    if (socketpair(AF_UNIX, SOCK_STREAM|SOCK_NONBLOCK|SOCK_CLOEXEC, 0, bell)
        == -1)
    {
        ngx_log_error(NGX_LOG_ERR, log, ngx_errno, "socketpair() failed");
        return NGX_ERROR;
    }

    pool->doorbell = bell[0];
    pool->bell_offer = bell[1];

    ngx_http_capture_pool_publish(pool);
    ngx_http_capture_pool_collect(pool);

    h = ngx_http_capture_header(pool);

    h->offered_tail = pool->ring_tail;
    h->offered_seq = pool->seq;
    h->offered_handed = atomic_load_explicit(&h->worker.handed,
                                             memory_order_relaxed);

    return pool->broken ? NGX_ERROR : NGX_OK;
}


/* Its doorbell is of no use any more. */

void
ngx_http_capture_pool_unring(ngx_http_capture_pool_t *pool)
{
    if (pool->bell) {
        ngx_close_connection(pool->bell);

    } else if (pool->doorbell != -1) {
        (void) close(pool->doorbell);
    }

    if (pool->bell_offer != -1) {
        (void) close(pool->bell_offer);
    }

    pool->bell = NULL;
    pool->doorbell = -1;
    pool->bell_offer = -1;
}


static ngx_int_t
ngx_http_capture_pool_arrays(ngx_http_capture_pool_t *pool, ngx_log_t *log)
{
    u_char    random[16];
    uint32_t  i;

    pool->free = ngx_calloc(pool->geo.nblocks * sizeof(uint32_t), log);
    pool->block_gen = ngx_calloc(pool->geo.nblocks * sizeof(uint32_t), log);
    pool->free_slots = ngx_calloc(pool->geo.nslots * sizeof(uint32_t), log);
    pool->slot_gen = ngx_calloc(pool->geo.nslots * sizeof(uint32_t), log);
    pool->slot_conn = ngx_calloc(pool->geo.nslots * sizeof(void *), log);
    pool->slot_id = ngx_calloc(pool->geo.nslots * sizeof(uint64_t), log);

    if (pool->free == NULL || pool->block_gen == NULL
        || pool->free_slots == NULL || pool->slot_gen == NULL
        || pool->slot_conn == NULL || pool->slot_id == NULL)
    {
        return NGX_ERROR;
    }

    /* low numbers are taken first: what is never used is never touched */

    for (i = 0; i < pool->geo.nblocks; i++) {
        pool->free[i] = pool->geo.nblocks - 1 - i;
    }

    for (i = 0; i < pool->geo.nslots; i++) {
        pool->free_slots[i] = pool->geo.nslots - 1 - i;
    }

    pool->nfree = pool->geo.nblocks;
    pool->nfree_slots = pool->geo.nslots;

    if (getrandom(random, sizeof(random), 0) != sizeof(random)) {
        ngx_log_error(NGX_LOG_ERR, log, ngx_errno, "getrandom() failed");
        return NGX_ERROR;
    }

    /* a version 4 UUID */

    random[6] = (random[6] & 0x0f) | 0x40;
    random[8] = (random[8] & 0x3f) | 0x80;

    *ngx_hex_dump(pool->prefix, random, 16) = '-';

    ngx_memcpy(pool->node_id, pool->prefix, 8);
    pool->node_id[8] = '-';
    ngx_memcpy(pool->node_id + 9, pool->prefix + 8, 4);
    pool->node_id[13] = '-';
    ngx_memcpy(pool->node_id + 14, pool->prefix + 12, 4);
    pool->node_id[18] = '-';
    ngx_memcpy(pool->node_id + 19, pool->prefix + 16, 4);
    pool->node_id[23] = '-';
    ngx_memcpy(pool->node_id + 24, pool->prefix + 20, 12);

    return NGX_OK;
}


static void
ngx_http_capture_pool_header(ngx_http_capture_pool_t *pool)
{
    cap_header  *h;

    h = ngx_http_capture_header(pool);

    h->magic = CAP_MAGIC;
    h->version = CAP_WIRE_VERSION;
    h->pid = ngx_pid;
    h->geometry = pool->geo;
    ngx_memcpy(h->node_id, pool->node_id, CAP_NODE_ID_SIZE);
    atomic_store_explicit(&h->reader_state, CAP_READER_ASLEEP,
                          memory_order_relaxed);
}


void
ngx_http_capture_pool_destroy(ngx_http_capture_pool_t *pool)
{
    if (pool->publish.posted) {
        ngx_delete_posted_event(&pool->publish);
    }

    if (pool->base) {
        (void) munmap(pool->base, pool->geo.total);
    }

    if (pool->fd != -1) {
        (void) close(pool->fd);
    }

    ngx_http_capture_pool_unring(pool);

    ngx_free(pool->free);
    ngx_free(pool->block_gen);
    ngx_free(pool->free_slots);
    ngx_free(pool->slot_gen);
    ngx_free(pool->slot_conn);
    ngx_free(pool->slot_id);
    ngx_free(pool);
}


/*
 * Whether `bytes` of data would find room now, beyond what is reserved and
 * `keep` more.
 */

ngx_int_t
ngx_http_capture_pool_room(ngx_http_capture_pool_t *pool, size_t keep,
    size_t bytes)
{
    size_t  kept, room;

    kept = ngx_http_capture_pool_kept(pool, keep);

    if (pool->nfree < kept) {
        return NGX_DECLINED;
    }

    room = (pool->nfree - kept) * NGX_HTTP_CAPTURE_BLOCK_ROOM;

    if (ngx_http_capture_pool_usable(pool)) {
        room += pool->end - pool->pos;
    }

    return (room >= bytes + 2 * sizeof(cap_frame)) ? NGX_OK : NGX_DECLINED;
}


/*
 * Writes data as frames like `f` (type, slot, ts...), growing the last frame
 * where it is alike.  NGX_DECLINED: no room; a part may have been written,
 * and the exchange has to be ended as lost.
 */

ngx_int_t
ngx_http_capture_pool_data(ngx_http_capture_pool_t *pool, cap_frame *f,
    u_char *data, size_t len)
{
    u_char  *p;

    /* where an end took a reserved block, the one in work is the ends' now */

    if (pool->nfree < ngx_http_capture_pool_kept(pool, 0)) {
        ngx_http_capture_pool_collect(pool);

        if (pool->nfree < ngx_http_capture_pool_kept(pool, 0)) {
            return NGX_DECLINED;
        }
    }

    if (ngx_http_capture_pool_alike(pool, f)) {

        if (pool->end - pool->last_end < (ssize_t) len) {
            return ngx_http_capture_pool_split(pool, f, data, len);
        }

        p = ngx_http_capture_pool_grow(pool, len);

    } else {

        if (pool->block == NULL
            || pool->end - pool->pos < (ssize_t) (sizeof(cap_frame) + len))
        {
            return ngx_http_capture_pool_split(pool, f, data, len);
        }

        f->size = len;
        p = ngx_http_capture_pool_frame(pool, f);
    }

    ngx_memcpy(p, data, len);

    return NGX_OK;
}


/* Data that reaches into other blocks. */

static ngx_int_t
ngx_http_capture_pool_split(ngx_http_capture_pool_t *pool, cap_frame *f,
    u_char *data, size_t len)
{
    size_t   size;
    u_char  *p;

    if (ngx_http_capture_pool_alike(pool, f)) {
        size = ngx_min(len, (size_t) (pool->end - pool->last_end));
        p = ngx_http_capture_pool_grow(pool, size);

        ngx_memcpy(p, data, size);

        data += size;
        len -= size;
    }

    while (len) {

        if (!ngx_http_capture_pool_usable(pool)) {

            if (pool->nfree <= ngx_http_capture_pool_kept(pool, 0)) {
                ngx_http_capture_pool_collect(pool);

                if (pool->nfree <= ngx_http_capture_pool_kept(pool, 0)) {
                    return NGX_DECLINED;
                }
            }

            if (ngx_http_capture_pool_take_block(pool) != NGX_OK) {
                return NGX_DECLINED;
            }
        }

        size = pool->end - pool->pos - sizeof(cap_frame);
        size = ngx_min(len, size);

        f->size = size;
        p = ngx_http_capture_pool_frame(pool, f);
        f->flags &= ~CAP_FRAME_BEGIN;

        ngx_memcpy(p, data, size);

        data += size;
        len -= size;
    }

    return NGX_OK;
}


/*
 * Writes a frame whose room was reserved.  Only a sidecar that broke the
 * rules can make this fail.
 */

ngx_int_t
ngx_http_capture_pool_control(ngx_http_capture_pool_t *pool, cap_frame *f,
    void *payload)
{
    u_char  *p;

    if (pool->block == NULL
        || pool->end - pool->pos < (ssize_t) CAP_FRAME_SPACE(f->size))
    {
        if (ngx_http_capture_pool_take_block(pool) != NGX_OK) {
            ngx_http_capture_pool_break(pool);
            return NGX_DECLINED;
        }
    }

    p = ngx_http_capture_pool_frame(pool, f);

    if (f->size) {
        ngx_memcpy(p, payload, f->size);
    }

    return NGX_OK;
}


/* Makes the last frame longer; where the new part goes. */

static u_char *
ngx_http_capture_pool_grow(ngx_http_capture_pool_t *pool, size_t len)
{
    u_char  *p;

    p = pool->last_end;

    pool->last_end = p + len;
    pool->last->size = pool->last_end - (u_char *) (pool->last + 1);
    pool->pos = ngx_align_ptr(pool->last_end, CAP_FRAME_ALIGN);

    return p;
}


/* Places a frame's header at pos; where its payload goes, which fits. */

static u_char *
ngx_http_capture_pool_frame(ngx_http_capture_pool_t *pool, cap_frame *f)
{
    cap_frame  *frame;

    f->seq = ++pool->seq;

    frame = (cap_frame *) pool->pos;
    *frame = *f;

    pool->pos += CAP_FRAME_SPACE(f->size);
    pool->last = frame;
    pool->last_end = (u_char *) (frame + 1) + f->size;
    pool->last_slot = f->slot;
    pool->last_type = f->type;
    pool->dirty = 1;

    if (!pool->publish.posted) {
        ngx_post_event(&pool->publish, &ngx_posted_events);
    }

    return (u_char *) (frame + 1);
}


static ngx_int_t
ngx_http_capture_pool_take_block(ngx_http_capture_pool_t *pool)
{
    uint32_t     i;
    cap_block   *b;
    cap_header  *h;

    ngx_http_capture_pool_collect(pool);

    if (pool->nfree == 0) {
        return NGX_DECLINED;
    }

    ngx_http_capture_pool_seal(pool);

    i = pool->free[--pool->nfree];
    pool->block_gen[i]++;

    b = cap_block_at(pool->base, &pool->geo, i);

    b->first_seq = pool->seq + 1;
    atomic_store_explicit(&b->published, CAP_BLOCK_HEADER,
                          memory_order_relaxed);
    atomic_store_explicit(&b->generation, pool->block_gen[i],
                          memory_order_release);

    h = ngx_http_capture_header(pool);

    atomic_store_explicit(cap_ring_at(pool->base, &pool->geo, pool->ring_tail),
                          CAP_RING_ENTRY(pool->block_gen[i], i),
                          memory_order_relaxed);
    pool->ring_tail++;
    atomic_store_explicit(&h->ring_tail, pool->ring_tail,
                          memory_order_release);

    pool->block = b;
    pool->block_index = i;
    pool->pos = (u_char *) b + CAP_BLOCK_HEADER;
    pool->published = pool->pos;
    pool->end = (u_char *) b + CAP_BLOCK_SIZE;
    pool->last = NULL;

    return NGX_OK;
}


/* Nothing more will come in the block in work. */

static void
ngx_http_capture_pool_seal(ngx_http_capture_pool_t *pool)
{
    if (pool->block == NULL) {
        return;
    }

    atomic_store_explicit(&pool->block->published,
                          CAP_BLOCK_SEALED | (pool->pos
                                              - (u_char *) pool->block),
                          memory_order_release);

    pool->block = NULL;
    pool->last = NULL;
}


/*
 * Once an event-loop turn: everything written in it becomes readable with
 * one store.
 */

void
ngx_http_capture_pool_publish(ngx_http_capture_pool_t *pool)
{
    cap_header  *h;

    pool->now = 0;
    pool->last = NULL;

    if (!pool->dirty) {
        return;
    }

    pool->dirty = 0;

    if (pool->block && pool->pos != pool->published) {
        atomic_store_explicit(&pool->block->published,
                              pool->pos - (u_char *) pool->block,
                              memory_order_release);
        pool->published = pool->pos;
    }

    h = ngx_http_capture_header(pool);

    atomic_store_explicit(&h->worker.frames, pool->seq, memory_order_relaxed);

    ngx_http_capture_pool_ring(pool);
}


/*
 * Wakes the reader where it sleeps, or naps while room gets short.  The
 * fence pairs with the reader's: either it sees what was published, or it is
 * seen asleep here.
 */

static void
ngx_http_capture_pool_ring(ngx_http_capture_pool_t *pool)
{
    uint32_t     state;
    uint64_t     one;
    cap_header  *h;

    if (pool->doorbell == -1) {
        return;
    }

    h = ngx_http_capture_header(pool);

    atomic_thread_fence(memory_order_seq_cst);

    state = atomic_load_explicit(&h->reader_state, memory_order_relaxed);

    if (state == CAP_READER_AWAKE
        || (state == CAP_READER_NAPPING && !pool->urgent
            && pool->nfree > pool->geo.nblocks / 2))
    {
        return;
    }

    pool->urgent = 0;

    atomic_store_explicit(&h->reader_state, CAP_READER_AWAKE,
                          memory_order_relaxed);

    ngx_http_capture_add(&h->worker.doorbells, 1);

    /* full: rung already; closed: the link's hang-up comes too */

    one = 1;
    (void) send(pool->doorbell, &one, sizeof(one), MSG_DONTWAIT|MSG_NOSIGNAL);
}


/* Takes what the sidecar gave back. */

void
ngx_http_capture_pool_collect(ngx_http_capture_pool_t *pool)
{
    uint32_t     tail;
    uint64_t     entry;
    cap_header  *h;

    h = ngx_http_capture_header(pool);

    tail = atomic_load_explicit(&h->return_tail, memory_order_acquire);

    if (tail == pool->return_head) {
        return;
    }

    if (tail - pool->return_head > pool->geo.return_size) {
        ngx_http_capture_pool_break(pool);
        return;
    }

    while (pool->return_head != tail && !pool->broken) {
        entry = atomic_load_explicit(cap_return_at(pool->base, &pool->geo,
                                                   pool->return_head),
                                     memory_order_relaxed);
        pool->return_head++;
        ngx_http_capture_pool_return(pool, entry);
    }

    atomic_store_explicit(&h->return_head, pool->return_head,
                          memory_order_release);
}


/*
 * One entry of the return ring.  Generations are odd while a block or a slot
 * is lent, so nothing can come back twice.
 */

static void
ngx_http_capture_pool_return(ngx_http_capture_pool_t *pool, uint64_t entry)
{
    uint32_t                  i, gen;
    ngx_http_capture_conn_t  *conn;

    i = CAP_RETURN_INDEX(entry);
    gen = CAP_RETURN_GEN(entry);

    switch (CAP_RETURN_KIND(entry)) {

    case CAP_RETURN_BLOCK:

        if (i >= pool->geo.nblocks || !(pool->block_gen[i] & 1)
            || (pool->block_gen[i] & 0xffffff) != gen
            || (pool->block && i == pool->block_index))
        {
            break;
        }

        atomic_store_explicit(&cap_block_at(pool->base, &pool->geo, i)
                              ->generation,
                              ++pool->block_gen[i], memory_order_relaxed);
        pool->free[pool->nfree++] = i;
        return;

    case CAP_RETURN_SLOT:

        if (i >= pool->geo.nslots || !(pool->slot_gen[i] & 1)
            || (pool->slot_gen[i] & 0xffffff) != gen)
        {
            break;
        }

        /* still open here: the sidecar had to abandon this connectionId */

        conn = pool->slot_conn[i];

        if (conn) {
            ngx_http_capture_conn_leave(pool, conn);
        }

        pool->left_slots--;

        atomic_store_explicit(&cap_slot_at(pool->base, &pool->geo, i)
                              ->generation,
                              ++pool->slot_gen[i], memory_order_release);
        pool->free_slots[pool->nfree_slots++] = i;
        return;
    }

    ngx_http_capture_pool_break(pool);
}


/* link.c gives the link up at the turn's end. */

static void
ngx_http_capture_pool_break(ngx_http_capture_pool_t *pool)
{
    pool->broken = 1;

    if (!pool->publish.posted) {
        ngx_post_event(&pool->publish, &ngx_posted_events);
    }
}


uint32_t
ngx_http_capture_pool_take_slot(ngx_http_capture_pool_t *pool,
    ngx_http_capture_conn_t *conn)
{
    u_char    *p;
    uint32_t   i;
    cap_slot  *slot;

    if (pool->nfree_slots == 0) {
        ngx_http_capture_pool_collect(pool);

        if (pool->nfree_slots == 0) {
            return NGX_HTTP_CAPTURE_NO_SLOT;
        }
    }

    i = pool->free_slots[--pool->nfree_slots];
    pool->slot_gen[i]++;
    pool->slot_conn[i] = conn;

    slot = cap_slot_at(pool->base, &pool->geo, i);

    slot->cluster = 0;
    slot->topic = conn->topic;
    slot->partition = -1;
    slot->next_number = 1;
    slot->requests = 0;
    slot->unterminated_read = 0;
    slot->renames = 0;
    slot->last_offset = -1;
    slot->opened_ns = ngx_http_capture_pool_now(pool);
    slot->taken_seq = pool->seq;
    atomic_store_explicit(&slot->acked, 0, memory_order_relaxed);
    atomic_store_explicit(&slot->acked_bytes, 0, memory_order_relaxed);
    atomic_store_explicit(&slot->synced, 0, memory_order_relaxed);

    pool->slot_id[i] = ++pool->ids;

    p = ngx_http_capture_pool_id(pool, i, (u_char *) slot->id);
    slot->id_len = p - (u_char *) slot->id;

    atomic_store_explicit(&slot->generation, pool->slot_gen[i],
                          memory_order_release);

    atomic_store_explicit(&ngx_http_capture_header(pool)->worker.connections,
                          pool->ids, memory_order_relaxed);

    return i;
}


/* The connectionId of a slot, at most CAP_ID_SIZE bytes; returns its end. */

u_char *
ngx_http_capture_pool_id(ngx_http_capture_pool_t *pool, uint32_t slot,
    u_char *p)
{
    p = ngx_cpymem(p, pool->prefix, sizeof(pool->prefix));

    return ngx_sprintf(p, "%xL", pool->slot_id[slot]);
}


/* The first look at the clock in a turn: pool_now(). */

int64_t
ngx_http_capture_pool_clock(ngx_http_capture_pool_t *pool)
{
    struct timespec  ts;

    (void) clock_gettime(CLOCK_REALTIME, &ts);
    pool->now = (int64_t) ts.tv_sec * 1000000000 + ts.tv_nsec;

    /* ends the turn also where no frame is written */

    if (!pool->publish.posted) {
        ngx_post_event(&pool->publish, &ngx_posted_events);
    }

    return pool->now;
}
