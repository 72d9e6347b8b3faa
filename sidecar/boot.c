#include "sidecar/boot.h"

#include <stdio.h>
#include <string.h>

void boot_id(char *text, size_t size) {
    FILE *f = fopen("/proc/sys/kernel/random/boot_id", "re");

    if (f == NULL || fgets(text, (int)size, f) == NULL) {
        snprintf(text, size, "unknown");
    }
    text[strcspn(text, "\n")] = '\0';
    if (f != NULL) {
        fclose(f);
    }
}

void boot_mark(char *id) {
    char text[64];

    boot_id(text, sizeof(text));
    memset(id, 0, BOOT_ID_SIZE);
    if (strlen(text) == BOOT_ID_SIZE) {
        memcpy(id, text, BOOT_ID_SIZE);
    }
}

bool boot_is_another(const char *id) {
    char now[BOOT_ID_SIZE];

    boot_mark(now);
    return now[0] != '\0' && id[0] != '\0' &&
           memcmp(id, now, BOOT_ID_SIZE) != 0;
}

bool boot_is_this(const char *id) {
    char now[BOOT_ID_SIZE];

    boot_mark(now);
    return now[0] != '\0' && memcmp(id, now, BOOT_ID_SIZE) == 0;
}
