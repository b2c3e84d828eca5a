"""When the watch looks, and what it tells: the network is made up, the loop and its timers are real."""

import asyncio
import errno
import logging
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from types import SimpleNamespace

import pytest

from overlay import network_watch
from overlay.network_state import NetworkChange, NetworkState
from overlay.network_watch import NetworkWatch
from overlay.protocol.clock_watch import ClockWatch

NEVER = 1e6
"""Seconds: a timer that plays no part in a test."""
PATIENCE = 10.0
"""Seconds for what comes within milliseconds."""
HOME = NetworkState(frozenset({"192.0.2.5"}), ("192.0.2.5", None))
AWAY = NetworkState(frozenset({"198.51.100.5"}), ("198.51.100.5", None))


class Scene:
    """The network and the clocks as the test sets them, and what the watch has told."""

    def __init__(self) -> None:
        self.state: NetworkState | OSError = HOME
        self.slept = 0.0
        self.looks = 0
        self.kernel: socket.socket | None = None
        self.told: asyncio.Queue[NetworkChange] = asyncio.Queue()

    def look(self, interfaces: tuple[str, ...], fwmark: int | None) -> NetworkState:
        self.looks += 1
        if isinstance(self.state, OSError):
            raise self.state
        return self.state

    def clocks(self) -> tuple[float, float]:
        return 1000.0 + self.slept, 10.0

    def message(self) -> None:
        """The kernel says that something has changed."""
        assert self.kernel is not None
        self.kernel.send(b"changed")

    async def next(self) -> NetworkChange:
        async with asyncio.timeout(PATIENCE):
            return await self.told.get()

    async def looked(self, looks: int) -> None:
        async with asyncio.timeout(PATIENCE):
            while self.looks < looks:
                await asyncio.sleep(0)

    async def noticed(self, watch: NetworkWatch) -> None:
        """The watch has got the message, and waits for those that come with it."""
        async with asyncio.timeout(PATIENCE):
            while watch._look_timer is None:
                await asyncio.sleep(0)

    @asynccontextmanager
    async def watch(self) -> AsyncIterator[NetworkWatch]:
        async with NetworkWatch(self.told.put_nowait) as watch:
            yield watch


@pytest.fixture
def polled(monkeypatch: pytest.MonkeyPatch) -> Scene:
    """A system without netlink."""
    scene = Scene()
    monkeypatch.setattr(NetworkState, "look", scene.look)
    monkeypatch.setattr(network_watch, "_clocks", scene.clocks)
    monkeypatch.setattr(network_watch, "_subscribe", lambda: None)
    monkeypatch.setattr(network_watch, "INTERVAL", 0.001)
    monkeypatch.setattr(network_watch, "DEBOUNCE", 0.001)
    return scene


@pytest.fixture
def woken(polled: Scene, monkeypatch: pytest.MonkeyPatch) -> Iterator[Scene]:
    """A system with netlink, played by the other end of a pair of sockets; nobody looks at the clocks."""
    polled.kernel, ours = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    ours.setblocking(False)
    monkeypatch.setattr(network_watch, "_subscribe", lambda: ours)
    monkeypatch.setattr(network_watch, "INTERVAL", NEVER)
    with polled.kernel, ours:
        yield polled


async def test_polling_finds_a_change_and_tells_it_once(polled: Scene) -> None:
    async with polled.watch() as watch:
        assert watch.fingerprint() == "192.0.2.0/24"
        polled.state = AWAY
        change = await polled.next()
        assert (change.gained, change.lost) == (AWAY.addresses, HOME.addresses)
        assert (change.default, change.slept) == ({4: "198.51.100.5", 6: None}, 0.0)
        assert watch.fingerprint() == "198.51.100.0/24"
        await polled.looked(polled.looks + 3)
        assert polled.told.empty()


async def test_a_message_of_the_kernel_causes_a_look(woken: Scene) -> None:
    async with woken.watch():
        for state in (AWAY, HOME):
            woken.state = state
            woken.message()
            assert (await woken.next()).gained == state.addresses


async def test_a_message_about_nothing_that_matters_tells_nothing(woken: Scene) -> None:
    async with woken.watch():
        woken.message()
        await woken.looked(2)
        assert woken.told.empty()


async def test_many_messages_cause_one_look(woken: Scene) -> None:
    async with woken.watch() as watch:
        assert watch._netlink is not None
        for looks in (2, 3):
            for _ in range(10):
                woken.message()
            woken.state = AWAY if looks == 2 else HOME
            await woken.next()
            assert woken.looks == looks
            with pytest.raises(BlockingIOError):
                watch._netlink.recv(1)


async def test_what_comes_and_goes_before_the_look_is_no_change(woken: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(network_watch, "DEBOUNCE", NEVER)
    async with woken.watch() as watch:
        woken.state = AWAY
        woken.message()
        await woken.noticed(watch)
        woken.state = HOME
        assert watch._netlink is not None
        watch._look_again(watch._netlink)
        assert (woken.looks, woken.told.empty()) == (2, True)


async def test_sleep_is_told_even_if_the_network_is_the_same(polled: Scene) -> None:
    async with polled.watch():
        polled.slept = 3600.0
        change = await polled.next()
        assert (change.gained, change.lost, change.slept) == (frozenset(), frozenset(), 3600.0)
        await polled.looked(polled.looks + 3)
        assert polled.told.empty()


async def test_the_first_message_after_a_resume_tells_of_the_sleep(woken: Scene) -> None:
    """It need not wait for the next look at the clocks."""
    async with woken.watch():
        woken.slept = 3600.0
        woken.state = AWAY
        woken.message()
        change = await woken.next()
        assert (change.gained, change.slept) == (AWAY.addresses, 3600.0)


async def test_sleep_without_any_message_is_noticed_by_the_clocks(
    woken: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And while they show none, nobody looks at a network of which the kernel says nothing."""
    monkeypatch.setattr(network_watch, "INTERVAL", 0.001)
    asked = 0

    def clocks() -> tuple[float, float]:
        nonlocal asked
        asked += 1
        return 1000.0 + (3600.0 if asked > 10 else 0.0), 10.0

    monkeypatch.setattr(network_watch, "_clocks", clocks)
    async with woken.watch():
        assert (await woken.next()).slept == 3600.0
        assert woken.looks == 2


@pytest.mark.parametrize("scene", ["polled", "woken"])
async def test_a_look_that_fails_is_logged_once_and_repeated_and_tells_nothing(
    scene: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """With netlink too: the message that caused it does not come again."""
    subject: Scene = request.getfixturevalue(scene)
    monkeypatch.setattr(network_watch, "INTERVAL", 0.001)
    subject.state = OSError(errno.EMFILE, "too many open files")
    with caplog.at_level(logging.WARNING, "overlay"):
        async with subject.watch() as watch:
            await subject.looked(4)
            assert watch.fingerprint() == ""
            assert subject.told.empty()
            subject.state = HOME
            assert (await subject.next()).gained == HOME.addresses
            assert len(caplog.records) == 1
            subject.state = OSError(errno.ENFILE, "too many open files in the system")
            if subject.kernel is not None:
                subject.message()
            await subject.looked(subject.looks + 3)
            assert watch.fingerprint() == "192.0.2.0/24", "what is known stays"
    assert [record.getMessage() for record in caplog.records] == [
        "cannot look at the network: [Errno 24] too many open files",
        "cannot look at the network: [Errno 23] too many open files in the system",
    ]


async def test_a_callback_that_raises_is_reported_and_the_watch_goes_on(woken: Scene) -> None:
    reported: asyncio.Queue[dict[str, object]] = asyncio.Queue()
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: reported.put_nowait(context))
    fault = RuntimeError("a fault of the callback")

    def fail(change: NetworkChange) -> None:
        raise fault

    async with NetworkWatch(fail):
        for state in (AWAY, HOME):
            woken.state = state
            woken.message()
            async with asyncio.timeout(PATIENCE):
                assert (await reported.get())["exception"] is fault


async def test_after_leaving_nothing_is_looked_at_any_more(woken: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither by the timers nor by a message that has come already."""
    monkeypatch.setattr(network_watch, "DEBOUNCE", NEVER)
    async with woken.watch() as watch:
        woken.message()
        await woken.noticed(watch)
        timers, netlink = (watch._tick_timer, watch._look_timer), watch._netlink
    assert all(timer is not None and timer.cancelled() for timer in timers)
    assert netlink is not None
    assert netlink.fileno() == -1


async def test_leaving_while_it_listens_leaves_nothing_in_the_loop(woken: Scene) -> None:
    async with woken.watch() as watch:
        assert watch._netlink is not None
        number = watch._netlink.fileno()
    assert not asyncio.get_running_loop().remove_reader(number)


async def test_the_wanted_interfaces_and_the_mark_are_asked_about(
    polled: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def look(*arguments: object) -> NetworkState:
        asked.append(arguments)
        return HOME

    monkeypatch.setattr(NetworkState, "look", look)
    async with NetworkWatch(polled.told.put_nowait, interfaces=("eth0",), fwmark=7):
        assert asked == [(("eth0",), 7)]


class Refusing:
    """A netlink socket that cannot subscribe."""

    def __init__(self) -> None:
        self.closed = False

    def setblocking(self, flag: bool) -> None: ...

    def setsockopt(self, *arguments: int) -> None: ...

    def bind(self, address: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    def close(self) -> None:
        self.closed = True


@pytest.mark.parametrize("where", ["socket", "bind", "system"])
def test_where_netlink_is_refused_there_is_polling(where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    refusing = Refusing()

    def opened(*arguments: int) -> Refusing:
        assert where != "system", "no other system has netlink"
        if where == "socket":
            raise OSError(errno.EPROTONOSUPPORT, "Protocol not supported")
        return refusing

    numbers = {"AF_NETLINK": 16, "NETLINK_ROUTE": 0, "SOCK_RAW": 3, "SOL_SOCKET": 1, "SO_RCVBUF": 8}
    monkeypatch.setattr(network_watch, "socket", SimpleNamespace(socket=opened, **numbers))
    platform = "darwin" if where == "system" else "linux"
    monkeypatch.setattr(network_watch, "sys", SimpleNamespace(platform=platform))
    assert network_watch._subscribe() is None
    assert refusing.closed == (where == "bind")


class Overrun:
    """A netlink socket whose buffer was too small: two messages, and the word that others are lost between them."""

    def __init__(self) -> None:
        self.left: list[bytes | OSError] = [b"a", OSError(errno.ENOBUFS, "No buffer space available"), b"b"]

    def recv(self, size: int) -> bytes:
        if not self.left:
            raise BlockingIOError(errno.EAGAIN, "nothing there")
        first = self.left.pop(0)
        if isinstance(first, OSError):
            raise first
        return first[:size]


def test_a_buffer_that_ran_over_is_emptied_like_any_other() -> None:
    overrun = Overrun()
    network_watch._drain(overrun)  # type: ignore[arg-type]
    assert overrun.left == []


def test_a_flood_of_messages_is_not_read_for_ever() -> None:
    endless = SimpleNamespace(reads=0)

    def recv(size: int) -> bytes:
        endless.reads += 1
        return b"a"

    endless.recv = recv
    network_watch._drain(endless)  # type: ignore[arg-type]
    assert endless.reads == network_watch._MOST_MESSAGES


@pytest.mark.parametrize("platform", ["linux", "darwin"])
def test_the_clocks_of_a_machine_that_is_awake_show_no_sleep(platform: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(network_watch, "sys", SimpleNamespace(platform=platform))
    watch = ClockWatch(*network_watch._clocks())
    assert watch.observe(*network_watch._clocks()) == 0.0
