
/*
 * Responses that begin before their request has ended: unbuffered uploads
 * that the source answers early, gRPC streams.
 *
 * The record's grammar has a response after endOfMessage only.  Until that is
 * written the response's bytes are held here, in the worker, and written
 * behind it: whole and in order, with the time at which the request ended.
 * A request that never ends takes what is held with it.
 *
 * Both bounds are of memory, not of bytes held.  What is beyond them is not
 * recorded: then the request is, the beginning of its response, and its
 * connectionId ends as lost(response).
 */


#include "ngx_http_capture.h"


#define NGX_HTTP_CAPTURE_EARLY_PIECE    8192

/* of an exchange; of a worker: a part of capture_buffer, and beside it */

#define NGX_HTTP_CAPTURE_EARLY_MAX      (256 * 1024)
#define NGX_HTTP_CAPTURE_EARLY_PART     8


struct ngx_http_capture_early_s {
    ngx_http_capture_early_t  *next;
    size_t                     len;
    u_char                     data[1];
};


/* A piece, as it is allocated; NGINX takes these from malloc. */

#define NGX_HTTP_CAPTURE_EARLY_ROOM                                           \
    (NGX_HTTP_CAPTURE_EARLY_PIECE - offsetof(ngx_http_capture_early_t, data))


static ngx_http_capture_early_t *ngx_http_capture_early_piece(
    ngx_http_capture_ctx_t *ctx);


/* Of all requests of this worker. */

static size_t  ngx_http_capture_early_held;


/*
 * Whether the end of this request was read, or may still come.  If not, its
 * response has no place in the record: what NGINX discards passes our filter
 * by, and only a handler that reads unbuffered answers in the middle.
 */

ngx_uint_t
ngx_http_capture_early_may_end(ngx_http_capture_ctx_t *ctx)
{
    return ctx->eom_sent || ctx->request->reading_body;
}


/* Bytes of a response whose request has not ended. */

void
ngx_http_capture_early_hold(ngx_http_capture_ctx_t *ctx, u_char *data,
    size_t len)
{
    size_t                     n;
    ngx_http_capture_early_t  *piece;

    while (len && !ctx->early_cut) {

        piece = ctx->early_last;

        if (piece == NULL || piece->len == NGX_HTTP_CAPTURE_EARLY_ROOM) {
            piece = ngx_http_capture_early_piece(ctx);

            if (piece == NULL) {
                ctx->early_cut = 1;
                return;
            }
        }

        n = ngx_min(len, NGX_HTTP_CAPTURE_EARLY_ROOM - piece->len);

        ngx_memcpy(piece->data + piece->len, data, n);

        piece->len += n;
        data += n;
        len -= n;
    }
}


static ngx_http_capture_early_t *
ngx_http_capture_early_piece(ngx_http_capture_ctx_t *ctx)
{
    size_t                     max;
    ngx_http_capture_early_t  *piece;

    max = ngx_http_capture_worker->buffer / NGX_HTTP_CAPTURE_EARLY_PART;

    if (ctx->early_size + NGX_HTTP_CAPTURE_EARLY_PIECE
        > NGX_HTTP_CAPTURE_EARLY_MAX
        || ngx_http_capture_early_held + NGX_HTTP_CAPTURE_EARLY_PIECE > max)
    {
        return NULL;
    }

    piece = ngx_palloc(ctx->request->pool, NGX_HTTP_CAPTURE_EARLY_PIECE);
    if (piece == NULL) {
        return NULL;
    }

    piece->next = NULL;
    piece->len = 0;

    if (ctx->early_last) {
        ctx->early_last->next = piece;

    } else {
        ctx->early = piece;
    }

    ctx->early_last = piece;
    ctx->early_size += NGX_HTTP_CAPTURE_EARLY_PIECE;
    ngx_http_capture_early_held += NGX_HTTP_CAPTURE_EARLY_PIECE;

    return piece;
}


/*
 * The request has ended: now its response may follow.  Whoever waits, waits
 * for endOfMessage alone: frame.seq stays its number.
 */

void
ngx_http_capture_early_flush(ngx_http_capture_ctx_t *ctx)
{
    uint64_t                   seq;
    ngx_http_capture_early_t  *piece;

    seq = ctx->frame.seq;

    for (piece = ctx->early; piece; piece = piece->next) {
        ngx_http_capture_data(ctx, CAP_FRAME_WRITE, piece->data, piece->len);
    }

    ngx_http_capture_early_free(ctx);

    if (ctx->early_cut) {
        ngx_http_capture_finish(ctx, CAP_FRAME_ABANDON, CAP_RESPONSE);
    }

    ctx->frame.seq = seq;
}


/*
 * The response is complete.  If the request is not it will never be: NGINX
 * reads nothing more of it through its filters.
 */

void
ngx_http_capture_early_end(ngx_http_capture_ctx_t *ctx)
{
    if (ctx->eom_sent) {
        ngx_http_capture_finish(ctx, CAP_FRAME_END, CAP_END_COMPLETE);
        return;
    }

    ngx_http_capture_finish(ctx, CAP_FRAME_DROP, CAP_UNREAD_BODY);
    ngx_http_capture_early_free(ctx);
}


/* What is held was written, or has no use any more. */

void
ngx_http_capture_early_free(ngx_http_capture_ctx_t *ctx)
{
    ngx_pool_t                *pool;
    ngx_http_capture_early_t  *piece, *next;

    pool = ctx->request->pool;

    /* NULL in the pool's cleanup, which frees it all */

    for (piece = pool ? ctx->early : NULL; piece; piece = next) {
        next = piece->next;
        (void) ngx_pfree(pool, piece);
    }

    ngx_http_capture_early_held -= ctx->early_size;

    ctx->early = NULL;
    ctx->early_last = NULL;
    ctx->early_size = 0;
}
