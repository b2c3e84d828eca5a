"""The file of an address book: SQLite in WAL mode, for one process at a time. Blocks; belongs to one thread.

What stands beside a book called NAME:

    NAME-wal, NAME-shm       SQLite's own; gone after a clean end
    NAME.lock                empty; whoever has a write transaction open on it has the book. It stays for ever, as a
                             lock whose file can be deleted can be held twice
    NAME.new                 a book in the making: NAME appears complete or not at all
    NAME.set-aside-TIME      what stood there and was no book that this version can read; nothing is ever deleted

The lock is SQLite's because the kernel frees it when the process dies, whatever the process had forked before: a flock
is inherited by forked children, and measured here it outlived `kill -9` of its owner. It is on a file of its own, since
the book itself may be set aside, and stays readable for others while it is in use.
"""

import logging
import os
import sqlite3
from collections.abc import Callable
from contextlib import closing, suppress
from operator import attrgetter
from pathlib import Path
from typing import Any, Final, TypeVar

from overlay.book_rows import Changes, Contents, PeerRow, Row
from overlay.book_schema import (
    SCHEMA_VERSION,
    Unusable,
    beside,
    connect,
    create,
    damage,
    inspect,
    migrate,
    schema_version,
    set_aside,
    transaction,
)
from overlay.errors import StoreError

logger = logging.getLogger("overlay")

MOST_ROWS: Final = 262_144
"""Of each table are read: 64 places of each of 4,096 peers, what a full book has."""
_EVIDENCE: Final = attrgetter(*list(Row.__dataclass_fields__)[2:])
"""All but key and transport, in the order of the columns below."""
_READ_PLACES: Final = (
    "SELECT key, transport, host, port, source, learnt, first_success, last_success, first_failure, last_failure,"
    " successes, failures, stage, rtt, network FROM places LIMIT ?"
)
_READ_PEERS: Final = "SELECT key, kept, blocked, sequence, name, last_seen FROM peers LIMIT ?"
_WRITE_PLACE: Final = (
    "INSERT OR REPLACE INTO places (key, transport, host, port, source, learnt, first_success, last_success,"
    " first_failure, last_failure, successes, failures, stage, rtt, network) VALUES (?,?,?,?,?,?,?,?,?,?,?,?,?,?,?)"
)
_WRITE_PEER: Final = "INSERT OR REPLACE INTO peers (key, kept, blocked, sequence, name, last_seen) VALUES (?,?,?,?,?,?)"
_DELETE_PLACE: Final = "DELETE FROM places WHERE key = ? AND transport = ? AND host = ? AND port = ?"

_T = TypeVar("_T", Row, PeerRow)


class BookFile:
    """The file.

    Args:
        path: where it is. A symbolic link is followed.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path).resolve()
        self._lock: sqlite3.Connection | None = None
        self._database: sqlite3.Connection | None = None

    @property
    def is_open(self) -> bool:
        """It can be written."""
        return self._database is not None

    def open(self) -> None:
        """Take the lock, and have a book of this version: found, migrated, or made anew.

        What stands there and is no such book is set aside under a name with the time (UTC) in it, with a warning.
        Missing directories are made with mode 0700, the file with 0600: whom one talks to is private.

        Raises:
            StoreError: another endpoint uses the file, or the path is that of a directory.
            sqlite3.Error: the disk does not let us, for now.
            OSError: the same.
        """
        if self.path.is_dir():
            raise StoreError(f"the address book {self.path} is a directory: name a file")
        self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        try:
            self._lock = _take_lock(self.path)
            try:
                self._database = _ready(self.path)
            except Unusable as error:
                self._begin_anew(error)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Leave nothing but the book and its lock's empty file."""
        for connection in (self._database, self._lock):
            if connection is not None:
                connection.close()
        self._database = self._lock = None

    def read(self) -> Contents:
        """All rows; those that make no sense are left out, with a warning.

        Without `open`, or after it failed, what a book on a read-only disk offers.

        Raises:
            sqlite3.Error: the disk does not let us.
        """
        if self._database is None:
            return self._read_only()
        try:
            return self._read_all(self._database)
        except Unusable as error:
            self._begin_anew(error)
            return Contents([], [])

    def write(self, changes: Changes) -> None:
        """All or, with an error, nothing: in one transaction. If the file is found damaged, into a fresh one.

        Raises:
            sqlite3.Error: the disk does not let us, for now; or it is not open.
            OSError: the same.
        """
        if self._database is None:
            raise sqlite3.OperationalError("it is not open")
        try:
            _write(self._database, changes)
        except Unusable as error:
            _write(self._begin_anew(error), changes)

    def _begin_anew(self, why: Unusable) -> sqlite3.Connection:
        """Set aside what stands there; without a fresh book there is nothing open, and all can be tried again."""
        if self._database is not None:
            self._database.close()
            self._database = None
        try:
            aside = set_aside(self.path)
            logger.warning(
                "the address book %s %s: set aside as %s, beginning with an empty one", self.path, why, aside
            )
            self._database = _ready(self.path)
        except BaseException:
            self.close()
            raise
        return self._database

    def _read_all(self, database: sqlite3.Connection) -> Contents:
        contents = Contents([], [])
        with damage():
            nonsense = _parse(database, _READ_PLACES, _row, contents.rows)
            nonsense += _parse(database, _READ_PEERS, _peer_row, contents.peers)
        if nonsense:
            logger.warning("the address book %s has %d rows that make no sense: left out", self.path, nonsense)
        return contents

    def _read_only(self) -> Contents:
        if not self.path.is_file():
            return Contents([], [])
        wal = beside(self.path, "-wal")
        # Where SQLite cannot make its NAME-shm, it reads a book in WAL mode only if told that nobody changes it.
        mode = "ro" if wal.exists() and wal.stat().st_size else "ro&immutable=1"
        with suppress(Unusable), damage(), closing(connect(self.path, mode)) as database:
            if schema_version(database) == SCHEMA_VERSION:
                return self._read_all(database)
        return Contents([], [])


def _take_lock(path: Path) -> sqlite3.Connection:
    lock = beside(path, ".lock")
    os.close(os.open(lock, os.O_RDWR | os.O_CREAT, 0o600))
    connection = connect(lock, "rw", timeout=0)
    try:
        # Without it an empty journal stands beside the lock for as long as it is held.
        connection.execute("PRAGMA journal_mode = MEMORY")
        connection.execute("BEGIN IMMEDIATE")
    except sqlite3.Error as error:
        connection.close()
        if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY:
            raise
        raise StoreError(
            f"the address book {path} is in use by another endpoint: stop that one, or give each its own"
        ) from error
    return connection


def _ready(path: Path) -> sqlite3.Connection:
    """Open the book that stands there, migrated to this version, or a fresh one.

    Raises:
        Unusable: what stands there is none.
        sqlite3.Error: the disk does not let us.
        OSError: the same.
    """
    version = inspect(path)
    if version is None:
        create(path)
    database = connect(path, "rw")
    try:
        with damage():
            migrate(database, version or SCHEMA_VERSION)
            for query in (_READ_PLACES, _READ_PEERS):
                database.execute(query, (0,))
    except BaseException:
        database.close()
        raise
    return database


def _write(database: sqlite3.Connection, changes: Changes) -> None:
    with damage(), transaction(database):
        forgotten = [(key,) for key in changes.forgotten]
        database.executemany("DELETE FROM places WHERE key = ?", forgotten)
        database.executemany("DELETE FROM peers WHERE key = ? AND NOT kept AND NOT blocked", forgotten)
        for key, places in changes.places.items():
            for (transport, host, port), row in places.items():
                if row is None:
                    database.execute(_DELETE_PLACE, (key, transport or "", host, port))
                else:
                    database.execute(_WRITE_PLACE, (key, transport or "", *_EVIDENCE(row)))
        for peer in changes.peers.values():
            if peer.is_empty:
                database.execute("DELETE FROM peers WHERE key = ?", (peer.key,))
            else:
                # SQLite's integers have a sign.
                sequence = peer.sequence.to_bytes(8, "big")
                columns = (peer.key, peer.kept, peer.blocked, sequence, peer.name, peer.last_seen)
                database.execute(_WRITE_PEER, columns)


def _parse(database: sqlite3.Connection, query: str, make: Callable[..., _T], found: list[_T]) -> int:
    """Read rows; how many made no sense."""
    nonsense = 0
    for columns in database.execute(query, (MOST_ROWS,)):
        try:
            found.append(make(*columns))
        except (ValueError, TypeError):
            nonsense += 1
    return nonsense


def _row(key: bytes, transport: str, *rest: Any) -> Row:
    return Row(key, transport or None, *rest)


def _peer_row(key: bytes, kept: int, blocked: int, sequence: bytes, name: str, last_seen: float) -> PeerRow:
    return PeerRow(key, bool(kept), bool(blocked), int.from_bytes(sequence, "big"), name, last_seen)
