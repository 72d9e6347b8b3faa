/* A line is one line, whatever others have told us, and shows no secret. */
#define _GNU_SOURCE 1
#include <check.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "sidecar/log.h"

static char said[16384];
static int saved, pipe_fds[2];

static void setup(void) {
    ck_assert_int_eq(pipe2(pipe_fds, O_NONBLOCK), 0);
    saved = dup(STDERR_FILENO);
    dup2(pipe_fds[1], STDERR_FILENO);
    log_set_level(LOG_LEVEL_DEBUG);
    log_set_format(LOG_FORMAT_TEXT);
}

static void teardown(void) {
    dup2(saved, STDERR_FILENO);
    close(saved);
    close(pipe_fds[0]);
    close(pipe_fds[1]);
}

/* What has been written, without the head of a text line. */
static const char *line(void) {
    ssize_t n = read(pipe_fds[0], said, sizeof(said) - 1);
    ck_assert_int_gt(n, 0);
    said[n] = '\0';
    ck_assert_ptr_eq(strchr(said, '\n'), said + n - 1);
    said[n - 1] = '\0';
    return said[0] == '[' ? said + strcspn(said, "]") + 26 : said;
}

START_TEST(a_secret_is_hidden_wherever_it_stands) {
    log_hide("a", "hunter2");
    log_hide("b", "a-very-long-secret-that-is-longer-than-the-word");
    log_info("hunter2 and (hunter2hunter2)");
    ck_assert_str_eq(line(), "(hidden and ((hidden(hidden)");
    log_info("x a-very-long-secret-that-is-longer-than-the-word y");
    ck_assert_str_eq(line(), "x (hidden) y");
    log_hide("a", "another"); /* in the place of the first */
    log_info("hunter2 another");
    ck_assert_str_eq(line(), "hunter2 (hidden");
    log_hide("c", "the"); /* too short to protect anything */
    log_info("the");
    ck_assert_str_eq(line(), "the");
}
END_TEST

START_TEST(a_secret_that_the_lines_end_has_cut_is_hidden) {
    char text[4096];
    log_hide("a", "0123456789-0123456789");
    for (size_t before = 2047 - 22; before < 2047; before++) {
        memset(text, 'x', before);
        strcpy(text + before, "0123456789-0123456789 and more");
        log_info("%s", text);
        ck_assert_ptr_null(strstr(line(), "012345"));
    }
}
END_TEST

START_TEST(control_characters_make_no_line_of_their_own) {
    log_info("a\nb\x1b[2Jc\x7f");
    ck_assert_str_eq(line(), "a b [2Jc ");
}
END_TEST

START_TEST(json_is_escaped) {
    log_set_format(LOG_FORMAT_JSON);
    log_warn("a \"b\" \\ c\n\xff");
    const char *text = line();
    ck_assert_int_eq(strncmp(text, "{\"time\":\"20", 11), 0);
    ck_assert_ptr_nonnull(strstr(
        text, "\",\"level\":\"warn\",\"message\":\"a \\\"b\\\" \\\\ c ?\"}"));
    char quotes[4096];
    memset(quotes, '"', sizeof(quotes) - 1);
    quotes[sizeof(quotes) - 1] = '\0';
    log_warn("%s", quotes);
    text = line();
    ck_assert_str_eq(text + strlen(text) - 4, "\\\"\"}");
}
END_TEST

START_TEST(a_flood_is_one_line_and_its_number) {
    log_limiter l = {0};
    for (int i = 0; i < 10; i++)
        log_limited(&l, LOG_LEVEL_WARN, "flood");
    ck_assert_str_eq(line(), "flood");
    l.last_ns -= 2000000000;
    log_limited(&l, LOG_LEVEL_WARN, "flood");
    ck_assert_str_eq(line(), "flood (9 more like it)");
}
END_TEST

int main(void) {
    Suite *s = suite_create("log");
    TCase *t = tcase_create("log");
    tcase_add_checked_fixture(t, setup, teardown);
    tcase_add_test(t, a_secret_is_hidden_wherever_it_stands);
    tcase_add_test(t, a_secret_that_the_lines_end_has_cut_is_hidden);
    tcase_add_test(t, control_characters_make_no_line_of_their_own);
    tcase_add_test(t, json_is_escaped);
    tcase_add_test(t, a_flood_is_one_line_and_its_number);
    suite_add_tcase(s, t);
    SRunner *r = srunner_create(s);
    srunner_run_all(r, CK_NORMAL);
    int failed = srunner_ntests_failed(r);
    srunner_free(r);
    return failed != 0;
}
