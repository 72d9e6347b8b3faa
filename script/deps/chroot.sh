# Chroots of Debian suites, made once by mmdebstrap from the archive that this
# machine's apt uses. Sourced after common.sh and packages.sh; needs root.

# beside BUILD_PACKAGES, what the tests themselves call
CHROOT_PACKAGES=(librdkafka-dev check python3-venv default-jdk-headless openssl
                 procps curl iproute2 haproxy)

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

# provide_cross_chroot SUITE ARCHITECTURE: one of this machine's architecture, with
# what builds for the other (cross.sh), its unit tests, and what runs its programs.
provide_cross_chroot() {
    local packages
    mapfile -t packages < <(cross_packages "$2")
    ARCHITECTURES=$(dpkg --print-architecture),$2 \
        _provide_chroot "cross-$2-$1" "$1" "${packages[@]}" "check:$2" curl qemu-user
}

# provide_foreign_base SUITE ARCHITECTURE: as provide_base, of an architecture whose
# programs this machine can start (t/rig/emulated.py).
provide_foreign_base() {
    ARCHITECTURES=$2 _provide_chroot "base-$2-$1" "$1" ca-certificates
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

# provide_system SUITE: sets root to a system that can be started.
provide_system() {
    _provide_chroot "system-$1" "$1" ca-certificates systemd
}

# in_system ROOT DIR OUT COMMAND...: starts ROOT (provide_system) with systemd as
# its first process, and runs COMMAND in it as a service; its output goes to OUT/log.
# Returns what COMMAND returns. The system can read DIR, at /srv/capture, and write
# OUT, at /srv/out; its own changes are thrown away. It has the machine's network.
#
# No directory of the machine's is under the system's /tmp, which systemd empties.
in_system() {
    timeout -s KILL 900 \
        unshare --pid --fork --kill-child --mount --cgroup --uts --ipc \
        --propagation private bash -euc '
        lower=$1 dir=$2 out=$3
        shift 3
        mount -t tmpfs -o mode=755 capture /mnt
        mkdir /mnt/upper /mnt/work /mnt/root
        mount -t overlay -o "lowerdir=$lower,upperdir=/mnt/upper,workdir=/mnt/work" \
            overlay /mnt/root
        cd /mnt/root
        mkdir -p srv/capture srv/out old
        mount --bind "$dir" srv/capture
        mount -o remount,bind,ro srv/capture
        mount --bind "$out" srv/out
        mount -t proc proc proc
        mount --bind proc/sys proc/sys
        mount -o remount,bind,ro proc/sys
        mount -t tmpfs -o mode=755 tmpfs dev
        for node in null zero full random urandom tty; do
            touch dev/$node
            mount --bind /dev/$node dev/$node
        done
        mkdir dev/pts dev/shm
        mount -t devpts -o newinstance,ptmxmode=666 devpts dev/pts
        ln -s pts/ptmx dev/ptmx
        mount -t tmpfs tmpfs dev/shm
        mount --bind /sys sys
        mount -t tmpfs tmpfs sys/fs
        mkdir sys/fs/cgroup
        mount -t cgroup2 cgroup2 sys/fs/cgroup
        mount -o remount,bind,ro sys
        mount -t tmpfs -o mode=755 tmpfs run
        for file in /etc/resolv.conf /etc/hosts /etc/ssl/certs/ca-certificates.crt; do
            cp -L --remove-destination $file .$file
        done
        printf "%s\n" "#!/bin/bash" "$(printf "%q " "$@")>/srv/out/log 2>&1" \
            "systemctl exit \$?" >usr/local/sbin/capture-test
        chmod 755 usr/local/sbin/capture-test
        printf "%s\n" "[Service]" "Type=oneshot" "TimeoutStartSec=infinity" \
            "Environment=DEBIAN_FRONTEND=noninteractive HOME=/root" \
            "ExecStart=/usr/local/sbin/capture-test" \
            >etc/systemd/system/capture-test.service
        mkdir -p etc/systemd/system/multi-user.target.wants
        ln -s ../capture-test.service etc/systemd/system/multi-user.target.wants/
        ln -sfn /lib/systemd/system/multi-user.target etc/systemd/system/default.target
        pivot_root . old
        exec chroot . /usr/bin/env -i container=other PATH=/usr/sbin:/usr/bin:/sbin:/bin \
            /lib/systemd/systemd --system --log-target=null --show-status=0
    ' - "$1" "$2" "$3" "${@:4}"
}
