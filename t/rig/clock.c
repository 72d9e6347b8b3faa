/*
 * Preloaded into NGINX: its time of day is the machine's plus what the file
 * CAPTURE_CLOCK says (int64_t, ns), which a test changes while it runs. Monotonic
 * clocks are left alone, as they are when a real clock steps.
 */
#include <fcntl.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

#define SECOND 1000000000

static const volatile int64_t *offset;

__attribute__((constructor)) static void map_offset(void) {
    const char *path = getenv("CAPTURE_CLOCK");
    int fd = path == NULL ? -1 : open(path, O_RDONLY | O_CLOEXEC);
    void *at;

    if (fd == -1)
        abort();
    at = mmap(NULL, sizeof(*offset), PROT_READ, MAP_SHARED, fd, 0);
    if (at == MAP_FAILED)
        abort();
    close(fd);
    offset = at;
}

int clock_gettime(clockid_t id, struct timespec *ts) {
    int rc = (int)syscall(SYS_clock_gettime, id, ts);
    int64_t ns;

    if (rc == 0 && id == CLOCK_REALTIME && offset != NULL) {
        ns = (int64_t)ts->tv_sec * SECOND + ts->tv_nsec + *offset;
        ts->tv_sec = ns / SECOND;
        ts->tv_nsec = ns % SECOND;
    }
    return rc;
}

int gettimeofday(struct timeval *restrict tv, void *restrict tz) {
    struct timespec ts;
    int rc = clock_gettime(CLOCK_REALTIME, &ts);

    (void)tz;
    tv->tv_sec = ts.tv_sec;
    tv->tv_usec = ts.tv_nsec / 1000;
    return rc;
}

time_t time(time_t *at) {
    struct timespec ts;

    clock_gettime(CLOCK_REALTIME, &ts);
    if (at != NULL)
        *at = ts.tv_sec;
    return ts.tv_sec;
}
