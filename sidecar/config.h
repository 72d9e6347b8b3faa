/*
 * The configuration: `key = value` lines, `#` begins a comment line.
 *
 * CONFIG_KEYS is the one table: parsing, defaults, ranges, --help-config and
 * docs/configuration.md come from it.  `kafka.NAME` is librdkafka's property
 * NAME; those that protect delivery are refused (sidecar/kafka.h).
 *
 * Records go to `topic`, the default destination, or to the one that NGINX
 * names: topic.NAME permits it, topic.NAME.kafka.* says what of kafka.* is
 * other there.  config_destination.c makes a whole configuration of one.
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
    CONFIG_REGION, /* AWS's */
    CONFIG_URL,    /* http:// or https://, without user and query */
    CONFIG_HEADERS /* name=value,name=value; a secret */
};

enum config_token_source {
    CONFIG_TOKEN_NONE,
    CONFIG_TOKEN_COMMAND,
    CONFIG_TOKEN_AWS_MSK_IAM
};

/* CONFIG_KEYS, X(key, field, type, default or NULL, min, max or choices, help),
   is in config.c, which reads files; config_value.c reads values. */

#define CONFIG_MAX_UIDS 32
#define CONFIG_MAX_KAFKA 128
#define CONFIG_HEADER_SIZE 16384
#define CONFIG_MAX_DESTINATIONS 16 /* beside the default one */
#define CONFIG_MAX_OVERRIDES 32    /* a destination's own kafka.* */
#define CONFIG_NAME_SIZE 64        /* a destination's name and its NUL */
#define CONFIG_DEFAULT_NAME "default"

typedef struct {
    char *name;    /* without "kafka."; or of another key, whole */
    char *value;   /* with its references resolved */
    char *written; /* with them, as in the file; NULL: it has none */
    int line;      /* of the file, for messages */
    /* what stands before "kafka.": "", or "topic.NAME." */
    const char *scope;
} config_property;

/* What topic.NAME permits. */
typedef struct {
    char name[CONFIG_NAME_SIZE];
    char scope[sizeof("topic..") + CONFIG_NAME_SIZE];
    char *topic; /* NULL while the file is being read */
    int line;
    config_property kafka[CONFIG_MAX_OVERRIDES];
    size_t nkafka;
} config_destination;

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
    /* its value is NULL where there are none */
    config_property otlp_headers;
    config_destination *destinations; /* beside `topic` */
    size_t ndestinations;
    /* of config_view: which one this is; NULL: there is only one */
    const char *destination;
    char *metrics_listen;   /* host:port or NULL */
    char *otlp_endpoint;    /* URL or NULL */
    char *otlp_traces;      /* as well */
    int64_t otlp_interval;  /* default 1s */
    char *export_path;      /* directory or NULL */
    bool export_protocap;   /* export.format = protocap (else: lines) */
    uint64_t export_size;   /* bytes; default 1g */
    uint64_t record_size;   /* bytes; default 1048076 (record contract) */
    uint64_t inflight_size; /* bytes encoded and not acknowledged; 64m */
    uint64_t pools_size;    /* bytes of all mapped pools together; 8g */
    int64_t flush_time;     /* default 1s */
    int64_t pinned_time;    /* default 1s */
    int64_t settle_time;    /* default 3s */
    int settle_drop;        /* settle.unreadable = drop (else: resend) */
    char *spool_path;       /* NULL: none */
    uint64_t spool_size;    /* default 1g */
    bool durability_disk;   /* durability = disk (else: kafka) */
    uint64_t journal_size;  /* bytes of frames; default 64m */
    int64_t drain_time;     /* TERM: default 10s */
    int log_level;
    int log_format;        /* as log.h's */
    int core_dumps;        /* 1: allowed */
    int token_source;      /* enum config_token_source */
    char *token_command;   /* a program and its arguments, or NULL */
    int64_t token_timeout; /* default 30s */
    char *aws_region;      /* or NULL */
    int aws_credentials;   /* 0: the chain, else one of aws_credentials.h */
    char *aws_profile;     /* or NULL */
    char *file;            /* its name as given, for messages */
} config;

/* Whether the value of librdkafka's property must not be shown. */
bool config_is_secret(const char *kafka_name);

/* For messages: the value, or the reference to it, or that it is not shown. */
const char *config_shown(const config_property *p);

/*
 * Resolves `${env:NAME}` and `${file:/path}` in `written`; a file's last line
 * end is not part of its value.  *value is the caller's, or NULL when nothing
 * is to be resolved.  0, or -1 with the reason, which never holds a value.
 */
int config_resolve(const char *written, char **value, char *why, size_t size);

/*
 * Reads again what the values of kafka.* and otlp.headers refer to.  How many have changed, or
 * -1 after a line each to `err`: then all have kept their old values.
 */
int config_resolve_again(config *c, FILE *err);

/* Has log.h hide the secrets among the values of kafka.*, and otlp.headers. */
void config_hide_secrets(const config *c);

/*
 * The next of otlp.headers as "Name: value", decoded, into `line`; *at begins as
 * the whole value and goes on with each call.  1, or 0 at the end, or -1 with
 * *why, which holds nothing of it.
 */
int config_header(const char **at, char *line, size_t size, const char **why);

/* The property's value, or NULL.  `kafka_name` as librdkafka's. */
const char *config_kafka(const config *c, const char *kafka_name);

/*
 * The configuration as the destination `i` has it, 0 the default one and then
 * c->destinations: its topic, its kafka.*, its share of inflight.size.  Nothing
 * of it is a copy: it is good until `c` changes, and freed with `c`.
 */
void config_view(const config *c, size_t i, config *into);
/* The values of kafka.* anew, and nothing else: other threads read the rest of
   `view` (kafka_token.c). */
void config_view_again(const config *c, size_t i, config *view);
/* What it is called: "default", or the name. */
const char *config_destination_name(const config *c, size_t i);

/* The i-th of all kafka.*, the destinations' own included; NULL: no more. */
config_property *config_property_at(const config *c, size_t i);

/* For a log line: " of NAME", or "" where there is only one destination. */
void config_of_destination(const config *view, char *into, size_t size);

/* While a file is read: the destination of that name; NULL: out of memory, or
   one too many. */
config_destination *config_destination_find(config *c, const char *name,
                                            size_t len, int line);
/* Whether they fit together; after a line a mistake to `err`, their number. */
int config_destination_check(const config *c, const char *file, FILE *err);
void config_destination_free(config *c);

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
