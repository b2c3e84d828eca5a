"""Running scenarios: builds the network, makes the transfer, and holds what came against what was expected."""

import tempfile
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

from lab.network import Network
from lab.scenarios import Scenario
from lab.topology import Site
from lab.transfer import Outcome, transfer

COLUMNS = ("scenario", "transport", "connected after", "longest stall", "goodput")


@dataclass(frozen=True, slots=True)
class Row:
    """A scenario and what came of it.

    Attributes:
        scenario: what was tried.
        outcome: what was seen.
        faults: how that differs from what is expected, each in a sentence; empty when all is well.
    """

    scenario: Scenario
    outcome: Outcome
    faults: tuple[str, ...]

    @property
    def cells(self) -> tuple[str, ...]:
        """For the table with these COLUMNS."""
        outcome = self.outcome
        if not outcome.connected:
            return self.scenario.title, "none" if not self.faults else "FAILED", "", "", ""
        transports = [transport for transport, _ in groupby(path["transport"] for path in outcome.paths)]
        return (
            self.scenario.title,
            " -> ".join(transports) + (" FAILED" if self.faults else ""),
            f"{outcome.connect_ms or 0:.0f} ms",
            f"{outcome.stall_ms or 0:.0f} ms",
            f"{(outcome.goodput or 0) / 2**20:.2f} MiB/s",
        )

    @property
    def document(self) -> dict[str, object]:
        """The same for programs, with the reason for each path."""
        return {
            "scenario": self.scenario.name,
            "dialler": self.scenario.dialler,
            "ok": not self.faults,
            "faults": list(self.faults),
            "connected": self.outcome.connected,
            "connect_ms": self.outcome.connect_ms,
            "stall_ms": self.outcome.stall_ms,
            "bytes_per_second": self.outcome.goodput,
            "bytes_by_transport": self.outcome.carried,
            "paths": self.outcome.paths,
            "error": self.outcome.error,
            "attempts": self.outcome.attempts,
        }


def run(scenario: Scenario) -> Row:
    """Run one scenario on a network of its own, which is gone when this returns.

    Raises:
        LabError: the network could not be built, or a process did something that no network can make it do.
    """
    with tempfile.TemporaryDirectory(prefix="overlay-lab-") as directory, Network(scenario.plan.families) as network:
        site = Site(network, scenario.plan)
        scenario.wrong(site)
        outcome = transfer(
            site,
            Path(directory),
            dialler=scenario.dialler,
            size=scenario.size,
            rate=scenario.rate,
            port=scenario.port,
            steps=scenario.steps,
            timeout=scenario.timeout,
            seconds=scenario.seconds,
        )
    return Row(scenario, outcome, tuple(_faults(scenario, outcome)))


def _faults(scenario: Scenario, outcome: Outcome) -> list[str]:
    if outcome.connected != bool(scenario.first):
        expected = " or ".join(scenario.first) or "no connection"
        return [f"expected {expected}, and it was: {outcome.error or outcome.paths}"]
    tried = outcome.paths[0]["tried"] if outcome.connected else outcome.attempts
    faults = [
        f"it does not say that {beginning} was tried in vain: {tried}"
        for beginning in scenario.tried
        if not any(attempt.startswith(beginning) for attempt in tried)
    ]
    if not outcome.connected:
        return faults
    if outcome.paths[0]["transport"] not in scenario.first:
        faults.append(f"the first path is not {' or '.join(scenario.first)}: {outcome.paths[0]['why']}")
    if not all(path["why"] for path in outcome.paths):
        faults.append("a path does not say why it is this one")
    used = iter(path["transport"] for path in outcome.paths)
    if not all(transport in used for transport in scenario.then):
        faults.append(f"it was not {' -> '.join(scenario.then)}")
    # Frames alone are far less than a hundredth of the file.
    idle = [name for name in scenario.then if outcome.carried.get(name, 0) < scenario.size / 100]
    if idle:
        faults.append(f"{', '.join(idle)} carried nothing of the file: {outcome.carried}")
    if not outcome.intact:
        faults.append("the file that arrived is not the one that was sent")
    return faults
