"""Frames that come back to the router that sent them: what could not be delivered is never lost without a word."""

import asyncio
import logging
from collections import deque
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Final

from overlay.identity import PeerId
from overlay.protocol.driver.outbox import Reason

logger = logging.getLogger("overlay")

FRAMES: Final = 65_536
SIZE: Final = 64 * 1024 * 1024
"""Bytes. What comes back waits until the router fetches it: eight full queues of lost neighbours at the default sizes.
The frames of a flood that come back from many neighbours are the same object, but count for each."""


@dataclass(frozen=True, slots=True)
class Undelivered:
    """A frame that comes back."""

    frame: bytes
    peer_id: PeerId
    """To whom it was to go."""
    reason: Reason
    maybe_delivered: bool
    """Some of it has left, so the peer may have it; False: the peer does not have it, and will not get it."""


class Returns(AsyncIterator[Undelivered]):
    """What has come back and nobody has fetched yet, the oldest first: `async for lost in driver.undelivered()`.

    All who iterate share one queue: each frame comes to one of them. When too much waits, the oldest is dropped, and
    counted. Cancellation: `anext` loses nothing.
    """

    def __init__(self) -> None:
        self.dropped = 0
        """How many were dropped because nobody fetched them."""
        self._waiting: deque[Undelivered] = deque()
        self._size = 0
        self._news = asyncio.Event()
        self._ended = False

    def __len__(self) -> int:
        return len(self._waiting)

    def add(self, lost: Undelivered) -> None:
        """One more."""
        self._waiting.append(lost)
        self._size += len(lost.frame)
        while len(self._waiting) > FRAMES or self._size > SIZE:
            if not self.dropped:
                logger.warning("undelivered frames are not fetched: the oldest are dropped from now on")
            self.dropped += 1
            self._size -= len(self._waiting.popleft().frame)
        self._news.set()

    def end(self) -> None:
        """Nothing comes any more; what waits can still be fetched."""
        self._ended = True
        self._news.set()

    async def __anext__(self) -> Undelivered:
        while not self._waiting:
            if self._ended:
                raise StopAsyncIteration
            self._news.clear()
            await self._news.wait()
        lost = self._waiting.popleft()
        self._size -= len(lost.frame)
        return lost
