"""What ties the core of a connection over UDP to the shared socket, the loop and the session, whatever is spoken.

The order within one wake-up is always the same: feed all packets, hand over all events, call `writable` once, send
once. QUIC and raw UDP each say how that is done with their core; what must not go wrong stands here:

- Whatever goes wrong inside ends this one connection: its mistakes and its handler's are caught, the peer is told if
  that is still possible, the handler is, and the core is forgotten.
- A handshake ends exactly once, and nobody who waits for it is forgotten.
- Nothing is left behind: `forget` is the one way out, and whoever owns drivers hears of it.
"""

import logging
from abc import ABC, abstractmethod
from collections.abc import Container
from typing import Any, ClassVar, Generic, Protocol, TypeVar

from overlay.addresses import Address
from overlay.errors import HandshakeError
from overlay.protocol.codes import CloseCode
from overlay.transports.base import ClosedBy, CloseReason
from overlay.transports.lazy_timer import LazyTimer
from overlay.transports.udp_socket import Local, SocketAddress, UdpSocket

logger = logging.getLogger(__name__)


class Link(Protocol):
    """The session's side of a connection."""

    def ended(self, reason: CloseReason) -> None:
        """It is over; tell the handler, unless it knows."""

    def discard(self) -> None:
        """Close it without telling the handler, which has never seen it: its dial was cancelled."""


class Outcome(Protocol):
    """Who is told what becomes of a handshake that is under way."""

    def failed(self, error: Exception) -> None:
        """It will not be completed."""

    def forgotten(self, driver: Any) -> None:
        """The driver is no more."""


AnyLink = TypeVar("AnyLink", bound=Link)


class PacketDriver(ABC, Generic[AnyLink]):
    """Moves packets, events and time between a core and the world.

    Args:
        udp: the socket it speaks through.
        remote: where the peer was when it began.
        local: our address that the peer's packets come to, if known.
        outcome: told how the handshake ends.

    Attributes:
        link: the session's side, once the peer's key is proven.
        refused: what the kernel said to the last datagram that it did not take.
        is_forgotten: whether `forget` was called: it does nothing any more.
    """

    transport: ClassVar[str]
    """The transport's name, as in addresses."""

    def __init__(self, udp: UdpSocket, remote: SocketAddress, local: Local | None, outcome: Outcome) -> None:
        self.remote = remote
        self.link: AnyLink | None = None
        self.refused: OSError | None = None
        self.is_forgotten = False
        self._udp = udp
        self._local = local
        self._ending = outcome
        self._handshaking = True
        self._busy = False
        self._timer = LazyTimer(self._next_timeout, self._timer_fired)

    def local_address(self) -> Address | None:
        """Our own address on this connection, if known."""
        address = self._udp.local_address(self._local, self.remote)
        return None if address is None else address.with_transport(self.transport)

    def leave(self, lost: Container[str]) -> bool:
        """Whether our packets have left from one of these addresses, which are gone; now the routes say from where."""
        local = self.local_address()
        if self._local is None or local is None or local.host not in lost:
            return False
        self._local = None
        return True

    def batch_ended(self) -> None:
        """Hand over what the fed packets brought, and answer."""
        if self.is_forgotten:
            return
        self._busy = True
        try:
            self._dispatch()
        except Exception as error:  # noqa: BLE001 - a mistake of ours, or of the handler, ends this connection only
            self._crash(error)
        finally:
            self._busy = False
        self.flush()

    def flush(self) -> None:
        """Send what is queued, unless that will be done at the end of this wake-up anyway."""
        if not self._busy:
            self.flush_now()

    def flush_now(self) -> None:
        """Send what is queued and may leave, and set the timer."""
        if self.is_forgotten:
            return
        try:
            self._send_queued()
            self._sent()
        except Exception as error:  # noqa: BLE001 - the same
            self._crash(error)

    def unreachable(self, udp: UdpSocket, remote: SocketAddress, error: OSError) -> None:
        """ICMP says that nobody is at `remote`: give up a dial that has heard nothing from there.

        Anybody may have sent that, so it is worth nothing once the peer has answered.
        """
        if udp is self._udp and remote == self.remote and self._handshaking and not self._has_heard():
            self.forget()
            self._end_handshake(error)

    @abstractmethod
    def fail(self, error: Exception, code: CloseCode) -> None:
        """Give a handshake up: tell the peer and whoever waits for it."""

    def forget(self) -> None:
        """Free everything at once."""
        if self.is_forgotten:
            return
        self.is_forgotten = True
        self._timer.cancel()
        self._release()
        self._ending.forgotten(self)

    @abstractmethod
    def _dispatch(self) -> None:
        """Hand over all events, then call `writable`; may raise."""

    @abstractmethod
    def _send_queued(self) -> None:
        """Send what the core has; may raise."""

    @abstractmethod
    def _sent(self) -> None:
        """All that may leave has left: arm the timer, or forget a connection that is over; may raise."""

    @abstractmethod
    def _deadline(self) -> float | None:
        """When the core wants to be woken; may raise."""

    @abstractmethod
    def _handle_timeout(self, now: float) -> None:
        """Wake the core; may raise."""

    @abstractmethod
    def _has_heard(self) -> bool:
        """Whether something came that only the peer can have sent."""

    @abstractmethod
    def _say_goodbye(self) -> None:
        """Tell the peer of an internal error; may raise."""

    @abstractmethod
    def _release(self) -> None:
        """Free what the connection holds beside the timer; called once."""

    def _next_timeout(self) -> float | None:
        try:
            return self._deadline()
        except Exception as error:  # noqa: BLE001 - the same
            self._crash(error)
            return None

    def _timer_fired(self, now: float) -> None:
        if self.is_forgotten:
            return
        try:
            self._handle_timeout(now)
        except Exception as error:  # noqa: BLE001 - the same
            self._crash(error)
            return
        self.batch_ended()

    def _end_handshake(self, error: Exception) -> None:
        if self._handshaking:
            self._handshaking = False
            self._ending.failed(error)

    def _crash(self, error: Exception) -> None:
        # Strangers must not be able to fill a log; whoever dials is told by the error.
        level = logging.DEBUG if self.link is None else logging.WARNING
        logger.log(level, "a %s connection with %s ended by an error", self.transport, self.remote, exc_info=error)
        try:
            self._say_goodbye()
        except Exception as second:  # noqa: BLE001 - a goodbye is a courtesy
            logger.debug("no goodbye was sent: %s", second)
        self.forget()
        self._end_handshake(HandshakeError(f"internal error: {error!r}", CloseCode.INTERNAL_ERROR))
        if self.link is None:
            return
        try:
            self.link.ended(CloseReason(ClosedBy.NETWORK, CloseCode.INTERNAL_ERROR, repr(error)))
        except Exception:
            # Nobody above can do more about it, and the other connections wait for their turn.
            logger.exception("the handler of %s failed at its end", self.link)
