/* --help-config and docs/configuration.md, made from the table of keys. */
#include "sidecar/config_internal.h"

static const char *const type_names[] = {
    [CONFIG_SOCKET] = "unix:/path",  [CONFIG_TEXT] = "text",
    [CONFIG_PATH] = "absolute path", [CONFIG_ADDRESS] = "host:port",
    [CONFIG_SIZE] = "size",          [CONFIG_TIME] = "time",
    [CONFIG_MODE] = "octal mode",    [CONFIG_USER] = "user",
    [CONFIG_GROUP] = "group",        [CONFIG_UIDS] = "users",
    [CONFIG_CHOICE] = "choice",      [CONFIG_TOPIC] = "name",
    [CONFIG_REGION] = "region",      [CONFIG_URL] = "URL",
    [CONFIG_HEADERS] = "headers",
};

/* "size, 4k to 1048076" or "lines or protocap" */
static void describe_values(const config_key *k, char *into, size_t size) {
    char min[32], max[32];
    if (k->type == CONFIG_SIZE || k->type == CONFIG_TIME) {
        config_format_scaled(k, k->min, min, sizeof(min));
        config_format_scaled(k, k->max, max, sizeof(max));
        snprintf(into, size, "%s, %s to %s", type_names[k->type], min, max);
        return;
    }
    size_t n = 0;
    if (k->choices == NULL) {
        snprintf(into, size, "%s", type_names[k->type]);
        return;
    }
    for (const char *at = k->choices; *at != '\0' && n + 3 < size; at++) {
        if (*at == '|')
            into[n++] = ',', into[n++] = ' ';
        else
            into[n++] = *at;
    }
    into[n] = '\0';
}

static void help_text(FILE *out) {
    char values[80];
    fputs("A line is `key = value`; one that begins with # is a comment.\n"
          "Sizes: 64k, 16m, 1g.  Times: 500ms, 3s, 5m.\n\n",
          out);
    for (size_t i = 0; i < config_nkeys; i++) {
        const config_key *k = &config_keys[i];
        describe_values(k, values, sizeof(values));
        fprintf(out, "%s = %s%s%s%s\n    %s\n", k->name, values,
                k->initial != NULL ? " (default " : "",
                k->initial != NULL ? k->initial : "",
                k->initial != NULL ? ")" : "", k->help);
    }
}

static void help_markdown(FILE *out) {
    char values[80];
    fputs("<!-- made by `capture-sidecar --help-config=markdown`: change "
          "sidecar/config.c -->\n"
          "# The sidecar's configuration\n\n"
          "A line is `key = value`; one that begins with `#` is a comment.\n"
          "Sizes: `64k`, `16m`, `1g`. Times: `500ms`, `3s`, `5m`.\n\n"
          "| key | value | default | |\n| --- | --- | --- | --- |\n",
          out);
    for (size_t i = 0; i < config_nkeys; i++) {
        const config_key *k = &config_keys[i];
        const char *tick = k->initial != NULL ? "`" : "";
        describe_values(k, values, sizeof(values));
        fprintf(out, "| `%s` | %s | %s%s%s | %s |\n", k->name, values, tick,
                k->initial != NULL ? k->initial : "", tick, k->help);
    }
}

/* Keys that are many. */
static const char *const patterns[][3] = {
    {"topic.NAME", "name",
     "Another destination: the topic of the requests for which NGINX's "
     "`capture_topic` says NAME (1 to 63 letters, digits, `.`, `_`, `-`). Only "
     "what is listed here is permitted; 16 at most. Each has an even share of "
     "inflight.size."},
    {"topic.NAME.kafka.PROPERTY", "text",
     "What is other than kafka.PROPERTY for that destination: another cluster "
     "by topic.NAME.kafka.bootstrap.servers, other credentials ... The same "
     "rules hold."},
    {"kafka.NAME", "text",
     "librdkafka's property NAME: kafka.bootstrap.servers, "
     "kafka.security.protocol, "
     "kafka.compression.type ... Those that protect delivery cannot be "
     "changed. `${file:/path}` in a value is what the file holds, "
     "`${env:NAME}` the variable; HUP reads files again."},
};

void config_help(FILE *out, bool markdown) {
    if (markdown)
        help_markdown(out);
    else
        help_text(out);
    for (size_t i = 0; i < sizeof(patterns) / sizeof(*patterns); i++)
        fprintf(out, markdown ? "| `%s` | %s | | %s |\n" : "%s = %s\n    %s\n",
                patterns[i][0], patterns[i][1], patterns[i][2]);
}
