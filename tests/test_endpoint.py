"""Endpoints: connecting in all its forms, what is told when it fails, and that nothing is left."""

import asyncio
import contextlib
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from overlay import (
    Address,
    Config,
    ConfigError,
    DialError,
    Endpoint,
    EndpointClosed,
    Identity,
    IdentityError,
    Limits,
    PathChanged,
    PathLost,
    PeerConnected,
    PeerDisconnected,
    SelfDial,
    SessionClosed,
    SessionRefused,
    Stream,
    StreamReset,
    Ticket,
    WrongIdentity,
)
from overlay import dialler as dialler_module
from overlay import endpoint as endpoint_module
from overlay.protocol.codes import CloseCode, StreamCode
from overlay.protocol.frames import MINIMUM_STREAMS, MINIMUM_WINDOW
from overlay.testing import LOOPBACK, KiB, MiB, Weather, connections, echo, exchange, pair, ticket, until

SOCKETS = Config(listen=LOOPBACK)
MEMORY = Config(transports=("memory",))


@contextlib.contextmanager
def black_hole() -> Iterator[int]:
    """A port on which UDP is never read and TCP connects, but nobody ever speaks."""
    with socket.socket() as tcp, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
        tcp.bind(("127.0.0.1", 0))
        tcp.listen()
        port = tcp.getsockname()[1]
        udp.bind(("127.0.0.1", port))
        yield port


def at(port: int, transport: str | None = None, key: Identity | None = None) -> Ticket:
    return Ticket((key or Identity.generate()).peer_id, (Address(transport, "127.0.0.1", port),))


async def nothing_is_left(endpoint: Endpoint) -> None:
    await until(lambda: not endpoint._peers and not endpoint._tasks and endpoint._gate.pending == 0)
    assert asyncio.all_tasks() == {asyncio.current_task()}
    for transport in endpoint._transports.values():
        for table in ("_connections", "_openings", "_drivers"):
            await until(lambda table=table, transport=transport: not getattr(transport, table, ()))  # type: ignore[misc]


async def test_connect_is_awaited_or_used_as_a_context() -> None:
    async with Endpoint(Identity.generate(), SOCKETS) as server, Endpoint(Identity.generate(), SOCKETS) as client:
        server.handle("echo/1", echo)
        session = await client.connect(server.ticket)
        assert await exchange(session, b"awaited") == b"awaited"
        await session.aclose()
        async with client.connect(str(server.ticket)) as session:
            assert await exchange(session, b"context") == b"context"
        assert session.state == "closed"
        assert not client.sessions


async def test_a_key_is_enough_when_its_address_was_seen() -> None:
    async with Endpoint(Identity.generate(), SOCKETS) as server, Endpoint(Identity.generate(), SOCKETS) as client:
        async with client.connect(server.ticket):
            pass
        await until(lambda: not client._peers and not server._peers)
        async with client.connect(server.peer_id) as session:
            assert await client.connect(str(server.peer_id)) is session
        await until(lambda: not server._peers)
        # The client's QUIC socket is the one that listens: the server may dial it now.
        async with server.connect(client.peer_id) as session:
            assert session.peer_id == client.peer_id


async def test_a_key_of_which_no_address_is_known() -> None:
    async with Endpoint(Identity.generate(), SOCKETS) as client:
        with pytest.raises(DialError, match="no address is known") as caught:
            await client.connect(Identity.generate().peer_id)
        assert caught.value.attempts == ()
        await nothing_is_left(client)


async def test_refused_ports_are_told_with_every_attempt() -> None:
    with socket.socket() as tcp, socket.socket() as other:
        ports = []
        for unused in (tcp, other):
            unused.bind(("127.0.0.1", 0))
            ports.append(unused.getsockname()[1])
        target = Ticket(Identity.generate().peer_id, tuple(Address("tcp", "127.0.0.1", port) for port in ports))
        async with Endpoint(Identity.generate(), SOCKETS) as client:
            with pytest.raises(DialError) as caught:
                await client.connect(target)
            assert {one.address for one in caught.value.attempts} == {f"tcp://127.0.0.1:{port}" for port in ports}
            for attempt in caught.value.attempts:
                assert attempt.stage == "connect"
                assert isinstance(attempt.cause, ConnectionRefusedError)
                assert attempt.milliseconds >= 0
                assert attempt.address in str(caught.value)
            await nothing_is_left(client)


async def test_ports_that_never_answer_are_told_with_every_attempt() -> None:
    async with Endpoint(Identity.generate(), SOCKETS) as client:
        with black_hole() as port:
            with pytest.raises(DialError) as caught:
                await client.connect(at(port), timeout=0.6)
            assert sorted(one.address for one in caught.value.attempts) == [
                f"quic://127.0.0.1:{port}",
                f"tcp://127.0.0.1:{port}",
                f"udp://127.0.0.1:{port}",
            ]
            assert all(isinstance(one.cause, TimeoutError) for one in caught.value.attempts)
            await nothing_is_left(client)


async def test_tcp_is_used_where_udp_is_a_black_hole() -> None:
    async with Endpoint(Identity.generate(), SOCKETS) as server, Endpoint(Identity.generate(), SOCKETS) as client:
        Weather(server, client).udp_blocked = True
        session = await client.connect(server.ticket)
        assert [path.transport for path in session.paths] == ["tcp"]


async def test_somebody_else_answers() -> None:
    async with Endpoint(Identity.generate(), SOCKETS) as server, Endpoint(Identity.generate(), SOCKETS) as client:
        with pytest.raises(WrongIdentity) as caught:
            await client.connect(at(server.addresses[0].port))
        assert {one.stage for one in caught.value.attempts} == {"handshake"}
        await nothing_is_left(client)
        await nothing_is_left(server)


@pytest.mark.parametrize("transport", ["memory", "tcp", "udp", "quic"])
async def test_we_reach_ourselves(transport: str) -> None:
    config = Config(listen=LOOPBACK, transports=(transport,))
    async with Endpoint(Identity.generate(), config) as endpoint:
        addresses = ticket(endpoint, transport).addresses
        with pytest.raises(DialError) as caught:
            await endpoint.connect(Ticket(Identity.generate().peer_id, addresses))
        assert [type(one.cause) for one in caught.value.attempts] == [SelfDial]
        with pytest.raises(DialError, match="other than our own"):
            await endpoint.connect(Ticket(endpoint.peer_id, addresses))
        await nothing_is_left(endpoint)


@pytest.mark.parametrize("transport", ["memory", "tcp", "udp", "quic"])
@pytest.mark.parametrize("early", [False, True])
async def test_a_peer_that_does_not_accept_our_key(transport: str, early: bool) -> None:
    config = Config(listen=LOOPBACK, transports=(transport,))
    closed = Config(listen=LOOPBACK, transports=(transport,), accept=lambda peer_id: False)
    async with Endpoint(Identity.generate(), closed) as server, Endpoint(Identity.generate(), config) as client:
        with pytest.raises(SessionRefused) as caught:
            session = await client.connect(ticket(server), early=early)
            async with await session.open_stream("echo/1") as stream:
                await stream.read(1)
        assert caught.value.code == CloseCode.REFUSED
        await nothing_is_left(client)
        await nothing_is_left(server)


async def test_more_strangers_than_the_limit_are_told_that_we_are_busy() -> None:
    config = Config(listen=LOOPBACK, limits=Limits(stranger_sessions=1))
    async with (
        Endpoint(Identity.generate(), config) as server,
        Endpoint(Identity.generate(), SOCKETS) as first,
        Endpoint(Identity.generate(), SOCKETS) as second,
    ):
        session = await first.connect(server.ticket)
        with pytest.raises(SessionRefused) as caught:
            await second.connect(server.ticket)
        assert caught.value.code == CloseCode.BUSY
        await session.aclose()
        await until(lambda: not server.sessions)
        await second.connect(server.ticket)


async def test_some_networks_are_never_dialled() -> None:
    config = Config(listen=LOOPBACK, never_dial=("127.0.0.0/8",))
    async with Endpoint(Identity.generate(), SOCKETS) as server, Endpoint(Identity.generate(), config) as client:
        with pytest.raises(DialError, match="never_dial") as caught:
            await client.connect(server.ticket)
        assert [type(one.cause) for one in caught.value.attempts] == [PermissionError] * 3


async def test_several_callers_share_one_dial() -> None:
    async with Endpoint(Identity.generate(), MEMORY) as server, Endpoint(Identity.generate(), MEMORY) as client:
        dials = 0
        transport = client.transport("memory")
        dial = transport.dial

        async def counted(*arguments: object) -> object:
            nonlocal dials
            dials += 1
            return await dial(*arguments)  # type: ignore[arg-type]

        vars(transport)["dial"] = counted
        sessions = await asyncio.gather(*(client.connect(ticket(server)) for _ in range(20)))
        assert len(set(map(id, sessions))) == 1
        assert dials == 1


async def test_a_caller_that_gives_up_does_not_harm_the_others() -> None:
    async with Endpoint(Identity.generate(), SOCKETS) as server, Endpoint(Identity.generate(), SOCKETS) as client:
        calls = [asyncio.ensure_future(client._connect(server.ticket, None, early=False)) for _ in range(3)]
        await asyncio.sleep(0)
        calls[0].cancel()
        assert await calls[1] is await calls[2]
        assert calls[0].cancelled()


@pytest.mark.parametrize("turns", [0, 1, 2, 5, 20])
async def test_a_cancelled_connect_leaves_nothing(turns: int) -> None:
    async with Endpoint(Identity.generate(), SOCKETS) as client:
        with black_hole() as port:
            call = asyncio.ensure_future(client._connect(at(port), None, early=False))
            for _ in range(turns):
                await asyncio.sleep(0)
            call.cancel()
            await asyncio.wait([call])
            assert call.cancelled()
            await nothing_is_left(client)


@pytest.mark.parametrize("transport", ["memory", "tcp", "udp", "quic"])
async def test_an_early_connect_lets_the_first_bytes_fly_behind_hello(transport: str) -> None:
    config = Config(listen=LOOPBACK, transports=(transport,))
    async with Endpoint(Identity.generate(), config) as server, Endpoint(Identity.generate(), config) as client:
        server.handle("echo/1", echo)
        async with client.connect(ticket(server), early=True) as session:
            assert session.state == "connecting"
            assert await exchange(session, b"at once") == b"at once"
            assert session.paths


async def test_names_are_resolved() -> None:
    async with Endpoint(Identity.generate(), SOCKETS) as server, Endpoint(Identity.generate(), SOCKETS) as client:
        named = Ticket(server.peer_id, (Address(None, "localhost", server.addresses[0].port),))
        session = await client.connect(named)
        assert session.paths[0].remote.host == "127.0.0.1"


async def test_a_name_that_does_not_exist() -> None:
    """It is an attempt like any other, and its reason is the resolver's own word."""
    async with Endpoint(Identity.generate(), SOCKETS) as client:
        target = Ticket(Identity.generate().peer_id, (Address("tcp", "nobody.invalid", 1),))
        with pytest.raises(DialError) as caught:
            await client.connect(target)
        [attempt] = caught.value.attempts
        assert (attempt.address, attempt.stage) == ("tcp://nobody.invalid:1", "resolve")
        assert isinstance(attempt.cause, socket.gaierror)
        assert str(attempt.cause) in str(caught.value)
        await nothing_is_left(client)


async def test_a_resolver_that_hangs_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """At its own deadline, long before the dial's; and the loop goes on meanwhile, as it hangs in another thread."""
    monkeypatch.setattr(dialler_module, "RESOLVE_TIMEOUT", 0.05)
    reached, go = threading.Event(), threading.Event()
    threads: list[int] = []

    def hang(host: str, *_: object, **__: object) -> list[object]:
        assert host == "slow.example"
        threads.append(threading.get_ident())
        reached.set()
        assert go.wait(60)
        return []

    async with Endpoint(Identity.generate(), SOCKETS) as client:
        monkeypatch.setattr(socket, "getaddrinfo", hang)
        try:
            target = Ticket(Identity.generate().peer_id, (Address("tcp", "slow.example", 1),))
            async with asyncio.timeout(30):
                with pytest.raises(DialError) as caught:
                    await client.connect(target, timeout=300)
            # All this went by, on the loop, while it hung.
            assert reached.is_set()
            assert not go.is_set()
        finally:
            go.set()
        [attempt] = caught.value.attempts
        assert (attempt.address, attempt.stage) == ("tcp://slow.example:1", "resolve")
        assert isinstance(attempt.cause, TimeoutError)
        assert threads
        assert threading.get_ident() not in threads
        await nothing_is_left(client)


async def test_ipv6_works_alike() -> None:
    config = Config(listen=("[::1]:0",))
    async with Endpoint(Identity.generate(), config) as server, Endpoint(Identity.generate(), config) as client:
        server.handle("echo/1", echo)
        async with client.connect(server.ticket) as session:
            assert await exchange(session, b"six") == b"six"
            assert session.paths[0].remote.family == 6


async def test_a_ticket_names_loopback_only_when_nothing_else_is_bound() -> None:
    async with Endpoint(Identity.generate(), SOCKETS) as endpoint:
        assert [address.host for address in endpoint.ticket.addresses] == ["127.0.0.1"]
        assert [address.transport for address in endpoint.ticket.addresses] == [None]
    async with Endpoint(Identity.generate(), Config(listen=("0.0.0.0:0",))) as endpoint:
        hosts = [address.host for address in endpoint.ticket.addresses]
        assert hosts == ["127.0.0.1"] or not any(host.startswith("127.") for host in hosts)
        assert "0.0.0.0" not in hosts


async def test_events_are_told_in_order() -> None:
    config = Config(listen=LOOPBACK, transports=("tcp",))
    async with Endpoint(Identity.generate(), config) as server, Endpoint(Identity.generate(), config) as client:
        events = client.events()
        first = asyncio.ensure_future(anext(events))
        await asyncio.sleep(0)
        session = await client.connect(server.ticket)
        [connection] = connections(client, server.peer_id)
        connection.abort()
        await until(lambda: connection not in connections(client, server.peer_id))
        await until(lambda: session.state == "connected" and session.paths)
        await session.aclose()
        told = [await first]
        while not isinstance(told[-1], PeerDisconnected):
            told.append(await anext(events))
        kinds = [type(event) for event in told]
        assert sorted(map(str, kinds[:2])) == sorted(map(str, [PeerConnected, PathChanged]))
        assert kinds[2:] == [PathLost, PathChanged, PathLost, PeerDisconnected]
        assert isinstance(told[-1].reason, SessionClosed)
        assert all(event.peer_id == server.peer_id for event in told)
        await events.aclose()


async def test_events_end_with_the_endpoint() -> None:
    async with Endpoint(Identity.generate(), MEMORY) as endpoint:
        listening = asyncio.ensure_future(anext(endpoint.events(), None))
        await asyncio.sleep(0)
    assert await listening is None


async def test_a_key_file_serves_one_endpoint_at_a_time(tmp_path: Path) -> None:
    identity = Identity.load_or_create(tmp_path / "key")
    async with Endpoint(identity, MEMORY):
        with pytest.raises(IdentityError):
            await Endpoint(Identity.load_or_create(tmp_path / "key"), MEMORY).__aenter__()
    async with Endpoint(identity, MEMORY) as again:
        assert again.peer_id == identity.peer_id


async def test_an_address_that_cannot_be_bound_leaves_nothing() -> None:
    identity = Identity.generate()
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        config = Config(listen=(f"127.0.0.1:{taken.getsockname()[1]}",))
        with pytest.raises(OSError, match="in use"):
            await Endpoint(identity, config).__aenter__()
    with pytest.raises(ConfigError):
        await Endpoint(identity, Config(listen=("nonsense",))).__aenter__()


async def test_an_endpoint_that_is_not_open() -> None:
    endpoint = Endpoint(Identity.generate(), MEMORY)
    with pytest.raises(EndpointClosed):
        await endpoint.connect(Identity.generate().peer_id)
    async with endpoint:
        with pytest.raises(EndpointClosed):
            await endpoint.__aenter__()
    with pytest.raises(EndpointClosed):
        await endpoint.connect(Identity.generate().peer_id)
    with pytest.raises(ConfigError):
        _ = endpoint.ticket
    await endpoint.aclose()


async def test_closing_an_endpoint_ends_its_sessions_at_both_sides_and_what_is_under_way() -> None:
    async with Endpoint(Identity.generate(), SOCKETS) as server:
        with black_hole() as port:
            async with Endpoint(Identity.generate(), SOCKETS) as client:
                session = await client.connect(server.ticket)
                theirs = server.sessions[client.peer_id]
                dialling = asyncio.ensure_future(client._connect(at(port), None, early=False))
                await asyncio.sleep(0)
            with pytest.raises(EndpointClosed):
                await dialling
        assert isinstance(await session.wait_closed(), SessionClosed)
        ended = await theirs.wait_closed()
        assert isinstance(ended, SessionClosed)
        assert ended.by_peer
        await nothing_is_left(server)


async def test_a_handler_that_fails_resets_its_stream_and_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    async def fail(stream: Stream) -> None:
        await stream.write(b"so far")
        raise LookupError("a fault of the handler")

    async with pair("memory") as it:
        it.acceptor.handle("fail/1", fail)
        stream = await it.session.open_stream("fail/1")
        with pytest.raises(StreamReset) as caught:
            await stream.read()
        assert caught.value.code == StreamCode.HANDLER_FAILED
        await until(lambda: "a fault of the handler" in caplog.text)
        assert await exchange(it.session, b"unharmed") == b"unharmed"


async def test_a_later_handler_replaces_the_earlier_one() -> None:
    async def shout(stream: Stream) -> None:
        await stream.write((await stream.read()).upper())

    async with pair("memory") as it:
        it.acceptor.handle("echo/1", shout)
        assert await exchange(it.session, b"loud") == b"LOUD"


async def test_a_peer_that_resets_its_streams_gets_no_more_handlers_than_streams() -> None:
    limits = Limits(live_streams=MINIMUM_STREAMS)
    async with pair("memory", limits=limits) as it:
        running = most = 0
        gate = asyncio.Event()

        async def hold(stream: Stream) -> None:
            nonlocal running, most
            running += 1
            most = max(most, running)
            try:
                await gate.wait()
            finally:
                running -= 1

        it.acceptor.handle("hold/1", hold)
        for _ in range(10 * MINIMUM_STREAMS):
            stream = await it.session.open_stream("hold/1")
            await it.session.ping()
            await stream.reset(1)
            await stream.stop(1)
        # A late one that is alive waits for its turn, and gets it.
        answer = asyncio.ensure_future(exchange(it.session, b"served"))
        await it.session.ping()
        assert running == most == MINIMUM_STREAMS
        assert len(it.theirs._unserved) <= 2 * MINIMUM_STREAMS
        assert not answer.done()
        gate.set()
        assert await answer == b"served"
        await until(lambda: not running and not it.theirs._unserved and not it.theirs._handlers)
        assert most == MINIMUM_STREAMS


async def test_a_handler_that_ignores_its_cancellation_does_not_keep_the_endpoint_open(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(endpoint_module, "CLOSE_TIMEOUT", 0.01)
    gate = asyncio.Event()
    handlers: list[asyncio.Task[None] | None] = []

    async def hang(stream: Stream) -> None:
        handlers.append(asyncio.current_task())
        while not gate.is_set():
            with contextlib.suppress(asyncio.CancelledError):
                await gate.wait()

    async with Endpoint(Identity.generate(), SOCKETS) as server, Endpoint(Identity.generate(), SOCKETS) as client:
        server.handle("hang/1", hang)
        session = await client.connect(server.ticket)
        stream = await session.open_stream("hang/1")
        await stream.write(b"x")
        await until(lambda: handlers)
        async with asyncio.timeout(5):
            await server.aclose()
        assert "hang/1" in caplog.text
        assert not server._transports
        gate.set()
        [handler] = handlers
        assert handler is not None
        await asyncio.wait([handler])


async def test_who_wants_no_strangers_may_still_dial() -> None:
    alone = Config(transports=("memory",), limits=Limits(stranger_sessions=0))
    async with Endpoint(Identity.generate(), MEMORY) as server, Endpoint(Identity.generate(), alone) as client:
        async with client.connect(ticket(server)) as session:
            assert session.state == "connected"
        await until(lambda: not server.sessions)
        with pytest.raises(SessionRefused):
            await server.connect(ticket(client))


async def test_strangers_have_smaller_send_buffers() -> None:
    async with pair("memory") as it:
        ours, theirs = it.session._core.core.limits, it.theirs._core.core.limits
        assert (ours.session_send_buffer, ours.stream_send_buffer) == (32 * MiB, MiB)
        assert (theirs.session_send_buffer, theirs.stream_send_buffer) == (MiB, 256 * KiB)


async def test_thousands_of_peers_can_be_dialled_the_first_of_them_with_more_memory() -> None:
    endpoint = Endpoint(Identity.generate(), MEMORY)
    granted = []
    while (grant := endpoint.grant(True)) is not None:
        granted.append(grant[0])
    assert len(granted) > 2000
    assert (granted[0].streams, granted[0].window) == (64, 16 * KiB)
    assert (granted[-1].streams, granted[-1].window) == (MINIMUM_STREAMS, MINIMUM_WINDOW)


async def test_strangers_do_not_displace_the_addresses_of_those_we_dialled() -> None:
    config = Config(listen=LOOPBACK, transports=("quic",), limits=Limits(known_peers=1))
    async with Endpoint(Identity.generate(), config) as server, Endpoint(Identity.generate(), config) as friend:
        async with server.connect(friend.ticket):
            pass
        await until(lambda: not server._peers)
        for _ in range(3):
            async with Endpoint(Identity.generate(), config) as stranger:
                async with stranger.connect(server.ticket):
                    pass
                await until(lambda: not server._peers)
        assert server.book.is_known(friend.peer_id)
        async with server.connect(friend.peer_id) as session:
            assert session.peer_id == friend.peer_id


async def test_no_time_is_no_time() -> None:
    async with Endpoint(Identity.generate(), SOCKETS) as client:
        with black_hole() as port:
            async with asyncio.timeout(5):
                with pytest.raises(DialError):
                    await client.connect(at(port), timeout=0)
            await nothing_is_left(client)
