/*
 * sidecar/assemble, conn, encode and ledger together, between a fake worker
 * and a fake Kafka: which records come of which frames, when, and what each
 * report makes of exchanges, blocks, slots and numbers.  A mistake here is a
 * request replayed twice, merged with another, or lost without being counted.
 */
#define _GNU_SOURCE /* memfd_create, in fake_worker.c */
#include <check.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "sidecar/assemble.h"
#include "sidecar/ledger.h"
#include "sidecar/metrics.h"
#include "sidecar/pool.h"
#include "t/unit/fake_kafka.c"
#include "t/unit/fake_loop.c"
#include "t/unit/fake_worker.c"

#define S 1000000000ll
#define MS 1000000ll

static config conf;
static loop *l;
static ledger *lg;
static fake_worker *w;
static pool *p;
static assemble *a;
static const char *why;

static void open_all(void) {
    static config_property broker = {.name = "bootstrap.servers",
                                     .value = "fake:1"};

    conf = (config){
        .record_size = 1048076, .inflight_size = 64 << 20, .pinned_time = S};
    conf.kafka[conf.nkafka++] = broker;
    l = loop_new();
    lg = ledger_new(&conf, l, &assemble_events);
    w = fake_worker_new(8, 64);
    p = pool_open(w->fd, UINT64_MAX, &why);
    pool_own(p);
    a = assemble_new(p, lg, l, S);
    fake_take_slot(w, 0, "a");
}

/* seen = captured + filtered + lost + pending, always. */
static void balanced(void) {
    uint64_t sum = p->count.captured + p->count.open;

    for (unsigned i = 0; i < CAP_REASON_CELLS; i++) {
        sum += p->count.reason[i];
    }
    ck_assert_uint_eq(p->count.taken, sum);
}

static void close_all(void) {
    balanced();
    ledger_stop(lg, 0);
    assemble_free(a);
    ledger_free(lg);
    pool_free(p);
    fake_worker_free(w);
    loop_free(l);
    ck_assert_uint_eq(metrics_cell[METRIC_CONNECTIONS], 0);
    ck_assert_uint_eq(metrics_cell[METRIC_INFLIGHT_RECORDS], 0);
    ck_assert_uint_eq(metrics_cell[METRIC_INFLIGHT_BYTES], 0);
}

/* A turn of the loop: what is published is read, what is due is sent.
   Returns why the link must end. */
static enum cap_reason turn_says(void) {
    pool_frame f;
    enum cap_reason reason = CAP_NONE;

    assemble_turn(a);
    while (reason == CAP_NONE && pool_read(p, &f) == 1) {
        reason = assemble_frame(a, &f, &why);
    }
    assemble_relieve(a);
    ledger_pump(lg);
    return reason;
}

static void turn(void) {
    enum cap_reason reason = turn_says();

    ck_assert_msg(reason == CAP_NONE, "the link ends: %s", why);
    ck_assert_ptr_null(p->bad);
}

static void report(unsigned i, kafka_result result) {
    fake_report(i, result);
    ledger_pump(lg);
    balanced();
}

static void ack(unsigned i) {
    report(i, KAFKA_ACKED);
}

static void pass(int64_t ns) {
    fake_loop_advance(l, ns);
    ledger_pump(lg);
}

static cap_slot *slot(uint32_t i) {
    return cap_slot_at(w->header, &w->g, i);
}

static cap_intent *intent(uint32_t i) {
    return cap_intent_at(w->header, &w->g, i);
}

static char *many(size_t n) {
    static char data[CAP_BLOCK_SIZE];

    for (size_t i = 0; i < n; i++) {
        data[i] = (char)('0' + i % 71);
    }
    data[n] = '\0';
    return data;
}

/* ---- records of whole exchanges ---- */

START_TEST(an_exchange_is_one_record_at_its_end) {
    fake_exchange(w, 0, "GET /", "200");
    turn();
    ck_assert_uint_eq(fake_kafka.n, 1);
    ck_record(0, "a#1 R(GET /) E(14,711) W(200)");
    ck_assert_int_eq(fake_kafka.records[0].partition, 'a' % 3);
    ck_assert_uint_eq(p->count.open, 1);
    ack(0);
    ck_assert_uint_eq(p->count.captured, 1);
    ck_assert_uint_eq(p->count.open, 0);
}
END_TEST

START_TEST(the_next_record_counts_requests_and_numbers_on) {
    fake_exchange(w, 0, "1", "one");
    turn();
    ack(0);
    fake_exchange(w, 0, "2", "two");
    fake_exchange(w, 0, "3", "three");
    turn();
    ack(1);
    fake_control(w, 0, CAP_FRAME_CLOSE, 0);
    turn();
    ck_record(1, "a#2+1 R(2) E(14,711) W(two) R(3) E(14,711) W(three)");
    ck_record(2, "a#3!+3 C");
    ck_assert_uint_eq(p->count.captured, 3);
    fake_collect(w);
    ck_assert_uint_eq(w->slots_back, 0);
    ack(2);
    fake_collect(w);
    ck_assert_uint_eq(w->slots_back, 1);
    ck_assert(assemble_empty(a));
}
END_TEST

START_TEST(only_one_record_of_a_connection_is_unacknowledged) {
    for (int i = 0; i < 5; i++) {
        fake_exchange(w, 0, "GET", "200");
        turn();
    }
    ck_assert_uint_eq(fake_kafka.n, 1);
    fake_take_slot(w, 1, "b");
    fake_exchange(w, 1, "other", "200");
    turn();
    ck_assert_uint_eq(fake_kafka.n, 2); /* another's is not held up */
    ack(0);
    ck_assert_uint_eq(fake_kafka.n, 3);
    ck_assert_uint_eq(p->count.captured, 1);
    ack(2);
    ck_assert_uint_eq(p->count.captured, 5);
}
END_TEST

START_TEST(what_does_not_end_goes_after_flush_time) {
    fake_read(w, 0, CAP_FRAME_BEGIN, "half");
    turn();
    pass(S - 1);
    ck_assert_uint_eq(fake_kafka.n, 0);
    pass(1);
    ck_record(0, "a#1 R(half)");
    ack(0);
    fake_read(w, 0, 0, " more");
    turn();
    pass(S);
    ck_record(1, "a#2u R( more)");
    ack(1);
    fake_eom(w, 0, 0);
    fake_write(w, 0, "r");
    turn();
    pass(S);
    ck_record(2, "a#3u E(14,711) W(r)");
    ack(2);
    fake_write(w, 0, "est");
    fake_end(w, 0, 0);
    turn();
    ck_record(3, "a#4+1 W(est)");
    ck_assert_uint_eq(p->count.open, 1);
    ack(3);
    ck_assert_uint_eq(p->count.captured, 1);
}
END_TEST

START_TEST(an_idle_connection_makes_no_empty_record) {
    fake_exchange(w, 0, "GET", "200");
    turn();
    ack(0);
    pass(10 * S);
    fake_read(w, 0, CAP_FRAME_BEGIN, "x");
    fake_eom(w, 0, 0);
    turn();
    pass(S);
    fake_end(w, 0, 0); /* nothing is to be said */
    turn();
    ack(1);
    pass(10 * S);
    ck_assert_uint_eq(fake_kafka.n, 2);
    ck_assert_uint_eq(p->count.captured, 2);
    ck_assert_uint_eq(CAP_ACKED_SEQ(atomic_load(&slot(0)->acked)), w->seq);
}
END_TEST

START_TEST(an_end_alone_takes_its_class_when_all_before_is_acked) {
    fake_read(w, 0, CAP_FRAME_BEGIN, "x");
    fake_eom(w, 0, 0);
    turn();
    pass(S);
    ack(0);
    ck_assert_uint_eq(p->count.open, 1);
    fake_end(w, 0, 0);
    turn();
    ck_assert_uint_eq(fake_kafka.n, 1);
    ck_assert_uint_eq(p->count.captured, 1);
    ck_assert_uint_eq(CAP_ACKED_SEQ(atomic_load(&slot(0)->acked)), w->seq);
}
END_TEST

START_TEST(a_waited_request_goes_at_once_and_what_follows_later) {
    fake_read(w, 0, CAP_FRAME_BEGIN, "POST");
    fake_eom(w, 0, CAP_FRAME_WAIT);
    turn();
    ck_record(0, "a#1 R(POST) E(14,711)");
    fake_write(w, 0, "200");
    fake_end(w, 0, 0);
    turn();
    ack(0);
    ck_assert_uint_eq(fake_kafka.n, 1); /* the next wait need not queue */
    fake_read(w, 0, CAP_FRAME_BEGIN, "PUT");
    fake_eom(w, 0, CAP_FRAME_WAIT);
    turn();
    ck_record(1, "a#2+1 W(200) R(PUT) E(14,711)");
    ack(1);
    fake_write(w, 0, "201");
    fake_end(w, 0, 0);
    turn();
    pass(S);
    ck_record(2, "a#3+2 W(201)");
    ack(2);
    ck_assert_uint_eq(p->count.captured, 2);
}
END_TEST

/* ---- ends ---- */

START_TEST(a_cut_response_ends_the_connection) {
    fake_read(w, 0, CAP_FRAME_BEGIN, "GET");
    fake_eom(w, 0, 0);
    fake_write(w, 0, "20");
    fake_end(w, 0, CAP_END_TRUNCATED);
    turn();
    ck_record(0, "a#1! R(GET) E(14,711) W(20) X(truncated) C");
    ack(0);
    ck_assert_uint_eq(p->count.captured, 1);
    ck_assert_uint_eq(p->count.truncated, 1);
    ck_assert(assemble_empty(a));
}
END_TEST

START_TEST(a_dropped_request_that_was_not_sent_leaves_nothing) {
    fake_exchange(w, 0, "1", "one");
    fake_read(w, 0, CAP_FRAME_BEGIN, "secret");
    fake_eom(w, 0, 0);
    fake_control(w, 0, CAP_FRAME_DROP, CAP_REFUSED);
    fake_exchange(w, 0, "3", "three");
    turn();
    ck_record(0, "a#1 R(1) E(14,711) W(one) R(3) E(14,711) W(three)");
    ck_assert_uint_eq(p->count.open, 3);
    ack(0);
    ck_assert_uint_eq(p->count.reason[CAP_REFUSED], 1);
    ck_assert_uint_eq(p->count.captured, 2);
}
END_TEST

START_TEST(a_dropped_request_that_was_sent_is_taken_back) {
    fake_read(w, 0, CAP_FRAME_BEGIN, "half");
    turn();
    pass(S);
    fake_eom(w, 0, 0); /* not sent: never to be */
    fake_control(w, 0, CAP_FRAME_DROP, CAP_CLIENT_ABORT);
    turn();
    ack(0);
    ck_record(1, "a#2u D");
    ck_assert_uint_eq(p->count.reason[CAP_CLIENT_ABORT], 0);
    ack(1);
    ck_assert_uint_eq(p->count.reason[CAP_CLIENT_ABORT], 1);
    fake_exchange(w, 0, "2", "two");
    turn();
    ck_record(2, "a#3 R(2) E(14,711) W(two)");
}
END_TEST

START_TEST(a_connection_with_nothing_to_say_makes_no_record) {
    fake_read(w, 0, CAP_FRAME_BEGIN, "GET");
    fake_control(w, 0, CAP_FRAME_DROP, CAP_RULE);
    fake_control(w, 0, CAP_FRAME_CLOSE, 0);
    fake_take_slot(w, 1, "b");
    fake_read(w, 1, CAP_FRAME_BEGIN, "GET");
    fake_control(w, 1, CAP_FRAME_ABANDON, CAP_POOL_FULL);
    fake_take_slot(w, 2, "c");
    fake_control(w, 2, CAP_FRAME_CLOSE, 0);
    fake_seal(w);
    turn();
    ck_assert_uint_eq(fake_kafka.n, 0);
    ck_assert_uint_eq(p->count.reason[CAP_RULE], 1);
    ck_assert_uint_eq(p->count.reason[CAP_POOL_FULL], 1);
    fake_collect(w);
    ck_assert_uint_eq(w->slots_back, 3);
    ck_assert_uint_eq(w->blocks_back, 1);
}
END_TEST

START_TEST(an_abandoned_exchange_ends_what_the_topic_has) {
    fake_exchange(w, 0, "1", "one");
    fake_read(w, 0, CAP_FRAME_BEGIN, "2");
    fake_control(w, 0, CAP_FRAME_ABANDON, CAP_POOL_FULL);
    turn();
    ck_record(0, "a#1! R(1) E(14,711) W(one) X(capture abandoned: pool_full) "
                 "C");
    ack(0);
    ck_assert_uint_eq(p->count.reason[CAP_POOL_FULL], 1);

    fake_take_slot(w, 1, "b");
    fake_read(w, 1, CAP_FRAME_BEGIN, "3");
    fake_eom(w, 1, 0);
    fake_write(w, 1, "th");
    fake_control(w, 1, CAP_FRAME_ABANDON, CAP_RESPONSE);
    turn();
    ck_record(1, "b#1! R(3) E(14,711) W(th) X(capture abandoned: response) C");
    ck_assert_uint_eq(p->count.reason[CAP_RESPONSE], 0);
    ack(1);
    ck_assert_uint_eq(p->count.reason[CAP_RESPONSE], 1);
}
END_TEST

/* An exchange that is complete and only waits for its record stays whole. */
START_TEST(an_abandon_between_exchanges_takes_none_with_it) {
    fake_exchange(w, 0, "1", "one");
    turn();
    fake_exchange(w, 0, "2", "two");
    fake_control(w, 0, CAP_FRAME_ABANDON, CAP_POOL_FULL);
    turn();
    ack(0);
    ck_record(1, "a#2!+1 R(2) E(14,711) W(two) "
                 "X(capture abandoned: pool_full) C");
    ack(1);
    ck_assert_uint_eq(p->count.captured, 2);
    ck_assert_uint_eq(p->count.reason[CAP_POOL_FULL], 0);
}
END_TEST

/* ---- sizes ---- */

/* The response's bytes in record `i` are those at `at`; returns how many. */
static size_t response_bytes(unsigned i, size_t at) {
    record_reader reader;
    record_info info;
    record_observation o;

    ck_assert_int_eq(record_open(&reader, fake_kafka.records[i].value,
                                 fake_kafka.records[i].len, &info),
                     0);
    while (record_next(&reader, &o)) {
        if (o.kind == RECORD_WRITE) {
            ck_assert_int_eq(memcmp(o.data.data, many(60000) + at, o.data.len),
                             0);
            at += o.data.len;
        }
    }
    return at;
}

START_TEST(large_data_is_split_and_nothing_is_missing) {
    size_t at = 0;

    fake_kafka.limit = 10000;
    fake_read(w, 0, CAP_FRAME_BEGIN, "GET");
    fake_eom(w, 0, 0);
    fake_write(w, 0, many(60000));
    fake_end(w, 0, 0);
    turn();
    for (unsigned i = 0; i < fake_kafka.n; i++) {
        ck_assert_uint_eq(slot(0)->acked_bytes, at);
        ck_assert_uint_eq(p->count.captured, 0);
        ck_assert_uint_le(fake_kafka.records[i].len, 10000);
        at = response_bytes(i, at);
        ack(i);
    }
    ck_assert_uint_eq(at, 60000);
    ck_assert_uint_eq(fake_kafka.n, 7);
    ck_assert_uint_eq(p->count.captured, 1);
}
END_TEST

START_TEST(a_record_that_is_full_goes_before_the_end) {
    fake_kafka.limit = 8192;
    fake_read(w, 0, CAP_FRAME_BEGIN, many(5000));
    turn();
    ck_assert_uint_eq(fake_kafka.n, 0);
    fake_read(w, 0, 0, many(5000));
    turn();
    ck_assert_uint_eq(fake_kafka.n, 1);
    ck_assert_uint_gt(fake_kafka.records[0].len, 8192 - 600);
    ack(0);
    ck_assert_uint_eq(fake_kafka.n, 2); /* what did not fit follows */
    ck_assert_ptr_nonnull(strstr(fake_kafka.records[1].text, "#2u "));
}
END_TEST

/* What comes while a record is unacknowledged has no timer of its own. */
START_TEST(what_does_not_fit_follows_though_nothing_made_it_due) {
    fake_kafka.limit = 8192;
    fake_exchange(w, 0, "1", "one");
    turn();
    fake_exchange(w, 0, "2", "two");
    fake_read(w, 0, CAP_FRAME_BEGIN, many(12000));
    turn();
    ack(0);
    ck_assert_uint_eq(fake_kafka.n, 2);
    ack(1);
    ck_assert_uint_eq(fake_kafka.n, 3);
    ck_assert_ptr_nonnull(strstr(fake_kafka.records[2].text, "#3+2u R(*"));
}
END_TEST

START_TEST(a_dropped_request_that_was_half_sent_is_taken_back) {
    fake_kafka.limit = 8192;
    fake_read(w, 0, CAP_FRAME_BEGIN, many(12000));
    turn();
    ck_assert_uint_eq(fake_kafka.n, 1);
    fake_control(w, 0, CAP_FRAME_DROP, CAP_CLIENT_ABORT);
    turn();
    ack(0);
    ck_assert_uint_eq(fake_kafka.n, 2);
    ck_assert_str_eq(fake_kafka.records[1].text +
                         strlen(fake_kafka.records[1].text) - 2,
                     " D");
    ack(1);
    ck_assert_uint_eq(p->count.reason[CAP_CLIENT_ABORT], 1);
}
END_TEST

START_TEST(memory_in_flight_is_bounded) {
    char id[8];

    ledger_stop(lg, 0);
    ledger_free(lg);
    conf.inflight_size = 64 << 10;
    lg = ledger_new(&conf, l, &assemble_events);
    assemble_free(a);
    a = assemble_new(p, lg, l, S);
    for (uint32_t i = 1; i < 12; i++) {
        snprintf(id, sizeof(id), "c%u", i);
        fake_take_slot(w, i, id);
        fake_exchange(w, i, many(14000), "ok");
    }
    turn();
    ck_assert_uint_eq(fake_kafka.n, 4);
    ack(2);
    ck_assert_uint_eq(fake_kafka.n, 5);
    report(0, KAFKA_NOT_PERSISTED);
    report(1, KAFKA_NOT_PERSISTED);
    report(3, KAFKA_NOT_PERSISTED);
    report(4, KAFKA_NOT_PERSISTED);
    pass(S); /* with all room taken by those that failed, they go first */
    ck_assert_uint_eq(fake_kafka.n, 9);
    for (unsigned i = 5; i < fake_kafka.n; i++) {
        ack(i);
    }
    ck_assert_uint_eq(p->count.captured, 11);
}
END_TEST

START_TEST(a_pool_that_fills_up_flushes_the_oldest_first) {
    char id[8];

    for (uint32_t i = 1; i < 6; i++) {
        snprintf(id, sizeof(id), "c%u", i);
        fake_take_slot(w, i, id);
        fake_read(w, i, CAP_FRAME_BEGIN, many(40000));
        turn();
        if (i < 5) {
            ck_assert_uint_eq(fake_kafka.n, 0);
        }
    }
    /* five blocks of eight are held: all but the newest two go */
    ck_assert_uint_eq(fake_kafka.n, 3);
    ck_assert_ptr_nonnull(strstr(fake_kafka.records[0].text, "c1#1"));
}
END_TEST

START_TEST(a_flush_of_everything_leaves_nothing_unsent) {
    fake_read(w, 0, CAP_FRAME_BEGIN, "half");
    fake_take_slot(w, 1, "b");
    fake_read(w, 1, CAP_FRAME_BEGIN, "half");
    turn();
    assemble_flush(a);
    ledger_pump(lg);
    ck_assert_uint_eq(fake_kafka.n, 2);
    ck_assert(!ledger_idle(lg));
    ack(0);
    ack(1);
    ck_assert(ledger_idle(lg));
    ck_assert_uint_eq(p->count.open, 2);
}
END_TEST

/* ---- what is in the pool for a successor ---- */

START_TEST(blocks_go_back_when_their_bytes_are_acked_not_before) {
    fake_exchange(w, 0, "GET", "200");
    fake_seal(w);
    turn();
    fake_collect(w);
    ck_assert_uint_eq(w->blocks_back, 0);
    ack(0);
    fake_collect(w);
    ck_assert_uint_eq(w->blocks_back, 1);
}
END_TEST

START_TEST(intent_and_slot_say_what_is_in_doubt_and_what_is_acked) {
    fake_exchange(w, 0, "GET", "200");
    turn();
    ck_assert_uint_eq(atomic_load(&intent(0)->number), 1);
    ck_assert_uint_eq(atomic_load(&intent(0)->acked), 0);
    ck_assert_uint_eq(intent(0)->first_seq, 1);
    ck_assert_uint_eq(intent(0)->last_seq, 4);
    ck_assert_int_eq(intent(0)->partition, 'a' % 3);
    ck_assert_int_eq(intent(0)->low_water, 100 + 'a' % 3);
    ck_assert_uint_eq(intent(0)->prior_requests, 0);
    ck_assert_uint_eq(slot(0)->next_number, 1);
    ack(0);
    ck_assert_uint_eq(atomic_load(&intent(0)->number), 0);
    ck_assert_uint_eq(slot(0)->next_number, 2);
    ck_assert_uint_eq(slot(0)->requests, 1);
    ck_assert_uint_eq(slot(0)->unterminated_read, 0);
    ck_assert_uint_eq(CAP_ACKED_SEQ(atomic_load(&slot(0)->acked)), 4);
    ck_assert_int_eq(slot(0)->partition, 'a' % 3);
    ck_assert_int_eq(slot(0)->last_offset, 0);
}
END_TEST

/* A repetition that the broker has recognised is reported without its place. */
START_TEST(an_acknowledgement_without_an_offset_moves_no_mark) {
    fake_exchange(w, 0, "1", "one");
    turn();
    ack(0);
    fake_exchange(w, 0, "2", "two");
    turn();
    ack(1);
    ck_assert_int_eq(slot(0)->last_offset, 1);
    fake_exchange(w, 0, "3", "three");
    turn();
    fake_kafka.records[2].reported = fake_kafka.records[2].acked = true;
    fake_kafka.events->delivered(fake_kafka.records[2].producer->owner,
                                 fake_kafka.records[2].record, KAFKA_ACKED, -1,
                                 "");
    ck_assert_int_eq(slot(0)->last_offset, 1);
    ck_assert_uint_eq(slot(0)->next_number, 4);
}
END_TEST

START_TEST(another_owner_stops_everything) {
    fake_exchange(w, 0, "1", "one");
    turn();
    fake_exchange(w, 0, "2", "two");
    turn();
    atomic_fetch_add(&w->header->owner_generation, 1);
    ack(0);
    ck_assert_uint_eq(fake_kafka.n, 1);
    ck_assert_uint_eq(slot(0)->next_number, 1);
    ck_assert_uint_eq(atomic_load(&intent(0)->number), 1);
    ck_assert_uint_eq(atomic_load(&intent(0)->acked), 0);
    ck_assert(p->disowned);
}
END_TEST

START_TEST(what_is_discarded_is_neither_sent_nor_counted) {
    fake_exchange(w, 0, "1", "one");
    turn();
    fake_take_slot(w, 1, "b");
    fake_read(w, 1, CAP_FRAME_BEGIN, "2");
    turn();
    assemble_discard(a);
    ck_assert(!assemble_empty(a)); /* the report is still to come */
    ack(0);
    ck_assert(assemble_empty(a));
    pass(10 * S);
    ck_assert_uint_eq(fake_kafka.n, 1);
    ck_assert_uint_eq(p->count.open, 2);
}
END_TEST

/* ---- reports ---- */

START_TEST(what_is_not_persisted_is_sent_again_as_it_was) {
    fake_exchange(w, 0, "1", "one");
    turn();
    fake_exchange(w, 0, "2", "two");
    turn();
    report(0, KAFKA_NOT_PERSISTED);
    pass(99 * MS);
    ck_assert_uint_eq(fake_kafka.n, 1);
    pass(1 * MS);
    ck_record(1, "a#1 R(1) E(14,711) W(one)");
    report(1, KAFKA_NOT_PERSISTED);
    pass(199 * MS);
    ck_assert_uint_eq(fake_kafka.n, 2);
    pass(1 * MS);
    for (unsigned i = 2; i < 10; i++) {
        ck_assert_uint_eq(fake_kafka.n, i + 1);
        report(i, KAFKA_NOT_PERSISTED);
        pass(5 * S); /* the most it waits */
    }
    ack(10);
    ck_record(11, "a#2+1 R(2) E(14,711) W(two)");
    ack(11);
    ck_assert_uint_eq(p->count.captured, 2);
}
END_TEST

START_TEST(a_full_queue_or_kafka_away_holds_and_loses_nothing) {
    fake_kafka.ready = false;
    fake_exchange(w, 0, "1", "one");
    turn();
    pass(100 * S);
    fake_kafka.ready = true;
    fake_kafka.full = true;
    turn();
    turn();
    fake_exchange(w, 0, "2", "two");
    turn();
    fake_kafka.full = false;
    turn();
    ck_record(0, "a#1 R(1) E(14,711) W(one)");
    ack(0);
    ck_record(1, "a#2+1 R(2) E(14,711) W(two)");
}
END_TEST

START_TEST(a_rejected_record_ends_its_connection) {
    fake_exchange(w, 0, "1", "one");
    turn();
    ack(0);
    fake_exchange(w, 0, "2", "two");
    turn();
    fake_exchange(w, 0, "3", "three");
    fake_read(w, 0, CAP_FRAME_BEGIN, "4");
    turn();
    report(1, KAFKA_REJECTED);
    ck_assert_uint_eq(p->count.captured, 1);
    ck_assert_uint_eq(p->count.reason[CAP_RECORD_REJECTED], 3);
    /* its number is free again; the topic's reader learns that it is over */
    ck_record(2, "a#2!+1 X(capture abandoned: record_rejected) C");
    fake_collect(w);
    ck_assert_uint_eq(w->slots_back, 1); /* so that the worker learns it */

    /* it had not yet when it wrote these */
    w->slot_generation[0]--;
    fake_read(w, 0, 0, "4, the rest");
    fake_eom(w, 0, 0);
    fake_end(w, 0, 0);
    fake_exchange(w, 0, "5", "five");
    fake_control(w, 0, CAP_FRAME_CLOSE, 0);
    w->slot_generation[0]++;
    turn();
    ck_assert_uint_eq(p->count.reason[CAP_RECORD_REJECTED], 4);
    fake_take_slot(w, 0, "a2");
    fake_exchange(w, 0, "6", "six");
    turn();
    ck_record(3, "a2#1 R(6) E(14,711) W(six)");
    ack(2);
    ack(3);
    ck_assert_uint_eq(p->count.captured, 2);
}
END_TEST

START_TEST(a_rejected_first_record_leaves_nothing_in_the_topic) {
    fake_exchange(w, 0, "1", "one");
    turn();
    report(0, KAFKA_REJECTED);
    ck_assert_uint_eq(fake_kafka.n, 1);
    ck_assert(assemble_empty(a));
    fake_seal(w);
    turn();
    fake_collect(w);
    ck_assert_uint_eq(w->blocks_back, 1);
}
END_TEST

START_TEST(a_rejected_response_is_a_lost_response) {
    fake_read(w, 0, CAP_FRAME_BEGIN, "1");
    fake_eom(w, 0, CAP_FRAME_WAIT);
    turn();
    ack(0);
    fake_write(w, 0, "one");
    fake_end(w, 0, 0);
    turn();
    pass(S);
    report(1, KAFKA_REJECTED);
    ck_assert_uint_eq(p->count.reason[CAP_RESPONSE], 1);
    report(2, KAFKA_REJECTED); /* even its end: so be it */
    ck_assert(assemble_empty(a));
}
END_TEST

/* ---- doubt where the topic cannot be read ---- */

static void open_blind(bool known, bool drop) {
    assemble_free(a);
    ledger_stop(lg, 0);
    ledger_free(lg);
    conf.settle_drop = drop;
    lg = ledger_new(&conf, l, &assemble_events);
    a = assemble_new(p, lg, l, S);
    p->closed = p->left = false;
    fake_kafka.blind = true;
    fake_kafka.unreadable = known;
}

/* Record `i`, and that it is known that its partition cannot be read. */
static void doubt(unsigned i) {
    unsigned barrier = fake_kafka.n;

    report(i, KAFKA_IN_DOUBT);
    pass(10 * S);
    if (!fake_kafka.unreadable) {
        ck_assert_uint_eq(fake_kafka.n, barrier + 1);
        ack(barrier);
        pass(S);
    }
}

static unsigned acked_flags(void) {
    return CAP_ACKED_FLAGS(slot(0)->acked);
}

START_TEST(what_is_in_doubt_is_sent_again_under_another_id) {
    open_blind(false, false);
    fake_exchange(w, 0, "1", "one");
    turn();
    ack(0);
    fake_exchange(w, 0, "2", "two");
    turn();
    fake_exchange(w, 0, "3", "three");
    fake_read(w, 0, CAP_FRAME_BEGIN, "4");
    turn();
    doubt(1);
    ck_record(3, "a.1#1 R(2) E(14,711) W(two) R(3) E(14,711) W(three) R(4)");
    ck_assert_uint_eq(p->count.doubled, 1);
    ck_assert_uint_eq(w->header->sidecar.doubled, 1);
    ck_assert_uint_eq(slot(0)->renames, 1);
    ck_assert_uint_eq(intent(0)->number, 1);
    ck_assert_uint_eq(p->count.captured, 1);
    fake_eom(w, 0, CAP_FRAME_WAIT);
    fake_end(w, 0, 0);
    turn();
    doubt(3); /* again */
    ck_record(5, "a.2#1 R(2) E(14,711) W(two) R(3) E(14,711) W(three) R(4) "
                 "E(14,711)");
    ck_assert_uint_eq(p->count.doubled, 3);
    ack(5);
    ck_assert_uint_eq(p->count.captured, 4);
    fake_control(w, 0, CAP_FRAME_CLOSE, 0);
    turn();
    ck_record(6, "a.2#2!+3 C");
    ack(6);
    fake_collect(w);
    ck_assert_uint_eq(w->slots_back, 1);
    ck_assert(assemble_empty(a));
    fake_take_slot(w, 0, "b");
    fake_exchange(w, 0, "5", "five");
    turn();
    ck_record(7, "b#1 R(5) E(14,711) W(five)");
}
END_TEST

START_TEST(what_is_in_doubt_is_dropped_and_what_follows_goes_on) {
    open_blind(false, true);
    fake_exchange(w, 0, "1", "one");
    turn();
    fake_exchange(w, 0, "2", "two");
    fake_read(w, 0, CAP_FRAME_BEGIN, "3");
    turn();
    doubt(0);
    ck_record(2, "a.1#1 R(2) E(14,711) W(two) R(3)");
    ck_assert_uint_eq(p->count.reason[CAP_MAYBE_LOST], 1);
    ck_assert_uint_eq(p->count.doubled, 0);
}
END_TEST

/* A request without its end is replayed by nobody: it is sent again whole, or
   what is left of it is of no use. */
START_TEST(a_request_whose_end_is_not_in_doubt_is_never_doubled) {
    open_blind(_i & 1, _i & 2);
    fake_read(w, 0, CAP_FRAME_BEGIN, "1, ");
    turn();
    pass(S);
    ack(0);
    ck_assert_uint_eq(acked_flags(),
                      CAP_ACKED_OPEN | (_i & 1 ? CAP_ACKED_KEPT : 0));
    fake_read(w, 0, 0, "more, ");
    turn();
    pass(S);
    fake_read(w, 0, 0, "all");
    turn();
    doubt(1);
    ck_assert_uint_eq(p->count.doubled, 0);
    fake_eom(w, 0, 0);
    fake_write(w, 0, "one");
    fake_end(w, 0, 0);
    fake_exchange(w, 0, "2", "two");
    turn();
    if (_i & 1) {
        ck_record(2, "a.1#1 R(1, ) R(more, ) R(all)");
        ack(2);
        ck_record(3, "a.1#2u E(14,711) W(one) R(2) E(14,711) W(two)");
    } else {
        ck_record(3, "a.1#1 R(2) E(14,711) W(two)");
    }
    ck_assert_uint_eq(p->count.reason[CAP_MAYBE_LOST], _i & 1 ? 0 : 1);
}
END_TEST

/* Its first bytes are in the topic and nowhere else, or they have been kept. */
START_TEST(a_request_in_two_records_is_sent_again_where_it_was_kept) {
    open_blind(_i, false);
    fake_read(w, 0, CAP_FRAME_BEGIN, "1, ");
    turn();
    pass(S);
    ack(0);
    fake_seal(w);
    fake_eom(w, 0, CAP_FRAME_WAIT);
    turn();
    fake_collect(w);
    ck_assert_uint_eq(w->blocks_back, _i ? 0 : 1);
    doubt(1);
    if (_i) {
        ck_record(2, "a.1#1 R(1, ) E(14,711)");
        ck_assert_uint_eq(p->count.doubled, 1);
        ck_assert_uint_eq(acked_flags() & ~CAP_ACKED_WAITS, 0);
        ck_assert_uint_eq(CAP_ACKED_SEQ(slot(0)->acked), 0);
        ack(2);
        fake_collect(w);
        ck_assert_uint_eq(w->blocks_back, 1); /* with its end they may go */
    } else {
        /* who waits for it learns that it is not durable */
        ck_assert_uint_eq(acked_flags(), CAP_ACKED_OPEN | CAP_ACKED_EOM |
                                             CAP_ACKED_WAITS | CAP_ACKED_LOST);
        ck_assert_uint_eq(CAP_ACKED_SEQ(slot(0)->acked), 2);
        ck_assert(p->rings);
    }
    fake_write(w, 0, "one");
    fake_end(w, 0, 0);
    turn();
    ck_assert_uint_eq(p->count.reason[CAP_MAYBE_LOST], !_i);
    ck_assert_uint_eq(acked_flags() & CAP_ACKED_LOST, 0);
}
END_TEST

START_TEST(a_response_in_doubt_is_lost_to_its_end) {
    open_blind(true, false);
    fake_read(w, 0, CAP_FRAME_BEGIN, "1");
    fake_eom(w, 0, CAP_FRAME_WAIT);
    turn();
    ack(0);
    fake_write(w, 0, "one, ");
    turn();
    pass(S);
    doubt(1);
    ck_assert_uint_eq(p->count.reason[CAP_MAYBE_LOST], 0);
    fake_write(w, 0, "all");
    turn();
    if (_i == 0) {
        fake_end(w, 0, 0);
        fake_exchange(w, 0, "2", "two");
        turn();
        pass(S);
        ck_record(2, "a.1#1 R(2) E(14,711) W(two)");
        ack(2);
        ck_assert_uint_eq(p->count.captured, 1);
    } else if (_i == 1) {
        fake_control(w, 0, CAP_FRAME_ABANDON, CAP_RESPONSE);
        turn();
        ck_assert(assemble_empty(a));
    } else {
        pool_close(p);
        assemble_end(a, _i == 2 ? CAP_WORKER_EXIT : CAP_BAD_LINK);
        ck_assert(assemble_empty(a));
    }
    ck_assert_uint_eq(p->count.reason[CAP_MAYBE_LOST], 1);
    ck_assert_uint_eq(p->count.open, 0);
}
END_TEST

/* Nothing of it had an end: then it was dropped, and no more is to be said. */
START_TEST(a_request_in_doubt_that_is_dropped_is_filtered) {
    open_blind(false, false);
    fake_read(w, 0, CAP_FRAME_BEGIN, "1, ");
    turn();
    pass(S);
    ack(0);
    fake_read(w, 0, 0, "more");
    turn();
    pass(S);
    doubt(1);
    fake_control(w, 0, CAP_FRAME_DROP, CAP_CLIENT_ABORT);
    turn();
    ck_assert_uint_eq(p->count.reason[CAP_CLIENT_ABORT], 1);
    ck_assert_uint_eq(p->count.reason[CAP_MAYBE_LOST], 0);
}
END_TEST

/* The end of a request that was in doubt can be taken back, now that it is to be
   sent again. */
START_TEST(a_request_in_doubt_that_was_refused_is_not_replayed) {
    open_blind(false, false);
    fake_read(w, 0, CAP_FRAME_BEGIN, "1");
    fake_eom(w, 0, CAP_FRAME_WAIT);
    turn();
    report(0, KAFKA_IN_DOUBT);
    fake_control(w, 0, CAP_FRAME_DROP, CAP_REFUSED);
    turn();
    pass(10 * S);
    ack(1);
    pass(S);
    ck_record(2, "a.1#1 R(1) D");
    ack(2);
    ck_assert_uint_eq(p->count.reason[CAP_REFUSED], 1);
}
END_TEST

START_TEST(only_who_is_in_doubt_waits) {
    fake_take_slot(w, 1, "d"); /* in the same partition */
    fake_exchange(w, 0, "1", "one");
    turn();
    report(0, KAFKA_IN_DOUBT);
    fake_exchange(w, 0, "2", "two");
    fake_exchange(w, 1, "3", "three");
    turn();
    ck_assert_uint_eq(fake_kafka.n, 2);
    ck_record(1, "d#1 R(3) E(14,711) W(three)");
    ck_assert_int_eq(fake_kafka.records[1].partition,
                     fake_kafka.records[0].partition);
}
END_TEST

/* Nothing follows the record in doubt, not even a close. */
START_TEST(an_id_that_is_given_up_in_doubt_says_no_more) {
    open_blind(false, false);
    fake_take_slot(w, 1, "b12345678901234567890123456789012345678901234567890");
    fake_exchange(w, 1, "1", "one");
    turn();
    ack(0);
    fake_exchange(w, 1, "2", "two");
    turn();
    doubt(1);
    turn();
    pass(S);
    ck_assert_uint_eq(p->count.reason[CAP_MAYBE_LOST], 1);
    ck_assert_uint_eq(fake_kafka.n, 3); /* with the barrier */
}
END_TEST

/* So long something of its producer may be on its way; each has it in full. */
START_TEST(settle_time_passes_before_the_topic_is_asked) {
    conf.settle_time = 3 * S;
    open_blind(false, false);
    fake_take_slot(w, 1, "d"); /* in the same partition */
    fake_exchange(w, 0, "1", "one");
    fake_exchange(w, 1, "2", "two");
    turn();
    report(0, KAFKA_IN_DOUBT);
    pass(2 * S);
    ck_assert_uint_eq(fake_kafka.n, 2);
    report(1, KAFKA_IN_DOUBT);
    pass(2 * S);
    ck_assert_uint_eq(fake_kafka.n, 2);
    pass(2 * S);
    ck_assert_uint_eq(fake_kafka.n, 3); /* the barrier, where they are */
    ck_assert_int_eq(fake_kafka.records[2].partition,
                     fake_kafka.records[0].partition);
    conf.settle_time = 0;
}
END_TEST

/* Whatever was tried first may be found from there on only. */
START_TEST(a_low_water_is_that_of_the_first_time) {
    int64_t first;

    fake_exchange(w, 0, "1", "one");
    turn();
    first = intent(0)->low_water;
    fake_kafka.grown = 50;
    report(0, KAFKA_IN_DOUBT);
    pass(S);
    ack(1); /* the barrier, at 1 */
    ck_assert_int_eq(fake_kafka.read_from, first);
    fake_kafka.read(fake_kafka.read_owner, fake_kafka.reading, KAFKA_READ_END,
                    2, NULL, 0, "");
    pass(S);
    turn();
    ck_record(2, "a#1 R(1) E(14,711) W(one)");
    ck_assert_int_eq(intent(0)->low_water, first);
    ack(2);
    fake_exchange(w, 0, "2", "two");
    turn();
    ck_assert_int_eq(intent(0)->low_water, first + 50);
}
END_TEST

START_TEST(another_owner_stops_a_settlement) {
    open_blind(false, false);
    fake_exchange(w, 0, "1", "one");
    turn();
    atomic_fetch_add(&w->header->owner_generation, 1);
    doubt(0);
    turn();
    ck_assert_uint_eq(slot(0)->renames, 0);
    ck_assert_uint_eq(intent(0)->flags, 0);
    ck_assert_uint_eq(atomic_load(&intent(0)->number), 1);
    ck_assert_uint_eq(w->header->sidecar.doubled, 0);
    ck_assert_uint_eq(fake_kafka.n, 2); /* with the barrier */
}
END_TEST

/* Without room for another name it ends as ever. */
START_TEST(an_id_that_is_too_long_is_abandoned) {
    open_blind(false, false);
    fake_take_slot(w, 1, "b12345678901234567890123456789012345678901234567890");
    fake_exchange(w, 1, "1", "one");
    turn();
    fake_exchange(w, 1, "2", "two");
    turn();
    doubt(0);
    ck_assert_uint_eq(p->count.reason[CAP_MAYBE_LOST], 2);
    fake_collect(w);
    ck_assert_uint_eq(w->slots_back, 1);
}
END_TEST

/* ---- one that waits, with blocks that others need ---- */

/* Exchanges of both connections in each of seven blocks; only b's are taken.
   They are recorded from `first` on. */
static void fill(unsigned first) {
    for (unsigned i = 0; i < 7; i++) {
        fake_seal(w);
        fake_exchange(w, 0, "more", "of it");
        fake_exchange(w, 1, "2", "two");
        turn();
        pass(MS);
        ack(first + i);
    }
}

START_TEST(what_is_stuck_is_given_up_so_that_others_lose_nothing) {
    fake_take_slot(w, 1, "b");
    fake_exchange(w, 0, "1", "one");
    turn();
    pass(MS);
    fill(1);
    ck_assert_uint_eq(p->held, 8);
    pass(S / 2);
    ck_assert_uint_eq(p->count.reason[CAP_PINNED], 0);
    turn();
    pass(S);
    turn();
    ck_assert_uint_eq(p->count.reason[CAP_PINNED], 8);
    ck_assert_uint_eq(p->count.captured, 7);
    fake_collect(w);
    ck_assert_uint_eq(w->slots_back, 1);
    ck_assert_uint_eq(w->blocks_back, 7);
    fake_take_slot(w, 0, "c");
    fake_exchange(w, 0, "1", "one");
    fake_exchange(w, 1, "2", "two");
    turn();
    ck_record(8, "c#1 R(1) E(14,711) W(one)");
    ck_record(9, "b#8+7 R(2) E(14,711) W(two)");
    report(0, _i == 0   ? KAFKA_ACKED
              : _i == 1 ? KAFKA_NOT_PERSISTED
                        : KAFKA_IN_DOUBT); /* nobody asks any more */
    ck_assert_uint_eq(p->count.captured, 7);
    ck_assert_uint_eq(fake_kafka.n, 10);
    ack(8);
    ack(9);
    ck_assert_uint_eq(p->count.captured, 9);
}
END_TEST

/* Kafka has nothing of it then: no report will come. */
START_TEST(what_waits_for_its_next_try_is_given_up) {
    fake_take_slot(w, 1, "b");
    fake_exchange(w, 0, "1", "one");
    turn();
    pass(MS);
    fill(1);
    pass(980 * MS);
    ck_assert_uint_eq(p->count.reason[CAP_PINNED], 0);
    report(0, KAFKA_NOT_PERSISTED); /* again after 100 ms */
    pass(98 * MS);
    ck_assert_uint_eq(p->count.reason[CAP_PINNED], 8);
    pass(10 * S);
    ck_assert_uint_eq(fake_kafka.n, 8);
    ck_assert_uint_eq(metrics_cell[METRIC_INFLIGHT_RECORDS], 0);
}
END_TEST

/* When Kafka takes nothing of anybody, nobody is to blame. */
START_TEST(where_all_wait_nobody_is_given_up) {
    fake_take_slot(w, 1, "b");
    fake_exchange(w, 1, "2", "two");
    turn();
    ack(0);
    fake_exchange(w, 0, "1", "one");
    fake_exchange(w, 1, "2", "two");
    for (unsigned i = 0; i < 7; i++) {
        fake_seal(w);
        fake_exchange(w, i % 2, "more", "of it");
        turn();
    }
    ck_assert_uint_eq(p->held, 8);
    for (unsigned i = 0; i < 10; i++) {
        pass(S);
        turn();
    }
    ck_assert_uint_eq(p->count.reason[CAP_PINNED], 0);
}
END_TEST

/* Nor while there is room. */
START_TEST(what_waits_and_is_in_nobodys_way_is_left_alone) {
    fake_take_slot(w, 1, "b");
    fake_exchange(w, 0, "1", "one");
    turn();
    for (unsigned i = 0; i < 20; i++) {
        pass(S);
        fake_seal(w);
        fake_exchange(w, 1, "2", "two");
        turn();
        ack(1 + i);
    }
    ck_assert_uint_eq(p->count.reason[CAP_PINNED], 0);
    ack(0);
    ck_assert_uint_eq(p->count.captured, 21);
}
END_TEST

/* What is in doubt waits too. */
START_TEST(what_stays_in_doubt_is_given_up) {
    fake_take_slot(w, 1, "b");
    fake_exchange(w, 0, "1", "one");
    turn();
    report(0, KAFKA_IN_DOUBT);
    pass(MS);
    fill(2); /* 1 is the barrier */
    for (unsigned i = 0; i < 3; i++) {
        pass(S);
        turn();
    }
    ck_assert_uint_eq(p->count.reason[CAP_PINNED], 8);
    ck_assert_uint_eq(metrics_cell[METRIC_DOUBTS], 0);
    ck_assert_uint_eq(fake_kafka.n, 9);
    ack(1);
    pass(10 * S);
    ck_assert_uint_eq(fake_kafka.n, 9);
}
END_TEST

/* ---- the worker's end ---- */

START_TEST(a_workers_end_closes_what_is_idle_and_breaks_what_is_not) {
    fake_take_slot(w, 1, "b");
    fake_take_slot(w, 2, "c");
    fake_exchange(w, 0, "1", "one");
    fake_read(w, 1, CAP_FRAME_BEGIN, "2");
    fake_eom(w, 1, 0);
    fake_read(w, 2, CAP_FRAME_BEGIN, "3");
    turn();
    ack(0);
    pool_close(p);
    assemble_end(a, CAP_WORKER_EXIT);
    ledger_pump(lg);
    ck_record(1, "a#2!+1 C");
    ck_record(2, "b#1! R(2) E(14,711) X(capture: worker ended) C");
    ck_assert_uint_eq(fake_kafka.n, 3); /* of c the topic has nothing */
    ck_assert_uint_eq(p->count.reason[CAP_WORKER_EXIT], 1);
    ack(1);
    ack(2);
    ck_assert_uint_eq(p->count.reason[CAP_RESPONSE], 1);
    ck_assert_uint_eq(p->count.open, 0);
    ck_assert(assemble_empty(a));
}
END_TEST

START_TEST(a_workers_end_in_a_sent_request_is_its_loss) {
    fake_read(w, 0, CAP_FRAME_BEGIN, "half");
    turn();
    pass(S);
    fake_read(w, 0, 0, " more");
    turn();
    pool_close(p);
    assemble_end(a, CAP_WORKER_EXIT);
    ack(0);
    ck_record(1, "a#2!u R( more) X(capture: worker ended) C");
    ack(1);
    ck_assert_uint_eq(p->count.reason[CAP_WORKER_EXIT], 1);
    ck_assert(assemble_empty(a));
}
END_TEST

START_TEST(a_bad_link_sends_only_the_end_of_what_the_topic_has) {
    fake_take_slot(w, 1, "b");
    fake_exchange(w, 0, "1", "one");
    turn(); /* in flight */
    fake_exchange(w, 0, "2", "two");
    fake_read(w, 1, CAP_FRAME_BEGIN, "3");
    fake_eom(w, 1, 0);
    turn();
    pool_close(p);
    assemble_end(a, CAP_BAD_LINK);
    ck_assert_uint_eq(p->count.reason[CAP_BAD_LINK], 2);
    ack(0);
    ck_assert_uint_eq(p->count.captured, 1);
    ck_record(1, "a#2!+1 X(capture abandoned: bad_link) C");
    ack(1);
    pass(10 * S);
    ck_assert_uint_eq(fake_kafka.n, 2);
    ck_assert(assemble_empty(a));
    ck_assert_uint_eq(p->held, 1); /* the block in work */
}
END_TEST

START_TEST(a_bad_link_cuts_a_frame_that_is_half_sent) {
    fake_kafka.limit = 8192;
    fake_read(w, 0, CAP_FRAME_BEGIN, "GET");
    fake_eom(w, 0, 0);
    fake_write(w, 0, many(30000));
    fake_end(w, 0, 0);
    turn();
    ack(0);
    if (_i == 1) {
        report(1, KAFKA_NOT_PERSISTED); /* no record is with Kafka now */
    }
    pool_close(p);
    assemble_end(a, CAP_BAD_LINK);
    ck_assert_uint_eq(p->count.open, 1);
    pass(S);
    ack(1 + (unsigned)_i);
    ck_assert_ptr_nonnull(strstr(fake_kafka.records[2 + _i].text,
                                 "a#3!+1 X(capture abandoned: bad_link) C"));
    ack(2 + (unsigned)_i);
    ck_assert_uint_eq(p->count.reason[CAP_RESPONSE], 1);
    ck_assert(assemble_empty(a));
}
END_TEST

/* ---- bad input ---- */

static void ends_link(const char *words) {
    enum cap_reason reason = turn_says();

    ck_assert_uint_eq(reason, CAP_BAD_LINK);
    ck_assert_msg(strstr(why, words) != NULL, "\"%s\"", why);
    pool_close(p);
    assemble_end(a, CAP_BAD_LINK);
    balanced();
}

START_TEST(frames_out_of_place_end_the_link) {
    switch (_i) {
    case 0:
        fake_read(w, 0, 0, "x");
        break;
    case 1:
        fake_eom(w, 0, 0);
        break;
    case 2:
        fake_write(w, 0, "x");
        break;
    case 3:
        fake_end(w, 0, 0);
        break;
    case 4:
        fake_control(w, 0, CAP_FRAME_DROP, CAP_RULE);
        break;
    case 5:
        fake_read(w, 0, CAP_FRAME_BEGIN, "x");
        fake_read(w, 0, CAP_FRAME_BEGIN, "x");
        break;
    case 6:
        fake_read(w, 0, CAP_FRAME_BEGIN, "x");
        fake_end(w, 0, 0);
        break;
    case 7:
        fake_read(w, 0, CAP_FRAME_BEGIN, "x");
        fake_write(w, 0, "x");
        break;
    case 8:
        fake_read(w, 0, CAP_FRAME_BEGIN, "x");
        fake_control(w, 0, CAP_FRAME_CLOSE, 0);
        break;
    case 9:
        fake_read(w, 0, CAP_FRAME_BEGIN, "x");
        fake_eom(w, 0, 0);
        fake_eom(w, 0, 0);
        break;
    case 10:
        fake_read(w, 0, CAP_FRAME_BEGIN, "x");
        fake_eom(w, 0, 0);
        fake_write(w, 0, "x");
        fake_control(w, 0, CAP_FRAME_DROP, CAP_RULE);
        break;
    case 11:
        fake_exchange(w, 0, "x", "x");
        turn();
        fake_control(w, 0, CAP_FRAME_CLOSE, 0);
        turn(); /* unacknowledged */
        fake_read(w, 0, CAP_FRAME_BEGIN, "x");
        break;
    }
    ends_link("wrong place");
}
END_TEST

START_TEST(impossible_codes_end_the_link) {
    static const unsigned codes[][2] = {{CAP_FRAME_DROP, CAP_POOL_FULL},
                                        {CAP_FRAME_DROP, 0},
                                        {CAP_FRAME_DROP, 65535},
                                        {CAP_FRAME_ABANDON, CAP_RULE},
                                        {CAP_FRAME_ABANDON, 64}};

    fake_read(w, 0, CAP_FRAME_BEGIN, "x");
    fake_control(w, 0, codes[_i][0], codes[_i][1]);
    ends_link("code");
}
END_TEST

START_TEST(a_slot_that_lies_ends_the_link) {
    cap_slot *s = slot(0);

    switch (_i) {
    case 0:
        s->id_len = 0;
        break;
    case 1:
        s->id_len = 53;
        break;
    case 2:
        s->id[0] = '|';
        break;
    case 3:
        s->id[0] = '/';
        break;
    case 4:
        s->id[0] = (char)0xc3;
        break;
    case 5:
        s->generation += 2;
        break;
    case 6:
        s->topic = 1;
        break;
    }
    fake_read(w, 0, CAP_FRAME_BEGIN, "x");
    ck_assert_uint_eq(turn_says(), CAP_BAD_LINK);
    ck_assert(assemble_empty(a));
}
END_TEST

START_TEST(a_slot_taken_twice_ends_the_link) {
    fake_exchange(w, 0, "x", "x");
    turn();
    slot(0)->generation = (w->slot_generation[0] += 2);
    fake_read(w, 0, CAP_FRAME_BEGIN, "x");
    ends_link("taken twice");
}
END_TEST

START_TEST(a_closed_connection_does_not_come_back) {
    fake_control(w, 0, CAP_FRAME_CLOSE, 0);
    turn();
    fake_read(w, 0, CAP_FRAME_BEGIN, "x");
    ends_link("closed");
}
END_TEST

START_TEST(times_are_made_sound) {
    struct timespec now;

    clock_gettime(CLOCK_REALTIME, &now);
    w->ts_ns = 4000000000ll * S; /* year 2096 */
    fake_read(w, 0, CAP_FRAME_BEGIN, "x");
    w->ts_ns = 1000; /* describe() checks that they do not go back */
    fake_eom(w, 0, 0);
    fake_end(w, 0, 0);
    fake_take_slot(w, 1, "b");
    w->ts_ns = -S;
    fake_exchange(w, 1, "y", "y");
    turn();
    for (unsigned i = 0; i < 2; i++) {
        record_reader reader;
        record_info info;
        record_observation o;

        record_open(&reader, fake_kafka.records[i].value,
                    fake_kafka.records[i].len, &info);
        while (record_next(&reader, &o)) {
            ck_assert_int_le(labs(o.ts_seconds - now.tv_sec), 86402);
        }
    }
}
END_TEST

/*
 * Any traffic, any reports, any order: the fake Kafka checks every record
 * (times, ends, one at a time), the fake worker every return, `balanced`
 * every count.  At the end nothing is held.
 */
static unsigned seed;

static unsigned dice(unsigned n) {
    return (unsigned)rand_r(&seed) % n;
}

static void random_frame(uint32_t i, uint8_t *phase) {
    static unsigned ids;
    char id[24];

    fake_collect(w);
    if (!(w->slot_generation[i] & 1)) {
        snprintf(id, sizeof(id), "r%u", ++ids);
        fake_take_slot(w, i, id);
        *phase = 0;
    }
    if (w->nfree < 2 || *phase == 9) {
        return; /* 9: closed, and not back yet */
    }
    switch (*phase) {
    case 0:
        if (dice(12) == 0) {
            fake_control(w, i, CAP_FRAME_CLOSE, 0);
            *phase = 9;
        } else {
            fake_read(w, i, CAP_FRAME_BEGIN, many(1 + dice(3000)));
            *phase = 1;
        }
        break;
    case 1:
        switch (dice(8)) {
        case 0:
            fake_control(w, i, CAP_FRAME_DROP, CAP_RULE);
            *phase = 0;
            break;
        case 1:
            fake_control(w, i, CAP_FRAME_ABANDON, CAP_POOL_FULL);
            *phase = 9;
            break;
        case 2:
        case 3:
            fake_read(w, i, 0, many(1 + dice(20000)));
            break;
        default:
            fake_eom(w, i, dice(3) == 0 ? CAP_FRAME_WAIT : 0);
            *phase = 2;
        }
        break;
    case 2:
        if (dice(8) == 0) {
            fake_control(w, i, CAP_FRAME_ABANDON, CAP_RESPONSE);
            *phase = 9;
        } else if (dice(3) == 0) {
            bool cut = dice(8) == 0;

            fake_end(w, i, cut ? CAP_END_TRUNCATED : 0);
            *phase = cut ? 9 : 0;
        } else {
            fake_write(w, i, many(1 + dice(20000)));
        }
        break;
    }
}

static kafka_result random_result(void) {
    unsigned n = dice(40);

    return n == 0   ? KAFKA_REJECTED
           : n == 1 ? KAFKA_IN_DOUBT
           : n < 6  ? KAFKA_NOT_PERSISTED
                    : KAFKA_ACKED;
}

static void random_reports(unsigned *first, bool all) {
    while (*first < fake_kafka.n && fake_kafka.records[*first].reported) {
        ++*first;
    }
    for (unsigned i = *first; i < fake_kafka.n; i++) {
        if (!fake_kafka.records[i].reported && (all || dice(2) == 0)) {
            report(i, all ? KAFKA_ACKED : random_result());
        }
    }
}

/* ---- destinations ---- */

static void open_again(void) {
    ledger_stop(lg, 0);
    assemble_free(a);
    ledger_free(lg);
    pool_free(p);
    fake_kafka.nproducers = 0;
    p = pool_open(w->fd, UINT64_MAX, &why);
    pool_own(p);
    lg = ledger_new(&conf, l, &assemble_events);
    a = assemble_new(p, lg, l, S);
}

/* "b" is one of them, and "x" is not; slot 1 is for b, slot 2 for x. */
static void open_destinations(void) {
    static config_destination b = {.name = "b", .topic = "second"};

    open_all();
    conf.destinations = &b;
    conf.ndestinations = 1;
    conf.topic = (char *)"first";
    open_again();
    w->topic = (uint16_t)fake_topic(w, "b");
    fake_take_slot(w, 1, "b1");
    w->topic = (uint16_t)fake_topic(w, "x");
    fake_take_slot(w, 2, "x1");
}

#define ck_topic(i, expected)                                                  \
    ck_assert_str_eq(fake_kafka.records[i].producer->topic, (expected))

START_TEST(each_connection_goes_to_its_destination) {
    fake_exchange(w, 0, "GET /a", "200");
    fake_exchange(w, 1, "GET /b", "201");
    turn();
    fake_exchange(w, 0, "GET /c", "202");
    turn();
    ck_assert_uint_eq(fake_kafka.n, 2);
    ck_record(0, "a#1 R(GET /a) E(14,711) W(200)");
    ck_topic(0, "first");
    ck_record(1, "b1#1 R(GET /b) E(14,711) W(201)");
    ck_topic(1, "second");
    ack(0);
    ck_record(2, "a#2+1 R(GET /c) E(14,711) W(202)");
    ck_topic(2, "first");
    ack(1);
    ack(2);
    ck_assert_uint_eq(p->count.captured, 3);
}
END_TEST

START_TEST(what_is_not_permitted_is_lost_and_sent_nowhere) {
    fake_exchange(w, 2, "GET /x", "200");
    fake_read(w, 2, CAP_FRAME_BEGIN, "GET /y"); /* it has not heard yet */
    fake_exchange(w, 1, "GET /b", "201");
    turn();
    ck_assert_uint_eq(fake_kafka.n, 1);
    ck_topic(0, "second");
    ck_assert_uint_eq(p->count.reason[CAP_NO_TOPIC], 2);
    ck_assert_uint_eq(p->count.open, 1);
    ck_assert(p->rings); /* a client may be waiting for it */
    fake_collect(w);
    ck_assert_uint_eq(w->slots_back, 1);
    fake_take_slot(w, 2, "x2");
    fake_read(w, 2, CAP_FRAME_BEGIN, "GET /z");
    turn();
    ck_assert_uint_eq(p->count.reason[CAP_NO_TOPIC], 3);
    ack(0);
    ck_assert_uint_eq(p->count.captured, 1);
    ck_assert_uint_eq(fake_kafka.n, 1);
}
END_TEST

START_TEST(a_destination_that_is_away_holds_no_other_up) {
    static const char *const topics[] = {"first", "second"};

    fake_kafka.producers[_i].away = true;
    fake_exchange(w, 1, "GET /b", "200");
    fake_exchange(w, 0, "GET /a", "200");
    turn();
    ck_assert_uint_eq(fake_kafka.n, 1);
    ck_topic(0, topics[1 - _i]);
    ack(0);
    ck_assert_uint_eq(p->count.captured, 1);
    ck_assert(!ledger_idle(lg));
    fake_kafka.producers[_i].away = false;
    ledger_pump(lg);
    ck_assert_uint_eq(fake_kafka.n, 2);
    ck_topic(1, topics[_i]);
    ack(1);
    ck_assert(ledger_idle(lg));
}
END_TEST

/* Brokers that have gone leave a destination ready, and take all it is given
   without an answer. */
START_TEST(a_destination_without_answers_uses_its_share_alone) {
    static const char *const topics[] = {"first", "second"};
    unsigned n[2] = {0};

    conf.inflight_size = 64 << 10; /* 32 KiB each */
    open_again();
    for (uint32_t i = 3; i < 63; i++) {
        char id[8];

        w->topic = i % 2;
        snprintf(id, sizeof(id), "c%u", i);
        fake_take_slot(w, i, id);
        fake_exchange(w, i, many(3000), "200");
    }
    turn();
    for (unsigned i = 0; i < fake_kafka.n; i++) {
        n[strcmp(fake_kafka.records[i].producer->topic, topics[1]) == 0]++;
    }
    ck_assert_uint_eq(n[0], 8); /* buffers of 4 KiB */
    ck_assert_uint_eq(n[1], 8);
    for (unsigned i = 0; i < fake_kafka.n; i++) {
        if (strcmp(fake_kafka.records[i].producer->topic, topics[0]) == 0) {
            ack(i);
        }
    }
    ck_assert_uint_eq(p->count.captured, 30);
    ck_assert_uint_eq(fake_kafka.n, 38);
}
END_TEST

START_TEST(a_topic_that_the_pool_does_not_name_ends_the_link) {
    static const struct {
        uint16_t topic;
        const char *name; /* that stands there, or NULL: as it is */
    } cases[] = {{3, NULL},
                 {CAP_TOPIC_NAMES + 1, NULL},
                 {UINT16_MAX, NULL},
                 {1, "a/b"},
                 {1, "\x01"}};

    slot(1)->topic = cases[_i].topic;
    if (cases[_i].name != NULL) {
        strcpy(w->header->topic_names[0], cases[_i].name);
    }
    fake_read(w, 1, CAP_FRAME_BEGIN, "GET");
    ck_assert_int_eq(turn_says(), CAP_BAD_LINK);
    assemble_end(a, CAP_BAD_LINK);
}
END_TEST

/* What it stood for is not what the worker says later. */
START_TEST(a_name_is_looked_up_once) {
    fake_exchange(w, 1, "GET /1", "200");
    turn();
    strcpy(w->header->topic_names[0], "default");
    fake_control(w, 1, CAP_FRAME_CLOSE, 0);
    turn();
    ack(0);
    ack(1);
    fake_collect(w);
    w->topic = 1;
    fake_take_slot(w, 1, "b2");
    fake_exchange(w, 1, "GET /2", "200");
    turn();
    ck_topic(2, "second");
    ack(2);
}
END_TEST

/* ---- anything ---- */

START_TEST(any_traffic_with_any_reports_keeps_every_count) {
    uint8_t phase[64] = {0};
    unsigned first = 0;

    seed = (unsigned)_i;
    fake_kafka.blind = true;
    fake_control(w, 0, CAP_FRAME_CLOSE, 0);
    phase[0] = 9;
    fake_kafka.limit = 6000 + dice(40000);
    while (fake_kafka.n < 1000) {
        for (unsigned i = 0; i < 10; i++) {
            uint32_t at = dice(12);

            random_frame(at, &phase[at]);
        }
        turn();
        random_reports(&first, false);
        pass(dice(2) * 50 * MS);
    }
    pool_close(p);
    if (_i % 2) {
        turn();
    }
    assemble_end(a, _i % 3 ? CAP_WORKER_EXIT : CAP_BAD_LINK);
    for (unsigned i = 0; i < 2000 && !assemble_empty(a); i++) {
        pass(5 * S);
        random_reports(&first, true);
    }
    ck_assert(assemble_empty(a));
    ck_assert(ledger_idle(lg));
    ck_assert_uint_eq(p->count.open, 0);
    ck_assert_uint_le(p->held, 1);
}
END_TEST

int main(void) {
    Suite *s = suite_create("assemble");
    TCase *t = tcase_create("records");
    SRunner *sr;
    int failed;

    tcase_add_checked_fixture(t, open_all, close_all);
    tcase_add_test(t, an_exchange_is_one_record_at_its_end);
    tcase_add_test(t, the_next_record_counts_requests_and_numbers_on);
    tcase_add_test(t, only_one_record_of_a_connection_is_unacknowledged);
    tcase_add_test(t, what_does_not_end_goes_after_flush_time);
    tcase_add_test(t, an_idle_connection_makes_no_empty_record);
    tcase_add_test(t, an_end_alone_takes_its_class_when_all_before_is_acked);
    tcase_add_test(t, a_waited_request_goes_at_once_and_what_follows_later);
    tcase_add_test(t, a_cut_response_ends_the_connection);
    tcase_add_test(t, a_dropped_request_that_was_not_sent_leaves_nothing);
    tcase_add_test(t, a_dropped_request_that_was_sent_is_taken_back);
    tcase_add_test(t, a_connection_with_nothing_to_say_makes_no_record);
    tcase_add_test(t, an_abandoned_exchange_ends_what_the_topic_has);
    tcase_add_test(t, an_abandon_between_exchanges_takes_none_with_it);
    tcase_add_test(t, large_data_is_split_and_nothing_is_missing);
    tcase_add_test(t, a_record_that_is_full_goes_before_the_end);
    tcase_add_test(t, what_does_not_fit_follows_though_nothing_made_it_due);
    tcase_add_test(t, a_dropped_request_that_was_half_sent_is_taken_back);
    tcase_add_test(t, memory_in_flight_is_bounded);
    tcase_add_test(t, a_pool_that_fills_up_flushes_the_oldest_first);
    tcase_add_test(t, a_flush_of_everything_leaves_nothing_unsent);
    suite_add_tcase(s, t);

    t = tcase_create("destinations");
    tcase_add_checked_fixture(t, open_destinations, close_all);
    tcase_add_test(t, each_connection_goes_to_its_destination);
    tcase_add_test(t, what_is_not_permitted_is_lost_and_sent_nowhere);
    tcase_add_loop_test(t, a_destination_that_is_away_holds_no_other_up, 0, 2);
    tcase_add_test(t, a_destination_without_answers_uses_its_share_alone);
    tcase_add_loop_test(t, a_topic_that_the_pool_does_not_name_ends_the_link, 0,
                        5);
    tcase_add_test(t, a_name_is_looked_up_once);
    suite_add_tcase(s, t);

    t = tcase_create("reports");
    tcase_add_checked_fixture(t, open_all, close_all);
    tcase_add_test(t, blocks_go_back_when_their_bytes_are_acked_not_before);
    tcase_add_test(t, intent_and_slot_say_what_is_in_doubt_and_what_is_acked);
    tcase_add_test(t, an_acknowledgement_without_an_offset_moves_no_mark);
    tcase_add_test(t, another_owner_stops_everything);
    tcase_add_test(t, what_is_discarded_is_neither_sent_nor_counted);
    tcase_add_test(t, what_is_not_persisted_is_sent_again_as_it_was);
    tcase_add_test(t, a_full_queue_or_kafka_away_holds_and_loses_nothing);
    tcase_add_test(t, a_rejected_record_ends_its_connection);
    tcase_add_test(t, a_rejected_first_record_leaves_nothing_in_the_topic);
    tcase_add_test(t, a_rejected_response_is_a_lost_response);
    tcase_add_test(t, what_is_in_doubt_is_sent_again_under_another_id);
    tcase_add_test(t, what_is_in_doubt_is_dropped_and_what_follows_goes_on);
    tcase_add_loop_test(t, a_request_whose_end_is_not_in_doubt_is_never_doubled,
                        0, 4);
    tcase_add_loop_test(
        t, a_request_in_two_records_is_sent_again_where_it_was_kept, 0, 2);
    tcase_add_loop_test(t, a_response_in_doubt_is_lost_to_its_end, 0, 4);
    tcase_add_test(t, a_request_in_doubt_that_is_dropped_is_filtered);
    tcase_add_test(t, a_request_in_doubt_that_was_refused_is_not_replayed);
    tcase_add_test(t, only_who_is_in_doubt_waits);
    tcase_add_test(t, settle_time_passes_before_the_topic_is_asked);
    tcase_add_test(t, a_low_water_is_that_of_the_first_time);
    tcase_add_test(t, another_owner_stops_a_settlement);
    tcase_add_test(t, an_id_that_is_given_up_in_doubt_says_no_more);
    tcase_add_test(t, an_id_that_is_too_long_is_abandoned);
    tcase_add_loop_test(
        t, what_is_stuck_is_given_up_so_that_others_lose_nothing, 0, 3);
    tcase_add_test(t, what_waits_for_its_next_try_is_given_up);
    tcase_add_test(t, where_all_wait_nobody_is_given_up);
    tcase_add_test(t, what_waits_and_is_in_nobodys_way_is_left_alone);
    tcase_add_test(t, what_stays_in_doubt_is_given_up);
    suite_add_tcase(s, t);

    t = tcase_create("ends");
    tcase_add_checked_fixture(t, open_all, close_all);
    tcase_add_test(t, a_workers_end_closes_what_is_idle_and_breaks_what_is_not);
    tcase_add_test(t, a_workers_end_in_a_sent_request_is_its_loss);
    tcase_add_test(t, a_bad_link_sends_only_the_end_of_what_the_topic_has);
    tcase_add_loop_test(t, a_bad_link_cuts_a_frame_that_is_half_sent, 0, 2);
    tcase_add_loop_test(t, frames_out_of_place_end_the_link, 0, 12);
    tcase_add_loop_test(t, impossible_codes_end_the_link, 0, 5);
    tcase_add_loop_test(t, a_slot_that_lies_ends_the_link, 0, 7);
    tcase_add_test(t, a_slot_taken_twice_ends_the_link);
    tcase_add_test(t, a_closed_connection_does_not_come_back);
    tcase_add_test(t, times_are_made_sound);
    suite_add_tcase(s, t);

    t = tcase_create("random");
    tcase_add_checked_fixture(t, open_all, close_all);
    tcase_set_timeout(t, 60);
    tcase_add_loop_test(t, any_traffic_with_any_reports_keeps_every_count, 0,
                        12);
    suite_add_tcase(s, t);

    sr = srunner_create(s);
    srunner_run_all(sr, CK_NORMAL);
    failed = srunner_ntests_failed(sr);
    srunner_free(sr);
    return failed == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
