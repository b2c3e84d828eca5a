"""The sending side of a session: whose turn it is, how much is kept, and what went over which connection. Pure.

Written bytes are kept until the peer has acknowledged them. Each piece that is sent is noted with the connection that
carried it (its *carrier*), so that the loss of one is answered exactly: what went over it goes out again.

Writers wait when their stream has too much unsent, or the session too much unacknowledged; they are woken at half of
the first and three quarters of the second, so that each wake-up is worth it.

A stream with a *source* has no writer. The source is asked within `take`, when all that the stream has has left, and
for no more than leaves with that piece: so what has not left is still the source's, to be put in another order or taken
back. It is asked as long as it gives something; after b"" only when `more` says so.
"""

from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final

from overlay.protocol.budget import SessionLimits
from overlay.protocol.stream import Ending, StreamCore

CHUNK: Final = 64 * 1024
"""Bytes per piece: one TLS call of this size is the fastest, and streams take turns after each."""


@dataclass(frozen=True, slots=True)
class Chunk:
    """A piece of a stream to be sent."""

    stream: int
    offset: int
    data: bytes | memoryview
    idle: bool
    """The stream has no more to send now."""


class Outgoing:
    """What a session has to send, and what of it is under way.

    Args:
        limits: how much is kept.
        changed: told of streams that can be written again.
    """

    def __init__(self, limits: SessionLimits, changed: Callable[[StreamCore], None]) -> None:
        self.buffered = 0
        """Bytes written and not acknowledged, over all streams."""
        self._limits = limits
        self._changed = changed
        self._queues: tuple[deque[StreamCore], deque[StreamCore]] = (deque(), deque())
        self._blocked: dict[StreamCore, None] = {}
        self._full = False
        self._carried: dict[int, set[StreamCore]] = {}
        self._waiting: dict[StreamCore, None] = {}
        """Those that are held back until `resume`."""
        self._starved: dict[StreamCore, None] = {}
        """Those whose source was not asked, as too much is unacknowledged."""

    @property
    def has_data(self) -> bool:
        """Whether `take` may have something."""
        return bool(self._queues[0] or self._queues[1])

    def in_flight(self, carrier: int) -> bool:
        """Whether something sent over `carrier` is not acknowledged."""
        return bool(self._carried.get(carrier))

    # ---------------------------------------------------------------- commands

    def append(self, stream: StreamCore, data: bytes | memoryview) -> None:
        """Keep and send `data`, whatever the limits say."""
        stream.sending.buffer.append(data)
        self.buffered += len(data)
        self.activate(stream)

    def write(self, stream: StreamCore, data: bytes | memoryview) -> int:
        """Accept as much of `data` as there is room for; how many bytes that was.

        When it was not all, `changed` is told as soon as there is room again.
        """
        sending = stream.sending
        room = min(
            self._limits.stream_send_buffer - sending.unsent,
            self._limits.session_send_buffer - self.buffered,
        )
        size = len(data)
        if room < size:
            sending.blocked = True
            self._blocked[stream] = None
            if room <= 0:
                self._full = self._full or sending.unsent < self._limits.stream_send_buffer
                return 0
            data = memoryview(data)[:room]
            size = room
        if self.buffered + size >= self._limits.session_send_buffer:
            self._full = True
        self.append(stream, data)
        return size

    def reset(self, stream: StreamCore, code: int) -> None:
        """Abandon what is not acknowledged."""
        self.buffered -= len(stream.sending.buffer)
        stream.sending.end(Ending.RESET, code)
        self._unblock(stream)
        self._wake_writers()

    def supply(self, stream: StreamCore, source: Callable[[int], bytes]) -> None:
        """Ask `source` for bytes from now on."""
        stream.sending.source = source
        self.more(stream)

    def more(self, stream: StreamCore) -> None:
        """The stream's source may have something."""
        sending = stream.sending
        if sending.source is not None:
            sending.hungry = True
            self.activate(stream)

    def activate(self, stream: StreamCore) -> None:
        """Let the stream take its turn if it may send."""
        sending = stream.sending
        if not sending.queued and (sending.available > 0 or sending.drawable > 0):
            sending.queued = True
            self._queues[stream.priority].append(stream)

    def forget(self, stream: StreamCore) -> None:
        """Nothing of the stream is sent or awaited any more."""
        self._blocked.pop(stream, None)
        self._waiting.pop(stream, None)
        self._starved.pop(stream, None)
        for carrier in stream.carriers:
            self._carried[carrier].discard(stream)
        stream.carriers.clear()

    def clear(self) -> None:
        """Forget everything."""
        self.buffered = 0
        self._blocked.clear()
        self._carried.clear()
        self._waiting.clear()
        self._starved.clear()
        for queue in self._queues:
            queue.clear()

    # ---------------------------------------------------------------- inputs

    def acknowledged(self, stream: StreamCore, received: int) -> bool:
        """The peer has everything below `received`; whether that is news.

        Raises:
            ProtocolViolation: it was never sent.
        """
        sending = stream.sending
        before = sending.buffer.start
        if not sending.acknowledged(received):
            return False
        self.buffered -= sending.buffer.start - before
        for carrier, end in tuple(stream.carriers.items()):
            if end <= received:
                del stream.carriers[carrier]
                self._carried[carrier].discard(stream)
        self._wake_writers()
        return True

    def forsake(self, carrier: int, *, wait: bool) -> Iterable[StreamCore]:
        """What was sent over `carrier` and not acknowledged goes out again; which streams that concerns.

        Args:
            carrier: the connection that is lost or silent.
            wait: hold these bytes back until `resume`.
        """
        streams = self._carried.pop(carrier, set())
        for stream in streams:
            del stream.carriers[carrier]
            stream.sending.rewind()
            stream.sending.waiting = wait
            if wait:
                self._waiting[stream] = None
            else:
                self._waiting.pop(stream, None)
                self.activate(stream)
        return streams

    def resume(self) -> None:
        """Send what was held back."""
        waiting, self._waiting = self._waiting, {}
        for stream in waiting:
            stream.sending.waiting = False
            self.activate(stream)

    # ---------------------------------------------------------------- outputs

    def take(self, carrier: int, size: int) -> Chunk | None:
        """The next piece, at most `size` bytes; None when there is nothing to send now.

        Sources are asked for what they have, see `supply`.
        """
        if size <= 0:
            return None
        for queue in self._queues:
            while queue:
                stream = queue.popleft()
                sending = stream.sending
                available = sending.available
                if available <= 0 and sending.hungry:
                    available = self._draw(stream, size)
                if available <= 0 or stream.removed:
                    sending.queued = False
                    continue
                data = sending.buffer.peek(sending.sent, min(available, size, CHUNK))
                offset = sending.sent
                sending.sent += len(data)
                sending.highest = max(sending.highest, sending.sent)
                self.note(stream, carrier, sending.sent)
                idle = len(data) >= available and not sending.hungry
                if idle:
                    sending.queued = False
                else:
                    queue.append(stream)
                if sending.blocked:
                    self._wake_writer(stream)
                return Chunk(stream.id, offset, data, idle)
        return None

    def note(self, stream: StreamCore, carrier: int, end: int) -> None:
        """Something of the stream went over `carrier`: offsets below `end`."""
        known = stream.carriers.get(carrier)
        if known is None:
            self._carried.setdefault(carrier, set()).add(stream)
        if known is None or known < end:
            stream.carriers[carrier] = end

    # ---------------------------------------------------------------- private

    def _draw(self, stream: StreamCore, size: int) -> int:
        """Ask the stream's source for what can leave now, at most `size` bytes; how many bytes may be sent then."""
        sending = stream.sending
        drawable = sending.drawable
        if drawable <= 0 or stream.removed or sending.source is None:
            return 0
        room = min(drawable, size, CHUNK, self._limits.session_send_buffer - self.buffered)
        if room <= 0:
            self._starved[stream] = None
            return 0
        data = sending.source(room)
        if not data:
            sending.hungry = False
            return 0
        sending.buffer.append(data)
        self.buffered += len(data)
        return sending.available

    def _wake_writer(self, stream: StreamCore) -> None:
        if self.buffered > self._limits.session_send_buffer * 3 // 4:
            self._full = True
        elif stream.sending.unsent <= self._limits.stream_send_buffer // 2:
            self._unblock(stream)
            self._changed(stream)

    def _wake_writers(self) -> None:
        """After the session as a whole was full."""
        if self._starved and self.buffered < self._limits.session_send_buffer:
            starved, self._starved = self._starved, {}
            for stream in starved:
                self.activate(stream)
        if self._full and self.buffered <= self._limits.session_send_buffer * 3 // 4:
            self._full = False
            for stream in tuple(self._blocked):
                self._wake_writer(stream)

    def _unblock(self, stream: StreamCore) -> None:
        stream.sending.blocked = False
        self._blocked.pop(stream, None)
