"""The API of path tests, and the command line."""

import io
import pathlib
import re

import pytest

from refconsumer import response_problem
from refconsumer.__main__ import main
from refconsumer.build import Producer
from refconsumer.cases import GET, OK, POST, STREAMS
from refconsumer.lines import LineError, records_of_lines
from refconsumer.rules import RULES
from refconsumer.strict import MAX_VALUE_BYTES
from refconsumer.verify import verify_topic

CONTRACT = pathlib.Path(__file__).parents[2] / "docs" / "record-contract.md"


def records_of(producer, partition=0):
    return [
        (partition, offset, producer.connection_id, value)
        for offset, value in enumerate(producer.values)
    ]


def test_records_are_taken_in_the_order_of_offsets():
    producer = Producer().read(POST[:9]).flush().read(POST[9:]).eom().flush().write(OK)
    records = records_of(producer.close())
    result = verify_topic(reversed(records))
    result.assert_clean(all_closed=True)
    assert [exchange.request for exchange in result.exchanges] == [POST]


def test_partitions_are_independent():
    one = Producer("one").exchange(GET, OK).flush().exchange(POST, OK).close()
    two = Producer("two").exchange(POST, OK).flush().exchange(GET, OK).close()
    result = verify_topic(records_of(one, 0) + records_of(two, 1))
    result.assert_clean(all_closed=True)
    requests = {
        name: [exchange.request for exchange in exchanges]
        for name, exchanges in result.by_connection().items()
    }
    assert requests == {"one": [GET, POST], "two": [POST, GET]}


def test_offset_given_twice_is_the_caller_s_mistake():
    records = records_of(Producer().exchange(GET, OK).close())
    with pytest.raises(ValueError, match="partition 0 offset 0 was given twice"):
        verify_topic(records * 2)


def test_assert_clean_shows_the_violations():
    result = verify_topic([(3, 7, "conn", None)])
    with pytest.raises(AssertionError, match="rule 1.9 value_null.*partition 3 offset 7"):
        result.assert_clean()


def test_assert_clean_wants_closes_only_when_told():
    result = verify_topic(records_of(Producer().exchange(GET, OK).flush()))
    result.assert_clean()
    with pytest.raises(AssertionError, match="connection conn has no close"):
        result.assert_clean(all_closed=True)


def test_many_violations_are_shortened():
    result = verify_topic([(0, offset, "conn", None) for offset in range(100)])
    with pytest.raises(AssertionError, match=r"^100 violations:(.|\n)*and 80 more"):
        result.assert_clean()


def test_nothing_is_no_violation():
    result = verify_topic([])
    result.assert_clean(all_closed=True)
    assert result.exchanges == []


def test_whole_response_of_an_open_exchange_is_recognised():
    whole = verify_topic(records_of(Producer().exchange(GET, OK).flush()))
    cut = verify_topic(records_of(Producer().exchange(GET, OK[:-1]).flush()))
    assert response_problem(whole.exchanges[0]) is None
    assert response_problem(cut.exchanges[0]).rule == "response_framing"


def test_record_after_a_bad_one_is_still_read():
    (value,) = Producer().exchange(GET, OK).close().values
    result = verify_topic([(0, 0, "x", b"\xff"), (0, 1, "conn", value)])
    assert [violation.slug for violation in result.violations] == ["unparsable"]
    assert len(result.exchanges) == 1


def test_lines_are_read_with_and_without_key():
    keyless, keyed = records_of_lines(["CgE=\n", "\n", "the key|CgE="])
    assert keyless == (0, 0, None, b"\x0a\x01")
    assert keyed == (0, 2, "the key", b"\x0a\x01")


def test_line_that_is_no_base64_is_named():
    with pytest.raises(LineError, match="line 2"):
        records_of_lines(["CgE=", "C!E="])


def _path(name):
    return str(STREAMS / f"{name}.b64")


def test_command_prints_exchanges_and_succeeds(capsys):
    assert main([_path("02_GET_keepalive_then_POST")]) == 0
    out = capsys.readouterr().out
    assert "exchange conn.0 COMPLETE request[40] 'GET /a?x=1 HTTP/1.1'" in out
    assert "connection node conn records=2 exchanges=2" in out


def test_command_fails_on_violations(capsys):
    assert main([_path("01_connect_close_only"), _path("07_Expect_100")]) == 1
    assert "violation rule 4.6 expect:" in capsys.readouterr().out


def test_command_reads_standard_input(monkeypatch, capsys):
    text = pathlib.Path(_path("25_exception")).read_text("ascii")
    monkeypatch.setattr("sys.stdin", io.StringIO(text))
    assert main(["-"]) == 0
    assert "Connection reset by peer" in capsys.readouterr().out


@pytest.mark.parametrize("content", ["no base64!\n", None])
def test_command_tells_a_bad_file_from_a_bad_record(content, tmp_path, capsys):
    file = tmp_path / "export"
    if content:
        file.write_text(content, encoding="ascii")
    assert main([str(file)]) == 2
    assert capsys.readouterr().err.startswith("% ")


def test_command_without_files_says_how(capsys):
    assert main([]) == 2
    assert "FILE" in capsys.readouterr().err


# ---- the document


def test_document_tells_each_rule_under_its_number():
    rows = re.findall(r"^\| (\d+\.\d+) \| `(\w+)`", CONTRACT.read_text("utf-8"), re.M)
    assert {slug: number for number, slug in rows} == {
        slug: number for slug, (number, _) in RULES.items()
    }


def test_document_tells_the_limits():
    text = CONTRACT.read_text("utf-8")
    for limit in (MAX_VALUE_BYTES, 4096, 8192):
        assert f"{limit:,}" in text
