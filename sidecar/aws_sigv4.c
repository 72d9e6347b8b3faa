#define _GNU_SOURCE 1 /* asprintf */

#include "sidecar/aws_sigv4.h"

#include <openssl/evp.h>
#include <openssl/hmac.h>
#include <openssl/sha.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define ALGORITHM "AWS4-HMAC-SHA256"
#define SERVICE "kafka-cluster"
#define ACTION "Action=kafka-cluster%%3AConnect" /* of a format */
/* SHA-256 of nothing: the request that is signed has no body */
#define NO_BODY                                                                \
    "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"

typedef struct {
    unsigned char at[SHA256_DIGEST_LENGTH];
} digest;

typedef struct {
    char hex[2 * SHA256_DIGEST_LENGTH + 1];
} hex_digest;

char *aws_percent(const char *text) {
    static const char digits[] = "0123456789ABCDEF";
    char *encoded = malloc(3 * strlen(text) + 1), *at = encoded;
    if (encoded == NULL)
        return NULL;
    for (; *text != '\0'; text++) {
        unsigned char c = (unsigned char)*text;
        if ((c >= 'A' && c <= 'Z') || (c >= 'a' && c <= 'z') ||
            (c >= '0' && c <= '9') || strchr("-._~", c) != NULL) {
            *at++ = (char)c;
            continue;
        }
        *at++ = '%';
        *at++ = digits[c >> 4];
        *at++ = digits[c & 15];
    }
    *at = '\0';
    return encoded;
}

static hex_digest in_hex(const digest *d) {
    hex_digest h;
    for (size_t i = 0; i < sizeof(d->at); i++)
        snprintf(h.hex + 2 * i, 3, "%02x", d->at[i]);
    return h;
}

static digest sha256(const char *text) {
    digest d;
    SHA256((const unsigned char *)text, strlen(text), d.at);
    return d;
}

static digest hmac(const void *key, size_t len, const char *text) {
    digest d = {{0}};
    HMAC(EVP_sha256(), key, (int)len, (const unsigned char *)text, strlen(text),
         d.at, NULL);
    return d;
}

#define STAMP_SIZE 17

static void stamp_of(time_t now, char stamp[STAMP_SIZE]) {
    struct tm tm;
    gmtime_r(&now, &tm);
    strftime(stamp, STAMP_SIZE, "%Y%m%dT%H%M%SZ", &tm);
}

/* Date, region and service are hashed into the key one after another. */
static digest signing_key(const char *secret, const char *date,
                          const char *region, const char *service) {
    digest d = {{0}};
    char *first;
    if (asprintf(&first, "AWS4%s", secret) == -1)
        return d;
    d = hmac(first, strlen(first), date);
    aws_free(first);
    d = hmac(d.at, sizeof(d.at), region);
    d = hmac(d.at, sizeof(d.at), service);
    return hmac(d.at, sizeof(d.at), "aws4_request");
}

/* The signature of a canonical request; "" : out of memory. */
static hex_digest sign(const char *secret, const char *region,
                       const char *service, const char *stamp,
                       const char *request) {
    hex_digest signature = {""};
    char *text, date[9];
    snprintf(date, sizeof(date), "%.8s", stamp);
    digest d = sha256(request);
    if (asprintf(&text, ALGORITHM "\n%s\n%s/%s/%s/aws4_request\n%s", stamp,
                 date, region, service, in_hex(&d).hex) == -1)
        return signature;
    digest key = signing_key(secret, date, region, service);
    d = hmac(key.at, sizeof(key.at), text);
    signature = in_hex(&d);
    OPENSSL_cleanse(&key, sizeof(key));
    aws_free(text);
    return signature;
}

/* The signature of GET https://HOST/?QUERY, its parameters in sorted order. */
static hex_digest sign_url(const char *secret, const char *region,
                           const char *stamp, const char *query) {
    hex_digest signature = {""};
    char *request;
    if (asprintf(&request,
                 "GET\n/\n%s\nhost:kafka.%s.amazonaws.com\n\nhost\n" NO_BODY,
                 query, region) == -1)
        return signature;
    signature = sign(secret, region, SERVICE, stamp, request);
    aws_free(request);
    return signature;
}

static char *base64url(const char *text) {
    size_t len = strlen(text);
    char *encoded = malloc(4 * ((len + 2) / 3) + 1);
    if (encoded == NULL)
        return NULL;
    EVP_EncodeBlock((unsigned char *)encoded, (const unsigned char *)text,
                    (int)len);
    for (char *at = encoded; *at != '\0'; at++) {
        if (*at == '+')
            *at = '-';
        else if (*at == '/')
            *at = '_';
        else if (*at == '=')
            *at = '\0';
    }
    return encoded;
}

/* What is signed sorts the session's token before SignedHeaders; the URL has
   it at the end, as AWS's own signers write it. */
static char *presign(const aws_credentials *c, const char *region, time_t now,
                     const char *session, const char *agent) {
    char *common = NULL, *query = NULL, *url = NULL;
    hex_digest signature = {""};
    char stamp[STAMP_SIZE];
    stamp_of(now, stamp);
    const char *token = session != NULL ? "&X-Amz-Security-Token=" : "";
    if (session == NULL)
        session = "";

    if (asprintf(&common,
                 ACTION "&X-Amz-Algorithm=" ALGORITHM
                        "&X-Amz-Credential=%s%%2F%.8s%%2F%s%%2F" SERVICE
                        "%%2Faws4_request&X-Amz-Date=%s&X-Amz-Expires=%d",
                 c->access_key, stamp, region, stamp,
                 AWS_TOKEN_LIFETIME_S) == -1)
        return NULL;
    if (asprintf(&query, "%s%s%s&X-Amz-SignedHeaders=host", common, token,
                 session) != -1) {
        signature = sign_url(c->secret_key, region, stamp, query);
        aws_free(query);
    }
    if (*signature.hex != '\0' &&
        asprintf(&url,
                 "https://kafka.%s.amazonaws.com/?%s&X-Amz-SignedHeaders=host"
                 "%s%s&X-Amz-Signature=%s&User-Agent=%s",
                 region, common, token, session, signature.hex, agent) == -1)
        url = NULL;
    aws_free(common);
    return url;
}

char *aws_msk_token(const aws_credentials *c, const char *region, time_t now,
                    const char *agent) {
    char *session = NULL, *token = NULL;
    if (c->session_token != NULL &&
        (session = aws_percent(c->session_token)) == NULL)
        return NULL;
    char *user = aws_percent(agent);
    char *url = user != NULL ? presign(c, region, now, session, user) : NULL;
    if (url != NULL)
        token = base64url(url);
    aws_free(url);
    free(user);
    aws_free(session);
    return token;
}

/* ---- requests to the security token service ---- */

#define STS "sts"

/* What is signed of a POST: its headers by their names' order.  The caller's
   (aws_free); NULL: out of memory. */
static char *form_request(const aws_credentials *c, const char *stamp,
                          const char *url, const char *form,
                          const char *names) {
    const char *host = strstr(url, "://");
    host = host != NULL ? host + 3 : url;
    size_t len = strcspn(host, "/");
    digest body = sha256(form);
    char *request;
    bool token = c->session_token != NULL;
    if (asprintf(&request,
                 "POST\n%s\n\n"
                 "content-type:application/x-www-form-urlencoded\n"
                 "host:%.*s\nx-amz-date:%s\n%s%s%s\n%s\n%s",
                 host[len] == '/' ? host + len : "/", (int)len, host, stamp,
                 token ? "x-amz-security-token:" : "",
                 token ? c->session_token : "", token ? "\n" : "", names,
                 in_hex(&body).hex) == -1)
        return NULL;
    return request;
}

/* NULL: out of memory. */
static char *__attribute__((format(printf, 1, 2)))
text_of(const char *format, ...) {
    va_list args;
    char *text;
    va_start(args, format);
    int rc = vasprintf(&text, format, args);
    va_end(args);
    return rc != -1 ? text : NULL;
}

int aws_sign_form(const aws_credentials *c, const char *region, time_t now,
                  const char *url, const char *form, aws_headers *into) {
    bool token = c->session_token != NULL;
    const char *names = token ? "content-type;host;x-amz-date;"
                                "x-amz-security-token"
                              : "content-type;host;x-amz-date";
    char stamp[STAMP_SIZE];
    stamp_of(now, stamp);
    memset(into, 0, sizeof(*into));
    char *request = form_request(c, stamp, url, form, names);
    hex_digest signature = {""};
    if (request != NULL)
        signature = sign(c->secret_key, region, STS, stamp, request);
    aws_free(request);
    into->authorization =
        text_of("Authorization: " ALGORITHM " Credential=%s/%.8s/%s/" STS
                "/aws4_request, SignedHeaders=%s, Signature=%s",
                c->access_key, stamp, region, names, signature.hex);
    into->date = text_of("X-Amz-Date: %s", stamp);
    if (token)
        into->token = text_of("X-Amz-Security-Token: %s", c->session_token);
    if (*signature.hex != '\0' && into->authorization != NULL &&
        into->date != NULL && (!token || into->token != NULL))
        return 0;
    aws_headers_free(into);
    return -1;
}

void aws_headers_free(aws_headers *h) {
    aws_free(h->authorization);
    aws_free(h->date);
    aws_free(h->token);
    memset(h, 0, sizeof(*h));
}
