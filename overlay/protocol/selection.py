"""Which of a session's connections to send on, and which of them are surplus. Pure functions of what is known.

Each side chooses for itself where it sends. Only the side with the smaller PeerId retires, so that the two never
retire different ones (Syncthing issue 8626 is what happens otherwise).
"""

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Candidate:
    """What selection knows of a connection."""

    id: int
    kind: tuple[str, int]
    """Transport and address family: two of the same kind are surplus to each other."""
    rank: int
    """Place of its transport in the configuration, 0 first."""
    dialled_by_smaller: bool
    dial: int
    """The dialler's counter."""
    suspect: bool = False
    draining: bool = False


def select(candidates: Iterable[Candidate]) -> int | None:
    """The connection to send on: alive before suspected, then by rank, then the newest; None when there is none."""
    usable = [candidate for candidate in candidates if not candidate.draining]
    if not usable:
        return None
    return min(usable, key=lambda one: (one.suspect, one.rank, -one.id)).id


def surplus(candidates: Iterable[Candidate]) -> list[int]:
    """The connections to retire, so that one of each kind is left.

    Of one dialler the higher dial number stays, else the one that the smaller key dialled: both sides see the same.
    A silent one never stays in front of one that answers.
    """
    keepers: dict[tuple[str, int], Candidate] = {}
    retire = []
    for one in candidates:
        if one.draining:
            continue
        best = keepers.get(one.kind)
        if best is None:
            keepers[one.kind] = one
        elif _preference(one) > _preference(best):
            keepers[one.kind] = one
            retire.append(best.id)
        else:
            retire.append(one.id)
    return retire


def _preference(one: Candidate) -> tuple[bool, bool, int]:
    return (not one.suspect, one.dialled_by_smaller, one.dial)
