"""Which connection is sent on, and which are retired: tables and facts."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from overlay.protocol.selection import Candidate, select, surplus

QUIC, TCP = ("quic", 4), ("tcp", 4)


def one(
    number: int,
    *,
    kind: tuple[str, int] = QUIC,
    smaller: bool = True,
    dial: int = 1,
    suspect: bool = False,
    draining: bool = False,
) -> Candidate:
    return Candidate(number, kind, int(kind is TCP), smaller, dial, suspect, draining)


@pytest.mark.parametrize(
    ("candidates", "chosen"),
    [
        ([], None),
        ([one(1, draining=True)], None),
        ([one(1), one(2, kind=TCP)], 1),
        ([one(1, suspect=True), one(2, kind=TCP)], 2),
        ([one(1, suspect=True), one(2, kind=TCP, suspect=True)], 1),
        ([one(1), one(2)], 2),
        ([one(1), one(2, draining=True)], 1),
    ],
)
def test_selection(candidates: list[Candidate], chosen: int | None) -> None:
    assert select(candidates) == chosen
    assert select(reversed(candidates)) == chosen


@pytest.mark.parametrize(
    ("candidates", "retired"),
    [
        ([one(1)], []),
        ([one(1), one(2, kind=TCP)], []),
        ([one(1), one(2, kind=("quic", 6))], []),
        ([one(1, dial=1), one(2, dial=2)], [1]),
        ([one(1, smaller=False, dial=9), one(2, dial=1)], [1]),
        ([one(1, suspect=True), one(2, smaller=False)], [1]),
        ([one(1, draining=True), one(2)], []),
        ([one(1, dial=1), one(2, dial=3), one(3, dial=2)], [1, 3]),
    ],
)
def test_surplus(candidates: list[Candidate], retired: list[int]) -> None:
    assert sorted(surplus(candidates)) == retired
    assert sorted(surplus(reversed(candidates))) == retired


@given(
    st.lists(
        st.builds(
            Candidate,
            st.integers(0, 99),
            st.sampled_from([QUIC, TCP]),
            st.integers(0, 1),
            st.booleans(),
            st.integers(0, 99),
            st.booleans(),
            st.booleans(),
        ),
        unique_by=(lambda candidate: candidate.id, lambda candidate: candidate.dial),
    )
)
def test_one_of_each_kind_stays_whatever_the_order(candidates: list[Candidate]) -> None:
    retired = set(surplus(candidates))
    assert retired == set(surplus(reversed(candidates)))
    kept = [candidate for candidate in candidates if not candidate.draining and candidate.id not in retired]
    assert sorted(candidate.kind for candidate in kept) == sorted(
        {candidate.kind for candidate in candidates if not candidate.draining}
    )
