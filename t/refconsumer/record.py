"""A Kafka record as the consumer sees it: position, key, value, what it says."""

import heapq
from dataclasses import dataclass

from . import pb


@dataclass
class Record:
    partition: int
    offset: int
    key: str | None
    value: bytes | None
    stream: pb.TrafficStream | None
    error: str | None

    @property
    def where(self) -> str:
        return f"partition {self.partition} offset {self.offset}"


def records_in_order(raw) -> list[Record]:
    """Decodes (partition, offset, key, value) tuples into a consumer's order.

    Within a partition that is the offset's order. Between partitions a
    consumer may see any; the order of the first timestamps comes nearest to
    one that reads live.
    """
    partitions: dict[int, list[Record]] = {}
    for partition, offset, key, value in raw:
        record = _record(partition, offset, key, value)
        partitions.setdefault(partition, []).append(record)
    for partition, records in partitions.items():
        records.sort(key=lambda record: record.offset)
        _refuse_repeated_offsets(records)
    return list(heapq.merge(*partitions.values(), key=_first_timestamp))


def _record(partition, offset, key, value) -> Record:
    if isinstance(key, (bytes, bytearray)):
        # A key that is no UTF-8 equals no connectionId, and is to be shown.
        key = bytes(key).decode("utf-8", "backslashreplace")
    record = Record(partition, offset, key, value, None, None)
    if value is None:
        record.error = "value is null"
        return record
    try:
        record.stream = pb.decode(bytes(value))
    except pb.DecodeError as error:
        record.error = str(error)
    return record


def _refuse_repeated_offsets(records):
    # That would be the test reading a topic twice, not the producer's fault.
    for earlier, later in zip(records, records[1:]):
        if earlier.offset == later.offset:
            raise ValueError(f"{later.where} was given twice")


def _first_timestamp(record) -> int:
    if record.stream is None or not record.stream.observations:
        return 0
    return record.stream.observations[0].ts_ns or 0
