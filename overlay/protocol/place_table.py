"""The bounded table under the address book: which places of which peers there is room for, and what changed. Pure.

Keys cost nothing, and anybody can name places, so every table has a bound, and what others say never displaces what
the user said:

    protected   a peer that is pinned, or has a STATIC place    never displaced, not counted
    chosen      a peer with a place from a TICKET               displaces strangers, then the chosen longest unheard of
    stranger    every other peer                                displaces the stranger longest unheard of

Within a peer, a newcomer displaces the place whose success is longest ago if most of them have worked; else the one
whose source is trusted least, then with most failures, then the oldest, which may be the newcomer itself. So a flood
of claims never takes more than half, and a table full of places that once worked still takes the next one. A STATIC
place is never displaced.
"""

from collections import OrderedDict
from dataclasses import dataclass, field, replace
from enum import IntEnum
from typing import Final

from overlay.protocol.evidence import Evidence, Place, Source

STRANGER_SHARE: Final = 4
"""A stranger may have a quarter of the places of others: 64 for each of 4096 free keys would cost 200 MB."""


class Standing(IntEnum):
    """Who may be displaced, the first ones first."""

    STRANGER = 0
    CHOSEN = 1
    PROTECTED = 2


@dataclass(slots=True)
class Entry:
    """A place and the pause after its failures, which ends with the process."""

    evidence: Evidence
    due: float = 0.0
    """When the pause is over, in wall-clock seconds."""
    tries: int = 0
    """Failures since the pause was last reset."""
    network: str = ""
    """Where it failed: elsewhere it may work at once."""
    epoch: int = 0
    """How often our network had changed by then."""
    stored: bool = False
    """The store has been told of it."""


@dataclass(slots=True)
class Peer:
    """What there is of one peer."""

    entries: dict[Place, Entry] = field(default_factory=dict)
    sequence: int = 0
    """Of its newest record; 0: none."""
    seen: float | None = None
    """Its last sign of life since the start, in wall-clock seconds."""
    standing: Standing = Standing.STRANGER
    """When something was last heard of it: in this queue it stands."""
    stored: bool = False
    """The store has been told of one of its places."""


@dataclass(frozen=True, slots=True)
class Change:
    """What a store has to write: first `removed`, then the rest."""

    upserts: list[tuple[bytes, Place, Evidence]]
    removed: list[tuple[bytes, Place | None]]
    """Place None: nothing is left of that peer, and it is not pinned. What else a store has of it, such as that it is
    blocked, is not the book's."""
    sequences: dict[bytes, int]
    """Of peer records, by key."""


class PlaceTable:
    """Entries by peer and by place.

    Args:
        per_peer: so many places of one peer.
        peers: so many peers that are not protected; those are as many as the user wants.

    Attributes:
        peers: every peer that has an entry. Read only.
        pinned: peers that are protected, whether they have an entry or not. Read only.
    """

    def __init__(self, per_peer: int, peers: int) -> None:
        self.peers: dict[bytes, Peer] = {}
        self.pinned: set[bytes] = set()
        self._per_peer = per_peer
        self._most = peers
        # The one longest unheard of first.
        self._queues: dict[Standing, OrderedDict[bytes, None]] = {one: OrderedDict() for one in Standing}
        self._owners: dict[tuple[str, int], set[bytes]] = {}
        self._changed: dict[tuple[bytes, Place], None] = {}
        # Only of what the store knows, so that it stays small where there is no store that asks.
        self._removed: dict[tuple[bytes, Place | None], None] = {}
        self._sequences: dict[bytes, None] = {}

    def entries(self, key: bytes) -> dict[Place, Entry]:
        """Those of one peer."""
        peer = self.peers.get(key)
        return {} if peer is None else peer.entries

    def owners(self, where: tuple[str, int]) -> set[bytes]:
        """Who has an entry at that host and port, whatever the transport."""
        return set(self._owners.get(where, ()))

    def standing(self, key: bytes) -> Standing:
        """Of a peer, whether it is there or not."""
        sources = {entry.evidence.source for entry in self.entries(key).values()}
        if key in self.pinned or Source.STATIC in sources:
            return Standing.PROTECTED
        return Standing.CHOSEN if Source.TICKET in sources else Standing.STRANGER

    def insert(self, key: bytes, place: Place, evidence: Evidence, *, stored: bool = False) -> bool:
        """Add an entry that is not there yet; whether there was room for it."""
        peer = self.peers.setdefault(key, Peer())
        peer.entries[place] = Entry(evidence, stored=stored)
        peer.stored = peer.stored or stored
        self._owners.setdefault(place[1:], set()).add(key)
        if not stored:
            self._changed[key, place] = None
        self.touch(key)
        bound = self._per_peer
        if peer.standing is Standing.STRANGER:
            bound = max(1, bound // STRANGER_SHARE)
        while len(peer.entries) > bound:
            self.remove(key, _least_useful(peer.entries, place))
        self._make_room()
        return place in self.entries(key)

    def remove(self, key: bytes, place: Place) -> None:
        """Take an entry away; its peer stays, even without any, until `drop`."""
        entries = self.peers[key].entries
        if entries.pop(place).stored:
            self._removed[key, place] = None
        self._changed.pop((key, place), None)
        if not any(one[1:] == place[1:] for one in entries):
            owners = self._owners[place[1:]]
            owners.discard(key)
            if not owners:
                del self._owners[place[1:]]

    def drop(self, key: bytes) -> None:
        """Take a peer away with all that it has."""
        peer = self.peers.get(key)
        if peer is None:
            return
        for place in list(peer.entries):
            self.remove(key, place)
        if peer.stored and key not in self.pinned:
            self._removed[key, None] = None
        del self.peers[key]
        del self._queues[peer.standing][key]
        self._sequences.pop(key, None)

    def touch(self, key: bytes) -> None:
        """Something was heard of this peer: it is the last of its kind to be displaced."""
        peer = self.peers.get(key)
        if peer is None:
            return
        self._queues[peer.standing].pop(key, None)
        peer.standing = self.standing(key)
        self._queues[peer.standing][key] = None

    def pin(self, key: bytes) -> None:
        """Protect a peer, whether it is there already or not."""
        self.pinned.add(key)
        self.touch(key)

    def unpin(self, key: bytes) -> None:
        """The reverse of `pin`."""
        self.pinned.discard(key)
        self.touch(key)
        self._make_room()

    def note(self, key: bytes, place: Place) -> None:
        """An entry's evidence has changed."""
        self._changed[key, place] = None

    def number(self, key: bytes, sequence: int) -> None:
        """The number of a peer's newest record has changed."""
        self.peers[key].sequence = sequence
        self._sequences[key] = None

    def changed(self) -> Change:
        """What is new since the last call."""
        upserts = []
        for key, place in self._changed:
            peer = self.peers[key]
            entry = peer.entries[place]
            peer.stored = entry.stored = True
            upserts.append((key, place, replace(entry.evidence)))
        change = Change(upserts, list(self._removed), {key: self.peers[key].sequence for key in self._sequences})
        self._changed.clear()
        self._removed.clear()
        self._sequences.clear()
        return change

    def _make_room(self) -> None:
        strangers, chosen = self._queues[Standing.STRANGER], self._queues[Standing.CHOSEN]
        while len(strangers) + len(chosen) > self._most:
            self.drop(next(iter(strangers or chosen)))


def _least_useful(entries: dict[Place, Entry], newcomer: Place) -> Place:
    """Which one has to go; of equals the newest, so that a list's own order counts."""
    movable = {
        place: entry.evidence
        for place, entry in reversed(entries.items())
        if entry.evidence.source is not Source.STATIC
    }
    worked = {place: known.last_success for place, known in movable.items() if known.last_success is not None}
    if 2 * len(worked) > len(movable):
        return min(worked, key=lambda place: worked[place])
    return min(
        (place for place in movable if place not in worked),
        key=lambda place: (-movable[place].source.distrust, -movable[place].failures, movable[place].learnt),
        default=newcomer,
    )
