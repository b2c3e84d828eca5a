"""One process that sends or takes frames, told what to do by lines of JSON on its standard input; ends with it.

Usage: python frames_worker.py SUBJECT KEYS asyncio|uvloop [NUMBER]

With a number it is so many receivers, and says their addresses first; without, it is a sender.
"""

import gc
import os
import sys
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import frames_workloads as workloads
import psutil
from commandline import run
from frames_subjects import OverlaySender, Subject, subject
from worker import Command, answer, commands


class Receiving:
    """The process of the receivers: each of its commands concerns all of them."""

    def __init__(self, collectors: list[workloads.Collector]) -> None:
        self._collectors = collectors

    async def carry_out(self, command: Command) -> Any:
        """`expect` frames, or `report` what has arrived."""
        if command.pop("do") == "expect":
            for collector in self._collectors:
                collector.expect(**command)
            return None
        return [await collector.report(**command) for collector in self._collectors]


class Sending:
    """The process of the sender: each method is one command."""

    def __init__(self, measured: Subject, resources: AsyncExitStack) -> None:
        self._subject = measured
        self._resources = resources
        self._sender: workloads.Sender

    async def carry_out(self, command: Command) -> Any:
        """Find the command, and pass what it needs."""
        return await getattr(self, command.pop("do"))(**command)

    async def connect(self, addresses: list[str]) -> None:
        """Have these as the neighbours."""
        self._sender = await self._resources.enter_async_context(self._subject.sender(addresses))

    async def saturate(self, **options: Any) -> workloads.Report:
        """As many as the link takes."""
        return await workloads.saturate(self._sender, **options)

    async def probe(self, **options: Any) -> workloads.Report:
        """Single frames."""
        return await workloads.probe(self._sender, **options)

    async def flood(self, age_limit: float | None = None, **options: Any) -> workloads.Report:
        """To all neighbours; ours can be given an age limit in seconds."""
        if isinstance(self._sender, OverlaySender):
            self._sender.age_limit = age_limit
        return await workloads.flood(self._sender, **options)

    async def beside(self, load: str, **options: Any) -> workloads.Report:
        """A router's own frames, while the link carries that load."""
        return await workloads.beside(self._sender, load=self._ours.load(load), **options)

    async def settle(self) -> workloads.Report:
        """What has come back."""
        return await self._ours.settle()

    async def memory(self) -> int:
        """Resident bytes of this process."""
        gc.collect()
        return int(psutil.Process().memory_info().rss)

    @property
    def _ours(self) -> OverlaySender:
        if not isinstance(self._sender, OverlaySender):
            raise TypeError("only our sender has this")
        return self._sender


async def receive(measured: Subject, number: int) -> None:
    collectors = [workloads.Collector() for _ in range(number)]
    async with AsyncExitStack() as resources:
        addresses = [await resources.enter_async_context(measured.receiver(one.take)) for one in collectors]
        answer({"addresses": addresses, "pid": os.getpid()})
        await commands(Receiving(collectors).carry_out)


async def send(measured: Subject) -> None:
    async with AsyncExitStack() as resources:
        await commands(Sending(measured, resources).carry_out)


def main(name: str, keys: str, loop: str, number: str = "0") -> None:
    measured = subject(name, Path(keys))
    run(receive(measured, int(number)) if int(number) else send(measured), loop)


if __name__ == "__main__":
    main(*sys.argv[1:])
