"""What an endpoint knows about its peers at one moment: what `overlay peers` shows."""

from dataclasses import dataclass

from overlay.addresses import Address
from overlay.events import Path
from overlay.identity import PeerId


@dataclass(frozen=True, slots=True)
class AddressStatus:
    """One place where a peer may be, with the evidence for it. A snapshot."""

    address: Address
    source: str
    """From where it is known, by its most trusted origin: `static`, `ticket`, `record`, `inbound` and so on."""
    learnt: float
    """When, in seconds since 1970."""
    last_success: float | None
    """When a connection there last worked, in seconds since 1970; None: never."""
    last_failure: float | None
    """When an attempt there last failed, in seconds since 1970; None: never."""
    successes: int
    """In all."""
    failures: int
    """In a row: a success sets it to 0."""
    stage: str
    """How far the last failed attempt came: `resolve`, `connect`, `handshake` or `hello`; empty without one."""
    rtt: float | None
    """Round-trip time in seconds; None before the first one was measured."""


@dataclass(frozen=True, slots=True)
class PeerStatus:
    """One peer: its state, its paths, its addresses. A snapshot."""

    peer_id: PeerId
    name: str
    """What its user calls it; empty: nothing."""
    state: str
    """`known`, `dialling`, `connected`, `lingering` or `backing off`."""
    kept: bool
    """The endpoint stays connected to it, for ever."""
    blocked: bool
    """It is refused, and never dialled."""
    since: float | None
    """How long it has been in this state, in seconds; None: only the book knows it."""
    next_dial: float | None
    """When it is dialled next, in seconds from now; None: no dial is planned."""
    paths: tuple[Path, ...]
    """Its connections, the selected one first."""
    addresses: tuple[AddressStatus, ...]
    """Where it may be, in the order in which they would be dialled."""
