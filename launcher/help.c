/* --help and docs/launcher.md, out of the table of flags. */
#include <string.h>

#include "launcher/flags.h"
#include "launcher/settings.h"

static const char *const sections[] = {
    [SECTION_SOURCE] = "The source",
    [SECTION_LISTEN] = "Clients",
    [SECTION_KAFKA] = "Kafka",
    [SECTION_CAPTURE] = "What is captured",
    [SECTION_TELEMETRY] = "Being watched",
    [SECTION_OWN] = "Its own; the Java proxy has none of these",
};

#define NSECTIONS (sizeof(sections) / sizeof(*sections))

static const char *without_env(const flag *f) {
    return f->kind == FLAG_PAIRS ? "none" : NULL;
}

/* ---- --help ---- */

static void wrapped(FILE *out, const char *text, int indent, int width) {
    int column = indent;
    fprintf(out, "%*s", indent, "");
    while (*text != '\0') {
        size_t n = strcspn(text, " ");
        if (column > indent && column + 1 + (int)n > width) {
            fprintf(out, "\n%*s", indent, "");
            column = indent;
        }
        if (column > indent) {
            fputc(' ', out);
            column++;
        }
        fprintf(out, "%.*s", (int)n, text);
        column += (int)n;
        text += n;
        text += strspn(text, " ");
    }
    fputc('\n', out);
}

static void help_flag(FILE *out, const flag *f) {
    fprintf(out, "  --%s", f->name);
    if (f->other != NULL)
        fprintf(out, ", --%s", f->other);
    if (*f->argument != '\0')
        fprintf(out, " %s", f->argument);
    if (f->initial != NULL)
        fprintf(out, "  (default %s)", f->initial);
    fputc('\n', out);
    wrapped(out, f->help, 8, 78);
}

void flags_help(FILE *out) {
    fputs(
        "usage: capture-proxy --destinationUri URI --listenPort PORT\n"
        "           (--kafkaConnection HOST:PORT,... | --traceDirectory DIR |\n"
        "            --noCapture)\n"
        "           [FLAG...]\n"
        "       capture-proxy ---INLINE-JSON TEXT | ---JSON-FILE PATH\n"
        "       capture-proxy --help | --version\n",
        out);
    for (size_t i = 0; i < NSECTIONS; i++) {
        fprintf(out, "\n%s\n\n", sections[i]);
        for (int id = 0; id < NFLAGS; id++)
            if (flags[id].section == i)
                help_flag(out, &flags[id]);
    }
    fputs("\nEach flag but those with two arguments is also a variable: "
          "CAPTURE_PROXY_ and\nits name, with _ before every capital, in upper "
          "case. The command line wins.\n"
          "Exit status: 0 an orderly end, 1 it did not start or NGINX has "
          "died, 2 the flags\nare wrong, 3 not all that was captured could be "
          "handed over.\n",
          out);
}

/* ---- docs/launcher.md ---- */

static void docs_flag(FILE *out, const flag *f) {
    char variable[128];
    fprintf(out, "| `--%s", f->name);
    if (*f->argument != '\0')
        fprintf(out, " %s", f->argument);
    fputc('`', out);
    if (f->other != NULL)
        fprintf(out, " or `--%s`", f->other);
    fprintf(out, " | %s%s%s | %s |", f->initial != NULL ? "`" : "",
            f->initial != NULL ? f->initial : "", f->initial != NULL ? "`" : "",
            f->help);
    flag_variable(f->name, variable, sizeof(variable));
    if (without_env(f) != NULL)
        fprintf(out, " %s |\n", without_env(f));
    else
        fprintf(out, " `%s` |\n", variable);
}

void flags_docs(FILE *out) {
    fputs("## Flags\n", out);
    for (size_t i = 0; i < NSECTIONS; i++) {
        fprintf(out,
                "\n### %s\n\n| flag | default | | variable |\n"
                "| --- | --- | --- | --- |\n",
                sections[i]);
        for (int id = 0; id < NFLAGS; id++)
            if (flags[id].section == i)
                docs_flag(out, &flags[id]);
    }
    fputs("\n## Kafka properties\n\n"
          "What becomes of the lines of `--kafkaPropertyFile`. The flags win "
          "over them.\n\n",
          out);
    properties_docs(out);
}
