
/*
 * Redaction: what the operator has named leaves the worker as other bytes of
 * the same length.  Lengths, framing and the request's place among its
 * neighbours stay what they are, and nothing waits for the end of a body.
 *
 * It works on copies: the head is one already, of a body it goes through a
 * buffer of its own into the pool.  What NGINX forwards is not touched.
 *
 * The other bytes are `*`, or with capture_redact_key an HMAC-SHA256 of the
 * value in letters and digits: the same value, the same pseudonym.
 */


#include "ngx_http_capture.h"

#include <openssl/evp.h>


#define NGX_HTTP_CAPTURE_REDACT_PIECE    16384

#define NGX_HTTP_CAPTURE_REDACT_KEY_MIN  16
#define NGX_HTTP_CAPTURE_REDACT_KEY_MAX  4096

/* of SHA-256 */
#define NGX_HTTP_CAPTURE_REDACT_HASH     32
#define NGX_HTTP_CAPTURE_REDACT_BLOCK    64


static char *ngx_http_capture_redact_array(ngx_conf_t *cf, ngx_command_t *cmd,
    void *conf, ngx_array_t **names);
static char *ngx_http_capture_redact_name(ngx_conf_t *cf, ngx_array_t *names,
    ngx_str_t *name);
static ngx_int_t ngx_http_capture_redact_read(ngx_conf_t *cf, ngx_fd_t fd,
    ngx_str_t *name, ngx_str_t *key);
static void ngx_http_capture_redact_forget(void *data);
static void ngx_http_capture_redact_value(ngx_str_t *key, u_char *p,
    size_t len);
static void ngx_http_capture_redact_hash(void *data, u_char *p, size_t len);
static ngx_int_t ngx_http_capture_redact_hmac(ngx_str_t *key, u_char *p,
    size_t len, u_char *md);
static ngx_uint_t ngx_http_capture_redact_pad(EVP_MD_CTX *ctx, ngx_str_t *key,
    u_char pad);
static ngx_uint_t ngx_http_capture_redact_named(ngx_array_t *names, u_char *p,
    size_t len);
static ngx_uint_t ngx_http_capture_redact_is_arg(ngx_array_t *names,
    u_char *p, u_char *last);
static void ngx_http_capture_redact_args(ngx_http_capture_loc_conf_t *clcf,
    ngx_str_t *key, u_char *p, u_char *last);
static void ngx_http_capture_redact_tally(ngx_http_capture_json_t *json);


/* The key that states were made of; another cycle's may have its address. */

static u_char  *ngx_http_capture_redact_ready;


/* `capture_redact_header preset`; module/directives.txt has it, too. */

static ngx_str_t  ngx_http_capture_redact_preset[] = {
    ngx_string("Authorization"),
    ngx_string("Proxy-Authorization"),
    ngx_string("Cookie"),
    ngx_string("Set-Cookie"),
    ngx_string("X-Api-Key"),
    ngx_string("Api-Key"),
    ngx_string("X-Auth-Token"),
    ngx_string("X-Amz-Security-Token"),
    ngx_string("X-Csrf-Token"),
    ngx_null_string
};


/* Without these as they are a message is another one, or none. */

static ngx_str_t  ngx_http_capture_redact_needed[] = {
    ngx_string("Host"),
    ngx_string("Content-Length"),
    ngx_string("Content-Type"),
    ngx_string("Content-Encoding"),
    ngx_string("Transfer-Encoding"),
    ngx_string("Connection"),
    ngx_null_string
};


/* capture_redact_header off | [preset] name ... */

char *
ngx_http_capture_set_redact_header(ngx_conf_t *cf, ngx_command_t *cmd,
    void *conf)
{
    char         *rv;
    ngx_str_t    *value, *name;
    ngx_uint_t    i;
    ngx_array_t  *names;

    rv = ngx_http_capture_redact_array(cf, cmd, conf, &names);

    if (rv != NGX_CONF_OK || names == NULL) {
        return rv;
    }

    value = cf->args->elts;

    for (i = 1; i < cf->args->nelts; i++) {

        if (ngx_strcmp(value[i].data, "preset") == 0) {
            for (name = ngx_http_capture_redact_preset; name->len; name++) {
                rv = ngx_http_capture_redact_name(cf, names, name);
                if (rv != NGX_CONF_OK) {
                    return rv;
                }
            }

            continue;
        }

        for (name = ngx_http_capture_redact_needed; name->len; name++) {
            if (name->len == value[i].len
                && ngx_strcasecmp(name->data, value[i].data) == 0)
            {
                ngx_conf_log_error(NGX_LOG_EMERG, cf, 0,
                                   "\"capture_redact_header\" cannot redact "
                                   "\"%V\": the message would be another one, "
                                   "or none", &value[i]);
                return NGX_CONF_ERROR;
            }
        }

        rv = ngx_http_capture_redact_name(cf, names, &value[i]);
        if (rv != NGX_CONF_OK) {
            return rv;
        }
    }

    return NGX_CONF_OK;
}


/* capture_redact_arg off | name ... */

char *
ngx_http_capture_set_redact_arg(ngx_conf_t *cf, ngx_command_t *cmd, void *conf)
{
    char         *rv;
    ngx_str_t    *value;
    ngx_uint_t    i;
    ngx_array_t  *names;

    rv = ngx_http_capture_redact_array(cf, cmd, conf, &names);

    if (rv != NGX_CONF_OK || names == NULL) {
        return rv;
    }

    value = cf->args->elts;

    for (i = 1; i < cf->args->nelts; i++) {
        rv = ngx_http_capture_redact_name(cf, names, &value[i]);
        if (rv != NGX_CONF_OK) {
            return rv;
        }
    }

    return NGX_CONF_OK;
}


/* capture_redact_json off | path ... */

char *
ngx_http_capture_set_redact_json(ngx_conf_t *cf, ngx_command_t *cmd,
    void *conf)
{
    ngx_http_capture_loc_conf_t *clcf = conf;

    ngx_str_t                      *value;
    const char                     *error;
    ngx_uint_t                      i;
    ngx_http_capture_json_paths_t  *paths;

    if (clcf->redact_json != NGX_CONF_UNSET_PTR) {
        return "is duplicate";
    }

    value = cf->args->elts;

    if (cf->args->nelts == 2 && ngx_strcmp(value[1].data, "off") == 0) {
        clcf->redact_json = NULL;
        return NGX_CONF_OK;
    }

    paths = ngx_pcalloc(cf->pool, sizeof(ngx_http_capture_json_paths_t));
    if (paths == NULL) {
        return NGX_CONF_ERROR;
    }

    for (i = 1; i < cf->args->nelts; i++) {
        error = ngx_http_capture_json_path(paths, value[i].data, value[i].len);

        if (error) {
            ngx_conf_log_error(NGX_LOG_EMERG, cf, 0,
                               "path \"%V\" in \"capture_redact_json\" %s",
                               &value[i], error);
            return NGX_CONF_ERROR;
        }
    }

    clcf->redact_json = paths;

    return NGX_CONF_OK;
}


/* names: NULL for `off`. */

static char *
ngx_http_capture_redact_array(ngx_conf_t *cf, ngx_command_t *cmd, void *conf,
    ngx_array_t **names)
{
    ngx_str_t     *value;
    ngx_array_t  **field;

    field = (ngx_array_t **) ((char *) conf + cmd->offset);

    if (*field != NGX_CONF_UNSET_PTR) {
        return "is duplicate";
    }

    *names = NULL;
    *field = NULL;

    value = cf->args->elts;

    if (cf->args->nelts == 2 && ngx_strcmp(value[1].data, "off") == 0) {
        return NGX_CONF_OK;
    }

    *names = ngx_array_create(cf->pool, 4, sizeof(ngx_str_t));
    if (*names == NULL) {
        return NGX_CONF_ERROR;
    }

    *field = *names;

    return NGX_CONF_OK;
}


static char *
ngx_http_capture_redact_name(ngx_conf_t *cf, ngx_array_t *names,
    ngx_str_t *name)
{
    ngx_str_t  *s;

    if (name->len == 0) {
        return "has an empty name";
    }

    s = ngx_array_push(names);
    if (s == NULL) {
        return NGX_CONF_ERROR;
    }

    *s = *name;

    return NGX_CONF_OK;
}


/* capture_redact_key file */

char *
ngx_http_capture_set_redact_key(ngx_conf_t *cf, ngx_command_t *cmd, void *conf)
{
    ngx_http_capture_main_conf_t *cmcf = conf;

    ngx_fd_t    fd;
    ngx_int_t   rc;
    ngx_str_t  *value, name;

    if (cmcf->redact_key.data) {
        return "is duplicate";
    }

    value = cf->args->elts;
    name = value[1];

    if (ngx_conf_full_name(cf->cycle, &name, 1) != NGX_OK) {
        return NGX_CONF_ERROR;
    }

    fd = ngx_open_file(name.data, NGX_FILE_RDONLY, NGX_FILE_OPEN, 0);

    if (fd == NGX_INVALID_FILE) {
        ngx_conf_log_error(NGX_LOG_EMERG, cf, ngx_errno,
                           "\"capture_redact_key\": " ngx_open_file_n
                           " \"%V\" failed", &name);
        return NGX_CONF_ERROR;
    }

    rc = ngx_http_capture_redact_read(cf, fd, &name, &cmcf->redact_key);

    if (ngx_close_file(fd) == NGX_FILE_ERROR) {
        ngx_conf_log_error(NGX_LOG_ALERT, cf, ngx_errno,
                           ngx_close_file_n " \"%V\" failed", &name);
    }

    return (rc == NGX_OK) ? NGX_CONF_OK : NGX_CONF_ERROR;
}


/* Into memory of its own, which is in no core dump, and goes with the cycle. */

static ngx_int_t
ngx_http_capture_redact_read(ngx_conf_t *cf, ngx_fd_t fd, ngx_str_t *name,
    ngx_str_t *key)
{
    u_char              *p;
    ssize_t              n;
    ngx_file_info_t      info;
    ngx_pool_cleanup_t  *cln;

    if (ngx_fd_info(fd, &info) == NGX_FILE_ERROR) {
        ngx_conf_log_error(NGX_LOG_EMERG, cf, ngx_errno,
                           "\"capture_redact_key\": " ngx_fd_info_n
                           " \"%V\" failed", name);
        return NGX_ERROR;
    }

    if (ngx_is_file(&info) && (info.st_mode & (S_IROTH|S_IWOTH))) {
        ngx_conf_log_error(NGX_LOG_EMERG, cf, 0,
                           "\"capture_redact_key\": all users of this machine "
                           "may read or write \"%V\": chmod o-rw", name);
        return NGX_ERROR;
    }

    cln = ngx_pool_cleanup_add(cf->pool, 0);
    if (cln == NULL) {
        return NGX_ERROR;
    }

    p = mmap(NULL, 2 * NGX_HTTP_CAPTURE_REDACT_KEY_MAX, PROT_READ|PROT_WRITE,
             MAP_PRIVATE|MAP_ANONYMOUS, -1, 0);

    if (p == MAP_FAILED) {
        ngx_conf_log_error(NGX_LOG_EMERG, cf, ngx_errno,
                           "\"capture_redact_key\": mmap() failed");
        return NGX_ERROR;
    }

    (void) madvise(p, 2 * NGX_HTTP_CAPTURE_REDACT_KEY_MAX, MADV_DONTDUMP);

    cln->handler = ngx_http_capture_redact_forget;
    cln->data = p;

    n = read(fd, p, NGX_HTTP_CAPTURE_REDACT_KEY_MAX + 1);

    if (n == -1) {
        ngx_conf_log_error(NGX_LOG_EMERG, cf, ngx_errno,
                           "\"capture_redact_key\": " ngx_read_fd_n
                           " \"%V\" failed", name);
        return NGX_ERROR;
    }

    while (n && (p[n - 1] == LF || p[n - 1] == CR)) {
        n--;
    }

    if (n < NGX_HTTP_CAPTURE_REDACT_KEY_MIN
        || n > NGX_HTTP_CAPTURE_REDACT_KEY_MAX)
    {
        ngx_conf_log_error(NGX_LOG_EMERG, cf, 0,
                           "\"capture_redact_key\": the key in \"%V\" must "
                           "have %d to %d bytes", name,
                           NGX_HTTP_CAPTURE_REDACT_KEY_MIN,
                           NGX_HTTP_CAPTURE_REDACT_KEY_MAX);
        return NGX_ERROR;
    }

    key->data = p;
    key->len = n;

    return NGX_OK;
}


static void
ngx_http_capture_redact_forget(void *data)
{
    ngx_http_capture_redact_ready = NULL;

    ngx_explicit_memzero(data, 2 * NGX_HTTP_CAPTURE_REDACT_KEY_MAX);
    (void) munmap(data, 2 * NGX_HTTP_CAPTURE_REDACT_KEY_MAX);
}


/* The request's head, in its copy: arguments in its first line, headers. */

void
ngx_http_capture_redact_request(ngx_http_request_t *r,
    ngx_http_capture_ctx_t *ctx)
{
    u_char                        *p;
    ngx_http_capture_main_conf_t  *cmcf;

    cmcf = ngx_http_get_module_main_conf(r, ngx_http_capture_module);

    p = ctx->head + ctx->eom.first_line;

    if (ctx->conf->redact_args) {
        ngx_http_capture_redact_args(ctx->conf, &cmcf->redact_key, ctx->head,
                                     p);
    }

    ngx_http_capture_redact_lines(r, ctx, p + sizeof(CRLF) - 1,
                                  ctx->head + ctx->head_len);
}


/* `Name: value` CRLF lines. */

void
ngx_http_capture_redact_lines(ngx_http_request_t *r,
    ngx_http_capture_ctx_t *ctx, u_char *p, u_char *last)
{
    u_char                        *colon, *value, *end, *next;
    ngx_http_capture_loc_conf_t   *clcf;
    ngx_http_capture_main_conf_t  *cmcf;

    clcf = ctx->conf;

    if (clcf->redact_headers == NULL && clcf->redact_args == NULL) {
        return;
    }

    cmcf = ngx_http_get_module_main_conf(r, ngx_http_capture_module);

    for ( /* void */ ; p < last; p = next) {
        end = memchr(p, LF, last - p);

        if (end == NULL) {
            return;
        }

        next = end + 1;
        end--;

        colon = memchr(p, ':', end - p);

        if (colon == NULL || end - colon <= 2) {
            continue;
        }

        value = colon + 2;

        if (ngx_http_capture_redact_named(clcf->redact_headers, p, colon - p)) {
            ngx_http_capture_redact_value(&cmcf->redact_key, value,
                                          end - value);
            ngx_http_capture_count_redact(CAP_REDACT_HEADER, 1);

        } else if (clcf->redact_args) {

            /* Referer, Location and other addresses */

            ngx_http_capture_redact_args(clcf, &cmcf->redact_key, value, end);
        }
    }
}


static ngx_uint_t
ngx_http_capture_redact_named(ngx_array_t *names, u_char *p, size_t len)
{
    ngx_str_t   *name;
    ngx_uint_t   i;

    if (names == NULL) {
        return 0;
    }

    name = names->elts;

    for (i = 0; i < names->nelts; i++) {
        if (name[i].len == len && ngx_strncasecmp(name[i].data, p, len) == 0) {
            return 1;
        }
    }

    return 0;
}


/*
 * Query arguments, from the first "?" on; search engines take ";" for "&".
 */

static void
ngx_http_capture_redact_args(ngx_http_capture_loc_conf_t *clcf, ngx_str_t *key,
    u_char *p, u_char *last)
{
    u_char  *name, *value;

    p = memchr(p, '?', last - p);

    while (p && p < last && *p != ' ') {

        name = ++p;
        value = NULL;

        for ( /* void */ ;
             p < last && *p != '&' && *p != ';' && *p != ' ';
             p++)
        {
            if (*p == '=' && value == NULL) {
                value = p + 1;
            }
        }

        if (value && value < p
            && ngx_http_capture_redact_is_arg(clcf->redact_args, name,
                                              value - 1))
        {
            ngx_http_capture_redact_value(key, value, p - value);
            ngx_http_capture_count_redact(CAP_REDACT_ARG, 1);
        }
    }
}


/* Whatever is coded in it, and in small letters or capitals. */

static ngx_uint_t
ngx_http_capture_redact_is_arg(ngx_array_t *names, u_char *p, u_char *last)
{
    u_char      c, *q;
    size_t      n;
    ngx_int_t   code;
    ngx_str_t  *name;
    ngx_uint_t  i;

    name = names->elts;

    for (i = 0; i < names->nelts; i++) {

        for (q = p, n = 0; q < last && n < name[i].len; n++) {
            c = *q++;

            if (c == '+') {
                c = ' ';

            } else if (c == '%' && last - q >= 2) {
                code = ngx_hextoi(q, 2);

                if (code != NGX_ERROR) {
                    c = (u_char) code;
                    q += 2;
                }
            }

            if (ngx_tolower(c) != ngx_tolower(name[i].data[n])) {
                break;
            }
        }

        if (n == name[i].len && q == last) {
            return 1;
        }
    }

    return 0;
}


static void
ngx_http_capture_redact_value(ngx_str_t *key, u_char *p, size_t len)
{
    if (key->len) {
        ngx_http_capture_redact_hash(key, p, len);

    } else {
        ngx_memset(p, NGX_HTTP_CAPTURE_JSON_MASK, len);
    }
}


static void
ngx_http_capture_redact_hash(void *data, u_char *p, size_t len)
{
    ngx_str_t *key = data;

    size_t  i;
    u_char  md[NGX_HTTP_CAPTURE_REDACT_HASH];

    static u_char  digits[] = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ"
                              "abcdefghijklmnopqrstuvwxyz";

    if (ngx_http_capture_redact_hmac(key, p, len, md) != NGX_OK) {
        ngx_memset(p, NGX_HTTP_CAPTURE_JSON_MASK, len);
        return;
    }

    for (i = 0; i < len; i++) {
        p[i] = digits[md[i % sizeof(md)] % (sizeof(digits) - 1)];
    }
}


/*
 * OpenSSL's own HMAC() looks its algorithms up and takes the key in anew each
 * time: ten times what a short value costs.  So the key's two blocks are done
 * once, and their states are copied.
 */

static ngx_int_t
ngx_http_capture_redact_hmac(ngx_str_t *key, u_char *p, size_t len, u_char *md)
{
    static EVP_MD_CTX  *inner, *outer, *work;

    if (ngx_http_capture_redact_ready != key->data) {

        if (work == NULL) {
            inner = EVP_MD_CTX_new();
            outer = EVP_MD_CTX_new();
            work = EVP_MD_CTX_new();
        }

        if (inner == NULL || outer == NULL || work == NULL
            || !ngx_http_capture_redact_pad(inner, key, 0x36)
            || !ngx_http_capture_redact_pad(outer, key, 0x5c))
        {
            return NGX_ERROR;
        }

        ngx_http_capture_redact_ready = key->data;
    }

    if (!EVP_MD_CTX_copy_ex(work, inner)
        || !EVP_DigestUpdate(work, p, len)
        || !EVP_DigestFinal_ex(work, md, NULL)
        || !EVP_MD_CTX_copy_ex(work, outer)
        || !EVP_DigestUpdate(work, md, NGX_HTTP_CAPTURE_REDACT_HASH)
        || !EVP_DigestFinal_ex(work, md, NULL))
    {
        return NGX_ERROR;
    }

    return NGX_OK;
}


static ngx_uint_t
ngx_http_capture_redact_pad(EVP_MD_CTX *ctx, ngx_str_t *key, u_char pad)
{
    size_t      i;
    u_char      block[NGX_HTTP_CAPTURE_REDACT_BLOCK];
    ngx_uint_t  rc;

    ngx_memzero(block, sizeof(block));

    if (key->len > sizeof(block)) {
        if (!EVP_Digest(key->data, key->len, block, NULL, EVP_sha256(), NULL)) {
            return 0;
        }

    } else {
        ngx_memcpy(block, key->data, key->len);
    }

    for (i = 0; i < sizeof(block); i++) {
        block[i] ^= pad;
    }

    rc = EVP_DigestInit_ex(ctx, EVP_sha256(), NULL)
         && EVP_DigestUpdate(ctx, block, sizeof(block));

    ngx_explicit_memzero(block, sizeof(block));

    return rc;
}


/* The state of a JSON body's redaction; NULL: out of memory. */

ngx_http_capture_json_t *
ngx_http_capture_redact_body(ngx_http_request_t *r,
    ngx_http_capture_ctx_t *ctx, ngx_uint_t certain, ngx_uint_t lines)
{
    ngx_http_capture_json_t       *json;
    ngx_http_capture_main_conf_t  *cmcf;

    json = ngx_palloc(r->pool, sizeof(ngx_http_capture_json_t));
    if (json == NULL) {
        return NULL;
    }

    ngx_http_capture_json_init(json, ctx->conf->redact_json, certain, lines);

    cmcf = ngx_http_get_module_main_conf(r, ngx_http_capture_module);

    if (cmcf->redact_key.len) {
        json->hash = ngx_http_capture_redact_hash;
        json->data = &cmcf->redact_key;
    }

    return json;
}


/* Bytes of a body, to be written redacted; each piece is a chunk. */

void
ngx_http_capture_redact_data(ngx_http_capture_ctx_t *ctx, ngx_uint_t type,
    ngx_http_capture_json_t *json, u_char *data, size_t len,
    ngx_uint_t chunked)
{
    size_t         n, size;
    static u_char  out[NGX_HTTP_CAPTURE_REDACT_PIECE
                       + NGX_HTTP_CAPTURE_JSON_PENDING];

    for ( /* void */ ; len; data += n, len -= n) {
        n = ngx_min(len, NGX_HTTP_CAPTURE_REDACT_PIECE);

        size = ngx_http_capture_json_next(json, out, data, n);

        if (chunked) {
            ngx_http_capture_chunk(ctx, type, out, size);

        } else {
            ngx_http_capture_data(ctx, type, out, size);
        }
    }

    ngx_http_capture_redact_tally(json);
}


/* The body has ended: what was kept back of it. */

void
ngx_http_capture_redact_end(ngx_http_capture_ctx_t *ctx, ngx_uint_t type,
    ngx_http_capture_json_t *json, ngx_uint_t chunked)
{
    size_t  size;
    u_char  out[NGX_HTTP_CAPTURE_JSON_PENDING];

    size = ngx_http_capture_json_end(json, out);

    if (chunked) {
        ngx_http_capture_chunk(ctx, type, out, size);

    } else {
        ngx_http_capture_data(ctx, type, out, size);
    }

    ngx_http_capture_redact_tally(json);
}


static void
ngx_http_capture_redact_tally(ngx_http_capture_json_t *json)
{
    ngx_http_capture_count_redact(CAP_REDACT_JSON, json->values);
    ngx_http_capture_count_redact(CAP_REDACT_UNHASHED, json->unhashed);
    ngx_http_capture_count_redact(CAP_REDACT_MALFORMED, json->malformed);

    json->values = 0;
    json->unhashed = 0;
    json->malformed = 0;
}
