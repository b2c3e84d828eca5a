"""What ties the core of a raw UDP connection to the shared socket, the loop and the table of connection ids.

A `Driver` exists from the first packet on; a `UdpLink` is made when the peer has proven its key. The order within one
wake-up is always the same: feed all packets, hand over all events, call `writable` once, send once. A sender that has
more than one turn's work gets another turn at once, behind everything else that waits for the loop.

Whatever goes wrong inside ends this one connection: the driver catches it, tells the handler, and forgets the core.
"""

import asyncio
import errno
import logging
from typing import Protocol, cast

from overlay.addresses import Address
from overlay.errors import HandshakeError
from overlay.identity import PeerId
from overlay.protocol.codes import CloseCode
from overlay.protocol.udp.connection import AddressChanged, Closed, Confirmed, IdsChanged, Outgoing, Proven, UdpCore
from overlay.transports.base import ClosedBy, CloseReason
from overlay.transports.udp_connection import UdpLink, clock, handshake_error
from overlay.transports.udp_routes import ResetKey, Routes
from overlay.transports.udp_socket import Local, SocketAddress, UdpSocket

logger = logging.getLogger(__name__)

Core = UdpCore[PeerId]


class Outcome(Protocol):
    """What becomes of a driver whose handshake is under way; exactly one of the first two is called."""

    def proven(self, driver: "Driver", peer: PeerId) -> UdpLink | None:
        """The peer has proven its key; None when the connection was closed instead."""

    def failed(self, error: Exception) -> None:
        """It will not."""

    def forgotten(self, driver: "Driver") -> None:
        """The driver is no more."""


class Driver:
    """Moves packets, events and time between a core and the world.

    Args:
        core: of the connection.
        udp: the socket it speaks through.
        remote: where the peer was when it began.
        local: our address that the peer's packets come to, if known.
        routes: the driver keeps its own entries.
        outcome: told how the handshake ends.

    Attributes:
        link: the session's side, once the peer's key is proven.
        heard: whether anything for one of its ids has come.
        refused: what the kernel said to the last datagram that it did not take.
    """

    def __init__(
        self,
        core: Core,
        udp: UdpSocket,
        remote: SocketAddress,
        local: Local | None,
        routes: Routes,
        outcome: Outcome,
    ) -> None:
        self.core = core
        self.remote = remote
        self.link: UdpLink | None = None
        self.heard = False
        self.refused: OSError | None = None
        self.is_forgotten = False
        self._udp = udp
        self._local = local
        self._arrived: tuple[SocketAddress, Local | None] = remote, local
        """Where the newest packet came from, and to."""
        self._routes = routes
        self._outcome = outcome
        self._handshaking = True
        self._reset: ResetKey | None = None
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = 0.0
        self._turn: asyncio.Handle | None = None
        self._busy = False
        self._ids = set(core.ids)
        routes.add(self._ids, self)

    def local_address(self) -> Address | None:
        """Our own address on this connection, if known."""
        address = self._udp.local_address(self._local, self.remote)
        return None if address is None else address.with_transport("udp")

    def receive(self, data: bytes, segment: int, remote: SocketAddress, local: Local | None) -> None:
        """Feed packets of `segment` bytes, the last may be shorter, all for one connection id.

        `batch_ended` must follow.
        """
        if self.is_forgotten:
            return
        self.heard = True
        self._arrived = remote, local
        try:
            if len(data) > segment:
                self.core.receive_burst(data, segment, remote, clock())
            else:
                self.core.receive_datagram(data, remote, clock())
        except Exception as error:  # noqa: BLE001 - a mistake of ours ends this connection only
            self._crash(error)

    def batch_ended(self) -> None:
        """Hand over what the fed packets brought, and answer."""
        if self.is_forgotten:
            return
        self._busy = True
        now = clock()
        try:
            progress = self.core.last_progress(now)
            self.core.batch_ended(now)
            if self.core.last_progress(now) != progress or self._local is None:
                # Only packets that have opened may change where ours leave from: anybody can send us other ones.
                self._answer_from()
            self._dispatch()
        except Exception as error:  # noqa: BLE001 - the same, and a handler that fails must not stop the others
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
        link = self.link
        more = link is not None and link.is_full
        closing = self.core.is_closing
        try:
            for burst in self.core.bursts_to_send(clock()):
                self._send(burst)
        except Exception as error:  # noqa: BLE001 - the same
            self._crash(error)
            return
        if link is not None:
            link.flushed()
            more = more and link.sendable() > 0
        # Sending may have ended it, too; somebody has to be told.
        if (more or self.core.is_closing != closing) and self._turn is None:
            self._turn = self._loop.call_soon(self._next_turn)
        self._arm()

    def fail(self, error: Exception, code: CloseCode) -> None:
        """Give a handshake up: tell the peer and whoever waits for it."""
        self._end_handshake(error)
        self.core.close(code, str(error))
        self.flush_now()

    def unreachable(self, udp: UdpSocket, remote: SocketAddress, error: OSError) -> None:
        """ICMP says that nobody is at `remote`: give up a dial that has heard nothing from there.

        Anybody may have sent that, so it is worth nothing once our connection id, which nobody can guess, came back.
        """
        if udp is self._udp and remote == self.remote and self._handshaking and not self.heard:
            self.forget()
            self._end_handshake(error)

    def forget(self) -> None:
        """Free everything at once."""
        if self.is_forgotten:
            return
        self.is_forgotten = True
        for handle in (self._timer, self._turn):
            if handle is not None:
                handle.cancel()
        self._timer = self._turn = None
        self._routes.remove(self._ids)
        if self._reset is not None:
            self._routes.remove_reset(self._reset, self)
        self._outcome.forgotten(self)

    def _dispatch(self) -> None:
        link = self.link
        for event in self.core.take_events():
            if link is not None and link.is_closed and not isinstance(event, IdsChanged | AddressChanged):
                continue
            if isinstance(event, Proven):
                link = self.link = self._outcome.proven(self, event.peer)
                self._handshaking = False
                self._route_resets()
            elif isinstance(event, IdsChanged):
                self._ids = self._ids.difference(event.removed).union(event.added)
                self._routes.remove(event.removed)
                self._routes.add(event.added, self)
            elif isinstance(event, AddressChanged):
                self._moved(cast("SocketAddress", event.address))
            elif isinstance(event, Closed):
                reason = CloseReason(ClosedBy(event.by), event.code, event.reason)
                if link is not None:
                    link.ended(reason)
                else:
                    self._end_handshake(handshake_error(reason, event.cause))
            elif link is not None and not isinstance(event, Confirmed):
                link.event_received(event)
        if link is not None and not link.is_closed:
            link.handler.writable(link)

    def _answer_from(self) -> None:
        """Let our packets leave from the address that the peer's come to."""
        remote, local = self._arrived
        if remote == self.remote:
            self._local = local

    def _moved(self, remote: SocketAddress) -> None:
        self.remote = remote
        self._answer_from()
        self._route_resets()
        if self.link is not None:
            self.link.remote = Address.from_sockaddr("udp", remote)

    def _route_resets(self) -> None:
        """RESETs for the peer's id in use, from where it is, are ours."""
        if self._reset is not None:
            self._routes.remove_reset(self._reset, self)
        self._reset = self.remote, self.core.destination
        self._routes.add_reset(self._reset, self)

    def _end_handshake(self, error: Exception) -> None:
        if self._handshaking:
            self._handshaking = False
            self._outcome.failed(error)

    def _send(self, burst: Outgoing) -> None:
        remote = cast("SocketAddress", burst.address)
        self.refused = self._udp.send_burst(burst.data, burst.segment, remote, self._local)
        if self.refused is not None and self.refused.errno == errno.EMSGSIZE:
            self.core.send_refused(burst, clock())

    def _next_turn(self) -> None:
        """A sender was stopped after one turn's work, and there is still room; or there is news of its end."""
        self._turn = None
        self.batch_ended()

    def _arm(self) -> None:
        """Make sure that the timer does not fire too late; one that fires too early arms itself again."""
        if self.core.is_over and self._turn is None:
            self.forget()
            return
        at = self.core.next_timeout()
        if at is None:
            return
        if self._timer is not None:
            if self._timer_at <= at:
                return
            self._timer.cancel()
        self._timer_at = at
        self._timer = self._loop.call_later(max(0.0, at - clock()), self._timer_fired)

    def _timer_fired(self) -> None:
        self._timer = None
        fired_at, now = self._timer_at, clock()
        at = self.core.next_timeout()
        if at is not None and at > max(now, fired_at):
            self._arm()
            return
        try:
            # The loop's clock may stand a tick before the deadline that it woke us for.
            self.core.handle_timeout(max(now, fired_at))
        except Exception as error:  # noqa: BLE001 - the same
            self._crash(error)
            return
        self.batch_ended()

    def _crash(self, error: Exception) -> None:
        # Strangers must not be able to fill a log; whoever dials is told by the error.
        level = logging.DEBUG if self.link is None else logging.WARNING
        logger.log(level, "a raw UDP connection with %s ended by an error", self.remote, exc_info=error)
        try:
            self.core.close(CloseCode.INTERNAL_ERROR, "")
            for burst in self.core.bursts_to_send(clock()):
                self._send(burst)
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
