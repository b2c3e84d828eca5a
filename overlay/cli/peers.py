"""`overlay peers`: the peers of an `overlay run`, shown and changed."""

import asyncio
import time
from contextlib import aclosing
from pathlib import Path
from typing import Annotated, Any, Final, NamedTuple, NoReturn

import typer
from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from overlay.cli.control_client import reach
from overlay.cli.naming import check_peer_name, parse_target
from overlay.cli.options import BookFile, Json, default_book
from overlay.cli.output import ExitCode, UsageError, clean, emit, say, stderr_console
from overlay.cli.reports import duration
from overlay.cli.running import run, while_read

REFRESH_SECONDS: Final = 1.0
PIPE_WIDTH: Final = 160
"""Columns of a table that goes to a file or a pipe, where nobody can widen the window."""
SHORT_KEY: Final = 8

_DONE: Final = {
    "add": "stays connected to",
    "remove": "has forgotten",
    "block": "refuses",
    "unblock": "no longer refuses",
    "kick": "dials now:",
}

Peer = Annotated[
    str, typer.Argument(metavar="PEER", help="A key, a name, or at least the first 8 characters of a key.")
]

app = typer.Typer(
    epilog="""Examples: `overlay peers`, `overlay peers --watch`, `overlay peers --json | jq '.peers[].state'`

    `overlay peers add overlay:abc...@198.51.100.7:9330 --name alice`, then `overlay peers block alice`"""
)


class _Asked(NamedTuple):
    """Options that stand before the subcommand."""

    book: Path | None
    json: bool


@app.callback(invoke_without_command=True)
def peers_(
    context: typer.Context,
    book: BookFile = None,
    json: Json = False,
    watch: Annotated[
        bool, typer.Option("--watch", help="Refresh until Ctrl-C; with --json: peers, then events, one per line.")
    ] = False,
) -> None:
    """Show the peers of the `overlay run` of this machine, with the evidence for each of their addresses.

    A line for each peer, and one for each place where it may be: from where that is known, the round-trip time, since
    when, and what came of dialling it.
    """
    if context.invoked_subcommand is None:
        raise typer.Exit(run(show(book or default_book(), json=json, watch=watch), document=json))
    if watch:
        raise UsageError("--watch goes without a subcommand: overlay peers --watch")
    context.obj = _Asked(book, json)


@app.command("add", epilog="Example: `overlay peers add TICKET --name alice`")
def add_(
    context: typer.Context,
    ticket: Annotated[
        str, typer.Argument(metavar="TICKET", help="What its `overlay run` has printed; a bare key if it dials us.")
    ],
    name: Annotated[str, typer.Option("--name", help="What you call it.")] = "",
    book: BookFile = None,
    json: Json = False,
) -> NoReturn:
    """Stay connected to a peer from now on, also after a restart."""
    parse_target(ticket)
    _change(context, book, json, "add", ticket=ticket, name=check_peer_name(name))


@app.command("remove")
def remove_(context: typer.Context, peer: Peer, book: BookFile = None, json: Json = False) -> NoReturn:
    """Forget a peer: its session, its addresses, every dial. It may still dial us, see `block`."""
    _change(context, book, json, "remove", peer=peer)


@app.command("block")
def block_(context: typer.Context, peer: Peer, book: BookFile = None, json: Json = False) -> NoReturn:
    """End the session with a peer at once, and refuse it from now on; a key that is not known yet, too.

    It is not kept any more, also after `unblock`.
    """
    _change(context, book, json, "block", peer=peer)


@app.command("unblock")
def unblock_(context: typer.Context, peer: Peer, book: BookFile = None, json: Json = False) -> NoReturn:
    """Refuse a peer no longer. To stay connected to it, `add` it again."""
    _change(context, book, json, "unblock", peer=peer)


@app.command("kick")
def kick_(
    context: typer.Context,
    peer: Annotated[str | None, typer.Argument(metavar="[PEER]", help="As elsewhere; without it: all.")] = None,
    book: BookFile = None,
    json: Json = False,
) -> NoReturn:
    """Dial now what waits for its next attempt."""
    _change(context, book, json, "kick", peer=peer)


def _change(context: typer.Context, book: Path | None, json: bool, do: str, **fields: Any) -> NoReturn:
    before = context.obj if isinstance(context.obj, _Asked) else _Asked(None, json=False)
    place = book or before.book or default_book()
    json = json or before.json
    raise typer.Exit(run(change(place, do, fields, json=json), document=json))


async def change(book: Path, do: str, fields: dict[str, Any], *, json: bool) -> int:
    """Ask the `overlay run` of a book to change something.

    Raises:
        UsageError: there is no such peer. ControlError: nobody runs, or it cannot be done.
    """
    async with reach(book) as client:
        answer = await client.request(do, **fields)
    peer_id = answer.get("peer_id")
    if json:
        emit({"done": do, "peer_id": peer_id})
    else:
        was_kept = answer.get("was_kept") is True
        said = f"overlay {_DONE[do]} {peer_id or 'all that wait'}"
        if do == "block" and was_kept:
            said += ", and no longer stays connected to it"
        elif do == "unblock" and not was_kept:
            said += "; `overlay peers add` stays connected to it again"
        say(stderr_console(), said)
    return ExitCode.DONE


async def show(book: Path, *, json: bool, watch: bool) -> int:
    """Show the peers once, or until cancelled.

    Raises:
        UsageError: there is no terminal to refresh. ControlError: nobody runs, or it has ended.
    """
    if watch and json:
        await while_read(_stream(book))
    elif watch:
        await _refresh(book)
    else:
        async with reach(book) as client:
            peers = await client.peers()
        if json:
            emit({"book": str(book), "peers": peers})
        elif peers:
            console = Console(highlight=False)
            if not console.is_terminal:
                console.width = PIPE_WIDTH
            console.print(peers_table(peers, time.time()))
        else:
            say(stderr_console(), "no peers yet: overlay peers add TICKET")
    return ExitCode.DONE


async def _stream(book: Path) -> None:
    async with reach(book) as client, aclosing(client.watch()) as documents:
        async for document in documents:
            emit(document)


async def _refresh(book: Path) -> None:
    console = Console(highlight=False)
    if not console.is_terminal:
        raise UsageError("--watch needs a terminal; for programs there is --watch --json")
    with Live(console=console, auto_refresh=False) as live:
        while True:
            # A connection each time: one that lasts would end while we are stopped with Ctrl-Z.
            async with reach(book) as client:
                peers = await client.peers()
            live.update(peers_table(peers, time.time()), refresh=True)
            await asyncio.sleep(REFRESH_SECONDS)


def peers_table(peers: list[dict[str, Any]], now: float) -> Table:
    """A line for each peer, and one for each of its addresses.

    Args:
        peers: as `peer_document` describes them.
        now: seconds since 1970.
    """
    table = Table(show_edge=False, pad_edge=False)
    for title in ("peer, addresses", "kept", "state, source", "RTT", "since", "path, evidence"):
        table.add_column(title, overflow="fold", justify="right" if title in {"RTT", "since"} else "left")
    for peer in sorted(peers, key=lambda one: (not one["name"], one["name"], one["peer_id"])):
        path = next(iter(peer["paths"]), None)
        cells = (
            peer["name"] or peer["peer_id"][:SHORT_KEY],
            "blocked" if peer["blocked"] else "yes" if peer["kept"] else "",
            peer["state"],
            _milliseconds(path["rtt_ms"] if path else None),
            "" if peer["since"] is None else duration(peer["since"]),
            _path_text(path, peer["next_dial"]),
        )
        table.add_row(*map(_cell, cells), style="bold" if path else "")
        for address in peer["addresses"]:
            since = duration(now - address["learnt"])
            rtt = _milliseconds(address["rtt_ms"])
            evidence = _evidence_text(address, now)
            cells = (f"  {address['address']}", "", address["source"], rtt, since, evidence)
            table.add_row(*map(_cell, cells), style="dim")
    return table


def _cell(text: str) -> Text:
    return Text(clean(text))


def _milliseconds(value: float | None) -> str:
    return "" if value is None else f"{value:.1f} ms"


def _path_text(path: dict[str, Any] | None, next_dial: float | None) -> str:
    if path is not None:
        return str(path["remote"]) + (", silent" if path["suspect"] else "")
    return "" if next_dial is None else f"dials again in {duration(next_dial)}"


def _evidence_text(address: dict[str, Any], now: float) -> str:
    parts = []
    if address["last_success"] is not None:
        parts.append(f"worked {duration(now - address['last_success'])} ago")
    if address["last_failure"] is not None:
        stage = f"{address['stage']} failed" if address["stage"] else "failed"
        times = f" {address['failures']} times" if address["failures"] > 1 else ""
        parts.append(f"{stage}{times}, {duration(now - address['last_failure'])} ago")
    return "; ".join(parts) or "not tried yet"
