#!/usr/bin/env python3
"""Runs a command where programs of arm64 start as if they were this machine's:

    emulated.py QEMU COMMAND...

in a user name space of its own, with a binfmt_misc that nobody else sees (Linux 6.7),
and in mount and PID name spaces that end with it. Needs root. Users are the same on
both sides. QEMU is a static qemu-aarch64; it is opened now, so that chroots need not
have it.
"""

import ctypes
import os
import subprocess
import sys

CLONE_NEWUSER = 0x10000000
IDS = "0 0 65536\n"
BINFMT = "/proc/sys/fs/binfmt_misc"
# an ELF file of 64 bits, little-endian, executable or position-independent, aarch64
MAGIC = bytes.fromhex("7f454c460201010000000000000000000200b700")
MASK = bytes.fromhex("ffffffffffffff00fffffffffffffffffeffffff")


def register(qemu):
    subprocess.run(["mount", "-t", "binfmt_misc", "binfmt_misc", BINFMT], check=True)

    def escaped(data):
        return b"".join(b"\\x%02x" % byte for byte in data)
    with open(f"{BINFMT}/register", "wb", buffering=0) as f:
        # the name by which mmdebstrap knows it
        f.write(b":qemu-aarch64:M::" + escaped(MAGIC) + b":" + escaped(MASK) + b":"
                + os.fsencode(qemu) + b":F\n")


def main(qemu, *command):
    unshared, mapped = os.pipe(), os.pipe()
    pid = os.fork()
    if pid == 0:
        if ctypes.CDLL(None, use_errno=True).unshare(CLONE_NEWUSER) != 0:
            sys.exit(f"emulated: unshare: {os.strerror(ctypes.get_errno())}")
        os.write(unshared[1], b"x")
        os.read(mapped[0], 1)
        os.execvp("unshare", ["unshare", "--mount", "--propagation", "private",
                              "--pid", "--fork", "--kill-child", "--mount-proc",
                              sys.executable, os.path.abspath(__file__),
                              "--inside", qemu, *command])
    os.close(unshared[1])
    if os.read(unshared[0], 1):
        for ids in ("uid_map", "gid_map"):
            with open(f"/proc/{pid}/{ids}", "w") as f:
                f.write(IDS)
        os.write(mapped[1], b"x")
    sys.exit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))


if __name__ == "__main__":
    if sys.argv[1] == "--inside":
        register(sys.argv[2])
        os.execvp(sys.argv[3], sys.argv[3:])
    main(*sys.argv[1:])
