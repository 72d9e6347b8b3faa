#include "sidecar/export.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <openssl/evp.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "sidecar/log.h"

/* Longer than any connectionId, whatever the format's version. */
#define ID_MAX 200

struct export_file {
    char *path;
    int dir;
    int lines; /* the file of this start, or -1: protocap */
    bool stopped;
    uint64_t written, limit;
    uint64_t records, failed;
    unsigned char *line; /* grows to the longest */
    size_t line_size;
};

/* The directory is made if only its last part is missing.  What lies in it is
   traffic: nobody else may put files there, or links. */
static int open_directory(const char *path) {
    struct stat st;
    if (mkdir(path, 0700) == -1 && errno != EEXIST) {
        log_error("export.path = %s: mkdir() failed: %m", path);
        return -1;
    }
    int dir = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (dir == -1 || fstat(dir, &st) == -1) {
        log_error("export.path = %s: it cannot be opened: %m", path);
    } else if ((st.st_mode & 022) != 0) {
        log_error(
            "export.path = %s: others can write to it (mode %04o): chmod 700",
            path, st.st_mode & 07777);
    } else if (faccessat(dir, ".", W_OK | X_OK, AT_EACCESS) == -1) {
        log_error("export.path = %s: it cannot be written to: %m", path);
    } else {
        return dir;
    }
    if (dir != -1)
        close(dir);
    return -1;
}

static int open_lines(int dir, const char *path) {
    char name[80], stamp[32];
    struct tm tm;
    time_t now = time(NULL);
    gmtime_r(&now, &tm);
    strftime(stamp, sizeof(stamp), "%Y%m%dT%H%M%SZ", &tm);
    for (int i = 0; i < 100; i++) {
        snprintf(name, sizeof(name),
                 i == 0 ? "export-%s.lines" : "export-%s-%d.lines", stamp, i);
        int fd =
            openat(dir, name,
                   O_WRONLY | O_CREAT | O_EXCL | O_APPEND | O_CLOEXEC, 0600);
        if (fd != -1)
            log_info("export: writing %s/%s", path, name);
        if (fd != -1 || errno != EEXIST)
            return fd;
    }
    return -1;
}

export_file *export_open(const config *c) {
    export_file *e = calloc(1, sizeof(*e));
    if (e == NULL || (e->path = strdup(c->export_path)) == NULL) {
        log_error("out of memory");
        free(e);
        return NULL;
    }
    e->limit = c->export_size;
    e->lines = -1;
    e->dir = open_directory(e->path);
    if (e->dir != -1 && !c->export_protocap) {
        e->lines = open_lines(e->dir, e->path);
        if (e->lines == -1) {
            log_error("export.path = %s: no file can be made in it: %m",
                      e->path);
            close(e->dir);
            e->dir = -1;
        }
    }
    if (e->dir != -1)
        return e;
    free(e->path);
    free(e);
    return NULL;
}

static int stop(export_file *e, const char *why) {
    e->stopped = true;
    log_error("export to %s stops after %" PRIu64 " records: %s", e->path,
              e->records, why);
    return -1;
}

/* All or nothing: half a line would spoil the next one. */
static int write_whole(export_file *e, int fd, const void *bytes, size_t len) {
    if (e->written + len > e->limit)
        return stop(e, "export.size is reached");
    ssize_t n = write(fd, bytes, len);
    if (n == (ssize_t)len) {
        e->written += len;
        return 0;
    }
    stop(e, n == -1 ? strerror(errno) : "the disk is full");
    if (n > 0 && e->lines != -1 && ftruncate(fd, (off_t)e->written) == -1)
        log_error("export: the last line is cut: %m");
    return -1;
}

static int make_room(export_file *e, size_t size) {
    if (size <= e->line_size)
        return 0;
    unsigned char *line = realloc(e->line, size);
    if (line == NULL)
        return -1;
    e->line = line;
    e->line_size = size;
    return 0;
}

static int write_line(export_file *e, const char *id, size_t id_len,
                      const void *value, size_t len) {
    size_t base64 = (len + 2) / 3 * 4;
    if (make_room(e, id_len + 1 + base64 + 1 + 1) == -1)
        return -1;
    memcpy(e->line, id, id_len);
    e->line[id_len] = '|';
    EVP_EncodeBlock(e->line + id_len + 1, value, (int)len);
    e->line[id_len + 1 + base64] = '\n';
    return write_whole(e, e->lines, e->line, id_len + 1 + base64 + 1);
}

static int write_file(export_file *e, const char *id, size_t id_len,
                      uint32_t number, const void *value, size_t len) {
    char name[ID_MAX + 32];
    snprintf(name, sizeof(name), "%.*s_%" PRIu32 ".protocap", (int)id_len, id,
             number);
    int fd = openat(e->dir, name,
                    O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0600);
    if (fd == -1)
        return errno == EEXIST ? -1 : stop(e, strerror(errno));
    int rc = write_whole(e, fd, value, len);
    close(fd);
    if (rc == -1)
        unlinkat(e->dir, name, 0);
    return rc;
}

/* It becomes a file's name, and comes from another process. */
static bool plausible_id(const char *id, size_t len) {
    if (len == 0 || len > ID_MAX || id[0] == '.')
        return false;
    for (size_t i = 0; i < len; i++) {
        char c = id[i];
        if (!((c >= '0' && c <= '9') || (c >= 'a' && c <= 'z') ||
              (c >= 'A' && c <= 'Z') || c == '-' || c == '_' || c == '.'))
            return false;
    }
    return true;
}

int export_record(export_file *e, const char *id, size_t id_len,
                  uint32_t number, const void *value, size_t len) {
    int rc = -1;
    if (!e->stopped && plausible_id(id, id_len) && len <= INT32_MAX / 2)
        rc = e->lines != -1 ? write_line(e, id, id_len, value, len)
                            : write_file(e, id, id_len, number, value, len);
    e->records += rc == 0;
    e->failed += rc != 0;
    return rc;
}

uint64_t export_records(const export_file *e) {
    return e->records;
}

uint64_t export_failed(const export_file *e) {
    return e->failed;
}

void export_close(export_file *e) {
    if (e == NULL)
        return;
    if (e->lines != -1)
        close(e->lines);
    close(e->dir);
    free(e->line);
    free(e->path);
    free(e);
}
