
/*
 * Counting, and what all workers together have counted.
 *
 * A worker counts in its pool (the sidecar reads there) or, without one, in
 * its own memory.  It copies its sums into a row of a shared zone: at once
 * when asked itself, else within a quarter of a second of a change.
 *
 * Rows of workers that have gone are summed up as `exited`.  What such a
 * worker had pending stays with the sidecar, whose /metrics tell what became
 * of it: here it is taken out of `seen` and shown as `left`.
 */


#include "ngx_http_capture.h"
#include "ngx_http_capture_status.h"


#define NGX_HTTP_CAPTURE_REFRESH_TIME  250


static ngx_int_t ngx_http_capture_status_init_zone(ngx_shm_zone_t *zone,
    void *data);
static void ngx_http_capture_status_retire(ngx_http_capture_zone_t *zone,
    ngx_http_capture_row_t *row);
static void ngx_http_capture_status_fold(ngx_http_capture_row_t *into,
    ngx_http_capture_row_t *row);
static void ngx_http_capture_status_touch(void);
static void ngx_http_capture_status_timer_handler(ngx_event_t *ev);
static void ngx_http_capture_status_refresh(void);
static void ngx_http_capture_status_pool(ngx_http_capture_row_t *row,
    ngx_http_capture_pool_t *pool);
static ngx_buf_t *ngx_http_capture_status_look(ngx_http_request_t *r,
    ngx_http_capture_page_t *page);
static ngx_int_t ngx_http_capture_status_strangers(ngx_http_request_t *r,
    ngx_http_capture_page_t *page, ngx_http_capture_zone_t *zone);
static void ngx_http_capture_status_siblings(void);
static ngx_uint_t ngx_http_capture_status_alive(ngx_pid_t pid);
static ngx_uint_t ngx_http_capture_status_has_row(
    ngx_http_capture_zone_t *zone, ngx_pid_t pid);


static ngx_slab_pool_t         *ngx_http_capture_slab;
static ngx_http_capture_row_t  *ngx_http_capture_row;
static ngx_event_t              ngx_http_capture_refresh;
static uint64_t                 ngx_http_capture_generation;

/* workers that were there when this one began, by their slots */

static ngx_pid_t                ngx_http_capture_siblings[NGX_MAX_PROCESSES];


ngx_int_t
ngx_http_capture_status_zone(ngx_conf_t *cf,
    ngx_http_capture_main_conf_t *cmcf)
{
    size_t            size;
    static ngx_str_t  name = ngx_string("ngx_http_capture");

    size = sizeof(ngx_http_capture_zone_t) + 16 * ngx_pagesize;

    cmcf->zone = ngx_shared_memory_add(cf, &name, ngx_align(size, ngx_pagesize),
                                       &ngx_http_capture_module);
    if (cmcf->zone == NULL) {
        return NGX_ERROR;
    }

    cmcf->zone->init = ngx_http_capture_status_init_zone;
    cmcf->zone->data = cmcf;

    return NGX_OK;
}


/*
 * A configuration keeps the number of its load: a load that failed later gives
 * none of the running workers another one.
 */

static ngx_int_t
ngx_http_capture_status_init_zone(ngx_shm_zone_t *zone, void *data)
{
    ngx_slab_pool_t               *slab;
    ngx_http_capture_zone_t       *z;
    ngx_http_capture_main_conf_t  *cmcf;

    cmcf = zone->data;
    slab = (ngx_slab_pool_t *) zone->shm.addr;

    if (data == NULL && !zone->shm.exists) {
        slab->data = ngx_slab_calloc(slab, sizeof(ngx_http_capture_zone_t));
    }

    z = data ? data : slab->data;

    zone->data = z;

    if (z == NULL) {
        return NGX_ERROR;
    }

    if (data == NULL && ngx_inherited) {
        z->old_master = getppid();
    }

    cmcf->generation = ++z->generation;

    return NGX_OK;
}


/* Takes a row for this worker; those of workers that died are given up. */

void
ngx_http_capture_status_init(ngx_cycle_t *cycle)
{
    ngx_uint_t                     i;
    ngx_http_capture_zone_t       *zone;
    ngx_http_capture_row_t        *row;
    ngx_http_capture_main_conf_t  *cmcf;

    cmcf = ngx_http_cycle_get_module_main_conf(cycle, ngx_http_capture_module);
    zone = cmcf->zone->data;

    ngx_http_capture_slab = (ngx_slab_pool_t *) cmcf->zone->shm.addr;
    ngx_http_capture_generation = cmcf->generation;

    ngx_http_capture_status_siblings();

    ngx_http_capture_refresh.handler = ngx_http_capture_status_timer_handler;
    ngx_http_capture_refresh.log = cycle->log;
    ngx_http_capture_refresh.data = &ngx_http_capture_refresh;
    ngx_http_capture_refresh.cancelable = 1;

    ngx_shmtx_lock(&ngx_http_capture_slab->mutex);

    for (i = 0; i < NGX_HTTP_CAPTURE_ROWS; i++) {
        row = &zone->rows[i];

        if (row->pid && kill(row->pid, 0) == -1 && ngx_errno == NGX_ESRCH) {
            ngx_http_capture_status_retire(zone, row);
        }

        if (row->pid == 0 && ngx_http_capture_row == NULL) {
            row->pid = ngx_pid;
            row->generation = ngx_http_capture_generation;
            ngx_http_capture_row = row;
        }
    }

    ngx_shmtx_unlock(&ngx_http_capture_slab->mutex);

    if (ngx_http_capture_row == NULL) {
        ngx_log_error(NGX_LOG_WARN, cycle->log, 0,
                      "capture_status has no row left for this worker");
    }
}


void
ngx_http_capture_status_exit(ngx_cycle_t *cycle)
{
    ngx_http_capture_zone_t       *zone;
    ngx_http_capture_main_conf_t  *cmcf;

    if (ngx_http_capture_refresh.timer_set) {
        ngx_del_timer(&ngx_http_capture_refresh);
    }

    if (ngx_http_capture_row == NULL) {
        return;
    }

    ngx_http_capture_status_refresh();

    cmcf = ngx_http_cycle_get_module_main_conf(cycle, ngx_http_capture_module);
    zone = cmcf->zone->data;

    ngx_shmtx_lock(&ngx_http_capture_slab->mutex);
    ngx_http_capture_status_retire(zone, ngx_http_capture_row);
    ngx_shmtx_unlock(&ngx_http_capture_slab->mutex);

    ngx_http_capture_row = NULL;
}


/* Under the zone's lock. */

static void
ngx_http_capture_status_retire(ngx_http_capture_zone_t *zone,
    ngx_http_capture_row_t *row)
{
    row->left = row->pending;
    row->seen -= row->pending;
    row->pending = 0;

    ngx_http_capture_status_fold(&zone->exited, row);

    ngx_memzero(row, sizeof(ngx_http_capture_row_t));
}


static void
ngx_http_capture_status_fold(ngx_http_capture_row_t *into,
    ngx_http_capture_row_t *row)
{
    ngx_uint_t  i;

    into->seen += row->seen;
    into->captured += row->captured;
    into->truncated += row->truncated;
    into->doubled += row->doubled;
    into->pending += row->pending;
    into->connections += row->connections;
    into->bytes += row->bytes;
    into->doorbells += row->doorbells;
    into->left += row->left;
    into->untold += row->untold;

    for (i = 0; i < CAP_REASON_CELLS; i++) {
        into->reason[i] += row->reason[i];
    }

    for (i = 0; i < CAP_WAIT_CELLS; i++) {
        into->wait[i] += row->wait[i];
    }

    for (i = 0; i < CAP_REDACT_CELLS; i++) {
        into->redact[i] += row->redact[i];
    }
}


void
ngx_http_capture_count_seen(void)
{
    cap_header                 *h;
    ngx_http_capture_worker_t  *w;

    w = ngx_http_capture_worker;

    if (w == NULL) {
        return;
    }

    if (w->pool) {
        h = (cap_header *) w->pool->base;
        ngx_http_capture_add(&h->worker.seen, 1);

    } else {
        w->seen++;
        w->untold++;
    }

    ngx_http_capture_status_touch();
}


/* An exchange ends here, without the sidecar. */

void
ngx_http_capture_count(ngx_uint_t reason)
{
    cap_header                 *h;
    ngx_http_capture_worker_t  *w;

    w = ngx_http_capture_worker;

    if (w == NULL) {
        return;
    }

    if (w->pool) {
        h = (cap_header *) w->pool->base;
        ngx_http_capture_add(&h->worker.reason[reason], 1);

    } else {
        w->reason[reason]++;
    }
}


/* Of a request that waits (CAP_WAITS). */

void
ngx_http_capture_count_wait(ngx_uint_t cell, uint64_t n)
{
    cap_header                 *h;
    ngx_http_capture_worker_t  *w;

    w = ngx_http_capture_worker;

    if (w == NULL) {
        return;
    }

    if (w->pool) {
        h = (cap_header *) w->pool->base;
        ngx_http_capture_add(&h->worker.wait[cell], n);

    } else {
        w->wait[cell] += n;
    }

    ngx_http_capture_status_touch();
}


/* What was not recorded as it was (CAP_REDACTS). */

void
ngx_http_capture_count_redact(ngx_uint_t cell, uint64_t n)
{
    cap_header                 *h;
    ngx_http_capture_worker_t  *w;

    w = ngx_http_capture_worker;

    if (w == NULL || n == 0) {
        return;
    }

    if (w->pool) {
        h = (cap_header *) w->pool->base;
        ngx_http_capture_add(&h->redact[cell], n);

    } else {
        w->redact[cell] += n;
    }

    ngx_http_capture_status_touch();
}


/* How long one was held.  Without a pool nobody reads how they spread. */

void
ngx_http_capture_count_waited(ngx_msec_t time)
{
    cap_header                 *h;
    ngx_http_capture_worker_t  *w;

    w = ngx_http_capture_worker;

    if (w && w->pool) {
        h = (cap_header *) w->pool->base;
        ngx_http_capture_add(&h->waited[cap_waited_cell(time)], 1);
    }

    ngx_http_capture_count_wait(CAP_WAIT_TIME_MS, time);
}


/*
 * Requests in flight that may change the source and are not captured: by rule,
 * which `excluded` counts, or because they could not be.  By how many.
 */

void
ngx_http_capture_count_uncaptured(ngx_uint_t excluded, ngx_int_t n)
{
    ngx_http_capture_worker_t  *w;

    w = ngx_http_capture_worker;

    if (w == NULL) {
        return;
    }

    if (excluded) {
        w->excluded += n;

    } else {
        w->uncaptured += n;
    }

    ngx_http_capture_status_touch();
}


static void
ngx_http_capture_status_touch(void)
{
    if (!ngx_http_capture_refresh.timer_set) {
        ngx_add_timer(&ngx_http_capture_refresh,
                      NGX_HTTP_CAPTURE_REFRESH_TIME);
    }
}


static void
ngx_http_capture_status_timer_handler(ngx_event_t *ev)
{
    ngx_http_capture_status_refresh();

    if (ngx_http_capture_row && ngx_http_capture_row->pending) {
        ngx_http_capture_status_touch();
    }
}


static void
ngx_http_capture_status_refresh(void)
{
    ngx_http_capture_row_t     *row, sum;
    ngx_http_capture_worker_t  *w;

    row = ngx_http_capture_row;
    w = ngx_http_capture_worker;

    if (row == NULL || w == NULL) {
        return;
    }

    ngx_memzero(&sum, sizeof(ngx_http_capture_row_t));

    sum.pid = ngx_pid;
    sum.generation = ngx_http_capture_generation;
    sum.uncaptured = w->uncaptured;
    sum.excluded = w->excluded;
    sum.seen = w->seen;
    sum.untold = w->untold;
    sum.captured = w->captured;
    sum.truncated = w->truncated;
    sum.doubled = w->doubled;
    ngx_memcpy(sum.reason, w->reason, sizeof(sum.reason));
    ngx_memcpy(sum.wait, w->wait, sizeof(sum.wait));
    ngx_memcpy(sum.redact, w->redact, sizeof(sum.redact));

    if (w->pool) {
        ngx_http_capture_status_pool(&sum, w->pool);
    }

    *row = sum;
}


/*
 * Adds a linked pool's cells.  pending is what the two sides have in their
 * hands, not what is missing in the sum.
 */

static void
ngx_http_capture_status_pool(ngx_http_capture_row_t *row,
    ngx_http_capture_pool_t *pool)
{
    uint64_t     told, captured, open, taken, reason[CAP_REASON_CELLS];
    cap_header  *h;
    ngx_uint_t   i, n;

#define ngx_http_capture_load(cell)                                           \
    atomic_load_explicit(&h->cell, memory_order_relaxed)

    ngx_http_capture_pool_collect(pool);

    h = (cap_header *) pool->base;

    row->linked = ngx_http_capture_worker->linked;
    row->truncated += ngx_http_capture_load(sidecar.truncated);
    row->doubled += ngx_http_capture_load(sidecar.doubled);
    row->connections += ngx_http_capture_load(worker.connections);
    row->bytes += ngx_http_capture_load(worker.bytes);
    row->doorbells += ngx_http_capture_load(worker.doorbells);
    row->blocks = pool->geo.nblocks;
    row->blocks_used = pool->geo.nblocks - pool->nfree;

    /* our own cells stand still here; the sidecar's may move: look again */

    n = 0;

    do {
        told = 0;

        for (i = 0; i < CAP_REASON_CELLS; i++) {
            reason[i] = ngx_http_capture_load(sidecar.reason[i]);
            told += reason[i];
        }

        captured = ngx_http_capture_load(sidecar.captured);
        open = ngx_http_capture_load(sidecar.open);
        taken = ngx_http_capture_load(sidecar.taken);

    } while (taken != told + captured + open && ++n < 16);

    row->seen += ngx_http_capture_load(worker.seen);
    row->captured += captured;
    row->pending += ngx_http_capture_load(worker.handed) - taken + open;

    for (i = 0; i < CAP_REASON_CELLS; i++) {
        row->reason[i] += ngx_http_capture_load(worker.reason[i]) + reason[i];
    }

    for (i = 0; i < CAP_WAIT_CELLS; i++) {
        row->wait[i] += ngx_http_capture_load(worker.wait[i]);
    }

    for (i = 0; i < CAP_REDACT_CELLS; i++) {
        row->redact[i] += ngx_http_capture_load(redact[i]);
    }

#undef ngx_http_capture_load
}


/* `capture_status`: JSON, a row a worker; or a page, or metrics. */

ngx_int_t
ngx_http_capture_status_handler(ngx_http_request_t *r)
{
    ngx_buf_t                  *b;
    ngx_int_t                   rc;
    ngx_chain_t                 out;
    ngx_http_capture_page_t     page;
    ngx_http_capture_format_t  *format;

    if (!(r->method & (NGX_HTTP_GET|NGX_HTTP_HEAD))) {
        return NGX_HTTP_NOT_ALLOWED;
    }

    rc = ngx_http_discard_request_body(r);

    if (rc != NGX_OK) {
        return rc;
    }

    format = ngx_http_capture_page_format(r);
    if (format == NULL) {
        return NGX_HTTP_BAD_REQUEST;
    }

    ngx_http_capture_status_refresh();

    b = ngx_http_capture_status_look(r, &page);
    if (b == NULL) {
        return NGX_HTTP_INTERNAL_SERVER_ERROR;
    }

    b->last = format->write(b->pos, b->end, &page);
    b->last_buf = (r == r->main);
    b->last_in_chain = 1;

    r->headers_out.status = NGX_HTTP_OK;
    r->headers_out.content_length_n = b->last - b->pos;
    r->headers_out.content_type = format->type;
    r->headers_out.content_type_len = r->headers_out.content_type.len;

    rc = ngx_http_send_header(r);

    if (rc == NGX_ERROR || rc > NGX_OK || r->header_only) {
        return rc;
    }

    out.buf = b;
    out.next = NULL;

    return ngx_http_output_filter(r, &out);
}


/* Copies what the pages show, and returns a buffer that any of them fits. */

static ngx_buf_t *
ngx_http_capture_status_look(ngx_http_request_t *r,
    ngx_http_capture_page_t *page)
{
    ngx_uint_t                     i, n;
    ngx_core_conf_t               *ccf;
    ngx_http_capture_row_t        *row;
    ngx_http_capture_zone_t       *zone;
    ngx_http_capture_main_conf_t  *cmcf;

    cmcf = ngx_http_get_module_main_conf(r, ngx_http_capture_module);
    zone = cmcf->zone->data;

    ngx_memzero(page, sizeof(ngx_http_capture_page_t));

    for (i = 0, n = 0; i < NGX_HTTP_CAPTURE_ROWS; i++) {
        n += zone->rows[i].pid != 0;
    }

    page->rows = ngx_palloc(r->pool, (n + 1) * sizeof(ngx_http_capture_row_t));
    if (page->rows == NULL) {
        return NULL;
    }

    /* another worker may begin, or end, while we look */

    for (i = 0; i < NGX_HTTP_CAPTURE_ROWS && page->nrows < n; i++) {
        row = &page->rows[page->nrows];
        *row = zone->rows[i];

        if (row->pid == 0) {
            continue;
        }

        page->nrows++;
        page->linked += row->linked;
        page->blocks += row->blocks;
        page->blocks_used += row->blocks_used;
        page->uncaptured += row->uncaptured;
        page->excluded += row->excluded;

        ngx_http_capture_status_fold(&page->total, row);
    }

    page->exited = zone->exited;

    ngx_http_capture_status_fold(&page->total, &page->exited);

    ccf = (ngx_core_conf_t *) ngx_get_conf(ngx_cycle->conf_ctx,
                                           ngx_core_module);

    page->sidecar = cmcf->sidecar;
    page->worker_processes = ngx_process == NGX_PROCESS_SINGLE
                             ? 1 : ccf->worker_processes;

    if (zone->old_master && ngx_http_capture_status_alive(zone->old_master)) {
        page->old_master = zone->old_master;
    }

    if (ngx_http_capture_status_strangers(r, page, zone) != NGX_OK) {
        return NULL;
    }

    return ngx_create_temp_buf(r->pool,
                               (page->nrows + 6) * NGX_HTTP_CAPTURE_ROW_SIZE
                               + page->nstrangers * NGX_INT_T_LEN);
}


/*
 * Workers of before a reload need not have this module, or any use for it:
 * they have no row.  A worker knows them from its fork, and learns from the
 * master when they end.
 */

static void
ngx_http_capture_status_siblings(void)
{
    ngx_int_t  i;

    for (i = 0; i < ngx_last_process; i++) {
        if (i != ngx_process_slot && ngx_processes[i].pid > 0
            && ngx_processes[i].channel[0] != -1 && ngx_processes[i].name
            && ngx_strcmp(ngx_processes[i].name, "worker process") == 0)
        {
            ngx_http_capture_siblings[i] = ngx_processes[i].pid;
        }
    }
}


static ngx_uint_t
ngx_http_capture_status_alive(ngx_pid_t pid)
{
    return kill(pid, 0) == 0 || ngx_errno != NGX_ESRCH;
}


static ngx_uint_t
ngx_http_capture_status_has_row(ngx_http_capture_zone_t *zone, ngx_pid_t pid)
{
    ngx_uint_t  i;

    for (i = 0; i < NGX_HTTP_CAPTURE_ROWS; i++) {
        if (zone->rows[i].pid == pid) {
            return 1;
        }
    }

    return 0;
}


static ngx_int_t
ngx_http_capture_status_strangers(ngx_http_request_t *r,
    ngx_http_capture_page_t *page, ngx_http_capture_zone_t *zone)
{
    ngx_int_t  i;
    ngx_pid_t  pid;

    page->strangers = ngx_palloc(r->pool, (NGX_MAX_PROCESSES + 1)
                                          * sizeof(ngx_pid_t));
    if (page->strangers == NULL) {
        return NGX_ERROR;
    }

    /* while the master starts new workers, the old ones still take requests */

    if (page->nrows > 0 && !ngx_http_capture_status_has_row(zone, ngx_pid)) {
        page->strangers[page->nstrangers++] = ngx_pid;
    }

    for (i = 0; i < NGX_MAX_PROCESSES; i++) {
        pid = ngx_http_capture_siblings[i];

        if (pid == 0 || ngx_processes[i].pid != pid
            || ngx_processes[i].channel[0] == -1
            || !ngx_http_capture_status_alive(pid))
        {
            continue;
        }

        if (!ngx_http_capture_status_has_row(zone, pid)) {
            page->strangers[page->nstrangers++] = pid;
        }
    }

    return NGX_OK;
}
