"""Connection ids: issued ahead, given up by use, and bounded on both sides."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from overlay.protocol.codes import CloseCode
from overlay.protocol.frames import ProtocolViolation
from overlay.protocol.udp.connection_ids import SPARE, LocalIds, RemoteIds
from overlay.protocol.udp.cookie import SECRET_SIZE, ResetTokens
from overlay.protocol.udp.payload import NewId

FIRST = b"first id"
TOKENS = ResetTokens(bytes(SECRET_SIZE))


def pair() -> tuple[LocalIds, RemoteIds]:
    return LocalIds(FIRST, random.Random(1).randbytes, TOKENS.token), RemoteIds(FIRST)


def test_the_first_announcement_has_the_spare_ids_and_nothing_of_the_first() -> None:
    local, remote = pair()
    issued = local.issue()
    assert [new.sequence for new in issued] == list(range(1, SPARE + 1))
    assert local.ids == (FIRST, *(new.connection_id for new in issued))
    for new in issued:
        assert new.token == TOKENS.token(new.connection_id)
        remote.receive_new_id(new)
    assert local.issue() == []
    assert remote.current == FIRST
    assert remote.is_handshakes
    assert remote.advance()
    assert not remote.is_handshakes


def test_a_used_id_replaces_all_before_it_but_the_last() -> None:
    local, remote = pair()
    second, third = local.issue()
    for new in (third, second):
        remote.receive_new_id(new)
    assert remote.advance()
    assert remote.current == second.connection_id
    assert local.receive_use(remote.current) == []
    assert local.receive_use(FIRST) == []
    [fourth] = local.issue()
    remote.receive_new_id(fourth)
    assert remote.advance()
    assert local.receive_use(remote.current) == [FIRST]
    assert local.ids == (second.connection_id, third.connection_id, fourth.connection_id)
    # An overtaken packet for the last one is still ours, and changes nothing.
    assert local.receive_use(second.connection_id) == []


@given(st.lists(st.booleans(), max_size=200))
def test_both_sides_agree_and_stay_bounded_through_any_number_of_changes(steps: list[bool]) -> None:
    local, remote = pair()
    for new in local.issue():
        remote.receive_new_id(new)
    for heard in steps:
        remote.advance()
        assert remote.current in local.ids
        if heard:
            local.receive_use(remote.current)
            for new in local.issue():
                remote.receive_new_id(new)
                remote.receive_new_id(new)
        assert len(local.ids) <= SPARE + 2
        assert len(remote._ids) <= SPARE + 1 >= len(remote._tokens)


def test_without_a_spare_id_the_old_one_has_to_do() -> None:
    _, remote = pair()
    assert not remote.advance()
    assert remote.current == FIRST


def test_repetitions_are_in_order_and_old_ones_forgotten() -> None:
    local, remote = pair()
    issued = local.issue()
    for new in issued * 2:
        remote.receive_new_id(new)
    remote.advance()
    remote.advance()
    remote.receive_new_id(issued[0])
    assert remote.current == issued[1].connection_id


@pytest.mark.parametrize(
    "new",
    [
        NewId(SPARE + 1, b"too many", bytes(16)),
        NewId(2**62 - 1, b"too many", bytes(16)),
        NewId(0, b"other id", TOKENS.token(FIRST)),
        NewId(0, FIRST, TOKENS.token(FIRST)),
        NewId(1, b"other id", bytes(16)),
        NewId(1, FIRST, bytes(16)),
    ],
    ids=["too many", "far too many", "another first", "a token for the first", "another second", "an id twice"],
)
def test_a_contradiction_is_a_violation(new: NewId) -> None:
    local, remote = pair()
    for one in local.issue()[:2]:
        remote.receive_new_id(one)
    with pytest.raises(ProtocolViolation) as caught:
        remote.receive_new_id(new)
    assert caught.value.code is CloseCode.STATE_ERROR


def test_only_the_token_of_the_id_in_use_resets() -> None:
    local, remote = pair()
    second, third = local.issue()
    remote.receive_new_id(second)
    remote.receive_new_id(third)
    # Anybody may have asked for it, before the connection was.
    assert not remote.is_reset(FIRST, TOKENS.token(FIRST))
    remote.advance()
    assert remote.is_reset(second.connection_id, second.token)
    assert not remote.is_reset(second.connection_id, bytes(16))
    assert not remote.is_reset(b"other id", second.token)
    assert not remote.is_reset(third.connection_id, third.token)
    remote.advance()
    assert remote.is_reset(third.connection_id, third.token)
    assert not remote.is_reset(second.connection_id, second.token)


def test_an_unknown_id_uses_nothing() -> None:
    local, _ = pair()
    local.issue()
    assert local.receive_use(b"unknown!") == []
