"""A stand-in for the Java Traffic Capture Proxy, for what has both in one topic: a
forwarding HTTP/1.1 proxy that records in that one's manner. Its records are made by the
reference consumer's own encoder (refconsumer/build.py).

As the Java proxy:

    connectionId   netty's channel id; nodeId: a UUID of the process
    read, write    one for each piece from the network, raw: also the response's chunks
    flush          before the end of a POST, PUT, DELETE or PATCH goes to the source,
                   which waits for the acknowledgement; when the record is full, in
                   segments; at close. There is no timer: GETs and the last response
                   stay in the process until then
    order          a connection's record is sent when the one before is acknowledged
    stop()         cuts its connections; what has not been sent is gone

What is left out: suppression, Expect, pipelining, upgrades, its failures. A request's
end is found where `rig.client.build_request` puts it. `RealJavaProxy` is the real one,
where there is a command that starts it."""

import asyncio
import os
import re
import secrets
import threading
import time
import uuid

from confluent_kafka import Producer as KafkaProducer

from refconsumer import pb
from refconsumer.build import Producer

from .process import Process, accepts, free_port
from .status import wait_until

PIECE = 1 << 16
RECORD = (1 << 20) - 500
ROOM = 200                # bytes of a record around an observation's data
# its connectionIds, and nobody else's
CHANNEL_ID = re.compile("[0-9a-f]{16}-[0-9a-f]{8}-[0-9a-f]{8}-[0-9a-f]{16}-[0-9a-f]{8}")
MUTATING = ("POST", "PUT", "DELETE", "PATCH")


class JavaProxy:
    """Between clients, which connect to `port`, and a source's port. Each start() is
    another process: another nodeId."""

    def __init__(self, broker, topic, source, record=RECORD):
        self.port = free_port()
        self.errors = []
        self._broker, self._topic, self._source = broker, topic, source
        self._record = record
        self._open = set()
        self._thread = None

    @property
    def connections(self):
        """How many clients are connected."""
        return len(self._open)

    def start(self):
        self._node = str(uuid.uuid4())
        self._kafka = KafkaProducer({
            "bootstrap.servers": self._broker.bootstrap, "acks": "all",
            "enable.idempotence": True, "partitioner": "murmur2_random",
            "linger.ms": 5, "message.max.bytes": 1 << 20, "log_level": 0,
            "allow.auto.create.topics": False})
        self._loop = asyncio.new_event_loop()
        started = threading.Event()

        async def serve():
            self._server = await asyncio.start_server(
                self._connection, "127.0.0.1", self.port, backlog=1024)
            started.set()

        def run():
            self._loop.run_until_complete(serve())
            self._loop.run_forever()
        self._thread = threading.Thread(target=run, daemon=True, name="java-proxy")
        self._thread.start()
        self._ended = False
        self._reports = threading.Thread(target=self._poll, daemon=True)
        self._reports.start()
        assert started.wait(10), "the stand-in has not started"

    def stop(self):
        async def finish():
            self._server.close()
            tasks = asyncio.all_tasks() - {asyncio.current_task()}
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            self._loop.stop()
        if not self._thread:
            return
        asyncio.run_coroutine_threadsafe(finish(), self._loop)
        self._thread.join(10)
        assert not self._thread.is_alive(), "the stand-in does not end"
        self._ended = True
        self._reports.join(10)
        self._loop.close()
        self._open.clear()
        self._thread = None

    def close(self):
        self.stop()
        assert not self.errors, self.errors

    # inside

    def _poll(self):
        while not self._ended:
            self._kafka.poll(0.05)

    async def _connection(self, reader, writer):
        recorder = _Recorder(self._node, self._record, self._send)
        self._open.add(recorder)
        other = None
        try:
            there, other = await asyncio.open_connection("127.0.0.1", self._source)
            ways = [asyncio.ensure_future(self._requests(reader, other, recorder)),
                    asyncio.ensure_future(_responses(there, writer, recorder))]
            # whichever peer goes first
            _, rest = await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
            for way in rest:
                way.cancel()
            await asyncio.gather(*ways, return_exceptions=True)
            recorder.close()
            await recorder.sent()
        except OSError:
            pass                  # the source is away
        except Exception as e:
            self.errors.append(e)
        finally:
            for end in (writer, other):
                if end is not None:
                    end.close()
            self._open.discard(recorder)

    async def _requests(self, reader, source, recorder):
        request = bytearray()
        while piece := await reader.read(PIECE):
            recorder.take(pb.READ, piece)
            request += piece
            if _complete(request):
                recorder.eom()
                if request.split(b" ", 1)[0].decode() in MUTATING:
                    recorder.flush()
                    await recorder.sent()
                request.clear()
            source.write(piece)
            await source.drain()

    async def _send(self, key, value):
        """Returns when it is acknowledged."""
        done = self._loop.create_future()

        def report(error, _):
            if error:
                self.errors.append(error)
            self._loop.call_soon_threadsafe(
                lambda: done.done() or done.set_result(None))
        self._kafka.produce(self._topic, value, key, on_delivery=report)
        await done


class RealJavaProxy:
    """The same, by a `command` (a list) that takes the Java proxy's flags."""

    def __init__(self, command, directory, broker, topic, source):
        self.port = free_port()
        self._broker, self._topic = broker, topic
        self._log = os.path.join(directory, "java-proxy.log")
        self._argv = [*command, "--destinationUri", f"http://127.0.0.1:{source}",
                      "--listenPort", str(self.port), "--kafkaTopic", topic,
                      "--kafkaConnection", broker.bootstrap]

    @property
    def connections(self):
        """Established ones of its port, of which the kernel keeps the list."""
        with open("/proc/net/tcp") as f:
            rows = [line.split() for line in f]
        return sum(row[1].endswith(f":{self.port:04X}") and row[3] == "01"
                   for row in rows)

    def start(self):
        self._process = Process(self._argv, self._log)
        wait_until(lambda: accepts(self.port), 60, "the Java proxy's port",
                   self._process.dead)

    def stop(self):
        """When its records have stopped to come: it ends without waiting for those
        that are on their way."""
        seen = []

        def quiet():
            seen.append(sum(bool(CHANNEL_ID.fullmatch(r.key.decode()))
                            for r in self._broker.read_topic(self._topic)))
            return len(seen) > 5 and len(set(seen[-5:])) == 1
        if self._process.running():
            wait_until(quiet, 60, "no more records of the Java proxy")
            self._process.stop(timeout=30)

    close = stop


async def _responses(source, writer, recorder):
    while piece := await source.read(PIECE):
        recorder.take(pb.WRITE, piece)
        writer.write(piece)
        await writer.drain()


class _Recorder:
    """The records of one connection."""

    def __init__(self, node, limit, send):
        self._stream = Producer(_channel_id(), node)
        self._limit, self._send = limit, send
        self._used = 0
        self._handed = 0          # records
        self._last = None         # the task that sends the newest of them

    def take(self, kind, data):
        """A read or write; where the record has no room for it, a run of segments."""
        self._now = time.time_ns()
        self._stream.at(self._now)
        read = kind == pb.READ
        if self._fits(len(data)):
            self._used += len(data) + ROOM
            (self._stream.read if read else self._stream.write)(data)
            return
        while data:
            if not self._fits(1):
                self.flush()
            size = min(len(data), self._limit - self._used - ROOM)
            self._used += size + ROOM
            self._stream.at(self._now)
            (self._stream.read_segment if read
             else self._stream.write_segment)(data[:size])
            data = data[size:]
        self._stream.at(self._now).segment_end()

    def eom(self):
        """At the time of the read that has ended the request."""
        self._used += ROOM
        self._stream.at(self._now).eom()

    def flush(self):
        if self._used:
            self._stream.flush()
            self._hand_over()

    def close(self):
        self._stream.at(time.time_ns()).close()
        self._hand_over()

    async def sent(self):
        """Waits for the acknowledgement of all that was flushed."""
        if self._last:
            await self._last

    def _fits(self, size):
        return self._used + size + ROOM <= self._limit

    def _hand_over(self):
        self._used = 0
        value = self._stream.values[self._handed]
        self._handed += 1
        self._last = asyncio.ensure_future(self._after(self._last, value))

    async def _after(self, before, value):
        if before:
            await before
        await self._send(self._stream.connection_id, value)


def _channel_id():
    """As 02fc00fffe000001-000071ec-00000001-049dc448792464ea-67bdcf84."""
    return "-".join(secrets.token_hex(size) for size in (8, 4, 4, 8, 4))


def _complete(request):
    """Is this one whole request?"""
    head, end, body = bytes(request).partition(b"\r\n\r\n")
    if not end:
        return False
    if b"\r\nTransfer-Encoding: chunked" in head:
        return body.endswith(b"0\r\n\r\n")
    length = re.search(rb"\r\nContent-Length: (\d+)", head)
    return len(body) == (int(length[1]) if length else 0)
