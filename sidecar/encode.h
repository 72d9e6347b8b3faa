/*
 * Frames as one record: the observations that each frame stands for.
 *
 *   READ   read                   DROP     requestDropped
 *   EOM    endOfMessage           ABANDON  connectionException, close
 *   WRITE  write                  CLOSE    close
 *   END    nothing; where the exchange was cut: as ABANDON
 *
 * Data may be split at any byte between two records; segments are never
 * needed.  What ends the connection is never split from its close.
 */
#ifndef SIDECAR_ENCODE_H
#define SIDECAR_ENCODE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "sidecar/conn.h"

/* Bytes of buffer with which a record takes all that is queued, if that is
   at most `limit`; else `limit`. */
size_t encode_size(const conn *c, size_t limit);

/* What of the queue is in a record. */
typedef struct {
    uint64_t first_seq, last_seq;
    uint32_t first_byte; /* of first_seq's payload */
    uint32_t last_byte;  /* of last_seq's payload, exclusive */
    uint32_t prior_requests;
    bool last; /* the connection ends in it */
} encode_span;

/*
 * Encodes the next record from c->send on (there must be one) and moves
 * c->send past what is in it.  Returns its length and sets *span; 0 when not
 * even one observation fits.
 */
size_t encode_record(conn *c, uint8_t *buf, size_t cap, uint32_t number,
                     encode_span *span);

#endif
