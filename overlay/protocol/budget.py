"""Shared bounds on memory: a budget hands out bytes until it is empty."""

from dataclasses import dataclass

from overlay.protocol.frames import MINIMUM_STREAMS, MINIMUM_WINDOW


class Budget:
    """So many bytes, shared by all that reserve from it; a child's bytes count in its parent too."""

    def __init__(self, limit: int, parent: "Budget | None" = None) -> None:
        self.limit = limit
        self.used = 0
        self.parent = parent

    def reserve(self, size: int, *, spare: int = 0) -> bool:
        """Take `size` bytes, all or nothing; whether they were there.

        With `spare`, one part in `spare` has to stay free: growth must not use up what newcomers need.
        """
        limit = self.limit - self.limit // spare if spare else self.limit
        if self.used + size > limit or not (self.parent is None or self.parent.reserve(size, spare=spare)):
            return False
        self.used += size
        return True

    def release(self, size: int) -> None:
        """Give `size` bytes back."""
        self.used -= size
        if self.parent is not None:
            self.parent.release(size)

    def move(self, parent: "Budget") -> bool:
        """Count this budget in another parent from now on, if that has room; whether it had."""
        if parent is self.parent:
            return True
        if not parent.reserve(self.used):
            return False
        if self.parent is not None:
            self.parent.release(self.used)
        self.parent = parent
        return True


@dataclass(frozen=True, slots=True)
class SessionLimits:
    """Bounds of one session, in bytes and streams."""

    streams: int = MINIMUM_STREAMS
    """How many streams the peer may open at first, and at any time after it has closed as many."""
    window: int = MINIMUM_WINDOW
    """How far each stream may be filled at first."""
    live_streams: int = 1024
    stream_window: int = 4 * 1024 * 1024
    stream_send_buffer: int = 1024 * 1024
    session_send_buffer: int = 32 * 1024 * 1024
