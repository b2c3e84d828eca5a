"""What an endpoint, or the driver of one, tells its user, each once and in order."""

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Final, Generic, Literal, Protocol, TypeVar

from overlay.addresses import Address
from overlay.errors import Attempt
from overlay.identity import PeerId
from overlay.transports.base import Direction

EVENT_QUEUE: Final = 1024

Purpose = Literal["connect", "replace", "upgrade", "inbound"]
"""What a connection was made for; see `Origin.purpose`."""

_PURPOSES: Final[dict[Purpose, str]] = {
    "connect": "the first to answer",
    "replace": "in place of one that was lost or fell silent",
    "upgrade": "a better transport answers again",
    "inbound": "dialled by the peer",
}


@dataclass(frozen=True, slots=True)
class Origin:
    """How a path came about: the reason why it is this one, and not another address or transport."""

    purpose: Purpose
    """`connect`: to begin with; `replace`: a path was lost or fell silent; `upgrade`: the better transport was tried
    again; `inbound`: the peer has dialled us."""
    seconds: float | None = None
    """From the dial's start, at its first address, to the peer's ACCEPT; None when the peer has dialled."""
    attempts: tuple[Attempt, ...] = ()
    """What else was tried in this dial, and until then had failed or not answered."""

    def __str__(self) -> str:
        """One line for people."""
        text = _PURPOSES[self.purpose]
        if self.seconds is not None:
            text += f", after {1000 * self.seconds:.0f} ms"
        return "; ".join([text, *map(str, self.attempts)])


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
    direction: Direction
    """`both`; or only `send` or `receive`, seen from this side: such a path exists one way."""
    rtt: float | None
    """Smoothed round-trip time in seconds; None before the first sample."""
    mtu: int | None
    """Bytes of the largest packet that it is known to carry: a datagram's content with `quic` and `udp`, an IP packet
    with `tcp`; None where that is not known."""
    loss: float | None
    """The share of the packets sent so far that were taken for lost, 0 to 1; None where that is not known."""
    congestion_window: int | None
    """Bytes that may be on their way to the peer at once; None where that is not known."""
    bytes_sent: int
    bytes_received: int
    origin: Origin
    """Why there is this path."""

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


@dataclass(frozen=True, slots=True)
class NeighbourUp:
    """From a driver: that of a peer is there, so frames can go to it, and floods go to it too."""

    peer_id: PeerId
    direction: Direction | None
    """Of the path that it has greeted on; None when that is gone already."""


@dataclass(frozen=True, slots=True)
class NeighbourDown:
    """From a driver: frames can't go there any more; those that it may not have come back."""

    peer_id: PeerId
    reason: Exception
    """A SessionError, UnknownProtocol when there never was a driver, DriverClosed when there is none any more."""


Event = PeerConnected | PeerDisconnected | PathChanged | PathLost | SessionReplaced
DriverEvent = NeighbourUp | NeighbourDown | PathChanged | PathLost
Kind = TypeVar("Kind")


class Subscriber(Protocol):
    """Who is told of an endpoint's events as they happen; see `Endpoint.subscribe`."""

    def put(self, event: Event | None) -> None:
        """One more event; None: the last one was. Called in the middle of things: it must neither raise nor wait."""


class Ear:
    """A subscriber that calls a function, and is held by whom that belongs to."""

    def __init__(self, put: Callable[[Event | None], None]) -> None:
        self.put = put


class Events(AsyncIterator[Kind], Generic[Kind]):
    """What happens from one moment on: `async for event in events`, or `await anext(events)`.

    At most 1,024 wait for a slow reader; the oldest goes first then. Cancellation: `anext` loses nothing, and the next
    one goes on, unlike that of an async generator, which ends with the first time-out around it.
    """

    def __init__(self) -> None:
        self._queue: asyncio.Queue[Kind | None] = asyncio.Queue(EVENT_QUEUE)
        self._ended = False

    def put(self, event: Kind | None) -> None:
        """For who tells: one more; None: the last one was."""
        if self._queue.full():
            self._queue.get_nowait()
        self._queue.put_nowait(event)

    async def __anext__(self) -> Kind:
        if not self._ended:
            event = await self._queue.get()
            if event is not None and not self._ended:
                return event
            await self.aclose()
        raise StopAsyncIteration

    async def aclose(self) -> None:
        """Listen no more; whoever waits is told so, and what has not been read is dropped."""
        self._ended = True
        self.put(None)
