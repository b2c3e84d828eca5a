"""Two whole connections on a simulated network: real TLS, real packets, real addresses; only time is made up.

A `Host` is what a socket and a session are to the core: it answers knocks, makes a core for whoever brings a good
cookie, feeds what arrives, sends what it was given, and checks every byte that comes out.
"""

import functools
import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from udp_ends import PIECE, Coverage, pattern
from udp_network import Attachment, Link, Network
from udp_tls import accepting, dialling, profile

from overlay.identity import Identity, PeerId
from overlay.protocol.udp.connection import (
    AddressChanged,
    Closed,
    Confirmed,
    ControlData,
    Datagram,
    IdsChanged,
    Outgoing,
    Proven,
    StreamPiece,
    UdpCore,
)
from overlay.protocol.udp.cookie import SECRET_SIZE, CookieJar, ResetTokens
from overlay.protocol.udp.established import Established
from overlay.protocol.udp.handshake import AcceptorHandshake, DiallerHandshake
from overlay.protocol.udp.handshake_packets import Header
from overlay.protocol.udp.keys import Protection
from overlay.protocol.udp.wire import HANDSHAKE, KNOCK
from overlay.transports import tls

DIALLER, ACCEPTOR = Identity.generate(), Identity.generate()
Core = UdpCore[PeerId]


@functools.cache
def profile_of(identity: Identity) -> tls.Profile:
    return profile(identity)


@dataclass(frozen=True, slots=True)
class Letter:
    """A datagram with its two addresses."""

    data: bytes
    source: str
    target: str

    def __len__(self) -> int:
        return len(self.data)


class Host:
    """One end: a node of the network.

    Attributes:
        address: where letters to it arrive; letters to anywhere else are lost.
        core: the connection, once there is one.
        events: all but the contents.
        sent: every letter, in order.
        hostile: makes further letters of each one that arrives, which are fed before it.
    """

    def __init__(self, address: str, seed: int) -> None:
        self.address = address
        self.core: Core | None = None
        self.events: list[Proven[PeerId] | Confirmed | Closed | IdsChanged | AddressChanged] = []
        self.sending: dict[int, list[int]] = {}
        self.received: dict[int, Coverage] = {}
        self.control_sent = 0
        self.control_received = 0
        self.datagrams: list[bytes] = []
        self.sent: list[Letter] = []
        self.ids: set[bytes] = set()
        self.hostile: Callable[[Letter], Iterable[Letter]] | None = None
        self.on_proven: Callable[[Core], None] | None = None
        self.random = random.Random(seed)
        self.tokens = ResetTokens(self.random.randbytes(SECRET_SIZE))
        self._said = 0

    # --- what the session wants

    def send(self, stream: int, size: int) -> None:
        """Let a stream have so many bytes more."""
        self.sending.setdefault(stream, [0, 0])[1] += size

    def say(self, size: int) -> None:
        """Send control bytes, as soon as that may be."""
        self._said += size

    def got(self, stream: int) -> int:
        """How much of a stream is complete."""
        return self.received[stream].received if stream in self.received else 0

    @property
    def one(self) -> Core:
        assert self.core is not None
        return self.core

    @property
    def established(self) -> Established:
        assert self.one._established is not None
        return self.one._established

    @property
    def protection(self) -> Protection:
        return self.established._protection

    @property
    def closed(self) -> Closed | None:
        found = [event for event in self.events if isinstance(event, Closed)]
        assert len(found) <= 1
        assert not found or self.events[-1] is found[0]
        return found[0] if found else None

    def has(self, kind: type) -> bool:
        return any(isinstance(event, kind) for event in self.events)

    # --- what the network wants

    def receive(self, letter: Letter, now: float) -> None:
        if self.hostile is not None:
            for bad in self.hostile(letter):
                self.feed(bad, now)
        self.feed(letter, now)

    def feed(self, letter: Letter, now: float) -> None:
        if letter.target == self.address and self.core is not None:
            self.core.receive_datagram(letter.data, letter.source, now)

    def handle_timeout(self, now: float) -> None:
        if self.core is not None:
            self.core.handle_timeout(now)

    def next_timeout(self) -> float | None:
        return None if self.core is None else self.core.next_timeout()

    def datagrams_to_send(self, now: float) -> list[Letter]:
        core = self.core
        if core is None:
            return []
        core.batch_ended(now)
        self._take_events(now)
        letters: list[Letter] = []
        while True:
            self._feed_session(core, now)
            found = core.bursts_to_send(now)
            self._take_events(now)
            if not found:
                break
            for outgoing in found:
                letters += self._cut(outgoing)
        self.sent += letters
        return letters

    def _cut(self, outgoing: Outgoing) -> list[Letter]:
        data, segment, target = outgoing.data, outgoing.segment, outgoing.address
        assert isinstance(target, str)
        assert 0 < len(data) <= 65_507
        assert len(data) <= 64 * segment
        return [Letter(data[at : at + segment], self.address, target) for at in range(0, len(data), segment)]

    def _feed_session(self, core: Core, now: float) -> None:
        if not self.has(Proven):
            return
        if self._said:
            core.send_control(bytes(pattern(0, self.control_sent, self._said)))
            self.control_sent += self._said
            self._said = 0
        room = core.sendable(now)
        for stream, state in self.sending.items():
            size = min(PIECE, room, state[1] - state[0])
            if size > 0:
                core.send_stream(stream, state[0], pattern(stream, state[0], size))
                state[0] += size
                room -= size

    def _take_events(self, now: float) -> None:
        core = self.one
        for event in core.take_events():
            assert self.closed is None, "an event behind the last"
            if isinstance(event, StreamPiece):
                assert event.data == pattern(event.stream, event.offset, len(event.data))
                self.received.setdefault(event.stream, Coverage()).add(event.offset, event.offset + len(event.data))
            elif isinstance(event, ControlData):
                assert event.data == pattern(0, self.control_received, len(event.data))
                self.control_received += len(event.data)
            elif isinstance(event, Datagram):
                self.datagrams.append(bytes(event.data))
            else:
                self.events.append(event)
                if isinstance(event, IdsChanged):
                    self.ids = (self.ids | set(event.added)) - set(event.removed)
                if isinstance(event, Proven) and self.on_proven is not None:
                    self.on_proven(core)
        assert self.ids <= set(core.ids) <= self.ids | {core.ids[0]}
        assert len(core.ids) <= 4


class Dialler(Host):
    """The side that dials."""

    def __init__(self, expected: PeerId | None = None, **settings: float) -> None:
        super().__init__("dialler", seed=11)
        expected = expected or ACCEPTOR.peer_id
        handshake = DiallerHandshake(self.random.randbytes(8), dialling(profile_of(DIALLER), expected))
        self.core = UdpCore(
            handshake,
            "acceptor",
            random=self.random.randbytes,
            token=self.tokens.token,
            now=0.0,
            **settings,  # type: ignore[arg-type]
        )
        self.handshake = handshake
        self.ids = set(self.core.ids)


class Acceptor(Host):
    """The side that is dialled: a socket that makes one core."""

    def __init__(self, **settings: float) -> None:
        super().__init__("acceptor", seed=12)
        self.jar = CookieJar(self.random.randbytes)
        self.settings = settings
        self.begun = 0
        self._answers: list[Letter] = []

    def feed(self, letter: Letter, now: float) -> None:
        if letter.target != self.address or not letter.data:
            return
        data, source = letter.data, letter.source
        if self.core is not None and data[0] not in {KNOCK, HANDSHAKE}:
            self.core.receive_datagram(data, source, now)
            return
        header = Header.read(data)
        if header is None:
            answer = self.jar.answer_knock(data, source.encode(), now)
            if answer is not None:
                self._answers.append(Letter(answer, self.address, source))
        elif self.core is not None:
            if header.destination in self.core.ids:
                self.core.receive_datagram(data, source, now)
        elif self.jar.accepts(header.cookie, header.source, header.destination, source.encode(), now):
            handshake = AcceptorHandshake(header, accepting(profile_of(ACCEPTOR)))
            handshake.receive_datagram(data, now)
            if handshake.heard:
                self.begun += 1
                self.core = UdpCore(
                    handshake,
                    source,
                    random=self.random.randbytes,
                    token=self.tokens.token,
                    now=now,
                    **self.settings,  # type: ignore[arg-type]
                )
                self.ids = set(self.core.ids)

    def datagrams_to_send(self, now: float) -> list[Letter]:
        answers, self._answers = self._answers, []
        self.sent += answers
        return answers + super().datagrams_to_send(now)


class World:
    """A dialler, an acceptor and what lies between them."""

    def __init__(
        self,
        there: Link | None = None,
        back: Link | None = None,
        *,
        seed: int = 1,
        dialler: Dialler | None = None,
        **settings: float,
    ) -> None:
        self.network = Network(seed)
        self.there = there or Link(delay=0.025)
        self.back = back or Link(delay=0.025)
        self.dialler = dialler or Dialler(None, **settings)
        self.acceptor = Acceptor(**settings)
        self.hosts: tuple[Host, Host] = (self.dialler, self.acceptor)
        self.places: tuple[Attachment, Attachment] = self.network.connect(
            self.dialler, self.acceptor, self.there, self.back
        )

    @property
    def now(self) -> float:
        return self.network.now

    def wake(self) -> None:
        for place in self.places:
            place.wake()

    def run(self, seconds: float, done: Callable[[], bool] | None = None) -> bool:
        """Let time pass, beginning with a turn for both; whether `done` came true."""
        self.wake()
        return self.network.run(self.now + seconds, done)

    def open(self, seconds: float = 30.0) -> "World":
        """Until both know that both know."""
        assert self.run(seconds, lambda: all(host.has(Confirmed) for host in self.hosts))
        assert Proven(ACCEPTOR.peer_id) in self.dialler.events
        assert Proven(DIALLER.peer_id) in self.acceptor.events
        return self

    def transfer(self, size: int, seconds: float, back: int = 0) -> "World":
        """Send `size` bytes there, and `back` bytes back, with control bytes both ways, and see that all arrives."""
        dialler, acceptor = self.hosts
        there_end, back_end = acceptor.got(4) + size, dialler.got(5) + back
        dialler.send(4, size)
        acceptor.send(5, back)
        dialler.say(3000)
        acceptor.say(5000)
        assert self.run(
            seconds,
            lambda: (
                (acceptor.got(4), dialler.got(5)) == (there_end, back_end)
                and acceptor.control_received == dialler.control_sent > 0
                and dialler.control_received == acceptor.control_sent > 0
            ),
        ), f"{acceptor.got(4)} of {there_end} and {dialler.got(5)} of {back_end} after {seconds} s"
        return self

    def quiet(self, seconds: float = 60.0) -> "World":
        """Until nothing is under way any more."""

        def rests() -> bool:
            return not any(host.established.transmission.recovery.in_flight for host in self.hosts)

        assert self.run(seconds, rests)
        return self


__all__ = ["ACCEPTOR", "DIALLER", "Acceptor", "Core", "Dialler", "Host", "Letter", "World"]
