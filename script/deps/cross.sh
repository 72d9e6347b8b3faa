# What builds for another architecture than this machine's. Sourced after common.sh
# and packages.sh.

# of the other architecture
CROSS_LIBRARIES=(libpcre2-dev zlib1g-dev libssl-dev libcurl4-openssl-dev
                 librdkafka-dev libmicrohttpd-dev libjansson-dev libcjson-dev
                 libsqlite3-dev)

# cross_packages ARCHITECTURE: as apt wants them; of this machine's, what runs here
cross_packages() {
    printf '%s\n' "crossbuild-essential-$1" pkg-config python3 nginx-dev \
        "${CROSS_LIBRARIES[@]/%/:$1}"
}

# provide_cross ARCHITECTURE: for `make CC=TRIPLE-gcc AR=TRIPLE-ar`, where the
# distribution's librdkafka is new enough. Programs that make runs for what they say
# (capturectl's man pages) need an emulator.
provide_cross() {
    local packages triple
    mapfile -t packages < <(cross_packages "$1")
    as_root dpkg --add-architecture "$1"
    as_root apt-get -q update
    as_root env DEBIAN_FRONTEND=noninteractive apt-get -q install -y \
        --no-install-recommends "${packages[@]}" nginx
    triple=$(dpkg-architecture -a"$1" -qDEB_HOST_GNU_TYPE 2>/dev/null)
    export PKG_CONFIG_LIBDIR=/usr/lib/$triple/pkgconfig:/usr/share/pkgconfig
    pkg-config --atleast-version="$RDKAFKA_MIN" rdkafka \
        || die "librdkafka is older than $RDKAFKA_MIN here: build for $1 on Debian 13"
    mkdir -p build/deps
    write_librdkafka_mk "$(pkg-config --modversion rdkafka) (of the distribution)" \
        "$(pkg-config --cflags rdkafka)" "$(pkg-config --libs rdkafka)"
}
