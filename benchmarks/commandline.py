"""What all benchmarks have in common at their borders: arguments, progress, the result's exit code, the event loop."""

import argparse
import asyncio
import importlib.util
from collections.abc import Callable, Coroutine, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final

from rich.console import Console
from rich.progress import Progress, TaskID

LOOPS: Final = ["asyncio"] + (["uvloop"] if importlib.util.find_spec("uvloop") else [])
DEFAULT_SIZE: Final = "full"


def parser(documentation: str | None, sizes: Mapping[str, Any]) -> argparse.ArgumentParser:
    """A parser with the arguments of every benchmark.

    Args:
        documentation: the script's docstring: its first line is shown.
        sizes: by name; each has a `repeat`.
    """
    made = argparse.ArgumentParser(description=(documentation or "").partition("\n")[0])
    work = made.add_mutually_exclusive_group()
    work.add_argument("--size", choices=list(sizes), help=f"how much work; default: {DEFAULT_SIZE}")
    work.add_argument("--quick", dest="size", action="store_const", const="quick", help="the same as --size quick")
    defaults = ", ".join(f"{size.repeat} with {name}" for name, size in sizes.items())
    made.add_argument("--repeat", type=int, metavar="N", help=f"runs of each measurement; default: {defaults}")
    made.add_argument("--json", action="store_true", help="one JSON document instead of the table")
    made.add_argument("--check", action="store_true", help="exit with 1 when a required figure is not reached")
    return made


def add_network(made: argparse.ArgumentParser, transports: list[str]) -> None:
    """The arguments of those that measure transports."""
    made.add_argument("--loop", choices=LOOPS, default=LOOPS[-1], help="for ours and the rivals alike")
    made.add_argument("--transport", choices=transports, action="append", help="only this one; default: all")


def parse(made: argparse.ArgumentParser) -> argparse.Namespace:
    """The arguments of this process, checked."""
    arguments = made.parse_args()
    if arguments.repeat is not None and arguments.repeat < 1:
        made.error("--repeat must be at least 1")
    arguments.size = arguments.size or DEFAULT_SIZE
    return arguments


@contextmanager
def progress() -> Iterator[tuple[Callable[[str], None], Callable[[int], None]]]:
    """A bar on the standard error, if that is a terminal: one step with its name, and how many steps there will be."""
    errors = Console(stderr=True)
    with Progress(console=errors, disable=not errors.is_terminal) as bar:
        task: TaskID = bar.add_task("starting", total=None)
        yield (
            lambda name: bar.update(task, advance=1, description=name),
            lambda steps: bar.update(task, total=steps),
        )


def run(work: Coroutine[Any, Any, None], loop: str) -> None:
    """Run a process's work on the loop of that name."""
    factory: Callable[[], asyncio.AbstractEventLoop] | None = None
    if loop == "uvloop":
        import uvloop  # noqa: PLC0415 - it is not on every platform

        factory = uvloop.new_event_loop
    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(work)
