"""The connections of one peer as its user sees them: paths, where they come from, and what they have carried."""

import time
from collections.abc import Iterable, Mapping
from typing import Final

from overlay.events import Origin, Path
from overlay.protocol.peer import PeerCore
from overlay.transports.base import Connection, Role

SNAPSHOT: Final = 0.1
"""Seconds for which `Paths.received_on` gives the same answer: making one asks the kernel four times with `tcp`."""


class Paths:
    """Makes `Path`s.

    Args:
        core: knows which connections carry the session, and which of them is sent on.

    Attributes:
        origins: of each connection that carries the session, by its number.
        heard_on: what stream bytes or datagrams came over last.
    """

    def __init__(self, core: PeerCore) -> None:
        self.origins: dict[int, Origin] = {}
        self.heard_on: Connection | None = None
        self._core = core
        self._snapshot: tuple[Connection, float, Path] | None = None
        self._ended: dict[str, tuple[int, int]] = {}
        """What connections that have ended had carried, by transport: bytes sent and received."""

    def path(self, connection: Connection) -> Path:
        """A snapshot of a connection that carries the session."""
        return Path(
            transport=connection.transport,
            remote=connection.remote,
            selected=connection.id == self._core.selected,
            suspect=self._core.is_suspect(connection.id),
            dialled=connection.role is Role.DIALER,
            direction=connection.direction,
            rtt=connection.rtt,
            mtu=connection.mtu,
            loss=connection.loss,
            congestion_window=connection.congestion_window,
            bytes_sent=connection.bytes_sent,
            bytes_received=connection.bytes_received,
            origin=self.origins[connection.id],
        )

    def all(self, connections: Mapping[int, Connection]) -> list[Path]:
        """A snapshot of all that carry the session, the selected one first."""
        attached = [connections[one] for one in self._core.attached if one in self.origins]
        return sorted(map(self.path, attached), key=lambda path: not path.selected)

    @property
    def received_on(self) -> Path | None:
        """The path of `heard_on`, as it was at most `SNAPSHOT` ago; None when there is none, or it is gone."""
        connection = self.heard_on
        if connection is None or connection.id not in self.origins:
            return None
        now = time.monotonic()
        if self._snapshot is None or self._snapshot[0] is not connection or now >= self._snapshot[1]:
            self._snapshot = connection, now + SNAPSHOT, self.path(connection)
        return self._snapshot[2]

    def traffic(self, connections: Iterable[Connection]) -> dict[str, tuple[int, int]]:
        """Bytes sent and received by transport, over these and all that have ended."""
        total = dict(self._ended)
        for connection in connections:
            _count(connection, total)
        return total

    def ended(self, connection: Connection) -> None:
        """A connection is gone; what it has carried stays counted."""
        _count(connection, self._ended)
        if self.heard_on is connection:
            self.heard_on = self._snapshot = None


def _count(connection: Connection, traffic: dict[str, tuple[int, int]]) -> None:
    """Add what a connection has carried to the sums of its transport."""
    sent, received = traffic.get(connection.transport, (0, 0))
    traffic[connection.transport] = (sent + connection.bytes_sent, received + connection.bytes_received)
