/*
 * What config.c, config_value.c and config_help.c share.
 */
#ifndef SIDECAR_CONFIG_INTERNAL_H
#define SIDECAR_CONFIG_INTERNAL_H

#include "sidecar/config.h"

#define K 1024ull
#define M (1024 * K)
#define G (1024 * M)
#define MS 1000000ull
#define S (1000 * MS)
#define MINUTE (60 * S)

/* A row of CONFIG_KEYS. */
typedef struct {
    const char *name;
    size_t offset;
    enum config_type type;
    const char *initial;
    uint64_t min, max;
    const char *choices;
    const char *help;
} config_key;

extern const config_key config_keys[];
extern const size_t config_nkeys;

/* What a parser fills in when it does not like a value. */
typedef struct {
    char text[256];
} complaint;

/* config_value.c: 0, or -1 with `why` filled; the value may be changed */
int config_store(config *c, const config_key *k, char *value, complaint *why);
int config_parse_topic(const char *value, char **into, complaint *why);

/* A size or a time, in the largest unit that it is a multiple of. */
void config_format_scaled(const config_key *k, uint64_t n, char *into,
                          size_t size);

#endif
