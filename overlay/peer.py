"""One remote key: the asyncio shell over `PeerCore`. Owns its connections, its timer and its dialling.

Everything that can change the core, a frame, a write, a timer, ends in `_pump`: it carries out the core's actions,
fills the connections, wakes the streams, and sets the timer to the next deadline. Changes made by the application only
schedule it, so that all that one turn of the event loop writes leaves together.
"""

import asyncio
import errno
import logging
import random
import time
from collections.abc import Callable, Container
from operator import attrgetter
from typing import TYPE_CHECKING

from overlay.dialler import Dialler
from overlay.endings import not_accepted, session_error
from overlay.errors import DatagramTooLarge, OverlayError, SessionError, SessionLost
from overlay.events import Origin, Path, PathChanged, PathLost, SessionReplaced
from overlay.identity import PeerId
from overlay.paths import Paths
from overlay.protocol.actions import (
    Action,
    Answered,
    Attached,
    CloseConnection,
    Ended,
    Ending,
    Lingering,
    PeerSettings,
    Recovered,
    Suspected,
)
from overlay.protocol.codes import CloseCode
from overlay.protocol.evidence import Source
from overlay.protocol.frames import Control
from overlay.protocol.links import SessionState
from overlay.protocol.liveness import Progress
from overlay.protocol.peer import PeerCore
from overlay.protocol.session import SessionCore
from overlay.protocol.stream import Priority, StreamCore
from overlay.session import Session
from overlay.streams import Stream
from overlay.transports.base import ClosedBy, CloseReason, Connection, Role

if TYPE_CHECKING:
    from overlay.endpoint import Endpoint

logger = logging.getLogger("overlay")

clock = time.monotonic
"""The time base of every event loop; uvloop's own clock counts whole milliseconds, more than a round trip nearby."""


class Peer:
    """Implements `ConnectionHandler` for all connections with one key."""

    def __init__(self, endpoint: "Endpoint", peer_id: PeerId) -> None:
        self.peer_id = peer_id
        self.session: Session | None = None
        self.connections: dict[int, Connection] = {}
        self._endpoint = endpoint
        self._config = endpoint.config
        self._loop = asyncio.get_running_loop()
        self._core = PeerCore(
            endpoint.peer_id.raw,
            peer_id.raw,
            process=endpoint.process,
            random=lambda: random.SystemRandom().getrandbits(64) or 1,
            grant=endpoint.grant,
            settings=PeerSettings(
                linger=self._config.resume_timeout,
                handshake_timeout=self._config.handshake_timeout,
                keepalive=self._config.keepalive,
                idle_timeout=self._config.idle_timeout,
            ),
        )
        self.dialler = Dialler(self, endpoint)
        self._paths = Paths(self._core)
        self._origins: dict[int, Callable[[], Origin]] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = 0.0
        self._scheduled: asyncio.Handle | None = None
        self._accepted: dict[int, asyncio.Future[None]] = {}
        self._pings: dict[int, asyncio.Future[tuple[float, Path] | None]] = {}
        self._failure: OverlayError | None = None
        self._selected: int | None = None
        self._unflushed: set[int] = set()
        """Connections that were given datagrams in this turn."""
        self._closed = False

    # ---------------------------------------------------------------- what users ask, by way of Session and Stream

    def paths(self) -> list[Path]:
        """A snapshot of the connections that carry the session, the selected one first."""
        return self._paths.all(self.connections)

    def received_on(self) -> Path | None:
        """The path that the peer's stream bytes or datagrams came over last; None when it is gone."""
        return self._paths.received_on

    def traffic_by_transport(self) -> dict[str, tuple[int, int]]:
        """Bytes sent and received, over all connections there are and have been."""
        return self._paths.traffic(self.connections.values())

    @property
    def max_datagram_size(self) -> int:
        """Of the selected connection; 0 without one."""
        connection = self.connections.get(self._core.selected or 0)
        return 0 if connection is None else connection.max_datagram_size

    def open(self, session: SessionState, protocol: str, priority: Priority) -> StreamCore | None:
        """Open a stream, or None when there is no credit."""
        core = session.core.open(protocol, priority)
        self.wake()
        return core

    def write(self, stream: StreamCore, data: bytes | memoryview) -> int:
        """Accept what there is room for."""
        core = self._session_core(stream)
        if core is None:
            return 0
        self.wake()
        return core.write(stream, data)

    def supply(self, stream: StreamCore, source: Callable[[int], bytes]) -> None:
        """Ask `source` for the stream's bytes."""
        if (core := self._session_core(stream)) is not None:
            core.supply(stream, source)
            self.wake()

    def more(self, stream: StreamCore) -> None:
        """The stream's source may have something."""
        if (core := self._session_core(stream)) is not None:
            core.more(stream)
            self.wake()

    def finish(self, stream: StreamCore) -> None:
        """FIN."""
        if (core := self._session_core(stream)) is not None:
            core.finish(stream)
            self.wake()

    def reset(self, stream: StreamCore, code: int) -> None:
        """RESET."""
        if (core := self._session_core(stream)) is not None:
            core.reset(stream, code)
            self.wake()

    def stop(self, stream: StreamCore, code: int) -> None:
        """STOP."""
        if (core := self._session_core(stream)) is not None:
            core.stop(stream, code)
            self.wake()

    def read(self, stream: StreamCore, size: int) -> bytes:
        """What has arrived, also after the session's end."""
        core = self._session_core(stream)
        if core is None:
            return stream.receiving.buffer.read(size)
        data = core.read(stream, size)
        if core.has_control:
            self.wake()
        return data

    def send_datagram(self, data: bytes) -> None:
        """On the selected connection, or nowhere."""
        connection = self.connections.get(self._core.selected or 0)
        if connection is None:
            return
        if len(data) > connection.max_datagram_size:
            raise DatagramTooLarge(len(data), connection.max_datagram_size)
        if connection.send_datagram(data):
            self._unflushed.add(connection.id)
            self.wake()

    async def ping(self) -> tuple[float, Path] | None:
        """Ask the peer on the selected connection; None when the connection was lost, or there is none yet."""
        nonce = self._core.ping(clock())
        if nonce is None:
            await self.dialler.changed()
            return None
        waiter: asyncio.Future[tuple[float, Path] | None] = self._loop.create_future()
        self._pings[nonce] = waiter
        self.wake()
        try:
            return await waiter
        finally:
            self._pings.pop(nonce, None)

    def close_session(self, session: SessionState, code: CloseCode, reason: str) -> None:
        """End it on purpose."""
        self._core.close_session(session, clock(), code=code, reason=reason)
        self._pump()

    # ---------------------------------------------------------------- what the dialler asks

    @property
    def idle(self) -> bool:
        """Nothing is known here that could not be forgotten, but addresses."""
        return self._core.idle and not self.connections

    def begin(self, *, early: bool) -> Session | None:
        """The session to dial for; None when there is no memory for another one."""
        state = self._core.begin(early=early)
        if state is None:
            return None
        self.choose()
        return self._session_of(state)

    def choose(self) -> None:
        """The user wants this peer: its session's memory no longer comes from the strangers' pool, if there is room."""
        if self._core.session is not None:
            self._core.session.budget.move(self._endpoint.chosen)

    def usable_transports(self) -> set[str]:
        """Transports of connections that carry the session and answer."""
        return {
            self.connections[one].transport
            for one in self._core.attached
            if one in self.connections and not self._core.is_suspect(one)
        }

    def dialled(
        self, connection: Connection, session: Session | None, origin: Callable[[], Origin]
    ) -> "asyncio.Future[None]":
        """Introduce a connection that we have made; the future is done at ACCEPT, or holds what came instead.

        Args:
            connection: the connection.
            session: what it was dialled for.
            origin: asked at ACCEPT how the path came about.

        Raises:
            ConnectionError: it has ended already, or the session that it was made for has.
        """
        if self.session is not session:
            raise ConnectionAbortedError(errno.ECONNABORTED, "the session that it was for is over")
        if connection.is_closed:
            raise ConnectionResetError(errno.ECONNRESET, "the peer hung up at once")
        waiter = self._accepted[connection.id] = self._loop.create_future()
        self._origins[connection.id] = origin
        self._introduce(connection)
        self._pump()
        return waiter

    def carried_by(self, connection: Connection) -> bool:
        """Whether the session depends on that connection: it is the only one that carries it, or the one in use."""
        attached = self._core.attached
        return attached == [connection.id] or (self._core.selected == connection.id and connection.id in attached)

    def give_up(self, failure: OverlayError | None = None) -> None:
        """A dial has failed and there never was a connection: forget the session that it was for.

        Who uses it already, as `connect(early=True)` allows, is told of `failure`.
        """
        state = self._core.session
        if state is not None and not state.connected:
            self._failure = failure
            self._core.close_session(state, clock())
            self._pump()
            self._failure = None

    # ---------------------------------------------------------------- what the endpoint asks

    @property
    def stranger(self) -> bool:
        """The session's memory comes from the pool of those whom we have not chosen."""
        state = self._core.session
        return state is not None and state.budget.parent is not self._endpoint.chosen

    @property
    def lingering_until(self) -> float | None:
        """When the session's resume time is over; None while it has a connection, or there is no session."""
        return None if self._core.session is None else self._core.session.linger_until

    def network_changed(self, lost: Container[str]) -> None:
        """Our own network is another one, without the addresses in `lost`: let connections move, and ask on each."""
        connections = tuple(self.connections.values())
        stranded = {connection.id for connection in connections if not connection.network_changed(lost)}
        self._core.check(clock(), stranded)
        self.dialler.network_changed()
        self.wake()

    def refuse(self, reason: str) -> None:
        """End everything with this peer, and tell it that it is not welcome."""
        if self._core.session is not None:
            self._core.close_session(self._core.session, clock(), reason=reason)
            self._pump()
        for connection in tuple(self.connections.values()):
            connection.close(CloseCode.REFUSED, reason)

    def evict(self) -> None:
        """End a lingering session: others need its memory."""
        if self._core.session is not None:
            self._core.close_session(self._core.session, clock(), reason="evicted: memory is short")
            self._pump()

    # ---------------------------------------------------------------- ConnectionHandler

    def accepted(self, connection: Connection) -> None:
        """Introduce a connection that the peer has made."""
        self._introduce(connection)
        self.wake()

    def frame_received(self, connection: Connection, frame: Control) -> None:
        """See `ConnectionHandler`."""
        self._core.receive(connection.id, frame, clock())

    def stream_received(self, connection: Connection, stream: int, offset: int, data: bytes) -> None:
        """See `ConnectionHandler`."""
        self._paths.heard_on = connection
        self._core.receive_stream(connection.id, stream, offset, data, clock())

    def datagram_received(self, connection: Connection, data: bytes) -> None:
        """See `ConnectionHandler`. Before its HELLO was judged, a connection's datagrams are dropped."""
        if self.session is not None and connection.id in self._core.attached:
            self._paths.heard_on = connection
            self.session._datagram_received(data)

    def writable(self, connection: Connection) -> None:
        """See `ConnectionHandler`. The transport flushes after this call."""
        self._pump(flushed=connection)

    def closed(self, connection: Connection, reason: CloseReason) -> None:
        """See `ConnectionHandler`."""
        logger.debug("%r %s", connection, reason)
        if self.connections.pop(connection.id, None) is None:
            # It ended before it was introduced; whoever dialled it finds that out.
            return
        self._paths.ended(connection)
        self._core.connection_lost(
            connection.id,
            clock(),
            code=reason.code,
            reason=reason.reason,
            by_peer=reason.by is ClosedBy.PEER,
        )
        waiter = self._accepted.pop(connection.id, None)
        if waiter is not None and not waiter.done():
            waiter.set_exception(not_accepted(reason))
            # The attempt may have been cancelled meanwhile; then nobody asks for the exception.
            waiter.exception()
        self._origins.pop(connection.id, None)
        self._path_lost(connection)
        for ping in tuple(self._pings.values()):
            if not ping.done():
                ping.set_result(None)
        self._pump()

    # ---------------------------------------------------------------- the pump

    def wake(self) -> None:
        """Something is to be sent: pump in this turn of the loop, after everybody who runs now."""
        if self._scheduled is None and not self._closed:
            self._scheduled = self._loop.call_soon(self._pump_scheduled)

    def _pump_scheduled(self) -> None:
        self._scheduled = None
        self._pump()

    def _pump(self, flushed: Connection | None = None) -> None:
        core = self._core
        now = clock()
        self._act()
        for connection in tuple(self.connections.values()):
            frames = core.frames_to_send(connection.id)
            for frame in frames:
                connection.send_frame(frame)
            sent = bool(frames) or connection.id in self._unflushed
            if connection.id == core.selected:
                sent = self._draw_datagrams(connection) or sent
                while (room := connection.sendable()) > 0:
                    chunk = core.data_to_send(connection.id, room)
                    if chunk is None:
                        break
                    connection.send_stream(chunk.stream, chunk.offset, chunk.data, idle=chunk.idle)
                    sent = True
            if sent and connection is not flushed:
                connection.flush()
        self._unflushed.clear()
        state = core.session
        if state is not None:
            self._wake_streams(state)
        core.update(now)
        self._set_timer(now)

    def _draw_datagrams(self, connection: Connection) -> bool:
        """Ask for datagrams, as many as can leave; whether there were any.

        What the connection takes of datagrams does not count for the streams, whose turn comes behind.
        """
        session = self.session
        if session is None or not session._datagrams_hungry or not self._core.takes_datagrams(connection.id):
            return False
        source, drawn, longest = session._datagram_source, False, connection.max_datagram_size
        while source is not None and longest and connection.datagram_room() > 0:
            data = source(longest)
            if data is None:
                session._datagrams_hungry = False
                return drawn
            drawn = True
            connection.send_datagram(data)
        if drawn:
            # There may be room again at once; if there is none, the connection tells.
            self.wake()
        return drawn

    def _wake_streams(self, state: SessionState) -> None:
        session = self.session
        if session is None:
            return
        core = state.core
        for stream in core.take_opened():
            shell = Stream(session, stream)
            stream.handle = shell
            self._endpoint.stream_opened(shell)
        # They run in the order in which they are woken.
        for stream in sorted(core.take_changed(), key=attrgetter("priority")):
            if isinstance(stream.handle, Stream):
                stream.handle._changed()
        if core.may_open:
            core.may_open = False
            session._may_open.set()

    def _set_timer(self, now: float) -> None:
        at = self._core.next_timeout()
        if at is None or self._closed:
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None
            if self.idle and not self._closed:
                self._endpoint.forget(self)
            return
        if self._timer is not None:
            if self._timer_at <= at:
                # Firing early and looking again is cheaper than a new timer for each packet.
                return
            self._timer.cancel()
        self._timer_at = max(at, now)
        self._timer = self._loop.call_at(self._timer_at, self._timeout)

    def _timeout(self) -> None:
        self._timer = None
        self._core.handle_timeout(clock())
        self._pump()

    # ---------------------------------------------------------------- actions

    def _act(self) -> None:
        while actions := self._core.take_actions():
            for action in actions:
                self._carry_out(action)
        selected = self._core.selected
        if selected != self._selected and (selected is None or selected in self._core.attached):
            self._selected = selected
            connection = self.connections.get(selected or 0)
            if connection is not None:
                logger.debug("%s: sending on %s", self.peer_id.short, connection.remote)
                self._endpoint.publish(PathChanged(self.peer_id, self._paths.path(connection)))

    def _carry_out(self, action: Action) -> None:
        match action:
            case Attached(connection, state):
                self._session_of(state)
                made = self._origins.pop(connection, None)
                self._paths.origins[connection] = Origin("inbound") if made is None else made()
                waiter = self._accepted.pop(connection, None)
                if waiter is not None and not waiter.done():
                    waiter.set_result(None)
                if made is None:
                    self._endpoint.called(self.peer_id)
                self.dialler.attached(dialled=made is not None)
            case Suspected(connection):
                logger.info("%s: nothing comes back on %r", self.peer_id.short, self.connections.get(connection))
                self._endpoint.suspected()
                self.dialler.wake()
            case Recovered():
                self.dialler.wake()
            case Lingering():
                self._endpoint.keeper.lost(self.peer_id)
            case Answered(connection, nonce, seconds):
                waiter_ = self._pings.get(nonce)
                link = self.connections.get(connection)
                if waiter_ is not None and not waiter_.done() and link is not None:
                    waiter_.set_result((seconds, self._paths.path(link)))
            case Ended(state, why, code, reason):
                self._session_ended(state, why, code, reason)
            case CloseConnection(connection, close_code, reason):
                if (link := self.connections.get(connection)) is not None:
                    # What the core queued for it, such as an ACCEPT before it, still goes first.
                    for frame in self._core.frames_to_send(connection):
                        link.send_frame(frame)
                    link.close(close_code, reason)

    def _session_ended(self, state: SessionState, why: Ending, code: int, reason: str) -> None:
        error = session_error(why, code, reason)
        if self._failure is not None:
            lost = SessionLost("the session never had a connection")
            lost.__cause__ = self._failure
            error = self._failure if isinstance(self._failure, SessionError) else lost
        session = state.handle
        streams = [stream.handle for stream in state.core.take_changed()]
        if isinstance(session, Session):
            session._ended(error)
            if self.session is session:
                self.session = None
        for stream in streams:
            if isinstance(stream, Stream):
                stream._changed()
        self.dialler.ended(error)
        if state.connected:
            # They close after this, and after PeerDisconnected nothing is told of them.
            for connection in tuple(self.connections.values()):
                if connection.id not in self._core.attached:
                    self._path_lost(connection)
            if why in {Ending.RESTARTED, Ending.GONE}:
                self._endpoint.publish(SessionReplaced(self.peer_id))
            self._endpoint.keeper.ended(self.peer_id, error)

    def _path_lost(self, connection: Connection) -> None:
        if self._paths.origins.pop(connection.id, None) is not None:
            lost = PathLost(self.peer_id, connection.transport, connection.remote, len(self._core.attached))
            self._endpoint.publish(lost)

    # ---------------------------------------------------------------- helpers

    async def aclose(self) -> None:
        """End everything with this peer; its connections are told."""
        await self.dialler.aclose()
        now = clock()
        if self._core.session is not None:
            self._core.close_session(self._core.session, now)
        self._pump()
        self._closed = True
        for connection in tuple(self.connections.values()):
            connection.close(CloseCode.SESSION_CLOSED)
        if self._scheduled is not None:
            self._scheduled.cancel()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _introduce(self, connection: Connection) -> None:
        self.connections[connection.id] = connection
        connection_watch = _watch(connection)
        self._core.connection_made(
            connection.id,
            kind=(connection.transport, connection.remote.family or 0),
            rank=self._config.transports.index(connection.transport),
            dialled_by_us=connection.role is Role.DIALER,
            watch=connection_watch,
            now=clock(),
        )
        if connection.transport in {"quic", "udp"}:
            # Its socket is the one that listens; of TCP we only see a port of the moment.
            source = Source.OBSERVED if connection.role is Role.DIALER else Source.INBOUND
            self.dialler.learn(connection.remote, source)

    def _session_of(self, state: SessionState) -> Session:
        if not isinstance(state.handle, Session):
            state.handle = self.session = Session(self, state, self._config)
        return state.handle

    def _session_core(self, stream: StreamCore) -> SessionCore | None:
        if stream.removed or self._core.session is None:
            return None
        return self._core.session.core


def _watch(connection: Connection) -> Callable[[], Progress]:
    return lambda: Progress(
        connection.last_progress(), connection.probe_timeout, connection.bytes_received, connection.rtt_min
    )
