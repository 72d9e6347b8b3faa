"""The machine: its tools, its cores and who runs where, what /proc tells."""

import os
import platform
import shutil

TOOLS = {  # command: Debian package
    "wrk": "wrk",
    "taskset": "util-linux",
    "valgrind": "valgrind",
    "cc": "gcc",
}


def missing_tools(names):
    """What must be installed first: {command: Debian package}."""
    return {n: TOOLS[n] for n in names if shutil.which(n) is None}


class Placement:
    """Which cores who gets. With four cores everybody has one; with fewer `alone`
    has one, and the rest share the other.

    The worker under test alone: the core of the rest bounds a round, and the
    worker's CPU per request says more than the throughput. The broker alone, for
    what a client waits for: it is another machine's matter elsewhere, and must
    not take the time of who waits for it.
    """

    ROLES = ("worker", "load", "source", "sidecar", "broker")

    def __init__(self, alone="worker"):
        cores = sorted(os.sched_getaffinity(0))
        if len(cores) >= 4:
            self.cores = {role: [core] for role, core in zip(self.ROLES, cores)}
            self.cores["sidecar"] = self.cores["broker"] = cores[3:]
        elif len(cores) > 1:
            self.cores = {role: cores[1:] for role in self.ROLES}
            self.cores[alone] = [cores[0]]
        else:
            self.cores = {role: [] for role in self.ROLES}

    def prefix(self, role):
        """What to put before a command so that it runs on the role's cores."""
        cores = self.cores[role]
        return ["taskset", "-c", ",".join(map(str, cores))] if cores else []

    def shared(self):
        """Do load, source, sidecar and broker take time from each other?"""
        return self.cores["load"] == self.cores["sidecar"]

    def __str__(self):
        if not self.cores["worker"]:
            return "one core for everything: nothing is pinned"
        by_cores = {}
        for role, cores in self.cores.items():
            by_cores.setdefault(",".join(map(str, cores)), []).append(role)
        return "; ".join(f"core {c}: {', '.join(roles)}"
                         for c, roles in by_cores.items())


def describe():
    """CPU model, number of cores, kernel."""
    model = "unknown CPU"
    with open("/proc/cpuinfo") as f:
        for line in f:
            if line.startswith("model name"):
                model = line.split(":", 1)[1].strip()
                break
    return f"{model}, {os.cpu_count()} cores, Linux {platform.release()}"


def load_average():
    return os.getloadavg()[0]


def cpu_ns(pid):
    """The CPU time that all threads of a process have had, in ns.

    From schedstat, which counts exactly; /proc/PID/stat counts by ticks of
    10 ms and serves where the kernel has no schedstat.
    """
    total = 0
    try:
        for task in os.listdir(f"/proc/{pid}/task"):
            with open(f"/proc/{pid}/task/{task}/schedstat") as f:
                total += int(f.read().split()[0])
        return total
    except FileNotFoundError:
        with open(f"/proc/{pid}/stat") as f:
            fields = f.read().rpartition(")")[2].split()
        tick = os.sysconf("SC_CLK_TCK")
        return (int(fields[11]) + int(fields[12])) * 1_000_000_000 // tick


def memory(pid):
    """Resident KiB: {"resident": all, "shared": of it, in shared memory}."""
    kib = {}
    with open(f"/proc/{pid}/status") as f:
        for line in f:
            key, _, rest = line.partition(":")
            if key in ("VmRSS", "RssShmem"):
                kib[key] = int(rest.split()[0])
    return {"resident": kib["VmRSS"], "shared": kib.get("RssShmem", 0)}
