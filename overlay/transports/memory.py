"""Connections within one process: the reference of the conformance suite, and a fast, deterministic carrier for tests.

Nothing is encrypted and keys are simply believed, as both ends are this process.
"""

import asyncio
import errno
import itertools
import time
from collections.abc import Callable
from typing import ClassVar, Final

from overlay.addresses import Address
from overlay.errors import DatagramTooLarge, HandshakeError, IdentityMismatch, SelfDial
from overlay.identity import Identity, PeerId
from overlay.protocol.codes import CloseCode
from overlay.protocol.frames import FrameReader, ProtocolViolation
from overlay.transports.base import Accepted, ClosedBy, CloseReason, Connection, ConnectionHandler, Role, Transport

WINDOW: Final = 256 * 1024
"""Bytes under way in one direction."""
DATAGRAM: Final = 65_000
DATAGRAMS: Final = 1024
"""So many may wait for one turn of the loop, as empty ones take nothing of the window."""


class MemoryConnection(Connection):
    """One end of a pair."""

    transport = "memory"

    def __init__(
        self, *, peer_id: PeerId, remote: Address, local: Address, role: Role, handler: ConnectionHandler
    ) -> None:
        super().__init__(peer_id=peer_id, remote=remote, local=local, role=role, handler=handler)
        self.other: MemoryConnection = self
        self.siblings: set[MemoryConnection] = set()
        self._loop = asyncio.get_running_loop()
        self._reader = FrameReader(stream_data=False)
        self._queue: list[tuple[int, Callable[[], None]]] = []
        self._delivery: asyncio.Handle | None = None
        self._under_way = 0
        self._closed = False
        self._heard = time.monotonic()

    @property
    def is_closed(self) -> bool:
        return self._closed

    @property
    def max_datagram_size(self) -> int:
        return DATAGRAM

    @property
    def rtt(self) -> float | None:
        return 0.001

    @property
    def rtt_min(self) -> float | None:
        return 0.001

    @property
    def probe_timeout(self) -> float | None:
        return 0.003

    def last_progress(self) -> float:
        return self._heard

    def sendable(self) -> int:
        return 0 if self._closed else WINDOW - self._under_way

    def send_frame(self, frame: bytes) -> None:
        self._send(len(frame), lambda: self.other._frames(frame))

    def send_stream(self, stream: int, offset: int, data: bytes | memoryview, *, idle: bool) -> None:
        del idle
        copy = bytes(data)
        self._send(len(copy), lambda: self.other._stream(stream, offset, copy))

    def send_datagram(self, data: bytes) -> bool:
        if len(data) > DATAGRAM:
            raise DatagramTooLarge(len(data), DATAGRAM)
        if self._under_way > 4 * WINDOW:
            return False
        self._send(len(data), lambda: self.other.handler.datagram_received(self.other, data))
        return True

    def datagram_room(self) -> int:
        # Half of the window, so that streams have the other.
        return self.sendable() - WINDOW // 2 if len(self._queue) < DATAGRAMS else 0

    def flush(self) -> None:
        if self._queue and self._delivery is None:
            self._delivery = self._loop.call_soon(self._deliver)

    def close(self, code: CloseCode, reason: str = "") -> None:
        if self._closed:
            return
        self._send(0, lambda: self.other._end(CloseReason(ClosedBy.PEER, code, reason)))
        self.flush()
        self._leave()
        self._loop.call_soon(self.handler.closed, self, CloseReason(ClosedBy.US, code, reason))

    def abort(self) -> None:
        if self._closed:
            return
        self._queue.clear()
        self._leave()
        self._loop.call_soon(self.handler.closed, self, CloseReason(ClosedBy.US))
        self._loop.call_soon(self.other._end, CloseReason(ClosedBy.NETWORK, reason="aborted"))

    def _send(self, size: int, deliver: Callable[[], None]) -> None:
        if not self._closed:
            self._queue.append((size, deliver))
            self._under_way += size
            self.bytes_sent += size

    def _deliver(self) -> None:
        self._delivery = None
        queue, self._queue = self._queue, []
        other = self.other
        was_full = self._under_way >= WINDOW // 2 or len(queue) >= DATAGRAMS
        for size, deliver in queue:
            self._under_way -= size
            if not other._closed:
                other.bytes_received += size
                other._heard = time.monotonic()
                deliver()
        if not other._closed:
            other.handler.writable(other)
            other.flush()
        if was_full and not self._closed:
            self.handler.writable(self)
            self.flush()

    def _frames(self, data: bytes) -> None:
        try:
            events = self._reader.receive_data(data)
        except ProtocolViolation as violation:
            self.close(violation.code, violation.reason)
            return
        for event in events:
            if not self._closed:
                self.handler.frame_received(self, event)  # type: ignore[arg-type]  # no STREAM without stream_data

    def _stream(self, stream: int, offset: int, data: bytes) -> None:
        self.handler.stream_received(self, stream, offset, data)

    def _end(self, reason: CloseReason) -> None:
        if not self._closed:
            self._leave()
            self.handler.closed(self, reason)

    def _leave(self) -> None:
        self._closed = True
        self.siblings.discard(self)


class MemoryTransport(Transport):
    """All memory transports of this process can reach each other."""

    name = "memory"
    _listening: ClassVar[dict[Address, "MemoryTransport"]] = {}
    _hosts = itertools.count(1)

    def __init__(self, identity: Identity, accepted: Accepted) -> None:
        self._identity = identity
        self._accepted = accepted
        self._address = Address("memory", f"node{next(self._hosts)}.memory", 1)
        self._connections: set[MemoryConnection] = set()
        self._listening[self._address] = self

    async def dial(self, address: Address, peer_id: PeerId, handler: ConnectionHandler) -> MemoryConnection:
        """See `Transport.dial`."""
        await asyncio.sleep(0)
        target = self._listening.get(address)
        if target is None:
            raise ConnectionRefusedError(errno.ECONNREFUSED, f"nobody listens at {address}")
        if target._identity.peer_id == self._identity.peer_id:
            raise SelfDial(f"{address} is ourselves")
        if target._identity.peer_id != peer_id:
            raise IdentityMismatch(f"{target._identity.peer_id} answers at {address}, not {peer_id}")
        ours = MemoryConnection(peer_id=peer_id, remote=address, local=self._address, role=Role.DIALER, handler=handler)
        theirs = MemoryConnection(
            peer_id=self._identity.peer_id, remote=self._address, local=address, role=Role.ACCEPTOR, handler=handler
        )
        ours.other, theirs.other = theirs, ours
        for connection, siblings in ((ours, self._connections), (theirs, target._connections)):
            connection.siblings = siblings
            siblings.add(connection)
        try:
            theirs.handler = target._accepted(theirs)
        except HandshakeError as error:
            theirs._leave()
            ours._loop.call_soon(ours._end, CloseReason(ClosedBy.PEER, error.code, str(error)))
        return ours

    @property
    def addresses(self) -> tuple[Address, ...]:
        """See `Transport.addresses`."""
        return (self._address,)

    async def aclose(self) -> None:
        """See `Transport.aclose`."""
        self._listening.pop(self._address, None)
        for connection in tuple(self._connections):
            connection.abort()
