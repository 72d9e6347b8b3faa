
/*
 * A JSON tokenizer that works on any piece of a text: a state, and a function
 * for each that takes as many bytes as it can.
 *
 * It is strict where leniency could hide a value: whatever it does not know
 * (single quotes, names without quotes, UTF-16) makes the rest of the document
 * unreadable, and that is replaced whole.  Comments are known, since search
 * engines take them.
 */


#include <string.h>

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

enum {
    json_keep = 0,
    json_constant,
    json_hash
};


typedef ngx_http_capture_json_t  json_t;

typedef u_char *(*json_step_pt)(json_t *j, u_char *p, u_char *last);


static u_char *json_step_start(json_t *j, u_char *p, u_char *last);
static u_char *json_step_opaque(json_t *j, u_char *p, u_char *last);
static u_char *json_step_value(json_t *j, u_char *p, u_char *last);
static u_char *json_step_open_name(json_t *j, u_char *p, u_char *last);
static u_char *json_step_name(json_t *j, u_char *p, u_char *last);
static u_char *json_step_name_escape(json_t *j, u_char *p, u_char *last);
static u_char *json_step_name_hex(json_t *j, u_char *p, u_char *last);
static u_char *json_step_colon(json_t *j, u_char *p, u_char *last);
static u_char *json_step_after(json_t *j, u_char *p, u_char *last);
static u_char *json_step_string(json_t *j, u_char *p, u_char *last);
static u_char *json_step_string_escape(json_t *j, u_char *p, u_char *last);
static u_char *json_step_number(json_t *j, u_char *p, u_char *last);
static u_char *json_step_literal(json_t *j, u_char *p, u_char *last);
static u_char *json_step_slash(json_t *j, u_char *p, u_char *last);
static u_char *json_step_comment(json_t *j, u_char *p, u_char *last);
static u_char *json_step_deep(json_t *j, u_char *p, u_char *last);
static u_char *json_step_deep_string(json_t *j, u_char *p, u_char *last);
static u_char *json_step_broken(json_t *j, u_char *p, u_char *last);

static u_char *json_blank(json_t *j, u_char *p);
static u_char *json_break(json_t *j, u_char *p);
static u_char *json_open(json_t *j, u_char *p, unsigned object);
static u_char *json_close(json_t *j, u_char *p, unsigned object);
static void json_document(json_t *j);
static void json_line_end(json_t *j, u_char *p);
static void json_begin(json_t *j, u_char *p, unsigned state);
static void json_value_end(json_t *j, u_char *p);
static void json_hash_number(json_t *j, u_char *p, size_t len);
static u_char json_mask_number(json_t *j, u_char c, u_char digit);
static void json_constant_rest(json_t *j, u_char *p);
static u_char *json_run(u_char *p, u_char *last);
static void json_name_char(json_t *j, u_char c);
static void json_name_run(json_t *j, const u_char *p, const u_char *last);
static void json_name_code(json_t *j, unsigned code);
static void json_name_end(json_t *j);
static size_t json_keep_back(json_t *j, u_char *buf, u_char *last);


static const json_step_pt  json_steps[] = {
    json_step_start,
    json_step_opaque,
    json_step_value,
    json_step_value,
    json_step_open_name,
    json_step_open_name,
    json_step_name,
    json_step_name_escape,
    json_step_name_hex,
    json_step_colon,
    json_step_after,
    json_step_string,
    json_step_string_escape,
    json_step_number,
    json_step_literal,
    json_step_slash,
    json_step_comment,
    json_step_comment,
    json_step_comment,
    json_step_deep,
    json_step_deep_string,
    json_step_deep_string,
    json_step_broken
};


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

        p = json_steps[j->state](j, p, last);
    }

    return json_keep_back(j, buf, last);
}


/* A value whose end, and so its hash, is not there yet. */

static size_t
json_keep_back(json_t *j, u_char *buf, u_char *last)
{
    size_t  len;

    if (j->from == NULL) {
        return last - buf;
    }

    len = last - j->from;

    if (len > NGX_HTTP_CAPTURE_JSON_PENDING) {
        json_constant_rest(j, last);
        return last - buf;
    }

    memcpy(j->pending, j->from, len);
    j->pending_len = len;
    j->from = NULL;

    return last - buf - len;
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
        json_constant_rest(j, p);
    }

    json_document(j);
}


static u_char *
json_step_start(json_t *j, u_char *p, u_char *last)
{
    /* UTF-8's mark is no part of the text */

    if (*p == ' ' || *p == '\t' || *p == '\r' || *p == '\n'
        || *p == 0xef || *p == 0xbb || *p == 0xbf)
    {
        return p + 1;
    }

    j->state = (j->certain || *p == '{' || *p == '[') ? json_item
                                                      : json_opaque;
    return p;
}


static u_char *
json_step_opaque(json_t *j, u_char *p, u_char *last)
{
    return last;
}


static u_char *
json_step_value(json_t *j, u_char *p, u_char *last)
{
    switch (*p) {

    case '{':
        return json_open(j, p, 1);

    case '[':
        return json_open(j, p, 0);

    case ']':
        if (j->state == json_value) {
            return json_close(j, p, 0);
        }

        return json_break(j, p);

    case ' ': case '\t': case '\r': case '\n': case '/':
        return json_blank(j, p);
    }

    /* a line of values alone is a part of what was no line */

    if (j->lines && j->depth == 0) {
        return json_break(j, p);
    }

    switch (*p) {

    case '"':
        json_begin(j, p + 1, json_string);
        return p + 1;

    case 't':
        j->literal = "rue";
        break;

    case 'f':
        j->literal = "alse";
        break;

    case 'n':
        j->literal = "ull";
        break;

    default:
        if (*p != '-' && (*p < '0' || *p > '9')) {
            return json_break(j, p);
        }

        json_begin(j, p, json_number);
        j->digits = 0;
        j->exponent = 0;
        return p;
    }

    j->state = json_literal;

    return p + 1;
}


static u_char *
json_step_open_name(json_t *j, u_char *p, u_char *last)
{
    switch (*p) {

    case '"':
        j->state = json_name;
        j->name_len = 0;
        j->high = 0;
        j->active = j->level[j->depth - 1];
        return p + 1;

    case '}':
        if (j->state == json_first_name) {
            return json_close(j, p, 1);
        }

        return json_break(j, p);

    default:
        return json_blank(j, p);
    }
}


static u_char *
json_step_name(json_t *j, u_char *p, u_char *last)
{
    u_char  *start;

    start = p;
    p = json_run(p, last);

    json_name_run(j, start, p);

    if (p == last) {
        return p;
    }

    if (*p == '"') {
        json_name_end(j);
        j->state = json_colon;
        return p + 1;
    }

    if (*p != '\\') {
        return (*p == '\n' && j->lines) ? p : json_break(j, p);
    }

    j->state = json_name_escape;

    return p + 1;
}


static u_char *
json_step_name_escape(json_t *j, u_char *p, u_char *last)
{
    static const char  coded[] = "b\bf\fn\nr\rt\t\"\"\\\\//";

    const char  *c;

    if (*p == 'u') {
        j->state = json_name_hex;
        j->digits = 0;
        j->code = 0;
        return p + 1;
    }

    for (c = coded; *c; c += 2) {
        if (*p == (u_char) c[0]) {
            json_name_char(j, c[1]);
            j->state = json_name;
            return p + 1;
        }
    }

    return json_break(j, p);
}


static u_char *
json_step_name_hex(json_t *j, u_char *p, u_char *last)
{
    unsigned  c;

    c = *p | 0x20;

    if (c >= '0' && c <= '9') {
        c -= '0';

    } else if (c >= 'a' && c <= 'f') {
        c -= 'a' - 10;

    } else {
        return json_break(j, p);
    }

    j->code = j->code << 4 | c;

    if (++j->digits == 4) {
        json_name_code(j, j->code);
        j->state = json_name;
    }

    return p + 1;
}


static u_char *
json_step_colon(json_t *j, u_char *p, u_char *last)
{
    if (*p == ':') {
        j->state = json_item;
        return p + 1;
    }

    return json_blank(j, p);
}


static u_char *
json_step_after(json_t *j, u_char *p, u_char *last)
{
    switch (*p) {

    case ',':
        j->state = j->object[j->depth - 1] ? json_next_name : json_item;
        return p + 1;

    case '}':
        return json_close(j, p, 1);

    case ']':
        return json_close(j, p, 0);

    default:
        return json_blank(j, p);
    }
}


static u_char *
json_step_string(json_t *j, u_char *p, u_char *last)
{
    u_char  *start;

    start = p;
    p = json_run(p, last);

    if (j->how == json_constant) {
        memset(start, NGX_HTTP_CAPTURE_JSON_MASK, p - start);
    }

    if (p == last) {
        return p;
    }

    if (*p == '"') {
        json_value_end(j, p);
        return p + 1;
    }

    if (*p != '\\') {
        return (*p == '\n' && j->lines) ? p : json_break(j, p);
    }

    if (j->how == json_constant) {
        *p = NGX_HTTP_CAPTURE_JSON_MASK;
    }

    j->state = json_string_escape;

    return p + 1;
}


static u_char *
json_step_string_escape(json_t *j, u_char *p, u_char *last)
{
    if (*p < 0x20) {
        return json_break(j, p);
    }

    if (j->how == json_constant) {
        *p = NGX_HTTP_CAPTURE_JSON_MASK;
    }

    j->state = json_string;

    return p + 1;
}


static u_char *
json_step_number(json_t *j, u_char *p, u_char *last)
{
    for ( /* void */ ; p < last; p++) {

        if ((*p < '0' || *p > '9') && *p != '-' && *p != '+' && *p != '.'
            && *p != 'e' && *p != 'E')
        {
            json_value_end(j, p);
            return p;
        }

        if (j->how == json_constant) {
            *p = json_mask_number(j, *p, '1');
        }
    }

    return p;
}


static u_char *
json_step_literal(json_t *j, u_char *p, u_char *last)
{
    if (*p != (u_char) *j->literal) {
        return json_break(j, p);
    }

    if (*++j->literal == '\0') {
        json_value_end(j, p);
    }

    return p + 1;
}


static u_char *
json_step_slash(json_t *j, u_char *p, u_char *last)
{
    if (*p == '*') {
        j->state = json_comment;

    } else if (*p == '/') {
        j->state = json_comment_line;

    } else {
        return json_break(j, p);
    }

    return p + 1;
}


/* What it says goes: a value may stand in it. */

static u_char *
json_step_comment(json_t *j, u_char *p, u_char *last)
{
    if (j->state == json_comment_line) {
        if (*p == '\n' || *p == '\r') {
            j->state = j->back;
        }

    } else if (*p == '*') {
        j->state = json_comment_star;
        return p + 1;

    } else if (*p == '/' && j->state == json_comment_star) {
        j->state = j->back;
        return p + 1;

    } else {
        j->state = json_comment;
    }

    if (*p > 0x20) {
        *p = ' ';
    }

    return p + 1;
}


/* Too deep to know what is a name: all is replaced until it comes back. */

static u_char *
json_step_deep(json_t *j, u_char *p, u_char *last)
{
    switch (*p) {

    case '"':
        j->values++;
        j->state = json_deep_string;
        break;

    case '{': case '[':
        j->deep++;
        break;

    case '}': case ']':
        if (--j->deep == 0) {
            json_value_end(j, p);
        }

        break;

    case '/':
        return json_break(j, p);

    default:
        if (*p >= '0' && *p <= '9') {
            *p = '1';
        }

        break;
    }

    return p + 1;
}


static u_char *
json_step_deep_string(json_t *j, u_char *p, u_char *last)
{
    if (*p < 0x20) {
        return json_break(j, p);
    }

    if (j->state == json_deep_escape) {
        j->state = json_deep_string;

    } else if (*p == '\\') {
        j->state = json_deep_escape;

    } else if (*p == '"') {
        j->state = json_deep;
        return p + 1;
    }

    *p = NGX_HTTP_CAPTURE_JSON_MASK;

    return p + 1;
}


static u_char *
json_step_broken(json_t *j, u_char *p, u_char *last)
{
    for ( /* void */ ; p < last; p++) {

        if (*p == '\n' && j->lines) {
            return p;
        }

        if (*p != ' ' && *p != '\t' && *p != '\r' && *p != '\n') {
            *p = NGX_HTTP_CAPTURE_JSON_MASK;
        }
    }

    return p;
}


/* Up to what is more than a character of a string. */

static u_char *
json_run(u_char *p, u_char *last)
{
    static const u_char  ends[256] = {
        1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1,
        1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1,
        ['"'] = 1, ['\\'] = 1
    };

    while (p < last && !ends[*p]) {
        p++;
    }

    return p;
}


/* Between tokens: white space, a comment, or else nothing that we know. */

static u_char *
json_blank(json_t *j, u_char *p)
{
    switch (*p) {

    case ' ': case '\t': case '\r': case '\n':
        return p + 1;

    case '/':
        j->back = j->state;
        j->state = json_slash;
        return p + 1;

    default:
        return json_break(j, p);
    }
}


static u_char *
json_break(json_t *j, u_char *p)
{
    if (j->from) {
        json_constant_rest(j, p);
    }

    j->malformed++;
    j->state = json_broken;

    return p;
}


static u_char *
json_open(json_t *j, u_char *p, unsigned object)
{
    if (j->depth == NGX_HTTP_CAPTURE_JSON_DEPTH) {
        j->deep = 1;
        j->state = json_deep;
        return p + 1;
    }

    j->level[j->depth] = j->active;
    j->object[j->depth] = object;
    j->depth++;

    if (j->matched && j->below == 0) {
        j->below = j->depth;
    }

    j->matched = 0;
    j->state = object ? json_first_name : json_value;

    return p + 1;
}


static u_char *
json_close(json_t *j, u_char *p, unsigned object)
{
    if (j->depth == 0 || j->object[j->depth - 1] != object) {
        return json_break(j, p);
    }

    if (j->below == j->depth) {
        j->below = 0;
    }

    j->depth--;

    json_value_end(j, p);

    return p + 1;
}


static void
json_begin(json_t *j, u_char *p, unsigned state)
{
    j->state = state;

    if (!j->matched && j->below == 0) {
        return;
    }

    j->values++;

    if (j->hash) {
        j->how = json_hash;
        j->from = p;

    } else {
        j->how = json_constant;
    }
}


/* p: behind a value, of whatever kind. */

static void
json_value_end(json_t *j, u_char *p)
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
        json_constant_rest(j, p + len);
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


static u_char
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


/* A value that cannot be hashed: what there is of it, up to p, and the rest. */

static void
json_constant_rest(json_t *j, u_char *p)
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


static void
json_name_char(json_t *j, u_char c)
{
    json_name_run(j, &c, &c + 1);
}


static void
json_name_run(json_t *j, const u_char *p, const u_char *last)
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

        json_name_end(j);
        p = dot + 1;
    }
}


static void
json_name_code(json_t *j, unsigned code)
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
        json_name_char(j, code);
        return;
    }

    if (code < 0x800) {
        json_name_char(j, 0xc0 | code >> 6);

    } else {

        if (code < 0x10000) {
            json_name_char(j, 0xe0 | code >> 12);

        } else {
            json_name_char(j, 0xf0 | code >> 18);
            json_name_char(j, 0x80 | (code >> 12 & 0x3f));
        }

        json_name_char(j, 0x80 | (code >> 6 & 0x3f));
    }

    json_name_char(j, 0x80 | (code & 0x3f));
}


/* A name, or a part of one up to a dot: which paths it takes further. */

static void
json_name_end(json_t *j)
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
