/*
 * The Java Kafka client's property file, in librdkafka's words.  One table
 * says what becomes of each name; docs/launcher.md shows it.
 */
#define _GNU_SOURCE 1

#include "launcher/settings.h"

#include <ctype.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

enum fate {
    SAME,      /* librdkafka has it by this name */
    RENAMED,   /* by the name in `to` */
    LOWER,     /* the same, its value in small letters */
    FIXED,     /* only the values in `to` (by |): others weaken durability */
    LEFT_OUT,  /* a warning: `to` says why */
    SILENT,    /* of Java's inside; nothing to say */
    STORE,     /* ssl.truststore.* and ssl.keystore.*: PEM alone, see below */
    JAAS,      /* user and password of a login module */
    HANDLER,   /* MSK's callback handler */
    MECHANISM, /* sasl.mechanism */
    HOSTNAME,  /* ssl.endpoint.identification.algorithm: empty is none */
};

typedef struct {
    const char *name;
    enum fate fate;
    const char *to;
} rule;

#define AGE "records are never lost by age"

/* clang-format off */
static const rule rules[] = {
    {"bootstrap.servers", LEFT_OUT, "--kafkaConnection says it"},
    {"client.id", SAME, NULL},
    {"acks", FIXED, "all|-1"},
    {"enable.idempotence", FIXED, "true"},
    {"transactional.id", FIXED, ""},
    {"security.protocol", LOWER, NULL},
    {"sasl.mechanism", MECHANISM, NULL},
    {"sasl.jaas.config", JAAS, NULL},
    {"sasl.client.callback.handler.class", HANDLER, NULL},
    {"sasl.login.callback.handler.class", HANDLER, NULL},
    {"sasl.kerberos.service.name", SAME, NULL},
    {"ssl.truststore.type", STORE, NULL},
    {"ssl.truststore.location", STORE, NULL},
    {"ssl.truststore.certificates", STORE, NULL},
    {"ssl.truststore.password", SILENT, NULL},
    {"ssl.keystore.type", STORE, NULL},
    {"ssl.keystore.location", STORE, NULL},
    {"ssl.keystore.password", STORE, NULL},
    {"ssl.keystore.certificate.chain", STORE, NULL},
    {"ssl.keystore.key", STORE, NULL},
    {"ssl.key.password", SAME, NULL},
    {"ssl.endpoint.identification.algorithm", HOSTNAME, NULL},
    {"ssl.cipher.suites", LEFT_OUT, "Java's names of ciphers are not OpenSSL's"},
    {"ssl.protocol", LEFT_OUT, "TLS 1.2 and 1.3 are negotiated"},
    {"ssl.enabled.protocols", LEFT_OUT, "TLS 1.2 and 1.3 are negotiated"},
    {"compression.type", SAME, NULL},
    {"batch.size", SAME, NULL},
    {"max.in.flight.requests.per.connection", SAME, NULL},
    {"request.timeout.ms", SAME, NULL},
    {"metadata.max.age.ms", SAME, NULL},
    {"connections.max.idle.ms", SAME, NULL},
    {"reconnect.backoff.ms", SAME, NULL},
    {"reconnect.backoff.max.ms", SAME, NULL},
    {"retry.backoff.ms", SAME, NULL},
    {"retry.backoff.max.ms", SAME, NULL},
    {"client.dns.lookup", SAME, NULL},
    {"client.rack", SAME, NULL},
    {"send.buffer.bytes", RENAMED, "socket.send.buffer.bytes"},
    {"receive.buffer.bytes", RENAMED, "socket.receive.buffer.bytes"},
    {"socket.connection.setup.timeout.ms", SAME, NULL},
    {"linger.ms", LEFT_OUT, "records are sent at once, since a request may wait for its own"},
    {"retries", LEFT_OUT, "a record is tried until it is written; " AGE},
    {"delivery.timeout.ms", LEFT_OUT, AGE},
    {"max.block.ms", LEFT_OUT, "no request waits for Kafka's memory"},
    {"buffer.memory", LEFT_OUT, "--capture-buffer bounds the memory"},
    {"max.request.size", LEFT_OUT, "--maxTrafficBufferSize bounds a record"},
    {"partitioner.class", LEFT_OUT, "the partition follows the key, as Java's default does"},
    {"partitioner.ignore.keys", LEFT_OUT, "the partition follows the key"},
    {"interceptor.classes", LEFT_OUT, "there are no Java classes here"},
    {"metric.reporters", LEFT_OUT, "there are no Java classes here; see --metrics-listen"},
    {"key.serializer", SILENT, NULL},
    {"value.serializer", SILENT, NULL},
};
/* clang-format on */

#define NRULES (sizeof(rules) / sizeof(*rules))

enum store { TRUST, KEYSTORE, NSTORES };

typedef struct {
    settings *s;
    options *o;
    const char *path;
    int line;
    char *type[NSTORES], *location[NSTORES];
    char *chain, *key, *authorities, *keystore_password;
    bool msk;
} reader;

/* ---- the file's syntax ---- */

/* A logical line, without its continuations' breaks and leading blanks; the
   caller frees it.  NULL at the end. */
static char *logical_line(reader *r, FILE *f) {
    char *text = NULL, *line = NULL;
    size_t n = 0, size = 0;
    ssize_t got;
    while ((got = getline(&line, &size, f)) != -1) {
        r->line++;
        char *at = line + strspn(line, " \t\f");
        size_t len = strcspn(at, "\r\n");
        if (text == NULL && (*at == '#' || *at == '!' || len == 0))
            continue;
        size_t slashes = 0;
        while (slashes < len && at[len - 1 - slashes] == '\\')
            slashes++;
        bool more = slashes % 2 == 1;
        len -= more;
        text = realloc(text, n + len + 1);
        if (text == NULL)
            abort();
        memcpy(text + n, at, len);
        text[n += len] = '\0';
        if (!more)
            break;
    }
    free(line);
    return text;
}

static void put_utf8(char **to, unsigned c) {
    if (c < 0x80) {
        *(*to)++ = (char)c;
    } else if (c < 0x800) {
        *(*to)++ = (char)(0xc0 | c >> 6);
        *(*to)++ = (char)(0x80 | (c & 0x3f));
    } else {
        *(*to)++ = (char)(0xe0 | c >> 12);
        *(*to)++ = (char)(0x80 | (c >> 6 & 0x3f));
        *(*to)++ = (char)(0x80 | (c & 0x3f));
    }
}

static void unescape(char *text) {
    char *to = text;
    unsigned c;
    for (; *text != '\0'; text++) {
        if (*text != '\\') {
            *to++ = *text;
            continue;
        }
        text++;
        if (*text == 'u' && sscanf(text + 1, "%4x", &c) == 1 && c != 0 &&
            strnlen(text, 5) == 5) {
            put_utf8(&to, c);
            text += 4;
        } else if (*text == '\0') {
            break;
        } else {
            *to++ = *text == 't'   ? '\t'
                    : *text == 'n' ? '\n'
                    : *text == 'r' ? '\r'
                    : *text == 'f' ? '\f'
                                   : *text;
        }
    }
    *to = '\0';
}

/* Cuts "name = value" at the first =, : or blank that is not escaped. */
static char *split(char *text) {
    char *at = text;
    while (*at != '\0' && strchr("=: \t\f", *at) == NULL)
        at += *at == '\\' && at[1] != '\0' ? 2 : 1;
    char *value = at + strspn(at, " \t\f");
    if (*value == '=' || *value == ':')
        value++;
    value += strspn(value, " \t\f");
    *at = '\0';
    unescape(text);
    unescape(value);
    return value;
}

/* ---- names ---- */

static void wrong(reader *r, const char *name, const char *why) {
    options_mistake(r->o, "%s:%d: %s: %s", r->path, r->line, name, why);
}

static void left_out(reader *r, const char *name, const char *why) {
    options_warn(r->o, "%s:%d: %s is left out: %s", r->path, r->line, name,
                 why);
}

static void keep(char **into, const char *value) {
    free(*into);
    *into = strdup(value);
    if (*into == NULL)
        abort();
}

static bool among(const char *value, const char *choices) {
    size_t n;
    for (; *choices != '\0'; choices += n + (choices[n] == '|')) {
        n = strcspn(choices, "|");
        if (strlen(value) == n && strncasecmp(value, choices, n) == 0)
            return true;
    }
    return false;
}

static void fixed(reader *r, const rule *rule, const char *value) {
    char why[256];
    if (among(value, rule->to))
        return;
    if (*rule->to == '\0')
        snprintf(why, sizeof(why),
                 "transactions would put markers between "
                 "the records: leave it out");
    else
        snprintf(why, sizeof(why),
                 "%.60s would weaken what a captured request "
                 "can rely on: leave it out",
                 value);
    wrong(r, rule->name, why);
}

static void lower(reader *r, const char *name, const char *value) {
    char text[64];
    size_t n = 0;
    for (; value[n] != '\0' && n + 1 < sizeof(text); n++)
        text[n] = (char)tolower((unsigned char)value[n]);
    text[n] = '\0';
    settings_kafka(r->s, r->o, name, text);
}

/* key="value" of a login module's line; into `value`, "" when it is not
   there. */
static bool login_option(const char *jaas, const char *key, char *value,
                         size_t size) {
    const char *at = jaas;
    size_t n = 0, len = strlen(key);
    while ((at = strstr(at, key)) != NULL) {
        const char *quote = at + len + strspn(at + len, " \t");
        bool starts = at > jaas && isspace((unsigned char)at[-1]);
        at += len;
        if (!starts || *quote != '=')
            continue;
        quote++;
        quote += strspn(quote, " \t");
        if (*quote != '"')
            continue;
        for (quote++; *quote != '\0' && *quote != '"' && n + 1 < size;
             quote++) {
            if (*quote == '\\' && quote[1] != '\0')
                quote++;
            value[n++] = *quote;
        }
        value[n] = '\0';
        return *quote == '"';
    }
    return false;
}

static void jaas(reader *r, const char *name, const char *value) {
    char user[512], password[1024];
    if (strstr(value, "IAMLoginModule") != NULL) {
        r->msk = true;
        return;
    }
    if (strstr(value, "ScramLoginModule") == NULL &&
        strstr(value, "PlainLoginModule") == NULL) {
        wrong(r, name,
              "only ScramLoginModule, PlainLoginModule and MSK's "
              "IAMLoginModule are known");
        return;
    }
    if (!login_option(value, "username", user, sizeof(user)) ||
        !login_option(value, "password", password, sizeof(password))) {
        wrong(r, name, "it has no username=\"...\" and password=\"...\"");
        return;
    }
    settings_kafka(r->s, r->o, "sasl.username", user);
    settings_kafka(r->s, r->o, "sasl.password", password);
}

static void store(reader *r, const char *name, const char *value) {
    static const struct {
        const char *name;
        size_t offset;
    } parts[] = {
        {"ssl.truststore.type", offsetof(reader, type[TRUST])},
        {"ssl.truststore.location", offsetof(reader, location[TRUST])},
        {"ssl.truststore.certificates", offsetof(reader, authorities)},
        {"ssl.keystore.type", offsetof(reader, type[KEYSTORE])},
        {"ssl.keystore.location", offsetof(reader, location[KEYSTORE])},
        {"ssl.keystore.password", offsetof(reader, keystore_password)},
        {"ssl.keystore.certificate.chain", offsetof(reader, chain)},
        {"ssl.keystore.key", offsetof(reader, key)},
    };
    for (size_t i = 0; i < sizeof(parts) / sizeof(*parts); i++)
        if (strcmp(parts[i].name, name) == 0)
            keep((char **)(void *)((char *)r + parts[i].offset), value);
}

static void take(reader *r, const char *name, const char *value) {
    const rule *rule = NULL;
    for (size_t i = 0; i < NRULES; i++)
        if (strcmp(rules[i].name, name) == 0)
            rule = &rules[i];
    if (rule == NULL) {
        left_out(r, name, "librdkafka has no property for it");
        return;
    }
    switch (rule->fate) {
    case SAME:
        settings_kafka(r->s, r->o, name, value);
        break;
    case RENAMED:
        settings_kafka(r->s, r->o, rule->to, value);
        break;
    case LOWER:
        lower(r, name, value);
        break;
    case FIXED:
        fixed(r, rule, value);
        break;
    case LEFT_OUT:
        left_out(r, name, rule->to);
        break;
    case SILENT:
        break;
    case STORE:
        store(r, name, value);
        break;
    case JAAS:
        jaas(r, name, value);
        break;
    case HANDLER:
        if (strstr(value, "IAMClientCallbackHandler") != NULL)
            r->msk = true;
        else
            wrong(r, name, "there are no Java classes here");
        break;
    case MECHANISM:
        if (strcmp(value, "AWS_MSK_IAM") == 0)
            r->msk = true;
        else
            settings_kafka(r->s, r->o, name, value);
        break;
    case HOSTNAME:
        settings_kafka(r->s, r->o, name, *value != '\0' ? value : "none");
        break;
    }
}

/* ---- stores ---- */

static bool is_pem(reader *r, enum store which, const char *name) {
    const char *type = r->type[which];
    char why[256];
    if (type != NULL && strcasecmp(type, "PEM") == 0)
        return true;
    snprintf(why, sizeof(why),
             "a %s store cannot be read: convert it to PEM (keytool "
             "-exportcert -rfc, or openssl pkcs12), and set the type to PEM",
             type != NULL ? type : "JKS");
    wrong(r, name, why);
    return false;
}

static void finish_stores(reader *r) {
    settings *s = r->s;
    if (r->location[TRUST] != NULL &&
        is_pem(r, TRUST, "ssl.truststore.location"))
        settings_kafka(s, r->o, "ssl.ca.location", r->location[TRUST]);
    if (r->location[KEYSTORE] != NULL && r->type[KEYSTORE] != NULL &&
        strcasecmp(r->type[KEYSTORE], "PKCS12") == 0) {
        settings_kafka(s, r->o, "ssl.keystore.location", r->location[KEYSTORE]);
        if (r->keystore_password != NULL)
            settings_kafka(s, r->o, "ssl.keystore.password",
                           r->keystore_password);
    } else if (r->location[KEYSTORE] != NULL &&
               is_pem(r, KEYSTORE, "ssl.keystore.location")) {
        /* Java's PEM store holds the key and the chain in one file */
        settings_kafka(s, r->o, "ssl.certificate.location",
                       r->location[KEYSTORE]);
        settings_kafka(s, r->o, "ssl.key.location", r->location[KEYSTORE]);
    }
    /* PEM in the file itself goes into files of the run directory */
    s->ca_pem = r->authorities;
    s->cert_pem = r->chain;
    s->key_pem = r->key;
    free(r->type[TRUST]);
    free(r->type[KEYSTORE]);
    free(r->location[TRUST]);
    free(r->location[KEYSTORE]);
    free(r->keystore_password);
}

void properties_read(settings *s, options *o, const char *path) {
    reader r = {.s = s, .o = o, .path = path};
    FILE *f = fopen(path, "re");
    char *line;
    if (f == NULL) {
        options_mistake(o, "--kafkaPropertyFile %s: %s", path, strerror(errno));
        return;
    }
    while ((line = logical_line(&r, f)) != NULL) {
        char *value = split(line);
        take(&r, line, value);
        free(line);
    }
    if (ferror(f))
        options_mistake(o, "--kafkaPropertyFile %s: it cannot be read", path);
    fclose(f);
    finish_stores(&r);
    if (r.msk)
        settings_msk(s, o);
}

/* ---- docs ---- */

static const char *fate_text(const rule *rule, char *into, size_t size) {
    switch (rule->fate) {
    case SAME:
    case LOWER:
    case HOSTNAME:
        return "taken";
    case RENAMED:
        snprintf(into, size, "taken, as `%s`", rule->to);
        return into;
    case FIXED:
        if (*rule->to == '\0')
            return "refused";
        snprintf(into, size, "`%.*s`; anything else is refused",
                 (int)strcspn(rule->to, "|"), rule->to);
        return into;
    case LEFT_OUT:
        snprintf(into, size, "left out, with a warning: %s", rule->to);
        return into;
    case SILENT:
        return "not needed";
    case STORE:
        return "taken where the store is PEM (a key store: or PKCS12); a JKS "
               "store is refused";
    case JAAS:
        return "user and password of ScramLoginModule or PlainLoginModule; "
               "IAMLoginModule means msk-iam";
    case HANDLER:
        return "MSK's means msk-iam; another is refused";
    case MECHANISM:
        return "taken; AWS_MSK_IAM means msk-iam";
    }
    return "";
}

void properties_docs(FILE *out) {
    char text[256];
    fputs("| property | |\n| --- | --- |\n", out);
    for (size_t i = 0; i < NRULES; i++)
        fprintf(out, "| `%s` | %s |\n", rules[i].name,
                fate_text(&rules[i], text, sizeof(text)));
    fputs("| any other | left out, with a warning |\n", out);
}
