/*
 * UTF-8 as protobuf's parsers demand it of every `string` field: shortest form,
 * no surrogates, nothing above U+10FFFF. A record that breaks this is refused
 * whole by the Replayer and pins its partition's commits for ever (record
 * contract, docs/record-contract.md, 1.9).
 */

#ifndef PROTO_UTF8_H
#define PROTO_UTF8_H

#include <stdbool.h>
#include <stddef.h>

/* Length in bytes of the valid character at data[0..len), or 0. */
size_t utf8_char(const void *data, size_t len);

/* Whether data[0..len) is valid UTF-8 throughout; an empty text is. */
bool utf8_valid(const void *data, size_t len);

#endif
