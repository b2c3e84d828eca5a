"""The processes of a measurement, and how they are told what to do."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Final

HERE: Final = Path(__file__).parent


class Worker:
    """A process that measures; see `worker.py`."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self._process = process
        self._name = " ".join(map(str, process.args[1:4])) if isinstance(process.args, list) else ""

    def ask(self, **command: Any) -> Any:
        """Let it carry out a command; what it answers.

        Raises:
            RuntimeError: it has ended, and said why on the standard error.
        """
        if self._process.stdin is None:
            raise RuntimeError("a worker is told what to do through a pipe")
        self._process.stdin.write(json.dumps(command) + "\n")
        self._process.stdin.flush()
        return self.answer()

    def answer(self) -> Any:
        """What it says next."""
        line = "" if self._process.stdout is None else self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"{self._name} has failed")
        return json.loads(line)


@contextmanager
def process(*arguments: str) -> Iterator[Worker]:
    """Run one of our scripts; it ends with its standard input, or is made to."""
    root = str(HERE.parent)
    known = os.environ.get("PYTHONPATH")
    environment = os.environ | {"PYTHONPATH": f"{root}{os.pathsep}{known}" if known else root}
    command = [sys.executable, str(HERE / arguments[0]), *arguments[1:]]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    ) as running:
        try:
            yield Worker(running)
            if running.stdin is not None:
                running.stdin.close()
            running.wait(30)
        finally:
            running.kill()


class Pair:
    """A server's and a dialler's process of one subject."""

    def __init__(self, resources: ExitStack, name: str, keys: Path, loop: str) -> None:
        self.name = name
        self.server = resources.enter_context(process("worker.py", "serve", name, str(keys), loop))
        self.dialler = resources.enter_context(process("worker.py", "dial", name, str(keys), loop))
        self.address: str = self.server.answer()

    def measure(self, do: str, **options: Any) -> float:
        """Let the dialler measure something."""
        return float(self.dialler.ask(do=do, **({"address": self.address} | options)))
