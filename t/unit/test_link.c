/*
 * sidecar/link with real sockets, descriptors and the real loop, in front of
 * a fake Kafka: who is let in, that nothing a peer sends ends more than its
 * own link or leaves a descriptor behind, that a sleeping reader is woken,
 * and that no exchange of a worker that goes is left uncounted.
 */
#define _GNU_SOURCE /* memfd_create, in fake_worker.c */
#include <check.h>
#include <dirent.h>
#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include "sidecar/link.h"
#include "t/unit/fake_kafka.c"
#include "t/unit/fake_worker.c"
#include "wire/hello.h"

#define S 1000000000ll
#define MS 1000000ll

typedef struct {
    fake_worker *w;
    int sock;
    int bell, bell_offer; /* the worker's end, and what it hands over */
    cap_message answer;
} client;

static char dir[] = "/tmp/test_link.XXXXXX";
static char path[64], lock_path[80];
static config conf;
static loop *l;
static ledger *lg;
static links *ls;
static metrics_exchanges sum;

static void open_all(void) {
    static config_property broker = {.name = "bootstrap.servers",
                                     .value = "fake:1"};

    ck_assert_ptr_nonnull(mkdtemp(dir));
    snprintf(path, sizeof(path), "%s/s", dir);
    snprintf(lock_path, sizeof(lock_path), "%s.lock", path);
    conf = (config){.listen = path,
                    .listen_mode = 0620,
                    .listen_owner = (uid_t)-1,
                    .listen_group = (gid_t)-1,
                    .record_size = 1048076,
                    .inflight_size = 64 << 20,
                    .pools_size = 1 << 30,
                    .flush_time = S,
                    .drain_time = S};
    conf.kafka[conf.nkafka++] = broker;
    l = loop_new();
    lg = ledger_new(&conf, l, &assemble_events);
    ls = links_open(&conf, l, lg, NULL);
    ck_assert_ptr_nonnull(ls);
}

static void close_all(void) {
    ledger_stop(lg, 0);
    links_close(ls);
    ledger_free(lg);
    loop_free(l);
    unlink(lock_path);
    ck_assert_int_eq(rmdir(dir), 0);
    ck_assert_uint_eq(metrics_cell[METRIC_POOL_BYTES], 0);
    ck_assert_uint_eq(metrics_cell[METRIC_CONNECTIONS], 0);
}

/* ---- the loop, until something holds ---- */

static struct {
    bool (*holds)(void);
    int64_t until_ns;
    bool asleep; /* it may wait for ever */
    bool stay_asleep;
    bool acking; /* every record, as it comes */
    unsigned turns;
    unsigned want; /* records */
} wait = {.want = 1};

static void ack_all(void) {
    for (unsigned i = 0; i < fake_kafka.n; i++) {
        if (!fake_kafka.records[i].reported) {
            fake_report(i, KAFKA_ACKED);
        }
    }
}

static int64_t hook(void *owner) {
    int64_t sleep_ns = links_turn(ls);

    (void)owner;
    ledger_pump(lg);
    if (wait.acking) {
        ack_all();
    }
    links_retire(ls);
    wait.turns++;
    wait.asleep = sleep_ns == -1;
    if (wait.holds() || loop_now_ns(l) > wait.until_ns) {
        loop_stop(l);
    }
    if (sleep_ns == -1) {
        return wait.stay_asleep ? 2 * S : 5 * MS;
    }
    return sleep_ns;
}

static void run_until(bool (*holds)(void), const char *what) {
    wait.holds = holds;
    wait.turns = 0;
    wait.until_ns = loop_now_ns(l) + 7 * S;
    loop_run(l, hook, NULL);
    ck_assert_msg(holds(), "%s: waited in vain", what);
}

#define until(cond) run_until(cond, #cond)

static bool turned(void) {
    return wait.turns >= 4;
}

static bool linked(void) {
    return metrics_cell[METRIC_LINKS] > 0;
}

static bool none_linked(void) {
    return metrics_cell[METRIC_LINKS] == 0;
}

static bool refused(void) {
    return metrics_cell[METRIC_LINKS_REFUSED] > 0;
}

static bool bad(void) {
    return metrics_cell[METRIC_LINKS_BAD] > 0;
}

static bool produced(void) {
    return fake_kafka.n >= wait.want;
}

static bool asleep(void) {
    return wait.asleep;
}

static bool gone(void) {
    return metrics_cell[METRIC_POOL_BYTES] == 0;
}

/* ---- clients ---- */

static int connect_to(void) {
    struct sockaddr_un at = {.sun_family = AF_UNIX};
    int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);

    strcpy(at.sun_path, path);
    ck_assert_int_eq(connect(fd, (struct sockaddr *)&at, sizeof(at)), 0);
    return fd;
}

static void send_fds(int sock, const void *data, size_t len, const int *fds,
                     size_t n) {
    char control[CMSG_SPACE(32 * sizeof(int))] = {0};
    struct iovec io = {(void *)data, len};
    struct msghdr h = {.msg_iov = &io, .msg_iovlen = 1};

    if (n > 0) {
        struct cmsghdr *c;

        h.msg_control = control;
        h.msg_controllen = CMSG_SPACE(n * sizeof(int));
        c = CMSG_FIRSTHDR(&h);
        c->cmsg_level = SOL_SOCKET;
        c->cmsg_type = SCM_RIGHTS;
        c->cmsg_len = CMSG_LEN(n * sizeof(int));
        memcpy(CMSG_DATA(c), fds, n * sizeof(int));
    }
    ck_assert_int_eq(sendmsg(sock, &h, MSG_NOSIGNAL), (ssize_t)len);
}

static cap_message hello(void) {
    return (cap_message){.magic = CAP_HELLO_MAGIC,
                         .kind = CAP_HELLO,
                         .version = CAP_WIRE_VERSION,
                         .pid = (uint32_t)getpid()};
}

static void send_hello(client *c) {
    cap_message m = hello();
    int fds[] = {c->w->fd, c->bell_offer};

    send_fds(c->sock, &m, sizeof(m), fds, 2);
}

static client new_client(uint32_t nblocks) {
    client c = {.w = fake_worker_new(nblocks, 8), .sock = connect_to()};

    int bell[2];

    ck_assert_int_eq(socketpair(AF_UNIX,
                                SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0,
                                bell),
                     0);
    c.bell = bell[0];
    c.bell_offer = bell[1];
    return c;
}

/* 1 with c->answer, 0: it hung up, -1: nothing is there. */
static int receive_answer(client *c) {
    ssize_t n = recv(c->sock, &c->answer, sizeof(c->answer), MSG_DONTWAIT);

    if (n == -1 && errno != EAGAIN) {
        return 0;
    }
    return n > 0 ? 1 : (int)n;
}

static client link_client(void) {
    client c = new_client(8);

    metrics_cell[METRIC_LINKS] = 0;
    send_hello(&c);
    until(linked);
    ck_assert_int_eq(receive_answer(&c), 1);
    ck_assert_uint_eq(c.answer.kind, CAP_WELCOME);
    ck_assert_uint_eq(c.answer.generation, 1);
    close(c.bell_offer);
    c.bell_offer = -1;
    return c;
}

static void hang_up(client *c) {
    close(c->sock);
    close(c->bell);
    if (c->bell_offer != -1) {
        close(c->bell_offer);
    }
    c->sock = c->bell = c->bell_offer = -1;
}

static void free_client(client *c) {
    if (c->sock != -1) {
        hang_up(c);
    }
    fake_worker_free(c->w);
}

static void ring(client *c) {
    uint64_t one = 1;

    ck_assert_int_eq(send(c->bell, &one, sizeof(one), MSG_DONTWAIT),
                     sizeof(one));
}

static unsigned open_fds(void) {
    DIR *d = opendir("/proc/self/fd");
    unsigned n = 0;

    while (readdir(d) != NULL) {
        n++;
    }
    closedir(d);
    return n;
}

static uint64_t parts(void) {
    uint64_t n = sum.captured + sum.pending;

    links_sum(ls, &sum);
    n = sum.captured + sum.pending;
    for (int i = 0; i < CAP_REASON_CELLS; i++) {
        n += sum.reason[i];
    }
    return n;
}

/* ---- who is let in ---- */

START_TEST(a_worker_is_welcomed_and_its_frames_become_records) {
    client c = link_client();

    fake_take_slot(c.w, 0, "a");
    fake_exchange(c.w, 0, "GET", "200");
    ring(&c);
    until(produced);
    ck_record(0, "a#1 R(GET) E(14,711) W(200)");
    fake_report(0, KAFKA_ACKED);
    ck_assert_uint_eq(parts(), 1);
    ck_assert_uint_eq(sum.seen, 1);
    ck_assert_uint_eq(sum.captured, 1);
    wait.acking = true;
    free_client(&c);
    until(gone);
    ck_assert_uint_eq(parts(), 1);
    ck_assert_uint_eq(sum.seen, 1);
}
END_TEST

/* Each a message that must be refused, with the code of the answer. */
START_TEST(what_is_no_hello_is_refused_and_leaves_nothing_behind) {
    client good = link_client();
    unsigned before = open_fds();
    client c = new_client(8);
    cap_message m = hello();
    int fds[32], n = 2;
    size_t size = sizeof(m);
    unsigned code = CAP_REFUSED_LAYOUT;

    for (int i = 0; i < 32; i++) {
        fds[i] = i == 0 ? c.w->fd : c.bell_offer;
    }
    switch (_i) {
    case 0:
        m.magic++;
        code = 0;
        break;
    case 1:
        size = 3;
        code = 0;
        break;
    case 2:
        m.version = 7;
        code = CAP_REFUSED_VERSION;
        break;
    case 3: /* another version's HELLO may have another size */
        m.version = 7;
        size = 8;
        code = CAP_REFUSED_VERSION;
        break;
    case 4:
        m.kind = CAP_WELCOME;
        break;
    case 5:
        size--;
        break;
    case 6:
        n = 0;
        break;
    case 7:
        n = 1;
        break;
    case 8:
        n = 3;
        break;
    case 9:
        n = 32;
        break;
    case 10: /* the wrong way round */
        fds[0] = c.bell_offer;
        fds[1] = c.w->fd;
        break;
    case 11: /* what cannot be waited for */
        fds[1] = c.w->fd;
        break;
    case 12:
        c.w->header->geometry.nslots = 0;
        break;
    }
    send_fds(c.sock, &m, size, fds, (size_t)n);
    until(refused);
    ck_assert_int_eq(receive_answer(&c), code != 0);
    if (code != 0) {
        ck_assert_uint_eq(c.answer.kind, CAP_REFUSE);
        ck_assert_uint_eq(c.answer.code, code);
        ck_assert_int_eq(receive_answer(&c), 0);
    }
    if (code == CAP_REFUSED_VERSION) {
        ck_assert_ptr_nonnull(strstr(c.answer.text, "version 7"));
        char ours[16];

        snprintf(ours, sizeof(ours), "version %u", CAP_WIRE_VERSION);
        ck_assert_ptr_nonnull(strstr(c.answer.text, ours));
    }
    free_client(&c);
    ck_assert_uint_eq(open_fds(), before);

    fake_take_slot(good.w, 0, "good");
    fake_exchange(good.w, 0, "GET", "200");
    ring(&good);
    until(produced);
    free_client(&good);
}
END_TEST

START_TEST(a_hello_must_come_in_time) {
    client c = new_client(8);

    until(refused);
    ck_assert_int_eq(receive_answer(&c), 0);
    free_client(&c);
}
END_TEST

START_TEST(other_users_are_refused) {
    client c = new_client(8);

    conf.allowed_uids[conf.nallowed_uids++] = getuid() + 1;
    until(refused);
    ck_assert_int_eq(receive_answer(&c), 1);
    ck_assert_uint_eq(c.answer.code, CAP_REFUSED_USER);
    free_client(&c);
}
END_TEST

START_TEST(pools_together_are_bounded) {
    client a = new_client(8), b = new_client(8);

    conf.pools_size = a.w->g.total + b.w->g.total - 1;
    send_hello(&a);
    until(linked);
    send_hello(&b);
    until(refused);
    ck_assert_int_eq(receive_answer(&b), 1);
    ck_assert_uint_eq(b.answer.code, CAP_REFUSED_LIMIT);
    hang_up(&a);
    until(gone);
    free_client(&b);
    b = new_client(8);
    send_hello(&b);
    until(linked);
    free_client(&a);
    free_client(&b);
}
END_TEST

/* Its first link may be unsettled yet; a pool of our own is none of a dead
   owner's. */
START_TEST(a_pool_that_is_or_was_ours_is_not_taken_again) {
    client a = link_client(), again = a;
    int bell[2];

    if (_i > 0) {
        fake_take_slot(a.w, 0, "a");
        fake_exchange(a.w, 0, "GET", "200"); /* 1: nobody acknowledges it */
        wait.acking = _i == 2;
        hang_up(&a);
        until(none_linked);
        ck_assert_uint_eq(atomic_load(&a.w->header->kept), 1);
    }
    if (_i == 2) {
        until(gone);
    }
    ck_assert_int_eq(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0, bell),
                     0);
    again.sock = connect_to();
    again.bell = bell[0];
    again.bell_offer = bell[1];
    send_hello(&again);
    until(refused);
    ck_assert_int_eq(receive_answer(&again), 1);
    ck_assert_uint_eq(again.answer.kind, CAP_REFUSE);
    ck_assert_uint_eq(atomic_load(&a.w->header->owner_generation), 1);
    ck_assert_uint_eq(atomic_load(&a.w->header->kept), 1);
    ck_assert_uint_eq(parts(), _i > 0);
    ck_assert_uint_eq(sum.seen, _i > 0);
    hang_up(&again);
    free_client(&a);
}
END_TEST

/* ---- the socket ---- */

START_TEST(one_sidecar_owns_a_socket) {
    ck_assert_ptr_null(links_open(&conf, l, lg, NULL));
    client c = link_client(); /* the first is undisturbed */
    free_client(&c);
}
END_TEST

START_TEST(a_stale_socket_is_replaced_and_other_files_are_not) {
    struct stat st;
    FILE *f;

    ck_assert_int_eq(stat(path, &st), 0);
    ck_assert_uint_eq(st.st_mode & 0777, 0620);
    links_close(ls);
    ck_assert_int_eq(stat(path, &st), -1);

    int fd = socket(AF_UNIX, SOCK_SEQPACKET, 0);
    struct sockaddr_un at = {.sun_family = AF_UNIX};
    strcpy(at.sun_path, path);
    ck_assert_int_eq(bind(fd, (struct sockaddr *)&at, sizeof(at)), 0);
    close(fd);
    ls = links_open(&conf, l, lg, NULL);
    ck_assert_ptr_nonnull(ls);
    links_close(ls);

    f = fopen(path, "w");
    fclose(f);
    ck_assert_ptr_null(links_open(&conf, l, lg, NULL));
    ck_assert_int_eq(stat(path, &st), 0);
    unlink(path);
    ls = links_open(&conf, l, lg, NULL);
    ck_assert_ptr_nonnull(ls);
}
END_TEST

/* ---- waking ---- */

START_TEST(an_idle_reader_sleeps_and_a_ring_wakes_it) {
    client c = link_client();

    fake_take_slot(c.w, 0, "a");
    until(asleep);
    wait.stay_asleep = true;
    ck_assert_uint_eq(atomic_load(&c.w->header->reader_state),
                      CAP_READER_ASLEEP);
    for (unsigned i = 0; i < 3; i++) {
        int64_t start = loop_now_ns(l);

        fake_exchange(c.w, 0, "GET", "200");
        ring(&c);
        wait.want = i + 1;
        until(produced);
        ck_assert_int_lt(loop_now_ns(l) - start, S);
        ack_all();
        wait.asleep = false;
        until(asleep);
    }
    free_client(&c);
}
END_TEST

/* Were it not read, the socket would be full after some hundred rings, and
   no wake would come any more. */
START_TEST(a_doorbell_rings_as_often_as_it_must) {
    client c = link_client();

    fake_take_slot(c.w, 0, "a");
    for (unsigned i = 0; i < 500; i++) {
        ring(&c);
        until(turned);
    }
    until(asleep);
    fake_exchange(c.w, 0, "GET", "200");
    ring(&c);
    wait.want = 1;
    until(produced);
    ack_all();
    free_client(&c);
}
END_TEST

/* It dies, and its descriptors are closed one after the other. */
START_TEST(a_worker_whose_doorbell_goes_first_is_read_to_the_end) {
    client c = link_client();

    fake_take_slot(c.w, 0, "a");
    fake_exchange(c.w, 0, "GET", "200");
    close(c.bell);
    c.bell = -1;
    wait.acking = true;
    until(gone);
    ck_assert_uint_ge(fake_kafka.n, 1);
    ck_assert_uint_eq(metrics_cell[METRIC_LINKS_BAD], 0);
    free_client(&c);
}
END_TEST

START_TEST(a_reader_that_has_just_read_naps) {
    client c = link_client();

    fake_take_slot(c.w, 0, "a");
    fake_exchange(c.w, 0, "GET", "200");
    ring(&c);
    until(produced);
    ck_assert_uint_ne(atomic_load(&c.w->header->reader_state),
                      CAP_READER_ASLEEP);
    ack_all();
    fake_exchange(c.w, 0, "GET", "200"); /* nobody rings */
    wait.want = 2;
    wait.stay_asleep = true;
    until(produced);
    until(asleep);
    free_client(&c);
}
END_TEST

/* ---- a link's end ---- */

START_TEST(what_a_worker_published_is_read_after_it_has_gone) {
    client c = link_client();

    fake_take_slot(c.w, 0, "a");
    for (unsigned i = 0; i < 100; i++) {
        fake_exchange(c.w, 0, "GET", "200");
    }
    fake_read(c.w, 0, CAP_FRAME_BEGIN, "half");
    /* counted, and never written */
    atomic_fetch_add(&c.w->header->worker.seen, 4);
    atomic_fetch_add(&c.w->header->worker.handed, 2);
    atomic_fetch_add(&c.w->header->worker.reason[CAP_RULE], 1);
    hang_up(&c);
    wait.acking = true;
    until(gone);
    ck_assert(none_linked());
    ck_assert_uint_eq(parts(), 105);
    ck_assert_uint_eq(sum.seen, 105);
    ck_assert_uint_eq(sum.captured, 100);
    ck_assert_uint_eq(sum.reason[CAP_RULE], 1);
    ck_assert_uint_eq(sum.reason[CAP_WORKER_EXIT], 4);
    ck_assert_uint_eq(sum.pending, 0);
    free_client(&c);
}
END_TEST

/* Of a worker that nobody will hear of again: as if it had hung up. */
START_TEST(an_orphan_is_read_to_the_end_and_its_connections_are_closed) {
    fake_worker *w = fake_worker_new(16, 16);
    const char *why;

    fake_take_slot(w, 0, "a");
    fake_take_slot(w, 1, "b");
    fake_exchange(w, 0, "GET", "200");
    fake_read(w, 1, CAP_FRAME_BEGIN, "PUT");
    fake_eom(w, 1, 0);
    fake_offer(w);
    atomic_store(&w->header->owner_generation, 1);
    ck_assert_int_eq(links_adopt_orphan(ls, w->fd, &why), 0);
    ck_assert_int_eq(links_adopt_orphan(ls, w->fd, &why), -1);
    ck_assert_str_eq(why,
                     "this sidecar has had this pool, and it stays its own");
    wait.acking = true;
    until(gone);
    ck_assert_uint_eq(fake_kafka.n, 2);
    ck_record(0, "a#1! R(GET) E(14,711) W(200) C");
    ck_record(1, "b#1! R(PUT) E(14,711) X(capture: worker ended) C");
    ck_assert_uint_eq(atomic_load(&w->header->owner_generation), 2);
    ck_assert_uint_eq(parts(), 2);
    ck_assert_uint_eq(sum.captured, 1);
    ck_assert_uint_eq(sum.reason[CAP_RESPONSE] + sum.reason[CAP_WORKER_EXIT],
                      1);

    atomic_store(&w->header->retired, 0);
    atomic_store(&w->header->owner_generation, CAP_POOL_WITHDRAWN);
    ck_assert_int_eq(links_adopt_orphan(ls, w->fd, &why), -1);
    ck_assert_str_eq(why, "its worker has given this pool up already");
    fake_worker_free(w);
}
END_TEST

/* The spool and the files of pools go by it. */
START_TEST(a_nodeid_is_one_workers) {
    client first = link_client();
    client c = new_client(8);
    uint64_t bad_before = metrics_cell[METRIC_LINKS_BAD];

    memcpy(c.w->header->node_id, first.w->header->node_id, CAP_NODE_ID_SIZE);
    send_hello(&c);
    until(refused);
    ck_assert_int_eq(receive_answer(&c), 1);
    ck_assert_uint_eq(c.answer.kind, CAP_REFUSE);
    ck_assert_uint_eq(c.answer.code, CAP_REFUSED_LAYOUT);
    ck_assert_str_eq(c.answer.text, "another worker's pool has this nodeId");
    ck_assert_uint_eq(metrics_cell[METRIC_LINKS_BAD], bad_before + 1);
    /* so that it begins a new one */
    ck_assert_uint_eq(atomic_load(&c.w->header->kept), 1);

    fake_take_slot(first.w, 0, "a");
    fake_exchange(first.w, 0, "GET", "200");
    ring(&first);
    until(produced);
    ck_record(0, "a#1 R(GET) E(14,711) W(200)");
    free_client(&c);
    free_client(&first);
}
END_TEST

START_TEST(a_bad_worker_ends_its_own_link_alone_and_is_counted) {
    client good = link_client();
    client c = link_client();
    cap_frame *f;

    fake_take_slot(c.w, 0, "a");
    fake_read(c.w, 0, CAP_FRAME_BEGIN, "1");
    fake_frame(c.w, 0, CAP_FRAME_READ, CAP_FRAME_BEGIN, 0, "2", 1);
    f = (cap_frame *)(void *)((char *)cap_block_at(c.w->header, &c.w->g,
                                                   (uint32_t)c.w->block) +
                              CAP_BLOCK_HEADER + CAP_FRAME_SPACE(1));
    if (_i == 0) {
        f->size = 1000000;
    } else if (_i == 1) {
        f->seq++;
    } /* 2: the grammar */
    fake_publish(c.w);
    ring(&c);
    until(bad);
    ck_assert_int_eq(receive_answer(&c), 0);
    until(turned);
    ck_assert_uint_eq(parts(), 2);
    ck_assert_uint_eq(sum.reason[CAP_BAD_LINK], 2);
    /* so what it can still publish comes to an end */
    ck_assert_uint_eq(atomic_load(&c.w->header->return_tail), 0);

    fake_take_slot(good.w, 0, "good");
    fake_exchange(good.w, 0, "GET", "200");
    ring(&good);
    until(produced);
    ck_record(0, "good#1 R(GET) E(14,711) W(200)");
    free_client(&good);
    free_client(&c);
}
END_TEST

START_TEST(a_message_after_the_hello_ends_the_link) {
    client c = link_client();
    unsigned before = open_fds();
    int fds[] = {c.w->fd, c.w->fd};

    send_fds(c.sock, "x", 1, fds, 2);
    until(bad);
    ck_assert_int_eq(receive_answer(&c), 0);
    until(gone);
    ck_assert_uint_eq(open_fds(), before - 2); /* socket and doorbell */
    free_client(&c);
}
END_TEST

/* ---- orphans ---- */

/* The sidecar is gone, and the next one is there. */
static void next_sidecar(void) {
    ledger_stop(lg, 0);
    links_close(ls);
    ledger_free(lg);
    for (unsigned i = 0; i < fake_kafka.n; i++) {
        fake_kafka.records[i].copy = NULL; /* it is freed */
    }
    lg = ledger_new(&conf, l, &assemble_events);
    ls = links_open(&conf, l, lg, NULL);
    ck_assert_ptr_nonnull(ls);
}

/* A copy in a file, as far as a pool may be there. */
static int file_of(const fake_worker *w) {
    char name[] = "/tmp/test_link_pool.XXXXXX";
    int fd = mkstemp(name);

    ck_assert_int_eq(unlink(name), 0);
    ck_assert_int_eq(write(fd, w->header, w->g.total), (ssize_t)w->g.total);
    return fd;
}

/* With what it had read, and what nobody had read yet. */
START_TEST(the_pool_of_a_dead_worker_is_settled_by_the_next_sidecar) {
    client c = link_client();
    unsigned before;
    const char *why;
    int fd;

    fake_take_slot(c.w, 0, "a");
    fake_take_slot(c.w, 1, "b");
    fake_exchange(c.w, 0, "GET", "200");
    ring(&c);
    until(produced);
    ack_all();
    fake_exchange(c.w, 0, "GET 2", "404");
    fake_read(c.w, 1, CAP_FRAME_BEGIN, "half");
    hang_up(&c);
    next_sidecar();
    before = open_fds();
    fd = _i == 0 ? c.w->fd : file_of(c.w);
    ck_assert_int_eq(
        (_i == 0 ? links_adopt_orphan : links_adopt_file)(ls, fd, &why), 0);
    ck_assert_int_eq(
        (_i == 0 ? links_adopt_orphan : links_adopt_file)(ls, fd, &why), -1);
    wait.acking = true;
    until(gone);
    ck_record(1, "a#2!+1 R(GET 2) E(14,711) W(404) C");
    ck_assert_uint_eq(fake_kafka.n, 2); /* nothing of b was in the topic */
    ck_assert_uint_eq(parts(), 3);
    ck_assert_uint_eq(sum.seen, 3);
    ck_assert_uint_eq(sum.captured, 2);
    ck_assert_uint_eq(sum.reason[CAP_WORKER_EXIT], 1);
    ck_assert_uint_eq(open_fds(), before + (unsigned)_i);
    if (_i == 1) {
        close(fd);
    }
    free_client(&c);
}
END_TEST

START_TEST(what_is_no_orphan_is_not_taken) {
    client c = link_client();
    int fd = file_of(c.w);
    const char *why;

    hang_up(&c);
    next_sidecar();
    ck_assert_int_eq(links_adopt_orphan(ls, fd, &why), -1);
    ck_assert_str_eq(why, "the pool is not a memfd");
    ck_assert_int_eq(ftruncate(fd, (off_t)c.w->g.total - 1), 0);
    ck_assert_int_eq(links_adopt_file(ls, fd, &why), -1);
    ck_assert_str_eq(why, "the memory is smaller than its layout");
    ck_assert(gone());
    close(fd);
    free_client(&c);
}
END_TEST

START_TEST(a_pool_that_another_owns_is_left_alone) {
    client c = link_client();

    fake_take_slot(c.w, 0, "a");
    fake_exchange(c.w, 0, "GET", "200");
    atomic_fetch_add(&c.w->header->owner_generation, 1);
    ring(&c);
    until(gone);
    ck_assert_uint_eq(fake_kafka.n, 0);
    ck_assert_uint_eq(atomic_load(&c.w->header->return_tail), 0);
    free_client(&c);
}
END_TEST

START_TEST(a_drain_takes_what_is_there_and_no_more) {
    client c = link_client();

    fake_take_slot(c.w, 0, "a");
    fake_take_slot(c.w, 1, "b");
    fake_exchange(c.w, 0, "GET", "200");
    fake_read(c.w, 1, CAP_FRAME_BEGIN, "half");
    links_drain(ls);
    ck_assert(links_settled(ls));
    fake_exchange(c.w, 0, "late", "200");
    ring(&c);
    until(produced);
    ck_assert_uint_eq(fake_kafka.n, 2);
    ck_record(0, "a#1 R(GET) E(14,711) W(200)");
    ck_record(1, "b#1 R(half)");
    fake_report(0, KAFKA_ACKED);
    fake_report(1, KAFKA_ACKED);
    ck_assert(ledger_idle(lg));
    ck_assert_uint_eq(parts(), 3);
    ck_assert_uint_eq(sum.pending, 2);
    ck_assert_int_eq(access(path, F_OK), -1);
    free_client(&c);
}
END_TEST

int main(void) {
    Suite *s = suite_create("link");
    TCase *t = tcase_create("link");
    SRunner *sr;
    int failed;

    tcase_add_checked_fixture(t, open_all, close_all);
    tcase_set_timeout(t, 30);
    tcase_add_test(t, a_worker_is_welcomed_and_its_frames_become_records);
    tcase_add_loop_test(
        t, what_is_no_hello_is_refused_and_leaves_nothing_behind, 0, 13);
    tcase_add_test(t, a_hello_must_come_in_time);
    tcase_add_test(t, other_users_are_refused);
    tcase_add_test(t, pools_together_are_bounded);
    tcase_add_loop_test(t, a_pool_that_is_or_was_ours_is_not_taken_again, 0, 3);
    tcase_add_test(t, one_sidecar_owns_a_socket);
    tcase_add_test(t, a_stale_socket_is_replaced_and_other_files_are_not);
    tcase_add_test(t, an_idle_reader_sleeps_and_a_ring_wakes_it);
    tcase_add_test(t, a_doorbell_rings_as_often_as_it_must);
    tcase_add_test(t, a_worker_whose_doorbell_goes_first_is_read_to_the_end);
    tcase_add_test(t, a_reader_that_has_just_read_naps);
    tcase_add_test(t, what_a_worker_published_is_read_after_it_has_gone);
    tcase_add_test(t,
                   an_orphan_is_read_to_the_end_and_its_connections_are_closed);
    tcase_add_loop_test(t, a_bad_worker_ends_its_own_link_alone_and_is_counted,
                        0, 3);
    tcase_add_test(t, a_nodeid_is_one_workers);
    tcase_add_test(t, a_message_after_the_hello_ends_the_link);
    tcase_add_loop_test(
        t, the_pool_of_a_dead_worker_is_settled_by_the_next_sidecar, 0, 2);
    tcase_add_test(t, what_is_no_orphan_is_not_taken);
    tcase_add_test(t, a_pool_that_another_owns_is_left_alone);
    tcase_add_test(t, a_drain_takes_what_is_there_and_no_more);
    suite_add_tcase(s, t);

    sr = srunner_create(s);
    srunner_run_all(sr, CK_NORMAL);
    failed = srunner_ntests_failed(sr);
    srunner_free(sr);
    return failed == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
