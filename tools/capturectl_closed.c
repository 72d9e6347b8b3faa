/*
 * Connections that have ended, see capturectl_closed.h: two hash tables with
 * open addressing. When the younger is full the older is emptied and becomes
 * the younger, so that nothing is ever taken out of a table.
 */

#include "tools/capturectl_closed.h"

#include "tools/capturectl.h"

#include <stdlib.h>
#include <string.h>

typedef struct {
    closed_connection *cells;
    size_t count;
} generation;

struct closed_table {
    generation younger, older;
    size_t cells; /* of each */
    size_t full;  /* so many are enough */
};

static closed_connection *new_cells(size_t n) {
    closed_connection *cells = calloc(n, sizeof(closed_connection));

    if (cells == NULL) {
        ctl_die("out of memory");
    }

    return cells;
}

closed_table *closed_new(size_t remember) {
    closed_table *t = ctl_alloc(sizeof(closed_table));

    *t = (closed_table){.full = remember / 2 + 1};
    t->cells = t->full + t->full / 2;
    t->younger.cells = new_cells(t->cells);
    t->older.cells = new_cells(t->cells);

    return t;
}

void closed_free(closed_table *t) {
    free(t->younger.cells);
    free(t->older.cells);
    free(t);
}

/* The connection's cell, or the free one where it belongs. */
static closed_connection *cell(const closed_table *t, const generation *g,
                               closed_key key) {
    size_t i = key.a % t->cells;

    while (g->cells[i].used &&
           (g->cells[i].key.a != key.a || g->cells[i].key.b != key.b)) {
        i = i + 1 < t->cells ? i + 1 : 0;
    }

    return &g->cells[i];
}

void closed_put(closed_table *t, const closed_connection *c) {
    closed_connection *to;

    if (t->younger.count >= t->full) {
        generation g = t->older;

        t->older = t->younger;
        free(g.cells);
        t->younger = (generation){new_cells(t->cells), 0};
    }

    to = cell(t, &t->younger, c->key);
    t->younger.count += !to->used;
    *to = *c;
    to->used = true;
}

closed_connection *closed_find(closed_table *t, closed_key key) {
    closed_connection *c = cell(t, &t->younger, key);

    if (!c->used) {
        c = cell(t, &t->older, key);
    }

    return c->used ? c : NULL;
}

static uint64_t mix(uint64_t h) {
    h ^= h >> 32;
    h *= UINT64_C(0xd6e8feb86659fd93);
    h ^= h >> 32;
    h *= UINT64_C(0xd6e8feb86659fd93);

    return h ^ h >> 32;
}

uint64_t closed_digest(const void *data, size_t len, uint64_t seed) {
    const char *p = data;
    uint64_t word, h = mix(seed + len + 1);

    for (; len >= 8; len -= 8, p += 8) {
        memcpy(&word, p, 8);
        h = mix(h ^ word);
    }

    word = 0;

    if (len > 0) {
        memcpy(&word, p, len);
    }

    return mix(h ^ word);
}
