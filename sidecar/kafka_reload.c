/*
 * HUP: secrets and certificates may have changed.  A user's name and password
 * go to the producer that runs; anything else needs another one, which is made
 * when the records of this one are reported.
 */
#define _GNU_SOURCE 1 /* open_memstream */

#include <openssl/evp.h>
#include <stdlib.h>
#include <string.h>

#include "sidecar/kafka_internal.h"

/* ---- whether anything has changed ---- */

static void add_file(EVP_MD_CTX *hash, const char *path) {
    unsigned char buffer[4096];
    size_t n;
    FILE *in = fopen(path, "re");
    while (in != NULL && (n = fread(buffer, 1, sizeof(buffer), in)) > 0)
        EVP_DigestUpdate(hash, buffer, n);
    if (in != NULL)
        fclose(in);
    OPENSSL_cleanse(buffer, sizeof(buffer));
}

/* What can be given to a producer that runs is left out. */
static bool is_live(const char *name) {
    return strcmp(name, "sasl.username") == 0 ||
           strcmp(name, "sasl.password") == 0;
}

void kafka_fingerprint(const config *c, unsigned char *into) {
    EVP_MD_CTX *hash = EVP_MD_CTX_new();
    memset(into, 0, KAFKA_FINGERPRINT);
    if (hash == NULL || EVP_DigestInit_ex(hash, EVP_sha256(), NULL) != 1) {
        EVP_MD_CTX_free(hash);
        return;
    }
    for (size_t i = 0; i < c->nkafka; i++) {
        const config_property *p = &c->kafka[i];
        if (is_live(p->name))
            continue;
        EVP_DigestUpdate(hash, p->value, strlen(p->value) + 1);
        /* keys, certificates, key stores */
        if (strncmp(p->name, "ssl.", 4) == 0 &&
            strstr(p->name, ".location") != NULL)
            add_file(hash, p->value);
    }
    EVP_DigestFinal_ex(hash, into, NULL);
    EVP_MD_CTX_free(hash);
}

/* ---- what is done about it ---- */

static void give_credentials(kafka *k) {
    const char *user = config_kafka(k->c, "sasl.username"),
               *password = config_kafka(k->c, "sasl.password");
    if (k->rk == NULL || user == NULL || password == NULL)
        return;
    rd_kafka_error_t *error =
        rd_kafka_sasl_set_credentials(k->rk, user, password);
    if (error != NULL)
        log_error("kafka%s: the new password is not taken: %s", k->of,
                  rd_kafka_error_string(error));
    rd_kafka_error_destroy(error);
}

/* Whether a producer can be made of what is there now; says why not. */
static bool usable(const kafka *k) {
    char *text = NULL;
    size_t len;
    FILE *err = open_memstream(&text, &len);
    if (err == NULL)
        return false;
    bool yes = kafka_check(k->c, err) == 0;
    fclose(err);
    if (!yes) {
        log_mask(text, len + 1);
        log_error("kafka%s: the producer stays as it was: %s", k->of, text);
    }
    free(text);
    return yes;
}

void kafka_reload(kafka *k) {
    unsigned char now[KAFKA_FINGERPRINT];
    give_credentials(k);
    kafka_fingerprint(k->c, now);
    if (memcmp(now, k->fingerprint, sizeof(now)) == 0 || !usable(k))
        return;
    log_info("kafka%s: certificates or properties have changed: the producer "
             "is made anew",
             k->of);
    k->reloading = true;
    kafka_restart(k);
    if (k->refused)
        kafka_hurry(k);
}
