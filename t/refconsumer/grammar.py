"""The order of one connection's observations.

    ( (read | readSegment* segmentEnd)*
      ( endOfMessage (write | writeSegment* segmentEnd)* | requestDropped ) )*
    connectionException*  close

Cutting it short anywhere is legal, leaving something out is not.
"""

from . import http, pb

# Enough for every head that can be replayed, and for most that cannot.
HEAD_KEPT = 128 * 1024

DATA_KINDS = (pb.READ, pb.READ_SEGMENT, pb.WRITE, pb.WRITE_SEGMENT)
FIRST_KINDS = (pb.READ, pb.EXCEPTION, pb.CLOSE)


class Grammar:
    """Steps through observations; each step returns [(slug, detail)]."""

    def __init__(self):
        self.eoms = 0
        self.reads_open = False
        self.closed = False
        self._begun = False
        self._failed = False
        self._writable = False
        self._run = None  # READ_SEGMENT or WRITE_SEGMENT while such a run is open
        self._head = bytearray()
        self._problems = []

    def step(self, observation):
        self._problems = []
        if self.closed:
            self._problem("after_close", f"{observation.kind} after close")
            return self._problems
        self._check_place(observation)
        handler = self._HANDLERS.get(observation.kind)
        if handler is None:
            self._problem("foreign_capture", f"capture {observation.kind}")
        else:
            handler(self, observation)
        return self._problems

    def _check_place(self, observation):
        kind = observation.kind
        if not self._begun and kind not in FIRST_KINDS:
            self._problem("first_not_read", f"first observation is {kind}")
        self._begun = True
        if self._failed and kind not in (pb.EXCEPTION, pb.CLOSE):
            self._problem("after_exception", f"{kind} after connectionException")
        if kind in DATA_KINDS and not observation.data:
            self._problem("empty_data", f"{kind} of 0 bytes")

    def _read(self, observation):
        if self._run == pb.READ_SEGMENT:
            self._problem("data_in_segments", "read inside a run of readSegments")
        self._begin_read(observation)

    def _read_segment(self, observation):
        self._begin_read(observation)
        self._run = pb.READ_SEGMENT

    def _begin_read(self, observation):
        if self._run == pb.WRITE_SEGMENT:
            self._unfinished("the next read")
        self.reads_open = True
        self._writable = False
        if len(self._head) < HEAD_KEPT:
            self._head += observation.data[:HEAD_KEPT]

    def _segment_end(self, _):
        if self._run is None:
            self._problem("segment_orphan_end", "segmentEnd without a run")
        self._run = None

    def _end_of_message(self, observation):
        if not self.reads_open:
            self._problem("eom_without_reads", "endOfMessage without a read before")
            return
        if self._run is not None:
            self._unfinished("endOfMessage")
        self._check_lengths(observation)
        self.eoms += 1
        self._end_request()
        self._writable = True

    def _check_lengths(self, observation):
        told = observation.first_line_length, observation.headers_length
        actual = http.head_lengths(bytes(self._head))
        if told != actual:
            self._problem("eom_lengths", f"told {told}, the head has {actual}")

    def _write(self, observation):
        if self._run == pb.WRITE_SEGMENT:
            self._problem("data_in_segments", "write inside a run of writeSegments")
        self._check_writable(observation)

    def _write_segment(self, observation):
        if self._check_writable(observation):
            self._run = pb.WRITE_SEGMENT

    def _check_writable(self, observation):
        if not self._writable:
            what = "inside a request" if self.reads_open else "without a request"
            self._problem("write_before_eom", f"{observation.kind} {what}")
        return self._writable

    def _dropped(self, _):
        if not self.reads_open:
            self._problem("drop_without_reads", "requestDropped without a read before")
            return
        self._end_request()

    def _exception(self, _):
        # The cut is told, so an open run is no lie; reads stay open, because
        # only endOfMessage and requestDropped end them for later records.
        self._failed = True
        self._run = None

    def _close(self, _):
        if self._run == pb.WRITE_SEGMENT:
            self._unfinished("close")
        self.closed = True

    def _end_request(self):
        self.reads_open = False
        self._run = None
        self._head.clear()

    def _unfinished(self, by):
        self._problem("segment_unfinished", f"a run of {self._run}s is open at {by}")
        self._run = None

    def _problem(self, slug, detail):
        self._problems.append((slug, detail))

    _HANDLERS = {
        pb.READ: _read,
        pb.READ_SEGMENT: _read_segment,
        pb.SEGMENT_END: _segment_end,
        pb.EOM: _end_of_message,
        pb.WRITE: _write,
        pb.WRITE_SEGMENT: _write_segment,
        pb.DROPPED: _dropped,
        pb.EXCEPTION: _exception,
        pb.CLOSE: _close,
    }
