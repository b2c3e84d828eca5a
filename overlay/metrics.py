"""What a `Driver` knows about its neighbours at one moment."""

from dataclasses import dataclass

from overlay.events import Path
from overlay.identity import PeerId
from overlay.transports.base import Direction


@dataclass(frozen=True, slots=True)
class Metrics:
    """How good the link to a neighbour is. A snapshot; sizes in bytes, times in seconds."""

    peer_id: PeerId
    since: float
    """How long it has been a neighbour."""
    lingering: bool
    """There is no path to it at the moment; frames wait."""
    direction: Direction | None
    """Whether frames can go both ways, or one only; None without a path."""
    rtt: float | None
    """Of the selected path; None: not measured yet."""
    loss: float | None
    """The share of the packets sent on it that were lost, 0 to 1; None: not known."""
    mtu: int
    """The longest frame that goes to it in one datagram; 0 without a path."""
    longest_frame: int
    """What its driver takes, and ours sends."""
    goodput_out: float
    """Bytes of reliable frames per second that it has acknowledged, over the last seconds."""
    goodput_in: float
    """Bytes of frames per second that have come from it, over the last seconds."""
    queued_frames: int
    """Frames that wait for it."""
    queued_size: int
    unacknowledged_size: int
    """Reliable frames that have left and are not known to have arrived."""
    undelivered: int
    """How many frames have come back so far."""
    paths: tuple[Path, ...]
    """Its connections, the selected one first."""


@dataclass(frozen=True, slots=True)
class DriverStatus:
    """What a driver is doing. A snapshot."""

    peer_id: PeerId
    neighbours: tuple[Metrics, ...]
    received_waiting: int
    """Frames that wait for `next`."""
    undelivered_waiting: int
    """Frames that wait for `undelivered`."""
    undelivered_dropped: int
    """Frames that came back and were dropped, as nobody asked for them."""
