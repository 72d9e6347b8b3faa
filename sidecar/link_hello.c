/* The handshake (wire/hello.h). */
#define _GNU_SOURCE /* struct ucred */
#include "sidecar/link_internal.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#define HELLO_NS (5000 * MS)
#define MAX_PEERS 1024
#define MAX_FDS 16 /* that a message may carry before it is cut */

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
    link_free_peer(p);
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
    return link_furnish(p, code);
}

/* Maps the pool and hangs the doorbell in.  NULL, or why not. */
static const char *take_over(peer *p, const int *fds, enum cap_refusal *code) {
    const char *why = map_pool(p, fds[CAP_FD_POOL], code);

    if (why != NULL) {
        return why;
    }
    p->bell.fd = fds[CAP_FD_DOORBELL];
    p->bell.ready = link_bell_ready;
    if (loop_add(p->links->loop, &p->bell, EPOLLIN) != 0) {
        p->bell.fd = -1;
        return "the doorbell cannot be waited for";
    }
    return NULL;
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
        const char *why = link_adopt(p);

        if (why != NULL) {
            if (!pool_may_pass(why)) {
                pool_keep(p->pool);
            }
            refuse(p, CAP_REFUSED_LAYOUT, why);
            return;
        }
    }
    link_keep(p, fd);
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

void link_greet(peer *p) {
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

void link_hello_late(loop_timer *timer) {
    refuse(OWNER(timer, peer, hello), 0, "no HELLO came within 5 s");
}

/* ---- who comes ---- */

static bool uid_allowed(const config *c, uid_t uid) {
    for (size_t i = 0; i < c->nallowed_uids; i++) {
        if (c->allowed_uids[i] == uid) {
            return true;
        }
    }
    return c->nallowed_uids == 0;
}

void link_add_peer(links *ls, int fd) {
    struct ucred cred = {.pid = 0, .uid = (uid_t)-1};
    socklen_t len = sizeof(cred);
    peer *p = link_new_peer(ls);

    if (p == NULL) {
        close(fd);
        return;
    }
    p->sock.fd = fd;
    p->sock.ready = link_sock_ready;
    p->hello.due = link_hello_late;
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
