"""Handlers: what an endpoint runs for the streams that its peers open."""

import logging
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

from overlay.errors import OverlayError
from overlay.session import Session
from overlay.streams import Stream

logger = logging.getLogger("overlay")

Handler = Callable[[Stream], Awaitable[None]]


class Handlers:
    """By the name of the protocol that the stream was opened for.

    Args:
        limit: so many run for one session at once.
        spawn: runs a task that is cancelled and awaited when the endpoint closes.
        is_open: whether the endpoint still is.
    """

    def __init__(
        self, limit: int, spawn: Callable[[Coroutine[Any, Any, None], str], object], is_open: Callable[[], bool]
    ) -> None:
        self._limit = limit
        self._spawn = spawn
        self._is_open = is_open
        self._handlers: dict[str, Handler] = {}

    def set(self, protocol: str, handler: Handler) -> None:
        """Serve streams for that protocol from now on."""
        self._handlers[protocol] = handler

    def remove(self, protocol: str) -> None:
        """Serve no new streams for that protocol; those that are served, or wait for it, go on."""
        self._handlers.pop(protocol, None)

    def __contains__(self, protocol: str) -> bool:
        return protocol in self._handlers

    def stream_opened(self, stream: Stream) -> None:
        """A peer has opened a stream: serve it, when fewer than `limit` handlers of its session run.

        A peer that resets its streams may open others at once, while their handlers still run. So the others wait; of
        those that wait, the live ones are bounded by the peer's credit, and the dead ones are dropped.
        """
        handler = self._handlers.get(stream.protocol)
        if handler is None:
            stream._refuse()
            return
        session = stream.session
        session._unserved.append((handler, stream))
        if len(session._unserved) > 2 * self._limit:
            session._unserved = deque(one for one in session._unserved if not one[1]._core.removed)
        self._serve_next(session)

    def _serve_next(self, session: Session) -> None:
        while self._is_open() and session._unserved and session._handlers < self._limit:
            handler, stream = session._unserved.popleft()
            session._handlers += 1
            self._spawn(self._serve(handler, stream), f"{stream.protocol} from {session.peer_id.short}")

    async def _serve(self, handler: Handler, stream: Stream) -> None:
        try:
            async with stream:
                await handler(stream)
        except (OverlayError, TimeoutError) as error:
            logger.debug("%r ended: %s", stream, error)
        except Exception:
            logger.exception("the handler of %r failed; the stream was reset", stream)
        finally:
            stream.session._handlers -= 1
            self._serve_next(stream.session)
