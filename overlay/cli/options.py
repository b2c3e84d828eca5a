"""What several commands have in common: options, and what is made of them."""

import os
from pathlib import Path
from typing import Annotated, Any, Final

import typer

from overlay.cli.output import UsageError
from overlay.config import Config
from overlay.identity import Identity

IdentityFile = Annotated[Path | None, typer.Option("--identity", metavar="FILE", help="The file of our key.")]
Transports = Annotated[
    list[str] | None,
    typer.Option(
        "--transport", metavar="NAME", help="Use only this: quic, udp or tcp. Repeatable, the preferred one first."
    ),
]
Listen = Annotated[
    list[str] | None,
    typer.Option("--listen", metavar="HOST:PORT", help="Bind this, UDP and TCP alike; port 0: a free one. Repeatable."),
]
RUN_PORT: Final = 9330
RUN_LISTEN: Final = (f"0.0.0.0:{RUN_PORT}", f"[::]:{RUN_PORT}")
"""Where `overlay run` listens by default: a ticket has to stay good over restarts."""
RunListen = Annotated[
    list[str] | None,
    typer.Option(
        "--listen",
        metavar="HOST:PORT",
        help=f"Bind this, UDP and TCP alike; port 0: a free one. Repeatable. By default port {RUN_PORT}, everywhere.",
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON on standard output.")]
TicketText = Annotated[str, typer.Argument(metavar="TICKET", help="What `overlay receive` has printed.")]
Timeout = Annotated[float, typer.Option("--timeout", metavar="SECONDS", min=0.1, help="For connecting.")]
Resume = Annotated[
    float,
    typer.Option(
        "--resume-timeout", metavar="SECONDS", min=0.0, help="How long to wait for a new path when all are lost."
    ),
]
BookFile = Annotated[
    Path | None, typer.Option("--book", metavar="PATH", help="The address book; beside our key by default.")
]


def default_identity() -> Path:
    """The file of our key where `--identity` names none (XDG Base Directory Specification)."""
    data = os.environ.get("XDG_DATA_HOME", "")
    # "All paths must be absolute. If an implementation encounters a relative path it should ignore it."
    base = Path(data) if data.startswith("/") else Path.home() / ".local" / "share"
    return base / "overlay" / "identity.pem"


def default_book() -> Path:
    """The address book where `--book` names none, whatever `--identity` says: `overlay peers` has to find it."""
    return default_identity().with_name("book.sqlite")


def fresh_identity(identity: Path | None) -> Identity:
    """The key in that file; without one a key for this command alone."""
    return Identity.generate() if identity is None else Identity.load_or_create(identity)


def make_config(listen: list[str] | None, transports: list[str] | None, /, **settings: Any) -> Config:
    """Settings of an endpoint, with what the command line says about its sockets on top.

    Raises:
        UsageError: there is no such transport. ConfigError: a setting that cannot work.
    """
    if transports:
        unknown = set(transports) - {"quic", "udp", "tcp"}
        if unknown:
            raise UsageError(f"--transport is quic, udp or tcp, not {', '.join(sorted(unknown))}")
        settings["transports"] = tuple(dict.fromkeys(transports))
    if listen:
        settings["listen"] = tuple(listen)
    return Config(**settings)
