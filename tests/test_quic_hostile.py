"""Hostile peers over QUIC: none gets a connection, and none that has one gets more than its share."""

import asyncio
import datetime as dt
import logging
import os
from collections.abc import Callable
from typing import Any

import pytest
import trustme
from aioquic import tls
from aioquic.buffer import Buffer  # type: ignore[attr-defined]
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.connection import QuicConnection, QuicConnectionAdapter
from aioquic.quic.events import HandshakeCompleted
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, load_pem_private_key
from quic_support import (
    Forger,
    Stranger,
    certificate_for,
    certificate_with_key,
    converse,
    insist,
    memory_node,
    strange_server,
    stranger_client,
)
from transport_support import OURS, Recorder

from overlay.addresses import Address
from overlay.errors import HandshakeError, IdentityMismatch, SelfDial
from overlay.identity import Identity
from overlay.protocol.codes import CloseCode
from overlay.transports.lazy_timer import clock
from overlay.transports.quic import ALPN

NEUTRAL = b"\x01" + bytes(31)
"""The point (0, 1): of order one."""
NOT_CANONICAL = (2**255 - 18).to_bytes(32, "little")
"""The same point, with y = p + 1."""
SOME_ADDRESS = Address("quic", "192.0.2.2", 40_000)


def without(*methods: str) -> Callable[[tls.Context], None]:
    """TLS that leaves messages out: the functions that would write them do nothing."""

    def change(context: tls.Context) -> None:
        finished = context._client_handle_finished

        def handle(input_buf: Buffer, output_buf: Buffer) -> None:
            with pytest.MonkeyPatch.context() as patch:
                for method in methods:
                    patch.setattr(tls, method, lambda *_: None)
                finished(input_buf, output_buf)

        context._client_handle_finished = handle  # type: ignore[method-assign]

    return change


def trusted(key_type: trustme.KeyType) -> tuple[Any, Any]:
    issued = trustme.CA(key_type=key_type).issue_cert("stranger.example", key_type=key_type)
    certificate = x509.load_pem_x509_certificate(issued.cert_chain_pems[0].bytes())
    return certificate, load_pem_private_key(issued.private_key_pem.bytes(), None)


def _no_certificate() -> Stranger:
    return stranger_client(Identity.generate(), tls_made=without("push_certificate", "push_certificate_verify"))


def _no_verify() -> Stranger:
    return stranger_client(Identity.generate(), tls_made=without("push_certificate_verify"))


def _wrong_verify() -> Stranger:
    victim = Identity.generate()
    return stranger_client(certificate=victim.certificate, private_key=Ed25519PrivateKey.generate())


def _rsa() -> Stranger:
    certificate, key = trusted(trustme.KeyType.RSA)
    return stranger_client(certificate=certificate, private_key=key)


def _rsa_insisting() -> Stranger:
    certificate, key = trusted(trustme.KeyType.RSA)
    return stranger_client(
        certificate=certificate,
        private_key=key,
        tls_made=insist(tls.SignatureAlgorithm.RSA_PSS_RSAE_SHA256, tls.SignatureAlgorithm.ED25519),
    )


def _ecdsa() -> Stranger:
    certificate, key = trusted(trustme.KeyType.ECDSA)
    return stranger_client(certificate=certificate, private_key=key)


def _ecdsa_insisting() -> Stranger:
    certificate, key = trusted(trustme.KeyType.ECDSA)
    return stranger_client(
        certificate=certificate,
        private_key=key,
        tls_made=insist(tls.SignatureAlgorithm.ECDSA_SECP256R1_SHA256, tls.SignatureAlgorithm.ED25519),
    )


def _chain_of_two() -> Stranger:
    identity, other = Identity.generate(), Identity.generate()
    return stranger_client(identity, certificate_chain=[other.certificate])


def _small_order() -> Stranger:
    return stranger_client(
        certificate=certificate_with_key(NEUTRAL),
        private_key=Forger(),
        tls_made=insist(tls.SignatureAlgorithm.ED25519),
    )


def _not_canonical() -> Stranger:
    return stranger_client(
        certificate=certificate_with_key(NOT_CANONICAL),
        private_key=Forger(),
        tls_made=insist(tls.SignatureAlgorithm.ED25519),
    )


def _resumption() -> Stranger:
    now = dt.datetime.now(dt.UTC)
    ticket = tls.SessionTicket(
        age_add=0,
        cipher_suite=tls.CipherSuite.AES_256_GCM_SHA384,
        max_early_data_size=0xFFFFFFFF,
        not_valid_after=now + dt.timedelta(days=1),
        not_valid_before=now - dt.timedelta(days=1),
        other_extensions=[],
        resumption_secret=os.urandom(48),
        server_name=None,  # type: ignore[arg-type]
        ticket=os.urandom(64),
    )
    return stranger_client(session_ticket=ticket)


def _foreign_alpn() -> Stranger:
    return stranger_client(Identity.generate(), alpn="h3")


def _alpn_of_tcp() -> Stranger:
    return stranger_client(Identity.generate(), alpn="overlay-tcp/1")


@pytest.mark.parametrize(
    "make",
    [
        stranger_client,  # an empty Certificate message
        _no_certificate,
        _no_verify,
        _wrong_verify,
        _rsa,
        _rsa_insisting,
        _ecdsa,
        _ecdsa_insisting,
        _chain_of_two,
        _small_order,
        _not_canonical,
        _resumption,
        _foreign_alpn,
        _alpn_of_tcp,
    ],
    ids=lambda make: make.__name__.strip("_"),
)
async def test_a_client_that_proves_no_acceptable_key_gets_nothing(make: Callable[[], Stranger]) -> None:
    """No callback, no application byte, and its place at the gate is free again."""
    async with memory_node() as (bob, udp):
        stranger = make()
        converse(stranger, udp)
        assert bob.accepted == []
        assert stranger._close_event is not None
        assert not [event for event in stranger.events() if "StreamData" in type(event).__name__]
        assert stranger._remote_max_data_used == 0
        await bob.gate.emptied()
        assert bob.gate.entered == 1
        assert bob.is_clean()


async def test_an_honest_client_made_of_the_same_parts_gets_in() -> None:
    """So what is refused above is refused for its reason."""
    async with memory_node() as (bob, udp):
        identity = Identity.generate()
        tickets: list[Any] = []
        stranger = stranger_client(identity)
        stranger._session_ticket_handler = tickets.append
        converse(stranger, udp)
        assert [arrival.connection.peer_id for arrival in bob.accepted] == [identity.peer_id]  # type: ignore[union-attr]
        assert tickets == []


def _batching_attack(server: QuicConnection, victim: Identity, feed: Callable[[list[bytes]], None]) -> Stranger:
    """Send the victim's certificate with garbage behind it, then an empty Certificate message and Finished.

    The first message dies of a fatal alert, but only after aioquic has noted the victim's certificate, and it
    goes on with what it finds in the same batch.
    """
    stranger = stranger_client()

    def finished(input_buf: Buffer, output_buf: Buffer) -> None:
        context = stranger.tls
        message = tls.pull_finished(input_buf)
        schedule = context.key_schedule
        assert schedule is not None
        assert message.verify_data == schedule.finished_verify_data(context._dec_key)  # type: ignore[arg-type]
        schedule.update_hash(input_buf.data)
        schedule.extract(None)
        context._setup_traffic_protection(tls.Direction.DECRYPT, tls.Epoch.ONE_RTT, b"s ap traffic")
        key = schedule.derive_secret(b"c ap traffic")
        leaf = victim.certificate.public_bytes(Encoding.DER)
        with tls.push_message(schedule, output_buf):
            tls.push_certificate(output_buf, tls.Certificate(b"", [(leaf, b""), (b"garbage", b"")]))
        stranger._push_crypto_data()
        first.extend(stranger.output())
        with tls.push_message(schedule, output_buf):
            tls.push_certificate(output_buf, tls.Certificate(b"", []))
        with tls.push_message(schedule, output_buf):
            tls.push_finished(output_buf, tls.Finished(schedule.finished_verify_data(context._enc_key)))  # type: ignore[arg-type]
        context._enc_key = key
        assert schedule.cipher_suite is not None
        context.update_traffic_key_cb(tls.Direction.ENCRYPT, tls.Epoch.ONE_RTT, schedule.cipher_suite, key)
        context._set_state(tls.State.CLIENT_POST_HANDSHAKE)

    first: list[bytes] = []
    stranger.tls._client_handle_finished = finished  # type: ignore[method-assign]
    feed(stranger.output())
    for data, _ in server.datagrams_to_send(clock()):
        stranger.receive_datagram(data, OURS, clock())
    assert first
    feed([*first, *stranger.output()])
    return stranger


async def test_the_batching_attack_gets_nothing() -> None:
    """Stock aioquic is fooled by it: it ends with a completed handshake and the victim's certificate on record."""
    victim = Identity.generate()

    stock_identity = Identity.generate()
    stock = Stranger(
        configuration=QuicConfiguration(
            is_client=False,
            alpn_protocols=[ALPN],
            certificate=stock_identity.certificate,
            private_key=stock_identity.private_key,
            supported_versions=[1],
        ),
        original_destination_connection_id=bytes(8),
    )
    stock._parse_transport_parameters = lambda *_, **__: None  # type: ignore[method-assign]

    def request(context: tls.Context) -> None:
        context._request_client_certificate = True

    stock.tls_made = request

    def feed_stock(batch: list[bytes]) -> None:
        for data in batch:
            stock.receive_datagram(data, ("192.0.2.2", 40_000), clock())

    # The client checks which connection id it drew; this server was made before it.
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Stranger, "_parse_transport_parameters", lambda *_, **__: None)
        _batching_attack(stock, victim, feed_stock)
    assert any(isinstance(event, HandshakeCompleted) for event in stock.events())
    assert stock.tls._peer_certificate == victim.certificate

    async with memory_node() as (bob, udp):
        engines: list[Any] = []

        class Engine:
            """Reads what our transport sent."""

            def datagrams_to_send(self, now: float) -> list[tuple[bytes, Any]]:
                sent, udp.sent = udp.sent, []
                return [(data, OURS) for data in sent]

        def feed_ours(batch: list[bytes]) -> None:
            udp.deliver(*batch)
            engines.extend(driver.engine for driver in bob.transport._drivers)

        _batching_attack(Engine(), victim, feed_ours)  # type: ignore[arg-type]
        engine = engines[0]
        assert bob.accepted == []
        assert engine.proven is None
        assert not engine._handshake_complete
        await bob.gate.emptied()


async def test_failed_handshakes_fill_no_log(caplog: pytest.LogCaptureFixture) -> None:
    """aioquic would warn of each, and who has set up no logging would find that on stderr."""
    caplog.set_level(logging.DEBUG)
    async with memory_node() as (bob, udp):
        for make in (stranger_client, _wrong_verify, _foreign_alpn):
            stranger = make()
            stranger._logger = QuicConnectionAdapter(logging.getLogger("stranger"), {"id": "theirs"})
            converse(stranger, udp)
        await bob.gate.emptied()
    ours = [record for record in caplog.records if record.name != "stranger"]
    assert any("No common ALPN" in record.getMessage() for record in ours)
    assert all(record.levelno <= logging.DEBUG for record in ours)


async def test_garbage_opens_no_handshake() -> None:
    """Neither random bytes nor a first packet that does not decrypt."""
    async with memory_node() as (bob, udp):
        first = stranger_client().output()[0]
        udp.deliver(
            b"\xc0",
            b"\x40" * 9,
            os.urandom(1200),
            b"\xc3\0\0\0\1" + os.urandom(1195),
            first[:-1] + bytes([first[-1] ^ 1]) if len(first) > 1200 else first[:100] + os.urandom(1100),
            first[:1199],
            b"\xe3\0\0\0\1\x08" + bytes(8) + b"\0" + bytes(1200),
            b"GET / HTTP/1.1\r\n\r\n" * 80,
        )
        assert bob.accepted == []
        assert udp.sent == [] or all(data[1:5] == bytes(4) for data in udp.sent)
        assert bob.is_clean()


async def test_our_own_key_is_told_so() -> None:
    """Two processes with one key, or a copy of our key file."""
    async with memory_node() as (bob, udp):
        stranger = stranger_client(bob.identity)
        converse(stranger, udp)
        assert bob.accepted == []
        assert stranger._close_event is not None
        assert stranger._close_event.error_code == CloseCode.SELF_DIAL
        await bob.gate.emptied()


@pytest.mark.parametrize(("start", "days"), [(-400, 30), (300, 30)], ids=["expired", "not yet valid"])
async def test_dates_do_not_matter(start: int, days: int) -> None:
    """Mesh devices have wrong clocks."""
    key = Ed25519PrivateKey.generate()
    begin = dt.datetime.now(dt.UTC) + dt.timedelta(days=start)
    certificate = certificate_for(key, not_before=begin, days=days)
    async with memory_node() as (bob, udp):
        converse(stranger_client(certificate=certificate, private_key=key), udp)
        assert len(bob.accepted) == 1
    async with memory_node() as (alice, udp):
        strange_server(udp, certificate=certificate, private_key=key, tls_made=_request)
        identity = Identity(key)
        link = await alice.transport.dial(SOME_ADDRESS, identity.peer_id, Recorder())
        assert link.peer_id == identity.peer_id


def _request(context: tls.Context) -> None:
    context._request_client_certificate = True


def _forged(context: tls.Context) -> None:
    insist(tls.SignatureAlgorithm.ED25519)(context)


def _stop_before_verify(context: tls.Context) -> None:
    hello = context._server_handle_hello

    def handle(*buffers: Buffer) -> None:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(tls, "push_certificate_verify", lambda *_: None)
            hello(*buffers)

    context._server_handle_hello = handle  # type: ignore[method-assign,assignment]


async def _dial_strange(expected: Any, **server: Any) -> None:
    async with memory_node() as (alice, udp):
        strange_server(udp, **server)
        recorder = Recorder()
        try:
            async with asyncio.timeout(20):
                await alice.transport.dial(SOME_ADDRESS, expected, recorder)
        finally:
            assert recorder.writable_calls == recorder.closed_calls == 0


async def test_a_dialler_learns_that_somebody_else_answered() -> None:
    """With both keys in the error."""
    expected, other = Identity.generate(), Identity.generate()
    with pytest.raises(IdentityMismatch, match=str(other.peer_id)):
        await _dial_strange(expected.peer_id, certificate=other.certificate, private_key=other.private_key)


async def test_a_dialler_learns_that_it_reached_itself() -> None:
    """Under whatever key it was dialling."""
    async with memory_node() as (alice, udp):
        strange_server(udp, certificate=alice.identity.certificate, private_key=alice.identity.private_key)
        with pytest.raises(SelfDial):
            await alice.transport.dial(SOME_ADDRESS, Identity.generate().peer_id, Recorder())


async def test_a_dialler_believes_no_certificate_without_its_signature() -> None:
    """The expected key's certificate, signed for by another one or by none."""
    expected = Identity.generate()
    wrong = Ed25519PrivateKey.generate()
    with pytest.raises(HandshakeError) as caught:
        await _dial_strange(expected.peer_id, certificate=expected.certificate, private_key=wrong)
    assert caught.value.code is CloseCode.UNAUTHENTICATED
    with pytest.raises(HandshakeError):
        await _dial_strange(
            expected.peer_id,
            certificate=expected.certificate,
            private_key=wrong,
            tls_made=_stop_before_verify,
        )


@pytest.mark.parametrize("kind", ["rsa", "ecdsa"])
@pytest.mark.parametrize("insisting", [False, True])
async def test_a_dialler_takes_ed25519_only(kind: str, insisting: bool) -> None:
    """Whether the server respects what we offer or not."""
    if kind == "rsa":
        key: Any = rsa.generate_private_key(65537, 2048)
        algorithm = tls.SignatureAlgorithm.RSA_PSS_RSAE_SHA256
    else:
        key = ec.generate_private_key(ec.SECP256R1())
        algorithm = tls.SignatureAlgorithm.ECDSA_SECP256R1_SHA256

    def change(context: tls.Context) -> None:
        if insisting:
            hello = tls.pull_client_hello

            def generous(buffer: Buffer) -> tls.ClientHello:
                message = hello(buffer)
                message.signature_algorithms = [int(algorithm)]
                return message

            handle = context._server_handle_hello

            def patched(*buffers: Buffer) -> None:
                with pytest.MonkeyPatch.context() as patch:
                    patch.setattr(tls, "pull_client_hello", generous)
                    handle(*buffers)

            context._server_handle_hello = patched  # type: ignore[method-assign,assignment]

    certificate = certificate_for(key, algorithm=hashes.SHA256())
    with pytest.raises(HandshakeError) as caught:
        await _dial_strange(Identity.generate().peer_id, certificate=certificate, private_key=key, tls_made=change)
    assert caught.value.code is CloseCode.UNAUTHENTICATED


@pytest.mark.parametrize("raw", [NEUTRAL, NOT_CANONICAL], ids=["small order", "not canonical"])
async def test_a_dialler_refuses_keys_under_which_anybody_can_sign(raw: bytes) -> None:
    """No ticket can name them, so it is a mismatch at best; here the key itself is refused."""
    with pytest.raises(HandshakeError) as caught:
        await _dial_strange(
            Identity.generate().peer_id,
            certificate=certificate_with_key(raw),
            private_key=Forger(),
            tls_made=_forged,
        )
    assert not isinstance(caught.value, IdentityMismatch)


async def test_a_dialler_takes_exactly_one_certificate() -> None:
    """Even if the leaf is the right one."""
    expected, other = Identity.generate(), Identity.generate()
    with pytest.raises(HandshakeError, match="2 certificates"):
        await _dial_strange(
            expected.peer_id,
            certificate=expected.certificate,
            private_key=expected.private_key,
            chain=[other.certificate],
        )


@pytest.mark.parametrize("alpn", ["h3", "overlay-tcp/1"])
async def test_a_dialler_is_told_of_another_protocol(alpn: str) -> None:
    """Handshake bytes of one transport do not work for another."""
    expected = Identity.generate()
    with pytest.raises(HandshakeError, match="ALPN"):
        await _dial_strange(
            expected.peer_id, certificate=expected.certificate, private_key=expected.private_key, alpn=alpn
        )


async def test_a_dialler_ignores_tickets() -> None:
    """It did not ask for any, and keeps none."""
    identity = Identity.generate()
    async with memory_node() as (alice, udp):

        def change(context: tls.Context) -> None:
            _request(context)
            expect = context._server_expect_finished

            def insist_on_a_ticket() -> None:
                context._psk_key_exchange_mode = tls.PskKeyExchangeMode.PSK_DHE_KE
                expect()

            context._server_expect_finished = insist_on_a_ticket  # type: ignore[method-assign]

        server = strange_server(
            udp, certificate=identity.certificate, private_key=identity.private_key, tls_made=change
        )
        tickets: list[Any] = []
        server.settings["session_ticket_handler"] = tickets.append
        recorder = Recorder()
        link = await alice.transport.dial(SOME_ADDRESS, identity.peer_id, recorder)
        await recorder.until(lambda: link._engine._handshake_confirmed)
        assert len(tickets) == 1
        assert not link.is_closed
        assert link._engine.tls.session_ticket is None
