"""Rows for the tests of an address book's file."""

import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

from overlay.book_rows import Changes, PeerRow, Row


def key(number: int) -> bytes:
    return number.to_bytes(32, "big")


def row(number: int, *, host: str = "198.51.100.7", port: int = 9330, **evidence: Any) -> Row:
    return Row(key(number), "quic", host, port, **{"source": "ticket", "learnt": 1.5, **evidence})


FULL = Row(
    key(7),
    None,
    "2001:db8::7",
    1,
    "static",
    1.0,
    2.0,
    3.0,
    4.0,
    5.0,
    6,
    7,
    "hello",
    0.25,
    "198.51.100.0/24",
)
"""Every field has a value of its own."""


def changes(*rows: Row | PeerRow) -> Changes:
    made = Changes(1000)
    for one in rows:
        if isinstance(one, Row):
            made.put(one.key, one.place, one)
        else:
            made.put_peer(one)
    return made


def query(path: Path, sql: str) -> list[Any]:
    """Ask the file itself, as any other program would."""
    with closing(sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True)) as database:
        return database.execute(sql).fetchall()


def others(path: Path) -> list[str]:
    """What stands beside the book and its lock."""
    return sorted(one.name for one in path.parent.iterdir() if one.name not in {path.name, f"{path.name}.lock"})
