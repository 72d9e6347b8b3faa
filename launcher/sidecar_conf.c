#include "launcher/nginx_conf.h"

#include <inttypes.h>
#include <string.h>

#include "sidecar/config.h"

static void put_kafka(const settings *s, const conf_options *c, FILE *out) {
    for (size_t i = 0; i < s->nkafka; i++) {
        bool hide = c->print && config_is_secret(s->kafka[i].name);
        fprintf(out, "kafka.%s = %s\n", s->kafka[i].name,
                hide ? "(not shown)" : s->kafka[i].value);
    }
    if (s->msk)
        fputs("token.source = aws-msk-iam\n", out);
    if (s->ca_pem != NULL)
        fprintf(out, "kafka.ssl.ca.location = %s/kafka-ca.pem\n", c->run);
    if (s->cert_pem != NULL)
        fprintf(out, "kafka.ssl.certificate.location = %s/kafka-cert.pem\n",
                c->run);
    if (s->key_pem != NULL)
        fprintf(out, "kafka.ssl.key.location = %s/kafka-key.pem\n", c->run);
}

void sidecar_conf_write(const settings *s, const conf_options *c, FILE *out) {
    /* NGINX gets three fifths of the time; a second is for ending */
    int64_t drain = s->shutdown_ms * 2 / 5;
    drain = drain > 2000 ? drain - 1000 : drain / 2;

    fprintf(out,
            "# made by capture-proxy\n"
            "listen = unix:%s/sidecar.sock\n"
            "listen.mode = 0600\n",
            c->run);
    if (c->user != NULL)
        fprintf(out, "listen.owner = %s\n", c->user);
    fprintf(out,
            "topic = %s\n"
            "record.size = %" PRId64 "\n"
            "drain.time = %" PRId64 "ms\n",
            s->topic, s->record_size, drain);
    if (s->metrics_listen != NULL)
        fprintf(out, "metrics.listen = %s\n", s->metrics_listen);
    if (s->otlp_endpoint != NULL)
        fprintf(out, "otlp.endpoint = %s\n", s->otlp_endpoint);
    if (s->output == TO_DIRECTORY)
        fprintf(out,
                "export.path = %s\n"
                "export.format = protocap\n"
                "export.size = 1024g\n",
                s->directory);
    else
        put_kafka(s, c, out);
}
