"""What is on its way: how much may follow it, and what an acknowledgement changes.

Ties what knows of the network (recovery, round-trip time, delivery rate, congestion controller, pacer, the search for
the path's MTU) to the outbox, which gets back what is lost. Each ACK frame, and each loss timer, becomes one
`Acknowledged` for the controller.
"""

import math
from typing import Final

from overlay.protocol.codes import CloseCode
from overlay.protocol.frames import ProtocolViolation
from overlay.protocol.udp.congestion import Acknowledged, Congestion, DeliveryRate
from overlay.protocol.udp.mtu import MtuSearch
from overlay.protocol.udp.outbox import Outbox
from overlay.protocol.udp.pacing import Pacer
from overlay.protocol.udp.payload import Ack
from overlay.protocol.udp.recovery import Outcome, Recovery
from overlay.protocol.udp.rtt import RoundTripTime
from overlay.protocol.udp.sent import SentBurst
from overlay.protocol.udp.wire import DATA_OVERHEAD

PROBES: Final = 2
"""Packets sent when the probe timeout expires: one may be lost (RFC 9002 section 6.2.4)."""
RESERVE_SECONDS: Final = 0.002
RESERVE_PACKETS: Final = 2
MAXIMUM_RESERVE: Final = 256 * 1024
"""Stream bytes that wait beyond what may leave now: what leaves in two milliseconds, at least two packets, and at most
these bytes. Something has to wait, or no timer would ask for more, and packets should be full. But what waits here is
overtaken by no stream of a higher priority: a fixed number of bytes that suits a fast link is half a minute of a slow
one's time."""


class Flight:
    """The packets of one connection between departure and acknowledgement.

    Args:
        congestion: the controller, made for datagrams of `mtu.size` bytes.
        pacer: likewise.
        mtu: the search for the path's MTU.
        rtt: the estimate.
        outbox: where lost content goes.

    Attributes:
        next_number: of the next packet; whoever sends it counts it up.
        probes: packets that may leave although the window is full.
        recovery: what was sent, acknowledged and lost.
    """

    def __init__(
        self, congestion: Congestion, pacer: Pacer, mtu: MtuSearch, rtt: RoundTripTime, outbox: Outbox
    ) -> None:
        self.next_number = 0
        self.probes = 0
        self.recovery = Recovery(rtt)
        self._congestion = congestion
        self._pacer = pacer
        self._mtu = mtu
        self._rtt = rtt
        self._outbox = outbox
        self._rate = DeliveryRate()
        self._mtu_probe = -1
        """The number of the last probe of the path's MTU."""
        self.resize()

    def window_left(self) -> int:
        """Bytes that the controller allows beside what is in flight; negative when it has changed its mind."""
        return self._congestion.window - self.recovery.in_flight

    def allowed(self, now: float) -> int:
        """Bytes that may leave now."""
        self._pacer.set_rate(now, self._congestion.pacing_rate)
        return min(self.window_left(), self._pacer.burst(now))

    def reserve(self) -> int:
        """Stream bytes that should wait beyond what may leave now."""
        rate, least = self._pacer.rate, RESERVE_PACKETS * self._mtu.size
        # Before the rate is known, the path may be as slow as any.
        return least if rate == math.inf else max(least, min(MAXIMUM_RESERVE, int(rate * RESERVE_SECONDS)))

    def next_send_time(self, now: float) -> float | None:
        """When something that waits may leave; None: not before an acknowledgement."""
        if self.window_left() < self._mtu.size:
            return None
        return self._pacer.next_send_time(now) or now

    def sent(self, record: SentBurst, now: float) -> None:
        """A burst has left."""
        recovery = self.recovery
        record.snapshot = self._rate.snapshot(now, recovery.in_flight)
        recovery.sent(record)
        if record.counted:
            size = record.bytes_of(record.first, record.last)
            self._congestion.sent(now, size, recovery.in_flight)
            self._pacer.sent(now, size)
        else:
            self._mtu_probe = record.first

    def application_limited(self) -> None:
        """More might leave, and nothing waits."""
        self._rate.application_limited(self.recovery.in_flight)

    def acknowledge(self, ack: Ack, now: float) -> None:
        """Take an ACK frame in.

        Raises:
            ProtocolViolation: it names a packet that was never sent.
        """
        if ack.largest >= self.next_number:
            raise ProtocolViolation(CloseCode.FLOW_CONTROL_ERROR, "an ACK of a packet that was never sent")
        recovery, mtu = self.recovery, self._mtu
        prior, timeouts = recovery.in_flight, recovery.probe_count
        outcome = recovery.acknowledge(ack, now)
        largest = 0
        for record, low, high in outcome.acked:
            if not record.counted:
                self._resize_if(mtu.probe_acknowledged(record.size))
                continue
            self._rate.acknowledged(now, record.snapshot, record.sent_at, record.bytes_of(low, high))
            # The last of a burst may be small where all others are too large for the path.
            largest = max(largest, record.last_size if low == record.last else record.size)
            if record.control:
                self._outbox.acknowledged(record, low, high)
        if outcome.acked:
            self.probes = 0
        mtu.packet_acknowledged(largest)
        self._settle(outcome, prior, now)
        if largest:
            self._resize_if(mtu.small_acknowledged(largest, timeouts))

    def handle_timeout(self, now: float) -> None:
        """Declare lost what is late, or make room for probes, if it is time."""
        prior = self.recovery.in_flight
        outcome = self.recovery.handle_timeout(now)
        if outcome is None:
            return
        self._settle(outcome, prior, now)
        if outcome.probe:
            self.probes = PROBES
            oldest = self.recovery.oldest()
            if oldest is not None and not self._outbox:
                # A copy: the packet is not lost yet, but nothing else is there that would be worth sending.
                self._outbox.give_back(*oldest)

    def path_changed(self, now: float) -> None:
        """What was learnt of the path holds no longer, and what is on its way there is to be sent again."""
        for part in self.recovery.path_changed():
            self._outbox.give_back(*part)
        self.probes = 0
        self._rate = DeliveryRate()
        self._rtt.reset()
        self._mtu.reset()
        # The size first: a new window is ten packets of the new path.
        self.resize()
        self._congestion.reset(now)

    def resize(self) -> None:
        """The size of the largest datagram may have changed."""
        size = self._mtu.size
        self._congestion.set_datagram_size(size)
        self._pacer.set_datagram_size(size)
        self._outbox.set_room(size - DATA_OVERHEAD)

    def _resize_if(self, changed: bool) -> None:
        if changed:
            self.resize()

    def _settle(self, outcome: Outcome, prior: int, now: float) -> None:
        """Send again what is lost, and tell the controller."""
        recovery, rtt = self.recovery, self._rtt
        for record, low, high in outcome.lost:
            if record.counted:
                self._outbox.give_back(record, low, high)
                self._mtu.packets_lost(record.last_size if low == record.last else record.size, high - low + 1)
            elif record.first == self._mtu_probe:
                self._mtu.probe_lost(record.size)
        if outcome.spurious:
            self._congestion.spurious_loss(now, outcome.last_loss)
        if not outcome.acked_bytes and not outcome.lost_bytes:
            return
        sample = self._rate.sample(rtt.minimum)
        self._congestion.acknowledged(
            Acknowledged(
                now=now,
                acked=outcome.acked_bytes,
                lost=outcome.lost_bytes,
                in_flight=recovery.in_flight,
                prior_in_flight=prior,
                delivered=self._rate.delivered,
                rtt=outcome.rtt,
                smoothed_rtt=rtt.smoothed,
                minimum_rtt=rtt.minimum,
                rate=sample.rate,
                rate_app_limited=sample.app_limited,
                round_start=sample.round_start,
                largest_lost_sent_at=outcome.largest_lost_sent_at,
            )
        )
        if outcome.persistent_congestion:
            self._congestion.persistent_congestion(now)
