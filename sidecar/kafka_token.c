#include "sidecar/kafka_token.h"

#include <inttypes.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "sidecar/aws_credentials.h"
#include "sidecar/aws_sigv4.h"
#include "sidecar/fetch.h"
#include "sidecar/log.h"
#include "sidecar/metrics.h"

static const kafka_token_source sources[] = {
    [CONFIG_TOKEN_COMMAND] = kafka_token_from_command,
    [CONFIG_TOKEN_AWS_MSK_IAM] = kafka_token_from_aws,
};

void kafka_token_free(kafka_token *t) {
    aws_free(t->value);
    memset(t, 0, sizeof(*t));
}

/* ---- Amazon MSK ---- */

/* Found on the loop's thread, where the values of kafka.* may change. */
static struct {
    pthread_mutex_t lock;
    char name[64];
} region = {.lock = PTHREAD_MUTEX_INITIALIZER};

/* "...kafka.REGION.amazonaws.com", also of MSK Serverless. */
static bool region_of_brokers(const char *servers, char *into, size_t size) {
    static const char *const marks[] = {".kafka.", ".kafka-serverless."};
    for (size_t i = 0; i < sizeof(marks) / sizeof(*marks); i++) {
        const char *at = strstr(servers, marks[i]);
        if (at == NULL)
            continue;
        at += strlen(marks[i]);
        size_t n = strcspn(at, ".,:");
        if (n > 0 && n < size && strncmp(at + n, ".amazonaws.", 11) == 0) {
            snprintf(into, size, "%.*s", (int)n, at);
            return true;
        }
    }
    return false;
}

void kafka_token_region(const config *c, char *into, size_t size) {
    static const char *const variables[] = {"AWS_REGION", "AWS_DEFAULT_REGION"};
    const char *servers = config_kafka(c, "bootstrap.servers");
    snprintf(into, size, "%s", c->aws_region != NULL ? c->aws_region : "");
    if (*into != '\0' ||
        (servers != NULL && region_of_brokers(servers, into, size)))
        return;
    for (size_t i = 0; i < sizeof(variables) / sizeof(*variables); i++) {
        const char *value = getenv(variables[i]);
        if (*into == '\0' && value != NULL)
            snprintf(into, size, "%s", value);
    }
}

int kafka_token_from_aws(const config *c, kafka_token *into, char *why,
                         size_t size) {
    char where[sizeof(region.name)];
    aws_credentials found;
    pthread_mutex_lock(&region.lock);
    memcpy(where, region.name, sizeof(where));
    pthread_mutex_unlock(&region.lock);
    const aws_query query = {.provider = (aws_provider)c->aws_credentials,
                             .profile = c->aws_profile,
                             .region = where,
                             .timeout_ms = (long)(c->token_timeout / 1000000)};
    int rc = aws_credentials_get(&query, &found, why, size);
    time_t now = time(NULL);
    if (rc == 0) {
        log_hide("aws secret key", found.secret_key);
        if (found.session_token != NULL)
            log_hide("aws session token", found.session_token);
        into->value = aws_msk_token(&found, where, now, "capture-sidecar");
        into->expires_ms = (now + AWS_TOKEN_LIFETIME_S) * 1000;
        /* the token dies with the credentials that it was signed with */
        if (found.expires_s != 0 && found.expires_s * 1000 < into->expires_ms)
            into->expires_ms = found.expires_s * 1000;
        snprintf(into->principal, sizeof(into->principal), "%s",
                 found.access_key);
        if (into->value == NULL) {
            snprintf(why, size, "the token cannot be signed");
            rc = -1;
        }
    }
    aws_credentials_free(&found);
    return rc;
}

/* ---- librdkafka ---- */

static void set_metric(enum metric m, uint64_t value) {
    __atomic_store_n(&metrics_cell[m], value, __ATOMIC_RELAXED);
}

static void count_metric(enum metric m) {
    __atomic_fetch_add(&metrics_cell[m], 1, __ATOMIC_RELAXED);
}

static int give(rd_kafka_t *rk, const kafka_token *t, char *why, size_t size) {
    log_hide("token", t->value);
    if (rd_kafka_oauthbearer_set_token(
            rk, t->value, t->expires_ms,
            t->principal[0] != '\0' ? t->principal : "capture-sidecar", NULL, 0,
            why, size) != RD_KAFKA_RESP_ERR_NO_ERROR)
        return -1;
    set_metric(METRIC_TOKEN_EXPIRY, (uint64_t)(t->expires_ms / 1000));
    count_metric(METRIC_TOKENS);
    log_debug("kafka: a token, for %" PRId64 " s",
              t->expires_ms / 1000 - (int64_t)time(NULL));
    return 0;
}

/* In librdkafka's background thread.  The reason comes back as an event. */
static void refresh(rd_kafka_t *rk, const char *unused, void *opaque) {
    const config *c = opaque;
    kafka_token t = {0};
    char why[1024];
    (void)unused;
    if (sources[c->token_source](c, &t, why, sizeof(why)) == -1 ||
        give(rk, &t, why, sizeof(why)) == -1) {
        count_metric(METRIC_TOKENS_FAILED);
        log_mask(why, sizeof(why));
        rd_kafka_oauthbearer_set_token_failure(rk, why);
    }
    kafka_token_free(&t);
}

int kafka_token_check(const config *c, FILE *err) {
    char where[64];
    if (c->token_source != CONFIG_TOKEN_AWS_MSK_IAM)
        return 0;
    kafka_token_region(c, where, sizeof(where));
    if (*where != '\0' &&
        where[strspn(where, "abcdefghijklmnopqrstuvwxyz0123456789-")] == '\0')
        return 0;
    fprintf(err,
            "%s: token.source = aws-msk-iam: no region is known: set "
            "aws.region\n",
            c->file != NULL ? c->file : "-");
    return -1;
}

void kafka_token_configure(const config *c, rd_kafka_conf_t *conf) {
    if (c->token_source == CONFIG_TOKEN_NONE)
        return;
    fetch_init();
    rd_kafka_conf_set_opaque(conf, (void *)c);
    rd_kafka_conf_set_oauthbearer_token_refresh_cb(conf, refresh);
    rd_kafka_conf_enable_sasl_queue(conf, 1);
}

void kafka_token_begin(const config *c, rd_kafka_t *rk) {
    if (c->token_source == CONFIG_TOKEN_NONE)
        return;
    pthread_mutex_lock(&region.lock);
    kafka_token_region(c, region.name, sizeof(region.name));
    pthread_mutex_unlock(&region.lock);
    rd_kafka_error_t *error = rd_kafka_sasl_background_callbacks_enable(rk);
    if (error != NULL)
        log_error("kafka: tokens cannot be asked for: %s",
                  rd_kafka_error_string(error));
    rd_kafka_error_destroy(error);
}
