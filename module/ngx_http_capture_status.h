
/*
 * What capture_status knows, and the forms in which it says so: status.c
 * counts and looks, page.c writes.
 */


#ifndef _NGX_HTTP_CAPTURE_STATUS_H_INCLUDED_
#define _NGX_HTTP_CAPTURE_STATUS_H_INCLUDED_


#include "ngx_http_capture.h"


#define NGX_HTTP_CAPTURE_ROWS          512

/* bytes that a row takes at most, in any form */
#define NGX_HTTP_CAPTURE_ROW_SIZE      4096


/* A worker's sums, in shared memory. */

typedef struct {
    ngx_pid_t        pid;       /* 0: free */
    uint64_t         linked;
    uint64_t         seen;
    uint64_t         captured;
    uint64_t         truncated;
    uint64_t         doubled;
    uint64_t         pending;
    uint64_t         connections;
    uint64_t         bytes;
    uint64_t         doorbells;
    uint64_t         left;
    uint64_t         untold;      /* of seen: no sidecar's /metrics has them */
    uint64_t         blocks;
    uint64_t         blocks_used;
    uint64_t         generation;  /* of the configuration; counts loads */
    uint64_t         uncaptured;  /* see ngx_http_capture_count_uncaptured() */
    uint64_t         excluded;
    uint64_t         reason[CAP_REASON_CELLS];
    uint64_t         wait[CAP_WAIT_CELLS];
    uint64_t         redact[CAP_REDACT_CELLS];
} ngx_http_capture_row_t;


typedef struct {
    uint64_t                generation;   /* of the last load */
    ngx_pid_t               old_master;   /* of a binary upgrade, or 0 */
    ngx_http_capture_row_t  exited;
    ngx_http_capture_row_t  rows[NGX_HTTP_CAPTURE_ROWS];
} ngx_http_capture_zone_t;


/* A copy, of one moment as far as it goes; in the request's pool. */

typedef struct {
    ngx_http_capture_row_t  *rows;        /* of workers that live */
    ngx_uint_t               nrows;
    ngx_http_capture_row_t   exited;
    ngx_http_capture_row_t   total;       /* of both */
    ngx_pid_t               *strangers;   /* workers without a row */
    ngx_uint_t               nstrangers;
    ngx_str_t                sidecar;
    ngx_int_t                worker_processes;
    ngx_pid_t                old_master;  /* or 0 */

    /* sums of the rows */
    uint64_t                 linked;
    uint64_t                 blocks;
    uint64_t                 blocks_used;
    uint64_t                 uncaptured;
    uint64_t                 excluded;
} ngx_http_capture_page_t;


typedef struct {
    ngx_str_t                name;        /* ?format= */
    ngx_str_t                accept;      /* or Accept has this; may be "" */
    ngx_str_t                type;
    u_char                *(*write)(u_char *p, u_char *last,
                                    ngx_http_capture_page_t *page);
} ngx_http_capture_format_t;


/* The one that is asked for; NULL: there is no such. */

ngx_http_capture_format_t *ngx_http_capture_page_format(
    ngx_http_request_t *r);


#endif /* _NGX_HTTP_CAPTURE_STATUS_H_INCLUDED_ */
