# Shared by script/bootstrap's parts: the cache, and Debian source packages.
# Sourced, with TOP as the current directory.

CACHE=${CAPTURE_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/capture-proxy}
mkdir -p "$CACHE"
CACHE=$(cd "$CACHE" && pwd)

say() { echo "bootstrap: $*"; }
die() { echo "bootstrap: $*" >&2; exit 1; }

# recipe_hash [WORD...]: a short name for a recipe and its inputs: what the
# words say and, as binaries link to the system's libraries, the distribution.
recipe_hash() {
    { printf '%s\n' "$@"; uname -m; . /etc/os-release; echo "$ID${VERSION_ID:-}"; } \
        | sha256sum | cut -c1-12
}

# cached NAME BUILDER: makes sure that CACHE/NAME exists. BUILDER is called with
# an empty directory and an output directory; the output gets its final name
# only when all of it is there, so an interrupted build leaves nothing behind.
cached() {
    local name=$1 builder=$2 work rc
    [ ! -e "$CACHE/$name" ] || return 0
    work=$(mktemp -d "$CACHE/.work.XXXXXX")
    mkdir "$work/tmp" "$work/out"
    # not as the condition of an if, which would turn errexit off in BUILDER
    set +e
    (set -e; "$builder" "$work/tmp" "$work/out") >"$work/log" 2>&1
    rc=$?
    set -e
    if [ $rc -ne 0 ]; then
        tail -n 40 "$work/log" >&2
        die "building $name failed; all of its output: $work/log"
    fi
    mv "$work/out" "$CACHE/$name"
    rm -rf "$work"
}

# link_into_build NAME LINK: build/LINK points to CACHE/NAME.
link_into_build() {
    mkdir -p "$(dirname "build/$2")"
    ln -sfn "$CACHE/$1" "build/$2"
}

as_root() {
    if [ "$(id -u)" = 0 ]; then "$@"; else sudo "$@"; fi
}

# debian_sources: "URI SUITE-COMPONENT" lines on standard output, one for each
# Debian archive that this machine's own apt configuration uses.
debian_sources() {
    apt-get indextargets --format '$(ORIGIN)|$(REPO_URI) $(CODENAME) $(COMPONENT)' \
        'Created-By: Packages' | sed -n 's/^Debian|//p' | sort -u
}

# fetch_source [--skip-patches] NAME VERSION...: downloads the first of the
# versions that the archive still has (its index may name one that was
# superseded since) and unpacks it to ./src, with or without Debian's patches.
fetch_source() {
    local unpack=(-x) name version
    if [ "$1" = --skip-patches ]; then unpack=(--skip-patches -x); shift; fi
    name=$1
    shift
    for version in "$@"; do
        rm -f "${name}"_*
        if apt-get -q source --download-only "$name=$version"; then
            dpkg-source "${unpack[@]}" "${name}"_*.dsc src
            echo "$version" >version
            return
        fi
    done
    die "the Debian archive has no source of $name $*"
}

# debian_mirror: the URI from which this machine gets Debian itself.
debian_mirror() {
    apt-get indextargets --format '$(LABEL)|$(REPO_URI)' \
        'Created-By: Packages' 'Origin: Debian' | sed -n 's/^Debian|//p' | head -n1
}

# private_apt DIR: reads "URI SUITE COMPONENT" lines and makes DIR/apt.conf, an
# apt configuration with those sources alone, so that the machine's own stays
# as it is. Its other settings (proxies, credentials) still apply.
private_apt() {
    local dir=$1
    mkdir -p "$dir/lists/partial" "$dir/cache/archives/partial"
    sed 's|^|deb-src [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] |' \
        >"$dir/sources.list"
    [ -s "$dir/sources.list" ] \
        || die "no Debian archive among apt's sources: run apt-get update first"
    # Valid-Until: mirrors may be snapshots, whose Release files have expired.
    cat >"$dir/apt.conf" <<END
Dir::Etc::sourcelist "$dir/sources.list";
Dir::Etc::sourceparts "/dev/null";
Dir::Etc::preferences "/dev/null";
Dir::Etc::preferencesparts "/dev/null";
Dir::State::lists "$dir/lists";
Dir::Cache "$dir/cache";
Acquire::Check-Valid-Until "false";
Acquire::Languages "none";
APT::Sandbox::User "root";
END
    APT_CONFIG=$dir/apt.conf apt-get -q update
}
