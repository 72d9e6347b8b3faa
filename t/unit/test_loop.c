/* The loop: everything else rests on its order and on safe removal. */
#include <check.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "sidecar/loop.h"

#define MS 1000000ll

static loop *l;
static int fired[64], nfired;

typedef struct {
    loop_timer timer; /* first: the callback's argument is it */
    int number;
} numbered;

static void note(loop_timer *t) {
    fired[nfired++] = ((numbered *)t)->number;
}

static void stop(loop_timer *t) {
    (void)t;
    loop_stop(l);
}

static void run_for(int64_t ns) {
    loop_timer end = {.due = stop};
    loop_timer_set(l, &end, ns);
    loop_run(l, NULL, NULL);
}

static void setup(void) {
    l = loop_new();
    ck_assert_ptr_nonnull(l);
    nfired = 0;
}

static void teardown(void) {
    loop_free(l);
}

START_TEST(timers_fire_in_order_of_time_and_never_early) {
    static const int after_ms[] = {9, 2, 7, 1, 8, 3, 6, 4, 5};
    numbered t[9] = {0};
    for (int i = 0; i < 9; i++) {
        t[i].timer.due = note;
        t[i].number = after_ms[i];
        loop_timer_set(l, &t[i].timer, after_ms[i] * MS);
    }
    int64_t begun = loop_now_ns(l);
    run_for(12 * MS);
    ck_assert_int_ge(loop_now_ns(l) - begun, 12 * MS);
    ck_assert_int_eq(nfired, 9);
    for (int i = 0; i < 9; i++)
        ck_assert_int_eq(fired[i], i + 1);
}
END_TEST

START_TEST(cancelled_and_moved_timers_do_as_they_are_told) {
    numbered t[50] = {0};
    for (int i = 0; i < 50; i++) {
        t[i].timer.due = note;
        t[i].number = i;
        loop_timer_set(l, &t[i].timer, (i * 7 % 50 + 1) * MS / 10);
    }
    for (int i = 0; i < 50; i++)
        if (i != 20 && i != 30)
            loop_timer_cancel(l, &t[i].timer);
    loop_timer_cancel(l, &t[0].timer); /* twice does no harm */
    loop_timer_set(l, &t[20].timer, 7 * MS);
    loop_timer_set(l, &t[30].timer, 6 * MS);
    run_for(9 * MS);
    ck_assert_int_eq(nfired, 2);
    ck_assert_int_eq(fired[0], 30);
    ck_assert_int_eq(fired[1], 20);
    ck_assert_uint_eq(t[20].timer.heap, 0);
}
END_TEST

static void again(loop_timer *t) {
    nfired++;
    loop_timer_set(l, t, 0);
}

START_TEST(a_timer_that_sets_itself_does_not_starve_the_loop) {
    loop_timer t = {.due = again};
    loop_timer_set(l, &t, 0);
    loop_timer end = {.due = stop};
    loop_timer_set(l, &end, 2 * MS);
    fired[0] = 0;
    loop_run(l, NULL, NULL);
    ck_assert_int_gt(nfired, 1);
    loop_timer_cancel(l, &t);
}
END_TEST

typedef struct {
    loop_io io;
    loop_io *victims;
    int n;
} killer;

static killer killers[4];
static int events_seen;

/* Whoever comes first removes and closes all of them. */
static void kill_all(loop_io *io, uint32_t events) {
    (void)io;
    (void)events;
    events_seen++;
    for (int i = 0; i < 4; i++)
        if (killers[i].io.fd != -1) {
            loop_remove(l, &killers[i].io);
            close(killers[i].io.fd);
            killers[i].io.fd = -1;
        }
}

START_TEST(an_io_removed_in_a_callback_gets_no_event_of_that_turn) {
    events_seen = 0;
    for (int i = 0; i < 4; i++) {
        killers[i].io.fd = eventfd(1, EFD_CLOEXEC);
        killers[i].io.ready = kill_all;
        ck_assert_int_eq(loop_add(l, &killers[i].io, EPOLLIN), 0);
    }
    run_for(2 * MS);
    ck_assert_int_eq(events_seen, 1);
}
END_TEST

static int hooks;

static int64_t nap(void *owner) {
    (void)owner;
    if (++hooks == 11)
        loop_stop(l);
    return MS / 5;
}

START_TEST(the_hook_says_how_long_the_loop_may_sleep) {
    hooks = 0;
    int64_t begun = loop_now_ns(l);
    loop_run(l, nap, NULL);
    int64_t took = loop_now_ns(l) - begun;
    ck_assert_int_eq(hooks, 11);
    ck_assert_int_ge(took, 10 * MS / 5);
}
END_TEST

int main(void) {
    Suite *s = suite_create("loop");
    TCase *c = tcase_create("loop");
    tcase_add_checked_fixture(c, setup, teardown);
    tcase_add_test(c, timers_fire_in_order_of_time_and_never_early);
    tcase_add_test(c, cancelled_and_moved_timers_do_as_they_are_told);
    tcase_add_test(c, a_timer_that_sets_itself_does_not_starve_the_loop);
    tcase_add_test(c, an_io_removed_in_a_callback_gets_no_event_of_that_turn);
    tcase_add_test(c, the_hook_says_how_long_the_loop_may_sleep);
    suite_add_tcase(s, c);
    SRunner *r = srunner_create(s);
    srunner_run_all(r, CK_NORMAL);
    int failed = srunner_ntests_failed(r);
    srunner_free(r);
    return failed != 0;
}
