
/*
 * The request: its head as the client sent it, whether it is captured, its
 * body.
 *
 * The head is copied before any other handler can change it; the decision
 * falls later, when nothing but a content handler is left, and sticks.
 */


#include "ngx_http_capture.h"


/* what the Traffic Replayer's decoder takes: docs/record-contract.md */

#define NGX_HTTP_CAPTURE_MAX_FIRST_LINE  4096
#define NGX_HTTP_CAPTURE_MAX_HEADERS     8192

#define NGX_HTTP_CAPTURE_TE  "transfer-encoding: chunked"


static ngx_int_t ngx_http_capture_snapshot(ngx_http_request_t *r,
    ngx_http_capture_ctx_t *ctx);
static size_t ngx_http_capture_snapshot_size(ngx_http_request_t *r);
static ngx_uint_t ngx_http_capture_ends_later(ngx_http_request_t *r);
static u_char *ngx_http_capture_snapshot_host(ngx_http_request_t *r,
    ngx_http_capture_ctx_t *ctx, u_char *p);
static u_char *ngx_http_capture_snapshot_headers(ngx_http_request_t *r,
    ngx_http_capture_ctx_t *ctx, u_char *p, ngx_uint_t streams);
static ngx_uint_t ngx_http_capture_is_hop(ngx_str_t *name);
static ngx_uint_t ngx_http_capture_is_expect(ngx_table_elt_t *h);
static void ngx_http_capture_decided(ngx_http_capture_ctx_t *ctx,
    ngx_int_t reason);
static ngx_int_t ngx_http_capture_rules(ngx_http_request_t *r,
    ngx_http_capture_ctx_t *ctx, ngx_http_capture_loc_conf_t *clcf);
static void ngx_http_capture_tell_version(ngx_http_request_t *r);
static ngx_int_t ngx_http_capture_body_record(ngx_http_request_t *r,
    ngx_http_capture_ctx_t *ctx, ngx_chain_t **in);
static void ngx_http_capture_request_end(ngx_http_capture_ctx_t *ctx);
static void ngx_http_capture_untrack(ngx_http_capture_ctx_t *ctx);
static ngx_uint_t ngx_http_capture_changes(ngx_http_request_t *r);
static void ngx_http_capture_cleanup(void *data);


/* The context of a request that was redirected: see get_ctx(). */

ngx_http_capture_ctx_t *
ngx_http_capture_find_ctx(ngx_http_request_t *r)
{
    ngx_pool_cleanup_t  *cln;

    for (cln = r->pool->cleanup; cln; cln = cln->next) {
        if (cln->handler == ngx_http_capture_cleanup) {
            ngx_http_set_ctx(r, cln->data, ngx_http_capture_module);
            return cln->data;
        }
    }

    return NULL;
}


ngx_http_capture_ctx_t *
ngx_http_capture_create_ctx(ngx_http_request_t *r)
{
    ngx_pool_cleanup_t      *cln;
    ngx_http_capture_ctx_t  *ctx;

    cln = ngx_pool_cleanup_add(r->pool, sizeof(ngx_http_capture_ctx_t));
    if (cln == NULL) {
        return NULL;
    }

    ctx = cln->data;
    ngx_memzero(ctx, sizeof(ngx_http_capture_ctx_t));
    ctx->request = r;

    cln->handler = ngx_http_capture_cleanup;

    ngx_http_set_ctx(r, ctx, ngx_http_capture_module);

    return ctx;
}


ngx_int_t
ngx_http_capture_post_read_handler(ngx_http_request_t *r)
{
    ngx_http_capture_ctx_t       *ctx;
    ngx_http_capture_srv_conf_t  *cscf;

    cscf = ngx_http_get_module_srv_conf(r, ngx_http_capture_module);

    if (!cscf->used || r != r->main || ngx_http_capture_worker == NULL
        || ngx_http_capture_get_ctx(r))
    {
        return NGX_DECLINED;
    }

    ctx = ngx_http_capture_create_ctx(r);

    if (ctx == NULL || ngx_http_capture_snapshot(r, ctx) != NGX_OK) {
        return NGX_HTTP_INTERNAL_SERVER_ERROR;
    }

    if (ngx_http_capture_worker->pool) {
        ctx->arrived = ngx_http_capture_pool_now(ngx_http_capture_worker->pool);
    }

    return NGX_DECLINED;
}


/* After limits and access: whoever comes here reaches a content handler. */

ngx_int_t
ngx_http_capture_precontent_handler(ngx_http_request_t *r)
{
    ngx_http_capture_ctx_t  *ctx;

    if (r == r->main) {
        ctx = ngx_http_capture_get_ctx(r);

        if (ctx) {
            ngx_http_capture_decide(r, ctx);

            if (ctx->wait && (!ctx->has_body || ctx->wait->refused)) {
                return ngx_http_capture_wait_phase(r, ctx);
            }
        }
    }

    return NGX_DECLINED;
}


/*
 * The request line verbatim, then `Name: value` lines with the client's
 * spelling and order.  Expect is left out: the client has got its 100 from
 * NGINX, and the Replayer would take the target's for the answer.
 *
 * HTTP/2 and 3 become HTTP/1.1: NGINX has joined the cookies and left the
 * pseudo headers out; host comes first; headers that belong to a connection
 * go; a body without Content-Length is chunked.
 */

static ngx_int_t
ngx_http_capture_snapshot(ngx_http_request_t *r, ngx_http_capture_ctx_t *ctx)
{
    u_char      *p;
    ngx_uint_t   streams;

    streams = (r->http_version >= NGX_HTTP_VERSION_20);

    ctx->has_body = r->headers_in.content_length_n > 0
                    || r->headers_in.chunked
                    || ngx_http_capture_ends_later(r);

    ctx->rest = r->headers_in.content_length_n;
    ctx->chunked = r->headers_in.chunked;
    ctx->upgrade = !streams && r->headers_in.upgrade != NULL;

    p = ngx_pnalloc(r->pool, ngx_http_capture_snapshot_size(r));
    if (p == NULL) {
        return NGX_ERROR;
    }

    ctx->head = p;

    if (streams) {
        p = ngx_cpymem(p, r->method_name.data, r->method_name.len);
        *p++ = ' ';
        p = ngx_cpymem(p, r->unparsed_uri.data, r->unparsed_uri.len);
        p = ngx_cpymem(p, " HTTP/1.1", sizeof(" HTTP/1.1") - 1);

    } else {
        p = ngx_cpymem(p, r->request_line.data, r->request_line.len);
    }

    ctx->eom.first_line = p - ctx->head;

    *p++ = CR; *p++ = LF;

    if (streams && r->host_end) {
        p = ngx_http_capture_snapshot_host(r, ctx, p);
    }

    p = ngx_http_capture_snapshot_headers(r, ctx, p, streams);

    if (streams && ctx->chunked) {
        p = ngx_cpymem(p, NGX_HTTP_CAPTURE_TE CRLF,
                       sizeof(NGX_HTTP_CAPTURE_TE CRLF) - 1);
        ctx->eom.headers += sizeof(NGX_HTTP_CAPTURE_TE) - 1;
    }

    *p++ = CR; *p++ = LF;

    ctx->head_len = p - ctx->head;

    return NGX_OK;
}


/*
 * A stream whose end has not come with its head: an empty body ends later,
 * too, or its client resets it.
 */

static ngx_uint_t
ngx_http_capture_ends_later(ngx_http_request_t *r)
{
#if (NGX_HTTP_V2)

    if (r->stream) {
        return !r->stream->in_closed;
    }

#endif

#if (NGX_HTTP_V3)

    if (r->http_version == NGX_HTTP_VERSION_30
        && r->headers_in.content_length_n == 0)
    {
        return r->header_in->pos != r->header_in->last
               || (r->connection->quic->recv_state
                   != NGX_QUIC_STREAM_RECV_DATA_RECVD
                   && r->connection->quic->recv_state
                   != NGX_QUIC_STREAM_RECV_DATA_READ);
    }

#endif

    return 0;
}


static size_t
ngx_http_capture_snapshot_size(ngx_http_request_t *r)
{
    size_t            len;
    ngx_uint_t        i;
    ngx_list_part_t  *part;
    ngx_table_elt_t  *h;

    len = ngx_max(r->request_line.len,
                  r->method_name.len + r->unparsed_uri.len
                  + sizeof("  HTTP/1.1"))
          + sizeof(CRLF "host: " CRLF NGX_HTTP_CAPTURE_TE CRLF CRLF)
          + (r->host_end - r->host_start);

    for (part = &r->headers_in.headers.part; part; part = part->next) {
        h = part->elts;

        for (i = 0; i < part->nelts; i++) {
            len += h[i].key.len + h[i].value.len + sizeof(": " CRLF) - 1;
        }
    }

    return len;
}


/*
 * :authority.  Versions of NGINX differ in whether they put it into the list of
 * headers, and where.  (In HTTP/2 before 1.29.1 it is there, at its place, and
 * host_end is not set.)
 */

static u_char *
ngx_http_capture_snapshot_host(ngx_http_request_t *r,
    ngx_http_capture_ctx_t *ctx, u_char *p)
{
    u_char  *start;

    start = p;

    p = ngx_cpymem(p, "host: ", sizeof("host: ") - 1);
    p = ngx_cpymem(p, r->host_start, r->host_end - r->host_start);

    ctx->eom.headers += p - start;

    *p++ = CR; *p++ = LF;

    return p;
}


static u_char *
ngx_http_capture_snapshot_headers(ngx_http_request_t *r,
    ngx_http_capture_ctx_t *ctx, u_char *p, ngx_uint_t streams)
{
    ngx_uint_t        i;
    ngx_list_part_t  *part;
    ngx_table_elt_t  *h;

    for (part = &r->headers_in.headers.part; part; part = part->next) {
        h = part->elts;

        for (i = 0; i < part->nelts; i++) {

            if (ngx_http_capture_is_expect(&h[i])
                || (streams && (ngx_http_capture_is_hop(&h[i].key)
                                || (r->host_end
                                    && &h[i] == r->headers_in.host))))
            {
                continue;
            }

            p = ngx_cpymem(p, h[i].key.data, h[i].key.len);
            *p++ = ':'; *p++ = ' ';
            p = ngx_cpymem(p, h[i].value.data, h[i].value.len);
            *p++ = CR; *p++ = LF;

            ctx->eom.headers += h[i].key.len + 2 + h[i].value.len;
        }
    }

    return p;
}


/* Of a connection; HTTP/2 and 3 have none, clients send them at times. */

static ngx_uint_t
ngx_http_capture_is_hop(ngx_str_t *name)
{
    static ngx_str_t  hops[] = {
        ngx_string("connection"),
        ngx_string("keep-alive"),
        ngx_string("proxy-connection"),
        ngx_string("te"),
        ngx_string("transfer-encoding"),
        ngx_string("upgrade"),
        ngx_null_string
    };

    ngx_str_t  *hop;

    for (hop = hops; hop->len; hop++) {
        if (hop->len == name->len
            && ngx_strncasecmp(hop->data, name->data, name->len) == 0)
        {
            return 1;
        }
    }

    return 0;
}


static ngx_uint_t
ngx_http_capture_is_expect(ngx_table_elt_t *h)
{
    return h->key.len == sizeof("Expect") - 1
           && (h->key.data[0] | 0x20) == 'e'
           && ngx_strncasecmp(h->key.data, (u_char *) "Expect",
                              sizeof("Expect") - 1)
              == 0;
}


/* Once for each request: counted as seen where capture is on, then begun. */

void
ngx_http_capture_decide(ngx_http_request_t *r, ngx_http_capture_ctx_t *ctx)
{
    ngx_int_t                     reason;
    ngx_http_capture_loc_conf_t  *clcf;

    if (ctx->state != ngx_http_capture_fresh) {
        return;
    }

    if (r->err_status) {

        /*
         * refused before, and on its way to an error page; where the page's
         * status is to count ("error_page 418 = @name") there is none here
         */

        ngx_http_capture_decide_answered(r, ctx);
        return;
    }

    clcf = ngx_http_get_module_loc_conf(r, ngx_http_capture_module);

    if (!clcf->enable) {
        ctx->state = ngx_http_capture_ignored;
        ngx_http_capture_mark_uncaptured(ctx, 1);
        return;
    }

    ngx_http_capture_count_seen();

    reason = ngx_http_capture_rules(r, ctx, clcf);

    if (reason == CAP_NONE) {
        reason = ngx_http_capture_wait_decide(r, ctx, clcf);
    }

    ngx_http_capture_decided(ctx, reason);
}


/*
 * The same for what an earlier phase than the content's has answered (limits,
 * access, return).  It never waits: it does not go on to the source.  Nobody
 * reads its body, so that one with a body is dropped at the answer's head,
 * unless an error page's handler reads it.
 */

void
ngx_http_capture_decide_answered(ngx_http_request_t *r,
    ngx_http_capture_ctx_t *ctx)
{
    ngx_http_capture_loc_conf_t  *clcf;

    clcf = ngx_http_get_module_loc_conf(r, ngx_http_capture_module);

    if (!clcf->enable
        || !(clcf->include & NGX_HTTP_CAPTURE_INCLUDE_NOT_FORWARDED)
        || ctx->head == NULL)
    {
        ngx_http_capture_decide_refused(r, ctx, CAP_NOT_FORWARDED);
        return;
    }

    ngx_http_capture_count_seen();
    ngx_http_capture_decided(ctx, ngx_http_capture_rules(r, ctx, clcf));
}


static void
ngx_http_capture_decided(ngx_http_capture_ctx_t *ctx, ngx_int_t reason)
{
    if (reason != CAP_NONE) {
        ctx->state = ngx_http_capture_filtered;
        ctx->reason = reason;
        ngx_http_capture_count(reason);
        ngx_http_capture_mark_uncaptured(ctx, reason == CAP_RULE
                                              || reason == CAP_BYPASS
                                              || reason == CAP_TOO_LARGE
                                              || reason == CAP_UNREDACTABLE);
        return;
    }

    ngx_http_capture_begin(ctx);

    if (ctx->wait && ctx->rest == 0 && !ctx->chunked) {

        /*
         * "Content-Length: 0" in HTTP/2 without END_STREAM yet: unbuffered,
         * its head alone would be complete at the source
         */

        ctx->has_body = 0;
    }

    if (!ctx->has_body) {
        ngx_http_capture_request_end(ctx);
    }
}


/* CAP_NONE, or why this request is not to be captured. */

static ngx_int_t
ngx_http_capture_rules(ngx_http_request_t *r, ngx_http_capture_ctx_t *ctx,
    ngx_http_capture_loc_conf_t *clcf)
{
    ngx_str_t  value;

    ctx->conf = clcf;

    if (clcf->variable) {
        if (ngx_http_complex_value(r, clcf->variable, &value) != NGX_OK) {
            return CAP_INTERNAL;
        }

        if (value.len == 0
            || (value.len == 1 && value.data[0] == '0')
            || (value.len == 3 && ngx_strncmp(value.data, "off", 3) == 0))
        {
            return CAP_RULE;
        }
    }

    if (clcf->bypass
        && ngx_http_test_predicates(r, clcf->bypass) == NGX_DECLINED)
    {
        return CAP_BYPASS;
    }

    if (r->http_version != NGX_HTTP_VERSION_10
        && r->http_version != NGX_HTTP_VERSION_11
#if (NGX_HTTP_V2)
        && r->http_version != NGX_HTTP_VERSION_20
#endif
#if (NGX_HTTP_V3)
        && r->http_version != NGX_HTTP_VERSION_30
#endif
       )
    {
        ngx_http_capture_tell_version(r);
        return CAP_UNSUPPORTED;
    }

    if ((ctx->eom.first_line > NGX_HTTP_CAPTURE_MAX_FIRST_LINE
         || ctx->eom.headers > NGX_HTTP_CAPTURE_MAX_HEADERS)
        && !(clcf->include & NGX_HTTP_CAPTURE_INCLUDE_UNREPLAYABLE))
    {
        return CAP_UNREPLAYABLE;
    }

    return clcf->policy ? ngx_http_capture_policy_request(r, ctx) : CAP_NONE;
}


/* Once a worker; of HTTP/2 and 3 the configuration's log has told it. */

static void
ngx_http_capture_tell_version(ngx_http_request_t *r)
{
    static ngx_uint_t  told;

    if (told || r->http_version >= NGX_HTTP_VERSION_20) {
        return;
    }

    told = 1;

    ngx_log_error(NGX_LOG_WARN, r->connection->log, 0,
                  "requests of HTTP version %ui.%ui are not captured by this "
                  "build, they are counted as filtered(unsupported)",
                  r->http_version / 1000, r->http_version % 1000);
}


/* The exchange will not be captured, and its reason is known. */

void
ngx_http_capture_decide_refused(ngx_http_request_t *r,
    ngx_http_capture_ctx_t *ctx, ngx_uint_t reason)
{
    ngx_http_capture_loc_conf_t  *clcf;

    clcf = ngx_http_get_module_loc_conf(r, ngx_http_capture_module);

    if (!clcf->enable) {
        if (ctx) {
            ctx->state = ngx_http_capture_ignored;
        }

        return;
    }

    ngx_http_capture_count_seen();
    ngx_http_capture_count(reason);

    if (ctx) {
        ctx->state = ngx_http_capture_filtered;
        ctx->reason = reason;
    }
}


/*
 * The first of the request body filters: what NGINX has read, without chunked
 * coding, each byte once.
 */

ngx_int_t
ngx_http_capture_body_in(ngx_http_request_t *r, ngx_chain_t *in,
    ngx_http_request_body_filter_pt next)
{
    ngx_http_capture_ctx_t  *ctx;

    ctx = (r == r->main) ? ngx_http_capture_get_ctx(r) : NULL;

    if (ctx == NULL) {
        return next(r, in);
    }

    ngx_http_capture_decide(r, ctx);

    if (!ctx->request_done
        && ngx_http_capture_body_record(r, ctx, &in) != NGX_OK)
    {
        return NGX_HTTP_INTERNAL_SERVER_ERROR;
    }

    if (ctx->wait) {
        return ngx_http_capture_wait_body(r, ctx, in, next);
    }

    return next(r, in);
}


/* *in becomes what may be passed on: all of it, unless there was no room. */

static ngx_int_t
ngx_http_capture_body_record(ngx_http_request_t *r,
    ngx_http_capture_ctx_t *ctx, ngx_chain_t **in)
{
    ngx_uint_t    last;
    ngx_chain_t  *cl;

    if (ctx->state == ngx_http_capture_open && ctx->conf->policy) {
        ngx_http_capture_policy_grown(ctx, *in);
    }

    if (ctx->wait && (ctx->state == ngx_http_capture_open
                      || ctx->wait->unrecorded)
        && ngx_http_capture_stall_needed(r, ctx, *in))
    {
        if (ngx_http_capture_stall(r, ctx, in) != NGX_OK) {
            return NGX_ERROR;
        }

    } else if (ctx->state == ngx_http_capture_open) {
        ngx_http_capture_chain(ctx, CAP_FRAME_READ, *in, ctx->chunked);
    }

    if (ctx->state != ngx_http_capture_open) {

        if (ctx->wait && ctx->state == ngx_http_capture_lost) {
            ctx->request_done = 1;
            ngx_http_capture_wait_begin(ctx);
        }

        return NGX_OK;
    }

    last = 0;

    for (cl = *in; cl; cl = cl->next) {
        ctx->rest -= ngx_buf_size(cl->buf);
        last |= cl->buf->last_buf;
    }

    /* unbuffered, the source has it all before HTTP/2's END_STREAM */

    if (last
        || (ctx->rest == 0 && !ctx->chunked && r->request_body_no_buffering))
    {
        ngx_http_capture_request_end(ctx);
    }

    return NGX_OK;
}


/* All bytes are there.  Whether an upgrade is one, the response will tell. */

static void
ngx_http_capture_request_end(ngx_http_capture_ctx_t *ctx)
{
    if (ctx->request_json) {
        ngx_http_capture_redact_end(ctx, CAP_FRAME_READ, ctx->request_json,
                                    ctx->chunked);
    }

    if (ctx->chunked) {
        ngx_http_capture_data(ctx, CAP_FRAME_READ,
                              (u_char *) "0" CRLF CRLF,
                              sizeof("0" CRLF CRLF) - 1);
    }

    ctx->request_done = 1;

    if (ctx->wait) {
        ngx_http_capture_wait_begin(ctx);

    } else if (!ctx->upgrade) {
        ngx_http_capture_eom(ctx, 0);
    }
}


/*
 * A request that may change the source, and is on its way there uncaptured:
 * until it ends no snapshot is safe.  One that is captured is tracked, since it
 * becomes such a request when its link is lost.
 */

void
ngx_http_capture_mark_uncaptured(ngx_http_capture_ctx_t *ctx,
    ngx_uint_t excluded)
{
    if (ctx->uncaptured || !ngx_http_capture_changes(ctx->request)
        || (ctx->wait && ctx->wait->refused))
    {
        return;
    }

    ngx_http_capture_untrack(ctx);

    ctx->uncaptured = 1;
    ctx->excluded = excluded;

    ngx_http_capture_count_uncaptured(excluded, 1);
}


void
ngx_http_capture_track(ngx_http_capture_ctx_t *ctx)
{
    if (ngx_http_capture_changes(ctx->request)) {
        ctx->tracked = 1;
        ngx_http_capture_worker->inflight++;
    }
}


static void
ngx_http_capture_untrack(ngx_http_capture_ctx_t *ctx)
{
    ngx_http_capture_worker_t  *w;

    w = ngx_http_capture_worker;

    if (!ctx->tracked || w == NULL) {
        return;
    }

    ctx->tracked = 0;

    if (w->pool && w->pool->epoch == ctx->epoch) {
        w->inflight--;

    } else {
        ngx_http_capture_count_uncaptured(0, -1);
    }
}


static ngx_uint_t
ngx_http_capture_changes(ngx_http_request_t *r)
{
    return !(r->method & (NGX_HTTP_GET|NGX_HTTP_HEAD
                          |NGX_HTTP_OPTIONS|NGX_HTTP_TRACE));
}


static void
ngx_http_capture_cleanup(void *data)
{
    ngx_http_capture_ctx_t *ctx = data;

    if (ctx->wait) {
        ngx_http_capture_wait_forget(ctx->wait);
    }

    switch (ctx->state) {

    case ngx_http_capture_fresh:
        ngx_http_capture_decide_refused(ctx->request, ctx,
                                        ctx->request->connection->error
                                        ? CAP_CLIENT_ABORT
                                        : CAP_NOT_FORWARDED);  /* 444 */
        break;

    case ngx_http_capture_open:
        if (ctx->eom_sent) {
            ngx_http_capture_finish(ctx, CAP_FRAME_END, CAP_END_TRUNCATED);

        } else {
            ngx_http_capture_finish(ctx, CAP_FRAME_DROP,
                                    ctx->response_begun ? CAP_UNREAD_BODY
                                                        : CAP_CLIENT_ABORT);
        }

        break;

    default:
        break;
    }

    ngx_http_capture_early_free(ctx);
    ngx_http_capture_untrack(ctx);

    if (ctx->uncaptured) {
        ngx_http_capture_count_uncaptured(ctx->excluded, -1);
    }
}
