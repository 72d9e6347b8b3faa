/*
 * Files that are replaced while we run: certificates, as Kubernetes swaps a
 * secret's directory by a symlink, or as anybody writes a new file.
 */
#ifndef LAUNCHER_WATCH_H
#define LAUNCHER_WATCH_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/stat.h>

#define WATCH_FILES 4

typedef struct {
    const char *path[WATCH_FILES];
    struct stat seen[WATCH_FILES];   /* what is in use */
    struct stat latest[WATCH_FILES]; /* at the last look */
    int n;
} watch;

/* `path` may be NULL: nothing.  It must outlive the watch. */
void watch_file(watch *w, const char *path);

/* One look.  True when some file is another one than in use, and none has
   changed since the last look: whoever writes them has finished. */
bool watch_look(watch *w);

#endif
