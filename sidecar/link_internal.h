/* Between the files of the link stage: link.c, turns and ends; link_socket.c, where
   workers come; link_hello.c, the handshake; link_adopt.c, pools that have had an
   owner; link_move.c, to the spool; link_count.c, what became of exchanges. */
#ifndef SIDECAR_LINK_INTERNAL_H
#define SIDECAR_LINK_INTERNAL_H

#include <sys/queue.h>
#include <sys/types.h>

#include "sidecar/link.h"
#include "sidecar/log.h"
#include "sidecar/pool.h"
#include "sidecar/pool_file.h"
#include "wire/hello.h"

#define MS 1000000ll

/* When the pool of a worker that has gone is moved to the spool, and how long
   after a failure that is tried again. */
#define MOVE_NS (1000 * MS)
#define MOVE_AGAIN_NS (5000 * MS)

enum peer_state { ACCEPTED, LINKED, ENDING, FINISHING };

typedef struct peer {
    links *links;
    enum peer_state state;
    loop_io sock; /* fd -1: closed */
    loop_io bell;
    loop_timer hello;
    uid_t uid;
    pid_t pid; /* for log lines only */
    pool *pool;
    assemble *assemble;
    int64_t read_ns;            /* when something was read last */
    enum cap_reason end_reason; /* of what it never published */
    int64_t move_ns;            /* to the spool: when it is due */
    pool_file *moving;          /* or NULL */
    TAILQ_ENTRY(peer) all;
} peer;

struct links {
    const config *config;
    loop *loop;
    ledger *ledger;
    spool *spool;     /* or NULL */
    keeper *keeper;   /* or NULL */
    journal *journal; /* or NULL */
    loop_io listener; /* fd -1: closed */
    loop_timer accept_again;
    int lock;
    bool draining;
    unsigned npeers;
    uint64_t pool_bytes;
    TAILQ_HEAD(, peer) peers;
    totals *totals;            /* or NULL: */
    metrics_exchanges retired; /* pools that are gone */
    log_limiter log_refused, log_bad, log_accept, log_move;
};

#define OWNER(ptr, type, member)                                               \
    ((type *)(void *)((char *)(ptr)-offsetof(type, member)))

/* link.c */

/* Without a socket, in the list.  NULL: out of memory. */
peer *link_new_peer(links *ls);
void link_free_peer(peer *p);
/* Of pools' memory that is mapped. */
void link_count_bytes(links *ls, uint64_t added, uint64_t gone);
/* The link is over: nobody rings, nothing goes back. */
void link_end(peer *p, enum peer_state next);
/* As links_has, of all peers `but` one. */
enum links_pool link_find_pool(const links *ls, const peer *but,
                               uint64_t device, uint64_t inode,
                               const char *node_id);
void link_sock_ready(loop_io *io, uint32_t events);
void link_bell_ready(loop_io *io, uint32_t events);

/* link_socket.c */

/* -1 after a line in the log. */
int link_take_lock(const char *path);
/* -1 with errno. */
int link_open_listener(const links *ls);
void link_stop_listening(links *ls);
void link_listener_ready(loop_io *io, uint32_t events);
void link_accept_again(loop_timer *timer);

/* link_hello.c */

/* Of a descriptor that was accepted. */
void link_add_peer(links *ls, int fd);
/* Its first message is there. */
void link_greet(peer *p);
void link_hello_late(loop_timer *timer);

/* link_adopt.c */

/* What p->pool needs around it; NULL, or why it must not be read. */
const char *link_furnish(peer *p, enum cap_refusal *code);
/* The pool has had an owner before us, which is dead. */
const char *link_adopt(peer *p);
/* At the keeper. */
void link_keep(const peer *p, int fd);
void link_unkeep(const peer *p);

/* link_move.c */

bool link_may_move(const peer *p);
/* 0: it is there; 1: more is to do; -1: not now. */
int link_move(peer *p);
/* When it is to be looked at again, in ns. */
int64_t link_finishing_turn(peer *p);

/* link_count.c */

/* A pool goes, and what is pending in it with it. */
void link_count_gone(links *ls, const pool *p, enum cap_reason reason);

#endif
