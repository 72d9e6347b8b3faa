/* Values in streamed JSON are replaced at their paths, and nowhere else, however
 * the text is cut into pieces; what is no JSON is replaced whole. */
#define _GNU_SOURCE 1
#include <check.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#pragma GCC diagnostic ignored "-Wunused-parameter"
#include "module/ngx_http_capture_json.c"
#include "module/ngx_http_capture_json_path.c"
#include "module/ngx_http_capture_json_step.c"
#include "module/ngx_http_capture_json_value.c"

#define SIZE 65536

typedef struct {
    const char *paths; /* with spaces between */
    const char *in;
    const char *out;
    const char *hashed; /* NULL: as out */
    unsigned unsure, lines;
    unsigned values, malformed;
} example;

static void hash(void *data, u_char *value, size_t len) {
    unsigned sum = 7;

    (void)data;
    for (size_t i = 0; i < len; i++) {
        sum = sum * 31 + value[i];
    }
    for (size_t i = 0; i < len; i++) {
        value[i] = (u_char)('a' + (sum + i) % 26);
    }
}

static void make_paths(ngx_http_capture_json_paths_t *paths, const char *list) {
    char copy[4096];

    memset(paths, 0, sizeof(*paths));
    snprintf(copy, sizeof(copy), "%s", list);
    for (char *p = strtok(copy, " "); p; p = strtok(NULL, " ")) {
        ck_assert_ptr_null(
            ngx_http_capture_json_path(paths, (u_char *)p, strlen(p)));
    }
}

static unsigned seed = 1;

static unsigned rnd(unsigned n) {
    seed = seed * 1103515245u + 12345u;
    return (seed >> 16) % n;
}

/* piece: 0 the whole; else at most that many bytes at a time, 1000: random */
static size_t feed(ngx_http_capture_json_t *j, const char *in, size_t len,
                   unsigned piece, char *out) {
    size_t n = 0, step;

    for (size_t at = 0; at < len; at += step) {
        step = piece == 0 ? len : piece == 1000 ? 1 + rnd(9) : piece;
        if (step > len - at) {
            step = len - at;
        }
        /* as large as it may get, and not a byte more: for the sanitizer */
        u_char *buf = malloc(step + NGX_HTTP_CAPTURE_JSON_PENDING);
        u_char *data = malloc(step);
        memcpy(data, in + at, step);
        size_t got = ngx_http_capture_json_next(j, buf, data, step);
        memcpy(out + n, buf, got);
        n += got;
        free(data);
        free(buf);
    }
    u_char *buf = malloc(NGX_HTTP_CAPTURE_JSON_PENDING);
    size_t got = ngx_http_capture_json_end(j, buf);
    memcpy(out + n, buf, got);
    free(buf);
    return n + got;
}

static const unsigned pieces[] = {0, 1, 2, 3, 7, 1000};

/* The text with its values replaced; the same for each way to cut it. */
static void masked(ngx_http_capture_json_t *j,
                   ngx_http_capture_json_paths_t *paths, const char *in,
                   size_t len, bool hashed, bool unsure, bool lines,
                   char *out) {
    char *again = malloc(len + 1);

    for (size_t i = 0; i < sizeof(pieces) / sizeof(*pieces); i++) {
        ngx_http_capture_json_init(j, paths, !unsure, lines);
        j->hash = hashed ? hash : NULL;
        ck_assert_uint_eq(feed(j, in, len, pieces[i], i ? again : out), len);
        if (i > 0 && memcmp(again, out, len) != 0) {
            ck_abort_msg("pieces of %u: %.*s not %.*s", pieces[i], (int)len,
                         again, (int)len, out);
        }
    }
    out[len] = '\0';
    free(again);
}

static const example examples[] = {
    {"password", "{\"password\":\"abc\"}", "{\"password\":\"***\"}",
     "{\"password\":\"pqr\"}", .values = 1},
    {"password", "{\"passwor\":\"abc\",\"passwords\":\"d\",\"Password\":1}",
     "{\"passwor\":\"abc\",\"passwords\":\"d\",\"Password\":1}", .values = 0},
    {"password",
     "{\"a\":{\"b\":[{\"password\":\"x\"},{\"password\" : \"yz\"}]}}",
     "{\"a\":{\"b\":[{\"password\":\"*\"},{\"password\" : \"**\"}]}}",
     "{\"a\":{\"b\":[{\"password\":\"z\"},{\"password\" : \"st\"}]}}",
     .values = 2},
    /* a name's way, in arrays, with dots, with escapes */
    {"user.name", "{\"user\":{\"name\":\"n\",\"x\":\"y\"},\"name\":\"n\"}",
     "{\"user\":{\"name\":\"*\",\"x\":\"y\"},\"name\":\"n\"}",
     "{\"user\":{\"name\":\"p\",\"x\":\"y\"},\"name\":\"n\"}", .values = 1},
    {"user.name", "{\"user\":[{\"name\":\"n\"},[{\"name\":\"n\"}]]}",
     "{\"user\":[{\"name\":\"*\"},[{\"name\":\"*\"}]]}",
     "{\"user\":[{\"name\":\"p\"},[{\"name\":\"p\"}]]}", .values = 2},
    {"user.name", "{\"user.name\":\"n\",\"doc.user\":{\"name\":\"n\"}}",
     "{\"user.name\":\"*\",\"doc.user\":{\"name\":\"*\"}}",
     "{\"user.name\":\"p\",\"doc.user\":{\"name\":\"p\"}}", .values = 2},
    {"user.name", "{\"us\\u0065r\\u002ename\":\"n\"}",
     "{\"us\\u0065r\\u002ename\":\"*\"}", "{\"us\\u0065r\\u002ename\":\"p\"}",
     .values = 1},
    {"user.name", "{\"user\":{\"x\":{\"name\":\"n\"}}}",
     "{\"user\":{\"x\":{\"name\":\"n\"}}}", .values = 0},
    {"\xc3\xa9 \xf0\x9f\x98\x80",
     "{\"\\u00e9\":1,\"\\ud83d\\ude00\":2,\"\xc3\xa9\":3}",
     "{\"\\u00e9\":1,\"\\ud83d\\ude00\":1,\"\xc3\xa9\":1}", .values = 3},
    {"*.secret", "{\"secret\":\"a\",\"x\":{\"secret\":\"a\"}}",
     "{\"secret\":\"a\",\"x\":{\"secret\":\"*\"}}",
     "{\"secret\":\"a\",\"x\":{\"secret\":\"c\"}}", .values = 1},
    {"a.*.c", "{\"a\":{\"b\":{\"c\":\"s\"},\"c\":\"t\"}}",
     "{\"a\":{\"b\":{\"c\":\"*\"},\"c\":\"t\"}}",
     "{\"a\":{\"b\":{\"c\":\"u\"},\"c\":\"t\"}}", .values = 1},
    {"$.a", "{\"a\":\"s\",\"b\":{\"a\":\"s\"}}",
     "{\"a\":\"*\",\"b\":{\"a\":\"s\"}}", "{\"a\":\"u\",\"b\":{\"a\":\"s\"}}",
     .values = 1},
    {"$.b.a c", "[{\"b\":{\"b\":{\"a\":\"s\"},\"a\":\"s\",\"c\":\"\"}}]",
     "[{\"b\":{\"b\":{\"a\":\"s\"},\"a\":\"*\",\"c\":\"\"}}]",
     "[{\"b\":{\"b\":{\"a\":\"s\"},\"a\":\"u\",\"c\":\"\"}}]", .values = 2},
    /* all below; after it no more */
    {"a",
     "{\"a\":{\"b\":\"s\",\"c\":[\"s\",{\"d\":\"s\"}],\"e\":{}},\"b\":\"s\"}",
     "{\"a\":{\"b\":\"*\",\"c\":[\"*\",{\"d\":\"*\"}],\"e\":{}},\"b\":\"s\"}",
     "{\"a\":{\"b\":\"u\",\"c\":[\"u\",{\"d\":\"u\"}],\"e\":{}},\"b\":\"s\"}",
     .values = 3},
    /* numbers stay numbers */
    {"n", "{\"n\":[0,-12.50,1e-9,987654321,true,false,null]}",
     "{\"n\":[1,-11.11,1e-0,111111111,true,false,null]}",
     "{\"n\":[1,-14.56,1e-0,164567891,true,false,null]}", .values = 4},
    {"s",
     "{\"s\":\"a\\\"b\\\\\",\"t\":\"a\\\"b\\\\\",\"s\":\"\\u0041\xc3\xa9\"}",
     "{\"s\":\"******\",\"t\":\"a\\\"b\\\\\",\"s\":\"********\"}",
     "{\"s\":\"efghij\",\"t\":\"a\\\"b\\\\\",\"s\":\"lmnopqrs\"}", .values = 2},
    /* comments are known, and what they say goes */
    {"a", "{/* \"a\": \"s\" **/\"a\"/**/:\"s\"// s\n}",
     "{/*          **/\"a\"/**/:\"*\"//  \n}",
     "{/*          **/\"a\"/**/:\"u\"//  \n}", .values = 1},
    {"a", "\xef\xbb\xbf {\"a\":\"s\"}", "\xef\xbb\xbf {\"a\":\"*\"}",
     "\xef\xbb\xbf {\"a\":\"u\"}", .values = 1},
    /* what is no JSON */
    {"a", "{'a':'s'}", "{********", .malformed = 1},
    {"a", "{a:\"s\"}", "{******", .malformed = 1},
    {"a", "{\"b\":nul1,\"a\":\"s\"}", "{\"b\":nul**********", .malformed = 1},
    {"a", "{\"b\":\"x\ny\",\"a\":\"s\"}", "{\"b\":\"x\n***********",
     .malformed = 1},
    {"a", "{\"b\":1} } {\"a\":\"s\"}", "{\"b\":1} * *********", .malformed = 1},
    {"a", "[1}{\"a\":\"s\"}", "[1**********", .malformed = 1},
    {"a", "{\"a\":\"s", "{\"a\":\"*", .values = 1},
    {"a", "{\"a\":\"s\n\"}", "{\"a\":\"*\n**", .values = 1, .malformed = 1},
    {"a", "a=s", "***", .malformed = 1},
    {"a", "a=s&{\"a\":\"s\"}", "a=s&{\"a\":\"s\"}", .unsure = 1},
    {"a", " \n[{\"a\":\"s\"}]", " \n[{\"a\":\"*\"}]", " \n[{\"a\":\"u\"}]",
     .unsure = 1, .values = 1},
    /* a document a line: what is wrong ends with its line */
    {"a",
     "{\"index\":{}}\n{\"a\":\"s\"}\n{\"b\":\"s\nx{\"a\":\"s\"}\n{\"a\":\"s\"}"
     "\n",
     "{\"index\":{}}\n{\"a\":\"*\"}\n{\"b\":\"s\n**********\n{\"a\":\"*\"}\n",
     "{\"index\":{}}\n{\"a\":\"u\"}\n{\"b\":\"s\n**********\n{\"a\":\"u\"}\n",
     .lines = 1, .values = 2, .malformed = 1},
    {"a", "{\"a\":\n\"s\"\n}", "{\"a\":\n***\n*", .lines = 1, .malformed = 2},
    {"a", "{\"a\":\"s\n{\"a\":\"s\"}\n", "{\"a\":\"*\n{\"a\":\"*\"}\n",
     "{\"a\":\"*\n{\"a\":\"u\"}\n", .lines = 1, .values = 2},
    /* documents in a row */
    {"a", "{\"a\":\"s\"}\n{\"a\":\"s\"} 7 \"x\"",
     "{\"a\":\"*\"}\n{\"a\":\"*\"} 7 \"x\"",
     "{\"a\":\"u\"}\n{\"a\":\"u\"} 7 \"x\"", .values = 2},
};

START_TEST(values_at_paths_are_replaced) {
    const example *e = &examples[_i];
    ngx_http_capture_json_paths_t paths;
    ngx_http_capture_json_t j;
    char out[SIZE];

    make_paths(&paths, e->paths);
    masked(&j, &paths, e->in, strlen(e->in), false, e->unsure, e->lines, out);
    ck_assert_str_eq(out, e->out);
    ck_assert_uint_eq(j.values, e->values);
    ck_assert_uint_eq(j.malformed, e->malformed);
    masked(&j, &paths, e->in, strlen(e->in), true, e->unsure, e->lines, out);
    ck_assert_str_eq(out, e->hashed ? e->hashed : e->out);
    ck_assert_uint_eq(j.values, e->values);
}
END_TEST

/* A value of any length keeps it; only so much of it is held. */
START_TEST(long_values_are_masked_without_a_hash) {
    ngx_http_capture_json_paths_t paths;
    ngx_http_capture_json_t j;
    char in[SIZE], out[SIZE];

    make_paths(&paths, "a");
    for (unsigned len = 250; len < 5000; len += len < 260 ? 1 : 977) {
        snprintf(in, sizeof(in), "{\"a\":\"%0*d\",\"b\":%0*d}", (int)len, 0,
                 (int)len, 1);
        ngx_http_capture_json_init(&j, &paths, 1, 0);
        j.hash = hash;
        size_t n = feed(&j, in, strlen(in), 100, out);
        ck_assert_uint_eq(n, strlen(in));
        ck_assert_mem_eq(out, "{\"a\":\"", 6);
        ck_assert_ptr_null(memchr(out, '0', 6 + len));
        ck_assert_mem_eq(out + 6 + len, in + 6 + len, n - 6 - len);
        ck_assert_uint_eq(j.unhashed, memchr(out, '*', n) != NULL);
        ck_assert(j.unhashed == (len > NGX_HTTP_CAPTURE_JSON_PENDING + 100) ||
                  len <= NGX_HTTP_CAPTURE_JSON_PENDING + 100);
    }
}
END_TEST

/* Deeper than is followed: all goes, and what comes behind it is known again. */
START_TEST(what_is_too_deep_is_replaced_whole) {
    ngx_http_capture_json_paths_t paths;
    ngx_http_capture_json_t j;
    char in[SIZE], out[SIZE];
    size_t n = 0;
    int depth = 3 * NGX_HTTP_CAPTURE_JSON_DEPTH;

    make_paths(&paths, "secret");
    for (int i = 0; i < depth; i++) {
        n += (size_t)sprintf(in + n, i % 2 ? "[" : "{\"k\":");
    }
    n += (size_t)sprintf(in + n,
                         "{\"secret\":\"s\\\"]\",\"open\":\"o\",\"n\":29}");
    for (int i = depth - 1; i >= 0; i--) {
        n += (size_t)sprintf(in + n, i % 2 ? "]" : "}");
    }
    n += (size_t)sprintf(in + n, "{\"open\":\"o\",\"secret\":\"s\"}");
    masked(&j, &paths, in, n, false, false, false, out);
    ck_assert_ptr_nonnull(
        strstr(out, "{\"******\":\"****\",\"****\":\"*\",\"*\":11}"));
    ck_assert_str_eq(strstr(out, "{\"open"),
                     "{\"open\":\"o\",\"secret\":\"*\"}");
    ck_assert_uint_eq(j.malformed, 0);
}
END_TEST

START_TEST(paths_that_cannot_be_are_named) {
    ngx_http_capture_json_paths_t paths = {0};
    char longest[200];

    static const char *const empty[] = {"", ".", "a.", ".a", "a..b", "$."};
    for (size_t i = 0; i < sizeof(empty) / sizeof(*empty); i++) {
        ck_assert_str_eq(ngx_http_capture_json_path(&paths, (u_char *)empty[i],
                                                    strlen(empty[i])),
                         "has an empty name");
    }
    memset(longest, 'x', sizeof(longest));
    memset(&paths, 0, sizeof(paths));
    ck_assert_ptr_nonnull(
        ngx_http_capture_json_path(&paths, (u_char *)longest, 129));
    for (int i = 0; i < NGX_HTTP_CAPTURE_JSON_NAMES; i++) {
        ck_assert_ptr_null(
            ngx_http_capture_json_path(&paths, (u_char *)longest, 128));
    }
    ck_assert_str_eq(ngx_http_capture_json_path(&paths, (u_char *)"a", 1),
                     "is too much: all paths together may have 64 names");
}
END_TEST

/* The names' last bit shifts out of the set, and matches nothing. */
START_TEST(sixty_four_names_are_followed) {
    ngx_http_capture_json_paths_t paths;
    ngx_http_capture_json_t j;
    char in[SIZE], out[SIZE], list[1024] = "";
    size_t n = 0;

    for (int i = 0; i < 64; i++) {
        sprintf(list + strlen(list), "%sn%d", i ? "." : "", i);
        n += (size_t)sprintf(in + n, "{\"n%d\":", i);
    }
    n += (size_t)sprintf(in + n, "\"s\"");
    for (int i = 0; i < 64; i++) {
        in[n++] = '}';
    }
    make_paths(&paths, list);
    masked(&j, &paths, in, n, false, false, false, out);
    ck_assert_ptr_nonnull(strstr(out, "\"n63\":\"*\"}"));
    ck_assert_uint_eq(j.values, 1);
}
END_TEST

/* Damaged texts: any byte may be anything, no piece makes a difference, and of
   a value that comes before the damage nothing is left. */
START_TEST(damaged_texts_do_no_harm) {
    static const char text[] =
        "{\"secret\":\"SECRET\",\"b\":[1,-2.5e7,{\"c\":\"\\u00e9\\\\\"}],"
        "\"user\":{\"secret\":[\"SECRET\",12345]},/*x*/\"d\":null}\n"
        "{\"secret\":{\"x\":\"SECRET\"},\"e\":true}\n";
    static const char bytes[] = "{}[]\",:\\/*u0e-\n\r t\x80\x00x.";
    ngx_http_capture_json_paths_t paths;
    ngx_http_capture_json_t j;
    char in[SIZE], out[SIZE];
    size_t len = sizeof(text) - 1;

    make_paths(&paths, "secret b.c *.x");
    for (int round = 0; round < 3000; round++) {
        memcpy(in, text, len);
        for (unsigned n = 1 + rnd(4); n > 0; n--) {
            in[17 + rnd((unsigned)len - 17)] =
                (char)(rnd(3) ? bytes[rnd(sizeof(bytes) - 1)] : (int)rnd(256));
        }
        masked(&j, &paths, in, len, round % 2, round % 3 == 0, round % 5 == 0,
               out);
        ck_assert_ptr_null(memmem(out, 18, "SECRET", 6));
    }
}
END_TEST

int main(void) {
    Suite *suite = suite_create("json");
    TCase *t = tcase_create("json");
    SRunner *runner = srunner_create(suite);

    tcase_add_loop_test(t, values_at_paths_are_replaced, 0,
                        sizeof(examples) / sizeof(*examples));
    tcase_add_test(t, long_values_are_masked_without_a_hash);
    tcase_add_test(t, what_is_too_deep_is_replaced_whole);
    tcase_add_test(t, paths_that_cannot_be_are_named);
    tcase_add_test(t, sixty_four_names_are_followed);
    tcase_add_test(t, damaged_texts_do_no_harm);
    suite_add_tcase(suite, t);
    srunner_run_all(runner, CK_NORMAL);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
