
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

#include "module/ngx_http_capture_json_internal.h"


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

static u_char *json_run(u_char *p, u_char *last);
static u_char *json_blank(json_t *j, u_char *p);
static u_char *json_open(json_t *j, u_char *p, unsigned object);
static u_char *json_close(json_t *j, u_char *p, unsigned object);
static void json_begin(json_t *j, u_char *p, unsigned state);


const json_step_pt  ngx_http_capture_json_steps[] = {
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

        return ngx_http_capture_json_break(j, p);

    case ' ': case '\t': case '\r': case '\n': case '/':
        return json_blank(j, p);
    }

    /* a line of values alone is a part of what was no line */

    if (j->lines && j->depth == 0) {
        return ngx_http_capture_json_break(j, p);
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
            return ngx_http_capture_json_break(j, p);
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

        return ngx_http_capture_json_break(j, p);

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

    ngx_http_capture_json_name_run(j, start, p);

    if (p == last) {
        return p;
    }

    if (*p == '"') {
        ngx_http_capture_json_name_end(j);
        j->state = json_colon;
        return p + 1;
    }

    if (*p != '\\') {
        return (*p == '\n' && j->lines) ? p : ngx_http_capture_json_break(j, p);
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
            ngx_http_capture_json_name_char(j, c[1]);
            j->state = json_name;
            return p + 1;
        }
    }

    return ngx_http_capture_json_break(j, p);
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
        return ngx_http_capture_json_break(j, p);
    }

    j->code = j->code << 4 | c;

    if (++j->digits == 4) {
        ngx_http_capture_json_name_code(j, j->code);
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
        ngx_http_capture_json_value_end(j, p);
        return p + 1;
    }

    if (*p != '\\') {
        return (*p == '\n' && j->lines) ? p : ngx_http_capture_json_break(j, p);
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
        return ngx_http_capture_json_break(j, p);
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
            ngx_http_capture_json_value_end(j, p);
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
        return ngx_http_capture_json_break(j, p);
    }

    if (*++j->literal == '\0') {
        ngx_http_capture_json_value_end(j, p);
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
        return ngx_http_capture_json_break(j, p);
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
            ngx_http_capture_json_value_end(j, p);
        }

        break;

    case '/':
        return ngx_http_capture_json_break(j, p);

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
        return ngx_http_capture_json_break(j, p);
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
        return ngx_http_capture_json_break(j, p);
    }
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
        return ngx_http_capture_json_break(j, p);
    }

    if (j->below == j->depth) {
        j->below = 0;
    }

    j->depth--;

    ngx_http_capture_json_value_end(j, p);

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
