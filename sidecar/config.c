/* A configuration file: its keys, its lines, and whether they fit together. */
#include <ctype.h>
#include <errno.h>
#include <limits.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "sidecar/config_internal.h"

/* The largest value that the Java producer makes: 1 MiB less 500 bytes. */
#define RECORD_SIZE_MAX 1048076
#define RECORD_SIZE_TEXT "1048076"

/* X(key, field, type, default, min, max, choices, help)
   A default of NULL: nothing.  For CHOICE, `min` is unused, `choices` are
   separated by "|" and the field gets the index as its own type says. */
/* clang-format off */
#define CONFIG_KEYS(X)                                                                            \
    X("listen", listen, SOCKET, NULL, 0, 0, NULL,                                                 \
      "The Unix socket that NGINX workers connect to: unix:/absolute/path. Required.")            \
    X("listen.mode", listen_mode, MODE, "0660", 0, 0777, NULL, "The socket's permissions.")       \
    X("listen.owner", listen_owner, USER, NULL, 0, 0, NULL,                                       \
      "The socket's owner: a user's name or number.")                                             \
    X("listen.group", listen_group, GROUP, NULL, 0, 0, NULL,                                      \
      "The socket's group: a name or number; the group that NGINX's workers have.")               \
    X("listen.allowed_uids", allowed_uids, UIDS, NULL, 0, 0, NULL,                                \
      "Users, by commas, whose processes may connect. Default: whom the socket's mode lets in.")  \
    X("topic", topic, TOPIC, "logging-traffic-topic", 0, 0, NULL,                                 \
      "The Kafka topic that the records go to.")                                                  \
    X("metrics.listen", metrics_listen, ADDRESS, NULL, 0, 0, NULL,                                \
      "host:port of the HTTP server for /metrics, /live and /ready. Default: none.")              \
    X("otlp.endpoint", otlp_endpoint, URL, NULL, 0, 0, NULL,                                      \
      "Where metrics are sent, under the Java proxy's names (metrics.md): http://host:4317 by "   \
      "OTLP/gRPC, or with a path, like http://host:4318/v1/metrics, by OTLP/HTTP. Default: none.") \
    X("otlp.headers", otlp_headers, HEADERS, NULL, 0, 0, NULL,                                    \
      "Sent with them: name=value, more after commas, values percent-encoded, as in "             \
      "OTEL_EXPORTER_OTLP_HEADERS. A secret: ${file:/path} or ${env:NAME}, which HUP reads again.") \
    X("otlp.interval", otlp_interval, TIME, "1s", 100 * MS, 60 * MINUTE, NULL,                    \
      "How often.")                                                                               \
    X("otlp.traces.endpoint", otlp_traces, URL, NULL, 0, 0, NULL,                                 \
      "Taken, with a warning: this program makes no spans.")                                      \
    X("export.path", export_path, PATH, NULL, 0, 0, NULL,                                         \
      "A directory into which every record is also written; it must be the sidecar's own. "       \
      "Without kafka.bootstrap.servers it is the only output.")                                   \
    X("export.format", export_protocap, CHOICE, "lines", 0, 0, "lines|protocap",                  \
      "lines: `connectionId|base64` lines in one file a start; protocap: a file a record.")       \
    X("export.size", export_size, SIZE, "1g", K, 1024 * G, NULL,                                  \
      "The export stops when it has written this much.")                                          \
    X("record.size", record_size, SIZE, RECORD_SIZE_TEXT, 4 * K, RECORD_SIZE_MAX, NULL,           \
      "The largest record. A smaller max.message.bytes of the topic lowers it further.")          \
    X("inflight.size", inflight_size, SIZE, "64m", M, 64 * G, NULL,                               \
      "Encoded records that Kafka has not acknowledged yet, at most.")                            \
    X("pools.size", pools_size, SIZE, "8g", M, 1024 * G, NULL,                                    \
      "Memory shared with all workers together, at most.")                                        \
    X("flush.time", flush_time, TIME, "1s", MS, MINUTE, NULL,                                     \
      "What has been captured of a connection is sent after this time at the latest.")            \
    X("drain.time", drain_time, TIME, "10s", 0, 60 * MINUTE, NULL,                                \
      "After TERM, how long to wait for acknowledgements before giving up.")                      \
    X("log.level", log_level, CHOICE, "info", 0, 0, "error|warn|info|debug",                      \
      "What is logged to standard error.")                                                        \
    X("log.format", log_format, CHOICE, "text", 0, 0, "text|json",                                \
      "json: a line is an object with time (UTC), level and message.")                            \
    X("core.dumps", core_dumps, CHOICE, "off", 0, 0, "off|on",                                    \
      "on: a crash may leave a core file, with secrets and captured bytes in it; debuggers "      \
      "of the same user may attach.")                                                             \
    X("token.source", token_source, CHOICE, "none", 0, 0, "none|command|aws-msk-iam",             \
      "Where the token for SASL OAUTHBEARER comes from; it is asked for again before it "         \
      "expires. none: no token, or kafka.sasl.oauthbearer.method = oidc.")                        \
    X("token.command", token_command, TEXT, NULL, 0, 0, NULL,                                     \
      "A program and its arguments, by spaces, started without a shell. It prints a JWT, or "     \
      "JSON with access_token and expires_in.")                                                   \
    X("token.timeout", token_timeout, TIME, "30s", S, 5 * MINUTE, NULL,                           \
      "How long the command, or an endpoint for credentials, may take.")                          \
    X("aws.region", aws_region, REGION, NULL, 0, 0, NULL,                                         \
      "For aws-msk-iam. Default: the one in the brokers' names, or AWS_REGION, "                  \
      "AWS_DEFAULT_REGION.")                                                                      \
    X("aws.credentials", aws_credentials, CHOICE, "chain", 0, 0,                                  \
      "chain|environment|web-identity|profile|container|instance",                                \
      "For aws-msk-iam; chain: the first of the others that is there. container: ECS, and EKS "   \
      "Pod Identity; instance: EC2 metadata, version 2.")                                         \
    X("aws.profile", aws_profile, TEXT, NULL, 0, 0, NULL,                                         \
      "The section of the profile file. Default: AWS_PROFILE, or default.")                       \
    X("durability", durability_disk, CHOICE, "kafka", 0, 0, "kafka|disk",                         \
      "What ends a wait (capture_wait). kafka: all in-sync replicas have the record. disk: the "  \
      "request is in the journal below spool.path, and synced (delivery.md).")                    \
    X("journal.size", journal_size, SIZE, "64m", M, 4 * G, NULL,                                  \
      "For durability = disk: what the journal holds at most of bytes that Kafka has not "        \
      "acknowledged. Beyond it requests wait for Kafka.")                                         \
    X("spool.path", spool_path, PATH, NULL, 0, 0, NULL,                                           \
      "A directory of the sidecar's own on a disk: blocks of the workers' memory go there when "  \
      "Kafka is slow or away. Default: none; then memory is the only buffer.")                    \
    X("spool.size", spool_size, SIZE, "1g", M, 16 * 1024 * G, NULL,                               \
      "What the spool may take on the disk.")                                                     \
    X("pinned.time", pinned_time, TIME, "1s", 100 * MS, 10 * MINUTE, NULL,                        \
      "When seven eighths of a worker's memory are held: how long a connection may wait for "     \
      "Kafka, while others do not, before it is given up as lost(pinned) so that others lose "    \
      "nothing.")                                                                                 \
    X("settle.time", settle_time, TIME, "3s", 0, 10 * MINUTE, NULL,                               \
      "How long the network and the brokers may still hold bytes of a producer that died: "       \
      "so long is waited before a record in doubt is looked for in the topic.")                   \
    X("settle.unreadable", settle_drop, CHOICE, "resend", 0, 0, "resend|drop",                    \
      "What becomes of requests that are in doubt where the topic may not be read. resend: they " \
      "are sent again under another connectionId, and counted maybe_doubled. drop: they are "     \
      "not, and are lost(maybe_lost).")
/* clang-format on */

const config_key config_keys[] = {
#define X(name, field, type, initial, min, max, choices, help)                 \
    {name, offsetof(config, field), CONFIG_##type, initial, min, max, choices, \
     help},
    CONFIG_KEYS(X)
#undef X
};

#define NKEYS (sizeof(config_keys) / sizeof(*config_keys))

const size_t config_nkeys = NKEYS;

/* The file that is being read. */
typedef struct {
    config *c;
    const char *file;
    int line;
    FILE *err;
    int mistakes;
    int seen[NKEYS]; /* the line where each key was, or 0 */
} reader;

static void __attribute__((format(printf, 2, 3)))
mistake(reader *r, const char *format, ...) {
    va_list args;
    fprintf(r->err, "%s:%d: ", r->file, r->line);
    va_start(args, format);
    vfprintf(r->err, format, args);
    va_end(args);
    fputc('\n', r->err);
    r->mistakes++;
}

/* names */

const char *config_kafka(const config *c, const char *kafka_name) {
    for (size_t i = 0; i < c->nkafka; i++)
        if (strcmp(c->kafka[i].name, kafka_name) == 0)
            return c->kafka[i].value;
    return NULL;
}

/* Levenshtein's distance; names longer than the row are far from all. */
static size_t distance(const char *a, const char *b) {
    size_t row[80], n = strlen(b);
    if (n + 1 > sizeof(row) / sizeof(*row))
        return SIZE_MAX;
    for (size_t j = 0; j <= n; j++)
        row[j] = j;
    for (size_t i = 1; *a != '\0'; a++, i++) {
        size_t diagonal = row[0];
        row[0] = i;
        for (size_t j = 1; j <= n; j++) {
            size_t best = diagonal + (*a != b[j - 1]);
            if (row[j] + 1 < best)
                best = row[j] + 1;
            if (row[j - 1] + 1 < best)
                best = row[j - 1] + 1;
            diagonal = row[j];
            row[j] = best;
        }
    }
    return row[n];
}

const char *config_nearest(const char *name, const char *const *names,
                           size_t n) {
    const char *nearest = NULL;
    size_t least = strlen(name) / 3 + 2;
    for (size_t i = 0; i < n; i++) {
        size_t d = distance(name, names[i]);
        if (d < least) {
            least = d;
            nearest = names[i];
        }
    }
    return nearest;
}

/* lines */

/* Properties of librdkafka, all of them or a destination's own. */
typedef struct {
    config_property *at;
    size_t *n, max;
    const char *scope;
} property_list;

static void read_kafka(reader *r, const property_list *list, const char *name,
                       const char *value) {
    char why[512];
    for (size_t i = 0; i < *list->n; i++)
        if (strcmp(list->at[i].name, name) == 0) {
            mistake(r,
                    "%skafka.%s is already set in line %d: leave one of them "
                    "out",
                    list->scope, name, list->at[i].line);
            return;
        }
    if (*name == '\0' || *list->n == list->max) {
        mistake(r,
                *name == '\0'
                    ? "%skafka. needs the name of a property of librdkafka"
                    : "there are too many %skafka.* keys",
                list->scope);
        return;
    }
    config_property *p = &list->at[(*list->n)++];
    p->scope = list->scope;
    p->name = strdup(name);
    p->line = r->line;
    if (config_resolve(value, &p->value, why, sizeof(why)) == -1)
        mistake(r, "%skafka.%s: %s", p->scope, name, why);
    if (p->value != NULL)
        p->written = strdup(value);
    else
        p->value = strdup(value);
    if (p->name == NULL || p->value == NULL)
        mistake(r, "out of memory");
}

/* A name that NGINX may say. */
static bool is_name(const char *name, size_t len) {
    for (size_t i = 0; i < len; i++)
        if (!isalnum((unsigned char)name[i]) && strchr("._-", name[i]) == NULL)
            return false;
    return len > 0 && len < CONFIG_NAME_SIZE;
}

/* topic.NAME = TOPIC, or topic.NAME.kafka.PROPERTY = VALUE */
static void read_destination(reader *r, const char *name, const char *value) {
    const char *kafka = strstr(name, ".kafka.");
    size_t len = kafka != NULL ? (size_t)(kafka - name) : strlen(name);
    config_destination *d;
    complaint why;
    if (!is_name(name, len)) {
        mistake(r,
                "topic.%.*s: give a name of 1 to 63 letters, digits, \".\", "
                "\"_\" and \"-\", as capture_topic has it",
                (int)(len < 80 ? len : 80), name);
        return;
    }
    if (len == strlen(CONFIG_DEFAULT_NAME) &&
        memcmp(name, CONFIG_DEFAULT_NAME, len) == 0) {
        mistake(r,
                "topic.%s: the default destination is `topic`, and its "
                "properties are kafka.*",
                name);
        return;
    }
    d = config_destination_find(r->c, name, len, r->line);
    if (d == NULL) {
        mistake(r, "topic.%s: there can be %d destinations beside `topic`",
                name, CONFIG_MAX_DESTINATIONS);
        return;
    }
    if (kafka != NULL) {
        const property_list list = {d->kafka, &d->nkafka, CONFIG_MAX_OVERRIDES,
                                    d->scope};
        read_kafka(r, &list, kafka + strlen(".kafka."), value);
        return;
    }
    if (d->topic != NULL) {
        mistake(r, "topic.%s is already set in line %d: leave one of them out",
                name, d->line);
        return;
    }
    d->line = r->line;
    if (config_parse_topic(value, &d->topic, &why) == -1)
        mistake(r, "topic.%s = %.80s: %s", name, value, why.text);
}

static const config_key *find_key(const char *name) {
    for (size_t i = 0; i < NKEYS; i++)
        if (strcmp(config_keys[i].name, name) == 0)
            return &config_keys[i];
    return NULL;
}

static void unknown_key(reader *r, const char *name) {
    const char *names[NKEYS + 1];
    for (size_t i = 0; i < NKEYS; i++)
        names[i] = config_keys[i].name;
    names[NKEYS] = "kafka.bootstrap.servers";
    const char *nearest = config_nearest(name, names, NKEYS + 1);
    if (nearest != NULL)
        mistake(r, "unknown key \"%s\": did you mean \"%s\"?", name, nearest);
    else /* not the name: it may be a secret's line, or not be text */
        mistake(r, "unknown key: --help-config lists all keys");
}

static void read_pair(reader *r, const char *name, char *value) {
    complaint why;
    bool kafka = strncmp(name, "kafka.", 6) == 0,
         destination = strncmp(name, "topic.", 6) == 0;
    const config_key *k = find_key(name);
    if (k == NULL && !kafka && !destination) {
        unknown_key(r, name);
        return;
    }
    if (*value == '\0') {
        mistake(r, "%s has no value: give one or leave the line out", name);
        return;
    }
    if (kafka) {
        const property_list list = {r->c->kafka, &r->c->nkafka,
                                    CONFIG_MAX_KAFKA, ""};
        read_kafka(r, &list, name + 6, value);
        return;
    }
    if (destination) {
        read_destination(r, name + 6, value);
        return;
    }
    int *seen = &r->seen[k - config_keys];
    if (*seen != 0) {
        mistake(r, "%s is already set in line %d: leave one of them out", name,
                *seen);
        return;
    }
    *seen = r->line;
    char shown[128]; /* strtok in a parser changes the value */
    snprintf(shown, sizeof(shown), "%s",
             k->type == CONFIG_HEADERS ? "(not shown)" : value);
    if (k->type == CONFIG_HEADERS)
        r->c->otlp_headers.line = r->line;
    if (config_store(r->c, k, value, &why) == -1)
        mistake(r, "%s = %s: %s", name, shown, why.text);
}

static char *trim(char *s) {
    while (isspace((unsigned char)*s))
        s++;
    char *end = s + strlen(s);
    while (end > s && isspace((unsigned char)end[-1]))
        end--;
    *end = '\0';
    return s;
}

static void read_line(reader *r, char *line, size_t len) {
    if (strlen(line) != len) {
        mistake(r, "there is a NUL byte: this is not a text file");
        return;
    }
    line = trim(line);
    if (*line == '\0' || *line == '#')
        return;
    char *equals = strchr(line, '=');
    if (equals == NULL) {
        /* not the line itself: it may be the rest of a secret */
        mistake(r, "no \"=\": a line is `key = value`, or a comment that "
                   "begins with \"#\"");
        return;
    }
    *equals = '\0';
    read_pair(r, trim(line), trim(equals + 1));
}

static void read_lines(reader *r, FILE *in) {
    char *line = NULL;
    size_t size = 0;
    ssize_t len;
    while ((len = getline(&line, &size, in)) != -1) {
        r->line++;
        read_line(r, line, (size_t)len);
        explicit_bzero(line, (size_t)len);
    }
    if (ferror(in))
        mistake(r, "reading failed: %s", strerror(errno));
    free(line);
}

/* the whole */

/* Of the keys that the file does not have. */
static void set_defaults(reader *r) {
    config *c = r->c;
    complaint why;
    for (size_t i = 0; i < NKEYS; i++) {
        char value[64];
        if (config_keys[i].initial == NULL || r->seen[i] != 0)
            continue;
        snprintf(value, sizeof(value), "%s", config_keys[i].initial);
        if (config_store(c, &config_keys[i], value, &why) == -1)
            mistake(r, "the default of %s: %s", config_keys[i].name, why.text);
    }
}

static void __attribute__((format(printf, 2, 3)))
mistake_in_whole(reader *r, const char *format, ...) {
    va_list args;
    fprintf(r->err, "%s: ", r->file);
    va_start(args, format);
    vfprintf(r->err, format, args);
    va_end(args);
    fputc('\n', r->err);
    r->mistakes++;
}

/* A token's source, and what else is said of authentication. */
static void check_token(reader *r) {
    const config *c = r->c;
    const char *mechanism = config_kafka(c, "sasl.mechanism"),
               *mechanisms = config_kafka(c, "sasl.mechanisms"),
               *method = config_kafka(c, "sasl.oauthbearer.method"),
               *protocol = config_kafka(c, "security.protocol");
    if ((c->token_source == CONFIG_TOKEN_COMMAND) != (c->token_command != NULL))
        mistake_in_whole(r, c->token_command == NULL
                                ? "token.source = command needs token.command"
                                : "token.command needs token.source = command");
    if (c->token_source == CONFIG_TOKEN_NONE)
        return;
    if ((mechanism != NULL && strcasecmp(mechanism, "OAUTHBEARER") != 0) ||
        (mechanisms != NULL && strcasecmp(mechanisms, "OAUTHBEARER") != 0))
        mistake_in_whole(r, "token.source is for kafka.sasl.mechanism = "
                            "OAUTHBEARER: leave one of them out");
    if (protocol != NULL && strncasecmp(protocol, "sasl_", 5) != 0)
        mistake_in_whole(r, "token.source needs kafka.security.protocol = "
                            "sasl_ssl (or sasl_plaintext)");
    if (method != NULL && strcasecmp(method, "default") != 0)
        mistake_in_whole(r, "token.source and kafka.sasl.oauthbearer.method "
                            "both say where the token comes from: leave one "
                            "of them out");
}

static void check_whole(reader *r) {
    const config *c = r->c;
    if (c->listen == NULL && !r->seen[0])
        mistake_in_whole(
            r, "listen is missing: say where NGINX finds the sidecar, like "
               "listen = unix:/run/capture/sidecar.sock");
    if (config_kafka(c, "bootstrap.servers") == NULL && c->export_path == NULL)
        mistake_in_whole(
            r,
            "there is no output: set kafka.bootstrap.servers, or export.path");
    if (c->inflight_size < c->record_size)
        mistake_in_whole(
            r,
            "inflight.size is less than record.size: no record could be sent");
    if (c->durability_disk && c->spool_path == NULL)
        mistake_in_whole(r, "durability = disk needs a directory on a disk: "
                            "set spool.path, or leave durability out");
    check_token(r);
    if (r->mistakes == 0) /* the parts are there */
        r->mistakes += config_destination_check(c, r->file, r->err);
}

static void warn_of_open_secret(reader *r, const char *prefix,
                                const config_property *p, mode_t mode) {
    fprintf(r->err,
            "%s:%d: warning: %s%s is a secret, and the file's mode %04o lets "
            "others in: chmod 600, or refer to it by ${file:/path}\n",
            r->file, p->line, prefix, p->name, mode & 07777);
}

static void warn_of_open_secrets(reader *r, FILE *in) {
    const config_property *headers = &r->c->otlp_headers;
    struct stat st;
    if (fstat(fileno(in), &st) == -1 || !S_ISREG(st.st_mode) ||
        (st.st_mode & 077) == 0)
        return;
    const config_property *p;
    for (size_t i = 0; (p = config_property_at(r->c, i)) != NULL; i++)
        if (config_is_secret(p->name) && p->written == NULL) {
            char prefix[CONFIG_NAME_SIZE + 16];
            snprintf(prefix, sizeof(prefix), "%skafka.", p->scope);
            warn_of_open_secret(r, prefix, p, st.st_mode);
            return;
        }
    if (headers->value != NULL && headers->written == NULL)
        warn_of_open_secret(r, "", headers, st.st_mode);
}

int config_read(config *c, const char *file, FILE *err) {
    reader r = {.c = c, .file = file, .err = err};
    memset(c, 0, sizeof(*c));
    c->listen_owner = (uid_t)-1;
    c->listen_group = (gid_t)-1;
    FILE *in = fopen(file, "re");
    if (in == NULL) {
        fprintf(err, "%s: cannot be opened: %s\n", file, strerror(errno));
        return -1;
    }
    c->file = strdup(file);
    read_lines(&r, in);
    set_defaults(&r);
    check_whole(&r);
    warn_of_open_secrets(&r, in);
    fclose(in);
    return r.mistakes == 0 ? 0 : -1;
}

static void free_property(config_property *p) {
    if (p->value != NULL)
        explicit_bzero(p->value, strlen(p->value));
    free(p->name);
    free(p->value);
    free(p->written);
}

void config_free(config *c) {
    config_destination_free(c);
    free_property(&c->otlp_headers);
    free(c->listen);
    free(c->topic);
    free(c->metrics_listen);
    free(c->otlp_endpoint);
    free(c->otlp_traces);
    free(c->export_path);
    free(c->spool_path);
    free(c->token_command);
    free(c->aws_region);
    free(c->aws_profile);
    free(c->file);
    memset(c, 0, sizeof(*c));
}
