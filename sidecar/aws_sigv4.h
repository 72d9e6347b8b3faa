/*
 * The token that Amazon MSK takes for SASL OAUTHBEARER: a URL presigned by AWS
 * Signature Version 4 (service kafka-cluster, action kafka-cluster:Connect), in
 * base64url without padding.
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

/* Percent-encodes all but A-Z a-z 0-9 - . _ ~; the caller's (free). */
char *aws_percent(const char *text);

#endif
