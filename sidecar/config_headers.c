/* otlp.headers: name=value by commas, values percent-encoded, as OpenTelemetry
   has it in OTEL_EXPORTER_OTLP_HEADERS. */
#include <ctype.h>
#include <string.h>
#include <strings.h>

#include "sidecar/config.h"

static const char *trimmed(const char *from, const char **end) {
    while (from < *end && isspace((unsigned char)*from))
        from++;
    while (*end > from && isspace((unsigned char)(*end)[-1]))
        (*end)--;
    return from;
}

/* -1: it is no header's name, or one that is not free. */
static int check_name(const char *name, size_t len, const char **why) {
    static const char *const ours[] = {"content-type", "content-length",
                                       "te",           "transfer-encoding",
                                       "host",         "connection"};
    *why = "give name=value, more after commas, like authorization=Bearer%20x";
    if (len == 0)
        return -1;
    for (size_t i = 0; i < len; i++)
        if (!isalnum((unsigned char)name[i]) &&
            strchr("!#$&'*+-.^_`|~", name[i]) == NULL)
            return -1;
    *why = "content-type, te, host and what frames a request are not free";
    for (size_t i = 0; i < sizeof(ours) / sizeof(*ours); i++)
        if (strlen(ours[i]) == len && strncasecmp(name, ours[i], len) == 0)
            return -1;
    return 0;
}

static int hex(char c) {
    return isdigit((unsigned char)c)    ? c - '0'
           : isxdigit((unsigned char)c) ? tolower((unsigned char)c) - 'a' + 10
                                        : -1;
}

/* Decodes into `to`, which has room for all of it. */
static int decode(char *to, const char *from, const char *end,
                  const char **why) {
    for (; from < end; from++) {
        int c = (unsigned char)*from;
        if (c == '%') {
            int high = end - from > 2 ? hex(from[1]) : -1,
                low = end - from > 2 ? hex(from[2]) : -1;
            *why = "there is a % without two hexadecimal digits";
            if (high == -1 || low == -1)
                return -1;
            c = 16 * high + low;
            from += 2;
        }
        *why = "a value has a character that no header may have";
        if ((c < ' ' && c != '\t') || c == 0x7f)
            return -1;
        *to++ = (char)c;
    }
    *to = '\0';
    return 0;
}

int config_header(const char **at, char *line, size_t size, const char **why) {
    const char *begin = *at, *end, *equals, *name_end, *name;
    while (*begin == ',' || isspace((unsigned char)*begin))
        begin++;
    if (*begin == '\0')
        return 0;
    end = begin + strcspn(begin, ",");
    *at = end;
    equals = memchr(begin, '=', (size_t)(end - begin));
    name_end = equals != NULL ? equals : begin;
    name = trimmed(begin, &name_end);
    size_t len = (size_t)(name_end - name);
    if (check_name(name, len, why) == -1)
        return -1;
    begin = trimmed(equals + 1, &end);
    *why = "a header is too long";
    if (len + 2 + (size_t)(end - begin) >= size)
        return -1;
    memcpy(line, name, len);
    memcpy(line + len, ": ", 2);
    return decode(line + len + 2, begin, end, why) == -1 ? -1 : 1;
}
