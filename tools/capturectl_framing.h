/*
 * Whether an HTTP/1.1 response is whole, by its own framing, fed a piece at a
 * time: it holds one line of the head at most.
 */

#ifndef TOOLS_CAPTURECTL_FRAMING_H
#define TOOLS_CAPTURECTL_FRAMING_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef enum {
    FRAMING_STATUS_LINE,
    FRAMING_HEADERS,
    FRAMING_BODY, /* `left` bytes of it are missing */
    FRAMING_CHUNK_SIZE,
    FRAMING_CHUNK, /* `left` bytes of it are missing */
    FRAMING_CHUNK_END,
    FRAMING_TRAILERS,
    FRAMING_UNTIL_CLOSE, /* whole whenever it ends */
    FRAMING_WHOLE,
    FRAMING_BROKEN, /* not HTTP/1.1, or bytes behind its end */
} framing_state;

typedef struct {
    framing_state state;
    uint64_t left;
    uint64_t size; /* fed so far */
    char *line;    /* at hand, without its end yet */
    size_t line_len;
    bool no_body; /* it answers HEAD, or is a 204 or 304 */
    bool interim; /* a 1xx: another response follows */
    bool chunked, has_length;
} framing;

/* Anew; frees what it holds. */
void framing_start(framing *f, bool answers_head);
void framing_feed(framing *f, const void *data, size_t len);
bool framing_is_whole(const framing *f);
void framing_clear(framing *f);

#endif
