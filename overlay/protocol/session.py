"""The streams of one session: what to send, what has arrived, what is still owed. Pure.

The session knows connections only as numbers (*carriers*) on which something was sent. It does not care which of them
exists: a carrier that is lost is `forsake`-n, and what it carried goes out again over the next one. All that must
arrive is state, not events: credit, acknowledgements, FIN, RESET, STOP and GONE are recomputed from the tables, so
`report` and `repeat_state` are the whole of recovery.

The way of a byte: `write` puts it into a send buffer; `data_to_send` takes pieces in the order control-priority, bulk,
by round robin; `receive_stream` on the other side reassembles by offset; `read` hands it out and makes room. What is
acknowledged by WINDOW is forgotten by the sender. With `supply` there is no buffer at the beginning of that way: the
bytes are asked for when their piece is taken.

Call `control_to_send` before `data_to_send`; after any `receive_*`, `read` or timeout there may be more to send.
`take_changed` and `take_opened` tell the shell whom to wake.
"""

from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Final

from overlay.protocol.budget import Budget, SessionLimits
from overlay.protocol.codes import CloseCode, StreamCode
from overlay.protocol.frames import (
    MINIMUM_STREAMS,
    MINIMUM_WINDOW,
    VARINT_MAX,
    Fin,
    Gone,
    ProtocolViolation,
    Reset,
    Stop,
    StreamData,
    Streams,
    Sync,
    Window,
    encode,
    opening,
)
from overlay.protocol.liveness import Progress
from overlay.protocol.outgoing import CHUNK, Chunk, Outgoing
from overlay.protocol.stream import ACK_EVERY, Ending, Priority, StreamCore
from overlay.protocol.window import GROWTH, Sizing

__all__ = ["CHUNK", "Chunk", "SessionCore", "SessionEvent", "SessionFrame", "SessionLimits"]

ACK_DELAY: Final = 0.02
"""Seconds after which received bytes are acknowledged at the latest."""
SPARE: Final = 4
"""One part in four of a shared budget is kept from growth, for the minimum of newcomers."""

SessionFrame = Window | Streams | Fin | Reset | Stop | Gone | Sync
SessionEvent = SessionFrame | StreamData


class SessionCore:
    """All streams of a session.

    Args:
        even: whether our stream ids are the even ones: ours is the smaller PeerId.
        limits: what we grant and keep.
        budget: where the memory for received bytes is reserved; `limits.streams * limits.window` of it already is.
    """

    def __init__(self, *, even: bool, limits: SessionLimits, budget: Budget) -> None:
        self.limits = limits
        self.streams: dict[int, StreamCore] = {}
        self._budget = budget
        self._next_local = 0 if even else 1
        self._next_remote = 1 if even else 0
        self._peer_streams = MINIMUM_STREAMS
        self._peer_window = MINIMUM_WINDOW
        self._opened_local = 0
        self._opened_remote = 0
        self._live_remote = 0
        self._streams_limit = limits.streams
        self._kept = 0
        self._outgoing = Outgoing(limits, self._note_changed)
        self._windows: dict[StreamCore, None] = {}
        self._ends: dict[StreamCore, None] = {}
        self._stops: dict[StreamCore, None] = {}
        self._gone: dict[int, None] = {}
        self._streams_pending = False
        self._repeat_due = False
        self._unreported: dict[StreamCore, None] = {}
        self._ack_at: float | None = None
        self._sizing = Sizing()
        self._now = 0.0
        self._changed: dict[StreamCore, None] = {}
        self._opened: list[StreamCore] = []
        self.may_open = False
        """Set when `open` may work again after it returned None; the shell clears it."""

    @property
    def pristine(self) -> bool:
        """Nothing has come from the peer yet."""
        return (
            not self._opened_remote
            and len(self.streams) == self._opened_local
            and not any(stream.sending.acked for stream in self.streams.values())
        )

    @property
    def granted(self) -> tuple[int, int]:
        """What the peer has granted: streams in all, and bytes of each new one."""
        return self._peer_streams, self._peer_window

    # ---------------------------------------------------------------- commands

    def open(self, protocol: str, priority: Priority = Priority.BULK) -> StreamCore | None:
        """Open a stream; its first bytes name the protocol.

        Returns:
            The stream; None when the peer allows no more now, or when there is no memory for what it may send.

        Raises:
            ValueError: the name is empty or too long.
        """
        header = opening(protocol, priority)
        if self._opened_local >= self._peer_streams or not self._budget.reserve(self.limits.window):
            return None
        stream = StreamCore(self._next_local, local=True, send_limit=self._peer_window, window=self.limits.window)
        stream.protocol = protocol
        stream.priority = priority
        self._next_local += 2
        self._opened_local += 1
        stream.sending.prefix = len(header)
        self.streams[stream.id] = stream
        self._outgoing.append(stream, header)
        return stream

    def write(self, stream: StreamCore, data: bytes | memoryview) -> int:
        """Accept as much of `data` as there is room for; how many bytes that was.

        When it was not all, the stream is among `take_changed` as soon as there is room again.

        Raises:
            ValueError: the half has ended: finished, reset, or stopped by the peer.
        """
        if stream.sending.ending is not None or stream.removed:
            raise ValueError(f"stream {stream.id} has ended")
        return self._outgoing.write(stream, data)

    def supply(self, stream: StreamCore, source: Callable[[int], bytes]) -> None:
        """Have `source` asked for the stream's bytes, from within `data_to_send`, behind what was written before.

        Args:
            stream: the stream.
            source: gets how many bytes can leave now, at least 1, and returns so many, fewer or more; what is beyond
                stays in the stream, as if written. b"": nothing now, ask when `more` was called. It must not raise,
                nor call anything of the session.

        Raises:
            ValueError: the half has ended, as for `write`.
        """
        if stream.sending.ending is not None or stream.removed:
            raise ValueError(f"stream {stream.id} has ended")
        self._outgoing.supply(stream, source)

    def more(self, stream: StreamCore) -> None:
        """The stream's source may have something. Nothing when it has none, or none any more."""
        if not stream.removed:
            self._outgoing.more(stream)

    def finish(self, stream: StreamCore) -> None:
        """FIN behind all that was written. Nothing when the half has ended already."""
        if stream.sending.ending is None and not stream.removed:
            stream.sending.end(Ending.FIN)
            self._ends[stream] = None

    def reset(self, stream: StreamCore, code: int) -> None:
        """Abandon sending. Nothing when all has been acknowledged or it was reset before.

        Raises:
            ValueError: the code does not fit into 62 bits.
        """
        sending = stream.sending
        _check_code(code)
        if sending.ending is Ending.RESET or sending.done or stream.removed:
            return
        self._outgoing.reset(stream, code)
        self._ends[stream] = None
        self._changed[stream] = None

    def stop(self, stream: StreamCore, code: int) -> None:
        """Abandon reading: what is here and what comes is dropped, the peer is asked to RESET.

        Raises:
            ValueError: the code does not fit into 62 bits.
        """
        receiving = stream.receiving
        _check_code(code)
        if receiving.stopped is not None or stream.removed:
            return
        receiving.stop(code)
        if not receiving.complete:
            self._stops[stream] = None
        self._remove_if_done(stream)

    def read(self, stream: StreamCore, size: int) -> bytes:
        """Up to `size` bytes that have arrived; b"" when there are none now."""
        receiving = stream.receiving
        data = receiving.buffer.read(size)
        if not data or stream.removed:
            return data
        if receiving.complete:
            self._remove_if_done(stream)
        else:
            self._grow(stream)
        return data

    def close(self) -> None:
        """Give back all memory: the session is over. The streams stay readable for their holders."""
        for stream in self.streams.values():
            stream.removed = True
            stream.sending.forget_source()
            self._changed[stream] = None
        self.streams.clear()
        self._budget.release(self._budget.used)
        self._outgoing.clear()
        for pending in (self._windows, self._ends, self._stops, self._unreported):
            pending.clear()
        self._gone.clear()
        self._ack_at = None
        self._streams_pending = False
        self._repeat_due = False

    # ---------------------------------------------------------------- inputs

    def peer_granted(self, streams: int, window: int) -> None:
        """HELLO or ACCEPT told what the peer grants at the start."""
        if streams > self._peer_streams:
            self._peer_streams = streams
            self.may_open = True
        if window > self._peer_window:
            self._peer_window = window
            for stream in self.streams.values():
                if stream.sending.limit < window:
                    stream.sending.limit = window
                    self._outgoing.activate(stream)

    def receive_stream(
        self, stream_id: int, offset: int, data: bytes, now: float, watch: Callable[[], Progress] | None = None
    ) -> None:
        """A piece of a stream arrived.

        Args:
            stream_id: whose piece it is.
            offset: where it begins.
            data: its bytes.
            now: the clock.
            watch: tells what the connection that brought it knows of its path; None: nothing.

        Raises:
            ProtocolViolation: the connection that brought it has to be closed.
        """
        self._now = now
        stream = self._find(stream_id)
        if stream is None:
            self._gone[stream_id] = None
            return
        receiving = stream.receiving
        if not receiving.insert(offset, data):
            # A duplicate may mean that our acknowledgement was lost.
            if offset + len(data) <= receiving.buffer.received:
                self._windows[stream] = None
            return
        if self._sizing.enough < self.limits.stream_window:
            self._sizing.received(receiving.reading, offset + len(data), receiving.buffer.consumed, now, watch)
        self._received(stream, now)

    def receive_frame(self, frame: SessionFrame, now: float) -> None:
        """A control frame arrived.

        Raises:
            ProtocolViolation: the connection that brought it has to be closed.
        """
        match frame:
            case Streams():
                if frame.limit > self._peer_streams:
                    self._peer_streams = frame.limit
                    self.may_open = True
                return
            case Sync():
                return
        if isinstance(frame, Gone):
            self._receive_gone(frame.stream)
            return
        stream = self._find(frame.stream)
        if stream is None:
            self._gone[frame.stream] = None
            return
        match frame:
            case Window():
                self._receive_window(stream, frame)
            case Fin():
                if stream.receiving.end(Ending.FIN, frame.final):
                    self._received(stream, now)
                else:
                    self._windows[stream] = None
            case Reset():
                if stream.receiving.end(Ending.RESET, frame.final, frame.code):
                    self._received(stream, now)
                else:
                    self._windows[stream] = None
            case Stop():
                if stream.sending.stopped is None:
                    stream.sending.stopped = frame.code
                    self._changed[stream] = None
                self.reset(stream, frame.code)

    def repeat_state(self) -> None:
        """Have all that is not acknowledged, beside bytes and WINDOWs, sent again: STREAMS, FIN, RESET, STOP.

        The peer's SYNC leads here, two bytes that it may repeat as it likes; so the streams are not walked before
        `control_to_send`, once for all that came.
        """
        self._streams_pending = True
        self._repeat_due = True

    def forsake(self, carrier: int, *, wait: bool) -> None:
        """What was sent over `carrier` and not acknowledged goes out again.

        Args:
            carrier: the connection that is lost or silent.
            wait: hold these bytes back until `resume`: the peer is about to tell what it has.
        """
        for stream in self._outgoing.forsake(carrier, wait=wait):
            if stream.sending.final is not None and not stream.sending.done:
                self._ends[stream] = None

    def resume(self) -> None:
        """The peer has told what it has: send what was held back."""
        self._outgoing.resume()

    def acknowledged_offsets(self) -> dict[int, int]:
        """For each stream what the peer has acknowledged: it must never say less on a connection made later."""
        return {stream.id: stream.sending.acked for stream in self.streams.values() if stream.sending.acked}

    def handle_timeout(self, now: float) -> None:
        """Acknowledge what has waited long enough."""
        self._now = now
        if self._ack_at is not None and now >= self._ack_at:
            self._ack_at = None
            self._windows.update(self._unreported)
            self._unreported.clear()

    # ---------------------------------------------------------------- outputs

    def next_timeout(self) -> float | None:
        """When `handle_timeout` is due."""
        return self._ack_at

    def in_flight(self, carrier: int) -> bool:
        """Whether something sent over `carrier` is not acknowledged."""
        return self._outgoing.in_flight(carrier)

    @property
    def has_control(self) -> bool:
        """Whether `control_to_send` has something."""
        return bool(self._windows or self._ends or self._stops or self._gone or self._streams_pending)

    @property
    def has_data(self) -> bool:
        """Whether `data_to_send` may have something."""
        return self._outgoing.has_data

    def control_to_send(self, carrier: int) -> list[bytes]:
        """All frames that are due, encoded."""
        frames: list[bytes] = []
        if self._streams_pending:
            self._streams_pending = False
            frames.append(encode(Streams(self._streams_limit)))
        if self._repeat_due:
            self._repeat_due = False
            self._note_unacknowledged()
        if self._gone:
            frames.extend(encode(Gone(stream)) for stream in self._gone)
            self._gone.clear()
        if self._stops:
            # Before the WINDOWs: what they acknowledge from then on is dropped, and the peer is to know.
            frames.extend(
                encode(Stop(stream.id, stream.receiving.stopped or 0)) for stream in self._stops if not stream.removed
            )
            self._stops.clear()
        frames.extend(self._take_windows(self._windows))
        if self._ends:
            frames.extend(
                self._end_frame(stream, carrier) for stream in self._ends if not (stream.removed or stream.sending.done)
            )
            self._ends.clear()
        return frames

    def report(self) -> list[bytes]:
        """WINDOW for every stream: where the peer has to continue after an attach. STOPs go before them."""
        stops = [
            encode(Stop(stream.id, stream.receiving.stopped))
            for stream in self.streams.values()
            if stream.receiving.stopped is not None and not stream.receiving.complete
        ]
        self._windows = dict.fromkeys(self.streams.values())
        return [*stops, *self._take_windows(self._windows)]

    def data_to_send(self, carrier: int, size: int) -> Chunk | None:
        """The next piece, at most `size` bytes; None when there is nothing to send now."""
        return self._outgoing.take(carrier, size)

    def take_changed(self) -> Iterable[StreamCore]:
        """Streams that can be read, written, or have ended, since the last call."""
        changed, self._changed = self._changed, {}
        return changed

    def take_opened(self) -> list[StreamCore]:
        """Streams that the peer has opened and named, since the last call."""
        opened, self._opened = self._opened, []
        return opened

    # ---------------------------------------------------------------- private

    def _note_changed(self, stream: StreamCore) -> None:
        self._changed[stream] = None

    def _note_unacknowledged(self) -> None:
        for stream in self.streams.values():
            sending, receiving = stream.sending, stream.receiving
            if sending.final is not None and not sending.done:
                self._ends[stream] = None
            if receiving.stopped is not None and not receiving.complete:
                self._stops[stream] = None

    def _find(self, stream_id: int) -> StreamCore | None:
        """The stream of that id, opened now if it is the peer's next; None when it is closed."""
        stream = self.streams.get(stream_id)
        if stream is not None:
            return stream
        if self._is_local(stream_id):
            if stream_id >= self._next_local:
                raise ProtocolViolation(CloseCode.STREAM_ID_ERROR, f"stream {stream_id} was never opened")
            return None
        if stream_id < self._next_remote:
            return None
        if stream_id // 2 >= self._streams_limit:
            raise ProtocolViolation(
                CloseCode.STREAM_ID_ERROR, f"stream {stream_id}, but only {self._streams_limit} may be opened"
            )
        while self._next_remote <= stream_id:
            stream = StreamCore(self._next_remote, local=False, send_limit=self._peer_window, window=self.limits.window)
            self.streams[stream.id] = stream
            self._next_remote += 2
            self._opened_remote += 1
            self._live_remote += 1
        self._grant_streams()
        return stream

    def _is_local(self, stream_id: int) -> bool:
        return (stream_id ^ self._next_local) & 1 == 0

    def _grant_streams(self) -> None:
        """Keep some credit for new streams ahead of the peer, as long as there is memory and it closes old ones."""
        ahead = self._streams_limit - self._opened_remote
        room = min(self.limits.live_streams - self._live_remote, self.limits.streams) - ahead
        if room < max(1, self.limits.streams // 2):
            return
        kept = min(room, self._kept)
        growth = room - kept
        while growth and not self._budget.reserve(growth * self.limits.window, spare=SPARE):
            growth //= 2
        if kept + growth:
            self._kept -= kept
            self._streams_limit += kept + growth
            self._streams_pending = True

    def _received(self, stream: StreamCore, now: float) -> None:
        """Bytes or an end arrived: name the stream, acknowledge, wake its reader, forget it when it is done."""
        receiving = stream.receiving
        if stream.protocol is None and not stream.local:
            self._read_opening(stream)
            if stream.removed:
                return
        if receiving.complete or receiving.unreported >= ACK_EVERY or 2 * receiving.unreported > receiving.window:
            self._windows[stream] = None
        else:
            self._unreported[stream] = None
            if self._ack_at is None:
                self._ack_at = now + ACK_DELAY
        if receiving.stopped is not None and not receiving.complete:
            self._grow(stream)
        self._changed[stream] = None
        self._remove_if_done(stream)

    def _read_opening(self, stream: StreamCore) -> None:
        """Take protocol name and priority from the first bytes, as soon as they are there."""
        buffer = stream.receiving.buffer
        if stream.receiving.stopped is not None:
            return
        if stream.name_length is None and len(buffer) >= 2:
            head = buffer.read(2)
            stream.priority = Priority.CONTROL if head[0] == Priority.CONTROL else Priority.BULK
            stream.name_length = head[1]
        if stream.name_length is not None and len(buffer) >= stream.name_length:
            with suppress(UnicodeDecodeError):
                stream.protocol = buffer.read(stream.name_length).decode()
            if stream.protocol:
                self._opened.append(stream)
                return
        elif not stream.receiving.complete:
            return
        # Ended, or misnamed, before it said what it is for.
        self.reset(stream, StreamCode.UNKNOWN_PROTOCOL)
        self.stop(stream, StreamCode.UNKNOWN_PROTOCOL)

    def _receive_window(self, stream: StreamCore, frame: Window) -> None:
        sending = stream.sending
        if self._outgoing.acknowledged(stream, frame.received):
            self._changed[stream] = None
            self._remove_if_done(stream)
        sending.limit = max(sending.limit, frame.limit)
        self._outgoing.activate(stream)

    def _receive_gone(self, stream_id: int) -> None:
        stream = self.streams.get(stream_id)
        if stream is None:
            if stream_id >= (self._next_local if self._is_local(stream_id) else self._next_remote):
                raise ProtocolViolation(CloseCode.STREAM_ID_ERROR, f"stream {stream_id} was never opened")
            return
        sending = stream.sending
        if sending.final is None or not sending.promised or not stream.receiving.complete:
            raise ProtocolViolation(CloseCode.STATE_ERROR, f"GONE for stream {stream.id}, which is open")
        if sending.ending is Ending.FIN and sending.highest < sending.final:
            raise ProtocolViolation(CloseCode.STATE_ERROR, f"GONE for stream {stream.id}, which is not all sent")
        if self._outgoing.acknowledged(stream, sending.final + 1):
            self._changed[stream] = None
            self._remove_if_done(stream)

    def _end_frame(self, stream: StreamCore, carrier: int) -> bytes:
        sending = stream.sending
        assert sending.final is not None  # noqa: S101 - it is in the table of ends
        sending.promised = True
        self._outgoing.note(stream, carrier, sending.final + 1)
        if sending.ending is Ending.RESET:
            return encode(Reset(stream.id, sending.final, sending.code))
        return encode(Fin(stream.id, sending.final))

    def _take_windows(self, pending: dict[StreamCore, None]) -> Iterable[bytes]:
        for stream in pending:
            if stream.removed:
                continue
            receiving = stream.receiving
            if receiving.next_limit > receiving.limit:
                receiving.reading.granted(receiving.limit, self._now)
            receiving.limit = receiving.next_limit
            receiving.reported = receiving.received
            self._unreported.pop(stream, None)
            yield encode(Window(stream.id, receiving.reported, receiving.limit))
        pending.clear()

    def _grow(self, stream: StreamCore) -> None:
        """Raise the credit after a read, and the window itself after a whole one was read."""
        receiving = stream.receiving
        read = receiving.buffer.consumed - receiving.grown_at
        if read >= receiving.window and receiving.window < self.limits.stream_window:
            larger = min(receiving.window * GROWTH, self.limits.stream_window, self._sizing.enough)
            receiving.grown_at = receiving.buffer.consumed
            if larger > receiving.window and self._budget.reserve(larger - receiving.window, spare=SPARE):
                receiving.window = larger
        # `next_limit` would say the same; but this is asked for each message that is read.
        if 2 * (receiving.buffer.consumed + receiving.window - receiving.limit) >= receiving.window:
            self._windows[stream] = None

    def _remove_if_done(self, stream: StreamCore) -> None:
        """Forget a stream on which nothing is left to do; GONE is the last acknowledgement of its end."""
        if stream.removed or not stream.done:
            return
        stream.removed = True
        del self.streams[stream.id]
        self._outgoing.forget(stream)
        self._gone[stream.id] = None
        for pending in (self._windows, self._ends, self._stops, self._unreported):
            pending.pop(stream, None)
        self.may_open = True
        window = stream.receiving.window
        if not stream.local:
            self._live_remote -= 1
            ahead = self._streams_limit - self._opened_remote
            if self._live_remote + ahead + self._kept < self.limits.streams:
                # What was reserved at the start stays ours: other sessions must not starve this one.
                self._kept += 1
                window -= self.limits.window
        self._budget.release(window)
        if not stream.local:
            self._grant_streams()
        self._changed[stream] = None


def _check_code(code: int) -> None:
    if not 0 <= code <= VARINT_MAX:
        raise ValueError(f"a stream's code is from 0 to 2**62 - 1, not {code}")
