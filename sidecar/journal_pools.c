#include "sidecar/journal_internal.h"

#include <inttypes.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "sidecar/metrics.h"
#include "sidecar/step.h"

static journal_known *find_node(const journal *j, const char *id) {
    for (size_t i = 0; i < j->nnodes; i++) {
        if (memcmp(j->nodes[i].id, id, CAP_NODE_ID_SIZE) == 0) {
            return &j->nodes[i];
        }
    }
    return NULL;
}

/* NULL: out of memory. */
static journal_known *add_node(journal *j, const char *id,
                               enum journal_known_state state) {
    journal_known *more = realloc(j->nodes, (j->nnodes + 1) * sizeof(*more));

    if (more == NULL) {
        return NULL;
    }
    j->nodes = more;
    more += j->nnodes++;
    *more = (journal_known){.state = state};
    memcpy(more->id, id, CAP_NODE_ID_SIZE);
    return more;
}

/* What is there no more, or settled. */
static void drop_node(journal *j, journal_known *n) {
    *n = j->nodes[--j->nnodes];
}

/* ---- pools that come here, or are ---- */

bool journal_note_pool(journal *j, pool *p) {
    const journal_known *n;

    if (!p->journaled) {
        n = find_node(j, p->node_id);
        if (n == NULL) {
            n = add_node(j, p->node_id, NODE_TAKEN);
        }
        p->journaled = n != NULL && n->state == NODE_TAKEN;
    }
    return p->journaled;
}

static bool forget_node(journal *j, const char *id) {
    journal_op *op = journal_new_op(j, JOURNAL_FORGET_NODE);

    if (op == NULL) {
        return false;
    }
    memcpy(op->node_id, id, CAP_NODE_ID_SIZE);
    j->filling->soon = true;
    return true;
}

bool journal_has_node(const journal *j, const char *node_id) {
    const journal_known *n = find_node(j, node_id);

    return n != NULL && n->state < NODE_TAKEN;
}

/* What was made of rows is no worker's. */
static bool is_right(const journal_known *n, const pool *p) {
    return (!n->made || p->header->pid == 0) &&
           (n->state == NODE_WAITING || n->state == NODE_TAKEN ||
            n->state == NODE_MADE);
}

const char *journal_may_adopt(const journal *j, const pool *p) {
    const journal_known *n = find_node(j, p->node_id);

    if (n == NULL || j->adopting != NULL || is_right(n, p)) {
        return NULL;
    }
    return "it came too late: what clients waited for in it has been recovered "
           "from the journal";
}

const char *journal_adopt_pool(journal *j, pool *p) {
    journal_known *n = find_node(j, p->node_id);

    if (j->adopting != NULL) {
        p->journaled = true; /* it is what is there */
        return NULL;
    }
    if (n != NULL) {
        if (!forget_node(j, p->node_id)) {
            return pool_no_memory;
        }
        p->journal_commit = j->filling->commit;
    } else {
        n = add_node(j, p->node_id, NODE_TAKEN);
        if (n == NULL) {
            return pool_no_memory;
        }
    }
    n->state = NODE_TAKEN;
    step(STEP_JOURNAL_ADOPTED);
    return NULL;
}

bool journal_has_forgotten(journal *j, pool *p) {
    journal_known *n;

    if (!j->broken) {
        if (p->journaled && forget_node(j, p->node_id)) {
            p->journaled = false;
            p->journal_commit = j->filling->commit;
        }
        if (p->journaled || p->journal_commit > j->durable) {
            return false;
        }
        n = find_node(j, p->node_id);
        if (n != NULL && n->state == NODE_TAKEN && n->made) {
            n->state = NODE_MADE;
        } else if (n != NULL && n->state == NODE_TAKEN) {
            drop_node(j, n);
        }
    }
    step(STEP_JOURNAL_FORGOTTEN);
    return true;
}

/* ---- pools that are there alone ---- */

/* NULL, or why not now. */
static const char *take_found(journal *j, journal_group *g) {
    const char *why = NULL;
    int rc = 0;

    if (g->later) {
        return g->why;
    }
    j->adopting = &g->found;
    j->adopting_id = g->node_id;
    if (g->found.n > 0) {
        rc = j->events->recovered(j->owner, g->found.fd, &why);
    }
    j->adopting = NULL;
    return rc == 0 ? NULL : why;
}

void journal_pool_found(journal *j, journal_group *g) {
    journal_known *n = find_node(j, g->node_id);
    journal_recovered *r = &g->found;
    const char *why;

    metrics_cell[METRIC_JOURNAL_DAMAGED] += r->damaged;
    if (r->damaged > 0) {
        log_error("journal %s: rows of %" PRIu64 " connections are damaged, "
                  "and lost",
                  j->dir, r->damaged);
    }
    step(STEP_JOURNAL_FOUND);
    why = take_found(j, g);
    if (why == NULL) {
        n->state = NODE_RECOVERED;
        n->made = true;
        metrics_cell[METRIC_RECOVERED] += r->exchanges;
        log_warn("journal: %" PRIu32 " connections with %" PRIu64
                 " exchanges of a worker whose memory is gone are recovered",
                 r->n, r->exchanges);
    } else {
        log_error("journal: what there is of a worker cannot be recovered now: "
                  "%s; again in 30 s",
                  why);
        n->state = NODE_LOST;
        n->due_ns = loop_now_ns(j->loop) + JOURNAL_PATIENCE_NS;
    }
    step(STEP_JOURNAL_RECOVERED);
    journal_recovered_free(r);
}

unsigned journal_pools_there(journal *j, const journal_group *g) {
    int64_t now = loop_now_ns(j->loop);
    unsigned waiting = 0;

    for (size_t i = 0; i < g->nnodes; i++) {
        const journal_node *there = &g->nodes[i];
        journal_known *n = find_node(j, there->node_id);

        if (n != NULL && there->there) {
            log_info("journal: what there is of a worker whose memory is here, "
                     "or was, is dropped");
            (void)forget_node(j, there->node_id);
        }
        if (n != NULL) {
            continue;
        }
        n = add_node(j, there->node_id,
                     !there->there ? NODE_MADE
                     : there->lost ? NODE_LOST
                                   : NODE_WAITING);
        if (n == NULL) {
            log_error("journal: out of memory: what there is of a worker is "
                      "left to the next start");
            continue;
        }
        n->made = there->made;
        n->due_ns = there->lost ? now : now + JOURNAL_PATIENCE_NS;
        waiting += n->state == NODE_WAITING;
    }
    return waiting;
}

journal_known *journal_next_pool(journal *j) {
    int64_t now = loop_now_ns(j->loop), first = INT64_MAX;

    for (size_t i = 0; i < j->nnodes; i++) {
        if (j->nodes[i].state > NODE_LOST) {
            continue;
        }
        if (j->nodes[i].due_ns <= now) {
            return &j->nodes[i];
        }
        first = j->nodes[i].due_ns < first ? j->nodes[i].due_ns : first;
    }
    if (first != INT64_MAX && j->patience.heap == 0) {
        loop_timer_set(j->loop, &j->patience, first - now);
    }
    return NULL;
}

void journal_pools_gone(journal *j) {
    for (size_t i = j->nnodes; i-- > 0;) {
        if (j->nodes[i].state < NODE_TAKEN) {
            drop_node(j, &j->nodes[i]);
        }
    }
}
