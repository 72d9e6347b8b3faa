/* A token from a program of the operator's. */
#define _GNU_SOURCE 1 /* explicit_bzero */

#include <ctype.h>
#include <jansson.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include <openssl/evp.h>

#include "sidecar/command.h"
#include "sidecar/kafka_token.h"

/* ---- what it printed ---- */

/* The payload between the two dots; NULL when there is none. */
static json_t *jwt_payload(const char *token) {
    const char *at = strchr(token, '.'), *end;
    if (at == NULL || (end = strchr(++at, '.')) == NULL)
        return NULL;
    size_t len = (size_t)(end - at), padded = (len + 3) / 4 * 4;
    char *text = malloc(padded + 1), *decoded = malloc(padded + 1);
    json_t *payload = NULL;
    if (text != NULL && decoded != NULL) {
        memset(text, '=', padded);
        for (size_t i = 0; i < len; i++)
            text[i] = at[i] == '-' ? '+' : at[i] == '_' ? '/' : at[i];
        int n = EVP_DecodeBlock((unsigned char *)decoded,
                                (const unsigned char *)text, (int)padded);
        n -= (int)(padded - len);
        if (n > 0)
            payload = json_loadb(decoded, (size_t)n, 0, NULL);
    }
    free(text);
    free(decoded);
    return payload;
}

static int read_jwt(const char *text, kafka_token *into) {
    json_t *payload = jwt_payload(text);
    json_t *exp = json_object_get(payload, "exp");
    const char *sub = json_string_value(json_object_get(payload, "sub"));
    int rc = -1;
    if (json_is_number(exp)) {
        into->expires_ms = (int64_t)(json_number_value(exp) * 1000);
        snprintf(into->principal, sizeof(into->principal), "%s",
                 sub != NULL ? sub : "");
        into->value = strdup(text);
        rc = into->value != NULL ? 0 : -1;
    }
    json_decref(payload);
    return rc;
}

/* What an OAuth token endpoint answers with. */
static int read_answer(const char *text, int64_t now_ms, kafka_token *into) {
    json_t *object = json_loads(text, 0, NULL);
    const char *token =
        json_string_value(json_object_get(object, "access_token"));
    json_t *in = json_object_get(object, "expires_in");
    int rc = -1;
    if (token != NULL && json_is_number(in)) {
        into->expires_ms = now_ms + (int64_t)(json_number_value(in) * 1000);
        into->value = strdup(token);
        rc = into->value != NULL ? 0 : -1;
    } else if (token != NULL) {
        rc = read_jwt(token, into);
    }
    json_decref(object);
    return rc;
}

int kafka_token_parse(const char *text, int64_t now_ms, kafka_token *into,
                      char *why, size_t size) {
    while (isspace((unsigned char)*text))
        text++;
    char *copy = strdup(text);
    if (copy == NULL) {
        snprintf(why, size, "out of memory");
        return -1;
    }
    size_t len = strlen(copy);
    while (len > 0 && isspace((unsigned char)copy[len - 1]))
        copy[--len] = '\0';
    int rc =
        *copy == '{' ? read_answer(copy, now_ms, into) : read_jwt(copy, into);
    explicit_bzero(copy, len);
    free(copy);
    if (rc == -1)
        snprintf(why, size,
                 "token.command printed neither a JWT with exp, nor JSON with "
                 "access_token and expires_in");
    return rc;
}

/* ---- the program ---- */

int kafka_token_from_command(const config *config, kafka_token *into, char *why,
                             size_t size) {
    char *argv[COMMAND_WORDS + 1], *line = strdup(config->token_command);
    int rc = -1;
    if (line == NULL) {
        snprintf(why, size, "out of memory");
        return -1;
    }
    command_split(line, argv);
    char *output = command_run("token.command", argv,
                               config->token_timeout / 1000000, why, size);
    if (output != NULL)
        rc = kafka_token_parse(output, (int64_t)time(NULL) * 1000, into, why,
                               size);
    command_free(output);
    free(line);
    return rc;
}
