/* The pool of a worker that has gone moves to the spool (pool_file.h). */
#include "sidecar/link_internal.h"

#include <errno.h>
#include <inttypes.h>
#include <string.h>

/* 0: it is there; 1: more is to do; -1: not now. */
int link_move(peer *p) {
    links *ls = p->links;
    int rc = -1;

    if (p->moving == NULL) {
        pool_orphan(p->pool);
        p->moving = pool_file_begin(p->pool);
    }
    if (p->moving != NULL) {
        rc = pool_file_step(p->moving);
    }
    if (rc == -1) {
        log_limited(&ls->log_move, LOG_LEVEL_ERROR,
                    "the pool of worker %d, which has gone, stays in memory: "
                    "spool.path %s: %s",
                    (int)p->pid, ls->config->spool_path, strerror(errno));
        metrics_cell[METRIC_SPOOL_FULL] += errno == ENOSPC;
    } else if (rc == 0) {
        log_info("the pool of worker %d, which has gone, is in the spool: "
                 "%" PRIu32 " blocks",
                 (int)p->pid, p->pool->charged);
        link_count_bytes(ls, 0, p->pool->mapped);
        metrics_cell[METRIC_POOLS_FILED]++;
        link_unkeep(p);
    }
    if (rc != 1 && p->moving != NULL) {
        pool_file_free(p->moving);
        p->moving = NULL;
    }
    return rc;
}

bool link_may_move(const peer *p) {
    return p->state == FINISHING && p->links->spool != NULL &&
           !p->pool->in_file && p->end_reason == CAP_WORKER_EXIT &&
           pool_owned(p->pool) && !assemble_empty(p->assemble);
}

int64_t link_finishing_turn(peer *p) {
    int64_t left = p->move_ns - loop_now_ns(p->links->loop);

    if (!link_may_move(p)) {
        return -1;
    }
    if (left > 0) {
        return left;
    }
    switch (link_move(p)) {
    case 1:
        return 0;
    case -1:
        p->move_ns = loop_now_ns(p->links->loop) + MOVE_AGAIN_NS;
        return MOVE_AGAIN_NS;
    default:
        return -1;
    }
}
