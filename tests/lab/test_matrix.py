"""Every scenario of the matrix, with real processes; the table of all stands at the end of the run."""

import pytest

from lab import report
from lab.matrix import run
from lab.scenarios import Scenario, scenarios

pytestmark = pytest.mark.lab


@pytest.mark.timeout(240)
@pytest.mark.parametrize("scenario", scenarios(), ids=lambda scenario: scenario.title)
def test_scenario(scenario: Scenario) -> None:
    """It connects or fails, as expected, over the expected transport, for a reason that it tells; no byte is lost."""
    row = run(scenario)
    report.rows.append(row)
    assert not row.faults, "\n".join([*row.faults, *map(str, row.outcome.paths)])
