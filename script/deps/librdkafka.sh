# librdkafka: the distribution's own when it is new enough, else a static one
# built from Debian's newer source package. Either way build/deps/librdkafka.mk
# tells the Makefile how to compile and link with it.

# Below this, SCRAM fails against brokers of Kafka 4 ("invalid credentials" with
# the right password).
RDKAFKA_MIN=2.6.1

# The release in which the rules for the producer's settings were checked, and
# later than two fixes that a producer wants: before 2.10.1 the first record to
# a topic could go out up to 1 s late, before 2.12.0 rd_kafka_produceva could
# free headers twice.
RDKAFKA_PIN=2.14.2
RDKAFKA_SUITES=(sid forky trixie)

RDKAFKA_CFLAGS="-O2 -g -fno-omit-frame-pointer -fstack-protector-strong"

provide_librdkafka() {
    local own
    own=$(distribution_librdkafka)
    if [ -z "$own" ]; then
        as_root apt-get -q update
        own=$(distribution_librdkafka)
    fi
    if [ -n "$own" ] && dpkg --compare-versions "$own" ge "$RDKAFKA_MIN"; then
        install_packages librdkafka-dev
        mkdir -p build/deps
        write_librdkafka_mk "$own (of the distribution)" \
            "$(pkg-config --cflags rdkafka)" "$(pkg-config --libs rdkafka)"
        return
    fi

    local name
    name=librdkafka-$RDKAFKA_PIN-$(recipe_hash "$(cat script/deps/librdkafka.sh)")
    if [ ! -e "$CACHE/$name" ]; then
        say "building librdkafka $RDKAFKA_PIN (once; about a minute)"
    fi
    cached "$name" build_librdkafka
    link_into_build "$name/include" deps/include
    link_into_build "$name/lib" deps/lib
    write_librdkafka_mk "$(cat "$CACHE/$name/version")" \
        "-isystem build/deps/include" \
        "build/deps/lib/librdkafka.a $(cat "$CACHE/$name/libs")"
}

# The version that is installed or that apt would install; may be empty.
distribution_librdkafka() {
    apt-cache policy librdkafka-dev 2>/dev/null \
        | awk '$1 == "Installed:" && $2 != "(none)" { print $2; exit }
               $1 == "Candidate:" && $2 != "(none)" { print $2; exit }'
}

write_librdkafka_mk() {
    local new
    new=$(printf '%s\n' "# Written by script/bootstrap." \
        "RDKAFKA_VERSION := $1" "RDKAFKA_CFLAGS := $2" "RDKAFKA_LIBS := $3")
    # an unchanged file keeps its time, so that nothing is built again
    [ "$(cat build/deps/librdkafka.mk 2>/dev/null)" = "$new" ] \
        || printf '%s\n' "$new" >build/deps/librdkafka.mk
}

# build_librdkafka TMP OUT: OUT/include, OUT/lib/librdkafka.a, OUT/libs (what to
# link after it) and OUT/version.
build_librdkafka() {
    local tmp=$1 out=$2
    printf "$(debian_mirror) %s main\n" "${RDKAFKA_SUITES[@]}" \
        | private_apt "$tmp/apt"
    export APT_CONFIG=$tmp/apt/apt.conf
    cd "$tmp"
    # Debian's patches only replace the bundled cJSON and nanopb by its own
    fetch_source --skip-patches librdkafka $(librdkafka_versions)
    cd src
    # Not --enable-static: that would also link OpenSSL and curl statically,
    # and their security updates must reach us.
    CFLAGS=$RDKAFKA_CFLAGS ./configure --prefix="$out"
    make -j"$(nproc)" -C src librdkafka.a

    mkdir -p "$out/include/librdkafka" "$out/lib"
    cp src/rdkafka.h src/rdkafka_mock.h "$out/include/librdkafka/"
    cp src/librdkafka.a "$out/lib/"
    sed -n 's/^MKL_DYNAMIC_LIBS=[[:space:]]*//p' Makefile.config >"$out/libs"
    cp ../version "$out/"
}

# What Debian offers: the pinned release first, then what is newer, oldest first,
# then what is older but will do, newest first.
librdkafka_versions() {
    local version newer=() older=()
    for version in $(apt-cache showsrc librdkafka \
                         | sed -n 's/^Version: //p' | sort -uV); do
        if [ "${version%-*}" = "$RDKAFKA_PIN" ]; then
            echo "$version"
        elif dpkg --compare-versions "$version" gt "$RDKAFKA_PIN"; then
            newer+=("$version")
        elif dpkg --compare-versions "$version" ge "$RDKAFKA_MIN"; then
            older=("$version" "${older[@]}")
        fi
    done
    printf '%s\n' "${newer[@]}" "${older[@]}"
}
