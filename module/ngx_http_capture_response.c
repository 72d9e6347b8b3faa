
/*
 * The response: its head, which exists nowhere as bytes at this place of the
 * filter chain, and its body before gzip and chunked coding.
 *
 * The head is put together before the filters below us run (gzip changes it),
 * and recorded after them: then it is known that it was sent, that no range
 * was cut, and what an absolute redirect became.
 */


#include "ngx_http_capture.h"


#define NGX_HTTP_CAPTURE_CHUNKED  "Transfer-Encoding: chunked" CRLF

/* what the Traffic Replayer's decoder takes */
#define NGX_HTTP_CAPTURE_MAX_TRAILERS  8192

/* what is not from a list or a string, at most; a redirect is written apart */
#define NGX_HTTP_CAPTURE_FIXED_HEAD                                           \
    (sizeof("HTTP/1.1 " CRLF "Server: " NGINX_VER_BUILD CRLF                  \
            "Date: Mon, 28 Sep 1970 06:00:00 GMT" CRLF                        \
            "Content-Type: ; charset=" CRLF                                   \
            "Content-Length: " CRLF                                           \
            "X-Capture-Omitted: unredactable; length=" CRLF                   \
            "Last-Modified: Mon, 28 Sep 1970 06:00:00 GMT" CRLF               \
            NGX_HTTP_CAPTURE_CHUNKED CRLF)                                    \
     + 2 * NGX_OFF_T_LEN + 64)


typedef struct {
    ngx_uint_t  status;
    ngx_str_t   line;
} ngx_http_capture_status_line_t;


static ngx_int_t ngx_http_capture_head(ngx_http_request_t *r,
    ngx_http_capture_ctx_t *ctx, ngx_str_t *head);
static size_t ngx_http_capture_head_size(ngx_http_request_t *r);
static u_char *ngx_http_capture_head_fields(ngx_http_request_t *r,
    ngx_http_capture_ctx_t *ctx, u_char *p);
static u_char *ngx_http_capture_head_server(ngx_http_request_t *r, u_char *p);
static u_char *ngx_http_capture_head_list(ngx_http_request_t *r,
    ngx_http_capture_ctx_t *ctx, u_char *p);
static ngx_uint_t ngx_http_capture_is_hop(ngx_table_elt_t *h);
static ngx_uint_t ngx_http_capture_redirect(ngx_http_request_t *r);
static u_char *ngx_http_capture_status_line(ngx_http_request_t *r, u_char *p);
static u_char *ngx_http_capture_number(u_char *p, uint64_t n);
static ngx_uint_t ngx_http_capture_expects_trailers(ngx_http_request_t *r);
static void ngx_http_capture_last_chunk(ngx_http_request_t *r,
    ngx_http_capture_ctx_t *ctx);
static size_t ngx_http_capture_trailers(ngx_http_request_t *r, u_char *p);
static void ngx_http_capture_tell_abort(ngx_http_request_t *r);
static void ngx_http_capture_head_record(ngx_http_request_t *r,
    ngx_http_capture_ctx_t *ctx, ngx_str_t *head, ngx_str_t *location);
static void ngx_http_capture_location_record(ngx_http_request_t *r,
    ngx_http_capture_ctx_t *ctx, ngx_str_t *location);


/* NGINX's own words; the Replayer reads the number alone. */

static ngx_http_capture_status_line_t  ngx_http_capture_status_lines[] = {
    { 200, ngx_string("200 OK") },
    { 201, ngx_string("201 Created") },
    { 202, ngx_string("202 Accepted") },
    { 204, ngx_string("204 No Content") },
    { 206, ngx_string("206 Partial Content") },
    { 301, ngx_string("301 Moved Permanently") },
    { 302, ngx_string("302 Moved Temporarily") },
    { 303, ngx_string("303 See Other") },
    { 304, ngx_string("304 Not Modified") },
    { 307, ngx_string("307 Temporary Redirect") },
    { 308, ngx_string("308 Permanent Redirect") },
    { 400, ngx_string("400 Bad Request") },
    { 401, ngx_string("401 Unauthorized") },
    { 402, ngx_string("402 Payment Required") },
    { 403, ngx_string("403 Forbidden") },
    { 404, ngx_string("404 Not Found") },
    { 405, ngx_string("405 Not Allowed") },
    { 406, ngx_string("406 Not Acceptable") },
    { 408, ngx_string("408 Request Time-out") },
    { 409, ngx_string("409 Conflict") },
    { 410, ngx_string("410 Gone") },
    { 411, ngx_string("411 Length Required") },
    { 412, ngx_string("412 Precondition Failed") },
    { 413, ngx_string("413 Request Entity Too Large") },
    { 414, ngx_string("414 Request-URI Too Large") },
    { 415, ngx_string("415 Unsupported Media Type") },
    { 416, ngx_string("416 Requested Range Not Satisfiable") },
    { 421, ngx_string("421 Misdirected Request") },
    { 429, ngx_string("429 Too Many Requests") },
    { 500, ngx_string("500 Internal Server Error") },
    { 501, ngx_string("501 Not Implemented") },
    { 502, ngx_string("502 Bad Gateway") },
    { 503, ngx_string("503 Service Temporarily Unavailable") },
    { 504, ngx_string("504 Gateway Time-out") },
    { 505, ngx_string("505 HTTP Version Not Supported") },
    { 507, ngx_string("507 Insufficient Storage") },
    { 0, ngx_null_string }
};


/*
 * Our place in the header filter chain: runs what is below, then records.
 */

ngx_int_t
ngx_http_capture_head_out(ngx_http_request_t *r, ngx_http_capture_ctx_t *ctx,
    ngx_http_output_header_filter_pt next)
{
    ngx_int_t   rc;
    ngx_str_t   head, *location;
    ngx_uint_t  status;

    if (ctx->state != ngx_http_capture_open || ctx->response_begun) {
        return next(r);
    }

    status = r->headers_out.status;

    if (status == NGX_HTTP_SWITCHING_PROTOCOLS) {
        ngx_http_capture_finish(ctx, CAP_FRAME_DROP, CAP_UPGRADE);
        return next(r);
    }

    if (status < NGX_HTTP_OK) {

        /* an interim head that NGINX takes for the final one: as if cut */

        ngx_http_capture_finish(ctx, CAP_FRAME_ABANDON,
                                ctx->eom_sent ? CAP_RESPONSE : CAP_INTERNAL);
        return next(r);
    }

    if (ngx_http_capture_head(r, ctx, &head) != NGX_OK) {
        return NGX_ERROR;
    }

    location = ngx_http_capture_redirect(r)
               ? &r->headers_out.location->value : NULL;

    rc = next(r);

    if (!r->header_sent || rc == NGX_ERROR || rc >= NGX_HTTP_SPECIAL_RESPONSE) {

        /* not this head: an error page comes, or nothing */

        return rc;
    }

    if (r->headers_out.status != status
        && ngx_http_capture_head(r, ctx, &head) != NGX_OK)
    {
        return NGX_ERROR;
    }

    ngx_http_capture_head_record(r, ctx, &head, location);

    return rc;
}


static void
ngx_http_capture_head_record(ngx_http_request_t *r,
    ngx_http_capture_ctx_t *ctx, ngx_str_t *head, ngx_str_t *location)
{
    ngx_http_capture_tell_abort(r);

    ctx->upgrade = 0;

    if (ctx->request_done
        && (ctx->wait == NULL
            || ctx->wait->state != ngx_http_capture_wait_held))
    {
        ngx_http_capture_eom(ctx, 0);
    }

    if (!ngx_http_capture_early_may_end(ctx)) {
        ngx_http_capture_finish(ctx, CAP_FRAME_DROP, CAP_UNREAD_BODY);
        return;
    }

    ctx->response_begun = 1;

    if (ctx->omitted) {
        ngx_http_capture_count_redact(CAP_REDACT_OMITTED, 1);
    }

    if (ctx->conf->policy) {
        ngx_http_capture_redact_lines(r, ctx, head->data,
                                      head->data + head->len);
    }

    if (location == NULL) {
        ngx_http_capture_data(ctx, CAP_FRAME_WRITE, head->data, head->len);

    } else {
        ngx_http_capture_data(ctx, CAP_FRAME_WRITE, head->data,
                              head->len - (sizeof(CRLF) - 1));
        ngx_http_capture_location_record(r, ctx, location);
        ngx_http_capture_data(ctx, CAP_FRAME_WRITE, (u_char *) CRLF, 2);
    }

    if (r->header_only) {
        ctx->response_chunked = 0;
        ngx_http_capture_early_end(ctx);
    }
}


static void
ngx_http_capture_location_record(ngx_http_request_t *r,
    ngx_http_capture_ctx_t *ctx, ngx_str_t *location)
{
    u_char  *line, *p;

    line = ngx_pnalloc(r->pool, location->len + sizeof("Location: " CRLF));

    if (line == NULL) {
        ngx_http_capture_finish(ctx, CAP_FRAME_ABANDON,
                                ctx->eom_sent ? CAP_RESPONSE : CAP_INTERNAL);
        return;
    }

    p = ngx_cpymem(line, "Location: ", sizeof("Location: ") - 1);
    p = ngx_cpymem(p, location->data, location->len);
    *p++ = CR; *p++ = LF;

    ngx_http_capture_redact_lines(r, ctx, line, p);
    ngx_http_capture_data(ctx, CAP_FRAME_WRITE, line, p - line);
}


/*
 * Once for each location: NGINX's default lets it drop a request that is
 * recorded already, which would then be replayed and was never executed.
 */

static void
ngx_http_capture_tell_abort(ngx_http_request_t *r)
{
    ngx_http_core_loc_conf_t     *core;
    ngx_http_capture_loc_conf_t  *clcf;

    clcf = ngx_http_get_module_loc_conf(r, ngx_http_capture_module);

    if (clcf->told || r->upstream == NULL || r->upstream->conf == NULL) {
        return;
    }

    clcf->told = 1;

    if (r->upstream->conf->ignore_client_abort) {
        return;
    }

    core = ngx_http_get_module_loc_conf(r, ngx_http_core_module);

    ngx_log_error(NGX_LOG_WARN, r->connection->log, 0,
                  "proxy_ignore_client_abort (or its like) is off in location "
                  "\"%V\": NGINX may drop a request that is captured when its "
                  "client leaves; set it on where capture is on", &core->name);
}


/*
 * Our place in the body filter chain: each byte of the main request's
 * response passes here once, in order.
 */

void
ngx_http_capture_body_out(ngx_http_request_t *r, ngx_http_capture_ctx_t *ctx,
    ngx_chain_t *in)
{
    ngx_chain_t  *cl;

    if (ctx->state != ngx_http_capture_open || !ctx->response_begun) {
        return;
    }

    if (!ctx->omitted) {

        if (ctx->conf->policy && ngx_http_capture_policy_cut(ctx, in)) {
            return;
        }

        ngx_http_capture_chain(ctx, CAP_FRAME_WRITE, in, ctx->response_chunked);
    }

    for (cl = in; cl; cl = cl->next) {

        if (!cl->buf->last_buf) {
            continue;
        }

        if (ctx->response_json) {
            ngx_http_capture_redact_end(ctx, CAP_FRAME_WRITE,
                                        ctx->response_json,
                                        ctx->response_chunked);
        }

        if (ctx->response_chunked) {
            ngx_http_capture_last_chunk(r, ctx);
        }

        ngx_http_capture_early_end(ctx);
        return;
    }
}


/* The end of a chunked body, with the trailers that the client gets. */

static void
ngx_http_capture_last_chunk(ngx_http_request_t *r, ngx_http_capture_ctx_t *ctx)
{
    u_char  *p;
    size_t   len;

    ngx_http_capture_data(ctx, CAP_FRAME_WRITE, (u_char *) "0" CRLF,
                          sizeof("0" CRLF) - 1);

    len = 0;

    if (r->chunked || r->http_version >= NGX_HTTP_VERSION_20) {
        len = ngx_http_capture_trailers(r, NULL);
    }

    if (len && len <= NGX_HTTP_CAPTURE_MAX_TRAILERS) {
        p = ngx_pnalloc(r->pool, len);

        if (p) {
            (void) ngx_http_capture_trailers(r, p);
            ngx_http_capture_redact_lines(r, ctx, p, p + len);
            ngx_http_capture_data(ctx, CAP_FRAME_WRITE, p, len);
        }
    }

    ngx_http_capture_data(ctx, CAP_FRAME_WRITE, (u_char *) CRLF, 2);
}


/* The lines of the trailers; returns their length.  p: NULL to count only. */

static size_t
ngx_http_capture_trailers(ngx_http_request_t *r, u_char *p)
{
    size_t            len;
    ngx_uint_t        i;
    ngx_list_part_t  *part;
    ngx_table_elt_t  *h;

    len = 0;

    for (part = &r->headers_out.trailers.part; part; part = part->next) {
        h = part->elts;

        for (i = 0; i < part->nelts; i++) {

            if (h[i].hash == 0) {
                continue;
            }

            len += h[i].key.len + h[i].value.len + sizeof(": " CRLF) - 1;

            if (p) {
                p = ngx_cpymem(p, h[i].key.data, h[i].key.len);
                *p++ = ':'; *p++ = ' ';
                p = ngx_cpymem(p, h[i].value.data, h[i].value.len);
                *p++ = CR; *p++ = LF;
            }
        }
    }

    return len;
}


/* With add_trailer the chunked filter below drops Content-Length. */

static ngx_uint_t
ngx_http_capture_expects_trailers(ngx_http_request_t *r)
{
    ngx_http_core_loc_conf_t  *clcf;

    clcf = ngx_http_get_module_loc_conf(r, ngx_http_core_module);

    return r->expect_trailers && r->http_version >= NGX_HTTP_VERSION_11
           && clcf->chunked_transfer_encoding;
}


/* All but a redirect's Location, which goes before the empty line. */

static ngx_int_t
ngx_http_capture_head(ngx_http_request_t *r, ngx_http_capture_ctx_t *ctx,
    ngx_str_t *head)
{
    u_char      *p;
    ngx_uint_t   bodyless;

    if (ctx->conf->policy && ngx_http_capture_policy_response(r, ctx) != NGX_OK)
    {
        return NGX_ERROR;
    }

    p = ngx_pnalloc(r->pool, ngx_http_capture_head_size(r));
    if (p == NULL) {
        return NGX_ERROR;
    }

    head->data = p;

    p = ngx_cpymem(p, "HTTP/1.1 ", sizeof("HTTP/1.1 ") - 1);
    p = ngx_http_capture_status_line(r, p);
    *p++ = CR; *p++ = LF;

    bodyless = r->method == NGX_HTTP_HEAD
               || r->headers_out.status == NGX_HTTP_NO_CONTENT
               || r->headers_out.status == NGX_HTTP_NOT_MODIFIED;

    ctx->response_chunked = !bodyless && !ctx->omitted
                            && ((r->headers_out.content_length == NULL
                                 && r->headers_out.content_length_n < 0)
                                || ngx_http_capture_expects_trailers(r));

    p = ngx_http_capture_head_fields(r, ctx, p);

    if (ctx->response_chunked) {
        p = ngx_cpymem(p, NGX_HTTP_CAPTURE_CHUNKED,
                       sizeof(NGX_HTTP_CAPTURE_CHUNKED) - 1);
    }

    p = ngx_http_capture_head_list(r, ctx, p);

    if (ctx->omitted) {
        p = ngx_http_capture_policy_omitted(r, ctx, p);
    }

    *p++ = CR; *p++ = LF;

    head->len = p - head->data;

    return NGX_OK;
}


static size_t
ngx_http_capture_head_size(ngx_http_request_t *r)
{
    size_t            len;
    ngx_uint_t        i;
    ngx_list_part_t  *part;
    ngx_table_elt_t  *h;

    len = NGX_HTTP_CAPTURE_FIXED_HEAD
          + r->headers_out.status_line.len
          + r->headers_out.content_type.len
          + r->headers_out.charset.len;

    for (part = &r->headers_out.headers.part; part; part = part->next) {
        h = part->elts;

        for (i = 0; i < part->nelts; i++) {
            len += h[i].key.len + h[i].value.len + sizeof(": " CRLF) - 1;
        }
    }

    return len;
}


/* What NGINX keeps in struct fields, in the order in which it sends it. */

static u_char *
ngx_http_capture_head_fields(ngx_http_request_t *r,
    ngx_http_capture_ctx_t *ctx, u_char *p)
{
    ngx_http_headers_out_t  *out;

    out = &r->headers_out;

    p = ngx_http_capture_head_server(r, p);

    if (out->date == NULL) {
        p = ngx_cpymem(p, "Date: ", sizeof("Date: ") - 1);
        p = ngx_cpymem(p, ngx_cached_http_time.data, ngx_cached_http_time.len);
        *p++ = CR; *p++ = LF;
    }

    if (out->status == NGX_HTTP_NO_CONTENT) {
        return p;
    }

    if (out->content_type.len) {
        p = ngx_cpymem(p, "Content-Type: ", sizeof("Content-Type: ") - 1);
        p = ngx_cpymem(p, out->content_type.data, out->content_type.len);

        if (out->content_type_len == out->content_type.len
            && out->charset.len)
        {
            p = ngx_cpymem(p, "; charset=", sizeof("; charset=") - 1);
            p = ngx_cpymem(p, out->charset.data, out->charset.len);
        }

        *p++ = CR; *p++ = LF;
    }

    if (out->content_length == NULL && out->content_length_n >= 0
        && !ctx->response_chunked && !ctx->omitted)
    {
        p = ngx_cpymem(p, "Content-Length: ", sizeof("Content-Length: ") - 1);
        p = ngx_http_capture_number(p, out->content_length_n);
        *p++ = CR; *p++ = LF;
    }

    if (out->last_modified == NULL && out->last_modified_time != -1
        && (out->status == NGX_HTTP_OK
            || out->status == NGX_HTTP_PARTIAL_CONTENT
            || out->status == NGX_HTTP_NOT_MODIFIED))
    {
        p = ngx_cpymem(p, "Last-Modified: ", sizeof("Last-Modified: ") - 1);
        p = ngx_http_time(p, out->last_modified_time);
        *p++ = CR; *p++ = LF;
    }

    return p;
}


static u_char *
ngx_http_capture_head_server(ngx_http_request_t *r, u_char *p)
{
    ngx_http_core_loc_conf_t  *clcf;

    if (r->headers_out.server) {
        return p;
    }

    clcf = ngx_http_get_module_loc_conf(r, ngx_http_core_module);

    switch (clcf->server_tokens) {

    case NGX_HTTP_SERVER_TOKENS_ON:
        return ngx_cpymem(p, "Server: " NGINX_VER CRLF,
                          sizeof("Server: " NGINX_VER CRLF) - 1);

    case NGX_HTTP_SERVER_TOKENS_BUILD:
        return ngx_cpymem(p, "Server: " NGINX_VER_BUILD CRLF,
                          sizeof("Server: " NGINX_VER_BUILD CRLF) - 1);

    default:
        return ngx_cpymem(p, "Server: nginx" CRLF,
                          sizeof("Server: nginx" CRLF) - 1);
    }
}


static u_char *
ngx_http_capture_head_list(ngx_http_request_t *r,
    ngx_http_capture_ctx_t *ctx, u_char *p)
{
    ngx_uint_t        i, redirect;
    ngx_list_part_t  *part;
    ngx_table_elt_t  *h;

    redirect = ngx_http_capture_redirect(r);

    for (part = &r->headers_out.headers.part; part; part = part->next) {
        h = part->elts;

        for (i = 0; i < part->nelts; i++) {

            if (h[i].hash == 0 || ngx_http_capture_is_hop(&h[i])
                || (redirect && &h[i] == r->headers_out.location)
                || ((ctx->response_chunked || ctx->omitted)
                    && &h[i] == r->headers_out.content_length)
                || (ctx->omitted && &h[i] == r->headers_out.content_encoding))
            {
                continue;
            }

            p = ngx_cpymem(p, h[i].key.data, h[i].key.len);
            *p++ = ':'; *p++ = ' ';
            p = ngx_cpymem(p, h[i].value.data, h[i].value.len);
            *p++ = CR; *p++ = LF;
        }
    }

    return p;
}


/* Headers of the connection to the client, and framing that we write anew. */

static ngx_uint_t
ngx_http_capture_is_hop(ngx_table_elt_t *h)
{
    switch (h->key.len) {

    case 10:
        return ngx_strncasecmp(h->key.data, (u_char *) "Connection", 10) == 0
               || ngx_strncasecmp(h->key.data, (u_char *) "Keep-Alive", 10)
                  == 0;

    case 17:
        return ngx_strncasecmp(h->key.data, (u_char *) "Transfer-Encoding", 17)
               == 0;

    default:
        return 0;
    }
}


/* The header filter will make this Location absolute. */

static ngx_uint_t
ngx_http_capture_redirect(ngx_http_request_t *r)
{
    ngx_table_elt_t           *location;
    ngx_http_core_loc_conf_t  *clcf;

    location = r->headers_out.location;
    clcf = ngx_http_get_module_loc_conf(r, ngx_http_core_module);

    return location && location->hash && location->value.len
           && location->value.data[0] == '/' && clcf->absolute_redirect;
}


static u_char *
ngx_http_capture_status_line(ngx_http_request_t *r, u_char *p)
{
    ngx_http_capture_status_line_t  *s;

    if (r->headers_out.status_line.len) {
        return ngx_cpymem(p, r->headers_out.status_line.data,
                          r->headers_out.status_line.len);
    }

    for (s = ngx_http_capture_status_lines; s->status; s++) {
        if (s->status == r->headers_out.status) {
            return ngx_cpymem(p, s->line.data, s->line.len);
        }
    }

    return ngx_sprintf(p, "%03ui ", r->headers_out.status);
}


/* ngx_sprintf("%O") costs a tenth of a whole capture. */

static u_char *
ngx_http_capture_number(u_char *p, uint64_t n)
{
    u_char    *last;
    uint64_t   rest;

    for (rest = n; rest > 9; rest /= 10) {
        p++;
    }

    last = p + 1;

    do {
        *p-- = (u_char) ('0' + n % 10);
        n /= 10;
    } while (n);

    return last;
}
