"""Any sequence of what users, networks and clocks do to a table of peers, and what it must never do in return."""

import random
from collections import Counter

import pytest
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

from overlay.protocol import peer_table
from overlay.protocol.peer_states import IMPOSSIBLE, TABLE, Action, Happening, PeerState
from overlay.protocol.peer_table import PeerTable

KEYS = [bytes([one]) * 32 for one in range(3)]
CAP = 30.0
RATE = 2.0
Rule = tuple[PeerState, tuple[Action, ...]]
explored: Counter[tuple[PeerState, Happening]] = Counter()
healed: Counter[PeerState] = Counter()
"""In which states the network's return found those that are wanted."""

keys = st.sampled_from(KEYS)


class Watched(dict[tuple[PeerState, Happening], Rule]):
    """The table, which notes what was looked up and refuses what cannot happen."""

    def __getitem__(self, pair: tuple[PeerState, Happening]) -> Rule:
        assert pair not in IMPOSSIBLE, pair
        explored[pair] += 1
        return super().__getitem__(pair)


class Machine(RuleBasedStateMachine):
    """The owner of a table: it dials and tells as it is told to, and reports what comes of it."""

    @initialize(seed=st.integers(0, 255))
    def begin(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.now = 1000.0
        self.connected: set[bytes] = set()
        self.lingering: set[bytes] = set()
        self.told: set[bytes] = set()
        self.dials: set[bytes] = set()
        self.kept: set[bytes] = set()
        self.waiting: set[bytes] = set()
        self.nowhere: set[bytes] = set()
        self.start()

    def start(self) -> None:
        self.table = PeerTable(
            self.random.random, cap=CAP, rate=RATE, burst=2.0, capacity=1, dialable=lambda key: key not in self.nowhere
        )

    def act(self) -> None:
        """Carry out what the table asks for."""
        for key, action in self.table.take_actions():
            match action:
                case Action.DIAL:
                    assert key not in self.dials, "two dials for one peer"
                    assert key in self.kept | self.waiting | self.lingering, "a dial that nobody wants"
                    assert key not in self.connected
                    self.dials.add(key)
                case Action.CANCEL_DIAL:
                    self.dials.remove(key)
                case Action.TELL_CONNECTED:
                    assert key not in self.told
                    self.told.add(key)
                case Action.TELL_DISCONNECTED:
                    self.told.remove(key)
                case _:
                    raise AssertionError(action)

    # ---------------------------------------------------------------- users

    @rule(key=keys)
    def keep(self, key: bytes) -> None:
        self.kept.add(key)
        self.table.keep(key, self.now)
        self.act()

    @rule(key=keys)
    def release(self, key: bytes) -> None:
        self.kept.discard(key)
        self.table.release(key, self.now)
        self.act()

    @rule(key=keys)
    def want(self, key: bytes) -> None:
        if key not in self.connected:
            self.waiting.add(key)
        self.table.want(key, self.now)
        self.act()
        assert key in self.connected | self.dials, "a user waits for a turn"

    @rule(key=keys)
    def unwant(self, key: bytes) -> None:
        self.waiting.discard(key)
        self.table.unwant(key, self.now)
        self.act()

    @rule(key=keys)
    def kick(self, key: bytes) -> None:
        self.table.kick(key, self.now)
        self.act()

    @rule(key=keys)
    def remove(self, key: bytes) -> None:
        for group in (self.kept, self.waiting, self.connected, self.lingering):
            group.discard(key)
        self.table.remove(key, self.now)
        self.act()
        assert key not in self.dials | self.told
        assert self.table.state(key) is PeerState.FORGOTTEN

    @rule()
    def restart(self) -> None:
        """Our process starts anew: only the list of those that are kept is left."""
        for group in (self.connected, self.lingering, self.told, self.dials, self.waiting):
            group.clear()
        self.start()
        for key in sorted(self.kept):
            self.table.keep(key, self.now)
        self.act()

    # ---------------------------------------------------------------- networks

    @precondition(lambda self: self.dials)
    @rule(pick=st.integers(0, 10))
    def fail(self, pick: int) -> None:
        self.fail_dial(sorted(self.dials)[pick % len(self.dials)])

    def fail_dial(self, key: bytes) -> None:
        self.dials.remove(key)
        self.waiting.discard(key)
        self.table.dial_failed(key, self.now)
        self.act()

    @precondition(lambda self: self.dials)
    @rule(pick=st.integers(0, 10))
    def succeed(self, pick: int) -> None:
        key = sorted(self.dials)[pick % len(self.dials)]
        self.dials.remove(key)
        self.attach(key, dialled=True)

    @rule(key=keys)
    def inbound(self, key: bytes) -> None:
        self.attach(key, dialled=False)

    def attach(self, key: bytes, *, dialled: bool) -> None:
        self.connected.add(key)
        self.lingering.discard(key)
        self.waiting.discard(key)
        self.table.attached(key, self.now, dialled=dialled)
        self.act()

    @precondition(lambda self: self.connected)
    @rule(pick=st.integers(0, 10))
    def cut(self, pick: int) -> None:
        key = sorted(self.connected)[pick % len(self.connected)]
        self.connected.remove(key)
        self.lingering.add(key)
        self.table.lost(key, self.now)
        self.act()

    @precondition(lambda self: self.connected)
    @rule(pick=st.integers(0, 10))
    def close(self, pick: int) -> None:
        self.end(sorted(self.connected)[pick % len(self.connected)])

    @precondition(lambda self: self.lingering)
    @rule(pick=st.integers(0, 10))
    def expire(self, pick: int) -> None:
        self.end(sorted(self.lingering)[pick % len(self.lingering)])

    def end(self, key: bytes) -> None:
        self.connected.discard(key)
        self.lingering.discard(key)
        self.table.ended(key, self.now)
        self.act()

    @rule(key=keys)
    def late(self, key: bytes) -> None:
        """Word of what is over long since."""
        if key not in self.dials:
            self.table.dial_failed(key, self.now)
        if key not in self.connected:
            self.table.lost(key, self.now)
        if key not in self.connected | self.lingering:
            self.table.ended(key, self.now)
        self.act()

    @rule()
    def network_change(self) -> None:
        self.table.network_changed(self.now)
        self.act()

    @rule(key=keys)
    def addresses_change(self, key: bytes) -> None:
        """All addresses of a peer are forgotten, or the first is learnt."""
        self.nowhere ^= {key}

    # ---------------------------------------------------------------- clocks

    @rule(seconds=st.sampled_from([0.1, 0.6, 2.0, 40.0, 100_000.0]))
    def tick(self, seconds: float) -> None:
        self.now += seconds
        self.table.handle_timeout(self.now)
        self.act()

    @rule(seconds=st.sampled_from([0.1, 50.0, 100_000.0]))
    def clock_steps_back(self, seconds: float) -> None:
        self.table.handle_timeout(self.now - seconds)
        self.act()

    # ---------------------------------------------------------------- what always holds

    @invariant()
    def users_know_what_is_the_case(self) -> None:
        if hasattr(self, "table"):
            assert self.told == self.connected | self.lingering

    @invariant()
    def each_state_has_what_belongs_to_it(self) -> None:
        if not hasattr(self, "table"):
            return
        known = 0
        for key in KEYS:
            state = self.table.state(key)
            known += state is PeerState.KNOWN
            assert (state is PeerState.CONNECTED) == (key in self.connected)
            assert (state is PeerState.LINGERING) == (key in self.lingering)
            waits = (key in self.dials, key in self.table._turns, key in self.table._pauses)
            match state:
                case PeerState.FORGOTTEN | PeerState.KNOWN:
                    assert waits == (False, False, False)
                    assert key not in self.kept
                case PeerState.CONNECTED:
                    assert waits[1:] == (False, False)
                case PeerState.DIALLING:
                    assert waits in {(True, False, False), (False, True, False)}
                case PeerState.LINGERING:
                    assert sum(waits) == 1
                case PeerState.BACKING_OFF:
                    assert waits == (False, False, True)
        assert known <= 1

    def teardown(self) -> None:
        if hasattr(self, "table"):
            self.heal()

    def heal(self) -> None:
        """Every dial works from now on, but those under way fail: all are back within a cap and the bucket's queue."""
        healed.update(self.table.state(key) for key in KEYS if key in self.kept | self.lingering)
        self.nowhere.clear()
        for key in sorted(self.dials):
            self.fail_dial(key)
        wanted = self.kept | self.lingering
        last = self.now + CAP + (len(KEYS) + 1) / RATE
        while True:
            for key in sorted(self.dials):
                self.dials.remove(key)
                self.attach(key, dialled=True)
            if wanted <= self.connected:
                return
            at = self.table.next_timeout()
            assert at is not None, "somebody is wanted, and nothing is due"
            assert at <= last, "somebody is wanted, and it takes too long"
            self.now = max(self.now, at)
            self.table.handle_timeout(self.now)
            self.act()


def test_whatever_happens_one_owner_dials_and_all_come_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """Corner cases 2, 3, 5, 8, 9 and 18: at least 10,000 steps, which saw every pair that can happen."""
    monkeypatch.setattr(peer_table, "TABLE", Watched(TABLE))
    explored.clear()
    healed.clear()
    run_state_machine_as_test(
        Machine,
        settings=settings(
            max_examples=600,
            stateful_step_count=60,
            deadline=None,
            derandomize=True,
            database=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
    assert set(explored) == set(TABLE) - IMPOSSIBLE
    assert explored.total() >= 10_000
    wanted = {PeerState.DIALLING, PeerState.CONNECTED, PeerState.LINGERING, PeerState.BACKING_OFF}
    assert set(healed) == wanted
    assert min(healed.values()) >= 20
