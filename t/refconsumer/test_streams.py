"""Committed and golden streams: what the consumer makes of whole topics.

The golden streams come from the original producer's own serialiser, so they
show that this decoder reads what that one writes, not just what build.py
does. Their folder is named by CAPTURE_GOLDEN; the committed streams hold the
same cases, so a clone without the folder misses no case.
"""

import os
import pathlib

import pytest

from refconsumer.accumulate import COMPLETE
from refconsumer.cases import CASES, FIRST_OWN, STREAMS, lines_of
from refconsumer.lines import records_of_lines
from refconsumer.verify import verify_topic

GOLDEN = os.environ.get("CAPTURE_GOLDEN")
NOW_NS = 1_800_000_000_000_000_000


def _sources():
    sources = [(STREAMS, name) for name in CASES]
    if GOLDEN and pathlib.Path(GOLDEN).is_dir():
        # By what lies there: a new golden stream without a case must fail.
        files = sorted(pathlib.Path(GOLDEN).glob("*.b64"))
        sources += [(pathlib.Path(GOLDEN), file.stem) for file in files]
    return sources


def _read(folder, name):
    lines = (folder / f"{name}.b64").read_text(encoding="ascii").splitlines()
    return verify_topic(records_of_lines(lines), now_ns=NOW_NS)


def _id(value):
    return value.name if isinstance(value, pathlib.Path) else value


@pytest.mark.parametrize("folder, name", _sources(), ids=_id)
def test_stream_accumulates_to_its_exchanges(folder, name):
    case, result = CASES[name], _read(folder, name)
    got = [(exchange.request, exchange.response) for exchange in result.exchanges]
    assert got == case.exchanges
    assert [exchange.index for exchange in result.exchanges] == list(range(len(got)))
    assert {exchange.status for exchange in result.exchanges} <= {COMPLETE}


@pytest.mark.parametrize("folder, name", _sources(), ids=_id)
def test_stream_ends_its_connection(folder, name):
    case, result = CASES[name], _read(folder, name)
    (connection,) = result.connections.values()
    assert connection.closed
    assert connection.forgotten == case.forgotten
    assert connection.exceptions == case.exceptions


@pytest.mark.parametrize("folder, name", _sources(), ids=_id)
def test_stream_violates_exactly_the_listed_rules(folder, name):
    result = _read(folder, name)
    assert {violation.slug for violation in result.violations} == CASES[name].violations


def test_golden_folder_has_every_case_of_its_own():
    if not GOLDEN:
        return  # the committed streams stand in, see above
    names = {file.stem for file in pathlib.Path(GOLDEN).glob("*.b64")}
    assert names == {name for name in CASES if name < FIRST_OWN}


def test_committed_streams_are_what_cases_make():
    committed = {file.stem: file.read_text("ascii") for file in STREAMS.glob("*.b64")}
    assert committed == {name: lines_of(case.values) for name, case in CASES.items()}


def test_segment_run_over_records_is_one_packet():
    result = _read(STREAMS, "23_segmenting_buf_400_POST_body_700")
    assert len(result.exchanges[0].request_packets) == 1


def test_reads_over_records_are_a_packet_each():
    result = _read(STREAMS, "40_upload_over_records")
    assert [len(packet) for packet in result.exchanges[0].request_packets] == [
        1000,
        1000,
        len(result.exchanges[0].request) - 2000,
    ]
