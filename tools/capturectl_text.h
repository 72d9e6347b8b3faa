/* Bytes and times as text and JSON. */

#ifndef TOOLS_CAPTURECTL_TEXT_H
#define TOOLS_CAPTURECTL_TEXT_H

#include <cjson/cJSON.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define TEXT_TIME_SIZE 40

/* RFC 3339 in UTC with nine digits, as protobuf writes a Timestamp in JSON. */
const char *text_time(int64_t ns, char out[TEXT_TIME_SIZE]);

/*
 * What --since and --until take, in nanoseconds since 1970: RFC 3339 in UTC or
 * a part of it, seconds, or -N with s, m, h or d before now. Another text ends
 * the program.
 */
int64_t ctl_time_option(const char *text);

/* Valid UTF-8 without control characters but tab, CR and LF. */
bool text_is_printable(const void *data, size_t len);

/* To standard output: printable ASCII, and backslash and all else as \xNN. */
void text_put_escaped(const void *data, size_t len);

/* To standard output: printable ASCII as it is, all else as a dot. */
void text_put_dotted(const void *data, size_t len);

/* Standard base64 without line ends; for the caller to free. */
char *text_base64(const void *bytes, size_t len);

/*
 * Adds the bytes to a JSON object: "data" in base64, and "text" as well when
 * they are printable.
 */
void text_add_bytes(cJSON *object, const void *data, size_t len);

/* Adds UTF-8 as a string; a NUL, which cJSON cannot hold, as '?'. */
void text_add_string(cJSON *object, const char *name, const void *data,
                     size_t len);

/* A 64-bit number with all of its digits. */
void text_add_int(cJSON *object, const char *name, int64_t value);

/* Prints the object as one line on standard output, and deletes it. */
void text_put_json(cJSON *object);

#endif
