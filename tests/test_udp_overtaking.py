"""What is urgent is not behind bulk: small messages beside a transfer without end, on slow links, in simulated time."""

from collections.abc import Iterable

import pytest
from udp_ends import End, Packet
from udp_network import Link, Network
from udp_scenarios import KILOBIT, MEGABIT

from overlay.protocol.udp.bbr import Bbr
from overlay.protocol.udp.wire import MINIMUM_DATAGRAM

URGENT = 0
BULK = 4
SIZE = 64
"""Bytes of a message."""
MTU = 1472


class Receiver(End):
    """Notes when what was urgent is complete.

    Attributes:
        arrivals: the time of each message's last byte.
    """

    def __init__(self, network: Network) -> None:
        super().__init__(Bbr(MINIMUM_DATAGRAM, network.random.random))
        self.arrivals: list[float] = []

    def datagrams_to_send(self, now: float) -> list[Packet]:
        datagrams = super().datagrams_to_send(now)
        self.arrivals += [now] * (self.got(URGENT) // SIZE - len(self.arrivals))
        return datagrams


def latencies(rate: float, rtt: float, queue: float, times: Iterable[float], end: float) -> tuple[list[float], float]:
    """How long each message took, in seconds, and the goodput of all between the first and the end."""
    network = Network(seed=3)
    sender = End(Bbr(MINIMUM_DATAGRAM, network.random.random))
    receiver = Receiver(network)
    # The session asks its streams in this order, too: control, then bulk.
    sender.send(URGENT, 0)
    sender.send(BULK, int(2 * rate * end))
    there = Link(rate=rate, delay=rtt / 2, queue=queue * rate, mtu=MTU)
    place, _ = network.connect(sender, receiver, there, Link(delay=rtt / 2, mtu=MTU))

    def say() -> None:
        sender.send(URGENT, SIZE)
        place.wake()

    sent = list(times)
    for at in sent:
        network.at(at, say)
    network.run(sent[0])
    before = receiver.got(BULK)
    network.run(end)
    assert len(receiver.arrivals) == len(sent)
    took = [arrived - at for at, arrived in zip(sent, receiver.arrivals, strict=True)]
    return took, (receiver.got(BULK) - before) / (end - sent[0])


@pytest.mark.parametrize(
    ("rate", "rtt", "start"),
    [(80 * KILOBIT, 0.02, 20.0), (MEGABIT, 0.02, 5.0), (10 * MEGABIT, 0.05, 5.0), (50 * MEGABIT, 0.1, 5.0)],
)
def test_a_message_overtakes_bulk(rate: float, rtt: float, start: float) -> None:
    """A queue of 4 s, which nobody has to fill: a fixed queue of 256 KiB above it was 25 s of the slowest link."""
    times = [start + 0.37 * turn for turn in range(60)]
    took, goodput = latencies(rate, rtt, 4.0, times, times[-1] + 10.0)
    took.sort()
    # Four packets are the least window, two more wait for it, and a probe is some packets.
    assert took[len(took) // 2] <= 1.5 * rtt + 8 * MTU / rate
    assert took[-1] <= 2.5 * rtt + 12 * MTU / rate
    assert goodput >= 0.85 * rate


def test_the_start_fills_no_queue_for_long() -> None:
    """A transfer that begins on 80 kbit/s: ten packets leave at once, 1.5 s of its time, and then fewer."""
    times = [0.5 * turn for turn in range(1, 40)]
    took, _ = latencies(80 * KILOBIT, 0.02, 4.0, times, 40.0)
    assert max(took) <= 4.0
    assert max(took[20:]) <= 1.5
