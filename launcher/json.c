/* ---INLINE-JSON and ---JSON-FILE: keys are the flags' long names. */
#include "launcher/flags.h"

#include <cjson/cJSON.h>
#include <ctype.h>
#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#define FILE_MAX (1 << 20)

/* ---- base64 ---- */

static int sextet(char c) {
    static const char digits[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrs"
                                 "tuvwxyz0123456789+/";
    const char *at = c != '\0' ? strchr(digits, c) : NULL;
    return at != NULL ? (int)(at - digits) : -1;
}

/* A string that the caller frees, or NULL.  Line breaks may be between. */
static char *decode_base64(const char *text) {
    char *out = malloc(strlen(text) + 1);
    size_t n = 0, digits = 0;
    unsigned bits = 0;
    if (out == NULL)
        abort();
    for (; *text != '\0' && *text != '='; text++) {
        if (isspace((unsigned char)*text))
            continue;
        int six = sextet(*text);
        if (six == -1)
            break;
        bits = bits << 6 | (unsigned)six;
        if (++digits % 4 != 1)
            out[n++] = (char)(bits >> (6 - 2 * ((digits - 1) % 4)) & 0xff);
    }
    text += strspn(text, "= \t\r\n");
    out[n] = '\0';
    if (*text == '\0' && digits % 4 != 1 && strlen(out) == n)
        return out;
    free(out);
    return NULL;
}

/* ---- values ---- */

/* Scalars as text, into `buffer` where they are numbers; NULL: not given, or
   a mistake. */
static const char *scalar(options *o, int id, const cJSON *item,
                          const char *from, char *buffer, size_t size) {
    if (cJSON_IsNull(item))
        return NULL;
    if (cJSON_IsString(item))
        return item->valuestring;
    if (cJSON_IsBool(item) && flags[id].kind == FLAG_SWITCH)
        return cJSON_IsTrue(item) ? "true" : "false";
    if (cJSON_IsNumber(item) && flags[id].kind == FLAG_NUMBER) {
        if (item->valuedouble < 0 || item->valuedouble > 1e15 ||
            item->valuedouble != floor(item->valuedouble)) {
            options_mistake(o, "%s %g: give a whole number", from,
                            item->valuedouble);
            return NULL;
        }
        snprintf(buffer, size, "%.0f", item->valuedouble);
        return buffer;
    }
    options_mistake(o, "%s: give %s", from,
                    flags[id].kind == FLAG_SWITCH   ? "true or false"
                    : flags[id].kind == FLAG_NUMBER ? "a number"
                                                    : "a string");
    return NULL;
}

/* "Name: value", as the workflow's schema describes --setHeader. */
static void header_line(options *o, int id, const char *from,
                        const char *line) {
    const char *colon = strchr(line, ':');
    char name[256];
    if (colon == NULL || colon == line ||
        (size_t)(colon - line) >= sizeof(name)) {
        options_mistake(o,
                        "%s: \"%.100s\" is no \"Name: value\", as the first "
                        "one is",
                        from, line);
        return;
    }
    snprintf(name, sizeof(name), "%.*s", (int)(colon - line), line);
    colon++;
    options_pair(o, id, name, colon + strspn(colon, " \t"));
}

static bool is_list_of_strings(const cJSON *array) {
    const cJSON *item;
    if (!cJSON_IsArray(array))
        return false;
    cJSON_ArrayForEach(item, array) if (!cJSON_IsString(item)) return false;
    return true;
}

/* ["Name", "value", ...].  A header's name has no colon, so that for
   --setHeader ["Name: value", ...] cannot be taken for it. */
static void list(options *o, int id, const cJSON *array, const char *from) {
    const cJSON *item;
    if (cJSON_IsNull(array))
        return;
    if (!is_list_of_strings(array)) {
        options_mistake(o,
                        "%s: give a list of strings, as [\"NAME\", "
                        "\"VALUE\", ...]",
                        from);
        return;
    }
    item = array->child;
    if (id == FLAG_SET_HEADER && item != NULL &&
        strchr(item->valuestring, ':') != NULL) {
        cJSON_ArrayForEach(item, array)
            header_line(o, id, from, item->valuestring);
        return;
    }
    if (cJSON_GetArraySize(array) % 2 != 0) {
        options_mistake(o, "%s: the last name has no value: give pairs", from);
        return;
    }
    for (; item != NULL; item = item->next->next)
        options_pair(o, id, item->valuestring, item->next->valuestring);
}

static void read_document(options *o, const char *text) {
    const char *end = NULL;
    cJSON *document = cJSON_ParseWithOpts(text, &end, 1);
    const cJSON *item;
    char from[160], buffer[32];

    if (document == NULL)
        options_mistake(o, "the JSON is wrong at byte %td", end - text);
    else if (!cJSON_IsObject(document))
        options_mistake(o, "the JSON is no object: give {\"listenPort\": 9200, "
                           "...}");
    else
        cJSON_ArrayForEach(item, document) {
            int id = flag_find(item->string);
            if (id == -1) {
                flag_unknown(o, "JSON key ", item->string);
                continue;
            }
            snprintf(from, sizeof(from), "JSON key %s", item->string);
            if (flags[id].kind == FLAG_PAIRS) {
                list(o, id, item, from);
                continue;
            }
            const char *value =
                scalar(o, id, item, from, buffer, sizeof(buffer));
            if (value != NULL)
                options_set(o, id, from, value);
        }
    cJSON_Delete(document);
}

void options_read_json(options *o, const char *text) {
    text += strspn(text, " \t\r\n");
    if (*text == '{' || *text == '[') {
        read_document(o, text);
        return;
    }
    char *decoded = decode_base64(text);
    if (decoded == NULL) {
        options_mistake(o, "---INLINE-JSON: this is neither JSON (it would "
                           "begin with {) nor base64");
        return;
    }
    read_document(o, decoded);
    free(decoded);
}

void options_read_json_file(options *o, const char *path) {
    FILE *f = fopen(path, "re");
    char *text = f != NULL ? malloc(FILE_MAX + 1) : NULL;
    if (text == NULL) {
        options_mistake(o, "---JSON-FILE %s: %s", path, strerror(errno));
        if (f != NULL)
            fclose(f);
        return;
    }
    size_t n = fread(text, 1, FILE_MAX, f);
    text[n] = '\0';
    if (ferror(f) || n == FILE_MAX)
        options_mistake(o,
                        "---JSON-FILE %s: it cannot be read, or is larger "
                        "than 1 MiB",
                        path);
    else
        options_read_json(o, text);
    fclose(f);
    free(text);
}
