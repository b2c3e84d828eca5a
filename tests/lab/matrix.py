"""Running scenarios: builds the network, makes the transfer, and holds what came against what was expected."""

import errno
import re
from dataclasses import dataclass
from itertools import groupby
from typing import NamedTuple

from lab.kernel import LabError
from lab.leftovers import temporary_directory
from lab.network import Network
from lab.scenarios import Scenario
from lab.topology import Site
from lab.transfer import Outcome, transfer

COLUMNS = ("scenario", "transport", "connected after", "longest stall", "goodput")

ATTEMPT = re.compile(r"(?P<address>\S+): \w+ failed after \d+ ms: (?P<cause>.*)")
PREFERENCE = ("quic", "udp", "tcp")
"""The order in which the race tries them."""
SILENCE = "no answer in time"
TOO_LONG = errno.EMSGSIZE
NETWORK = frozenset(
    {
        errno.EADDRNOTAVAIL,
        errno.ECONNREFUSED,
        errno.ECONNRESET,
        errno.EHOSTUNREACH,
        errno.EMSGSIZE,
        errno.ENETUNREACH,
        errno.ETIMEDOUT,
    }
)
"""What a kernel says of a network that does not let something through; everything else is a fault of ours.

EADDRNOTAVAIL: there is no address of that family to come from. EMSGSIZE: it is more than the interface's MTU.
"""


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
    with temporary_directory() as directory, Network(scenario.plan.families) as network:
        site = Site(network, scenario.plan)
        scenario.wrong(site)
        outcome = transfer(
            site,
            directory,
            dialler=scenario.dialler,
            size=scenario.size,
            rate=scenario.rate,
            port=scenario.port,
            steps=scenario.steps,
            timeout=scenario.timeout,
            seconds=scenario.seconds,
        )
    return Row(scenario, outcome, tuple(faults_of(scenario, outcome)))


class Attempt(NamedTuple):
    """What was tried in vain, from the sender's words.

    Attributes:
        address: with its transport.
        cause: in words.
        number: the kernel's for it, `errno`; None if it has none.
    """

    address: str
    cause: str
    number: int | None

    @classmethod
    def parse(cls, text: str) -> "Attempt":
        """Read one line."""
        if (match := ATTEMPT.fullmatch(text)) is None:
            raise LabError(f"the sender reports an attempt in words that matrix.py does not know: {text!r}")
        number = re.match(r"\[Errno (\d+)\]", match["cause"])
        return cls(match["address"], match["cause"], int(number[1]) if number else None)


def faults_of(scenario: Scenario, outcome: Outcome) -> list[str]:
    if outcome.connected != bool(scenario.first):
        expected = " or ".join(scenario.first) or "no connection"
        return [f"expected {expected}, and it was: {outcome.error or outcome.paths} {outcome.attempts}"]
    tried = [*map(Attempt.parse, outcome.paths[0]["tried"] if outcome.connected else outcome.attempts)]
    later = [Attempt.parse(text) for path in outcome.paths[1:] for text in path["tried"]]
    faults = [
        f"it does not say that {beginning} was tried in vain: {tried}"
        for beginning in scenario.tried
        if not any(attempt.address.startswith(beginning) for attempt in tried)
    ]
    faults += [
        f"no network makes {attempt.address} fail so: {attempt.cause}"
        for attempt in [*tried, *later]
        if attempt.cause != SILENCE and attempt.number not in NETWORK
    ]
    if outcome.connected:
        faults += _faults_of_the_first_path(scenario, outcome, tried)
        faults += _faults_of_the_transfer(scenario, outcome)
    return faults


def _faults_of_the_first_path(scenario: Scenario, outcome: Outcome, tried: list[Attempt]) -> list[str]:
    first = outcome.paths[0]
    faults = []
    if first["transport"] not in scenario.first:
        faults.append(f"the first path is not {' or '.join(scenario.first)}: {first['why']}")
    if first["purpose"] != "connect":
        faults.append(f"the first path was not made to connect: {first['why']}")
    if len(scenario.first) == 1:
        before = PREFERENCE[: PREFERENCE.index(scenario.first[0])]
        at = first["remote"].partition("://")[2]
        wanted = [attempt for attempt in tried if attempt.address.partition("://")[0] in before]
        if before and sorted(attempt.address for attempt in wanted) != sorted(f"{name}://{at}" for name in before):
            faults.append(f"{' and '.join(before)} were not tried once, at the address that answers: {tried}")
        if any(attempt.cause != SILENCE and attempt.number != TOO_LONG for attempt in wanted):
            faults.append(f"what is preferred was neither waiting for an answer nor too long for the MTU: {wanted}")
        if any(attempt.address == first["remote"] for attempt in tried):
            faults.append(f"the fallback itself has failed before: {tried}")
    return faults


def _faults_of_the_transfer(scenario: Scenario, outcome: Outcome) -> list[str]:
    faults = []
    if not all(path["why"] for path in outcome.paths):
        faults.append("a path does not say why it is this one")
    used = iter(path["transport"] for path in outcome.paths)
    if not all(transport in used for transport in scenario.then):
        faults.append(f"it was not {' -> '.join(scenario.then)}")
    # Frames alone are far less than a hundredth of the file.
    idle = [name for name in scenario.then if outcome.carried.get(name, 0) < scenario.size / 100]
    if idle:
        faults.append(f"{', '.join(idle)} carried nothing of the file: {outcome.carried}")
    if scenario.purposes and not any(path["purpose"] in scenario.purposes for path in outcome.paths[1:]):
        faults.append(f"no later path is there as {' or '.join(scenario.purposes)}")
    if (outcome.stall_ms or 0) < 1000 * scenario.stall_at_least:
        faults.append(f"it has not stalled for {scenario.stall_at_least:g} s, but for {outcome.stall_ms} ms")
    if not outcome.intact:
        faults.append("the file that arrived is not the one that was sent")
    return faults
