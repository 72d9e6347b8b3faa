/* A mistake in the configuration must be said in words that lead to its end. */
#define _GNU_SOURCE 1
#include <check.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "sidecar/config.h"
#include "sidecar/log.h"
#include "wire/layout.h"

#define GOOD                                                                   \
    "listen = unix:/run/x.sock\nkafka.bootstrap.servers = localhost:9092\n"

static char file[] = "/tmp/test_config.XXXXXX";
static char *said;
static config c;

static int read_text(const char *text, mode_t mode) {
    size_t len;
    free(said);
    said = NULL;
    FILE *out = fopen(file, "w"), *err = open_memstream(&said, &len);
    fputs(text, out);
    fclose(out);
    chmod(file, mode);
    int rc = config_read(&c, file, err);
    fclose(err);
    return rc;
}

static void setup(void) {
    strcpy(strchr(file, '.'), ".XXXXXX");
    close(mkstemp(file));
}

static void teardown(void) {
    unlink(file);
    config_free(&c);
    free(said);
    said = NULL;
}

START_TEST(a_destination_has_what_it_says_and_else_what_all_have) {
    config v;

    ck_assert_int_eq(
        read_text(GOOD
                  "topic = first\ninflight.size = 60m\n"
                  "kafka.sasl.username = u\n"
                  "topic.eu-1.kafka.bootstrap.servers = eu:9092, eu2:9092\n"
                  "topic.eu-1 = second\ntopic.b = third\n"
                  "topic.b.kafka.client.id = x\n",
                  0600),
        0);
    ck_assert_uint_eq(c.ndestinations, 2);
    config_view(&c, 0, &v);
    ck_assert_str_eq(v.topic, "first");
    ck_assert_str_eq(v.destination, "default");
    ck_assert_str_eq(config_kafka(&v, "bootstrap.servers"), "localhost:9092");
    ck_assert_uint_eq(v.inflight_size, 20 << 20);
    config_view(&c, 1, &v);
    ck_assert_str_eq(v.topic, "second");
    ck_assert_str_eq(v.destination, "eu-1");
    ck_assert_str_eq(config_kafka(&v, "bootstrap.servers"),
                     "eu:9092, eu2:9092");
    ck_assert_str_eq(config_kafka(&v, "sasl.username"), "u");
    ck_assert_uint_eq(v.nkafka, 2);
    config_view(&c, 2, &v);
    ck_assert_str_eq(v.topic, "third");
    ck_assert_str_eq(config_kafka(&v, "bootstrap.servers"), "localhost:9092");
    ck_assert_str_eq(config_kafka(&v, "client.id"), "x");
    ck_assert_uint_eq(v.nkafka, 3);
}
END_TEST

/* By HUP; all else is read by other threads meanwhile. */
START_TEST(a_view_gets_new_values_and_nothing_else) {
    config v, before;
    char value[] = "new";

    ck_assert_int_eq(
        read_text(GOOD "token.source = command\ntoken.command = /bin/true\n"
                       "topic.a = a\ntopic.a.kafka.client.id = x\n",
                  0600),
        0);
    for (size_t i = 0; i < 2; i++) {
        config_property *p = i == 0 ? &c.kafka[0] : &c.destinations[0].kafka[0];
        char *old = p->value;

        memset(&v, 0xee, sizeof(v));
        before = v;
        p->value = value;
        config_view_again(&c, i, &v);
        ck_assert_str_eq(config_kafka(&v, p->name), "new");
        ck_assert_uint_eq(v.nkafka, 1 + i);
        p->value = old;
        v.nkafka = before.nkafka;
        memcpy(v.kafka, before.kafka, sizeof(v.kafka));
        ck_assert_mem_eq(&v, &before, sizeof(v));
    }
}
END_TEST

START_TEST(without_destinations_nothing_has_a_name) {
    config v;
    char of[80];

    ck_assert_int_eq(read_text(GOOD, 0600), 0);
    config_view(&c, 0, &v);
    ck_assert_ptr_null(v.destination);
    ck_assert_uint_eq(v.inflight_size, c.inflight_size);
    config_of_destination(&v, of, sizeof(of));
    ck_assert_str_eq(of, "");
}
END_TEST

/* A name's length is the wire's. */
START_TEST(names_of_destinations_are_the_workers) {
    ck_assert_uint_eq(CONFIG_NAME_SIZE, CAP_TOPIC_NAME_SIZE);
    ck_assert_uint_le(CONFIG_MAX_DESTINATIONS, CAP_TOPIC_NAMES);
}
END_TEST

START_TEST(a_token_is_for_those_that_take_it) {
    config v;

    ck_assert_int_eq(
        read_text(GOOD "token.source = command\ntoken.command = /bin/true\n"
                       "topic.a = a\ntopic.b = b\ntopic.c = c\n"
                       "topic.a.kafka.sasl.mechanism = PLAIN\n"
                       "topic.b.kafka.security.protocol = ssl\n",
                  0600),
        0);
    for (size_t i = 0; i < 4; i++) {
        config_view(&c, i, &v);
        ck_assert_int_eq(v.token_source, i == 1 || i == 2
                                             ? CONFIG_TOKEN_NONE
                                             : CONFIG_TOKEN_COMMAND);
    }
}
END_TEST

START_TEST(a_small_file_gets_all_defaults) {
    ck_assert_int_eq(read_text("# comment\n\n " GOOD, 0600), 0);
    ck_assert_str_eq(said, "");
    ck_assert_str_eq(c.listen, "/run/x.sock");
    ck_assert_uint_eq(c.listen_mode, 0660);
    ck_assert_uint_eq(c.listen_owner, (uid_t)-1);
    ck_assert_uint_eq(c.listen_group, (gid_t)-1);
    ck_assert_str_eq(c.topic, "logging-traffic-topic");
    ck_assert_uint_eq(c.record_size, 1048076);
    ck_assert_uint_eq(c.inflight_size, 64 << 20);
    ck_assert_uint_eq(c.pools_size, 8ull << 30);
    ck_assert_int_eq(c.flush_time, 1000000000);
    ck_assert_int_eq(c.drain_time, 10000000000);
    ck_assert_int_eq(c.log_level, LOG_LEVEL_INFO);
    ck_assert_str_eq(config_kafka(&c, "bootstrap.servers"), "localhost:9092");
}
END_TEST

START_TEST(every_key_is_taken) {
    ck_assert_int_eq(
        read_text(GOOD
                  "listen.mode=0600\nlisten.owner = 12\nlisten.group = 34\n"
                  "listen.allowed_uids = 0, 33 , root\ntopic = t.a-b_c\n"
                  "metrics.listen = [::1]:9145\nexport.path = /var/x\n"
                  "export.format = protocap\nexport.size = 5M\n"
                  "record.size = 100k\ninflight.size = 2m\npools.size = 1g\n"
                  "flush.time = 250ms\ndrain.time = 0\nlog.level = warn\n"
                  "durability = kafka\nkafka.client.id = a = b\n",
                  0600),
        0);
    ck_assert_str_eq(said, "");
    ck_assert_uint_eq(c.listen_mode, 0600);
    ck_assert_uint_eq(c.listen_owner, 12);
    ck_assert_uint_eq(c.listen_group, 34);
    ck_assert_uint_eq(c.nallowed_uids, 3);
    ck_assert_uint_eq(c.allowed_uids[1], 33);
    ck_assert_uint_eq(c.allowed_uids[2], 0);
    ck_assert(c.export_protocap);
    ck_assert_uint_eq(c.export_size, 5 << 20);
    ck_assert_int_eq(c.flush_time, 250000000);
    ck_assert_int_eq(c.drain_time, 0);
    ck_assert_int_eq(c.log_level, LOG_LEVEL_WARN);
    ck_assert_str_eq(config_kafka(&c, "client.id"), "a = b");
}
END_TEST

#define LONG50 "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"

/* clang-format off */
static const struct {
    const char *text, *says;
} mistakes[] = {
    {"listen = /x\n", ":1: listen = /x: give an absolute path after \"unix:\""},
    {"listen = unix:x\n", "absolute path"},
    {"listen = unix:/" LONG50 LONG50 "1234567\n", "the path has 108 bytes"},
    {"listen = unix:/run/\n", "directory"},
    {"kafka.bootstrap.servers = a:1\n", "listen is missing"},
    {"listen = unix:/x\n", "there is no output"},
    {GOOD "topic. = t\n", ":3: topic.: give a name of 1 to 63 letters"},
    {GOOD "topic.a/b = t\n", ":3: topic.a/b: give a name"},
    {GOOD "topic.0123456789012345678901234567890123456789012345678901234567890123 = t\n",
     "give a name of 1 to 63"},
    {GOOD "topic.a = t/\n", ":3: topic.a = t/: a topic's name"},
    {GOOD "topic.a = t\ntopic.a = u\n", ":4: topic.a is already set in line 3"},
    {GOOD "topic.default = t\n", "the default destination is `topic`"},
    {GOOD "topic.a = t\ntopic.a.kafka.acks = all\ntopic.a.kafka.acks = all\n",
     ":5: topic.a.kafka.acks is already set in line 4"},
    {GOOD "topic.a = t\ntopic.a.kafka. = x\n", "topic.a.kafka. needs the name"},
    {GOOD "topic.a.kafka.client.id = x\n",
     ":3: topic.a.kafka.client.id: there is no topic.a: add a line topic.a = TOPIC"},
    {GOOD "topic.a = logging-traffic-topic\n",
     ":3: topic.a = logging-traffic-topic: that is the same topic of the same brokers as default"},
    {GOOD "topic.a = t\ntopic.b = t\ntopic.b.kafka.bootstrap.servers = x:1, LOCALHOST:9092\n",
     ":4: topic.b = t: that is the same topic of the same brokers as a"},
    {GOOD "topic.a = t\ninflight.size = 2090000\n",
     "inflight.size is shared by 2 destinations"},
    {GOOD "topic.a = t\ntopic.a.kafka.sasl.password = ${file:/nonexistent}\n",
     "topic.a.kafka.sasl.password: /nonexistent cannot be read"},
    {GOOD "flush.tiem = 1s\n", ":3: unknown key \"flush.tiem\": did you mean \"flush.time\"?"},
    {GOOD "xyzzy = 1\n", "--help-config lists all keys"},
    {GOOD "topic = a\ntopic = a\n", ":4: topic is already set in line 3"},
    {GOOD "kafka.client.id = a\nkafka.client.id = a\n", "kafka.client.id is already set in line 3"},
    {GOOD "topic =\n", "topic has no value"},
    {GOOD "topic = a b\n", "topic = a b: a topic's name"},
    {GOOD "topic\n", "no \"=\""},
    {GOOD "flush.time = 5\n", "give a number with its unit"},
    {GOOD "flush.time = 5 s\n", "give a number with its unit"},
    {GOOD "flush.time = -5s\n", "give a number with its unit"},
    {GOOD "flush.time = 2m\n", "it must be from 1ms to 1m"},
    {GOOD "record.size = 2m\n", "record.size = 2m: it must be from 4k to 1048076"},
    {GOOD "record.size = 99999999999999999999\n", "give a number of bytes"},
    {GOOD "pools.size = 99999999999999999g\n", "give a number of bytes"},
    {GOOD "listen.mode = 0888\n", "octal"},
    {GOOD "listen.owner = no-such-user-here\n", "there is no user"},
    {GOOD "listen.group = no-such-group-here\n", "there is no group"},
    {GOOD "listen.allowed_uids = ,\n", "list users"},
    {GOOD "metrics.listen = 9145\n", "give host:port"},
    {GOOD "metrics.listen = a:99999\n", "give host:port"},
    {GOOD "otlp.endpoint = localhost:4317\n", "like http://host:4317"},
    {GOOD "otlp.endpoint = http:///v1/metrics\n", "like http://host:4317"},
    {GOOD "otlp.endpoint = http://me:secret@host:4317\n", "are left out"},
    {GOOD "otlp.headers = Bearer x\n", ":3: otlp.headers = (not shown): give name=value, more after commas"},
    {GOOD "otlp.headers = a b=x\n", "give name=value"},
    {GOOD "otlp.headers = a=%2\n", "a % without two hexadecimal digits"},
    {GOOD "otlp.headers = a=%0d%0ab: c\n", "a character that no header may have"},
    {GOOD "otlp.headers = b=c,Content-Type=text/plain\n", "are not free"},
    {GOOD "otlp.headers = ${env:NO_SUCH_VARIABLE}\n", "otlp.headers = (not shown): the environment has no NO_SUCH"},
    {GOOD "otlp.traces.endpoint = x\n", "like http://host:4317"},
    {GOOD "otlp.interval = 99ms\n", "from 100ms to 1h"},
    {GOOD "metrics.listen = ::1:9145\n", "brackets"},
    {GOOD "export.path = x\n", "absolute path"},
    {GOOD "export.format = xml\n", "choose one of: lines|protocap"},
    {GOOD "log.level = loud\n", "choose one of"},
    {GOOD "log.format = xml\n", "log.format = xml: choose one of: text|json"},
    {GOOD "core.dumps = maybe\n", "core.dumps = maybe: choose one of: off|on"},
    {GOOD "token.source = air\n", "token.source = air: choose one of: none|command|aws-msk-iam"},
    {GOOD "token.source = command\n", "token.source = command needs token.command"},
    {GOOD "token.command = /bin/x\n", "token.command needs token.source"},
    {GOOD "token.command =\n", "token.command has no value"},
    {GOOD "token.timeout = 10m\n", "token.timeout = 10m: it must be from 1s to 5m"},
    {GOOD "token.source = aws-msk-iam\nkafka.sasl.mechanism = PLAIN\n",
     "token.source is for kafka.sasl.mechanism = OAUTHBEARER"},
    {GOOD "token.source = aws-msk-iam\nkafka.security.protocol = ssl\n",
     "token.source needs kafka.security.protocol = sasl_ssl"},
    {GOOD "token.source = aws-msk-iam\nkafka.sasl.oauthbearer.method = oidc\n",
     "both say where the token comes from"},
    {GOOD "aws.region = EU West\n", "aws.region = EU West: give an AWS region"},
    {GOOD "aws.credentials = magic\n", "aws.credentials = magic: choose one of: chain|environment"},
    {GOOD "aws.profile =\n", "aws.profile has no value"},
    {GOOD "export.size = 1\n", "export.size = 1: it must be from 1k"},
    {GOOD "inflight.size = 1k\n", "inflight.size = 1k: it must be from 1m"},
    {GOOD "drain.time = 2h\n", "drain.time = 2h: it must be from 0ms to 1h"},
    {GOOD "settle.time = 11m\n", "settle.time = 11m: it must be from 0ms to 10m"},
    {GOOD "pinned.time = 1ms\n",
     "pinned.time = 1ms: it must be from 100ms to 10m"},
    {GOOD "settle.unreadable = keep\n",
     "settle.unreadable = keep: choose one of: resend|drop"},
    {GOOD "kafka.sasl.password = ${env:NO_SUCH_VARIABLE}\n",
     ":3: kafka.sasl.password: the environment has no NO_SUCH_VARIABLE"},
    {GOOD "kafka.sasl.password = ${file:/no/such}\n", "/no/such cannot be read: No such file"},
    {GOOD "kafka.sasl.password = ${file:x}\n", "x is not an absolute path"},
    {GOOD "kafka.sasl.password = ${file:/x\n", "the reference has no \"}\""},
    {GOOD "kafka.sasl.password = ${file:/dev/null}\n", "/dev/null is empty"},
    {GOOD "kafka.sasl.password = ${file:/dev/zero}\n", "larger than 65536 bytes"},
    {GOOD "durability = disk\n", "durability = disk needs a directory on a disk: set spool.path"},
    {GOOD "journal.size = 1k\n", "journal.size = 1k: it must be from"},
    {GOOD "durability = paper\n", "choose one of: kafka|disk"},
    {GOOD "spool.path = spool\n", "spool.path = spool: "},
    {GOOD "spool.size = 1k\n", "spool.size = 1k: it must be from"},
    {GOOD "kafka. = 3s\n", "needs the name"},
};
/* clang-format on */

START_TEST(a_mistake_is_named_with_its_place_and_its_remedy) {
    int rc = read_text(mistakes[_i].text, 0600);
    ck_assert_int_eq(rc, -1);
    ck_assert_msg(strstr(said, mistakes[_i].says) != NULL,
                  "\"%s\" is not in: %s", mistakes[_i].says, said);
}
END_TEST

/* `key =` in a text of the table above, and said by name. */
static bool has_mistake(const char *key) {
    char begin[84];
    snprintf(begin, sizeof(begin), "%s =", key);
    for (size_t i = 0; i < sizeof(mistakes) / sizeof(*mistakes); i++) {
        const char *at = strstr(mistakes[i].text, begin);
        if (at != NULL && (at == mistakes[i].text || at[-1] == '\n') &&
            read_text(mistakes[i].text, 0600) == -1 &&
            strstr(said, key) != NULL)
            return true;
        config_free(&c);
    }
    return false;
}

START_TEST(each_key_has_a_mistake_above_that_names_it) {
    char *text, key[80];
    size_t len;
    int n = 0;
    FILE *out = open_memstream(&text, &len);
    config_help(out, false);
    fclose(out);
    for (char *save, *line = strtok_r(text, "\n", &save); line != NULL;
         line = strtok_r(NULL, "\n", &save)) {
        if (strncmp(line, "kafka.", 6) == 0 ||
            sscanf(line, "%79[a-z._] = ", key) != 1 ||
            strncmp(line + strlen(key), " = ", 3) != 0)
            continue;
        ck_assert_msg(has_mistake(key), "no mistake of %s is tested", key);
        n++;
    }
    ck_assert_int_ge(n, 20);
    free(text);
}
END_TEST

START_TEST(a_value_can_come_from_a_file_or_a_variable) {
    char text[512], why[64];
    char secret[] = "/tmp/test_secret.XXXXXX";
    int fd = mkstemp(secret);
    ck_assert_int_eq(write(fd, "hunter2\r\n", 9), 9);
    setenv("TEST_USER", "joe", 1);
    snprintf(text, sizeof(text),
             GOOD "kafka.sasl.password = ${file:%s}\n"
                  "kafka.sasl.username = ${env:TEST_USER}\n"
                  "kafka.client.id = a${env:TEST_USER}$b${c}\n",
             secret);
    ck_assert_int_eq(read_text(text, 0644), 0);
    ck_assert_str_eq(said, ""); /* the file has no secret in it */
    ck_assert_str_eq(config_kafka(&c, "sasl.password"), "hunter2");
    ck_assert_str_eq(config_kafka(&c, "sasl.username"), "joe");
    ck_assert_str_eq(config_kafka(&c, "client.id"), "ajoe$b${c}");
    snprintf(why, sizeof(why), "${file:%s}", secret);
    ck_assert_str_eq(config_shown(&c.kafka[1]), why);

    ck_assert_int_eq(config_resolve_again(&c, stderr), 0);
    ck_assert_int_eq(ftruncate(fd, 0), 0);
    ck_assert_int_eq(pwrite(fd, "hunter3", 7, 0), 7);
    ck_assert_int_eq(config_resolve_again(&c, stderr), 1);
    ck_assert_str_eq(config_kafka(&c, "sasl.password"), "hunter3");
    /* what cannot be read leaves all as it was */
    unlink(secret);
    char *told;
    size_t len;
    FILE *err = open_memstream(&told, &len);
    ck_assert_int_eq(config_resolve_again(&c, err), -1);
    fclose(err);
    ck_assert_ptr_nonnull(
        strstr(told, "kafka.sasl.password: /tmp/test_secret"));
    ck_assert_str_eq(config_kafka(&c, "sasl.password"), "hunter3");
    free(told);
    close(fd);
}
END_TEST

START_TEST(all_mistakes_are_told_at_once) {
    ck_assert_int_eq(read_text("topic = ?\nflush.time = x\n", 0600), -1);
    ck_assert_ptr_nonnull(strstr(said, ":1:"));
    ck_assert_ptr_nonnull(strstr(said, ":2:"));
    ck_assert_ptr_nonnull(strstr(said, "listen is missing"));
}
END_TEST

START_TEST(a_secret_that_others_can_read_is_warned_of_and_never_shown) {
    ck_assert_int_eq(read_text(GOOD "kafka.sasl.password = hunter2\n", 0644),
                     0);
    ck_assert_ptr_nonnull(
        strstr(said, "warning: kafka.sasl.password is a secret"));
    ck_assert_ptr_null(strstr(said, "hunter2"));
    config_free(&c);
    ck_assert_int_eq(read_text(GOOD "kafka.sasl.password = hunter2\n", 0600),
                     0);
    ck_assert_str_eq(said, "");
}
END_TEST

START_TEST(a_file_that_is_not_there_is_an_error) {
    unlink(file);
    size_t len;
    FILE *err = open_memstream(&said, &len);
    ck_assert_int_eq(config_read(&c, file, err), -1);
    fclose(err);
    ck_assert_ptr_nonnull(strstr(said, "cannot be opened"));
}
END_TEST

START_TEST(help_has_every_key_in_both_forms) {
    for (int markdown = 0; markdown < 2; markdown++) {
        char *text;
        size_t len;
        FILE *out = open_memstream(&text, &len);
        config_help(out, markdown);
        fclose(out);
        ck_assert_ptr_nonnull(strstr(text, "listen.allowed_uids"));
        ck_assert_ptr_nonnull(strstr(text, "4k to 1048076"));
        ck_assert_ptr_nonnull(strstr(text, "lines, protocap"));
        ck_assert_ptr_nonnull(strstr(text, "kafka.NAME"));
        free(text);
    }
}
END_TEST

int main(void) {
    Suite *s = suite_create("config");
    TCase *t = tcase_create("config");
    tcase_add_checked_fixture(t, setup, teardown);
    tcase_add_test(t, a_destination_has_what_it_says_and_else_what_all_have);
    tcase_add_test(t, a_view_gets_new_values_and_nothing_else);
    tcase_add_test(t, without_destinations_nothing_has_a_name);
    tcase_add_test(t, names_of_destinations_are_the_workers);
    tcase_add_test(t, a_token_is_for_those_that_take_it);
    tcase_add_test(t, a_small_file_gets_all_defaults);
    tcase_add_test(t, every_key_is_taken);
    tcase_add_loop_test(t, a_mistake_is_named_with_its_place_and_its_remedy, 0,
                        sizeof(mistakes) / sizeof(*mistakes));
    tcase_add_test(t, each_key_has_a_mistake_above_that_names_it);
    tcase_add_test(t, a_value_can_come_from_a_file_or_a_variable);
    tcase_add_test(t, all_mistakes_are_told_at_once);
    tcase_add_test(t,
                   a_secret_that_others_can_read_is_warned_of_and_never_shown);
    tcase_add_test(t, a_file_that_is_not_there_is_an_error);
    tcase_add_test(t, help_has_every_key_in_both_forms);
    suite_add_tcase(s, t);
    SRunner *r = srunner_create(s);
    srunner_run_all(r, CK_NORMAL);
    int failed = srunner_ntests_failed(r);
    srunner_free(r);
    return failed != 0;
}
