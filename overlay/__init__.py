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
    DuplicateIdentity,
    EndpointClosed,
    HandshakeError,
    IdentityError,
    IdentityMismatch,
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
from overlay.events import Origin, Path, PathChanged, PathLost, PeerConnected, PeerDisconnected, SessionReplaced
from overlay.identity import Identity, PeerId
from overlay.protocol.stream import Priority
from overlay.records import PeerRecord
from overlay.session import Session
from overlay.status import AddressStatus, PeerStatus
from overlay.streams import Stream

__version__ = "0.1.0"

__all__ = [
    "Address",
    "AddressError",
    "AddressStatus",
    "Attempt",
    "BusyError",
    "Config",
    "ConfigError",
    "DatagramTooLarge",
    "DialError",
    "DuplicateIdentity",
    "Endpoint",
    "EndpointClosed",
    "HandshakeError",
    "Identity",
    "IdentityError",
    "IdentityMismatch",
    "Limits",
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
    "UnknownProtocol",
    "WrongIdentity",
    "__version__",
]
