"""The table of peers: who is dialled when, and who is told what."""

from collections.abc import Callable
from typing import Any

import pytest

from overlay.protocol.peer_states import Action, PeerState
from overlay.protocol.peer_table import LINGER_CAP, PeerTable

A, B, C = (bytes([one]) * 32 for one in b"ABC")
CAP = 120.0


def table(**options: Any) -> PeerTable:
    """One whose pauses are as long as they can be."""
    return PeerTable(lambda: 1.0, **{"cap": CAP, **options})


def pauses(peers: PeerTable, key: bytes, now: float, count: int) -> list[float]:
    """Let dials fail, each after 0.1 s, and follow the timer; the pauses between."""
    found: list[float] = []
    for _ in range(count):
        now += 0.1
        peers.dial_failed(key, now)
        at = peers.next_timeout()
        assert at is not None
        found.append(round(at - now, 3))
        now = at
        peers.handle_timeout(now)
        assert peers.take_actions()[-1] == (key, Action.DIAL)
    return found


def test_a_kept_peer_is_dialled_again_for_ever_and_never_rarer_than_the_cap() -> None:
    """Corner cases 5 and 8."""
    peers = table()
    peers.keep(A, 10.0)
    assert peers.take_actions() == [(A, Action.DIAL)]
    assert pauses(peers, A, 10.0, 20) == [1, 2, 4, 8, 16, 32, 64] + [CAP] * 13


@pytest.mark.parametrize(
    "hope",
    [
        lambda peers, now: peers.kick(A, now),
        lambda peers, now: peers.network_changed(now),
        lambda peers, now: (peers.attached(A, now, dialled=False), peers.ended(A, now)),
    ],
    ids=["kick", "network change", "inbound session"],
)
def test_hope_shortens_the_pauses(hope: Callable[[PeerTable, float], object]) -> None:
    """Corner case 8: a pause of two minutes ends, and the next one is the shortest."""
    peers = table()
    peers.keep(A, 0.0)
    pauses(peers, A, 0.0, 9)
    peers.dial_failed(A, 1000.0)
    assert peers.next_timeout() == peers.due(A) == 1000.0 + CAP
    peers.take_actions()
    hope(peers, 1001.0)
    peers.handle_timeout(1002.0)
    assert peers.take_actions()[-1] == (A, Action.DIAL)
    peers.dial_failed(A, 1003.0)
    assert peers.next_timeout() in {1004.0, 1005.0}


def test_a_session_without_a_connection_is_dialled_often() -> None:
    """It lingers for two minutes only."""
    peers = table()
    peers.attached(A, 0.0, dialled=False)
    peers.lost(A, 5.0)
    assert peers.state(A) is PeerState.LINGERING
    assert peers.take_actions() == [(A, Action.TELL_CONNECTED), (A, Action.DIAL)]
    assert pauses(peers, A, 5.0, 8) == [0.25, 0.5, 1.0, 2.0, *[LINGER_CAP] * 4]
    peers.attached(A, 50.0, dialled=True)
    assert peers.take_actions() == []


def test_after_a_session_that_lingered_in_vain_the_pauses_begin_anew() -> None:
    peers = table()
    peers.keep(A, 0.0)
    peers.attached(A, 1.0, dialled=True)
    peers.lost(A, 10.0)
    peers.take_actions()
    pauses(peers, A, 10.0, 8)
    peers.ended(A, 130.0)
    assert peers.take_actions() == [(A, Action.CANCEL_DIAL), (A, Action.TELL_DISCONNECTED)]
    assert peers.state(A) is PeerState.BACKING_OFF
    assert peers.next_timeout() == 131.0


def test_a_peer_whose_connections_end_at_once_is_not_dialled_in_a_circle() -> None:
    """One dial a second, whatever it does."""
    peers = table(rate=1000.0, burst=1000.0)
    peers.keep(A, 0.0)
    now, dials = 0.0, 0
    while now < 60.0:
        for key, action in peers.take_actions():
            if action is Action.DIAL:
                dials += 1
                peers.attached(key, now + 0.01, dialled=True)
                peers.lost(key, now + 0.02)
        at = peers.next_timeout()
        assert at is not None
        now = at
        peers.handle_timeout(now)
    assert 50 <= dials <= 61


@pytest.mark.parametrize("end", ["lost", "ended"])
def test_the_draw_of_the_shortest_pause_makes_no_circle_of_a_peer_that_hangs_up(end: str) -> None:
    """Full jitter may draw nothing: a dial that succeeded is followed by the next a second after it all the same."""
    peers = PeerTable(lambda: 0.0, rate=1000.0, burst=1000.0)
    peers.keep(A, 0.0)
    now, dialled = 0.0, list[float]()
    while now < 5.5:
        for key, action in peers.take_actions():
            if action is Action.DIAL:
                dialled.append(now)
                peers.attached(key, now + 0.01, dialled=True)
                getattr(peers, end)(key, now + 0.02)
        at = peers.next_timeout()
        assert at is not None
        now = at
        peers.handle_timeout(now)
    assert dialled == [0, 1, 2, 3, 4, 5]


def test_a_session_that_has_lasted_and_a_dial_that_failed_leave_the_pause_as_it_is_drawn() -> None:
    """So that a thousand peers that were lost in one moment do not come back in one."""
    peers = PeerTable(lambda: 0.25)
    peers.keep(A, 0.0)
    peers.dial_failed(A, 0.125)
    assert peers.due(A) == 0.375
    peers.handle_timeout(0.375)
    peers.attached(A, 0.5, dialled=True)
    peers.ended(A, 10.0)
    assert peers.due(A) == 10.25


def test_a_user_waits_neither_for_a_pause_nor_for_a_turn() -> None:
    peers = table(rate=1.0, burst=1.0)
    for key in (A, B, C):
        peers.keep(key, 0.0)
    assert peers.take_actions() == [(A, Action.DIAL)]
    peers.want(C, 0.0)
    assert peers.take_actions() == [(C, Action.DIAL)]
    peers.dial_failed(A, 0.5)
    peers.want(A, 0.5)
    assert peers.take_actions() == [(A, Action.DIAL)]
    peers.handle_timeout(1.0)
    assert peers.take_actions() == [(B, Action.DIAL)]


def test_a_dial_ends_with_the_last_who_waits_but_not_for_who_is_kept() -> None:
    peers = table()
    peers.want(A, 0.0)
    peers.want(B, 0.0)
    peers.keep(B, 0.0)
    peers.take_actions()
    peers.unwant(A, 1.0)
    peers.unwant(B, 1.0)
    assert peers.take_actions() == [(A, Action.CANCEL_DIAL)]
    assert peers.state(A) is PeerState.KNOWN
    assert peers.state(B) is PeerState.DIALLING
    peers.release(B, 2.0)
    assert peers.take_actions() == [(B, Action.CANCEL_DIAL)]
    assert peers.next_timeout() is None


def test_a_failed_dial_that_only_a_user_wanted_is_not_repeated() -> None:
    peers = table()
    peers.want(A, 0.0)
    peers.dial_failed(A, 1.0)
    peers.unwant(A, 1.0)
    assert peers.state(A) is PeerState.KNOWN
    assert peers.since(A) == 1.0
    assert peers.next_timeout() is None


def test_who_still_waits_when_a_session_ends_is_dialled_for() -> None:
    peers = table()
    peers.attached(A, 0.0, dialled=False)
    peers.lost(A, 1.0)
    peers.want(A, 2.0)
    peers.ended(A, 3.0)
    assert peers.take_actions()[1:] == [
        (A, Action.DIAL),
        (A, Action.CANCEL_DIAL),
        (A, Action.TELL_DISCONNECTED),
        (A, Action.DIAL),
    ]


@pytest.mark.parametrize("how", ["backing off", "waiting for its turn", "dialling", "lingering", "connected"])
def test_a_removed_peer_is_never_dialled_again(how: str) -> None:
    """Corner case 9: no deadline is left, and the late end of what was under way brings nothing back."""
    peers = table(burst=1.0)
    if how == "waiting for its turn":
        peers.keep(B, 0.0)
        peers.attached(B, 0.0, dialled=True)
    peers.keep(A, 0.0)
    if how == "backing off":
        peers.dial_failed(A, 0.0)
    elif how in {"lingering", "connected"}:
        peers.attached(A, 0.0, dialled=True)
    if how == "lingering":
        peers.lost(A, 0.0)
    peers.take_actions()
    peers.remove(A, 0.0)
    expected = {
        "dialling": [(A, Action.CANCEL_DIAL)],
        "lingering": [(A, Action.TELL_DISCONNECTED)],
        "connected": [(A, Action.TELL_DISCONNECTED)],
    }
    assert peers.take_actions() == expected.get(how, [])
    assert peers.next_timeout() is None
    for late in (peers.dial_failed, peers.lost, peers.ended, peers.unwant, peers.kick):
        late(A, 1.0)
    peers.network_changed(2.0)
    peers.handle_timeout(1000.0)
    assert peers.take_actions() == []
    assert peers.state(A) is PeerState.FORGOTTEN
    assert peers.since(A) is None
    assert peers.due(A) is None


def test_a_dial_of_ours_outlives_the_peers_own_connection() -> None:
    """Corner case 2: and if that is lost first, there is no second dial beside it."""
    peers = table()
    peers.keep(A, 0.0)
    peers.attached(A, 1.0, dialled=False)
    peers.lost(A, 2.0)
    assert peers.take_actions() == [(A, Action.DIAL), (A, Action.TELL_CONNECTED)]
    peers.dial_failed(A, 3.0)
    assert peers.next_timeout() == 3.25


def test_after_a_network_change_the_latest_seen_are_dialled_first() -> None:
    """Each in its turn."""
    peers = table(rate=1.0, burst=1.0)
    for at, key in enumerate((B, C, A)):
        peers.keep(key, at)
        peers.attached(key, at, dialled=True)
        peers.ended(key, at)
        peers.take_actions()
    peers.network_changed(2.25)
    found = []
    while (at_ := peers.next_timeout()) is not None and at_ < 10:
        peers.handle_timeout(at_)
        found += peers.take_actions()
    assert found == [(A, Action.DIAL), (C, Action.DIAL), (B, Action.DIAL)]


def test_strangers_whose_sessions_linger_do_not_hold_up_who_is_kept() -> None:
    peers = table(rate=1.0, burst=1.0)
    strangers = [bytes([one]) * 32 for one in range(50)]
    for key in strangers:
        peers.attached(key, 0.0, dialled=False)
        peers.lost(key, 0.0)
    peers.keep(A, 0.0)
    peers.take_actions()
    peers.handle_timeout(1.0)
    assert peers.take_actions() == [(A, Action.DIAL)]


def test_without_an_address_no_turn_is_taken() -> None:
    """Peers that only dialled us, over TCP, leave the bucket to those that can be dialled."""
    known = {A}
    peers = table(rate=0.01, burst=1.0, dialable=known.__contains__)
    peers.keep(B, 0.0)
    assert peers.state(B) is PeerState.BACKING_OFF
    peers.keep(A, 0.0)
    assert peers.take_actions() == [(A, Action.DIAL)]
    known.add(B)
    peers.kick(B, 200.0)
    assert peers.take_actions() == [(B, Action.DIAL)]


def test_of_those_that_nobody_wants_only_so_many_are_remembered() -> None:
    peers = table(capacity=2)
    peers.keep(C, 0.0)
    for one in range(10):
        key = bytes([one]) * 32
        peers.attached(key, one, dialled=False)
        peers.ended(key, one)
    states = [peers.state(bytes([one]) * 32) for one in range(10)]
    assert states == [PeerState.FORGOTTEN] * 8 + [PeerState.KNOWN] * 2
    assert peers.state(C) is PeerState.DIALLING


def test_a_clock_that_steps_back_changes_nothing() -> None:
    """Nothing becomes due earlier, later, or twice."""
    peers = table()
    peers.keep(A, 100.0)
    peers.dial_failed(A, 50.0)
    assert peers.next_timeout() == 101.0
    peers.handle_timeout(10.0)
    assert peers.take_actions() == [(A, Action.DIAL)]
    assert peers.since(A) == 100.0


def test_who_waits_for_its_turn_and_is_dialled_by_the_peer_needs_no_turn() -> None:
    peers = table(rate=1.0, burst=1.0)
    peers.keep(A, 0.0)
    peers.keep(B, 0.0)
    peers.attached(B, 0.5, dialled=False)
    peers.handle_timeout(5.0)
    assert peers.take_actions() == [(A, Action.DIAL), (B, Action.TELL_CONNECTED)]


def test_hope_during_a_dial_shortens_the_pause_after_it() -> None:
    """So does a connection of the peer's own, and that nobody kept the peer for a while."""
    for hope in (
        lambda peers: peers.kick(A, 1000.0),
        lambda peers: (peers.attached(A, 1000.0, dialled=True), peers.ended(A, 1000.0)),
        lambda peers: (peers.release(A, 1000.0), peers.keep(A, 1000.0)),
    ):
        peers = table()
        peers.keep(A, 0.0)
        pauses(peers, A, 0.0, 9)
        hope(peers)
        peers.dial_failed(A, 1000.0)
        assert peers.due(A) == 1001.0


def test_a_kick_ends_the_pause_of_a_session_that_lingers() -> None:
    peers = table()
    peers.keep(A, 0.0)
    peers.attached(A, 0.0, dialled=True)
    peers.lost(A, 10.0)
    pauses(peers, A, 10.0, 7)
    peers.dial_failed(A, 30.0)
    peers.take_actions()
    peers.kick(A, 31.0)
    assert peers.take_actions() == [(A, Action.DIAL)]


def test_a_release_leaves_the_dial_to_a_user_who_waits() -> None:
    peers = table()
    peers.keep(A, 0.0)
    peers.want(A, 0.0)
    peers.release(A, 1.0)
    assert peers.take_actions() == [(A, Action.DIAL)]
    assert peers.state(A) is PeerState.DIALLING


def test_seen_last_is_who_had_a_session_last() -> None:
    """And not who was made known last."""
    peers = table(rate=1.0, burst=1.0)
    for at, key in enumerate((C, B, A)):
        peers.keep(key, at)
    for at, key in enumerate((A, B, C)):
        peers.attached(key, 10.0 + at, dialled=True)
        peers.ended(key, 10.0 + at)
    peers.take_actions()
    peers.network_changed(12.4)
    found: list[bytes] = []
    while len(found) < 3 and (at_ := peers.next_timeout()) is not None:
        found += [key for key, action in peers.take_actions() if action is Action.DIAL]
        peers.handle_timeout(at_)
        found += [key for key, action in peers.take_actions() if action is Action.DIAL]
    assert found == [C, B, A]


def test_a_peer_has_a_pause_or_waits_for_its_turn_but_never_both() -> None:
    peers = table(rate=1.0, burst=1.0)
    peers.keep(A, 0.0)
    peers.attached(A, 0.0, dialled=True)
    peers.lost(A, 10.0)
    peers.dial_failed(A, 10.125)
    peers.handle_timeout(10.375)
    assert A in peers._turns
    peers.kick(A, 10.5)
    assert A not in peers._turns
    assert peers.due(A) == 11.0


def test_the_pauses_of_one_who_is_kept_again_begin_anew() -> None:
    peers = table()
    peers.keep(A, 0.0)
    pauses(peers, A, 0.0, 9)
    peers.dial_failed(A, 1000.0)
    peers.release(A, 1000.0)
    peers.keep(A, 1000.0)
    peers.dial_failed(A, 1000.0)
    assert peers.due(A) == 1001.0
