"""The error tree: everything that this library raises on purpose.

    OverlayError
    ├── ConfigError                 we: a setting that cannot work
    ├── IdentityError               we: a key or key file that cannot be used
    ├── StoreError                  we: an address book's file that cannot be used, and what to do about it
    ├── AddressError (ValueError)   we: a string that is no address, ticket or peer id; names the part at fault
    ├── RecordError                 a peer, or whoever handed it on: a list of addresses that is refused
    ├── BusyError                   we: two tasks in the same operation
    ├── EndpointClosed              we: the endpoint is not open
    ├── DialError                   the network: no address worked; holds every attempt
    │   └── WrongIdentity           the peer: somebody else answers at every address that answers
    ├── HandshakeError              one attempt: connected, but not to an acceptable peer
    │   ├── IdentityMismatch        the peer: proved another key than the one dialled
    │   └── SelfDial                we: reached ourselves
    ├── SessionError                what ended a session
    │   ├── SessionClosed           we or the peer closed it; `by_peer` and `code` tell
    │   ├── SessionLost             the network: no connection within the resume time, or the peer gave up
    │   ├── PeerRestarted           the peer: its process started anew
    │   └── SessionRefused          the peer: would not have us; `code` tells why
    │       └── DuplicateIdentity   another living process has our key
    ├── StreamError
    │   ├── StreamReset             the peer: abandoned its sending side; `code`
    │   ├── StreamStopped           the peer: reads no more; `code`
    │   ├── StreamClosed            we: written to or read after our own close
    │   ├── StreamTruncated         the peer: ended before `readexactly` had enough; `partial`
    │   └── UnknownProtocol         the peer: nobody handles that name
    ├── DatagramTooLarge            we: longer than `session.max_datagram_size`
    └── DriverError                 what a driver can't do
        ├── FrameTooLong            we: a frame beyond the limit; `frame`, `limit`
        ├── NotANeighbour           we: a frame for a peer without a session or driver; `frame`, `peer_id`
        └── DriverClosed            we: the driver is not open

Each says who did it. Facts are attributes; the sentence is built in `__str__`; the cause is chained.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from overlay.protocol.codes import CloseCode


class OverlayError(Exception):
    """Base of all errors of this library."""


class ConfigError(OverlayError, ValueError):
    """A setting that cannot work, with what to do about it."""


class IdentityError(OverlayError):
    """A key or key file that cannot be used."""


class StoreError(OverlayError):
    """The file of an address book that cannot be used, with what to do about it."""


class AddressError(OverlayError, ValueError):
    """A string that is no address, ticket or peer id.

    Attributes:
        text: the whole string as given.
        part: the part at fault.
        why: what is wrong with it.
    """

    def __init__(self, text: str, part: str, why: str) -> None:
        super().__init__(text, part, why)
        self.text = text
        self.part = part
        self.why = why

    def __str__(self) -> str:
        """One sentence that names the part at fault."""
        where = "" if self.part == self.text else f" in {self.text!r}"
        return f"{self.part!r}{where}: {self.why}"


class RecordError(OverlayError):
    """A peer record that is refused.

    Attributes:
        kind: `garbage`: no record; `oversized`: more than a record may hold; `forged`: not signed by its key; `stale`:
            a newer one is known; `foreign`: of a peer that nobody here knows.
        why: what is wrong with it.
    """

    def __init__(self, kind: Literal["garbage", "oversized", "forged", "stale", "foreign"], why: str) -> None:
        super().__init__(kind, why)
        self.kind = kind
        self.why = why

    def __str__(self) -> str:
        """One sentence."""
        return f"{self.kind} peer record: {self.why}"


class BusyError(OverlayError):
    """Two tasks are in the same operation of one object; the second one gets this."""


class EndpointClosed(OverlayError):
    """The endpoint has not been entered, or is closed."""


@dataclass(frozen=True, slots=True)
class Attempt:
    """One address that a dial tried."""

    address: str
    stage: str
    """`resolve`, `connect`, `handshake` or `hello`: how far it came."""
    cause: BaseException
    milliseconds: float
    """From this attempt's start to its end."""

    def __str__(self) -> str:
        """One line."""
        text = str(self.cause) or type(self.cause).__name__
        return f"{self.address}: {self.stage} failed after {self.milliseconds:.0f} ms: {text}"


class DialError(OverlayError):
    """No address of the peer could be reached.

    Attributes:
        peer: the key that was dialled, printed.
        attempts: every address that was tried.
    """

    def __init__(self, peer: str, attempts: Sequence[Attempt], why: str = "") -> None:
        super().__init__(peer, attempts, why)
        self.peer = peer
        self.attempts = tuple(attempts)
        self.why = why

    def __str__(self) -> str:
        """The reason, then a line for each attempt."""
        head = f"cannot reach {self.peer}" + (f": {self.why}" if self.why else "")
        return "\n  ".join((head, *map(str, self.attempts)))


class WrongIdentity(DialError):
    """Every address that answered proved another key than the one dialled."""


class HandshakeError(OverlayError):
    """A connection that came up, but not to an acceptable peer."""

    def __init__(self, why: str, code: CloseCode = CloseCode.UNAUTHENTICATED) -> None:
        super().__init__(why)
        self.code = code


class IdentityMismatch(HandshakeError):
    """The peer proved another key than the one dialled."""


class SelfDial(HandshakeError):
    """The address leads back to ourselves."""


class SessionError(OverlayError):
    """What ended a session; its streams fail with the same error."""


class SessionClosed(SessionError):
    """The session was closed on purpose.

    Attributes:
        by_peer: who closed it.
        code: SESSION_CLOSED, or MISBEHAVED: the other side broke the rules of what is spoken on the streams.
        reason: in the words of who closed it.
    """

    def __init__(self, *, by_peer: bool, code: CloseCode = CloseCode.SESSION_CLOSED, reason: str = "") -> None:
        super().__init__(by_peer, code, reason)
        self.by_peer = by_peer
        self.code = code
        self.reason = reason

    def __str__(self) -> str:
        """Who closed it, and why."""
        who = "the peer" if self.by_peer else "this side"
        code = "" if self.code == CloseCode.SESSION_CLOSED else f" ({self.code.name})"
        return f"the session was closed by {who}{code}" + (f": {self.reason}" if self.reason else "")


class SessionLost(SessionError):
    """No connection came back within the resume time, or the peer has forgotten the session."""


class PeerRestarted(SessionError):
    """The peer's process started anew: what it held of this session is gone."""


class SessionRefused(SessionError):
    """The peer would not have us."""

    def __init__(self, code: int, reason: str = "") -> None:
        super().__init__(code, reason)
        self.code = code
        self.reason = reason

    def __str__(self) -> str:
        """The code's name and the peer's reason."""
        try:
            name = CloseCode(self.code).name
        except ValueError:
            name = f"code {self.code}"
        return f"the peer refused the session ({name})" + (f": {self.reason}" if self.reason else "")


class DuplicateIdentity(SessionRefused):
    """Another living process uses our key: give each process its own."""


class StreamError(OverlayError):
    """What ended a stream."""


class StreamReset(StreamError):
    """The peer abandoned its sending side: what it had not delivered is lost."""

    def __init__(self, code: int) -> None:
        super().__init__(code)
        self.code = code

    def __str__(self) -> str:
        """The code."""
        return f"the peer reset the stream (code {self.code})"


class StreamStopped(StreamError):
    """The peer reads no more."""

    def __init__(self, code: int) -> None:
        super().__init__(code)
        self.code = code

    def __str__(self) -> str:
        """The code."""
        return f"the peer stopped reading the stream (code {self.code})"


class StreamClosed(StreamError):
    """This side has already ended that direction of the stream."""


class StreamTruncated(StreamError, EOFError):
    """The stream ended before enough bytes came.

    Attributes:
        partial: the bytes that did come.
    """

    def __init__(self, partial: bytes, expected: int) -> None:
        super().__init__(partial, expected)
        self.partial = partial
        self.expected = expected

    def __str__(self) -> str:
        """How many of how many."""
        return f"the stream ended after {len(self.partial)} of {self.expected} bytes"


class UnknownProtocol(StreamError):
    """Nobody at the peer handles the protocol that the stream was opened for."""


class DatagramTooLarge(OverlayError, ValueError):
    """The datagram is longer than the path carries.

    Attributes:
        limit: `session.max_datagram_size` at that moment, in bytes.
    """

    def __init__(self, size: int, limit: int) -> None:
        super().__init__(size, limit)
        self.size = size
        self.limit = limit

    def __str__(self) -> str:
        """Both sizes."""
        return f"a datagram of {self.size} bytes does not fit: the limit is {self.limit}"


class DriverError(OverlayError):
    """What a `Driver` can't do; errors about a frame hold it."""


class FrameTooLong(DriverError, ValueError):
    """A frame that is longer than the driver sends, or than the peer's driver takes. Nothing of it was sent.

    Attributes:
        frame: the frame.
        limit: bytes of the longest one that may go there.
    """

    def __init__(self, frame: bytes, limit: int) -> None:
        super().__init__(frame, limit)
        self.frame = frame
        self.limit = limit

    def __str__(self) -> str:
        """Both sizes."""
        return f"a frame of {len(self.frame)} bytes is too long: the limit is {self.limit}"


class NotANeighbour(DriverError):
    """There is no session with that peer, or no driver there.

    Attributes:
        peer_id: the key.
        frame: what was to be sent; None when it was something else that was asked.
        connected: whether there is a session, so that it is a driver that is missing there.
    """

    def __init__(self, peer_id: object, frame: bytes | None = None, *, connected: bool = False) -> None:
        super().__init__(peer_id, frame)
        self.peer_id = peer_id
        self.frame = frame
        self.connected = connected

    def __str__(self) -> str:
        """Who, and what to do."""
        if self.connected:
            return f"{self.peer_id} is connected, but runs no driver, or not yet: wait for NeighbourUp"
        return f"{self.peer_id} is no neighbour: start_peering(ticket), and wait for NeighbourUp"


class DriverClosed(DriverError):
    """The driver has not been entered, or is closed."""
