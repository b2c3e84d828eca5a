"""A reliable channel for TLS's bytes, made of HANDSHAKE packets: RFC 9002 in small.

Every packet with CRYPTO is acknowledged at once. Lost is what lies 3 packets, or 9/8 of a round trip, behind one that
arrived; after a probe timeout, which doubles, everything that is not acknowledged. At most WINDOW packets are under
way, so no congestion control is needed: it is what QUIC would begin with. A side that is sent again what it has
already answered does not wait for its own timeout (RFC 9002 section 6.2.3).
"""

from dataclasses import dataclass
from typing import Final

from overlay.protocol.frames import ProtocolViolation
from overlay.protocol.udp.crypto_stream import IncomingCrypto, OutgoingCrypto
from overlay.protocol.udp.handshake_packets import OVERHEAD, Bytes, Header, Seal
from overlay.protocol.udp.payload import (
    Ack,
    Close,
    CryptoPiece,
    Frame,
    FrameType,
    encode_ack,
    encode_piece,
    read_frames,
)
from overlay.protocol.udp.ranges import ReceivedNumbers
from overlay.protocol.udp.rtt import GRANULARITY, RoundTripTime

WINDOW: Final = 10
"""Packets that may be under way (RFC 9002 section 7.2)."""
PACKET_THRESHOLD: Final = 3
TIME_THRESHOLD: Final = 9 / 8
"""Both of RFC 9002 section 6.1."""
MAX_REMEMBERED: Final = 64
"""Packets whose acknowledgement is still understood. On a path with a round trip of seconds the first ones are sent
again before they can have been acknowledged; their acknowledgement then tells how long the path is."""
MAXIMUM_INTERVAL: Final = 2.0
"""Seconds between probes, however far the peer is. RFC 9002 waits three times the first round trip, and doubles that:
where a round trip takes 5 s the first loss would cost 15 s, half of a dial. These few packets cannot congest anything,
and end with the dial; so on such a path two or three copies of a flight are under way at once. Of dials with 5 s and
20 % loss 53 % came through in their 30 s by the rule; with this, and the reminders of `opening`, 98 % do."""

_ACK_ROOM = 48
_PIECE_OVERHEAD = 5
"""Bytes: a CRYPTO frame's type, an offset below MAX_CRYPTO, and a length."""


@dataclass(slots=True)
class _Sent:
    """A packet with CRYPTO that was sent."""

    at: float
    start: int
    end: int
    lost: bool = False


class Channel:
    """One side's packets of one handshake.

    Args:
        seal: for the ids and the cookie of this handshake.
        header: what stands in front of our packets.
        rtt: what is known of the path; it learns.

    Attributes:
        heard: whether a packet of the peer has opened.
    """

    def __init__(self, seal: Seal, header: Header, rtt: RoundTripTime) -> None:
        self.heard = False
        self._seal = seal
        self._header = header
        self._rtt = rtt
        self._outgoing = OutgoingCrypto()
        self._incoming = IncomingCrypto()
        self._received = ReceivedNumbers()
        self._acknowledge = False
        self._next_number = 0
        self._sent: dict[int, _Sent] = {}
        self._largest_acknowledged = -1
        self._last_sent = 0.0
        self._loss_time: float | None = None
        self._backoff = 0

    def write(self, data: bytes) -> None:
        """Send these bytes after all others."""
        self._outgoing.write(data)

    def settle(self) -> None:
        """The peer's bytes show that it has all of ours."""
        self._outgoing.acknowledge_all()
        self._sent.clear()
        self._loss_time = None

    @property
    def remote(self) -> bytes:
        """The peer's connection id."""
        return self._header.destination

    def receive_datagram(self, datagram: Bytes, now: float, events: list[bytes | Close]) -> bool:
        """One packet; if anything about it is wrong, or it is a repetition, it has never been.

        Args:
            datagram: the packet.
            now: the clock, in seconds.
            events: TLS bytes that are next in order, and the peer's goodbye, are added here.

        Returns:
            Whether it was in order.
        """
        header = Header.read(datagram)
        if header is None or (header.destination, header.source) != (self._header.source, self._header.destination):
            return False
        opened = self._seal.open(datagram, header)
        if opened is None:
            return False
        number, payload = opened
        try:
            frames, eliciting = read_frames(payload)
        except ProtocolViolation:
            return False
        if not all(isinstance(frame, _ALLOWED) for frame in frames) or not self._received.add(number):
            return False
        if not self.heard:
            self.heard = True
            # It has our cookie: it makes the packets longer, and the address is proven once.
            self._header = Header(self._header.destination, self._header.source, b"")
        self._acknowledge |= eliciting
        self._receive_frames(frames, now, events)
        return True

    def datagrams_to_send(self, now: float, datagram_size: int, goodbye: bytes = b"") -> list[bytes]:
        """What is to be sent now; each no longer than `datagram_size`.

        Args:
            now: the clock, in seconds.
            datagram_size: bytes; a packet has about 75 that are neither TLS nor ACK.
            goodbye: a CLOSE frame for the first packet.
        """
        datagrams: list[bytes] = []
        flying = sum(not packet.lost for packet in self._sent.values())
        room = datagram_size - OVERHEAD - len(self._header.cookie)
        while True:
            frames = goodbye
            if self._acknowledge:
                frames += encode_ack(0.0, self._received.take_ranges(), _ACK_ROOM)
                self._acknowledge = False
            piece = self._outgoing.take(room - len(frames) - _PIECE_OVERHEAD) if flying < WINDOW else None
            if piece is not None:
                offset, data = piece
                # The CLOSE is behind what TLS says, which may be an alert with a better reason.
                frames = encode_piece(FrameType.CRYPTO, offset, data) + frames
                self._remember(_Sent(now, offset, offset + len(data)))
                self._last_sent = now
                flying += 1
            if not frames:
                return datagrams
            datagrams.append(self._seal.seal(self._header, self._next_number, frames))
            self._next_number += 1
            goodbye = b""

    def next_timeout(self) -> float | None:
        """When `handle_timeout` is to be called, if nothing comes before."""
        if all(packet.lost for packet in self._sent.values()):
            return None
        if self._loss_time is not None:
            return self._loss_time
        return self._last_sent + probe_interval(self._rtt, self._backoff)

    def handle_timeout(self, now: float) -> None:
        """Take for lost what is due; `datagrams_to_send` then has it again."""
        due = self.next_timeout()
        if due is None or now < due:
            return
        if self._loss_time is not None:
            self._find_lost(now)
            return
        self._backoff += 1
        self._lose_all()

    def _receive_frames(self, frames: list[Frame], now: float, events: list[bytes | Close]) -> None:
        repeated = new = False
        for frame in frames:
            if isinstance(frame, CryptoPiece):
                data = self._incoming.receive_piece(frame.offset, frame.data)
                if data:
                    events.append(data)
                repeated |= data is None
                new |= data is not None
            elif isinstance(frame, Ack):
                self._receive_ack(frame, now)
            elif isinstance(frame, Close):
                events.append(frame)
        if repeated and not new and now >= self._last_sent + min(self._rtt.smoothed, MAXIMUM_INTERVAL):
            self._lose_all()

    def _receive_ack(self, ack: Ack, now: float) -> None:
        if ack.largest >= self._next_number:
            return
        acknowledged = [number for number in self._sent if any(low <= number <= high for low, high in ack.ranges)]
        for number in acknowledged:
            packet = self._sent.pop(number)
            self._outgoing.acknowledge(packet.start, packet.end)
            if number == ack.largest:
                self._rtt.update(now - packet.at, 0.0)
        if acknowledged:
            self._backoff = 0
            self._largest_acknowledged = max(self._largest_acknowledged, *acknowledged)
        self._find_lost(now)

    def _find_lost(self, now: float) -> None:
        """RFC 9002 section 6.1."""
        self._loss_time = None
        delay = max(TIME_THRESHOLD * max(self._rtt.latest, self._rtt.smoothed), GRANULARITY)
        for number, packet in self._sent.items():
            if packet.lost or number > self._largest_acknowledged:
                continue
            if number <= self._largest_acknowledged - PACKET_THRESHOLD or packet.at + delay <= now:
                self._lose(packet)
            elif self._loss_time is None or packet.at + delay < self._loss_time:
                self._loss_time = packet.at + delay

    def _lose_all(self) -> None:
        self._loss_time = None
        for packet in self._sent.values():
            self._lose(packet)

    def _lose(self, packet: _Sent) -> None:
        packet.lost = True
        self._outgoing.lose(packet.start, packet.end)

    def _remember(self, packet: _Sent) -> None:
        self._sent[self._next_number] = packet
        if len(self._sent) > MAX_REMEMBERED:
            forgotten = self._sent.pop(next(iter(self._sent)))
            # What was declared lost before may be under way again, in a later packet.
            if not forgotten.lost:
                self._lose(forgotten)


def probe_interval(rtt: RoundTripTime, timeouts: int) -> float:
    """Seconds to wait for an answer, after so many timeouts in a row: they double, up to MAXIMUM_INTERVAL."""
    return min(rtt.probe_timeout * (1 << min(timeouts, 16)), MAXIMUM_INTERVAL)


_ALLOWED: Final = (Ack, CryptoPiece, Close)
