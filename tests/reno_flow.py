"""A sender with QUIC's congestion control on the simulated network: numbers of packets, and nothing in them.

Three later packets that were acknowledged show a loss (RFC 9002 section 6.1.1), unless it is told otherwise.
"""

from collections.abc import Iterable

from aioquic.quic.congestion.reno import RenoCongestionControl
from aioquic.quic.packet import QuicPacketType
from aioquic.quic.packet_builder import QuicSentPacket
from aioquic.tls import Epoch
from udp_network import Link, Network

SIZE = 1200
"""Bytes of a packet."""


def packet_of(number: int, size: int, at: float) -> QuicSentPacket:
    """What aioquic remembers of a packet that left at a time."""
    return QuicSentPacket(
        epoch=Epoch.ONE_RTT,
        in_flight=True,
        is_ack_eliciting=True,
        is_crypto_packet=False,
        packet_number=number,
        packet_type=QuicPacketType.ONE_RTT,
        sent_time=at,
        sent_bytes=size,
    )


class Packet:
    """A number in so many bytes."""

    def __init__(self, number: int, size: int) -> None:
        self.number = number
        self.size = size

    def __len__(self) -> int:
        return self.size


class Mirror:
    """Acknowledges each packet at once, in few bytes."""

    def __init__(self) -> None:
        self._arrived: list[Packet] = []

    def receive(self, datagram: Packet, now: float) -> None:
        self._arrived.append(datagram)

    def handle_timeout(self, now: float) -> None:
        pass

    def datagrams_to_send(self, now: float) -> Iterable[Packet]:
        arrived, self._arrived = self._arrived, []
        return [Packet(packet.number, 40) for packet in arrived]

    def next_timeout(self) -> float | None:
        return None


class Sender:
    """Sends as much as the window lets go.

    Args:
        control: the controller.
        threshold: so many later packets show that one is lost.

    Attributes:
        arrivals: for each acknowledgement, its time and the round-trip time.
    """

    def __init__(self, control: RenoCongestionControl, threshold: int = 3) -> None:
        self.control = control
        self._threshold = threshold
        self.arrivals: list[tuple[float, float]] = []
        self._next = 0
        self._outstanding: dict[int, QuicSentPacket] = {}

    def receive(self, datagram: Packet, now: float) -> None:
        sent = self._outstanding.pop(datagram.number, None)
        if sent is None:
            return
        self.control.on_packet_acked(now=now, packet=sent)
        rtt = now - (sent.sent_time or 0.0)
        self.control.on_rtt_measurement(now=now, rtt=rtt)
        self.arrivals.append((now, rtt))
        lost = [number for number in self._outstanding if number <= datagram.number - self._threshold]
        if lost:
            self.control.on_packets_lost(now=now, packets=[self._outstanding.pop(number) for number in lost])

    def handle_timeout(self, now: float) -> None:
        pass

    def datagrams_to_send(self, now: float) -> Iterable[Packet]:
        control = self.control
        while control.bytes_in_flight + SIZE <= control.congestion_window:
            sent = self._outstanding[self._next] = packet_of(self._next, SIZE, now)
            control.on_packet_sent(packet=sent)
            yield Packet(self._next, SIZE)
            self._next += 1

    def next_timeout(self) -> float | None:
        return None

    def goodput(self, start: float, end: float) -> float:
        """Bytes per second that were acknowledged between two times."""
        return SIZE * sum(start <= at < end for at, _ in self.arrivals) / (end - start)

    def rtt(self, start: float, end: float) -> float:
        """The mean of the round-trip times between two times, in seconds."""
        found = [rtt for at, rtt in self.arrivals if start <= at < end]
        return sum(found) / len(found)


def join(
    network: Network, control: RenoCongestionControl, there: Link, back: Link, *, start: float = 0.0, threshold: int = 3
) -> Sender:
    """Add a flow without end to a network."""
    sender = Sender(control, threshold)
    network.connect(sender, Mirror(), there, back, start=start)
    return sender
