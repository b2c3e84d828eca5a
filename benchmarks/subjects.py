"""Who is measured: overlay, and what one would use without it."""

import asyncio
import ssl
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any, Final

from aioquic.asyncio.client import connect as aioquic_connect
from aioquic.asyncio.protocol import QuicConnectionProtocol
from aioquic.asyncio.server import QuicServer
from aioquic.quic.configuration import QuicConfiguration
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from workloads import Channel, Dialler, Serve, Subject

from overlay import Address, Config, Endpoint, Identity, Session, Stream, Ticket
from overlay.protocol.udp.wire import MAXIMUM_DATAGRAM

HOST: Final = "127.0.0.1"
PROTOCOL: Final = "benchmark/1"
ALPN: Final = "benchmark"
KEY_FILE: Final = "key.pem"
CERTIFICATE_FILE: Final = "certificate.pem"


class Overlay:
    """Ours, over one transport.

    Args:
        transport: its name.
        largest_datagram: bytes; as on Ethernet, as loopback would carry 64 KB.
    """

    def __init__(self, transport: str, largest_datagram: int = 1400) -> None:
        self._config = Config(listen=(f"{HOST}:0",), transports=(transport,), largest_datagram=largest_datagram)
        self._transport = transport

    @asynccontextmanager
    async def serve(self, serve: Serve) -> AsyncIterator[str]:
        """Accept connections."""

        async def handle(stream: Stream) -> None:
            await serve(stream)

        async with Endpoint(Identity.generate(), self._config) as endpoint:
            endpoint.handle(PROTOCOL, handle)
            yield str(endpoint.ticket)

    @asynccontextmanager
    async def dialler(self, address: str) -> AsyncIterator[Dialler]:
        """A new endpoint with a new key."""
        async with Endpoint(Identity.generate(), self._config) as endpoint:
            yield _OverlayDialler(endpoint, Ticket.parse(address))

    def port(self, address: str) -> int:
        """The port in a ticket."""
        return Ticket.parse(address).addresses[0].port

    def through(self, address: str, port: int) -> str:
        """The ticket with another port."""
        return str(Ticket(Ticket.parse(address).peer_id, (Address(self._transport, HOST, port),)))


class _OverlayDialler:
    def __init__(self, endpoint: Endpoint, ticket: Ticket) -> None:
        self._endpoint = endpoint
        self._ticket = ticket
        self._session: Session | None = None

    async def connect(self, *, early: bool = False) -> None:
        self._session = await self._endpoint.connect(self._ticket, early=early)

    async def open(self) -> Channel:
        if self._session is None:
            raise RuntimeError("connect comes first")
        return await self._session.open_stream(PROTOCOL)


class _Pipe:
    """The two halves that asyncio's and aioquic's streams consist of, as one `Channel`."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writer = writer
        self.read = reader.read
        self.readexactly = reader.readexactly

    async def write(self, data: bytes, /) -> None:
        self._writer.write(data)
        await self._writer.drain()

    async def write_eof(self) -> None:
        if self._writer.can_write_eof():
            self._writer.write_eof()


class _AioquicPipe(_Pipe):
    """aioquic's asyncio layer takes all that is written at once, and each acknowledgement costs more the more waits.

    So that it shows its best, a megabyte is kept in front of it and no more.
    """

    AHEAD: Final = 1024 * 1024
    POLL: Final = 0.0005

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        super().__init__(reader, writer)
        self._adapter: Any = writer.transport

    async def write(self, data: bytes, /) -> None:
        await super().write(data)
        stream = self._adapter.protocol._quic._streams.get(self._adapter.stream_id)
        while stream is not None and len(stream.sender._buffer) > self.AHEAD:  # noqa: ASYNC110 - it tells nobody
            await asyncio.sleep(self.POLL)


class _Rival:
    """What the rivals have in common: one key for both ends, addresses as host:port.

    Args:
        keys: folder with the key and the certificate.
    """

    def __init__(self, keys: Path) -> None:
        self._keys = keys

    def port(self, address: str) -> int:
        """The port in an address."""
        return int(address.rpartition(":")[2])

    def through(self, address: str, port: int) -> str:  # noqa: ARG002 - a ticket has more than a port to keep
        """The address with another port."""
        return f"{HOST}:{port}"


class PlainAioquic(_Rival):
    """aioquic's own asyncio client and server, with its default settings.

    It neither asks for the client's certificate nor checks the server's here, which saves it 2 ms of each handshake.
    """

    @asynccontextmanager
    async def serve(self, serve: Serve) -> AsyncIterator[str]:
        """Accept connections."""
        tasks: set[asyncio.Task[None]] = set()

        def stream_opened(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            task = asyncio.ensure_future(serve(_AioquicPipe(reader, writer)))
            tasks.add(task)
            task.add_done_callback(tasks.discard)

        key = serialization.load_pem_private_key((self._keys / KEY_FILE).read_bytes(), None)
        certificate = x509.load_pem_x509_certificate((self._keys / CERTIFICATE_FILE).read_bytes())
        configuration = QuicConfiguration(
            is_client=False, alpn_protocols=[ALPN], certificate=certificate, private_key=key
        )
        # What aioquic's `serve` does; but that one does not tell which port it got.
        transport, server = await asyncio.get_running_loop().create_datagram_endpoint(
            lambda: QuicServer(configuration=configuration, stream_handler=stream_opened), local_addr=(HOST, 0)
        )
        try:
            yield f"{HOST}:{transport.get_extra_info('sockname')[1]}"
        finally:
            server.close()

    @asynccontextmanager
    async def dialler(self, address: str) -> AsyncIterator[Dialler]:
        """A new client."""
        configuration = QuicConfiguration(is_client=True, alpn_protocols=[ALPN], verify_mode=ssl.CERT_NONE)
        async with AsyncExitStack() as resources:
            yield _AioquicDialler(resources, self.port(address), configuration)


class _AioquicDialler:
    def __init__(self, resources: AsyncExitStack, port: int, configuration: QuicConfiguration) -> None:
        self._resources = resources
        self._port = port
        self._configuration = configuration
        self._connection: QuicConnectionProtocol | None = None

    async def connect(self, *, early: bool = False) -> None:  # noqa: ARG002 - a client of aioquic always is
        self._connection = await self._resources.enter_async_context(
            aioquic_connect(HOST, self._port, configuration=self._configuration)
        )

    async def open(self) -> Channel:
        if self._connection is None:
            raise RuntimeError("connect comes first")
        return _AioquicPipe(*await self._connection.create_stream())


class PlainTls(_Rival):
    """asyncio's streams over the ssl module: TLS 1.3, mutual."""

    @asynccontextmanager
    async def serve(self, serve: Serve) -> AsyncIterator[str]:
        """Accept connections."""

        async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            try:
                await serve(_Pipe(reader, writer))
                # TLS in asyncio has no half-close: the other side goes first.
                await reader.read(1)
            except asyncio.IncompleteReadError:
                return
            finally:
                writer.close()

        context = self._context(ssl.PROTOCOL_TLS_SERVER)
        server = await asyncio.start_server(connected, HOST, 0, ssl=context, limit=256 * 1024, backlog=1024)
        async with server:
            yield f"{HOST}:{server.sockets[0].getsockname()[1]}"

    @asynccontextmanager
    async def dialler(self, address: str) -> AsyncIterator[Dialler]:
        """A new client."""
        async with AsyncExitStack() as resources:
            yield _TlsDialler(resources, self.port(address), self._context(ssl.PROTOCOL_TLS_CLIENT))

    def _context(self, protocol: int) -> ssl.SSLContext:
        context = ssl.SSLContext(protocol)
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.check_hostname = False
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_cert_chain(self._keys / CERTIFICATE_FILE, self._keys / KEY_FILE)
        context.load_verify_locations(self._keys / CERTIFICATE_FILE)
        return context


class _TlsDialler:
    def __init__(self, resources: AsyncExitStack, port: int, context: ssl.SSLContext) -> None:
        self._resources = resources
        self._port = port
        self._context = context
        self._pipe: _Pipe | None = None

    async def connect(self, *, early: bool = False) -> None:  # noqa: ARG002 - a client of TLS 1.3 always is
        reader, writer = await asyncio.open_connection(HOST, self._port, ssl=self._context, limit=256 * 1024)
        self._resources.callback(writer.close)
        self._pipe = _Pipe(reader, writer)

    async def open(self) -> Channel:
        if self._pipe is None:
            raise RuntimeError("connect comes first")
        return self._pipe


def write_keys(folder: Path) -> None:
    """Make a key and its certificate for the rivals."""
    identity = Identity.generate()
    key = identity.private_key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    (folder / KEY_FILE).touch(0o600)
    (folder / KEY_FILE).write_bytes(key)
    (folder / CERTIFICATE_FILE).write_bytes(identity.certificate.public_bytes(serialization.Encoding.PEM))


def subject(name: str, keys: Path) -> Subject:
    """The subject of that name: `quic`, `udp`, `udp-loopback`, `tcp`, `aioquic` or `tls`."""
    if name == "aioquic":
        return PlainAioquic(keys)
    if name == "tls":
        return PlainTls(keys)
    if name == "udp-loopback":
        return Overlay("udp", MAXIMUM_DATAGRAM)
    return Overlay(name)
