#define _GNU_SOURCE 1

#include "launcher/rundir.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static int make_new(rundir *d) {
    const char *const places[] = {getenv("TMPDIR"), "/tmp", "/dev/shm"};
    for (size_t i = 0; i < sizeof(places) / sizeof(*places); i++) {
        if (places[i] == NULL || *places[i] != '/')
            continue;
        int n = snprintf(d->path, sizeof(d->path), "%s/capture-proxy-XXXXXX",
                         places[i]);
        if (n < (int)sizeof(d->path) && mkdtemp(d->path) != NULL) {
            d->ours = true;
            return 0;
        }
    }
    return -1;
}

static int take_given(rundir *d, const char *wanted, FILE *err) {
    struct stat st;
    if (snprintf(d->path, sizeof(d->path), "%s", wanted) >=
        (int)sizeof(d->path)) {
        fprintf(err, "capture-proxy: --run-directory %s: at most %zu bytes\n",
                wanted, sizeof(d->path) - 1);
        return -1;
    }
    d->ours = false;
    if (mkdir(d->path, 0700) == -1 && errno != EEXIST) {
        fprintf(err, "capture-proxy: --run-directory %s: %s\n", wanted,
                strerror(errno));
        return -1;
    }
    if (stat(d->path, &st) == -1 || !S_ISDIR(st.st_mode) ||
        st.st_uid != geteuid() || (st.st_mode & (S_IWGRP | S_IWOTH)) != 0) {
        fprintf(err,
                "capture-proxy: --run-directory %s: it must be a "
                "directory of this user's, not writable for others\n",
                wanted);
        return -1;
    }
    return 0;
}

int rundir_make(rundir *d, const char *wanted, bool others, FILE *err) {
    if (wanted != NULL) {
        if (take_given(d, wanted, err) == -1)
            return -1;
    } else if (make_new(d) == -1) {
        fprintf(err, "capture-proxy: there is no directory to write to in "
                     "TMPDIR, /tmp or /dev/shm; give --run-directory\n");
        return -1;
    }
    if (others)
        chmod(d->path, 0711);
    return 0;
}

int rundir_put(const rundir *d, const char *name, const char *text,
               size_t len) {
    char path[200], made[200];
    snprintf(path, sizeof(path), "%s/%s", d->path, name);
    snprintf(made, sizeof(made), "%s/%s.new", d->path, name);
    int fd =
        open(made, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW, 0600);
    if (fd == -1)
        return -1;
    ssize_t n = write(fd, text, len);
    if (close(fd) == -1 || n != (ssize_t)len)
        return -1;
    return rename(made, path);
}

/* Only what is in a directory of our own making, two levels and no links. */
static void remove_level(int at, const char *name, int levels) {
    int fd = openat(at, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    DIR *dir = fd != -1 ? fdopendir(fd) : NULL;
    struct dirent *entry;
    if (dir == NULL) {
        if (fd != -1)
            close(fd);
        return;
    }
    while ((entry = readdir(dir)) != NULL) {
        if (strcmp(entry->d_name, ".") == 0 || strcmp(entry->d_name, "..") == 0)
            continue;
        if (unlinkat(fd, entry->d_name, 0) == -1 && levels > 0) {
            remove_level(fd, entry->d_name, levels - 1);
            unlinkat(fd, entry->d_name, AT_REMOVEDIR);
        }
    }
    closedir(dir);
}

void rundir_remove(const rundir *d) {
    if (!d->ours)
        return;
    remove_level(AT_FDCWD, d->path, 2);
    rmdir(d->path);
}
