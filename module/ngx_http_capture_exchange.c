
/*
 * One exchange as frames.
 *
 * The grammar is wire/frame.h's; ctx->state says where in it an exchange is.
 * When its frames cannot be written (no room, the link or the connectionId
 * has gone) it ends here as lost, with the reason, and NGINX goes on.
 */


#include "ngx_http_capture.h"


static ngx_http_capture_pool_t *ngx_http_capture_exchange_pool(
    ngx_http_capture_ctx_t *ctx);
static cap_frame *ngx_http_capture_frame(ngx_http_capture_pool_t *pool,
    ngx_http_capture_ctx_t *ctx, ngx_uint_t type);
static void ngx_http_capture_chain_redacted(ngx_http_capture_ctx_t *ctx,
    ngx_uint_t type, ngx_http_capture_json_t *json, ngx_chain_t *in,
    ngx_uint_t chunked);
static void ngx_http_capture_not_read(ngx_http_capture_ctx_t *ctx);
static void ngx_http_capture_exchange_lost(ngx_http_capture_ctx_t *ctx,
    ngx_uint_t reason);
static void ngx_http_capture_chunk_size(ngx_http_capture_ctx_t *ctx,
    ngx_uint_t type, uint64_t size);


/*
 * Begins in the pool with the head; afterwards ctx->state is open, or lost.
 */

void
ngx_http_capture_begin(ngx_http_capture_ctx_t *ctx)
{
    cap_frame                *f;
    int64_t                   arrived;
    cap_header               *h;
    ngx_int_t                 reason;
    ngx_uint_t                topic;
    ngx_http_capture_conn_t  *conn;
    ngx_http_capture_pool_t  *pool;

    pool = ngx_http_capture_worker->pool;

    if (pool == NULL) {
        ngx_http_capture_exchange_lost(ctx, CAP_UNLINKED);
        return;
    }

    topic = ngx_http_capture_topic(pool, ctx->request, ctx->conf);

    if (topic == NGX_HTTP_CAPTURE_NO_TOPIC) {
        ngx_http_capture_exchange_lost(ctx, CAP_NO_TOPIC);
        return;
    }

    conn = ngx_http_capture_get_conn(ctx->request, topic);

    reason = conn ? ngx_http_capture_conn_begin(pool, conn, ctx->head_len)
                  : CAP_INTERNAL;

    if (reason != CAP_NONE) {
        ngx_http_capture_exchange_lost(ctx, reason);
        return;
    }

    ctx->conn = conn;
    ctx->epoch = pool->epoch;
    ctx->frame.slot = conn->slot;
    ctx->frame.slot_generation = conn->generation;
    ctx->state = ngx_http_capture_open;

    ngx_http_capture_track(ctx);

    h = (cap_header *) pool->base;
    ngx_http_capture_add(&h->worker.handed, 1);

    /* phases may have taken their time; there was no pool: not known */

    if (ctx->arrived > conn->last_ts) {
        conn->last_ts = ctx->arrived;
    }

    arrived = ctx->arrived ? conn->last_ts
                           : ngx_http_capture_conn_time(pool, conn);

    f = ngx_http_capture_frame(pool, ctx, CAP_FRAME_READ);
    f->flags = CAP_FRAME_BEGIN;
    f->ts_ns = arrived;

    if (ngx_http_capture_pool_data(pool, f, ctx->head, ctx->head_len)
        != NGX_OK)
    {
        ngx_http_capture_no_room(ctx);
    }
}


void
ngx_http_capture_data(ngx_http_capture_ctx_t *ctx, ngx_uint_t type,
    u_char *data, size_t len)
{
    cap_frame                *f;
    cap_header               *h;
    ngx_http_capture_pool_t  *pool;

    pool = ngx_http_capture_exchange_pool(ctx);

    if (pool == NULL || len == 0) {
        return;
    }

    if (type == CAP_FRAME_WRITE && !ctx->eom_sent) {
        ngx_http_capture_early_hold(ctx, data, len);
        return;
    }

    f = ngx_http_capture_frame(pool, ctx, type);

    if (ngx_http_capture_pool_data(pool, f, data, len) != NGX_OK) {
        ngx_http_capture_no_room(ctx);
        return;
    }

    h = (cap_header *) pool->base;
    ngx_http_capture_add(&h->worker.bytes, len);
}


/*
 * The memory buffers of a chain, as one chunk where framing is chunked.
 */

void
ngx_http_capture_chain(ngx_http_capture_ctx_t *ctx, ngx_uint_t type,
    ngx_chain_t *in, ngx_uint_t chunked)
{
    off_t                     size;
    ngx_chain_t              *cl;
    ngx_http_capture_json_t  *json;

    size = 0;

    json = (type == CAP_FRAME_READ) ? ctx->request_json : ctx->response_json;

    if (json) {
        ngx_http_capture_chain_redacted(ctx, type, json, in, chunked);
        return;
    }

    if (chunked) {
        for (cl = in; cl; cl = cl->next) {
            size += ngx_buf_size(cl->buf);
        }

        if (size == 0) {
            return;
        }

        ngx_http_capture_chunk_size(ctx, type, size);
    }

    for (cl = in; cl; cl = cl->next) {

        if (ngx_buf_in_memory(cl->buf)) {
            ngx_http_capture_data(ctx, type, cl->buf->pos,
                                  cl->buf->last - cl->buf->pos);

        } else if (cl->buf->in_file) {
            ngx_http_capture_not_read(ctx);
            return;
        }
    }

    if (chunked) {
        ngx_http_capture_data(ctx, type, (u_char *) CRLF, 2);
    }
}


static void
ngx_http_capture_chain_redacted(ngx_http_capture_ctx_t *ctx, ngx_uint_t type,
    ngx_http_capture_json_t *json, ngx_chain_t *in, ngx_uint_t chunked)
{
    ngx_chain_t  *cl;

    for (cl = in; cl; cl = cl->next) {

        if (ngx_buf_in_memory(cl->buf)) {
            ngx_http_capture_redact_data(ctx, type, json, cl->buf->pos,
                                         cl->buf->last - cl->buf->pos, chunked);

        } else if (cl->buf->in_file) {
            ngx_http_capture_not_read(ctx);
            return;
        }
    }
}


/* The copy filter was told to read files; something below it didn't. */

static void
ngx_http_capture_not_read(ngx_http_capture_ctx_t *ctx)
{
    ngx_http_capture_finish(ctx, CAP_FRAME_ABANDON,
                            ctx->eom_sent ? CAP_RESPONSE : CAP_INTERNAL);
}


/* A chunk by itself; none where there is nothing. */

void
ngx_http_capture_chunk(ngx_http_capture_ctx_t *ctx, ngx_uint_t type,
    u_char *data, size_t len)
{
    if (len == 0) {
        return;
    }

    ngx_http_capture_chunk_size(ctx, type, len);
    ngx_http_capture_data(ctx, type, data, len);
    ngx_http_capture_data(ctx, type, (u_char *) CRLF, 2);
}


/* The request is complete, and NGINX is committed to forward it. */

void
ngx_http_capture_eom(ngx_http_capture_ctx_t *ctx, ngx_uint_t flags)
{
    cap_frame                *f;
    ngx_http_capture_pool_t  *pool;

    pool = ngx_http_capture_exchange_pool(ctx);

    if (pool == NULL || ctx->eom_sent) {
        return;
    }

    f = ngx_http_capture_frame(pool, ctx, CAP_FRAME_EOM);
    f->size = sizeof(cap_eom);
    f->flags = flags;

    if (ngx_http_capture_pool_control(pool, f, &ctx->eom) == NGX_OK) {
        ctx->eom_sent = 1;
        ngx_http_capture_early_flush(ctx);
    }
}


/* The request is complete, but NGINX may still not forward it. */

void
ngx_http_capture_hold(ngx_http_capture_ctx_t *ctx)
{
    ngx_http_capture_pool_t  *pool;

    pool = ngx_http_capture_exchange_pool(ctx);

    if (pool) {
        (void) ngx_http_capture_pool_control(pool,
                       ngx_http_capture_frame(pool, ctx, CAP_FRAME_HOLD), NULL);
    }
}


/*
 * The exchange's last frame: END, DROP (filtered) or ABANDON (lost).  All but
 * a complete END and a DROP end the connectionId too.
 */

void
ngx_http_capture_finish(ngx_http_capture_ctx_t *ctx, ngx_uint_t type,
    ngx_uint_t code)
{
    cap_frame                *f;
    ngx_http_capture_conn_t  *conn;
    ngx_http_capture_pool_t  *pool;

    pool = ngx_http_capture_exchange_pool(ctx);

    if (pool == NULL) {
        return;
    }

    f = ngx_http_capture_frame(pool, ctx, type);
    f->code = code;

    conn = ctx->conn;

    ngx_http_capture_conn_end(pool, conn);

    if (type == CAP_FRAME_ABANDON
        || (type == CAP_FRAME_END && code != CAP_END_COMPLETE))
    {
        ngx_http_capture_conn_leave(pool, conn);
    }

    (void) ngx_http_capture_pool_control(pool, f, NULL);

    ctx->end_seq = f->seq;

    ngx_http_capture_conn_reclaim(pool);

    switch (type) {

    case CAP_FRAME_END:
        ctx->state = ngx_http_capture_ended;
        break;

    case CAP_FRAME_DROP:
        ctx->state = ngx_http_capture_dropped;
        ctx->reason = code;
        ngx_http_capture_mark_uncaptured(ctx, code == CAP_TOO_LARGE);
        break;

    default:
        ctx->state = ngx_http_capture_lost;
        ctx->reason = code;

        if (!ctx->eom_sent) {
            ngx_http_capture_mark_uncaptured(ctx, 0);
        }

        break;
    }
}


/*
 * Whether the sidecar has said that all up to `seq` is durable, in Kafka or,
 * where that is enough, on its disk: NGX_OK,
 * NGX_AGAIN, or NGX_DECLINED where it never will.
 */

ngx_int_t
ngx_http_capture_acked(ngx_http_capture_ctx_t *ctx, uint64_t seq)
{
    uint64_t                  acked, synced;
    cap_slot                 *slot;
    ngx_http_capture_pool_t  *pool;

    pool = ngx_http_capture_worker->pool;

    if (pool == NULL || ctx->epoch != pool->epoch
        || pool->slot_gen[ctx->frame.slot] != ctx->frame.slot_generation)
    {
        return NGX_DECLINED;
    }

    slot = cap_slot_at(pool->base, &pool->geo, ctx->frame.slot);
    acked = atomic_load_explicit(&slot->acked, memory_order_acquire);
    synced = atomic_load_explicit(&slot->synced, memory_order_acquire);

    if (CAP_ACKED_SEQ(acked) < seq) {
        return (synced >= seq) ? NGX_OK : NGX_AGAIN;
    }

    /* who asks, asks for the exchange that is open there */

    return (CAP_ACKED_FLAGS(acked) & CAP_ACKED_LOST) ? NGX_DECLINED : NGX_OK;
}


/* The pool that an open exchange writes to, or NULL: it is no longer open. */

static ngx_http_capture_pool_t *
ngx_http_capture_exchange_pool(ngx_http_capture_ctx_t *ctx)
{
    ngx_http_capture_pool_t  *pool;

    if (ctx->state != ngx_http_capture_open) {
        return NULL;
    }

    pool = ngx_http_capture_worker->pool;

    if (pool && ctx->epoch == pool->epoch
        && ctx->conn->slot == ctx->frame.slot
        && ctx->conn->generation == ctx->frame.slot_generation)
    {
        return pool;
    }

    /* counted by whoever gave up the link or the connectionId */

    ctx->state = ngx_http_capture_lost;
    ctx->reason = CAP_LINK_LOST;

    ngx_http_capture_mark_uncaptured(ctx, 0);

    return NULL;
}


static cap_frame *
ngx_http_capture_frame(ngx_http_capture_pool_t *pool,
    ngx_http_capture_ctx_t *ctx, ngx_uint_t type)
{
    cap_frame  *f;

    f = &ctx->frame;

    f->size = 0;
    f->type = type;
    f->flags = 0;
    f->code = 0;
    f->ts_ns = ngx_http_capture_conn_time(pool, ctx->conn);

    return f;
}


/* Before it has begun: nothing of it will be in the topic. */

static void
ngx_http_capture_exchange_lost(ngx_http_capture_ctx_t *ctx, ngx_uint_t reason)
{
    ctx->state = ngx_http_capture_lost;

    if (ctx->wait && ctx->wait->refuse) {
        ctx->wait->refused = 1;
        ctx->state = ngx_http_capture_filtered;
        reason = CAP_REFUSED;
    }

    ctx->reason = reason;

    ngx_http_capture_count(reason);
    ngx_http_capture_mark_uncaptured(ctx, 0);
}


/* For data, in the middle of it. */

void
ngx_http_capture_no_room(ngx_http_capture_ctx_t *ctx)
{
    if (ctx->wait && ctx->wait->refuse && !ctx->eom_sent) {
        ctx->wait->refused = 1;
        ngx_http_capture_finish(ctx, CAP_FRAME_DROP, CAP_REFUSED);
        return;
    }

    ngx_http_capture_finish(ctx, CAP_FRAME_ABANDON,
                            ctx->eom_sent ? CAP_RESPONSE : CAP_POOL_FULL);
}


static void
ngx_http_capture_chunk_size(ngx_http_capture_ctx_t *ctx, ngx_uint_t type,
    uint64_t size)
{
    static u_char  hex[] = "0123456789abcdef";
    static u_char  line[sizeof("ffffffffffffffff" CRLF)];

    u_char     *p;
    ngx_int_t   shift;

    p = line;

    for (shift = 60; shift > 0 && (size >> shift) == 0; shift -= 4) {
        /* void */
    }

    for ( /* void */ ; shift >= 0; shift -= 4) {
        *p++ = hex[(size >> shift) & 0xf];
    }

    *p++ = CR; *p++ = LF;

    ngx_http_capture_data(ctx, type, line, p - line);
}
