"""The address book between runs: written behind, at most a second is lost, and a bad disk is never fatal."""

import asyncio
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import closing, suppress
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from book_support import FULL, key, others, query, row

from overlay import store as store_module
from overlay.book_file import BookFile
from overlay.book_rows import Changes
from overlay.errors import OverlayError, StoreError
from overlay.store import BookStore, Contents, PeerRow

PEER = PeerRow(key(7), kept=True, sequence=5)
SOON = 0.005
"""Seconds, where a test waits for a period to pass."""
LATE = 3600.0
"""Seconds, where it must not."""


def saved(path: Path) -> list[Any]:
    return sorted(query(path, "SELECT hex(key), port FROM places"))


def has(path: Path, rows: int) -> bool:
    return len(saved(path)) == rows


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not condition():
            await asyncio.sleep(0.005)


async def test_what_was_saved_is_there_at_the_next_start(tmp_path: Path) -> None:
    path = tmp_path / "book"
    async with await BookStore.open(path, flush_after=LATE) as store:
        assert await store.load() == Contents([], [])
        store.save([FULL], peers=[PEER])
    async with await BookStore.open(path) as store:
        assert await store.load() == Contents([FULL], [PEER])
    assert others(path) == []


async def test_it_is_on_the_disk_soon_without_being_asked(tmp_path: Path) -> None:
    """And again, after the first time."""
    path = tmp_path / "book"
    assert store_module.FLUSH_AFTER <= 1.0
    async with await BookStore.open(path) as store:
        for number in (1, 2):
            store.save([row(number)])
            await until(partial(has, path, number))


async def test_many_changes_are_one_transaction_with_the_newest_of_each_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[int] = []
    write = BookFile.write

    def counted(file: BookFile, changes: Changes) -> None:
        written.append(len(changes))
        write(file, changes)

    monkeypatch.setattr(BookFile, "write", counted)
    async with await BookStore.open(tmp_path / "book", flush_after=LATE) as store:
        for number in range(100):
            store.save([row(1, learnt=float(number)), row(2)])
            store.save(removed=[(key(2), row(2).place)], peers=[PeerRow(key(3), last_seen=float(number))])
        assert await store.flush()
        assert written == [3]
        assert await store.load() == Contents([row(1, learnt=99.0)], [PeerRow(key(3), last_seen=99.0)])
        assert await store.flush()
        assert written == [3]


async def test_a_peer_forgotten_and_met_again_has_only_what_is_new(tmp_path: Path) -> None:
    async with await BookStore.open(tmp_path / "book", flush_after=LATE) as store:
        store.save([row(1, port=1), row(1, port=2)], peers=[PeerRow(key(1), name="x")])
        await store.flush()
        store.save([row(1, port=3)], [(key(1), None)])
        await store.flush()
        assert await store.load() == Contents([row(1, port=3)], [])


async def test_the_disk_works_in_a_thread_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    threads: set[int] = set()
    for name in ("open", "read", "write", "close"):
        original = getattr(BookFile, name)

        def spied(file: BookFile, *arguments: Any, original: Any = original) -> Any:
            threads.add(threading.get_ident())
            return original(file, *arguments)

        monkeypatch.setattr(BookFile, name, spied)
    async with await BookStore.open(tmp_path / "book") as store:
        await store.load()
        store.save([FULL])
    assert len(threads) == 1
    assert threading.get_ident() not in threads


async def test_a_second_store_on_the_file_is_refused(tmp_path: Path) -> None:
    """And the first goes on."""
    path = tmp_path / "book"
    async with await BookStore.open(path) as store:
        with pytest.raises(StoreError, match="in use") as caught:
            await BookStore.open(path)
        assert isinstance(caught.value, OverlayError)
        store.save([FULL])
        assert await store.flush()
    await (await BookStore.open(path)).aclose()


async def test_a_closed_store_takes_nothing_and_closes_once(tmp_path: Path) -> None:
    store = await BookStore.open(tmp_path / "book")
    await store.aclose()
    await store.aclose()
    with pytest.raises(StoreError, match="is closed"):
        store.save([FULL])
    with pytest.raises(StoreError, match="is closed"):
        await store.flush()


class Stuck:
    """A disk that hangs in one operation until it is let go."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
        self.reached = threading.Event()
        self.go = threading.Event()
        original = getattr(BookFile, name)

        def stuck(file: BookFile, *arguments: Any) -> Any:
            self.reached.set()
            assert self.go.wait(60)
            return original(file, *arguments)

        monkeypatch.setattr(BookFile, name, stuck)


async def test_saving_never_waits_for_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What comes while it writes is written after that."""
    disk = Stuck(monkeypatch, "write")
    async with await BookStore.open(tmp_path / "book", flush_after=SOON) as store:
        store.save([row(1)])
        await until(disk.reached.is_set)
        store.save([row(2)])
        disk.go.set()
    assert len(saved(tmp_path / "book")) == 2


@pytest.mark.parametrize("name", ["open", "close", "write"])
async def test_cancelling_loses_nothing_and_leaves_the_file_free(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Of `open`, `aclose` and `flush`, while the disk is at it."""
    path = tmp_path / "book"
    disk = Stuck(monkeypatch, name)

    async def run() -> None:
        store = await BookStore.open(path, flush_after=LATE)
        store.save([FULL])
        if name == "write":
            try:
                await store.flush()
            finally:
                await store.aclose()
        await store.aclose()

    task = asyncio.create_task(run())
    await until(disk.reached.is_set)
    task.cancel()
    await asyncio.sleep(0)
    disk.go.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    book = BookFile(path)

    def free() -> bool:
        with suppress(StoreError):
            book.open()
        return book.is_open

    await until(free)
    with closing(book):
        assert book.read().rows == ([] if name == "open" else [FULL])


@pytest.mark.parametrize("how", ["flush", "aclose"])
async def test_what_waits_behind_another_transaction_is_written_though_cancelled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    disk = Stuck(monkeypatch, "write")
    store = await BookStore.open(tmp_path / "book", flush_after=LATE)
    store.save([row(1)])
    first = asyncio.create_task(store.flush())
    await until(disk.reached.is_set)
    store.save([row(2)])
    second: asyncio.Task[Any] = asyncio.create_task(getattr(store, how)())
    # Some turns, so that it is in the last of its waits.
    for _ in range(10):
        await asyncio.sleep(0)
    second.cancel()
    with pytest.raises(asyncio.CancelledError):
        await second
    disk.go.set()
    assert await first
    await store.aclose()
    await until(partial(has, tmp_path / "book", 2))


async def test_a_disk_that_hangs_does_not_keep_an_endpoint_from_closing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(store_module, "CLOSE_TIMEOUT", SOON)
    store = await BookStore.open(tmp_path / "book")
    disk = Stuck(monkeypatch, "close")
    await store.aclose()
    assert "hangs" in caplog.text
    disk.go.set()


async def test_a_full_disk_is_one_warning_and_is_tried_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Nothing that was saved meanwhile is lost."""
    path = tmp_path / "book"
    async with await BookStore.open(path, flush_after=SOON, retry_after=SOON) as store:
        file = store._writer.file

        def limit(pages: int) -> None:
            assert file._database is not None
            file._database.execute(f"PRAGMA max_page_count = {pages}")

        await store._in_thread(limit, 1)  # type: ignore[arg-type]
        store.save([row(number, host="h" * 500) for number in range(300)])
        await until(lambda: "going on without it" in caplog.text)
        assert saved(path) == []
        await store._in_thread(limit, 1_000_000)  # type: ignore[arg-type]
        await until(lambda: len(saved(path)) == 300)
        assert await store.flush()
    told = [record.getMessage() for record in caplog.records if record.name == "overlay"]
    assert len(told) == 2
    assert "database or disk is full; going on without it" in told[0]
    assert "can be written again" in told[1]


async def test_a_place_where_no_file_can_be_is_tried_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A disk that is mounted later."""
    blocked = tmp_path / "disk"
    blocked.write_text("not a directory")
    async with await BookStore.open(blocked / "book", flush_after=SOON, retry_after=SOON) as store:
        assert await store.load() == Contents([], [])
        store.save([FULL])
        assert not await store.flush()
        blocked.unlink()
        await until((blocked / "book").exists)
        assert await store.flush()
        assert await store.load() == Contents([FULL], [])
    assert caplog.text.count("going on without it") == 1


async def test_what_waits_for_a_bad_disk_is_bounded(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    blocked = tmp_path / "disk"
    blocked.write_text("not a directory")
    async with await BookStore.open(blocked / "book", flush_after=LATE, most_changes=10) as store:
        store.save(peers=[PEER])
        for number in range(50):
            store.save([row(number)])
            await store.flush()
        store.save([row(number) for number in range(50, 100)])
        blocked.unlink()
        assert await store.flush()
        contents = await store.load()
    assert {one.key for one in contents.rows} == {key(number) for number in range(91, 100)}
    assert contents.peers == [PEER]
    assert "91 changes" in caplog.text


KILLED = """
import asyncio, os, sys
from book_support import row, key
from overlay.store import BookStore, PeerRow

async def run(path, first):
    store = await BookStore.open(path, flush_after=3600)
    number = first
    while True:
        number += 1
        pair = [row(one, learnt=float(number), port=port) for one in range(5) for port in range(1, 20)]
        store.save(pair, peers=[PeerRow(b"p" * 32, sequence=number)])
        assert await store.flush()
        os.write(1, f"{number}\\n".encode())

for line in sys.stdin:
    path, first = line.split()
    pid = os.fork()
    if not pid:
        asyncio.run(run(path, int(first)))
    os.write(1, f"pid {pid}\\n".encode())
    os.waitpid(pid, 0)
    os.write(1, b"killed\\n")
"""
"""Forks a writer for each line, as that is quicker than starting Python; says what it has been promised."""


@pytest.mark.timeout(240)
def test_kill_9_at_any_moment_loses_nothing_that_was_flushed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A hundred times on one file: in the middle of opening, writing and checkpoints; and no transaction is torn."""
    path = tmp_path / "book"
    draw = random.Random(5)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])}
    command = [sys.executable, "-c", KILLED]
    pipe = subprocess.PIPE
    promised, kills, flushes = 0, 0, 0
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, env=environment, text=True) as zygote:
        assert zygote.stdin is not None
        assert zygote.stdout is not None
        while kills < 100:
            zygote.stdin.write(f"{path} {promised}\n")
            zygote.stdin.flush()
            first = zygote.stdout.readline()
            assert first.startswith("pid ")
            killer = threading.Timer(draw.expovariate(30), os.kill, (int(first[4:]), signal.SIGKILL))
            killer.start()
            while (line := zygote.stdout.readline()) != "killed\n":
                assert int(line) > promised
                promised = int(line)
                flushes += 1
            killer.join()
            kills += 1
            with closing(BookFile(path)) as book:
                book.open()
                contents = book.read()
            written = {one.learnt for one in contents.rows} | {float(one.sequence) for one in contents.peers}
            if promised or written:
                [number] = written
                assert number in {promised, promised + 1}, "a promise was broken"
                assert len(contents.rows) == 95
                promised = int(number)
        zygote.stdin.close()
    assert promised
    assert others(path) == []
    assert caplog.text == ""
    assert flushes > kills, "it was hardly ever killed at work"


HURRIED = """
import asyncio, os, sys, time
from book_support import row
from overlay.book_file import BookFile
from overlay.store import BookStore

def say(*words):
    os.write(1, (" ".join(map(str, words)) + "\\n").encode())

take, write = BookStore._take, BookFile.write

def told_take(store):
    say("take", saved, time.monotonic())
    return take(store)

def told_write(file, changes):
    write(file, changes)
    say("done", saved, time.monotonic())

BookStore._take, BookFile.write = told_take, told_write

async def run():
    global saved
    saved = 0
    store = await BookStore.open(sys.argv[1])
    while True:
        store.save([row(saved + 1)])
        saved += 1
        say("save", saved, time.monotonic())
        await asyncio.sleep(0.005)

asyncio.run(run())
"""
"""Saves and never asks for more; says what it does while it does it, as (what, rows saved until then, when)."""


class Hurried:
    """One such process, with a file of its own."""

    def __init__(self, directory: Path, number: int, seconds: float) -> None:
        self.path = directory / str(number) / "book"
        self.path.parent.mkdir()
        self._report = directory / f"{number}.report"
        self._seconds = seconds
        self._since: float | None = None
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])}
        with self._report.open("wb") as report:
            command = [sys.executable, "-c", HURRIED, str(self.path)]
            self.process = subprocess.Popen(command, stdout=report, env=environment)

    def told(self) -> list[tuple[str, int, float]]:
        lines = self._report.read_text().rpartition("\n")[0].splitlines()
        return [(what, int(saved), float(when)) for what, saved, when in map(str.split, lines)]

    def is_due(self) -> bool:
        """Some seconds after its first transaction: then there is something that must not be lost."""
        if self._since is None and any(what == "done" for what, _, _ in self.told()):
            self._since = time.monotonic()
        return self._since is not None and time.monotonic() >= self._since + self._seconds

    def kill(self) -> None:
        self.process.kill()
        assert self.process.wait() == -signal.SIGKILL


def owed(told: list[tuple[str, int, float]]) -> tuple[int, int, float]:
    """How many rows the disk has for certain, how many by the promise of a second, and what that was granted beside.

    No clock but the process's own counts, and its end is its last word, so that a machine that is slow or busy grants
    it more, and a quick one next to nothing: all the time that it spent in transactions, even one that did not end, and
    the longest that its loop took for one round, for each of the five rounds from a change to its transaction.
    """
    end = told[-1][2]
    takes = [(saved, when) for what, saved, when in told if what == "take"]
    dones = [when for what, _, when in told if what == "done"]
    certain = takes[len(dones) - 1][0]
    busy = sum(after - before for (_, before), after in zip(takes, [*dones, end], strict=False))
    saves = [when for what, _, when in told if what == "save"]
    longest = max(after - before for before, after in pairwise([*saves, end]))
    granted = busy + 5 * longest
    promised = max((saved for what, saved, when in told if what == "save" and when < end - 1.0 - granted), default=0)
    return certain, promised, granted


@pytest.mark.timeout(240)
async def test_kill_9_at_any_moment_loses_nothing_older_than_a_second(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, record_property: Callable[[str, object], None]
) -> None:
    """Without a flush: ten processes at once, each killed 0.5 to 2 s after its first transaction."""
    draw = random.Random(9)
    ones = [Hurried(tmp_path, number, draw.uniform(0.5, 2.0)) for number in range(10)]
    left = set(ones)
    try:
        while left:
            for one in [one for one in left if one.is_due()]:
                one.kill()
                left.remove(one)
            assert all(one.process.poll() is None for one in left)
            await asyncio.sleep(0.02)
    finally:
        for one in left:
            one.process.kill()
            one.process.wait()
    figures: list[str] = []
    for one in ones:
        told = one.told()
        certain, promised, granted = owed(told)
        async with await BookStore.open(one.path) as store:
            there = {int.from_bytes(one.key) for one in (await store.load()).rows}
        assert there == set(range(1, len(there) + 1)), "they are written in the order in which they were saved"
        assert len(there) >= certain > 0, "what a transaction has taken that was done"
        assert len(there) >= promised, f"a row was lost that was older than 1 s and the {granted:.3f} s granted"
        assert others(one.path) == []
        saves = {saved: when for what, saved, when in told if what == "save"}
        lost = told[-1][2] - saves.get(len(there) + 1, told[-1][2])
        figures.append(f"{len(there)} of {len(saves)}, {promised} owed, {lost:.3f} s lost, {granted:.3f} s granted")
    record_property("rows", figures)
    assert caplog.text == ""
