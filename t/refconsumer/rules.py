"""The rules of the record contract: slug -> (number, what must hold and why).

The numbers are those of docs/record-contract.md, which says more about each.
"""

from dataclasses import dataclass

RULES = {
    # The Kafka record
    "key": ("1.2", "the key is the connectionId, or a connection spreads over partitions"),
    "value_too_large": ("1.5", "a value has at most 1048076 bytes"),
    "partition_changed": ("1.8", "one connection stays on one partition, or its order is lost"),
    "value_null": ("1.9", "a null value ends the replay"),
    "value_empty": ("1.9", "an empty value is a record without observations, which ends the replay"),
    "unparsable": ("1.9", "a value that does not parse pins its partition's offset for ever"),
    "oddity": ("1.10", "only known fields, each once: all else is skipped unseen"),
    # The TrafficStream
    "connection_id": ("2.2", "a connectionId is not empty and has no | and no line end"),
    "node_changed": ("2.3", "a connectionId belongs to one nodeId, or its sessions collide"),
    "id_reused": ("2.3", "a connectionId is unique for ever, or the replay hangs"),
    "node_id": ("2.4", "a nodeId is not empty"),
    "index_missing": ("2.5", "a record has number or numberOfThisLastChunk"),
    "last_chunk": ("2.5", "numberOfThisLastChunk is on the record with close, and only there"),
    "prior_wrong": ("2.6", "priorRequestsReceived counts the endOfMessages of earlier records"),
    "unterminated_wrong": ("2.6", "lastObservationWasUnterminatedRead says whether earlier records left a request open"),
    "prior_zero": ("2.7", "priorRequestsReceived is left out when it is 0"),
    "unterminated_false": ("2.7", "lastObservationWasUnterminatedRead is left out when false: its presence shifts the index"),
    "number_hole": ("2.9", "numbers go up by one from 1: behind a hole two requests become one"),
    "number_order": ("2.9", "numbers go up by one from 1: a record came late"),
    "number_duplicate": ("2.10", "no record twice: its bytes would be doubled"),
    "after_close": ("2.11", "close is the last observation of the last record"),
    "first_not_read": ("2.13", "a connection begins with a read, or it counts as resumed and is delayed"),
    "no_observations": ("2.14", "a record without observations ends the replay"),
    # The observations
    "foreign_capture": ("3.1", "only reads, writes, segments and their ends, endOfMessage, requestDropped, connectionException and close are produced"),
    "eom_without_reads": ("3.2", "endOfMessage ends reads; elsewhere it is ignored"),
    "write_before_eom": ("3.2", "a write follows an endOfMessage; elsewhere it is ignored and the response lost"),
    "after_exception": ("3.2", "only close follows connectionException: an id that broke is abandoned"),
    "eom_lengths": ("3.3", "endOfMessage tells the byte lengths of request line and header lines"),
    "empty_data": ("3.4", "a read or write has bytes: an empty read would begin a request"),
    "segment_orphan_end": ("3.5", "segmentEnd ends a run of segments; alone it kills the replayer"),
    "segment_unfinished": ("3.5", "a run of segments ends with segmentEnd, or its bytes are lost"),
    "data_in_segments": ("3.5", "no read or write inside a run of segments: bytes change places"),
    "drop_without_reads": ("3.6", "requestDropped cancels open reads; elsewhere it is ignored"),
    "ts_missing": ("3.9", "every observation has a time"),
    "ts_decreasing": ("3.9", "times do not decrease within a connection"),
    "ts_future": ("3.9", "no time is in the future: it would expire every other connection"),
    "ts_ancient": ("3.9", "no time is near 1970: all else would be replayed decades later"),
    "response_interim": ("3.11", "no 1xx is captured: it is taken for the final response"),
    "request_leftover": ("3.12", "between two endOfMessages is exactly one request"),
    "response_missing": ("3.12", "a completed exchange has a response: the next read came too early, or a cut was not told by connectionException"),
    "response_leftover": ("3.12", "between endOfMessage and the next read is exactly one response"),
    "tunnel": ("3.15", "nothing of a tunnel is captured"),
    "http2_preface": ("3.16", "HTTP/2's preface is no request"),
    # What can be replayed
    "request_limits": ("4.1", "request line of at most 4096 bytes, header lines of at most 8192, without terminators"),
    "request_malformed": ("4.1", "a request's head is strict HTTP/1.1 with CRLF"),
    "request_framing": ("4.5", "a request's body is delimited by Content-Length or chunked, and whole"),
    "response_malformed": ("4.5", "a response's head is strict HTTP/1.1 with CRLF"),
    "response_framing": ("4.5", "a response's body is delimited by Content-Length or chunked, and whole"),
    "expect": ("4.6", "Expect is left out: the target's 100 would be taken for the response"),
    "expired_open": ("5.3", "a response is finished before 360 s of other traffic have passed"),
}


@dataclass(frozen=True)
class Violation:
    slug: str
    where: str
    detail: str

    @property
    def rule(self) -> str:
        return RULES[self.slug][0]

    def __str__(self) -> str:
        number, meaning = RULES[self.slug]
        return f"rule {number} {self.slug}: {meaning} -- {self.detail} [{self.where}]"
