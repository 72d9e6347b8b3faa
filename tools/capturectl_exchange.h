/* What an exchange's bytes say, as far as they were kept. */

#ifndef TOOLS_CAPTURECTL_EXCHANGE_H
#define TOOLS_CAPTURECTL_EXCHANGE_H

#include "tools/capturectl_accumulate.h"

/* Of a message to keep where its body does not matter: every head. */
#define EXCHANGE_HEAD_KEPT 65536

/* In the message's memory. */
typedef struct {
    const char *data;
    size_t len;
} span;

/* The first line, without its end; a request may have empty lines before it. */
span exchange_first_line(const http_message *m);

/* The next word of a line, which is taken from it. */
span exchange_word(span *line);

/* A URI without its query. */
span exchange_path(span uri);

/* The length of the head with its empty line; all of it if that never comes. */
size_t exchange_head_len(const http_message *m);

/* Of a response; 0 if it does not begin with a status line. */
int exchange_status(const http_message *m);

/* From the request's last packet to the response's last, as in the tuples. */
double exchange_latency_ms(const http_exchange *x);

/* "complete", "expired", "open" */
const char *exchange_state_name(exchange_state state);

#endif
