"""A mesh that one can type into: the command line of the example router.

    python -m overlay.testing.router            in one terminal
    python -m overlay.testing.router TICKET     in others, with what another one has printed first

Prints our ticket and our key, each on a line, and peers with those whose tickets are given. Each line of standard input
goes to everybody in the mesh, or, as `KEYPREFIX: text`, to one; KEYPREFIX is the first four or more characters of a
key, or a whole one. Begin a line with a blank, and it goes to everybody whatever it looks like. What comes is printed
with its source and the number of links that it has travelled.

Several of these in a line or a ring of terminals are a mesh; stop one in the middle, and see the others find another
way. Messages may come out of order, and once more after a restart. The key is a new one each time, unless it has a
file. At the end of the input it goes on until Ctrl-C; that and SIGTERM end it in order, with exit code 130.
"""

import argparse
import asyncio
import os
import re
import sys
import threading
from collections.abc import AsyncIterator, Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from overlay.addresses import Ticket
from overlay.cli.options import make_config
from overlay.cli.output import UsageError, clean, exit_code, out, say, stderr_console
from overlay.cli.reports import duration
from overlay.cli.running import background, end_unread, open_standard_streams, run
from overlay.endpoint import Endpoint
from overlay.errors import AddressError, FrameTooLong, OverlayError
from overlay.events import DriverEvent, Events, NeighbourDown, NeighbourUp, PathChanged, PathLost
from overlay.identity import PEER_ID_CHARACTERS, Identity, PeerId
from overlay.router import Driver
from overlay.status import PeerStatus
from overlay.testing.router import MeshRouter
from overlay.testing.router_core import KEPT_SECONDS

PROGRAM: Final = "python -m overlay.testing.router"
UNREACHED_SECONDS: Final = 10.0
"""After which it is told why those whose tickets were given are no neighbours: who is there answers far sooner."""
STANDARD_INPUT: Final = 0
READ: Final = 16 * 1024
LONGEST_LINE: Final = 32 * 1024
"""Bytes; what comes without the end of a line is sent in pieces of this length."""
LEAST_PREFIX: Final = 4
"""Characters: fewer would be found before the colon of too many sentences."""
_ADDRESSED: Final = re.compile(r"([a-zA-Z0-9]+)\s*: ?(.*)", re.DOTALL)
"""More than base32 has: a mistyped prefix is one, too."""
_BLANK: Final = "or begin the line with a blank to send it to everybody"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; its exit code."""
    open_standard_streams()
    description, _, more = (__doc__ or "").partition("\n\n")
    parser = argparse.ArgumentParser(
        prog=PROGRAM,
        description=description,
        epilog=more,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--listen", metavar="HOST:PORT", help="where to be reached; by default everywhere, on any port")
    parser.add_argument("--identity", metavar="FILE", help="the file of our key; it is made if there is none")
    parser.add_argument("tickets", nargs="*", metavar="TICKET", help="as another one of these has printed it")
    options = parser.parse_args(arguments)
    listen = None if options.listen is None else [options.listen]
    try:
        return run(_chat_or_fail(listen, options.identity, options.tickets))
    except BrokenPipeError:
        return end_unread()


async def _chat_or_fail(listen: list[str] | None, key_file: str | None, texts: Sequence[str]) -> int:
    """Say what is wrong as argparse does: with the name of this program."""
    try:
        return await _chat(listen, key_file, texts)
    except BrokenPipeError:
        raise
    except (OverlayError, UsageError, OSError) as error:
        sys.stderr.write(f"{PROGRAM}: error: {clean(str(error))}\n")
        return exit_code(error)


async def _chat(listen: list[str] | None, key_file: str | None, texts: Sequence[str]) -> int:
    tickets = [_ticket(text) for text in texts]
    identity = Identity.generate() if key_file is None else _identity(Path(key_file))
    async with (
        Endpoint(identity, make_config(listen, None)) as endpoint,
        Driver(endpoint) as driver,
        MeshRouter(driver) as router,
        background(_tell(driver.events())),
        background(_say_lines(router, endpoint.peer_id)),
    ):
        out(f"{endpoint.ticket}\n{endpoint.peer_id}")
        wanted = [driver.start_peering(ticket) for ticket in tickets]
        with _telling_unreached(endpoint, driver, wanted):
            while True:
                message = await router.next()
                links = f"{message.hops} link{'' if message.hops == 1 else 's'}"
                to = "to all" if message.broadcast else "to you"
                out(f"{message.source.short}, {links}, {to}: {clean(message.payload.decode(errors='replace'))}")


def _ticket(text: str) -> Ticket:
    """Read a ticket.

    Raises:
        UsageError: it is none; with the part at fault where that is not its beginning, and the whole of it last, as it
            may be long.
    """
    try:
        return Ticket.parse(text)
    except AddressError as error:
        part = "" if text.startswith(error.part) else f"{error.part!r}: "
        cure = "give tickets, as the others have printed them in their first line"
        raise UsageError(f"argument TICKET: {part}{error.why}; {cure}, not {text!r}") from error


def _identity(file: Path) -> Identity:
    """The key in a file, which is made if there is none; but not its directory, which was perhaps mistyped.

    Raises:
        UsageError: there is no such directory. IdentityError: the file cannot be used.
    """
    if not file.parent.is_dir():
        raise UsageError(f"argument --identity: there is no directory {file.parent}")
    return Identity.load_or_create(file)


# ---------------------------------------------------------------- what is told of neighbours


async def _tell(events: Events[DriverEvent]) -> None:
    """Which neighbours come and go, and which cannot be reached meanwhile."""
    console = stderr_console()
    cut: set[PeerId] = set()
    async for event in events:
        match event:
            case NeighbourUp(peer_id):
                say(console, f"{peer_id} is a neighbour")
            case NeighbourDown(peer_id, reason):
                cut.discard(peer_id)
                say(console, f"{peer_id} is a neighbour no longer: {reason}")
            case PathLost(peer_id, remaining=0):
                cut.add(peer_id)
                say(console, f"{peer_id} has lost its last path; frames wait")
            case PathChanged(peer_id, path) if peer_id in cut:
                cut.discard(peer_id)
                say(console, f"{peer_id} has a path again: {path}")


@contextmanager
def _telling_unreached(endpoint: Endpoint, driver: Driver, wanted: Collection[PeerId]) -> Iterator[None]:
    """Tell once what is known of those who are no neighbours after some seconds."""
    console = stderr_console()

    def tell() -> None:
        there = driver.neighbours()
        for status in endpoint.peers():
            if status.peer_id in wanted and status.peer_id not in there:
                for line in _unreached(status):
                    say(console, line)

    timer = asyncio.get_running_loop().call_later(UNREACHED_SECONDS, tell)
    try:
        yield
    finally:
        timer.cancel()


def _unreached(status: PeerStatus) -> Iterator[str]:
    """Why somebody is perhaps no neighbour: a line for the peer, and one for each of its addresses."""
    line = f"{status.peer_id} is no neighbour after {duration(UNREACHED_SECONDS)}: {status.state}"
    if status.paths:
        yield f"{line}, but no router answers there"
        return
    yield line if status.next_dial is None else f"{line}, dials again in {duration(status.next_dial)}"
    for one in status.addresses:
        times = f" {one.failures} times" if one.failures > 1 else ""
        yield f"  {one.address}: " + (f"{one.stage} failed{times}" if one.failures else "no answer yet")


# ---------------------------------------------------------------- what is typed


async def _say_lines(router: MeshRouter, ours: PeerId) -> None:
    console = stderr_console()
    async for line in _lines():
        routes = router.routes()
        try:
            to, text = _addressed(line, ours, routes)
            payload = text.encode()
            await (router.broadcast(payload) if to is None else router.send(payload, to))
        except (UsageError, FrameTooLong) as error:
            say(console, str(error))
        else:
            if to is not None and to != ours and to not in routes:
                say(console, f"{to} cannot be reached now: the message waits, {duration(KEPT_SECONDS)} at most")


def _addressed(line: str, ours: PeerId, others: Collection[PeerId]) -> tuple[PeerId | None, str]:
    """To whom a line goes, None being everybody, and what.

    Args:
        line: what was typed.
        ours: our key; whoever speaks to himself is heard.
        others: those who can be reached. A whole key need not be one of them.

    Raises:
        UsageError: it begins like a key, but not like exactly one that is known. It is not sent to everybody then: it
            was perhaps not meant for them.
    """
    match = _ADDRESSED.fullmatch(line)
    if match is None:
        return None, line
    typed, text = match.groups()
    prefix = typed.lower()
    found = [key for key in (ours, *others) if str(key).startswith(prefix)]
    if len(prefix) < LEAST_PREFIX and not found:
        return None, line
    if len(prefix) < LEAST_PREFIX or len(found) > 1:
        keys = "a key begins" if len(found) == 1 else f"{len(found)} keys begin"
        raise UsageError(f"not sent: {keys} with {typed!r}: give more characters of the one you mean, {_BLANK}")
    if found:
        return found[0], text
    if len(prefix) == PEER_ID_CHARACTERS:
        try:
            return PeerId.parse(prefix), text
        except AddressError as error:
            raise UsageError(f"not sent: {error}") from error
    there = ", ".join(sorted(key.short for key in others)) or "nobody"
    raise UsageError(f"not sent: no key that can be reached begins with {typed!r}: there is {there}; {_BLANK}")


async def _lines() -> AsyncIterator[str]:
    """The lines of standard input, which may be a terminal, a pipe or a file. Cancellation may lose some."""
    loop = asyncio.get_running_loop()
    read: asyncio.Queue[bytes] = asyncio.Queue()
    taken = threading.Semaphore(1)

    def fetch() -> None:
        """In a thread that ends with the process: nothing interrupts its read."""
        data = b"not the end yet"
        # When the loop is closed, nobody listens any more.
        with suppress(RuntimeError):
            while data and taken.acquire():
                try:
                    data = os.read(STANDARD_INPUT, READ)
                except OSError:
                    # A directory, or open for writing only: nothing will ever come.
                    data = b""
                loop.call_soon_threadsafe(read.put_nowait, data)

    threading.Thread(target=fetch, name="standard input", daemon=True).start()
    rest = b""
    while data := await read.get():
        *lines, rest = (rest + data).split(b"\n")
        if len(rest) > LONGEST_LINE:
            lines, rest = [*lines, rest], b""
        for line in lines:
            if line:
                yield line.decode(errors="replace")
        taken.release()
    if rest:
        yield rest.decode(errors="replace")
