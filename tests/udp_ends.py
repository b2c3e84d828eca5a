"""Two transmissions on a simulated network: what each is given to send, and whether exactly that has arrived.

Nothing is sealed: a packet is its number and its payload, and counts as long as it would be on the wire.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field

from udp_network import Link, Network

from overlay.protocol.udp.congestion import Acknowledged, Congestion
from overlay.protocol.udp.inbox import ControlData
from overlay.protocol.udp.mtu import MtuSearch
from overlay.protocol.udp.pacing import Pacer
from overlay.protocol.udp.payload import Datagram, StreamPiece
from overlay.protocol.udp.transmission import Burst, Transmission
from overlay.protocol.udp.wire import DATA_OVERHEAD

PIECE = 64 * 1024
EVENTS_PER_PACKET = 10
_PATTERN = bytes((at * at // 7 + at) & 0xFF for at in range(4096 + 251))
PATTERN = memoryview(b"".join(_PATTERN[shift : shift + 4096] for shift in range(251)) * 2)
"""About 2 MB that repeat only after 1 MB, so that bytes of another place are told."""
PERIOD = len(PATTERN) // 2


def pattern(stream: int, offset: int, size: int) -> memoryview:
    """The bytes of a stream: others for each stream and each place."""
    start = (offset + stream * 7919) % PERIOD
    assert size <= PERIOD
    return PATTERN[start : start + size]


class FixedWindow(Congestion):
    """No control at all: a window that stays as it is."""

    name = "fixed"

    def __init__(self, datagram_size: int, window: int = 64 * 1024) -> None:
        super().__init__(datagram_size)
        self.window = window
        self.samples: list[Acknowledged] = []
        self.persistent = 0
        self.spurious = 0
        self.last_loss = 0.0

    def sent(self, now: float, size: int, in_flight: int) -> None:
        assert size > 0 <= in_flight

    def acknowledged(self, sample: Acknowledged) -> None:
        self.samples.append(sample)
        assert sample.in_flight == sample.prior_in_flight - sample.acked - sample.lost >= 0

    def persistent_congestion(self, now: float) -> None:
        self.persistent += 1

    def spurious_loss(self, now: float, last_loss: float) -> None:
        self.spurious += 1
        self.last_loss = last_loss

    @property
    def is_starting(self) -> bool:
        return False

    def reset(self, now: float) -> None:
        pass


@dataclass(slots=True)
class Packet:
    """What would be a sealed DATA packet."""

    number: int
    payload: bytes

    def __len__(self) -> int:
        return len(self.payload) + DATA_OVERHEAD


def packets(bursts: Iterable[Burst]) -> list[Packet]:
    """The datagrams of bursts, each of which keeps the rules of GSO."""
    found: list[Packet] = []
    for burst in bursts:
        sizes = [len(payload) for payload in burst.payloads]
        assert set(sizes[:-1]) <= {burst.size}
        assert 0 < sizes[-1] <= burst.size
        assert sum(sizes) + DATA_OVERHEAD * len(sizes) <= 65_507
        assert len(sizes) <= 64
        found += [Packet(burst.first_number + index, payload) for index, payload in enumerate(burst.payloads)]
    return found


@dataclass
class Coverage:
    """Which bytes of a stream have arrived."""

    received: int = 0
    beyond: list[tuple[int, int]] = field(default_factory=list)

    def add(self, start: int, end: int) -> None:
        if start > self.received:
            self.beyond.append((start, end))
            return
        self.received = max(self.received, end)
        while any(first <= self.received for first, _ in self.beyond):
            self.received = max([self.received, *(last for first, last in self.beyond if first <= self.received)])
            self.beyond = [one for one in self.beyond if one[1] > self.received]


class End:
    """One end: a node of the network that sends what it is given and checks what it gets.

    Attributes:
        sending: stream -> (bytes handed over, bytes to send in all).
        received: stream -> what has arrived.
    """

    def __init__(
        self,
        congestion: Congestion,
        *,
        mtu: MtuSearch | None = None,
        initial_rtt: float = 0.333,
    ) -> None:
        self.congestion = congestion
        mtu = mtu or MtuSearch()
        self.core = Transmission(congestion, Pacer(mtu.size), mtu=mtu, initial_rtt=initial_rtt)
        self.sending: dict[int, list[int]] = {}
        self.received: dict[int, Coverage] = {}
        self.control_sent = 0
        self.control_received = 0
        self.datagrams: list[bytes] = []
        self.events: list[object] = []
        self.packets_sent = 0
        self.bytes_received = 0

    def send(self, stream: int, size: int) -> None:
        """Let a stream have so many bytes more."""
        self.sending.setdefault(stream, [0, 0])[1] += size

    def say(self, size: int) -> None:
        """Send control bytes."""
        self.core.send_control(bytes(pattern(0, self.control_sent, size)))
        self.control_sent += size

    def got(self, stream: int) -> int:
        """How much of a stream is complete."""
        return self.received[stream].received if stream in self.received else 0

    @property
    def is_quiet(self) -> bool:
        """Whether everything handed over is acknowledged."""
        idle = all(done == size for done, size in self.sending.values())
        return idle and not self.core.recovery.in_flight and not self.core.control_waiting and not self.core._outbox

    def receive(self, datagram: Packet, now: float) -> None:
        self.core.receive(((datagram.number, datagram.payload),), now)

    def handle_timeout(self, now: float) -> None:
        self.core.handle_timeout(now)

    def datagrams_to_send(self, now: float) -> list[Packet]:
        self._take_events()
        sent: list[Packet] = []
        while True:
            room = self.core.sendable(now)
            for stream, state in self.sending.items():
                size = min(PIECE, room, state[1] - state[0])
                if size > 0:
                    self.core.send_stream(stream, state[0], pattern(stream, state[0], size))
                    state[0] += size
                    room -= size
            found = packets(self.core.payloads_to_send(now))
            sent += found
            if not found:
                break
        self.packets_sent += len(sent)
        assert not sent or max(map(len, sent)) <= 65_507
        return sent

    def next_timeout(self) -> float | None:
        return self.core.next_timeout()

    def _take_events(self) -> None:
        for event in self.core.take_events():
            if isinstance(event, StreamPiece):
                size = len(event.data)
                assert type(event.data) is bytes
                for at in range(0, size, PERIOD):
                    part = event.data[at : at + PERIOD]
                    assert part == pattern(event.stream, event.offset + at, len(part)), "bytes of another place"
                self.received.setdefault(event.stream, Coverage()).add(event.offset, event.offset + size)
                self.bytes_received += size
            elif isinstance(event, ControlData):
                size = len(event.data)
                assert event.data == pattern(0, self.control_received, size)
                self.control_received += size
            elif isinstance(event, Datagram):
                self.datagrams.append(bytes(event.data))
            else:
                self.events.append(event)


@dataclass
class Result:
    """How a transfer went."""

    seconds: float
    goodput: float
    """Bytes per second."""
    packets: int
    """Of both ends."""


def transfer(
    left: End, right: End, network: Network, there: Link, back: Link, *, size: int, until: float, packets: int
) -> Result:
    """Send `size` bytes from left to right, with control bytes both ways, and check that all is there.

    Args:
        left: the sender.
        right: the receiver.
        network: with what is to happen under way.
        there: from left to right.
        back: from right to left.
        size: bytes.
        until: seconds of simulated time that it may take at most.
        packets: how many the two may send.
    """
    left.send(4, size)
    left.say(3000)
    right.say(5000)
    network.connect(left, right, there, back)
    complete = network.run(until, lambda: right.got(4) == size)
    assert complete, f"{right.got(4)} of {size} bytes after {until} s"
    seconds = network.now
    quiet = network.run(seconds + until, lambda: left.is_quiet and right.is_quiet)
    assert quiet, "the ends never come to rest"
    assert left.control_received == right.control_sent
    assert right.control_received == left.control_sent
    sent = left.packets_sent + right.packets_sent
    assert sent <= packets, f"{sent} packets"
    # A packet passes a queue and a wire, may be doubled and held, wakes its receiver and moves two timers.
    assert network.handled <= EVENTS_PER_PACKET * packets, f"{network.handled} events"
    return Result(seconds, size / seconds, sent)


__all__ = ["PIECE", "Coverage", "End", "FixedWindow", "Packet", "Result", "packets", "pattern", "transfer"]
