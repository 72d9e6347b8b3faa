
/*
 * The worker's side of capture: types and functions of module/.
 *
 * The way of an exchange through these files:
 *
 *   request.c     head snapshot, decision, body
 *   response.c    head as NGINX would send it, body
 *   policy.c      bodies that are left out, or not recorded at all
 *   redact.c      named values replaced, in heads and (json*.c) in bodies
 *   exchange.c    both as frames: READ EOM WRITE END, DROP, ABANDON
 *   wait.c        the request's end held until it is durable
 *   early.c       a response that begins before its request has ended
 *   stall.c       such a request's body is not read while the pool is full
 *   connection.c  connectionIds: slots, timestamps, CLOSE
 *   topic.c       which destination they belong to
 *   frame.c       frames into blocks of shared memory; publishing
 *   pool.c        that memory: made, offered, given back; slots
 *   link.c        the Unix socket to the sidecar
 *   status.c      counters of all workers; capture_status (page.c)
 *
 * The hooks that call them are in ngx_http_capture_module.c; beside it:
 *
 *   directives.c  reads the values of directives
 *   variables.c   $capture_result and the others
 *
 * Only the main request of a client is an exchange; everything here is one
 * worker's, without locks.
 */


#ifndef _NGX_HTTP_CAPTURE_H_INCLUDED_
#define _NGX_HTTP_CAPTURE_H_INCLUDED_


#include <ngx_config.h>
#include <ngx_core.h>
#include <ngx_http.h>

#include "module/ngx_http_capture_json.h"
#include "wire/counters.h"
#include "wire/frame.h"
#include "wire/hello.h"
#include "wire/layout.h"


#define NGX_HTTP_CAPTURE_VERSION   "0.1.0"

#define NGX_HTTP_CAPTURE_NO_SLOT   0xffffffff

/* values of capture_include */
#define NGX_HTTP_CAPTURE_INCLUDE_OFF            0x0001
#define NGX_HTTP_CAPTURE_INCLUDE_UNREPLAYABLE   0x0002
#define NGX_HTTP_CAPTURE_INCLUDE_NOT_FORWARDED  0x0004

/* values of capture_on_failure */
#define NGX_HTTP_CAPTURE_FORWARD                0
#define NGX_HTTP_CAPTURE_REFUSE                 1


typedef struct ngx_http_capture_conn_s  ngx_http_capture_conn_t;
typedef struct ngx_http_capture_ctx_s   ngx_http_capture_ctx_t;
typedef struct ngx_http_capture_early_s  ngx_http_capture_early_t;


typedef struct {
    ngx_str_t                  sidecar;   /* path of the socket */
    size_t                     buffer;    /* bytes of a worker's pool */
    ngx_shm_zone_t            *zone;
    uint64_t                   generation; /* counts loads */
    ngx_uint_t                 used;      /* some location may capture */
    ngx_str_t                  redact_key;
    ngx_array_t               *topics;    /* ngx_str_t, of capture_topic */
} ngx_http_capture_main_conf_t;


typedef struct {
    ngx_uint_t                 used;      /* some location of it may capture */
} ngx_http_capture_srv_conf_t;


typedef struct {
    ngx_flag_t                 enable;
    ngx_http_complex_value_t  *variable;  /* decides where enable is on */
    ngx_array_t               *bypass;
    ngx_uint_t                 include;
    ngx_flag_t                 wait;       /* what changes something */
    ngx_array_t               *wait_for;   /* or: any of these variables */
    ngx_msec_t                 wait_timeout;
    ngx_uint_t                 on_failure;
    ngx_uint_t                 told;       /* of proxy_ignore_client_abort */

    ngx_array_t               *redact_headers;
    ngx_array_t               *redact_args;
    ngx_http_capture_json_paths_t  *redact_json;
    off_t                      max_request_body;
    off_t                      max_response_body;
    ngx_uint_t                 policy;     /* any of these five */

    ngx_http_complex_value_t  *topic_variable;
    ngx_uint_t                 topic;      /* where there is none; 0: default */
} ngx_http_capture_loc_conf_t;


/*
 * A worker's memory, shared with the sidecar that it is linked to.  What is
 * here, and not in the shared header, is never read back from it: the other
 * side can write there.
 */

typedef struct {
    u_char                    *base;
    cap_geometry               geo;
    int                        fd;         /* memfd */
    int                        doorbell;   /* our end of a socket pair */
    ngx_connection_t          *bell;       /* that end, once it is watched */
    int                        bell_offer; /* the sidecar's, until sent */

    cap_block                 *block;      /* in work; NULL: none */
    uint32_t                   block_index;
    u_char                    *pos;        /* where the next frame begins */
    u_char                    *end;
    u_char                    *published;
    cap_frame                 *last;       /* not yet published, or NULL */
    u_char                    *last_end;   /* of its payload */
    uint32_t                   last_slot;
    uint32_t                   last_type;

    uint32_t                  *free;       /* stack: last returned first */
    uint32_t                   nfree;
    uint32_t                  *free_slots;
    uint32_t                   nfree_slots;
    uint32_t                   ring_tail;
    uint32_t                   return_head;

    uint32_t                  *block_gen;  /* odd: lent to the ring */
    uint32_t                  *slot_gen;   /* odd: taken */
    ngx_http_capture_conn_t  **slot_conn;
    uint64_t                  *slot_id;    /* number in the connectionId */
    uint32_t                   left_slots; /* left here, not yet returned */
    ngx_queue_t                spares;     /* conns, idle longest first */

    uint64_t                   seq;        /* of the last frame */
    uint64_t                   ids;        /* connectionIds made */
    size_t                     reserved;   /* bytes for ends to come */
    uint64_t                   epoch;      /* which pool of this process */
    int64_t                    now;        /* of this turn; 0: not read */
    u_char                     node_id[CAP_NODE_ID_SIZE];
    u_char                     prefix[33]; /* of connectionIds */

    ngx_uint_t                 ntopics;    /* destinations named so far */
    u_char                     topics[CAP_TOPIC_NAMES][CAP_TOPIC_NAME_SIZE];

    ngx_event_t                publish;    /* at the turn's end; link.c */
    unsigned                   dirty:1;    /* written since published */
    unsigned                   urgent:1;   /* a client waits for it */
    unsigned                   broken:1;   /* the sidecar broke the rules */
} ngx_http_capture_pool_t;


/* A lane of a client connection. */

struct ngx_http_capture_conn_s {
    ngx_http_capture_conn_t   *next;       /* lane */
    ngx_queue_t                queue;      /* of the pool's spares */
    uint32_t                   slot;
    uint32_t                   generation;
    uint64_t                   epoch;
    int64_t                    last_ts;
    ngx_uint_t                 topic;      /* of the slot */
    unsigned                   open:1;     /* in an exchange */
    unsigned                   extra:1;    /* not a connection's first lane */
    unsigned                   spare:1;    /* in the pool's spares */
};


typedef enum {
    ngx_http_capture_fresh = 0,    /* nothing decided */
    ngx_http_capture_ignored,      /* capture is off here: not counted */
    ngx_http_capture_open,         /* begun in the pool */
    ngx_http_capture_ended,        /* its END is written */
    ngx_http_capture_dropped,      /* requestDropped; reason says why */
    ngx_http_capture_filtered,     /* never begun; reason says why */
    ngx_http_capture_lost          /* reason says why */
} ngx_http_capture_state_e;


typedef enum {
    ngx_http_capture_wait_none = 0,
    ngx_http_capture_wait_held,
    ngx_http_capture_wait_acked,   /* durable */
    ngx_http_capture_wait_timedout,
    ngx_http_capture_wait_lost,    /* it will never be durable */
    ngx_http_capture_wait_left,    /* the request has gone */
    ngx_http_capture_wait_skipped  /* too many timeouts before it */
} ngx_http_capture_wait_e;


/* Of a request that waits: wait.c. */

typedef struct {
    ngx_queue_t                queue;      /* the worker's waiters, starved */
    ngx_event_t                timer;
    ngx_event_t                guard;
    ngx_http_capture_ctx_t    *ctx;
    ngx_chain_t               *kept;       /* of the body, not passed on */
    ngx_chain_t               *unrecorded; /* nor recorded: no room */
    size_t                     recorded;   /* of the first of these */
    ngx_http_event_handler_pt  read_handler;
    uint64_t                   seq;        /* the frame that is waited for */
    ngx_msec_t                 timeout;
    ngx_msec_t                 begun;
    ngx_msec_t                 waited;

    unsigned                   state:4;    /* ngx_http_capture_wait_e */
    unsigned                   refuse:1;   /* capture_on_failure */
    unsigned                   refused:1;
    unsigned                   starved:1;  /* until there is room */
    unsigned                   answered:1; /* Retry-After is set */
    unsigned                   departed:1; /* its client, unnoticed by NGINX */
    unsigned                   ended:1;    /* HTTP/3: the last buffer came */
} ngx_http_capture_wait_t;


/* One of each main request that a location may capture. */

struct ngx_http_capture_ctx_s {
    ngx_http_request_t        *request;
    ngx_http_capture_conn_t   *conn;
    ngx_http_capture_wait_t   *wait;       /* or NULL: it does not */
    ngx_http_capture_loc_conf_t  *conf;    /* of the decision */

    ngx_http_capture_json_t   *request_json;  /* or NULL: as it comes */
    ngx_http_capture_json_t   *response_json;
    off_t                      request_room;
    off_t                      response_room;

    u_char                    *head;       /* as the client sent it */
    size_t                     head_len;
    cap_eom                    eom;
    off_t                      rest;       /* of Content-Length */
    int64_t                    arrived;

    uint64_t                   epoch;
    cap_frame                  frame;      /* the next; slot: ctx's own */
    uint64_t                   end_seq;

    ngx_http_capture_early_t  *early;      /* held until endOfMessage */
    ngx_http_capture_early_t  *early_last;
    size_t                     early_size; /* memory */

    unsigned                   state:4;    /* ngx_http_capture_state_e */
    unsigned                   reason:8;   /* cap_reason */
    unsigned                   omitted:8;  /* why, the response's body */
    unsigned                   has_body:1;
    unsigned                   chunked:1;          /* the request's body */
    unsigned                   upgrade:1;  /* endOfMessage waits for a head */
    unsigned                   request_done:1;     /* all bytes written */
    unsigned                   eom_sent:1;
    unsigned                   uncaptured:1;       /* counted as that */
    unsigned                   excluded:1;         /* and as that */
    unsigned                   tracked:1;          /* in worker's inflight */
    unsigned                   response_begun:1;
    unsigned                   response_chunked:1;
    unsigned                   early_cut:1;        /* not all of it is held */
};


/* A worker's state; lives as long as the process. */

typedef struct {
    ngx_http_capture_pool_t   *pool;       /* offered to a sidecar, or NULL */
    ngx_uint_t                 linked;     /* it has taken it */
    ngx_connection_t          *connection; /* to the sidecar, or NULL */
    ngx_event_t                timer;      /* reconnect, or handshake */
    ngx_msec_t                 backoff;
    uint64_t                   epoch;
    ngx_err_t                  complained; /* of it, in this row of failures */

    struct sockaddr_un         addr;       /* of the sidecar */
    size_t                     buffer;
    ngx_uint_t                 nslots;
    ngx_array_t               *topics;     /* of the configuration, or NULL */
    ngx_log_t                 *log;

    ngx_queue_t                waiters;
    ngx_queue_t                starved;
    ngx_uint_t                 wait_failures; /* in a row */
    ngx_http_capture_wait_t   *probe;      /* waits in spite of those */

    /* without a pool, and of pools that have gone */
    uint64_t                   seen;
    uint64_t                   captured;
    uint64_t                   truncated;
    uint64_t                   doubled;
    uint64_t                   reason[CAP_REASON_CELLS];
    uint64_t                   wait[CAP_WAIT_CELLS];
    uint64_t                   redact[CAP_REDACT_CELLS];
    uint64_t                   untold;     /* of seen: no sidecar has them */

    /* requests in flight that may change the source */

    uint64_t                   inflight;   /* begun in the pool */
    uint64_t                   uncaptured;
    uint64_t                   excluded;
} ngx_http_capture_worker_t;


/* the shared part of a pool */

#define ngx_http_capture_header(pool)  ((cap_header *) (pool)->base)

/* cells of the shared header that this worker alone writes */

#define ngx_http_capture_add(cell, n)                                         \
    atomic_store_explicit(cell,                                               \
                          atomic_load_explicit(cell, memory_order_relaxed)    \
                          + (n), memory_order_relaxed)


extern ngx_module_t                ngx_http_capture_module;
extern ngx_http_capture_worker_t  *ngx_http_capture_worker;


/* directives.c */

char *ngx_http_capture_set(ngx_conf_t *cf, ngx_command_t *cmd, void *conf);
char *ngx_http_capture_set_sidecar(ngx_conf_t *cf, ngx_command_t *cmd,
    void *conf);
char *ngx_http_capture_set_buffer(ngx_conf_t *cf, void *post, void *data);
char *ngx_http_capture_set_include(ngx_conf_t *cf, ngx_command_t *cmd,
    void *conf);
char *ngx_http_capture_set_on_failure(ngx_conf_t *cf,
    ngx_command_t *cmd, void *conf);
char *ngx_http_capture_set_wait(ngx_conf_t *cf, ngx_command_t *cmd, void *conf);
char *ngx_http_capture_set_timeout(ngx_conf_t *cf, void *post, void *data);
char *ngx_http_capture_set_status(ngx_conf_t *cf, ngx_command_t *cmd,
    void *conf);

/* variables.c */

ngx_int_t ngx_http_capture_add_variables(ngx_conf_t *cf);

/* request.c */

ngx_int_t ngx_http_capture_post_read_handler(ngx_http_request_t *r);
ngx_int_t ngx_http_capture_precontent_handler(ngx_http_request_t *r);
ngx_int_t ngx_http_capture_body_in(ngx_http_request_t *r, ngx_chain_t *in,
    ngx_http_request_body_filter_pt next);
ngx_http_capture_ctx_t *ngx_http_capture_find_ctx(ngx_http_request_t *r);
ngx_http_capture_ctx_t *ngx_http_capture_create_ctx(ngx_http_request_t *r);
void ngx_http_capture_decide(ngx_http_request_t *r,
    ngx_http_capture_ctx_t *ctx);
void ngx_http_capture_track(ngx_http_capture_ctx_t *ctx);
void ngx_http_capture_mark_uncaptured(ngx_http_capture_ctx_t *ctx,
    ngx_uint_t excluded);
void ngx_http_capture_decide_answered(ngx_http_request_t *r,
    ngx_http_capture_ctx_t *ctx);
void ngx_http_capture_decide_refused(ngx_http_request_t *r,
    ngx_http_capture_ctx_t *ctx, ngx_uint_t reason);

/* exchange.c: frames of one exchange; state says whether they were written */

void ngx_http_capture_begin(ngx_http_capture_ctx_t *ctx);
void ngx_http_capture_data(ngx_http_capture_ctx_t *ctx, ngx_uint_t type,
    u_char *data, size_t len);
void ngx_http_capture_chain(ngx_http_capture_ctx_t *ctx, ngx_uint_t type,
    ngx_chain_t *in, ngx_uint_t chunked);
void ngx_http_capture_chunk(ngx_http_capture_ctx_t *ctx, ngx_uint_t type,
    u_char *data, size_t len);
void ngx_http_capture_eom(ngx_http_capture_ctx_t *ctx, ngx_uint_t flags);
void ngx_http_capture_hold(ngx_http_capture_ctx_t *ctx);
void ngx_http_capture_finish(ngx_http_capture_ctx_t *ctx, ngx_uint_t type,
    ngx_uint_t code);
void ngx_http_capture_no_room(ngx_http_capture_ctx_t *ctx);
ngx_int_t ngx_http_capture_acked(ngx_http_capture_ctx_t *ctx, uint64_t seq);

/* wait.c */

ngx_int_t ngx_http_capture_wait_decide(ngx_http_request_t *r,
    ngx_http_capture_ctx_t *ctx, ngx_http_capture_loc_conf_t *clcf);
void ngx_http_capture_wait_begin(ngx_http_capture_ctx_t *ctx);
ngx_int_t ngx_http_capture_wait_phase(ngx_http_request_t *r,
    ngx_http_capture_ctx_t *ctx);
ngx_int_t ngx_http_capture_wait_body(ngx_http_request_t *r,
    ngx_http_capture_ctx_t *ctx, ngx_chain_t *in,
    ngx_http_request_body_filter_pt next);
void ngx_http_capture_wait_wake(ngx_http_capture_worker_t *w);
void ngx_http_capture_wait_expire(ngx_http_capture_worker_t *w);
void ngx_http_capture_wait_forget(ngx_http_capture_wait_t *wait);
void ngx_http_capture_wait_bell_handler(ngx_event_t *rev);
ngx_int_t ngx_http_capture_wait_keep(ngx_http_capture_wait_t *wait,
    ngx_chain_t **ll, ngx_chain_t *in);
void ngx_http_capture_wait_guard(ngx_http_capture_wait_t *wait);

/* stall.c */

ngx_uint_t ngx_http_capture_stall_needed(ngx_http_request_t *r,
    ngx_http_capture_ctx_t *ctx, ngx_chain_t *in);
ngx_int_t ngx_http_capture_stall(ngx_http_request_t *r,
    ngx_http_capture_ctx_t *ctx, ngx_chain_t **in);
void ngx_http_capture_stall_end(ngx_http_capture_wait_t *wait);
void ngx_http_capture_stall_wake(ngx_http_capture_worker_t *w);

/* early.c */

ngx_uint_t ngx_http_capture_early_may_end(ngx_http_capture_ctx_t *ctx);
void ngx_http_capture_early_hold(ngx_http_capture_ctx_t *ctx, u_char *data,
    size_t len);
void ngx_http_capture_early_flush(ngx_http_capture_ctx_t *ctx);
void ngx_http_capture_early_end(ngx_http_capture_ctx_t *ctx);
void ngx_http_capture_early_free(ngx_http_capture_ctx_t *ctx);

/* response.c */

ngx_int_t ngx_http_capture_head_out(ngx_http_request_t *r,
    ngx_http_capture_ctx_t *ctx, ngx_http_output_header_filter_pt next);
void ngx_http_capture_body_out(ngx_http_request_t *r,
    ngx_http_capture_ctx_t *ctx, ngx_chain_t *in);

/* policy.c */

char *ngx_http_capture_set_max_body(ngx_conf_t *cf, ngx_command_t *cmd,
    void *conf);
ngx_int_t ngx_http_capture_policy_request(ngx_http_request_t *r,
    ngx_http_capture_ctx_t *ctx);
void ngx_http_capture_policy_grown(ngx_http_capture_ctx_t *ctx,
    ngx_chain_t *in);
ngx_int_t ngx_http_capture_policy_response(ngx_http_request_t *r,
    ngx_http_capture_ctx_t *ctx);
u_char *ngx_http_capture_policy_omitted(ngx_http_request_t *r,
    ngx_http_capture_ctx_t *ctx, u_char *p);
ngx_uint_t ngx_http_capture_policy_cut(ngx_http_capture_ctx_t *ctx,
    ngx_chain_t *in);

/* redact.c */

char *ngx_http_capture_set_redact_header(ngx_conf_t *cf, ngx_command_t *cmd,
    void *conf);
char *ngx_http_capture_set_redact_arg(ngx_conf_t *cf, ngx_command_t *cmd,
    void *conf);
char *ngx_http_capture_set_redact_json(ngx_conf_t *cf, ngx_command_t *cmd,
    void *conf);
char *ngx_http_capture_set_redact_key(ngx_conf_t *cf, ngx_command_t *cmd,
    void *conf);
void ngx_http_capture_redact_request(ngx_http_request_t *r,
    ngx_http_capture_ctx_t *ctx);
void ngx_http_capture_redact_lines(ngx_http_request_t *r,
    ngx_http_capture_ctx_t *ctx, u_char *p, u_char *last);
ngx_http_capture_json_t *ngx_http_capture_redact_body(ngx_http_request_t *r,
    ngx_http_capture_ctx_t *ctx, ngx_uint_t certain, ngx_uint_t lines);
void ngx_http_capture_redact_data(ngx_http_capture_ctx_t *ctx,
    ngx_uint_t type, ngx_http_capture_json_t *json, u_char *data, size_t len,
    ngx_uint_t chunked);
void ngx_http_capture_redact_end(ngx_http_capture_ctx_t *ctx, ngx_uint_t type,
    ngx_http_capture_json_t *json, ngx_uint_t chunked);

/* connection.c */

ngx_http_capture_conn_t *ngx_http_capture_get_conn(ngx_http_request_t *r,
    ngx_uint_t topic);
ngx_int_t ngx_http_capture_conn_begin(ngx_http_capture_pool_t *pool,
    ngx_http_capture_conn_t *conn, size_t head_len);
void ngx_http_capture_conn_end(ngx_http_capture_pool_t *pool,
    ngx_http_capture_conn_t *conn);
void ngx_http_capture_conn_leave(ngx_http_capture_pool_t *pool,
    ngx_http_capture_conn_t *conn);
void ngx_http_capture_conn_reclaim(ngx_http_capture_pool_t *pool);

/* frame.c */

ngx_int_t ngx_http_capture_pool_room(ngx_http_capture_pool_t *pool,
    size_t keep, size_t bytes);
ngx_int_t ngx_http_capture_pool_data(ngx_http_capture_pool_t *pool,
    cap_frame *f, u_char *data, size_t len);
ngx_int_t ngx_http_capture_pool_control(ngx_http_capture_pool_t *pool,
    cap_frame *f, void *payload);
void ngx_http_capture_pool_publish(ngx_http_capture_pool_t *pool);

/* pool.c */

ngx_http_capture_pool_t *ngx_http_capture_pool_create(
    ngx_http_capture_worker_t *w);
void ngx_http_capture_pool_destroy(ngx_http_capture_pool_t *pool);
ngx_int_t ngx_http_capture_pool_offer(ngx_http_capture_pool_t *pool,
    ngx_log_t *log);
void ngx_http_capture_pool_unring(ngx_http_capture_pool_t *pool);
u_char *ngx_http_capture_pool_id(ngx_http_capture_pool_t *pool, uint32_t slot,
    u_char *p);
uint32_t ngx_http_capture_pool_take_slot(ngx_http_capture_pool_t *pool,
    ngx_http_capture_conn_t *conn);
void ngx_http_capture_pool_collect(ngx_http_capture_pool_t *pool);
void ngx_http_capture_pool_break(ngx_http_capture_pool_t *pool);
int64_t ngx_http_capture_pool_clock(ngx_http_capture_pool_t *pool);

/* topic.c */

/* of a request: 0 the default, else a place in the pool's names and 1 */

#define NGX_HTTP_CAPTURE_NO_TOPIC  ((ngx_uint_t) -1)

#define ngx_http_capture_topic(pool, r, clcf)                                 \
    ((clcf)->topic_variable ? ngx_http_capture_topic_of(pool, r, clcf)        \
                            : (clcf)->topic)

char *ngx_http_capture_set_topic(ngx_conf_t *cf, ngx_command_t *cmd,
    void *conf);
void ngx_http_capture_topic_init(ngx_http_capture_pool_t *pool,
    ngx_array_t *topics);
ngx_uint_t ngx_http_capture_topic_of(ngx_http_capture_pool_t *pool,
    ngx_http_request_t *r, ngx_http_capture_loc_conf_t *clcf);

/* link.c */

ngx_int_t ngx_http_capture_link_init(ngx_cycle_t *cycle);
void ngx_http_capture_link_exit(ngx_cycle_t *cycle);

/* status.c */

ngx_int_t ngx_http_capture_status_zone(ngx_conf_t *cf,
    ngx_http_capture_main_conf_t *cmcf);
ngx_int_t ngx_http_capture_status_handler(ngx_http_request_t *r);
void ngx_http_capture_status_init(ngx_cycle_t *cycle);
void ngx_http_capture_status_exit(ngx_cycle_t *cycle);
void ngx_http_capture_count(ngx_uint_t reason);
void ngx_http_capture_count_seen(void);
void ngx_http_capture_count_wait(ngx_uint_t cell, uint64_t n);
void ngx_http_capture_count_waited(ngx_msec_t time);
void ngx_http_capture_count_redact(ngx_uint_t cell, uint64_t n);
void ngx_http_capture_count_uncaptured(ngx_uint_t excluded, ngx_int_t n);


/*
 * The request's context, also after an internal redirect, which wipes module
 * contexts but not the pool's cleanups.  NULL: no phase has run for it.
 */

static ngx_inline ngx_http_capture_ctx_t *
ngx_http_capture_get_ctx(ngx_http_request_t *r)
{
    ngx_http_capture_ctx_t  *ctx;

    ctx = ngx_http_get_module_ctx(r, ngx_http_capture_module);

    if (ctx == NULL && (r->internal || r->filter_finalize)) {
        ctx = ngx_http_capture_find_ctx(r);
    }

    return ctx;
}


/* CLOCK_REALTIME in ns, read once a turn; nginx's own time is too coarse. */

static ngx_inline int64_t
ngx_http_capture_pool_now(ngx_http_capture_pool_t *pool)
{
    return pool->now ? pool->now : ngx_http_capture_pool_clock(pool);
}


/* The clock can step back; a connection's observations must not. */

static ngx_inline int64_t
ngx_http_capture_conn_time(ngx_http_capture_pool_t *pool,
    ngx_http_capture_conn_t *conn)
{
    int64_t  now;

    now = ngx_http_capture_pool_now(pool);

    if (now > conn->last_ts) {
        conn->last_ts = now;
    }

    return conn->last_ts;
}


#endif /* _NGX_HTTP_CAPTURE_H_INCLUDED_ */
