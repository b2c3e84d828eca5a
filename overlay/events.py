"""What an endpoint tells its user, each once and in order."""

from dataclasses import dataclass

from overlay.addresses import Address
from overlay.identity import PeerId


@dataclass(frozen=True, slots=True)
class Path:
    """What a user sees of a connection. A snapshot."""

    transport: str
    remote: Address
    selected: bool
    """This side sends on it."""
    suspect: bool
    """Nothing comes back on it at the moment."""
    dialled: bool
    """This side has made it."""
    rtt: float | None
    """Smoothed round-trip time in seconds; None before the first sample."""
    bytes_sent: int
    bytes_received: int

    def __str__(self) -> str:
        """Transport and address, as in an `Address`."""
        return str(self.remote)


@dataclass(frozen=True, slots=True)
class PeerConnected:
    """A session with the peer has begun."""

    peer_id: PeerId


@dataclass(frozen=True, slots=True)
class PeerDisconnected:
    """The session with the peer is over."""

    peer_id: PeerId
    reason: Exception


@dataclass(frozen=True, slots=True)
class PathChanged:
    """This side sends to the peer on another path from now on."""

    peer_id: PeerId
    path: Path


@dataclass(frozen=True, slots=True)
class PathLost:
    """A path to the peer is gone."""

    peer_id: PeerId
    transport: str
    remote: Address
    remaining: int
    """How many are left; with none the session lingers."""


@dataclass(frozen=True, slots=True)
class SessionReplaced:
    """The peer has begun anew: streams of the old session have failed, a new session is there."""

    peer_id: PeerId


Event = PeerConnected | PeerDisconnected | PathChanged | PathLost | SessionReplaced
