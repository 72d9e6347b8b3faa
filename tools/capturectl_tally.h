/* Counting in bounded memory: the most frequent keys, and histograms. */

#ifndef TOOLS_CAPTURECTL_TALLY_H
#define TOOLS_CAPTURECTL_TALLY_H

#include <stddef.h>
#include <stdint.h>

/*
 * The most frequent of any number of keys, in a table of fixed size (the
 * "space saving" way): when it is full the rarest key gives its place, and its
 * count, to the new one. So a count is too high by at most `error`, and a key
 * more frequent than 1/size of all is there for certain.
 */
typedef struct tally tally;

typedef struct {
    char *key;
    size_t key_len;
    uint64_t count, error;
    size_t place; /* in the heap */
} tally_entry;

tally *tally_new(size_t size);
void tally_add(tally *t, const char *key, size_t len);

/* By count, the highest first; at most n. Ends the adding. */
size_t tally_top(tally *t, const tally_entry **entries, size_t n);
void tally_free(tally *t);

/* Of numbers; a quantile is right to one part in 16. */
#define HISTOGRAM_CELLS (64 * 16)

typedef struct {
    uint64_t cells[HISTOGRAM_CELLS];
    uint64_t count, sum, max;
} histogram;

void histogram_add(histogram *h, uint64_t value);

/* q: of 0 to 1; 0 if nothing was added. */
uint64_t histogram_quantile(const histogram *h, double q);

#endif
