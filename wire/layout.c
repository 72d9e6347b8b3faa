#include "wire/layout.h"

#include "wire/frame.h"

static uint64_t align_to(uint64_t n, uint64_t to) {
    return (n + to - 1) / to * to;
}

static uint32_t power_of_two(uint32_t n) {
    uint32_t p = 1;

    while (p < n) {
        p <<= 1;
    }
    return p;
}

int cap_topic_name_good(const char *name, size_t len) {
    for (size_t i = 0; i < len; i++) {
        char c = name[i];

        if (!(c >= 'a' && c <= 'z') && !(c >= 'A' && c <= 'Z') &&
            !(c >= '0' && c <= '9') && c != '.' && c != '_' && c != '-') {
            return 0;
        }
    }
    return len > 0 && len < CAP_TOPIC_NAME_SIZE;
}

/* The layout that nblocks and nslots have: there is only one. */
static void place(cap_geometry *g, uint32_t nblocks, uint32_t nslots) {
    g->nblocks = nblocks;
    g->nslots = nslots;
    g->ring_size = power_of_two(nblocks);
    g->return_size = power_of_two(nblocks + nslots);
    g->slots_at = CAP_HEADER_SIZE;
    g->intents_at =
        align_to(g->slots_at + (uint64_t)nslots * sizeof(cap_slot), 64);
    g->ring_at =
        align_to(g->intents_at + (uint64_t)nslots * sizeof(cap_intent), 64);
    g->returns_at = g->ring_at + (uint64_t)g->ring_size * 8;
    g->blocks_at =
        align_to(g->returns_at + (uint64_t)g->return_size * 8, CAP_HEADER_SIZE);
    g->total = g->blocks_at + (uint64_t)nblocks * CAP_BLOCK_SIZE;
}

int cap_layout_make(cap_geometry *g, uint64_t bytes, uint32_t nslots) {
    uint64_t nblocks = bytes / CAP_BLOCK_SIZE;

    if (nslots == 0 || nslots > CAP_MAX_SLOTS) {
        return -1;
    }
    if (nblocks > CAP_MAX_BLOCKS) {
        nblocks = CAP_MAX_BLOCKS;
    }
    for (; nblocks >= CAP_MIN_BLOCKS; nblocks--) {
        place(g, (uint32_t)nblocks, nslots);
        if (g->total <= bytes) {
            return 0;
        }
    }
    return -1;
}

const char *cap_layout_check(const cap_geometry *g, uint64_t mapped) {
    cap_geometry want;

    if (g->nblocks < CAP_MIN_BLOCKS || g->nblocks > CAP_MAX_BLOCKS) {
        return "number of blocks out of range";
    }
    if (g->nslots == 0 || g->nslots > CAP_MAX_SLOTS) {
        return "number of slots out of range";
    }
    place(&want, g->nblocks, g->nslots);
    if (g->ring_size != want.ring_size || g->return_size != want.return_size) {
        return "ring sizes do not fit the number of blocks and slots";
    }
    if (g->slots_at != want.slots_at || g->intents_at != want.intents_at ||
        g->ring_at != want.ring_at || g->returns_at != want.returns_at ||
        g->blocks_at != want.blocks_at || g->total != want.total) {
        return "offsets do not fit the number of blocks and slots";
    }
    if (want.total > mapped) {
        return "the memory is smaller than its layout";
    }
    return NULL;
}

const char *cap_frame_check(const cap_frame *f, size_t left, uint64_t seq,
                            uint32_t nslots) {
    if (f->type < CAP_FRAME_READ || f->type > CAP_FRAME_HOLD) {
        return "unknown frame type";
    }
    if (f->size > CAP_BLOCK_SIZE || CAP_FRAME_SPACE(f->size) > left) {
        return "frame reaches past the published bytes";
    }
    if (f->seq != seq) {
        return "frame out of sequence";
    }
    if (f->type == CAP_FRAME_PAD) {
        return NULL;
    }
    if (f->slot >= nslots) {
        return "slot out of range";
    }
    if (f->type == CAP_FRAME_EOM && f->size != sizeof(cap_eom)) {
        return "endOfMessage of a wrong size";
    }
    if ((f->type == CAP_FRAME_READ || f->type == CAP_FRAME_WRITE) &&
        f->size == 0) {
        return "data frame without data";
    }
    return NULL;
}
