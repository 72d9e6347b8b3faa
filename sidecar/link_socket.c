/* The socket where workers come, and who has it. */
#define _GNU_SOURCE /* accept4 */
#include "sidecar/link_internal.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/file.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#define ACCEPT_AGAIN_NS (200 * MS)

/* its name at the keeper */
#define LISTENER "listen"

/* ---- accepting ---- */

void link_listener_ready(loop_io *io, uint32_t events) {
    links *ls = OWNER(io, links, listener);

    (void)events;
    for (int i = 0; i < 16; i++) {
        int fd = accept4(io->fd, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);

        if (fd != -1) {
            link_add_peer(ls, fd);
            continue;
        }
        if (errno == EAGAIN) {
            return;
        }
        if (errno != EINTR && errno != ECONNABORTED) {
            /* out of descriptors: it stays readable, so look away */
            metrics_cell[METRIC_LINKS_REFUSED]++; /* who has blocks may wait */
            log_limited(&ls->log_accept, LOG_LEVEL_ERROR,
                        "accept() on unix:%s failed: %s", ls->config->listen,
                        strerror(errno));
            loop_remove(ls->loop, io);
            loop_timer_set(ls->loop, &ls->accept_again, ACCEPT_AGAIN_NS);
            return;
        }
    }
}

void link_accept_again(loop_timer *timer) {
    links *ls = OWNER(timer, links, accept_again);

    if (loop_add(ls->loop, &ls->listener, EPOLLIN) != 0) {
        loop_timer_set(ls->loop, timer, ACCEPT_AGAIN_NS);
    }
}

/* ---- the socket ---- */

int link_take_lock(const char *path) {
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
int link_open_listener(const links *ls) {
    int fd = kept_listener(ls->config, ls->keeper);

    if (fd == -1) {
        fd = remove_stale(ls->config->listen) == 0 ? listen_at(ls->config) : -1;
        if (fd != -1 && ls->keeper != NULL) {
            (void)keeper_store(ls->keeper, LISTENER, fd);
        }
    }
    return fd;
}

void link_stop_listening(links *ls) {
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
