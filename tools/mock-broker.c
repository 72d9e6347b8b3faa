/*
 * mock-broker: librdkafka's mock cluster as a program of its own, so that
 * script/demo needs no Kafka.
 *
 * For demonstration only.  It keeps at most 5 MiB a partition in memory and
 * forgets all at its end, so that nothing it acknowledges is durable.
 *
 *   mock-broker [-t TOPIC] [-p PARTITIONS]
 *
 * One line on standard output, `HOST:PORT`, when it can be used; what it has
 * to say goes to standard error.  Runs until INT or TERM.
 */

#include <getopt.h>
#include <librdkafka/rdkafka.h>
#include <librdkafka/rdkafka_mock.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define PARTITIONS_MAX 1000

typedef struct {
    const char *topic;
    int partitions;
} options;

static _Noreturn void usage(FILE *to, int status) {
    fputs("Usage: mock-broker [-t TOPIC] [-p PARTITIONS]\n"
          "librdkafka's mock cluster, one broker on 127.0.0.1. For "
          "demonstration only.\n\n"
          "  -t TOPIC       the topic that it has (logging-traffic-topic)\n"
          "  -p PARTITIONS  of that topic (1)\n",
          to);
    exit(status);
}

static void parse(options *o, int argc, char **argv) {
    int c;

    while ((c = getopt(argc, argv, "t:p:h")) != -1) {
        switch (c) {
        case 't':
            o->topic = optarg;
            break;
        case 'p':
            o->partitions = atoi(optarg);
            break;
        case 'h':
            usage(stdout, 0);
        default:
            usage(stderr, 2);
        }
    }
    if (optind != argc || o->partitions < 1 || o->partitions > PARTITIONS_MAX) {
        usage(stderr, 2);
    }
}

/*
 * librdkafka's mock cluster lives inside a client.  This one has no brokers to
 * connect to, and need not complain of that.
 */
static rd_kafka_t *make_client(void) {
    char why[512];
    rd_kafka_t *rk;
    rd_kafka_conf_t *conf = rd_kafka_conf_new();

    rd_kafka_conf_set(conf, "log_level", "3", NULL, 0);
    rk = rd_kafka_new(RD_KAFKA_PRODUCER, conf, why, sizeof(why));
    if (rk == NULL) {
        rd_kafka_conf_destroy(conf);
        fprintf(stderr, "mock-broker: %s\n", why);
    }
    return rk;
}

static int make_topic(rd_kafka_mock_cluster_t *cluster, const options *o) {
    rd_kafka_resp_err_t err =
        rd_kafka_mock_topic_create(cluster, o->topic, o->partitions, 1);

    if (err != RD_KAFKA_RESP_ERR_NO_ERROR) {
        fprintf(stderr, "mock-broker: topic %s: %s\n", o->topic,
                rd_kafka_err2str(err));
        return -1;
    }
    return 0;
}

/* Not in all releases that the sidecar can be built with. */
rd_kafka_resp_err_t rd_kafka_mock_broker_add(rd_kafka_mock_cluster_t *cluster,
                                             int32_t id) __attribute__((weak));

/*
 * The mock says that broker 0 is the controller, and begins to count at 1: who
 * asks for the controller gets no answer.  Where no broker 0 can be added, the
 * sidecar asks broker 1 after a while, and capturectl needs none.
 */
static int add_controller(rd_kafka_mock_cluster_t *cluster) {
    if (rd_kafka_mock_broker_add == NULL)
        return 0;
    return rd_kafka_mock_broker_add(cluster, 0) == RD_KAFKA_RESP_ERR_NO_ERROR
               ? 0
               : -1;
}

/* Until INT or TERM. */
static int serve(rd_kafka_t *rk, const options *o, const sigset_t *ends) {
    rd_kafka_mock_cluster_t *cluster = rd_kafka_mock_cluster_new(rk, 1);
    int signal, rc = 1;

    if (cluster == NULL) {
        fputs("mock-broker: no mock cluster can be made\n", stderr);
        return 1;
    }
    if (add_controller(cluster) == 0 && make_topic(cluster, o) == 0) {
        fputs("mock-broker: for demonstration only: nothing here is durable\n",
              stderr);
        printf("%s\n", rd_kafka_mock_cluster_bootstraps(cluster));
        rc = fflush(stdout) != 0 || sigwait(ends, &signal) != 0;
    }
    rd_kafka_mock_cluster_destroy(cluster);
    return rc;
}

int main(int argc, char **argv) {
    options o = {.topic = "logging-traffic-topic", .partitions = 1};
    sigset_t ends;
    rd_kafka_t *rk;
    int rc = 1;

    parse(&o, argc, argv);
    /* before librdkafka's threads, so that the signals come to sigwait */
    sigemptyset(&ends);
    sigaddset(&ends, SIGINT);
    sigaddset(&ends, SIGTERM);
    sigprocmask(SIG_BLOCK, &ends, NULL);

    rk = make_client();
    if (rk != NULL) {
        rc = serve(rk, &o, &ends);
        rd_kafka_destroy(rk);
    }
    return rc;
}
