"""A TCP proxy that does to its connections what networks do: delays, silence,
resets. What it lets through is unchanged and in order."""

import asyncio
import contextlib
import random
import socket
import struct
import threading

from .process import free_port

PIECE = 1 << 16

TO_TARGET, FROM_TARGET = "to_target", "from_target"
BOTH = (TO_TARGET, FROM_TARGET)


class TcpFault:
    """Between clients, which connect to `port`, and `target`, a port. All of it
    can be changed at any time, and holds for connections that are there too.

        delay(0.05)          each piece arrives that much later, or up to `jitter`
                             more than that
        hold(FROM_TARGET)    what comes that way is kept; release() lets it go on
        reset()              ends every connection with a RST; what it held is gone
        refuse = True        a new connection is reset at once
        silent = True        a new connection is accepted, and never answered
    """

    def __init__(self, target=None):
        self.port = free_port()
        self.target = target
        self.refuse = False
        self.silent = False
        self.accepted = 0
        self.passed = dict.fromkeys(BOTH, 0)   # bytes
        self._delay = dict.fromkeys(BOTH, (0, 0))
        self._open = {}
        self._pairs = set()
        self._loop = None
        self._thread = None

    @property
    def bootstrap(self):
        return f"127.0.0.1:{self.port}"

    def start(self):
        started = threading.Event()
        self._loop = asyncio.new_event_loop()

        async def serve():
            self._open = {way: asyncio.Event() for way in BOTH}
            for event in self._open.values():
                event.set()
            self._server = await asyncio.start_server(
                self._connection, "127.0.0.1", self.port, backlog=1024)
            started.set()

        def run():
            self._loop.run_until_complete(serve())
            self._loop.run_forever()
        self._thread = threading.Thread(target=run, daemon=True, name="tcp-fault")
        self._thread.start()
        assert started.wait(10), "the fault proxy has not started"

    def close(self):
        async def finish():
            self._server.close()
            self._reset()
            tasks = asyncio.all_tasks() - {asyncio.current_task()}
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            self._loop.stop()
        if self._thread:
            asyncio.run_coroutine_threadsafe(finish(), self._loop)
            self._thread.join(10)
            assert not self._thread.is_alive(), "the fault proxy does not end"
            self._loop.close()
            self._thread = None

    def delay(self, seconds, jitter=0, ways=BOTH):
        for way in _ways(ways):
            self._delay[way] = (seconds, jitter)

    def hold(self, ways=BOTH):
        self._call(lambda: [self._open[way].clear() for way in _ways(ways)])

    def release(self, ways=BOTH):
        self._call(lambda: [self._open[way].set() for way in _ways(ways)])

    def reset(self):
        self._call(self._reset)

    def heal(self):
        """Whatever was wrong is so no more."""
        self.refuse = self.silent = False
        self.delay(0)
        self.release()

    # inside

    def _call(self, function):
        """In the loop's thread; returns when it is done."""
        done = threading.Event()
        self._loop.call_soon_threadsafe(lambda: (function(), done.set()))
        assert done.wait(10), "the fault proxy hangs"

    def _reset(self):
        for writer in list(self._pairs):
            _abort(writer)

    async def _connection(self, reader, writer):
        self.accepted += 1
        self._pairs.add(writer)
        other = None
        try:
            if self.refuse:
                _abort(writer)
                return
            if self.silent:
                await reader.read()      # until it goes, or reset()
                return
            there, other = await asyncio.open_connection("127.0.0.1", self.target)
            self._pairs.add(other)
            await asyncio.gather(self._pump(reader, other, TO_TARGET),
                                 self._pump(there, writer, FROM_TARGET))
        except (OSError, asyncio.CancelledError):
            pass                         # a peer has gone, or close()
        finally:
            for end in (writer, other):
                if end is not None:
                    end.close()          # what was written still goes out
                    self._pairs.discard(end)

    async def _pump(self, reader, writer, way):
        while piece := await reader.read(PIECE):
            least, jitter = self._delay[way]
            if least or jitter:
                await asyncio.sleep(least + jitter * random.random())
            await self._open[way].wait()
            writer.write(piece)
            self.passed[way] += len(piece)
            await writer.drain()
        raise ConnectionAbortedError     # one end has closed: both do


def _abort(writer):
    sock = writer.get_extra_info("socket")
    with contextlib.suppress(OSError):     # it has been closed already
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


def _ways(ways):
    return (ways,) if isinstance(ways, str) else ways
