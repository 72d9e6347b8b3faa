/*
 * sidecar/pool: frames come out as they were written, blocks go back exactly
 * once and not before they may, and nothing that the other side writes makes
 * it read outside its memory.
 */
#define _GNU_SOURCE /* memfd_create, seals */
#include <check.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include "sidecar/pool.h"
#include "t/unit/fake_worker.c"

static fake_worker *w;
static pool *p;
static pool_frame f;

static void open_pool(void) {
    const char *why;

    w = fake_worker_new(8, 4);
    p = pool_open(w->fd, UINT64_MAX, &why);
    ck_assert_msg(p != NULL, "%s", why);
    ck_assert_uint_eq(pool_own(p), 1);
    fake_take_slot(w, 0, "a");
}

static void close_pool(void) {
    pool_free(p);
    fake_worker_free(w);
}

static cap_block *block_in_work(void) {
    return cap_block_at(w->header, &w->g, (uint32_t)w->block);
}

static cap_frame *frame_at(uint32_t at) {
    return (cap_frame *)(void *)((char *)block_in_work() + at);
}

static void refused(int fd, uint64_t limit, const char *words) {
    const char *why;

    ck_assert_ptr_null(pool_open(fd, limit, &why));
    ck_assert_msg(strstr(why, words) != NULL, "\"%s\"", why);
}

START_TEST(frames_come_in_order_with_their_payload) {
    frame_ref *r;

    ck_assert_int_eq(pool_read(p, &f), 0);
    fake_read(w, 0, CAP_FRAME_BEGIN, "GET / HTTP/1.1\r\n\r\n");
    fake_eom(w, 0, CAP_FRAME_WAIT);
    fake_frame(w, 0, CAP_FRAME_WRITE, 0, 0, "unpublished", 11);

    ck_assert_int_eq(pool_read(p, &f), 1);
    ck_assert_uint_eq(f.head.type, CAP_FRAME_READ);
    ck_assert_uint_eq(f.head.seq, 1);
    r = pool_hold(p, &f);
    ck_assert_uint_eq(r->size, 18);
    ck_assert_int_eq(memcmp(pool_payload(p, r), "GET / HTTP/1.1\r\n\r\n", 18),
                     0);
    ck_assert_int_eq(pool_read(p, &f), 1);
    ck_assert_uint_eq(f.head.flags, CAP_FRAME_WAIT);
    ck_assert_int_eq(pool_read(p, &f), 0);
    fake_publish(w);
    ck_assert_int_eq(pool_read(p, &f), 1);
    ck_assert_uint_eq(f.head.type, CAP_FRAME_WRITE);
    pool_release(p, r);
}
END_TEST

START_TEST(a_pad_is_passed_over) {
    fake_control(w, 3, CAP_FRAME_PAD, 99);
    fake_read(w, 0, CAP_FRAME_BEGIN, "x");
    ck_assert_int_eq(pool_read(p, &f), 1);
    ck_assert_uint_eq(f.head.seq, 2);
    ck_assert_int_eq(pool_read(p, &f), 0);
}
END_TEST

START_TEST(a_block_goes_back_when_it_is_sealed_read_and_not_held) {
    frame_ref *r;

    fake_read(w, 0, CAP_FRAME_BEGIN, "x");
    ck_assert_int_eq(pool_read(p, &f), 1);
    r = pool_hold(p, &f);
    pool_release(p, r);
    fake_collect(w);
    ck_assert_uint_eq(w->blocks_back, 0); /* more may come in it */

    fake_read(w, 0, 0, "y");
    ck_assert_int_eq(pool_read(p, &f), 1);
    r = pool_hold(p, &f);
    fake_seal(w);
    ck_assert_int_eq(pool_read(p, &f), 0);
    fake_collect(w);
    ck_assert_uint_eq(w->blocks_back, 0); /* held */
    ck_assert_uint_eq(p->held, 1);

    pool_release(p, r);
    fake_collect(w);
    ck_assert_uint_eq(w->blocks_back, 1);
    ck_assert_uint_eq(p->held, 0);
}
END_TEST

/* With the worker's fence between `starved` and its look at the returns, that
   is all that no wake is lost. */
START_TEST(a_block_that_goes_back_wakes_a_worker_that_is_starved) {
    for (uint32_t starved = 0; starved <= 1; starved++) {
        atomic_store(&w->header->starved, starved);
        fake_read(w, 0, starved == 0 ? CAP_FRAME_BEGIN : 0, "x");
        fake_seal(w);
        ck_assert_int_eq(pool_read(p, &f), 1);
        ck_assert(!p->rings);
        ck_assert_int_eq(pool_read(p, &f), 0);
        fake_collect(w);
        ck_assert_uint_eq(w->blocks_back, starved + 1);
        ck_assert_int_eq(p->rings, starved != 0);
    }
}
END_TEST

START_TEST(blocks_go_round_for_ever) {
    char data[3000];

    memset(data, 'd', sizeof(data));
    for (unsigned i = 0; i < 5000; i++) {
        ck_assert(fake_frame(w, 0, CAP_FRAME_READ, 0, 0, data, i % 3000 + 1));
        fake_publish(w);
        ck_assert_int_eq(pool_read(p, &f), 1);
        ck_assert_uint_eq(f.head.seq, i + 1);
        pool_release(p, pool_hold(p, &f));
    }
    ck_assert_uint_gt(w->blocks_back, 50);
}
END_TEST

START_TEST(memory_for_a_burst_is_given_back) {
    frame_ref *held[6000];
    unsigned n = 0;

    while (n < 6000) {
        fake_frame(w, 0, CAP_FRAME_READ, 0, 0, "x", 1);
        fake_publish(w);
        ck_assert_int_eq(pool_read(p, &f), 1);
        held[n++] = pool_hold(p, &f);
    }
    ck_assert_uint_eq(p->nslabs, 6);
    while (n > 0) {
        pool_release(p, held[--n]);
    }
    ck_assert_uint_eq(p->nslabs, 0);
    fake_frame(w, 0, CAP_FRAME_READ, 0, 0, "x", 1);
    fake_publish(w);
    ck_assert_int_eq(pool_read(p, &f), 1);
    pool_release(p, pool_hold(p, &f));
    ck_assert_uint_eq(p->nslabs, 1);
}
END_TEST

START_TEST(nothing_goes_back_twice_or_to_a_closed_pool) {
    pool_return_slot(p, 0, w->slot_generation[0]);
    fake_collect(w);
    ck_assert_uint_eq(w->slots_back, 1);
    fake_read(w, 0, CAP_FRAME_BEGIN, "x");
    fake_seal(w);
    ck_assert_int_eq(pool_read(p, &f), 1);
    pool_close(p);
    ck_assert_int_eq(pool_read(p, &f), 0);
    ck_assert_uint_eq(p->held, 0);
    pool_return_slot(p, 1, 1);
    ck_assert_uint_eq(atomic_load(&w->header->return_tail), 1);
}
END_TEST

START_TEST(another_owner_stops_this_one) {
    fake_read(w, 0, CAP_FRAME_BEGIN, "x");
    fake_seal(w);
    ck_assert_int_eq(pool_read(p, &f), 1);
    ck_assert(pool_owned(p));
    atomic_fetch_add(&w->header->owner_generation, 1);
    ck_assert_int_eq(pool_read(p, &f), 0);
    ck_assert_uint_eq(atomic_load(&w->header->return_tail), 0);
    atomic_fetch_sub(&w->header->owner_generation, 1);
    ck_assert(!pool_owned(p));
}
END_TEST

START_TEST(counters_are_shown_and_not_read_back) {
    pool_count_taken(p);
    pool_count_taken(p);
    pool_count_taken(p);
    pool_count_captured(p, true);
    atomic_store(&w->header->sidecar.captured, 1000000);
    pool_count_captured(p, false);
    pool_count_reason(p, CAP_RULE);
    pool_count_record(p, 77);
    ck_assert_uint_eq(atomic_load(&w->header->sidecar.taken), 3);
    ck_assert_uint_eq(atomic_load(&w->header->sidecar.captured), 2);
    ck_assert_uint_eq(atomic_load(&w->header->sidecar.truncated), 1);
    ck_assert_uint_eq(atomic_load(&w->header->sidecar.open), 0);
    ck_assert_uint_eq(atomic_load(&w->header->sidecar.reason[CAP_RULE]), 1);
    ck_assert_uint_eq(atomic_load(&w->header->sidecar.bytes), 77);
}
END_TEST

/* ---- the descriptor ---- */

START_TEST(memory_that_could_shrink_is_refused) {
    int fd = memfd_create("x", MFD_ALLOW_SEALING);

    ck_assert_int_eq(ftruncate(fd, (off_t)w->g.total), 0);
    refused(fd, UINT64_MAX, "sealed");
    ck_assert_int_eq(fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW), 0);
    refused(fd, UINT64_MAX, "sealed");
    ck_assert_int_eq(fcntl(fd, F_ADD_SEALS, F_SEAL_SEAL), 0);
    refused(fd, UINT64_MAX, "no pool's header");
    close(fd);
}
END_TEST

START_TEST(other_descriptors_are_refused) {
    int ends[2];
    int null = open("/dev/null", O_RDWR);

    ck_assert_int_eq(pipe(ends), 0);
    refused(ends[0], UINT64_MAX, "memfd");
    refused(null, UINT64_MAX, "memfd");
    refused(-1, UINT64_MAX, "memfd");
    close(ends[0]);
    close(ends[1]);
    close(null);
}
END_TEST

START_TEST(a_pool_over_the_limit_is_refused) {
    refused(w->fd, w->g.total - 1, "limit");
}
END_TEST

START_TEST(a_header_that_lies_is_refused) {
    w->header->magic++;
    refused(w->fd, UINT64_MAX, "header");
    w->header->magic--;
    w->header->version++;
    refused(w->fd, UINT64_MAX, "version");
    w->header->version--;
    w->header->geometry.nblocks++;
    refused(w->fd, UINT64_MAX, "do not fit");
    w->header->geometry.nblocks--;
    w->header->node_id[35] = '\n';
    refused(w->fd, UINT64_MAX, "nodeId");
    /* a file has this name, once its worker has gone */
    memcpy(w->header->node_id, "..//././././././././././././././blocks",
           CAP_NODE_ID_SIZE);
    refused(w->fd, UINT64_MAX, "nodeId");
}
END_TEST

/* ---- frames and blocks that break a rule ---- */

/* The pool is bad for good, and says why. */
static void broken(const char *words) {
    ck_assert_int_eq(pool_read(p, &f), -1);
    ck_assert_msg(strstr(p->bad, words) != NULL, "\"%s\"", p->bad);
    ck_assert_int_eq(pool_read(p, &f), -1);
    ck_assert(!pool_unread(p));
}

static void publish_value(uint32_t value) {
    atomic_store(&block_in_work()->published, value);
}

START_TEST(an_impossible_published_length_is_bad) {
    static const uint32_t values[] = {
        0, 63, 56, CAP_BLOCK_SIZE + 8, 0x7fffffff, 0xffffffff, 100};

    fake_frame(w, 0, CAP_FRAME_READ, CAP_FRAME_BEGIN, 0, "x", 1);
    publish_value(values[_i]);
    broken("published length");
}
END_TEST

START_TEST(a_published_length_that_shrinks_is_bad) {
    fake_read(w, 0, CAP_FRAME_BEGIN, "x");
    fake_eom(w, 0, 0);
    ck_assert_int_eq(pool_read(p, &f), 1);
    ck_assert_int_eq(pool_read(p, &f), 1);
    publish_value(CAP_BLOCK_HEADER);
    broken("shrank");
}
END_TEST

START_TEST(a_header_at_the_very_end_is_not_read_past_it) {
    /* the last block of the mapping: a byte more would be a fault */
    w->free_blocks[0] = 0;
    w->free_blocks[w->nfree - 1] = w->g.nblocks - 1;
    fake_frame(w, 0, CAP_FRAME_READ, CAP_FRAME_BEGIN, 0, "x", 1);
    frame_at(CAP_BLOCK_HEADER)->size =
        CAP_BLOCK_SIZE - CAP_BLOCK_HEADER - sizeof(cap_frame) - 8;
    publish_value(CAP_BLOCK_SIZE);
    ck_assert_int_eq(pool_read(p, &f), 1);
    broken("cut");
}
END_TEST

START_TEST(a_frame_that_lies_is_bad) {
    cap_frame *x;

    fake_read(w, 0, CAP_FRAME_BEGIN, "x");
    x = frame_at(CAP_BLOCK_HEADER);
    switch (_i) {
    case 0:
        x->size = 2000000000;
        broken("reaches past");
        break;
    case 1:
        x->size = UINT32_MAX;
        broken("reaches past");
        break;
    case 2:
        x->size = 9;
        broken("reaches past");
        break;
    case 3:
        x->type = 0;
        broken("type");
        break;
    case 4:
        x->slot = 4;
        broken("slot");
        break;
    case 5:
        x->seq = 2;
        broken("sequence");
        break;
    case 6:
        x->type = CAP_FRAME_EOM;
        broken("endOfMessage");
        break;
    }
}
END_TEST

static void set_ring(uint32_t i, uint64_t entry, uint32_t tail) {
    atomic_store(cap_ring_at(w->header, &w->g, i), entry);
    atomic_store(&w->header->ring_tail, tail);
}

START_TEST(a_ring_that_lies_is_bad) {
    fake_read(w, 0, CAP_FRAME_BEGIN, "x");
    switch (_i) {
    case 0:
        set_ring(0, CAP_RING_ENTRY(1, 8), 1);
        broken("block out of range");
        break;
    case 1:
        set_ring(0, CAP_RING_ENTRY(3, (uint32_t)w->block), 1);
        broken("generation");
        break;
    case 2:
        set_ring(1, 0, 100);
        p->ring_head = 50;
        broken("ring's end");
        break;
    case 3: /* the same block again while a frame of it is held */
        ck_assert_int_eq(pool_read(p, &f), 1);
        pool_hold(p, &f);
        set_ring(1, CAP_RING_ENTRY(1, (uint32_t)w->block), 2);
        fake_seal(w);
        broken("twice");
        break;
    }
}
END_TEST

/* Garbage everywhere: any result is right but a fault. */
START_TEST(random_memory_never_faults) {
    unsigned seed = (unsigned)_i;

    for (unsigned round = 0; round < 50; round++) {
        unsigned frames = 0;
        const char *why;

        close_pool();
        w = fake_worker_new(8, 4);
        p = pool_open(w->fd, UINT64_MAX, &why);
        pool_own(p);
        for (unsigned i = 0; i < 40; i++) {
            char data[600];

            fake_frame(w, i % 4, i % 10, i, i, data, (size_t)(i * 7));
            fake_publish(w);
        }
        for (unsigned i = 0; i < 4; i++) {
            uint64_t at = (uint64_t)rand_r(&seed) % (w->g.total / 8);

            if (i < 2) {
                at = (w->g.blocks_at + (uint64_t)rand_r(&seed) % 8192) / 8;
            }
            ((uint32_t *)w->header)[at * 2 + (at & 1)] =
                (uint32_t)rand_r(&seed) >> (rand_r(&seed) % 32);
        }
        while (frames < 1000 && pool_read(p, &f) == 1) {
            frame_ref *r = pool_hold(p, &f);
            volatile char sum = 0; /* reads every byte */

            for (uint32_t i = 0; i < r->size; i++) {
                sum += ((const char *)pool_payload(p, r))[i];
            }
            (void)sum;
            if (frames++ % 2) {
                pool_release(p, r);
            }
        }
    }
}
END_TEST

/* ---- waking ---- */

START_TEST(a_reader_goes_to_sleep_only_over_an_empty_pool) {
    ck_assert(!pool_sleep(p, CAP_READER_ASLEEP));
    ck_assert_uint_eq(atomic_load(&w->header->reader_state), CAP_READER_ASLEEP);
    fake_read(w, 0, CAP_FRAME_BEGIN, "x");
    ck_assert(pool_sleep(p, CAP_READER_NAPPING));
    ck_assert_uint_eq(atomic_load(&w->header->reader_state), CAP_READER_AWAKE);
    ck_assert_int_eq(pool_read(p, &f), 1);
    ck_assert(!pool_sleep(p, CAP_READER_NAPPING));

    /* a seal alone is nothing to read, the next block is */
    fake_seal(w);
    ck_assert_int_eq(pool_read(p, &f), 0);
    ck_assert(!pool_sleep(p, CAP_READER_ASLEEP));
    fake_read(w, 0, 0, "y");
    ck_assert(pool_sleep(p, CAP_READER_ASLEEP));
}
END_TEST

#define STRESS_FRAMES 300000u

/* As the module: publish, fence, look; returns only when all are written. */
static void *stress_worker(void *arg) {
    _Atomic unsigned *bells = arg;

    for (unsigned i = 0; i < STRESS_FRAMES;) {
        if (!fake_frame(w, 0, CAP_FRAME_WRITE, 0, 0, &i, sizeof(i))) {
            continue; /* full: the reader returns blocks */
        }
        i++;
        fake_publish(w);
        atomic_thread_fence(memory_order_seq_cst);
        if (atomic_load_explicit(&w->header->reader_state,
                                 memory_order_relaxed) == CAP_READER_ASLEEP) {
            atomic_store_explicit(&w->header->reader_state, CAP_READER_AWAKE,
                                  memory_order_relaxed);
            atomic_fetch_add(bells, 1);
        }
    }
    return NULL;
}

/* A lost wake would leave the reader waiting for a bell for ever. */
START_TEST(no_wake_is_lost_and_no_frame_torn) {
    _Atomic unsigned bells = 0;
    unsigned heard = 0, next = 0;
    pthread_t thread;

    ck_assert_int_eq(pthread_create(&thread, NULL, stress_worker, &bells), 0);
    while (next < STRESS_FRAMES) {
        while (pool_read(p, &f) == 1) {
            frame_ref *r = pool_hold(p, &f);
            unsigned value;

            memcpy(&value, pool_payload(p, r), sizeof(value));
            ck_assert_uint_eq(value, next);
            next++;
            pool_release(p, r);
        }
        ck_assert_ptr_null(p->bad);
        if (next == STRESS_FRAMES || pool_sleep(p, CAP_READER_ASLEEP)) {
            continue;
        }
        while (atomic_load(&bells) == heard) {
            sched_yield();
        }
        heard = atomic_load(&bells);
    }
    pthread_join(thread, NULL);
}
END_TEST

int main(void) {
    Suite *s = suite_create("pool");
    TCase *t = tcase_create("reading");
    SRunner *sr;
    int failed;

    tcase_add_checked_fixture(t, open_pool, close_pool);
    tcase_add_test(t, frames_come_in_order_with_their_payload);
    tcase_add_test(t, a_pad_is_passed_over);
    tcase_add_test(t, a_block_goes_back_when_it_is_sealed_read_and_not_held);
    tcase_add_test(t, a_block_that_goes_back_wakes_a_worker_that_is_starved);
    tcase_add_test(t, blocks_go_round_for_ever);
    tcase_add_test(t, memory_for_a_burst_is_given_back);
    tcase_add_test(t, nothing_goes_back_twice_or_to_a_closed_pool);
    tcase_add_test(t, another_owner_stops_this_one);
    tcase_add_test(t, counters_are_shown_and_not_read_back);
    suite_add_tcase(s, t);

    t = tcase_create("bad input");
    tcase_add_checked_fixture(t, open_pool, close_pool);
    tcase_add_test(t, memory_that_could_shrink_is_refused);
    tcase_add_test(t, other_descriptors_are_refused);
    tcase_add_test(t, a_pool_over_the_limit_is_refused);
    tcase_add_test(t, a_header_that_lies_is_refused);
    tcase_add_loop_test(t, an_impossible_published_length_is_bad, 0, 7);
    tcase_add_test(t, a_published_length_that_shrinks_is_bad);
    tcase_add_test(t, a_header_at_the_very_end_is_not_read_past_it);
    tcase_add_loop_test(t, a_frame_that_lies_is_bad, 0, 7);
    tcase_add_loop_test(t, a_ring_that_lies_is_bad, 0, 4);
    tcase_add_loop_test(t, random_memory_never_faults, 0, 20);
    suite_add_tcase(s, t);

    t = tcase_create("waking");
    tcase_add_checked_fixture(t, open_pool, close_pool);
    tcase_set_timeout(t, 60);
    tcase_add_test(t, a_reader_goes_to_sleep_only_over_an_empty_pool);
    tcase_add_test(t, no_wake_is_lost_and_no_frame_torn);
    suite_add_tcase(s, t);

    sr = srunner_create(s);
    srunner_run_all(sr, CK_NORMAL);
    failed = srunner_ntests_failed(sr);
    srunner_free(sr);
    return failed == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
