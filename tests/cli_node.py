"""A node without a network, for what is around it: the control socket and the commands that use it."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path as FilePath
from typing import Any

from overlay import Address, Identity, Origin, Path, PeerId, Ticket
from overlay.cli.control import ControlServer
from overlay.cli.control_place import claim
from overlay.events import Event, Events
from overlay.status import AddressStatus, PeerStatus


def a_key() -> PeerId:
    return Identity.generate().peer_id


def a_path(remote: str = "quic://198.51.100.7:9330", **changes: Any) -> Path:
    path = Path(
        transport="quic",
        remote=Address.parse(remote),
        selected=True,
        suspect=False,
        dialled=True,
        direction="both",
        rtt=0.0125,
        mtu=1400,
        loss=0.0,
        congestion_window=20_000,
        bytes_sent=7,
        bytes_received=8,
        origin=Origin("connect", 0.1),
    )
    return replace(path, **changes)


def an_address(text: str = "198.51.100.7:9330", **changes: Any) -> AddressStatus:
    status = AddressStatus(
        address=Address.parse(text),
        source="ticket",
        learnt=1000.0,
        last_success=None,
        last_failure=None,
        successes=0,
        failures=0,
        stage="",
        rtt=None,
    )
    return replace(status, **changes)


def a_peer(peer_id: PeerId | None = None, **changes: Any) -> PeerStatus:
    status = PeerStatus(
        peer_id=peer_id or a_key(),
        name="",
        state="known",
        kept=False,
        blocked=False,
        since=1.0,
        next_dial=None,
        paths=(),
        addresses=(),
    )
    return replace(status, **changes)


class FakeEvents(Events[Event]):
    """Tells its node when nobody listens any more."""

    def __init__(self, node: "FakeNode") -> None:
        super().__init__()
        self._node = node

    async def aclose(self) -> None:
        if self in self._node.queues:
            self._node.queues.remove(self)
        await super().aclose()


class FakeNode:
    """Does what it is told to its table, and says what it was told."""

    def __init__(self, *peers: PeerStatus) -> None:
        self.table = {peer.peer_id: peer for peer in peers}
        self.calls: list[tuple[Any, ...]] = []
        self.queues: list[Events[Event]] = []

    def peers(self) -> list[PeerStatus]:
        return list(self.table.values())

    def keep(self, target: Ticket | PeerId | str, *, name: str | None = None) -> PeerId:
        assert not isinstance(target, str)
        peer_id = target.peer_id if isinstance(target, Ticket) else target
        self.calls.append(("keep", target, name))
        before = self.table.get(peer_id) or a_peer(peer_id)
        self.table[peer_id] = replace(before, name=before.name if name is None else name, kept=True)
        return peer_id

    def remove(self, peer_id: PeerId) -> None:
        self.calls.append(("remove", peer_id))
        del self.table[peer_id]

    def block(self, peer_id: PeerId) -> None:
        self.calls.append(("block", peer_id))
        if peer_id in self.table:
            self.table[peer_id] = replace(self.table[peer_id], kept=False, blocked=True)

    def unblock(self, peer_id: PeerId) -> None:
        self.calls.append(("unblock", peer_id))
        if peer_id in self.table:
            self.table[peer_id] = replace(self.table[peer_id], blocked=False)

    def kick(self, peer_id: PeerId | None = None) -> None:
        self.calls.append(("kick", peer_id))

    def events(self) -> Events[Event]:
        events = FakeEvents(self)
        self.queues.append(events)
        return events

    def publish(self, event: Event | None) -> None:
        """None ends the node."""
        for events in self.queues:
            events.put(event)


@asynccontextmanager
async def controlled(node: FakeNode, book: FilePath) -> AsyncIterator[ControlServer]:
    with claim(book) as path:
        async with ControlServer(node, path) as server:
            yield server
