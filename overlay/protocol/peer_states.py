"""The life of a peer, as one table: what happens in which state, where that leads, and what is to be done.

    forgotten
        wanted       -> dialling     dial
        attached     -> connected    tell connected
        changes nothing: `unwanted`, `lost`, `ended`, `kicked`, `removed`

    known
        wanted       -> dialling     dial
        attached     -> connected    tell connected
        removed      -> forgotten
        changes nothing: `unwanted`, `lost`, `ended`, `kicked`

    dialling
        wanted       -> dialling     dial
        unwanted     -> known        disarm, cancel dial, reset backoff
        dial failed  -> backing off  arm backoff
        given up     -> known        disarm, reset backoff
        attached     -> connected    disarm, reset backoff, tell connected
        kicked       -> dialling     reset backoff
        removed      -> forgotten    disarm, cancel dial
        changes nothing: `lost`, `ended`, `ended, kept`

    connected
        lost         -> lingering    dial
        ended        -> known        cancel dial, tell disconnected
        ended, kept  -> backing off  cancel dial, tell disconnected, arm backoff
        removed      -> forgotten    cancel dial, tell disconnected
        changes nothing: `wanted`, `unwanted`, `dial failed`, `given up`, `attached`, `kicked`

    lingering
        wanted       -> lingering    dial
        dial failed  -> lingering    arm backoff
        attached     -> connected    disarm, reset backoff
        ended        -> known        disarm, cancel dial, reset backoff, tell disconnected
        ended, kept  -> backing off  disarm, cancel dial, reset backoff, tell disconnected, arm backoff
        due          -> lingering    dial
        kicked       -> lingering    reset backoff, dial
        removed      -> forgotten    disarm, cancel dial, tell disconnected
        changes nothing: `unwanted`, `lost`

    backing off
        wanted       -> dialling     dial
        unwanted     -> known        disarm, reset backoff
        attached     -> connected    disarm, reset backoff, tell connected
        due          -> dialling     dial
        kicked       -> dialling     reset backoff, dial
        removed      -> forgotten    disarm
        changes nothing: `lost`, `ended, kept`

This drawing is made from the table by `python -m overlay.protocol.peer_states`, and a test holds the two together. The
manner is h11's (`h11/_state.py`): every rule is in one literal, and every pair of state and happening is in it, so that
nothing that a network does late, twice or out of order finds a state without an answer.

Two rules carry the rest. A session that lingers is dialled for whoever wants the peer, as its streams wait; without a
session only those are dialled again that somebody keeps. And a connection that the peer has made never cancels a dial
of ours: of two peers that dial each other at once, both would give up the connection that the other one relies on.
"""

import sys
from enum import StrEnum
from typing import Final


class PeerState(StrEnum):
    """What we are to a peer at a moment."""

    KNOWN = "known"
    """We have dealt with it; nobody wants it now, and nothing is under way."""
    DIALLING = "dialling"
    """Somebody wants it: a dial is under way or waits for its turn."""
    CONNECTED = "connected"
    """A connection carries a session."""
    LINGERING = "lingering"
    """The session has no connection; it waits for one, which is dialled, with pauses."""
    BACKING_OFF = "backing off"
    """Somebody keeps it, a dial has failed or the session ended, and the next dial has its time."""
    FORGOTTEN = "forgotten"
    """Nothing is remembered: the beginning and the end."""


class Happening(StrEnum):
    """What may happen to a peer."""

    WANTED = "wanted"
    """Somebody keeps it from now on, or waits for it."""
    UNWANTED = "unwanted"
    """Nobody does any more."""
    DIAL_FAILED = "dial failed"
    """No address worked; somebody keeps it, or its session lingers."""
    GIVEN_UP = "given up"
    """No address worked, and there is no reason to try again."""
    ATTACHED = "attached"
    """A connection carries its session, whoever has dialled."""
    LOST = "lost"
    """The session's last connection is gone."""
    ENDED = "ended"
    """The session is over, and nobody keeps the peer."""
    ENDED_KEPT = "ended, kept"
    """The session is over, and somebody keeps the peer."""
    DUE = "due"
    """The pause is over."""
    KICKED = "kicked"
    """There is hope: our network has changed, the peer has shown a sign of life, or the user says so."""
    REMOVED = "removed"
    """It is to be forgotten."""


class Action(StrEnum):
    """What is to be done, in the order of the table."""

    DIAL = "dial"
    """End the pause and see to it that a dial is under way: at once for a user who waits, otherwise in its turn."""
    CANCEL_DIAL = "cancel dial"
    """Stop the dial that is under way, if there is one."""
    ARM_BACKOFF = "arm backoff"
    """Begin the next pause, longer than the last."""
    DISARM = "disarm"
    """End the pause, and give up the dial's turn, without dialling."""
    RESET_BACKOFF = "reset backoff"
    """The next pause is the shortest again."""
    TELL_CONNECTED = "tell connected"
    TELL_DISCONNECTED = "tell disconnected"


KNOWN, DIALLING, CONNECTED, LINGERING, BACKING_OFF, FORGOTTEN = PeerState
WANTED, UNWANTED, DIAL_FAILED, GIVEN_UP, ATTACHED, LOST, ENDED, ENDED_KEPT, DUE, KICKED, REMOVED = Happening
DIAL, CANCEL_DIAL, ARM_BACKOFF, DISARM, RESET_BACKOFF, TELL_CONNECTED, TELL_DISCONNECTED = Action

TABLE: Final[dict[tuple[PeerState, Happening], tuple[PeerState, tuple[Action, ...]]]] = {
    # ---- forgotten
    (FORGOTTEN, WANTED): (DIALLING, (DIAL,)),
    (FORGOTTEN, ATTACHED): (CONNECTED, (TELL_CONNECTED,)),
    # What was under way when it was removed comes to its end, and must not bring it back.
    (FORGOTTEN, UNWANTED): (FORGOTTEN, ()),
    (FORGOTTEN, DIAL_FAILED): (FORGOTTEN, ()),
    (FORGOTTEN, GIVEN_UP): (FORGOTTEN, ()),
    (FORGOTTEN, LOST): (FORGOTTEN, ()),
    (FORGOTTEN, ENDED): (FORGOTTEN, ()),
    (FORGOTTEN, ENDED_KEPT): (FORGOTTEN, ()),
    (FORGOTTEN, DUE): (FORGOTTEN, ()),
    (FORGOTTEN, KICKED): (FORGOTTEN, ()),
    (FORGOTTEN, REMOVED): (FORGOTTEN, ()),
    # ---- known
    (KNOWN, WANTED): (DIALLING, (DIAL,)),
    (KNOWN, ATTACHED): (CONNECTED, (TELL_CONNECTED,)),
    (KNOWN, REMOVED): (FORGOTTEN, ()),
    # Nobody wants it, so a network that has changed is no reason to dial.
    (KNOWN, KICKED): (KNOWN, ()),
    # The late end of a session that never had a connection, or of who waited.
    (KNOWN, UNWANTED): (KNOWN, ()),
    (KNOWN, DIAL_FAILED): (KNOWN, ()),
    (KNOWN, GIVEN_UP): (KNOWN, ()),
    (KNOWN, LOST): (KNOWN, ()),
    (KNOWN, ENDED): (KNOWN, ()),
    (KNOWN, ENDED_KEPT): (KNOWN, ()),
    (KNOWN, DUE): (KNOWN, ()),
    # ---- dialling
    # A user who waits does not wait for the turn that a background dial has.
    (DIALLING, WANTED): (DIALLING, (DIAL,)),
    (DIALLING, UNWANTED): (KNOWN, (DISARM, CANCEL_DIAL, RESET_BACKOFF)),
    (DIALLING, DIAL_FAILED): (BACKING_OFF, (ARM_BACKOFF,)),
    (DIALLING, GIVEN_UP): (KNOWN, (DISARM, RESET_BACKOFF)),
    (DIALLING, ATTACHED): (CONNECTED, (DISARM, RESET_BACKOFF, TELL_CONNECTED)),
    # The dial goes on: it may be the one that works; if it fails, the next one comes soon.
    (DIALLING, KICKED): (DIALLING, (RESET_BACKOFF,)),
    (DIALLING, REMOVED): (FORGOTTEN, (DISARM, CANCEL_DIAL)),
    # A session that never had a connection: the dial itself says how it ended.
    (DIALLING, LOST): (DIALLING, ()),
    (DIALLING, ENDED): (DIALLING, ()),
    (DIALLING, ENDED_KEPT): (DIALLING, ()),
    (DIALLING, DUE): (DIALLING, ()),
    # ---- connected
    (CONNECTED, LOST): (LINGERING, (DIAL,)),
    (CONNECTED, ENDED): (KNOWN, (CANCEL_DIAL, TELL_DISCONNECTED)),
    # Never at once: a peer that accepts and ends each session would be dialled in a circle.
    (CONNECTED, ENDED_KEPT): (BACKING_OFF, (CANCEL_DIAL, TELL_DISCONNECTED, ARM_BACKOFF)),
    (CONNECTED, REMOVED): (FORGOTTEN, (CANCEL_DIAL, TELL_DISCONNECTED)),
    # A further path; and the dial that lost to the peer's own.
    (CONNECTED, ATTACHED): (CONNECTED, ()),
    (CONNECTED, DIAL_FAILED): (CONNECTED, ()),
    (CONNECTED, GIVEN_UP): (CONNECTED, ()),
    # There is what is wanted. A session that nobody wants is the user's to close, or the peer's.
    (CONNECTED, WANTED): (CONNECTED, ()),
    (CONNECTED, UNWANTED): (CONNECTED, ()),
    (CONNECTED, KICKED): (CONNECTED, ()),
    (CONNECTED, DUE): (CONNECTED, ()),
    # ---- lingering
    (LINGERING, WANTED): (LINGERING, (DIAL,)),
    (LINGERING, DIAL_FAILED): (LINGERING, (ARM_BACKOFF,)),
    (LINGERING, ATTACHED): (CONNECTED, (DISARM, RESET_BACKOFF)),
    # What was dialled for this session is of no use to the next.
    (LINGERING, ENDED): (KNOWN, (DISARM, CANCEL_DIAL, RESET_BACKOFF, TELL_DISCONNECTED)),
    (LINGERING, ENDED_KEPT): (BACKING_OFF, (DISARM, CANCEL_DIAL, RESET_BACKOFF, TELL_DISCONNECTED, ARM_BACKOFF)),
    (LINGERING, DUE): (LINGERING, (DIAL,)),
    (LINGERING, KICKED): (LINGERING, (RESET_BACKOFF, DIAL)),
    (LINGERING, REMOVED): (FORGOTTEN, (DISARM, CANCEL_DIAL, TELL_DISCONNECTED)),
    # Its streams still want it. The last connection is gone only once.
    (LINGERING, UNWANTED): (LINGERING, ()),
    (LINGERING, LOST): (LINGERING, ()),
    (LINGERING, GIVEN_UP): (LINGERING, ()),
    # ---- backing off
    (BACKING_OFF, WANTED): (DIALLING, (DIAL,)),
    (BACKING_OFF, UNWANTED): (KNOWN, (DISARM, RESET_BACKOFF)),
    (BACKING_OFF, ATTACHED): (CONNECTED, (DISARM, RESET_BACKOFF, TELL_CONNECTED)),
    (BACKING_OFF, DUE): (DIALLING, (DIAL,)),
    (BACKING_OFF, KICKED): (DIALLING, (RESET_BACKOFF, DIAL)),
    (BACKING_OFF, REMOVED): (FORGOTTEN, (DISARM,)),
    # The late end of a session that never had a connection, or of who waited.
    (BACKING_OFF, DIAL_FAILED): (BACKING_OFF, ()),
    (BACKING_OFF, GIVEN_UP): (BACKING_OFF, ()),
    (BACKING_OFF, LOST): (BACKING_OFF, ()),
    (BACKING_OFF, ENDED): (BACKING_OFF, ()),
    (BACKING_OFF, ENDED_KEPT): (BACKING_OFF, ()),
}
"""Every pair of state and happening: the next state, and what is to be done."""

IMPOSSIBLE: Final = frozenset(
    {
        # No dial is under way there, and the late word of one that was cancelled is not listened to.
        (FORGOTTEN, DIAL_FAILED),
        (FORGOTTEN, GIVEN_UP),
        (KNOWN, DIAL_FAILED),
        (KNOWN, GIVEN_UP),
        (BACKING_OFF, DIAL_FAILED),
        (BACKING_OFF, GIVEN_UP),
        # Who is kept is more than known, who backs off is kept, who lingers is dialled again in any case.
        (FORGOTTEN, ENDED_KEPT),
        (KNOWN, ENDED_KEPT),
        (BACKING_OFF, ENDED),
        (LINGERING, GIVEN_UP),
        # There are pauses in two states only.
        (FORGOTTEN, DUE),
        (KNOWN, DUE),
        (DIALLING, DUE),
        (CONNECTED, DUE),
    }
)
"""What `PeerTable` never lets happen, whatever it is told; the table makes it harmless, and tests hold that it does
not occur."""


def draw() -> str:
    """The table as text: for each state what leads where, then what is ignored."""
    lines: list[str] = []
    for state in (FORGOTTEN, KNOWN, DIALLING, CONNECTED, LINGERING, BACKING_OFF):
        ignored: list[str] = []
        lines += ["", str(state)]
        for happening in Happening:
            following, actions = TABLE[state, happening]
            if following is not state or actions:
                lines.append(f"    {happening:<12} -> {following:<11}  {', '.join(actions)}".rstrip())
            elif (state, happening) not in IMPOSSIBLE:
                ignored.append(f"`{happening}`")
        lines.append(f"    changes nothing: {', '.join(ignored)}")
    return "\n".join(lines[1:])


if __name__ == "__main__":
    sys.stdout.write(draw() + "\n")
