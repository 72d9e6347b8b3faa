/*
 * Tokens for SASL OAUTHBEARER that do not come from librdkafka itself: of a
 * command, or signed for Amazon MSK.  librdkafka asks when 80 % of the lifetime
 * has passed, in its background thread: nothing here runs on the loop's.
 */
#ifndef SIDECAR_KAFKA_TOKEN_H
#define SIDECAR_KAFKA_TOKEN_H

#include <librdkafka/rdkafka.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#include "sidecar/config.h"

typedef struct {
    char *value;
    int64_t expires_ms; /* since 1970 */
    char principal[128];
} kafka_token;

/* What a source says: 0, or -1 with the reason, which holds no secret. */
typedef int (*kafka_token_source)(const config *c, kafka_token *into, char *why,
                                  size_t size);

/* kafka_token_command.c */

int kafka_token_from_command(const config *c, kafka_token *into, char *why,
                             size_t size);
/* A JWT, or JSON with access_token and expires_in; `now_ms` since 1970. */
int kafka_token_parse(const char *text, int64_t now_ms, kafka_token *into,
                      char *why, size_t size);

/* kafka_token.c */

int kafka_token_from_aws(const config *c, kafka_token *into, char *why,
                         size_t size);
void kafka_token_free(kafka_token *t);

/* AWS's region: configured, of the brokers' names, of the environment; or "". */
void kafka_token_region(const config *c, char *into, size_t size);

/* 0, or -1 after a line to `err`: what a token's source lacks. */
int kafka_token_check(const config *c, FILE *err);

/* When the last token that was got for `c` expires, s since 1970; 0: none. */
uint64_t kafka_token_expiry(const config *c);

/* For a producer's properties, and for the producer made with them. */
void kafka_token_configure(const config *c, rd_kafka_conf_t *conf);
void kafka_token_begin(const config *c, rd_kafka_t *rk);

#endif
