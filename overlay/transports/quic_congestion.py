"""Congestion control for QUIC, registered with aioquic under the name OVERLAY."""

from collections.abc import Iterable
from typing import Final

from aioquic.quic.congestion.base import register_congestion_control
from aioquic.quic.congestion.reno import RenoCongestionControl
from aioquic.quic.packet_builder import QuicSentPacket

OVERLAY: Final = "overlay"
"""For `QuicConfiguration.congestion_control_algorithm`."""


class ApplicationLimitedReno(RenoCongestionControl):
    """NewReno whose window does not grow while it is not used (RFC 9002 section 7.8).

    Reno and not aioquic's CUBIC, as that one begins anew whenever the last acknowledged packet was *sent* 2 s ago:
    with a round trip of more than 2 s it never leaves its initial window.
    """

    def __init__(self, *, max_datagram_size: int) -> None:
        super().__init__(max_datagram_size=max_datagram_size)
        self._round_ends = 0.0
        self._peak = 0
        self._last_peak = 0
        self._rtt = 0.0
        self.last_acknowledged = 0.0
        """When the peer last acknowledged a packet."""
        self.sent = 0
        """Packets so far that were to be acknowledged."""
        self.lost = 0
        """Those of them that were taken for lost."""

    def on_packet_sent(self, *, packet: QuicSentPacket) -> None:
        """Note how full the window is."""
        super().on_packet_sent(packet=packet)
        self.sent += 1
        self._peak = max(self._peak, self.bytes_in_flight)

    def on_packet_acked(self, *, now: float, packet: QuicSentPacket) -> None:
        """Grow if half of the window was in use during this or the last round trip, as Linux does."""
        if now >= self._round_ends:
            self._round_ends = now + self._rtt
            self._last_peak, self._peak = self._peak, self.bytes_in_flight
        window = self.congestion_window
        super().on_packet_acked(now=now, packet=packet)
        self.last_acknowledged = now
        if window > 2 * max(self._peak, self._last_peak):
            self.congestion_window = min(window, self.congestion_window)

    def on_packets_lost(self, *, now: float, packets: Iterable[QuicSentPacket]) -> None:
        """Count them."""
        packets = list(packets)
        self.lost += len(packets)
        super().on_packets_lost(now=now, packets=packets)

    def on_rtt_measurement(self, *, now: float, rtt: float) -> None:
        """Note how long a round trip takes."""
        super().on_rtt_measurement(now=now, rtt=rtt)
        self._rtt = rtt


register_congestion_control(OVERLAY, ApplicationLimitedReno)
