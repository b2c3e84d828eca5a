"""The processes of one subject: a sender and its receivers, told what to do and asked what came of it."""

import os
import signal
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from frames_workloads import LOAD, Report
from processes import Worker, process


@dataclass(frozen=True, slots=True)
class Measured:
    """What the receivers have got, each by itself."""

    rates: list[float]
    """Frames per second."""
    lost: float
    """Of all frames, in percent."""
    median: float
    tail: float
    """Microseconds; of the worst receiver."""
    samples: int
    """Frames that these two are of; of the receiver that got fewest."""
    load: float
    """Megabytes per second beside it."""


class Group:
    """A sender's process and its receivers' of one subject.

    Args:
        resources: end the processes.
        name: of the subject.
        keys: folder with the rivals' key.
        loop: `asyncio` or `uvloop`.
        receivers: how many in each of their processes.
    """

    def __init__(self, resources: ExitStack, name: str, keys: Path, loop: str, receivers: Sequence[int] = (1,)) -> None:
        def start(*number: str) -> Worker:
            return resources.enter_context(process("frames_worker.py", name, str(keys), loop, *number))

        self.name = name
        with _uninterrupted():
            self._receivers = [start(str(number)) for number in receivers]
            self._sender = start()
        told = [worker.answer() for worker in self._receivers]
        self._pids = [one["pid"] for one in told]
        self._sender.ask(do="connect", addresses=[address for one in told for address in one["addresses"]])
        self._run = LOAD

    def measure(
        self, do: str, *, count: int, size: int, may_lose: bool = False, without_last: bool = False, **options: Any
    ) -> Measured:
        """Let it send frames.

        Args:
            do: the workload.
            count: of the frames.
            size: of each.
            may_lose: they need not all arrive.
            without_last: those in the last of the receivers' processes don't count, or can't.
            options: of the workload.
        """
        self._run += 1
        receivers = self._receivers[:-1] if without_last else self._receivers
        for worker in receivers:
            worker.ask(do="expect", run=self._run, count=count, size=size)
        sent = self._sender.ask(do=do, run=self._run, count=count, size=size, **options)
        reports: list[Report] = [one for worker in receivers for one in worker.ask(do="report", may_lose=may_lose)]
        return Measured(
            rates=[one["received"] / (one["last"] - sent["began"]) for one in reports],
            lost=100 * (1 - sum(one["received"] for one in reports) / count / len(reports)),
            median=max(one["median"] for one in reports),
            tail=max(one["tail"] for one in reports),
            samples=min(one["received"] for one in reports),
            load=sent.get("load", 0.0),
        )

    def ask_sender(self, do: str) -> Any:
        """Something that nobody receives."""
        return self._sender.ask(do=do)

    @contextmanager
    def last_stopped(self) -> Iterator[None]:
        """The last of the receivers' processes does nothing meanwhile."""
        os.kill(self._pids[-1], signal.SIGSTOP)
        try:
            yield
        finally:
            os.kill(self._pids[-1], signal.SIGCONT)


@contextmanager
def _uninterrupted() -> Iterator[None]:
    """Start processes that Ctrl-C does not reach: it goes to all of a terminal's, and ours ends them.

    A mask is inherited (POSIX, exec), and here, unlike a handler, it only puts off what comes meanwhile.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
