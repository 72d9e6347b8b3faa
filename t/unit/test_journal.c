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

#include <signal.h>
#include <sqlite3.h>
#include <sys/resource.h>
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
    why = journal_may_adopt(jr, p);
    why = why == NULL ? pool_adopt(p) : why;
    step(STEP_ADOPT_BLOCKS);
    why = why == NULL ? assemble_adopt(a) : why;
    step(STEP_ADOPTED);
    return why == NULL ? journal_adopt_pool(jr, p) : why;
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

/* No file can be written beyond `bytes`. */
static void disk_takes(rlim_t bytes) {
    struct rlimit limit = {bytes, RLIM_INFINITY};

    signal(SIGXFSZ, SIG_IGN);
    ck_assert_int_eq(setrlimit(RLIMIT_FSIZE, &limit), 0);
}

/* The turn from which on it takes nothing. */
static unsigned fails_at = UINT32_MAX;

static void live_with_journal(unsigned turns) {
    const char *bad;

    begin();
    bad = own(w->fd);
    ck_assert_msg(bad == NULL, "not adopted: %s", bad);
    frames(dice(10));
    disk_turns = 1 + dice(8);
    for (unsigned i = 0; i < turns; i++) {
        if (i == fails_at) {
            disk_takes(1);
        }
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

static void in_dir(const char *command) {
    char line[200];

    snprintf(line, sizeof(line), "cd %s && { %s; }", dir, command);
    ck_assert_int_eq(system(line), 0);
}

/* What the journal's files hold when its thread dies. */
static volatile bool copied;

#ifdef CAPTURE_KILL_POINTS
static void copy_journal(void) {
    disk_takes(RLIM_INFINITY);
    in_dir("cp -r journal then");
    copied = true;
}
#endif

/* The group that was being written is on the disk, but where its thread has died
   before. */
static void end_process(void) {
    deaths++;
    fuse = 0;
    disk_takes(RLIM_INFINITY);
    if (jr != NULL) {
        journal_abort(jr);
        jr = NULL;
    }
#ifdef CAPTURE_KILL_POINTS
    dead_aside = false;
#endif
    if (copied) {
        copied = false;
        in_dir("rm -r journal; mv then journal");
    }
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

static void settle_all(void) {
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

/* One that recovers, until all is settled; `patient`: it may have to wait. */
static void recover(bool patient) {
    begin();
    journal_turn(jr);
    journal_wait(jr);
    if (p == NULL && patient) {
        fake_loop_advance(l, JOURNAL_PATIENCE_NS);
        journal_turn(jr);
        journal_wait(jr);
    }
    if (p != NULL) { /* there was something */
        settle_all();
    }
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
#ifdef CAPTURE_KILL_POINTS
    last_words = copy_journal;
#endif
}

static void close_journal(void) {
    char command[80];

    snprintf(command, sizeof(command), "rm -r %s", dir);
    ck_assert_int_eq(system(command), 0);
    fake_worker_free(w);
    broker_clear();
}

/* Only who recovers comes to it. */
static bool of_recovery(unsigned s) {
    return s == STEP_JOURNAL_NUMBERED || s == STEP_JOURNAL_FOUND ||
           s == STEP_JOURNAL_RECOVERED;
}

/* Sidecars die, each at step `s`, STEP_COUNT: any; with the last one, the
   worker. */
static void lives_in_turn(unsigned n, unsigned s) {
    static volatile unsigned i;

    broker.limit = 2000 + dice(dice(2) == 0 ? 3000 : 20000);
    for (i = 0; i <= n || (!has_died_at(s) && !of_recovery(s) && i < 10 * n);
         i++) {
        if (i > 0) {
            frames(dice(20));
            fake_offer(w);
        }
        wanted = s < STEP_COUNT ? s : dice(STEP_COUNT);
        fuse = 1 + (s < STEP_COUNT ? i % 3 : dice(dice(2) == 0 ? 3 : 30));
        if (setjmp(grave) == 0) {
            live_with_journal(1 + dice(dice(3) == 0 ? 40 : 12));
        }
        look_at_releases();
        end_process();
    }
}

/* And in the end the host, also while it recovers. */
static void lives_and_host(unsigned n, unsigned s) {
    static volatile unsigned again;
    static volatile bool nothing;

    lives_in_turn(n, s);
    nothing = rows_left() == 0;
    (void)ask(ANOTHER_BOOT);
    for (again = s < STEP_COUNT ? 3 : dice(3); again > 0; again--) {
        wanted = s < STEP_COUNT ? s : dice(STEP_COUNT);
        fuse = 1 + (s < STEP_COUNT ? 0 : dice(10));
        if (setjmp(grave) == 0) {
            recover(true);
        }
        end_process();
        if (dice(2) == 0) {
            (void)ask(ANOTHER_BOOT);
        }
    }
    recover(true);
    end_orderly();
    ck_assert_uint_eq(rows_left(), 0);
    ck_assert_msg(has_died_at(s) || (of_recovery(s) && nothing),
                  "nobody died at step %u", s);
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

#ifdef CAPTURE_KILL_POINTS
/* Of each step of the journal alone, as far as these lives come to it. */
#define STEPS_HERE                                                             \
    {                                                                          \
        STEP_JOURNAL_OPENED, STEP_JOURNAL_WRITTEN, STEP_JOURNAL_COMMITTED,     \
            STEP_JOURNAL_NUMBERED, STEP_JOURNAL_TIDIED, STEP_JOURNAL_TOLD,     \
            STEP_JOURNAL_SYNCED, STEP_JOURNAL_FOUND, STEP_JOURNAL_RECOVERED,   \
            STEP_JOURNAL_ADOPTED                                               \
    }
#define STEPS_HERE_COUNT 10
#ifdef __SANITIZE_ADDRESS__
#define TIMES(n) 1
#else
#define TIMES(n) (n)
#endif

START_TEST(death_at_each_step_of_the_journal_and_then_the_host) {
    static const unsigned steps[] = STEPS_HERE;

    seed = (unsigned)_i + 200;
    lives_and_host(3, steps[_i % STEPS_HERE_COUNT]);
    (void)judge_releases();
}
END_TEST

/* The last of them sees the worker go. */
static void last_life_with_journal(void) {
    live_with_journal(10);
    pool_close(p);
    settle_all();
    judge();
    end_orderly();
    ck_assert_uint_eq(rows_left(), 0);
}

/* The pool stays, and is right. */
START_TEST(death_at_each_step_of_the_journal_with_its_worker_alive) {
    static const unsigned steps[] = STEPS_HERE;

    seed = (unsigned)_i + 300;
    lives_in_turn(4, steps[_i % STEPS_HERE_COUNT]);
    fake_offer(w);
    last_life_with_journal();
}
END_TEST

/* Of a journal that cannot be written nothing is believed, in whatever state it
   was left. */
START_TEST(death_while_a_journal_is_removed_doubles_nothing) {
    static const unsigned steps[] = {STEP_JOURNAL_CLOSED, STEP_JOURNAL_REMOVED};
    unsigned s = steps[_i % 2];

    seed = (unsigned)_i + 400;
    fails_at = 5;
    if (setjmp(grave) == 0) {
        wanted = s;
        fuse = 1;
        live_with_journal(60);
    }
    fails_at = UINT32_MAX;
    look_at_releases();
    end_process();
    ck_assert(has_died_at(s));
    if (s == STEP_JOURNAL_REMOVED) { /* else it would be as of some time ago */
        in_dir("[ ! -e journal/journal.db ]");
    }
    if (_i & 2) {
        fake_offer(w);
        last_life_with_journal();
        return;
    }
    if (s == STEP_JOURNAL_CLOSED) {
        (void)ask(ANOTHER_BOOT);
    }
    recover(false);
    end_orderly();
    if (s == STEP_JOURNAL_CLOSED) {
        (void)judge_releases();
    }
    ck_assert_uint_eq(rows_left(), 0);
}
END_TEST

#endif

/* It was opened after the host's start by one that then died: what is there is
   lost all the same, and what comes later in the same name is not believed. */
START_TEST(what_was_lost_with_the_host_stays_so) {
    fake_take_slot(w, 0, "r1");
    fake_read(w, 0, CAP_FRAME_BEGIN, bytes_of(0, 'Q', 0, 100));
    fake_eom(w, 0, CAP_FRAME_WAIT);
    broker.ready = false;
    begin();
    ck_assert_ptr_null(own(w->fd));
    ck_assert_ptr_null(turn());
    disk(true);
    end_process();
    (void)ask(ANOTHER_BOOT);
    for (int i = 0; i < 2; i++) {
        begin();
        p = pool_open(w->fd, UINT64_MAX, &why);
        ck_assert_ptr_nonnull(journal_may_adopt(jr, p));
        end_process();
    }
    begin();
    journal_turn(jr);
    journal_wait(jr);
    ck_assert_int_eq(orphans, 1);
    end_process();
    /* what comes now was made of that */
    begin();
    p = pool_open(w->fd, UINT64_MAX, &why);
    ck_assert_ptr_null(journal_may_adopt(jr, p));
    end_process();
}
END_TEST

/* Its slot is the worker's memory. */
START_TEST(who_a_connection_is_and_where_it_goes_is_read_once) {
    cap_slot *s = cap_slot_at(w->header, &w->g, 0);

    broker.ready = false;
    w->topic = SECOND;
    fake_take_slot(w, 0, "r1");
    fake_read(w, 0, CAP_FRAME_BEGIN, bytes_of(0, 'Q', 0, 100));
    begin();
    ck_assert_ptr_null(own(w->fd));
    ck_assert_ptr_null(turn());
    s->topic = DEFAULT;
    s->id[1] = '2';
    s->renames = 1;
    memset(w->header->topic_names[0], 0, CAP_TOPIC_NAME_SIZE);
    fake_eom(w, 0, CAP_FRAME_WAIT);
    ck_assert_ptr_null(turn());
    disk(true);
    s->topic = UNKNOWN;
    ck_assert_uint_ne(s->synced, 0);
    end_process();
    (void)ask(ANOTHER_BOOT);
    broker.ready = true;
    recover(false);
    end_orderly();
    for (int i = 0; i < BROKER_ALL; i++) {
        for (unsigned k = 0; k < broker.partitions[i].n; k++) {
            ck_assert_str_eq(broker.partitions[i].log[k].key, "r1");
            ck_assert_int_eq(i / BROKER_PARTITIONS, SECOND);
        }
    }
    ck_assert_uint_eq(rows_left(), 0);
}
END_TEST

static off_t log_size(const char *journal_dir) {
    char path[80];
    struct stat st;

    snprintf(path, sizeof(path), "%s/journal.db-wal", journal_dir);
    ck_assert_int_eq(stat(path, &st), 0);
    return st.st_size;
}

/* A commit of a request, with another two that Kafka has not acknowledged yet: the
   rows of conns and of frames, each in one page; and it makes no file grow. */
START_TEST(a_commit_is_two_pages_and_the_log_keeps_its_size) {
    enum { COMMITS = 1000, LOG_PAGES = 512 };
    char journal_dir[48], words[JOURNAL_WHY_SIZE];
    static uint8_t request[1400];
    struct journal_ops ops = TAILQ_HEAD_INITIALIZER(ops);
    journal_op op = {.kind = JOURNAL_KEEP, .key = 1, .node_id = "n"};
    journal_node *nodes;
    size_t nnodes;
    uint64_t key;
    bool damaged;
    unsigned tidied = 0;
    off_t size;
    journal_db *d;

    snprintf(journal_dir, sizeof(journal_dir), "%s/db", dir);
    d = journal_db_open(journal_dir, &nodes, &nnodes, &key, &damaged, words);
    ck_assert_ptr_nonnull(d);
    size = log_size(journal_dir);
    TAILQ_INSERT_TAIL(&ops, &op, all);
    op.frames = request;
    op.len = sizeof(request);
    for (uint32_t i = 0; i < COMMITS; i++) {
        op.chunk = i;
        op.done_from = i > 3 ? i - 3 : 0;
        op.done_end = i > 2 ? i - 2 : 0;
        ck_assert_int_eq(journal_db_commit(d, &ops, words), 0);
        if (journal_db_is_untidy(d)) {
            journal_db_tidy(d);
            tidied++;
        }
    }
    ck_assert_int_eq(log_size(journal_dir), size);
    ck_assert_uint_ge(tidied, 2 * COMMITS / LOG_PAGES);
    ck_assert_uint_le(tidied, 5 * COMMITS / 2 / LOG_PAGES);
    journal_db_close(d);
    free(nodes);
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
#ifdef CAPTURE_KILL_POINTS
    tcase_add_loop_test(t, death_at_each_step_of_the_journal_and_then_the_host,
                        0, TIMES(4) * STEPS_HERE_COUNT);
    tcase_add_loop_test(t,
                        death_at_each_step_of_the_journal_with_its_worker_alive,
                        0, TIMES(2) * STEPS_HERE_COUNT);
    tcase_add_loop_test(t, death_while_a_journal_is_removed_doubles_nothing, 0,
                        4 * TIMES(2));
#endif
    tcase_add_test(t, what_was_lost_with_the_host_stays_so);
    tcase_add_test(t, who_a_connection_is_and_where_it_goes_is_read_once);
    tcase_add_test(t, a_commit_is_two_pages_and_the_log_keeps_its_size);
    suite_add_tcase(s, t);
    srunner_run_all(r, CK_NORMAL);
    failed = srunner_ntests_failed(r);
    srunner_free(r);
    return failed == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
