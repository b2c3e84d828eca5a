"""By what the connection of a raw UDP packet is found; one table for all connections of a transport."""

from collections.abc import Hashable, Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from overlay.transports.udp_driver import Driver

ResetKey = tuple[Hashable, bytes]


class Routes:
    """The table.

    Attributes:
        ids: by our connection ids, which DATA, COOKIE and HANDSHAKE packets carry.
        resets: by the peer's address and its connection id: all that a RESET tells.
    """

    def __init__(self) -> None:
        self.ids: dict[bytes, Driver] = {}
        self.resets: dict[ResetKey, Driver] = {}

    def add(self, connection_ids: Iterable[bytes], driver: "Driver") -> None:
        """Packets for these are its."""
        for connection_id in connection_ids:
            self.ids[connection_id] = driver

    def remove(self, connection_ids: Iterable[bytes]) -> None:
        """Packets for these are nobody's any more."""
        for connection_id in connection_ids:
            self.ids.pop(connection_id, None)

    def add_reset(self, key: ResetKey, driver: "Driver") -> None:
        """A RESET with these is for it, unless it is another one's already.

        A peer that chooses the id of another connection at its own address harms nobody but itself.
        """
        self.resets.setdefault(key, driver)

    def remove_reset(self, key: ResetKey, driver: "Driver") -> None:
        """Not any more."""
        if self.resets.get(key) is driver:
            del self.resets[key]
