#define _GNU_SOURCE 1 /* asprintf, strptime, timegm */

#include "sidecar/aws_credentials.h"

#include <ctype.h>
#include <errno.h>
#include <jansson.h>
#include <pwd.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "sidecar/aws_sigv4.h"
#include "sidecar/fetch.h"

#define FILE_SIZE_MAX 65536

/* What a provider is given, and how it answers. */
typedef struct {
    const aws_query *q;
    aws_credentials *c;
    char *why;
    size_t size;
} inquiry;

typedef enum { FAILED = -1, GOT, ABSENT } outcome;

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

static outcome __attribute__((format(printf, 2, 3)))
failed(inquiry *i, const char *format, ...) {
    va_list args;
    va_start(args, format);
    vsnprintf(i->why, i->size, format, args);
    va_end(args);
    return FAILED;
}

/* A variable that is set and not empty, or NULL. */
static const char *variable(const char *name) {
    const char *value = getenv(name);
    return value != NULL && *value != '\0' ? value : NULL;
}

/* Of what a file or an answer holds.  The access key stands in a URL as it
   is: AWS makes them of letters and digits. */
static outcome take(inquiry *i, const char *from, const char *access,
                    const char *secret, const char *session) {
    aws_credentials *c = i->c;
    if (access == NULL || *access == '\0' || secret == NULL || *secret == '\0')
        return failed(i, "%s has no access key, or no secret key", from);
    for (const char *at = access; *at != '\0'; at++)
        if (!isalnum((unsigned char)*at))
            return failed(i,
                          "%s: the access key has other characters than "
                          "letters and digits",
                          from);
    c->access_key = strdup(access);
    c->secret_key = strdup(secret);
    if (session != NULL && *session != '\0')
        c->session_token = strdup(session);
    if (c->access_key == NULL || c->secret_key == NULL ||
        (session != NULL && *session != '\0' && c->session_token == NULL))
        return failed(i, "out of memory");
    return GOT;
}

/* "2026-01-31T23:59:59Z", also with a fraction of the second. */
static int64_t parse_time(const char *text) {
    struct tm tm = {0};
    if (text == NULL || strptime(text, "%Y-%m-%dT%H:%M:%S", &tm) == NULL)
        return 0;
    return timegm(&tm);
}

/* ---- environment ---- */

static outcome from_environment(inquiry *i) {
    const char *access = variable("AWS_ACCESS_KEY_ID");
    if (access == NULL)
        return ABSENT;
    return take(i, "the environment", access, variable("AWS_SECRET_ACCESS_KEY"),
                variable("AWS_SESSION_TOKEN"));
}

/* ---- files ---- */

/* The whole text without the white space at its end; NULL with errno. */
static char *read_file(const char *path) {
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

/* `key = value` of [section], or NULL.  The value is a part of `text`, of which
   nothing is changed: *len says how long it is. */
static const char *ini_value(const char *text, const char *section,
                             const char *key, size_t *len) {
    size_t section_len = strlen(section), key_len = strlen(key);
    bool inside = false;
    while (*text != '\0') {
        size_t n = strcspn(text, "\r\n");
        const char *at = text, *end = text + n;
        while (end > at && isspace((unsigned char)end[-1]))
            end--;
        text += n + strspn(text + n, "\r\n");
        if (*at == '[' && end[-1] == ']') {
            at++, end--;
            inside = (size_t)(end - at) == section_len &&
                     memcmp(at, section, section_len) == 0;
            continue;
        }
        if (!inside || strncmp(at, key, key_len) != 0)
            continue;
        at += key_len;
        at += strspn(at, " \t");
        if (*at != '=')
            continue;
        at++;
        at += strspn(at, " \t");
        *len = at < end ? (size_t)(end - at) : 0;
        return at;
    }
    return NULL;
}

static char *ini_copy(const char *text, const char *section, const char *key) {
    size_t len;
    const char *value = ini_value(text, section, key, &len);
    return value != NULL ? strndup(value, len) : NULL;
}

/* $VARIABLE, or ~/.aws/NAME; the caller's (free). */
static char *aws_file(const char *name_of_variable, const char *name) {
    const char *path = variable(name_of_variable), *home = variable("HOME");
    char *made;
    if (path != NULL)
        return strdup(path);
    if (home == NULL) {
        struct passwd *user = getpwuid(getuid());
        home = user != NULL ? user->pw_dir : "";
    }
    return asprintf(&made, "%s/.aws/%s", home, name) == -1 ? NULL : made;
}

static outcome from_section(inquiry *i, const char *path, const char *section) {
    char *text = path != NULL ? read_file(path) : NULL;
    outcome result = ABSENT;
    if (text == NULL)
        return ABSENT;
    char *access = ini_copy(text, section, "aws_access_key_id");
    char *secret = ini_copy(text, section, "aws_secret_access_key");
    char *session = ini_copy(text, section, "aws_session_token");
    if (access != NULL || secret != NULL)
        result = take(i, path, access, secret, session);
    aws_free(access);
    aws_free(secret);
    aws_free(session);
    aws_free(text);
    return result;
}

static outcome from_profile(inquiry *i) {
    const char *profile = i->q->profile;
    if (profile == NULL)
        profile = variable("AWS_PROFILE");
    bool named = profile != NULL;
    if (!named)
        profile = "default";
    char *credentials = aws_file("AWS_SHARED_CREDENTIALS_FILE", "credentials");
    char *config = aws_file("AWS_CONFIG_FILE", "config");
    char section[256];
    snprintf(section, sizeof(section), "%s%s",
             strcmp(profile, "default") == 0 ? "" : "profile ", profile);

    outcome result = from_section(i, credentials, profile);
    if (result == ABSENT)
        result = from_section(i, config, section);
    if (result == ABSENT && named)
        result = failed(i,
                        "profile %s has no aws_access_key_id in %s and %s "
                        "(roles and credential_process in profiles are not "
                        "supported)",
                        profile, credentials, config);
    free(credentials);
    free(config);
    return result;
}

/* ---- web identity: the security token service ---- */

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

static outcome read_sts(inquiry *i, const char *xml) {
    char *access = xml_copy(xml, "AccessKeyId");
    char *secret = xml_copy(xml, "SecretAccessKey");
    char *session = xml_copy(xml, "SessionToken");
    char *expires = xml_copy(xml, "Expiration");
    outcome result = take(i, "the answer of the security token service", access,
                          secret, session);
    i->c->expires_s = parse_time(expires);
    aws_free(access);
    aws_free(secret);
    aws_free(session);
    free(expires);
    return result;
}

static outcome ask_sts(inquiry *i, const char *role, const char *identity) {
    const char *endpoint = variable("AWS_ENDPOINT_URL_STS"),
               *session = variable("AWS_ROLE_SESSION_NAME");
    const char *region = i->q->region != NULL ? i->q->region : "us-east-1";
    char *encoded_role = aws_percent(role), *token = aws_percent(identity);
    char *name = aws_percent(session != NULL ? session : "capture-sidecar");
    char *url = NULL, *form = NULL;
    outcome result = FAILED;
    if (encoded_role == NULL || token == NULL || name == NULL ||
        (endpoint != NULL
             ? asprintf(&url, "%s/", endpoint)
             : asprintf(&url, "https://sts.%s.amazonaws.com%s/", region,
                        strncmp(region, "cn-", 3) == 0 ? ".cn" : "")) == -1 ||
        asprintf(&form,
                 "Action=AssumeRoleWithWebIdentity&Version=2011-06-15&RoleArn="
                 "%s&RoleSessionName=%s&WebIdentityToken=%s",
                 encoded_role, name, token) == -1) {
        failed(i, "out of memory");
    } else {
        char *xml = fetch(&(fetch_request){.method = "POST",
                                           .url = url,
                                           .body = form,
                                           .timeout_ms = i->q->timeout_ms},
                          i->why, i->size);
        if (xml != NULL)
            result = read_sts(i, xml);
        fetch_free(xml);
    }
    aws_free(form);
    aws_free(token);
    free(url);
    free(name);
    free(encoded_role);
    return result;
}

static outcome from_web_identity(inquiry *i) {
    const char *role = variable("AWS_ROLE_ARN"),
               *file = variable("AWS_WEB_IDENTITY_TOKEN_FILE");
    if (file == NULL)
        return ABSENT;
    if (role == NULL)
        return failed(i, "AWS_WEB_IDENTITY_TOKEN_FILE is set without "
                         "AWS_ROLE_ARN");
    char *identity = read_file(file); /* kubelet changes it: read anew */
    if (identity == NULL || *identity == '\0') {
        aws_free(identity);
        return failed(i,
                      "AWS_WEB_IDENTITY_TOKEN_FILE = %s cannot be read, or "
                      "is empty",
                      file);
    }
    outcome result = ask_sts(i, role, identity);
    aws_free(identity);
    return result;
}

/* ---- endpoints that answer with JSON ---- */

static const char *json_text(const json_t *object, const char *key) {
    return json_string_value(json_object_get(object, key));
}

static outcome read_json(inquiry *i, const char *url, const char *text) {
    json_t *object = json_loads(text, 0, NULL);
    if (!json_is_object(object)) {
        json_decref(object);
        return failed(i, "%s does not answer with a JSON object", url);
    }
    outcome result =
        take(i, url, json_text(object, "AccessKeyId"),
             json_text(object, "SecretAccessKey"), json_text(object, "Token"));
    i->c->expires_s = parse_time(json_text(object, "Expiration"));
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
    const char *relative = variable("AWS_CONTAINER_CREDENTIALS_RELATIVE_URI"),
               *full = variable("AWS_CONTAINER_CREDENTIALS_FULL_URI");
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
static outcome authorization(inquiry *i, char **line) {
    const char *file = variable("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE"),
               *token = variable("AWS_CONTAINER_AUTHORIZATION_TOKEN");
    char *text = NULL;
    *line = NULL;
    if (file != NULL && (text = read_file(file)) == NULL)
        return failed(i, "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE = %s: %s",
                      file, strerror(errno));
    if (text != NULL)
        token = text;
    if (token != NULL && strpbrk(token, "\r\n") != NULL) {
        aws_free(text);
        return failed(i, "the container's authorization token has several "
                         "lines");
    }
    if (token != NULL && asprintf(line, "Authorization: %s", token) == -1)
        *line = NULL;
    aws_free(text);
    return GOT;
}

static outcome from_container(inquiry *i) {
    char *url = aws_container_url(i->why, i->size), *header;
    if (url == NULL)
        return i->why[0] == '\0' ? ABSENT : FAILED;
    outcome result = authorization(i, &header);
    if (result == GOT) {
        char *text = fetch(&(fetch_request){.method = "GET",
                                            .url = url,
                                            .headers = {header},
                                            .direct = true,
                                            .timeout_ms = i->q->timeout_ms},
                           i->why, i->size);
        result = text != NULL ? read_json(i, url, text) : FAILED;
        fetch_free(text);
    }
    aws_free(header);
    free(url);
    return result;
}

/* ---- EC2 metadata, version 2 ---- */

static char *ask_metadata(inquiry *i, const char *method, const char *path,
                          const char *header) {
    const char *endpoint = variable("AWS_EC2_METADATA_SERVICE_ENDPOINT");
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

static outcome ask_instance(inquiry *i, const char *session) {
    static const char roles[] = "/latest/meta-data/iam/security-credentials/";
    char *role = ask_metadata(i, "GET", roles, session), *path = NULL;
    outcome result = FAILED;
    if (role == NULL)
        return FAILED;
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

static outcome from_instance(inquiry *i) {
    const char *disabled = variable("AWS_EC2_METADATA_DISABLED");
    char *header;
    if (disabled != NULL && strcasecmp(disabled, "true") == 0)
        return ABSENT;
    char *token = ask_metadata(i, "PUT", "/latest/api/token",
                               "X-aws-ec2-metadata-token-ttl-seconds: 21600");
    if (token == NULL)
        return FAILED;
    token[strcspn(token, "\r\n")] = '\0';
    outcome result = FAILED;
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
    outcome (*get)(inquiry *i);
} providers[] = {
    {AWS_ENVIRONMENT, "environment", from_environment},
    {AWS_WEB_IDENTITY, "web-identity", from_web_identity},
    {AWS_PROFILE, "profile", from_profile},
    {AWS_CONTAINER, "container", from_container},
    {AWS_INSTANCE, "instance", from_instance},
};

int aws_credentials_get(const aws_query *q, aws_credentials *into, char *why,
                        size_t size) {
    memset(into, 0, sizeof(*into));
    for (size_t n = 0; n < sizeof(providers) / sizeof(*providers); n++) {
        char reason[512] = "";
        inquiry i = {q, into, reason, sizeof(reason)};
        if (q->provider != AWS_CHAIN && q->provider != providers[n].provider)
            continue;
        outcome result = providers[n].get(&i);
        if (result == GOT)
            return 0;
        if (result == FAILED) {
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
