"""Cookies: good for one address, one id and a minute at most; nothing is kept of those who get them."""

import itertools
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from overlay.protocol.udp.cookie import (
    COOKIE_SIZE,
    PERIOD,
    SECRET_SIZE,
    CookieJar,
    ResetTokens,
    knock,
    read_cookie,
    read_reset,
)
from overlay.protocol.udp.wire import COOKIE, KNOCK, KNOCK_SIZE, RESET

HERE, THERE = b"\x7f\0\0\1\x24\x72", b"\x7f\0\0\1\x24\x73"
ONE, OTHER = bytes(range(8)), bytes(range(8, 16))


@pytest.fixture
def jar() -> CookieJar:
    return CookieJar(random.Random(1).randbytes)


def given_to(jar: CookieJar, dialler: bytes, address: bytes, now: float) -> tuple[bytes, bytes]:
    answer = jar.answer_knock(knock(dialler), address, now)
    assert answer is not None
    found = read_cookie(answer, dialler)
    assert found is not None
    return found


def test_a_cookie_is_accepted_from_whom_it_was_given_to(jar: CookieJar) -> None:
    acceptor, cookie = given_to(jar, ONE, HERE, 1.0)
    assert len(cookie) == COOKIE_SIZE
    assert jar.accepts(cookie, ONE, acceptor, HERE, 1.0)


def test_a_cookie_is_bound_to_address_and_ids(jar: CookieJar) -> None:
    acceptor, cookie = given_to(jar, ONE, HERE, 1.0)
    assert not jar.accepts(cookie, ONE, acceptor, THERE, 1.0)
    assert not jar.accepts(cookie, OTHER, acceptor, HERE, 1.0)
    assert not jar.accepts(cookie, ONE, OTHER, HERE, 1.0)
    assert not jar.accepts(cookie, ONE, acceptor, b"", 1.0)


def test_bytes_do_not_wander_between_id_and_address(jar: CookieJar) -> None:
    """An attacker may choose the id; it must not be possible to get one cookie for two pairs."""
    acceptor, cookie = given_to(jar, ONE, HERE, 1.0)
    assert given_to(jar, ONE[1:] + HERE[:1], HERE[1:], 1.0) != (acceptor, cookie)


@pytest.mark.parametrize("given_at", [0.0, PERIOD - 1e-6])
def test_a_cookie_is_good_in_its_period_and_the_next(jar: CookieJar, given_at: float) -> None:
    acceptor, cookie = given_to(jar, ONE, HERE, given_at)
    assert jar.accepts(cookie, ONE, acceptor, HERE, PERIOD - 1e-6)
    assert jar.accepts(cookie, ONE, acceptor, HERE, 2 * PERIOD - 1e-6)
    assert not jar.accepts(cookie, ONE, acceptor, HERE, 2 * PERIOD)


@pytest.mark.parametrize("later", [2 * PERIOD, 255 * PERIOD, 256 * PERIOD, 257 * PERIOD, 1e9])
def test_an_old_cookie_is_refused_after_any_pause(jar: CookieJar, later: float) -> None:
    """Also when the period's number, of which one byte travels, has come round."""
    acceptor, cookie = given_to(jar, ONE, HERE, 0.0)
    assert not jar.accepts(cookie, ONE, acceptor, HERE, later)


def test_a_cookie_dies_with_the_process(jar: CookieJar) -> None:
    acceptor, cookie = given_to(jar, ONE, HERE, 0.0)
    assert not CookieJar(random.Random(2).randbytes).accepts(cookie, ONE, acceptor, HERE, 0.0)


def test_every_changed_bit_spoils_a_cookie(jar: CookieJar) -> None:
    acceptor, cookie = given_to(jar, ONE, HERE, 0.0)
    for bit in range(8 * COOKIE_SIZE):
        changed = (int.from_bytes(cookie, "big") ^ 1 << bit).to_bytes(COOKIE_SIZE, "big")
        assert not jar.accepts(changed, ONE, acceptor, HERE, 0.0)
    for size in (0, 1, COOKIE_SIZE - 1, COOKIE_SIZE + 1, 255):
        assert not jar.accepts(cookie.ljust(size, b"\0")[:size], ONE, acceptor, HERE, 0.0)


def test_the_answer_is_no_longer_than_the_knock_and_short_knocks_get_none(jar: CookieJar) -> None:
    datagram = knock(ONE)
    assert len(datagram) == KNOCK_SIZE
    answer = jar.answer_knock(datagram, HERE, 0.0)
    assert answer is not None
    assert len(answer) < len(datagram)
    for size in range(len(datagram)):
        assert jar.answer_knock(datagram[:size], HERE, 0.0) is None


def test_what_is_no_knock_of_our_version_gets_no_answer(jar: CookieJar) -> None:
    datagram = knock(ONE)
    for position in range(5):
        changed = bytearray(datagram)
        changed[position] ^= 1
        assert jar.answer_knock(changed, HERE, 0.0) is None
    assert datagram[0] == KNOCK


def test_a_flood_of_knocks_leaves_nothing_behind(jar: CookieJar) -> None:
    def size() -> int:
        return sum(len(value) if isinstance(value, bytes) else 1 for value in vars(jar).values())

    jar.answer_knock(knock(ONE), HERE, 0.0)
    before = size()
    cookies = {given_to(jar, number.to_bytes(8, "big"), HERE, number / 100) for number in range(10_000)}
    assert len(cookies) == 10_000
    assert size() == before


def test_answers_are_the_same_within_a_period_so_a_repeated_first_packet_finds_its_connection(jar: CookieJar) -> None:
    assert given_to(jar, ONE, HERE, 0.0) == given_to(jar, ONE, HERE, 20.0)
    assert given_to(jar, ONE, HERE, 0.0) != given_to(jar, ONE, HERE, PERIOD)


def test_a_damaged_cookie_packet_is_no_cookie(jar: CookieJar) -> None:
    answer = jar.answer_knock(knock(ONE), HERE, 0.0)
    assert answer is not None
    assert answer[0] == COOKIE
    for position, bit in itertools.product(range(len(answer)), range(8)):
        changed = bytearray(answer)
        changed[position] ^= 1 << bit
        assert read_cookie(changed, ONE) is None
    for size in range(len(answer)):
        assert read_cookie(answer[:size], ONE) is None
    assert read_cookie(answer + b"\0", ONE) is None
    assert read_cookie(answer, OTHER) is None
    assert read_cookie(memoryview(answer), ONE) == read_cookie(answer, ONE)


@given(st.binary(max_size=100))
def test_garbage_is_neither_knock_nor_cookie_nor_reset(data: bytes) -> None:
    jar = CookieJar(random.Random(1).randbytes)
    assert jar.answer_knock(data, HERE, 0.0) is None or data[0] == KNOCK
    assert read_cookie(data, ONE) is None
    assert read_reset(data) is None or data[0] == RESET


def test_a_reset_carries_the_token_of_its_id_only() -> None:
    tokens = ResetTokens(bytes(SECRET_SIZE))
    packet = tokens.reset(ONE, 1400)
    assert packet is not None
    assert read_reset(packet) == (ONE, tokens.token(ONE))
    assert tokens.token(ONE) != tokens.token(OTHER)
    assert tokens.token(ONE) != ResetTokens(b"\1" * SECRET_SIZE).token(ONE)
    assert tokens.token(ONE) == ResetTokens(bytes(SECRET_SIZE)).token(ONE)


def test_a_reset_is_smaller_than_its_cause_so_two_that_know_nothing_do_not_play_ping_pong() -> None:
    tokens = ResetTokens(bytes(SECRET_SIZE))
    packet = tokens.reset(ONE, 300)
    assert packet is not None
    assert tokens.reset(ONE, len(packet)) is None
    assert tokens.reset(ONE, len(packet) + 1) == packet
    for size in range(len(packet)):
        assert read_reset(packet[:size]) is None
