#define _GNU_SOURCE 1 /* asprintf, strptime, timegm */

#include "sidecar/aws_internal.h"

#include <ctype.h>
#include <errno.h>
#include <jansson.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <time.h>

#include "sidecar/fetch.h"

#define FILE_SIZE_MAX 65536

void aws_free(char *secret) {
    if (secret != NULL)
        explicit_bzero(secret, strlen(secret));
    free(secret);
}

void aws_credentials_free(aws_credentials *c) {
    aws_free(c->access_key);
    aws_free(c->secret_key);
    aws_free(c->session_token);
    memset(c, 0, sizeof(*c));
}

aws_outcome aws_failed(aws_inquiry *i, const char *format, ...) {
    va_list args;
    va_start(args, format);
    vsnprintf(i->why, i->size, format, args);
    va_end(args);
    return AWS_FAILED;
}

const char *aws_variable(const char *name) {
    const char *value = getenv(name);
    return value != NULL && *value != '\0' ? value : NULL;
}

/* The access key stands in a URL as it is: AWS makes them of letters and
   digits. */
aws_outcome aws_take(aws_inquiry *i, const char *from, const char *access,
                     const char *secret, const char *session) {
    aws_credentials *c = i->c;
    if (access == NULL || *access == '\0' || secret == NULL || *secret == '\0')
        return aws_failed(i, "%s has no access key, or no secret key", from);
    for (const char *at = access; *at != '\0'; at++)
        if (!isalnum((unsigned char)*at))
            return aws_failed(i,
                              "%s: the access key has other characters than "
                              "letters and digits",
                              from);
    c->access_key = strdup(access);
    c->secret_key = strdup(secret);
    if (session != NULL && *session != '\0')
        c->session_token = strdup(session);
    if (c->access_key == NULL || c->secret_key == NULL ||
        (session != NULL && *session != '\0' && c->session_token == NULL))
        return aws_failed(i, "out of memory");
    return AWS_GOT;
}

int64_t aws_parse_time(const char *text) {
    struct tm tm = {0};
    int hours, minutes;
    char sign;
    const char *at =
        text != NULL ? strptime(text, "%Y-%m-%dT%H:%M:%S", &tm) : NULL;
    if (at == NULL)
        return 0;
    at += strspn(at, ".0123456789");
    int64_t offset = 0;
    if (sscanf(at, "%c%2d:%2d", &sign, &hours, &minutes) == 3)
        offset = (hours * 60 + minutes) * (sign == '-' ? -60 : 60);
    return timegm(&tm) - offset;
}

/* ---- environment ---- */

aws_outcome aws_from_environment(aws_inquiry *i) {
    const char *access = aws_variable("AWS_ACCESS_KEY_ID");
    if (access == NULL)
        return AWS_ABSENT;
    return aws_take(i, "the environment", access,
                    aws_variable("AWS_SECRET_ACCESS_KEY"),
                    aws_variable("AWS_SESSION_TOKEN"));
}

/* ---- files ---- */

char *aws_read_file(const char *path) {
    FILE *in = fopen(path, "re");
    char *text = in != NULL ? calloc(1, FILE_SIZE_MAX + 1) : NULL;
    if (text != NULL) {
        size_t n = fread(text, 1, FILE_SIZE_MAX, in);
        while (n > 0 && isspace((unsigned char)text[n - 1]))
            text[--n] = '\0';
        if (ferror(in)) {
            aws_free(text);
            text = NULL;
        }
    }
    if (in != NULL)
        fclose(in);
    return text;
}

/* ---- endpoints that answer with JSON ---- */

static const char *json_text(const json_t *object, const char *key) {
    return json_string_value(json_object_get(object, key));
}

/* `session`: the name that the token has in it. */
static aws_outcome take_json(aws_inquiry *i, const char *from,
                             const json_t *object, const char *session) {
    aws_outcome result = aws_take(i, from, json_text(object, "AccessKeyId"),
                                  json_text(object, "SecretAccessKey"),
                                  json_text(object, session));
    i->c->expires_s = aws_parse_time(json_text(object, "Expiration"));
    return result;
}

static aws_outcome read_json(aws_inquiry *i, const char *url,
                             const char *text) {
    json_t *object = json_loads(text, 0, NULL);
    aws_outcome result =
        json_is_object(object)
            ? take_json(i, url, object, "Token")
            : aws_failed(i, "%s does not answer with a JSON object", url);
    json_decref(object);
    return result;
}

aws_outcome aws_take_process(aws_inquiry *i, const char *from,
                             const char *text) {
    json_t *object = json_loads(text, 0, NULL);
    aws_outcome result =
        json_integer_value(json_object_get(object, "Version")) == 1
            ? take_json(i, from, object, "SessionToken")
            : aws_failed(i,
                         "%s has not printed a JSON object with \"Version\": 1",
                         from);
    json_decref(object);
    return result;
}

/* ---- containers: ECS, EKS Pod Identity ---- */

/* A secret goes there: by TLS, or to these addresses, as the SDKs have it. */
static bool may_be_asked(const char *url) {
    static const char *const hosts[] = {"169.254.170.2",  "169.254.170.23",
                                        "[fd00:ec2::23]", "127.0.0.1",
                                        "localhost",      "[::1]"};
    if (strncmp(url, "https://", 8) == 0)
        return true;
    if (strncmp(url, "http://", 7) != 0)
        return false;
    url += 7;
    for (size_t i = 0; i < sizeof(hosts) / sizeof(*hosts); i++) {
        size_t n = strlen(hosts[i]);
        if (strncmp(url, hosts[i], n) == 0 &&
            (url[n] == '\0' || url[n] == '/' || url[n] == ':') &&
            memchr(url, '@', strcspn(url, "/")) == NULL)
            return true;
    }
    return false;
}

char *aws_container_url(char *why, size_t size) {
    const char *relative =
                   aws_variable("AWS_CONTAINER_CREDENTIALS_RELATIVE_URI"),
               *full = aws_variable("AWS_CONTAINER_CREDENTIALS_FULL_URI");
    char *url = NULL;
    *why = '\0';
    if (relative != NULL) {
        if (asprintf(&url, "http://169.254.170.2%s%s",
                     *relative == '/' ? "" : "/", relative) == -1)
            snprintf(why, size, "out of memory");
        return url;
    }
    if (full == NULL)
        return NULL;
    if (!may_be_asked(full)) {
        snprintf(why, size,
                 "AWS_CONTAINER_CREDENTIALS_FULL_URI: without https it must "
                 "name this host, 169.254.170.2 or 169.254.170.23");
        return NULL;
    }
    url = strdup(full);
    if (url == NULL)
        snprintf(why, size, "out of memory");
    return url;
}

/* The header's line, the caller's (aws_free); *line NULL: there is none. */
static aws_outcome authorization(aws_inquiry *i, char **line) {
    const char *file = aws_variable("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE"),
               *token = aws_variable("AWS_CONTAINER_AUTHORIZATION_TOKEN");
    char *text = NULL;
    *line = NULL;
    if (file != NULL && (text = aws_read_file(file)) == NULL)
        return aws_failed(i, "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE = %s: %s",
                          file, strerror(errno));
    if (text != NULL)
        token = text;
    if (token != NULL && strpbrk(token, "\r\n") != NULL) {
        aws_free(text);
        return aws_failed(i, "the container's authorization token has several "
                             "lines");
    }
    if (token != NULL && asprintf(line, "Authorization: %s", token) == -1)
        *line = NULL;
    aws_free(text);
    return AWS_GOT;
}

aws_outcome aws_from_container(aws_inquiry *i) {
    char *url = aws_container_url(i->why, i->size), *header;
    if (url == NULL)
        return i->why[0] == '\0' ? AWS_ABSENT : AWS_FAILED;
    aws_outcome result = authorization(i, &header);
    if (result == AWS_GOT) {
        char *text = fetch(&(fetch_request){.method = "GET",
                                            .url = url,
                                            .headers = {header},
                                            .direct = true,
                                            .timeout_ms = i->q->timeout_ms},
                           i->why, i->size);
        result = text != NULL ? read_json(i, url, text) : AWS_FAILED;
        fetch_free(text);
    }
    aws_free(header);
    free(url);
    return result;
}

/* ---- EC2 metadata, version 2 ---- */

static char *ask_metadata(aws_inquiry *i, const char *method, const char *path,
                          const char *header) {
    const char *endpoint = aws_variable("AWS_EC2_METADATA_SERVICE_ENDPOINT");
    char *url;
    if (endpoint == NULL)
        endpoint = "http://169.254.169.254";
    size_t n = strlen(endpoint);
    while (n > 0 && endpoint[n - 1] == '/')
        n--;
    if (asprintf(&url, "%.*s%s", (int)n, endpoint, path) == -1)
        return NULL;
    char *text = fetch(&(fetch_request){.method = method,
                                        .url = url,
                                        .headers = {header},
                                        .direct = true,
                                        .timeout_ms = i->q->timeout_ms},
                       i->why, i->size);
    free(url);
    return text;
}

static aws_outcome ask_instance(aws_inquiry *i, const char *session) {
    static const char roles[] = "/latest/meta-data/iam/security-credentials/";
    char *role = ask_metadata(i, "GET", roles, session), *path = NULL;
    aws_outcome result = AWS_FAILED;
    if (role == NULL)
        return AWS_FAILED;
    role[strcspn(role, "\r\n")] = '\0';
    if (asprintf(&path, "%s%s", roles, role) != -1) {
        char *text = ask_metadata(i, "GET", path, session);
        if (text != NULL)
            result = read_json(i, path, text);
        fetch_free(text);
        free(path);
    }
    fetch_free(role);
    return result;
}

aws_outcome aws_from_instance(aws_inquiry *i) {
    const char *disabled = aws_variable("AWS_EC2_METADATA_DISABLED");
    char *header;
    if (disabled != NULL && strcasecmp(disabled, "true") == 0)
        return AWS_ABSENT;
    char *token = ask_metadata(i, "PUT", "/latest/api/token",
                               "X-aws-ec2-metadata-token-ttl-seconds: 21600");
    if (token == NULL)
        return AWS_FAILED;
    token[strcspn(token, "\r\n")] = '\0';
    aws_outcome result = AWS_FAILED;
    if (asprintf(&header, "X-aws-ec2-metadata-token: %s", token) != -1) {
        result = ask_instance(i, header);
        aws_free(header);
    }
    fetch_free(token);
    return result;
}

/* ---- the chain ---- */

static const struct {
    aws_provider provider;
    const char *name;
    aws_source get;
} providers[] = {
    {AWS_ENVIRONMENT, "environment", aws_from_environment},
    {AWS_WEB_IDENTITY, "web-identity", aws_from_web_identity},
    {AWS_PROFILE, "profile", aws_from_profile},
    {AWS_CONTAINER, "container", aws_from_container},
    {AWS_INSTANCE, "instance", aws_from_instance},
};

int aws_credentials_get(const aws_query *q, aws_credentials *into, char *why,
                        size_t size) {
    memset(into, 0, sizeof(*into));
    for (size_t n = 0; n < sizeof(providers) / sizeof(*providers); n++) {
        char reason[512] = "";
        aws_inquiry i = {q, into, reason, sizeof(reason)};
        if (q->provider != AWS_CHAIN && q->provider != providers[n].provider)
            continue;
        aws_outcome result = providers[n].get(&i);
        if (result == AWS_GOT)
            return 0;
        if (result == AWS_FAILED) {
            snprintf(why, size, "AWS credentials (%s): %s", providers[n].name,
                     reason);
            return -1;
        }
        if (q->provider != AWS_CHAIN) {
            snprintf(why, size,
                     "AWS credentials: aws.credentials = %s, and there are "
                     "none",
                     providers[n].name);
            return -1;
        }
    }
    snprintf(why, size, "AWS credentials: none of the sources is there");
    return -1;
}
