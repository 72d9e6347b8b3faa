"""An HTTP/2 client over a socket of its own: the package h2 makes the frames,
and the test says when each of them goes out.

    with Client2(port) as c:
        s = c.start("POST", "/_bulk", end=False)
        c.data(s, b"{}", end=False)
        c.data(s, b"", end=True)      # END_STREAM in an empty DATA frame
        answer = c.receive(s)

Nothing is read from the socket but while a call waits for something; what then
comes for other streams is kept for them.
"""

import socket
import ssl
import struct

import h2.config
import h2.connection
import h2.events
import h2.exceptions
import h2.settings

from .client import Answer, build_request

CANCEL = 8
GOAWAY = 7                               # a frame's type


class Client2:
    """One connection.

    tls      an ssl.SSLContext: TLS, with h2 by ALPN; None: prior knowledge
    window   SETTINGS_INITIAL_WINDOW_SIZE of the streams' responses
    ack      gives windows back as data comes; False: see open_window()
    push     lets NGINX push
    """

    def __init__(self, port, host="127.0.0.1", tls=None, window=65535, ack=True,
                 push=False, timeout=20):
        self.sock = socket.create_connection((host, port), timeout)
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if tls is not None:
            self.sock = tls.wrap_socket(self.sock, server_hostname="source.test")
            assert self.sock.selected_alpn_protocol() == "h2"
        self.ack = ack
        self.closed = False              # the peer has ended the connection
        self.goaway = None               # the payload of its GOAWAY
        self.answers = {}                # stream -> Answer, growing
        self.done = set()                # streams whose answers are whole
        self.resets = {}                 # stream -> code of the peer's RST_STREAM
        self.pushed = []
        self._buffer = bytearray()
        self.h2 = h2.connection.H2Connection(h2.config.H2Configuration(
            header_encoding=None, validate_outbound_headers=False,
            normalize_outbound_headers=False))
        s = h2.settings.SettingCodes
        self.h2.local_settings = h2.settings.Settings(initial_values={
            s.ENABLE_PUSH: int(push), s.INITIAL_WINDOW_SIZE: window,
            s.MAX_CONCURRENT_STREAMS: 100})
        self.h2.initiate_connection()
        if ack:
            self.h2.increment_flow_control_window((1 << 24) - 65535)
        self.flush()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    # sending

    def start(self, method, target, headers=(), end=True, authority="source.test",
              scheme="http", flush=True):
        """HEADERS; the stream's number. `authority` None: without it."""
        stream = self.h2.get_next_available_stream_id()
        fields = [(":method", method), (":scheme", scheme), (":path", target)]
        if authority is not None:
            fields.insert(2, (":authority", authority))
        self.h2.send_headers(stream, [
            (n.encode("latin-1"), v.encode("latin-1"))
            for n, v in [*fields, *headers]], end_stream=end)
        self.answers[stream] = None
        if flush:
            self.flush()
        return stream

    def data(self, stream, body, end=True, frame=1 << 14):
        """DATA as flow control allows; waits for more. False: the peer has
        reset the stream, or ended the connection, before all of it went out."""
        at = 0
        try:
            # h2 itself tells of a reset only where there is window left
            while stream not in self.resets:
                size = min(len(body) - at, frame, self.h2.max_outbound_frame_size,
                           self.h2.local_flow_control_window(stream))
                last = at + size == len(body)
                if size > 0 or last:
                    self.h2.send_data(stream, body[at:at + size],
                                      end_stream=end and last)
                    self.flush()
                    at += size
                    if last:
                        return True
                elif not self.pump():
                    return False
            return False
        except (h2.exceptions.StreamClosedError, h2.exceptions.NoSuchStreamError,
                ConnectionError):
            return False

    def fill_window(self, stream, body):
        """As much DATA as may go out now; how much that was."""
        size = min(len(body), self.h2.local_flow_control_window(stream))
        assert self.data(stream, body[:size], end=False)
        return size

    def trailers(self, stream, headers):
        self.h2.send_headers(stream, headers, end_stream=True)
        self.flush()

    def reset_stream(self, stream, code=CANCEL):
        self.h2.reset_stream(stream, code)
        self.flush()

    def open_window(self, stream, size):
        """Lets so many bytes more come for a stream, where ack is off."""
        self.h2.increment_flow_control_window(size, stream)
        self.h2.increment_flow_control_window(size)
        self.flush()

    def send_goaway(self):
        self.sock.sendall(_frame(GOAWAY, bytes(8)))

    def flush(self):
        try:
            self.sock.sendall(self.h2.data_to_send())
        except (BrokenPipeError, ConnectionResetError):
            self.closed = True

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
        if body is not None:
            self.data(stream, body)
        return stream

    def receive(self, stream):
        """The Answer when all of it is there, its stream was reset or the
        connection has ended (then not `complete`); None without a head."""
        while (stream not in self.done and stream not in self.resets
               and self.pump()):
            pass
        answer = self.answers[stream]
        if answer is not None:
            answer.complete = stream in self.done
        return answer

    def receive_head(self, stream, size=0):
        """Waits for an answer's head and `size` bytes of its body."""
        while (self.answers[stream] is None
               or len(self.answers[stream].body) < size):
            assert self.pump(), "the connection has ended"
        return self.answers[stream]

    def receive_some(self, stream, size):
        """Waits for `size` bytes of an answer's body, or for its end."""
        while (stream not in self.done and stream not in self.resets
               and (self.answers[stream] is None
                    or len(self.answers[stream].body) < size)
               and self.pump()):
            pass

    def ended(self):
        """Waits for the peer to end the connection."""
        while self.pump():
            pass
        return True

    def pump(self):
        """Reads once; False at the connection's end."""
        if self.closed:
            return False
        try:
            data = self.sock.recv(1 << 18)
        except (ConnectionResetError, ssl.SSLEOFError):
            data = b""
        if not data:
            self.closed = True
            return False
        self._buffer += data
        while (frame := self._next()) is not None:
            for event in self.h2.receive_data(frame):
                self._event(event)
        self.flush()
        return True

    def _next(self):
        """A whole frame. GOAWAY is for us alone: h2 would take no other after
        it, but streams that have begun go on."""
        while len(self._buffer) >= 9:
            size = 9 + int.from_bytes(self._buffer[:3], "big")
            if len(self._buffer) < size:
                break
            frame = bytes(self._buffer[:size])
            del self._buffer[:size]
            if frame[3] != GOAWAY:
                return frame
            self.goaway = frame[9:]
        return None

    def _event(self, event):
        if isinstance(event, h2.events.ResponseReceived):
            self.answers[event.stream_id] = _answer(event.headers)
        elif isinstance(event, h2.events.DataReceived):
            self.answers[event.stream_id].body += event.data
            if self.ack and event.flow_controlled_length:
                self.h2.acknowledge_received_data(event.flow_controlled_length,
                                                  event.stream_id)
        elif isinstance(event, h2.events.TrailersReceived):
            self.answers[event.stream_id].trailers = _text(event.headers)
        elif isinstance(event, h2.events.StreamEnded):
            self.done.add(event.stream_id)
        elif isinstance(event, h2.events.StreamReset):
            if event.remote_reset:
                self.resets[event.stream_id] = event.error_code
        elif isinstance(event, h2.events.PushedStreamReceived):
            self.answers[event.pushed_stream_id] = None
            self.pushed.append(event.pushed_stream_id)

    # ending

    def close(self):
        self.sock.close()

    def reset(self):
        """Closes so that the peer gets a RST."""
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER,
                             struct.pack("ii", 1, 0))
        self.sock.close()


def captured(method, target, headers=(), body=None, length=True,
             authority="source.test"):
    """The bytes that a request of Client2.request() is captured as."""
    if authority is not None:
        headers = [("host", authority), *headers]
    if body is None:
        return build_request(method, target, headers)
    if length:
        return build_request(method, target, [
            *headers, ("content-length", str(len(body)))]) + body
    raw = build_request(method, target, [*headers, ("transfer-encoding", "chunked")])
    chunk = b"%x\r\n%s\r\n" % (len(body), body) if body else b""
    return raw + chunk + b"0\r\n\r\n"


def alpn(cafile):
    """A context for `tls` that trusts one certificate."""
    context = ssl.create_default_context(cafile=cafile)
    context.set_alpn_protocols(["h2"])
    return context


def _frame(kind, payload, flags=0, stream=0):
    return (len(payload).to_bytes(3, "big") + bytes([kind, flags])
            + stream.to_bytes(4, "big") + payload)


def _text(headers):
    return [(n.decode("latin-1"), v.decode("latin-1")) for n, v in headers]


def _answer(headers):
    """`head` is what HTTP/1.1 would have sent; there is no reason."""
    headers = _text(headers)
    assert headers[0][0] == ":status"
    status, headers = int(headers[0][1]), headers[1:]
    lines = [f"HTTP/1.1 {status} "] + [f"{n}: {v}" for n, v in headers]
    return Answer("\r\n".join(lines).encode("latin-1") + b"\r\n\r\n", status, "",
                  headers)
