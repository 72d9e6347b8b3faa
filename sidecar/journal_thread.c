#include "sidecar/journal_internal.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "sidecar/step.h"

static int64_t now_ns(void) {
    struct timespec ts;

    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (int64_t)ts.tv_sec * 1000000000 + ts.tv_nsec;
}

/* What cannot be written any more is out of date soon: it must not be found. */
static void give_up(journal *j, journal_group *g) {
    journal_db_close(j->db);
    j->db = NULL;
    g->failed = true;
    step(STEP_JOURNAL_CLOSED);
    if (journal_db_remove(j->dir) != 0) {
        size_t n = strlen(g->why);

        snprintf(g->why + n, sizeof(g->why) - n,
                 "; and it cannot be removed (%s): do so before this host's "
                 "next start",
                 strerror(errno));
    }
}

static void work(journal *j, journal_group *g) {
    int64_t begun = now_ns();
    int rc = 0;

    g->failed = g->damaged = g->later = false;
    if (g->job == JOURNAL_JOB_OPEN) {
        j->db = journal_db_open(j->dir, &g->nodes, &g->nnodes, &g->key,
                                &g->damaged, g->why);
        g->failed = j->db == NULL;
        return;
    }
    if (!TAILQ_EMPTY(&g->ops) &&
        journal_db_commit(j->db, &g->ops, g->why) != 0) {
        give_up(j, g);
        return;
    }
    g->took_ns = now_ns() - begun;
    if (g->job == JOURNAL_JOB_RECOVER) {
        rc = journal_db_recover(j->db, g->node_id, &g->found, g->why);
    }
    g->later = rc == 1;
    if (rc == -1) {
        journal_db_close(j->db);
        j->db = NULL;
        (void)journal_db_set_aside(j->dir);
        g->failed = true;
    }
}

static void *helper(void *owner) {
    journal *j = owner;
    uint64_t one = 1;

    pthread_mutex_lock(&j->lock);
    for (;;) {
        while (j->given == NULL && !j->quit) {
            pthread_cond_wait(&j->changed, &j->lock);
        }
        if (j->given == NULL) {
            break;
        }
        journal_group *g = j->given;

        j->given = NULL;
        pthread_mutex_unlock(&j->lock);
        work(j, g);
        pthread_mutex_lock(&j->lock);
        j->done = g;
        pthread_mutex_unlock(&j->lock);
        /* who is woken takes the lock at once */
        pthread_cond_broadcast(&j->changed);
        if (write(j->ready.fd, &one, sizeof(one)) == -1) {
            abort(); /* an eventfd's counter is not full after 2 */
        }
        if (j->db != NULL && journal_db_is_untidy(j->db)) {
            journal_db_tidy(j->db); /* who waited has been told */
        }
        pthread_mutex_lock(&j->lock);
    }
    pthread_mutex_unlock(&j->lock);
    journal_db_close(j->db);
    j->db = NULL;
    return NULL;
}

void journal_give(journal *j, enum journal_job job) {
    journal_group *g = j->filling;

    g->job = job;
    j->running = g;
    j->filling = &j->groups[(g->commit + 1) & 1];
    j->filling->commit = g->commit + 1;
    pthread_mutex_lock(&j->lock);
    j->given = g;
    pthread_mutex_unlock(&j->lock);
    pthread_cond_broadcast(&j->changed);
}

int journal_thread_start(journal *j) {
    pthread_mutex_init(&j->lock, NULL);
    pthread_cond_init(&j->changed, NULL);
    errno = pthread_create(&j->thread, NULL, helper, j);
    j->started = errno == 0;
    return j->started ? 0 : -1;
}

void journal_thread_end(journal *j) {
    if (j->started) {
        pthread_mutex_lock(&j->lock);
        j->quit = true;
        pthread_cond_broadcast(&j->changed);
        pthread_mutex_unlock(&j->lock);
        pthread_join(j->thread, NULL);
    }
}
