"""The states of a handshake, how it ends, and what it needs of TLS."""

from enum import Enum
from typing import Final, Protocol, TypeVar

Peer = TypeVar("Peer", covariant=True)  # noqa: PLC0105 - it is the name of what it stands for: who was proven


class State(Enum):
    """How far a handshake is."""

    KNOCKING = "the dialler has no cookie yet"
    SHAKING = "TLS is under way"
    PROVEN = "the peer's key is proven and packets can be sealed; a dialler does not know yet whether it is accepted"
    CONFIRMED = "both know that both have accepted; nothing more is sent or read here"
    FAILED = "there will be no connection"


class Event(Enum):
    """What moves a handshake on."""

    COOKIE = "a cookie came"
    KEY_PROVEN = "TLS is done"
    CONFIRMED = "the peer has sealed something that only a peer that is done says"
    FAILURE = "one side has refused the other, or given up"


TRANSITIONS: Final[dict[State, dict[Event, State]]] = {
    State.KNOCKING: {Event.COOKIE: State.SHAKING, Event.FAILURE: State.FAILED},
    State.SHAKING: {Event.COOKIE: State.SHAKING, Event.KEY_PROVEN: State.PROVEN, Event.FAILURE: State.FAILED},
    State.PROVEN: {Event.CONFIRMED: State.CONFIRMED, Event.FAILURE: State.FAILED},
    State.CONFIRMED: {Event.CONFIRMED: State.CONFIRMED},
    State.FAILED: {},
}
"""A missing event is a mistake of the caller's."""


class HandshakeClosed(Exception):
    """One side has ended the handshake.

    Attributes:
        code: a `CloseCode`, or a number that this version does not know.
        reason: the peer's words.
        by_peer: whether it was the peer.
    """

    def __init__(self, code: int, reason: str = "", *, by_peer: bool) -> None:
        super().__init__(code, reason, by_peer)
        self.code = code
        self.reason = reason
        self.by_peer = by_peer

    def __str__(self) -> str:
        """Who, and why."""
        who = "the peer" if self.by_peer else "this side"
        return f"the handshake was ended by {who} (code {self.code})" + (f": {self.reason}" if self.reason else "")


class Exporter(Protocol):
    """What is needed of the TLS connection itself."""

    def export_keying_material(self, label: bytes, olen: int, context: bytes | None = None) -> bytes:
        """Secrets that both sides have, and nobody else (RFC 8446 section 7.5)."""

    def get_cipher_name(self) -> str | None:
        """The cipher suite that was agreed on."""


class Tls(Protocol[Peer]):
    """A TLS handshake over memory: bytes in, bytes out, and the key that the peer has proven."""

    @property
    def ssl(self) -> Exporter:
        """The connection below."""

    def receive_data(self, data: bytes) -> Peer | None:
        """Go on with `data`, empty for the dialler's first step; returns what is proven, or raises why not."""

    def data_to_send(self) -> bytes:
        """What is to be sent now."""
