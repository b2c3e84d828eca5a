"""What all tests share: the loops on which they run, what they need of the machine, and what they report."""

import asyncio
import functools
import os
import sys
from collections import Counter
from collections.abc import Callable, Mapping

import pytest
import uvloop

LOOPS: Mapping[str, Callable[[], asyncio.AbstractEventLoop]] = {
    "asyncio": asyncio.new_event_loop,
    "uvloop": uvloop.new_event_loop,
}
BOTH = {"test_conformance"}
"""Modules whose tests run on each loop; the others on asyncio's own."""

LEFT_OUT = pytest.StashKey[list[str]]()
"""Lines for the end of the run: what was left out, and why."""


def pytest_asyncio_loop_factories(
    config: pytest.Config, item: pytest.Item
) -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    if item.path.stem in BOTH:
        return LOOPS
    return {"asyncio": LOOPS["asyncio"]}


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what this machine cannot run, after `-m` and `-k` have chosen; in CI that is an error."""
    lacking = {item: reasons for item in items if (reasons := _missing(*_needs(item)))}
    if not lacking:
        return
    counts = Counter(reason for reasons in lacking.values() for reason in reasons)
    lines = [f"{len(lacking)} of {len(items)} tests cannot run on this machine"]
    lines += [f"{count} of them: {reason}" for reason, count in counts.items()]
    if os.environ.get("CI") == "true":
        raise pytest.UsageError("in CI nothing may be left out, and " + "\n".join(lines))
    config.stash[LEFT_OUT] = lines
    config.hook.pytest_deselected(items=list(lacking))
    items[:] = [item for item in items if item not in lacking]


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Print what was left out, and what was seen in networks, real and simulated; the tests have checked it."""
    sections = {"left out": config.stash.get(LEFT_OUT, [])}
    # Where no such test was collected, they may not even be importable.
    if "lab.report" in sys.modules:
        from lab import report

        sections["networks"] = report.table(report.rows) if report.rows else []
        sections["user-space line: asked against measured"] = report.measured
    if "udp_report" in sys.modules:
        import udp_report

        sections["raw UDP on simulated networks"] = udp_report.table(udp_report.rows) if udp_report.rows else []
        sections["raw UDP sharing a bottleneck"] = udp_report.shares
    if "vm" in sys.modules:
        import vm

        sections["virtual machines"] = vm.report
    for title, lines in sections.items():
        if lines:
            terminalreporter.section(title)
            terminalreporter.write_line("\n".join(lines))


def _needs(item: pytest.Item) -> tuple[str, ...]:
    """What runs the test: nothing special, the lab, or virtual machines, of some kinds or all."""
    if item.get_closest_marker("vm"):
        return ("vm", *(kind for mark in item.iter_markers("vm") for kind in mark.args))
    return ("lab",) if item.get_closest_marker("lab") else ()


@functools.cache
def _missing(need: str = "", *kinds: str) -> tuple[str, ...]:
    if need == "vm":
        import vm

        return tuple(vm.missing(*kinds))  # type: ignore[arg-type]
    if need == "lab":
        import lab

        return tuple(lab.missing())
    return ()
