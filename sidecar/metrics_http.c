/*
 * /metrics, /live and /ready, by libmicrohttpd without a thread of its own:
 * its epoll descriptor is one more descriptor of our loop.
 */
#define _GNU_SOURCE 1 /* asprintf */

#include <errno.h>
#include <microhttpd.h>
#include <netdb.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#include "sidecar/log.h"
#include "sidecar/metrics.h"

#define CONNECTIONS 32u
#define TIMEOUT_S 10u
#define CONNECTION_MEMORY ((size_t)16384)

typedef struct {
    loop *l;
    struct MHD_Daemon *daemon;
    loop_io io;
    loop_timer timer; /* for connections that time out */
    bool (*ready)(void *owner, const char **why);
    void *owner;
} server;

static server http;

static enum MHD_Result answer(struct MHD_Connection *connection,
                              unsigned status, const char *type, char *text,
                              size_t len) {
    struct MHD_Response *response =
        MHD_create_response_from_buffer(len, text, MHD_RESPMEM_MUST_FREE);
    if (response == NULL) {
        free(text);
        return MHD_NO;
    }
    MHD_add_response_header(response, MHD_HTTP_HEADER_CONTENT_TYPE, type);
    MHD_add_response_header(response, MHD_HTTP_HEADER_CACHE_CONTROL,
                            "no-store");
    if (status == MHD_HTTP_METHOD_NOT_ALLOWED)
        MHD_add_response_header(response, MHD_HTTP_HEADER_ALLOW, "GET, HEAD");
    enum MHD_Result result = MHD_queue_response(connection, status, response);
    MHD_destroy_response(response);
    return result;
}

static enum MHD_Result answer_line(struct MHD_Connection *connection,
                                   unsigned status, const char *line) {
    char *text = NULL;
    int len = asprintf(&text, "%s\n", line);
    if (len < 0)
        return MHD_NO;
    return answer(connection, status, "text/plain; charset=utf-8", text,
                  (size_t)len);
}

static enum MHD_Result answer_metrics(struct MHD_Connection *connection) {
    char *text = NULL;
    size_t len = 0;
    FILE *out = open_memstream(&text, &len);
    if (out == NULL)
        return MHD_NO;
    metrics_write(out);
    if (fclose(out) != 0) {
        free(text);
        return MHD_NO;
    }
    return answer(connection, MHD_HTTP_OK,
                  "text/plain; version=0.0.4; charset=utf-8", text, len);
}

static enum MHD_Result answer_ready(struct MHD_Connection *connection) {
    const char *why = "";
    if (http.ready(http.owner, &why))
        return answer_line(connection, MHD_HTTP_OK, "ready");
    return answer_line(connection, MHD_HTTP_SERVICE_UNAVAILABLE, why);
}

static enum MHD_Result on_request(void *owner,
                                  struct MHD_Connection *connection,
                                  const char *url, const char *method,
                                  const char *version, const char *upload,
                                  size_t *upload_size, void **state) {
    static int seen_head;
    (void)owner;
    (void)version;
    (void)upload;
    if (*state ==
        NULL) { /* libmicrohttpd wants the answer at the second call */
        *state = &seen_head;
        return MHD_YES;
    }
    if (*upload_size > 0) { /* a body: not looked at */
        *upload_size = 0;
        return MHD_YES;
    }
    if (strcmp(method, MHD_HTTP_METHOD_GET) != 0 &&
        strcmp(method, MHD_HTTP_METHOD_HEAD) != 0)
        return answer_line(connection, MHD_HTTP_METHOD_NOT_ALLOWED, "only GET");
    if (strcmp(url, "/metrics") == 0)
        return answer_metrics(connection);
    if (strcmp(url, "/live") == 0)
        return answer_line(connection, MHD_HTTP_OK, "live");
    if (strcmp(url, "/ready") == 0)
        return answer_ready(connection);
    return answer_line(connection, MHD_HTTP_NOT_FOUND,
                       "there are /metrics, /live and /ready");
}

static void on_log(void *owner, const char *format, va_list args) {
    static log_limiter limit;
    char text[512];
    (void)owner;
    vsnprintf(text, sizeof(text), format, args);
    log_limited(&limit, LOG_LEVEL_DEBUG, "metrics: %s", text);
}

static void run(void) {
    MHD_UNSIGNED_LONG_LONG ms;
    MHD_run(http.daemon);
    if (MHD_get_timeout(http.daemon, &ms) == MHD_YES)
        loop_timer_set(http.l, &http.timer, (int64_t)ms * 1000000);
    else
        loop_timer_cancel(http.l, &http.timer);
}

static void on_io(loop_io *io, uint32_t events) {
    (void)io;
    (void)events;
    run();
}

static void on_timer(loop_timer *timer) {
    (void)timer;
    run();
}

/* host:port or [host]:port into its parts, which are the caller's to free. */
static int split(const char *address, char **host, char **port) {
    const char *colon = strrchr(address, ':');
    bool brackets = address[0] == '[';
    *host = strndup(address + brackets,
                    (size_t)(colon - address) - (brackets ? 2 : 0));
    *port = strdup(colon + 1);
    return *host != NULL && *port != NULL ? 0 : -1;
}

static int listen_on(const struct addrinfo *a) {
    const int on = 1;
    int fd = socket(a->ai_family, a->ai_socktype | SOCK_CLOEXEC | SOCK_NONBLOCK,
                    a->ai_protocol);
    if (fd == -1)
        return -1;
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on));
    if (bind(fd, a->ai_addr, a->ai_addrlen) == 0 && listen(fd, 64) == 0)
        return fd;
    int saved = errno;
    close(fd);
    errno = saved;
    return -1;
}

/* The first address that the name has. */
static int open_socket(const char *address) {
    struct addrinfo want = {.ai_socktype = SOCK_STREAM, .ai_flags = AI_PASSIVE},
                    *found = NULL;
    char *host, *port;
    int fd = -1;
    if (split(address, &host, &port) == 0) {
        int err = getaddrinfo(host, port, &want, &found);
        if (err != 0)
            log_error("metrics.listen = %s: %s", address, gai_strerror(err));
        else if ((fd = listen_on(found)) == -1)
            log_error("metrics.listen = %s: %m", address);
    }
    if (found != NULL)
        freeaddrinfo(found);
    free(host);
    free(port);
    return fd;
}

/* With port 0 the kernel has chosen one. */
static void say_where(int fd) {
    struct sockaddr_storage at;
    socklen_t len = sizeof(at);
    char host[64], port[16];
    if (getsockname(fd, (struct sockaddr *)&at, &len) == 0 &&
        getnameinfo((struct sockaddr *)&at, len, host, sizeof(host), port,
                    sizeof(port), NI_NUMERICHOST | NI_NUMERICSERV) == 0)
        log_info("metrics at http://%s%s%s:%s/metrics",
                 at.ss_family == AF_INET6 ? "[" : "", host,
                 at.ss_family == AF_INET6 ? "]" : "", port);
}

int metrics_listen(loop *l, const char *address,
                   bool (*ready)(void *owner, const char **why), void *owner) {
    int fd = open_socket(address);
    if (fd == -1)
        return -1;
    http = (server){.l = l, .ready = ready, .owner = owner};
    http.io.ready = on_io;
    http.timer.due = on_timer;
    /* the logger first: it is for the options after it */
    http.daemon = MHD_start_daemon(
        MHD_USE_EPOLL | MHD_USE_ERROR_LOG, 0, NULL, NULL, on_request, NULL,
        MHD_OPTION_EXTERNAL_LOGGER, on_log, NULL, MHD_OPTION_LISTEN_SOCKET, fd,
        MHD_OPTION_CONNECTION_LIMIT, CONNECTIONS, MHD_OPTION_CONNECTION_TIMEOUT,
        TIMEOUT_S, MHD_OPTION_CONNECTION_MEMORY_LIMIT, CONNECTION_MEMORY,
        MHD_OPTION_END);
    if (http.daemon == NULL) {
        log_error("metrics.listen = %s: libmicrohttpd does not start", address);
        close(fd);
        return -1;
    }
    http.io.fd =
        MHD_get_daemon_info(http.daemon, MHD_DAEMON_INFO_EPOLL_FD)->epoll_fd;
    if (loop_add(l, &http.io, EPOLLIN) == -1) {
        log_error("metrics.listen = %s: epoll_ctl() failed: %m", address);
        MHD_stop_daemon(http.daemon);
        http.daemon = NULL;
        return -1;
    }
    say_where(fd);
    return 0;
}

void metrics_close(void) {
    if (http.daemon == NULL)
        return;
    loop_timer_cancel(http.l, &http.timer);
    loop_remove(http.l, &http.io);
    MHD_stop_daemon(http.daemon);
    http.daemon = NULL;
}
