#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/stat.h>
#include <unistd.h>

#include "sidecar/journal_internal.h"
#include "sidecar/metrics.h"
#include "sidecar/step.h"

#define MS 1000000ll
#define LAZY_NS (200 * MS) /* of what nobody waits for */
#define SOON_NS (5 * MS)   /* of what only a record waits for, not a client */
#define AGAIN_NS (5000 * MS)

/* ---- what the helper has done ---- */

static void opened(journal *j, journal_group *g) {
    bool was_broken = j->broken;
    unsigned waiting;

    metrics_cell[METRIC_JOURNAL_DAMAGED] += g->damaged;
    if (g->damaged) {
        log_error("journal %s: it is damaged, or of another version, and set "
                  "aside under another name",
                  j->dir);
    }
    j->broken = g->failed;
    if (g->failed) {
        metrics_cell[METRIC_JOURNAL_FAILED]++;
        log_error("journal %s: %s; requests wait for Kafka, and it is tried "
                  "again every 5 s",
                  j->dir, g->why);
        loop_timer_set(j->loop, &j->again, AGAIN_NS);
        return;
    }
    if (was_broken) {
        log_info("journal %s: the journal is open again", j->dir);
    }
    j->key = g->key > j->key ? g->key : j->key;
    waiting = journal_pools_there(j, g);
    if (waiting > 0) {
        log_info("journal: there is something of %u workers; it is recovered "
                 "if their memory is not offered within 30 s",
                 waiting);
    }
}

/* Nothing in it is true any more. */
static void break_down(journal *j, const char *why) {
    journal_conn *jc;

    metrics_cell[METRIC_JOURNAL_FAILED]++;
    log_error("journal %s: %s; it is removed, requests wait for Kafka, and it "
              "is begun again in 5 s",
              j->dir, why);
    j->broken = true;
    while ((jc = TAILQ_FIRST(&j->conns)) != NULL) {
        journal_free_conn(j, jc);
    }
    journal_free_ops(j->filling);
    j->durable = j->filling->commit; /* of no meaning any more */
    journal_pools_gone(j);
    j->bytes = 0;
    journal_show_bytes(j);
    loop_timer_set(j->loop, &j->again, AGAIN_NS);
}

/* Clients that waited for these frames are told. */
static void release(journal_group *g) {
    unsigned i = (unsigned)(g->commit & 1);
    journal_conn *jc;

    while ((jc = TAILQ_FIRST(&g->put)) != NULL) {
        conn *c = jc->conn;
        uint64_t seq = jc->put_seq[i];

        TAILQ_REMOVE(&g->put, jc, put[i]);
        jc->put_seq[i] = 0;
        if (!c->slot_returned && pool_owned(c->pool)) {
            atomic_store_explicit(
                &cap_slot_at(c->pool->header, &c->pool->geometry, c->slot)
                     ->synced,
                seq, memory_order_release);
            step(STEP_JOURNAL_SYNCED);
            pool_wake(c->pool);
        }
    }
}

static void finish(journal *j) {
    journal_group *g;

    pthread_mutex_lock(&j->lock);
    g = j->done;
    j->done = NULL;
    pthread_mutex_unlock(&j->lock);
    if (g == NULL) {
        return;
    }
    step(STEP_JOURNAL_TOLD);
    j->running = NULL;
    if (g->job == JOURNAL_JOB_OPEN) {
        opened(j, g);
        free(g->nodes);
        g->nodes = NULL;
        g->nnodes = 0;
    } else if (g->failed) {
        break_down(j, g->why);
    } else {
        metrics_cell[METRIC_JOURNAL_COMMITS]++;
        metrics_observe(HISTOGRAM_JOURNAL, (uint64_t)g->took_ns);
        release(g);
        if (g->job == JOURNAL_JOB_RECOVER) {
            journal_pool_found(j, g);
        }
    }
    j->durable = g->commit > j->durable ? g->commit : j->durable;
    journal_free_ops(g);
    j->events->committed(j->owner);
}

static void ready(loop_io *io, uint32_t events) {
    journal *j = (journal *)(void *)((char *)io - offsetof(journal, ready));
    uint64_t n;

    (void)events;
    if (read(io->fd, &n, sizeof(n)) == sizeof(n)) {
        finish(j);
    }
}

/* ---- turns ---- */

static void lazy_due(loop_timer *t) {
    ((journal *)(void *)((char *)t - offsetof(journal, lazy)))->lazy_due = true;
}

static void again_due(loop_timer *t) {
    ((journal *)(void *)((char *)t - offsetof(journal, again)))->again_due =
        true;
}

static void patience_due(loop_timer *t) {
    (void)t; /* journal_turn looks */
}

/* A sync that no client waits for holds up the next one: so it waits for
   company, a little. */
static void set_lazy(journal *j, int64_t ns) {
    if (j->lazy.heap == 0 || j->lazy.at_ns > loop_now_ns(j->loop) + ns) {
        loop_timer_set(j->loop, &j->lazy, ns);
    }
}

void journal_turn(journal *j) {
    journal_group *g = j->filling;
    journal_known *n;

    if (j->running != NULL) {
        return;
    }
    if (j->broken) {
        if (j->again_due) {
            j->again_due = false;
            journal_give(j, JOURNAL_JOB_OPEN);
        }
        return;
    }
    n = journal_next_pool(j);
    if (n != NULL) {
        n->state = NODE_RECOVERING;
        memcpy(g->node_id, n->id, sizeof(g->node_id));
        journal_give(j, JOURNAL_JOB_RECOVER);
    } else if (g->force || (j->lazy_due && !TAILQ_EMPTY(&g->ops))) {
        j->lazy_due = false;
        loop_timer_cancel(j->loop, &j->lazy);
        journal_give(j, JOURNAL_JOB_COMMIT);
    } else if (!TAILQ_EMPTY(&g->ops)) {
        set_lazy(j, g->soon ? SOON_NS : LAZY_NS);
    }
}

void journal_wait(journal *j) {
    pthread_mutex_lock(&j->lock);
    while (j->running != NULL && j->done == NULL) {
        pthread_cond_wait(&j->changed, &j->lock);
    }
    pthread_mutex_unlock(&j->lock);
    if (j->running != NULL) {
        finish(j);
    }
}

/* ---- life ---- */

/* Only to recover: with durability = kafka. */
static bool is_there(const journal *j) {
    struct stat st;
    char path[512];

    snprintf(path, sizeof(path), "%s/journal.db", j->dir);
    return stat(path, &st) == 0;
}

static int start(journal *j) {
    j->ready.fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    j->ready.ready = ready;
    j->lazy.due = lazy_due;
    j->again.due = again_due;
    j->patience.due = patience_due;
    TAILQ_INIT(&j->conns);
    for (int i = 0; i < 2; i++) {
        TAILQ_INIT(&j->groups[i].ops);
        TAILQ_INIT(&j->groups[i].put);
        j->groups[i].found.fd = -1;
    }
    j->filling = &j->groups[1];
    j->filling->commit = 1;
    j->key = 1;
    if (j->ready.fd == -1 || loop_add(j->loop, &j->ready, EPOLLIN) != 0) {
        return -1;
    }
    return journal_thread_start(j);
}

static void end(journal *j) {
    journal_thread_end(j);
    if (j->ready.fd != -1) {
        loop_remove(j->loop, &j->ready);
        close(j->ready.fd);
    }
    loop_timer_cancel(j->loop, &j->lazy);
    loop_timer_cancel(j->loop, &j->again);
    loop_timer_cancel(j->loop, &j->patience);
    for (int i = 0; i < 2; i++) {
        journal_free_ops(&j->groups[i]);
    }
    free(j->nodes);
    free(j);
}

int journal_open(journal **into, const config *c, loop *l,
                 const journal_events *events, void *owner) {
    journal *j = calloc(1, sizeof(*j));

    *into = NULL;
    if (j == NULL) {
        log_error("out of memory");
        return -1;
    }
    j->config = c;
    j->loop = l;
    j->events = events;
    j->owner = owner;
    j->puts = c->durability_disk;
    if ((size_t)snprintf(j->dir, sizeof(j->dir), "%s/journal", c->spool_path) >=
        sizeof(j->dir)) {
        log_error("spool.path is too long");
        free(j);
        return -1;
    }
    if (!j->puts && !is_there(j)) {
        free(j);
        return 0;
    }
    if (start(j) != 0) {
        log_error("the journal's thread cannot start: %s", strerror(errno));
        end(j);
        return -1;
    }
    *into = j;
    journal_give(j, JOURNAL_JOB_OPEN);
    journal_wait(j);
    return 0;
}

void journal_close(journal *j) {
    if (j == NULL) {
        return;
    }
    journal_wait(j);
    if (!j->broken && !TAILQ_EMPTY(&j->filling->ops)) {
        journal_give(j, JOURNAL_JOB_COMMIT);
        journal_wait(j);
    }
    journal_abort(j);
}

void journal_abort(journal *j) {
    journal_conn *jc;

    while ((jc = TAILQ_FIRST(&j->conns)) != NULL) {
        journal_free_conn(j, jc);
    }
    end(j);
}
