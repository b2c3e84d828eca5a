"""`Book`: where peers may be, for one endpoint: the pure address book with its clock, its file, and its users' words.

What is to be dialled, and in which order, is decided in `overlay.protocol.address_book` and `black_holes`; this module
turns addresses into places and back, and hands what has changed to the file. A network is known by its fingerprint, so
that what worked here is tried first here.
"""

import asyncio
import logging
import random
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from overlay.addresses import Address
from overlay.config import Config
from overlay.errors import ConfigError, RecordError
from overlay.identity import PeerId
from overlay.protocol.address_book import AddressBook
from overlay.protocol.black_holes import BlackHoles, kinds_of
from overlay.protocol.evidence import DAY, Evidence, Place, Source
from overlay.records import PeerRecord
from overlay.status import AddressStatus
from overlay.store import BookStore, PeerRow, Row

logger = logging.getLogger("overlay")

PLACES_PER_PEER = 192
"""64 hosts, the most that a ticket has, with an entry for each transport that was tried there."""


@dataclass(slots=True)
class _Word:
    """What the user has said of a peer."""

    kept: bool = False
    blocked: bool = False
    name: str = ""


class Book:
    """The address book of an endpoint. Used inside its running loop; nothing here waits for the disk.

    Args:
        config: transports in order of preference, limits, the file's path.

    Attributes:
        refused: peer records that were refused, by kind: `garbage`, `oversized`, `forged`, `stale`, `foreign`.
        network: fingerprint of the network that we are in; empty: unknown.
    """

    def __init__(self, config: Config) -> None:
        self.refused: Counter[str] = Counter()
        self.network = ""
        self._config = config
        self._book = AddressBook(random.random, per_peer=PLACES_PER_PEER, peers=config.limits.known_peers)
        self._holes = BlackHoles()
        self._words: dict[PeerId, _Word] = {}
        self._store: BookStore | None = None
        self._said: set[PeerId] = set()
        """Those whose row has changed."""
        self._saving: asyncio.Handle | None = None
        self._expiring: asyncio.TimerHandle | None = None

    # ---------------------------------------------------------------- life

    async def open(self) -> None:
        """Read the file, if there is one.

        Raises:
            StoreError: another endpoint uses it.
        """
        if self._config.book_path is not None:
            self._store = await BookStore.open(self._config.book_path)
            contents = await self._store.load()
            for peer in contents.peers:
                if peer.kept or peer.blocked or peer.name:
                    self._words[PeerId(peer.key)] = _Word(peer.kept, peer.blocked, peer.name)
                if peer.kept:
                    self._book.pin(peer.key)
            rows = ((row.key, row.place, row.evidence) for row in contents.rows)
            self._book.restore(rows, {peer.key: peer.sequence for peer in contents.peers})
        self._expire()

    async def aclose(self) -> None:
        """Write what is left."""
        for handle in (self._saving, self._expiring):
            if handle is not None:
                handle.cancel()
        if self._store is not None:
            self._save()
            store, self._store = self._store, None
            await store.aclose()

    # ---------------------------------------------------------------- where a peer may be

    def learn(self, peer_id: PeerId, address: Address, source: Source) -> bool:
        """Somebody names an address of a peer; whether it is news."""
        news = self._book.learn(peer_id.raw, _place(address), source, time.time())
        self._changed()
        return news

    def learn_record(self, data: bytes) -> PeerRecord:
        """A peer's signed list of its addresses, whoever has handed it on.

        Only of peers that are in the book already: keys cost nothing, and neither do their records.

        Raises:
            RecordError: it is refused, and counted in `refused`.
        """
        try:
            record = PeerRecord.decode(data)
        except RecordError as error:
            self.refused[error.kind] += 1
            raise
        if not (self._book.places(record.peer_id.raw) or self.is_known(record.peer_id)):
            self.refused["foreign"] += 1
            raise RecordError("foreign", f"nobody here knows {record.peer_id.short}")
        places = [_place(address) for address in record.addresses]
        if not self._book.record(record.peer_id.raw, record.sequence, places, time.time()):
            self.refused["stale"] += 1
            raise RecordError("stale", f"number {record.sequence} of {record.peer_id.short} is not newer than ours")
        self._said.add(record.peer_id)
        self._changed()
        return record

    def candidates(self, peer_id: PeerId) -> list[Address]:
        """What to dial, the most promising first."""
        transports = self._config.transports
        places = self._book.candidates(peer_id.raw, time.time(), network=self.network, transports=transports)
        return [Address(*place) for place in places]

    def is_dialable(self, peer_id: PeerId) -> bool:
        """Whether any address is known that we could dial."""
        return not self.is_blocked(peer_id) and bool(self.candidates(peer_id))

    def split(self, candidates: Iterable[Address]) -> tuple[list[Address], list[Address]]:
        """Those to try in their usual order, and those to try behind them: this network seems to swallow their kind.

        To be asked once for each dial.
        """
        prompt, late = self._holes.split(map(_place, candidates), time.monotonic())
        return [Address(*place) for place in prompt], [Address(*place) for place in late]

    def reached(self, peer_id: PeerId, address: Address, rtt: float | None) -> None:
        """A dial of ours has reached the peer there."""
        place = _place(address)
        self._book.succeeded(peer_id.raw, place, time.time(), rtt=rtt, network=self.network)
        self._holes.record(kinds_of(place), True, peer_id.raw, time.monotonic())
        self._changed()

    def missed(self, peer_id: PeerId, address: Address, stage: str) -> None:
        """A dial of ours has not; `stage` tells how far it came."""
        self._book.failed(peer_id.raw, _place(address), time.time(), stage=stage, network=self.network)
        self._changed()

    def swallowed(self, peer_id: PeerId, address: Address) -> None:
        """A dial of ours got no answer at all, neither yes nor no: that tells of the network."""
        self._holes.record(kinds_of(_place(address)), False, peer_id.raw, time.monotonic())

    def inbound(self, peer_id: PeerId) -> None:
        """The peer has dialled us."""
        self._book.inbound(peer_id.raw, time.time())

    def ourselves(self, address: Address) -> None:
        """A dial there has reached this very endpoint."""
        self._book.ourselves(_place(address))
        self._changed()

    def network_changed(self, fingerprint: str) -> None:
        """We are in another network: what has failed may work now."""
        self.network = fingerprint
        self._book.network_changed()
        self._holes.network_changed()

    def forget(self, peer_id: PeerId) -> None:
        """Its addresses, and what the user has said of it, but not that it is blocked."""
        self._book.forget(peer_id.raw)
        if not self.is_blocked(peer_id):
            self._words.pop(peer_id, None)
        self._said.add(peer_id)
        self._changed()

    # ---------------------------------------------------------------- what the user has said

    @property
    def kept(self) -> list[PeerId]:
        """Those to stay connected with."""
        return [peer_id for peer_id, word in self._words.items() if word.kept]

    def say(
        self, peer_id: PeerId, *, kept: bool | None = None, blocked: bool | None = None, name: str | None = None
    ) -> None:
        """Note the user's word; None leaves a part as it is.

        Raises:
            ConfigError: the name is no text of at most 1,024 characters; nothing has changed.
        """
        if name is not None:
            # What a file cannot hold is refused here, where it comes from, and whether there is a file or not.
            try:
                PeerRow(peer_id.raw, name=name)
            except ValueError as error:
                raise ConfigError(f"the name of {peer_id.short}: {error}") from None
        word = self._words.setdefault(peer_id, _Word())
        word.kept = word.kept if kept is None else kept
        word.blocked = word.blocked if blocked is None else blocked
        word.name = word.name if name is None else name
        (self._book.pin if word.kept else self._book.unpin)(peer_id.raw)
        if word == _Word():
            del self._words[peer_id]
        self._said.add(peer_id)
        self._changed()

    def is_kept(self, peer_id: PeerId) -> bool:
        """Whether to stay connected with it."""
        return self._word(peer_id).kept

    def is_blocked(self, peer_id: PeerId) -> bool:
        """Whether to have nothing to do with it."""
        return self._word(peer_id).blocked

    def is_known(self, peer_id: PeerId) -> bool:
        """Whether somebody here has named it: it is kept, has a name, or an address from a ticket or by hand."""
        return self._book.is_chosen(peer_id.raw) or bool(self._word(peer_id).name)

    def name(self, peer_id: PeerId) -> str:
        """What the user calls it; empty: nothing."""
        return self._word(peer_id).name

    # ---------------------------------------------------------------- for reports

    @property
    def peers(self) -> list[PeerId]:
        """All of whom anything is known."""
        return list(dict.fromkeys([*map(PeerId, self._book.keys()), *self._words]))

    def addresses(self, peer_id: PeerId) -> tuple[AddressStatus, ...]:
        """The known places of a peer, each with its evidence, in the order of dialling."""
        places = self._book.places(peer_id.raw)
        # What stands for all transports says nothing more, once one of them was tried.
        tried = {place[1:] for place in places if place[0] is not None}
        places = {place: one for place, one in places.items() if place[0] is not None or place[1:] not in tried}
        order = [place for place in map(_place, self.candidates(peer_id)) if place in places]
        return tuple(_status(place, places[place]) for place in dict.fromkeys([*order, *places]))

    def owners(self, address: Address) -> set[PeerId]:
        """Who may be at an address: behind a NAT, several."""
        return set(map(PeerId, self._book.owners(_place(address))))

    # ---------------------------------------------------------------- helpers

    def _word(self, peer_id: PeerId) -> _Word:
        return self._words.get(peer_id) or _Word()

    def _expire(self) -> None:
        self._book.expire(time.time())
        self._expiring = asyncio.get_running_loop().call_later(DAY, self._expire)
        self._changed()

    def _changed(self) -> None:
        if self._store is None:
            # Nobody asks for it ever.
            self._said.clear()
        elif self._saving is None:
            self._saving = asyncio.get_running_loop().call_soon(self._save)

    def _save(self) -> None:
        self._saving = None
        change = self._book.changed()
        said, self._said = self._said.union(map(PeerId, change.sequences)), set()
        if self._store is not None:
            rows = [Row.of(key, place, evidence) for key, place, evidence in change.upserts]
            self._store.save(rows, change.removed, map(self._row, said))

    def _row(self, peer_id: PeerId) -> PeerRow:
        word, key = self._word(peer_id), peer_id.raw
        return PeerRow(key, word.kept, word.blocked, self._book.sequence(key), word.name, self._book.seen(key) or 0.0)


def _place(address: Address) -> Place:
    return address.transport, address.host, address.port


def _status(place: Place, evidence: Evidence) -> AddressStatus:
    return AddressStatus(
        Address(*place),
        str(evidence.source),
        evidence.learnt,
        evidence.last_success,
        evidence.last_failure,
        evidence.successes,
        evidence.failures,
        evidence.stage,
        evidence.rtt,
    )
