"""Raw UDP's driver: moves what its core says and hears; see `packet_driver` for what all drivers do.

It exists from the first packet on; a `UdpLink` is made when the peer has proven its key. A sender that has more than
one turn's work gets another turn at once, behind everything else that waits for the loop.
"""

import asyncio
import errno
from typing import ClassVar, Protocol, cast

from overlay.addresses import Address
from overlay.identity import PeerId
from overlay.protocol.codes import CloseCode
from overlay.protocol.udp.connection import AddressChanged, Closed, Confirmed, IdsChanged, Outgoing, Proven, UdpCore
from overlay.transports import packet_driver
from overlay.transports.base import ClosedBy, CloseReason
from overlay.transports.lazy_timer import clock
from overlay.transports.packet_driver import PacketDriver
from overlay.transports.udp_connection import UdpLink, handshake_error
from overlay.transports.udp_routes import ResetKey, Routes
from overlay.transports.udp_socket import Local, SocketAddress, UdpSocket

Core = UdpCore[PeerId]


class Outcome(packet_driver.Outcome, Protocol):
    """What becomes of a handshake that is under way; `proven` or `failed` is called once."""

    def proven(self, driver: "Driver", peer: PeerId) -> UdpLink | None:
        """The peer has proven its key; None when the connection was closed instead."""


class Driver(PacketDriver[UdpLink]):
    """Moves packets, events and time between a core and the world.

    Args:
        core: of the connection.
        udp: the socket it speaks through.
        remote: where the peer was when it began.
        local: our address that the peer's packets come to, if known.
        routes: the driver keeps its own entries.
        outcome: told how the handshake ends.

    Attributes:
        heard: whether anything for one of its ids has come.
    """

    transport: ClassVar[str] = "udp"

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
        super().__init__(udp, remote, local, outcome)
        self.heard = False
        self._arrived: tuple[SocketAddress, Local | None] = remote, local
        """Where the newest packet came from, and to."""
        self._routes = routes
        self._outcome = outcome
        self._reset: ResetKey | None = None
        self._turn: asyncio.Handle | None = None
        self._ids = set(core.ids)
        routes.add(self._ids, self)

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

    def fail(self, error: Exception, code: CloseCode) -> None:
        """Give a handshake up: tell the peer and whoever waits for it."""
        self._end_handshake(error)
        self.core.close(code, str(error))
        self.flush_now()

    def _dispatch(self) -> None:
        now = clock()
        progress = self.core.last_progress(now)
        self.core.batch_ended(now)
        if self.core.last_progress(now) != progress or self._local is None:
            # Only packets that have opened may change where ours leave from: anybody can send us other ones.
            self._answer_from()
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

    def _send_queued(self) -> None:
        link = self.link
        more = link is not None and link.is_full
        for burst in self.core.bursts_to_send(clock()):
            self._send(burst)
        if link is not None:
            link.flushed()
            more = more and link.sendable() > 0
        if (more or self._has_untold_end()) and self._turn is None:
            self._turn = asyncio.get_running_loop().call_soon(self._next_turn)

    def _has_untold_end(self) -> bool:
        """Whether what the session queued, or sending it, has ended the connection: somebody has to be told."""
        if not self.core.is_closing:
            return False
        return self._handshaking if self.link is None else not self.link.is_closed

    def _sent(self) -> None:
        if self.core.is_over and self._turn is None:
            self.forget()
        else:
            self._timer.arm()

    def _deadline(self) -> float | None:
        return self.core.next_timeout()

    def _handle_timeout(self, now: float) -> None:
        self.core.handle_timeout(now)

    def _has_heard(self) -> bool:
        # Nobody can guess our connection id.
        return self.heard

    def _say_goodbye(self) -> None:
        self.core.close(CloseCode.INTERNAL_ERROR, "")
        for burst in self.core.bursts_to_send(clock()):
            self._send(burst)

    def _release(self) -> None:
        if self._turn is not None:
            self._turn.cancel()
            self._turn = None
        self._routes.remove(self._ids)
        if self._reset is not None:
            self._routes.remove_reset(self._reset, self)

    def _answer_from(self) -> None:
        """Let our packets leave from the address that the peer's come to."""
        remote, local = self._arrived
        if remote == self.remote:
            self._local = local

    def _moved(self, remote: SocketAddress) -> None:
        if remote != self.remote:
            self.remote = remote
            self._answer_from()
            if self.link is not None:
                self.link.remote = Address.from_sockaddr("udp", remote)
        # The peer's id may be another one where it is the same address.
        self._route_resets()

    def _route_resets(self) -> None:
        """RESETs for the peer's id in use, from where it is, are ours."""
        if self._reset is not None:
            self._routes.remove_reset(self._reset, self)
        self._reset = self.remote, self.core.destination
        self._routes.add_reset(self._reset, self)

    def _send(self, burst: Outgoing) -> None:
        remote = cast("SocketAddress", burst.address)
        self.refused = self._udp.send_burst(burst.data, burst.segment, remote, self._local)
        if self.refused is not None and self.refused.errno == errno.EMSGSIZE:
            self.core.send_refused(burst, clock())

    def _next_turn(self) -> None:
        """A sender was stopped after one turn's work, and there is still room; or there is news of its end."""
        self._turn = None
        self.batch_ended()
