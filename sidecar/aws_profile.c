/*
 * Profiles of AWS's shared files, as AWS's own tools read them: keys, roles with
 * what they are assumed by, and programs that print keys.
 */
#define _GNU_SOURCE 1 /* asprintf */

#include <ctype.h>
#include <errno.h>
#include <pwd.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "sidecar/aws_internal.h"
#include "sidecar/command.h"

#define DURATION_MIN 900
#define DURATION_MAX 43200
#define CHAIN_MAX 8 /* roles that are assumed one by another */

/* ---- files ---- */

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

static bool ini_has(const char *text, const char *section) {
    size_t len = strlen(section);
    for (; *text != '\0'; text += strspn(text, "\r\n")) {
        const char *end = text + strcspn(text, "\r\n"), *last = end;
        while (last > text && isspace((unsigned char)last[-1]))
            last--;
        if (*text == '[' && (size_t)(last - text) == len + 2 &&
            last[-1] == ']' && memcmp(text + 1, section, len) == 0)
            return true;
        text = end;
    }
    return false;
}

static char *ini_copy(const char *text, const char *section, const char *key) {
    size_t len;
    const char *value = ini_value(text, section, key, &len);
    return value != NULL ? strndup(value, len) : NULL;
}

/* $VARIABLE, or ~/.aws/NAME; the caller's (free). */
static char *aws_file(const char *name_of_variable, const char *name) {
    const char *path = aws_variable(name_of_variable),
               *home = aws_variable("HOME");
    char *made;
    if (path != NULL)
        return strdup(path);
    if (home == NULL) {
        struct passwd *user = getpwuid(getuid());
        home = user != NULL ? user->pw_dir : "";
    }
    return asprintf(&made, "%s/.aws/%s", home, name) == -1 ? NULL : made;
}

enum { CREDENTIALS, CONFIG, FILES };

/* The files, and the profiles on the way to the first keys. */
typedef struct {
    char *path[FILES];
    char *text[FILES]; /* NULL: there is no such file */
    const char *visited[CHAIN_MAX];
    size_t nvisited;
} lookup;

/* In the file of credentials a profile's section has its name alone. */
static void section_of(int file, const char *profile, char into[256]) {
    bool plain = file == CREDENTIALS || strcmp(profile, "default") == 0;
    snprintf(into, 256, "%s%s", plain ? "" : "profile ", profile);
}

/* What one file says, or NULL; the caller's (aws_free). */
static char *said_in(const lookup *l, int file, const char *profile,
                     const char *key) {
    char section[256];
    section_of(file, profile, section);
    return l->text[file] != NULL ? ini_copy(l->text[file], section, key) : NULL;
}

/* What either says: the file of credentials comes first. */
static char *said(const lookup *l, const char *profile, const char *key) {
    char *value = said_in(l, CREDENTIALS, profile, key);
    return value != NULL ? value : said_in(l, CONFIG, profile, key);
}

static bool says(const lookup *l, const char *profile, const char *key) {
    char *value = said(l, profile, key);
    aws_free(value);
    return value != NULL;
}

static bool exists(const lookup *l, const char *profile) {
    for (int file = 0; file < FILES; file++) {
        char section[256];
        section_of(file, profile, section);
        if (l->text[file] != NULL && ini_has(l->text[file], section))
            return true;
    }
    return false;
}

/* ---- what is in a profile itself ---- */

static bool has_keys(const lookup *l, const char *profile) {
    return says(l, profile, "aws_access_key_id") ||
           says(l, profile, "aws_secret_access_key");
}

static aws_outcome from_keys(const lookup *l, aws_inquiry *i, int file,
                             const char *profile) {
    aws_outcome result = AWS_ABSENT;
    char *access = said_in(l, file, profile, "aws_access_key_id");
    char *secret = said_in(l, file, profile, "aws_secret_access_key");
    char *session = said_in(l, file, profile, "aws_session_token");
    if (access != NULL || secret != NULL)
        result = aws_take(i, l->path[file], access, secret, session);
    aws_free(access);
    aws_free(secret);
    aws_free(session);
    return result;
}

/* The JSON that AWS's tools want of such a program. */
static aws_outcome from_process(const lookup *l, aws_inquiry *i,
                                const char *profile) {
    char *line = said(l, profile, "credential_process"), *output = NULL;
    char *argv[COMMAND_WORDS + 1], name[300];
    aws_outcome result = AWS_FAILED;
    if (line == NULL)
        return AWS_ABSENT;
    snprintf(name, sizeof(name), "credential_process of profile %s", profile);
    if (command_split_quoted(line, argv) == -1 || argv[0] == NULL)
        aws_failed(i, "%s: a quote has no end, or there is no program", name);
    else
        output = command_run(name, argv, i->q->timeout_ms, i->why, i->size);
    if (output != NULL)
        result = aws_take_process(i, name, output);
    command_free(output);
    aws_free(line);
    return result;
}

/* Logins in a browser: a daemon has nobody to ask. */
static aws_outcome no_login(const lookup *l, aws_inquiry *i,
                            const char *profile) {
    static const char *const keys[] = {"sso_session", "sso_start_url",
                                       "sso_account_id", "login_session"};
    for (size_t n = 0; n < sizeof(keys) / sizeof(*keys); n++)
        if (says(l, profile, keys[n]))
            return aws_failed(
                i,
                "%s of profile %s is not supported: it needs somebody who logs "
                "in. Give the profile a role_arn, keys, or credential_process "
                "= aws configure export-credentials --profile ... --format "
                "process",
                keys[n], profile);
    return AWS_ABSENT;
}

static aws_outcome from_itself(const lookup *l, aws_inquiry *i,
                               const char *profile) {
    aws_outcome result = no_login(l, i, profile);
    if (result == AWS_ABSENT)
        result = from_keys(l, i, CREDENTIALS, profile);
    if (result == AWS_ABSENT)
        result = from_process(l, i, profile);
    if (result == AWS_ABSENT)
        result = from_keys(l, i, CONFIG, profile);
    return result;
}

/* ---- roles ---- */

static aws_outcome from_any(lookup *l, aws_inquiry *i, const char *profile);

/* A name that the profile has for a source that is none of the files. */
static aws_outcome from_named(aws_inquiry *i, const char *profile,
                              const char *name) {
    static const struct {
        const char *name;
        aws_source get;
    } known[] = {{"Environment", aws_from_environment},
                 {"Ec2InstanceMetadata", aws_from_instance},
                 {"EcsContainer", aws_from_container}};
    for (size_t n = 0; n < sizeof(known) / sizeof(*known); n++) {
        if (strcmp(name, known[n].name) != 0)
            continue;
        aws_outcome result = known[n].get(i);
        return result != AWS_ABSENT
                   ? result
                   : aws_failed(i,
                                "credential_source = %s of profile %s: there "
                                "are none",
                                name, profile);
    }
    return aws_failed(i,
                      "credential_source = %s of profile %s: it must be "
                      "Environment, Ec2InstanceMetadata or EcsContainer",
                      name, profile);
}

/* A profile may be its own source if it has keys. */
static aws_outcome from_source(lookup *l, aws_inquiry *i, const char *profile,
                               const char *source) {
    bool itself = strcmp(source, profile) == 0 && has_keys(l, profile);
    for (size_t n = 0; n < l->nvisited && !itself; n++)
        if (strcmp(l->visited[n], source) == 0)
            return aws_failed(i,
                              "source_profile = %s of profile %s: it leads "
                              "back to where it began, and has no keys",
                              source, profile);
    if (!exists(l, source))
        return aws_failed(i,
                          "source_profile = %s of profile %s: there is no such "
                          "profile in %s and %s",
                          source, profile, l->path[CREDENTIALS],
                          l->path[CONFIG]);
    aws_outcome result = from_any(l, i, source);
    return result != AWS_ABSENT
               ? result
               : aws_failed(i,
                            "source_profile = %s of profile %s has no "
                            "aws_access_key_id, role_arn or credential_process",
                            source, profile);
}

/* The credentials that assume a profile's role. */
static aws_outcome from_assumer(lookup *l, aws_inquiry *i,
                                const char *profile) {
    char *source = said(l, profile, "source_profile"),
         *name = said(l, profile, "credential_source");
    aws_outcome result;
    if ((source == NULL) == (name == NULL))
        result = aws_failed(i,
                            "role_arn of profile %s needs source_profile or "
                            "credential_source%s",
                            profile, source != NULL ? ", not both" : "");
    else if (says(l, profile, "mfa_serial"))
        result = aws_failed(i,
                            "mfa_serial of profile %s is not supported: it "
                            "needs somebody who types a code",
                            profile);
    else if (source != NULL)
        result = from_source(l, i, profile, source);
    else
        result = from_named(i, profile, name);
    free(source);
    free(name);
    return result;
}

/* duration_seconds; 0 when it is not said, -1 when it is nothing good. */
static long duration(const char *text) {
    char *end;
    if (text == NULL)
        return 0;
    long value = strtol(text, &end, 10);
    return *end == '\0' && value >= DURATION_MIN && value <= DURATION_MAX
               ? value
               : -1;
}

static aws_outcome from_role(lookup *l, aws_inquiry *i, const char *profile,
                             const char *arn) {
    char *identity = said(l, profile, "web_identity_token_file"),
         *session = said(l, profile, "role_session_name"),
         *external = said(l, profile, "external_id"),
         *seconds = said(l, profile, "duration_seconds");
    const aws_role role = {arn, session, external, duration(seconds)};
    aws_credentials by = {0};
    aws_inquiry assumer = *i;
    aws_outcome result;
    assumer.c = &by;
    if (role.duration_s == -1)
        result = aws_failed(i,
                            "duration_seconds = %s of profile %s: it must be "
                            "from %d to %d",
                            seconds, profile, DURATION_MIN, DURATION_MAX);
    else if (identity != NULL)
        result = aws_assume_by_web_identity(i, &role, identity);
    else if ((result = from_assumer(l, &assumer, profile)) == AWS_GOT)
        result = aws_assume(i, &role, &by);
    aws_credentials_free(&by);
    free(identity);
    free(session);
    aws_free(external);
    free(seconds);
    return result;
}

/* A role comes before keys, which are then what assumes it; a profile that
   another one has as its source is taken for its keys, if it has some. */
static aws_outcome from_any(lookup *l, aws_inquiry *i, const char *profile) {
    if (l->nvisited == CHAIN_MAX)
        return aws_failed(i, "profile %s: more than %d roles, one by another",
                          profile, CHAIN_MAX);
    bool is_source = l->nvisited > 0;
    l->visited[l->nvisited++] = profile;
    char *arn = said(l, profile, "role_arn");
    aws_outcome result = arn != NULL && !(is_source && has_keys(l, profile))
                             ? from_role(l, i, profile, arn)
                             : from_itself(l, i, profile);
    free(arn);
    l->nvisited--;
    return result;
}

aws_outcome aws_from_profile(aws_inquiry *i) {
    const char *profile =
        i->q->profile != NULL ? i->q->profile : aws_variable("AWS_PROFILE");
    bool named = profile != NULL;
    lookup l = {.path = {aws_file("AWS_SHARED_CREDENTIALS_FILE", "credentials"),
                         aws_file("AWS_CONFIG_FILE", "config")}};
    aws_outcome result = AWS_ABSENT;
    for (int file = 0; file < FILES; file++)
        if (l.path[file] != NULL)
            l.text[file] = aws_read_file(l.path[file]);
    if (!named)
        profile = "default";
    if (exists(&l, profile))
        result = from_any(&l, i, profile);
    else if (named)
        result = aws_failed(i, "there is no profile %s in %s and %s", profile,
                            l.path[CREDENTIALS], l.path[CONFIG]);
    for (int file = 0; file < FILES; file++) {
        aws_free(l.text[file]);
        free(l.path[file]);
    }
    return result;
}
