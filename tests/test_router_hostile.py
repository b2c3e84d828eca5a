"""What peers can do to a driver: by greedy or false lanes, by coming again and again, by what they call urgent."""

import asyncio

import pytest
from driver_support import TCP, Node, lane, node, peer, rogue, star, told, two, unread

import overlay.receiver
from overlay import Driver, Endpoint, Identity, NeighbourDown, NeighbourUp, NotANeighbour, Priority
from overlay.protocol.driver import wire
from overlay.protocol.frames import varint
from overlay.testing import KiB, MiB, ticket, until

FRAME = 1000
MANY = 330
"""Frames of FRAME bytes that fill a lane, so that its reader waits for room with some of them in its stream."""
READ = 240
"""So many of them make room."""


def encoded(*frames: bytes) -> bytes:
    return b"".join(varint(len(frame)) + frame for frame in frames)


async def test_a_driver_closed_with_bytes_in_hand_hands_out_all_that_is_acknowledged_and_no_garbage() -> None:
    """One lane fills the queue that another of the same priority is about to fill, in the middle of a frame."""
    filling, cut = [bytes(FRAME)] * MANY, [bytes([number]) * 5000 for number in range(1, 4)]
    async with node(TCP) as one, rogue(one) as session:
        lanes = [await lane(session) for _ in range(2)]
        for stream in lanes:
            await stream.wait_delivered()
            await until(lambda stream=stream: not unread(one, stream))  # type: ignore[misc]
        await lanes[0].write(encoded(*filling))
        await lanes[0].wait_delivered()
        [source] = one.driver._receiver._sources.values()
        await until(lambda: source.lanes[Priority.BULK].queue.is_full)
        begin, rest = encoded(*cut)[:7003], encoded(*cut)[7003:]
        await lanes[1].write(begin)
        await lanes[1].wait_delivered()
        await until(lambda: unread(one, lanes[1]) < len(begin))
        await lanes[1].write(rest)
        await lanes[1].wait_delivered()
        assert unread(one, lanes[1]) >= len(rest), "the beginning is in hand, the rest is not"
        await one.driver.aclose()
        got = [received.frame async for received in one.driver]
        assert [frame for frame in got if frame != bytes(FRAME)] == cut
        assert got.count(bytes(FRAME)) == len(filling)


async def test_unread_frames_of_a_driver_before_neither_bring_it_up_nor_the_new_one_down() -> None:
    async with node(TCP) as one, Endpoint(Identity.generate(), TCP) as other:
        events = one.driver.events()
        one.driver.start_peering(ticket(other))
        sent = [number.to_bytes(2) * (FRAME // 2) for number in range(MANY + READ)]

        async def fill(driver: Driver, frames: list[bytes]) -> None:
            await until(lambda: driver.neighbours() and one.driver.neighbours())
            for frame in frames:
                await driver.send(frame, one.peer_id, wait=True)
            assert await driver.flush()

        async with Driver(other) as first:
            await fill(first, sent[:MANY])
        await until(lambda: not one.driver.neighbours())
        assert _in_streams(one), "its reader waits for room"
        assert await one.frames(READ) == sent[:READ], "nobody is there, and they are read"
        await until(lambda: not _in_streams(one))
        assert told(events) == [NeighbourUp, NeighbourDown]
        async with Driver(other) as second:
            await fill(second, sent[MANY:])
            # Frames of the second one may come between those of the first one: they are of another lane.
            assert sorted(await one.frames(len(sent) - READ)) == sent[READ:]
            assert await one.driver.send(b"answer", other.peer_id) == 1
            assert (await second.next()).frame == b"answer"
            assert told(events) == [NeighbourUp]


def _in_streams(one: Node) -> int:
    """Bytes that have arrived at a node with only one session, and are not read."""
    [session] = one.endpoint.sessions.values()
    return sum(len(stream.receiving.buffer) for stream in session._core.core.streams.values() if not stream.local)


@pytest.mark.parametrize(
    ("order", "changes"),
    [((0, 1), [NeighbourUp, NeighbourDown, NeighbourUp]), ((1, 0), [NeighbourUp])],
    ids=["the older lane greets first", "the older lane greets last"],
)
async def test_lanes_that_greet_with_two_instances_make_no_more_than_one_change(
    order: tuple[int, int], changes: list[type]
) -> None:
    """However many frames come on both of them."""
    async with node(TCP) as one, rogue(one) as session:
        events = one.driver.events()
        lanes = [await session.open_stream(wire.PROTOCOL) for _ in range(2)]
        for number in order:
            await lanes[number].write(wire.Greeting(64 * KiB, number + 1).encode() + encoded(b"first"))
            assert await one.frames(1) == [b"first"]
        for number in range(50):
            for stream in lanes:
                await stream.write(encoded(bytes([number])))
                assert await one.frames(1) == [bytes([number])]
        assert told(events) == changes
        assert len(one.driver.neighbours()) == 1


async def test_stop_peering_under_traffic_ends_a_neighbour_once() -> None:
    """What is still read of it does not bring it up again."""
    rounds = 10
    async with two(TCP) as (one, other):
        events = one.driver.events()
        read = 0

        async def pour() -> None:
            while True:
                try:
                    await other.driver.send(bytes(16 * KiB), one.peer_id, wait=True)
                except NotANeighbour:
                    await asyncio.sleep(0)

        async def drain() -> None:
            nonlocal read
            async for _ in one.driver:
                read += 1

        tasks = [asyncio.create_task(work()) for work in (pour, drain)]
        for _ in range(rounds):
            await until(lambda before=read: read > before + 40)  # type: ignore[misc]
            one.driver.stop_peering(other.peer_id)
            assert not one.driver.neighbours()
            await until(lambda: other.peer_id not in one.endpoint.sessions)
            await peer(one, other)
        assert told(events) == [NeighbourDown, NeighbourUp] * rounds
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        await other.driver.aclose()


async def test_a_lane_whose_handler_runs_only_after_aclose_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else it would be acknowledged what nobody will ever fetch."""
    async with node(TCP) as one, node(TCP) as other:
        handlers = other.endpoint._handlers
        opened = handlers.stream_opened
        closing: list[asyncio.Task[None]] = []

        def close_first(stream: object) -> None:
            if not closing:
                closing.append(asyncio.create_task(other.driver.aclose()))
            opened(stream)  # type: ignore[arg-type]

        monkeypatch.setattr(handlers, "stream_opened", close_first)
        session = await one.endpoint.connect(ticket(other.endpoint))
        await until(lambda: closing)
        await closing[0]
        await until(lambda: not one.driver._neighbours)
        assert not other.driver._receiver._tasks
        assert not other.endpoint.sessions[one.peer_id]._handlers
        assert session.state == "connected", "it is not the session that has ended"
        with pytest.raises(NotANeighbour):
            await one.driver.send(b"frame", other.peer_id)


async def test_what_one_key_leaves_behind_by_coming_again_and_again_is_bounded_and_what_is_dropped_is_told(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    bound = 1 * MiB
    monkeypatch.setattr(overlay.receiver, "LEFT_BEHIND", bound)
    identity = Identity.generate()
    # Nearly all of its lanes are never read, so each frame has to fit into the smallest window of a stream.
    frame = bytes(4000)
    async with node(TCP) as one:
        receiver = one.driver._receiver
        for _ in range(4):
            async with rogue(one, identity) as session:
                lanes = [await lane(session) for _ in range(150)]
                for stream in lanes:
                    await stream.write(encoded(frame))
                for stream in lanes:
                    await stream.wait_delivered()
            await until(lambda: not one.endpoint.sessions)
            source = receiver._sources[identity.peer_id]
            await until(lambda source=source: not source.readers)  # type: ignore[misc]
            size = source.lanes[Priority.BULK].queue.size
            assert size < bound + 4096
            assert ("are dropped" in caplog.text) == (size > bound)
        assert "begins anew faster than its frames are fetched: some are dropped" in caplog.text
        assert str(identity.peer_id) in caplog.text
        got = await one.frames(len(receiver))
        assert set(got) == {frame}
        assert sum(map(len, got)) > bound - len(got) * 100, "what is not dropped can be fetched"
        assert receiver._inbox.size == 0


async def test_who_calls_all_control_does_not_silence_the_bulk_of_others() -> None:
    async with star(2, TCP) as (middle, (loud, modest)):
        for _ in range(600):
            await loud.driver.send(bytes(FRAME), middle.peer_id, priority=Priority.CONTROL, wait=True)
        sources = middle.driver._receiver._sources
        await until(lambda: sources[loud.peer_id].lanes[Priority.CONTROL].queue.is_full)
        for number in range(10):
            await modest.driver.send(bytes([number]), middle.peer_id)
        await until(lambda: len(sources[modest.peer_id].lanes[Priority.BULK].queue) == 10)
        got = await middle.frames(100)
        assert [frame for frame in got if len(frame) == 1] == [bytes([number]) for number in range(10)]
        assert got[:5] == [bytes(FRAME)] * 5, "control comes first nevertheless"
        await loud.driver.aclose()
