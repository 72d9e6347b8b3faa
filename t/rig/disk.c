/*
 * Preloaded into the sidecar: files of the journal are on a disk that a test makes
 * slow or full while it runs. The file CAPTURE_DISK holds two int64_t: how long a
 * sync takes at least, in ms, and whether nothing can be written (an errno).
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

static volatile int64_t *control;

__attribute__((constructor)) static void map_control(void) {
    const char *path = getenv("CAPTURE_DISK");
    int fd = path == NULL ? -1 : open(path, O_RDWR | O_CLOEXEC);
    void *at;

    if (fd == -1)
        abort();
    at = mmap(NULL, 16, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (at == MAP_FAILED)
        abort();
    close(fd);
    control = at;
}

static int is_ours(int fd) {
    char name[64], path[512];
    ssize_t n;

    snprintf(name, sizeof(name), "/proc/self/fd/%d", fd);
    n = readlink(name, path, sizeof(path) - 1);
    if (n < 0)
        return 0;
    path[n] = '\0';
    return strstr(path, "/journal/") != NULL ||
           strstr(path, "/spool/blocks") != NULL;
}

static void wait_for_disk(int fd) {
    int64_t ms = control[0];

    if (ms > 0 && is_ours(fd)) {
        struct timespec ts = {ms / 1000, ms % 1000 * 1000000};

        nanosleep(&ts, NULL);
    }
}

static int is_full(int fd) {
    if (control[1] == 0 || !is_ours(fd))
        return 0;
    errno = (int)control[1];
    return 1;
}

int fdatasync(int fd) {
    wait_for_disk(fd);
    return (int)syscall(SYS_fdatasync, fd);
}

int fsync(int fd) {
    wait_for_disk(fd);
    return (int)syscall(SYS_fsync, fd);
}

ssize_t pwrite64(int fd, const void *data, size_t n, off64_t at) {
    if (is_full(fd))
        return -1;
    return syscall(SYS_pwrite64, fd, data, n, at);
}

ssize_t pwrite(int fd, const void *data, size_t n, off_t at) {
    return pwrite64(fd, data, n, at);
}

int fallocate64(int fd, int mode, off64_t at, off64_t n) {
    wait_for_disk(fd);
    if (is_full(fd))
        return -1;
    return (int)syscall(SYS_fallocate, fd, mode, at, n);
}

int fallocate(int fd, int mode, off_t at, off_t n) {
    return fallocate64(fd, mode, at, n);
}
