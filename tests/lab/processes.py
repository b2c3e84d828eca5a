"""Real processes inside hosts, with all that they say, and when."""

import os
import signal
import subprocess
import threading
import time
from collections import deque
from collections.abc import Mapping, Sequence
from typing import IO, NamedTuple

from lab.kernel import LabError, inside

LINES = 10_000
"""As many lines of a process are kept, the newest ones."""

LINE_LENGTH = 65_536
"""Characters; a longer line is cut into several."""

TAIL = 30
"""Lines of output that an error shows."""

SECONDS = 10.0
"""For a line, an end: far more than either takes."""

GRACE = 5.0
"""Seconds from SIGTERM to SIGKILL."""


class Output(NamedTuple):
    """A line that a process wrote.

    Attributes:
        time: when it came, on `time.monotonic`'s clock.
        stream: "out" or "err".
        text: without its newline.
    """

    time: float
    stream: str
    text: str


class Process:
    """A process inside a namespace. It does not outlive the thread that started it (PR_SET_PDEATHSIG of prctl(2)).

    Attributes:
        name: in errors and reports.
        started: when, on `time.monotonic`'s clock.
        pid: its number.
    """

    def __init__(
        self, command: Sequence[str], *, namespace: str, name: str, environment: Mapping[str, str] | None = None
    ) -> None:
        self.name = name
        self.started = time.monotonic()
        with inside(namespace):
            # setpriv(1) asks for the signal and becomes the command; a preexec_fn would not be safe with threads.
            self._process = subprocess.Popen(
                ["setpriv", "--pdeathsig", "KILL", "--", *command],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                encoding="utf-8",
                errors="replace",
                # A Python program would hold its lines back until a block is full.
                env=os.environ | {"PYTHONUNBUFFERED": "1"} | dict(environment or {}),
            )
        self.pid = self._process.pid
        self._changed = threading.Condition()
        self._output: deque[Output] = deque(maxlen=LINES)
        self._unread: deque[str] = deque(maxlen=LINES)
        self._open = {"out", "err"}
        assert self._process.stdout is not None and self._process.stderr is not None
        pipes = (("out", self._process.stdout), ("err", self._process.stderr))
        self._readers = [threading.Thread(target=self._read, args=pipe, daemon=True) for pipe in pipes]
        for reader in self._readers:
            reader.start()

    @property
    def output(self) -> list[Output]:
        """What it has written so far, both streams, in the order in which it came."""
        with self._changed:
            return list(self._output)

    @property
    def code(self) -> int | None:
        """How it ended, minus the signal's number if by a signal; None while it runs."""
        return self._process.poll()

    def line(self, containing: str = "", *, timeout: float = SECONDS) -> str:
        """The next line of its standard output that holds this text; those before it are skipped.

        Raises:
            LabError: none came in time, or its output has ended.
        """
        deadline = time.monotonic() + timeout
        with self._changed:
            while True:
                while self._unread:
                    line = self._unread.popleft()
                    if containing in line:
                        return line
                if "out" not in self._open:
                    raise self._error(f"ended its output before a line with {containing!r}")
                if time.monotonic() >= deadline:
                    raise self._error(f"wrote no line with {containing!r} in {timeout:g} s")
                self._changed.wait(deadline - time.monotonic())

    def wait(self, timeout: float = SECONDS) -> int:
        """Wait for its end, and for the end of its output.

        Returns:
            Its exit code, or minus the number of the signal that ended it.

        Raises:
            LabError: it still runs.
        """
        deadline = time.monotonic() + timeout
        try:
            code = self._process.wait(timeout)
        except subprocess.TimeoutExpired as error:
            raise self._error(f"still runs after {timeout:g} s") from error
        with self._changed:
            if not self._changed.wait_for(lambda: not self._open, max(deadline - time.monotonic(), GRACE)):
                raise self._error("has ended, and a child of its own still holds its output open")
        return code

    def send_signal(self, number: signal.Signals) -> None:
        """Send it a signal, if it still runs."""
        self._process.send_signal(number)

    def stop(self, grace: float = GRACE) -> int:
        """End it: SIGTERM, and after `grace` seconds SIGKILL.

        Returns:
            Its exit code, or minus the number of the signal that ended it.
        """
        self._process.terminate()
        try:
            return self._process.wait(grace)
        except subprocess.TimeoutExpired:
            self._process.kill()
            return self._process.wait(SECONDS)

    def close(self) -> None:
        """Forget its pipes, once it and all who inherited them have ended."""
        for reader in self._readers:
            reader.join(SECONDS)
            if reader.is_alive():
                raise self._error("has ended, and its output is still held open outside of the lab")
        for pipe in (self._process.stdout, self._process.stderr):
            if pipe is not None:
                pipe.close()

    def report(self) -> str:
        """Its state and the last lines of its output, each with the seconds since its start."""
        with self._changed:
            return self._report()

    def _report(self) -> str:
        state = "running" if self.code is None else f"ended with {self.code}"
        lines = [f"{line.time - self.started:8.3f} {line.stream} {line.text}" for line in list(self._output)[-TAIL:]]
        return "\n".join([f"{self.name} (pid {self.pid}, {state})", *lines])

    def _error(self, what: str) -> LabError:
        return LabError(f"{self.name} {what}\n{self._report()}")

    def _read(self, stream: str, pipe: IO[str]) -> None:
        while text := pipe.readline(LINE_LENGTH):
            line = Output(time.monotonic(), stream, text.removesuffix("\n"))
            with self._changed:
                self._output.append(line)
                if stream == "out":
                    self._unread.append(line.text)
                self._changed.notify_all()
        with self._changed:
            self._open.remove(stream)
            self._changed.notify_all()
