"""Dialling one peer: at the user's wish, for a replacement when a connection falls silent, and for QUIC again later.

One task per peer, alive only while something is wanted:

    want      when                                                  what
    connect   somebody waits in `connect`, nothing connects us      one race over all addresses, then DialError
    replace   a session has no connection that answers              races with backoff until one works
    upgrade   a session has connections, but a transport that we    those that we prefer to what there is, after 1 s,
              prefer, QUIC above all, is not among them             doubling to 60 s
"""

import asyncio
import errno
import logging
import random
import socket
from collections.abc import Iterable
from contextlib import suppress
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
    SessionError,
    SessionRefused,
    WrongIdentity,
)
from overlay.events import Origin
from overlay.protocol.backoff import Backoff
from overlay.protocol.codes import CloseCode
from overlay.protocol.race import Start, plan
from overlay.transports.base import Connection

if TYPE_CHECKING:
    from overlay.endpoint import Endpoint
    from overlay.peer import Peer
    from overlay.session import Session

logger = logging.getLogger("overlay")

MAX_ADDRESSES: Final = 64
RESOLVE_TIMEOUT: Final = 5.0
REPLACE_FIRST: Final = 0.25
REPLACE_CAP: Final = 4.0
"""A session lingers for two minutes: much longer pauses would waste most of its chances."""
UPGRADE_FIRST: Final = 1.0
UPGRADE_CAP: Final = 60.0

Want = Literal["connect", "replace", "upgrade"]
URGENT: Final[tuple[Want, ...]] = ("connect", "replace", "upgrade")
"""The most urgent first."""


class Dialler:
    """Dials one peer."""

    def __init__(self, peer: "Peer", endpoint: "Endpoint") -> None:
        self.addresses: dict[Address, None] = {}
        self._peer = peer
        self._endpoint = endpoint
        self._config = endpoint.config
        self._task: asyncio.Task[None] | None = None
        self._race: Race[Connection] | None = None
        self._waiters = 0
        self._early = False
        self._proven = False
        self._early_taken = False
        self._step: Want | None = None
        self._timeout: asyncio.Timeout | None = None
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

    def learn(self, address: Address) -> None:
        """An address where the peer may be: joins a race that is on; the oldest makes room."""
        known = self._candidates()
        news = [one for one in self._expand(address) if one not in known]
        if news and self._race is not None and self._step in {"connect", "replace"}:
            self._race.add(self._plan(news))
        if news or address in self.addresses:
            self.addresses.pop(address, None)
            self.addresses[address] = None
        while len(self.addresses) > MAX_ADDRESSES:
            del self.addresses[next(iter(self.addresses))]

    async def connect(self, *, timeout: float, early: bool) -> "Session":
        """The peer's session, as soon as it is connected; one dial serves all who wait.

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
        if self._timeout is not None:
            self._timeout.reschedule(self._deadline)
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
                    if self._failure is not None:
                        # With a traceback of its own for each who waits.
                        raise self._failure.with_traceback(None)
                    self.wake()
                    await self.changed()
        except TimeoutError:
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
        """Something may be wanted now. It does not wait behind the dial of a lesser want, which may take long."""
        want = self._want()
        if self._task is not None and self._step is not None and want in URGENT[: URGENT.index(self._step)]:
            self._task.cancel()
        if self._task is None and want is not None:
            self._task = self._endpoint.spawn(self._run(), f"dial {self._peer.peer_id.short}")
            self._task.add_done_callback(self._finished)
        self._signal()

    def attached(self) -> None:
        """A connection carries the session."""
        self._failure = None
        self._proven = self._early_taken = False
        self._replace.reset()
        self.wake()

    def ended(self, error: SessionError) -> None:
        """The session is over, and so is what was dialled for it."""
        if self._waiters and isinstance(error, SessionRefused):
            self._failure = error
        self._proven = self._early_taken = False
        if self._task is not None:
            self._task.cancel()
        self._signal()

    async def aclose(self) -> None:
        """Stop dialling, whatever is under way."""
        self._closed = True
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
        self._signal()

    # ---------------------------------------------------------------- the task

    def _want(self) -> Want | None:
        if self._closed:
            return None
        session = self._peer.session
        usable = self._peer.usable_transports()
        if usable:
            return "upgrade" if self._better(usable) else None
        if self._waiters and self._failure is None and (session is None or session.state != "connected"):
            return "connect"
        if session is not None and session.state in {"connected", "lingering"}:
            return "replace" if self.addresses else None
        return None

    async def _run(self) -> None:
        while (want := self._want()) is not None:
            self._step = want
            match want:
                case "connect":
                    await self._connect()
                case "replace":
                    async with self._endpoint.background_dial():
                        won = await self._dial(self._candidates(), self._config.dial_timeout)
                    if won is None:
                        await self._pause(self._replace.next_delay(), "replace")
                case "upgrade":
                    await self._pause(self._upgrade.next_delay(), "upgrade")
                    if self._want() == "upgrade":
                        async with self._endpoint.background_dial():
                            better = self._better(self._peer.usable_transports())
                            await self._dial(better, self._config.dial_timeout)
        self._upgrade.reset()

    async def _connect(self) -> None:
        if self._peer.begin(early=self._early) is None:
            self._failure = self._dial_error([], "no memory for another session, see Config.limits")
        else:
            candidates = self._candidates()
            seconds = self._deadline - asyncio.get_running_loop().time()
            won = await self._dial(candidates, max(0.0, seconds))
            session = self._peer.session
            if won is None and (session is None or session.state != "connected"):
                failures = [] if self._race is None else self._race.report()
                self._failure = self._dial_error(failures, "" if candidates else "no address is known")
                self._proven = False
                self._peer.give_up(self._failure)
        self._signal()

    async def _dial(self, candidates: list[Address], seconds: float) -> Connection | None:
        """Race for the session that there is now: what comes up when there is another one is of no use."""
        attempt = partial(self._attempt, self._peer.session)
        race = self._race = Race(self._plan(candidates), attempt, self._discard)
        try:
            async with asyncio.timeout(seconds) as self._timeout:
                return await race.run()
        except TimeoutError:
            return None
        finally:
            self._timeout = None
            for failure in race.failures:
                logger.debug("%s: %s", self._peer.peer_id.short, failure)

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
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while self._want() == want:
                    await self.changed()

    # ---------------------------------------------------------------- helpers

    def _origin(self, one: Try, name: "tuple[Try, Race[Connection]] | None") -> Origin:
        """Why it was this attempt that worked."""
        if self._race is None or self._step is None:
            return Origin("connect")
        seconds = asyncio.get_running_loop().time() - self._race.began
        if name is None:
            attempts = self._race.report(but=one)
        else:
            attempts = self._race.report(but=name[0]) + name[1].report(but=one)
        for attempt in attempts:
            _forget_frames(attempt.cause)
        return Origin(self._step, seconds, tuple(attempts))

    def _candidates(self) -> list[Address]:
        """The known addresses, one for each transport that they stand for, the newest knowledge last."""
        return [one for address in self.addresses for one in self._expand(address)]

    def _better(self, usable: set[str]) -> list[Address]:
        """Those over transports that we prefer to all of `usable`."""
        names = self._config.transports
        better = names[: min((names.index(one) for one in usable), default=0)]
        return [one for one in self._candidates() if one.transport in better]

    def _expand(self, address: Address) -> list[Address]:
        names = self._config.transports
        return [address.with_transport(name) for name in names if address.transport in {None, name}]

    def _plan(self, candidates: Iterable[Address]) -> list[Start]:
        return plan([(one.transport or "", one.host, one.port) for one in candidates], self._config.transports)

    def _check_allowed(self, address: Address) -> None:
        for network in self._config.never_dial:
            if address.family and ip_address(address.host.partition("%")[0]) in ip_network(network, strict=False):
                raise PermissionError(errno.EPERM, f"{address.host} is in never_dial ({network})")

    def _abandon(self) -> None:
        """Nobody waits any more: stop a dial that has not come to anything."""
        self._failure = None
        self._early = False
        self._deadline = 0.0
        session = self._peer.session
        if not self._early_taken and (session is None or session.state == "connecting"):
            if self._task is not None:
                self._task.cancel()
            self._peer.give_up()
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
        self._task = self._step = self._race = None
        if not task.cancelled() and (fault := task.exception()) is not None:
            self._failure = self._dial_error([], f"by a fault of ours: {fault!r}")
        # Something may have come while it was ending.
        self.wake()
        self._peer.wake()

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
