/*
 * Memory that ends where a page without any rights begins, so that one byte
 * read or written behind it is a crash and not luck.
 */

#ifndef T_UNIT_GUARDED_H
#define T_UNIT_GUARDED_H

#include <check.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

typedef struct {
    uint8_t *base;
    uint8_t *end; /* the first byte that must not be touched */
    size_t size;
} guarded;

static inline guarded guarded_new(size_t size) {
    guarded g;
    size_t page = (size_t)sysconf(_SC_PAGESIZE);

    g.size = (size + page - 1) / page * page;
    g.base = mmap(NULL, g.size + page, PROT_READ | PROT_WRITE,
                  MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    ck_assert(g.base != MAP_FAILED);
    g.end = g.base + g.size;
    ck_assert_int_eq(mprotect(g.end, page, PROT_NONE), 0);

    return g;
}

static inline void guarded_free(guarded *g) {
    munmap(g->base, g->size + (size_t)sysconf(_SC_PAGESIZE));
}

/* The last len bytes before the guard. */
static inline uint8_t *guarded_tail(guarded *g, size_t len) {
    ck_assert(len <= g->size);

    return g->end - len;
}

static inline uint8_t *guarded_copy(guarded *g, const void *data, size_t len) {
    uint8_t *p = guarded_tail(g, len);

    return len ? memcpy(p, data, len) : p;
}

#endif
