#include "wire/counters.h"

#include <stddef.h>

const char *cap_reason_name(unsigned reason) {
    switch (reason) {
#define X(sym, num, cls, name, help)                                           \
    case num:                                                                  \
        return name;
        CAP_REASONS(X)
#undef X
    default:
        return NULL;
    }
}

const char *cap_wait_name(unsigned cell) {
    switch (cell) {
#define X(sym, num, name, help)                                                \
    case num:                                                                  \
        return name;
        CAP_WAITS(X)
#undef X
    default:
        return NULL;
    }
}

const char *cap_redact_name(unsigned cell) {
    switch (cell) {
#define X(sym, num, name, help)                                                \
    case num:                                                                  \
        return name;
        CAP_REDACTS(X)
#undef X
    default:
        return NULL;
    }
}

enum cap_class cap_reason_class(unsigned reason) {
    switch (reason) {
#define X(sym, num, cls, name, help)                                           \
    case num:                                                                  \
        return CAP_CLASS_##cls;
        CAP_REASONS(X)
#undef X
    default:
        return CAP_CLASS_NONE;
    }
}

unsigned cap_waited_cell(uint64_t ms) {
    static const uint64_t bounds[] = {
#define X(bound) bound,
        CAP_WAITED(X)
#undef X
    };
    unsigned i = 0;

    while (i < CAP_WAITED_CELLS - 1 && ms > bounds[i]) {
        i++;
    }
    return i;
}
