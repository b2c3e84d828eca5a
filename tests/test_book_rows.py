"""Rows refuse what no file can hold, and of all changes the newest of each row is kept."""

import dataclasses
import math
from typing import Any

import pytest
from book_support import FULL, key, row
from hypothesis import given
from hypothesis import strategies as st

from overlay.book_rows import Changes, PeerRow, Row
from overlay.protocol.evidence import Evidence, Source


def test_a_row_has_the_fields_of_the_evidence_and_gives_them_back() -> None:
    evidence = [field.name for field in dataclasses.fields(Evidence)]
    assert [field.name for field in dataclasses.fields(Row)] == ["key", "transport", "host", "port", *evidence]
    assert all(getattr(FULL.evidence, name) == getattr(FULL, name) for name in evidence)
    assert Row.of(FULL.key, FULL.place, FULL.evidence) == FULL
    assert FULL.evidence.source is Source.STATIC


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("key", bytes(31)),
        ("key", "x" * 32),
        ("transport", 1),
        ("host", b"host"),
        ("host", "h" * 1025),
        ("host", "\udcff"),
        ("port", 0),
        ("port", 65536),
        ("port", "1"),
        ("source", "hearsay"),
        ("learnt", None),
        ("learnt", math.nan),
        ("last_success", math.inf),
        ("successes", 1 << 63),
        ("failures", -1),
        ("rtt", "fast"),
    ],
)
def test_a_place_that_no_file_can_hold_is_refused(field: str, value: Any) -> None:
    with pytest.raises(ValueError, match=field if field != "source" else "hearsay"):
        dataclasses.replace(FULL, **{field: value})


@pytest.mark.parametrize(("field", "value"), [("key", b""), ("sequence", 1 << 64), ("sequence", -1), ("kept", 1)])
def test_a_peer_that_no_file_can_hold_is_refused(field: str, value: Any) -> None:
    with pytest.raises(ValueError, match=field):
        dataclasses.replace(PeerRow(key(1)), **{field: value})


def test_a_peer_of_which_nothing_is_known_is_empty() -> None:
    assert PeerRow(key(1)).is_empty
    for told in ({"kept": True}, {"blocked": True}, {"sequence": 1}, {"name": "x"}, {"last_seen": 1.0}):
        assert not PeerRow(key(1), **told).is_empty


def test_a_forgotten_peer_keeps_what_the_user_said() -> None:
    changes = Changes(100)
    for number, peer in enumerate(
        (PeerRow(key(0), blocked=True), PeerRow(key(1), kept=True), PeerRow(key(2), name="x"))
    ):
        changes.put_peer(peer)
        changes.put(key(number), row(number).place, row(number))
        changes.forget(key(number))
    assert changes.peers == {
        key(0): PeerRow(key(0), blocked=True),
        key(1): PeerRow(key(1), kept=True),
        key(2): PeerRow(key(2)),
    }
    assert changes.places == {}
    assert len(changes) == 6


def test_beyond_the_bound_the_oldest_place_is_lost_and_a_block_last() -> None:
    changes = Changes(3)
    changes.put_peer(PeerRow(key(9), blocked=True))
    changes.forget(key(8))
    for number in range(3):
        changes.put(key(number), row(number).place, row(number))
    assert (list(changes.places), changes.lost, len(changes)) == ([key(2)], 2, 3)
    for number in range(10, 20):
        changes.forget(key(number))
    assert (list(changes.places), list(changes.forgotten), list(changes.peers)) == ([], [key(18), key(19)], [key(9)])
    assert changes.lost == 12


steps = st.lists(
    st.tuples(st.sampled_from(["put", "drop", "forget", "peer", "kept"]), st.integers(0, 2), st.integers(1, 3)),
    max_size=30,
)


@given(steps, st.integers(0, 30))
def test_changes_taken_in_two_parts_are_the_same_as_in_one(taken: list[tuple[str, int, int]], cut: int) -> None:
    """What the thread could not write, and what came later; and the size is always the sum."""
    whole, first, second = Changes(1000), Changes(1000), Changes(1000)
    for number, (what, who, port) in enumerate(taken):
        for changes in (whole, first if number < cut else second):
            place = row(who, port=port).place
            match what:
                case "put":
                    changes.put(key(who), place, row(who, port=port, learnt=float(number)))
                case "drop":
                    changes.put(key(who), place, None)
                case "forget":
                    changes.forget(key(who))
                case "peer" | "kept":
                    changes.put_peer(PeerRow(key(who), kept=what == "kept", last_seen=float(number)))
            written = sum(map(len, changes.places.values())) + len(changes.peers) + len(changes.forgotten)
            assert len(changes) == written
    first.add(second)
    assert (first.places, first.forgotten, first.peers) == (whole.places, whole.forgotten, whole.peers)
    assert (len(first), first.lost) == (len(whole), 0)
