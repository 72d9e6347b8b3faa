#include "sidecar/orphan.h"

#include <fcntl.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <sys/queue.h>
#include <sys/stat.h>
#include <unistd.h>

#include "sidecar/log.h"
#include "sidecar/metrics.h"
#include "sidecar/pool_file.h"
#include "wire/layout.h"

#define LOOK_NS 200000000ll

/* How often, and how many times, what may pass is tried. */
#define AGAIN_NS 1000000000ll
#define MOST_TRIES 60

int64_t orphans_sweep_ns = 60000000000ll;

typedef struct kept {
    char name[KEEPER_NAME];
    int fd;
    unsigned tries;
    int64_t next_ns;
    struct stat st;
    char node_id[CAP_NODE_ID_SIZE];
    TAILQ_ENTRY(kept) all;
} kept;

struct orphans {
    loop *loop;
    links *links;
    spool *spool;
    keeper *keeper;
    const totals *totals;
    loop_timer look;
    loop_timer files; /* while some are to be tried again */
    unsigned tries;
    loop_timer sweep;
    uint64_t refused; /* links, at the sweep's last look */
    bool left;        /* some for the next sidecar */
    TAILQ_HEAD(, kept) kept;
};

/* ---- files ---- */

/* All of it was settled and counted, by one that died before it was gone.  To be
   asked before any other pool is counted. */
static bool is_over(const orphans *o, const cap_header *h) {
    return atomic_load_explicit(&h->retired, memory_order_relaxed) != 0 ||
           totals_has_last(o->totals, h->node_id);
}

static const char *take_file(void *owner, int fd, const char *name) {
    orphans *o = owner;
    cap_header h;
    const char *why = NULL;

    if (strlen(name) != sizeof(h.node_id) ||
        pread(fd, &h, sizeof(h), 0) != sizeof(h) ||
        memcmp(h.node_id, name, sizeof(h.node_id)) != 0) {
        return "its name is not the pool's";
    }
    if (links_has(o->links, 0, 0, h.node_id) != LINKS_NOT) {
        return NULL;
    }
    if (h.magic == CAP_MAGIC && h.version == CAP_WIRE_VERSION) {
        if (is_over(o, &h)) {
            (void)unlinkat(spool_pools(o->spool), name, 0);
            return NULL;
        }
        if (!pool_file_is_sound(&h)) {
            return links_lose_file(o->links, fd, &why) == 0 ? NULL : why;
        }
    }
    return links_adopt_file(o->links, fd, &why) == 0 ? NULL : why;
}

static void take_files(orphans *o) {
    const char *why =
        o->spool != NULL ? pool_file_each(o->spool, take_file, o) : NULL;

    if (why == NULL) {
        o->tries = 0;
    } else if (++o->tries < MOST_TRIES) {
        if (o->tries == 1) {
            log_warn("spool: pools/: some cannot be taken over now: %s; it is "
                     "tried again for a minute",
                     why);
        }
        loop_timer_set(o->loop, &o->files, AGAIN_NS);
    } else {
        log_error("spool: pools/: some cannot be taken over: %s; they stay "
                  "there for the next capture-sidecar",
                  why);
    }
}

static void files_due(loop_timer *timer) {
    take_files((orphans *)(void *)((char *)timer - offsetof(orphans, files)));
}

/* ---- what the keeper has ---- */

/* The worker has taken it for all of the file. */
static bool is_locked(int fd) {
    struct flock f = {.l_type = F_WRLCK, .l_whence = SEEK_SET};

    return fcntl(fd, F_GETLK, &f) != 0 || f.l_type != F_UNLCK;
}

/* NULL, or why it is no pool that we could ever take. */
static const char *identify(const orphans *o, kept *p) {
    cap_header h;

    if (strncmp(p->name, "pool-", 5) != 0 || fstat(p->fd, &p->st) != 0 ||
        pread(p->fd, &h, sizeof(h), 0) != sizeof(h) || h.magic != CAP_MAGIC) {
        return "it is no pool";
    }
    if (h.version != CAP_WIRE_VERSION) {
        return "it is of another version of the link, and cannot be read";
    }
    memcpy(p->node_id, h.node_id, sizeof(p->node_id));
    return is_over(o, &h) ? "it was settled" : NULL;
}

static void free_kept(orphans *o, kept *p) {
    TAILQ_REMOVE(&o->kept, p, all);
    metrics_cell[METRIC_POOLS_KEPT]--;
    close(p->fd);
    free(p);
}

/* Whoever has it, nobody needs it from the keeper. */
static void forget(orphans *o, kept *p) {
    keeper_remove(o->keeper, p->name);
    free_kept(o, p);
}

/* If nothing helps, another sidecar gets it from the keeper. */
static void try_again(orphans *o, kept *p, const char *why) {
    if (++p->tries < MOST_TRIES) {
        if (p->tries == 1) {
            log_warn("kept: %s cannot be taken over now: %s; it is tried again "
                     "for a minute",
                     p->name, why);
        }
        p->next_ns = loop_now_ns(o->loop) + AGAIN_NS;
        return;
    }
    log_error("kept: %s cannot be taken over: %s; it is left with its keeper, "
              "for the next capture-sidecar",
              p->name, why);
    o->left = true;
    free_kept(o, p);
}

static void look_at(orphans *o, kept *p) {
    const char *why;

    switch (links_has(o->links, p->st.st_dev, p->st.st_ino, p->node_id)) {
    case LINKS_MEMORY: /* its worker has come */
        free_kept(o, p);
        return;
    case LINKS_COPY: /* it was moved to the spool */
        forget(o, p);
        return;
    case LINKS_NOT:
        break;
    }
    if (loop_now_ns(o->loop) < p->next_ns || is_locked(p->fd)) {
        return;
    }
    if (links_adopt_orphan(o->links, p->fd, &why) == 0) {
        free_kept(o, p); /* it is kept until it is retired */
    } else if (pool_may_pass(why)) {
        try_again(o, p, why);
    } else {
        log_info("kept: %s is left alone: %s", p->name, why);
        forget(o, p);
    }
}

static void look_due(loop_timer *timer) {
    orphans *o = (orphans *)(void *)((char *)timer - offsetof(orphans, look));
    kept *p, *next;

    for (p = TAILQ_FIRST(&o->kept); p != NULL; p = next) {
        next = TAILQ_NEXT(p, all);
        look_at(o, p);
    }
    if (!TAILQ_EMPTY(&o->kept)) {
        loop_timer_set(o->loop, timer, LOOK_NS);
    }
}

/* Once all have come that may come, what is left in the spool is nobody's. */
static void sweep_due(loop_timer *timer) {
    orphans *o = (orphans *)(void *)((char *)timer - offsetof(orphans, sweep));
    uint64_t refused = metrics_cell[METRIC_LINKS_REFUSED];

    if (TAILQ_EMPTY(&o->kept) && o->tries == 0 && !o->left &&
        o->refused == refused) {
        (void)spool_sweep(o->spool);
        return;
    }
    o->refused = refused;
    loop_timer_set(o->loop, timer, orphans_sweep_ns);
}

static void take_kept(orphans *o, const char *name, int fd) {
    kept *p = calloc(1, sizeof(*p));
    const char *why;

    if (p == NULL) {
        log_error(
            "kept: %s: out of memory; it is left with its keeper, for the "
            "next capture-sidecar",
            name);
        o->left = true;
        close(fd);
        return;
    }
    memcpy(p->name, name, sizeof(p->name));
    p->fd = fd;
    why = identify(o, p);
    if (why != NULL) {
        log_warn("kept: %s is dropped: %s", name, why);
        keeper_remove(o->keeper, name);
        close(fd);
        free(p);
        return;
    }
    TAILQ_INSERT_TAIL(&o->kept, p, all);
    metrics_cell[METRIC_POOLS_KEPT]++;
}

orphans *orphans_open(loop *l, links *ls, spool *s, keeper *k,
                      const totals *t) {
    orphans *o = calloc(1, sizeof(*o));
    char name[KEEPER_NAME];
    int fd;

    if (o == NULL) {
        log_error("out of memory");
        return NULL;
    }
    o->loop = l;
    o->links = ls;
    o->spool = s;
    o->keeper = k;
    o->totals = t;
    o->refused = metrics_cell[METRIC_LINKS_REFUSED];
    o->look.due = look_due;
    o->files.due = files_due;
    o->sweep.due = sweep_due;
    TAILQ_INIT(&o->kept);
    if (s != NULL) {
        pool_file_clean(s);
        loop_timer_set(l, &o->sweep, orphans_sweep_ns);
    }
    take_files(o);
    while ((fd = keeper_next(k, name)) != -1) {
        take_kept(o, name, fd);
    }
    look_due(&o->look);
    return o;
}

void orphans_close(orphans *o) {
    kept *p;

    if (o == NULL) {
        return;
    }
    loop_timer_cancel(o->loop, &o->look);
    loop_timer_cancel(o->loop, &o->files);
    loop_timer_cancel(o->loop, &o->sweep);
    while ((p = TAILQ_FIRST(&o->kept)) != NULL) {
        free_kept(o, p);
    }
    free(o);
}
