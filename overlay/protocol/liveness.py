"""Failure is noticed by silence: is this connection still alive? Pure; one object per connection.

A connection is *suspect* when something is outstanding on it (unacknowledged bytes, an unanswered PING, or a frame
that the transport has not confirmed) and the transport has seen no progress, no acknowledgement of what is under way,
for `max(500 ms, 2 PTO)`, or 3 s before the first round-trip sample. That the peer is heard does not clear it: there
are networks that lose in one direction only. Our own lag does not count: a timer that fires late says that *we* were
away. Suspicion costs little (a PING, and one race in the background, while the connection keeps its chance), so it may
be quick; each false alarm doubles the patience.
"""

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Final

from overlay.protocol.keepalive import Keepalive

MINIMUM_SILENCE: Final = 0.5
UNKNOWN_RTT_SILENCE: Final = 3.0
LAG: Final = 0.1
"""A timer this late means that our loop did not run."""
MAX_FALSE_ALARMS: Final = 5
BUSY: Final = 64 * 1024
"""Bytes that have come since the last PING, from which on it is a transfer."""
QUIET: Final = 1.0
"""After so many seconds without the next byte of a transfer, ask. Whoever only receives has nothing outstanding that
could fail to come back; but it may be the one that has moved, and the only one that can dial."""
RECHECK: Final = 0.25
"""How often a suspect is asked whether its transport has seen progress."""


@dataclass(frozen=True, slots=True)
class Progress:
    """What a transport knows of the other end."""

    at: float
    """When the peer last showed that it hears us: see `last_progress` of a transport's connection."""
    probe_timeout: float | None
    """The transport's PTO, in seconds; None before the first sample."""
    received: int = 0
    """Bytes that have come, of frames and streams."""
    rtt_min: float | None = None
    """The least round-trip time of the path, in seconds; None: unknown."""


class Verdict(Enum):
    """What a check found."""

    FINE = "fine"
    SUSPECT = "suspect"
    """Newly suspected."""
    RECOVERED = "recovered"
    """It was suspect, and lives."""
    KEEPALIVE = "keepalive"
    """Idle for so long, or quiet so soon after a transfer, that a PING is due."""
    DEAD = "dead"
    """Silent for the whole idle time."""


class Liveness:
    """Watches one connection.

    Args:
        now: the time of its attach.
        keepalive: says after how many idle seconds a PING is due, and is told whether the path had survived them.
        idle_timeout: silent seconds after which it is dead.
        watch: asks the transport for its progress.
    """

    def __init__(self, now: float, *, keepalive: Keepalive, idle_timeout: float, watch: Callable[[], Progress]) -> None:
        self.suspect = False
        self._watch = watch
        self._keepalive = keepalive
        self._idle_timeout = idle_timeout
        self._outstanding_since: float | None = None
        self._sent_since: float | None = None
        self._sent_at = 0.0
        self._false_alarms = 0
        self._excused = False
        self._stranded = False
        self._suspected_at = 0.0
        self._received = 0
        self._idle: float | None = None
        """Seconds without a packet before the PING that asks now."""
        self._check_at = now + keepalive.interval

    @property
    def next_timeout(self) -> float:
        """When `check` is due."""
        return self._check_at

    def sent(self, now: float) -> None:
        """A frame was sent: something has to come back after it, were it only the transport's acknowledgement.

        Without this, one that only reads would grant its credit into a dead connection and never notice.
        """
        self._sent_at = now
        if self._sent_since is None:
            self._sent_since = now
            self._check_at = min(self._check_at, now + MINIMUM_SILENCE)

    def outstanding(self, waiting: bool, now: float) -> None:
        """Tell whether anything is outstanding: unacknowledged bytes or an unanswered PING."""
        if not waiting:
            self._outstanding_since = None
        elif self._outstanding_since is None:
            self._outstanding_since = now
            # A lower bound is enough here: the check asks the transport and waits on.
            self._check_at = min(self._check_at, now + MINIMUM_SILENCE)

    def heard(self) -> bool:
        """Something arrived; whether that clears a suspicion: what we sent has to arrive as well."""
        if not self.suspect or self._watch().at <= self._suspected_at:
            return False
        self.suspect = False
        self._false_alarms = min(self._false_alarms + 1, MAX_FALSE_ALARMS)
        return True

    def strand(self, now: float) -> None:
        """Our address on it is gone: `check`, due now, suspects it. It may live again, as after any silence."""
        self._stranded = True
        self._check_at = now

    def check(self, now: float) -> Verdict:
        """Judge at `now`; call it when `next_timeout` has come."""
        if self._stranded:
            self._stranded = False
            if not self.suspect:
                return self._suspect(now)
        lag = now - self._check_at
        if lag < 0:
            return Verdict.FINE
        if lag > LAG and not self._excused:
            # What arrived meanwhile stands unread in the sockets: give it a turn, once.
            self._excused = True
            self._check_at = now + min(lag, MINIMUM_SILENCE)
            return Verdict.FINE
        self._excused = False
        progress = self._watch()
        if progress.at > self._sent_at:
            self._sent_since = None
            if self._idle is not None:
                self._keepalive.answered(self._idle, now)
                self._idle = None
        if self.heard():
            self._check_at = now + MINIMUM_SILENCE
            return Verdict.RECOVERED
        waiting = [since for since in (self._outstanding_since, self._sent_since) if since is not None]
        if not waiting:
            busy = progress.received - self._received >= BUSY
            ask_at = progress.at + (QUIET if busy else self._keepalive.interval)
            if now < ask_at:
                self._check_at = ask_at
                return Verdict.FINE
            self._idle = now - progress.at
            self._received = progress.received
            self._check_at = now + MINIMUM_SILENCE
            return Verdict.KEEPALIVE
        silent_since = max(progress.at, min(waiting))
        if now >= silent_since + self._idle_timeout:
            self._check_at = now + self._idle_timeout
            return Verdict.DEAD
        if self.suspect:
            self._check_at = now + RECHECK
            return Verdict.FINE
        patient_until = silent_since + self._patience(progress.probe_timeout)
        if now < patient_until:
            self._check_at = patient_until
            return Verdict.FINE
        if self._idle is not None:
            self._keepalive.failed(self._idle, now)
            self._idle = None
        return self._suspect(now)

    def _suspect(self, now: float) -> Verdict:
        self.suspect = True
        self._suspected_at = now
        self._check_at = now + RECHECK
        return Verdict.SUSPECT

    def _patience(self, probe_timeout: float | None) -> float:
        silence = UNKNOWN_RTT_SILENCE if probe_timeout is None else max(MINIMUM_SILENCE, 2 * probe_timeout)
        return float(silence * 2**self._false_alarms)
