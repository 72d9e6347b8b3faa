/*
 * Which run of the host this is.  What was written to files and not synced is
 * whole only as long as that run lasts.
 */
#ifndef SIDECAR_BOOT_H
#define SIDECAR_BOOT_H

#include <stdbool.h>
#include <stddef.h>

#define BOOT_ID_SIZE 36u

/* /proc/sys/kernel/random/boot_id, or "unknown", which is no run's. */
void boot_id(char *text, size_t size);

/* Whether `id` (BOOT_ID_SIZE bytes, not terminated) is this run's, or another's,
   for certain: neither where one of the two is not known. */
bool boot_is_this(const char *id);
bool boot_is_another(const char *id);

/* Writes this run's there; zeros where it is not known. */
void boot_mark(char *id);

#endif
