/*
 * The record decoder, see decode.h. One function reads a field of any message;
 * each message is a loop around it that takes the fields which it knows, with
 * the wire type which it expects, and lets all others pass.
 */

#include "proto/decode.h"
#include "proto/utf8.h"

enum {
    WIRE_VARINT,
    WIRE_FIXED64,
    WIRE_BYTES,
    WIRE_GROUP,
    WIRE_GROUP_END,
    WIRE_FIXED32
};

#define FIELD_MAX ((1u << 29) - 1)
#define GROUP_DEPTH 90 /* the Java parser gives up at a hundred levels */

#define NS_PER_SECOND 1000000000

/* one message, or what is left of it */
typedef struct {
    const uint8_t *pos;
    const uint8_t *end;
    record_reader *r; /* takes the error */
} cursor;

typedef struct {
    uint32_t number;
    uint32_t wire;
    uint64_t value;     /* WIRE_VARINT */
    record_slice bytes; /* WIRE_BYTES */
} field;

static int fail(cursor *c, const char *why) {
    c->r->error = why;
    c->r->at = (size_t)(c->pos - c->r->start);

    return -1;
}

static size_t left(const cursor *c) {
    return (size_t)(c->end - c->pos);
}

/* Up to ten bytes; what the tenth has beyond 64 bits is dropped everywhere. */
static int get_varint(cursor *c, uint64_t *value) {
    const uint8_t *p = c->pos;
    uint64_t v = 0;

    for (int shift = 0; shift < 70; shift += 7) {
        if (p == c->end) {
            return fail(c, "a number is cut off");
        }

        v |= (uint64_t)(*p & 0x7f) << shift;

        if (*p++ < 0x80) {
            c->pos = p;
            *value = v;
            return 0;
        }
    }

    return fail(c, "a number has more than ten bytes");
}

static int skip(cursor *c, size_t n) {
    if (n > left(c)) {
        return fail(c, "a fixed-size field is cut off");
    }

    c->pos += n;

    return 0;
}

static int get_tag(cursor *c, field *f) {
    uint64_t tag;
    const uint8_t *at = c->pos;

    if (get_varint(c, &tag) != 0) {
        return -1;
    }

    if (tag >> 3 == 0 || tag >> 3 > FIELD_MAX) {
        c->pos = at;
        return fail(c, "a field number is out of range");
    }

    f->number = (uint32_t)(tag >> 3);
    f->wire = (uint32_t)(tag & 7);

    return 0;
}

static int get_bytes(cursor *c, record_slice *s) {
    uint64_t len;
    const uint8_t *at = c->pos;

    if (get_varint(c, &len) != 0) {
        return -1;
    }

    if (len > left(c)) {
        c->pos = at;
        return fail(c, "a length is beyond the end of its message");
    }

    *s = (record_slice){c->pos, (size_t)len};
    c->pos += len;

    return 0;
}

static int get_value(cursor *c, field *f, int depth);

/* Groups are long out of use, but parsers pass over them with all inside. */
static int skip_group(cursor *c, uint32_t number, int depth) {
    field inner;

    if (depth == GROUP_DEPTH) {
        return fail(c, "groups are nested too deep");
    }

    for (;;) {
        if (get_tag(c, &inner) != 0) {
            return -1;
        }

        if (inner.wire == WIRE_GROUP_END) {
            return inner.number == number ? 0
                                          : fail(c, "a group ends as another");
        }

        if (get_value(c, &inner, depth) != 0) {
            return -1;
        }
    }
}

static int get_value(cursor *c, field *f, int depth) {
    switch (f->wire) {

    case WIRE_VARINT:
        return get_varint(c, &f->value);

    case WIRE_FIXED64:
        return skip(c, 8);

    case WIRE_BYTES:
        return get_bytes(c, &f->bytes);

    case WIRE_GROUP:
        return skip_group(c, f->number, depth + 1);

    case WIRE_FIXED32:
        return skip(c, 4);

    case WIRE_GROUP_END:
        return fail(c, "a group ends that did not begin");

    default:
        return fail(c, "a wire type is unknown");
    }
}

/* Returns 1 with a field, 0 at the message's end, -1 on an error. */
static int next_field(cursor *c, field *f) {
    if (c->pos == c->end) {
        return 0;
    }

    if (get_tag(c, f) != 0 || get_value(c, f, 0) != 0) {
        return -1;
    }

    return 1;
}

static bool is(const field *f, uint32_t number, uint32_t wire) {
    return f->number == number && f->wire == wire;
}

/* An int32 is the low half of its varint, whatever the rest says. */
static int32_t to_int32(uint64_t v) {
    return (int32_t)(uint32_t)v;
}

static cursor inside(record_reader *r, record_slice s) {
    return (cursor){s.data, s.data + s.len, r};
}

/* A string's bytes; reports those that are no UTF-8. */
static int take_string(record_reader *r, record_slice s, const char *why,
                       record_slice *out) {
    cursor c = inside(r, s);

    if (!utf8_valid(s.data, s.len)) {
        return fail(&c, why);
    }

    *out = s;

    return 0;
}

static int read_timestamp(record_reader *r, record_slice s,
                          record_observation *o) {
    int rc;
    field f;
    cursor c = inside(r, s);

    o->has_ts = true;

    while ((rc = next_field(&c, &f)) > 0) {
        if (is(&f, 1, WIRE_VARINT)) {
            o->ts_seconds = (int64_t)f.value;

        } else if (is(&f, 2, WIRE_VARINT)) {
            o->ts_nanos = to_int32(f.value);
        }
    }

    return rc;
}

static void clear_payload(record_observation *o) {
    o->data = (record_slice){NULL, 0};
    o->has_first_line_len = o->has_headers_len = o->timed_out = false;
    o->first_line_len = o->headers_len = 0;
}

/* Takes a field of the payload if its kind knows that field. */
static int take_payload(record_reader *r, const field *f,
                        record_observation *o) {
    switch (o->kind) {

    case RECORD_READ:
    case RECORD_WRITE:
        if (is(f, 1, WIRE_BYTES)) {
            o->data = f->bytes;
        }
        return 0;

    case RECORD_READ_SEGMENT:
    case RECORD_WRITE_SEGMENT:
        if (is(f, 2, WIRE_BYTES)) {
            o->data = f->bytes;
        }
        return 0;

    case RECORD_EXCEPTION:
        return is(f, 1, WIRE_BYTES)
                   ? take_string(r, f->bytes,
                                 "an exception's message is not UTF-8",
                                 &o->data)
                   : 0;

    case RECORD_RELEASED:
        o->timed_out = is(f, 1, WIRE_VARINT) ? f->value != 0 : o->timed_out;
        return 0;

    case RECORD_END_OF_MESSAGE:
        if (is(f, 1, WIRE_VARINT)) {
            o->has_first_line_len = true;
            o->first_line_len = to_int32(f->value);

        } else if (is(f, 2, WIRE_VARINT)) {
            o->has_headers_len = true;
            o->headers_len = to_int32(f->value);
        }
        return 0;

    default:
        return 0;
    }
}

static int read_payload(record_reader *r, record_slice s, record_kind kind,
                        record_observation *o) {
    int rc;
    field f;
    cursor c = inside(r, s);

    if (o->kind !=
        kind) { /* the last of a oneof counts; the same again is merged */
        clear_payload(o);
        o->kind = kind;
    }

    while ((rc = next_field(&c, &f)) > 0) {
        if (take_payload(r, &f, o) != 0) {
            return -1;
        }
    }

    return rc;
}

static bool is_kind(uint32_t number) {
    switch (number) {
#define X(name, field, text) case field:
        RECORD_KINDS(X)
#undef X
        return true;
    default:
        return false;
    }
}

static int read_observation(record_reader *r, record_slice s,
                            record_observation *o) {
    int rc;
    field f;
    cursor c = inside(r, s);

    *o = (record_observation){.at = (size_t)(s.data - r->start)};

    while ((rc = next_field(&c, &f)) > 0) {
        if (is(&f, 1, WIRE_BYTES)) {
            rc = read_timestamp(r, f.bytes, o);

        } else if (f.wire == WIRE_BYTES && is_kind(f.number)) {
            rc = read_payload(r, f.bytes, (record_kind)f.number, o);
        }

        if (rc < 0) {
            return -1;
        }
    }

    return rc;
}

static int take_field(record_reader *r, const field *f, record_info *info) {
    record_observation o;

    if (is(f, 1, WIRE_BYTES)) {
        return take_string(r, f->bytes, "the connectionId is not UTF-8",
                           &info->connection_id);
    }

    if (is(f, 5, WIRE_BYTES)) {
        return take_string(r, f->bytes, "the nodeId is not UTF-8",
                           &info->node_id);
    }

    if (is(f, 2, WIRE_BYTES)) {
        if (read_observation(r, f->bytes, &o) != 0) {
            return -1;
        }

        info->observations++;
        info->ends_with_close = o.kind == RECORD_CLOSE;

    } else if (is(f, 3, WIRE_VARINT) || is(f, 4, WIRE_VARINT)) {
        info->has_index = true;
        info->last = f->number == 4;
        info->number = to_int32(f->value);

    } else if (is(f, 6, WIRE_VARINT)) {
        info->has_prior_requests = true;
        info->prior_requests = to_int32(f->value);

    } else if (is(f, 7, WIRE_VARINT)) {
        info->has_unterminated_read = true;
        info->unterminated_read = f->value != 0;
    }

    return 0;
}

int record_open(record_reader *r, const void *buf, size_t len,
                record_info *info) {
    int rc;
    field f;
    cursor c;

    *info = (record_info){0};
    *r = (record_reader){.start = buf, .pos = buf};
    r->end = len ? r->start + len : r->start;

    c = (cursor){r->start, r->end, r};

    while ((rc = next_field(&c, &f)) > 0) {
        if (take_field(r, &f, info) != 0) {
            rc = -1;
            break;
        }
    }

    if (rc < 0) {
        r->pos = r->end; /* nothing is handed out of an unreadable record */
    }

    return rc;
}

bool record_next(record_reader *r, record_observation *o) {
    field f;
    cursor c = {r->pos, r->end, r};

    while (next_field(&c, &f) > 0) {
        if (is(&f, 2, WIRE_BYTES)) {
            r->pos = c.pos;
            return read_observation(r, f.bytes, o) == 0;
        }
    }

    r->pos = r->end;

    return false;
}

const char *record_fault(const record_info *info) {
    if (info->observations == 0) {
        return "it has no observation";
    }

    if (info->connection_id.len == 0) {
        return "it has no connectionId";
    }

    if (!info->has_index) {
        return "it has no index";
    }

    return NULL;
}

const char *record_kind_name(record_kind kind) {
    switch (kind) {
#define X(name, field, text)                                                   \
    case RECORD_##name:                                                        \
        return text;
        RECORD_KINDS(X)
#undef X
    }

    return "none";
}

int64_t record_ts_ns(const record_observation *o) {
    int64_t ns;

    if (__builtin_mul_overflow(o->ts_seconds, (int64_t)NS_PER_SECOND, &ns) ||
        __builtin_add_overflow(ns, (int64_t)o->ts_nanos, &ns)) {
        return o->ts_seconds < 0 ? INT64_MIN : INT64_MAX;
    }

    return ns;
}
