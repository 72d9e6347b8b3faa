"""The accumulator does what the Replayer's does, good streams or bad."""

from refconsumer import pb
from refconsumer.accumulate import (
    CLOSED_PREMATURELY,
    COMPLETE,
    EXCEPTION,
    EXPIRED,
    accumulate,
)
from refconsumer.build import START_NS, Producer, observation, stream
from refconsumer.cases import GET, OK, POST

SECOND = 1_000_000_000


def run(*values):
    return accumulate(pb.decode(value) for value in values)


def outcome(*values):
    return [
        (exchange.index, exchange.request, exchange.response, exchange.status)
        for exchange in run(*values).exchanges
    ]


def test_response_is_complete_at_next_read_and_at_close():
    producer = Producer().exchange(GET, OK).exchange(POST, OK).close()
    assert outcome(*producer.values) == [
        (0, GET, OK, COMPLETE),
        (1, POST, OK, COMPLETE),
    ]


def test_end_of_topic_leaves_the_last_exchange_open():
    producer = Producer().exchange(GET, OK).exchange(POST, OK).flush()
    assert [one[3] for one in outcome(*producer.values)] == [COMPLETE, CLOSED_PREMATURELY]


def test_end_of_topic_forgets_half_a_request():
    (connection,) = run(*Producer().read(GET[:9]).flush().values).connections.values()
    assert not connection.expired
    assert connection.forgotten == [(CLOSED_PREMATURELY, GET[:9])]
    assert not connection.closed


def test_exception_ends_a_response_and_the_next_read_begins_anew():
    producer = Producer().exchange(GET, OK[:9]).exception("lost").exchange(POST, OK)
    assert outcome(*producer.close().values) == [
        (0, GET, OK[:9], EXCEPTION),
        (1, POST, OK, COMPLETE),
    ]


def test_exception_forgets_half_a_request():
    producer = Producer().read(POST[:9]).exception("lost").exchange(GET, OK)
    result = run(*producer.close().values)
    assert [one.request for one in result.exchanges] == [GET]
    (connection,) = result.connections.values()
    assert connection.forgotten == [("connectionException", POST[:9])]
    assert connection.exceptions == ["lost"]


def test_drop_cancels_reads_of_earlier_records():
    producer = Producer().read(POST[:9]).flush().drop().exchange(GET, OK).close()
    assert outcome(*producer.values) == [(0, GET, OK, COMPLETE)]


def test_hole_makes_one_request_of_two():
    producer = Producer().read(POST[:9]).flush().read(POST[9:]).eom().flush()
    producer.exchange(GET, OK).close()
    first, _, third = producer.values
    assert outcome(first, third) == [(0, POST[:9] + GET, OK, COMPLETE)]


def test_first_record_missing_ignores_the_rest_of_its_request():
    producer = Producer().read(POST[:9]).flush()
    producer.read(POST[9:]).eom().write(OK).exchange(GET, OK).close()
    assert outcome(producer.values[1]) == [(1, GET, OK, COMPLETE)]


def test_topic_that_begins_between_requests_keeps_the_index():
    producer = Producer().exchange(GET, OK).flush().exchange(POST, OK).close()
    assert outcome(producer.values[1]) == [(1, POST, OK, COMPLETE)]


def test_unseen_request_that_was_dropped_is_not_counted():
    producer = Producer().read(POST[:9]).flush().drop().exchange(GET, OK).close()
    assert outcome(producer.values[1]) == [(0, GET, OK, COMPLETE)]


def test_unseen_request_that_broke_is_not_counted():
    producer = Producer().read(POST[:9]).flush().exception().exchange(GET, OK).close()
    assert outcome(producer.values[1]) == [(0, GET, OK, COMPLETE)]


def test_explicit_false_shifts_the_index():
    """Why field 7 must be left out when it is false."""
    observations = [observation(pb.READ, data=GET), observation(pb.EOM, lengths=(19, 13))]
    (exchange,) = run(stream(observations, unterminated=False)).exchanges
    assert exchange.index == 1


def test_resume_fields_are_ignored_on_a_live_connection():
    half = stream([observation(pb.READ, data=GET[:9])])
    rest = [observation(pb.READ, data=GET[9:]), observation(pb.EOM, lengths=(19, 13))]
    (exchange,) = run(half, stream(rest, number=2, prior=7)).exchanges
    assert (exchange.index, exchange.request) == (0, GET)


def test_observations_behind_close_are_not_looked_at():
    values = [
        stream([observation(pb.CLOSE), observation(pb.READ, data=GET)], last=True)
    ]
    result = run(*values)
    (connection,) = result.connections.values()
    assert connection.closed and connection.forgotten == []


def test_record_behind_close_begins_a_new_connection():
    producer = Producer().exchange(GET, OK).close()
    assert outcome(*producer.values, *Producer().exchange(POST, OK).close().values) == [
        (0, GET, OK, COMPLETE),
        (0, POST, OK, COMPLETE),
    ]


def test_same_id_on_two_nodes_is_two_connections():
    one = Producer(node_id="n1").read(GET).eom().flush()
    other = Producer(node_id="n2").read(POST).eom().flush()
    assert [one[1] for one in outcome(*one.values, *other.values)] == [GET, POST]


def test_segment_run_is_one_packet_and_an_unfinished_one_is_lost():
    producer = Producer().read(GET[:5]).read_segment(GET[5:9]).read_segment(GET[9:])
    producer.segment_end().eom().write(OK).read(POST[:9]).read_segment(POST[9:]).eom()
    result = run(*producer.close().values)
    assert [one.request_packets for one in result.exchanges] == [
        [GET[:5], GET[5:]],
        [POST[:9]],
    ]


def test_each_run_is_a_packet_of_its_own():
    producer = Producer().read_segment(GET[:5]).segment_end().read_segment(GET[5:])
    (exchange,) = run(*producer.segment_end().eom().close().values).exchanges
    assert exchange.request_packets == [GET[:5], GET[5:]]


def test_read_inside_a_run_changes_places():
    producer = Producer().read_segment(b"1").read(b"2").read_segment(b"3").segment_end()
    (exchange,) = run(*producer.eom().close().values).exchanges
    assert exchange.request == b"213"


def test_orphan_segment_end_is_survived_here():
    result = run(*Producer().read(GET).segment_end().eom().close().values)
    assert [one.request for one in result.exchanges] == [GET]


def test_what_has_no_place_is_ignored_and_noted():
    producer = Producer().write(OK).read(GET).write(OK).eom().drop().close()
    result = run(*producer.values)
    (connection,) = result.connections.values()
    assert connection.ignored == [
        "write in WAITING",
        "write in READS",
        "requestDropped in WRITES",
    ]
    assert [one.response for one in result.exchanges] == [b""]


def test_timestamps_are_those_of_first_and_last_packet():
    producer = Producer().at(1).read(GET[:9]).at(2).read(GET[9:]).at(3).eom()
    producer.at(4).write(OK[:9]).at(5).write(OK[9:]).at(6).close()
    (exchange,) = run(*producer.values).exchanges
    assert (exchange.request_first_ns, exchange.request_last_ns) == (1, 2)
    assert exchange.eom_ns == 3
    assert (exchange.response_first_ns, exchange.response_last_ns) == (4, 5)


def _other_traffic(at_ns):
    return Producer("other", start_ns=at_ns).exchange(GET, OK).close().values


def test_silent_connection_expires_in_stream_time():
    silent = Producer("silent").read(GET).eom().flush()
    late = silent.write(OK).close().values[1]
    other = _other_traffic(START_NS + 362 * SECOND)
    result = run(silent.values[0], *other, late)
    assert [(one.connection_id, one.status) for one in result.exchanges] == [
        ("silent", EXPIRED),
        ("other", COMPLETE),
    ]
    assert result.connections["node", "silent"].expired
    # The late response finds nobody who waits for it.
    assert result.connections["node", "silent"].ignored == ["write in WAITING"]
    assert result.exchanges[0].response == b""


def test_connection_silent_for_less_than_the_timeout_lives():
    silent = Producer("silent").read(GET).eom().flush().write(OK).close()
    other = _other_traffic(START_NS + 359 * SECOND)
    result = run(silent.values[0], *other, silent.values[1])
    assert {one.status for one in result.exchanges} == {COMPLETE}


def test_one_time_in_the_future_expires_everybody():
    silent = Producer("silent").read(GET).eom().flush()
    result = run(*silent.values, *_other_traffic(START_NS * 2))
    assert result.exchanges[0].status == EXPIRED


def test_time_that_goes_back_expires_nobody():
    silent = Producer("silent").read(GET).eom().flush().write(OK).close()
    other = _other_traffic(START_NS - 4000 * SECOND)
    result = run(silent.values[0], *other, silent.values[1])
    assert {one.status for one in result.exchanges} == {COMPLETE}
