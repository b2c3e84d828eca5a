"""Two transmissions and every network between them: always complete, always exact, never for ever."""

import math

import pytest
import udp_report
from hypothesis import given, settings
from hypothesis import strategies as st
from udp_report import Row
from udp_scenarios import CONTROLLERS, KILOBIT, MEGABIT, SCENARIOS, Scenario, cruise, play


@pytest.mark.parametrize("controller", CONTROLLERS)
@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.name)
def test_transfer_is_complete_and_exact(scenario: Scenario, controller: str) -> None:
    udp_report.rows.append(play(scenario, controller))


@pytest.mark.parametrize(("loss", "least"), [(0.01, 0.7), (0.03, 0.6)])
def test_bbr_keeps_its_rate_where_cubic_falls_below_fifteen_hundredths(loss: float, least: float) -> None:
    """50 Mbit/s x 100 ms with random losses, with the whole of the recovery and not only a model of it."""
    name = f"50 Mbit/s, RTT 100 ms, {loss:.0%} loss"
    (bbr, _), (cubic, _) = (
        cruise(name, controller, rate=50 * MEGABIT, rtt=0.1, loss=loss, start=start, end=end)
        for controller, start, end in (("bbr", 1.0, 4.0), ("cubic", 10.0, 30.0))
    )
    udp_report.rows += (bbr, cubic)
    assert bbr.goodput >= least * bbr.rate
    assert cubic.goodput < 0.15 * cubic.rate


@pytest.mark.parametrize(
    ("name", "rate", "rtt", "queue", "mtu", "start", "end"),
    [
        ("1 Gbit/s, RTT 1 ms, queue of 20 packets", 1000 * MEGABIT, 0.001, 20 * 1472, 1472, 0.3, 0.5),
        ("100 Mbit/s, RTT 10 ms, queue of 20 packets", 100 * MEGABIT, 0.01, 20 * 1472, 1472, 1.0, 2.5),
        ("64 kbit/s, RTT 600 ms, MTU 300", 64 * KILOBIT, 0.6, 64_000, 300, 30.0, 90.0),
        ("1 Mbit/s, RTT 30 ms, queue of 1 s", MEGABIT, 0.03, MEGABIT, 1472, 10.0, 40.0),
        ("1 Mbit/s, RTT 30 ms, queue of 10 s", MEGABIT, 0.03, 10 * MEGABIT, 1472, 10.0, 40.0),
    ],
)
def test_bbr_neither_overruns_a_short_queue_nor_fills_a_long_one(
    name: str, rate: float, rtt: float, queue: float, mtu: int, start: float, end: float
) -> None:
    row, smoothed = cruise(name, "bbr", rate=rate, rtt=rtt, queue=queue, mtu=mtu, start=start, end=end)
    udp_report.rows.append(row)
    assert row.goodput >= 0.75 * rate
    assert row.lost <= 0.02 * row.packets
    # Five packets: on a slow link those that are needed to keep anything going are a queue already.
    assert smoothed <= 2 * rtt + 5 * mtu / rate


seconds = st.sampled_from([0.05, 0.3, 1.0, 4.0])
scenarios = st.builds(
    Scenario,
    st.just("drawn"),
    size=st.integers(1, 150_000),
    rtt=st.sampled_from([0.001, 0.02, 0.2, 1.0, 5.0]),
    rate=st.sampled_from([64 * KILOBIT, MEGABIT, 50 * MEGABIT, 1000 * MEGABIT]),
    queue=st.sampled_from([None, 3000, 30_000]),
    mtu=st.integers(300, 9000),
    loss=st.floats(0.0, 0.3),
    ack_loss=st.none() | st.floats(0.0, 0.6),
    gilbert=st.none() | st.tuples(st.floats(0.001, 0.02), st.floats(0.1, 0.5)),
    reorder=st.sampled_from([0.0, 0.01, 0.3]),
    duplicate=st.sampled_from([0.0, 0.3]),
    mtus=st.lists(st.tuples(seconds, st.integers(300, 9000)), max_size=3).map(tuple),
    blackout=st.none() | st.tuples(seconds, st.sampled_from([0.1, 5.0, 30.0])),
    deaf=st.none() | st.tuples(seconds, st.sampled_from([0.1, 5.0, 30.0])),
    # Of a few packets many copies may arrive while all acknowledgements are lost; `packets` bounds them.
    copies=st.just(math.inf),
    until=st.just(3000.0),
    packets=st.just(30_000),
)


@given(scenarios, st.sampled_from(sorted(CONTROLLERS)), st.integers(0, 2**32))
@settings(max_examples=60, deadline=None, derandomize=True)
def test_all_evils_together_delay_and_do_no_more(scenario: Scenario, controller: str, seed: int) -> None:
    play(scenario, controller, seed=seed)


def test_table_has_a_line_for_each_scenario_and_columns_for_both_controllers() -> None:
    one = Row("one", "cubic", 2e6, 1e6, 3.0, 400, 5)
    other = [Row("two", "bbr", 1e6, 1e6, 1.0, 2, 3), Row("one", "bbr", 2e6, 2e6, 1.5, 6, 7)]
    head, first, second = udp_report.table([one, *other])
    assert head.startswith("scenario  rate        BBR goodput")
    assert " ".join(first.split()) == "one 2.000 MB/s 2.000 MB/s 100% 1.50 s 6 7 1.000 MB/s 50% 3.00 s 400 5"
    assert " ".join(second.split()) == "two 1.000 MB/s 1.000 MB/s 100% 1.00 s 2 3"
