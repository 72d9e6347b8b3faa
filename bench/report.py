"""Tables of what was measured."""

from statistics import median

from load import LOADS

CASE_NAMES = {
    "plain": "plain proxy_pass",
    "off": "module loaded, off",
    "drain": "capture, reader only",
    "mock": "capture, mock cluster",
    "kafka": "capture, Kafka",
    "mirror": "nginx mirror",
}


def table(rows, words=False):
    """Rows of texts; the first is the head. All columns but the first are
    numbers, set to the right; with `words` the last is not."""
    widths = [max(len(r[i]) for r in rows) for i in range(len(rows[0]))]
    if words:
        widths[-1] = 8
    lines = []
    for n, row in enumerate(rows):
        cells = [row[0].ljust(widths[0])]
        cells += [c.rjust(w) for c, w in zip(row[1:], widths[1:])]
        if words:
            cells[-1] = row[-1]
        lines.append("  ".join(cells).rstrip())
        if n == 0:
            lines.append("  ".join("-" * w for w in widths))
    return "\n".join(lines)


def _ratios(mine, plain, key, inverse=False):
    """A value's ratio to plain's in the same round, round by round."""
    plain = {s["round"]: s[key] for s in plain}
    pairs = [(s[key], plain[s["round"]]) for s in mine if s["round"] in plain]
    if inverse:
        pairs = [(b, a) for a, b in pairs]
    return [a / b if b else 0.0 for a, b in pairs]


MEDIANS = ("rps", "p50_us", "p99_us", "worker_us", "worker_busy", "sidecar_us",
           "broker_us", "settle_s")
SUMS = ("requests", "errors", "seen", "captured", "filtered", "lost")


def summary(samples):
    """A row a load, mode and case: medians, ratios round by round, sums."""
    groups = {}
    for s in samples:
        groups.setdefault((s["load"], s["mode"], s["case"]), []).append(s)
    rows = []
    for (load, mode, case), mine in sorted(
            groups.items(), key=lambda g: (list(LOADS).index(g[0][0]), g[0][1],
                                           list(CASE_NAMES).index(g[0][2]))):
        plain = groups[load, mode, "plain"]
        row = {"load": load, "mode": mode, "case": case, "rounds": len(mine),
               "rps_ratio": _ratios(mine, plain, "rps"),
               "cpu_ratio": _ratios(mine, plain, "worker_us", inverse=True),
               "pending": mine[-1].get("pending", 0)}
        for key in mine[0]:
            if key in MEDIANS:
                row[key] = median(s[key] for s in mine)
            elif key in SUMS or key.startswith("lost("):
                row[key] = sum(s[key] for s in mine)
        rows.append(row)
    return rows


def _spread(values):
    return f"{median(values):.2f} ({min(values):.2f}-{max(values):.2f})"


def _number(row, key, form="{:.1f}"):
    return form.format(row[key]) if key in row else ""


def _fate(row):
    """What became of the exchanges; losses are never left out."""
    text = f"{row['errors']} ERRORS, " if row["errors"] else ""
    if not row.get("seen"):
        return text or "-"
    text += f"{row['captured']} of {row['seen']}"
    if row["lost"]:
        reasons = [f"{key[5:-1]} {n}" for key, n in row.items()
                   if key.startswith("lost(") and n]
        text += (f", LOST {100 * row['lost'] / row['seen']:.1f}%: "
                 + ", ".join(reasons))
    if row["filtered"]:
        text += f", left by the client {row['filtered']}"
    if row["pending"]:
        text += f", pending {row['pending']}"
    return text


def full(rows):
    """As fast as it goes."""
    head = ["requests/s", "ratio to plain", "worker us", "by worker's CPU",
            "worker busy", "sidecar us", "broker us", "captured"]
    return _loads(rows, "full", "as fast as it goes", head, lambda r: [
        _number(r, "rps", "{:.0f}"), _spread(r["rps_ratio"]),
        _number(r, "worker_us"), _spread(r["cpu_ratio"]),
        _number(r, "worker_busy", "{:.0%}"), _number(r, "sidecar_us"),
        _number(r, "broker_us"), _fate(r)])


def paced(rows):
    """At a rate that everything can take."""
    head = ["requests/s", "worker us", "by worker's CPU", "sidecar us",
            "broker us", "p50 us", "p99 us", "captured"]
    return _loads(rows, "paced", "paced", head, lambda r: [
        _number(r, "rps", "{:.0f}"), _number(r, "worker_us"),
        _spread(r["cpu_ratio"]), _number(r, "sidecar_us"),
        _number(r, "broker_us"), _number(r, "p50_us", "{:.0f}"),
        _number(r, "p99_us", "{:.0f}"), _fate(r)])


def _loads(rows, mode, words, head, cells):
    """A table a load; the last column is words."""
    text = []
    for load in dict.fromkeys(r["load"] for r in rows):
        lines = [[f"{LOADS[load].name}, {words}"] + head]
        lines += [[CASE_NAMES[r["case"]]] + cells(r) for r in rows
                  if r["load"] == load and r["mode"] == mode]
        if len(lines) > 1:
            text.append(table(lines, words=True))
    return "\n\n".join(text)


def memory(rows):
    """rows: [(case, process, {"resident", "shared"})]"""
    lines = [["resident after load", "process", "KiB", "of it shared pool"]]
    for case, process, m in rows:
        lines.append([CASE_NAMES[case], process, str(m["resident"]),
                      str(m["shared"])])
    return table(lines)


def instructions(profiles):
    lines = [["instructions per request", "GET 1 KiB", "more", "POST 1 KiB",
              "more"]]
    cases = list(next(iter(profiles.values())))
    for case in cases:
        line = [CASE_NAMES[case]]
        for key in profiles:
            total = sum(profiles[key][case].values())
            line += [f"{total:.0f}",
                     f"{total - sum(profiles[key]['plain'].values()):+.0f}"]
        lines.append(line)
    return table(lines)


def top(profiles, case, count):
    """Where the case's additional instructions are, largest first."""
    text = []
    for key, by_case in profiles.items():
        more = dict(by_case[case])
        for f, n in by_case["plain"].items():
            more[f] = more.get(f, 0) - n
        lines = [[f"{LOADS[key].name}: {CASE_NAMES[case]} less plain, by function",
                  "instructions"]]
        for f, n in sorted(more.items(), key=lambda i: -abs(i[1]))[:count]:
            lines.append([f.rsplit("/", 1)[-1], f"{n:+.0f}"])
        text.append(table(lines))
    return "\n\n".join(text)
