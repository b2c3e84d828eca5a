"""The measurements of frames, and what is required of them."""

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Final

from frames_group import Group, Measured
from frames_row import Row

TITLES: Final = {"sockets": "plain UDP sockets", "aioquic": "aioquic DATAGRAM"}
LEAST_RATE: Final = 100_000
"""Frames of 1 KiB per second, over raw UDP or TCP."""
LEAST_RATIO: Final = 5.0
"""The same, to aioquic's."""
QUICKEST: Final = ("udp", "tcp")
MOST_LOADED: Final = 5.0
"""Tail of the delay of a router's own frames on a busy link, to that on an idle one."""
LEAST_BESIDE_STOPPED: Final = 0.9
"""Rate of a flood with a stopped neighbour, to that without."""
ROUTING_FRAME: Final = 64
FLOOD_FRAME: Final = 1024
LONGEST_AIOQUIC: Final = 1024
"""Bytes of a frame that fits its packet."""
SHARES: Final = {"aioquic": 0.1, "quic": 0.2}
"""How much of the work the slower ones are given, so that all take about as long."""


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of frame."""

    name: str
    size: int
    reliable: bool = True


KINDS: Final = (Kind("64 B", 64), Kind("1 KiB", 1024), Kind("32 KiB", 32 * 1024), Kind("1 KiB unreliable", 1024, False))

FIGURES: Final = {"": "1/s", ", lost": "%", ", p50": "us", ", p99": "us"}
"""What is measured of each kind, and in what unit."""


@dataclass(frozen=True, slots=True)
class Sizes:
    """How much work each measurement is."""

    repeat: int
    frames: dict[int, int]
    """How many of each size saturate a link for about a second."""
    probes: int
    """Frames that are sent one by one, 2 ms apart."""
    routing: int
    """The same of a router's own frames, whose tails are judged: more, as the tail of few swings."""
    flood: int
    receivers: tuple[int, ...]
    """Neighbours in each process; the one that is stopped has the last for itself."""
    age_limit: float
    """Seconds, of the frames of a flood to a stopped neighbour."""


SIZES: Final = {
    "full": Sizes(5, {64: 100_000, 1024: 100_000, 32 * 1024: 5_000}, 2000, 3000, 4000, (8, 8, 8, 7, 1), 3.0),
    "quick": Sizes(3, {64: 20_000, 1024: 20_000, 32 * 1024: 2_000}, 500, 1000, 2500, (8, 8, 8, 7, 1), 2.0),
    "tiny": Sizes(1, {64: 200, 1024: 200, 32 * 1024: 20}, 5, 6, 20, (1, 1), 0.3),
}
"""`tiny` is for the test that all this works: its figures say nothing."""


class Bench:
    """All measurements.

    Args:
        sizes: how much.
        loop: `asyncio` or `uvloop`.
        keys: folder with the rivals' key.
        transports: ours.
        advance: called after each measurement.
    """

    def __init__(
        self, sizes: Sizes, loop: str, keys: Path, transports: Sequence[str], advance: Callable[[str], None]
    ) -> None:
        self._sizes = sizes
        self._loop = loop
        self._keys = keys
        self._transports = transports
        self._advance = advance

    def steps(self) -> int:
        """How often `advance` will be called."""
        kinds = sum(2 * len(self._subjects(kind.size)) for kind in KINDS)
        each = kinds + len(self._subjects(FLOOD_FRAME)) + (3 + 2) * len(self._transports)
        return self._sizes.repeat * each

    def rows(self) -> list[Row]:
        """Measure everything; the rows of one transport follow each other."""
        found = [*self._one_to_one(), *self._floods()]
        for transport in self._transports:
            found += self._routing(transport)
            found += self._one_stopped(transport)
        return sorted(found, key=lambda row: self._transports.index(row.transport))

    def _subjects(self, size: int) -> list[str]:
        """Who can carry frames of that size: ours first."""
        return [*self._transports, "sockets", *(["aioquic"] if size <= LONGEST_AIOQUIC else [])]

    def _one_to_one(self) -> Iterator[Row]:
        """Saturated, then one by one; all subjects in turn."""
        with ExitStack() as resources:
            groups = [Group(resources, name, self._keys, self._loop) for name in self._subjects(1)]
            for kind in KINDS:
                rivals = [name for name in self._subjects(kind.size) if name in TITLES]
                runs: dict[tuple[str, str], list[float]] = defaultdict(list)
                samples: dict[str, int] = {}
                for _ in range(self._sizes.repeat):
                    for group in groups:
                        if group.name in self._transports or group.name in rivals:
                            found = self._measure_kind(group, kind, runs)
                            samples[group.name] = min(found.samples, samples.get(group.name, found.samples))
                for transport in self._transports:
                    for figure, unit in FIGURES.items():
                        for rival in rivals:
                            required, met = self._required(kind, figure, transport, rival, runs)
                            yield Row(
                                name=kind.name + figure,
                                transport=transport,
                                unit=unit,
                                ours=runs[figure, transport],
                                rival=TITLES[rival],
                                theirs=runs[figure, rival],
                                samples=samples[transport] if unit == "us" else None,
                                required=required,
                                met=met,
                            )

    def _measure_kind(self, group: Group, kind: Kind, runs: dict[tuple[str, str], list[float]]) -> Measured:
        """One run of one subject; what was found of its single frames."""
        may_lose = not kind.reliable or group.name in TITLES
        count = _share(self._sizes.frames[kind.size], group)
        many = group.measure("saturate", count=count, size=kind.size, may_lose=may_lose, reliable=kind.reliable)
        runs["", group.name].append(many.rates[0])
        runs[", lost", group.name].append(many.lost)
        self._advance(f"{kind.name} frames, {group.name}")
        single = group.measure(
            "probe", count=self._sizes.probes, size=kind.size, may_lose=may_lose, reliable=kind.reliable
        )
        runs[", p50", group.name].append(single.median)
        runs[", p99", group.name].append(single.tail)
        self._advance(f"single {kind.name} frames, {group.name}")
        return single

    def _required(
        self, kind: Kind, figure: str, transport: str, rival: str, runs: dict[tuple[str, str], list[float]]
    ) -> tuple[str | None, bool | None]:
        """What one of the quickest transports has to reach."""
        if kind.name != "1 KiB" or figure or transport not in QUICKEST:
            return None, None
        best = max(median(runs["", name]) for name in QUICKEST if name in self._transports)
        if rival == "aioquic":
            return f">= {LEAST_RATIO:g} x, udp or tcp", best >= LEAST_RATIO * median(runs["", rival])
        return f">= {LEAST_RATE:,}, udp or tcp", best >= LEAST_RATE

    def _floods(self) -> Iterator[Row]:
        """From one to all."""
        names = self._subjects(FLOOD_FRAME)
        rates: dict[str, list[float]] = defaultdict(list)
        losses: dict[str, list[float]] = defaultdict(list)
        with ExitStack() as resources:
            groups = [Group(resources, name, self._keys, self._loop, self._sizes.receivers) for name in names]
            for _ in range(self._sizes.repeat):
                for group in groups:
                    count = _share(self._sizes.flood, group)
                    found = group.measure("flood", count=count, size=FLOOD_FRAME, may_lose=True)
                    rates[group.name].append(median(found.rates))
                    losses[group.name].append(found.lost)
                    self._advance(f"flood, {group.name}")
        for transport in self._transports:
            for figure, unit, runs in (("each", "1/s", rates), ("lost", "%", losses)):
                for rival in names[len(self._transports) :]:
                    yield Row(
                        name=f"flood to {sum(self._sizes.receivers)}, {figure}",
                        transport=transport,
                        unit=unit,
                        ours=runs[transport],
                        rival=TITLES[rival],
                        theirs=runs[rival],
                    )

    def _routing(self, transport: str) -> Iterator[Row]:
        """A router's own frames on a link that is idle, and on one that is not."""
        runs: dict[str, list[Measured]] = defaultdict(list)
        with ExitStack() as resources:
            group = Group(resources, transport, self._keys, self._loop)
            for _ in range(self._sizes.repeat):
                for load in ("idle", "stream", "frames"):
                    runs[load].append(group.measure("beside", count=self._sizes.routing, size=ROUTING_FRAME, load=load))
                    self._advance(f"routing frames, {load}, {transport}")
        tails = {load: [one.tail for one in found] for load, found in runs.items()}
        for load, words in {"stream": "beside a stream", "frames": "beside bulk frames"}.items():
            samples = min(one.samples for one in runs[load])
            yield Row(
                name=f"routing {words}, p50",
                transport=transport,
                unit="us",
                ours=[one.median for one in runs[load]],
                rival="idle link",
                theirs=[one.median for one in runs["idle"]],
                samples=samples,
            )
            yield Row(
                name=f"routing {words}, p99",
                transport=transport,
                unit="us",
                ours=tails[load],
                rival="idle link",
                theirs=tails["idle"],
                samples=samples,
                required=f"<= {MOST_LOADED:g} x",
                met=median(tails[load]) <= MOST_LOADED * median(tails["idle"]),
            )
        yield Row(
            name="bulk frames meanwhile",
            transport=transport,
            unit="MB/s",
            ours=[one.load for one in runs["frames"]],
            rival="the stream",
            theirs=[one.load for one in runs["stream"]],
        )

    def _one_stopped(self, transport: str) -> Iterator[Row]:
        """A flood, to neighbours of whom one has stopped reading: what it costs the others, and the sender."""
        runs: dict[str, tuple[list[float], list[float]]] = defaultdict(lambda: ([], []))
        with ExitStack() as resources:
            group = Group(resources, transport, self._keys, self._loop, self._sizes.receivers)
            # Buffers that grow once, and keep what they have got, are no growth.
            self._flood(group)
            for _ in range(self._sizes.repeat):
                for stopped in (False, True):
                    with group.last_stopped() if stopped else nullcontext():
                        for name, value in self._flood(group).items():
                            runs[name][not stopped].append(value)
                    group.ask_sender("settle")
                    self._advance(f"flood, {'one stopped' if stopped else 'all alive'}, {transport}")
        for name, unit, figure, rival in (
            ("each other", "1/s", "rate", "all alive"),
            ("lost by the others", "%", "lost", "all alive"),
            ("sender's memory", "MiB", "memory", None),
            ("came back", "1", "returned", None),
        ):
            stopped_runs, alive = runs[figure]
            judged = figure == "rate"
            yield Row(
                name=f"one stopped, {name}",
                transport=transport,
                unit=unit,
                ours=stopped_runs,
                rival=rival,
                theirs=alive if rival else (),
                required=f">= {LEAST_BESIDE_STOPPED:g} x" if judged else None,
                met=median(stopped_runs) >= LEAST_BESIDE_STOPPED * median(alive) if judged else None,
            )
        ages = runs["age"][0]
        yield Row(
            name="one stopped, back after",
            transport=transport,
            unit="s",
            ours=ages,
            rival="age limit",
            theirs=[self._sizes.age_limit] * len(ages),
        )

    def _flood(self, group: Group) -> dict[str, float]:
        """To all, of whom the last need not take it."""
        before = group.ask_sender("memory")
        found = group.measure(
            "flood",
            count=_share(self._sizes.flood, group),
            size=FLOOD_FRAME,
            may_lose=True,
            without_last=True,
            age_limit=self._sizes.age_limit,
        )
        grown = group.ask_sender("memory") - before
        settled = group.ask_sender("settle")
        return {
            "rate": median(found.rates),
            "lost": found.lost,
            "memory": grown / 2**20,
            "returned": sum(settled["returned"].values()) + settled["dropped"],
            "age": settled["age"] or 0.0,
        }


def _share(count: int, group: Group) -> int:
    return int(count * SHARES.get(group.name, 1.0))
