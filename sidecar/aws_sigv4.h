/*
 * AWS Signature Version 4, for what is needed of it.  The token that Amazon MSK
 * takes for SASL OAUTHBEARER: a URL presigned (service kafka-cluster, action
 * kafka-cluster:Connect), in base64url without padding.  And requests to the
 * security token service.
 */
#ifndef SIDECAR_AWS_SIGV4_H
#define SIDECAR_AWS_SIGV4_H

#include <time.h>

#include "sidecar/aws_credentials.h"

#define AWS_TOKEN_LIFETIME_S 900

/* NULL: out of memory, or OpenSSL failed.  The result is the caller's
   (aws_free).  `agent` is told to the broker, and not signed. */
char *aws_msk_token(const aws_credentials *c, const char *region, time_t now,
                    const char *agent);

/* The lines of headers that sign a request, each the caller's
   (aws_headers_free); token is NULL where the credentials have none. */
typedef struct {
    char *authorization, *date, *token;
} aws_headers;

/* Of a POST of `form` (application/x-www-form-urlencoded) to `url`, a URL of
   the security token service without a query.  -1: out of memory. */
int aws_sign_form(const aws_credentials *c, const char *region, time_t now,
                  const char *url, const char *form, aws_headers *into);
void aws_headers_free(aws_headers *h);

/* Percent-encodes all but A-Z a-z 0-9 - . _ ~; the caller's (free). */
char *aws_percent(const char *text);

#endif
