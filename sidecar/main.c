/*
 * capture-sidecar: takes the HTTP exchanges that NGINX workers capture and
 * hands them to Kafka.  Options, signals, and the order of starting and
 * stopping; the work is in the stages, in the order of the data:
 *
 *     link -> assemble -> ledger (encode) -> kafka, export
 */
#include <errno.h>
#include <getopt.h>
#include <inttypes.h>
#include <librdkafka/rdkafka.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/signalfd.h>
#include <unistd.h>

#include "sidecar/assemble.h"
#include "sidecar/config.h"
#include "sidecar/journal.h"
#include "sidecar/kafka.h"
#include "sidecar/ledger.h"
#include "sidecar/link.h"
#include "sidecar/log.h"
#include "sidecar/loop.h"
#include "sidecar/metrics.h"
#include "sidecar/orphan.h"
#include "sidecar/otlp.h"

#ifndef CAPTURE_VERSION
#define CAPTURE_VERSION "0.1.0"
#endif

#define EXIT_PENDING 3

/* What kafka_free may take when the drain has not used up its time. */
#define STOP_NS 1000000000ll

typedef struct {
    config config;
    loop *loop;
    ledger *ledger;
    spool *spool; /* or NULL */
    links *links;
    keeper *keeper;
    totals *totals;
    orphans *orphans;
    journal *journal; /* or NULL */
    loop_io signals;
    loop_timer drain;
    bool draining;
} sidecar;

static void usage(FILE *out) {
    fputs("usage: capture-sidecar -c FILE [--check]\n"
          "\n"
          "  -c, --config FILE  the configuration\n"
          "      --check        checks the configuration and exits\n"
          "      --help-config  prints every key that FILE may hold\n"
          "      --version      prints the versions\n"
          "      --help         prints this\n"
          "\n"
          "Signals: TERM and INT drain and exit (0: nothing is pending, 3: "
          "something is);\n"
          "HUP reads again what ${file:/path} refers to, keys and "
          "certificates.\n",
          out);
}

static void print_version(void) {
    printf("capture-sidecar %s (librdkafka %s)\n", CAPTURE_VERSION,
           rd_kafka_version_str());
}

/* ---- signals, drain ---- */

static void begin_drain(sidecar *s, const char *why) {
    if (s->draining) {
        return;
    }
    s->draining = true;
    log_info("%s: draining, for at most %" PRId64 " ms", why,
             s->config.drain_time / 1000000);
    keeper_say(s->keeper, "STOPPING=1");
    links_drain(s->links);
    loop_timer_set(s->loop, &s->drain, s->config.drain_time);
}

static void drain_over(loop_timer *timer) {
    sidecar *s = (sidecar *)(void *)((char *)timer - offsetof(sidecar, drain));

    log_warn("the drain's time is over");
    loop_stop(s->loop);
}

/* Secrets, keys and certificates anew; the rest of the configuration stays, and
   the log goes to standard error: there is no file to open again. */
static void reload(sidecar *s) {
    char *text = NULL;
    size_t len;
    FILE *err = open_memstream(&text, &len);

    if (err == NULL) {
        log_error("HUP: %s", strerror(errno));
        return;
    }
    int changed = config_resolve_again(&s->config, err);
    fclose(err);
    if (changed == -1) {
        log_error("HUP: the values stay as they were: %s", text);
    } else {
        log_info("HUP: %d values have changed", changed);
        config_hide_secrets(&s->config);
        ledger_reload(s->ledger);
        otlp_reload(&s->config);
    }
    free(text);
}

static void signal_ready(loop_io *io, uint32_t events) {
    sidecar *s = (sidecar *)(void *)((char *)io - offsetof(sidecar, signals));
    struct signalfd_siginfo info;

    (void)events;
    while (read(io->fd, &info, sizeof(info)) == sizeof(info)) {
        if (info.ssi_signo == SIGHUP) {
            reload(s);
        } else {
            begin_drain(s, info.ssi_signo == SIGINT ? "INT" : "TERM");
        }
    }
}

/* Before any thread is made, so that all of them inherit it. */
static int watch_signals(sidecar *s) {
    sigset_t set;

    signal(SIGPIPE, SIG_IGN);
    sigemptyset(&set);
    sigaddset(&set, SIGTERM);
    sigaddset(&set, SIGINT);
    sigaddset(&set, SIGHUP);
    sigprocmask(SIG_BLOCK, &set, NULL);
    s->signals.fd = signalfd(-1, &set, SFD_NONBLOCK | SFD_CLOEXEC);
    s->signals.ready = signal_ready;
    if (s->signals.fd == -1) {
        return -1;
    }
    return loop_add(s->loop, &s->signals, EPOLLIN);
}

static int64_t before_sleep(void *owner) {
    sidecar *s = owner;
    int64_t sleep_ns = links_turn(s->links);

    ledger_pump(s->ledger);
    links_retire(s->links);
    if (s->journal != NULL) {
        journal_turn(s->journal);
    }
    if (s->draining && ledger_idle(s->ledger) && links_settled(s->links)) {
        loop_stop(s->loop);
    }
    return sleep_ns;
}

/* ---- start and stop ---- */

static void committed(void *owner) {
    ledger_ungate(((sidecar *)owner)->ledger);
}

static int recovered(void *owner, int fd, const char **why) {
    return links_adopt_recovered(((sidecar *)owner)->links, fd, why);
}

/* Only where there is a directory for it. */
static int start_journal(sidecar *s) {
    static const journal_events events = {committed, recovered};

    if (s->config.spool_path == NULL) {
        return 0;
    }
    if (journal_open(&s->journal, &s->config, s->loop, &events, s) != 0) {
        return -1;
    }
    ledger_use_journal(s->ledger, s->journal);
    links_use_journal(s->links, s->journal);
    return 0;
}

static bool is_ready(void *owner, const char **why) {
    return ledger_ready(((sidecar *)owner)->ledger, why);
}

static void log_start(const config *c) {
    log_info("capture-sidecar %s, librdkafka %s", CAPTURE_VERSION,
             rd_kafka_version_str());
    log_info("topic %s, records to %" PRIu64 " bytes, in flight to %" PRIu64
             " MiB, pools to %" PRIu64 " MiB",
             c->topic, c->record_size, c->inflight_size >> 20,
             c->pools_size >> 20);
    if (!ledger_has_kafka(c)) {
        log_warn("no broker is configured: what is written to %s is all",
                 c->export_path);
    }
}

static int start(sidecar *s) {
    const config *c = &s->config;

    log_start(c);
    otlp_init(c);
    s->drain.due = drain_over;
    s->loop = loop_new();
    if (s->loop == NULL || watch_signals(s) != 0) {
        log_error("the event loop cannot start: %s", strerror(errno));
        return -1;
    }
    keeper_use_loop(s->keeper, s->loop);
    s->ledger = ledger_new(c, s->loop, &assemble_events);
    if (s->ledger == NULL) {
        return -1;
    }
    if (c->spool_path != NULL) {
        s->spool = spool_open(c);
        if (s->spool == NULL) {
            return -1;
        }
    }
    s->links = links_open_kept(c, s->loop, s->ledger, s->spool, s->keeper);
    if (s->links == NULL || start_journal(s) != 0) {
        return -1;
    }
    s->totals = totals_open(s->spool, s->keeper);
    if (s->totals == NULL) {
        log_error("out of memory");
        return -1;
    }
    links_use_totals(s->links, s->totals);
    s->orphans =
        orphans_open(s->loop, s->links, s->spool, s->keeper, s->totals);
    if (s->orphans == NULL) {
        return -1;
    }
    metrics_register(links_sum, s->links);
    if (c->metrics_listen != NULL &&
        metrics_listen(s->loop, c->metrics_listen, is_ready, s) != 0) {
        return -1;
    }
    if (otlp_start(c, s->loop) != 0) {
        return -1;
    }
    log_info("capture-sidecar ready: listening on unix:%s", c->listen);
    keeper_say(s->keeper, "READY=1");
    return 0;
}

/* The last line: what became of every exchange.  Returns the exit status. */
static int log_totals(sidecar *s) {
    metrics_exchanges t;
    uint64_t filtered = 0, lost = 0;

    links_sum(s->links, &t);
    for (unsigned i = 0; i < CAP_REASON_CELLS; i++) {
        if (cap_reason_class(i) == CAP_CLASS_FILTERED) {
            filtered += t.reason[i];
        } else if (cap_reason_class(i) == CAP_CLASS_LOST) {
            lost += t.reason[i];
        }
    }
    log_info("seen %" PRIu64 " captured %" PRIu64 " filtered %" PRIu64
             " lost %" PRIu64 " pending %" PRIu64,
             t.seen, t.captured, filtered, lost, t.pending);
    if (t.pending == 0) {
        return EXIT_SUCCESS;
    }
    log_warn("%" PRIu64 " exchanges are pending: they were not acknowledged, "
             "or not finished, when the drain ended",
             t.pending);
    return EXIT_PENDING;
}

static void stop(sidecar *s) {
    metrics_close();
    otlp_stop();
    if (s->ledger != NULL) {
        ledger_stop(s->ledger, STOP_NS);
    }
    orphans_close(s->orphans);
    if (s->links != NULL) {
        links_close(s->links);
    }
    journal_close(s->journal);
    totals_close(s->totals);
    keeper_close(s->keeper);
    if (s->ledger != NULL) {
        ledger_free(s->ledger);
    }
    spool_close(s->spool);
    loop_free(s->loop);
}

static int run(sidecar *s) {
    int status = EXIT_FAILURE;

    s->keeper = keeper_open();
    if (s->keeper != NULL && start(s) == 0) {
        loop_run(s->loop, before_sleep, s);
        ledger_stop(s->ledger, STOP_NS); /* the last reports count, too */
        status = log_totals(s);
    }
    stop(s);
    if (kafka_hangs() || !kafka_readers_wait(0)) {
        fflush(NULL);
        _exit(status); /* a name server that hangs, say, holds them up */
    }
    config_free(&s->config);
    return status;
}

/* 0, or -1 after lines on standard error. */
static int read_config(config *c, const char *file) {
    if (config_read(c, file, stderr) != 0) {
        return -1;
    }
    return kafka_check(c, stderr);
}

/* Neither a core file nor another process of this user shall hold what is in
   our memory. */
static void protect_memory(const config *c) {
#ifndef __SANITIZE_ADDRESS__ /* its search for leaks traces us */
    const struct rlimit none = {0, 0};

    if (c->core_dumps) {
        return;
    }
    if (setrlimit(RLIMIT_CORE, &none) != 0 ||
        prctl(PR_SET_DUMPABLE, 0, 0, 0, 0) != 0) {
        log_warn("core dumps cannot be turned off: %s", strerror(errno));
    }
#else
    (void)c;
#endif
}

int main(int argc, char **argv) {
    static const struct option options[] = {
        {"config", required_argument, NULL, 'c'},
        {"check", no_argument, NULL, 'k'},
        {"help", no_argument, NULL, 'h'},
        {"help-config", no_argument, NULL, 'H'},
        {"version", no_argument, NULL, 'v'},
        {0}};
    static sidecar s;
    const char *file = NULL;
    bool check = false;
    int option;

    while ((option = getopt_long(argc, argv, "c:hv", options, NULL)) != -1) {
        switch (option) {
        case 'c':
            file = optarg;
            break;
        case 'k':
            check = true;
            break;
        case 'h':
            usage(stdout);
            return EXIT_SUCCESS;
        case 'H':
            config_help(stdout, false);
            return EXIT_SUCCESS;
        case 'v':
            print_version();
            return EXIT_SUCCESS;
        default:
            usage(stderr);
            return 2;
        }
    }
    if (file == NULL || optind != argc) {
        usage(stderr);
        return 2;
    }
    if (read_config(&s.config, file) != 0) {
        config_free(&s.config);
        return EXIT_FAILURE;
    }
    if (check) {
        printf("%s: the configuration is valid\n", file);
        config_free(&s.config);
        return EXIT_SUCCESS;
    }
    protect_memory(&s.config);
    log_set_level((enum log_level)s.config.log_level);
    log_set_format((enum log_format)s.config.log_format);
    config_hide_secrets(&s.config);
    return run(&s);
}
