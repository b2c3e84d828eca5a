"""What stands at a book's path is known for what it is, made whole, migrated, and set aside with all that it has."""

import os
import sqlite3
import stat
from contextlib import closing
from pathlib import Path

import pytest
from book_support import others, query

from overlay import book_schema
from overlay.book_schema import APPLICATION_ID, SCHEMA_VERSION, Unusable, create, inspect, set_aside

VERSION_1 = (
    f"PRAGMA application_id = {APPLICATION_ID}",
    "PRAGMA user_version = 1",
    """CREATE TABLE places (key BLOB NOT NULL, transport TEXT NOT NULL, host TEXT NOT NULL, port INTEGER NOT NULL,
    source TEXT NOT NULL, learnt REAL NOT NULL, first_success REAL, last_success REAL, first_failure REAL,
    last_failure REAL, successes INTEGER NOT NULL, failures INTEGER NOT NULL, stage TEXT NOT NULL, rtt REAL,
    PRIMARY KEY (key, transport, host, port)) WITHOUT ROWID""",
    """CREATE TABLE peers (key BLOB PRIMARY KEY, kept INTEGER NOT NULL, blocked INTEGER NOT NULL,
    sequence BLOB NOT NULL, name TEXT NOT NULL, last_seen REAL NOT NULL) WITHOUT ROWID""",
)
"""Before it was known by which network of ours a place was reached."""


def made(path: Path, *statements: str) -> Path:
    with closing(sqlite3.connect(path, isolation_level=None)) as database:
        for statement in statements:
            database.execute(statement)
    return path


def test_nothing_is_nothing(tmp_path: Path) -> None:
    assert inspect(tmp_path / "book") is None
    assert others(tmp_path / "book") == []


def test_a_fresh_book_is_whole_private_and_ours(tmp_path: Path) -> None:
    path = tmp_path / "book"
    create(path)
    assert inspect(path) == SCHEMA_VERSION
    assert query(path, "PRAGMA journal_mode") == [("wal",)]
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    with path.open("rb") as file:
        assert file.read(72)[68:] == b"ovly"


def test_a_book_whose_making_was_cut_off_is_made_again(tmp_path: Path) -> None:
    """Whatever the last attempt left."""
    path = tmp_path / "book"
    for end in ("", "-wal", "-journal", "-shm"):
        (tmp_path / f"book.new{end}").write_bytes(b"half")
    assert inspect(path) is None
    create(path)
    assert inspect(path) == SCHEMA_VERSION


def test_a_migrated_book_has_the_columns_of_a_fresh_one(tmp_path: Path) -> None:
    old, fresh = made(tmp_path / "old", *VERSION_1), tmp_path / "fresh"
    create(fresh)
    with closing(book_schema.connect(old, "rw")) as database:
        book_schema.migrate(database, 1)
    for table in ("places", "peers"):
        assert query(old, f"PRAGMA table_info({table})") == query(fresh, f"PRAGMA table_info({table})")
    assert inspect(old) == SCHEMA_VERSION


def test_every_older_version_has_a_way_up() -> None:
    assert sorted(book_schema.MIGRATIONS) == list(range(1, SCHEMA_VERSION))


def test_a_migration_that_fails_halfway_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = made(tmp_path / "book", *VERSION_1)
    steps = (*book_schema.MIGRATIONS[1], "ALTER TABLE unknown ADD COLUMN more")
    monkeypatch.setitem(book_schema.MIGRATIONS, 1, steps)
    with closing(book_schema.connect(path, "rw")) as database, pytest.raises(Unusable, match="no such table"):
        book_schema.migrate(database, 1)
    assert query(path, "PRAGMA user_version") == [(1,)]
    assert "network" not in str(query(path, "PRAGMA table_info(places)"))


def damaged(path: Path) -> Path:
    """A page in the middle is overwritten: the header is still fine."""
    create(path)
    content = bytearray(path.read_bytes())
    content[4096:8192] = os.urandom(4096)
    path.write_bytes(content)
    return path


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (lambda path: path.write_bytes(os.urandom(8192)), "damaged .*not a database"),
        (lambda path: path.write_bytes(b""), "another program's"),
        (lambda path: path.write_text("[peers]\n"), "damaged"),
        (lambda path: made(path, "CREATE TABLE moz_places (x)"), "another program's"),
        (lambda path: made(path, *VERSION_1, "PRAGMA user_version = 3"), "newer .*schema 3, not 2"),
        (lambda path: made(path, *VERSION_1, "PRAGMA user_version = 0"), "never existed"),
        (lambda path: path.with_name("book-wal").write_bytes(b"left"), "left behind"),
        (damaged, "damaged"),
    ],
    ids=["garbage", "empty", "text", "foreign", "newer", "no version", "WAL only", "a bad page"],
)
def test_what_is_no_usable_book_is_told_and_not_touched(tmp_path: Path, make: object, why: str) -> None:
    path = tmp_path / "book"
    assert callable(make)
    make(path)
    before = {one.name: one.read_bytes() for one in tmp_path.iterdir()}
    with pytest.raises(Unusable, match=why):
        inspect(path)
    assert {name: (tmp_path / name).read_bytes() for name in before} == before


def test_a_foreign_transaction_that_was_cut_off_stays_with_its_database(tmp_path: Path) -> None:
    """Its journal is rolled back or kept: without it the database would be half written."""
    path, copy = tmp_path / "foreign", tmp_path / "book"
    with closing(sqlite3.connect(path, isolation_level=None)) as database:
        database.execute("CREATE TABLE t (x)")
        database.execute("INSERT INTO t VALUES ('before')")
        database.execute("PRAGMA cache_size = 1")
        database.execute("PRAGMA cache_spill = 1")
        database.execute("BEGIN")
        database.execute("UPDATE t SET x = 'after'")
        for _ in range(200):
            database.execute("INSERT INTO t VALUES (randomblob(1000))")
        for end in ("", "-journal"):
            copy.with_name(copy.name + end).write_bytes(path.with_name(path.name + end).read_bytes())
    with pytest.raises(Unusable, match="another program's"):
        inspect(copy)
    assert query(set_aside(copy), "SELECT x FROM t") == [("before",)]


def test_a_newer_book_is_set_aside_with_what_is_only_in_its_log(tmp_path: Path) -> None:
    """As a killed process left it: nobody tidied up on its behalf."""
    path, copy = tmp_path / "newer", tmp_path / "book"
    with closing(sqlite3.connect(path, isolation_level=None)) as database:
        database.execute("PRAGMA journal_mode = WAL")
        for statement in (*VERSION_1, "PRAGMA user_version = 99", "CREATE TABLE t (x)", "INSERT INTO t VALUES (1)"):
            database.execute(statement)
        before = {end: path.with_name(path.name + end).read_bytes() for end in ("", "-wal")}
    for end, content in before.items():
        copy.with_name(copy.name + end).write_bytes(content)
    with pytest.raises(Unusable, match="schema 99"):
        inspect(copy)
    aside = set_aside(copy)
    assert {end: aside.with_name(aside.name + end).read_bytes() for end in ("", "-wal")} == before
    assert query(aside, "SELECT x FROM t") == [(1,)]


def test_what_is_set_aside_keeps_all_its_files_and_nothing_is_overwritten(tmp_path: Path) -> None:
    """Twice in the same second too."""
    path = tmp_path / "book"
    for number in range(3):
        for end in ("", "-wal", "-shm", "-journal"):
            path.with_name(path.name + end).write_text(f"{number}{end}")
        aside = set_aside(path)
        assert aside.name.startswith("book.set-aside-2")
        assert [aside.with_name(aside.name + end).read_text() for end in ("", "-wal", "-shm", "-journal")] == [
            f"{number}",
            f"{number}-wal",
            f"{number}-shm",
            f"{number}-journal",
        ]
    assert len(list(tmp_path.iterdir())) == 12
