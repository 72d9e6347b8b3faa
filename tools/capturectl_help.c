/* Help, man pages, the reference page and shell completion, of the tables. */

#include "tools/capturectl_options.h"

#include <ctype.h>
#include <stdio.h>
#include <string.h>

static const char about[] = "looks into captured HTTP traffic";

/* Calls fn for every option of the subcommand, in the table's order. */
#define EACH_OPTION(o, cmd)                                                    \
    for (const ctl_option *o = ctl_option_table;                               \
         o < ctl_option_table + ctl_option_count; o++)                         \
        if (o->bits & (cmd)->bit)

#define EACH_SUBCOMMAND(c)                                                     \
    for (const ctl_subcommand *c = ctl_subcommands;                            \
         c < ctl_subcommands + ctl_subcommands_count; c++)                     \
        if (!c->hidden)

/* "-b, --brokers LIST" */
static const char *option_text(const ctl_option *o, char *out, size_t size) {
    char letter[8] = "";

    if (o->code < CTL_LONG_ONLY) {
        snprintf(letter, sizeof(letter), "-%c, ", o->code);
    }

    snprintf(out, size, "%s--%s%s%s", letter, o->name, o->arg ? " " : "",
             o->arg ? o->arg : "");

    return out;
}

static int upper(const char *text) {
    return toupper((unsigned char)text[0]);
}

void ctl_print_overview(bool wrong) {
    FILE *to = wrong ? stderr : stdout;

    fputs("Usage: capturectl SUBCOMMAND [OPTION...] [ARGUMENT...]\n", to);
    fprintf(to, "%c%s.\n\n", upper(about), about + 1);

    EACH_SUBCOMMAND(c) {
        fprintf(to, "  %-10s %s\n", c->name, c->summary);
    }

    fputs("\ncapturectl SUBCOMMAND --help explains one.\n", to);
}

void ctl_print_help(const ctl_subcommand *cmd) {
    char text[80];

    ctl_print("Usage: capturectl %s %s\n%c%s.\n", cmd->name, cmd->usage,
              upper(cmd->summary), cmd->summary + 1);

    if (cmd->text) {
        ctl_print("\n%s\n", cmd->text);
    }

    ctl_print("\n");

    EACH_OPTION(o, cmd) {
        const char *indent = o->code < CTL_LONG_ONLY ? "" : "    ";

        ctl_print("  %s%-*s %s\n", indent, 28 - (int)strlen(indent),
                  option_text(o, text, sizeof(text)), o->help);
    }

    if (cmd->arguments == CTL_ARGS_INPUT) {
        ctl_print("\n%s", ctl_about_files);
    }

    ctl_print("\nExample:\n%s\n\nExit status: %s\n", cmd->example,
              ctl_about_status(cmd));
}

/* man */

/* roff takes a dot or quote at a line's start, and each backslash, for its own.
 */
static void put_roff(const char *text) {
    bool start = true;

    for (; *text; text++) {
        if (start && (*text == '.' || *text == '\'')) {
            ctl_print("\\&");
        }

        if (*text == '\\') {
            ctl_print("\\e");
        } else if (*text == '-') {
            ctl_print("\\-");
        } else {
            ctl_put(text, 1);
        }

        start = *text == '\n';
    }
}

static void roff_section(const char *title, const char *text, bool literal) {
    ctl_print(".SH %s\n%s", title, literal ? ".nf\n" : "");
    put_roff(text);
    ctl_print("\n%s", literal ? ".fi\n" : "");
}

static void roff_head(const char *name, const char *dash_name,
                      const char *summary) {
    ctl_print(".\\\" made from capturectl's tables\n"
              ".TH %s 1 \"\" \"capturectl\" \"Traffic Capture\"\n"
              ".SH NAME\n%s \\- %s\n",
              name, dash_name, summary);
}

static void man_of_all(void) {
    roff_head("CAPTURECTL", "capturectl", about);
    roff_section("SYNOPSIS", "capturectl SUBCOMMAND [OPTION...] [ARGUMENT...]",
                 true);
    ctl_print(".SH SUBCOMMANDS\n");

    EACH_SUBCOMMAND(c) {
        ctl_print(".TP\n.BR capturectl\\-%s (1)\n", c->name);
        put_roff(c->summary);
        ctl_print("\n");
    }
}

static void man_of(const ctl_subcommand *cmd) {
    char name[64], synopsis[256], text[80];

    snprintf(name, sizeof(name), "capturectl\\-%s", cmd->name);
    roff_head(name, name, cmd->summary);
    snprintf(synopsis, sizeof(synopsis), "capturectl %s %s", cmd->name,
             cmd->usage);
    roff_section("SYNOPSIS", synopsis, true);

    if (cmd->text) {
        roff_section("DESCRIPTION", cmd->text, true);
    }

    ctl_print(".SH OPTIONS\n");

    EACH_OPTION(o, cmd) {
        ctl_print(".TP\n.B ");
        put_roff(option_text(o, text, sizeof(text)));
        ctl_print("\n");
        put_roff(o->help);
        ctl_print("\n");
    }

    if (cmd->arguments == CTL_ARGS_INPUT) {
        roff_section("FILES", ctl_about_files, false);
    }

    roff_section("EXAMPLE", cmd->example, true);
    roff_section("EXIT STATUS", ctl_about_status(cmd), false);
    ctl_print(".SH SEE ALSO\n.BR capturectl (1)\n");
}

/* the reference page */

static void put_indented(const char *text) {
    while (*text) {
        size_t n = strcspn(text, "\n");

        if (n > 0) {
            ctl_print("    %.*s\n", (int)n, text);
        } else {
            ctl_print("\n");
        }

        text += n + (text[n] == '\n');
    }
}

static void markdown_of(const ctl_subcommand *cmd) {
    char text[80];

    ctl_print("\n## %s\n\n    capturectl %s %s\n\n%c%s.\n\n", cmd->name,
              cmd->name, cmd->usage, upper(cmd->summary), cmd->summary + 1);

    if (cmd->text) {
        put_indented(cmd->text);
        ctl_print("\n");
    }

    ctl_print("| option | |\n|---|---|\n");

    EACH_OPTION(o, cmd) {
        if (o->code != 'h') {
            ctl_print("| `%s` | %s |\n", option_text(o, text, sizeof(text)),
                      o->help);
        }
    }

    ctl_print("\n");
    put_indented(cmd->example);
    ctl_print("\nExit status: %s\n", ctl_about_status(cmd));
}

static void markdown(void) {
    ctl_print("# capturectl\n\n%c%s.\n\n", upper(about), about + 1);
    ctl_print("%s\nThe man pages and `capturectl SUBCOMMAND --help` say the "
              "same. For completion:\n`source <(capturectl completion "
              "bash)`, or zsh.\n",
              ctl_about_files);

    EACH_SUBCOMMAND(c) {
        markdown_of(c);
    }
}

void ctl_man(const ctl_options *opt) {
    const char *what = opt->files_count ? opt->files[0] : "capturectl";
    const ctl_subcommand *cmd = ctl_find_subcommand(what);

    if (strcmp(what, "capturectl") == 0) {
        man_of_all();
    } else if (strcmp(what, "markdown") == 0) {
        markdown();
    } else if (strcmp(what, "names") == 0) {
        EACH_SUBCOMMAND(c) {
            ctl_print("%s\n", c->name);
        }
    } else if (cmd != NULL && !cmd->hidden) {
        man_of(cmd);
    } else {
        ctl_die("%s: no such subcommand", what);
    }
}

/* completion */

static bool names_a_file(const ctl_option *o) {
    return o->arg != NULL && strcmp(o->arg, "FILE") == 0;
}

static void bash(void) {
    ctl_print("# bash completion of capturectl, made from its tables\n"
              "_capturectl() {\n"
              "    local cur=${COMP_WORDS[COMP_CWORD]} "
              "prev=${COMP_WORDS[COMP_CWORD-1]}\n"
              "    local sub=${COMP_WORDS[1]} words=''\n"
              "    COMPREPLY=()\n"
              "    if [ \"$COMP_CWORD\" -eq 1 ]; then\n"
              "        words='--help");

    EACH_SUBCOMMAND(c) {
        ctl_print(" %s", c->name);
    }

    ctl_print("'\n    else\n        case $prev in\n");

    for (size_t i = 0; i < ctl_option_count; i++) {
        const ctl_option *o = &ctl_option_table[i];

        if (o->arg == NULL) {
            continue;
        }

        ctl_print("            --%s", o->name);

        if (o->code < CTL_LONG_ONLY) {
            ctl_print("|-%c", o->code);
        }

        ctl_print(") %sreturn ;;\n",
                  names_a_file(o) ? "COMPREPLY=($(compgen -f -- \"$cur\")); "
                                  : "");
    }

    ctl_print("        esac\n        case $sub in\n");

    EACH_SUBCOMMAND(c) {
        ctl_print("            %s) words='", c->name);

        EACH_OPTION(o, c) {
            ctl_print("--%s ", o->name);
        }

        ctl_print("%s' ;;\n", c->arguments == CTL_ARGS_WORD ? "bash zsh" : "");
    }

    ctl_print(
        "        esac\n    fi\n"
        "    case $cur in\n"
        "        -*) COMPREPLY=($(compgen -W \"$words\" -- \"$cur\")) ;;\n"
        "        *) COMPREPLY=($(compgen -W \"$words\" -- \"$cur\" "
        "| grep -v ^-))\n"
        "           [ \"$COMP_CWORD\" -eq 1 ] || "
        "COMPREPLY+=($(compgen -f -- \"$cur\")) ;;\n"
        "    esac\n}\ncomplete -F _capturectl capturectl\n");
}

/* Within single quotes and brackets of a zsh specification. */
static void put_zsh(const char *text) {
    for (; *text; text++) {
        if (*text == '\'') {
            ctl_print("'\\''");
        } else {
            ctl_print(strchr("[]:\\", *text) ? "\\%c" : "%c", *text);
        }
    }
}

static void zsh_option(const ctl_option *o) {
    ctl_print(" \\\n                '--%s[", o->name);
    put_zsh(o->help);
    ctl_print("]");

    if (o->arg != NULL) {
        ctl_print(":%s:%s", o->arg, names_a_file(o) ? "_files" : "");
    }

    ctl_print("'");
}

static void zsh(void) {
    ctl_print("#compdef capturectl\n"
              "# zsh completion of capturectl, made from its tables\n"
              "_capturectl() {\n"
              "    local -a subcommands=(\n");

    EACH_SUBCOMMAND(c) {
        ctl_print("        '%s:", c->name);
        put_zsh(c->summary);
        ctl_print("'\n");
    }

    ctl_print("    )\n"
              "    if (( CURRENT == 2 )); then\n"
              "        _describe subcommand subcommands\n"
              "        return\n"
              "    fi\n"
              "    local sub=$words[2]\n"
              "    shift words; (( CURRENT-- ))\n"
              "    case $sub in\n");

    EACH_SUBCOMMAND(c) {
        ctl_print("        %s)\n            _arguments", c->name);

        EACH_OPTION(o, c) {
            zsh_option(o);
        }

        ctl_print(" \\\n                '*:%s'\n            ;;\n",
                  c->arguments == CTL_ARGS_WORD ? "shell:(bash zsh)"
                                                : "argument:_files");
    }

    /* sourced as well as found in fpath */
    ctl_print("    esac\n}\n"
              "if [ \"$funcstack[1]\" = _capturectl ]; then\n"
              "    _capturectl \"$@\"\n"
              "else\n"
              "    compdef _capturectl capturectl\n"
              "fi\n");
}

void ctl_completion(const ctl_options *opt) {
    const char *shell = opt->files_count ? opt->files[0] : "";

    if (strcmp(shell, "bash") == 0) {
        bash();
    } else if (strcmp(shell, "zsh") == 0) {
        zsh();
    } else {
        ctl_die("completion: which shell: bash or zsh?");
    }
}
