"""Exported records: one base64 TrafficStream a line, or `key|base64`."""

import base64
import binascii

from . import pb


class LineError(ValueError):
    """A line is no exported record."""


def records_of_lines(lines, partition=0):
    """Lines -> (partition, offset, key, value), offsets being line numbers.

    A line without a key takes the connectionId for it: what was not written
    down cannot be judged.
    """
    records = []
    for offset, line in enumerate(lines):
        line = line.strip()
        if line:
            records.append((partition, offset, *_key_and_value(line, offset)))
    return records


def _key_and_value(line, offset):
    key, bar, encoded = line.rpartition("|")
    try:
        value = base64.b64decode(encoded, validate=True)
    except (binascii.Error, ValueError) as error:
        raise LineError(f"line {offset + 1}: {error}") from None
    return (key if bar else _own_key(value)), value


def _own_key(value):
    try:
        return pb.decode(value).connection_id
    except pb.DecodeError:
        return None
