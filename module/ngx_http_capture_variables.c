
/*
 * The variables: $capture_connection_id, $capture_result, $capture_wait_time.
 */


#include "ngx_http_capture.h"


static ngx_int_t ngx_http_capture_id_variable(ngx_http_request_t *r,
    ngx_http_variable_value_t *v, uintptr_t data);
static ngx_int_t ngx_http_capture_result_variable(ngx_http_request_t *r,
    ngx_http_variable_value_t *v, uintptr_t data);
static ngx_int_t ngx_http_capture_wait_variable(ngx_http_request_t *r,
    ngx_http_variable_value_t *v, uintptr_t data);


static ngx_http_variable_t  ngx_http_capture_vars[] = {

    { ngx_string("capture_connection_id"), NULL,
      ngx_http_capture_id_variable, 0, NGX_HTTP_VAR_NOCACHEABLE, 0 },

    { ngx_string("capture_result"), NULL,
      ngx_http_capture_result_variable, 0, NGX_HTTP_VAR_NOCACHEABLE, 0 },

    { ngx_string("capture_wait_time"), NULL,
      ngx_http_capture_wait_variable, 0, NGX_HTTP_VAR_NOCACHEABLE, 0 },

      ngx_http_null_variable
};


ngx_int_t
ngx_http_capture_add_variables(ngx_conf_t *cf)
{
    ngx_http_variable_t  *var, *v;

    for (v = ngx_http_capture_vars; v->name.len; v++) {
        var = ngx_http_add_variable(cf, &v->name, v->flags);
        if (var == NULL) {
            return NGX_ERROR;
        }

        var->get_handler = v->get_handler;
        var->data = v->data;
    }

    return NGX_OK;
}


static ngx_int_t
ngx_http_capture_id_variable(ngx_http_request_t *r,
    ngx_http_variable_value_t *v, uintptr_t data)
{
    ngx_http_capture_ctx_t   *ctx;
    ngx_http_capture_pool_t  *pool;

    ctx = ngx_http_capture_get_ctx(r->main);
    pool = ngx_http_capture_worker ? ngx_http_capture_worker->pool : NULL;

    if (ctx == NULL || pool == NULL || ctx->epoch != pool->epoch
        || pool->slot_gen[ctx->frame.slot] != ctx->frame.slot_generation)
    {
        v->not_found = 1;
        return NGX_OK;
    }

    v->data = ngx_pnalloc(r->pool, CAP_ID_SIZE);
    if (v->data == NULL) {
        return NGX_ERROR;
    }

    v->len = ngx_http_capture_pool_id(pool, ctx->frame.slot, v->data)
             - v->data;

    v->valid = 1;
    v->no_cacheable = 0;
    v->not_found = 0;

    return NGX_OK;
}


static ngx_int_t
ngx_http_capture_result_variable(ngx_http_request_t *r,
    ngx_http_variable_value_t *v, uintptr_t data)
{
    const char              *class;
    ngx_http_capture_ctx_t  *ctx;

    ctx = ngx_http_capture_get_ctx(r->main);

    if (ctx == NULL || ctx->state == ngx_http_capture_ignored) {
        v->not_found = 1;
        return NGX_OK;
    }

    v->valid = 1;
    v->no_cacheable = 0;
    v->not_found = 0;

    switch (ctx->state) {

    case ngx_http_capture_dropped:
    case ngx_http_capture_filtered:
        class = "filtered";
        break;

    case ngx_http_capture_lost:
        class = "lost";
        break;

    case ngx_http_capture_ended:
        if (ngx_http_capture_acked(ctx, ctx->end_seq) == NGX_OK) {
            v->len = sizeof("captured") - 1;
            v->data = (u_char *) "captured";
            return NGX_OK;
        }

        /* fall through */

    default:
        v->len = sizeof("pending") - 1;
        v->data = (u_char *) "pending";
        return NGX_OK;
    }

    v->data = ngx_pnalloc(r->pool, 64);
    if (v->data == NULL) {
        return NGX_ERROR;
    }

    v->len = ngx_snprintf(v->data, 64, "%s(%s)", class,
                          cap_reason_name(ctx->reason))
             - v->data;

    return NGX_OK;
}


/* Seconds; while a request is held, until now; 0.000 if it never was. */

static ngx_int_t
ngx_http_capture_wait_variable(ngx_http_request_t *r,
    ngx_http_variable_value_t *v, uintptr_t data)
{
    ngx_msec_t               ms;
    ngx_http_capture_ctx_t  *ctx;

    ctx = ngx_http_capture_get_ctx(r->main);

    if (ctx == NULL) {
        v->not_found = 1;
        return NGX_OK;
    }

    ms = 0;

    if (ctx->wait) {
        ms = (ctx->wait->state == ngx_http_capture_wait_held)
             ? ngx_current_msec - ctx->wait->begun : ctx->wait->waited;
    }

    v->data = ngx_pnalloc(r->pool, NGX_TIME_T_LEN + 4);
    if (v->data == NULL) {
        return NGX_ERROR;
    }

    v->len = ngx_sprintf(v->data, "%M.%03M", ms / 1000, ms % 1000) - v->data;
    v->valid = 1;
    v->no_cacheable = 0;
    v->not_found = 0;

    return NGX_OK;
}
