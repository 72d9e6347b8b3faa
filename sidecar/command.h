/*
 * A program of the operator's that prints a secret.  It blocks: never on the
 * loop's thread.
 */
#ifndef SIDECAR_COMMAND_H
#define SIDECAR_COMMAND_H

#include <stddef.h>
#include <stdint.h>

#define COMMAND_WORDS 64

/* Splits `line` in place, at white space.  Its words (no more than
   COMMAND_WORDS), with NULL behind them. */
void command_split(char *line, char *argv[COMMAND_WORDS + 1]);

/* The same, where quotes hold a word together, as a shell has it: '...' as it
   is, "..." and outside of quotes with \\ before what is meant literally.
   -1: a quote has no end, or there are too many words. */
int command_split_quoted(char *line, char *argv[COMMAND_WORDS + 1]);

/*
 * Runs it without a shell.  What it printed, which is the caller's
 * (command_free), if it ended with status 0.  Else NULL, and why, which begins
 * with `name` and has the first line of its standard error, but nothing of its
 * output.  What has not ended after timeout_ms is killed, with its children.
 */
char *command_run(const char *name, char **argv, int64_t timeout_ms, char *why,
                  size_t size);

/* Leaves nothing behind where the output was. */
void command_free(char *output);

#endif
