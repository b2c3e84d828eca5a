"""`Endpoint`: the local node. One identity, its sockets, its peers. The only module that names concrete transports."""

import asyncio
import logging
import random
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Coroutine, Generator
from contextlib import ExitStack, asynccontextmanager, suppress
from types import TracebackType
from typing import Any, Final, Self
from weakref import WeakSet

from overlay.addresses import Address, Ticket
from overlay.config import Config
from overlay.errors import ConfigError, EndpointClosed, HandshakeError, OverlayError
from overlay.events import Event
from overlay.identity import Identity, PeerId
from overlay.local import reachable
from overlay.peer import Peer
from overlay.protocol.backoff import DialBucket, OutageWatch
from overlay.protocol.budget import Budget
from overlay.protocol.codes import CloseCode
from overlay.protocol.frames import MINIMUM_STREAMS, MINIMUM_WINDOW
from overlay.protocol.gate import HandshakeGate
from overlay.protocol.session import SessionLimits
from overlay.session import Session
from overlay.streams import Stream
from overlay.transports.base import Connection, ConnectionHandler, Transport
from overlay.transports.memory import MemoryTransport
from overlay.transports.quic_transport import QuicTransport
from overlay.transports.sockets import bind
from overlay.transports.tcp import TcpTransport
from overlay.transports.udp import UdpTransport
from overlay.transports.udp_socket import UdpSocket

logger = logging.getLogger("overlay")

Handler = Callable[[Stream], Awaitable[None]]

CHOSEN_STREAMS: Final = 64
CHOSEN_WINDOW: Final = 16 * 1024
"""A peer that we dial may send 16 KiB on each of 64 new streams before its first WINDOW; strangers get the minimum.
Every stream reserves so much: 1,024 opened by us and as many by the peer fill `Limits.session_memory` just so. Once
half of `Limits.chosen_memory` is taken, further peers start with the minimum, as strangers do, and grow."""
DIALS_PER_SECOND: Final = 10.0
DIAL_BURST: Final = 20.0
OUTAGE: Final = 5.0
"""Seconds for which only one background dial at a time probes, after our own network seems to have failed."""
EVENT_QUEUE: Final = 1024
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
    """

    def __init__(self, identity: Identity, config: Config | None = None) -> None:
        self.identity = identity
        self.config = config or Config()
        self.process = random.SystemRandom().getrandbits(64) or 1
        self._handlers: dict[str, Handler] = {}
        self._peers: dict[PeerId, Peer] = {}
        self._wanted: set[PeerId] = set()
        """Those of `_peers` that somebody here has asked for."""
        self._known: dict[PeerId, dict[Address, None]] = {}
        self._met: dict[PeerId, dict[Address, None]] = {}
        """The same of peers that only dialled us: keys cost nothing, so they must not displace those we chose."""
        self._transports: dict[str, Transport] = {}
        self._udp: list[UdpSocket] = []
        self._tasks: set[asyncio.Task[Any]] = set()
        self._resources = ExitStack()
        self._subscribers: WeakSet[asyncio.Queue[Event | None]] = WeakSet()
        limits = self.config.limits
        self.chosen = Budget(limits.chosen_memory)
        self._strangers = Budget(limits.stranger_memory)
        self._gate = HandshakeGate(limits.handshakes, limits.handshakes_per_address)
        self._bucket = DialBucket(DIALS_PER_SECOND, DIAL_BURST)
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
        self._open = True
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
        if not self._open:
            return
        self._open = False
        try:
            for peer in tuple(self._peers.values()):
                await peer.aclose()
            for task in tuple(self._tasks):
                task.cancel()
            if self._tasks:
                _, stubborn = await asyncio.wait(self._tasks, timeout=CLOSE_TIMEOUT)
                for task in stubborn:
                    logger.warning("task %s ignores its cancellation: the endpoint closes without it", task.get_name())
        finally:
            await self._close_transports()
            self._peers.clear()
            self._resources.close()
            for queue in self._subscribers:
                _put(queue, None)

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
        self._handlers[protocol] = handler

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
        if not self._open:
            raise EndpointClosed("enter the endpoint before connecting: async with Endpoint(...) as endpoint")
        if isinstance(target, str):
            target = Ticket.parse(target) if ":" in target else PeerId.parse(target)
        peer_id, addresses = (target.peer_id, target.addresses) if isinstance(target, Ticket) else (target, ())
        peer = self._peer(peer_id)
        self._wanted.add(peer_id)
        for address in addresses:
            peer.dialler.learn(address)
        timeout = self.config.dial_timeout if timeout is None else timeout
        return await peer.dialler.connect(timeout=timeout, early=early)

    def events(self) -> AsyncGenerator[Event, None]:
        """What happens to peers and paths, from this call on, until the endpoint is closed.

        At most 1,024 wait for a slow reader; the oldest goes first then.
        """
        queue: asyncio.Queue[Event | None] = asyncio.Queue(EVENT_QUEUE)
        self._subscribers.add(queue)
        return self._events(queue)

    async def _events(self, queue: "asyncio.Queue[Event | None]") -> AsyncGenerator[Event, None]:
        while (self._open or not queue.empty()) and (event := await queue.get()) is not None:
            yield event

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

    def publish(self, event: Event) -> None:
        """Tell all who listen to `events`."""
        for queue in self._subscribers:
            _put(queue, event)

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

    def stream_opened(self, stream: Stream) -> None:
        """A peer has opened a stream: serve it, when fewer than `live_streams` handlers of its session run.

        A peer that resets its streams may open others at once, while their handlers still run. So the others wait; of
        those that wait, the live ones are bounded by the peer's credit, and the dead ones are dropped.
        """
        handler = self._handlers.get(stream.protocol)
        if handler is None:
            stream._refuse()
            return
        session = stream.session
        session._unserved.append((handler, stream))
        if len(session._unserved) > 2 * self._handlers_limit:
            session._unserved = deque(one for one in session._unserved if not one[1]._core.removed)
        self._serve_next(session)

    @property
    def _handlers_limit(self) -> int:
        return max(self.config.limits.live_streams, MINIMUM_STREAMS)

    def _serve_next(self, session: Session) -> None:
        while self._open and session._unserved and session._handlers < self._handlers_limit:
            handler, stream = session._unserved.popleft()
            session._handlers += 1
            self.spawn(self._serve(handler, stream), f"{stream.protocol} from {session.peer_id.short}")

    async def _serve(self, handler: Handler, stream: Stream) -> None:
        try:
            async with stream:
                await handler(stream)
        except (OverlayError, TimeoutError) as error:
            logger.debug("%r ended: %s", stream, error)
        except Exception:
            logger.exception("the handler of %r failed; the stream was reset", stream)
        finally:
            stream.session._handlers -= 1
            self._serve_next(stream.session)

    def suspected(self) -> None:
        """A peer's connection has fallen silent."""
        now = asyncio.get_running_loop().time()
        if self._outage.suspected(now, len(self._peers)) and now >= self._outage_until:
            logger.warning("many peers fell silent at once: our own network seems to be down")
            self._outage_until = now + OUTAGE

    @asynccontextmanager
    async def background_dial(self) -> AsyncIterator[None]:
        """Wait for this endpoint's turn to dial without being asked; during an outage one probe at a time goes."""
        loop = asyncio.get_running_loop()
        delay = self._bucket.take(loop.time())
        if delay:
            await asyncio.sleep(delay)
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

    def forget(self, peer: Peer) -> None:
        """Nothing is left of a peer but its addresses: keep those, of the newest peers."""
        if self._peers.get(peer.peer_id) is peer and not peer.dialler.busy:
            del self._peers[peer.peer_id]
            remembered = self._known if peer.peer_id in self._wanted else self._met
            self._wanted.discard(peer.peer_id)
            if peer.dialler.addresses:
                remembered[peer.peer_id] = peer.dialler.addresses
            while len(remembered) > self.config.limits.known_peers:
                del remembered[next(iter(remembered))]

    def _peer(self, peer_id: PeerId) -> Peer:
        peer = self._peers.get(peer_id)
        if peer is None:
            peer = self._peers[peer_id] = Peer(self, peer_id)
            if peer_id in self._known:
                self._wanted.add(peer_id)
            for address in (*self._met.pop(peer_id, ()), *self._known.pop(peer_id, ())):
                peer.dialler.learn(address)
        return peer

    def _accepted(self, connection: Connection) -> ConnectionHandler:
        """An inbound connection's peer has proven its key: admit it, or raise."""
        if not self._open:
            raise HandshakeError("the endpoint is closing", CloseCode.SESSION_CLOSED)
        if self.config.accept is not None and not self.config.accept(connection.peer_id):
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


def _put(queue: "asyncio.Queue[Event | None]", event: Event | None) -> None:
    if queue.full():
        queue.get_nowait()
    queue.put_nowait(event)
