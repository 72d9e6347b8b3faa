# Three images, by target:
#
#   proxy     the Java Traffic Capture Proxy's place: NGINX, module, sidecar and
#             capture-proxy, which takes the Java proxy's arguments
#   sidecar   capture-sidecar alone, beside an NGINX that has the module
#   module    nothing but /nginx-VERSION/ngx_http_capture_module.so, for the NGINX of
#             Debian 12 and 13 and each archive in deploy/image/nginx-sources: to
#             copy from (deploy/image/nginx.Dockerfile)
#
# script/test-image builds and starts them, and with --arm64 those for arm64.
#
# The bases are pinned by digest, that of the index of all architectures. A newer one,
# with its digest:
#
#   docker buildx imagetools inspect debian:trixie-slim
#
# (https://github.com/docker-library/repo-info has the same, by the names with dates.)
# Other bases: --build-arg DEBIAN=... --build-arg DEBIAN_OLD=...
# What apt-get installs is what the suite has on the day of the build: its security
# updates are wanted.

ARG DEBIAN=debian:trixie-20260918-slim@sha256:a99cfc517144bc59b1978475ec53b46ecabec7e43635402ee5b77cc54cd1b20a
# the oldest C library that the modules are for
ARG DEBIAN_OLD=debian:bookworm-20260918-slim@sha256:3783cc01769c7b2b1b83a5c5ad96c815348e28ed7da68e2e3687004faa906251
# what compilers run on: of the builder's own architecture, whatever the image's
ARG DEBIAN_BUILD=${DEBIAN}

# hadolint ignore=DL3029
FROM --platform=$BUILDPLATFORM ${DEBIAN_BUILD} AS build
SHELL ["/bin/bash", "-o", "pipefail", "-c"]
ARG TARGETARCH
WORKDIR /src
COPY script script
RUN apt-get -q update && script/bootstrap --for "$TARGETARCH" \
    && rm -rf /var/lib/apt/lists/*
COPY . .
RUN triple=$(dpkg-architecture ${TARGETARCH:+-a"$TARGETARCH"} -qDEB_HOST_GNU_TYPE) \
    && export CC="$triple-gcc" AR="$triple-ar" \
    && make -j"$(nproc)" all \
    && make install DESTDIR=/out prefix=/usr moduledir=/usr/lib/nginx/modules \
    && "$triple-strip" /out/usr/bin/* \
    && version=$(nginx -v 2>&1 | sed 's|.*/\([0-9.]*\).*|\1|') \
    && install -D -t "/modules/nginx-$version" build/ngx_http_capture_module.so


FROM ${DEBIAN_OLD} AS modules
SHELL ["/bin/bash", "-euo", "pipefail", "-c"]
WORKDIR /src
# hadolint ignore=DL3008
RUN apt-get -q update \
    && apt-get -q install -y --no-install-recommends \
        gcc libc6-dev make nginx nginx-dev libssl-dev libpcre2-dev zlib1g-dev \
    && rm -rf /var/lib/apt/lists/*
COPY . .
RUN version=$(nginx -v 2>&1 | sed 's|.*/\([0-9.]*\).*|\1|'); \
    script/build-module-for /usr/sbin/nginx -o build/for; \
    install -D -t "/modules/nginx-$version" build/for/*.so; \
    for source in deploy/image/nginx-sources/nginx-*.tar.gz; do \
        [ -e "$source" ] || continue; \
        version=$(basename "${source#*nginx-sources/nginx-}" .tar.gz); \
        script/build-module-for --nginx-version "$version" --source "$source" \
            -o "build/for-$version"; \
        install -D -t "/modules/nginx-$version" "build/for-$version"/*.so; \
    done


FROM scratch AS module
COPY --from=modules /modules/ /
COPY --from=build /modules/ /


FROM ${DEBIAN} AS sidecar
# hadolint ignore=DL3008
RUN apt-get -q update \
    && apt-get -q install -y --no-install-recommends \
        ca-certificates libcjson1 libcurl4t64 libjansson4 libmicrohttpd12t64 \
        libpcre2-8-0 librdkafka1 libsqlite3-0 zlib1g \
    && rm -rf /var/lib/apt/lists/* \
    && groupadd --system --gid 1000 capture \
    && useradd --system --uid 1000 --gid capture --no-create-home \
        --home-dir /nonexistent --shell /usr/sbin/nologin capture \
    # the socket's directory: NGINX's image has another user, so that the group
    # is what they share (securityContext.fsGroup, or a group of the task)
    && install -d -o capture -g capture -m 2770 /run/capture
COPY --from=build /out/usr/bin/capture-sidecar /out/usr/bin/capturectl /usr/bin/
RUN ldd /usr/bin/capture* >/tmp/ldd && ! grep "not found" /tmp/ldd && rm /tmp/ldd
COPY --chmod=755 deploy/image/healthy /usr/bin/
COPY --chmod=644 deploy/image/capture-sidecar.conf \
    deploy/image/capture-sidecar-msk.conf /etc/capture/
USER 1000:1000
VOLUME /run/capture
# that it works, by its metrics.listen; not that Kafka does
HEALTHCHECK --interval=10s --timeout=3s --start-period=10s \
    CMD ["/bin/bash", "-c", "exec healthy ${HEALTH_PORT:-9145} /live"]
ENTRYPOINT ["capture-sidecar"]
CMD ["-c", "/etc/capture/capture-sidecar.conf"]


FROM ${DEBIAN} AS proxy
SHELL ["/bin/bash", "-o", "pipefail", "-c"]
# hadolint ignore=DL3008
RUN apt-get -q update \
    && apt-get -q install -y --no-install-recommends \
        ca-certificates nginx openssl \
        libcjson1 libcurl4t64 libjansson4 libmicrohttpd12t64 libpcre2-8-0 \
        librdkafka1 libsqlite3-0 zlib1g \
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
RUN ldd /usr/bin/capture* >/tmp/ldd && ! grep "not found" /tmp/ldd && rm /tmp/ldd
COPY --from=build /out/usr/lib/nginx/modules/ /usr/lib/nginx/modules/
COPY --chmod=755 deploy/image/healthy /usr/bin/
COPY --chmod=755 deploy/image/runJavaWithClasspath.sh /
USER 1000:1000
EXPOSE 9200
# that something accepts connections where the arguments say
HEALTHCHECK --interval=10s --timeout=3s --start-period=10s \
    CMD ["/bin/bash", "-c", "exec healthy ${HEALTH_PORT:-9200}"]
ENTRYPOINT ["capture-proxy"]
