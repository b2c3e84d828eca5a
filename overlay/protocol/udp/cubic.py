"""CUBIC (RFC 9438) with slow start after HyStart++ (RFC 9406): the loss-based controller that the rest of the net runs.

The window after a loss is a cubic function of time: it rises fast to where the loss was, stays near there, then
probes beyond it faster and faster. Time and not round trips drives it, so flows of different round-trip times share
more fairly than with Reno; where Reno would be faster (short paths), Reno's window is used.

Windows are bytes outside and segments (datagrams of the path's size) in the formulas, as in the RFC.
"""

import math
from dataclasses import dataclass, field, replace
from typing import Final

from overlay.protocol.udp.congestion import MAXIMUM_WINDOW, MINIMUM_PACKETS, Acknowledged, Congestion, initial_window

C: Final = 0.4
"""Segments per cubic second (RFC 9438 section 5)."""
BETA: Final = 0.7
"""What remains of the window after a loss (RFC 9438 section 4.6)."""
ALPHA: Final = 3.0 * (1.0 - BETA) / (1.0 + BETA)
"""Segments per round trip in the Reno-friendly region, which make it as fast as Reno with its 1 and 0.5."""
SLOW_START_PACING: Final = 2.0
AVOIDANCE_PACING: Final = 1.25
"""Linux' factors on window / RTT: the window and not the pacer must stay the limit (RFC 9002 section 7.7)."""


@dataclass(slots=True)
class HyStart:
    """Leaves slow start when the round-trip time rises, before the queue overflows (RFC 9406)."""

    last_round: float = math.inf
    """Lowest round-trip time of the last round, in seconds."""
    this_round: float = math.inf
    samples: int = 0
    baseline: float = math.inf
    """Lowest round-trip time of the round in which it rose; if a later round is below it, that was only jitter."""
    rounds: int = 0
    """Rounds in conservative slow start."""

    MINIMUM_SAMPLES = 8
    MINIMUM_RISE = 0.004
    MAXIMUM_RISE = 0.016
    CONSERVATIVE_ROUNDS = 5
    CONSERVATIVE_DIVISOR = 4

    @property
    def conservative(self) -> bool:
        """Whether the window grows at a quarter of slow start's speed until the doubt is resolved."""
        return self.baseline < math.inf

    def sampled(self, rtt: float | None, *, round_start: bool) -> bool:
        """Take a round-trip time.

        Args:
            rtt: the sample in seconds, if there is one.
            round_start: whether a new round begins with it.

        Returns:
            Whether slow start ends.
        """
        if round_start:
            self.last_round, self.this_round, self.samples = self.this_round, math.inf, 0
            if self.conservative:
                self.rounds += 1
                if self.rounds >= self.CONSERVATIVE_ROUNDS:
                    return True
        if rtt is None:
            return False
        self.samples += 1
        self.this_round = min(self.this_round, rtt)
        if self.samples < self.MINIMUM_SAMPLES or self.last_round == math.inf:
            return False
        if self.conservative:
            if self.this_round < self.baseline:
                self.baseline = math.inf
                self.rounds = 0
        elif self.this_round >= self.last_round + min(self.MAXIMUM_RISE, max(self.MINIMUM_RISE, self.last_round / 8)):
            self.baseline = self.this_round
            self.rounds = 0
        return False


@dataclass(slots=True)
class Memory:
    """What a loss changes, so that it can be taken back when the loss turns out to have been reordering."""

    window: float
    """Bytes, with fractions: on a large window one acknowledgement adds less than a byte."""
    threshold: float = math.inf
    """Slow start below this many bytes."""
    before_loss: float = 0.0
    """W_max: bytes."""
    epoch: float | None = None
    """When the present stage of congestion avoidance began; None before its first acknowledgement."""
    origin: float = 0.0
    """Window at its beginning (cwnd_epoch), in bytes."""
    duration: float = 0.0
    """K: seconds from the epoch until the window is back at `before_loss`."""
    reno: float = 0.0
    """W_est: bytes."""
    hystart: HyStart = field(default_factory=HyStart)


class Cubic(Congestion):
    """CUBIC. One decrease per round trip of losses, however many were lost in it."""

    name = "cubic"

    def __init__(self, datagram_size: int) -> None:
        super().__init__(datagram_size)
        self._memory = Memory(window=float(self.window))
        self._undo: Memory | None = None
        self._recovery_start = -math.inf
        self._limited_since: float | None = None
        self._filled = self._was_filled = False
        """Whether the window was full at some time in this round trip, and in the last."""

    @property
    def is_starting(self) -> bool:
        """Neither a loss nor a longer round trip has ended slow start."""
        return self._memory.threshold == math.inf

    def sent(self, now: float, size: int, in_flight: int) -> None:  # noqa: ARG002 - other controllers need them
        """Note whether it is the window that limits."""
        if in_flight + self._datagram > self.window:
            self._filled = True

    def acknowledged(self, sample: Acknowledged) -> None:
        """Shrink once per round trip with losses, grow by what was acknowledged else."""
        now = sample.now
        memory = self._memory
        filled = self._filled or self._was_filled
        if sample.round_start:
            self._filled, self._was_filled = False, self._filled
        if sample.largest_lost_sent_at is not None and sample.largest_lost_sent_at > self._recovery_start:
            self._reduce(now)
        elif sample.acked and (sample.rtt is None or now - sample.rtt > self._recovery_start):
            # What left before the loss was noticed says nothing about the smaller window (RFC 9002 section 7.3.2).
            if memory.window < memory.threshold:
                if memory.hystart.sampled(sample.rtt, round_start=sample.round_start):
                    memory.threshold = memory.window
                # Half a window in flight is what slow start can double within a round trip.
                if filled or 2 * sample.prior_in_flight >= memory.window:
                    divisor = HyStart.CONSERVATIVE_DIVISOR if memory.hystart.conservative else 1
                    memory.window = min(memory.window + sample.acked / divisor, memory.threshold)
            elif filled:
                self._avoid(sample)
            elif self._limited_since is None:
                # A window that nobody fills says nothing about the path, and is not raised (section 5.8).
                self._limited_since = now
            memory.window = min(memory.window, float(MAXIMUM_WINDOW))
        self._publish(sample.smoothed_rtt)

    def persistent_congestion(self, now: float) -> None:
        """Begin again with the least; slow start back to half way is what the reduction has left as its threshold."""
        memory = self._memory
        memory.window = float(MINIMUM_PACKETS * self._datagram)
        memory.epoch = None
        memory.hystart = HyStart()
        self._recovery_start = now
        self._undo = None
        self.window = int(memory.window)

    def spurious_loss(self, now: float, last_loss: float) -> None:
        """Take the last reduction back if none of the losses since then were any (RFC 9438 section 4.9.2)."""
        if self._undo is not None and last_loss < self._recovery_start:
            memory, self._undo = self._undo, None
            if memory.window > self._memory.window:
                memory.epoch = None if memory.epoch is None else memory.epoch + now - self._recovery_start
                self._memory = memory
                self.window = int(memory.window)

    def set_datagram_size(self, size: int) -> None:
        """Windows are kept in bytes; only the least of them depends on the size."""
        super().set_datagram_size(size)
        self._memory.window = max(self._memory.window, float(self.window))

    def reset(self, now: float) -> None:
        """Begin like a new connection."""
        self.window = initial_window(self._datagram)
        self.pacing_rate = math.inf
        self._memory = Memory(window=float(self.window))
        self._undo = None
        self._recovery_start = now
        self._limited_since = None
        self._filled = self._was_filled = False

    def _reduce(self, now: float) -> None:
        memory = self._memory
        self._undo = replace(memory, hystart=replace(memory.hystart))
        self._recovery_start = now
        self._limited_since = None
        self._filled = self._was_filled = False
        # Fast convergence (section 4.7): below the last maximum, a newer flow needs room, so aim lower than we were.
        falling = memory.window < memory.before_loss
        memory.before_loss = memory.window * (1.0 + BETA) / 2.0 if falling else memory.window
        memory.window = max(memory.window * BETA, float(MINIMUM_PACKETS * self._datagram))
        memory.threshold = memory.window
        memory.epoch = None

    def _avoid(self, sample: Acknowledged) -> None:
        """One step of congestion avoidance (section 4.2 to 4.5)."""
        memory, now, segment = self._memory, sample.now, self._datagram
        if memory.epoch is None:
            memory.epoch = now
            memory.origin = memory.reno = memory.window
            memory.before_loss = max(memory.before_loss, memory.window)
            memory.duration = ((memory.before_loss - memory.origin) / segment / C) ** (1.0 / 3.0)
        elif self._limited_since is not None:
            # Time in which the application did not use the window does not count (section 5.8).
            memory.epoch += now - self._limited_since
        self._limited_since = None
        elapsed = now - memory.epoch
        window = memory.window
        alpha = ALPHA if memory.reno < memory.before_loss else 1.0
        memory.reno += alpha * segment * sample.acked / window
        if self._cubic(elapsed) < memory.reno:
            memory.window = max(window, memory.reno)
        else:
            target = min(max(self._cubic(elapsed + sample.smoothed_rtt), window), 1.5 * window)
            memory.window = window + (target - window) * sample.acked / window

    def _cubic(self, elapsed: float) -> float:
        """W_cubic in bytes, `elapsed` seconds into the epoch."""
        memory = self._memory
        return memory.before_loss + C * self._datagram * (elapsed - memory.duration) ** 3

    def _publish(self, smoothed_rtt: float) -> None:
        memory = self._memory
        self.window = int(memory.window)
        if smoothed_rtt > 0.0:
            gain = SLOW_START_PACING if memory.window < memory.threshold else AVOIDANCE_PACING
            self.pacing_rate = gain * memory.window / smoothed_rtt
