"""Each way in which a session or an attempt may end has its error."""

import pytest

from overlay.endings import not_accepted, session_error
from overlay.errors import DuplicateIdentity, PeerRestarted, SessionClosed, SessionLost, SessionRefused
from overlay.protocol.actions import Ending
from overlay.protocol.codes import CloseCode
from overlay.transports.base import ClosedBy, CloseReason


@pytest.mark.parametrize(
    ("why", "code", "kind"),
    [
        (Ending.CLOSED_BY_US, CloseCode.SESSION_CLOSED, SessionClosed),
        (Ending.CLOSED_BY_PEER, CloseCode.MISBEHAVED, SessionClosed),
        (Ending.EXPIRED, 0, SessionLost),
        (Ending.GONE, CloseCode.SESSION_GONE, SessionLost),
        (Ending.RESTARTED, CloseCode.RESTARTED, PeerRestarted),
        (Ending.REFUSED, CloseCode.REFUSED, SessionRefused),
        (Ending.REFUSED, CloseCode.DUPLICATE_IDENTITY, DuplicateIdentity),
    ],
)
def test_every_ending_has_an_error(why: Ending, code: int, kind: type[Exception]) -> None:
    assert type(session_error(why, code, "because")) is kind


@pytest.mark.parametrize("why", [Ending.CLOSED_BY_US, Ending.CLOSED_BY_PEER])
def test_who_closed_it_and_with_which_code_is_told(why: Ending) -> None:
    error = session_error(why, CloseCode.MISBEHAVED, "a frame is too long")
    assert isinstance(error, SessionClosed)
    assert error.by_peer is (why is Ending.CLOSED_BY_PEER)
    assert (error.code, error.reason) == (CloseCode.MISBEHAVED, "a frame is too long")
    assert str(error).endswith("(MISBEHAVED): a frame is too long")
    assert "SESSION_CLOSED" not in str(session_error(why, CloseCode.SESSION_CLOSED, ""))


@pytest.mark.parametrize(
    ("by", "code", "kind"),
    [
        (ClosedBy.NETWORK, CloseCode.NO_ERROR, ConnectionError),
        (ClosedBy.US, CloseCode.REFUSED, ConnectionError),
        (ClosedBy.PEER, CloseCode.BUSY, SessionRefused),
        (ClosedBy.PEER, CloseCode.DUPLICATE_IDENTITY, DuplicateIdentity),
    ],
)
def test_a_connection_that_was_not_accepted_says_by_whom(by: ClosedBy, code: int, kind: type[Exception]) -> None:
    assert type(not_accepted(CloseReason(by, code))) is kind
