"""The order of dials that nobody waits for."""

from overlay.protocol.dial_turns import DialTurns


def taken(turns: DialTurns, now: float) -> list[bytes]:
    """All whose turn has come."""
    found: list[bytes] = []
    while (key := turns.take(now)) is not None:
        found.append(key)
    return found


def test_a_burst_goes_at_once_and_the_others_one_by_one() -> None:
    turns = DialTurns(rate=2.0, burst=2.0)
    for one in b"abcd":
        turns.add(bytes([one]), chosen=True)
    assert taken(turns, 100.0) == [b"a", b"b"]
    assert turns.next_timeout() == 100.5
    assert taken(turns, 100.4) == []
    assert taken(turns, 100.5) == [b"c"]
    assert turns.next_timeout() == 101.0
    assert taken(turns, 101.0) == [b"d"]
    assert turns.next_timeout() is None


def test_who_is_kept_goes_before_strangers() -> None:
    turns = DialTurns(rate=1.0, burst=5.0)
    turns.add(b"stranger", chosen=False)
    turns.add(b"friend", chosen=True)
    assert turns.first == b"friend"
    assert taken(turns, 0.0) == [b"friend", b"stranger"]


def test_a_stranger_that_is_chosen_moves_ahead_and_back_again_it_does_not() -> None:
    turns = DialTurns(rate=1.0, burst=5.0)
    turns.add(b"one", chosen=False)
    turns.add(b"two", chosen=False)
    turns.add(b"two", chosen=True)
    turns.add(b"two", chosen=False)
    assert len(turns) == 2
    assert taken(turns, 0.0) == [b"two", b"one"]


def test_who_asks_again_keeps_its_place() -> None:
    """Else one that is kicked again and again would never be dialled."""
    turns = DialTurns(rate=1.0, burst=5.0)
    for key in (b"one", b"two", b"one"):
        turns.add(key, chosen=True)
    assert taken(turns, 0.0) == [b"one", b"two"]


def test_a_turn_whose_owner_left_serves_the_next() -> None:
    """What was taken from the bucket is not lost, and not used twice."""
    turns = DialTurns(rate=1.0, burst=1.0)
    for key in (b"one", b"two", b"three", b"four"):
        turns.add(key, chosen=True)
    assert taken(turns, 0.0) == [b"one"]
    turns.drop(b"two")
    assert b"two" not in turns
    assert taken(turns, 1.0) == [b"three"]
    turns.drop(b"four")
    assert turns.next_timeout() is None
    turns.add(b"five", chosen=False)
    assert taken(turns, 1.5) == []
    assert taken(turns, 2.0) == [b"five"]
