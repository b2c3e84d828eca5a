"""Failure in the middle: connections come and go, streams stay, and what cannot go on says why."""

import asyncio
import hashlib
import os

import pytest

from overlay import (
    Config,
    DuplicateIdentity,
    Endpoint,
    Identity,
    PeerRestarted,
    Session,
    SessionClosed,
    SessionLost,
    SessionReplaced,
)
from overlay.testing import LOOPBACK, MiB, Weather, connections, crash, echo, exchange, pair, ticket, until

BLOCK = 64 * 1024


def selected(session: Session) -> str | None:
    return next((path.transport for path in session.paths if path.selected and not path.suspect), None)


async def test_udp_is_dropped_and_comes_back_under_a_transfer() -> None:
    async with pair("quic", "tcp") as it:
        weather = Weather(it.dialler, it.acceptor)
        digest = hashlib.sha256()
        async with await it.session.open_stream("sink/1") as stream:

            async def write(size: int) -> None:
                for _ in range(size // BLOCK):
                    block = os.urandom(BLOCK)
                    digest.update(block)
                    await stream.write(block)

            async def write_until_on(transport: str) -> None:
                while selected(it.session) != transport:
                    await write(BLOCK)
                    await asyncio.sleep(0.01)

            await write(2 * MiB)
            assert selected(it.session) == "quic"
            weather.udp_blocked = True
            await write_until_on("tcp")
            await write(4 * MiB)
            weather.udp_blocked = False
            await write_until_on("quic")
            await write(2 * MiB)
            await stream.write_eof()
            assert await stream.read() == digest.digest()
            assert set(it.session.traffic) == {"quic", "tcp"}
            assert min(sent for sent, _ in it.session.traffic.values()) > MiB


async def test_a_path_that_loses_in_one_direction_only_is_left() -> None:
    """What the peer sends still comes, its probes above all; but nothing of ours arrives there."""
    sent = os.urandom(4 * MiB)
    async with pair("quic", "tcp") as it:
        assert selected(it.session) == "quic"
        swallowed = []
        with pytest.MonkeyPatch.context() as patch:
            for udp in it.dialler._udp:
                patch.setattr(udp, "send", lambda datagrams, *_: swallowed.extend(datagrams))
            async with asyncio.timeout(10):
                assert await exchange(it.session, sent) == sent
            path = it.session.paths[0]
            assert (path.transport, path.dialled) == ("tcp", True), "whoever is not heard notices by itself"
        assert swallowed


async def test_who_only_reads_a_trickle_notices_that_it_has_ended() -> None:
    """It sends nothing but credit; were that taken for progress, only the keepalive would find out."""
    async with pair("quic", keepalive=100, idle_timeout=300) as it, it.streams() as (ours, theirs):

        async def trickle() -> None:
            while True:
                await theirs.write(b"x" * 200)
                await ours.readexactly(200)
                await asyncio.sleep(0.02)

        writing = asyncio.ensure_future(trickle())
        await until(lambda: it.session.paths[0].bytes_received > 2000)
        Weather(it.dialler, it.acceptor).udp_blocked = True
        await until(lambda: it.session.paths[0].suspect)
        writing.cancel()


@pytest.mark.parametrize(
    "transports", [("tcp",), ("quic",), ("udp",), ("quic", "tcp"), ("quic", "udp", "tcp"), ("memory",)]
)
async def test_connections_are_aborted_again_and_again_under_a_transfer(transports: tuple[str, ...]) -> None:
    sent = os.urandom(4 * MiB)
    async with pair(*transports) as it:
        echoing = asyncio.ensure_future(exchange(it.session, sent))
        cuts = 0
        while cuts < 8 and not echoing.done():
            side, peer = ((it.dialler, it.acceptor), (it.acceptor, it.dialler))[cuts % 2]

            def flows(side: Endpoint = side, peer: Endpoint = peer) -> bool:
                return any(one.bytes_received > BLOCK for one in connections(side, peer.peer_id))

            await until(lambda flows=flows: echoing.done() or flows())  # type: ignore[misc]
            for connection in connections(side, peer.peer_id):
                connection.abort()
                cuts += 1
            await asyncio.sleep(0)
        assert await echoing == sent
        assert cuts >= 3


async def test_without_any_connection_the_session_lingers_and_writes_wait() -> None:
    async with pair("quic", "tcp") as it, it.streams() as (ours, theirs):
        weather = Weather(it.dialler, it.acceptor)
        weather.cut()
        await until(lambda: it.session.state == it.theirs.state == "lingering")
        assert it.session.paths == []
        sent = os.urandom(3 * MiB)
        writing = asyncio.ensure_future(ours.write(sent))
        reading = asyncio.ensure_future(theirs.readexactly(len(sent)))
        await until(lambda: ours.bytes_accepted >= MiB - 1024)
        assert not writing.done()
        weather.cut_off = False
        assert await reading == sent
        await writing
        assert it.session.state == it.theirs.state == "connected"


async def test_when_the_resume_time_is_over_both_sides_give_up() -> None:
    async with pair("tcp", resume_timeout=0.3) as it, it.streams() as (ours, theirs):
        Weather(it.dialler, it.acceptor).cut()
        reading = asyncio.ensure_future(theirs.read(1))
        opening = asyncio.ensure_future(it.session.receive_datagram())
        for session in (it.session, it.theirs):
            assert isinstance(await session.wait_closed(), SessionLost)
        for work in (reading, opening, ours.write(b"x"), ours.read(1), ours.wait_delivered(), theirs.write(b"x")):
            with pytest.raises(SessionLost):
                await work
        assert not it.dialler.sessions
        assert not it.acceptor.sessions


@pytest.mark.parametrize("transport", ["quic", "udp", "tcp"])
async def test_the_streams_of_a_peer_that_restarted_and_dials_fail_at_once(transport: str) -> None:
    config = Config(listen=LOOPBACK, transports=(transport,))
    identity = Identity.generate()
    async with Endpoint(Identity.generate(), config) as survivor:
        survivor.handle("echo/1", echo)
        first = await Endpoint(identity, config).__aenter__()
        stream = await (await first.connect(ticket(survivor))).open_stream("echo/1")
        await stream.write(b"x")
        assert await stream.read(1) == b"x"
        old = survivor.sessions[identity.peer_id]
        events = survivor.events()
        replaced = asyncio.ensure_future(anext(events))
        left = await old.open_stream("nobody/1")
        await crash(first)
        async with Endpoint(identity, config) as second:
            session = await second.connect(ticket(survivor))
            assert isinstance(await old.wait_closed(), PeerRestarted)
            with pytest.raises(PeerRestarted):
                await left.read(1)
            assert await exchange(session, b"anew") == b"anew"
            event = await replaced
            while not isinstance(event, SessionReplaced):
                event = await anext(events)
            assert event.peer_id == identity.peer_id
        await events.aclose()


async def test_the_streams_to_a_peer_that_restarted_and_is_dialled_fail_at_once() -> None:
    """The new process says that the session was another one's."""
    identity = Identity.generate()
    async with Endpoint(Identity.generate(), Config(listen=LOOPBACK, transports=("tcp",))) as survivor:
        first = await Endpoint(identity, Config(listen=LOOPBACK, transports=("tcp",))).__aenter__()
        first.handle("echo/1", echo)
        where = first.addresses[0]
        old = await survivor.connect(ticket(first))
        stream = await old.open_stream("echo/1")
        await stream.write(b"x")
        assert await stream.read(1) == b"x"
        await crash(first)
        async with Endpoint(identity, Config(listen=(f"127.0.0.1:{where.port}",), transports=("tcp",))) as second:
            second.handle("echo/1", echo)
            with pytest.raises(PeerRestarted):
                await stream.read(1)
            session = await survivor.connect(identity.peer_id)
            assert session is not old
            assert await exchange(session, b"anew") == b"anew"


@pytest.mark.parametrize("transport", ["memory", "tcp", "udp", "quic"])
async def test_a_peer_that_gave_up_while_we_linger(transport: str) -> None:
    async with pair(transport) as it, it.streams() as (ours, _):
        weather = Weather(it.dialler, it.acceptor)
        weather.cut()
        await until(lambda: it.session.state == it.theirs.state == "lingering")
        await it.theirs.aclose()
        weather.cut_off = False
        assert isinstance(await it.session.wait_closed(), SessionLost)
        with pytest.raises(SessionLost):
            await ours.write(b"x")
        session = await it.dialler.connect(ticket(it.acceptor))
        assert session is not it.session
        assert await exchange(session, b"anew") == b"anew"


@pytest.mark.parametrize("transport", ["memory", "tcp", "udp", "quic"])
async def test_a_second_living_process_with_the_same_key_is_refused(transport: str) -> None:
    async with pair(transport) as it:
        async with Endpoint(it.dialler.identity, it.dialler.config) as twin:
            with pytest.raises(DuplicateIdentity):
                await twin.connect(ticket(it.acceptor))
            assert not twin.sessions
        assert await exchange(it.session, b"unharmed") == b"unharmed"
        assert it.acceptor.sessions == {it.dialler.peer_id: it.theirs}


async def test_a_close_while_lingering_fails_what_waits() -> None:
    async with pair("memory") as it, it.streams() as (ours, _):
        Weather(it.dialler, it.acceptor).cut()
        await until(lambda: it.session.state == "lingering")
        writing = asyncio.ensure_future(ours.write(bytes(8 * MiB)))
        await asyncio.sleep(0)
        await it.session.aclose()
        with pytest.raises(SessionClosed):
            await writing
