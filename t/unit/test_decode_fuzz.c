/*
 * Broken records come from disks, networks and other programs. The decoder
 * reads them in a sidecar that must not die, so: many small mutations of good
 * records, the same ones every time, each with its end against a page without
 * rights. Run with ASan and UBSan as well. What is accepted must be consistent
 * with itself.
 */

#include "proto/decode.h"
#include "proto/record.h"
#include "t/unit/guarded.h"

#include <check.h>
#include <stdlib.h>
#include <string.h>

#define SIZE_MAX_CASE 2048
#define ROUNDS 20000

static uint64_t state;

/* xorshift64*, so that a failure comes again */
static uint32_t rnd(uint32_t below) {
    state ^= state >> 12;
    state ^= state << 25;
    state ^= state >> 27;

    return (uint32_t)((state * 2685821657736338717ull) >> 33) % below;
}

static size_t encoded_seed(uint8_t *buf) {
    char data[300];
    record_writer w;
    record_head head = {
        "0242acfffe110002-00000001-00000002-0123456789abcdef-01234567",
        60,
        "6f1e9a52-0c3b-4f0e-9d55-8a8a2f6f9c11",
        36,
        300,
        true};

    memset(data, 'x', sizeof(data));
    ck_assert_int_eq(record_begin(&w, buf, SIZE_MAX_CASE, &head), 0);
    ck_assert_int_eq(record_read(&w, 1795341044980599916, data, sizeof(data)),
                     0);
    ck_assert_int_eq(record_end_of_message(&w, 1795341044980599916, -1, 44), 0);
    ck_assert_int_eq(record_write(&w, 1795341044980599917, data, 20), 0);
    ck_assert_int_eq(record_request_dropped(&w, 0), 0);
    ck_assert_int_eq(record_exception(&w, -1, "reset \xc3\xa9", 8), 0);
    ck_assert_int_eq(record_close(&w, 1795341045000000000), 0);

    return record_finish(&w, 1000, true);
}

/*
 * What the encoder does not write: segments, groups, unknown fields, other
 * orders.
 */
static size_t handmade_seed(uint8_t *buf) {
    static const char bytes[] =
        "\x18\x01"
        "\x12\x0b\x0a\x02\x08\x01\x2a\x05\x12\x03"
        "abc"
        "\x12\x02\x72\x00"
        "\x12\x05\x4a\x03\x12\x01"
        "t"
        "\x12\x04\x32\x02\x08\x01"
        "\x7b\x08\x01\x83\x01\x84\x01\x7c"
        "\x79"
        "12345678"
        "\x7d"
        "1234"
        "\x9a\x06\x03"
        "abc"
        "\x0a\x01"
        "c"
        "\x2a\x02\xc3\xa9"
        "\x12\x0a\x7a\x08\x08\xff\xff\xff\xff\x0f\x10\x01"
        "\x38\x00\x30\x05";

    memcpy(buf, bytes, sizeof(bytes) - 1);

    return sizeof(bytes) - 1;
}

static size_t mutate(uint8_t *p, size_t len) {
    static const uint8_t edges[] = {0, 1, 0x0a, 0x12, 0x7f, 0x80, 0xff};
    size_t at = len ? rnd((uint32_t)len) : 0, n;

    switch (rnd(6)) {
    case 0: /* one bit */
        p[at] ^= (uint8_t)(1u << rnd(8));
        return len;

    case 1: /* one byte */
        p[at] = edges[rnd(sizeof(edges))];
        return len;

    case 2: /* the end goes */
        return at;

    case 3: /* a piece goes */
        n = rnd((uint32_t)(len - at)) + 1;
        memmove(p + at, p + at + n, len - at - n);
        return len - n;

    case 4: /* a piece comes twice */
        n = rnd((uint32_t)(len - at)) + 1;
        n = len + n > SIZE_MAX_CASE ? SIZE_MAX_CASE - len : n;
        memmove(p + at + n, p + at, len - at);
        return len + n;

    default: /* numbers grow */
        n = rnd((uint32_t)(len - at)) % 12 + 1;
        memset(p + at, 0xff, n < len - at ? n : len - at);
        return len;
    }
}

static void assert_inside(record_slice s, const uint8_t *p, size_t len) {
    ck_assert(s.len == 0 || (s.data >= p && s.data + s.len <= p + len));
}

/* Returns whether it was accepted. */
static int decode(const uint8_t *p, size_t len) {
    size_t seen = 0;
    record_info info;
    record_reader r;
    record_observation o = {0};

    if (record_open(&r, p, len, &info) != 0) {
        ck_assert_ptr_nonnull(r.error);
        ck_assert_uint_le(r.at, len);
        ck_assert(!record_next(&r, &o));
        return 0;
    }

    assert_inside(info.connection_id, p, len);
    assert_inside(info.node_id, p, len);

    while (record_next(&r, &o)) {
        assert_inside(o.data, p, len);
        ck_assert_uint_le(o.at, len);
        ck_assert_ptr_nonnull(record_kind_name(o.kind));
        (void)record_ts_ns(&o);
        seen++;
    }

    ck_assert_uint_eq(seen, info.observations);
    ck_assert_int_eq(info.ends_with_close, o.kind == RECORD_CLOSE);
    ck_assert_int_eq(record_fault(&info) == NULL,
                     seen > 0 && info.connection_id.len > 0 && info.has_index);

    return 1;
}

START_TEST(mutated_records_are_refused_or_read_within_their_bounds) {
    guarded g = guarded_new(SIZE_MAX_CASE);
    uint8_t seed[SIZE_MAX_CASE], work[SIZE_MAX_CASE];
    size_t seed_len = _i % 2 ? handmade_seed(seed) : encoded_seed(seed);
    int accepted = 0;

    state = 0x9e3779b97f4a7c15ull + (uint64_t)_i;
    ck_assert_int_eq(decode(guarded_copy(&g, seed, seed_len), seed_len), 1);

    for (int round = 0; round < ROUNDS; round++) {
        size_t len = seed_len;

        memcpy(work, seed, len);

        for (uint32_t n = rnd(4) + 1; n > 0 && len > 0; n--) {
            len = mutate(work, len);
        }

        accepted += decode(guarded_copy(&g, work, len), len);
    }

    /* both sides of the decoder were there, or this tests nothing */
    ck_assert_int_gt(accepted, ROUNDS / 100);
    ck_assert_int_lt(accepted, ROUNDS - ROUNDS / 100);
    guarded_free(&g);
}
END_TEST

START_TEST(noise_is_refused_or_read_within_its_bounds) {
    guarded g = guarded_new(SIZE_MAX_CASE);
    uint8_t work[64];

    state = 1;

    for (int round = 0; round < ROUNDS; round++) {
        size_t len = rnd(sizeof(work) + 1);

        for (size_t i = 0; i < len; i++) {
            work[i] = (uint8_t)rnd(256);
        }

        decode(guarded_copy(&g, work, len), len);
    }

    guarded_free(&g);
}
END_TEST

int main(void) {
    int failed;
    Suite *s = suite_create("decode fuzz");
    TCase *t = tcase_create("mutations");
    SRunner *runner;

    tcase_set_timeout(t, 120);
    tcase_add_loop_test(
        t, mutated_records_are_refused_or_read_within_their_bounds, 0, 8);
    tcase_add_test(t, noise_is_refused_or_read_within_its_bounds);
    suite_add_tcase(s, t);

    runner = srunner_create(s);
    srunner_run_all(runner, CK_ENV);
    failed = srunner_ntests_failed(runner);
    srunner_free(runner);

    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
