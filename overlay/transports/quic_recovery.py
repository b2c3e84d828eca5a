"""What aioquic remembers of packets that it has sent, made cheap for those that carry data and nothing else.

For aioquic each packet is ten attributes and two lists, and its acknowledgement a walk through ranges of its stream.
Here a packet of data is a small record, and the acknowledgement of many in a row is one step for their stream.
Loss detection, the round-trip time and all timers (RFC 9002) stay aioquic's, but for the pacer.
"""

from bisect import bisect_left
from collections.abc import Callable, Iterator
from typing import Any, Final, cast

from aioquic.quic.packet import QuicPacketType
from aioquic.quic.packet_builder import QuicDeliveryHandler, QuicDeliveryState, QuicSentPacket
from aioquic.quic.rangeset import RangeSet
from aioquic.quic.recovery import QuicPacketPacer, QuicPacketRecovery, QuicPacketSpace
from aioquic.quic.stream import QuicStreamSender
from aioquic.tls import Epoch

from overlay.transports.quic_congestion import OverlayReno

PACING_TURN: Final = 0.001
"""Seconds: what may leave within this time, leaves together. Timers are no finer, and each burst costs a call."""
FEW: Final = 8
"""Packets under way that are sooner acknowledged one by one."""
UNPACED: Final = 2**16
"""Packets: more than are ever under way."""


class _SentPacket:
    """What aioquic asks of a `QuicSentPacket`, whatever is in it."""

    __slots__ = ("packet_number", "sent_bytes", "sent_time")

    epoch = Epoch.ONE_RTT
    packet_type = QuicPacketType.ONE_RTT
    is_ack_eliciting = True
    is_crypto_packet = False


class DataPacket(_SentPacket):
    """A packet with one STREAM frame."""

    __slots__ = ("fin", "sender", "start", "stop")

    in_flight = True

    def __init__(
        self,
        packet_number: int,
        sent_time: float,
        sent_bytes: int,
        sender: QuicStreamSender,
        start: int,
        stop: int,
        *,
        fin: bool,
    ) -> None:
        self.packet_number = packet_number
        self.sent_time = sent_time
        self.sent_bytes = sent_bytes
        self.sender = sender
        self.start = start
        self.stop = stop
        self.fin = fin

    @property
    def delivery_handlers(self) -> list[tuple[QuicDeliveryHandler, Any]]:
        """What aioquic calls when it is acknowledged or lost."""
        return [(self.sender.on_data_delivery, (self.start, self.stop, self.fin))]

    def acknowledged(self) -> None:
        """It has arrived."""
        self.sender.on_data_delivery(QuicDeliveryState.ACKED, self.start, self.stop, self.fin)


class ProbePacket(_SentPacket):
    """A packet that only finds out whether one of its size arrives."""

    __slots__ = ("_handler",)

    in_flight = False
    """It is none of the congestion control's (RFC 9000 section 14.4)."""

    def __init__(
        self,
        packet_number: int,
        sent_time: float,
        sent_bytes: int,
        handler: Callable[[QuicDeliveryState, int, int], None],
    ) -> None:
        self.packet_number = packet_number
        self.sent_time = sent_time
        self.sent_bytes = sent_bytes
        self._handler = handler

    @property
    def delivery_handlers(self) -> list[tuple[QuicDeliveryHandler, Any]]:
        """What aioquic calls when it is acknowledged or lost."""
        return [(self._handler, (self.packet_number, self.sent_bytes))]


class BurstPacer(QuicPacketPacer):
    """aioquic's pacer (RFC 9002 section 7.7), which lets at least all packets of a PACING_TURN leave together."""

    def update_rate(self, congestion_window: int, smoothed_rtt: float) -> None:
        """The window or the round-trip time has changed."""
        super().update_rate(congestion_window, smoothed_rtt)
        self.bucket_max = max(self.bucket_max, 2 * PACING_TURN)

    def room(self, now: float) -> int:
        """How many packets may leave now."""
        if self.packet_time is None:
            return UNPACED
        self.update_bucket(now)
        # What is rounded off in a sum of many times must not cost a whole packet.
        return max(0, int(self.bucket_time / self.packet_time + 0.01))

    def next_send_time(self, now: float) -> float | None:  # type: ignore[override]  # aioquic's says it is no None
        """When the next packet may leave; None: now. aioquic's own lets one go as soon as a part of it may."""
        if self.packet_time is None or self.room(now):
            return None
        return now + max(self.packet_time - self.bucket_time, PACING_TURN)

    def sent(self, size: int) -> None:
        """So many bytes have left, at the time of the last `room`."""
        if self.packet_time is not None:
            self.bucket_time -= self.packet_time * size / self._max_datagram_size

    def update_after_send(self, now: float) -> None:
        """A packet was made by aioquic; see `was_smaller`."""
        if self.packet_time is not None:
            self.update_bucket(now)
            self.bucket_time -= self.packet_time

    def was_smaller(self, size: int) -> None:
        """It had only `size` bytes that congestion control counts; else two small ones would be a window of large ones.

        Acknowledgements have none (RFC 9002 section 7.7).
        """
        if self.packet_time is not None:
            left = self.packet_time * (1 - size / self._max_datagram_size)
            self.bucket_time = min(self.bucket_max, self.bucket_time + left)


class Recovery(QuicPacketRecovery):
    """aioquic's loss recovery, to which the acknowledgement of many packets of data is one of their stream's bytes."""

    is_bulk = True
    """Whether it is; otherwise aioquic's own code does it all."""

    def on_ack_received(self, *, ack_rangeset: RangeSet, ack_delay: float, now: float, space: QuicPacketSpace) -> None:
        """Take note of all packets but the last one, then let aioquic do that one and all the rest."""
        if self.is_bulk and len(space.sent_packets) > FEW:
            numbers = list(_newly_acknowledged(ack_rangeset, space))
            # The round-trip time is measured if one packet at least of those that are left had to be acknowledged.
            while numbers and not space.sent_packets[numbers.pop()].is_ack_eliciting:
                pass
            self._acknowledge(numbers, now, space)
        timeouts = self._pto_count
        super().on_ack_received(ack_rangeset=ack_rangeset, ack_delay=ack_delay, now=now, space=space)
        if not self._rtt_initialized:
            # The backoff is what makes it wait long enough for the first answer. To aioquic an acknowledgement of an
            # acknowledgement ends it: then, where a round trip is longer than its guess, it never learns how long.
            self._pto_count = timeouts

    def on_packet_sent(self, *, packet: QuicSentPacket, space: QuicPacketSpace) -> None:
        """A packet was sent by aioquic."""
        super().on_packet_sent(packet=packet, space=space)
        if packet.epoch is Epoch.ONE_RTT:
            cast("BurstPacer", self._pacer).was_smaller(packet.sent_bytes if packet.in_flight else 0)

    def on_burst_sent(self, packets: int, size: int, now: float, space: QuicPacketSpace) -> None:
        """So many packets of data, of `size` bytes together, are among the space's sent ones now."""
        space.ack_eliciting_in_flight += packets
        self._time_of_last_sent_ack_eliciting_packet = now
        cast("OverlayReno", self._cc).on_burst_sent(packets, size)

    def on_probe_sent(self, packet: ProbePacket, space: QuicPacketSpace) -> None:
        """A probe has left."""
        space.sent_packets[packet.packet_number] = packet  # type: ignore[assignment]  # it has what is looked at
        space.ack_eliciting_in_flight += 1
        # aioquic would think that it has been under way for as long as the last packet of data.
        self._time_of_last_sent_ack_eliciting_packet = packet.sent_time

    def _acknowledge(self, numbers: list[int], now: float, space: QuicPacketSpace) -> None:
        merged: DataPacket | None = None
        for number in numbers:
            packet: QuicSentPacket | DataPacket = space.sent_packets.pop(number)
            if packet.is_ack_eliciting:
                space.ack_eliciting_in_flight -= 1
            if packet.in_flight:
                self._cc.on_packet_acked(packet=packet, now=now)  # type: ignore[arg-type]  # it has what is looked at
            if type(packet) is not DataPacket:
                for handler, args in packet.delivery_handlers:
                    handler(QuicDeliveryState.ACKED, *args)
            elif merged is None:
                merged = packet
            elif packet.start == merged.stop and packet.sender is merged.sender:
                merged.stop = packet.stop
                merged.fin = packet.fin
            else:
                merged.acknowledged()
                merged = packet
        if merged is not None:
            merged.acknowledged()


def _newly_acknowledged(acknowledged: RangeSet, space: QuicPacketSpace) -> Iterator[int]:
    """The numbers of packets that were under way until now, in their order."""
    numbers = list(space.sent_packets)
    for span in acknowledged:
        yield from numbers[bisect_left(numbers, span.start) : bisect_left(numbers, span.stop)]
