"""How `overlay peers` talks to `overlay run`: JSON lines over a Unix socket beside the address book.

    request                                  answer
    {"do": "peers"}                          {"ok": true, "count": N}, then a line for each peer
    {"do": "add", "ticket": T, "name": N}    {"ok": true, "peer_id": P}
    {"do": "remove", "peer": P}              the same
    {"do": "block", "peer": P}               the same, and "was_kept": whether it was until now; "unblock" alike
    {"do": "kick", "peer": P or null}        the same; null: all
    {"do": "watch"}                          as "peers", then a line for each event, until the client goes
    anything else                            {"ok": false, "error": ..., "exit_code": ...}

Requests and waits are bounded, although only our own user can get here: a client that hangs must not cost us anything.
"""

import asyncio
import json
import logging
import os
import socket
from contextlib import aclosing
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Protocol, Self

from overlay.addresses import MAX_TICKET_CHARACTERS, Ticket
from overlay.cli.control_place import ControlError
from overlay.cli.naming import check_peer_name, find_peer, parse_target
from overlay.cli.output import UsageError, error_document
from overlay.cli.reports import event_document, peer_document
from overlay.errors import OverlayError
from overlay.events import Event, Events
from overlay.identity import PeerId
from overlay.status import PeerStatus

logger = logging.getLogger("overlay")

MAX_CLIENTS: Final = 16
"""At once; as many more are told so, and the rest is hung up on."""
MAX_REQUEST_BYTES: Final = 2 * MAX_TICKET_CHARACTERS
"""The longest request is the longest ticket; twice, for JSON's escapes and the name."""
REQUEST_TIMEOUT: Final = 10.0
"""Seconds: for a client to send its next request, and for it to take our next line."""
PEERS_PER_TURN: Final = 64
"""Lines that are made before others have their turn of the event loop: about 2 ms."""


class Node(Protocol):
    """What is controlled: the part of `Endpoint` that is about its peers."""

    def peers(self) -> list[PeerStatus]:
        """All that are known. A snapshot."""

    def keep(self, target: Ticket | PeerId | str, *, name: str | None = None) -> PeerId:
        """Stay connected, for ever; without a name it keeps the one that it has."""

    def remove(self, peer_id: PeerId) -> None:
        """Release it, forget it, end its session and every dial."""

    def block(self, peer_id: PeerId) -> None:
        """End its session for good, and refuse it."""

    def unblock(self, peer_id: PeerId) -> None:
        """Refuse it no longer."""

    def kick(self, peer_id: PeerId | None = None) -> None:
        """Dial it, or all that are kept, now."""

    def events(self) -> Events[Event]:
        """What happens from this call on."""


class ControlServer:
    """Serves requests about a node. An async context manager; leaving it ends every client's connection.

    Args:
        node: whose peers.
        path: of the socket, as `claim` gave it.

    Raises (on entering):
        ControlError: the socket cannot be bound: not every file system has sockets.
    """

    def __init__(self, node: Node, path: Path) -> None:
        self._node = node
        self._path = path
        self._clients: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None

    async def __aenter__(self) -> Self:
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            listener.bind(os.fspath(self._path))
            self._path.chmod(0o600)
            self._server = await asyncio.start_unix_server(self._accepted, sock=listener, limit=MAX_REQUEST_BYTES)
        except OSError as error:
            listener.close()
            raise ControlError(f"cannot listen at {self._path}: {error.strerror}") from error
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._server is not None:
            self._server.close()
        for task in self._clients:
            task.cancel()
        if self._clients:
            await asyncio.wait(self._clients)

    def _accepted(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if len(self._clients) >= 2 * MAX_CLIENTS:
            writer.transport.abort()
            return
        busy = len(self._clients) >= MAX_CLIENTS
        task = asyncio.create_task(self._serve(reader, writer, busy=busy), name="control client")
        self._clients.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: "asyncio.Task[None]") -> None:
        self._clients.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            logger.error("a control client's request failed: please report this", exc_info=error)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, busy: bool) -> None:
        try:
            while await self._request(reader, writer, busy=busy):
                pass
            writer.close()
            async with asyncio.timeout(REQUEST_TIMEOUT):
                await writer.wait_closed()
        except (TimeoutError, OSError) as error:
            logger.debug("a control client is gone: %r", error)
        finally:
            # Does nothing to a connection that is closed: what is left is one that its client does not read.
            writer.transport.abort()

    async def _request(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, busy: bool) -> bool:
        """Serve one, or when we are busy read it and say so; whether there may be another one."""
        try:
            async with asyncio.timeout(REQUEST_TIMEOUT):
                line = await reader.readline()
        except ValueError:
            await _send(writer, _refusal(UsageError(f"a request has at most {MAX_REQUEST_BYTES} bytes")))
            return False
        if not line.endswith(b"\n"):
            return False
        try:
            if busy:
                raise ControlError(f"{MAX_CLIENTS} others talk to this overlay already")
            request = _parse(line)
            if request.get("do") == "watch":
                await self._watch(reader, writer)
                return False
            if request.get("do") == "peers":
                await self._list(writer)
            else:
                await _send(writer, self._do(request))
        except (OverlayError, UsageError) as error:
            await _send(writer, _refusal(error))
        return not busy

    def _do(self, request: dict[str, Any]) -> dict[str, Any]:
        """Carry out a request that changes something."""
        node = self._node
        match request.get("do"):
            case "add":
                peer_id = self._add(_text(request, "ticket"), _text(request, "name", ""))
            case "remove":
                peer_id = find_peer(_text(request, "peer"), node.peers())
                node.remove(peer_id)
            case "block" | "unblock" as do:
                peers = node.peers()
                peer_id = find_peer(_text(request, "peer"), peers, known=False)
                was_kept = any(one.kept for one in peers if one.peer_id == peer_id)
                (node.block if do == "block" else node.unblock)(peer_id)
                return {"ok": True, "peer_id": str(peer_id), "was_kept": was_kept}
            case "kick" if request.get("peer") is None:
                node.kick()
                return {"ok": True, "peer_id": None}
            case "kick":
                peer_id = find_peer(_text(request, "peer"), node.peers())
                node.kick(peer_id)
            case unknown:
                raise UsageError(f"no request is called {unknown!r}")
        return {"ok": True, "peer_id": str(peer_id)}

    def _add(self, ticket: str, name: str) -> PeerId:
        target = parse_target(ticket)
        peer_id = target.peer_id if isinstance(target, Ticket) else target
        check_peer_name(name)
        if name and any(one.name == name and one.peer_id != peer_id for one in self._node.peers()):
            raise UsageError(f"another peer is called {name!r} already")
        return self._node.keep(target, name=name or None)

    async def _list(self, writer: asyncio.StreamWriter) -> None:
        peers = self._node.peers()
        await _send(writer, {"ok": True, "count": len(peers)})
        for number, peer in enumerate(peers, 1):
            await _send(writer, peer_document(peer))
            if number % PEERS_PER_TURN == 0:
                # Writing into a buffer with room never waits, so nothing else would run meanwhile.
                await asyncio.sleep(0)

    async def _watch(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        # From before the list, so that nothing happens between the two.
        async with aclosing(self._node.events()) as events:
            await self._list(writer)
            gone = asyncio.create_task(reader.read(1))
            push = asyncio.create_task(_push(events, writer))
            try:
                await asyncio.wait({gone, push}, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for task in (gone, push):
                    task.cancel()
                await asyncio.wait({gone, push})
        for task in (gone, push):
            if not task.cancelled() and (error := task.exception()) is not None:
                raise error


async def _push(events: Events[Event], writer: asyncio.StreamWriter) -> None:
    async for event in events:
        await _send(writer, event_document(event))


async def _send(writer: asyncio.StreamWriter, document: dict[str, Any]) -> None:
    writer.write(_line(document))
    async with asyncio.timeout(REQUEST_TIMEOUT):
        await writer.drain()


def _line(document: dict[str, Any]) -> bytes:
    return json.dumps(document).encode() + b"\n"


def _refusal(error: Exception) -> dict[str, Any]:
    return {"ok": False, **error_document(error)}


def _parse(line: bytes) -> dict[str, Any]:
    try:
        request = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise UsageError("a request is a JSON object on one line") from error
    if not isinstance(request, dict):
        raise UsageError("a request is a JSON object on one line")
    return request


def _text(request: dict[str, Any], name: str, default: str | None = None) -> str:
    value = request.get(name, default)
    if not isinstance(value, str):
        raise UsageError(f"{name!r} is missing, or no string")
    return value
