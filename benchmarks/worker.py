"""One process of a measurement, told what to do by lines of JSON on its standard input; ends with it.

Usage: python worker.py serve|dial SUBJECT KEYS asyncio|uvloop
"""

import asyncio
import gc
import json
import resource
import sys
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, Final

import psutil
import workloads
from commandline import run
from subjects import subject
from workloads import Dialler, Subject

from overlay.transports.packet_driver import PacketDriver

DIALS_AT_ONCE: Final = 16
"""Below the limit on handshakes from one address."""

Command = dict[str, Any]


async def commands(carry_out: Callable[[Command], Awaitable[Any]]) -> None:
    """Carry out what comes on the standard input, one after the other; answer each with a line."""
    loop = asyncio.get_running_loop()
    while line := await loop.run_in_executor(None, sys.stdin.readline):
        answer(await carry_out(json.loads(line)))


def answer(value: Any) -> None:
    """Say something to the process that measures."""
    print(json.dumps(value), flush=True)


async def serve(measured: Subject) -> None:
    """The server's process."""

    async def carry_out(command: Command) -> int:
        gc.collect()
        if command["do"] == "connections":
            return sum(issubclass(type(one), PacketDriver) and not one.is_forgotten for one in gc.get_objects())
        return int(psutil.Process().memory_info().rss)

    async with measured.serve(workloads.serve) as address:
        answer(address)
        await commands(carry_out)


class Dialling:
    """The dialler's process: each method is one measurement, and returns its figure."""

    def __init__(self, measured: Subject) -> None:
        self._subject = measured
        self._idle = AsyncExitStack()
        self._sessions: list[Dialler] = []

    async def carry_out(self, command: Command) -> float | int:
        """Find the measurement, and pass what it needs."""
        name = command.pop("do")
        result: float | int = await getattr(self, name)(**command)
        return result

    async def connect(self, address: str, count: int) -> float:
        """Median time to connect, each time as a new node."""
        samples = []
        for _ in range(count):
            async with self._subject.dialler(address) as dialler:
                samples.append(await workloads.connect(dialler))
        return sorted(samples)[count // 2]

    async def first_echo(self, address: str, *, early: bool) -> float:
        """Time to the first answer."""
        async with self._subject.dialler(address) as dialler:
            return await workloads.first_echo(dialler, early=early)

    async def echo(self, address: str, count: int) -> float:
        """Round trip of a short message."""
        return await self._channel(workloads.echo, address, count)

    async def goodput(self, address: str, count: int) -> float:
        """Rate of one stream."""
        return await self._channel(workloads.goodput, address, count)

    async def messages(self, address: str, count: int) -> float:
        """Rate of short messages."""
        return await self._channel(workloads.messages, address, count)

    async def hold(self, address: str, count: int) -> int:
        """Make idle sessions, each from a node of its own, and keep them."""
        turns = asyncio.Semaphore(DIALS_AT_ONCE)

        async def dial() -> None:
            async with turns:
                dialler = await self._idle.enter_async_context(self._subject.dialler(address))
                await dialler.connect()
                self._sessions.append(dialler)

        async with asyncio.TaskGroup() as group:
            for _ in range(count):
                group.create_task(dial())
        return len(self._sessions)

    async def release(self) -> int:
        """Show that each idle session works, then end them all."""
        for dialler in self._sessions:
            await workloads.echo(await dialler.open(), 1)
        count = len(self._sessions)
        self._sessions.clear()
        await self._idle.aclose()
        return count

    async def _channel(
        self, workload: Callable[[workloads.Channel, int], Awaitable[float]], address: str, count: int
    ) -> float:
        async with self._subject.dialler(address) as dialler:
            await dialler.connect()
            return await workload(await dialler.open(), count)


def main(role: str, name: str, keys: str, loop: str) -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    measured = subject(name, Path(keys))
    run(serve(measured) if role == "serve" else commands(Dialling(measured).carry_out), loop)


if __name__ == "__main__":
    main(*sys.argv[1:])
