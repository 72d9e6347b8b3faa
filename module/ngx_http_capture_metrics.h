
/*
 * What `capture_status` tells Prometheus: the one table, of which the page and
 * docs/metrics.md are made.  Nothing of NGINX is needed to read it.
 *
 * X(name without "capture_nginx_", type, value in `page`, help)
 *
 * `seen` holds what an ended worker has left to the sidecar, so that it never
 * falls: seen = captured + filtered + lost + pending + left.
 */


#ifndef _NGX_HTTP_CAPTURE_METRICS_H_INCLUDED_
#define _NGX_HTTP_CAPTURE_METRICS_H_INCLUDED_


#define NGX_HTTP_CAPTURE_METRICS(X)                                           \
    X("workers", "gauge", page->nrows, "workers with this module")            \
    X("workers_linked", "gauge", page->linked,                                \
      "those that have a sidecar")                                            \
    X("worker_processes", "gauge", page->worker_processes,                    \
      "workers of the newest configuration")                                  \
    X("strangers", "gauge", page->nstrangers,                                 \
      "workers of before a reload that capture nothing")                      \
    X("uncaptured_requests", "gauge", page->uncaptured,                       \
      "requests in flight that may change the source, not captured")          \
    X("excluded_requests", "gauge", page->excluded,                           \
      "the same, where rules left them out")                                  \
    X("exchanges_seen_total", "counter",                                      \
      page->total.seen + page->total.left,                                    \
      "exchanges whose request head was complete")                            \
    X("exchanges_captured_total", "counter", page->total.captured,            \
      "exchanges whose records are all acknowledged")                         \
    X("exchanges_truncated_total", "counter", page->total.truncated,          \
      "of the captured: cut short by the client or the source")               \
    X("exchanges_maybe_doubled_total", "counter", page->total.doubled,        \
      "times that a request was sent again although it may be in the topic")  \
    X("exchanges_pending", "gauge", page->total.pending,                      \
      "exchanges with bytes that are not yet acknowledged")                   \
    X("exchanges_left_total", "counter", page->total.left,                    \
      "pending when their worker ended: the sidecar's to count")              \
    X("exchanges_untold_total", "counter", page->total.untold,                \
      "of seen: no sidecar has them, so that its /metrics has them not")      \
    X("connections_total", "counter", page->total.connections,                \
      "connectionIds made")                                                   \
    X("captured_bytes_total", "counter", page->total.bytes,                   \
      "bytes of captured data")                                               \
    X("doorbells_total", "counter", page->total.doorbells,                    \
      "times that the sidecar was woken")                                     \
    X("pool_blocks", "gauge", page->blocks,                                   \
      "blocks of all workers' pools, 64 KiB each")                            \
    X("pool_blocks_used", "gauge", page->blocks_used,                         \
      "blocks that hold bytes not yet held elsewhere")


/* Of the same form, but the value is in thousandths. */

#define NGX_HTTP_CAPTURE_MILLI_METRICS(X)                                     \
    X("wait_seconds_total", "counter", page->total.wait[CAP_WAIT_TIME_MS],    \
      "how long all requests that waited were held")


/* With a label: X(name, label, help); page.c has their values. */

#define NGX_HTTP_CAPTURE_LABELLED_METRICS(X)                                  \
    X("exchanges_filtered_total", "reason",                                   \
      "exchanges never to be replayed, by rule")                              \
    X("exchanges_lost_total", "reason",                                       \
      "exchanges of which some byte will never be sent")                      \
    X("waits_total", "result",                                                \
      "requests that wait (capture_wait), by what became of them")


#endif /* _NGX_HTTP_CAPTURE_METRICS_H_INCLUDED_ */
