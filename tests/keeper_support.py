"""A network under a test's control: what becomes of the dials of one endpoint."""

import asyncio
import errno
from collections.abc import Callable, Coroutine
from typing import Any, Final

from overlay import Address, Endpoint, PeerId, Ticket
from overlay.protocol.peer_table import PeerTable
from overlay.transports.base import Connection

HOLE: Final = Address("memory", "hole.memory", 1)
"""An address that never answers."""
NOBODY: Final = Address("memory", "nobody.memory", 1)
"""An address that refuses."""


class Line:
    """The memory transport's `dial` of one endpoint.

    Attributes:
        mode: `works`, `refuses`, `hangs` until `go_on`, or `dies` as soon as there is a connection.
        hanging: what hangs.
        dialled: every dial, in order.
    """

    def __init__(self, endpoint: Endpoint, mode: str = "works") -> None:
        self.mode = mode
        self.hanging: list[asyncio.Future[None]] = []
        self.dialled: list[Address] = []
        transport = endpoint._transports["memory"]
        self._dial: Callable[..., Coroutine[Any, Any, Connection]] = transport.dial
        vars(transport)["dial"] = self.dial

    async def dial(self, address: Address, *arguments: Any) -> Connection:
        self.dialled.append(address)
        if address == HOLE or self.mode == "hangs":
            future = asyncio.get_running_loop().create_future()
            self.hanging.append(future)
            try:
                await future
            finally:
                self.hanging.remove(future)
        if self.mode == "refuses":
            raise ConnectionRefusedError(errno.ECONNREFUSED, "nobody listens")
        connection = await self._dial(address, *arguments)
        if self.mode == "dies":
            connection.abort()
        return connection

    def go_on(self) -> None:
        """What hangs goes on."""
        for future in self.hanging:
            if not future.done():
                future.set_result(None)


def with_hole(ticket: Ticket) -> Ticket:
    """That ticket with an address that never answers behind the others."""
    return Ticket(ticket.peer_id, (*ticket.addresses, HOLE))


def table(endpoint: Endpoint) -> PeerTable:
    """What the endpoint's keeper decides by."""
    return endpoint.keeper._table


def means_the_same(endpoint: Endpoint, peer_id: PeerId) -> bool:
    """Whether table and dialler agree on the dial that is on: otherwise a peer is stuck, or dialled twice."""
    record = table(endpoint)._records.get(peer_id.raw)
    peer = endpoint._peers.get(peer_id)
    asked = peer is not None and peer.dialler._asked
    under_way = peer is not None and peer.dialler._task is not None
    return asked == (record is not None and record.dialling) and (under_way or not asked)
