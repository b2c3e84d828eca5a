"""One line of the result of `frames.py`."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any, Literal


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """A figure of ours, and perhaps what it is beside."""

    name: str
    transport: str
    unit: str
    ours: Sequence[float]
    """Of each run."""
    rival: str | None = None
    """None: nothing that a ratio to it would say anything about."""
    theirs: Sequence[float] = ()
    samples: int | None = None
    """How many delays each run's figure is made of; None where it is of no samples."""
    required: str | None = None
    met: bool | None = None

    @property
    def better(self) -> Literal["more", "less"]:
        """More of a rate, less of everything else."""
        return "more" if self.unit.endswith("/s") else "less"

    @property
    def ratio(self) -> float | None:
        """Ours to the rival's, both medians; None when there is nothing to divide by."""
        theirs = median(self.theirs) if self.theirs else 0.0
        return median(self.ours) / theirs if theirs else None

    def document(self) -> dict[str, Any]:
        """For `--json`."""
        rival = None
        if self.rival is not None:
            rival = {"name": self.rival, "median": median(self.theirs), "runs": list(self.theirs)}
        return {
            "name": self.name,
            "transport": self.transport,
            "unit": self.unit,
            "better": self.better,
            "ours": {"median": median(self.ours), "runs": list(self.ours)},
            "rival": rival,
            "ratio": self.ratio,
            "samples": self.samples,
            "required": self.required,
            "met": self.met,
        }
