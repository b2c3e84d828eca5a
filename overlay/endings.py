"""Why a session, or an attempt to begin one, has ended: from what the core says to the error that users get."""

from overlay.errors import DuplicateIdentity, PeerRestarted, SessionClosed, SessionError, SessionLost, SessionRefused
from overlay.protocol.actions import Ending
from overlay.protocol.codes import CloseCode
from overlay.transports.base import ClosedBy, CloseReason


def session_error(why: Ending, code: int, reason: str) -> SessionError:
    """What the streams of a session fail with.

    Args:
        why: how it ended.
        code: with which its connections were closed, if they were.
        reason: in the words of who closed them.
    """
    match why:
        case Ending.CLOSED_BY_US | Ending.CLOSED_BY_PEER:
            return SessionClosed(by_peer=why is Ending.CLOSED_BY_PEER, code=CloseCode(code), reason=reason)
        case Ending.RESTARTED:
            return PeerRestarted("the peer's process has started anew")
        case Ending.REFUSED if code == CloseCode.DUPLICATE_IDENTITY:
            return DuplicateIdentity(code, reason)
        case Ending.REFUSED:
            return SessionRefused(code, reason)
        case _:
            return SessionLost(f"the session is lost: {why.value}")


def not_accepted(reason: CloseReason) -> Exception:
    """Why a connection that we made ended before the peer's ACCEPT."""
    if reason.by is not ClosedBy.PEER:
        return ConnectionError(str(reason))
    if reason.code == CloseCode.DUPLICATE_IDENTITY:
        return DuplicateIdentity(reason.code, reason.reason)
    return SessionRefused(reason.code, reason.reason)
