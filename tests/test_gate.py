"""The gate counts handshakes under way, in total and for each origin."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from overlay.protocol.gate import HandshakeGate


def test_total_limit_turns_away_and_lets_in_again() -> None:
    gate = HandshakeGate(total=2, per_address=2)
    assert gate.enter("192.0.2.1")
    assert gate.enter("192.0.2.2")
    assert not gate.enter("192.0.2.3")
    assert gate.pending == 2
    gate.leave("192.0.2.1")
    assert gate.enter("192.0.2.3")


def test_one_address_cannot_take_the_place_of_others() -> None:
    gate = HandshakeGate(total=10, per_address=1)
    assert gate.enter("192.0.2.1")
    assert not gate.enter("192.0.2.1")
    assert gate.enter("192.0.2.2")
    assert gate.pending == 2


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("2001:db8::1", "2001:db8::ffff:ffff:ffff:ffff", True),
        ("2001:db8::1", "2001:db8:0:1::1", False),
        ("fe80::1%eth0", "fe80::2%eth1", True),
        ("192.0.2.1", "::ffff:192.0.2.1", True),
        ("192.0.2.1", "192.0.2.2", False),
        ("name", "name", True),
    ],
)
def test_origin_is_an_ipv4_address_or_an_ipv6_64(one: str, other: str, same: bool) -> None:
    gate = HandshakeGate(total=10, per_address=1)
    assert gate.enter(one)
    assert gate.enter(other) is not same


def test_leaving_without_having_entered_is_an_error() -> None:
    with pytest.raises(ValueError, match="under way"):
        HandshakeGate(total=1, per_address=1).leave("192.0.2.1")


@given(st.lists(st.tuples(st.booleans(), st.sampled_from(["192.0.2.1", "192.0.2.2", "2001:db8::1"]))))
def test_counts_never_pass_their_limits_and_nothing_is_left(steps: list[tuple[bool, str]]) -> None:
    gate = HandshakeGate(total=3, per_address=2)
    inside: list[str] = []
    for entering, host in steps:
        if entering:
            allowed = len(inside) < 3 and inside.count(host) < 2
            assert gate.enter(host) is allowed
            if allowed:
                inside.append(host)
        elif host in inside:
            gate.leave(host)
            inside.remove(host)
        assert gate.pending == len(inside)
    for host in inside:
        gate.leave(host)
    assert gate.pending == 0
    assert not gate._by_origin
