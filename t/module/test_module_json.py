"""The JSON tokenizer against a second one: random documents, random pieces, and a model
that knows the whole document. A difference prints its seed."""

import ctypes
import glob
import json
import os
import random
import re
import subprocess

import pytest

from rig.process import TOP

NAMES = ["a", "b", "c", "user", "password", "x y", "é", "😀", "a.b", "b.c",
         "user.password", "", 'q"q', "b\\c"]
PATHS = ["a", "user.password", "*.b", "$.a", "a.*.c", "é", "😀.x y", "$.*.*", "b.c",
         "c.b.a", "$.user", 'q"q']
STRUCT = 20000   # bytes: more than either struct has
PENDING = 256


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    lib = str(tmp_path_factory.mktemp("json") / "json.so")
    subprocess.run(["gcc", "-shared", "-fPIC", "-O1", "-I", TOP, "-o", lib,
                    *glob.glob(os.path.join(TOP, "module", "ngx_http_capture_json*.c"))],
                   check=True)
    lib = ctypes.CDLL(lib)
    lib.ngx_http_capture_json_next.restype = ctypes.c_size_t
    lib.ngx_http_capture_json_path.restype = ctypes.c_char_p
    return lib


def value(r, depth=0):
    kind = r.random()
    if depth > 5 or kind < .35:
        return r.choice([
            r.choice(["s", "", "long" * 20, 'é"\\\n', "😀"]), r.randint(-10**6, 10**6),
            r.choice([0.5, -1e-9, 1.5e300, 0]), r.choice([True, False, None])])
    if kind < .7:
        return {r.choice(NAMES): value(r, depth + 1) for _ in range(r.randint(0, 5))}
    return [value(r, depth + 1) for _ in range(r.randint(0, 4))]


def hit(names, paths):
    """Do these names, from the outside in, have a path in them?"""
    for path in paths:
        rooted = path.startswith("$.")
        wanted = path.removeprefix("$.").split(".")
        for start in range(1 if rooted else len(names)):
            part = names[start:start + len(wanted)]
            if len(part) == len(wanted) and all(w in ("*", n) for w, n in zip(wanted, part)):
                return True
    return False


def masked_number(text):
    mantissa, exponent = re.fullmatch("([^e]*)(.*)", text).groups()
    return re.sub(r"\d", "1", mantissa) + re.sub(r"\d", "0", exponent)


def escaped(name):
    """A name in \\u alone."""
    units = name.encode("utf-16-be")
    return '"' + "".join(f"\\u{units[i:i + 2].hex()}" for i in range(0, len(units), 2)) + '"'


def texts(r, v, names, paths):
    """(JSON of v, the same as it must come out)"""
    gap = r.choice(["", "", "", " ", "\n", "\r\n\t"])
    if isinstance(v, dict):
        members = [(escaped(k) if r.random() < .1 else json.dumps(k, ensure_ascii=r.random() < .5),
                    texts(r, x, names + k.split("."), paths)) for k, x in v.items()]
        return tuple("{" + ",".join(f"{gap}{k}{gap}:{x[i]}" for k, x in members) + "}"
                     for i in (0, 1))
    if isinstance(v, list):
        items = [texts(r, x, names, paths) for x in v]
        return tuple("[" + ",".join(x[i] + gap for x in items) + "]" for i in (0, 1))
    text = want = json.dumps(v, ensure_ascii=r.random() < .5)
    if hit(names, paths):
        if isinstance(v, str):
            want = '"' + "*" * (len(text.encode()) - 2) + '"'
        elif not isinstance(v, bool) and v is not None:
            want = masked_number(text)
    return gap + text, gap + want


def run(tokenizer, r, paths, data):
    rules = ctypes.create_string_buffer(STRUCT)
    for path in paths:
        raw = path.encode()
        assert tokenizer.ngx_http_capture_json_path(rules, raw, len(raw)) is None
    state = ctypes.create_string_buffer(STRUCT)
    tokenizer.ngx_http_capture_json_init(state, rules, 1, 0)
    out = b""
    while data:
        piece = data[:r.choice([1, 3, 50, 1 << 20])]
        data = data[len(piece):]
        into = ctypes.create_string_buffer(len(piece) + PENDING)
        n = tokenizer.ngx_http_capture_json_next(state, into, piece, len(piece))
        out += into.raw[:n]
    return out


def test_random_documents_come_out_as_a_model_has_them(tokenizer):
    seed = random.randrange(10**9)
    print("seed", seed)
    r = random.Random(seed)
    changed = 0
    for _ in range(5000):
        paths = r.sample(PATHS, r.randint(1, 4))
        text, want = texts(r, value(r), [], paths)
        assert run(tokenizer, r, paths, text.encode()).decode() == want, (seed, paths, text)
        changed += text != want
    assert changed > 500
