"""The corner cases of the mapping from keys to addresses, each with a test named after it: what nobody has asked for.

The table of all of them is in `test_corner_cases.py`.
"""

import asyncio
import logging
import os
import random
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Collection
from contextlib import asynccontextmanager
from itertools import product
from typing import Literal

import pytest
from corner_support import telling

from overlay import (
    AddressError,
    Config,
    DialError,
    Endpoint,
    Identity,
    IdentityError,
    PeerConnected,
    PeerDisconnected,
    PeerId,
    PeerRestarted,
    SessionClosed,
    SessionRefused,
    SessionReplaced,
)
from overlay.peer import Peer
from overlay.protocol.codes import CloseCode
from overlay.protocol.frames import (
    Accept,
    Close,
    Fin,
    Gone,
    Hello,
    Ping,
    Pong,
    Reset,
    Retire,
    Stop,
    Streams,
    Sync,
    Window,
    encode,
)
from overlay.protocol.gate import HandshakeGate
from overlay.protocol.peer_states import TABLE, Happening, PeerState
from overlay.testing import (
    LOOPBACK,
    KiB,
    Recorder,
    Weather,
    connections,
    crash,
    echo,
    exchange,
    interrupted,
    pair,
    ticket,
    until,
)
from overlay.transports.base import ClosedBy, CloseReason, Connection
from overlay.transports.tcp import TcpTransport

ALL = Config(listen=LOOPBACK)
TCP = Config(listen=LOOPBACK, transports=("tcp",))
HELLO = Hello(process=7, mine=8, your_process=0, yours=0, linger=1000, dial=1)
FRAMES = (
    HELLO,
    Accept(process=7, mine=8, yours=9, linger=1000),
    Window(0, 0, 0),
    Window(2**61, 2**61, 2**61),
    Streams(2**61),
    Fin(4, 5),
    Fin(2**61, 2**61),
    Reset(4, 5, 6),
    Stop(4, 5),
    Gone(4),
    Gone(2**61),
    Ping(1),
    Pong(1),
    Sync(),
    Retire(),
    Close(0),
)


@asynccontextmanager
async def stranger(
    endpoint: Endpoint, identity: Identity | None = None
) -> AsyncIterator[Callable[[], Awaitable[tuple[Connection, Recorder]]]]:
    """Somebody with a proven key and no manners: each call dials once more over TCP, and then says nothing."""

    def nobody(_: Connection) -> Recorder:
        raise AssertionError

    transport = TcpTransport(identity or Identity.generate(), TCP, [], nobody, HandshakeGate(8, 8))
    [address] = ticket(endpoint, "tcp").addresses

    async def dial() -> tuple[Connection, Recorder]:
        recorder = Recorder()
        return await transport.dial(address, endpoint.peer_id, recorder), recorder

    try:
        yield dial
    finally:
        await transport.aclose()


async def test_16_garbage_huge_lengths_silent_handshakes(caplog: pytest.LogCaptureFixture) -> None:
    """Each ends by itself, by a deadline at the latest; whoever is connected or connects meanwhile does not notice."""
    config = Config(listen=LOOPBACK, handshake_timeout=0.5)
    chance = random.Random(16)
    async with Endpoint(Identity.generate(), config) as server, Endpoint(Identity.generate(), ALL) as client:
        server.handle("echo/1", echo)
        session = await client.connect(ticket(server))
        host, port = "127.0.0.1", server.addresses[0].port
        garbage = [bytes([first]) + chance.randbytes(chance.randrange(1, 1400)) for first in range(0, 256, 3)]
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
            for data in garbage:
                udp.sendto(data, (host, port))
        # A TLS record of 64 KiB, a handshake message of 16 MiB, and those who begin and say nothing.
        openings = [b"\x16\x03\x01\xff\xff" + bytes(1000), b"\x16\x03\x01\x40\x00\x01\xff\xff\xff" + bytes(1000)]
        ends = [await asyncio.open_connection(host, port) for _ in range(16)]
        for (_, writer), data in zip(ends, [*openings, b"\x16", b"", *garbage], strict=False):
            writer.write(data)
        async with stranger(server) as dial:
            bad, silent = await dial(), await dial()
            assert isinstance(bad[0], Connection)
            bad[0].send_frame(encode(HELLO))
            bad[0].flush()
            await until(lambda: bad[1].frames)
            # A frame that says it is longer than memory: type 0x40 .., length 2**61, as QUIC writes integers.
            bad[0].send_frame(b"\x05" + (0xC0 << 56 | 2**61).to_bytes(8, "big") + bytes(100))
            bad[0].flush()
            await until(lambda: bad[1].reason is not None)
            assert bad[1].reason is not None
            assert bad[1].reason.code == CloseCode.FRAME_ERROR
            await until(lambda: silent[1].reason is not None)
            assert silent[1].reason is not None
            assert silent[1].reason.code == CloseCode.HANDSHAKE_TIMEOUT
        async with Endpoint(Identity.generate(), ALL) as another:
            assert await exchange(await another.connect(ticket(server)), b"in between") == b"in between"
        async with asyncio.timeout(20):
            for reader, writer in ends:
                await reader.read()
                writer.close()
        await until(lambda: server._gate.pending == 0)
        assert await exchange(session, b"unharmed") == b"unharmed"
        assert [one.peer_id for one in server.peers() if one.paths] == [client.peer_id]
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]


async def test_17_partial_writes_and_cancelled_reads_keep_framing(caplog: pytest.LogCaptureFixture) -> None:
    """Writes, reads, datagrams and events, cancelled in each turn of the loop, on sockets that take a little each."""
    sent = os.urandom(100 * KiB)
    async with pair("tcp") as it, it.streams() as (ours, theirs):
        for connection in it.connections:
            sock: socket.socket = vars(connection).get("_sock") or connection._sock  # type: ignore[attr-defined]
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4 * KiB)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 * KiB)

        async def write() -> None:
            turn = 0
            while ours.bytes_accepted < len(sent):
                await interrupted(ours.write(sent[ours.bytes_accepted :][: 20 * KiB]), turn % 7)
                turn += 1
            await ours.write_eof()

        async def read() -> bytes:
            got = bytearray()
            turn = 0
            while len(got) < len(sent):
                wanted = min(1 + 977 * (turn % 11), len(sent) - len(got))
                got += await interrupted(theirs.readexactly(wanted), turn % 7) or b""
                turn += 1
            return bytes(got)

        async def talk() -> None:
            for _ in range(10):
                assert await exchange(it.session, sent[:5000]) == sent[:5000]

        _, got, _ = await asyncio.gather(write(), read(), talk())
        assert got == sent
        assert await theirs.read() == b""
        events = it.dialler.events()
        for turns in range(5):
            assert await interrupted(it.theirs.receive_datagram(), turns) is None
            assert await interrupted(anext(events), turns) is None
        await it.session.send_datagram(b"whole")
        assert await it.theirs.receive_datagram() == b"whole"
        await it.theirs.aclose()
        assert [type(await anext(events)).__name__ for _ in range(2)] == ["PathLost", "PeerDisconnected"]
        await events.aclose()
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]


@pytest.mark.parametrize("state", ["before hello", "accepted", "draining"])
async def test_18_an_unexpected_packet_in_a_state_harms_its_connection_only(
    state: str, caplog: pytest.LogCaptureFixture
) -> None:
    assert set(TABLE) == set(product(PeerState, Happening))
    async with Endpoint(Identity.generate(), TCP) as server, Endpoint(Identity.generate(), TCP) as client:
        server.handle("echo/1", echo)
        session = await client.connect(ticket(server))
        for frame in FRAMES:
            identity = Identity.generate()
            async with stranger(server, identity) as dial:
                connection, recorder = await dial()
                assert isinstance(recorder, Recorder)
                if state != "before hello":
                    connection.send_frame(encode(HELLO))
                if state == "draining":
                    connection.send_frame(encode(Retire()))
                connection.send_frame(encode(frame))
                # Whatever came of the one before, this one is not allowed anywhere.
                connection.send_frame(encode(Accept(process=1, mine=1, yours=1, linger=1)))
                connection.flush()
                await until(lambda recorder=recorder: recorder.reason is not None)  # type: ignore[misc]
                assert recorder.reason is not None
                if state == "before hello" and not isinstance(frame, Close):
                    assert recorder.reason.code == CloseCode.STATE_ERROR
                assert recorder.reason.code != CloseCode.INTERNAL_ERROR
            await until(lambda identity=identity: not connections(server, identity.peer_id))  # type: ignore[misc]
            assert await exchange(session, b"unharmed") == b"unharmed"
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]


Accepting = Literal["all", "known"] | Collection[PeerId] | Callable[[PeerId], bool]


@pytest.mark.parametrize("transport", ["memory", "tcp", "udp", "quic"])
@pytest.mark.parametrize("form", ["known", "list", "function", "blocked"])
async def test_20_admission_comes_before_any_state(transport: str, form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    friend, foe = Identity.generate(), Identity.generate()
    forms: dict[str, Accepting] = {
        "known": "known",
        "list": {friend.peer_id},
        "function": lambda peer_id: peer_id == friend.peer_id,
        "blocked": "all",
    }
    config = Config(listen=LOOPBACK, transports=(transport,), accept=forms[form])
    usual = Config(listen=LOOPBACK, transports=(transport,))
    async with Endpoint(Identity.generate(), config) as server, telling(server) as told:
        if form == "known":
            server.keep(friend.peer_id, name="friend")
        if form == "blocked":
            server.block(foe.peer_id)
        made: list[PeerId] = []
        make = server._peer

        def made_for(peer_id: PeerId) -> Peer:
            made.append(peer_id)
            return make(peer_id)

        monkeypatch.setattr(server, "_peer", made_for)
        before = server.book.peers
        async with Endpoint(foe, usual) as refused:
            for early in (False, True):
                with pytest.raises(SessionRefused) as caught:
                    session = await refused.connect(ticket(server), early=early)
                    async with await session.open_stream("echo/1") as stream:
                        await stream.read(1)
                assert caught.value.code == CloseCode.REFUSED
            assert foe.peer_id not in made
            assert not told
            assert server.book.peers == before
            assert not server.is_caller(foe.peer_id)
        async with Endpoint(friend, usual) as welcome:
            await welcome.connect(ticket(server))
            await until(lambda: server.sessions)
            # Blocking ends what there is; a second word lets it in again.
            server.block(friend.peer_id)
            await until(lambda: not server.sessions and not welcome.sessions)
            with pytest.raises(SessionRefused):
                await welcome.connect(ticket(server))
            with pytest.raises(DialError, match="blocked"):
                await server.connect(ticket(welcome))
            server.unblock(friend.peer_id)
            if form == "known":
                server.keep(friend.peer_id, name="friend")
            await welcome.connect(ticket(server))
        await until(lambda: isinstance(told[-1], PeerDisconnected))
        assert {event.peer_id for event in told} == {friend.peer_id}


async def test_24_handles_are_keys_neither_truncated_nor_reused() -> None:
    """Two keys that begin alike are two peers; a name that was cut is none; an old handle never leads to a new one."""
    raw = Identity.generate().peer_id.raw
    async with Endpoint(Identity.generate(), Config(transports=("memory",))) as us:
        alike = []
        for last in range(256):
            try:
                alike.append(PeerId(raw[:31] + bytes([last])))
            except IdentityError:
                continue
        first, second = alike[:2]
        assert first.short == second.short
        us.keep(first, name="first")
        us.keep(second, name="second")
        assert {one.peer_id: one.name for one in us.peers()} == {first: "first", second: "second"}
        us.block(first)
        assert [us.book.is_blocked(one) for one in (first, second)] == [True, False]
        us.remove(second)
        assert [one.peer_id for one in us.peers()] == [first]
        for cut in (str(first)[:-1], first.short, str(first)[:51] + "!"):
            with pytest.raises(AddressError):
                await us.connect(cut)
            with pytest.raises(AddressError):
                us.keep(cut)
    async with pair("tcp") as it, it.streams() as (stream, _):
        old, numbers = it.session, [it.connections[0].id]
        stale = it.connections[0]
        await old.aclose()
        new = await it.dialler.connect(ticket(it.acceptor))
        [carrier] = connections(it.dialler, it.acceptor.peer_id)
        numbers.append(carrier.id)
        peer = it.dialler._peers[it.acceptor.peer_id]
        assert new is not old
        for work in (old.open_stream("echo/1"), old.send_datagram(b"x"), stream.write(b"x")):
            with pytest.raises(SessionClosed):
                await work
        # The late end of the old connection is not that of the new one, although the key is the same.
        assert stale.is_closed
        stale.abort()
        peer.closed(stale, CloseReason(ClosedBy.NETWORK))
        await old.aclose()
        assert await exchange(new, b"new") == b"new"
        assert connections(it.dialler, it.acceptor.peer_id) == [carrier]
        assert len(set(numbers)) == 2


@pytest.mark.parametrize("transport", ["quic", "udp"])
async def test_26_a_new_connection_replaces_a_dead_one_that_lingers(transport: str) -> None:
    """The server has not noticed that the first is dead: once the same process comes anew, once another one."""
    config = Config(listen=LOOPBACK, transports=(transport,))
    identity = Identity.generate()
    async with Endpoint(Identity.generate(), config) as server, telling(server) as told:
        server.handle("echo/1", echo)
        first = await Endpoint(identity, config).__aenter__()
        session = await first.connect(ticket(server))
        await until(lambda: server.sessions)
        theirs = server.sessions[identity.peer_id]
        [dead] = connections(server, identity.peer_id)
        weather = Weather(first)
        weather.udp_blocked = True
        for connection in connections(first, server.peer_id):
            connection.abort()
        weather.udp_blocked = False
        assert await exchange(session, b"the same process") == b"the same process"
        assert server.sessions == {identity.peer_id: theirs}
        await until(lambda: connections(server, identity.peer_id) not in ([], [dead]))
        assert not any(isinstance(event, PeerDisconnected) for event in told)
        weather.udp_blocked = True
        await crash(first)
        async with Endpoint(identity, config) as second:
            session = await second.connect(ticket(server))
            assert await exchange(session, b"another process") == b"another process"
            assert isinstance(await theirs.wait_closed(), PeerRestarted)
            kinds = (PeerConnected, SessionReplaced, PeerDisconnected)
            await until(lambda: isinstance([event for event in told if isinstance(event, kinds)][-1], PeerConnected))
            assert [type(event) for event in told if isinstance(event, kinds)] == [
                PeerConnected,
                SessionReplaced,
                PeerDisconnected,
                PeerConnected,
            ]
