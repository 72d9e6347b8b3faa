#define _GNU_SOURCE /* fallocate, mremap */
#include "sidecar/pool_file.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "sidecar/boot.h"
#include "sidecar/log.h"
#include "sidecar/metrics.h"
#include "sidecar/step.h"

#define STEP_BLOCKS 64
#define UNFINISHED ".new"
#define DAMAGED ".damaged"

/* NODEID and one of the above */
typedef char file_name[CAP_NODE_ID_SIZE + 12];

struct pool_file {
    pool *pool;
    int fd;
    uint32_t next; /* block to be looked at */
    bool *copied;
    uint32_t ncopied;
    uint32_t charged; /* blocks of the spool's room */
    bool done;
};

static void name_of(const pool *p, const char *suffix, file_name name) {
    snprintf(name, sizeof(file_name), "%.*s%s", (int)sizeof(p->node_id),
             p->node_id, suffix);
}

/* What is in its place in a file; the spool has the rest. */
static bool is_lent(const pool *p, uint32_t index) {
    return atomic_load_explicit(
               &cap_block_at(p->header, &p->geometry, index)->generation,
               memory_order_relaxed) &
           1;
}

/* Blocks of the spool's size that header, slots and intents take. */
static uint32_t head_blocks(const pool *p) {
    return (uint32_t)((p->geometry.ring_at + CAP_BLOCK_SIZE - 1) /
                      CAP_BLOCK_SIZE);
}

static uint32_t room_of(const pool *p) {
    uint32_t n = head_blocks(p);

    for (uint32_t i = 0; i < p->geometry.nblocks; i++) {
        n += pool_place(p, i) != POOL_NO_BLOCK;
    }
    return n;
}

/* ---- moving ---- */

pool_file *pool_file_begin(pool *p) {
    pool_file *f = calloc(1, sizeof(*f));
    file_name name;

    if (f == NULL) {
        errno = ENOMEM;
        return NULL;
    }
    f->pool = p;
    f->fd = -1;
    f->copied = calloc(p->geometry.nblocks, sizeof(*f->copied));
    f->charged = room_of(p);
    if (f->copied == NULL || !spool_charge(p->spool, f->charged)) {
        errno = f->copied == NULL ? ENOMEM : ENOSPC;
        f->charged = 0;
        pool_file_free(f);
        return NULL;
    }
    name_of(p, UNFINISHED, name);
    f->fd = openat(spool_pools(p->spool), name,
                   O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW, 0600);
    if (f->fd == -1 || ftruncate(f->fd, (off_t)p->mapped) != 0) {
        int error = errno;

        pool_file_free(f);
        errno = error;
        return NULL;
    }
    return f;
}

/* Allocated, so that stores through the mapping cannot fail. */
static int copy(const pool_file *f, uint64_t at, uint64_t size) {
    const char *from = (const char *)f->pool->header;

    if (fallocate(f->fd, 0, (off_t)at, (off_t)size) != 0) {
        return -1;
    }
    while (size > 0) {
        ssize_t n = pwrite(f->fd, from + at, size, (off_t)at);

        if (n <= 0) {
            return -1;
        }
        at += (uint64_t)n;
        size -= (uint64_t)n;
    }
    return 0;
}

static uint64_t place_of(const pool *p, uint32_t index) {
    return p->geometry.blocks_at + (uint64_t)index * CAP_BLOCK_SIZE;
}

static int write_at(const pool_file *f, const void *what, size_t size,
                    uint64_t at) {
    return pwrite(f->fd, what, size, (off_t)at) == (ssize_t)size ? 0 : -1;
}

/* It says of itself what our books say of it. */
static int copy_block(pool_file *f, uint32_t index) {
    const pool *p = f->pool;
    uint64_t at = place_of(p, index);
    uint32_t generation = p->blocks[pool_place(p, index)].generation;

    if (copy(f, at, CAP_BLOCK_SIZE) != 0 ||
        write_at(f, &generation, sizeof(generation),
                 at + offsetof(cap_block, generation)) != 0) {
        return -1;
    }
    f->copied[index] = true;
    f->ncopied++;
    return 0;
}

/* A block that came to be done with meanwhile is lent no more, as a hole. */
static int leave_out(const pool_file *f, uint32_t index) {
    return fallocate(f->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
                     (off_t)place_of(f->pool, index), CAP_BLOCK_SIZE);
}

static int copy_some(pool_file *f) {
    const pool *p = f->pool;

    for (int n = 0; f->next < p->geometry.nblocks && n < STEP_BLOCKS;
         f->next++) {
        if (pool_place(p, f->next) != POOL_NO_BLOCK) {
            if (copy_block(f, f->next) != 0) {
                return -1;
            }
            n++;
        }
    }
    return f->next < p->geometry.nblocks;
}

/* From here on nothing is written to the pool, until it is in its file. */
static int copy_head(pool_file *f) {
    pool *p = f->pool;
    char boot[BOOT_ID_SIZE];
    uint32_t takes;

    for (uint32_t i = 0; i < p->geometry.nblocks; i++) {
        if (f->copied[i] && pool_place(p, i) == POOL_NO_BLOCK) {
            if (leave_out(f, i) != 0) {
                return -1;
            }
            f->copied[i] = false;
            f->ncopied--;
        }
    }
    takes = head_blocks(p) + f->ncopied;
    spool_uncharge(p->spool, f->charged - takes);
    f->charged = takes;
    boot_mark(boot);
    return copy(f, 0, p->geometry.ring_at) != 0
               ? -1
               : write_at(f, boot, sizeof(boot), offsetof(cap_header, boot_id));
}

static int put_in_place(pool_file *f) {
    pool *p = f->pool;
    int dir = spool_pools(p->spool);
    file_name from, to;
    void *map;

    map = mmap(NULL, p->mapped, PROT_READ | PROT_WRITE, MAP_SHARED, f->fd, 0);
    if (map == MAP_FAILED) {
        return -1;
    }
    (void)madvise(map, p->mapped, MADV_DONTDUMP);
    name_of(p, UNFINISHED, from);
    name_of(p, "", to);
    step(STEP_POOL_FILE);
    if (renameat(dir, from, dir, to) != 0) {
        int error = errno;

        munmap(map, p->mapped);
        errno = error;
        return -1;
    }
    step(STEP_POOL_FILED);
    if (mremap(map, p->mapped, p->mapped, MREMAP_MAYMOVE | MREMAP_FIXED,
               p->header) == MAP_FAILED) {
        int error = errno;

        (void)unlinkat(dir, to, 0);
        munmap(map, p->mapped);
        errno = error;
        return -1;
    }
    f->done = true;
    p->in_file = true;
    p->charged = f->charged;
    f->charged = 0;
    return 0;
}

int pool_file_step(pool_file *f) {
    int rc = copy_some(f);

    if (rc == 0) {
        rc = copy_head(f);
    }
    return rc == 0 ? put_in_place(f) : rc;
}

void pool_file_free(pool_file *f) {
    file_name name;

    if (f->fd != -1) {
        if (!f->done) {
            name_of(f->pool, UNFINISHED, name);
            (void)unlinkat(spool_pools(f->pool->spool), name, 0);
        }
        close(f->fd);
    }
    if (f->charged > 0) {
        spool_uncharge(f->pool->spool, f->charged);
    }
    free(f->copied);
    free(f);
}

/* ---- what is there ---- */

void pool_file_charge(pool *p, spool *s) {
    p->in_file = true;
    p->charged = head_blocks(p);
    for (uint32_t i = 0; i < p->geometry.nblocks; i++) {
        p->charged += is_lent(p, i);
    }
    spool_charge_anyway(s, p->charged);
}

_Static_assert(BOOT_ID_SIZE == CAP_BOOT_ID_SIZE, "they are the same");

bool pool_file_is_sound(const cap_header *h) {
    return boot_is_this(h->boot_id);
}

bool pool_file_remove(spool *s, const pool *p) {
    file_name name;

    name_of(p, "", name);
    if (unlinkat(spool_pools(s), name, 0) == 0) {
        return true;
    }
    if (errno != ENOENT) {
        log_error("spool: pools/%s cannot be removed: %s", name,
                  strerror(errno));
    }
    return false;
}

static bool ends_with(const char *name, const char *suffix) {
    size_t n = strlen(name), k = strlen(suffix);

    return n > k && strcmp(name + n - k, suffix) == 0;
}

static void set_aside(int dir, const char *name, const char *why) {
    char aside[NAME_MAX + 1];

    log_error("spool: pools/%s is set aside: %s", name, why);
    metrics_cell[METRIC_POOLS_DAMAGED]++;
    if (strlen(name) + sizeof(DAMAGED) <= sizeof(aside)) {
        snprintf(aside, sizeof(aside), "%s%s", name, DAMAGED);
        (void)renameat(dir, name, dir, aside);
    }
}

/* As pool_may_pass knows it. */
static const char *why_of(int error) {
    return error == EMFILE || error == ENFILE || error == ENOMEM
               ? pool_no_descriptor
               : strerror(error);
}

/* A descriptor, or -1 with *why. */
static int open_file(int dir, const char *name, const char **why) {
    struct stat st;
    int fd = openat(dir, name, O_RDWR | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK);

    if (fd == -1) {
        *why = why_of(errno);
        return -1;
    }
    if (fstat(fd, &st) != 0 || !S_ISREG(st.st_mode) || st.st_uid != geteuid() ||
        (st.st_mode & 0022) != 0) {
        close(fd);
        *why = "it is no file of this user's alone";
        return -1;
    }
    return fd;
}

/* Why it is to be tried again, or NULL. */
static const char *take_file(int dir, const char *name, pool_file_take *take,
                             void *owner) {
    const char *why = NULL;
    int fd = open_file(dir, name, &why);

    if (fd != -1) {
        why = take(owner, fd, name);
        close(fd);
    }
    if (why == NULL || pool_may_pass(why)) {
        return why;
    }
    set_aside(dir, name, why);
    return NULL;
}

static DIR *open_pools(const spool *s, const char **why) {
    int at = openat(spool_pools(s), ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    DIR *d = at != -1 ? fdopendir(at) : NULL;

    if (d == NULL) {
        *why = why_of(errno);
        if (at != -1) {
            close(at);
        }
    }
    return d;
}

void pool_file_clean(spool *s) {
    const char *why;
    DIR *d = open_pools(s, &why);
    struct dirent *e;

    while (d != NULL && (e = readdir(d)) != NULL) {
        if (ends_with(e->d_name, UNFINISHED)) {
            (void)unlinkat(spool_pools(s), e->d_name, 0);
        }
    }
    if (d != NULL) {
        closedir(d);
    }
}

const char *pool_file_each(spool *s, pool_file_take *take, void *owner) {
    const char *why, *again = NULL;
    DIR *d = open_pools(s, &why);
    struct dirent *e;

    if (d == NULL) {
        log_error("spool: pools/ cannot be read: %s", why);
        return pool_may_pass(why) ? why : NULL;
    }
    while ((e = readdir(d)) != NULL) {
        if (e->d_name[0] != '.' && !ends_with(e->d_name, DAMAGED) &&
            !ends_with(e->d_name, UNFINISHED)) {
            why = take_file(spool_pools(s), e->d_name, take, owner);
            again = why != NULL ? why : again;
        }
    }
    closedir(d);
    return again;
}
