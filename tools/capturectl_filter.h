/* Which exchanges are wanted: --method, --path, --status, --since, ... */

#ifndef TOOLS_CAPTURECTL_FILTER_H
#define TOOLS_CAPTURECTL_FILTER_H

#include "tools/capturectl.h"
#include "tools/capturectl_accumulate.h"

typedef struct exchange_filter exchange_filter;

/* Ends the program for a pattern that makes no sense. */
exchange_filter *filter_new(const ctl_options *opt);
void filter_free(exchange_filter *f);

bool filter_wants(const exchange_filter *f, const http_exchange *x);

/* Whether there is any condition at all. */
bool filter_is_set(const exchange_filter *f);

#endif
