# Chroots of Debian suites, made once by mmdebstrap from the archive that this
# machine's apt uses. Sourced after common.sh and packages.sh; needs root.

# beside BUILD_PACKAGES, what the tests themselves call
CHROOT_PACKAGES=(librdkafka-dev check python3-venv default-jdk-headless openssl
                 procps)

# provide_chroot SUITE: sets root to the directory of a chroot in which the tests
# can be built and run.
provide_chroot() {
    _provide_chroot "chroot-$1" "$1" "${BUILD_PACKAGES[@]#*:}" \
        "${CHROOT_PACKAGES[@]}"
}

# provide_base SUITE: the same for a system with nothing but what all have.
provide_base() {
    _provide_chroot "base-$1" "$1" ca-certificates
}

# provide_cross_chroot SUITE ARCHITECTURE PACKAGE...: one of this machine's
# architecture that can also have packages (NAME:ARCHITECTURE) of the other.
provide_cross_chroot() {
    ARCHITECTURES=$(dpkg --print-architecture),$2 \
        _provide_chroot "cross-$2-$1" "$1" "${@:3}"
}

# _provide_chroot NAME SUITE PACKAGE...
_provide_chroot() {
    local name suite=$2
    case $1 in
        # the lists themselves: the name tells one recipe from another
        chroot-*) name=$1-$(recipe_hash "${BUILD_PACKAGES[*]}" \
                                "${CHROOT_PACKAGES[*]}") ;;
        *) name=$1-$(recipe_hash "${*:3}") ;;
    esac
    shift 2
    root=$CACHE/$name
    [ -e "$root" ] || say "making a chroot of Debian $suite (once; about a minute)"
    # under bootstrap's lock: two would make the same one twice
    { flock 9; SUITE=$suite PACKAGES="$(IFS=,; echo "$*")" \
          cached "$name" make_chroot; } 9>"$CACHE/.lock"
}

# make_chroot TMP OUT
make_chroot() {
    local mirror
    mirror=$(debian_mirror)
    [ -n "$mirror" ] \
        || die "no Debian archive among apt's sources: run apt-get update first"
    # its settings for the way to the archive; Valid-Until: mirrors may be
    # snapshots, whose Release files have expired
    { apt-config dump | grep -iE '^Acquire::(https?|ftp)::' || true
      echo 'Acquire::Check-Valid-Until "false";'; } >"$1/apt.conf"
    mmdebstrap --mode=root --variant=minbase --aptopt="$1/apt.conf" \
        --architectures="${ARCHITECTURES:-$(dpkg --print-architecture)}" \
        --include="$PACKAGES" "$SUITE" "$2" "$mirror"
}

# in_overlay ROOT DIR COMMAND...: runs COMMAND in the chroot ROOT, which stays as
# it is: what is written goes to a layer that is thrown away. DIR is at the same
# place in it, and so is the cache. The mounts end with the command.
in_overlay() {
    unshare --mount --propagation private bash -euc '
        lower=$1 dir=$2 cache=$3
        shift 3
        mount -t tmpfs -o mode=755 capture /mnt
        mkdir /mnt/upper /mnt/work /mnt/root
        mount -t overlay -o "lowerdir=$lower,upperdir=/mnt/upper,workdir=/mnt/work" \
            overlay /mnt/root
        root=/mnt/root
        for fs in /proc /dev /sys; do mount --rbind $fs "$root$fs"; done
        mkdir -p "$root$dir" "$root$cache"
        mount --bind "$dir" "$root$dir"
        mount --bind "$cache" "$root$cache"
        for file in /etc/resolv.conf /etc/hosts \
                    /etc/ssl/certs/ca-certificates.crt; do
            [ -e $file ] || continue
            mkdir -p "$root${file%/*}"
            [ -e "$root$file" ] || touch "$root$file"
            mount --bind "$(readlink -f $file)" "$root$file"
        done
        exec chroot "$root" env CAPTURE_CACHE="$cache" HOME=/root \
            DEBIAN_FRONTEND=noninteractive "$@"
    ' - "$1" "$2" "$CACHE" "${@:3}"
}
