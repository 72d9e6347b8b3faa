#define _GNU_SOURCE 1 /* asprintf */

#include "sidecar/aws_sigv4.h"

#include <openssl/evp.h>
#include <openssl/hmac.h>
#include <openssl/sha.h>
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

/* Date, region and service are hashed into the key one after another. */
static digest signing_key(const char *secret, const char *date,
                          const char *region) {
    digest d = {{0}};
    char *first;
    if (asprintf(&first, "AWS4%s", secret) == -1)
        return d;
    d = hmac(first, strlen(first), date);
    aws_free(first);
    d = hmac(d.at, sizeof(d.at), region);
    d = hmac(d.at, sizeof(d.at), SERVICE);
    return hmac(d.at, sizeof(d.at), "aws4_request");
}

/* The signature of GET https://HOST/?QUERY, its parameters in sorted order. */
static char *sign(const char *secret, const char *region, const char *stamp,
                  const char *query) {
    char *request = NULL, *text = NULL, *signature = NULL;
    char date[9];
    snprintf(date, sizeof(date), "%.8s", stamp);
    if (asprintf(&request,
                 "GET\n/\n%s\nhost:kafka.%s.amazonaws.com\n\nhost\n" NO_BODY,
                 query, region) == -1)
        return NULL;
    digest d = sha256(request);
    if (asprintf(&text, ALGORITHM "\n%s\n%s/%s/" SERVICE "/aws4_request\n%s",
                 stamp, date, region, in_hex(&d).hex) != -1) {
        digest key = signing_key(secret, date, region);
        d = hmac(key.at, sizeof(key.at), text);
        OPENSSL_cleanse(&key, sizeof(key));
        signature = strdup(in_hex(&d).hex);
        aws_free(text);
    }
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
    char *common = NULL, *query = NULL, *signature = NULL, *url = NULL;
    char stamp[17];
    struct tm tm;
    gmtime_r(&now, &tm);
    strftime(stamp, sizeof(stamp), "%Y%m%dT%H%M%SZ", &tm);
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
        signature = sign(c->secret_key, region, stamp, query);
        aws_free(query);
    }
    if (signature != NULL &&
        asprintf(&url,
                 "https://kafka.%s.amazonaws.com/?%s&X-Amz-SignedHeaders=host"
                 "%s%s&X-Amz-Signature=%s&User-Agent=%s",
                 region, common, token, session, signature, agent) == -1)
        url = NULL;
    free(signature);
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
