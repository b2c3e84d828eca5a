"""Who may come in, and what is run for those who have."""

import asyncio
import logging
from collections.abc import Callable
from typing import Any

import pytest

from overlay import (
    Config,
    ConfigError,
    Endpoint,
    Identity,
    OverlayError,
    PeerId,
    SessionRefused,
    Stream,
    StreamReset,
    UnknownProtocol,
)
from overlay.testing import LOOPBACK, connections, exchange, pair, raises, ticket, until

TRANSPORTS = ("quic", "udp", "tcp", "memory")
US = Identity.generate()


def refuses_by_a_fault(peer_id: PeerId) -> bool:
    raise RuntimeError(f"no idea who {peer_id.short} is")


# -------------------------------------------------------------------- admission


@pytest.mark.parametrize("transport", TRANSPORTS)
@pytest.mark.parametrize(
    ("accept", "welcome"),
    [
        ("all", True),
        ("known", False),
        ({US.peer_id}, True),
        ([Identity.generate().peer_id], False),
        (lambda peer_id: peer_id == US.peer_id, True),
        (lambda _peer_id: False, False),
        (refuses_by_a_fault, False),
    ],
)
async def test_who_is_not_accepted_is_refused_before_any_state_exists(
    transport: str, accept: Any, welcome: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """All forms of `Config.accept`, over each transport; a function that fails lets nobody in."""
    config = Config(listen=LOOPBACK, transports=(transport,), accept=accept)
    mine = Config(listen=LOOPBACK, transports=(transport,))
    async with Endpoint(Identity.generate(), config) as them, Endpoint(US, mine) as us:
        if welcome:
            assert (await us.connect(ticket(them, transport))).state == "connected"
            return
        async with raises(SessionRefused):
            await us.connect(ticket(them, transport))
        assert not them.sessions
        assert not connections(them, US.peer_id)
        # Nothing is remembered of it either.
        assert them.peers() == []
        await until(lambda: not us._peers)
    assert ("Config.accept failed" in caplog.text) is (accept is refuses_by_a_fault)


async def test_known_is_who_was_named() -> None:
    """By a ticket, by being kept, by a name; not by having dialled us."""
    names: list[Callable[[Endpoint, Endpoint], object]] = [
        lambda them, us: them.keep(us.peer_id),
        lambda them, us: them.book.say(us.peer_id, name="one of ours"),
        lambda them, us: them.keep(ticket(us)),
    ]
    for name in names:
        async with (
            Endpoint(Identity.generate(), Config(transports=("memory",), accept="known")) as them,
            Endpoint(Identity.generate(), Config(transports=("memory",), accept="known")) as us,
        ):
            for _ in range(2):
                async with raises(SessionRefused):
                    await us.connect(ticket(them))
            name(them, us)
            us.book.say(them.peer_id, name="them")
            assert (await us.connect(ticket(them))).state == "connected"


@pytest.mark.parametrize("accept", ["all", {US.peer_id}, lambda _peer_id: True])
async def test_who_is_blocked_is_out_at_once_whatever_else_is_said(accept: Any) -> None:
    config = Config(transports=("memory",), accept=accept)
    async with Endpoint(Identity.generate(), config) as them, Endpoint(US, Config(transports=("memory",))) as us:
        session = await us.connect(ticket(them))
        await until(lambda: them.sessions)
        them.block(US.peer_id)
        assert not them.sessions
        await until(lambda: session.state == "closed")
        async with raises(SessionRefused):
            await us.connect(ticket(them))
        them.unblock(US.peer_id)
        assert (await us.connect(ticket(them))).state == "connected"


def test_a_word_that_means_nothing_is_no_admission() -> None:
    with pytest.raises(ConfigError, match="accept"):
        Config(accept="none")  # type: ignore[arg-type]


# -------------------------------------------------------------------- handlers


async def test_streams_for_a_protocol_that_nobody_serves_are_refused() -> None:
    async with pair("memory") as it:
        stream = await it.session.open_stream("unheard/1")
        async with raises(UnknownProtocol):
            await stream.read()


async def test_a_later_handler_serves_the_streams_from_then_on() -> None:
    async with pair("memory") as it:
        assert await exchange(it.session, b"one") == b"one"

        async def later(stream: Stream) -> None:
            await stream.write(b"later: " + await stream.read())

        it.acceptor.handle("echo/1", later)
        assert await exchange(it.session, b"two") == b"later: two"


async def test_a_handler_that_fails_costs_its_stream_only(caplog: pytest.LogCaptureFixture) -> None:
    async with pair("memory") as it:

        async def faulty(stream: Stream) -> None:
            raise ValueError(f"not {stream.protocol}")

        async def unlucky(stream: Stream) -> None:
            raise OverlayError(f"not {stream.protocol}")

        for protocol, handler in (("faulty/1", faulty), ("unlucky/1", unlucky)):
            it.acceptor.handle(protocol, handler)
            stream = await it.session.open_stream(protocol)
            await stream.write(b"?")
            async with raises(StreamReset):
                await stream.read()
        assert await exchange(it.session, b"still there") == b"still there"
        await until(lambda: it.theirs._handlers == 0)
        loud = [record for record in caplog.records if record.levelno >= logging.ERROR]
        assert [record.exc_info[0] for record in loud if record.exc_info] == [ValueError]


async def test_no_more_handlers_run_than_are_set_and_who_waits_is_served() -> None:
    async with pair("memory") as it:
        handlers = it.acceptor._handlers
        running = most = served = 0
        gate = asyncio.Event()

        async def hold(stream: Stream) -> None:
            nonlocal running, most, served
            running += 1
            most = max(most, running)
            await gate.wait()
            running -= 1
            served += 1

        it.acceptor.handle("hold/1", hold)
        handlers._limit = 3
        streams = [await it.session.open_stream("hold/1") for _ in range(5)]
        for stream in streams:
            await stream.write(b"?")
        await until(lambda: len(it.theirs._unserved) == 2)
        assert running == 3
        gate.set()
        await until(lambda: served == 5)
        assert most == 3
        assert not it.theirs._unserved
