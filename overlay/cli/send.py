"""`overlay send`: bring files to a key."""

import asyncio
import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, Protocol

from overlay.addresses import Ticket
from overlay.cli.output import ExitCode, emit, fail, path_document, say, size_text, stalls, stderr_console
from overlay.cli.progress import Progress, watch_paths
from overlay.cli.running import background
from overlay.cli.sources import Item, Source
from overlay.cli.transfer import PROTOCOL, Receipt, Refused, TransferError, read_answer
from overlay.config import Config
from overlay.endpoint import Endpoint
from overlay.errors import StreamStopped
from overlay.events import Event, PathChanged
from overlay.identity import Identity
from overlay.session import Session
from overlay.streams import Stream

CHUNK_BYTES: Final = 256 * 1024
PACED_SECONDS: Final = 0.02
"""With a limit, a chunk is what fits into so long: pauses that nobody sees, sleeps that the loop still hits."""
MIN_CHUNK_BYTES: Final = 1024
BURST_SECONDS: Final = 0.1
"""How much of the time that was lost to a stall may be made up for at once."""
ANSWER_TIMEOUT: Final = 600.0
"""Seconds for the receiver's answer after the last byte is delivered: a slow disk has to store the file first."""
REFUSAL_TIMEOUT: Final = 10.0
"""Seconds for the reason, after the receiver has stopped reading."""


@dataclass(frozen=True, slots=True)
class SendOptions:
    """The command line of `send`."""

    items: list[Item]
    ticket: Ticket
    identity: Identity
    config: Config
    limit_rate: int | None
    """Bytes per second."""
    json: bool


class Pacer(Protocol):
    """Decides when the next bytes may go."""

    chunk: int
    """How many at a time."""

    async def wait(self, count: int) -> None:
        """Wait until `count` more bytes may go."""


class Pace:
    """At most `rate` bytes per second; None: as fast as it goes."""

    def __init__(self, rate: float | None) -> None:
        self.rate = rate
        self.chunk = CHUNK_BYTES
        if rate is not None:
            self.chunk = max(MIN_CHUNK_BYTES, min(CHUNK_BYTES, int(rate * PACED_SECONDS)))
        self._free_at = 0.0

    async def wait(self, count: int) -> None:
        """See `Pacer`."""
        if self.rate is None:
            return
        now = asyncio.get_running_loop().time()
        self._free_at = max(self._free_at, now - BURST_SECONDS)
        if self._free_at > now:
            await asyncio.sleep(self._free_at - now)
        self._free_at += count / self.rate


async def send(options: SendOptions) -> int:
    """Run the command.

    Raises:
        DialError: nobody, or somebody else, answers. SessionError: the connection was lost for good.
        TransferError: the receiver is no receiver, or has got something else than what was sent.
        OSError: a file cannot be read.
    """
    loop = asyncio.get_running_loop()
    console = stderr_console()
    done: list[tuple[Item, Receipt]] = []
    refused: list[tuple[Item, Refused]] = []
    paths: list[dict[str, Any]] = []
    dialled = loop.time()

    def changed(event: Event) -> None:
        if isinstance(event, PathChanged):
            paths.append({"at_ms": round(1000 * (loop.time() - dialled), 1)} | path_document(event.path))

    async with Endpoint(options.identity, options.config) as endpoint:
        session = await endpoint.connect(options.ticket)
        began = loop.time()
        pace = Pace(options.limit_rate)
        for path in session.paths[:1]:
            changed(PathChanged(session.peer_id, path))
            if not options.json:
                say(console, f"connected to {session.peer_id.short} over {path}: {path.origin}")
        with Progress(console, session) as progress:
            notes = None if options.json else console
            async with background(watch_paths(endpoint, notes, changed)):
                for item in options.items:
                    try:
                        with item.open() as source, progress.file(item.name, source.size) as advance:
                            done.append((item, await send_file(session, item, source, pace, advance)))
                    except Refused as error:
                        refused.append((item, error))
        seconds = loop.time() - began
        traffic = {name: sent for name, (sent, _) in session.traffic.items()}
        await session.aclose()
    for item, refusal in refused:
        fail(f"the receiver refused {item.name} ({refusal.code}): {refusal.reason}")
    if options.json:
        emit(
            {
                "files": [{"name": item.name, "bytes": one.size, "sha256": one.sha256} for item, one in done],
                "refused": [{"name": item.name, "code": one.code, "reason": one.reason} for item, one in refused],
                "bytes_by_transport": traffic,
                "paths": paths,
                "stalls_ms": sorted((ms for _, one in done for ms in stalls(one.gaps)), reverse=True),
                "seconds": round(seconds, 3),
            }
        )
    elif done:
        total = sum(one.size for _, one in done)
        what = done[0][0].name if len(done) == 1 else f"{len(done)} files"
        rate = size_text(total / max(seconds, 1e-6))
        transports = " and ".join(name for name, sent in traffic.items() if sent)
        say(
            console, f"sent {what}: {size_text(total)} in {seconds:.1f} s over {transports}, {rate}/s, SHA-256 verified"
        )
    return ExitCode.REFUSED if refused else ExitCode.DONE


async def send_file(
    session: Session, item: Item, source: Source, pacer: Pacer, advance: Callable[[int], None]
) -> Receipt:
    """Send one file, and compare the receiver's digest with ours.

    Cancellation resets the stream: the receiver then drops what it has.

    Args:
        session: with the receiver.
        item: the file.
        source: its bytes.
        pacer: when they may go.
        advance: told how many have been handed over, piece by piece.

    Raises:
        Refused: the receiver does not take it.
        TransferError: the receiver has got something else, does not speak `file/1`, or the file shrank.
        StreamError, SessionError, OSError: the transfer broke.
    """
    async with await session.open_stream(PROTOCOL) as stream:
        upload = asyncio.create_task(_upload(stream, item, source, pacer, advance))
        answer = asyncio.create_task(read_answer(stream))
        try:
            # Whoever is first: an answer before the end is a refusal, and the rest need not be sent.
            await asyncio.wait((upload, answer), return_when=asyncio.FIRST_COMPLETED)
            if not answer.done():
                await _join(upload, answer)
            receipt = answer.result()
            if not upload.done():
                raise TransferError("the receiver answered before it had the file")
            digest = upload.result()
        finally:
            for task in (upload, answer):
                task.cancel()
            await asyncio.wait((upload, answer))
            for task in (upload, answer):
                if not task.cancelled():
                    # What broke the connection breaks both; one of them has been raised.
                    task.exception()
    if receipt.sha256 != digest:
        raise TransferError(f"the receiver has got something else: its SHA-256 of {item.name} differs from ours")
    return receipt


async def _join(upload: "asyncio.Task[str]", answer: "asyncio.Task[Receipt]") -> None:
    """The upload has ended, one way or the other: wait for the answer."""
    error = upload.exception()
    if error is not None and not isinstance(error, StreamStopped):
        raise error
    timeout = ANSWER_TIMEOUT if error is None else REFUSAL_TIMEOUT
    await asyncio.wait((answer,), timeout=timeout)
    if not answer.done():
        raise error or TransferError(f"the receiver did not answer within {timeout:.0f} s")


async def _upload(stream: Stream, item: Item, source: Source, pacer: Pacer, advance: Callable[[int], None]) -> str:
    """Write header, bytes and digest; the digest."""
    digest = hashlib.sha256()
    await stream.write(item.header(source).encode())
    while data := await source.read(pacer.chunk):
        await pacer.wait(len(data))
        digest.update(data)
        await stream.write(data)
        advance(len(data))
    await stream.write(digest.digest())
    await stream.write_eof()
    return digest.hexdigest()
