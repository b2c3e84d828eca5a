"""Racing addresses: runs a plan of `overlay.protocol.race`, keeps the first that works, and closes all others.

The first attempt that returns wins. One that fails makes room for the next at once. What loses is cancelled and
awaited, and what it had made is handed to `discard`; so nothing is left behind, whoever wins, fails or cancels.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from overlay.addresses import Address
from overlay.errors import Attempt, HandshakeError, SessionError
from overlay.protocol.race import Start


@dataclass(eq=False, slots=True)
class Try:
    """One attempt while it runs; the attempt itself keeps `stage` up to date."""

    address: Address
    started: float
    stage: str = "connect"

    def failed(self, cause: BaseException, now: float) -> Attempt:
        """The record of its failure."""
        stage = self.stage
        if isinstance(cause, HandshakeError):
            stage = "handshake"
        elif isinstance(cause, SessionError):
            stage = "hello"
        return Attempt(str(self.address), stage, cause, 1000 * (now - self.started))


Won = TypeVar("Won")


@dataclass(eq=False)
class Race(Generic[Won]):
    """One race.

    Attributes:
        starts: the plan.
        attempt: tries one address; raises OSError, HandshakeError or SessionError when it does not work.
        discard: closes what an attempt has made, when another one won.
        failures: what has failed so far.
    """

    starts: Sequence[Start]
    attempt: Callable[[Try], Awaitable[Won]]
    discard: Callable[[Won], None]
    failures: list[Attempt] = field(default_factory=list)
    _running: "dict[asyncio.Task[Won], Try]" = field(default_factory=dict)

    def report(self) -> list[Attempt]:
        """Everything that was tried: what failed, and what still runs as a time-out at its stage."""
        now = asyncio.get_running_loop().time()
        pending = [one.failed(TimeoutError("no answer in time"), now) for one in self._running.values()]
        return [*self.failures, *pending]

    async def run(self) -> Won | None:
        """The first attempt's result that works; None when all have failed, see `failures`.

        Cancellation closes everything.
        """
        loop = asyncio.get_running_loop()
        began = loop.time()
        waiting = list(self.starts)
        hurry = False
        try:
            while waiting or self._running:
                while waiting and (hurry or not self._running or began + waiting[0].at <= loop.time()):
                    hurry = False
                    start = waiting.pop(0)
                    one = Try(Address(start.transport, start.host, start.port), loop.time())
                    self._running[asyncio.ensure_future(self.attempt(one))] = one
                timeout = max(0.0, began + waiting[0].at - loop.time()) if waiting else None
                done, _ = await asyncio.wait(self._running, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
                for task in [task for task in self._running if task in done]:
                    one = self._running.pop(task)
                    if task.exception() is None:
                        self._lose(done - {task})
                        return task.result()
                    hurry = True
                    self._record(task, one)
            return None
        finally:
            await self._stop()

    def _record(self, task: "asyncio.Task[Won]", one: Try) -> None:
        cause = task.exception()
        if not isinstance(cause, OSError | HandshakeError | SessionError):
            # A fault of ours is not a failure of the network.
            task.result()
        assert cause is not None  # noqa: S101 - the caller has looked
        self.failures.append(one.failed(cause, asyncio.get_running_loop().time()))

    def _lose(self, tasks: "set[asyncio.Task[Won]]") -> None:
        for task in tasks:
            self._running.pop(task, None)
            if not task.cancelled() and task.exception() is None:
                self.discard(task.result())

    async def _stop(self) -> None:
        tasks = set(self._running)
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
            self._lose(tasks)
