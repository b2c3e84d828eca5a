"""`overlay demo`: two processes on this machine, a file by key, and UDP dropped in the middle of it."""

import asyncio
import hashlib
import json
import os
import secrets
import signal
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from rich.console import Console
from rich.table import Table

from overlay.addresses import Ticket
from overlay.cli.output import STALL_MS, ExitCode, emit, fail, say, size_text, stalls, stderr_console
from overlay.cli.progress import Progress, watch_paths
from overlay.cli.running import background
from overlay.cli.send import send_file
from overlay.cli.sources import Item
from overlay.cli.transfer import Receipt
from overlay.cli.weather import WANTED, DemoFailed, Phase, Record, Weather
from overlay.config import Config
from overlay.endpoint import Endpoint
from overlay.identity import Identity

LISTEN: Final = "127.0.0.1:0"
FILE_NAME: Final = "demo.bin"
MIN_SIZE: Final = 3 * 2**20
"""Below, the buffers on the way hold most of a phase's bytes."""
CHILD_TIMEOUT: Final = 30.0
"""Seconds for the receiver's start, its last words and its end."""
BLOCK_BYTES: Final = 2**20

SAYS: Final = {
    Phase.OPEN: "UDP works",
    Phase.BLOCKED: "UDP dropped",
    Phase.RESTORED: "UDP works again",
}


@dataclass(frozen=True, slots=True)
class DemoOptions:
    """The command line of `demo`."""

    identity: Identity
    size: int
    rate: int
    """Bytes per second."""
    json: bool


@dataclass(frozen=True, slots=True)
class Result:
    """What the demo has seen."""

    receipt: Receipt
    sent_sha256: str
    received_sha256: str
    """Of the file in the receiver's directory, read again."""
    seconds: float
    records: list[Record]

    @property
    def ok(self) -> bool:
        """Whether it shows what it is to show."""
        return self.sent_sha256 == self.received_sha256 and all(one.carried for one in self.records)


async def demo(options: DemoOptions) -> int:
    """Run the command.

    Raises:
        DemoFailed: a process or a path did not come up. OverlayError, OSError: as for `send`.
    """
    console = stderr_console()
    with tempfile.TemporaryDirectory(prefix="overlay-demo-") as name:
        directory = Path(name)
        digest = await asyncio.to_thread(_make_file, directory / FILE_NAME, options.size)
        async with _receiver(directory, options.identity) as (child, ticket):
            if not options.json:
                say(console, f"receiver: process {child.pid}, key {ticket.peer_id}, at {ticket.addresses[0]}")
                rate = f"{size_text(options.rate)}/s"
                say(console, f"sender:   process {os.getpid()}, {size_text(options.size)} at {rate}")
            result = await _transfer(options, console, child, directory, ticket, digest)
    _report(options, console, result)
    if result.sent_sha256 != result.received_sha256:
        fail("the file that was received is not the one that was sent")
    for record in result.records:
        if not record.carried:
            fail(f"while {SAYS[record.phase]}, {WANTED[record.phase]} carried nothing")
    return ExitCode.DONE if result.ok else ExitCode.OTHER


async def _transfer(
    options: DemoOptions,
    console: Console,
    child: asyncio.subprocess.Process,
    directory: Path,
    ticket: Ticket,
    digest: str,
) -> Result:
    item = Item(str(directory / FILE_NAME), FILE_NAME)
    config = Config(listen=(LISTEN,), accept={ticket.peer_id})
    async with Endpoint(options.identity, config) as endpoint, endpoint.connect(ticket) as session:
        weather = Weather(endpoint, session, options.size, options.rate)
        notes = None if options.json else console
        began = time.monotonic()
        with Progress(console, session) as progress, item.open() as source:
            async with background(watch_paths(endpoint, notes, weather.path_changed)):
                with progress.file(FILE_NAME, options.size) as advance:
                    receipt = await send_file(session, item, source, weather, advance)
        seconds = time.monotonic() - began
        weather.finish(receipt.gaps)
    try:
        async with asyncio.timeout(CHILD_TIMEOUT):
            await child.wait()
    except TimeoutError:
        raise DemoFailed("the receiving process did not end in time") from None
    received = await asyncio.to_thread(_hash_file, directory / "inbox" / FILE_NAME)
    return Result(receipt, digest, received, seconds, weather.records)


@asynccontextmanager
async def _receiver(directory: Path, sender: Identity) -> AsyncIterator[tuple[asyncio.subprocess.Process, Ticket]]:
    """Start the receiving process, and end it with the body."""
    inbox = directory / "inbox"
    inbox.mkdir()
    # fmt: off
    command = (
        sys.executable, "-m", "overlay.cli", "receive", str(inbox), "--listen", LISTEN, "--json", "--once",
        "--identity", str(directory / "receiver.pem"), "--from", str(sender.peer_id), "--until-stdin-ends",
    )
    # fmt: on
    errors = directory / "receiver.log"
    with errors.open("wb") as log:
        # A session of its own: Ctrl-C is for us, and we end it. If we are killed, its standard input ends.
        child = await asyncio.create_subprocess_exec(
            *command, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=log, start_new_session=True
        )
    try:
        ready = await _ready(child, errors)
        yield child, Ticket.parse(ready["ticket"])
    finally:
        if child.returncode is None:
            child.send_signal(signal.SIGTERM)
            try:
                async with asyncio.timeout(CHILD_TIMEOUT):
                    await child.wait()
            finally:
                if child.returncode is None:
                    child.kill()
                    await child.wait()


async def _ready(child: asyncio.subprocess.Process, errors: Path) -> dict[str, Any]:
    assert child.stdout is not None  # noqa: S101 - it was asked for
    try:
        async with asyncio.timeout(CHILD_TIMEOUT):
            line = await child.stdout.readline()
    except TimeoutError:
        raise DemoFailed("the receiving process did not start in time") from None
    if not line:
        raise DemoFailed(f"the receiving process did not start: {await asyncio.to_thread(errors.read_text)}")
    ready: dict[str, Any] = json.loads(line)
    return ready


def _make_file(path: Path, size: int) -> str:
    """Random bytes: whatever is lost, repeated or swapped shows."""
    digest = hashlib.sha256()
    with path.open("wb") as file:
        for start in range(0, size, BLOCK_BYTES):
            block = secrets.token_bytes(min(BLOCK_BYTES, size - start))
            digest.update(block)
            file.write(block)
    return digest.hexdigest()


def _hash_file(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _report(options: DemoOptions, console: Console, result: Result) -> None:
    receipt = result.receipt
    received = receipt.bytes_by_transport or {}
    if options.json:
        emit(
            {
                "ok": result.ok,
                "files": [{"name": FILE_NAME, "bytes": receipt.size, "sha256": result.received_sha256}],
                "sha256": {"sent": result.sent_sha256, "received": result.received_sha256},
                "bytes_by_transport": received,
                "stalls_ms": stalls(receipt.gaps),
                "seconds": round(result.seconds, 3),
                "phases": [
                    {
                        "udp": record.phase.value,
                        "bytes_by_transport": record.traffic,
                        "carried": record.carried,
                        "stall_ms": round(record.stall_ms, 1),
                        "seconds": round(record.ended - record.began, 3),
                    }
                    for record in result.records
                ],
            }
        )
        return
    names = [name for name in ("quic", "udp", "tcp") if name in received]
    table = Table(title=f"{size_text(receipt.size)} in {result.seconds:.1f} s, by key")
    for title in ("", *names, "longest stall"):
        table.add_column(title, justify="right" if title else "left", no_wrap=True)
    for record in result.records:
        bytes_ = [size_text(record.traffic.get(name, 0)) for name in names]
        table.add_row(f"sent while {SAYS[record.phase]}", *bytes_, _stall_text(record.stall_ms))
    longest = max((gap.ms for gap in receipt.gaps), default=0.0)
    totals = [size_text(received[name]) for name in names]
    table.add_row("received in all", *totals, _stall_text(longest), style="bold")
    out = Console(highlight=False)
    out.print(table)
    out.print(f"SHA-256 sent      {result.sent_sha256}", soft_wrap=True)
    out.print(f"SHA-256 received  {result.received_sha256}", soft_wrap=True)
    verdict = "Not one byte was lost." if result.ok else "The demo failed."
    out.print(verdict, style="bold green" if result.ok else "bold red")
    del console


def _stall_text(milliseconds: float) -> str:
    return f"{milliseconds:.0f} ms" if milliseconds >= STALL_MS else "none"
