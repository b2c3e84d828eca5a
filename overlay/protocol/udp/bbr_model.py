"""What BBR knows of the path: its bandwidth, its round-trip time, how it lumps acknowledgements, what it loses.

Five estimators, each fed once per ACK or once per round trip, each with its own memory. `Bbr` reads them and decides;
nothing here does.
"""

import math
from typing import Final

from overlay.protocol.udp.congestion import Acknowledged

MINIMUM_RTT_SECONDS: Final = 10.0
"""How long a lowest round-trip time is believed (draft-ietf-ccwg-bbr, MinRTTFilterLen)."""
PROBE_RTT_SECONDS: Final = 5.0
"""After so long without a sample that is as low, the queue is drained to look (the draft's ProbeRTTInterval)."""
PROBE_RTT_ROUNDS: Final = 30
"""But no more often than this many round trips: on a path of 5 s nothing else would be done."""
AGGREGATION_ROUNDS: Final = 5
"""The filter holds two bins of so many rounds."""
AGGREGATION_SECONDS: Final = 0.1
"""Of bandwidth: what one lump may add to the window at most, as in Linux."""
LOSS_TOLERATED: Final = 0.02
"""The draft's LossThresh: a queue that loses more than this is being overrun."""
LOSS_EVENTS: Final = 6
"""Datagrams lost in a round before its share of losses means anything (the draft's StartupFullLossCnt, here in all
phases: of a window of 20 packets one is already 5 %)."""
OWN_FACTOR: Final = 1.5
"""How far a round may exceed the path's own losses by chance: 3 % of 450 packets are within 1.6 % .. 4.4 %."""
OWN_WEIGHT: Final = 0.125
"""Of one round in the smoothed share of the path's own losses."""
QUEUE_GROWTH: Final = 1.25
"""A round whose lowest round-trip time is so many times the path's has waited in a queue."""
QUEUE_SECONDS: Final = 0.001
"""And by so many seconds at least: below that it may have waited for the processor."""
FLOOD_GROWTH: Final = 4.0
FLOOD_SECONDS: Final = 0.1
"""STARTUP sends 2.77 times as fast as it knows the path to be, so a round takes no more than that many times as long.
More than four times, and a tenth of a second for short paths, shows a rate that was never there, such as that of small
packets that passed a token bucket: seconds of queue on a modem, and no round that says so, as what the session has
to send is less than what such a rate would carry."""


class Bandwidth:
    """The highest delivery rate of this cycle of probing and of the last, in bytes per second.

    Attributes:
        highest: the estimate; 0 before the first sample.
        short_term: an upper bound since the last loss that said "too fast"; infinite without one.
    """

    __slots__ = ("_collapsed", "_cycle", "_last_cycle", "_recent", "_this_round", "highest", "short_term")

    def __init__(self) -> None:
        self.highest = 0.0
        self.short_term = math.inf
        self._cycle = 0.0
        self._last_cycle = 0.0
        self._this_round = 0.0
        self._recent = (math.inf, math.inf)

    @property
    def estimate(self) -> float:
        """What to rely on, in bytes per second."""
        return min(self.highest, self.short_term)

    @property
    def this_round(self) -> float:
        """The highest sample of the round that is under way."""
        return self._this_round

    def sampled(self, rate: float, *, app_limited: bool) -> None:
        """Take a sample; one that measures the application counts only if it is higher than what is known."""
        self._this_round = max(self._this_round, rate)
        if rate >= self.highest or not app_limited:
            self._cycle = max(self._cycle, rate)
            self.highest = max(self._cycle, self._last_cycle)

    def next_round(self, *, queued: bool) -> None:
        """A round trip has ended; with a queue all along it.

        Three rounds that deliver less than half the estimate although the bottleneck was never idle show that it has
        become slower. The draft waits for the filter to forget, two cycles: with the old window in a deep queue,
        rounds are so long by then that it takes a minute. We forget at once.
        """
        rounds = (*self._recent, self._this_round if queued and self._this_round else math.inf)
        if max(rounds) < self.highest / 2:
            self._cycle = self._last_cycle = self.highest = max(rounds)
        self._recent = (rounds[1], rounds[2])
        self._this_round = 0.0

    def next_cycle(self) -> None:
        """Probing is over: what the cycle before the last one measured is forgotten."""
        if self._cycle:
            self._last_cycle, self._cycle = self._cycle, 0.0
            self.highest = self._last_cycle


class Growth:
    """Whether the bandwidth estimate still grows from round to round.

    Attributes:
        grown: rounds in which it did, since `restart`.
        level: rounds in succession in which it did not.
    """

    __slots__ = ("_reference", "grown", "level")

    def __init__(self) -> None:
        self.restart(0.0)

    def restart(self, bandwidth: float) -> None:
        """Compare with this from now on, in bytes per second."""
        self._reference = bandwidth
        self.grown = self.level = 0

    def judge(self, bandwidth: float, factor: float) -> None:
        """A round has ended; it has grown if it is `factor` times what it was."""
        if bandwidth >= self._reference * factor:
            self._reference = bandwidth
            self.grown += 1
            self.level = 0
        else:
            self.level += 1


class MinimumRtt:
    """The path's round-trip time without queue, in seconds (the draft, section 5.5.9).

    Attributes:
        seconds: the estimate, infinite before the first sample.
        due: whether none as low has been seen for so long that the queue should be drained to look.
    """

    __slots__ = ("_at", "_candidate", "_candidate_at", "due", "seconds")

    def __init__(self) -> None:
        self.seconds = math.inf
        self.due = False
        self._at = -math.inf
        self._candidate = math.inf
        self._candidate_at = -math.inf

    def sampled(self, now: float, rtt: float) -> None:
        """Take a sample."""
        interval = PROBE_RTT_SECONDS
        if self.seconds < math.inf:
            interval = max(interval, PROBE_RTT_ROUNDS * self.seconds)
        expired = now > self._candidate_at + interval
        self.due = expired and self.seconds < math.inf and rtt > self._candidate
        if rtt <= self._candidate or expired:
            self._candidate, self._candidate_at = rtt, now
        lifetime = interval * MINIMUM_RTT_SECONDS / PROBE_RTT_SECONDS
        if self._candidate < self.seconds or now > self._at + lifetime:
            self.seconds, self._at = self._candidate, self._candidate_at

    def postpone(self, now: float) -> None:
        """Nothing was in flight for a while, or is known to be slow: that was no queue of ours."""
        self._candidate_at = now


class Aggregation:
    """How much more than bandwidth x time is acknowledged at once (the draft, section 5.5.10).

    Radio links, batching receivers and busy event loops acknowledge in lumps. Between two lumps a window of two
    bandwidth-delay products may run empty: on loopback the product is smaller than what one turn of a loop reads.

    Attributes:
        extra: bytes to add to the window.
    """

    __slots__ = ("_acked", "_bins", "_rounds", "_since", "extra")

    def __init__(self) -> None:
        self.extra = 0
        self._acked = 0
        self._since = -math.inf
        self._bins = (0, 0)
        self._rounds = 0

    def acknowledged(self, now: float, acked: int, bandwidth: float, window: int, *, round_start: bool) -> None:
        """Take what one ACK frame acknowledged."""
        if not bandwidth:
            return
        if round_start:
            self._rounds += 1
            if self._rounds >= AGGREGATION_ROUNDS:
                self._rounds = 0
                self._bins = (self._bins[1], 0)
        expected = bandwidth * (now - self._since)
        if self._acked <= expected:
            self._acked = 0
            self._since = now
            expected = 0.0
        self._acked += acked
        extra = int(min(self._acked - expected, window, bandwidth * AGGREGATION_SECONDS))
        self._bins = (self._bins[0], max(self._bins[1], extra))
        self.extra = max(self._bins)


class Losses:
    """Tells losses by congestion from those that a path always has.

    The draft holds every loss above 2 % for congestion, and so falls to a fraction of the rate on radio links that lose
    3 %. What such a link loses it loses at any speed; so the losses of the rounds in which we sent no faster than
    the bandwidth and found no queue are the path's own, and only what clearly exceeds them counts.

    Attributes:
        own: share of bytes that the path loses by itself, smoothed.
        too_high: whether the last round lost so much more that we must have been too fast.
        queued: whether even the quickest packet of the last round had waited.
        flooded: whether it had waited for longer than STARTUP intends: something is much slower than it seemed.
    """

    __slots__ = ("_delivered", "_lost", "_lowest", "flooded", "own", "queued", "too_high")

    def __init__(self) -> None:
        self.own = 0.0
        self.too_high = False
        self.queued = False
        self.flooded = False
        self.next_round()

    def next_round(self) -> None:
        """Begin to count again."""
        self._lost = 0
        self._delivered = 0
        self._lowest = math.inf

    def sampled(self, sample: Acknowledged) -> None:
        """Count what one ACK frame brought."""
        self._lost += sample.lost
        self._delivered += sample.acked
        if sample.rtt is not None:
            self._lowest = min(self._lowest, sample.rtt)

    def excessive(self, in_flight: int, datagram_size: int) -> bool:
        """Whether this round has already lost too much, though it has not ended.

        Args:
            in_flight: bytes that were in flight, about what the round will bring.
            datagram_size: bytes.
        """
        expected = max(self._lost + self._delivered, in_flight)
        return self._lost > self._limit * expected and self._lost >= LOSS_EVENTS * datagram_size

    def judge(self, minimum_rtt: float, datagram_size: int, *, gentle: bool) -> None:
        """A round has ended.

        Args:
            minimum_rtt: of the path, in seconds.
            datagram_size: bytes.
            gentle: whether we sent no faster than the bandwidth all along.
        """
        total = self._lost + self._delivered
        self.queued = QUEUE_SECONDS + minimum_rtt * QUEUE_GROWTH < self._lowest < math.inf
        self.flooded = FLOOD_SECONDS + minimum_rtt * FLOOD_GROWTH < self._lowest < math.inf
        self.too_high = self.excessive(total, datagram_size)
        if gentle and not self.queued and total:
            self.own += (self._lost / total - self.own) * OWN_WEIGHT
        self.next_round()

    @property
    def _limit(self) -> float:
        """The share of a round's bytes beyond which losses are too many."""
        return LOSS_TOLERATED + OWN_FACTOR * self.own
