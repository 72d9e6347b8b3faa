/*
 * The command line as tables: subcommands and options. Parsing, help, man
 * pages, the reference page and shell completion all come out of them.
 */

#ifndef TOOLS_CAPTURECTL_OPTIONS_H
#define TOOLS_CAPTURECTL_OPTIONS_H

#include "tools/capturectl.h"

/* What a subcommand takes beside its options. */
typedef enum {
    CTL_ARGS_INPUT,     /* files, or a topic */
    CTL_ARGS_TOPIC,     /* a topic */
    CTL_ARGS_BOTH,      /* a file, and a topic */
    CTL_ARGS_ADDRESSES, /* one or more; a topic too where it knows -b */
    CTL_ARGS_WORD,      /* one word, or none */
} ctl_arguments;

typedef struct {
    const char *name;
    unsigned bit;
    ctl_arguments arguments;
    const char *usage;
    const char *summary;
    const char *text;    /* paragraphs in lines, or NULL */
    const char *example; /* lines: a command, or "# " and what it does */
    void (*run)(const ctl_options *opt);
    bool verdict; /* exit status 1 is an answer, 2 an error */
    bool hidden;  /* serves the build */
} ctl_subcommand;

typedef enum {
    CTL_FLAG,
    CTL_TEXT,
    CTL_NUMBER,
    CTL_OTHER, /* the parser knows it by its code */
} ctl_option_type;

typedef struct {
    int code; /* the letter, where there is one */
    const char *name;
    const char *arg; /* NULL: takes none */
    unsigned bits;   /* of the subcommands that know it */
    ctl_option_type type;
    size_t field; /* in ctl_options */
    int64_t min, max;
    const char *help;
} ctl_option;

extern const ctl_subcommand ctl_subcommands[];
extern const size_t ctl_subcommands_count;
extern const ctl_option ctl_option_table[];
extern const size_t ctl_option_count;

/* Codes of options without a letter begin here. */
#define CTL_LONG_ONLY 256

/* NULL: there is none of that name. */
const ctl_subcommand *ctl_find_subcommand(const char *name);

/* Where a FILE is an argument: what that may be. */
extern const char ctl_about_files[];

/* The meaning of the exit status, in one line. */
const char *ctl_about_status(const ctl_subcommand *cmd);

void ctl_print_overview(bool wrong);
void ctl_print_help(const ctl_subcommand *cmd);

#endif
