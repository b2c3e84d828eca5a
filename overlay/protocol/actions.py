"""What `PeerCore` asks its shell to do and to tell, and its settings."""

from dataclasses import dataclass
from enum import Enum

from overlay.protocol.codes import CloseCode
from overlay.protocol.keepalive import Keepalive
from overlay.protocol.links import SessionState


class Ending(Enum):
    """Why a session is over."""

    CLOSED_BY_US = "closed by us"
    CLOSED_BY_PEER = "closed by the peer"
    EXPIRED = "no connection within the resume time"
    GONE = "the peer has given it up"
    RESTARTED = "the peer has restarted"
    REFUSED = "the peer refuses us"


@dataclass(frozen=True, slots=True)
class Attached:
    """A connection carries the session from now on."""

    connection: int
    session: SessionState


@dataclass(frozen=True, slots=True)
class Suspected:
    """A connection is silent: race for a replacement."""

    connection: int


@dataclass(frozen=True, slots=True)
class Recovered:
    """A suspected connection lives."""

    connection: int


@dataclass(frozen=True, slots=True)
class Lingering:
    """The session has lost its last connection."""

    session: SessionState


@dataclass(frozen=True, slots=True)
class Ended:
    """The session is over; its streams fail."""

    session: SessionState
    why: Ending
    code: int = 0
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Answered:
    """A PING was answered."""

    connection: int
    nonce: int
    seconds: float


@dataclass(frozen=True, slots=True)
class CloseConnection:
    """Close that connection, and tell its peer why."""

    connection: int
    code: CloseCode
    reason: str


Action = Attached | Suspected | Recovered | Lingering | Ended | Answered | CloseConnection


@dataclass(frozen=True, slots=True)
class PeerSettings:
    """Times in seconds."""

    linger: float = 120.0
    handshake_timeout: float = 20.0
    keepalive: float = 15.0
    """To begin with; it adapts to what the path survives, up to five sixths of the idle time-out."""
    idle_timeout: float = 30.0

    def new_keepalive(self) -> Keepalive:
        """For a path of which nothing is known."""
        return Keepalive(self.keepalive, most=max(self.keepalive, self.idle_timeout * 5 / 6))
