/*
 * When the topic may be written to.  A look at it goes through these steps,
 * each an answer from the brokers; nothing here blocks:
 *
 *   describe -> configuration -> end offsets of new partitions -> ready
 *      |             |                    |
 *      +-------------+--------------------+--> not ready, looks again later
 *
 * What we are not permitted to read is said once and done without.
 */
#define _GNU_SOURCE 1 /* strcasestr, strdupa */

#include <inttypes.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include "sidecar/kafka_internal.h"

#define LOOK_MS 5000 /* how long an answer may take */
#define FIRST_LOOK_MS 1000
#define REFRESH_NS (30 * KAFKA_S) /* a ready topic is looked at again */
#define REPEAT_NS (60 * KAFKA_S)  /* the same complaint is repeated */
#define SETTLED_NS (10 * KAFKA_S) /* ready for so long: no flapping */
#define BACKOFF_FIRST_NS (250 * KAFKA_MS)
#define BACKOFF_MAX_NS (30 * KAFKA_S)

/* How long brokers may take to create a topic before it counts as missing. */
#define CREATION_NS (3 * KAFKA_S)

static void look(kafka *k);
static void ask_configuration(kafka *k);
static void ask_ends(kafka *k);

/* ready or not */

bool kafka_ready(const kafka *k) {
    return k->topic.ready && k->state == KAFKA_RUNNING;
}

const char *kafka_not_ready_why(const kafka *k) {
    return kafka_ready(k) ? "" : k->topic.why_text;
}

size_t kafka_record_limit(const kafka *k) {
    size_t limit = k->c->record_size, most = k->topic.max_message;
    if (most == 0)
        return limit;
    most = most > KAFKA_RECORD_OVERHEAD ? most - KAFKA_RECORD_OVERHEAD : 0;
    return limit < most ? limit : most;
}

bool kafka_readable(const kafka *k) {
    return !k->topic.unreadable;
}

uint64_t kafka_topic_mark(const kafka *k) {
    return k->topic.mark;
}

uint64_t kafka_topic_looked(const kafka *k) {
    return k->topic.looked;
}

uint64_t kafka_topic_look(kafka *k) {
    uint64_t looks = k->topic.looks;
    look(k);
    return looks;
}

/* FNV-1a */
static uint64_t mark_of(const char *id) {
    uint64_t h = 0xcbf29ce484222325u;
    for (; *id != '\0'; id++)
        h = (h ^ (unsigned char)*id) * 0x100000001b3u;
    return h != 0 ? h : 1;
}

int64_t kafka_known_end(const kafka *k, int32_t partition) {
    return partition >= 0 && partition < k->topic.partitions
               ? k->topic.ends[partition]
               : -1;
}

int32_t kafka_partition(const kafka *k, const void *key, size_t len) {
    if (k->topic.partitions == 0)
        return -1;
    return (int32_t)((kafka_murmur2(key, len) & 0x7fffffff) %
                     (uint32_t)k->topic.partitions);
}

uint32_t kafka_murmur2(const void *key, size_t len) {
    const uint32_t m = 0x5bd1e995;
    const unsigned char *p = key;
    uint32_t h = 0x9747b28c ^ (uint32_t)len;
    for (; len >= 4; p += 4, len -= 4) {
        uint32_t w = p[0] | (uint32_t)p[1] << 8 | (uint32_t)p[2] << 16 |
                     (uint32_t)p[3] << 24;
        w *= m;
        w ^= w >> 24;
        h = h * m ^ w * m;
    }
    if (len >= 3)
        h ^= (uint32_t)p[2] << 16;
    if (len >= 2)
        h ^= (uint32_t)p[1] << 8;
    if (len >= 1)
        h = (h ^ p[0]) * m;
    h = (h ^ h >> 13) * m;
    return h ^ h >> 15;
}

void kafka_topic_not_ready(kafka *k, kafka_why why, const char *format, ...) {
    kafka_topic *t = &k->topic;
    va_list args;
    int64_t now = loop_now_ns(k->l);
    bool was_ready = t->ready, news = was_ready || t->why != why;

    va_start(args, format);
    vsnprintf(t->why_text, sizeof(t->why_text), format, args);
    va_end(args);
    t->ready = false;
    t->why = why;
    if (news || now - t->why_logged_ns >= REPEAT_NS) {
        t->why_logged_ns = now;
        log_warn("waiting for Kafka%s: %s", k->of, t->why_text);
    }
    if (was_ready)
        k->events->ready(k->owner, false);
}

static void become_ready(kafka *k) {
    kafka_topic *t = &k->topic;
    bool news = !t->ready, changed = t->ready && t->described != t->partitions;
    t->step = TOPIC_IDLE;
    t->partitions = t->described;
    loop_timer_set(k->l, &t->timer, REFRESH_NS);
    if (changed)
        log_info("topic %s has %" PRId32
                 " partitions now: new connections use them",
                 k->c->topic, t->partitions);
    if (!news)
        return;
    log_info("topic %s is ready: %" PRId32
             " partition%s, records of at most %zu bytes%s",
             k->c->topic, t->partitions, t->partitions == 1 ? "" : "s",
             kafka_record_limit(k), k->single ? ", each sent alone" : "");
    t->ready = true;
    t->ready_ns = loop_now_ns(k->l);
    t->why = WHY_NONE;
    t->missing = false;
    k->events->ready(k->owner, true);
}

/* looking again */

static void look_after(kafka *k, int64_t ns) {
    k->topic.step = TOPIC_IDLE;
    loop_timer_set(k->l, &k->topic.timer, ns);
}

static void look_later(kafka *k) {
    kafka_topic *t = &k->topic;
    if (t->ready) { /* only the look has failed */
        look_after(k, REFRESH_NS / 4);
        return;
    }
    t->backoff_ns = t->backoff_ns == 0 ? BACKOFF_FIRST_NS : t->backoff_ns * 2;
    if (t->backoff_ns > BACKOFF_MAX_NS)
        t->backoff_ns = BACKOFF_MAX_NS;
    look_after(k, t->backoff_ns);
}

void kafka_topic_suspect(kafka *k, kafka_why why, const char *text) {
    kafka_topic *t = &k->topic;
    if (!t->ready || k->state != KAFKA_RUNNING)
        return;
    if (loop_now_ns(k->l) - t->ready_ns > SETTLED_NS)
        t->backoff_ns = 0;
    kafka_topic_not_ready(k, why, "topic %s: %s", k->c->topic, text);
    look_later(k);
}

static void on_timer(loop_timer *timer) {
    look((kafka *)((char *)timer - offsetof(kafka, topic.timer)));
}

/*
 * librdkafka sends these questions to the cluster's controller, which its own
 * mock cluster does not have: after a time without an answer, every other look
 * asks broker 1 instead.
 */
static rd_kafka_AdminOptions_t *options_for(kafka *k, rd_kafka_admin_op_t op) {
    char why[128];
    rd_kafka_AdminOptions_t *options = rd_kafka_AdminOptions_new(k->rk, op);
    rd_kafka_AdminOptions_set_request_timeout(
        options, k->topic.asked ? LOOK_MS : FIRST_LOOK_MS, why, sizeof(why));
    if (k->topic.bypassing && op != RD_KAFKA_ADMIN_OP_LISTOFFSETS)
        rd_kafka_AdminOptions_set_broker(options, 1, why, sizeof(why));
    return options;
}

/* step 1: the topic itself */

static void look(kafka *k) {
    const char *names[] = {k->c->topic};
    if (k->state != KAFKA_RUNNING || k->topic.step != TOPIC_IDLE)
        return;
    k->topic.step = TOPIC_DESCRIBING;
    k->topic.looks++;
    rd_kafka_TopicCollection_t *topics =
        rd_kafka_TopicCollection_of_topic_names(names, 1);
    rd_kafka_AdminOptions_t *options =
        options_for(k, RD_KAFKA_ADMIN_OP_DESCRIBETOPICS);
    rd_kafka_error_destroy(
        rd_kafka_AdminOptions_set_include_authorized_operations(options, 1));
    rd_kafka_DescribeTopics(k->rk, topics, options, k->queue);
    k->topic.asked = true;
    rd_kafka_AdminOptions_destroy(options);
    rd_kafka_TopicCollection_destroy(topics);
}

static void no_answer(kafka *k, const char *question, rd_kafka_event_t *event) {
    const char *text = rd_kafka_event_error_string(event);
    if (k->topic.ready)
        log_debug("kafka%s: %s: %s", k->of, question, text);
    else if (k->topic.why <= WHY_STARTING || k->topic.why > WHY_AUTHENTICATION)
        kafka_topic_not_ready(k, WHY_UNREACHABLE,
                              "Kafka does not answer (%s): %s", question, text);
    else /* keep what is known of the reason; say it again when it is time */
        kafka_topic_not_ready(k, k->topic.why, "%s",
                              strdupa(k->topic.why_text));
    look_later(k);
}

/*
 * rd_kafka_topic_new asked for its creation, and librdkafka asks again every
 * second while the topic is unknown: all that is left to do is wait.
 */
static void is_missing(kafka *k) {
    kafka_topic *t = &k->topic;
    int64_t now = loop_now_ns(k->l);
    if (!t->missing) {
        t->missing = true;
        t->missing_since_ns = now;
    }
    if (t->ready || now - t->missing_since_ns > CREATION_NS) {
        kafka_topic_not_ready(
            k, WHY_MISSING,
            "topic %s does not exist: create it, or let the brokers do so "
            "(auto.create.topics.enable, and permission to Create)",
            k->c->topic);
        look_later(k);
        return;
    }
    look_after(k, BACKOFF_FIRST_NS);
}

static void topic_error(kafka *k, const rd_kafka_error_t *error) {
    switch (rd_kafka_error_code(error)) {
    case RD_KAFKA_RESP_ERR_UNKNOWN_TOPIC_OR_PART:
    case RD_KAFKA_RESP_ERR__UNKNOWN_TOPIC:
        is_missing(k);
        return;
    case RD_KAFKA_RESP_ERR_TOPIC_AUTHORIZATION_FAILED:
        kafka_topic_not_ready(
            k, WHY_FORBIDDEN,
            "topic %s is not permitted to this principal: allow it Describe "
            "and "
            "Write on the topic (and Create, if it does not exist)",
            k->c->topic);
        break;
    default:
        kafka_topic_not_ready(k, WHY_OTHER, "topic %s: %s", k->c->topic,
                              rd_kafka_error_string(error));
    }
    look_later(k);
}

/* Brokers without authorisation, and old ones, tell nothing: *told. */
static bool may(const rd_kafka_TopicDescription_t *topic,
                rd_kafka_AclOperation_t operation, bool *told) {
    size_t n;
    const rd_kafka_AclOperation_t *allowed =
        rd_kafka_TopicDescription_authorized_operations(topic, &n);
    *told = allowed != NULL && n > 0;
    for (size_t i = 0; *told && i < n; i++)
        if (allowed[i] == operation || allowed[i] == RD_KAFKA_ACL_OPERATION_ALL)
            return true;
    return !*told;
}

static bool may_write(const rd_kafka_TopicDescription_t *topic) {
    bool told;
    return may(topic, RD_KAFKA_ACL_OPERATION_WRITE, &told);
}

void kafka_topic_readable(kafka *k, bool readable) {
    kafka_topic *t = &k->topic;
    if (t->unreadable != readable)
        return;
    t->unreadable = !readable;
    log_info(readable ? "topic %s may be read: records in doubt are looked for"
                      : "topic %s may not be read: a record in doubt cannot be "
                        "looked for (settle.unreadable says what becomes of "
                        "it), and requests stay in memory or spool until "
                        "their end is acknowledged",
             k->c->topic);
}

static void check_reading(kafka *k, const rd_kafka_TopicDescription_t *topic) {
    bool told, readable = may(topic, RD_KAFKA_ACL_OPERATION_READ, &told);
    if (told)
        kafka_topic_readable(k, readable);
}

/* Offsets of another topic of that name say nothing of this one. */
static void check_identity(kafka *k, const rd_kafka_TopicDescription_t *topic) {
    kafka_topic *t = &k->topic;
    const rd_kafka_Uuid_t *id = rd_kafka_TopicDescription_topic_id(topic);
    const char *text = id != NULL ? rd_kafka_Uuid_base64str(id) : NULL;
    if (text == NULL)
        return;
    if (t->id[0] != '\0' && strcmp(t->id, text) != 0) {
        log_warn(
            "topic %s has been deleted and made again: its id was %s and is %s",
            k->c->topic, t->id, text);
        for (int32_t i = 0; i < t->ends_size; i++)
            t->ends[i] = -1;
    }
    snprintf(t->id, sizeof(t->id), "%s", text);
    t->mark = mark_of(text);
}

static int make_room(kafka *k, int32_t n) {
    kafka_topic *t = &k->topic;
    if (kafka_pace_resize(k, n) == -1)
        return -1;
    if (n <= t->ends_size)
        return 0;
    int64_t *ends = realloc(t->ends, (size_t)n * sizeof(*ends));
    if (ends == NULL)
        return -1;
    t->ends = ends;
    while (t->ends_size < n)
        t->ends[t->ends_size++] = -1;
    return 0;
}

static void not_described(kafka *k, rd_kafka_event_t *event) {
    kafka_topic *t = &k->topic;
    bool first = !t->bypassing && t->why == WHY_STARTING;
    if (rd_kafka_event_error(event) == RD_KAFKA_RESP_ERR__TIMED_OUT)
        t->bypassing = !t->bypassing;
    if (first && t->bypassing)
        look_after(k, 0);
    else
        no_answer(k, "describing the topic", event);
}

static void described(kafka *k, rd_kafka_event_t *event) {
    kafka_topic *t = &k->topic;
    size_t n = 0, partitions;
    if (rd_kafka_event_error(event)) {
        not_described(k, event);
        return;
    }
    const rd_kafka_TopicDescription_t **topics =
        rd_kafka_DescribeTopics_result_topics(
            rd_kafka_event_DescribeTopics_result(event), &n);
    const rd_kafka_error_t *error =
        n == 1 ? rd_kafka_TopicDescription_error(topics[0]) : NULL;
    if (error != NULL &&
        rd_kafka_error_code(error) != RD_KAFKA_RESP_ERR_NO_ERROR) {
        topic_error(k, error);
        return;
    }
    if (n != 1 ||
        rd_kafka_TopicDescription_partitions(topics[0], &partitions) == NULL ||
        partitions == 0 || make_room(k, (int32_t)partitions) == -1) {
        look_later(k); /* it is being made */
        return;
    }
    if (t->missing)
        log_info(
            "topic %s did not exist: it has been created, with %zu partition%s",
            k->c->topic, partitions, partitions == 1 ? "" : "s");
    k->reachable = true;
    t->missing = false;
    t->described = (int32_t)partitions;
    check_identity(k, topics[0]);
    t->looked = t->looks;
    check_reading(k, topics[0]);
    if (!may_write(topics[0])) {
        kafka_topic_not_ready(
            k, WHY_FORBIDDEN,
            "topic %s: this principal may not write to it: allow it Write",
            k->c->topic);
        look_later(k);
        return;
    }
    ask_configuration(k);
}

/* step 2: its configuration */

static void ask_configuration(kafka *k) {
    k->topic.step = TOPIC_CONFIGURING;
    rd_kafka_ConfigResource_t *resource =
        rd_kafka_ConfigResource_new(RD_KAFKA_RESOURCE_TOPIC, k->c->topic);
    rd_kafka_AdminOptions_t *options =
        options_for(k, RD_KAFKA_ADMIN_OP_DESCRIBECONFIGS);
    rd_kafka_DescribeConfigs(k->rk, &resource, 1, options, k->queue);
    rd_kafka_AdminOptions_destroy(options);
    rd_kafka_ConfigResource_destroy(resource);
}

static const char *entry(const rd_kafka_ConfigResource_t *resource,
                         const char *name) {
    size_t n;
    const rd_kafka_ConfigEntry_t **entries =
        rd_kafka_ConfigResource_configs(resource, &n);
    for (size_t i = 0; i < n; i++)
        if (strcmp(rd_kafka_ConfigEntry_name(entries[i]), name) == 0) {
            const char *value = rd_kafka_ConfigEntry_value(entries[i]);
            return value != NULL ? value : "";
        }
    return "";
}

static void cannot_read_configuration(kafka *k, rd_kafka_resp_err_t err) {
    if (!k->topic.configs_noted)
        log_info(
            "the configuration of topic %s cannot be read (%s): its "
            "max.message.bytes is "
            "taken to allow record.size, its cleanup.policy not to be compact",
            k->c->topic, rd_kafka_err2str(err));
    k->topic.configs_noted = true;
    ask_ends(k);
}

static void check_replicas(kafka *k, const char *min_isr) {
    if (k->topic.isr_warned || *min_isr == '\0' || atoi(min_isr) >= 2)
        return;
    k->topic.isr_warned = true;
    log_warn("topic %s has min.insync.replicas = %s: an acknowledged record "
             "can be lost with one "
             "broker; set 2 or more",
             k->c->topic, min_isr);
}

/* The brokers' limit is on batches: one that is too large would take innocent
   records with it.  Whether another producer is made for that. */
static bool fit_batches(kafka *k) {
    size_t most = k->topic.max_message < KAFKA_BATCH_SIZE ? k->topic.max_message
                                                          : KAFKA_BATCH_SIZE;
    if (most == 0 || most == k->batch_size)
        return false;
    log_info("topic %s has max.message.bytes = %zu: batches are kept below it",
             k->c->topic, k->topic.max_message);
    k->batch_size = most;
    k->want_single = false; /* that was the reason why one was refused */
    if (k->topic.ready)
        kafka_topic_not_ready(
            k, WHY_PRODUCER,
            "the producer is made anew for another batch size");
    kafka_restart(k);
    return true;
}

static void configured(kafka *k, rd_kafka_event_t *event) {
    size_t n = 0;
    rd_kafka_resp_err_t err = rd_kafka_event_error(event);
    if (err == RD_KAFKA_RESP_ERR__TIMED_OUT ||
        err == RD_KAFKA_RESP_ERR__TRANSPORT) {
        no_answer(k, "describing the topic's configuration", event);
        return;
    }
    const rd_kafka_ConfigResource_t **resources = NULL;
    if (err == RD_KAFKA_RESP_ERR_NO_ERROR)
        resources = rd_kafka_DescribeConfigs_result_resources(
            rd_kafka_event_DescribeConfigs_result(event), &n);
    if (n == 1)
        err = rd_kafka_ConfigResource_error(resources[0]);
    if (n != 1 || err != RD_KAFKA_RESP_ERR_NO_ERROR) {
        cannot_read_configuration(k, err);
        return;
    }
    if (strcasestr(entry(resources[0], "cleanup.policy"), "compact") != NULL) {
        kafka_topic_not_ready(
            k, WHY_COMPACTED,
            "topic %s has cleanup.policy = %s: compaction would remove records "
            "of a connection, so it is not written to; set delete",
            k->c->topic, entry(resources[0], "cleanup.policy"));
        look_later(k);
        return;
    }
    check_replicas(k, entry(resources[0], "min.insync.replicas"));
    k->topic.max_message =
        strtoull(entry(resources[0], "max.message.bytes"), NULL, 10);
    if (!fit_batches(k))
        ask_ends(k);
}

/* step 3: where its partitions end */

static void ask_ends(kafka *k) {
    kafka_topic *t = &k->topic;
    rd_kafka_topic_partition_list_t *list =
        rd_kafka_topic_partition_list_new(t->described);
    for (int32_t p = 0; p < t->described; p++)
        if (t->ends[p] == -1)
            rd_kafka_topic_partition_list_add(list, k->c->topic, p)->offset =
                RD_KAFKA_OFFSET_SPEC_LATEST;
    if (list->cnt == 0) {
        become_ready(k);
    } else {
        t->step = TOPIC_LISTING;
        rd_kafka_AdminOptions_t *options =
            options_for(k, RD_KAFKA_ADMIN_OP_LISTOFFSETS);
        rd_kafka_ListOffsets(k->rk, list, options, k->queue);
        rd_kafka_AdminOptions_destroy(options);
    }
    rd_kafka_topic_partition_list_destroy(list);
}

static bool is_permission(rd_kafka_resp_err_t err) {
    return err == RD_KAFKA_RESP_ERR_TOPIC_AUTHORIZATION_FAILED ||
           err == RD_KAFKA_RESP_ERR_CLUSTER_AUTHORIZATION_FAILED ||
           err == RD_KAFKA_RESP_ERR__UNSUPPORTED_FEATURE;
}

/* Whether writing can begin: with one partition whose leader is away, yes. */
static bool take_ends(kafka *k, const rd_kafka_ListOffsets_result_t *result) {
    size_t n, usable = 0;
    const rd_kafka_ListOffsetsResultInfo_t **infos =
        rd_kafka_ListOffsets_result_infos(result, &n);
    for (size_t i = 0; i < n; i++) {
        const rd_kafka_topic_partition_t *p =
            rd_kafka_ListOffsetsResultInfo_topic_partition(infos[i]);
        if (p->err == RD_KAFKA_RESP_ERR_NO_ERROR &&
            p->partition < k->topic.ends_size)
            k->topic.ends[p->partition] = p->offset;
        usable += p->err == RD_KAFKA_RESP_ERR_NO_ERROR || is_permission(p->err);
    }
    return usable > 0;
}

static void listed(kafka *k, rd_kafka_event_t *event) {
    rd_kafka_resp_err_t err = rd_kafka_event_error(event);
    if (err != RD_KAFKA_RESP_ERR_NO_ERROR && !is_permission(err)) {
        no_answer(k, "asking for end offsets", event);
        return;
    }
    if (err == RD_KAFKA_RESP_ERR_NO_ERROR &&
        !take_ends(k, rd_kafka_event_ListOffsets_result(event)) &&
        !k->topic.ready) {
        kafka_topic_not_ready(
            k, WHY_OFFSETS, "topic %s: no partition has a leader", k->c->topic);
        look_later(k);
        return;
    }
    become_ready(k);
}

/* kafka.c's side */

void kafka_topic_event(kafka *k, rd_kafka_event_t *event) {
    kafka_topic_step step = k->topic.step;
    switch (rd_kafka_event_type(event)) {
    case RD_KAFKA_EVENT_DESCRIBETOPICS_RESULT:
        if (step == TOPIC_DESCRIBING)
            described(k, event);
        break;
    case RD_KAFKA_EVENT_DESCRIBECONFIGS_RESULT:
        if (step == TOPIC_CONFIGURING)
            configured(k, event);
        break;
    case RD_KAFKA_EVENT_LISTOFFSETS_RESULT:
        if (step == TOPIC_LISTING)
            listed(k, event);
        break;
    default:
        log_debug("kafka: event %s", rd_kafka_event_name(event));
    }
}

void kafka_topic_init(kafka *k) {
    k->topic.timer.due = on_timer;
    k->topic.why = WHY_STARTING;
    snprintf(k->topic.why_text, sizeof(k->topic.why_text),
             "Kafka has not answered yet");
}

void kafka_topic_begin(kafka *k) {
    kafka_topic_stop(k);
    k->topic.backoff_ns = 0;
    look(k);
}

void kafka_topic_stop(kafka *k) {
    loop_timer_cancel(k->l, &k->topic.timer);
    k->topic.step = TOPIC_IDLE;
}

void kafka_topic_free(kafka *k) {
    kafka_topic_stop(k);
    free(k->topic.ends);
}
