"""What was sent and not acknowledged yet: acknowledgements, losses, and when to probe (RFC 9002).

The unit is the burst: up to 64 packets of equal size that left in one send, with one record. An ACK that covers a
burst costs the same as one that covers a packet; only a burst with a hole in it is looked at number by number, as a
list of the ranges that are still outstanding.

Bursts stand in a deque in the order of their numbers. After each ACK all below the largest number acknowledged are
gone, acknowledged or lost, but for those of the last few numbers or the last round trip. So the work starts at the left
end and ends soon.

A packet is lost when one that was sent `packet_threshold` numbers later has been acknowledged, or any later one and a
little more than a round trip has passed (RFC 9002 section 6.1). What was declared lost is remembered for a while: if it
is acknowledged after all, it was only late, and the limit that was too strict is raised (RFC 9002 section 6.1.1
allows it; RACK does so, RFC 8985). So a path that reorders by 50 packets costs some needless copies in the
beginning and none later.
"""

import math
from collections import deque
from dataclasses import dataclass, field, replace
from typing import Final

from overlay.protocol.udp.payload import Ack
from overlay.protocol.udp.ranges import subtract
from overlay.protocol.udp.rtt import GRANULARITY, RoundTripTime
from overlay.protocol.udp.sent import Part, SentBurst

PACKET_THRESHOLD: Final = 3
"""RFC 9002 section 6.1.1."""
MAXIMUM_PACKET_THRESHOLD: Final = 512
"""What is in doubt is looked at with every ACK, so this bounds that work too."""
TIME_THRESHOLD: Final = 9 / 8
"""Round-trip times (RFC 9002 section 6.1.2)."""
MAXIMUM_TIME_THRESHOLD: Final = 2.0
"""RFC 8985 section 6.2 lets the reordering window grow to one round-trip time."""
MAXIMUM_PROBE_INTERVAL: Final = 3.0
"""Seconds, or twice the probe timeout where that is longer. Two packets in three seconds harm no network; but after a
blackout the doubled interval is how long the path is up before we notice."""
REMEMBERED_LOSSES: Final = 128


@dataclass(slots=True)
class Outcome:
    """What an ACK or a timer changed."""

    acked: list[Part] = field(default_factory=list)
    """Upwards."""
    lost: list[Part] = field(default_factory=list)
    """Upwards."""
    acked_bytes: int = 0
    lost_bytes: int = 0
    rtt: float | None = None
    """The sample, in seconds."""
    largest_lost_sent_at: float | None = None
    persistent_congestion: bool = False
    spurious: bool = False
    """Something that was declared lost has arrived."""
    last_loss: float = -math.inf
    """With `spurious`: when something was declared lost last that has not arrived since."""
    probe: bool = False
    """The probe timeout expired: send something to be acknowledged, whatever the window says."""


@dataclass(frozen=True, slots=True)
class _Loss:
    """Packets from `low` to `high` that were declared lost."""

    low: int
    high: int
    at: float
    """When that was."""
    late: bool
    """Whether it was the time that told, and not a later packet's arrival."""


class Recovery:
    """The sender's half of reliability, for one path.

    Attributes:
        in_flight: bytes that count and are neither acknowledged nor lost.
        largest_acknowledged: packet number, -1 at first.
        probe_count: successive probe timeouts without an acknowledgement.
        packet_threshold, time_threshold: see the module.
        lost_packets: packets declared lost, in all; probes of the path's MTU do not count.
    """

    def __init__(self, rtt: RoundTripTime) -> None:
        self.in_flight = 0
        self.largest_acknowledged = -1
        self.probe_count = 0
        self.packet_threshold = PACKET_THRESHOLD
        self.time_threshold = TIME_THRESHOLD
        self.lost_packets = 0
        self.rtt = rtt
        self._bursts: deque[SentBurst] = deque()
        self._lost: deque[_Loss] = deque(maxlen=REMEMBERED_LOSSES)
        self._last_sent_at = 0.0
        self._loss_time: float | None = None

    @property
    def floor(self) -> int:
        """Acknowledgements of what lies below change nothing."""
        if self._lost:
            return self._lost[0].low
        return self._bursts[0].first if self._bursts else self.largest_acknowledged

    def sent(self, burst: SentBurst) -> None:
        """Remember a burst; its numbers are above all before."""
        self._bursts.append(burst)
        if burst.counted:
            self.in_flight += burst.bytes_of(burst.first, burst.last)
            self._last_sent_at = burst.sent_at

    def oldest(self) -> Part | None:
        """The oldest packet that is outstanding and counted."""
        for burst in self._bursts:
            if burst.counted:
                first = burst.outstanding[0][0] if burst.outstanding else burst.first
                return burst, first, first
        return None

    def acknowledge(self, ack: Ack, now: float) -> Outcome:
        """Take an ACK frame in; its largest number was sent."""
        outcome = Outcome()
        prior_largest = self.largest_acknowledged
        if self._lost:
            self._look_for_spurious(ack.ranges, outcome)
        self._remove(ack, outcome)
        if ack.largest > prior_largest:
            self.largest_acknowledged = ack.largest
        acked = outcome.acked
        if acked:
            burst, _, newest = acked[-1]
            if newest == ack.largest:
                outcome.rtt = max(now - burst.sent_at, 0.0)
                self.rtt.update(outcome.rtt, ack.delay)
            self.probe_count = 0
        if self._bursts and self._bursts[0].first <= self.largest_acknowledged:
            self._detect_losses(now, outcome, prior_largest)
        else:
            self._loss_time = None
        return outcome

    def handle_timeout(self, now: float) -> Outcome | None:
        """What a due timer has changed; None when none was due."""
        due = self.next_timeout()
        if due is None or due > now:
            return None
        outcome = Outcome()
        if self._loss_time is not None:
            self._detect_losses(now, outcome, self.largest_acknowledged)
        else:
            self.probe_count += 1
            # The probe that follows moves this; if none could be sent, the next timeout must still lie ahead.
            self._last_sent_at = now
            outcome.probe = True
        return outcome

    def path_changed(self) -> list[Part]:
        """Packets go another way from now on; the round-trip time has begun anew.

        The old way has fallen silent, so what is under way there is given up at once. An acknowledgement that comes
        for it all the same finds nothing any more, and so says nothing about the new path (RFC 9000 section 9.4).

        Returns:
            What is to be sent again.
        """
        parts = [
            (burst, low, high)
            for burst in self._bursts
            if burst.counted
            for low, high in burst.outstanding or ((burst.first, burst.last),)
        ]
        self._bursts.clear()
        self._lost.clear()
        self._loss_time = None
        self.in_flight = self.probe_count = 0
        self.packet_threshold = PACKET_THRESHOLD
        self.time_threshold = TIME_THRESHOLD
        return parts

    def next_timeout(self) -> float | None:
        """When something is to be declared lost or the peer to be probed (RFC 9002 section 6.2)."""
        if self._loss_time is not None:
            return self._loss_time
        if not self.in_flight:
            return None
        base = self.rtt.probe_timeout
        interval = base * (1 << min(self.probe_count, 16))
        return self._last_sent_at + min(interval, max(MAXIMUM_PROBE_INTERVAL, 2 * base))

    def _remove(self, ack: Ack, outcome: Outcome) -> None:
        """Take what the ACK names out of the bursts."""
        bursts, ranges, acked = self._bursts, ack.ranges, outcome.acked
        largest = ack.largest
        index = len(ranges) - 1
        low, high = ranges[index]
        holes: list[SentBurst] = []
        total = 0
        while bursts and bursts[0].first <= largest:
            burst = bursts.popleft()
            first, last = burst.first, burst.last
            while high < first:
                index -= 1
                low, high = ranges[index]
            if low <= first and last <= high and burst.outstanding is None:
                acked.append((burst, first, last))
                if burst.counted:
                    total += burst.bytes_of(first, last)
                continue
            done = len(acked)
            burst.outstanding, taken = subtract(burst.outstanding or [(first, last)], ranges, index)
            acked += [(burst, start, end) for start, end in taken]
            if burst.counted:
                total += sum(burst.bytes_of(a, b) for _, a, b in acked[done:])
            if burst.outstanding:
                holes.append(burst)
        bursts.extendleft(reversed(holes))
        outcome.acked_bytes = total
        self.in_flight -= total

    def _detect_losses(self, now: float, outcome: Outcome, prior_largest: int) -> None:
        """RFC 9002 section 6.1; `prior_largest` is the largest number acknowledged before."""
        bursts, largest = self._bursts, self.largest_acknowledged
        delay = max(self.time_threshold * max(self.rtt.latest, self.rtt.smoothed), GRANULARITY)
        self._loss_time = None
        kept: list[SentBurst] = []
        while bursts and bursts[0].first <= largest:
            burst = bursts.popleft()
            # The same sum as for the timer, or a rounding error would let the timer fire in vain for ever.
            late = burst.sent_at + delay <= now
            limit = largest - 1 if late else largest - self.packet_threshold
            remaining: list[tuple[int, int]] = []
            for low, high in burst.outstanding or ((burst.first, burst.last),):
                end = min(high, limit)
                if low <= end:
                    outcome.lost.append((burst, low, end))
                    if burst.counted:
                        self._lost.append(_Loss(low, end, now, late=late))
                        self.lost_packets += end - low + 1
                        outcome.lost_bytes += burst.bytes_of(low, end)
                        outcome.largest_lost_sent_at = burst.sent_at
                if end < high:
                    remaining.append((max(low, end + 1), high))
            if remaining:
                burst.outstanding = remaining
                kept.append(burst)
                if not late and remaining[0][0] < largest:
                    due = burst.sent_at + delay
                    self._loss_time = due if self._loss_time is None else min(due, self._loss_time)
        bursts.extendleft(reversed(kept))
        self.in_flight -= outcome.lost_bytes
        if outcome.lost:
            outcome.persistent_congestion = self._is_persistent(outcome, prior_largest)

    def _is_persistent(self, outcome: Outcome, prior_largest: int) -> bool:
        """Whether the losses between two acknowledged packets span too long a time (RFC 9002 section 7.6)."""
        end = outcome.acked[0][1] if outcome.acked else self.largest_acknowledged
        times = [
            burst.sent_at for burst, low, high in outcome.lost if burst.counted and prior_largest < low and high < end
        ]
        return len(times) > 1 and times[-1] - times[0] > self.rtt.persistent_congestion

    def _look_for_spurious(self, ranges: list[tuple[int, int]], outcome: Outcome) -> None:
        """Find what was declared lost and is now acknowledged, and be more patient from now on."""
        lost, lowest = self._lost, ranges[-1][0]
        largest = max(self.largest_acknowledged, ranges[0][1])
        kept: list[_Loss] = []
        index = 0
        # Both are sorted: what is older was never declared lost later.
        while lost and lost[-1].high >= lowest:
            loss = lost.pop()
            while ranges[index][0] > loss.high:
                index += 1
            if ranges[index][1] < loss.low:
                kept.append(loss)
                continue
            outcome.spurious = True
            if loss.late:
                self.time_threshold = min(self.time_threshold * 1.25, MAXIMUM_TIME_THRESHOLD)
            else:
                distance = largest - loss.low + 1
                self.packet_threshold = min(max(self.packet_threshold, distance), MAXIMUM_PACKET_THRESHOLD)
            remaining, _ = subtract([(loss.low, loss.high)], ranges, len(ranges) - 1)
            kept += [replace(loss, low=low, high=high) for low, high in reversed(remaining)]
        lost.extend(reversed(kept))
        if outcome.spurious and lost:
            outcome.last_loss = lost[-1].at
