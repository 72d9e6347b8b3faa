/*
 * AWS credentials from where AWS's own SDKs look for them, by the same
 * variables.  It may ask an endpoint, and so blocks: never on the loop's thread.
 */
#ifndef SIDECAR_AWS_CREDENTIALS_H
#define SIDECAR_AWS_CREDENTIALS_H

#include <stddef.h>
#include <stdint.h>

/* In the order of the configuration's choices for aws.credentials. */
typedef enum {
    AWS_CHAIN, /* the first of these that is there, in this order */
    AWS_ENVIRONMENT,
    AWS_WEB_IDENTITY,
    AWS_PROFILE,
    AWS_CONTAINER,
    AWS_INSTANCE
} aws_provider;

typedef struct {
    char *access_key;
    char *secret_key;
    char *session_token; /* or NULL */
    int64_t expires_s;   /* seconds since 1970, or 0: they do not */
} aws_credentials;

typedef struct {
    aws_provider provider;
    const char *profile; /* NULL: AWS_PROFILE, or "default" */
    const char *region;  /* of the security token service */
    long timeout_ms;     /* of one question to an endpoint */
} aws_query;

/* 0, or -1 with the reason, which names the place and holds no secret.
   Either way aws_credentials_free is called after it. */
int aws_credentials_get(const aws_query *q, aws_credentials *into, char *why,
                        size_t size);
void aws_credentials_free(aws_credentials *c);

/* Frees a secret and leaves nothing behind where it was. */
void aws_free(char *secret);

/* The endpoint that a container's variables name; the caller's (free).  NULL
   with *why: refused, or "" when there is none. */
char *aws_container_url(char *why, size_t size);

#endif
