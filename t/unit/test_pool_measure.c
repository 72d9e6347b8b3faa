/* What /metrics say of pools: how full, and how long they last. */
#define _GNU_SOURCE 1
#include <check.h>
#include <stdlib.h>
#include <string.h>

#include "sidecar/pool_measure.h"
#include "t/unit/fake_worker.c"

#define S 1000000000ll

static fake_worker *w;
static pool *p;
static pool_frame f;
static pool_measures m;

static void open_pool(void) {
    const char *why;

    w = fake_worker_new(8, 4);
    p = pool_open(w->fd, UINT64_MAX, &why);
    ck_assert_msg(p != NULL, "%s", why);
    ck_assert_uint_eq(pool_own(p), 1);
    fake_take_slot(w, 0, "a");
}

static void close_pool(void) {
    pool_free(p);
    fake_worker_free(w);
}

static void measure(int64_t later_ns) {
    pool_measure_begin(&m);
    m.now_ns += later_ns;
    pool_measure(p, &m);
}

static frame_ref *hold_one(void) {
    fake_read(w, 0, 0, "x");
    fake_seal(w);
    ck_assert_int_eq(pool_read(p, &f), 1);
    return pool_hold(p, &f);
}

START_TEST(an_empty_pool_is_never_full) {
    measure(0);
    ck_assert_uint_eq(m.blocks, p->geometry.nblocks);
    ck_assert_uint_eq(m.used, 0);
    ck_assert_uint_eq(m.fullest_permille, 0);
    ck_assert_uint_eq(m.full_ms, UINT64_MAX);
}
END_TEST

START_TEST(blocks_are_used_until_they_go_back) {
    frame_ref *first = hold_one(), *second = hold_one();

    measure(0);
    ck_assert_uint_eq(m.used, 2);
    ck_assert_uint_eq(m.fullest_permille, 2000 / p->geometry.nblocks);
    pool_release(p, first);
    measure(0);
    ck_assert_uint_eq(m.used, 1);
    pool_release(p, second);
}
END_TEST

START_TEST(time_to_full_is_room_by_what_comes_in) {
    frame_ref *r = hold_one();
    uint64_t room = (p->geometry.nblocks - 1) * (uint64_t)CAP_BLOCK_SIZE;

    atomic_store(&w->header->worker.bytes, 1000);
    measure(0);
    ck_assert_uint_eq(m.full_ms, UINT64_MAX); /* of one look nothing follows */
    atomic_store(&w->header->worker.bytes, 1000 + room);
    measure(10 * S); /* as much as there is room for, in 10 s */
    ck_assert(m.full_ms > 9900 && m.full_ms < 10100);
    atomic_store(&w->header->worker.bytes, 5); /* it lies */
    measure(20 * S);
    ck_assert_uint_eq(m.full_ms, UINT64_MAX);
    pool_release(p, r);
}
END_TEST

START_TEST(who_looks_again_at_once_gets_the_same) {
    uint64_t before;

    measure(0);
    atomic_store(&w->header->worker.bytes, 65536);
    measure(10 * S);
    before = m.full_ms;
    ck_assert_uint_lt(before, UINT64_MAX);
    measure(10 * S + S / 2);
    ck_assert_uint_eq(m.full_ms, before);
}
END_TEST

int main(void) {
    Suite *s = suite_create("pool_measure");
    TCase *t = tcase_create("pool_measure");
    tcase_add_checked_fixture(t, open_pool, close_pool);
    tcase_add_test(t, an_empty_pool_is_never_full);
    tcase_add_test(t, blocks_are_used_until_they_go_back);
    tcase_add_test(t, time_to_full_is_room_by_what_comes_in);
    tcase_add_test(t, who_looks_again_at_once_gets_the_same);
    suite_add_tcase(s, t);
    SRunner *r = srunner_create(s);
    srunner_run_all(r, CK_NORMAL);
    int failed = srunner_ntests_failed(r);
    srunner_free(r);
    return failed == 0 ? 0 : 1;
}
