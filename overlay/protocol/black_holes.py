"""Kinds of connections that a network swallows without a word: QUIC, all UDP, IPv6. Pure.

Where a firewall drops a kind, each dial would wait out that kind's head start. So outcomes are counted: a failure is
evidence against a kind only at a peer that something else reaches at about the same time, because a peer that is
switched off fails over every kind, and says nothing of the network.

A suspect loses its place in front, no more. It is not left out, for it may be the only way (go-libp2p #3491: a fresh
node refused all dials of a kind of which it knew nothing), and from time to time one dial tries it first as before.
One success, and any change of our network, acquits it.
"""

from collections.abc import Iterable
from typing import Final, TypeVar

from overlay.protocol.evidence import Place

KINDS: Final = ("quic", "udp", "ipv6")
"""`udp` is QUIC and raw UDP: what is over UDP at all."""
FAILURES: Final = 8
PEERS: Final = 4
"""So many failures in a row, at so many peers, make a suspect: fewer may be those peers' own firewalls."""
TOGETHER: Final = 60.0
"""Seconds between a failure and a success elsewhere that tell of one network: two dials of 30 s."""
FIRST_RETRY: Final = 60.0
LONGEST_RETRY: Final = 600.0
"""Seconds before a suspect is tried first again, doubling."""
REMEMBERED: Final = 64
"""Peers of which outcomes are kept, for each kind."""

Value = TypeVar("Value")


def kinds_of(place: Place) -> frozenset[str]:
    """What a dial there depends on; of a name, the address family is unknown."""
    transport, host, _ = place
    found = {"quic": {"quic", "udp"}, "udp": {"udp"}}.get(transport or "", set())
    return frozenset(found | ({"ipv6"} if ":" in host else set()))


class BlackHoles:
    """Counts outcomes by kind. All times are monotonic seconds."""

    def __init__(self) -> None:
        self._rows = {kind: _Row() for kind in KINDS}

    def record(self, kinds: Iterable[str], ok: bool, key: bytes, now: float) -> None:
        """An attempt ended.

        What lost a race counts as failed if it had its head start and was still without an answer when another one
        won; what was cancelled earlier, or never started, is not recorded.

        Args:
            kinds: what it depended on, see `kinds_of`; empty for TCP over IPv4, whose success tells of the others.
            ok: whether it reached the peer.
            key: the peer.
            now: when it ended.
        """
        concerned = frozenset(kinds)
        for kind, row in self._rows.items():
            if ok and kind in concerned:
                self._rows[kind] = _Row()
            elif ok:
                row.reached_otherwise(key, now)
            elif kind in concerned:
                row.failed(key, now)

    def suspected(self, now: float) -> frozenset[str]:
        """The kinds that have no head start now; one that is due to be tried again is not among them."""
        return frozenset(kind for kind, row in self._rows.items() if row.retry_at is not None and now < row.retry_at)

    def allow(self, kind: str, now: float) -> bool:
        """Whether this dial may try the kind in its usual place. For a suspect, True is used up with the answer."""
        row = self._rows[kind]
        if row.retry_at is None:
            return True
        if now < row.retry_at:
            return False
        row.postpone(now)
        return True

    def split(self, candidates: Iterable[Place], now: float) -> tuple[list[Place], list[Place]]:
        """Those to try in their usual order, and the suspects. To be called once for each dial, as it asks `allow`."""
        places = {place: kinds_of(place) for place in candidates}
        present = frozenset[str]().union(*places.values())
        late = {kind for kind in KINDS if kind in present and not self.allow(kind, now)}
        suspects = [place for place in places if not late.isdisjoint(places[place])]
        return [place for place in places if place not in suspects], suspects

    def network_changed(self) -> None:
        """Another network swallows other things, or nothing."""
        self._rows = {kind: _Row() for kind in KINDS}


class _Row:
    """What happened to one kind since it last worked."""

    def __init__(self) -> None:
        self.retry_at: float | None = None
        """None: no suspect."""
        self._retry = FIRST_RETRY
        self._alone: dict[bytes, tuple[int, float]] = {}
        """Failures at peers that nothing else has reached, and when the last one was."""
        self._otherwise: dict[bytes, float] = {}
        """When something else reached the peer."""
        self._proven: dict[bytes, int] = {}
        """Failures at peers that something else reached."""

    def failed(self, key: bytes, now: float) -> None:
        reached = self._otherwise.get(key)
        if reached is not None and now - reached <= TOGETHER:
            self._prove(key, 1, now)
            return
        count, last = self._alone.get(key, (0, now))
        _put(self._alone, key, (1 + (count if now - last <= TOGETHER else 0), now))

    def reached_otherwise(self, key: bytes, now: float) -> None:
        _put(self._otherwise, key, now)
        count, last = self._alone.pop(key, (0, now))
        if count and now - last <= TOGETHER:
            self._prove(key, count, now)

    def postpone(self, now: float) -> None:
        self.retry_at = now + self._retry
        self._retry = min(2 * self._retry, LONGEST_RETRY)

    def _prove(self, key: bytes, count: int, now: float) -> None:
        _put(self._proven, key, self._proven.get(key, 0) + count)
        if self.retry_at is None and len(self._proven) >= PEERS and sum(self._proven.values()) >= FAILURES:
            self.postpone(now)


def _put(table: dict[bytes, Value], key: bytes, value: Value) -> None:
    """The oldest makes room."""
    table.pop(key, None)
    table[key] = value
    if len(table) > REMEMBERED:
        del table[next(iter(table))]
