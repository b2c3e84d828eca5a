"""What the tests of QUIC share beside `transport_support`: nodes, and strangers made of aioquic."""

import contextlib
import datetime as dt
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
from transport_support import OURS, Accepting, MemoryUdp, Recorder, bound_socket, closing

from overlay.config import Config
from overlay.identity import Identity
from overlay.transports.lazy_timer import clock
from overlay.transports.quic import ALPN
from overlay.transports.quic_connection import QuicLink
from overlay.transports.quic_transport import QuicTransport
from overlay.transports.udp_socket import UdpSocket


class Node(Accepting[QuicTransport]):
    """QUIC with what it was given and what it accepted."""

    def __init__(
        self, sockets: list[UdpSocket], config: Config | None = None, identity: Identity | None = None
    ) -> None:
        super().__init__(sockets, identity)
        self.transport = QuicTransport(self.identity, config or Config(), sockets, self.accept, self.gate)
        self.transport.start()

    def is_clean(self) -> bool:
        transport = self.transport
        left = transport._routes or transport._drivers or transport._dials or transport._windows.used
        return not left and not self.gate.pending


@contextlib.asynccontextmanager
async def node(config: Config | None = None, identity: Identity | None = None) -> AsyncIterator[Node]:
    """A transport on a loopback socket."""
    async with closing(Node([UdpSocket(bound_socket())], config, identity)) as made:
        yield made


@contextlib.asynccontextmanager
async def memory_node(config: Config | None = None) -> AsyncIterator[tuple[Node, MemoryUdp]]:
    """A transport on a socket in memory."""
    udp = MemoryUdp()
    async with closing(Node([udp], config)) as made:
        yield made, udp


async def connect(dialer: Node, acceptor: Node) -> tuple[QuicLink, Recorder, Recorder]:
    """A connection, and what both its ends are told."""
    recorder, number = Recorder(), len(acceptor.accepted)
    link = await dialer.transport.dial(acceptor.address, acceptor.peer_id, recorder)
    recorder.connection = link
    return link, recorder, await acceptor.arrival(number)


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
