/*
 * A reader that keeps nothing: it takes the worker's part of the sidecar,
 * reads every frame and gives its block back at once.  So what capture costs
 * the worker can be seen without what records and Kafka cost.
 *
 *     bench-drain PATH     a socket to listen on; one worker at a time
 *
 * The reading itself is sidecar/pool_read.c, as in the sidecar.
 */
#include <errno.h>
#include <poll.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#include "sidecar/pool.h"
#include "wire/hello.h"

#define POOL_LIMIT (16ull << 30)

/* How long the reader naps between two looks, so that reads batch, and how
   often it finds nothing before it sleeps and wants to be woken. */
#define NAP_NS 500000
#define NAPS 20

static int die(const char *what) {
    perror(what);
    exit(1);
}

static int listen_on(const char *path) {
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);

    if (fd == -1 || strlen(path) >= sizeof(address.sun_path)) {
        die("socket");
    }
    strcpy(address.sun_path, path);
    if (bind(fd, (struct sockaddr *)&address, sizeof(address)) == -1 ||
        listen(fd, 4) == -1) {
        die(path);
    }
    return fd;
}

/* HELLO with its descriptors.  0, or -1. */
static int take_hello(int fd, int fds[CAP_FD_COUNT]) {
    cap_message hello;
    union {
        struct cmsghdr align;
        char space[CMSG_SPACE(CAP_FD_COUNT * sizeof(int))];
    } control;
    struct iovec iov = {&hello, sizeof(hello)};
    struct msghdr m = {.msg_iov = &iov,
                       .msg_iovlen = 1,
                       .msg_control = &control,
                       .msg_controllen = sizeof(control)};
    struct cmsghdr *c;

    if (recvmsg(fd, &m, MSG_CMSG_CLOEXEC) != (ssize_t)sizeof(hello) ||
        hello.kind != CAP_HELLO || (c = CMSG_FIRSTHDR(&m)) == NULL ||
        c->cmsg_len != CMSG_LEN(CAP_FD_COUNT * sizeof(int))) {
        return -1;
    }
    memcpy(fds, CMSG_DATA(c), CAP_FD_COUNT * sizeof(int));
    return 0;
}

static int welcome(int fd, uint64_t generation) {
    cap_message m = {.magic = CAP_HELLO_MAGIC,
                     .kind = CAP_WELCOME,
                     .version = CAP_WIRE_VERSION,
                     .generation = generation};

    return send(fd, &m, sizeof(m), MSG_NOSIGNAL) == (ssize_t)sizeof(m) ? 0 : -1;
}

static void take(pool *p, const cap_frame *f) {
    bool cut = f->type == CAP_FRAME_END && f->code != CAP_END_COMPLETE;

    if (f->flags & CAP_FRAME_BEGIN) {
        pool_count_taken(p);
    }
    switch (f->type) {
    case CAP_FRAME_END:
        pool_count_captured(p, cut);
        break;
    case CAP_FRAME_DROP:
        pool_count_reason(p, f->code % CAP_REASON_CELLS);
        break;
    case CAP_FRAME_ABANDON:
        if (p->count.open > 0) {
            pool_count_reason(p, f->code % CAP_REASON_CELLS);
        }
        break;
    }
    if (cut || f->type == CAP_FRAME_ABANDON || f->type == CAP_FRAME_CLOSE) {
        pool_return_slot(p, f->slot, f->slot_generation);
    }
}

/* 1: read something, 0: nothing, -1: the pool is bad. */
static int drain(pool *p) {
    pool_frame f;
    int rc, some = 0;

    while ((rc = pool_read(p, &f)) == 1) {
        take(p, &f.head);
        some = 1;
    }
    return rc == -1 ? -1 : some;
}

/* Waits for the doorbell.  False when the worker has hung up. */
static bool sleep_until_rung(int fd, int doorbell) {
    struct pollfd wait[2] = {{fd, POLLIN, 0}, {doorbell, POLLIN, 0}};
    uint64_t rings;

    if (poll(wait, 2, -1) == -1 && errno != EINTR) {
        return false;
    }
    if (wait[1].revents & POLLIN) {
        (void)!read(doorbell, &rings, sizeof(rings));
    }
    return wait[0].revents == 0;
}

static void serve(int fd, pool *p, int doorbell) {
    static const struct timespec nap = {0, NAP_NS};
    int idle = 0, rc;

    while ((rc = drain(p)) != -1) {
        idle = rc == 1 ? 0 : idle + 1;
        if (idle <= NAPS) {
            if (!pool_sleep(p, CAP_READER_NAPPING)) {
                nanosleep(&nap, NULL);
            }
            pool_awake(p);
        } else if (!pool_sleep(p, CAP_READER_ASLEEP)) {
            if (!sleep_until_rung(fd, doorbell)) {
                return;
            }
            pool_awake(p);
        }
    }
    fprintf(stderr, "bench-drain: %s\n", p->bad);
}

int main(int argc, char **argv) {
    int listener;

    if (argc != 2) {
        fprintf(stderr, "usage: bench-drain PATH\n");
        return 2;
    }
    listener = listen_on(argv[1]);
    for (;;) {
        int fds[CAP_FD_COUNT];
        int fd = accept(listener, NULL, NULL);
        const char *why;
        pool *p;

        if (fd == -1) {
            die("accept");
        }
        if (take_hello(fd, fds) == 0) {
            p = pool_open(fds[CAP_FD_POOL], POOL_LIMIT, &why);
            if (p == NULL) {
                fprintf(stderr, "bench-drain: %s\n", why);
            } else {
                if (welcome(fd, pool_own(p)) == 0) {
                    serve(fd, p, fds[CAP_FD_DOORBELL]);
                }
                pool_free(p);
            }
            close(fds[CAP_FD_POOL]);
            close(fds[CAP_FD_DOORBELL]);
        }
        close(fd);
    }
}
