"""The address book between runs: read at start, written behind the learning. All disk work is in a thread of its own.

What is saved is on the disk at most a second and two transactions later, whatever kills the process then. A disk that
is full or read-only costs what it does not take, and nothing else: changes wait, the newest state of each row only, and
the disk is tried again every ten seconds.
"""

import asyncio
import logging
import os
import sqlite3
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Final, Self, TypeVar

from overlay.book_file import MOST_ROWS, BookFile
from overlay.book_rows import Changes, Contents, PeerRow, Row
from overlay.errors import StoreError
from overlay.protocol.evidence import Place

__all__ = ["BookStore", "Contents", "PeerRow", "Row"]

logger = logging.getLogger("overlay")

FLUSH_AFTER: Final = 1.0
"""Seconds from the first unsaved change to its transaction: all that a crash can cost."""
RETRY_AFTER: Final = 10.0
"""Seconds until a disk that did not let us is tried again."""
CLOSE_TIMEOUT: Final = 10.0
"""Seconds for the last transaction; a disk that hangs does not keep an endpoint from closing."""

_T = TypeVar("_T")


class BookStore:
    """The file of an address book, open for one endpoint. Made by `BookStore.open`; an async context manager."""

    def __init__(
        self, path: str | os.PathLike[str], *, flush_after: float, retry_after: float, most_changes: int
    ) -> None:
        self._flush_after = flush_after
        self._retry_after = retry_after
        self._most_changes = most_changes
        self._saved = asyncio.Event()
        self._changes = Changes(most_changes)
        self._writer = _Writer(path, most_changes)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="overlay book")
        self._task: asyncio.Task[None] | None = None
        self._closed = False

    @classmethod
    async def open(
        cls,
        path: str | os.PathLike[str],
        *,
        flush_after: float = FLUSH_AFTER,
        retry_after: float = RETRY_AFTER,
        most_changes: int = MOST_ROWS,
    ) -> Self:
        """Take the file for this endpoint; if there is none, or no usable one, a fresh one.

        What cannot be used is set aside under another name, with a warning. A disk that does not let us is a warning
        too. Cancellation: safe, the file is free again.

        Args:
            path: the file. Missing directories are made.
            flush_after: seconds until changes are written.
            retry_after: seconds until a disk that did not let us is tried again.
            most_changes: so many wait for such a disk; beyond that the oldest are lost. By default as many as a full
                book has rows.

        Raises:
            StoreError: another endpoint uses the file, or it is a directory.
        """
        store = cls(path, flush_after=flush_after, retry_after=retry_after, most_changes=most_changes)
        try:
            await asyncio.shield(store._in_thread(store._writer.open))
        except BaseException:
            store._in_thread(store._writer.file.close)
            store._thread.shutdown(wait=False)
            raise
        store._task = asyncio.create_task(store._write_behind(), name="overlay book")
        return store

    async def load(self) -> Contents:
        """Read all that the file holds; nothing if the disk does not let us. Cancellation: safe."""
        return await asyncio.shield(self._in_thread(self._writer.read))

    def save(
        self,
        rows: Iterable[Row] = (),
        removed: Iterable[tuple[bytes, Place | None]] = (),
        peers: Iterable[PeerRow] = (),
    ) -> None:
        """Have changes written soon. Returns at once.

        Args:
            rows: places with new evidence.
            removed: places that are forgotten; with None as the place, all of that peer is, its own row too unless
                it is kept or blocked. They are deleted before what else this call brings is written.
            peers: what is new about peers; a row with nothing but its key is deleted.

        Raises:
            StoreError: the store is closed.
        """
        if self._closed:
            raise StoreError(f"the address book {self._writer.file.path} is closed")
        for key, place in removed:
            if place is None:
                self._changes.forget(key)
            else:
                self._changes.put(key, place, None)
        for row in rows:
            self._changes.put(row.key, row.place, row)
        for peer in peers:
            self._changes.put_peer(peer)
        if self._changes:
            self._saved.set()

    async def flush(self) -> bool:
        """Write all that was saved until now. Cancellation: it is written nevertheless.

        Returns:
            Whether the disk has it all.

        Raises:
            StoreError: the store is closed.
        """
        if self._closed:
            raise StoreError(f"the address book {self._writer.file.path} is closed")
        return await asyncio.shield(self._write())

    async def aclose(self) -> None:
        """Write what is left and free the file; does nothing the second time.

        Cancellation: it happens nevertheless, in the thread, which the interpreter awaits before it ends.
        """
        if self._closed:
            return
        self._closed = True
        last = self._in_thread(self._writer.close, self._take())
        self._thread.shutdown(wait=False)
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
        try:
            async with asyncio.timeout(CLOSE_TIMEOUT):
                await asyncio.shield(last)
        except TimeoutError:
            logger.warning("the disk of the address book %s hangs: its end is not awaited", self._writer.file.path)
        if self._task is not None and not self._task.cancelled():
            # It ends by itself only with a fault of ours.
            self._task.result()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.aclose()

    async def _write_behind(self) -> None:
        delay = self._flush_after
        while True:
            await self._saved.wait()
            await asyncio.sleep(delay)
            delay = self._flush_after if await asyncio.shield(self._write()) else self._retry_after

    def _write(self) -> "asyncio.Future[bool]":
        job = self._in_thread(self._writer.write, self._take())
        job.add_done_callback(self._written)
        return job

    def _written(self, job: "asyncio.Future[bool]") -> None:
        """What the disk did not take is tried again, whether or not anybody still awaits this attempt."""
        if job.cancelled() or job.exception() is not None or not job.result():
            self._saved.set()

    def _take(self) -> Changes:
        """All that waits. From here on the thread has it, and cancelling who awaits it loses nothing."""
        changes, self._changes = self._changes, Changes(self._most_changes)
        self._saved.clear()
        return changes

    def _in_thread(self, work: Callable[..., _T], *arguments: Changes) -> "asyncio.Future[_T]":
        job: Future[_T] = self._thread.submit(work, *arguments)
        return asyncio.wrap_future(job)


class _Writer:
    """What the thread has: the file, and what the disk did not take yet."""

    def __init__(self, path: str | os.PathLike[str], most_changes: int) -> None:
        self.file = BookFile(path)
        self._most_changes = most_changes
        self._left = Changes(most_changes)
        self._warned = False

    def open(self) -> None:
        try:
            self.file.open()
        except (sqlite3.Error, OSError) as error:
            self._warn(error)

    def read(self) -> Contents:
        try:
            return self.file.read()
        except (sqlite3.Error, OSError) as error:
            self._warn(error)
            return Contents([], [])

    def write(self, changes: Changes) -> bool:
        """Whether the disk has all that was ever given."""
        self._left.add(changes)
        if not self._left:
            return True
        try:
            if not self.file.is_open:
                self.file.open()
            self.file.write(self._left)
        except (sqlite3.Error, OSError, StoreError) as error:
            self._warn(error)
            return False
        if self._warned:
            logger.warning("the address book %s can be written again", self.file.path)
            self._warned = False
        if self._left.lost:
            logger.warning(
                "%d changes to the address book %s found no room and are lost", self._left.lost, self.file.path
            )
        self._left = Changes(self._most_changes)
        return True

    def close(self, changes: Changes) -> None:
        try:
            self.write(changes)
        finally:
            self.file.close()

    def _warn(self, error: Exception) -> None:
        """Once, until the disk lets us again."""
        if not self._warned:
            logger.warning(
                "the address book %s cannot be used: %s; going on without it until it can", self.file.path, error
            )
        self._warned = True
