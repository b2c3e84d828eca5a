"""The corner cases of the mapping from keys to addresses, each with a test named after it: addresses, families, paths.

The table of all of them is in `test_corner_cases.py`.
"""

import asyncio
import contextlib
import os
import socket
import time

import pytest
from corner_support import dial_tasks, spy_on_dials, telling
from weather import Relay

from overlay import (
    Address,
    Config,
    DialError,
    Endpoint,
    Identity,
    PathChanged,
    PathLost,
    PeerConnected,
    PeerDisconnected,
    Session,
    Ticket,
    WrongIdentity,
)
from overlay.protocol.evidence import Source
from overlay.records import PeerRecord
from overlay.testing import LOOPBACK, KiB, MiB, Weather, connections, crash, echo, exchange, pair, ticket, until

ALL = Config(listen=LOOPBACK)
TCP = Config(listen=LOOPBACK, transports=("tcp",))


def selected(session: Session) -> str | None:
    return next((path.transport for path in session.paths if path.selected and not path.suspect), None)


async def test_10_a_name_is_resolved_at_each_dial(monkeypatch: pytest.MonkeyPatch) -> None:
    """DynDNS: the peer moves to another address, and its name follows."""
    identity = Identity.generate()
    host = "127.0.0.1"
    lookups = []

    async def lookup(name: str, port: int, **_: object) -> list[tuple[object, ...]]:
        lookups.append(name)
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (host, port))]

    async with Endpoint(Identity.generate(), TCP) as us:
        first = await Endpoint(identity, TCP).__aenter__()
        port = first.addresses[0].port
        monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", lookup)
        us.keep(Ticket(identity.peer_id, [Address("tcp", "peer.example", port)]))
        await until(lambda: us.sessions and us.sessions[identity.peer_id].paths)
        assert us.sessions[identity.peer_id].paths[0].remote == Address("tcp", "127.0.0.1", port)
        asked = len(lookups)
        await crash(first)
        host = "127.0.0.2"
        async with Endpoint(identity, Config(listen=(f"{host}:{port}",), transports=("tcp",))):
            there = Address("tcp", host, port)
            await until(lambda: [path.remote for one in us.sessions.values() for path in one.paths] == [there])
        assert len(lookups) > asked
        assert set(lookups) == {"peer.example"}
        assert [one.address.host for one in us.book.addresses(identity.peer_id)] == ["peer.example"]


@pytest.mark.parametrize(
    "spellings",
    [
        ("tcp://127.0.0.1:9330", "TCP://[::ffff:127.0.0.1]:9330", "tcp://[::FFFF:7F00:1]:9330"),
        ("[2001:db8::7]:9330", "[2001:DB8:0:0::7]:9330", "[2001:0db8::0007]:9330"),
        ("quic://peer.example:9330", "QUIC://Peer.Example.:9330"),
        ("b\u00fccher.example:9330", "xn--bcher-kva.example:9330", "B\u00dcCHER.example:9330"),
    ],
)
async def test_10_another_spelling_is_the_same_entry(spellings: tuple[str, ...]) -> None:
    async with Endpoint(Identity.generate(), Config(transports=("memory",))) as us:
        peer_id = Identity.generate().peer_id
        news = [us.book.learn(peer_id, Address.parse(one), Source.TICKET) for one in spellings]
        assert news == [True] + [False] * (len(spellings) - 1)
        assert len(us.book.addresses(peer_id)) == 1
        assert all(us.book.owners(Address.parse(one)) == {peer_id} for one in spellings)


async def test_10_reverse_entries_of_an_old_address_are_dropped() -> None:
    mover = Identity.generate()
    old, new = Address(None, "192.0.2.1", 9330), Address(None, "198.51.100.1", 9330)
    async with Endpoint(Identity.generate(), Config(transports=("memory",))) as us:
        us.keep(mover.peer_id, name="mover")
        us.learn(PeerRecord.make(mover, [old], 1).encode())
        assert us.book.owners(old) == {mover.peer_id}
        us.learn(PeerRecord.make(mover, [new], 2).encode())
        assert us.book.owners(old) == set()
        assert us.book.owners(new) == {mover.peer_id}
        us.remove(mover.peer_id)
        assert us.book.owners(new) == set()


@pytest.mark.parametrize("transport", ["quic", "udp", "tcp"])
async def test_12_ipv4_and_ipv6(transport: str) -> None:
    """Both families on one port, each by a socket of its own; a mapped address is the IPv4 one that it means."""
    config = Config(transports=(transport,))
    async with Endpoint(Identity.generate(), config) as server:
        assert {address.host for address in server.addresses} == {"0.0.0.0", "::"}
        [port] = {address.port for address in server.addresses}
        for written, host, family in (("[::ffff:127.0.0.1]", "127.0.0.1", 4), ("[::1]", "::1", 6)):
            async with Endpoint(Identity.generate(), config) as client:
                target = Ticket(server.peer_id, [Address.parse(f"{transport}://{written}:{port}")])
                async with client.connect(target) as session:
                    [theirs] = server.sessions[client.peer_id].paths
                    for path in (session.paths[0], theirs):
                        assert (path.remote.host, path.remote.family) == (host, family)
                    if transport != "tcp":
                        [known] = server.book.addresses(client.peer_id)
                        assert known.address == Address(transport, host, client.addresses[family == 6].port)


async def test_12_who_has_one_family_only_tells_so() -> None:
    six = Config(listen=("[::1]:0",))
    async with Endpoint(Identity.generate(), six) as server, Endpoint(Identity.generate(), ALL) as client:
        with pytest.raises(DialError) as caught:
            await client.connect(ticket(server, "quic"))
        assert [one.stage for one in caught.value.attempts] == ["connect"]
        session = await client.connect(ticket(server))
        assert [path.remote.family for path in session.paths] == [6], "TCP makes its socket for each dial"


async def test_13_udp_or_quic_blocked() -> None:
    """The session finds its way down and up again; nobody has to add a transport."""
    async with Endpoint(Identity.generate(), ALL) as server, Endpoint(Identity.generate(), ALL) as client:
        server.handle("echo/1", echo)
        async with Relay(server.addresses[0].port) as relay:
            relay.blocked = frozenset({"quic"})
            target = Ticket(server.peer_id, [Address(None, "127.0.0.1", relay.port)])
            session = await client.connect(target)
            assert selected(session) == "udp"
            for blocked, transport in (({"quic", "udp"}, "tcp"), ({"quic"}, "udp"), (set(), "quic")):
                relay.blocked = frozenset(blocked)
                words = os.urandom(200_000)
                assert await exchange(session, words) == words
                await until(lambda transport=transport: selected(session) == transport)  # type: ignore[misc]
            assert client.sessions == {server.peer_id: session}


async def test_15_liveness_is_of_a_connection_and_not_of_a_peer() -> None:
    """QUIC dies without a word; that TCP brings megabytes from the same peer does not keep it fresh."""
    async with pair("quic", "tcp", keepalive=0.3, idle_timeout=1.5) as it:
        await it.dialler._peers[it.acceptor.peer_id].dialler._dial(
            list(ticket(it.acceptor, "tcp").addresses), seconds=10
        )
        await until(lambda: len(it.session.paths) == len(it.theirs.paths) == 2)
        async with telling(it.dialler) as told:
            Weather(it.dialler, it.acceptor).udp_blocked = True

            async def talk() -> None:
                while True:
                    await exchange(it.session, bytes(100_000))

            talking = asyncio.create_task(talk())
            await until(lambda: selected(it.session) == "tcp")
            assert [path.transport for path in it.session.paths if path.suspect] == ["quic"]
            await until(lambda: any(isinstance(event, PathLost) for event in told))
            talking.cancel()
            await asyncio.wait([talking])
            assert [path.transport for path in it.session.paths] == ["tcp"]
            assert it.session.paths[0].bytes_received > 100_000
            [lost] = [event for event in told if isinstance(event, PathLost)]
            assert (lost.transport, lost.remaining) == ("quic", 1)


async def test_19_the_same_peer_through_two_networks_is_one_peer() -> None:
    """Over IPv4 and IPv6, each dialled by another side: one session, two paths, everything arrives once."""
    config = Config(listen=("127.0.0.1:0", "[::1]:0"), transports=("tcp",))
    async with Endpoint(Identity.generate(), config) as one, Endpoint(Identity.generate(), config) as two:
        four, six = (
            Ticket(peer.peer_id, [address for address in peer.addresses if address.family == family])
            for peer, family in ((two, 4), (one, 6))
        )
        for endpoint in (one, two):
            endpoint.handle("echo/1", echo)
        async with telling(one) as told:
            session, theirs = await asyncio.gather(one.connect(four), two.connect(six))
            await until(lambda: len(session.paths) == len(theirs.paths) == 2)
            assert {path.remote.family for path in session.paths} == {4, 6}
            assert (one.sessions, two.sessions) == ({two.peer_id: session}, {one.peer_id: theirs})
            assert [peer.peer_id for peer in one.peers()] == [two.peer_id]
            assert [type(event) for event in told].count(PeerConnected) == 1
            words = os.urandom(MiB)
            echoing = asyncio.create_task(exchange(session, words))
            used = session.paths[0].remote
            [connection] = [each for each in connections(one, two.peer_id) if each.remote == used]
            await until(lambda: connection.bytes_sent > 64 * KiB)
            connection.abort()
            assert await echoing == words
            assert await exchange(theirs, words) == words
            assert not any(isinstance(event, PeerDisconnected) for event in told)
            assert one.sessions == {two.peer_id: session}


async def test_23_two_peers_behind_one_nat() -> None:
    """One address, first forwarded to the one and then to the other: both are known there, and none is the other."""
    async with contextlib.AsyncExitStack() as stack:
        us, first, second = [await stack.enter_async_context(Endpoint(Identity.generate(), ALL)) for _ in range(3)]
        for endpoint in (first, second):
            endpoint.handle("echo/1", echo)
        relay = await stack.enter_async_context(Relay(first.addresses[0].port))
        router = Address(None, "127.0.0.1", relay.port)
        to_first, to_second = (Ticket(one.peer_id, [router]) for one in (first, second))
        session = await us.connect(to_first)
        with pytest.raises(WrongIdentity):
            await us.connect(to_second)
        relay._target = ("127.0.0.1", second.addresses[0].port)
        relay.rebind_udp()
        other = await us.connect(to_second)
        await until(lambda: session.paths)
        assert us.sessions == {first.peer_id: session, second.peer_id: other}
        assert us.book.owners(router) == {first.peer_id, second.peer_id}
        assert await exchange(other, b"second") == b"second"
        assert [len(one.sessions) for one in (first, second)] == [1, 1]
        server = await stack.enter_async_context(Endpoint(Identity.generate(), ALL))
        await asyncio.gather(*(one.connect(ticket(server)) for one in (first, second)))
        await until(lambda: len(server.sessions) == 2)
        hosts = {path.remote.host for session in server.sessions.values() for path in session.paths}
        assert (set(server.sessions), hosts) == ({first.peer_id, second.peer_id}, {"127.0.0.1"})


@pytest.mark.parametrize("transport", ["quic", "udp"])
async def test_23_one_peer_with_many_source_addresses(transport: str) -> None:
    """Its NAT gives it a new port again and again: the same session, and nobody is sent away."""
    config = Config(listen=LOOPBACK, transports=(transport,))
    async with Endpoint(Identity.generate(), config) as server, Endpoint(Identity.generate(), config) as client:
        server.handle("echo/1", echo)
        async with Relay(server.addresses[0].port) as relay, telling(server) as told:
            session = await client.connect(Ticket(server.peer_id, [Address(transport, "127.0.0.1", relay.port)]))
            await until(lambda: server.sessions)
            theirs = server.sessions[client.peer_id]
            ports = set()
            for _ in range(4):
                words = os.urandom(50_000)
                assert await exchange(session, words) == words
                ports |= {path.remote.port for path in theirs.paths}
                relay.rebind_udp()
            assert len(ports) == 4
            assert server.sessions == {client.peer_id: theirs}
            kinds = {type(event) for event in told}
            assert PeerDisconnected not in kinds


async def test_27_endless_upgrade_fights() -> None:
    """Each prefers what the other one likes least: both get their way for what they send, and then there is peace."""
    orders = (("quic", "udp", "tcp"), ("tcp", "udp", "quic"))
    configs = [Config(listen=LOOPBACK, transports=order) for order in orders]
    async with Endpoint(Identity.generate(), configs[0]) as one, Endpoint(Identity.generate(), configs[1]) as two:
        dials = [spy_on_dials(one), spy_on_dials(two)]
        for endpoint in (one, two):
            endpoint.handle("echo/1", echo)
        async with telling(one) as first, telling(two) as second:
            one.keep(ticket(two))
            two.keep(ticket(one))
            await until(lambda: one.sessions and two.sessions)
            session, theirs = one.sessions[two.peer_id], two.sessions[one.peer_id]
            await until(lambda: (selected(session), selected(theirs)) == ("quic", "tcp"))
            await until(lambda: not dial_tasks())
            settled = [len(made) for made in dials]
            end = time.monotonic() + 4
            while time.monotonic() < end:
                assert await exchange(session, bytes(20_000)) == bytes(20_000)
                assert await exchange(theirs, bytes(20_000)) == bytes(20_000)
            for told in (first, second):
                assert sum(isinstance(event, PathChanged) for event in told) <= 4
                assert sum(isinstance(event, PathLost) for event in told) <= 4
                assert not any(isinstance(event, PeerDisconnected) for event in told)
            assert [len(made) for made in dials] == settled, "peace"
            assert max(settled) <= 8
            assert (selected(session), selected(theirs)) == ("quic", "tcp")
            assert len(session.paths) <= 3


async def test_28_black_hole_detection_never_refuses() -> None:
    """A network swallows UDP, which is noticed and tried last from then on; but who has nothing else is dialled."""
    async with contextlib.AsyncExitStack() as stack:
        us, last, *others = [await stack.enter_async_context(Endpoint(Identity.generate(), ALL)) for _ in range(11)]
        fresh = [Address(name, "192.0.2.1", 9330) for name in ("quic", "udp", "tcp")]
        assert us.book.split(fresh) == (fresh, []), "without evidence nothing is suspected"
        weather = Weather(us)
        weather.udp_blocked = True
        while {"quic", "udp"} - us.book._holes.suspected(time.monotonic()):
            sessions = await asyncio.gather(*(us.connect(ticket(one)) for one in others))
            assert {path.transport for session in sessions for path in session.paths} == {"tcp"}
            for session in sessions:
                await session.aclose()
        assert us.book.split(fresh) == (fresh[2:], fresh[:2])
        weather.udp_blocked = False
        for transport in ("quic", "udp"):
            session = await us.connect(ticket(last, transport))
            assert [path.transport for path in session.paths] == [transport]
            us.remove(last.peer_id)
            await until(lambda: last.peer_id not in us._peers)
