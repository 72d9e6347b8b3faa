/*
 * What the parts of capturectl share: the options, a record on its way from its
 * source to a subcommand, and the way out to the terminal.
 *
 *     capturectl.c            the command line
 *     capturectl_options.c    subcommands and options, each in one table
 *     capturectl_help.c       help, man pages, completion: out of those tables
 *     capturectl_source.c     records out of files and standard input
 *     capturectl_kafka.c      a client of Kafka; what a topic has
 *     capturectl_consume.c    records out of a topic
 *     capturectl_topic.c      capturectl topic
 *     capturectl_decode.c     capturectl decode
 *     capturectl_accumulate.c exchanges out of records, as the Replayer does it
 *     capturectl_exchange.c   what an exchange's bytes say: method, status, ...
 *     capturectl_filter.c     which exchanges are wanted
 *     capturectl_http.c       capturectl http
 *     capturectl_framing.c    whether an HTTP message is whole
 *     capturectl_closed.c     connections that have ended, in little memory
 *     capturectl_gaps.c       capturectl gaps
 *     capturectl_stats.c      capturectl stats
 *     capturectl_tally.c      counts and histograms in bounded memory
 *     capturectl_export.c     capturectl export
 *     capturectl_import.c     capturectl import
 *     capturectl_fetch.c      documents over HTTP
 *     capturectl_status.c     capturectl status
 *     capturectl_check.c      capturectl check
 *     capturectl_text.c       bytes and times as text and JSON
 *     capturectl_report.c     standard output and standard error
 *
 * Data goes to standard output; everything else to standard error, where a line
 * begins with '%'. What is broken is reported with its place, and work goes on.
 */

#ifndef TOOLS_CAPTURECTL_H
#define TOOLS_CAPTURECTL_H

#include "proto/decode.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* gaps and check say 1 for what they have found, and 2 for errors. */
enum { CTL_OK = 0, CTL_ERROR = 1, CTL_FOUND = 1, CTL_USAGE = 2 };

typedef struct {
    char *name;
    char *value;
} ctl_property;

typedef struct {
    const char *brokers; /* NULL: read files */
    const char *topic;
    ctl_property *properties; /* for librdkafka, in the order given */
    size_t properties_count;
    char **files; /* or addresses, or a subcommand's name */
    int files_count;
    int64_t partition; /* -1: all */
    bool has_offset;
    int64_t offset;  /* below 0: that many before each partition's end */
    int64_t timeout; /* seconds without an answer */
    int64_t
        packet_timeout; /* seconds of stream time: capturectl_accumulate.h */
    int64_t preview;    /* bytes shown of a read or write */
    bool readable;
    bool json;
    bool full;
    bool quiet;
    bool follow;

    const char *sort; /* "completion" or "time" */
    const char *methods, *path, *statuses, *body;
    const char *since, *until;

    const char *ignore; /* kinds of gaps */
    int64_t remember;   /* closed connections */

    bool plan;
    int64_t top;
    int64_t days;

    bool watch;
    int64_t interval; /* seconds */
    int64_t wait;     /* seconds */
    bool no_canary;
    const char *canary_path;
    const char *through; /* NGINX addresses, or NULL: the status addresses */

    const char *to; /* a file to write */
    bool append;
} ctl_options;

/* A value as it came from its source; valid during the callback only. */
typedef struct {
    const char *place; /* for messages: "FILE:LINE", "TOPIC [3] at offset 17" */
    const void *value;
    size_t value_len;
    const char *key; /* NULL if there is none */
    size_t key_len;
    int32_t partition; /* -1 unless from Kafka */
    int64_t offset;
    bool cut; /* earlier records of its partition are not read */
} ctl_value;

/* Takes one value; returns false to end the reading. */
typedef bool (*ctl_value_fn)(void *ctx, const ctl_value *v);

/* A value that is a record; valid during the callback only. */
typedef struct {
    const ctl_value *from;
    record_info info;
    record_reader reader;
} ctl_record;

typedef void (*ctl_record_fn)(void *ctx, ctl_record *r);

#define CTL_FAULT_SIZE 128

/* Opens a value as a record; false with `why` filled in if it is none. */
bool ctl_open_record(const ctl_value *v, ctl_record *r,
                     char why[CTL_FAULT_SIZE]);

/* Standard error: a remark, and one that makes the exit status CTL_ERROR. */
void ctl_remark(const char *fmt, ...) __attribute__((format(printf, 1, 2)));
void ctl_error(const char *fmt, ...) __attribute__((format(printf, 1, 2)));

/* Standard output. After a failure nothing is written any more. */
void ctl_print(const char *fmt, ...) __attribute__((format(printf, 1, 2)));
void ctl_put(const void *data, size_t len);
bool ctl_output_lost(void);
bool ctl_had_errors(void);

void ctl_flush(void);

/* What is printed between the two becomes a text, for the caller to free. */
void ctl_capture_begin(void);
char *ctl_capture_end(size_t *len);

/* From here on errors end with status 2, since 1 says that something is found.
 */
void ctl_give_verdict(void);
void ctl_found(void);

/* Flushes; returns the exit status. A reader that went away is no error. */
int ctl_finish(void);

/* Reports, and ends the program as an error. */
_Noreturn void ctl_die(const char *fmt, ...)
    __attribute__((format(printf, 1, 2)));

/*
 * Progress on standard error, if that is a terminal: what has been done, of a
 * total that is 0 if unknown.
 */
void ctl_progress(uint64_t done, uint64_t total, const char *unit);

/* The same in words, for what waits. */
void ctl_progress_line(const char *fmt, ...)
    __attribute__((format(printf, 1, 2)));

void ctl_progress_off(bool off);

/* INT and TERM end the reading and no longer the program. */
void ctl_catch_signals(void);
bool ctl_interrupted(void);

/* Memory that is there, or the end of the program. */
void *ctl_alloc(size_t size);
void *ctl_realloc(void *p, size_t size);
char *ctl_strdup(const char *s);

/* Nanoseconds since 1970, of now. */
int64_t ctl_now_ns(void);

/* All values of the files (or "-"), or of the topic; errors are reported. */
void ctl_read_files(const ctl_options *opt, ctl_value_fn fn, void *ctx);
void ctl_read_topic(const ctl_options *opt, ctl_value_fn fn, void *ctx);
void ctl_read_values(const ctl_options *opt, ctl_value_fn fn, void *ctx);

/* All records of what the options name; what is none is reported. */
void ctl_read_records(const ctl_options *opt, ctl_record_fn fn, void *ctx);

/* The end offset of each partition, in the order of their numbers. */
typedef void (*ctl_end_fn)(void *ctx, int32_t partition, int64_t end);
void ctl_end_offsets(const ctl_options *opt, ctl_end_fn fn, void *ctx);

/* The subcommands. */
void ctl_decode(const ctl_options *opt);
void ctl_http(const ctl_options *opt);
void ctl_topic(const ctl_options *opt);
void ctl_gaps(const ctl_options *opt);
void ctl_stats(const ctl_options *opt);
void ctl_status(const ctl_options *opt);
void ctl_check(const ctl_options *opt);
void ctl_export(const ctl_options *opt);
void ctl_import(const ctl_options *opt);
void ctl_completion(const ctl_options *opt);
void ctl_man(const ctl_options *opt);

#endif
