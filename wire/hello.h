/*
 * Messages on the Unix socket (SOCK_SEQPACKET, so a read is a message).
 *
 *   worker                                   sidecar
 *     | HELLO  + [pool memfd, doorbell socket]   |
 *     |----------------------------------------->|  maps, checks
 *     |                      WELCOME | REFUSE    |
 *     |<-----------------------------------------|
 *     |                (hang-up = the other side is gone)
 *
 * The bytes never cross the socket.  The doorbell is one end of a socket pair
 * (with an eventfd each side could make the other block).  The worker sends a
 * byte when reader_state asks for it (layout.h); the sidecar, when frames that
 * a client waits for (frame.h: WAIT, HOLD) are acknowledged or given up.
 */
#ifndef WIRE_HELLO_H
#define WIRE_HELLO_H

#include <stdint.h>

#define CAP_HELLO_MAGIC 0x31704143u /* "CAp1" */

enum cap_message_kind { CAP_HELLO = 1, CAP_WELCOME = 2, CAP_REFUSE = 3 };

enum cap_refusal {
    CAP_REFUSED_VERSION = 1, /* retry: the other side may be upgraded */
    CAP_REFUSED_LAYOUT = 2,
    CAP_REFUSED_USER = 3,
    CAP_REFUSED_LIMIT = 4 /* too many links */
};

/* The order of the descriptors that come with HELLO. */
enum { CAP_FD_POOL, CAP_FD_DOORBELL, CAP_FD_COUNT };

#define CAP_TEXT_SIZE 160u

typedef struct {
    uint32_t magic;
    uint16_t kind;
    uint16_t version;         /* CAP_WIRE_VERSION of the sender */
    uint32_t code;            /* REFUSE: cap_refusal */
    uint32_t pid;             /* HELLO: for log lines only */
    uint64_t generation;      /* WELCOME: the owner's */
    char text[CAP_TEXT_SIZE]; /* REFUSE: terminated, for a log line */
} cap_message;

#endif
