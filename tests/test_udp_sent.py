"""The record of a burst."""

import pytest

from overlay.protocol.udp.sent import SentBurst


@pytest.mark.parametrize(
    ("low", "high", "size"), [(10, 10, 1400), (10, 11, 2800), (12, 12, 100), (10, 12, 2900), (11, 12, 1500)]
)
def test_only_the_last_datagram_may_be_shorter(low: int, high: int, size: int) -> None:
    assert SentBurst(10, 0.0, last=12, size=1400, last_size=100).bytes_of(low, high) == size


def test_burst_of_one_has_its_own_size() -> None:
    assert SentBurst(7, 0.0, last=7, size=60, last_size=60).bytes_of(7, 7) == 60
