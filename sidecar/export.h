/*
 * The file export: every record once more in a directory, either
 * `connectionId|base64` lines in one file a start (export.lines; the format
 * that the migration console exports and loads), or a `.protocap` file a
 * record (`<connectionId>_<number>.protocap`, the bare message).
 *
 * Bounded by export.size; when that is reached, or the disk fails, the
 * export stops, says so once and counts.
 */
#ifndef SIDECAR_EXPORT_H
#define SIDECAR_EXPORT_H

#include <stddef.h>
#include <stdint.h>

#include "sidecar/config.h"

typedef struct export_file export_file;

/* NULL after a line in the log. */
export_file *export_open(const config *c);
/* 0, or -1: this record is not in the export. */
int export_record(export_file *e, const char *id, size_t id_len,
                  uint32_t number, const void *value, size_t len);
uint64_t export_records(const export_file *e);
uint64_t export_failed(const export_file *e);
void export_close(export_file *e);

#endif
