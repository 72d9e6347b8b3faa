/* wire/: a layout that is made passes its check; anything else does not. */
#include <check.h>
#include <stdlib.h>

#include "wire/frame.h"
#include "wire/layout.h"

START_TEST(a_layout_fits_its_bytes_and_passes_its_check) {
    static const uint64_t sizes[] = {1 << 20, 3000000, 16 << 20, 64 << 20,
                                     1u << 31};
    static const uint32_t slots[] = {1, 100, 1536};
    cap_geometry g;

    for (size_t i = 0; i < sizeof(sizes) / sizeof(sizes[0]); i++) {
        for (size_t j = 0; j < sizeof(slots) / sizeof(slots[0]); j++) {
            ck_assert_int_eq(cap_layout_make(&g, sizes[i], slots[j]), 0);
            ck_assert_uint_le(g.total, sizes[i]);
            ck_assert_uint_ge(g.return_size, g.nblocks + g.nslots);
            ck_assert_ptr_null(cap_layout_check(&g, g.total));
            ck_assert_ptr_nonnull(cap_layout_check(&g, g.total - 1));
        }
    }
}
END_TEST

START_TEST(a_layout_that_is_too_small_or_too_large_is_refused) {
    cap_geometry g;

    ck_assert_int_eq(cap_layout_make(&g, 0, 1), -1);
    ck_assert_int_eq(cap_layout_make(&g, CAP_MIN_BLOCKS * CAP_BLOCK_SIZE, 1),
                     -1);
    ck_assert_int_eq(cap_layout_make(&g, 1 << 20, 0), -1);
    ck_assert_int_eq(cap_layout_make(&g, 1 << 20, CAP_MAX_SLOTS + 1), -1);
    ck_assert_int_eq(cap_layout_make(&g, 1 << 20, 100000), -1);
}
END_TEST

/* Each word of a geometry that comes from the other side is looked at. */
START_TEST(a_changed_geometry_does_not_pass) {
    cap_geometry good, bad;

    ck_assert_int_eq(cap_layout_make(&good, 1 << 20, 64), 0);
    for (size_t at = 0; at < sizeof(good); at++) {
        bad = good;
        ((unsigned char *)&bad)[at] ^= 0x41;
        ck_assert_ptr_nonnull(cap_layout_check(&bad, UINT64_MAX));
    }
}
END_TEST

START_TEST(a_frame_is_checked_against_what_is_published) {
    cap_frame f = {.size = 100, .type = CAP_FRAME_READ, .slot = 3, .seq = 7};
    size_t space = CAP_FRAME_SPACE(100);

    ck_assert_ptr_null(cap_frame_check(&f, space, 7, 4));
    ck_assert_ptr_nonnull(cap_frame_check(&f, space - 1, 7, 4));
    ck_assert_ptr_nonnull(cap_frame_check(&f, space, 8, 4));
    ck_assert_ptr_nonnull(cap_frame_check(&f, space, 7, 3));
    f.size = UINT32_MAX;
    ck_assert_ptr_nonnull(cap_frame_check(&f, CAP_BLOCK_SIZE, 7, 4));
    f.size = 0;
    ck_assert_ptr_nonnull(cap_frame_check(&f, space, 7, 4));
    f.type = 0;
    ck_assert_ptr_nonnull(cap_frame_check(&f, space, 7, 4));
    f.type = CAP_FRAME_HOLD + 1;
    ck_assert_ptr_nonnull(cap_frame_check(&f, space, 7, 4));
    f.type = CAP_FRAME_EOM;
    ck_assert_ptr_nonnull(cap_frame_check(&f, space, 7, 4));
    f.size = sizeof(cap_eom);
    ck_assert_ptr_null(cap_frame_check(&f, space, 7, 4));
}
END_TEST

START_TEST(every_reason_has_a_name_and_a_class) {
    unsigned filtered = 0, lost = 0;

    for (unsigned r = 1; r < CAP_REASON_CELLS; r++) {
        enum cap_class c = cap_reason_class(r);
        ck_assert_int_eq(c == CAP_CLASS_NONE, cap_reason_name(r) == NULL);
        filtered += c == CAP_CLASS_FILTERED;
        lost += c == CAP_CLASS_LOST;
    }
    ck_assert_uint_gt(filtered, 5);
    ck_assert_uint_gt(lost, 5);
}
END_TEST

int main(void) {
    Suite *s = suite_create("wire");
    TCase *t = tcase_create("layout");

    tcase_add_test(t, a_layout_fits_its_bytes_and_passes_its_check);
    tcase_add_test(t, a_layout_that_is_too_small_or_too_large_is_refused);
    tcase_add_test(t, a_changed_geometry_does_not_pass);
    tcase_add_test(t, a_frame_is_checked_against_what_is_published);
    tcase_add_test(t, every_reason_has_a_name_and_a_class);
    suite_add_tcase(s, t);

    SRunner *runner = srunner_create(s);
    srunner_run_all(runner, CK_NORMAL);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
