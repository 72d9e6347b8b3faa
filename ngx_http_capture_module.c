
/*
 * Traffic capture: the table of directives, the configuration and its defaults,
 * and every hook into NGINX, attached in ngx_http_capture_attach().
 *
 * How an exchange goes from here is told in module/ngx_http_capture.h.
 */


#include "module/ngx_http_capture.h"


#define NGX_HTTP_CAPTURE_BUFFER_DEFAULT  (64 * 1024 * 1024)

#define NGX_HTTP_CAPTURE_WAIT_TIMEOUT_DEFAULT  10000


static ngx_int_t ngx_http_capture_attach(ngx_conf_t *cf);
static void ngx_http_capture_tell_build(ngx_conf_t *cf);
static ngx_int_t ngx_http_capture_add_handler(ngx_conf_t *cf,
    ngx_http_phases phase, ngx_http_handler_pt handler);
static ngx_int_t ngx_http_capture_header_filter(ngx_http_request_t *r);
static ngx_int_t ngx_http_capture_body_filter(ngx_http_request_t *r,
    ngx_chain_t *in);
static ngx_int_t ngx_http_capture_request_body_filter(ngx_http_request_t *r,
    ngx_chain_t *in);

static ngx_int_t ngx_http_capture_init_process(ngx_cycle_t *cycle);
static void ngx_http_capture_exit_process(ngx_cycle_t *cycle);
static void *ngx_http_capture_create_main_conf(ngx_conf_t *cf);
static char *ngx_http_capture_init_main_conf(ngx_conf_t *cf, void *conf);
static void *ngx_http_capture_create_srv_conf(ngx_conf_t *cf);
static char *ngx_http_capture_merge_srv_conf(ngx_conf_t *cf, void *parent,
    void *child);
static void *ngx_http_capture_create_loc_conf(ngx_conf_t *cf);
static char *ngx_http_capture_merge_loc_conf(ngx_conf_t *cf, void *parent,
    void *child);


static ngx_conf_post_t  ngx_http_capture_buffer_post =
    { ngx_http_capture_set_buffer };

static ngx_conf_post_t  ngx_http_capture_timeout_post =
    { ngx_http_capture_set_timeout };


static ngx_conf_bitmask_t  ngx_http_capture_includes[] = {
    { ngx_string("off"), NGX_HTTP_CAPTURE_INCLUDE_OFF },
    { ngx_string("unreplayable"), NGX_HTTP_CAPTURE_INCLUDE_UNREPLAYABLE },
    { ngx_string("not_forwarded"), NGX_HTTP_CAPTURE_INCLUDE_NOT_FORWARDED },
    { ngx_null_string, 0 }
};


static ngx_conf_enum_t  ngx_http_capture_on_failures[] = {
    { ngx_string("forward"), NGX_HTTP_CAPTURE_FORWARD },
    { ngx_string("refuse"), NGX_HTTP_CAPTURE_REFUSE },
    { ngx_null_string, 0 }
};


static ngx_command_t  ngx_http_capture_commands[] = {

    { ngx_string("capture_sidecar"),
      NGX_HTTP_MAIN_CONF|NGX_CONF_TAKE1,
      ngx_http_capture_set_sidecar,
      NGX_HTTP_MAIN_CONF_OFFSET,
      0,
      NULL },

    { ngx_string("capture_buffer"),
      NGX_HTTP_MAIN_CONF|NGX_CONF_TAKE1,
      ngx_conf_set_size_slot,
      NGX_HTTP_MAIN_CONF_OFFSET,
      offsetof(ngx_http_capture_main_conf_t, buffer),
      &ngx_http_capture_buffer_post },

    { ngx_string("capture"),
      NGX_HTTP_MAIN_CONF|NGX_HTTP_SRV_CONF|NGX_HTTP_LOC_CONF
                        |NGX_HTTP_LIF_CONF|NGX_CONF_TAKE1,
      ngx_http_capture_set,
      NGX_HTTP_LOC_CONF_OFFSET,
      0,
      NULL },

    { ngx_string("capture_bypass"),
      NGX_HTTP_MAIN_CONF|NGX_HTTP_SRV_CONF|NGX_HTTP_LOC_CONF|NGX_CONF_1MORE,
      ngx_http_set_predicate_slot,
      NGX_HTTP_LOC_CONF_OFFSET,
      offsetof(ngx_http_capture_loc_conf_t, bypass),
      NULL },

    { ngx_string("capture_include"),
      NGX_HTTP_MAIN_CONF|NGX_HTTP_SRV_CONF|NGX_HTTP_LOC_CONF|NGX_CONF_1MORE,
      ngx_http_capture_set_include,
      NGX_HTTP_LOC_CONF_OFFSET,
      offsetof(ngx_http_capture_loc_conf_t, include),
      &ngx_http_capture_includes },

    { ngx_string("capture_wait"),
      NGX_HTTP_MAIN_CONF|NGX_HTTP_SRV_CONF|NGX_HTTP_LOC_CONF|NGX_CONF_1MORE,
      ngx_http_capture_set_wait,
      NGX_HTTP_LOC_CONF_OFFSET,
      offsetof(ngx_http_capture_loc_conf_t, wait_for),
      NULL },

    { ngx_string("capture_wait_timeout"),
      NGX_HTTP_MAIN_CONF|NGX_HTTP_SRV_CONF|NGX_HTTP_LOC_CONF|NGX_CONF_TAKE1,
      ngx_conf_set_msec_slot,
      NGX_HTTP_LOC_CONF_OFFSET,
      offsetof(ngx_http_capture_loc_conf_t, wait_timeout),
      &ngx_http_capture_timeout_post },

    { ngx_string("capture_on_failure"),
      NGX_HTTP_MAIN_CONF|NGX_HTTP_SRV_CONF|NGX_HTTP_LOC_CONF|NGX_CONF_TAKE1,
      ngx_http_capture_set_on_failure,
      NGX_HTTP_LOC_CONF_OFFSET,
      offsetof(ngx_http_capture_loc_conf_t, on_failure),
      &ngx_http_capture_on_failures },

    { ngx_string("capture_topic"),
      NGX_HTTP_MAIN_CONF|NGX_HTTP_SRV_CONF|NGX_HTTP_LOC_CONF|NGX_CONF_TAKE1,
      ngx_http_capture_set_topic,
      NGX_HTTP_LOC_CONF_OFFSET,
      0,
      NULL },

    { ngx_string("capture_redact_header"),
      NGX_HTTP_MAIN_CONF|NGX_HTTP_SRV_CONF|NGX_HTTP_LOC_CONF|NGX_CONF_1MORE,
      ngx_http_capture_set_redact_header,
      NGX_HTTP_LOC_CONF_OFFSET,
      offsetof(ngx_http_capture_loc_conf_t, redact_headers),
      NULL },

    { ngx_string("capture_redact_arg"),
      NGX_HTTP_MAIN_CONF|NGX_HTTP_SRV_CONF|NGX_HTTP_LOC_CONF|NGX_CONF_1MORE,
      ngx_http_capture_set_redact_arg,
      NGX_HTTP_LOC_CONF_OFFSET,
      offsetof(ngx_http_capture_loc_conf_t, redact_args),
      NULL },

    { ngx_string("capture_redact_json"),
      NGX_HTTP_MAIN_CONF|NGX_HTTP_SRV_CONF|NGX_HTTP_LOC_CONF|NGX_CONF_1MORE,
      ngx_http_capture_set_redact_json,
      NGX_HTTP_LOC_CONF_OFFSET,
      offsetof(ngx_http_capture_loc_conf_t, redact_json),
      NULL },

    { ngx_string("capture_redact_key"),
      NGX_HTTP_MAIN_CONF|NGX_CONF_TAKE1,
      ngx_http_capture_set_redact_key,
      NGX_HTTP_MAIN_CONF_OFFSET,
      0,
      NULL },

    { ngx_string("capture_max_request_body"),
      NGX_HTTP_MAIN_CONF|NGX_HTTP_SRV_CONF|NGX_HTTP_LOC_CONF|NGX_CONF_TAKE1,
      ngx_http_capture_set_max_body,
      NGX_HTTP_LOC_CONF_OFFSET,
      offsetof(ngx_http_capture_loc_conf_t, max_request_body),
      NULL },

    { ngx_string("capture_max_response_body"),
      NGX_HTTP_MAIN_CONF|NGX_HTTP_SRV_CONF|NGX_HTTP_LOC_CONF|NGX_CONF_TAKE1,
      ngx_http_capture_set_max_body,
      NGX_HTTP_LOC_CONF_OFFSET,
      offsetof(ngx_http_capture_loc_conf_t, max_response_body),
      NULL },

    { ngx_string("capture_status"),
      NGX_HTTP_LOC_CONF|NGX_CONF_NOARGS,
      ngx_http_capture_set_status,
      NGX_HTTP_LOC_CONF_OFFSET,
      0,
      NULL },

      ngx_null_command
};


static ngx_http_module_t  ngx_http_capture_module_ctx = {
    ngx_http_capture_add_variables,        /* preconfiguration */
    ngx_http_capture_attach,               /* postconfiguration */

    ngx_http_capture_create_main_conf,     /* create main configuration */
    ngx_http_capture_init_main_conf,       /* init main configuration */

    ngx_http_capture_create_srv_conf,      /* create server configuration */
    ngx_http_capture_merge_srv_conf,       /* merge server configuration */

    ngx_http_capture_create_loc_conf,      /* create location configuration */
    ngx_http_capture_merge_loc_conf        /* merge location configuration */
};


ngx_module_t  ngx_http_capture_module = {
    NGX_MODULE_V1,
    &ngx_http_capture_module_ctx,          /* module context */
    ngx_http_capture_commands,             /* module directives */
    NGX_HTTP_MODULE,                       /* module type */
    NULL,                                  /* init master */
    NULL,                                  /* init module */
    ngx_http_capture_init_process,         /* init process */
    NULL,                                  /* init thread */
    NULL,                                  /* exit thread */
    ngx_http_capture_exit_process,         /* exit process */
    NULL,                                  /* exit master */
    NGX_MODULE_V1_PADDING
};


static ngx_http_output_header_filter_pt  ngx_http_next_header_filter;
static ngx_http_output_body_filter_pt    ngx_http_next_body_filter;
static ngx_http_request_body_filter_pt   ngx_http_next_request_body_filter;


/*
 * Every hook.  Nothing is attached where no location can capture, so that a
 * module which is loaded and not used costs nothing.
 */

static ngx_int_t
ngx_http_capture_attach(ngx_conf_t *cf)
{
    ngx_http_capture_main_conf_t  *cmcf;

    cmcf = ngx_http_conf_get_module_main_conf(cf, ngx_http_capture_module);

    if (!cmcf->used) {
        return NGX_OK;
    }

    ngx_http_capture_tell_build(cf);

    if (ngx_http_capture_add_handler(cf, NGX_HTTP_POST_READ_PHASE,
                                     ngx_http_capture_post_read_handler)
        != NGX_OK
        || ngx_http_capture_add_handler(cf, NGX_HTTP_PRECONTENT_PHASE,
                                        ngx_http_capture_precontent_handler)
        != NGX_OK)
    {
        return NGX_ERROR;
    }

    ngx_http_next_request_body_filter = ngx_http_top_request_body_filter;
    ngx_http_top_request_body_filter = ngx_http_capture_request_body_filter;

    ngx_http_next_header_filter = ngx_http_top_header_filter;
    ngx_http_top_header_filter = ngx_http_capture_header_filter;

    ngx_http_next_body_filter = ngx_http_top_body_filter;
    ngx_http_top_body_filter = ngx_http_capture_body_filter;

    return NGX_OK;
}


/*
 * --with-compat lets a module be loaded that was compiled without the types of
 * a protocol that NGINX has.  It cannot follow that protocol's streams.
 */

static void
ngx_http_capture_tell_build(ngx_conf_t *cf)
{
    static struct {
        const char  *module;
        const char  *protocol;
    } missing[] = {
#if !(NGX_HTTP_V2)
        { "ngx_http_v2_module", "HTTP/2 (--with-http_v2_module)" },
#endif
#if !(NGX_HTTP_V3)
        { "ngx_http_v3_module", "HTTP/3 (--with-http_v3_module)" },
#endif
        { NULL, NULL }
    };

    u_char      *p, list[128];
    ngx_uint_t   i, m;

    p = list;

    for (i = 0; missing[i].module; i++) {
        for (m = 0; cf->cycle->modules[m]; m++) {
            if (ngx_strcmp(cf->cycle->modules[m]->name, missing[i].module)
                == 0)
            {
                p = ngx_sprintf(p, "%s%s", p == list ? "" : " and ",
                                missing[i].protocol);
            }
        }
    }

    if (p != list) {
        ngx_log_error(NGX_LOG_WARN, cf->log, 0,
                      "ngx_http_capture_module was built without %*s, but this "
                      "NGINX has it: such requests are not captured, they are "
                      "counted as filtered(unsupported); build the module with "
                      "the configure options of this NGINX",
                      (size_t) (p - list), list);
    }
}


static ngx_int_t
ngx_http_capture_add_handler(ngx_conf_t *cf, ngx_http_phases phase,
    ngx_http_handler_pt handler)
{
    ngx_http_handler_pt        *h;
    ngx_http_core_main_conf_t  *cmcf;

    cmcf = ngx_http_conf_get_module_main_conf(cf, ngx_http_core_module);

    h = ngx_array_push(&cmcf->phases[phase].handlers);
    if (h == NULL) {
        return NGX_ERROR;
    }

    *h = handler;

    return NGX_OK;
}


static ngx_int_t
ngx_http_capture_request_body_filter(ngx_http_request_t *r, ngx_chain_t *in)
{
    if (ngx_http_capture_worker) {
        return ngx_http_capture_body_in(r, in,
                                        ngx_http_next_request_body_filter);
    }

    return ngx_http_next_request_body_filter(r, in);
}


static ngx_int_t
ngx_http_capture_header_filter(ngx_http_request_t *r)
{
    ngx_http_capture_ctx_t  *ctx;

    if (r != r->main || r->post_action || ngx_http_capture_worker == NULL) {
        return ngx_http_next_header_filter(r);
    }

    ctx = ngx_http_capture_get_ctx(r);

    if (ctx == NULL) {

        /* no phase has run: what came is no request */

        if (!r->header_sent && ngx_http_capture_create_ctx(r) == NULL) {
            return NGX_ERROR;
        }

        ngx_http_capture_decide_refused(r, ngx_http_capture_get_ctx(r),
                                        CAP_BAD_REQUEST);

        return ngx_http_next_header_filter(r);
    }

    if (ctx->state == ngx_http_capture_fresh) {
        ngx_http_capture_decide_answered(r, ctx);
    }

    if (ctx->state == ngx_http_capture_open) {

        /* file buffers are to be read before they come to us */

        r->filter_need_in_memory = 1;
        r->main_filter_need_in_memory = 1;
    }

    return ngx_http_capture_head_out(r, ctx, ngx_http_next_header_filter);
}


static ngx_int_t
ngx_http_capture_body_filter(ngx_http_request_t *r, ngx_chain_t *in)
{
    ngx_http_capture_ctx_t  *ctx;

    if (in && r == r->main && ngx_http_capture_worker) {
        ctx = ngx_http_capture_get_ctx(r);

        if (ctx) {
            ngx_http_capture_body_out(r, ctx, in);
        }
    }

    return ngx_http_next_body_filter(r, in);
}


static ngx_int_t
ngx_http_capture_init_process(ngx_cycle_t *cycle)
{
    return ngx_http_capture_link_init(cycle);
}


static void
ngx_http_capture_exit_process(ngx_cycle_t *cycle)
{
    ngx_http_capture_link_exit(cycle);
}


static void *
ngx_http_capture_create_main_conf(ngx_conf_t *cf)
{
    ngx_http_capture_main_conf_t  *cmcf;

    cmcf = ngx_pcalloc(cf->pool, sizeof(ngx_http_capture_main_conf_t));
    if (cmcf == NULL) {
        return NULL;
    }

    cmcf->buffer = NGX_CONF_UNSET_SIZE;

    return cmcf;
}


static char *
ngx_http_capture_init_main_conf(ngx_conf_t *cf, void *conf)
{
    ngx_http_capture_main_conf_t *cmcf = conf;

    ngx_conf_init_size_value(cmcf->buffer, NGX_HTTP_CAPTURE_BUFFER_DEFAULT);

    if (cmcf->used && cmcf->sidecar.len == 0) {
        ngx_log_error(NGX_LOG_EMERG, cf->log, 0,
                      "\"capture\" is on, but no \"capture_sidecar\" says "
                      "where the sidecar listens: add "
                      "\"capture_sidecar unix:/path;\" to http {}");
        return NGX_CONF_ERROR;
    }

    return NGX_CONF_OK;
}


static void *
ngx_http_capture_create_srv_conf(ngx_conf_t *cf)
{
    return ngx_pcalloc(cf->pool, sizeof(ngx_http_capture_srv_conf_t));
}


static char *
ngx_http_capture_merge_srv_conf(ngx_conf_t *cf, void *parent, void *child)
{
    ngx_http_capture_srv_conf_t *prev = parent;
    ngx_http_capture_srv_conf_t *conf = child;

    conf->used |= prev->used;

    return NGX_CONF_OK;
}


static void *
ngx_http_capture_create_loc_conf(ngx_conf_t *cf)
{
    ngx_http_capture_loc_conf_t  *clcf;

    clcf = ngx_pcalloc(cf->pool, sizeof(ngx_http_capture_loc_conf_t));
    if (clcf == NULL) {
        return NULL;
    }

    /*
     * set by ngx_pcalloc():
     *
     *     clcf->variable = NULL;
     *     clcf->include = 0;
     *     clcf->wait_for = NULL;
     *     clcf->told = 0;
     *     clcf->policy = 0;
     *     clcf->topic_variable = NULL;
     */

    clcf->enable = NGX_CONF_UNSET;
    clcf->bypass = NGX_CONF_UNSET_PTR;
    clcf->wait = NGX_CONF_UNSET;
    clcf->wait_timeout = NGX_CONF_UNSET_MSEC;
    clcf->on_failure = NGX_CONF_UNSET_UINT;
    clcf->redact_headers = NGX_CONF_UNSET_PTR;
    clcf->redact_args = NGX_CONF_UNSET_PTR;
    clcf->redact_json = NGX_CONF_UNSET_PTR;
    clcf->max_request_body = NGX_CONF_UNSET;
    clcf->max_response_body = NGX_CONF_UNSET;
    clcf->topic = NGX_CONF_UNSET_UINT;

    return clcf;
}


static char *
ngx_http_capture_merge_loc_conf(ngx_conf_t *cf, void *parent, void *child)
{
    ngx_http_capture_loc_conf_t *prev = parent;
    ngx_http_capture_loc_conf_t *conf = child;

    if (conf->enable == NGX_CONF_UNSET) {
        conf->variable = prev->variable;
    }

    ngx_conf_merge_value(conf->enable, prev->enable, 0);
    ngx_conf_merge_ptr_value(conf->bypass, prev->bypass, NULL);

    if (conf->wait == NGX_CONF_UNSET) {
        conf->wait_for = prev->wait_for;
    }

    ngx_conf_merge_value(conf->wait, prev->wait, 1);
    ngx_conf_merge_msec_value(conf->wait_timeout, prev->wait_timeout,
                              NGX_HTTP_CAPTURE_WAIT_TIMEOUT_DEFAULT);
    ngx_conf_merge_uint_value(conf->on_failure, prev->on_failure,
                              NGX_HTTP_CAPTURE_FORWARD);
    ngx_conf_merge_bitmask_value(conf->include, prev->include,
                              (NGX_CONF_BITMASK_SET
                               |NGX_HTTP_CAPTURE_INCLUDE_OFF));

    if (conf->topic == NGX_CONF_UNSET_UINT) {
        conf->topic_variable = prev->topic_variable;
    }

    ngx_conf_merge_uint_value(conf->topic, prev->topic, 0);

    ngx_conf_merge_ptr_value(conf->redact_headers, prev->redact_headers, NULL);
    ngx_conf_merge_ptr_value(conf->redact_args, prev->redact_args, NULL);
    ngx_conf_merge_ptr_value(conf->redact_json, prev->redact_json, NULL);
    ngx_conf_merge_off_value(conf->max_request_body, prev->max_request_body,
                             NGX_MAX_OFF_T_VALUE);
    ngx_conf_merge_off_value(conf->max_response_body, prev->max_response_body,
                             NGX_MAX_OFF_T_VALUE);

    conf->policy = conf->redact_headers || conf->redact_args
                   || conf->redact_json
                   || conf->max_request_body != NGX_MAX_OFF_T_VALUE
                   || conf->max_response_body != NGX_MAX_OFF_T_VALUE;

    return NGX_CONF_OK;
}
