"""Who is told of an endpoint's events at once, and protocols that are served no more."""

import gc

import pytest

from overlay import (
    Config,
    Endpoint,
    Identity,
    OverlayError,
    PathChanged,
    PeerConnected,
    PeerDisconnected,
    UnknownProtocol,
)
from overlay.events import Event
from overlay.protocol.codes import CloseCode
from overlay.testing import pair, until

MEMORY = Config(transports=("memory",))


class Log:
    """A subscriber."""

    def __init__(self, told: list[Event | None]) -> None:
        self.told = told

    def put(self, event: Event | None) -> None:
        self.told.append(event)


async def test_a_subscriber_is_told_in_order_and_of_the_end() -> None:
    told: list[Event | None] = []
    log = Log(told)
    async with Endpoint(Identity.generate(), MEMORY) as one, Endpoint(Identity.generate(), MEMORY) as other:
        other.subscribe(log)
        session = await one.connect(other.ticket)
        await until(lambda: len(told) >= 2)
        await session.aclose()
        await until(lambda: any(isinstance(event, PeerDisconnected) for event in told))
        kinds = [type(event) for event in told]
        assert {PeerConnected, PathChanged} <= set(kinds)
        assert kinds.index(PeerConnected) < kinds.index(PeerDisconnected)
        assert None not in told
    assert told[-1] is None
    assert told.count(None) == 1


async def test_a_subscriber_that_nobody_holds_is_forgotten() -> None:
    told: list[Event | None] = []
    async with Endpoint(Identity.generate(), MEMORY) as endpoint:
        endpoint.subscribe(Log(told))
        gc.collect()
    assert not told


async def test_a_closed_endpoint_tells_the_end_at_once() -> None:
    told: list[Event | None] = []
    log = Log(told)
    Endpoint(Identity.generate(), MEMORY).subscribe(log)
    assert told == [None]


async def test_a_protocol_that_is_served_no_more_is_unknown() -> None:
    """Streams that are being served go on."""
    async with pair("memory") as it, await it.session.open_stream("echo/1") as before:
        await before.write(b"x")
        assert await before.read(1) == b"x"
        it.acceptor.unhandle("echo/1")
        it.acceptor.unhandle("never/1")
        refused = await it.session.open_stream("echo/1")
        with pytest.raises(UnknownProtocol):
            await refused.read(1)
        await before.write(b"z")
        assert await before.read(1) == b"z"


async def test_a_session_is_closed_with_codes_that_close_sessions_only() -> None:
    async with pair("memory") as it:
        with pytest.raises(OverlayError, match="SESSION_CLOSED or MISBEHAVED"):
            it.session.close(code=CloseCode.RETIRED)
        assert it.session.state == "connected"
