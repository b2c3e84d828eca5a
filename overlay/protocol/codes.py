"""Reasons that travel: why a connection was closed, why a stream was ended."""

from enum import IntEnum
from typing import Final


class CloseCode(IntEnum):
    """Why a connection is closed, as the peer reads it.

    On QUIC it is the error code of an application CONNECTION_CLOSE (RFC 9000 section 19.19), on TCP the code of
    our CLOSE frame.
    """

    NO_ERROR = 0x00
    SESSION_CLOSED = 0x01
    """The application ended the session; do not linger, do not dial again."""
    RETIRED = 0x02
    """Another connection of the same session does the work."""
    LOST_RACE = 0x03
    """Another address of the same dial answered first."""
    SILENT = 0x04
    """Nothing was heard for the idle time."""
    SESSION_GONE = 0x10
    """The HELLO named an incarnation that is not known here (any more)."""
    DUPLICATE_IDENTITY = 0x11
    """Another living process has the same key."""
    REFUSED = 0x12
    """Admission said no."""
    BUSY = 0x13
    """A limit on sessions, handshakes or memory is reached."""
    SELF_DIAL = 0x14
    """The dialler reached itself."""
    UNAUTHENTICATED = 0x15
    """No acceptable, proven Ed25519 certificate."""
    HANDSHAKE_TIMEOUT = 0x16
    """The handshake, or the HELLO after it, did not come in time."""
    RESTARTED = 0x17
    """The HELLO named a session of a process that was here before this one: nothing is left of it."""
    MISBEHAVED = 0x18
    """The peer broke the rules of what is spoken on its streams; otherwise as SESSION_CLOSED."""
    FRAME_ERROR = 0x20
    """A frame that cannot be parsed, or an unknown mandatory one."""
    STATE_ERROR = 0x21
    """A frame that is not allowed now, such as a second HELLO."""
    STREAM_ID_ERROR = 0x22
    """A stream id beyond the credit, or one that only the receiver may open."""
    FLOW_CONTROL_ERROR = 0x23
    """Data beyond the limit that was granted, or an acknowledgement of what was never sent."""
    FINAL_SIZE_ERROR = 0x24
    """Two different ends of one stream."""
    INTERNAL_ERROR = 0x30
    """The fault is ours."""
    AEAD_LIMIT_REACHED = 0x31
    """More packets were sealed, or forged, under one connection's keys than its cipher bears (RFC 9001 section 6.6)."""


ENDS_SESSION: Final = frozenset({CloseCode.SESSION_CLOSED, CloseCode.MISBEHAVED})
"""With which an application ends a session on purpose, at both sides."""


class StreamCode(IntEnum):
    """Codes of RESET and STOP that the library itself sends; below 2**32 they belong to the application."""

    UNKNOWN_PROTOCOL = 2**32
    HANDLER_FAILED = 2**32 + 1
    """The handler, or the body of `async with stream`, ended by an exception."""
    UNREAD = 2**32 + 2
    """The stream was closed while data was still unread."""
    CLOSED = 2**32 + 3
    """The stream was left without waiting for its delivery."""
