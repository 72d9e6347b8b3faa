#include "sidecar/fetch.h"

#include <curl/curl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Credentials and tokens have a few KiB. */
#define BODY_MAX ((size_t)65536)
#define CONNECT_TIMEOUT_MS 2000L

typedef struct {
    char *at;
    size_t len;
} body;

void fetch_init(void) {
    curl_global_init(CURL_GLOBAL_DEFAULT);
}

void fetch_free(char *text) {
    if (text != NULL)
        explicit_bzero(text, strlen(text));
    free(text);
}

static size_t take(char *from, size_t one, size_t n, void *owner) {
    body *b = owner;
    n *= one;
    if (n > BODY_MAX - b->len)
        return 0;
    memcpy(b->at + b->len, from, n);
    b->len += n;
    b->at[b->len] = '\0';
    return n;
}

static struct curl_slist *headers_of(const fetch_request *r) {
    struct curl_slist *list = NULL;
    for (size_t i = 0; i < FETCH_HEADERS && r->headers[i] != NULL; i++) {
        struct curl_slist *more = curl_slist_append(list, r->headers[i]);
        if (more == NULL)
            break;
        list = more;
    }
    return list;
}

static void set_options(CURL *curl, const fetch_request *r,
                        struct curl_slist *headers, body *b) {
    const char *bundle = getenv("AWS_CA_BUNDLE");
    curl_easy_setopt(curl, CURLOPT_URL, r->url);
    curl_easy_setopt(curl, CURLOPT_PROTOCOLS_STR, "http,https");
    curl_easy_setopt(curl, CURLOPT_FOLLOWLOCATION, 0L);
    curl_easy_setopt(curl, CURLOPT_NOSIGNAL, 1L);
    curl_easy_setopt(curl, CURLOPT_TIMEOUT_MS, r->timeout_ms);
    curl_easy_setopt(curl, CURLOPT_CONNECTTIMEOUT_MS,
                     r->timeout_ms < CONNECT_TIMEOUT_MS ? r->timeout_ms
                                                        : CONNECT_TIMEOUT_MS);
    curl_easy_setopt(curl, CURLOPT_WRITEFUNCTION, take);
    curl_easy_setopt(curl, CURLOPT_WRITEDATA, b);
    curl_easy_setopt(curl, CURLOPT_HTTPHEADER, headers);
    if (bundle != NULL && *bundle != '\0')
        curl_easy_setopt(curl, CURLOPT_CAINFO, bundle);
    if (r->direct)
        curl_easy_setopt(curl, CURLOPT_NOPROXY, "*");
    if (r->body != NULL)
        curl_easy_setopt(curl, CURLOPT_POSTFIELDS, r->body);
    else if (strcmp(r->method, "GET") != 0)
        curl_easy_setopt(curl, CURLOPT_CUSTOMREQUEST, r->method);
}

char *fetch(const fetch_request *r, char *why, size_t size) {
    body b = {.at = calloc(1, BODY_MAX + 1)};
    CURL *curl = curl_easy_init();
    struct curl_slist *headers = headers_of(r);
    const char *failed = "out of memory";
    char text[64];
    if (b.at != NULL && curl != NULL) {
        long status = 0;
        set_options(curl, r, headers, &b);
        CURLcode code = curl_easy_perform(curl);
        curl_easy_getinfo(curl, CURLINFO_RESPONSE_CODE, &status);
        snprintf(text, sizeof(text), "HTTP status %ld", status);
        failed = code != CURLE_OK ? curl_easy_strerror(code)
                 : status != 200  ? text
                                  : NULL;
    }
    curl_slist_free_all(headers);
    curl_easy_cleanup(curl);
    if (failed == NULL)
        return b.at;
    snprintf(why, size, "%s %.*s: %s", r->method, (int)strcspn(r->url, "?"),
             r->url, failed);
    fetch_free(b.at);
    return NULL;
}
