# Debian packages. An entry is a package name, or COMMAND:PACKAGE where any
# provider of the command will do.

BUILD_PACKAGES=(
    build-essential pkg-config:pkg-config python3:python3 ca-certificates
    # the module, and the server that loads it; capturectl's patterns and gzip
    nginx-dev nginx:nginx libpcre2-dev zlib1g-dev libssl-dev
    # what librdkafka uses for TLS, SASL, OIDC and compression; capturectl's HTTP
    libcurl4-openssl-dev libsasl2-dev libzstd-dev liblz4-dev
    # the sidecar's metrics and tokens, and capturectl's JSON
    libmicrohttpd-dev libjansson-dev libcjson-dev
    # its journal
    libsqlite3-dev
    # fetching and checking source packages
    dpkg-dev debian-archive-keyring
)

TEST_PACKAGES=(
    check python3-venv
    mvn:maven javac:default-jdk-headless
    clang:clang clang-format:clang-format
    valgrind wrk curl openssl:openssl ps:procps ss:iproute2
    # stands in for load balancers
    haproxy:haproxy
)

BROWSER_PACKAGES=(chromium:chromium)

# install_packages ENTRY...: installs what is missing; never touches apt when
# nothing is.
install_packages() {
    local entry missing=() wanted=()
    for entry in "$@"; do
        case $entry in
            *:*) PATH=$PATH:/usr/sbin command -v "${entry%%:*}" >/dev/null \
                     || missing+=("${entry#*:}") ;;
            *) wanted+=("$entry") ;;
        esac
    done
    # dpkg-query fails when it knows nothing of a package: that one is missing
    local have
    have=$(dpkg-query -W -f '${db:Status-Status} ${Package}\n' "${wanted[@]}" \
               2>/dev/null | sed -n 's/^installed //p' || true)
    for entry in "${wanted[@]}"; do
        grep -qxF "$entry" <<<"$have" || missing+=("$entry")
    done
    [ ${#missing[@]} -gt 0 ] || return 0

    say "installing Debian packages: ${missing[*]}"
    as_root apt-get -q update
    as_root env DEBIAN_FRONTEND=noninteractive \
        apt-get -q install -y --no-install-recommends "${missing[@]}"
}
