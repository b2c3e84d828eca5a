"""Raw UDP against strangers: garbage, floods, forged cookies, packets of nobody."""

import os
import random

import pytest
from raw_support import (
    THEIRS,
    Stranger,
    raw_memory_node,
)

from overlay.config import Config
from overlay.protocol.frames import Ping, encode
from overlay.protocol.udp.cookie import knock, read_cookie
from overlay.protocol.udp.handshake_packets import Header, Seal
from overlay.protocol.udp.wire import COOKIE, DATA, HANDSHAKE, KNOCK_SIZE, RESET
from overlay.testing import until
from overlay.transports.udp import RESETS_PER_SECOND


async def test_garbage_changes_nothing() -> None:
    """Of any length and any first byte; most gets no answer, and none a longer one."""
    generator = random.Random(7)
    async with raw_memory_node() as (bob, udp):
        stranger = Stranger(udp)
        stranger.converse()
        [recorder] = bob.accepted
        before = len(bob.transport._drivers)
        for _ in range(5000):
            size = generator.choice([1, 2, 9, 13, 29, 42, 45, 64, 300, 1400])
            first = generator.choice([0x80, 0x81, 0x82, 0x83, 0xA0, 0xA4, 0x90, 0xBF])
            prefix = b"\0\0\0\1" if generator.random() < 0.8 else generator.randbytes(4)
            data = (bytes([first]) + prefix + generator.randbytes(size))[:size]
            udp.sent.clear()
            udp.deliver(data)
            assert sum(map(len, udp.sent)) <= len(data)
        assert len(bob.transport._drivers) == before
        assert bob.gate.pending == 0
        assert recorder.reason is None
        stranger.core.send_control(encode(Ping(3)))
        stranger.converse()
        assert recorder.frames == [Ping(3)]


async def test_a_flood_of_knocks_makes_no_state() -> None:
    """Each gets a cookie that is no longer than it, and nothing is kept; who is connected notices nothing."""
    async with raw_memory_node() as (bob, udp):
        stranger = Stranger(udp)
        stranger.converse()
        drivers, ids = len(bob.transport._drivers), len(bob.transport._routes.ids)
        for _ in range(5000):
            udp.sent.clear()
            udp.deliver(knock(os.urandom(8)))
            [cookie] = udp.sent
            assert cookie[0] == COOKIE
            assert len(cookie) <= KNOCK_SIZE
        udp.sent.clear()
        udp.deliver(knock(os.urandom(8))[:-1])
        assert udp.sent == []
        assert (len(bob.transport._drivers), len(bob.transport._routes.ids)) == (drivers, ids)
        assert bob.gate.entered == 1
        stranger.core.send_control(encode(Ping(3)))
        stranger.converse()
        assert bob.accepted[0].frames == [Ping(3)]


async def test_a_cookie_is_good_for_its_address_only() -> None:
    """From elsewhere, or altered, it gets another cookie; and a damaged packet with a good one leaves no state."""
    async with raw_memory_node() as (bob, udp):
        stranger = Stranger(udp)
        [hello, *_] = stranger.knock_and_hello()
        assert hello[0] == HANDSHAKE
        bob.transport.datagram_received(udp, hello, ("192.0.2.77", 5), None)
        bob.transport.batch_ended(udp)
        [answer] = udp.sent
        assert answer[0] == COOKIE
        udp.deliver(hello[:-1] + bytes([hello[-1] ^ 1]))
        assert bob.gate.entered == 1
        assert bob.gate.pending == 0
        assert not bob.transport._drivers
        assert len(udp.sent) == 1
        udp.deliver(hello)
        assert bob.gate.pending == 1


async def test_beyond_the_limit_strangers_are_ignored() -> None:
    """Per address, without a word; those who came in time go on, and the time is limited."""
    async with raw_memory_node(Config(handshake_timeout=0.05)) as (bob, udp):
        bob.gate._per_address = 3
        for _ in range(5):
            hello = Stranger(udp).knock_and_hello()
            udp.deliver(*hello)
            udp.sent.clear()
        assert bob.gate.entered == 3
        await bob.gate.emptied()
        await until(bob.is_clean)


async def test_packets_of_no_connection_get_few_resets() -> None:
    """Shorter than what they answer, never for a reset, never more than so many each second."""
    async with raw_memory_node() as (bob, udp):
        bob.transport._resets_second = -1
        bob.transport.datagram_received(udp, bytes([DATA]) + bytes(28), THEIRS, None)
        [first] = udp.sent
        assert first[0] == RESET
        assert len(first) < 29
        udp.deliver(bytes([DATA]) + bytes(24))
        udp.deliver(first)
        udp.deliver(bytes([RESET]) + bytes(1000))
        assert len(udp.sent) == 1
        for _ in range(1000):
            udp.deliver(bytes([DATA]) + os.urandom(100))
        # A second may have begun meanwhile.
        assert len(udp.sent) <= 3 * RESETS_PER_SECOND
        assert bob.is_clean()


async def test_whatever_a_spoofed_address_asks_it_gets_less_than_it_sent_and_no_state() -> None:
    """Knocks, hellos with every kind of cookie, DATA of nobody, resets and noise, from addresses that hear nothing.

    Who is connected notices nothing of it, and nothing is kept for anybody: no connection, no id, no place at the gate.
    """
    dice = random.Random(3)
    async with raw_memory_node() as (bob, udp):
        stranger = Stranger(udp)
        stranger.converse()
        [hello, *_] = Stranger(udp).knock_and_hello()
        genuine = Header.read(hello)
        assert genuine is not None
        transport = bob.transport
        before = len(transport._drivers), len(transport._routes.ids), len(transport._routes.resets), bob.gate.entered
        answered = 0
        for number in range(5000):
            victim = (f"203.0.113.{number % 250}", 1024 + number % 7)
            cookie = dice.choice([b"", genuine.cookie, dice.randbytes(16), dice.randbytes(dice.randrange(256))])
            header = Header(dice.choice([genuine.destination, dice.randbytes(8)]), dice.randbytes(8), cookie)
            shaking = Seal.of_dialler(header.source, header.destination, header.cookie)
            datagram = dice.choice(
                [
                    knock(dice.randbytes(8)),
                    knock(dice.randbytes(8)) + bytes(dice.randrange(300)),
                    shaking.seal(header, 0, b"\x0c\x00\x40\xc8" + bytes(200)),
                    shaking.seal(Header(header.destination, header.source, b"x"), 0, b""),
                    hello,
                    bytes([DATA]) + dice.randbytes(dice.randrange(100)),
                    bytes([RESET]) + dice.randbytes(24),
                    dice.randbytes(1 + dice.randrange(100)),
                ]
            )
            udp.sent.clear()
            transport.datagram_received(udp, datagram, victim, None)
            transport.batch_ended(udp)
            answered += len(udp.sent)
            # Ours may be as long as what it answers; three times as much would still be fair.
            assert sum(map(len, udp.sent)) <= len(datagram)
        assert answered > 500
        routes = transport._routes
        assert (len(transport._drivers), len(routes.ids), len(routes.resets), bob.gate.entered) == before
        udp.sent.clear()
        stranger.core.send_control(encode(Ping(3)))
        stranger.converse()
        assert bob.accepted[0].frames == [Ping(3)]


async def test_a_reset_that_was_asked_for_too_early_is_of_no_use() -> None:
    """Who sees a COOKIE may ask for the RESET of its id before the hello is here; it ends nothing later."""
    async with raw_memory_node() as (bob, udp):
        stranger = Stranger(udp)
        udp.deliver(*stranger.output())
        [cookie], udp.sent = udp.sent, []
        found = read_cookie(cookie, stranger.handshake.own)
        assert found is not None
        udp.deliver(bytes([DATA]) + found[0] + bytes(50))
        [reset], udp.sent = udp.sent, []
        assert reset[0] == RESET
        stranger.receive(cookie)
        stranger.converse()
        stranger.receive(reset)
        assert not stranger.core.is_closing
        # What it uses now is known to nobody but the two, and can be reset by the one.
        secret = bob.transport._resets.reset(stranger.core.destination, 100)
        assert secret is not None
        stranger.receive(secret)
        assert stranger.core.is_over


async def test_a_place_at_the_gate_is_given_back_when_tls_cannot_even_begin(monkeypatch: pytest.MonkeyPatch) -> None:
    """Out of memory, say: the fault is ours, and it must not shut the gate for good."""

    def fail(*_: object) -> None:
        raise MemoryError

    async with raw_memory_node() as (bob, udp):
        hello = Stranger(udp).knock_and_hello()
        monkeypatch.setattr(bob.transport._profile, "handshake", fail)
        with pytest.raises(MemoryError):
            udp.deliver(*hello)
        assert bob.gate.entered == 1
        assert bob.gate.pending == 0
        assert bob.is_clean()
