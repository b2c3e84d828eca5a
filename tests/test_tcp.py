"""TCP connections: frames and streams arrive, back-pressure holds, every end is told once, nothing is left."""

import asyncio
import dataclasses
import errno
import os
import socket
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager, suppress
from typing import Any

import pytest
import uvloop

from overlay.addresses import Address
from overlay.config import Config
from overlay.errors import DatagramTooLarge, HandshakeError, IdentityMismatch, SelfDial
from overlay.identity import Identity
from overlay.protocol.codes import CloseCode
from overlay.protocol.frames import Control, Ping, Window, encode
from overlay.protocol.gate import HandshakeGate
from overlay.testing import connections, exchange, pair
from overlay.transports import tcp_connection
from overlay.transports.base import Accepted, ClosedBy, CloseReason, Connection, Role
from overlay.transports.sockets import TcpInfo, bind, tcp_info
from overlay.transports.tcp import TcpTransport
from overlay.transports.tcp_connection import TcpConnection

CONFIG = Config(listen=("127.0.0.1:0",), transports=("tcp",))


class Recorder:
    """A handler that keeps what it is told."""

    def __init__(self) -> None:
        self.frames: list[Control] = []
        self.data = bytearray()
        self.datagrams: list[bytes] = []
        self.reasons: list[CloseReason] = []
        self.on_writable: Callable[[Connection], None] = lambda connection: None
        self._changed = asyncio.Event()

    def frame_received(self, connection: Connection, frame: Control) -> None:
        self.frames.append(frame)
        self._changed.set()

    def stream_received(self, connection: Connection, stream: int, offset: int, data: bytes) -> None:
        assert offset == len(self.data)
        self.data += data
        self._changed.set()

    def datagram_received(self, connection: Connection, data: bytes) -> None:
        self.datagrams.append(data)
        self._changed.set()

    def writable(self, connection: Connection) -> None:
        self.on_writable(connection)

    def closed(self, connection: Connection, reason: CloseReason) -> None:
        self.reasons.append(reason)
        self._changed.set()

    async def until(self, condition: Callable[[], bool]) -> None:
        while not condition():
            self._changed.clear()
            await self._changed.wait()

    async def reason(self) -> CloseReason:
        await self.until(lambda: bool(self.reasons))
        [reason] = self.reasons
        return reason


class Node:
    """A listening transport that keeps what it accepted."""

    def __init__(self, identity: Identity, config: Config, accepted: Accepted | None = None) -> None:
        self.identity = identity
        self.gate = HandshakeGate(8, 8)
        self.handler = Recorder()
        self.accepted: asyncio.Queue[Connection] = asyncio.Queue()
        [pair] = bind(config)
        assert pair.tcp is not None
        self.transport = TcpTransport(identity, config, [pair.tcp], accepted or self._accept, self.gate)
        [self.address] = self.transport.addresses

    def _accept(self, connection: Connection) -> Recorder:
        self.accepted.put_nowait(connection)
        return self.handler


@asynccontextmanager
async def node(config: Config = CONFIG, accepted: Accepted | None = None) -> AsyncIterator[Node]:
    it = Node(Identity.generate(), config, accepted)
    it.transport.start()
    try:
        yield it
    finally:
        await it.transport.aclose()
        assert it.gate.pending == 0
        assert not it.transport._connections
        assert not it.transport._openings


@asynccontextmanager
async def pair_of_connections() -> AsyncIterator[tuple[Node, Node, TcpConnection, TcpConnection]]:
    async with node() as dialler, node() as acceptor:
        ours = await dialler.transport.dial(acceptor.address, acceptor.identity.peer_id, dialler.handler)
        theirs = await acceptor.accepted.get()
        assert isinstance(ours, TcpConnection)
        assert isinstance(theirs, TcpConnection)
        yield dialler, acceptor, ours, theirs


async def test_both_sides_know_each_other() -> None:
    async with pair_of_connections() as (dialler, acceptor, ours, theirs):
        assert ours.peer_id == acceptor.identity.peer_id
        assert theirs.peer_id == dialler.identity.peer_id
        assert (ours.role, theirs.role) == (Role.DIALER, Role.ACCEPTOR)
        assert ours.remote == acceptor.address
        assert theirs.remote == ours.local
        assert acceptor.gate.pending == 0


async def test_frames_streams_and_datagrams_arrive_in_both_directions() -> None:
    async with pair_of_connections() as (dialler, acceptor, ours, theirs):
        for connection in (ours, theirs):
            connection.send_frame(encode(Ping(1)))
            connection.send_stream(0, 0, b"abc", idle=False)
            connection.send_stream(0, 3, memoryview(b"def"), idle=True)
            assert connection.send_datagram(b"datagram")
            connection.flush()
        for handler in (dialler.handler, acceptor.handler):
            await handler.until(lambda handler=handler: len(handler.data) == 6)  # type: ignore[misc]
            assert handler.frames == [Ping(1)]
            assert handler.data == b"abcdef"
            assert handler.datagrams == [b"datagram"]
        assert ours.bytes_received == theirs.bytes_sent > 14


async def test_sixteen_mebibytes_pass_through_a_small_budget() -> None:
    async with pair_of_connections() as (dialler, acceptor, ours, _):
        data = os.urandom(16 * 1024 * 1024)
        sent = 0

        def feed(connection: Connection) -> None:
            nonlocal sent
            while sent < len(data) and (room := connection.sendable()) > 0:
                piece = data[sent : sent + min(room, 65536)]
                connection.send_stream(0, sent, piece, idle=False)
                sent += len(piece)
            connection.flush()

        dialler.handler.on_writable = feed
        feed(ours)
        assert sent < 2 * 1024 * 1024
        await acceptor.handler.until(lambda: len(acceptor.handler.data) == len(data))
        assert acceptor.handler.data == data


async def test_a_peer_that_does_not_read_stops_us() -> None:
    async with pair_of_connections() as (dialler, acceptor, ours, theirs):
        asyncio.get_running_loop().remove_reader(theirs._sock)
        sent = 0

        def feed(connection: Connection) -> None:
            nonlocal sent
            while connection.sendable() > 0:
                connection.send_stream(0, sent, bytes(65536), idle=False)
                sent += 65536
            connection.flush()

        dialler.handler.on_writable = feed
        feed(ours)
        assert len(ours._bulk) * 65536 <= tcp_connection._BUDGET
        assert ours.sendable() <= 0
        # What comes now is read before the stream bytes that wait above TLS.
        ours.send_frame(encode(Ping(7)))
        dialler.handler.on_writable = lambda connection: None
        asyncio.get_running_loop().add_reader(theirs._sock, theirs._on_readable)
        await acceptor.handler.until(lambda: len(acceptor.handler.data) == sent)
        assert acceptor.handler.frames == [Ping(7)]


async def test_a_control_frame_overtakes_stream_bytes() -> None:
    async with pair_of_connections() as (_, acceptor, ours, _theirs):
        order: list[str] = []
        real = acceptor.handler.stream_received
        acceptor.handler.stream_received = lambda *args: (order.append("stream"), real(*args))[1]  # type: ignore[method-assign,func-returns-value]
        acceptor.handler.frame_received = lambda *_: order.append("frame")  # type: ignore[method-assign]
        ours.send_stream(0, 0, b"x", idle=True)
        ours.send_frame(encode(Ping(1)))
        ours.flush()
        await acceptor.handler.until(lambda: bool(acceptor.handler.data))
        assert order == ["frame", "stream"]


async def test_control_frames_for_a_peer_that_never_reads_are_bounded() -> None:
    async with pair_of_connections() as (dialler, _, ours, theirs):
        asyncio.get_running_loop().remove_reader(theirs._sock)
        frame = encode(Window(0, 0, 0))
        for _ in range(tcp_connection._CONTROL_LIMIT[Role.DIALER] // len(frame) + 1):
            ours.send_frame(frame)
        assert ours.is_closed
        assert (await dialler.handler.reason()).by is ClosedBy.US


async def test_control_frames_for_a_peer_that_dialled_us_have_a_smaller_bound() -> None:
    async with pair_of_connections() as (_, _acceptor, ours, theirs):
        for connection in (ours, theirs):
            for _ in range(256 * 1024 // 10 + 1):
                connection.send_frame(encode(Ping(1)))
        assert theirs.is_closed
        assert not ours.is_closed


@pytest.mark.parametrize("frame", [encode(Ping(1)), b"\x1d\x00"])
async def test_many_small_frames_leave_others_their_turn(frame: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """Known ones, and optional ones that are skipped: here the clock says after each slice that it is enough."""
    monkeypatch.setattr(tcp_connection, "_TURN", 0.0)
    async with pair_of_connections() as (dialler, acceptor, ours, theirs):
        loop = asyncio.get_running_loop()
        slices: dict[int, int] = {}
        turn = 0

        def tick() -> None:
            nonlocal turn
            turn += 1
            if not acceptor.handler.reasons:
                loop.call_soon(tick)

        real = theirs._hand_over
        monkeypatch.setattr(
            theirs, "_hand_over", lambda data: (slices.update({turn: slices.get(turn, 0) + len(data)}), real(data))[1]
        )
        tick()
        count = 128 * 1024 // len(frame)
        ours.send_frame(frame * count)
        ours.close(CloseCode.RETIRED, "behind all of them")
        # What waits for its turn is heard before the end, and the end with its reason.
        assert (await acceptor.handler.reason()).code == CloseCode.RETIRED
        assert len(acceptor.handler.frames) == (count if frame == encode(Ping(1)) else 0)
        assert max(slices.values()) <= 2 * tcp_connection._SLICE
        assert (await dialler.handler.reason()).by is ClosedBy.US


async def test_a_connection_that_closes_amid_many_small_frames_still_says_goodbye(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(tcp_connection, "_TURN", 0.0)
    async with pair_of_connections() as (dialler, acceptor, ours, theirs):
        acceptor.handler.on_writable = lambda connection: connection.close(CloseCode.RETIRED, "enough")
        ours.send_frame(encode(Ping(1)) * 20_000)
        ours.flush()
        assert await dialler.handler.reason() == CloseReason(ClosedBy.PEER, CloseCode.RETIRED, "enough")
        assert len(acceptor.handler.frames) < 20_000
        assert theirs.is_closed


async def test_datagrams_are_bounded_in_size_and_number() -> None:
    async with pair_of_connections() as (_, acceptor, ours, _theirs):
        largest = bytes(ours.max_datagram_size)
        with pytest.raises(DatagramTooLarge):
            ours.send_datagram(largest + b"x")
        taken = 0
        while ours.send_datagram(largest):
            taken += 1
        ours.flush()
        await acceptor.handler.until(lambda: len(acceptor.handler.datagrams) == taken)
        assert 0 < taken < 8


async def test_close_reaches_the_peer_behind_the_data() -> None:
    async with pair_of_connections() as (dialler, acceptor, ours, theirs):
        ours.send_stream(0, 0, bytes(100_000), idle=True)
        ours.close(CloseCode.SESSION_CLOSED, "done")
        assert ours.is_closed
        assert not dialler.handler.reasons
        assert await acceptor.handler.reason() == CloseReason(ClosedBy.PEER, CloseCode.SESSION_CLOSED, "done")
        assert len(acceptor.handler.data) == 100_000
        assert await dialler.handler.reason() == CloseReason(ClosedBy.US, CloseCode.SESSION_CLOSED, "done")
        assert theirs.is_closed


async def test_calls_on_a_closed_connection_do_nothing() -> None:
    async with pair_of_connections() as (dialler, _, ours, _theirs):
        ours.abort()
        ours.abort()
        ours.close(CloseCode.NO_ERROR)
        ours.send_frame(encode(Ping(1)))
        ours.send_stream(0, 0, b"x", idle=True)
        assert not ours.send_datagram(b"x")
        ours.flush()
        assert ours.sendable() == 0
        assert ours.rtt is None
        assert ours.rtt_min is None
        assert (await dialler.handler.reason()).by is ClosedBy.US


async def test_abort_is_a_broken_network_for_the_peer() -> None:
    async with pair_of_connections() as (_, acceptor, ours, _theirs):
        ours.abort()
        assert (await acceptor.handler.reason()).by is ClosedBy.NETWORK


async def test_bytes_changed_on_the_way_end_the_connection() -> None:
    async with pair_of_connections() as (_, acceptor, ours, _theirs):
        ours._sock.send(b"\x17\x03\x03\x00\x20" + bytes(32))
        reason = await acceptor.handler.reason()
        assert reason.by is ClosedBy.NETWORK
        assert "changed" in reason.reason


async def test_a_malformed_frame_closes_with_a_code_that_the_peer_reads() -> None:
    async with pair_of_connections() as (dialler, acceptor, ours, _):
        ours.send_frame(b"\x40\xfe\x00")
        ours.flush()
        assert (await dialler.handler.reason()).code == CloseCode.FRAME_ERROR
        assert (await dialler.handler.reason()).by is ClosedBy.PEER
        assert (await acceptor.handler.reason()).by is ClosedBy.US


async def test_the_goodbye_is_heard_though_sending_failed_before() -> None:
    """The peer said CLOSE and hung up; we notice while sending, and still learn its reason."""
    async with pair_of_connections() as (dialler, acceptor, ours, theirs):
        loop = asyncio.get_running_loop()
        loop.remove_reader(ours._sock)
        theirs.close(CloseCode.RETIRED, "surplus")
        await acceptor.handler.reason()
        ours._hear_last_words(OSError(errno.EPIPE, "broken pipe"))
        assert await dialler.handler.reason() == CloseReason(ClosedBy.PEER, CloseCode.RETIRED, "surplus")


async def test_a_failing_handler_ends_its_connection_only() -> None:
    async with pair_of_connections() as (dialler, acceptor, ours, _):

        def fail(connection: Connection, frame: Control) -> None:
            raise RuntimeError("a bug")

        acceptor.handler.frame_received = fail  # type: ignore[method-assign]
        ours.send_frame(encode(Ping(1)))
        ours.flush()
        assert (await dialler.handler.reason()).code == CloseCode.INTERNAL_ERROR


async def test_progress_and_round_trip_time_come_from_the_kernel() -> None:
    async with pair_of_connections() as (dialler, _, ours, theirs):
        before = ours.last_progress()
        theirs.send_frame(encode(Ping(1)))
        theirs.flush()
        await dialler.handler.until(lambda: bool(dialler.handler.frames))
        assert ours.last_progress() >= before
        if tcp_info(ours._sock) is not None:
            assert ours.rtt is not None
            assert ours.rtt_min is not None
            assert 0 < ours.rtt_min < 1.0
            assert ours.probe_timeout is not None
            assert ours.probe_timeout >= ours.rtt


async def test_a_refusal_by_admission_reaches_the_dialler() -> None:
    def refuse(connection: Connection) -> Recorder:
        raise HandshakeError("not you", CloseCode.REFUSED)

    async with node() as dialler, node(accepted=refuse) as acceptor:
        await dialler.transport.dial(acceptor.address, acceptor.identity.peer_id, dialler.handler)
        assert await dialler.handler.reason() == CloseReason(ClosedBy.PEER, CloseCode.REFUSED, "not you")


async def test_dialling_another_key_than_the_one_there_is_a_mismatch() -> None:
    async with node() as dialler, node() as acceptor:
        with pytest.raises(IdentityMismatch, match="was dialled"):
            await dialler.transport.dial(acceptor.address, Identity.generate().peer_id, dialler.handler)
        assert acceptor.accepted.empty()


async def test_dialling_ourselves_is_noticed_by_key_and_by_proof() -> None:
    async with node() as it:
        for peer in (it.identity.peer_id, Identity.generate().peer_id):
            with pytest.raises(SelfDial):
                await it.transport.dial(it.address, peer, it.handler)
        assert it.accepted.empty()


async def test_nobody_listens() -> None:
    async with node() as dialler:
        with socket.socket() as unused:
            unused.bind(("127.0.0.1", 0))
            address = Address.from_sockaddr("tcp", unused.getsockname())
            with pytest.raises(ConnectionRefusedError):
                await dialler.transport.dial(address, Identity.generate().peer_id, dialler.handler)


async def test_a_dial_cancelled_at_any_await_leaves_nothing() -> None:
    async with node() as dialler, node() as acceptor:
        completed = False
        turns = 0
        while not completed:
            handler = Recorder()
            dial = asyncio.ensure_future(dialler.transport.dial(acceptor.address, acceptor.identity.peer_id, handler))
            for _ in range(turns):
                await asyncio.sleep(0)
            completed = dial.done()
            dial.cancel()
            try:
                connection = await dial
            except asyncio.CancelledError:
                assert not dialler.transport._connections
                assert not handler.reasons
            else:
                connection.abort()
            assert not dialler.transport._openings
            turns += 1
        assert turns > 2


async def test_closing_the_transport_ends_a_dial_under_way() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        async with node() as dialler:
            address = Address.from_sockaddr("tcp", silent.getsockname())
            dial = asyncio.ensure_future(dialler.transport.dial(address, Identity.generate().peer_id, dialler.handler))
            accepted, _ = await asyncio.to_thread(silent.accept)
            with accepted:
                # The ClientHello has come: the dial is in its handshake.
                await asyncio.to_thread(accepted.recv, 1)
                await dialler.transport.aclose()
                with pytest.raises(ConnectionAbortedError):
                    await dial


async def test_running_out_of_descriptors_pauses_accepting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("overlay.transports.tcp._ACCEPT_PAUSE", 0.001)

    class Exhausted:
        """A listener whose first accept finds no descriptor left."""

        def __init__(self, sock: socket.socket) -> None:
            self.sock = sock
            self.failures = 1

        def accept(self) -> tuple[socket.socket, object]:
            if self.failures:
                self.failures -= 1
                raise OSError(errno.EMFILE, "Too many open files")
            return self.sock.accept()

        def fileno(self) -> int:
            return self.sock.fileno()

        def getsockname(self) -> object:
            return self.sock.getsockname()

        def close(self) -> None:
            self.sock.close()

    [pair] = bind(CONFIG)
    assert pair.tcp is not None
    exhausted = Exhausted(pair.tcp)
    async with node() as dialler:
        handler = Recorder()
        identity = Identity.generate()
        acceptor = TcpTransport(
            identity,
            CONFIG,
            [exhausted],  # type: ignore[list-item]
            lambda connection: handler,
            HandshakeGate(1, 1),
        )
        acceptor.start()
        await dialler.transport.dial(acceptor.addresses[0], identity.peer_id, dialler.handler)
        assert not exhausted.failures
        await acceptor.aclose()


async def test_too_many_handshakes_are_turned_away() -> None:
    async with node() as dialler, node() as acceptor:
        for _ in range(8):
            assert acceptor.gate.enter("127.0.0.1")
        with pytest.raises((HandshakeError, OSError)):
            await dialler.transport.dial(acceptor.address, acceptor.identity.peer_id, dialler.handler)
        for _ in range(8):
            acceptor.gate.leave("127.0.0.1")
        await dialler.transport.dial(acceptor.address, acceptor.identity.peer_id, dialler.handler)


@pytest.mark.parametrize(
    "scenario",
    [
        test_frames_streams_and_datagrams_arrive_in_both_directions,
        test_sixteen_mebibytes_pass_through_a_small_budget,
        test_a_peer_that_does_not_read_stops_us,
        test_control_frames_for_a_peer_that_dialled_us_have_a_smaller_bound,
        test_close_reaches_the_peer_behind_the_data,
        test_abort_is_a_broken_network_for_the_peer,
        test_dialling_another_key_than_the_one_there_is_a_mismatch,
        test_nobody_listens,
        test_a_dial_cancelled_at_any_await_leaves_nothing,
        test_closing_the_transport_ends_a_dial_under_way,
    ],
)
def test_the_same_on_uvloop(scenario: Callable[[], Coroutine[None, None, None]]) -> None:
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(scenario())


async def test_a_loop_that_has_dropped_the_socket_ends_that_connection_only() -> None:
    """uvloop closes its handle at a RST, and a pump that comes before the news must not fail."""
    async with pair("tcp") as it:
        [ours] = connections(it.dialler, it.acceptor.peer_id)

        class Refusing:
            def __getattr__(self, name: str) -> object:
                return getattr(asyncio.get_running_loop(), name)

            def add_writer(self, *_: object) -> None:
                raise RuntimeError("the handler is closed")

        vars(ours)["_loop"] = Refusing()
        assert await exchange(it.session, bytes(2 * 1024 * 1024)) == bytes(2 * 1024 * 1024)
        assert ours.is_closed


@asynccontextmanager
async def slow_relay(target: Address, seconds: float) -> AsyncIterator[tuple[Address, list[int]]]:
    """Takes connections at once and hands on what comes only after `seconds`; and the segment size of each."""
    segments: list[int] = []

    async def pipe(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError):
            while data := await reader.read(4096):
                writer.write(data)
                await writer.drain()
        writer.close()

    async def meet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        segments.append(writer.get_extra_info("socket").getsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG))
        await asyncio.sleep(seconds)
        there, back = await asyncio.open_connection(target.host, target.port)
        pipes.create_task(pipe(reader, back))
        pipes.create_task(pipe(there, writer))

    async with asyncio.TaskGroup() as pipes, await asyncio.start_server(meet, "127.0.0.1", 0) as server:
        yield Address("tcp", "127.0.0.1", server.sockets[0].getsockname()[1]), segments


@pytest.mark.parametrize(("unacknowledged", "out_of_order"), [(1, 0), (0, 1)])
async def test_when_what_fills_a_segment_does_not_arrive_small_ones_are_tried(
    monkeypatch: pytest.MonkeyPatch, unacknowledged: int, out_of_order: int
) -> None:
    """As behind a link that drops what is too big without a word; the next dial begins with small ones."""
    monkeypatch.setattr("overlay.transports.tcp._SMALL_AFTER", 0.05)
    fields: dict[str, Any] = dict.fromkeys((field.name for field in dataclasses.fields(TcpInfo)), 0)
    lost = TcpInfo(**fields | {"rtt": 0.01, "unacknowledged": unacknowledged, "out_of_order": out_of_order})
    monkeypatch.setattr("overlay.transports.tcp.tcp_info", lambda _: lost)
    async with node() as dialler, node() as acceptor, slow_relay(acceptor.address, 0.3) as (address, segments):
        for _ in range(2):
            connection = await dialler.transport.dial(address, acceptor.identity.peer_id, dialler.handler)
            await acceptor.accepted.get()
            connection.abort()
    assert segments[0] > 1220
    assert len(segments) == 3 and max(segments[1:]) <= 1220


async def test_a_host_that_is_only_slow_is_dialled_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("overlay.transports.tcp._SMALL_AFTER", 0.05)
    async with node() as dialler, node() as acceptor, slow_relay(acceptor.address, 0.3) as (address, segments):
        connection = await dialler.transport.dial(address, acceptor.identity.peer_id, dialler.handler)
        connection.abort()
    assert len(segments) == 1
    assert not dialler.transport._small_until
