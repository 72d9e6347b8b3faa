/*
 * capture-proxy: takes the Java Traffic Capture Proxy's command line, and runs
 * NGINX and capture-sidecar in its place.
 *
 *     flags (flags.c, json.c) -> settings (settings.c, properties.c)
 *         -> configurations (nginx_conf.c, sidecar_conf.c) -> unit (unit.c)
 */
#define _GNU_SOURCE 1

#include <errno.h>
#include <grp.h>
#include <pwd.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

#include "launcher/flags.h"
#include "launcher/nginx_conf.h"
#include "launcher/rundir.h"
#include "launcher/settings.h"
#include "launcher/unit.h"

#ifndef CAPTURE_VERSION
#define CAPTURE_VERSION "0.1.0"
#endif

#define CONNECTIONS 16384

extern char **environ;

/* ---- surroundings ---- */

/* Each request takes two descriptors of a worker. */
static long raise_descriptors(void) {
    struct rlimit limit;
    if (getrlimit(RLIMIT_NOFILE, &limit) == -1)
        return 512;
    if (limit.rlim_max > 2 * CONNECTIONS)
        limit.rlim_cur = 2 * CONNECTIONS;
    else
        limit.rlim_cur = limit.rlim_max;
    setrlimit(RLIMIT_NOFILE, &limit);
    return limit.rlim_cur < 2 * CONNECTIONS ? (long)limit.rlim_cur / 2
                                            : CONNECTIONS;
}

static bool has_ipv6(void) {
    int fd = socket(AF_INET6, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd == -1)
        return false;
    close(fd);
    return access("/proc/net/if_inet6", R_OK) == 0;
}

/* Root's NGINX gives its workers away to another user. */
static void workers_user(conf_options *c) {
    static const char *const names[] = {"nginx", "www-data", "nobody"};
    if (geteuid() != 0)
        return;
    for (size_t i = 0; i < sizeof(names) / sizeof(*names); i++) {
        const struct passwd *user = getpwnam(names[i]);
        const struct group *group =
            user != NULL ? getgrgid(user->pw_gid) : NULL;
        if (group == NULL)
            continue;
        c->user = names[i];
        c->group = strdup(group->gr_name);
        return;
    }
    c->user = c->group = "root";
}

/* Secrets are in the sidecar's configuration now, and no child's business. */
static void forget_secrets(void) {
    unsetenv("CAPTURE_PROXY_KAFKA_PASSWORD");
    unsetenv("KAFKA_PASSWORD");
}

/* ---- configurations ---- */

static int print(const settings *s) {
    conf_options c = {.run = "/run/capture-proxy",
                      .print = true,
                      .ipv6 = has_ipv6(),
                      .connections = CONNECTIONS};
    puts("# ---- nginx.conf ----");
    nginx_conf_write(s, &c, stdout);
    if (s->output != TO_NOWHERE) {
        puts("\n# ---- sidecar.conf: capture-sidecar -c FILE ----");
        sidecar_conf_write(s, &c, stdout);
    }
    return fflush(stdout) == 0 ? UNIT_OK : UNIT_FAILED;
}

typedef void (*writer)(const settings *s, const conf_options *c, FILE *out);

static int put_written(const settings *s, const conf_options *c,
                       const rundir *d, const char *name, writer write) {
    char *text = NULL;
    size_t len;
    FILE *out = open_memstream(&text, &len);
    if (out == NULL)
        return -1;
    write(s, c, out);
    fclose(out);
    int rc = rundir_put(d, name, text, len);
    free(text);
    return rc;
}

static int put_text(const rundir *d, const char *name, const char *text) {
    return text == NULL ? 0 : rundir_put(d, name, text, strlen(text));
}

static void no_source_yet(const settings *s, const conf_options *c, FILE *out) {
    (void)c;
    nginx_conf_upstream(s, "", out);
}

static int put_all(const settings *s, const conf_options *c, const rundir *d) {
    conf_options check = *c;
    check.check = true;
    if (put_written(s, c, d, "nginx.conf", nginx_conf_write) == -1 ||
        put_written(s, &check, d, "check.conf", nginx_conf_write) == -1 ||
        put_written(s, c, d, "source.conf", no_source_yet) == -1 ||
        put_text(d, "clients.pem", s->trust_pem) == -1 ||
        put_text(d, "kafka-ca.pem", s->ca_pem) == -1 ||
        put_text(d, "kafka-cert.pem", s->cert_pem) == -1 ||
        put_text(d, "kafka-key.pem", s->key_pem) == -1)
        return -1;
    return s->output == TO_NOWHERE
               ? 0
               : put_written(s, c, d, "sidecar.conf", sidecar_conf_write);
}

/* What both say about it goes to standard error, as it is. */
static int check_all(const settings *s, const rundir *d) {
    char conf[128], sidecar_conf[128];
    snprintf(conf, sizeof(conf), "%s/check.conf", d->path);
    snprintf(sidecar_conf, sizeof(sidecar_conf), "%s/sidecar.conf", d->path);
    char *nginx[] = {s->nginx, "-t", "-q", "-p",     (char *)(uintptr_t)d->path,
                     "-c",     conf, "-e", "stderr", NULL};
    char *sidecar[] = {s->sidecar, "--check", "-c", sidecar_conf, NULL};
    if (s->output != TO_NOWHERE && unit_check(sidecar) != 0) {
        fputs("capture-proxy: the sidecar refuses its configuration, for what "
              "it says above\n",
              stderr);
        return -1;
    }
    if (unit_check(nginx) != 0) {
        fputs("capture-proxy: NGINX refuses its configuration, for what it "
              "says above\n",
              stderr);
        return -1;
    }
    return 0;
}

static int run(const settings *s) {
    conf_options c = {.ipv6 = has_ipv6(), .connections = raise_descriptors()};
    rundir d = {0};
    int status = UNIT_FAILED;

    unit_block_signals();
    forget_secrets();
    workers_user(&c);
    if (rundir_make(&d, s->run_directory, c.user != NULL, stderr) == -1)
        return UNIT_FAILED;
    c.run = d.path;
    if (put_all(s, &c, &d) == -1)
        fprintf(stderr, "capture-proxy: %s: %s\n", d.path, strerror(errno));
    else if (check_all(s, &d) == 0)
        status = unit_run(s, &d);
    rundir_remove(&d);
    return status;
}

/* ---- */

static bool is_only(int argc, char **argv, const char *name) {
    for (int i = 1; i < argc; i++)
        if (strcmp(argv[i], name) == 0)
            return true;
    return false;
}

int main(int argc, char **argv) {
    options o;
    settings s = {0};
    int status = UNIT_USAGE;

    if (is_only(argc, argv, "--help")) {
        flags_help(stdout);
        return UNIT_OK;
    }
    if (is_only(argc, argv, "--help-docs")) {
        flags_docs(stdout);
        return UNIT_OK;
    }
    if (is_only(argc, argv, "--version")) {
        puts("capture-proxy " CAPTURE_VERSION);
        return UNIT_OK;
    }
    bool read = options_read(&o, argc, argv, environ, stderr) == 0;
    bool only_print = options_on(&o, FLAG_PRINT_CONFIG);
    /* the settings' mistakes as well, so that one start shows all */
    bool made = settings_make(&s, &o, only_print) == 0;
    if (read && made)
        status = only_print ? print(&s) : run(&s);
    settings_free(&s);
    options_free(&o);
    return status;
}
