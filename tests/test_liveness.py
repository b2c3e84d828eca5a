"""Silence on a stepped clock: when a connection is suspected, cleared, pinged and given up."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from overlay.protocol.keepalive import Keepalive
from overlay.protocol.liveness import Liveness, Progress, Verdict


class Watched:
    """A connection whose transport's progress the test sets."""

    def __init__(self, probe_timeout: float | None = 0.1) -> None:
        self.progress = Progress(0.0, probe_timeout)
        self.liveness = Liveness(0.0, keepalive=Keepalive(15, most=25), idle_timeout=30, watch=lambda: self.progress)

    def hear(self, at: float) -> None:
        self.progress = Progress(at, self.progress.probe_timeout)

    def run(self, until: float) -> list[tuple[float, Verdict]]:
        """Everything but FINE until then, each check at its time."""
        found: list[tuple[float, Verdict]] = []
        for _ in range(10_000):
            at = self.liveness.next_timeout
            if at > until:
                return found
            verdict = self.liveness.check(at)
            if verdict is not Verdict.FINE:
                found.append((round(at, 3), verdict))
        raise AssertionError("it never comes to rest")


@pytest.mark.parametrize(("probe_timeout", "patience"), [(0.01, 0.5), (0.4, 0.8), (None, 3.0)])
def test_silence_with_something_outstanding_is_suspect(probe_timeout: float | None, patience: float) -> None:
    watched = Watched(probe_timeout)
    watched.liveness.outstanding(True, 1.0)
    assert watched.run(1.0 + patience + 0.01) == [(1.0 + patience, Verdict.SUSPECT)]


def test_frame_that_nothing_confirms_is_outstanding_too() -> None:
    watched = Watched()
    watched.liveness.sent(1.0)
    watched.hear(1.05)
    assert watched.run(10.0) == []
    watched.liveness.sent(10.0)
    watched.liveness.sent(10.2)
    watched.hear(10.1)
    assert watched.run(10.61) == [(10.6, Verdict.SUSPECT)]


def test_idle_connection_is_pinged_and_never_suspected() -> None:
    watched = Watched()
    watched.hear(2.0)
    assert watched.run(17.2) == [(17.0, Verdict.KEEPALIVE)]


def test_progress_puts_suspicion_off() -> None:
    watched = Watched()
    watched.liveness.outstanding(True, 0.0)
    for tenth in range(1, 40):
        watched.hear(tenth / 10)
        assert watched.run(tenth / 10 + 0.05) == []
    watched.liveness.outstanding(False, 4.0)
    assert watched.run(10.0) == []


def test_a_connection_without_our_address_is_suspect_at_once_and_may_live_again() -> None:
    watched = Watched()
    watched.hear(2.0)
    watched.liveness.outstanding(True, 2.1)
    watched.liveness.strand(2.1)
    assert watched.run(2.1) == [(2.1, Verdict.SUSPECT)]
    watched.liveness.strand(2.2)
    assert watched.run(10.0) == []
    assert watched.liveness.suspect
    watched.hear(10.1)
    assert watched.run(10.3) == [(10.2, Verdict.RECOVERED)]


@pytest.mark.parametrize("probe_timeout", [0.1, None])
def test_each_false_alarm_doubles_the_patience_up_to_a_bound(probe_timeout: float | None) -> None:
    watched = Watched(probe_timeout)
    first = 0.5 if probe_timeout else 3.0
    now = 0.0
    for alarm in range(8):
        watched.hear(now)
        watched.liveness.outstanding(False, now)
        watched.liveness.outstanding(True, now)
        patience = first * 2 ** min(alarm, 5)
        if patience > 30:
            break
        assert watched.run(now + patience - 0.01) == []
        now = watched.run(now + patience + 0.3)[0][0]
        assert watched.liveness.suspect
        assert not watched.liveness.heard(), "a sign of life clears nothing while what we sent does not arrive"
        now += 0.01
        watched.hear(now)
        assert watched.liveness.heard()
        assert not watched.liveness.heard()


def test_progress_of_the_transport_clears_a_suspect() -> None:
    watched = Watched()
    watched.liveness.outstanding(True, 0.0)
    assert watched.run(0.6) == [(0.5, Verdict.SUSPECT)]
    watched.hear(0.7)
    assert watched.run(1.0) == [(0.75, Verdict.RECOVERED)]


def test_silence_for_the_whole_idle_time_is_death() -> None:
    watched = Watched()
    watched.liveness.outstanding(True, 0.0)
    found = watched.run(31.0)
    assert [verdict for _, verdict in found] == [Verdict.SUSPECT, Verdict.DEAD]
    assert 30 <= found[-1][0] <= 30.5


def test_late_timer_is_our_own_lag_and_excused_once() -> None:
    watched = Watched()
    watched.liveness.outstanding(True, 0.0)
    assert watched.liveness.check(2.0) is Verdict.FINE
    assert watched.liveness.check(watched.liveness.next_timeout + 0.3) is Verdict.SUSPECT


def test_check_before_its_time_does_nothing() -> None:
    watched = Watched()
    watched.liveness.outstanding(True, 0.0)
    assert watched.liveness.check(0.4) is Verdict.FINE
    assert watched.liveness.next_timeout == 0.5


@given(
    steps=st.lists(
        st.tuples(st.sampled_from(["hear", "sent", "waiting", "done", "run"]), st.floats(0.001, 9)), max_size=40
    )
)
def test_timers_always_come_to_rest_and_no_live_connection_dies(steps: list[tuple[str, float]]) -> None:
    watched = Watched()
    now = heard = 0.0
    for step, seconds in steps:
        now += seconds
        if step == "hear":
            heard = now
            watched.hear(now)
            watched.liveness.heard()
        elif step == "sent":
            watched.liveness.sent(now)
        elif step == "run":
            for at, verdict in watched.run(now):
                assert verdict is not Verdict.DEAD or at >= heard + 29.99
        else:
            watched.liveness.outstanding(step == "waiting", now)


def test_a_transfer_that_stops_is_asked_about_soon_and_once() -> None:
    """Whoever only receives has nothing outstanding; were it never to ask, it would wait for the keepalive."""
    watched = Watched()
    watched.progress = Progress(5.0, 0.1, received=64 * 1024)
    watched.liveness.sent(4.9)
    assert watched.run(6.1) == [(6.0, Verdict.KEEPALIVE)]
    watched.hear(6.01)
    watched.progress = Progress(6.01, 0.1, received=64 * 1024 + 100)
    assert watched.run(21.1) == [(21.01, Verdict.KEEPALIVE)]


def test_a_path_that_survives_is_asked_less_often_and_one_that_broke_more_often() -> None:
    """The interval belongs to the peer's path and outlives a connection."""
    keepalive = Keepalive(15, most=25)
    progress = Progress(0.0, 0.1)
    liveness = Liveness(0.0, keepalive=keepalive, idle_timeout=30, watch=lambda: progress)

    def asked() -> float:
        while liveness.check(at := liveness.next_timeout) is not Verdict.KEEPALIVE:
            pass
        liveness.sent(at)
        liveness.outstanding(True, at)
        return at

    gaps = []
    for _ in range(2):
        at = asked()
        gaps.append(round(at - progress.at))
        progress = Progress(at + 0.05, 0.1)
        liveness.outstanding(False, at)
        liveness.check(liveness.next_timeout)
    assert gaps == [15, 20]
    asked()
    while liveness.check(liveness.next_timeout) is not Verdict.SUSPECT:
        pass
    assert keepalive.interval == 20
