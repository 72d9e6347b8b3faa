/*
 * The sidecar dies, at any store, and the next one goes on with the worker's
 * memory: sidecar/pool, assemble, conn, ledger and settle between a fake worker
 * and a topic that stays.  A judge reads the topic at the end: all that the
 * worker wrote is there, once and in order, and the counters say just that.
 *
 * A death is a jump out of step() (sidecar/step.h), which only a build with
 * CAPTURE_KILL_POINTS has; without, it comes between two turns.
 */
#define _GNU_SOURCE /* memfd_create, in fake_worker.c */
#include <check.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "proto/decode.h"
#include "sidecar/assemble.h"
#include "sidecar/ledger.h"
#include "sidecar/metrics.h"
#include "sidecar/pool.h"
#include "sidecar/step.h"
#include "t/unit/fake_broker.c"
#include "t/unit/fake_loop.c"
#include "t/unit/fake_worker.c"

#define S 1000000000ll
#define MS 1000000ll
#define SLOTS 12
#define MOST_EXCHANGES 20000
#define MOST_CONNS 20000
#define MOST_DATA 8000

/* what dies leaves its memory behind */
const char *__asan_default_options(void);
const char *__asan_default_options(void) {
    return "detect_leaks=0";
}

static unsigned seed;

static unsigned dice(unsigned n) {
    return (unsigned)rand_r(&seed) % n;
}

/* A part will do without kill points, where owners die at rest alone. */
#if defined(CAPTURE_KILL_POINTS)
#define LOOPS(n) (n)
#else
#define LOOPS(n) ((n) / 3)
#endif

/* ---- what the worker has written ---- */

enum end { OPEN, COMPLETE, TRUNCATED, DROPPED, ABANDONED, FORGOTTEN };

typedef struct {
    unsigned conn;
    unsigned read, written; /* bytes */
    bool eom;
    enum end end;
    /* found in the topic */
    bool there, there_eom, there_dropped, there_whole;
    unsigned there_read, there_written;
    unsigned copies; /* of its request, to the end */
} exchange;

static exchange exchanges[MOST_EXCHANGES];
static unsigned nexchanges, nconns;
static bool strict; /* nothing may be lost */
static bool blind;  /* what is in doubt stays so: it is lost or doubled */

/* Byte `at` of a request ('Q') or response of exchange `e`. */
static char byte_of(unsigned e, char kind, unsigned at) {
    char head[16];

    snprintf(head, sizeof(head), "%c%07u", kind, e);
    return at < 8 ? head[at]
                  : (char)('0' + (e * 13 + (unsigned)kind + at) % 71);
}

static const char *bytes_of(unsigned e, char kind, unsigned at, unsigned n) {
    static char data[MOST_DATA + 1];

    for (unsigned i = 0; i < n; i++) {
        data[i] = byte_of(e, kind, at + i);
    }
    data[n] = '\0';
    return data;
}

static fake_worker *w;

/* Where connections go: the second destination, and one that is not permitted
   (which is so of the second, too, where not `strict`, now and then). */
enum { DEFAULT, SECOND, UNKNOWN };
static uint8_t topic_of[MOST_CONNS];

static struct {
    unsigned conn, exchange;
    enum { IDLE, REQUEST, WHOLE, CLOSED } phase;
} slots[SLOTS];

static unsigned a_size(void) {
    return dice(3) == 0 ? 1 + dice(MOST_DATA) : 8 + dice(100);
}

static void write_read(uint32_t i, unsigned flags) {
    exchange *x = &exchanges[slots[i].exchange];
    unsigned n = a_size();

    n = x->read == 0 && n < 8 ? 8 : n;
    fake_read(w, i, flags, bytes_of(slots[i].exchange, 'Q', x->read, n));
    x->read += n;
}

static void write_response(uint32_t i) {
    exchange *x = &exchanges[slots[i].exchange];
    unsigned n = a_size();

    fake_write(w, i, bytes_of(slots[i].exchange, 'S', x->written, n));
    x->written += n;
}

static void ends(uint32_t i, enum end end, int phase) {
    exchanges[slots[i].exchange].end = end;
    slots[i].phase = phase;
}

static void in_request(uint32_t i) {
    switch (dice(8)) {
    case 0:
        fake_control(w, i, CAP_FRAME_DROP, CAP_RULE);
        ends(i, DROPPED, IDLE);
        break;
    case 1:
        if (dice(3) == 0) {
            fake_control(w, i, CAP_FRAME_ABANDON, CAP_POOL_FULL);
            ends(i, ABANDONED, CLOSED);
        }
        break;
    case 2:
        if (dice(2) == 0) {
            fake_control(w, i, CAP_FRAME_HOLD, 0);
            fake_eom(w, i, CAP_FRAME_WAIT);
            exchanges[slots[i].exchange].eom = true;
            slots[i].phase = WHOLE;
            break;
        }
        /* fall through */
    case 3:
        write_read(i, 0);
        break;
    default:
        fake_eom(w, i, dice(4) == 0 ? CAP_FRAME_WAIT : 0);
        exchanges[slots[i].exchange].eom = true;
        slots[i].phase = WHOLE;
    }
}

static void in_response(uint32_t i) {
    const exchange *x = &exchanges[slots[i].exchange];

    switch (dice(12)) {
    case 0:
        fake_control(w, i, CAP_FRAME_ABANDON, CAP_RESPONSE);
        ends(i, ABANDONED, CLOSED);
        break;
    case 1:
    case 2:
        if (x->written == 0) { /* refused, after it was complete */
            fake_control(w, i, CAP_FRAME_DROP, CAP_RULE);
            ends(i, DROPPED, IDLE);
        }
        break;
    case 3:
        fake_end(w, i, CAP_END_TRUNCATED);
        ends(i, TRUNCATED, CLOSED);
        break;
    case 4:
    case 5:
    case 6:
    case 7:
        fake_end(w, i, CAP_END_COMPLETE);
        ends(i, COMPLETE, IDLE);
        break;
    default:
        write_response(i);
    }
}

static void open_slot(uint32_t i) {
    char id[24];

    if (slots[i].phase == REQUEST || slots[i].phase == WHOLE) {
        ends(i, FORGOTTEN, IDLE); /* the sidecar has abandoned it */
    }
    snprintf(id, sizeof(id), "r%u", ++nconns);
    w->topic = topic_of[nconns] = (uint8_t)dice(strict || blind ? 2 : 3);
    fake_take_slot(w, i, id);
    slots[i].conn = nconns;
    slots[i].phase = IDLE;
}

static void random_frame(uint32_t i) {
    fake_collect(w);
    if (!(w->slot_generation[i] & 1)) {
        open_slot(i);
    }
    if (w->nfree < 2) {
        return;
    }
    switch (slots[i].phase) {
    case IDLE:
        if (dice(12) == 0) {
            fake_control(w, i, CAP_FRAME_CLOSE, 0);
            slots[i].phase = CLOSED;
            break;
        }
        ck_assert_uint_lt(nexchanges, MOST_EXCHANGES);
        slots[i].exchange = nexchanges++;
        exchanges[slots[i].exchange] = (exchange){.conn = slots[i].conn};
        write_read(i, CAP_FRAME_BEGIN);
        slots[i].phase = REQUEST;
        break;
    case REQUEST:
        in_request(i);
        break;
    case WHOLE:
        in_response(i);
        break;
    default:
        break;
    }
}

static void random_frames(unsigned n) {
    for (unsigned i = 0; i < n; i++) {
        random_frame(dice(SLOTS));
    }
}

/* ---- a life ---- */

static config conf;
static loop *l;
static ledger *lg;
static pool *p;
static assemble *a;
static const char *why;
static jmp_buf grave;
static unsigned wanted, fuse; /* step and count of the next death; 0: none */
static unsigned deaths;
static bool orphan; /* the worker is dead */

#ifdef CAPTURE_KILL_POINTS
static unsigned died_at[STEP_COUNT];
static pthread_t loops; /* the thread that can jump */

/* At a death in another one: what outlives it is that of now, and the loop's
   thread dies at its next step. */
static void (*last_words)(void);
static _Atomic bool dead_aside;

void step_reached(enum step s) {
    bool here = pthread_equal(pthread_self(), loops) != 0;

    if (here && dead_aside) {
        dead_aside = false;
        longjmp(grave, 1);
    }
    if (fuse == 0 || s != wanted || --fuse > 0) {
        return;
    }
    died_at[s]++;
    if (here) {
        longjmp(grave, 1);
    }
    last_words();
    dead_aside = true;
}
#endif

static void balanced(void) {
    uint64_t sum = p->count.captured + p->count.open;

    for (unsigned i = 0; i < CAP_REASON_CELLS; i++) {
        sum += p->count.reason[i];
    }
    ck_assert_uint_eq(p->count.taken, sum);
}

/* As link.c does. */
static const char *begin_life(void) {
    memset(metrics_cell, 0, sizeof(metrics_cell));
    conf.ndestinations = strict || blind || dice(4) > 0;
    l = loop_new();
    lg = ledger_new(&conf, l, &assemble_events);
    p = pool_open(w->fd, UINT64_MAX, &why);
    ck_assert_ptr_nonnull(p);
    a = assemble_new(p, lg, l, S);
    why = NULL;
    if (pool_own(p) > 1) {
        if (orphan) {
            pool_orphan(p);
        }
        step(STEP_OWNED);
        why = pool_adopt(p);
        step(STEP_ADOPT_BLOCKS);
        why = why == NULL ? assemble_adopt(a) : why;
        step(STEP_ADOPTED);
    }
    return why;
}

/* As link.c does.  Why the link must end, or NULL. */
static const char *turn(void) {
    pool_frame f;
    enum cap_reason reason = CAP_NONE;
    int rc;

    assemble_turn(a);
    do {
        rc = pool_read(p, &f);
        if (assemble_adopting(a) && rc != -1 &&
            (rc == 0 || !pool_is_old(p, f.head.seq))) {
            assemble_adopted(a);
        }
        if (rc == 1) {
            reason = assemble_frame(a, &f, &why);
        }
    } while (rc == 1 && reason == CAP_NONE);
    if (rc == -1 || reason != CAP_NONE) {
        return rc == -1 ? p->bad : why != NULL ? why : "out of memory";
    }
    assemble_relieve(a);
    ledger_pump(lg);
    return NULL;
}

static kafka_result random_result(bool last) {
    unsigned n = dice(last ? 400 : 40);

    return n == 0 || n > 36
               ? (strict || blind || last ? KAFKA_ACKED : KAFKA_REJECTED)
           : n < 3 ? KAFKA_IN_DOUBT
           : n < 6 ? KAFKA_NOT_PERSISTED
                   : KAFKA_ACKED;
}

static void reports(bool last) {
    for (unsigned i = 0; i < broker.nsent;) {
        if (last || dice(2) == 0) {
            broker_report(i, random_result(last));
            ledger_pump(lg);
            balanced();
        } else {
            i++;
        }
    }
}

static void pass(int64_t ns) {
    fake_loop_advance(l, ns);
    ledger_pump(lg);
}

static void live(unsigned turns) {
    const char *bad = begin_life();

    ck_assert_msg(bad == NULL, "not adopted: %s", bad);
    random_frames(dice(10)); /* before the worker has its WELCOME */
    for (unsigned i = 0; i < turns; i++) {
        random_frames(dice(12));
        bad = turn();
        ck_assert_msg(bad == NULL, "the link ends: %s", bad);
        reports(false);
        broker_feed(1 + dice(40));
        pass(dice(3) * 40 * MS);
        balanced();
    }
}

/* Of the dead one; its heap stays, as what is on the way points into it. */
static void bury(void) {
    deaths++;
    fuse = 0;
    broker_producer_died();
    if (p != NULL) {
        munmap(p->header, p->mapped);
        p = NULL;
    }
    if (!orphan) {
        random_frames(dice(20));
        fake_offer(w);
    }
}

/* Nothing comes any more: as far as `turns` it is settled. */
static void finish(unsigned turns) {
    ck_assert_ptr_null(turn());
    assemble_end(a, CAP_WORKER_EXIT);
    for (unsigned i = 0; i < turns && !assemble_empty(a); i++) {
        pass(100 * MS);
        reports(turns > 1000);
        broker_feed(turns > 1000 ? UINT32_MAX : 1 + dice(40));
        balanced();
    }
}

/* The worker dies, seen by a sidecar (which then dies, too), or by none. */
static void worker_dies(void) {
    if (setjmp(grave) == 0) {
        live(dice(12));
        orphan = true;
        if (dice(2) == 0) {
            pool_close(p);
            wanted = dice(STEP_COUNT);
            fuse = 1 + dice(30);
            finish(dice(20));
        }
    }
    orphan = true;
    bury();
}

static void live_with_an_orphan(unsigned turns) {
    const char *bad = begin_life();

    ck_assert_msg(bad == NULL, "not adopted: %s", bad);
    finish(turns);
}

/* But for the block that the worker was writing. */
static bool nothing_is_lent(void) {
    for (uint32_t i = 0; i < w->g.nblocks; i++) {
        const cap_block *b = cap_block_at(w->header, &w->g, i);

        if ((b->generation & 1) && (b->published & CAP_BLOCK_SEALED)) {
            return false;
        }
    }
    return true;
}

/* The last one, which sees the worker go. */
static void last_life(void) {
    if (orphan) {
        live_with_an_orphan(2000);
    } else {
        live(30);
        pool_close(p);
        finish(2000);
    }
    ck_assert(assemble_empty(a));
    ck_assert(ledger_idle(lg));
    ck_assert_uint_eq(p->count.open, 0);
    ck_assert_uint_le(p->held, 1);
    ck_assert(!orphan || nothing_is_lent());
    balanced();
}

/* ---- the judge ---- */

typedef struct judged {
    struct judged *next; /* under another name */
    char key[64];
    bool begun, over;
    int number, requests;
    bool unterminated;
    int partition;
    unsigned last; /* exchange + 1 */
    size_t nread, nwritten;
    char *read, *written;
    bool answering; /* after an endOfMessage */
} judged;

static judged judged_conns[MOST_CONNS];

static judged *judged_of(unsigned conn, const char *key) {
    judged *j = &judged_conns[conn];

    while (j->key[0] != '\0' && strcmp(j->key, key) != 0) {
        if (j->next == NULL) {
            j->next = calloc(1, sizeof(*j));
        }
        j = j->next;
    }
    snprintf(j->key, sizeof(j->key), "%s", key);
    return j;
}

static void add(char **to, size_t *n, record_slice data) {
    *to = realloc(*to, *n + data.len + 1);
    memcpy(*to + *n, data.data, data.len);
    *n += data.len;
    (*to)[*n] = '\0';
}

/* One assertion for all: Check's parent process takes time for each. */
static void judge_bytes(const char *data, size_t n, unsigned e, char kind) {
    unsigned i = 0;

    while (i < n && data[i] == byte_of(e, kind, i)) {
        i++;
    }
    ck_assert_msg(i == n, "exchange %u: byte %u of %c is another", e, i, kind);
}

/* What has been gathered is one exchange. */
static void judge_exchange(judged *j, unsigned conn, bool dropped) {
    unsigned e = 0;
    exchange *x;

    if (j->nread == 0) {
        return;
    }
    ck_assert_uint_ge(j->nread, 8);
    ck_assert_int_eq(j->read[0], 'Q');
    for (int i = 1; i < 8; i++) {
        e = e * 10 + (unsigned)(j->read[i] - '0');
    }
    ck_assert_uint_lt(e, nexchanges);
    x = &exchanges[e];
    ck_assert_uint_eq(x->conn, conn);
    ck_assert_msg((!x->there || !strict) && e + 1 > j->last,
                  "exchange %u is doubled", e);
    ck_assert_uint_le(j->nread, x->read);
    ck_assert_uint_le(j->nwritten, x->written);
    judge_bytes(j->read, j->nread, e, 'Q');
    judge_bytes(j->written, j->nwritten, e, 'S');
    j->last = e + 1;
    x->there = true;
    x->there_dropped = dropped;
    x->there_read = (unsigned)j->nread;
    x->there_written = (unsigned)j->nwritten;
    if (j->answering) {
        ck_assert_uint_eq(x->there_read, x->read);
        x->copies++;
        x->there_whole |= x->there_written == x->written;
    }
    x->there_eom = x->copies > 0;
    j->nread = j->nwritten = 0;
    j->answering = false;
}

static void judge_record(const broker_record *r, int partition) {
    record_reader reader;
    record_info info;
    record_observation o;
    unsigned conn;
    bool eom = false;
    judged *j;

    ck_assert_int_eq(record_open(&reader, r->value, r->len, &info), 0);
    ck_assert_ptr_null(record_fault(&info));
    if (strchr(r->key, '-') != NULL) {
        return; /* a barrier */
    }
    ck_assert_int_eq(r->key[0], 'r');
    conn = (unsigned)strtoul(r->key + 1, NULL, 10);
    ck_assert_uint_le(conn, nconns);
    j = judged_of(conn, r->key);
    ck_assert_uint_eq(topic_of[conn], (unsigned)partition / BROKER_PARTITIONS);
    ck_assert_msg(!j->over, "%s goes on after its end", r->key);
    ck_assert_int_eq(info.number, j->number + 1);
    ck_assert_int_eq(info.prior_requests, j->requests);
    ck_assert_int_eq(info.has_unterminated_read, j->unterminated);
    ck_assert(!j->begun || j->partition == partition);
    ck_assert_int_eq(info.last, info.ends_with_close);
    j->begun = true;
    j->number = info.number;
    j->partition = partition;
    j->over = info.last;
    while (record_next(&reader, &o)) {
        switch (o.kind) {
        case RECORD_READ:
            if (j->answering) {
                judge_exchange(j, conn, false);
                eom = false;
            }
            add(&j->read, &j->nread, o.data);
            j->unterminated = true;
            break;
        case RECORD_END_OF_MESSAGE:
            ck_assert(!j->answering);
            j->answering = eom = true;
            j->requests++;
            j->unterminated = false;
            break;
        case RECORD_WRITE:
            ck_assert(j->answering);
            add(&j->written, &j->nwritten, o.data);
            break;
        case RECORD_DROPPED:
            /* that it was dropped was known when this record was made */
            ck_assert_msg(!eom, "%s has the end of a dropped request", r->key);
            judge_exchange(j, conn, true);
            j->unterminated = false;
            break;
        case RECORD_EXCEPTION:
        case RECORD_CLOSE:
            judge_exchange(j, conn, false);
            break;
        default:
            ck_abort_msg("an observation of kind %d", (int)o.kind);
        }
    }
}

typedef struct {
    uint64_t captured, truncated, rule, pool_full, response, worker_exit;
} totals;

/* Of an exchange as it must be where nothing is lost. */
static void judge_whole(const exchange *x, unsigned e, totals *t) {
    bool whole =
        x->there_eom && !x->there_dropped && x->there_written == x->written;

    switch (x->end) {
    case COMPLETE:
    case TRUNCATED:
        ck_assert_msg(whole, "exchange %u is not whole", e);
        t->captured++;
        t->truncated += x->end == TRUNCATED;
        break;
    case DROPPED:
        ck_assert_msg(!x->there || x->there_dropped,
                      "exchange %u was dropped and is there", e);
        t->rule++;
        break;
    case FORGOTTEN:
        ck_abort_msg("exchange %u was abandoned by the sidecar", e);
        break;
    case ABANDONED:
    case OPEN:
        ck_assert_msg(x->there_eom == x->eom && !x->there_dropped,
                      "exchange %u: its request's end", e);
        ck_assert(!x->eom || whole);
        if (x->eom) {
            t->response++;
        } else if (x->end == OPEN) {
            t->worker_exit++;
        } else {
            t->pool_full++;
        }
        break;
    }
}

/* Sums where what is in doubt cannot be looked for: nothing outside of two
   counts is lost, and nothing outside of one is doubled. */
static void judge_blind(void) {
    unsigned ended = 0, whole = 0, absent = 0, taken_back = 0;
    uint64_t sum = p->count.captured;

    for (unsigned e = 0; e < nexchanges; e++) {
        const exchange *x = &exchanges[e];
        bool ends = x->end == COMPLETE || x->end == TRUNCATED;

        ck_assert_msg(x->end != FORGOTTEN, "exchange %u was abandoned", e);
        /* after it was complete, and its end may have been in the topic */
        taken_back += x->end == DROPPED && x->copies > 0 && !x->there_dropped;
        ended += ends;
        whole += ends && x->there_whole;
        absent += x->eom && x->end != DROPPED && x->copies == 0;
    }
    for (unsigned i = 0; i < CAP_REASON_CELLS; i++) {
        bool may = i == CAP_RULE || i == CAP_POOL_FULL || i == CAP_RESPONSE ||
                   i == CAP_WORKER_EXIT || i == CAP_MAYBE_LOST;

        ck_assert_msg(may || p->count.reason[i] == 0, "%s", cap_reason_name(i));
        sum += p->count.reason[i];
    }
    ck_assert_uint_eq(sum, nexchanges);
    ck_assert_uint_le(p->count.captured, whole);
    ck_assert_uint_le(ended - p->count.captured,
                      p->count.reason[CAP_MAYBE_LOST]);
    ck_assert_uint_le(absent, p->count.reason[CAP_MAYBE_LOST]);
    ck_assert_uint_le(taken_back,
                      p->count.doubled + p->count.reason[CAP_MAYBE_LOST]);
    if (conf.settle_drop) {
        ck_assert_uint_eq(p->count.doubled, 0);
    } else if (broker.known_blind) {
        ck_assert_msg(absent == 0, "%u requests are lost", absent);
    }
}

static void judge(void) {
    totals t = {0};
    unsigned whole = 0, copies = 0;

    memset(judged_conns, 0, sizeof(judged_conns));
    for (int i = 0; i < BROKER_ALL; i++) {
        for (unsigned k = 0; k < broker.partitions[i].n; k++) {
            judge_record(&broker.partitions[i].log[k], i);
        }
    }
    for (unsigned i = 0; i <= nconns; i++) {
        ck_assert_msg(!strict || !judged_conns[i].begun || judged_conns[i].over,
                      "r%u has no end", i);
        for (judged *j = &judged_conns[i], *next; j != NULL; j = next) {
            next = j->next;
            judge_exchange(j, i, false);
            free(j->read);
            free(j->written);
            if (j != &judged_conns[i]) {
                free(j);
            }
        }
    }
    for (unsigned e = 0; e < nexchanges; e++) {
        const exchange *x = &exchanges[e];

        whole += (x->end == COMPLETE || x->end == TRUNCATED) && x->there_whole;
        copies += x->copies > 1 ? x->copies - 1 : 0;
        if (strict) {
            judge_whole(x, e, &t);
        }
    }
    ck_assert_uint_eq(p->count.taken, nexchanges);
    ck_assert_uint_le(p->count.captured, whole);
    ck_assert_uint_le(copies, p->count.doubled);
    if (blind) {
        judge_blind();
    }
    printf("extra copies %u, maybe doubled %u, maybe lost %u\n", copies,
           (unsigned)p->count.doubled,
           (unsigned)p->count.reason[CAP_MAYBE_LOST]);
    if (strict) {
        ck_assert_uint_eq(p->count.captured, t.captured);
        ck_assert_uint_eq(p->count.truncated, t.truncated);
        ck_assert_uint_eq(p->count.reason[CAP_RULE], t.rule);
        ck_assert_uint_eq(p->count.reason[CAP_POOL_FULL], t.pool_full);
        ck_assert_uint_eq(p->count.reason[CAP_RESPONSE], t.response);
        ck_assert_uint_eq(p->count.reason[CAP_WORKER_EXIT], t.worker_exit);
        ck_assert_uint_eq(p->count.reason[CAP_LINK_LOST], 0);
    }
}

/* ---- tests ---- */

static void open_all(void) {
    static config_property servers = {.name = "bootstrap.servers",
                                      .value = "fake:1"};
    static config_destination second = {.name = "b", .topic = "second"};

    conf = (config){.record_size = 1048076,
                    .inflight_size = 64 << 20,
                    .settle_time = 200 * MS,
                    .destinations = &second,
                    .ndestinations = 1};
    conf.kafka[conf.nkafka++] = servers;
#ifdef CAPTURE_KILL_POINTS
    loops = pthread_self();
#endif
    broker.dice = dice;
    broker.ready = true;
    broker.limit = 6000;
    strict = true;
    w = fake_worker_new(16, SLOTS);
    ck_assert_uint_eq(fake_topic(w, "b"), SECOND);
    ck_assert_uint_eq(fake_topic(w, "x"), UNKNOWN);
}

static void close_all(void) {
    if (p != NULL) {
        ledger_stop(lg, 0);
        assemble_free(a);
        ledger_free(lg);
        pool_free(p);
        p = NULL;
    }
    fake_worker_free(w);
    broker_clear();
}

/* Whether somebody has died at `s`; without kill points nobody can. */
static bool has_died_at(unsigned s) {
#ifdef CAPTURE_KILL_POINTS
    return s >= STEP_COUNT || died_at[s] > 0;
#else
    (void)s;
    return true;
#endif
}

/* At least `n`, one after the other; `s` STEP_COUNT: each dies anywhere. */
static void lives(unsigned n, unsigned s) {
    static volatile unsigned i;

    broker.limit = 2000 + dice(dice(2) == 0 ? 3000 : 20000);
    for (i = 0; i < n || (!has_died_at(s) && i < 10 * n); i++) {
        wanted = s < STEP_COUNT ? s : dice(STEP_COUNT);
        fuse = 1 + dice(dice(2) == 0 ? 3 : 30);
        if (setjmp(grave) == 0) {
            live(dice(dice(3) == 0 ? 40 : 12));
        }
        bury();
    }
    last_life();
    judge();
}

static void go_blind(bool known, bool drop) {
    strict = false;
    blind = true;
    broker.blind = true;
    broker.known_blind = known;
    conf.settle_drop = drop;
}

/* The worker dies after some lives, and then each of its pool's owners. */
START_TEST(deaths_of_worker_and_sidecar_lose_nothing_and_double_nothing) {
    static volatile unsigned i, n;

    seed = (unsigned)_i + 5000;
    if (_i >= 120) {
        strict = false; /* records are refused for good */
    } else if (_i >= 80) {
        go_blind(_i % 3 != 2, _i % 2);
    }
    broker.limit = 2000 + dice(dice(2) == 0 ? 3000 : 20000);
    n = dice(6);
    for (i = 0; i < n; i++) {
        wanted = dice(STEP_COUNT);
        fuse = 1 + dice(30);
        if (setjmp(grave) == 0) {
            live(dice(20));
        }
        bury();
    }
    worker_dies();
    n = dice(8);
    for (i = 0; i < n; i++) {
        wanted = dice(STEP_COUNT);
        fuse = 1 + dice(dice(2) == 0 ? 3 : 30);
        if (setjmp(grave) == 0) {
            live_with_an_orphan(dice(20));
        }
        bury();
    }
    last_life();
    judge();
}
END_TEST

/* Of each step alone: the same death again and again. */
START_TEST(death_at_each_store_loses_nothing_and_doubles_nothing) {
    unsigned s = (unsigned)_i / 2; /* the journal's: test_journal.c */
    bool abandons = s >= STEP_ABANDON_ENDING && s <= STEP_REFUSE_COUNTED;
    bool renames = s >= STEP_RENAME_DOUBLING && s <= STEP_RENAME_DOUBLED;

    seed = (unsigned)_i + 1000;
    strict = _i % 2 == 0 && !abandons && !renames;
    if (renames) {
        go_blind(true, _i % 2);
    }
    lives(strict ? 10 : 6, s);
    ck_assert_msg(has_died_at(s) || s == STEP_MISSING_TOLD ||
                      s == STEP_MISSING_LOST ||
                      (s >= STEP_ORPHAN_RETURNS && s <= STEP_RETIRED),
                  "nobody died at step %u", s);
}
END_TEST

START_TEST(deaths_at_any_store_lose_nothing_and_double_nothing) {
    seed = (unsigned)_i;
    lives(80, STEP_COUNT);
    ck_assert_uint_eq(deaths, 80);
}
END_TEST

/* What the topic refuses is lost and counted; the rest as ever. */
START_TEST(deaths_with_losses_keep_every_count) {
    seed = (unsigned)_i;
    strict = false;
    broker.blind = _i % 2;
    lives(40, STEP_COUNT);
}
END_TEST

/* A topic that may not be read: only what is in doubt is lost or doubled, and
   where that is known in time no request is lost; or none is doubled. */
START_TEST(deaths_without_permission_to_read_keep_to_their_counts) {
    seed = (unsigned)_i + 300;
    go_blind(_i % 3 != 2, _i % 2);
    lives(40, STEP_COUNT);
}
END_TEST

#ifdef CAPTURE_KILL_POINTS
static unsigned never(unsigned n) {
    return n - 1;
}

/* The next one's first turn, after a death without anything else. */
static void succeed(void) {
    fuse = 0;
    broker_producer_died();
    fake_offer(w);
    ck_assert_ptr_null(begin_life());
    ck_assert_ptr_null(turn());
}

/* A connection that was abandoned leaves its intent. */
START_TEST(the_intent_of_a_slots_last_connection_is_not_the_next_ones) {
    cap_intent *i = cap_intent_at(w->header, &w->g, 0);

    fake_take_slot(w, 0, "r1");
    i->slot_generation = w->slot_generation[0] - 2;
    i->number = 7;
    i->last_seq = 2;
    fake_exchange(w, 0, "GET", "200");
    wanted = STEP_INTENT_FIELDS;
    fuse = 1;
    if (setjmp(grave) == 0) {
        ck_assert_ptr_null(begin_life());
        ck_assert_ptr_null(turn());
        ck_abort_msg("it lives");
    }
    succeed();
    ck_assert_uint_eq(metrics_cell[METRIC_DOUBTS], 0);
    ck_assert_uint_eq(broker.nsent, 1);
}
END_TEST

/* A record that begins and ends in the middle of frames, dead at the end of the
   exchange between them. */
START_TEST(a_byte_of_one_frame_is_not_the_next_ones) {
    record_reader reader;
    record_info info;
    record_observation o;
    static size_t read;

    broker.limit = 3000;
    fake_take_slot(w, 0, "r1");
    fake_read(w, 0, CAP_FRAME_BEGIN, "GET");
    fake_eom(w, 0, 0);
    fake_write(w, 0, bytes_of(1, 'S', 0, 5000));
    fake_end(w, 0, CAP_END_COMPLETE);
    fake_read(w, 0, CAP_FRAME_BEGIN, bytes_of(2, 'Q', 0, 8000));
    if (setjmp(grave) == 0) {
        ck_assert_ptr_null(begin_life());
        ck_assert_ptr_null(turn());
        broker_report(0, KAFKA_ACKED);
        ledger_pump(lg);
        ck_assert_uint_eq(broker.nsent, 1);
        wanted = STEP_COMMITTED;
        fuse = 1;
        broker_report(0, KAFKA_ACKED);
        ck_abort_msg("it lives");
    }
    succeed();
    while (broker.nsent > 0) {
        broker_report(0, KAFKA_ACKED);
        ledger_pump(lg);
    }
    read = 0;
    for (unsigned i = 0; i < BROKER_ALL; i++) {
        for (unsigned k = 0; k < broker.partitions[i].n; k++) {
            const broker_record *r = &broker.partitions[i].log[k];

            ck_assert_int_eq(record_open(&reader, r->value, r->len, &info), 0);
            while (record_next(&reader, &o)) {
                read += o.kind == RECORD_READ ? o.data.len : 0;
            }
        }
    }
    ck_assert_uint_eq(read, 3 + 8000);
}
END_TEST
#endif

#ifdef CAPTURE_KILL_POINTS
/* From the verdict on: another name, once, and one that may be doubled. */
START_TEST(an_id_that_is_given_up_is_given_up_once) {
    static const unsigned steps[] = {
        STEP_VERDICT,   STEP_RENAME_DOUBLING, STEP_RENAME_FROM,
        STEP_RENAME,    STEP_RENAME_SLOT,     STEP_RENAME_DOUBLED,
        STEP_COMMITTED, STEP_ACKNOWLEDGED,    STEP_SLOT_FIELDS,
        STEP_SLOT,      STEP_INTENT_DONE,     STEP_RELEASED};

    go_blind(true, false);
    fake_take_slot(w, 0, "r1");
    fake_exchange(w, 0, "GET", "200");
    fake_read(w, 0, CAP_FRAME_BEGIN, "POST");
    if (setjmp(grave) == 0) {
        ck_assert_ptr_null(begin_life());
        ck_assert_ptr_null(turn());
        broker_report(0, KAFKA_IN_DOUBT);
        wanted = steps[_i];
        fuse = 1;
        pass(S);
        ck_abort_msg("it lives");
    }
    succeed();
    pass(S);
    ck_assert_uint_eq(broker.nsent, 1);
    ck_assert_str_eq(broker.sent[0].key, "r1.1");
    broker_report(0, KAFKA_ACKED);
    ck_assert_uint_eq(p->count.captured, 1);
    ck_assert_uint_eq(p->count.doubled, 1);
    ck_assert_uint_eq(p->count.open, 1);
}
END_TEST

/* The answer of a request that is passed over goes the same way, whoever owns the
   pool when it comes. */
START_TEST(an_exchange_that_is_passed_over_stays_so) {
    go_blind(true, true);
    fake_take_slot(w, 0, "r1");
    fake_read(w, 0, CAP_FRAME_BEGIN, "GET");
    fake_eom(w, 0, 0);
    ck_assert_ptr_null(begin_life());
    ck_assert_ptr_null(turn());
    pass(S);
    broker_report(0, KAFKA_IN_DOUBT);
    pass(S);
    for (int i = 0; i < _i; i++) {
        succeed();
    }
    fake_write(w, 0, "200");
    if (_i > 0) {
        succeed();
    }
    ck_assert_ptr_null(turn());
    pass(2 * S);
    ck_assert_uint_eq(broker.nsent, 0);
    fake_end(w, 0, CAP_END_COMPLETE);
    fake_exchange(w, 0, "GET", "200");
    ck_assert_ptr_null(turn());
    ck_assert_uint_eq(broker.nsent, 1);
    broker_report(0, KAFKA_ACKED);
    ck_assert_uint_eq(p->count.captured, 1);
    ck_assert_uint_eq(p->count.reason[CAP_MAYBE_LOST], 1);
}
END_TEST

/* What is not in a topic of that name may have been in the one before. */
START_TEST(a_topic_that_was_made_again_tells_nothing) {
    the_topic.mark = 7;
    fake_take_slot(w, 0, "r1");
    fake_exchange(w, 0, "GET", "200");
    ck_assert_ptr_null(begin_life());
    ck_assert_ptr_null(turn());
    broker.nsent = 0; /* it is not there */
    the_topic.mark = 7 + (uint64_t)(_i & 1);
    if (_i & 2) {
        succeed();
    } else {
        broker.nsent = 1;
        broker.dice = never;
        broker_report(0, KAFKA_IN_DOUBT);
    }
    for (int i = 0; i < 100 && metrics_cell[METRIC_DOUBTS] > 0; i++) {
        pass(100 * MS);
        if (broker.nsent > 0) {
            broker_report(0, KAFKA_ACKED); /* the barrier */
        }
        broker_feed(100);
    }
    ledger_pump(lg);
    ck_assert_uint_eq(broker.nsent, 1);
    ck_assert_str_eq(broker.sent[0].key, _i & 1 ? "r1.1" : "r1");
}
END_TEST
#endif

/* ---- what a dead owner left is not what it should be ---- */

static void scribble(void *at, size_t n) {
    uint8_t *bytes = at;
    size_t i = dice((unsigned)n);

    switch (dice(3)) {
    case 0:
        bytes[i] = (uint8_t)dice(256);
        break;
    case 1:
        memset(bytes + i, dice(2) == 0 ? 0xff : 0, dice((unsigned)(n - i)) + 1);
        break;
    default:
        for (; i < n; i += 1 + dice(8)) {
            bytes[i] ^= (uint8_t)(1u << dice(8));
        }
    }
}

static void scribble_somewhere(void) {
    cap_header *h = w->header;
    cap_block *b = cap_block_at(h, &w->g, dice(w->g.nblocks));

    switch (dice(7)) {
    case 0:
        scribble(cap_slot_at(h, &w->g, dice(SLOTS)), sizeof(cap_slot));
        break;
    case 1:
    case 2:
        scribble(cap_intent_at(h, &w->g, dice(SLOTS)), sizeof(cap_intent));
        break;
    case 3:
        scribble(b, sizeof(*b));
        break;
    case 4:
        scribble((char *)b + CAP_BLOCK_HEADER, CAP_BLOCK_SIZE / 64);
        break;
    case 5:
        scribble(&h->offered_tail, offsetof(cap_header, ring_head) -
                                       offsetof(cap_header, offered_tail));
        break;
    default:
        scribble(&h->ring_head, sizeof(*h) - offsetof(cap_header, ring_head) -
                                    sizeof(h->sidecar));
        scribble(&h->sidecar, sizeof(h->sidecar));
        atomic_store(&h->owner_generation, 1);
    }
}

/* What it is does not matter: it is read in bounded time, what can be said is
   said, and then all of it is given up. */
START_TEST(garbage_in_an_adopted_pool_is_survived) {
    const char *bad;

    seed = (unsigned)_i;
    strict = false;
    broker.limit = 2000 + dice(dice(2) == 0 ? 3000 : 20000);
    live(5 + dice(20));
    bury();
    for (unsigned i = 0, n = 1 + dice(_i % 2 ? 3 : 40); i < n; i++) {
        scribble_somewhere();
    }
    if (begin_life() != NULL) {
        return; /* refused */
    }
    bad = NULL;
    for (unsigned i = 0; i < 20 && bad == NULL; i++) {
        bad = turn();
        reports(false);
        broker_feed(100);
        pass(40 * MS);
    }
    pool_close(p);
    if (p->bad != NULL || bad != NULL) {
        assemble_end(a, CAP_BAD_LINK);
    } else {
        assemble_end(a, CAP_WORKER_EXIT);
    }
    for (unsigned i = 0; i < 200 && !assemble_empty(a); i++) {
        pass(100 * MS);
        reports(true);
        broker_feed(UINT32_MAX);
    }
    ck_assert(assemble_empty(a));
    ck_assert(ledger_idle(lg));
    balanced();
}
END_TEST

#ifdef CAPTURE_KILL_POINTS
#define AT_EACH (2 * STEP_JOURNAL_OPENED)
#else
#define AT_EACH 8
#endif

int main(void) {
    Suite *s = suite_create("death");
    TCase *t = tcase_create("death");
    SRunner *sr;
    int failed;

    tcase_add_checked_fixture(t, open_all, close_all);
    tcase_set_timeout(t, 60);
    tcase_add_loop_test(
        t, death_at_each_store_loses_nothing_and_doubles_nothing, 0, AT_EACH);
    tcase_add_loop_test(t, deaths_at_any_store_lose_nothing_and_double_nothing,
                        0, LOOPS(6));
    tcase_add_loop_test(
        t, deaths_of_worker_and_sidecar_lose_nothing_and_double_nothing,
        160 - LOOPS(160), 160);
    tcase_add_loop_test(t, deaths_with_losses_keep_every_count, 0, LOOPS(6));
    tcase_add_loop_test(t,
                        deaths_without_permission_to_read_keep_to_their_counts,
                        0, LOOPS(12));
    tcase_add_loop_test(t, garbage_in_an_adopted_pool_is_survived, 0, 100);
#ifdef CAPTURE_KILL_POINTS
    tcase_add_test(t,
                   the_intent_of_a_slots_last_connection_is_not_the_next_ones);
    tcase_add_test(t, a_byte_of_one_frame_is_not_the_next_ones);
    tcase_add_loop_test(t, an_id_that_is_given_up_is_given_up_once, 0, 12);
    tcase_add_loop_test(t, an_exchange_that_is_passed_over_stays_so, 0, 4);
    tcase_add_loop_test(t, a_topic_that_was_made_again_tells_nothing, 0, 4);
#endif
    suite_add_tcase(s, t);

    sr = srunner_create(s);
    srunner_run_all(sr, CK_NORMAL);
    failed = srunner_ntests_failed(sr);
    srunner_free(sr);
    return failed == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
