#define _GNU_SOURCE 1

#include "launcher/settings.h"

#include <arpa/inet.h>
#include <ctype.h>
#include <inttypes.h>
#include <errno.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <unistd.h>

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

#define RECORD_SIZE_MAX 1048076 /* the sidecar's */
#define RECORD_SIZE_MIN 4096

static char *copy(const char *text) {
    char *made = strdup(text);
    if (made == NULL)
        abort();
    return made;
}

/* A flag as it was given, for messages. */
typedef struct {
    char text[160];
} place;

static place from(const options *o, int id) {
    place p;
    options_from(o, id, p.text, sizeof(p.text));
    return p;
}

static int64_t number(const options *o, int id) {
    return strtoll(options_get(o, id), NULL, 10);
}

/* ---- the source ---- */

static bool is_address(const char *host) {
    struct in6_addr any;
    return inet_pton(AF_INET, host, &any) == 1 ||
           inet_pton(AF_INET6, host, &any) == 1;
}

static bool host_ok(const char *host) {
    return *host != '\0' && strspn(host, "abcdefghijklmnopqrstuvwxyz"
                                         "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
                                         "0123456789-._") == strlen(host);
}

/* Splits HOST[:PORT] or [ADDRESS][:PORT]. */
static bool split_authority(settings *s, const char *at, size_t len) {
    char text[300], *port;
    if (len == 0 || len >= sizeof(text) || len > sizeof(s->host))
        return false;
    snprintf(text, sizeof(text), "%.*s", (int)len, at);
    if (*text == '[') {
        char *end = strchr(text, ']');
        if (end == NULL)
            return false;
        *end = '\0';
        snprintf(s->host, sizeof(s->host), "%.255s", text + 1);
        port = end + 1;
    } else {
        port = text + strcspn(text, ":");
        snprintf(s->host, sizeof(s->host), "%.*s", (int)(port - text), text);
    }
    s->host_is_address = is_address(s->host);
    if (*text == '[' ? !s->host_is_address : !host_ok(s->host))
        return false;
    if (*port == '\0')
        return true;
    if (*port != ':' || !isdigit((unsigned char)port[1]))
        return false;
    char *end;
    long n = strtol(port + 1, &end, 10);
    s->port = (int)n;
    return *end == '\0' && n > 0 && n < 65536;
}

static void take_uri(settings *s, options *o) {
    const char *uri = options_get(o, FLAG_DESTINATION_URI);
    place at = from(o, FLAG_DESTINATION_URI);
    if (uri == NULL) {
        options_mistake(o, "--destinationUri is missing: the source's "
                           "http://HOST:PORT or https://HOST:PORT");
        return;
    }
    s->tls_source = strncasecmp(uri, "https://", 8) == 0;
    if (!s->tls_source && strncasecmp(uri, "http://", 7) != 0) {
        options_mistake(o, "%s %s: it must begin with http:// or https://",
                        at.text, uri);
        return;
    }
    const char *authority = uri + (s->tls_source ? 8 : 7);
    size_t len = strcspn(authority, "/?#");
    const char *rest = authority + len;
    s->port = s->tls_source ? 443 : 80;
    if (memchr(authority, '@', len) != NULL)
        options_mistake(o,
                        "%s: a user or password in the URI is not taken; "
                        "use --setHeader Authorization",
                        at.text);
    else if (!split_authority(s, authority, len))
        options_mistake(o, "%s %s: give http://HOST:PORT", at.text, uri);
    else if (*rest != '\0' && strcmp(rest, "/") != 0)
        options_mistake(o,
                        "%s %s: the source has no path: requests keep "
                        "their own; leave out \"%s\"",
                        at.text, uri, rest);
}

static void take_source(settings *s, options *o) {
    int64_t ms = 0;
    take_uri(s, o);
    s->verify_source = !options_on(o, FLAG_INSECURE);
    if (s->tls_source && s->verify_source && s->host_is_address)
        options_warn(o,
                     "%s: NGINX verifies certificates against a name, not an "
                     "address: give the name, or --insecureDestination",
                     from(o, FLAG_DESTINATION_URI).text);
    s->pool_size = number(o, FLAG_POOL_SIZE);
    if (s->pool_size == 0)
        s->pool_size = 128;
    if (s->pool_size > 65536)
        options_mistake(o, "%s %" PRId64 ": it can be 65536 at most",
                        from(o, FLAG_POOL_SIZE).text, s->pool_size);
    parse_iso_duration(options_get(o, FLAG_POOL_TIMEOUT), &ms);
    s->pool_ms = ms > 0 ? ms : 1;
}

/* ---- headers ---- */

static bool is_token(const char *name) {
    if (*name == '\0')
        return false;
    for (; *name != '\0'; name++)
        if (!isalnum((unsigned char)*name) &&
            strchr("!#$%&'*+-.^_`|~", *name) == NULL)
            return false;
    return true;
}

static bool printable(const char *value) {
    for (; *value != '\0'; value++)
        if ((unsigned char)*value < ' ' && *value != '\t')
            return false;
    return true;
}

/* What NGINX frames a request by, which nobody else can set. */
static bool frames(const char *name) {
    return strcasecmp(name, "content-length") == 0 ||
           strcasecmp(name, "transfer-encoding") == 0;
}

static void take_header(settings *s, options *o, const flag_pair *pair) {
    if (!is_token(pair->name) || strchr(pair->name, '$') != NULL ||
        !printable(pair->value)) {
        options_mistake(o,
                        "--setHeader %.100s: this is no header's name, or "
                        "its value has a control character",
                        pair->name);
        return;
    }
    if (frames(pair->name)) {
        options_mistake(o,
                        "--setHeader %s: it says where a request ends, and "
                        "follows the request itself; leave it out",
                        pair->name);
        return;
    }
    for (size_t i = 0; i < s->nheaders; i++)
        if (strcasecmp(s->headers[i].name, pair->name) == 0) {
            free(s->headers[i].value);
            s->headers[i].value = copy(pair->value);
            return;
        }
    if (s->nheaders == MAX_HEADERS) {
        options_mistake(o, "--setHeader: more than %d headers", MAX_HEADERS);
        return;
    }
    if (*pair->value == '\0')
        options_warn(o,
                     "--setHeader %s: with an empty value the source does "
                     "not get the header at all",
                     pair->name);
    s->headers[s->nheaders++] =
        (setting_pair){copy(pair->name), copy(pair->value)};
}

/* ---- suppression ---- */

/* The upstream help shows '/_cat/\*' where a regular expression is meant. */
static bool looks_like_glob(const char *pattern) {
    const char *star = strchr(pattern, '*');
    if (star == NULL)
        return false;
    return star == pattern || star[-1] == '/' || star[-1] == '-' ||
           star[-1] == '_' ||
           (star[1] == '\0' && isalnum((unsigned char)star[-1]));
}

static bool compiles(options *o, const char *at, const char *pattern) {
    int error;
    PCRE2_SIZE offset;
    PCRE2_UCHAR why[256];
    pcre2_code *code = pcre2_compile((PCRE2_SPTR)pattern, PCRE2_ZERO_TERMINATED,
                                     0, &error, &offset, NULL);
    if (code != NULL) {
        pcre2_code_free(code);
        return true;
    }
    pcre2_get_error_message(error, why, sizeof(why));
    options_mistake(o, "%s %s: this is no regular expression: %s at byte %zu",
                    at, pattern, (const char *)why, (size_t)offset);
    return false;
}

static void add_suppression(settings *s, options *o, const char *at,
                            const char *variable, const char *pattern) {
    if (*pattern == '\0')
        return;
    if (looks_like_glob(pattern))
        options_warn(o,
                     "%s %s: it looks like a shell's pattern, but is a regular "
                     "expression, in which * repeats what is before it; any "
                     "text is .*",
                     at, pattern);
    if (strstr(pattern, "&&") != NULL && strchr(pattern, '[') != NULL)
        options_warn(o,
                     "%s %s: && intersects classes in Java only; here it is "
                     "two characters",
                     at, pattern);
    if (!printable(pattern) || strlen(pattern) > 2000)
        options_mistake(o,
                        "%s: the expression has a control character, or "
                        "more than 2000 bytes",
                        at);
    else if (s->nsuppress == MAX_SUPPRESSIONS)
        options_mistake(o, "%s: more than %d expressions", at,
                        MAX_SUPPRESSIONS);
    else if (compiles(o, at, pattern))
        s->suppress[s->nsuppress++] = (suppression){variable, copy(pattern)};
}

/* "User-Agent" to "$http_user_agent", or NULL: what NGINX has no name for.
   Never freed: as long as the program. */
static const char *header_variable(const char *name) {
    char variable[160];
    size_t n = (size_t)snprintf(variable, sizeof(variable), "$http_");
    for (; *name != '\0' && n + 1 < sizeof(variable); name++) {
        if (!isalnum((unsigned char)*name) && *name != '-' && *name != '_')
            return NULL;
        variable[n++] =
            *name == '-' ? '_' : (char)tolower((unsigned char)*name);
    }
    variable[n] = '\0';
    return *name == '\0' ? copy(variable) : NULL;
}

static void suppress_header(settings *s, options *o, const flag_pair *pair) {
    static const char at[] = "--suppressCaptureForHeaderMatch";
    const char *variable =
        *pair->name != '\0' ? header_variable(pair->name) : NULL;
    if (variable == NULL) {
        options_mistake(o,
                        "%s %.100s: a header's name of letters, digits, - "
                        "and _ is what NGINX can look at",
                        at, pair->name);
        return;
    }
    add_suppression(s, o, at, variable, pair->value);
}

static void take_suppressions(settings *s, options *o) {
    static const struct {
        int id;
        const char *variable;
    } single[] = {{FLAG_SUPPRESS_METHOD, "$request_method"},
                  {FLAG_SUPPRESS_PATH, "$request_uri"},
                  {FLAG_SUPPRESS_BOTH, "$request_method $request_uri"}};
    for (size_t i = 0; i < sizeof(single) / sizeof(*single); i++)
        if (options_get(o, single[i].id) != NULL)
            add_suppression(s, o, from(o, single[i].id).text,
                            single[i].variable, options_get(o, single[i].id));
    for (size_t i = 0; i < o->npairs; i++) {
        if (o->pairs[i].flag == FLAG_SET_HEADER)
            take_header(s, o, &o->pairs[i]);
        else
            suppress_header(s, o, &o->pairs[i]);
    }
}

/* ---- clients ---- */

static void take_trust(settings *s, options *o) {
    const char *name = options_get(o, FLAG_TRUST_VARIABLE);
    s->trust = options_get(o, FLAG_TRUST_FILE);
    s->client_auth = options_on(o, FLAG_CLIENT_AUTH);
    if (s->trust != NULL && name != NULL) {
        options_mistake(o, "--sslTrustCertFile and --sslTrustCertPemEnvVar: "
                           "give one of them");
        return;
    }
    if (name != NULL) {
        s->trust_pem = getenv(name);
        if (s->trust_pem == NULL || *s->trust_pem == '\0')
            options_mistake(o,
                            "%s %s: that variable is empty: it must hold "
                            "certificates as PEM",
                            from(o, FLAG_TRUST_VARIABLE).text, name);
    }
    bool trust = s->trust != NULL || s->trust_pem != NULL;
    if (s->client_auth && !trust && name == NULL)
        options_mistake(o, "--requireClientAuth: say whom to trust with "
                           "--sslTrustCertFile or --sslTrustCertPemEnvVar");
    if ((trust || s->client_auth) && s->cert == NULL)
        options_mistake(o, "client certificates need TLS: give "
                           "--sslCertChainFile and --sslKeyFile");
    if (trust && !s->client_auth)
        options_warn(o, "without --requireClientAuth clients that have no "
                        "certificate are served as well");
}

static void take_clients(settings *s, options *o) {
    if (options_get(o, FLAG_LISTEN_PORT) == NULL) {
        options_mistake(o, "--listenPort is missing: where clients connect");
    } else {
        int64_t port = number(o, FLAG_LISTEN_PORT);
        if (port < 1 || port > 65535)
            options_mistake(o, "%s %" PRId64 ": a port is from 1 to 65535",
                            from(o, FLAG_LISTEN_PORT).text, port);
        s->listen_port = (int)port;
    }
    int64_t threads = number(o, FLAG_THREADS);
    if (threads > 1024)
        options_mistake(o, "%s %" PRId64 ": at most 1024",
                        from(o, FLAG_THREADS).text, threads);
    s->workers = threads > 0 ? (int)threads : cpus();
    s->cert = options_get(o, FLAG_CERT);
    s->key = options_get(o, FLAG_KEY);
    if ((s->cert == NULL) != (s->key == NULL))
        options_mistake(o,
                        "--sslCertChainFile and --sslKeyFile belong "
                        "together: %s is missing",
                        s->cert == NULL ? "--sslCertChainFile"
                                        : "--sslKeyFile");
    take_trust(s, o);
}

/* ---- where records go ---- */

static void take_output(settings *s, options *o) {
    bool kafka = options_on(o, FLAG_BROKERS),
         directory = options_on(o, FLAG_TRACE_DIRECTORY),
         nothing = options_on(o, FLAG_NO_CAPTURE);
    if (kafka + directory + nothing != 1)
        options_mistake(o,
                        "give exactly one of --kafkaConnection, "
                        "--traceDirectory and --noCapture: %s",
                        kafka + directory + nothing == 0 ? "there is none"
                                                         : "there are more");
    s->output = directory ? TO_DIRECTORY : nothing ? TO_NOWHERE : TO_KAFKA;
    s->directory = options_get(o, FLAG_TRACE_DIRECTORY);
    if (s->directory != NULL && *s->directory != '/')
        options_mistake(o, "%s %s: give an absolute path",
                        from(o, FLAG_TRACE_DIRECTORY).text, s->directory);
    s->topic = options_get(o, FLAG_TOPIC);
    s->client_id = options_get(o, FLAG_CLIENT_ID);
}

static void take_record_size(settings *s, options *o) {
    s->record_size = number(o, FLAG_BUFFER_SIZE);
    if (s->record_size < RECORD_SIZE_MIN) {
        options_mistake(o, "%s %" PRId64 ": records have %d bytes at least",
                        from(o, FLAG_BUFFER_SIZE).text, s->record_size,
                        RECORD_SIZE_MIN);
    } else if (s->record_size > RECORD_SIZE_MAX) {
        if (s->record_size > 1048576)
            options_warn(o,
                         "%s %" PRId64 ": records have %d bytes at most, "
                         "what topics take by default; larger exchanges "
                         "take several, as there",
                         from(o, FLAG_BUFFER_SIZE).text, s->record_size,
                         RECORD_SIZE_MAX);
        s->record_size = RECORD_SIZE_MAX;
    }
}

/* ---- Kafka's security ---- */

void settings_kafka(settings *s, options *o, const char *name,
                    const char *value) {
    for (size_t i = 0; i < s->nkafka; i++)
        if (strcmp(s->kafka[i].name, name) == 0) {
            free(s->kafka[i].value);
            s->kafka[i].value = copy(value);
            return;
        }
    if (s->nkafka == MAX_PROPERTIES) {
        options_mistake(o, "more than %d Kafka properties", MAX_PROPERTIES);
        return;
    }
    s->kafka[s->nkafka++] = (setting_pair){copy(name), copy(value)};
}

const char *settings_kafka_get(const settings *s, const char *name) {
    for (size_t i = 0; i < s->nkafka; i++)
        if (strcmp(s->kafka[i].name, name) == 0)
            return s->kafka[i].value;
    return NULL;
}

void settings_msk(settings *s, options *o) {
    settings_kafka(s, o, "security.protocol", "sasl_ssl");
    settings_kafka(s, o, "sasl.mechanism", "OAUTHBEARER");
    s->msk = true;
}

static void take_scram(settings *s, options *o) {
    const char *user = options_get(o, FLAG_USER_NAME),
               *password = options_get(o, FLAG_PASSWORD);
    settings_kafka(s, o, "security.protocol", "sasl_ssl");
    settings_kafka(s, o, "sasl.mechanism", "SCRAM-SHA-512");
    if (user != NULL)
        settings_kafka(s, o, "sasl.username", user);
    if (password != NULL)
        settings_kafka(s, o, "sasl.password", password);
    if (settings_kafka_get(s, "sasl.username") == NULL)
        options_mistake(o, "scram-sha-512 wants a user: --kafkaUserName");
    if (settings_kafka_get(s, "sasl.password") == NULL)
        options_mistake(o, "scram-sha-512 wants a password: "
                           "CAPTURE_PROXY_KAFKA_PASSWORD or KAFKA_PASSWORD");
}

static void take_auth(settings *s, options *o) {
    const char *type = options_get(o, FLAG_AUTH_TYPE);
    place at = from(o, FLAG_AUTH_TYPE);
    bool msk = options_on(o, FLAG_MSK_AUTH);
    bool none = strcmp(type, "none") == 0;

    if (msk && !none && strcmp(type, "msk-iam") != 0)
        options_mistake(o,
                        "--enableMSKAuth and %s %s contradict each other; "
                        "leave one out",
                        at.text, type);
    else if (msk || strcmp(type, "msk-iam") == 0)
        settings_msk(s, o);
    else if (strcmp(type, "scram-sha-512") == 0)
        take_scram(s, o);
    else if (strcmp(type, "ssl") == 0)
        settings_kafka(s, o, "security.protocol", "ssl");
    else if (!none)
        options_mistake(o, "%s %s: give none, msk-iam, scram-sha-512 or ssl",
                        at.text, type);
    if (options_on(o, FLAG_USER_NAME) && strcmp(type, "scram-sha-512") != 0)
        options_warn(o,
                     "%s: without --kafkaAuthType scram-sha-512 it does "
                     "nothing",
                     from(o, FLAG_USER_NAME).text);
    if (o->from[FLAG_PASSWORD] != NULL &&
        strcmp(o->from[FLAG_PASSWORD], "--kafkaPassword") == 0)
        options_warn(o, "--kafkaPassword: everybody on this host can read a "
                        "command line: use CAPTURE_PROXY_KAFKA_PASSWORD");
}

static void take_kafka(settings *s, options *o) {
    const char *file = options_get(o, FLAG_PROPERTY_FILE);
    if (file != NULL)
        properties_read(s, o, file);
    if (options_on(o, FLAG_BROKERS))
        settings_kafka(s, o, "bootstrap.servers", options_get(o, FLAG_BROKERS));
    if (options_on(o, FLAG_CLIENT_ID) ||
        settings_kafka_get(s, "client.id") == NULL)
        settings_kafka(s, o, "client.id", s->client_id);
    take_auth(s, o);
}

/* ---- the rest ---- */

static void check_address(options *o, int id) {
    const char *text = options_get(o, id);
    const char *colon = text != NULL ? strrchr(text, ':') : NULL;
    if (text == NULL)
        return;
    if (colon == NULL || colon == text || atoi(colon + 1) < 1 ||
        atoi(colon + 1) > 65535 ||
        strspn(colon + 1, "0123456789") != strlen(colon + 1) ||
        strpbrk(text, " ;{}\"'\\$") != NULL)
        options_mistake(o, "%s %s: give HOST:PORT, like 127.0.0.1:9145",
                        from(o, id).text, text);
}

static void take_own(settings *s, options *o) {
    const char *size = options_get(o, FLAG_CAPTURE_BUFFER);
    size_t digits = strspn(size, "0123456789");
    s->capture_buffer = size;
    if (digits == 0 || digits > 12 || strlen(size) > digits + 1 ||
        (size[digits] != '\0' && strchr("kKmMgG", size[digits]) == NULL))
        options_mistake(o, "%s %s: give a size, like 64m",
                        from(o, FLAG_CAPTURE_BUFFER).text, size);
    s->metrics_listen = options_get(o, FLAG_METRICS_LISTEN);
    s->status_listen = options_get(o, FLAG_STATUS_LISTEN);
    check_address(o, FLAG_METRICS_LISTEN);
    check_address(o, FLAG_STATUS_LISTEN);
    parse_time(options_get(o, FLAG_SHUTDOWN_TIME), &s->shutdown_ms);
    parse_time(options_get(o, FLAG_RESOLVE_TIME), &s->resolve_ms);
    if (s->shutdown_ms < 1000 || s->shutdown_ms > 3600000)
        options_mistake(o, "%s: from 1s to 1h",
                        from(o, FLAG_SHUTDOWN_TIME).text);
    if (s->resolve_ms < 100)
        options_mistake(o, "%s: 100ms at least",
                        from(o, FLAG_RESOLVE_TIME).text);
    s->run_directory = options_get(o, FLAG_RUN_DIRECTORY);
    if (s->run_directory != NULL && *s->run_directory != '/')
        options_mistake(o, "%s %s: give an absolute path",
                        from(o, FLAG_RUN_DIRECTORY).text, s->run_directory);
}

/* As otlp.endpoint takes it (sidecar/config.c). */
static void check_url(options *o, int id) {
    const char *text = options_get(o, id);
    const char *host = text != NULL ? strstr(text, "://") : NULL;
    if (text == NULL)
        return;
    if ((strncmp(text, "http://", 7) != 0 &&
         strncmp(text, "https://", 8) != 0) ||
        host[3] == '\0' || host[3] == '/' || host[3] == ':' ||
        strpbrk(text, " @?#\"<>\\") != NULL)
        options_mistake(o, "%s %s: give a URL like http://localhost:4317",
                        from(o, id).text, text);
}

static void take_telemetry(settings *s, options *o) {
    check_url(o, FLAG_OTEL_TRACES);
    check_url(o, FLAG_OTEL_METRICS);
    s->otlp_endpoint = options_get(o, FLAG_OTEL_METRICS);
    if (options_on(o, FLAG_OTEL_TRACES))
        options_warn(o, "%s: no spans are made, and nothing is sent there",
                     from(o, FLAG_OTEL_TRACES).text);
    if (s->otlp_endpoint != NULL && s->output == TO_NOWHERE)
        options_warn(o, "%s: without capture there is nothing to send",
                     from(o, FLAG_OTEL_METRICS).text);
}

int settings_make(settings *s, options *o, bool print) {
    *s = (settings){0};
    take_source(s, o);
    take_clients(s, o);
    take_suppressions(s, o);
    take_output(s, o);
    take_record_size(s, o);
    take_kafka(s, o);
    take_own(s, o);
    take_telemetry(s, o);
    if (o->mistakes > 0)
        return -1;
    programs_find(s, o, print);
    return o->mistakes == 0 ? 0 : -1;
}

static void free_pairs(setting_pair *pairs, size_t n) {
    for (size_t i = 0; i < n; i++) {
        free(pairs[i].name);
        free(pairs[i].value);
    }
}

void settings_free(settings *s) {
    free_pairs(s->headers, s->nheaders);
    free_pairs(s->kafka, s->nkafka);
    for (size_t i = 0; i < s->nsuppress; i++) {
        free(s->suppress[i].pattern);
        if (strncmp(s->suppress[i].variable, "$http_", 6) == 0)
            free((char *)(uintptr_t)s->suppress[i].variable);
    }
    free(s->ca_pem);
    free(s->cert_pem);
    free(s->key_pem);
    free(s->nginx);
    free(s->module);
    free(s->sidecar);
    free(s->nginx_v);
}
