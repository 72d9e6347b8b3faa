/*
 * The source's addresses: getaddrinfo again and again, in a thread of its own,
 * since it may take as long as it likes.
 *
 * Not NGINX's resolver: that knows no search domains and no /etc/hosts, and
 * follows a name inside an upstream block from NGINX 1.27.3 on only.
 */
#ifndef LAUNCHER_RESOLVE_H
#define LAUNCHER_RESOLVE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "sidecar/loop.h"

#define RESOLVE_MAX 64 /* addresses of a name that are used */

typedef struct resolve resolve;

/* `changed` is called in the loop, with the addresses by blanks, sorted; ""
   while there are none.  An address that is an address comes once, at once.
   NULL with errno. */
resolve *resolve_start(loop *l, const char *host, int64_t interval_ms,
                       void (*changed)(void *owner, const char *addresses),
                       void *owner);

/*
 * What to use, from what is in use and what a name has just said.
 *
 * Nothing that is in use is there any more: all the new ones, at once.
 * Else the ones in use stay as long as they were said within `keep` looks, and
 * new ones are added, since a balancer may say some of its addresses at a time.
 */
typedef struct {
    char text[RESOLVE_MAX][46];
    int unseen[RESOLVE_MAX]; /* looks since it was said */
    int n;
} addresses;

/* Takes an answer over; true when the set has changed. */
bool addresses_take(addresses *in_use, const addresses *answer, int keep);

#endif
