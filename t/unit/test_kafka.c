/*
 * Every record handed over is reported exactly once, and as what it is.  The
 * brokers are librdkafka's mock cluster, which fails as it is told to.
 */
#define _GNU_SOURCE 1
#include <check.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "sidecar/kafka_internal.h"

#include <librdkafka/rdkafka_mock.h> /* needs rdkafka.h before it */

#define MAX 20000
#define PRODUCE 0 /* the request's number in Kafka's protocol */

static rd_kafka_t *mock_owner;
static rd_kafka_mock_cluster_t *mock;
static config c;
static loop *l;
static kafka *k;

static struct item {
    char key[16];
    int32_t partition;
    int64_t offset;
    int reports; /* final ones */
    int retries;
    bool waiting;
    kafka_result last;
} items[MAX];
static int nitems, nfinal, turned_unready;
static bool is_ready, resend;
static char value[1000];

static void delivered(void *owner, void *record, kafka_result result,
                      int64_t offset, const char *why) {
    struct item *i = record;
    (void)owner;
    ck_assert_ptr_nonnull(why);
    ck_assert(!i->waiting);
    i->last = result;
    i->offset = offset;
    if (result == KAFKA_NOT_PERSISTED && resend) {
        i->retries++;
        i->waiting = true;
        return;
    }
    i->reports++;
    nfinal++;
}

static void ready(void *owner, bool yes) {
    (void)owner;
    is_ready = yes;
    turned_unready += !yes;
}

static const kafka_events events = {.delivered = delivered, .ready = ready};

static void setup(void) {
    char why[256];
    int null = open("/dev/null", O_WRONLY);
    dup2(null, STDERR_FILENO);
    mock_owner =
        rd_kafka_new(RD_KAFKA_PRODUCER, rd_kafka_conf_new(), why, sizeof(why));
    mock = rd_kafka_mock_cluster_new(mock_owner, 1);
    rd_kafka_mock_topic_create(mock, "t", 3, 1);
    memset(&c, 0, sizeof(c));
    memset(items, 0, sizeof(items));
    c.topic = (char *)"t";
    c.record_size = 1048076;
    c.inflight_size = 64 << 20;
    c.nkafka = 1;
    c.kafka[0].name = (char *)"bootstrap.servers";
    c.kafka[0].value = (char *)rd_kafka_mock_cluster_bootstraps(mock);
    nitems = nfinal = turned_unready = 0;
    is_ready = false;
    resend = true;
    l = loop_new();
    k = kafka_new(&c, l, &events, NULL);
    ck_assert_ptr_nonnull(k);
}

static void teardown(void) {
    kafka_free(k, 0);
    loop_free(l);
    rd_kafka_mock_cluster_destroy(mock);
    rd_kafka_destroy(mock_owner);
}

static void send_waiting(void) {
    for (int i = 0; i < nitems; i++) {
        struct item *r = &items[i];
        if (!r->waiting)
            continue;
        if (r->partition == -1)
            r->partition = kafka_partition(k, r->key, strlen(r->key));
        r->waiting = false;
        if (kafka_produce(k, r->partition, r->key, strlen(r->key), value,
                          sizeof(value), r) == 0)
            continue;
        r->waiting = true;
        return;
    }
}

static bool (*until)(void);
static int64_t deadline;

static int64_t hook(void *owner) {
    (void)owner;
    send_waiting();
    if (until() || loop_now_ns(l) > deadline)
        loop_stop(l);
    return 20 * KAFKA_MS;
}

static void run_until(bool (*condition)(void)) {
    until = condition;
    deadline = loop_now_ns(l) + 20 * KAFKA_S;
    loop_run(l, hook, NULL);
    ck_assert_msg(condition(), "not within 20 s: %s", kafka_not_ready_why(k));
}

static bool all_final(void) {
    return nfinal == nitems;
}

static bool ready_now(void) {
    return is_ready;
}

static bool never(void) {
    return false;
}

static void make(int n) {
    for (int i = 0; i < n; i++) {
        struct item *r = &items[nitems++];
        snprintf(r->key, sizeof(r->key), "key-%d", nitems);
        r->partition = -1;
        r->waiting = true;
    }
}

static void fail_produce(size_t n, rd_kafka_resp_err_t err) {
    for (size_t i = 0; i < n; i++)
        rd_kafka_mock_push_request_errors(mock, PRODUCE, 1, err);
}

static void all_are(kafka_result result) {
    for (int i = 0; i < nitems; i++) {
        ck_assert_int_eq(items[i].reports, 1);
        ck_assert_int_eq(items[i].last, result);
    }
    ck_assert_uint_eq(kafka_queued(k), 0);
}

START_TEST(many_records_are_acknowledged_once_and_in_order) {
    int64_t last[3] = {-1, -1, -1};
    run_until(ready_now);
    ck_assert_int_eq(kafka_known_end(k, 0), 0);
    make(10000);
    run_until(all_final);
    all_are(KAFKA_ACKED);
    for (int i = 0; i < nitems; i++) {
        ck_assert_int_eq(items[i].offset, last[items[i].partition] + 1);
        last[items[i].partition] = items[i].offset;
    }
    for (int p = 0; p < 3; p++)
        ck_assert_int_eq(kafka_known_end(k, p), last[p] + 1);
}
END_TEST

START_TEST(what_librdkafka_can_retry_is_not_ours_to_see) {
    run_until(ready_now);
    fail_produce(3, RD_KAFKA_RESP_ERR_NOT_LEADER_FOR_PARTITION);
    fail_produce(1, RD_KAFKA_RESP_ERR_NOT_ENOUGH_REPLICAS);
    make(100);
    run_until(all_final);
    all_are(KAFKA_ACKED);
    ck_assert_int_eq(turned_unready, 0);
}
END_TEST

/* A fatal error of the producer: another one takes over. */
START_TEST(a_refused_batch_takes_no_innocent_record_with_it) {
    run_until(ready_now);
    fail_produce(1, RD_KAFKA_RESP_ERR_MSG_SIZE_TOO_LARGE);
    make(100);
    run_until(all_final);
    all_are(KAFKA_ACKED);
    ck_assert_int_ge(turned_unready, 1);
}
END_TEST

START_TEST(a_record_that_is_refused_alone_is_rejected) {
    run_until(ready_now);
    fail_produce(2, RD_KAFKA_RESP_ERR_MSG_SIZE_TOO_LARGE);
    make(1);
    run_until(all_final);
    all_are(KAFKA_REJECTED);
    ck_assert_int_eq(items[0].retries, 1);
    make(50);
    run_until(all_final);
    for (int i = 1; i < nitems; i++)
        ck_assert_int_eq(items[i].last, KAFKA_ACKED);
}
END_TEST

START_TEST(lost_authorisation_is_waited_out) {
    run_until(ready_now);
    fail_produce(1, RD_KAFKA_RESP_ERR_TOPIC_AUTHORIZATION_FAILED);
    make(20);
    run_until(all_final);
    all_are(KAFKA_ACKED);
    ck_assert_int_ge(turned_unready, 1);
    ck_assert(is_ready);
}
END_TEST

START_TEST(a_record_over_the_limit_is_rejected_after_produce_has_returned) {
    static char large[1048077];
    run_until(ready_now);
    make(1);
    items[0].waiting = false;
    ck_assert_int_eq(
        kafka_produce(k, 0, "k", 1, large, sizeof(large), &items[0]), 0);
    ck_assert_int_eq(nfinal, 0);
    run_until(all_final);
    all_are(KAFKA_REJECTED);
}
END_TEST

/* The topic was made again with fewer; a connection stays where it is. */
START_TEST(a_record_for_a_partition_that_is_gone_is_rejected) {
    run_until(ready_now);
    make(1);
    items[0].waiting = false;
    ck_assert_int_eq(kafka_produce(k, 3, "k", 1, value, 1, &items[0]), 0);
    run_until(all_final);
    all_are(KAFKA_REJECTED);
}
END_TEST

START_TEST(a_broker_that_comes_back_gets_all_records) {
    run_until(ready_now);
    rd_kafka_mock_broker_set_down(mock, 1);
    make(1000);
    until = never;
    deadline = loop_now_ns(l) + 2 * KAFKA_S;
    loop_run(l, hook, NULL);
    ck_assert_int_eq(nfinal, 0);
    rd_kafka_mock_broker_set_up(mock, 1);
    run_until(all_final);
    all_are(KAFKA_ACKED);
}
END_TEST

/* Whether the descriptor is a connection to the mock broker, not one of its own. */
static bool leads_to_broker(int fd) {
    const char *port = strrchr(rd_kafka_mock_cluster_bootstraps(mock), ':') + 1;
    struct sockaddr_in peer;
    socklen_t size = sizeof(peer);
    return getpeername(fd, (struct sockaddr *)&peer, &size) == 0 &&
           peer.sin_family == AF_INET && ntohs(peer.sin_port) == atoi(port);
}

/* Else bytes of a process that has died could arrive after the topic was read. */
START_TEST(a_socket_to_a_broker_discards_what_it_has_not_sent) {
    int found = 0;
    run_until(ready_now);
    for (int fd = 0; fd < 1024; fd++) {
        struct linger linger = {0};
        socklen_t size = sizeof(linger);
        if (!leads_to_broker(fd))
            continue;
        found++;
        ck_assert_int_eq(getsockopt(fd, SOL_SOCKET, SO_LINGER, &linger, &size),
                         0);
        ck_assert_int_ne(linger.l_onoff, 0);
        ck_assert_int_eq(linger.l_linger, 0);
    }
    ck_assert_int_gt(found, 0);
}
END_TEST

static int reads, failed_reads;

static void on_read(void *owner, int32_t partition, kafka_read what,
                    int64_t offset, const void *data, size_t len,
                    const char *why) {
    (void)owner, (void)partition, (void)offset, (void)data, (void)len,
        (void)why;
    reads++;
    failed_reads += what == KAFKA_READ_FAILED;
}

static bool read_something(void) {
    return reads > 0;
}

/* Such as a low-water that retention has overtaken: what is not seen from
   elsewhere on may still have been there. */
START_TEST(a_place_that_the_log_does_not_have_cannot_be_read) {
    reads = failed_reads = 0;
    run_until(ready_now);
    make(10);
    run_until(all_final);
    kafka_reader *r = kafka_reader_new(k, on_read, NULL);
    ck_assert_int_eq(kafka_reader_start(r, 0, 1000), 0);
    run_until(read_something);
    kafka_reader_free(r);
    ck_assert_int_eq(reads, 1);
    ck_assert_int_eq(failed_reads, 1);
}
END_TEST

static bool all_given_back(void) {
    for (int i = 0; i < nitems; i++)
        if (items[i].retries == 0)
            return false;
    return true;
}

/* A property has changed while records wait for a broker that is away. */
static void change_a_property_meanwhile(void) {
    run_until(ready_now);
    rd_kafka_mock_broker_set_down(mock, 1);
    make(10);
    until = never;
    deadline = loop_now_ns(l) + KAFKA_S / 2;
    loop_run(l, hook, NULL);
    c.kafka[1].name = (char *)"client.id";
    c.kafka[1].value = (char *)"another";
    c.nkafka = 2;
}

START_TEST(a_reload_waits_for_the_reports_of_the_old_producer) {
    int kept = 0;

    change_a_property_meanwhile();
    kafka_reload(k);
    deadline = loop_now_ns(l) + 2 * KAFKA_S;
    loop_run(l, hook, NULL);
    ck_assert_int_eq(nfinal, 0);
    rd_kafka_mock_broker_set_up(mock, 1);
    run_until(all_final);
    for (int i = 0; i < nitems; i++) {
        ck_assert_int_eq(items[i].last, KAFKA_ACKED);
        /* what waited behind a partition's first record comes back once */
        ck_assert_int_le(items[i].retries, 1);
        kept += items[i].retries == 0;
    }
    ck_assert_int_gt(kept, 0);
    run_until(ready_now); /* with the next one */
}
END_TEST

START_TEST(a_reload_does_not_wait_for_a_producer_that_is_refused) {
    change_a_property_meanwhile();
    k->refused = true;
    kafka_reload(k);
    run_until(all_given_back);
    rd_kafka_mock_broker_set_up(mock, 1);
    run_until(all_final);
    for (int i = 0; i < nitems; i++)
        ck_assert_int_eq(items[i].last, KAFKA_ACKED);
}
END_TEST

START_TEST(the_end_reports_what_is_left) {
    run_until(ready_now);
    make(3);
    run_until(all_final);
    rd_kafka_mock_broker_set_rtt(mock, 1, 60000);
    resend = false;
    make(1000);
    send_waiting();
    time_t begun = time(NULL);
    kafka_free(k, 300 * KAFKA_MS);
    k = NULL;
    ck_assert_int_lt(time(NULL) - begun, 6);
    ck_assert_int_eq(nfinal, nitems);
    int doubtful = 0;
    for (int i = 3; i < nitems; i++) {
        ck_assert_int_eq(items[i].reports, 1);
        ck_assert(items[i].last == KAFKA_IN_DOUBT ||
                  items[i].last == KAFKA_NOT_PERSISTED);
        doubtful += items[i].last == KAFKA_IN_DOUBT;
    }
    ck_assert_int_gt(doubtful, 0);
}
END_TEST

int main(void) {
    Suite *s = suite_create("kafka");
    TCase *t = tcase_create("kafka");
    tcase_add_checked_fixture(t, setup, teardown);
    tcase_set_timeout(t, 60);
    tcase_add_test(t, many_records_are_acknowledged_once_and_in_order);
    tcase_add_test(t, what_librdkafka_can_retry_is_not_ours_to_see);
    tcase_add_test(t, a_refused_batch_takes_no_innocent_record_with_it);
    tcase_add_test(t, a_record_that_is_refused_alone_is_rejected);
    tcase_add_test(t, lost_authorisation_is_waited_out);
    tcase_add_test(
        t, a_record_over_the_limit_is_rejected_after_produce_has_returned);
    tcase_add_test(t, a_record_for_a_partition_that_is_gone_is_rejected);
    tcase_add_test(t, a_broker_that_comes_back_gets_all_records);
    tcase_add_test(t, a_socket_to_a_broker_discards_what_it_has_not_sent);
    tcase_add_test(t, a_place_that_the_log_does_not_have_cannot_be_read);
    tcase_add_test(t, a_reload_waits_for_the_reports_of_the_old_producer);
    tcase_add_test(t, a_reload_does_not_wait_for_a_producer_that_is_refused);
    tcase_add_test(t, the_end_reports_what_is_left);
    suite_add_tcase(s, t);
    SRunner *r = srunner_create(s);
    srunner_run_all(r, CK_NORMAL);
    int failed = srunner_ntests_failed(r);
    srunner_free(r);
    return failed != 0;
}
