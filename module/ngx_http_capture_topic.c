
/*
 * Destinations: which of the sidecar's topics a request's connectionId belongs
 * to.
 *
 * A name becomes a number in the pool's table, which is all that a slot has of
 * it.  Those of the configuration are the table's first, in its order, in each
 * pool; those that variables make are appended as they come.  What a name
 * stands for only the sidecar knows.
 */


#include "ngx_http_capture.h"


static ngx_int_t ngx_http_capture_topic_is_default(ngx_str_t *name);
static ngx_uint_t ngx_http_capture_topic_append(ngx_http_capture_pool_t *pool,
    ngx_str_t *name);


/* capture_topic NAME | $variable */

char *
ngx_http_capture_set_topic(ngx_conf_t *cf, ngx_command_t *cmd, void *conf)
{
    ngx_http_capture_loc_conf_t *clcf = conf;

    ngx_str_t                         *value, *name;
    ngx_uint_t                         i;
    ngx_http_capture_main_conf_t      *cmcf;
    ngx_http_compile_complex_value_t   ccv;

    if (clcf->topic != NGX_CONF_UNSET_UINT) {
        return "is duplicate";
    }

    clcf->topic = 0;

    value = cf->args->elts;

    if (ngx_http_script_variables_count(&value[1])) {
        clcf->topic_variable = ngx_palloc(cf->pool,
                                          sizeof(ngx_http_complex_value_t));
        if (clcf->topic_variable == NULL) {
            return NGX_CONF_ERROR;
        }

        ngx_memzero(&ccv, sizeof(ngx_http_compile_complex_value_t));

        ccv.cf = cf;
        ccv.value = &value[1];
        ccv.complex_value = clcf->topic_variable;

        if (ngx_http_compile_complex_value(&ccv) != NGX_OK) {
            return NGX_CONF_ERROR;
        }

        return NGX_CONF_OK;
    }

    if (ngx_http_capture_topic_is_default(&value[1])) {
        return NGX_CONF_OK;
    }

    if (!cap_topic_name_good((char *) value[1].data, value[1].len)) {
        ngx_conf_log_error(NGX_LOG_EMERG, cf, 0,
                           "invalid name \"%V\" in \"capture_topic\" "
                           "directive, it must be 1 to 63 letters, digits, "
                           "\".\", \"_\" and \"-\": the NAME of one of the "
                           "sidecar's \"topic.NAME\"", &value[1]);
        return NGX_CONF_ERROR;
    }

    cmcf = ngx_http_conf_get_module_main_conf(cf, ngx_http_capture_module);

    if (cmcf->topics == NULL) {
        cmcf->topics = ngx_array_create(cf->pool, 4, sizeof(ngx_str_t));
        if (cmcf->topics == NULL) {
            return NGX_CONF_ERROR;
        }
    }

    name = cmcf->topics->elts;

    for (i = 0; i < cmcf->topics->nelts; i++) {
        if (name[i].len == value[1].len
            && ngx_memcmp(name[i].data, value[1].data, name[i].len) == 0)
        {
            clcf->topic = i + 1;
            return NGX_CONF_OK;
        }
    }

    if (cmcf->topics->nelts == CAP_TOPIC_NAMES) {
        ngx_conf_log_error(NGX_LOG_EMERG, cf, 0,
                           "\"capture_topic %V\" is one name too many: there "
                           "can be %ud", &value[1], CAP_TOPIC_NAMES);
        return NGX_CONF_ERROR;
    }

    name = ngx_array_push(cmcf->topics);
    if (name == NULL) {
        return NGX_CONF_ERROR;
    }

    *name = value[1];
    clcf->topic = cmcf->topics->nelts;

    return NGX_CONF_OK;
}


static ngx_int_t
ngx_http_capture_topic_is_default(ngx_str_t *name)
{
    return name->len == 0
           || (name->len == sizeof("default") - 1
               && ngx_memcmp(name->data, "default", name->len) == 0);
}


/* The names of the configuration, so that they are always found. */

void
ngx_http_capture_topic_init(ngx_http_capture_pool_t *pool, ngx_array_t *topics)
{
    ngx_str_t   *name;
    ngx_uint_t   i;

    if (topics == NULL) {
        return;
    }

    name = topics->elts;

    for (i = 0; i < topics->nelts; i++) {
        (void) ngx_http_capture_topic_append(pool, &name[i]);
    }
}


/* What the variable of capture_topic says; NO_TOPIC: no name, or no room. */

ngx_uint_t
ngx_http_capture_topic_of(ngx_http_capture_pool_t *pool, ngx_http_request_t *r,
    ngx_http_capture_loc_conf_t *clcf)
{
    ngx_str_t   name;
    ngx_uint_t  i;

    if (ngx_http_complex_value(r, clcf->topic_variable, &name) != NGX_OK) {
        return NGX_HTTP_CAPTURE_NO_TOPIC;
    }

    if (ngx_http_capture_topic_is_default(&name)) {
        return 0;
    }

    if (!cap_topic_name_good((char *) name.data, name.len)) {
        return NGX_HTTP_CAPTURE_NO_TOPIC;
    }

    for (i = 0; i < pool->ntopics; i++) {
        if (ngx_memcmp(pool->topics[i], name.data, name.len) == 0
            && pool->topics[i][name.len] == '\0')
        {
            return i + 1;
        }
    }

    return ngx_http_capture_topic_append(pool, &name);
}


static ngx_uint_t
ngx_http_capture_topic_append(ngx_http_capture_pool_t *pool, ngx_str_t *name)
{
    ngx_uint_t   i;
    cap_header  *h;

    i = pool->ntopics;

    if (i == CAP_TOPIC_NAMES) {
        return NGX_HTTP_CAPTURE_NO_TOPIC;
    }

    h = (cap_header *) pool->base;

    ngx_memcpy(pool->topics[i], name->data, name->len);
    ngx_memcpy(h->topic_names[i], name->data, name->len);

    pool->ntopics++;

    atomic_store_explicit(&h->ntopics, (uint32_t) pool->ntopics,
                          memory_order_release);

    return pool->ntopics;
}
