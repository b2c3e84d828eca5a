"""Any interleaving of everything: two peers, several connections, and a network that does its worst."""

from collections import Counter

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from pairs import SURPLUS, Half, Wire, World

EXAMPLES = 600
STEPS = 60
explored: Counter[str] = Counter()

sides = st.integers(0, 1)
picks = st.integers(0, 1000)


class Machine(RuleBasedStateMachine):
    """The rules are what applications and networks may do at any moment."""

    @initialize(quic=st.booleans(), seed=st.integers(0, 255), early=st.booleans())
    def begin(self, quic: bool, seed: int, early: bool) -> None:
        self.world = World(seed=seed, quic=quic)
        if early:
            self.world.sides[0].core.begin(early=True)

    def half(self, side: int, pick: int) -> Half | None:
        halves = [half for half in self.world.sides[side].halves if not half.core.removed]
        return halves[pick % len(halves)] if halves else None

    def wire(self, pick: int) -> Wire | None:
        wires = [wire for wire in self.world.wires if any(wire.open) or any(wire.queues)]
        return wires[pick % len(wires)] if wires else None

    @rule(side=sides)
    def open(self, side: int) -> None:
        self.world.open(side)

    @rule(side=sides, pick=picks, size=st.sampled_from([1, 100, 3000, 20_000]))
    def write(self, side: int, pick: int, size: int) -> None:
        if half := self.half(side, pick):
            self.world.write(side, half, size)

    @rule(
        side=sides,
        pick=picks,
        size=st.sampled_from([1, 100, 3000, 40_000]),
        surplus=st.sampled_from([0, 1, SURPLUS]),
    )
    def supply(self, side: int, pick: int, size: int, surplus: int) -> None:
        if half := self.half(side, pick):
            self.world.supply(side, half, size, surplus)

    @rule(side=sides, pick=picks, size=st.sampled_from([1, 100, 3000, 20_000]))
    def read(self, side: int, pick: int, size: int) -> None:
        if half := self.half(side, pick):
            self.world.read(side, half, size)

    @rule(side=sides, pick=picks)
    def finish(self, side: int, pick: int) -> None:
        if half := self.half(side, pick):
            self.world.finish(side, half)

    @rule(side=sides, pick=picks)
    def reset(self, side: int, pick: int) -> None:
        if half := self.half(side, pick):
            self.world.reset(side, half)

    @rule(side=sides, pick=picks)
    def stop(self, side: int, pick: int) -> None:
        if half := self.half(side, pick):
            self.world.stop(side, half)

    @precondition(lambda self: sum(any(wire.open) for wire in self.world.wires) < 5)
    @rule(side=sides, kind=st.sampled_from(["quic", "tcp"]))
    def dial(self, side: int, kind: str) -> None:
        self.world.dial(side, kind)

    @rule(pick=picks, side=sides, place=picks)
    def deliver(self, pick: int, side: int, place: int) -> None:
        wire = self.wire(pick)
        if wire and (ready := self.world.pieces(wire, side)):
            self.world.deliver(wire, side, ready[place % len(ready)])

    @rule(pick=picks, side=sides, count=st.integers(1, 20))
    def deliver_many(self, pick: int, side: int, count: int) -> None:
        wire = self.wire(pick)
        for _ in range(count):
            if wire and (ready := self.world.pieces(wire, side)):
                self.world.deliver(wire, side, ready[0])

    @rule()
    def deliver_all(self) -> None:
        self.world.settle()

    @rule(pick=picks)
    def freeze(self, pick: int) -> None:
        if wire := self.wire(pick):
            wire.frozen = not wire.frozen

    @rule(pick=picks)
    def lose(self, pick: int) -> None:
        if wire := self.wire(pick):
            self.world.lose(wire)

    @rule(pick=picks, side=sides)
    def notice(self, pick: int, side: int) -> None:
        if wire := self.wire(pick):
            self.world.notice(wire, side)

    @rule(pick=picks)
    def cut(self, pick: int) -> None:
        if wire := self.wire(pick):
            self.world.cut(wire)

    @rule(seconds=st.sampled_from([0.01, 0.03, 0.3, 0.7, 4.0, 40.0, 130.0]))
    def tick(self, seconds: float) -> None:
        self.world.tick(seconds)

    @invariant()
    def bounds_hold(self) -> None:
        if hasattr(self, "world"):
            explored["steps"] += 1
            self.world.check()

    def teardown(self) -> None:
        if hasattr(self, "world"):
            self.world.drain()
            self.world.check()
            self.world.check_end()
            explored.update(self.world.counts)


def test_whatever_happens_each_reads_what_the_other_wrote() -> None:
    """At least 10,000 steps, and what they led to is not trivial."""
    explored.clear()
    run_state_machine_as_test(
        Machine,
        settings=settings(
            max_examples=EXAMPLES,
            stateful_step_count=STEPS,
            deadline=None,
            derandomize=True,
            suppress_health_check=list(HealthCheck),
        ),
    )
    assert explored["steps"] >= 10_000, explored
    assert explored["complete"] >= 200, explored
    assert explored["supplied"] >= 50, explored
    assert explored["delivered"] >= 10_000, explored
