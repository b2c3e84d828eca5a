"""QUIC's search for the path's MTU: what is found, at which cost, and what a path that changes does to it."""

from collections.abc import Callable
from functools import partial

import pytest
from aioquic.tls import Epoch
from hypothesis import given, settings
from hypothesis import strategies as st
from quic_road import JUMBO, Road, Side
from quic_support import connect, node
from quic_twins import ELSEWHERE

from overlay.config import Config
from overlay.protocol.udp.mtu import LOST_IN_A_ROW, RAISE_AFTER_BLACK_HOLE, Phase
from overlay.transports.base import Role
from overlay.transports.quic_connection import QuicLink
from overlay.transports.quic_mtu import DATAGRAM_OVERHEAD

BASE = 1200
LIMITS = [BASE, 1280, 1392, 1452, 1472, JUMBO]
TRIPS = [0.001, 0.08, 0.6]
SEARCH = 60.0
"""Seconds that a search takes at most, at the longest round trip here, with random loss."""
trips = pytest.mark.parametrize("rtt", TRIPS)
limits = pytest.mark.parametrize("limit", LIMITS)


def is_found(side: Side, limit: int) -> bool:
    """Whether it sends as much as the path carries, as exactly as it is searched for."""
    return limit - max(8, limit // 64) <= side.engine.mtu <= limit


def is_done(*sides: Side) -> bool:
    return all(side.engine._search._phase is Phase.DONE for side in sides)


def largest(side: Side, since: float = 0.0) -> int:
    """Bytes of the largest datagram that it has sent since then, beside probes."""
    probes = set(side.probes)
    return max(sent.size for sent in side.sent if sent.at > since and sent not in probes)


@limits
@trips
def test_what_the_path_carries_is_found_at_rest(rtt: float, limit: int) -> None:
    """By both ends, and it costs the congestion control nothing: the probes that are lost are none of its packets."""
    with Road(rtt, limit) as road:
        road.until(lambda: is_done(road.near, road.far))
        for side in (road.near, road.far):
            congestion = side.engine.congestion
            assert is_found(side, limit)
            assert largest(side) <= BASE
            assert len(side.probes) <= 16
            assert congestion.lost == 0
            assert congestion.congestion_window >= 10 * BASE
            assert congestion._congestion_recovery_start_time == 0.0
            assert not side.engine._loss.bytes_in_flight


@limits
@trips
def test_what_the_path_carries_is_found_beside_a_transfer(rtt: float, limit: int) -> None:
    """The same, and no byte is sent twice."""
    with Road(rtt, limit) as road:
        road.near.owed = 600_000
        road.until(lambda: road.far.received == 600_000 and is_done(road.near))
        assert is_found(road.near, limit)
        assert BASE <= largest(road.near) <= limit
        assert road.near.engine.congestion.lost == 0
        assert sum(sent.size for sent in road.near.sent) < 700_000 + 20 * JUMBO


@pytest.mark.parametrize("loss", [0.02, 0.2])
@limits
@trips
def test_what_the_path_carries_is_found_where_packets_are_lost_by_chance(rtt: float, limit: int, loss: float) -> None:
    """A black hole that is only chance is left again soon."""
    with Road(rtt, limit, loss=loss, seed=limit) as road:
        road.near.owed = 200_000
        road.every(5.0, Role.DIALER, 500)
        road.until(lambda: road.far.received >= 200_000 and is_found(road.near, limit))
        assert largest(road.near) <= limit
        assert road.now < road.far.arrived[0][0] + 3 * RAISE_AFTER_BLACK_HOLE


@settings(deadline=None, max_examples=60)
@given(
    rtt=st.floats(0.001, 2.0),
    limit=st.integers(BASE, 9100),
    loss=st.sampled_from([0.0, 0.0, 0.02, 0.1]),
    local=st.sampled_from([65_507, 1300, 8000]),
    sizes=st.lists(st.sampled_from([0, 1, 5000, 60_000]), min_size=1, max_size=3),
    falls=st.sampled_from([9100, BASE, 1400]),
    keys=st.booleans(),
    seed=st.integers(0, 99),
)
def test_all_arrives_whatever_the_path_carries(
    rtt: float, limit: int, loss: float, local: int, sizes: list[int], falls: int, keys: bool, seed: int
) -> None:
    """And what it carries is found wherever nothing is lost by chance, and it has not changed."""
    road = Road(rtt, limit, loss=loss, seed=seed)
    road.near.local_limit = local
    with road:
        for size in sizes:
            road.near.owed += size
            road.far.owed += 100
            if keys:
                road.near.engine.request_key_update()
            road.run(8 * rtt)
        road.limit = min(limit, falls)
        road.near.owed += 1000
        road.until(lambda: road.far.received == sum(sizes) + 1000 and road.near.received == 100 * len(sizes))
        if road.limit == limit and not loss:
            road.until(lambda: is_done(road.near))
            assert is_found(road.near, min(limit, local, 8972))


@pytest.mark.parametrize(("bulk", "most"), [(False, 8972), (True, BASE), (True, 300), (True, BASE + 7)])
def test_nothing_is_searched_for_where_it_is_not_wanted(bulk: bool, most: int) -> None:
    """With a version of aioquic that nobody has looked at, or a limit that leaves nothing to find."""
    road = Road(0.01, JUMBO, largest=most)
    road.near.engine.bulk = bulk
    with road:
        road.near.owed = 100_000
        road.until(lambda: road.far.received == 100_000)
        road.run(5.0)
        assert not road.near.probes
        assert largest(road.near) == road.near.engine.mtu == BASE


@pytest.mark.parametrize("to", [BASE, 1400])
@pytest.mark.parametrize("start", [1472, JUMBO])
@trips
def test_transfer_survives_a_black_hole(rtt: float, start: int, to: int) -> None:
    """The path carries less in the middle of it; and what it carries again later, after a minute, is found again."""
    with Road(rtt, start) as road:
        road.until(lambda: is_done(road.near))
        road.near.owed = 1_500_000
        road.until(lambda: road.far.received > 300_000)
        road.limit, changed = to, road.now
        road.until(lambda: road.far.received == 1_500_000)
        assert road.near.engine._search.black_holes == 1
        assert road.far.stall(changed) < 0.1 + 4 * rtt
        road.every(5.0, Role.DIALER, 500)
        road.until(lambda: is_done(road.near))
        assert is_found(road.near, to)
        done, road.limit = road.now, start
        road.until(lambda: is_found(road.near, start))
        assert done + RAISE_AFTER_BLACK_HOLE - rtt <= road.now < done + RAISE_AFTER_BLACK_HOLE + SEARCH
        assert road.near.engine._search.black_holes == 1


@pytest.mark.parametrize("chatter", [None, 0.1, 0.5, 1.3])
@pytest.mark.parametrize("to", [BASE, 1400])
@trips
def test_black_hole_is_noticed_by_few_packets(rtt: float, to: int, chatter: float | None) -> None:
    """One message each second, whether the peer has something to say all the while or not."""
    with Road(rtt, JUMBO) as road:
        if chatter is not None:
            road.every(chatter, Role.ACCEPTOR, 100)
        road.every(1.0, Role.DIALER, 5000)
        road.run(20.2)
        assert road.near.engine.mtu == JUMBO
        assert len(road.far.arrived) > 15
        road.limit, changed = to, road.now
        road.until(lambda: road.near.engine.mtu <= to)
        assert road.now - changed < 7.0
        assert road.near.engine.congestion.lost < LOST_IN_A_ROW, "timeouts tell sooner"
        road.run(SEARCH)
        assert is_found(road.near, to)
        assert road.far.received > 5000 * (SEARCH + 15)


@pytest.mark.parametrize("seconds", [0.3, 3.0, 8.0])
@pytest.mark.parametrize("searched", [False, True])
@trips
def test_outage_is_no_black_hole_for_good(rtt: float, seconds: float, searched: bool) -> None:
    """Where nothing arrives, no probe is sent, and soon afterwards all is as it was."""
    with Road(rtt, JUMBO) as road:
        if searched:
            road.until(lambda: is_done(road.near))
        road.near.owed = 400_000
        road.every(5.0, Role.DIALER, 500)
        road.run(2.2 * rtt)
        road.is_down, down = True, road.now
        road.run(seconds)
        assert sum(probe.at > down for probe in road.near.probes) <= 1
        road.is_down = False
        road.run(SEARCH)
        assert road.far.received >= 400_000
        assert is_found(road.near, JUMBO)


def test_system_that_refuses_a_probe_is_asked_for_less() -> None:
    """At once: EMSGSIZE is no loss."""
    road = Road(0.08, JUMBO)
    road.near.local_limit = 1400
    with road:
        road.until(lambda: is_done(road.near))
        assert is_found(road.near, 1400)
        assert max(sent.size for sent in road.near.sent) <= 1400
        assert road.now < road.far.arrived[0][0] + 1.5


@pytest.mark.parametrize("limit", [1190, 1300])
def test_system_that_refuses_a_burst_gets_smaller_ones(limit: int) -> None:
    """In the same turn too: what is made after the refusal has the new size. Less than the base is refused in vain."""
    with Road(0.01, JUMBO) as road:
        road.until(lambda: is_done(road.near))
        road.near.owed = 2_000_000
        road.until(lambda: road.far.received > 1_000_000)
        road.near.local_limit, changed = limit, road.now
        if limit < BASE:
            road.run(5.0)
            assert road.near.engine.mtu == BASE
            road.near.local_limit = BASE
        road.until(lambda: road.far.received == 2_000_000)
        road.until(lambda: is_done(road.near))
        assert max(sent.size for sent in road.near.sent if sent.at > changed) <= max(limit, BASE)
        assert road.near.engine.mtu == BASE or is_found(road.near, limit)


def test_frames_that_have_become_too_long_are_dropped_and_block_nobody() -> None:
    """DATAGRAM frames wait for the window, and what fits into a packet changes under them."""
    with Road(0.01, JUMBO) as road:
        road.until(lambda: is_done(road.near))
        engine = road.near.engine
        assert engine.max_datagram == JUMBO - DATAGRAM_OVERHEAD
        road.limit = 1400
        for _ in range(40):
            engine.send_datagram_frame(bytes(engine.max_datagram))
        engine.send_datagram_frame(b"behind")
        road.until(lambda: b"behind" in road.far.frames)
        assert len(road.far.frames) == 1
        assert not engine.waiting_datagrams
        assert engine.max_datagram == engine.mtu - DATAGRAM_OVERHEAD <= 1400
        longest = bytes(engine.max_datagram)
        engine.send_datagram_frame(longest)
        road.until(lambda: longest in road.far.frames)


def moves(road: Road) -> None:
    """The client knows that its network is another one."""
    road.near.engine.change_connection_id()
    road.near.engine.path_changed()
    road.addresses[Role.DIALER] = ELSEWHERE


def is_moved(road: Road) -> None:
    """A NAT has forgotten the client, who does not know."""
    road.addresses[Role.DIALER] = ELSEWHERE


@pytest.mark.parametrize("move", [moves, is_moved])
@pytest.mark.parametrize("busy", [False, True])
def test_another_path_is_searched_anew(move: Callable[[Road], None], busy: bool) -> None:
    """Its probes are as small as any path allows, as the answers must arrive on one that carries little."""
    with Road(0.08, JUMBO) as road:
        road.until(lambda: is_done(road.near, road.far))
        road.near.owed = road.far.owed = 400_000 if busy else 50
        road.later(0.3, partial(move, road))
        road.run(0.29)
        road.near.owed += 50
        road.limit, changed = 1300, road.now
        road.run(0.5)
        assert road.far.engine._network_paths[0].addr == ELSEWHERE
        new = [sent for sent in road.far.sent if sent.address == ELSEWHERE]
        assert max(sent.size for sent in new if sent.at < new[0].at + 0.079) <= BASE
        if not busy:
            assert largest(road.near, changed) == BASE
            assert road.far.engine._network_paths[0].is_validated
        road.run(SEARCH / 3)
        assert road.near.received == road.far.received - 50
        assert is_found(road.far, 1300)
        if move is moves or busy:
            assert is_found(road.near, 1300)


def test_answer_to_a_probe_of_the_former_path_says_nothing_of_the_new_one() -> None:
    """The peer's answer comes to wherever we are."""
    with Road(0.08, JUMBO) as road:
        road.until(lambda: any(probe.size == JUMBO for probe in road.near.probes))
        moves(road)
        road.limit = 1300
        for _ in range(100):
            road.run(0.05)
            assert road.near.engine.mtu <= 1300
        assert is_found(road.near, 1300)


def test_keys_may_change_at_any_probe() -> None:
    """One is under way then, and another one is the first packet with the new keys."""
    with Road(0.08, 1392) as road:
        for turn in range(1, 9):
            road.until(lambda turn=turn: len(road.near.probes) >= turn)  # type: ignore[misc]
            side = road.near if turn % 2 else road.far
            phase = side.engine._cryptos[Epoch.ONE_RTT].key_phase
            side.engine.request_key_update()
            road.run(0.2)
            assert side.engine._cryptos[Epoch.ONE_RTT].key_phase != phase
        road.until(lambda: is_done(road.near, road.far))
        assert is_found(road.near, 1392)
        assert is_found(road.far, 1392)
        assert len(road.near.probes) < 16


@pytest.mark.parametrize(("most", "found"), [(65_507, JUMBO), (1300, 1300)])
async def test_two_nodes_find_what_loopback_carries(most: int, found: int) -> None:
    """Or what the configuration allows."""
    config = Config(largest_datagram=most)
    async with node(config) as alice, node(config) as bob:
        link, recorder, arrival = await connect(alice, bob)
        other = arrival.connection
        assert isinstance(other, QuicLink)
        for connection, events in ((link, arrival), (other, recorder)):
            turns = 0
            while connection.mtu < found - max(8, found // 64):
                connection.send_datagram(b"news")
                connection.flush()
                turns += 1
                await events.until(lambda turns=turns, events=events: len(events.datagrams) >= turns)  # type: ignore[misc]
            assert connection.mtu <= found
            assert connection.max_datagram_size == connection.mtu - DATAGRAM_OVERHEAD
