"""Staying connected: who is dialled when, what ends it, and that a dial is never forgotten or doubled."""

import asyncio
import random
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from keeper_support import HOLE, NOBODY, Line, means_the_same, table, with_hole

from overlay import (
    Config,
    DialError,
    Endpoint,
    EndpointClosed,
    Identity,
    PathChanged,
    PeerConnected,
    PeerDisconnected,
    PeerId,
    SelfDial,
    Ticket,
)
from overlay.network_state import NetworkChange
from overlay.protocol.evidence import Source
from overlay.protocol.peer_states import PeerState
from overlay.testing import LOOPBACK, connections, raises, ticket, until

MEMORY = Config(transports=("memory",))


@asynccontextmanager
async def two(**settings: Any) -> AsyncIterator[tuple[Endpoint, Endpoint]]:
    config = Config(transports=("memory",), **settings)
    async with Endpoint(Identity.generate(), config) as us, Endpoint(Identity.generate(), config) as them:
        yield us, them


async def turns(count: int = 20) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


def somebody(*addresses: Any) -> Ticket:
    return Ticket(Identity.generate().peer_id, addresses or (NOBODY,))


# -------------------------------------------------------------------- both directions


async def test_two_who_keep_each_other_have_one_session_and_one_connection() -> None:
    """Fifty rounds, in each of which both dial at about the same moment."""
    lot = random.Random(7)
    for _ in range(50):
        async with two() as (one, other):
            events = {node: node.events() for node in (one, other)}
            one.keep(ticket(other))
            await turns(lot.randrange(6))
            other.keep(ticket(one))
            await until(lambda: one.sessions and other.sessions)
            await until(lambda: not one._tasks and not other._tasks)
            await until(lambda: len(connections(one, other.peer_id)) == 1 == len(connections(other, one.peer_id)))
            for node, peer in ((one, other), (other, one)):
                assert node.keeper.state(peer.peer_id) is PeerState.CONNECTED
                assert means_the_same(node, peer.peer_id)
                await node.aclose()
                told = [event async for event in events[node] if isinstance(event, PeerConnected | PeerDisconnected)]
                assert list(map(type, told)) == [PeerConnected, PeerDisconnected]


async def test_who_was_dialled_uses_the_session_or_waits_for_the_next() -> None:
    """Of the caller no address is known: `connect` by its key alone works nevertheless."""
    async with two() as (server, client):
        session = await client.connect(ticket(server))
        await until(lambda: server.sessions)
        assert await server.connect(client.peer_id) is server.sessions[client.peer_id]
        await session.aclose()
        await until(lambda: not server._peers)
        waiting = asyncio.create_task(_connect(server, client.peer_id))
        await turns()
        assert not waiting.done()
        await client.connect(ticket(server))
        assert (await waiting).peer_id == client.peer_id
        async with raises(DialError):
            await server.connect(Identity.generate().peer_id)


@pytest.mark.parametrize("before", [True, False])
async def test_a_kept_peer_is_no_stranger_though_it_dials_us(before: bool) -> None:
    """Its session counts as one that we have chosen, and is not given up for others."""
    async with two() as (server, client):
        if before:
            server.keep(client.peer_id)
        await client.connect(ticket(server))
        await until(lambda: server.sessions)
        assert server._peers[client.peer_id].stranger is not before
        server.keep(client.peer_id)
        assert not server._peers[client.peer_id].stranger


# -------------------------------------------------------------------- down and back


async def test_a_kept_peer_that_was_down_is_connected_again() -> None:
    """It comes back on its old port as a new process; nobody but the keeper does anything."""
    key = Identity.generate()
    config = Config(listen=LOOPBACK, transports=("tcp",), backoff_cap=0.5)
    async with Endpoint(Identity.generate(), config) as us:
        async with Endpoint(key, config) as them:
            us.keep(ticket(them))
            await until(lambda: us.sessions)
            [address] = them.addresses
        await until(lambda: not us.sessions)
        await until(lambda: us.keeper.next_dial(key.peer_id) is not None)
        assert us.keeper.state(key.peer_id) is PeerState.BACKING_OFF
        again = Config(listen=(f"{address.host}:{address.port}",), transports=("tcp",))
        async with Endpoint(key, again) as them:
            await until(lambda: us.sessions and them.sessions)


async def test_a_peer_that_accepts_and_closes_at_once_is_not_dialled_in_a_circle(
    record_property: Callable[[str, object], None],
) -> None:
    async with two() as (us, them):
        line = Line(us)
        events = them.events()

        async def close_each() -> None:
            async for event in events:
                if isinstance(event, PeerConnected):
                    # Closed before we know of it, it is a dial that has failed, after which the pauses grow.
                    await until(lambda: us.keeper.state(them.peer_id) is PeerState.CONNECTED)
                    # It may be over before the event is read.
                    if (session := them.sessions.get(event.peer_id)) is not None:
                        await session.aclose()

        closing = asyncio.create_task(close_each())
        began = asyncio.get_running_loop().time()
        us.keep(ticket(them))
        await until(lambda: len(line.dialled) == 3)
        elapsed = asyncio.get_running_loop().time() - began
        record_property("seconds for three dials", elapsed)
        # A dial that has succeeded is followed by the next one a second after it, whatever pause is drawn.
        assert elapsed >= 1.99
        closing.cancel()
        await asyncio.wait([closing])


@pytest.mark.parametrize("address", [NOBODY, HOLE])
async def test_two_hundred_kept_peers_that_are_off_cost_no_more_dials_than_are_set(
    address: Any, record_property: Callable[[str, object], None]
) -> None:
    """Those that refuse, and those that never answer."""
    rate = 40.0
    config = Config(transports=("memory",), dials_per_second=rate, dial_timeout=0.5)
    async with Endpoint(Identity.generate(), config) as us:
        line = Line(us)
        loop = asyncio.get_running_loop()
        began = loop.time()
        for _ in range(200):
            us.keep(somebody(address))
        await until(lambda: len(line.dialled) >= 80)
        elapsed = loop.time() - began
        record_property("dials per second", len(line.dialled) / elapsed)
        assert len(line.dialled) <= 20 + 1 + rate * elapsed
        # Who waits has no task and no object of its own.
        assert len(us._tasks) <= 20 + rate * (config.dial_timeout + elapsed)
        assert all(means_the_same(us, peer.peer_id) for peer in us.peers())


async def test_addresses_that_may_never_be_dialled_are_failures_with_pauses() -> None:
    config = Config(listen=LOOPBACK, transports=("tcp",), never_dial=("127.0.0.0/8",))
    async with Endpoint(Identity.generate(), config) as us, Endpoint(Identity.generate(), config) as them:
        peer_id = us.keep(ticket(them))
        await until(lambda: us.keeper.state(peer_id) is PeerState.BACKING_OFF)
        assert peer_id not in us._peers
        [status] = us.peers()
        assert status.addresses[0].failures == 1
        async with raises(DialError) as caught:
            await us.connect(peer_id)
        assert "never_dial" in str(caught[0])


# -------------------------------------------------------------------- users and the keeper


@pytest.mark.parametrize("first", ["keeper", "user"])
async def test_a_user_does_not_cut_short_the_dial_for_a_kept_peer(first: str) -> None:
    """Those who wait 10 ms get an error, and the dial that was on goes on, and succeeds."""
    async with two() as (us, them):
        line = Line(us, "hangs")
        us.keep(ticket(them))
        if first == "keeper":
            await until(lambda: line.hanging)
        # The second one gives the end of the first one's time its chance.
        for _ in range(2):
            async with raises(DialError):
                await us.connect(ticket(them), timeout=0.01)
        assert len(line.hanging) == 1 == len(line.dialled)
        line.go_on()
        await until(lambda: us.sessions)
        assert len(line.dialled) == 1


async def test_a_second_user_does_not_cut_short_the_dial_of_the_first() -> None:
    """Each waits as long as it has said, whoever has come and gone since."""
    async with two() as (us, them):
        line = Line(us, "hangs")
        first = asyncio.create_task(_connect(us, ticket(them), timeout=20.0))
        await until(lambda: line.hanging)
        async with raises(DialError):
            await us.connect(ticket(them), timeout=0.01)
        line.go_on()
        assert (await first).state == "connected"
        assert len(line.dialled) == 1


async def test_what_failed_before_a_user_came_is_tried_again_for_it() -> None:
    """The dial is on because of an address that never answers; the other one has come back meanwhile."""
    async with two() as (us, them):
        line = Line(us, "refuses")
        us.keep(with_hole(ticket(them)))
        await until(lambda: HOLE in line.dialled and len(line.dialled) == 2)
        line.mode = "works"
        session = await us.connect(them.peer_id, timeout=10)
        assert session.state == "connected"


async def test_an_early_session_that_is_closed_leaves_no_dial_behind() -> None:
    """Its race goes on at no address, and nothing is begun in its place."""
    async with two() as (us, them):
        line = Line(us)
        session = await us.connect(with_hole(ticket(them)), early=True)
        assert session.state == "connecting"
        await session.aclose()
        await until(lambda: not us._peers and not us._tasks)
        assert not line.hanging
        assert line.dialled == list(ticket(them).addresses)
        assert us.keeper.state(them.peer_id) is PeerState.KNOWN


async def test_an_early_session_that_is_closed_does_not_hold_up_the_next() -> None:
    """The peer is kept besides, so the dial is wanted still: for a new session."""
    async with two() as (us, them):
        line = Line(us)
        us.keep(with_hole(ticket(them)))
        first = await us.connect(them.peer_id, early=True)
        assert first.state == "connecting"
        await first.aclose()
        await turns()
        second = await us.connect(them.peer_id, timeout=10)
        assert second is not first
        assert second.state == "connected"
        assert not line.hanging


@pytest.mark.parametrize("how", ["remove", "block"])
@pytest.mark.parametrize("kept", [False, True])
async def test_who_waits_for_a_peer_that_is_removed_waits_no_longer(how: str, kept: bool) -> None:
    """And does not bring it back by that."""
    async with two() as (us, them):
        line = Line(us, "hangs")
        if kept:
            us.keep(ticket(them))
        waiters = [asyncio.create_task(_connect(us, ticket(them), early=early)) for early in (False, True)]
        await until(lambda: line.hanging)
        getattr(us, how)(them.peer_id)
        for waiter in waiters:
            async with raises(DialError) as caught:
                await waiter
            assert f"{how}d" in str(caught[0]).replace("blocked", "blockd")
        line.go_on()
        await until(lambda: not us._peers and not us._tasks)
        assert len(line.dialled) == 1
        assert table(us).next_timeout() is None
        assert not them.sessions


async def test_a_released_peer_is_dialled_no_more_and_its_session_stays() -> None:
    async with two() as (us, them):
        line = Line(us, "hangs")
        us.keep(ticket(them))
        await until(lambda: line.hanging)
        us.release(them.peer_id)
        await until(lambda: not us._peers and not us._tasks)
        line.mode = "works"
        us.keep(them.peer_id)
        await until(lambda: us.sessions)
        us.release(them.peer_id)
        await turns()
        assert us.sessions[them.peer_id].state == "connected"


async def test_a_user_does_not_wait_for_the_turn_of_a_dial_that_nobody_waited_for() -> None:
    """During an outage of ours only one background dial at a time goes; users go at once."""
    async with two() as (us, them):
        async with us._probe:
            us._outage_until = asyncio.get_running_loop().time() + 1000
            us.keep(ticket(them))
            await until(lambda: us._peers[them.peer_id].dialler._queued)
            assert (await us.connect(them.peer_id, timeout=10)).state == "connected"
            us._outage_until = 0.0
        await until(lambda: not us._tasks)
        assert means_the_same(us, them.peer_id)


async def test_a_lost_session_does_not_wait_for_the_turn_of_its_replacement(monkeypatch: pytest.MonkeyPatch) -> None:
    """A silent connection was to be replaced in its turn when it ended: what is dialled then needs no second turn."""
    async with two() as (us, them):
        session = await us.connect(ticket(them))

        @asynccontextmanager
        async def never() -> AsyncIterator[None]:
            await asyncio.Event().wait()
            yield

        with monkeypatch.context() as patch:
            patch.setattr(us, "background_dial", never)
            patch.setattr(us._peers[them.peer_id], "usable_transports", set)
            us._peers[them.peer_id].dialler.wake()
            await until(lambda: us._peers[them.peer_id].dialler._queued)
        [connection] = connections(us, them.peer_id)
        connection.abort()
        await until(lambda: session.state == "lingering")
        await until(lambda: session.state == "connected")


async def test_kick_tries_at_once_what_has_a_pause() -> None:
    """One peer, or all of them; unknown ones are fine."""
    async with two() as (us, them):
        line = Line(us, "refuses")
        for who in (them.peer_id, None):
            us.keep(ticket(them))
            await until(lambda: us.keeper.next_dial(them.peer_id) is not None)
            line.mode = "works"
            us.kick(Identity.generate().peer_id)
            us.kick(who)
            assert us.keeper.state(them.peer_id) is PeerState.DIALLING
            await until(lambda: us.sessions)
            us.remove(them.peer_id)
            line.mode = "refuses"


async def test_a_change_of_our_network_tries_at_once_what_has_a_pause() -> None:
    """A sleep of the machine counts as one; a container's link does not."""
    async with two() as (us, them):
        line = Line(us, "refuses")
        us.keep(ticket(them))
        await until(lambda: us.keeper.next_dial(them.peer_id) is not None)
        line.mode = "works"
        us.keeper._network_changed(NetworkChange(frozenset({"fe80::1%veth0"}), frozenset(), {}, 0.0))
        assert us.keeper.state(them.peer_id) is PeerState.BACKING_OFF
        us.keeper._network_changed(NetworkChange(frozenset(), frozenset(), {}, 60.0))
        assert us.keeper.state(them.peer_id) is PeerState.DIALLING
        await until(lambda: us.sessions)


# -------------------------------------------------------------------- what goes wrong on our side


async def test_without_memory_for_a_session_a_dial_has_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    async with two() as (us, them):
        with monkeypatch.context() as patch:
            patch.setattr(us._peer(them.peer_id)._core, "_grant", lambda _chosen: None)
            async with raises(DialError) as caught:
                await us.connect(ticket(them))
            assert "memory" in str(caught[0])
        await until(lambda: not us._tasks)
        assert us.keeper.state(them.peer_id) is PeerState.KNOWN
        assert (await us.connect(ticket(them))).state == "connected"


async def test_a_fault_of_ours_is_a_failed_dial_and_no_circle(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Who waits is told, who is kept is tried after a pause, and the log asks for a report."""
    async with two() as (us, them):
        faults = 0

        def faulty(peer_id: PeerId) -> list[Any]:
            nonlocal faults
            faults += 1
            raise RuntimeError(f"no book for {peer_id.short}")

        us.book.learn(them.peer_id, ticket(them).addresses[0], Source.STATIC)
        with monkeypatch.context() as patch:
            patch.setattr(us.book, "is_dialable", lambda _peer_id: True)
            patch.setattr(us.book, "candidates", faulty)
            us.keeper.keep(them.peer_id)
            await until(lambda: us.keeper.next_dial(them.peer_id) is not None)
            assert faults == 1
            async with raises(DialError) as caught:
                await us.connect(them.peer_id)
            assert "fault of ours" in str(caught[0])
        await turns()
        assert faults == 2
        assert not us._tasks
        assert means_the_same(us, them.peer_id)
        us.kick(them.peer_id)
        await until(lambda: us.sessions)
    assert "please report this" in caplog.text


async def test_silence_is_held_against_a_kind_of_transport_only_where_another_works(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """In an outage of our own, or of the peer, everything is silent."""
    async with two() as (us, them):
        swallowed: list[PeerId] = []
        monkeypatch.setattr(us.book, "swallowed", lambda peer_id, _address: swallowed.append(peer_id))

        async def silence(*_arguments: Any) -> None:
            raise TimeoutError

        with monkeypatch.context() as patch:
            patch.setitem(vars(us._transports["memory"]), "dial", silence)
            async with raises(DialError):
                await us.connect(ticket(them))
            assert swallowed == []
            await them.connect(ticket(us))
            await until(lambda: us.sessions)
            us.keeper._table.remove(them.peer_id.raw, 0.0)
            peer = us._peers[them.peer_id]
            await peer.dialler._dial(list(ticket(them).addresses), 1.0)
            assert swallowed == [them.peer_id]


# -------------------------------------------------------------------- events and the end


async def test_each_change_is_told_once_and_in_order() -> None:
    async with two() as (us, them):
        events = us.events()
        us.keep(ticket(them))
        told = [await anext(events), await anext(events)]
        assert list(map(type, told)) == [PeerConnected, PathChanged]
        us.remove(them.peer_id)
        await until(lambda: not us._peers)
        await us.aclose()
        told = [event async for event in events]
        assert [type(event) for event in told if isinstance(event, PeerConnected | PeerDisconnected)] == [
            PeerDisconnected
        ]


async def test_closing_ends_every_dial_and_begins_none() -> None:
    """Some dial, some wait for their turn, which comes while the endpoint closes; one is connected."""
    config = Config(transports=("memory",), dials_per_second=1000)
    waiting = [somebody(HOLE) for _ in range(60)]
    async with Endpoint(Identity.generate(), MEMORY) as them:
        us = Endpoint(Identity.generate(), config)
        async with us:
            line = Line(us)
            waiter = asyncio.create_task(_connect(us, somebody(HOLE)))
            for _ in range(20):
                us.keep(somebody(HOLE))
            await until(lambda: len(line.hanging) == 21)
            # The last to be closed, and what ends with it gives others their turn.
            await us.connect(ticket(them))
            for one in waiting:
                us.keep(one)
            begun = sum(
                us.keeper.state(one.peer_id) is PeerState.DIALLING for one in waiting if one.peer_id in us._peers
            )
            before = len(line.dialled)
        assert len(line.dialled) <= before + begun
        assert not line.hanging
        assert not us._peers
        async with raises(EndpointClosed):
            await waiter
        await until(lambda: not them._peers)
        assert asyncio.all_tasks() == {asyncio.current_task()}


async def _connect(endpoint: Endpoint, target: Ticket | PeerId, **options: Any) -> Any:
    return await endpoint.connect(target, **options)


async def test_nobody_keeps_itself() -> None:
    """Not by its key, and not by the ticket that it has pasted by mistake."""
    async with Endpoint(Identity.generate(), Config(listen=LOOPBACK, transports=("tcp",))) as endpoint:
        for target in (endpoint.ticket, str(endpoint.ticket), endpoint.peer_id, str(endpoint.peer_id)):
            with pytest.raises(SelfDial, match="our own key"):
                endpoint.keep(target)
        assert endpoint.peers() == []


async def test_a_peer_is_named_by_its_key_or_by_the_string_of_it() -> None:
    async with Endpoint(Identity.generate(), Config(transports=("memory",))) as endpoint:
        key = str(Identity.generate().peer_id)
        endpoint.keep(key)
        for act, kept, blocked in (
            (endpoint.kick, True, False),
            (endpoint.release, False, False),
            (endpoint.block, False, True),
            (endpoint.unblock, False, False),
        ):
            act(key)
            known = {str(one.peer_id): (one.kept, one.blocked) for one in endpoint.peers()}
            assert known.get(key, (False, False)) == (kept, blocked)
        endpoint.keep(key)
        endpoint.remove(key)
        assert endpoint.peers() == []
