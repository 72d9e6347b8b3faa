/*
 * From what the journal has of a worker whose memory is gone, a pool as that
 * worker would have offered it (wire/layout.h): its slots, its intents, and of
 * each connection the frames that were journaled, one connection behind the
 * other.  So they are numbered anew, and slots and intents with them.
 *
 * What a record in doubt holds beyond the journaled frames is not there: if it
 * is found in the topic, the intent says how the connection stands behind it;
 * if not, what is there is sent under its number.
 *
 * No I/O but the pool's own memory.
 */
#ifndef SIDECAR_JOURNAL_RECOVER_H
#define SIDECAR_JOURNAL_RECOVER_H

#include "sidecar/journal_db.h"

typedef struct {
    uint32_t chunk;
    uint8_t *data; /* frames, as in blocks */
    size_t len;
} journal_row;

typedef struct {
    journal_row *rows;
    uint32_t n;
    bool damaged; /* what comes behind them could not be read */
} journal_rows;

/* Copies a row; false: it is no frames, or out of memory. */
bool journal_rows_add(journal_rows *r, uint32_t chunk, const void *data,
                      size_t len);
void journal_rows_free(journal_rows *r);

typedef struct {
    char topic[CAP_TOPIC_NAME_SIZE];
    cap_slot slot;
    cap_intent intent;
    journal_row *rows;
    uint32_t nrows;
    journal_found found;
    uint64_t exchanges; /* that the pool begins, or has begun */
} journal_built;

typedef struct {
    journal_built *conns;
    uint32_t n, room;
    uint64_t seq; /* of the last frame */
    uint64_t damaged;
} journal_builder;

/* Takes the rows.  0, or -1: out of memory. */
int journal_builder_add(journal_builder *b, uint64_t key, const cap_slot *slot,
                        const cap_intent *intent, const char *topic,
                        journal_rows *rows);

/* 0, or -1 with why. */
int journal_builder_pool(journal_builder *b, const char *node_id,
                         journal_recovered *r, char *why);
void journal_builder_free(journal_builder *b);

#endif
