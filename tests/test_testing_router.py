"""The example router: its frames, its tables and stores without a network, and whole meshes on a stepped clock."""

import random
from collections import Counter, deque
from itertools import combinations, pairwise

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from overlay import Identity, PeerId
from overlay.testing.router_ageing import Ageing
from overlay.testing.router_core import Message, RouterCore
from overlay.testing.router_routes import MAX_DESTINATIONS, MEMORY_PERIODS, RoutingTable
from overlay.testing.router_wire import (
    MAX_HOPS,
    MAX_SEQUENCE,
    OVERHEAD,
    ROUTES_PER_FRAME,
    WITHDRAWN,
    Garbage,
    Packet,
    Route,
    decode,
    encode_packet,
    encode_routes,
)

KEYS = [Identity.generate().peer_id for _ in range(10)]
US, NEAR, OTHER, FAR = KEYS[:4]
PERIOD = 1.0
STEP = 0.01
"""Seconds that a frame takes over a link, and between two steps of the clock."""

keys = st.sampled_from(KEYS)
packets = st.builds(
    Packet,
    source=keys,
    number=st.integers(0, 2**64 - 1),
    destination=st.none() | keys,
    hops=st.integers(0, MAX_HOPS - 1),
    payload=st.binary(max_size=100),
)
routes = st.builds(
    Route,
    destination=keys,
    sequence=st.integers(0, MAX_SEQUENCE),
    metric=st.integers(0, MAX_HOPS) | st.just(WITHDRAWN),
)


# ---------------------------------------------------------------- frames


@given(packets)
def test_a_packet_is_read_as_it_was_written_one_link_later(packet: Packet) -> None:
    frame = encode_packet(packet)
    assert decode(frame) == packet._replace(hops=packet.hops + 1)
    assert len(frame) <= len(packet.payload) + OVERHEAD


@given(st.lists(routes, min_size=1, max_size=20).map(lambda some: some * 20))
def test_routes_are_read_as_they_were_written_in_frames_of_bounded_length(some: list[Route]) -> None:
    frames = encode_routes(some)
    assert [route for frame in frames for route in decode(frame)] == some
    assert len(frames) == -(-len(some) // ROUTES_PER_FRAME)


@given(st.binary(max_size=200) | st.builds(bytes.__add__, st.sampled_from([b"\1", b"\2", b"\3"]), st.binary()))
@example(b"")
@example(b"\1")
@example(encode_routes([Route(NEAR, 1, 0)])[0] + b"\0")
@example(encode_routes([Route(NEAR, 1, MAX_HOPS + 1)])[0])
@example(encode_routes([Route(NEAR, MAX_SEQUENCE + 1, 0)])[0])
@example(encode_routes([Route(NEAR, 1, 0)])[0] * (ROUTES_PER_FRAME + 1))
@example(encode_packet(Packet(NEAR, 1, None, -1, b"")))
@example(encode_packet(Packet(NEAR, 1, US, MAX_HOPS, b"")))
@example(encode_packet(Packet(NEAR, 1, US, 0, b""))[:-1])
@example(b"\2\1" + bytes(40))
@example(b"\4" + bytes(74))
def test_garbage_is_told_from_frames_counted_and_dropped(frame: bytes) -> None:
    core = RouterCore(US, period=PERIOD, sequence=1, number=1, now=0.0)
    core.neighbour_up(NEAR, 0.0)
    core.take_actions()
    try:
        heard = decode(frame)
    except Garbage:
        core.received(frame, NEAR, 0.0)
        assert core.garbage == 1
        assert not core.take_actions()
        assert not core.table.routes()
    else:
        if isinstance(heard, Packet):
            assert encode_packet(heard._replace(hops=heard.hops - 1)) == frame
        else:
            assert encode_routes(heard) == [frame], "there is one way to write it"


# ---------------------------------------------------------------- what is remembered


@given(st.lists(st.tuples(st.integers(0, 20), st.integers(0, 40), st.floats(0, 3)), max_size=60))
def test_an_ageing_memory_keeps_the_youngest_within_its_bounds(steps: list[tuple[int, int, float]]) -> None:
    memory: Ageing[int, int] = Ageing(seconds=10.0, count=5, size=100)
    model: dict[int, tuple[float, int]] = {}
    now = 0.0
    for key, size, pause in steps:
        now += pause
        late = [one for one, (since, _) in model.items() if since < now - 10.0]
        assert memory.expire(now) == len(late)
        for one in late:
            del model[one]
        gone = 0
        if key not in model:
            model[key] = now, size
            while len(model) > 5 or sum(size for _, size in model.values()) > 100:
                del model[next(iter(model))]
                gone += 1
        assert memory.add(key, size, size, now) == gone
        assert memory.values() == [size for _, size in model.values()]
        assert [memory.get(one) for one in range(21)] == [model.get(one) for one in range(21)]
        assert len(memory) == len(model)
        assert all((one in memory) == (one in model) for one in range(21))
    for one, (since, _) in model.items():
        memory.replace(one, 1000)
        assert memory.get(one) == (since, 1000)
    assert memory.take_all() == [(one, 1000) for one in model]
    assert not memory.values()
    assert memory.add(1, 1, 100, now) == 0, "its size was given back"


# ---------------------------------------------------------------- routes


def table(*neighbours: PeerId) -> RoutingTable:
    made = RoutingTable(US, period=PERIOD, sequence=10)
    for neighbour in neighbours:
        made.neighbour_up(neighbour)
    made.take_changes()
    return made


def test_a_neighbour_that_was_refused_before_is_taken_with_a_newer_number() -> None:
    """The whole idea: what is not better than what we have said may be our own words that come back."""
    one = table(NEAR, OTHER)
    one.heard([Route(FAR, 5, 1)], NEAR, 0.0)
    assert one.take_changes() == [Route(FAR, 5, 2)]
    one.heard([Route(FAR, 5, 2)], OTHER, 0.0)
    assert one.routes() == {FAR: (NEAR, 2)}
    one.neighbour_down(NEAR, 0.0)
    assert one.routes() == {}, "the other may have it from us"
    assert one.take_changes() == [Route(FAR, 5, WITHDRAWN), Route(US, 13, 0)]
    one.heard([Route(FAR, 6, 7)], OTHER, 0.1)
    assert one.routes() == {FAR: (OTHER, 8)}
    assert one.take_changes() == [Route(FAR, 6, 8)]


def test_an_equally_good_neighbour_takes_over_at_once() -> None:
    one = table(NEAR, OTHER)
    for neighbour in (NEAR, OTHER):
        one.heard([Route(FAR, 5, 1)], neighbour, 0.0)
    one.take_changes()
    first = one.next_hop(FAR)
    assert first is not None
    one.neighbour_down(first, 0.0)
    assert one.routes() == {FAR: (({NEAR, OTHER} - {first}).pop(), 2)}


def test_a_withdrawn_route_goes_on_to_the_neighbours_once() -> None:
    one = table(NEAR)
    one.heard([Route(FAR, 5, 1)], NEAR, 0.0)
    one.take_changes()
    for _ in range(2):
        one.heard([Route(FAR, 5, WITHDRAWN)], NEAR, 0.0)
    assert one.take_changes() == [Route(FAR, 5, WITHDRAWN)]
    one.heard([Route(FAR, 5, WITHDRAWN)], NEAR, 0.0)
    assert not one.changed
    assert one.next_hop(FAR) is None


def test_what_was_never_told_is_not_withdrawn() -> None:
    one = table(NEAR)
    one.heard([Route(FAR, 5, 1)], NEAR, 0.0)
    one.heard([Route(FAR, 5, WITHDRAWN)], NEAR, 0.0)
    assert one.take_changes() == []


def test_old_news_are_ignored_and_do_not_keep_a_route_alive() -> None:
    one = table(NEAR)
    one.heard([Route(FAR, 5, 1)], NEAR, 0.0)
    one.heard([Route(FAR, 4, WITHDRAWN)], NEAR, 0.0)
    assert one.routes() == {FAR: (NEAR, 2)}
    for tenth in range(40):
        one.heard([Route(FAR, 5, 1)], NEAR, tenth / 10)
    one.expire(3.4)
    assert one.routes()
    one.expire(3.6)
    assert not one.routes()


def test_who_is_too_far_away_is_not_there() -> None:
    one = table(NEAR)
    one.heard([Route(FAR, 5, MAX_HOPS - 1)], NEAR, 0.0)
    assert one.routes() == {FAR: (NEAR, MAX_HOPS)}
    one.heard([Route(FAR, 6, MAX_HOPS)], NEAR, 0.0)
    assert one.routes() == {}


@pytest.mark.parametrize("lie", [Route(FAR, 1, 0), Route(NEAR, 1, 1), Route(NEAR, 1, WITHDRAWN)])
def test_nobody_speaks_as_if_it_was_somebody_else(lie: Route) -> None:
    core = RouterCore(US, period=PERIOD, sequence=1, number=1, now=0.0)
    core.neighbour_up(NEAR, 0.0)
    core.received(encode_routes([Route(NEAR, 1, 0), lie])[0], NEAR, 0.0)
    assert core.garbage == 1
    assert not core.table.routes()


def test_routes_of_somebody_who_is_no_neighbour_are_ignored() -> None:
    one = table()
    one.heard([Route(NEAR, 5, 0), Route(FAR, 5, 1)], NEAR, 0.0)
    assert not one.routes()


def test_who_hears_a_newer_number_of_itself_goes_on_from_there() -> None:
    """It was started again, and its clock went back meanwhile: the others take it for old news."""
    one = table(NEAR)
    one.heard([Route(US, 999, 3)], NEAR, 0.0)
    assert one.take_changes() == [Route(US, 1000, 0)]
    one.heard([Route(US, 1000, 3)], NEAR, 0.0)
    assert not one.changed


def test_a_table_has_room_for_so_many_destinations_and_forgets_them_when_they_are_long_gone() -> None:
    one = table(NEAR)
    crowd = [Identity.generate().peer_id for _ in range(MAX_DESTINATIONS)]
    one.heard([Route(NEAR, 1, 0), *(Route(key, 1, 1) for key in crowd)], NEAR, 0.0)
    assert len(one.routes()) == MAX_DESTINATIONS
    assert one.refused == 1
    one.expire(4.0)
    assert not one.routes()
    one.heard([Route(FAR, 1, 1)], NEAR, 4.0)
    assert one.refused == 2, "what was said of them has to be remembered for a while"
    one.take_changes()
    one.expire(4.0 + MEMORY_PERIODS + 1)
    one.heard([Route(FAR, 1, 1)], NEAR, 70.0)
    assert one.routes() == {FAR: (NEAR, 2)}


# ---------------------------------------------------------------- meshes


class Mesh:
    """Some nodes, and links with a delay between them that break without a word, or hang for a while."""

    def __init__(self, count: int, seed: int) -> None:
        self.random = random.Random(seed)
        self.now = 0.0
        self.cores = {
            key: RouterCore(key, period=PERIOD, sequence=1, number=1, now=self.random.uniform(0, PERIOD))
            for key in KEYS[:count]
        }
        self.lines: dict[tuple[PeerId, PeerId], deque[tuple[float, bytes]]] = {}
        self.hanging: set[frozenset[PeerId]] = set()
        self.got: dict[PeerId, Counter[bytes]] = {key: Counter() for key in self.cores}
        self.longest_way = 0

    def link(self, one: PeerId, two: PeerId) -> None:
        if (one, two) in self.lines:
            return
        for here, there in ((one, two), (two, one)):
            self.lines[here, there] = deque()
        for here, there in ((one, two), (two, one)):
            self.cores[here].neighbour_up(there, self.now)
            self.act(here)

    def cut(self, one: PeerId, two: PeerId) -> None:
        """Some of what is under way arrives, but nobody knows; all of it comes back."""
        if (one, two) not in self.lines:
            return
        self.hanging.discard(frozenset({one, two}))
        ends = ((one, two), (two, one))
        lost = {(here, there): self.lines.pop((here, there)) for here, there in ends}
        for here, there in ends:
            waiting = lost[here, there]
            for _, frame in list(waiting)[: self.random.randint(0, len(waiting))]:
                self.cores[there].received(frame, here, self.now)
            before = self.random.random() < 0.5
            if before:
                self.cores[here].neighbour_down(there, self.now)
            for _, frame in waiting:
                self.cores[here].returned(frame, there, self.now)
            if not before:
                self.cores[here].neighbour_down(there, self.now)
        for here, _ in ends:
            self.act(here)

    def act(self, here: PeerId) -> None:
        core = self.cores[here]
        for action in core.take_actions():
            if isinstance(action, Message):
                self.got[here][action.payload] += 1
                self.longest_way = max(self.longest_way, action.hops)
                continue
            to = [there for one, there in self.lines if one == here and there != action.exclude]
            if action.neighbour is not None:
                to = [there for there in to if there == action.neighbour]
                if not to:
                    core.returned(action.frame, action.neighbour, self.now)
            for there in to:
                self.lines[here, there].append((self.now, action.frame))

    def step(self) -> None:
        """One step of the clock."""
        self.now += STEP
        for (here, there), line in tuple(self.lines.items()):
            if frozenset({here, there}) in self.hanging:
                # Its driver hands back what is too old, and it may have arrived or not.
                while line and line[0][0] < self.now - 4 * PERIOD:
                    _, frame = line.popleft()
                    if self.random.random() < 0.5:
                        self.cores[there].received(frame, here, self.now)
                    self.cores[here].returned(frame, there, self.now)
                continue
            while line and line[0][0] <= self.now - STEP:
                self.cores[there].received(line.popleft()[1], here, self.now)
        for key, core in self.cores.items():
            if core.next_timeout() <= self.now:
                core.handle_timeout(self.now)
            self.act(key)
        self.check()

    def run(self, seconds: float) -> None:
        for _ in range(round(seconds / STEP)):
            self.step()

    def check(self) -> None:
        """At no moment do the next hops lead in a circle."""
        for destination in self.cores:
            for start in self.cores:
                here: PeerId | None = start
                for _ in range(len(self.cores)):
                    if here is None or here == destination:
                        break
                    here = self.cores[here].table.next_hop(destination)
                else:
                    raise AssertionError("a loop")

    def distances(self, start: PeerId) -> dict[PeerId, int]:
        found = {start: 0}
        queue = deque([start])
        while queue:
            here = queue.popleft()
            for one, there in self.lines:
                if one == here and there not in found:
                    found[there] = found[here] + 1
                    queue.append(there)
        return found

    def assert_shortest(self) -> None:
        for key, core in self.cores.items():
            known = {to: metric for to, (_, metric) in core.table.routes().items()}
            assert {key: 0} | known == self.distances(key)
            for to, (next_hop, metric) in core.table.routes().items():
                assert self.distances(next_hop)[to] == metric - 1


SETTLED = 6 * PERIOD
"""After the last change: three announcements that do not come, then one that does."""

pairs_of_nodes = st.tuples(st.integers(0, 9), st.integers(0, 9))
steps = st.one_of(
    st.tuples(st.sampled_from(["cut", "heal", "hang", "go on"]), pairs_of_nodes),
    st.tuples(st.sampled_from(["send", "flood"]), pairs_of_nodes),
    st.tuples(st.just("wait"), st.tuples(st.sampled_from([1, 3, 10, 50, 200]), st.just(0))),
)


@given(
    count=st.integers(2, 7), links=st.sets(pairs_of_nodes, min_size=4, max_size=12),
    script=st.lists(steps, min_size=10, max_size=30), seed=st.integers(0, 255),
)  # fmt: skip
@settings(max_examples=100, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
def test_whatever_breaks_routes_are_shortest_in_the_end_and_everything_arrives_once(
    count: int, links: set[tuple[int, int]], script: list[tuple[str, tuple[int, int]]], seed: int
) -> None:
    mesh = Mesh(count, seed)
    nodes = list(mesh.cores)
    sent: list[tuple[bytes, list[PeerId]]] = []
    for first, second in links:
        if first % count != second % count:
            mesh.link(nodes[first % count], nodes[second % count])
    for what, (first, second) in script:
        one, two = nodes[first % count], nodes[second % count]
        payload = str(len(sent)).encode()
        match what:
            case "wait":
                for _ in range(first):
                    mesh.step()
            case "send":
                mesh.cores[one].send(payload, two, mesh.now)
                sent.append((payload, [two]))
            case "flood":
                mesh.cores[one].send(payload, None, mesh.now)
                sent.append((payload, [node for node in nodes if node != one]))
            case "cut":
                mesh.cut(one, two)
            case "heal" if one != two:
                mesh.link(one, two)
            case "hang" if (one, two) in mesh.lines:
                mesh.hanging.add(frozenset({one, two}))
            case "go on":
                mesh.hanging.discard(frozenset({one, two}))
        for node in (one, two):
            mesh.act(node)
    mesh.hanging.clear()
    mesh.run(SETTLED)
    mesh.assert_shortest()
    for one, two in pairwise(nodes):
        mesh.link(one, two)
    mesh.run(SETTLED)
    mesh.assert_shortest()
    expected: dict[PeerId, Counter[bytes]] = {node: Counter() for node in nodes}
    for payload, receivers in sent:
        for node in receivers:
            expected[node][payload] += 1
    assert mesh.got == expected
    assert not any(core.waiting or core.dropped or core.garbage for core in mesh.cores.values())


def test_a_ring_of_ten_that_is_cut_again_and_again_loses_nothing_and_its_messages_do_not_wander() -> None:
    mesh = Mesh(10, seed=1)
    nodes = list(mesh.cores)
    ring = [*pairwise(nodes), (nodes[-1], nodes[0])]
    for one, two in ring:
        mesh.link(one, two)
    mesh.run(2.0)
    mesh.assert_shortest()
    number = 0
    for turn in range(20):
        mesh.cut(*ring[3 * turn % 10])
        for one, two in combinations(nodes, 2):
            mesh.cores[one].send(str(number).encode(), two, mesh.now)
            mesh.act(one)
            number += 1
        mesh.run(0.3)
        mesh.link(*ring[3 * turn % 10])
        mesh.run(0.2)
    mesh.run(SETTLED)
    mesh.assert_shortest()
    assert sum(mesh.got.values(), start=Counter()) == Counter({str(one).encode(): 1 for one in range(number)})
    assert mesh.longest_way <= 20
