/* Values: a parser for each type of key; each is 0, or -1 with `why` filled. */
#include <ctype.h>
#include <errno.h>
#include <grp.h>
#include <inttypes.h>
#include <pwd.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/un.h>

#include "sidecar/config_internal.h"

/* What a value must be shorter than for the socket's address, NUL included. */
#define SOCKET_PATH_SIZE sizeof(((struct sockaddr_un *)0)->sun_path)

static int __attribute__((format(printf, 2, 3)))
refuse(complaint *why, const char *format, ...) {
    va_list args;
    va_start(args, format);
    vsnprintf(why->text, sizeof(why->text), format, args);
    va_end(args);
    return -1;
}

static int parse_number(const char *text, uint64_t *into, const char **rest) {
    char *end;
    if (!isdigit((unsigned char)*text))
        return -1;
    errno = 0;
    *into = strtoull(text, &end, 10);
    *rest = end;
    return errno == 0 ? 0 : -1;
}

typedef struct {
    const char *name;
    uint64_t factor;
} unit;

/* 0 and the whole text used, or -1. */
static int parse_with_unit(const char *text, const unit *units,
                           uint64_t *into) {
    const char *rest;
    uint64_t n;
    if (parse_number(text, &n, &rest) == -1)
        return -1;
    for (; units->name != NULL; units++)
        if (strcasecmp(rest, units->name) == 0)
            return __builtin_mul_overflow(n, units->factor, into) ? -1 : 0;
    *into = 0;
    return n == 0 && *rest == '\0' ? 0 : -1;
}

static const unit size_units[] = {
    {"", 1}, {"k", K}, {"m", M}, {"g", G}, {NULL, 0}};
static const unit time_units[] = {
    {"ms", MS}, {"s", S}, {"m", MINUTE}, {"h", 60 * MINUTE}, {NULL, 0}};

static const unit *units_of(const config_key *k) {
    return k->type == CONFIG_TIME ? time_units : size_units;
}

void config_format_scaled(const config_key *k, uint64_t n, char *into,
                          size_t size) {
    const unit *best = units_of(k);
    for (const unit *u = best; u->name != NULL; u++)
        if (n != 0 && n % u->factor == 0 && u->factor > best->factor)
            best = u;
    snprintf(into, size, "%" PRIu64 "%s", n / best->factor, best->name);
}

static int parse_scaled(const config_key *k, const char *value, uint64_t *into,
                        complaint *why) {
    bool time = k->type == CONFIG_TIME;
    char min[32], max[32];
    if (parse_with_unit(value, units_of(k), into) == -1)
        return refuse(
            why,
            time ? "give a number with its unit, like 500ms, 3s or 5m"
                 : "give a number of bytes, or one with k, m or g, like 64m");
    if (*into >= k->min && *into <= k->max)
        return 0;
    config_format_scaled(k, k->min, min, sizeof(min));
    config_format_scaled(k, k->max, max, sizeof(max));
    return refuse(why, "it must be from %s to %s", min, max);
}

static int parse_mode(const char *value, mode_t *into, complaint *why) {
    char *end;
    unsigned long n = strtoul(value, &end, 8);
    if (!isdigit((unsigned char)*value) || *end != '\0' || n > 0777)
        return refuse(why, "give an octal mode from 0 to 0777, like 0660");
    *into = (mode_t)n;
    return 0;
}

/* A number that is a uid or gid; (uint32_t)-1 means "unchanged" to chown. */
static int parse_id(const char *value, uint32_t *into) {
    const char *rest;
    uint64_t n;
    if (parse_number(value, &n, &rest) == -1 || *rest != '\0' ||
        n >= UINT32_MAX)
        return -1;
    *into = (uint32_t)n;
    return 0;
}

static int parse_user(const char *value, uid_t *into, complaint *why) {
    if (parse_id(value, into) == 0)
        return 0;
    const struct passwd *user = getpwnam(value);
    if (user == NULL)
        return refuse(why, "there is no user \"%s\" on this system", value);
    *into = user->pw_uid;
    return 0;
}

static int parse_group(const char *value, gid_t *into, complaint *why) {
    if (parse_id(value, into) == 0)
        return 0;
    const struct group *group = getgrnam(value);
    if (group == NULL)
        return refuse(why, "there is no group \"%s\" on this system", value);
    *into = group->gr_gid;
    return 0;
}

static int parse_uids(config *c, char *value, complaint *why) {
    char *save, *one;
    for (one = strtok_r(value, ", \t", &save); one != NULL;
         one = strtok_r(NULL, ", \t", &save)) {
        if (c->nallowed_uids == CONFIG_MAX_UIDS)
            return refuse(why, "at most %d users can be listed",
                          CONFIG_MAX_UIDS);
        if (parse_user(one, &c->allowed_uids[c->nallowed_uids], why) == -1)
            return -1;
        c->nallowed_uids++;
    }
    return c->nallowed_uids > 0 ? 0 : refuse(why, "list users by commas");
}

static int keep(char **into, const char *value, complaint *why) {
    *into = strdup(value);
    return *into != NULL ? 0 : refuse(why, "out of memory");
}

static int parse_socket(const char *value, char **into, complaint *why) {
    if (strncmp(value, "unix:", 5) != 0 || value[5] != '/')
        return refuse(why, "give an absolute path after \"unix:\", like "
                           "unix:/run/capture.sock");
    value += 5;
    if (strlen(value) >= SOCKET_PATH_SIZE)
        return refuse(why,
                      "the path has %zu bytes; a socket's can have %zu at most",
                      strlen(value), SOCKET_PATH_SIZE - 1);
    if (value[strlen(value) - 1] == '/')
        return refuse(why, "that is a directory: name a file in it");
    return keep(into, value, why);
}

static int parse_region(const char *value, char **into, complaint *why) {
    if (value[strspn(value, "abcdefghijklmnopqrstuvwxyz0123456789-")] != '\0' ||
        strlen(value) > 63)
        return refuse(why, "give an AWS region, like eu-west-1");
    return keep(into, value, why);
}

static int parse_path(const char *value, char **into, complaint *why) {
    if (value[0] != '/')
        return refuse(why, "give an absolute path");
    return keep(into, value, why);
}

static int parse_address(const char *value, char **into, complaint *why) {
    const char *colon = strrchr(value, ':'), *rest;
    uint64_t port;
    if (colon == NULL || colon == value ||
        parse_number(colon + 1, &port, &rest) == -1 || *rest != '\0' ||
        port > 65535)
        return refuse(why, "give host:port, like 127.0.0.1:9145 or [::1]:9145");
    if (memchr(value, ':', (size_t)(colon - value)) != NULL &&
        (value[0] != '[' || colon[-1] != ']'))
        return refuse(why, "put the IPv6 address in brackets, like [::1]:9145");
    return keep(into, value, why);
}

/* Shown in the log: so nothing in it may be secret. */
static int parse_url(const char *value, char **into, complaint *why) {
    const char *host = strncmp(value, "http://", 7) == 0    ? value + 7
                       : strncmp(value, "https://", 8) == 0 ? value + 8
                                                            : "";
    if (*host == '\0' || *host == '/' || *host == ':')
        return refuse(why, "give a URL like http://host:4317");
    for (const char *at = host; *at != '\0'; at++)
        if (*at <= ' ' || *at > '~' || strchr("@?#\"<>\\", *at) != NULL)
            return refuse(why, "there is a character that such a URL cannot "
                               "have: user, query and fragment are left out");
    return keep(into, value, why);
}

static int parse_headers(const char *value, config_property *into,
                         complaint *why) {
    char line[CONFIG_HEADER_SIZE];
    const char *reason, *at;
    int rc;
    into->name = strdup("otlp.headers");
    if (config_resolve(value, &into->value, why->text, sizeof(why->text)) == -1)
        return -1;
    if (into->value != NULL)
        into->written = strdup(value);
    else
        into->value = strdup(value);
    at = into->value;
    if (into->name == NULL || at == NULL)
        return refuse(why, "out of memory");
    while ((rc = config_header(&at, line, sizeof(line), &reason)) == 1)
        continue;
    explicit_bzero(line, sizeof(line));
    return rc == 0 ? 0 : refuse(why, "%s", reason);
}

/* Kafka's own rule for names. */
int config_parse_topic(const char *value, char **into, complaint *why) {
    size_t len =
        strspn(value, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
                      "0123456789._-");
    if (value[len] != '\0' || len > 249 || strcmp(value, ".") == 0 ||
        strcmp(value, "..") == 0)
        return refuse(why, "a topic's name has letters, digits, \".\", \"_\" "
                           "and \"-\", and at "
                           "most 249 of them");
    return keep(into, value, why);
}

/* The choice's index, or -1. */
static int parse_choice(const config_key *k, const char *value,
                        complaint *why) {
    size_t len = strlen(value);
    const char *at = k->choices;
    for (int i = 0; at != NULL; i++) {
        size_t n = strcspn(at, "|");
        if (n == len && memcmp(at, value, n) == 0)
            return i;
        at = at[n] == '|' ? at + n + 1 : NULL;
    }
    return refuse(why, "choose one of: %s", k->choices);
}

static int store_choice(const config_key *k, const char *value, void *field,
                        complaint *why) {
    int index = parse_choice(k, value, why);
    if (index == -1)
        return -1;
    if (k->offset == offsetof(config, export_protocap) ||
        k->offset == offsetof(config, durability_disk))
        *(bool *)field = index == 1;
    else
        *(int *)field = index;
    return 0;
}

int config_store(config *c, const config_key *k, char *value, complaint *why) {
    void *field = (char *)c + k->offset;
    switch (k->type) {
    case CONFIG_SOCKET:
        return parse_socket(value, field, why);
    case CONFIG_TEXT:
        return keep(field, value, why);
    case CONFIG_TOPIC:
        return config_parse_topic(value, field, why);
    case CONFIG_REGION:
        return parse_region(value, field, why);
    case CONFIG_URL:
        return parse_url(value, field, why);
    case CONFIG_PATH:
        return parse_path(value, field, why);
    case CONFIG_ADDRESS:
        return parse_address(value, field, why);
    case CONFIG_SIZE:
    case CONFIG_TIME:
        return parse_scaled(k, value, field, why);
    case CONFIG_MODE:
        return parse_mode(value, field, why);
    case CONFIG_USER:
        return parse_user(value, field, why);
    case CONFIG_GROUP:
        return parse_group(value, field, why);
    case CONFIG_UIDS:
        return parse_uids(c, value, why);
    case CONFIG_CHOICE:
        return store_choice(k, value, field, why);
    case CONFIG_HEADERS:
        return parse_headers(value, field, why);
    }
    return refuse(why, "internal error");
}
