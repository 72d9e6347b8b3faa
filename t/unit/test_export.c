/* The export holds exactly the records that it said it took. */
#define _GNU_SOURCE 1
#include <check.h>
#include <dirent.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "sidecar/export.h"
#include "sidecar/log.h"

static char dir[] = "/tmp/test_export.XXXXXX";
static config c;

static void setup(void) {
    strcpy(strchr(dir, '.'), ".XXXXXX");
    ck_assert_ptr_nonnull(mkdtemp(dir));
    memset(&c, 0, sizeof(c));
    c.export_path = dir;
    c.export_size = 1 << 20;
    close(STDERR_FILENO);
    open("/dev/null", O_WRONLY);
}

/* Calls `with` for each file; the tests know what to expect. */
static int each_file(char *name, char *content, size_t size, mode_t *mode) {
    DIR *d = opendir(dir);
    struct dirent *e;
    int n = 0;
    while ((e = readdir(d)) != NULL) {
        char path[512];
        struct stat st;
        if (e->d_name[0] == '.')
            continue;
        n++;
        snprintf(path, sizeof(path), "%s/%s", dir, e->d_name);
        strcpy(name, e->d_name);
        FILE *f = fopen(path, "r");
        content[fread(content, 1, size - 1, f)] = '\0';
        fstat(fileno(f), &st);
        *mode = st.st_mode & 07777;
        fclose(f);
    }
    closedir(d);
    return n;
}

static void teardown(void) {
    char command[64];
    snprintf(command, sizeof(command), "rm -rf %s", dir);
    ck_assert_int_eq(system(command), 0);
}

START_TEST(lines_are_id_bar_base64) {
    char name[256], text[4096];
    mode_t mode;
    export_file *e = export_open(&c);
    ck_assert_ptr_nonnull(e);
    ck_assert_int_eq(export_record(e, "conn-1", 6, 1, "\x00\xff", 2), 0);
    ck_assert_int_eq(export_record(e, "conn-2", 6, 1, "abcdef", 6), 0);
    ck_assert_int_eq(each_file(name, text, sizeof(text), &mode), 1);
    ck_assert_str_eq(text, "conn-1|AP8=\nconn-2|YWJjZGVm\n");
    ck_assert_uint_eq(mode, 0600);
    ck_assert_uint_eq(export_records(e), 2);
    export_close(e);
}
END_TEST

START_TEST(protocap_is_a_file_a_record) {
    char name[256], text[4096];
    mode_t mode;
    c.export_protocap = true;
    export_file *e = export_open(&c);
    ck_assert_int_eq(export_record(e, "conn-1", 6, 7, "bytes", 5), 0);
    ck_assert_int_eq(export_record(e, "conn-1", 6, 7, "other", 5), -1);
    ck_assert_int_eq(each_file(name, text, sizeof(text), &mode), 1);
    ck_assert_str_eq(name, "conn-1_7.protocap");
    ck_assert_str_eq(text, "bytes");
    ck_assert_uint_eq(mode, 0600);
    ck_assert_uint_eq(export_failed(e), 1);
    export_close(e);
}
END_TEST

START_TEST(at_its_bound_it_stops_and_counts) {
    char name[256], text[4096];
    mode_t mode;
    c.export_size = 30;
    export_file *e = export_open(&c);
    ck_assert_int_eq(export_record(e, "conn-1", 6, 1, "abcdef", 6),
                     0); /* 16 bytes */
    ck_assert_int_eq(export_record(e, "conn-1", 6, 2, "abcdef", 6), -1);
    ck_assert_int_eq(export_record(e, "c", 1, 2, "a", 1),
                     -1); /* stopped for good */
    ck_assert_int_eq(each_file(name, text, sizeof(text), &mode), 1);
    ck_assert_str_eq(text, "conn-1|YWJjZGVm\n");
    ck_assert_uint_eq(export_records(e), 1);
    ck_assert_uint_eq(export_failed(e), 2);
    export_close(e);
}
END_TEST

START_TEST(an_id_cannot_leave_the_directory) {
    static const char *const ids[] = {"",    ".",   "..",   "../x",
                                      "a/b", "a|b", "a\nb", "a\0b"};
    c.export_protocap = true;
    export_file *e = export_open(&c);
    for (size_t i = 0; i < sizeof(ids) / sizeof(*ids); i++)
        ck_assert_int_eq(
            export_record(e, ids[i], i == 7 ? 3 : strlen(ids[i]), 1, "x", 1),
            -1);
    ck_assert_uint_eq(export_failed(e), 8);
    export_close(e);
}
END_TEST

START_TEST(a_directory_that_others_can_write_to_is_refused) {
    chmod(dir, 0770);
    ck_assert_ptr_null(export_open(&c));
    chmod(dir, 0700);
}
END_TEST

START_TEST(a_missing_directory_is_made_private) {
    char path[64];
    struct stat st;
    snprintf(path, sizeof(path), "%s/sub", dir);
    c.export_path = path;
    export_file *e = export_open(&c);
    ck_assert_ptr_nonnull(e);
    ck_assert_int_eq(stat(path, &st), 0);
    ck_assert_uint_eq(st.st_mode & 077, 0);
    export_close(e);
    snprintf(path, sizeof(path), "%s/no/sub", dir);
    ck_assert_ptr_null(export_open(&c));
}
END_TEST

int main(void) {
    Suite *s = suite_create("export");
    TCase *t = tcase_create("export");
    tcase_add_checked_fixture(t, setup, teardown);
    tcase_add_test(t, lines_are_id_bar_base64);
    tcase_add_test(t, protocap_is_a_file_a_record);
    tcase_add_test(t, at_its_bound_it_stops_and_counts);
    tcase_add_test(t, an_id_cannot_leave_the_directory);
    tcase_add_test(t, a_directory_that_others_can_write_to_is_refused);
    tcase_add_test(t, a_missing_directory_is_made_private);
    suite_add_tcase(s, t);
    SRunner *r = srunner_create(s);
    srunner_run_all(r, CK_NORMAL);
    int failed = srunner_ntests_failed(r);
    srunner_free(r);
    return failed != 0;
}
