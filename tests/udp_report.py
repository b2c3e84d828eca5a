"""What raw UDP has reached on simulated networks, for the end of the run: the tests have checked it."""

from collections.abc import Iterable
from dataclasses import dataclass

_MEASURED = ("goodput", "share", "time", "packets", "lost")
COLUMNS = ("scenario", "rate", *(f"{name} {what}" for name in ("BBR", "CUBIC") for what in _MEASURED))


@dataclass(frozen=True, slots=True)
class Row:
    """A scenario under one controller."""

    scenario: str
    controller: str
    rate: float
    """Of the slowest link, in bytes per second, as all rates here."""
    goodput: float
    seconds: float
    """Simulated."""
    packets: int
    """Of both ends."""
    lost: int
    """Packets that the sender has declared lost."""

    @property
    def cells(self) -> tuple[str, ...]:
        """The columns of the controller."""
        return (
            f"{self.goodput / 1e6:.3f} MB/s",
            f"{self.goodput / self.rate:.0%}",
            f"{self.seconds:.2f} s",
            str(self.packets),
            str(self.lost),
        )


rows: list[Row] = []
"""Of this run, in their order."""
shares: list[str] = []
"""How flows have shared a bottleneck, line by line."""


def table(rows: Iterable[Row]) -> list[str]:
    """The lines of a table, one for each scenario: plain text, as it is read in logs."""
    scenarios: dict[str, dict[str, Row]] = {}
    for row in rows:
        scenarios.setdefault(row.scenario, {})[row.controller] = row
    cells = [COLUMNS]
    for name, found in scenarios.items():
        rate = next(iter(found.values())).rate
        both = [cell for key in ("bbr", "cubic") for cell in (found[key].cells if key in found else ("",) * 5)]
        cells.append((name, f"{rate / 1e6:.3f} MB/s", *both))
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in cells]
