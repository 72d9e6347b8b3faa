#define _GNU_SOURCE 1 /* strcasestr */

#include "launcher/nginx_conf.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

/* A word in quotes.  `plain` is without variables: in NGINX a $ cannot be
   escaped, so that it comes out of a variable of its own. */
static void put_quoted(FILE *out, const char *text, bool plain) {
    fputc('"', out);
    for (; *text != '\0'; text++) {
        if (*text == '"' || *text == '\\')
            fputc('\\', out);
        if (*text == '$' && plain)
            fputs("${dollar}", out);
        else
            fputc(*text, out);
    }
    fputc('"', out);
}

static void directive(FILE *out, int indent, const char *name,
                      const char *value) {
    fprintf(out, "%*s%s ", indent, "", name);
    put_quoted(out, value, false);
    fputs(";\n", out);
}

/* ---- pieces of http ---- */

static void put_temp_paths(const settings *s, const conf_options *c,
                           FILE *out) {
    static const char *const modules[] = {"fastcgi", "uwsgi", "scgi"};
    char without[64];
    fprintf(out, "    client_body_temp_path %s/temp-client;\n", c->run);
    fprintf(out, "    proxy_temp_path %s/temp-proxy;\n", c->run);
    for (size_t i = 0; i < sizeof(modules) / sizeof(*modules); i++) {
        snprintf(without, sizeof(without), "--without-http_%s_module",
                 modules[i]);
        if (s->nginx_v == NULL || strstr(s->nginx_v, without) == NULL)
            fprintf(out, "    %s_temp_path %s/temp-%s;\n", modules[i], c->run,
                    modules[i]);
    }
    fputc('\n', out);
}

static void put_maps(const settings *s, FILE *out) {
    for (size_t i = 0; i < s->nsuppress; i++) {
        fprintf(out, "    map \"%s\" $capture_suppressed_%zu {\n",
                s->suppress[i].variable, i + 1);
        /* as a whole; where there is no such header a map tries none */
        fputs("        \"~\\\\A(?:", out);
        for (const char *p = s->suppress[i].pattern; *p != '\0'; p++) {
            if (*p == '"' || *p == '\\')
                fputc('\\', out);
            fputc(*p, out);
        }
        fputs(")\\\\z\" 1;\n    }\n\n", out);
    }
    fputs("    map $http_upgrade $source_connection {\n"
          "        default upgrade;\n"
          "        \"\"      \"\";\n"
          "    }\n\n",
          out);
}

static void put_dollar(const settings *s, FILE *out) {
    for (size_t i = 0; i < s->nheaders; i++)
        if (strchr(s->headers[i].value, '$') != NULL) {
            fputs("    geo $dollar {\n        default \"$\";\n    }\n\n", out);
            return;
        }
}

static void put_addresses(const settings *s, const char *addresses, FILE *out) {
    bool v6;
    while (*addresses != '\0') {
        size_t n = strcspn(addresses, " ");
        v6 = memchr(addresses, ':', n) != NULL;
        fprintf(out, "        server %s%.*s%s:%d;\n", v6 ? "[" : "", (int)n,
                addresses, v6 ? "]" : "", s->port);
        addresses += n;
        addresses += strspn(addresses, " ");
    }
}

void nginx_conf_upstream(const settings *s, const char *addresses, FILE *out) {
    fputs("    upstream source {\n", out);
    if (addresses == NULL)
        addresses = s->host;
    if (*addresses == '\0')
        fputs("        # its name cannot be resolved yet: 502\n"
              "        server 127.0.0.1:9 down;\n",
              out);
    else
        put_addresses(s, addresses, out);
    fprintf(out,
            "        keepalive %" PRId64 ";\n"
            "        keepalive_requests 1000000000;\n"
            "        keepalive_time %" PRId64 "ms;\n"
            "        keepalive_timeout %" PRId64 "ms;\n"
            "    }\n",
            s->pool_size, s->pool_ms, s->pool_ms);
}

/* ---- the servers ---- */

static void put_tls(const settings *s, const conf_options *c, FILE *out) {
    char path[4200];
    if (s->cert == NULL)
        return;
    directive(out, 8, "ssl_certificate", s->cert);
    directive(out, 8, "ssl_certificate_key", s->key);
    fputs("        ssl_protocols TLSv1.2 TLSv1.3;\n"
          "        ssl_session_cache shared:tls:10m;\n",
          out);
    if (s->trust == NULL && s->trust_pem == NULL)
        return;
    snprintf(path, sizeof(path), "%s/clients.pem", c->run);
    directive(out, 8, "ssl_client_certificate",
              s->trust != NULL ? s->trust : path);
    fprintf(out, "        ssl_verify_client %s;\n        ssl_verify_depth 8;\n",
            s->client_auth ? "on" : "optional");
}

static const char *authorities(void) {
    const char *file = getenv("SSL_CERT_FILE");
    return file != NULL && *file != '\0' ? file
                                         : "/etc/ssl/certs/ca-certificates.crt";
}

static void put_source_tls(const settings *s, FILE *out) {
    if (!s->tls_source)
        return;
    fprintf(out,
            "            proxy_ssl_server_name %s;\n"
            "            proxy_ssl_protocols TLSv1.2 TLSv1.3;\n",
            s->host_is_address ? "off" : "on");
    directive(out, 12, "proxy_ssl_name", s->host);
    if (!s->verify_source) {
        fputs("            proxy_ssl_verify off;\n", out);
        return;
    }
    fputs("            proxy_ssl_verify on;\n"
          "            proxy_ssl_verify_depth 8;\n",
          out);
    directive(out, 12, "proxy_ssl_trusted_certificate", authorities());
}

static bool is_set(const settings *s, const char *name) {
    for (size_t i = 0; i < s->nheaders; i++)
        if (strcasecmp(s->headers[i].name, name) == 0)
            return true;
    return false;
}

static bool header_is_secret(const char *name) {
    static const char *const words[] = {"authorization", "cookie",   "token",
                                        "secret",        "password", "key"};
    for (size_t i = 0; i < sizeof(words) / sizeof(*words); i++)
        if (strcasestr(name, words[i]) != NULL)
            return true;
    return false;
}

/* What the client sent goes on as it is, but for what NGINX would change. */
static void put_headers(const settings *s, const conf_options *c, FILE *out) {
    static const char *const own[][2] = {{"Host", "$http_host"},
                                         {"Upgrade", "$http_upgrade"},
                                         {"Connection", "$source_connection"}};
    for (size_t i = 0; i < sizeof(own) / sizeof(*own); i++)
        if (!is_set(s, own[i][0]))
            fprintf(out, "            proxy_set_header %s %s;\n", own[i][0],
                    own[i][1]);
    for (size_t i = 0; i < s->nheaders; i++) {
        bool hide = c->print && header_is_secret(s->headers[i].name);
        fprintf(out, "            proxy_set_header %s ", s->headers[i].name);
        put_quoted(out, hide ? "(not shown)" : s->headers[i].value, true);
        fputs(";\n", out);
    }
}

/* As with the Java proxy: mutating requests wait until Kafka has them, and
   after 10 s go on without. */
static void put_waiting(FILE *out) {
    fputs("            capture_wait mutating;\n"
          "            capture_wait_timeout 10s;\n"
          "            capture_on_failure forward;\n",
          out);
}

static void put_capture(const settings *s, FILE *out) {
    if (s->output == TO_NOWHERE)
        return;
    fputs("            capture on;\n", out);
    put_waiting(out);
    if (s->nsuppress > 0) {
        fputs("            capture_bypass", out);
        for (size_t i = 0; i < s->nsuppress; i++)
            fprintf(out, " $capture_suppressed_%zu", i + 1);
        fputs(";\n", out);
    }
    fputc('\n', out);
}

static void put_location(const settings *s, const conf_options *c, FILE *out) {
    fputs("        location / {\n", out);
    put_capture(s, out);
    fprintf(out,
            "            proxy_pass %s://source;\n"
            "            proxy_http_version 1.1;\n"
            "            proxy_redirect off;\n\n",
            s->tls_source ? "https" : "http");
    fputs("            # bodies of any size pass through as they come\n"
          "            proxy_request_buffering off;\n"
          "            proxy_buffering off;\n"
          "            proxy_buffer_size 64k;\n"
          "            proxy_buffers 4 64k;\n"
          "            proxy_max_temp_file_size 0;\n\n"
          "            # no time limit but the source's and the client's own\n"
          "            proxy_connect_timeout 30s;\n"
          "            proxy_read_timeout 24h;\n"
          "            proxy_send_timeout 24h;\n\n"
          "            # each request is forwarded once, also when its client "
          "has left\n"
          "            proxy_next_upstream off;\n"
          "            proxy_ignore_client_abort on;\n\n"
          "            # what the source says is for the client, not for "
          "NGINX\n"
          "            proxy_ignore_headers X-Accel-Redirect X-Accel-Expires\n"
          "                X-Accel-Limit-Rate X-Accel-Buffering "
          "X-Accel-Charset\n"
          "                Expires Cache-Control Set-Cookie Vary;\n",
          out);
    static const char *const pass[] = {"Server",
                                       "Date",
                                       "X-Pad",
                                       "X-Accel-Redirect",
                                       "X-Accel-Expires",
                                       "X-Accel-Limit-Rate",
                                       "X-Accel-Buffering",
                                       "X-Accel-Charset"};
    for (size_t i = 0; i < sizeof(pass) / sizeof(*pass); i++)
        fprintf(out, "            proxy_pass_header %s;\n", pass[i]);
    fputc('\n', out);
    put_headers(s, c, out);
    put_source_tls(s, out);
    fputs("        }\n", out);
}

static void put_listen(const settings *s, const conf_options *c, FILE *out) {
    const char *tls = s->cert != NULL ? " ssl" : "";
    if (c->check)
        fprintf(out, "        listen unix:%s/check.sock%s;\n", c->run, tls);
    else
        fprintf(out, "        listen %s%d%s%s so_keepalive=on backlog=4096;\n",
                c->ipv6 ? "[::]:" : "", s->listen_port,
                c->ipv6 ? " ipv6only=off" : "", tls);
}

static void put_server(const settings *s, const conf_options *c, FILE *out) {
    fputs("    server {\n", out);
    put_listen(s, c, out);
    put_tls(s, c, out);
    fputc('\n', out);
    put_location(s, c, out);
    fputs("    }\n", out);
}

static void put_status(const settings *s, const conf_options *c, FILE *out) {
    if (s->status_listen == NULL || s->output == TO_NOWHERE || c->check)
        return;
    fprintf(out,
            "\n    server {\n        listen %s;\n\n"
            "        location = /capture_status {\n"
            "            capture off;\n"
            "            capture_status;\n"
            "        }\n\n"
            "        location / {\n"
            "            return 404;\n"
            "        }\n"
            "    }\n",
            s->status_listen);
}

static void put_http(const settings *s, const conf_options *c, FILE *out) {
    fputs("http {\n", out);
    if (s->output != TO_NOWHERE)
        fprintf(out,
                "    capture_sidecar unix:%s/sidecar.sock;\n"
                "    capture_buffer %s;\n\n",
                c->run, s->capture_buffer);
    fputs("    access_log off;\n"
          "    server_tokens off;\n\n"
          "    # what the Java proxy lets through\n"
          "    client_max_body_size 0;\n"
          "    client_header_timeout 24h;\n"
          "    client_body_timeout 24h;\n"
          "    send_timeout 24h;\n"
          "    keepalive_timeout 24h;\n"
          "    keepalive_time 365d;\n"
          "    keepalive_requests 1000000000;\n"
          "    large_client_header_buffers 16 64k;\n"
          "    underscores_in_headers on;\n"
          "    ignore_invalid_headers off;\n\n",
          out);
    put_temp_paths(s, c, out);
    put_dollar(s, out);
    put_maps(s, out);
    if (c->print)
        nginx_conf_upstream(s, NULL, out);
    else
        fprintf(out, "    include %s/source.conf;\n", c->run);
    fputc('\n', out);
    put_server(s, c, out);
    put_status(s, c, out);
    fputs("}\n", out);
}

void nginx_conf_write(const settings *s, const conf_options *c, FILE *out) {
    fputs("# made by capture-proxy\n", out);
    if (s->output != TO_NOWHERE)
        directive(out, 0, "load_module", s->module);
    if (c->user != NULL)
        fprintf(out, "user %s %s;\n", c->user, c->group);
    fprintf(out,
            "daemon off;\n"
            "pid %s/nginx.pid;\n"
            "error_log stderr warn;\n"
            "worker_processes %d;\n"
            "worker_shutdown_timeout 1h;\n"
            "pcre_jit on;\n\n"
            "events {\n"
            "    worker_connections %ld;\n"
            "}\n\n",
            c->run, s->workers, c->connections);
    put_http(s, c, out);
}
