
/*
 * What of an exchange the operator does not want recorded: bodies that are too
 * large, and ones in which capture_redact_json can find nothing.
 *
 * A request without its body is another request, so it goes as a whole: it is
 * filtered.  A response's body may be left out: its head is recorded, which
 * says so, and its connection goes on.  What grows too large when its
 * beginning is recorded already is cut, and told as any cut response: the
 * exchange is truncated, and its connectionId ends.
 */


#include "ngx_http_capture.h"


/* what can be told of a body before it comes */

typedef enum {
    ngx_http_capture_body_any = 0,  /* its first byte will tell */
    ngx_http_capture_body_json,
    ngx_http_capture_body_lines,
    ngx_http_capture_body_coded     /* not to be read here */
} ngx_http_capture_body_e;


static ngx_uint_t ngx_http_capture_policy_type(ngx_str_t *type);
static ngx_uint_t ngx_http_capture_policy_request_body(ngx_http_request_t *r);
static ngx_uint_t ngx_http_capture_policy_lines(ngx_str_t *uri);
static ngx_uint_t ngx_http_capture_policy_response_body(ngx_http_request_t *r);


/* capture_max_request_body, capture_max_response_body: off | size */

char *
ngx_http_capture_set_max_body(ngx_conf_t *cf, ngx_command_t *cmd, void *conf)
{
    off_t      *field;
    ngx_str_t  *value;

    field = (off_t *) ((char *) conf + cmd->offset);

    value = cf->args->elts;

    if (*field == NGX_CONF_UNSET && ngx_strcmp(value[1].data, "off") == 0) {
        *field = NGX_MAX_OFF_T_VALUE;
        return NGX_CONF_OK;
    }

    return ngx_conf_set_off_slot(cf, cmd, conf);
}


/* CAP_NONE, or why this request is not to be recorded; redacts its head. */

ngx_int_t
ngx_http_capture_policy_request(ngx_http_request_t *r,
    ngx_http_capture_ctx_t *ctx)
{
    ngx_uint_t                    body;
    ngx_http_capture_loc_conf_t  *clcf;

    clcf = ctx->conf;

    ctx->request_room = clcf->max_request_body;

    if (r->headers_in.content_length_n > clcf->max_request_body) {
        return CAP_TOO_LARGE;
    }

    if (clcf->redact_json && ctx->has_body) {
        body = ngx_http_capture_policy_request_body(r);

        if (body == ngx_http_capture_body_coded) {
            return CAP_UNREDACTABLE;
        }

        ctx->request_json = ngx_http_capture_redact_body(r, ctx,
                                     body != ngx_http_capture_body_any,
                                     body == ngx_http_capture_body_lines);
        if (ctx->request_json == NULL) {
            return CAP_INTERNAL;
        }
    }

    ngx_http_capture_redact_request(r, ctx);

    return CAP_NONE;
}


static ngx_uint_t
ngx_http_capture_policy_request_body(ngx_http_request_t *r)
{
    ngx_uint_t        i, body;
    ngx_list_part_t  *part;
    ngx_table_elt_t  *h;

    body = ngx_http_capture_body_any;

    if (r->headers_in.content_type) {
        body = ngx_http_capture_policy_type(&r->headers_in.content_type->value);
    }

    for (part = &r->headers_in.headers.part; part; part = part->next) {
        h = part->elts;

        for (i = 0; i < part->nelts; i++) {
            if (h[i].key.len == sizeof("Content-Encoding") - 1
                && ngx_strncasecmp(h[i].key.data, (u_char *) "Content-Encoding",
                                   sizeof("Content-Encoding") - 1)
                   == 0
                && (h[i].value.len != sizeof("identity") - 1
                    || ngx_strncasecmp(h[i].value.data, (u_char *) "identity",
                                       sizeof("identity") - 1)
                       != 0))
            {
                return ngx_http_capture_body_coded;
            }
        }
    }

    if (body != ngx_http_capture_body_coded
        && ngx_http_capture_policy_lines(&r->uri))
    {
        return ngx_http_capture_body_lines;
    }

    return body;
}


/* _bulk and _msearch take a document a line under any type. */

static ngx_uint_t
ngx_http_capture_policy_lines(ngx_str_t *uri)
{
    static ngx_str_t  names[] = {
        ngx_string("/_bulk"),
        ngx_string("/_msearch"),
        ngx_null_string
    };

    u_char     *p, *last;
    ngx_str_t  *name;

    last = uri->data + uri->len;

    for (name = names; name->len; name++) {
        p = ngx_strlcasestrn(uri->data, last, name->data, name->len - 1);

        if (p && (p + name->len == last || p[name->len] == '/')) {
            return 1;
        }
    }

    return 0;
}


static ngx_uint_t
ngx_http_capture_policy_type(ngx_str_t *type)
{
    static struct {
        ngx_str_t   name;
        ngx_uint_t  body;
    } types[] = {
        { ngx_string("ndjson"), ngx_http_capture_body_lines },
        { ngx_string("json"), ngx_http_capture_body_json },
        { ngx_string("cbor"), ngx_http_capture_body_coded },
        { ngx_string("smile"), ngx_http_capture_body_coded },
        { ngx_string("yaml"), ngx_http_capture_body_coded },
        { ngx_null_string, 0 }
    };

    u_char      *last;
    ngx_uint_t   i;

    if (type->len == 0) {
        return ngx_http_capture_body_any;
    }

    last = ngx_strlchr(type->data, type->data + type->len, ';');

    if (last == NULL) {
        last = type->data + type->len;
    }

    for (i = 0; types[i].name.len; i++) {
        if (ngx_strlcasestrn(type->data, last, types[i].name.data,
                             types[i].name.len - 1))
        {
            return types[i].body;
        }
    }

    return ngx_http_capture_body_any;
}


/*
 * Bytes of the request's body that have come.  If they are too many now, which
 * with Content-Length was known before, it is dropped.
 */

void
ngx_http_capture_policy_grown(ngx_http_capture_ctx_t *ctx, ngx_chain_t *in)
{
    ngx_chain_t  *cl;

    for (cl = in; cl; cl = cl->next) {
        ctx->request_room -= ngx_buf_size(cl->buf);
    }

    if (ctx->request_room < 0) {
        ngx_http_capture_finish(ctx, CAP_FRAME_DROP, CAP_TOO_LARGE);
    }
}


/*
 * What is to be done with the body of this response; its head follows.  May be
 * called again, when the head has changed.
 */

ngx_int_t
ngx_http_capture_policy_response(ngx_http_request_t *r,
    ngx_http_capture_ctx_t *ctx)
{
    off_t        max;
    ngx_uint_t   body;

    max = ctx->conf->max_response_body;

    ctx->omitted = 0;
    ctx->response_json = NULL;
    ctx->response_room = max;

    if (r->method == NGX_HTTP_HEAD
        || r->headers_out.status == NGX_HTTP_NO_CONTENT
        || r->headers_out.status == NGX_HTTP_NOT_MODIFIED
        || r->headers_out.content_length_n == 0)
    {
        return NGX_OK;
    }

    if (r->headers_out.content_length_n > max || max == 0) {
        ctx->omitted = CAP_TOO_LARGE;
        return NGX_OK;
    }

    if (ctx->conf->redact_json == NULL) {
        return NGX_OK;
    }

    body = ngx_http_capture_policy_response_body(r);

    if (body == ngx_http_capture_body_coded) {
        ctx->omitted = CAP_UNREDACTABLE;
        return NGX_OK;
    }

    ctx->response_json = ngx_http_capture_redact_body(r, ctx,
                                      body != ngx_http_capture_body_any,
                                      body == ngx_http_capture_body_lines);

    return ctx->response_json ? NGX_OK : NGX_ERROR;
}


static ngx_uint_t
ngx_http_capture_policy_response_body(ngx_http_request_t *r)
{
    ngx_table_elt_t  *h;

    h = r->headers_out.content_encoding;

    if (h && h->hash && h->value.len) {
        return ngx_http_capture_body_coded;
    }

    /* a part of a text is no text */

    if (r->headers_out.status == NGX_HTTP_PARTIAL_CONTENT) {
        return ngx_http_capture_body_coded;
    }

    return ngx_http_capture_policy_type(&r->headers_out.content_type);
}


/* The lines of a head whose body is left out, in the place of its framing. */

u_char *
ngx_http_capture_policy_omitted(ngx_http_request_t *r,
    ngx_http_capture_ctx_t *ctx, u_char *p)
{
    p = ngx_sprintf(p, "Content-Length: 0" CRLF "X-Capture-Omitted: %s",
                    cap_reason_name(ctx->omitted));

    if (r->headers_out.content_length_n >= 0) {
        p = ngx_sprintf(p, "; length=%O", r->headers_out.content_length_n);
    }

    return ngx_cpymem(p, CRLF, sizeof(CRLF) - 1);
}


/* Whether a response has grown too large in its middle; it is cut then. */

ngx_uint_t
ngx_http_capture_policy_cut(ngx_http_capture_ctx_t *ctx, ngx_chain_t *in)
{
    ngx_chain_t  *cl;

    for (cl = in; cl; cl = cl->next) {
        ctx->response_room -= ngx_buf_size(cl->buf);
    }

    /* what is held until the request's end has a bound of its own */

    if (ctx->response_room >= 0 || !ctx->eom_sent) {
        return 0;
    }

    ngx_http_capture_finish(ctx, CAP_FRAME_END, CAP_END_TRUNCATED);
    ngx_http_capture_count_redact(CAP_REDACT_CUT, 1);

    return 1;
}
