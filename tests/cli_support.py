"""The command line as users run it: real processes, real sockets on loopback."""

import asyncio
import json
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from overlay import Config, Endpoint, Identity, Session, Stream
from overlay.cli.transfer import PROTOCOL, Header

LISTEN = ("--listen", "127.0.0.1:0")
SECONDS = 40
"""For any one process: far more than it needs, less than a test's limit."""


class Result(NamedTuple):
    """How a process ended."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)

    @property
    def lines(self) -> list[Any]:
        return [json.loads(line) for line in self.out.splitlines()]


def start(*arguments: object, **options: Any) -> "subprocess.Popen[str]":
    pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    command = [sys.executable, "-m", "overlay.cli", *map(str, arguments)]
    return subprocess.Popen(command, **(pipes | options))


def finish(process: "subprocess.Popen[str]", number: signal.Signals | None = None) -> Result:
    """Wait for its end, after a signal if one is given."""
    if number is not None:
        process.send_signal(number)
    out, err = process.communicate(timeout=SECONDS)
    err = err or ""
    assert "Traceback" not in err, err
    return Result(process.returncode, out, err)


def overlay(*arguments: object, **options: Any) -> Result:
    with start(*arguments, **options) as process:
        return finish(process)


def send(*arguments: object, **options: Any) -> Result:
    return overlay("send", *LISTEN, *arguments, **options)


def names_in(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


class Receiver:
    """An `overlay receive --json` process."""

    def __init__(self, directory: Path, *arguments: object) -> None:
        self.directory = directory
        directory.mkdir(exist_ok=True)
        key = directory.with_suffix(".pem")
        self.process = start("receive", directory, "--json", "--identity", key, *LISTEN, *arguments)
        ready = self.event()
        assert ready["event"] == "ready", ready
        self.ticket: str = ready["ticket"]

    def event(self) -> Any:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, self.process.communicate(timeout=SECONDS)
        return json.loads(line)

    @property
    def names(self) -> list[str]:
        """All that is in the directory, temporary files included."""
        return names_in(self.directory)

    def stop(self, number: signal.Signals = signal.SIGINT) -> Result:
        return finish(self.process, number)


@contextmanager
def receiving(directory: Path, *arguments: object) -> Iterator[Receiver]:
    receiver = Receiver(directory, *arguments)
    try:
        yield receiver
    finally:
        with receiver.process as process:
            process.kill()


@asynccontextmanager
async def session_with(ticket: str) -> AsyncIterator[Session]:
    """A session of this process with a receiver, for what the command line would never send."""
    config = Config(listen=("127.0.0.1:0",), transports=("tcp",))
    async with Endpoint(Identity.generate(), config) as endpoint, endpoint.connect(ticket) as session:
        yield session


async def open_file(session: Session, name: str, size: int | None = None) -> Stream:
    stream = await session.open_stream(PROTOCOL)
    await stream.write(Header(name, size).encode())
    return stream


async def next_event(receiver: Receiver) -> Any:
    return await asyncio.to_thread(receiver.event)
