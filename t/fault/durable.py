"""When was each request durable? By the broker's clock, for a topic with
message.timestamp.type = LogAppendTime and one replica: {id: ms of the record that
has its endOfMessage}. Truncated to a ms, so never later than it was."""

from refconsumer import pb
from refconsumer.record import records_in_order

from fault.judge import id_of

LOG_APPEND_TIME = {"message.timestamp.type": "LogAppendTime"}


def durable_at(stamped):
    """`stamped`: what broker.read_stamped() returns."""
    stamp_of = {(r.partition, r.offset): ms for r, ms in stamped}
    reads, durable = {}, {}
    for record in records_in_order([tuple(r) for r, _ in stamped]):
        for o in record.stream.observations:
            connection = record.stream.connection_id
            if o.kind == pb.READ:
                reads[connection] = reads.get(connection, b"") + o.data
            elif o.kind == pb.DROPPED:
                reads.pop(connection, None)
            elif o.kind == pb.EOM:
                id = id_of(reads.pop(connection))
                durable[id] = stamp_of[record.partition, record.offset]
    return durable
