/*
 * The launcher's pure parts: which of a name's addresses are used, and what a
 * log line becomes.
 */
#include <check.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "launcher/pump.h"
#include "launcher/resolve.h"

/* "a b" */
static addresses set(const char *text) {
    addresses a = {.n = 0};
    char copy[256], *save, *one;
    snprintf(copy, sizeof(copy), "%s", text);
    for (one = strtok_r(copy, " ", &save); one != NULL;
         one = strtok_r(NULL, " ", &save))
        snprintf(a.text[a.n++], sizeof(a.text[0]), "%s", one);
    return a;
}

static bool has(const addresses *a, const char *text) {
    for (int i = 0; i < a->n; i++)
        if (strcmp(a->text[i], text) == 0)
            return true;
    return false;
}

static bool take(addresses *in_use, const char *answer) {
    addresses a = set(answer);
    return addresses_take(in_use, &a, 2);
}

START_TEST(a_move_is_followed_at_once) {
    addresses in_use = set("1 2");
    ck_assert(take(&in_use, "3"));
    ck_assert(in_use.n == 1 && has(&in_use, "3"));
}
END_TEST

START_TEST(the_same_answer_in_another_order_changes_nothing) {
    addresses in_use = set("1 2");
    ck_assert(!take(&in_use, "2 1"));
    ck_assert(!take(&in_use, ""));
    ck_assert_int_eq(in_use.n, 2);
}
END_TEST

/* A balancer says some of its addresses at a time: no reload for each. */
START_TEST(an_address_stays_a_while_beside_others) {
    addresses in_use = set("1 2");
    ck_assert(take(&in_use, "2 3")); /* 3 is new; 1 unseen once */
    ck_assert_int_eq(in_use.n, 3);
    ck_assert(!take(&in_use, "1 2")); /* 1 is seen again */
    ck_assert(!take(&in_use, "1 2"));
    ck_assert(has(&in_use, "3"));
    ck_assert(take(&in_use, "1 2")); /* the third look without 3 */
    ck_assert(in_use.n == 2 && !has(&in_use, "3"));
}
END_TEST

START_TEST(more_addresses_than_are_used_do_not_overflow) {
    addresses in_use = {.n = 0}, answer = {.n = 0};
    for (int i = 0; i < RESOLVE_MAX; i++)
        snprintf(answer.text[answer.n++], sizeof(answer.text[0]), "a%d", i);
    ck_assert(addresses_take(&in_use, &answer, 2));
    for (int i = 1; i < RESOLVE_MAX; i++)
        snprintf(answer.text[i], sizeof(answer.text[0]), "b%d", i);
    addresses_take(&in_use, &answer, 2);
    ck_assert_int_eq(in_use.n, RESOLVE_MAX);
}
END_TEST

static const struct {
    const char *in, *out;
} lines[] = {
    {"2025/01/31 23:59:59 [error] 12#12: *3 text",
     "[ERROR] 2025-01-31 23:59:59 nginx: 12#12: *3 text"},
    {"[warn] 2025-01-31 23:59:59.123 text",
     "[WARN] 2025-01-31 23:59:59.123 text"},
    {"nginx: [emerg] text", "[ERROR] NOW nginx: [emerg] text"},
    {"nginx: [warn] text", "[WARN] NOW nginx: [warn] text"},
    {"anything [at] all", "[INFO] NOW anything [at] all"},
    {"", "[INFO] NOW "},
    {"[", "[INFO] NOW ["},
    {"2025/01/31 23:59:59 [", "[INFO] NOW 2025/01/31 23:59:59 ["},
};

START_TEST(a_line_begins_with_its_level_and_date) {
    char text[128];
    size_t n = pump_line(lines[_i].in, "NOW", text, sizeof(text));
    ck_assert_str_eq(text, lines[_i].out);
    ck_assert_uint_eq(n, strlen(text));
}
END_TEST

START_TEST(a_line_is_cut_where_there_is_no_room) {
    char text[16];
    for (size_t i = 0; i < sizeof(lines) / sizeof(*lines); i++) {
        size_t n = pump_line(lines[i].in, "NOW", text, sizeof(text));
        ck_assert_uint_eq(n, strlen(text));
        ck_assert_uint_lt(n, sizeof(text));
    }
}
END_TEST

int main(void) {
    Suite *suite = suite_create("launcher");
    TCase *tc = tcase_create("launcher");
    tcase_add_test(tc, a_move_is_followed_at_once);
    tcase_add_test(tc, the_same_answer_in_another_order_changes_nothing);
    tcase_add_test(tc, an_address_stays_a_while_beside_others);
    tcase_add_test(tc, more_addresses_than_are_used_do_not_overflow);
    tcase_add_loop_test(tc, a_line_begins_with_its_level_and_date, 0,
                        sizeof(lines) / sizeof(*lines));
    tcase_add_test(tc, a_line_is_cut_where_there_is_no_room);
    suite_add_tcase(suite, tc);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_NORMAL);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
