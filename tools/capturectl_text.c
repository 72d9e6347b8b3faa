#define _GNU_SOURCE 1 /* strptime, timegm */

/* Bytes and times as text and JSON. */

#include "tools/capturectl_text.h"

#include "proto/utf8.h"
#include "tools/capturectl.h"

#include <inttypes.h>
#include <openssl/evp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define NS_PER_SECOND INT64_C(1000000000)

/* what EVP_EncodeBlock gets at a time: whole groups of three, within an int */
#define BASE64_PART (3 * 1024 * 1024)

const char *text_time(int64_t ns, char out[TEXT_TIME_SIZE]) {
    struct tm tm;
    char day[24];
    int64_t nanos = ns % NS_PER_SECOND;
    time_t seconds = (time_t)(ns / NS_PER_SECOND);

    if (nanos < 0) {
        nanos += NS_PER_SECOND;
        seconds--;
    }

    gmtime_r(&seconds,
             &tm); /* 64 bits of nanoseconds stay between 1677 and 2262 */
    strftime(day, sizeof(day), "%Y-%m-%dT%H:%M:%S", &tm);
    snprintf(out, TEXT_TIME_SIZE, "%s.%09dZ", day, (int)nanos);

    return out;
}

/* -N and a unit: N of it before now. */
static bool before_now(const char *text, int64_t *ns) {
    static const char units[] = "smhd";
    static const int64_t seconds[] = {1, 60, 3600, 86400};
    char *end;
    const char *unit;
    long long n = strtoll(text, &end, 10);

    unit = *end ? strchr(units, *end) : NULL;

    if (*text != '-' || end == text || unit == NULL || end[1] != '\0' ||
        n < -1000000) {
        return false;
    }

    *ns = ctl_now_ns() + n * seconds[unit - units] * NS_PER_SECOND;

    return true;
}

static bool since_1970(const char *text, int64_t *ns) {
    char *end;
    double seconds = strtod(text, &end);

    if (end == text || *end != '\0' || !(seconds >= 0 && seconds < 9e9)) {
        return false;
    }

    *ns = (int64_t)(seconds * NS_PER_SECOND);

    return true;
}

static bool rfc3339(const char *text, int64_t *ns) {
    static const char *const forms[] = {"%Y-%m-%dT%H:%M:%S", "%Y-%m-%dT%H:%M",
                                        "%Y-%m-%d %H:%M:%S", "%Y-%m-%d"};
    double fraction = 0;

    for (size_t i = 0; i < sizeof(forms) / sizeof(forms[0]); i++) {
        struct tm tm = {0};
        char *end = strptime(text, forms[i], &tm);

        if (end != NULL && *end == '.') {
            fraction = strtod(end, &end);
        }

        if (end != NULL && (*end == '\0' || strcmp(end, "Z") == 0)) {
            *ns = timegm(&tm) * NS_PER_SECOND +
                  (int64_t)(fraction * NS_PER_SECOND);
            return true;
        }

        fraction = 0;
    }

    return false;
}

int64_t ctl_time_option(const char *text) {
    int64_t ns = 0;

    if (!before_now(text, &ns) && !since_1970(text, &ns) &&
        !rfc3339(text, &ns)) {
        ctl_remark("%s: not a time: 2026-01-31T12:00:00Z, seconds since 1970, "
                   "or -15m",
                   text);
        exit(CTL_USAGE);
    }

    return ns;
}

bool text_is_printable(const void *data, size_t len) {
    const unsigned char *s = data;

    for (size_t i = 0; i < len; i++) {
        if ((s[i] < 0x20 && s[i] != '\t' && s[i] != '\r' && s[i] != '\n') ||
            s[i] == 0x7f) {
            return false;
        }

        /* U+0080 to U+009F: terminals take some of them for escapes */
        if (s[i] == 0xc2 && i + 1 < len && s[i + 1] < 0xa0) {
            return false;
        }
    }

    return utf8_valid(data, len);
}

static bool is_plain(unsigned char c) {
    return c >= 0x20 && c < 0x7f;
}

void text_put_escaped(const void *data, size_t len) {
    const unsigned char *s = data;

    for (size_t i = 0; i < len; i++) {
        if (is_plain(s[i]) && s[i] != '\\') {
            ctl_put(s + i, 1);
        } else {
            ctl_print("\\x%02x", s[i]);
        }
    }
}

void text_put_dotted(const void *data, size_t len) {
    const unsigned char *s = data;

    for (size_t i = 0; i < len; i++) {
        ctl_put(is_plain(s[i]) ? (const char *)s + i : ".", 1);
    }
}

char *text_base64(const void *bytes, size_t len) {
    const unsigned char *data = bytes;
    char *text = ctl_alloc((len + 2) / 3 * 4 + 1);
    unsigned char *to = (unsigned char *)text;

    *to = '\0';

    while (len > 0) {
        size_t part = len < BASE64_PART ? len : BASE64_PART;

        to += EVP_EncodeBlock(to, data, (int)part);
        data += part;
        len -= part;
    }

    return text;
}

void text_add_bytes(cJSON *object, const void *data, size_t len) {
    char *base64 = text_base64(data, len);

    cJSON_AddStringToObject(object, "data", base64);
    free(base64);

    if (text_is_printable(data, len)) {
        text_add_string(object, "text", data, len);
    }
}

void text_add_string(cJSON *object, const char *name, const void *data,
                     size_t len) {
    char *s = ctl_alloc(len + 1);

    for (size_t i = 0; i < len; i++) {
        char c = ((const char *)data)[i];

        s[i] = c ? c : '?';
    }

    s[len] = '\0';
    cJSON_AddStringToObject(object, name, s);
    free(s);
}

void text_add_int(cJSON *object, const char *name, int64_t value) {
    char digits[24];

    snprintf(digits, sizeof(digits), "%" PRId64, value);
    cJSON_AddRawToObject(object, name, digits);
}

void text_put_json(cJSON *object) {
    char *line = cJSON_PrintUnformatted(object);

    if (line == NULL) {
        ctl_die("out of memory");
    }

    ctl_put(line, strlen(line));
    ctl_put("\n", 1);
    cJSON_free(line);
    cJSON_Delete(object);
}
