"""Reliable, multiplexed, encrypted streams to an ed25519 public key instead of an address."""

from overlay.addresses import Address, Ticket
from overlay.config import Config, Limits
from overlay.endpoint import Endpoint
from overlay.errors import (
    AddressError,
    Attempt,
    BusyError,
    ConfigError,
    DatagramTooLarge,
    DialError,
    DriverClosed,
    DriverError,
    DuplicateIdentity,
    EndpointClosed,
    FrameTooLong,
    HandshakeError,
    IdentityError,
    IdentityMismatch,
    NotANeighbour,
    OverlayError,
    PeerRestarted,
    RecordError,
    SelfDial,
    SessionClosed,
    SessionError,
    SessionLost,
    SessionRefused,
    StoreError,
    StreamClosed,
    StreamError,
    StreamReset,
    StreamStopped,
    StreamTruncated,
    UnknownProtocol,
    WrongIdentity,
)
from overlay.events import (
    NeighbourDown,
    NeighbourUp,
    Origin,
    Path,
    PathChanged,
    PathLost,
    PeerConnected,
    PeerDisconnected,
    SessionReplaced,
)
from overlay.identity import Identity, PeerId
from overlay.metrics import DriverStatus, Metrics
from overlay.protocol.driver.outbox import Reason
from overlay.protocol.stream import Priority
from overlay.receiver import Received
from overlay.records import PeerRecord
from overlay.router import FLOOD, Driver
from overlay.session import Session
from overlay.status import AddressStatus, PeerStatus
from overlay.streams import Stream
from overlay.undelivered import Undelivered

__version__ = "0.1.0"

__all__ = [
    "FLOOD",
    "Address",
    "AddressError",
    "AddressStatus",
    "Attempt",
    "BusyError",
    "Config",
    "ConfigError",
    "DatagramTooLarge",
    "DialError",
    "Driver",
    "DriverClosed",
    "DriverError",
    "DriverStatus",
    "DuplicateIdentity",
    "Endpoint",
    "EndpointClosed",
    "FrameTooLong",
    "HandshakeError",
    "Identity",
    "IdentityError",
    "IdentityMismatch",
    "Limits",
    "Metrics",
    "NeighbourDown",
    "NeighbourUp",
    "NotANeighbour",
    "Origin",
    "OverlayError",
    "Path",
    "PathChanged",
    "PathLost",
    "PeerConnected",
    "PeerDisconnected",
    "PeerId",
    "PeerRecord",
    "PeerRestarted",
    "PeerStatus",
    "Priority",
    "Reason",
    "Received",
    "RecordError",
    "SelfDial",
    "Session",
    "SessionClosed",
    "SessionError",
    "SessionLost",
    "SessionRefused",
    "SessionReplaced",
    "StoreError",
    "Stream",
    "StreamClosed",
    "StreamError",
    "StreamReset",
    "StreamStopped",
    "StreamTruncated",
    "Ticket",
    "Undelivered",
    "UnknownProtocol",
    "WrongIdentity",
    "__version__",
]
