"""The connections to one peer: where each stands, which of them carry the session, and which one is sent on. Pure.

`MAY_COME` has the frames that may come in each phase. What a CHALLENGED connection brings of the session is held, up
to 64 KiB, until the verdict; so are the pieces of streams that overtake HELLO or ACCEPT on QUIC. A DRAINING one is
sent nothing new. What was under way on a CLOSED one is ignored.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum
from typing import Final

from overlay.protocol.budget import Budget
from overlay.protocol.codes import CloseCode
from overlay.protocol.frames import (
    MINIMUM_STREAMS,
    MINIMUM_WINDOW,
    Accept,
    Event,
    Fin,
    Gone,
    Hello,
    Ping,
    Pong,
    ProtocolViolation,
    Reset,
    Retire,
    Stop,
    StreamData,
    Streams,
    Sync,
    Window,
    encode,
)
from overlay.protocol.liveness import Liveness, Progress
from overlay.protocol.selection import Candidate, select, surplus
from overlay.protocol.session import SessionCore, SessionEvent

HELD_BYTES: Final = MINIMUM_STREAMS * MINIMUM_WINDOW
"""Stream bytes that may be sent before it is known that the other side has judged the connection."""
HELD_EVENTS: Final = 1024
"""Frames and pieces that are held until then: the bytes alone would allow 65,536 objects of one byte each."""
EARLY_PIECES: Final = 256
"""Pieces that are sent until then; a network may cut each 64 KiB of them into some 60 more."""
MAX_INBOUND: Final = 32
"""Open connections that one peer may have dialled: far more than there are transports and address families."""
DRAIN_TIMEOUT: Final = 5.0
"""How long a retired connection may deliver what is under way."""
VERDICT_TIMEOUT: Final = 1.0
"""How long the old connections of a peer that seems to have restarted may take to answer, at least."""


class Phase(Enum):
    """Where a connection stands."""

    AWAIT_HELLO = "await hello"
    AWAIT_ACCEPT = "await accept"
    CHALLENGED = "challenged"
    ATTACHED = "attached"
    DRAINING = "draining"
    CLOSED = "closed"


ACTIVE: Final = frozenset({Phase.ATTACHED, Phase.DRAINING})

_OF_SESSION: Final[frozenset[type[Event]]] = frozenset({StreamData, Window, Streams, Fin, Reset, Stop, Gone, Sync})
MAY_COME: Final[dict[Phase, frozenset[type[Event]]]] = {
    Phase.AWAIT_HELLO: frozenset({Hello, StreamData}),
    Phase.AWAIT_ACCEPT: frozenset({Accept, Ping, StreamData}),
    Phase.CHALLENGED: _OF_SESSION | {Ping, Pong},
    Phase.ATTACHED: _OF_SESSION | {Ping, Pong, Retire},
    Phase.DRAINING: _OF_SESSION | {Ping, Pong, Retire},
    Phase.CLOSED: frozenset(),
}


@dataclass(eq=False, slots=True)
class SessionState:
    """A session and its names."""

    core: SessionCore
    budget: Budget
    mine: int
    linger: float
    """Seconds that it outlives its last connection: the smaller of both wishes."""
    theirs: int = 0
    process: int = 0
    connected: bool = False
    """An ACCEPT was read or written."""
    linger_until: float | None = None
    early: bool = False
    """Bytes may be sent behind HELLO."""
    handle: object | None = None
    """The shell's object for it."""


@dataclass(eq=False, slots=True)
class Link:
    """A connection as the core sees it."""

    id: int
    kind: tuple[str, int]
    rank: int
    dialled_by_us: bool
    watch: Callable[[], Progress]
    phase: Phase
    dial: int = 0
    session: SessionState | None = None
    hello: Hello | None = None
    frames: list[bytes] = field(default_factory=list)
    spoke: bool = False
    """Frames were handed out since the last `update`."""
    deadline: float | None = None
    liveness: Liveness | None = None
    pings: dict[int, float] = field(default_factory=dict)
    nonce: int = 0
    proven: bool = False
    """Echoed the nonce of our challenge."""
    asked: SessionState | None = None
    """The session whose connections were asked whether they live."""
    asked_at: float = 0.0
    held: list[SessionEvent] = field(default_factory=list)
    held_bytes: int = 0
    early_bytes: int = 0
    """Stream bytes that were sent before the peer was known to have judged this connection."""
    early_pieces: int = 0
    acknowledged: dict[int, int] = field(default_factory=dict)
    synced: bool = False
    forsaken: bool = False
    """Silent, and what it carried was sent again elsewhere."""
    retire_sent: bool = False
    retired_by_peer: bool = False

    @property
    def suspect(self) -> bool:
        """Whether it is silent."""
        return self.liveness is not None and self.liveness.suspect

    @property
    def early(self) -> bool:
        """Whether the peer may have to hold what is sent here: it has not shown that it knows the outcome."""
        return not self.synced and (not self.dialled_by_us or self.phase is Phase.AWAIT_ACCEPT)

    @property
    def allowance(self) -> int:
        """How many stream bytes may be sent while `early`."""
        return HELD_BYTES - self.early_bytes if self.early_pieces < EARLY_PIECES else 0

    def expect(self, event: Event) -> None:
        """Check that it may come now.

        Raises:
            ProtocolViolation: it may not.
        """
        if type(event) not in MAY_COME[self.phase]:
            raise ProtocolViolation(CloseCode.STATE_ERROR, f"{type(event).__name__} while {self.phase.value}")

    def hold(self, event: SessionEvent) -> None:
        """Keep what came before the verdict.

        Raises:
            ProtocolViolation: it is more than anybody may send before.
        """
        if isinstance(event, StreamData):
            self.held_bytes += len(event.data)
        if self.held_bytes > HELD_BYTES or len(self.held) >= HELD_EVENTS:
            raise ProtocolViolation(CloseCode.FLOW_CONTROL_ERROR, "too much before the connection is accepted")
        self.held.append(event)

    def ping(self, nonce: int, now: float) -> int:
        """Ask whether the peer lives; the nonce."""
        self.pings[nonce] = now
        self.frames.append(encode(Ping(nonce)))
        return nonce

    def update(self, in_flight: bool, now: float) -> None:
        """Tell the watch what is outstanding."""
        if self.liveness is None:
            return
        if self.spoke:
            self.spoke = False
            self.liveness.sent(now)
        self.liveness.outstanding(in_flight or bool(self.pings), now)


class Links:
    """All connections to one peer, by number.

    Args:
        smaller: whether our key is the smaller one.
    """

    def __init__(self, *, smaller: bool) -> None:
        self.all: dict[int, Link] = {}
        self.selected: Link | None = None
        self._smaller = smaller

    @property
    def crowded(self) -> bool:
        """Whether more than MAX_INBOUND that the peer has dialled are open."""
        inbound = sum(not link.dialled_by_us and link.phase is not Phase.CLOSED for link in self.all.values())
        return inbound > MAX_INBOUND

    def carrying(self, session: SessionState | None) -> list[Link]:
        """Those that carry the session, draining ones too."""
        return [link for link in self.all.values() if link.phase in ACTIVE and link.session is session]

    def answering(self, session: SessionState) -> bool:
        """Whether the other end of the session has shown itself on one of them, and is not silent."""
        return any(link.synced and not link.suspect for link in self.carrying(session))

    def reselect(self, session: SessionState | None) -> None:
        """Choose the one to send on."""
        chosen = select(map(self._candidate, self.carrying(session)))
        if chosen is not None:
            self.selected = self.all[chosen]
            # For want of a better one even a silent connection is sent on: that has to be forsaken anew.
            self.selected.forsaken = False
        elif session is not None and session.early and not session.connected:
            waiting = (one for one in self.all.values() if one.phase is Phase.AWAIT_ACCEPT and one.session is session)
            self.selected = next(waiting, None)
        else:
            self.selected = None

    def takes_datagrams(self, connection: int) -> bool:
        """Whether the peer is known to have that connection carry the session: before, it drops datagrams.

        On QUIC and raw UDP they would overtake the ACCEPT in front of them.
        """
        link = self.all.get(connection)
        return link is not None and link.phase in ACTIVE and not link.early

    def surplus(self, session: SessionState | None) -> list[Link]:
        """Those to retire: only the side with the smaller key does."""
        if not self._smaller:
            return []
        return [self.all[one] for one in surplus(map(self._candidate, self.carrying(session)))]

    def next_timeout(self) -> float | None:
        """The next deadline of any."""
        deadlines = [link.deadline for link in self.all.values() if link.deadline is not None]
        deadlines += [link.liveness.next_timeout for link in self.all.values() if link.liveness is not None]
        return min(deadlines, default=None)

    def _candidate(self, link: Link) -> Candidate:
        return Candidate(
            link.id,
            link.kind,
            link.rank,
            dialled_by_smaller=link.dialled_by_us == self._smaller,
            dial=link.dial,
            suspect=link.suspect,
            draining=link.phase is Phase.DRAINING,
        )
