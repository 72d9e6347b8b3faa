/* Counting in bounded memory, see capturectl_tally.h. */

#include "tools/capturectl_tally.h"

#include "tools/capturectl.h"

#include <search.h>
#include <stdlib.h>
#include <string.h>

struct tally {
    void *tree;         /* of entries by key, tsearch(3) */
    tally_entry **heap; /* the rarest first */
    size_t count, size;
};

tally *tally_new(size_t size) {
    tally *t = ctl_alloc(sizeof(tally));

    *t = (tally){.size = size, .heap = ctl_alloc(size * sizeof(tally_entry *))};

    return t;
}

static int by_key(const void *a, const void *b) {
    const tally_entry *x = a, *y = b;

    if (x->key_len != y->key_len) {
        return x->key_len < y->key_len ? -1 : 1;
    }

    return x->key_len ? memcmp(x->key, y->key, x->key_len) : 0;
}

static void place(tally *t, size_t at, tally_entry *e) {
    t->heap[at] = e;
    e->place = at;
}

/* An entry's count has grown. */
static void sink(tally *t, tally_entry *e) {
    size_t at = e->place;

    for (;;) {
        size_t child = 2 * at + 1;

        if (child + 1 < t->count &&
            t->heap[child + 1]->count < t->heap[child]->count) {
            child++;
        }

        if (child >= t->count || t->heap[child]->count >= e->count) {
            break;
        }

        place(t, at, t->heap[child]);
        at = child;
    }

    place(t, at, e);
}

/* A new entry at the end. */
static void rise(tally *t, tally_entry *e) {
    size_t at = e->place;

    while (at > 0 && t->heap[(at - 1) / 2]->count > e->count) {
        place(t, at, t->heap[(at - 1) / 2]);
        at = (at - 1) / 2;
    }

    place(t, at, e);
}

static void set_key(tally *t, tally_entry *e, const char *key, size_t len) {
    e->key = ctl_realloc(e->key, len);
    memcpy(e->key, key, len);
    e->key_len = len;

    if (tsearch(e, &t->tree, by_key) == NULL) {
        ctl_die("out of memory");
    }
}

static void add_new(tally *t, const char *key, size_t len) {
    tally_entry *e = ctl_alloc(sizeof(tally_entry));

    *e = (tally_entry){.count = 1, .place = t->count};
    set_key(t, e, key, len);
    t->heap[t->count++] = e;
    rise(t, e);
}

static void replace_rarest(tally *t, const char *key, size_t len) {
    tally_entry *e = t->heap[0];

    tdelete(e, &t->tree, by_key);
    e->error = e->count;
    e->count++;
    set_key(t, e, key, len);
    sink(t, e);
}

void tally_add(tally *t, const char *key, size_t len) {
    tally_entry wanted = {.key = (char *)key, .key_len = len};
    tally_entry **found = tfind(&wanted, &t->tree, by_key);

    if (found != NULL) {
        (*found)->count++;
        sink(t, *found);
    } else if (t->count < t->size) {
        add_new(t, key, len);
    } else {
        replace_rarest(t, key, len);
    }
}

static int by_count(const void *a, const void *b) {
    const tally_entry *x = *(tally_entry *const *)a,
                      *y = *(tally_entry *const *)b;

    if (x->count != y->count) {
        return x->count > y->count ? -1 : 1;
    }

    return by_key(x, y);
}

size_t tally_top(tally *t, const tally_entry **entries, size_t n) {
    n = n < t->count ? n : t->count;

    if (t->count > 0) {
        qsort(t->heap, t->count, sizeof(tally_entry *), by_count);
    }

    for (size_t i = 0; i < n; i++) {
        entries[i] = t->heap[i];
    }

    return n;
}

void tally_free(tally *t) {
    for (size_t i = 0; i < t->count; i++) {
        tdelete(t->heap[i], &t->tree, by_key);
        free(t->heap[i]->key);
        free(t->heap[i]);
    }

    free(t->heap);
    free(t);
}

/* Sixteen cells to each power of two. */
static unsigned cell_of(uint64_t v) {
    unsigned power;

    if (v < 16) {
        return (unsigned)v;
    }

    power = 63 - (unsigned)__builtin_clzll(v);

    return (power - 3) * 16 + (unsigned)((v >> (power - 4)) & 15);
}

/* The middle of what the cell holds. */
static uint64_t value_of(unsigned cell) {
    unsigned power = cell / 16 + 3;

    if (cell < 16) {
        return cell;
    }

    return ((uint64_t)(16 + cell % 16) << (power - 4)) +
           ((uint64_t)1 << (power - 4)) / 2;
}

void histogram_add(histogram *h, uint64_t value) {
    h->cells[cell_of(value)]++;
    h->count++;
    h->sum += value;
    h->max = value > h->max ? value : h->max;
}

uint64_t histogram_quantile(const histogram *h, double q) {
    uint64_t below = 0, rank = (uint64_t)(q * (double)h->count);

    for (unsigned i = 0; i < HISTOGRAM_CELLS; i++) {
        below += h->cells[i];

        if (below > rank) {
            uint64_t value = value_of(i);

            return value < h->max ? value : h->max;
        }
    }

    return h->max;
}
