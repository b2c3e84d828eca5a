"""The networks on which raw UDP has to work, each as one line, and how a transfer over one of them is run."""

from collections.abc import Callable
from dataclasses import dataclass
from random import Random

from udp_ends import End, transfer
from udp_network import Gilbert, Link, Network
from udp_report import Row

from overlay.protocol.udp.bbr import Bbr
from overlay.protocol.udp.congestion import Congestion
from overlay.protocol.udp.cubic import Cubic
from overlay.protocol.udp.wire import MINIMUM_DATAGRAM

KILOBYTE, MEGABYTE = 1000, 1_000_000
KILOBIT, MEGABIT = 125.0, 125_000.0
"""Bytes per second."""
CONTROLLERS: dict[str, Callable[[int], Congestion]] = {
    "bbr": lambda size: Bbr(size, Random(1).random),
    "cubic": Cubic,
}


@dataclass(frozen=True)
class Scenario:
    """A network and what is sent over it. Losses and the like strike in both directions."""

    name: str
    size: int = 2 * MEGABYTE
    """Bytes to send."""
    rtt: float = 0.05
    rate: float = 50 * MEGABIT
    queue: float | None = None
    """Bytes; a bandwidth-delay product, 64 kB at least, if not said."""
    mtu: int = 1472
    loss: float = 0.0
    ack_loss: float | None = None
    """Of the way back, where it differs."""
    gilbert: tuple[float, float] | None = None
    reorder: float = 0.0
    duplicate: float = 0.0
    mtus: tuple[tuple[float, int], ...] = ()
    """When the MTU changes, to what."""
    blackout: tuple[float, float] | None = None
    """Its start and its length in seconds."""
    deaf: tuple[float, float] | None = None
    """The same, of the way back alone."""
    finds: int = MINIMUM_DATAGRAM
    """The MTU that must have been found at the end, at least."""
    copies: float = 1.25
    """How many times the bytes may arrive: needless copies are what a delay or a lost ACK costs."""
    until: float = 120.0
    """Seconds that it may take."""
    packets: int = 20_000
    """Packets that both may send."""


SCENARIOS = [
    Scenario("nothing in the way", finds=1472),
    Scenario("1 % loss", loss=0.01, finds=1400),
    Scenario("3 % loss", loss=0.03, finds=1400),
    Scenario("10 % loss", loss=0.1, size=MEGABYTE),
    Scenario("30 % loss", loss=0.3, size=MEGABYTE // 2, until=400),
    Scenario("5 % loss, in bursts of 5 packets", gilbert=(0.01, 0.2)),
    Scenario("9 % loss, in bursts of 10 packets", gilbert=(0.01, 0.1), size=MEGABYTE, until=400),
    Scenario("1 % reordered by up to 50 packets", reorder=0.01),
    Scenario("20 % reordered by up to 50 packets", reorder=0.2),
    Scenario("30 % doubled", duplicate=0.3),
    Scenario("RTT 1 ms", rtt=0.001, size=5 * MEGABYTE),
    Scenario("RTT 1 s", rtt=1.0),
    Scenario("RTT 5 s", rtt=5.0, size=MEGABYTE),
    Scenario("RTT 5 s, 10 % loss", rtt=5.0, size=100 * KILOBYTE, loss=0.1, until=600),
    Scenario("MTU 300", mtu=300, size=MEGABYTE),
    Scenario("MTU 300, 64 kbit/s, 5 % loss", mtu=300, rate=64 * KILOBIT, size=50 * KILOBYTE, loss=0.05, until=300),
    Scenario("MTU 300, 64 kbit/s, RTT 600 ms", mtu=300, rate=64 * KILOBIT, size=200 * KILOBYTE, rtt=0.6, until=300),
    Scenario("MTU 9000", mtu=9000, size=5 * MEGABYTE, finds=8972),
    Scenario(
        "MTU 9000 -> 500 -> 300 -> 9000, 400 kbit/s",
        rate=400 * KILOBIT,
        size=4 * MEGABYTE,
        mtu=9000,
        mtus=((4.0, 500), (8.0, 300), (20.0, 9000)),
        # BBR finds all of it. CUBIC keeps the queue full, where the largest probes are lost three times by chance.
        finds=1472,
        packets=30_000,
    ),
    Scenario("blackout of 30 s", blackout=(0.3, 30.0), size=3 * MEGABYTE),
    Scenario(
        "blackout of 30 s in the search for an MTU of 9000",
        mtu=9000,
        blackout=(0.17, 30.0),
        finds=8952,
        size=3 * MEGABYTE,
    ),
    Scenario("half of all ACKs lost", ack_loss=0.5),
    Scenario("3 of 4 ACKs lost", ack_loss=0.75),
    Scenario("no ACK for 30 s", deaf=(0.3, 30.0), size=3 * MEGABYTE),
    Scenario(
        "1 Gbit/s, RTT 1 ms, queue of 20 packets",
        rate=1000 * MEGABIT,
        rtt=0.001,
        queue=20 * 1472,
        size=20 * MEGABYTE,
        packets=60_000,
    ),
    Scenario("1 Mbit/s, queue of 1 s", rate=MEGABIT, queue=MEGABIT),
    Scenario(
        "everything at once", loss=0.05, reorder=0.1, duplicate=0.1, gilbert=(0.005, 0.3), size=MEGABYTE, until=400
    ),
]


def links(scenario: Scenario, network: Network) -> tuple[Link, Link]:
    """The way there and the way back, with all that is to happen to them."""
    queue = max(64 * KILOBYTE, scenario.rate * scenario.rtt) if scenario.queue is None else scenario.queue
    there, back = (
        Link(
            rate=scenario.rate,
            delay=scenario.rtt / 2,
            queue=queue,
            mtu=scenario.mtu,
            loss=scenario.loss,
            gilbert=scenario.gilbert and Gilbert(*scenario.gilbert),
            reorder=scenario.reorder,
            duplicate=scenario.duplicate,
        )
        for _ in range(2)
    )
    if scenario.ack_loss is not None:
        back.loss = scenario.ack_loss
    for link in (there, back):
        for when, mtu in scenario.mtus:
            network.change(when, link, mtu=mtu)
    if scenario.blackout is not None:
        network.blackout(*scenario.blackout, there, back)
    if scenario.deaf is not None:
        network.blackout(*scenario.deaf, back)
    return there, back


def play(scenario: Scenario, controller: str, *, seed: int = 7) -> Row:
    """Make the transfer; it must be complete and exact, and come to rest in time."""
    network = Network(seed)
    there, back = links(scenario, network)
    make = CONTROLLERS[controller]
    left, right = End(make(MINIMUM_DATAGRAM)), End(make(MINIMUM_DATAGRAM))
    result = transfer(
        left, right, network, there, back, size=scenario.size, until=scenario.until, packets=scenario.packets
    )
    assert right.bytes_received <= scenario.copies * scenario.size
    assert left.core.mtu.size >= scenario.finds
    return Row(
        scenario.name,
        controller,
        scenario.rate,
        result.goodput,
        result.seconds,
        result.packets,
        left.core.recovery.lost_packets,
    )


def cruise(
    name: str,
    controller: str,
    *,
    rate: float,
    rtt: float,
    start: float,
    end: float,
    loss: float = 0.0,
    queue: float | None = None,
    mtu: int = 1472,
) -> tuple[Row, float]:
    """A transfer without end, from the time at which it is at its pace.

    Args:
        name: of the row.
        controller: of the sender.
        rate: of the link, in bytes per second.
        rtt: seconds, without queue.
        start: seconds from the beginning of the transfer to the beginning of the measurement.
        end: seconds from the beginning of the transfer to the end.
        loss: share of the packets that is lost by chance.
        queue: bytes; a bandwidth-delay product if not said.
        mtu: bytes.

    Returns:
        What was reached, and the smoothed round-trip time at the end in seconds.
    """
    network = Network(seed=7)
    make = CONTROLLERS[controller]
    left, right = End(make(MINIMUM_DATAGRAM)), End(make(MINIMUM_DATAGRAM))
    left.send(4, int(rate * end))
    queue = rate * rtt if queue is None else queue
    network.connect(
        left, right, Link(rate=rate, delay=rtt / 2, queue=queue, loss=loss, mtu=mtu), Link(delay=rtt / 2, mtu=mtu)
    )
    network.run(start)
    bytes_before, sent_before, lost_before = right.got(4), left.packets_sent, left.core.recovery.lost_packets
    network.run(end)
    goodput = (right.got(4) - bytes_before) / (end - start)
    sent, lost = left.packets_sent - sent_before, left.core.recovery.lost_packets - lost_before
    return Row(f"{name}, at its pace", controller, rate, goodput, end - start, sent, lost), left.core.rtt.smoothed
