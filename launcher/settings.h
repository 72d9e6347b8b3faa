/*
 * What the flags mean: checked, with defaults, and ready to be written down.
 */
#ifndef LAUNCHER_SETTINGS_H
#define LAUNCHER_SETTINGS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#include "launcher/flags.h"

enum output { TO_KAFKA, TO_DIRECTORY, TO_NOWHERE };

typedef struct {
    char *name;
    char *value;
} setting_pair;

typedef struct {
    const char *variable; /* NGINX's: what is matched */
    char *pattern;
} suppression;

#define MAX_SUPPRESSIONS 64
#define MAX_HEADERS 64
#define MAX_PROPERTIES 96

typedef struct {
    /* the source */
    bool tls_source, verify_source, host_is_address;
    char host[256]; /* an IPv6 address without brackets */
    int port;
    int64_t pool_size, pool_ms;
    setting_pair headers[MAX_HEADERS];
    size_t nheaders;

    /* clients */
    int listen_port, workers;
    const char *cert, *key, *trust; /* files or NULL */
    const char *trust_pem;          /* PEM text instead of `trust`, or NULL */
    bool client_auth;

    /* capture */
    enum output output;
    const char *directory, *topic, *client_id;
    int64_t record_size;
    suppression suppress[MAX_SUPPRESSIONS];
    size_t nsuppress;
    setting_pair kafka[MAX_PROPERTIES]; /* librdkafka's names */
    size_t nkafka;
    bool msk; /* Amazon's tokens in the place of a password */
    char *ca_pem, *cert_pem, *key_pem; /* PEM out of the property file */

    /* the launcher's own */
    const char *capture_buffer, *metrics_listen, *status_listen;
    const char *otlp_endpoint; /* or NULL */
    int64_t shutdown_ms, resolve_ms;
    const char *run_directory; /* NULL: a new one */
    char *nginx, *module, *sidecar;
    char *nginx_v; /* what `nginx -V` says, "" when it cannot be asked */
} settings;

/* 0; or -1 after lines on o->err.  The settings point into `o`.  `print`: the
   parts that only a start needs may be missing.  Call settings_free after. */
int settings_make(settings *s, options *o, bool print);
void settings_free(settings *s);

/* librdkafka's property, replacing an earlier value. */
void settings_kafka(settings *s, options *o, const char *name,
                    const char *value);
const char *settings_kafka_get(const settings *s, const char *name);

/* Reads a Java client's property file into `s`; mistakes go to `o`. */
void properties_read(settings *s, options *o, const char *path);
/* The table of docs/launcher.md. */
void properties_docs(FILE *out);
/* Sets what MSK wants. */
void settings_msk(settings *s, options *o);

/* Where NGINX, the module and the sidecar are. */
void programs_find(settings *s, options *o, bool print);

/* CPUs that this process may use: affinity and the cgroup's quota. */
int cpus(void);

#endif
