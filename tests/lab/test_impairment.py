"""What a direction of a line does to packets, on a stepped clock."""

import itertools
import json
import math
import random
from collections import Counter
from dataclasses import asdict
from typing import Any

import pytest

from lab.impairment import Counters, Direction, Impairment

PACKETS = 20_000
SIGMAS = 5
"""A fair direction strays so far once in 1.7 million tests, and with a fixed seed either always or never."""


def direction(seed: int = 1, **impairment: Any) -> Direction:
    return Direction(Impairment(**impairment), random.Random(seed))


def number(index: int) -> bytes:
    return index.to_bytes(4)


def sent(line: Direction, count: int = PACKETS, interval: float = 0.001) -> list[tuple[int, float]]:
    """Send numbered packets at an even pace, and step from deadline to deadline: what came, and when."""
    came: list[tuple[int, float]] = []

    def drain(until: float) -> None:
        while (when := line.next_due) is not None and when <= until:
            came.extend((int.from_bytes(packet), when) for packet in line.due(when))

    for index in range(count):
        now = index * interval
        drain(now)
        line.push(number(index), now)
    drain(math.inf)
    assert is_balanced(line.counters)
    return came


def is_balanced(counters: Counters) -> bool:
    gone = counters.lost + counters.overflowed + counters.under_way + counters.delivered
    return counters.seen + counters.duplicated == gone


def near(share: float, correlation: float = 0.0) -> float:
    """The bound for a share measured over all packets, whose neighbours may be correlated."""
    spread = (1 + correlation) / (1 - correlation)
    return SIGMAS * math.sqrt(share * (1 - share) * spread / PACKETS)


def test_a_line_without_impairment_delivers_at_once_and_in_order() -> None:
    assert sent(direction()) == [(index, index * 0.001) for index in range(PACKETS)]


def test_the_delay_is_exact() -> None:
    line = direction(delay=0.15)
    line.push(b"packet", 10.0)
    assert line.next_due == 10.15
    assert line.due(math.nextafter(10.15, 0)) == []
    assert line.due(10.15) == [b"packet"]
    assert line.next_due is None


def test_jitter_keeps_the_order_and_stays_within_its_bound() -> None:
    came = sent(direction(delay=0.1, jitter=0.05))
    assert [index for index, _ in came] == list(range(PACKETS))
    delays = [when - index * 0.001 for index, when in came]
    assert 0.1 <= min(delays) < max(delays) <= 0.15 + 1e-9


def test_jitter_of_lone_packets_is_evenly_distributed() -> None:
    delays = [when - index for index, when in sent(direction(jitter=0.5), interval=1.0)]
    thirds = Counter(int(delay / (0.5 / 3)) for delay in delays)
    for third in range(3):
        assert thirds[third] / PACKETS == pytest.approx(1 / 3, abs=near(1 / 3))


@pytest.mark.parametrize("loss", [0.001, 0.05, 0.5])
def test_losses_are_as_many_as_asked(loss: float) -> None:
    line = direction(loss=loss)
    came = sent(line)
    assert line.counters.lost == PACKETS - len(came)
    assert line.counters.lost / PACKETS == pytest.approx(loss, abs=near(loss))


@pytest.mark.parametrize(("start", "length"), [(0.01, 1.0), (0.01, 5.0), (0.002, 20.0)])
def test_bursts_have_the_length_and_the_share_that_were_asked(start: float, length: float) -> None:
    line = direction(burst_start=start, burst_length=length)
    arrived = [index for index, _ in sent(line)]
    gaps = [after - before - 1 for before, after in itertools.pairwise(arrived) if after > before + 1]
    share = start * length / (start * length + 1 - start)
    assert line.counters.lost / PACKETS == pytest.approx(
        share, abs=near(share, 1 - 1 / length - start * (1 - 1 / length))
    )
    # Two bursts may touch, which makes a gap a little longer than a burst: at most by a share of `start`.
    deviation = math.sqrt(length * length - length) / math.sqrt(len(gaps))
    assert sum(gaps) / len(gaps) == pytest.approx(length / (1 - start), abs=SIGMAS * deviation + start * length)


def test_a_certain_burst_loses_everything_until_it_is_over() -> None:
    line = direction(burst_start=1.0, burst_length=3.0)
    assert sent(line) == []
    line.impair(Impairment())
    line.push(b"packet", 100.0)
    assert line.due(100.0) == [b"packet"]


def test_a_packet_held_back_is_overtaken_by_as_many_as_fit_into_its_delay() -> None:
    line = direction(delay=0.02, reorder=0.1, reorder_by=0.0045)
    came = sent(line)
    assert sorted(index for index, _ in came) == list(range(PACKETS))
    late = {index for index, when in came if when - index * 0.001 > 0.021}
    assert len(late) == line.counters.reordered
    assert line.counters.reordered / PACKETS == pytest.approx(0.1, abs=near(0.1))
    on_time = [index for index, when in came if when - index * 0.001 <= 0.021]
    assert on_time == sorted(on_time)
    position = {index: place for place, (index, _) in enumerate(came)}
    for index in late:
        followers = set(range(index + 1, min(index + 5, PACKETS))) - late
        assert all(position[follower] < position[index] for follower in followers)


def test_duplicates_come_as_often_as_asked() -> None:
    line = direction(duplicate=0.1)
    often = Counter(index for index, _ in sent(line))
    assert set(often.values()) == {1, 2}
    assert len(often) == PACKETS
    assert line.counters.duplicated == sum(count == 2 for count in often.values())
    assert line.counters.duplicated / PACKETS == pytest.approx(0.1, abs=near(0.1))


def test_what_does_not_fit_the_queue_is_dropped_at_its_tail() -> None:
    line = direction(delay=1.0, queue=12)
    for index in range(5):
        line.push(number(index), 0.0)
    assert (line.counters.under_way, line.counters.overflowed) == (3, 2)
    assert line.due(1.0) == [number(0), number(1), number(2)]
    line.push(number(5), 1.0)
    assert line.due(2.0) == [number(5)]
    assert is_balanced(line.counters)


def test_a_change_leaves_what_is_under_way_and_nothing_overtakes_it() -> None:
    line = direction(delay=1.0)
    line.push(b"before", 0.0)
    line.impair(Impairment(delay=0.1, queue=1000))
    line.push(b"after", 0.5)
    line.push(b"later", 0.95)
    assert line.due(0.999) == []
    assert line.due(1.0) == [b"before", b"after"]
    assert line.next_due == pytest.approx(1.05)
    line.impair(Impairment(loss=1.0))
    line.push(b"lost", 1.0)
    assert line.due(2.0) == [b"later"]


def test_the_same_seed_makes_the_same_weather() -> None:
    rough = {"jitter": 0.01, "loss": 0.05, "burst_start": 0.01, "burst_length": 4.0, "reorder": 0.1, "duplicate": 0.1}
    assert sent(direction(7, **rough)) == sent(direction(7, **rough))
    assert sent(direction(7, **rough)) != sent(direction(8, **rough))


def test_impairments_and_counters_survive_json() -> None:
    impairment = Impairment(delay=0.1, loss=0.3, burst_start=0.01, burst_length=7.5, queue=1000)
    assert Impairment(**json.loads(json.dumps(asdict(impairment)))) == impairment
    counters = Counters(seen=3, lost=1, delivered=2)
    assert Counters(**json.loads(json.dumps(asdict(counters)))) == counters


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *((name, value) for name in ("loss", "burst_start", "reorder", "duplicate") for value in (-0.1, 1.1, math.nan)),
        *((name, value) for name in ("delay", "jitter", "reorder_by") for value in (-1.0, math.inf, math.nan)),
        *(("burst_length", value) for value in (0.9, math.inf, math.nan)),
        ("queue", 0),
    ],
)
def test_nonsense_is_refused_by_its_name(name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=rf"^{name} is a .*, not {value}$"):
        direction(**{name: value})
