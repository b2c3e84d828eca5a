"""One stream: its two halves, and what can happen to each.

Offsets are absolute for the life of the session, whatever connections come and go. FIN and RESET occupy the offset
behind the last byte, so `received == final + 1` is the acknowledgement of the end, and the end is state that is
repeated until it is acknowledged, not an event that could be lost.
"""

from collections.abc import Callable
from enum import Enum, IntEnum
from typing import Final

from overlay.protocol.buffers import GAP, MAX_GAPS, ReceiveBuffer, SendBuffer
from overlay.protocol.codes import CloseCode
from overlay.protocol.frames import VARINT_MAX, ProtocolViolation
from overlay.protocol.window import Reading

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
        "delivered",
        "ending",
        "final",
        "highest",
        "hungry",
        "limit",
        "prefix",
        "promised",
        "queued",
        "sent",
        "source",
        "stopped",
        "waiting",
    )

    def __init__(self, limit: int) -> None:
        self.buffer = SendBuffer()
        self.sent = 0
        self.highest = 0
        self.acked = 0
        self.delivered = 0
        """What of the bytes the peer has; unlike `acked`, a RESET that is acknowledged does not count."""
        self.prefix = 0
        """Bytes in front of what is written: the protocol's name, on the side that has opened the stream."""
        self.limit = limit
        self.source: Callable[[int], bytes] | None = None
        """Asked for bytes when they can leave, instead of having them written ahead of time."""
        self.hungry = False
        """The source may have more: it has said so, and not said b"" since."""
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

    @property
    def drawable(self) -> int:
        """Bytes that the source could be asked for now: when all that is there has left, and there is credit."""
        if not self.hungry or self.waiting or self.sent < self.buffer.end:
            return 0
        return self.limit - self.sent

    @property
    def bytes_sent(self) -> int:
        """What of the bytes written or supplied has left at least once."""
        return max(0, self.highest - self.prefix)

    @property
    def bytes_delivered(self) -> int:
        """What of the bytes written or supplied the peer has acknowledged."""
        return max(0, self.delivered - self.prefix)

    def end(self, ending: Ending, code: int = 0) -> None:
        """FIN behind all that was written, or RESET behind all that was sent; the source is asked no more."""
        self.forget_source()
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
            self.delivered = data
        elif self.stopped is None and self.final is not None and received <= self.final:
            # One more would acknowledge the RESET, which says nothing of the bytes in front of it. And what comes to a
            # peer that has said STOP is acknowledged, but dropped.
            self.delivered = received
        self.sent = max(self.sent, data)
        return True

    def forget_source(self) -> None:
        """Nothing is supplied any more."""
        self.source = None
        self.hungry = False

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
        "reading",
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
        self.reading = Reading()
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
