/* UTF-8 checks after RFC 3629, section 4. */

#include "proto/utf8.h"

#include <stdint.h>
#include <string.h>

#define HIGH_BITS 0x8080808080808080ull

static bool is_tail(uint8_t c) {
    return (c & 0xc0) == 0x80;
}

size_t utf8_char(const void *data, size_t len) {
    const uint8_t *s = data;

    if (len == 0) {
        return 0;
    }

    if (s[0] < 0x80) {
        return 1;
    }

    if (s[0] < 0xc2 || s[0] > 0xf4 || len < 2 || !is_tail(s[1])) {
        return 0;
    }

    if (s[0] < 0xe0) {
        return 2;
    }

    if (len < 3 || !is_tail(s[2])) {
        return 0;
    }

    if (s[0] < 0xf0) {
        /* overlong forms and surrogates */
        return ((s[0] == 0xe0 && s[1] < 0xa0) || (s[0] == 0xed && s[1] > 0x9f))
                   ? 0
                   : 3;
    }

    /* overlong forms and what lies above U+10FFFF */
    if (len < 4 || !is_tail(s[3]) || (s[0] == 0xf0 && s[1] < 0x90) ||
        (s[0] == 0xf4 && s[1] > 0x8f)) {
        return 0;
    }

    return 4;
}

bool utf8_valid(const void *data, size_t len) {
    const uint8_t *s = data;

    while (len > 0) {
        size_t n;
        uint64_t eight;

        if (len >= sizeof(eight)) { /* ids are ASCII: eight bytes at a time */
            memcpy(&eight, s, sizeof(eight));

            if ((eight & HIGH_BITS) == 0) {
                s += sizeof(eight);
                len -= sizeof(eight);
                continue;
            }
        }

        n = utf8_char(s, len);

        if (n == 0) {
            return false;
        }

        s += n;
        len -= n;
    }

    return true;
}
