/* capturectl: looks into captured traffic. See capturectl.h for its parts. */

#include "tools/capturectl_options.h"

#include <errno.h>
#include <getopt.h>
#include <inttypes.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define MAX_OPTIONS 64

static _Noreturn void usage_error(const ctl_subcommand *cmd, const char *why) {
    ctl_remark("%s", why);
    ctl_remark("capturectl %s --help explains", cmd->name);
    exit(CTL_USAGE);
}

static int64_t number(const ctl_subcommand *cmd, const char *name,
                      const char *text, int64_t min, int64_t max) {
    char *end;
    char why[160];
    long long n;

    errno = 0;
    n = strtoll(text, &end, 10);

    if (end == text || *end != '\0' || errno != 0 || n < min || n > max) {
        snprintf(why, sizeof(why),
                 "--%s %.40s: not a number from %" PRId64 " to %" PRId64, name,
                 text, min, max);
        usage_error(cmd, why);
    }

    return n;
}

static void add_property(ctl_options *opt, const ctl_subcommand *cmd,
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

static void add_properties(ctl_options *opt, const ctl_subcommand *cmd,
                           const char *file) {
    FILE *f = fopen(file, "r");
    char *line = NULL;
    size_t cap = 0;
    ssize_t n;

    if (f == NULL) {
        ctl_die("%s: %s", file, strerror(errno));
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

static void take_other(ctl_options *opt, const ctl_subcommand *cmd, int code,
                       const char *arg) {
    switch (code) {
    case 'F':
        add_properties(opt, cmd, arg);
        break;
    case 'X':
        if (is_secret(arg)) {
            usage_error(cmd, "secrets belong into a file: -F FILE");
        }
        add_property(opt, cmd, arg);
        break;
    case 'o':
        opt->has_offset = true;
        opt->offset = number(cmd, "offset", arg, -INT64_MAX, INT64_MAX);
        /* none before the end, for --follow */
        opt->offset = opt->offset == 0 && *arg == '-' ? INT64_MAX : opt->offset;
        break;
    case 'h':
        ctl_print_help(cmd);
        exit(ctl_finish());
    }
}

/* What joined lists take, until the end. */
static char **joined;
static size_t joined_count;

/* Several of one option are one with a comma between. */
static const char *join(const char *old, const char *arg) {
    size_t size;
    char *text;

    if (old == NULL) {
        return arg;
    }

    size = strlen(old) + strlen(arg) + 2;
    text = ctl_alloc(size);
    snprintf(text, size, "%s,%s", old, arg);

    joined = ctl_realloc(joined, (joined_count + 1) * sizeof(char *));
    joined[joined_count++] = text;

    return text;
}

static void free_joined(void) {
    for (size_t i = 0; i < joined_count; i++) {
        free(joined[i]);
    }

    free(joined);
}

static bool takes_a_list(const ctl_option *o) {
    return strcmp(o->arg, "LIST") == 0 || strcmp(o->arg, "KINDS") == 0;
}

static void take_option(ctl_options *opt, const ctl_subcommand *cmd,
                        const ctl_option *o, const char *arg) {
    void *field = (char *)opt + o->field;

    switch (o->type) {
    case CTL_FLAG:
        *(bool *)field = true;
        break;
    case CTL_TEXT: {
        const char **text = field;

        *text = takes_a_list(o) ? join(*text, arg) : arg;
        break;
    }
    case CTL_NUMBER:
        *(int64_t *)field = number(cmd, o->name, arg, o->min, o->max);
        break;
    case CTL_OTHER:
        take_other(opt, cmd, o->code, arg);
        break;
    }
}

/* getopt's tables, made of ours for the subcommand. */
static void make_tables(const ctl_subcommand *cmd, char *letters,
                        struct option *table) {
    for (size_t i = 0; i < ctl_option_count; i++) {
        const ctl_option *o = &ctl_option_table[i];

        if (!(o->bits & cmd->bit)) {
            continue;
        }

        *table++ = (struct option){
            o->name, o->arg ? required_argument : no_argument, NULL, o->code};

        if (o->code < CTL_LONG_ONLY) {
            *letters++ = (char)o->code;

            if (o->arg) {
                *letters++ = ':';
            }
        }
    }

    *letters = '\0';
    *table = (struct option){0};
}

static const ctl_option *option_of(int code) {
    for (size_t i = 0; i < ctl_option_count; i++) {
        if (ctl_option_table[i].code == code) {
            return &ctl_option_table[i];
        }
    }

    return NULL;
}

static void check_arguments(const ctl_options *opt, const ctl_subcommand *cmd) {
    bool topic = opt->brokers != NULL;

    if ((opt->brokers == NULL) != (opt->topic == NULL)) {
        usage_error(cmd, "-b BROKERS and -t TOPIC go together");
    }

    switch (cmd->arguments) {
    case CTL_ARGS_INPUT:
        if (topic == (opt->files_count > 0)) {
            usage_error(cmd, "give either files or -b BROKERS -t TOPIC");
        }
        if (opt->follow && !topic) {
            usage_error(cmd, "-f follows a topic; for a file: "
                             "tail -f FILE | capturectl ... -");
        }
        break;
    case CTL_ARGS_TOPIC:
        if (!topic || opt->files_count > 0) {
            usage_error(cmd, "it reads from Kafka: -b BROKERS -t TOPIC");
        }
        break;
    case CTL_ARGS_BOTH:
        if (!topic || opt->files_count != 1) {
            usage_error(cmd, "give one FILE and -b BROKERS -t TOPIC");
        }
        break;
    case CTL_ARGS_ADDRESSES:
        if (opt->files_count == 0) {
            usage_error(cmd, "give at least one ADDRESS");
        }
        break;
    case CTL_ARGS_WORD:
        if (opt->files_count > 1) {
            usage_error(cmd, "one word at most");
        }
        break;
    }
}

static void parse(ctl_options *opt, const ctl_subcommand *cmd, int argc,
                  char **argv) {
    int code;
    char letters[2 * MAX_OPTIONS + 1];
    struct option table[MAX_OPTIONS + 1];

    make_tables(cmd, letters, table);

    while ((code = getopt_long(argc, argv, letters, table, NULL)) != -1) {
        const ctl_option *o = code == '?' ? NULL : option_of(code);

        if (o == NULL) {
            ctl_remark("capturectl %s --help explains", cmd->name);
            exit(CTL_USAGE);
        }

        take_option(opt, cmd, o, optarg);
    }

    opt->files = argv + optind;
    opt->files_count = argc - optind;

    check_arguments(opt, cmd);
}

static void free_properties(ctl_options *opt) {
    for (size_t i = 0; i < opt->properties_count; i++) {
        free(opt->properties[i].name); /* its value is in the same memory */
    }

    free(opt->properties);
}

int main(int argc, char **argv) {
    const ctl_subcommand *cmd;
    ctl_options opt = {.partition = -1,
                       .timeout = 10,
                       .packet_timeout = 360,
                       .preview = 24,
                       .sort = "completion",
                       .remember = 1000000,
                       .top = 20,
                       .days = 7,
                       .interval = 2,
                       .canary_path = "/"};

    signal(SIGPIPE,
           SIG_IGN); /* a reader that went away shows as a failed write */

    if (argc > 1 &&
        (strcmp(argv[1], "--help") == 0 || strcmp(argv[1], "-h") == 0)) {
        ctl_print_overview(false);
        return ctl_finish();
    }

    cmd = argc > 1 ? ctl_find_subcommand(argv[1]) : NULL;

    if (cmd == NULL) {
        ctl_print_overview(true);
        return CTL_USAGE;
    }

    if (cmd->verdict) {
        ctl_give_verdict();
    }

    parse(&opt, cmd, argc - 1, argv + 1);
    ctl_progress_off(opt.quiet);
    cmd->run(&opt);
    free_properties(&opt);
    free_joined();

    return ctl_finish();
}
