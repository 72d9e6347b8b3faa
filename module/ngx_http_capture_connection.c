
/*
 * Client connections and their connectionIds.
 *
 * A connectionId (a slot of the pool) is taken at a connection's first
 * captured request, and another one after a loss, a cut, or a new link: one
 * that was abandoned is never used again.  Its close is written when the
 * connection's pool goes.
 *
 * A connectionId holds one exchange at a time.  HTTP/2 and 3 have many: each
 * stream takes the lowest lane of its connection that is free, and each lane
 * has a connectionId of its own.  HTTP/1 uses the first alone.
 *
 * A connectionId belongs to one destination: a lane that has one is free for no
 * other.  So a connection whose requests go to several has a lane for each.
 *
 * A lane keeps its connectionId while it is idle, as a connection does, unless
 * slots get few: then the lanes beside a connection's first that have been
 * idle longest give theirs back.
 */


#include "ngx_http_capture.h"


/* room for the frames that must always find some */

#define NGX_HTTP_CAPTURE_KEEP_CONN      CAP_FRAME_SPACE(0)
#define NGX_HTTP_CAPTURE_KEEP_EXCHANGE                                        \
    (CAP_FRAME_SPACE(sizeof(cap_eom)) + 2 * CAP_FRAME_SPACE(0))

/* slots that are to be free, or on their way back: one in so many */

#define NGX_HTTP_CAPTURE_FREE_SLOTS     4


static ngx_pool_t *ngx_http_capture_conn_pool(ngx_connection_t *c);
static void ngx_http_capture_conn_spare(ngx_http_capture_pool_t *pool,
    ngx_http_capture_conn_t *conn);
static void ngx_http_capture_conn_unspare(ngx_http_capture_conn_t *conn);
static void ngx_http_capture_conn_cleanup(void *data);
static void ngx_http_capture_conn_close(ngx_http_capture_pool_t *pool,
    ngx_http_capture_conn_t *conn);


/*
 * A lane of r's client connection that is free for this destination.  Lanes
 * hang on the connection's pool and are as many as streams were ever open at
 * once, and destinations used: pointers and numbers of connections are
 * recycled.
 */

ngx_http_capture_conn_t *
ngx_http_capture_get_conn(ngx_http_request_t *r, ngx_uint_t topic)
{
    ngx_pool_t                *pool;
    ngx_pool_cleanup_t        *cln;
    ngx_http_capture_conn_t  **lane;

    pool = ngx_http_capture_conn_pool(r->connection);

    for (cln = pool->cleanup; cln; cln = cln->next) {
        if (cln->handler == ngx_http_capture_conn_cleanup) {
            break;
        }
    }

    if (cln == NULL) {
        cln = ngx_pool_cleanup_add(pool, sizeof(ngx_http_capture_conn_t *));
        if (cln == NULL) {
            return NULL;
        }

        *(ngx_http_capture_conn_t **) cln->data = NULL;
        cln->handler = ngx_http_capture_conn_cleanup;
    }

    for (lane = cln->data; *lane; lane = &(*lane)->next) {
        if ((*lane)->epoch != ngx_http_capture_worker->pool->epoch
            || (!(*lane)->open
                && ((*lane)->topic == topic
                    || (*lane)->slot == NGX_HTTP_CAPTURE_NO_SLOT)))
        {
            (*lane)->topic = topic;
            return *lane;
        }
    }

    *lane = ngx_pcalloc(pool, sizeof(ngx_http_capture_conn_t));

    if (*lane) {
        (*lane)->slot = NGX_HTTP_CAPTURE_NO_SLOT;
        (*lane)->topic = topic;
        (*lane)->extra = (lane != cln->data);
    }

    return *lane;
}


/*
 * The pool that lives as long as the client's connection.  HTTP/2 streams share
 * it; an HTTP/3 stream has a connection and a pool of its own.
 */

static ngx_pool_t *
ngx_http_capture_conn_pool(ngx_connection_t *c)
{
#if (NGX_HTTP_V3)

    if (c->quic) {
        return c->quic->parent->pool;
    }

#endif

    return c->pool;
}


/*
 * Makes room for an exchange: a slot, what its end will need, and the head.
 * Returns 0, or the reason (lost) why it cannot begin.
 */

ngx_int_t
ngx_http_capture_conn_begin(ngx_http_capture_pool_t *pool,
    ngx_http_capture_conn_t *conn, size_t head_len)
{
    size_t  keep;

    if (conn->epoch != pool->epoch) {
        conn->epoch = pool->epoch;
        conn->slot = NGX_HTTP_CAPTURE_NO_SLOT;
        conn->open = 0;
        conn->spare = 0;        /* that queue has gone with its pool */
    }

    if (conn->open) {
        return CAP_INTERNAL;
    }

    /* what was returned may tell that the sidecar gave up our slot */

    ngx_http_capture_pool_collect(pool);

    keep = NGX_HTTP_CAPTURE_KEEP_EXCHANGE;

    if (conn->slot == NGX_HTTP_CAPTURE_NO_SLOT) {
        keep += NGX_HTTP_CAPTURE_KEEP_CONN;
        ngx_http_capture_conn_reclaim(pool);
    }

    if (ngx_http_capture_pool_room(pool, keep, head_len) != NGX_OK) {
        return CAP_POOL_FULL;
    }

    if (conn->slot == NGX_HTTP_CAPTURE_NO_SLOT) {
        conn->slot = ngx_http_capture_pool_take_slot(pool, conn);

        if (conn->slot == NGX_HTTP_CAPTURE_NO_SLOT) {
            return CAP_NO_SLOT;
        }

        conn->generation = pool->slot_gen[conn->slot];
    }

    ngx_http_capture_conn_unspare(conn);

    conn->open = 1;
    pool->reserved += keep;

    return CAP_NONE;
}


/* The exchange is over; the connectionId goes on. */

void
ngx_http_capture_conn_end(ngx_http_capture_pool_t *pool,
    ngx_http_capture_conn_t *conn)
{
    if (conn->open) {
        conn->open = 0;
        pool->reserved -= NGX_HTTP_CAPTURE_KEEP_EXCHANGE;
        ngx_http_capture_conn_spare(pool, conn);
    }
}


/* A lane has become idle. */

static void
ngx_http_capture_conn_spare(ngx_http_capture_pool_t *pool,
    ngx_http_capture_conn_t *conn)
{
    if (conn->extra) {
        conn->spare = 1;
        ngx_queue_insert_tail(&pool->spares, &conn->queue);
    }
}


static void
ngx_http_capture_conn_unspare(ngx_http_capture_conn_t *conn)
{
    if (conn->spare) {
        conn->spare = 0;
        ngx_queue_remove(&conn->queue);
    }
}


/*
 * Closes idle lanes before slots run out: a slot comes back only when the
 * close is acknowledged.
 */

void
ngx_http_capture_conn_reclaim(ngx_http_capture_pool_t *pool)
{
    ngx_queue_t  *q;

    while (pool->nfree_slots + pool->left_slots
           < pool->geo.nslots / NGX_HTTP_CAPTURE_FREE_SLOTS
           && !ngx_queue_empty(&pool->spares))
    {
        q = ngx_queue_head(&pool->spares);
        ngx_http_capture_conn_close(pool,
                          ngx_queue_data(q, ngx_http_capture_conn_t, queue));
    }
}


/*
 * The connectionId is over: its last frame is written, or the sidecar took
 * it back.  The next exchange takes another.
 */

void
ngx_http_capture_conn_leave(ngx_http_capture_pool_t *pool,
    ngx_http_capture_conn_t *conn)
{
    ngx_http_capture_conn_end(pool, conn);
    ngx_http_capture_conn_unspare(conn);

    if (conn->slot != NGX_HTTP_CAPTURE_NO_SLOT) {
        pool->slot_conn[conn->slot] = NULL;
        pool->left_slots++;
        pool->reserved -= NGX_HTTP_CAPTURE_KEEP_CONN;
        conn->slot = NGX_HTTP_CAPTURE_NO_SLOT;
    }
}


static void
ngx_http_capture_conn_cleanup(void *data)
{
    ngx_http_capture_conn_t **lanes = data;

    ngx_http_capture_conn_t  *conn;
    ngx_http_capture_pool_t  *pool;

    pool = ngx_http_capture_worker ? ngx_http_capture_worker->pool : NULL;

    if (pool == NULL) {
        return;
    }

    for (conn = *lanes; conn; conn = conn->next) {
        if (conn->epoch == pool->epoch
            && conn->slot != NGX_HTTP_CAPTURE_NO_SLOT)
        {
            ngx_http_capture_conn_close(pool, conn);
        }
    }
}


static void
ngx_http_capture_conn_close(ngx_http_capture_pool_t *pool,
    ngx_http_capture_conn_t *conn)
{
    cap_frame  f;

    ngx_memzero(&f, sizeof(cap_frame));

    f.type = conn->open ? CAP_FRAME_ABANDON : CAP_FRAME_CLOSE;
    f.code = conn->open ? CAP_INTERNAL : 0;
    f.slot = conn->slot;
    f.slot_generation = conn->generation;
    f.ts_ns = ngx_http_capture_conn_time(pool, conn);

    ngx_http_capture_conn_leave(pool, conn);

    (void) ngx_http_capture_pool_control(pool, &f, NULL);
}
