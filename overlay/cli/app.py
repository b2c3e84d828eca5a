"""The command line itself: commands, their options, their help."""

import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Final, NoReturn

import typer

from overlay import __version__
from overlay.addresses import Ticket
from overlay.cli.demo import MIN_SIZE, DemoOptions, demo
from overlay.cli.options import (
    IdentityFile,
    Json,
    Listen,
    Resume,
    TicketText,
    Timeout,
    Transports,
    default_identity,
    fresh_identity,
    make_config,
)
from overlay.cli.output import ExitCode, UsageError, emit, exit_code, fail, out, parse_size, size_text
from overlay.cli.peers import app as peers_app
from overlay.cli.ping import PingOptions, ping
from overlay.cli.receive import ReceiveOptions, receive
from overlay.cli.run import EPILOG as RUN_EPILOG
from overlay.cli.run import run_
from overlay.cli.running import end_unread, open_standard_streams, run
from overlay.cli.send import SendOptions, send
from overlay.cli.sources import items
from overlay.cli.warnings import show_warnings
from overlay.config import Config
from overlay.errors import OverlayError
from overlay.identity import Identity, PeerId

EXIT_CODES: Final = """Exit codes: 0 done; 1 other failure; 2 wrong usage; 3 unreachable; 4 somebody else answers
(wrong identity); 5 lost after it was connected; 6 refused by the other side; 130 interrupted."""

# Typer brings its own copy of click; the base of its usage errors has no public name there.
_CLICK_ERROR: Final[type[BaseException]] = typer.BadParameter.__mro__[2]

app = typer.Typer(
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run `overlay`; the exit code.

    Args:
        arguments: without the program's name; those of the process by default.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    open_standard_streams()
    try:
        code = app(given or ["--help"], prog_name="overlay", standalone_mode=False)
    except KeyboardInterrupt:
        return ExitCode.INTERRUPTED
    except BrokenPipeError:
        return end_unread()
    except (OverlayError, UsageError, OSError) as error:
        fail(error)
        return exit_code(error)
    except _CLICK_ERROR as error:
        message: Any = error
        fail(message.format_message())
        return ExitCode.USAGE
    return int(code or 0) if given else ExitCode.USAGE


def _print_version(value: bool) -> None:
    if value:
        out(f"overlay {__version__}")
        raise typer.Exit


@app.callback(epilog=EXIT_CODES)
def overlay(
    verbose: Annotated[
        int, typer.Option("-v", "--verbose", count=True, help="Log to standard error, not warnings alone; twice: more.")
    ] = 0,
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Send files to a key instead of an address, over QUIC, UDP or TCP, whatever works, even if it breaks on the way.

    On one machine: `overlay receive`. It prints a ticket. On the other one: `overlay send FILE TICKET`.

    To see it survive the loss of UDP, on this machine alone: `overlay demo`.

    To be there for peers all the time: `overlay run`, and `overlay peers` to see and change whom it talks to.
    """
    del version
    logger = logging.getLogger("overlay")
    if verbose:
        logging.basicConfig(format="%(relativeCreated)7d %(levelname)s %(message)s")
        logger.setLevel(logging.DEBUG if verbose > 1 else logging.INFO)
    else:
        show_warnings(logger)


@app.command("id", epilog="Example: `overlay id --identity work.pem`")
def id_(identity: IdentityFile = None, json: Json = False) -> None:
    """Print the key under which `overlay receive` is reached; it is made if there is none."""
    ours = Identity.load_or_create(identity or default_identity())
    if json:
        emit({"peer_id": str(ours.peer_id), "identity": str(ours.path)})
    else:
        out(str(ours.peer_id))


@app.command(
    "receive",
    epilog="""Examples: `overlay receive ~/Downloads` takes files until Ctrl-C.

    `overlay receive --once --from PEERID --max-size 2G` takes what one `overlay send` of that key brings.

    `overlay receive --listen 0.0.0.0:9330` uses a port that a firewall lets through.""",
)
def receive_(
    directory: Annotated[Path, typer.Argument(metavar="[DIR]", help="Where the files go.")] = Path(),
    identity: IdentityFile = None,
    listen: Listen = None,
    transport: Transports = None,
    once: Annotated[bool, typer.Option("--once", help="End after one `send` command.")] = False,
    allowed: Annotated[
        list[str] | None, typer.Option("--from", metavar="PEERID", help="Take files of this key only. Repeatable.")
    ] = None,
    max_size: Annotated[
        int | None,
        typer.Option("--max-size", metavar="SIZE", parser=parse_size, help="Refuse larger files: 10M, 1.5G."),
    ] = None,
    resume_timeout: Resume = 120.0,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON document per line: ready, received.")] = False,
    until_stdin_ends: Annotated[bool, typer.Option("--until-stdin-ends", hidden=True)] = False,
) -> NoReturn:
    """Print a ticket, and take the files that are sent to it.

    Files are checked by SHA-256 and never overwrite anything.
    """
    peers = frozenset(map(PeerId.parse, allowed or ()))
    options = ReceiveOptions(
        directory=directory,
        identity=Identity.load_or_create(identity or default_identity()),
        config=make_config(listen, transport, accept=peers or "all", resume_timeout=resume_timeout),
        max_size=max_size,
        once=once,
        json=json,
        until_stdin_ends=until_stdin_ends,
    )
    raise typer.Exit(run(receive(options), document=json))


@app.command(
    "send",
    epilog="""Examples: `overlay send a.jpg b.jpg overlay:abc...@198.51.100.7:9330`

    `tar c DIR | overlay send - --name dir.tar TICKET`

    `overlay send --limit-rate 2M big.iso TICKET` leaves room for others.""",
)
def send_(
    files: Annotated[list[str], typer.Argument(metavar="FILE...", help="What to send; - is standard input.")],
    ticket: TicketText,
    identity: IdentityFile = None,
    listen: Listen = None,
    transport: Transports = None,
    timeout: Timeout = 30.0,
    resume_timeout: Resume = 120.0,
    limit_rate: Annotated[
        int | None,
        typer.Option("--limit-rate", metavar="SIZE", parser=parse_size, help="Bytes per second: 500K, 16M."),
    ] = None,
    name: Annotated[str | None, typer.Option("--name", help="What the receiver is to call it.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON document at the end.")] = False,
) -> NoReturn:
    """Send files to whoever printed the ticket, and to nobody else.

    The receiver's SHA-256 is compared with ours.
    """
    if any(file.startswith("overlay:") for file in files) and not ticket.startswith("overlay:"):
        raise UsageError("the ticket goes last: overlay send FILE... TICKET")
    target = Ticket.parse(ticket)
    config = _dialling(target, listen, transport, timeout, resume_timeout)
    options = SendOptions(
        items=items(files, name),
        ticket=target,
        identity=fresh_identity(identity),
        config=config,
        limit_rate=limit_rate,
        json=json,
    )
    raise typer.Exit(run(send(options), document=json))


@app.command("ping", epilog="Example: `overlay ping -c 3 TICKET`")
def ping_(
    ticket: TicketText,
    count: Annotated[
        int | None, typer.Option("-c", "--count", min=1, help="How often; without it: until Ctrl-C.")
    ] = None,
    interval: Annotated[float, typer.Option("--interval", metavar="SECONDS", min=0.0, help="Between two pings.")] = 1.0,
    wait: Annotated[float, typer.Option("--wait", metavar="SECONDS", min=0.01, help="For each answer.")] = 10.0,
    identity: IdentityFile = None,
    listen: Listen = None,
    transport: Transports = None,
    timeout: Timeout = 30.0,
    resume_timeout: Resume = 120.0,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON document per line.")] = False,
) -> NoReturn:
    """Measure the round-trip time to a key, and show the path that it took."""
    target = Ticket.parse(ticket)
    config = _dialling(target, listen, transport, timeout, resume_timeout)
    options = PingOptions(
        ticket=target,
        identity=fresh_identity(identity),
        config=config,
        count=count,
        interval=interval,
        wait=wait,
        json=json,
    )
    raise typer.Exit(run(ping(options), document=json))


app.command("run", epilog=RUN_EPILOG)(run_)
app.add_typer(peers_app, name="peers")


@app.command("demo", epilog="Example: `overlay demo --size 256M --rate 32M`")
def demo_(
    size: Annotated[int, typer.Option("--size", parser=parse_size, metavar="SIZE", help="Of the file.")] = "64M",  # type: ignore[assignment]
    rate: Annotated[int, typer.Option("--rate", parser=parse_size, metavar="SIZE", help="Bytes per second.")] = "16M",  # type: ignore[assignment]
    identity: IdentityFile = None,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON document at the end.")] = False,
) -> NoReturn:
    """Send a file between two processes of this machine by key, with all UDP dropped halfway.

    The transfer goes on over TCP, and returns to QUIC as soon as UDP is back. Needs no root, listens on 127.0.0.1
    only, and leaves nothing behind.
    """
    if size < MIN_SIZE:
        raise UsageError(f"--size is at least {size_text(MIN_SIZE)}, or there is no middle in which to drop UDP")
    raise typer.Exit(
        run(demo(DemoOptions(identity=fresh_identity(identity), size=size, rate=rate, json=json)), document=json)
    )


def _dialling(
    target: Ticket, listen: list[str] | None, transports: list[str] | None, timeout: float, resume_timeout: float
) -> Config:
    """Settings of a command that dials: it has nothing to say to anybody but the ticket's key."""
    return make_config(listen, transports, accept={target.peer_id}, dial_timeout=timeout, resume_timeout=resume_timeout)
