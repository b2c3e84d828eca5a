"""QUIC's driver: whatever fails ends one connection, and who is late is told again."""

import asyncio
import errno

import pytest
from quic_support import Node, connect, converse, memory_node, node, stranger_client
from transport_support import THEIRS, MemoryUdp, Recorder

from overlay.addresses import Address
from overlay.protocol.codes import CloseCode
from overlay.protocol.frames import Ping, encode
from overlay.transports.base import Connection
from overlay.transports.lazy_timer import clock


async def test_a_failing_handler_costs_its_own_connection_only(caplog: pytest.LogCaptureFixture) -> None:
    """Whatever is raised below or above us."""
    async with node() as alice, node() as bob:
        first, _, broken = await connect(alice, bob)
        second, _, healthy = await connect(alice, bob)
        assert healthy is not broken

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


async def test_a_handler_that_fails_at_the_end_stops_no_other_of_its_batch() -> None:
    """Even `closed` raises; both have something to read in one wake-up. So it is if the driver itself fails."""
    async with memory_node() as (bob, udp):
        strangers = [stranger_client(bob.identity.generate()) for _ in range(3)]
        for stranger in strangers:
            converse(stranger, udp)
            stranger.send_stream_data(2, encode(Ping(1)))
        first, second, third = bob.accepted

        def fail(*_: object) -> None:
            raise RuntimeError("on purpose")

        first.on_writable = fail
        first.closed = fail  # type: ignore[method-assign,assignment]
        second.connection._driver.batch_ended = fail  # type: ignore[union-attr]
        udp.deliver(*(data for stranger in strangers for data in stranger.output()))
        assert first.connection.is_closed  # type: ignore[union-attr]
        assert third.frames == [Ping(1)]


async def test_a_handler_that_fails_at_the_end_spoils_no_timer_or_flush() -> None:
    """A connection may also crash outside of a batch."""
    async with node() as alice, node() as bob:
        link, recorder, _ = await connect(alice, bob)

        def fail(*_: object) -> None:
            raise RuntimeError("on purpose")

        link._engine.datagrams_to_send = fail  # type: ignore[method-assign,assignment]
        recorder.closed = fail  # type: ignore[method-assign,assignment]
        link.flush()
        assert link.is_closed


async def test_an_engine_that_raises_ends_its_own_connection_only() -> None:
    """aioquic meets something that it did not expect."""
    async with node() as alice, node() as bob:
        link, recorder, _ = await connect(alice, bob)

        def fail(*_: object) -> None:
            raise AssertionError("inside aioquic")

        link._engine.receive_burst = fail  # type: ignore[method-assign,assignment]
        bob.accepted[0].connection.send_frame(encode(Ping(1)))  # type: ignore[union-attr]
        bob.accepted[0].connection.flush()  # type: ignore[union-attr]
        await recorder.until(lambda: recorder.reason is not None)
        assert recorder.reason is not None
        assert recorder.reason.code == CloseCode.INTERNAL_ERROR
        assert alice.is_clean()


async def test_only_a_dial_that_has_heard_nothing_believes_icmp() -> None:
    """Anybody can send it: it ends no connection, and no dial to another address or through another socket."""
    async with memory_node() as (alice, udp):
        bob, sent = Node([]), asyncio.Event()
        udp.peer = lambda _: sent.set()
        task = asyncio.create_task(alice.transport.dial(Address("quic", "192.0.2.2", 40_000), bob.peer_id, Recorder()))
        async with asyncio.timeout(10):
            await sent.wait()
        (driver,) = alice.transport._dials
        alice.transport.unreachable(udp, ("192.0.2.2", 40_001), errno.ECONNREFUSED)
        alice.transport.unreachable(MemoryUdp(), driver.remote, errno.ECONNREFUSED)
        driver.engine.packets_received = 1
        alice.transport.unreachable(udp, driver.remote, errno.ECONNREFUSED)
        assert not driver.is_forgotten
        driver.engine.packets_received = 0
        alice.transport.unreachable(udp, driver.remote, errno.EHOSTUNREACH)
        with pytest.raises(OSError) as caught:
            await task
        assert caught.value.errno == errno.EHOSTUNREACH
        assert alice.is_clean()
    async with node() as alice, node() as bob:
        link, _, _ = await connect(alice, bob)
        alice.transport.unreachable(alice.sockets[0], link._driver.remote, errno.ECONNREFUSED)
        assert not link.is_closed


async def test_a_lost_goodbye_is_repeated() -> None:
    """A peer that goes on sending is told again, progressively less often (RFC 9000 section 10.2.1)."""
    async with memory_node() as (bob, udp):
        stranger = stranger_client(bob.identity.generate())
        converse(stranger, udp)
        connection = bob.accepted[0].connection
        assert connection is not None
        connection.close(CloseCode.RETIRED, "bye")
        udp.sent.clear()
        for number in range(8):
            stranger.send_ping(number)
            udp.deliver(*stranger.output())
        assert len(udp.sent) == 4
        stranger.receive_datagram(udp.sent[-1], ("192.0.2.1", 9330), clock())
        assert stranger._close_event is not None
        assert stranger._close_event.error_code == CloseCode.RETIRED


async def test_what_the_kernel_has_joined_is_told_apart() -> None:
    """Packets of one size from one socket, for two connections and for nobody, in one read."""
    async with memory_node() as (bob, udp):
        strangers = [stranger_client(bob.identity.generate()) for _ in range(2)]
        packets: list[bytes] = []
        for number, stranger in enumerate(strangers):
            converse(stranger, udp)
            stranger.send_stream_data(2, encode(Ping(number)))
            packets += stranger.output()
        [first, second] = packets
        assert len(first) == len(second)
        strange = [bytes([kind]) + bytes(len(first) - 1) for kind in (0x40, 0xC0)]
        burst = b"".join((strange[0], second, strange[1], first, second[:20]))
        bob.transport.burst_received(udp, burst, len(first), THEIRS, None)
        bob.transport.batch_ended(udp)
        assert [one.frames for one in bob.accepted] == [[Ping(0)], [Ping(1)]]
