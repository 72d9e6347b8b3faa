/* The page is what dashboards and the tests' identity are made from. */
#define _GNU_SOURCE 1
#include <arpa/inet.h>
#include <check.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "sidecar/log.h"
#include "sidecar/metrics.h"

static void fill(void *owner, metrics_exchanges *e) {
    (void)owner;
    e->seen = 10;
    e->captured = 4;
    e->truncated = 1;
    e->pending = 3;
    e->reason[CAP_BYPASS] = 2;
    e->reason[CAP_POOL_FULL] = 1;
    e->wait[CAP_WAIT_TIME_MS] = 1234;
    e->waited[cap_waited_cell(1)] = 2;
    e->waited[cap_waited_cell(5000)] = 3;
    e->waited[cap_waited_cell(60001)] = 4;
}

/* The page with what fill() says. */
static char *page(void) {
    char *text;
    size_t len;
    FILE *out = open_memstream(&text, &len);
    metrics_register(fill, NULL);
    metrics_write(out);
    fclose(out);
    return text;
}

static void has(const char *text, const char *line) {
    ck_assert_msg(strstr(text, line) != NULL, "no %s in %s", line, text);
}

START_TEST(the_page_has_every_counter_and_reason) {
    metrics_cell[METRIC_RECORDS] = 77;
    char *text = page();
    static const char *const lines[] = {
        "\n# TYPE capture_exchanges_seen_total "
        "counter\ncapture_exchanges_seen_total 10\n",
        "\ncapture_exchanges_captured_total 4\n",
        "\ncapture_exchanges_truncated_total 1\n",
        "\ncapture_exchanges_filtered_total{reason=\"bypass\"} 2\n",
        "\ncapture_exchanges_lost_total{reason=\"pool_full\"} 1\n",
        "\ncapture_exchanges_lost_total{reason=\"internal\"} 0\n",
        "\n# TYPE capture_exchanges_pending gauge\ncapture_exchanges_pending "
        "3\n",
        "\ncapture_records_total 77\n",
        "\n# TYPE capture_kafka_ready gauge\n",
    };
    for (size_t i = 0; i < sizeof(lines) / sizeof(*lines); i++)
        has(text, lines[i]);
    ck_assert_ptr_null(strstr(text, "\"none\""));
    free(text);
}
END_TEST

START_TEST(a_bound_belongs_to_its_bucket) {
    for (uint64_t ms = 0; ms <= 70000; ms++) {
        static const uint64_t bounds[] = {
#define X(bound) bound,
            CAP_WAITED(X)
#undef X
        };
        unsigned i = cap_waited_cell(ms);
        ck_assert_uint_lt(i, CAP_WAITED_CELLS);
        ck_assert(i == CAP_WAITED_CELLS - 1 || ms <= bounds[i]);
        ck_assert(i == 0 || ms > bounds[i - 1]);
    }
    metrics_observe(HISTOGRAM_RECORD_SIZE, 256);
    metrics_observe(HISTOGRAM_RECORD_SIZE, 257);
    metrics_observe(HISTOGRAM_RECORD_SIZE, 2000000);
    char *text = page();
    has(text, "\n# TYPE capture_record_size_bytes histogram\n"
              "capture_record_size_bytes_bucket{le=\"256\"} 1\n"
              "capture_record_size_bytes_bucket{le=\"1024\"} 2\n");
    has(text, "\ncapture_record_size_bytes_bucket{le=\"1048576\"} 2\n"
              "capture_record_size_bytes_bucket{le=\"+Inf\"} 3\n"
              "capture_record_size_bytes_sum 2000513\n"
              "capture_record_size_bytes_count 3\n");
    free(text);
}
END_TEST

START_TEST(times_are_shown_in_seconds) {
    metrics_observe(HISTOGRAM_DELIVERY, 2500000);
    metrics_observe(HISTOGRAM_DELIVERY, 2500001);
    metrics_cell[METRIC_POOL_OLDEST] = 1005;
    metrics_cell[METRIC_POOL_TIME_TO_FULL] = METRICS_INFINITE;
    char *text = page();
    has(text, "\ncapture_delivery_seconds_bucket{le=\"0.001\"} 0\n"
              "capture_delivery_seconds_bucket{le=\"0.0025\"} 1\n"
              "capture_delivery_seconds_bucket{le=\"0.005\"} 2\n");
    has(text, "\ncapture_delivery_seconds_sum 0.005000001\n");
    has(text, "\n# TYPE capture_pool_oldest_seconds gauge\n"
              "capture_pool_oldest_seconds 1.005\n");
    has(text, "\ncapture_pool_time_to_full_seconds +Inf\n");
    free(text);
}
END_TEST

START_TEST(the_workers_waits_are_a_histogram_of_their_own) {
    char *text = page();
    has(text, "\ncapture_wait_seconds_bucket{le=\"0.001\"} 2\n");
    has(text, "\ncapture_wait_seconds_bucket{le=\"2.5\"} 2\n"
              "capture_wait_seconds_bucket{le=\"5\"} 5\n");
    has(text, "\ncapture_wait_seconds_bucket{le=\"60\"} 5\n"
              "capture_wait_seconds_bucket{le=\"+Inf\"} 9\n"
              "capture_wait_seconds_sum 1.234\n"
              "capture_wait_seconds_count 9\n");
    ck_assert_ptr_null(strstr(text, "result=\"ms\""));
    free(text);
}
END_TEST

static loop *l;
static int port;
static char answers[5][32768];
static const char *why = "topic x is missing";
static bool is_ready;

static bool ready(void *owner, const char **reason) {
    (void)owner;
    *reason = why;
    return is_ready;
}

static void ask(const char *request, char *answer, size_t size) {
    struct sockaddr_in at = {.sin_family = AF_INET,
                             .sin_port = htons((uint16_t)port)};
    at.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    ck_assert_int_eq(connect(fd, (struct sockaddr *)&at, sizeof(at)), 0);
    ck_assert_int_gt(send(fd, request, strlen(request), 0), 0);
    size_t len = 0;
    ssize_t n;
    while (len < size - 1 &&
           (n = recv(fd, answer + len, size - 1 - len, 0)) > 0)
        len += (size_t)n;
    answer[len] = '\0';
    close(fd);
}

#define END_HEAD " HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"

static void *client(void *arg) {
    (void)arg;
    ask("GET /metrics" END_HEAD, answers[0], sizeof(answers[0]));
    ask("GET /live" END_HEAD, answers[1], sizeof(answers[1]));
    ask("GET /ready" END_HEAD, answers[2], sizeof(answers[2]));
    ask("DELETE /metrics" END_HEAD, answers[3], sizeof(answers[3]));
    ask("GET /other" END_HEAD, answers[4], sizeof(answers[4]));
    loop_stop(l);
    return NULL;
}

/* The loop may sleep when the client has ended: look now and then. */
static int64_t now_and_then(void *owner) {
    (void)owner;
    return 1000000;
}

static int free_port(void) {
    struct sockaddr_in at = {.sin_family = AF_INET};
    socklen_t len = sizeof(at);
    at.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    ck_assert_int_eq(bind(fd, (struct sockaddr *)&at, sizeof(at)), 0);
    getsockname(fd, (struct sockaddr *)&at, &len);
    close(fd);
    return ntohs(at.sin_port);
}

START_TEST(the_server_answers_on_the_loop) {
    char address[32];
    pthread_t thread;
    log_set_level(LOG_LEVEL_ERROR);
    l = loop_new();
    port = free_port();
    snprintf(address, sizeof(address), "127.0.0.1:%d", port);
    ck_assert_int_eq(metrics_listen(l, address, ready, NULL), 0);
    ck_assert_int_eq(pthread_create(&thread, NULL, client, NULL), 0);
    loop_run(l, now_and_then, NULL);
    pthread_join(thread, NULL);
    metrics_close();
    loop_free(l);
    ck_assert_ptr_nonnull(strstr(answers[0], "HTTP/1.1 200 "));
    ck_assert_ptr_nonnull(strstr(answers[0], "\ncapture_links 0\n"));
    ck_assert_ptr_nonnull(strstr(answers[1], "HTTP/1.1 200 "));
    ck_assert_ptr_nonnull(strstr(answers[2], "HTTP/1.1 503 "));
    ck_assert_ptr_nonnull(strstr(answers[2], "topic x is missing"));
    ck_assert_ptr_nonnull(strstr(answers[3], "HTTP/1.1 405 "));
    ck_assert_ptr_nonnull(strstr(answers[4], "HTTP/1.1 404 "));
}
END_TEST

START_TEST(a_foreign_address_is_an_error) {
    log_set_level(-1);
    l = loop_new();
    ck_assert_int_eq(metrics_listen(l, "203.0.113.1:1", ready, NULL), -1);
    loop_free(l);
}
END_TEST

int main(void) {
    Suite *s = suite_create("metrics");
    TCase *t = tcase_create("metrics");
    tcase_add_test(t, the_page_has_every_counter_and_reason);
    tcase_add_test(t, a_bound_belongs_to_its_bucket);
    tcase_add_test(t, times_are_shown_in_seconds);
    tcase_add_test(t, the_workers_waits_are_a_histogram_of_their_own);
    tcase_add_test(t, the_server_answers_on_the_loop);
    tcase_add_test(t, a_foreign_address_is_an_error);
    suite_add_tcase(s, t);
    SRunner *r = srunner_create(s);
    srunner_run_all(r, CK_NORMAL);
    int failed = srunner_ntests_failed(r);
    srunner_free(r);
    return failed != 0;
}
