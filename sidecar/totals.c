#define _GNU_SOURCE /* memfd_create, fallocate */
#include "sidecar/totals.h"

#include <errno.h>
#include <fcntl.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "sidecar/log.h"
#include "sidecar/step.h"
#include "wire/layout.h"

#define TOTALS_MAGIC 0x736c61746f747063ull /* "cptotals" */
#define TOTALS_VERSION 1u
#define PAGE 8192u
#define NAME "totals"

typedef struct {
    metrics_exchanges sum;
    char last[CAP_NODE_ID_SIZE];
    uint32_t spare;
} copy;

typedef struct {
    uint64_t magic;
    uint32_t version;
    uint32_t copy_size; /* another build's is another layout */
    _Atomic uint64_t sequence;
    copy copies[2];
} page;

_Static_assert(sizeof(page) <= PAGE, "the totals fit");

struct totals {
    page *page;
};

static const copy *valid(const totals *t) {
    return &t->page->copies[atomic_load_explicit(&t->page->sequence,
                                                 memory_order_acquire) &
                            1];
}

/* ---- where it is ---- */

static page *map_page(int fd) {
    void *at = MAP_FAILED;

    if (fallocate(fd, 0, 0, PAGE) == 0) {
        at = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    }
    return at != MAP_FAILED ? at : NULL;
}

static bool is_good(const page *p) {
    return p->magic == TOTALS_MAGIC && p->version == TOTALS_VERSION &&
           p->copy_size == sizeof(copy);
}

/* An empty one, where there is none.  False: what is there cannot be read. */
static bool prepare(page *p) {
    static const page none;

    if (memcmp(p, &none, sizeof(none)) == 0) {
        p->version = TOTALS_VERSION;
        p->copy_size = sizeof(copy);
        step(STEP_TOTALS_NEW);
        p->magic = TOTALS_MAGIC;
    }
    if (!is_good(p) && p->magic != 0) {
        return false;
    }
    p->version = TOTALS_VERSION;
    p->copy_size = sizeof(copy);
    p->magic = TOTALS_MAGIC;
    return true;
}

static page *in_file(spool *s) {
    int fd = openat(spool_directory(s), NAME,
                    O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);
    page *p = fd != -1 ? map_page(fd) : NULL;

    if (p == NULL || !prepare(p)) {
        log_error("spool: the file totals: %s; counters begin at 0",
                  p == NULL ? strerror(errno) : "it is no file of ours");
        if (p != NULL) {
            munmap(p, PAGE);
        }
        p = NULL;
    }
    if (fd != -1) {
        close(fd);
    }
    return p;
}

/* Of the keeper's memory, or new one that it gets. */
static page *in_memory(keeper *k) {
    int fd = keeper_named(k, NAME);
    page *p = fd != -1 ? map_page(fd) : NULL;

    if (p != NULL && !prepare(p)) {
        log_error("kept: the totals cannot be read; counters begin at 0");
        munmap(p, PAGE);
        p = NULL;
        keeper_remove(k, NAME);
    }
    if (p == NULL) {
        if (fd != -1) {
            close(fd);
        }
        fd = memfd_create("capture-totals", MFD_CLOEXEC);
        p = fd != -1 ? map_page(fd) : NULL;
        if (p != NULL) {
            (void)prepare(p);
            (void)keeper_store(k, NAME, fd);
        }
    }
    if (fd != -1) {
        close(fd);
    }
    return p;
}

/* The spool is new, and the keeper has what was counted before. */
static void take_over(page *p, keeper *k) {
    int fd = keeper_named(k, NAME);
    page *old = fd != -1 ? map_page(fd) : NULL;

    if (old != NULL) {
        if (is_good(old) && p->sequence == 0) {
            p->copies[0] = p->copies[1] = old->copies[old->sequence & 1];
        }
        munmap(old, PAGE);
    }
    if (fd != -1) {
        close(fd);
        keeper_remove(k, NAME);
    }
}

totals *totals_open(spool *s, keeper *k) {
    totals *t = calloc(1, sizeof(*t));

    if (t == NULL) {
        return NULL;
    }
    if (s != NULL) {
        t->page = in_file(s);
        if (t->page != NULL && k != NULL) {
            take_over(t->page, k);
        }
    } else if (k != NULL) {
        t->page = in_memory(k);
    }
    if (t->page == NULL) {
        t->page = mmap(NULL, PAGE, PROT_READ | PROT_WRITE,
                       MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    }
    if (t->page == MAP_FAILED) {
        free(t);
        return NULL;
    }
    return t;
}

void totals_close(totals *t) {
    if (t != NULL) {
        munmap(t->page, PAGE);
        free(t);
    }
}

/* ---- counting ---- */

_Static_assert(sizeof(metrics_exchanges) % sizeof(uint64_t) == 0,
               "it is cells alone");

void totals_add(metrics_exchanges *to, const metrics_exchanges *what) {
    uint64_t *into = (uint64_t *)to;
    const uint64_t *from = (const uint64_t *)what;

    for (size_t i = 0; i < sizeof(*to) / sizeof(*into); i++) {
        into[i] += from[i];
    }
}

void totals_fold(totals *t, const metrics_exchanges *pool,
                 const char *node_id) {
    uint64_t sequence =
        atomic_load_explicit(&t->page->sequence, memory_order_relaxed);
    copy *next = &t->page->copies[(sequence + 1) & 1];

    *next = *valid(t);
    totals_add(&next->sum, pool);
    memcpy(next->last, node_id, sizeof(next->last));
    step(STEP_TOTALS);
    atomic_store_explicit(&t->page->sequence, sequence + 1,
                          memory_order_release);
}

bool totals_has_last(const totals *t, const char *node_id) {
    return memcmp(valid(t)->last, node_id, sizeof(valid(t)->last)) == 0;
}

const metrics_exchanges *totals_sum(const totals *t) {
    return &valid(t)->sum;
}
