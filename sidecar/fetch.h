/*
 * One HTTP exchange with an endpoint that gives out credentials.  It blocks:
 * never on the loop's thread.
 */
#ifndef SIDECAR_FETCH_H
#define SIDECAR_FETCH_H

#include <stdbool.h>
#include <stddef.h>

#define FETCH_HEADERS 4

typedef struct {
    const char *method; /* GET, PUT, POST */
    const char *url;
    const char
        *headers[FETCH_HEADERS]; /* "Name: value", up to the first NULL */
    const char *body;            /* of POST, a form; or NULL */
    bool direct; /* an address of this host or link: never by a proxy */
    long timeout_ms;
} fetch_request;

/* Before any thread is made. */
void fetch_init(void);

/*
 * The answer's body, which is the caller's (fetch_free), if the status is 200.
 * Else NULL, and why: it names the URL without its query and never holds what
 * was sent or answered.
 */
char *fetch(const fetch_request *request, char *why, size_t size);

/* Frees it and leaves nothing behind where it was. */
void fetch_free(char *text);

#endif
