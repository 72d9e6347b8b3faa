/*
 * Sends metrics to an OpenTelemetry collector, every otlp.interval.
 *
 *     loop's thread              sender's thread
 *     timer: encode into  ---->  one HTTP request, libcurl
 *     the one buffer
 *
 * A collector that is slow, dead or wrong costs nothing but that request: while
 * it is under way the timer passes over (values are cumulative, so nothing is
 * lost by it).  otlp_exports_failed_total counts, and one line says when it
 * begins and when it is over.
 *
 * The way follows from the URL: without a path OTLP/gRPC (port 4317, what the
 * Java proxy speaks), one call over HTTP/2; with a path OTLP/HTTP (port 4318,
 * /v1/metrics).  The message is the same.
 */
#ifndef SIDECAR_OTLP_H
#define SIDECAR_OTLP_H

#include "sidecar/config.h"
#include "sidecar/loop.h"

/* Before any other thread is made: libcurl's beginning. */
void otlp_init(const config *c);

/* 0, also where no endpoint is configured, or -1 after a line in the log. */
int otlp_start(const config *c, loop *l);

/* otlp.headers may have changed. */
void otlp_reload(const config *c);

/* Sends the last values; takes two seconds at most. */
void otlp_stop(void);

#endif
