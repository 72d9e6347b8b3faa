#define _GNU_SOURCE /* accept4, struct ucred */
#include "sidecar/link.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/file.h>
#include <sys/queue.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#include "sidecar/journal.h"
#include "sidecar/log.h"
#include "sidecar/pool.h"
#include "sidecar/pool_file.h"
#include "sidecar/pool_measure.h"
#include "sidecar/step.h"
#include "wire/hello.h"

#define MS 1000000ll
#define HELLO_NS (5000 * MS)
#define ACCEPT_AGAIN_NS (200 * MS)

/* A reader that has just read looks again by itself; one that found nothing
   for some naps goes to sleep until it is rung for. */
#define NAP_NS (1 * MS)
#define NAPS 4

/* When the pool of a worker that has gone is moved to the spool, and how long
   after a failure that is tried again. */
#define MOVE_NS (1000 * MS)
#define MOVE_AGAIN_NS (5000 * MS)

/* One worker's share of a turn, so that it cannot keep others waiting. */
#define TURN_FRAMES 4096
#define TURN_BYTES (1u << 20)

/* its name at the keeper */
#define LISTENER "listen"

#define MAX_PEERS 1024
#define MAX_FDS 16 /* that a message may carry before it is cut */

enum peer_state { ACCEPTED, LINKED, ENDING, FINISHING };

typedef struct peer {
    links *links;
    enum peer_state state;
    loop_io sock; /* fd -1: closed */
    loop_io bell;
    loop_timer hello;
    uid_t uid;
    pid_t pid; /* for log lines only */
    pool *pool;
    assemble *assemble;
    int64_t read_ns;            /* when something was read last */
    enum cap_reason end_reason; /* of what it never published */
    int64_t move_ns;            /* to the spool: when it is due */
    pool_file *moving;          /* or NULL */
    TAILQ_ENTRY(peer) all;
} peer;

struct links {
    const config *config;
    loop *loop;
    ledger *ledger;
    spool *spool;     /* or NULL */
    keeper *keeper;   /* or NULL */
    journal *journal; /* or NULL */
    loop_io listener; /* fd -1: closed */
    loop_timer accept_again;
    int lock;
    bool draining;
    unsigned npeers;
    uint64_t pool_bytes;
    TAILQ_HEAD(, peer) peers;
    totals *totals;            /* or NULL: */
    metrics_exchanges retired; /* pools that are gone */
    log_limiter log_refused, log_bad, log_accept, log_move;
};

static void sock_ready(loop_io *io, uint32_t events);
static void bell_ready(loop_io *io, uint32_t events);
static void hello_late(loop_timer *timer);

#define OWNER(ptr, type, member)                                               \
    ((type *)(void *)((char *)(ptr)-offsetof(type, member)))

/* ---- totals ---- */

static void add_pool(const pool *p, metrics_exchanges *to) {
    cap_worker_counters *w = &p->header->worker;
    uint64_t handed = atomic_load_explicit(&w->handed, memory_order_relaxed);

    to->seen += atomic_load_explicit(&w->seen, memory_order_relaxed);
    to->captured += p->count.captured;
    to->truncated += p->count.truncated;
    to->doubled += p->count.doubled;
    to->pending += p->count.open;
    if (handed > p->count.taken) {
        to->pending += handed - p->count.taken;
    }
    for (int i = 0; i < CAP_REASON_CELLS; i++) {
        to->reason[i] +=
            p->count.reason[i] +
            atomic_load_explicit(&w->reason[i], memory_order_relaxed);
    }
    for (int i = 0; i < CAP_WAIT_CELLS; i++) {
        to->wait[i] += atomic_load_explicit(&w->wait[i], memory_order_relaxed);
    }
    for (int i = 0; i < CAP_WAITED_CELLS; i++) {
        to->waited[i] +=
            atomic_load_explicit(&p->header->waited[i], memory_order_relaxed);
    }
    for (int i = 0; i < CAP_REDACT_CELLS; i++) {
        to->redact[i] +=
            atomic_load_explicit(&p->header->redact[i], memory_order_relaxed);
    }
}

/*
 * A pool that goes: what its worker had seen and never handed over in frames
 * is lost with it.  `seen` is taken from the parts, so that the sum holds
 * whatever the worker left there.
 */
static void retire_pool(links *ls, const pool *p, enum cap_reason reason) {
    metrics_exchanges last = {0};
    uint64_t parts;

    add_pool(p, &last);
    last.reason[reason] += last.pending;
    parts = last.captured;
    for (int i = 0; i < CAP_REASON_CELLS; i++) {
        parts += last.reason[i];
    }
    if (last.seen > parts && reason != CAP_BAD_LINK && reason != CAP_INTERNAL) {
        last.reason[CAP_WORKER_EXIT] += last.seen - parts;
        parts = last.seen;
    }
    last.seen = parts;
    last.pending = 0;
    if (ls->totals != NULL) {
        totals_fold(ls->totals, &last, p->node_id);
    } else {
        totals_add(&ls->retired, &last);
    }
}

void links_use_totals(links *ls, totals *t) {
    ls->totals = t;
}

/* Of a frame's time, in ms; 0 where there is none. */
static uint64_t age_ms(int64_t ts_ns) {
    struct timespec now;
    int64_t age;

    clock_gettime(CLOCK_REALTIME, &now);
    age = now.tv_sec * (1000 * MS) + now.tv_nsec - ts_ns;
    return ts_ns != 0 && age > 0 ? (uint64_t)(age / MS) : 0;
}

void links_sum(void *owner, metrics_exchanges *into) {
    links *ls = owner;
    uint64_t age, oldest = 0;
    peer *p;
    pool_measures m;

    *into = ls->totals != NULL ? *totals_sum(ls->totals) : ls->retired;
    pool_measure_begin(&m);
    TAILQ_FOREACH(p, &ls->peers, all) {
        if (p->pool != NULL) {
            add_pool(p->pool, into);
            pool_measure(p->pool, &m);
        }
        if (p->assemble != NULL) {
            age = age_ms(assemble_oldest_ns(p->assemble));
            oldest = age > oldest ? age : oldest;
        }
    }
    metrics_cell[METRIC_POOL_BLOCKS] = m.blocks;
    metrics_cell[METRIC_POOL_BLOCKS_USED] = m.used;
    metrics_cell[METRIC_POOL_FULLEST] = m.fullest_permille;
    metrics_cell[METRIC_POOL_OLDEST] = oldest;
    _Static_assert(METRICS_INFINITE == UINT64_MAX, "as pool_measure.h has it");
    metrics_cell[METRIC_POOL_TIME_TO_FULL] = m.full_ms;
    metrics_cell[METRIC_SPOOL_TIME_TO_FULL] =
        metrics_cell[METRIC_SPOOL_SIZE] == 0
            ? METRICS_INFINITE
            : pool_measure_lasts(metrics_cell[METRIC_SPOOL_SIZE] -
                                     metrics_cell[METRIC_SPOOL_BYTES],
                                 m.bytes_per_s);
}

/* ---- the keeper ---- */

static void keeper_name(const pool *p, char name[KEEPER_NAME]) {
    snprintf(name, KEEPER_NAME, "pool-%.*s", (int)sizeof(p->node_id),
             p->node_id);
}

static void keep(const peer *p, int fd) {
    char name[KEEPER_NAME];

    if (p->links->keeper != NULL) {
        keeper_name(p->pool, name);
        atomic_store_explicit(&p->pool->header->outlives,
                              keeper_store(p->links->keeper, name, fd),
                              memory_order_release);
    }
}

static void unkeep(const peer *p) {
    char name[KEEPER_NAME];

    if (p->links->keeper != NULL) {
        keeper_name(p->pool, name);
        keeper_remove(p->links->keeper, name);
    }
}

static enum links_pool find_pool(const links *ls, const peer *but,
                                 uint64_t device, uint64_t inode,
                                 const char *node_id) {
    const peer *p;

    TAILQ_FOREACH(p, &ls->peers, all) {
        if (p->pool == NULL || p == but) {
            continue;
        }
        if (p->pool->inode == inode && p->pool->device == device) {
            return LINKS_MEMORY;
        }
        if (memcmp(p->pool->node_id, node_id, sizeof(p->pool->node_id)) == 0) {
            return LINKS_COPY;
        }
    }
    return LINKS_NOT;
}

enum links_pool links_has(const links *ls, uint64_t device, uint64_t inode,
                          const char *node_id) {
    return find_pool(ls, NULL, device, inode, node_id);
}

/* ---- a peer's end ---- */

static void close_sock(peer *p) {
    links *ls = p->links;

    if (p->sock.fd != -1) {
        loop_remove(ls->loop, &p->sock);
        close(p->sock.fd);
        p->sock.fd = -1;
    }
    if (p->bell.fd != -1) {
        loop_remove(ls->loop, &p->bell);
        close(p->bell.fd);
        p->bell.fd = -1;
    }
    loop_timer_cancel(ls->loop, &p->hello);
}

/* Without a socket, in the list.  NULL: out of memory. */
static peer *new_peer(links *ls) {
    peer *p = calloc(1, sizeof(*p));

    if (p != NULL) {
        p->links = ls;
        p->sock.fd = p->bell.fd = -1;
        TAILQ_INSERT_TAIL(&ls->peers, p, all);
        ls->npeers++;
    }
    return p;
}

static void count_pool_bytes(links *ls, uint64_t added, uint64_t gone) {
    ls->pool_bytes += added - gone;
    metrics_cell[METRIC_POOL_BYTES] = ls->pool_bytes;
}

static void free_peer(peer *p) {
    links *ls = p->links;

    close_sock(p);
    if (p->moving != NULL) {
        pool_file_free(p->moving);
    }
    if (p->state == ENDING || p->state == FINISHING) {
        metrics_cell[METRIC_POOLS_ORPHANED]--;
    }
    if (p->assemble != NULL) {
        assemble_free(p->assemble);
    }
    if (p->pool != NULL) {
        if (p->pool->in_file) {
            spool_uncharge(ls->spool, p->pool->charged);
            metrics_cell[METRIC_POOLS_FILED]--;
        } else {
            count_pool_bytes(ls, 0, p->pool->mapped);
        }
        pool_free(p->pool);
    }
    TAILQ_REMOVE(&ls->peers, p, all);
    ls->npeers--;
    free(p);
}

/* The link is over: nobody rings, nothing goes back. */
static void unlink_peer(peer *p, enum peer_state next) {
    if (p->state == LINKED) {
        metrics_cell[METRIC_LINKS]--;
    }
    if (p->state == ACCEPTED || p->state == LINKED) {
        metrics_cell[METRIC_POOLS_ORPHANED]++;
    }
    p->state = next;
    p->move_ns =
        loop_now_ns(p->links->loop) + (p->links->draining ? 0 : MOVE_NS);
    close_sock(p);
    pool_close(p->pool);
}

static void finish(peer *p, enum cap_reason reason) {
    p->end_reason = reason;
    p->state = FINISHING;
    assemble_end(p->assemble, reason);
}

static void bad_link(peer *p, enum cap_reason reason, const char *why) {
    log_limited(&p->links->log_bad, LOG_LEVEL_ERROR,
                "worker %d (uid %u): %s; its link is ended", (int)p->pid,
                (unsigned)p->uid, why);
    metrics_cell[METRIC_LINKS_BAD]++;
    pool_keep(p->pool);
    unkeep(p);
    unlink_peer(p, FINISHING);
    finish(p, reason);
}

/* We live, so that the pool is ours for good, whatever became of the worker. */
static void hung_up(peer *p) {
    log_info("worker %d has gone", (int)p->pid);
    pool_keep(p->pool);
    unlink_peer(p, ENDING);
}

/* Everything of a worker that has gone is settled. */
static void retire(peer *p) {
    log_info("worker %d: the last of its pool is settled: taken %" PRIu64
             " captured %" PRIu64,
             (int)p->pid, p->pool->count.taken, p->pool->count.captured);
    if (!p->pool->disowned) {
        retire_pool(p->links, p->pool, p->end_reason);
        step(STEP_FOLDED);
        atomic_store_explicit(&p->pool->header->retired, 1,
                              memory_order_release);
        step(STEP_RETIRED);
        if (p->pool->nspooled > 0 && p->links->spool != NULL) {
            (void)spool_drop(p->links->spool, p->pool->node_id); /* unread */
        }
        if (p->pool->in_file) {
            pool_file_remove(p->links->spool, p->pool);
        }
        unkeep(p);
    }
    free_peer(p);
}

/* ---- handshake ---- */

static void send_message(const peer *p, const cap_message *m) {
    /* a peer that does not take it finds out by the hang-up */
    (void)send(p->sock.fd, m, sizeof(*m), MSG_DONTWAIT | MSG_NOSIGNAL);
}

/* A message that is left unread would turn the end into a reset, and the peer
   would not see why. */
static void pass_over(const peer *p) {
    char byte;

    (void)recv(p->sock.fd, &byte, 1, MSG_DONTWAIT | MSG_TRUNC);
}

static void refuse(peer *p, enum cap_refusal code, const char *why) {
    cap_message m = {.magic = CAP_HELLO_MAGIC,
                     .kind = CAP_REFUSE,
                     .version = CAP_WIRE_VERSION,
                     .code = code};

    snprintf(m.text, sizeof(m.text), "%s", why);
    log_limited(&p->links->log_refused, LOG_LEVEL_WARN,
                "refused a peer (uid %u, pid %d): %s", (unsigned)p->uid,
                (int)p->pid, why);
    metrics_cell[METRIC_LINKS_REFUSED]++;
    if (code != 0) {
        pass_over(p);
        send_message(p, &m);
    }
    free_peer(p);
}

static void close_fds(const int *fds, unsigned n) {
    for (unsigned i = 0; i < n; i++) {
        close(fds[i]);
    }
}

/* The descriptors of a message: all are collected, so that none is left. */
static unsigned collect_fds(struct msghdr *h, int *fds) {
    unsigned n = 0;

    for (struct cmsghdr *c = CMSG_FIRSTHDR(h); c != NULL;
         c = CMSG_NXTHDR(h, c)) {
        if (c->cmsg_level != SOL_SOCKET || c->cmsg_type != SCM_RIGHTS) {
            continue;
        }
        size_t count = (c->cmsg_len - CMSG_LEN(0)) / sizeof(int);

        for (size_t i = 0; i < count; i++) {
            int fd;

            memcpy(&fd, CMSG_DATA(c) + i * sizeof(fd), sizeof(fd));
            if (n < MAX_FDS) {
                fds[n++] = fd;
            } else {
                close(fd);
            }
        }
    }
    return n;
}

/* Bytes of the message, as recvmsg; descriptors in fds[0..*nfds). */
static ssize_t receive(int sock, cap_message *m, int *fds, unsigned *nfds,
                       bool *cut) {
    union {
        struct cmsghdr align;
        char bytes[CMSG_SPACE(MAX_FDS * sizeof(int))];
    } control;
    struct iovec io = {m, sizeof(*m)};
    struct msghdr h = {.msg_iov = &io,
                       .msg_iovlen = 1,
                       .msg_control = &control,
                       .msg_controllen = sizeof(control)};
    ssize_t n = recvmsg(sock, &h, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);

    *nfds = 0;
    *cut = false;
    if (n >= 0) {
        *nfds = collect_fds(&h, fds);
        *cut = (h.msg_flags & (MSG_TRUNC | MSG_CTRUNC)) != 0;
    }
    return n;
}

/* NULL, or why it is no HELLO of ours; *code for the answer, 0: none. */
static const char *check_hello(const cap_message *m, size_t n, bool cut,
                               unsigned nfds, enum cap_refusal *code,
                               char *text, size_t size) {
    *code = 0;
    if (n < offsetof(cap_message, code) || m->magic != CAP_HELLO_MAGIC) {
        return "it is no worker (the message is not a HELLO)";
    }
    if (m->version != CAP_WIRE_VERSION) {
        *code = CAP_REFUSED_VERSION;
        snprintf(text, size,
                 "the worker's module speaks version %u of the link, this "
                 "sidecar version %u",
                 m->version, CAP_WIRE_VERSION);
        return text;
    }
    if (n != sizeof(*m) || m->kind != CAP_HELLO || cut) {
        *code = CAP_REFUSED_LAYOUT;
        return "the HELLO has a wrong size or kind";
    }
    if (nfds != CAP_FD_COUNT) {
        *code = CAP_REFUSED_LAYOUT;
        return "the HELLO has not two descriptors";
    }
    return NULL;
}

/* NULL, or why this sidecar must not have the pool once more: two owners in one
   process would be as bad as in two, and what it has in files goes by nodeId. */
static const char *is_twin(const peer *p) {
    switch (find_pool(p->links, p, p->pool->device, p->pool->inode,
                      p->pool->node_id)) {
    case LINKS_MEMORY:
        return "this sidecar has had this pool, and it stays its own";
    case LINKS_COPY:
        metrics_cell[METRIC_LINKS_BAD]++;
        return "another worker's pool has this nodeId";
    default:
        return NULL;
    }
}

/* What p->pool needs around it; NULL, or why it must not be read. */
static const char *furnish(peer *p, enum cap_refusal *code) {
    links *ls = p->links;
    const char *why;

    if (!p->pool->in_file) {
        count_pool_bytes(ls, p->pool->mapped, 0);
    }
    why = is_twin(p);
    if (why == NULL &&
        atomic_load_explicit(&p->pool->header->retired, memory_order_acquire)) {
        /* also a HELLO that a worker, dead now, sent before we began */
        why = "all of it was settled and counted";
    }
    if (why != NULL) {
        *code = CAP_REFUSED_LAYOUT;
        pool_keep(p->pool);
        return why;
    }
    *code = CAP_REFUSED_LIMIT;
    if (ls->spool != NULL && pool_use_spool(p->pool, ls->spool) != 0) {
        return pool_no_memory;
    }
    p->assemble =
        assemble_new(p->pool, ls->ledger, ls->loop, ls->config->flush_time);
    if (p->assemble == NULL) {
        return pool_no_memory;
    }
    *code = CAP_REFUSED_LAYOUT; /* of what else may be wrong */
    return NULL;
}

/* Maps the pool, and makes what reads it.  NULL, or why not. */
static const char *map_pool(peer *p, int fd, enum cap_refusal *code) {
    links *ls = p->links;
    uint64_t left = ls->config->pools_size > ls->pool_bytes
                        ? ls->config->pools_size - ls->pool_bytes
                        : 0;
    const char *why;

    p->pool = pool_open(fd, left, &why);
    if (p->pool == NULL) {
        *code = why == pool_over_limit ? CAP_REFUSED_LIMIT : CAP_REFUSED_LAYOUT;
        return why;
    }
    return furnish(p, code);
}

/* Maps the pool and hangs the doorbell in.  NULL, or why not. */
static const char *take_over(peer *p, const int *fds, enum cap_refusal *code) {
    const char *why = map_pool(p, fds[CAP_FD_POOL], code);

    if (why != NULL) {
        return why;
    }
    p->bell.fd = fds[CAP_FD_DOORBELL];
    p->bell.ready = bell_ready;
    if (loop_add(p->links->loop, &p->bell, EPOLLIN) != 0) {
        p->bell.fd = -1;
        return "the doorbell cannot be waited for";
    }
    return NULL;
}

/* The pool has had an owner before us, which is dead. */
static const char *try_adopt(peer *p) {
    journal *j = p->links->journal;
    const char *why = NULL;

    step(STEP_OWNED);
    if (j != NULL) {
        why = journal_may_adopt(j, p->pool);
    }
    if (why == NULL) {
        why = pool_adopt(p->pool);
    }
    if (why == NULL) {
        step(STEP_ADOPT_BLOCKS);
        why = assemble_adopt(p->assemble);
    }
    if (why == NULL) {
        step(STEP_ADOPTED);
        if (j != NULL && p->pool->bad != NULL &&
            journal_has_node(j, p->pool->node_id)) {
            why = p->pool->bad; /* what was synced of it is there */
        }
    }
    if (why == NULL && j != NULL) {
        why = journal_adopt_pool(j, p->pool);
    }
    if (why == NULL) {
        log_info("a worker's pool is taken over: %" PRIu32
                 " blocks hold frames",
                 p->pool->nold);
        metrics_cell[METRIC_POOLS_ADOPTED]++;
    }
    return why;
}

/* What the spool has of one that cannot be is nobody's. */
static const char *adopt(peer *p) {
    const char *why = try_adopt(p);
    spool *s = p->links->spool;

    if (why != NULL && s != NULL) {
        if (pool_may_pass(why)) {
            spool_unclaim(s, p->pool->node_id);
        } else {
            (void)spool_drop(s, p->pool->node_id);
        }
    }
    return why;
}

static void welcome(peer *p, uint32_t pid, int fd) {
    links *ls = p->links;
    cap_message m = {.magic = CAP_HELLO_MAGIC,
                     .kind = CAP_WELCOME,
                     .version = CAP_WIRE_VERSION};

    m.generation = pool_own(p->pool);
    if (m.generation == 0) {
        refuse(p, 0, "the worker has given this pool up already");
        return;
    }
    loop_timer_cancel(ls->loop, &p->hello);
    if (m.generation > 1) {
        const char *why = adopt(p);

        if (why != NULL) {
            if (!pool_may_pass(why)) {
                pool_keep(p->pool);
            }
            refuse(p, CAP_REFUSED_LAYOUT, why);
            return;
        }
    }
    keep(p, fd);
    p->state = LINKED;
    p->pid = (pid_t)pid;
    p->read_ns = loop_now_ns(ls->loop);
    metrics_cell[METRIC_LINKS]++;
    metrics_cell[METRIC_LINKS_TOTAL]++;
    log_info("worker %d (uid %u) linked: %u blocks of %u KiB, %u connections",
             (int)p->pid, (unsigned)p->uid, p->pool->geometry.nblocks,
             CAP_BLOCK_SIZE / 1024, p->pool->geometry.nslots);
    send_message(p, &m);
}

/* ---- orphans ---- */

static const char *map_orphan(peer *p, int fd, bool in_file) {
    enum cap_refusal code;
    const char *why;

    p->pool =
        in_file ? pool_open_file(fd, &why) : pool_open(fd, UINT64_MAX, &why);
    if (p->pool == NULL) {
        return why;
    }
    if (in_file && p->links->spool != NULL) {
        pool_file_charge(p->pool, p->links->spool);
        metrics_cell[METRIC_POOLS_FILED]++;
    }
    return furnish(p, &code);
}

enum origin { FROM_MEMORY, FROM_FILE, FROM_JOURNAL };

/* Nobody is at the other end: as a worker that hangs up at once. */
static int adopt_orphan(links *ls, int fd, enum origin from, const char **why) {
    peer *p = new_peer(ls);

    if (p == NULL) {
        *why = pool_no_memory;
        return -1;
    }
    *why = map_orphan(p, fd, from == FROM_FILE);
    if (*why == NULL && from == FROM_JOURNAL && ls->spool != NULL) {
        (void)spool_drop(ls->spool, p->pool->node_id);
    }
    if (*why == NULL && pool_own(p->pool) == 0) {
        *why = "its worker has given this pool up already";
    }
    if (*why == NULL) {
        p->pid = (pid_t)p->pool->header->pid;
        pool_orphan(p->pool);
        *why = adopt(p);
    }
    if (*why != NULL) {
        free_peer(p);
        return -1;
    }
    p->read_ns = loop_now_ns(ls->loop);
    unlink_peer(p, ENDING);
    return 0;
}

int links_adopt_orphan(links *ls, int fd, const char **why) {
    return adopt_orphan(ls, fd, FROM_MEMORY, why);
}

int links_adopt_file(links *ls, int fd, const char **why) {
    return adopt_orphan(ls, fd, FROM_FILE, why);
}

int links_adopt_recovered(links *ls, int fd, const char **why) {
    return adopt_orphan(ls, fd, FROM_JOURNAL, why);
}

int links_lose_file(links *ls, int fd, const char **why) {
    pool *p = pool_open_file(fd, why);

    if (p == NULL) {
        return -1;
    }
    log_error("spool: pools/%.*s is of before the host's last start, and was "
              "not synced: nobody goes on with it",
              (int)sizeof(p->node_id), p->node_id);
    metrics_cell[METRIC_POOLS_LOST]++;
    if (ls->journal == NULL || !journal_has_node(ls->journal, p->node_id)) {
        pool_adopt_counters(p);
        retire_pool(ls, p, CAP_MAYBE_LOST);
        step(STEP_FOLDED);
    }
    atomic_store_explicit(&p->header->retired, 1, memory_order_release);
    step(STEP_RETIRED);
    if (ls->spool != NULL) {
        (void)spool_drop(ls->spool, p->node_id);
        pool_file_remove(ls->spool, p);
    }
    pool_free(p);
    return 0;
}

static void greet(peer *p) {
    cap_message m = {0};
    int fds[MAX_FDS];
    unsigned nfds;
    bool cut;
    enum cap_refusal code;
    char text[CAP_TEXT_SIZE];
    const char *why;
    ssize_t n = receive(p->sock.fd, &m, fds, &nfds, &cut);

    if (n == -1 && (errno == EAGAIN || errno == EINTR)) {
        return;
    }
    if (n <= 0) {
        close_fds(fds, nfds);
        refuse(p, 0, "it hung up before its HELLO");
        return;
    }
    why = check_hello(&m, (size_t)n, cut, nfds, &code, text, sizeof(text));
    if (why == NULL) {
        why = take_over(p, fds, &code);
    }
    if (why != NULL) {
        close_fds(fds, p->bell.fd == -1 ? nfds : CAP_FD_DOORBELL);
        refuse(p, code, why);
        return;
    }
    welcome(p, m.pid, fds[CAP_FD_POOL]);
    close(fds[CAP_FD_POOL]); /* the mapping stays */
}

static void hello_late(loop_timer *timer) {
    refuse(OWNER(timer, peer, hello), 0, "no HELLO came within 5 s");
}

/* ---- events ---- */

static void sock_ready(loop_io *io, uint32_t events) {
    peer *p = OWNER(io, peer, sock);
    char byte;
    ssize_t n;

    (void)events; /* reading tells what it was */
    if (p->state == ACCEPTED) {
        greet(p);
        return;
    }
    n = recv(io->fd, &byte, 1, MSG_DONTWAIT);
    if (n > 0) {
        bad_link(p, CAP_BAD_LINK, "a message that the link does not have");
    } else if (n == 0 || (errno != EAGAIN && errno != EINTR)) {
        hung_up(p);
    }
}

/*
 * A ring only ends the loop's sleep: links_turn looks at every pool.  The
 * worker can change O_NONBLOCK of this descriptor, so recv() is told each
 * time not to wait.
 */
static void bell_ready(loop_io *io, uint32_t events) {
    peer *p = OWNER(io, peer, bell);
    char rings[512];
    ssize_t n = recv(io->fd, rings, sizeof(rings), MSG_DONTWAIT);

    (void)events; /* reading tells what it was */
    if (n == 0 || (n == -1 && errno == ECONNRESET)) {
        hung_up(p); /* it dies: this end may be closed before the other */
    } else if (n == -1 && errno != EAGAIN && errno != EINTR) {
        bad_link(p, CAP_BAD_LINK, "the doorbell is no socket");
    }
}

static bool uid_allowed(const config *c, uid_t uid) {
    for (size_t i = 0; i < c->nallowed_uids; i++) {
        if (c->allowed_uids[i] == uid) {
            return true;
        }
    }
    return c->nallowed_uids == 0;
}

static void add_peer(links *ls, int fd) {
    struct ucred cred = {.pid = 0, .uid = (uid_t)-1};
    socklen_t len = sizeof(cred);
    peer *p = new_peer(ls);

    if (p == NULL) {
        close(fd);
        return;
    }
    p->sock.fd = fd;
    p->sock.ready = sock_ready;
    p->hello.due = hello_late;
    (void)getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &cred, &len);
    p->uid = cred.uid;
    p->pid = cred.pid;
    if (loop_add(ls->loop, &p->sock, EPOLLIN | EPOLLRDHUP) != 0) {
        refuse(p, CAP_REFUSED_LIMIT, strerror(errno));
    } else if (!uid_allowed(ls->config, p->uid)) {
        refuse(p, CAP_REFUSED_USER,
               "this user is not allowed (listen.allowed_uids)");
    } else if (ls->npeers > MAX_PEERS) {
        refuse(p, CAP_REFUSED_LIMIT, "too many links");
    } else {
        loop_timer_set(ls->loop, &p->hello, HELLO_NS);
    }
}

static void listener_ready(loop_io *io, uint32_t events) {
    links *ls = OWNER(io, links, listener);

    (void)events;
    for (int i = 0; i < 16; i++) {
        int fd = accept4(io->fd, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);

        if (fd != -1) {
            add_peer(ls, fd);
            continue;
        }
        if (errno == EAGAIN) {
            return;
        }
        if (errno != EINTR && errno != ECONNABORTED) {
            /* out of descriptors: it stays readable, so look away */
            log_limited(&ls->log_accept, LOG_LEVEL_ERROR,
                        "accept() on unix:%s failed: %s", ls->config->listen,
                        strerror(errno));
            loop_remove(ls->loop, io);
            loop_timer_set(ls->loop, &ls->accept_again, ACCEPT_AGAIN_NS);
            return;
        }
    }
}

static void accept_again(loop_timer *timer) {
    links *ls = OWNER(timer, links, accept_again);

    if (loop_add(ls->loop, &ls->listener, EPOLLIN) != 0) {
        loop_timer_set(ls->loop, timer, ACCEPT_AGAIN_NS);
    }
}

/* ---- reading ---- */

/* Reads at most about `bytes`.  1: there may be more, 0: there is not, -1: the
   link is over. */
static int read_frames(peer *p, uint64_t frames, uint64_t bytes) {
    pool_frame f;
    const char *why;
    enum cap_reason reason;
    int rc;

    if (!pool_unread(p->pool) && p->pool->bad == NULL &&
        !assemble_adopting(p->assemble)) {
        return 0;
    }
    p->read_ns = loop_now_ns(p->links->loop);
    assemble_turn(p->assemble);
    for (uint64_t n = 0; n < frames; n++) {
        rc = pool_read(p->pool, &f);
        if (assemble_adopting(p->assemble) && rc != -1 &&
            (rc == 0 || !pool_is_old(p->pool, f.head.seq))) {
            assemble_adopted(p->assemble);
        }
        if (rc == 0) {
            return 0;
        }
        if (rc == -1) {
            bad_link(p, CAP_BAD_LINK, p->pool->bad);
            return -1;
        }
        reason = assemble_frame(p->assemble, &f, &why);
        if (reason != CAP_NONE) {
            bad_link(p, reason, why != NULL ? why : "out of memory");
            return -1;
        }
        if (CAP_FRAME_SPACE(f.head.size) >= bytes) {
            return 1;
        }
        bytes -= CAP_FRAME_SPACE(f.head.size);
    }
    return 1;
}

/* Everything goes out of our hands at once: nothing may be sent or counted. */
static void give_up(peer *p) {
    log_error("the pool of worker %d has another owner; it is left alone",
              (int)p->pid);
    metrics_cell[METRIC_LINKS_BAD]++;
    unlink_peer(p, FINISHING);
    assemble_discard(p->assemble);
}

/* 0: look again at once; -1: rung for; else ns. */
static int64_t linked_turn(peer *p) {
    enum cap_reader_state state;
    int rc;

    if (!pool_owned(p->pool)) {
        give_up(p);
        return 0;
    }
    if (p->links->draining) {
        return -1;
    }
    pool_awake(p->pool);
    rc = read_frames(p, TURN_FRAMES, TURN_BYTES);
    if (rc != 0) {
        if (rc == 1) {
            assemble_relieve(p->assemble);
        }
        return 0;
    }
    assemble_relieve(p->assemble);
    state = loop_now_ns(p->links->loop) - p->read_ns < NAPS * NAP_NS
                ? CAP_READER_NAPPING
                : CAP_READER_ASLEEP;
    if (pool_sleep(p->pool, state)) {
        return 0;
    }
    return state == CAP_READER_NAPPING ? NAP_NS : -1;
}

/* ---- to the spool ---- */

/* 0: it is there; 1: more is to do; -1: not now. */
static int move(peer *p) {
    links *ls = p->links;
    int rc = -1;

    if (p->moving == NULL) {
        pool_orphan(p->pool);
        p->moving = pool_file_begin(p->pool);
    }
    if (p->moving != NULL) {
        rc = pool_file_step(p->moving);
    }
    if (rc == -1) {
        log_limited(&ls->log_move, LOG_LEVEL_ERROR,
                    "the pool of worker %d, which has gone, stays in memory: "
                    "spool.path %s: %s",
                    (int)p->pid, ls->config->spool_path, strerror(errno));
        metrics_cell[METRIC_SPOOL_FULL] += errno == ENOSPC;
    } else if (rc == 0) {
        log_info("the pool of worker %d, which has gone, is in the spool: "
                 "%" PRIu32 " blocks",
                 (int)p->pid, p->pool->charged);
        count_pool_bytes(ls, 0, p->pool->mapped);
        metrics_cell[METRIC_POOLS_FILED]++;
        unkeep(p);
    }
    if (rc != 1 && p->moving != NULL) {
        pool_file_free(p->moving);
        p->moving = NULL;
    }
    return rc;
}

static bool may_move(const peer *p) {
    return p->state == FINISHING && p->links->spool != NULL &&
           !p->pool->in_file && p->end_reason == CAP_WORKER_EXIT &&
           pool_owned(p->pool) && !assemble_empty(p->assemble);
}

static int64_t finishing_turn(peer *p) {
    int64_t left = p->move_ns - loop_now_ns(p->links->loop);

    if (!may_move(p)) {
        return -1;
    }
    if (left > 0) {
        return left;
    }
    switch (move(p)) {
    case 1:
        return 0;
    case -1:
        p->move_ns = loop_now_ns(p->links->loop) + MOVE_AGAIN_NS;
        return MOVE_AGAIN_NS;
    default:
        return -1;
    }
}

static int64_t ending_turn(peer *p) {
    int rc = read_frames(p, TURN_FRAMES, TURN_BYTES);

    if (rc == 0) {
        finish(p, CAP_WORKER_EXIT);
        return finishing_turn(p);
    }
    return rc == 1 ? 0 : -1;
}

static int64_t peer_turn(peer *p) {
    switch (p->state) {
    case LINKED:
        return linked_turn(p);
    case ENDING:
        return ending_turn(p);
    case FINISHING:
        return finishing_turn(p);
    default:
        return -1;
    }
}

/* A worker that does not read its rings is told once; when it does, it looks
   at everything. */
static void ring_workers(links *ls) {
    static const char ring = 1;
    peer *p;

    TAILQ_FOREACH(p, &ls->peers, all) {
        if (p->state == LINKED && p->pool->rings) {
            p->pool->rings = false;
            (void)send(p->bell.fd, &ring, 1, MSG_DONTWAIT | MSG_NOSIGNAL);
        }
    }
}

int64_t links_turn(links *ls) {
    peer *p, *next;
    int64_t sleep_ns = -1;

    ring_workers(ls); /* for the reports of this turn */
    for (p = TAILQ_FIRST(&ls->peers); p != NULL; p = next) {
        next = TAILQ_NEXT(p, all);
        int64_t ns = peer_turn(p);

        if (ns >= 0 && (sleep_ns < 0 || ns < sleep_ns)) {
            sleep_ns = ns;
        }
    }
    return sleep_ns;
}

/* What the journal has of it would be counted again. */
static bool may_retire(const peer *p) {
    return p->links->journal == NULL || p->pool->disowned ||
           journal_has_forgotten(p->links->journal, p->pool);
}

void links_retire(links *ls) {
    peer *p, *next;

    ring_workers(ls); /* for what the pump has settled by itself */
    for (p = TAILQ_FIRST(&ls->peers); p != NULL; p = next) {
        next = TAILQ_NEXT(p, all);
        if (p->state == FINISHING && assemble_empty(p->assemble) &&
            may_retire(p)) {
            retire(p);
        }
    }
}

/* ---- the socket ---- */

static int take_lock(const char *path) {
    char name[256];
    int fd;

    snprintf(name, sizeof(name), "%s.lock", path);
    fd = open(name, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);
    if (fd == -1) {
        log_error("%s cannot be opened: %s", name, strerror(errno));
        return -1;
    }
    if (flock(fd, LOCK_EX | LOCK_NB) != 0) {
        if (errno == EWOULDBLOCK) {
            log_error("another capture-sidecar owns unix:%s", path);
        } else {
            log_error("%s cannot be locked: %s", name, strerror(errno));
        }
        close(fd);
        return -1;
    }
    return fd;
}

/* Only with the lock: what is there belongs to nobody who lives. */
static int remove_stale(const char *path) {
    struct stat st;

    if (lstat(path, &st) == -1) {
        return errno == ENOENT ? 0 : -1;
    }
    if (!S_ISSOCK(st.st_mode)) {
        errno = EEXIST;
        return -1;
    }
    return unlink(path);
}

/* Nobody can connect before listen(), when owner and mode are right. */
static int listen_at(const config *c) {
    struct sockaddr_un at = {.sun_family = AF_UNIX};
    mode_t mask;
    int rc;
    int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);

    if (fd == -1) {
        return -1;
    }
    memcpy(at.sun_path, c->listen, strlen(c->listen) + 1);
    mask = umask(0177);
    rc = bind(fd, (struct sockaddr *)&at, sizeof(at));
    umask(mask);
    if (rc != 0 || lchown(c->listen, c->listen_owner, c->listen_group) != 0 ||
        chmod(c->listen, c->listen_mode) != 0 || listen(fd, 64) != 0) {
        int error = errno;

        close(fd);
        errno = error;
        return -1;
    }
    return fd;
}

/* The one that listens there already: who has come meanwhile waits in it.  -1:
   there is none. */
static int kept_listener(const config *c, keeper *k) {
    struct sockaddr_un at = {.sun_family = AF_UNIX};
    socklen_t len = sizeof(at);
    struct stat st;
    int fd = k != NULL ? keeper_named(k, LISTENER) : -1;

    if (fd == -1) {
        return -1;
    }
    if (getsockname(fd, (struct sockaddr *)&at, &len) == 0 &&
        at.sun_family == AF_UNIX && strcmp(at.sun_path, c->listen) == 0 &&
        lstat(c->listen, &st) == 0 && S_ISSOCK(st.st_mode) &&
        lchown(c->listen, c->listen_owner, c->listen_group) == 0 &&
        chmod(c->listen, c->listen_mode) == 0) {
        return fd;
    }
    keeper_remove(k, LISTENER);
    close(fd);
    return -1;
}

/* -1 with errno. */
static int open_listener(const links *ls) {
    int fd = kept_listener(ls->config, ls->keeper);

    if (fd == -1) {
        fd = remove_stale(ls->config->listen) == 0 ? listen_at(ls->config) : -1;
        if (fd != -1 && ls->keeper != NULL) {
            (void)keeper_store(ls->keeper, LISTENER, fd);
        }
    }
    return fd;
}

links *links_open(const config *c, loop *l, ledger *lg, spool *s) {
    return links_open_kept(c, l, lg, s, NULL);
}

links *links_open_kept(const config *c, loop *l, ledger *lg, spool *s,
                       keeper *k) {
    links *ls = calloc(1, sizeof(*ls));

    if (ls == NULL ||
        strlen(c->listen) >= sizeof(((struct sockaddr_un *)0)->sun_path)) {
        log_error("out of memory, or the socket's path is too long");
        free(ls);
        return NULL;
    }
    ls->config = c;
    ls->loop = l;
    ls->ledger = lg;
    ls->spool = s;
    ls->keeper = k;
    ls->accept_again.due = accept_again;
    TAILQ_INIT(&ls->peers);
    ls->lock = take_lock(c->listen);
    if (ls->lock == -1) {
        free(ls);
        return NULL;
    }
    ls->listener.ready = listener_ready;
    ls->listener.fd = open_listener(ls);
    if (ls->listener.fd == -1 || loop_add(l, &ls->listener, EPOLLIN) != 0) {
        log_error("listening on unix:%s failed: %s", c->listen,
                  errno == EEXIST ? "the path exists and is no socket"
                                  : strerror(errno));
        close(ls->lock);
        free(ls);
        return NULL;
    }
    return ls;
}

void links_use_journal(links *ls, journal *j) {
    ls->journal = j;
}

static void stop_listening(links *ls) {
    if (ls->listener.fd != -1) {
        if (ls->keeper != NULL) {
            keeper_remove(ls->keeper, LISTENER);
        }
        unlink(ls->config->listen);
        loop_timer_cancel(ls->loop, &ls->accept_again);
        loop_remove(ls->loop, &ls->listener);
        close(ls->listener.fd);
        ls->listener.fd = -1;
    }
}

void links_drain(links *ls) {
    peer *p, *next;

    stop_listening(ls);
    for (p = TAILQ_FIRST(&ls->peers); p != NULL; p = next) {
        next = TAILQ_NEXT(p, all);
        if (p->state == ACCEPTED) {
            free_peer(p);
        } else if (p->state == LINKED) {
            /* bounded: the worker goes on writing */
            if (read_frames(p, UINT64_MAX, p->pool->mapped) != -1) {
                assemble_flush(p->assemble);
            }
        } else {
            p->move_ns = loop_now_ns(ls->loop);
        }
    }
    ls->draining = true;
}

bool links_settled(const links *ls) {
    const peer *p;

    TAILQ_FOREACH(p, &ls->peers, all) {
        if (p->state != LINKED) {
            return false;
        }
    }
    return true;
}

void links_close(links *ls) {
    peer *p;

    stop_listening(ls);
    while ((p = TAILQ_FIRST(&ls->peers)) != NULL) {
        while (may_move(p) && move(p) == 1) {
        }
        free_peer(p);
    }
    close(ls->lock);
    free(ls);
}
