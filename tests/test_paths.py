"""Which path what came last came over, and what connections have carried that are gone."""

import asyncio

import pytest

from overlay import paths
from overlay.testing.fakes import connections, pair, until


async def test_what_came_last_says_where_from() -> None:
    async with pair("memory") as it, it.streams() as (ours, theirs):
        await ours.write(b"x")
        await theirs.readexactly(1)
        path = it.theirs.received_on
        assert path is not None
        assert path.remote == it.connections[1].remote
        assert path.direction == "both"


async def test_datagrams_count_as_well() -> None:
    async with pair("memory") as it:
        assert it.theirs.received_on is None
        await it.session.send_datagram(b"x")
        await it.theirs.receive_datagram()
        assert it.theirs.received_on == it.theirs.paths[0]


async def test_one_snapshot_serves_for_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    """A router asks for each frame; a path over `tcp` costs four calls of the kernel."""
    async with pair("memory") as it:
        await it.session.send_datagram(b"x")
        await it.theirs.receive_datagram()
        monkeypatch.setattr(paths, "SNAPSHOT", 1e6)
        it.acceptor._peers[it.dialler.peer_id]._paths._snapshot = None
        assert it.theirs.received_on is it.theirs.received_on
        monkeypatch.setattr(paths, "SNAPSHOT", -1.0)
        it.acceptor._peers[it.dialler.peer_id]._paths._snapshot = None
        assert it.theirs.received_on is not it.theirs.received_on


async def test_a_path_that_is_gone_is_not_named() -> None:
    async with pair("memory") as it:
        await it.session.send_datagram(b"x")
        await it.theirs.receive_datagram()
        before = it.theirs.traffic["memory"]
        old = it.connections[1]
        for connection in connections(it.dialler, it.acceptor.peer_id):
            connection.abort()
        await until(lambda: old.is_closed and it.theirs.state == "connected")
        assert it.theirs.received_on is None
        assert it.theirs.traffic["memory"] >= before
        await asyncio.wait_for(it.theirs.send_datagram(b"y"), 5)
        assert await it.session.receive_datagram() == b"y"
