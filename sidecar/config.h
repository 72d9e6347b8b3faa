/*
 * The configuration: `key = value` lines, `#` begins a comment line.
 *
 * CONFIG_KEYS is the one table: parsing, defaults, ranges, --help-config and
 * docs/configuration.md come from it.  `kafka.NAME` is librdkafka's property
 * NAME; those that protect delivery are refused (sidecar/kafka.h).
 */
#ifndef SIDECAR_CONFIG_H
#define SIDECAR_CONFIG_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <sys/types.h>

enum config_type {
    CONFIG_SOCKET, /* unix:/absolute/path, at most 107 bytes of path */
    CONFIG_TEXT,
    CONFIG_PATH,    /* absolute */
    CONFIG_ADDRESS, /* host:port */
    CONFIG_SIZE,    /* 64k, 16m, 1g: bytes */
    CONFIG_TIME,    /* 500ms, 3s, 5m: nanoseconds */
    CONFIG_MODE,    /* octal */
    CONFIG_USER,    /* name or number */
    CONFIG_GROUP,
    CONFIG_UIDS,   /* list of names or numbers, by commas */
    CONFIG_CHOICE, /* of the help's words */
    CONFIG_TOPIC,  /* a name that Kafka allows */
    CONFIG_DURABILITY,
    CONFIG_LATER /* known, and refused: not built yet */
};

/* X(key, field, type, default or NULL, min, max or choices, help) lives in
   config.c together with everything that is made from it. */

#define CONFIG_MAX_UIDS 32
#define CONFIG_MAX_KAFKA 128

typedef struct {
    char *name; /* without "kafka." */
    char *value;
    int line; /* of the file, for messages */
} config_property;

typedef struct {
    char *listen;       /* path without "unix:" */
    mode_t listen_mode; /* default 0660 */
    uid_t listen_owner; /* (uid_t)-1: unchanged */
    gid_t listen_group; /* (gid_t)-1: unchanged */
    uid_t allowed_uids[CONFIG_MAX_UIDS];
    size_t nallowed_uids; /* 0: whoever the socket's mode lets in */
    char *topic;          /* default logging-traffic-topic */
    config_property kafka[CONFIG_MAX_KAFKA];
    size_t nkafka;
    char *metrics_listen;   /* host:port or NULL */
    char *export_path;      /* directory or NULL */
    bool export_protocap;   /* export.format = protocap (else: lines) */
    uint64_t export_size;   /* bytes; default 1g */
    uint64_t record_size;   /* bytes; default 1048076 (record contract) */
    uint64_t inflight_size; /* bytes encoded and not acknowledged; 64m */
    uint64_t pools_size;    /* bytes of all mapped pools together; 8g */
    int64_t flush_time;     /* default 1s */
    int64_t settle_time;    /* default 3s */
    int64_t drain_time;     /* TERM: default 10s */
    int log_level;
    char *file; /* its name as given, for messages */
} config;

/* For messages: whether the value of librdkafka's property must not be shown. */
bool config_is_secret(const char *kafka_name);

/* The property's value, or NULL.  `kafka_name` as librdkafka's. */
const char *config_kafka(const config *c, const char *kafka_name);

/* The nearest of `names` by spelling, or NULL when none is near. */
const char *config_nearest(const char *name, const char *const *names,
                           size_t n);

/* Reads a file.  0, or -1 after printing to `err` a line per mistake with
   file, line, key, value and what to do.  Warnings go there too.  Either way
   config_free is called after it. */
int config_read(config *c, const char *file, FILE *err);
void config_free(config *c);

/* --help-config (text) and docs/configuration.md (markdown). */
void config_help(FILE *out, bool markdown);

#endif
