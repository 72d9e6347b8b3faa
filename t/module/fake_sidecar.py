"""A sidecar in Python, for tests of the module alone.

It knows the link from the pictures in wire/*.h and shares no code with the C
sidecar, so a mistake in one of the two shows. It checks everything that the
worker promises (geometry, ring, sequence, grammar, timestamps) and keeps what is
wrong in `errors`; it can also break every promise of its own side, which is what
the methods of Link from `push_return` on are for.

Loads and stores are whole words through memoryview, without fences: good enough
on x86, where this looks again after at most POLL seconds.
"""

import array
import fcntl
import mmap
import os
import select
import socket
import struct
import threading
import time

POLL = 0.02

HELLO, WELCOME, REFUSE = 1, 2, 3
MESSAGE = struct.Struct("<IHHIIQ160s")
MESSAGE_MAGIC = 0x31704143
VERSION = 3

READ, EOM, WRITE, END, DROP, ABANDON, CLOSE, PAD, HOLD = range(1, 10)
TYPES = dict(zip(range(1, 10),
                 "READ EOM WRITE END DROP ABANDON CLOSE PAD HOLD".split()))
BEGIN, WAIT = 1, 2

AWAKE, NAPPING, ASLEEP = 0, 1, 2

BLOCK_SIZE = 65536
BLOCK_HEADER = 64
SEALED = 0x80000000
FRAME = struct.Struct("<IBBHIIQq")
GEOMETRY = struct.Struct("<IIIIQQQQQQ")
SLOT_SIZE, INTENT_SIZE = 160, 72

# offsets in the header page
RING_TAIL, RETURN_HEAD, STARVED = 128, 132, 136
RING_HEAD, RETURN_TAIL, READER_STATE, OWNER = 192, 196, 200, 208
KEPT = 216
WORKER, SIDECAR = 256, 896
NTOPICS, TOPICS, TOPIC_SIZE, MOST_TOPICS = 1728, 1736, 64, 24
WORKER_CELLS = {"seen": 0, "handed": 1, "connections": 2, "frames": 3,
                "bytes": 4, "doorbells": 5}
SIDECAR_CELLS = {"taken": 0, "captured": 1, "truncated": 2, "open": 3}
REASONS = {
    "bad_request": 1, "not_forwarded": 2, "rule": 3, "bypass": 4, "upgrade": 5,
    "unsupported": 6, "unreplayable": 7, "client_abort": 8, "refused": 9,
    "unread_body": 10, "too_large": 11, "unredactable": 12, "unlinked": 32, "pool_full": 33, "response": 34,
    "no_slot": 35, "link_lost": 36, "worker_exit": 37, "internal": 41, "no_topic": 42}
NAMES = {number: name for name, number in REASONS.items()}

RETURN_BLOCK, RETURN_SLOT = 1, 2


def align(n, to):
    return (n + to - 1) // to * to


def power_of_two(n):
    return 1 << max(0, n - 1).bit_length()


class Frame:
    __slots__ = ("size", "type", "flags", "code", "slot", "generation", "seq",
                 "ts", "payload", "block", "block_generation")

    def __repr__(self):
        return (f"<{TYPES.get(self.type, self.type)} seq={self.seq} "
                f"slot={self.slot}/{self.generation} size={self.size} "
                f"flags={self.flags} code={self.code}>")


class Exchange:
    """One exchange as its frames tell it. `end`: None while it is open, else
    "END", "DROP", "ABANDON", or "CUT" (the link ended); `reason` is a name."""

    def __init__(self, connection):
        self.connection = connection
        self.parts = {READ: [], WRITE: []}
        self.eom = None
        self.end = None
        self.code = 0
        self.first_ts = self.last_ts = None

    @property
    def request(self):
        return b"".join(self.parts[READ])

    @property
    def response(self):
        return b"".join(self.parts[WRITE])

    @property
    def reason(self):
        return NAMES.get(self.code) if self.end in ("DROP", "ABANDON") else None

    @property
    def complete(self):
        return self.end == "END" and self.code == 0

    @property
    def truncated(self):
        return self.end == "END" and self.code == 1

    def __repr__(self):
        return (f"<{self.connection.id} {self.request[:40]!r} eom={self.eom} "
                f"{self.response[:40]!r} {self.end} {self.code}>")


class Connection:
    """One connectionId: a slot and its generation."""

    def __init__(self, link, slot, generation):
        self.link = link
        self.slot = slot
        self.generation = generation
        data = link.slot_bytes(slot)
        got, length, cluster, topic = struct.unpack_from("<IBBH", data)
        if got != generation:
            link.error(f"slot {slot} has generation {got}, its frame {generation}")
        names = link.topics()
        if length > 52 or cluster or topic > len(names):
            link.error(f"slot {slot}: id_len {length} cluster {cluster} "
                       f"topic {topic} of {names}")
        self.topic = ["", *names][topic]
        self.id = bytes(data[8:8 + length]).decode("ascii")
        self.opened = struct.unpack_from("<q", data, 64)[0]
        self.exchanges = []
        self.open = None         # the exchange in flight
        self.end = None          # "CLOSE", "ABANDON" or "END": over
        self.last_ts = 0
        self.seq = 0             # of its last frame


class Link:
    """One worker's link. With `consume`, what is published is read and counted
    as acknowledged at once; blocks and slots go back unless `hold_blocks` or
    `hold_slots`. A test that sets these must do so from welcome()'s point, by
    the options of FakeSidecar, or live with what has already gone back."""

    def __init__(self, owner, sock, message, fds):
        self.owner = owner
        self.sock = sock
        self.lock = threading.RLock()
        self.hold_blocks = owner.hold_blocks
        self.hold_slots = owner.hold_slots
        self.consume = owner.consume
        self.count = owner.count
        self.deaf = owner.deaf   # does not read the doorbell
        self.ack = owner.ack     # what is read is acknowledged at once
        self.errors = []
        self.frames = []
        self.blocks = []         # (index, generation) in the order of the ring
        self.returnable = []     # (index, generation) of held, read blocks
        self.finished = []       # Connections that are over, slot not returned
        self.lent = set()        # slots
        self.connections = {}    # (slot, generation) -> Connection
        self.exchanges = []
        self.seq = 0
        self.current = None      # [index, generation, read up to]
        self.up = False          # welcomed, and not hung up
        self.ended = False
        self.pid = message[4]
        self.memory_fd, self.doorbell = fds
        self._map()

    # what the worker promises about the memory

    def _map(self):
        size = os.fstat(self.memory_fd).st_size
        self.size = size
        seals = fcntl.fcntl(self.memory_fd, fcntl.F_GET_SEALS)
        want = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
        if seals & want != want:
            self.error(f"seals are {seals:#x}")
        self.map = mmap.mmap(self.memory_fd, size)
        self.bytes = memoryview(self.map)
        self.u32 = self.bytes.cast("I")
        self.u64 = self.bytes.cast("Q")
        if self.u64[0] != 0x6C6F6F7070616331 or self.u32[2] != VERSION:
            self.error("magic or version")
        (self.nblocks, self.nslots, self.ring_size, self.return_size, self.slots_at,
         intents_at, self.ring_at, self.returns_at, self.blocks_at,
         total) = GEOMETRY.unpack_from(self.bytes, 16)
        at = 4096
        wanted = [at]
        at = align(at + self.nslots * SLOT_SIZE, 64)
        wanted.append(at)
        at = align(at + self.nslots * INTENT_SIZE, 64)
        wanted.append(at)
        at += 8 * power_of_two(self.nblocks)
        wanted.append(at)
        at = align(at + 8 * power_of_two(self.nblocks + self.nslots), 4096)
        wanted += [at, at + self.nblocks * BLOCK_SIZE]
        got = [self.slots_at, intents_at, self.ring_at, self.returns_at,
               self.blocks_at, total]
        if got != wanted or total > size:
            self.error(f"geometry: {got}, not {wanted}; {size} bytes")
        self.node_id = bytes(self.bytes[80:116]).decode("ascii")

    def slot_bytes(self, slot):
        at = self.slots_at + slot * SLOT_SIZE
        return self.bytes[at:at + SLOT_SIZE]

    def topics(self):
        """The names of destinations that the worker has told."""
        n, at = self.u32[NTOPICS >> 2], TOPICS
        if n > MOST_TOPICS:
            self.error(f"{n} names of destinations")
        return [bytes(self.bytes[at + i * TOPIC_SIZE:at + (i + 1) * TOPIC_SIZE])
                .split(b"\0")[0].decode() for i in range(min(n, MOST_TOPICS))]

    # counters

    def worker(self, name):
        return self.u64[(WORKER >> 3) + WORKER_CELLS[name]]

    def worker_reason(self, name):
        return self.u64[(WORKER >> 3) + 16 + REASONS[name]]

    def add(self, name, n=1):
        if self.count:
            self.u64[(SIDECAR >> 3) + SIDECAR_CELLS[name]] += n

    def add_reason(self, code):
        if self.count:
            self.u64[(SIDECAR >> 3) + 16 + code] += 1

    # reading

    def ring(self):
        """Wakes the worker: what it waits for may be acknowledged."""
        try:
            os.write(self.doorbell, b"1")
        except OSError:
            pass

    def read_once(self):
        """Reads everything published; the number of frames."""
        with self.lock:
            before = self.seq
            while self.consume and self._block():
                pass
            return self.seq - before

    def _block(self):
        """Reads the current block to its end so far. Is there a next one?"""
        if self.current is None:
            head = self.u32[RING_HEAD >> 2]
            tail = self.u32[RING_TAIL >> 2]
            if head == tail:
                return False
            if (tail - head) & 0xFFFFFFFF > self.ring_size:
                self.error(f"ring: head {head} tail {tail}")
                return False
            entry = self.u64[(self.ring_at >> 3) + (head & (self.ring_size - 1))]
            index, generation = entry & 0xFFFFFFFF, entry >> 32
            at = self.blocks_at + index * BLOCK_SIZE
            if index >= self.nblocks or self.u32[(at >> 2) + 1] != generation:
                self.error(f"ring entry {entry:#x}")
                return False
            if any(index == i for i, _ in self.blocks_lent()):
                self.error(f"block {index} came before it was returned")
            if self.u64[(at >> 3) + 1] != self.seq + 1:
                self.error(f"block {index}: first_seq {self.u64[(at >> 3) + 1]}, "
                           f"not {self.seq + 1}")
            self.current = [index, generation, BLOCK_HEADER]
            self.blocks.append((index, generation))
        index, generation, pos = self.current
        at = self.blocks_at + index * BLOCK_SIZE
        published = self.u32[at >> 2]
        sealed, end = published & SEALED, published & ~SEALED
        if not pos <= end <= BLOCK_SIZE:
            self.error(f"block {index}: published {end} at {pos}")
            return False
        while pos < end:
            pos = self._frame(at, pos, end)
            if pos is None:
                self.consume = False
                return False
        self.current[2] = pos
        if not sealed:
            return False
        self.current = None
        self.u32[RING_HEAD >> 2] = (self.u32[RING_HEAD >> 2] + 1) & 0xFFFFFFFF
        if self.hold_blocks:
            self.returnable.append((index, generation))
        else:
            self.return_block(index, generation)
        return True

    def blocks_lent(self):
        held = list(self.returnable)
        if self.current:
            held.append(tuple(self.current[:2]))
        return held

    def _frame(self, block, pos, end):
        f = Frame()
        (f.size, f.type, f.flags, f.code, f.slot, f.generation, f.seq,
         f.ts) = FRAME.unpack_from(self.bytes, block + pos)
        start = pos + FRAME.size
        after = start + align(f.size, 8)
        if pos % 8 or after > end or f.type not in TYPES or f.seq != self.seq + 1:
            self.error(f"frame at {pos} of {end}: {f}, seq {self.seq}")
            return None
        f.payload = bytes(self.bytes[block + start:block + start + f.size])
        f.block, f.block_generation = self.current[:2]
        self.seq = f.seq
        if self.owner.keep_frames:
            self.frames.append(f)
        if f.type != PAD:
            self._grammar(f)
        return after

    # ((READ+ HOLD? EOM WRITE* END) | (READ+ HOLD? EOM? DROP))* (CLOSE | ABANDON)?

    def _grammar(self, f):
        if f.slot >= self.nslots or not f.generation & 1:
            return self.error(f"{f}: slot or generation")
        key = f.slot, f.generation
        c = self.connections.get(key)
        if c is None:
            if f.slot in self.lent:
                self.error(f"slot {f.slot} came before it was returned")
            self.lent.add(f.slot)
            c = self.connections[key] = Connection(self, *key)
            self.owner.new_id(self, c)
        if c.end:
            if c.end != "RETURNED":
                self.error(f"{f} after {c.end} of {c.id}")
            elif f.type == READ and f.flags & BEGIN:
                # begun before the worker saw that the slot was given back
                self.add("taken")
                self.add_reason(REASONS["internal"])
            return None
        now = time.time_ns()
        if f.ts < c.last_ts or not now - 60e9 < f.ts < now + 1e9:
            self.error(f"{f}: ts {f.ts} after {c.last_ts}, now {now}")
        c.last_ts = max(c.last_ts, f.ts)
        c.seq = f.seq
        x = c.open
        if x:
            x.last_ts = f.ts
        if f.type == READ:
            if not f.size or bool(f.flags & BEGIN) == bool(x) or (x and x.eom):
                return self.error(f"{f} in {x}")
            if x is None:
                x = c.open = Exchange(c)
                x.first_ts = x.last_ts = f.ts
                c.exchanges.append(x)
                self.exchanges.append(x)
                self.add("taken")
                self.add("open")
            x.parts[READ].append(f.payload)
        elif f.type == HOLD:
            if x is None or x.eom or f.size:
                return self.error(f"{f} in {x}")
        elif f.type == EOM:
            if x is None or x.eom or f.size != 8:
                return self.error(f"{f} in {x}")
            x.eom = struct.unpack("<ii", f.payload)
        elif f.type == WRITE:
            if x is None or not x.eom or not f.size:
                return self.error(f"{f} in {x}")
            x.parts[WRITE].append(f.payload)
        elif f.type in (END, DROP, ABANDON):
            if f.size or (x is None and f.type != ABANDON):
                return self.error(f"{f} in {x}")
            if f.type == END and (not x.eom or f.code > 1):
                return self.error(f"{f} in {x}")
            if f.type == DROP and x.parts[WRITE]:
                return self.error(f"{f} in {x}")
            if x:
                self._ended(x, f)
            if f.type == ABANDON or (f.type == END and f.code):
                self._over(c, TYPES[f.type])
        elif f.type == CLOSE:
            if x or f.size:
                return self.error(f"{f} in {x}")
            self._over(c, "CLOSE")
        if not c.end and self.ack:
            self._acknowledge(c)
            if f.type == HOLD or f.flags & WAIT:
                self.ring()
        return None

    def _acknowledge(self, c):
        at = self.slots_at + c.slot * SLOT_SIZE
        self.u64[(at + 72) >> 3] = c.seq << 8       # acked

    def sync(self):
        """All that was read is on the sidecar's disk, and not acknowledged."""
        with self.lock:
            for c in self.connections.values():
                if not c.end:
                    at = self.slots_at + c.slot * SLOT_SIZE
                    self.u64[(at + 120) >> 3] = c.seq       # synced
        self.ring()

    def acknowledge(self, *connections, more=True):
        """Where `ack` is off: all that was read is durable, or of these
        connections alone. `more`: so is what comes from now on."""
        with self.lock:
            self.ack = self.ack or (more and not connections)
            for c in connections or self.connections.values():
                if not c.end:
                    self._acknowledge(c)
        self.ring()

    def _ended(self, x, f):
        x.end, x.code = TYPES[f.type], f.code
        x.connection.open = None
        if f.type == END:
            self.add("captured")
            if f.code:
                self.add("truncated")
        else:
            if f.code not in NAMES:
                self.error(f"{f}: unknown reason")
            self.add_reason(f.code)
        self.add("open", -1)

    def _over(self, c, how):
        c.end = how
        if self.hold_slots:
            self.finished.append(c)
        else:
            self.return_slot(c)

    def cut(self):
        for c in self.connections.values():
            if c.open:
                c.open.end = "CUT"

    def abandon(self, c):
        """Gives a connectionId up from this side, as for a record that the
        broker refuses: the worker learns it by the slot's return."""
        with self.lock:
            if c.open:
                c.open.end, c.open.code = "ABANDON", REASONS["internal"]
                c.open = None
                self.add("open", -1)
                self.add_reason(REASONS["internal"])
            c.end = "RETURNED"
            self.return_slot(c)

    # giving back, by the rules

    def return_block(self, index, generation):
        self.push_return(RETURN_BLOCK, generation, index)
        if self.starved():
            self.ring()

    def return_slot(self, c):
        self.lent.discard(c.slot)
        self.push_return(RETURN_SLOT, c.generation, c.slot)

    def return_all(self):
        """Gives back what was held."""
        with self.lock:
            for block in self.returnable:
                self.return_block(*block)
            for c in self.finished:
                self.return_slot(c)
            self.returnable, self.finished = [], []

    # and against them

    def push_return(self, kind, generation, index):
        with self.lock:
            tail = self.u32[RETURN_TAIL >> 2]
            self.u64[(self.returns_at >> 3) + (tail & (self.return_size - 1))] = (
                kind << 56 | (generation & 0xFFFFFF) << 32 | index)
            self.u32[RETURN_TAIL >> 2] = (tail + 1) & 0xFFFFFFFF

    def starved(self):
        """Does the worker want to be rung when blocks are given back?"""
        return bool(self.u32[STARVED >> 2])

    def set_return_tail(self, value):
        self.u32[RETURN_TAIL >> 2] = value & 0xFFFFFFFF

    def set_reader_state(self, value):
        self.u32[READER_STATE >> 2] = value

    def reader_state(self):
        return self.u32[READER_STATE >> 2]

    def send(self, data):
        self.sock.send(data)

    def hang_up(self):
        self.up = False
        try:
            self.sock.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass

    def error(self, text):
        self.errors.append(text)

    # the loop

    def run(self):
        try:
            while not self.ended:
                if self.owner.sleeps:
                    self.set_reader_state(ASLEEP)
                if not self.read_once():
                    fds = [self.sock] + [self.doorbell] * (not self.deaf)
                    ready, _, _ = select.select(fds, [], [], POLL)
                    if self.doorbell in ready:
                        os.read(self.doorbell, 8)
                    if self.sock in ready and not self.sock.recv(4096):
                        break
        except OSError:
            pass
        except Exception as e:
            self.error(f"fake sidecar: {e!r}")
        with self.lock:
            if self.owner.read_after_end:
                self.read_once()
            self.up = False
            self.ended = True
            self.cut()
            self.sock.close()


class FakeSidecar:
    """answer(link) -> what is sent for a HELLO: bytes, or None for nothing.
    Change it, `hold_blocks` and the like between links as you need."""

    def __init__(self, path):
        self.path = path
        self.answer = lambda link: welcome()
        self.hold_blocks = False
        self.hold_slots = False
        self.consume = True
        self.count = True
        self.sleeps = True
        self.deaf = False
        self.ack = True
        self.keep_frames = True
        self.read_after_end = True
        self.refused = 0         # links that were not welcomed
        self.links = []          # the welcomed, in their order
        self.ids = set()
        self.errors = []
        self._threads = []
        self._listener = None
        self._stop = True

    def start(self):
        if os.path.exists(self.path):
            os.unlink(self.path)
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._listener.bind(self.path)
        self._listener.listen(64)
        self._stop = False
        self._spawn(self._accept)

    def stop(self):
        """Hangs up and stops listening; start() listens again."""
        self._stop = True
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for link in list(self.links):
            link.hang_up()
        for thread in self._threads:
            thread.join(10)
        self._threads = []
        if os.path.exists(self.path):
            os.unlink(self.path)

    def close(self):
        if not self._stop:
            self.stop()
        errors = self.errors + [e for link in self.links for e in link.errors]
        for link in self.links:
            for view in (link.u32, link.u64, link.bytes):
                view.release()
            link.map.close()
            os.close(link.memory_fd)
            os.close(link.doorbell)
        assert not errors, "\n".join(errors[:20])

    def new_id(self, link, c):
        if c.id in self.ids:
            link.error(f"connectionId {c.id} came twice")
        if not c.id or len(c.id) > 52 or "|" in c.id or not c.id.isprintable():
            link.error(f"connectionId {c.id!r}")
        self.ids.add(c.id)

    @property
    def exchanges(self):
        return [x for link in self.links for x in link.exchanges]

    @property
    def connections(self):
        return [c for link in self.links for c in link.connections.values()]

    @property
    def up(self):
        return [link for link in self.links if link.up]

    def _spawn(self, target):
        thread = threading.Thread(target=target, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self):
        while not self._stop:
            try:
                sock, _ = self._listener.accept()
            except OSError:
                return
            self._spawn(lambda sock=sock: self._serve(sock))

    def _serve(self, sock):
        fds = array.array("i")
        try:
            data, ancillary, _, _ = sock.recvmsg(
                4096, socket.CMSG_SPACE(16 * fds.itemsize), socket.MSG_CMSG_CLOEXEC)
        except OSError:
            return sock.close()
        for level, kind, payload in ancillary:
            if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                fds.frombytes(payload)
        if not data:
            return sock.close()
        message = MESSAGE.unpack(data)
        if message[:3] != (MESSAGE_MAGIC, HELLO, VERSION) or len(fds) != 2:
            self.errors.append(f"HELLO: {message[:6]} with {len(fds)} descriptors")
        link = Link(self, sock, message, list(fds))
        answer = self.answer(link)
        welcomed = answer is not None and answer == welcome()
        if welcomed:
            link.up = True
            self.links.append(link)
        else:
            self.refused += 1
            self.errors += link.errors
        try:
            if answer is not None:
                sock.send(answer)
            if welcomed:
                return link.run()
            while sock.recv(4096):   # until the worker gives up
                pass
        except OSError:
            pass
        sock.close()
        if not welcomed:
            for view in (link.u32, link.u64, link.bytes):
                view.release()
            link.map.close()
            os.close(link.memory_fd)
            os.close(link.doorbell)
        return None


def welcome(version=VERSION, magic=MESSAGE_MAGIC, kind=WELCOME):
    return MESSAGE.pack(magic, kind, version, 0, 0, 1, b"")


def refuse(code, text):
    return MESSAGE.pack(MESSAGE_MAGIC, REFUSE, VERSION, code, 0, 0, text)
