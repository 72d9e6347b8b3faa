/* Roles: AWS's security token service. */
#define _GNU_SOURCE 1 /* asprintf */

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "sidecar/aws_internal.h"
#include "sidecar/aws_sigv4.h"
#include "sidecar/fetch.h"

#define SESSION_NAME "capture-sidecar"

/* The text of <NAME>, copied; AWS's answers have no entities in these. */
static char *xml_copy(const char *xml, const char *name) {
    char begin[40];
    snprintf(begin, sizeof(begin), "<%s>", name);
    const char *at = strstr(xml, begin);
    if (at == NULL)
        return NULL;
    at += strlen(begin);
    return strndup(at, strcspn(at, "<"));
}

static aws_outcome read_sts(aws_inquiry *i, const char *xml) {
    char *access = xml_copy(xml, "AccessKeyId");
    char *secret = xml_copy(xml, "SecretAccessKey");
    char *session = xml_copy(xml, "SessionToken");
    char *expires = xml_copy(xml, "Expiration");
    aws_outcome result = aws_take(i, "the answer of the security token service",
                                  access, secret, session);
    i->c->expires_s = aws_parse_time(expires);
    aws_free(access);
    aws_free(secret);
    aws_free(session);
    free(expires);
    return result;
}

static const char *region_of(const aws_query *q) {
    return q->region != NULL && *q->region != '\0' ? q->region : "us-east-1";
}

/* The caller's (free); NULL: out of memory. */
static char *endpoint(const aws_query *q) {
    const char *set = aws_variable("AWS_ENDPOINT_URL_STS"),
               *region = region_of(q);
    char *url;
    int rc = set != NULL
                 ? asprintf(&url, "%s/", set)
                 : asprintf(&url, "https://sts.%s.amazonaws.com%s/", region,
                            strncmp(region, "cn-", 3) == 0 ? ".cn" : "");
    return rc != -1 ? url : NULL;
}

/* Appends &NAME=VALUE, percent-encoded, to *form; nothing for NULL. */
static int add(char **form, const char *name, const char *value) {
    if (value == NULL)
        return 0;
    char *encoded = aws_percent(value), *longer;
    int rc = encoded != NULL
                 ? asprintf(&longer, "%s&%s=%s", *form, name, encoded)
                 : -1;
    aws_free(encoded);
    if (rc == -1)
        return -1;
    aws_free(*form);
    *form = longer;
    return 0;
}

/* What is asked for a role, by whichever way; NULL: out of memory. */
static char *form_of(const char *action, const aws_role *role,
                     const char *token) {
    char *form, duration[24] = "";
    if (role->duration_s != 0)
        snprintf(duration, sizeof(duration), "%ld", role->duration_s);
    if (asprintf(&form, "Action=%s&Version=2011-06-15", action) == -1)
        return NULL;
    if (add(&form, "RoleArn", role->arn) == -1 ||
        add(&form, "RoleSessionName",
            role->session_name != NULL ? role->session_name : SESSION_NAME) ==
            -1 ||
        add(&form, "ExternalId", role->external_id) == -1 ||
        add(&form, "DurationSeconds", *duration != '\0' ? duration : NULL) ==
            -1 ||
        add(&form, "WebIdentityToken", token) == -1) {
        aws_free(form);
        return NULL;
    }
    return form;
}

/* `by`: NULL, or who signs. */
static aws_outcome ask(aws_inquiry *i, const char *form,
                       const aws_credentials *by) {
    char *url = endpoint(i->q), *xml = NULL;
    aws_headers signed_by = {0};
    aws_outcome result = AWS_FAILED;
    if (form == NULL || url == NULL ||
        (by != NULL && aws_sign_form(by, region_of(i->q), time(NULL), url, form,
                                     &signed_by) == -1)) {
        aws_failed(i, "out of memory");
    } else {
        xml =
            fetch(&(fetch_request){.method = "POST",
                                   .url = url,
                                   .headers = {signed_by.authorization,
                                               signed_by.date, signed_by.token},
                                   .body = form,
                                   .timeout_ms = i->q->timeout_ms},
                  i->why, i->size);
        if (xml != NULL)
            result = read_sts(i, xml);
    }
    fetch_free(xml);
    aws_headers_free(&signed_by);
    free(url);
    return result;
}

aws_outcome aws_assume_by_web_identity(aws_inquiry *i, const aws_role *role,
                                       const char *file) {
    char *identity = aws_read_file(file); /* it changes: read anew */
    if (identity == NULL || *identity == '\0') {
        aws_failed(i, "the token of the identity, %s, %s", file,
                   identity == NULL ? strerror(errno) : "is empty");
        aws_free(identity);
        return AWS_FAILED;
    }
    char *form = form_of("AssumeRoleWithWebIdentity", role, identity);
    aws_outcome result = ask(i, form, NULL);
    aws_free(form);
    aws_free(identity);
    return result;
}

aws_outcome aws_assume(aws_inquiry *i, const aws_role *role,
                       const aws_credentials *by) {
    char *form = form_of("AssumeRole", role, NULL);
    aws_outcome result = ask(i, form, by);
    aws_free(form);
    return result;
}

aws_outcome aws_from_web_identity(aws_inquiry *i) {
    const char *file = aws_variable("AWS_WEB_IDENTITY_TOKEN_FILE");
    const aws_role role = {.arn = aws_variable("AWS_ROLE_ARN"),
                           .session_name =
                               aws_variable("AWS_ROLE_SESSION_NAME")};
    if (file == NULL)
        return AWS_ABSENT;
    if (role.arn == NULL)
        return aws_failed(i, "AWS_WEB_IDENTITY_TOKEN_FILE is set without "
                             "AWS_ROLE_ARN");
    return aws_assume_by_web_identity(i, &role, file);
}
