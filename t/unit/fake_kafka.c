/*
 * A producer that keeps what it is given until a test says what became of
 * it: included by tests in the place of sidecar/kafka.c.
 */
#include <check.h>
#include <stdlib.h>
#include <string.h>

#include "proto/decode.h"
#include "sidecar/kafka.h"
#include "t/unit/fake_topic.c"

#define FAKE_RECORDS 4096

/* A producer of it: one a destination. */
typedef struct {
    void *owner;
    const char *topic;
    bool away, full;
} fake_producer;

#define FAKE_PRODUCERS 4

typedef struct {
    void *record;
    fake_producer *producer;
    int32_t partition;
    char key[64];
    const void *value;
    size_t len;
    bool reported, acked;
    int number, prior, requests; /* requests: ended in it */
    bool unterminated, leaves_unterminated;
    char text[2048]; /* what is in it: see describe() */
    uint8_t *copy;
} fake_record;

static struct {
    const kafka_events *events;
    fake_producer producers[FAKE_PRODUCERS]; /* in the order of their making */
    unsigned nproducers;
    bool ready, full;
    bool blind;      /* nothing can be read */
    bool unreadable; /* and that is known */
    kafka_read_cb read;
    void *read_owner;
    int32_t reading; /* partition, or -1 */
    int64_t read_from;
    int64_t grown; /* each partition, since the first record */
    size_t limit;
    fake_record records[FAKE_RECORDS];
    unsigned n;
} fake_kafka = {.ready = true, .reading = -1, .limit = 1048076};

kafka *kafka_new(const config *c, loop *l, const kafka_events *events,
                 void *owner) {
    fake_producer *p = &fake_kafka.producers[fake_kafka.nproducers++];

    (void)l;
    ck_assert_uint_le(fake_kafka.nproducers, FAKE_PRODUCERS);
    fake_kafka.events = events;
    *p = (fake_producer){.owner = owner, .topic = c->topic};
    return (kafka *)p;
}

bool kafka_ready(const kafka *k) {
    return fake_kafka.ready && !((const fake_producer *)k)->away;
}

bool kafka_readable(const kafka *k) {
    (void)k;
    return !fake_kafka.unreadable;
}

const char *kafka_not_ready_why(const kafka *k) {
    return kafka_ready(k) ? "" : "the test says so";
}

size_t kafka_record_limit(const kafka *k) {
    (void)k;
    return fake_kafka.limit;
}

int32_t kafka_partition(const kafka *k, const void *key, size_t len) {
    (void)k, (void)len;
    return *(const char *)key % 3;
}

int64_t kafka_known_end(const kafka *k, int32_t partition) {
    (void)k;
    return 100 + partition + fake_kafka.grown;
}

uint32_t kafka_murmur2(const void *key, size_t len) {
    return len > 0 ? *(const uint8_t *)key : 0;
}

/* One reader, which reads what the test says. */
kafka_reader *kafka_reader_new(kafka *k, kafka_read_cb cb, void *owner) {
    (void)k;
    fake_kafka.read = cb;
    fake_kafka.read_owner = owner;
    return (kafka_reader *)&fake_kafka;
}

int kafka_reader_start(kafka_reader *r, int32_t partition, int64_t offset) {
    (void)r;
    fake_kafka.reading = partition;
    fake_kafka.read_from = offset;
    if (fake_kafka.blind) {
        fake_kafka.reading = -1;
        fake_kafka.read(fake_kafka.read_owner, partition, KAFKA_READ_FAILED, -1,
                        NULL, 0, "the test says so");
    }
    return 0;
}

void kafka_reader_stop(kafka_reader *r, int32_t partition) {
    (void)r;
    ck_assert_int_eq(fake_kafka.reading, partition);
    fake_kafka.reading = -1;
}

static void free_producer(const kafka *k) {
    for (unsigned i = 0; i < fake_kafka.n; i++) {
        fake_record *r = &fake_kafka.records[i];

        if (r->producer != (const fake_producer *)k) {
            continue;
        }
        if (!r->reported) {
            r->reported = true;
            fake_kafka.events->delivered(r->producer->owner, r->record,
                                         KAFKA_IN_DOUBT, -1, "the end");
        }
        free(r->copy);
    }
}

/* Data in full, or only its length. */
static void describe_data(char kind, record_slice data, char *at, size_t size) {
    if (data.len <= 40) {
        snprintf(at, size, " %c(%.*s)", kind, (int)data.len,
                 (const char *)data.data);
    } else {
        snprintf(at, size, " %c(*%zu)", kind, data.len);
    }
}

static void describe_one(const record_observation *o, char *at, size_t size) {
    switch (o->kind) {
    case RECORD_READ:
        describe_data('R', o->data, at, size);
        break;
    case RECORD_WRITE:
        describe_data('W', o->data, at, size);
        break;
    case RECORD_EXCEPTION:
        describe_data('X', o->data, at, size);
        break;
    case RECORD_END_OF_MESSAGE:
        snprintf(at, size, " E(%d,%d)", o->first_line_len, o->headers_len);
        break;
    case RECORD_DROPPED:
        snprintf(at, size, " D");
        break;
    case RECORD_CLOSE:
        snprintf(at, size, " C");
        break;
    default:
        snprintf(at, size, " ?");
    }
}

/*
 * `ID#NUMBER[!][+PRIOR][u] R(data) E(14,711) W(data) D X(text) C`: ! is the
 * last record's mark, u the unterminated read's.  Also checks what every
 * record must keep.
 */
static void describe(fake_record *r) {
    bool open;
    record_reader reader;
    record_info info;
    record_observation o;
    int64_t last_ts = 0;
    size_t n;

    ck_assert_msg(record_open(&reader, r->value, r->len, &info) == 0,
                  "unreadable: %s", reader.error);
    ck_assert_ptr_null(record_fault(&info));
    ck_assert_uint_eq(info.connection_id.len, strlen(r->key));
    ck_assert_int_eq(memcmp(info.connection_id.data, r->key, strlen(r->key)),
                     0);
    ck_assert(!info.has_unterminated_read || info.unterminated_read);
    ck_assert_int_eq(info.last, info.ends_with_close);
    n = (size_t)snprintf(r->text, sizeof(r->text), "%.*s#%d%s",
                         (int)info.connection_id.len,
                         (const char *)info.connection_id.data, info.number,
                         info.last ? "!" : "");
    if (info.has_prior_requests) {
        n += (size_t)snprintf(r->text + n, sizeof(r->text) - n, "+%d",
                              info.prior_requests);
    }
    if (info.has_unterminated_read) {
        n += (size_t)snprintf(r->text + n, sizeof(r->text) - n, "u");
    }
    r->number = info.number;
    r->prior = info.has_prior_requests ? info.prior_requests : 0;
    r->unterminated = open = info.has_unterminated_read;
    while (record_next(&reader, &o)) {
        r->requests += o.kind == RECORD_END_OF_MESSAGE;
        open =
            o.kind == RECORD_READ || (open && o.kind != RECORD_END_OF_MESSAGE &&
                                      o.kind != RECORD_DROPPED);
        ck_assert(o.has_ts);
        ck_assert_int_ge(record_ts_ns(&o), last_ts);
        last_ts = record_ts_ns(&o);
        if (n < sizeof(r->text)) {
            describe_one(&o, r->text + n, sizeof(r->text) - n);
            n += strlen(r->text + n);
        }
    }
    r->leaves_unterminated = open;
}

/* A connection's records follow each other without a gap, each one knows what
   came before it, and one at a time is on its way. */
static void check_order(const fake_record *r) {
    const fake_record *before = NULL;

    for (const fake_record *at = fake_kafka.records; at < r; at++) {
        if (strcmp(at->key, r->key) == 0) {
            ck_assert_msg(at->reported, "two records of %s at once", r->key);
            before = at->acked ? at : before;
        }
    }
    ck_assert_int_eq(r->number, before == NULL ? 1 : before->number + 1);
    ck_assert_int_eq(r->prior,
                     before == NULL ? 0 : before->prior + before->requests);
    ck_assert_int_eq(r->unterminated,
                     before != NULL && before->leaves_unterminated);
}

int kafka_produce(kafka *k, int32_t partition, const void *key, size_t key_len,
                  const void *value, size_t len, void *record) {
    fake_record *r = &fake_kafka.records[fake_kafka.n];

    ck_assert(kafka_ready(k));
    if (fake_kafka.full || ((const fake_producer *)k)->full) {
        return -1;
    }
    ck_assert_uint_lt(fake_kafka.n, FAKE_RECORDS);
    ck_assert_uint_le(len, fake_kafka.limit);
    fake_kafka.n++;
    r->record = record;
    r->producer = (fake_producer *)k;
    r->partition = partition;
    snprintf(r->key, sizeof(r->key), "%.*s", (int)key_len, (const char *)key);
    r->value = value;
    r->len = len;
    r->copy = malloc(len);
    memcpy(r->copy, value, len);
    describe(r);
    check_order(r);
    return 0;
}

/* The report of record `i` (0 is the first that was ever produced). */
static void fake_report(unsigned i, kafka_result result) {
    fake_record *r = &fake_kafka.records[i];

    ck_assert_uint_lt(i, fake_kafka.n);
    ck_assert(!r->reported);
    r->reported = true;
    r->acked = result == KAFKA_ACKED;
    ck_assert_int_eq(memcmp(r->value, r->copy, r->len), 0);
    fake_kafka.events->delivered(r->producer->owner, r->record, result,
                                 result == KAFKA_ACKED ? (int64_t)i : -1,
                                 "the test says so");
}

#define ck_record(i, expected)                                                 \
    do {                                                                       \
        ck_assert_uint_lt((i), fake_kafka.n);                                  \
        ck_assert_str_eq(fake_kafka.records[i].text, (expected));              \
    } while (0)
