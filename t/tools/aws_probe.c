/*
 * AWS's credentials and signatures alone: a token for a time that is given, the
 * container's endpoint that the environment names, and the credentials that the
 * chain finds (the lines access, secret, session, expiry, or why not).
 *
 *   aws-probe token REGION SECONDS AGENT ACCESS SECRET [SESSION]
 *   aws-probe container
 *   aws-probe credentials REGION [profile]
 */
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "sidecar/aws_sigv4.h"
#include "sidecar/fetch.h"

static int show_credentials(const char *region, bool profile) {
    const aws_query q = {.provider = profile ? AWS_PROFILE : AWS_CHAIN,
                         .region = region,
                         .timeout_ms = 10000};
    aws_credentials c;
    char why[1024];
    fetch_init();
    int rc = aws_credentials_get(&q, &c, why, sizeof(why));
    if (rc == 0)
        printf("%s\n%s\n%s\n%lld\n", c.access_key, c.secret_key,
               c.session_token != NULL ? c.session_token : "",
               (long long)c.expires_s);
    else
        printf("%s\n", why);
    aws_credentials_free(&c);
    return rc == 0 ? 0 : 1;
}

int main(int argc, char **argv) {
    char why[256] = "";
    char *text;
    if (argc >= 3 && strcmp(argv[1], "credentials") == 0)
        return show_credentials(argv[2], argc == 4);
    if (argc == 2 && strcmp(argv[1], "container") == 0) {
        text = aws_container_url(why, sizeof(why));
    } else if (argc == 7 || argc == 8) {
        const aws_credentials c = {.access_key = argv[5],
                                   .secret_key = argv[6],
                                   .session_token = argv[7]};
        text = aws_msk_token(&c, argv[2], atol(argv[3]), argv[4]);
    } else {
        return 2;
    }
    printf("%s\n", text != NULL ? text : why);
    aws_free(text);
    return 0;
}
