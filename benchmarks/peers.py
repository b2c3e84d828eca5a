"""What a peer costs an endpoint that knows many: memory while it is not connected, and time for all that happens to it.

All peers are kept by one table (`overlay.protocol.peer_table`) on a stepped clock: no socket, no event loop, no wait.
Beside it stands what the address book holds of each. A time is the mean over all peers of one run, a figure is the
median of the runs; memory is what `tracemalloc` counts, keys included.

    python benchmarks/peers.py [--quick] [--json] [--check] [--repeat N]
"""

import json
import platform
import random
import sys
import tracemalloc
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from statistics import median
from time import perf_counter
from typing import Any, Final

from commandline import parse, parser
from rich.console import Console
from rich.table import Table

from overlay.protocol.address_book import AddressBook
from overlay.protocol.evidence import Source
from overlay.protocol.peer_states import Action, PeerState
from overlay.protocol.peer_table import PeerTable

MOST_MICROSECONDS: Final = 100.0
"""Per decision and per event."""
MOST_BYTES: Final = 4096.0
"""Per peer that is known and not connected."""
CAP: Final = 120.0
TRANSPORTS: Final = ("quic", "udp", "tcp")


@dataclass(frozen=True, slots=True)
class Sizes:
    """How much work it is."""

    peers: int
    repeat: int


SIZES: Final = {"full": Sizes(10_000, 5), "quick": Sizes(10_000, 1), "tiny": Sizes(100, 1)}
"""`tiny` is for the test that all this works: its figures say nothing."""


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the result."""

    name: str
    unit: str
    ours: list[float]
    most: float

    @property
    def met(self) -> bool:
        """Whether the required figure is reached."""
        return median(self.ours) < self.most

    def document(self) -> dict[str, Any]:
        """For `--json`."""
        return {
            "name": self.name,
            "unit": self.unit,
            "better": "less",
            "ours": {"median": median(self.ours), "runs": self.ours},
            "required": f"< {self.most:g}",
            "met": self.met,
        }


class WrongStateError(AssertionError):
    """The table has not done what was to be measured."""


class Bench:
    """All measurements over so many peers."""

    def __init__(self, peers: int) -> None:
        self._count = peers

    def rows(self, repeat: int) -> list[Row]:
        """Measure everything, so many times."""
        runs: dict[tuple[str, str], list[float]] = {}
        for _ in range(repeat):
            for name, unit, value in (*self._memory(), *self._times()):
                runs.setdefault((name, unit), []).append(value)
        most = {"B": MOST_BYTES, "us": MOST_MICROSECONDS}
        return [Row(name, unit, values, most[unit]) for (name, unit), values in runs.items()]

    def _memory(self) -> Iterator[tuple[str, str, float]]:
        """What a peer that only was dialled once holds, and one that is kept and cannot be reached."""
        for name, kept in (("known peer", False), ("kept peer, backing off", True)):
            tracemalloc.start()
            try:
                peers, keys = self._table(), self._keys()
                for now, key in enumerate(keys):
                    (peers.keep if kept else peers.want)(key, float(now))
                    peers.dial_failed(key, now + 0.5)
                    peers.take_actions()
                held, _ = tracemalloc.get_traced_memory()
            finally:
                # It would make everything slow that this process does later.
                tracemalloc.stop()
            _expect(peers, keys, PeerState.BACKING_OFF if kept else PeerState.KNOWN)
            yield name, "B", held / self._count

        tracemalloc.start()
        try:
            book = AddressBook(random.Random(1).random, peers=self._count)
            for key in self._keys():
                host = f"2001:db8::{int.from_bytes(key):x}"
                book.pin(key)
                book.learn(key, (None, host, 9330), Source.STATIC, 0.0)
                for transport in TRANSPORTS:
                    book.failed(key, (transport, host, 9330), 1.0, stage="connect", network="192.0.2.0/24")
            book.changed()
            held, _ = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        yield "its address, tried three ways", "B", held / self._count

    def _times(self) -> Iterator[tuple[str, str, float]]:
        """The life of all peers, step by step, each with what it makes the table do."""
        peers, keys = self._table(), self._keys()
        yield "keep", "us", self._each(keys, lambda key: peers.keep(key, 0.0))
        _expect(peers, keys, PeerState.DIALLING)
        self._drain(peers, Action.DIAL)
        yield "attached", "us", self._each(keys, lambda key: peers.attached(key, 1.0, dialled=True))
        self._drain(peers, Action.TELL_CONNECTED)
        yield "lost", "us", self._each(keys, lambda key: peers.lost(key, 10.0))
        self._drain(peers, Action.DIAL)
        yield "dial failed, lingering", "us", self._each(keys, lambda key: peers.dial_failed(key, 20.0))
        yield "session over", "us", self._each(keys, lambda key: peers.ended(key, 20.0))
        self._drain(peers, Action.TELL_DISCONNECTED)
        _expect(peers, keys, PeerState.BACKING_OFF)
        yield "decision, after a pause", "us", self._once(lambda: peers.handle_timeout(20.0 + CAP))
        self._drain(peers, Action.DIAL)
        yield "dial failed, kept", "us", self._each(keys, lambda key: peers.dial_failed(key, 30.0 + CAP))
        yield "decision, after a network change", "us", self._once(lambda: peers.network_changed(31.0 + CAP))
        self._drain(peers, Action.DIAL)
        yield "remove", "us", self._each(keys, lambda key: peers.remove(key, 32.0 + CAP))
        self._drain(peers, Action.CANCEL_DIAL)
        _expect(peers, keys, PeerState.FORGOTTEN)

    def _table(self) -> PeerTable:
        """One whose bucket never makes anybody wait, so that each decision is taken."""
        count = self._count
        return PeerTable(random.Random(1).random, cap=CAP, rate=1e9, burst=float(count), capacity=count)

    def _keys(self) -> list[bytes]:
        return [number.to_bytes(32) for number in range(self._count)]

    def _each(self, keys: list[bytes], happens: Callable[[bytes], None]) -> float:
        """Microseconds for one peer."""
        begin = perf_counter()
        for key in keys:
            happens(key)
        return 1e6 * (perf_counter() - begin) / self._count

    def _once(self, happens: Callable[[], None]) -> float:
        """The same for what concerns all peers at once."""
        begin = perf_counter()
        happens()
        return 1e6 * (perf_counter() - begin) / self._count

    def _drain(self, peers: PeerTable, expected: Action) -> None:
        """Check that it has asked for that once for each peer, and for nothing else."""
        actions = [action for _, action in peers.take_actions()]
        if actions != [expected] * self._count:
            raise WrongStateError(f"{len(actions)} actions instead of {self._count} times {expected}")


def _expect(peers: PeerTable, keys: list[bytes], state: PeerState) -> None:
    if not all(peers.state(key) is state for key in keys):
        raise WrongStateError(f"not all peers are {state}")


def table(rows: list[Row], peers: int) -> Table:
    """The result for people."""
    result = Table(title=f"{peers:,} peers of one endpoint; Python {platform.python_version()}")
    result.add_column("", no_wrap=True)
    result.add_column("overlay", justify="right", no_wrap=True)
    result.add_column("required", no_wrap=True)
    for row in rows:
        verdict = "yes" if row.met else "NO"
        result.add_row(f"{row.name}, {row.unit}", f"{median(row.ours):,.1f}", f"< {row.most:g}: {verdict}")
    return result


def main() -> int:
    arguments = parse(parser(__doc__, SIZES))
    sizes = SIZES[arguments.size]
    if arguments.repeat:
        sizes = replace(sizes, repeat=arguments.repeat)
    rows = Bench(sizes.peers).rows(sizes.repeat)
    if arguments.json:
        document = {
            "python": platform.python_version(),
            "size": arguments.size,
            "repeat": sizes.repeat,
            "peers": sizes.peers,
            "rows": [row.document() for row in rows],
        }
        print(json.dumps(document, indent=2))
    else:
        Console().print(table(rows, sizes.peers))
    return 1 if arguments.check and not all(row.met for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
