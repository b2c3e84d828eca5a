"""What is remembered of packets on their way: one record for each burst, whatever it carries."""

from dataclasses import dataclass, field
from typing import Final

from overlay.protocol.udp.congestion import Snapshot
from overlay.protocol.udp.payload import Buffer

NO_SNAPSHOT: Final = Snapshot(0, 0.0, 0.0, app_limited=False)


@dataclass(slots=True, eq=False)
class StreamRun:
    """Successive packets of a burst that carry successive bytes of one stream."""

    first: int
    last: int
    """Packet numbers."""
    stream: int
    offset: int
    """Of the first byte in the first packet."""
    step: int
    """Bytes of data in each packet."""
    data: Buffer


@dataclass(slots=True, eq=False)
class SentBurst:
    """Packets with successive numbers that left at the same time."""

    first: int
    sent_at: float
    last: int = -1
    size: int = 0
    """Bytes of each datagram but the last."""
    last_size: int = 0
    """Bytes of the last one, no more than `size`."""
    counted: bool = True
    """False for probes of the path's MTU, of which the congestion controller hears nothing."""
    snapshot: Snapshot = NO_SNAPSHOT
    runs: list[StreamRun] = field(default_factory=list)
    control: list[tuple[int, int, int]] = field(default_factory=list)
    """Packet number, offset and end of what it carries of the control stream."""
    frames: list[tuple[int, bytes]] = field(default_factory=list)
    """Packet number and the frames to be sent again if it is lost."""
    outstanding: list[tuple[int, int]] | None = None
    """The ranges of numbers that are neither acknowledged nor lost; None while that is all of them."""

    def bytes_of(self, low: int, high: int) -> int:
        """The size of the datagrams from `low` to `high`."""
        size = self.size * (high - low + 1)
        return size - self.size + self.last_size if high == self.last else size


Part = tuple[SentBurst, int, int]
"""Packets of a burst: the lowest and the highest number."""
