"""Ten thousand kept peers and ten minutes without a network, on a stepped clock: no storm, and all come back."""

import random
from collections import Counter, deque
from collections.abc import Callable
from functools import partial
from heapq import heappop, heappush
from itertools import count

import pytest

from overlay.protocol.peer_states import Action, PeerState
from overlay.protocol.peer_table import PeerTable

PEERS = 10_000
CAP = 120.0
BURST = 20.0
DOWN, UP = 1000.0, 1600.0
DIAL_TIMEOUT = 10.0
ROUND_TRIPS = 0.1
LINGER = 120.0


class Simulation:
    """The owner of a table: its dials take a moment while the network is there, and time out while it is not."""

    def __init__(self, rate: float) -> None:
        self.random = random.Random(5)
        self.table = PeerTable(self.random.random, cap=CAP, rate=rate, burst=BURST)
        self.keys = [one.to_bytes(32) for one in range(PEERS)]
        self.now = 0.0
        self.dials: list[float] = []
        self.connected: set[bytes] = set()
        self.told = 0
        self._at: list[tuple[float, int, Callable[[], None]]] = []
        self._order = count()
        self._dialling: dict[bytes, int] = {}

    def call_at(self, at: float, what: Callable[[], None]) -> None:
        heappush(self._at, (at, next(self._order), what))

    def run(self, until: float) -> None:
        while True:
            at = min(self._at[0][0] if self._at else until, self.table.next_timeout() or until, until)
            self.now = max(self.now, at)
            if at >= until:
                return
            while self._at and self._at[0][0] <= self.now:
                heappop(self._at)[2]()
            self.table.handle_timeout(self.now)
            self.act()

    def act(self) -> None:
        for key, action in self.table.take_actions():
            match action:
                case Action.DIAL:
                    self.dials.append(self.now)
                    self._dialling[key] = number = len(self.dials)
                    works = not DOWN <= self.now < UP
                    self.call_at(self.now + (ROUND_TRIPS if works else DIAL_TIMEOUT), self._end(key, number, works))
                case Action.CANCEL_DIAL:
                    del self._dialling[key]
                case Action.TELL_CONNECTED:
                    self.told += 1
                case Action.TELL_DISCONNECTED:
                    self.told -= 1
                case _:
                    raise AssertionError(action)

    def _end(self, key: bytes, number: int, works: bool) -> Callable[[], None]:
        def end() -> None:
            if self._dialling.get(key) != number:
                return
            del self._dialling[key]
            if works:
                self.connected.add(key)
                self.table.attached(key, self.now, dialled=True)
            else:
                self.table.dial_failed(key, self.now)
            self.act()

        return end

    def lose(self, key: bytes) -> None:
        """The idle time-out of its connection; two minutes later the session is over, if none has come."""
        self.connected.remove(key)
        self.table.lost(key, self.now)
        self.act()
        self.call_at(self.now + LINGER, partial(self._expire, key))

    def _expire(self, key: bytes) -> None:
        if self.table.state(key) is PeerState.LINGERING:
            self.table.ended(key, self.now)
            self.act()


def most_within_a_second(times: list[float]) -> int:
    """The largest number of them in any second, wherever it begins."""
    window: deque[float] = deque()
    most = 0
    for at in times:
        window.append(at)
        while window[0] <= at - 1.0:
            window.popleft()
        most = max(most, len(window))
    return most


@pytest.mark.parametrize(
    ("rate", "noticed"),
    [
        pytest.param(100.0, True, id="the network's return is noticed"),
        pytest.param(100.0, False, id="it is not, and as many dials are due as may go"),
        pytest.param(400.0, False, id="it is not, and all depends on the pauses"),
    ],
)
def test_ten_minutes_without_a_network(
    rate: float, noticed: bool, record_testsuite_property: Callable[[str, object], None]
) -> None:
    """Corner case 8: dials per second stay under the limit in every second, and all are back within two caps.

    At 100 dials per second 10,000 are a cap's worth: with fewer there would be no hope of having all back within two.
    """
    world = Simulation(rate)
    for key in world.keys:
        world.table.keep(key, 0.0)
    world.act()
    world.run(DOWN)
    assert world.told == len(world.connected) == PEERS
    for key in world.keys:
        world.call_at(DOWN + 30 * world.random.random(), partial(world.lose, key))
    world.run(UP)
    assert world.told == len(world.connected) == 0
    if noticed:
        world.table.network_changed(UP)
        world.act()
    world.run(UP + 2 * CAP)
    assert world.told == len(world.connected) == PEERS
    most = most_within_a_second(world.dials)
    assert most <= rate + BURST
    begun = Counter(int(at) for at in world.dials)
    after = [at for at in world.dials if at >= UP]
    assert len(after) <= PEERS + rate * DIAL_TIMEOUT
    figures = {
        "most dials within any second": most,
        "most dials in one second of the outage": max(n for at, n in begun.items() if DOWN <= at < UP),
        "dials in the outage": sum(DOWN <= at < UP for at in world.dials),
        "dials after it": len(after),
        "seconds from the network's return to the last peer": round(max(after) + ROUND_TRIPS - UP, 1),
    }
    for name, value in figures.items():
        record_testsuite_property(f"{name}, {rate:.0f}/s, {'noticed' if noticed else 'not noticed'}", value)
