"""The search for the path's MTU: what is found, in how many probes, and how a path that shrinks is noticed."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from overlay.protocol.udp.mtu import (
    ATTEMPTS,
    FIRST_PATIENCE,
    LOST_IN_A_ROW,
    LOST_WITH_TIMEOUTS,
    RAISE_AFTER,
    RAISE_AFTER_BLACK_HOLE,
    MtuSearch,
)
from overlay.protocol.udp.wire import MAXIMUM_DATAGRAM, MINIMUM_DATAGRAM


def search(mtu: MtuSearch, limit: int, now: float = 0.0) -> list[int]:
    """Probe until it is done, on a path that carries up to `limit` bytes; the sizes of the probes."""
    probes: list[int] = []
    while (size := mtu.probe_to_send(now)) is not None:
        probes.append(size)
        assert len(probes) < 60
        mtu.probe_sent(size, now, 1.0)
        assert mtu.probe_to_send(now) is None
        if size <= limit:
            mtu.probe_acknowledged(size)
        else:
            mtu.probe_lost(size)
    return probes


@pytest.mark.parametrize("limit", [300, 1200, 1252, 1392, 1452, 1472, 4000, 8952, 8972, 20_000, 65_487, 65_507])
def test_limit_is_found_to_within_two_percent(limit: int) -> None:
    mtu = MtuSearch()
    probes = search(mtu, limit)
    assert limit - max(8, limit // 64) <= mtu.size <= limit
    assert len(probes) <= 40
    assert mtu.next_timeout() == (RAISE_AFTER if limit < 65_487 else None)


@pytest.mark.parametrize(("limit", "sizes"), [(1472, [1200, 1452, 1472] + [8952] * 3 + [1495] * 3),
                                              (65_507, [1200, 1452, 1472, 8952, 8972, 65_487])])  # fmt: skip
def test_common_links_take_few_probes(limit: int, sizes: list[int]) -> None:
    assert search(MtuSearch(), limit) == sizes


@given(st.integers(300, MAXIMUM_DATAGRAM), st.integers(300, MAXIMUM_DATAGRAM))
def test_nothing_larger_than_the_local_limit_is_tried(limit: int, largest: int) -> None:
    mtu = MtuSearch(largest=largest)
    assert max(search(mtu, limit), default=0) <= largest
    assert mtu.size <= min(limit, largest)


def test_probe_without_an_answer_is_given_up_in_time() -> None:
    mtu = MtuSearch()
    for attempt in range(ATTEMPTS):
        assert mtu.probe_to_send(float(attempt)) == 1200
        mtu.probe_sent(1200, float(attempt), 1.0)
        assert mtu.next_timeout() == attempt + 1.0
        assert mtu.probe_to_send(attempt + 0.5) is None
    assert mtu.probe_to_send(float(ATTEMPTS)) == (MINIMUM_DATAGRAM + 1200) // 2
    assert FIRST_PATIENCE > 5.0


def test_late_answer_counts() -> None:
    mtu = MtuSearch()
    for _ in range(ATTEMPTS):
        mtu.probe_sent(1200, 0.0, 1.0)
        mtu.probe_lost(1200)
    assert mtu.probe_acknowledged(1200)
    assert mtu.size == 1200
    assert mtu.probe_to_send(1.0) == 1452


def test_search_begins_again_after_a_while() -> None:
    mtu = MtuSearch()
    search(mtu, 1472)
    assert mtu.probe_to_send(RAISE_AFTER - 1) is None
    assert search(mtu, 9000, RAISE_AFTER + 1)
    assert mtu.size > 8800


def test_size_that_the_system_refuses_is_not_tried_again() -> None:
    mtu = MtuSearch()
    mtu.probe_sent(1200, 0.0, 1.0)
    assert not mtu.refused(1200)
    assert max(search(mtu, 65_507)) < 1200
    assert mtu.size > 1170


def test_size_in_use_that_the_system_refuses_leads_back_to_the_base() -> None:
    mtu = MtuSearch()
    search(mtu, 1472)
    assert mtu.refused(1472)
    assert mtu.size == MINIMUM_DATAGRAM
    assert not mtu.refused(1472)


@pytest.mark.parametrize(("timeouts", "losses"), [(0, LOST_IN_A_ROW), (1, LOST_IN_A_ROW), (2, LOST_WITH_TIMEOUTS)])
def test_black_hole_is_found_when_only_small_packets_arrive(timeouts: int, losses: int) -> None:
    mtu = MtuSearch()
    search(mtu, 1472)
    mtu.packets_lost(1472, losses - 1)
    assert not mtu.small_acknowledged(MINIMUM_DATAGRAM, timeouts)
    mtu.packets_lost(1472, 1)
    assert mtu.small_acknowledged(MINIMUM_DATAGRAM, timeouts)
    assert mtu.size == MINIMUM_DATAGRAM
    assert mtu.black_holes == 1
    assert search(mtu, 1200)[:2] == [1472, 1200]
    assert mtu.size == 1200
    assert mtu.next_timeout() == RAISE_AFTER_BLACK_HOLE


def test_false_alarm_is_over_after_one_probe() -> None:
    mtu = MtuSearch()
    search(mtu, 1472)
    mtu.packets_lost(1472, LOST_IN_A_ROW)
    assert mtu.small_acknowledged(MINIMUM_DATAGRAM, 0)
    assert search(mtu, 1472) == [1472]
    assert mtu.size == 1472


def test_large_packet_that_arrives_refutes_the_suspicion() -> None:
    mtu = MtuSearch()
    search(mtu, 1472)
    mtu.packets_lost(1472, LOST_IN_A_ROW - 1)
    mtu.packet_acknowledged(1472)
    mtu.packets_lost(1472, 1)
    assert not mtu.small_acknowledged(MINIMUM_DATAGRAM, 0)


def test_packet_between_the_sizes_refutes_nothing_about_larger_ones() -> None:
    """A path that carries 1000 bytes by now: 600 arrive all the time, and say nothing about 1472."""
    mtu = MtuSearch()
    search(mtu, 1472)
    for _ in range(LOST_IN_A_ROW):
        mtu.packets_lost(1472, 1)
        mtu.packet_acknowledged(600)
    assert mtu.small_acknowledged(600, 0)
    search(mtu, 1472)
    mtu.packets_lost(1300, LOST_IN_A_ROW)
    assert not mtu.small_acknowledged(1400, 0)


def test_nothing_is_below_the_base() -> None:
    mtu = MtuSearch()
    mtu.packets_lost(MINIMUM_DATAGRAM, 100)
    assert not mtu.small_acknowledged(MINIMUM_DATAGRAM, 5)
    assert mtu.size == MINIMUM_DATAGRAM


def test_new_path_is_searched_anew() -> None:
    mtu = MtuSearch()
    search(mtu, 1472)
    mtu.reset()
    assert mtu.size == MINIMUM_DATAGRAM
    assert search(mtu, 1472)[0] == 1200
