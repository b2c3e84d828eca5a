"""The corner cases of the mapping from keys to addresses, each with a test named after it: who, and for how long.

case                                                where
1-5, 8, 9, 11                                       here
10, 12, 13, 15, 19, 23, 27, 28                      test_corner_cases_network.py
16, 17, 18, 20, 24, 26                              test_corner_cases_hostile.py
6, 7                                                test_corner_cases_frames.py
14                                                  lab/test_frames.py
21 UPnP                                             with port mapping
22 true one-way links                               with one-way links
25 nodes on one host, discovery announced once      with discovery
"""

import asyncio
import errno
import random
import socket
from collections.abc import Awaitable, Callable
from types import SimpleNamespace
from typing import Any

import pytest
from corner_support import Clock, dial_tasks, paused, spy_on_dials, status, telling, timers
from cryptography import x509

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
    RecordError,
    SelfDial,
    SessionClosed,
    SessionLost,
    SessionRefused,
    Ticket,
)
from overlay.network_state import NetworkChange
from overlay.protocol.codes import CloseCode
from overlay.protocol.evidence import Source
from overlay.testing import LOOPBACK, Pair, Weather, connections, crash, echo, exchange, pair, ticket, until

ALL = Config(listen=LOOPBACK)
TCP = Config(listen=LOOPBACK, transports=("tcp",))
QUIC = Config(listen=LOOPBACK, transports=("quic",))


class Impostor(Identity):
    """Shows the certificate of another, whose private key it does not have."""

    def __init__(self, victim: Identity) -> None:
        super().__init__(Identity.generate().private_key)
        self.peer_id = victim.peer_id
        self._victim = victim

    @property
    def certificate(self) -> x509.Certificate:
        return self._victim.certificate


async def test_01_impostor_key() -> None:
    """Over QUIC: OpenSSL, which carries TLS elsewhere, refuses to be given a certificate and a key that do not fit."""
    victim = Identity.generate()
    async with (
        Endpoint(victim, QUIC) as real,
        Endpoint(Impostor(victim), QUIC) as impostor,
        Endpoint(Identity.generate(), QUIC) as another,
        Endpoint(Identity.generate(), QUIC) as us,
        telling(us) as told,
    ):
        real.handle("echo/1", echo)
        session = await us.connect(ticket(real))
        known = us.book.addresses(victim.peer_id)
        with pytest.raises(SessionRefused) as refused:
            await impostor.connect(ticket(us), timeout=5)
        assert refused.value.code == CloseCode.UNAUTHENTICATED
        assert us.sessions == {victim.peer_id: session}
        assert us.book.addresses(victim.peer_id) == known
        assert await exchange(session, b"unharmed") == b"unharmed"
        us.remove(victim.peer_id)
        await until(lambda: told and isinstance(told[-1], PeerDisconnected))
        told.clear()
        with pytest.raises(DialError):
            await us.connect(Ticket(victim.peer_id, impostor.addresses), timeout=5)
        assert not told
        assert not us.sessions
        assert not any(one.successes for one in us.book.addresses(victim.peer_id))
        everywhere = [*impostor.addresses, *another.addresses, *real.addresses]
        found = await us.connect(Ticket(victim.peer_id, everywhere))
        assert [path.remote.port for path in found.paths] == [real.addresses[0].port]
        assert await exchange(found, b"the real one") == b"the real one"


async def test_02_simultaneous_dial_duplicates_self_dial() -> None:
    for _ in range(5):
        async with (
            Endpoint(Identity.generate(), ALL) as one,
            Endpoint(Identity.generate(), ALL) as two,
            telling(one) as first,
            telling(two) as second,
        ):
            sides = ((one, two), (two, one))
            for us, them in sides:
                us.handle("echo/1", echo)
                us.keep(ticket(them))
            await until(lambda: one.sessions and two.sessions)
            echoes = [exchange(us.sessions[them.peer_id], bytes(300_000)) for us, them in sides for _ in range(5)]
            assert await asyncio.gather(*echoes) == [bytes(300_000)] * 10
            await until(lambda: [len(connections(us, them.peer_id)) for us, them in sides] == [1, 1])  # noqa: B023
            assert one.sessions[two.peer_id]._core.mine == two.sessions[one.peer_id]._core.theirs
            for told in (first, second):
                assert sum(isinstance(event, PeerConnected) for event in told) == 1
                assert not any(isinstance(event, PeerDisconnected) for event in told)
                # The loser went by itself, and not whatever the table had for that key.
                assert all(event.remaining for event in told if isinstance(event, PathLost))


async def test_02_a_dial_that_reaches_ourselves_is_forgotten() -> None:
    stranger, other = Identity.generate().peer_id, Identity.generate().peer_id
    async with Endpoint(Identity.generate(), ALL) as us:
        ours = ticket(us).addresses
        with pytest.raises(DialError) as caught:
            await us.connect(Ticket(stranger, ours))
        assert {type(one.cause) for one in caught.value.attempts} == {SelfDial}
        assert not us.book.addresses(stranger)
        dialled = spy_on_dials(us)
        for key in (stranger, other):
            with pytest.raises(DialError, match="no address is known"):
                await us.connect(Ticket(key, ours))
        assert not dialled
        assert not us.sessions


async def test_03_one_of_two_connections_closes() -> None:
    async with pair("quic", "tcp", resume_timeout=0.5) as it, it.streams() as (ours, theirs):
        weather = Weather(it.dialler, it.acceptor)
        first = it.connections
        await it.dialler._peers[it.acceptor.peer_id].dialler._dial(
            list(ticket(it.acceptor, "tcp").addresses), seconds=10
        )
        await until(lambda: len(it.session.paths) == len(it.theirs.paths) == 2)
        async with telling(it.dialler) as here, telling(it.acceptor) as there:
            weather.udp_blocked = True
            for connection in first:
                connection.abort()
            await until(lambda: len(it.session.paths) == len(it.theirs.paths) == 1)
            await ours.write(b"goes on")
            assert await theirs.readexactly(7) == b"goes on"
            for told, peer in ((here, it.acceptor), (there, it.dialler)):
                await until(lambda told=told: any(isinstance(event, PathLost) for event in told))  # type: ignore[misc]
                [lost] = [event for event in told if isinstance(event, PathLost)]
                assert (lost.peer_id, lost.transport, lost.remaining) == (peer.peer_id, "quic", 1)
                assert not any(isinstance(event, PeerDisconnected) for event in told)
            here.clear()
            weather.cut()
            await until(lambda: it.session.state == "lingering")
            assert not any(isinstance(event, PeerDisconnected) for event in here)
            await until(lambda: isinstance(here[-1], PeerDisconnected))
            assert [type(event) for event in here] == [PathLost, PeerDisconnected]
            assert isinstance(here[-1], PeerDisconnected)
            assert isinstance(here[-1].reason, SessionLost)


class DeadSocket:
    """A socket whose kernel has waited long enough for the other end."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock

    def __getattr__(self, name: str) -> Any:
        return getattr(self._sock, name)

    def recv_into(self, *_: object) -> int:
        raise TimeoutError(errno.ETIMEDOUT, "connection timed out")


async def clean_close(it: Pair) -> None:
    await it.theirs.aclose()


async def our_own_close(it: Pair) -> None:
    await it.session.aclose()


async def reset(it: Pair) -> None:
    Weather(it.dialler, it.acceptor).cut_off = True
    it.connections[1].abort()


async def time_out(it: Pair) -> None:
    Weather(it.dialler, it.acceptor).cut_off = True
    ours: Any = it.connections[0]
    ours._sock = DeadSocket(ours._sock)


async def silence(it: Pair) -> None:
    Weather(it.dialler, it.acceptor).cut_off = True


@pytest.mark.parametrize(
    ("transport", "end", "reason"),
    [
        ("tcp", clean_close, SessionClosed),
        ("udp", clean_close, SessionClosed),
        ("tcp", our_own_close, SessionClosed),
        ("quic", our_own_close, SessionClosed),
        ("tcp", reset, SessionLost),
        ("tcp", time_out, SessionLost),
        ("udp", silence, SessionLost),
        ("quic", silence, SessionLost),
    ],
)
async def test_04_clean_close_reset_time_out_silence(
    transport: str, end: Callable[[Pair], Awaitable[None]], reason: type[Exception]
) -> None:
    """All end in the same two events, in this order, and nothing follows."""
    settings: dict[str, float] = {"resume_timeout": 0.3, "keepalive": 0.2, "idle_timeout": 0.8}
    async with pair(transport, **settings) as it:
        peer_id = it.acceptor.peer_id
        async with telling(it.dialler) as told:
            await end(it)
            await until(lambda: any(isinstance(event, PeerDisconnected) for event in told))
            await until(lambda: peer_id not in it.dialler._peers)
        assert [type(event) for event in told] == [PathLost, PeerDisconnected]
        assert isinstance(told[0], PathLost)
        assert told[0].remaining == 0
        assert isinstance(told[1], PeerDisconnected)
        assert isinstance(told[1].reason, reason)
        assert (status(it.dialler, peer_id).state, status(it.dialler, peer_id).paths) == ("known", ())


async def test_05_the_second_reconnect() -> None:
    """Five cuts in a row: of one peer's connections, so that its session goes on, and of another's whole process."""
    rounds = 5
    mortal = Identity.generate()
    async with Endpoint(Identity.generate(), TCP) as us, Endpoint(Identity.generate(), TCP) as steady:
        for endpoint in (us, steady):
            endpoint.handle("echo/1", echo)

        async def cut_connections() -> None:
            us.keep(ticket(steady))
            await until(lambda: steady.peer_id in us.sessions)
            session = us.sessions[steady.peer_id]
            for _ in range(rounds):
                await until(lambda: session.paths)
                [connection] = connections(us, steady.peer_id)
                connection.abort()
                await until(lambda connection=connection: session.paths and connection.is_closed)  # type: ignore[misc]
                assert await exchange(session, b"again") == b"again"
            assert us.sessions[steady.peer_id] is session

        async def end_processes() -> None:
            endpoint = await Endpoint(mortal, TCP).__aenter__()
            us.keep(ticket(endpoint))
            config = Config(listen=(f"127.0.0.1:{endpoint.addresses[0].port}",), transports=("tcp",))
            for _ in range(rounds):
                await until(lambda: mortal.peer_id in us.sessions and us.sessions[mortal.peer_id].state == "connected")
                old = us.sessions[mortal.peer_id]
                await crash(endpoint)
                endpoint = await Endpoint(mortal, config).__aenter__()
                endpoint.handle("echo/1", echo)
                await until(lambda old=old: us.sessions.get(mortal.peer_id) not in {None, old})  # type: ignore[misc]
                assert await exchange(await us.connect(mortal.peer_id), b"anew") == b"anew"
            us.remove(mortal.peer_id)
            await endpoint.aclose()

        async with telling(us) as told:
            await asyncio.gather(cut_connections(), end_processes())
            await until(lambda: isinstance(told[-1], PeerDisconnected))
        of_mortal = [type(event) for event in told if event.peer_id == mortal.peer_id]
        up_and_down = [kind for kind in of_mortal if kind in {PeerConnected, PeerDisconnected}]
        assert up_and_down == [PeerConnected, PeerDisconnected] * (rounds + 1)
        of_steady = [type(event) for event in told if event.peer_id == steady.peer_id]
        assert of_steady == [PeerConnected, *[PathChanged, PathLost] * rounds, PathChanged]


async def test_08_backoff_is_capped_jittered_and_reset(monkeypatch: pytest.MonkeyPatch) -> None:
    """Real dials to ports that refuse, while only the keeper's clock jumps from one to the next."""
    cap = 16.0
    clock = Clock(monkeypatch)
    # While pauses are short none is drawn that would end before we look, and at last none that could be a first one.
    lot, least = random.Random(0), 0.5
    monkeypatch.setattr("overlay.keeper.random", SimpleNamespace(random=lambda: max(least, lot.random())))
    ones = [Identity.generate() for _ in range(2)]
    config = Config(listen=LOOPBACK, transports=("tcp",), backoff_cap=cap)
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        nowhere = Address("tcp", "127.0.0.1", closed.getsockname()[1])
        async with Endpoint(Identity.generate(), config) as us:
            keys = [us.keep(Ticket(one.peer_id, [nowhere])) for one in ones]
            dialled = spy_on_dials(us)

            async def pauses(count: int) -> list[list[float]]:
                found = []
                for _ in range(count):
                    found.append([await paused(us, key) for key in keys])
                    before = len(dialled)
                    clock.forward(cap, us)
                    await until(lambda before=before: len(dialled) == before + len(keys))  # type: ignore[misc]
                return found

            async def all_begin_anew() -> None:
                assert max([await paused(us, key) for key in keys]) <= 1

            grown = await pauses(6)
            least = 0.0
            grown += await pauses(8)
            least = 0.5
            for number, both in enumerate(grown):
                longest = min(cap, 2.0**number)
                assert all(0 <= pause <= longest for pause in both)
            late = [pause for both in grown[7:] for pause in both]
            assert min(late) < 0.4 * cap, "it is full jitter"
            assert max(late) > 0.6 * cap
            assert len({round(pause, 3) for pause in late}) == 14, "no two marched in step"

            here = NetworkChange(frozenset({"192.0.2.7"}), frozenset(), {4: "192.0.2.7", 6: None})
            us.keeper._network_changed(here)
            await all_begin_anew()
            await pauses(6)
            us.kick()
            await all_begin_anew()
            await pauses(6)
            async with Endpoint(ones[0], TCP) as caller:
                assert await paused(us, keys[0]) > 1
                session = await caller.connect(ticket(us))
                await until(lambda: status(us, keys[0]).state == "connected")
                assert status(us, keys[0]).next_dial is None
                await session.aclose()
                assert await paused(us, keys[0]) <= 1
                assert await paused(us, keys[1]) > 1, "the other one has given no sign of life"


@pytest.mark.parametrize("moment", ["backing off", "dialling", "resolving", "connected", "lingering"])
async def test_09_disabled_or_removed_peer_is_not_redialled(moment: str, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    identity = Identity.generate()
    asked = asyncio.Event()

    async def never(*_: object, **__: object) -> None:
        asked.set()
        await asyncio.Event().wait()

    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        where = Address("tcp", "peer.example" if moment == "resolving" else "127.0.0.1", silent.getsockname()[1])
        monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", never)
        async with Endpoint(Identity.generate(), TCP) as us, telling(us) as told:
            dialled = spy_on_dials(us)
            if moment == "dialling":
                silent.listen()
            elif moment in {"connected", "lingering"}:
                silent.close()
                listener = await Endpoint(identity, Config(listen=(f"127.0.0.1:{where.port}",))).__aenter__()
            us.keep(Ticket(identity.peer_id, [where]))
            waiting = asyncio.create_task(wait_for(us, identity)) if moment == "dialling" else None
            if moment == "resolving":
                await asked.wait()
            elif moment == "lingering":
                await until(lambda: us.sessions)
                await crash(listener)
                await until(lambda: us.sessions[identity.peer_id].state == "lingering")
            else:
                await until(lambda: status(us, identity.peer_id).state == moment and dialled)
            us.remove(identity.peer_id)
            await until(lambda: not dial_tasks() and not us._peers)
            assert not timers()
            assert us.keeper._table.next_timeout() is None
            assert not us.peers()
            if waiting is not None:
                with pytest.raises(DialError):
                    await waiting
            if moment == "connected":
                await listener.aclose()
            silent.close()
            before = len(dialled)
            monkeypatch.undo()
            clock = Clock(monkeypatch)
            async with Endpoint(identity, Config(listen=(f"127.0.0.1:{where.port}",), transports=("tcp",))) as back:
                clock.forward(3600.0, us)
                us.kick()
                us.keeper._network_changed(NetworkChange(frozenset({"192.0.2.7"}), frozenset(), {4: None, 6: None}))
                async with Endpoint(Identity.generate(), TCP) as other:
                    # Whatever was to come for the removed one would have come before this.
                    await us.connect(ticket(other))
                assert not back._peers
            assert identity.peer_id not in dialled[before:]
        kinds = [type(event) for event in told if event.peer_id == identity.peer_id]
        assert kinds.count(PeerDisconnected) == kinds.count(PeerConnected) == (moment in {"connected", "lingering"})


async def test_09_a_closed_endpoint_dials_nobody() -> None:
    with socket.socket() as silent, socket.socket() as closed:
        for sock in (silent, closed):
            sock.bind(("127.0.0.1", 0))
        silent.listen()
        async with Endpoint(Identity.generate(), TCP) as us:
            ports = [sock.getsockname()[1] for sock in (silent, closed)]
            keys = [us.keep(Ticket(Identity.generate().peer_id, [Address("tcp", "127.0.0.1", port)])) for port in ports]
            await paused(us, keys[1])
            assert status(us, keys[0]).state == "dialling"
            assert timers()
        assert asyncio.all_tasks() == {asyncio.current_task()}
        assert not timers()


async def test_11_duplicate_announcements_are_one() -> None:
    async with (
        Endpoint(Identity.generate(), ALL) as us,
        Endpoint(Identity.generate(), ALL) as them,
        telling(us) as told,
    ):
        record = them.record
        us.keep(ticket(them), name="them")
        sessions = [await us.connect(ticket(them)) for _ in range(3)]
        us.learn(record)
        known = [(one.address, one.source, one.learnt) for one in us.book.addresses(them.peer_id)]
        for _ in range(10):
            us.keep(str(ticket(them)), name="them")
            sessions.append(await us.connect(str(them.peer_id).upper()))
            with pytest.raises(RecordError):
                us.learn(record)
            for address in them.addresses:
                assert not us.book.learn(them.peer_id, address, Source.MDNS)
        assert us.book.refused == {"stale": 10}
        assert set(sessions) == {us.sessions[them.peer_id]}
        assert [one.peer_id for one in us.peers()] == [them.peer_id]
        assert [(one.address, one.source, one.learnt) for one in us.book.addresses(them.peer_id)] == known
        assert len(connections(us, them.peer_id)) == 1
        assert [type(event) for event in told].count(PeerConnected) == 1


async def wait_for(endpoint: Endpoint, identity: Identity) -> None:
    await endpoint.connect(identity.peer_id, timeout=60)
