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

/* Of each configuration that producers were made of.  The region is found on
   the loop's thread, where the values of kafka.* may change. */
typedef struct {
    const config *of; /* NULL: free */
    char region[64];
    uint64_t expires_s;
} token_state;

static struct {
    pthread_mutex_t lock;
    token_state all[CONFIG_MAX_DESTINATIONS + 1];
} states = {.lock = PTHREAD_MUTEX_INITIALIZER};

/* With the lock held.  There are no more configurations than that. */
static token_state *state_of(const config *c) {
    token_state *s = &states.all[0];
    for (size_t i = 0; i <= CONFIG_MAX_DESTINATIONS; i++) {
        s = &states.all[i];
        if (s->of == NULL || s->of == c)
            break;
    }
    s->of = c;
    return s;
}

uint64_t kafka_token_expiry(const config *c) {
    if (c->token_source == CONFIG_TOKEN_NONE)
        return 0;
    pthread_mutex_lock(&states.lock);
    uint64_t at = state_of(c)->expires_s;
    pthread_mutex_unlock(&states.lock);
    return at;
}

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
    char where[sizeof(states.all->region)];
    aws_credentials found;
    pthread_mutex_lock(&states.lock);
    memcpy(where, state_of(c)->region, sizeof(where));
    pthread_mutex_unlock(&states.lock);
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

static void count_metric(enum metric m) {
    __atomic_fetch_add(&metrics_cell[m], 1, __ATOMIC_RELAXED);
}

static int give(const config *c, rd_kafka_t *rk, const kafka_token *t,
                char *why, size_t size) {
    char name[CONFIG_NAME_SIZE + 16] = "token";
    config_of_destination(c, name + strlen(name), sizeof(name) - strlen(name));
    log_hide(name, t->value);
    if (rd_kafka_oauthbearer_set_token(
            rk, t->value, t->expires_ms,
            t->principal[0] != '\0' ? t->principal : "capture-sidecar", NULL, 0,
            why, size) != RD_KAFKA_RESP_ERR_NO_ERROR)
        return -1;
    pthread_mutex_lock(&states.lock);
    state_of(c)->expires_s = (uint64_t)(t->expires_ms / 1000);
    pthread_mutex_unlock(&states.lock);
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
        give(c, rk, &t, why, sizeof(why)) == -1) {
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
    pthread_mutex_lock(&states.lock);
    kafka_token_region(c, state_of(c)->region, sizeof(states.all->region));
    pthread_mutex_unlock(&states.lock);
    rd_kafka_error_t *error = rd_kafka_sasl_background_callbacks_enable(rk);
    if (error != NULL)
        log_error("kafka: tokens cannot be asked for: %s",
                  rd_kafka_error_string(error));
    rd_kafka_error_destroy(error);
}
