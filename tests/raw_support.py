"""What the tests of raw UDP share beside `transport_support`: nodes, and strangers made of the core."""

import contextlib
import os
from collections.abc import AsyncIterator
from functools import partial
from typing import Any

from transport_support import OURS, THEIRS, Accepting, MemoryUdp, Recorder, bound_socket, closing

from overlay.config import Config
from overlay.identity import Identity
from overlay.protocol.udp.connection import UdpCore
from overlay.protocol.udp.handshake import DiallerHandshake
from overlay.transports.base import Role
from overlay.transports.lazy_timer import clock
from overlay.transports.udp import UdpTransport
from overlay.transports.udp_connection import UdpLink
from overlay.transports.udp_handshakes import udp_profile
from overlay.transports.udp_socket import UdpSocket


class RawNode(Accepting[UdpTransport]):
    """Raw UDP with what it was given and what it accepted."""

    def __init__(
        self, sockets: list[UdpSocket], config: Config | None = None, identity: Identity | None = None
    ) -> None:
        super().__init__(sockets, identity)
        self.transport = UdpTransport(self.identity, config or Config(), sockets, self.accept, self.gate)
        self.transport.start()

    def is_clean(self) -> bool:
        transport = self.transport
        routes = transport._routes
        return not (routes.ids or routes.resets or transport._drivers or transport._dials or self.gate.pending)


@contextlib.asynccontextmanager
async def raw_node(config: Config | None = None, identity: Identity | None = None) -> AsyncIterator[RawNode]:
    """A transport on a loopback socket."""
    async with closing(RawNode([UdpSocket(bound_socket())], config, identity)) as made:
        yield made


@contextlib.asynccontextmanager
async def raw_memory_node(config: Config | None = None) -> AsyncIterator[tuple[RawNode, MemoryUdp]]:
    """A transport on a socket in memory."""
    udp = MemoryUdp()
    async with closing(RawNode([udp], config)) as made:
        yield made, udp


async def connect(dialer: RawNode, acceptor: RawNode) -> tuple[UdpLink, Recorder, Recorder]:
    """A connection, and what both its ends are told."""
    recorder, number = Recorder(), len(acceptor.accepted)
    link = await dialer.transport.dial(acceptor.address, acceptor.peer_id, recorder)
    recorder.connection = link
    return link, recorder, await acceptor.arrival(number)


class Stranger:
    """The core of somebody who dials a transport in memory, packet by packet.

    Attributes:
        events: what the core has told.
    """

    def __init__(self, udp: MemoryUdp, identity: Identity | None = None) -> None:
        profile = udp_profile(identity or Identity.generate())
        self.handshake: DiallerHandshake[Any] = DiallerHandshake(os.urandom(8), partial(profile.handshake, Role.DIALER))
        self.core: UdpCore[Any] = UdpCore(
            self.handshake, OURS, random=os.urandom, token=lambda _: os.urandom(16), now=clock()
        )
        self.events: list[Any] = []
        self._udp = udp

    def output(self) -> list[bytes]:
        found: list[bytes] = []
        for one in self.core.bursts_to_send(clock()):
            found += [one.data[at : at + one.segment] for at in range(0, len(one.data), one.segment)]
        return found

    def receive(self, *datagrams: bytes) -> None:
        for data in datagrams:
            self.core.receive_datagram(data, OURS, clock())
        self.core.batch_ended(clock())
        self.events += self.core.take_events()

    def converse(self, rounds: int = 8) -> None:
        """Carry packets to and fro until both are silent; each flight is one batch."""
        for _ in range(rounds):
            batch = self.output()
            if batch:
                self._udp.deliver(*batch)
            answers, self._udp.sent = self._udp.sent, []
            self.receive(*answers)
            if not batch and not answers:
                return

    def knock_and_hello(self) -> list[bytes]:
        """The first packets with a good cookie; they are not delivered."""
        self._udp.deliver(*self.output())
        [cookie], self._udp.sent = self._udp.sent, []
        self.receive(cookie)
        return self.output()


__all__ = ["OURS", "THEIRS", "MemoryUdp", "RawNode", "Stranger", "connect", "raw_memory_node", "raw_node"]
