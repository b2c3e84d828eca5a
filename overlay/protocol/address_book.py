"""The mapping from keys to places, many to many, with the evidence for each pair. Pure.

Who may be forgotten, and who displaces whom, is `overlay.protocol.place_table`'s business; what is known of a place,
`overlay.protocol.evidence`'s. Here is what happens to them, and what follows: whom to dial where, and when again.

Transports. A place whose transport is None stands for all transports of its port. What comes of dialling one of them
is written down for that transport, in an entry that is made for it; a success is one of the whole place too.

Clocks. Times are wall-clock seconds. One that jumps back ends a pause instead of prolonging it, and `expire` takes
times in the future back to the present. A jump ahead (a node without a battery gets the time from the network) gives
everything another week to be confirmed.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Final

from overlay.protocol.evidence import DAY, UNCONFIRMED_LIFE, Evidence, Place, Source
from overlay.protocol.place_table import Change, Entry, PlaceTable, Standing

FIRST_PAUSE: Final = 1.0
LONGEST_PAUSE: Final = 120.0
"""Seconds between two attempts at one place; the draw is between nothing and that (full jitter)."""
RENEWAL: Final = 3600.0
"""Places that are named again and again, as by mDNS each minute, are written down once an hour."""
OURSELVES: Final = 256
"""Places that lead back to us: a few per interface and router."""


class AddressBook:
    """Where each peer may be.

    Args:
        random: draws from [0, 1).
        per_peer: so many places of one peer.
        peers: so many peers that are neither pinned nor have a STATIC place; those are as many as the user wants.
    """

    def __init__(self, random: Callable[[], float], *, per_peer: int = 64, peers: int = 4096) -> None:
        self._random = random
        self._table = PlaceTable(per_peer, peers)
        self._ourselves: dict[tuple[str, int], None] = {}
        self._epoch = 0
        self._expired_at: float | None = None
        self._spared_until: float | None = None

    # ---------------------------------------------------------------- what there is

    def keys(self) -> list[bytes]:
        """Every peer of which a place is known."""
        return list(self._table.peers)

    def places(self, key: bytes) -> dict[Place, Evidence]:
        """All places of a peer, with copies of the evidence."""
        return {place: replace(entry.evidence) for place, entry in self._table.entries(key).items()}

    def owners(self, place: Place) -> set[bytes]:
        """Who may be there: many share one address behind a NAT. A transport None matches all, on either side."""
        return {
            key
            for key in self._table.owners(place[1:])
            if any(
                one[1:] == place[1:] and (None in {one[0], place[0]} or one == place)
                for one in self._table.entries(key)
            )
        }

    def is_chosen(self, key: bytes) -> bool:
        """Whether somebody here has named this peer: it is pinned, or has a STATIC place or one from a TICKET."""
        return self._table.standing(key) is not Standing.STRANGER

    def sequence(self, key: bytes) -> int:
        """Of the newest record of this peer; 0: none."""
        return self._table.peers[key].sequence if key in self._table.peers else 0

    def seen(self, key: bytes) -> float | None:
        """When the peer gave its last sign of life, since the start."""
        return self._table.peers[key].seen if key in self._table.peers else None

    def rtt(self, key: bytes) -> float | None:
        """The smallest that is known, in seconds."""
        known = (entry.evidence.rtt for entry in self._table.entries(key).values())
        return min((rtt for rtt in known if rtt is not None), default=None)

    def candidates(self, key: bytes, now: float, *, network: str = "", transports: Sequence[str] = ()) -> list[Place]:
        """What to dial, the most promising first; what has failed just now comes last, and is never left out.

        Args:
            key: whom.
            now: in wall-clock seconds.
            network: on which network of ours we are; empty: unknown.
            transports: which to use, the preferred one first: a place that stands for all of them becomes one for
                each. Empty: all, and such a place stays as it is.
        """
        entries = self._table.entries(key)
        found: dict[Place, Entry] = {}
        for place, entry in entries.items():
            if place[1:] in self._ourselves:
                continue
            for one in _expanded(place, transports):
                if one == place or one not in entries:
                    found[one] = entry
        return sorted(
            found,
            key=lambda place: (self._pauses(found[place], now, network), found[place].evidence.order(network)),
        )

    # ---------------------------------------------------------------- what happens

    def learn(self, key: bytes, place: Place, source: Source, now: float) -> bool:
        """Somebody names a place of a peer; whether that was news.

        Idempotent. A better source counts for what is known already. What leads back to ourselves is no news.
        """
        entry = self._table.entries(key).get(place)
        if entry is None:
            if place[1:] in self._ourselves and source is not Source.STATIC:
                return False
            return self._table.insert(key, place, Evidence(source, now))
        evidence = entry.evidence
        better = source.distrust < evidence.source.distrust
        if better:
            evidence.source = source
        if better or abs(now - evidence.learnt) >= RENEWAL:
            evidence.learnt = now
            self._table.note(key, place)
        self._table.touch(key)
        return False

    def record(self, key: bytes, sequence: int, places: Iterable[Place], now: float) -> bool:
        """The peer's own list of places, verified by the caller, replaces the one before.

        Returns:
            False for a stale one, whose number is not above the last one's: it changes nothing.
        """
        if sequence <= self.sequence(key):
            return False
        named = dict.fromkeys(places)
        for place, entry in list(self._table.entries(key).items()):
            kept = place in named or (None, *place[1:]) in named
            if entry.evidence.source is Source.RECORD and not kept:
                self._table.remove(key, place)
        for place in named:
            self.learn(key, place, Source.RECORD, now)
        if self._table.entries(key):
            self._table.number(key, sequence)
        else:
            self._table.drop(key)
        return True

    def succeeded(self, key: bytes, place: Place, now: float, *, rtt: float | None = None, network: str = "") -> None:
        """A dial reached the peer there. Nothing happens to a place that has been forgotten meanwhile.

        Args:
            key: the peer, as proven by the handshake.
            place: with its transport.
            now: in wall-clock seconds.
            rtt: measured there, in seconds.
            network: which of our own networks was used; empty: unknown.
        """
        if self._outcome(key, place) is None:
            return
        general: Place = (None, *place[1:])
        for one in dict.fromkeys((place, general)):
            entry = self._table.entries(key).get(one)
            if entry is not None:
                entry.evidence.succeeded(now, rtt, network)
                entry.tries, entry.due = 0, 0.0
                self._table.note(key, one)
        self._table.peers[key].seen = now
        self._table.touch(key)

    def failed(self, key: bytes, place: Place, now: float, *, stage: str, network: str = "") -> None:
        """A dial did not reach the peer there, which pauses that place. Arguments as in `succeeded`.

        An attempt that was cancelled, because another one won, has not failed.
        """
        entry = self._outcome(key, place)
        if entry is None:
            return
        if entry.epoch != self._epoch or entry.network != network:
            entry.epoch, entry.network, entry.tries = self._epoch, network, 0
        # The exponent is held: a float ends at two to the power of 1024.
        pause = min(LONGEST_PAUSE, FIRST_PAUSE * 2.0 ** min(entry.tries, 30))
        entry.tries += 1
        entry.due = now + pause * self._random()
        entry.evidence.failed(now, stage)
        self._table.note(key, place)

    def inbound(self, key: bytes, now: float) -> None:
        """The peer gave a sign of life: no place of it pauses any longer."""
        if key not in self._table.peers:
            return
        for entry in self._table.peers[key].entries.values():
            entry.tries, entry.due = 0, 0.0
        self._table.peers[key].seen = now
        self._table.touch(key)

    def ourselves(self, place: Place) -> None:
        """A dial there reached this very endpoint: forgotten at every key, and refused until the network changes.

        All transports of that port are meant, as an endpoint binds them alike. A STATIC place is the user's, and is
        only left out for so long.
        """
        where = place[1:]
        self._ourselves.pop(where, None)
        self._ourselves[where] = None
        if len(self._ourselves) > OURSELVES:
            del self._ourselves[next(iter(self._ourselves))]
        for key in self._table.owners(where):
            for one, entry in list(self._table.entries(key).items()):
                if one[1:] == where and entry.evidence.source is not Source.STATIC:
                    self._table.remove(key, one)
            if not self._table.entries(key):
                self._table.drop(key)

    def network_changed(self) -> None:
        """We are elsewhere: nothing pauses any longer, and what led back to us may lead to others."""
        self._epoch += 1
        self._ourselves.clear()

    # ---------------------------------------------------------------- who stays

    def pin(self, key: bytes) -> None:
        """This peer is never displaced, and never left without a place because time has passed."""
        self._table.pin(key)

    def unpin(self, key: bytes) -> None:
        """The reverse of `pin`."""
        self._table.unpin(key)

    def forget(self, key: bytes) -> None:
        """Nothing is left of this peer, its pin included."""
        self._table.unpin(key)
        self._table.drop(key)

    def expire(self, now: float) -> None:
        """Forget what is too old, see `Evidence.is_stale`. To be called at the start and at least once a day.

        A pinned peer keeps all it has when nothing would be left.
        """
        if self._expired_at is not None and now - self._expired_at > DAY + RENEWAL:
            self._spared_until = now + UNCONFIRMED_LIFE
        self._expired_at = now
        spared = self._spared_until is not None and self._spared_until - UNCONFIRMED_LIFE <= now < self._spared_until
        for key, peer in list(self._table.peers.items()):
            stale = []
            for place, entry in peer.entries.items():
                if entry.evidence.clamp(now):
                    self._table.note(key, place)
                if not spared and entry.evidence.is_stale(now):
                    stale.append(place)
            if len(stale) < len(peer.entries):
                for place in stale:
                    self._table.remove(key, place)
            elif key not in self._table.pinned:
                self._table.drop(key)

    # ---------------------------------------------------------------- for the store

    def changed(self) -> Change:
        """What is new since the last call."""
        return self._table.changed()

    def restore(
        self, rows: Iterable[tuple[bytes, Place, Evidence]], sequences: Mapping[bytes, int] | None = None
    ) -> None:
        """Take over what a store has, before anything is learnt and after `pin`. What does not fit is removed there."""
        for key, place, evidence in sorted(rows, key=lambda row: max(row[2].learnt, row[2].last_success or 0.0)):
            if self._table.insert(key, place, replace(evidence), stored=True):
                self._table.peers[key].sequence = (sequences or {}).get(key, 0)

    # ---------------------------------------------------------------- helpers

    def _pauses(self, entry: Entry, now: float, network: str) -> bool:
        if entry.epoch != self._epoch or entry.network != network or entry.evidence.last_failure is None:
            return False
        # Before the failure: the clock was set back, and nobody knows by how much.
        return entry.evidence.last_failure <= now < entry.due

    def _outcome(self, key: bytes, place: Place) -> Entry | None:
        """The entry for an outcome; one is made for a transport of a place that stands for all."""
        entries = self._table.entries(key)
        general = entries.get((None, *place[1:]))
        if place not in entries and general is not None:
            self._table.insert(key, place, Evidence(general.evidence.source, general.evidence.learnt))
        return self._table.entries(key).get(place)


def _expanded(place: Place, transports: Sequence[str]) -> list[Place]:
    transport, host, port = place
    if not transports:
        return [place]
    return [(name, host, port) for name in transports if transport in {None, name}]
