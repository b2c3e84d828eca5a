"""Two endpoints that dial each other at the same moment end with one session and one connection, every time."""

import asyncio

import pytest

from overlay import Config, Endpoint, Identity
from overlay.testing import LOOPBACK, connections, echo, exchange, ticket, until


@pytest.mark.parametrize(("transport", "rounds"), [("memory", 100), ("tcp", 300), ("quic", 200)])
async def test_two_that_dial_each_other_share_one_session_and_one_connection(transport: str, rounds: int) -> None:
    config = Config(listen=LOOPBACK, transports=(transport,))
    async with Endpoint(Identity.generate(), config) as one, Endpoint(Identity.generate(), config) as two:
        sides = ((one, two), (two, one))
        for endpoint in (one, two):
            endpoint.handle("echo/1", echo)
        for number in range(rounds):

            async def dial_and_speak(us: Endpoint, them: Endpoint, number: int = number) -> None:
                session = await us.connect(ticket(them), early=number % 2 == 0)
                words = b"%d from %s" % (number, us.peer_id.short.encode())
                assert await exchange(session, words) == words
                assert us.sessions == {them.peer_id: session}

            async with asyncio.TaskGroup() as group:
                for us, them in sides:
                    group.create_task(dial_and_speak(us, them))
            await until(lambda: all(len(connections(us, them.peer_id)) == 1 for us, them in sides))
            assert one.sessions[two.peer_id]._core.mine == two.sessions[one.peer_id]._core.theirs
            assert two.sessions[one.peer_id]._core.mine == one.sessions[two.peer_id]._core.theirs
            closer = (one, two)[number // 2 % 2]
            for session in closer.sessions.values():
                await session.aclose()
            await until(lambda: not any(us.sessions or connections(us, them.peer_id) for us, them in sides))
