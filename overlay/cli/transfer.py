"""The protocol `file/1`: one file on one stream.

The sender opens a stream for `file/1` and writes, all integers big-endian:

     0                   4
    +-------------------+------------------------+---------- - - ----------+------------------+
    | header length (4) | header (JSON, UTF-8)   | the file's bytes        | SHA-256 (32)     | FIN
    +-------------------+------------------------+---------- - - ----------+------------------+

The header is `{"name": "a.bin", "size": 123}`; the size is null when it is not known before the end. The last 32 bytes
before the FIN are the digest of the bytes between the two, so nothing has to be escaped. A sender that gives up resets
the stream; then there is no FIN, and no receiver takes a part for the whole.

The receiver answers once, when it has the file for good or as soon as it refuses, and ends its side:

     0                   4
    +-------------------+------------------------+
    | answer length (4) | answer (JSON, UTF-8)   | FIN
    +-------------------+------------------------+

    {"ok": true, "bytes": 123, "sha256": "9f...", "seconds": 0.5, "bytes_by_transport": {"quic": 130},
     "gaps": [{"at_ms": 12.0, "ms": 40.5}]}
    {"ok": false, "code": "exists", "reason": "there is already a file of that name"}

`gaps` are the longest times between two deliveries, the longest first; `at_ms` counts from the header. A sender reads
the answer while it writes: a refusal comes at any time, and what is unsent then stays unsent. Unknown keys are ignored.
"""

import heapq
import json
import unicodedata
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final, Self

from overlay.errors import OverlayError
from overlay.streams import Stream

PROTOCOL: Final = "file/1"
DIGEST_BYTES: Final = 32
MAX_HEADER_BYTES: Final = 4096
"""Enough for any name that a file system takes, even with each of its bytes escaped."""
MAX_ANSWER_BYTES: Final = 16 * 1024
MAX_NAME_BYTES: Final = 255
"""NAME_MAX of Linux, macOS and Windows alike."""
MAX_REASON_CHARACTERS: Final = 300
MAX_GAPS: Final = 32
MAX_TRANSPORTS: Final = 8
MAX_FILE_BYTES: Final = 2**63 - 1
"""What an `off_t` holds."""

# Line breaks of other scripts, and those that turn the direction of text: both make a listing lie.
_FORBIDDEN_CATEGORIES: Final = frozenset({"Cc", "Cs", "Zl", "Zp"})
_FORBIDDEN_CHARACTERS: Final = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


class Code(StrEnum):
    """Why a receiver refuses a file, for programs."""

    NAME = "name"
    """The name is not a plain file name."""
    EXISTS = "exists"
    """Something of that name is there already."""
    TOO_BIG = "too-big"
    """More bytes than the receiver, or its file system, takes."""
    DISK_FULL = "disk-full"
    BUSY = "busy"
    """Too many transfers at once, or it waits for another sender's end."""
    CHECKSUM = "checksum"
    """What arrived is not what the sender has hashed."""
    PROTOCOL = "protocol"
    """What came is not `file/1`."""
    FAILED = "failed"
    """The receiver's fault, such as a disk that cannot be written."""


class TransferError(OverlayError):
    """The peer does not speak `file/1`, or the file at its end is not the one at ours."""


class Refused(OverlayError):
    """The receiver does not take the file."""

    def __init__(self, code: str, reason: str) -> None:
        super().__init__(code, reason)
        self.code = code
        self.reason = reason

    def __str__(self) -> str:
        """The receiver's reason."""
        return self.reason

    def encode(self) -> bytes:
        """The answer that says so."""
        return _message({"ok": False, "code": self.code, "reason": self.reason[:MAX_REASON_CHARACTERS]})


@dataclass(frozen=True, slots=True)
class Header:
    """What a sender says about a file before its bytes."""

    name: str
    """As sent: `check_name` decides whether a file may be called that."""
    size: int | None
    """In bytes, or None when the sender does not know it yet."""

    def encode(self) -> bytes:
        """The first bytes of the stream."""
        return _message({"name": self.name, "size": self.size})

    @classmethod
    async def read(cls, stream: Stream) -> Self:
        """Read it. Cancellation loses nothing that was read before.

        Raises:
            TransferError: it is none.
            StreamError, SessionError: as for `Stream.readexactly`.
        """
        fields = await _read_message(stream, MAX_HEADER_BYTES, "header")
        name, size = fields.get("name"), fields.get("size")
        if not isinstance(name, str):
            raise TransferError("the header has no name")
        return cls(name, None if size is None else _count(size, "size"))


@dataclass(frozen=True, slots=True)
class Gap:
    """A time without a delivery at the receiver."""

    at_ms: float
    """When it began, in milliseconds after the header."""
    ms: float
    """How long it was."""


@dataclass(frozen=True, slots=True)
class Receipt:
    """What a receiver says about a file that it has for good."""

    size: int
    """In bytes."""
    sha256: str
    """64 lower-case hexadecimal digits."""
    seconds: float
    """From the header to the end."""
    gaps: tuple[Gap, ...] = ()
    """The longest ones, at most `MAX_GAPS`, the longest first."""
    bytes_by_transport: dict[str, int] | None = None
    """What the receiver's session has taken in since its last receipt, frames included."""

    def encode(self) -> bytes:
        """The answer that says so."""
        return _message(
            {
                "ok": True,
                "bytes": self.size,
                "sha256": self.sha256,
                "seconds": round(self.seconds, 3),
                "bytes_by_transport": self.bytes_by_transport or {},
                "gaps": [{"at_ms": round(gap.at_ms, 1), "ms": round(gap.ms, 1)} for gap in self.gaps],
            }
        )


async def read_answer(stream: Stream) -> Receipt:
    """Read the receiver's answer.

    Raises:
        Refused: with its reason.
        TransferError: it is no answer.
        StreamError, SessionError: as for `Stream.readexactly`.
    """
    fields = await _read_message(stream, MAX_ANSWER_BYTES, "answer")
    if fields.get("ok") is not True:
        raise Refused(_text(fields.get("code"), "code"), _text(fields.get("reason"), "reason"))
    traffic = fields.get("bytes_by_transport", {})
    gaps = fields.get("gaps", [])
    if not isinstance(traffic, dict) or len(traffic) > MAX_TRANSPORTS:
        raise TransferError("the answer's bytes_by_transport is no short table")
    if not isinstance(gaps, list) or len(gaps) > MAX_GAPS or not all(isinstance(gap, dict) for gap in gaps):
        raise TransferError("the answer's gaps are no short list")
    return Receipt(
        size=_count(fields.get("bytes"), "bytes"),
        sha256=_text(fields.get("sha256"), "sha256"),
        seconds=_number(fields.get("seconds"), "seconds"),
        gaps=tuple(Gap(_number(gap.get("at_ms"), "gaps"), _number(gap.get("ms"), "gaps")) for gap in gaps),
        bytes_by_transport={_text(name, "transport"): _count(value, "bytes") for name, value in traffic.items()},
    )


def check_name(name: str) -> None:
    """Refuse what is not a plain name of one visible file, before any system call sees it.

    A leading dot is refused, too: a stranger's `.profile` in a home directory would run at the next login.

    Raises:
        Refused: with code NAME and the reason.
    """
    if not name:
        raise Refused(Code.NAME, "the name is empty")
    if any(unicodedata.category(one) in _FORBIDDEN_CATEGORIES for one in name) or _FORBIDDEN_CHARACTERS & set(name):
        raise Refused(Code.NAME, "the name has control characters, or bytes that are no text")
    if "/" in name or "\\" in name:
        raise Refused(Code.NAME, "the name has a path in it")
    if name.startswith("."):
        raise Refused(Code.NAME, "the name starts with a dot")
    if len(name.encode()) > MAX_NAME_BYTES:
        raise Refused(Code.NAME, f"the name is longer than {MAX_NAME_BYTES} bytes")


class GapMeter:
    """Keeps the longest times between deliveries. All times in seconds of one clock.

    Args:
        began: when the header came.
    """

    def __init__(self, began: float) -> None:
        self._began = began
        self._last: float | None = None
        self._longest: list[tuple[float, float]] = []

    def delivered(self, now: float) -> None:
        """Some bytes came."""
        if self._last is not None:
            gap = (now - self._last, self._last - self._began)
            if len(self._longest) < MAX_GAPS:
                heapq.heappush(self._longest, gap)
            else:
                heapq.heappushpop(self._longest, gap)
        self._last = now

    @property
    def gaps(self) -> tuple[Gap, ...]:
        """The longest, the longest first."""
        return tuple(Gap(at_ms=1000 * at, ms=1000 * length) for length, at in sorted(self._longest, reverse=True))


def _message(fields: dict[str, Any]) -> bytes:
    data = json.dumps(fields).encode()
    return len(data).to_bytes(4) + data


async def _read_message(stream: Stream, limit: int, what: str) -> dict[str, Any]:
    size = int.from_bytes(await stream.readexactly(4))
    if size > limit:
        raise TransferError(f"the {what} has {size} bytes, more than {limit}")
    try:
        fields = json.loads(await stream.readexactly(size))
    except (ValueError, RecursionError) as error:
        raise TransferError(f"the {what} is no JSON") from error
    if not isinstance(fields, dict):
        raise TransferError(f"the {what} is no JSON object")
    return fields


def _count(value: Any, what: str) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= MAX_FILE_BYTES:
        raise TransferError(f"{what} is no count of bytes")
    return value


def _number(value: Any, what: str) -> float:
    # Also refuses NaN, the infinities, and integers that are too long for a float: Python reads them all as JSON.
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 2**63:
        raise TransferError(f"{what} is no number")
    return float(value)


def _text(value: Any, what: str) -> str:
    if not isinstance(value, str) or len(value) > MAX_REASON_CHARACTERS:
        raise TransferError(f"{what} is no short text")
    return value
