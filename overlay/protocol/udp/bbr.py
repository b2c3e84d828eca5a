"""BBR after version 3 (draft-ietf-ccwg-bbr), simplified: a model of the path instead of an answer to each loss.

Theory of operation. A path has a bandwidth and a round-trip time. With less than their product (BDP) in flight, the
bottleneck idles; with more, a queue stands. They cannot be measured at once: bandwidth shows only when the bottleneck
is busy, the round-trip time only when its queue is empty. So BBR takes turns:

    STARTUP -> DRAIN -> DOWN -> CRUISE -> REFILL -> UP -+      PROBE_RTT: from any, back to CRUISE or STARTUP
                         ^                              |
                         +------------------------------+

STARTUP doubles until the delivery rate grows no more; DRAIN empties the queue that this made. Then a cycle: DOWN leaves
room for others, CRUISE sends at the estimate, REFILL fills the pipe, UP sends a quarter faster and sees whether more
comes out. PROBE_RTT halves what is in flight for a moment when the round-trip time has not been that low for 5 s.
A random loss changes no estimate, hence the tolerance; losses beyond the path's own do (`Losses`).

Where we leave the draft, and why:

- Losses and queues are judged once per round trip and not per packet: our records are bursts, and the draft's
  accounting per packet (tx_in_flight, lost of each sample) exists to find the very one at which a queue overflowed.
- Losses that the path has at any speed are not congestion (`Losses.own`): the draft's fixed limit of 2 % would hold the
  rate down on a link that loses 3 %.
- Cycles last 8 to 12 round trips and no more than 3 s. The draft waits as long as Reno would need to fill the pipe,
  for the sake of Reno; our flows meet CUBIC, and a bandwidth that has become free should be found soon.
- The window of a steady phase is 1.5 BDP and not 2, that of UP 1.75 and not 2.25: in simulation, with a queue of 1 BDP,
  two flows then share 50/50 and not 75/25, and CUBIC beside BBR gets half and not a seventh. Half a BDP of queue rides
  out lumps of acknowledgements, which `Aggregation` measures besides.
- A probe that cost nothing raises the long-term bound by a quarter, once, at its end: the draft raises it under way, by
  a packet, two, four; our probes are so short that a newcomer would be held down for minutes.
- UP makes up for the path's own losses (`Bbr._boost`): above 20 % the draft's probes cannot find anything.
- UP that finds a quarter more twice in a row returns to STARTUP: ten times the bandwidth is found in 4 round trips.
- A bottleneck that has become slower is believed after 3 rounds (`Bandwidth.next_round`), not after 2 cycles.
"""

import math
from collections.abc import Callable

from overlay.protocol.udp import bbr_phases as phases
from overlay.protocol.udp.bbr_model import Aggregation, Bandwidth, Growth, Losses, MinimumRtt
from overlay.protocol.udp.bbr_phases import Phase
from overlay.protocol.udp.congestion import MAXIMUM_WINDOW, MINIMUM_PACKETS, Acknowledged, Congestion, initial_window
from overlay.protocol.udp.pacing import quantum


class Bbr(Congestion):
    """BBR. Reads its own estimators; `phase` says what it is doing.

    Args:
        datagram_size: bytes.
        random: draws from [0, 1).
    """

    name = "bbr"

    def __init__(self, datagram_size: int, random: Callable[[], float]) -> None:
        super().__init__(datagram_size)
        self._random = random
        self._begin(0.0)

    def _begin(self, now: float) -> None:
        self.phase = Phase.STARTUP
        self.bandwidth = Bandwidth()
        self.rtt = MinimumRtt()
        self._aggregation = Aggregation()
        self._losses = Losses()
        self._growth = Growth()
        self._pipe_filled = False
        self._long_term = math.inf
        """Bytes in flight beyond which there was congestion (inflight_longterm)."""
        self._short_term = math.inf
        """The same since the last REFILL (inflight_shortterm)."""
        self._round = 0
        self._phase_round = 0
        self._phase_at = now
        self._cruise_rounds = 0
        self._cruise_seconds = 0.0
        self._drained_at: float | None = None
        self._prior_window = 0
        self._idle_at: float | None = None
        self._bounded_at = -math.inf

    @property
    def is_starting(self) -> bool:
        """The path's bandwidth has not been found yet."""
        return not self._pipe_filled and not self._prior_window

    def sent(self, now: float, size: int, in_flight: int) -> None:
        """The first burst after an idle time: the pipe is empty, that is as good as a PROBE_RTT."""
        if in_flight <= size:
            self._idle_at = now

    def acknowledged(self, sample: Acknowledged) -> None:
        """Update the model, change the phase, and derive window and rate from both."""
        now = sample.now
        if sample.rtt is not None:
            if self._idle_at is not None:
                self.rtt.postpone(self._idle_at)
                self._idle_at = None
            self.rtt.sampled(now, sample.rtt)
        if sample.rate is not None:
            self.bandwidth.sampled(sample.rate, app_limited=sample.rate_app_limited)
        self._losses.sampled(sample)
        if sample.acked:
            # Of the highest rate, as a bound that losses set is exceeded by all that comes.
            self._aggregation.acknowledged(
                now, sample.acked, self.bandwidth.highest, self.window, round_start=sample.round_start
            )
        if sample.round_start:
            self._end_round(sample)
        if self.rtt.seconds < math.inf and self.bandwidth.estimate:
            self._advance(sample)
        self._publish(sample)

    def persistent_congestion(self, now: float) -> None:
        """Nothing came through for a long time: send the least, until an acknowledgement shows that the path is back.

        What the model knows is kept: if it does not hold after the silence, a round of losses corrects it.
        """
        self._prior_window = max(self._prior_window, self.window)
        self.window = min(self.window, self._minimum)
        self._losses.next_round()
        self.rtt.postpone(now)

    def spurious_loss(self, now: float, last_loss: float) -> None:  # noqa: ARG002 - the interface names it
        """Take the bounds back that losses have set if none since then was one."""
        if last_loss < self._bounded_at:
            self._long_term = self._short_term = self.bandwidth.short_term = math.inf

    def reset(self, now: float) -> None:
        """Begin like a new connection."""
        self.window, self.pacing_rate = initial_window(self._datagram), math.inf
        self._begin(now)

    @property
    def _minimum(self) -> int:
        return phases.MINIMUM_PACKETS * self._datagram

    @property
    def _product(self) -> float:
        """The bandwidth-delay product in bytes."""
        return self.bandwidth.estimate * self.rtt.seconds

    @property
    def _boost(self) -> float:
        """What UP must send more for more to come out at the other end of a path that loses.

        With a quarter more sent and a fifth lost, no probe would ever find more than is known. The other phases do not
        make up for losses: if these are a queue's after all, to send more would make them worse.
        """
        if self.phase is not Phase.UP:
            return 1.0
        return min(phases.BOOST, 1.0 / max(1.0 - self._losses.own, 1.0 / phases.BOOST))

    def _enter(self, phase: Phase, now: float) -> None:
        self.phase = phase
        self._phase_round = self._round
        self._phase_at = now
        self._drained_at = None
        self._growth.restart(self.bandwidth.highest)

    def _end_round(self, sample: Acknowledged) -> None:
        """Judge the round that has ended."""
        self._round += 1
        losses, bandwidth = self._losses, self.bandwidth
        losses.judge(self.rtt.seconds, self._datagram, gentle=self.phase.pacing <= 1.0)
        delivered = bandwidth.this_round
        if not sample.rate_app_limited:
            factor = phases.UP_GROWTH if self.phase is Phase.UP else phases.GROWTH
            self._growth.judge(bandwidth.highest, factor)
        if losses.too_high and self._pipe_filled and self.phase is not Phase.PROBE_RTT:
            self._overrun(sample, delivered)
        bandwidth.next_round(queued=losses.queued and not sample.rate_app_limited and self._pipe_filled)

    def _overrun(self, sample: Acknowledged, delivered: float) -> None:
        """Losses beyond the path's own: lower the bounds, but never below what has just been delivered."""
        self._bounded_at = sample.now
        if self.phase is Phase.UP:
            self._long_term = max(sample.prior_in_flight, phases.BETA * self._product)
            self._losses.next_round()
            self._enter_down(sample.now)
            self._cruise_rounds = phases.CYCLE_ROUNDS_OVERRUN
        elif self.phase is not Phase.REFILL:
            bandwidth = self.bandwidth
            bandwidth.short_term = max(delivered, phases.BETA * bandwidth.estimate)
            short = min(self._short_term, float(self.window))
            self._short_term = max(delivered * self.rtt.seconds, phases.BETA * short)

    def _enter_down(self, now: float) -> None:
        self.bandwidth.next_cycle()
        self._cruise_rounds = phases.CYCLE_ROUNDS + int(phases.CYCLE_ROUNDS_RANDOM * self._random())
        self._cruise_seconds = phases.CYCLE_SECONDS + phases.CYCLE_SECONDS_RANDOM * self._random()
        self._enter(Phase.DOWN, now)

    def _advance(self, sample: Acknowledged) -> None:
        """Change the phase if its end has come."""
        now, phase, in_flight = sample.now, self.phase, sample.in_flight
        rounds = self._round - self._phase_round
        if phase is Phase.PROBE_RTT:
            self._probe_rtt(sample)
            return
        if self.rtt.due:
            self.rtt.due = False
            self._prior_window = max(self._prior_window, self.window)
            self._enter(Phase.PROBE_RTT, now)
        elif phase is Phase.STARTUP:
            congested = self._losses.flooded or (self._losses.too_high and self._losses.queued)
            if self._growth.level >= phases.FULL_ROUNDS or congested:
                self._pipe_filled = True
                self._enter(Phase.DRAIN, now)
        elif phase is Phase.DRAIN:
            if in_flight <= self._product or rounds > phases.DRAIN_ROUNDS:
                self._enter_down(now)
        elif phase is Phase.DOWN:
            if in_flight <= min(self._product, phases.HEADROOM * self._long_term):
                self.phase = Phase.CRUISE
            elif self._cruise_over(rounds, now):
                self._refill(now)
        elif phase is Phase.CRUISE:
            if self._cruise_over(rounds, now):
                self._refill(now)
        elif phase is Phase.REFILL:
            if rounds:
                self._enter(Phase.UP, now)
        elif self._growth.grown > 1:
            self._long_term = math.inf
            self._enter(Phase.STARTUP, now)
        elif self._losses.excessive(sample.prior_in_flight, self._datagram):
            self._overrun(sample, 0.0)
        elif rounds > 1:
            if in_flight >= phases.GROWTH * self._product or self._growth.level > 1:
                self._long_term *= phases.GROWTH
                self._enter_down(now)
            elif sample.rate_app_limited:
                self._enter_down(now)

    def _cruise_over(self, rounds: int, now: float) -> bool:
        return rounds >= self._cruise_rounds or (rounds > 0 and now >= self._phase_at + self._cruise_seconds)

    def _refill(self, now: float) -> None:
        self._short_term = self.bandwidth.short_term = math.inf
        self._enter(Phase.REFILL, now)

    def _probe_rtt(self, sample: Acknowledged) -> None:
        """Hold the window down until the queue has been empty for a while."""
        now = sample.now
        if self._drained_at is None:
            if sample.in_flight <= self._window_target():
                self._drained_at = now
                self._phase_round = self._round
        elif self._round > self._phase_round and now >= self._drained_at + min(
            phases.PROBE_RTT_SECONDS, phases.PROBE_RTT_ROUNDS * self.rtt.seconds
        ):
            self.rtt.postpone(now)
            if self._pipe_filled:
                self._enter_down(now)
                self.phase = Phase.CRUISE
            else:
                self._enter(Phase.STARTUP, now)

    def _window_target(self) -> int:
        """The window that the model asks for, in bytes."""
        phase, product = self.phase, self._product
        if phase is Phase.PROBE_RTT:
            return max(int(phase.window * product), self._minimum)
        # Three bursts: one that leaves, one that the other end reads, one whose acknowledgement is under way.
        least = 3 * quantum(self.pacing_rate, self._datagram)
        target = max(phase.window * self._boost * product + self._aggregation.extra, least)
        if self._pipe_filled:
            bound = self._long_term
            if phase in {Phase.DOWN, Phase.CRUISE}:
                bound *= phases.HEADROOM
            target = min(target, bound, self._short_term)
        return max(int(min(target, MAXIMUM_WINDOW)), self._minimum)

    def _publish(self, sample: Acknowledged) -> None:
        bandwidth = self.bandwidth.estimate
        if bandwidth:
            rate = self.phase.pacing * self._boost * phases.PACING_MARGIN * bandwidth
            if sample.smoothed_rtt > 0.0:
                # However low an estimate may fall, two packets per round trip keep samples coming.
                rate = max(rate, MINIMUM_PACKETS * self._datagram / sample.smoothed_rtt)
        elif sample.smoothed_rtt > 0.0:
            rate = Phase.STARTUP.pacing * self.window / sample.smoothed_rtt
        else:
            return
        if self._pipe_filled or rate > self.pacing_rate or self.pacing_rate == math.inf:
            self.pacing_rate = rate
        if not bandwidth:
            return
        target = self._window_target()
        if self._prior_window and self.phase is not Phase.PROBE_RTT and sample.acked:
            self.window = max(self.window, min(self._prior_window, target))
            self._prior_window = 0
        elif self._pipe_filled:
            self.window = min(self.window + sample.acked, target)
        elif self.window < target or sample.delivered < initial_window(self._datagram):
            self.window += sample.acked
        if self.phase is Phase.PROBE_RTT:
            self.window = min(self.window, target)
        self.window = max(self.window, self._minimum)
