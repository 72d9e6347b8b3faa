/* capturectl: looks into captured traffic. See capturectl.h for its parts. */

#include "tools/capturectl.h"

#include <ctype.h>
#include <errno.h>
#include <getopt.h>
#include <limits.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

enum {
    DECODE = 1,
    HTTP = 2,
    TOPIC = 4,
    READERS = DECODE | HTTP,
    KAFKA = READERS | TOPIC
};

typedef struct {
    const char *name;
    int bit;
    const char *usage;
    const char *summary;
    void (*run)(const ctl_options *opt); /* NULL: not built yet */
} subcommand;

static const subcommand subcommands[] = {
    {"decode", DECODE, "[OPTION...] FILE... | -b BROKERS -t TOPIC",
     "prints every record as a line of JSON, or readable", ctl_decode},
    {"http", HTTP, "[OPTION...] FILE... | -b BROKERS -t TOPIC",
     "prints HTTP exchanges, put together as the Traffic Replayer would",
     ctl_http},
    {"topic", TOPIC, "[OPTION...] -b BROKERS -t TOPIC",
     "prints the end offset of each partition, as the migration console does",
     ctl_topic},
    {"gaps", 0, "", "what is in doubt, lost, unfinished or doubled", NULL},
    {"check", 0, "", "what would trouble the Traffic Replayer", NULL},
    {"status", 0, "", "a running capture's state", NULL},
    {"export", 0, "", "a topic to a file", NULL},
    {"import", 0, "", "a file to a topic", NULL},
};

#define SUBCOMMANDS (sizeof(subcommands) / sizeof(subcommands[0]))

/* Long options without a letter. */
enum { READABLE = 256, PREVIEW, JSON, FULL, PACKET_TIMEOUT };

typedef struct {
    int code; /* the letter, where there is one */
    const char *name;
    const char *arg; /* NULL: takes none */
    int bits;        /* of the subcommands that know it */
    const char *help;
} option_row;

static const option_row options[] = {
    {'b', "brokers", "LIST", KAFKA,
     "read from Kafka: HOST:PORT, more after commas"},
    {'t', "topic", "TOPIC", KAFKA, "the topic to read"},
    {'F', "properties", "FILE", KAFKA,
     "librdkafka properties, a NAME=VALUE a line; the place for passwords"},
    {'X', "property", "NAME=VALUE", KAFKA,
     "a librdkafka property; no passwords here"},
    {'p', "partition", "N", KAFKA, "this partition only"},
    {'o', "offset", "N", READERS,
     "begin at this offset; -N: so many before the end (the default is all)"},
    {'m', "timeout", "SECONDS", KAFKA,
     "how long to wait for an answer from Kafka (10)"},
    {READABLE, "readable", NULL, DECODE, "a line for people instead of JSON"},
    {PREVIEW, "preview", "N", DECODE,
     "with --readable, show so many bytes of data (24)"},
    {JSON, "json", NULL, HTTP, "a line of JSON for each exchange"},
    {FULL, "full", NULL, HTTP,
     "heads and bodies as well, as they were captured"},
    {PACKET_TIMEOUT, "packet-timeout", "SECONDS", HTTP,
     "when a silent connection expires, as the Replayer's option (360)"},
    {'q', "quiet", NULL, HTTP, "no summary on standard error"},
    {'h', "help", NULL, INT_MAX, "print this"},
};

#define OPTIONS (sizeof(options) / sizeof(options[0]))

static const subcommand *find_subcommand(const char *name) {
    for (size_t i = 0; i < SUBCOMMANDS; i++) {
        if (strcmp(subcommands[i].name, name) == 0) {
            return &subcommands[i];
        }
    }

    return NULL;
}

static void print_overview(FILE *to) {
    fputs("Usage: capturectl SUBCOMMAND [OPTION...] [FILE...]\n"
          "Looks into captured HTTP traffic.\n\n",
          to);

    for (size_t i = 0; i < SUBCOMMANDS; i++) {
        fprintf(to, "  %-8s %s%s\n", subcommands[i].name,
                subcommands[i].summary,
                subcommands[i].run ? "" : " (not built yet)");
    }

    fputs("\ncapturectl SUBCOMMAND --help explains one.\n", to);
}

static void print_option(FILE *to, const option_row *o) {
    char left[64];
    char letter[8] = "    ";

    if (o->code < 256) {
        snprintf(letter, sizeof(letter), "-%c, ", o->code);
    }

    snprintf(left, sizeof(left), "%s--%s%s%s", letter, o->name,
             o->arg ? " " : "", o->arg ? o->arg : "");
    fprintf(to, "  %-28s %s\n", left, o->help);
}

static void print_help(FILE *to, const subcommand *cmd) {
    fprintf(to, "Usage: capturectl %s %s\n%c%s.\n\n", cmd->name, cmd->usage,
            toupper((unsigned char)cmd->summary[0]), cmd->summary + 1);

    for (size_t i = 0; i < OPTIONS; i++) {
        if (options[i].bits & cmd->bit) {
            print_option(to, &options[i]);
        }
    }

    if (cmd->bit & READERS) {
        fputs("\nA FILE holds lines of base64, each with KEY| before it or "
              "not, or is one raw\n"
              "record (.protocap); - is standard input.\n",
              to);
    }

    fputs("\nExit status: 0, 1 after any error or broken record, 2 for a wrong "
          "command line.\n",
          to);
}

static _Noreturn void usage_error(const subcommand *cmd, const char *why) {
    ctl_remark("%s", why);
    ctl_remark("capturectl %s --help explains", cmd->name);
    exit(CTL_USAGE);
}

static int64_t number(const subcommand *cmd, const char *text, int64_t min,
                      int64_t max) {
    char *end;
    long long n;

    errno = 0;
    n = strtoll(text, &end, 10);

    if (end == text || *end != '\0' || errno != 0 || n < min || n > max) {
        ctl_remark("%s:", text);
        usage_error(cmd, "not a number, or out of range");
    }

    return n;
}

static void add_property(ctl_options *opt, const subcommand *cmd,
                         const char *line) {
    char *name = ctl_strdup(line);
    char *value = strchr(name, '=');

    if (value == NULL || value == name) {
        free(name);
        usage_error(cmd, "a property is NAME=VALUE");
    }

    *value++ = '\0';

    opt->properties = ctl_realloc(opt->properties, (opt->properties_count + 1) *
                                                       sizeof(ctl_property));
    opt->properties[opt->properties_count++] = (ctl_property){name, value};
}

/* What stands on a command line can be read by every user of the machine. */
static bool is_secret(const char *property) {
    static const char *const words[] = {"password", "secret", "ssl.key.pem",
                                        "sasl.oauthbearer.config"};
    size_t len = strcspn(property, "=");

    for (size_t i = 0; i < sizeof(words) / sizeof(words[0]); i++) {
        const char *found = strstr(property, words[i]);

        if (found != NULL && found < property + len) {
            return true;
        }
    }

    return false;
}

static void add_properties(ctl_options *opt, const subcommand *cmd,
                           const char *file) {
    FILE *f = fopen(file, "r");
    char *line = NULL;
    size_t cap = 0;
    ssize_t n;

    if (f == NULL) {
        ctl_error("%s: %s", file, strerror(errno));
        exit(CTL_ERROR);
    }

    while ((n = getline(&line, &cap, f)) > 0) {
        char *text = line + strspn(line, " \t");

        line[strcspn(line, "\r\n")] = '\0';

        if (*text != '\0' && *text != '#') {
            add_property(opt, cmd, text);
        }
    }

    free(line);
    fclose(f);
}

static void take_option(ctl_options *opt, const subcommand *cmd, int code,
                        const char *arg) {
    switch (code) {
    case 'b':
        opt->brokers = arg;
        break;
    case 't':
        opt->topic = arg;
        break;
    case 'F':
        add_properties(opt, cmd, arg);
        break;
    case 'X':
        if (is_secret(arg)) {
            usage_error(cmd, "secrets belong into a file: -F FILE");
        }
        add_property(opt, cmd, arg);
        break;
    case 'p':
        opt->partition = (int32_t)number(cmd, arg, 0, INT32_MAX);
        break;
    case 'o':
        opt->has_offset = true;
        opt->offset = number(cmd, arg, -INT64_MAX, INT64_MAX);
        break;
    case 'm':
        opt->timeout = (int)number(cmd, arg, 1, 86400);
        break;
    case READABLE:
        opt->readable = true;
        break;
    case PREVIEW:
        opt->preview = (int)number(cmd, arg, 0, INT_MAX);
        break;
    case JSON:
        opt->json = true;
        break;
    case FULL:
        opt->full = true;
        break;
    case PACKET_TIMEOUT:
        opt->packet_timeout = (int)number(cmd, arg, 1, INT_MAX);
        break;
    case 'q':
        opt->quiet = true;
        break;
    case 'h':
        print_help(stdout, cmd);
        exit(CTL_OK);
    default:
        ctl_remark("capturectl %s --help explains", cmd->name);
        exit(CTL_USAGE);
    }
}

/* getopt's tables, made of ours for the subcommand. */
static void make_tables(const subcommand *cmd, char *letters,
                        struct option *table) {
    for (size_t i = 0; i < OPTIONS; i++) {
        const option_row *o = &options[i];

        if (!(o->bits & cmd->bit)) {
            continue;
        }

        *table++ = (struct option){
            o->name, o->arg ? required_argument : no_argument, NULL, o->code};

        if (o->code < 256) {
            *letters++ = (char)o->code;

            if (o->arg) {
                *letters++ = ':';
            }
        }
    }

    *letters = '\0';
    *table = (struct option){0};
}

static void parse(ctl_options *opt, const subcommand *cmd, int argc,
                  char **argv) {
    int code;
    char letters[2 * OPTIONS + 1];
    struct option table[OPTIONS + 1];

    make_tables(cmd, letters, table);

    while ((code = getopt_long(argc, argv, letters, table, NULL)) != -1) {
        take_option(opt, cmd, code, optarg);
    }

    opt->files = argv + optind;
    opt->files_count = argc - optind;

    if ((opt->brokers == NULL) != (opt->topic == NULL)) {
        usage_error(cmd, "-b BROKERS and -t TOPIC go together");
    }

    if (cmd->bit == TOPIC && (opt->brokers == NULL || opt->files_count > 0)) {
        usage_error(cmd, "it reads from Kafka: -b BROKERS -t TOPIC");
    }

    if ((opt->brokers != NULL) == (opt->files_count > 0)) {
        usage_error(cmd, "give either files or -b BROKERS -t TOPIC");
    }
}

static void free_properties(ctl_options *opt) {
    for (size_t i = 0; i < opt->properties_count; i++) {
        free(opt->properties[i].name); /* its value is in the same memory */
    }

    free(opt->properties);
}

int main(int argc, char **argv) {
    const subcommand *cmd;
    ctl_options opt = {
        .partition = -1, .timeout = 10, .packet_timeout = 360, .preview = 24};

    signal(SIGPIPE,
           SIG_IGN); /* a reader that went away shows as a failed write */

    if (argc > 1 &&
        (strcmp(argv[1], "--help") == 0 || strcmp(argv[1], "-h") == 0)) {
        print_overview(stdout);
        return ctl_finish();
    }

    cmd = argc > 1 ? find_subcommand(argv[1]) : NULL;

    if (cmd == NULL) {
        print_overview(stderr);
        return CTL_USAGE;
    }

    if (cmd->run == NULL) {
        fprintf(stderr, "capturectl: %s: not built yet\n", cmd->name);
        return CTL_USAGE;
    }

    parse(&opt, cmd, argc - 1, argv + 1);
    cmd->run(&opt);
    free_properties(&opt);

    return ctl_finish();
}
