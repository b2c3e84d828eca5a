"""The TLS 1.3 profile over memory buffers: a handshake that ends with the peer's proven key or an error.

A node's certificate is self-signed and says nothing but its Ed25519 key; that the peer holds the key is shown by
its CertificateVerify (RFC 8446 section 4.4.3), which OpenSSL checks. What is ours to check stands in `_Judge`,
which OpenSSL calls while the peer can still be told by an alert, and, where OpenSSL does not call it, in
`Handshake._conclude`:

- OpenSSL calls it for each certificate that it builds a chain of, so never for surplus ones: those are counted
  afterwards.
- It is not called for a resumed session. We issue no tickets that could be used and keep no sessions; a handshake
  in which it was not called is refused all the same.
- Validity dates, names and the certificate's own signature are ignored: mesh devices have wrong clocks, and the
  key is proven by CertificateVerify, not by them.

pyOpenSSL keeps exceptions of callbacks in the context, which all connections share: one peer's exception could
surface in another's call. So the callback never raises; it keeps its finding in the object of its own connection.
"""

from collections.abc import Sequence

from cryptography.hazmat.primitives.asymmetric import ec
from OpenSSL import SSL
from OpenSSL.crypto import X509

from overlay.errors import HandshakeError, IdentityMismatch, SelfDial
from overlay.identity import Identity, PeerId, peer_id_of
from overlay.protocol.codes import CloseCode
from overlay.transports.base import Role

MAX_HANDSHAKE = 64 * 1024
"""Bytes taken from a peer before it is known. An honest handshake has under 2 KiB; OpenSSL would hold a
certificate message of 100 KiB."""
RECORD = 16 * 1024
"""A TLS record's longest content (RFC 8446 section 5.1), so what one read returns at most."""
_SENTENCES = {
    "peer did not return a certificate": "the peer sent no certificate",
    "unsupported protocol": "the peer does not offer TLS 1.3",
    "wrong version number": "the peer does not speak TLS",
    "http request": "the peer does not speak TLS but HTTP",
    "packet length too long": "the peer does not speak TLS",
    "bad record type": "the peer does not speak TLS",
    "no application protocol": "the peer does not speak our protocol",
    "unexpected eof while reading": "the peer hung up during the handshake",
}


class Profile:
    """The settings of all TLS connections of one transport; made once, shared by its handshakes.

    Args:
        identity: whose key and certificate to show.
        alpn: the protocol's name; mandatory on both sides (RFC 7301), and different for each transport, so
            that handshake bytes of one cannot be spliced into another.
        curve: the only key-exchange group: a ClientHello has a share for each that it offers.
        suites: the only cipher suites (RFC 8446 appendix B.4), the best first.
        own_order: accepting, choose the suite by our order instead of the dialler's.
    """

    def __init__(
        self,
        identity: Identity,
        alpn: bytes,
        *,
        curve: ec.EllipticCurve | None = None,
        suites: Sequence[str] = (),
        own_order: bool = False,
    ) -> None:
        self.own = identity.peer_id
        self.alpn = alpn
        context = SSL.Context(SSL.TLS_METHOD)
        context.set_min_proto_version(SSL.TLS1_3_VERSION)
        context.set_max_proto_version(SSL.TLS1_3_VERSION)
        context.set_session_cache_mode(SSL.SESS_CACHE_OFF)
        context.set_options(SSL.OP_NO_TICKET | SSL.OP_NO_RENEGOTIATION | SSL.OP_NO_COMPRESSION)
        # pyOpenSSL turns SSL_MODE_ENABLE_PARTIAL_WRITE (1) on, with which each send takes one record of 16
        # KiB only.
        context.clear_mode(1)
        context.use_certificate(identity.certificate)
        context.use_privatekey(identity.private_key)
        context.set_verify(SSL.VERIFY_PEER | SSL.VERIFY_FAIL_IF_NO_PEER_CERT, _verify)
        context.set_alpn_protos([alpn])
        if curve is not None:
            context.set_tmp_ecdh(curve)
        if suites:
            context.set_tls13_ciphersuites(":".join(suites).encode())
        if own_order:
            context.set_options(SSL.OP_CIPHER_SERVER_PREFERENCE)
        # Without an answer the handshake goes on; the judge then refuses it, without an exception in a callback.
        context.set_alpn_select_callback(lambda _, offered: alpn if alpn in offered else SSL.NO_OVERLAPPING_PROTOCOLS)
        self._context = context

    def handshake(self, role: Role, expected: PeerId | None = None) -> "Handshake":
        """Begin a handshake.

        Args:
            role: DIALER speaks first.
            expected: the only key to accept; None accepts any.
        """
        connection = SSL.Connection(self._context, None)
        return Handshake(connection, _Judge(self, role, expected))


class Handshake:
    """One handshake, without I/O: feed it `receive_data`, send what `data_to_send` returns after each call.

    Attributes:
        ssl: the connection below; once the key is proven, whoever drives it takes it from here.
    """

    def __init__(self, ssl: SSL.Connection, judge: "_Judge") -> None:
        self.ssl = ssl
        self._judge = judge
        self._received = 0
        ssl.set_app_data(judge)
        if judge.role is Role.DIALER:
            ssl.set_connect_state()
        else:
            ssl.set_accept_state()

    def receive_data(self, data: bytes) -> PeerId | None:
        """Go on with `data`, which is empty for the dialler's first step.

        Returns:
            The key that the peer has proven, or None as long as more is needed. Bytes behind the handshake
            stay in `ssl`.

        Raises:
            HandshakeError: no acceptable peer. `data_to_send` may hold an alert that tells it why.
            IdentityMismatch: it proved another key than the expected one.
            SelfDial: it showed our own key.
        """
        self._received += len(data)
        try:
            if data:
                self.ssl.bio_write(data)
            self.ssl.do_handshake()
        except SSL.WantReadError:
            if self._received > MAX_HANDSHAKE:
                raise HandshakeError("the peer's handshake is longer than any honest one") from None
            return None
        except SSL.Error as error:
            finding = self._judge.finding
            if finding is not None:
                raise finding from (finding.__cause__ or error)
            raise HandshakeError(sentence(error)) from error
        try:
            return self._conclude()
        except HandshakeError:
            # OpenSSL is content and we are not: the peer must not see our Finished.
            drain(self.ssl, 4 * RECORD)
            raise

    def data_to_send(self) -> bytes:
        """What is to be sent now; empty when nothing is."""
        return drain(self.ssl, 4 * RECORD)

    def _conclude(self) -> PeerId:
        judge, ssl = self._judge, self.ssl
        if judge.peer is None:
            raise HandshakeError("the peer resumed a session instead of proving its key")
        judge.check_alpn(ssl)
        certificate = ssl.get_peer_certificate(as_cryptography=True)
        if certificate is None or peer_id_of(certificate) != judge.peer:
            raise HandshakeError("the peer's certificate is not the one that was verified")
        # The list holds the leaf on the dialling side only (SSL_get_peer_cert_chain(3)).
        allowed = 1 if judge.role is Role.DIALER else 0
        if len(ssl.get_peer_cert_chain(as_cryptography=True) or ()) > allowed:
            raise HandshakeError("the peer sent more than one certificate")
        return judge.peer


class _Judge:
    """Decides on one peer's certificate; keeps the key it accepted, or why it did not."""

    def __init__(self, profile: Profile, role: Role, expected: PeerId | None) -> None:
        self.role = role
        self.peer: PeerId | None = None
        self.finding: HandshakeError | None = None
        self._profile = profile
        self._expected = expected

    def accepts(self, ssl: SSL.Connection, certificate: X509, depth: int) -> bool:
        """Whether the handshake may go on; never raises."""
        try:
            self.check_alpn(ssl)
            self._check(certificate, depth)
        except HandshakeError as error:
            self.finding = error
        except Exception as error:  # noqa: BLE001 - parsers fail in many ways, and nothing may pass into C
            self.finding = HandshakeError("the peer's certificate cannot be read")
            self.finding.__cause__ = error
        return self.finding is None

    def check_alpn(self, ssl: SSL.Connection) -> None:
        """Refuse a peer with which our protocol was not agreed on.

        Raises:
            HandshakeError: none, or another one.
        """
        if ssl.get_alpn_proto_negotiated() != self._profile.alpn:
            raise HandshakeError(f"the peer does not speak {self._profile.alpn.decode()}")

    def _check(self, certificate: X509, depth: int) -> None:
        if depth:
            raise HandshakeError("the peer sent more than one certificate")
        peer = peer_id_of(certificate.to_cryptography())
        if self.role is Role.DIALER and peer == self._profile.own:
            raise SelfDial("the address leads back to ourselves", CloseCode.SELF_DIAL)
        if self._expected is not None and peer != self._expected:
            dialled, found = self._expected.short, peer.short
            raise IdentityMismatch(f"{dialled}... was dialled, but {found}... answers")
        self.peer = peer


def drain(ssl: SSL.Connection, size: int) -> bytes:
    """What OpenSSL wants to send: all of it if that is under `size` bytes, else that much of it."""
    try:
        return ssl.bio_read(size)
    except SSL.WantReadError:
        return b""


def sentence(error: SSL.Error) -> str:
    """What an OpenSSL error says about the peer, in words."""
    reasons = _reasons(error)
    for reason in reasons:
        if reason in _SENTENCES:
            return _SENTENCES[reason]
    if is_alert(error):
        return "the peer refused us: " + reasons[0].rpartition("alert ")[2]
    return "the TLS handshake failed: " + (", ".join(reasons) or type(error).__name__)


def is_alert(error: SSL.Error) -> bool:
    """Whether the peer sent an alert, rather than OpenSSL finding a fault here."""
    return any(" alert " in reason for reason in _reasons(error))


def _reasons(error: SSL.Error) -> list[str]:
    if error.args and isinstance(error.args[0], list):
        return [str(entry[-1]).lower() for entry in error.args[0]]
    return [str(argument).lower() for argument in error.args if isinstance(argument, str)]


def _verify(ssl: SSL.Connection, certificate: X509, _error: int, depth: int, _ok: int) -> bool:
    judge = ssl.get_app_data()
    return isinstance(judge, _Judge) and judge.accepts(ssl, certificate, depth)
