/*
 * What the sources of AWS credentials share: aws_credentials.c (environment,
 * container, instance, and the order), aws_profile.c, aws_sts.c.
 */
#ifndef SIDECAR_AWS_INTERNAL_H
#define SIDECAR_AWS_INTERNAL_H

#include <stddef.h>
#include <stdint.h>

#include "sidecar/aws_credentials.h"

/* What a source is asked, and where its answer goes. */
typedef struct {
    const aws_query *q;
    aws_credentials *c;
    char *why; /* of `size` bytes; it never holds a secret */
    size_t size;
} aws_inquiry;

/* AWS_ABSENT: nothing there says that this source should be used.
   AWS_FAILED: it should be, and cannot; why says the reason. */
typedef enum { AWS_FAILED = -1, AWS_GOT, AWS_ABSENT } aws_outcome;

typedef aws_outcome (*aws_source)(aws_inquiry *i);

/* aws_credentials.c */

aws_outcome aws_from_environment(aws_inquiry *i);
aws_outcome aws_from_container(aws_inquiry *i);
aws_outcome aws_from_instance(aws_inquiry *i);

aws_outcome __attribute__((format(printf, 2, 3)))
aws_failed(aws_inquiry *i, const char *format, ...);
/* Copies what a file or an answer (`from`) holds; any may be NULL. */
aws_outcome aws_take(aws_inquiry *i, const char *from, const char *access,
                     const char *secret, const char *session);
/* The same of the JSON object that a program has printed (credential_process). */
aws_outcome aws_take_process(aws_inquiry *i, const char *from,
                             const char *text);
/* Seconds since 1970 of "2026-01-31T23:59:59Z", also with a fraction, or with
   an offset in Z's place; 0 for NULL, and for what is none. */
int64_t aws_parse_time(const char *text);
/* A variable that is set and not empty, or NULL. */
const char *aws_variable(const char *name);
/* The whole text without the white space at its end, the caller's (aws_free);
   NULL with errno. */
char *aws_read_file(const char *path);

/* aws_profile.c: the shared files */

aws_outcome aws_from_profile(aws_inquiry *i);

/* aws_sts.c: the security token service */

aws_outcome aws_from_web_identity(aws_inquiry *i);

/* A role that is assumed; NULL, or 0, is what is not said. */
typedef struct {
    const char *arn;
    const char *session_name;
    const char *external_id;
    long duration_s;
} aws_role;

/* With the token of an identity provider, which `file` holds. */
aws_outcome aws_assume_by_web_identity(aws_inquiry *i, const aws_role *role,
                                       const char *file);
/* With credentials that may do so. */
aws_outcome aws_assume(aws_inquiry *i, const aws_role *role,
                       const aws_credentials *by);

#endif
