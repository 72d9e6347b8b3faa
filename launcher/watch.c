#include "launcher/watch.h"

#include <string.h>

/* What tells one content of a path from another; follows symlinks. */
static struct stat look(const char *path) {
    struct stat st;
    if (stat(path, &st) == -1)
        memset(&st, 0, sizeof(st));
    return st;
}

static bool same(const struct stat *a, const struct stat *b) {
    return a->st_dev == b->st_dev && a->st_ino == b->st_ino &&
           a->st_size == b->st_size && a->st_mtim.tv_sec == b->st_mtim.tv_sec &&
           a->st_mtim.tv_nsec == b->st_mtim.tv_nsec &&
           a->st_ctim.tv_sec == b->st_ctim.tv_sec &&
           a->st_ctim.tv_nsec == b->st_ctim.tv_nsec;
}

void watch_file(watch *w, const char *path) {
    if (path == NULL || w->n == WATCH_FILES)
        return;
    w->path[w->n] = path;
    w->seen[w->n] = w->latest[w->n] = look(path);
    w->n++;
}

bool watch_look(watch *w) {
    bool changed = false, moving = false;
    for (int i = 0; i < w->n; i++) {
        struct stat now = look(w->path[i]);
        moving |= !same(&now, &w->latest[i]);
        changed |= !same(&now, &w->seen[i]);
        w->latest[i] = now;
    }
    if (!changed || moving)
        return false;
    memcpy(w->seen, w->latest, sizeof(w->seen));
    return true;
}
