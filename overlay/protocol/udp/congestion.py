"""Congestion control behind a small interface, and what every controller needs: windows, samples of the delivery rate.

Who calls what. The sender takes `DeliveryRate.snapshot` into the record of each burst that leaves and tells the
controller by `sent`. For each ACK frame (and each loss timer) it hands the acknowledged bursts' snapshots to
`DeliveryRate.acknowledged`, asks for one `sample`, and passes one `Acknowledged` to the controller. Then it reads
`window` and `pacing_rate`; nothing else comes out of a controller. A burst is one record here as everywhere: a sample
for 46 packets that left in one send is as good as 46 samples, and costs a 46th.

"Application-limited" (draft-cheng-iccrg-delivery-rate-estimation section 3.4): the sender had window and pacing left
and nothing to send. Rates measured then say how much the application offered and not what the path carries, so they
may raise an estimate and never lower it; and a window that was not filled is not raised, or it would grow without
bound and let a later burst fill every queue of the path.
"""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Final, NamedTuple

INITIAL_PACKETS: Final = 10
INITIAL_BYTES: Final = 14_720
"""RFC 9002 section 7.2: ten packets, but no more than 14,720 bytes or two packets, whichever is more."""
MINIMUM_PACKETS: Final = 2
"""RFC 9002 section 7.2."""
MAXIMUM_WINDOW: Final = 256 * 1024 * 1024
"""Bytes: 10 Gbit/s over 200 ms. Each byte in flight is kept until it is acknowledged, whatever acknowledgements say."""


def initial_window(datagram_size: int) -> int:
    """What may be in flight before the first acknowledgement, in bytes."""
    return min(INITIAL_PACKETS * datagram_size, max(INITIAL_BYTES, 2 * datagram_size))


class Snapshot(NamedTuple):
    """What the record of a burst keeps until its acknowledgement."""

    delivered: int
    """Bytes that had been delivered when it left."""
    delivered_at: float
    """When the last of them were acknowledged."""
    first_sent_at: float
    """When the newest of them had left: start of the interval over which the sending rate is measured."""
    app_limited: bool


class RateSample(NamedTuple):
    """What one ACK frame says about the path's rate."""

    rate: float | None
    """Bytes per second; None when the interval was too short to tell."""
    app_limited: bool
    round_start: bool
    """Whether something that left after the last round's start has been acknowledged: a new round trip begins."""


class DeliveryRate:
    """Measures how fast the path delivers (draft-cheng-iccrg-delivery-rate-estimation).

    The rate of a sample is the bytes delivered between a burst's departure and its acknowledgement, divided by the time
    in which they left or the time in which they were acknowledged, whichever is longer: acknowledgements that come
    in a lump can then not pretend a higher rate than the one we sent at.

    Attributes:
        delivered: bytes acknowledged since the beginning.
    """

    __slots__ = (
        "_app_limited_until",
        "_delivered_at",
        "_first_sent_at",
        "_newest",
        "_round_end",
        "_sent_at",
        "delivered",
    )

    def __init__(self) -> None:
        self.delivered = 0
        self._delivered_at = 0.0
        self._first_sent_at = 0.0
        self._app_limited_until = 0
        self._round_end = 0
        self._newest: Snapshot | None = None
        self._sent_at = 0.0

    def snapshot(self, now: float, in_flight: int) -> Snapshot:
        """Keep this with a burst that leaves now.

        Args:
            now: the time, in seconds.
            in_flight: bytes in flight without the burst; with none, a new measurement begins.
        """
        if not in_flight:
            self._first_sent_at = self._delivered_at = now
        return Snapshot(self.delivered, self._delivered_at, self._first_sent_at, self._app_limited_until > 0)

    def application_limited(self, in_flight: int) -> None:
        """There is room in the window and nothing to send: what is in flight now measures the application."""
        self._app_limited_until = max(1, self.delivered + in_flight)

    def acknowledged(self, now: float, snapshot: Snapshot, sent_at: float, size: int) -> None:
        """Some bytes of a burst have been acknowledged; called for each burst that an ACK frame touches."""
        self.delivered += size
        self._delivered_at = now
        newest = self._newest
        if newest is None or (snapshot.delivered, sent_at) >= (newest.delivered, self._sent_at):
            self._newest = snapshot
            self._sent_at = sent_at

    def sample(self, minimum_rtt: float) -> RateSample:
        """The sample of the ACK frame whose bursts have just been handed over, in which nothing may be new.

        Args:
            minimum_rtt: the lowest round-trip time so far, in seconds: acknowledgements within less were compressed
                on their way, and their rate would be too high.
        """
        if self._app_limited_until and self.delivered > self._app_limited_until:
            self._app_limited_until = 0
        newest = self._newest
        if newest is None:
            return RateSample(None, self._app_limited_until > 0, round_start=False)
        self._newest = None
        round_start = newest.delivered >= self._round_end
        if round_start:
            self._round_end = self.delivered
        interval = max(self._sent_at - newest.first_sent_at, self._delivered_at - newest.delivered_at)
        self._first_sent_at = self._sent_at
        rate = None
        if interval > 0.0 and interval >= minimum_rtt:
            rate = (self.delivered - newest.delivered) / interval
        return RateSample(rate, newest.app_limited, round_start)


@dataclass(slots=True)
class Acknowledged:
    """What one received ACK frame, or one expired loss timer, changed."""

    now: float
    acked: int
    """Bytes newly acknowledged."""
    lost: int
    """Bytes newly declared lost."""
    in_flight: int
    """Bytes in flight after this."""
    prior_in_flight: int
    """Bytes in flight before this."""
    delivered: int
    """Bytes delivered since the beginning."""
    rtt: float | None
    """This ACK's sample in seconds, if it gave one."""
    smoothed_rtt: float
    minimum_rtt: float
    rate: float | None
    """Delivery rate in bytes per second, if this ACK gave a sample."""
    rate_app_limited: bool
    round_start: bool
    largest_lost_sent_at: float | None
    """When the newest of the lost packets had left."""


class Congestion(ABC):
    """Decides how much may be in flight, and how fast it may leave.

    Attributes:
        window: bytes that may be in flight.
        pacing_rate: bytes per second; infinite before the first round-trip time is known.
    """

    name: str

    def __init__(self, datagram_size: int) -> None:
        self._datagram = datagram_size
        self.window = initial_window(datagram_size)
        self.pacing_rate = math.inf

    @abstractmethod
    def sent(self, now: float, size: int, in_flight: int) -> None:
        """Something that counts has left.

        Args:
            now: the time, in seconds.
            size: bytes, of the whole burst.
            in_flight: bytes in flight, these included.
        """

    @abstractmethod
    def acknowledged(self, sample: Acknowledged) -> None:
        """Something was acknowledged, or declared lost."""

    @abstractmethod
    def persistent_congestion(self, now: float) -> None:
        """All that was sent over a long time is lost (RFC 9002 section 7.6): begin again with the least."""

    @abstractmethod
    def spurious_loss(self, now: float, last_loss: float) -> None:
        """Something that was declared lost was only late.

        Args:
            now: the time, in seconds.
            last_loss: when something was declared lost last that has not arrived since; -inf if nothing was. What a
                controller has done after that was no answer to a loss, and may be taken back.
        """

    @property
    @abstractmethod
    def is_starting(self) -> bool:
        """Whether the window has only grown since the beginning."""

    def set_datagram_size(self, size: int) -> None:
        """The largest datagram of the path has changed.

        The units of the window change, and not the window; but a start from ten small packets becomes one from ten
        large ones (RFC 9002 section 7.2).
        """
        self._datagram = size
        self.window = max(self.window, initial_window(size) if self.is_starting else MINIMUM_PACKETS * size)

    @abstractmethod
    def reset(self, now: float) -> None:
        """The path is another one (RFC 9000 section 9.4): forget everything that was learnt on the old one."""
