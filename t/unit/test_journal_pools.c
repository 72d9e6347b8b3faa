/*
 * Whole pools and the journal: whose pool is taken over, refused, forgotten or
 * counted, and in what order.  Links, ledger, totals and the journal's files are
 * real, in front of a fake Kafka and by a clock that the test moves.
 */
#define _GNU_SOURCE /* memfd_create, in fake_worker.c */
#include <check.h>
#include <fcntl.h>
#include <setjmp.h>
#include <signal.h>
#include <sqlite3.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <unistd.h>

#include "sidecar/journal.h"
#include "sidecar/link.h"
#include "sidecar/step.h"
#include "t/unit/fake_kafka.c"
#include "t/unit/fake_loop.c"
#include "t/unit/fake_worker.c"

#define S 1000000000ll
#define MS 1000000ll

/* what dies leaves its memory behind */
const char *__asan_default_options(void);
const char *__asan_default_options(void) {
    return "detect_leaks=0";
}

static char dir[] = "/dev/shm/test_journal_pools.XXXXXX";
static config conf;
static loop *l;
static ledger *lg;
static spool *sp;
static totals *t;
static links *ls;
static journal *jr;
static fake_worker *w;

/* ---- a life ---- */

#ifdef CAPTURE_KILL_POINTS
static jmp_buf grave;
static unsigned wanted = STEP_COUNT;

void step_reached(enum step s) {
    if (s == wanted) {
        wanted = STEP_COUNT;
        longjmp(grave, 1);
    }
}
#endif

static void committed(void *owner) {
    (void)owner;
    ledger_ungate(lg);
}

static int recovered(void *owner, int fd, const char **why) {
    (void)owner;
    return links_adopt_recovered(ls, fd, why);
}

/* As main.c does. */
static void start(void) {
    static const journal_events events = {committed, recovered};

    memset(metrics_cell, 0, sizeof(metrics_cell));
    l = loop_new();
    lg = ledger_new(&conf, l, &assemble_events);
    sp = spool_open(&conf);
    ck_assert_ptr_nonnull(sp);
    ls = links_open(&conf, l, lg, sp);
    ck_assert_ptr_nonnull(ls);
    ck_assert_int_eq(journal_open(&jr, &conf, l, &events, NULL), 0);
    ledger_use_journal(lg, jr);
    links_use_journal(ls, jr);
    t = totals_open(sp, NULL);
    links_use_totals(ls, t);
}

static bool acking; /* Kafka takes what it gets */

static void turn(void) {
    links_turn(ls);
    ledger_pump(lg);
    for (unsigned i = 0; acking && i < fake_kafka.n; i++) {
        if (!fake_kafka.records[i].reported) {
            fake_report(i, KAFKA_ACKED);
        }
    }
    links_retire(ls);
    journal_turn(jr);
}

static void turns(unsigned n) {
    while (n-- > 0) {
        turn();
        journal_wait(jr);
        fake_loop_advance(l, 10 * MS);
    }
}

/* Pools in memory are not moved to the spool: it takes a second. */
static void settle(void) {
    acking = true;
    turns(60);
    ck_assert_uint_eq(metrics_cell[METRIC_POOLS_ORPHANED], 0);
}

/* What is not on the disk, or in the worker's memory, has gone. */
static void die(void) {
    journal_abort(jr);
    acking = false;
    for (unsigned i = 0; i < fake_kafka.n; i++) {
        fake_kafka.records[i].reported = true;
    }
    spool_close(sp);
    totals_close(t);
    unlink(conf.listen);
    conf.listen[strlen(conf.listen) - 1]++; /* its lock stays with it */
}

static void open_all(void) {
    static config_property servers = {.name = "bootstrap.servers",
                                      .value = "fake:1"};
    static char path[80];

    ck_assert_ptr_nonnull(mkdtemp(dir));
    snprintf(path, sizeof(path), "%s/s0", dir);
    conf = (config){.listen = path,
                    .listen_mode = 0620,
                    .listen_owner = (uid_t)-1,
                    .listen_group = (gid_t)-1,
                    .record_size = 1048076,
                    .inflight_size = 64 << 20,
                    .pools_size = 1 << 30,
                    .flush_time = S,
                    .settle_time = S,
                    .spool_path = dir,
                    .spool_size = 64 << 20,
                    .durability_disk = true,
                    .journal_size = 64 << 20,
                    .drain_time = S};
    conf.kafka[conf.nkafka++] = servers;
    w = fake_worker_new(32, 8);
    start();
}

static void close_all(void) {
    char command[80];

    snprintf(command, sizeof(command), "rm -r %s", dir);
    ck_assert_int_eq(system(command), 0);
    fake_worker_free(w);
}

/* ---- what there is ---- */

static sqlite3 *open_file(void) {
    char path[80];
    sqlite3 *db;

    snprintf(path, sizeof(path), "%s/journal/journal.db", dir);
    ck_assert_int_eq(sqlite3_open(path, &db), SQLITE_OK);
    return db;
}

static unsigned ask(const char *question) {
    sqlite3 *db = open_file();
    sqlite3_stmt *s;
    unsigned n = 0;

    ck_assert_int_eq(sqlite3_prepare_v2(db, question, -1, &s, NULL), SQLITE_OK);
    if (sqlite3_step(s) == SQLITE_ROW) {
        n = (unsigned)sqlite3_column_int64(s, 0);
    }
    sqlite3_finalize(s);
    sqlite3_close(db);
    return n;
}

static unsigned rows(void) {
    return ask("SELECT (SELECT count(*) FROM conns) + "
               "(SELECT count(*) FROM frames)");
}

static void another_boot(void) {
    (void)ask("UPDATE meta SET value = 'another' WHERE name = 'boot'");
}

static void waiting_exchange(uint32_t slot, const char *id) {
    fake_take_slot(w, slot, id);
    fake_read(w, slot, CAP_FRAME_BEGIN, "POST");
    fake_eom(w, slot, CAP_FRAME_WAIT);
    fake_write(w, slot, "200");
    fake_end(w, slot, CAP_END_COMPLETE);
}

static const char *adopt_memory(int fd) {
    const char *why = NULL;

    return links_adopt_orphan(ls, fd, &why) == 0 ? NULL : why;
}

/* Two exchanges are on the disk, and Kafka has answered for none. */
static void two_on_the_disk(void) {
    waiting_exchange(0, "a");
    waiting_exchange(1, "b");
    ck_assert_ptr_null(adopt_memory(w->fd));
    turns(3);
    ck_assert_uint_eq(metrics_cell[METRIC_JOURNAL_PUTS], 2);
    ck_assert_uint_gt(metrics_cell[METRIC_JOURNAL_COMMITS], 0);
}

static uint64_t seen(void) {
    metrics_exchanges e;

    links_sum(ls, &e);
    return e.seen;
}

static void be_patient(void) {
    fake_loop_advance(l, JOURNAL_PATIENCE_NS);
    turns(3);
}

/* ---- tests ---- */

/* It is in use when this one starts; when it can be opened, its pool has gone its
   way, or is on it. */
START_TEST(a_journal_that_is_opened_late_does_not_recover_what_is_here) {
    sqlite3 *other;

    two_on_the_disk();
    die();
    other = open_file();
    ck_assert_int_eq(sqlite3_exec(other, "BEGIN IMMEDIATE", NULL, NULL, NULL),
                     SQLITE_OK);
    start();
    ck_assert_uint_eq(metrics_cell[METRIC_JOURNAL_FAILED], 1);
    ck_assert_ptr_null(adopt_memory(w->fd));
    turns(3);
    if (_i == 0) {
        fake_kafka.blind = true;
        fake_loop_advance(l, S);
        settle();
    }
    ck_assert_int_eq(sqlite3_exec(other, "ROLLBACK", NULL, NULL, NULL),
                     SQLITE_OK);
    sqlite3_close(other);
    fake_loop_advance(l, 6 * S);
    turns(3);
    be_patient();
    ck_assert_uint_eq(metrics_cell[METRIC_RECOVERED], 0);
    ck_assert_uint_eq(metrics_cell[METRIC_JOURNAL_FAILED], 1);
    ck_assert_uint_eq(seen(), 2);
    die();
    ck_assert_uint_eq(rows(), 0);
}
END_TEST

/* Nor does one that could not be written, nor removed, for a while. */
START_TEST(a_journal_that_could_not_be_removed_is_not_believed) {
    struct rlimit none = {1, RLIM_INFINITY},
                  any = {RLIM_INFINITY, RLIM_INFINITY};
    char command[120];

    snprintf(command, sizeof(command), "cp -r %s/journal %s/there", dir, dir);
    two_on_the_disk();
    ck_assert_int_eq(system(command), 0);
    signal(SIGXFSZ, SIG_IGN);
    ck_assert_int_eq(setrlimit(RLIMIT_FSIZE, &none), 0);
    fake_report(0, KAFKA_ACKED);
    turns(30);
    ck_assert_uint_eq(metrics_cell[METRIC_JOURNAL_FAILED], 1);
    ck_assert_int_eq(setrlimit(RLIMIT_FSIZE, &any), 0);
    if (_i == 0) {
        settle();
    }
    snprintf(command, sizeof(command), "mv %s/there/* %s/journal/", dir, dir);
    ck_assert_int_eq(system(command), 0);
    fake_loop_advance(l, 6 * S);
    turns(3);
    be_patient();
    ck_assert_uint_eq(metrics_cell[METRIC_RECOVERED], 0);
    ck_assert_uint_eq(seen(), 2);
    die();
    ck_assert_uint_eq(rows(), 0);
}
END_TEST

/* Its memory is damaged; what was synced of it is not. */
START_TEST(a_pool_that_cannot_be_taken_over_is_recovered) {
    cap_slot *s = cap_slot_at(w->header, &w->g, 1);

    two_on_the_disk();
    die();
    start();
    if (_i == 0) {
        s->renames = UINT32_MAX;
    } else {
        w->header->spooled = 1; /* and it is not there */
    }
    ck_assert_ptr_nonnull(adopt_memory(w->fd));
    turns(30);
    be_patient();
    ck_assert_uint_eq(metrics_cell[METRIC_RECOVERED], 2);
    s->renames = 0;
    w->header->spooled = 0;
    ck_assert_ptr_nonnull(adopt_memory(w->fd));
    die();
}
END_TEST

#ifdef CAPTURE_KILL_POINTS
/* Whoever dies on the way, the pool is right, or what the journal has of it. */
START_TEST(death_while_a_pool_is_taken_over) {
    static const unsigned steps[] = {STEP_OWNED, STEP_ADOPT_BLOCKS,
                                     STEP_ADOPT_SLOT, STEP_ADOPTED,
                                     STEP_JOURNAL_ADOPTED};

    two_on_the_disk();
    die();
    start();
    if (setjmp(grave) == 0) {
        wanted = steps[_i / 2];
        (void)adopt_memory(w->fd);
        ck_abort_msg("it lives");
    }
    die();
    ck_assert_uint_gt(rows(), 0);
    start();
    if (_i % 2 == 0) {
        ck_assert_ptr_null(adopt_memory(w->fd));
    }
    turns(30);
    be_patient();
    ck_assert_uint_eq(metrics_cell[METRIC_RECOVERED], _i % 2 ? 2 : 0);
    ck_assert_uint_eq(seen(), 2);
    fake_kafka.blind = true;
    fake_loop_advance(l, 2 * S);
    settle();
    ck_assert_uint_eq(seen(), 2);
    die();
    ck_assert_uint_eq(rows(), 0);
}
END_TEST
#endif

/* It is counted when the journal has nothing of it any more. */
START_TEST(what_was_counted_is_not_recovered) {
    two_on_the_disk();
    acking = true;
    for (int i = 0; i < 100 && totals_sum(t)->seen == 0; i++) {
        turn();
        journal_wait(jr);
        if (totals_sum(t)->seen == 0) {
            fake_loop_advance(l, MS);
        }
    }
    ck_assert_uint_eq(totals_sum(t)->captured, 2);
    die();
    another_boot();
    start();
    turns(3);
    ck_assert_uint_eq(metrics_cell[METRIC_RECOVERED], 0);
    ck_assert_uint_eq(seen(), 2);
    die();
}
END_TEST

#ifdef CAPTURE_KILL_POINTS
/* And not lost: its memory is there until then. */
START_TEST(death_between_forgetting_and_counting) {
    static const unsigned steps[] = {STEP_JOURNAL_FORGOTTEN, STEP_TOTALS,
                                     STEP_FOLDED, STEP_RETIRED};

    two_on_the_disk();
    acking = true;
    if (setjmp(grave) == 0) {
        wanted = steps[_i];
        turns(60);
        ck_abort_msg("it lives");
    }
    die();
    ck_assert_uint_eq(rows(), 0);
    start();
    /* as orphan.c asks */
    if (!totals_has_last(t, w->header->node_id)) {
        ck_assert_ptr_null(adopt_memory(w->fd));
    }
    settle();
    be_patient();
    ck_assert_uint_eq(totals_sum(t)->captured, 2);
    ck_assert_uint_eq(totals_sum(t)->seen, 2);
    ck_assert_uint_eq(metrics_cell[METRIC_RECOVERED], 0);
    die();
}
END_TEST
#endif

/* It died when it had counted it, and could not say so any more. */
START_TEST(what_was_counted_last_is_not_taken_over) {
    two_on_the_disk();
    settle();
    ck_assert_uint_eq(totals_sum(t)->seen, 2);
    w->header->retired = 0;
    die();
    start();
    ck_assert_ptr_nonnull(adopt_memory(w->fd));
    settle();
    ck_assert_uint_eq(seen(), 2);
    die();
}
END_TEST

/* Two owners of the same connections would send them twice. */
START_TEST(a_second_pool_of_a_node_is_refused) {
    fake_worker *twin = fake_worker_new(32, 8);

    memcpy(twin->header->node_id, w->header->node_id, CAP_NODE_ID_SIZE);
    ck_assert_ptr_null(adopt_memory(w->fd));
    ck_assert_ptr_nonnull(adopt_memory(twin->fd));
    settle();
    ck_assert_ptr_null(adopt_memory(twin->fd));
    fake_worker_free(twin);
    die();
}
END_TEST

/* What was promised to clients is not given up for want of a descriptor. */
START_TEST(what_finds_no_descriptor_is_recovered_later) {
    struct rlimit before, none;

    two_on_the_disk();
    die();
    another_boot();
    start();
    ck_assert_int_eq(getrlimit(RLIMIT_NOFILE, &before), 0);
    none = before;
    none.rlim_cur = 3;
    ck_assert_int_eq(setrlimit(RLIMIT_NOFILE, &none), 0);
    turns(3);
    ck_assert_int_eq(setrlimit(RLIMIT_NOFILE, &before), 0);
    ck_assert_uint_eq(metrics_cell[METRIC_RECOVERED], 0);
    ck_assert_uint_eq(metrics_cell[METRIC_JOURNAL_FAILED], 0);
    be_patient();
    ck_assert_uint_eq(metrics_cell[METRIC_RECOVERED], 2);
    ck_assert_uint_eq(seen(), 2);
    die();
}
END_TEST

/* Its worker was stopped for so long that the journal made it anew; all of that is
   sent when it comes to a later capture-sidecar. */
START_TEST(a_pool_that_was_made_anew_is_not_taken_over_by_who_comes_later) {
    static const metrics_exchanges none;

    w->header->pid = 1;
    fake_kafka.ready = false;
    two_on_the_disk();
    die();
    start();
    be_patient();
    ck_assert_uint_eq(metrics_cell[METRIC_RECOVERED], 2);
    ck_assert_uint_eq(fake_kafka.n, 0);
    fake_kafka.ready = true;
    if (_i == 1) {
        settle();
        ck_assert_uint_eq(totals_sum(t)->reason[CAP_RESPONSE], 2);
        totals_fold(t, &none, "00000000-0000-0000-0000-000000000000");
    }
    die();
    start();
    ck_assert_ptr_nonnull(adopt_memory(w->fd));
    turns(3);
    be_patient();
    settle();
    ck_assert_uint_eq(fake_kafka.n, 2);
    ck_assert_uint_eq(seen(), 2);
    die();
}
END_TEST

/* There was no memory for it as long as the journal waited. */
START_TEST(a_file_whose_pool_was_recovered_is_not_taken_over) {
    char path[120], command[200];

    two_on_the_disk();
    die();
    start();
    snprintf(path, sizeof(path), "%s/pools/%.36s", dir, w->header->node_id);
    snprintf(command, sizeof(command), "cp /proc/%d/fd/%d %s", (int)getpid(),
             w->fd, path);
    ck_assert_int_eq(system(command), 0);
    be_patient();
    ck_assert_uint_eq(metrics_cell[METRIC_RECOVERED], 2);
    ck_assert_int_ne(access(path, F_OK), 0);
    ck_assert_uint_eq(metrics_cell[METRIC_POOLS_LOST], 1);
    die();
}
END_TEST

/* What the spool has of the one before has other numbers. */
START_TEST(a_recovered_pool_has_none_of_the_spools_blocks) {
    cap_block *b = calloc(1, CAP_BLOCK_SIZE);
    cap_frame f = {.size = 3,
                   .type = CAP_FRAME_WRITE,
                   .slot = 0,
                   .slot_generation = 1,
                   .seq = 20,
                   .ts_ns = 1};

    two_on_the_disk();
    b->first_seq = 20;
    b->generation = 1;
    memcpy((char *)b + CAP_BLOCK_HEADER, &f, sizeof(f));
    b->published =
        (CAP_BLOCK_HEADER + (uint32_t)CAP_FRAME_SPACE(3)) | CAP_BLOCK_SEALED;
    ck_assert_uint_ne(spool_put(sp, w->header->node_id, b), SPOOL_NO_SLOT);
    free(b);
    die();
    another_boot();
    start();
    turns(3);
    ck_assert_uint_eq(metrics_cell[METRIC_RECOVERED], 2);
    ck_assert_uint_eq(metrics_cell[METRIC_LINKS_BAD], 0);
    ck_assert_uint_eq(metrics_cell[METRIC_SPOOL_BYTES], 0);
    fake_kafka.blind = true;
    fake_loop_advance(l, S);
    settle();
    ck_assert_uint_eq(metrics_cell[METRIC_LINKS_BAD], 0);
    die();
}
END_TEST

int main(void) {
    Suite *s = suite_create("journal_pools");
    TCase *c = tcase_create("journal_pools");
    SRunner *r = srunner_create(s);
    int failed;

    tcase_add_checked_fixture(c, open_all, close_all);
    tcase_set_timeout(c, 30);
    tcase_add_loop_test(
        c, a_journal_that_is_opened_late_does_not_recover_what_is_here, 0, 2);
    tcase_add_loop_test(c, a_journal_that_could_not_be_removed_is_not_believed,
                        0, 2);
    tcase_add_loop_test(c, a_pool_that_cannot_be_taken_over_is_recovered, 0, 2);
    tcase_add_test(c, what_was_counted_is_not_recovered);
#ifdef CAPTURE_KILL_POINTS
    tcase_add_loop_test(c, death_while_a_pool_is_taken_over, 0, 10);
    tcase_add_loop_test(c, death_between_forgetting_and_counting, 0, 4);
#endif
    tcase_add_test(c, a_second_pool_of_a_node_is_refused);
    tcase_add_test(c, a_recovered_pool_has_none_of_the_spools_blocks);
    tcase_add_test(c, what_was_counted_last_is_not_taken_over);
    tcase_add_test(c, what_finds_no_descriptor_is_recovered_later);
    tcase_add_loop_test(
        c, a_pool_that_was_made_anew_is_not_taken_over_by_who_comes_later, 0,
        2);
    tcase_add_test(c, a_file_whose_pool_was_recovered_is_not_taken_over);
    suite_add_tcase(s, c);
    srunner_run_all(r, CK_NORMAL);
    failed = srunner_ntests_failed(r);
    srunner_free(r);
    return failed == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
