
/*
 * Paths, and which of them the names of a document follow.
 *
 * The names of all paths are a set, a bit each; those that may come next are
 * `active`.  A name that comes leaves the ones behind those that it is.
 */


#include <string.h>

#include "module/ngx_http_capture_json_internal.h"


const char *
ngx_http_capture_json_path(ngx_http_capture_json_paths_t *paths,
    const u_char *path, size_t len)
{
    size_t                         n;
    unsigned                       first;
    const u_char                  *dot;
    ngx_http_capture_json_name_t  *name;

    first = 1;

    if (len >= 2 && path[0] == '$' && path[1] == '.') {
        path += 2;
        len -= 2;

    } else if (paths->n < NGX_HTTP_CAPTURE_JSON_NAMES) {
        paths->start |= (uint64_t) 1 << paths->n;
    }

    for ( ;; ) {
        dot = memchr(path, '.', len);
        n = dot ? (size_t) (dot - path) : len;

        if (n == 0) {
            return "has an empty name";
        }

        if (n > NGX_HTTP_CAPTURE_JSON_NAME) {
            return "has a name of more than 128 bytes";
        }

        if (paths->n == NGX_HTTP_CAPTURE_JSON_NAMES) {
            return "is too much: all paths together may have 64 names";
        }

        name = &paths->names[paths->n];
        name->len = n;
        memcpy(name->data, path, n);

        if (n == 1 && path[0] == '*') {
            paths->any |= (uint64_t) 1 << paths->n;
        }

        if (first) {
            paths->root |= (uint64_t) 1 << paths->n;
            first = 0;
        }

        paths->n++;

        if (dot == NULL) {
            paths->last |= (uint64_t) 1 << (paths->n - 1);
            return NULL;
        }

        path += n + 1;
        len -= n + 1;
    }
}


void
ngx_http_capture_json_name_char(json_t *j, u_char c)
{
    ngx_http_capture_json_name_run(j, &c, &c + 1);
}


void
ngx_http_capture_json_name_run(json_t *j, const u_char *p, const u_char *last)
{
    size_t         len;
    const u_char  *dot;

    for ( ;; ) {
        dot = memchr(p, '.', last - p);
        len = (dot ? dot : last) - p;

        if (j->name_len + len <= NGX_HTTP_CAPTURE_JSON_NAME) {
            memcpy(j->name + j->name_len, p, len);
        }

        j->name_len += len;

        if (dot == NULL) {
            return;
        }

        ngx_http_capture_json_name_end(j);
        p = dot + 1;
    }
}


void
ngx_http_capture_json_name_code(json_t *j, unsigned code)
{
    if (code >= 0xd800 && code < 0xdc00) {
        j->high = code;
        return;
    }

    if (code >= 0xdc00 && code < 0xe000 && j->high) {
        code = 0x10000 + ((j->high - 0xd800) << 10) + (code - 0xdc00);
    }

    j->high = 0;

    if (code < 0x80) {
        ngx_http_capture_json_name_char(j, code);
        return;
    }

    if (code < 0x800) {
        ngx_http_capture_json_name_char(j, 0xc0 | code >> 6);

    } else {

        if (code < 0x10000) {
            ngx_http_capture_json_name_char(j, 0xe0 | code >> 12);

        } else {
            ngx_http_capture_json_name_char(j, 0xf0 | code >> 18);
            ngx_http_capture_json_name_char(j, 0x80 | (code >> 12 & 0x3f));
        }

        ngx_http_capture_json_name_char(j, 0x80 | (code >> 6 & 0x3f));
    }

    ngx_http_capture_json_name_char(j, 0x80 | (code & 0x3f));
}


/* A name, or a part of one up to a dot: which paths it takes further. */

void
ngx_http_capture_json_name_end(json_t *j)
{
    unsigned                        i;
    uint64_t                        left, hits;
    ngx_http_capture_json_name_t   *name;
    ngx_http_capture_json_paths_t  *paths;

    paths = j->paths;
    hits = j->active & paths->any;

    for (left = j->active & ~paths->any; left; left &= left - 1) {
        i = __builtin_ctzll(left);
        name = &paths->names[i];

        if (name->len == j->name_len
            && memcmp(name->data, j->name, name->len) == 0)
        {
            hits |= (uint64_t) 1 << i;
        }
    }

    if (hits & paths->last) {
        j->matched = 1;
    }

    j->active = (hits & ~paths->last) << 1 | paths->start;
    j->name_len = 0;
}
