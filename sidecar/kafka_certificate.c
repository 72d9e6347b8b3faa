/* When the client's certificate expires, for a metric and a warning. */
#include <inttypes.h>
#include <openssl/pem.h>
#include <openssl/pkcs12.h>
#include <openssl/x509.h>
#include <string.h>
#include <time.h>

#include "sidecar/kafka_internal.h"

#define DAY 86400
#define WARN_DAYS 14

static X509 *read_pem(BIO *in) {
    return in != NULL ? PEM_read_bio_X509(in, NULL, NULL, NULL) : NULL;
}

static X509 *read_pkcs12(BIO *in, const char *password) {
    PKCS12 *p = in != NULL ? d2i_PKCS12_bio(in, NULL) : NULL;
    EVP_PKEY *key = NULL;
    X509 *x = NULL;
    if (p != NULL)
        PKCS12_parse(p, password, &key, &x, NULL);
    EVP_PKEY_free(key);
    PKCS12_free(p);
    return x;
}

/* The client's certificate, however it is given; NULL: there is none. */
static X509 *configured(const config *c) {
    const char *file = config_kafka(c, "ssl.certificate.location"),
               *pem = config_kafka(c, "ssl.certificate.pem"),
               *store = config_kafka(c, "ssl.keystore.location");
    BIO *in = file != NULL    ? BIO_new_file(file, "r")
              : pem != NULL   ? BIO_new_mem_buf(pem, -1)
              : store != NULL ? BIO_new_file(store, "r")
                              : NULL;
    X509 *x = file != NULL || pem != NULL
                  ? read_pem(in)
                  : read_pkcs12(in, config_kafka(c, "ssl.keystore.password"));
    BIO_free(in);
    return x;
}

uint64_t kafka_certificate_note(const config *c) {
    char of[CONFIG_NAME_SIZE + 8];
    struct tm tm;
    X509 *x = configured(c);
    uint64_t at = 0;
    if (x == NULL)
        return 0;
    config_of_destination(c, of, sizeof(of));
    if (ASN1_TIME_to_tm(X509_get0_notAfter(x), &tm) == 1) {
        int64_t expires = timegm(&tm), left = expires - (int64_t)time(NULL);
        at = (uint64_t)expires;
        if (left < 0)
            log_warn("kafka: the client's certificate%s expired %" PRId64
                     " days ago: replace it, then HUP",
                     of, -left / DAY);
        else if (left < WARN_DAYS * DAY)
            log_warn("kafka: the client's certificate%s expires in %" PRId64
                     " days: replace it, then HUP",
                     of, left / DAY);
    }
    X509_free(x);
    return at;
}
