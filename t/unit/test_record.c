/*
 * The record format, from the encoder through the decoder and against vectors
 * that were written by hand. A wrong byte here is a replayed request that never
 * was, or a Replayer that stops.
 */

#include "proto/decode.h"
#include "proto/record.h"
#include "proto/utf8.h"
#include "t/unit/guarded.h"

#include <check.h>
#include <stdlib.h>
#include <string.h>

#define NS 1000000000ll
#define TS (1795341044 * NS + 980599916)
#define BYTES(s) (s), sizeof(s) - 1

static const record_head head = {"conn", 4, "node", 4, 0, false};

typedef int (*data_fn)(record_writer *w, int64_t ts_ns, const void *data,
                       size_t len);

static void open_ok(record_reader *r, const void *buf, size_t len,
                    record_info *info) {
    int rc = record_open(r, buf, len, info);

    ck_assert_msg(rc == 0, "unreadable: %s at %zu", r->error, r->at);
}

static void assert_slice(record_slice s, const void *data, size_t len) {
    ck_assert_uint_eq(s.len, len);
    ck_assert(len == 0 || memcmp(s.data, data, len) == 0);
}

/* encoder, byte for byte */

START_TEST(first_record_has_exactly_these_bytes) {
    /* clang-format off */
    static const char want[] =
        "\x0a\x04" "conn"                               /* connectionId */
        "\x2a\x04" "node"                               /* nodeId */
        "\x12\x15" "\x0a\x0c\x08\xf4\xf5\x8a\xd8\x06\x10\xec\x88\xcb\xd3\x03"
                   "\x22\x05\x0a\x03" "abc"             /* read */
        "\x12\x14" "\x0a\x0c\x08\xf4\xf5\x8a\xd8\x06\x10\xec\x88\xcb\xd3\x03"
                   "\x7a\x04\x08\x13\x10\x0d"           /* endOfMessageIndicator 19, 13 */
        "\x12\x15" "\x0a\x0c\x08\xf4\xf5\x8a\xd8\x06\x10\xec\x88\xcb\xd3\x03"
                   "\x42\x05\x0a\x03" "xyz"             /* write */
        "\x12\x10" "\x0a\x0c\x08\xf4\xf5\x8a\xd8\x06\x10\xec\x88\xcb\xd3\x03"
                   "\x5a\x00"                           /* close */
        "\x20\x01";                                     /* numberOfThisLastChunk */
    uint8_t       buf[256];
    /* clang-format on */
    record_writer w;

    ck_assert_int_eq(record_begin(&w, buf, sizeof(buf), &head), 0);
    ck_assert_int_eq(record_read(&w, TS, "abc", 3), 0);
    ck_assert_int_eq(record_end_of_message(&w, TS, 19, 13), 0);
    ck_assert_int_eq(record_write(&w, TS, "xyz", 3), 0);
    ck_assert_int_eq(record_close(&w, TS), 0);
    ck_assert_uint_eq(w.observations, 4);
    ck_assert_uint_eq(record_finish(&w, 1, true), sizeof(want) - 1);
    ck_assert_mem_eq(buf, want, sizeof(want) - 1);
}
END_TEST

START_TEST(continued_record_has_exactly_these_bytes) {
    /* clang-format off */
    static const char want[] =
        "\x0a\x04" "conn" "\x2a\x04" "node"
        "\x30\xac\x02"                                  /* priorRequestsReceived 300 */
        "\x38\x01"                                      /* lastObservationWasUnterminatedRead */
        "\x12\x07" "\x0a\x02\x08\x01" "\x82\x01\x00"    /* requestDropped at 1 s, no nanos */
        "\x12\x0d" "\x0a\x04\x08\x01\x10\x02"
                   "\x62\x05\x0a\x03" "why"             /* connectionException */
        "\x18\x80\x01";                                 /* number 128 */
    uint8_t       buf[256];
    /* clang-format on */
    record_writer w;
    record_head h = {"conn", 4, "node", 4, 300, true};

    ck_assert_int_eq(record_begin(&w, buf, sizeof(buf), &h), 0);
    ck_assert_int_eq(record_request_dropped(&w, NS), 0);
    ck_assert_int_eq(record_exception(&w, NS + 2, "why", 3), 0);
    ck_assert_uint_eq(record_finish(&w, 128, false), sizeof(want) - 1);
    ck_assert_mem_eq(buf, want, sizeof(want) - 1);
}
END_TEST

START_TEST(unknown_lengths_are_written_as_minus_one) {
    /* clang-format off */
    static const char want[] =
        "\x7a\x16"
        "\x08\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01"
        "\x10\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01";
    /* clang-format on */
    uint8_t buf[256];
    record_writer w;

    ck_assert_int_eq(record_begin(&w, buf, sizeof(buf), &head), 0);
    ck_assert_int_eq(record_end_of_message(&w, TS, -1, -1), 0);
    ck_assert_mem_eq(buf + w.len - (sizeof(want) - 1), want, sizeof(want) - 1);
}
END_TEST

/* Field 7 set to false shifts the Replayer's index by one (contract, 2.7). */
START_TEST(zero_and_false_are_absent_from_the_head) {
    uint8_t buf[256];
    record_writer w;
    record_info info;
    record_reader r;

    for (int i = 0; i < 4; i++) {
        record_head h = {"conn", 4, "node", 4, i & 1 ? 7 : 0, i & 2};

        ck_assert_int_eq(record_begin(&w, buf, sizeof(buf), &h), 0);
        ck_assert_int_eq(record_close(&w, TS), 0);
        open_ok(&r, buf, record_finish(&w, 1, true), &info);
        ck_assert_int_eq(info.has_prior_requests, i & 1);
        ck_assert_int_eq(info.prior_requests, i & 1 ? 7 : 0);
        ck_assert_int_eq(info.has_unterminated_read, (i & 2) != 0);
        ck_assert_int_eq(info.unterminated_read, (i & 2) != 0);
    }
}
END_TEST

START_TEST(times_come_back_as_they_went_in) {
    static const int64_t times[] = {
        0,  1,   NS - 1,  NS,        NS + 1,         TS, TS / NS * NS,
        -1, -NS, -NS - 1, INT64_MAX, INT64_MIN + NS,
    };
    uint8_t buf[256];
    record_writer w;
    record_info info;
    record_reader r;
    record_observation o;

    for (size_t i = 0; i < sizeof(times) / sizeof(times[0]); i++) {
        ck_assert_int_eq(record_begin(&w, buf, sizeof(buf), &head), 0);
        ck_assert_int_eq(record_close(&w, times[i]), 0);
        open_ok(&r, buf, record_finish(&w, 1, true), &info);
        ck_assert(record_next(&r, &o));
        ck_assert(o.has_ts);
        ck_assert_int_eq(record_ts_ns(&o), times[i]);
        ck_assert(o.ts_nanos >= 0 && o.ts_nanos < NS);
    }
}
END_TEST

START_TEST(invalid_utf8_in_an_exception_becomes_question_marks) {
    uint8_t buf[256];
    record_writer w;
    record_info info;
    record_reader r;
    record_observation o;

    ck_assert_int_eq(record_begin(&w, buf, sizeof(buf), &head), 0);
    ck_assert_int_eq(record_exception(&w, TS, BYTES("caf\xc3\xa9")), 0);
    ck_assert_int_eq(record_exception(&w, TS, BYTES("caf\xe9 \xc3\xa9!")), 0);
    ck_assert_int_eq(record_exception(&w, TS, "", 0), 0);
    open_ok(&r, buf, record_finish(&w, 1, false), &info);
    ck_assert(record_next(&r, &o));
    assert_slice(o.data, BYTES("caf\xc3\xa9"));
    ck_assert(record_next(&r, &o));
    assert_slice(o.data, BYTES("caf? ?"
                               "?!"));
    ck_assert(record_next(&r, &o));
    assert_slice(o.data, "", 0);
    ck_assert(!record_next(&r, &o));
}
END_TEST

START_TEST(a_head_that_can_be_no_record_is_refused) {
    static const record_head bad[] = {
        {"", 0, "node", 4, 0, false},
        {"conn", 4, "", 0, 0, false},
        {"c\xff", 2, "node", 4, 0, false},
        {"conn", 4, "\xed\xa0\x80", 3, 0, false},
        {"conn", 4, "node", 4, 0x80000000u, false},
        {"conn", SIZE_MAX, "node", 4, 0, false},
        {"conn", 4, "node", SIZE_MAX - 2, 0, false},
    };
    uint8_t buf[64];
    record_writer w;

    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
        ck_assert_int_eq(record_begin(&w, buf, sizeof(buf), &bad[i]), -1);
    }
}
END_TEST

/* sizes */

/* Lengths at which a length's own varint grows, and their neighbours. */
static const size_t boundaries[] = {
    0,       1,       2,       80,      100,     101,   102,   103,   104,
    105,     106,     107,     108,     109,     110,   120,   124,   125,
    126,     127,     128,     129,     130,     1000,  16350, 16355, 16356,
    16357,   16358,   16359,   16360,   16361,   16362, 16363, 16364, 16365,
    16366,   16367,   16380,   16381,   16382,   16383, 16384, 16385, 1048000,
    2097130, 2097150, 2097151, 2097152, 2097153,
};

#define BOUNDARIES (sizeof(boundaries) / sizeof(boundaries[0]))
#define SURROUND 256 /* more than what surrounds the data of a record */

static uint8_t *some_data(size_t len) {
    uint8_t *data = malloc(len + 1);

    for (size_t i = 0; i < len; i++) {
        data[i] = (uint8_t)(i * 31 + i / 251);
    }

    return data;
}

static size_t count_other_than(uint8_t c, const uint8_t *p, size_t len) {
    size_t n = 0;

    for (size_t i = 0; i < len; i++) {
        n += p[i] != c;
    }

    return n;
}

START_TEST(
    data_of_every_size_round_trips_in_an_exact_fit_and_not_in_a_byte_less) {
    size_t len = boundaries[_i / 2], need, total;
    guarded g = guarded_new(len + SURROUND);
    uint8_t *data = some_data(len), *p;
    data_fn fn = _i % 2 ? record_write : record_read;
    record_writer w, before;
    record_info info;
    record_reader r;
    record_observation o;

    ck_assert_int_eq(record_begin(&w, g.base, len + SURROUND, &head), 0);
    ck_assert_int_eq(fn(&w, TS, data, len), 0);
    need = w.len + w.tail;

    p = guarded_tail(&g, need - 1);
    ck_assert_int_eq(record_begin(&w, p, need - 1, &head), 0);
    before = w;
    memset(p + w.len, 0xa5, need - 1 - w.len);
    ck_assert_int_eq(fn(&w, TS, data, len), -1);
    ck_assert_mem_eq(&w, &before, sizeof(w));
    ck_assert_uint_eq(count_other_than(0xa5, p + w.len, need - 1 - w.len), 0);

    p = guarded_tail(&g, need);
    ck_assert_int_eq(record_begin(&w, p, need, &head), 0);
    ck_assert_int_eq(fn(&w, TS, data, len), 0);
    ck_assert_uint_eq(record_room(&w, TS), 0);
    total = record_finish(&w, INT32_MAX, _i % 4 > 1);
    ck_assert_uint_eq(total, need);

    open_ok(&r, p, total, &info);
    ck_assert_int_eq(info.number, INT32_MAX);
    ck_assert_int_eq(info.last, _i % 4 > 1);
    ck_assert(record_next(&r, &o));
    ck_assert_int_eq(o.kind, _i % 2 ? RECORD_WRITE : RECORD_READ);
    assert_slice(o.data, data, len);
    ck_assert(!record_next(&r, &o));

    free(data);
    guarded_free(&g);
}
END_TEST

static void check_room(guarded *g, size_t cap, int64_t ts,
                       const uint8_t *data) {
    size_t n;
    uint8_t *p = guarded_tail(g, cap);
    record_writer w, again;

    if (record_begin(&w, p, cap, &head) != 0) {
        return;
    }

    again = w;
    n = record_room(&w, ts);
    ck_assert_msg(record_read(&w, ts, data, n + 1) == -1,
                  "%zu + 1 fit into %zu", n, cap);

    if (n > 0) {
        ck_assert_msg(record_write(&w, ts, data, n) == 0,
                      "%zu do not fit into %zu", n, cap);
        ck_assert_uint_eq(record_finish(&w, 5, false), w.len);
        ck_assert_uint_le(w.len, cap);
    } else {
        ck_assert_int_eq(record_read(&again, ts, data, 1), -1);
    }
}

START_TEST(room_is_exact_at_every_capacity) {
    static const int64_t times[] = {0, NS, TS, TS / NS * NS, -1, INT64_MAX};
    static uint8_t data[70000];
    guarded g = guarded_new(70000);

    for (size_t t = 0; t < sizeof(times) / sizeof(times[0]); t++) {
        for (size_t cap = 0; cap < 700; cap++) {
            check_room(&g, cap, times[t], data);
        }
        for (size_t cap = 16300; cap < 16600; cap++) {
            check_room(&g, cap, times[t], data);
        }
    }

    guarded_free(&g);
}
END_TEST

START_TEST(a_head_that_just_fits_fits) {
    guarded g = guarded_new(4096);
    record_head h = {"conn", 4, "node", 4, 300, true};
    size_t need =
        6 + 6 + 3 + 2 + 6; /* the ids, prior, unterminated, the index */
    record_writer w;

    ck_assert_int_eq(record_begin(&w, guarded_tail(&g, need - 1), need - 1, &h),
                     -1);
    ck_assert_int_eq(record_begin(&w, guarded_tail(&g, need), need, &h), 0);
    ck_assert_int_eq(record_close(&w, TS), -1);
    ck_assert_uint_eq(record_room(&w, TS), 0);
    ck_assert_int_eq(record_read(&w, TS, "", SIZE_MAX), -1);
    guarded_free(&g);
}
END_TEST

START_TEST(the_largest_record_with_one_control_observation_keeps_its_bound) {
    char id[129] = {0}, text[128];
    uint8_t buf[RECORD_OVERHEAD_MAX];
    record_writer w;
    record_head h = {id, 128, id, 128, INT32_MAX, true};

    memset(id, 'i', 128);
    memset(text, 't', sizeof(text));

    ck_assert_int_eq(record_begin(&w, buf, sizeof(buf), &h), 0);
    ck_assert_int_eq(record_exception(&w, -1, text, sizeof(text)), 0);
    ck_assert_uint_le(record_finish(&w, INT32_MAX, true), RECORD_OVERHEAD_MAX);

    ck_assert_int_eq(record_begin(&w, buf, sizeof(buf), &h), 0);
    ck_assert_int_eq(record_end_of_message(&w, -1, -1, -1), 0);
    ck_assert_uint_le(record_finish(&w, INT32_MAX, true), RECORD_OVERHEAD_MAX);
}
END_TEST

static void fill_all_kinds(record_writer *w) {
    ck_assert_int_eq(record_read(w, TS, "in", 2), 0);
    ck_assert_int_eq(record_end_of_message(w, TS + 1, -1, 8192), 0);
    ck_assert_int_eq(record_write(w, TS + 2, "out", 3), 0);
    ck_assert_int_eq(record_request_dropped(w, TS + 3), 0);
    ck_assert_int_eq(record_exception(w, TS + 4, "reset", 5), 0);
    ck_assert_int_eq(record_close(w, TS + 5), 0);
}

START_TEST(every_kind_round_trips_in_order) {
    static const record_kind kinds[] = {
        RECORD_READ,    RECORD_END_OF_MESSAGE, RECORD_WRITE,
        RECORD_DROPPED, RECORD_EXCEPTION,      RECORD_CLOSE,
    };
    static const char *const data[] = {"in", "", "out", "", "reset", ""};
    uint8_t buf[512];
    record_writer w;
    record_info info;
    record_reader r;
    record_observation o;

    ck_assert_int_eq(record_begin(&w, buf, sizeof(buf), &head), 0);
    fill_all_kinds(&w);
    open_ok(&r, buf, record_finish(&w, 9, true), &info);

    assert_slice(info.connection_id, "conn", 4);
    assert_slice(info.node_id, "node", 4);
    ck_assert(info.has_index && info.last && info.ends_with_close);
    ck_assert_int_eq(info.number, 9);
    ck_assert_uint_eq(info.observations, 6);
    ck_assert_ptr_null(record_fault(&info));

    for (int i = 0; i < 6; i++) {
        ck_assert(record_next(&r, &o));
        ck_assert_int_eq(o.kind, kinds[i]);
        ck_assert_int_eq(record_ts_ns(&o), TS + i);
        assert_slice(o.data, data[i], strlen(data[i]));
        ck_assert_int_eq(o.has_headers_len, i == 1);
        ck_assert_int_eq(o.first_line_len, i == 1 ? -1 : 0);
        ck_assert_int_eq(o.headers_len, i == 1 ? 8192 : 0);
    }

    ck_assert(!record_next(&r, &o));
    ck_assert(!record_next(&r, &o));
}
END_TEST

/* decoder, against vectors by hand */

#define HEAD                                                                   \
    "\x0a\x01"                                                                 \
    "c"                                                                        \
    "\x2a\x01"                                                                 \
    "n"
#define INDEX "\x18\x01"

typedef struct {
    const char *name;
    const char *bytes;
    size_t len;
    const char *error; /* NULL: readable */
} vector;

#define V(name, bytes, error)                                                  \
    { name, bytes, sizeof(bytes) - 1, error }

/* clang-format off */
static const vector vectors[] = {
    V("nothing at all", "", NULL),
    V("fields in another order", INDEX "\x12\x02\x5a\x00" HEAD, NULL),
    V("unknown field 99", HEAD "\x9a\x06\x03" "abc" INDEX, NULL),
    V("unknown fixed sizes", HEAD "\x79" "12345678" "\x7d" "1234" INDEX, NULL),
    V("an unknown group with a group", HEAD "\x7b\x08\x01\x83\x01\x84\x01\x7c" INDEX, NULL),
    V("a known field of another type", "\x08\x05" "\x10\x05" "\x1a\x01" "x" HEAD INDEX, NULL),
    V("an observation without a kind", HEAD "\x12\x04\x0a\x02\x08\x01" INDEX, NULL),
    V("a number of ten bytes", HEAD "\x18\xff\xff\xff\xff\xff\xff\xff\xff\xff\x7f", NULL),

    V("a number of eleven bytes", "\x18\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01",
      "a number has more than ten bytes"),
    V("a number cut off", HEAD "\x18\x80", "a number is cut off"),
    V("a tag cut off", HEAD "\x80", "a number is cut off"),
    V("field number 0", HEAD "\x02\x00", "a field number is out of range"),
    V("field number 2^29", "\x82\x80\x80\x80\x10\x00", "a field number is out of range"),
    V("wire type 6", HEAD "\x0e", "a wire type is unknown"),
    V("wire type 7", HEAD "\x0f", "a wire type is unknown"),
    V("an id beyond the end", "\x0a\x05" "conn", "a length is beyond the end of its message"),
    V("a length of 2^64 - 1", "\x0a\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01",
      "a length is beyond the end of its message"),
    V("a length of 2^63", "\x0a\x80\x80\x80\x80\x80\x80\x80\x80\x80\x01",
      "a length is beyond the end of its message"),
    V("data beyond its observation", HEAD "\x12\x04\x22\x02\x0a\x02" "ab" INDEX,
      "a length is beyond the end of its message"),
    V("a timestamp cut off", HEAD "\x12\x04\x0a\x02\x08\x80" INDEX, "a number is cut off"),
    V("eight bytes cut off", HEAD "\x79" "1234", "a fixed-size field is cut off"),
    V("four bytes cut off", HEAD "\x7d" "123", "a fixed-size field is cut off"),
    V("a group that does not end", HEAD "\x7b\x08\x01", "a number is cut off"),
    V("a group that ends as another", HEAD "\x7b\x84\x01", "a group ends as another"),
    V("a group that did not begin", HEAD "\x7c", "a group ends that did not begin"),
    V("a connectionId that is no UTF-8", "\x0a\x01\xff", "the connectionId is not UTF-8"),
    V("a nodeId that is no UTF-8", "\x2a\x02\xc0\x80", "the nodeId is not UTF-8"),
    V("a message that is no UTF-8", HEAD "\x12\x07\x62\x05\x0a\x03\xf5\x80\x80" INDEX,
      "an exception's message is not UTF-8"),
};
/* clang-format on */

START_TEST(the_decoder_accepts_what_a_parser_accepts_and_says_why_not) {
    int rc;
    const vector *v = &vectors[_i];
    guarded g = guarded_new(4096);
    record_info info;
    record_reader r;

    rc = record_open(&r, guarded_copy(&g, v->bytes, v->len), v->len, &info);

    if (v->error == NULL) {
        ck_assert_msg(rc == 0, "%s: %s at %zu", v->name, r.error, r.at);
    } else {
        ck_assert_msg(rc == -1, "%s: was accepted", v->name);
        ck_assert_msg(strcmp(r.error, v->error) == 0, "%s: %s", v->name,
                      r.error);
        ck_assert_uint_le(r.at, v->len);
    }

    guarded_free(&g);
}
END_TEST

START_TEST(nothing_comes_out_of_an_unreadable_record) {
    static const char bytes[] = HEAD "\x12\x02\x5a\x00" INDEX "\x80";
    record_info info;
    record_reader r;
    record_observation o;

    ck_assert_int_eq(record_open(&r, bytes, sizeof(bytes) - 1, &info), -1);
    ck_assert_uint_eq(r.at, sizeof(bytes) - 2);
    ck_assert(!record_next(&r, &o));
}
END_TEST

START_TEST(every_observation_kind_of_the_schema_is_known) {
    /* clang-format off */
    static const char bytes[] = HEAD
        "\x12\x02\x12\x00" "\x12\x02\x1a\x00" "\x12\x05\x22\x03\x0a\x01" "r"
        "\x12\x05\x2a\x03\x12\x01" "s" "\x12\x04\x32\x02\x08\x01" "\x12\x05\x42\x03\x0a\x01" "w"
        "\x12\x05\x4a\x03\x12\x01" "t" "\x12\x02\x52\x00" "\x12\x02\x5a\x00"
        "\x12\x05\x62\x03\x0a\x01" "e" "\x12\x02\x72\x00" "\x12\x02\x7a\x00"
        "\x12\x03\x82\x01\x00" "\x12\x02\x6a\x00" "\x20\x01";
    /* clang-format on */
    static const struct {
        record_kind kind;
        const char *name, *data;
    } want[] = {
        {RECORD_BIND, "bind", ""},
        {RECORD_CONNECT, "connect", ""},
        {RECORD_READ, "read", "r"},
        {RECORD_READ_SEGMENT, "readSegment", "s"},
        {RECORD_RELEASED, "requestReleasedDownstream", ""},
        {RECORD_WRITE, "write", "w"},
        {RECORD_WRITE_SEGMENT, "writeSegment", "t"},
        {RECORD_DISCONNECT, "disconnect", ""},
        {RECORD_CLOSE, "close", ""},
        {RECORD_EXCEPTION, "connectionException", "e"},
        {RECORD_SEGMENT_END, "segmentEnd", ""},
        {RECORD_END_OF_MESSAGE, "endOfMessageIndicator", ""},
        {RECORD_DROPPED, "requestDropped", ""},
        {RECORD_NONE, "none", ""},
    };
    record_info info;
    record_reader r;
    record_observation o;

    open_ok(&r, bytes, sizeof(bytes) - 1, &info);
    ck_assert_uint_eq(info.observations, sizeof(want) / sizeof(want[0]));

    for (size_t i = 0; i < info.observations; i++) {
        ck_assert(record_next(&r, &o));
        ck_assert_int_eq(o.kind, want[i].kind);
        ck_assert_str_eq(record_kind_name(o.kind), want[i].name);
        assert_slice(o.data, want[i].data, strlen(want[i].data));
        ck_assert(!o.has_ts && !o.has_first_line_len && !o.has_headers_len);
        ck_assert_int_eq(o.timed_out, o.kind == RECORD_RELEASED);
    }
}
END_TEST

/* Data of read is field 1 and of readSegment field 2; the other is unknown. */
START_TEST(data_is_taken_from_the_field_of_its_kind_only) {
    /* clang-format off */
    static const char  bytes[] = HEAD "\x12\x05\x22\x03\x12\x01" "x"
                                 "\x12\x05\x2a\x03\x0a\x01" "x" INDEX;
    /* clang-format on */
    record_info info;
    record_reader r;
    record_observation o;

    open_ok(&r, bytes, sizeof(bytes) - 1, &info);

    while (record_next(&r, &o)) {
        ck_assert_uint_eq(o.data.len, 0);
    }
}
END_TEST

START_TEST(the_last_of_repeated_fields_counts_and_messages_merge) {
    /* clang-format off */
    static const char merged[] = HEAD "\x18\x07\x20\x09" "\x0a\x01" "d" "\x38\x01\x38\x00"
        "\x12\x0f" "\x0a\x02\x08\x05" "\x22\x03\x0a\x01" "a" "\x0a\x02\x10\x06" "\x22\x00"
        "\x12\x07" "\x22\x03\x0a\x01" "a" "\x5a\x00";
    /* clang-format on */
    record_info info;
    record_reader r;
    record_observation o;

    open_ok(&r, merged, sizeof(merged) - 1, &info);
    assert_slice(info.connection_id, "d", 1);
    ck_assert(info.last && info.number == 9);
    ck_assert(info.has_unterminated_read && !info.unterminated_read);
    ck_assert(record_next(&r, &o));
    ck_assert_int_eq(record_ts_ns(&o), 5 * NS + 6);
    assert_slice(o.data, "a", 1);
    ck_assert(record_next(&r, &o));
    ck_assert_int_eq(o.kind, RECORD_CLOSE);
    ck_assert_uint_eq(o.data.len, 0);
}
END_TEST

START_TEST(numbers_are_cut_to_their_type) {
    /* clang-format off */
    static const char bytes[] = HEAD
        "\x18\x81\x80\x80\x80\x10"                      /* 2^32 + 1 */
        "\x30\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01"  /* -1 */
        "\x12\x12" "\x0a\x10" "\x08\xff\xff\xff\xff\xff\xff\xff\xff\x7f" /* 2^63 - 1 s */
                              "\x10\xff\xff\xff\xff\x07";                /* 2^31 - 1 ns */
    record_info        info;
    /* clang-format on */
    record_reader r;
    record_observation o;

    open_ok(&r, bytes, sizeof(bytes) - 1, &info);
    ck_assert_int_eq(info.number, 1);
    ck_assert_int_eq(info.prior_requests, -1);
    ck_assert(record_next(&r, &o));
    ck_assert_int_eq(o.ts_seconds, INT64_MAX);
    ck_assert_int_eq(o.ts_nanos, INT32_MAX);
    ck_assert_int_eq(record_ts_ns(&o), INT64_MAX);
    o.ts_seconds = INT64_MIN;
    ck_assert_int_eq(record_ts_ns(&o), INT64_MIN);
}
END_TEST

START_TEST(groups_may_be_deep_but_not_without_end) {
    uint8_t bytes[400];
    record_info info;
    record_reader r;

    memset(bytes, 0x7b, 80);
    memset(bytes + 80, 0x7c, 80);
    open_ok(&r, bytes, 160, &info);

    memset(bytes, 0x7b, 200);
    memset(bytes + 200, 0x7c, 200);
    ck_assert_int_eq(record_open(&r, bytes, 400, &info), -1);
    ck_assert_str_eq(r.error, "groups are nested too deep");
}
END_TEST

START_TEST(a_record_that_breaks_the_contract_is_named) {
    static const vector bad[] = {
        V("", "", "it has no observation"),
        V("", HEAD INDEX, "it has no observation"),
        V("",
          "\x2a\x01"
          "n"
          "\x12\x02\x5a\x00" INDEX,
          "it has no connectionId"),
        V("", HEAD "\x12\x02\x5a\x00", "it has no index"),
    };
    record_info info;
    record_reader r;

    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
        open_ok(&r, bad[i].bytes, bad[i].len, &info);
        ck_assert_str_eq(record_fault(&info), bad[i].error);
    }
}
END_TEST

/* A record cut anywhere is refused, or is a shorter one: never a crash. */
START_TEST(every_prefix_of_a_record_is_safe) {
    guarded g = guarded_new(4096);
    uint8_t buf[512];
    size_t total, seen;
    record_writer w;
    record_info info;
    record_reader r;
    record_observation o;

    ck_assert_int_eq(record_begin(&w, buf, sizeof(buf), &head), 0);
    fill_all_kinds(&w);
    total = record_finish(&w, 300, true);

    for (size_t len = 0; len <= total; len++) {
        const uint8_t *p = guarded_copy(&g, buf, len);

        if (record_open(&r, p, len, &info) != 0) {
            ck_assert_uint_le(r.at, len);
            continue;
        }

        for (seen = 0; record_next(&r, &o); seen++) {
            ck_assert(o.data.len == 0 ||
                      (o.data.data >= p && o.data.data + o.data.len <= g.end));
        }

        ck_assert_uint_eq(seen, info.observations);
    }

    guarded_free(&g);
}
END_TEST

START_TEST(utf8_is_judged_as_rfc_3629_says) {
    static const char *const good[] = {
        "",
        "a",
        "\x7f",
        "\xc2\x80",
        "\xdf\xbf",
        "\xe0\xa0\x80",
        "\xed\x9f\xbf",
        "\xee\x80\x80",
        "\xef\xbf\xbf",
        "\xf0\x90\x80\x80",
        "\xf4\x8f\xbf\xbf",
    };
    static const char *const bad[] = {
        "\x80",
        "\xbf",
        "\xc0\x80",
        "\xc1\xbf",
        "\xc2",
        "\xc2"
        "a",
        "\xe0\x9f\xbf",
        "\xed\xa0\x80",
        "\xe1\x80",
        "\xf0\x8f\xbf\xbf",
        "\xf4\x90\x80\x80",
        "\xf5\x80\x80\x80",
        "\xf1\x80\x80",
        "\xff",
        "\xe1\x80"
        "a",
    };

    for (size_t i = 0; i < sizeof(good) / sizeof(good[0]); i++) {
        ck_assert(utf8_valid(good[i], strlen(good[i])));
    }

    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
        ck_assert_msg(!utf8_valid(bad[i], strlen(bad[i])), "number %zu", i);
    }
}
END_TEST

/* Plain text is passed over eight bytes at a time; nothing may hide in them. */
START_TEST(a_bad_byte_is_found_wherever_it_is) {
    char text[40];
    guarded g = guarded_new(sizeof(text));

    for (size_t len = 1; len <= sizeof(text); len++) {
        for (size_t at = 0; at < len; at++) {
            memset(text, 'x', sizeof(text));
            ck_assert(utf8_valid(guarded_copy(&g, text, len), len));
            text[at] = (char)0x80;
            ck_assert(!utf8_valid(guarded_copy(&g, text, len), len));
        }
    }

    guarded_free(&g);
}
END_TEST

static Suite *suite(void) {
    Suite *s = suite_create("record");
    TCase *encode = tcase_create("encode"), *sizes = tcase_create("sizes");
    TCase *decode = tcase_create("decode");

    tcase_add_test(encode, first_record_has_exactly_these_bytes);
    tcase_add_test(encode, continued_record_has_exactly_these_bytes);
    tcase_add_test(encode, unknown_lengths_are_written_as_minus_one);
    tcase_add_test(encode, zero_and_false_are_absent_from_the_head);
    tcase_add_test(encode, times_come_back_as_they_went_in);
    tcase_add_test(encode, invalid_utf8_in_an_exception_becomes_question_marks);
    tcase_add_test(encode, a_head_that_can_be_no_record_is_refused);
    suite_add_tcase(s, encode);

    tcase_set_timeout(sizes, 60);
    tcase_add_loop_test(
        sizes,
        data_of_every_size_round_trips_in_an_exact_fit_and_not_in_a_byte_less,
        0, 2 * BOUNDARIES);
    tcase_add_test(sizes, room_is_exact_at_every_capacity);
    tcase_add_test(sizes, a_head_that_just_fits_fits);
    tcase_add_test(
        sizes, the_largest_record_with_one_control_observation_keeps_its_bound);
    suite_add_tcase(s, sizes);

    tcase_add_test(decode, every_kind_round_trips_in_order);
    tcase_add_loop_test(
        decode, the_decoder_accepts_what_a_parser_accepts_and_says_why_not, 0,
        sizeof(vectors) / sizeof(vectors[0]));
    tcase_add_test(decode, nothing_comes_out_of_an_unreadable_record);
    tcase_add_test(decode, every_observation_kind_of_the_schema_is_known);
    tcase_add_test(decode, data_is_taken_from_the_field_of_its_kind_only);
    tcase_add_test(decode,
                   the_last_of_repeated_fields_counts_and_messages_merge);
    tcase_add_test(decode, numbers_are_cut_to_their_type);
    tcase_add_test(decode, groups_may_be_deep_but_not_without_end);
    tcase_add_test(decode, a_record_that_breaks_the_contract_is_named);
    tcase_add_test(decode, every_prefix_of_a_record_is_safe);
    tcase_add_test(decode, utf8_is_judged_as_rfc_3629_says);
    tcase_add_test(decode, a_bad_byte_is_found_wherever_it_is);
    suite_add_tcase(s, decode);

    return s;
}

int main(void) {
    int failed;
    SRunner *runner = srunner_create(suite());

    srunner_run_all(runner, CK_ENV);
    failed = srunner_ntests_failed(runner);
    srunner_free(runner);

    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
