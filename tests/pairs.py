"""Two peers joined by fake links on a stepped clock: what tests of the pure core run on."""

import random
from collections import Counter
from dataclasses import dataclass, field

from overlay.protocol import actions
from overlay.protocol.actions import Action, CloseConnection, Ended, PeerSettings
from overlay.protocol.budget import Budget, SessionLimits
from overlay.protocol.buffers import MAX_GAPS
from overlay.protocol.codes import CloseCode
from overlay.protocol.frames import Control, FrameReader, StreamData
from overlay.protocol.links import HELD_BYTES, HELD_EVENTS, SessionState
from overlay.protocol.liveness import Progress
from overlay.protocol.peer import PeerCore
from overlay.protocol.session import SessionCore
from overlay.protocol.stream import Ending, Priority, StreamCore

PATTERN = bytes(random.Random(1).randbytes(251)) * 4
HEADER = len("test") + 2
LIMITS = (
    SessionLimits(16, 4096, 32, 16_384, 8192, 32_768),
    SessionLimits(24, 6000, 32, 24_000, 8192, 32_768),
)


SURPLUS = 500
"""Bytes that a source of the tests gives beyond what was asked for, at most."""


def pattern(salt: int, offset: int, size: int) -> bytes:
    """What the writer that `salt` names writes at `offset`."""
    start = (salt + offset) % 251
    return (PATTERN * (size // 1000 + 2))[start : start + size]


def check_session(core: SessionCore) -> None:
    """No buffer passes its bound, and the books agree with what is there."""
    limits = core.limits
    live = list(core.streams.values())
    ahead = core._streams_limit - core._opened_remote
    assert 0 <= ahead <= limits.streams
    assert core._live_remote <= limits.live_streams
    assert core._budget.used == sum(s.receiving.window for s in live) + (ahead + core._kept) * limits.window
    assert core._budget.used <= core._budget.limit
    assert core._outgoing.buffered == sum(len(s.sending.buffer) for s in live)
    assert core._outgoing.buffered <= limits.session_send_buffer + (2 + 255 + SURPLUS) * len(live)
    for stream in live:
        sending, receiving = stream.sending, stream.receiving
        assert not stream.removed
        assert sending.buffer.end - max(sending.highest, sending.buffer.start) <= limits.stream_send_buffer + 2 + 255
        assert sending.sent <= max(sending.limit, sending.buffer.start)
        assert sending.buffer.start <= sending.sent <= sending.buffer.end
        assert receiving.window <= limits.stream_window
        assert receiving.ending is Ending.RESET or receiving.highest - receiving.buffer.consumed <= receiving.window
        assert receiving.buffer.gaps <= MAX_GAPS
        assert set(stream.carriers) == {c for c, carried in core._outgoing._carried.items() if stream in carried}


def check_empty(core: SessionCore) -> None:
    """Nothing is left of any stream, but perhaps a GONE without a connection to say it on."""
    assert not core.streams
    assert not core._outgoing.buffered
    assert not core._outgoing._blocked
    assert not any(core._outgoing._carried.values())
    for pending in (core._windows, core._ends, core._stops, core._unreported):
        assert not pending
    assert core._live_remote == 0
    ahead = core._streams_limit - core._opened_remote
    assert core._budget.used == (ahead + core._kept) * core.limits.window
    assert core._budget.used <= core.limits.streams * core.limits.window


@dataclass(eq=False)
class Half:
    """A stream as the application at one side sees it."""

    core: StreamCore
    session: SessionState
    skip: int
    """Bytes of ours that the library wrote before."""
    written: int = 0
    read: int = 0
    finished: bool = False
    reset: bool = False
    stopped: bool = False
    supplied: bool = False
    stock: int = 0
    """Bytes that the source has and was not asked for."""
    surplus: int = 0
    """How many bytes it gives beyond what it is asked for."""
    ahead: int = 0
    """How many bytes of what was given last may not have left."""
    exhausted: bool = False
    """It has said b"", and nothing since."""


@dataclass(eq=False)
class Wire:
    """A connection: two queues, one towards each side."""

    id: int
    kind: str
    dialler: int
    queues: tuple[list[object], list[object]] = field(default_factory=lambda: ([], []))
    made: list[bool] = field(default_factory=lambda: [False, False])
    open: list[bool] = field(default_factory=lambda: [True, True])
    progress: list[float] = field(default_factory=lambda: [0.0, 0.0])
    frozen: bool = False
    lost: bool = False


@dataclass(frozen=True)
class Made:
    """The connection has arrived at the acceptor."""


@dataclass(frozen=True)
class Closed:
    """The other side has closed it."""

    code: int
    reason: str


class Side:
    """A peer with the shell that a test needs."""

    def __init__(self, number: int, numbers: random.Random, settings: PeerSettings, *, process: int = 0) -> None:
        self.number = number
        self.pool = Budget(1 << 20)
        self.limits = LIMITS[number]
        self.core = PeerCore(
            bytes([number]) * 32,
            bytes([1 - number]) * 32,
            process=process or numbers.getrandbits(64),
            random=lambda: numbers.getrandbits(64),
            grant=self._grant,
            settings=settings,
        )
        self.log: list[Action] = []
        self.halves: list[Half] = []
        self.alive = True

    def _grant(self, chosen: bool) -> tuple[SessionLimits, Budget] | None:
        budget = Budget(256 * 1024, self.pool)
        if not budget.reserve(self.limits.streams * self.limits.window):
            return None
        return self.limits, budget

    def seen(self, kind: type) -> list[Action]:
        return [action for action in self.log if isinstance(action, kind)]


class World:
    """Two sides, the wires between them, and the time."""

    def __init__(self, *, seed: int = 0, quic: bool = False, settings: PeerSettings | None = None) -> None:
        self.now = 100.0
        self.quic = quic
        self.numbers = random.Random(seed)
        self.settings = settings or PeerSettings()
        self.sides = [Side(number, self.numbers, self.settings) for number in (0, 1)]
        self.wires: list[Wire] = []
        self.next_id = 1
        self.counts: Counter[str] = Counter()

    # ---------------------------------------------------------------- connections

    def dial(self, side: int, kind: str = "quic") -> Wire:
        wire = Wire(self.next_id, kind, side)
        self.next_id += 1
        wire.progress = [self.now, self.now]
        self.wires.append(wire)
        wire.queues[1 - side].append(Made())
        self.sides[side].core.begin()
        self._made(wire, side)
        self.pump(side)
        return wire

    def _made(self, wire: Wire, side: int) -> None:
        wire.made[side] = True
        self.sides[side].core.connection_made(
            wire.id,
            kind=(wire.kind, 4),
            rank=0 if wire.kind == "quic" else 1,
            dialled_by_us=side == wire.dialler,
            watch=lambda: Progress(wire.progress[side], 0.1),
            now=self.now,
        )

    def connect(self, side: int = 0, kind: str = "quic") -> Wire:
        """A dial that is answered, and everything delivered."""
        wire = self.dial(side, kind)
        self.settle()
        return wire

    def pump(self, number: int, size: int = 1 << 20) -> None:
        side = self.sides[number]
        core = side.core
        if not side.alive:
            return
        self._act(number)
        for wire in self.wires:
            if not wire.made[number] or not wire.open[number]:
                continue
            self._send(wire, number, core.frames_to_send(wire.id))
            while wire.id == core.selected and size > 0:
                chunk = core.data_to_send(wire.id, size)
                if chunk is None:
                    break
                assert 0 < len(chunk.data) <= size
                size -= len(chunk.data)
                self._put(wire, number, StreamData(chunk.stream, chunk.offset, bytes(chunk.data)))
        core.update(self.now)
        session = core.session
        if session is not None:
            for stream in session.core.take_opened():
                half = Half(stream, session, 0)
                stream.handle = half
                side.halves.append(half)
            session.core.take_changed()

    def _act(self, number: int) -> None:
        side = self.sides[number]
        while actions := side.core.take_actions():
            for action in actions:
                side.log.append(action)
                if isinstance(action, CloseConnection):
                    wire = next(wire for wire in self.wires if wire.id == action.connection)
                    self._send(wire, number, side.core.frames_to_send(wire.id))
                    self._put(wire, number, Closed(action.code, action.reason))
                    wire.open[number] = False
                    side.core.connection_lost(wire.id, self.now, code=action.code, by_peer=False)

    def _send(self, wire: Wire, number: int, frames: list[bytes]) -> None:
        for event in FrameReader(stream_data=True).receive_data(b"".join(frames)):
            self._put(wire, number, event)

    def _put(self, wire: Wire, number: int, event: object) -> None:
        if not wire.lost:
            wire.queues[1 - number].append(event)

    def pieces(self, wire: Wire, side: int) -> list[int]:
        """Which of the events on the way to `side` may arrive next."""
        queue = wire.queues[side]
        if wire.frozen or not queue:
            return []
        if not self.quic or isinstance(queue[0], Made | Closed):
            return [0]
        first = next((n for n, event in enumerate(queue) if not isinstance(event, StreamData)), None)
        return [
            n
            for n, event in enumerate(queue)
            if isinstance(event, StreamData) or (n == first and (not isinstance(event, Closed) or n == 0))
        ]

    def deliver(self, wire: Wire, side: int, index: int = 0) -> None:
        event = wire.queues[side].pop(index)
        wire.progress = [self.now, self.now]
        core = self.sides[side].core
        if not self.sides[side].alive:
            return
        self.counts["delivered"] += 1
        if isinstance(event, Made):
            self._made(wire, side)
        elif isinstance(event, Closed):
            if wire.open[side] and wire.made[side]:
                wire.open[side] = False
                core.connection_lost(wire.id, self.now, code=event.code, reason=event.reason, by_peer=True)
        elif isinstance(event, StreamData):
            core.receive_stream(wire.id, event.stream, event.offset, event.data, self.now)
        else:
            assert isinstance(event, Control)
            core.receive(wire.id, event, self.now)
        self.pump(side)

    def lose(self, wire: Wire) -> None:
        """What is on the way is lost; the sides learn of it by `notice`."""
        wire.lost = True
        wire.queues[0].clear()
        wire.queues[1].clear()

    def notice(self, wire: Wire, side: int) -> None:
        if wire.lost and wire.open[side]:
            wire.open[side] = False
            if wire.made[side] and self.sides[side].alive:
                self.sides[side].core.connection_lost(wire.id, self.now, by_peer=False)
                self.pump(side)

    def cut(self, wire: Wire) -> None:
        """Lost, and both know at once."""
        self.lose(wire)
        self.notice(wire, 0)
        self.notice(wire, 1)

    # ---------------------------------------------------------------- time

    def tick(self, seconds: float) -> None:
        """Let time pass, each deadline in its turn."""
        end = self.now + seconds
        for _ in range(10_000):
            due = [
                (at, side.number)
                for side in self.sides
                if side.alive and (at := side.core.next_timeout()) is not None and at <= end
            ]
            if not due:
                break
            at, number = min(due)
            self.now = max(self.now, at)
            self.sides[number].core.handle_timeout(self.now)
            self.pump(number)
        else:
            raise AssertionError("timers never come to rest")
        self.now = end

    def settle(self, limit: int = 20_000) -> None:
        """Deliver everything, in order, until nothing is under way."""
        for _ in range(limit):
            ready = [(wire, side) for wire in self.wires for side in (0, 1) if self.pieces(wire, side)]
            if not ready:
                return
            self.deliver(*ready[0])
        raise AssertionError("the peers never come to rest")

    def restart(self, number: int) -> None:
        """The process dies without a word and another one takes its place; its old wires stay."""
        for wire in self.wires:
            if wire.open[number]:
                wire.open[number] = False
                wire.queues[number].clear()
                wire.lost = True
        self.sides[number] = Side(number, self.numbers, self.settings)

    # ---------------------------------------------------------------- streams

    def open(self, number: int) -> Half | None:
        session = self.sides[number].core.begin()
        assert session is not None
        stream = session.core.open("test", Priority.BULK)
        if stream is None:
            return None
        half = Half(stream, session, HEADER)
        stream.handle = half
        self.sides[number].halves.append(half)
        self.pump(number)
        return half

    def write(self, number: int, half: Half, size: int) -> int:
        if half.core.sending.ending is not None or half.core.removed or half.supplied:
            return 0
        data = pattern(half.session.mine + half.core.id, half.written, size)
        accepted = half.session.core.write(half.core, data)
        half.written += accepted
        self.pump(number)
        return accepted

    def supply(self, number: int, half: Half, size: int, surplus: int) -> None:
        """Let the half have a source, if it has none, and that source so many bytes more."""
        sending = half.core.sending
        if sending.ending is not None or half.core.removed:
            return

        def source(room: int) -> bytes:
            assert sending.ending is None, "asked after the end"
            assert not half.exhausted, "asked again after it had nothing"
            assert sending.sent == sending.highest == sending.buffer.end, "asked while something waits"
            assert 1 <= room <= sending.limit - sending.sent, "asked for more than there is credit for"
            given = min(half.stock, room + half.surplus)
            data = pattern(half.session.mine + half.core.id, half.written, given)
            half.stock -= given
            half.written += given
            half.ahead = max(0, given - room)
            half.exhausted = not given
            return data

        half.stock += size
        half.surplus = surplus
        half.exhausted = False
        if half.supplied:
            half.session.core.more(half.core)
        else:
            half.supplied = True
            half.ahead = sending.buffer.end - sending.highest
            half.session.core.supply(half.core, source)
        self.pump(number)

    def read(self, number: int, half: Half, size: int) -> bytes:
        data = half.session.core.read(half.core, size)
        assert data == pattern(half.session.theirs + half.core.id, half.read, len(data)), "bytes of another place"
        half.read += len(data)
        self.pump(number)
        return data

    def finish(self, number: int, half: Half) -> None:
        half.finished = True
        half.session.core.finish(half.core)
        self.pump(number)

    def reset(self, number: int, half: Half, code: int = 1) -> None:
        half.reset = True
        half.session.core.reset(half.core, code)
        self.pump(number)

    def stop(self, number: int, half: Half, code: int = 2) -> None:
        half.stopped = True
        half.session.core.stop(half.core, code)
        self.pump(number)

    def session(self, number: int) -> SessionState:
        session = self.sides[number].core.session
        assert session is not None
        return session

    # ---------------------------------------------------------------- the end

    def drain(self, limit: int = 3000) -> None:
        """Thaw, finish and read everything, dial where needed, until nothing is left to do.

        Raises:
            AssertionError: it never ends.
        """
        for wire in self.wires:
            wire.frozen = False
            if wire.lost:
                self.notice(wire, 0)
                self.notice(wire, 1)
        for _ in range(limit):
            self.settle()
            for side in self.sides:
                for half in side.halves:
                    if half.core.sending.ending is None and not half.core.removed and not half.stock:
                        self.finish(side.number, half)
                    while self.read(side.number, half, 5000):
                        pass
            self.settle()
            sessions = [side.core.session for side in self.sides]
            if not any(session and session.core.streams for session in sessions):
                self.tick(0.1)
                self.settle()
                return
            if not any(any(wire.open) and not wire.lost for wire in self.wires):
                self.dial(0 if sessions[0] and sessions[0].core.streams else 1)
            self.tick(0.1)
        raise AssertionError("streams never end")

    def check(self) -> None:
        for side in self.sides:
            session = side.core.session
            if session is not None:
                check_session(session.core)
            for half in side.halves:
                sending = half.core.sending
                assert sending.bytes_delivered <= sending.bytes_sent <= half.written
                if half.supplied and not half.core.removed and sending.ending is None:
                    assert sending.buffer.end - sending.highest <= half.ahead, "taken, and not sent"
                    assert not (half.stock and half.exhausted)
            for link in side.core._links.all.values():
                assert link.held_bytes <= 2 * HELD_BYTES
                assert len(link.held) <= HELD_EVENTS
            assert side.pool.used == (session.budget.used if session else 0)

    def check_end(self) -> None:
        """Each side has read all that the other wrote, or its stream ended otherwise, in a way that was told."""
        ended = {action.session for side in self.sides for action in side.log if isinstance(action, Ended)}
        others = {(half.session.mine, half.session.theirs, half.core.id): half for half in self.sides[1].halves}
        for half in self.sides[0].halves:
            if half.session in ended:
                continue
            other = others.get((half.session.theirs, half.session.mine, half.core.id))
            if other is None:
                assert half.reset or half.core.sending.ending is Ending.RESET
                continue
            if other.session in ended:
                continue
            for one, two in ((half, other), (other, half)):
                sending, receiving = one.core.sending, two.core.receiving
                assert sending.done
                if sending.ending is Ending.FIN and receiving.stopped is None and receiving.ending is Ending.FIN:
                    assert one.written == two.read == sending.bytes_sent == sending.bytes_delivered
                    self.counts["supplied"] += one.supplied
                    self.counts["complete"] += 1
                else:
                    assert two.read <= one.written
                    self.counts["abandoned"] += 1
        for side in self.sides:
            if side.core.session is not None:
                check_empty(side.core.session.core)


def endings(world: World, side: int) -> list[actions.Ending]:
    return [action.why for action in world.sides[side].log if isinstance(action, Ended)]


def codes(world: World, side: int) -> list[CloseCode]:
    """With which codes that side has closed connections."""
    return [action.code for action in world.sides[side].log if isinstance(action, CloseConnection)]


def attached(world: World) -> tuple[list[int], list[int]]:
    return world.sides[0].core.attached, world.sides[1].core.attached


def talk(world: World) -> tuple[Half, Half]:
    """A stream of side 0 on which 1,000 bytes have been read by side 1."""
    half = world.open(0)
    assert half is not None
    world.write(0, half, 1000)
    world.settle()
    other = world.sides[1].halves[-1]
    assert len(world.read(1, other, 5000)) == 1000
    world.settle()
    return half, other


def finish_all(world: World) -> None:
    world.drain()
    world.check()
    world.check_end()
