/*
 * The record encoder, see record.h.
 *
 * Sizes are computed before the first byte is written, since every message is
 * preceded by its length; an observation is then
 *
 *     0x12 LEN | 0x0a LEN timestamp | TAG LEN payload
 *
 * where LEN are varints, and TAG is the field of the observation's kind.
 */

#include "proto/record.h"
#include "proto/utf8.h"

#include <assert.h>
#include <string.h>

#define WIRE_VARINT 0
#define WIRE_BYTES 2
#define TAG(field, wire) ((field) << 3 | (wire))

#define TAG_CONNECTION_ID TAG(1, WIRE_BYTES)
#define TAG_OBSERVATION TAG(2, WIRE_BYTES)
#define TAG_NUMBER TAG(3, WIRE_VARINT)
#define TAG_LAST_NUMBER TAG(4, WIRE_VARINT)
#define TAG_NODE_ID TAG(5, WIRE_BYTES)
#define TAG_PRIOR TAG(6, WIRE_VARINT)
#define TAG_UNTERMINATED TAG(7, WIRE_VARINT)

#define TAG_TS TAG(1, WIRE_BYTES)
#define TAG_READ TAG(4, WIRE_BYTES)
#define TAG_WRITE TAG(8, WIRE_BYTES)
#define TAG_CLOSE TAG(11, WIRE_BYTES)
#define TAG_EXCEPTION TAG(12, WIRE_BYTES)
#define TAG_END TAG(15, WIRE_BYTES)
#define TAG_DROPPED TAG(16, WIRE_BYTES)

#define TAG_FIRST_BYTES TAG(1, WIRE_BYTES) /* a payload's data or message */
#define TAG_FIRST_INT TAG(1, WIRE_VARINT)
#define TAG_SECOND_INT TAG(2, WIRE_VARINT)

/* the index field's tag, and an int32's longest varint from 0 on */
#define INDEX_SIZE (1 + 5)

#define NS_PER_SECOND 1000000000

typedef struct {
    int64_t seconds;
    int32_t nanos; /* 0 to 999,999,999, also before 1970 */
    size_t size;   /* of the Timestamp message's content */
} stamp;

static inline size_t varint_size(uint64_t v) {
    return (size_t)(63 - __builtin_clzll(v | 1)) / 7 + 1;
}

static inline uint8_t *put_varint(uint8_t *p, uint64_t v) {
    while (v >= 0x80) {
        *p++ = (uint8_t)(v | 0x80);
        v >>= 7;
    }

    *p++ = (uint8_t)v;

    return p;
}

static inline uint8_t *put_bytes(uint8_t *p, uint32_t tag, const void *data,
                                 size_t len) {
    p = put_varint(p, tag);
    p = put_varint(p, len);

    if (len > 0) {
        memcpy(p, data, len);
    }

    return p + len;
}

/* The size of a field of a one-byte tag and len bytes of content. */
static inline size_t bytes_size(size_t len) {
    return 1 + varint_size(len) + len;
}

static inline size_t room(const record_writer *w) {
    return w->cap - w->len - w->tail;
}

/* A zero is left out, as proto3 does. */
static inline stamp stamp_of(int64_t ts_ns) {
    stamp t;

    t.seconds = ts_ns / NS_PER_SECOND;
    t.nanos = (int32_t)(ts_ns % NS_PER_SECOND);

    if (t.nanos < 0) {
        t.nanos += NS_PER_SECOND;
        t.seconds--;
    }

    t.size = (t.seconds ? 1 + varint_size((uint64_t)t.seconds) : 0) +
             (t.nanos ? 1 + varint_size((uint64_t)t.nanos) : 0);

    return t;
}

static inline uint8_t *put_stamp(uint8_t *p, const stamp *t) {
    *p++ = TAG_TS;
    *p++ = (uint8_t)t->size;

    if (t->seconds) {
        *p++ = TAG_FIRST_INT;
        p = put_varint(p, (uint64_t)t->seconds);
    }

    if (t->nanos) {
        *p++ = TAG_SECOND_INT;
        p = put_varint(p, (uint64_t)t->nanos);
    }

    return p;
}

/* The content of an observation: its time, and a payload of that size. */
static inline size_t content_size(const stamp *t, uint32_t tag,
                                  size_t payload) {
    return 2 + t->size + varint_size(tag) + varint_size(payload) + payload;
}

/* The content of a read's or write's message with len bytes of data. */
static inline size_t data_size(size_t len) {
    return len ? bytes_size(len) : 0;
}

/*
 * Writes an observation up to its payload and counts the whole as written.
 * Returns where the payload's bytes go, or NULL if they would not fit.
 */
static uint8_t *open_observation(record_writer *w, int64_t ts_ns, uint32_t tag,
                                 size_t payload) {
    uint8_t *p;
    size_t content;
    stamp t = stamp_of(ts_ns);

    if (payload > room(w)) {
        return NULL;
    }

    content = content_size(&t, tag, payload);

    if (bytes_size(content) > room(w)) {
        return NULL;
    }

    p = w->buf + w->len;
    *p++ = TAG_OBSERVATION;
    p = put_varint(p, content);
    p = put_stamp(p, &t);
    p = put_varint(p, tag);
    p = put_varint(p, payload);

    w->len += bytes_size(content);
    w->observations++;

    return p;
}

static int put_data(record_writer *w, int64_t ts_ns, uint32_t tag,
                    const void *data, size_t len) {
    uint8_t *p;

    if (len > w->cap) {
        return -1; /* so that no size below can wrap */
    }

    p = open_observation(w, ts_ns, tag, data_size(len));

    if (p == NULL) {
        return -1;
    }

    if (len > 0) {
        put_bytes(p, TAG_FIRST_BYTES, data, len);
    }

    return 0;
}

static int put_empty(record_writer *w, int64_t ts_ns, uint32_t tag) {
    return open_observation(w, ts_ns, tag, 0) ? 0 : -1;
}

static bool usable_id(const char *id, size_t len) {
    return len > 0 && utf8_valid(id, len);
}

int record_begin(record_writer *w, uint8_t *buf, size_t cap,
                 const record_head *head) {
    size_t size;
    uint8_t *p;

    if (head->connection_id_len > cap || head->node_id_len > cap ||
        head->prior_requests > INT32_MAX ||
        !usable_id(head->connection_id, head->connection_id_len) ||
        !usable_id(head->node_id, head->node_id_len)) {
        return -1;
    }

    size = bytes_size(head->connection_id_len) + bytes_size(head->node_id_len) +
           (head->prior_requests ? 1 + varint_size(head->prior_requests) : 0) +
           (head->unterminated_read ? 2 : 0);

    if (size + INDEX_SIZE > cap) {
        return -1;
    }

    p = put_bytes(buf, TAG_CONNECTION_ID, head->connection_id,
                  head->connection_id_len);
    p = put_bytes(p, TAG_NODE_ID, head->node_id, head->node_id_len);

    if (head->prior_requests) {
        *p++ = TAG_PRIOR;
        p = put_varint(p, head->prior_requests);
    }

    if (head->unterminated_read) {
        *p++ = TAG_UNTERMINATED;
        *p++ = 1;
    }

    *w = (record_writer){
        .buf = buf, .len = size, .cap = cap, .tail = INDEX_SIZE};

    return 0;
}

int record_read(record_writer *w, int64_t ts_ns, const void *data, size_t len) {
    return put_data(w, ts_ns, TAG_READ, data, len);
}

int record_write(record_writer *w, int64_t ts_ns, const void *data,
                 size_t len) {
    return put_data(w, ts_ns, TAG_WRITE, data, len);
}

int record_end_of_message(record_writer *w, int64_t ts_ns,
                          int32_t first_line_len, int32_t headers_len) {
    uint8_t *p;
    uint64_t first = (uint64_t)(int64_t)first_line_len; /* -1 takes ten bytes */
    uint64_t headers = (uint64_t)(int64_t)headers_len;

    p = open_observation(w, ts_ns, TAG_END,
                         1 + varint_size(first) + 1 + varint_size(headers));

    if (p == NULL) {
        return -1;
    }

    *p++ = TAG_FIRST_INT;
    p = put_varint(p, first);
    *p++ = TAG_SECOND_INT;
    put_varint(p, headers);

    return 0;
}

int record_request_dropped(record_writer *w, int64_t ts_ns) {
    return put_empty(w, ts_ns, TAG_DROPPED);
}

int record_exception(record_writer *w, int64_t ts_ns, const char *msg,
                     size_t len) {
    size_t i;
    uint8_t *text;

    if (put_data(w, ts_ns, TAG_EXCEPTION, msg, len) != 0) {
        return -1;
    }

    text = w->buf + w->len - len;

    if (!utf8_valid(text, len)) {
        for (i = 0; i < len; i++) {
            text[i] = text[i] < 0x80 ? text[i] : '?';
        }
    }

    return 0;
}

int record_close(record_writer *w, int64_t ts_ns) {
    return put_empty(w, ts_ns, TAG_CLOSE);
}

size_t record_room(const record_writer *w, int64_t ts_ns) {
    size_t left = room(w);
    size_t most, n;
    stamp t = stamp_of(ts_ns);

    /* what surrounds the data grows with it: largest for left bytes */
    most = bytes_size(content_size(&t, TAG_READ, data_size(left))) - left;

    n = left > most ? left - most : 0;

    while (bytes_size(content_size(&t, TAG_READ, data_size(n + 1))) <= left) {
        n++;
    }

    return n;
}

size_t record_finish(record_writer *w, int32_t number, bool last) {
    uint8_t *p = w->buf + w->len;

    assert(w->observations > 0);
    assert(number >= 0);
    assert(w->tail == INDEX_SIZE);

    *p++ = last ? TAG_LAST_NUMBER : TAG_NUMBER;
    p = put_varint(p, (uint32_t)number);

    w->len = (size_t)(p - w->buf);
    w->tail = 0;

    return w->len;
}
