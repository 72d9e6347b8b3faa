
/*
 * Backpressure: while the pool is full, the body of a request that will wait
 * is read no further.  What has been read and not recorded stays where it is,
 * so that NGINX's buffer is the bound; the sidecar rings when it has given
 * blocks back.  After capture_wait_timeout without progress the exchange has
 * found no room: forward loses it, refuse answers 503.
 *
 * Not for buffered HTTP/2, whose client may send as much as it likes, nor for
 * HTTP/3, whose own filter forgets an end that is not passed on.
 */


#include "ngx_http_capture.h"


/* what is recorded at a time, so that there is progress in a small pool */
#define NGX_HTTP_CAPTURE_STALL_PIECE  32768

/* of frames and chunks around it, and of a value that was held back */
#define NGX_HTTP_CAPTURE_STALL_EXTRA  1024


static ngx_int_t ngx_http_capture_stall_room(size_t size);
static ngx_chain_t **ngx_http_capture_stall_record(
    ngx_http_capture_ctx_t *ctx, ngx_chain_t **ll, ngx_uint_t *progress);
static ngx_int_t ngx_http_capture_stall_piece(ngx_http_capture_ctx_t *ctx,
    ngx_buf_t *b, size_t from);
static void ngx_http_capture_stall_begin(ngx_http_capture_wait_t *wait);
static void ngx_http_capture_stall_timer_handler(ngx_event_t *ev);


/* Whether not all of `in` can be recorded now, and NGINX can be held up. */

ngx_uint_t
ngx_http_capture_stall_needed(ngx_http_request_t *r,
    ngx_http_capture_ctx_t *ctx, ngx_chain_t *in)
{
    size_t                    size;
    ngx_http_capture_pool_t  *pool;

    if (ctx->wait->unrecorded) {
        return 1;
    }

#if (NGX_HTTP_V2)

    if (r->stream && !r->request_body_no_buffering) {
        return 0;
    }

#endif

    if (r->http_version > NGX_HTTP_VERSION_20) {
        return 0;
    }

    pool = ngx_http_capture_worker->pool;

    if (in == NULL || pool == NULL || pool->epoch != ctx->epoch) {
        return 0;
    }

    for (size = NGX_HTTP_CAPTURE_STALL_EXTRA; in; in = in->next) {
        size += ngx_buf_size(in->buf);
    }

    /* redacted, it comes in pieces */

    return ngx_http_capture_stall_room(size + size / 64) != NGX_OK;
}


/*
 * Records what there is room for; *in becomes that part, which may be passed
 * on.
 */

ngx_int_t
ngx_http_capture_stall(ngx_http_request_t *r, ngx_http_capture_ctx_t *ctx,
    ngx_chain_t **in)
{
    ngx_uint_t                progress;
    ngx_chain_t             **ll;
    ngx_http_capture_wait_t  *wait;

    wait = ctx->wait;

    if (ngx_http_capture_wait_keep(wait, &wait->unrecorded, *in) != NGX_OK) {
        return NGX_ERROR;
    }

    *in = NULL;

    progress = 0;
    ll = ngx_http_capture_stall_record(ctx, in, &progress);

    if (wait->unrecorded == NULL || ctx->state != ngx_http_capture_open) {
        *ll = wait->unrecorded;
        wait->unrecorded = NULL;
        ngx_http_capture_stall_end(wait);

        return NGX_OK;
    }

#if (NGX_HTTP_V2)
    if (r->stream == NULL)
#endif
    {
        r->request_body->filter_need_buffering = 1;
    }

    if (!wait->starved) {
        ngx_http_capture_stall_begin(wait);

    } else if (progress) {
        ngx_add_timer(&wait->timer, wait->timeout);
    }

    ngx_http_capture_wait_guard(wait);

    return NGX_OK;
}


static ngx_chain_t **
ngx_http_capture_stall_record(ngx_http_capture_ctx_t *ctx, ngx_chain_t **ll,
    ngx_uint_t *progress)
{
    ngx_int_t                 n;
    ngx_chain_t              *cl;
    ngx_http_capture_wait_t  *wait;

    wait = ctx->wait;

    while (wait->unrecorded) {
        cl = wait->unrecorded;

        n = ngx_http_capture_stall_piece(ctx, cl->buf, wait->recorded);

        if (n == NGX_DECLINED || ctx->state != ngx_http_capture_open) {
            break;
        }

        wait->recorded += n;
        *progress |= (n > 0);

        if ((off_t) wait->recorded < ngx_buf_size(cl->buf)) {
            continue;
        }

        wait->unrecorded = cl->next;
        wait->recorded = 0;

        cl->next = NULL;
        *ll = cl;
        ll = &cl->next;
    }

    return ll;
}


/* How many bytes of the buffer were recorded, or NGX_DECLINED: no room. */

static ngx_int_t
ngx_http_capture_stall_piece(ngx_http_capture_ctx_t *ctx, ngx_buf_t *b,
    size_t from)
{
    size_t       size;
    ngx_buf_t    buf;
    ngx_chain_t  one;

    size = ngx_min(ngx_buf_size(b) - (off_t) from,
                   NGX_HTTP_CAPTURE_STALL_PIECE);

    if (size == 0) {
        return 0;
    }

    if (ngx_http_capture_stall_room(size + NGX_HTTP_CAPTURE_STALL_EXTRA)
        != NGX_OK)
    {
        return NGX_DECLINED;
    }

    ngx_memzero(&buf, sizeof(ngx_buf_t));

    buf.temporary = 1;
    buf.pos = b->pos + from;
    buf.last = buf.pos + size;

    one.buf = &buf;
    one.next = NULL;

    ngx_http_capture_chain(ctx, CAP_FRAME_READ, &one, ctx->chunked);

    return size;
}


/* Without a pool there is no want of room: the exchange is lost otherwise. */

static ngx_int_t
ngx_http_capture_stall_room(size_t size)
{
    ngx_http_capture_pool_t  *pool;

    pool = ngx_http_capture_worker->pool;

    if (pool == NULL || ngx_http_capture_pool_room(pool, 0, size) == NGX_OK) {
        return NGX_OK;
    }

    ngx_http_capture_pool_collect(pool);

    return ngx_http_capture_pool_room(pool, 0, size);
}


static void
ngx_http_capture_stall_begin(ngx_http_capture_wait_t *wait)
{
    cap_header                 *h;
    ngx_http_capture_worker_t  *w;

    w = ngx_http_capture_worker;

    wait->starved = 1;
    ngx_queue_insert_tail(&w->starved, &wait->queue);

    wait->timer.handler = ngx_http_capture_stall_timer_handler;
    wait->timer.data = wait;
    wait->timer.log = wait->ctx->request->connection->log;

    ngx_add_timer(&wait->timer, wait->timeout);

    /*
     * pairs with the sidecar's fence: either it sees this word, or what it
     * gave back is seen here
     */

    h = (cap_header *) w->pool->base;

    atomic_store_explicit(&h->starved, 1, memory_order_relaxed);
    atomic_thread_fence(memory_order_seq_cst);

    if (ngx_http_capture_stall_room(NGX_HTTP_CAPTURE_STALL_PIECE
                                    + NGX_HTTP_CAPTURE_STALL_EXTRA)
        == NGX_OK)
    {
        ngx_post_event(wait->ctx->request->connection->read,
                       &ngx_posted_events);
    }
}


/* It goes on, or the request goes. */

void
ngx_http_capture_stall_end(ngx_http_capture_wait_t *wait)
{
    cap_header                 *h;
    ngx_http_capture_worker_t  *w;

    if (!wait->starved) {
        return;
    }

    w = ngx_http_capture_worker;

    wait->starved = 0;
    ngx_queue_remove(&wait->queue);

    if (wait->timer.timer_set) {
        ngx_del_timer(&wait->timer);
    }

    if (w->pool && ngx_queue_empty(&w->starved)) {
        h = (cap_header *) w->pool->base;
        atomic_store_explicit(&h->starved, 0, memory_order_relaxed);
    }
}


/* Blocks came back, or a pool has gone. */

void
ngx_http_capture_stall_wake(ngx_http_capture_worker_t *w)
{
    ngx_queue_t              *q;
    ngx_http_capture_wait_t  *wait;

    for (q = ngx_queue_head(&w->starved);
         q != ngx_queue_sentinel(&w->starved);
         q = ngx_queue_next(q))
    {
        wait = ngx_queue_data(q, ngx_http_capture_wait_t, queue);

        ngx_post_event(wait->ctx->request->connection->read,
                       &ngx_posted_events);
    }
}


static void
ngx_http_capture_stall_timer_handler(ngx_event_t *ev)
{
    ngx_http_capture_wait_t *wait = ev->data;

    ngx_http_capture_stall_end(wait);
    ngx_http_capture_no_room(wait->ctx);

    ngx_post_event(wait->ctx->request->connection->read, &ngx_posted_events);
}
