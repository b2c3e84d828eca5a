"""Addresses change, a process or the whole machine sleeps: open streams go on, and what is lost is left at once."""

import asyncio
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from node_nursery import Nursery, nursery
from weather import Relay

from overlay import Address, Config, Endpoint, Identity, Stream, Ticket
from overlay.network_state import NetworkChange
from overlay.testing import LOOPBACK, KiB, Weather, connections, echo, exchange, pair, ticket, until
from overlay.transports.base import Connection

EVERYWHERE = ("0.0.0.0:0",)
HERE = frozenset({"127.0.0.1"})
NOWHERE: frozenset[str] = frozenset()
NEVER = 1000.0
"""Seconds: a timer that plays no part."""


def change(*, lost: frozenset[str] = NOWHERE, slept: float = 0.0) -> NetworkChange:
    return NetworkChange(gained=NOWHERE, lost=lost, default={4: None, 6: None}, slept=slept)


class Arrivals:
    """A handler that sends back what comes, and looks at the clock.

    Attributes:
        size: bytes so far.
        streams: how many have been opened.
        stall: seconds of the longest pause between two pieces, `from_now_on`.
    """

    def __init__(self) -> None:
        self.size = 0
        self.streams = 0
        self.stall = 0.0
        self._last = 0.0

    def from_now_on(self) -> None:
        self.stall, self._last = 0.0, time.monotonic()

    async def echo(self, stream: Stream) -> None:
        self.streams += 1
        async for chunk in stream:
            now = time.monotonic()
            self.stall, self._last = max(self.stall, now - self._last), now
            self.size += len(chunk)
            await stream.write(chunk)

    async def more(self) -> None:
        """Wait until enough has come to say that the stream goes on."""
        size = self.size + 64 * KiB
        await until(lambda: self.size >= size)


async def start_node(nodes: Nursery, directory: Path, transport: str, there: Ticket) -> Identity:
    """A process that speaks to the echo at `there`, again and again."""
    key = directory / "node.pem"
    identity = Identity.load_or_create(key)
    await nodes.start("node", key, listen="127.0.0.1:0", transport=transport, keep=[str(there)])
    return identity


@pytest.mark.parametrize("transport", ["quic", "udp"])
async def test_a_stream_of_another_process_goes_on_when_its_address_changes(
    transport: str, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    """It comes from 127.0.0.2, then from 127.0.0.3 and so on; the stall is reported."""
    arrivals = Arrivals()
    async with Endpoint(Identity.generate(), Config(listen=LOOPBACK)) as us, Relay(us.addresses[0].port) as relay:
        us.handle("echo/1", arrivals.echo)
        relay.rebind_udp("127.0.0.2")
        there = Ticket(us.peer_id, (Address(transport, "127.0.0.1", relay.port),))
        async with nursery() as nodes:
            node = await start_node(nodes, tmp_path, transport, there)
            await arrivals.more()
            [connection] = connections(us, node.peer_id)
            assert connection.remote.host == "127.0.0.2"
            session = us.sessions[node.peer_id]
            for host in ("127.0.0.3", "127.0.0.4", "127.0.0.5"):
                arrivals.from_now_on()
                relay.rebind_udp(host)
                await until(lambda host=host: connection.remote.host == host)  # type: ignore[misc]
                await arrivals.more()
                record_property(f"stall in ms, to {host}", round(1000 * arrivals.stall))
                print(f"{transport}: {1000 * arrivals.stall:.0f} ms without a byte when it moved to {host}")  # noqa: T201
            assert connections(us, node.peer_id) == [connection], "it has moved, and was not replaced"
            assert us.sessions[node.peer_id] is session
            assert arrivals.streams == 1


@pytest.mark.parametrize("transport", ["quic", "udp", "tcp"])
async def test_a_stream_goes_on_when_the_other_process_was_stopped_for_six_seconds(
    transport: str, tmp_path: Path
) -> None:
    arrivals = Arrivals()
    async with Endpoint(Identity.generate(), Config(listen=LOOPBACK)) as us, nursery() as nodes:
        us.handle("echo/1", arrivals.echo)
        node = await start_node(nodes, tmp_path, transport, ticket(us))
        await arrivals.more()
        session = us.sessions[node.peer_id]
        arrivals.from_now_on()
        await nodes.signal("node", "SIGSTOP")
        began = time.monotonic()
        ping = asyncio.ensure_future(session.ping())
        await until(lambda: all(path.suspect for path in session.paths))
        # The scenario itself, not a wait for something: so long it does not run.
        await asyncio.sleep(began + 6.0 - time.monotonic())
        assert not ping.done()
        await nodes.signal("node", "SIGCONT")
        await arrivals.more()
        await ping
        assert arrivals.stall >= 6.0
        assert us.sessions[node.peer_id] is session
        assert arrivals.streams == 1


async def test_after_a_sleep_of_the_machine_all_paths_are_checked_at_once() -> None:
    """The mappings of NATs are gone: nothing comes any more, and nobody has asked yet."""
    async with pair("quic", "tcp", keepalive=NEVER / 4, idle_timeout=NEVER) as it:
        assert [path.transport for path in it.session.paths] == ["quic"]
        async with Endpoint(Identity.generate(), Config(listen=LOOPBACK, transports=("udp",))) as asleep:
            missing = asleep.peer_id
            where = ticket(asleep)
        it.dialler.keep(where)
        await until(lambda: it.dialler.keeper.next_dial(missing) is not None)
        Weather(it.dialler, it.acceptor).udp_blocked = True
        it.dialler.keeper._network_changed(change(slept=3600.0))
        assert it.dialler.keeper.next_dial(missing) is None, "who is kept is tried at once, too"
        await until(lambda: [path.transport for path in it.session.paths if not path.suspect] == ["tcp"])


@pytest.mark.parametrize("transport", ["quic", "udp", "tcp"])
async def test_a_connection_moves_when_our_address_is_gone_or_is_left_at_once(transport: str) -> None:
    """Who has dialled may move QUIC, either side raw UDP; what is tied to the address is suspect without waiting."""
    config = Config(listen=EVERYWHERE, transports=(transport,), keepalive=NEVER / 4, idle_timeout=NEVER)
    async with Endpoint(Identity.generate(), config) as one, Endpoint(Identity.generate(), config) as two:
        two.handle("echo/1", echo)
        port = two.addresses[0].port
        session = await one.connect(Ticket(two.peer_id, (Address(transport, "127.0.0.1", port),)))
        await until(lambda: one.peer_id in two.sessions)
        assert await exchange(session, b"before") == b"before"
        for us, them in ((one, two), (two, one)):
            # What a dial in the background has added meanwhile is retired.
            await until(lambda us=us, them=them: len(connections(us, them.peer_id)) == 1)  # type: ignore[misc]
            [connection] = connections(us, them.peer_id)
            assert (connection.local or connection.remote).host == "127.0.0.1"
            moves = transport == "udp" or (transport == "quic" and us is one)
            assert connection.network_changed(frozenset({"192.0.2.1"})), "that is not its address"
            assert connection.network_changed(HERE) is moves
            assert not connection.is_closed, "it may come back"
            us.keeper._network_changed(change(lost=HERE))
            assert [path.suspect for path in us.sessions[them.peer_id].paths] == [not moves]
            await until(lambda us=us, them=them: not any(path.suspect for path in us.sessions[them.peer_id].paths))  # type: ignore[misc]
            assert await exchange(session, b"after") == b"after"


async def test_an_address_that_is_gone_is_not_sent_from_any_more() -> None:
    """Until something comes to another one, the routes say from where; and the connection gets another name."""

    def source(connection: Connection) -> object:
        return connection._driver._local  # type: ignore[attr-defined]

    for transport in ("quic", "udp"):
        config = Config(listen=EVERYWHERE, transports=(transport,))
        async with Endpoint(Identity.generate(), config) as one, Endpoint(Identity.generate(), config) as two:
            two.handle("echo/1", echo)
            port = two.addresses[0].port
            session = await one.connect(Ticket(two.peer_id, (Address(transport, "127.0.0.1", port),)))
            assert await exchange(session, b"x") == b"x"
            [connection] = connections(one, two.peer_id)
            assert source(connection) is not None
            connection.network_changed(HERE)
            assert source(connection) is None
            assert await exchange(session, b"y") == b"y"
            assert source(connection) is not None
