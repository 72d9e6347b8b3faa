
/*
 * Redaction of JSON as a stream: a text comes in pieces and goes on in pieces.
 *
 * json_step.c has the grammar, json_path.c the names that are looked for, and
 * json_value.c puts other values in the place of those that they lead to.
 */


#include <string.h>

#include "module/ngx_http_capture_json_internal.h"


static void json_document(json_t *j);
static void json_line_end(json_t *j, u_char *p);


void
ngx_http_capture_json_init(json_t *j, ngx_http_capture_json_paths_t *paths,
    unsigned certain, unsigned lines)
{
    memset(j, 0, offsetof(json_t, name));

    j->paths = paths;
    j->certain = certain;
    j->lines = lines;

    json_document(j);

    j->state = json_start;
}


size_t
ngx_http_capture_json_next(json_t *j, u_char *buf, const u_char *data,
    size_t len)
{
    u_char  *p, *last;

    if (j->how == json_hash) {
        memcpy(buf, j->pending, j->pending_len);
        j->from = buf;
    }

    p = buf + j->pending_len;
    j->pending_len = 0;

    memcpy(p, data, len);
    last = p + len;

    while (p < last) {

        if (*p == '\n' && j->lines && j->state != json_opaque) {
            json_line_end(j, p);
            p++;
            continue;
        }

        p = ngx_http_capture_json_steps[j->state](j, p, last);
    }

    return ngx_http_capture_json_keep(j, buf, last);
}


size_t
ngx_http_capture_json_end(json_t *j, u_char *buf)
{
    size_t  len;

    len = j->pending_len;
    j->pending_len = 0;

    memset(buf, NGX_HTTP_CAPTURE_JSON_MASK, len);

    return len;
}


/* A document begins. */

static void
json_document(json_t *j)
{
    j->depth = 0;
    j->deep = 0;
    j->below = 0;
    j->matched = 0;
    j->how = json_keep;
    j->from = NULL;
    j->active = j->paths->root;
    j->state = json_item;
}


static void
json_line_end(json_t *j, u_char *p)
{
    if (j->from) {
        ngx_http_capture_json_rest(j, p);
    }

    json_document(j);
}


u_char *
ngx_http_capture_json_break(json_t *j, u_char *p)
{
    if (j->from) {
        ngx_http_capture_json_rest(j, p);
    }

    j->malformed++;
    j->state = json_broken;

    return p;
}
