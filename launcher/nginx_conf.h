/*
 * nginx.conf and the sidecar's configuration, for these settings.
 */
#ifndef LAUNCHER_NGINX_CONF_H
#define LAUNCHER_NGINX_CONF_H

#include <stdbool.h>
#include <stdio.h>

#include "launcher/settings.h"

typedef struct {
    const char *run;  /* the run directory */
    bool print;       /* to be read: no secrets, the source by its name */
    const char *user; /* of the workers, or NULL: the launcher's own */
    const char *group;
    bool ipv6; /* listen on IPv6 too */
    /* for `nginx -t`, which listens for a moment: not where a client, or a
       readiness probe, could take that for the proxy */
    bool check;
    long connections; /* worker_connections */
} conf_options;

/* The whole of it.  Unless it is printed, the upstream is a file of its own,
   `source.conf` in the run directory, which follows the source's addresses. */
void nginx_conf_write(const settings *s, const conf_options *c, FILE *out);

/* The upstream; `addresses` separated by blanks, "" while there are none,
   NULL: the name itself. */
void nginx_conf_upstream(const settings *s, const char *addresses, FILE *out);

/* The sidecar's; not for TO_NOWHERE. */
void sidecar_conf_write(const settings *s, const conf_options *c, FILE *out);

#endif
