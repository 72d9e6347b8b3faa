/*
 * capture-proxy's flags: the Java Traffic Capture Proxy's, and a few of its
 * own.
 *
 * FLAGS is the one table: the command line, the variables, the JSON forms,
 * --help and docs/launcher.md come from it.
 */
#ifndef LAUNCHER_FLAGS_H
#define LAUNCHER_FLAGS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

enum flag_kind {
    FLAG_TEXT,
    FLAG_SWITCH,   /* no argument; a JSON boolean; a variable: true or false */
    FLAG_NUMBER,   /* a whole number, not negative */
    FLAG_DURATION, /* ISO-8601, like PT30S, to milliseconds */
    FLAG_TIME,     /* 500ms, 3s, 5m, to milliseconds */
    FLAG_PAIRS,    /* two arguments, repeatable, no variable */
    FLAG_UNUSED    /* taken, and without effect there as here */
};

enum flag_section {
    SECTION_SOURCE,
    SECTION_LISTEN,
    SECTION_KAFKA,
    SECTION_CAPTURE,
    SECTION_TELEMETRY,
    SECTION_OWN
};

/* clang-format off */
/* X(id, name, other name or NULL, kind, default or NULL, argument, section, help) */
#define FLAGS(X)                                                                                    \
    X(DESTINATION_URI, "destinationUri", NULL, TEXT, NULL, "URI", SOURCE,                           \
      "The source cluster: http://HOST[:PORT] or https://HOST[:PORT]. Required. Its name is "       \
      "resolved again and again, and may be unresolvable at the start.")                            \
    X(INSECURE, "insecureDestination", NULL, SWITCH, NULL, "", SOURCE,                              \
      "Does not verify the source's certificate.")                                                  \
    X(POOL_SIZE, "destinationConnectionPoolSize", NULL, NUMBER, "0", "N", SOURCE,                   \
      "Idle connections to the source that a worker keeps; 0: 128.")                                \
    X(POOL_TIMEOUT, "destinationConnectionPoolTimeout", NULL, DURATION, "PT30S", "ISO-8601", SOURCE, \
      "How long a connection to the source is used again.")                                         \
    X(SET_HEADER, "setHeader", NULL, PAIRS, NULL, "NAME VALUE", SOURCE,                             \
      "Replaces every header of that name towards the source. What is captured keeps the "          \
      "client's. The last one of a name counts.")                                                   \
    X(LISTEN_PORT, "listenPort", NULL, NUMBER, NULL, "PORT", LISTEN,                                \
      "The port that clients connect to. Required.")                                                \
    X(THREADS, "numThreads", NULL, NUMBER, "0", "N", LISTEN,                                        \
      "NGINX's worker processes; 0: one for each CPU that the container may use.")                  \
    X(CERT, "sslCertChainFile", NULL, TEXT, NULL, "FILE", LISTEN,                                   \
      "PEM file with the server's certificate and its chain: clients use TLS. When its content "    \
      "changes it is loaded again; no request is cut.")                                   \
    X(KEY, "sslKeyFile", NULL, TEXT, NULL, "FILE", LISTEN,                                          \
      "PEM file with the certificate's key.")                                                       \
    X(TRUST_FILE, "sslTrustCertFile", NULL, TEXT, NULL, "FILE", LISTEN,                             \
      "PEM file with the authorities of client certificates.")                                      \
    X(TRUST_VARIABLE, "sslTrustCertPemEnvVar", NULL, TEXT, NULL, "NAME", LISTEN,                    \
      "The environment variable that holds the authorities of client certificates as PEM.")         \
    X(CLIENT_AUTH, "requireClientAuth", NULL, SWITCH, NULL, "", LISTEN,                             \
      "Serves only clients with a certificate of these authorities.")                               \
    X(BROKERS, "kafkaConnection", "kafkaBrokers", TEXT, NULL, "HOST:PORT,...", KAFKA,               \
      "The Kafka brokers. Exactly one of this, --traceDirectory and --noCapture.")                  \
    X(TOPIC, "kafkaTopic", NULL, TEXT, "logging-traffic-topic", "NAME", KAFKA,                      \
      "The topic that the records go to.")                                                          \
    X(CLIENT_ID, "kafkaClientId", NULL, TEXT, "HttpCaptureProxyProducer", "ID", KAFKA,              \
      "What the producer calls itself.")                                                            \
    X(AUTH_TYPE, "kafkaAuthType", NULL, TEXT, "none", "TYPE", KAFKA,                                \
      "none, msk-iam, scram-sha-512 (over TLS) or ssl. With none, what the property file says.")    \
    X(MSK_AUTH, "enableMSKAuth", NULL, SWITCH, NULL, "", KAFKA,                                     \
      "The same as --kafkaAuthType msk-iam.")                                                       \
    X(USER_NAME, "kafkaUserName", NULL, TEXT, NULL, "NAME", KAFKA,                                  \
      "The user for scram-sha-512.")                                                                \
    X(PASSWORD, "kafkaPassword", NULL, TEXT, NULL, "PASSWORD", KAFKA,                               \
      "Its password. Everybody on the host can read a command line: give it in "                    \
      "CAPTURE_PROXY_KAFKA_PASSWORD, or KAFKA_PASSWORD.")                                           \
    X(PROPERTY_FILE, "kafkaPropertyFile", "kafkaConfigFile", TEXT, NULL, "FILE", KAFKA,             \
      "Properties of the Java Kafka client; see the table below.")                                  \
    X(LISTENER_NAME, "kafkaListenerName", NULL, UNUSED, NULL, "NAME", KAFKA,                        \
      "Taken, and without effect.")                                                                 \
    X(SECRET_NAME, "kafkaSecretName", NULL, UNUSED, NULL, "NAME", KAFKA,                            \
      "Taken, and without effect.")                                                                 \
    X(TRACE_DIRECTORY, "traceDirectory", NULL, TEXT, NULL, "DIR", CAPTURE,                          \
      "Writes every record as a .protocap file there, and not to Kafka.")                           \
    X(NO_CAPTURE, "noCapture", NULL, SWITCH, NULL, "", CAPTURE,                                     \
      "Only a proxy: no capture, no sidecar.")                                                      \
    X(BUFFER_SIZE, "maxTrafficBufferSize", NULL, NUMBER, "1048576", "BYTES", CAPTURE,               \
      "The largest record; what a topic takes by default (1048076) is the most here.")              \
    X(SUPPRESS_HEADER, "suppressCaptureForHeaderMatch", NULL, PAIRS, NULL, "NAME REGEX", CAPTURE,   \
      "Does not capture requests whose header NAME matches REGEX as a whole. Every pair counts.")   \
    X(SUPPRESS_METHOD, "suppressCaptureForMethod", NULL, TEXT, NULL, "REGEX", CAPTURE,              \
      "Does not capture requests whose method matches as a whole.")                                 \
    X(SUPPRESS_PATH, "suppressCaptureForUriPath", NULL, TEXT, NULL, "REGEX", CAPTURE,               \
      "Does not capture requests whose URI, with its query, matches as a whole.")                   \
    X(SUPPRESS_BOTH, "suppressMethodAndPath", NULL, TEXT, NULL, "REGEX", CAPTURE,                   \
      "Does not capture requests for which \"METHOD URI\" matches as a whole.")                     \
    X(OTEL_TRACES, "otelTraceCollectorEndpoint", "otel-trace-collector-endpoint", TEXT, NULL, "URL", TELEMETRY, \
      "Taken with a warning: no spans are made.")                                                   \
    X(OTEL_METRICS, "otelMetricsCollectorEndpoint", "otel-metrics-collector-endpoint", TEXT, NULL, "URL", TELEMETRY, \
      "A collector that gets the metrics, under the names of the Java proxy, by OTLP/gRPC.")        \
    X(METRICS_LISTEN, "metrics-listen", NULL, TEXT, NULL, "HOST:PORT", TELEMETRY,                   \
      "The sidecar's HTTP server for /metrics, /live and /ready.")                                  \
    X(STATUS_LISTEN, "status-listen", NULL, TEXT, NULL, "HOST:PORT", TELEMETRY,                     \
      "NGINX's HTTP server for /capture_status: the counters of all workers.")                      \
    X(CAPTURE_BUFFER, "capture-buffer", NULL, TEXT, "64m", "SIZE", OWN,                             \
      "A worker's memory for what Kafka has not got yet (`capture_buffer`).")                       \
    X(SHUTDOWN_TIME, "shutdown-timeout", NULL, TIME, "25s", "TIME", OWN,                            \
      "From TERM to the end at the latest. NGINX gets three fifths of it to finish requests, "      \
      "the sidecar the rest to hand over what it has.")                                             \
    X(RESOLVE_TIME, "resolve-interval", NULL, TIME, "5s", "TIME", OWN,                              \
      "How often the source's name is resolved.")                                                   \
    X(RUN_DIRECTORY, "run-directory", NULL, TEXT, NULL, "DIR", OWN,                                 \
      "Where sockets, nginx.conf and the sidecar's configuration are. Default: a new one in "       \
      "TMPDIR, /tmp or /dev/shm, removed at the end.")                                              \
    X(NGINX, "nginx-binary", NULL, TEXT, NULL, "FILE", OWN,                                         \
      "Default: nginx in PATH or /usr/sbin.")                                                       \
    X(MODULE, "nginx-module", NULL, TEXT, NULL, "FILE", OWN,                                        \
      "Default: ngx_http_capture_module.so beside capture-proxy, in its ../lib/nginx/modules, or "  \
      "in /usr/lib/nginx/modules.")                                                                 \
    X(SIDECAR, "sidecar-binary", NULL, TEXT, NULL, "FILE", OWN,                                     \
      "Default: capture-sidecar beside capture-proxy, or in PATH.")                                 \
    X(PRINT_CONFIG, "print-config", NULL, SWITCH, NULL, "", OWN,                                    \
      "Prints both configurations, without secrets, and ends: also what to put into an "            \
      "nginx.conf of your own.")
/* clang-format on */

enum {
#define X(id, ...) FLAG_##id,
    FLAGS(X)
#undef X
        NFLAGS
};

typedef struct {
    const char *name; /* without dashes */
    const char *other;
    enum flag_kind kind;
    const char *initial; /* NULL: none */
    const char *argument;
    enum flag_section section;
    const char *help;
} flag;

extern const flag flags[NFLAGS];

typedef struct {
    char *name;
    char *value;
    int flag;
} flag_pair;

/* What was given, by whichever way.  Mistakes and warnings are lines on `err`,
   each with the place (flag, variable or key), the value and what to do. */
typedef struct {
    char *text[NFLAGS]; /* NULL: not given; a switch that is on: "true" */
    char *from[NFLAGS]; /* "--listenPort", "CAPTURE_PROXY_LISTEN_PORT", ... */
    flag_pair *pairs;   /* of all FLAG_PAIRS, in their order */
    size_t npairs;
    int mistakes;
    FILE *err;
} options;

/* Reads argv, variables and JSON.  0; or -1 when there were mistakes.  Either
   way options_free is called after it. */
int options_read(options *o, int argc, char **argv, char **environment,
                 FILE *err);
void options_free(options *o);

/* The value or the default, NULL without either. */
const char *options_get(const options *o, int id);
bool options_on(const options *o, int id);
/* "--listenPort" when nothing was given. */
const char *options_from(const options *o, int id, char *into, size_t size);

void options_mistake(options *o, const char *format, ...)
    __attribute__((format(printf, 2, 3)));
void options_warn(options *o, const char *format, ...)
    __attribute__((format(printf, 2, 3)));

/* What the other files of the reader use: a value from `from`, taken over;
   mistakes when it was there already by the same way. */
void options_set(options *o, int id, const char *from, const char *value);
void options_pair(options *o, int id, const char *name, const char *value);
/* -1: not known, after a mistake that names the nearest. */
int flag_find(const char *name);
int flag_unknown(options *o, const char *place, const char *name);

/* The JSON of ---INLINE-JSON (or its base64), or of a file. */
void options_read_json(options *o, const char *text);
void options_read_json_file(options *o, const char *path);

/* The variable of a flag's name. */
void flag_variable(const char *name, char *into, size_t size);

/* "PT1M30S" to milliseconds; "1m30s" is not one.  False: it is none. */
bool parse_iso_duration(const char *text, int64_t *ms);
bool parse_time(const char *text, int64_t *ms);

void flags_help(FILE *out);
void flags_docs(FILE *out);

#endif
