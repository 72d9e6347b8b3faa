/* Several topics and clusters: topic.NAME and topic.NAME.kafka.PROPERTY. */
#include <ctype.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include "sidecar/config.h"

/* ---- while a file is read ---- */

config_destination *config_destination_find(config *c, const char *name,
                                            size_t len, int line) {
    config_destination *d;

    for (size_t i = 0; i < c->ndestinations; i++) {
        d = &c->destinations[i];
        if (strlen(d->name) == len && memcmp(d->name, name, len) == 0) {
            return d;
        }
    }
    if (c->destinations == NULL) {
        /* all at once: properties point into it */
        c->destinations =
            calloc(CONFIG_MAX_DESTINATIONS, sizeof(*c->destinations));
    }
    if (c->destinations == NULL ||
        c->ndestinations == CONFIG_MAX_DESTINATIONS) {
        return NULL;
    }
    d = &c->destinations[c->ndestinations++];
    d->line = line;
    memcpy(d->name, name, len);
    snprintf(d->scope, sizeof(d->scope), "topic.%s.", d->name);
    return d;
}

/* The next of a list by commas; its length, and *list behind it. */
static size_t next_server(const char **list, const char **server) {
    const char *at = *list + strspn(*list, ", \t");
    size_t n = strcspn(at, ",");

    *server = at;
    *list = at + n;
    while (n > 0 && isspace((unsigned char)at[n - 1])) {
        n--;
    }
    return n;
}

static bool share_a_server(const char *a, const char *b) {
    const char *x, *y, *rest;
    size_t n, m;

    while ((n = next_server(&a, &x)) > 0) {
        rest = b;
        while ((m = next_server(&rest, &y)) > 0) {
            if (n == m && strncasecmp(x, y, n) == 0) {
                return true;
            }
        }
    }
    return false;
}

static bool is_the_same(const config *a, const config *b) {
    const char *x = config_kafka(a, "bootstrap.servers"),
               *y = config_kafka(b, "bootstrap.servers");

    return strcmp(a->topic, b->topic) == 0 &&
           ((x == NULL && y == NULL) ||
            (x != NULL && y != NULL && share_a_server(x, y)));
}

/* Two names of one topic would be two producers that know nothing of each
   other. */
static int check_twice(const config *c, const char *file, FILE *err) {
    config *views = calloc(c->ndestinations + 1, sizeof(*views));
    int mistakes = 0;

    for (size_t i = 0; views != NULL && i <= c->ndestinations; i++) {
        config_view(c, i, &views[i]);
        for (size_t j = 0; j < i; j++) {
            if (is_the_same(&views[i], &views[j])) {
                fprintf(err,
                        "%s:%d: topic.%s = %s: that is the same topic of the "
                        "same brokers as %s: leave one of them out\n",
                        file, c->destinations[i - 1].line,
                        c->destinations[i - 1].name, views[i].topic,
                        config_destination_name(c, j));
                mistakes++;
                break;
            }
        }
    }
    free(views);
    return mistakes;
}

int config_destination_check(const config *c, const char *file, FILE *err) {
    int mistakes = 0;

    for (size_t i = 0; i < c->ndestinations; i++) {
        const config_destination *d = &c->destinations[i];
        if (d->topic == NULL) {
            fprintf(err,
                    "%s:%d: topic.%s.kafka.%s: there is no topic.%s: add a "
                    "line topic.%s = TOPIC\n",
                    file, d->line, d->name,
                    d->nkafka > 0 ? d->kafka[0].name : "*", d->name, d->name);
            mistakes++;
        }
    }
    if (mistakes > 0) {
        return mistakes;
    }
    if (c->ndestinations > 0 &&
        c->inflight_size / (c->ndestinations + 1) < c->record_size) {
        fprintf(err,
                "%s: inflight.size is shared by %zu destinations, and a share "
                "is less than record.size: no record could be sent\n",
                file, c->ndestinations + 1);
        mistakes++;
    }
    return mistakes + check_twice(c, file, err);
}

static void free_property(config_property *p) {
    if (p->value != NULL) {
        explicit_bzero(p->value, strlen(p->value));
    }
    free(p->name);
    free(p->value);
    free(p->written);
}

void config_destination_free(config *c) {
    config_property *p;

    for (size_t i = 0; (p = config_property_at(c, i)) != NULL; i++) {
        free_property(p);
    }
    for (size_t i = 0; i < c->ndestinations; i++) {
        free(c->destinations[i].topic);
    }
    free(c->destinations);
}

/* ---- afterwards ---- */

config_property *config_property_at(const config *c, size_t i) {
    if (i < c->nkafka) {
        return (config_property *)&c->kafka[i];
    }
    i -= c->nkafka;
    for (size_t d = 0; d < c->ndestinations; d++) {
        if (i < c->destinations[d].nkafka) {
            return &c->destinations[d].kafka[i];
        }
        i -= c->destinations[d].nkafka;
    }
    return NULL;
}

const char *config_destination_name(const config *c, size_t i) {
    return i == 0 ? CONFIG_DEFAULT_NAME : c->destinations[i - 1].name;
}

/* A property of its own stands in the place of the general one. */
static void override(config *into, const config_property *p) {
    for (size_t i = 0; i < into->nkafka; i++) {
        if (strcmp(into->kafka[i].name, p->name) == 0) {
            into->kafka[i] = *p;
            return;
        }
    }
    if (into->nkafka < CONFIG_MAX_KAFKA) {
        into->kafka[into->nkafka++] = *p;
    }
}

/* A destination that authenticates otherwise has nothing of token.source. */
static bool takes_token(const config *view) {
    static const char *const names[] = {"sasl.mechanism", "sasl.mechanisms"};
    const char *protocol = config_kafka(view, "security.protocol");

    for (size_t i = 0; i < sizeof(names) / sizeof(*names); i++) {
        const char *mechanism = config_kafka(view, names[i]);
        if (mechanism != NULL && strcasecmp(mechanism, "OAUTHBEARER") != 0) {
            return false;
        }
    }
    return protocol == NULL || strncasecmp(protocol, "sasl_", 5) == 0;
}

void config_view_again(const config *c, size_t i, config *view) {
    memcpy(view->kafka, c->kafka, sizeof(view->kafka));
    view->nkafka = c->nkafka;
    for (size_t p = 0; i > 0 && p < c->destinations[i - 1].nkafka; p++) {
        override(view, &c->destinations[i - 1].kafka[p]);
    }
}

void config_view(const config *c, size_t i, config *into) {
    *into = *c;
    into->destinations = NULL;
    into->ndestinations = 0;
    if (c->ndestinations == 0) {
        return;
    }
    into->destination = config_destination_name(c, i);
    into->inflight_size = c->inflight_size / (c->ndestinations + 1);
    if (i == 0) {
        return;
    }
    into->topic = c->destinations[i - 1].topic;
    config_view_again(c, i, into);
    if (!takes_token(into)) {
        into->token_source = CONFIG_TOKEN_NONE;
    }
}

void config_of_destination(const config *view, char *into, size_t size) {
    snprintf(into, size, "%s%s", view->destination != NULL ? " of " : "",
             view->destination != NULL ? view->destination : "");
}
