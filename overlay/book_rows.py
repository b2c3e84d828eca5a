"""What outlives a run: rows about places and about peers, and the changes to them that wait to be written."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from types import NoneType
from typing import Final, Self

from overlay.protocol.evidence import Evidence, Place, Source

KEY_BYTES: Final = 32
MOST_TEXT: Final = 1024
"""Characters of a text; the longest name of a host has 253."""


@dataclass(frozen=True, slots=True)
class Row:
    """One place where one peer may be, with the fields of `Evidence`. Times in seconds since 1970; None: never.

    Raises:
        ValueError: a value that cannot be stored, or makes no sense.
    """

    key: bytes
    transport: str | None
    host: str
    port: int
    source: str
    learnt: float
    first_success: float | None = None
    last_success: float | None = None
    first_failure: float | None = None
    last_failure: float | None = None
    successes: int = 0
    failures: int = 0
    stage: str = ""
    rtt: float | None = None
    """In seconds."""
    network: str = ""

    def __post_init__(self) -> None:
        """Refuse what a file cannot hold: one such row would keep all others from being written."""
        _check(self, _ROW)
        if not 1 <= self.port <= 65535:
            raise ValueError(f"port is {self.port}, not 1 to 65535")
        Source(self.source)

    @classmethod
    def of(cls, key: bytes, place: Place, evidence: Evidence) -> Self:
        """The row for what the book knows."""
        return cls(
            key,
            *place,
            str(evidence.source),
            evidence.learnt,
            evidence.first_success,
            evidence.last_success,
            evidence.first_failure,
            evidence.last_failure,
            evidence.successes,
            evidence.failures,
            evidence.stage,
            evidence.rtt,
            evidence.network,
        )

    @property
    def place(self) -> Place:
        """Where it is."""
        return self.transport, self.host, self.port

    @property
    def evidence(self) -> Evidence:
        """A copy for the book."""
        return Evidence(
            Source(self.source),
            self.learnt,
            self.first_success,
            self.last_success,
            self.first_failure,
            self.last_failure,
            self.successes,
            self.failures,
            self.stage,
            self.rtt,
            self.network,
        )


@dataclass(frozen=True, slots=True)
class PeerRow:
    """What is known of a peer wherever it is. One with nothing but a key stands for no row at all.

    Raises:
        ValueError: a value that cannot be stored, or makes no sense.
    """

    key: bytes
    kept: bool = False
    """Stay connected to it."""
    blocked: bool = False
    """Have nothing to do with it."""
    sequence: int = 0
    """Of its newest record: 64 bits, without a sign."""
    name: str = ""
    last_seen: float = 0.0
    """In seconds since 1970; 0: never."""

    def __post_init__(self) -> None:
        """Refuse what a file cannot hold."""
        _check(self, _PEER_ROW)

    @property
    def is_empty(self) -> bool:
        """It says nothing."""
        return self == PeerRow(self.key)


@dataclass(frozen=True, slots=True)
class Contents:
    """All that a file holds."""

    rows: list[Row]
    peers: list[PeerRow]


class Changes:
    """What the file does not have yet: for each row its newest state only, however often it changed.

    Args:
        most: so many changes are kept; beyond that the oldest are lost, those of places first.

    Attributes:
        forgotten: peers of which all is to be deleted, before anything else happens; but not that they are kept or
            blocked, which is the user's word and not the book's.
        places: by key, by place, the row to be written, or None for one to be deleted.
        peers: the rows to be written, or, where empty, deleted, by key.
        lost: how many changes there was no room for.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._size = 0
        self.lost = 0
        self.forgotten: dict[bytes, None] = {}
        self.places: dict[bytes, dict[Place, Row | None]] = {}
        self.peers: dict[bytes, PeerRow] = {}

    def __len__(self) -> int:
        return self._size

    def forget(self, key: bytes) -> None:
        """All that the file has of this peer is to go, with what waits here; a kept or blocked one keeps its row."""
        self._size -= len(self.places.pop(key, ()))
        peer = self.peers.get(key)
        if peer is not None and not (peer.kept or peer.blocked):
            # The file may still say that it is kept.
            self.peers[key] = PeerRow(key)
        self._size += key not in self.forgotten
        self.forgotten[key] = None
        self._make_room()

    def put(self, key: bytes, place: Place, row: Row | None) -> None:
        """A row is to be written, or deleted if it is None."""
        places = self.places.setdefault(key, {})
        self._size += place not in places
        places[place] = row
        self._make_room()

    def put_peer(self, peer: PeerRow) -> None:
        """A peer's row is to be written, or deleted if it is empty."""
        self._size += peer.key not in self.peers
        self.peers[peer.key] = peer
        self._make_room()

    def add(self, later: "Changes") -> None:
        """Take over what happened after all that is here."""
        for key in later.forgotten:
            self.forget(key)
        for key, places in later.places.items():
            for place, row in places.items():
                self.put(key, place, row)
        for peer in later.peers.values():
            self.put_peer(peer)
        self.lost += later.lost

    def _make_room(self) -> None:
        if self._size <= self._most:
            return
        self._size -= 1
        self.lost += 1
        if self.places:
            key, places = next(iter(self.places.items()))
            del places[next(iter(places))]
            if not places:
                del self.places[key]
        else:
            # That a peer is blocked or kept is the last to be lost.
            least = self.forgotten or self.peers
            del least[next(iter(least))]


_NUMBER = (int, float)
_TIME = (int, float, NoneType)
_ROW: Final[Mapping[str, tuple[type, ...]]] = {
    "key": (bytes,),
    "transport": (str, NoneType),
    "host": (str,),
    "port": (int,),
    "source": (str,),
    "learnt": _NUMBER,
    "first_success": _TIME,
    "last_success": _TIME,
    "first_failure": _TIME,
    "last_failure": _TIME,
    "successes": (int,),
    "failures": (int,),
    "stage": (str,),
    "rtt": _TIME,
    "network": (str,),
}
_PEER_ROW: Final[Mapping[str, tuple[type, ...]]] = {
    "key": (bytes,),
    "kept": (bool,),
    "blocked": (bool,),
    "sequence": (int,),
    "name": (str,),
    "last_seen": _NUMBER,
}


def _check(row: Row | PeerRow, kinds: Mapping[str, tuple[type, ...]]) -> None:
    """Look at each value as if nothing were known of it: SQLite's columns have no types that bind.

    Raises:
        ValueError: one that will not do; says which.
    """
    for name, allowed in kinds.items():
        value = getattr(row, name)
        if not isinstance(value, allowed):
            raise ValueError(f"{name} is of the kind {type(value).__name__}")  # noqa: TRY004 - bad data, not a bad call
        if isinstance(value, str):
            if len(value) > MOST_TEXT or not _is_unicode(value):
                raise ValueError(f"{name} is no text of at most {MOST_TEXT} characters")
        elif isinstance(value, bytes):
            if len(value) != KEY_BYTES:
                raise ValueError(f"{name} has {len(value)} bytes, not {KEY_BYTES}")
        elif isinstance(value, float):
            if not math.isfinite(value):
                raise ValueError(f"{name} is {value}")
        elif isinstance(value, int) and not 0 <= value < (1 << 64 if name == "sequence" else 1 << 63):
            raise ValueError(f"{name} is {value}, which no column takes")


def _is_unicode(text: str) -> bool:
    """Arguments of a command line may carry lone surrogates, which no database takes."""
    if text.isascii():
        return True
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
