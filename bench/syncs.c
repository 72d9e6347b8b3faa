/*
 * Preloaded into the sidecar: how long each of its fdatasync() takes.  The file
 * CAPTURE_SYNCS holds a uint64_t, how many there were, and then the last SYNCS
 * of them, a uint32_t each, in ns.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#define SYNCS 65536 /* as waiting.py has it */

static struct {
    _Atomic uint64_t count;
    uint32_t took_ns[SYNCS];
} *syncs;

__attribute__((constructor)) static void start(void) {
    const char *path = getenv("CAPTURE_SYNCS");
    int fd = path != NULL ? open(path, O_RDWR | O_CLOEXEC) : -1;

    syncs = mmap(NULL, sizeof(*syncs), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (syncs == MAP_FAILED) {
        abort(); /* a figure must not be of nothing */
    }
    close(fd);
}

static int64_t now_ns(void) {
    struct timespec ts;

    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (int64_t)ts.tv_sec * 1000000000 + ts.tv_nsec;
}

int fdatasync(int fd) {
    int64_t begun = now_ns();
    int rc = (int)syscall(SYS_fdatasync, fd);
    int64_t took = now_ns() - begun;
    uint64_t n = syncs->count;

    syncs->took_ns[n % SYNCS] =
        took < UINT32_MAX ? (uint32_t)took : UINT32_MAX;
    syncs->count = n + 1; /* one thread syncs: the journal's */
    return rc;
}
