# An NGINX with sanitizers, of the same upstream version as the installed one and
# from Debian's source package: build/nginx-asan, a configured source tree with
# objs/nginx in it.

NGINX_ASAN_CC_OPT="-O1 -g -fno-omit-frame-pointer -fsanitize=address,undefined \
-DNGX_DEBUG_PALLOC=1 -Wno-error"
# What the tests use, and few others: the sanitizers make the compiler slow.
NGINX_ASAN_CONFIGURE=(
    --with-compat --with-debug --with-threads --with-http_ssl_module
    --with-http_v2_module --with-http_realip_module --with-http_slice_module
    --with-http_auth_request_module --with-http_sub_module
    --with-http_addition_module
    --without-http_scgi_module --without-http_uwsgi_module
    --without-http_memcached_module --without-http_ssi_module
    --without-http_autoindex_module --without-http_browser_module
    --without-http_empty_gif_module --without-http_userid_module
)

provide_nginx_asan() {
    local version name
    version=$(dpkg-query -W -f '${source:Upstream-Version}' nginx-dev)
    name=nginx-asan-$version-$(recipe_hash "$(cat script/deps/nginx-asan.sh)")
    [ -e "$CACHE/$name" ] \
        || say "building nginx $version with sanitizers (once; some minutes)"
    NGINX_VERSION=$version cached "$name" build_nginx_asan
    link_into_build "$name" nginx-asan
}

# build_nginx_asan TMP OUT
build_nginx_asan() {
    local tmp=$1 out=$2
    debian_sources | private_apt "$tmp/apt"
    cd "$tmp"
    export APT_CONFIG=$tmp/apt/apt.conf
    fetch_source nginx $(apt-cache showsrc nginx | sed -n 's/^Version: //p' \
                             | grep "^$NGINX_VERSION-" | sort -ruV)
    rm -rf src/debian
    mv src/* "$out"

    cd "$out"
    ./configure "${NGINX_ASAN_CONFIGURE[@]}" \
        --with-cc-opt="$NGINX_ASAN_CC_OPT" \
        --with-ld-opt="-fsanitize=address,undefined"
    # NGINX's own single report: memcpy with a null source and length 0.
    # NGX_DEBUG_PALLOC (above) makes each of a pool's pieces its own allocation,
    # so that ASan sees where one ends.
    echo 'objs/src/core/ngx_string.o: CFLAGS += -fno-sanitize=nonnull-attribute' \
        >>objs/Makefile
    make -j"$(nproc)" -f objs/Makefile binary
    find objs -name '*.o' -delete
}
