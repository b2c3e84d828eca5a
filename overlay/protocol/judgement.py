"""What becomes of a connection whose dialler has said HELLO. Pure functions of what both sides know.

A connection begins with the dialler's HELLO and the acceptor's ACCEPT, which tie it to one pair of *incarnations*, the
random names of the session at either side, for ever. What may happen:

    HELLO says        we have                   then
    yours = 0         no session                a new session; ACCEPT
    yours = 0         theirs unknown or equal   the same session (both dialled, or our ACCEPT was lost); ACCEPT
    yours = mine      theirs unknown or equal   the same session, resumed; ACCEPT
    yours unknown     anything                  SESSION_GONE: one side has given up, the other has not; or RESTARTED, if
                                                the dialler has had to do with another process of ours than this one
    a new `mine`      a session                 a challenge: replaces ours only if the connection echoes our nonce, and,
                                                if the process differs, if ours does not answer a PING (a restart, or a
                                                second living process, which is refused: DUPLICATE_IDENTITY)

A process that is new cannot know which names its predecessor has drawn. So HELLO has the number of the process that
the dialler has had to do with, and whoever dials a peer that has restarted hears so at once, as does one that a peer
dials after its restart.
"""

from enum import Enum
from typing import Final

from overlay.protocol.codes import CloseCode
from overlay.protocol.frames import Accept, Hello
from overlay.protocol.links import SessionState


class Judgement(Enum):
    """What to do with it."""

    GONE = "names a session that is not known here any more"
    STALE = "names a session with a process that was here before this one"
    NEW = "begins the first session"
    SAME = "belongs to the session that there is"
    CHALLENGE = "claims to begin anew: has to show that it is no late message of the past"
    REPLACE = "the same process has begun a new session"
    RESTART = "a new process, and nothing is left of the old one"
    ASK = "a new process: ask the connections of the old one whether they live"


UNKNOWN: Final = {Judgement.GONE: CloseCode.SESSION_GONE, Judgement.STALE: CloseCode.RESTARTED}
"""What the dialler is told of a session that is not known here."""


def judge(hello: Hello, session: SessionState | None, *, process: int, proven: bool, attached: bool) -> Judgement:
    """Judge a HELLO.

    Args:
        hello: what the dialler said.
        session: what we have.
        process: our process.
        proven: whether its connection has echoed our nonce.
        attached: whether any connection carries our session.
    """
    if hello.yours not in {0, session.mine if session else 0}:
        return Judgement.GONE if hello.your_process == process else Judgement.STALE
    if session is None:
        return Judgement.NEW
    if session.theirs in {0, hello.mine}:
        return Judgement.SAME
    if not proven:
        return Judgement.CHALLENGE
    if hello.process == session.process:
        return Judgement.REPLACE
    return Judgement.ASK if attached else Judgement.RESTART


def hello_for(session: SessionState, *, process: int, linger: int, dial: int) -> Hello:
    """What we say when we dial for `session`; `linger` in ms."""
    limits = session.core.limits
    return Hello(
        process=process,
        mine=session.mine,
        your_process=session.process,
        yours=session.theirs,
        linger=linger,
        dial=dial,
        streams=limits.streams,
        window=limits.window,
    )


def accept_for(session: SessionState, hello: Hello, *, process: int, linger: int) -> Accept:
    """What we answer when `hello` belongs to `session`; `linger` in ms."""
    limits = session.core.limits
    return Accept(
        process=process,
        mine=session.mine,
        yours=hello.mine,
        linger=linger,
        streams=limits.streams,
        window=limits.window,
    )
