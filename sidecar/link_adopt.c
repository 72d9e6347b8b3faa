/* Pools that have had an owner before: taken over once, kept for a successor, or
   given up. */
#include "sidecar/link_internal.h"

#include <inttypes.h>
#include <stdio.h>

#include "sidecar/journal.h"
#include "sidecar/step.h"

/* ---- the keeper ---- */

static void keeper_name(const pool *p, char name[KEEPER_NAME]) {
    snprintf(name, KEEPER_NAME, "pool-%.*s", (int)sizeof(p->node_id),
             p->node_id);
}

void link_keep(const peer *p, int fd) {
    char name[KEEPER_NAME];

    if (p->links->keeper != NULL) {
        keeper_name(p->pool, name);
        atomic_store_explicit(&p->pool->header->outlives,
                              keeper_store(p->links->keeper, name, fd),
                              memory_order_release);
    }
}

void link_unkeep(const peer *p) {
    char name[KEEPER_NAME];

    if (p->links->keeper != NULL) {
        keeper_name(p->pool, name);
        keeper_remove(p->links->keeper, name);
    }
}

/* ---- taking over ---- */

/* NULL, or why this sidecar must not have the pool once more: two owners in one
   process would be as bad as in two, and what it has in files goes by nodeId. */
static const char *is_twin(const peer *p) {
    switch (link_find_pool(p->links, p, p->pool->device, p->pool->inode,
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

/* Whoever counted it may have died before it could mark it.  Here it comes by a
   HELLO, too, that a worker, dead now, sent before we began. */
static bool is_counted(const peer *p) {
    const cap_header *h = p->pool->header;

    return atomic_load_explicit(&h->retired, memory_order_acquire) != 0 ||
           (atomic_load_explicit(&h->owner_generation, memory_order_relaxed) !=
                0 &&
            p->links->totals != NULL &&
            totals_has_last(p->links->totals, p->pool->node_id));
}

/* What p->pool needs around it; NULL, or why it must not be read. */
const char *link_furnish(peer *p, enum cap_refusal *code) {
    links *ls = p->links;
    const char *why;

    if (!p->pool->in_file) {
        link_count_bytes(ls, p->pool->mapped, 0);
    }
    why = is_twin(p);
    if (why == NULL && is_counted(p)) {
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
const char *link_adopt(peer *p) {
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

/* ---- without a worker ---- */

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
    return link_furnish(p, &code);
}

/* What the spool has of one that the journal has made anew: a file, where that
   found no memory as long as the journal waited.  Nobody may go on with that. */
static void drop_old(spool *s, const pool *p) {
    (void)spool_drop(s, p->node_id);
    if (pool_file_remove(s, p)) {
        log_error("spool: pools/%.*s came too late: what clients waited for in "
                  "it is recovered from the journal",
                  (int)sizeof(p->node_id), p->node_id);
        metrics_cell[METRIC_POOLS_LOST]++;
    }
}

enum origin { FROM_MEMORY, FROM_FILE, FROM_JOURNAL };

/* Nobody is at the other end: as a worker that hangs up at once. */
static int adopt_orphan(links *ls, int fd, enum origin from, const char **why) {
    peer *p = link_new_peer(ls);

    if (p == NULL) {
        *why = pool_no_memory;
        return -1;
    }
    *why = map_orphan(p, fd, from == FROM_FILE);
    if (*why == NULL && from == FROM_JOURNAL && ls->spool != NULL) {
        drop_old(ls->spool, p->pool);
    }
    if (*why == NULL && pool_own(p->pool) == 0) {
        *why = "its worker has given this pool up already";
    }
    if (*why == NULL) {
        p->pid = (pid_t)p->pool->header->pid;
        pool_orphan(p->pool);
        *why = link_adopt(p);
    }
    if (*why != NULL) {
        link_free_peer(p);
        return -1;
    }
    p->read_ns = loop_now_ns(ls->loop);
    link_end(p, ENDING);
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
        link_count_gone(ls, p, CAP_MAYBE_LOST);
        step(STEP_FOLDED);
    }
    atomic_store_explicit(&p->header->retired, 1, memory_order_release);
    step(STEP_RETIRED);
    if (ls->spool != NULL) {
        (void)spool_drop(ls->spool, p->node_id);
        (void)pool_file_remove(ls->spool, p);
    }
    pool_free(p);
    return 0;
}
