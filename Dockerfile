# Three images, by target:
#
#   proxy     the Java Traffic Capture Proxy's place: NGINX, module, sidecar and
#             capture-proxy, which takes the Java proxy's arguments
#   sidecar   capture-sidecar alone, beside an NGINX that has the module
#   module    the module's .so for Debian's NGINX, to copy from:
#             COPY --from=... /usr/lib/nginx/modules/ /usr/lib/nginx/modules/
#
# script/test-image builds and starts them.

ARG DEBIAN=debian:trixie-slim

FROM ${DEBIAN} AS build
WORKDIR /src
# The packages are Debian's, of the suite that DEBIAN pins.
COPY script script
RUN apt-get -q update && script/bootstrap \
    && rm -rf /var/lib/apt/lists/*
COPY . .
RUN make -j"$(nproc)" all \
    && make install DESTDIR=/out prefix=/usr moduledir=/usr/lib/nginx/modules \
    && strip /out/usr/bin/*


FROM scratch AS module
COPY --from=build /out/usr/lib/nginx/modules/ /usr/lib/nginx/modules/


FROM ${DEBIAN} AS sidecar
# hadolint ignore=DL3008
RUN apt-get -q update \
    && apt-get -q install -y --no-install-recommends \
        ca-certificates librdkafka1 libmicrohttpd12t64 libcjson1 \
    && rm -rf /var/lib/apt/lists/* \
    && groupadd --system --gid 1000 capture \
    && useradd --system --uid 1000 --gid capture --no-create-home \
        --home-dir /nonexistent --shell /usr/sbin/nologin capture \
    # the socket's directory: NGINX's image has another user, so that the group
    # is what they share (securityContext.fsGroup, or a group of the task)
    && install -d -o capture -g capture -m 2770 /run/capture
COPY --from=build /out/usr/bin/capture-sidecar /out/usr/bin/capturectl /usr/bin/
USER 1000:1000
VOLUME /run/capture
ENTRYPOINT ["capture-sidecar"]
CMD ["-c", "/etc/capture-sidecar.conf"]


FROM ${DEBIAN} AS proxy
SHELL ["/bin/bash", "-o", "pipefail", "-c"]
# hadolint ignore=DL3008
RUN apt-get -q update \
    && apt-get -q install -y --no-install-recommends \
        ca-certificates nginx openssl \
        librdkafka1 libmicrohttpd12t64 libcjson1 libpcre2-8-0 \
    && rm -rf /var/lib/apt/lists/* \
    && groupadd --system --gid 1000 capture \
    && useradd --system --uid 1000 --gid capture --no-create-home \
        --home-dir /nonexistent --shell /usr/sbin/nologin capture \
    # where the deployment's arguments expect a pair; a self-signed one, and
    # public like the image: for clients that do not verify
    && install -d /usr/share/captureProxy/config \
    && openssl req -x509 -newkey rsa:2048 -nodes -days 3650 \
        -subj /CN=localhost -addext subjectAltName=DNS:localhost \
        -out /usr/share/captureProxy/config/pub.pem \
        -keyout /usr/share/captureProxy/config/key.pem \
    && chown capture /usr/share/captureProxy/config/key.pem
COPY --from=build /out/usr/bin/ /usr/bin/
COPY --from=build /out/usr/lib/nginx/modules/ /usr/lib/nginx/modules/
COPY --chmod=755 deploy/image/runJavaWithClasspath.sh /
USER 1000:1000
EXPOSE 9200
# that something accepts connections where the arguments say
HEALTHCHECK --interval=10s --timeout=3s --start-period=10s \
    CMD ["/bin/bash", "-c", "exec 3<>/dev/tcp/127.0.0.1/${HEALTH_PORT:-9200}"]
ENTRYPOINT ["capture-proxy"]
