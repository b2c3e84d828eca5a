"""What one would send frames with otherwise: UDP sockets as asyncio has them, and aioquic's DATAGRAM frames."""

import asyncio
import socket
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any, Final

from aioquic.asyncio.client import connect as aioquic_connect
from aioquic.asyncio.protocol import QuicConnectionProtocol
from aioquic.asyncio.server import QuicServer
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.events import DatagramFrameReceived, QuicEvent
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from frames_workloads import Sender
from subjects import ALPN, CERTIFICATE_FILE, HOST, KEY_FILE

Take = Callable[[bytes], None]
BUFFER: Final = 4 * 1024 * 1024
"""Bytes that the kernel is asked to keep for a socket, as ours are."""


class PlainUdp:
    """asyncio's datagram endpoints: no key, no acknowledgement, and no notion of how much the other side takes."""

    @asynccontextmanager
    async def receiver(self, take: Take) -> AsyncIterator[str]:
        """Take frames; yields the address."""
        loop = asyncio.get_running_loop()
        transport, _ = await loop.create_datagram_endpoint(lambda: _Taking(take), sock=_bound())
        try:
            yield _address(transport)
        finally:
            transport.close()

    @asynccontextmanager
    async def sender(self, addresses: list[str]) -> AsyncIterator[Sender]:
        """Send them."""
        loop = asyncio.get_running_loop()
        transport, _ = await loop.create_datagram_endpoint(asyncio.DatagramProtocol, sock=_bound())
        try:
            yield _UdpSender(transport, [(HOST, _port(address)) for address in addresses])
        finally:
            transport.close()


class _Taking(asyncio.DatagramProtocol):
    def __init__(self, take: Take) -> None:
        self._take = take

    def datagram_received(self, data: bytes, addr: Any) -> None:  # noqa: ARG002 - asyncio passes it
        self._take(data)


class _UdpSender:
    BURST: Final = 16
    """Datagrams between two turns of the event loop."""

    def __init__(self, transport: asyncio.DatagramTransport, targets: list[tuple[str, int]]) -> None:
        self._transport = transport
        self._targets = targets
        self._burst = 0

    async def send(self, frame: bytes, *, reliable: bool = True, control: bool = False) -> None:  # noqa: ARG002
        """Neither reliable nor urgent: it has one kind."""
        await self.flood(frame)

    async def flood(self, frame: bytes) -> None:
        """One datagram each."""
        for target in self._targets:
            self._transport.sendto(frame, target)
        self._burst += len(self._targets)
        if self._burst >= self.BURST:
            self._burst = 0
            await asyncio.sleep(0)

    async def flush(self) -> None:
        """They have left."""


class AioquicDatagrams:
    """DATAGRAM frames (RFC 9221) of aioquic's own asyncio client and server, with its default packets of 1200 bytes.

    Args:
        keys: folder with the key and the certificate.
    """

    FRAME_SIZE: Final = 65_536
    """What both sides say that they take; a frame has to fit a packet all the same."""
    IDLE: Final = 3600.0
    """Seconds: it waits while the others are measured."""

    def __init__(self, keys: Path) -> None:
        self._keys = keys

    @asynccontextmanager
    async def receiver(self, take: Take) -> AsyncIterator[str]:
        """Take frames; yields the address."""
        configuration = QuicConfiguration(
            is_client=False,
            alpn_protocols=[ALPN],
            certificate=x509.load_pem_x509_certificate((self._keys / CERTIFICATE_FILE).read_bytes()),
            private_key=serialization.load_pem_private_key((self._keys / KEY_FILE).read_bytes(), None),
            max_datagram_frame_size=self.FRAME_SIZE,
            idle_timeout=self.IDLE,
        )

        def connected(*arguments: Any, **options: Any) -> QuicConnectionProtocol:
            return _AioquicTaking(take, *arguments, **options)

        # What aioquic's `serve` does; but that one does not tell which port it got.
        transport, server = await asyncio.get_running_loop().create_datagram_endpoint(
            lambda: QuicServer(configuration=configuration, create_protocol=connected), sock=_bound()
        )
        try:
            yield _address(transport)
        finally:
            server.close()

    @asynccontextmanager
    async def sender(self, addresses: list[str]) -> AsyncIterator[Sender]:
        """Send them."""
        configuration = QuicConfiguration(
            is_client=True,
            alpn_protocols=[ALPN],
            verify_mode=ssl.CERT_NONE,
            max_datagram_frame_size=self.FRAME_SIZE,
            idle_timeout=self.IDLE,
        )
        async with AsyncExitStack() as resources:
            connections = [
                await resources.enter_async_context(aioquic_connect(HOST, _port(address), configuration=configuration))
                for address in addresses
            ]
            yield _AioquicSender(connections)
            # All at once: each takes three probe timeouts to end, one after the other half a minute.
            for connection in connections:
                connection.close()


class _AioquicTaking(QuicConnectionProtocol):
    def __init__(self, take: Take, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._take = take

    def quic_event_received(self, event: QuicEvent) -> None:
        if isinstance(event, DatagramFrameReceived):
            self._take(event.data)


class _AioquicSender:
    """Sends in bursts, and keeps little in front of what congestion control lets go: it would queue without end."""

    BURST: Final = 64
    """Frames to each neighbour for which `transmit` is called once."""
    AHEAD: Final = 64
    """Frames that may wait in a connection."""
    POLL: Final = 0.0005

    def __init__(self, connections: list[QuicConnectionProtocol]) -> None:
        self._connections = connections
        self._queues = [connection._quic._datagrams_pending for connection in connections]
        self._burst = 0

    async def send(self, frame: bytes, *, reliable: bool = True, control: bool = False) -> None:  # noqa: ARG002
        """Neither reliable nor urgent: it has one kind."""
        await self.flood(frame)

    async def flood(self, frame: bytes) -> None:
        """One DATAGRAM each."""
        for connection in self._connections:
            connection._quic.send_datagram_frame(frame)
        self._burst += 1
        if self._burst >= self.BURST:
            await self.flush()

    async def flush(self) -> None:
        """Let them leave, then wait while too many could not."""
        self._burst = 0
        for connection in self._connections:
            connection.transmit()
        await asyncio.sleep(0)
        while any(len(queue) > self.AHEAD for queue in self._queues):  # noqa: ASYNC110 - it tells nobody
            await asyncio.sleep(self.POLL)


def _bound() -> socket.socket:
    bound = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    bound.setblocking(False)
    for option in (socket.SO_RCVBUF, socket.SO_SNDBUF):
        bound.setsockopt(socket.SOL_SOCKET, option, BUFFER)
    bound.bind((HOST, 0))
    return bound


def _address(transport: asyncio.BaseTransport) -> str:
    return f"{HOST}:{transport.get_extra_info('sockname')[1]}"


def _port(address: str) -> int:
    return int(address.rpartition(":")[2])
