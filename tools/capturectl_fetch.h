/* Documents over HTTP. */

#ifndef TOOLS_CAPTURECTL_FETCH_H
#define TOOLS_CAPTURECTL_FETCH_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef struct fetcher fetcher;

typedef struct {
    char *text; /* NUL behind it; for the caller to free */
    size_t len;
    long status;
    char why[256]; /* where the call has failed */
} document;

/* timeout in seconds, for a whole request */
fetcher *fetcher_new(int64_t timeout);
void fetcher_free(fetcher *f);

/* A URL of "HOST:PORT" or of a URL, with this path where it has none. */
char *fetch_url(const char *address, const char *path);
bool fetch_has_path(const char *address);

/* GET, on a new connection; true for status 200. d->text is set in any case. */
bool fetch_get(fetcher *f, const char *url, document *d);

/* GET with one more header line; true for any answer, which is dropped. */
bool fetch_nothing(fetcher *f, const char *url, const char *header,
                   document *d);

#endif
