"""What is dialled for whom, and what a dial leaves behind."""

import asyncio
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from types import SimpleNamespace

import pytest

from overlay import Address, Config, DialError, Endpoint, Identity, Origin, PathLost, Session, SessionRefused, Ticket
from overlay.protocol.evidence import Source
from overlay.testing import LOOPBACK, Weather, connections, exchange, interrupted, pair, ticket, until
from overlay.transports.base import ClosedBy, CloseReason


@contextmanager
def black_hole() -> Iterator[Address]:
    """A port of ours on which nobody answers, neither UDP nor TCP."""
    with ExitStack() as sockets:
        while True:
            udp = sockets.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
            udp.bind(("127.0.0.1", 0))
            port = udp.getsockname()[1]
            tcp = sockets.enter_context(socket.socket(socket.AF_INET, socket.SOCK_STREAM))
            try:
                tcp.bind(("127.0.0.1", port))
            except OSError:
                continue
            # The kernel takes the connection, and nobody ever reads from it.
            tcp.listen()
            yield Address(None, "127.0.0.1", port)
            return


async def test_a_session_closed_during_an_upgrade_does_not_come_back() -> None:
    """What was dialled for a session ends with it: UDP returns, and nobody is connected."""
    config = Config(listen=LOOPBACK)
    async with Endpoint(Identity.generate(), config) as acceptor, Endpoint(Identity.generate(), config) as dialler:
        weather = Weather(acceptor, dialler)
        weather.udp_blocked = True
        session = await dialler.connect(ticket(acceptor))
        assert [path.transport for path in session.paths] == ["tcp"]
        task = dialler._peers[acceptor.peer_id].dialler
        await until(lambda: task._step == "upgrade" and task._race is not None and bool(task._race._running))
        await session.aclose()
        weather.udp_blocked = False
        await until(lambda: not dialler._peers and not acceptor._peers)
        assert not dialler.sessions
        assert not acceptor.sessions


async def test_connect_does_not_wait_behind_an_upgrade() -> None:
    """A new wish starts a race over all addresses at once: TCP is tried though an upgrade was trying QUIC alone."""
    config = Config(listen=LOOPBACK)
    async with Endpoint(Identity.generate(), config) as acceptor, Endpoint(Identity.generate(), config) as dialler:
        Weather(acceptor, dialler).udp_blocked = True
        session = await dialler.connect(ticket(acceptor))
        task = dialler._peers[acceptor.peer_id].dialler
        await until(lambda: task._step == "upgrade" and task._race is not None and bool(task._race._running))
        await session.aclose()
        again = await dialler.connect(ticket(acceptor), timeout=10)
        assert [path.transport for path in again.paths] == ["tcp"]


async def test_a_second_callers_address_and_patience_count_for_the_dial_that_is_on() -> None:
    """One who knows the right address helps the other one, whose time is short and whose address is dead."""
    config = Config(listen=LOOPBACK)
    async with Endpoint(Identity.generate(), config) as acceptor, Endpoint(Identity.generate(), config) as dialler:
        with black_hole() as dead:
            first = asyncio.create_task(_connect(dialler, Ticket(acceptor.peer_id, [dead]), 20))
            await until(lambda: acceptor.peer_id in dialler._peers)
            second = await dialler.connect(ticket(acceptor), timeout=10)
            assert await first is second


async def test_a_lingering_session_is_found_at_the_address_of_a_new_ticket() -> None:
    """The old address is a black hole; `connect` with the new one resumes the same session."""
    async with pair("tcp") as it:
        weather = Weather(it.dialler)
        weather.cut()
        await until(lambda: it.session.state == "lingering")
        dialler = it.dialler._peers[it.acceptor.peer_id].dialler
        with black_hole() as dead:
            it.dialler.book.forget(it.acceptor.peer_id)
            dialler.learn(dead, Source.TICKET)
            weather.cut_off = False
            await until(lambda: dialler._step == "dial" and dialler._race is not None and dialler._race._running)
            assert await it.dialler.connect(ticket(it.acceptor), timeout=10) is it.session
        assert await exchange(it.session, b"still here") == b"still here"


@pytest.mark.parametrize("turns", [0, 1, 2, 5, 10, 40])
async def test_a_cancelled_connect_leaves_no_session_behind(turns: int) -> None:
    """Wherever the cancel strikes: either there is a session that is connected, or there is nothing."""
    config = Config(listen=LOOPBACK, transports=("tcp",))
    async with Endpoint(Identity.generate(), config) as acceptor, Endpoint(Identity.generate(), config) as dialler:
        await interrupted(_connect(dialler, ticket(acceptor), 10), turns)
        for session in dialler.sessions.values():
            assert session.state == "connected"
            await session.aclose()
        await until(lambda: not dialler._peers and not acceptor._peers)


async def test_a_path_that_we_give_up_is_reported_lost() -> None:
    """Whoever closes a connection, there is one PathLost for it."""
    async with pair("tcp") as it:
        events = it.dialler.events()
        [ours] = connections(it.dialler, it.acceptor.peer_id)
        core = it.dialler._peers[it.acceptor.peer_id]._core
        core.connection_lost(ours.id, 0.0, by_peer=False)
        ours.abort()
        async with asyncio.timeout(10):
            async for event in events:
                if isinstance(event, PathLost):
                    assert event.transport == "tcp"
                    break
        await events.aclose()


async def test_a_refusal_is_told_at_once_although_another_address_never_answers() -> None:
    """The key itself has said no: nobody waits for the black hole."""
    refusing = Config(listen=LOOPBACK, accept=lambda peer_id: False)
    async with (
        Endpoint(Identity.generate(), refusing) as acceptor,
        Endpoint(Identity.generate(), Config(listen=LOOPBACK)) as dialler,
    ):
        with black_hole() as dead:
            both = Ticket(acceptor.peer_id, [dead, *acceptor.addresses])
            with pytest.raises(SessionRefused) as refused:
                await dialler.connect(both, timeout=60)
            assert isinstance(refused.value.__cause__, DialError)


async def test_a_connection_that_ended_before_it_was_introduced_is_no_surprise() -> None:
    """A hostile acceptor hangs up in the very batch that completes our handshake."""
    async with pair("tcp") as it:
        peer = it.dialler._peers[it.acceptor.peer_id]
        [ours] = connections(it.dialler, it.acceptor.peer_id)
        ours.abort()
        with pytest.raises(ConnectionError):
            peer.dialled(ours, it.session, lambda: Origin("connect"))
        await until(lambda: not peer.connections or ours.id not in peer.connections)
        peer.closed(ours, CloseReason(ClosedBy.NETWORK))


async def _connect(endpoint: Endpoint, target: Ticket, timeout: float) -> Session:
    return await endpoint.connect(target, timeout=timeout)


async def test_a_path_says_why_it_is_this_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """What it was dialled for, how long that took, and what else had been tried by then."""
    # No upgrade begins before the weather is better: it would be silent for long.
    monkeypatch.setattr("overlay.dialler.random", SimpleNamespace(random=lambda: 0.9))
    config = Config(listen=LOOPBACK)
    async with Endpoint(Identity.generate(), config) as acceptor, Endpoint(Identity.generate(), config) as dialler:
        weather = Weather(acceptor, dialler)
        weather.udp_blocked = True
        session = await dialler.connect(ticket(acceptor))
        origin = session.paths[0].origin
        assert origin.purpose == "connect"
        assert origin.seconds is not None and origin.seconds >= 0.35, "the head start of QUIC, and of raw UDP"
        [quic, raw] = origin.attempts
        assert (raw.address.startswith("udp://"), raw.stage) == (True, "connect")
        assert (quic.address.startswith("quic://"), quic.stage) == (True, "connect")
        assert "the first to answer" in str(origin) and "quic://" in str(origin)
        [theirs] = acceptor.sessions[dialler.peer_id].paths
        assert (theirs.origin.purpose, theirs.origin.seconds, theirs.origin.attempts) == ("inbound", None, ())
        weather.udp_blocked = False
        await until(lambda: session.paths[0].transport == "quic")
        assert session.paths[0].origin.purpose == "upgrade"
        for connection in connections(dialler, acceptor.peer_id):
            connection.abort()
        await until(lambda: bool(session.paths) and session.paths[0].origin.purpose == "replace")


async def test_a_path_behind_a_name_tells_what_else_the_name_led_to(monkeypatch: pytest.MonkeyPatch) -> None:
    """The name itself is no rival of its own address; and what is kept of failures keeps no frames alive."""
    config = Config(listen=LOOPBACK, transports=("tcp",))
    async with Endpoint(Identity.generate(), config) as acceptor, Endpoint(Identity.generate(), config) as dialler:
        here = acceptor.addresses[0]
        with socket.socket() as closed, black_hole() as hole:
            closed.bind(("127.0.0.1", 0))

            async def lookup(*_: object, **__: object) -> list[tuple[object, ...]]:
                found = (closed.getsockname(), ("127.0.0.1", hole.port), ("127.0.0.1", here.port))
                return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", one) for one in found]

            monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", lookup)
            target = Ticket(acceptor.peer_id, (Address("tcp", "peer.example", 9330),))
            session = await dialler.connect(target)
            refused, pending = sorted(session.paths[0].origin.attempts, key=lambda one: str(one.cause))
        assert isinstance(refused.cause, ConnectionRefusedError)
        assert refused.cause.__traceback__ is None
        assert (pending.address, pending.stage) == (f"tcp://127.0.0.1:{hole.port}", "connect")


async def test_a_replacement_does_not_wait_behind_an_upgrade() -> None:
    """An upgrade tries QUIC alone, for as long as a dial may take; TCP has to be tried meanwhile if it is needed."""
    config = Config(listen=LOOPBACK, resume_timeout=10)
    async with Endpoint(Identity.generate(), config) as acceptor, Endpoint(Identity.generate(), config) as dialler:
        Weather(acceptor, dialler).udp_blocked = True
        session = await dialler.connect(ticket(acceptor))
        task = dialler._peers[acceptor.peer_id].dialler
        await until(lambda: task._step == "upgrade" and task._race is not None and bool(task._race._running))
        for connection in connections(dialler, acceptor.peer_id):
            connection.abort()
        await until(lambda: [(path.transport, path.origin.purpose) for path in session.paths] == [("tcp", "replace")])
