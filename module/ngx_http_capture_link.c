
/*
 * The link of a worker to the sidecar: handshake, the pool's descriptors,
 * liveness.
 *
 * Nothing here blocks and nothing of NGINX waits for it.  While no sidecar
 * listens, exchanges are counted as lost(unlinked) and a timer tries again.
 * From the moment a pool is offered exchanges go there, so that a new worker
 * loses none while the handshake is under way.
 *
 * When a sidecar that had taken the pool dies, the pool stays, with all that is
 * in it, capture goes on into it, and the next sidecar gets it.  When a sidecar
 * ended the link itself (`kept`), or has broken the rules, the pool is dropped:
 * what was not reported is lost(link_lost), and a new one is made, with new
 * connectionIds.  One that nobody took within the handshake's time is
 * withdrawn: lost(unlinked).
 */


#include "ngx_http_capture.h"

#include <poll.h>


#define NGX_HTTP_CAPTURE_HANDSHAKE_TIME  5000
#define NGX_HTTP_CAPTURE_BACKOFF_MIN     50
#define NGX_HTTP_CAPTURE_HANDOVER_TIME   2000
#define NGX_HTTP_CAPTURE_BACKOFF_MAX     2000

/* share of capture_buffer that connection slots may take */
#define NGX_HTTP_CAPTURE_SLOT_SHARE      8


static void ngx_http_capture_link_handover(ngx_http_capture_worker_t *w);
static ngx_int_t ngx_http_capture_link_try(ngx_http_capture_worker_t *w);
static void ngx_http_capture_link_hang_up(ngx_http_capture_worker_t *w);
static void ngx_http_capture_link_connect(ngx_http_capture_worker_t *w);
static ngx_int_t ngx_http_capture_link_open(ngx_http_capture_worker_t *w);
static ngx_int_t ngx_http_capture_link_hello(ngx_http_capture_worker_t *w);
static ngx_int_t ngx_http_capture_link_bell(ngx_http_capture_worker_t *w);
static void ngx_http_capture_link_timer_handler(ngx_event_t *ev);
static void ngx_http_capture_link_read_handler(ngx_event_t *rev);
static void ngx_http_capture_link_empty_handler(ngx_event_t *wev);
static void ngx_http_capture_link_publish_handler(ngx_event_t *ev);
static ngx_int_t ngx_http_capture_link_answer(ngx_http_capture_worker_t *w,
    cap_message *m, ssize_t n);
static void ngx_http_capture_link_drop(ngx_http_capture_worker_t *w);
static ngx_uint_t ngx_http_capture_link_resumable(
    ngx_http_capture_pool_t *pool);
static void ngx_http_capture_link_fold(ngx_http_capture_worker_t *w,
    ngx_uint_t reason);
static void ngx_http_capture_link_retry(ngx_http_capture_worker_t *w);


ngx_http_capture_worker_t         *ngx_http_capture_worker;

static ngx_http_capture_worker_t   ngx_http_capture_this_worker;


ngx_int_t
ngx_http_capture_link_init(ngx_cycle_t *cycle)
{
    size_t                         per_slot;
    ngx_http_capture_worker_t     *w;
    ngx_http_capture_main_conf_t  *cmcf;

    if (ngx_process != NGX_PROCESS_WORKER && ngx_process != NGX_PROCESS_SINGLE)
    {
        return NGX_OK;
    }

    cmcf = ngx_http_cycle_get_module_main_conf(cycle, ngx_http_capture_module);

    if (cmcf == NULL || !cmcf->used) {
        return NGX_OK;
    }

    w = &ngx_http_capture_this_worker;

    w->addr.sun_family = AF_UNIX;
    ngx_cpystrn((u_char *) w->addr.sun_path, cmcf->sidecar.data,
                sizeof(w->addr.sun_path));
    w->buffer = cmcf->buffer;
    w->topics = cmcf->topics;
    w->log = cycle->log;
    w->backoff = NGX_HTTP_CAPTURE_BACKOFF_MIN;

    /* a connectionId lives on for a while after its connection */

    per_slot = sizeof(cap_slot) + sizeof(cap_intent);
    w->nslots = ngx_min(2 * cycle->connection_n,
                        w->buffer / NGX_HTTP_CAPTURE_SLOT_SHARE / per_slot);
    w->nslots = ngx_min(w->nslots, CAP_MAX_SLOTS);

    w->timer.handler = ngx_http_capture_link_timer_handler;
    w->timer.data = w;
    w->timer.log = w->log;
    w->timer.cancelable = 1;

    ngx_queue_init(&w->waiters);
    ngx_queue_init(&w->starved);

    ngx_http_capture_worker = w;

    ngx_http_capture_status_init(cycle);

    ngx_http_capture_link_connect(w);

    return NGX_OK;
}


void
ngx_http_capture_link_exit(ngx_cycle_t *cycle)
{
    ngx_http_capture_worker_t  *w;

    w = ngx_http_capture_worker;

    if (w == NULL) {
        return;
    }

    if (w->pool) {
        ngx_http_capture_pool_publish(w->pool);

        if (!w->linked && ngx_http_capture_link_resumable(w->pool)) {
            ngx_http_capture_link_handover(w);
        }
    }

    ngx_http_capture_status_exit(cycle);

    ngx_http_capture_worker = NULL;

    if (w->timer.timer_set) {
        ngx_del_timer(&w->timer);
    }

    if (w->connection) {
        ngx_close_connection(w->connection);
        w->connection = NULL;
    }

    if (w->pool) {
        ngx_http_capture_pool_destroy(w->pool);
        w->pool = NULL;
    }
}


/*
 * The sidecar has died, and we go too: the next one may be about to come.  The
 * only place where a worker waits; it serves nobody any more.
 */

static void
ngx_http_capture_link_handover(ngx_http_capture_worker_t *w)
{
    uint64_t     owner;
    cap_header  *h;
    ngx_msec_t   until;

    if (w->pool->nfree_slots == w->pool->geo.nslots) {
        return;  /* nothing that is not in the topic */
    }

    h = (cap_header *) w->pool->base;

    if (atomic_load_explicit(&h->outlives, memory_order_acquire)) {
        return;  /* the next one gets it from whoever keeps it */
    }

    owner = atomic_load_explicit(&h->owner_generation, memory_order_acquire);

    until = ngx_current_msec + NGX_HTTP_CAPTURE_HANDOVER_TIME;

    do {
        if (ngx_http_capture_link_try(w) == NGX_OK) {
            return;
        }

        ngx_msleep(NGX_HTTP_CAPTURE_BACKOFF_MIN);
        ngx_time_update();

    } while ((ngx_msec_int_t) (until - ngx_current_msec) > 0);

    /* one that hangs may find the offer later: then it is not to take it */

    if (!atomic_compare_exchange_strong_explicit(&h->owner_generation, &owner,
                                                 CAP_POOL_WITHDRAWN,
                                                 memory_order_acq_rel,
                                                 memory_order_relaxed))
    {
        return;
    }

    ngx_http_capture_link_fold(w, CAP_WORKER_EXIT);
    ngx_http_capture_pool_destroy(w->pool);
    w->pool = NULL;
}


/* One attempt, or a look at the one that is under way. */

static ngx_int_t
ngx_http_capture_link_try(ngx_http_capture_worker_t *w)
{
    ssize_t        n;
    cap_message    m;
    struct pollfd  fd;

    if (w->connection == NULL
        && (ngx_http_capture_link_open(w) != NGX_OK
            || ngx_http_capture_link_hello(w) != NGX_OK))
    {
        ngx_http_capture_link_hang_up(w);
        return NGX_DECLINED;
    }

    fd.fd = w->connection->fd;
    fd.events = POLLIN;

    if (poll(&fd, 1, NGX_HTTP_CAPTURE_HANDOVER_TIME / 4) < 1) {
        return NGX_DECLINED;
    }

    n = recv(w->connection->fd, &m, sizeof(cap_message),
             MSG_DONTWAIT|MSG_TRUNC);

    if (n <= 0 || ngx_http_capture_link_answer(w, &m, n) != NGX_OK) {
        ngx_http_capture_link_hang_up(w);
        return NGX_DECLINED;
    }

    return NGX_OK;
}


static void
ngx_http_capture_link_hang_up(ngx_http_capture_worker_t *w)
{
    if (w->connection) {
        ngx_close_connection(w->connection);
        w->connection = NULL;
    }

    if (w->pool) {
        ngx_http_capture_pool_unring(w->pool);
    }
}


static void
ngx_http_capture_link_connect(ngx_http_capture_worker_t *w)
{
    w->log = ngx_cycle->log;

    if (ngx_http_capture_link_open(w) != NGX_OK
        || ngx_http_capture_link_hello(w) != NGX_OK)
    {
        ngx_http_capture_link_drop(w);
        return;
    }

    if (!ngx_http_capture_link_resumable(w->pool)) {
        ngx_add_timer(&w->timer, NGX_HTTP_CAPTURE_HANDSHAKE_TIME);
    }
}


static ngx_int_t
ngx_http_capture_link_open(ngx_http_capture_worker_t *w)
{
    ngx_err_t          err;
    ngx_socket_t       s;
    ngx_connection_t  *c;

    s = socket(AF_UNIX, SOCK_SEQPACKET|SOCK_NONBLOCK|SOCK_CLOEXEC, 0);

    if (s == (ngx_socket_t) -1) {
        ngx_log_error(NGX_LOG_ERR, w->log, ngx_socket_errno,
                      "socket() for capture_sidecar failed");
        return NGX_ERROR;
    }

    if (connect(s, (struct sockaddr *) &w->addr, sizeof(struct sockaddr_un))
        == -1)
    {
        err = ngx_socket_errno;

        if (err != w->complained) {
            ngx_log_error(NGX_LOG_WARN, w->log, err,
                          "connect() to capture_sidecar unix:%s failed, "
                          "exchanges are not captured until it is there",
                          w->addr.sun_path);
            w->complained = err;
        }

        (void) ngx_close_socket(s);
        return NGX_DECLINED;
    }

    c = ngx_get_connection(s, w->log);

    if (c == NULL) {
        (void) ngx_close_socket(s);
        return NGX_ERROR;
    }

    c->data = w;
    c->read->handler = ngx_http_capture_link_read_handler;
    c->write->handler = ngx_http_capture_link_empty_handler;
    c->read->log = w->log;
    c->write->log = w->log;
    c->log = w->log;

    w->connection = c;

    return ngx_handle_read_event(c->read, 0);
}


/* A new pool, or one whose sidecar died, and its doorbell in one message. */

static ngx_int_t
ngx_http_capture_link_hello(ngx_http_capture_worker_t *w)
{
    int                       fds[CAP_FD_COUNT];
    cap_message               m;
    struct iovec              iov;
    struct msghdr             msg;
    struct cmsghdr           *cmsg;
    ngx_http_capture_pool_t  *pool;

    union {
        struct cmsghdr        align;
        u_char                space[CMSG_SPACE(sizeof(fds))];
    } control;

    if (w->pool == NULL) {
        w->pool = ngx_http_capture_pool_create(w);

        if (w->pool == NULL) {
            return NGX_ERROR;
        }

        w->pool->publish.handler = ngx_http_capture_link_publish_handler;
        w->pool->publish.data = w;
    }

    pool = w->pool;
    pool->publish.log = w->log;

    if (ngx_http_capture_pool_offer(pool, w->log) != NGX_OK) {
        return NGX_ERROR;
    }

    ngx_memzero(&m, sizeof(cap_message));
    m.magic = CAP_HELLO_MAGIC;
    m.kind = CAP_HELLO;
    m.version = CAP_WIRE_VERSION;
    m.pid = ngx_pid;

    iov.iov_base = &m;
    iov.iov_len = sizeof(cap_message);

    ngx_memzero(&msg, sizeof(struct msghdr));
    ngx_memzero(&control, sizeof(control));
    msg.msg_iov = &iov;
    msg.msg_iovlen = 1;
    msg.msg_control = control.space;
    msg.msg_controllen = sizeof(control.space);

    fds[CAP_FD_POOL] = pool->fd;
    fds[CAP_FD_DOORBELL] = pool->bell_offer;

    cmsg = CMSG_FIRSTHDR(&msg);
    cmsg->cmsg_level = SOL_SOCKET;
    cmsg->cmsg_type = SCM_RIGHTS;
    cmsg->cmsg_len = CMSG_LEN(sizeof(fds));
    ngx_memcpy(CMSG_DATA(cmsg), fds, sizeof(fds));

    if (sendmsg(w->connection->fd, &msg, MSG_NOSIGNAL) == -1) {
        ngx_log_error(NGX_LOG_WARN, w->log, ngx_socket_errno,
                      "sendmsg() to capture_sidecar unix:%s failed",
                      w->addr.sun_path);
        return NGX_ERROR;
    }

    (void) close(pool->bell_offer);
    pool->bell_offer = -1;

    return ngx_http_capture_link_bell(w);
}


/* The doorbell rings here, too: for clients that wait. */

static ngx_int_t
ngx_http_capture_link_bell(ngx_http_capture_worker_t *w)
{
    ngx_connection_t  *c;

    c = ngx_get_connection(w->pool->doorbell, w->log);

    if (c == NULL) {
        return NGX_ERROR;
    }

    c->data = w;
    c->read->handler = ngx_http_capture_wait_bell_handler;
    c->write->handler = ngx_http_capture_link_empty_handler;
    c->read->log = w->log;
    c->write->log = w->log;
    c->log = w->log;

    w->pool->bell = c;

    return ngx_handle_read_event(c->read, 0);
}


static void
ngx_http_capture_link_timer_handler(ngx_event_t *ev)
{
    ngx_http_capture_worker_t *w = ev->data;

    if (w->connection == NULL) {
        ngx_http_capture_link_connect(w);
        return;
    }

    ngx_log_error(NGX_LOG_WARN, w->log, NGX_ETIMEDOUT,
                  "capture_sidecar unix:%s did not answer the handshake",
                  w->addr.sun_path);

    ngx_http_capture_link_drop(w);
}


static void
ngx_http_capture_link_read_handler(ngx_event_t *rev)
{
    ssize_t                     n;
    cap_message                 m;
    ngx_connection_t           *c;
    ngx_http_capture_worker_t  *w;

    c = rev->data;
    w = c->data;

    if (c->close) {

        /* worker_shutdown_timeout: frames of what it closes are to come */

        ngx_http_capture_wait_expire(w);
        return;
    }

    for ( ;; ) {
        n = recv(c->fd, &m, sizeof(cap_message), MSG_TRUNC);

        if (n == -1 && ngx_socket_errno == NGX_EAGAIN) {
            rev->ready = 0;

            if (ngx_handle_read_event(rev, 0) == NGX_OK) {
                return;
            }
        }

        if (n == -1 && ngx_socket_errno == NGX_EINTR) {
            continue;
        }

        if (n <= 0) {
            ngx_log_error(NGX_LOG_WARN, w->log, n ? ngx_socket_errno : 0,
                          "capture_sidecar unix:%s closed the link",
                          w->addr.sun_path);
            break;
        }

        if (ngx_http_capture_link_answer(w, &m, n) != NGX_OK) {
            break;
        }
    }

    ngx_http_capture_link_drop(w);
}


/*
 * The sidecar's one message, the answer to the handshake.  NGX_DECLINED ends
 * the link.
 */

static ngx_int_t
ngx_http_capture_link_answer(ngx_http_capture_worker_t *w, cap_message *m,
    ssize_t n)
{
    u_char  *p;

    if (n != sizeof(cap_message) || m->magic != CAP_HELLO_MAGIC
        || w->linked
        || (m->kind != CAP_WELCOME && m->kind != CAP_REFUSE))
    {
        ngx_log_error(NGX_LOG_ERR, w->log, 0,
                      "what answers on capture_sidecar unix:%s is no "
                      "capture-sidecar", w->addr.sun_path);
        return NGX_DECLINED;
    }

    if (m->kind == CAP_REFUSE) {
        m->text[CAP_TEXT_SIZE - 1] = '\0';

        for (p = (u_char *) m->text; *p; p++) {
            if (*p < 0x20 || *p > 0x7e) {
                *p = '?';
            }
        }

        ngx_log_error(NGX_LOG_ERR, w->log, 0,
                      "capture_sidecar unix:%s refused the link (%uD): %s",
                      w->addr.sun_path, m->code, m->text);
        w->backoff = NGX_HTTP_CAPTURE_BACKOFF_MAX;
        return NGX_DECLINED;
    }

    if (m->version != CAP_WIRE_VERSION) {
        ngx_log_error(NGX_LOG_ERR, w->log, 0,
                      "capture_sidecar unix:%s speaks version %d of the link, "
                      "this module %d: upgrade the older one",
                      w->addr.sun_path, (int) m->version,
                      (int) CAP_WIRE_VERSION);
        return NGX_DECLINED;
    }

    if (w->timer.timer_set) {
        ngx_del_timer(&w->timer);
    }

    w->linked = 1;
    w->backoff = NGX_HTTP_CAPTURE_BACKOFF_MIN;
    w->complained = 0;

    ngx_log_error(NGX_LOG_NOTICE, w->log, 0,
                  "capture linked to unix:%s, %uz bytes in %uD blocks, "
                  "%uD connections", w->addr.sun_path,
                  (size_t) w->pool->geo.total, w->pool->geo.nblocks,
                  w->pool->geo.nslots);

    return NGX_OK;
}


static void
ngx_http_capture_link_empty_handler(ngx_event_t *wev)
{
    /* nothing is ever queued for writing */
}


static void
ngx_http_capture_link_publish_handler(ngx_event_t *ev)
{
    ngx_http_capture_worker_t *w = ev->data;

    if (w->pool == NULL) {
        return;
    }

    ngx_http_capture_pool_publish(w->pool);

    if (w->pool->broken) {
        ngx_log_error(NGX_LOG_ERR, w->log, 0,
                      "capture_sidecar unix:%s broke the link's rules",
                      w->addr.sun_path);
        ngx_http_capture_link_drop(w);
    }
}


/* Gives up the link, or the attempt, and tries again later. */

static void
ngx_http_capture_link_drop(ngx_http_capture_worker_t *w)
{
    ngx_http_capture_link_hang_up(w);

    if (w->pool && ngx_http_capture_link_resumable(w->pool)) {
        w->linked = 0;

        /* what it acknowledged, and died before it could ring for it */

        ngx_http_capture_pool_collect(w->pool);
        ngx_http_capture_wait_wake(w);

    } else if (w->pool) {
        ngx_http_capture_link_fold(w, CAP_LINK_LOST);
        ngx_http_capture_pool_destroy(w->pool);
        w->pool = NULL;
        w->linked = 0;

        ngx_http_capture_count_uncaptured(0, w->inflight);
        w->inflight = 0;

        ngx_http_capture_wait_wake(w);
    }

    ngx_http_capture_link_retry(w);
}


/* Whether a sidecar had it that has died: one that lives would say `kept`. */

static ngx_uint_t
ngx_http_capture_link_resumable(ngx_http_capture_pool_t *pool)
{
    uint64_t     owner;
    cap_header  *h;

    h = (cap_header *) pool->base;

    owner = atomic_load_explicit(&h->owner_generation, memory_order_acquire);

    return owner != 0 && owner != CAP_POOL_WITHDRAWN && !pool->broken
           && !atomic_load_explicit(&h->kept, memory_order_acquire);
}


/*
 * Keeps the counters of a pool that goes.  What the sidecar has not reported
 * by now will not be known here.
 */

static void
ngx_http_capture_link_fold(ngx_http_capture_worker_t *w, ngx_uint_t reason)
{
    uint64_t     told, handed, nobody;
    ngx_uint_t   i;
    cap_header  *h;

#define ngx_http_capture_load(cell)                                           \
    atomic_load_explicit(&h->cell, memory_order_relaxed)

    h = (cap_header *) w->pool->base;

    /*
     * A sidecar that hung may find the offer later: either it has taken the
     * pool over by now, or it never will.
     */

    nobody = 0;

    if (!w->linked
        && atomic_compare_exchange_strong_explicit(&h->owner_generation,
                                                   &nobody,
                                                   CAP_POOL_WITHDRAWN,
                                                   memory_order_acq_rel,
                                                   memory_order_relaxed))
    {
        reason = CAP_UNLINKED;
    }

    /* no sidecar has it, or can have it any more */

    if (ngx_http_capture_load(owner_generation) == CAP_POOL_WITHDRAWN) {
        w->untold += ngx_http_capture_load(worker.seen);
    }

    handed = ngx_http_capture_load(worker.handed);
    told = ngx_http_capture_load(sidecar.captured);

    w->seen += ngx_http_capture_load(worker.seen);
    w->captured += told;
    w->truncated += ngx_http_capture_load(sidecar.truncated);
    w->doubled += ngx_http_capture_load(sidecar.doubled);

    for (i = 0; i < CAP_WAIT_CELLS; i++) {
        w->wait[i] += ngx_http_capture_load(worker.wait[i]);
    }

    for (i = 0; i < CAP_REDACT_CELLS; i++) {
        w->redact[i] += ngx_http_capture_load(redact[i]);
    }

    for (i = 0; i < CAP_REASON_CELLS; i++) {
        w->reason[i] += ngx_http_capture_load(worker.reason[i])
                        + ngx_http_capture_load(sidecar.reason[i]);
        told += ngx_http_capture_load(sidecar.reason[i]);
    }

    if (handed > told) {
        w->reason[reason] += handed - told;
        ngx_log_error(NGX_LOG_WARN, w->log, 0,
                      "%uL exchanges were not reported by the sidecar, "
                      "counted as lost(%s)", handed - told,
                      cap_reason_name(reason));
    }

#undef ngx_http_capture_load
}


static void
ngx_http_capture_link_retry(ngx_http_capture_worker_t *w)
{
    ngx_msec_t  delay;

    /* workers of many must not come back in step */

    delay = w->backoff + (ngx_msec_t) ngx_random() % w->backoff;

    w->backoff = ngx_min(2 * w->backoff, NGX_HTTP_CAPTURE_BACKOFF_MAX);

    ngx_add_timer(&w->timer, delay);
}
