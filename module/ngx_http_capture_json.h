
/*
 * JSON as a stream: the values at some paths are replaced in place by others
 * of the same length, whatever pieces the text comes in.
 *
 * A path is names from the outside in.  Arrays have no name; a name with dots
 * counts as several ("a.b": as in "a": {"b": }), because search engines take
 * it so.  Strings and numbers are replaced; of an object or an array all that
 * are in it.  true, false and null stay, and so do names.
 *
 * What is no JSON is not guessed at: the rest is replaced whole (of the line,
 * where each is a document).  So is each string and number that is nested
 * deeper than NGX_HTTP_CAPTURE_JSON_DEPTH, names too.
 *
 * One thread; nothing is allocated; no NGINX is needed (t/unit/test_json.c).
 */


#ifndef _NGX_HTTP_CAPTURE_JSON_H_INCLUDED_
#define _NGX_HTTP_CAPTURE_JSON_H_INCLUDED_


#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>


#define NGX_HTTP_CAPTURE_JSON_NAMES    64   /* of all paths together */
#define NGX_HTTP_CAPTURE_JSON_NAME     128  /* bytes */
#define NGX_HTTP_CAPTURE_JSON_DEPTH    256

/* bytes of a value that are kept, for a hash, when its end has not come */
#define NGX_HTTP_CAPTURE_JSON_PENDING  256

#define NGX_HTTP_CAPTURE_JSON_MASK     '*'


typedef struct {
    size_t                          len;
    u_char                          data[NGX_HTTP_CAPTURE_JSON_NAME];
} ngx_http_capture_json_name_t;


/* A set of names is a bit mask; a path's names have numbers in a row. */

typedef struct {
    unsigned                        n;
    uint64_t                        root;  /* may be next in a document */
    uint64_t                        start; /* may be next anywhere */
    uint64_t                        any;   /* `*` */
    uint64_t                        last;  /* of their paths */
    ngx_http_capture_json_name_t    names[NGX_HTTP_CAPTURE_JSON_NAMES];
} ngx_http_capture_json_paths_t;


/* Replaces a value by letters and digits, of its own length. */

typedef void (*ngx_http_capture_json_hash_pt)(void *data, u_char *value,
    size_t len);


typedef struct {
    ngx_http_capture_json_paths_t  *paths;
    ngx_http_capture_json_hash_pt   hash;  /* or NULL */
    void                           *data;

    uint64_t                        values;     /* replaced, so far */
    uint64_t                        unhashed;   /* of these: too long */
    uint64_t                        malformed;

    u_char                         *from;  /* of a value to be hashed */
    const char                     *literal;
    uint64_t                        active; /* names that may come next */
    unsigned                        depth;
    unsigned                        deep;   /* beyond what is followed */
    unsigned                        below;  /* replaced whole from there on */
    unsigned                        state;
    unsigned                        back;   /* behind a comment */
    unsigned                        how;    /* the value in work */
    unsigned                        digits; /* of \u, or of a number */
    unsigned                        code;
    unsigned                        high;   /* the first of two \u */

    size_t                          name_len;
    size_t                          pending_len;

    unsigned                        lines:1;    /* a document each */
    unsigned                        certain:1;  /* its type says JSON */
    unsigned                        matched:1;
    unsigned                        exponent:1;

    u_char                          name[NGX_HTTP_CAPTURE_JSON_NAME];
    u_char                          pending[NGX_HTTP_CAPTURE_JSON_PENDING];
    uint8_t                         object[NGX_HTTP_CAPTURE_JSON_DEPTH];
    uint64_t                        level[NGX_HTTP_CAPTURE_JSON_DEPTH];
} ngx_http_capture_json_t;


/*
 * Adds a path: names with dots between, `*` for any one; `$.` before them where
 * it begins with the document, and not anywhere.  NULL, or what is wrong.
 */
const char *ngx_http_capture_json_path(ngx_http_capture_json_paths_t *paths,
    const u_char *path, size_t len);

/* `certain`: 0 lets the first byte say whether it is JSON at all. */
void ngx_http_capture_json_init(ngx_http_capture_json_t *json,
    ngx_http_capture_json_paths_t *paths, unsigned certain, unsigned lines);

/*
 * The next bytes of the text; `buf` has room for NGX_HTTP_CAPTURE_JSON_PENDING
 * more than `len`.  Returns how many bytes there are to be passed on; what is
 * kept back now comes before the next.
 */
size_t ngx_http_capture_json_next(ngx_http_capture_json_t *json, u_char *buf,
    const u_char *data, size_t len);

/* The text has ended; into `buf` what was kept back. */
size_t ngx_http_capture_json_end(ngx_http_capture_json_t *json, u_char *buf);


#endif /* _NGX_HTTP_CAPTURE_JSON_H_INCLUDED_ */
