"""The table of a peer's life: whole, drawn as it is, and free of traps."""

import subprocess
import sys
import textwrap
from itertools import product

import pytest

from overlay.protocol import peer_states
from overlay.protocol.peer_states import IMPOSSIBLE, TABLE, Action, Happening, PeerState

WITH_SESSION = {PeerState.CONNECTED, PeerState.LINGERING}
WITH_PAUSE = {PeerState.LINGERING, PeerState.BACKING_OFF}
WITH_DIAL = {PeerState.DIALLING, PeerState.LINGERING}


def test_every_pair_of_state_and_happening_is_defined() -> None:
    """Corner case 18: whatever comes in whatever state, the answer is in the table."""
    assert set(TABLE) == set(product(PeerState, Happening))


def test_what_cannot_happen_would_change_nothing() -> None:
    for state, happening in IMPOSSIBLE:
        assert TABLE[state, happening] == (state, ())


def test_the_drawing_in_the_docs_is_the_one_of_the_table() -> None:
    assert textwrap.indent(peer_states.draw(), "    ") in (peer_states.__doc__ or "")


def test_the_module_prints_its_drawing() -> None:
    command = [sys.executable, "-m", "overlay.protocol.peer_states"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=30)
    assert done.stdout == peer_states.draw() + "\n"


def test_the_drawing_holds_every_pair_that_can_occur() -> None:
    """For each state, each happening stands either with where it leads or among those that change nothing."""
    for state, text in zip(
        ("forgotten", "known", "dialling", "connected", "lingering", "backing off"),
        peer_states.draw().split("\n\n"),
        strict=True,
    ):
        lines = text.splitlines()
        assert lines[0] == state
        leading = {line.partition("->")[0].strip() for line in lines[1:] if "->" in line}
        idle = {one for one in Happening if f"`{one}`" in lines[-1]}
        assert leading | idle == {one for one in Happening if (PeerState(state), one) not in IMPOSSIBLE}
        assert not leading & idle


@pytest.mark.parametrize(("state", "happening"), list(TABLE))
def test_each_rule_keeps_the_promises_of_the_states(state: PeerState, happening: Happening) -> None:
    """Told of every change, and nothing is left behind that the next state has no use for."""
    following, actions = TABLE[state, happening]
    assert len(set(actions)) == len(actions)
    told = [one for one in actions if one in {Action.TELL_CONNECTED, Action.TELL_DISCONNECTED}]
    if state not in WITH_SESSION and following in WITH_SESSION:
        assert told == [Action.TELL_CONNECTED]
    elif state in WITH_SESSION and following not in WITH_SESSION:
        assert told == [Action.TELL_DISCONNECTED]
    else:
        assert not told
    if state in WITH_PAUSE and following not in WITH_PAUSE:
        assert {Action.DISARM, Action.DIAL} & set(actions)
    if following is not state and following in WITH_DIAL:
        assert Action.DIAL in actions
    if state in {*WITH_DIAL, PeerState.CONNECTED} and following not in {*WITH_DIAL, PeerState.CONNECTED}:
        assert Action.CANCEL_DIAL in actions or happening in {Happening.DIAL_FAILED, Happening.GIVEN_UP}
    if following is PeerState.BACKING_OFF and following is not state:
        assert Action.ARM_BACKOFF in actions


def test_removing_leads_to_oblivion_from_everywhere() -> None:
    """Corner case 9: and from there only a new wish, or the peer itself, leads back."""
    for state in PeerState:
        assert TABLE[state, Happening.REMOVED][0] is PeerState.FORGOTTEN
    back = {one for one in Happening if TABLE[PeerState.FORGOTTEN, one] != (PeerState.FORGOTTEN, ())}
    assert back == {Happening.WANTED, Happening.ATTACHED}


def test_a_connection_of_the_peers_own_cancels_no_dial() -> None:
    """Corner case 2: of two that dial each other, both would give up what the other relies on."""
    for state in PeerState:
        following, actions = TABLE[state, Happening.ATTACHED]
        assert following is PeerState.CONNECTED
        assert Action.CANCEL_DIAL not in actions


def test_down_comes_only_when_the_session_is_over() -> None:
    """Corner case 3: the last connection's end leads to lingering, and nobody is told."""
    for state in PeerState:
        assert Action.TELL_DISCONNECTED not in TABLE[state, Happening.LOST][1]
