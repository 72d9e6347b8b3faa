
/*
 * A pool: shared memory that is made, offered to the sidecar and given up, and
 * what the sidecar gives back of it.
 *
 * Owns the bookkeeping of free blocks and slots.  What comes from the shared
 * side (the return ring) is checked against it: a wrong entry marks the pool
 * broken, and link.c gives it up.  Frames are put into blocks by frame.c.
 */


#include "ngx_http_capture.h"

#include <sys/mman.h>
#include <sys/random.h>


static ngx_int_t ngx_http_capture_pool_map(ngx_http_capture_pool_t *pool,
    ngx_log_t *log);
static ngx_int_t ngx_http_capture_pool_arrays(ngx_http_capture_pool_t *pool,
    ngx_log_t *log);
static void ngx_http_capture_pool_header(ngx_http_capture_pool_t *pool);
static void ngx_http_capture_pool_return(ngx_http_capture_pool_t *pool,
    uint64_t entry);


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

void
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
