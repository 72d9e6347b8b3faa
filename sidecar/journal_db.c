#define _GNU_SOURCE
#include "sidecar/journal_db.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <sqlite3.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>
#include <zlib.h>

#include "sidecar/boot.h"
#include "sidecar/journal_recover.h"
#include "sidecar/step.h"

#define JOURNAL_VERSION 1
/* Three rows of requests of up to 2 KiB are one page of `frames`: with 4 KiB its
   tree is split and merged all the time, and a commit is 5 to 7 pages, not 2.  For
   those of 4 to 7 KiB 4 KiB are better, by less. */
#define PAGE_SIZE 8192
#define TEXT(number) TEXT_OF(number)
#define TEXT_OF(token) #token
#define LOG_PAGES 512 /* of the log, until it begins again: 4 MiB */

enum statement {
    BEGIN,
    COMMIT,
    ROLLBACK,
    PUT_CONN,
    PUT_FRAMES,
    CUT_FRAMES,
    DROP_CONN,
    DROP_NODE_FRAMES,
    DROP_NODE,
    DROP_MARK,
    NOTE_MADE,
    STATEMENTS
};

/* X << 20 is JOURNAL_CHUNK_BITS */
static const char *const sql[STATEMENTS] = {
    [BEGIN] = "BEGIN IMMEDIATE",
    [COMMIT] = "COMMIT",
    [ROLLBACK] = "ROLLBACK",
    [PUT_CONN] = "INSERT OR REPLACE INTO conns(key, node, slot, intent, crc, "
                 "topic) VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
    [PUT_FRAMES] =
        "INSERT OR REPLACE INTO frames(id, data, crc) VALUES (?1, ?2, ?3)",
    [CUT_FRAMES] = "DELETE FROM frames WHERE id >= ?1 AND id < ?2",
    [DROP_CONN] = "DELETE FROM conns WHERE key = ?1",
    [DROP_NODE_FRAMES] = "DELETE FROM frames WHERE (id >> 20) IN "
                         "(SELECT key FROM conns WHERE node = ?1)",
    [DROP_NODE] = "DELETE FROM conns WHERE node = ?1",
    [DROP_MARK] = "DELETE FROM meta WHERE name = 'lost:' || ?1",
    [NOTE_MADE] = "INSERT OR IGNORE INTO meta VALUES ('made:' || ?1, '')",
};

struct journal_db {
    sqlite3 *db;
    int log_pages;
    int untidy_pages; /* so many are too many */
    sqlite3_stmt *statements[STATEMENTS];
};

static int failed(const journal_db *d, const char *what, char *why) {
    int error = sqlite3_system_errno(d->db);

    snprintf(why, JOURNAL_WHY_SIZE, "%s: %s%s%s", what, sqlite3_errmsg(d->db),
             error != 0 ? ", " : "", error != 0 ? strerror(error) : "");
    return -1;
}

/* ---- opening ---- */

static int run(journal_db *d, const char *text) {
    return sqlite3_exec(d->db, text, NULL, NULL, NULL);
}

/* One value of one row.  False: there is none. */
static bool ask(journal_db *d, const char *text, char *into, size_t size) {
    sqlite3_stmt *s;
    bool found = false;

    if (sqlite3_prepare_v2(d->db, text, -1, &s, NULL) != SQLITE_OK) {
        return false;
    }
    if (sqlite3_step(s) == SQLITE_ROW) {
        const char *value = (const char *)sqlite3_column_text(s, 0);

        snprintf(into, size, "%s", value != NULL ? value : "");
        found = true;
    }
    sqlite3_finalize(s);
    return found;
}

/* The log is written to its full size once: a commit that makes a file grow
   waits for the file system as well. */
static int make_tables(journal_db *d, const char *boot) {
    char text[512];

    snprintf(text, sizeof(text),
             "BEGIN IMMEDIATE;"
             "CREATE TABLE meta(name TEXT PRIMARY KEY, value TEXT);"
             "CREATE TABLE conns(key INTEGER PRIMARY KEY, node TEXT, slot BLOB,"
             " intent BLOB, crc INTEGER, topic TEXT);"
             "CREATE TABLE frames(id INTEGER PRIMARY KEY, data BLOB,"
             " crc INTEGER);"
             "INSERT INTO meta VALUES ('version', '%d.%u'), ('boot', '%s');"
             "INSERT INTO frames VALUES (0, zeroblob(%d), 0);"
             "DELETE FROM frames;"
             "COMMIT",
             JOURNAL_VERSION, CAP_WIRE_VERSION, boot, LOG_PAGES * PAGE_SIZE);
    return run(d, text);
}

static bool version_is_ours(journal_db *d) {
    char want[32], text[32];

    snprintf(want, sizeof(want), "%d.%u", JOURNAL_VERSION, CAP_WIRE_VERSION);
    return ask(d, "SELECT value FROM meta WHERE name = 'version'", text,
               sizeof(text)) &&
           strcmp(text, want) == 0;
}

/* For SQLite, which would make it for all to read; the log gets its mode. */
static int make_file(const char *path) {
    int fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);

    if (fd == -1) {
        return -1;
    }
    close(fd);
    return 0;
}

/* After each commit: how long the log is. */
static int note_log(void *owner, sqlite3 *db, const char *name, int pages) {
    (void)db;
    (void)name;
    ((journal_db *)owner)->log_pages = pages;
    return SQLITE_OK;
}

/* SQLITE_OK; SQLITE_CORRUPT: to be set aside; or another error. */
static int open_file(journal_db *d, const char *path, const char *boot) {
    static const char settings[] = "PRAGMA page_size = " TEXT(
        PAGE_SIZE) ";"
                   "PRAGMA locking_mode = EXCLUSIVE;"
                   "PRAGMA journal_mode = WAL;"
                   "PRAGMA synchronous = FULL;"
                   "PRAGMA wal_autocheckpoint = 0;"
                   "PRAGMA temp_store = MEMORY;"
                   "BEGIN IMMEDIATE; COMMIT"; /* takes the lock */
    char text[64];
    int rc;

    d->log_pages = 0;
    d->untidy_pages = LOG_PAGES;
    rc = sqlite3_open_v2(path, &d->db,
                         SQLITE_OPEN_READWRITE | SQLITE_OPEN_NOMUTEX, NULL);
    if (rc == SQLITE_OK) {
        (void)sqlite3_extended_result_codes(d->db, 1);
        rc = run(d, settings);
        (void)sqlite3_wal_hook(d->db, note_log, d);
    }
    if (rc != SQLITE_OK) {
        return (rc & 0xff) == SQLITE_NOTADB ? SQLITE_CORRUPT : rc & 0xff;
    }
    if (!ask(d, "SELECT name FROM sqlite_schema", text, sizeof(text))) {
        return make_tables(d, boot) & 0xff;
    }
    if (!version_is_ours(d) ||
        !ask(d, "PRAGMA quick_check(1)", text, sizeof(text)) ||
        strcmp(text, "ok") != 0) {
        return SQLITE_CORRUPT;
    }
    return SQLITE_OK;
}

static int prepare(journal_db *d) {
    for (int i = 0; i < STATEMENTS; i++) {
        int rc =
            sqlite3_prepare_v3(d->db, sql[i], -1, SQLITE_PREPARE_PERSISTENT,
                               &d->statements[i], NULL);
        if (rc != SQLITE_OK) {
            return rc;
        }
    }
    return SQLITE_OK;
}

static int list_nodes(journal_db *d, journal_node **nodes, size_t *n) {
    sqlite3_stmt *s;
    journal_node *more;
    int rc = sqlite3_prepare_v2(
        d->db,
        "SELECT node, max(there), EXISTS (SELECT 1 FROM meta WHERE name = "
        "'lost:' || node), EXISTS (SELECT 1 FROM meta WHERE name = 'made:' || "
        "node) FROM (SELECT DISTINCT node, 1 AS there FROM conns UNION ALL "
        "SELECT substr(name, 6), 0 FROM meta WHERE name LIKE 'made:%') "
        "GROUP BY node",
        -1, &s, NULL);

    while (rc == SQLITE_OK && sqlite3_step(s) == SQLITE_ROW) {
        if (sqlite3_column_bytes(s, 0) != CAP_NODE_ID_SIZE) {
            continue;
        }
        more = realloc(*nodes, (*n + 1) * sizeof(**nodes));
        if (more == NULL) {
            rc = SQLITE_NOMEM;
            break;
        }
        *nodes = more;
        memcpy(more[*n].node_id, sqlite3_column_text(s, 0), CAP_NODE_ID_SIZE);
        more[*n].there = sqlite3_column_int(s, 1) != 0;
        more[*n].lost = sqlite3_column_int(s, 2) != 0;
        more[(*n)++].made = sqlite3_column_int(s, 3) != 0;
    }
    return sqlite3_finalize(s) == SQLITE_OK ? rc : SQLITE_IOERR;
}

/* All that is there was lost when the host died, also for who opens it after
   us: what comes from now on was not. */
static int note_boot(journal_db *d, const char *boot) {
    char text[400] = "";

    (void)ask(d, "SELECT value FROM meta WHERE name = 'boot'", text,
              sizeof(text));
    if (strcmp(text, boot) == 0) {
        return SQLITE_OK;
    }
    snprintf(text, sizeof(text),
             "BEGIN IMMEDIATE;"
             "INSERT OR IGNORE INTO meta SELECT DISTINCT 'lost:' || node, ''"
             " FROM conns;"
             "DELETE FROM meta WHERE name LIKE 'made:%%';"
             "UPDATE meta SET value = '%s' WHERE name = 'boot';"
             "COMMIT",
             boot);
    return run(d, text);
}

static int look_around(journal_db *d, const char *boot, journal_node **nodes,
                       size_t *n, uint64_t *key) {
    char text[64] = "";
    int rc = note_boot(d, boot);

    *key = 1;
    if (ask(d,
            "SELECT 1 + max((SELECT ifnull(max(key), 0) FROM conns),"
            " (SELECT ifnull(max(id), 0) >> 20 FROM frames))",
            text, sizeof(text))) {
        *key = strtoull(text, NULL, 10);
    }
    if (rc == SQLITE_OK) {
        rc = prepare(d);
    }
    return rc == SQLITE_OK ? list_nodes(d, nodes, n) : rc;
}

int journal_db_set_aside(const char *dir) {
    static const char *const names[] = {"journal.db", "journal.db-wal"};
    char from[512], to[560];

    for (size_t i = 0; i < 2; i++) {
        snprintf(from, sizeof(from), "%s/%s", dir, names[i]);
        snprintf(to, sizeof(to), "%s.damaged-%" PRId64, from,
                 (int64_t)time(NULL));
        if (rename(from, to) != 0 && errno != ENOENT) {
            return -1;
        }
    }
    return 0;
}

static void close_file(journal_db *d) {
    for (int i = 0; i < STATEMENTS; i++) {
        sqlite3_finalize(d->statements[i]);
        d->statements[i] = NULL;
    }
    sqlite3_close(d->db);
    d->db = NULL;
}

static int make_directory(const char *dir) {
    struct stat st;

    if ((mkdir(dir, 0700) != 0 && errno != EEXIST) || stat(dir, &st) != 0) {
        return -1;
    }
    if (st.st_uid != geteuid() || (st.st_mode & 0022) != 0) {
        errno = EPERM;
        return -1;
    }
    return 0;
}

/* The file's name must be on the disk as well. */
static void sync_directory(const char *dir) {
    int fd = open(dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);

    if (fd != -1) {
        (void)fsync(fd);
        close(fd);
    }
}

journal_db *journal_db_open(const char *dir, journal_node **nodes,
                            size_t *nnodes, uint64_t *key, bool *damaged,
                            char *why) {
    journal_db *d = calloc(1, sizeof(*d));
    char path[512], boot[64];
    int rc = SQLITE_CANTOPEN;

    *nodes = NULL;
    *nnodes = 0;
    *damaged = false;
    boot_id(boot, sizeof(boot));
    if (d == NULL || make_directory(dir) != 0) {
        snprintf(why, JOURNAL_WHY_SIZE, "%s", strerror(errno));
        free(d);
        return NULL;
    }
    snprintf(path, sizeof(path), "%s/journal.db", dir);
    for (int attempt = 0; attempt < 2; attempt++) {
        if (make_file(path) != 0) {
            break;
        }
        rc = open_file(d, path, boot);
        if (rc == SQLITE_OK) {
            rc = look_around(d, boot, nodes, nnodes, key) & 0xff;
        }
        if (rc != SQLITE_CORRUPT) {
            break;
        }
        close_file(d);
        *damaged = true;
        if (journal_db_set_aside(dir) != 0) {
            break;
        }
    }
    if (rc != SQLITE_OK) {
        if (d->db != NULL) {
            (void)failed(d, "opening it", why);
        } else {
            snprintf(why, JOURNAL_WHY_SIZE, "%s", strerror(errno));
        }
        journal_db_close(d);
        return NULL;
    }
    sync_directory(dir);
    step(STEP_JOURNAL_OPENED);
    journal_db_tidy(d);
    return d;
}

void journal_db_close(journal_db *d) {
    if (d != NULL) {
        close_file(d);
        free(d);
    }
}

/* The database first: a log without one is nothing, and one without its log
   would be out of date. */
int journal_db_remove(const char *dir) {
    static const char *const names[] = {"journal.db", "journal.db-wal"};
    char path[512];

    for (size_t i = 0; i < 2; i++) {
        snprintf(path, sizeof(path), "%s/%s", dir, names[i]);
        if (unlink(path) != 0 && errno != ENOENT) {
            return -1;
        }
        if (i == 0) {
            step(STEP_JOURNAL_REMOVED);
        }
    }
    sync_directory(dir);
    return 0;
}

/* ---- commits ---- */

static int execute(journal_db *d, enum statement s) {
    int rc = sqlite3_step(d->statements[s]);

    (void)sqlite3_reset(d->statements[s]);
    return rc == SQLITE_DONE ? SQLITE_OK : rc;
}

static uint32_t checksum(const void *a, size_t n, const void *b, size_t m) {
    return (uint32_t)crc32(crc32(0, a, (unsigned)n), b, (unsigned)m);
}

static uint32_t conn_checksum(const cap_slot *slot, const cap_intent *intent,
                              const char *topic) {
    return (uint32_t)crc32(
        checksum(slot, sizeof(*slot), intent, sizeof(*intent)),
        (const void *)topic, (unsigned)strlen(topic));
}

static int put_conn(journal_db *d, uint64_t key, const char *node_id,
                    const cap_slot *slot, const cap_intent *intent,
                    const char *topic) {
    sqlite3_stmt *s = d->statements[PUT_CONN];

    sqlite3_bind_int64(s, 1, (int64_t)key);
    sqlite3_bind_text(s, 2, node_id, CAP_NODE_ID_SIZE, SQLITE_STATIC);
    sqlite3_bind_blob(s, 3, slot, sizeof(*slot), SQLITE_STATIC);
    sqlite3_bind_blob(s, 4, intent, sizeof(*intent), SQLITE_STATIC);
    sqlite3_bind_int64(s, 5, conn_checksum(slot, intent, topic));
    sqlite3_bind_text(s, 6, topic, -1, SQLITE_STATIC);
    return execute(d, PUT_CONN);
}

static int put_frames(journal_db *d, uint64_t key, uint32_t chunk,
                      const void *data, size_t len) {
    sqlite3_stmt *s = d->statements[PUT_FRAMES];
    uint64_t id = key << JOURNAL_CHUNK_BITS | chunk;

    sqlite3_bind_int64(s, 1, (int64_t)id);
    sqlite3_bind_blob64(s, 2, data, len, SQLITE_STATIC);
    sqlite3_bind_int64(s, 3, checksum(&id, sizeof(id), data, len));
    return execute(d, PUT_FRAMES);
}

static int cut_frames(journal_db *d, uint64_t key, uint64_t from,
                      uint64_t end) {
    sqlite3_stmt *s = d->statements[CUT_FRAMES];

    if (from == end) {
        return SQLITE_OK;
    }
    sqlite3_bind_int64(s, 1, (int64_t)((key << JOURNAL_CHUNK_BITS) + from));
    sqlite3_bind_int64(s, 2, (int64_t)((key << JOURNAL_CHUNK_BITS) + end));
    return execute(d, CUT_FRAMES);
}

static int drop_conn(journal_db *d, uint64_t key) {
    int rc = cut_frames(d, key, 0, JOURNAL_MOST_CHUNKS);

    sqlite3_bind_int64(d->statements[DROP_CONN], 1, (int64_t)key);
    return rc == SQLITE_OK ? execute(d, DROP_CONN) : rc;
}

static int drop_node(journal_db *d, const char *node_id) {
    int rc;

    sqlite3_bind_text(d->statements[DROP_NODE_FRAMES], 1, node_id,
                      CAP_NODE_ID_SIZE, SQLITE_STATIC);
    sqlite3_bind_text(d->statements[DROP_NODE], 1, node_id, CAP_NODE_ID_SIZE,
                      SQLITE_STATIC);
    sqlite3_bind_text(d->statements[DROP_MARK], 1, node_id, CAP_NODE_ID_SIZE,
                      SQLITE_STATIC);
    rc = execute(d, DROP_NODE_FRAMES);
    if (rc == SQLITE_OK) {
        rc = execute(d, DROP_NODE);
    }
    return rc == SQLITE_OK ? execute(d, DROP_MARK) : rc;
}

static int carry_out(journal_db *d, const journal_op *op) {
    int rc;

    switch (op->kind) {
    case JOURNAL_FORGET:
        return drop_conn(d, op->key);
    case JOURNAL_FORGET_NODE:
        return drop_node(d, op->node_id);
    default:
        break;
    }
    rc = put_conn(d, op->key, op->node_id, &op->slot, &op->intent, op->topic);
    if (rc == SQLITE_OK) {
        rc = cut_frames(d, op->key, op->done_from, op->done_end);
    }
    if (rc == SQLITE_OK && op->len > 0) {
        rc = put_frames(d, op->key, op->chunk, op->frames, op->len);
    }
    return rc;
}

int journal_db_commit(journal_db *d, const struct journal_ops *ops, char *why) {
    const journal_op *op;
    int rc = execute(d, BEGIN);

    TAILQ_FOREACH(op, ops, all) {
        if (rc == SQLITE_OK) {
            rc = carry_out(d, op);
        }
    }
    step(STEP_JOURNAL_WRITTEN);
    if (rc == SQLITE_OK) {
        rc = execute(d, COMMIT);
    }
    if (rc == SQLITE_OK) {
        step(STEP_JOURNAL_COMMITTED);
        return 0;
    }
    (void)failed(d, "writing to it", why);
    if (!sqlite3_get_autocommit(d->db)) {
        (void)execute(d, ROLLBACK);
    }
    return -1;
}

bool journal_db_is_untidy(const journal_db *d) {
    return d->log_pages >= d->untidy_pages;
}

/* The log begins again at its start when all of it is in the database. */
void journal_db_tidy(journal_db *d) {
    int pages = 0, done = 0;
    int rc = sqlite3_wal_checkpoint_v2(d->db, NULL, SQLITE_CHECKPOINT_PASSIVE,
                                       &pages, &done);

    /* one that failed is not tried again at every commit */
    d->untidy_pages =
        LOG_PAGES + (rc == SQLITE_OK && done == pages ? 0 : d->log_pages);
    d->log_pages = 0;
    step(STEP_JOURNAL_TIDIED);
}

/* ---- recovery ---- */

/* Rows of one connection, until one that is damaged. */
static int read_conn(journal_db *d, sqlite3_stmt *frames, uint64_t key,
                     journal_rows *rows) {
    int rc;

    sqlite3_bind_int64(frames, 1, (int64_t)(key << JOURNAL_CHUNK_BITS));
    sqlite3_bind_int64(frames, 2, (int64_t)((key + 1) << JOURNAL_CHUNK_BITS));
    while ((rc = sqlite3_step(frames)) == SQLITE_ROW) {
        uint64_t id = (uint64_t)sqlite3_column_int64(frames, 0);
        const void *data = sqlite3_column_blob(frames, 1);
        size_t len = (size_t)sqlite3_column_bytes(frames, 1);

        if (checksum(&id, sizeof(id), data, len) !=
                (uint32_t)sqlite3_column_int64(frames, 2) ||
            !journal_rows_add(rows, (uint32_t)(id & (JOURNAL_MOST_CHUNKS - 1)),
                              data, len)) {
            rows->damaged = true;
            break;
        }
    }
    (void)sqlite3_reset(frames);
    (void)d;
    return rc == SQLITE_DONE || rc == SQLITE_ROW ? SQLITE_OK : rc;
}

static bool read_state(sqlite3_stmt *s, cap_slot *slot, cap_intent *intent,
                       char *topic) {
    const char *name = (const char *)sqlite3_column_text(s, 4);

    if (sqlite3_column_bytes(s, 1) != sizeof(*slot) ||
        sqlite3_column_bytes(s, 2) != sizeof(*intent)) {
        return false;
    }
    memcpy(slot, sqlite3_column_blob(s, 1), sizeof(*slot));
    memcpy(intent, sqlite3_column_blob(s, 2), sizeof(*intent));
    snprintf(topic, CAP_TOPIC_NAME_SIZE, "%s", name != NULL ? name : "");
    return conn_checksum(slot, intent, topic) ==
           (uint32_t)sqlite3_column_int64(s, 3);
}

/* All that is there, numbered anew, in memory. */
static int read_node(journal_db *d, const char *node_id, journal_builder *b) {
    sqlite3_stmt *conns = NULL, *frames = NULL;
    int rc =
        sqlite3_prepare_v2(d->db,
                           "SELECT key, slot, intent, crc, topic FROM conns "
                           "WHERE node = ?1 ORDER BY key",
                           -1, &conns, NULL);

    if (rc == SQLITE_OK) {
        rc = sqlite3_prepare_v2(d->db,
                                "SELECT id, data, crc FROM frames WHERE "
                                "id >= ?1 AND id < ?2 ORDER BY id",
                                -1, &frames, NULL);
    }
    if (rc == SQLITE_OK) {
        sqlite3_bind_text(conns, 1, node_id, CAP_NODE_ID_SIZE, SQLITE_STATIC);
    }
    while (rc == SQLITE_OK && (rc = sqlite3_step(conns)) == SQLITE_ROW) {
        journal_rows rows = {0};
        cap_slot slot;
        cap_intent intent;
        char topic[CAP_TOPIC_NAME_SIZE];
        uint64_t key = (uint64_t)sqlite3_column_int64(conns, 0);

        if (!read_state(conns, &slot, &intent, topic)) {
            b->damaged++;
            rc = SQLITE_OK;
            continue;
        }
        rc = read_conn(d, frames, key, &rows);
        b->damaged += rows.damaged;
        if (rc == SQLITE_OK &&
            journal_builder_add(b, key, &slot, &intent, topic, &rows) != 0) {
            rc = SQLITE_NOMEM;
        }
        journal_rows_free(&rows);
    }
    sqlite3_finalize(conns);
    sqlite3_finalize(frames);
    return rc == SQLITE_DONE ? SQLITE_OK : rc;
}

/* The rows as the builder has them, in the place of the old ones. */
static int write_node(journal_db *d, const char *node_id,
                      const journal_builder *b) {
    int rc = execute(d, BEGIN);

    if (rc == SQLITE_OK) {
        rc = drop_node(d, node_id);
    }
    if (rc == SQLITE_OK) {
        sqlite3_bind_text(d->statements[NOTE_MADE], 1, node_id,
                          CAP_NODE_ID_SIZE, SQLITE_STATIC);
        rc = execute(d, NOTE_MADE);
    }
    for (uint32_t i = 0; i < b->n && rc == SQLITE_OK; i++) {
        const journal_built *c = &b->conns[i];

        rc = put_conn(d, c->found.key, node_id, &c->slot, &c->intent, c->topic);
        for (uint32_t k = 0; k < c->nrows && rc == SQLITE_OK; k++) {
            rc = put_frames(d, c->found.key, c->rows[k].chunk, c->rows[k].data,
                            c->rows[k].len);
        }
    }
    if (rc == SQLITE_OK) {
        rc = execute(d, COMMIT);
    }
    step(STEP_JOURNAL_NUMBERED);
    return rc;
}

int journal_db_recover(journal_db *d, const char *node_id, journal_recovered *r,
                       char *why) {
    journal_builder b = {0};
    int rc = read_node(d, node_id, &b);

    *r = (journal_recovered){.fd = -1};
    if (rc == SQLITE_OK) {
        rc = write_node(d, node_id, &b);
    }
    if (rc != SQLITE_OK) {
        (void)failed(d, "reading from it", why);
        if (!sqlite3_get_autocommit(d->db)) {
            (void)execute(d, ROLLBACK);
        }
        journal_builder_free(&b);
        return rc == SQLITE_NOMEM ? 1 : -1;
    }
    rc = journal_builder_pool(&b, node_id, r, why);
    journal_builder_free(&b);
    return rc == 0 ? 0 : 1;
}
