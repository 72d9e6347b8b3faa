"""Commands in containers, or in what makes one of them: users, PID and mount name
spaces of their own."""

import os
import signal

from . import launcher
from .process import Process, children
from .status import wait_until

OWN_SPACES = ["unshare", "--mount", "--pid", "--fork", "--kill-child",
              "--propagation", "private"]


def descendants(pid):
    found = [p for c in children(pid) for p in descendants(c)]
    return [pid, *found]


class Container:
    """A command in a container, and the process of this name in it."""

    def __init__(self, name, argv, log, env=None):
        self.name = name
        self.process = Process(argv, log, env=env)
        self.pid = wait_until(self._find, 60, name, self.process.dead)

    def _find(self):
        return next((p for p in descendants(self.process.pid)
                     if launcher._name(p) == self.name), None)

    def send(self, number):
        os.kill(self.pid, number)

    def stop(self, number):
        self.send(number)
        return self.process.wait(60)

    def kill(self):
        """All of it, if anything is left."""
        for pid in reversed(descendants(self.process.pid)):
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass

    def ids(self):
        """(user, group, PID name space, mount name space)"""
        with open(f"/proc/{self.pid}/status") as f:
            fields = dict(line.split(":", 1) for line in f)
        return (int(fields["Uid"].split()[0]), int(fields["Gid"].split()[0]),
                os.readlink(f"/proc/{self.pid}/ns/pid"),
                os.readlink(f"/proc/{self.pid}/ns/mnt"))


def own_spaces(uid, gid, binds, hidden):
    """The words before a command that runs as this user in name spaces of its own,
    where `binds` ({directory: where it is mounted}) are, and `hidden` directories are
    empty. Needs root."""
    setup = ["mount -t proc proc /proc"]
    setup += [f"mount --bind {directory} {at}" for directory, at in binds.items()]
    setup += [f"mount -t tmpfs -o mode=755 none {directory}" for directory in hidden]
    become = (f"exec setpriv --reuid {uid} --regid {gid} --clear-groups "
              '--no-new-privs "$@"')
    return [*OWN_SPACES, "bash", "-euc", "\n".join([*setup, become]), "-"]
