"""The control stream: frames of the session, in order and exactly once, over packets that come in any order.

Nobody grants credit for it. Both sides know that a receiver holds WINDOW bytes beyond a gap and no more, so a sender
never goes further than that beyond the first byte that is not acknowledged.
"""

import heapq
from collections import deque
from typing import Final

from overlay.protocol.buffers import ReceiveBuffer, SendBuffer
from overlay.protocol.codes import CloseCode
from overlay.protocol.frames import ProtocolViolation
from overlay.protocol.udp.payload import Buffer

WINDOW: Final = 64 * 1024
"""Bytes: the WINDOWs of 2,048 streams, which a session may repeat at once, are 40 KiB."""
MAXIMUM_PIECES: Final = 256
"""Pieces in flight. What a receiver keeps beyond a gap costs some hundred bytes for each piece, however small it is."""
MAXIMUM_GAPS: Final = 2 * MAXIMUM_PIECES
"""What a receiver suffers: pieces that were lost may be cut smaller when they are sent again."""
MAXIMUM_WAITING: Final = 4 * 1024 * 1024
"""Bytes not acknowledged. A peer that makes us answer and never listens is cut off there, if not sooner."""


class ControlOverflow(Exception):
    """The peer does not acknowledge what it makes us say; the connection is to be ended."""


class ControlSender:
    """Our half: what is to be said, and which of it has been heard."""

    def __init__(self, limit: int = MAXIMUM_WAITING) -> None:
        self._limit = limit
        self._buffer = SendBuffer()
        self._next = 0
        self._again: deque[tuple[int, int]] = deque()
        """Offset and end of what was lost."""
        self._heard: list[tuple[int, int]] = []
        """A heap: offset and end of what was acknowledged beyond a gap."""
        self._cuts: deque[int] = deque()
        """Where the pieces that are not wholly acknowledged end."""

    def __len__(self) -> int:
        """Bytes that are not acknowledged."""
        return len(self._buffer)

    @property
    def ready(self) -> bool:
        """Whether something may be sent now."""
        buffer = self._buffer
        return bool(self._again) or (
            self._next < buffer.end and self._next < buffer.start + WINDOW and len(self._cuts) < MAXIMUM_PIECES
        )

    def write(self, data: Buffer) -> None:
        """Queue bytes.

        Raises:
            ControlOverflow: too many are not acknowledged.
        """
        if len(self._buffer) + len(data) > self._limit:
            raise ControlOverflow
        self._buffer.append(data)

    def take(self, room: int) -> tuple[int, Buffer] | None:
        """The next piece to send, its offset and up to `room` bytes; None when there is nothing."""
        buffer = self._buffer
        if self._again:
            offset, end = self._again.popleft()
            offset = max(offset, buffer.start)
            data = buffer.peek(offset, min(room, end - offset))
            if offset + len(data) < end:
                self._again.appendleft((offset + len(data), end))
            self._forget_heard()
            return offset, data
        if not self.ready:
            return None
        offset = self._next
        data = buffer.peek(offset, min(room, buffer.start + WINDOW - offset))
        self._next = offset + len(data)
        self._cuts.append(self._next)
        return offset, data

    def acknowledged(self, offset: int, end: int) -> None:
        """The peer has this piece."""
        heard, buffer = self._heard, self._buffer
        if end <= buffer.start:
            return
        heapq.heappush(heard, (offset, end))
        start = buffer.start
        while heard and heard[0][0] <= start:
            start = max(start, heapq.heappop(heard)[1])
        if start > buffer.start:
            buffer.acknowledge(start)
            while self._cuts and self._cuts[0] <= start:
                self._cuts.popleft()
            self._forget_heard()

    def lost(self, offset: int, end: int) -> None:
        """This piece is to be sent again."""
        if end > self._buffer.start:
            self._again.append((offset, end))

    def _forget_heard(self) -> None:
        """A copy may have come through: what is lost and comes first in line is not acknowledged."""
        while self._again and self._again[0][1] <= self._buffer.start:
            self._again.popleft()


class ControlReceiver:
    """The peer's half: pieces in any order become bytes in order."""

    def __init__(self) -> None:
        self._buffer = ReceiveBuffer()

    def receive(self, offset: int, data: Buffer) -> bytes:
        """What can be read now that this piece is there.

        Raises:
            ProtocolViolation: it lies too far beyond what is missing, or there are too many gaps.
        """
        buffer = self._buffer
        if offset + len(data) > buffer.received + WINDOW:
            raise ProtocolViolation(CloseCode.FLOW_CONTROL_ERROR, "control bytes too far ahead")
        if offset == buffer.received and not buffer.gaps:
            buffer.skip_to(offset + len(data))
            return bytes(data)
        if buffer.insert(offset, bytes(data)):
            return buffer.read(WINDOW)
        if buffer.gaps > MAXIMUM_GAPS:
            raise ProtocolViolation(CloseCode.FLOW_CONTROL_ERROR, "control bytes in too many pieces")
        return b""
