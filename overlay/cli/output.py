"""What the command line says, where, and with which exit code.

Standard output holds results that a program may read: tickets, keys, JSON. Everything else goes to standard error. What
a peer has sent is printed only after `clean`: a terminal obeys escape sequences, whoever has written them.
"""

import json
import re
import sys
from enum import IntEnum
from typing import Any, Final

import typer
from rich.console import Console
from rich.text import Text

from overlay.cli.transfer import MAX_FILE_BYTES, Gap, Refused
from overlay.errors import (
    AddressError,
    ConfigError,
    DialError,
    HandshakeError,
    SessionError,
    SessionRefused,
    StreamError,
    UnknownProtocol,
    WrongIdentity,
)
from overlay.events import Path
from overlay.protocol.codes import CloseCode

STALL_MS: Final = 100.0
"""Gaps from this length on are called stalls: pauses between deliveries of a paced transfer are below."""
MAX_LINE_CHARACTERS: Final = 500

_SIZE: Final = re.compile(r"([0-9]+(?:\.[0-9]+)?)([kmgt]?)(?:i?b)?", re.IGNORECASE)
_UNITS: Final = {"": 1, "k": 2**10, "m": 2**20, "g": 2**30, "t": 2**40}


class ExitCode(IntEnum):
    """What the process says at its end."""

    DONE = 0
    OTHER = 1
    USAGE = 2
    UNREACHABLE = 3
    WRONG_IDENTITY = 4
    LOST = 5
    """Lost after it was connected."""
    REFUSED = 6
    INTERRUPTED = 130
    """128 + SIGINT, as shells have it."""


class UsageError(Exception):
    """The command line asks for what cannot be."""


def exit_code(error: BaseException) -> ExitCode:
    """Which code an error ends the process with."""
    match error:
        case WrongIdentity():
            return ExitCode.WRONG_IDENTITY
        case DialError():
            refused = any(_is_refusal(attempt.cause) for attempt in error.attempts)
            return ExitCode.REFUSED if refused else ExitCode.UNREACHABLE
        case SessionRefused() | Refused() | UnknownProtocol():
            return ExitCode.REFUSED
        case SessionError() | StreamError():
            return ExitCode.LOST
        case AddressError() | ConfigError() | UsageError():
            return ExitCode.USAGE
        case _:
            return ExitCode.OTHER


def clean(text: str) -> str:
    """One printable line of it, of bounded length."""
    shown = text[:MAX_LINE_CHARACTERS] + ("…" if len(text) > MAX_LINE_CHARACTERS else "")
    return "".join(one if one.isprintable() else "\N{REPLACEMENT CHARACTER}" for one in shown)


def fail(error: BaseException | str) -> None:
    """Print an error on standard error: one line, and an indented one for each attempt of a dial."""
    text = str(error) or type(error).__name__
    for number, line in enumerate(text.splitlines()):
        shown = clean(line.strip())
        sys.stderr.write(f"  {shown}\n" if number else f"overlay: {shown}\n")
    sys.stderr.flush()


def error_document(error: BaseException) -> dict[str, Any]:
    """The same for programs."""
    document: dict[str, Any] = {"error": str(error).partition("\n")[0], "exit_code": int(exit_code(error))}
    if isinstance(error, DialError):
        document["attempts"] = [str(attempt) for attempt in error.attempts]
    return document


def out(text: str) -> None:
    """Print a result on standard output, at once: a pipe's reader waits for it."""
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def emit(document: dict[str, Any]) -> None:
    """Print one JSON document on one line, at once."""
    out(json.dumps(document))


def path_document(path: Path) -> dict[str, Any]:
    """A path and why it is this one, for programs."""
    return {
        "transport": path.transport,
        "remote": str(path.remote),
        **quality_document(path),
        "purpose": path.origin.purpose,
        "connect_ms": None if path.origin.seconds is None else round(1000 * path.origin.seconds, 1),
        "tried": [str(attempt) for attempt in path.origin.attempts],
        "why": str(path.origin),
    }


def quality_document(path: Path) -> dict[str, Any]:
    """What the transport measures on a path; null where it does not know."""
    return {
        "rtt_ms": None if path.rtt is None else round(1000 * path.rtt, 3),
        "mtu": path.mtu,
        "loss": None if path.loss is None else round(path.loss, 5),
        "congestion_window": path.congestion_window,
    }


def quality_text(path: Path) -> str:
    """The same for people: `rtt 20.10 ms, MTU 1472 bytes, loss 0.1 %, window 64.0 KiB`, less what is not known."""
    parts = []
    if path.rtt is not None:
        parts.append(f"rtt {1000 * path.rtt:.2f} ms")
    if path.mtu is not None:
        parts.append(f"MTU {path.mtu} bytes")
    if path.loss is not None:
        parts.append(f"loss {100 * path.loss:.1f} %")
    if path.congestion_window is not None:
        parts.append(f"window {size_text(path.congestion_window)}")
    return ", ".join(parts)


def stderr_console() -> Console:
    """The console for messages and progress."""
    return Console(stderr=True, highlight=False, markup=False, emoji=False)


def say(console: Console, text: str) -> None:
    """Print a message in one line, above a progress bar if there is one."""
    console.print(Text(clean(text)), soft_wrap=True)


def parse_size(text: str) -> int:
    """Read `10M`, `1.5G`, `4096`: bytes, with binary prefixes, as curl does.

    Raises:
        typer.BadParameter: it is none, or zero.
    """
    match = _SIZE.fullmatch(text)
    size = int(float(match[1]) * _UNITS[match[2].lower()]) if match else 0
    if not 0 < size <= MAX_FILE_BYTES:
        raise typer.BadParameter(f"{text!r} is no size: give bytes, or 16K, 10M, 1.5G, 2T")
    return size


def size_text(size: float) -> str:
    """`12.3 MiB`."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1024:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} TiB"


def stalls(gaps: tuple[Gap, ...]) -> list[float]:
    """Milliseconds of the longest gap, and of all others that are stalls."""
    return [round(gap.ms, 1) for number, gap in enumerate(gaps) if number == 0 or gap.ms >= STALL_MS]


def _is_refusal(cause: BaseException) -> bool:
    return isinstance(cause, SessionRefused) or (isinstance(cause, HandshakeError) and cause.code == CloseCode.REFUSED)
