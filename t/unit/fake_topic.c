/*
 * What fake_kafka.c and fake_broker.c answer alike: a topic that is there, and
 * nothing that takes time.
 */
#include "sidecar/kafka.h"

static struct { uint64_t mark, looks; } the_topic;

/* The fake's own: the end of one. */
static void free_producer(const kafka *k);

int kafka_check(const config *c, FILE *err) {
    (void)c, (void)err;
    return 0;
}

void kafka_reload(kafka *k) {
    (void)k;
}

void kafka_look(const kafka *k, kafka_health *into) {
    (void)k;
    *into = (kafka_health){.reachable = true};
}

uint64_t kafka_topic_mark(const kafka *k) {
    (void)k;
    return the_topic.mark;
}

uint64_t kafka_topic_look(kafka *k) {
    (void)k;
    return the_topic.looks++;
}

uint64_t kafka_topic_looked(const kafka *k) {
    (void)k;
    return the_topic.looks;
}

bool kafka_readers_wait(int64_t within_ns) {
    (void)within_ns;
    return true;
}

void kafka_reader_free(kafka_reader *r) {
    (void)r;
}

size_t kafka_queued(const kafka *k) {
    (void)k;
    return 0;
}

void kafkas_free(kafka *const *ks, size_t n, int64_t within_ns) {
    (void)within_ns;
    for (size_t i = 0; i < n; i++) {
        free_producer(ks[i]);
    }
}
