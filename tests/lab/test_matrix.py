"""Every scenario of the matrix, with real processes; the table of all stands at the end of the run."""

from dataclasses import replace
from typing import Any

import pytest

from lab import LabError, report
from lab.matrix import faults_of, run
from lab.scenarios import Scenario, scenarios
from lab.transfer import Outcome

pytestmark = pytest.mark.lab

SILENT = "quic://198.18.3.2:9330: connect failed after 250 ms: no answer in time"
TOO_LONG = "quic://198.18.3.2:9330: connect failed after 2 ms: [Errno 90] Message too long"
RAW = SILENT.replace("quic", "udp")
OURS = "tcp://198.18.3.2:9330: handshake failed after 3 ms: 'NoneType' object is not callable"


@pytest.mark.timeout(240)
@pytest.mark.parametrize("scenario", scenarios(), ids=lambda scenario: scenario.title)
def test_scenario(scenario: Scenario) -> None:
    """It connects or fails, as expected, over the expected transport, for a reason that it tells; no byte is lost."""
    row = run(scenario)
    report.rows.append(row)
    assert not row.faults, "\n".join([*row.faults, *map(str, row.outcome.paths)])


def path(transport: str, purpose: str, *tried: str) -> dict[str, Any]:
    remote = f"{transport}://198.18.3.2:9330"
    return {"transport": transport, "remote": remote, "purpose": purpose, "tried": list(tried), "why": "a reason"}


def outcome(*paths: dict[str, Any], stall_ms: float = 0.0) -> Outcome:
    carried = {path["transport"]: 8 * 2**20 for path in paths}
    return Outcome(connected=True, paths=list(paths), carried=carried, stall_ms=stall_ms, intact=True)


def unconnected(*attempts: str) -> Outcome:
    return Outcome(connected=False, error="cannot reach somebody", attempts=list(attempts))


QUIC = Scenario(name="plain")
UDP = Scenario(name="no QUIC", first=("udp",))
TCP = Scenario(name="no UDP", first=("tcp",))
NOBODY = Scenario(name="nobody", first=(), tried=("quic://",))
CHANGED = Scenario(name="changed", purposes=("replace", "inbound"), stall_at_least=15.0)
REPLACED = (path("quic", "connect"), path("quic", "replace"))


@pytest.mark.parametrize(
    ("scenario", "seen"),
    [
        (QUIC, outcome(path("quic", "connect"))),
        (UDP, outcome(path("udp", "connect", SILENT))),
        (UDP, outcome(path("udp", "connect", TOO_LONG, SILENT.replace("quic", "tcp")))),
        (TCP, outcome(path("tcp", "connect", SILENT, RAW))),
        (NOBODY, unconnected(SILENT)),
        (CHANGED, outcome(*REPLACED, stall_ms=15_000)),
    ],
)
def test_what_is_expected_has_no_fault(scenario: Scenario, seen: Outcome) -> None:
    assert faults_of(scenario, seen) == []


@pytest.mark.parametrize(
    ("scenario", "seen", "fault"),
    [
        (QUIC, outcome(path("tcp", "connect", SILENT)), "the first path is not quic"),
        (QUIC, outcome(path("quic", "replace")), "the first path was not made to connect"),
        (QUIC, outcome(path("quic", "connect", OURS)), "no network makes tcp://198.18.3.2:9330 fail so"),
        (QUIC, outcome(path("quic", "connect"), path("quic", "replace", OURS)), "no network makes"),
        (QUIC, replace(outcome(path("quic", "connect")), intact=False), "is not the one that was sent"),
        (QUIC, unconnected(SILENT), "expected quic, and it was: cannot reach"),
        (UDP, outcome(path("udp", "connect")), "quic were not tried once"),
        (TCP, outcome(path("tcp", "connect", SILENT)), "quic and udp were not tried once"),
        (TCP, outcome(path("tcp", "connect", SILENT, SILENT, RAW)), "quic and udp were not tried once"),
        (UDP, outcome(path("udp", "connect", SILENT.replace("9330", "9331"))), "quic were not tried once"),
        (UDP, outcome(path("udp", "connect", SILENT.replace("no answer in time", "[Errno 111]"))), "neither waiting"),
        (UDP, outcome(path("udp", "connect", SILENT, RAW)), "the fallback itself has failed"),
        (NOBODY, unconnected(SILENT, OURS), "no network makes tcp://198.18.3.2:9330 fail so"),
        (NOBODY, unconnected(SILENT.replace("quic", "tcp")), "quic:// was tried in vain"),
        (NOBODY, outcome(path("quic", "connect")), "expected no connection"),
        (CHANGED, outcome(path("quic", "connect"), stall_ms=15_000), "no later path is there as replace or inbound"),
        (CHANGED, outcome(*REPLACED, stall_ms=14_999), "it has not stalled for 15 s"),
    ],
)
def test_what_is_not_expected_is_a_fault(scenario: Scenario, seen: Outcome, fault: str) -> None:
    """One sentence for each; a network's own causes are none."""
    found = faults_of(scenario, seen)
    assert [fault in one for one in found] == [True]


def test_words_that_the_matrix_does_not_know_are_an_error() -> None:
    with pytest.raises(LabError, match=r"words that matrix\.py does not know: 'it rained'"):
        faults_of(NOBODY, unconnected("it rained"))
