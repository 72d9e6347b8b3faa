#define _GNU_SOURCE 1 /* memmem, memrchr */

#include <ctype.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/socket.h>
#include <unistd.h>

#include "sidecar/kafka_internal.h"
#include "sidecar/kafka_token.h"

/*
 * What delivery rests on.  `values` are the spellings that a configuration
 * may repeat, separated by "|"; the first is what SET sets.  NULL: set by the
 * sidecar's own keys, or never.
 */
typedef struct {
    const char *name;
    enum { SET, LEAVE } action; /* LEAVE: an alias, or librdkafka's default */
    const char *values;
    const char *why;
} fixed;

/* clang-format off */
static const fixed fixed_properties[] = {
    {"acks", SET, "all|-1", "a record is durable only when all in-sync replicas have it"},
    {"request.required.acks", LEAVE, "all|-1",
     "a record is durable only when all in-sync replicas have it"},
    {"enable.idempotence", SET, "true", "a retry must not write a record twice"},
    {"enable.gapless.guarantee", SET, "true",
     "a failure must not leave a hole before later records"},
    {"message.timeout.ms", SET, "0", "records are lost by a bound, never by age"},
    {"delivery.timeout.ms", LEAVE, "0", "records are lost by a bound, never by age"},
    {"retries", SET, "2147483647", "records are lost by a bound, never by failed attempts"},
    {"message.send.max.retries", LEAVE, "2147483647",
     "records are lost by a bound, never by failed attempts"},
    {"linger.ms", SET, "0", "a request may be waiting for its record"},
    {"queue.buffering.max.ms", LEAVE, "0", "a request may be waiting for its record"},
    {"queuing.strategy", LEAVE, "fifo", "records of a connection must stay in order"},
    {"delivery.report.only.error", LEAVE, "false", "the sidecar needs every report"},
    {"queue.buffering.max.kbytes", LEAVE, NULL, "it follows inflight.size: set that"},
    {"queue.buffering.max.messages", LEAVE, NULL, "the bound is in bytes: set inflight.size"},
    {"message.max.bytes", LEAVE, NULL, "it follows record.size: set that"},
    {"transactional.id", LEAVE, NULL, "transactions would put markers between the records"},
    {"partitioner", LEAVE, NULL, "the sidecar chooses partitions, as Java's producer does"},
    {"metadata.broker.list", LEAVE, NULL, "use kafka.bootstrap.servers"},
    {"enabled_events", LEAVE, NULL, "it is the sidecar's own"},
    {"log.queue", LEAVE, NULL, "it is the sidecar's own"},
    {"log_level", LEAVE, NULL, "use log.level, and kafka.debug for more"},
    {"statistics.interval.ms", LEAVE, NULL, "use metrics.listen"},
    {"plugin.library.paths", LEAVE, NULL, "foreign code would run in the sidecar"},
    {"interceptors", LEAVE, NULL, "foreign code would run in the sidecar"},
    {"topic.blacklist", LEAVE, NULL, "it could hide the topic: leave it out"},
    {"api.version.request", LEAVE, "true", "what a broker can do must be known"},
};
/* clang-format on */

#define NFIXED (sizeof(fixed_properties) / sizeof(*fixed_properties))

/* Pointers: librdkafka would take the text's own address for a function's. */
static const char *const pointers[] = {
    "background_event_cb",
    "closesocket_cb",
    "connect_cb",
    "default_topic_conf",
    "dr_cb",
    "dr_msg_cb",
    "error_cb",
    "internal.termination.signal",
    "log_cb",
    "msg_order_cmp",
    "oauthbearer_token_refresh_cb",
    "opaque",
    "open_cb",
    "partitioner_cb",
    "resolve_cb",
    "socket_cb",
    "ssl.certificate.verify_cb",
    "ssl_ca",
    "ssl_certificate",
    "ssl_engine_callback_data",
    "ssl_key",
    "stats_cb",
    "throttle_cb",
};

/* Better than librdkafka's defaults here; the configuration may change them. */
static const char *const defaults[][2] = {
    {"client.id", "HttpCaptureProxyProducer"}, /* the Java proxy's */
    {"reconnect.backoff.max.ms", "2000"},
    /* with them, a question to a broker that is down makes librdkafka 2.14
       connect to it thousands of times a second, without any backoff */
    {"enable.sparse.connections", "false"},
    {"socket.keepalive.enable", "true"},
    {"socket.connection.setup.timeout.ms", "10000"},
    {"log.connection.close", "false"},
    {"enable.metrics.push", "false"},
};

/* What token.source implies, unless the configuration says otherwise. */
static const char *const of_token[][2] = {
    {"security.protocol", "sasl_ssl"},
    {"sasl.mechanisms", "OAUTHBEARER"},
};

typedef struct {
    const config *c;
    FILE *err;
    int mistakes;
} checker;

static const char *scope(const config_property *p) {
    return p->scope != NULL ? p->scope : "";
}

static void say(checker *ch, const config_property *p, const char *what,
                const char *more) {
    fprintf(ch->err, "%s:%d: %skafka.%s = %s: %s%s\n",
            ch->c->file != NULL ? ch->c->file : "-", p->line, scope(p), p->name,
            config_shown(p), what, more);
    ch->mistakes++;
}

static bool among(const char *value, const char *choices) {
    size_t len = strlen(value);
    while (choices != NULL) {
        size_t n = strcspn(choices, "|");
        if (n == len && strncasecmp(value, choices, n) == 0)
            return true;
        choices = choices[n] == '|' ? choices + n + 1 : NULL;
    }
    return false;
}

/* Whether `p` is the sidecar's own; complains if it differs. */
static bool is_fixed(checker *ch, const config_property *p) {
    for (size_t i = 0; i < NFIXED; i++) {
        const fixed *f = &fixed_properties[i];
        if (strcmp(f->name, p->name) != 0)
            continue;
        if (!among(p->value, f->values))
            say(ch, p, "this cannot be changed: ", f->why);
        return true;
    }
    for (size_t i = 0; i < sizeof(pointers) / sizeof(*pointers); i++)
        if (strcmp(pointers[i], p->name) == 0) {
            say(ch, p, "this cannot be changed: ",
                "it is for programs, not for configuration files");
            return true;
        }
    return false;
}

/* The property of this version whose name is nearest. */
static void unknown_property(checker *ch, const config_property *p) {
    rd_kafka_conf_t *conf = rd_kafka_conf_new();
    size_t n;
    const char **dump = rd_kafka_conf_dump(conf, &n);
    const char **names = calloc(n / 2 + 1, sizeof(*names));
    for (size_t i = 0; names != NULL && i < n / 2; i++)
        names[i] = dump[2 * i];
    if (names != NULL)
        names[n / 2] = "bootstrap.servers"; /* an alias: not in the dump */
    const char *near =
        names != NULL ? config_nearest(p->name, names, n / 2 + 1) : NULL;
    fprintf(ch->err,
            "%s:%d: %skafka.%s: librdkafka %s has no such property%s%s%s%s%s\n",
            ch->c->file != NULL ? ch->c->file : "-", p->line, scope(p), p->name,
            rd_kafka_version_str(), near != NULL ? ": did you mean " : "",
            near != NULL ? scope(p) : "", near != NULL ? "kafka." : "",
            near != NULL ? near : "", near != NULL ? "?" : "");
    ch->mistakes++;
    free(names);
    rd_kafka_conf_dump_free(dump, n);
    rd_kafka_conf_destroy(conf);
}

static void set_own(checker *ch, rd_kafka_conf_t *conf, const char *name,
                    const char *value) {
    char why[256];
    if (rd_kafka_conf_set(conf, name, value, why, sizeof(why)) !=
        RD_KAFKA_CONF_OK) {
        fprintf(ch->err, "librdkafka %s does not take %s = %s: %s\n",
                rd_kafka_version_str(), name, value, why);
        ch->mistakes++;
    }
}

static void set_own_number(checker *ch, rd_kafka_conf_t *conf, const char *name,
                           uint64_t n) {
    char value[32];
    snprintf(value, sizeof(value), "%" PRIu64, n);
    set_own(ch, conf, name, value);
}

/* host, host:port, or PROTOCOL://host:port, by commas */
static bool plausible_servers(const char *list) {
    for (;;) {
        size_t n = strcspn(list, ",");
        const char *at = memmem(list, n, "://", 3);
        const char *from = at != NULL ? at + 3 : list, *end = list + n;
        while (from < end && isspace((unsigned char)*from))
            from++;
        const char *colon = memrchr(from, ':', (size_t)(end - from));
        if (from == end || colon == from)
            return false;
        if (colon != NULL && colon[1] != '\0' && *from != '[' &&
            strspn(colon + 1, "0123456789") == 0)
            return false;
        if (*end == '\0')
            return true;
        list = end + 1;
    }
}

static void set_configured(checker *ch, rd_kafka_conf_t *conf) {
    char why[512];
    for (size_t i = 0; i < ch->c->nkafka; i++) {
        const config_property *p = &ch->c->kafka[i];
        if (is_fixed(ch, p))
            continue;
        if (strcmp(p->name, "bootstrap.servers") == 0 &&
            !plausible_servers(p->value)) {
            say(ch, p, "give host:port, or several by commas", "");
            continue;
        }
        switch (rd_kafka_conf_set(conf, p->name, p->value, why, sizeof(why))) {
        case RD_KAFKA_CONF_OK:
            break;
        case RD_KAFKA_CONF_UNKNOWN:
            unknown_property(ch, p);
            break;
        default:
            /* librdkafka's words can repeat the value */
            say(ch, p,
                config_is_secret(p->name) || p->written != NULL
                    ? "librdkafka refuses it"
                    : why,
                "");
        }
    }
}

static void set_fixed(checker *ch, rd_kafka_conf_t *conf, size_t batch_size,
                      bool single) {
    const config *c = ch->c;
    for (size_t i = 0; i < NFIXED; i++) {
        char value[32];
        const fixed *f = &fixed_properties[i];
        if (f->action == LEAVE)
            continue;
        snprintf(value, sizeof(value), "%.*s", (int)strcspn(f->values, "|"),
                 f->values);
        set_own(ch, conf, f->name, value);
    }
    /* keys count too: half as much again is more than they can be */
    uint64_t queue = c->inflight_size + c->inflight_size / 2 + c->record_size;
    set_own_number(ch, conf, "queue.buffering.max.kbytes", queue / 1024 + 1);
    set_own(ch, conf, "queue.buffering.max.messages", "0");
    set_own_number(ch, conf, "message.max.bytes", c->record_size + 1024);

    const char *asked = config_kafka(c, "batch.size");
    if (asked == NULL || strtoull(asked, NULL, 10) > batch_size)
        set_own_number(ch, conf, "batch.size", batch_size);
    if (single)
        set_own(ch, conf, "batch.num.messages", "1");
    set_own(ch, conf, "log.queue", "true");
}

/*
 * Closing a broker's socket discards what has not been sent: after a crash,
 * nothing of a dead process may arrive later.
 */
static int open_socket(int domain, int type, int protocol, void *opaque) {
    const struct linger discard = {.l_onoff = 1, .l_linger = 0};
    (void)opaque;
    int fd = socket(domain, type | SOCK_CLOEXEC, protocol);
    if (fd == -1)
        return -1;
    if (setsockopt(fd, SOL_SOCKET, SO_LINGER, &discard, sizeof(discard)) ==
        -1) {
        close(fd);
        return -1;
    }
    return fd;
}

rd_kafka_conf_t *kafka_config_make(const config *c, size_t batch_size,
                                   bool single, FILE *err) {
    checker ch = {.c = c, .err = err};
    rd_kafka_conf_t *conf = rd_kafka_conf_new();
    for (size_t i = 0; i < sizeof(defaults) / sizeof(*defaults); i++)
        set_own(&ch, conf, defaults[i][0], defaults[i][1]);
    for (size_t i = 0; i < sizeof(of_token) / sizeof(*of_token); i++)
        if (c->token_source != CONFIG_TOKEN_NONE)
            set_own(&ch, conf, of_token[i][0], of_token[i][1]);
    set_configured(&ch, conf);
    set_fixed(&ch, conf, batch_size, single);
    rd_kafka_conf_set_socket_cb(conf, open_socket);
    kafka_token_configure(c, conf);
    if (ch.mistakes == 0)
        return conf;
    rd_kafka_conf_destroy(conf);
    return NULL;
}

/* Where it must not begin elsewhere than it was told, and says where it ends. */
static const char *const reader_properties[][2] = {
    {"enable.partition.eof", "true"},
    {"auto.offset.reset", "error"},
    {"isolation.level", "read_uncommitted"},
    {"enable.auto.commit", "false"},
    {"enable.auto.offset.store", "false"},
    {"log.queue", "false"},
    {"log_level", "3"}, /* else it names each property of producers */
};

rd_kafka_conf_t *kafka_config_reader(const config *c, FILE *err) {
    checker ch = {.c = c, .err = err};
    rd_kafka_conf_t *conf = kafka_config_make(c, KAFKA_BATCH_SIZE, false, err);

    if (conf == NULL)
        return NULL;
    for (size_t i = 0;
         i < sizeof(reader_properties) / sizeof(*reader_properties); i++)
        set_own(&ch, conf, reader_properties[i][0], reader_properties[i][1]);
    if (ch.mistakes == 0)
        return conf;
    rd_kafka_conf_destroy(conf);
    return NULL;
}

/* A producer without servers, which therefore connects to nothing: it tells
   of files that cannot be read and of properties that exclude each other.
   librdkafka would also ask for a token at once: it shall find nobody. */
static int try_without_servers(const config *c, FILE *err) {
    config without = *c;
    char why[512], of[CONFIG_NAME_SIZE + 8];
    without.nkafka = 0;
    for (size_t i = 0; i < c->nkafka; i++) {
        config_property p = c->kafka[i];
        if (strcmp(p.name, "bootstrap.servers") == 0)
            continue;
        if (strcmp(p.name, "sasl.oauthbearer.token.endpoint.url") == 0)
            p.value = (char *)"http://127.0.0.1:1/";
        without.kafka[without.nkafka++] = p;
    }
    rd_kafka_conf_t *conf =
        kafka_config_make(&without, KAFKA_BATCH_SIZE, false, err);
    if (conf == NULL)
        return -1;
    rd_kafka_conf_set_log_cb(conf, NULL);
    rd_kafka_t *rk = rd_kafka_new(RD_KAFKA_PRODUCER, conf, why, sizeof(why));
    if (rk == NULL) {
        rd_kafka_conf_destroy(conf);
        config_of_destination(c, of, sizeof(of));
        fprintf(err, "%s: kafka.*%s: %s\n", c->file != NULL ? c->file : "-", of,
                why);
        return -1;
    }
    rd_kafka_destroy(rk);
    return 0;
}

static int check_one(const config *c, FILE *err) {
    rd_kafka_conf_t *conf = kafka_config_make(c, KAFKA_BATCH_SIZE, false, err);
    if (conf == NULL)
        return -1;
    rd_kafka_conf_destroy(conf);
    if (kafka_token_check(c, err) == -1)
        return -1;
    return try_without_servers(c, err);
}

int kafka_check(const config *c, FILE *err) {
    config *view = malloc(sizeof(*view));
    int rc = view != NULL ? 0 : -1;
    for (size_t i = 0; rc == 0 && i <= c->ndestinations; i++) {
        config_view(c, i, view);
        if (config_kafka(view, "bootstrap.servers") != NULL ||
            c->export_path == NULL)
            rc = check_one(view, err);
    }
    free(view);
    return rc;
}
