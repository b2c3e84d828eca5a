"""The conformance suite: what a session promises, whatever transport is below it."""

# ruff: noqa: SLF001, S101 - what must not leak is counted where users do not look, and a suite asserts

import asyncio
import hashlib
import os
import tracemalloc
from contextlib import AbstractContextManager, nullcontext, suppress
from typing import ClassVar

from overlay.addresses import Address
from overlay.config import Config, Limits
from overlay.endpoint import Endpoint
from overlay.errors import (
    BusyError,
    DatagramTooLarge,
    OverlayError,
    SessionClosed,
    StreamClosed,
    StreamError,
    StreamReset,
    StreamStopped,
    StreamTruncated,
    UnknownProtocol,
)
from overlay.identity import Identity
from overlay.protocol.codes import CloseCode, StreamCode
from overlay.protocol.stream import Priority
from overlay.streams import READ_ALL_LIMIT
from overlay.testing.fakes import (
    LOOPBACK,
    KiB,
    MiB,
    Recorder,
    connections,
    containers,
    echo,
    exchange,
    interrupted,
    pair,
    raises,
    read_to_end,
    settled,
    ticket,
    together,
    until,
)
from overlay.transports.base import ClosedBy, Connection


class Conformance:
    """What a session promises, over one transport alone. Subclass it and name the transport."""

    transport: ClassVar[str]
    """Its name in `Config.transports`."""

    def stalled_handshake(self, address: Address) -> AbstractContextManager[object]:
        """Begin a handshake with `address` and never go on, as long as the context lasts.

        To be overridden; a transport without handshakes leaves it.
        """
        del address
        return nullcontext()

    async def test_many_streams_at_once_each_arrive_in_order(self) -> None:
        """Ordered delivery, and no stream gets what is another's."""
        async with pair(self.transport) as it:
            sent = [os.urandom(1 + 3001 * number) for number in range(50)]
            assert await together([exchange(it.session, data) for data in sent]) == sent

    async def test_both_sides_open_streams(self) -> None:
        """Who has dialled does not matter."""
        async with pair(self.transport) as it:
            it.dialler.handle("echo/1", echo)
            assert await exchange(it.theirs, b"from the acceptor") == b"from the acceptor"
            assert await exchange(it.session, b"from the dialler") == b"from the dialler"

    async def test_either_direction_can_be_closed_first(self) -> None:
        """Half-close: the other half goes on."""
        async with pair(self.transport) as it:
            for opener_first in (True, False):
                async with it.streams() as (ours, theirs):
                    first, second = (ours, theirs) if opener_first else (theirs, ours)
                    await first.write(b"question")
                    await first.write_eof()
                    assert await second.read() == b"question"
                    await second.write(b"answer")
                    assert await first.readexactly(6) == b"answer"
                    await second.write_eof()
                    assert await first.read() == b""

    async def test_a_reset_reaches_the_reader_and_leaves_the_other_half_alone(self) -> None:
        """RESET carries its code."""
        async with pair(self.transport) as it, it.streams() as (ours, theirs):
            await ours.reset(7)
            async with raises(StreamReset) as caught:
                await theirs.read(1)
            assert [error.code for error in caught if isinstance(error, StreamReset)] == [7]
            async with raises(StreamClosed):
                await ours.write(b"more")
            await theirs.write(b"still here")
            assert await ours.readexactly(10) == b"still here"

    async def test_a_stop_reaches_the_writer_and_leaves_the_other_half_alone(self) -> None:
        """STOP carries its code."""
        async with pair(self.transport) as it, it.streams() as (ours, theirs):
            await theirs.stop(9)
            async with raises(StreamStopped) as caught:
                while True:
                    await ours.write(bytes(64 * KiB))
                    await asyncio.sleep(0)
            assert [error.code for error in caught if isinstance(error, StreamStopped)] == [9]
            async with raises(StreamClosed):
                await theirs.read(1)
            await theirs.write(b"still here")
            assert await ours.readexactly(10) == b"still here"

    async def test_a_reader_that_stops_reading_bounds_the_writers_memory(self) -> None:
        """Back-pressure: measured on both sides together, as both are in this process."""
        limits = Limits()
        async with pair(self.transport) as it, it.streams() as (ours, theirs):
            sending, receiving = ours._core.sending, theirs._core.receiving
            digest = hashlib.sha256()

            async def write_for_ever() -> None:
                while True:
                    # New memory each time: what is buffered is to be seen by tracemalloc.
                    block = os.urandom(32 * KiB)
                    before = ours.bytes_accepted
                    try:
                        await ours.write(block)
                    finally:
                        digest.update(block[: ours.bytes_accepted - before])

            tracemalloc.start()
            try:
                writer = asyncio.ensure_future(write_for_ever())
                await until(lambda: sending.unsent >= limits.stream_send_buffer and sending.acked == sending.limit)
                bound = limits.stream_send_buffer + receiving.window
                assert ours.bytes_accepted <= bound
                assert tracemalloc.get_traced_memory()[1] < 2 * bound + 2 * MiB
            finally:
                tracemalloc.stop()
            writer.cancel()
            await asyncio.wait([writer])
            await ours.write_eof()
            got = await read_to_end(theirs)
            assert len(got) == ours.bytes_accepted
            assert hashlib.sha256(got).digest() == digest.digest()

    async def test_writes_of_one_byte_and_of_sixteen_mebibytes(self) -> None:
        """No size is special."""
        small, large = os.urandom(1000), os.urandom(16 * MiB)
        async with pair(self.transport) as it, await it.session.open_stream("sink/1") as stream:
            for position in range(len(small)):
                await stream.write(small[position : position + 1])
            await stream.write(large)
            await stream.write_eof()
            assert await stream.read() == hashlib.sha256(small + large).digest()

    async def test_a_thousand_streams_leave_nothing_behind(self) -> None:
        """Opened and closed in one connection: tables and reserved memory are as before."""
        async with pair(self.transport) as it:
            ours, theirs = it.connections

            async def rounds(count: int) -> int:
                for _ in range(count):
                    await together([exchange(it.session, b"x" * size) for size in range(1, 51)])
                await until(lambda: not it.session._core.core.streams and not it.theirs._core.core.streams)
                # An answer behind everything: what is only kept until its acknowledgement is gone, too.
                await it.session.ping()
                await it.theirs.ping()
                return containers(ours) + containers(theirs)

            before = await rounds(4)
            reserved = it.session._core.budget.used, it.theirs._core.budget.used
            after = await rounds(20)
            # A transport's windows of packet numbers may still fill up; an entry for each stream would be a thousand.
            assert after < before + 500
            assert (it.session._core.budget.used, it.theirs._core.budget.used) == reserved
            assert it.session._core.core._outgoing.buffered == 0
            await until(lambda: not any(task.get_name().startswith("echo/1") for task in asyncio.all_tasks()))

    async def test_a_thousand_streams_live_at_once(self) -> None:
        """Each says something, all are open, each says something again."""
        async with pair(self.transport) as it:
            streams = [await it.session.open_stream("echo/1") for _ in range(1000)]
            for word in (b"first", b"again"):
                for number, stream in enumerate(streams):
                    await stream.write(word + number.to_bytes(2, "big"))
                for number, stream in enumerate(streams):
                    assert await stream.readexactly(7) == word + number.to_bytes(2, "big")
            for stream in streams:
                await stream.write_eof()
            await until(lambda: not it.session._core.core.streams)

    async def test_open_stream_waits_for_credit_and_goes_on(self) -> None:
        """A peer that allows few streams gets few, and no opener is refused or forgotten."""
        async with pair(self.transport, limits=Limits(live_streams=16)) as it:
            held = [await it.session.open_stream("echo/1") for _ in range(16)]
            opening = [asyncio.ensure_future(it.session.open_stream("echo/1")) for _ in range(3)]
            opening[1].cancel()
            await it.session.ping()
            assert not opening[0].done()
            assert not opening[2].done()
            for stream in held:
                await stream.aclose()
            for waited in (await opening[0], await opening[2]):
                await waited.write(b"at last")
                assert await waited.readexactly(7) == b"at last"
            assert opening[1].cancelled()

    async def test_datagrams_up_to_the_stated_size(self) -> None:
        """One byte more is refused where it is sent."""
        async with pair(self.transport) as it:
            size = await settled(lambda: it.session.max_datagram_size)
            assert size >= 1000
            assert await settled(lambda: it.theirs.max_datagram_size) >= 1000
            for length in (0, 1, size):
                await it.session.send_datagram(b"d" * length)
                assert await it.theirs.receive_datagram() == b"d" * length
            async with raises(DatagramTooLarge) as caught:
                await it.session.send_datagram(bytes(size + 1))
            assert [error.limit for error in caught if isinstance(error, DatagramTooLarge)] == [size]
            await it.theirs.send_datagram(b"answer")
            assert await it.session.receive_datagram() == b"answer"

    async def test_a_supplied_stream_outlives_its_connection(self) -> None:
        """Every byte once and in order; what is asked for leaves at once, so at the end nothing is left over."""
        sent = os.urandom(4 * MiB)
        async with pair(self.transport) as it, it.streams() as (ours, theirs):
            given = 0

            def source(room: int) -> bytes:
                nonlocal given
                # Whole pieces of a thousand bytes, as somebody who has frames would do it.
                end = min(given + -(-room // 1000) * 1000, len(sent) // 2 if held else len(sent))
                data, given = sent[given:end], end
                return data

            held = True
            ours.supply(source)
            async with raises(StreamClosed):
                await ours.write(b"x")
            async with raises(StreamClosed):
                ours.supply(source)
            got = await theirs.readexactly(MiB)
            for connection in connections(it.dialler, it.acceptor.peer_id):
                connection.abort()
            got += await theirs.readexactly(MiB)
            await until(lambda: ours.bytes_delivered == 2 * MiB)
            assert ours.bytes_sent == given == 2 * MiB
            held = False
            ours.more()
            got += await theirs.readexactly(2 * MiB)
            await ours.write_eof()
            await ours.wait_delivered()
            assert got == sent
            assert await theirs.read() == b""
            assert ours.bytes_delivered == ours.bytes_sent == given == len(sent)

    async def test_a_reader_that_stops_reading_stops_the_source(self) -> None:
        """What it has not asked for stays with the caller: no more leaves than the peer has room for."""
        async with pair(self.transport) as it, it.streams() as (ours, theirs):
            sending = ours._core.sending
            ours.supply(bytes)
            await until(lambda: sending.acked == sending.limit)
            assert ours.bytes_sent == ours.bytes_delivered == sending.limit - sending.prefix
            assert sending.unsent == 0
            ours._reset(0)
            async with raises(StreamReset):
                await theirs.read()

    async def test_supplied_datagrams_and_a_saturating_stream_both_go_on(self) -> None:
        """Neither starves the other, however much either has."""
        async with pair(self.transport) as it, it.streams() as (ours, theirs):
            numbers = iter(range(1_000_000))
            it.session.supply_datagrams(lambda longest: next(numbers).to_bytes(4, "big").ljust(min(longest, 1000)))
            ours.supply(bytes)
            received = theirs._core.receiving.buffer
            seen = -1
            for _ in range(10):
                target = received.consumed + MiB
                arrived = 0
                while received.consumed < target or arrived < 50:
                    await theirs.readexactly(1)
                    await theirs.read(256 * KiB)
                    while it.theirs._datagrams:
                        number = int.from_bytes((await it.theirs.receive_datagram())[:4], "big")
                        assert number > seen
                        seen = number
                        arrived += 1

    async def test_datagrams_are_asked_for_as_they_leave(self) -> None:
        """None means nothing now; a lost connection, or a session that is over, asks for nothing."""
        async with pair(self.transport) as it:
            stock = [b"first", b""]
            asked: list[int] = []

            def source(longest: int) -> bytes | None:
                asked.append(longest)
                return stock.pop(0) if stock else None

            it.session.supply_datagrams(source)
            assert not asked
            assert await it.theirs.receive_datagram() == b"first"
            assert await it.theirs.receive_datagram() == b""
            assert len(asked) == 3
            assert 0 < min(asked) <= max(asked) <= it.session.max_datagram_size
            await it.session.ping()
            assert len(asked) == 3
            for connection in connections(it.dialler, it.acceptor.peer_id):
                connection.abort()
            stock.append(b"with the next connection")
            it.session.more_datagrams()
            assert await it.theirs.receive_datagram() == b"with the next connection"
            await it.session.aclose()
            stock.append(b"never")
            it.session.more_datagrams()
            await it.theirs.wait_closed()
            assert stock == [b"never"]
            async with raises(SessionClosed):
                it.session.supply_datagrams(source)

    async def test_a_peer_that_misbehaved_is_told_so(self) -> None:
        """Its session ends as by any close, with the code and the reason."""
        async with pair(self.transport) as it, it.streams() as (ours, theirs):
            with suppress(OverlayError):
                it.session.close(code=CloseCode.SILENT)
            assert it.session.state == "connected"
            it.session.close(code=CloseCode.MISBEHAVED, reason="a frame is too long")
            for session, by_peer in ((it.session, False), (it.theirs, True)):
                error = await session.wait_closed()
                assert isinstance(error, SessionClosed)
                assert (error.by_peer, error.code) == (by_peer, CloseCode.MISBEHAVED)
                assert error.reason == "a frame is too long"
            for stream in (ours, theirs):
                async with raises(SessionClosed):
                    await stream.read(1)
            await until(lambda: not connections(it.acceptor, it.dialler.peer_id))

    async def test_the_path_of_what_came_last(self) -> None:
        """Named by the receiver; it goes both ways."""
        async with pair(self.transport) as it, it.streams() as (ours, theirs):
            await ours.write(b"x")
            await theirs.readexactly(1)
            path = it.theirs.received_on
            assert path is not None
            assert (path.transport, path.direction) == (self.transport, "both")
            assert it.session.received_on is None

    async def test_an_orderly_close_is_seen_by_both_sides(self) -> None:
        """Everybody who waits is told who closed."""
        async with pair(self.transport) as it, it.streams() as (ours, theirs):
            reading = asyncio.ensure_future(theirs.read(1))
            await it.session.aclose()
            told = await it.theirs.wait_closed()
            assert isinstance(told, SessionClosed)
            assert told.by_peer
            for work in (reading, theirs.write(b"x"), it.theirs.open_stream("echo/1"), it.theirs.receive_datagram()):
                async with raises(SessionClosed):
                    await work
            async with raises(SessionClosed) as caught:
                await ours.read(1)
            assert [error.by_peer for error in caught if isinstance(error, SessionClosed)] == [False]
            await until(lambda: not it.dialler.sessions and not it.acceptor.sessions)
            await until(lambda: not connections(it.acceptor, it.dialler.peer_id))

    async def test_an_abrupt_close_loses_nothing(self) -> None:
        """The session outlives its connection; streams go on over the next one."""
        sent = os.urandom(2 * MiB)
        async with pair(self.transport) as it:
            for side, peer in ((it.dialler, it.acceptor), (it.acceptor, it.dialler)):
                before = {one: one.bytes_received for one in connections(side, peer.peer_id)}

                def flows(side: Endpoint = side, peer: Endpoint = peer, before: dict[Connection, int] = before) -> bool:
                    # A side that was not told of the first end may still have that connection, too.
                    now = connections(side, peer.peer_id)
                    return any(one.bytes_received > before.get(one, 0) + 64 * KiB for one in now)

                echoing = asyncio.ensure_future(exchange(it.session, sent))
                await until(flows)
                cut = connections(side, peer.peer_id)
                for connection in cut:
                    connection.abort()
                assert it.session.state in {"connected", "lingering"}
                assert await echoing == sent
                assert not set(cut) & set(connections(side, peer.peer_id))
            assert it.session is it.dialler.sessions[it.acceptor.peer_id]

    async def test_a_write_or_read_can_be_cancelled_at_any_await(self) -> None:
        """Nothing is lost and nothing comes twice; `bytes_accepted` is exact."""
        sent = os.urandom(3 * MiB)
        async with pair(self.transport) as it, it.streams() as (ours, theirs):

            async def write() -> None:
                cut = 0
                while ours.bytes_accepted < len(sent):
                    await interrupted(ours.write(sent[ours.bytes_accepted :]), cut % 17)
                    cut += 1
                await ours.write_eof()

            async def read() -> bytes:
                got = bytearray()
                cut = 0
                while len(got) < len(sent):
                    size = min(1 + 5003 * (cut % 7), len(sent) - len(got))
                    call = theirs.read(size) if cut % 2 else theirs.readexactly(size)
                    got += await interrupted(call, cut % 13) or b""
                    cut += 1
                assert await theirs.read() == b""
                return bytes(got)

            async with asyncio.TaskGroup() as group:
                group.create_task(write())
                reading = group.create_task(read())
            assert reading.result() == sent
            assert ours.bytes_accepted == len(sent)

    async def test_a_handshake_that_is_never_finished_is_given_up(self) -> None:
        """Slow loris: its place at the gate is free again after the time for handshakes."""
        config = Config(listen=LOOPBACK, transports=(self.transport,), handshake_timeout=0.2)
        async with Endpoint(Identity.generate(), config) as endpoint:
            [address] = ticket(endpoint, self.transport).addresses
            with self.stalled_handshake(address) as begun:
                await until(lambda: begun is None or endpoint._gate.pending == 1)
                await until(lambda: endpoint._gate.pending == 0)
            assert not endpoint.sessions
            assert not endpoint._peers

    async def test_a_proven_peer_that_never_says_hello_is_closed(self) -> None:
        """It learns why, and leaves nothing."""
        config = Config(listen=LOOPBACK, transports=(self.transport,), handshake_timeout=0.2)
        async with (
            Endpoint(Identity.generate(), config) as acceptor,
            Endpoint(Identity.generate(), config) as dialler,
        ):
            silent = Recorder()
            [address] = ticket(acceptor, self.transport).addresses
            await dialler.transport(self.transport).dial(address, acceptor.peer_id, silent)
            await until(lambda: silent.reason is not None)
            assert silent.reason is not None
            assert (silent.reason.by, silent.reason.code) == (ClosedBy.PEER, CloseCode.HANDSHAKE_TIMEOUT)
            await until(lambda: not acceptor._peers)

    async def test_two_tasks_in_one_direction_are_an_error(self) -> None:
        """The second one gets it; the first goes on."""
        async with pair(self.transport) as it, it.streams() as (ours, theirs):
            reading = asyncio.ensure_future(theirs.read(1))
            writing = asyncio.ensure_future(ours.write(bytes(8 * MiB)))
            await until(lambda: reading.done() or theirs._reading)
            await reading
            waiting = asyncio.ensure_future(ours.read(1))
            await asyncio.sleep(0)
            async with raises(BusyError):
                await ours.read(1)
            async with raises(BusyError):
                await ours.write(b"second")
            await theirs.write(b"x")
            assert await waiting == b"x"
            assert not writing.done()
            writing.cancel()
            await asyncio.wait([writing])

    async def test_wait_delivered_means_that_the_peer_has_it(self) -> None:
        """Its library does: a reader finds all of it without another byte from us."""
        async with pair(self.transport) as it, it.streams() as (ours, theirs):
            await ours.write(b"kept")
            await ours.write_eof()
            await ours.wait_delivered()
            assert theirs._core.receiving.complete
            assert await theirs.read() == b"kept"

    async def test_a_name_that_nobody_handles(self) -> None:
        """The opener learns it from reading, from writing, and from waiting for delivery."""
        async with pair(self.transport) as it:
            stream = await it.session.open_stream("nobody/1")
            async with raises(UnknownProtocol):
                await stream.read(1)
            async with raises(UnknownProtocol):
                await stream.wait_delivered()
            async with raises(UnknownProtocol):
                await stream.write(b"x")
            await until(lambda: not it.session._core.core.streams)

    async def test_control_priority_goes_before_bulk(self) -> None:
        """A message of control priority overtakes half a megabyte that was written before it."""
        async with (
            pair(self.transport) as it,
            it.streams() as (bulk, bulk_reader),
            it.streams(priority=Priority.CONTROL) as (ours, theirs),
        ):
            received = bulk_reader._core.receiving.buffer
            await bulk.write(bytes(512 * KiB))
            await ours.write(b"!")
            draining = asyncio.ensure_future(bulk_reader.readexactly(512 * KiB))
            assert await theirs.readexactly(1) == b"!"
            assert received.received < 512 * KiB
            assert len(await draining) == 512 * KiB

    async def test_read_without_a_size_is_bounded(self) -> None:
        """More than 16 MiB are refused, and still there."""
        async with pair(self.transport) as it, it.streams() as (ours, theirs):

            async def write() -> None:
                await ours.write(bytes(READ_ALL_LIMIT + 5))
                await ours.write_eof()

            writing = asyncio.ensure_future(write())
            async with raises(StreamError):
                await theirs.read()
            assert len(await read_to_end(theirs)) == READ_ALL_LIMIT + 5
            await writing

    async def test_readexactly_tells_what_came_before_the_end(self) -> None:
        """A stream that is too short is `StreamTruncated`."""
        async with pair(self.transport) as it, it.streams() as (ours, theirs):
            await ours.write(b"abc")
            await ours.write_eof()
            async with raises(StreamTruncated) as caught:
                await theirs.readexactly(4)
            assert [error.partial for error in caught if isinstance(error, StreamTruncated)] == [b"abc"]
            assert await theirs.read(1) == b""

    async def test_leaving_a_stream_in_order_delivers_it(self) -> None:
        """`async with stream`: FIN, delivery, and STOP for what is unread."""
        async with pair(self.transport) as it, it.streams() as (ours, theirs):
            async with ours:
                await ours.write(b"all of it")
            assert theirs._core.receiving.complete
            assert await theirs.read() == b"all of it"
            async with raises(StreamStopped) as caught:
                while True:
                    await theirs.write(bytes(KiB))
                    await asyncio.sleep(0)
            assert [error.code for error in caught if isinstance(error, StreamStopped)] == [StreamCode.UNREAD]

    async def test_leaving_a_stream_by_an_exception_resets_it(self) -> None:
        """The peer never takes half a message for a whole one."""
        async with pair(self.transport) as it, it.streams() as (ours, theirs):
            with suppress(LookupError):
                async with ours:
                    await ours.write(b"half")
                    raise LookupError
            async with raises(StreamReset) as caught:
                await theirs.read()
            assert [error.code for error in caught if isinstance(error, StreamReset)] == [StreamCode.HANDLER_FAILED]
