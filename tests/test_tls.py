"""The TLS profile against hostile peers over TCP: each is refused before anything exists for it."""

import asyncio
import contextlib
import datetime as dt
import itertools
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager

import pytest
import trustme
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_private_key
from OpenSSL import SSL
from OpenSSL.crypto import X509

from overlay.addresses import Address
from overlay.config import Config
from overlay.errors import HandshakeError, IdentityMismatch, SelfDial
from overlay.identity import Identity, PeerId
from overlay.protocol.codes import CloseCode
from overlay.protocol.frames import Close, Control, FrameReader, Ping, encode
from overlay.protocol.gate import HandshakeGate
from overlay.transports import tls
from overlay.transports.base import ClosedBy, CloseReason, Connection, Role
from overlay.transports.sockets import bind
from overlay.transports.tcp import ALPN, TcpTransport

CONFIG = Config(listen=("127.0.0.1:0",), transports=("tcp",))
IMPATIENT = Config(listen=("127.0.0.1:0",), transports=("tcp",), handshake_timeout=0.2)
YEAR = dt.timedelta(days=365)


class Ended:
    """A handler that keeps why its connection ended."""

    def __init__(self) -> None:
        self.reason: asyncio.Future[CloseReason] = asyncio.get_running_loop().create_future()

    def frame_received(self, connection: Connection, frame: Control) -> None:
        raise AssertionError(frame)

    def stream_received(self, connection: Connection, stream: int, offset: int, data: bytes) -> None:
        raise AssertionError(data)

    def datagram_received(self, connection: Connection, data: bytes) -> None:
        raise AssertionError(data)

    def writable(self, connection: Connection) -> None:
        pass

    def closed(self, connection: Connection, reason: CloseReason) -> None:
        self.reason.set_result(reason)


class WatchedGate(HandshakeGate):
    """A gate that can be waited for."""

    def __init__(self) -> None:
        super().__init__(8, 8)
        self.left = asyncio.Event()

    def leave(self, host: str) -> None:
        super().leave(host)
        self.left.set()


class Node:
    """A listening transport that keeps what it accepted."""

    def __init__(self, config: Config) -> None:
        self.identity = Identity.generate()
        self.gate = WatchedGate()
        self.accepted: list[PeerId] = []
        [pair] = bind(config)
        assert pair.tcp is not None
        self.transport = TcpTransport(self.identity, config, [pair.tcp], self._accept, self.gate)
        [self.address] = self.transport.addresses

    def _accept(self, connection: Connection) -> Ended:
        self.accepted.append(connection.peer_id)
        return Ended()


@asynccontextmanager
async def node(config: Config = CONFIG) -> AsyncIterator[Node]:
    it = Node(config)
    it.transport.start()
    try:
        yield it
    finally:
        await it.transport.aclose()
        assert it.gate.pending == 0
        assert not it.transport._connections
        assert not it.transport._openings


@asynccontextmanager
async def refusing() -> AsyncIterator[Node]:
    """A node that must not accept anybody meanwhile, and must have given the place in its gate back."""
    async with node() as it:
        yield it
        await it.gate.left.wait()
        assert it.gate.pending == 0
        assert not it.accepted
        assert not it.transport._connections


def certificate(
    key: Ed25519PrivateKey,
    *,
    subject: str = "leaf",
    issuer: str | None = None,
    signer: Ed25519PrivateKey | None = None,
    start: dt.timedelta = -YEAR,
    end: dt.timedelta = YEAR,
) -> x509.Certificate:
    def name(text: str) -> x509.Name:
        return x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, text)])

    now = dt.datetime.now(dt.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(name(subject))
        .issuer_name(name(issuer or subject))
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now + start)
        .not_valid_after(now + end)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(signer or key, None)
    )


def context(
    key: object = None,
    chain: Sequence[x509.Certificate] = (),
    *,
    alpn: bytes | None = ALPN,
    version: int = SSL.TLS1_3_VERSION,
) -> SSL.Context:
    """A peer's TLS settings, with none of our checks."""
    made = SSL.Context(SSL.TLS_METHOD)
    made.set_max_proto_version(version)
    made.set_verify(SSL.VERIFY_PEER, lambda *_: True)
    if chain:
        made.use_certificate(chain[0])
        made.use_privatekey(key)  # type: ignore[arg-type]
        for surplus in chain[1:]:
            made.add_extra_chain_cert(surplus)
    if alpn is not None:
        made.set_alpn_protos([alpn])
        made.set_alpn_select_callback(lambda _, offered: alpn if alpn in offered else offered[0])
    return made


def honest(identity: Identity, alpn: bytes | None = ALPN) -> SSL.Context:
    return context(identity.private_key, [identity.certificate], alpn=alpn)


def trustme_context(kind: trustme.KeyType) -> SSL.Context:
    leaf = trustme.CA(key_type=kind).issue_cert("peer.example", key_type=kind)
    pem = leaf.cert_chain_pems[0].bytes()
    key = load_pem_private_key(leaf.private_key_pem.bytes(), None)
    return context(key, [x509.load_pem_x509_certificate(pem)])


def chain_of_two() -> SSL.Context:
    """A leaf and the authority that signed it."""
    authority, key = Ed25519PrivateKey.generate(), Ed25519PrivateKey.generate()
    leaf = certificate(key, issuer="authority", signer=authority)
    return context(key, [leaf, certificate(authority, subject="authority")])


def surplus_certificate() -> SSL.Context:
    """An honest leaf and a certificate that has nothing to do with it: OpenSSL's callback never sees that one."""
    key = Ed25519PrivateKey.generate()
    return context(key, [certificate(key), certificate(Ed25519PrivateKey.generate(), subject="other")])


HOSTILE: dict[str, Callable[[], SSL.Context]] = {
    "RSA": lambda: trustme_context(trustme.KeyType.RSA),
    "ECDSA": lambda: trustme_context(trustme.KeyType.ECDSA),
    "chain of two": chain_of_two,
    "surplus certificate": surplus_certificate,
    "no ALPN": lambda: honest(Identity.generate(), alpn=None),
    "wrong ALPN": lambda: honest(Identity.generate(), alpn=b"http/1.1"),
    "ALPN of QUIC": lambda: honest(Identity.generate(), alpn=b"overlay-quic/1"),
    "TLS 1.2": lambda: context(
        (hostile := Identity.generate()).private_key, [hostile.certificate], version=SSL.TLS1_2_VERSION
    ),
}


async def shake(ssl: SSL.Connection, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Drive a peer's handshake to its end.

    Raises:
        SSL.Error: it failed; EOFError: the other side hung up.
    """
    while True:
        try:
            ssl.do_handshake()
        except SSL.WantReadError:
            writer.write(tls.drain(ssl, 1 << 16))
            data = await reader.read(1 << 16)
            if not data:
                raise EOFError from None
            ssl.bio_write(data)
        else:
            return
        finally:
            # The Finished at the end, or the alert.
            writer.write(tls.drain(ssl, 1 << 16))


async def read_to_end(ssl: SSL.Connection, reader: asyncio.StreamReader) -> bytes:
    """All application bytes up to the alert or the end."""
    received = b""
    while True:
        try:
            received += ssl.recv(1 << 14)
        except SSL.WantReadError:
            data = await reader.read(1 << 16)
            if not data:
                return received
            ssl.bio_write(data)
        except SSL.Error:
            return received


@asynccontextmanager
async def connected(address: Address) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    reader, writer = await asyncio.open_connection(address.host, address.port)
    try:
        yield reader, writer
    finally:
        writer.transport.abort()


async def knock(address: Address, settings: SSL.Context) -> bytes:
    """Dial with a hostile peer; the application bytes that it was given."""
    ssl = SSL.Connection(settings, None)
    ssl.set_connect_state()
    async with connected(address) as (reader, writer):
        try:
            await shake(ssl, reader, writer)
        except (SSL.Error, EOFError, ConnectionError):
            return b""
        try:
            return await read_to_end(ssl, reader)
        except ConnectionError:
            return b""


@asynccontextmanager
async def impostor(settings: SSL.Context) -> AsyncIterator[Address]:
    """A hostile peer that listens."""
    ended = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        ssl = SSL.Connection(settings, None)
        ssl.set_accept_state()
        try:
            await shake(ssl, reader, writer)
            await read_to_end(ssl, reader)
        except (SSL.Error, EOFError, ConnectionError):
            # Hanging up properly lets the alert that OpenSSL made arrive.
            writer.write_eof()
            await reader.read()
        finally:
            writer.transport.abort()
            ended.set()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        yield Address.from_sockaddr("tcp", server.sockets[0].getsockname())
        await ended.wait()


@pytest.mark.parametrize("kind", HOSTILE)
async def test_a_hostile_dialler_is_refused_and_given_no_byte(kind: str) -> None:
    async with refusing() as it:
        assert await knock(it.address, HOSTILE[kind]()) == b""


async def test_a_dialler_without_a_certificate_is_refused() -> None:
    async with refusing() as it:
        assert await knock(it.address, context()) == b""


@pytest.mark.parametrize("kind", HOSTILE)
async def test_a_hostile_acceptor_is_a_typed_error_for_the_dialler(kind: str) -> None:
    async with node() as it, impostor(HOSTILE[kind]()) as address:
        ended = Ended()
        with pytest.raises(HandshakeError) as caught:
            await it.transport.dial(address, Identity.generate().peer_id, ended)
        assert caught.value.code is CloseCode.UNAUTHENTICATED
        assert not ended.reason.done()


async def test_another_key_than_the_one_dialled_is_a_mismatch() -> None:
    dialled = Identity.generate().peer_id
    async with node() as it, impostor(honest(Identity.generate())) as address:
        with pytest.raises(IdentityMismatch, match=dialled.short):
            await it.transport.dial(address, dialled, Ended())


async def test_a_key_that_is_dialled_must_come_alone() -> None:
    """The pinned key with a surplus certificate is refused before the impostor sees our Finished."""
    key = Ed25519PrivateKey.generate()
    peer = PeerId(key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw))
    settings = context(key, [certificate(key), certificate(Ed25519PrivateKey.generate(), subject="other")])
    async with node() as it, impostor(settings) as address:
        with pytest.raises(HandshakeError, match="more than one certificate"):
            await it.transport.dial(address, peer, Ended())


@pytest.mark.parametrize(("start", "end"), [(-2 * YEAR, -YEAR), (YEAR, 2 * YEAR)], ids=["expired", "not yet valid"])
async def test_dates_are_not_looked_at(start: dt.timedelta, end: dt.timedelta) -> None:
    key = Ed25519PrivateKey.generate()
    peer = PeerId(key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw))
    settings = context(key, [certificate(key, start=start, end=end)])
    async with node() as it:
        async with impostor(settings) as address:
            connection = await it.transport.dial(address, peer, Ended())
            assert connection.peer_id == peer
            connection.abort()
        ssl = SSL.Connection(settings, None)
        ssl.set_connect_state()
        async with connected(it.address) as (reader, writer):
            await shake(ssl, reader, writer)
            await it.gate.left.wait()
            assert it.accepted == [peer]


async def test_a_refused_dialler_learns_it_through_closed() -> None:
    """A TLS 1.3 client is done before the server has verified it: the refusal comes afterwards."""
    async with refusing() as acceptor, node() as dialler:
        stranger = dialler.transport
        stranger._profile = tls.Profile(dialler.identity, b"overlay-quic/1")
        stranger._profile.alpn = ALPN
        stranger._profile._context = honest_but_bare()
        ended = Ended()
        connection = await stranger.dial(acceptor.address, acceptor.identity.peer_id, ended)
        connection.send_frame(encode(Ping(1)))
        connection.flush()
        reason = await ended.reason
        assert (reason.by, reason.code) == (ClosedBy.PEER, CloseCode.UNAUTHENTICATED)


def honest_but_bare() -> SSL.Context:
    """Our own profile, but without a certificate to show."""
    bare = context()
    bare.set_min_proto_version(SSL.TLS1_3_VERSION)
    bare.set_verify(SSL.VERIFY_PEER, tls._verify)
    return bare


async def test_a_dial_to_oneself_is_closed_with_its_code() -> None:
    """A dialler with our own key that does not check whom it reached."""
    async with node() as it:
        received = await knock(it.address, honest(it.identity))
        [close] = FrameReader(stream_data=True).receive_data(received)
        assert isinstance(close, Close)
        assert close.code == CloseCode.SELF_DIAL
        assert not it.accepted


async def test_our_own_key_at_another_address_is_a_self_dial() -> None:
    async with node() as it, impostor(honest(it.identity)) as address:
        with pytest.raises(SelfDial):
            await it.transport.dial(address, Identity.generate().peer_id, Ended())


def certificates_shown(make_server: Callable[[], SSL.Connection]) -> list[bool]:
    """Whether the server proved its key in a first and in a second handshake, which offers the first's session."""
    shown: list[bool] = []
    client = Identity.generate()
    settings = honest(client)
    settings.set_session_cache_mode(SSL.SESS_CACHE_CLIENT)
    settings.set_verify(SSL.VERIFY_PEER, lambda *_: not shown.append(True))  # type: ignore[func-returns-value]
    session: SSL.Session | None = None
    result = []
    for _ in range(2):
        dialler, server = SSL.Connection(settings, None), make_server()
        dialler.set_connect_state()
        if session is not None:
            dialler.set_session(session)
        for one, other in itertools.islice(itertools.cycle(((dialler, server), (server, dialler))), 6):
            with contextlib.suppress(SSL.WantReadError):
                one.do_handshake()
            if data := tls.drain(one, 1 << 16):
                other.bio_write(data)
        server.send(b"behind the tickets")
        dialler.bio_write(tls.drain(server, 1 << 16))
        assert dialler.recv(64) == b"behind the tickets"
        dialler.shutdown()
        server.shutdown()
        session = dialler.get_session()
        result.append(bool(shown))
        shown.clear()
    return result


def test_a_session_is_never_resumed() -> None:
    """A dialler that offers the session it had is verified anew; with OpenSSL's defaults it would not be."""
    default = honest(Identity.generate())
    default.set_session_id(b"default")
    profile = tls.Profile(Identity.generate(), ALPN)

    def lax() -> SSL.Connection:
        server = SSL.Connection(default, None)
        server.set_accept_state()
        return server

    assert certificates_shown(lax) == [True, False]
    assert certificates_shown(lambda: profile.handshake(Role.ACCEPTOR).ssl) == [True, True]


@pytest.mark.parametrize(
    "garbage",
    [b"GET / HTTP/1.1\r\n\r\n", b"SSH-2.0-OpenSSH_9.9\r\n", bytes(64), b"\xff" * 4096],
    ids=["HTTP", "SSH", "zeros", "ones"],
)
async def test_plaintext_garbage_is_refused(garbage: bytes) -> None:
    async with refusing() as it, connected(it.address) as (reader, writer):
        writer.write(garbage)
        await hung_up(reader)


async def test_a_hello_without_end_is_cut_off() -> None:
    """A ClientHello of 130,000 bytes, which OpenSSL would take: records of 16 KiB, valid but for their sense."""
    async with refusing() as it, connected(it.address) as (reader, writer):
        first = b"\x01" + (130_000).to_bytes(3, "big")
        writer.write(b"\x16\x03\x01\x40\x00" + first.ljust(1 << 14, b"\0"))
        for _ in range(5):
            writer.write(b"\x16\x03\x01\x40\x00" + bytes(1 << 14))
        await hung_up(reader)


async def test_a_slow_loris_ends_by_the_deadline() -> None:
    async with node(IMPATIENT) as it, connected(it.address) as (reader, writer):
        ssl = SSL.Connection(honest(Identity.generate()), None)
        ssl.set_connect_state()
        with pytest.raises(SSL.WantReadError):
            ssl.do_handshake()
        hello = tls.drain(ssl, 1 << 14)
        for position in itertools.count():
            writer.write(hello[position : position + 1])
            if await ends_within(hung_up(reader), 0.02):
                break
        assert it.gate.pending == 0
        assert not it.accepted
        assert position < len(hello)


async def test_a_silent_dialler_ends_by_the_deadline() -> None:
    async with node(IMPATIENT) as it, connected(it.address) as (reader, _):
        assert await reader.read() == b""
        assert it.gate.pending == 0


async def hung_up(reader: asyncio.StreamReader) -> None:
    """Wait for the end, orderly or not."""
    try:
        await reader.read()
    except ConnectionError:
        return


async def ends_within(wait: Awaitable[None], seconds: float) -> bool:
    try:
        await asyncio.wait_for(wait, seconds)
    except TimeoutError:
        return False
    return True


@pytest.mark.parametrize(
    "raw",
    [bytes(32), (1).to_bytes(32, "little"), b"\xec" + b"\xff" * 30 + b"\x7f", b"\xee" + b"\xff" * 30 + b"\x7f"],
    ids=["order 4", "neutral", "order 2", "not canonical"],
)
def test_keys_under_which_signatures_can_be_forged_are_refused(raw: bytes) -> None:
    """Such a certificate is built by putting the key's bytes into an honest one: nobody holds its private key."""
    identity = Identity.generate()
    der = identity.certificate.public_bytes(Encoding.DER).replace(identity.peer_id.raw, raw)
    forged = X509.from_cryptography(x509.load_der_x509_certificate(der))
    profile = tls.Profile(Identity.generate(), ALPN)
    judge = tls._Judge(profile, Role.ACCEPTOR, None)
    with pytest.raises(HandshakeError, match="key"):
        judge._check(forged, 0)
    assert judge.peer is None


def test_a_finding_never_passes_into_c() -> None:
    """Whatever a certificate does to our parsers becomes a refusal of this one peer."""

    class Broken:
        def to_cryptography(self) -> x509.Certificate:
            raise ValueError("malformed")

        def get_alpn_proto_negotiated(self) -> bytes:
            return ALPN

    judge = tls._Judge(tls.Profile(Identity.generate(), ALPN), Role.ACCEPTOR, None)
    broken = Broken()
    assert not judge.accepts(broken, broken, 0)  # type: ignore[arg-type]
    assert isinstance(judge.finding, HandshakeError)
    assert isinstance(judge.finding.__cause__, ValueError)


def test_our_first_message_fills_a_segment() -> None:
    """That is how TCP finds out that a link drops what is too big: see the head of `transports/tcp.py`."""
    handshake = tls.Profile(Identity.generate(), ALPN).handshake(Role.DIALER, Identity.generate().peer_id)
    handshake.receive_data(b"")
    assert len(handshake.data_to_send()) > 1300
