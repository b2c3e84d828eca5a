"""`Netmod`: a `Driver` in the shape of the interface of the first drivers, for routers that were written for that.

That interface ("netmod" in qaul's and irdest's routers, 2020 to 2024) names a neighbour by a small number that the
driver makes up, has no word for neighbours that come and go, and reports a frame that is lost as sent. Here the number
is the key itself, which is never given to somebody else.

| their call                           | ours                                                                        |
|--------------------------------------|-----------------------------------------------------------------------------|
| `send(frame, Single(id), _)`         | `await driver.send(frame, peer_id)`                                         |
| `send(frame, Flood, exclude)`        | `await driver.send(frame, FLOOD, exclude=peer_id)`                          |
| `next() -> (frame, Single(id))`      | `frame, peer_id, path = await driver.next()`                                |
| `size_hint()`, which always was 0    | `driver.size_hint`, and for each neighbour `driver.mtu(peer_id)`            |
| `start_peering(address) -> id`       | `driver.start_peering(ticket) -> PeerId`: a key and where it may be         |
| `metrics(id)`                        | `driver.metrics(peer_id)`                                                   |
| the error of `send`                  | at once the same, with the frame; later `driver.undelivered()`              |
| none                                 | `driver.stop_peering(peer_id)`, `driver.events()`, `driver.status()`        |
"""

from dataclasses import dataclass

from overlay.identity import PeerId
from overlay.metrics import Metrics
from overlay.router import Driver, Flood


@dataclass(frozen=True, slots=True)
class Single:
    """One neighbour, as the target of a frame, or as the one that it came from."""

    id: PeerId


Target = Single | Flood


class Netmod:
    """The five calls, and nothing else.

    Args:
        driver: open, and open for as long as this is used. Somebody should read its `undelivered()`.
    """

    def __init__(self, driver: Driver) -> None:
        self._driver = driver

    async def send(self, frame: bytes, target: Target, exclude: PeerId | None = None) -> None:
        """Queue a frame; `exclude` is left out of a flood. See `Driver.send`.

        Raises:
            FrameTooLong, NotANeighbour: with the frame. DriverClosed: it is not open.
        """
        to = target.id if isinstance(target, Single) else target
        await self._driver.send(frame, to, exclude=exclude)

    async def next(self) -> tuple[bytes, Single]:
        """The next frame, and from whom; see `Driver.next`. Cancellation-safe.

        Raises:
            DriverClosed: nothing comes any more.
        """
        frame, peer_id, _ = await self._driver.next()
        return frame, Single(peer_id)

    def size_hint(self) -> int:
        """Bytes of a frame that goes in one datagram to every neighbour that has a path; 0 without one."""
        return self._driver.size_hint

    def start_peering(self, address: str) -> PeerId:
        """Stay connected with a peer; see `Driver.start_peering`.

        Args:
            address: its ticket, `overlay:KEY@HOST:PORT`.

        Raises:
            AddressError: it is none. SelfDial: it is our own.
        """
        return self._driver.start_peering(address)

    def metrics(self, id: PeerId) -> Metrics:  # noqa: A002 - the name that it has there
        """How good the link to a neighbour is.

        Raises:
            NotANeighbour: there is no session with it.
        """
        return self._driver.metrics(id)
