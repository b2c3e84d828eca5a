"""What all tests share: the loops on which they run, what they need of the machine, and what they report."""

import asyncio
from collections.abc import Callable, Mapping

import pytest
import uvloop

LOOPS: Mapping[str, Callable[[], asyncio.AbstractEventLoop]] = {
    "asyncio": asyncio.new_event_loop,
    "uvloop": uvloop.new_event_loop,
}
BOTH = {"test_conformance"}
"""Modules whose tests run on each loop; the others on asyncio's own."""


def pytest_asyncio_loop_factories(
    config: pytest.Config, item: pytest.Item
) -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    if item.path.stem in BOTH:
        return LOOPS
    return {"asyncio": LOOPS["asyncio"]}


def pytest_collection_finish(session: pytest.Session) -> None:
    """Say once, before anything is run, what the selected tests lack."""
    marks = {mark.name for item in session.items for mark in item.iter_markers()}
    lines: list[str] = []
    if "lab" in marks:
        import lab

        lines += lab.missing()
    if "vm" in marks:
        import vm

        lines += [line for line in vm.missing() if line not in lines]
    if lines and not session.config.option.collectonly:
        lines.append("tests/run installs what it can; -m 'not lab and not vm' leaves these tests out")
        raise pytest.UsageError("\n".join(lines))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print what was seen in networks and machines; the tests have checked it."""
    import vm
    from lab import report

    for title, lines in (
        ("networks", report.table(report.rows) if report.rows else []),
        ("user-space line: asked against measured", report.measured),
        ("virtual machines", vm.report),
    ):
        if lines:
            terminalreporter.section(title)
            terminalreporter.write_line("\n".join(lines))
