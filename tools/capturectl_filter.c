/* Which exchanges are wanted, see capturectl_filter.h. */

#define PCRE2_CODE_UNIT_WIDTH 8

#include "tools/capturectl_filter.h"

#include "tools/capturectl_exchange.h"
#include "tools/capturectl_text.h"

#include <fnmatch.h>
#include <pcre2.h>
#include <stdlib.h>
#include <string.h>

typedef struct {
    pcre2_code *code;
    pcre2_match_data *match;
} regex;

struct exchange_filter {
    const ctl_options *opt;
    regex *path; /* NULL: a glob, or nothing */
    regex *body;
    int64_t since, until;
};

static regex *regex_new(const char *option, const char *pattern) {
    int error;
    PCRE2_SIZE at;
    regex *r = ctl_alloc(sizeof(regex));

    r->code = pcre2_compile((PCRE2_SPTR)pattern, PCRE2_ZERO_TERMINATED, 0,
                            &error, &at, NULL);

    if (r->code == NULL) {
        PCRE2_UCHAR why[128];

        pcre2_get_error_message(error, why, sizeof(why));
        ctl_remark("--%s %s: %s, at character %zu", option, pattern, why, at);
        exit(CTL_USAGE);
    }

    r->match = pcre2_match_data_create(1, NULL);

    if (r->match == NULL) {
        ctl_die("out of memory");
    }

    return r;
}

static bool regex_matches(const regex *r, const void *data, size_t len) {
    int rc = pcre2_match(r->code, len ? data : (PCRE2_SPTR) "", len, 0, 0,
                         r->match, NULL);

    if (rc < 0 && rc != PCRE2_ERROR_NOMATCH) { /* a limit, of nesting say */
        PCRE2_UCHAR why[128];

        pcre2_get_error_message(rc, why, sizeof(why));
        ctl_error("a regular expression: %s", why);
    }

    return rc >= 0;
}

static void regex_free(regex *r) {
    if (r != NULL) {
        pcre2_match_data_free(r->match);
        pcre2_code_free(r->code);
        free(r);
    }
}

/* One of a list with commas; each is taken by `is`. */
static bool any_of(const char *list, bool (*is)(span item, const void *ctx),
                   const void *ctx) {
    while (*list) {
        size_t n = strcspn(list, ",");

        if (is((span){list, n}, ctx)) {
            return true;
        }

        list += n + (list[n] == ',');
    }

    return false;
}

static bool is_word(span item, const void *ctx) {
    const span *word = ctx;

    return item.len == word->len &&
           memcmp(item.data, word->data, item.len) == 0;
}

/* "none", three digits, or x in the place of one */
static bool is_status(span item, const void *ctx) {
    int status = *(const int *)ctx;
    char digits[3] = {(char)('0' + status / 100),
                      (char)('0' + status / 10 % 10),
                      (char)('0' + status % 10)};

    if (status == 0) {
        return item.len == 4 && memcmp(item.data, "none", 4) == 0;
    }

    for (size_t i = 0; i < 3 && item.len == 3; i++) {
        if (item.data[i] != 'x' && item.data[i] != digits[i]) {
            return false;
        }
    }

    return item.len == 3;
}

static bool is_wrong_status(span item, const void *ctx) {
    (void)ctx;

    if (item.len == 4 && memcmp(item.data, "none", 4) == 0) {
        return false;
    }

    for (size_t i = 0; i < item.len; i++) {
        if (strchr("0123456789x", item.data[i]) == NULL) {
            return true;
        }
    }

    return item.len != 3;
}

exchange_filter *filter_new(const ctl_options *opt) {
    exchange_filter *f = ctl_alloc(sizeof(exchange_filter));

    *f = (exchange_filter){
        .opt = opt,
        .since = opt->since ? ctl_time_option(opt->since) : INT64_MIN,
        .until = opt->until ? ctl_time_option(opt->until) : INT64_MAX,
    };

    if (opt->statuses && any_of(opt->statuses, is_wrong_status, NULL)) {
        ctl_remark("--status %s: such as 200,404,5xx,none", opt->statuses);
        exit(CTL_USAGE);
    }

    if (opt->path && opt->path[0] == '~') {
        f->path = regex_new("path", opt->path + 1);
    }

    if (opt->body) {
        f->body = regex_new("body", opt->body);
    }

    return f;
}

void filter_free(exchange_filter *f) {
    regex_free(f->path);
    regex_free(f->body);
    free(f);
}

bool filter_is_set(const exchange_filter *f) {
    const ctl_options *o = f->opt;

    return o->methods || o->path || o->statuses || o->since || o->until ||
           o->body;
}

static bool path_matches(const exchange_filter *f, span uri) {
    bool matches;
    char *path;

    if (f->path != NULL) {
        return regex_matches(f->path, uri.data, uri.len);
    }

    uri = exchange_path(uri);
    path = strndup(uri.data ? uri.data : "", uri.len);

    if (path == NULL) {
        ctl_die("out of memory");
    }

    matches = fnmatch(f->opt->path, path, 0) == 0;
    free(path);

    return matches;
}

static bool body_matches(const exchange_filter *f, const http_message *m) {
    size_t head = m->len ? exchange_head_len(m) : 0;

    return m->len > head &&
           regex_matches(f->body, m->data + head, m->len - head);
}

bool filter_wants(const exchange_filter *f, const http_exchange *x) {
    const ctl_options *o = f->opt;
    span line = exchange_first_line(&x->request);
    span method = exchange_word(&line), uri = exchange_word(&line);

    if (x->request.first_ns < f->since || x->request.first_ns >= f->until) {
        return false;
    }

    if (o->methods && !any_of(o->methods, is_word, &method)) {
        return false;
    }

    if (o->statuses) {
        int status = exchange_status(&x->response);

        if (!any_of(o->statuses, is_status, &status)) {
            return false;
        }
    }

    if (o->path && !path_matches(f, uri)) {
        return false;
    }

    return f->body == NULL || body_matches(f, &x->request) ||
           body_matches(f, &x->response);
}
