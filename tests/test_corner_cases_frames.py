"""The corner cases of the mapping from keys to addresses, each with a test named after it: a router's frames.

See `test_corner_cases.py` for the others.
"""

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest
from driver_support import Node, node, peer, two

from overlay import FLOOD, Config, PeerId, Reason, Ticket
from overlay.testing import LOOPBACK, MiB, Weather, crash, until

FRAME = 1024


async def _closed(one: Node, other: Node) -> None:
    await other.endpoint.aclose()


async def _killed(one: Node, other: Node) -> None:
    await crash(other.endpoint)


async def _silent(one: Node, other: Node) -> None:
    Weather(one.endpoint, other.endpoint).cut()


async def _stopped(one: Node, other: Node) -> None:
    one.driver.stop_peering(other.peer_id)


async def _driver_closed(one: Node, other: Node) -> None:
    await other.driver.aclose()


@pytest.mark.parametrize("transport", ["quic", "udp", "tcp"])
@pytest.mark.parametrize("ending", [_closed, _killed, _silent, _stopped, _driver_closed])
async def test_06_a_lost_send_is_never_reported_as_success(
    ending: Callable[[Node, Node], Awaitable[None]], transport: str
) -> None:
    """Whatever ends it, each frame has arrived or comes back; who is told that it has not left does not have it."""
    config = Config(listen=LOOPBACK, transports=(transport,), resume_timeout=0.5, keepalive=0.5, idle_timeout=2.0)
    async with two(config) as (one, other):
        sent = [number.to_bytes(4) * (FRAME // 4) for number in range(1000)]
        got: list[bytes] = []

        async def take() -> None:
            got.extend([received.frame async for received in other.driver])

        taking = asyncio.create_task(take())
        for number, frame in enumerate(sent):
            await one.driver.send(frame, other.peer_id)
            if number % 100 == 99:
                await asyncio.sleep(0)
        await ending(one, other)
        await until(lambda: not one.driver.neighbours())
        await one.driver.aclose()
        lost = [lost async for lost in one.driver.undelivered()]
        await other.driver.aclose()
        await taking
        assert len(set(got)) == len(got)
        assert set(got) | {one.frame for one in lost} == set(sent)
        assert not set(got) & {one.frame for one in lost if not one.maybe_delivered}
        assert len({one.frame for one in lost}) == len(lost)


@asynccontextmanager
async def neighbour_process(transport: str) -> AsyncIterator[tuple[PeerId, Ticket, asyncio.subprocess.Process]]:
    """A neighbour in a process of its own."""
    program = str(Path(__file__).with_name("driver_node.py"))
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        program,
        LOOPBACK[0],
        transport,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    assert process.stdout is not None
    try:
        ticket = Ticket.parse((await process.stdout.readline()).decode().strip())
        yield ticket.peer_id, ticket, process
    finally:
        process.kill()
        await process.wait()


@pytest.mark.parametrize("transport", ["quic", "udp", "tcp"])
async def test_07_one_dead_peer_blocks_no_flood(transport: str) -> None:
    """A neighbour whose process is stopped: the 31 others get all, what waits for it is bounded, and comes back."""
    config = Config(listen=LOOPBACK, transports=(transport,))
    floods = 400
    async with AsyncExitStack() as stack:
        middle = await stack.enter_async_context(node(config, age_limit=3.0, queue_frames=256))
        others = [await stack.enter_async_context(node(config)) for _ in range(31)]
        stopped, ticket, process = await stack.enter_async_context(neighbour_process(transport))
        for other in others:
            await peer(middle, other)
        middle.driver.start_peering(ticket)
        await until(lambda: stopped in middle.driver.neighbours())
        os.kill(process.pid, signal.SIGSTOP)

        took = dict.fromkeys(others, 0)

        async def take(one: Node) -> None:
            for number in range(floods):
                [received] = await one.take(1)
                assert received.frame == number.to_bytes(4) * 1024
                took[one] = number + 1

        held = 0
        async with asyncio.TaskGroup() as group:
            for other in others:
                group.create_task(take(other))
            for number in range(floods):
                await middle.driver.send(number.to_bytes(4) * 1024, FLOOD)
                metrics = middle.driver.metrics(stopped)
                held = max(held, metrics.queued_size + metrics.unacknowledged_size)
                # The slowest of the living sets the pace, so that none of theirs comes back.
                await until(lambda number=number: min(took.values()) > number - 64)  # type: ignore[misc]
        assert held <= 4 * MiB
        await until(lambda: not (m := middle.driver.metrics(stopped)).queued_frames and not m.unacknowledged_size)
        lost = await middle.lost(len(middle.driver.undelivered()))
        assert {one.peer_id for one in lost} == {stopped}
        assert {one.reason for one in lost} <= {Reason.EXPIRED, Reason.QUEUE_FULL}
        assert any(one.reason is Reason.EXPIRED for one in lost)
        assert stopped in middle.driver.neighbours(), "it lingers, and may come back"
        os.kill(process.pid, signal.SIGCONT)
        await middle.driver.send(b"\xff\xff\xff\xff", stopped)
        assert process.stdout is not None
        arrived = [int.from_bytes(one.frame[:4]) for one in lost if not one.maybe_delivered]
        async for line in process.stdout:
            number = int(line.split(b",")[0].strip(b"["))
            assert number not in arrived
            if number == 0xFFFFFFFF:
                break
