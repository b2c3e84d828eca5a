"""What is known of one place where a peer may be: who named it, and what came of dialling it. Pure.

A place is evidence, never identity: only a handshake proves who is there. All times are wall-clock seconds, because
they outlive the process. Such a clock may jump: `Evidence.clamp` takes back to the present what lies in the future, so
that nothing lives for ever on the word of a clock that was wrong.
"""

from dataclasses import dataclass
from enum import StrEnum
from typing import Final, Self

Place = tuple[str | None, str, int]
"""Transport (None: all of them), canonical host, port, as `overlay.addresses.Address` has them."""

DAY: Final = 86_400.0
UNCONFIRMED_LIFE: Final = 7 * DAY
"""For places that never worked: who is away for a week gets a new ticket, or is heard again."""
CONFIRMED_LIFE: Final = 90 * DAY
"""After the last success: long enough for a node that is switched on once in a season."""
RTT_SHARE: Final = 1 / 8
"""Weight of a slower sample (RFC 6298 section 2.3); a faster one counts at once, as delay only ever adds."""


class Source(StrEnum):
    """Who named the place; the most trusted first."""

    STATIC = "static"
    """The user, for ever."""
    TICKET = "ticket"
    """The user, once."""
    RECORD = "record"
    """The peer itself, signed with its key."""
    PORT_MAPPING = "port-mapping"
    """Our own router, for us."""
    MDNS = "mdns"
    """Somebody on the local network."""
    INBOUND = "inbound"
    """They dialled us from there."""
    OBSERVED = "observed"
    """Learnt from a connection."""

    distrust: int
    """0 for the most trusted."""

    def __new__(cls, value: str) -> Self:
        """Number them; a table by source would be asked for each place of each dial, and enums are slow to hash."""
        source = str.__new__(cls, value)
        source._value_ = value
        source.distrust = len(cls.__members__)
        return source


@dataclass(slots=True)
class Evidence:
    """All that is known of one place of one peer; None: never happened."""

    source: Source
    """The best that named it so far."""
    learnt: float
    """When it was last named, to the hour."""
    first_success: float | None = None
    last_success: float | None = None
    first_failure: float | None = None
    """Where the last row of failures began."""
    last_failure: float | None = None
    successes: int = 0
    failures: int = 0
    """In a row, up to now."""
    stage: str = ""
    """How far the last failure came, as in `overlay.errors.Attempt`; empty after a success."""
    rtt: float | None = None
    """Seconds; follows the smallest samples."""
    network: str = ""
    """Which network of ours was used at the last success; empty: unknown."""

    def succeeded(self, now: float, rtt: float | None, network: str) -> None:
        """A connection to this peer came up there."""
        if self.first_success is None:
            self.first_success = now
        self.last_success = now
        self.successes += 1
        self.failures = 0
        self.stage = ""
        self.network = network
        if rtt is not None:
            self.rtt = rtt if self.rtt is None or rtt < self.rtt else self.rtt + RTT_SHARE * (rtt - self.rtt)

    def failed(self, now: float, stage: str) -> None:
        """An attempt came to nothing."""
        if not self.failures:
            self.first_failure = now
        self.last_failure = now
        self.failures += 1
        self.stage = stage

    def order(self, network: str) -> tuple[bool, bool, float, int, int]:
        """A key for sorting, the most promising first.

        What worked on this very network, then what worked last, then who named it, then fewer failures. One success
        elsewhere is enough to overtake a place that was good once, so nothing has to weigh one against the other.
        """
        last = self.last_success
        here = last is not None and bool(network) and self.network == network
        return not here, last is None, -(last or 0.0), self.source.distrust, self.failures

    def is_stale(self, now: float) -> bool:
        """Whether it is time to forget it; what the user has configured never is."""
        if self.source is Source.STATIC or now - self.learnt <= UNCONFIRMED_LIFE:
            return False
        return self.last_success is None or now - self.last_success > CONFIRMED_LIFE

    def clamp(self, now: float) -> bool:
        """Take times that lie in the future back to the present; whether there were any."""
        moved = False
        for name in _TIMES:
            value = getattr(self, name)
            if value is not None and value > now:
                setattr(self, name, now)
                moved = True
        return moved


_TIMES: Final = ("learnt", "first_success", "last_success", "first_failure", "last_failure")
