"""What `send` reads from: files, pipes and standard input."""

import asyncio
import os
import queue
import stat
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

from overlay.cli.output import UsageError
from overlay.cli.transfer import Header, Refused, TransferError, check_name

STANDARD_INPUT: Final = "-"
DEFAULT_NAME: Final = "stdin"


class Source(Protocol):
    """Bytes to send."""

    size: int | None
    """In bytes; None when only the end tells."""

    async def read(self, size: int) -> bytes:
        """Up to `size` bytes, at least one; b"" at the end. A cancelled read may lose bytes."""


@dataclass(frozen=True, slots=True)
class Item:
    """One FILE of the command line, looked at but not yet opened.

    Raises:
        UsageError: there is no such file, or its name cannot be sent.
    """

    path: str
    """As given; `-` is standard input."""
    name: str
    """What the receiver is to call it."""

    def __post_init__(self) -> None:
        """Find mistakes before a connection is made."""
        try:
            check_name(self.name)
        except Refused as error:
            raise UsageError(
                f"{self.path}: cannot be sent under this name: {error}; give another with --name"
            ) from error
        if self.path == STANDARD_INPUT:
            return
        try:
            status = Path(self.path).stat()
        except OSError as error:
            raise UsageError(f"{self.path}: {error.strerror}") from error
        if stat.S_ISDIR(status.st_mode):
            raise UsageError(f"{self.path}: is a directory; send an archive, as in: tar c DIR | overlay send - TICKET")
        if not os.access(self.path, os.R_OK):
            raise UsageError(f"{self.path}: no permission to read it")

    @contextmanager
    def open(self) -> Iterator[Source]:
        """Open it for reading.

        Raises:
            OSError: it cannot be opened (any more).
        """
        if self.path == STANDARD_INPUT:
            descriptor = sys.stdin.fileno()
            if stat.S_ISREG(os.fstat(descriptor).st_mode):
                yield FileSource(descriptor, self.path)
            else:
                yield PipeSource(lambda: descriptor)
        elif stat.S_ISREG(Path(self.path).stat().st_mode):
            with Path(self.path).open("rb", buffering=0) as file:
                yield FileSource(file.fileno(), self.path)
        else:
            yield PipeSource(lambda: os.open(self.path, os.O_RDONLY | os.O_CLOEXEC))

    def header(self, source: Source) -> Header:
        """What the receiver is told first."""
        return Header(self.name, source.size)


def items(paths: list[str], name: str | None) -> list[Item]:
    """Look at the files of the command line.

    Raises:
        UsageError: one of them cannot be sent.
    """
    if name is not None and len(paths) != 1:
        raise UsageError("--name goes with one FILE only")
    found = [Item(path, name or (DEFAULT_NAME if path == STANDARD_INPUT else Path(path).name)) for path in paths]
    names = [item.name for item in found]
    for one in names:
        if names.count(one) > 1:
            raise UsageError(f"two files would be called {one!r} at the receiver; send them one after the other")
    return found


class FileSource:
    """A regular file of known size. Reads block as long as the disk does, which read-ahead makes rare."""

    def __init__(self, descriptor: int, path: str) -> None:
        # Standard input may have been read from already.
        size = max(0, os.fstat(descriptor).st_size - os.lseek(descriptor, 0, os.SEEK_CUR))
        self.size: int | None = size
        self._descriptor = descriptor
        self._path = path
        self._remaining = size

    async def read(self, size: int) -> bytes:
        """See `Source`. What is appended meanwhile is left out.

        Raises:
            TransferError: the file has become shorter.
        """
        data = os.read(self._descriptor, min(size, self._remaining))
        if self._remaining and not data:
            raise TransferError(f"{self._path} became shorter while it was sent")
        self._remaining -= len(data)
        return data


class PipeSource:
    """A pipe, a terminal, a device.

    A daemon thread reads: asyncio's own way would set the descriptor non-blocking, and with it the terminal that others
    share, and a thread of its pool that waits for input could not be left behind at Ctrl-C.

    Args:
        opener: gives the descriptor. It is called in the thread, as the open of a FIFO waits for its writer. What it
            opens is closed with the process.
    """

    def __init__(self, opener: Callable[[], int]) -> None:
        self.size: int | None = None
        self._opener = opener
        self._loop = asyncio.get_running_loop()
        self._wanted: queue.SimpleQueue[tuple[int, asyncio.Future[bytes]]] = queue.SimpleQueue()
        threading.Thread(target=self._run, name="overlay-input", daemon=True).start()

    async def read(self, size: int) -> bytes:
        """See `Source`."""
        answer: asyncio.Future[bytes] = self._loop.create_future()
        self._wanted.put((size, answer))
        return await answer

    def _run(self) -> None:
        descriptor = None
        while True:
            size, answer = self._wanted.get()
            try:
                if descriptor is None:
                    descriptor = self._opener()
                data: bytes | OSError = os.read(descriptor, size)
            except OSError as error:
                data = error
            # The loop is closed when the command was interrupted while we waited for input.
            with suppress(RuntimeError):
                self._loop.call_soon_threadsafe(_settle, answer, data)
            if not data or isinstance(data, OSError):
                return


def _settle(answer: "asyncio.Future[bytes]", data: bytes | OSError) -> None:
    if answer.done():
        return
    if isinstance(data, OSError):
        answer.set_exception(data)
    else:
        answer.set_result(data)
