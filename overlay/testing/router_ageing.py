"""A bounded memory of the example router: what it has seen, and what it keeps for later. Pure."""

from collections.abc import Hashable
from typing import Generic, TypeVar

Key = TypeVar("Key", bound=Hashable)
Value = TypeVar("Value")


class Ageing(Generic[Key, Value]):
    """A dictionary in the order of arrival that forgets: the oldest goes when there are too many, or when it is time.

    Args:
        seconds: for which an entry stays.
        count: of entries.
        size: sum of the sizes that were given with them; what alone is larger does not stay.
    """

    def __init__(self, *, seconds: float, count: int, size: int) -> None:
        self._limits = seconds, count, size
        self._entries: dict[Key, tuple[float, int, Value]] = {}
        self._size = 0

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, key: object) -> bool:
        return key in self._entries

    def add(self, key: Key, value: Value, size: int, now: float) -> int:
        """Remember it, or let it stay as it is; how many had to go for it."""
        if key in self._entries:
            return 0
        self._entries[key] = now, size, value
        self._size += size
        before = len(self._entries)
        while len(self._entries) > self._limits[1] or self._size > self._limits[2]:
            self._forget_oldest()
        return before - len(self._entries)

    def replace(self, key: Key, value: Value) -> None:
        """Another value for what is there; it gets no younger by that."""
        since, size, _ = self._entries[key]
        self._entries[key] = since, size, value

    def get(self, key: Key) -> tuple[float, Value] | None:
        """When it was added, and its value."""
        entry = self._entries.get(key)
        return None if entry is None else (entry[0], entry[2])

    def expire(self, now: float) -> int:
        """Forget what is too old; how many those were."""
        before = len(self._entries)
        while self._entries and next(iter(self._entries.values()))[0] < now - self._limits[0]:
            self._forget_oldest()
        return before - len(self._entries)

    def values(self) -> list[Value]:
        """The oldest first."""
        return [value for _, _, value in self._entries.values()]

    def take_all(self) -> list[tuple[Key, Value]]:
        """The same with their keys; nothing is left."""
        taken = [(key, value) for key, (_, _, value) in self._entries.items()]
        self._entries.clear()
        self._size = 0
        return taken

    def _forget_oldest(self) -> None:
        _, size, _ = self._entries.pop(next(iter(self._entries)))
        self._size -= size
