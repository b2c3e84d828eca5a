"""The example router on real sockets: rings, lines and meshes of ten whose links break while everybody speaks."""

import asyncio
import random
import signal
from collections import Counter, deque
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest
from router_support import ANNOUNCE, HASTY, PATIENCE, Link, Node, node, process

from overlay import Config, ConfigError, Driver, DriverClosed, Endpoint, FrameTooLong, Identity, PeerId
from overlay.testing import LOOPBACK, ticket, until
from overlay.testing.router import UNREAD_MESSAGES, MeshRouter
from overlay.testing.router_core import Message
from overlay.testing.router_wire import OVERHEAD


class Mesh:
    """Nodes, and links by the places of their ends."""

    def __init__(self, nodes: list[Node], links: dict[tuple[int, int], Link]) -> None:
        self.nodes = nodes
        self.links = links
        self.expected: dict[PeerId, Counter[bytes]] = {one.peer_id: Counter() for one in nodes}
        self.stopped = False
        self._random = random.Random(7)

    def distances(self, start: Node) -> dict[PeerId, int]:
        """Over links that are not cut."""
        found = {start: 0}
        queue = deque([start])
        while queue:
            here = queue.popleft()
            for link in self.links.values():
                if here in link.ends and not link.is_cut:
                    there = link.ends[link.ends[0] is here]
                    if there not in found:
                        found[there] = found[here] + 1
                        queue.append(there)
        return {one.peer_id: distance for one, distance in found.items()}

    @property
    def has_converged(self) -> bool:
        """Everybody knows the shortest ways to all who can be reached, and to nobody else."""
        return all(
            {one.peer_id: 0} | {to: metric for to, (_, metric) in one.router.routes().items()} == self.distances(one)
            for one in self.nodes
        )

    async def converged(self) -> None:
        await until(lambda: self.has_converged, seconds=PATIENCE)

    async def speak(self, one: Node) -> None:
        """To somebody, and now and then to all, until stopped."""
        number = 0
        while not self.stopped:
            payload = f"{one.peer_id.short} {number}".encode() + bytes(self._random.choice((0, 0, 3000)))
            number += 1
            if number % 5:
                to = self._random.choice([other for other in self.nodes if other is not one])
                self.expected[to.peer_id][payload] += 1
                await one.router.send(payload, to.peer_id)
            else:
                for other in self.nodes:
                    if other is not one:
                        self.expected[other.peer_id][payload] += 1
                await one.router.broadcast(payload)
            # What people say, not what a machine can.
            await asyncio.sleep(self._random.uniform(0.0, 0.2))

    @property
    def has_all(self) -> bool:
        return all(not self.expected[one.peer_id] - one.payloads for one in self.nodes)

    async def quiet(self) -> None:
        """Wait until no copy is under way any more."""
        await until(lambda: not any(one.router.waiting for one in self.nodes), seconds=PATIENCE)
        for one in self.nodes:
            assert await one.driver.flush(PATIENCE)


@asynccontextmanager
async def mesh(ends: list[tuple[int, int]], config: Config = HASTY) -> AsyncIterator[Mesh]:
    async with AsyncExitStack() as stack:
        nodes = [await stack.enter_async_context(node(config)) for _ in range(1 + max(map(max, ends)))]
        links = {(a, b): await stack.enter_async_context(Link(nodes[a], nodes[b])) for a, b in ends}
        for link in links.values():
            link.peer()
        made = Mesh(nodes, links)
        await made.converged()
        yield made


LINE = [(place, place + 1) for place in range(9)]
RING = [*LINE, (9, 0)]
CHORDS = [(0, 5), (1, 6), (2, 7), (3, 9), (4, 8)]
SHAPES = {
    "line": (LINE, [(4, 5), (1, 2)]),
    "ring": (RING, [(4, 5), (9, 0)]),
    "mesh": ([*RING, *CHORDS], [(0, 5), (2, 3), (3, 9)]),
}
"""The links, and those of them that are cut at once."""


@pytest.mark.parametrize("shape", SHAPES)
async def test_ten_nodes_lose_nothing_and_hear_nothing_twice_while_links_break_and_heal(shape: str) -> None:
    ends, victims = SHAPES[shape]
    async with mesh(ends) as it:
        async with asyncio.TaskGroup() as group:
            for one in it.nodes:
                group.create_task(it.speak(one))
            victim = it.links[victims[0]]
            before = it.nodes[victims[0][0]].endpoint.sessions[it.nodes[victims[0][1]].peer_id]
            victim.cut()
            await until(lambda: victim.is_felt, seconds=PATIENCE)
            victim.heal()
            await until(lambda: not victim.is_felt, seconds=PATIENCE)
            assert before.error is None, "the session outlives a short cut"
            for place in victims:
                it.links[place].cut()
            await until(lambda: all(it.links[place].is_down for place in victims), seconds=PATIENCE)
            await it.converged()
            for place in victims:
                it.links[place].heal()
            await until(lambda: all(it.links[place].is_up for place in victims), seconds=PATIENCE)
            it.stopped = True
        await until(lambda: it.has_all, seconds=PATIENCE)
        await it.quiet()
        await it.converged()
        for one in it.nodes:
            assert one.payloads == it.expected[one.peer_id]
            assert (one.router.dropped, one.router.garbage) == (0, 0)
        if shape != "line":
            assert sum(one.router.duplicates for one in it.nodes), "floods go round"


async def test_messages_tell_who_sent_them_and_how_far_they_came() -> None:
    async with mesh([(0, 1), (1, 2)]) as it:
        left, middle, right = it.nodes
        await left.router.send(b"far", right.peer_id)
        await left.router.broadcast(b"all")
        await left.router.send(b"self", left.peer_id)
        await until(lambda: len(right.got) == 2)
        await until(lambda: middle.got and left.got)
        assert right.got == [
            Message(b"far", left.peer_id, broadcast=False, hops=2),
            Message(b"all", left.peer_id, broadcast=True, hops=2),
        ]
        assert middle.got == [Message(b"all", left.peer_id, broadcast=True, hops=1)]
        assert left.got == [Message(b"self", left.peer_id, broadcast=False, hops=0)]
        assert left.router.routes() == {middle.peer_id: (middle.peer_id, 1), right.peer_id: (middle.peer_id, 2)}


async def test_what_was_said_before_anybody_was_there_arrives_when_somebody_comes() -> None:
    async with node() as one, node() as two:
        await one.router.broadcast(b"anybody?")
        await one.router.send(b"you", two.peer_id)
        assert one.router.waiting == 1
        one.driver.start_peering(ticket(two.endpoint))
        await until(lambda: len(two.got) == 2)
        assert two.payloads == Counter([b"anybody?", b"you"])


async def test_a_router_that_begins_later_than_its_neighbours_knows_them() -> None:
    async with node() as one, Endpoint(Identity.generate(), HASTY) as endpoint, Driver(endpoint) as driver:
        driver.start_peering(ticket(one.endpoint))
        await until(lambda: driver.neighbours() == [one.peer_id])
        async with MeshRouter(driver, announce=ANNOUNCE) as router:
            await until(lambda: router.routes() == {one.peer_id: (one.peer_id, 1)})
            await one.router.send(b"there you are", endpoint.peer_id)
            assert (await router.next()).payload == b"there you are"


async def test_garbage_of_a_neighbour_is_counted_and_harms_nobody() -> None:
    async with node() as one, Endpoint(Identity.generate(), HASTY) as endpoint, Driver(endpoint) as driver:
        driver.start_peering(ticket(one.endpoint))
        await until(lambda: driver.neighbours() == [one.peer_id])
        for frame in (b"", b"\1", b"hello", bytes(60_000), b"\3" + bytes(80)):
            await driver.send(frame, one.peer_id)
        await until(lambda: one.router.garbage == 5)
        assert one.router.routes() == {}
        assert one.driver.neighbours() == [endpoint.peer_id]


async def test_who_does_not_read_holds_a_bounded_number_and_loses_nothing() -> None:
    async with node() as one, node(reads=False) as two:
        one.driver.start_peering(ticket(two.endpoint))
        await until(lambda: two.peer_id in one.router.routes())
        total = 2 * UNREAD_MESSAGES + 1
        for number in range(total):
            await one.router.send(str(number).encode(), two.peer_id)
        await until(lambda: len(two.router._messages) == UNREAD_MESSAGES)
        heard = [(await two.router.next()).payload for _ in range(total)]
        assert Counter(heard) == Counter(str(number).encode() for number in range(total))


async def test_what_is_too_long_is_refused_with_the_limit() -> None:
    async with node() as one:
        with pytest.raises(FrameTooLong) as caught:
            await one.router.broadcast(bytes(one.driver.max_frame_size))
        assert caught.value.limit == one.driver.max_frame_size - OVERHEAD
        await one.router.broadcast(bytes(caught.value.limit))
        with pytest.raises(ConfigError, match="announce"):
            MeshRouter(one.driver, announce=0.0)


async def test_next_ends_with_the_driver_and_is_cancellation_safe() -> None:
    async with Endpoint(Identity.generate(), HASTY) as endpoint, Driver(endpoint) as driver:
        async with MeshRouter(driver) as router:
            waiting = asyncio.create_task(router.next())
            await asyncio.sleep(0)
            waiting.cancel()
            await asyncio.wait([waiting])
            await router.send(b"kept", endpoint.peer_id)
            reading = asyncio.create_task(router.next())
            assert (await reading).payload == b"kept"
            await driver.aclose()
            with pytest.raises(DriverClosed):
                await router.next()
            with pytest.raises(DriverClosed):
                await router.broadcast(b"nobody")


# ---------------------------------------------------------------- a process


async def test_a_neighbour_that_is_killed_and_started_anew_gets_what_it_has_missed(tmp_path: Path) -> None:
    """It is the end of a line; what is sent to it while it is dead waits at the node before it."""
    key = tmp_path / "key.pem"
    mind = Config(listen=LOOPBACK, backoff_cap=0.5)
    async with node(mind) as far, node(mind) as near:
        far.driver.start_peering(ticket(near.endpoint))
        async with process("--identity", key, ticket(near.endpoint)) as old:
            victim = PeerId.parse(old.key)
            await until(lambda: victim in far.router.routes())
            for number in range(5):
                await far.router.send(f"before {number}".encode(), victim)
            heard = [await old.line() for _ in range(5)]
            assert sorted(heard) == [f"{far.peer_id.short}, 2 links, to you: before {number}" for number in range(5)]
            await old.type("first life")
            await until(lambda: b"first life" in far.payloads)
            # What it has not acknowledged when it dies goes to its successor, who cannot know that it was printed.
            await until(lambda: near.driver.metrics(victim).unacknowledged_size == 0)
            await old.end(signal.SIGKILL)
        for number in range(20):
            await far.router.send(f"after {number}".encode(), victim)
        async with process("--identity", key, ticket(near.endpoint)) as new:
            assert new.key == old.key
            heard = [await new.line() for _ in range(20)]
            assert Counter(line.rpartition(": ")[2] for line in heard) == Counter(f"after {one}" for one in range(20))
            await new.type("second life")
            await until(lambda: b"second life" in far.payloads)
            await far.router.send(b"the end", victim)
            assert await new.line() == f"{far.peer_id.short}, 2 links, to you: the end"
            assert "Traceback" not in await new.end(signal.SIGINT)
            assert new.process.returncode == 130
        assert far.payloads == Counter([b"first life", b"second life"])
        assert (far.router.garbage, near.router.dropped, far.router.dropped) == (0, 0, 0)
