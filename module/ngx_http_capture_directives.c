
/*
 * The values of directives are read here, but for those of redaction, limits on
 * bodies and topics (redact.c, policy.c, topic.c).  The table of all is in
 * ngx_http_capture_module.c.
 */


#include "ngx_http_capture.h"


#define NGX_HTTP_CAPTURE_BUFFER_MIN  (1024 * 1024)


static char *ngx_http_capture_invalid(ngx_conf_t *cf, ngx_str_t *value,
    const char *right);


/* capture on | off | $variable */

char *
ngx_http_capture_set(ngx_conf_t *cf, ngx_command_t *cmd, void *conf)
{
    ngx_http_capture_loc_conf_t *clcf = conf;

    ngx_str_t                         *value;
    ngx_http_capture_srv_conf_t       *cscf;
    ngx_http_capture_main_conf_t      *cmcf;
    ngx_http_compile_complex_value_t   ccv;

    if (clcf->enable != NGX_CONF_UNSET) {
        return "is duplicate";
    }

    value = cf->args->elts;

    if (ngx_strcmp(value[1].data, "off") == 0) {
        clcf->enable = 0;
        return NGX_CONF_OK;
    }

    if (ngx_strcmp(value[1].data, "on") != 0) {

        if (ngx_http_script_variables_count(&value[1]) == 0) {
            ngx_conf_log_error(NGX_LOG_EMERG, cf, 0,
                               "invalid value \"%V\" in \"capture\" "
                               "directive, it must be \"on\", \"off\" or "
                               "a variable", &value[1]);
            return NGX_CONF_ERROR;
        }

        clcf->variable = ngx_palloc(cf->pool,
                                    sizeof(ngx_http_complex_value_t));
        if (clcf->variable == NULL) {
            return NGX_CONF_ERROR;
        }

        ngx_memzero(&ccv, sizeof(ngx_http_compile_complex_value_t));

        ccv.cf = cf;
        ccv.value = &value[1];
        ccv.complex_value = clcf->variable;

        if (ngx_http_compile_complex_value(&ccv) != NGX_OK) {
            return NGX_CONF_ERROR;
        }
    }

    clcf->enable = 1;

    cscf = ngx_http_conf_get_module_srv_conf(cf, ngx_http_capture_module);
    cscf->used = 1;

    cmcf = ngx_http_conf_get_module_main_conf(cf, ngx_http_capture_module);
    cmcf->used = 1;

    if (cmcf->zone == NULL
        && ngx_http_capture_status_zone(cf, cmcf) != NGX_OK)
    {
        return NGX_CONF_ERROR;
    }

    return NGX_CONF_OK;
}


/* NGINX's own slots do not say of which directive a value is wrong */

static char *
ngx_http_capture_invalid(ngx_conf_t *cf, ngx_str_t *value, const char *right)
{
    ngx_str_t  *name = cf->args->elts;

    ngx_conf_log_error(NGX_LOG_EMERG, cf, 0,
                       "invalid value \"%V\" in \"%V\" directive, it must "
                       "be %s", value, name, right);

    return NGX_CONF_ERROR;
}


/* capture_include off | unreplayable | not_forwarded ... */

char *
ngx_http_capture_set_include(ngx_conf_t *cf, ngx_command_t *cmd, void *conf)
{
    ngx_str_t           *value;
    ngx_uint_t           i;
    ngx_conf_bitmask_t  *m;

    value = cf->args->elts;

    for (i = 1; i < cf->args->nelts; i++) {

        for (m = cmd->post; m->name.len != 0; m++) {
            if (m->name.len == value[i].len
                && ngx_strcasecmp(m->name.data, value[i].data) == 0)
            {
                break;
            }
        }

        if (m->name.len == 0) {
            return ngx_http_capture_invalid(cf, &value[i],
                                            "\"unreplayable\", "
                                            "\"not_forwarded\" or \"off\"");
        }
    }

    return ngx_conf_set_bitmask_slot(cf, cmd, conf);
}


/* capture_on_failure forward | refuse */

char *
ngx_http_capture_set_on_failure(ngx_conf_t *cf, ngx_command_t *cmd,
    void *conf)
{
    ngx_str_t        *value;
    ngx_conf_enum_t  *e;

    value = cf->args->elts;

    for (e = cmd->post; e->name.len != 0; e++) {
        if (e->name.len == value[1].len
            && ngx_strcasecmp(e->name.data, value[1].data) == 0)
        {
            return ngx_conf_set_enum_slot(cf, cmd, conf);
        }
    }

    return ngx_http_capture_invalid(cf, &value[1],
                                    "\"forward\" or \"refuse\"");
}


/* capture_sidecar unix:/path */

char *
ngx_http_capture_set_sidecar(ngx_conf_t *cf, ngx_command_t *cmd, void *conf)
{
    ngx_http_capture_main_conf_t *cmcf = conf;

    size_t      max;
    ngx_str_t  *value, path;

    if (cmcf->sidecar.len) {
        return "is duplicate";
    }

    value = cf->args->elts;
    path = value[1];

    if (path.len < 5 || ngx_strncmp(path.data, "unix:", 5) != 0) {
        ngx_conf_log_error(NGX_LOG_EMERG, cf, 0,
                           "\"capture_sidecar\" takes \"unix:/path\", "
                           "not \"%V\"", &value[1]);
        return NGX_CONF_ERROR;
    }

    path.data += 5;
    path.len -= 5;

    if (path.len == 0 || path.data[0] != '/') {
        ngx_conf_log_error(NGX_LOG_EMERG, cf, 0,
                           "the path in \"capture_sidecar %V\" must begin "
                           "with \"/\"", &value[1]);
        return NGX_CONF_ERROR;
    }

    max = sizeof(((struct sockaddr_un *) 0)->sun_path) - 1;

    if (path.len > max) {
        ngx_conf_log_error(NGX_LOG_EMERG, cf, 0,
                           "the path in \"capture_sidecar %V\" has %uz bytes, "
                           "a Unix socket's may have %uz",
                           &value[1], path.len, max);
        return NGX_CONF_ERROR;
    }

    cmcf->sidecar = path;

    return NGX_CONF_OK;
}


char *
ngx_http_capture_set_buffer(ngx_conf_t *cf, void *post, void *data)
{
    size_t *size = data;

    if (*size < NGX_HTTP_CAPTURE_BUFFER_MIN) {
        ngx_conf_log_error(NGX_LOG_EMERG, cf, 0,
                           "\"capture_buffer\" must be at least 1m");
        return NGX_CONF_ERROR;
    }

    return NGX_CONF_OK;
}


/* capture_wait off | mutating | $variable ... */

char *
ngx_http_capture_set_wait(ngx_conf_t *cf, ngx_command_t *cmd, void *conf)
{
    ngx_http_capture_loc_conf_t *clcf = conf;

    ngx_str_t   *value;
    ngx_uint_t   i;

    if (clcf->wait != NGX_CONF_UNSET) {
        return "is duplicate";
    }

    value = cf->args->elts;

    if (cf->args->nelts == 2 && ngx_strcmp(value[1].data, "off") == 0) {
        clcf->wait = 0;
        return NGX_CONF_OK;
    }

    clcf->wait = 1;

    if (cf->args->nelts == 2 && ngx_strcmp(value[1].data, "mutating") == 0) {
        return NGX_CONF_OK;
    }

    for (i = 1; i < cf->args->nelts; i++) {
        if (ngx_http_script_variables_count(&value[i]) == 0) {
            ngx_conf_log_error(NGX_LOG_EMERG, cf, 0,
                               "invalid value \"%V\" in \"capture_wait\" "
                               "directive, it must be \"off\", \"mutating\" "
                               "or variables", &value[i]);
            return NGX_CONF_ERROR;
        }
    }

    clcf->wait_for = NGX_CONF_UNSET_PTR;

    return ngx_http_set_predicate_slot(cf, cmd, conf);
}


char *
ngx_http_capture_set_timeout(ngx_conf_t *cf, void *post, void *data)
{
    ngx_msec_t *time = data;

    if (*time == 0) {
        ngx_conf_log_error(NGX_LOG_EMERG, cf, 0,
                           "\"capture_wait_timeout\" must be more than 0; "
                           "\"capture_wait off\" lets nothing wait");
        return NGX_CONF_ERROR;
    }

    return NGX_CONF_OK;
}


/* capture_status: a location's handler */

char *
ngx_http_capture_set_status(ngx_conf_t *cf, ngx_command_t *cmd, void *conf)
{
    ngx_http_core_loc_conf_t      *clcf;
    ngx_http_capture_main_conf_t  *cmcf;

    clcf = ngx_http_conf_get_module_loc_conf(cf, ngx_http_core_module);
    clcf->handler = ngx_http_capture_status_handler;

    cmcf = ngx_http_conf_get_module_main_conf(cf, ngx_http_capture_module);

    if (cmcf->zone == NULL
        && ngx_http_capture_status_zone(cf, cmcf) != NGX_OK)
    {
        return NGX_CONF_ERROR;
    }

    return NGX_CONF_OK;
}
