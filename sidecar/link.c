#include "sidecar/link_internal.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "sidecar/journal.h"
#include "sidecar/step.h"

/* A reader that has just read looks again by itself; one that found nothing
   for some naps goes to sleep until it is rung for. */
#define NAP_NS (1 * MS)
#define NAPS 4

/* One worker's share of a turn, so that it cannot keep others waiting. */
#define TURN_FRAMES 4096
#define TURN_BYTES (1u << 20)

/* ---- which pools are here ---- */

enum links_pool link_find_pool(const links *ls, const peer *but,
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
    return link_find_pool(ls, NULL, device, inode, node_id);
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
peer *link_new_peer(links *ls) {
    peer *p = calloc(1, sizeof(*p));

    if (p != NULL) {
        p->links = ls;
        p->sock.fd = p->bell.fd = -1;
        TAILQ_INSERT_TAIL(&ls->peers, p, all);
        ls->npeers++;
    }
    return p;
}

void link_count_bytes(links *ls, uint64_t added, uint64_t gone) {
    ls->pool_bytes += added - gone;
    metrics_cell[METRIC_POOL_BYTES] = ls->pool_bytes;
}

void link_free_peer(peer *p) {
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
            link_count_bytes(ls, 0, p->pool->mapped);
        }
        pool_free(p->pool);
    }
    TAILQ_REMOVE(&ls->peers, p, all);
    ls->npeers--;
    free(p);
}

/* The link is over: nobody rings, nothing goes back. */
void link_end(peer *p, enum peer_state next) {
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
    link_unkeep(p);
    link_end(p, FINISHING);
    finish(p, reason);
}

/* We live, so that the pool is ours for good, whatever became of the worker. */
static void hung_up(peer *p) {
    log_info("worker %d has gone", (int)p->pid);
    pool_keep(p->pool);
    link_end(p, ENDING);
}

/* Everything of a worker that has gone is settled. */
static void retire(peer *p) {
    log_info("worker %d: the last of its pool is settled: taken %" PRIu64
             " captured %" PRIu64,
             (int)p->pid, p->pool->count.taken, p->pool->count.captured);
    if (!p->pool->disowned) {
        link_count_gone(p->links, p->pool, p->end_reason);
        step(STEP_FOLDED);
        atomic_store_explicit(&p->pool->header->retired, 1,
                              memory_order_release);
        step(STEP_RETIRED);
        if (p->pool->nspooled > 0 && p->links->spool != NULL) {
            (void)spool_drop(p->links->spool, p->pool->node_id); /* unread */
        }
        if (p->pool->in_file) {
            (void)pool_file_remove(p->links->spool, p->pool);
        }
        link_unkeep(p);
    }
    link_free_peer(p);
}

/* ---- events ---- */

void link_sock_ready(loop_io *io, uint32_t events) {
    peer *p = OWNER(io, peer, sock);
    char byte;
    ssize_t n;

    (void)events; /* reading tells what it was */
    if (p->state == ACCEPTED) {
        link_greet(p);
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
void link_bell_ready(loop_io *io, uint32_t events) {
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
    link_end(p, FINISHING);
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

/* ---- turns ---- */

static int64_t ending_turn(peer *p) {
    int rc = read_frames(p, TURN_FRAMES, TURN_BYTES);

    if (rc == 0) {
        finish(p, CAP_WORKER_EXIT);
        return link_finishing_turn(p);
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
        return link_finishing_turn(p);
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

/* ---- life ---- */

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
    ls->accept_again.due = link_accept_again;
    TAILQ_INIT(&ls->peers);
    ls->lock = link_take_lock(c->listen);
    if (ls->lock == -1) {
        free(ls);
        return NULL;
    }
    ls->listener.ready = link_listener_ready;
    ls->listener.fd = link_open_listener(ls);
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

void links_drain(links *ls) {
    peer *p, *next;

    link_stop_listening(ls);
    for (p = TAILQ_FIRST(&ls->peers); p != NULL; p = next) {
        next = TAILQ_NEXT(p, all);
        if (p->state == ACCEPTED) {
            link_free_peer(p);
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

    link_stop_listening(ls);
    while ((p = TAILQ_FIRST(&ls->peers)) != NULL) {
        while (link_may_move(p) && link_move(p) == 1) {
        }
        link_free_peer(p);
    }
    close(ls->lock);
    free(ls);
}
