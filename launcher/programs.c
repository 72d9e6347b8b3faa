/* Where NGINX, the module and the sidecar are, and how much of the host there
   is for them. */
#define _GNU_SOURCE 1

#include "launcher/settings.h"

#include <fcntl.h>
#include <limits.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

/* ---- CPUs ---- */

/* The cgroup's quota in whole CPUs, rounded up; 0: none. */
static int quota(void) {
    long long max = 0, period = 0;
    FILE *f = fopen("/sys/fs/cgroup/cpu.max", "re");
    if (f != NULL) {
        int n = fscanf(f, "%lld %lld", &max, &period);
        fclose(f);
        return n == 2 && period > 0 ? (int)((max + period - 1) / period) : 0;
    }
    f = fopen("/sys/fs/cgroup/cpu/cpu.cfs_quota_us", "re");
    if (f == NULL || fscanf(f, "%lld", &max) != 1)
        max = 0;
    if (f != NULL)
        fclose(f);
    return max > 0 ? (int)((max + 99999) / 100000) : 0;
}

int cpus(void) {
    cpu_set_t set;
    int n = 1, most = quota();
    if (sched_getaffinity(0, sizeof(set), &set) == 0)
        n = CPU_COUNT(&set);
    return most > 0 && most < n ? most : n;
}

/* ---- files ---- */

static char *join(const char *directory, size_t len, const char *name) {
    char *path;
    if (asprintf(&path, "%.*s/%s", (int)len, directory, name) == -1)
        abort();
    return path;
}

/* `name` in `directory` when it is there; else NULL. */
static char *there(const char *directory, size_t len, const char *name) {
    char *path = join(directory, len, name);
    if (access(path, R_OK) == 0)
        return path;
    free(path);
    return NULL;
}

static char *beside_us(const char *name) {
    char self[PATH_MAX];
    ssize_t n = readlink("/proc/self/exe", self, sizeof(self) - 1);
    if (n <= 0)
        return NULL;
    self[n] = '\0';
    return there(self, (size_t)(strrchr(self, '/') - self), name);
}

static char *in_path(const char *name) {
    const char *path = getenv("PATH");
    char *found = NULL;
    while (path != NULL && found == NULL) {
        size_t len = strcspn(path, ":");
        if (len > 0)
            found = there(path, len, name);
        path = path[len] == ':' ? path + len + 1 : NULL;
    }
    return found;
}

static char *in(const char *directory, const char *name) {
    return there(directory, strlen(directory), name);
}

/* The flag's value, or the first of those that were found. */
static char *choose(options *o, int id, bool print, const char *fallback,
                    char *a, char *b, char *c) {
    const char *given = options_get(o, id);
    char *found = a != NULL ? a : b != NULL ? b : c;
    char *chosen = strdup(given != NULL   ? given
                          : found != NULL ? found
                                          : fallback);
    if (chosen == NULL)
        abort();
    if (!print && access(chosen, R_OK) != 0)
        options_mistake(o, "%s is not there: give --%s", chosen,
                        flags[id].name);
    free(a);
    free(b);
    free(c);
    return chosen;
}

/* ---- nginx -V ---- */

static char *ask_version(const char *nginx) {
    enum { SIZE = 16384 };
    char *text = calloc(1, SIZE);
    size_t n = 0;
    ssize_t got;
    int fds[2];
    if (text == NULL || pipe2(fds, O_CLOEXEC) == -1)
        abort();
    pid_t pid = fork();
    if (pid == 0) {
        dup2(fds[1], STDOUT_FILENO);
        dup2(fds[1], STDERR_FILENO);
        execlp(nginx, nginx, "-V", (char *)NULL);
        _exit(127);
    }
    close(fds[1]);
    while (pid > 0 && n < SIZE - 1 &&
           (got = read(fds[0], text + n, SIZE - 1 - n)) > 0)
        n += (size_t)got;
    close(fds[0]);
    if (pid > 0)
        waitpid(pid, NULL, 0);
    return text;
}

void programs_find(settings *s, options *o, bool print) {
    static const char module[] = "ngx_http_capture_module.so";
    s->nginx = choose(o, FLAG_NGINX, print, "/usr/sbin/nginx", in_path("nginx"),
                      in("/usr/sbin", "nginx"), NULL);
    if (s->output != TO_NOWHERE) {
        char *installed = beside_us("../lib/nginx/modules/"
                                    "ngx_http_capture_module.so");
        s->module = choose(
            o, FLAG_MODULE, print, "modules/ngx_http_capture_module.so",
            beside_us(module), installed, in("/usr/lib/nginx/modules", module));
        s->sidecar = choose(o, FLAG_SIDECAR, print, "capture-sidecar",
                            beside_us("capture-sidecar"),
                            in_path("capture-sidecar"), NULL);
    }
    s->nginx_v = ask_version(s->nginx);
    if (!print && strstr(s->nginx_v, "nginx/") == NULL)
        options_mistake(o,
                        "%s -V says nothing: is it NGINX? See "
                        "--nginx-binary",
                        s->nginx);
}
