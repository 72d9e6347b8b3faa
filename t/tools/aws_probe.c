/*
 * sidecar/aws_sigv4.c alone: a token for a time that is given, and the
 * container's endpoint that the environment names.
 *
 *   aws-probe token REGION SECONDS AGENT ACCESS SECRET [SESSION]
 *   aws-probe container
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "sidecar/aws_sigv4.h"

int main(int argc, char **argv) {
    char why[256] = "";
    char *text;
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
