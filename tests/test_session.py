"""Sessions: what a user sees of them, and what a peer that breaks the protocol does to them."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from overlay import Limits, Origin, PathLost, Session, SessionClosed
from overlay.protocol.codes import CloseCode
from overlay.protocol.frames import Fin, Gone, Hello, Stop, Window, encode
from overlay.session import DATAGRAM_ALLOWANCE
from overlay.testing import KiB, Pair, Weather, connections, exchange, pair, ticket, until
from overlay.transports.base import ClosedBy, CloseReason, Connection


async def test_a_session_tells_its_state() -> None:
    async with pair("memory") as it:
        weather = Weather(it.dialler, it.acceptor)
        assert (it.session.state, it.session.error) == ("connected", None)
        assert it.session.peer_id == it.acceptor.peer_id
        assert it.theirs.peer_id == it.dialler.peer_id
        weather.cut()
        await until(lambda: it.session.state == "lingering")
        assert (it.session.paths, it.session.max_datagram_size) == ([], 0)
        weather.cut_off = False
        await until(lambda: it.session.state == "connected")
        await it.session.aclose()
        assert it.session.state == "closed"
        assert await it.session.wait_closed() is it.session.error
        assert "closed" in repr(it.session)
        assert (it.session.paths, it.session.max_datagram_size) == ([], 0)
        await it.session.aclose()


async def test_paths_are_what_a_user_sees_of_connections() -> None:
    async with pair("quic", "tcp") as it:
        [path] = it.session.paths
        assert path.transport == "quic"
        assert path.selected
        assert path.dialled
        assert not path.suspect
        assert str(path) == str(ticket(it.acceptor, "quic").addresses[0])
        [theirs] = it.theirs.paths
        assert not theirs.dialled
        await exchange(it.session, bytes(5000))
        assert it.session.paths[0].bytes_sent > 5000 < it.session.paths[0].bytes_received
        assert it.session.traffic["quic"][0] >= it.session.paths[0].bytes_sent


async def test_a_ping_tells_the_time_and_the_path() -> None:
    async with pair("quic", "tcp") as it:
        seconds, path = await it.session.ping()
        assert seconds > 0
        assert path.transport == "quic"
        pings = [it.session.ping() for _ in range(5)]
        assert len(await asyncio.gather(*pings, it.theirs.ping())) == 6


async def test_a_ping_waits_for_a_path_and_survives_the_loss_of_one() -> None:
    async with pair("memory") as it:
        weather = Weather(it.dialler, it.acceptor)
        weather.cut()
        await until(lambda: it.session.state == "lingering")
        pinging = asyncio.ensure_future(it.session.ping())
        await asyncio.sleep(0)
        weather.cut_off = False
        seconds, _ = await pinging
        assert seconds >= 0
        last = asyncio.ensure_future(it.session.ping())
        await asyncio.sleep(0)
        await it.session.aclose()
        with pytest.raises(SessionClosed):
            await last


async def test_of_too_many_datagrams_the_oldest_are_dropped() -> None:
    async with pair("memory", limits=Limits(datagram_queue=4)) as it:
        for number in range(10):
            await it.session.send_datagram(bytes([number]))
        await it.session.ping()
        assert [(await it.theirs.receive_datagram())[0] for _ in range(4)] == [6, 7, 8, 9]


async def test_datagrams_that_wait_are_bounded_in_bytes_too_and_count_in_the_sessions_memory() -> None:
    async with pair("memory") as it:
        pool = it.acceptor._strangers
        before = pool.used
        longest = it.session.max_datagram_size
        for number in range(256 * KiB // longest + 4):
            await it.session.send_datagram(bytes([number]) * longest)
            await it.session.ping()
        held = len(it.theirs._datagrams)
        assert 256 * KiB - longest < held * longest <= 256 * KiB
        assert pool.used - before == held * longest - DATAGRAM_ALLOWANCE
        assert [(await it.theirs.receive_datagram())[0] for _ in range(held)] == list(
            range(number + 1 - held, number + 1)
        )
        assert pool.used == before
        for _ in range(held):
            await it.session.send_datagram(bytes(longest))
        await until(lambda: len(it.theirs._datagrams) == held)
        await it.session.aclose()
        await it.theirs.wait_closed()
        assert pool.used == 0
        # They can still be read, and give nothing back twice.
        assert len([await it.theirs.receive_datagram() for _ in range(held)]) == held
        assert pool.used == 0


async def test_without_memory_the_newest_datagrams_are_kept_within_the_allowance() -> None:
    async with pair("memory", limits=Limits(session_memory=64 * KiB)) as it:
        longest = it.session.max_datagram_size
        for number in range(2 * DATAGRAM_ALLOWANCE // longest + 2):
            await it.session.send_datagram(bytes([number]) * longest)
            await it.session.ping()
        assert 0 < sum(map(len, it.theirs._datagrams)) <= DATAGRAM_ALLOWANCE
        assert it.theirs._datagrams[-1][0] == number


async def test_waiting_for_a_datagram_can_be_cancelled() -> None:
    async with pair("memory") as it:
        waiting = asyncio.ensure_future(it.theirs.receive_datagram())
        await asyncio.sleep(0)
        waiting.cancel()
        await asyncio.wait([waiting])
        await it.session.send_datagram(b"kept")
        assert await it.theirs.receive_datagram() == b"kept"


async def test_without_a_path_a_datagram_is_dropped() -> None:
    async with pair("memory") as it:
        Weather(it.dialler, it.acceptor).cut()
        await until(lambda: it.session.state == "lingering")
        await it.session.send_datagram(b"lost")


async def test_a_protocols_name_is_checked() -> None:
    async with pair("memory") as it:
        for name in ("", "x" * 256):
            with pytest.raises(ValueError, match="1 to 255"):
                await it.session.open_stream(name)


async def test_leaving_the_session_closes_it() -> None:
    async with pair("memory") as it:
        async with it.session:
            await it.session.ping()
        assert isinstance(await it.theirs.wait_closed(), SessionClosed)


# ---------------------------------------------------------------- peers that break the protocol


class Spy:
    """Hears why a connection ended, and hands everything on."""

    def __init__(self, connection: Connection) -> None:
        self._handler = connection.handler
        self.reason: CloseReason | None = None
        connection.handler = self

    def __getattr__(self, name: str) -> Any:
        return getattr(self._handler, name)

    def closed(self, connection: Connection, reason: CloseReason) -> None:
        self.reason = reason
        self._handler.closed(connection, reason)


@asynccontextmanager
async def two_connections(transport: str) -> AsyncIterator[tuple[Pair, Connection]]:
    """A session over QUIC and TCP at once, and the one of them over `transport`."""
    async with pair("quic", "tcp") as it:
        peer = it.dialler._peers[it.acceptor.peer_id]
        [address] = ticket(it.acceptor, "tcp").addresses
        connection = await it.dialler.transport("tcp").dial(address, it.acceptor.peer_id, peer)
        await peer.dialled(connection, it.session, lambda: Origin("replace"))
        await until(lambda: len(it.session.paths) == len(it.theirs.paths) == 2)
        [chosen] = [one for one in peer.connections.values() if one.transport == transport]
        yield it, chosen


def own(session: Session) -> int:
    """A stream id of ours, far beyond what the peer allows."""
    return session._core.core._next_local + 2 * 100_000


def alien(session: Session) -> int:
    """One that only the peer may open, and has not."""
    return session._core.core._next_remote + 2 * 100_000


VIOLATIONS: list[tuple[str, Callable[[Session], bytes], CloseCode]] = [
    ("a frame cut short", lambda session: b"\x04\x01\x00", CloseCode.FRAME_ERROR),
    ("surplus bytes in a frame", lambda session: b"\x06\x02\x01\x01", CloseCode.FRAME_ERROR),
    ("an unknown mandatory frame", lambda session: b"\x3e\x00", CloseCode.FRAME_ERROR),
    ("a control frame that is too long", lambda session: b"\x04\x7f\xff", CloseCode.FRAME_ERROR),
    ("a stream beyond the credit", lambda session: encode(Fin(own(session), 0)), CloseCode.STREAM_ID_ERROR),
    ("a stream that only we may open", lambda session: encode(Fin(alien(session), 0)), CloseCode.STREAM_ID_ERROR),
    ("STOP for a stream never opened", lambda session: encode(Stop(alien(session), 1)), CloseCode.STREAM_ID_ERROR),
    ("GONE for a stream never opened", lambda session: encode(Gone(alien(session))), CloseCode.STREAM_ID_ERROR),
    (
        "an acknowledgement of what was never sent",
        lambda session: encode(Window(0, 10**9, 10**9)),
        CloseCode.FLOW_CONTROL_ERROR,
    ),
    ("a second HELLO", lambda session: encode(Hello(1, 2, 0, 0, 0, 1)), CloseCode.STATE_ERROR),
]


@pytest.mark.parametrize("transport", ["quic", "tcp"])
@pytest.mark.parametrize(("frame", "code"), [case[1:] for case in VIOLATIONS], ids=[case[0] for case in VIOLATIONS])
async def test_a_violation_closes_the_connection_that_brought_it_and_nothing_else(
    transport: str, frame: Callable[[Session], bytes], code: CloseCode
) -> None:
    async with two_connections(transport) as (it, connection), it.streams() as (ours, theirs):
        # Both have stream 0, whoever may open the even ones.
        it.dialler.handle("echo/1", lambda stream: asyncio.sleep(0))
        await (await it.theirs.open_stream("echo/1")).aclose()
        async with await it.theirs.open_stream("echo/1"), await it.session.open_stream("echo/1") as open_one:
            crafted = encode(Window(open_one.id, 10**9, 10**9)) if code is CloseCode.FLOW_CONTROL_ERROR else None
            spy = Spy(connection)
            connection.send_frame(crafted or frame(it.session))
            connection.flush()
            await until(lambda: spy.reason is not None)
            assert spy.reason is not None
            assert (spy.reason.by, spy.reason.code) == (ClosedBy.PEER, code)
            assert spy.reason.reason
            await ours.write(b"unharmed")
            assert await theirs.readexactly(8) == b"unharmed"
            assert it.session.state == it.theirs.state == "connected"
            assert it.acceptor.sessions == {it.dialler.peer_id: it.theirs}


@pytest.mark.parametrize("transport", ["quic", "tcp"])
async def test_data_beyond_the_limit_closes_the_connection_that_brought_it(transport: str) -> None:
    async with two_connections(transport) as (it, connection), it.streams() as (ours, theirs):
        spy = Spy(connection)
        connection.send_stream(ours.id, 10**9, b"x", idle=True)
        connection.flush()
        await until(lambda: spy.reason is not None)
        assert spy.reason is not None
        assert (spy.reason.by, spy.reason.code) == (ClosedBy.PEER, CloseCode.FLOW_CONTROL_ERROR)
        await ours.write(b"unharmed")
        assert await theirs.readexactly(8) == b"unharmed"
        assert it.acceptor.sessions == {it.dialler.peer_id: it.theirs}


@pytest.mark.parametrize("transport", ["quic", "tcp"])
async def test_a_frame_for_a_closed_stream_is_no_violation(transport: str) -> None:
    async with two_connections(transport) as (it, connection):
        stream = await it.session.open_stream("echo/1")
        await stream.aclose()
        await until(lambda: not it.session._core.core.streams and not it.theirs._core.core.streams)
        for frame in (Fin(stream.id, 0), Stop(stream.id, 1), Window(stream.id, 5, 5), Gone(stream.id)):
            connection.send_frame(encode(frame))
        connection.send_stream(stream.id, 0, b"late", idle=True)
        connection.flush()
        assert await exchange(it.session, b"unharmed") == b"unharmed"
        assert len(it.session.paths) == 2


async def test_the_loss_of_one_of_two_connections_is_told() -> None:
    async with two_connections("quic") as (it, connection):
        events = it.dialler.events()
        first = asyncio.ensure_future(anext(events))
        await asyncio.sleep(0)
        connection.abort()
        told = await first
        assert isinstance(told, PathLost)
        assert (told.transport, told.remaining) == ("quic", 1)
        assert [one.transport for one in connections(it.dialler, it.acceptor.peer_id)] == ["tcp"]
        assert it.session.state == "connected"
        await events.aclose()
