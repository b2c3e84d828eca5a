"""The driver on real sockets: frames arrive whole and once, or come back; nobody delays anybody else."""

import asyncio
import random
from collections.abc import Callable
from typing import Any

import pytest
from driver_support import SOCKETS, Node, node, peer, star, two

from overlay import (
    FLOOD,
    BusyError,
    Config,
    ConfigError,
    Driver,
    DriverClosed,
    Endpoint,
    FrameTooLong,
    Identity,
    NeighbourDown,
    NeighbourUp,
    NotANeighbour,
    PathChanged,
    Priority,
    Reason,
    SessionClosed,
)
from overlay.protocol.codes import CloseCode
from overlay.protocol.driver import wire
from overlay.protocol.frames import varint
from overlay.testing import LOOPBACK, KiB, MiB, Weather, connections, crash, ticket, until

TRANSPORTS = ("quic", "udp", "tcp", "memory")


def only(transport: str, **settings: Any) -> Config:
    return Config(listen=LOOPBACK, transports=(transport,), **settings)


def frames_of(count: int, longest: int, seed: int = 1) -> list[bytes]:
    """Frames of all sizes, each one different."""
    draw = random.Random(seed)
    sizes = [
        draw.choice((8, draw.randint(8, 100), draw.randint(8, 2000), draw.randint(8, longest))) for _ in range(count)
    ]
    return [number.to_bytes(4) + draw.randbytes(size - 4) for number, size in enumerate(sizes)]


@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_frames_of_all_sizes_arrive_whole_and_once_in_both_directions(transport: str) -> None:
    async with two(only(transport)) as (one, other):
        sent = {one: frames_of(600, 64 * KiB, 1), other: frames_of(600, 64 * KiB, 2)}

        async def speak(source: Node, target: Node) -> None:
            for number, frame in enumerate(sent[source]):
                priority = Priority.CONTROL if number % 7 == 0 else Priority.BULK
                assert await source.driver.send(frame, target.peer_id, priority=priority, wait=True) == 1

        async with asyncio.TaskGroup() as group:
            group.create_task(speak(one, other))
            group.create_task(speak(other, one))
            heard = [group.create_task(node.take(600)) for node in (other, one)]
        for (source, frames), task in zip(sent.items(), heard, strict=True):
            received = task.result()
            assert sorted(one.frame for one in received) == sorted(frames)
            assert {one.peer_id for one in received} == {source.peer_id}
            assert {one.path.transport for one in received if one.path is not None} == {transport}
            bulk = [frame for number, frame in enumerate(frames) if number % 7]
            assert [one.frame for one in received if int.from_bytes(one.frame[:4]) % 7] == bulk
        assert len(one.driver.undelivered()) == len(other.driver.undelivered()) == 0


@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_unreliable_frames_arrive_too_and_those_beyond_a_datagram_as_well(transport: str) -> None:
    async with two(only(transport)) as (one, other):
        mtu = one.driver.mtu(other.peer_id)
        assert 0 < mtu <= one.driver.max_frame_size
        sent = [bytes([number]) * size for number, size in enumerate((0, 1, mtu, min(mtu + 1, 64 * KiB), 64 * KiB))]
        for frame in sent:
            for priority in Priority:
                await one.driver.send(frame, other.peer_id, reliable=False, priority=priority)
        assert sorted(await other.frames(2 * len(sent))) == sorted(sent * 2)


async def test_a_flood_goes_to_all_but_the_excluded_one() -> None:
    async with star(3) as (middle, (a, b, c)), node() as stranger:
        assert await middle.driver.send(b"to all", FLOOD) == 3
        assert await middle.driver.send(b"not to a", FLOOD, exclude=a.peer_id) == 2
        assert await middle.driver.send(b"an unknown exclude excludes none", FLOOD, exclude=stranger.peer_id) == 3
        assert await middle.driver.send(b"end", FLOOD) == 3
        assert await a.frames(3) == [b"to all", b"an unknown exclude excludes none", b"end"]
        for one in (b, c):
            assert (await one.frames(4))[1] == b"not to a"
        assert await stranger.driver.send(b"nobody is there", FLOOD) == 0


async def test_control_overtakes_all_bulk_that_has_not_left() -> None:
    async with two() as (one, other):
        bulk = [number.to_bytes(4) * 2048 for number in range(200)]
        for frame in bulk:
            await one.driver.send(frame, other.peer_id)
        await one.driver.send(b"urgent", other.peer_id, priority=Priority.CONTROL)
        assert await other.frames(201) == [b"urgent", *bulk]


def pieces_sent(one: Node, other: Node) -> list[int]:
    """The sizes of the pieces of streams that leave for a neighbour from now on."""
    [connection] = connections(one.endpoint, other.peer_id)
    pieces: list[int] = []
    send_stream = connection.send_stream

    def counted(stream: int, offset: int, data: bytes | memoryview, *, idle: bool) -> None:
        pieces.append(len(data))
        send_stream(stream, offset, data, idle=idle)

    vars(connection)["send_stream"] = counted
    return pieces


async def test_small_frames_of_one_turn_leave_together() -> None:
    async with two(only("tcp")) as (one, other):
        pieces = pieces_sent(one, other)
        # So many that a new stream's first credit is enough for them.
        for number in range(60):
            await one.driver.send(bytes([number]) * 50, other.peer_id)
        assert len(await other.frames(60)) == 60
        assert pieces == [60 * 51]


async def test_the_full_queue_of_a_dead_neighbour_does_not_part_the_frames_of_the_others() -> None:
    async with star(2, only("tcp", resume_timeout=60.0), queue_frames=100) as (middle, (dead, living)):
        Weather(dead.endpoint).cut()
        await until(lambda: middle.driver.metrics(dead.peer_id).lingering)
        for number in range(100):
            await middle.driver.send(bytes([number]), dead.peer_id)
        pieces = pieces_sent(middle, living)
        for number in range(60):
            await middle.driver.send(bytes([number]) * 50, FLOOD)
        assert len(await living.frames(60)) == 60
        assert len(pieces) <= 2


async def test_a_frame_over_the_limit_is_refused_before_anything_is_sent() -> None:
    async with two(max_frame_size=1000) as (one, other):
        for target in (other.peer_id, FLOOD):
            with pytest.raises(FrameTooLong, match=r"1001 bytes.*limit is 1000") as caught:
                await one.driver.send(bytes(1001), target)
            assert caught.value.limit == 1000
            assert caught.value.frame == bytes(1001)
        # What the other side takes counts as well.
        with pytest.raises(FrameTooLong, match="limit is 1000"):
            await other.driver.send(bytes(1001), one.peer_id)
        assert await other.driver.send(bytes(1001), FLOOD) == 0
        [lost] = await other.lost(1)
        assert lost == (lost.__class__)(bytes(1001), one.peer_id, Reason.TOO_LONG, maybe_delivered=False)
        await other.driver.send(bytes(1000), one.peer_id)
        assert await one.frames(1) == [bytes(1000)]


async def test_a_frame_for_somebody_unknown_is_an_error_that_holds_it() -> None:
    async with node() as one:
        key = Identity.generate().peer_id
        with pytest.raises(NotANeighbour, match="start_peering") as caught:
            await one.driver.send(b"frame", key)
        assert (caught.value.peer_id, caught.value.frame) == (key, b"frame")
        for question in (one.driver.mtu, one.driver.metrics):
            with pytest.raises(NotANeighbour):
                question(key)


@pytest.mark.parametrize("reliable", [True, False])
async def test_what_waits_too_long_comes_back_and_what_has_left_may_have_arrived(reliable: bool) -> None:
    async with two(only("tcp", resume_timeout=60.0)) as (one, other):
        weather = Weather(one.endpoint, other.endpoint)
        weather.cut()
        await until(lambda: one.driver.metrics(other.peer_id).lingering)
        assert one.is_neighbour(other), "a lingering peer stays a neighbour"
        await one.driver.send(b"late", other.peer_id, deadline=0.05, reliable=reliable)
        await one.driver.send(b"patient", other.peer_id, reliable=reliable)
        [lost] = await one.lost(1)
        assert (lost.frame, lost.reason, lost.maybe_delivered) == (b"late", Reason.EXPIRED, False)
        weather.cut_off = False
        assert await other.frames(1) == [b"patient"]


async def test_a_frame_that_has_left_and_is_not_acknowledged_comes_back_as_maybe_delivered() -> None:
    async with two(only("udp", resume_timeout=60.0)) as (one, other):
        Weather(other.endpoint).cut_off = True
        await one.driver.send(b"on its way", other.peer_id, deadline=0.2)
        [lost] = await one.lost(1)
        assert (lost.frame, lost.reason, lost.maybe_delivered) == (b"on its way", Reason.EXPIRED, True)
        assert one.driver.metrics(other.peer_id).undelivered == 1


async def test_unreliable_frames_that_have_left_never_come_back() -> None:
    async with two(only("udp")) as (one, other):
        Weather(other.endpoint).cut_off = True
        await one.driver.send(b"lost for good", other.peer_id, reliable=False)
        await until(lambda: one.driver.metrics(other.peer_id).queued_frames == 0)
        one.driver.stop_peering(other.peer_id)
        await until(lambda: not one.driver.neighbours())
        assert len(one.driver.undelivered()) == 0


async def test_a_full_queue_gives_frames_back_or_lets_the_sender_wait() -> None:
    async with two(only("tcp", resume_timeout=60.0), queue_frames=10) as (one, other):
        weather = Weather(one.endpoint, other.endpoint)
        weather.cut()
        await until(lambda: one.driver.metrics(other.peer_id).lingering)
        assert [await one.driver.send(bytes([n]), other.peer_id) for n in range(12)] == [1] * 10 + [0] * 2
        assert [(lost.frame, lost.reason) for lost in await one.lost(2)] == [
            (bytes([10]), Reason.QUEUE_FULL),
            (bytes([11]), Reason.QUEUE_FULL),
        ]
        assert await one.driver.send(b"urgent", other.peer_id, priority=Priority.CONTROL) == 1
        assert await one.driver.send(b"no room in time", other.peer_id, wait=True, deadline=0.01) == 0
        assert [lost.frame for lost in await one.lost(1)] == [b"no room in time"]
        waiting = asyncio.create_task(one.driver.send(b"waits", other.peer_id, wait=True))
        weather.cut_off = False
        assert await waiting == 1
        assert await other.frames(12) == [b"urgent", *(bytes([n]) for n in range(10)), b"waits"]


async def test_somebody_who_is_cut_off_delays_nobody_and_its_frames_come_back() -> None:
    config = only("udp", resume_timeout=60.0)
    async with star(3, config, age_limit=4.0, queue_frames=64) as (middle, (dead, *living)):
        Weather(dead.endpoint).cut_off = True
        sent = [number.to_bytes(4) * 256 for number in range(3008)]
        for at in range(0, len(sent), 32):
            # No more at a time than a queue holds, however slow this machine is.
            part = sent[at : at + 32]
            for frame in part:
                await middle.driver.send(frame, FLOOD)
            for one in living:
                assert await one.frames(len(part)) == part
        lost = await middle.lost(len(sent))
        assert sorted(one.frame for one in lost) == sorted(sent)
        assert {one.peer_id for one in lost} == {dead.peer_id}
        assert {one.reason for one in lost} <= {Reason.EXPIRED, Reason.QUEUE_FULL}
        assert not any(one.maybe_delivered for one in lost if one.reason is Reason.QUEUE_FULL)


async def test_the_end_of_a_session_gives_back_what_was_not_acknowledged() -> None:
    async with two(only("tcp", resume_timeout=0.3)) as (one, other):
        events = one.driver.events()
        Weather(one.endpoint, other.endpoint).cut()
        await until(lambda: one.driver.metrics(other.peer_id).lingering)
        await one.driver.send(b"frame", other.peer_id)
        [lost] = await one.lost(1)
        assert (lost.frame, lost.reason, lost.maybe_delivered) == (b"frame", Reason.SESSION_OVER, False)
        await until(lambda: not one.driver.neighbours())
        assert isinstance([event async for event in _until_down(events)][-1], NeighbourDown)


async def _until_down(events: Any) -> Any:
    async for event in events:
        yield event
        if isinstance(event, NeighbourDown):
            return


async def test_a_peer_that_is_killed_gives_back_every_frame_or_has_it() -> None:
    async with two(only("udp", resume_timeout=0.5, keepalive=0.5, idle_timeout=2.0)) as (one, other):
        sent = frames_of(400, 4 * KiB)
        for frame in sent:
            await one.driver.send(frame, other.peer_id, wait=True)
        got = await other.frames(100)
        await crash(other.endpoint)
        lost = []
        returns = one.driver.undelivered()
        await until(lambda: not one.driver.neighbours())
        while len(returns):
            lost.append(await anext(returns))
        got += [received.frame async for received in other.driver]
        assert set(sent) == set(got) | {one.frame for one in lost}
        certainly_not = {one.frame for one in lost if not one.maybe_delivered}
        assert not certainly_not & set(got)


async def test_a_peer_without_a_driver_is_no_neighbour() -> None:
    async with node() as one, Endpoint(Identity.generate(), SOCKETS) as other:
        one.driver.start_peering(ticket(other))
        events = one.driver.events()
        await until(lambda: one.endpoint.sessions.get(other.peer_id))
        with pytest.raises(NotANeighbour):
            # Before it is known, a frame waits; it never leaves.
            await one.driver.send(b"frame", other.peer_id)
            [lost] = await one.lost(1)
            assert (lost.reason, lost.maybe_delivered) == (Reason.NO_DRIVER, False)
            await one.driver.send(b"frame", other.peer_id)
        assert one.driver.neighbours() == []
        async with Driver(other) as driver:
            await until(driver.neighbours)
            assert await driver.send(b"later", one.peer_id) == 1
            assert await one.frames(1) == [b"later"]
        assert isinstance(await anext(events), NeighbourUp | PathChanged)


async def test_a_driver_that_is_followed_by_another_on_the_same_session() -> None:
    async with node() as one, Endpoint(Identity.generate(), SOCKETS) as other:
        one.driver.start_peering(ticket(other))
        events = one.driver.events()
        seen: list[type] = []
        for number in range(3):
            async with Driver(other) as driver:
                await until(lambda: driver.neighbours() and one.driver.neighbours())
                await driver.send(bytes([number]), one.peer_id)
                assert await one.frames(1) == [bytes([number])]
                await one.driver.send(bytes([number]), other.peer_id)
                assert (await driver.next()).frame == bytes([number])
        await until(lambda: not one.driver.neighbours())
        while seen.count(NeighbourDown) < 3:
            event = await anext(events)
            if not isinstance(event, PathChanged):
                seen.append(type(event))
        assert seen == [NeighbourUp, NeighbourDown] * 3
        assert len(one.endpoint.sessions) == 1


async def test_one_driver_per_endpoint() -> None:
    async with node() as one:
        with pytest.raises(BusyError):
            async with Driver(one.endpoint):
                pass
        assert await one.driver.send(b"still here", FLOOD) == 0


async def test_events_tell_of_neighbours_and_their_paths() -> None:
    async with node() as one, node() as other:
        events = one.driver.events()
        await peer(one, other)
        up = await anext(events)
        while not isinstance(up, NeighbourUp):
            up = await anext(events)
        assert (up.peer_id, up.direction) == (other.peer_id, "both")
        one.driver.stop_peering(other.peer_id)
        down = await anext(events)
        while not isinstance(down, NeighbourDown):
            down = await anext(events)
        assert down.peer_id == other.peer_id
        assert one.driver.neighbours() == []
        await until(lambda: not other.driver.neighbours())
        assert not one.endpoint.book.is_kept(other.peer_id)


def _oversized() -> bytes:
    return wire.Greeting(64 * KiB, 1).encode() + varint(64 * KiB + 1) + bytes(100)


@pytest.mark.parametrize(
    ("garbage", "words"),
    [
        (_oversized, "65537 bytes"),
        (lambda: varint(2**40), "greeting"),
        (lambda: varint(0), "greeting"),
    ],
)
async def test_who_sends_frames_over_the_limit_is_closed_with_a_code(garbage: Callable[[], bytes], words: str) -> None:
    async with star(1) as (middle, [good]), Endpoint(Identity.generate(), SOCKETS) as bad:
        session = await bad.connect(ticket(middle.endpoint))
        stream = await session.open_stream(wire.PROTOCOL)
        await stream.write(garbage())
        error = await session.wait_closed()
        assert isinstance(error, SessionClosed)
        assert (error.by_peer, error.code) == (True, CloseCode.MISBEHAVED)
        assert words in str(error)
        await good.driver.send(b"nobody else is touched", middle.peer_id)
        assert await middle.frames(1) == [b"nobody else is touched"]


async def test_a_datagram_over_the_limit_is_closed_with_a_code() -> None:
    async with node(only("tcp"), max_frame_size=1000) as one, Endpoint(Identity.generate(), only("tcp")) as bad:
        session = await bad.connect(ticket(one.endpoint))
        await session.send_datagram(b"")
        await session.send_datagram(b"\xff unknown")
        await session.send_datagram(b"\x01" + bytes(1001))
        error = await session.wait_closed()
        assert isinstance(error, SessionClosed)
        assert error.code == CloseCode.MISBEHAVED


@pytest.mark.parametrize("transport", ["tcp", "memory"])
async def test_a_burst_of_datagrams_that_nothing_loses_on_the_way_is_not_lost_at_its_end(transport: str) -> None:
    async with two(only(transport)) as (one, other):
        sent = [number.to_bytes(4) * 64 for number in range(2000)]
        for frame in sent:
            assert await one.driver.send(frame, other.peer_id, reliable=False)
        assert await other.frames(2000) == sent


async def test_a_cancelled_next_loses_nothing() -> None:
    async with two() as (one, other):
        got: list[bytes] = []
        sending = asyncio.create_task(_trickle(one, other, 200))
        draw = random.Random(5)
        while len(got) < 200:
            try:
                async with asyncio.timeout(draw.choice((0, 0.0005, 0.01))):
                    while True:
                        got.append((await other.driver.next()).frame)
            except TimeoutError:
                continue
        await sending
        assert got == [bytes([number]) for number in range(200)]


async def _trickle(one: Node, other: Node, count: int) -> None:
    for number in range(count):
        await one.driver.send(bytes([number]), other.peer_id)
        await asyncio.sleep(0.001 * (number % 3))


async def test_who_does_not_fetch_is_not_buried() -> None:
    """The receiver's memory is bounded; the sender's queue fills, and its frames come back at their age limit."""
    async with two(only("tcp"), age_limit=1.0, queue_frames=50, queue_size=1 * MiB) as (one, other):
        sent = 0
        while not len(one.driver.undelivered()):
            await one.driver.send(sent.to_bytes(4) * 8192, other.peer_id)
            sent += 1
            await asyncio.sleep(0)
        status = other.driver.status()
        assert 0 < status.received_waiting <= 4096
        waiting = sum(len(stream.receiving.buffer) for stream in _streams(other))
        assert waiting <= other.endpoint.config.limits.stream_window
        [first] = await other.take(1)
        assert first.frame == bytes(4) * 8192


def _streams(one: Node) -> list[Any]:
    return [
        stream
        for session in one.endpoint.sessions.values()
        for stream in session._core.core.streams.values()
        if not stream.local
    ]


async def test_metrics_and_status_say_how_the_link_is() -> None:
    async with two(only("udp")) as (one, other):
        for number in range(200):
            await one.driver.send(bytes(1000), other.peer_id, wait=True)
            await other.driver.send(bytes(500), one.peer_id, wait=True)
            if number % 10 == 0:
                await other.take(10 if number else 1)
        await one.driver.flush()
        metrics = one.driver.metrics(other.peer_id)
        assert metrics.rtt is not None and 0 < metrics.rtt < 5
        assert metrics.loss is not None and 0 <= metrics.loss <= 1
        assert metrics.goodput_out > 0 and metrics.goodput_in > 0
        assert (metrics.queued_frames, metrics.queued_size, metrics.unacknowledged_size) == (0, 0, 0)
        assert metrics.direction == "both" and not metrics.lingering and metrics.since > 0
        assert [path.transport for path in metrics.paths] == ["udp"]
        status = one.driver.status()
        assert status.peer_id == one.peer_id
        assert [metrics.peer_id for metrics in status.neighbours] == [other.peer_id]
        assert one.driver.size_hint == one.driver.mtu(other.peer_id) == metrics.mtu


async def test_frames_wait_for_a_path_and_then_arrive() -> None:
    async with two(only("tcp", resume_timeout=60.0)) as (one, other):
        weather = Weather(one.endpoint, other.endpoint)
        sent = [number.to_bytes(4) * 100 for number in range(300)]
        for number, frame in enumerate(sent):
            if number % 100 == 50:
                weather.cut()
                await until(lambda: one.driver.metrics(other.peer_id).lingering)
                weather.cut_off = False
            await one.driver.send(frame, other.peer_id)
        assert await other.frames(300) == sent
        assert await one.driver.flush()
        assert len(one.driver.undelivered()) == 0


async def test_leaving_delivers_what_is_queued_and_closing_gives_it_back() -> None:
    async with node() as other:
        async with Endpoint(Identity.generate(), SOCKETS) as endpoint:
            async with Driver(endpoint) as driver:
                driver.start_peering(ticket(other.endpoint))
                await until(driver.neighbours)
                for number in range(100):
                    await driver.send(bytes([number]), other.peer_id)
            assert [lost async for lost in driver.undelivered()] == []
            with pytest.raises(DriverClosed):
                await driver.send(b"", FLOOD)
            with pytest.raises(DriverClosed):
                await driver.next()
        assert await other.frames(100) == [bytes([number]) for number in range(100)]
        async with Endpoint(Identity.generate(), SOCKETS) as endpoint:
            driver = Driver(endpoint)
            await driver.__aenter__()
            driver.start_peering(ticket(other.endpoint))
            await until(driver.neighbours)
            await driver.send(b"never left", other.peer_id)
            await driver.aclose()
            [lost] = [lost async for lost in driver.undelivered()]
            assert (lost.reason, lost.maybe_delivered) == (Reason.CLOSED, False)


async def test_what_has_arrived_can_be_fetched_after_the_sender_has_gone() -> None:
    """What is acknowledged is never handed back, so neither the end of a lane nor of a session may take it away."""
    sent = [number.to_bytes(4) * 4096 for number in range(18)]
    for ending in ("driver", "endpoint", "peering"):
        async with node() as other:
            async with node() as one:
                await peer(one, other)
                for frame in sent:
                    await one.driver.send(frame, other.peer_id, wait=True)
                assert await one.driver.flush()
                if ending == "driver":
                    await one.driver.aclose()
                elif ending == "endpoint":
                    await one.endpoint.aclose()
                else:
                    one.driver.stop_peering(other.peer_id)
                await until(lambda: not other.driver.neighbours())
                assert await other.frames(18) == sent
                assert len(one.driver.undelivered()) == 0


async def test_the_endpoint_may_be_closed_first() -> None:
    async with node() as other, Endpoint(Identity.generate(), SOCKETS) as endpoint:
        async with Driver(endpoint) as driver:
            driver.start_peering(ticket(other.endpoint))
            await until(driver.neighbours)
            await driver.send(b"frame", other.peer_id)
            waiting = asyncio.create_task(driver.next())
            await endpoint.aclose()
            with pytest.raises(DriverClosed):
                await waiting
            assert [event async for event in driver.events()] == []


@pytest.mark.parametrize(
    "settings",
    [{"max_frame_size": 0}, {"age_limit": 0}, {"queue_frames": 0}, {"queue_size": 100}, {"max_frame_size": 2**30}],
)
async def test_settings_that_cannot_work_are_refused(settings: dict[str, Any]) -> None:
    async with Endpoint(Identity.generate(), SOCKETS) as endpoint:
        with pytest.raises(ConfigError, match=next(iter(settings))):
            Driver(endpoint, **settings)
