"""Twins: connections of QUIC that are equal bit for bit, so that one can show what a faster way does differently.

Their keys, connection ids and challenges are drawn from seeds, and time is a number. So a second engine that is told
whatever the first one is told stays its equal: the same state, the same datagrams. `Pair` carries datagrams between a
near end, of which there may be several, and a far end, and insists that all near ends do the same.
"""

import reprlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields
from enum import Enum
from random import Random
from typing import Any, Final, NamedTuple, TypeVar
from unittest import mock

from aioquic import tls
from aioquic.quic.configuration import SMALLEST_MAX_DATAGRAM_SIZE
from aioquic.quic.congestion.base import QuicRttMonitor
from aioquic.quic.congestion.reno import RenoCongestionControl
from aioquic.quic.connection import Limit, NetworkAddress, QuicConnectionId, QuicNetworkPath
from aioquic.quic.crypto import CryptoContext, CryptoPair
from aioquic.quic.events import QuicEvent, StreamDataReceived
from aioquic.quic.packet_builder import QuicSentPacket
from aioquic.quic.rangeset import RangeSet
from aioquic.quic.recovery import QuicPacketNumberWindow, QuicPacketPacer, QuicPacketRecovery, QuicPacketSpace
from aioquic.quic.stream import QuicStream, QuicStreamReceiver, QuicStreamSender
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from overlay.config import Config, MiB
from overlay.identity import Identity, PeerId
from overlay.protocol.budget import Budget
from overlay.transports import quic_bulk, quic_recovery
from overlay.transports.base import Role
from overlay.transports.quic import Engine, quic_configuration
from overlay.transports.quic_recovery import DataPacket

T = TypeVar("T")

ADDRESSES: Final[dict[Role, NetworkAddress]] = {
    Role.DIALER: ("2001:db8::1", 4001),
    Role.ACCEPTOR: ("2001:db8::2", 4002),
}
ELSEWHERE: Final[NetworkAddress] = ("2001:db8::3", 4003)
START: Final = 1000.0
FLIGHT: Final = 0.004
"""Seconds that a datagram travels during the handshake."""
CONTENT: Final = Random(1).randbytes(4 * MiB)
"""What is written: a stream's bytes are those from the place of its id on, so each tells where it belongs."""
KEYS: Final = {role: Ed25519PrivateKey.from_private_bytes(bytes([role is Role.DIALER]) * 32) for role in Role}


@contextmanager
def drawing(source: Random) -> Iterator[None]:
    """Let aioquic draw from `source`, and keep its sets of streams in an order that does not depend on addresses.

    The fast paths are taken for whatever is theirs, however little it is.
    """

    def key() -> X25519PrivateKey:
        return X25519PrivateKey.from_private_bytes(source.randbytes(32))

    with (
        mock.patch("os.urandom", source.randbytes),
        mock.patch.object(X25519PrivateKey, "generate", key),
        mock.patch.object(QuicStream, "__hash__", lambda stream: hash(stream.stream_id)),
        mock.patch.object(quic_bulk, "SHORT", 0),
        mock.patch.object(quic_recovery, "FEW", 0),
    ):
        yield


class Ways(NamedTuple):
    """How an engine is used: datagram by datagram, which is aioquic's own way, or in bursts."""

    receiving: bool = False
    sending: bool = False
    bulk: bool = True
    """Whether it is done by the fast paths then."""


class End:
    """An engine, the randomness that it draws from, and what was written to it and read from it."""

    def __init__(
        self,
        role: Role,
        ways: Ways,
        seed: int,
        peer: PeerId,
        original: bytes | None = None,
        *,
        largest_datagram: int = SMALLEST_MAX_DATAGRAM_SIZE,
    ) -> None:
        self.role = role
        self.ways = ways
        self._source = Random(seed * 2 + (role is Role.DIALER))
        dials = role is Role.DIALER
        with drawing(self._source):
            identity = IDENTITIES[role]
            self.engine = Engine(
                identity,
                quic_configuration(identity, Config(), role),
                START,
                expected=peer if dials else None,
                windows=None if dials else Budget(64 * MiB),
                largest_datagram=largest_datagram,
                original_destination_connection_id=original,
            )
            if dials:
                self.engine.connect(ADDRESSES[Role.ACCEPTOR], START)
        self.bulk_at_first = self.engine.bulk

    def run(self, action: Callable[[Engine], T], *, fast: bool = False) -> T:
        """Let the engine do something."""
        self.engine.bulk = fast and self.ways.bulk
        with drawing(self._source):
            return action(self.engine)

    def receive(self, datagrams: Sequence[bytes], remote: NetworkAddress, now: float, *, burst: bool = False) -> None:
        """Feed datagrams, as bursts if it has the way and is asked to."""
        if self.ways.receiving and burst:
            for piece in bursts(datagrams):
                data = b"".join(piece)
                self.run(lambda engine: engine.receive_burst(data, len(piece[0]), remote, now), fast=True)  # noqa: B023
            return
        for datagram in datagrams:
            self.run(lambda engine: engine.receive_datagram(datagram, remote, now), fast=self.ways.receiving)  # noqa: B023

    def send(self, now: float) -> list[tuple[bytes, NetworkAddress]]:
        """The datagrams that it wants to send, one by one."""
        if not self.ways.sending:
            return self.run(lambda engine: engine.datagrams_to_send(now))
        sent = []
        for data, segment, remote in self.run(lambda engine: list(engine.bursts_to_send(now)), fast=True):
            assert 0 < segment <= len(data)
            sent += [(data[place : place + segment], remote) for place in range(0, len(data), segment)]
        assert all(len(data) <= self.engine.mtu for data, _ in sent)
        return sent

    def tick(self, now: float) -> None:
        """Fire its timer if that is due."""
        if (deadline := self.engine.get_timer()) is not None and deadline <= now:
            self.run(lambda engine: engine.handle_timer(now), fast=self.ways.receiving)

    def events(self) -> list[QuicEvent]:
        """What there is to read, which earns the sender new credit."""
        return joined(self.run(lambda engine: list(iter(engine.next_event, None))))


class Pair:
    """Two connected ends; of the near one there may be several, which are told the same.

    Args:
        role: of the near end.
        near: the ways of each engine there.
        far: those of the other end.
        seed: of all that is drawn.
    """

    def __init__(self, role: Role, near: Sequence[Ways], far: Ways, *, seed: int = 0) -> None:
        self.now = START
        self.role = role
        other = next(other for other in Role if other is not role)

        def make(role: Role, peer: Role, ways: Ways, original: bytes | None = None) -> End:
            return End(role, ways, seed, IDENTITIES[peer].peer_id, original)

        if role is Role.DIALER:
            self.near = [make(role, other, ways) for ways in near]
            self.far = make(other, role, far, self.near[0].engine.original_destination_connection_id)
        else:
            self.far = make(other, role, far)
            drawn = self.far.engine.original_destination_connection_id
            self.near = [make(role, other, ways, drawn) for ways in near]
        if role is Role.DIALER:
            self.far_feed(self.send())
        for _ in range(6):
            theirs = self.far_send()
            self.wait(FLIGHT)
            self.feed(theirs)
            ours = self.send()
            self.wait(FLIGHT)
            self.far_feed(ours)
        assert all(end.engine._handshake_confirmed for end in (*self.near, self.far))
        self.events()
        self.far.events()

    def each(self, action: Callable[[End], T]) -> T:
        """Let all near ends do something; the result must be the same."""
        first, *others = [action(end) for end in self.near]
        for other in others:
            assert other == first
        return first

    def agree(self) -> None:
        """Insist that all near ends are in the same state."""
        first, *others = [state(end.engine) for end in self.near]
        for other in others:
            names = [name for name in first | other if first.get(name) != other.get(name)]
            assert not names, {name: tuple(map(reprlib.repr, (first.get(name), other.get(name)))) for name in names}

    def feed(self, datagrams: Sequence[bytes], *, burst: bool = False, remote: NetworkAddress | None = None) -> None:
        """Feed datagrams to all near ends."""
        sender = remote or ADDRESSES[self.far.role]
        self.each(lambda end: end.receive(datagrams, sender, self.now, burst=burst))

    def send(self) -> list[bytes]:
        """What all near ends send."""
        return [data for data, _ in self.each(lambda end: end.send(self.now))]

    def events(self) -> list[QuicEvent]:
        """What all near ends have to say."""
        return self.each(End.events)

    def far_feed(self, datagrams: Sequence[bytes], *, burst: bool = False) -> None:
        """Feed datagrams to the far end."""
        self.far.receive(datagrams, ADDRESSES[self.role], self.now, burst=burst)

    def far_send(self) -> list[bytes]:
        """What the far end sends."""
        return [data for data, _ in self.far.send(self.now)]

    def wait(self, seconds: float) -> None:
        """Let time pass, and fire the timers that are due then."""
        self.now += seconds
        self.each(lambda end: end.tick(self.now))
        self.far.tick(self.now)

    def wait_for_timer(self) -> None:
        """Let time pass until something is due at either end."""
        deadlines = [end.engine.get_timer() for end in (*self.near, self.far)]
        # What is due, but held back by something that only another datagram ends, comes up again at once.
        self.wait(max(min(filter(None, deadlines)) - self.now, 0.0005))


def bursts(datagrams: Iterable[bytes]) -> Iterator[list[bytes]]:
    """The datagrams as bursts: all of one length, but the last, which may be shorter."""
    burst: list[bytes] = []
    for datagram in datagrams:
        if burst and (len(burst[-1]) < len(burst[0]) or len(datagram) > len(burst[0])):
            yield burst
            burst = []
        burst.append(datagram)
    if burst:
        yield burst


def written(stream: int, start: int, size: int) -> bytes:
    """The bytes that are written on a stream."""
    return CONTENT[stream + start : stream + start + size]


def joined(events: Iterable[QuicEvent]) -> list[QuicEvent]:
    """With the adjacent data of one stream in one event."""
    result: list[QuicEvent] = []
    for event in events:
        last = result[-1] if result else None
        if (
            isinstance(event, StreamDataReceived)
            and isinstance(last, StreamDataReceived)
            and last.stream_id == event.stream_id
            and not last.end_stream
        ):
            result[-1] = StreamDataReceived(last.data + event.data, event.end_stream, event.stream_id)
            continue
        result.append(event)
    return result


def short_packet(end: End, payload: bytes, *, skip: int = 0, width: int = 2, reserved: int = 0) -> bytes:
    """A packet of an end that says whatever `payload` says; the end itself knows nothing of it.

    Args:
        end: whose keys it is made with.
        payload: frames, or garbage.
        skip: packet numbers to leave out before it.
        width: bytes of its packet number.
        reserved: the reserved bits, which should be zero.
    """
    engine = end.engine
    number = engine._packet_number + skip
    engine._packet_number = number + 1
    crypto = engine._cryptos[tls.Epoch.ONE_RTT]
    first = 0x40 | engine._spin_bit << 5 | reserved << 3 | crypto.key_phase << 2 | (width - 1)
    header = bytes([first]) + engine._peer_cid.cid + (number & (1 << 8 * width) - 1).to_bytes(width, "big")
    return crypto.encrypt_packet(header, payload.ljust(4, b"\0"), number)


SENT: Final = [
    field for field in fields(QuicSentPacket) if field.name not in {"delivery_handlers", "quic_logger_frames"}
]
"""What is known of a packet that was sent."""
INNER: Final = (
    *(CryptoPair, CryptoContext, Limit, QuicConnectionId, QuicNetworkPath, QuicPacketRecovery, QuicPacketSpace),
    *(QuicPacketPacer, QuicRttMonitor, QuicStream, QuicStreamReceiver, QuicStreamSender, RenoCongestionControl),
)
"""Objects whose attributes are state."""
BESIDES: Final = frozenset(
    {
        *("tls", "_configuration", "_QuicConnection__frame_handlers", "_events", "_loss.is_bulk", "_loss.spaces"),
        *("_pacer", "_searched", "_first_probe"),
    }
)
"""What is no state of the connection, or is the fast paths' own, or is looked at under another name."""


def state(engine: Engine) -> dict[str, object]:
    """All that an engine knows, as names and values that can be compared."""
    found: dict[str, object] = {}
    for name, value in vars(engine).items():
        _note(found, name, value)
    found["_events"] = joined(engine._events)
    return found


def _note(found: dict[str, object], name: str, value: Any) -> None:
    if name in BESIDES:
        return
    if value is None or isinstance(value, bool | int | float | str | bytes | Enum | set | frozenset | QuicEvent):
        found[name] = value
    elif isinstance(value, bytearray):
        found[name] = bytes(value)
    elif isinstance(value, RangeSet):
        found[name] = tuple(value)
    elif isinstance(value, QuicPacketNumberWindow):
        # When it forgets what is below the window is nobody's business.
        found[name] = value._lower, {number for number in value._received if number >= value._lower}
    elif isinstance(value, QuicSentPacket | DataPacket):
        handlers = [(handler.__qualname__, *map(_told, args)) for handler, args in value.delivery_handlers]
        found[name] = [handlers, *(getattr(value, field.name) for field in SENT)]
    elif isinstance(value, dict):
        found[name] = list(value)
        for key, item in value.items():
            _note(found, f"{name}[{key}]", item)
    elif isinstance(value, list | tuple | deque) and name.startswith("_streams_"):
        found[name] = [stream.stream_id for stream in value]
    elif isinstance(value, list | tuple | deque):
        found[name] = len(value)
        for place, item in enumerate(value):
            _note(found, f"{name}[{place}]", item)
    elif isinstance(value, INNER):
        for inner, item in vars(value).items():
            _note(found, f"{name}.{inner}", item)


def _told(value: Any) -> object:
    """What a delivery handler is told: plain values, or which stream."""
    if isinstance(value, bool | int | float | bytes):
        return value
    return getattr(value, "stream_id", type(value).__name__)


def _identities() -> dict[Role, Identity]:
    made = {role: Identity(key) for role, key in KEYS.items()}
    with drawing(Random(0)):
        # A certificate is made at the first use, and draws its number.
        assert all(identity.certificate for identity in made.values())
    return made


IDENTITIES: Final = _identities()
