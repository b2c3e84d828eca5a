"""Streams: the shell around the pure core. What depends on the transport stands in `overlay.testing.Conformance`."""

import array
import asyncio

import pytest

from overlay import (
    BusyError,
    OverlayError,
    Priority,
    Stream,
    StreamClosed,
    StreamReset,
    StreamStopped,
)
from overlay.protocol.codes import StreamCode
from overlay.streams import READ_ALL_LIMIT
from overlay.testing import MiB, Weather, pair, until


async def test_whatever_is_made_of_bytes_can_be_written() -> None:
    async with pair("memory") as it, it.streams() as (ours, theirs):
        numbers = array.array("I", [1, 2, 3])
        for data in (b"a", bytearray(b"b"), memoryview(b"c"), memoryview(numbers), b""):
            await ours.write(data)
        assert ours.bytes_accepted == 3 + 12
        assert await theirs.readexactly(15) == b"abc" + numbers.tobytes()


async def test_what_was_written_may_change_afterwards() -> None:
    async with pair("memory") as it, it.streams() as (ours, theirs):
        data = bytearray(b"before")
        await ours.write(data)
        data[:] = b"after!"
        assert await theirs.readexactly(6) == b"before"


async def test_sizes_are_checked() -> None:
    async with pair("memory") as it, it.streams() as (ours, _):
        for size in (0, -1):
            with pytest.raises(ValueError, match="at least 1"):
                await ours.read(size)
        for size in (-1, READ_ALL_LIMIT + 1):
            with pytest.raises(ValueError, match="takes 0 to"):
                await ours.readexactly(size)
        assert await ours.readexactly(0) == b""


async def test_codes_are_checked() -> None:
    async with pair("memory") as it, it.streams() as (ours, _):
        for code in (-1, 2**32):
            with pytest.raises(OverlayError, match="a code is"):
                await ours.reset(code)
            with pytest.raises(OverlayError, match="a code is"):
                await ours.stop(code)


async def test_the_end_is_said_once() -> None:
    async with pair("memory") as it, it.streams() as (ours, theirs):
        await ours.write_eof()
        await ours.write_eof()
        with pytest.raises(StreamClosed, match="after write_eof"):
            await ours.write(b"x")
        assert await theirs.read() == b""
        assert await theirs.read(5) == b""
        await ours.wait_delivered()


async def test_a_reset_after_the_end_abandons_what_is_not_delivered() -> None:
    async with pair("memory") as it, it.streams() as (ours, theirs):
        Weather(it.dialler, it.acceptor).cut()
        await ours.write(b"never")
        await ours.write_eof()
        await ours.reset(3)
        with pytest.raises(StreamClosed, match="reset"):
            await ours.wait_delivered()
        with pytest.raises(StreamClosed, match="reset"):
            await ours.write_eof()
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0):
                await theirs.read(1)


async def test_iteration_hands_out_pieces_up_to_the_end() -> None:
    async with pair("memory") as it, it.streams() as (ours, theirs):
        await ours.write(b"x" * MiB)
        await ours.write_eof()
        assert sum([len(chunk) async for chunk in theirs]) == MiB


async def test_a_read_that_was_cancelled_inside_readexactly_keeps_its_part() -> None:
    async with pair("memory") as it, it.streams() as (ours, theirs):
        await ours.write(b"half ")
        reading = asyncio.ensure_future(theirs.readexactly(9))
        await ours.wait_delivered()
        await until(lambda: theirs._reader is not None and not len(theirs._core.receiving.buffer))
        reading.cancel()
        await asyncio.wait([reading])
        await ours.write(b"more")
        assert await theirs.read(2) == b"ha"
        assert await theirs.readexactly(7) == b"lf more"


async def test_waiting_for_delivery_can_be_cancelled_and_done_by_many() -> None:
    async with pair("memory") as it, it.streams() as (ours, theirs):
        await ours.write(bytes(MiB // 2))
        waiting = [asyncio.ensure_future(ours.wait_delivered()) for _ in range(3)]
        await asyncio.sleep(0)
        waiting[0].cancel()
        assert len(await theirs.readexactly(MiB // 2)) == MiB // 2
        await asyncio.gather(*waiting[1:])
        assert waiting[0].cancelled()


async def test_a_second_reader_is_refused_and_the_first_goes_on() -> None:
    async with pair("memory") as it, it.streams() as (ours, theirs):
        first = asyncio.ensure_future(theirs.readexactly(4))
        await asyncio.sleep(0)
        for call in (theirs.read(1), theirs.read(), theirs.readexactly(1), anext(aiter(theirs))):
            with pytest.raises(BusyError):
                await call
        await ours.write(b"four")
        assert await first == b"four"


async def test_a_writer_that_waits_is_told_of_a_stop_and_of_a_reset() -> None:
    async with pair("memory") as it:
        for ending in ("stop", "reset"):
            async with it.streams() as (ours, theirs):
                writing = asyncio.ensure_future(ours.write(bytes(16 * MiB)))
                await until(lambda ours=ours: ours._writer is not None)  # type: ignore[misc]
                if ending == "stop":
                    await theirs.stop(4)
                    with pytest.raises(StreamStopped):
                        await writing
                else:
                    await ours.reset(4)
                    with pytest.raises(StreamClosed):
                        await writing
                    with pytest.raises(StreamReset):
                        await theirs.read()


async def test_a_handler_sees_name_and_priority() -> None:
    async with pair("memory") as it:
        for priority in Priority:
            async with it.streams(priority=priority) as (ours, theirs):
                assert (theirs.priority, theirs.protocol, theirs.id) == (priority, ours.protocol, ours.id)
                assert theirs.session is it.theirs
                assert ours.protocol in repr(ours)


async def test_leaving_does_not_wait_for_ever() -> None:
    async with pair("memory", delivery_timeout=0.05) as it, it.streams() as (ours, _):
        Weather(it.dialler, it.acceptor).cut()
        with pytest.raises(TimeoutError):
            async with ours:
                await ours.write(b"x")


async def test_leaving_a_stream_whose_peer_has_stopped_reading_is_no_error() -> None:
    async with pair("memory") as it, it.streams() as (ours, theirs):
        await theirs.stop()
        async with ours:
            await theirs.write(b"x")
            assert await ours.readexactly(1) == b"x"
        with pytest.raises(StreamStopped) as caught:
            await theirs.wait_delivered()
            await theirs.write(b"y")
            await until(lambda: theirs._core.sending.stopped is not None)
            await theirs.write(b"z")
        assert caught.value.code == StreamCode.UNREAD


async def test_a_cancelled_handler_resets_its_stream() -> None:
    started = asyncio.Event()

    async def wait(stream: Stream) -> None:
        started.set()
        await stream.read()

    async with pair("memory") as it:
        it.acceptor.handle("wait/1", wait)
        stream = await it.session.open_stream("wait/1")
        await started.wait()
        [task] = [task for task in it.acceptor._tasks if task.get_name().startswith("wait/1")]
        task.cancel()
        with pytest.raises(StreamReset):
            await stream.read(1)


async def test_readers_of_control_streams_are_woken_before_those_of_bulk() -> None:
    """A reader's task runs in the order in which it is woken, whichever stream's bytes came first."""
    async with pair("memory") as it, it.streams() as (_, bulk), it.streams(priority=Priority.CONTROL) as (_, control):
        woken: list[str] = []
        bulk.on_change = lambda: woken.append("bulk")
        control.on_change = lambda: woken.append("control")
        peer = bulk.session._peer
        [connection] = peer.connections.values()
        for stream in (bulk, control):
            peer.stream_received(connection, stream.id, stream._core.receiving.buffer.received, b"x")
        peer.writable(connection)
        assert woken == ["control", "bulk"]
