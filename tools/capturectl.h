/*
 * What the parts of capturectl share: the options, a record on its way from its
 * source to a subcommand, and the way out to the terminal.
 *
 *     capturectl.c            subcommands and options, each in one table
 *     capturectl_source.c     records out of files and standard input
 *     capturectl_kafka.c      records and end offsets out of a topic
 *     capturectl_decode.c     capturectl decode
 *     capturectl_accumulate.c exchanges out of records, as the Replayer does it
 *     capturectl_http.c       capturectl http
 *     capturectl_topic.c      capturectl topic
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

enum { CTL_OK = 0, CTL_ERROR = 1, CTL_USAGE = 2 };

typedef struct {
    char *name;
    char *value;
} ctl_property;

typedef struct {
    const char *brokers; /* NULL: read files */
    const char *topic;
    ctl_property *properties; /* for librdkafka, in the order given */
    size_t properties_count;
    char **files;
    int files_count;
    int32_t partition; /* -1: all */
    bool has_offset;
    int64_t offset;     /* below 0: that many before each partition's end */
    int timeout;        /* seconds without an answer from Kafka */
    int packet_timeout; /* seconds of stream time: capturectl_accumulate.h */
    int preview;        /* bytes shown of a read or write */
    bool readable;
    bool json;
    bool full;
    bool quiet;
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

/* Standard error: a remark, and one that makes the exit status CTL_ERROR. */
void ctl_remark(const char *fmt, ...) __attribute__((format(printf, 1, 2)));
void ctl_error(const char *fmt, ...) __attribute__((format(printf, 1, 2)));

/* Standard output. After a failure nothing is written any more. */
void ctl_print(const char *fmt, ...) __attribute__((format(printf, 1, 2)));
void ctl_put(const void *data, size_t len);
bool ctl_output_lost(void);

/* Flushes; returns the exit status. A reader that went away is no error. */
int ctl_finish(void);

/* Memory that is there, or the end of the program. */
void *ctl_alloc(size_t size);
void *ctl_realloc(void *p, size_t size);
char *ctl_strdup(const char *s);

/* All values of the files (or "-"), or of the topic; errors are reported. */
void ctl_read_files(const ctl_options *opt, ctl_value_fn fn, void *ctx);
void ctl_read_topic(const ctl_options *opt, ctl_value_fn fn, void *ctx);

/* All records of what the options name; what is none is reported. */
void ctl_read_records(const ctl_options *opt, ctl_record_fn fn, void *ctx);

/* The end offset of each partition, in the order of their numbers. */
typedef void (*ctl_end_fn)(void *ctx, int32_t partition, int64_t end);
void ctl_end_offsets(const ctl_options *opt, ctl_end_fn fn, void *ctx);

/* The subcommands. */
void ctl_decode(const ctl_options *opt);
void ctl_http(const ctl_options *opt);
void ctl_topic(const ctl_options *opt);

#endif
