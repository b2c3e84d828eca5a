"""A sender and a receiver with nothing but loss detection, for tests of the controllers on the simulated network.

No bytes are repeated: the application's data is endless, or offered at a rate, and goodput is what arrives. Loss
detection follows RFC 9002 (packet and time threshold, probe timeout, persistent congestion), simplified to one record
per packet.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass

from udp_network import Link, Network

from overlay.protocol.udp.congestion import Acknowledged, Congestion, DeliveryRate, Snapshot
from overlay.protocol.udp.pacing import Pacer

ACK_DELAY = 0.005
PACKET_THRESHOLD = 3
LONGEST_PROBE = 2.0


class Packet:
    """So many bytes with a number."""

    __slots__ = ("number", "size")

    def __init__(self, number: int, size: int) -> None:
        self.number = number
        self.size = size

    def __len__(self) -> int:
        return self.size


class Ack:
    """The numbers that have come since the last ACK but three: one lost ACK loses no news."""

    __slots__ = ("delay", "numbers")

    def __init__(self, numbers: list[int], delay: float) -> None:
        self.numbers = numbers
        self.delay = delay

    def __len__(self) -> int:
        return 60


@dataclass(slots=True)
class Sent:
    """One packet under way."""

    at: float
    size: int
    snapshot: Snapshot


class Receiver:
    """Acknowledges every second packet, and a single one after ACK_DELAY.

    Attributes:
        received: bytes.
        arrivals: (time, bytes received so far) at each ACK, to see the course of it.
    """

    def __init__(self) -> None:
        self.received = 0
        self.arrivals: list[tuple[float, int]] = [(0.0, 0)]
        self._new: list[int] = []
        self._older: list[list[int]] = []
        self._since = 0.0

    def receive(self, datagram: Packet, now: float) -> None:
        self.received += datagram.size
        if not self._new:
            self._since = now
        self._new.append(datagram.number)

    def handle_timeout(self, now: float) -> None:
        pass

    def datagrams_to_send(self, now: float) -> Iterable[Ack]:
        if len(self._new) >= 2 or (self._new and now >= self._since + ACK_DELAY):
            self.arrivals.append((now, self.received))
            new, self._new = self._new, []
            yield Ack([number for numbers in (*self._older, new) for number in numbers], now - self._since)
            self._older = [*self._older[-2:], new]

    def next_timeout(self) -> float | None:
        return self._since + ACK_DELAY if self._new else None

    def goodput(self, start: float, end: float) -> float:
        """Bytes per second that arrived between two times."""
        before = max((received for at, received in self.arrivals if at <= start), default=0)
        return (max((received for at, received in self.arrivals if at <= end), default=0) - before) / (end - start)


class Sender:
    """Sends what the controller allows.

    Args:
        congestion: the controller.
        datagram_size: bytes.
        offered: bytes per second that the application has; infinite for a bulk transfer.
    """

    def __init__(self, congestion: Congestion, *, datagram_size: int = 1400, offered: float = math.inf) -> None:
        self.congestion = congestion
        self.datagram_size = datagram_size
        self.offered = offered
        self.start: float | None = None
        self.stop = math.inf
        self.in_flight = 0
        self.sent_bytes = 0
        self.lost_bytes = 0
        self.smoothed_rtt = 0.0
        self.variance = 0.0
        self.minimum_rtt = math.inf
        self.latest_rtt = 0.0
        self.rtts: list[tuple[float, float]] = []
        self.probes = 0
        self._rate = DeliveryRate()
        self._pacer = Pacer(datagram_size)
        self._next = 0
        self._largest = -1
        self._outstanding: dict[int, Sent] = {}
        self._acked_sent_at = -math.inf
        self._last_sent_at = 0.0
        self._wake: float | None = None
        self._probe = 0

    @property
    def probe_timeout(self) -> float:
        return (self.smoothed_rtt + max(4 * self.variance, 0.001) if self.smoothed_rtt else 1.0) + ACK_DELAY

    def receive(self, datagram: Ack, now: float) -> None:
        outstanding, prior = self._outstanding, self.in_flight
        newest = max(datagram.numbers)
        found = outstanding.get(newest)
        rtt = None
        if found is not None and newest > self._largest:
            rtt = now - found.at
            self._sampled(now, rtt, datagram.delay)
        self._largest = max(self._largest, newest)
        acked, newest_at = 0, -math.inf
        for number in datagram.numbers:
            sent = outstanding.pop(number, None)
            if sent is not None:
                acked += sent.size
                newest_at = max(newest_at, sent.at)
                self._rate.acknowledged(now, sent.snapshot, sent.at, sent.size)
        self.in_flight -= acked
        if acked:
            self.probes = 0
        self._report(now, acked, prior, rtt, newest_at)

    def handle_timeout(self, now: float) -> None:
        deadline = self._loss_time()
        if deadline is not None and deadline <= now:
            self._report(now, 0, self.in_flight, None, -math.inf)
        elif self._probe_time() is not None and now >= (self._probe_time() or 0.0):
            self.probes += 1
            self._probe = 1

    def datagrams_to_send(self, now: float) -> Iterable[Packet]:
        if self.start is None:
            self.start = now
        self._wake = None
        while now < self.stop:
            size = self.datagram_size
            if self._probe:
                self._probe = 0
                yield self._send(now, size)
                continue
            if self.in_flight + size > self.congestion.window:
                return
            if self.sent_bytes + size > (now - self.start) * self.offered + size * 1e-6:
                self._rate.application_limited(self.in_flight)
                self._wake = self.start + (self.sent_bytes + size) / self.offered
                return
            room = self._pacer.burst(now)
            if room < size:
                self._wake = self._pacer.next_send_time(now)
                return
            room = min(room, self.congestion.window - self.in_flight)
            if self.offered < math.inf:
                room = min(room, int((now - self.start) * self.offered) - self.sent_bytes)
            burst = max(1, room // size)
            for _ in range(burst):
                yield self._send(now, size)

    def next_timeout(self) -> float | None:
        times = (self._wake, self._loss_time(), self._probe_time())
        return min((time for time in times if time is not None), default=None)

    def _send(self, now: float, size: int) -> Packet:
        self._outstanding[self._next] = Sent(now, size, self._rate.snapshot(now, self.in_flight))
        self._next += 1
        self.in_flight += size
        self.sent_bytes += size
        self._last_sent_at = now
        self._pacer.sent(now, size)
        self.congestion.sent(now, size, self.in_flight)
        return Packet(self._next - 1, size)

    def _sampled(self, now: float, rtt: float, delay: float) -> None:
        self.latest_rtt = rtt
        self.minimum_rtt = min(self.minimum_rtt, rtt)
        self.rtts.append((now, rtt))
        adjusted = rtt - delay if rtt - delay >= self.minimum_rtt else rtt
        if not self.smoothed_rtt:
            self.smoothed_rtt, self.variance = rtt, rtt / 2
        else:
            self.variance += (abs(self.smoothed_rtt - adjusted) - self.variance) / 4
            self.smoothed_rtt += (adjusted - self.smoothed_rtt) / 8

    def _time_threshold(self) -> float:
        return max(1.125 * max(self.smoothed_rtt, self.latest_rtt), 0.001)

    def _loss_time(self) -> float | None:
        first = next(iter(self._outstanding), None)
        if first is None or first > self._largest:
            return None
        return self._outstanding[first].at + self._time_threshold()

    def _probe_time(self) -> float | None:
        if not self._outstanding or self._probe:
            return None
        # Doubled each time, but no longer than LONGEST_PROBE: a path that is back should be noticed soon.
        backed_off = self.probe_timeout * (1 << min(self.probes, 10))
        return self._last_sent_at + max(min(backed_off, LONGEST_PROBE), self.probe_timeout)

    def _report(self, now: float, acked: int, prior: int, rtt: float | None, newest_at: float) -> None:
        lost: list[int] = []
        threshold = self._time_threshold()
        for number, sent in self._outstanding.items():
            if number > self._largest or (number > self._largest - PACKET_THRESHOLD and sent.at + threshold > now):
                break
            lost.append(number)
        records = [self._outstanding.pop(number) for number in lost]
        lost_bytes = sum(record.size for record in records)
        self.in_flight -= lost_bytes
        self.lost_bytes += lost_bytes
        if not acked and not lost:
            return
        rate = self._rate.sample(self.minimum_rtt)
        sample = Acknowledged(
            now=now,
            acked=acked,
            lost=lost_bytes,
            in_flight=self.in_flight,
            prior_in_flight=prior,
            delivered=self._rate.delivered,
            rtt=rtt,
            smoothed_rtt=self.smoothed_rtt,
            minimum_rtt=self.minimum_rtt,
            rate=rate.rate,
            rate_app_limited=rate.app_limited,
            round_start=rate.round_start,
            largest_lost_sent_at=records[-1].at if records else None,
        )
        self.congestion.acknowledged(sample)
        if records and records[0].at > self._acked_sent_at and records[-1].at - records[0].at > 3 * self.probe_timeout:
            self.congestion.persistent_congestion(now)
        self._acked_sent_at = max(self._acked_sent_at, newest_at)
        assert 0 < self.congestion.window < 2**40
        assert self.congestion.pacing_rate > 0
        self._pacer.set_rate(now, self.congestion.pacing_rate)


@dataclass(eq=False)
class Flow:
    """Both ends of one transfer."""

    sender: Sender
    receiver: Receiver

    def rtt(self, start: float, end: float) -> float:
        """Mean round-trip time of the samples between two times, in seconds."""
        samples = [rtt for at, rtt in self.sender.rtts if start <= at < end]
        return sum(samples) / len(samples)


def join(
    network: Network,
    congestion: Congestion,
    there: Link,
    back: Link,
    *,
    datagram_size: int = 1400,
    offered: float = math.inf,
    start: float = 0.0,
    lag: float = 0.0,
) -> Flow:
    """Add a transfer to a network."""
    flow = Flow(Sender(congestion, datagram_size=datagram_size, offered=offered), Receiver())
    network.connect(flow.sender, flow.receiver, there, back, start=start, lag=lag)
    return flow
