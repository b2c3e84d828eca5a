"""Raw UDP between two of ours, over loopback and in memory: connections, strangers, floods, ends."""

import asyncio
import errno
import hashlib
import os
from collections.abc import Callable

import pytest
import uvloop
from raw_support import (
    THEIRS,
    RawNode,
    Stranger,
    connect,
    raw_memory_node,
    raw_node,
)
from transport_support import MemoryUdp, Recorder, bound_socket

from overlay.addresses import Address
from overlay.config import Config
from overlay.errors import DatagramTooLarge, HandshakeError, IdentityMismatch, SelfDial
from overlay.identity import Identity
from overlay.protocol.codes import CloseCode
from overlay.protocol.frames import Close, Ping, encode
from overlay.protocol.udp.connection import Proven
from overlay.protocol.udp.wire import DATA, KEY_PHASE, KNOCK
from overlay.testing import exchange, pair, read_to_end, settled, until
from overlay.transports.ancillary import IP_PKTINFO
from overlay.transports.base import ClosedBy, CloseReason, Connection, Role
from overlay.transports.udp import _is_uniform
from overlay.transports.udp_connection import UdpLink
from overlay.transports.udp_socket import Local, SocketAddress, UdpSocket

NOWHERE = Address("udp", "192.0.2.2", 40_000)


async def test_both_sides_learn_the_proven_key() -> None:
    """And where the other is."""
    async with raw_node() as alice, raw_node() as bob:
        link, _, arrival = await connect(alice, bob)
        other = arrival.connection
        assert isinstance(other, UdpLink)
        assert (link.peer_id, link.role) == (bob.peer_id, Role.DIALER)
        assert (other.peer_id, other.role) == (alice.peer_id, Role.ACCEPTOR)
        assert link.remote == bob.address
        assert other.remote == alice.address
        assert link.local == alice.address
        assert bob.gate.entered == 1
        assert bob.gate.pending == 0
        assert link.rtt is not None
        assert link.rtt_min is not None
        assert 0 < link.rtt_min < 1.0
        assert link.probe_timeout is not None
        assert link.last_progress() > 0
        assert link.loss == 0
        assert link.congestion_window > 1000


async def test_frames_streams_and_datagrams_go_both_ways() -> None:
    """The first answer of an acceptor needs no prompting."""
    async with raw_node() as alice, raw_node() as bob:
        link, recorder, arrival = await connect(alice, bob)
        for connection in (link, arrival.connection):
            assert connection is not None
            connection.send_frame(encode(Ping(7)))
            connection.send_stream(5, 1000, memoryview(b"hello"), idle=True)
            assert connection.send_datagram(b"d" * connection.max_datagram_size)
            connection.flush()
        for got in (recorder, arrival):
            await got.until(lambda got=got: bool(got.frames and got.streams and got.datagrams))  # type: ignore[misc]
            assert got.frames == [Ping(7)]
            assert got.streams[5][1000:] == b"hello"
            assert len(got.datagrams[0]) > 200
        assert link.bytes_sent > 200
        assert link.bytes_received > 200


async def test_what_is_too_much_is_refused_at_once() -> None:
    """A datagram that fits into no packet, and more of them than are worth to wait."""
    async with raw_node() as alice, raw_node() as bob:
        link, _, _ = await connect(alice, bob)
        with pytest.raises(DatagramTooLarge):
            link.send_datagram(bytes(link.max_datagram_size + 1))
        taken = sum(link.send_datagram(b"x") for _ in range(10_000))
        assert 0 < taken < 10_000


async def test_sixteen_mebibytes_each_way_at_once() -> None:
    """Complete and exact, in several streams."""
    sent = [os.urandom(4 * 2**20) for _ in range(4)]
    async with pair("udp") as it:
        async with asyncio.TaskGroup() as group:
            echoing = [group.create_task(exchange(it.session, data)) for data in sent]
        for data, task in zip(sent, echoing, strict=True):
            assert hashlib.sha256(task.result()).digest() == hashlib.sha256(data).digest()


async def test_the_search_finds_what_loopback_carries() -> None:
    """From 300 bytes to 64 KiB; what the kernel refuses ends it below."""
    async with raw_node() as alice, raw_node() as bob:
        link, _, _ = await connect(alice, bob)
        await until(lambda: link.mtu > 60_000)
        assert link.max_datagram_size > 60_000
    refusing = UdpSocket(bound_socket())

    def send_burst(data: bytes, segment: int, remote: SocketAddress, local: Local | None = None) -> OSError | None:
        if segment > 1400:
            return OSError(errno.EMSGSIZE, "too long")
        return UdpSocket.send_burst(refusing, data, segment, remote, local)

    refusing.send_burst = send_burst  # type: ignore[method-assign]
    alice = RawNode([refusing])
    async with raw_node() as bob:
        link, _, _ = await connect(alice, bob)
        await until(lambda: link.mtu > 1300)
        assert await settled(lambda: link.mtu) <= 1400
        await alice.transport.aclose()


async def test_a_close_is_read_with_its_code_and_reason() -> None:
    """Behind what was queued; the handler of the closing side hears of it in a later turn."""
    async with raw_node() as alice, raw_node() as bob:
        link, recorder, arrival = await connect(alice, bob)
        link.send_stream(0, 0, b"last words", idle=True)
        link.close(CloseCode.RETIRED, "é" * 300)
        assert link.is_closed
        assert recorder.reason is None
        link.close(CloseCode.SILENT)
        link.send_frame(b"x")
        link.send_stream(0, 0, b"x", idle=False)
        assert not link.send_datagram(b"x")
        assert link.sendable() == 0
        await arrival.until(lambda: arrival.reason is not None)
        assert arrival.streams == {0: b"last words"}
        assert arrival.reason == CloseReason(ClosedBy.PEER, CloseCode.RETIRED, "é" * 128)
        await recorder.until(lambda: recorder.reason is not None)
        assert recorder.reason == CloseReason(ClosedBy.US, CloseCode.RETIRED, "é" * 300)
        assert (recorder.closed_calls, arrival.closed_calls) == (1, 1)
        # Both forget it when nothing of it can be under way any more.
        await until(alice.is_clean)
        await until(bob.is_clean)


async def test_an_abort_leaves_nothing_and_the_next_packet_tells() -> None:
    """A stateless reset: the peer need not wait for silence."""
    async with raw_node() as alice, raw_node() as bob:
        link, recorder, arrival = await connect(alice, bob)
        assert arrival.connection is not None
        # The reset tokens come with the first packets.
        arrival.connection.send_frame(encode(Ping(1)))
        arrival.connection.flush()
        await recorder.until(lambda: bool(recorder.frames))
        await until(lambda: bool(arrival.connection._core._established._remote._tokens))  # type: ignore[union-attr]
        link.abort()
        link.abort()
        assert alice.is_clean()
        await recorder.until(lambda: recorder.reason is not None)
        arrival.connection.send_frame(encode(Ping(2)))
        arrival.connection.flush()
        await arrival.until(lambda: arrival.reason is not None)
        assert arrival.reason is not None
        assert arrival.reason.by is ClosedBy.NETWORK
        assert (recorder.closed_calls, arrival.closed_calls) == (1, 1)
        await until(bob.is_clean)


async def test_silence_ends_it() -> None:
    """After the idle time."""
    async with raw_node() as alice, raw_node(Config(idle_timeout=0.1)) as bob:
        link, _, arrival = await connect(alice, bob)
        link.send_frame(encode(Ping(1)))
        link.flush()
        await arrival.until(lambda: bool(arrival.frames))
        alice.sockets[0].drop = lambda: True
        await arrival.until(lambda: arrival.reason is not None)
        assert arrival.reason is not None
        assert (arrival.reason.by, arrival.reason.code) == (ClosedBy.NETWORK, CloseCode.SILENT)


async def test_a_refusal_of_the_session_reaches_the_dialler() -> None:
    """Its code and its reason; a TLS 1.3 client was done before."""
    async with raw_node() as alice, raw_node() as bob:
        bob.accept_error = HandshakeError("no more", CloseCode.BUSY)
        recorder = Recorder()
        await alice.transport.dial(bob.address, bob.peer_id, recorder)
        await recorder.until(lambda: recorder.reason is not None)
        assert recorder.reason == CloseReason(ClosedBy.PEER, CloseCode.BUSY, "no more")
        assert bob.accepted == []
        await bob.gate.emptied()
        await until(bob.is_clean)


async def test_another_key_than_the_dialled_one_is_refused() -> None:
    """Nothing is accepted on the other side, and our own key is not even dialled."""
    async with raw_node() as alice, raw_node() as bob:
        with pytest.raises(IdentityMismatch):
            await alice.transport.dial(bob.address, Identity.generate().peer_id, Recorder())
        with pytest.raises(SelfDial):
            await alice.transport.dial(bob.address, alice.peer_id, Recorder())
        await bob.gate.emptied()
        assert bob.accepted == []
        await until(lambda: alice.is_clean() and bob.is_clean())


async def test_who_dials_with_our_own_key_is_refused() -> None:
    """By the acceptor: a dialler may have been told any key."""
    async with raw_memory_node() as (bob, udp):
        stranger = Stranger(udp, bob.identity)
        stranger.converse()
        assert bob.accepted == []
        assert stranger.handshake.error is not None or stranger.core.is_closing
        await until(bob.is_clean)


async def test_a_failing_handler_costs_its_own_connection_only(caplog: pytest.LogCaptureFixture) -> None:
    """Whatever is raised below or above us."""
    async with raw_node() as alice, raw_node() as bob:
        first, _, broken = await connect(alice, bob)
        second, _, healthy = await connect(alice, bob)

        def fail(connection: Connection) -> None:
            raise RuntimeError("on purpose")

        broken.on_writable = fail
        first.send_frame(encode(Ping(1)))
        first.flush()
        await broken.until(lambda: broken.reason is not None)
        assert broken.reason is not None
        assert broken.reason.code == CloseCode.INTERNAL_ERROR
        assert "on purpose" in caplog.text
        second.send_frame(encode(Ping(2)))
        second.flush()
        await healthy.until(lambda: healthy.frames == [Ping(2)])


@pytest.mark.parametrize(
    "method", ["receive_datagram", "receive_burst", "batch_ended", "bursts_to_send", "next_timeout"]
)
async def test_a_core_that_raises_ends_its_own_connection_only(method: str) -> None:
    """It met something that nobody expected; even `closed` may fail then."""
    async with raw_node() as alice, raw_node() as bob:
        link, recorder, arrival = await connect(alice, bob)

        def fail(*_: object) -> None:
            raise AssertionError("inside the core")

        vars(link._core)[method] = fail
        vars(recorder)["closed"] = lambda *_: fail()
        assert arrival.connection is not None
        for number in range(10):
            arrival.connection.send_stream(0, number * 60_000, bytes(60_000), idle=False)
        arrival.connection.flush()
        await until(lambda: link.is_closed)
        assert link.reason is not None
        assert link.reason.code == CloseCode.INTERNAL_ERROR
        assert alice.is_clean()


@pytest.mark.parametrize("crash", [False, True])
async def test_a_connection_that_ends_before_its_dial_returns_is_not_returned(crash: bool) -> None:
    """Nobody would be told of its end any more."""

    def end(connection: Connection) -> None:
        if crash:
            raise RuntimeError("on purpose")
        connection.close(CloseCode.RETIRED, "early")

    async with raw_node() as alice, raw_node() as bob:
        recorder = Recorder()
        recorder.on_writable = end
        with pytest.raises(HandshakeError) as caught:
            await alice.transport.dial(bob.address, bob.peer_id, recorder)
        assert caught.value.code is (CloseCode.INTERNAL_ERROR if crash else CloseCode.RETIRED)
        await recorder.until(lambda: recorder.closed_calls == 1)


async def test_a_violation_is_a_coded_close() -> None:
    """A CLOSE among control frames, and a frame of no known type."""
    for frame in (encode(Close(0, "")), b"\x3e\x00"):
        async with raw_node() as alice, raw_node() as bob:
            link, recorder, arrival = await connect(alice, bob)
            link.send_frame(frame)
            link.flush()
            await recorder.until(lambda recorder=recorder: recorder.reason is not None)  # type: ignore[misc]
            assert recorder.reason is not None
            assert (recorder.reason.by, recorder.reason.code) == (ClosedBy.PEER, CloseCode.FRAME_ERROR)
            assert arrival.closed_calls == 1
            assert arrival.reason is not None
            assert arrival.reason.by is ClosedBy.US


async def test_control_frames_that_nobody_reads_end_it() -> None:
    """What waits for a peer is bounded; the handler is told."""
    async with raw_node() as alice, raw_node() as bob:
        link, recorder, _ = await connect(alice, bob)
        alice.sockets[0].drop = lambda: True
        frame = encode(Ping(1)) * 1000
        while not link._core.is_closing:
            link.send_frame(frame)
        link.flush()
        await recorder.until(lambda: recorder.reason is not None)
        assert recorder.reason is not None
        assert recorder.reason.code == CloseCode.FLOW_CONTROL_ERROR


@pytest.mark.parametrize("inside", [False, True])
async def test_an_end_that_the_session_brings_about_is_told_in_the_next_turn(inside: bool) -> None:
    """Whether it queued too much in the middle of a wake-up or outside; not when the goodbye is over."""
    async with raw_memory_node() as (bob, udp):
        stranger = Stranger(udp)
        stranger.converse()
        [recorder] = bob.accepted
        link = recorder.connection
        assert isinstance(link, UdpLink)

        def overflow(connection: Connection) -> None:
            recorder.on_writable = None
            while not link._core.is_closing:
                connection.send_frame(encode(Ping(1)) * 1000)
            connection.flush()

        if inside:
            recorder.on_writable = overflow
            stranger.core.send_control(encode(Ping(2)))
            udp.deliver(*stranger.output())
        else:
            overflow(link)
        assert link._core.is_closing
        await asyncio.sleep(0)
        assert recorder.reason is not None
        assert recorder.reason.code == CloseCode.FLOW_CONTROL_ERROR
        assert recorder.closed_calls == 1
        # Nothing came meanwhile, and the goodbye is not over.
        assert not link._driver.is_forgotten


async def test_a_cancelled_dial_leaves_nothing_behind() -> None:
    """At any moment: nobody answers, so the dial can only be cancelled."""
    async with raw_memory_node() as (alice, udp):
        sent = asyncio.Event()
        udp.peer = lambda _: sent.set()
        task = asyncio.create_task(alice.transport.dial(NOWHERE, Identity.generate().peer_id, Recorder()))
        async with asyncio.timeout(10):
            await sent.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert alice.is_clean()
        assert len(udp.sent) == 1


async def test_a_dial_may_be_cancelled_in_any_turn() -> None:
    """Whatever it has come to, neither side keeps anything."""
    for turns in range(25):
        async with raw_node() as alice, raw_node() as bob:
            recorder = Recorder()
            task = asyncio.create_task(alice.transport.dial(bob.address, bob.peer_id, recorder))
            for _ in range(turns):
                await asyncio.sleep(0)
            task.cancel()
            await asyncio.wait([task])
            if not task.cancelled():
                task.result().close(CloseCode.LOST_RACE)
            else:
                assert alice.is_clean()
                assert recorder.closed_calls == 0
            await until(lambda bob=bob: all(one.reason is not None for one in bob.accepted))  # type: ignore[misc]
            await bob.gate.emptied()


async def test_a_dial_without_a_way_fails_at_once() -> None:
    """No socket of that family, no route."""
    async with raw_node() as alice, raw_node() as bob:
        with pytest.raises(OSError) as caught:
            await alice.transport.dial(Address("udp", "::1", 9), bob.peer_id, Recorder())
        assert caught.value.errno == errno.EAFNOSUPPORT
        with pytest.raises(OSError):
            await alice.transport.dial(Address("udp", "192.0.2.1", 9), bob.peer_id, Recorder())
        assert alice.is_clean()


async def _dial_a_closed_port() -> None:
    with bound_socket() as closed:
        nowhere = Address("udp", *closed.getsockname())
    async with raw_node() as alice, raw_node() as bob:
        link, _, arrival = await connect(alice, bob)
        async with asyncio.timeout(10):
            for number in range(3):
                with pytest.raises(ConnectionRefusedError):
                    await alice.transport.dial(nowhere, Identity.generate().peer_id, Recorder())
                link.send_frame(encode(Ping(number)))
                link.flush()
                await arrival.until(lambda: arrival.frames[-1:] == [Ping(number)])  # noqa: B023 - awaited here
        assert len(alice.transport._drivers) == 1
        assert not link.is_closed


@pytest.mark.parametrize("loop_factory", [asyncio.new_event_loop, uvloop.new_event_loop])
def test_a_dial_to_a_closed_port_is_refused_at_once(loop_factory: Callable[[], asyncio.AbstractEventLoop]) -> None:
    """The kernel says so, and connections on the same socket are unharmed."""
    with asyncio.Runner(loop_factory=loop_factory) as runner:
        runner.run(_dial_a_closed_port())


async def test_only_a_dial_that_has_heard_nothing_believes_icmp() -> None:
    """Anybody can send it: it ends no connection, and no dial to another address or through another socket."""
    async with raw_memory_node() as (alice, udp):
        sent = asyncio.Event()
        udp.peer = lambda _: sent.set()
        task = asyncio.create_task(alice.transport.dial(NOWHERE, Identity.generate().peer_id, Recorder()))
        async with asyncio.timeout(10):
            await sent.wait()
        [driver] = alice.transport._dials
        alice.transport.unreachable(udp, ("192.0.2.2", 40_001), errno.ECONNREFUSED)
        alice.transport.unreachable(MemoryUdp(), driver.remote, errno.ECONNREFUSED)
        driver.heard = True
        alice.transport.unreachable(udp, driver.remote, errno.ECONNREFUSED)
        assert not driver.is_forgotten
        driver.heard = False
        alice.transport.unreachable(udp, driver.remote, errno.EHOSTUNREACH)
        with pytest.raises(OSError) as caught:
            await task
        assert caught.value.errno == errno.EHOSTUNREACH
        assert alice.is_clean()


async def test_a_dial_that_nobody_answers_times_out() -> None:
    """After the idle time, as an error of the network."""
    async with raw_memory_node(Config(idle_timeout=0.05)) as (alice, _):
        with pytest.raises(TimeoutError):
            await alice.transport.dial(NOWHERE, Identity.generate().peer_id, Recorder())


async def test_closing_a_transport_ends_its_dials() -> None:
    """Whoever waits is told."""
    async with raw_memory_node() as (alice, udp):
        sent = asyncio.Event()
        udp.peer = lambda _: sent.set()
        task = asyncio.create_task(alice.transport.dial(NOWHERE, Identity.generate().peer_id, Recorder()))
        async with asyncio.timeout(10):
            await sent.wait()
        await alice.transport.aclose()
        with pytest.raises(ConnectionAbortedError):
            await task


async def test_a_lost_goodbye_is_repeated() -> None:
    """A peer that goes on sending is told again, progressively less often (RFC 9000 section 10.2.1)."""
    async with raw_memory_node() as (bob, udp):
        stranger = Stranger(udp)
        stranger.converse()
        connection = bob.accepted[0].connection
        assert connection is not None
        connection.close(CloseCode.RETIRED, "bye")
        udp.sent.clear()
        for number in range(8):
            stranger.core.send_control(encode(Ping(number)))
            udp.deliver(*stranger.output())
        assert 1 <= len(udp.sent) <= 4
        stranger.receive(udp.sent[-1])
        assert stranger.core.is_closing
        assert (stranger.events[-1].code, stranger.events[-1].reason) == (CloseCode.RETIRED, "bye")


async def test_what_the_kernel_has_joined_is_told_apart() -> None:
    """Packets of one size from one socket, for two connections and for nobody, in one read."""
    async with raw_memory_node() as (bob, udp):
        strangers = [Stranger(udp) for _ in range(2)]
        packets: list[bytes] = []
        for stranger in strangers:
            stranger.converse()
            assert any(isinstance(event, Proven) for event in stranger.events)
            stranger.core.send_control(encode(Ping(1)))
            packets += stranger.output()
        [first, second] = packets
        assert len(first) == len(second)
        unknown = bytes([DATA]) + bytes(len(first) - 1)
        bob.transport.burst_received(udp, first + unknown + second, len(first), THEIRS, None)
        bob.transport.batch_ended(udp)
        assert [one.frames for one in bob.accepted] == [[Ping(1)], [Ping(1)]]


async def test_what_the_kernel_has_joined_is_cut_wherever_it_differs() -> None:
    """In the kind or the connection id, in any place; a last packet that is too short for either is no difference."""
    one = bytes([DATA]) + b"12345678" + bytes(31)
    for other in (bytes([DATA | KEY_PHASE]) + one[1:], bytes([KNOCK]) + one[1:], one[:8] + b"9" + one[9:]):
        for packets in ((one, other, one), (one, one, other), (other, one, one)):
            assert not _is_uniform(b"".join(packets), len(one))
    assert _is_uniform(one * 3, len(one))
    assert _is_uniform(one * 2 + one[:20], len(one))
    assert _is_uniform(one * 2 + one[:3], len(one))
    assert not _is_uniform(one[:6] * 2, 6)


async def test_a_peer_that_moves_is_followed() -> None:
    """Its packets come from another address, which it proves to have; the session is told where it is."""
    async with raw_memory_node() as (bob, udp):
        stranger = Stranger(udp)
        stranger.converse()
        [recorder] = bob.accepted
        link = recorder.connection
        assert isinstance(link, UdpLink)
        assert link.remote == Address("udp", *THEIRS)
        moved = ("192.0.2.3", 50_000)
        async with asyncio.timeout(10):
            while link.remote != Address("udp", *moved):
                stranger.core.send_control(encode(Ping(1)))
                for data in stranger.output():
                    bob.transport.datagram_received(udp, data, moved, None)
                bob.transport.batch_ended(udp)
                answers, udp.sent = udp.sent, []
                stranger.receive(*answers)
                await asyncio.sleep(0.01)
        assert link._driver.remote == moved
        assert all(key[0] == moved for key in bob.transport._routes.resets)


async def test_answers_leave_from_the_address_that_was_asked() -> None:
    """A multi-homed acceptor; what does not open changes nothing."""
    first, second, forged = (Local(0, IP_PKTINFO, bytes([10, 0, 0, number]), 0) for number in (1, 2, 3))
    async with raw_memory_node() as (bob, udp):
        stranger = Stranger(udp)
        for data in stranger.knock_and_hello():
            bob.transport.datagram_received(udp, data, THEIRS, first)
        bob.transport.batch_ended(udp)
        [driver] = bob.transport._drivers
        assert driver._local == first
        answers, udp.sent = udp.sent, []
        stranger.receive(*answers)
        stranger.converse()
        for local, good in ((second, True), (forged, False)):
            stranger.core.send_control(encode(Ping(1)))
            for data in stranger.output():
                arrived = data if good else data[:-1] + bytes([data[-1] ^ 1])
                bob.transport.datagram_received(udp, arrived, THEIRS, local)
            bob.transport.batch_ended(udp)
            assert driver._local == second


async def test_streams_move_from_quic_to_raw_udp_to_tcp_and_back() -> None:
    """Each is blocked in its turn; nothing is lost."""
    async with pair("quic", "udp", "tcp") as it:
        blocked: set[str] = set()
        for endpoint in (it.dialler, it.acceptor):
            for udp in endpoint._udp:
                vars(udp)["_kind"] = lambda first, udp=udp: (
                    None if (kind := UdpSocket._kind(udp, first)) in blocked else kind
                )
        digest = hashlib.sha256()
        async with await it.session.open_stream("echo/1") as stream:
            reading = asyncio.ensure_future(read_to_end(stream))

            async def write_until_on(transport: str) -> None:
                async with asyncio.timeout(40):
                    while not any(path.selected and path.transport == transport for path in it.session.paths):
                        await write()

            async def write() -> None:
                block = os.urandom(16 * 1024)
                digest.update(block)
                await stream.write(block)
                await asyncio.sleep(0.005)

            await write_until_on("quic")
            blocked.add("quic")
            await write_until_on("udp")
            blocked.add("udp")
            await write_until_on("tcp")
            blocked.remove("udp")
            await write_until_on("udp")
            blocked.clear()
            await write_until_on("quic")
            for _ in range(10):
                await write()
            await stream.write_eof()
            assert hashlib.sha256(await reading).digest() == digest.digest()
        assert set(it.session.traffic) == {"quic", "udp", "tcp"}
