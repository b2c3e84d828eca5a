"""`Stream`: ordered, reliable bytes in both directions, whatever carries them. An asyncio shell over `StreamCore`."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from types import TracebackType
from typing import TYPE_CHECKING, Final, Self

from overlay.errors import (
    BusyError,
    OverlayError,
    StreamClosed,
    StreamError,
    StreamReset,
    StreamStopped,
    StreamTruncated,
    UnknownProtocol,
)
from overlay.protocol.codes import StreamCode
from overlay.protocol.stream import Ending, Priority, StreamCore

if TYPE_CHECKING:
    from overlay.session import Session

READ_ALL_LIMIT: Final = 16 * 1024 * 1024
"""What `read()` without a size collects at most: a stream that never ends is not to fill the memory."""
READ_SIZE: Final = 256 * 1024
"""What iteration hands out at a time."""


class Stream:
    """One stream of a session. Made by `Session.open_stream`, or handed to a handler.

    It survives the loss of its connection; it ends with FIN, RESET, or the end of its session. Writing and reading are
    independent; two tasks in the same direction are an error (`BusyError`).

    Used as `async with stream:`, leaving normally is `aclose`, leaving by an exception resets both directions.

    Attributes:
        session: the session that it belongs to.
        protocol: the name that it was opened for.
        bytes_accepted: how many bytes `write` has taken over so far, also when it was cancelled.
        on_change: called when something is different and those who wait for it have been woken: a task that it wakes
            runs behind them, in the same turn of the event loop. It must not raise.
    """

    def __init__(self, session: "Session", core: StreamCore) -> None:
        self.session = session
        self.protocol = core.protocol or ""
        self.bytes_accepted = 0
        self._core = core
        self._peer = session._peer
        self._head = bytearray()
        self._reader: asyncio.Future[None] | None = None
        self._writer: asyncio.Future[None] | None = None
        self._delivered: set[asyncio.Future[None]] = set()
        self._reading = False
        self._writing = False
        self.on_change: Callable[[], None] | None = None

    def __repr__(self) -> str:
        return f"<Stream {self.id} {self.protocol!r} to {self.session.peer_id.short}>"

    @property
    def id(self) -> int:
        """The stream's number within its session."""
        return self._core.id

    @property
    def priority(self) -> Priority:
        """Who goes first when a connection has room."""
        return self._core.priority

    # ---------------------------------------------------------------- writing

    async def write(self, data: bytes | bytearray | memoryview) -> None:
        """Hand over `data`; waits while the peer, or the network, is behind.

        Cancellation: a prefix may have been accepted; `bytes_accepted` counts it, and it will be delivered.

        Raises:
            StreamStopped: the peer reads no more. UnknownProtocol: nobody handles the stream there.
            StreamClosed: after `write_eof`, `reset` or `supply`.
            SessionError: the session is over.
            BusyError: another task is writing.
        """
        if self._writing:
            raise _busy("write")
        self._writing = True
        try:
            rest: bytes | memoryview = data if isinstance(data, bytes) else memoryview(data).cast("B")
            while True:
                self._check_writable()
                if self._core.sending.source is not None:
                    raise StreamClosed("write on a stream that is supplied")
                taken = self._peer.write(self._core, rest)
                self.bytes_accepted += taken
                if taken == len(rest):
                    return
                rest = memoryview(rest)[taken:]
                self._writer = asyncio.get_running_loop().create_future()
                try:
                    await self._writer
                finally:
                    self._writer = None
        finally:
            self._writing = False

    def supply(self, source: Callable[[int], bytes]) -> None:
        """Have the stream's bytes asked for when they can leave, instead of writing them ahead of time.

        So what waits, waits with the caller, who may still put it in another order, or drop it.

        Args:
            source: called with how many bytes can leave now, at least 1: the peer, the session's buffer and the
                connection have room for them. It may return fewer, or more; what is more waits in the stream, as if
                written. b"" means nothing now: it is asked again after `more`. It is called from within the sending
                of everything that goes to that peer: it must not raise, nor call anything of session or stream.

        Raises:
            StreamStopped, StreamClosed, SessionError: as for `write`; StreamClosed if it is supplied already, too.
            BusyError: a task is writing.
        """
        if self._writing:
            raise _busy("write")
        self._check_writable()
        if self._core.sending.source is not None:
            raise StreamClosed("supply on a stream that is supplied")
        self._peer.supply(self._core, source)

    def more(self) -> None:
        """The source given to `supply` has something again. Does nothing when the stream has ended."""
        if not self._core.sending.hungry:
            self._peer.more(self._core)

    @property
    def bytes_sent(self) -> int:
        """How many of the bytes written or supplied have left this side at least once; readable for ever."""
        return self._core.sending.bytes_sent

    @property
    def bytes_delivered(self) -> int:
        """How many of the bytes written or supplied the peer's library has acknowledged; readable for ever."""
        return self._core.sending.bytes_delivered

    async def write_eof(self) -> None:
        """Say that no more is written, nor supplied. Returns at once; see `wait_delivered`.

        A second call does nothing.

        Raises:
            StreamStopped, StreamClosed (after `reset`), SessionError: as for `write`.
        """
        if self._core.sending.ending is Ending.FIN:
            return
        self._check_writable()
        self._peer.finish(self._core)

    async def wait_delivered(self) -> None:
        """Wait until the peer has all that was written, and the end if there is one.

        The peer's library has it then, beyond the loss of any connection; whether its application has read it, only
        the application can tell. Cancellation is harmless.

        Raises:
            StreamStopped, StreamClosed (after `reset`), SessionError: it will not be delivered.
        """
        sending = self._core.sending
        while True:
            target = sending.buffer.end if sending.final is None else sending.final + 1
            if sending.ending is not Ending.RESET and sending.acked >= target:
                return
            self._check_writable(ended=True)
            waiter = asyncio.get_running_loop().create_future()
            self._delivered.add(waiter)
            try:
                await waiter
            finally:
                self._delivered.discard(waiter)

    async def reset(self, code: int = 0) -> None:
        """Abandon what is not delivered yet; the peer's reader gets `StreamReset(code)`. Returns at once.

        Args:
            code: the application's, below 2**32.
        """
        _check_code(code)
        self._reset(code)

    def _reset(self, code: int) -> None:
        self._peer.reset(self._core, code)

    def _check_writable(self, *, ended: bool = False) -> None:
        sending = self._core.sending
        if sending.stopped is not None:
            if sending.stopped == StreamCode.UNKNOWN_PROTOCOL:
                raise UnknownProtocol(f"the peer handles no protocol {self.protocol!r}")
            raise StreamStopped(sending.stopped)
        self.session._raise_if_over()
        if sending.ending is Ending.RESET:
            raise StreamClosed("the stream was reset by this side")
        if sending.ending is Ending.FIN and not ended:
            raise StreamClosed("write after write_eof")

    # ---------------------------------------------------------------- reading

    async def read(self, size: int | None = None) -> bytes:
        """Up to `size` bytes, at least one; b"" at the end. Without a size: everything up to the end.

        Cancellation-safe: a cancelled read loses nothing.

        Raises:
            StreamReset: the peer abandoned the stream. UnknownProtocol: nobody handles it there.
            StreamClosed: after `stop`.
            StreamError: `read()` without a size met more than 16 MiB; they are still there to be read.
            SessionError: the session is over; what had arrived before has been read.
            BusyError: another task is reading.
        """
        if self._reading:
            raise _busy("read")
        self._reading = True
        try:
            if size is not None:
                return await self._read(size)
            await self._collect(READ_ALL_LIMIT + 1)
            if len(self._head) > READ_ALL_LIMIT:
                raise StreamError("read() without a size collects at most 16 MiB: read in pieces")
            return self._take_head(READ_ALL_LIMIT)
        finally:
            self._reading = False

    def read_nowait(self, size: int) -> bytes:
        """Up to `size` bytes that are here already; b"" when there are none. It never waits, and tells no end.

        Raises:
            BusyError: a task is reading.
        """
        if self._reading:
            raise _busy("read")
        return self._take_head(size) or self._peer.read(self._core, size)

    async def readexactly(self, size: int) -> bytes:
        """Exactly `size` bytes, at most 16 MiB.

        Cancellation-safe: a cancelled call loses nothing.

        Raises:
            StreamTruncated: the stream ended before; `partial` holds what came.
            StreamReset, StreamClosed, SessionError, BusyError: as for `read`.
            ValueError: more than 16 MiB were asked for.
        """
        if not 0 <= size <= READ_ALL_LIMIT:
            raise ValueError(f"readexactly takes 0 to {READ_ALL_LIMIT} bytes at once, not {size}")
        if self._reading:
            raise _busy("read")
        self._reading = True
        try:
            if not self._head:
                data = self._peer.read(self._core, size)
                if len(data) == size:
                    return data
                self._head += data
            await self._collect(size)
            data = self._take_head(size)
            if len(data) < size:
                raise StreamTruncated(data, size)
            return data
        finally:
            self._reading = False

    async def __aiter__(self) -> AsyncIterator[bytes]:
        """Pieces as they come, up to the end; raises what `read` raises."""
        while chunk := await self.read(READ_SIZE):
            yield chunk

    async def stop(self, code: int = 0) -> None:
        """Read no more: what is here and what comes is dropped, the peer's writer gets `StreamStopped(code)`.

        Args:
            code: the application's, below 2**32.
        """
        _check_code(code)
        self._stop(code)

    def _stop(self, code: int) -> None:
        self._peer.stop(self._core, code)
        self._changed()

    async def _read(self, size: int) -> bytes:
        if size < 1:
            raise ValueError(f"read takes a size of at least 1, not {size}")
        if self._head:
            return self._take_head(size)
        while True:
            data = self._peer.read(self._core, size)
            if data or self._at_end():
                return data
            self._reader = asyncio.get_running_loop().create_future()
            try:
                await self._reader
            finally:
                self._reader = None

    async def _collect(self, size: int) -> None:
        """Gather `size` bytes, or all up to the end, in front of what can be read: a cancel leaves them there."""
        while len(self._head) < size:
            head, self._head = self._head, bytearray()
            try:
                data = await self._read(size - len(head))
            finally:
                self._head = head
            if not data:
                return
            self._head += data

    def _take_head(self, size: int) -> bytes:
        data = bytes(self._head[:size])
        del self._head[:size]
        return data

    def _at_end(self) -> bool:
        """Whether nothing comes any more, for the good reason; the bad ones are raised."""
        receiving = self._core.receiving
        if receiving.stopped is not None:
            raise StreamClosed("reading was stopped by this side")
        if receiving.ending is Ending.RESET:
            if receiving.code == StreamCode.UNKNOWN_PROTOCOL:
                raise UnknownProtocol(f"the peer handles no protocol {self.protocol!r}")
            raise StreamReset(receiving.code)
        if receiving.complete:
            return True
        self.session._raise_if_over()
        return False

    # ---------------------------------------------------------------- life

    async def aclose(self) -> None:
        """End both directions in order: FIN, wait for its delivery, STOP for what is unread.

        The wait is bounded by `Config.delivery_timeout`. A peer that has stopped reading is no error here.

        Raises:
            TimeoutError: not delivered in time; it goes on in the background as long as the session lives.
            UnknownProtocol, SessionError: it will not be delivered.
        """
        try:
            with suppress(StreamStopped, StreamClosed):
                await self.write_eof()
                async with asyncio.timeout(self.session._config.delivery_timeout):
                    await self.wait_delivered()
        finally:
            if not self._core.receiving.complete or len(self._core.receiving.buffer) or self._head:
                self._head.clear()
                self._stop(StreamCode.UNREAD)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if error is None:
            await self.aclose()
        else:
            self._fail()

    def _fail(self) -> None:
        """Reset both directions."""
        self._reset(StreamCode.HANDLER_FAILED)
        self._stop(StreamCode.HANDLER_FAILED)

    def _refuse(self) -> None:
        """Nobody handles it."""
        self._reset(StreamCode.UNKNOWN_PROTOCOL)
        self._stop(StreamCode.UNKNOWN_PROTOCOL)

    def _changed(self) -> None:
        """Something is different: everybody who waits looks again."""
        for waiter in (self._reader, self._writer, *self._delivered):
            if waiter is not None and not waiter.done():
                waiter.set_result(None)
        if self.on_change is not None:
            self.on_change()


def _busy(verb: str) -> BusyError:
    return BusyError(f"another task is in {verb}() of this stream")


def _check_code(code: int) -> None:
    if not 0 <= code < StreamCode.UNKNOWN_PROTOCOL:
        raise OverlayError(f"a code is 0 to {StreamCode.UNKNOWN_PROTOCOL - 1}, not {code}")
