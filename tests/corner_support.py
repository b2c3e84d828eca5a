"""What the tests of the corner cases share: ears for events, a clock to put forward, and a look at what is left."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from overlay import Endpoint, PeerId
from overlay.dialler import Dialler
from overlay.events import Event
from overlay.keeper import Keeper
from overlay.peer import Peer
from overlay.status import PeerStatus
from overlay.testing import until


@asynccontextmanager
async def telling(endpoint: Endpoint) -> AsyncIterator[list[Event]]:
    """A list of all events from now on."""
    told: list[Event] = []
    events = endpoint.events()

    async def listen() -> None:
        while (event := await anext(events, None)) is not None:
            told.append(event)

    listening = asyncio.create_task(listen())
    try:
        yield told
    finally:
        listening.cancel()
        await asyncio.wait([listening])
        await events.aclose()


def status(endpoint: Endpoint, peer_id: PeerId) -> PeerStatus:
    [found] = [one for one in endpoint.peers() if one.peer_id == peer_id]
    return found


async def paused(endpoint: Endpoint, peer_id: PeerId) -> float:
    """Wait until a dial has failed, or a session ended; the seconds until the next dial."""
    await until(lambda: status(endpoint, peer_id).state == "backing off")
    pause = status(endpoint, peer_id).next_dial
    assert pause is not None
    return pause


class Clock:
    """The keepers' clock; it can be put forward."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._ahead = 0.0
        monkeypatch.setattr("overlay.keeper.clock", self)

    def __call__(self) -> float:
        return time.monotonic() + self._ahead

    def forward(self, seconds: float, endpoint: Endpoint) -> None:
        """Let time pass for one keeper: what is due by then is done now."""
        self._ahead += seconds
        keeper = endpoint.keeper
        if keeper._timer is not None:
            keeper._timer.cancel()
            keeper._timer_at = self()
            keeper._fire()


def spy_on_dials(endpoint: Endpoint) -> list[PeerId]:
    """Whom that endpoint dials from now on, an entry for each attempt at an address."""
    dialled: list[PeerId] = []
    for transport in endpoint._transports.values():

        async def dial(address, peer_id, handler, original=transport.dial):  # type: ignore[no-untyped-def]
            dialled.append(peer_id)
            return await original(address, peer_id, handler)

        vars(transport)["dial"] = dial
    return dialled


def timers() -> list[asyncio.TimerHandle]:
    """All timers of the running loop that could make a keeper, a peer or its dialler do something."""
    scheduled: list[asyncio.TimerHandle] = asyncio.get_running_loop()._scheduled  # type: ignore[attr-defined]
    owners = (Keeper, Dialler, Peer)
    return [
        one
        for one in scheduled
        if not one.cancelled() and isinstance(getattr(one._callback, "__self__", None), owners)  # type: ignore[attr-defined]
    ]


def dial_tasks() -> list[str]:
    """Names of tasks that dial or serve a peer."""
    return [task.get_name() for task in asyncio.all_tasks() if task.get_name().startswith("dial ")]
