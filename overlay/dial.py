"""Racing addresses: runs a plan of `overlay.protocol.race`, keeps the first that works, and closes all others.

The first attempt that returns wins. One that fails makes room for the next at once; a refusal by the peer itself ends
the race, as it would be the same at its other addresses. What loses is cancelled and awaited, and what it had made is
handed to `discard`; so nothing is left behind, whoever wins, fails or cancels.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Final, Generic, TypeVar

from overlay.addresses import Address
from overlay.errors import Attempt, HandshakeError, OverlayError, SessionError, SessionRefused
from overlay.protocol.codes import CloseCode
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


logger = logging.getLogger("overlay")

Won = TypeVar("Won")

FINAL: Final = frozenset({CloseCode.REFUSED, CloseCode.DUPLICATE_IDENTITY, CloseCode.SESSION_GONE, CloseCode.RESTARTED})
"""What the peer itself says, and would say at each of its addresses."""


@dataclass(eq=False)
class Race(Generic[Won]):
    """One race.

    Attributes:
        starts: the plan.
        attempt: tries one address; raises OSError or OverlayError when it does not work. Anything else is a fault of
            ours: it is logged, and that attempt has failed.
        discard: closes what an attempt has made, when another one won.
        failures: what has failed so far.
        began: when `run` was called, by the loop's clock.
    """

    starts: Sequence[Start]
    attempt: Callable[[Try], Awaitable[Won]]
    discard: Callable[[Won], None]
    failures: list[Attempt] = field(default_factory=list)
    began: float = 0.0
    _running: "dict[asyncio.Task[Won], Try]" = field(default_factory=dict)
    _waiting: list[Start] = field(default_factory=list)
    _added: asyncio.Event = field(default_factory=asyncio.Event)

    def report(self, *, but: Try | None = None) -> list[Attempt]:
        """Everything that was tried: what failed, and what still runs as a time-out at its stage.

        Args:
            but: one that is left out, as it is about to win.
        """
        now = asyncio.get_running_loop().time()
        running = (one for one in self._running.values() if one is not but)
        return [*self.failures, *(one.failed(TimeoutError("no answer in time"), now) for one in running)]

    def add(self, starts: Sequence[Start]) -> None:
        """More addresses have become known: they join the race, their times counted from now."""
        now = asyncio.get_running_loop().time() - self.began
        later = [replace(start, at=start.at + now) for start in starts]
        self._waiting = sorted([*self._waiting, *later], key=lambda start: start.at)
        self._added.set()

    async def run(self) -> Won | None:
        """The first attempt's result that works; None when all have failed or the peer refuses, see `failures`.

        Cancellation closes everything; what was still under way then stands in `failures` as a time-out.
        """
        self.began = asyncio.get_running_loop().time()
        self._waiting = list(self.starts)
        try:
            return await self._first()
        except asyncio.CancelledError:
            self.failures = self.report()
            raise
        finally:
            await self._stop()

    async def _first(self) -> Won | None:
        hurry = False
        while self._waiting or self._running:
            self._start_due(hurry=hurry)
            hurry = False
            added = asyncio.ensure_future(self._added.wait())
            try:
                done, _ = await asyncio.wait(
                    [added, *self._running], timeout=self._until_next(), return_when=asyncio.FIRST_COMPLETED
                )
            finally:
                added.cancel()
                self._added.clear()
            for task in [task for task in self._running if task in done]:
                one = self._running.pop(task)
                cause = task.exception()
                if cause is None:
                    return task.result()
                hurry = True
                self._record(cause, one)
                if isinstance(cause, SessionRefused) and cause.code in FINAL:
                    return None
        return None

    def _start_due(self, *, hurry: bool) -> None:
        """Start what is due, and with `hurry` the next one in any case."""
        now = asyncio.get_running_loop().time()
        while self._waiting and (hurry or not self._running or self.began + self._waiting[0].at <= now):
            hurry = False
            start = self._waiting.pop(0)
            one = Try(Address(start.transport, start.host, start.port), now)
            self._running[asyncio.ensure_future(self.attempt(one))] = one

    def _until_next(self) -> float | None:
        if not self._waiting:
            return None
        return max(0.0, self.began + self._waiting[0].at - asyncio.get_running_loop().time())

    def _record(self, cause: BaseException, one: Try) -> None:
        if not isinstance(cause, OSError | OverlayError):
            logger.error("dialling %s failed by a fault of ours: please report this", one.address, exc_info=cause)
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
