"""A road between two engines of QUIC that search its MTU: what it carries can be changed, and time is a number."""

import heapq
from collections.abc import Callable
from contextlib import ExitStack
from itertools import count, pairwise
from random import Random
from types import TracebackType
from typing import Final, NamedTuple, Self

from aioquic.quic.connection import NetworkAddress
from aioquic.quic.events import DatagramFrameReceived, StreamDataReceived
from aioquic.tls import Epoch
from quic_twins import ADDRESSES, CONTENT, IDENTITIES, START, End, Ways, drawing

from overlay.transports.base import Role
from overlay.transports.quic import Engine
from overlay.transports.quic_recovery import ProbePacket
from overlay.transports.quic_runs import ReceiveRuns, SendRuns

FAST: Final = Ways(receiving=True, sending=True)
JUMBO: Final = 8952
OTHER: Final = {Role.DIALER: Role.ACCEPTOR, Role.ACCEPTOR: Role.DIALER}
TICK: Final = 1e-6
"""Seconds that pass at least: aioquic has timers that are only past when they are over."""
SPINS: Final = 3
"""Steps in succession in which a timer was due, and nothing came of it."""


class Sent(NamedTuple):
    """A datagram."""

    at: float
    size: int
    address: NetworkAddress


class Side:
    """An engine with a stream to write and one to read.

    Attributes:
        arrived: when, and how many bytes of the stream were there then.
        sent: the datagrams that have left: when, how many bytes, where to.
        probes: those of them that were to find the path's MTU.
        owed: bytes that are yet to be written.
        frames: DATAGRAM frames that have come.
        local_limit: bytes above which its own system refuses a datagram.
    """

    def __init__(self, end: End) -> None:
        self.engine: Engine = end.engine
        self.role = end.role
        self.arrived: list[tuple[float, int]] = [(START, 0)]
        self.sent: list[Sent] = []
        self.probes: list[Sent] = []
        self.owed = 0
        self.frames: list[bytes] = []
        self.local_limit = 65_507
        self._outgoing, self._incoming = SendRuns(self.engine), ReceiveRuns()
        self._written = 0

    def write(self) -> None:
        """As much of what is owed as the engine takes."""
        while self.owed and (room := self.engine.room()) > 0:
            at = self._written % len(CONTENT)
            size = min(room, self.owed, len(CONTENT) - at, 65_536)
            self.owed -= size
            self._outgoing.send(0, self._written, CONTENT[at : at + size], idle=not self.owed)
            self._written += size

    def read(self, now: float) -> None:
        """Take what has come, which must be what was written."""
        while (event := self.engine.next_event()) is not None:
            if isinstance(event, DatagramFrameReceived):
                self.frames.append(event.data)
            elif isinstance(event, StreamDataReceived) and event.stream_id != self.engine.control_in:
                piece = self._incoming.receive(event.stream_id, event.data, end=event.end_stream)
                if piece is None:
                    continue
                _, offset, data = piece
                assert CONTENT.startswith(bytes(data), offset % len(CONTENT))
                self.arrived.append((now, self.arrived[-1][1] + len(data)))

    @property
    def received(self) -> int:
        """Bytes of the stream so far."""
        return self.arrived[-1][1]

    def stall(self, since: float) -> float:
        """Seconds for which nothing of the stream has come, at the longest."""
        times = [since, *(now for now, _ in self.arrived if now > since)]
        return max(after - before for before, after in pairwise(times))


class Road:
    """Carries datagrams of up to `limit` bytes.

    Args:
        rtt: seconds that a round trip takes.
        limit: bytes.
        loss: the share of datagrams that are lost, whatever their size.
        seed: of all that is drawn.
        largest: as far as both ends may look.

    Attributes:
        is_down: whether nothing passes at all.
    """

    def __init__(self, rtt: float, limit: int, *, loss: float = 0.0, seed: int = 0, largest: int = 8972) -> None:
        self.rtt, self.limit, self.loss = rtt, limit, loss
        self.now = START
        self.is_down = False
        self._weather = Random(seed)
        self._turn = count()
        self._calendar: list[tuple[float, int, Callable[[], None]]] = []
        self._stack = ExitStack()
        near = End(Role.DIALER, FAST, seed, IDENTITIES[Role.ACCEPTOR].peer_id, largest_datagram=largest)
        original = near.engine.original_destination_connection_id
        peer = IDENTITIES[Role.DIALER].peer_id
        far = End(Role.ACCEPTOR, FAST, seed, peer, original, largest_datagram=largest)
        near.engine.bulk = far.engine.bulk = True
        self.sides = {end.role: Side(end) for end in (near, far)}
        self.addresses = dict(ADDRESSES)
        """Where each end's datagrams come from."""

    def __enter__(self) -> Self:
        """Let both draw from a seed, and shake hands."""
        self._stack.enter_context(drawing(self._weather))
        self.until(lambda: all(side.engine._handshake_confirmed for side in self.sides.values()))
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        """Draw as usual again."""
        self._stack.close()

    @property
    def near(self) -> Side:
        """Who has dialled."""
        return self.sides[Role.DIALER]

    @property
    def far(self) -> Side:
        """Who has accepted."""
        return self.sides[Role.ACCEPTOR]

    def later(self, seconds: float, action: Callable[[], None]) -> None:
        """Do something then."""
        heapq.heappush(self._calendar, (self.now + seconds, next(self._turn), action))

    def every(self, seconds: float, role: Role, size: int) -> None:
        """Write a message of `size` bytes again and again."""

        def message() -> None:
            self.sides[role].owed += size
            self.later(seconds, message)

        message()

    def run(self, seconds: float) -> None:
        """Let time pass."""
        ends: list[bool] = []
        self.later(seconds, lambda: ends.append(True))
        self.until(lambda: bool(ends))

    def until(self, condition: Callable[[], bool]) -> None:
        """Let time pass until something is so; at most an hour, which is long for a connection."""
        spins = 0
        while True:
            before, busy = self.now, self._send()
            if condition():
                return
            due = [at for side in self.sides.values() if (at := side.engine.get_timer()) is not None]
            self.now = max(self.now + TICK, min([*due, *(at for at, _, _ in self._calendar[:1])]))
            while self._calendar and self._calendar[0][0] <= self.now:
                busy = True
                heapq.heappop(self._calendar)[2]()
            for side in self.sides.values():
                if (at := side.engine.get_timer()) is not None and at <= self.now:
                    side.engine.handle_timer(self.now)
                side.read(self.now)
                assert not side.engine.is_closing
            spins = 0 if busy or self.now > before + 2 * TICK else spins + 1
            assert spins <= SPINS, "a timer spins"
            assert self.now < START + 3600

    def _send(self) -> bool:
        """Whether there was anything."""
        busy = False
        for side in self.sides.values():
            engine = side.engine
            if not engine._network_paths:
                continue
            side.write()
            for data, segment, address in engine.bursts_to_send(self.now):
                busy = True
                assert 0 < segment <= len(data)
                sent = engine._spaces[Epoch.ONE_RTT].sent_packets.get(engine._packet_number - 1)
                if isinstance(sent, ProbePacket) and segment > engine.mtu:
                    assert len(data) == segment == sent.sent_bytes
                    side.probes.append(Sent(self.now, segment, address))
                else:
                    assert segment <= engine.mtu
                if segment > side.local_limit:
                    engine.too_large(segment)
                    continue
                for place in range(0, len(data), segment):
                    self._carry(side, data[place : place + segment], address)
            due = engine._search.next_timeout() if engine._may_search() else None
            # Only what the system has refused may be followed at once.
            assert due is None or due > self.now or side.local_limit < 65_507
        return busy

    def _carry(self, side: Side, data: bytes, address: NetworkAddress) -> None:
        side.sent.append(Sent(self.now, len(data), address))
        other = self.sides[OTHER[side.role]]
        lost = self.is_down or len(data) > self.limit or self._weather.random() < self.loss
        if lost or address != self.addresses[other.role]:
            return
        sender = self.addresses[side.role]
        phase = _key_phase(side.engine)

        def arrive() -> None:
            known = other.engine.packets_received
            other.engine.receive_burst(data, len(data), sender, self.now)
            # Only what is sealed with keys that are no more may be for nothing.
            is_late = data[0] & 0x80 or not other.engine._handshake_confirmed or _key_phase(other.engine) != phase
            assert is_late or other.engine.packets_received > known

        self.later(self.rtt / 2, arrive)


def _key_phase(engine: Engine) -> int:
    return engine._cryptos[Epoch.ONE_RTT].key_phase
