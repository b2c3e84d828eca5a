"""Two endpoints in one process, and fakes: what conformance suite and tests are made of."""

# ruff: noqa: SLF001, S101 - what must not leak is counted where users do not look, and a fake asserts

import asyncio
import errno
import hashlib
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Final, TypeVar

from overlay.addresses import Ticket
from overlay.config import Config
from overlay.endpoint import Endpoint
from overlay.identity import Identity, PeerId
from overlay.protocol.frames import Control
from overlay.protocol.stream import Priority
from overlay.session import Session
from overlay.streams import Stream
from overlay.transports.base import CloseReason, Connection

PATIENCE: Final = 20.0
"""Seconds that `until` waits: far beyond what anything here takes, as a shared machine may stand still."""
POLL: Final = 0.002
LOOPBACK: Final = ("127.0.0.1:0",)
KiB: Final = 1024
MiB: Final = 1024 * KiB

Result = TypeVar("Result")


async def until(condition: Callable[[], object], *, seconds: float = PATIENCE) -> None:
    """Wait until `condition()` is true; it is asked every few milliseconds.

    Raises:
        TimeoutError: it was not within `seconds`.
    """
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110 - what is waited for tells nobody
            await asyncio.sleep(POLL)


async def settled(measure: Callable[[], int], *, seconds: float = 0.2) -> int:
    """What `measure` gives when it has been the same for so long: a path's MTU has to be found out first."""
    last = measure()
    same = 0.0
    while same < seconds:
        await asyncio.sleep(POLL)
        same = same + POLL if measure() == last else 0.0
        last = measure()
    return last


async def interrupted(work: Coroutine[Any, Any, Result], turns: int) -> Result | None:
    """Run `work`, but cancel it after so many turns of the loop; None when the cancel came first."""
    task = asyncio.ensure_future(work)
    for _ in range(turns):
        if task.done():
            break
        await asyncio.sleep(0)
    task.cancel()
    await asyncio.wait([task])
    return None if task.cancelled() else task.result()


@asynccontextmanager
async def raises(kind: type[Exception]) -> AsyncIterator[list[Exception]]:
    """The body has to raise `kind`; the error is appended to the list that it is given."""
    caught: list[Exception] = []
    try:
        yield caught
    except kind as error:
        caught.append(error)
    else:
        raise AssertionError(f"{kind.__name__} was not raised")


def ticket(endpoint: Endpoint, transport: str | None = None) -> Ticket:
    """Where an endpoint of this process can be reached, loopback included; over one transport only if it is named."""
    addresses = endpoint.addresses
    if transport not in {None, "memory"}:
        addresses = tuple(address.with_transport(transport) for address in addresses)
    return Ticket(endpoint.peer_id, addresses)


def connections(endpoint: Endpoint, peer_id: PeerId) -> list[Connection]:
    """The connections that an endpoint has with a peer at this moment, whatever state they are in."""
    peer = endpoint._peers.get(peer_id)
    return [] if peer is None else list(peer.connections.values())


def containers(root: object) -> int:
    """How many entries all tables hold that can be reached from `root`, a connection, without entering its handler.

    Strings and bytes do not count. Two counts, before and after the same work, tell whether something leaks.
    """
    seen: set[int] = {id(getattr(root, "handler", None))}
    pending: deque[object] = deque([root])
    entries = 0
    while pending:
        one = pending.popleft()
        if id(one) in seen:
            continue
        seen.add(id(one))
        if isinstance(one, dict):
            entries += len(one)
            pending.extend(one.values())
        elif isinstance(one, list | set | deque | tuple | frozenset):
            entries += len(one)
            pending.extend(one)
        elif type(one).__module__.partition(".")[0] in {"overlay", "aioquic"}:
            slots = [name for kind in type(one).__mro__ for name in getattr(kind, "__slots__", ())]
            pending.extend(getattr(one, name, None) for name in (*getattr(one, "__dict__", ()), *slots))
    return entries


class Recorder:
    """Stands in for a session behind a connection: keeps what it is told, and says nothing by itself.

    Attributes:
        frames, stream_pieces, datagrams: what arrived, in order; pieces as (stream, offset, data).
        reason: why the connection ended; None while it lives.
    """

    def __init__(self) -> None:
        self.frames: list[Control] = []
        self.stream_pieces: list[tuple[int, int, bytes]] = []
        self.datagrams: list[bytes] = []
        self.reason: CloseReason | None = None

    def frame_received(self, connection: Connection, frame: Control) -> None:  # noqa: ARG002 - the protocol's
        """See `ConnectionHandler`."""
        self.frames.append(frame)

    def stream_received(self, connection: Connection, stream: int, offset: int, data: bytes) -> None:  # noqa: ARG002
        """See `ConnectionHandler`."""
        self.stream_pieces.append((stream, offset, data))

    def datagram_received(self, connection: Connection, data: bytes) -> None:  # noqa: ARG002
        """See `ConnectionHandler`."""
        self.datagrams.append(data)

    def writable(self, connection: Connection) -> None:
        """See `ConnectionHandler`."""

    def closed(self, connection: Connection, reason: CloseReason) -> None:  # noqa: ARG002
        """See `ConnectionHandler`."""
        assert self.reason is None, "a connection ends once"
        self.reason = reason


class Weather:
    """What the network does to some endpoints of this process.

    Attributes:
        udp_blocked: their UDP is dropped in both directions.
        cut_off: besides, they can dial nobody; see `cut`.
    """

    def __init__(self, *endpoints: Endpoint) -> None:
        self.udp_blocked = False
        self.cut_off = False
        self._endpoints = endpoints
        for endpoint in endpoints:
            for udp in endpoint._udp:
                udp.drop = lambda: self.udp_blocked or self.cut_off
            for transport in endpoint._transports.values():
                # A method of one object only: the transport's class is used by others, too.
                vars(transport)["dial"] = self._guarded(transport.dial)

    def cut(self) -> None:
        """Lose every connection of theirs without a word, and every new one, until `cut_off` is False again."""
        self.cut_off = True
        for endpoint in self._endpoints:
            for peer_id in tuple(endpoint._peers):
                for connection in connections(endpoint, peer_id):
                    connection.abort()

    def _guarded(self, dial: Callable[..., Awaitable[Connection]]) -> Callable[..., Awaitable[Connection]]:
        async def guarded(*arguments: Any) -> Connection:
            if self.cut_off:
                raise OSError(errno.ENETUNREACH, "the weather is bad")
            return await dial(*arguments)

        return guarded


async def crash(endpoint: Endpoint) -> None:
    """End an endpoint as a power cut would: nobody is told."""
    for peer in tuple(endpoint._peers.values()):
        await peer.dialler.aclose()
    await endpoint._close_transports()
    await endpoint.aclose()


@dataclass(frozen=True, slots=True)
class Pair:
    """Two endpoints of this process with a session between them."""

    dialler: Endpoint
    acceptor: Endpoint
    session: Session
    """The dialler's."""
    theirs: Session
    """The acceptor's."""

    @property
    def connections(self) -> tuple[Connection, Connection]:
        """Both ends of their only connection."""
        [ours] = connections(self.dialler, self.acceptor.peer_id)
        [theirs] = connections(self.acceptor, self.dialler.peer_id)
        return ours, theirs

    @asynccontextmanager
    async def streams(self, *, priority: Priority = Priority.BULK) -> AsyncIterator[tuple[Stream, Stream]]:
        """Open a stream; both its ends. The acceptor's handler returns when the block is left."""
        arrived: asyncio.Future[Stream] = asyncio.get_running_loop().create_future()
        left = asyncio.Event()

        async def hold(stream: Stream) -> None:
            arrived.set_result(stream)
            await left.wait()

        name = f"hold/{id(left)}"
        self.acceptor.handle(name, hold)
        try:
            ours = await self.session.open_stream(name, priority=priority)
            yield ours, await arrived
        finally:
            left.set()


@asynccontextmanager
async def pair(*transports: str, **settings: Any) -> AsyncIterator[Pair]:
    """Two connected endpoints on loopback; `settings` are those of `Config`. `echo/1` and `sink/1` are served."""
    settings.setdefault("listen", LOOPBACK)
    config = Config(transports=transports, **settings)
    async with (
        Endpoint(Identity.generate(), config) as acceptor,
        Endpoint(Identity.generate(), config) as dialler,
    ):
        acceptor.handle("echo/1", echo)
        acceptor.handle("sink/1", sink)
        session = await dialler.connect(ticket(acceptor))
        await until(lambda: dialler.peer_id in acceptor.sessions)
        yield Pair(dialler, acceptor, session, acceptor.sessions[dialler.peer_id])


async def echo(stream: Stream) -> None:
    """A handler that sends back what it gets."""
    async for chunk in stream:
        await stream.write(chunk)


async def sink(stream: Stream) -> None:
    """A handler that reads to the end and answers with the SHA-256 of what it got."""
    digest = hashlib.sha256()
    async for chunk in stream:
        digest.update(chunk)
    await stream.write(digest.digest())


async def exchange(session: Session, data: bytes, protocol: str = "echo/1") -> bytes:
    """Send `data` on a stream of its own and return the answer; both ways at the same time."""
    async with await session.open_stream(protocol) as stream:

        async def send() -> None:
            await stream.write(data)
            await stream.write_eof()

        async with asyncio.TaskGroup() as group:
            group.create_task(send())
            answer = group.create_task(read_to_end(stream))
        return answer.result()


async def read_to_end(stream: Stream) -> bytes:
    """All that comes, however much: unlike `Stream.read`."""
    return b"".join([chunk async for chunk in stream])


async def together(work: list[Awaitable[Result]]) -> list[Result]:
    """Like gather, but a failure cancels the others."""
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(_coroutine(one)) for one in work]
    return [task.result() for task in tasks]


async def _coroutine(work: Awaitable[Result]) -> Result:
    return await work
