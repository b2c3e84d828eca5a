"""Dialling one peer: when the keeper says so, when a connection falls silent, and for QUIC again later.

One task per peer, alive only while something is wanted:

    want      when                                                  what
    dial      the keeper says so: a user waits, the peer is kept,   one race over all addresses; the keeper is told
              or its session has no connection                      of its failure, and decides when to try again
    replace   no connection of a session answers                    races with backoff until one works
    upgrade   a session has connections, but a transport that we    those that we prefer to what there is, after 1 s,
              prefer, QUIC above all, is not among them             doubling to 60 s
"""

import asyncio
import errno
import logging
import random
import socket
from collections.abc import AsyncIterator, Iterable
from contextlib import AbstractAsyncContextManager, asynccontextmanager, nullcontext, suppress
from dataclasses import replace
from functools import partial
from ipaddress import ip_address, ip_network
from typing import TYPE_CHECKING, Final, Literal

from overlay.addresses import Address
from overlay.dial import Race, Try
from overlay.errors import (
    Attempt,
    DialError,
    EndpointClosed,
    IdentityMismatch,
    OverlayError,
    SelfDial,
    SessionError,
    SessionRefused,
    WrongIdentity,
)
from overlay.events import Origin, Purpose
from overlay.protocol.backoff import Backoff
from overlay.protocol.codes import CloseCode
from overlay.protocol.evidence import Source
from overlay.protocol.race import STEP, Start, plan
from overlay.transports.base import Connection

if TYPE_CHECKING:
    from overlay.endpoint import Endpoint
    from overlay.peer import Peer
    from overlay.session import Session

logger = logging.getLogger("overlay")

RESOLVE_TIMEOUT: Final = 5.0
REPLACE_FIRST: Final = 0.25
REPLACE_CAP: Final = 4.0
"""Nothing answers, and the streams wait."""
UPGRADE_FIRST: Final = 1.0
UPGRADE_CAP: Final = 60.0

HEAD_START: Final = 0.9 * STEP
"""Seconds: who is still without an answer after the head start, when another one wins, was swallowed perhaps."""
SILENT: Final = 1.0
"""Seconds without an answer that count as a failure of an address when another one has won: a fair chance."""

Want = Literal["dial", "replace", "upgrade"]


class Dialler:
    """Dials one peer."""

    def __init__(self, peer: "Peer", endpoint: "Endpoint") -> None:
        self._peer = peer
        self._endpoint = endpoint
        self._config = endpoint.config
        self._book = endpoint.book
        self._asked = False
        """The keeper waits for a dial."""
        self._task: asyncio.Task[None] | None = None
        self._interrupted = False
        self._queued = False
        """The task waits for the endpoint's turn to dial."""
        self._race: Race[Connection] | None = None
        """The one that runs."""
        self._waiters = 0
        self._early = False
        self._proven = False
        self._early_taken = False
        self._step: Want | None = None
        self._purpose: Purpose = "connect"
        self._timeout: asyncio.Timeout | None = None
        self._pausing: asyncio.Timeout | None = None
        self._deadline = 0.0
        self._failure: OverlayError | None = None
        self._signals: set[asyncio.Future[None]] = set()
        self._replace = Backoff(REPLACE_FIRST, REPLACE_CAP, random.random)
        self._upgrade = Backoff(UPGRADE_FIRST, UPGRADE_CAP, random.random)
        self._closed = False

    # ---------------------------------------------------------------- for the peer and its users

    @property
    def busy(self) -> bool:
        """Somebody waits, or something is under way."""
        return bool(self._waiters) or self._task is not None

    def learn(self, address: Address, source: Source) -> None:
        """An address where the peer may be; news joins a race that is on."""
        race = self._race if self._step in {"dial", "replace"} else None
        known = [] if race is None else self._candidates()
        news = self._book.learn(self._peer.peer_id, address, source)
        if news and race is not None:
            race.add(self._plan(one for one in self._candidates() if one not in known))

    def dial(self) -> None:
        """The keeper wants a dial: `Keeper.attached` or `Keeper.dial_failed` follows."""
        self._asked = True
        self.wake()

    def cancel(self) -> None:
        """It does not any more; nothing follows. A session that was to come about by it is given up."""
        self._asked = False
        if self._step == "dial":
            self._interrupt()
        if not self._early_taken:
            self._peer.give_up()

    def dismiss(self, why: str) -> None:
        """The peer is to be forgotten: who waits for it waits no longer."""
        if self._waiters:
            self._failure = self._dial_error([], why)
        self._signal()

    def network_changed(self) -> None:
        """What did not work may work now: no pause is sat out."""
        self._replace.reset()
        self._upgrade.reset()
        if self._pausing is not None and not self._pausing.expired():
            self._pausing.reschedule(asyncio.get_running_loop().time())

    async def connect(self, *, timeout: float, early: bool) -> "Session":
        """The peer's session, as soon as it is connected; one dial serves all who wait.

        A peer that has dialled us before may do so again: when none of its addresses works, it is waited for.

        Cancellation: the dial goes on for others who wait, and ends with the last of them. A session that has become
        connected in the same moment stays.

        Raises:
            DialError: no address worked within `timeout` seconds.
            SessionRefused: the session ended with the peer's refusal.
            EndpointClosed: the endpoint was closed meanwhile.
        """
        self._waiters += 1
        # An earlier dial's failure is no answer to a new wish.
        self._failure = None
        self._early = self._early or early
        self._deadline = max(self._deadline, asyncio.get_running_loop().time() + timeout)
        if self._timeout is not None and not self._timeout.expired():
            # Never earlier: a dial that is on for others is not cut short by one who has less time.
            self._timeout.reschedule(max(self._deadline, self._timeout.when() or 0.0))
        if self._race is not None and self._step == "dial" and self._waiters == 1:
            # What has failed before anybody waited is tried once more.
            failed = {one.address for one in self._race.failures}
            self._race.add(self._plan(one for one in self._candidates() if str(one) in failed))
        if self._queued and self._step == "dial":
            # A user does not wait for the turn of a dial that nobody waited for.
            self._interrupt()
        try:
            async with asyncio.timeout(timeout):
                while True:
                    if self._closed:
                        raise EndpointClosed("the endpoint is closed")
                    session = self._peer.session
                    if session is not None and (session.state == "connected" or (early and self._proven)):
                        self._early_taken = self._early_taken or session.state == "connecting"
                        self._peer.choose()
                        return session
                    if self._failure is None:
                        self._endpoint.keeper.want(self._peer.peer_id)
                    elif isinstance(self._failure, SessionRefused | WrongIdentity) or not self._may_come():
                        # With a traceback of its own for each who waits.
                        raise self._failure.with_traceback(None)
                    await self.changed()
        except TimeoutError:
            if self._failure is not None:
                raise self._failure.with_traceback(None) from None
            raise self._dial_error([] if self._race is None else self._race.report()) from None
        finally:
            self._waiters -= 1
            if not self._waiters:
                self._abandon()

    async def changed(self) -> None:
        """Wait for the next change: attached, ended, failed."""
        signal = asyncio.get_running_loop().create_future()
        self._signals.add(signal)
        try:
            await signal
        finally:
            self._signals.discard(signal)

    def wake(self) -> None:
        """Something may be wanted now. It waits neither behind an upgrade, which may take long, nor for two turns."""
        want = self._want()
        if (self._step == "upgrade" and want in {"dial", "replace"}) or (
            self._step == "replace" and self._queued and want == "dial"
        ):
            self._interrupt()
        if self._task is None and want is not None:
            self._task = self._endpoint.spawn(self._run(), f"dial {self._peer.peer_id.short}")
            self._task.add_done_callback(self._finished)
        self._signal()

    def attached(self, *, dialled: bool) -> None:
        """A connection carries the session; `dialled` by us."""
        self._failure = None
        self._proven = self._early_taken = False
        self._replace.reset()
        if self._book.is_kept(self._peer.peer_id):
            # Whoever has dialled: it is no stranger.
            self._peer.choose()
        # What was dialled to replace a silent one serves the keeper as well.
        served = dialled and self._asked
        self._asked = self._asked and not served
        self._endpoint.keeper.attached(self._peer.peer_id, dialled=served)
        self.wake()

    def ended(self, error: SessionError) -> None:
        """The session is over, and so is what was dialled for it. A dial that the keeper still wants begins anew."""
        if self._waiters and isinstance(error, SessionRefused):
            self._failure = error
        early_taken, self._early_taken = self._early_taken, False
        self._proven = False
        if self._step != "dial" or self._asked:
            self._interrupt()
        if early_taken and not self._waiters:
            # The dial went on for who has used the session before it had a connection.
            self._endpoint.keeper.unwant(self._peer.peer_id)
        self._signal()

    async def aclose(self) -> None:
        """Stop dialling, whatever is under way."""
        self._closed = True
        if self._task is not None:
            self._interrupt()
            await asyncio.wait([self._task])
        self._signal()

    # ---------------------------------------------------------------- the task

    def _want(self) -> Want | None:
        if self._closed:
            return None
        if self._asked:
            return "dial"
        usable = self._peer.usable_transports()
        if usable:
            return "upgrade" if self._better(usable) else None
        session = self._peer.session
        if session is not None and session.state == "connected":
            return "replace" if self._book.is_dialable(self._peer.peer_id) else None
        return None

    async def _run(self) -> None:
        while (want := self._want()) is not None:
            self._step = want
            match want:
                case "dial":
                    await self._dial_for_keeper()
                case "replace":
                    self._purpose = "replace"
                    async with self._turn(self._endpoint.background_dial()):
                        won, _ = await self._dial(self._candidates(), self._config.dial_timeout)
                    if won is None:
                        await self._pause(self._replace.next_delay(), "replace")
                case "upgrade":
                    self._purpose = "upgrade"
                    await self._pause(self._upgrade.next_delay(), "upgrade")
                    if self._want() == "upgrade":
                        async with self._turn(self._endpoint.background_dial()):
                            better = self._better(self._peer.usable_transports())
                            await self._dial(better, self._config.dial_timeout)
        self._upgrade.reset()

    async def _dial_for_keeper(self) -> None:
        """One race, for the session that there is or for a new one."""
        session = self._peer.session or self._peer.begin(early=self._early)
        self._purpose = "replace" if session is not None and session.state == "lingering" else "connect"
        if session is None:
            failure = self._dial_error([], "no memory for another session, see Config.limits")
        else:
            if session.state == "connecting":
                self._peer.begin(early=self._early)
            async with nullcontext() if self._waiters else self._turn(self._endpoint.outage_probe()):
                candidates = self._candidates()
                won, failures = await self._dial(candidates, self._patience(session))
            if won is not None:
                return
            failure = self._dial_error(failures, "" if candidates else "no address is known, other than our own")
        self._fail(failure)

    def _patience(self, session: "Session") -> float:
        """How many seconds a dial for the keeper may take: as its users say, but they do not shorten that of others."""
        if not self._waiters:
            return self._config.dial_timeout
        seconds = max(0.0, self._deadline - asyncio.get_running_loop().time())
        lasting = self._book.is_kept(self._peer.peer_id) or session.state == "lingering"
        return max(seconds, self._config.dial_timeout) if lasting else seconds

    def _fail(self, failure: OverlayError) -> None:
        """The keeper's dial has failed: tell those who wait, those who use its session already, and the keeper."""
        self._asked = False
        if self._waiters:
            self._failure = failure
        self._proven = self._early_taken = False
        self._peer.give_up(failure)
        self._endpoint.keeper.dial_failed(self._peer.peer_id)
        self._signal()

    @asynccontextmanager
    async def _turn(self, turn: AbstractAsyncContextManager[None]) -> AsyncIterator[None]:
        """Wait for `turn`; somebody in a hurry may interrupt that."""
        self._queued = True
        try:
            async with turn:
                self._queued = False
                yield
        finally:
            self._queued = False

    async def _dial(self, candidates: list[Address], seconds: float) -> tuple[Connection | None, list[Attempt]]:
        """Race for the session that there is now: what comes up when there is another one is of no use.

        Returns:
            The connection that has won, if there is one, and the attempts that have failed.
        """
        attempt = partial(self._try, self._peer.session)
        race = self._race = Race(self._plan(candidates), attempt, self._discard)
        won = None
        try:
            async with asyncio.timeout(seconds) as self._timeout:
                won = await race.run()
        except TimeoutError:
            return None, race.failures
        finally:
            self._timeout = self._race = None
            for failure in race.failures:
                logger.debug("%s: %s", self._peer.peer_id.short, failure)
        return won, race.failures

    async def _try(self, session: "Session | None", one: Try) -> Connection:
        """Try one address, and write into the book what came of it."""
        peer_id, clock = self._peer.peer_id, asyncio.get_running_loop().time
        try:
            connection = await self._attempt(session, one)
        except asyncio.CancelledError:
            # Another one has won, or nobody wants it any more; in vain it was only after a fair chance.
            waited = clock() - one.started
            if one.stage == "connect" and waited >= SILENT:
                self._book.missed(peer_id, one.address, one.stage)
            if one.stage == "connect" and waited >= HEAD_START and self._peer.usable_transports():
                self._book.swallowed(peer_id, one.address)
            raise
        except SelfDial:
            self._book.ourselves(one.address)
            raise
        except SessionRefused:
            # The peer itself has answered there, if not as we wished.
            self._book.reached(peer_id, one.address, None)
            raise
        except (OSError, OverlayError) as error:
            self._book.missed(peer_id, one.address, one.failed(error, clock()).stage)
            if isinstance(error, TimeoutError) and one.stage == "connect" and self._peer.usable_transports():
                # With nothing else that works, it is the peer that is off, or all of our own network.
                self._book.swallowed(peer_id, one.address)
            raise
        self._book.reached(peer_id, one.address, connection.rtt)
        return connection

    async def _attempt(
        self, session: "Session | None", one: Try, name: "tuple[Try, Race[Connection]] | None" = None
    ) -> Connection:
        """Try one address; if it was found behind a name, that name's attempt and its race are given."""
        if not one.address.is_literal and one.address.transport != "memory":
            return await self._attempt_name(session, one)
        self._check_allowed(one.address)
        transport = self._endpoint.transport(one.address.transport or "")
        connection = await transport.dial(one.address, self._peer.peer_id, self._peer)
        try:
            one.stage = "hello"
            accepted = self._peer.dialled(connection, session, partial(self._origin, one, name))
            self._proven = True
            self._signal()
            await accepted
        except BaseException:
            self._discard(connection)
            raise
        return connection

    async def _attempt_name(self, session: "Session | None", one: Try) -> Connection:
        """Resolve a name, then race its addresses."""
        one.stage = "resolve"
        loop = asyncio.get_running_loop()
        async with asyncio.timeout(RESOLVE_TIMEOUT):
            found = await loop.getaddrinfo(one.address.host, one.address.port, type=socket.SOCK_STREAM)
        one.stage = "connect"
        transport = one.address.transport or ""
        hosts = [Address.from_sockaddr(transport, info[4]) for info in found]
        race: Race[Connection] = Race(
            self._plan(hosts), lambda found: self._attempt(session, found, (one, race)), self._discard
        )
        won = await race.run()
        if won is None:
            if self._race is not None:
                self._race.failures += race.failures
            raise OSError(errno.EHOSTUNREACH, f"none of the {len(hosts)} addresses of {one.address.host} answers")
        return won

    async def _pause(self, seconds: float, want: Want) -> None:
        """Wait, but not longer than the same thing is wanted."""
        try:
            with suppress(TimeoutError):
                async with asyncio.timeout(seconds) as self._pausing:
                    while self._want() == want:
                        await self.changed()
        finally:
            self._pausing = None

    # ---------------------------------------------------------------- helpers

    def _origin(self, one: Try, name: "tuple[Try, Race[Connection]] | None") -> Origin:
        """Why it was this attempt that worked."""
        if self._race is None:
            return Origin("connect")
        seconds = asyncio.get_running_loop().time() - self._race.began
        if name is None:
            attempts = self._race.report(but=one)
        else:
            attempts = self._race.report(but=name[0]) + name[1].report(but=one)
        for attempt in attempts:
            _forget_frames(attempt.cause)
        return Origin(self._purpose, seconds, tuple(attempts))

    def _candidates(self) -> list[Address]:
        """What the book has, the most promising first."""
        return self._book.candidates(self._peer.peer_id)

    def _better(self, usable: set[str]) -> list[Address]:
        """Those over transports that we prefer to all of `usable`."""
        names = self._config.transports
        better = names[: min((names.index(one) for one in usable), default=0)]
        return [one for one in self._candidates() if one.transport in better] if better else []

    def _plan(self, candidates: Iterable[Address]) -> list[Start]:
        """When to try which; what this network seems to swallow has no head start, and comes behind all others."""
        prompt, late = self._book.split(candidates)
        first, then = (
            plan([(one.transport or "", one.host, one.port) for one in some], self._config.transports)
            for some in (prompt, late)
        )
        after = first[-1].at + STEP if first else 0.0
        return first + [replace(start, at=start.at + after) for start in then]

    def _may_come(self) -> bool:
        """Whether the peer has dialled us before, and so may do it again."""
        return self._endpoint.is_caller(self._peer.peer_id)

    def _check_allowed(self, address: Address) -> None:
        for network in self._config.never_dial:
            if address.family and ip_address(address.host.partition("%")[0]) in ip_network(network, strict=False):
                raise PermissionError(errno.EPERM, f"{address.host} is in never_dial ({network})")

    def _abandon(self) -> None:
        """Nobody waits any more: a dial for them only ends, with the session that it was for."""
        self._failure = None
        self._early = False
        self._deadline = 0.0
        if not self._early_taken:
            self._endpoint.keeper.unwant(self._peer.peer_id)
        self._peer.wake()

    def _discard(self, connection: Connection) -> None:
        """Close what has lost. The only one that carries the session has won, even if its dial was cancelled."""
        if not self._peer.carried_by(connection):
            connection.close(CloseCode.LOST_RACE)

    def _dial_error(self, attempts: Iterable[Attempt], why: str = "") -> DialError | SessionRefused:
        """What to tell of a failed dial: every attempt, or the peer's own word when all that answer refuse us."""
        attempts = list(attempts)
        answered = [one.cause for one in attempts if one.stage in {"handshake", "hello"}]
        wrong = answered and all(isinstance(cause, IdentityMismatch) for cause in answered)
        error = (WrongIdentity if wrong else DialError)(str(self._peer.peer_id), attempts, why)
        refusals = [cause for cause in answered if isinstance(cause, SessionRefused)]
        if not refusals or len(refusals) < len(answered):
            return error
        refusals[0].__cause__ = error
        return refusals[0]

    def _finished(self, task: "asyncio.Task[None]") -> None:
        self._task = self._step = None
        self._interrupted = False
        if task.cancelled() or (fault := task.exception()) is None:
            # Something may have come while it was ending.
            self.wake()
        elif self._asked:
            self._fail(self._dial_error([], f"by a fault of ours: {fault!r}"))
        # After a fault nothing is begun before something happens: it would run in a circle.
        self._peer.wake()

    def _interrupt(self) -> None:
        """Cancel the task, if there is one; only once, as a second time would interrupt its cleaning up."""
        if self._task is not None and not self._interrupted:
            self._interrupted = True
            self._task.cancel()

    def _signal(self) -> None:
        for signal in self._signals:
            if not signal.done():
                signal.set_result(None)


def _forget_frames(error: BaseException | None) -> None:
    """Drop the tracebacks of an error and all behind it: a path may live for months, and they keep what they saw."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        error.__traceback__ = None
        error = error.__cause__ or error.__context__
