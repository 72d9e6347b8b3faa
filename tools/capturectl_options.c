/* The tables of capturectl's command line. */

#include "tools/capturectl_options.h"

#include <limits.h>
#include <stddef.h>
#include <string.h>

enum {
    DECODE = 1,
    HTTP = 2,
    TOPIC = 4,
    GAPS = 8,
    STATS = 16,
    STATUS = 32,
    CHECK = 64,
    EXPORT = 128,
    IMPORT = 256,
    COMPLETION = 512,
    MAN = 1024,

    READERS = DECODE | HTTP | GAPS | STATS,
    EXCHANGES = HTTP | STATS,
    KAFKA = READERS | TOPIC | CHECK | EXPORT | IMPORT,
    NETWORK = KAFKA | STATUS,
    ALL = 2048 - 1
};

#define INPUT_USAGE "[OPTION...] FILE... | -b BROKERS -t TOPIC"

const ctl_subcommand ctl_subcommands[] = {
    {"decode", DECODE, CTL_ARGS_INPUT, INPUT_USAGE,
     "prints every record as a line of JSON, or readable", NULL,
     "# what is in a topic, a line a record\n"
     "capturectl decode --readable -b localhost:9092 -t logging-traffic-topic",
     ctl_decode, false, false},
    {"http", HTTP, CTL_ARGS_INPUT, INPUT_USAGE,
     "prints HTTP exchanges, put together as the Traffic Replayer would",
     "An exchange is printed when it is complete: at its connection's next "
     "request or end.\n"
     "A filter that is given several times, or has several values, takes any "
     "of them; of\n"
     "several filters all must agree.",
     "# writes to one index that failed in the last hour\n"
     "capturectl http -b localhost:9092 -t logging-traffic-topic \\\n"
     "    --method PUT,POST --path '/orders/*' --status 4xx,5xx --since -1h\n"
     "# what comes from now on\n"
     "capturectl http -f -o -0 -b localhost:9092 -t logging-traffic-topic",
     ctl_http, false, false},
    {"gaps", GAPS, CTL_ARGS_INPUT, INPUT_USAGE,
     "reports what is missing, doubled, unfinished or in doubt",
     "A line for each finding:\n"
     "\n"
     "  hole         records of a connection are missing\n"
     "  headless     its first records are missing\n"
     "  late         a record comes after a later one of its connection\n"
     "  duplicate    a record is there twice, the same bytes\n"
     "  conflict     a record is there twice, with other bytes\n"
     "  after_close  a record of a connection that has been closed\n"
     "  moved        a connection goes on in another partition\n"
     "  unreadable   it is no record\n"
     "  abandoned    the connection was given up: connectionException\n"
     "  silent       no close, and nothing more for --packet-timeout\n"
     "  unfinished   no close until the end of what was read\n"
     "  truncated    the response is not whole\n"
     "  doubt        a request without its end, which the Replayer does not\n"
     "               send, or one without a response: nothing in the topic\n"
     "               says whether the source has executed it\n"
     "\n"
     "While capture runs, open connections are unfinished: --ignore "
     "unfinished. What a\n"
     "client or a source cuts is truncated and abandoned; nothing is lost by "
     "that.",
     "# is anything missing that was captured?\n"
     "capturectl gaps -b localhost:9092 -t logging-traffic-topic \\\n"
     "    --ignore unfinished,truncated,abandoned && echo complete",
     ctl_gaps, true, false},
    {"stats", STATS, CTL_ARGS_INPUT, INPUT_USAGE,
     "counts exchanges: rates, sizes, methods, paths, latencies",
     "Memory is bounded: paths are counted in a table of fixed size, and a "
     "count may be\n"
     "too high by at most the number behind it.",
     "# what the topic will need\n"
     "capturectl stats --plan --days 7 -b localhost:9092 -t "
     "logging-traffic-topic",
     ctl_stats, false, false},
    {"topic", TOPIC, CTL_ARGS_TOPIC, "[OPTION...] -b BROKERS -t TOPIC",
     "prints the end offset of each partition, as the migration console does",
     NULL, "capturectl topic -b localhost:9092 -t logging-traffic-topic",
     ctl_topic, false, false},
    {"status", STATUS, CTL_ARGS_ADDRESSES, "[OPTION...] ADDRESS...",
     "shows what NGINX and the sidecar count, as a table",
     "An ADDRESS is a URL or HOST:PORT, of a capture_status location or of "
     "the sidecar's\n"
     "metrics.listen. Without a path /capture_status is asked for, then "
     "/metrics.",
     "capturectl status --watch 10.0.0.1:8080 10.0.0.2:8080 10.0.0.1:9145",
     ctl_status, false, false},
    {"check", CHECK, CTL_ARGS_ADDRESSES,
     "[OPTION...] ADDRESS... [-b BROKERS -t TOPIC]",
     "says whether a snapshot may be taken now",
     "Takes the capture_status address of every NGINX node, as URL or "
     "HOST:PORT, and fails\n"
     "unless every worker of every node captures and is linked to its "
     "sidecar, no worker of\n"
     "an older configuration holds a request that is not captured, and no "
     "request that\n"
     "changes anything is on its way uncaptured. Then a canary, GET / with "
     "the header\n"
     "X-Capture-Canary, goes through each node; it changes nothing when it is "
     "replayed. It\n"
     "is read back from the topic; where the topic must not be read, its end "
     "offsets are\n"
     "compared; without -b the nodes' own counts are.",
     "capturectl check 10.0.0.1:8080 10.0.0.2:8080 \\\n"
     "    -b localhost:9092 -t logging-traffic-topic --wait 600",
     ctl_check, true, false},
    {"export", EXPORT, CTL_ARGS_TOPIC,
     "[OPTION...] -b BROKERS -t TOPIC --to FILE",
     "writes a topic's records to a file that the migration console reads",
     "A line for each record: its key, |, its value in base64. A FILE that "
     "ends in .gz is\n"
     "compressed; - is standard output.",
     "capturectl export -b localhost:9092 -t logging-traffic-topic \\\n"
     "    --to traffic.proto.gz",
     ctl_export, false, false},
    {"import", IMPORT, CTL_ARGS_BOTH, "[OPTION...] FILE -b BROKERS -t TOPIC",
     "writes the records of an exported file to a topic",
     "The whole file is checked before the first record is sent; standard "
     "input (-) line by\n"
     "line. A record goes to the partition of its key, as the Java producer "
     "chooses it.",
     "capturectl import traffic.proto.gz -b localhost:9092 -t replay-again",
     ctl_import, false, false},
    {"completion", COMPLETION, CTL_ARGS_WORD, "bash | zsh",
     "prints a script that completes capturectl's command line", NULL,
     "source <(capturectl completion bash)", ctl_completion, false, false},
    {"man", MAN, CTL_ARGS_WORD, "[SUBCOMMAND | markdown]",
     "prints the man page of a subcommand, or the reference page", NULL,
     "capturectl man http | man -l -", ctl_man, false, true},
};

const size_t ctl_subcommands_count =
    sizeof(ctl_subcommands) / sizeof(ctl_subcommands[0]);

/* Long options without a letter; only those that the parser knows matter. */
enum {
    ANY_CODE = CTL_LONG_ONLY,
    READABLE,
    PREVIEW,
    JSON,
    FULL,
    PACKET_TIMEOUT,
    SORT,
    METHOD,
    PATH,
    WANTED_STATUS,
    BODY,
    SINCE,
    UNTIL,
    IGNORE,
    REMEMBER,
    PLAN,
    TOP,
    DAYS,
    WATCH,
    INTERVAL,
    WAIT,
    CANARY_PATH,
    NO_CANARY,
    THROUGH,
    TO,
    APPEND
};

#define FIELD(name) offsetof(ctl_options, name)

/* clang-format off */
const ctl_option ctl_option_table[] = {
    {'b', "brokers", "LIST", KAFKA, CTL_TEXT, FIELD(brokers), 0, 0,
     "Kafka: HOST:PORT, more after commas"},
    {'t', "topic", "TOPIC", KAFKA, CTL_TEXT, FIELD(topic), 0, 0, "its topic"},
    {'F', "properties", "FILE", KAFKA, CTL_OTHER, 0, 0, 0,
     "librdkafka properties, a NAME=VALUE a line; the place for passwords"},
    {'X', "property", "NAME=VALUE", KAFKA, CTL_OTHER, 0, 0, 0,
     "a librdkafka property; no passwords here"},
    {'p', "partition", "N", READERS | TOPIC | EXPORT, CTL_NUMBER,
     FIELD(partition), 0, INT32_MAX, "this partition only"},
    {'o', "offset", "N", READERS | EXPORT, CTL_OTHER, 0, 0, 0,
     "begin at this offset; -N: so many before the end, -0: at it (default: all)"},
    {'m', "timeout", "SECONDS", NETWORK, CTL_NUMBER, FIELD(timeout), 1, 86400,
     "how long to wait for an answer (10)"},
    {'f', "follow", NULL, READERS, CTL_FLAG, FIELD(follow), 0, 0,
     "go on with what comes to the topic, until INT or TERM"},
    {READABLE, "readable", NULL, DECODE, CTL_FLAG, FIELD(readable), 0, 0,
     "a line for people instead of JSON"},
    {PREVIEW, "preview", "N", DECODE, CTL_NUMBER, FIELD(preview), 0, INT_MAX,
     "with --readable, show so many bytes of data (24)"},
    {JSON, "json", NULL, ALL & ~(COMPLETION | MAN), CTL_FLAG, FIELD(json), 0, 0,
     "JSON, an object a line"},
    {FULL, "full", NULL, HTTP, CTL_FLAG, FIELD(full), 0, 0,
     "heads and bodies as well, as they were captured"},
    {METHOD, "method", "LIST", EXCHANGES, CTL_TEXT, FIELD(methods), 0, 0,
     "only these methods: GET,HEAD"},
    {PATH, "path", "PATTERN", EXCHANGES, CTL_TEXT, FIELD(path), 0, 0,
     "only URIs like this: a glob for the path, or ~REGEX for all of the URI"},
    {WANTED_STATUS, "status", "LIST", EXCHANGES, CTL_TEXT, FIELD(statuses), 0, 0,
     "only these: 200,404,5xx,none"},
    {SINCE, "since", "TIME", EXCHANGES, CTL_TEXT, FIELD(since), 0, 0,
     "only requests from then on: 2026-01-31T12:00:00Z, seconds since 1970, or -15m"},
    {UNTIL, "until", "TIME", EXCHANGES, CTL_TEXT, FIELD(until), 0, 0,
     "only requests before that"},
    {BODY, "body", "REGEX", EXCHANGES, CTL_TEXT, FIELD(body), 0, 0,
     "only where the request's or the response's body matches"},
    {SORT, "sort", "ORDER", HTTP, CTL_TEXT, FIELD(sort), 0, 0,
     "completion (the default), or time: of the request, which holds all in memory"},
    {PACKET_TIMEOUT, "packet-timeout", "SECONDS", HTTP | STATS | GAPS, CTL_NUMBER,
     FIELD(packet_timeout), 1, INT_MAX,
     "when a silent connection expires, as the Replayer's option (360)"},
    {IGNORE, "ignore", "KINDS", GAPS, CTL_TEXT, FIELD(ignore), 0, 0,
     "kinds that are not reported, with commas"},
    {REMEMBER, "remember", "N", GAPS, CTL_NUMBER, FIELD(remember), 1, 1 << 26,
     "closed connections to remember, at 48 bytes each (1000000)"},
    {TOP, "top", "N", STATS, CTL_NUMBER, FIELD(top), 0, 10000,
     "how many paths (20)"},
    {PLAN, "plan", NULL, STATS, CTL_FLAG, FIELD(plan), 0, 0,
     "what a topic needs for this: bytes a day, retention, partitions"},
    {DAYS, "days", "N", STATS, CTL_NUMBER, FIELD(days), 1, 3650,
     "with --plan, days to keep (7)"},
    {WATCH, "watch", NULL, STATUS, CTL_FLAG, FIELD(watch), 0, 0,
     "again and again, until INT or TERM"},
    {INTERVAL, "interval", "SECONDS", STATUS, CTL_NUMBER, FIELD(interval), 1,
     86400, "with --watch, time between two looks (2)"},
    {WAIT, "wait", "SECONDS", CHECK, CTL_NUMBER, FIELD(wait), 0, 86400,
     "try for so long (0)"},
    {THROUGH, "through", "LIST", CHECK, CTL_TEXT, FIELD(through), 0, 0,
     "where canaries go, an address a node, with commas (the ADDRESSes)"},
    {CANARY_PATH, "canary-path", "PATH", CHECK, CTL_TEXT, FIELD(canary_path), 0,
     0, "what the canary asks for (/)"},
    {NO_CANARY, "no-canary", NULL, CHECK, CTL_FLAG, FIELD(no_canary), 0, 0,
     "send none"},
    {TO, "to", "FILE", EXPORT, CTL_TEXT, FIELD(to), 0, 0,
     "where to; a file that exists is not replaced"},
    {APPEND, "append", NULL, IMPORT, CTL_FLAG, FIELD(append), 0, 0,
     "also to a topic that holds records"},
    {'q', "quiet", NULL, HTTP | STATS | GAPS | EXPORT | IMPORT, CTL_FLAG,
     FIELD(quiet), 0, 0, "no summary and no progress on standard error"},
    {'h', "help", NULL, ALL, CTL_OTHER, 0, 0, 0, "print this"},
};
/* clang-format on */

const size_t ctl_option_count =
    sizeof(ctl_option_table) / sizeof(ctl_option_table[0]);

const char ctl_about_files[] =
    "A FILE holds lines of base64, each with KEY| before it or not, or is one "
    "raw record\n"
    "(.protocap); it may be compressed with gzip; - is standard input.\n";

const char *ctl_about_status(const ctl_subcommand *cmd) {
    return cmd->verdict
               ? "0: nothing found, safe; 1: something was found, not safe; 2: "
                 "an error, and no verdict."
               : "0; 1 after any error or broken record; 2 for a wrong command "
                 "line.";
}

const ctl_subcommand *ctl_find_subcommand(const char *name) {
    for (size_t i = 0; i < ctl_subcommands_count; i++) {
        if (strcmp(ctl_subcommands[i].name, name) == 0) {
            return &ctl_subcommands[i];
        }
    }

    return NULL;
}
