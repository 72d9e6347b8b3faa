/* Documents over HTTP, see capturectl_fetch.h. */

#include "tools/capturectl_fetch.h"

#include "tools/capturectl.h"

#include <curl/curl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* A status page is smaller by far. */
#define BODY_MAX (16 * 1024 * 1024)

struct fetcher {
    CURL *curl;
    char error[CURL_ERROR_SIZE];
};

fetcher *fetcher_new(int64_t timeout) {
    fetcher *f = ctl_alloc(sizeof(fetcher));

    curl_global_init(CURL_GLOBAL_DEFAULT);
    *f = (fetcher){.curl = curl_easy_init()};

    if (f->curl == NULL) {
        ctl_die("out of memory");
    }

    curl_easy_setopt(f->curl, CURLOPT_ERRORBUFFER, f->error);
    curl_easy_setopt(f->curl, CURLOPT_TIMEOUT, (long)timeout);
    curl_easy_setopt(f->curl, CURLOPT_NOSIGNAL, 1L);
    curl_easy_setopt(f->curl, CURLOPT_PROTOCOLS_STR, "http,https");
    curl_easy_setopt(f->curl, CURLOPT_USERAGENT, "capturectl");
    /* a connection of its own: a kept one always asks the same worker */
    curl_easy_setopt(f->curl, CURLOPT_FORBID_REUSE, 1L);
    curl_easy_setopt(f->curl, CURLOPT_FRESH_CONNECT, 1L);

    return f;
}

void fetcher_free(fetcher *f) {
    curl_easy_cleanup(f->curl);
    free(f);
}

static size_t take(char *data, size_t size, size_t n, void *ctx) {
    document *d = ctx;

    n *= size;

    if (n > BODY_MAX - d->len) {
        return 0;
    }

    d->text = ctl_realloc(d->text, d->len + n + 1);
    memcpy(d->text + d->len, data, n);
    d->len += n;
    d->text[d->len] = '\0';

    return n;
}

char *fetch_url(const char *address, const char *path) {
    size_t size = strlen(address) + strlen(path) + sizeof("http://");
    char *url = ctl_alloc(size);
    const char *host = strstr(address, "://");
    bool has_path = strchr(host ? host + 3 : address, '/') != NULL;

    snprintf(url, size, "%s%s%s", host ? "" : "http://", address,
             has_path ? "" : path);

    return url;
}

bool fetch_has_path(const char *address) {
    const char *host = strstr(address, "://");

    return strchr(host ? host + 3 : address, '/') != NULL;
}

static bool perform(fetcher *f, document *d) {
    CURLcode rc;

    f->error[0] = '\0';
    rc = curl_easy_perform(f->curl);

    if (rc != CURLE_OK) {
        snprintf(d->why, sizeof(d->why), "%s",
                 f->error[0] ? f->error : curl_easy_strerror(rc));
        return false;
    }

    curl_easy_getinfo(f->curl, CURLINFO_RESPONSE_CODE, &d->status);

    return true;
}

bool fetch_get(fetcher *f, const char *url, document *d) {
    *d = (document){.text = ctl_strdup("")};
    curl_easy_setopt(f->curl, CURLOPT_URL, url);
    curl_easy_setopt(f->curl, CURLOPT_HTTPGET, 1L);
    curl_easy_setopt(f->curl, CURLOPT_HTTPHEADER, NULL);
    curl_easy_setopt(f->curl, CURLOPT_WRITEFUNCTION, take);
    curl_easy_setopt(f->curl, CURLOPT_WRITEDATA, d);

    if (!perform(f, d)) {
        return false;
    }

    if (d->status != 200) {
        snprintf(d->why, sizeof(d->why), "status %ld", d->status);
        return false;
    }

    return true;
}

static size_t drop(char *data, size_t size, size_t count, void *ctx) {
    (void)data;
    (void)ctx;

    return size * count;
}

bool fetch_nothing(fetcher *f, const char *url, const char *header,
                   document *d) {
    bool ok;
    struct curl_slist *headers = curl_slist_append(NULL, header);

    headers = curl_slist_append(headers, "Connection: close");
    *d = (document){0};
    curl_easy_setopt(f->curl, CURLOPT_URL, url);
    curl_easy_setopt(f->curl, CURLOPT_HTTPGET, 1L);
    curl_easy_setopt(f->curl, CURLOPT_WRITEFUNCTION, drop);
    curl_easy_setopt(f->curl, CURLOPT_HTTPHEADER, headers);
    ok = perform(f, d);
    curl_easy_setopt(f->curl, CURLOPT_HTTPHEADER, NULL);
    curl_slist_free_all(headers);

    return ok;
}
