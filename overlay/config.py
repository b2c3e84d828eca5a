"""Every setting of an endpoint, with the reason for its default."""

from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from ipaddress import ip_network
from typing import TYPE_CHECKING, Literal

from overlay.errors import ConfigError
from overlay.protocol.udp.wire import MAXIMUM_DATAGRAM, MINIMUM_DATAGRAM

if TYPE_CHECKING:
    from os import PathLike

    from overlay.identity import PeerId

KiB = 1024
MiB = 1024 * KiB

TRANSPORTS = ("quic", "udp", "tcp", "memory")


_ABOVE_ZERO = (
    "dial_timeout",
    "handshake_timeout",
    "idle_timeout",
    "keepalive",
    "delivery_timeout",
    "backoff_cap",
    "dials_per_second",
)


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds on memory and work. Sizes in bytes."""

    stream_window: int = 4 * MiB
    """What one stream may have in flight or unread at most: 40 MB/s at 100 ms. It is reached in steps."""
    session_memory: int = 32 * MiB
    """Sum of all credit that one session grants its peer."""
    chosen_memory: int = 256 * MiB
    """The same, summed over all sessions with peers that we dialled."""
    stranger_memory: int = 64 * MiB
    """The same for peers that dialled us: keys cost nothing, so all of them share this."""
    stranger_sessions: int = 1024
    """Sessions with peers that dialled us; with `stranger_memory` it leaves each 64 KiB, the protocol's minimum."""
    live_streams: int = 1024
    """Streams that a peer may have open at once, and handlers that serve one session at once."""
    stream_send_buffer: int = 1 * MiB
    """Unsent bytes of one stream, above which `write` waits; what has been sent but not acknowledged is bounded by
    the peer's credit."""
    session_send_buffer: int = 32 * MiB
    """Unacknowledged bytes over all streams of a session, above which `write` waits."""
    stranger_send_buffer: int = 1 * MiB
    """The same for a session with a peer that dialled us, and four times what one of its streams keeps unsent: who
    makes us answer and never reads costs no more. It is what such a peer can have in flight: 10 MB/s at 100 ms."""
    datagram_queue: int = 256
    """Datagrams that wait for `receive_datagram`; the oldest goes first, as fresh ones are worth more."""
    datagram_memory: int = 256 * KiB
    """Bytes of them in one session; beyond 64 KiB they count in its memory."""
    handshakes: int = 256
    """Unauthenticated inbound handshakes at once."""
    handshakes_per_address: int = 32
    """The same from one IPv4 address or IPv6 /64: one household, one school."""
    known_peers: int = 4096
    """Peers without a session whose addresses are remembered, for `connect(PeerId)`: so many that we have dialled, and
    as many that have dialled us."""
    connections_per_peer: int = 16
    """Connections of one key: two families, two transports, and twice that while some are replaced."""
    retry_above: int = 64
    """Half-open QUIC handshakes above which a newcomer has to prove its address first (RFC 9000 section 8.1.2)."""


@dataclass(frozen=True, slots=True)
class Config:
    """Settings of an `Endpoint`. Times in seconds, sizes in bytes.

    Raises:
        ConfigError: a value that cannot work.
    """

    listen: tuple[str, ...] = ("0.0.0.0:0", "[::]:0")
    """`host:port` each; UDP and TCP are bound alike. Port 0 takes one free port, the same for both protocols and, if
    it is free there too, for all entries. A family that the machine lacks is left out unless it is the only one."""
    transports: tuple[str, ...] = ("quic", "udp", "tcp")
    """Which transports to use, the preferred one first. `udp` is raw UDP: for networks that recognise and drop QUIC,
    and for links that carry less than QUIC's 1200 bytes."""
    resume_timeout: float = 120.0
    """How long a session outlives its last connection: longer than a reboot of a home router takes."""
    dial_timeout: float = 30.0
    """For `connect`: round trips of 5 s exist."""
    handshake_timeout: float = 20.0
    """For one inbound handshake including HELLO: four round trips of 5 s."""
    idle_timeout: float = 30.0
    """A connection on which nothing was heard for so long is closed; the session lives on."""
    keepalive: float = 15.0
    """An idle connection is pinged after so long, to begin with: UDP mappings of home routers live for 30 s and more.
    It grows while the path survives that, up to five sixths of `idle_timeout`, and goes back when it does not."""
    delivery_timeout: float = 30.0
    """How long leaving `async with stream`, or a `Driver`, waits for the peer's acknowledgement."""
    largest_datagram: int = MAXIMUM_DATAGRAM
    """Bytes up to which raw UDP looks for the path's MTU, and QUIC from 1200 to 8972: what UDP over IPv4 can carry."""
    interfaces: tuple[str, ...] = ()
    """Names of network interfaces to use, such as `eth0`; empty: all."""
    fwmark: int | None = None
    """SO_MARK of all sockets, for policy routing (Linux, needs CAP_NET_ADMIN)."""
    never_dial: tuple[str, ...] = ()
    """Networks such as `fd00:1234::/32` that are never dialled: a mesh's own tunnel must not carry its peering."""
    accept: "Literal['all', 'known'] | Collection[PeerId] | Callable[[PeerId], bool]" = "all"
    """Who may dial us, decided when the key is proven, before any state exists: `all`; `known`, those in the book that
    somebody here has named; those of a collection; or those for whom a function says so. Whom `Endpoint.block` names
    may not in any case."""
    book_path: "str | PathLike[str] | None" = None
    """File of the address book, so that a restart knows at once whom to dial, and where; None: kept in memory."""
    keep: tuple[str, ...] = ()
    """Tickets of peers to stay connected with, as by `Endpoint.keep`: a book on disk remembers them too, until
    `Endpoint.release`."""
    backoff_cap: float = 120.0
    """Longest pause between two dials of a peer that is kept: somebody who comes back after a night is not to wait."""
    dials_per_second: float = 10.0
    """Dials of the whole endpoint that nobody waits for, so that an outage of ours does not end in a storm: so many for
    lost and kept peers, and as many for better paths. Then n kept peers are back within n / `dials_per_second`: for
    thousands of them let it be n / `backoff_cap` or more."""
    limits: Limits = field(default_factory=Limits)

    def __post_init__(self) -> None:
        """Check what can be checked without opening anything."""
        if not self.transports:
            raise ConfigError("transports is empty: name at least one of " + ", ".join(TRANSPORTS))
        for name in self.transports:
            if name not in TRANSPORTS:
                raise ConfigError(f"unknown transport {name!r}: known are " + ", ".join(TRANSPORTS))
        for network in self.never_dial:
            try:
                ip_network(network, strict=False)
            except ValueError as error:
                raise ConfigError(f"never_dial: {error}") from None
        if isinstance(self.accept, str) and self.accept not in {"all", "known"}:
            raise ConfigError(f"accept must be all, known, keys, or a function, not {self.accept!r}")
        for name in _ABOVE_ZERO:
            if getattr(self, name) <= 0:
                raise ConfigError(f"{name} must be above 0, not {getattr(self, name)}")
        if not MINIMUM_DATAGRAM <= self.largest_datagram <= MAXIMUM_DATAGRAM:
            bounds = f"{MINIMUM_DATAGRAM} to {MAXIMUM_DATAGRAM} bytes"
            raise ConfigError(f"largest_datagram must be {bounds}, not {self.largest_datagram}")
        if self.resume_timeout < 0:
            raise ConfigError(f"resume_timeout must not be negative, but is {self.resume_timeout}")
