"""A run of the lab in a process of its own, which is going to be killed; and all that is left of it then."""

import os
import subprocess
import sys
import tempfile
import uuid
from pathlib import Path
from types import TracebackType
from typing import Self

from lab.kernel import NAMESPACES, processes_inside, wait_until
from lab.leftovers import is_alive, state_and_start

TESTS = Path(__file__).parent.parent


class Victim:
    """A Python program that reads a line, writes `begun`, and then uses the lab. At the end of the block it is killed.

    Args:
        program: its source.
        arguments: for it.

    Attributes:
        process: the program.
    """

    def __init__(self, program: str, *arguments: str) -> None:
        # Inherited by all that it starts.
        self._mark = f"LAB_VICTIM={uuid.uuid4()}"
        name, _, value = self._mark.partition("=")
        self._inside: dict[int, int] = {}
        self.process = subprocess.Popen(
            [sys.executable, "-c", program, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"PYTHONPATH": str(TESTS), name: value},
        )

    def __enter__(self) -> Self:
        # Importing the lab takes much longer than what follows, and not always the same time.
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        self.await_line("begun")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.kill()

    @property
    def namespaces(self) -> list[str]:
        """The names of those that are there."""
        return [path.name for path in NAMESPACES.glob(f"overlay-lab-{self.process.pid}-*")]

    @property
    def directories(self) -> list[Path]:
        """Its temporary ones."""
        return list(Path(tempfile.gettempdir()).glob(f"overlay-lab-{self.process.pid}-*"))

    @property
    def processes(self) -> list[int]:
        """All that it has started, itself included, and what was in its namespaces when it was killed."""
        found = [pid for pid, started in self._inside.items() if is_alive(pid, started)]
        for path in Path("/proc").glob("[0-9]*/environ"):
            try:
                if f"{self._mark}\0".encode() in path.read_bytes():
                    found.append(int(path.parent.name))
            except (FileNotFoundError, ProcessLookupError, PermissionError):
                # It has ended, or it may do more than we: neither is one of the program's.
                continue
        return found

    def await_line(self, text: str) -> None:
        """Wait until it writes this, and nothing else; a test's time limit holds here."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line == f"{text}\n", line

    def kill(self) -> None:
        """Kill it, and nothing of what it has started."""
        for pid in processes_inside(self.namespaces):
            try:
                _, self._inside[pid] = state_and_start(pid)
            except (FileNotFoundError, ProcessLookupError):
                # It has ended meanwhile: nothing of it is left.
                continue
        with self.process:
            self.process.kill()

    def await_nothing_left(self) -> None:
        """Wait until namespaces, directories and processes are gone, as they are soon after a sweep.

        Raises:
            LabError: something stays.
        """
        wait_until(
            lambda: not (self.namespaces or self.directories or self.processes),
            f"what the killed run {self.process.pid} has left to be gone",
        )
