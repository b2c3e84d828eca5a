"""What a connection tells whoever has the socket and the session, and how far its life is."""

from collections.abc import Hashable
from dataclasses import dataclass
from enum import Enum
from typing import Generic, Literal

from overlay.protocol.udp.handshake_states import Peer
from overlay.protocol.udp.inbox import ControlData
from overlay.protocol.udp.payload import Datagram, StreamPiece

By = Literal["us", "peer", "network"]
"""Who ended a connection."""


class Phase(Enum):
    """How far the life of a connection is."""

    OPENING = "the handshake is under way; from `Proven` on there may be packets beside it"
    OPEN = "both know that both have accepted"
    CLOSING = "we have said goodbye, and say it again when the peer seems not to have heard"
    DRAINING = "the peer has said goodbye; nothing is said any more"
    OVER = "it can be forgotten"


@dataclass(frozen=True, slots=True)
class Proven(Generic[Peer]):
    """The peer's key is proven, and the session may send. A dialler does not know yet whether it is accepted."""

    peer: Peer


@dataclass(frozen=True, slots=True)
class Confirmed:
    """Both know that both have accepted."""


@dataclass(frozen=True, slots=True)
class Closed:
    """It has ended; the last event."""

    code: int
    """A `CloseCode`, or a number that this version does not know."""
    reason: str
    by: By
    cause: Exception | None = None
    """What the handshake failed for, as TLS has raised it."""


@dataclass(frozen=True, slots=True)
class IdsChanged:
    """From now on packets with other ids are ours; `UdpCore.ids` has all of them."""

    added: tuple[bytes, ...]
    removed: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class AddressChanged:
    """Packets go elsewhere: to another address, which the peer has proven to be at, or to another id of the peer's."""

    address: Hashable
    """The same as before when only `UdpCore.destination` has changed."""


Content = StreamPiece | ControlData | Datagram
"""What the peer's session has sent."""
EstablishedEvent = Content | IdsChanged | AddressChanged
Event = EstablishedEvent | Proven[Peer] | Confirmed | Closed


@dataclass(frozen=True, slots=True)
class Outgoing:
    """One GSO send."""

    data: bytes
    """Datagrams of `segment` bytes, the last of which may be shorter."""
    segment: int
    address: Hashable
    is_mtu_probe: bool = False
    """It may be too large on purpose; if the system says so (EMSGSIZE), `UdpCore.send_refused` wants to know."""
