#include "sidecar/otlp.h"

#include <curl/curl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "sidecar/fetch.h"
#include "sidecar/log.h"
#include "sidecar/metrics.h"
#include "sidecar/otlp_encode.h"

#define MS 1000000ll
#define TIMEOUT_MS 5000L
#define STOP_NS (1500 * MS)

#define GRPC_METHOD                                                            \
    "/opentelemetry.proto.collector.metrics.v1.MetricsService/Export"
#define GRPC_PREFIX 5 /* not compressed, length */

/* The answer says next to nothing. */
#define ANSWER_MAX 65536u

static struct {
    loop *loop;
    loop_timer timer;
    int64_t interval_ns;
    uint64_t start_ns;
    bool started;

    char *url;
    bool grpc;
    pthread_t thread;
    pthread_mutex_t lock;
    pthread_cond_t wake;
    bool stop;       /* these with the lock */
    int64_t stop_ns; /* when a request under way must end */
    char *headers;   /* otlp.headers, as it is written; NULL: as before */
    size_t len;      /* of what is to be sent; 0: nothing */
    uint8_t buffer[GRPC_PREFIX + OTLP_SIZE]; /* the sender's while len > 0 */

    /* the sender's */
    bool failing;
    char status[64], message[160]; /* gRPC's trailers */
    size_t answered;
} otlp = {.lock = PTHREAD_MUTEX_INITIALIZER, .wake = PTHREAD_COND_INITIALIZER};

static int64_t clock_ns(clockid_t clock) {
    struct timespec ts;
    clock_gettime(clock, &ts);
    return (int64_t)ts.tv_sec * 1000 * MS + ts.tv_nsec;
}

/* ---- the sender's thread ---- */

static size_t on_answer(char *data, size_t one, size_t n, void *owner) {
    (void)data;
    (void)owner;
    otlp.answered += one * n;
    return otlp.answered <= ANSWER_MAX ? one * n : 0;
}

/* "name: value\r\n" into `into`, if it is that name. */
static void note(const char *line, size_t len, const char *name, char *into,
                 size_t size) {
    size_t n = strlen(name);
    if (len < n || strncasecmp(line, name, n) != 0)
        return;
    while (n < len && line[n] == ' ')
        n++;
    while (len > n && (line[len - 1] == '\n' || line[len - 1] == '\r'))
        len--;
    snprintf(into, size, "%.*s", (int)(len - n), line + n);
}

/* Headers and trailers. */
static size_t on_header(char *line, size_t one, size_t n, void *owner) {
    (void)owner;
    note(line, one * n, "grpc-status:", otlp.status, sizeof(otlp.status));
    note(line, one * n, "grpc-message:", otlp.message, sizeof(otlp.message));
    return one * n;
}

static int on_progress(void *owner, curl_off_t a, curl_off_t b, curl_off_t c,
                       curl_off_t d) {
    (void)owner, (void)a, (void)b, (void)c, (void)d;
    pthread_mutex_lock(&otlp.lock);
    bool over = otlp.stop && clock_ns(CLOCK_MONOTONIC) >= otlp.stop_ns;
    pthread_mutex_unlock(&otlp.lock);
    return over;
}

static void set_options(CURL *curl) {
    bool tls = strncmp(otlp.url, "https:", 6) == 0;
    curl_easy_setopt(curl, CURLOPT_URL, otlp.url);
    curl_easy_setopt(curl, CURLOPT_PROTOCOLS_STR, "http,https");
    if (otlp.grpc) {
        curl_easy_setopt(curl, CURLOPT_HTTP_VERSION,
                         tls ? CURL_HTTP_VERSION_2TLS
                             : CURL_HTTP_VERSION_2_PRIOR_KNOWLEDGE);
        /* libcurl 7.88 fails on a connection whose last answer had trailers */
        curl_easy_setopt(curl, CURLOPT_FORBID_REUSE, 1L);
    }
    curl_easy_setopt(curl, CURLOPT_NOSIGNAL, 1L);
    curl_easy_setopt(curl, CURLOPT_TIMEOUT_MS, TIMEOUT_MS);
    curl_easy_setopt(curl, CURLOPT_POST, 1L);
    curl_easy_setopt(curl, CURLOPT_USERAGENT, "capture-sidecar");
    curl_easy_setopt(curl, CURLOPT_WRITEFUNCTION, on_answer);
    curl_easy_setopt(curl, CURLOPT_HEADERFUNCTION, on_header);
    curl_easy_setopt(curl, CURLOPT_XFERINFOFUNCTION, on_progress);
    curl_easy_setopt(curl, CURLOPT_NOPROGRESS, 0L);
}

/* NULL, or why the collector has not taken it. */
static const char *send_one(CURL *curl, size_t len, char *text, size_t size) {
    long status = 0;
    otlp.answered = 0;
    otlp.status[0] = otlp.message[0] = '\0';
    curl_easy_setopt(curl, CURLOPT_POSTFIELDS, otlp.buffer);
    curl_easy_setopt(curl, CURLOPT_POSTFIELDSIZE, (long)len);
    CURLcode code = curl_easy_perform(curl);
    curl_easy_getinfo(curl, CURLINFO_RESPONSE_CODE, &status);
    if (code != CURLE_OK)
        return curl_easy_strerror(code);
    if (status != 200) {
        snprintf(text, size, "HTTP status %ld", status);
        return text;
    }
    if (otlp.grpc && strcmp(otlp.status, "0") != 0) {
        snprintf(text, size, "gRPC status %s %s",
                 *otlp.status != '\0' ? otlp.status : "missing", otlp.message);
        return text;
    }
    return NULL;
}

static void report(const char *failed) {
    enum metric m =
        failed != NULL ? METRIC_OTLP_EXPORTS_FAILED : METRIC_OTLP_EXPORTS;
    __atomic_fetch_add(&metrics_cell[m], 1, __ATOMIC_RELAXED);
    if ((failed != NULL) == otlp.failing)
        return;
    otlp.failing = failed != NULL;
    if (failed != NULL)
        log_warn("otlp: %s does not take metrics: %s; capture goes on",
                 otlp.url, failed);
    else
        log_info("otlp: %s takes metrics again", otlp.url);
}

/* Bytes to send, or 0: the end. */
static size_t wait_for_work(void) {
    pthread_mutex_lock(&otlp.lock);
    while (otlp.len == 0 && !otlp.stop)
        pthread_cond_wait(&otlp.wake, &otlp.lock);
    size_t len = otlp.len;
    pthread_mutex_unlock(&otlp.lock);
    return len;
}

static void done(void) {
    pthread_mutex_lock(&otlp.lock);
    otlp.len = 0;
    pthread_mutex_unlock(&otlp.lock);
}

static void forget(char *text) {
    if (text != NULL)
        explicit_bzero(text, strlen(text));
    free(text);
}

/* libcurl has copies of its own: what was in them is not to be found later. */
static void free_headers(struct curl_slist *list) {
    for (struct curl_slist *one = list; one != NULL; one = one->next)
        explicit_bzero(one->data, strlen(one->data));
    curl_slist_free_all(list);
}

static struct curl_slist *make_headers(const char *configured) {
    char line[CONFIG_HEADER_SIZE];
    const char *why;
    struct curl_slist *list = curl_slist_append(
        NULL, otlp.grpc ? "Content-Type: application/grpc"
                        : "Content-Type: application/x-protobuf");
    list = curl_slist_append(list, "Expect:");
    if (otlp.grpc)
        list = curl_slist_append(list, "TE: trailers");
    while (configured != NULL &&
           config_header(&configured, line, sizeof(line), &why) == 1)
        list = curl_slist_append(list, line);
    explicit_bzero(line, sizeof(line));
    return list;
}

/* Those of the configuration, where they are new; else `old`. */
static struct curl_slist *headers_now(CURL *curl, struct curl_slist *old) {
    pthread_mutex_lock(&otlp.lock);
    char *configured = otlp.headers;
    otlp.headers = NULL;
    pthread_mutex_unlock(&otlp.lock);
    if (configured == NULL && old != NULL)
        return old;
    struct curl_slist *list = make_headers(configured);
    curl_easy_setopt(curl, CURLOPT_HTTPHEADER, list);
    free_headers(old);
    forget(configured);
    return list;
}

static void *run(void *unused) {
    struct curl_slist *headers = NULL;
    CURL *curl = curl_easy_init();
    char why[256];
    size_t len;
    (void)unused;
    if (curl != NULL) {
        set_options(curl);
        while ((len = wait_for_work()) > 0) {
            headers = headers_now(curl, headers);
            report(send_one(curl, len, why, sizeof(why)));
            done();
        }
    }
    curl_easy_cleanup(curl);
    free_headers(headers);
    return NULL;
}

/* ---- the loop's thread ---- */

/* The buffer is ours: nothing is under way. */
static void fill(void) {
    uint8_t *at = otlp.buffer + (otlp.grpc ? GRPC_PREFIX : 0);
    size_t len = otlp_encode(at, OTLP_SIZE, otlp.start_ns,
                             (uint64_t)clock_ns(CLOCK_REALTIME));
    if (otlp.grpc) {
        otlp.buffer[0] = 0;
        for (unsigned i = 0; i < 4; i++)
            otlp.buffer[1 + i] = (uint8_t)(len >> (24 - 8 * i));
    }
    otlp.len = len > 0 ? len + (size_t)(at - otlp.buffer) : 0;
    if (otlp.len > 0)
        pthread_cond_signal(&otlp.wake);
}

static void due(loop_timer *timer) {
    pthread_mutex_lock(&otlp.lock);
    if (otlp.len == 0)
        fill();
    pthread_mutex_unlock(&otlp.lock);
    loop_timer_set(otlp.loop, timer, otlp.interval_ns);
}

/* Without a path it is gRPC's. */
static char *url_of(const char *endpoint, bool *grpc) {
    size_t len = strlen(endpoint) + sizeof(GRPC_METHOD);
    const char *host = strstr(endpoint, "://") + 3, *path = strchr(host, '/');
    char *url = malloc(len);
    *grpc = path == NULL || path[1] == '\0';
    if (url != NULL)
        snprintf(url, len, "%.*s%s",
                 (int)(*grpc && path != NULL ? path - endpoint
                                             : (long)strlen(endpoint)),
                 endpoint, *grpc ? GRPC_METHOD : "");
    return url;
}

void otlp_init(const config *c) {
    if (c->otlp_traces != NULL)
        log_warn("otlp.traces.endpoint = %s: this program makes no spans, and "
                 "nothing is sent there; metrics go to otlp.endpoint",
                 c->otlp_traces);
    if (c->otlp_endpoint != NULL)
        fetch_init();
}

int otlp_start(const config *c, loop *l) {
    if (c->otlp_endpoint == NULL)
        return 0;
    otlp.loop = l;
    otlp.interval_ns = c->otlp_interval;
    otlp.start_ns = (uint64_t)clock_ns(CLOCK_REALTIME);
    otlp.timer.due = due;
    otlp_reload(c);
    otlp.url = url_of(c->otlp_endpoint, &otlp.grpc);
    if (otlp.url == NULL ||
        pthread_create(&otlp.thread, NULL, run, NULL) != 0) {
        log_error("otlp.endpoint: no thread, or no memory, for it");
        free(otlp.url);
        return -1;
    }
    otlp.started = true;
    log_info("otlp: metrics go to %s", otlp.url);
    loop_timer_set(l, &otlp.timer, otlp.interval_ns);
    return 0;
}

void otlp_reload(const config *c) {
    const char *value = c->otlp_headers.value;
    char *copy = value != NULL ? strdup(value) : NULL;
    pthread_mutex_lock(&otlp.lock);
    char *old = otlp.headers;
    if (copy != NULL)
        otlp.headers = copy;
    pthread_mutex_unlock(&otlp.lock);
    if (copy != NULL)
        forget(old);
}

void otlp_stop(void) {
    if (!otlp.started)
        return;
    loop_timer_cancel(otlp.loop, &otlp.timer);
    pthread_mutex_lock(&otlp.lock);
    otlp.stop = true;
    otlp.stop_ns = clock_ns(CLOCK_MONOTONIC) + STOP_NS;
    if (otlp.len == 0)
        fill();
    pthread_cond_signal(&otlp.wake);
    pthread_mutex_unlock(&otlp.lock);
    pthread_join(otlp.thread, NULL);
    free(otlp.url);
    forget(otlp.headers);
    otlp.headers = NULL;
    otlp.started = false;
}
