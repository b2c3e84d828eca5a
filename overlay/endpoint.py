"""`Endpoint`: the local node. One identity, its sockets, its peers. The only module that names concrete transports."""

import asyncio
import logging
import random
import time
from collections.abc import AsyncIterator, Container, Coroutine, Generator
from contextlib import ExitStack, asynccontextmanager, suppress
from types import TracebackType
from typing import Any, Final, Self
from weakref import WeakSet

from overlay.addresses import Address, Ticket, parse_target
from overlay.book import Book
from overlay.config import Config
from overlay.dialler import Dialler
from overlay.errors import ConfigError, DialError, EndpointClosed, HandshakeError, SelfDial
from overlay.events import Event, Events, Subscriber
from overlay.identity import Identity, PeerId
from overlay.keeper import Keeper
from overlay.local import reachable
from overlay.peer import Peer
from overlay.protocol.backoff import DialBucket, OutageWatch
from overlay.protocol.budget import Budget
from overlay.protocol.codes import CloseCode
from overlay.protocol.evidence import Source
from overlay.protocol.frames import MINIMUM_STREAMS, MINIMUM_WINDOW
from overlay.protocol.gate import HandshakeGate
from overlay.protocol.session import SessionLimits
from overlay.records import PeerRecord
from overlay.serving import Handler, Handlers
from overlay.session import Session
from overlay.status import PeerStatus
from overlay.streams import Stream
from overlay.transports.base import Connection, ConnectionHandler, Transport
from overlay.transports.memory import MemoryTransport
from overlay.transports.quic_transport import QuicTransport
from overlay.transports.sockets import bind
from overlay.transports.tcp import TcpTransport
from overlay.transports.udp import UdpTransport
from overlay.transports.udp_socket import UdpSocket

logger = logging.getLogger("overlay")

CHOSEN_STREAMS: Final = 64
CHOSEN_WINDOW: Final = 16 * 1024
"""A peer that we dial may send 16 KiB on each of 64 new streams before its first WINDOW; strangers get the minimum.
Every stream reserves so much: 1,024 opened by us and as many by the peer fill `Limits.session_memory` just so. Once
half of `Limits.chosen_memory` is taken, further peers start with the minimum, as strangers do, and grow."""
DIAL_BURST: Final = 20.0
OUTAGE: Final = 5.0
"""Seconds for which only one background dial at a time probes, after our own network seems to have failed."""
CLOSE_TIMEOUT: Final = 5.0
"""Seconds that closing waits for handlers and other tasks after their cancellation."""


class Endpoint:
    """The local node.

    Used as `async with Endpoint(identity) as endpoint:`, entering binds the sockets, leaving closes every session.

    Args:
        identity: our key. A key file is locked meanwhile: two processes with one key would fight over its sessions.
        config: settings.

    Raises (on entering):
        ConfigError, OSError: an address cannot be bound.
        IdentityError: another endpoint uses the key file.
        StoreError: another endpoint uses the address book.
    """

    def __init__(self, identity: Identity, config: Config | None = None) -> None:
        self.identity = identity
        self.config = config or Config()
        self.process = random.SystemRandom().getrandbits(64) or 1
        limit = max(self.config.limits.live_streams, MINIMUM_STREAMS)
        self._handlers = Handlers(limit, self.spawn, lambda: self._open)
        self._peers: dict[PeerId, Peer] = {}
        """Those with a session, a connection or a dial; of all others the book and the keeper know."""
        self._callers: dict[PeerId, None] = {}
        """Who has dialled us, the latest last: they may do so again."""
        self._transports: dict[str, Transport] = {}
        self._udp: list[UdpSocket] = []
        self._tasks: set[asyncio.Task[Any]] = set()
        self._resources = ExitStack()
        self._subscribers: WeakSet[Subscriber] = WeakSet()
        limits = self.config.limits
        self.book = Book(self.config)
        self.keeper = Keeper(self)
        self.chosen = Budget(limits.chosen_memory)
        self._strangers = Budget(limits.stranger_memory)
        self._gate = HandshakeGate(limits.handshakes, limits.handshakes_per_address)
        self._bucket = DialBucket(self.config.dials_per_second, DIAL_BURST)
        self._outage = OutageWatch()
        self._outage_until = 0.0
        self._probe = asyncio.Lock()
        self._open = False

    # ---------------------------------------------------------------- life

    async def __aenter__(self) -> Self:
        if self._open:
            raise EndpointClosed("the endpoint is already open")
        with ExitStack() as resources:
            resources.enter_context(self.identity.lock())
            try:
                self._bind(resources)
            except BaseException:
                await self._close_transports()
                raise
            self._resources = resources.pop_all()
        try:
            await self.book.open()
            self._open = True
            await self.keeper.open()
            for ticket in map(Ticket.parse, self.config.keep):
                if self.book.is_blocked(ticket.peer_id):
                    logger.warning("%s of Config.keep is blocked, and stays so: unblock it first", ticket.peer_id)
                else:
                    self.keep(ticket)
        except BaseException:
            self._open = False
            await self._shut()
            raise
        logger.info("%s listens on %s", self.peer_id.short, ", ".join(map(str, self.addresses)) or "nothing")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close every session, tell the peers, free the sockets. Streams that matter have been awaited before.

        Handlers are cancelled; one that goes on nevertheless is logged, and not waited for beyond 5 seconds.
        """
        if self._open:
            self._open = False
            await self._shut()

    async def _shut(self) -> None:
        try:
            await self.keeper.aclose()
            for peer in tuple(self._peers.values()):
                await peer.aclose()
            for task in tuple(self._tasks):
                task.cancel()
            if self._tasks:
                _, stubborn = await asyncio.wait(self._tasks, timeout=CLOSE_TIMEOUT)
                for task in stubborn:
                    logger.warning("task %s ignores its cancellation: the endpoint closes without it", task.get_name())
        finally:
            try:
                await self._close_transports()
                await self.book.aclose()
            finally:
                self._peers.clear()
                self._resources.close()
                for subscriber in tuple(self._subscribers):
                    subscriber.put(None)

    def _bind(self, resources: ExitStack) -> None:
        config = self.config
        if {"quic", "udp", "tcp"} & set(config.transports):
            pairs = bind(config)
            for pair in pairs:
                resources.callback(pair.close)
            self._udp = [UdpSocket(pair.udp) for pair in pairs if pair.udp is not None]
            listeners = [pair.tcp for pair in pairs if pair.tcp is not None]
            if "quic" in config.transports:
                quic = QuicTransport(self.identity, config, self._udp, self._accepted, self._gate)
                self._transports["quic"] = quic
                quic.start()
            if "udp" in config.transports:
                raw = UdpTransport(self.identity, config, self._udp, self._accepted, self._gate)
                self._transports["udp"] = raw
                raw.start()
            if "tcp" in config.transports:
                tcp = TcpTransport(self.identity, config, listeners, self._accepted, self._gate)
                self._transports["tcp"] = tcp
                tcp.start()
        if "memory" in config.transports:
            self._transports["memory"] = MemoryTransport(self.identity, self._accepted)

    async def _close_transports(self) -> None:
        for transport in self._transports.values():
            await transport.aclose()
        self._transports.clear()
        for udp in self._udp:
            udp.close()
        self._udp.clear()

    # ---------------------------------------------------------------- what it is

    @property
    def peer_id(self) -> PeerId:
        """Our key."""
        return self.identity.peer_id

    @property
    def addresses(self) -> tuple[Address, ...]:
        """Where we listen; an address without a transport stands for all of them on that port."""
        found = dict.fromkeys(
            address.with_transport(None) if address.transport != "memory" else address
            for transport in self._transports.values()
            for address in transport.addresses
        )
        return tuple(found)

    @property
    def ticket(self) -> Ticket:
        """What to give to others so that they can connect. Loopback is left out unless nothing else is bound.

        Raises:
            ConfigError: nothing is bound.
        """
        addresses = reachable(self.addresses, self.config.interfaces)
        if not addresses:
            raise ConfigError("the endpoint listens nowhere, so nobody can connect to it")
        return Ticket(self.peer_id, addresses)

    @property
    def sessions(self) -> dict[PeerId, Session]:
        """All sessions that are not closed. A snapshot."""
        return {peer_id: peer.session for peer_id, peer in self._peers.items() if peer.session is not None}

    # ---------------------------------------------------------------- what it does

    def handle(self, protocol: str, handler: Handler) -> None:
        """Serve streams that peers open for `protocol`, each with its own task running `handler(stream)`.

        When the handler returns, the stream is closed in order; when it raises, it is reset. A later call replaces the
        handler for streams opened from then on.
        """
        self._handlers.set(protocol, handler)

    def unhandle(self, protocol: str) -> None:
        """Serve `protocol` no more: new streams for it are refused. Those that are being served go on."""
        self._handlers.remove(protocol)

    def is_handled(self, protocol: str) -> bool:
        """Whether streams for `protocol` are served."""
        return protocol in self._handlers

    def connect(
        self, target: Ticket | PeerId | str, *, timeout: float | None = None, early: bool = False
    ) -> "Connecting":
        """Connect to a peer: `session = await endpoint.connect(...)` or `async with endpoint.connect(...) as session:`.

        Returns the session that there is, or dials: QUIC first, then raw UDP, then TCP. Several calls at
        once share one dial.

        Args:
            target: a ticket, or the key of a peer whose address was seen by this endpoint; either as a string, too.
            timeout: seconds; `Config.dial_timeout` by default.
            early: return as soon as the key is proven, one round trip earlier on QUIC, and let the first bytes of new
                streams fly behind our HELLO; a refusal then fails them.

        Raises:
            DialError: with every attempt; WrongIdentity: only other keys answered.
            AddressError: the string is no ticket and no PeerId.
            EndpointClosed: the endpoint is not open.
        """
        return Connecting(self, target, timeout, early=early)

    async def _connect(self, target: Ticket | PeerId | str, timeout: float | None, *, early: bool) -> Session:
        peer_id, addresses = self._whom(target)
        if self.book.is_blocked(peer_id):
            raise DialError(str(peer_id), (), "this endpoint has blocked that key")
        dialler = self._peer(peer_id).dialler
        for address in addresses:
            dialler.learn(address, Source.TICKET)
        timeout = self.config.dial_timeout if timeout is None else timeout
        return await dialler.connect(timeout=timeout, early=early)

    # ---------------------------------------------------------------- whom it stays with

    def keep(self, target: Ticket | PeerId | str, *, name: str | None = None) -> PeerId:
        """Stay connected with a peer, for ever: it is dialled until it answers, and again whenever it is lost.

        The pauses between dials grow to `Config.backoff_cap`; they begin anew with a success, when the peer dials us,
        and when our network changes. The book remembers it, if it has a file.

        Args:
            target: as for `connect`.
            name: what to call it in reports.

        Raises:
            AddressError, EndpointClosed: as for `connect`.
            ConfigError: the name is too long.
            SelfDial: it is our own key.
        """
        peer_id, addresses = self._whom(target)
        if peer_id == self.peer_id:
            raise SelfDial("that is our own key")
        news = [self.book.learn(peer_id, address, Source.STATIC) for address in addresses]
        if any(news):
            # Who is kept without a known address waits for its pause otherwise.
            self.keeper.kick(peer_id)
        self.book.say(peer_id, kept=True, blocked=False, name=name)
        if (peer := self._peers.get(peer_id)) is not None:
            peer.choose()
        self.keeper.keep(peer_id)
        return peer_id

    def release(self, peer: PeerId | str) -> None:
        """Keep a peer no longer. A session that there is goes on until somebody closes it."""
        peer_id = _key(peer)
        self.book.say(peer_id, kept=False)
        self.keeper.release(peer_id)

    def kick(self, peer: PeerId | str | None = None) -> None:
        """Try now what waits for its time: one peer, or all that are kept or have lost their connections."""
        self.keeper.kick(None if peer is None else _key(peer))

    def remove(self, peer: PeerId | str) -> None:
        """Forget a peer: its session ends, its addresses go, and no dial and no timer of it is left."""
        peer_id = _key(peer)
        self._drop(peer_id, "removed")
        self.book.forget(peer_id)

    def block(self, peer: PeerId | str) -> None:
        """Have nothing to do with a peer, for good: its session ends, it is kept no longer, refused, never dialled."""
        peer_id = _key(peer)
        self.book.say(peer_id, kept=False, blocked=True)
        self._drop(peer_id, "blocked")

    def unblock(self, peer: PeerId | str) -> None:
        """It may dial us, and be dialled, again; whether to keep it is to be said anew."""
        self.book.say(_key(peer), blocked=False)

    def learn(self, record: bytes) -> PeerId:
        """Take over a peer's own list of its addresses, signed with its key, whoever has handed it on.

        Args:
            record: as `PeerRecord.encode` of `overlay.records` makes it.

        Returns:
            Whose it is.

        Raises:
            RecordError: it is forged, stale, oversized or garbage; counted in `book.refused`.
        """
        peer_id = self.book.learn_record(record).peer_id
        self.keeper.kick(peer_id)
        return peer_id

    @property
    def record(self) -> bytes:
        """Our own addresses, signed, for others to hand on.

        Raises:
            ConfigError: nothing is bound.
        """
        sequence = int(time.time() * 1_000_000)
        return PeerRecord.make(self.identity, self.ticket.addresses, sequence).encode()

    def peers(self) -> list[PeerStatus]:
        """All peers of which anything is known, those with a session first. A snapshot."""
        found = dict.fromkeys((*self.sessions, *self.book.peers))
        return [self._status(peer_id) for peer_id in found]

    def _whom(self, target: Ticket | PeerId | str) -> tuple[PeerId, tuple[Address, ...]]:
        """Whose key, and where it is said to be."""
        if not self._open:
            raise EndpointClosed("enter the endpoint first: async with Endpoint(...) as endpoint")
        if isinstance(target, str):
            target = parse_target(target)
        return (target.peer_id, target.addresses) if isinstance(target, Ticket) else (target, ())

    def _drop(self, peer_id: PeerId, reason: str) -> None:
        self._callers.pop(peer_id, None)
        if (peer := self._peers.get(peer_id)) is not None:
            peer.dialler.dismiss(f"this endpoint has {reason} that key")
            peer.refuse(reason)
        self.keeper.remove(peer_id)

    def _status(self, peer_id: PeerId) -> PeerStatus:
        peer = self._peers.get(peer_id)
        return PeerStatus(
            peer_id=peer_id,
            name=self.book.name(peer_id),
            state=self.keeper.state(peer_id).value,
            kept=self.book.is_kept(peer_id),
            blocked=self.book.is_blocked(peer_id),
            since=self.keeper.since(peer_id),
            next_dial=self.keeper.next_dial(peer_id),
            paths=() if peer is None else tuple(peer.paths()),
            addresses=self.book.addresses(peer_id),
        )

    def events(self) -> Events[Event]:
        """What happens to peers and paths, from this call on, until the endpoint is closed."""
        events: Events[Event] = Events()
        self.subscribe(events)
        return events

    def subscribe(self, subscriber: Subscriber) -> None:
        """Tell `subscriber` at once of all that `events` would, until the endpoint is closed or nobody holds it."""
        self._subscribers.add(subscriber)
        if not self._open:
            subscriber.put(None)

    # ---------------------------------------------------------------- for peers and diallers

    def transport(self, name: str) -> Transport:
        """The transport of that name; only configured ones are ever asked for."""
        return self._transports[name]

    def spawn(self, work: Coroutine[Any, Any, None], name: str) -> "asyncio.Task[None]":
        """Run a task that this endpoint owns: cancelled and awaited on closing, its failure logged."""
        task = asyncio.get_running_loop().create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._task_done)
        return task

    def _task_done(self, task: "asyncio.Task[Any]") -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            logger.error("task %s failed: please report this", task.get_name(), exc_info=error)

    def stream_opened(self, stream: Stream) -> None:
        """A peer has opened a stream."""
        self._handlers.stream_opened(stream)

    def publish(self, event: Event) -> None:
        """Tell all who listen to `events`."""
        for subscriber in tuple(self._subscribers):
            subscriber.put(event)

    def grant(self, chosen: bool) -> tuple[SessionLimits, Budget] | None:
        """Limits and memory of a new session, or None when the pool is exhausted."""
        limits = self.config.limits
        if not chosen:
            strangers = sum(peer.stranger for peer in self._peers.values())
            if strangers >= limits.stranger_sessions and not self._evict():
                return None
        budget = Budget(limits.session_memory, self.chosen if chosen else self._strangers)
        streams = max(min(CHOSEN_STREAMS, limits.live_streams), MINIMUM_STREAMS)
        window = min(CHOSEN_WINDOW, limits.stream_window)
        if not (chosen and budget.reserve(streams * window, spare=2)):
            streams, window = MINIMUM_STREAMS, MINIMUM_WINDOW
            while not budget.reserve(streams * window):
                if chosen or not self._evict():
                    return None
        session_buffer, stream_buffer = limits.session_send_buffer, limits.stream_send_buffer
        if not chosen:
            session_buffer = min(session_buffer, limits.stranger_send_buffer)
            stream_buffer = min(stream_buffer, limits.stranger_send_buffer // 4)
        session = SessionLimits(
            streams=streams,
            window=window,
            live_streams=limits.live_streams,
            stream_window=limits.stream_window,
            stream_send_buffer=stream_buffer,
            session_send_buffer=session_buffer,
        )
        return session, budget

    def _evict(self) -> bool:
        """End the stranger's session that has lingered longest, to make room; whether there was one."""
        lingering = [peer for peer in self._peers.values() if peer.stranger and peer.lingering_until is not None]
        if not lingering:
            return False
        oldest = min(lingering, key=lambda peer: peer.lingering_until or 0.0)
        oldest.evict()
        return True

    def suspected(self) -> None:
        """A peer's connection has fallen silent."""
        now = asyncio.get_running_loop().time()
        if self._outage.suspected(now, len(self._peers)) and now >= self._outage_until:
            logger.warning("many peers fell silent at once: our own network seems to be down")
            self._outage_until = now + OUTAGE

    @asynccontextmanager
    async def background_dial(self) -> AsyncIterator[None]:
        """Wait for this endpoint's turn to dial without being asked; during an outage one probe at a time goes."""
        delay = self._bucket.take(asyncio.get_running_loop().time())
        if delay:
            await asyncio.sleep(delay)
        async with self.outage_probe():
            yield

    @asynccontextmanager
    async def outage_probe(self) -> AsyncIterator[None]:
        """During an outage of ours wait for its end, unless no other dial probes for that."""
        loop = asyncio.get_running_loop()
        probing = False
        if loop.time() < self._outage_until:
            with suppress(TimeoutError):
                async with asyncio.timeout_at(self._outage_until):
                    probing = await self._probe.acquire()
        try:
            yield
        finally:
            if probing:
                self._outage_until = 0.0
                self._probe.release()

    def dialler(self, peer_id: PeerId) -> Dialler:
        """The one that dials a peer."""
        return self._peer(peer_id).dialler

    def called(self, peer_id: PeerId) -> None:
        """A peer has dialled us, and carries a session by that."""
        self._callers.pop(peer_id, None)
        self._callers[peer_id] = None
        if len(self._callers) > self.config.limits.known_peers:
            del self._callers[next(iter(self._callers))]
        self.book.inbound(peer_id)

    def is_caller(self, peer_id: PeerId) -> bool:
        """Whether a peer has dialled us, and so may do it again."""
        return peer_id in self._callers

    def network_changed(self, lost: Container[str]) -> None:
        """Our own network is another one, without those addresses: each connection is asked whether it still works."""
        self._outage_until = 0.0
        for peer in tuple(self._peers.values()):
            peer.network_changed(lost)

    def forget(self, peer: Peer) -> None:
        """Nothing is left of a peer but what the book and the keeper know."""
        if self._peers.get(peer.peer_id) is peer and not peer.dialler.busy:
            del self._peers[peer.peer_id]

    def _peer(self, peer_id: PeerId) -> Peer:
        peer = self._peers.get(peer_id)
        if peer is None:
            peer = self._peers[peer_id] = Peer(self, peer_id)
        return peer

    def _welcomes(self, peer_id: PeerId) -> bool:
        """Whether `Config.accept` and the user's word let that key in."""
        accept = self.config.accept
        if self.book.is_blocked(peer_id):
            return False
        if accept == "known":
            return self.book.is_known(peer_id)
        if accept == "all":
            return True
        if not callable(accept):
            return peer_id in accept
        try:
            return accept(peer_id)
        except Exception:
            logger.exception("Config.accept failed, so %s is refused", peer_id.short)
            return False

    def _accepted(self, connection: Connection) -> ConnectionHandler:
        """An inbound connection's peer has proven its key: admit it, or raise."""
        if not self._open:
            raise HandshakeError("the endpoint is closing", CloseCode.SESSION_CLOSED)
        if not self._welcomes(connection.peer_id):
            raise HandshakeError("this endpoint does not accept that key", CloseCode.REFUSED)
        peer = self._peers.get(connection.peer_id)
        if peer is not None and len(peer.connections) >= self.config.limits.connections_per_peer:
            raise HandshakeError("too many connections of one peer", CloseCode.BUSY)
        if peer is None or peer.session is None:
            # A proven key costs nothing either: who has not said HELLO is still a kind of handshake.
            silent = sum(1 for one in self._peers.values() if one.session is None and one.connections)
            if silent >= self.config.limits.handshakes:
                raise HandshakeError("too many connections without a session", CloseCode.BUSY)
        peer = self._peer(connection.peer_id)
        peer.accepted(connection)
        return peer


class Connecting:
    """A connect under way: await it, or use it as an async context manager."""

    def __init__(
        self, endpoint: Endpoint, target: Ticket | PeerId | str, timeout: float | None, *, early: bool
    ) -> None:
        self._endpoint = endpoint
        self._target = target
        self._timeout = timeout
        self._early = early
        self._session: Session | None = None

    def __await__(self) -> Generator[Any, None, Session]:
        return self._endpoint._connect(self._target, self._timeout, early=self._early).__await__()

    async def __aenter__(self) -> Session:
        self._session = await self
        return self._session

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._session is not None:
            await self._session.aclose()


def _key(peer: PeerId | str) -> PeerId:
    return PeerId.parse(peer) if isinstance(peer, str) else peer
