"""What has left a lane: acknowledged up to an offset, or too long on its way, in any order."""

from math import inf

from hypothesis import given
from hypothesis import strategies as st

from overlay.protocol.driver.under_way import Entry, UnderWay
from overlay.protocol.driver.wire import frame_head


def entry(size: int, deadline: float = 9.0) -> Entry:
    return bytes(size), deadline, True


def test_nothing_is_under_way() -> None:
    under_way = UnderWay()
    assert (list(under_way), under_way.frames, under_way.size, under_way.earliest) == ([], 0, 0, inf)
    assert under_way.acknowledge(1000) == 0
    assert under_way.expire(1000.0) == []


def test_frame_is_acknowledged_with_its_last_byte() -> None:
    under_way = UnderWay()
    assert under_way.add(10, [entry(3), entry(64), entry(0)]) == 67
    assert [under_way.acknowledge(offset) for offset in (10, 13, 14, 79, 80, 80, 81)] == [0, 0, 3, 0, 64, 0, 0]
    assert (under_way.frames, under_way.size) == (0, 0)


def test_batch_without_a_deadline_that_is_over_stays_whole() -> None:
    under_way = UnderWay()
    under_way.add(0, [entry(1), entry(2)])
    under_way.add(5, [entry(3, 1.0), entry(4, 5.0)])
    assert under_way.earliest == 1.0
    assert under_way.expire(0.9) == []
    assert under_way.expire(1.0) == [entry(3, 1.0)]
    assert under_way.earliest == 5.0
    assert [len(batch.entries) for batch in under_way._batches] == [2, 1]
    assert list(under_way) == [entry(1), entry(2), entry(4, 5.0)]


@given(
    batches=st.lists(st.lists(st.tuples(st.sampled_from([0, 1, 63, 64, 20_000]), st.integers(0, 9)), min_size=1)),
    events=st.lists(st.tuples(st.booleans(), st.integers(0, 100)), max_size=30),
)
def test_in_any_order_each_frame_leaves_once(
    batches: list[list[tuple[int, int]]], events: list[tuple[bool, int]]
) -> None:
    """Against a list of all frames with their ends."""
    under_way = UnderWay()
    left: list[tuple[int, Entry]] = []
    end = acknowledged = 0
    for batch in batches:
        entries = [entry(size, deadline) for size, deadline in batch]
        start = end
        for one in entries:
            end += len(frame_head(len(one[0]))) + len(one[0])
            left.append((end, one))
        under_way.add(start, entries)
    for is_acknowledgement, number in events:
        if is_acknowledgement:
            acknowledged = max(acknowledged, end * number // 100)
            gone = [one for one in left if one[0] <= acknowledged]
            assert under_way.acknowledge(acknowledged) == sum(len(one[0]) for _, one in gone)
        else:
            gone = [one for one in left if one[1][1] <= number / 10]
            assert under_way.expire(number / 10) == [one for _, one in gone]
        left = [one for one in left if one not in gone]
        assert list(under_way) == [one for _, one in left]
        assert under_way.frames == len(left)
        assert under_way.size == sum(len(one[0]) for _, one in left)
        assert under_way.earliest <= min((one[1] for _, one in left), default=inf)
    assert under_way.acknowledge(end) == sum(len(one[0]) for _, one in left)
    assert not under_way._batches
