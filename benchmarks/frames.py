"""What a mesh router gets from our driver on this machine, beside plain UDP sockets and aioquic's DATAGRAM frames.

Every frame is looked at where it arrives, is counted once, and is told when it is missing (`frames_workloads.py` says
how). All take turns, over connections that exist already, so that a machine that changes its speed changes it for all;
a figure is the median of the runs. A ratio is ours to the rival's. The rivals lose what the other side does not take
in time, ours brings reliable frames whole and once: their rates count what arrived.

p50 and p99 are the delays that half and 99 of 100 frames keep below; the last column has how many each run looks at.

    python benchmarks/frames.py [--quick] [--json] [--check] [--repeat N] [--loop asyncio|uvloop] [--transport NAME]
"""

import argparse
import json
import platform
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Final

from commandline import add_network, parse, parser, progress
from frames_bench import SIZES, Bench
from frames_row import Row
from rich.console import Console
from rich.table import Table
from subjects import write_keys

TRANSPORTS: Final = ("quic", "udp", "tcp")
INTERRUPTED: Final = 130
"""128 + SIGINT, as shells have it."""
WIDTH: Final = 140
"""Columns of the table where no terminal has its own."""


def table(rows: list[Row], loop: str) -> Table:
    """The result for people."""
    result = Table(title=f"frames of overlay / what one has without it; Python {platform.python_version()}, {loop}")
    result.add_column("", no_wrap=True)
    result.add_column("overlay", justify="right", no_wrap=True)
    result.add_column("beside", no_wrap=True)
    for heading in ("rival", "ratio"):
        result.add_column(heading, justify="right", no_wrap=True)
    result.add_column("required", no_wrap=True)
    result.add_column("samples", justify="right", no_wrap=True)
    transport, name = "", ""
    for row in rows:
        if row.transport != transport:
            result.add_section()
            result.add_row(row.transport, style="bold")
            transport, name = row.transport, ""
        verdict = "" if row.met is None else f": {'yes' if row.met else 'NO'}"
        digits = 1 if row.unit in {"1/s", "us", "1"} else 2
        again = row.name == name
        result.add_row(
            "" if again else f"  {row.name}, {row.unit}",
            "" if again else f"{median(row.ours):,.{digits}f}",
            row.rival,
            f"{median(row.theirs):,.{digits}f}" if row.theirs else "",
            f"{row.ratio:.2f}" if row.ratio is not None else "",
            f"{row.required or ''}{verdict}",
            "" if again or row.samples is None else f"{len(row.ours)} x {row.samples:,}",
        )
        name = row.name
    return result


def main() -> int:
    arguments = _arguments()
    try:
        return _measure(arguments)
    except KeyboardInterrupt:
        return INTERRUPTED


def _measure(arguments: argparse.Namespace) -> int:
    loop: str = arguments.loop
    sizes = SIZES[arguments.size]
    if arguments.repeat:
        sizes = replace(sizes, repeat=arguments.repeat)
    with tempfile.TemporaryDirectory() as folder, progress() as (advance, set_steps):
        write_keys(Path(folder))
        bench = Bench(sizes, loop, Path(folder), arguments.transport, advance)
        set_steps(bench.steps())
        rows = bench.rows()
    if arguments.json:
        document = {
            "loop": loop,
            "python": platform.python_version(),
            "size": arguments.size,
            "repeat": sizes.repeat,
            "neighbours": sum(sizes.receivers),
            "rows": [row.document() for row in rows],
        }
        print(json.dumps(document, indent=2))
    else:
        output = Console()
        (output if output.is_terminal else Console(width=WIDTH)).print(table(rows, loop))
    return 1 if arguments.check and any(row.met is False for row in rows) else 0


def _arguments() -> argparse.Namespace:
    made = parser(__doc__, SIZES)
    add_network(made, list(TRANSPORTS))
    arguments = parse(made)
    arguments.transport = list(dict.fromkeys(arguments.transport or TRANSPORTS))
    return arguments


if __name__ == "__main__":
    sys.exit(main())
