"""What the tests of the transports over UDP share: sockets on loopback and in memory, and sessions that take notes."""

import asyncio
import contextlib
import socket
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable
from typing import Any, Generic, Protocol, TypeVar

from overlay.addresses import Address
from overlay.identity import Identity, PeerId
from overlay.protocol.frames import Control
from overlay.protocol.gate import HandshakeGate
from overlay.transports.base import CloseReason, Connection, ConnectionHandler
from overlay.transports.udp_socket import Kind, Local, Receiver, SocketAddress, UdpSocket

OURS = ("192.0.2.1", 9330)
THEIRS = ("192.0.2.2", 40_000)


class Recorder:
    """A session's side of a connection that keeps what it gets."""

    def __init__(self, *, keep_data: bool = True) -> None:
        self.connection: Connection | None = None
        self.frames: list[Control] = []
        self.streams: dict[int, bytearray] = {}
        self.received = 0
        self.datagrams: list[bytes] = []
        self.reason: CloseReason | None = None
        self.closed_calls = 0
        self.writable_calls = 0
        self.on_writable: Callable[[Connection], object] | None = None
        self._keep_data = keep_data
        self._changed = asyncio.Event()

    def frame_received(self, connection: Connection, frame: Control) -> None:
        self.frames.append(frame)
        self._changed.set()

    def stream_received(self, connection: Connection, stream: int, offset: int, data: bytes) -> None:
        self.received += len(data)
        if self._keep_data:
            buffer = self.streams.setdefault(stream, bytearray())
            buffer.extend(bytes(max(0, offset + len(data) - len(buffer))))
            buffer[offset : offset + len(data)] = data
        self._changed.set()

    def datagram_received(self, connection: Connection, data: bytes) -> None:
        self.datagrams.append(data)
        self._changed.set()

    def writable(self, connection: Connection) -> None:
        self.writable_calls += 1
        if self.on_writable is not None:
            self.on_writable(connection)
        self._changed.set()

    def closed(self, connection: Connection, reason: CloseReason) -> None:
        self.closed_calls += 1
        self.reason = reason
        self._changed.set()

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait until something that came made `condition` true."""
        async with asyncio.timeout(30):
            while not condition():
                self._changed.clear()
                await self._changed.wait()


class WatchedGate(HandshakeGate):
    """A gate that tells when everybody has left."""

    def __init__(self, total: int = 256, per_address: int = 256) -> None:
        super().__init__(total, per_address)
        self.entered = 0
        self._empty = asyncio.Event()

    def enter(self, host: str) -> bool:
        allowed = super().enter(host)
        self.entered += allowed
        return allowed

    def leave(self, host: str) -> None:
        super().leave(host)
        if not self.pending:
            self._empty.set()

    async def emptied(self) -> None:
        async with asyncio.timeout(30):
            while self.pending:
                self._empty.clear()
                await self._empty.wait()


class MemoryUdp(UdpSocket):
    """A socket whose datagrams go to a function, in the next turn of the loop."""

    def __init__(self) -> None:
        self.family = 4
        self.address = Address(None, *OURS)
        self.drop = None
        self.peer: Callable[[bytes], None] | None = None
        self.receiver: Receiver | None = None
        self.sent: list[bytes] = []
        self._is_closed = False

    def register(self, kind: Kind, receiver: Receiver) -> None:
        self.receiver = receiver

    def unregister(self, kind: Kind) -> None:
        self._is_closed = True

    @property
    def is_closed(self) -> bool:
        return self._is_closed

    def local_address(self, local: Local | None, remote: SocketAddress) -> Address | None:
        return self.address

    def send_burst(
        self, data: bytes, segment: int, remote: SocketAddress, local: Local | None = None
    ) -> OSError | None:
        return self.send([data[at : at + segment] for at in range(0, len(data), segment)], remote, local)

    def send(self, datagrams: Any, remote: SocketAddress, local: Local | None = None) -> OSError | None:
        for data in datagrams:
            self.sent.append(data)
            if self.peer is not None:
                asyncio.get_running_loop().call_soon(self.peer, data)
        return None

    def deliver(self, *batch: bytes) -> None:
        """All of `batch` is there at one wake-up."""
        assert self.receiver is not None
        for data in batch:
            self.receiver.datagram_received(self, data, THEIRS, None)
        self.receiver.batch_ended(self)


class Listening(Protocol):
    """A transport that has an address."""

    @property
    def addresses(self) -> tuple[Address, ...]: ...


Transport = TypeVar("Transport", bound=Listening)


class Accepting(ABC, Generic[Transport]):
    """A transport with what it was given and what it accepted; whoever derives from it makes the transport."""

    transport: Transport

    def __init__(self, sockets: list[UdpSocket], identity: Identity | None) -> None:
        self.identity = identity or Identity.generate()
        self.sockets = sockets
        self.gate = WatchedGate()
        self.accepted: list[Recorder] = []
        self.accept_error: Exception | None = None
        self.keep_data = True
        self._arrived = asyncio.Event()

    @abstractmethod
    def is_clean(self) -> bool:
        """Whether nothing is left of any connection."""

    @property
    def peer_id(self) -> PeerId:
        return self.identity.peer_id

    @property
    def address(self) -> Address:
        return self.transport.addresses[0]

    def accept(self, connection: Connection) -> ConnectionHandler:
        if self.accept_error is not None:
            raise self.accept_error
        recorder = Recorder(keep_data=self.keep_data)
        recorder.connection = connection
        self.accepted.append(recorder)
        self._arrived.set()
        return recorder

    async def arrival(self, number: int) -> Recorder:
        """The connection that was accepted as the `number`th, from 0."""
        async with asyncio.timeout(30):
            while len(self.accepted) <= number:
                self._arrived.clear()
                await self._arrived.wait()
        return self.accepted[number]


Made = TypeVar("Made", bound=Accepting[Any])


@contextlib.asynccontextmanager
async def closing(made: Made) -> AsyncIterator[Made]:
    """Close the transport at the end, and see that nothing of it is left."""
    try:
        yield made
    finally:
        await made.transport.aclose()
        assert made.is_clean()


def bound_socket(host: str = "127.0.0.1") -> socket.socket:
    sock = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_DGRAM)
    sock.bind((host, 0))
    sock.setblocking(False)
    return sock
