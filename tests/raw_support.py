"""What the tests of raw UDP share: transports on loopback, transports in memory, and strangers made of the core."""

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator
from functools import partial
from typing import Any

from quic_support import OURS, THEIRS, MemoryUdp, Recorder, WatchedGate, bound_socket

from overlay.addresses import Address
from overlay.config import Config
from overlay.identity import Identity, PeerId
from overlay.protocol.udp.connection import UdpCore
from overlay.protocol.udp.handshake import DiallerHandshake
from overlay.transports.base import Connection, ConnectionHandler, Role
from overlay.transports.udp import UdpTransport
from overlay.transports.udp_connection import UdpLink, clock
from overlay.transports.udp_handshakes import udp_profile
from overlay.transports.udp_socket import Local, SocketAddress, UdpSocket


class RawMemoryUdp(MemoryUdp):
    """A socket in memory that takes bursts."""

    def send_burst(
        self, data: bytes, segment: int, remote: SocketAddress, local: Local | None = None
    ) -> OSError | None:
        return self.send([data[at : at + segment] for at in range(0, len(data), segment)], remote, local)


class RawNode:
    """A transport with what it was given and what it accepted."""

    def __init__(
        self, sockets: list[UdpSocket], config: Config | None = None, identity: Identity | None = None
    ) -> None:
        self.identity = identity or Identity.generate()
        self.gate = WatchedGate()
        self.accepted: list[Recorder] = []
        self.accept_error: Exception | None = None
        self._arrived = asyncio.Event()
        self.transport = UdpTransport(self.identity, config or Config(), sockets, self._accept, self.gate)
        self.sockets = sockets
        self.transport.start()

    @property
    def peer_id(self) -> PeerId:
        return self.identity.peer_id

    @property
    def address(self) -> Address:
        return self.transport.addresses[0]

    def _accept(self, connection: Connection) -> ConnectionHandler:
        if self.accept_error is not None:
            raise self.accept_error
        recorder = Recorder()
        recorder.connection = connection
        self.accepted.append(recorder)
        self._arrived.set()
        return recorder

    async def arrival(self, number: int) -> Recorder:
        """The connection that was accepted as the `number`th, from 0."""
        async with asyncio.timeout(30):
            while len(self.accepted) <= number:
                self._arrived.clear()
                await self._arrived.wait()
        return self.accepted[number]

    def is_clean(self) -> bool:
        transport = self.transport
        routes = transport._routes
        return not (routes.ids or routes.resets or transport._drivers or transport._dials or self.gate.pending)


@contextlib.asynccontextmanager
async def raw_node(config: Config | None = None, identity: Identity | None = None) -> AsyncIterator[RawNode]:
    """A transport on a loopback socket."""
    made = RawNode([UdpSocket(bound_socket())], config, identity)
    try:
        yield made
    finally:
        await made.transport.aclose()
        assert made.is_clean()


@contextlib.asynccontextmanager
async def raw_memory_node(config: Config | None = None) -> AsyncIterator[tuple[RawNode, RawMemoryUdp]]:
    """A transport on a socket in memory."""
    udp = RawMemoryUdp()
    made = RawNode([udp], config)
    try:
        yield made, udp
    finally:
        await made.transport.aclose()
        assert made.is_clean()


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

    def __init__(self, udp: RawMemoryUdp, identity: Identity | None = None) -> None:
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


__all__ = ["OURS", "THEIRS", "RawMemoryUdp", "RawNode", "Stranger", "connect", "raw_memory_node", "raw_node"]
