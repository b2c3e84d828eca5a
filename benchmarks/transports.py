"""What our transports give on this machine, beside what one would use without them.

Each figure is between two processes on loopback, over new connections, with every byte checked (`workloads.py` says
how). Ours and the rival take turns, so that a machine that changes its speed changes it for both; a figure is the
median. A ratio is ours to the rival's.

    python benchmarks/transports.py [--quick] [--json] [--check] [--repeat N] [--loop asyncio|uvloop]
"""

import argparse
import json
import platform
import sys
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any, Final, Literal

from commandline import add_network, parse, parser, progress
from processes import Pair, process
from rich.console import Console
from rich.table import Table
from subjects import subject, write_keys

DELAY: Final = 0.05
"""Seconds each way through the relay."""
ROUND_TRIP: Final = 2 * DELAY * 1e3
"""The same in ms, there and back."""
RIVALS: Final = {"quic": "aioquic", "udp": "aioquic", "tcp": "tls"}
FLOOD: Final = 10_000
"""Packets of strangers per second: an eighth of what a core answers that has nothing else to do (12 us each)."""
HELD: Final = 5
"""Connections that are there while strangers flood."""
TITLES: Final = {"aioquic": "plain aioquic", "tls": "plain asyncio TLS"}


@dataclass(frozen=True, slots=True)
class Sizes:
    """How much work each measurement is."""

    repeat: int
    goodput: dict[str, int]
    """Bytes, by transport: about a second each."""
    connect: int
    echo: int
    messages: dict[str, int]
    sessions: int


FULL: Final = Sizes(
    repeat=5,
    goodput={"quic": 32 * 2**20, "udp": 32 * 2**20, "tcp": 512 * 2**20},
    connect=50,
    echo=2000,
    messages={"quic": 20_000, "udp": 20_000, "tcp": 200_000},
    sessions=1000,
)
QUICK: Final = Sizes(
    repeat=3,
    goodput={"quic": 8 * 2**20, "udp": 8 * 2**20, "tcp": 64 * 2**20},
    connect=10,
    echo=300,
    messages={"quic": 5_000, "udp": 5_000, "tcp": 20_000},
    sessions=100,
)
TINY: Final = Sizes(
    repeat=1,
    goodput={"quic": 2**18, "udp": 2**18, "tcp": 2**20},
    connect=1,
    echo=5,
    messages={"quic": 100, "udp": 100, "tcp": 100},
    sessions=5,
)
"""For the test that all this works: its figures say nothing."""
SIZES: Final = {"full": FULL, "quick": QUICK, "tiny": TINY}


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the result."""

    name: str
    transport: str
    unit: str
    better: Literal["more", "less"]
    ours: list[float]
    rival: str
    theirs: list[float]
    required: str | None
    met: bool | None

    @property
    def ratio(self) -> float | None:
        """Ours to the rival's, both medians; None when there is nothing to divide by."""
        theirs = median(self.theirs)
        return median(self.ours) / theirs if theirs else None

    def document(self) -> dict[str, Any]:
        """For `--json`."""
        return {
            "name": self.name,
            "transport": self.transport,
            "unit": self.unit,
            "better": self.better,
            "ours": {"median": median(self.ours), "runs": self.ours},
            "rival": {"name": self.rival, "median": median(self.theirs), "runs": self.theirs},
            "ratio": self.ratio,
            "required": self.required,
            "met": self.met,
        }


class Bench:
    """All measurements.

    Args:
        sizes: how much.
        loop: `asyncio` or `uvloop`.
        keys: folder with the rivals' key.
        advance: called after each measurement.
    """

    def __init__(self, sizes: Sizes, loop: str, keys: Path, advance: Callable[[str], None]) -> None:
        self._sizes = sizes
        self._loop = loop
        self._keys = keys
        self._advance = advance

    def rows(self, transports: list[str]) -> list[Row]:
        """Measure everything."""
        found: list[Row] = []
        for transport in transports:
            with ExitStack() as resources:
                pairs = [Pair(resources, name, self._keys, self._loop) for name in (transport, RIVALS[transport])]
                found += self._streams(transport, pairs)
                if transport == "quic":
                    found += self._through_relay(resources, pairs)
                if transport == "udp":
                    found.append(self._on_loopback(resources, pairs[1]))
                    found += self._in_a_flood(pairs[0])
            found.append(self._idle(transport))
        return found

    def _streams(self, transport: str, pairs: list[Pair]) -> list[Row]:
        sizes = self._sizes
        least = {"quic": 1.3, "udp": 6.0, "tcp": 0.8}[transport]
        return [
            self._row("goodput", transport, "MB/s", pairs, count=sizes.goodput[transport], least=least),
            self._row("connect", transport, "ms", pairs, count=sizes.connect),
            self._row("echo", transport, "us", pairs, count=sizes.echo),
            self._row("messages", transport, "1/s", pairs, count=sizes.messages[transport]),
        ]

    def _row(
        self, name: str, transport: str, unit: str, pairs: list[Pair], *, count: int, least: float | None = None
    ) -> Row:
        figures: tuple[list[float], list[float]] = ([], [])
        for _ in range(self._sizes.repeat):
            for pair, runs in zip(pairs, figures, strict=True):
                runs.append(pair.measure(name, count=count))
                self._advance(f"{name} {pair.name}")
        ours, theirs = figures
        better: Literal["more", "less"] = "more" if unit.endswith("/s") else "less"
        required, met = None, None
        if least is not None:
            required, met = f">= {least} x", median(ours) >= least * median(theirs)
        return Row(name, transport, unit, better, ours, TITLES[pairs[1].name], theirs, required, met)

    def _through_relay(self, resources: ExitStack, pairs: list[Pair]) -> list[Row]:
        """Dial and first echo over a long link: what counts there is the number of round trips."""
        runs: dict[str, list[float]] = {"early": [], "late": [], "rival": []}
        for pair in pairs:
            where = subject(pair.name, self._keys)
            relay = resources.enter_context(process("relay.py", str(where.port(pair.address)), str(DELAY)))
            address = where.through(pair.address, relay.answer())
            for _ in range(self._sizes.repeat):
                kinds = {"early": True, "late": False} if pair is pairs[0] else {"rival": True}
                for kind, early in kinds.items():
                    runs[kind].append(pair.measure("first_echo", address=address, early=early) / ROUND_TRIP)
                    self._advance(f"first echo {pair.name}")
        rival = TITLES[pairs[1].name]
        met = median(runs["early"]) < 2.5
        return [
            Row("first echo, early", "quic", "RTT", "less", runs["early"], rival, runs["rival"], "< 2.5", met),
            Row("first echo", "quic", "RTT", "less", runs["late"], rival, runs["rival"], None, None),
        ]

    def _on_loopback(self, resources: ExitStack, rival: Pair) -> Row:
        """With packets as long as loopback carries, as jumbo frames would."""
        pair = Pair(resources, "udp-loopback", self._keys, self._loop)
        row = self._row("goodput", "udp", "MB/s", [pair, rival], count=self._sizes.goodput["udp"])
        return replace(row, name="goodput, 64 KB packets")

    def _in_a_flood(self, pair: Pair) -> list[Row]:
        """What strangers who want handshakes leave to those who are known, and what is kept of them."""
        port = str(subject(pair.name, self._keys).port(pair.address))
        # No rival has to carry it as well: so much that the first moments of a connection weigh little.
        size = 4 * self._sizes.goodput["udp"]
        quiet: list[float] = []
        flooded: list[float] = []
        rates: list[float] = []
        pair.measure("hold", count=HELD)
        for _ in range(self._sizes.repeat):
            quiet.append(pair.measure("goodput", count=size))
            with process("flood.py", port, str(FLOOD)) as flood:
                flood.answer()
                flooded.append(pair.measure("goodput", count=size))
                rates.append(flood.ask())
            self._advance("goodput in a flood")
        # Alone, without connections that are just ending.
        with process("flood.py", port, str(FLOOD)) as flood:
            flood.answer()
            kept = pair.server.ask(do="connections")
        pair.dialler.ask(do="release")
        without = "without it"
        met = median(flooded) >= 0.5 * median(quiet)
        return [
            Row("flood of strangers", "udp", "1/s", "more", rates, "intended", [FLOOD] * len(rates), None, None),
            Row("goodput in a flood", "udp", "MB/s", "more", flooded, without, quiet, ">= 0.5 x", met),
            Row("connections in a flood", "udp", "1", "less", [kept], without, [HELD], "<= 1 x", kept <= HELD),
        ]

    def _idle(self, transport: str) -> Row:
        """What an idle session costs the process that accepted it."""
        count = self._sizes.sessions
        figures: list[float] = []
        for name in (transport, RIVALS[transport]):
            with ExitStack() as resources:
                pair = Pair(resources, name, self._keys, self._loop)
                pair.measure("echo", count=1)
                before = pair.server.ask(do="memory")
                pair.measure("hold", count=count)
                figures.append((pair.server.ask(do="memory") - before) / count / 1024)
                if pair.dialler.ask(do="release") != count:
                    raise RuntimeError(f"{name}: not all idle sessions answered")
                self._advance(f"{count} idle sessions {name}")
        rival = TITLES[RIVALS[transport]]
        return Row("idle session", transport, "KiB", "less", figures[:1], rival, figures[1:], None, None)

    def steps(self, transports: list[str]) -> int:
        """How often `advance` will be called."""
        each = self._sizes.repeat * 8 + 2
        # Through the relay; on loopback and in a flood.
        more = ("quic" in transports) * 3 + ("udp" in transports) * 3
        return len(transports) * each + more * self._sizes.repeat


def table(rows: list[Row], loop: str) -> Table:
    """The result for people."""
    result = Table(title=f"overlay / what one has without it; Python {platform.python_version()}, {loop}")
    result.add_column("", no_wrap=True)
    for heading in ("overlay", "rival", "ratio"):
        result.add_column(heading, justify="right", no_wrap=True)
    result.add_column("required", no_wrap=True)
    before = ""
    for row in rows:
        if row.transport != before:
            result.add_section()
            result.add_row(f"{row.transport}, {row.rival}", style="bold")
            before = row.transport
        verdict = "" if row.met is None else f": {'yes' if row.met else 'NO'}"
        result.add_row(
            f"  {row.name}, {row.unit}",
            f"{median(row.ours):,.1f}",
            f"{median(row.theirs):,.1f}",
            f"{row.ratio:.2f}" if row.ratio is not None else "",
            f"{row.required or ''}{verdict}",
        )
    return result


def main() -> int:
    arguments = _arguments()
    loop: str = arguments.loop
    sizes = SIZES[arguments.size]
    if arguments.repeat:
        sizes = replace(sizes, repeat=arguments.repeat)
    with tempfile.TemporaryDirectory() as folder, progress() as (advance, set_steps):
        write_keys(Path(folder))
        bench = Bench(sizes, loop, Path(folder), advance)
        set_steps(bench.steps(arguments.transport))
        rows = bench.rows(arguments.transport)
    if arguments.json:
        document = {
            "loop": loop,
            "python": platform.python_version(),
            "size": arguments.size,
            "repeat": sizes.repeat,
            "sessions": sizes.sessions,
            "rows": [row.document() for row in rows],
        }
        print(json.dumps(document, indent=2))
    else:
        Console().print(table(rows, loop))
    return 1 if arguments.check and any(row.met is False for row in rows) else 0


def _arguments() -> argparse.Namespace:
    made = parser(__doc__, SIZES)
    add_network(made, list(RIVALS))
    arguments = parse(made)
    arguments.transport = arguments.transport or list(RIVALS)
    return arguments


if __name__ == "__main__":
    sys.exit(main())
