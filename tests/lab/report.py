"""What the lab has seen, for the end of the run: the table of the scenarios, and how exact its tools are."""

from collections.abc import Iterable

from lab.matrix import COLUMNS, Row

rows: list[Row] = []
"""Of this run, in their order."""

measured: list[str] = []
"""How exact the user-space line is, line by line."""


def table(rows: Iterable[Row]) -> list[str]:
    """The lines of a table: plain text, as it is read in logs."""
    cells = [COLUMNS, *(row.cells for row in rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(COLUMNS))]
    first, *others = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in cells)
    return [line.rstrip() for line in (first, "  ".join("-" * width for width in widths), *others)]
