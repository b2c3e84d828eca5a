"""Whatever happens, in any order: the table of peers and the dialler mean the same dial, and nobody is stuck.

Two real endpoints in this process, joined by the memory transport, whose dials fail, hang or die as the machine says.
"""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from keeper_support import Line, means_the_same, table, with_hole

from overlay import (
    Config,
    Endpoint,
    Identity,
    OverlayError,
    PeerConnected,
    PeerDisconnected,
    Session,
    Ticket,
)
from overlay.events import Event
from overlay.protocol.peer_states import PeerState
from overlay.testing import connections, ticket, until

US, THEM = Identity.generate(), Identity.generate()
CONFIG = Config(transports=("memory",), resume_timeout=60.0, dial_timeout=0.4)
PATIENT = 60.0


class KeeperMachine(RuleBasedStateMachine):
    """Rules are what users and the network do; each is followed by a few turns of the loop, or by none."""

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.faults: list[dict[str, Any]] = []
        self.loop.set_exception_handler(lambda _, context: self.faults.append(context))
        self.waiters: list[asyncio.Task[Session]] = []
        self.sessions: list[Session] = []
        self.events: list[Event] = []
        self.run(self.begin())

    def run(self, work: Coroutine[Any, Any, None]) -> None:
        self.loop.run_until_complete(work)

    async def begin(self) -> None:
        self.us, self.them = Endpoint(US, CONFIG), Endpoint(THEM, CONFIG)
        await self.us.__aenter__()
        await self.them.__aenter__()
        self.line, self.back = Line(self.us), Line(self.them)
        self.listener = asyncio.ensure_future(self.listen())
        await asyncio.sleep(0)

    async def listen(self) -> None:
        async for event in self.us.events():
            self.events.append(event)

    @property
    def there(self) -> Ticket:
        """With an address that never answers: dials go on after all others have failed."""
        return with_hole(ticket(self.them))

    def call(self, function: Callable[[], object]) -> None:
        """Run it on the loop, in one turn."""

        async def work() -> None:
            function()

        self.run(work())

    # ---------------------------------------------------------------- users

    @rule(turns=st.integers(0, 12))
    def time_passes(self, turns: int) -> None:
        async def work() -> None:
            for _ in range(turns):
                await asyncio.sleep(0)

        self.run(work())

    @rule()
    def dials_run_out_of_time(self) -> None:
        self.run(asyncio.sleep(0.05))

    @rule()
    def keep(self) -> None:
        self.call(lambda: self.us.keep(self.there))

    @rule()
    def release(self) -> None:
        self.call(lambda: self.us.release(THEM.peer_id))

    @rule(early=st.booleans(), timeout=st.sampled_from([0.0, 0.001, PATIENT]))
    def connect(self, early: bool, timeout: float) -> None:
        async def wait() -> Session:
            return await self.us.connect(self.there, timeout=timeout, early=early)

        self.call(lambda: self.waiters.append(asyncio.ensure_future(wait())))

    @precondition(lambda self: self.waiters)
    @rule(which=st.integers(0, 7))
    def give_up_waiting(self, which: int) -> None:
        self.call(self.waiters[which % len(self.waiters)].cancel)

    @rule()
    def close_session(self) -> None:
        async def work() -> None:
            session = self.us.sessions.get(THEM.peer_id)
            if session is not None:
                await session.aclose()

        self.run(work())

    @rule(blocked=st.booleans())
    def remove(self, blocked: bool) -> None:
        """From then on there is nothing, though somebody may have waited."""

        async def work() -> None:
            line, self.line.mode = self.line.mode, "hangs"
            (self.us.block if blocked else self.us.remove)(THEM.peer_id)
            self.idle()
            for _ in range(20):
                await asyncio.sleep(0)
            if not connections(self.us, THEM.peer_id):
                self.idle()
            self.line.mode = line

        self.run(work())

    def idle(self) -> None:
        assert self.us.keeper.state(THEM.peer_id) is PeerState.KNOWN
        assert self.us.keeper.next_dial(THEM.peer_id) is None
        assert THEM.peer_id not in self.us.sessions

    @rule()
    def unblock(self) -> None:
        self.call(lambda: self.us.unblock(THEM.peer_id))

    @rule(all_of_them=st.booleans())
    def kick(self, all_of_them: bool) -> None:
        self.call(lambda: self.us.kick(None if all_of_them else THEM.peer_id))

    # ---------------------------------------------------------------- the network and the peer

    @rule(mode=st.sampled_from(["works", "refuses", "hangs", "dies"]))
    def line_changes(self, mode: str) -> None:
        self.line.mode = mode

    @rule()
    def hanging_dials_go_on(self) -> None:
        self.call(self.line.go_on)

    @rule()
    def network_changes(self) -> None:
        self.call(lambda: self.us.network_changed(frozenset()))

    @rule()
    def they_dial_us(self) -> None:
        async def wait() -> Session:
            return await self.them.connect(ticket(self.us), timeout=PATIENT)

        self.call(lambda: self.waiters.append(asyncio.ensure_future(wait())))

    @rule(clean=st.booleans())
    def connections_end(self, clean: bool) -> None:
        def work() -> None:
            for connection in connections(self.us, THEM.peer_id):
                if clean:
                    connection.abort()
                else:
                    connection.other.abort()  # type: ignore[attr-defined]

        self.call(work)

    @rule()
    def they_close(self) -> None:
        async def work() -> None:
            session = self.them.sessions.get(US.peer_id)
            if session is not None:
                await session.aclose()

        self.run(work())

    # ---------------------------------------------------------------- what always holds

    @invariant()
    def table_and_dialler_mean_the_same_dial(self) -> None:
        """A dial that one of them knows and the other does not would leave the peer stuck, or be a second one."""
        assert means_the_same(self.us, THEM.peer_id)
        assert not self.faults

    @invariant()
    def the_state_is_that_of_the_session(self) -> None:
        state = self.us.keeper.state(THEM.peer_id)
        session = self.us.sessions.get(THEM.peer_id)
        assert (session is not None and session.state == "lingering") == (state is PeerState.LINGERING)
        assert (session is not None and session.state == "connected") == (state is PeerState.CONNECTED)

    @invariant()
    def who_waits_is_dialled_for(self) -> None:
        """Unless the peer may dial us, and then it is waited for; or the answer is on its way."""
        peer = self.us._peers.get(THEM.peer_id)
        if peer is None or not peer.dialler._waiters or self.us.is_caller(THEM.peer_id):
            return
        state = self.us.keeper.state(THEM.peer_id)
        told = all(signal.done() for signal in peer.dialler._signals)
        assert told or state in {PeerState.DIALLING, PeerState.LINGERING}, state

    @invariant()
    def events_alternate(self) -> None:
        connected = False
        for event in self.events:
            if isinstance(event, PeerConnected | PeerDisconnected):
                assert isinstance(event, PeerConnected) is not connected
                connected = not connected

    def teardown(self) -> None:
        try:
            self.run(self.end())
        finally:
            self.loop.close()
        assert not self.faults

    async def end(self) -> None:
        """The network heals, and whoever is kept is connected; then nothing is left."""
        # What is under way now may still fail.
        self.line.mode = "works"
        self.line.go_on()
        for _ in range(20):
            await asyncio.sleep(0)
        self.us.unblock(THEM.peer_id)
        # Whatever dial is under way, and for whom: it does not stand in the way.
        await self.us.connect(self.there, timeout=PATIENT / 6)
        self.us.keep(self.there)

        def connected() -> bool:
            self.us.kick()
            return self.us.keeper.state(THEM.peer_id) is PeerState.CONNECTED

        await until(connected)
        await until(lambda: len(connections(self.us, THEM.peer_id)) == 1)
        async with asyncio.timeout(20):
            for waiter in self.waiters:
                try:
                    self.sessions.append(await waiter)
                except OverlayError:
                    pass
                except asyncio.CancelledError:
                    assert waiter.cancelled()
        self.us.remove(THEM.peer_id)
        await until(lambda: THEM.peer_id not in self.us._peers)
        assert table(self.us).next_timeout() is None
        await self.us.__aexit__(None, None, None)
        await self.them.__aexit__(None, None, None)
        await self.listener
        self.events_alternate()
        assert asyncio.all_tasks() == {asyncio.current_task()}


KeeperMachine.TestCase.settings = settings(
    max_examples=100, stateful_step_count=30, deadline=None, suppress_health_check=list(HealthCheck)
)
TestKeeper = KeeperMachine.TestCase
