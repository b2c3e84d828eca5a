"""One deadline for each key: the heap holds what a plain search over all of them would say."""

from hypothesis import given
from hypothesis import strategies as st

from overlay.protocol.deadlines import STALE, Deadlines

KEYS = [bytes([one]) * 32 for one in range(5)]
keys = st.sampled_from(KEYS)
steps = st.lists(
    st.one_of(
        st.tuples(st.just("set"), keys, st.integers(0, 20)),
        st.tuples(st.just("drop"), keys, st.just(0)),
        st.tuples(st.just("pop"), st.just(b""), st.integers(0, 20)),
    ),
    max_size=60,
)


@given(steps)
def test_it_does_what_a_dictionary_and_a_search_would(script: list[tuple[str, bytes, int]]) -> None:
    deadlines = Deadlines()
    plain: dict[bytes, float] = {}
    for what, key, at in script:
        if what == "set":
            deadlines.set(key, at)
            plain[key] = at
        elif what == "drop":
            deadlines.drop(key)
            plain.pop(key, None)
        else:
            least = min(plain.values(), default=None)
            found = deadlines.pop(at)
            if least is None or least > at:
                assert found is None
            else:
                assert found is not None
                assert plain.pop(found) == least
        assert deadlines.next_timeout() == min(plain.values(), default=None)
        assert len(deadlines) == len(plain)
        for one in KEYS:
            assert (one in deadlines) == (one in plain)
            assert deadlines.get(one) == plain.get(one)


def test_outdated_entries_do_not_pile_up() -> None:
    """A thousand changes of one deadline, put off each time."""
    deadlines = Deadlines()
    for at in range(1000):
        deadlines.set(b"early", 0.0)
        deadlines.set(b"late", 1000.0 + at)
        assert len(deadlines._heap) <= 2 * len(deadlines) + STALE
    assert deadlines.pop(5000.0) == b"early"
    assert deadlines.pop(5000.0) == b"late"
    assert deadlines.pop(5000.0) is None
