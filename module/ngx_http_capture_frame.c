
/*
 * Frames into the blocks of a pool, and their publishing, once a turn.
 *
 * Nothing here waits or allocates.
 *
 * Room for the frames that end an exchange and its connection is reserved
 * when they begin: data may take the last blocks only beyond that, so an end
 * can always be written.
 */


#include "ngx_http_capture.h"


/* what a block can hold of frames that must not be split */
#define NGX_HTTP_CAPTURE_BLOCK_ROOM                                           \
    (CAP_BLOCK_SIZE - CAP_BLOCK_HEADER - CAP_FRAME_SPACE(sizeof(cap_eom)))

/* less data than this at a block's end is not worth a frame */
#define NGX_HTTP_CAPTURE_MIN_DATA  64


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
