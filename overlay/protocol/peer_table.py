"""All peers of an endpoint in their states, with the pauses between dials and the turns that dials take. Pure.

`peer_states.TABLE` says what is to be done; this carries out what concerns time, and hands the rest to the owner:

    dial that a user waits for        at once
    dial that nobody waits for        in its turn: those whom somebody keeps, then sessions of others that linger
    after a dial that failed          a pause: drawn between nothing and a bound that doubles (backoff.py), from 1 s to
                                      the cap, for a session that lingers from 0.25 s to 4 s: it lasts two minutes
    after a dial that succeeded       a second from its begin at least, however soon its connection or session has ended

The turns come from one bucket for the whole endpoint: when the network comes back, 10,000 peers are not one storm.
"""

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from math import inf
from typing import Final

from overlay.protocol.backoff import Backoff
from overlay.protocol.deadlines import Deadlines
from overlay.protocol.dial_turns import DialTurns
from overlay.protocol.peer_states import TABLE, Action, Happening, PeerState

LINGER_FIRST: Final = 0.25
LINGER_CAP: Final = 4.0
"""Seconds between dials for a session that lingers, at most: longer pauses would waste most of its two minutes."""


@dataclass(eq=False, slots=True)
class _Record:
    """One peer. Without a dictionary of its own, as there may be many thousands."""

    since: float
    seen: float
    """When a session was last known to live, or the record was made."""
    state: PeerState = PeerState.FORGOTTEN
    kept: bool = False
    awaited: bool = False
    """A user waits in `connect`."""
    dialling: bool = False
    """A dial is under way."""
    dialled_at: float = -inf
    spared_until: float = -inf
    """Not dialled before, as the last dial succeeded: a peer that accepts and hangs up is not dialled in a circle."""
    backoff: Backoff | None = None
    """What the pauses of this row of failures are drawn from; None after a success."""


class PeerTable:
    """The states of all peers. Inputs are methods named after what has happened; outputs are the last three.

    After each input the owner carries out `take_actions` and sets its timer to `next_timeout`. Times are monotonic, in
    seconds; one that lies before an earlier one counts as that. Inputs about peers that are not remembered are fine.

    Args:
        random: draws from [0, 1), for the pauses.
        cap: the longest pause between dials for a kept peer, in seconds.
        first: the longest that the first one may be, and the least time between dials that succeed, but whose
            connections or sessions end at once.
        rate: dials per second for which nobody waits.
        burst: so many of them may go at once.
        capacity: peers in state KNOWN that are remembered; of more, those that came into it first are forgotten. All
            others are bounded by what they are: kept, waited for, or holders of a session.
        dialable: whether any address of that peer is known; without one no turn is taken, and the dial has failed.
    """

    def __init__(
        self,
        random: Callable[[], float],
        *,
        cap: float = 120.0,
        first: float = 1.0,
        rate: float = 10.0,
        burst: float = 20.0,
        capacity: int = 4096,
        dialable: Callable[[bytes], bool] = lambda _key: True,
    ) -> None:
        self._random = random
        self._cap = cap
        self._first = first
        self._capacity = capacity
        self._dialable = dialable
        self._now = 0.0
        self._records: dict[bytes, _Record] = {}
        self._known: OrderedDict[bytes, None] = OrderedDict()
        """Those in state KNOWN, in the order in which they came into it."""
        self._turns = DialTurns(rate, burst)
        self._pauses = Deadlines()
        self._actions: list[tuple[bytes, Action]] = []

    # ---------------------------------------------------------------- inputs: what users want

    def keep(self, key: bytes, now: float) -> None:
        """Stay connected with it, for ever."""
        record = self._record(key, now)
        if not record.kept:
            record.kept = True
            self._feed(key, record, Happening.WANTED)

    def release(self, key: bytes, now: float) -> None:
        """It is no longer kept. A session that there is goes on."""
        record = self._record(key, now)
        record.kept = False
        if not record.awaited:
            self._feed(key, record, Happening.UNWANTED)

    def want(self, key: bytes, now: float) -> None:
        """A user waits for it: dial at once, whatever has failed before. Once more changes nothing."""
        record = self._record(key, now)
        if record.state is not PeerState.CONNECTED:
            record.awaited = True
        self._feed(key, record, Happening.WANTED)

    def unwant(self, key: bytes, now: float) -> None:
        """No user waits any more: a dial for them only is cancelled."""
        record = self._record(key, now)
        record.awaited = False
        if not record.kept:
            self._feed(key, record, Happening.UNWANTED)

    def kick(self, key: bytes, now: float) -> None:
        """Try it now rather than after its pause, which begins anew: a sign of life, a new address, a user's wish."""
        self._feed(key, self._record(key, now), Happening.KICKED)

    def remove(self, key: bytes, now: float) -> None:
        """Forget it: no dial and no deadline of it is left."""
        self._feed(key, self._record(key, now), Happening.REMOVED)

    # ---------------------------------------------------------------- inputs: what the network does

    def dial_failed(self, key: bytes, now: float) -> None:
        """The dial that was asked for has ended without a connection. One that was cancelled says nothing."""
        record = self._record(key, now)
        if record.dialling:
            record.dialling = False
            # All who waited have been told; who wants it still, says so again.
            record.awaited = False
            self._feed(key, record, self._failure(record))

    def attached(self, key: bytes, now: float, *, dialled: bool) -> None:
        """A connection carries the peer's session.

        Args:
            key: whose.
            now: when.
            dialled: it comes from the dial that was asked for, which is over with it. The peer's own leave ours alone.
        """
        record = self._record(key, now)
        record.awaited = False
        if dialled:
            record.dialling = False
            record.spared_until = record.dialled_at + self._first
        self._feed(key, record, Happening.ATTACHED)

    def lost(self, key: bytes, now: float) -> None:
        """The last connection of its session is gone; the session lingers."""
        self._feed(key, self._record(key, now), Happening.LOST)

    def ended(self, key: bytes, now: float) -> None:
        """Its session is over: closed, replaced or lost for good. Told before the next one is attached."""
        record = self._record(key, now)
        self._feed(key, record, Happening.ENDED_KEPT if record.kept else Happening.ENDED)
        if record.awaited:
            self._feed(key, record, Happening.WANTED)

    def network_changed(self, now: float) -> None:
        """Our own network is another one: try all that wait, those first that were seen last."""
        self._now = max(self._now, now)
        for key, record in sorted(self._records.items(), key=lambda item: item[1].seen, reverse=True):
            self._feed(key, record, Happening.KICKED, hand_out=False)
        self._hand_out()

    def handle_timeout(self, now: float) -> None:
        """Act on every deadline that has passed."""
        self._now = max(self._now, now)
        while (key := self._pauses.pop(self._now)) is not None:
            self._feed(key, self._records[key], Happening.DUE, hand_out=False)
        self._hand_out()

    # ---------------------------------------------------------------- what is the case

    def state(self, key: bytes) -> PeerState:
        """Its state; FORGOTTEN for one that is not remembered."""
        record = self._records.get(key)
        return PeerState.FORGOTTEN if record is None else record.state

    def since(self, key: bytes) -> float | None:
        """When it came into its state; None for one that is not remembered."""
        record = self._records.get(key)
        return None if record is None else record.since

    def due(self, key: bytes) -> float | None:
        """When its pause ends; None: it has none."""
        return self._pauses.get(key)

    # ---------------------------------------------------------------- outputs

    def take_actions(self) -> list[tuple[bytes, Action]]:
        """What the owner has to do, in order: DIAL, CANCEL_DIAL, TELL_CONNECTED, TELL_DISCONNECTED.

        A DIAL ends with `dial_failed`, with `attached(..., dialled=True)`, or with CANCEL_DIAL; there is no second one
        for the same peer before.
        """
        actions, self._actions = self._actions, []
        return actions

    def next_timeout(self) -> float | None:
        """When `handle_timeout` is due; None: nothing waits."""
        deadlines = (self._pauses.next_timeout(), self._turns.next_timeout())
        return min((at for at in deadlines if at is not None), default=None)

    # ---------------------------------------------------------------- helpers

    def _record(self, key: bytes, now: float) -> _Record:
        """Its record, or a new one, which is remembered only if it leaves FORGOTTEN."""
        self._now = max(self._now, now)
        return self._records.get(key) or _Record(self._now, self._now)

    def _feed(self, key: bytes, record: _Record, happening: Happening, *, hand_out: bool = True) -> None:
        before = record.state
        record.state, actions = TABLE[before, happening]
        if record.state is not before:
            record.since = self._now
            self._file(key, record, before)
        for action in actions:
            self._carry_out(key, record, action)
        if hand_out:
            self._hand_out()

    def _file(self, key: bytes, record: _Record, before: PeerState) -> None:
        """Keep the tables in step with a state that has changed."""
        if PeerState.CONNECTED in {before, record.state}:
            record.seen = self._now
        if before is PeerState.FORGOTTEN:
            self._records[key] = record
        elif before is PeerState.KNOWN:
            self._known.pop(key, None)
        if record.state is PeerState.FORGOTTEN:
            del self._records[key]
        elif record.state is PeerState.KNOWN:
            self._known[key] = None
            if len(self._known) > self._capacity:
                oldest = next(iter(self._known))
                self._feed(oldest, self._records[oldest], Happening.REMOVED, hand_out=False)

    def _carry_out(self, key: bytes, record: _Record, action: Action) -> None:
        match action:
            case Action.DIAL:
                self._dial(key, record)
            case Action.CANCEL_DIAL:
                if record.dialling:
                    record.dialling = False
                    self._actions.append((key, action))
            case Action.ARM_BACKOFF:
                if record.backoff is None:
                    lingering = record.state is PeerState.LINGERING
                    limits = (LINGER_FIRST, LINGER_CAP) if lingering else (self._first, self._cap)
                    record.backoff = Backoff(*limits, self._random)
                self._pauses.set(key, max(self._now + record.backoff.next_delay(), record.spared_until))
            case Action.DISARM:
                self._pauses.drop(key)
                self._turns.drop(key)
            case Action.RESET_BACKOFF:
                record.backoff = None
            case Action.TELL_CONNECTED | Action.TELL_DISCONNECTED:
                self._actions.append((key, action))

    def _dial(self, key: bytes, record: _Record) -> None:
        self._pauses.drop(key)
        if record.dialling:
            return
        lingering = record.state is PeerState.LINGERING
        if record.awaited:
            self._turns.drop(key)
            self._start(key, record)
        elif lingering and record.backoff is None and self._now < record.dialled_at + self._first:
            # No dial has failed, so this one follows a success: a peer whose connections end as soon as they stand
            # would take all turns of the endpoint.
            self._turns.drop(key)
            self._pauses.set(key, record.dialled_at + self._first)
        else:
            self._turns.add(key, chosen=record.kept)

    def _start(self, key: bytes, record: _Record) -> None:
        record.dialling = True
        record.dialled_at = self._now
        self._actions.append((key, Action.DIAL))

    def _hand_out(self) -> None:
        """Start the dials whose turn has come."""
        while (key := self._turns.first) is not None:
            record = self._records[key]
            if not self._dialable(key):
                self._turns.drop(key)
                self._feed(key, record, self._failure(record), hand_out=False)
            elif self._turns.take(self._now) is None:
                return
            else:
                self._start(key, record)

    @staticmethod
    def _failure(record: _Record) -> Happening:
        again = record.kept or record.state is PeerState.LINGERING
        return Happening.DIAL_FAILED if again else Happening.GIVEN_UP
