"""`overlay receive`: print a ticket, take files until stopped."""

import asyncio
import os
import signal
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from weakref import WeakKeyDictionary

from rich.console import Console

from overlay.cli.inbox import Inbox, IncomingFile
from overlay.cli.output import ExitCode, clean, emit, exit_code, out, say, size_text, stalls, stderr_console
from overlay.cli.transfer import DIGEST_BYTES, PROTOCOL, Code, GapMeter, Header, Receipt, Refused, TransferError
from overlay.config import Config
from overlay.endpoint import Endpoint
from overlay.errors import SessionError, StreamError
from overlay.identity import Identity
from overlay.session import Session
from overlay.streams import Stream

HEADER_TIMEOUT: Final = 60.0
"""Seconds for a new stream's header: longer than a path takes to be replaced."""
READ_BYTES: Final = 256 * 1024


@dataclass(frozen=True, slots=True)
class ReceiveOptions:
    """The command line of `receive`."""

    directory: Path
    identity: Identity
    config: Config
    max_size: int | None
    once: bool
    json: bool
    until_stdin_ends: bool = False
    """For a parent process: end as if interrupted when nobody holds the other end of our standard input."""


async def receive(options: ReceiveOptions) -> int:
    """Run the command.

    Raises:
        UsageError: the directory cannot be used. OverlayError, OSError: as on entering an endpoint.
    """
    if options.until_stdin_ends:
        threading.Thread(target=_interrupt_at_end_of_input, name="overlay-parent", daemon=True).start()
    with Inbox(options.directory, options.max_size) as inbox:
        async with Endpoint(options.identity, options.config) as endpoint:
            receiver = Receiver(inbox, once=options.once, json=options.json)
            endpoint.handle(PROTOCOL, receiver.handle)
            _announce(str(endpoint.ticket), options, receiver.console)
            if not options.once:
                # Until a signal cancels this task.
                await receiver.broken
            return await receiver.first_sender_done()


class Receiver:
    """Serves `file/1`.

    Args:
        inbox: where the files go.
        once: take the files of one session only, and refuse those of others.
        json: report on standard output in JSON, otherwise on standard error in words.
    """

    def __init__(self, inbox: Inbox, *, once: bool, json: bool) -> None:
        self.console: Console = stderr_console()
        self.broken: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        """Fails when nobody reads our reports any more."""
        self._inbox = inbox
        self._json = json
        self._once = once
        self._worst = ExitCode.DONE
        self._active = 0
        self._counted: WeakKeyDictionary[Session, dict[str, int]] = WeakKeyDictionary()
        self._idle = asyncio.Event()
        self._first: asyncio.Future[Session] = asyncio.get_running_loop().create_future()

    async def first_sender_done(self) -> int:
        """Wait for the end of the first session that brings a file; the exit code: 0 if all of its files are here.

        Cancellation is harmless.
        """
        session = await self._first
        await session.wait_closed()
        # The handlers of its streams notice the end in their own turn.
        await self._idle.wait()
        return await self.broken if self.broken.done() else self._worst

    async def handle(self, stream: Stream) -> None:
        """Receive one file: the handler of `file/1` streams."""
        ours = self._claim(stream.session)
        self._active += ours
        if ours:
            self._idle.clear()
        try:
            await self._handle(stream, ours=ours)
        except BrokenPipeError as error:
            if not self.broken.done():
                self.broken.set_exception(error)
        finally:
            self._active -= ours
            if not self._active:
                self._idle.set()

    def _claim(self, session: Session) -> bool:
        if not self._once:
            return True
        if not self._first.done():
            self._first.set_result(session)
        return self._first.result() is session

    async def _handle(self, stream: Stream, *, ours: bool) -> None:
        name = ""
        try:
            try:
                async with asyncio.timeout(HEADER_TIMEOUT):
                    header = await Header.read(stream)
            except TimeoutError as error:
                raise TransferError("no header came in time") from error
            name = header.name
            receipt = await self._receive(stream, header, ours=ours)
        except (Refused, TransferError) as error:
            refusal = error if isinstance(error, Refused) else Refused(Code.PROTOCOL, str(error))
            self._refused(stream, name, refusal, ours=ours)
            await stream.write(refusal.encode())
        except (StreamError, SessionError) as error:
            self._lost(stream, name, error, ours=ours)
            raise
        else:
            self._received(stream, name, receipt)
            await stream.write(receipt.encode())

    async def _receive(self, stream: Stream, header: Header, *, ours: bool) -> Receipt:
        if not ours:
            raise Refused(Code.BUSY, "this receiver takes the files of one sender only, and has one")
        began = time.monotonic()
        meter = GapMeter(began)
        with self._inbox.receive(header) as incoming:
            digest = await _write(stream, incoming, meter)
            # A thread, because the disk may take seconds; shielded, because the descriptor must outlive it.
            await _finish(asyncio.create_task(asyncio.to_thread(incoming.publish, digest)))
            return Receipt(
                size=incoming.size,
                sha256=digest.hex(),
                seconds=time.monotonic() - began,
                gaps=meter.gaps,
                bytes_by_transport=self._traffic_since(stream.session),
            )

    def _traffic_since(self, session: Session) -> dict[str, int]:
        """Bytes that the session has received since the last call, or since its beginning."""
        before = self._counted.get(session, {})
        after = self._counted[session] = {name: received for name, (_, received) in session.traffic.items()}
        return {name: count - before.get(name, 0) for name, count in after.items()}

    def _received(self, stream: Stream, name: str, receipt: Receipt) -> None:
        sender = stream.session.peer_id
        if self._json:
            emit(
                {
                    "event": "received",
                    "name": name,
                    "bytes": receipt.size,
                    "sha256": receipt.sha256,
                    "from": str(sender),
                    "seconds": round(receipt.seconds, 3),
                    "bytes_by_transport": receipt.bytes_by_transport,
                    "stalls_ms": stalls(receipt.gaps),
                }
            )
            return
        rate = size_text(receipt.size / max(receipt.seconds, 1e-6))
        say(self.console, f"received {name}: {size_text(receipt.size)} from {sender.short}, {rate}/s")

    def _refused(self, stream: Stream, name: str, refusal: Refused, *, ours: bool) -> None:
        self._note(ExitCode.REFUSED if ours else ExitCode.DONE)
        sender = stream.session.peer_id
        if self._json:
            document = {"name": clean(name), "code": refusal.code, "reason": refusal.reason, "from": str(sender)}
            emit({"event": "refused", **document})
        else:
            say(self.console, f"refused {name or 'a file'} from {sender.short}: {refusal.reason}")

    def _lost(self, stream: Stream, name: str, error: StreamError | SessionError, *, ours: bool) -> None:
        self._note(exit_code(error) if ours else ExitCode.DONE)
        sender = stream.session.peer_id
        if self._json:
            emit({"event": "lost", "name": clean(name), "reason": clean(str(error)), "from": str(sender)})
        else:
            say(self.console, f"lost {name or 'a file'} from {sender.short}: {error}")

    def _note(self, code: ExitCode) -> None:
        self._worst = self._worst or code


def _interrupt_at_end_of_input() -> None:
    while os.read(sys.stdin.fileno(), 4096):
        pass
    os.kill(os.getpid(), signal.SIGTERM)


def _announce(ticket: str, options: ReceiveOptions, console: Console) -> None:
    if options.json:
        peer_id = str(options.identity.peer_id)
        emit({"event": "ready", "ticket": ticket, "peer_id": peer_id, "directory": str(options.directory.absolute())})
        return
    if sys.stdout.isatty():
        say(console, f"Receiving into {options.directory.absolute()}; Ctrl-C stops. To send a file here:")
        out(f"\n  overlay send FILE {ticket}\n")
    else:
        out(ticket)


async def _write(stream: Stream, incoming: IncomingFile, meter: GapMeter) -> bytes:
    """Write all but the last 32 bytes of the stream to the file; those are returned."""
    tail = b""
    while chunk := await stream.read(READ_BYTES):
        meter.delivered(time.monotonic())
        if len(chunk) < DIGEST_BYTES:
            chunk, tail = tail + chunk, b""
        incoming.write(tail)
        incoming.write(memoryview(chunk)[:-DIGEST_BYTES])
        tail = chunk[-DIGEST_BYTES:]
    if len(tail) < DIGEST_BYTES:
        raise TransferError("the stream ended before the digest")
    return tail


async def _finish(task: "asyncio.Task[None]") -> None:
    """Wait for a task that cannot be cancelled, also when we are."""
    try:
        await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait([task])
        # It may have been a refusal; there is nobody left to tell.
        task.exception()
        raise
