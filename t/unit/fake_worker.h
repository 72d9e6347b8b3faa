/*
 * A worker for tests: makes a pool as the module does, writes frames into
 * it, takes back what the sidecar returns.  It keeps the rules; a test that
 * wants one broken writes into the memory itself.
 */
#ifndef T_UNIT_FAKE_WORKER_H
#define T_UNIT_FAKE_WORKER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "wire/frame.h"
#include "wire/layout.h"

typedef struct {
    int fd; /* the sealed memfd */
    cap_header *header;
    cap_geometry g;
    uint32_t *free_blocks; /* stack */
    uint32_t nfree;
    uint32_t *block_generation, *slot_generation; /* odd: lent */
    int block;                                    /* in work, or -1 */
    uint32_t at;
    uint32_t ring_tail, return_head;
    uint64_t seq;
    int64_t ts_ns; /* of the next frame; raised by 1 us each */
    unsigned slots_back, blocks_back; /* returned so far */
    uint16_t topic;                   /* of slots that are taken */
} fake_worker;

/* A pool of `nblocks` blocks. */
fake_worker *fake_worker_new(uint32_t nblocks, uint32_t nslots);
void fake_worker_free(fake_worker *w);

/* Appends a destination's name; its number in slots. */
unsigned fake_topic(fake_worker *w, const char *name);

/* Takes a slot, for w->topic, for a connection with this id. */
void fake_take_slot(fake_worker *w, uint32_t slot, const char *id);

/* Writes a frame; false: no block is free.  READ with CAP_FRAME_BEGIN counts
   as seen and handed. */
bool fake_frame(fake_worker *w, uint32_t slot, unsigned type, unsigned flags,
                unsigned code, const void *data, size_t len);

/* Makes what was written readable; seal: and begins another block. */
void fake_publish(fake_worker *w);
void fake_seal(fake_worker *w);

/* Takes what was returned; fails the test on a return that must not be. */
void fake_collect(fake_worker *w);

/* What is done before a HELLO: what is written is published, what came back is
   taken, and a successor can find its way. */
void fake_offer(fake_worker *w);

/* Short forms, published at once. */
void fake_read(fake_worker *w, uint32_t slot, unsigned flags, const char *s);
void fake_eom(fake_worker *w, uint32_t slot, unsigned flags);
void fake_write(fake_worker *w, uint32_t slot, const char *s);
void fake_end(fake_worker *w, uint32_t slot, unsigned code);
void fake_control(fake_worker *w, uint32_t slot, unsigned type, unsigned code);
/* READ EOM WRITE END */
void fake_exchange(fake_worker *w, uint32_t slot, const char *request,
                   const char *response);

#endif
