"""What is in the file of an address book, by version; how it is looked at, made, migrated and set aside. Blocks."""

import os
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Final

from overlay.files import sync_directory

APPLICATION_ID: Final = 0x6F766C79
"""`ovly`, in the header of the file (SQLite's file format, section 1.3.13)."""
SCHEMA_VERSION: Final = 2
SCHEMA: Final = (
    """CREATE TABLE places (key BLOB NOT NULL, transport TEXT NOT NULL, host TEXT NOT NULL, port INTEGER NOT NULL,
    source TEXT NOT NULL, learnt REAL NOT NULL, first_success REAL, last_success REAL, first_failure REAL,
    last_failure REAL, successes INTEGER NOT NULL, failures INTEGER NOT NULL, stage TEXT NOT NULL, rtt REAL,
    network TEXT NOT NULL DEFAULT '', PRIMARY KEY (key, transport, host, port)) WITHOUT ROWID""",
    """CREATE TABLE peers (key BLOB PRIMARY KEY, kept INTEGER NOT NULL, blocked INTEGER NOT NULL,
    sequence BLOB NOT NULL, name TEXT NOT NULL, last_seen REAL NOT NULL) WITHOUT ROWID""",
)
MIGRATIONS: Final[dict[int, tuple[str, ...]]] = {
    1: ("ALTER TABLE places ADD COLUMN network TEXT NOT NULL DEFAULT ''",),
}
"""By version, what makes the next one of it."""

BUSY_TIMEOUT: Final = 5.0
"""Seconds to wait for somebody who looks into the file with other tools."""
_MOST_WAL_BYTES: Final = 4 * 1024 * 1024
"""To which the WAL is cut: SQLite's own limit before a checkpoint, 1,000 pages."""

# What a sound book never answers; SQLITE_ERROR: a table or column is not there. The other codes (full, read-only,
# busy, input and output) are about the disk, and may pass.
_DAMAGE: Final = frozenset({sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_ERROR})


class Unusable(sqlite3.DatabaseError):
    """What stands there is no book that this version can read; the text goes on after the file's name."""


def inspect(path: Path) -> int | None:
    """The version of the book that stands there, None if there is nothing.

    Only reads: SQLite would otherwise tidy up a database before we know whose it is.

    Raises:
        Unusable: there is something else, or a book that is damaged or newer.
        sqlite3.Error: the disk does not let us.
    """
    if not path.exists():
        if any(beside(path, end).exists() for end in ("-wal", "-journal")):
            # They would be replayed into a fresh book, to which they do not belong.
            raise Unusable("is missing, though a part of it was left behind")
        return None
    # A transaction that was cut off can only be rolled back by one who may write.
    mode = "rw" if beside(path, "-journal").exists() else "ro"
    with damage(), closing(connect(path, mode)) as database:
        version = schema_version(database)
        if version > SCHEMA_VERSION:
            raise Unusable(f"was written by a newer version of this library (schema {version}, not {SCHEMA_VERSION})")
        if version not in {SCHEMA_VERSION, *MIGRATIONS}:
            raise Unusable(f"is damaged (schema {version} never existed)")
        [verdict] = database.execute("PRAGMA quick_check(1)").fetchone()
        if verdict != "ok":
            raise Unusable(f"is damaged ({verdict})")
    return version


def create(path: Path) -> None:
    """Make an empty book: whole, or not at all."""
    new = beside(path, ".new")
    for end in ("", "-journal", "-wal", "-shm"):
        beside(new, end).unlink(missing_ok=True)
    os.close(os.open(new, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600))
    with closing(connect(new, "rw")) as database:
        database.execute("PRAGMA journal_mode = WAL")
        with transaction(database):
            for statement in SCHEMA:
                database.execute(statement)
            database.execute(f"PRAGMA application_id = {APPLICATION_ID}")
            database.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
    new.replace(path)
    sync_directory(path.parent)


def migrate(database: sqlite3.Connection, version: int) -> None:
    """Bring a book to this version, in one transaction.

    Raises:
        Unusable: it is not what its version says.
        sqlite3.Error: the disk does not let us.
    """
    if version == SCHEMA_VERSION:
        return
    with damage(), transaction(database):
        for step in range(version, SCHEMA_VERSION):
            for statement in MIGRATIONS[step]:
                database.execute(statement)
        database.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")


def set_aside(path: Path) -> Path:
    """Give what stands there, with all that belongs to it, another name; which.

    Raises:
        OSError: it cannot be renamed.
    """
    stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
    aside, number = beside(path, f".set-aside-{stamp}"), 1
    while any(beside(aside, end).exists() for end in ("", "-wal", "-shm", "-journal")):
        number += 1
        aside = beside(path, f".set-aside-{stamp}-{number}")
    for end in ("", "-wal", "-shm", "-journal"):
        with suppress(FileNotFoundError):
            beside(path, end).rename(beside(aside, end))
    return aside


def connect(path: Path, mode: str, *, timeout: float = BUSY_TIMEOUT) -> sqlite3.Connection:
    """Open a file that exists; `mode` is that of SQLite's URIs, with what may follow it. Transactions are ours."""
    connection = sqlite3.connect(f"{path.as_uri()}?mode={mode}", uri=True, timeout=timeout, isolation_level=None)
    # A text that is none costs its row, not the whole reading: no row of ours takes a lone surrogate.
    connection.text_factory = lambda raw: raw.decode(errors="surrogateescape")
    try:
        # With less, a power cut takes back all since the last checkpoint: days, when little changes.
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute(f"PRAGMA journal_size_limit = {_MOST_WAL_BYTES}")
    except BaseException:
        connection.close()
        raise
    return connection


@contextmanager
def damage() -> Iterator[None]:
    """Tell a damaged file from a disk that does not let us."""
    try:
        yield
    except sqlite3.Error as error:
        if getattr(error, "sqlite_errorcode", sqlite3.SQLITE_OK) & 0xFF in _DAMAGE:
            raise Unusable(f"is damaged ({error})") from error
        raise


@contextmanager
def transaction(database: sqlite3.Connection) -> Iterator[None]:
    """All, or, with an error, nothing."""
    database.execute("BEGIN IMMEDIATE")
    try:
        yield
        database.execute("COMMIT")
    except BaseException:
        # SQLite has rolled back by itself if the disk is full.
        if database.in_transaction:
            database.execute("ROLLBACK")
        raise


def schema_version(database: sqlite3.Connection) -> int:
    """The version of its schema.

    Raises:
        Unusable: it is no book.
    """
    [application] = database.execute("PRAGMA application_id").fetchone()
    if application != APPLICATION_ID:
        raise Unusable("is no address book but another program's database")
    return int(database.execute("PRAGMA user_version").fetchone()[0])


def beside(path: Path, end: str) -> Path:
    """The file whose name is longer by `end`."""
    return path.with_name(path.name + end)
