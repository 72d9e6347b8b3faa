
/*
 * Values that are replaced, and by what.
 *
 * Without a key each character becomes the same one, at once.  With one the
 * value is hashed when its end is there; what of it has come so far is kept
 * back.
 */


#include <string.h>

#include "module/ngx_http_capture_json_internal.h"


static void json_hash_number(json_t *j, u_char *p, size_t len);


/* p: behind a value, of whatever kind. */

void
ngx_http_capture_json_value_end(json_t *j, u_char *p)
{
    if (j->from) {

        if (j->state == json_number) {
            json_hash_number(j, j->from, p - j->from);

        } else if (p != j->from) {
            j->hash(j->data, j->from, p - j->from);
        }

        j->from = NULL;
    }

    j->how = json_keep;
    j->matched = 0;

    if (j->depth) {
        j->active = j->level[j->depth - 1];
        j->state = json_after;

    } else {
        j->active = j->paths->root;
        j->state = json_item;
    }
}


/*
 * Digits become others so that the number stays one, and in its type's range:
 * the first is 1, the second at most 7, exponents are 0.
 */

static void
json_hash_number(json_t *j, u_char *p, size_t len)
{
    size_t  i;
    u_char  hash[NGX_HTTP_CAPTURE_JSON_PENDING];

    if (len > sizeof(hash)) {
        ngx_http_capture_json_rest(j, p + len);
        return;
    }

    memcpy(hash, p, len);
    j->hash(j->data, hash, len);

    for (i = 0; i < len; i++) {
        p[i] = json_mask_number(j, p[i],
                                j->digits == 0 ? '1'
                                : j->digits == 1 ? '1' + hash[i] % 7
                                                 : '1' + hash[i] % 9);
    }
}


/* A value that cannot be hashed: what there is of it, up to p, and the rest. */

void
ngx_http_capture_json_rest(json_t *j, u_char *p)
{
    u_char  *q;

    for (q = j->from; q < p; q++) {
        *q = (j->state == json_number) ? json_mask_number(j, *q, '1')
                                       : NGX_HTTP_CAPTURE_JSON_MASK;
    }

    j->from = NULL;
    j->how = json_constant;
    j->unhashed++;
}


/* A value whose end, and so its hash, is not there yet. */

size_t
ngx_http_capture_json_keep(json_t *j, u_char *buf, u_char *last)
{
    size_t  len;

    if (j->from == NULL) {
        return last - buf;
    }

    len = last - j->from;

    if (len > NGX_HTTP_CAPTURE_JSON_PENDING) {
        ngx_http_capture_json_rest(j, last);
        return last - buf;
    }

    memcpy(j->pending, j->from, len);
    j->pending_len = len;
    j->from = NULL;

    return last - buf - len;
}
