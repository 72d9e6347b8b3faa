/* What delivery rests on cannot be configured away, and secrets stay unseen. */
#define _GNU_SOURCE 1
#include <check.h>
#include <stdlib.h>
#include <string.h>

#include "sidecar/kafka_internal.h"

static config c;
static char *said;

static void add(const char *name, const char *value) {
    config_property *p = &c.kafka[c.nkafka++];
    p->name = (char *)name;
    p->value = (char *)value;
    p->line = (int)c.nkafka;
}

static void setup(void) {
    memset(&c, 0, sizeof(c));
    c.file = (char *)"f";
    c.topic = (char *)"t";
    c.record_size = 1048076;
    c.inflight_size = 64 << 20;
    add("bootstrap.servers", "127.0.0.1:1,h2:2,[::1]:3,SSL://h4:4");
    said = NULL;
}

static void teardown(void) {
    free(said);
}

static int check(void) {
    size_t len;
    FILE *err = open_memstream(&said, &len);
    int rc = kafka_check(&c, err);
    fclose(err);
    return rc;
}

/* clang-format off */
static const struct {
    const char *name, *value, *says;
} refused[] = {
    {"acks", "1", "f:2: kafka.acks = 1: this cannot be changed: a record is durable only"},
    {"request.required.acks", "0", "cannot be changed"},
    {"enable.idempotence", "false", "cannot be changed"},
    {"enable.gapless.guarantee", "false", "cannot be changed"},
    {"message.timeout.ms", "10000", "never by age"},
    {"delivery.timeout.ms", "10000", "never by age"},
    {"retries", "3", "cannot be changed"},
    {"linger.ms", "5", "may be waiting"},
    {"queue.buffering.max.kbytes", "1", "it follows inflight.size"},
    {"queue.buffering.max.messages", "1", "set inflight.size"},
    {"message.max.bytes", "1", "it follows record.size"},
    {"transactional.id", "x", "cannot be changed"},
    {"partitioner", "random", "cannot be changed"},
    {"message.send.max.retries", "3", "never by failed attempts"},
    {"queue.buffering.max.ms", "5", "may be waiting"},
    {"queuing.strategy", "lifo", "in order"},
    {"delivery.report.only.error", "true", "needs every report"},
    {"metadata.broker.list", "a:1", "use kafka.bootstrap.servers"},
    {"enabled_events", "1", "cannot be changed"},
    {"log.queue", "false", "cannot be changed"},
    {"log_level", "7", "use log.level"},
    {"statistics.interval.ms", "1000", "use metrics.listen"},
    {"interceptors", "x", "foreign code"},
    {"topic.blacklist", ".*", "could hide the topic"},
    {"api.version.request", "false", "what a broker can do"},
    {"opaque", "x", "it is for programs"},
    {"msg_order_cmp", "x", "it is for programs"},
    {"plugin.library.paths", "x.so", "foreign code"},
    {"compresion.codec", "lz4", "did you mean kafka.compression.codec?"},
    {"compression.type", "brotli", "kafka.compression.type = brotli: "},
    {"max.in.flight", "100", "max.in.flight"},
    {"security.protocol", "sasl_ssll", "security.protocol"},
    {"ssl.ca.location", "/no/such/file", "ssl.ca.location"},
    {"ssl.key.pem", "s3cr3t-key", "ssl.key"},
};
/* clang-format on */

START_TEST(a_dangerous_or_wrong_property_is_refused_with_the_reason) {
    if (strncmp(refused[_i].name, "ssl.", 4) == 0)
        add("security.protocol", "ssl");
    add(refused[_i].name, refused[_i].value);
    int rc = check();
    ck_assert_int_eq(rc, -1);
    ck_assert_msg(strstr(said, refused[_i].says) != NULL,
                  "\"%s\" is not in: %s", refused[_i].says, said);
    ck_assert_ptr_null(strstr(said, "s3cr3t"));
}
END_TEST

START_TEST(what_repeats_the_rule_and_what_is_free_is_taken) {
    add("acks", "all");
    add("enable.idempotence", "TRUE");
    add("linger.ms", "0");
    add("compression.type", "zstd");
    add("client.id", "mine");
    add("batch.size", "5000");
    add("sasl.password", "s3cr3t");
    int rc = check();
    ck_assert_msg(rc == 0, "%s", said);
    ck_assert_str_eq(said, "");
}
END_TEST

static const char *value_of(rd_kafka_conf_t *conf, const char *name) {
    static char value[256];
    size_t size = sizeof(value);
    if (rd_kafka_conf_get(conf, name, value, &size) == RD_KAFKA_CONF_OK)
        return value;
    size = sizeof(value);
    rd_kafka_topic_conf_t *topic = rd_kafka_conf_get_default_topic_conf(conf);
    ck_assert_int_eq(rd_kafka_topic_conf_get(topic, name, value, &size),
                     RD_KAFKA_CONF_OK);
    return value;
}

/* What librdkafka's own table says of a property. */
typedef struct {
    char name[80], range[300];
} documented;

static bool next_documented(FILE *table, documented *d) {
    char line[1024];
    while (fgets(line, sizeof(line), table) != NULL) {
        char used[16];
        if (sscanf(line, "%79[a-z_.] | %15[^|]|%299[^|]", d->name, used,
                   d->range) != 3)
            continue;
        for (char *end = d->name + strlen(d->name); *--end == ' ';)
            *end = '\0';
        if (strchr(used, 'P') != NULL || strchr(used, '*') != NULL)
            return true;
    }
    return false;
}

static FILE *open_table(void) {
    FILE *table = tmpfile();
    rd_kafka_conf_properties_show(table);
    rewind(table);
    return table;
}

START_TEST(a_bad_value_of_any_property_is_refused_and_its_name_told) {
    FILE *table = open_table();
    documented d;
    int n = 0;
    while (next_documented(table, &d)) {
        char says[128];
        if (d.range[strspn(d.range, " ")] == '\0')
            continue; /* any text will do */
        c.nkafka = 1;
        add(d.name, "no-such-value");
        int rc = check();
        snprintf(says, sizeof(says), "f:2: kafka.%s = ", d.name);
        ck_assert_msg(rc == -1, "%s is taken", d.name);
        ck_assert_msg(strstr(said, says) != NULL, "%s: %s", d.name, said);
        free(said);
        said = NULL;
        n++;
    }
    ck_assert_int_gt(n, 60);
    fclose(table);
}
END_TEST

/* A text that librdkafka takes for a pointer would be called. */
START_TEST(no_pointer_can_be_set) {
    FILE *table = open_table();
    documented d;
    int n = 0;
    while (next_documented(table, &d)) {
        const char *end = d.name + strlen(d.name);
        if (strchr(d.name, '.') != NULL && strstr(d.name, "_cb") == NULL)
            continue;
        c.nkafka = 1;
        add(d.name, "x");
        int rc = check();
        bool pointer =
            strcmp(end - 3, "_cb") == 0 || strncmp(d.name, "ssl_", 4) == 0 ||
            strstr(d.name, "_conf") != NULL || strstr(d.name, "_cmp") != NULL;
        ck_assert_msg(!pointer || rc == -1, "%s is taken", d.name);
        free(said);
        said = NULL;
        n += pointer;
    }
    ck_assert_int_gt(n, 15);
    fclose(table);
}
END_TEST

START_TEST(a_value_from_elsewhere_is_shown_as_it_was_written) {
    add("compression.type", "s3cr3t-value");
    c.kafka[1].written = (char *)"${file:/run/x}";
    int rc = check();
    ck_assert_int_eq(rc, -1);
    ck_assert_str_eq(said, "f:2: kafka.compression.type = ${file:/run/x}: "
                           "librdkafka refuses it\n");
}
END_TEST

START_TEST(a_token_needs_a_region_and_implies_its_mechanism) {
    c.token_source = CONFIG_TOKEN_AWS_MSK_IAM;
    unsetenv("AWS_REGION");
    unsetenv("AWS_DEFAULT_REGION");
    int rc = check();
    ck_assert_int_eq(rc, -1);
    ck_assert_ptr_nonnull(strstr(said, "set aws.region"));
    free(said);
    c.kafka[0].value =
        (char *)"b-1.x.c2.kafka.eu-west-3.amazonaws.com:9098,b:1";
    rc = check();
    ck_assert_msg(rc == 0, "%s", said);
    rd_kafka_conf_t *conf = kafka_config_make(&c, 20000, true, stderr);
    ck_assert_str_eq(value_of(conf, "sasl.mechanisms"), "OAUTHBEARER");
    ck_assert_str_eq(value_of(conf, "security.protocol"), "sasl_ssl");
    rd_kafka_conf_destroy(conf);
}
END_TEST

static const char *const bad_servers[] = {"",      ",",   "a:1,,b:2",
                                          ":9092", "a:b", "a:1,"};

START_TEST(servers_are_host_and_port) {
    c.nkafka = 0;
    add("bootstrap.servers", bad_servers[_i]);
    int rc = check();
    ck_assert_int_eq(rc, -1);
    ck_assert_ptr_nonnull(strstr(said, "give host:port"));
}
END_TEST

START_TEST(the_producer_gets_what_the_rules_say) {
    rd_kafka_conf_t *conf = kafka_config_make(&c, 20000, true, stderr);
    ck_assert_str_eq(value_of(conf, "acks"), "-1");
    ck_assert_str_eq(value_of(conf, "enable.idempotence"), "true");
    ck_assert_str_eq(value_of(conf, "enable.gapless.guarantee"), "true");
    ck_assert_str_eq(value_of(conf, "message.timeout.ms"), "0");
    ck_assert_str_eq(value_of(conf, "linger.ms"), "0");
    ck_assert_str_eq(value_of(conf, "retries"), "2147483647");
    ck_assert_str_eq(value_of(conf, "client.id"), "HttpCaptureProxyProducer");
    ck_assert_str_eq(value_of(conf, "batch.size"), "20000");
    ck_assert_str_eq(value_of(conf, "batch.num.messages"), "1");
    ck_assert_int_ge(atoi(value_of(conf, "message.max.bytes")), 1048076 + 60);
    ck_assert_int_ge(atoi(value_of(conf, "queue.buffering.max.kbytes")),
                     64 << 10);
    rd_kafka_conf_destroy(conf);
}
END_TEST

/* What is in doubt is absent only where all from its low-water on was seen. */
START_TEST(a_reader_begins_where_it_is_told_and_sees_all) {
    rd_kafka_conf_t *conf = kafka_config_reader(&c, stderr);
    ck_assert_str_eq(value_of(conf, "auto.offset.reset"), "error");
    ck_assert_str_eq(value_of(conf, "isolation.level"), "read_uncommitted");
    ck_assert_str_eq(value_of(conf, "enable.partition.eof"), "true");
    ck_assert_str_eq(value_of(conf, "enable.auto.commit"), "false");
    rd_kafka_conf_destroy(conf);
}
END_TEST

/* The vectors of Java's own tests (UtilsTest.testMurmur2). */
START_TEST(murmur2_is_javas) {
    static const struct {
        const char *key;
        int32_t hash;
    } v[] = {{"21", -973932308},
             {"foobar", -790332482},
             {"a-little-bit-long-string", -985981536},
             {"a-little-bit-longer-string", -1486304829},
             {"lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8", -58897971},
             {"abc", 479470107}};
    for (size_t i = 0; i < sizeof(v) / sizeof(*v); i++)
        ck_assert_int_eq((int32_t)kafka_murmur2(v[i].key, strlen(v[i].key)),
                         v[i].hash);
}
END_TEST

START_TEST(only_certainty_counts_as_certainty) {
    const rd_kafka_msg_status_t no = RD_KAFKA_MSG_STATUS_NOT_PERSISTED,
                                maybe = RD_KAFKA_MSG_STATUS_POSSIBLY_PERSISTED,
                                yes = RD_KAFKA_MSG_STATUS_PERSISTED;
    ck_assert_int_eq(kafka_classify(yes, 0, false), KAFKA_ACKED);
    ck_assert_int_eq(
        kafka_classify(maybe, RD_KAFKA_RESP_ERR__PURGE_INFLIGHT, false),
        KAFKA_IN_DOUBT);
    ck_assert_int_eq(
        kafka_classify(maybe, RD_KAFKA_RESP_ERR_MSG_SIZE_TOO_LARGE, true),
        KAFKA_IN_DOUBT);
    ck_assert_int_eq(kafka_classify((rd_kafka_msg_status_t)9, 0, true),
                     KAFKA_IN_DOUBT);
    ck_assert_int_eq(kafka_classify(no, RD_KAFKA_RESP_ERR__PURGE_QUEUE, true),
                     KAFKA_NOT_PERSISTED);
    ck_assert_int_eq(
        kafka_classify(no, RD_KAFKA_RESP_ERR_TOPIC_AUTHORIZATION_FAILED, true),
        KAFKA_NOT_PERSISTED);
    ck_assert_int_eq(
        kafka_classify(no, RD_KAFKA_RESP_ERR_MSG_SIZE_TOO_LARGE, true),
        KAFKA_REJECTED);
    ck_assert_int_eq(kafka_classify(no, RD_KAFKA_RESP_ERR_INVALID_RECORD, true),
                     KAFKA_REJECTED);
    /* in a batch, another record may have been too large */
    ck_assert_int_eq(
        kafka_classify(no, RD_KAFKA_RESP_ERR_MSG_SIZE_TOO_LARGE, false),
        KAFKA_NOT_PERSISTED);
}
END_TEST

int main(void) {
    Suite *s = suite_create("kafka_config");
    TCase *t = tcase_create("kafka_config");
    tcase_add_checked_fixture(t, setup, teardown);
    tcase_add_loop_test(
        t, a_dangerous_or_wrong_property_is_refused_with_the_reason, 0,
        sizeof(refused) / sizeof(*refused));
    tcase_add_test(t, a_bad_value_of_any_property_is_refused_and_its_name_told);
    tcase_add_test(t, no_pointer_can_be_set);
    tcase_add_test(t, a_value_from_elsewhere_is_shown_as_it_was_written);
    tcase_add_test(t, a_token_needs_a_region_and_implies_its_mechanism);
    tcase_add_test(t, what_repeats_the_rule_and_what_is_free_is_taken);
    tcase_add_loop_test(t, servers_are_host_and_port, 0,
                        sizeof(bad_servers) / sizeof(*bad_servers));
    tcase_add_test(t, the_producer_gets_what_the_rules_say);
    tcase_add_test(t, a_reader_begins_where_it_is_told_and_sees_all);
    tcase_add_test(t, murmur2_is_javas);
    tcase_add_test(t, only_certainty_counts_as_certainty);
    suite_add_tcase(s, t);
    SRunner *r = srunner_create(s);
    srunner_run_all(r, CK_NORMAL);
    int failed = srunner_ntests_failed(r);
    srunner_free(r);
    return failed != 0;
}
