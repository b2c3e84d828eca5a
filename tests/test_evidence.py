"""Evidence of one place: what is remembered of it, how it is ranked, and when it is too old."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from overlay.protocol.evidence import CONFIRMED_LIFE, DAY, UNCONFIRMED_LIFE, Evidence, Source

times = st.floats(0, 4e9)
maybe = st.none() | times


def test_sources_are_in_the_order_of_trust() -> None:
    assert sorted(Source, key=lambda source: source.distrust) == [
        Source.STATIC,
        Source.TICKET,
        Source.RECORD,
        Source.PORT_MAPPING,
        Source.MDNS,
        Source.INBOUND,
        Source.OBSERVED,
    ]
    assert [Source(str(source)) for source in Source] == list(Source)


def test_order_is_this_network_then_the_latest_success_then_trust_then_fewer_failures() -> None:
    ranked = [
        Evidence(Source.OBSERVED, 0, last_success=5, network="home"),
        Evidence(Source.OBSERVED, 0, last_success=9, network="cafe"),
        Evidence(Source.STATIC, 0, last_success=8, network="cafe"),
        # The first second of the epoch is a success too.
        Evidence(Source.OBSERVED, 0, last_success=0, network=""),
        Evidence(Source.STATIC, 0, failures=9),
        Evidence(Source.TICKET, 0, failures=1),
        Evidence(Source.TICKET, 0, failures=2),
        Evidence(Source.OBSERVED, 0),
    ]
    keys = [one.order("home") for one in ranked]
    assert keys == sorted(keys)
    assert len(set(keys)) == len(keys)


def test_an_unknown_network_is_never_this_very_one() -> None:
    assert Evidence(Source.TICKET, 0, last_success=1, network="").order("")[0]


def test_failures_are_counted_in_a_row_and_a_success_ends_it() -> None:
    evidence = Evidence(Source.TICKET, 0)
    evidence.failed(1, "connect")
    evidence.failed(2, "handshake")
    assert (evidence.first_failure, evidence.last_failure) == (1, 2)
    assert (evidence.failures, evidence.stage) == (2, "handshake")
    evidence.succeeded(3, 0.1, "home")
    evidence.succeeded(4, None, "cafe")
    assert (evidence.first_success, evidence.last_success, evidence.successes) == (3, 4, 2)
    assert (evidence.failures, evidence.stage, evidence.network, evidence.rtt) == (0, "", "cafe", 0.1)
    evidence.failed(5, "resolve")
    assert (evidence.first_failure, evidence.last_failure, evidence.failures) == (5, 5, 1)


def test_rtt_falls_at_once_and_rises_slowly() -> None:
    evidence = Evidence(Source.TICKET, 0)
    seen = []
    for sample in (0.8, 0.1, 0.9, 0.05):
        evidence.succeeded(1, sample, "")
        seen.append(evidence.rtt)
    assert seen == pytest.approx([0.8, 0.1, 0.2, 0.05])


@pytest.mark.parametrize(
    ("evidence", "age", "stale"),
    [
        (Evidence(Source.TICKET, 0), UNCONFIRMED_LIFE, False),
        (Evidence(Source.TICKET, 0), UNCONFIRMED_LIFE + 1, True),
        (Evidence(Source.OBSERVED, 0, last_success=0), CONFIRMED_LIFE, False),
        (Evidence(Source.OBSERVED, 0, last_success=0), CONFIRMED_LIFE + 1, True),
        (Evidence(Source.OBSERVED, 100 * DAY, last_success=0), 101 * DAY, False),
        (Evidence(Source.STATIC, 0), 1e9, False),
    ],
    ids=["week", "over a week", "season", "over a season", "named again", "static"],
)
def test_unconfirmed_lives_a_week_confirmed_a_season_and_static_for_ever(
    evidence: Evidence, age: float, stale: bool
) -> None:
    assert evidence.is_stale(age) is stale


@given(now=times, values=st.tuples(times, maybe, maybe, maybe, maybe))
def test_nothing_lives_for_ever_on_the_word_of_a_clock_that_was_wrong(
    now: float, values: tuple[float, float | None, float | None, float | None, float | None]
) -> None:
    evidence = Evidence(Source.TICKET, *values)
    before = replace(evidence)
    assert evidence.clamp(now) is any(value is not None and value > now for value in values)
    after = (
        evidence.learnt,
        evidence.first_success,
        evidence.last_success,
        evidence.first_failure,
        evidence.last_failure,
    )
    assert after == tuple(None if value is None else min(value, now) for value in values)
    assert (evidence == before) is (after == values)
    assert evidence.is_stale(now + CONFIRMED_LIFE + 1)
