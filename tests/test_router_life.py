"""The life of a driver: how it is entered, left, closed and followed by another, and what its users are told then."""

import asyncio
from collections import deque
from typing import Any

import pytest
from driver_drive import Drive
from driver_support import TCP, node, rogue, told, two

from overlay import (
    FLOOD,
    BusyError,
    Config,
    Driver,
    DriverClosed,
    Endpoint,
    EndpointClosed,
    Identity,
    NeighbourDown,
    NeighbourUp,
    Priority,
    Reason,
)
from overlay.protocol.driver import wire
from overlay.receiver import Receiver
from overlay.testing import LOOPBACK, PATIENCE, Weather, echo, exchange, interrupted, ticket, until

FOREVER = 600.0
"""Seconds: who waits so long is found out by the time limit of the test."""


# ---------------------------------------------------------------- one after the other


async def test_a_closed_driver_that_is_still_referenced_greets_nobody() -> None:
    async with Endpoint(Identity.generate(), TCP) as endpoint, node(TCP) as other:
        other.endpoint.handle("echo/1", echo)
        async with Driver(endpoint) as closed:
            pass
        events = other.driver.events()
        session = await endpoint.connect(ticket(other.endpoint))
        assert await exchange(session, b"what was opened before is there") == b"what was opened before is there"
        assert not closed._neighbours and not closed._tasks
        await until(lambda: not other.driver._neighbours)
        assert told(events) == []


async def test_a_closed_driver_leaves_a_new_one_on_its_endpoint_alone() -> None:
    async with Endpoint(Identity.generate(), TCP) as endpoint, node(TCP) as other:
        async with Driver(endpoint) as closed:
            pass
        async with Driver(endpoint) as driver:
            events = other.driver.events()
            driver.start_peering(ticket(other.endpoint))
            await until(lambda: driver.neighbours() and other.driver.neighbours())
            for reliable in (True, False):
                assert await driver.send(bytes([reliable]), other.peer_id, reliable=reliable) == 1
                assert await other.frames(1) == [bytes([reliable])]
                assert await other.driver.send(bytes([reliable]), endpoint.peer_id, reliable=reliable) == 1
                assert (await driver.next()).frame == bytes([reliable])
            assert told(events) == [NeighbourUp]
            assert not closed._neighbours


# ---------------------------------------------------------------- how it is entered


async def test_a_driver_enters_only_an_open_endpoint_and_leaves_the_others_usable() -> None:
    endpoint = Endpoint(Identity.generate(), TCP)
    with pytest.raises(EndpointClosed, match="enter the endpoint first"):
        await Driver(endpoint).__aenter__()
    async with endpoint:
        async with Driver(endpoint) as driver:
            assert await driver.send(b"nobody is there", FLOOD) == 0
    with pytest.raises(EndpointClosed, match="enter the endpoint first"):
        await Driver(endpoint).__aenter__()


async def test_a_driver_is_entered_once_and_its_endpoint_takes_another_one_then() -> None:
    async with Endpoint(Identity.generate(), TCP) as endpoint:
        driver = Driver(endpoint)
        async with driver:
            with pytest.raises(BusyError, match="once"):
                await driver.__aenter__()
            assert await driver.send(b"it has done no harm", FLOOD) == 0
        with pytest.raises(BusyError, match="once"):
            await driver.__aenter__()
        async with Driver(endpoint) as another:
            with pytest.raises(BusyError, match="once"):
                await driver.__aenter__()
            assert await another.send(b"it has done no harm", FLOOD) == 0


async def test_a_driver_beside_another_is_refused_and_may_follow_it() -> None:
    async with two(TCP) as (one, other):
        second = Driver(one.endpoint)
        with pytest.raises(BusyError, match="another driver"):
            await second.__aenter__()
        assert await one.driver.send(b"the first one goes on", other.peer_id) == 1
        assert await other.frames(1) == [b"the first one goes on"]
        await one.driver.aclose()
        async with second:
            await until(second.neighbours)
            assert await second.send(b"now it is its turn", other.peer_id) == 1
            assert await other.frames(1) == [b"now it is its turn"]


async def test_a_driver_that_is_not_entered_says_that_it_is_closed() -> None:
    async with Endpoint(Identity.generate(), TCP) as endpoint:
        driver = Driver(endpoint)
        for call in (driver.send(b"", FLOOD), driver.send(b"", endpoint.peer_id), driver.flush()):
            with pytest.raises(DriverClosed, match="async with Driver"):
                await call
        with pytest.raises(DriverClosed, match="not open"):
            await driver.next()
        assert [received async for received in driver] == []
        assert driver.neighbours() == []


# ---------------------------------------------------------------- how it is left


@pytest.mark.parametrize("turns", [1, 2, 3])
async def test_a_cancelled_aclose_closes(turns: int) -> None:
    async with two(TCP) as (one, other):
        events, returns = one.driver.events(), one.driver.undelivered()
        waiting = [asyncio.create_task(_rest_of_frames(one.driver)), asyncio.create_task(_rest(returns))]
        await interrupted(one.driver.aclose(), turns)
        async with asyncio.timeout(PATIENCE):
            assert await asyncio.gather(*waiting) == [[], []]
            assert NeighbourDown in map(type, await _rest(events))
        await _is_closed(one.driver)
        await until(lambda: not one.driver._tasks)
        await until(lambda: not other.driver.neighbours())


async def test_a_cancelled_leaving_closes() -> None:
    sent = [bytes([number]) * 60_000 for number in range(40)]
    async with node(TCP) as other, Endpoint(Identity.generate(), TCP) as endpoint:
        driver = Driver(endpoint)
        leaving = asyncio.Event()

        async def stay() -> None:
            async with driver:
                driver.start_peering(ticket(other.endpoint))
                await until(driver.neighbours)
                for frame in sent:
                    await driver.send(frame, other.peer_id)
                leaving.set()

        task = asyncio.create_task(stay())
        await leaving.wait()
        assert not task.done(), "nobody reads them, so it waits"
        task.cancel()
        await asyncio.wait([task])
        assert task.cancelled()
        await _is_closed(driver)
        async with asyncio.timeout(PATIENCE):
            lost = await _rest(driver.undelivered())
        assert lost and {one.reason for one in lost} == {Reason.CLOSED}
        await until(lambda: not other.driver.neighbours())
        got = await other.frames(len(other.driver._receiver))
        assert {one.frame for one in lost} | set(got) == set(sent)
        assert not {one.frame for one in lost if not one.maybe_delivered} & set(got)
        async with Driver(endpoint) as another:
            await until(another.neighbours)


async def _rest(one: Any) -> list[Any]:
    return [item async for item in one]


async def _rest_of_frames(driver: Driver) -> list[bytes]:
    frames = []
    while True:
        try:
            frames.append((await driver.next()).frame)
        except DriverClosed:
            return frames


async def _is_closed(driver: Driver) -> None:
    for call in (driver.send(b"", FLOOD), driver.flush()):
        with pytest.raises(DriverClosed):
            await call
    assert driver.neighbours() == []
    assert not driver._endpoint.is_handled(wire.PROTOCOL)


async def test_a_send_that_waits_for_room_while_the_driver_is_closed_says_so() -> None:
    async with two(Config(listen=LOOPBACK, transports=("tcp",), resume_timeout=60.0), queue_frames=4) as (one, other):
        Weather(one.endpoint, other.endpoint).cut()
        await until(lambda: one.driver.metrics(other.peer_id).lingering)
        for number in range(4):
            assert await one.driver.send(bytes([number]), other.peer_id) == 1
        sending = asyncio.create_task(one.driver.send(b"waits", other.peer_id, wait=True))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert not sending.done()
        await one.driver.aclose()
        with pytest.raises(DriverClosed):
            await sending
        lost = await _rest(one.driver.undelivered())
        assert [one.frame for one in lost] == [bytes([number]) for number in range(4)], "the error is its answer"


# ---------------------------------------------------------------- what it is asked


async def test_arguments_that_mean_nothing_are_refused_and_nothing_is_sent() -> None:
    async with two(TCP) as (one, other):
        send: Any = one.driver.send
        wrong: Any
        for wrong in (str(other.peer_id), other.peer_id.raw, None, [other.peer_id]):
            with pytest.raises(TypeError, match="PeerId or FLOOD"):
                await send(b"wrong", wrong)
        for wrong in (str(other.peer_id), {other.peer_id}, [other.peer_id]):
            with pytest.raises(TypeError, match="one PeerId"):
                await send(b"wrong", FLOOD, exclude=wrong)
        for wrong in (5, "text", None, [1, 2]):
            for target in (other.peer_id, FLOOD):
                with pytest.raises(TypeError):
                    await send(wrong, target)
        with pytest.raises(ValueError, match="waits for nobody"):
            await send(b"wrong", FLOOD, wait=True)
        for frame in (bytearray(b"right"), memoryview(b"right")):
            assert await send(frame, other.peer_id) == 1
        assert await other.frames(2) == [b"right"] * 2
        assert len(one.driver.undelivered()) == len(other.driver._receiver) == 0


# ---------------------------------------------------------------- whom it waits for


@pytest.mark.parametrize("transport", ["tcp", "udp"])
@pytest.mark.parametrize("when", ["before", "meanwhile"])
async def test_flush_and_leaving_do_not_wait_for_a_neighbour_without_a_path(transport: str, when: str) -> None:
    """TCP's connections are lost with a word, UDP's path falls silent; it lingers, and is not given up."""
    config = Config(
        listen=LOOPBACK, transports=(transport,), resume_timeout=FOREVER, idle_timeout=FOREVER, delivery_timeout=FOREVER
    )
    async with node(config) as other, Endpoint(Identity.generate(), config) as endpoint:
        async with Driver(endpoint, age_limit=FOREVER) as driver:
            driver.start_peering(ticket(other.endpoint))
            await until(driver.neighbours)
            weather = Weather(endpoint, other.endpoint)
            if when == "before":
                _lose(weather, transport)
            for number in range(60):
                await driver.send(bytes([number]) * 60_000, other.peer_id)
            flushing = asyncio.create_task(driver.flush())
            if when == "meanwhile":
                await asyncio.sleep(0)
                assert not flushing.done()
                _lose(weather, transport)
            async with asyncio.timeout(PATIENCE):
                assert await flushing
            assert driver.neighbours() == [other.peer_id]
            metrics = driver.metrics(other.peer_id)
            assert metrics.queued_frames
            leaving = asyncio.timeout(PATIENCE)
            await leaving.__aenter__()
        await leaving.__aexit__(None, None, None)
        assert len(driver.undelivered()) >= metrics.queued_frames


def _lose(weather: Weather, transport: str) -> None:
    if transport == "tcp":
        weather.cut()
    else:
        weather.cut_off = True


async def test_flush_and_leaving_do_not_wait_for_a_peer_that_never_greets() -> None:
    config = Config(listen=LOOPBACK, transports=("tcp",), delivery_timeout=FOREVER)
    async with node(config) as one, rogue(one):
        [peer_id] = one.endpoint.sessions
        await until(lambda: peer_id in one.driver._neighbours)
        assert await one.driver.send(b"frame", peer_id) == 1
        assert await one.driver.send(b"frame", FLOOD) == 0
        async with asyncio.timeout(PATIENCE):
            assert await one.driver.flush()
            await one.driver.__aexit__(None, None, None)
        [lost] = await _rest(one.driver.undelivered())
        assert (lost.frame, lost.reason, lost.maybe_delivered) == (b"frame", Reason.CLOSED, False)


# ---------------------------------------------------------------- all of it together


@pytest.mark.parametrize("seed", [1, 2, 3])
async def test_whatever_befalls_four_drivers_each_frame_arrives_once_or_comes_back(seed: int) -> None:
    drive = Drive(seed)
    await drive.run()
    drive.books.check()
    assert len(drive.books.received) > 200, "something was learnt"
    assert drive.books.returned and drive.books.refused


async def test_frame_is_handed_out_in_the_turn_of_the_loop_in_which_its_lane_is_read(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With each further turn it would wait until all busy sockets have been read once more."""
    loop = asyncio.get_running_loop()
    turn = 0
    read: list[int] = []
    handed_out: list[int] = []
    take = Receiver._take

    def count() -> None:
        nonlocal turn
        turn += 1
        counting.append(loop.call_soon(count))

    def noting(*arguments: Any) -> None:
        read.append(turn)
        take(*arguments)

    async def hand_out(driver: Driver) -> None:
        while await driver.next():
            handed_out.append(turn)

    async with two(Config(listen=LOOPBACK, transports=("memory",))) as (one, other):
        monkeypatch.setattr(Receiver, "_take", noting)
        task = asyncio.create_task(hand_out(other.driver))
        counting: deque[asyncio.Handle] = deque(maxlen=1)
        count()
        try:
            for priority in Priority:
                await one.driver.send(b"frame", other.peer_id, priority=priority)
                await one.driver.flush()
        finally:
            counting.pop().cancel()
            task.cancel()
    assert len(read) == 2
    assert handed_out == read
