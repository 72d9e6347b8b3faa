/*
 * Connections that have ended, in little memory: what is needed to know a
 * record of them again. The oldest are forgotten.
 */

#ifndef TOOLS_CAPTURECTL_CLOSED_H
#define TOOLS_CAPTURECTL_CLOSED_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* A connection's name; what two share by chance is one of 2^128. */
typedef struct {
    uint64_t a, b;
} closed_key;

typedef struct {
    closed_key key;
    uint64_t digest; /* of its last record */
    int32_t number;  /* of that */
    bool silent;     /* it has not been closed, and may go on */
    bool used;
} closed_connection;

typedef struct closed_table closed_table;

/* remember: at most so many, and at least half as many. */
closed_table *closed_new(size_t remember);
void closed_free(closed_table *t);
void closed_put(closed_table *t, const closed_connection *c);

/* NULL: it is not known, or not any more. Valid until the next put. */
closed_connection *closed_find(closed_table *t, closed_key key);

/* 64 bits of what can stand for the bytes. */
uint64_t closed_digest(const void *data, size_t len, uint64_t seed);

#endif
