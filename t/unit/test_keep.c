/*
 * What outlives a sidecar: a pool in the spool's pools/, the totals, and what a
 * keeper of descriptors has: real files and sockets, in front of a fake Kafka.
 */
#define _GNU_SOURCE /* memfd_create, in fake_worker.c */
#include <check.h>
#include <dirent.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include "sidecar/link.h"
#include "sidecar/orphan.h"
#include "sidecar/pool_file.h"
#include "t/unit/fake_kafka.c"
#include "t/unit/fake_worker.c"

#define S 1000000000ll
#define MS 1000000ll

static char dir[] = "/tmp/test_keep.XXXXXX";
static char path[64], spool_path[64];
static config conf;
static loop *l;
static ledger *lg;
static spool *sp;
static keeper *k;
static totals *t;
static links *ls;
static orphans *o;
static fake_worker *w;
static int keeper_sock = -1;

static void start(void) {
    l = loop_new();
    lg = ledger_new(&conf, l, &assemble_events);
    sp = conf.spool_path != NULL ? spool_open(&conf) : NULL;
    k = keeper_open();
    keeper_use_loop(k, l);
    t = totals_open(sp, k);
    ls = links_open_kept(&conf, l, lg, sp, k);
    ck_assert_ptr_nonnull(ls);
    links_use_totals(ls, t);
    o = orphans_open(l, ls, sp, k, t);
    ck_assert_ptr_nonnull(o);
}

static void stop(void) {
    ledger_stop(lg, 0);
    for (unsigned i = 0; i < fake_kafka.n; i++) {
        fake_kafka.records[i].copy = NULL; /* it is freed */
    }
    orphans_close(o);
    links_close(ls);
    totals_close(t);
    keeper_close(k);
    ledger_free(lg);
    spool_close(sp);
    loop_free(l);
}

static void open_all(void) {
    static config_property broker = {.name = "bootstrap.servers",
                                     .value = "fake:1"};
    struct sockaddr_un at = {.sun_family = AF_UNIX};

    ck_assert_ptr_nonnull(mkdtemp(dir));
    snprintf(path, sizeof(path), "%s/s", dir);
    snprintf(spool_path, sizeof(spool_path), "%s/spool", dir);
    snprintf(at.sun_path, sizeof(at.sun_path), "%s/k", dir);
    keeper_sock = socket(AF_UNIX, SOCK_DGRAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    ck_assert_int_eq(bind(keeper_sock, (struct sockaddr *)&at, sizeof(at)), 0);
    conf = (config){.listen = path,
                    .listen_mode = 0620,
                    .listen_owner = (uid_t)-1,
                    .listen_group = (gid_t)-1,
                    .record_size = 1048076,
                    .inflight_size = 64 << 20,
                    .pools_size = 1 << 30,
                    .flush_time = S,
                    .spool_path = spool_path,
                    .spool_size = 64 << 20,
                    .drain_time = S};
    conf.kafka[conf.nkafka++] = broker;
    unsetenv("NOTIFY_SOCKET");
    w = fake_worker_new(32, 8);
    start();
}

static void remove_in(const char *name) {
    DIR *d = opendir(name);
    struct dirent *e;

    while (d != NULL && (e = readdir(d)) != NULL) {
        if (strcmp(e->d_name, ".") != 0 && strcmp(e->d_name, "..") != 0) {
            (void)unlinkat(dirfd(d), e->d_name, 0);
        }
    }
    if (d != NULL) {
        closedir(d);
    }
    (void)rmdir(name);
}

static void close_all(void) {
    char pools[80];

    stop();
    fake_worker_free(w);
    close(keeper_sock);
    snprintf(pools, sizeof(pools), "%s/pools", spool_path);
    remove_in(pools);
    remove_in(spool_path);
    remove_in(dir);
}

/* ---- the loop ---- */

static struct {
    bool (*holds)(void);
    int64_t until_ns;
    bool acking;
} wait_for;

static int64_t hook(void *owner) {
    int64_t sleep_ns = links_turn(ls);

    (void)owner;
    ledger_pump(lg);
    for (unsigned i = 0; wait_for.acking && i < fake_kafka.n; i++) {
        if (!fake_kafka.records[i].reported) {
            fake_report(i, KAFKA_ACKED);
        }
    }
    links_retire(ls);
    if (wait_for.holds() || loop_now_ns(l) > wait_for.until_ns) {
        loop_stop(l);
    }
    return sleep_ns == -1 ? 5 * MS : sleep_ns;
}

static void run_until(bool (*holds)(void), const char *what) {
    wait_for.holds = holds;
    wait_for.until_ns = loop_now_ns(l) + 10 * S;
    loop_run(l, hook, NULL);
    ck_assert_msg(holds(), "%s: waited in vain", what);
}

#define until(cond) run_until(cond, #cond)

static bool filed(void) {
    return metrics_cell[METRIC_POOLS_FILED] == 1;
}

static bool refused_room(void) {
    return metrics_cell[METRIC_SPOOL_FULL] > 0;
}

static bool gone(void) {
    return metrics_cell[METRIC_POOLS_ORPHANED] == 0;
}

static unsigned files(void) {
    char pools[80];
    DIR *d;
    unsigned n = 0;

    snprintf(pools, sizeof(pools), "%s/pools", spool_path);
    d = opendir(pools);
    while (readdir(d) != NULL) {
        n++;
    }
    closedir(d);
    return n - 2;
}

static void exchanges(uint32_t slot, const char *id, unsigned n) {
    static char body[30001];

    memset(body, 'x', 30000);
    fake_take_slot(w, slot, id);
    for (unsigned i = 0; i < n; i++) {
        fake_exchange(w, slot, "GET", body);
    }
}

static metrics_exchanges sum(void) {
    metrics_exchanges e;
    uint64_t n;

    links_sum(ls, &e);
    n = e.captured + e.pending;
    for (int i = 0; i < CAP_REASON_CELLS; i++) {
        n += e.reason[i];
    }
    ck_assert_uint_eq(n, e.seen);
    return e;
}

static void adopt(void) {
    const char *why = NULL;

    ck_assert_msg(links_adopt_orphan(ls, w->fd, &why) == 0, "%s", why);
}

/* ---- the spool ---- */

/* Twice another one takes it over from there. */
START_TEST(a_dead_workers_pool_is_in_the_spool_and_goes_on_there) {
    exchanges(0, "a", 20);
    exchanges(1, "b", 1);
    adopt();
    until(filed);
    ck_assert_uint_eq(files(), 1);
    ck_assert_uint_eq(metrics_cell[METRIC_POOL_BYTES], 0);
    ck_assert_uint_gt(metrics_cell[METRIC_SPOOL_BYTES], 8 * CAP_BLOCK_SIZE);
    ck_assert_uint_lt(metrics_cell[METRIC_SPOOL_BYTES], 14 * CAP_BLOCK_SIZE);
    /* only the file counts now */
    memset((char *)w->header + w->g.blocks_at, 0xff, 32 * CAP_BLOCK_SIZE);
    for (int i = 0; i < 2; i++) {
        stop();
        ck_assert_uint_eq(metrics_cell[METRIC_POOLS_FILED], 0);
        start();
        ck_assert(filed());
        ck_assert_uint_eq(sum().seen, 21);
    }
    /* what was handed over is in doubt, and cannot be read */
    wait_for.acking = true;
    fake_kafka.blind = true;
    until(gone);
    ck_assert_uint_eq(files(), 0);
    ck_assert_uint_eq(sum().seen, 21);
    ck_assert_uint_eq(sum().pending, 0);
    ck_assert_uint_eq(metrics_cell[METRIC_SPOOL_BYTES], 0);
    stop();
    start();
    ck_assert_uint_eq(sum().seen, 21);
}
END_TEST

/* What is done with gives its room back. */
START_TEST(a_filed_pool_shrinks) {
    uint64_t before;

    fake_kafka.ready = false;
    exchanges(0, "a", 20);
    exchanges(1, "b", 20);
    adopt();
    until(filed);
    before = metrics_cell[METRIC_SPOOL_BYTES];
    fake_kafka.ready = true;
    ledger_pump(lg);
    ck_assert_uint_ge(fake_kafka.n, 2);
    fake_report(0, KAFKA_ACKED);
    ck_assert_uint_lt(metrics_cell[METRIC_SPOOL_BYTES],
                      before - 5 * CAP_BLOCK_SIZE);
    wait_for.acking = true;
    until(gone);
    ck_assert_uint_eq(sum().captured, 40);
}
END_TEST

START_TEST(without_room_it_stays_in_memory) {
    stop();
    conf.spool_size = 4 * CAP_BLOCK_SIZE;
    start();
    exchanges(0, "a", 20);
    adopt();
    until(refused_room);
    ck_assert_uint_eq(metrics_cell[METRIC_POOLS_FILED], 0);
    ck_assert_uint_eq(files(), 0);
    ck_assert_uint_eq(metrics_cell[METRIC_SPOOL_BYTES], 0);
    wait_for.acking = true;
    until(gone);
    ck_assert_uint_eq(sum().captured, 20);
}
END_TEST

/* TERM: at once, also when nobody turns the loop any more. */
START_TEST(the_end_of_the_sidecar_moves_what_is_unsettled) {
    exchanges(0, "a", 20);
    adopt();
    links_turn(ls);
    links_turn(ls);
    ledger_pump(lg);
    ck_assert_uint_eq(files(), 0);
    stop();
    ck_assert_uint_eq(files(), 1);
    start();
    ck_assert(filed());
    fake_kafka.blind = true;
    wait_for.acking = true;
    until(gone);
    ck_assert_uint_eq(sum().seen, 20);
}
END_TEST

START_TEST(files_that_are_no_pool_are_set_aside) {
    static const char *const names[] = {FAKE_NODE_ID,
                                        "00000000-1234-1234-1234-123456789abc",
                                        "x", "y.damaged", "z.new"};
    char name[160];
    struct stat st;

    stop();
    for (unsigned i = 0; i < 5; i++) {
        int fd;

        snprintf(name, sizeof(name), "%s/pools/%s", spool_path, names[i]);
        fd = open(name, O_RDWR | O_CREAT, 0600);
        ck_assert_int_ne(fd, -1);
        if (i < 2) { /* a header of another's name, or cut behind it */
            ck_assert_int_eq(write(fd, w->header, 8192), 8192);
        }
        close(fd);
    }
    metrics_cell[METRIC_POOLS_DAMAGED] = 0;
    start();
    ck_assert_uint_eq(metrics_cell[METRIC_POOLS_DAMAGED], 3);
    for (unsigned i = 0; i < 3; i++) {
        snprintf(name, sizeof(name), "%s/pools/%s.damaged", spool_path,
                 names[i]);
        ck_assert_int_eq(stat(name, &st), 0);
    }
    ck_assert_uint_eq(files(), 4);
    ck_assert(gone());
}
END_TEST

/* ---- totals ---- */

static metrics_exchanges of(uint64_t seen) {
    metrics_exchanges e = {.seen = seen, .captured = seen};

    return e;
}

START_TEST(totals_are_whole_at_any_store) {
    metrics_exchanges one = of(5), two = of(7);
    char name[96];
    uint64_t *page;
    int fd;

    totals_fold(t, &one, "11111111-1234-1234-1234-123456789abc");
    totals_fold(t, &two, "22222222-1234-1234-1234-123456789abc");
    stop();
    /* the next one was being written */
    snprintf(name, sizeof(name), "%s/totals", spool_path);
    fd = open(name, O_RDWR);
    page = mmap(NULL, 8192, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    ck_assert_uint_eq(page[2], 2);
    ck_assert_uint_eq(page[3], 12);
    memset((char *)(page + 3) + sizeof(metrics_exchanges) + 40, 0xee, 100);
    munmap(page, 8192);
    close(fd);
    start();
    ck_assert_uint_eq(sum().seen, 12);
    ck_assert(totals_has_last(t, "22222222-1234-1234-1234-123456789abc"));
    ck_assert(!totals_has_last(t, "11111111-1234-1234-1234-123456789abc"));
    totals_fold(t, &one, "33333333-1234-1234-1234-123456789abc");
    ck_assert_uint_eq(sum().seen, 17);
}
END_TEST

/* It died after it had counted the pool, and before that was gone. */
START_TEST(a_pool_that_was_counted_is_not_counted_again) {
    metrics_exchanges e = of(20);

    exchanges(0, "a", 20);
    adopt();
    until(filed);
    totals_fold(t, &e, FAKE_NODE_ID);
    ck_assert_uint_eq(files(), 1);
    stop();
    start();
    ck_assert_uint_eq(files(), 0);
    ck_assert(gone());
    ck_assert_uint_eq(sum().seen, 20);
}
END_TEST

/* ---- the keeper ---- */

static char said[256];

/* The descriptor that came with the next message, or -1. */
static int hear(void) {
    char control[CMSG_SPACE(sizeof(int))];
    struct iovec io = {said, sizeof(said) - 1};
    struct msghdr h = {.msg_iov = &io,
                       .msg_iovlen = 1,
                       .msg_control = control,
                       .msg_controllen = sizeof(control)};
    ssize_t n = recvmsg(keeper_sock, &h, 0);
    int fd = -1;

    said[n > 0 ? n : 0] = '\0';
    if (n > 0 && CMSG_FIRSTHDR(&h) != NULL) {
        memcpy(&fd, CMSG_DATA(CMSG_FIRSTHDR(&h)), sizeof(fd));
    }
    return fd;
}

START_TEST(a_keeper_is_told_and_trusted_only_where_it_says_so) {
    char name[80];
    struct stat a, b;
    int fd;

    snprintf(name, sizeof(name), "%s/k", dir);
    for (int trusted = 0; trusted < 2; trusted++) {
        keeper *one;

        setenv("NOTIFY_SOCKET", name, 1);
        if (trusted) {
            setenv("FDSTORE", "10", 1);
        } else {
            unsetenv("FDSTORE");
        }
        one = keeper_open();
        keeper_say(one, "READY=1");
        ck_assert_int_eq(keeper_store(one, "pool-x", w->fd), trusted);
        keeper_remove(one, "pool-x");
        ck_assert_int_eq(hear(), -1);
        ck_assert_str_eq(said, "READY=1");
        fd = hear();
        ck_assert_str_eq(said, "FDSTORE=1\nFDNAME=pool-x");
        ck_assert_int_eq(fstat(fd, &a) | fstat(w->fd, &b), 0);
        ck_assert_uint_eq(a.st_ino, b.st_ino);
        close(fd);
        ck_assert_int_eq(hear(), -1);
        ck_assert_str_eq(said, "FDSTOREREMOVE=1\nFDNAME=pool-x");
        keeper_close(one);
    }
    unsetenv("NOTIFY_SOCKET");
    unsetenv("FDSTORE");
}
END_TEST

static bool more_is_said(void) {
    char c;

    return recv(keeper_sock, &c, 1, MSG_PEEK | MSG_DONTWAIT) > 0;
}

/* A full socket delays what is said, in its order; it holds nobody up. */
START_TEST(a_keeper_that_does_not_read_is_told_later) {
    char name[80], text[32];
    keeper *one;
    unsigned n = 0;

    snprintf(name, sizeof(name), "%s/k", dir);
    setenv("NOTIFY_SOCKET", name, 1);
    one = keeper_open();
    keeper_use_loop(one, l);
    for (unsigned i = 0; i < 2000; i++) {
        snprintf(text, sizeof(text), "STATUS=%u", i);
        keeper_say(one, text);
    }
    while (n < 2000) {
        until(more_is_said);
        (void)hear();
        snprintf(text, sizeof(text), "STATUS=%u", n++);
        ck_assert_str_eq(said, text);
    }
    keeper_close(one);
    unsetenv("NOTIFY_SOCKET");
}
END_TEST

int main(void) {
    Suite *s = suite_create("keep");
    TCase *c = tcase_create("keep");
    SRunner *sr;
    int failed;

    tcase_add_checked_fixture(c, open_all, close_all);
    tcase_set_timeout(c, 30);
    tcase_add_test(c, a_dead_workers_pool_is_in_the_spool_and_goes_on_there);
    tcase_add_test(c, a_filed_pool_shrinks);
    tcase_add_test(c, without_room_it_stays_in_memory);
    tcase_add_test(c, the_end_of_the_sidecar_moves_what_is_unsettled);
    tcase_add_test(c, files_that_are_no_pool_are_set_aside);
    tcase_add_test(c, totals_are_whole_at_any_store);
    tcase_add_test(c, a_pool_that_was_counted_is_not_counted_again);
    tcase_add_test(c, a_keeper_is_told_and_trusted_only_where_it_says_so);
    tcase_add_test(c, a_keeper_that_does_not_read_is_told_later);
    suite_add_tcase(s, c);
    sr = srunner_create(s);
    srunner_run_all(sr, CK_NORMAL);
    failed = srunner_ntests_failed(sr);
    srunner_free(sr);
    return failed == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
