"""Where packets go when a peer's address changes, and when somebody only pretends that it does."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from overlay.protocol.udp.path import AMPLIFICATION, ATTEMPTS, MAX_CANDIDATES, MAX_RESPONSES, VALIDITY, Path, Probe
from overlay.protocol.udp.payload import FrameType

OLD, NEW, VICTIM = "old", "new", "victim"
SIZE = 60
"""Bytes of a packet with a probe."""


@pytest.fixture
def path() -> Path:
    it = Path(OLD, random.Random(1).randbytes, 100.0)
    it.probe_timeout = 0.3
    return it


def challenge(path: Path, now: float, size: int = SIZE) -> tuple[object, bytes]:
    [probe] = path.probes_to_send(now, size)
    assert probe.frame[0] == FrameType.PATH_CHALLENGE
    return probe.address, probe.frame[1:]


def test_a_peer_that_moved_is_followed_after_it_has_answered(path: Path) -> None:
    assert not path.receive_packet(NEW, 100, 101.0, newest=True)
    assert path.address == OLD
    where, data = challenge(path, 101.0)
    assert where == NEW
    assert path.address == OLD
    assert path.receive_response(data, 101.1)
    assert path.address == NEW
    assert path.next_timeout() is None
    assert path.probes_to_send(110.0, SIZE) == []


def test_only_the_newest_packet_begins_an_examination(path: Path) -> None:
    """An old packet that was kept back, and is sent from elsewhere now, says nothing about where the peer is."""
    assert not path.receive_packet(VICTIM, 1400, 101.0, newest=False)
    assert path.candidates == ()
    assert path.probes_to_send(101.0, SIZE) == []
    assert path.next_timeout() is None


def test_an_answer_to_nothing_says_nothing(path: Path) -> None:
    path.receive_packet(NEW, 100, 101.0, newest=True)
    _, data = challenge(path, 101.0)
    for wrong in (bytes(8), data[:-1], data + b"\0", b""):
        assert not path.receive_response(wrong, 101.1)
    assert path.address == OLD
    assert path.receive_response(data, 101.1)
    assert not path.receive_response(data, 101.2)


def test_an_answer_before_any_challenge_says_nothing(path: Path) -> None:
    path.receive_packet(NEW, 100, 101.0, newest=True)
    assert not path.receive_response(b"", 101.0)
    assert not path.receive_response(bytes(8), 101.0)


def test_no_more_than_three_times_what_came_goes_to_an_address_that_is_not_proven(path: Path) -> None:
    path.receive_packet(VICTIM, 30, 101.0, newest=True)
    sent, now = 0, 101.0
    while path.candidates:
        for _ in range(20):
            path.receive_challenge(VICTIM, bytes(8))
            sent += SIZE * len(path.probes_to_send(now, SIZE))
        due = path.next_timeout()
        assert due is not None
        now = due
        path.handle_timeout(now)
    assert 0 < sent <= AMPLIFICATION * 30


@given(
    st.lists(st.tuples(st.integers(1, 1500), st.floats(0.0, 1.0), st.integers(0, 3)), max_size=50),
    st.integers(30, 1500),
)
def test_amplification_is_bounded_whatever_comes(steps: list[tuple[int, float, int]], size: int) -> None:
    path = Path(OLD, random.Random(1).randbytes, 0.0)
    now, received, sent = 0.0, 0, 0
    for bytes_received, pause, challenges in steps:
        now += pause
        received += bytes_received
        path.receive_packet(VICTIM, bytes_received, now, newest=True)
        for _ in range(challenges):
            path.receive_challenge(VICTIM, bytes(8))
        path.handle_timeout(now)
        sent += size * sum(probe.address == VICTIM for probe in path.probes_to_send(now, size))
        assert sent <= AMPLIFICATION * received
        assert path.address == OLD


def test_a_victim_that_does_not_answer_is_left_alone_after_three_challenges(path: Path) -> None:
    path.receive_packet(VICTIM, 1400, 101.0, newest=True)
    times, data = [], set()
    now = 101.0
    while path.candidates:
        for probe in path.probes_to_send(now, SIZE):
            times.append(now)
            data.add(probe.frame)
        due = path.next_timeout()
        assert due is not None
        assert due > now
        now = due
        assert not path.handle_timeout(now)
    assert times == pytest.approx([101.0, 101.3, 101.9])
    assert len(data) == ATTEMPTS
    assert now == pytest.approx(103.1)
    assert path.address == OLD


def test_an_address_too_small_to_be_answered_does_not_keep_us_busy(path: Path) -> None:
    """Three times what came is less than one packet: no challenge ever leaves, and time still passes."""
    path.receive_packet(NEW, 10, 101.0, newest=True)
    now, turns = 101.0, 0
    while path.candidates:
        assert path.probes_to_send(now, SIZE) == []
        due = path.next_timeout()
        assert due is not None
        assert due > now
        now = due
        path.handle_timeout(now)
        turns += 1
    assert turns == ATTEMPTS


def test_a_lost_challenge_is_repeated_and_any_of_them_may_be_answered(path: Path) -> None:
    path.receive_packet(NEW, 1000, 101.0, newest=True)
    _, first = challenge(path, 101.0)
    assert path.probes_to_send(101.2, SIZE) == []
    _, second = challenge(path, 101.3)
    assert first != second
    assert path.receive_response(first, 101.4)
    assert path.address == NEW


def test_a_copy_that_overtakes_its_original_moves_nothing(path: Path) -> None:
    """Somebody copies packets from his address, passes challenges on, and even answers; the originals still come."""
    path.receive_packet(OLD, 1400, 101.0, newest=True)
    now = 101.0
    for _ in range(200):
        now += 0.05
        path.receive_packet("thief", 1400, now, newest=True)
        for probe in path.probes_to_send(now, SIZE):
            path.receive_response(probe.frame[1:], now)
        path.receive_packet(OLD, 1400, now + 0.01, newest=True)
        due = path.next_timeout()
        if due is not None and due <= now + 0.01:
            path.handle_timeout(now + 0.01)
        assert path.address == OLD


def test_two_uplinks_that_take_turns_do_not_make_us_move_all_the_time(path: Path) -> None:
    now, moves = 101.0, 0
    for turn in range(1000):
        now += 0.02
        moves += path.receive_packet((OLD, NEW)[turn % 2], 1400, now, newest=True)
        for probe in path.probes_to_send(now, SIZE):
            moves += path.receive_response(probe.frame[1:], now + 0.01)
        due = path.next_timeout()
        if due is not None and due <= now:
            moves += path.handle_timeout(now)
    assert moves == 0


def test_when_the_old_address_falls_silent_the_proven_one_is_taken_by_itself(path: Path) -> None:
    path.receive_packet(OLD, 1400, 101.0, newest=True)
    path.receive_packet(NEW, 1400, 101.05, newest=True)
    _, data = challenge(path, 101.05)
    assert not path.receive_response(data, 101.1)
    assert path.next_timeout() == pytest.approx(101.3)
    assert not path.handle_timeout(101.29)
    assert path.handle_timeout(101.3)
    assert path.address == NEW


def test_an_idle_peer_is_not_taken_for_one_that_moved(path: Path) -> None:
    """Its last packet came from the address in use; that another one is proven as well means nothing."""
    path.receive_packet(NEW, 1400, 101.0, newest=True)
    _, data = challenge(path, 101.0)
    path.receive_packet(OLD, 1400, 101.05, newest=True)
    assert not path.receive_response(data, 101.1)
    assert path.next_timeout() is None
    assert not path.handle_timeout(200.0)
    assert path.address == OLD


def test_an_address_that_was_proven_long_ago_is_examined_anew(path: Path) -> None:
    path.receive_packet(NEW, 1400, 101.0, newest=True)
    _, data = challenge(path, 101.0)
    path.receive_packet(OLD, 1400, 101.05, newest=True)
    path.receive_response(data, 101.1)
    assert not path.receive_packet(NEW, 1400, 101.1 + VALIDITY, newest=True)
    assert path.address == OLD
    challenge(path, 101.1 + VALIDITY)


def test_the_true_address_is_found_beside_false_ones(path: Path) -> None:
    """An attacker has the newest packets copied from other addresses while the peer really moves."""
    now = 101.0
    for turn in range(MAX_CANDIDATES - 1):
        path.receive_packet(f"victim {turn}", 1400, now, newest=True)
    path.receive_packet(NEW, 1400, now, newest=True)
    path.receive_packet(f"victim {0}", 1400, now, newest=True)
    for probe in path.probes_to_send(now, SIZE):
        if probe.address == NEW:
            path.receive_response(probe.frame[1:], now + 0.1)
    path.receive_packet(NEW, 1400, now + 0.4, newest=True)
    assert path.address == NEW


def test_what_is_remembered_is_bounded(path: Path) -> None:
    for number in range(1000):
        path.receive_packet(number, 1400, 101.0 + number, newest=True)
        path.receive_challenge(number, bytes(8))
        assert len(path.candidates) <= MAX_CANDIDATES
    assert len(path.probes_to_send(2000.0, SIZE)) <= MAX_CANDIDATES + MAX_RESPONSES


def test_challenges_are_answered_where_they_came_from(path: Path) -> None:
    path.receive_challenge(OLD, b"datadata")
    assert path.probes_to_send(101.0, SIZE) == [Probe(OLD, bytes([FrameType.PATH_RESPONSE]) + b"datadata")]
    assert path.probes_to_send(101.0, SIZE) == []
    path.receive_challenge(VICTIM, b"datadata")
    assert path.probes_to_send(101.0, SIZE) == []


def test_from_a_thief_who_stops_the_way_back_is_short(path: Path) -> None:
    """The peer was idle, so the first copy that overtook its original looked like a move."""
    path.receive_packet("thief", 1400, 105.0, newest=True)
    _, data = challenge(path, 105.0)
    assert path.receive_response(data, 105.1)
    assert path.address == "thief"
    assert not path.receive_packet(OLD, 1400, 105.2, newest=True)
    assert path.receive_packet(OLD, 1400, 105.4, newest=True)
    assert path.address == OLD


def test_it_moves_again_and_back(path: Path) -> None:
    for number, where in enumerate([NEW, "newer", OLD]):
        now = 110.0 + 10 * number
        path.receive_packet(where, 1400, now, newest=True)
        _, data = challenge(path, now)
        assert path.receive_response(data, now + 0.1)
        assert path.address == where
