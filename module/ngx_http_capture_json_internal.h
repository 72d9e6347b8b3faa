
/*
 * What json.c, json_step.c, json_path.c and json_value.c share.
 */


#ifndef _NGX_HTTP_CAPTURE_JSON_INTERNAL_H_INCLUDED_
#define _NGX_HTTP_CAPTURE_JSON_INTERNAL_H_INCLUDED_


#include "module/ngx_http_capture_json.h"


enum {
    json_start = 0,     /* nothing has come: JSON at all? */
    json_opaque,        /* it is not */
    json_value,         /* a value, or in an array its end */
    json_item,          /* a value and nothing else */
    json_first_name,    /* a name, or the object's end */
    json_next_name,
    json_name,
    json_name_escape,
    json_name_hex,
    json_colon,
    json_after,         /* a value: a comma, or an end */
    json_string,
    json_string_escape,
    json_number,
    json_literal,
    json_slash,
    json_comment,
    json_comment_star,
    json_comment_line,
    json_deep,
    json_deep_string,
    json_deep_escape,
    json_broken
};


/* what becomes of the value in work */

enum {
    json_keep = 0,
    json_constant,
    json_hash
};


typedef ngx_http_capture_json_t  json_t;

typedef u_char *(*json_step_pt)(json_t *j, u_char *p, u_char *last);


/* called within this module only: without the detour of an exported symbol */

#pragma GCC visibility push(hidden)


/* json.c: the rest of the document is not to be read */

u_char *ngx_http_capture_json_break(json_t *j, u_char *p);

/* json_step.c: by the state */

extern const json_step_pt  ngx_http_capture_json_steps[];

/* json_path.c: a name, as it comes; then which paths it takes further */

void ngx_http_capture_json_name_char(json_t *j, u_char c);
void ngx_http_capture_json_name_run(json_t *j, const u_char *p,
    const u_char *last);
void ngx_http_capture_json_name_code(json_t *j, unsigned code);
void ngx_http_capture_json_name_end(json_t *j);

/* json_value.c: a value ends before p, cannot be hashed, or not yet */

void ngx_http_capture_json_value_end(json_t *j, u_char *p);
void ngx_http_capture_json_rest(json_t *j, u_char *p);
size_t ngx_http_capture_json_keep(json_t *j, u_char *buf, u_char *last);


#pragma GCC visibility pop


/* A digit becomes `digit`, in an exponent 0. */

static inline u_char
json_mask_number(json_t *j, u_char c, u_char digit)
{
    if (c >= '0' && c <= '9') {
        j->digits++;
        return j->exponent ? '0' : digit;
    }

    if (c == 'e' || c == 'E') {
        j->exponent = 1;
    }

    return c;
}


#endif /* _NGX_HTTP_CAPTURE_JSON_INTERNAL_H_INCLUDED_ */
