/*
 * The host dies, at any store, with workers' memory and the sidecar: what the
 * journal has on the disk is made a pool again, and goes the way of one whose
 * worker has gone.  A judge reads the topic at the end: every request that was
 * released is there, once and whole, and no connection goes on after its end or
 * has a number twice.
 *
 * The worker, the topic, the deaths and the judge are test_death.c's.
 */
#define main death_main
#include "t/unit/test_death.c"
#undef main

#include <sqlite3.h>
#include <sys/stat.h>
#include <unistd.h>

#include "sidecar/journal.h"
#include "sidecar/journal_db.h"

#define ANOTHER_BOOT "UPDATE meta SET value = 'another' WHERE name = 'boot'"

static char dir[] = "/dev/shm/test_journal.XXXXXX";
static journal *jr;
static int orphans;

/* ---- what was released ---- */

static struct {
    uint64_t seq; /* of the endOfMessage */
    uint32_t slot, generation;
    bool released;
} waits[MOST_EXCHANGES];

static void look_at_releases(void) {
    for (unsigned e = 0; e < nexchanges; e++) {
        const cap_slot *s = cap_slot_at(w->header, &w->g, waits[e].slot);

        if (waits[e].seq != 0 && s->generation == waits[e].generation &&
            (CAP_ACKED_SEQ(s->acked) >= waits[e].seq ||
             s->synced >= waits[e].seq)) {
            waits[e].released = true;
        }
    }
}

/* Whether the worker's last frame, an endOfMessage, is one that is waited for. */
static bool waits_for_last(void) {
    const cap_frame *f =
        (const void *)((const char *)cap_block_at(w->header, &w->g,
                                                  (uint32_t)w->block) +
                       w->at - CAP_FRAME_SPACE(sizeof(cap_eom)));

    ck_assert_uint_eq(f->type, CAP_FRAME_EOM);
    return (f->flags & CAP_FRAME_WAIT) != 0;
}

static void frames(unsigned n) {
    while (n-- > 0) {
        uint32_t i = dice(SLOTS);
        bool was = slots[i].phase == WHOLE;
        unsigned e;

        random_frame(i);
        e = slots[i].exchange;
        if (!was && slots[i].phase == WHOLE && waits_for_last()) {
            waits[e].seq = w->seq;
            waits[e].slot = i;
            waits[e].generation = w->slot_generation[i];
        }
    }
}

/* ---- a life with a journal ---- */

static void committed(void *owner) {
    (void)owner;
    ledger_ungate(lg);
}

/* As link.c does. */
static const char *own(int fd) {
    p = pool_open(fd, UINT64_MAX, &why);
    ck_assert_ptr_nonnull(p);
    a = assemble_new(p, lg, l, S);
    if (pool_own(p) == 1) {
        return NULL;
    }
    step(STEP_OWNED);
    why = journal_adopt_pool(jr, p);
    why = why == NULL ? pool_adopt(p) : why;
    step(STEP_ADOPT_BLOCKS);
    why = why == NULL ? assemble_adopt(a) : why;
    step(STEP_ADOPTED);
    return why;
}

static int recovered(void *owner, int fd, const char **reason) {
    (void)owner;
    *reason = own(fd);
    ck_assert_msg(*reason == NULL, "not recovered: %s", *reason);
    pool_close(p);
    orphans++;
    return 0;
}

static void begin(void) {
    static const journal_events journal_events = {committed, recovered};

    memset(metrics_cell, 0, sizeof(metrics_cell));
    l = loop_new();
    lg = ledger_new(&conf, l, &assemble_events);
    p = NULL;
    ck_assert_int_eq(journal_open(&jr, &conf, l, &journal_events, NULL), 0);
    ck_assert_ptr_nonnull(jr);
    ck_assert_uint_eq(metrics_cell[METRIC_JOURNAL_FAILED], 0);
    ledger_use_journal(lg, jr);
}

/* A disk of any speed, in this life: done in one turn of so many. */
static unsigned disk_turns;

static void disk(bool last) {
    journal_turn(jr);
    if (last || dice(disk_turns) == 0) {
        journal_wait(jr);
        ledger_pump(lg);
        journal_turn(jr);
    }
}

static void live_with_journal(unsigned turns) {
    const char *bad;

    begin();
    bad = own(w->fd);
    ck_assert_msg(bad == NULL, "not adopted: %s", bad);
    frames(dice(10));
    disk_turns = 1 + dice(8);
    for (unsigned i = 0; i < turns; i++) {
        frames(dice(12));
        bad = turn();
        ck_assert_msg(bad == NULL, "the link ends: %s", bad);
        disk(false);
        reports(false);
        look_at_releases();
        broker_feed(1 + dice(40));
        pass(dice(3) * 40 * MS);
        balanced();
    }
}

/* The group that was being written may be on the disk, or not: it is. */
static void end_process(void) {
    deaths++;
    fuse = 0;
    journal_abort(jr);
    broker_producer_died();
    if (p != NULL) {
        munmap(p->header, p->mapped);
        p = NULL;
    }
}

static unsigned ask(const char *question) {
    char path[80];
    sqlite3 *db;
    sqlite3_stmt *s;
    unsigned n = 0;

    snprintf(path, sizeof(path), "%s/journal/journal.db", dir);
    ck_assert_int_eq(sqlite3_open(path, &db), SQLITE_OK);
    ck_assert_int_eq(sqlite3_prepare_v2(db, question, -1, &s, NULL), SQLITE_OK);
    if (sqlite3_step(s) == SQLITE_ROW) {
        n = (unsigned)sqlite3_column_int64(s, 0);
    }
    sqlite3_finalize(s);
    sqlite3_close(db);
    return n;
}

static unsigned rows_left(void) {
    return ask("SELECT (SELECT count(*) FROM conns) + "
               "(SELECT count(*) FROM frames)");
}

/* One that recovers, until all is settled. */
static void recover(bool same_boot) {
    begin();
    if (same_boot) {
        journal_turn(jr);
        ck_assert_ptr_null(p);
        fake_loop_advance(l, JOURNAL_PATIENCE_NS);
    }
    journal_turn(jr);
    journal_wait(jr);
    if (p == NULL) {
        return; /* there was nothing */
    }
    ck_assert_ptr_null(turn());
    assemble_end(a, CAP_WORKER_EXIT);
    for (unsigned i = 0; i < 3000 && !assemble_empty(a); i++) {
        disk(true);
        pass(100 * MS);
        reports(true);
        broker_feed(UINT32_MAX);
    }
    ck_assert(assemble_empty(a));
    ck_assert(ledger_idle(lg));
    ck_assert_uint_eq(p->count.open, 0);
    ck_assert_uint_eq(p->count.taken, p->header->worker.handed);
    balanced();
}

static void end_orderly(void) {
    ledger_stop(lg, 0);
    if (p != NULL) {
        assemble_free(a);
        pool_free(p);
        p = NULL;
    }
    journal_close(jr);
    ledger_free(lg);
    loop_free(l);
}

/* ---- the judge ---- */

static unsigned judge_releases(void) {
    unsigned n = 0;

    memset(judged_conns, 0, sizeof(judged_conns));
    for (int i = 0; i < BROKER_ALL; i++) {
        for (unsigned k = 0; k < broker.partitions[i].n; k++) {
            judge_record(&broker.partitions[i].log[k], i);
        }
    }
    for (unsigned i = 0; i <= nconns; i++) {
        for (judged *j = &judged_conns[i]; j != NULL; j = j->next) {
            judge_exchange(j, i, false);
        }
    }
    for (unsigned e = 0; e < nexchanges; e++) {
        const exchange *x = &exchanges[e];

        if (waits[e].released && x->end != DROPPED && x->end != FORGOTTEN) {
            ck_assert_msg(x->there_eom && !x->there_dropped,
                          "exchange %u of r%u was released and is not there", e,
                          x->conn);
            n++;
        }
    }
    return n;
}

/* ---- tests ---- */

static void open_journal(void) {
    open_all();
    ck_assert_ptr_nonnull(mkdtemp(dir));
    conf.spool_path = dir;
    conf.durability_disk = true;
    conf.journal_size = 64 << 20;
    jr = NULL;
    orphans = 0;
}

static void close_journal(void) {
    char command[80];

    snprintf(command, sizeof(command), "rm -r %s", dir);
    ck_assert_int_eq(system(command), 0);
    fake_worker_free(w);
    broker_clear();
}

/* Sidecars die, and in the end the host: each at step `s`, STEP_COUNT: any. */
static void lives_and_host(unsigned n, unsigned s) {
    static volatile unsigned i;

    broker.limit = 2000 + dice(dice(2) == 0 ? 3000 : 20000);
    for (i = 0; i <= n; i++) {
        wanted = s < STEP_COUNT ? s : dice(STEP_COUNT);
        fuse = 1 + dice(dice(2) == 0 ? 3 : 30);
        if (setjmp(grave) == 0) {
            live_with_journal(1 + dice(dice(3) == 0 ? 40 : 12));
        }
        look_at_releases();
        end_process();
        if (i < n) {
            frames(dice(20));
            fake_offer(w);
        }
    }
    (void)ask(ANOTHER_BOOT);
    /* it dies again while it recovers */
    static volatile unsigned again;
    for (again = dice(3); again > 0; again--) {
        static volatile bool same;

        same = again < 2 && dice(2) == 0 && i > n + 1;
        wanted = dice(STEP_COUNT);
        fuse = 1 + dice(10);
        if (setjmp(grave) == 0) {
            recover(same);
        }
        fuse = 0;
        end_process();
        (void)ask(ANOTHER_BOOT);
    }
    recover(false);
    end_orderly();
    ck_assert_uint_eq(rows_left(), 0);
}

START_TEST(what_was_released_is_there_after_the_host_has_died) {
    seed = (unsigned)_i;
    lives_and_host(dice(4), STEP_COUNT);
    (void)judge_releases();
}
END_TEST

/* What is in doubt goes again under another name: there twice, perhaps, and
   always once. */
START_TEST(what_was_released_is_there_where_the_topic_may_not_be_read) {
    seed = (unsigned)_i + 100;
    go_blind(true, false);
    lives_and_host(dice(4), STEP_COUNT);
    (void)judge_releases();
}
END_TEST

int main(void) {
    Suite *s = suite_create("journal");
    TCase *t = tcase_create("journal");
    SRunner *r = srunner_create(s);
    int failed;

    tcase_add_checked_fixture(t, open_journal, close_journal);
    tcase_set_timeout(t, 120);
    tcase_add_loop_test(t, what_was_released_is_there_after_the_host_has_died,
                        0, 40);
    tcase_add_loop_test(
        t, what_was_released_is_there_where_the_topic_may_not_be_read, 0, 30);
    suite_add_tcase(s, t);
    srunner_run_all(r, CK_NORMAL);
    failed = srunner_ntests_failed(r);
    srunner_free(r);
    return failed == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
