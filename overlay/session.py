"""`Session`: the relation with one peer, as its user sees it. Lives over zero, one or several connections."""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from contextlib import suppress
from types import TracebackType
from typing import TYPE_CHECKING, Final, Literal, Self

from overlay.config import Config
from overlay.errors import OverlayError, SessionError
from overlay.events import Path
from overlay.identity import PeerId
from overlay.protocol.codes import ENDS_SESSION, CloseCode
from overlay.protocol.links import SessionState
from overlay.protocol.session import SPARE
from overlay.protocol.stream import Priority
from overlay.streams import Stream

if TYPE_CHECKING:
    from overlay.peer import Peer

MEMORY_RETRY: Final = 0.25
"""Seconds."""
DATAGRAM_ALLOWANCE: Final = 64 * 1024
"""Bytes of datagrams that a session holds without asking for memory: one of the longest always fits."""

State = Literal["connecting", "connected", "lingering", "closed"]


class Session:
    """One session. Made by `Endpoint.connect`, or by a peer that connects; see `Stream.session`.

    Used as `async with session:`, leaving closes it.
    """

    def __init__(self, peer: "Peer", core: SessionState, config: Config) -> None:
        self._peer = peer
        self._core = core
        self._config = config
        self._error: SessionError | None = None
        self._over = asyncio.Event()
        self._may_open = asyncio.Event()
        self._datagrams: deque[bytes] = deque()
        self._datagram_bytes = 0
        self._datagram_reserved = 0
        self._datagram_ready = asyncio.Event()
        self._datagram_sink: Callable[[bytes], None] | None = None
        self._datagram_source: Callable[[int], bytes | None] | None = None
        self._datagrams_hungry = False
        """The source may have a datagram: it has said so, and not said None since."""
        self._handlers = 0
        """Handlers that run now; `Endpoint` counts them."""
        self._unserved: deque[tuple[Callable[[Stream], Awaitable[None]], Stream]] = deque()
        """Streams of the peer that wait until one of those ends."""

    def __repr__(self) -> str:
        return f"<Session {self.state} with {self.peer_id.short}>"

    @property
    def peer_id(self) -> PeerId:
        """The peer's proven key."""
        return self._peer.peer_id

    @property
    def state(self) -> State:
        """`connecting`, `connected`, `lingering` (no connection, streams wait) or `closed`."""
        if self._error is not None:
            return "closed"
        if not self._core.connected:
            return "connecting"
        return "lingering" if self._core.linger_until is not None else "connected"

    @property
    def error(self) -> SessionError | None:
        """Why it is closed; None while it is not."""
        return self._error

    @property
    def paths(self) -> list[Path]:
        """Its connections, the selected one first. A snapshot."""
        return self._peer.paths() if self._error is None else []

    @property
    def traffic(self) -> dict[str, tuple[int, int]]:
        """Bytes sent and received by transport, over all connections with the peer there are and have been.

        Frames and stream data as they were handed to the transports: what went out twice counts twice.
        """
        return self._peer.traffic_by_transport()

    @property
    def max_datagram_size(self) -> int:
        """The longest datagram that fits the selected path now, in bytes; 0 without a path."""
        return 0 if self._error is not None else self._peer.max_datagram_size

    @property
    def received_on(self) -> Path | None:
        """The path that stream bytes or datagrams of the peer came over last; None when it is gone, or none came.

        A snapshot of this tenth of a second: asked for each message, it would cost more than the message.
        """
        return self._peer.received_on() if self._error is None else None

    async def open_stream(self, protocol: str, *, priority: Priority = Priority.BULK) -> Stream:
        """Open a stream; waits while the peer allows no more.

        It costs no round trip: an unknown name is reported by the first read or a later write (`UnknownProtocol`).
        Cancellation leaves nothing behind.

        Args:
            protocol: what is spoken on it: the name that the peer's `Endpoint.handle` was given, 1 to 255 bytes.
            priority: `Priority.CONTROL` goes before all `BULK`.

        Raises:
            SessionError: the session is over.
            ValueError: the name is empty or too long.
        """
        while True:
            self._raise_if_over()
            core = self._peer.open(self._core, protocol, priority)
            if core is not None:
                stream = Stream(self, core)
                core.handle = stream
                return stream
            self._may_open.clear()
            # Memory that another session gives back wakes nobody here, so look again now and then.
            with suppress(TimeoutError):
                async with asyncio.timeout(MEMORY_RETRY):
                    await self._may_open.wait()

    async def send_datagram(self, data: bytes) -> None:
        """Send one unreliable message: it arrives once or not at all. Never waits; without a path it is dropped.

        Raises:
            DatagramTooLarge: it is longer than `max_datagram_size`.
            SessionError: the session is over.
        """
        self._raise_if_over()
        self._peer.send_datagram(data)

    def supply_datagrams(self, source: Callable[[int], bytes | None]) -> None:
        """Have datagrams asked for when they can leave, instead of, or beside, `send_datagram`.

        Args:
            source: called with the length of the longest datagram that fits now, whenever the selected path takes one
                without a queue building up; datagrams and streams take turns. It returns one that is not longer, or
                None: nothing now; it is asked again after `more_datagrams`. It is called from within the sending of
                everything that goes to that peer: it must not raise, nor call anything of session or streams. It
                takes the place of the one before.

        Raises:
            SessionError: the session is over.
        """
        self._raise_if_over()
        self._datagram_source = source
        self.more_datagrams()

    def more_datagrams(self) -> None:
        """The source given to `supply_datagrams` has something again. Does nothing when the session is over."""
        if self._datagram_source is not None and not self._datagrams_hungry:
            self._datagrams_hungry = True
            self._peer.wake()

    def deliver_datagrams(self, sink: Callable[[bytes], None] | None) -> None:
        """Have each datagram handed to `sink` as it comes, instead of `receive_datagram`; None: no longer.

        Args:
            sink: called from within the receiving of everything that comes from that peer: it must not raise, nor call
                anything of session or streams. What it cannot take now, it has to drop.
        """
        self._datagram_sink = sink
        while sink is not None and self._datagrams:
            sink(self._take_datagram())

    async def receive_datagram(self) -> bytes:
        """The next datagram. When too many wait, the oldest has been dropped. Cancellation-safe.

        Raises:
            SessionError: the session is over.
        """
        while not self._datagrams:
            self._raise_if_over()
            self._datagram_ready.clear()
            await self._datagram_ready.wait()
        return self._take_datagram()

    def _take_datagram(self) -> bytes:
        data = self._datagrams.popleft()
        self._datagram_bytes -= len(data)
        if not self._datagrams and self._datagram_reserved:
            self._core.budget.release(self._datagram_reserved)
            self._datagram_reserved = 0
        return data

    async def ping(self) -> tuple[float, Path]:
        """The round-trip time to the peer's library in seconds, and the path that was asked. Waits for a path.

        Raises:
            SessionError: the session is over.
        """
        while True:
            self._raise_if_over()
            answer = await self._peer.ping()
            if answer is not None:
                return answer

    async def wait_closed(self) -> SessionError:
        """Wait for the session's end; why it ended. Cancellation is harmless."""
        await self._over.wait()
        assert self._error is not None  # noqa: S101 - set before the event
        return self._error

    def close(self, *, code: CloseCode = CloseCode.SESSION_CLOSED, reason: str = "") -> None:
        """End the session now: streams fail at both sides with `SessionClosed`.

        What matters has been awaited before, see `Stream.wait_delivered`.

        Args:
            code: MISBEHAVED when the peer broke the rules of what is spoken on its streams.
            reason: for the peer's log.

        Raises:
            OverlayError: another code, which would mean something else to the peer.
        """
        if code not in ENDS_SESSION:
            raise OverlayError(f"a session is closed with SESSION_CLOSED or MISBEHAVED, not {code!r}")
        self._peer.close_session(self._core, code, reason)

    async def aclose(self) -> None:
        """The same as `close`, for `async with` and its kind."""
        self.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.aclose()

    def _raise_if_over(self) -> None:
        if self._error is not None:
            raise self._error.with_traceback(None)

    def _ended(self, error: SessionError) -> None:
        self._error = error
        self._datagram_source = self._datagram_sink = None
        self._datagrams_hungry = False
        # The core has given back all of the session's memory.
        self._datagram_reserved = 0
        self._over.set()
        self._may_open.set()
        self._datagram_ready.set()

    def _datagram_received(self, data: bytes) -> None:
        if self._datagram_sink is not None:
            self._datagram_sink(data)
            return
        limits = self._config.limits
        self._datagrams.append(data)
        self._datagram_bytes += len(data)
        while (
            len(self._datagrams) > limits.datagram_queue
            or self._datagram_bytes > limits.datagram_memory
            or not self._reserve_datagrams()
        ):
            self._datagram_bytes -= len(self._datagrams.popleft())
        self._datagram_ready.set()

    def _reserve_datagrams(self) -> bool:
        """Count what waits in the session's memory; False when there is no room."""
        missing = self._datagram_bytes - DATAGRAM_ALLOWANCE - self._datagram_reserved
        if missing > 0:
            if not self._core.budget.reserve(missing, spare=SPARE):
                return False
            self._datagram_reserved += missing
        return True
