"""`kill -9` of the other side, again and again: it is missed at once and met anew, over each transport."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from functools import partial
from itertools import product
from pathlib import Path

import pytest
from node_nursery import nursery, quiet_port

from overlay import (
    Address,
    Config,
    Endpoint,
    Identity,
    PeerConnected,
    PeerDisconnected,
    PeerId,
    PeerRestarted,
    SessionError,
    SessionReplaced,
    Stream,
    Ticket,
)
from overlay.events import Event
from overlay.testing import LOOPBACK, KiB, ticket, until

KILLS = 100
KINDS = tuple(product(("quic", "udp", "tcp"), ("it", "we", "both")))
"""Over what, and who dials."""
BLOCK = bytes(4096)
PAUSE = 0.005
"""Seconds between two blocks of a stream: a small machine has to bear eighteen of them."""
TRAFFIC = 32 * KiB
"""Bytes that have gone there and back, on a stream of each side's, before the next kill."""
SECONDS = 30.0
"""For one return, on a machine that stands still."""


@dataclass
class Victim:
    """A node that is killed again and again, as the survivor sees it.

    Attributes:
        name: its transport, and who dials.
        identity: the same in each of its lives.
        start: begins its next life.
        told: what the survivor's endpoint says of it, but of its paths.
        echoed: bytes that have come back on the survivor's streams.
        served: bytes that have come on its own.
        endings: what has ended both kinds of streams.
    """

    name: str
    identity: Identity
    start: Callable[[], Awaitable[None]]
    told: list[Event] = field(default_factory=list)
    echoed: int = 0
    served: int = 0
    endings: list[SessionError] = field(default_factory=list)

    async def meet(self, life: int) -> None:
        """Wait until it is connected for the so-maniest time, and streams of both sides carry bytes."""
        try:
            await until(lambda: sum(isinstance(event, PeerConnected) for event in self.told) >= life, seconds=SECONDS)
            echoed, served = self.echoed + TRAFFIC, self.served + TRAFFIC
            await until(lambda: self.echoed >= echoed and self.served >= served, seconds=SECONDS)
        except TimeoutError:
            pytest.fail(f"no life {life} of {self}")


class Survivor:
    """What the living side does with its victims."""

    def __init__(self, endpoint: Endpoint, victims: list[Victim]) -> None:
        self._endpoint = endpoint
        self._victims: dict[PeerId, Victim] = {victim.identity.peer_id: victim for victim in victims}

    async def follow(self, group: asyncio.TaskGroup) -> None:
        """Note what is told, and speak to each that comes."""
        async for event in self._endpoint.events():
            if isinstance(event, SessionReplaced | PeerDisconnected | PeerConnected):
                self._victims[event.peer_id].told.append(event)
            if isinstance(event, PeerConnected):
                group.create_task(self._speak(self._victims[event.peer_id]))

    async def serve(self, stream: Stream) -> None:
        """A handler: an echo that counts."""
        victim = self._victims[stream.session.peer_id]
        try:
            async for chunk in stream:
                await stream.write(chunk)
                victim.served += len(chunk)
        except SessionError as error:
            victim.endings.append(error)

    async def _speak(self, victim: Victim) -> None:
        try:
            stream = await self._endpoint.sessions[victim.identity.peer_id].open_stream("echo/1")
            while True:
                await stream.write(BLOCK)
                victim.echoed += len(await stream.readexactly(len(BLOCK)))
                await asyncio.sleep(PAUSE)
        except SessionError as error:
            victim.endings.append(error)


@pytest.mark.timeout(300)
async def test_a_peer_that_is_killed_is_reported_once_and_met_again_each_time(tmp_path: Path) -> None:
    """A hundred times in all, with bytes under way on streams of both sides."""
    async with Endpoint(Identity.generate(), Config(listen=LOOPBACK)) as endpoint, nursery() as nodes:
        victims = []
        for transport, dialler in KINDS:
            name, key = f"{transport}, {dialler}", tmp_path / f"{transport}-{dialler}.pem"
            identity = Identity.load_or_create(key)
            address = Address(transport, "127.0.0.1", quiet_port())
            keep = [] if dialler == "we" else [str(ticket(endpoint))]
            start = partial(nodes.start, name, key, listen=f"127.0.0.1:{address.port}", transport=transport, keep=keep)
            victims.append(Victim(name, identity, start))
            endpoint.keep(identity.peer_id if dialler == "it" else Ticket(identity.peer_id, (address,)))
        survivor = Survivor(endpoint, victims)
        endpoint.handle("echo/1", survivor.serve)

        async def torment(victim: Victim, kills: int) -> None:
            await victim.start()
            for life in range(1, kills + 1):
                await victim.meet(life)
                await nodes.signal(victim.name, "SIGKILL")
                await victim.start()
            await victim.meet(kills + 1)

        kills = [len(range(number, KILLS, len(victims))) for number in range(len(victims))]
        async with asyncio.TaskGroup() as background:
            following = background.create_task(survivor.follow(background))
            async with asyncio.TaskGroup() as group:
                for victim, count in zip(victims, kills, strict=True):
                    group.create_task(torment(victim, count), name=victim.name)
            following.cancel()
            for victim, count in zip(victims, kills, strict=True):
                life = [SessionReplaced, PeerDisconnected, PeerConnected]
                assert [type(event) for event in victim.told] == [PeerConnected, *life * count], victim.name
                reasons = [event.reason for event in victim.told if isinstance(event, PeerDisconnected)]
                assert all(isinstance(reason, PeerRestarted) for reason in reasons), (victim.name, reasons)
                assert [type(error) for error in victim.endings] == [PeerRestarted] * 2 * count, victim.name
            for peer in endpoint.peers():
                endpoint.remove(peer.peer_id)
    assert sum(kills) == KILLS
