#define _GNU_SOURCE 1

#include "launcher/unit.h"

#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/signalfd.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "launcher/child.h"
#include "launcher/keeper.h"
#include "launcher/pump.h"
#include "launcher/resolve.h"
#include "launcher/watch.h"
#include "sidecar/log.h"
#include "sidecar/loop.h"

#define MS 1000000ll
#define LOOK_MS 1000       /* between two looks at the certificates */
#define START_MS 20        /* between two looks while starting */
#define FIRST_NAME_MS 2000 /* for the source's name to be resolved at first */
#define SOCKET_MS 10000    /* for the sidecar to listen */
#define RESTART_MS 1000    /* before the sidecar is started again, at first */
#define RESTART_MAX_MS 30000
#define STEADY_MS 60000 /* a sidecar that ran so long starts at once again */
#define KILL_MS 1000    /* from NGINX's TERM to its KILL */
#define FLUSH_MS 1000   /* for the last log lines */

enum phase { STARTING, RUNNING, ENDING_NGINX, ENDING_SIDECAR };

typedef struct {
    const settings *s;
    const rundir *dir;
    loop *loop;
    loop_io signals;
    loop_timer start, look, deadline, restart;
    enum phase phase;
    int status;

    child nginx, sidecar, test; /* test: `nginx -t` before a reload */
    char conf[128], check_conf[128], sidecar_conf[128], socket[128];
    int64_t began, sidecar_began, end; /* loop_now_ns's clock */
    int64_t restart_ms;
    bool resolved, reload_again;
    char reason[256];         /* why NGINX is reloaded */
    watch watch, kafka_watch; /* NGINX's files, the sidecar's */
    resolve *resolve;         /* kept, so that it is not lost */
    keeper *keeper;
} unit;

#define FROM(field, at) ((unit *)(void *)((char *)(at)-offsetof(unit, field)))

/* ---- starting ---- */

static void end_unit(unit *u, int status);

static void start_sidecar(unit *u) {
    char *argv[] = {u->s->sidecar, "-c", u->sidecar_conf, NULL};
    u->sidecar_began = loop_now_ns(u->loop);
    if (child_start_with(&u->sidecar, argv, keeper_gift(u->keeper)) == -1)
        log_error("capture-proxy: %s: %s", u->s->sidecar, strerror(errno));
}

static void start_nginx(unit *u) {
    char *argv[] = {u->s->nginx, "-p",    (char *)(uintptr_t)u->dir->path,
                    "-c",        u->conf, "-e",
                    "stderr",    NULL};
    u->phase = RUNNING;
    if (child_start(&u->nginx, argv, false) == -1) {
        log_error("capture-proxy: %s: %s", u->s->nginx, strerror(errno));
        end_unit(u, UNIT_FAILED);
        return;
    }
    log_info("capture-proxy: started: clients on port %d%s, source %s://%s:%d",
             u->s->listen_port, u->s->cert != NULL ? " (TLS)" : "",
             u->s->tls_source ? "https" : "http", u->s->host, u->s->port);
    loop_timer_set(u->loop, &u->look, LOOK_MS * MS);
}

static bool sidecar_listens(const unit *u) {
    return u->s->output == TO_NOWHERE || access(u->socket, F_OK) == 0;
}

/* NGINX waits a little for the sidecar, so that the first request is captured,
   and for the source's name. */
static void start_due(loop_timer *timer) {
    unit *u = FROM(start, timer);
    int64_t ms = (loop_now_ns(u->loop) - u->began) / MS;
    if (u->phase != STARTING)
        return;
    if ((sidecar_listens(u) || u->sidecar.pid == 0 || ms > SOCKET_MS) &&
        (u->resolved || ms > FIRST_NAME_MS))
        start_nginx(u);
    else
        loop_timer_set(u->loop, &u->start, START_MS * MS);
}

static void restart_due(loop_timer *timer) {
    unit *u = FROM(restart, timer);
    if (u->phase == STARTING || u->phase == RUNNING)
        start_sidecar(u);
}

/* ---- reloading ---- */

static void reload(unit *u, const char *reason) {
    char *argv[] = {u->s->nginx,
                    "-t",
                    "-q",
                    "-p",
                    (char *)(uintptr_t)u->dir->path,
                    "-c",
                    u->check_conf,
                    "-e",
                    "stderr",
                    NULL};
    if (u->phase != RUNNING)
        return;
    snprintf(u->reason, sizeof(u->reason), "%s", reason);
    if (u->test.pid > 0) {
        u->reload_again = true;
        return;
    }
    if (child_start(&u->test, argv, false) == -1)
        log_error("capture-proxy: NGINX is not reloaded: %s", strerror(errno));
}

static void tested(unit *u, int status) {
    if (u->reload_again) {
        u->reload_again = false;
        reload(u, u->reason);
    } else if (u->phase == RUNNING && status == 0) {
        log_info("capture-proxy: %s: NGINX is reloaded", u->reason);
        child_signal(&u->nginx, SIGHUP);
    } else if (u->phase == RUNNING) {
        log_error("capture-proxy: %s, but NGINX refuses it (see above) and "
                  "goes on with what it has",
                  u->reason);
    }
}

static void look_due(loop_timer *timer) {
    unit *u = FROM(look, timer);
    if (u->phase != RUNNING)
        return;
    if (watch_look(&u->watch))
        reload(u, "certificate files have changed");
    if (watch_look(&u->kafka_watch)) {
        log_info("capture-proxy: Kafka's certificate files have changed: the "
                 "sidecar gets HUP");
        child_signal(&u->sidecar, SIGHUP);
    }
    loop_timer_set(u->loop, &u->look, LOOK_MS * MS);
}

static int put_source(const settings *s, const rundir *d,
                      const char *addresses) {
    char *text = NULL;
    size_t len;
    FILE *out = open_memstream(&text, &len);
    if (out == NULL)
        return -1;
    nginx_conf_upstream(s, addresses, out);
    fclose(out);
    int rc = rundir_put(d, "source.conf", text, len);
    free(text);
    return rc;
}

static void addresses_changed(void *owner, const char *addresses) {
    unit *u = owner;
    char reason[256];
    u->resolved = true;
    if (put_source(u->s, u->dir, addresses) == -1) {
        log_error("capture-proxy: %s/source.conf: %s", u->dir->path,
                  strerror(errno));
        return;
    }
    if (*addresses == '\0')
        return;
    snprintf(reason, sizeof(reason), "the source %.100s is at %.120s",
             u->s->host, addresses);
    reload(u, reason);
}

/* ---- ending ---- */

static void end_sidecar(unit *u) {
    u->phase = ENDING_SIDECAR;
    loop_timer_cancel(u->loop, &u->deadline);
    if (u->sidecar.pid == 0) {
        loop_stop(u->loop);
        return;
    }
    child_signal(&u->sidecar, SIGTERM);
    int64_t left = u->end - loop_now_ns(u->loop);
    loop_timer_set(u->loop, &u->deadline, left > MS ? left : MS);
}

/* Also when NGINX has died, or never lived. */
static void end_unit(unit *u, int status) {
    if (u->phase == ENDING_NGINX || u->phase == ENDING_SIDECAR)
        return;
    int64_t time = u->s->shutdown_ms * MS;
    u->status = status;
    u->end = loop_now_ns(u->loop) + time;
    u->phase = ENDING_NGINX;
    if (u->nginx.pid == 0) {
        end_sidecar(u);
        return;
    }
    child_signal(&u->nginx, SIGQUIT);
    loop_timer_set(u->loop, &u->deadline, time * 3 / 5);
}

static void deadline_due(loop_timer *timer) {
    unit *u = FROM(deadline, timer);
    static bool asked;
    if (u->phase == ENDING_SIDECAR) {
        log_error("capture-proxy: the sidecar has not ended in time: killed");
        u->status = UNIT_PENDING;
        child_signal_all(&u->sidecar, SIGKILL);
    } else if (!asked) {
        asked = true;
        log_warn("capture-proxy: requests are not finished in time: NGINX "
                 "ends without them");
        child_signal(&u->nginx, SIGTERM);
        loop_timer_set(u->loop, &u->deadline, KILL_MS * MS);
    } else {
        child_signal_all(&u->nginx, SIGKILL);
    }
}

/* ---- signals ---- */

static void nginx_ended(unit *u, int status) {
    char how[128];
    pid_t group = u->nginx.pid;
    u->nginx.pid = 0;
    if (u->phase == ENDING_NGINX) {
        end_sidecar(u);
        return;
    }
    log_error("capture-proxy: NGINX has ended with %s: so does the proxy",
              child_end(status, how, sizeof(how)));
    kill(-group, SIGTERM); /* workers whose master was killed */
    end_unit(u, UNIT_FAILED);
}

static void sidecar_ended(unit *u, int status) {
    char how[128];
    int64_t ran = (loop_now_ns(u->loop) - u->sidecar_began) / MS;
    u->sidecar.pid = 0;
    if (u->phase == ENDING_SIDECAR) {
        if (u->status == UNIT_OK && status != 0)
            u->status = WIFEXITED(status) && WEXITSTATUS(status) == UNIT_PENDING
                            ? UNIT_PENDING
                            : UNIT_FAILED;
        loop_stop(u->loop);
        return;
    }
    if (u->phase == ENDING_NGINX) {
        log_error("capture-proxy: the sidecar has ended with %s before NGINX",
                  child_end(status, how, sizeof(how)));
        u->status = u->status == UNIT_OK ? UNIT_FAILED : u->status;
        return;
    }
    u->restart_ms =
        ran > STEADY_MS || u->restart_ms == 0 ? RESTART_MS : u->restart_ms * 2;
    if (u->restart_ms > RESTART_MAX_MS)
        u->restart_ms = RESTART_MAX_MS;
    log_error("capture-proxy: the sidecar has ended with %s: clients are "
              "served, their exchanges wait in the workers' memory; it is "
              "started again in %lld ms",
              child_end(status, how, sizeof(how)), (long long)u->restart_ms);
    loop_timer_set(u->loop, &u->restart, u->restart_ms * MS);
}

/* All that have ended: as PID 1 also those that nobody else waits for. */
static void reap(unit *u) {
    int status;
    pid_t pid;
    while ((pid = waitpid(-1, &status, WNOHANG)) > 0) {
        if (pid == u->nginx.pid)
            nginx_ended(u, status);
        else if (pid == u->sidecar.pid)
            sidecar_ended(u, status);
        else if (pid == u->test.pid) {
            u->test.pid = 0;
            tested(u, status);
        }
    }
}

static void terminate(unit *u, const char *signal_name) {
    if (u->phase == ENDING_NGINX) {
        log_info("capture-proxy: %s again: NGINX ends at once", signal_name);
        child_signal(&u->nginx, SIGTERM);
        return;
    }
    if (u->phase != ENDING_SIDECAR)
        log_info("capture-proxy: %s: NGINX finishes its requests, then the "
                 "sidecar hands over what it has, in %lld ms at most",
                 signal_name, (long long)u->s->shutdown_ms);
    end_unit(u, UNIT_OK);
}

static void signalled(loop_io *io, uint32_t events) {
    unit *u = FROM(signals, io);
    struct signalfd_siginfo info;
    (void)events;
    while (read(io->fd, &info, sizeof(info)) == sizeof(info)) {
        switch (info.ssi_signo) {
        case SIGTERM:
            terminate(u, "TERM");
            break;
        case SIGINT:
            terminate(u, "INT");
            break;
        case SIGHUP:
            child_signal(&u->sidecar, SIGHUP);
            reload(u, "HUP");
            break;
        default:
            reap(u);
        }
    }
}

static void unit_signals(sigset_t *set) {
    static const int numbers[] = {SIGTERM, SIGINT, SIGHUP, SIGCHLD};
    sigemptyset(set);
    for (size_t i = 0; i < sizeof(numbers) / sizeof(*numbers); i++)
        sigaddset(set, numbers[i]);
}

void unit_block_signals(void) {
    sigset_t set;
    unit_signals(&set);
    signal(SIGPIPE, SIG_IGN);
    sigprocmask(SIG_BLOCK, &set, NULL);
}

int unit_check(char *const argv[]) {
    child c = {.name = argv[0]};
    int status;
    if (child_start(&c, argv, true) == -1)
        return -1;
    while (waitpid(c.pid, &status, 0) == -1)
        if (errno != EINTR)
            return -1;
    return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

/* ---- the unit ---- */

static int64_t before_sleep(void *owner) {
    (void)owner;
    return -1;
}

static void watch_files(unit *u) {
    static const char *const kafka[] = {
        "ssl.ca.location", "ssl.certificate.location", "ssl.key.location",
        "ssl.keystore.location"};
    watch_file(&u->watch, u->s->cert);
    watch_file(&u->watch, u->s->key);
    watch_file(&u->watch, u->s->trust);
    if (u->s->output == TO_KAFKA)
        for (size_t i = 0; i < sizeof(kafka) / sizeof(*kafka); i++)
            watch_file(&u->kafka_watch, settings_kafka_get(u->s, kafka[i]));
}

static int prepare(unit *u) {
    sigset_t set;
    snprintf(u->conf, sizeof(u->conf), "%s/nginx.conf", u->dir->path);
    snprintf(u->check_conf, sizeof(u->check_conf), "%s/check.conf",
             u->dir->path);
    snprintf(u->sidecar_conf, sizeof(u->sidecar_conf), "%s/sidecar.conf",
             u->dir->path);
    snprintf(u->socket, sizeof(u->socket), "%s/sidecar.sock", u->dir->path);
    u->nginx.name = "nginx";
    u->sidecar.name = "capture-sidecar";
    u->start.due = start_due;
    u->look.due = look_due;
    u->deadline.due = deadline_due;
    u->restart.due = restart_due;
    watch_files(u);
    unit_signals(&set);
    u->signals = (loop_io){.fd = signalfd(-1, &set, SFD_NONBLOCK | SFD_CLOEXEC),
                           .ready = signalled};
    return u->signals.fd == -1 ? -1 : loop_add(u->loop, &u->signals, EPOLLIN);
}

int unit_run(const settings *s, const rundir *d) {
    static unit u; /* the resolver's thread may look at its parts to the end */
    u = (unit){.s = s, .dir = d, .loop = loop_new()};
    pump *p = u.loop != NULL ? pump_open(u.loop) : NULL;
    if (p != NULL)
        u.keeper = keeper_open(u.loop, d);
    if (p == NULL || u.keeper == NULL || prepare(&u) == -1) {
        fprintf(stderr, "capture-proxy: it cannot start: %s\n",
                strerror(errno));
        return UNIT_FAILED;
    }
    u.began = loop_now_ns(u.loop);
    u.resolve =
        resolve_start(u.loop, s->host, s->resolve_ms, addresses_changed, &u);
    if (u.resolve == NULL)
        log_error("capture-proxy: no thread to resolve names: %s",
                  strerror(errno));
    if (s->output != TO_NOWHERE)
        start_sidecar(&u);
    loop_timer_set(u.loop, &u.start, 0);
    loop_run(u.loop, before_sleep, &u);
    keeper_close(u.keeper);
    log_info("capture-proxy: ended with %d", u.status);
    pump_close(p, FLUSH_MS);
    return u.status;
}
