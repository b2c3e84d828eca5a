"""Black holes are suspected on evidence only, lose their head start and no more, and are tried again."""

from hypothesis import given
from hypothesis import strategies as st

from overlay.protocol.black_holes import FIRST_RETRY, KINDS, LONGEST_RETRY, REMEMBERED, BlackHoles, kinds_of
from overlay.protocol.evidence import Place

QUIC: Place = ("quic", "198.51.100.1", 9330)
QUIC6: Place = ("quic", "2001:db8::1", 9330)
UDP: Place = ("udp", "198.51.100.1", 9330)
TCP: Place = ("tcp", "198.51.100.1", 9330)
TCP6: Place = ("tcp", "2001:db8::1", 9330)


def order(holes: BlackHoles, candidates: list[Place], now: float) -> list[Place]:
    """As they are tried."""
    prompt, late = holes.split(candidates, now)
    return prompt + late


def key(number: int) -> bytes:
    return number.to_bytes(32, "big")


def dials(
    holes: BlackHoles, peers: int, failed: Place, worked: Place | None, *, now: float = 0.0, failures: int = 2
) -> None:
    """One dial of each peer, in which something failed and perhaps something else worked."""
    for number in range(peers):
        for _ in range(failures):
            holes.record(kinds_of(failed), ok=False, key=key(number), now=now)
        if worked is not None:
            holes.record(kinds_of(worked), ok=True, key=key(number), now=now)


def test_kinds_of_places() -> None:
    assert kinds_of(QUIC6) == {"quic", "udp", "ipv6"}
    assert kinds_of(UDP) == {"udp"}
    assert kinds_of(TCP6) == {"ipv6"}
    assert kinds_of(TCP) == kinds_of((None, "host.example", 1)) == frozenset()


def test_case_28_a_fresh_node_suspects_nothing() -> None:
    holes = BlackHoles()
    assert holes.suspected(0) == frozenset()
    assert all(holes.allow(kind, 0) for kind in KINDS)
    assert order(holes, [QUIC6, TCP], 0) == [QUIC6, TCP]


def test_case_28_a_suspect_that_is_the_only_way_is_still_dialled_and_first() -> None:
    holes = BlackHoles()
    dials(holes, 4, QUIC, TCP)
    assert order(holes, [QUIC, QUIC6], 1) == [QUIC, QUIC6]


def test_blocked_udp_is_suspected_where_tcp_works_and_goes_last() -> None:
    holes = BlackHoles()
    dials(holes, 4, QUIC, TCP)
    assert holes.suspected(1) == {"quic", "udp"}
    assert order(holes, [QUIC6, UDP, TCP6, TCP], 1) == [TCP6, TCP, QUIC6, UDP]


def test_blocked_quic_leaves_raw_udp_alone() -> None:
    holes = BlackHoles()
    dials(holes, 4, QUIC, UDP)
    assert holes.suspected(1) == {"quic"}
    assert order(holes, [QUIC, UDP, TCP], 1) == [UDP, TCP, QUIC]


def test_blocked_ipv6_is_suspected_where_ipv4_works() -> None:
    holes = BlackHoles()
    dials(holes, 4, TCP6, QUIC)
    assert holes.suspected(1) == {"ipv6"}


def test_three_peers_or_seven_failures_are_not_enough() -> None:
    holes = BlackHoles()
    dials(holes, 3, QUIC, TCP, failures=50)
    assert holes.suspected(1) == frozenset()
    holes = BlackHoles()
    dials(holes, 7, QUIC, TCP, failures=1)
    assert holes.suspected(1) == frozenset()
    holes.record(kinds_of(QUIC), ok=False, key=key(0), now=1)
    assert holes.suspected(1) == {"quic", "udp"}


def test_peers_that_are_switched_off_say_nothing_of_the_network() -> None:
    holes = BlackHoles()
    dials(holes, 50, TCP6, None)
    holes.record(kinds_of(TCP), ok=True, key=key(99), now=1)
    assert holes.suspected(1) == frozenset()


def test_a_success_elsewhere_long_before_or_after_is_no_evidence() -> None:
    holes = BlackHoles()
    dials(holes, 8, QUIC, TCP, failures=0)
    dials(holes, 8, QUIC, None, now=61)
    dials(holes, 8, QUIC, TCP, now=122, failures=0)
    assert holes.suspected(122) == frozenset()


def test_failures_of_long_ago_do_not_join_one_of_now() -> None:
    holes = BlackHoles()
    dials(holes, 4, QUIC, None)
    dials(holes, 4, QUIC, TCP, now=61, failures=1)
    assert holes.suspected(61) == frozenset()
    dials(holes, 4, QUIC, TCP, now=62, failures=1)
    assert holes.suspected(62) == {"quic", "udp"}


def test_failures_after_the_success_elsewhere_count_too() -> None:
    holes = BlackHoles()
    dials(holes, 4, QUIC, TCP, failures=0)
    dials(holes, 4, QUIC, None, now=30)
    assert holes.suspected(30) == {"quic", "udp"}


def test_one_success_acquits_and_the_count_starts_anew() -> None:
    holes = BlackHoles()
    dials(holes, 4, QUIC, TCP)
    holes.record(kinds_of(QUIC), ok=True, key=key(9), now=1)
    assert holes.suspected(1) == frozenset()
    dials(holes, 3, QUIC, TCP, now=2)
    assert holes.suspected(2) == frozenset()


def test_a_change_of_the_network_acquits() -> None:
    holes = BlackHoles()
    dials(holes, 4, QUIC, TCP)
    holes.network_changed()
    assert holes.suspected(1) == frozenset()


def test_a_suspect_is_tried_first_again_by_one_dial_after_a_minute_doubling_to_ten() -> None:
    holes = BlackHoles()
    dials(holes, 4, QUIC, TCP)
    now, pauses = 0.0, []
    for _ in range(6):
        last = now
        while order(holes, [QUIC, TCP], now) == [TCP, QUIC]:
            now += 1.0
        pauses.append(now - last)
        assert order(holes, [QUIC, TCP], now) == [TCP, QUIC]
    assert pauses == [60, 60 * 2, 60 * 4, 60 * 8, 600, 600]
    assert (FIRST_RETRY, LONGEST_RETRY) == (60, 600)


@given(
    outcomes=st.lists(
        st.tuples(
            st.sampled_from([QUIC, QUIC6, UDP, TCP, TCP6]), st.booleans(), st.integers(0, 500), st.floats(-5, 100)
        ),
        max_size=300,
    ),
    candidates=st.lists(st.sampled_from([QUIC, QUIC6, UDP, TCP, TCP6]), unique=True),
)
def test_whatever_happens_nothing_is_left_out_and_what_worked_last_is_no_suspect(
    outcomes: list[tuple[Place, bool, int, float]], candidates: list[Place]
) -> None:
    holes, now = BlackHoles(), 0.0
    for place, ok, number, step in outcomes:
        now += step
        holes.record(kinds_of(place), ok=ok, key=key(number), now=now)
        assert not (ok and kinds_of(place) & holes.suspected(now))
    assert sorted(order(holes, candidates, now)) == sorted(candidates)
    for row in holes._rows.values():
        assert max(len(row._alone), len(row._otherwise), len(row._proven)) <= REMEMBERED
