"""A thousand sessions from another process come and go, twice: nothing of theirs is left, and nothing grows."""

import asyncio
import gc
import os
import sys
import tracemalloc
from pathlib import Path

import psutil
import pytest

from overlay import Config, Endpoint, Identity, Limits
from overlay.identity import _check_point
from overlay.testing import LOOPBACK, echo, ticket, until

COUNT = 1000
DIALLER = Path(__file__).with_name("thousand_dialler.py")


def timers(loop: asyncio.AbstractEventLoop) -> int:
    """Those of the library; `until` has its own."""
    live = (timer for timer in loop._scheduled if not timer.cancelled())  # type: ignore[attr-defined]
    return sum(timer._callback.__module__.startswith("overlay.") for timer in live)


def tables(endpoint: Endpoint) -> dict[str, int]:
    found = {"peers": len(endpoint._peers), "tasks": len(endpoint._tasks), "gate": endpoint._gate.pending}
    found |= {"chosen": endpoint.chosen.used, "strangers": endpoint._strangers.used}
    for name, transport in endpoint._transports.items():
        for attribute, value in vars(transport).items():
            if isinstance(value, dict | set | list):
                found[f"{name}.{attribute}"] = len(value)
    return found


@pytest.mark.timeout(120)
async def test_a_thousand_sessions_leave_nothing_and_the_next_thousand_need_no_more() -> None:
    loop = asyncio.get_running_loop()
    process = psutil.Process()
    # What is remembered on purpose, the addresses of peers that are gone, is bounded: reach the bound in each round.
    limits = Limits(known_peers=64)
    config = Config(listen=LOOPBACK, limits=limits)
    async with Endpoint(Identity.generate(), config) as endpoint:
        endpoint.handle("echo/1", echo)
        where = str(ticket(endpoint))

        async def come_and_go(count: int) -> int:
            """Traced memory while all are there."""
            child = await asyncio.create_subprocess_exec(
                sys.executable, DIALLER, where, str(count), "quic,tcp",
                stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
                env={**os.environ, "PYTHONPATH": str(DIALLER.parent.parent)},
            )  # fmt: skip
            assert child.stdout is not None
            try:
                assert await child.stdout.readline() == b"open\n"
                assert len(endpoint.sessions) == count
                gc.collect()
                held = tracemalloc.get_traced_memory()[0]
            finally:
                await child.communicate(b"\n")
            assert child.returncode == 0
            await until(lambda: not endpoint._peers and not endpoint._tasks)
            return held

        def left() -> tuple[int, int, int, dict[str, int]]:
            return len(asyncio.all_tasks()), timers(loop), process.num_fds(), tables(endpoint)

        def traced() -> int:
            """Bytes, less those of the keys that were checked: that cache has a bound of its own, far above these."""
            _check_point.cache_clear()
            gc.collect()
            return tracemalloc.get_traced_memory()[0]

        # The watch on the network, and the book's.
        steady = timers(loop)
        tracemalloc.start()
        try:
            await come_and_go(20)
            await until(lambda: timers(loop) == steady)
            before = left()
            first = await come_and_go(COUNT)
            await until(lambda: left() == before)
            # Tables do not shrink; so what one thousand has left is compared with what the next one has.
            at_rest = traced()
            assert at_rest < first / 10
            second = await come_and_go(COUNT)
            assert second <= 1.1 * first
            await until(lambda: left() == before)
            # A table that has grown once more costs 40 KB; an object left by each session costs more than that.
            assert traced() <= at_rest + 100 * COUNT
        finally:
            tracemalloc.stop()
