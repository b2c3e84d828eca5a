"""Congestion control for QUIC, registered with aioquic under the name OVERLAY.

NewReno, bounded in two ways. A window that is not used does not grow. And a window that only feeds a queue is cut: Reno
alone fills every buffer of the path, the receiver's socket included, and whatever is urgent waits behind that.

A round trip whose *quickest* packet took longer than the path's lowest round-trip time was behind a queue all along:
jitter, aggregation on radio and delayed acknowledgements always let some packet through quickly. Two such rounds in
succession, which tells a queue from a process that was stopped for a moment, and the window is set to what leaves a
small queue (Vegas, Brakmo and Peterson 1995, with the round's minimum of HyStart++, RFC 9406 section 4.2). As some of
the queue stays, the bottleneck stays busy, and no goodput is lost. How much the round-trip times of one round differ is
left on top: a queue of ours is as long for all of a round, and only jitter is not.

What Vegas is known for, to starve beside flows that do fill the queue, or on a path that has become longer, is
avoided by a test: two rounds after a cut the delay must have fallen by half of what it should. If not, the queue is not
ours: the cut is undone, and that delay counts as the path's own from now on.
"""

import math
from collections.abc import Iterable
from typing import Final, NamedTuple

from aioquic.quic.congestion.base import K_GRANULARITY, register_congestion_control
from aioquic.quic.congestion.reno import RenoCongestionControl
from aioquic.quic.packet_builder import QuicSentPacket

from overlay.protocol.udp.mtu import MtuSearch

OVERLAY: Final = "overlay"
"""For `QuicConfiguration.congestion_control_algorithm`."""


QUEUE_SECONDS: Final = 0.008
"""The queue that may stand: the work of a few turns of both event loops, or neither would always be busy."""
QUEUE_SHARE: Final = 0.25
"""The same as a share of the lowest round-trip time where that is more: Reno needs some room to sway."""
LEAST_PACKETS: Final = 4
"""The window is not cut below this, so that a delayed acknowledgement stops nothing."""
CUT: Final = 7 / 8
"""A window is left alone if more of it than this would remain: what so little changes could not be told from chance."""
PATIENCE: Final = 2
"""Rounds after a cut until it is judged: in the first one arrives what left before it."""


class _Round(NamedTuple):
    """A round trip that has ended."""

    delay: float
    """The lowest round-trip time in it, in seconds."""
    spread: float
    """How much longer the highest was: jitter, if it is so in round after round."""
    rate: float
    """Bytes per second that were acknowledged in it."""
    peak: int
    """The most bytes that were in flight."""


class _Cut(NamedTuple):
    """A window that was cut for the sake of the delay."""

    window: int
    """Before it, in bytes."""
    hoped: float
    """The round-trip time, in seconds, below which it has helped."""
    rounds: int
    """How many have ended since."""


class OverlayReno(RenoCongestionControl):
    """NewReno whose window does not grow while it is not used (RFC 9002 section 7.8), and feeds no standing queue.

    Reno and not aioquic's CUBIC, as that one begins anew whenever the last acknowledged packet was *sent* 2 s ago:
    with a round trip of more than 2 s it never leaves its initial window.
    """

    def __init__(self, *, max_datagram_size: int) -> None:
        super().__init__(max_datagram_size=max_datagram_size)
        self._base = math.inf
        """The path's own round-trip time, in seconds."""
        self._began = 0.0
        """When the round that is under way began: it ends with the first acknowledgement of what left later."""
        self._lowest = math.inf
        self._highest = 0.0
        self._acked = self._peak = 0
        self._last = _Round(math.inf, 0.0, 0.0, 0)
        self._cut: _Cut | None = None
        self.last_acknowledged = 0.0
        """When the peer last acknowledged a packet."""
        self.largest_acknowledged = 0
        """Bytes of the largest packet that was acknowledged since somebody has set it to 0."""
        self.mtu: MtuSearch | None = None
        """What is to know which packets are lost."""
        self.sent = 0
        """Packets so far that were to be acknowledged."""
        self.lost = 0
        """Those of them that were taken for lost."""

    @property
    def rtt_min(self) -> float | None:
        """The path's own round-trip time in seconds, without queues of ours; None before the first sample."""
        return self._base if self._base < math.inf else None

    def on_packet_sent(self, *, packet: QuicSentPacket) -> None:
        """Note how full the window is."""
        super().on_packet_sent(packet=packet)
        self.sent += 1
        self._peak = max(self._peak, self.bytes_in_flight)

    def on_burst_sent(self, packets: int, size: int) -> None:
        """The same for several packets that are `size` bytes together."""
        self.bytes_in_flight += size
        self.sent += packets
        self._peak = max(self._peak, self.bytes_in_flight)

    def on_packet_acked(self, *, now: float, packet: QuicSentPacket) -> None:
        """Grow if half of the window was in use during this or the last round trip, as Linux does."""
        if (packet.sent_time or 0.0) >= self._began:
            self._end_round(now)
        self._acked += packet.sent_bytes
        self.largest_acknowledged = max(self.largest_acknowledged, packet.sent_bytes)
        if self.mtu is not None:
            self.mtu.packet_acknowledged(packet.sent_bytes)
        window = self.congestion_window
        super().on_packet_acked(now=now, packet=packet)
        self.last_acknowledged = now
        if self._cut is not None or window > 2 * max(self._peak, self._last.peak):
            self.congestion_window = min(window, self.congestion_window)

    def on_packets_lost(self, *, now: float, packets: Iterable[QuicSentPacket]) -> None:
        """Count them."""
        packets = list(packets)
        self.lost += len(packets)
        self._tell(packets)
        super().on_packets_lost(now=now, packets=packets)

    def on_packets_expired(self, *, packets: Iterable[QuicSentPacket]) -> None:
        """They are given up, although nobody says that they are lost: after a silence, or with their keys."""
        packets = list(packets)
        self._tell(packets)
        super().on_packets_expired(packets=packets)

    def _tell(self, lost: list[QuicSentPacket]) -> None:
        if self.mtu is not None:
            for packet in lost:
                self.mtu.packets_lost(packet.sent_bytes, 1)

    def on_rtt_measurement(self, *, now: float, rtt: float) -> None:
        """Note how long a round trip takes."""
        super().on_rtt_measurement(now=now, rtt=rtt)
        self._lowest, self._highest = min(self._lowest, rtt), max(self._highest, rtt)
        self._base = min(self._base, rtt)

    def _end_round(self, now: float) -> None:
        rate = self._acked / max(now - self._began, K_GRANULARITY)
        last = self._last
        this = self._last = _Round(self._lowest, max(0.0, self._highest - self._lowest), rate, self._peak)
        self._began = now
        self._lowest, self._highest = math.inf, 0.0
        self._acked, self._peak = 0, self.bytes_in_flight
        # The better one of two rounds: a process that stood still delays all of one round, and nothing of the next.
        delay = min(this.delay, last.delay)
        if delay == math.inf:
            return
        if self._cut is not None:
            self._cut = self._cut._replace(rounds=self._cut.rounds + 1)
            if self._cut.rounds >= PATIENCE:
                self._judge(self._cut, delay)
        elif 2 * max(this.peak, last.peak) > self.congestion_window:
            self._limit(delay, min(this.spread, last.spread), max(this.rate, last.rate))

    def _limit(self, delay: float, jitter: float, rate: float) -> None:
        """Cut the window if even the quickest packet of two rounds has waited."""
        queue = max(QUEUE_SECONDS, QUEUE_SHARE * self._base) + jitter
        window = self.congestion_window
        # To half of the queue, or it would be too long again at once.
        left = max(int(rate * (self._base + queue / 2)), LEAST_PACKETS * self._max_datagram_size)
        if delay > self._base + queue and left < CUT * window:
            # The last round's delay: the queue may have grown since the one before.
            self._cut = _Cut(window, (self._last.delay + left / rate) / 2, 0)
            self.congestion_window = self.ssthresh = left

    def _judge(self, cut: _Cut, delay: float) -> None:
        """Undo a cut that has not helped."""
        self._cut = None
        if delay > cut.hoped:
            self._base = delay
            self.congestion_window = self.ssthresh = max(cut.window, self.congestion_window)


register_congestion_control(OVERLAY, OverlayReno)
