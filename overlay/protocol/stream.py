"""One stream: its two halves, and what can happen to each.

Offsets are absolute for the life of the session, whatever connections come and go. FIN and RESET occupy the offset
behind the last byte, so `received == final + 1` is the acknowledgement of the end, and the end is state that is
repeated until it is acknowledged, not an event that could be lost.
"""

from enum import Enum, IntEnum
from typing import Final

from overlay.protocol.buffers import GAP, MAX_GAPS, ReceiveBuffer, SendBuffer
from overlay.protocol.codes import CloseCode
from overlay.protocol.frames import VARINT_MAX, ProtocolViolation

ACK_EVERY: Final = 256 * 1024
"""Received bytes after which an acknowledgement leaves at once; before that, the session's timer sends it."""


class Priority(IntEnum):
    """Who goes first when a connection has room."""

    CONTROL = 0
    BULK = 1


class Ending(Enum):
    """How a half has ended."""

    FIN = "fin"
    RESET = "reset"


class SendHalf:
    """What we send: written up to `buffer.end`, sent up to `sent`, acknowledged up to `acked`."""

    __slots__ = (
        "acked",
        "blocked",
        "buffer",
        "code",
        "ending",
        "final",
        "highest",
        "limit",
        "promised",
        "queued",
        "sent",
        "stopped",
        "waiting",
    )

    def __init__(self, limit: int) -> None:
        self.buffer = SendBuffer()
        self.sent = 0
        self.highest = 0
        self.acked = 0
        self.limit = limit
        self.final: int | None = None
        self.ending: Ending | None = None
        self.code = 0
        self.promised = False
        """FIN or RESET was sent at least once: the peer may know `final`."""
        self.stopped: int | None = None
        self.queued = False
        """In the session's round robin."""
        self.waiting = False
        """Sent bytes are in doubt: wait for the peer's SYNC instead of sending them twice."""
        self.blocked = False
        """A writer waits for room."""

    @property
    def done(self) -> bool:
        """Ended, and the end acknowledged."""
        return self.final is not None and self.acked > self.final

    @property
    def unsent(self) -> int:
        """Bytes that wait for credit or for their turn."""
        return self.buffer.end - self.sent

    @property
    def available(self) -> int:
        """Bytes that may be sent now."""
        return 0 if self.waiting else min(self.buffer.end, self.limit) - self.sent

    def end(self, ending: Ending, code: int = 0) -> None:
        """FIN behind all that was written, or RESET behind all that was sent."""
        if ending is Ending.RESET:
            if self.final is None or not self.promised:
                self.final = self.highest
            self.buffer.discard()
            self.sent = self.buffer.end
        else:
            self.final = self.buffer.end
        self.ending = ending
        self.code = code

    def acknowledged(self, received: int) -> bool:
        """The peer has everything below `received`; whether that is news.

        Raises:
            ProtocolViolation: it was never sent.
        """
        bound = self.highest
        if self.final is not None and self.promised and (self.ending is Ending.RESET or bound == self.final):
            bound = self.final + 1
        if received > bound:
            raise ProtocolViolation(CloseCode.FLOW_CONTROL_ERROR, f"{received} acknowledged, {bound} sent")
        if received <= self.acked:
            return False
        self.acked = received
        data = min(received, self.buffer.end)
        if self.ending is not Ending.RESET:
            self.buffer.acknowledge(data)
        self.sent = max(self.sent, data)
        return True

    def rewind(self) -> None:
        """What was sent and not acknowledged is lost: it goes out again."""
        self.sent = self.buffer.start


class ReceiveHalf:
    """What we receive: granted up to `limit`, complete up to `buffer.received`, read up to `buffer.consumed`."""

    __slots__ = (
        "buffer",
        "code",
        "ending",
        "final",
        "grown_at",
        "highest",
        "limit",
        "reported",
        "stop_pending",
        "stopped",
        "window",
    )

    def __init__(self, window: int) -> None:
        self.buffer = ReceiveBuffer()
        self.window = window
        """Reserved in the session's budget."""
        self.limit = window
        self.grown_at = 0
        self.highest = 0
        self.reported = 0
        self.final: int | None = None
        self.ending: Ending | None = None
        self.code = 0
        self.stopped: int | None = None
        self.stop_pending = False

    @property
    def received(self) -> int:
        """What an acknowledgement says: one more than all bytes when the end has arrived too."""
        if self.ending is Ending.RESET or self.buffer.received == self.final:
            assert self.final is not None  # noqa: S101 - set together with the ending
            return self.final + 1
        return self.buffer.received

    @property
    def complete(self) -> bool:
        """Everything up to the end has arrived."""
        return self.final is not None and (self.ending is Ending.RESET or self.buffer.received == self.final)

    @property
    def unreported(self) -> int:
        """Offsets that the peer does not know to have arrived."""
        return self.received - self.reported

    @property
    def next_limit(self) -> int:
        """The limit that we would grant now; behind the end there is nothing to grant."""
        if self.complete:
            return self.limit
        return max(self.limit, self.buffer.consumed + self.window)

    def insert(self, offset: int, data: bytes) -> bool:
        """Data arrived; whether more can be read now.

        Raises:
            ProtocolViolation: it lies beyond the limit or the end, or leaves too many gaps.
        """
        end = offset + len(data)
        if end > self.limit:
            raise ProtocolViolation(CloseCode.FLOW_CONTROL_ERROR, f"data up to {end}, limit {self.limit}")
        if self.final is not None and end > self.final:
            raise ProtocolViolation(CloseCode.FINAL_SIZE_ERROR, f"data up to {end}, final {self.final}")
        if self.ending is Ending.RESET:
            return False
        self.highest = max(self.highest, end)
        news = self.buffer.insert(offset, data)
        if self.buffer.gaps > max(MAX_GAPS, (self.highest - self.buffer.received) // GAP):
            raise ProtocolViolation(CloseCode.FLOW_CONTROL_ERROR, "too many gaps")
        if news and self.stopped is not None:
            self.buffer.discard()
        return news

    def end(self, ending: Ending, final: int, code: int = 0) -> bool:
        """FIN or RESET arrived; whether that is news.

        Raises:
            ProtocolViolation: it contradicts what arrived before.
        """
        if final >= VARINT_MAX or final < self.highest or self.final not in {None, final}:
            raise ProtocolViolation(
                CloseCode.FINAL_SIZE_ERROR,
                f"final {final}, but {self.highest} bytes or final {self.final} before",
            )
        if self.ending is ending or self.ending is Ending.RESET:
            return False
        if self.complete:
            # All bytes and the FIN are here: a RESET behind them has nothing left to abandon.
            return False
        self.final = final
        self.ending = ending
        self.code = code
        if ending is Ending.RESET:
            self.buffer.skip_to(final)
        return True

    def stop(self, code: int) -> None:
        """Nobody reads any more: what is here and what comes is dropped."""
        self.stopped = code
        self.stop_pending = True
        self.buffer.discard()


class StreamCore:
    """Both halves of a stream.

    Attributes:
        protocol: the name that the stream was opened for; None until the first bytes of the peer's have arrived.
        handle: the shell's object for it; the core never looks inside.
        carriers: connections on which something was sent that is not acknowledged, with the offset behind it.
    """

    __slots__ = (
        "carriers",
        "handle",
        "id",
        "local",
        "name_length",
        "priority",
        "protocol",
        "receiving",
        "removed",
        "sending",
    )

    def __init__(self, stream: int, *, local: bool, send_limit: int, window: int) -> None:
        self.id = stream
        self.local = local
        self.priority = Priority.BULK
        self.protocol: str | None = None
        self.name_length: int | None = None
        self.sending = SendHalf(send_limit)
        self.receiving = ReceiveHalf(window)
        self.carriers: dict[int, int] = {}
        self.handle: object | None = None
        self.removed = False

    @property
    def done(self) -> bool:
        """Both halves have ended, both ends are acknowledged, nothing is left to read."""
        return self.sending.done and self.receiving.complete and not len(self.receiving.buffer)
