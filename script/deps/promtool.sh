# promtool alone, out of Debian's prometheus package, which would also install a
# server and start it: build/promtool.

provide_promtool() {
    local name
    name=promtool-$(recipe_hash "$(cat script/deps/promtool.sh)")
    [ -e "$CACHE/$name" ] || say "fetching promtool"
    cached "$name" fetch_promtool
    link_into_build "$name/promtool" promtool
}

# fetch_promtool TMP OUT
fetch_promtool() {
    cd "$1"
    # _apt, as which apt downloads when it can, cannot write here
    apt-get -q -o APT::Sandbox::User=root download prometheus
    dpkg-deb --fsys-tarfile prometheus_*.deb \
        | tar -x -O ./usr/bin/promtool >"$2/promtool"
    chmod 755 "$2/promtool"
}
