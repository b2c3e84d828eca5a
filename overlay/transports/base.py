"""What a transport is, seen from the session: connections that carry frames, stream bytes and datagrams.

The way of a byte out: the session asks `sendable()` and `datagram_room()`, takes that much from its streams and from
whoever supplies datagrams, calls `send_frame`, `send_stream` and `send_datagram`, and `flush` once at the end. When
there is room again, the connection calls `handler.writable`. The way in: one wake-up of the socket reads all that is
there, calls the handler's `*_received` for each piece, then `handler.writable` once: all answers leave together.

The way of an error: whatever breaks a connection, a peer's garbage, a reset, silence, ends in exactly one call of
`handler.closed` with a `CloseReason`. Calls on a closed connection do nothing. Nothing else of the endpoint is touched.

A connection comes to life only when the peer has proven its key, so none of its methods ever meets an unknown peer.
"""

import itertools
from abc import ABC, abstractmethod
from collections.abc import Callable, Container
from dataclasses import dataclass
from enum import Enum
from typing import ClassVar, Literal, Protocol

from overlay.addresses import Address
from overlay.identity import PeerId
from overlay.protocol.codes import CloseCode
from overlay.protocol.frames import Control

Direction = Literal["both", "send", "receive"]
"""Which ways bytes go, seen from here."""


class Role(Enum):
    """Who made a connection."""

    DIALER = "dialer"
    ACCEPTOR = "acceptor"


class ClosedBy(Enum):
    """Who ended a connection."""

    US = "us"
    PEER = "peer"
    NETWORK = "network"


@dataclass(frozen=True, slots=True)
class CloseReason:
    """Why a connection ended."""

    by: ClosedBy
    code: int = CloseCode.NO_ERROR
    """A `CloseCode`, or a number that this version does not know."""
    reason: str = ""

    def __str__(self) -> str:
        """One phrase."""
        try:
            name = CloseCode(self.code).name
        except ValueError:
            name = f"code {self.code}"
        return f"closed by {self.by.value} ({name}{': ' + self.reason if self.reason else ''})"


class ConnectionHandler(Protocol):
    """The session's side of a connection. None of these raises; none may block."""

    def frame_received(self, connection: "Connection", frame: Control) -> None:
        """A control frame arrived. CLOSE and DATAGRAM never come this way."""

    def stream_received(self, connection: "Connection", stream: int, offset: int, data: bytes) -> None:
        """A piece of a stream arrived."""

    def datagram_received(self, connection: "Connection", data: bytes) -> None:
        """A datagram arrived."""

    def writable(self, connection: "Connection") -> None:
        """All that was there has been handed over, or there is room to send again."""

    def closed(self, connection: "Connection", reason: CloseReason) -> None:
        """The connection ended.

        Called exactly once; for a close of our own after `Connection.close` has returned.
        """


class Connection(ABC):
    """One authenticated connection to a peer over one transport.

    Attributes:
        transport: the transport's name.
        direction: which ways it carries bytes.
        peer_id: the key that the peer has proven.
        remote: where it is.
        local: our own address on it, if known.
        role: who dialled.
        handler: who gets its events; set before the first of them.
        bytes_sent, bytes_received: stream bytes and frames that were handed over, for reports.
    """

    transport: ClassVar[str]
    direction: ClassVar[Direction] = "both"
    _ids = itertools.count(1)

    def __init__(
        self,
        *,
        peer_id: PeerId,
        remote: Address,
        local: Address | None,
        role: Role,
        handler: ConnectionHandler,
    ) -> None:
        self.id = next(Connection._ids)
        self.peer_id = peer_id
        self.remote = remote
        self.local = local
        self.role = role
        self.handler = handler
        self.bytes_sent = 0
        self.bytes_received = 0

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.id} {self.role.value} {self.peer_id.short} at {self.remote}>"

    @property
    @abstractmethod
    def is_closed(self) -> bool:
        """Whether `close` or `abort` was called, or the connection has ended by itself."""

    @property
    @abstractmethod
    def max_datagram_size(self) -> int:
        """The longest datagram that fits now, in bytes."""

    @property
    @abstractmethod
    def rtt(self) -> float | None:
        """Smoothed round-trip time in seconds as the transport measures it, or None before the first sample."""

    @property
    def rtt_min(self) -> float | None:
        """The least round-trip time that was measured on this path, in seconds: without queues; None: unknown."""
        return None

    @property
    @abstractmethod
    def probe_timeout(self) -> float | None:
        """After how many seconds without an answer the transport itself would probe (RFC 9002 section 6.2.1)."""

    @property
    def mtu(self) -> int | None:
        """Bytes of the largest packet that the path is known to carry, counted as `Path.mtu` says; None: unknown."""
        return None

    @property
    def loss(self) -> float | None:
        """The share of the packets sent so far that the transport takes for lost, 0 to 1; None: unknown."""
        return None

    @property
    def congestion_window(self) -> int | None:
        """Bytes that may be on their way at once (RFC 9002 section 7); None: unknown."""
        return None

    @abstractmethod
    def last_progress(self) -> float:
        """When the peer last showed, by `time.monotonic`, that it is there and hears us.

        While something of ours is under way: when the last acknowledgement came, however long ago that is. Otherwise,
        when anything came. Never when something left: sending is no progress. And to be heard is not enough while
        something is under way: a network may lose in one direction only.
        """

    @abstractmethod
    def sendable(self) -> int:
        """How many stream bytes it takes now; 0 or less: wait for `handler.writable`."""

    @abstractmethod
    def send_frame(self, frame: bytes) -> None:
        """Queue an encoded control frame: it overtakes queued stream bytes as far as the transport can."""

    @abstractmethod
    def send_stream(self, stream: int, offset: int, data: bytes | memoryview, *, idle: bool) -> None:
        """Queue a piece of a stream, at most 64 KiB; `idle` when the stream has no more to send now."""

    @abstractmethod
    def send_datagram(self, data: bytes) -> bool:
        """Queue a datagram; False when it was dropped because too many wait.

        Raises:
            DatagramTooLarge: it is longer than `max_datagram_size`.
        """

    @abstractmethod
    def datagram_room(self) -> int:
        """How many bytes of datagrams it takes now; 0 or less: wait for `handler.writable`.

        No more than what could leave at once and some 16 KiB: what waits in a connection can neither be overtaken nor
        taken back. While stream bytes wait, too, both have their share.
        """

    @abstractmethod
    def flush(self) -> None:
        """Send what is queued."""

    def network_changed(self, lost: Container[str]) -> bool:
        """This machine has other addresses or routes than before: move to them, if the transport can.

        Args:
            lost: addresses that were ours and are gone, as in `Address.host`.

        Returns:
            Whether it may still work; False when it is tied to an address that is gone, unless that comes back.
        """
        return self.local is None or self.local.host not in lost

    @abstractmethod
    def close(self, code: CloseCode, reason: str = "") -> None:
        """End it: tell the peer why, behind what was queued as far as the transport can. Returns at once."""

    @abstractmethod
    def abort(self) -> None:
        """End it without a word."""


Accepted = Callable[[Connection], ConnectionHandler]
"""Called for an inbound connection as soon as its peer has proven its key, before any state exists for it; returns its
handler, or raises `HandshakeError` with the code with which it is to be closed."""


class Transport(ABC):
    """A way to carry bytes: makes connections, dialled and accepted."""

    name: ClassVar[str]

    @abstractmethod
    async def dial(self, address: Address, peer_id: PeerId, handler: ConnectionHandler) -> Connection:
        """Connect to a peer at an address with a literal host.

        Returns when the peer has proven `peer_id`. A cancelled dial leaves nothing behind.

        Raises:
            HandshakeError: somebody else, or nobody acceptable, answered.
            OSError: the network said no; ConnectionError and its kind by its errno.
        """

    @property
    @abstractmethod
    def addresses(self) -> tuple[Address, ...]:
        """Where it listens."""

    @abstractmethod
    async def aclose(self) -> None:
        """Stop listening, abort what is left, free the sockets."""
