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
}

START_TEST(the_page_has_every_counter_and_reason) {
    char *text;
    size_t len;
    FILE *out = open_memstream(&text, &len);
    metrics_register(fill, NULL);
    metrics_cell[METRIC_RECORDS] = 77;
    metrics_write(out);
    fclose(out);
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
        ck_assert_msg(strstr(text, lines[i]) != NULL, "no %s in %s", lines[i],
                      text);
    ck_assert_ptr_null(strstr(text, "\"none\""));
    free(text);
}
END_TEST

static loop *l;
static int port;
static char answers[5][8192];
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
    tcase_add_test(t, the_server_answers_on_the_loop);
    tcase_add_test(t, a_foreign_address_is_an_error);
    suite_add_tcase(s, t);
    SRunner *r = srunner_create(s);
    srunner_run_all(r, CK_NORMAL);
    int failed = srunner_ntests_failed(r);
    srunner_free(r);
    return failed != 0;
}
