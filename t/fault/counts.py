"""The product's own counters, from where they are right.

    of_status(stack.status())     the workers' side: right while NGINX's master
                                  lives, also over a sidecar's death
    of_metrics(port)              the sidecar's side: right while it lives, also
                                  for workers that have gone
"""

import re
import urllib.request
from dataclasses import dataclass, field

# in these an exchange may be in the topic, or not, or without its response
DOUBT = ("link_lost", "maybe_lost", "pinned")

_LINE = re.compile(r'capture_exchanges_(\w+?)(?:_total)?(?:{reason="(\w+)"})? (\d+)')


@dataclass
class Counts:
    seen: int = 0
    captured: int = 0
    pending: int = 0
    truncated: int = 0
    maybe_doubled: int = 0
    filtered: dict = field(default_factory=dict)
    lost: dict = field(default_factory=dict)

    def total(self, what):
        return sum(getattr(self, what).values())

    def balanced(self):
        return self.seen == (self.captured + self.total("filtered")
                             + self.total("lost") + self.pending)

    def doubt(self):
        """Of which it is not said what the topic has of them."""
        return sum(self.lost.get(reason, 0) for reason in DOUBT) + self.pending

    def absent(self):
        """Of which it is said that the topic has no request."""
        return self.total("lost") - self.lost.get("response", 0) - sum(
            self.lost.get(reason, 0) for reason in DOUBT)

    def __str__(self):
        def of(reasons):
            return {k: v for k, v in reasons.items() if v}
        return (f"seen {self.seen} = captured {self.captured} + filtered "
                f"{of(self.filtered)} + lost {of(self.lost)} + pending "
                f"{self.pending}"
                + (f", maybe doubled {self.maybe_doubled}"
                   if self.maybe_doubled else ""))


def of_status(status):
    total = status["total"]
    return Counts(**{name: total[name] for name in (
        "seen", "captured", "pending", "truncated", "maybe_doubled", "filtered",
        "lost")})


def of_metrics(address):
    with urllib.request.urlopen(f"http://{address}/metrics", timeout=5) as r:
        return parse_metrics(r.read().decode())


def parse_metrics(text):
    counts = Counts()
    for name, reason, value in _LINE.findall(text):
        if reason:
            getattr(counts, name)[reason] = int(value)
        else:
            setattr(counts, name, int(value))
    return counts
