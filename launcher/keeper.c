#define _GNU_SOURCE 1

#include "launcher/keeper.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include "sidecar/log.h"

#define MOST 2048
#define NAME 64

extern char **environ;

typedef struct {
    char name[NAME];
    int fd;
    dev_t device;
    ino_t inode;
} kept;

struct keeper {
    loop *loop;
    loop_io sock;
    char path[108];
    kept kept[MOST];
    unsigned n;
    child_gift gift;
    int fds[MOST];
    char **env;
    char *vars[4];
};

#define FROM(at) ((keeper *)(void *)((char *)(at)-offsetof(keeper, sock)))

static void drop(keeper *k, unsigned i) {
    close(k->kept[i].fd);
    k->kept[i] = k->kept[--k->n];
}

static void remove_named(keeper *k, const char *name) {
    for (unsigned i = k->n; i-- > 0;)
        if (strcmp(k->kept[i].name, name) == 0)
            drop(k, i);
}

/* `fd` is ours from here on. */
static void store(keeper *k, const char *name, int fd) {
    struct stat st;
    bool bad = k->n == MOST || *name == '\0' || strchr(name, ':') != NULL ||
               fstat(fd, &st) == -1;
    for (unsigned i = 0; i < k->n && !bad; i++)
        bad = k->kept[i].device == st.st_dev && k->kept[i].inode == st.st_ino;
    if (bad) {
        close(fd);
        return;
    }
    kept *new = &k->kept[k->n++];
    *new = (kept){.fd = fd, .device = st.st_dev, .inode = st.st_ino};
    snprintf(new->name, sizeof(new->name), "%s", name);
}

/* Lines NAME=VALUE. */
static void take(keeper *k, char *text, int fd) {
    const char *name = "";
    bool stores = false, removes = false;
    for (char *line; (line = strsep(&text, "\n")) != NULL;) {
        stores |= strcmp(line, "FDSTORE=1") == 0;
        removes |= strcmp(line, "FDSTOREREMOVE=1") == 0;
        if (strncmp(line, "FDNAME=", 7) == 0)
            name = line + 7;
    }
    if (removes)
        remove_named(k, name);
    if (stores && fd != -1)
        store(k, name, fd);
    else if (fd != -1)
        close(fd);
}

static int only_fd(struct msghdr *h) {
    int fd = -1;
    for (struct cmsghdr *c = CMSG_FIRSTHDR(h); c != NULL; c = CMSG_NXTHDR(h, c))
        if (c->cmsg_level == SOL_SOCKET && c->cmsg_type == SCM_RIGHTS &&
            c->cmsg_len == CMSG_LEN(sizeof(fd)))
            memcpy(&fd, CMSG_DATA(c), sizeof(fd));
    return fd;
}

static void told(loop_io *io, uint32_t events) {
    keeper *k = FROM(io);
    (void)events;
    for (;;) {
        char text[512];
        union {
            struct cmsghdr align;
            char bytes[CMSG_SPACE(sizeof(int))];
        } control;
        struct iovec v = {text, sizeof(text) - 1};
        struct msghdr h = {.msg_iov = &v,
                           .msg_iovlen = 1,
                           .msg_control = control.bytes,
                           .msg_controllen = sizeof(control.bytes)};
        ssize_t n = recvmsg(io->fd, &h, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
        if (n == -1)
            return;
        text[n] = '\0';
        take(k, text, only_fd(&h));
    }
}

/* Only this user may write to it. */
static int listen_at(keeper *k, const rundir *d) {
    struct sockaddr_un at = {.sun_family = AF_UNIX};
    snprintf(k->path, sizeof(k->path), "%s/keeper.sock", d->path);
    snprintf(at.sun_path, sizeof(at.sun_path), "%s", k->path);
    int fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (fd == -1)
        return -1;
    (void)unlink(k->path);
    mode_t mask = umask(0177);
    int rc = bind(fd, (struct sockaddr *)&at, sizeof(at));
    umask(mask);
    if (rc == -1) {
        int error = errno;
        close(fd);
        errno = error;
        return -1;
    }
    return fd;
}

keeper *keeper_open(loop *l, const rundir *d) {
    keeper *k = calloc(1, sizeof(*k));
    if (k == NULL)
        return NULL;
    k->loop = l;
    k->sock = (loop_io){.fd = listen_at(k, d), .ready = told};
    if (k->sock.fd == -1 || loop_add(l, &k->sock, EPOLLIN) == -1) {
        free(k);
        return NULL;
    }
    return k;
}

static void forget_gift(keeper *k) {
    for (size_t i = 0; i < sizeof(k->vars) / sizeof(*k->vars); i++) {
        free(k->vars[i]);
        k->vars[i] = NULL;
    }
    free(k->env);
    k->env = NULL;
    k->gift = (child_gift){0};
}

void keeper_close(keeper *k) {
    if (k == NULL)
        return;
    while (k->n > 0)
        drop(k, 0);
    loop_remove(k->loop, &k->sock);
    close(k->sock.fd);
    (void)unlink(k->path);
    forget_gift(k);
    free(k);
}

static char *names_of(const keeper *k) {
    char *text = NULL;
    size_t len;
    FILE *out = open_memstream(&text, &len);
    if (out == NULL)
        return NULL;
    fputs("LISTEN_FDNAMES=", out);
    for (unsigned i = 0; i < k->n; i++)
        fprintf(out, "%s%s", i > 0 ? ":" : "", k->kept[i].name);
    fclose(out);
    return text;
}

static bool is_ours(const char *var) {
    return strncmp(var, "NOTIFY_SOCKET=", 14) == 0 ||
           strncmp(var, "FDSTORE=", 8) == 0 || strncmp(var, "LISTEN_", 7) == 0;
}

/* The environment, with room for CHILD_PID_VAR that the child fills in. */
static char **environment(keeper *k) {
    size_t n = 0, at = 0;
    while (environ[n] != NULL)
        n++;
    char **env = calloc(n + 6, sizeof(*env));
    if (env == NULL)
        return NULL;
    for (size_t i = 0; i < n; i++)
        if (!is_ours(environ[i]))
            env[at++] = environ[i];
    for (size_t i = 0; i < sizeof(k->vars) / sizeof(*k->vars); i++)
        env[at++] = k->vars[i];
    return env;
}

const child_gift *keeper_gift(keeper *k) {
    forget_gift(k);
    if (asprintf(&k->vars[0], "NOTIFY_SOCKET=%s", k->path) == -1 ||
        asprintf(&k->vars[1], "FDSTORE=%d", MOST) == -1 ||
        asprintf(&k->vars[2], "LISTEN_FDS=%u", k->n) == -1 ||
        (k->vars[3] = names_of(k)) == NULL ||
        (k->env = environment(k)) == NULL) {
        log_error("capture-proxy: out of memory: the sidecar gets nothing of "
                  "what was kept");
        forget_gift(k);
        return NULL;
    }
    for (unsigned i = 0; i < k->n; i++)
        k->fds[i] = k->kept[i].fd;
    k->gift = (child_gift){.env = k->env, .fds = k->fds, .nfds = k->n};
    return &k->gift;
}
