"""What the tests of QUIC share: transports on loopback, transports in memory, and strangers made of aioquic."""

import asyncio
import contextlib
import datetime as dt
import socket
import ssl
from collections.abc import AsyncIterator, Callable
from typing import Any

from aioquic import tls
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.connection import QuicConnection
from aioquic.quic.packet import QuicPacketType
from aioquic.quic.packet_builder import QuicPacketBuilder
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.x509.oid import NameOID

from overlay.addresses import Address
from overlay.config import Config
from overlay.identity import Identity
from overlay.protocol.frames import Control
from overlay.protocol.gate import HandshakeGate
from overlay.transports.base import CloseReason, Connection, ConnectionHandler
from overlay.transports.quic import ALPN
from overlay.transports.quic_connection import clock
from overlay.transports.quic_transport import QuicTransport
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


class Node:
    """A transport with what it was given and what it accepted."""

    def __init__(
        self, sockets: list[UdpSocket], config: Config | None = None, identity: Identity | None = None
    ) -> None:
        self.identity = identity or Identity.generate()
        self.gate = WatchedGate()
        self.accepted: list[Recorder] = []
        self.accept_error: Exception | None = None
        self.keep_data = True
        self._arrived = asyncio.Event()
        self.transport = QuicTransport(self.identity, config or Config(), sockets, self._accept, self.gate)
        self.sockets = sockets
        self.transport.start()

    @property
    def peer_id(self) -> Any:
        return self.identity.peer_id

    @property
    def address(self) -> Address:
        return self.transport.addresses[0]

    def _accept(self, connection: Connection) -> ConnectionHandler:
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

    def is_clean(self) -> bool:
        transport = self.transport
        left = transport._routes or transport._drivers or transport._dials or transport._windows.used
        return not left and not self.gate.pending


def bound_socket(host: str = "127.0.0.1") -> socket.socket:
    sock = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_DGRAM)
    sock.bind((host, 0))
    sock.setblocking(False)
    return sock


@contextlib.asynccontextmanager
async def node(config: Config | None = None, identity: Identity | None = None) -> AsyncIterator[Node]:
    """A transport on a loopback socket."""
    made = Node([UdpSocket(bound_socket())], config, identity)
    try:
        yield made
    finally:
        await made.transport.aclose()
        assert made.is_clean()


@contextlib.asynccontextmanager
async def memory_node(config: Config | None = None) -> AsyncIterator[tuple[Node, MemoryUdp]]:
    """A transport on a socket in memory."""
    udp = MemoryUdp()
    made = Node([udp], config)
    try:
        yield made, udp
    finally:
        await made.transport.aclose()
        assert made.is_clean()


class Stranger(QuicConnection):
    """aioquic as it is, with a hook at the place where TLS is set up."""

    tls_made: Callable[[tls.Context], None] | None = None

    def _initialize(self, peer_cid: bytes) -> None:
        super()._initialize(peer_cid)
        self.tls._supported_groups = [tls.Group.X25519]
        if self.tls_made is not None:
            self.tls_made(self.tls)

    def events(self) -> list[Any]:
        return list(iter(self.next_event, None))

    def output(self) -> list[bytes]:
        return [data for data, _ in self.datagrams_to_send(clock())]

    def packet(self, *frames: tuple[int, bytes], early: bool = False) -> bytes:
        """A packet of frames that nobody checks: (type, body)."""
        epoch = tls.Epoch.INITIAL if early else tls.Epoch.ONE_RTT
        builder = QuicPacketBuilder(
            host_cid=self.host_cid,
            is_client=self._is_client,
            max_datagram_size=1200,
            packet_number=self._packet_number,
            peer_cid=self._peer_cid.cid,
            version=1,
        )
        builder.start_packet(QuicPacketType.INITIAL if early else QuicPacketType.ONE_RTT, self._cryptos[epoch])
        for kind, body in frames:
            builder.start_frame(kind, capacity=len(body) + 1).push_bytes(body)
        datagrams, _ = builder.flush()
        self._packet_number = builder.packet_number
        return datagrams[0]


def stranger_client(
    identity: Identity | None = None,
    *,
    certificate: Any = None,
    private_key: Any = None,
    alpn: str = ALPN,
    tls_made: Callable[[tls.Context], None] | None = None,
    **settings: Any,
) -> Stranger:
    configuration = QuicConfiguration(
        is_client=True,
        alpn_protocols=[alpn],
        verify_mode=ssl.CERT_NONE,
        certificate=certificate or (identity and identity.certificate),
        private_key=private_key or (identity and identity.private_key),
        supported_versions=settings.pop("supported_versions", [1]),
        **settings,
    )
    stranger = Stranger(configuration=configuration)
    stranger.tls_made = tls_made
    stranger.connect(OURS, clock())
    return stranger


def converse(stranger: Stranger, udp: MemoryUdp, rounds: int = 12) -> None:
    """Carry datagrams between a client and our transport until both are silent; each flight is one batch."""
    for _ in range(rounds):
        batch = stranger.output()
        if batch:
            udp.deliver(*batch)
        answers, udp.sent = udp.sent, []
        for data in answers:
            stranger.receive_datagram(data, OURS, clock())
        if not batch and not answers:
            return


class StrangeServer:
    """A server of aioquic behind a socket in memory, for what we dial."""

    def __init__(
        self, udp: MemoryUdp, configuration: QuicConfiguration, tls_made: Callable[[tls.Context], None] | None
    ) -> None:
        self._udp = udp
        self._configuration = configuration
        self._tls_made = tls_made
        self.settings: dict[str, Any] = {}
        self.connection: Stranger | None = None
        udp.peer = self.receive

    def receive(self, data: bytes) -> None:
        if self.connection is None:
            self.connection = Stranger(
                configuration=self._configuration,
                original_destination_connection_id=data[6 : 6 + data[5]],
                **self.settings,
            )
            self.connection.tls_made = self._tls_made
        self.connection.receive_datagram(data, OURS, clock())
        batch = self.connection.output()
        if batch:
            self._udp.deliver(*batch)


def strange_server(
    udp: MemoryUdp,
    *,
    certificate: Any,
    private_key: Any,
    alpn: str = ALPN,
    chain: Any = (),
    tls_made: Callable[[tls.Context], None] | None = None,
) -> StrangeServer:
    configuration = QuicConfiguration(
        is_client=False,
        alpn_protocols=[alpn],
        certificate=certificate,
        certificate_chain=list(chain),
        private_key=private_key,
        supported_versions=[1],
    )
    return StrangeServer(udp, configuration, tls_made)


def certificate_for(
    key: Any, *, not_before: dt.datetime | None = None, days: int = 3650, algorithm: Any = None
) -> x509.Certificate:
    """A self-signed certificate."""
    start = not_before or dt.datetime.now(dt.UTC) - dt.timedelta(days=1)
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "stranger")])
    return (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(start)
        .not_valid_after(start + dt.timedelta(days=days))
        .sign(key, algorithm)
    )


def certificate_with_key(raw: bytes) -> x509.Certificate:
    """A certificate that claims `raw` as its Ed25519 key; nobody could have signed it."""
    from cryptography.hazmat.primitives.serialization import Encoding

    key = Ed25519PrivateKey.generate()
    der = certificate_for(key).public_bytes(Encoding.DER)
    return x509.load_der_x509_certificate(der.replace(key.public_key().public_bytes_raw(), raw))


class Forger:
    """Signs anything for a key of small order: with A the neutral element, R = A and S = 0 always verify."""

    def sign(self, data: bytes, *_: Any) -> bytes:
        return b"\x01" + bytes(63)


def insist(*algorithms: tls.SignatureAlgorithm) -> Callable[[tls.Context], None]:
    """Sign with these, whether the other side offered them or not."""

    def change(context: tls.Context) -> None:
        context._signature_algorithms = list(algorithms)
        context._signature_algorithms_for_private_key = lambda: list(algorithms)  # type: ignore[method-assign]
        original = context._client_handle_certificate_request

        def request(buffer: Any) -> None:
            original(buffer)
            assert context._certificate_request is not None
            context._certificate_request.signature_algorithms = [int(a) for a in algorithms]

        context._client_handle_certificate_request = request  # type: ignore[method-assign,assignment]

    return change
