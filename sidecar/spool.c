#define _GNU_SOURCE /* fallocate */
#include "sidecar/spool.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <linux/magic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <time.h>
#include <unistd.h>
#include <zlib.h>

#include "sidecar/boot.h"
#include "sidecar/log.h"
#include "sidecar/metrics.h"

#define SPOOL_MAGIC 0x6c6f6f7073706163ull /* "capspool" */
#define SPOOL_VERSION 1u
#define GROW_SLOTS 256u /* 16 MiB */
#define FULL_NS 5000000000ll

typedef struct {
    uint64_t magic;
    uint32_t version;
    uint32_t slots;
    char boot_id[BOOT_ID_SIZE]; /* zeros: not known */
    uint32_t spare[3];
} spool_header;

typedef struct {
    _Atomic uint32_t used; /* stored last */
    uint32_t crc;          /* of the published part */
    char node_id[CAP_NODE_ID_SIZE];
    uint32_t spare[5];
} spool_entry;

_Static_assert(sizeof(spool_header) == 64 && sizeof(spool_entry) == 64,
               "the spool's file has this layout");

struct spool {
    char *path;
    int dir, pools, file;
    uint32_t slots; /* at most */
    uint32_t grown; /* that the file has room for */
    uint32_t used;
    uint32_t charged; /* blocks that pools in DIR/pools take */
    uint64_t mapped;
    uint64_t blocks_at;
    spool_header *header;
    spool_entry *table;
    bool *claimed;
    uint32_t *free; /* stack */
    uint32_t nfree;
    int64_t full_ns; /* the disk was full then */
    log_limiter log_full;
};

static int64_t now_ns(void) {
    struct timespec ts;

    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (int64_t)ts.tv_sec * 1000000000 + ts.tv_nsec;
}

static char *block_at(const spool *s, uint32_t slot) {
    return (char *)s->header + s->blocks_at + (uint64_t)slot * CAP_BLOCK_SIZE;
}

static void show(const spool *s) {
    metrics_cell[METRIC_SPOOL_BYTES] =
        ((uint64_t)s->used + s->charged) * CAP_BLOCK_SIZE;
}

static void count_swept(uint32_t n, const char *why) {
    log_warn("spool: %" PRIu32 " blocks are given up, whose pools are gone: %s",
             n, why);
    metrics_cell[METRIC_SPOOL_SWEPT] += n;
}

/* ---- opening ---- */

/* A directory that is ours alone.  Its descriptor, or -1 with errno. */
static int open_directory(int at, const char *name) {
    struct stat st;
    int fd;

    if (mkdirat(at, name, 0700) != 0 && errno != EEXIST) {
        return -1;
    }
    fd = openat(at, name, O_RDONLY | O_DIRECTORY | O_CLOEXEC | O_NOFOLLOW);
    if (fd != -1 && (fstat(fd, &st) != 0 || st.st_uid != geteuid() ||
                     (st.st_mode & 0022) != 0)) {
        close(fd);
        errno = EPERM;
        return -1;
    }
    return fd;
}

static void warn_of_ephemeral(const spool *s) {
    struct statfs fs;

    if (fstatfs(s->dir, &fs) == 0 &&
        (fs.f_type == TMPFS_MAGIC || fs.f_type == OVERLAYFS_SUPER_MAGIC)) {
        log_warn("spool.path %s is on a %s: what is there goes with the "
                 "machine or the container; mount a volume",
                 s->path, fs.f_type == TMPFS_MAGIC ? "tmpfs" : "overlay");
    }
}

/* Room for slots up to `slots`.  0, or -1 with errno. */
static int grow(spool *s, uint32_t slots) {
    uint64_t end = s->blocks_at + (uint64_t)slots * CAP_BLOCK_SIZE;

    if (fallocate(s->file, 0, 0, (off_t)end) != 0) {
        return -1;
    }
    s->grown = slots;
    return 0;
}

static const char *map_file(spool *s, uint64_t size) {
    struct stat st;

    s->blocks_at = sizeof(spool_header) + s->slots * sizeof(spool_entry);
    s->blocks_at = (s->blocks_at + 4095) & ~4095ull;
    s->mapped = s->blocks_at + (uint64_t)s->slots * CAP_BLOCK_SIZE;
    if (size < s->blocks_at && fallocate(s->file, 0, 0, (off_t)s->blocks_at)) {
        return strerror(errno);
    }
    s->header =
        mmap(NULL, s->mapped, PROT_READ | PROT_WRITE, MAP_SHARED, s->file, 0);
    if (s->header == MAP_FAILED) {
        s->header = NULL;
        return strerror(errno);
    }
    (void)madvise(s->header, s->mapped, MADV_DONTDUMP);
    s->table = (spool_entry *)(void *)(s->header + 1);
    if (fstat(s->file, &st) == 0 && (uint64_t)st.st_size > s->blocks_at) {
        s->grown =
            (uint32_t)(((uint64_t)st.st_size - s->blocks_at) / CAP_BLOCK_SIZE);
    }
    return NULL;
}

/* With another spool.size the table has another length: only an empty one can
   change. */
static const char *read_file(spool *s) {
    spool_header h = {0};
    struct stat st;
    ssize_t n = pread(s->file, &h, sizeof(h), 0);

    if (n == -1 || fstat(s->file, &st) == -1) {
        return strerror(errno);
    }
    if (n == sizeof(h) && h.magic == SPOOL_MAGIC && h.slots != s->slots) {
        log_info("spool: it was made for %" PRIu32 " blocks, and stays so "
                 "until it is empty",
                 h.slots);
        s->slots = h.slots;
    } else if (n != 0 && (n != sizeof(h) || h.magic != SPOOL_MAGIC)) {
        return "the file `blocks` is not a spool's";
    }
    if (n != 0 && h.version != SPOOL_VERSION) {
        return "the spool is of another version of capture-sidecar";
    }
    if (s->slots == 0 || s->slots > UINT32_MAX / 2) {
        return "the spool's size is impossible";
    }
    return map_file(s, (uint64_t)st.st_size);
}

/* Low slots on top: the file grows only as far as it must. */
static void stack_free(spool *s) {
    s->nfree = 0;
    for (uint32_t i = s->slots; i-- > 0;) {
        if (i >= s->grown ||
            !atomic_load_explicit(&s->table[i].used, memory_order_relaxed)) {
            s->free[s->nfree++] = i;
        }
    }
}

static const char *take_stock(spool *s) {
    s->claimed = calloc(s->slots, sizeof(*s->claimed));
    s->free = calloc(s->slots, sizeof(*s->free));
    if (s->claimed == NULL || s->free == NULL) {
        return "out of memory";
    }
    stack_free(s);
    s->used = s->slots - s->nfree;
    s->header->magic = SPOOL_MAGIC;
    s->header->version = SPOOL_VERSION;
    s->header->slots = s->slots;
    boot_mark(s->header->boot_id);
    return NULL;
}

/* At most `most`. */
static uint32_t count_used(int file, const spool_header *h, uint32_t most) {
    spool_entry e;
    uint32_t n = 0;

    for (uint32_t i = 0; i < h->slots && n < most; i++) {
        if (pread(file, &e, sizeof(e), (off_t)(sizeof(*h) + i * sizeof(e))) !=
            sizeof(e)) {
            break;
        }
        n += e.used != 0;
    }
    return n;
}

/*
 * An empty spool takes the size that is configured now.  One of another run of
 * the host is empty: nobody has the pools any more that its blocks are of, and
 * it was not synced.
 */
static const char *forget_what_is_over(int file) {
    spool_header h;
    uint32_t used;
    bool over;

    if (pread(file, &h, sizeof(h), 0) != sizeof(h) || h.magic != SPOOL_MAGIC) {
        return NULL;
    }
    over = boot_is_another(h.boot_id);
    used = count_used(file, &h, over ? h.slots : 1);
    if (used > 0 && !over) {
        return NULL;
    }
    if (ftruncate(file, 0) != 0) {
        return strerror(errno);
    }
    if (used > 0) {
        count_swept(used, "the host has been started since");
    }
    return NULL;
}

static const char *open_all(spool *s, const config *c) {
    const char *why;

    s->dir = open_directory(AT_FDCWD, c->spool_path);
    /* before anything in it is touched; it goes with the process */
    if (s->dir != -1 && flock(s->dir, LOCK_EX | LOCK_NB) != 0) {
        return errno == EWOULDBLOCK ? "another capture-sidecar uses it"
                                    : strerror(errno);
    }
    s->pools = s->dir != -1 ? open_directory(s->dir, "pools") : -1;
    if (s->pools == -1) {
        return errno == EPERM ? "it must be a directory of this user's, that "
                                "nobody else can write to"
                              : strerror(errno);
    }
    s->file = openat(s->dir, "blocks",
                     O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);
    if (s->file == -1) {
        return strerror(errno);
    }
    why = forget_what_is_over(s->file);
    return why != NULL ? why : read_file(s);
}

spool *spool_open(const config *c) {
    spool *s = calloc(1, sizeof(*s));
    const char *why;

    if (s == NULL) {
        log_error("out of memory");
        return NULL;
    }
    s->dir = s->pools = s->file = -1;
    s->path = c->spool_path;
    s->slots = (uint32_t)(c->spool_size / CAP_BLOCK_SIZE);
    why = open_all(s, c);
    if (why == NULL) {
        why = take_stock(s);
    }
    if (why != NULL) {
        log_error("spool.path %s: %s", c->spool_path, why);
        spool_close(s);
        return NULL;
    }
    warn_of_ephemeral(s);
    if (!boot_is_this(s->header->boot_id)) {
        log_warn("spool: /proc/sys/kernel/random/boot_id cannot be read: what "
                 "is in pools/ is lost when this process ends");
    }
    metrics_cell[METRIC_SPOOL_SIZE] = (uint64_t)s->slots * CAP_BLOCK_SIZE;
    show(s);
    if (s->used > 0) {
        log_info("spool: %" PRIu32 " blocks are there", s->used);
    }
    return s;
}

void spool_close(spool *s) {
    if (s == NULL) {
        return;
    }
    if (s->header != NULL) {
        munmap(s->header, s->mapped);
    }
    for (int *fd = (int[]){s->dir, s->pools, s->file, -2}; *fd != -2; fd++) {
        if (*fd != -1) {
            close(*fd);
        }
    }
    free(s->claimed);
    free(s->free);
    free(s);
}

uint32_t spool_slots(const spool *s) {
    return s->slots;
}

int spool_directory(const spool *s) {
    return s->dir;
}

int spool_pools(const spool *s) {
    return s->pools;
}

bool spool_charge(spool *s, uint32_t blocks) {
    if (s->nfree < s->charged || s->nfree - s->charged < blocks) {
        return false;
    }
    spool_charge_anyway(s, blocks);
    return true;
}

void spool_charge_anyway(spool *s, uint32_t blocks) {
    s->charged += blocks;
    show(s);
}

void spool_uncharge(spool *s, uint32_t blocks) {
    s->charged -= blocks < s->charged ? blocks : s->charged;
    show(s);
}

/* ---- blocks ---- */

static uint32_t published(const void *block) {
    uint32_t n = ((const cap_block *)block)->published & ~CAP_BLOCK_SEALED;

    return n <= CAP_BLOCK_SIZE ? n : CAP_BLOCK_SIZE;
}

static uint32_t checksum(const void *block) {
    return (uint32_t)crc32(0, block, published(block));
}

static bool has_room(spool *s, uint32_t slot) {
    uint32_t want;

    if (slot < s->grown) {
        return true;
    }
    want = slot + GROW_SLOTS < s->slots ? slot + GROW_SLOTS : s->slots;
    if (s->full_ns != 0 && now_ns() - s->full_ns < FULL_NS) {
        return false;
    }
    if (grow(s, want) == 0 || (errno == ENOSPC && grow(s, slot + 1) == 0)) {
        s->full_ns = 0;
        return true;
    }
    s->full_ns = now_ns();
    metrics_cell[METRIC_SPOOL_FULL]++;
    log_limited(&s->log_full, LOG_LEVEL_ERROR,
                "spool.path %s takes no more: %s; captured bytes stay in the "
                "workers' memory",
                s->path, strerror(errno));
    return false;
}

uint32_t spool_put(spool *s, const char *node_id, const void *block) {
    uint32_t slot;
    spool_entry *e;

    if (s->nfree <= s->charged) {
        metrics_cell[METRIC_SPOOL_FULL]++;
        return SPOOL_NO_SLOT;
    }
    slot = s->free[s->nfree - 1];
    if (!has_room(s, slot)) {
        return SPOOL_NO_SLOT;
    }
    s->nfree--;
    e = &s->table[slot];
    memcpy(block_at(s, slot), block, published(block));
    memcpy(e->node_id, node_id, sizeof(e->node_id));
    e->crc = checksum(block_at(s, slot));
    atomic_store_explicit(&e->used, 1, memory_order_release);
    s->claimed[slot] = true;
    s->used++;
    metrics_cell[METRIC_SPOOLED]++;
    show(s);
    return slot;
}

const void *spool_block(const spool *s, uint32_t slot) {
    return block_at(s, slot);
}

/* The disk gets its room back when nothing is left. */
void spool_release(spool *s, uint32_t slot) {
    atomic_store_explicit(&s->table[slot].used, 0, memory_order_release);
    s->claimed[slot] = false;
    s->free[s->nfree++] = slot;
    s->used--;
    show(s);
    if (s->used == 0 && s->grown > GROW_SLOTS &&
        ftruncate(s->file, (off_t)s->blocks_at) == 0) {
        s->grown = 0;
        stack_free(s); /* low ones first again */
    }
}

uint32_t spool_claim(spool *s, const char *node_id, uint32_t from) {
    for (uint32_t i = from; i < s->grown && i < s->slots; i++) {
        spool_entry *e = &s->table[i];

        if (!atomic_load_explicit(&e->used, memory_order_acquire) ||
            s->claimed[i] ||
            memcmp(e->node_id, node_id, sizeof(e->node_id)) != 0) {
            continue;
        }
        s->claimed[i] = true;
        if (checksum(block_at(s, i)) == e->crc) {
            return i;
        }
        log_error("spool: block %" PRIu32 " is damaged and set aside", i);
        metrics_cell[METRIC_SPOOL_DAMAGED]++;
        spool_release(s, i);
    }
    return SPOOL_NO_SLOT;
}

static bool is_used(const spool *s, uint32_t slot) {
    return atomic_load_explicit(&s->table[slot].used, memory_order_relaxed) !=
           0;
}

static bool is_of(const spool *s, uint32_t slot, const char *node_id) {
    return is_used(s, slot) && memcmp(s->table[slot].node_id, node_id,
                                      sizeof(s->table[slot].node_id)) == 0;
}

void spool_unclaim(spool *s, const char *node_id) {
    for (uint32_t i = 0; i < s->grown && i < s->slots; i++) {
        if (is_of(s, i, node_id)) {
            s->claimed[i] = false;
        }
    }
}

uint32_t spool_drop(spool *s, const char *node_id) {
    uint32_t n = 0;

    for (uint32_t i = 0; i < s->grown && i < s->slots; i++) {
        if (is_of(s, i, node_id)) {
            spool_release(s, i);
            n++;
        }
    }
    return n;
}

uint32_t spool_sweep(spool *s) {
    uint32_t n = 0;

    for (uint32_t i = 0; i < s->grown && i < s->slots; i++) {
        if (!s->claimed[i] && is_used(s, i)) {
            spool_release(s, i);
            n++;
        }
    }
    if (n > 0) {
        count_swept(n, "no worker and no file has come for them");
    }
    return n;
}
