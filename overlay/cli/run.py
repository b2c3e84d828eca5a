"""`overlay run`: a long-lived endpoint with a config file and an address book."""

import asyncio
import errno
import signal
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing, asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from overlay.addresses import Ticket
from overlay.cli.control import ControlServer
from overlay.cli.control_place import claim
from overlay.cli.example import example
from overlay.cli.options import (
    RUN_LISTEN,
    RUN_PORT,
    IdentityFile,
    RunListen,
    Transports,
    default_book,
    default_identity,
    make_config,
)
from overlay.cli.output import ExitCode, emit, out, say, stderr_console
from overlay.cli.reports import event_document, event_text
from overlay.cli.running import run
from overlay.cli.settings import PeerSetting, Settings, read_settings
from overlay.config import Config
from overlay.endpoint import Endpoint
from overlay.errors import OverlayError
from overlay.events import Event
from overlay.identity import Identity

EPILOG = f"""Examples: `overlay run --print-config > overlay.toml`, then `overlay run --config overlay.toml`

It listens on port {RUN_PORT}, UDP and TCP, so that its ticket stays good over restarts; `--listen HOST:PORT` says
another one.

`overlay peers` shows what it does, `overlay peers add TICKET` makes it stay connected to somebody.

SIGHUP makes it try everything now. SIGINT and SIGTERM end it in order, with exit code 130: in a unit of systemd,
`SuccessExitStatus=130`."""


class PortTaken(OverlayError):
    """Somebody else listens where we are to listen. The text says what to do."""


@dataclass(frozen=True, slots=True)
class RunOptions:
    """The command line and the config file of `run`."""

    identity: Identity
    config: Config
    """Its `book_path` included."""
    book: Path
    peers: tuple[PeerSetting, ...]
    json: bool


def _print_example(value: bool) -> None:
    if value:
        out(example().rstrip("\n"))
        raise typer.Exit


def run_(
    config: Annotated[Path | None, typer.Option("--config", metavar="FILE", help="Settings, in TOML.")] = None,
    book: Annotated[
        Path | None,
        typer.Option("--book", metavar="PATH", help="What is known of peers is kept there; beside our key by default."),
    ] = None,
    identity: IdentityFile = None,
    listen: RunListen = None,
    transport: Transports = None,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON document per line: ready, then events.")] = False,
    example_: Annotated[
        bool,
        typer.Option(
            "--print-config", callback=_print_example, is_eager=True, help="Print a config file to start from."
        ),
    ] = False,
) -> NoReturn:
    """Be there for peers until stopped: print a ticket, stay connected to those of the book, tell what happens.

    What the command line says goes before what the config file says.
    """
    del example_
    settings = Settings({}) if config is None else read_settings(config)
    place = book or settings.book or default_book()
    options = RunOptions(
        identity=Identity.load_or_create(identity or settings.identity or default_identity()),
        config=make_config(listen, transport, **({"listen": RUN_LISTEN} | settings.config), book_path=place),
        book=place,
        peers=settings.peers,
        json=json,
    )
    raise typer.Exit(run(run_endpoint(options), document=json))


async def run_endpoint(options: RunOptions) -> int:
    """Run the command, until cancelled.

    Raises:
        ControlError: another process runs with this book, or the control socket cannot be made.
        PortTaken: somebody else has our port.
        OverlayError, OSError: as on entering an endpoint.
    """
    # First of all: two with one book are told so before either of them touches the network.
    with claim(options.book) as socket:
        # Events from before the first dial, so that nothing is missed.
        async with _entered(options) as endpoint, aclosing(endpoint.events()) as events:
            _meet(endpoint, options.peers)
            async with ControlServer(endpoint, socket):
                with _kicked_by_hangup(endpoint):
                    _announce(str(endpoint.ticket), options)
                    await _report(events, endpoint, json=options.json)
    return ExitCode.DONE


@asynccontextmanager
async def _entered(options: RunOptions) -> AsyncIterator[Endpoint]:
    endpoint = Endpoint(options.identity, options.config)
    try:
        await endpoint.__aenter__()
    except OSError as error:
        if error.errno != errno.EADDRINUSE:
            raise
        cure = "give another one with `--listen HOST:PORT`, or 0 as the port for any free one"
        raise PortTaken(f"{error.strerror}: {cure}") from error
    try:
        yield endpoint
    finally:
        await endpoint.aclose()


def _meet(endpoint: Endpoint, peers: tuple[PeerSetting, ...]) -> None:
    """Take over the peers of the config file, but for those that somebody has blocked since it was written."""
    blocked = {peer.peer_id for peer in endpoint.peers() if peer.blocked}
    for peer in peers:
        peer_id = peer.target.peer_id if isinstance(peer.target, Ticket) else peer.target
        if peer_id in blocked:
            say(stderr_console(), f"{peer_id} stays blocked, although the config file names it: overlay peers unblock")
            continue
        endpoint.keep(peer.target, name=peer.name or None)
        if not peer.keep:
            endpoint.release(peer_id)


@contextmanager
def _kicked_by_hangup(endpoint: Endpoint) -> Iterator[None]:
    """SIGHUP, by which daemons are told to look again, makes every dial due."""
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGHUP, endpoint.kick)
    try:
        yield
    finally:
        loop.remove_signal_handler(signal.SIGHUP)
        # Without a handler it would kill us in the middle of closing.
        signal.signal(signal.SIGHUP, signal.SIG_IGN)


def _announce(ticket: str, options: RunOptions) -> None:
    if options.json:
        place = str(options.book.absolute())
        emit({"event": "ready", "ticket": ticket, "peer_id": str(options.identity.peer_id), "book": place})
        return
    out(ticket)
    if sys.stdout.isatty():
        say(stderr_console(), "Above is our ticket; `overlay peers` shows our peers; Ctrl-C stops.")


async def _report(events: AsyncIterator[Event], endpoint: Endpoint, *, json: bool) -> None:
    """One line for each event."""
    console = stderr_console()
    async for event in events:
        if json:
            emit(event_document(event))
        else:
            say(console, event_text(event, endpoint.book.name(event.peer_id)))
