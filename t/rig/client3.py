"""An HTTP/3 client: the package aioquic makes QUIC's packets and HTTP/3's frames,
and the test says when each frame goes out.

    with Client3(port, cafile) as c:
        s = c.start("POST", "/_bulk", end=False)
        c.data(s, b"{}", end=False)
        c.data(s, b"", end=True)      # the stream's end, later
        answer = c.receive(s)

A window that a test has closed (`window`, open_window(), blocked()) and early data
(`ticket`) are there, too.

A thread moves the packets: acknowledgements and retransmissions do not wait for
the test. Frames go out when a call says so, as congestion control allows.
"""

import contextlib
import select
import socket
import threading
import time

from aioquic.h3.connection import H3Connection
from aioquic.h3.events import DataReceived, HeadersReceived
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.connection import QuicConnection
from aioquic.quic.events import (ConnectionTerminated, HandshakeCompleted,
                                 StopSendingReceived, StreamReset)

from .client import Answer

REQUEST_CANCELLED = 0x10c
DATAGRAM = 65536


class _H3(H3Connection):
    """Takes a Content-Length without a body for what it is after HEAD, and in a
    304. (What is missing otherwise a test sees.)"""

    def _check_content_length(self, stream):
        if stream.content_length:
            super()._check_content_length(stream)


class _Quic(QuicConnection):
    """Gives a stream of ours more credit only when the test allows it."""
    withheld = False

    def _write_stream_limits(self, builder, space, stream):
        if not (stream.stream_id % 4 == 0 and self.withheld):
            super()._write_stream_limits(builder=builder, space=space, stream=stream)


class Client3:
    """One connection. Methods are those of Client2 (client2.py) where both
    protocols have the thing.

    window    the bytes that each stream may get before open_window()
    ticket    of `tickets` of an earlier connection: what is sent at once is early
              data, before the handshake; `early` tells whether it was taken
    """

    def __init__(self, port, cafile, host="127.0.0.1", timeout=20, window=None,
                 ticket=None):
        self.timeout = timeout
        self.answers = {}                # stream -> Answer, growing
        self.done = set()                # streams whose answers are whole
        self.resets = {}                 # stream -> code of the peer's reset
        self.stopped = {}                # stream -> code of its STOP_SENDING
        self.closed = None               # ConnectionTerminated
        self.tickets = []                # to resume this session with
        self.early = None                # has the server taken early data?
        self.goaway = None               # as Client2's; GOAWAY is not looked at
        self.sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
        self.sock.connect((host, port))
        self._address = (host, port)
        self._wake, self._woken = socket.socketpair()
        self._cond = threading.Condition()
        self._stop = False
        self._connected = False
        self.quic = _Quic(configuration=QuicConfiguration(
            is_client=True, alpn_protocols=["h3"], cafile=cafile,
            server_name="source.test", session_ticket=ticket,
            **({"max_stream_data": window} if window else {})),
            session_ticket_handler=self.tickets.append)
        self.quic.withheld = window is not None
        self.quic.connect(self._address, time.monotonic())
        self.h3 = _H3(self.quic)
        self._flush()
        self._thread = threading.Thread(target=self._run, daemon=True,
                                        name="client3")
        self._thread.start()
        if ticket is None:
            self.connected()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def connected(self):
        """Waits for the handshake's end."""
        with self._cond:
            self._wait(lambda: self._connected or self.closed)
            assert not self.closed, self.closed

    # sending

    def start(self, method, target, headers=(), end=True, authority="source.test",
              scheme="https", data=None):
        """HEADERS; the stream's number. `authority` None: without it. `data`: a
        frame of it behind them, before an answer can end the stream."""
        fields = [(":method", method), (":scheme", scheme), (":path", target)]
        if authority is not None:
            fields.insert(2, (":authority", authority))
        with self._cond:
            stream = self.quic.get_next_available_stream_id()
            self.answers[stream] = None
            self.h3.send_headers(stream, [
                (n.encode("latin-1"), v.encode("latin-1"))
                for n, v in [*fields, *headers]], end_stream=end)
            if data is not None:
                self.h3.send_data(stream, data, False)
            self._flush()
        return stream

    def data(self, stream, body, end=True, frame=1 << 14):
        """DATA; it goes out as flow control allows. False: the server has said
        before that it wants none."""
        with self._sending(stream) as stopped:
            if stopped:
                return False
            pieces = [body[at:at + frame] for at in range(0, len(body), frame)]
            for i, piece in enumerate(pieces):
                self.h3.send_data(stream, piece, end and i == len(pieces) - 1)
            if not pieces and end:
                self.quic.send_stream_data(stream, b"", end_stream=True)
            return True

    def empty_frame(self, stream, end=True):
        """A DATA frame without a byte."""
        with self._sending(stream) as stopped:
            if not stopped:
                self.h3.send_data(stream, b"", end)

    def trailers(self, stream, headers):
        with self._sending(stream) as stopped:
            if not stopped:
                self.h3.send_headers(stream, headers, end_stream=True)

    def reset_stream(self, stream, code=REQUEST_CANCELLED):
        """Cancels both directions, as far as they are open."""
        with self._cond:
            self.quic.reset_stream(stream, code)
            try:
                self.quic.stop_stream(stream, code)
            except ValueError:           # both have ended
                pass
            self._flush()

    def blocked(self, stream):
        """Has something to send, and no credit of the server's?"""
        with self._cond:
            sending = self.quic._streams.get(stream)
            return (sending is not None and not sending.sender.buffer_is_empty
                    and (sending.sender.highest_offset
                         >= sending.max_stream_data_remote))

    def open_window(self):
        """From now on streams get more credit as they have used theirs."""
        with self._cond:
            self.quic.withheld = False
            self._flush()

    # receiving

    def request(self, method, target, headers=(), body=None, length=True, **options):
        """Sends a request; `length` False: without Content-Length. Its Answer."""
        return self.receive(self.send_request(method, target, headers, body,
                                              length, **options))

    def send_request(self, method, target, headers=(), body=None, length=True,
                     **options):
        if body is not None and length:
            headers = [*headers, ("content-length", str(len(body)))]
        stream = self.start(method, target, headers, end=body is None, **options)
        if body:
            self.data(stream, body)
        elif body is not None:
            # the end alone, when it comes at once with the head, is no body
            self.empty_frame(stream)
        return stream

    def receive(self, stream):
        """The Answer when all of it is there, its stream was reset or the
        connection has ended (then not `complete`); None without a head."""
        with self._cond:
            self._wait(lambda: stream in self.done or stream in self.resets
                       or self.closed)
            answer = self.answers[stream]
            if answer is not None:
                answer.complete = stream in self.done
            return answer

    def receive_head(self, stream, size=0):
        """Waits for an answer's head and `size` bytes of its body."""
        with self._cond:
            self._wait(lambda: self.closed or (
                self.answers[stream] is not None
                and len(self.answers[stream].body) >= size))
            assert not self.closed, self.closed
            return self.answers[stream]

    def receive_some(self, stream, size):
        """Waits for `size` bytes of an answer's body, or for its end."""
        with self._cond:
            self._wait(lambda: stream in self.done or stream in self.resets
                       or self.closed or (
                           self.answers[stream] is not None
                           and len(self.answers[stream].body) >= size))

    def ended(self):
        """Waits for the connection's end."""
        with self._cond:
            self._wait(lambda: self.closed)
        return True

    @contextlib.contextmanager
    def stalled(self):
        """Meanwhile nothing is read, so that the peer has no credit for more; what
        this thread says goes out."""
        with self._cond:
            yield

    # ending

    def close(self):
        """CONNECTION_CLOSE."""
        with self._cond:
            self.quic.close()
            self._flush()
        self.vanish()

    def vanish(self):
        """Ends without a word."""
        self._stop = True
        self._wake.send(b"x")
        self._thread.join(10)
        for s in (self.sock, self._wake, self._woken):
            s.close()

    # inside

    def _wait(self, cond):
        if not self._cond.wait_for(cond, self.timeout):
            raise TimeoutError(f"nothing within {self.timeout} s")

    @contextlib.contextmanager
    def _sending(self, stream):
        """Sends what is put on `stream` meanwhile. Gives whether the server has said
        STOP_SENDING: it wants no more of this stream, which is reset by then (RFC
        9000, 3.5), and that is no error. The connection's thread handles a packet
        and what it says under the same lock, so there is no time between."""
        with self._cond:
            yield stream in self.stopped
            self._flush()

    def _flush(self):
        for data, _ in self.quic.datagrams_to_send(time.monotonic()):
            try:
                self.sock.send(data)
            except ConnectionRefusedError:
                pass
        if threading.current_thread().name != "client3":
            self._wake.send(b"x")        # there may be another timer

    def _run(self):
        while not self._stop:
            with self._cond:
                timer = self.quic.get_timer()
            left = None if timer is None else max(0, timer - time.monotonic())
            ready, _, _ = select.select([self.sock, self._woken], [], [], left)
            if self._woken in ready:
                self._woken.recv(4096)
            with self._cond:
                if self.sock in ready:
                    self._read()
                now = time.monotonic()
                timer = self.quic.get_timer()
                if timer is not None and timer <= now:
                    self.quic.handle_timer(now)
                while (event := self.quic.next_event()) is not None:
                    self._event(event)
                self._flush()
                self._cond.notify_all()

    def _read(self):
        while True:
            try:
                data = self.sock.recv(DATAGRAM, socket.MSG_DONTWAIT)
            except BlockingIOError:
                return
            except ConnectionRefusedError:
                continue
            self.quic.receive_datagram(data, self._address, time.monotonic())

    def _event(self, event):
        if isinstance(event, HandshakeCompleted):
            self._connected = True
            self.early = event.early_data_accepted
        elif isinstance(event, ConnectionTerminated):
            self.closed = event
        elif isinstance(event, StreamReset):
            self.resets[event.stream_id] = event.error_code
        elif isinstance(event, StopSendingReceived):
            self.stopped[event.stream_id] = event.error_code
        for part in self.h3.handle_event(event):
            if isinstance(part, HeadersReceived):
                self._head(part)
            elif isinstance(part, DataReceived):
                self.answers[part.stream_id].body += part.data
            else:
                continue
            if part.stream_ended:
                self.done.add(part.stream_id)

    def _head(self, part):
        headers = [(n.decode("latin-1"), v.decode("latin-1"))
                   for n, v in part.headers]
        answer = self.answers[part.stream_id]
        if answer is not None:
            answer.trailers = headers
            return
        assert headers[0][0] == ":status"
        status, headers = int(headers[0][1]), headers[1:]
        lines = [f"HTTP/1.1 {status} "] + [f"{n}: {v}" for n, v in headers]
        head = "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n"
        if status < 200:
            return
        self.answers[part.stream_id] = Answer(head, status, "", headers)
