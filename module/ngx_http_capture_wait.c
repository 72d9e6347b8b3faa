
/*
 * Waiting: a request whose client asked for it to be safe is held until its
 * bytes are durable, and only then its end goes on to the source.
 *
 * The hold begins when the request is complete: in the precontent phase where
 * it has no body, else in the request body filter, which keeps the last
 * buffers back.  It ends by the sidecar's acknowledgement (acked_seq of the
 * slot, and a ring of the doorbell), by the timer, or at once when the
 * exchange is lost.
 *
 * What is waited for is the endOfMessage itself, or (refuse, upgrade) a HOLD
 * frame behind the reads: then the endOfMessage is written at the release,
 * because nothing takes it back.
 *
 * After some failures in a row nobody waits but one probe at a time.
 */


#include "ngx_http_capture.h"


/* failures in a row until requests no longer wait */
#define NGX_HTTP_CAPTURE_WAIT_FAILURES  5

/* seconds, of a refused request's answer */
#define NGX_HTTP_CAPTURE_RETRY_AFTER    "1"

/* of rings that are read in a turn */
#define NGX_HTTP_CAPTURE_WAIT_RINGS     65536


static ngx_int_t ngx_http_capture_wait_wanted(ngx_http_request_t *r,
    ngx_http_capture_loc_conf_t *clcf);
static void ngx_http_capture_wait_unlink(ngx_http_capture_wait_t *wait);
static void ngx_http_capture_wait_count(ngx_http_capture_wait_t *wait,
    ngx_http_capture_wait_e state);
static void ngx_http_capture_wait_end(ngx_http_capture_wait_t *wait,
    ngx_http_capture_wait_e state);
static void ngx_http_capture_wait_failed(ngx_http_capture_wait_t *wait);
static void ngx_http_capture_wait_resume(ngx_http_capture_wait_t *wait);
static void ngx_http_capture_wait_timer_handler(ngx_event_t *ev);
static ngx_uint_t ngx_http_capture_wait_client_gone(ngx_http_request_t *r);
static ngx_uint_t ngx_http_capture_wait_cancelled(ngx_http_request_t *r);
static void ngx_http_capture_wait_ended(ngx_http_capture_wait_t *wait,
    ngx_chain_t *in);
static ngx_int_t ngx_http_capture_wait_answer(ngx_http_request_t *r);
static void ngx_http_capture_wait_guard_handler(ngx_event_t *ev);
static void ngx_http_capture_wait_read_handler(ngx_http_request_t *r);


/*
 * Once a request, before its frames: whether its end will be held.  Returns
 * CAP_NONE, or why it is not captured.
 */

ngx_int_t
ngx_http_capture_wait_decide(ngx_http_request_t *r,
    ngx_http_capture_ctx_t *ctx, ngx_http_capture_loc_conf_t *clcf)
{
    ngx_http_capture_wait_t    *wait;
    ngx_http_capture_worker_t  *w;

    if (!ngx_http_capture_wait_wanted(r, clcf)) {
        return CAP_NONE;
    }

    wait = ngx_pcalloc(r->pool, sizeof(ngx_http_capture_wait_t));
    if (wait == NULL) {
        return CAP_INTERNAL;
    }

    wait->ctx = ctx;
    wait->timeout = clcf->wait_timeout;
    wait->refuse = (clcf->on_failure == NGX_HTTP_CAPTURE_REFUSE);

    ctx->wait = wait;

    w = ngx_http_capture_worker;

    if (wait->refuse && w->probe
        && w->wait_failures >= NGX_HTTP_CAPTURE_WAIT_FAILURES)
    {
        wait->refused = 1;
        ngx_http_capture_count_wait(CAP_WAIT_SKIPPED, 1);
        return CAP_REFUSED;
    }

    return CAP_NONE;
}


static ngx_int_t
ngx_http_capture_wait_wanted(ngx_http_request_t *r,
    ngx_http_capture_loc_conf_t *clcf)
{
    if (clcf->wait_for) {
        return ngx_http_test_predicates(r, clcf->wait_for) == NGX_DECLINED;
    }

    return clcf->wait
           && (r->method & (NGX_HTTP_POST|NGX_HTTP_PUT|NGX_HTTP_DELETE
                            |NGX_HTTP_PATCH));
}


/*
 * All of the request is written: holds it, unless that is of no use.  The
 * endOfMessage of a request that may still be refused is not written yet.
 */

void
ngx_http_capture_wait_begin(ngx_http_capture_ctx_t *ctx)
{
    ngx_http_capture_wait_t    *wait;
    ngx_http_capture_worker_t  *w;

    w = ngx_http_capture_worker;
    wait = ctx->wait;

    if (ctx->state != ngx_http_capture_open) {
        ngx_http_capture_wait_end(wait, ngx_http_capture_wait_lost);
        return;
    }

    if (w->wait_failures >= NGX_HTTP_CAPTURE_WAIT_FAILURES) {

        if (w->probe) {
            ngx_http_capture_wait_end(wait, ngx_http_capture_wait_skipped);
            return;
        }

        w->probe = wait;
    }

    if (wait->refuse || ctx->upgrade) {
        ngx_http_capture_hold(ctx);

    } else {
        ngx_http_capture_eom(ctx, CAP_FRAME_WAIT);
    }

    wait->seq = ctx->frame.seq;
    wait->begun = ngx_current_msec;

    ngx_http_capture_wait_count(wait, ngx_http_capture_wait_held);

    w->pool->urgent = 1;

    ngx_queue_insert_tail(&w->waiters, &wait->queue);

    wait->timer.handler = ngx_http_capture_wait_timer_handler;
    wait->timer.data = wait;
    wait->timer.log = ctx->request->connection->log;

    ngx_add_timer(&wait->timer, wait->timeout);
}


/*
 * For the precontent phase, of a request without a body: NGX_AGAIN while it
 * is held, NGX_DECLINED to go on, or the status that refuses it.
 */

ngx_int_t
ngx_http_capture_wait_phase(ngx_http_request_t *r,
    ngx_http_capture_ctx_t *ctx)
{
    ngx_http_capture_wait_t  *wait;

    wait = ctx->wait;

    if (wait->state == ngx_http_capture_wait_held) {

        if (wait->refuse && r->read_event_handler != ngx_http_test_reading) {
            r->read_event_handler = ngx_http_test_reading;

            /* its client may have left before */

            ngx_post_event(r->connection->read, &ngx_posted_events);
        }

        return NGX_AGAIN;
    }

    if (r->read_event_handler == ngx_http_test_reading) {
        r->read_event_handler = ngx_http_block_reading;
    }

    return wait->refused ? ngx_http_capture_wait_answer(r) : NGX_DECLINED;
}


/*
 * For the request body filter, once the hold has begun: passes on what it
 * has kept when it is over, or the status that refuses the request.
 */

ngx_int_t
ngx_http_capture_wait_body(ngx_http_request_t *r, ngx_http_capture_ctx_t *ctx,
    ngx_chain_t *in, ngx_http_request_body_filter_pt next)
{
    ngx_chain_t              *out;
    ngx_http_capture_wait_t  *wait;

    wait = ctx->wait;

    if (wait->refused) {
        return ngx_http_capture_wait_answer(r);
    }

    if (wait->state != ngx_http_capture_wait_held && wait->kept == NULL) {
        return next(r, in);
    }

    if (r->http_version > NGX_HTTP_VERSION_20) {
        ngx_http_capture_wait_ended(wait, in);
    }

    if (ngx_http_capture_wait_keep(wait, &wait->kept, in) != NGX_OK) {
        return NGX_HTTP_INTERNAL_SERVER_ERROR;
    }

    if (wait->state == ngx_http_capture_wait_held) {

        if (wait->refuse && ngx_http_capture_wait_client_gone(r)) {
            return NGX_HTTP_CLIENT_CLOSED_REQUEST;
        }

        ngx_http_capture_wait_guard(wait);

        return next(r, NULL);
    }

    out = wait->kept;
    wait->kept = NULL;

    return next(r, out);
}


/*
 * HTTP/3's own filter forgets whenever it is called without data, as it is at
 * the release, that the end has come: it would read on until
 * client_body_timeout, and pass on another last buffer.
 */

static void
ngx_http_capture_wait_ended(ngx_http_capture_wait_t *wait, ngx_chain_t *in)
{
    for ( /* void */ ; in; in = in->next) {
        wait->ended |= in->buf->last_buf;
    }

    if (wait->ended) {
        wait->ctx->request->request_body->rest = 0;
    }
}


/*
 * The data stays where it is, nothing more is read there.  An empty buffer,
 * though, is taken back as soon as we return.
 */

ngx_int_t
ngx_http_capture_wait_keep(ngx_http_capture_wait_t *wait, ngx_chain_t **ll,
    ngx_chain_t *in)
{
    ngx_pool_t   *pool;
    ngx_chain_t  *cl;

    pool = wait->ctx->request->pool;

    for ( /* void */ ; *ll; ll = &(*ll)->next) { /* void */ }

    for ( /* void */ ; in; in = in->next) {

        cl = ngx_alloc_chain_link(pool);
        if (cl == NULL) {
            return NGX_ERROR;
        }

        cl->buf = in->buf;
        cl->next = NULL;

        if (ngx_buf_size(in->buf) == 0) {
            cl->buf = ngx_alloc_buf(pool);
            if (cl->buf == NULL) {
                return NGX_ERROR;
            }

            *cl->buf = *in->buf;
        }

        *ll = cl;
        ll = &cl->next;
    }

    return NGX_OK;
}


/* As NGINX itself would see it, did it look while a request is complete. */

static ngx_uint_t
ngx_http_capture_wait_client_gone(ngx_http_request_t *r)
{
    u_char             byte;
    ssize_t            n;
    ngx_connection_t  *c;

    c = r->connection;

#if (NGX_HTTP_V3)

    if (c->quic) {

        /* eof is how a request ends */

        return c->error || c->read->error
               || ngx_http_capture_wait_cancelled(r);
    }

#endif

    if (c->error || c->read->eof || c->read->pending_eof) {
        return 1;
    }

#if (NGX_HTTP_V2)

    if (r->stream) {
        return 0;
    }

#endif

    if (r->http_version > NGX_HTTP_VERSION_11) {
        return 0;
    }

    n = recv(c->fd, &byte, 1, MSG_PEEK|MSG_DONTWAIT);

    return n == 0 || (n == -1 && ngx_socket_errno != NGX_EAGAIN
                      && ngx_socket_errno != NGX_EINTR);
}


/*
 * HTTP/3: the client does not want the answer (STOP_SENDING).  Of this NGINX
 * tells nobody while a request is read.
 */

static ngx_uint_t
ngx_http_capture_wait_cancelled(ngx_http_request_t *r)
{
#if (NGX_HTTP_V3)

    return r->connection->quic && r->connection->write->error;

#else

    return 0;

#endif
}


/* The doorbell has rung, blocks came back, or a pool has gone. */

void
ngx_http_capture_wait_wake(ngx_http_capture_worker_t *w)
{
    ngx_queue_t              *q, *next;
    ngx_http_capture_wait_t  *wait;

    ngx_http_capture_stall_wake(w);

    for (q = ngx_queue_head(&w->waiters);
         q != ngx_queue_sentinel(&w->waiters);
         q = next)
    {
        next = ngx_queue_next(q);
        wait = ngx_queue_data(q, ngx_http_capture_wait_t, queue);

        switch (ngx_http_capture_acked(wait->ctx, wait->seq)) {

        case NGX_OK:
            ngx_http_capture_wait_end(wait, ngx_http_capture_wait_acked);
            break;

        case NGX_DECLINED:
            ngx_http_capture_wait_end(wait, ngx_http_capture_wait_lost);
            break;

        default: /* NGX_AGAIN */
            break;
        }
    }
}


/*
 * worker_shutdown_timeout.  Connections of HTTP/1 are closed with their
 * requests; a stream of HTTP/2 is told that its client has left, which a held
 * request ignores.
 */

void
ngx_http_capture_wait_expire(ngx_http_capture_worker_t *w)
{
    ngx_queue_t              *q;
    ngx_http_capture_wait_t  *wait;

    while (!ngx_queue_empty(&w->waiters)) {
        q = ngx_queue_head(&w->waiters);
        wait = ngx_queue_data(q, ngx_http_capture_wait_t, queue);

        ngx_http_capture_wait_end(wait, ngx_http_capture_wait_timedout);
    }
}


/* The request goes, held or not. */

void
ngx_http_capture_wait_forget(ngx_http_capture_wait_t *wait)
{
    if (wait->guard.posted) {
        ngx_delete_posted_event(&wait->guard);
    }

    ngx_http_capture_stall_end(wait);

    if (wait->state == ngx_http_capture_wait_held) {
        ngx_http_capture_wait_unlink(wait);
        ngx_http_capture_wait_count(wait, ngx_http_capture_wait_left);
    }
}


static void
ngx_http_capture_wait_unlink(ngx_http_capture_wait_t *wait)
{
    ngx_http_capture_worker_t  *w;

    w = ngx_http_capture_worker;

    ngx_queue_remove(&wait->queue);

    if (wait->timer.timer_set) {
        ngx_del_timer(&wait->timer);
    }

    wait->waited = ngx_current_msec - wait->begun;
    ngx_http_capture_count_waited(wait->waited);

    if (w->probe == wait) {
        w->probe = NULL;
    }
}


/* The cells of CAP_WAITS are in the order of the states. */

static void
ngx_http_capture_wait_count(ngx_http_capture_wait_t *wait,
    ngx_http_capture_wait_e state)
{
    wait->state = state;

    ngx_http_capture_count_wait(CAP_WAIT_HELD
                                + (state - ngx_http_capture_wait_held), 1);
}


static void
ngx_http_capture_wait_end(ngx_http_capture_wait_t *wait,
    ngx_http_capture_wait_e state)
{
    ngx_uint_t                  held;
    ngx_http_capture_ctx_t     *ctx;
    ngx_http_capture_worker_t  *w;

    w = ngx_http_capture_worker;
    ctx = wait->ctx;
    held = (wait->state == ngx_http_capture_wait_held);

    if (held) {
        ngx_http_capture_wait_unlink(wait);

        if (state == ngx_http_capture_wait_acked && wait->refuse
            && ngx_http_capture_wait_cancelled(ctx->request))
        {
            state = ngx_http_capture_wait_left;
        }
    }

    if (held || state == ngx_http_capture_wait_skipped) {
        ngx_http_capture_wait_count(wait, state);

    } else {
        wait->state = state;
    }

    if (state == ngx_http_capture_wait_acked) {
        w->wait_failures = 0;

        if (wait->refuse && !ctx->upgrade) {
            ngx_http_capture_eom(ctx, 0);
        }

    } else {
        ngx_http_capture_wait_failed(wait);
    }

    if (held) {
        ngx_http_capture_wait_resume(wait);
    }
}


static void
ngx_http_capture_wait_failed(ngx_http_capture_wait_t *wait)
{
    ngx_http_capture_ctx_t     *ctx;
    ngx_http_capture_worker_t  *w;

    w = ngx_http_capture_worker;
    ctx = wait->ctx;

    if (wait->state == ngx_http_capture_wait_timedout) {
        if (++w->wait_failures == NGX_HTTP_CAPTURE_WAIT_FAILURES) {
            ngx_log_error(NGX_LOG_WARN, w->log, 0,
                          "%d requests in a row waited in vain for their "
                          "record (capture_wait_timeout): until one succeeds, "
                          "all but one at a time no longer wait",
                          NGX_HTTP_CAPTURE_WAIT_FAILURES);
        }
    }

    if (wait->refuse) {
        wait->refused = 1;
        ngx_http_capture_finish(ctx, CAP_FRAME_DROP,
                                wait->state == ngx_http_capture_wait_left
                                ? CAP_CLIENT_ABORT : CAP_REFUSED);
        return;
    }

    if (!ctx->upgrade) {
        ngx_http_capture_eom(ctx, 0);
    }
}


/* Never from here: another request may be at work further up the stack. */

static void
ngx_http_capture_wait_resume(ngx_http_capture_wait_t *wait)
{
    ngx_event_t             *ev;
    ngx_http_capture_ctx_t  *ctx;

    ctx = wait->ctx;
    ev = ctx->has_body ? ctx->request->connection->read
                       : ctx->request->connection->write;

    if (!ev->posted) {
        ngx_post_event(ev, &ngx_posted_events);
    }
}


static void
ngx_http_capture_wait_timer_handler(ngx_event_t *ev)
{
    ngx_http_capture_wait_t *wait = ev->data;

    ngx_http_capture_wait_e  state;

    state = ngx_http_capture_wait_timedout;

    /* the ring may be behind us in this turn's events */

    switch (ngx_http_capture_acked(wait->ctx, wait->seq)) {

    case NGX_OK:
        state = ngx_http_capture_wait_acked;
        break;

    case NGX_DECLINED:
        state = ngx_http_capture_wait_lost;
        break;
    }

    ngx_http_capture_wait_end(wait, state);
}


static ngx_int_t
ngx_http_capture_wait_answer(ngx_http_request_t *r)
{
    ngx_table_elt_t          *h;
    ngx_http_capture_wait_t  *wait;

    wait = ngx_http_capture_get_ctx(r)->wait;

    if (wait->ctx->has_body && r->request_body) {

        /*
         * its reading has begun and will not be ended: what NGINX has read
         * beyond it, of a next request, is gone
         */

        r->keepalive = 0;
        r->lingering_close = 1;
    }

    if (wait->answered) {
        return NGX_HTTP_SERVICE_UNAVAILABLE;
    }

    wait->answered = 1;

    h = ngx_list_push(&r->headers_out.headers);
    if (h == NULL) {
        return NGX_HTTP_INTERNAL_SERVER_ERROR;
    }

    h->hash = 1;
#if (nginx_version >= 1023000)
    h->next = NULL;
#endif
    ngx_str_set(&h->key, "Retry-After");
    ngx_str_set(&h->value, NGX_HTTP_CAPTURE_RETRY_AFTER);

    return NGX_HTTP_SERVICE_UNAVAILABLE;
}


/* The sidecar's rings: slots are acknowledged or were given back. */

void
ngx_http_capture_wait_bell_handler(ngx_event_t *rev)
{
    u_char                      buf[512];
    size_t                      size;
    ssize_t                     n;
    ngx_connection_t           *c;
    ngx_http_capture_worker_t  *w;

    c = rev->data;
    w = c->data;

    if (c->close || w->pool == NULL) {
        return;
    }

    size = 0;

    do {
        n = recv(c->fd, buf, sizeof(buf), MSG_DONTWAIT);

        if (n > 0) {
            size += n;
        }

    } while (n == sizeof(buf) && size < NGX_HTTP_CAPTURE_WAIT_RINGS);

    rev->ready = 0;

    if (n == 0 || size >= NGX_HTTP_CAPTURE_WAIT_RINGS) {

        /* it is going, and the link will tell; or it is mad */

        (void) ngx_del_event(rev, NGX_READ_EVENT, 0);

    } else if (ngx_handle_read_event(rev, 0) != NGX_OK) {
        return;
    }

    ngx_http_capture_pool_collect(w->pool);
    ngx_http_capture_wait_wake(w);
}


/*
 * While the end of a body is held NGINX believes that it still reads: it
 * would answer 408 after client_body_timeout, and drop a stream that its
 * client resets, though the request is recorded and will be replayed.  So its
 * read handler rests until the hold is over, or the want of room.  It is
 * replaced at the turn's
 * end, since NGINX sets it after the filters have run.
 */

void
ngx_http_capture_wait_guard(ngx_http_capture_wait_t *wait)
{
    wait->guard.handler = ngx_http_capture_wait_guard_handler;
    wait->guard.data = wait;
    wait->guard.log = wait->ctx->request->connection->log;

    if (!wait->guard.posted) {
        ngx_post_event(&wait->guard, &ngx_posted_events);
    }
}


static void
ngx_http_capture_wait_guard_handler(ngx_event_t *ev)
{
    ngx_http_capture_wait_t *wait = ev->data;

    ngx_http_request_t  *r;

    r = wait->ctx->request;

    if ((wait->state == ngx_http_capture_wait_held || wait->starved)
        && r->read_event_handler != ngx_http_capture_wait_read_handler)
    {
        wait->read_handler = r->read_event_handler;
        r->read_event_handler = ngx_http_capture_wait_read_handler;
    }
}


static void
ngx_http_capture_wait_read_handler(ngx_http_request_t *r)
{
    ngx_connection_t         *c;
    ngx_http_capture_wait_t  *wait;

    c = r->connection;
    wait = ngx_http_capture_get_ctx(r)->wait;

    if (!wait->refuse && c->error
        && wait->state != ngx_http_capture_wait_none)
    {
        wait->departed = 1;
        c->error = 0;
    }

    /*
     * the body is complete, also where both timers expire in one turn, or it
     * is us who does not read it
     */

    c->read->timedout = 0;

    if (wait->state == ngx_http_capture_wait_held && !wait->refuse) {
        return;
    }

    r->read_event_handler = wait->read_handler;

    if (!wait->departed) {
        r->read_event_handler(r);
        return;
    }

    r->main->count++;

    r->read_event_handler(r);

    if (wait->kept == NULL) {
        c->error = 1;
    }

    ngx_http_finalize_request(r, NGX_DONE);
}
