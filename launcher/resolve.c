#define _GNU_SOURCE 1

#include "launcher/resolve.h"

#include <arpa/inet.h>
#include <errno.h>
#include <netdb.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <time.h>
#include <unistd.h>

#include "sidecar/log.h"

#define KEEP_MS 60000

struct resolve {
    loop_io io;
    char host[256];
    int64_t interval_ms;
    void (*changed)(void *owner, const char *addresses);
    void *owner;

    addresses in_use; /* the thread's own */
    bool failing;

    pthread_mutex_t lock;
    char text[RESOLVE_MAX * 47 + 1];
};

/* ---- the set ---- */

static int find(const addresses *in, const char *text) {
    for (int i = 0; i < in->n; i++)
        if (strcmp(in->text[i], text) == 0)
            return i;
    return -1;
}

static int by_text(const void *a, const void *b) {
    return strcmp((const char *)a, (const char *)b);
}

static void add(addresses *to, const char *text) {
    if (to->n == RESOLVE_MAX || find(to, text) != -1)
        return;
    snprintf(to->text[to->n], sizeof(to->text[0]), "%s", text);
    to->unseen[to->n++] = 0;
}

static void drop(addresses *from, int i) {
    from->n--;
    memcpy(from->text[i], from->text[from->n], sizeof(from->text[0]));
    from->unseen[i] = from->unseen[from->n];
}

bool addresses_take(addresses *in_use, const addresses *answer, int keep) {
    bool changed = false, any = false;
    if (answer->n == 0)
        return false; /* the name is gone, its addresses may still serve */
    for (int i = 0; i < in_use->n; i++)
        any |= find(answer, in_use->text[i]) != -1;
    if (!any) {
        *in_use = *answer;
        return true;
    }
    for (int i = in_use->n - 1; i >= 0; i--) {
        bool said = find(answer, in_use->text[i]) != -1;
        in_use->unseen[i] = said ? 0 : in_use->unseen[i] + 1;
        if (in_use->unseen[i] > keep) {
            drop(in_use, i);
            changed = true;
        }
    }
    for (int i = 0; i < answer->n; i++)
        if (find(in_use, answer->text[i]) == -1) {
            add(in_use, answer->text[i]);
            changed = true;
        }
    return changed;
}

/* ---- asking ---- */

/* IPv4 where there is any, as Java does: a name like localhost often has an
   IPv6 address that nothing listens on. */
static void collect(const struct addrinfo *list, int family, addresses *to) {
    char text[46];
    for (; list != NULL; list = list->ai_next) {
        const void *at =
            family == AF_INET
                ? (const void *)&((struct sockaddr_in *)(void *)list->ai_addr)
                      ->sin_addr
                : (const void *)&((struct sockaddr_in6 *)(void *)list->ai_addr)
                      ->sin6_addr;
        if (list->ai_family == family &&
            inet_ntop(family, at, text, sizeof(text)) != NULL)
            add(to, text);
    }
}

static void ask(resolve *r, addresses *answer) {
    struct addrinfo hints = {.ai_socktype = SOCK_STREAM}, *list = NULL;
    int rc = getaddrinfo(r->host, NULL, &hints, &list);
    answer->n = 0;
    if (rc == 0) {
        collect(list, AF_INET, answer);
        if (answer->n == 0)
            collect(list, AF_INET6, answer);
        freeaddrinfo(list);
    }
    if (answer->n == 0 && !r->failing)
        log_warn("capture-proxy: the source's name %s cannot be resolved: %s; "
                 "%s",
                 r->host, rc == 0 ? "it has no address" : gai_strerror(rc),
                 r->in_use.n > 0 ? "its last addresses stay in use"
                                 : "requests get 502 until it can");
    r->failing = answer->n == 0;
}

static void tell(resolve *r) {
    size_t n = 0;
    addresses sorted = r->in_use;
    qsort(sorted.text, (size_t)sorted.n, sizeof(sorted.text[0]), by_text);
    pthread_mutex_lock(&r->lock);
    r->text[0] = '\0';
    for (int i = 0; i < sorted.n; i++)
        n += (size_t)snprintf(r->text + n, sizeof(r->text) - n, "%s%s",
                              n > 0 ? " " : "", sorted.text[i]);
    pthread_mutex_unlock(&r->lock);
    eventfd_write(r->io.fd, 1);
}

static void *ask_for_ever(void *owner) {
    resolve *r = owner;
    struct timespec pause = {r->interval_ms / 1000,
                             r->interval_ms % 1000 * 1000000};
    addresses answer = {.n = 0};
    int keep = (int)(KEEP_MS / r->interval_ms);
    for (bool first = true;; first = false) {
        ask(r, &answer);
        if (addresses_take(&r->in_use, &answer, keep) || first)
            tell(r);
        nanosleep(&pause, NULL);
    }
    return NULL;
}

static void told(loop_io *io, uint32_t events) {
    resolve *r = (resolve *)(void *)((char *)io - offsetof(resolve, io));
    char text[sizeof(r->text)];
    eventfd_t n;
    (void)events;
    if (eventfd_read(io->fd, &n) == -1)
        return;
    pthread_mutex_lock(&r->lock);
    memcpy(text, r->text, sizeof(text));
    pthread_mutex_unlock(&r->lock);
    r->changed(r->owner, text);
}

resolve *resolve_start(loop *l, const char *host, int64_t interval_ms,
                       void (*changed)(void *owner, const char *addresses),
                       void *owner) {
    resolve *r = calloc(1, sizeof(*r));
    pthread_t thread;
    unsigned char any[16];
    if (r == NULL)
        return NULL;
    *r = (resolve){
        .interval_ms = interval_ms, .changed = changed, .owner = owner};
    pthread_mutex_init(&r->lock, NULL);
    snprintf(r->host, sizeof(r->host), "%s", host);
    r->io.fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    r->io.ready = told;
    if (r->io.fd == -1 || loop_add(l, &r->io, EPOLLIN) == -1) {
        free(r);
        return NULL;
    }
    if (inet_pton(AF_INET, host, any) == 1 ||
        inet_pton(AF_INET6, host, any) == 1) {
        add(&r->in_use, host);
        tell(r);
    } else if (pthread_create(&thread, NULL, ask_for_ever, r) != 0) {
        free(r);
        return NULL;
    } else {
        pthread_detach(thread);
    }
    return r;
}
