#include "launcher/flags.h"

#include <ctype.h>
#include <errno.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include "sidecar/config.h"

#define PREFIX "CAPTURE_PROXY_"
#define NAME_SIZE 128

const flag flags[NFLAGS] = {
#define X(id, name, other, kind, initial, argument, section, help)             \
    {name, other, FLAG_##kind, initial, argument, SECTION_##section, help},
    FLAGS(X)
#undef X
};

/* ---- what was given ---- */

static void say(options *o, const char *what, const char *format,
                va_list args) {
    fprintf(o->err, "capture-proxy: %s", what);
    vfprintf(o->err, format, args);
    fputc('\n', o->err);
}

void options_mistake(options *o, const char *format, ...) {
    va_list args;
    va_start(args, format);
    say(o, "", format, args);
    va_end(args);
    o->mistakes++;
}

void options_warn(options *o, const char *format, ...) {
    va_list args;
    va_start(args, format);
    say(o, "warning: ", format, args);
    va_end(args);
}

static char *copy(const char *text) {
    char *made = strdup(text);
    if (made == NULL)
        abort();
    return made;
}

const char *options_get(const options *o, int id) {
    return o->text[id] != NULL ? o->text[id] : flags[id].initial;
}

bool options_on(const options *o, int id) {
    return o->text[id] != NULL;
}

const char *options_from(const options *o, int id, char *into, size_t size) {
    if (o->from[id] != NULL)
        snprintf(into, size, "%s", o->from[id]);
    else
        snprintf(into, size, "--%s", flags[id].name);
    return into;
}

static bool is_number(const char *text) {
    return *text != '\0' && strspn(text, "0123456789") == strlen(text) &&
           strlen(text) < 16;
}

/* Whether a value fits its kind: what Java logs and ignores is refused. */
static bool fits(options *o, int id, const char *from, const char *value) {
    int64_t ms;
    switch (flags[id].kind) {
    case FLAG_NUMBER:
        if (is_number(value))
            return true;
        options_mistake(o, "%s %s: give a whole number", from, value);
        return false;
    case FLAG_DURATION:
        if (parse_iso_duration(value, &ms))
            return true;
        options_mistake(o, "%s %s: give an ISO-8601 duration, like PT30S", from,
                        value);
        return false;
    case FLAG_TIME:
        if (parse_time(value, &ms))
            return true;
        options_mistake(o, "%s %s: give a time, like 500ms, 25s or 1m", from,
                        value);
        return false;
    default:
        return true;
    }
}

/* A switch's word, from a variable or from JSON: "true", "" or NULL. */
static const char *switch_word(const char *value) {
    if (strcasecmp(value, "true") == 0)
        return "true";
    return strcasecmp(value, "false") == 0 ? "" : NULL;
}

void options_set(options *o, int id, const char *from, const char *value) {
    if (flags[id].kind == FLAG_SWITCH && *value != '\0') {
        const char *word = switch_word(value);
        if (word == NULL) {
            options_mistake(o, "%s %s: give true or false", from, value);
            return;
        }
        value = word;
    }
    if (*value == '\0' || !fits(o, id, from, value))
        return;
    if (strpbrk(value, "\r\n") != NULL || strlen(value) > 16384) {
        options_mistake(o,
                        "%s: the value has a line break, or more than 16384 "
                        "bytes: neither can be",
                        from);
        return;
    }
    if (o->text[id] != NULL) {
        options_mistake(o, "%s: already given by %s; give it once", from,
                        o->from[id]);
        return;
    }
    o->text[id] = copy(value);
    o->from[id] = copy(from);
}

void options_pair(options *o, int id, const char *name, const char *value) {
    o->pairs = realloc(o->pairs, (o->npairs + 1) * sizeof(*o->pairs));
    if (o->pairs == NULL)
        abort();
    o->pairs[o->npairs++] = (flag_pair){copy(name), copy(value), id};
}

void options_free(options *o) {
    for (int id = 0; id < NFLAGS; id++) {
        free(o->text[id]);
        free(o->from[id]);
    }
    for (size_t i = 0; i < o->npairs; i++) {
        free(o->pairs[i].name);
        free(o->pairs[i].value);
    }
    free(o->pairs);
    *o = (options){0};
}

/* ---- names ---- */

int flag_find(const char *name) {
    for (int id = 0; id < NFLAGS; id++)
        if (strcmp(name, flags[id].name) == 0 ||
            (flags[id].other != NULL && strcmp(name, flags[id].other) == 0))
            return id;
    return -1;
}

/* What older versions and neighbours have, and people try. */
static const char *const gone[][2] = {
    {"sslConfigFile", "give --sslCertChainFile and --sslKeyFile: PEM files"},
};

int flag_unknown(options *o, const char *place, const char *name) {
    const char *names[2 * NFLAGS];
    size_t n = 0;
    for (size_t i = 0; i < sizeof(gone) / sizeof(*gone); i++)
        if (strcmp(name, gone[i][0]) == 0) {
            options_mistake(o, "%s%s: there is no such flag: %s", place, name,
                            gone[i][1]);
            return -1;
        }
    for (int id = 0; id < NFLAGS; id++) {
        names[n++] = flags[id].name;
        if (flags[id].other != NULL)
            names[n++] = flags[id].other;
    }
    const char *nearest = config_nearest(name, names, n);
    if (nearest != NULL)
        options_mistake(o,
                        "%s%s: there is no such flag; the nearest is %s%s; "
                        "see --help",
                        place, name, place, nearest);
    else
        options_mistake(o, "%s%s: there is no such flag; see --help", place,
                        name);
    return -1;
}

/* Java's rule: '-' to '_', an '_' before every capital, upper case. */
void flag_variable(const char *name, char *into, size_t size) {
    size_t n = (size_t)snprintf(into, size, PREFIX);
    for (; *name != '\0' && n + 3 < size; name++) {
        if (isupper((unsigned char)*name))
            into[n++] = '_';
        into[n++] = *name == '-' ? '_' : (char)toupper((unsigned char)*name);
    }
    into[n] = '\0';
}

/* ---- durations ---- */

static bool add_part(const char **at, const char *units, const int64_t *factors,
                     int64_t *ms) {
    char *end;
    errno = 0;
    if (!isdigit((unsigned char)**at))
        return false;
    double n = strtod(*at, &end);
    const char *unit = *end != '\0' ? strchr(units, *end) : NULL;
    if (unit == NULL || errno != 0 || n > 1e9)
        return false;
    *ms += (int64_t)(n * (double)factors[unit - units]);
    *at = end + 1;
    return true;
}

bool parse_iso_duration(const char *text, int64_t *ms) {
    static const int64_t day[] = {86400000}, times[] = {3600000, 60000, 1000};
    const char *at = text + 1;
    *ms = 0;
    if (*text != 'P' || *at == '\0' || strpbrk(text, "eExX+") != NULL)
        return false;
    if (*at != 'T' && !add_part(&at, "D", day, ms))
        return false;
    if (*at == '\0')
        return true;
    if (*at++ != 'T' || *at == '\0')
        return false;
    while (*at != '\0')
        if (!add_part(&at, "HMS", times, ms))
            return false;
    return true;
}

bool parse_time(const char *text, int64_t *ms) {
    static const struct {
        const char *name;
        int64_t factor;
    } units[] = {{"ms", 1}, {"s", 1000}, {"m", 60000}, {"h", 3600000}};
    size_t n = strspn(text, "0123456789");
    if (n == 0 || n > 9)
        return false;
    for (size_t i = 0; i < sizeof(units) / sizeof(*units); i++)
        if (strcmp(text + n, units[i].name) == 0) {
            *ms = strtoll(text, NULL, 10) * units[i].factor;
            return true;
        }
    return false;
}

/* ---- command line ---- */

static int read_flag(options *o, int argc, char **argv, int i) {
    char from[NAME_SIZE + 2], name[NAME_SIZE];
    const char *arg = argv[i], *equals = strchr(arg, '=');
    size_t len = equals != NULL ? (size_t)(equals - arg) : strlen(arg);
    if (strncmp(arg, "--", 2) != 0 || len < 3 || len >= sizeof(name)) {
        options_mistake(o,
                        "%.100s: what is this? Flags begin with --; see "
                        "--help",
                        arg);
        return i + 1;
    }
    snprintf(name, sizeof(name), "%.*s", (int)len - 2, arg + 2);
    int id = flag_find(name);
    if (id == -1) {
        flag_unknown(o, "--", name);
        /* the value of a flag that is not known is no second mistake */
        while (++i < argc && strncmp(argv[i], "--", 2) != 0)
            ;
        return i;
    }
    snprintf(from, sizeof(from), "--%s", name);
    int wanted = flags[id].kind == FLAG_PAIRS    ? 2
                 : flags[id].kind == FLAG_SWITCH ? 0
                                                 : 1;
    if (equals != NULL && wanted != 1) {
        options_mistake(o,
                        "%s: write its arguments behind it, without =", from);
        return i + 1;
    }
    if (equals != NULL) {
        options_set(o, id, from, equals + 1);
        return i + 1;
    }
    bool missing = i + wanted >= argc;
    for (int j = i + 1; j <= i + wanted && !missing; j++)
        missing =
            strncmp(argv[j], "--", 2) == 0 && flag_find(argv[j] + 2) != -1;
    if (missing) {
        options_mistake(o, "%s: its argument is missing: %s", from,
                        flags[id].argument);
        while (++i < argc && strncmp(argv[i], "--", 2) != 0)
            ;
        return i;
    }
    if (wanted == 2)
        options_pair(o, id, argv[i + 1], argv[i + 2]);
    else
        options_set(o, id, from, wanted == 1 ? argv[i + 1] : "true");
    return i + 1 + wanted;
}

static bool is_json_form(const char *arg) {
    return strcmp(arg, "---INLINE-JSON") == 0 ||
           strcmp(arg, "---JSON-FILE") == 0;
}

static void read_command_line(options *o, int argc, char **argv) {
    for (int i = 1; i < argc; i++)
        if (is_json_form(argv[i]) && argc != 3) {
            options_mistake(o,
                            "%s: it wants exactly one argument, and no other "
                            "flag beside it",
                            argv[i]);
            return;
        }
    if (argc == 3 && strcmp(argv[1], "---INLINE-JSON") == 0)
        options_read_json(o, argv[2]);
    else if (argc == 3 && strcmp(argv[1], "---JSON-FILE") == 0)
        options_read_json_file(o, argv[2]);
    else
        for (int i = 1; i < argc;)
            i = read_flag(o, argc, argv, i);
}

/* ---- variables ---- */

static const char *variable(char **environment, const char *name) {
    size_t n = strlen(name);
    for (; *environment != NULL; environment++)
        if (strncmp(*environment, name, n) == 0 && (*environment)[n] == '=')
            return *environment + n + 1;
    return NULL;
}

static void read_variable(options *o, int id, const char *flag_name,
                          char **environment) {
    char name[NAME_SIZE];
    const char *value;
    if (flag_name == NULL)
        return;
    flag_variable(flag_name, name, sizeof(name));
    value = variable(environment, name);
    if (value == NULL)
        return;
    /* both names of a flag may make the same variable */
    if (o->from[id] != NULL && strcmp(o->from[id], name) == 0)
        return;
    if (flags[id].kind == FLAG_PAIRS)
        options_warn(o, "%s: a list has no variable; give --%s", name,
                     flag_name);
    else
        options_set(o, id, name, value);
}

/* The command line and JSON win, so they are read before this. */
static void read_variables(options *o, char **environment) {
    bool given[NFLAGS];
    const char *value;
    for (int id = 0; id < NFLAGS; id++)
        given[id] = o->text[id] != NULL;
    for (int id = 0; id < NFLAGS; id++) {
        if (given[id])
            continue;
        read_variable(o, id, flags[id].name, environment);
        read_variable(o, id, flags[id].other, environment);
    }
    value = variable(environment, "KAFKA_PASSWORD");
    if (value != NULL && o->text[FLAG_PASSWORD] == NULL)
        options_set(o, FLAG_PASSWORD, "KAFKA_PASSWORD", value);
}

int options_read(options *o, int argc, char **argv, char **environment,
                 FILE *err) {
    *o = (options){.err = err};
    read_command_line(o, argc, argv);
    read_variables(o, environment);
    return o->mistakes == 0 ? 0 : -1;
}
