/* Values that stand elsewhere than in the file, and what must not be shown. */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "sidecar/config.h"
#include "sidecar/log.h"

#define FILE_SIZE_MAX ((size_t)65536)

bool config_is_secret(const char *kafka_name) {
    static const char *const parts[] = {"password",           "secret",
                                        "passphrase",         ".pem",
                                        "oauthbearer.config", "jaas"};
    for (size_t i = 0; i < sizeof(parts) / sizeof(*parts); i++)
        if (strstr(kafka_name, parts[i]) != NULL)
            return true;
    return false;
}

const char *config_shown(const config_property *p) {
    const char *shown = p->written != NULL ? p->written : p->value;
    bool whole = p->written != NULL && strncmp(p->written, "${", 2) == 0 &&
                 strchr(p->written, '}') == strrchr(p->written, '}') &&
                 p->written[strlen(p->written) - 1] == '}';
    return config_is_secret(p->name) && !whole ? "(not shown)" : shown;
}

/* ---- references ---- */

/* A text that grows, and leaves nothing behind where it was. */
typedef struct {
    char *at;
    size_t len;
} text;

static int append(text *t, const char *from, size_t n) {
    char *at = malloc(t->len + n + 1);
    if (at == NULL)
        return -1;
    if (t->len > 0) {
        memcpy(at, t->at, t->len);
        explicit_bzero(t->at, t->len);
    }
    free(t->at);
    memcpy(at + t->len, from, n);
    t->len += n;
    at[t->len] = '\0';
    t->at = at;
    return 0;
}

static void forget(text *t) {
    if (t->at != NULL)
        explicit_bzero(t->at, t->len);
    free(t->at);
    t->at = NULL;
    t->len = 0;
}

static int read_all(int fd, char *into, size_t size, size_t *len) {
    *len = 0;
    while (*len < size) {
        ssize_t n = read(fd, into + *len, size - *len);
        if (n == -1 && errno == EINTR)
            continue;
        if (n <= 0)
            return (int)n;
        *len += (size_t)n;
    }
    return 0;
}

static int append_file(text *t, const char *path, char *why, size_t size) {
    static char buffer[FILE_SIZE_MAX + 1];
    size_t len;
    int rc = -1;
    if (path[0] != '/') {
        snprintf(why, size, "%s is not an absolute path", path);
        return -1;
    }
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
    if (fd == -1 || read_all(fd, buffer, sizeof(buffer), &len) == -1) {
        snprintf(why, size, "%s cannot be read: %s", path, strerror(errno));
        if (fd != -1)
            close(fd);
        return -1;
    }
    close(fd);
    if (len > 0 && len < sizeof(buffer) && buffer[len - 1] == '\n')
        len--;
    if (len > 0 && len < sizeof(buffer) && buffer[len - 1] == '\r')
        len--;
    if (len == 0)
        snprintf(why, size, "%s is empty", path);
    else if (len == sizeof(buffer))
        snprintf(why, size, "%s is larger than %zu bytes", path, FILE_SIZE_MAX);
    else if (memchr(buffer, '\0', len) != NULL)
        snprintf(why, size, "%s has a NUL byte: it is not text", path);
    else if (append(t, buffer, len) == -1)
        snprintf(why, size, "out of memory");
    else
        rc = 0;
    explicit_bzero(buffer, sizeof(buffer));
    return rc;
}

static int append_variable(text *t, const char *name, char *why, size_t size) {
    const char *value = getenv(name);
    if (value == NULL || *value == '\0') {
        snprintf(why, size, "the environment has no %s", name);
        return -1;
    }
    if (append(t, value, strlen(value)) == 0)
        return 0;
    snprintf(why, size, "out of memory");
    return -1;
}

typedef int (*resolver)(text *t, const char *what, char *why, size_t size);

/* "${env:" or "${file:" at `at`: who resolves it, and where its name begins. */
static resolver reference(const char *at, const char **name) {
    static const struct {
        const char *begin;
        resolver resolve;
    } kinds[] = {{"${env:", append_variable}, {"${file:", append_file}};
    for (size_t i = 0; i < sizeof(kinds) / sizeof(*kinds); i++) {
        size_t n = strlen(kinds[i].begin);
        if (strncmp(at, kinds[i].begin, n) != 0)
            continue;
        *name = at + n;
        return kinds[i].resolve;
    }
    return NULL;
}

static int resolve_one(text *t, resolver resolve, const char *name,
                       const char *end, char *why, size_t size) {
    char *copy = strndup(name, (size_t)(end - name));
    int rc = -1;
    if (copy == NULL)
        snprintf(why, size, "out of memory");
    else
        rc = resolve(t, copy, why, size);
    free(copy);
    return rc;
}

int config_resolve(const char *written, char **value, char *why, size_t size) {
    text t = {0};
    bool any = false;
    *value = NULL;
    for (const char *at = written; *at != '\0';) {
        const char *name, *end;
        resolver resolve = reference(at, &name);
        if (resolve == NULL) {
            if (append(&t, at++, 1) == -1)
                goto out_of_memory;
            continue;
        }
        end = strchr(name, '}');
        if (end == NULL) {
            snprintf(why, size, "the reference has no \"}\"");
            goto failed;
        }
        if (resolve_one(&t, resolve, name, end, why, size) == -1)
            goto failed;
        any = true;
        at = end + 1;
    }
    if (any)
        *value = t.at;
    else
        forget(&t);
    return 0;

out_of_memory:
    snprintf(why, size, "out of memory");
failed:
    forget(&t);
    return -1;
}

static void free_value(char *value) {
    if (value != NULL)
        explicit_bzero(value, strlen(value));
    free(value);
}

/* Every value that may have a reference; NULL behind the last. */
static config_property *property(config *c, size_t i) {
    return i == 0 ? &c->otlp_headers : config_property_at(c, i - 1);
}

static bool is_headers(const config *c, const config_property *p) {
    return p == &c->otlp_headers;
}

static int headers_are_right(const char *value, char *why, size_t size) {
    char line[CONFIG_HEADER_SIZE];
    const char *reason;
    int rc;
    while ((rc = config_header(&value, line, sizeof(line), &reason)) == 1)
        continue;
    explicit_bzero(line, sizeof(line));
    if (rc == -1)
        snprintf(why, size, "%s", reason);
    return rc;
}

int config_resolve_again(config *c, FILE *err) {
    static char *values[CONFIG_MAX_KAFKA +
                        CONFIG_MAX_DESTINATIONS * CONFIG_MAX_OVERRIDES + 1];
    char why[512];
    config_property *p;
    int changed = 0, failed = 0;
    for (size_t i = 0; (p = property(c, i)) != NULL; i++) {
        values[i] = NULL;
        if (p->written == NULL)
            continue;
        if (config_resolve(p->written, &values[i], why, sizeof(why)) == -1 ||
            (is_headers(c, p) &&
             headers_are_right(values[i], why, sizeof(why)) == -1)) {
            fprintf(err, "%s%s%s: %s\n", is_headers(c, p) ? "" : p->scope,
                    is_headers(c, p) ? "" : "kafka.", p->name, why);
            failed++;
        }
    }
    for (size_t i = 0; (p = property(c, i)) != NULL; i++) {
        if (failed == 0 && values[i] != NULL &&
            strcmp(values[i], p->value) != 0) {
            char *old = p->value;
            p->value = values[i];
            values[i] = old;
            changed++;
        }
        free_value(values[i]);
    }
    return failed > 0 ? -1 : changed;
}

static void hide_headers(const char *value) {
    char line[CONFIG_HEADER_SIZE], name[64];
    const char *why;
    while (value != NULL &&
           config_header(&value, line, sizeof(line), &why) == 1) {
        char *colon = strchr(line, ':');
        *colon = '\0';
        snprintf(name, sizeof(name), "otlp.headers %.40s", line);
        log_hide(name, colon + 2);
    }
    explicit_bzero(line, sizeof(line));
}

void config_hide_secrets(const config *c) {
    const config_property *p;
    char name[CONFIG_NAME_SIZE + 128]; /* one a name is hidden */
    for (size_t i = 0; (p = config_property_at(c, i)) != NULL; i++)
        if (config_is_secret(p->name)) {
            snprintf(name, sizeof(name), "%s%s", p->scope, p->name);
            log_hide(name, p->value);
        }
    hide_headers(c->otlp_headers.value);
}
