#define _GNU_SOURCE /* F_DUPFD_CLOEXEC */
#include "sidecar/keeper.h"

#include <errno.h>
#include <fcntl.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/queue.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "sidecar/log.h"

#define FIRST_FD 3
#define MOST_FDS 8192
#define AGAIN_NS 20000000ll
#define MOST_WAITING 4096

typedef struct message {
    char text[2 * KEEPER_NAME];
    int fd; /* a copy, or -1 */
    STAILQ_ENTRY(message) next;
} message;

struct kept {
    char name[KEEPER_NAME];
    int fd; /* -1: it is taken */
};

struct keeper {
    int sock; /* -1: nobody keeps */
    struct sockaddr_un to;
    socklen_t to_len;
    bool keeps;
    struct kept *kept; /* what was kept, and is not taken yet */
    unsigned nkept;
    loop *loop;
    loop_timer again;
    unsigned nwaiting;
    STAILQ_HEAD(, message) waiting;
    log_limiter log_failed;
};

static void say_again(loop_timer *timer);

/* ---- what was kept ---- */

static long number(const char *name) {
    const char *text = getenv(name);

    return text != NULL ? strtol(text, NULL, 10) : 0;
}

static void take_kept(keeper *k) {
    const char *given = getenv("LISTEN_FDNAMES");
    long n = number("LISTEN_FDS");
    char *names = given != NULL ? strdup(given) : NULL, *rest = names;

    if (number("LISTEN_PID") == (long)getpid() && n > 0 && n <= MOST_FDS) {
        k->kept = calloc((size_t)n, sizeof(*k->kept));
    }
    for (; k->kept != NULL && k->nkept < n; k->nkept++) {
        const char *name = rest != NULL ? strsep(&rest, ":") : NULL;

        k->kept[k->nkept].fd = FIRST_FD + (int)k->nkept;
        if (fcntl(k->kept[k->nkept].fd, F_SETFD, FD_CLOEXEC) == -1) {
            /* its number will be another's, which must not be taken for it */
            log_warn("LISTEN_FDS = %ld, but descriptor %d is not open", n,
                     k->kept[k->nkept].fd);
            k->kept[k->nkept].fd = -1;
        }
        snprintf(k->kept[k->nkept].name, KEEPER_NAME, "%s",
                 name != NULL ? name : "");
    }
    free(names);
    unsetenv("LISTEN_PID");
    unsetenv("LISTEN_FDS");
    unsetenv("LISTEN_FDNAMES");
}

static int take(keeper *k, unsigned i) {
    int fd = k->kept[i].fd;

    k->kept[i].fd = -1;
    return fd;
}

int keeper_named(keeper *k, const char *name) {
    for (unsigned i = 0; i < k->nkept; i++) {
        if (k->kept[i].fd != -1 && strcmp(k->kept[i].name, name) == 0) {
            return take(k, i);
        }
    }
    return -1;
}

int keeper_next(keeper *k, char name[KEEPER_NAME]) {
    for (unsigned i = 0; i < k->nkept; i++) {
        if (k->kept[i].fd != -1) {
            memcpy(name, k->kept[i].name, KEEPER_NAME);
            return take(k, i);
        }
    }
    return -1;
}

/* ---- telling it ---- */

/* An abstract name begins with @. */
static int open_socket(keeper *k) {
    const char *at = getenv("NOTIFY_SOCKET");
    size_t len = at != NULL ? strlen(at) : 0;

    if (len < 2 || len >= sizeof(k->to.sun_path) ||
        (at[0] != '/' && at[0] != '@')) {
        return -1;
    }
    k->to.sun_family = AF_UNIX;
    memcpy(k->to.sun_path, at, len);
    if (at[0] == '@') {
        k->to.sun_path[0] = '\0';
    }
    k->to_len = (socklen_t)(offsetof(struct sockaddr_un, sun_path) + len +
                            (at[0] == '/'));
    return socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
}

keeper *keeper_open(void) {
    keeper *k = calloc(1, sizeof(*k));

    if (k == NULL) {
        log_error("out of memory");
        return NULL;
    }
    STAILQ_INIT(&k->waiting);
    k->again.due = say_again;
    take_kept(k);
    k->sock = open_socket(k);
    k->keeps = k->sock != -1 && number("FDSTORE") > 0;
    return k;
}

void keeper_use_loop(keeper *k, loop *l) {
    k->loop = l;
}

static void free_message(message *m) {
    if (m->fd != -1) {
        close(m->fd);
    }
    free(m);
}

void keeper_close(keeper *k) {
    message *m;

    if (k == NULL) {
        return;
    }
    while ((m = STAILQ_FIRST(&k->waiting)) != NULL) {
        STAILQ_REMOVE_HEAD(&k->waiting, next);
        free_message(m);
    }
    if (k->loop != NULL) {
        loop_timer_cancel(k->loop, &k->again);
    }
    for (unsigned i = 0; i < k->nkept; i++) {
        if (k->kept[i].fd != -1) {
            close(k->kept[i].fd);
        }
    }
    if (k->sock != -1) {
        close(k->sock);
    }
    free(k->kept);
    free(k);
}

/* 0, or -1 with errno. */
static int send_text(const keeper *k, const char *text, int fd) {
    union {
        struct cmsghdr align;
        char bytes[CMSG_SPACE(sizeof(int))];
    } control = {.bytes = {0}};
    struct iovec io = {(void *)(uintptr_t)text, strlen(text)};
    struct msghdr h = {.msg_name = (void *)(uintptr_t)&k->to,
                       .msg_namelen = k->to_len,
                       .msg_iov = &io,
                       .msg_iovlen = 1};

    if (fd != -1) {
        struct cmsghdr *c;

        h.msg_control = control.bytes;
        h.msg_controllen = sizeof(control.bytes);
        c = CMSG_FIRSTHDR(&h);
        c->cmsg_level = SOL_SOCKET;
        c->cmsg_type = SCM_RIGHTS;
        c->cmsg_len = CMSG_LEN(sizeof(int));
        memcpy(CMSG_DATA(c), &fd, sizeof(fd));
    }
    return sendmsg(k->sock, &h, MSG_NOSIGNAL | MSG_DONTWAIT) == -1 ? -1 : 0;
}

static void failed(keeper *k) {
    log_limited(&k->log_failed, LOG_LEVEL_WARN,
                "what keeps descriptors (NOTIFY_SOCKET) cannot be told: %s",
                strerror(errno));
}

static void wait_for_it(keeper *k, const char *text, int fd) {
    message *m = k->nwaiting < MOST_WAITING ? calloc(1, sizeof(*m)) : NULL;

    if (m == NULL) {
        errno = ENOBUFS;
        failed(k);
        return;
    }
    snprintf(m->text, sizeof(m->text), "%s", text);
    m->fd = fd != -1 ? fcntl(fd, F_DUPFD_CLOEXEC, FIRST_FD) : -1;
    STAILQ_INSERT_TAIL(&k->waiting, m, next);
    k->nwaiting++;
    if (k->loop != NULL && k->again.heap == 0) {
        loop_timer_set(k->loop, &k->again, AGAIN_NS);
    }
}

/* In order.  True: it has been told. */
static bool tell(keeper *k, const char *text, int fd) {
    if (k->sock == -1) {
        return false;
    }
    if (STAILQ_EMPTY(&k->waiting)) {
        if (send_text(k, text, fd) == 0) {
            return true;
        }
        if (errno != EAGAIN && errno != EINTR) {
            failed(k);
            return false;
        }
    }
    wait_for_it(k, text, fd);
    return false;
}

static void say_again(loop_timer *timer) {
    keeper *k = (keeper *)(void *)((char *)timer - offsetof(keeper, again));
    message *m;

    while ((m = STAILQ_FIRST(&k->waiting)) != NULL) {
        if (send_text(k, m->text, m->fd) != 0) {
            if (errno == EAGAIN || errno == EINTR) {
                loop_timer_set(k->loop, timer, AGAIN_NS);
                return;
            }
            failed(k);
        }
        STAILQ_REMOVE_HEAD(&k->waiting, next);
        k->nwaiting--;
        free_message(m);
    }
}

void keeper_say(keeper *k, const char *state) {
    (void)tell(k, state, -1);
}

bool keeper_store(keeper *k, const char *name, int fd) {
    char text[2 * KEEPER_NAME];

    snprintf(text, sizeof(text), "FDSTORE=1\nFDNAME=%s", name);
    return tell(k, text, fd) && k->keeps;
}

void keeper_remove(keeper *k, const char *name) {
    char text[2 * KEEPER_NAME];

    snprintf(text, sizeof(text), "FDSTOREREMOVE=1\nFDNAME=%s", name);
    (void)tell(k, text, -1);
}
