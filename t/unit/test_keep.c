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
#include <sys/resource.h>
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
static void (*poor)(bool is); /* what is short while pools are taken over */

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
    if (poor != NULL) {
        poor(true);
    }
    o = orphans_open(l, ls, sp, k, t);
    if (poor != NULL) {
        poor(false);
    }
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

static bool all_read(void) {
    metrics_exchanges e;

    links_sum(ls, &e);
    return e.pending == 20 && fake_kafka.n > 0;
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
    static char own[CAP_NODE_ID_SIZE + 1];
    static const char *const names[] = {
        own, "00000000-1234-1234-1234-123456789abc", "x", "y.damaged", "z.new"};
    char name[160];
    struct stat st;

    stop();
    memcpy(own, w->header->node_id, CAP_NODE_ID_SIZE);
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

/* ---- what cannot be taken over, and what must not ---- */

static void write_to(const char *name, const void *what, size_t n, off_t at) {
    char full[160];
    int fd;

    snprintf(full, sizeof(full), "%s/%s", spool_path, name);
    fd = open(full, O_RDWR);
    ck_assert_int_ne(fd, -1);
    ck_assert_int_eq(pwrite(fd, what, n, at), (ssize_t)n);
    close(fd);
}

static const char another_boot[] = "00000000-0000-0000-0000-00000000b007";

static void put_a_block(const char *node_id, uint64_t first_seq) {
    static uint64_t space[CAP_BLOCK_SIZE / 8];
    cap_block *b = (cap_block *)space;

    b->published = CAP_BLOCK_HEADER | CAP_BLOCK_SEALED;
    b->generation = 1;
    b->first_seq = first_seq;
    ck_assert_uint_ne(spool_put(sp, node_id, b), SPOOL_NO_SLOT);
}

/* A file was not synced: after another start of the host it may be of any time,
   and what it calls unsent may be in the topic. */
START_TEST(a_file_of_before_the_hosts_last_start_is_lost_and_counted) {
    char name[64];
    cap_header h;

    exchanges(0, "a", 20);
    exchanges(1, "b", 1);
    w->header->worker.seen += 2; /* and never handed over */
    adopt();
    until(filed);
    put_a_block(w->header->node_id, 1);
    stop();
    snprintf(name, sizeof(name), "pools/%.36s", w->header->node_id);
    /* 1: another's, or 0: not known */
    memcpy(h.boot_id, another_boot, sizeof(h.boot_id));
    if (_i == 0) {
        memset(h.boot_id, 0, sizeof(h.boot_id));
    }
    write_to(name, h.boot_id, sizeof(h.boot_id), offsetof(cap_header, boot_id));
    fake_kafka.n = 0;
    for (int i = 0; i < 2; i++) {
        start();
        wait_for.acking = true;
        ck_assert_uint_eq(files(), 0);
        ck_assert(gone());
        ledger_pump(lg);
        ck_assert_uint_eq(fake_kafka.n, 0);
        ck_assert_uint_eq(sum().seen, 23);
        ck_assert_uint_eq(sum().reason[CAP_MAYBE_LOST], 21);
        ck_assert_uint_eq(sum().reason[CAP_WORKER_EXIT], 2);
        ck_assert_uint_eq(metrics_cell[METRIC_POOLS_LOST], 1);
        ck_assert_uint_eq(metrics_cell[METRIC_POOLS_DAMAGED], 0);
        ck_assert_uint_eq(metrics_cell[METRIC_SPOOL_BYTES], 0);
        stop();
    }
    start();
}
END_TEST

START_TEST(the_spool_of_before_the_hosts_last_start_is_empty) {
    put_a_block(another_boot, 1);
    put_a_block(another_boot, 9);
    stop();
    start();
    ck_assert_uint_eq(metrics_cell[METRIC_SPOOL_BYTES], 2 * CAP_BLOCK_SIZE);
    stop();
    write_to("blocks", another_boot, 36, 16);
    start();
    ck_assert_uint_eq(metrics_cell[METRIC_SPOOL_BYTES], 0);
    ck_assert_uint_eq(metrics_cell[METRIC_SPOOL_SWEPT], 2);
    put_a_block(another_boot, 1);
    stop();
    start();
    ck_assert_uint_eq(metrics_cell[METRIC_SPOOL_BYTES], CAP_BLOCK_SIZE);
}
END_TEST

static bool swept(void) {
    return metrics_cell[METRIC_SPOOL_SWEPT] > 0;
}

static bool tried_again(void) {
    return metrics_cell[METRIC_POOLS_ADOPTED] > 0;
}

/* Those of a pool in a file are its own. */
START_TEST(blocks_whose_pool_never_comes_are_swept) {
    exchanges(0, "a", 20);
    adopt();
    until(filed);
    put_a_block(w->header->node_id, 1000);
    w->header->spooled = 1;
    put_a_block(another_boot, 1);
    put_a_block(another_boot, 9);
    stop();
    orphans_sweep_ns = 300 * MS;
    metrics_cell[METRIC_LINKS_REFUSED] = 0;
    start();
    until(swept);
    ck_assert_uint_eq(metrics_cell[METRIC_SPOOL_SWEPT], 2);
    ck_assert(filed());
}
END_TEST

/* A damaged block, one that was given up, a spool.path that is no more: what was
   there is not known, and what comes after it is not sent. */
START_TEST(a_pool_with_a_hole_ends_as_bad_link) {
    exchanges(0, "a", 20);
    w->header->spooled = 1;
    adopt();
    ck_assert_uint_eq(metrics_cell[METRIC_POOLS_ORPHANED], 1);
    wait_for.acking = true;
    until(gone);
    ck_assert_uint_eq(fake_kafka.n, 0);
    ck_assert_uint_eq(metrics_cell[METRIC_LINKS_BAD], 1);
    ck_assert_uint_eq(sum().seen, 20);
    ck_assert_uint_eq(sum().reason[CAP_BAD_LINK], 20);
}
END_TEST

/* Whoever dies in between, its successor learns how many there must be. */
START_TEST(a_pool_says_how_many_of_its_blocks_the_spool_has) {
    const char *why;
    pool *p = pool_open(w->fd, UINT64_MAX, &why);
    frame_ref *held = NULL, *r;
    pool_frame f;

    ck_assert_ptr_nonnull(p);
    ck_assert_int_eq(pool_use_spool(p, sp), 0);
    pool_own(p);
    metrics_cell[METRIC_SPOOLED] = 0;
    exchanges(0, "a", 56);
    while (pool_read(p, &f) == 1) {
        r = pool_hold(p, &f);
        r->next = held;
        held = r;
    }
    pool_spill(p, 0);
    ck_assert_uint_ge(metrics_cell[METRIC_SPOOLED], 3);
    ck_assert_uint_eq(w->header->spooled, metrics_cell[METRIC_SPOOLED]);
    if (_i == 0) {
        for (; held != NULL; held = r) {
            r = held->next;
            pool_release(p, held);
        }
        ck_assert_uint_eq(w->header->spooled, 0);
        pool_free(p);
        return;
    }
    pool_free(p);
    fake_offer(w);
    if (_i == 2) { /* the first block's bytes */
        write_to("blocks", "?", 1,
                 4096 + 64 * (64 << 4) + CAP_BLOCK_HEADER + 9);
    }
    stop();
    start();
    metrics_cell[METRIC_SPOOL_DAMAGED] = 0;
    p = pool_open(w->fd, UINT64_MAX, &why);
    ck_assert_int_eq(pool_use_spool(p, sp), 0);
    ck_assert_uint_eq(pool_own(p), 2);
    ck_assert_ptr_null(pool_adopt(p));
    ck_assert_uint_eq(metrics_cell[METRIC_SPOOL_DAMAGED], _i == 2);
    ck_assert_int_eq(pool_read(p, &f), _i == 2 ? -1 : 1);
    pool_free(p);
}
END_TEST

/* Its frames have other numbers than those that the spool has of its worker. */
START_TEST(a_recovered_pool_has_nothing_in_the_spool) {
    const char *why = NULL;

    put_a_block(w->header->node_id, 3);
    put_a_block(w->header->node_id, 1000);
    stop();
    start();
    exchanges(0, "a", 20);
    fake_offer(w);
    w->header->owner_generation = 1;
    ck_assert_int_eq(links_adopt_recovered(ls, w->fd, &why), 0);
    wait_for.acking = true;
    until(gone);
    ck_assert_uint_eq(sum().captured, 20);
    ck_assert_uint_eq(metrics_cell[METRIC_SPOOL_BYTES], 0);
}
END_TEST

static void no_descriptors(bool is) {
    static struct rlimit before;
    struct rlimit now;

    if (!is) {
        ck_assert_int_eq(setrlimit(RLIMIT_NOFILE, &before), 0);
        return;
    }
    ck_assert_int_eq(getrlimit(RLIMIT_NOFILE, &before), 0);
    now = before;
    now.rlim_cur = 3;
    ck_assert_int_eq(setrlimit(RLIMIT_NOFILE, &now), 0);
}

START_TEST(what_finds_no_descriptor_is_tried_again) {
    exchanges(0, "a", 20);
    adopt();
    until(filed);
    stop();
    metrics_cell[METRIC_POOLS_ADOPTED] = 0;
    poor = no_descriptors;
    start();
    poor = NULL;
    ck_assert_uint_eq(metrics_cell[METRIC_POOLS_FILED], 0);
    ck_assert_uint_eq(files(), 1);
    until(tried_again);
    ck_assert(filed());
    ck_assert_uint_eq(files(), 1);
    ck_assert_uint_eq(metrics_cell[METRIC_POOLS_DAMAGED], 0);
}
END_TEST

#ifndef __SANITIZE_ADDRESS__ /* it needs memory itself */
static void no_memory(bool is) {
    static struct rlimit before;
    struct rlimit now;
    unsigned long pages = 0;
    FILE *f;

    if (!is) {
        (void)setrlimit(RLIMIT_AS, &before);
        return;
    }
    f = fopen("/proc/self/statm", "r");
    if (f == NULL || fscanf(f, "%lu", &pages) != 1) {
        _exit(9);
    }
    fclose(f);
    (void)getrlimit(RLIMIT_AS, &before);
    now = before;
    now.rlim_cur = pages * (rlim_t)sysconf(_SC_PAGESIZE) + (1 << 20);
    (void)setrlimit(RLIMIT_AS, &now);
    /* qemu-user promises a limit and sets none */
    if (mmap(NULL, 4 << 20, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0) !=
        MAP_FAILED) {
        _exit(10);
    }
}

/* In a process of its own, whose third descriptor is the kept pool. */
static int keep_and_take_over(void) {
    char text[64];

    snprintf(text, sizeof(text), "%d", (int)getpid());
    setenv("LISTEN_PID", text, 1);
    setenv("LISTEN_FDS", "1", 1);
    snprintf(text, sizeof(text), "pool-%.36s", w->header->node_id);
    setenv("LISTEN_FDNAMES", text, 1);
    /* what check writes to its own third one goes nowhere: it is sealed */
    if (lseek(w->fd, 0, SEEK_END) == -1 || dup2(w->fd, 3) != 3) {
        return 2;
    }
    metrics_cell[METRIC_POOLS_ADOPTED] = 0;
    poor = no_memory;
    start();
    if (metrics_cell[METRIC_POOLS_ADOPTED] != 0 ||
        metrics_cell[METRIC_POOLS_KEPT] != 1) {
        return 3;
    }
    wait_for.holds = tried_again;
    wait_for.until_ns = loop_now_ns(l) + 10 * S;
    loop_run(l, hook, NULL);
    return metrics_cell[METRIC_POOLS_ADOPTED] == 1 &&
                   metrics_cell[METRIC_POOLS_KEPT] == 0
               ? 0
               : 4;
}

START_TEST(what_finds_no_memory_is_tried_again) {
    int status;
    pid_t child;

    exchanges(0, "a", 20);
    stop(); /* each has its own, of what is there one at a time */
    child = fork();
    if (child == 0) {
        _exit(keep_and_take_over());
    }
    ck_assert_int_eq(waitpid(child, &status, 0), child);
    ck_assert_int_eq(status, 0);
    start();
}
END_TEST
#endif

/* It has hung up, and lives: it can still write what it likes there. */
START_TEST(a_worker_that_goes_on_writing_does_not_change_what_its_pool_takes) {
    exchanges(0, "a", 20);
    adopt();
    until(all_read);
    for (uint32_t i = 0; i < w->g.nblocks; i++) {
        cap_block_at(w->header, &w->g, i)->generation =
            _i == 0 ? 0x7fffff01 : 2;
    }
    until(filed);
    ck_assert_uint_gt(metrics_cell[METRIC_SPOOL_BYTES], 8 * CAP_BLOCK_SIZE);
    ck_assert_uint_lt(metrics_cell[METRIC_SPOOL_BYTES], 14 * CAP_BLOCK_SIZE);
    stop();
    start();
    fake_kafka.blind = true;
    wait_for.acking = true;
    until(gone);
    ck_assert_uint_eq(sum().captured, 20);
    ck_assert_uint_eq(metrics_cell[METRIC_SPOOL_BYTES], 0);
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
    totals_fold(t, &e, w->header->node_id);
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
    tcase_add_loop_test(
        c, a_file_of_before_the_hosts_last_start_is_lost_and_counted, 0, 2);
    tcase_add_test(c, the_spool_of_before_the_hosts_last_start_is_empty);
    tcase_add_test(c, blocks_whose_pool_never_comes_are_swept);
    tcase_add_test(c, a_pool_with_a_hole_ends_as_bad_link);
    tcase_add_loop_test(c, a_pool_says_how_many_of_its_blocks_the_spool_has, 0,
                        3);
    tcase_add_test(c, a_recovered_pool_has_nothing_in_the_spool);
    tcase_add_test(c, what_finds_no_descriptor_is_tried_again);
#ifndef __SANITIZE_ADDRESS__
    tcase_add_test(c, what_finds_no_memory_is_tried_again);
#endif
    tcase_add_loop_test(
        c, a_worker_that_goes_on_writing_does_not_change_what_its_pool_takes, 0,
        2);
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
