"""The file of an address book: what is written is read again, and one process at a time has it."""

import logging
import os
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from book_support import FULL, changes, key, others, query, row
from test_book_schema import VERSION_1, damaged, made

from overlay import book_file, book_schema
from overlay.book_file import BookFile
from overlay.book_rows import Changes, Contents, PeerRow, Row
from overlay.errors import StoreError

PEER = PeerRow(key(7), True, True, (1 << 64) - 1, "Zoë's phone", 6.5)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "book"


@pytest.fixture
def file(path: Path) -> Iterator[BookFile]:
    book = BookFile(path)
    book.open()
    yield book
    book.close()


@pytest.fixture
def without_rights() -> Iterator[Path]:
    """A directory of somebody else's, in which we may read and not write; root has to step down for that."""
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name) / "theirs"
        directory.mkdir()
        rooted = os.geteuid() == 0
        yield directory
        if rooted:
            os.seteuid(0)
        directory.chmod(0o755)


def step_down(directory: Path) -> None:
    directory.chmod(0o555)
    directory.parent.chmod(0o755)
    if os.geteuid() == 0:
        os.seteuid(65534)


def reopened(book: BookFile) -> Contents:
    book.close()
    book.open()
    return book.read()


def test_every_field_is_read_as_it_was_written(file: BookFile) -> None:
    file.write(changes(FULL, row(1), PEER, PeerRow(key(1), last_seen=1.0)))
    contents = reopened(file)
    assert sorted(contents.rows, key=lambda one: one.key) == [row(1), FULL]
    assert sorted(contents.peers, key=lambda one: one.key) == [PeerRow(key(1), last_seen=1.0), PEER]


def test_one_place_over_three_transports_is_three_rows(file: BookFile) -> None:
    """And none of them for all transports."""
    every = Changes(10)
    for transport in (None, "tcp", "udp"):
        every.put(key(1), (transport, "h", 1), Row(key(1), transport, "h", 1, "static", 1.0))
    file.write(every)
    file.write(every)
    assert {one.transport for one in reopened(file).rows} == {None, "tcp", "udp"}
    gone = Changes(10)
    gone.put(key(1), (None, "h", 1), None)
    file.write(gone)
    assert {one.transport for one in reopened(file).rows} == {"tcp", "udp"}


def test_a_forgotten_peer_is_gone_but_not_that_it_is_blocked(file: BookFile) -> None:
    said = [PeerRow(key(1), blocked=True), PeerRow(key(2), kept=True), PeerRow(key(3), name="x"), PeerRow(key(4))]
    file.write(changes(row(1), row(2), row(3), row(4), *said))
    gone = Changes(10)
    for number in range(1, 4):
        gone.forget(key(number))
    file.write(gone)
    assert reopened(file) == Contents([row(4)], said[:2])


def test_an_empty_row_deletes_what_was_said(file: BookFile) -> None:
    file.write(changes(PEER))
    file.write(changes(PeerRow(PEER.key)))
    assert reopened(file) == Contents([], [])


def test_after_a_clean_end_there_is_one_file_and_its_lock(file: BookFile, path: Path) -> None:
    file.write(changes(FULL))
    file.close()
    assert others(path) == []


def test_missing_directories_are_made(tmp_path: Path) -> None:
    book = BookFile(tmp_path / "one" / "two" / "book")
    book.open()
    book.close()
    assert (tmp_path / "one" / "two").stat().st_mode & 0o777 == 0o700


def test_a_directory_is_no_book(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="is a directory: name a file"):
        BookFile(tmp_path).open()


def test_the_second_who_opens_it_is_told_so(file: BookFile, path: Path) -> None:
    """By another name too; and it is free afterwards."""
    link = path.with_name("link")
    link.symlink_to(path)
    for name in (path, link):
        with pytest.raises(StoreError, match=r"book is in use by another endpoint: stop that one"):
            BookFile(name).open()
    file.write(changes(FULL))
    assert reopened(file).rows == [FULL]
    file.close()
    second = BookFile(link)
    second.open()
    second.close()


HOLDER = """
import os, sys, time
from overlay.book_file import BookFile
book = BookFile(sys.argv[1])
book.open()
if os.fork():
    print(os.getpid(), flush=True)
sys.stdin.read()
"""


def test_another_process_has_it_until_it_is_killed(path: Path) -> None:
    """And not longer, even if it had forked a child that lives on."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", HOLDER, str(path)]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, env=environment, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == f"{holder.pid}\n"
        with pytest.raises(StoreError, match="in use"):
            BookFile(path).open()
        holder.kill()
        holder.wait()
        book = BookFile(path)
        book.open()
        book.close()


def test_others_may_look_into_a_book_in_use(file: BookFile, path: Path) -> None:
    file.write(changes(FULL))
    assert query(path, "SELECT host, port FROM places") == [("2001:db8::7", 1)]


def test_an_older_book_is_migrated_with_all_its_rows(path: Path) -> None:
    made(
        path,
        *VERSION_1,
        f"INSERT INTO places VALUES (x'{key(1).hex()}', '', 'h', 1, 'mdns', 1, NULL, 2, NULL, NULL, 1, 0, '', 0.5)",
        f"INSERT INTO peers VALUES (x'{key(1).hex()}', 1, 0, x'0000000000000005', 'a', 3)",
    )
    with closing(BookFile(path)) as book:
        book.open()
        contents = book.read()
    assert contents.rows == [Row(key(1), None, "h", 1, "mdns", 1.0, None, 2.0, successes=1, rtt=0.5)]
    assert contents.peers == [PeerRow(key(1), kept=True, sequence=5, name="a", last_seen=3.0)]
    assert query(path, "PRAGMA user_version") == [(book_schema.SCHEMA_VERSION,)]
    assert others(path) == []


@pytest.mark.parametrize("kind", ["newer", "foreign", "garbage", "damaged", "without tables"])
def test_what_is_no_usable_book_is_set_aside_with_a_warning(
    path: Path, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Complete, and a fresh one takes its place."""
    match kind:
        case "newer":
            made(path, *VERSION_1, "PRAGMA journal_mode = WAL", "PRAGMA user_version = 99")
        case "foreign":
            made(path, "CREATE TABLE t (x)")
        case "garbage":
            path.write_bytes(os.urandom(10_000))
        case "damaged":
            damaged(path)
        case _:
            made(path, *VERSION_1[:2])
    before = path.read_bytes()
    with closing(BookFile(path)) as book:
        book.open()
        assert book.read() == Contents([], [])
        book.write(changes(FULL))
        assert reopened(book).rows == [FULL]
    [aside] = [name for name in others(path) if not name.endswith(("-wal", "-shm"))]
    if kind != "without tables":
        assert path.with_name(aside).read_bytes() == before
    [warning] = [record for record in caplog.records if record.name == "overlay"]
    assert warning.levelno == logging.WARNING
    assert str(path) in warning.getMessage()
    assert aside in warning.getMessage()


def test_damage_that_shows_only_later_costs_no_change_that_comes(
    path: Path, file: BookFile, caplog: pytest.LogCaptureFixture
) -> None:
    """The disk rots under an open book."""
    file.write(changes(*(row(number, port=port) for number in range(50) for port in range(1, 50))))
    file.close()
    file.open()
    size = path.stat().st_size
    with path.open("r+b") as raw:
        raw.seek(4096)
        raw.write(os.urandom(size - 4096))
    file.write(changes(FULL))
    assert reopened(file).rows == [FULL]
    assert "is damaged" in caplog.text
    assert any(".set-aside-" in name for name in others(path))


def test_rows_that_make_no_sense_are_left_out(path: Path, file: BookFile, caplog: pytest.LogCaptureFixture) -> None:
    """Somebody has been in the file with other tools."""
    file.write(changes(FULL, PEER, *(row(number) for number in range(100, 106))))
    for number, column in (
        (100, "port = 0"),
        (101, "source = 'hearsay'"),
        (102, "learnt = 'x'"),
        (103, "host = CAST(x'ff' AS TEXT)"),
        (104, "key = x'00'"),
        (105, "rtt = 9e999"),
    ):
        made(path, f"UPDATE places SET {column} WHERE key = x'{key(number).hex()}'")
    made(path, "INSERT INTO peers VALUES (x'00', 1, 0, x'00', '', 0)", "INSERT INTO peers VALUES (1, 1, 0, 5, '', 0)")
    assert reopened(file) == Contents([FULL], [PEER])
    assert "has 8 rows that make no sense" in caplog.text


def test_no_more_is_read_than_a_book_can_have(file: BookFile, monkeypatch: pytest.MonkeyPatch) -> None:
    file.write(changes(*(row(number) for number in range(20))))
    monkeypatch.setattr(book_file, "MOST_ROWS", 7)
    assert len(reopened(file).rows) == 7


def test_a_full_disk_takes_all_or_nothing(file: BookFile) -> None:
    """SQLite's own limit answers what a full disk does."""
    file.write(changes(FULL))
    assert file._database is not None
    [[pages]] = file._database.execute("PRAGMA page_count").fetchall()
    file._database.execute(f"PRAGMA max_page_count = {pages}")
    many = changes(*(row(number, host="h" * 500) for number in range(100)))
    with pytest.raises(sqlite3.OperationalError, match="full"):
        file.write(many)
    assert file.read().rows == [FULL]
    file._database.execute("PRAGMA max_page_count = 1000000")
    file.write(many)
    assert len(reopened(file).rows) == 101


def test_a_book_where_we_may_not_write_is_still_read(without_rights: Path) -> None:
    path = without_rights / "book"
    with closing(BookFile(path)) as book:
        book.open()
        book.write(changes(FULL, PEER))
    path.with_name("book.lock").unlink()
    path.chmod(0o444)
    step_down(without_rights)
    book = BookFile(path)
    with pytest.raises(PermissionError):
        book.open()
    assert not book.is_open
    assert book.read() == Contents([FULL], [PEER])
    with pytest.raises(sqlite3.OperationalError, match="not open"):
        book.write(changes(FULL))


def test_where_nothing_is_there_is_nothing_to_read(path: Path) -> None:
    assert BookFile(path).read() == Contents([], [])
    path.write_bytes(b"no database at all" * 100)
    assert BookFile(path).read() == Contents([], [])
