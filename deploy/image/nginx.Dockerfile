# An NGINX image that is there already, and the module:
#
#   docker build -f deploy/image/nginx.Dockerfile --build-arg NGINX=nginx:1.28.0 \
#       --build-arg VERSION=1.28.0 -t nginx-with-capture deploy/image
#
# VERSION must be one that the image `module` has (docs/install.md).
ARG NGINX=nginx:1.28.0
ARG MODULE=capture-module
# hadolint ignore=DL3006
FROM ${MODULE} AS module

# hadolint ignore=DL3006
FROM ${NGINX}
ARG VERSION=1.28.0
COPY --from=module /nginx-${VERSION}/ngx_http_capture_module.so /usr/lib/nginx/modules/
