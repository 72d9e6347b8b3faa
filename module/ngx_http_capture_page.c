
/*
 * The forms of capture_status: JSON for programs, a page for people, text for
 * Prometheus.  Only numbers and names of ours are written; nothing that a
 * client has sent.
 */


#include "ngx_http_capture_status.h"
#include "ngx_http_capture_metrics.h"


static u_char *ngx_http_capture_page_json(u_char *p, u_char *last,
    ngx_http_capture_page_t *page);
static u_char *ngx_http_capture_page_json_row(u_char *p, u_char *last,
    ngx_http_capture_row_t *row);
static u_char *ngx_http_capture_page_json_reasons(u_char *p, u_char *last,
    const char *name, enum cap_class class, ngx_http_capture_row_t *row);
static u_char *ngx_http_capture_page_json_cells(u_char *p, u_char *last,
    const char *name, const char *(*cell_name)(unsigned cell),
    uint64_t *cells);

static u_char *ngx_http_capture_page_html(u_char *p, u_char *last,
    ngx_http_capture_page_t *page);
static u_char *ngx_http_capture_page_html_verdict(u_char *p, u_char *last,
    ngx_http_capture_page_t *page);
static u_char *ngx_http_capture_page_html_row(u_char *p, u_char *last,
    ngx_http_capture_row_t *row, const char *who);
static u_char *ngx_http_capture_page_html_reasons(u_char *p, u_char *last,
    const char *title, enum cap_class class, ngx_http_capture_row_t *row);
static u_char *ngx_http_capture_page_html_waits(u_char *p, u_char *last,
    ngx_http_capture_row_t *row);

static u_char *ngx_http_capture_page_metrics(u_char *p, u_char *last,
    ngx_http_capture_page_t *page);
static u_char *ngx_http_capture_page_metrics_labels(u_char *p, u_char *last,
    const char *name, ngx_http_capture_row_t *row);

static uint64_t ngx_http_capture_page_sum(ngx_http_capture_row_t *row,
    enum cap_class class);


/* The first is what is answered unless another one is asked for. */

static ngx_http_capture_format_t  ngx_http_capture_formats[] = {

    { ngx_string("json"),
      ngx_null_string,
      ngx_string("application/json"),
      ngx_http_capture_page_json },

    { ngx_string("html"),
      ngx_string("text/html"),
      ngx_string("text/html; charset=utf-8"),
      ngx_http_capture_page_html },

    { ngx_string("prometheus"),
      ngx_string("application/openmetrics-text"),
      ngx_string("text/plain; version=0.0.4; charset=utf-8"),
      ngx_http_capture_page_metrics },

    { ngx_null_string, ngx_null_string, ngx_null_string, NULL }
};


ngx_http_capture_format_t *
ngx_http_capture_page_format(ngx_http_request_t *r)
{
    ngx_str_t                   arg;
    ngx_uint_t                  i;
    ngx_list_part_t            *part;
    ngx_table_elt_t            *h;
    ngx_http_capture_format_t  *f;

    if (ngx_http_arg(r, (u_char *) "format", 6, &arg) == NGX_OK) {

        for (f = ngx_http_capture_formats; f->write; f++) {
            if (arg.len == f->name.len
                && ngx_strncmp(arg.data, f->name.data, arg.len) == 0)
            {
                return f;
            }
        }

        return NULL;
    }

    /* NGINX keeps no pointer to Accept unless some module wants it */

    part = &r->headers_in.headers.part;
    h = part->elts;

    for (i = 0; /* void */ ; i++) {

        if (i >= part->nelts) {
            if (part->next == NULL) {
                return &ngx_http_capture_formats[0];
            }

            part = part->next;
            h = part->elts;
            i = 0;
        }

        if (h[i].key.len != 6
            || ngx_strncasecmp(h[i].key.data, (u_char *) "Accept", 6) != 0)
        {
            continue;
        }

        for (f = &ngx_http_capture_formats[1]; f->write; f++) {
            if (ngx_strcasestrn(h[i].value.data, (char *) f->accept.data,
                                f->accept.len - 1))
            {
                return f;
            }
        }
    }
}


static uint64_t
ngx_http_capture_page_sum(ngx_http_capture_row_t *row, enum cap_class class)
{
    uint64_t    sum;
    ngx_uint_t  i;

    sum = 0;

    for (i = 0; i < CAP_REASON_CELLS; i++) {
        if (cap_reason_class(i) == class) {
            sum += row->reason[i];
        }
    }

    return sum;
}


static u_char *
ngx_http_capture_page_json(u_char *p, u_char *last,
    ngx_http_capture_page_t *page)
{
    ngx_uint_t               i;
    ngx_http_capture_row_t  *row;

    p = ngx_slprintf(p, last, "{\"version\":\"" NGX_HTTP_CAPTURE_VERSION
                     "\",\"sidecar\":\"unix:%V\",\"worker_processes\":%i,"
                     "\"old_master\":%P,\"strangers\":[",
                     &page->sidecar, page->worker_processes,
                     page->old_master);

    for (i = 0; i < page->nstrangers; i++) {
        p = ngx_slprintf(p, last, "%s%P", i ? "," : "", page->strangers[i]);
    }

    p = ngx_slprintf(p, last, "],\"workers\":[");

    for (i = 0; i < page->nrows; i++) {
        row = &page->rows[i];

        p = ngx_slprintf(p, last, "%s{\"pid\":%P,\"generation\":%uL,"
                         "\"linked\":%s,\"uncaptured\":%uL,"
                         "\"excluded\":%uL,"
                         "\"blocks\":%uL,\"blocks_used\":%uL,",
                         i ? "," : "", row->pid, row->generation,
                         row->linked ? "true" : "false",
                         row->uncaptured, row->excluded,
                         row->blocks, row->blocks_used);
        p = ngx_http_capture_page_json_row(p, last, row);
    }

    p = ngx_slprintf(p, last, "],\"exited\":{");
    p = ngx_http_capture_page_json_row(p, last, &page->exited);

    p = ngx_slprintf(p, last, ",\"total\":{");
    p = ngx_http_capture_page_json_row(p, last, &page->total);

    return ngx_slprintf(p, last, "}" CRLF);
}


static u_char *
ngx_http_capture_page_json_row(u_char *p, u_char *last,
    ngx_http_capture_row_t *row)
{
    p = ngx_slprintf(p, last, "\"seen\":%uL,\"captured\":%uL,"
                     "\"truncated\":%uL,\"maybe_doubled\":%uL,"
                     "\"pending\":%uL,",
                     row->seen, row->captured, row->truncated, row->doubled,
                     row->pending);

    p = ngx_http_capture_page_json_reasons(p, last, "filtered",
                                           CAP_CLASS_FILTERED, row);
    p = ngx_http_capture_page_json_reasons(p, last, "lost", CAP_CLASS_LOST,
                                           row);
    p = ngx_http_capture_page_json_cells(p, last, "waits", cap_wait_name,
                                         row->wait);
    p = ngx_http_capture_page_json_cells(p, last, "redacted", cap_redact_name,
                                         row->redact);

    return ngx_slprintf(p, last, "\"connections\":%uL,\"bytes\":%uL,"
                        "\"doorbells\":%uL,\"left\":%uL,\"untold\":%uL}",
                        row->connections, row->bytes, row->doorbells,
                        row->left, row->untold);
}


static u_char *
ngx_http_capture_page_json_reasons(u_char *p, u_char *last, const char *name,
    enum cap_class class, ngx_http_capture_row_t *row)
{
    ngx_uint_t  i, n;

    p = ngx_slprintf(p, last, "\"%s\":{", name);

    for (i = 0, n = 0; i < CAP_REASON_CELLS; i++) {
        if (cap_reason_class(i) == class) {
            p = ngx_slprintf(p, last, "%s\"%s\":%uL", n++ ? "," : "",
                             cap_reason_name(i), row->reason[i]);
        }
    }

    return ngx_slprintf(p, last, "},");
}


static u_char *
ngx_http_capture_page_json_cells(u_char *p, u_char *last, const char *name,
    const char *(*cell_name)(unsigned cell), uint64_t *cells)
{
    ngx_uint_t  i;

    p = ngx_slprintf(p, last, "\"%s\":{", name);

    for (i = 0; cell_name(i); i++) {
        p = ngx_slprintf(p, last, "%s\"%s\":%uL", i ? "," : "",
                         cell_name(i), cells[i]);
    }

    return ngx_slprintf(p, last, "},");
}


#define NGX_HTTP_CAPTURE_HTML_HEAD                                            \
    "<!DOCTYPE html>" CRLF                                                    \
    "<html lang=\"en\"><head><meta charset=\"utf-8\">" CRLF                   \
    "<meta name=\"viewport\" content=\"width=device-width\">" CRLF            \
    "<meta http-equiv=\"refresh\" content=\"5\">" CRLF                        \
    "<title>Capture</title><style>" CRLF                                      \
    "body{font:16px/1.5 sans-serif;margin:2em auto;max-width:60em;"           \
    "padding:0 1em;color:#222;background:#fff}" CRLF                          \
    "table{border-collapse:collapse;margin:1em 0}" CRLF                       \
    "th,td{padding:.2em .8em;text-align:right;border-bottom:1px solid #ddd}"  \
    CRLF                                                                      \
    "th:first-child,td:first-child{text-align:left}" CRLF                     \
    "p.verdict{padding:.6em 1em;border-left:.5em solid #2a7}" CRLF            \
    "p.bad,td.bad{background:#fde8e4;border-left-color:#c22}" CRLF            \
    "p.bad{font-weight:bold}" CRLF                                            \
    "</style></head><body>" CRLF


static u_char *
ngx_http_capture_page_html(u_char *p, u_char *last,
    ngx_http_capture_page_t *page)
{
    u_char                   who[NGX_INT64_LEN + sizeof("worker ")];
    ngx_uint_t               i;
    ngx_http_capture_row_t  *row;

    p = ngx_slprintf(p, last, "%s", NGX_HTTP_CAPTURE_HTML_HEAD "<h1>Capture"
                     "</h1>" CRLF);
    p = ngx_http_capture_page_html_verdict(p, last, page);

    p = ngx_slprintf(p, last, "<table><thead><tr><th></th><th>linked</th>"
                     "<th>seen</th><th>captured</th><th>filtered</th>"
                     "<th>lost</th><th>pending</th><th>pool</th></tr></thead>"
                     "<tbody>" CRLF);

    for (i = 0; i < page->nrows; i++) {
        row = &page->rows[i];

        ngx_sprintf(who, "worker %P%Z", row->pid);

        p = ngx_http_capture_page_html_row(p, last, row, (char *) who);
    }

    p = ngx_http_capture_page_html_row(p, last, &page->exited,
                                       "workers that have ended");
    p = ngx_http_capture_page_html_row(p, last, &page->total, "all");
    p = ngx_slprintf(p, last, "</tbody></table>" CRLF);

    p = ngx_http_capture_page_html_reasons(p, last, "Lost", CAP_CLASS_LOST,
                                           &page->total);
    p = ngx_http_capture_page_html_reasons(p, last, "Filtered",
                                           CAP_CLASS_FILTERED, &page->total);
    p = ngx_http_capture_page_html_waits(p, last, &page->total);

    return ngx_slprintf(p, last, "<p>Version " NGX_HTTP_CAPTURE_VERSION
                        ". At any time seen = captured + filtered + lost + "
                        "pending; captured means that Kafka has acknowledged "
                        "it. <a href=\"?format=json\">JSON</a>, "
                        "<a href=\"?format=prometheus\">Prometheus</a></p>"
                        CRLF "</body></html>" CRLF);
}


/* What is to be seen at a glance, in words. */

static u_char *
ngx_http_capture_page_html_verdict(u_char *p, u_char *last,
    ngx_http_capture_page_t *page)
{
    uint64_t    lost;
    ngx_uint_t  bad;

    lost = ngx_http_capture_page_sum(&page->total, CAP_CLASS_LOST);
    bad = 0;

    if (page->nrows == 0) {
        p = ngx_slprintf(p, last, "<p class=\"verdict bad\">Nothing is captured"
                         ": no location has capture on.</p>" CRLF);
        bad = 1;
    }

    if (page->linked < page->nrows) {
        p = ngx_slprintf(p, last, "<p class=\"verdict bad\">%uL of %ui workers"
                         " have no sidecar: what they serve is lost.</p>" CRLF,
                         (uint64_t) page->nrows - page->linked, page->nrows);
        bad = 1;
    }

    if (lost) {
        p = ngx_slprintf(p, last, "<p class=\"verdict bad\">%uL exchanges are "
                         "lost: the target will not get them, or not all of "
                         "them.</p>" CRLF, lost);
        bad = 1;
    }

    if (page->nstrangers || page->old_master) {
        p = ngx_slprintf(p, last, "<p class=\"verdict bad\">%ui old workers "
                         "still serve connections without capture.</p>" CRLF,
                         page->nstrangers + (page->old_master != 0));
        bad = 1;
    }

    if (!bad) {
        p = ngx_slprintf(p, last, "<p class=\"verdict\">Every worker has its "
                         "sidecar, and nothing is lost.</p>" CRLF);
    }

    return p;
}


static u_char *
ngx_http_capture_page_html_row(u_char *p, u_char *last,
    ngx_http_capture_row_t *row, const char *who)
{
    uint64_t     lost;
    const char  *linked;

    lost = ngx_http_capture_page_sum(row, CAP_CLASS_LOST);
    linked = row->pid == 0 ? "<td></td>"
             : row->linked ? "<td>yes</td>" : "<td class=\"bad\">NO</td>";

    p = ngx_slprintf(p, last, "<tr><td>%s</td>%s<td>%uL</td><td>%uL</td>"
                     "<td>%uL</td><td%s>%uL</td><td>%uL</td>",
                     who, linked, row->seen, row->captured,
                     ngx_http_capture_page_sum(row, CAP_CLASS_FILTERED),
                     lost ? " class=\"bad\"" : "", lost, row->pending);

    if (row->blocks == 0) {
        return ngx_slprintf(p, last, "<td></td></tr>" CRLF);
    }

    return ngx_slprintf(p, last, "<td>%uL%% of %uL MiB</td></tr>" CRLF,
                        row->blocks_used * 100 / row->blocks,
                        row->blocks * CAP_BLOCK_SIZE >> 20);
}


static u_char *
ngx_http_capture_page_html_reasons(u_char *p, u_char *last, const char *title,
    enum cap_class class, ngx_http_capture_row_t *row)
{
    ngx_uint_t  i;

    if (ngx_http_capture_page_sum(row, class) == 0) {
        return p;
    }

    p = ngx_slprintf(p, last, "<h2>%s</h2><table><tbody>" CRLF, title);

    for (i = 0; i < CAP_REASON_CELLS; i++) {
        if (cap_reason_class(i) == class && row->reason[i]) {
            p = ngx_slprintf(p, last, "<tr><td>%s</td><td>%uL</td></tr>" CRLF,
                             cap_reason_name(i), row->reason[i]);
        }
    }

    return ngx_slprintf(p, last, "</tbody></table>" CRLF);
}


static u_char *
ngx_http_capture_page_html_waits(u_char *p, u_char *last,
    ngx_http_capture_row_t *row)
{
    ngx_uint_t  i;

    if (row->wait[CAP_WAIT_HELD] == 0 && row->wait[CAP_WAIT_SKIPPED] == 0) {
        return p;
    }

    p = ngx_slprintf(p, last, "<h2>Requests that wait</h2><table><tbody>"
                     CRLF);

    for (i = 0; cap_wait_name(i); i++) {
        p = ngx_slprintf(p, last, "<tr><td>%s</td><td>%uL</td></tr>" CRLF,
                         i == CAP_WAIT_TIME_MS ? "milliseconds, all together"
                                               : cap_wait_name(i),
                         row->wait[i]);
    }

    return ngx_slprintf(p, last, "</tbody></table>" CRLF);
}


static u_char *
ngx_http_capture_page_metrics(u_char *p, u_char *last,
    ngx_http_capture_page_t *page)
{
#define X(name, type, value, help)                                            \
    p = ngx_slprintf(p, last, "# HELP capture_nginx_%s %s\n"                  \
                     "# TYPE capture_nginx_%s %s\ncapture_nginx_%s %uL\n",    \
                     name, help, name, type, name, (uint64_t) (value));
    NGX_HTTP_CAPTURE_METRICS(X)
#undef X

#define X(name, type, value, help)                                            \
    p = ngx_slprintf(p, last, "# HELP capture_nginx_%s %s\n"                  \
                     "# TYPE capture_nginx_%s %s\n"                           \
                     "capture_nginx_%s %uL.%03uL\n", name, help, name, type,  \
                     name, (uint64_t) (value) / 1000,                         \
                     (uint64_t) (value) % 1000);
    NGX_HTTP_CAPTURE_MILLI_METRICS(X)
#undef X

#define X(name, label, help)                                                  \
    p = ngx_slprintf(p, last, "# HELP capture_nginx_%s %s\n"                  \
                     "# TYPE capture_nginx_%s counter\n", name, help, name);  \
    p = ngx_http_capture_page_metrics_labels(p, last, name, &page->total);
    NGX_HTTP_CAPTURE_LABELLED_METRICS(X)
#undef X

    return p;
}


/* Every reason, also at 0, so that a rate over it begins with its first. */

static u_char *
ngx_http_capture_page_metrics_labels(u_char *p, u_char *last,
    const char *name, ngx_http_capture_row_t *row)
{
    ngx_uint_t      i;
    enum cap_class  class;

    if (ngx_strcmp(name, "waits_total") == 0) {

        for (i = 0; cap_wait_name(i); i++) {
            if (i != CAP_WAIT_TIME_MS) {
                p = ngx_slprintf(p, last,
                                 "capture_nginx_%s{result=\"%s\"} %uL\n",
                                 name, cap_wait_name(i), row->wait[i]);
            }
        }

        return p;
    }

    class = ngx_strcmp(name, "exchanges_lost_total") == 0 ? CAP_CLASS_LOST
                                                          : CAP_CLASS_FILTERED;

    for (i = 0; i < CAP_REASON_CELLS; i++) {
        if (cap_reason_class(i) == class) {
            p = ngx_slprintf(p, last, "capture_nginx_%s{reason=\"%s\"} %uL\n",
                             name, cap_reason_name(i), row->reason[i]);
        }
    }

    return p;
}
