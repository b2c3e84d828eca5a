"""TCP: dialling and accepting, up to the moment at which the peer has proven its key.

Why not asyncio's TLS: its `ssl` has no verify callback, so it cannot ask a client for a self-signed certificate; and
OpenSSL over memory buffers, driven by one reader and one writer callback for each socket, is faster on both loops.

A handshake (`_Opening`) owns the socket until the peer is known; only then there is a `TcpConnection`, and only then
anybody else hears of it.

Some networks carry less than they say and drop what is too big without a word (RFC 2923 section 2.1). There a
connection comes up and then nothing gets through. The first messages of both sides fill a segment, as OpenSSL offers
and answers a post-quantum key share, so they find out: when ours is not acknowledged, or of the peer's only the end has
come, the dial is made again with small segments, and the host is remembered. A host that is only slow has
acknowledged: its kernel does that.
"""

import asyncio
import errno
import logging
import socket
from collections.abc import Callable, Sequence
from typing import ClassVar

from overlay.addresses import Address
from overlay.config import Config
from overlay.errors import HandshakeError, SelfDial
from overlay.identity import Identity, PeerId
from overlay.protocol.codes import CloseCode
from overlay.protocol.gate import HandshakeGate
from overlay.transports import tls
from overlay.transports.base import Accepted, CloseReason, Connection, ConnectionHandler, Role, Transport
from overlay.transports.sockets import TcpInfo, dial_tcp_socket, tcp_info, tune_tcp
from overlay.transports.tcp_connection import RECEIVE, TcpConnection

ALPN = b"overlay-tcp/1"

_LOG = logging.getLogger("overlay.tcp")
_ACCEPTS_PER_WAKEUP = 16
_ACCEPT_PAUSE = 0.1
"""Seconds without accepting when descriptors have run out: poll would report the listener at once, for nothing."""
_OUT_OF_RESOURCES = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}
_UNTOUCHED = 16 * 1024 * 1024
"""Bytes. glibc takes no more than 32 MiB for its limits."""


_SMALL_SEGMENT = 1220
"""Bytes: with both headers no more than 1280, which every link that knows IPv6 carries (RFC 8200 section 5)."""
_SMALL_AFTER = 1.5
"""Seconds after which our first message should be acknowledged; at least 4 times as long as connecting took."""
_SMALL_FOR = 600.0
"""Seconds; then large ones are tried again, as RFC 4821 section 7.7 recommends."""
_MAX_SMALL = 256


class _Opening:
    """A TLS handshake on a socket; `done` is called once, with the proven key or the error.

    Attributes:
        backlog: ciphertext that the kernel has not taken yet.
    """

    def __init__(
        self, sock: socket.socket, handshake: tls.Handshake, done: Callable[[PeerId | Exception], None]
    ) -> None:
        self.sock = sock
        self.handshake = handshake
        self.backlog: bytes | memoryview = b""
        self._done = done
        self._loop = asyncio.get_running_loop()

    def start(self, role: Role) -> None:
        """Begin; the dialler speaks first."""
        self._loop.add_reader(self.sock, self._on_readable)
        if role is Role.DIALER:
            self._advance(b"")

    def stop(self) -> None:
        """Take the hands off the socket."""
        self._loop.remove_reader(self.sock)
        self._loop.remove_writer(self.sock)

    def fail(self, error: Exception) -> None:
        """End it as if the handshake had failed."""
        self.stop()
        self._done(error)

    def _on_readable(self) -> None:
        try:
            # Not more, or a stranger's bytes beyond the bound would be in memory before they are counted.
            data = self.sock.recv(tls.RECORD)
        except (BlockingIOError, InterruptedError):
            return
        except OSError as error:
            self.fail(error)
            return
        if not data:
            self.fail(HandshakeError("the peer hung up during the handshake"))
            return
        self._advance(data)

    def _advance(self, data: bytes) -> None:
        result: PeerId | Exception | None
        try:
            result = self.handshake.receive_data(data)
        except Exception as error:  # noqa: BLE001 - handed on; raised, it would only reach the loop's logger
            result = error
        try:
            self._transmit(self.handshake.data_to_send())
        except OSError as error:
            result = error if result is None or isinstance(result, PeerId) else result
        if result is not None:
            self.stop()
            self._done(result)

    def _transmit(self, data: bytes) -> None:
        self.backlog = bytes(self.backlog) + data
        if not self.backlog:
            return
        try:
            sent = self.sock.send(self.backlog)
        except (BlockingIOError, InterruptedError):
            sent = 0
        self.backlog = self.backlog[sent:]
        if self.backlog:
            self._loop.add_writer(self.sock, self._on_writable)
        else:
            self._loop.remove_writer(self.sock)

    def _on_writable(self) -> None:
        try:
            self._transmit(b"")
        except OSError as error:
            self.fail(error)


def _keep_heap() -> None:
    """Let the C library keep some free memory instead of giving it back after each piece.

    glibc returns the top of its heap to the kernel whenever 128 KiB of it are free, and asks for it again for the next
    piece of a stream: page faults took half of a receiver's time (measured: 600 against 1,150 MB/s). Freeing one large
    block raises that limit to twice its size for the process (mallopt(3), M_MMAP_THRESHOLD). The block itself is
    never touched, so it costs nothing; other C libraries do not mind.
    """
    block = bytearray(_UNTOUCHED)
    del block


class TcpTransport(Transport):
    """Dials and accepts TCP connections.

    Args:
        identity: our key.
        config: `handshake_timeout`, `fwmark` and `interfaces` matter here.
        listeners: listening, non-blocking sockets; closed by `aclose`.
        accepted: see `Accepted`.
        gate: shared with the other transports.
    """

    name: ClassVar[str] = "tcp"

    def __init__(
        self,
        identity: Identity,
        config: Config,
        listeners: Sequence[socket.socket],
        accepted: Accepted,
        gate: HandshakeGate,
    ) -> None:
        self._own = identity.peer_id
        self._profile = tls.Profile(identity, ALPN)
        self._config = config
        self._listeners = list(listeners)
        self._addresses = tuple(Address.from_sockaddr("tcp", sock.getsockname()) for sock in listeners)
        self._accepted = accepted
        self._gate = gate
        self._connections: set[TcpConnection] = set()
        self._openings: set[_Opening] = set()
        self._pauses: dict[socket.socket, asyncio.TimerHandle] = {}
        self._small_until: dict[str, float] = {}
        self._closed = False
        self._empty: asyncio.Future[None] | None = None
        # One for all: it is full only between a read and the decryption that follows at once.
        self._buffer = memoryview(bytearray(RECEIVE))
        _keep_heap()

    @property
    def addresses(self) -> tuple[Address, ...]:
        """What the listeners are bound to, wildcards included."""
        return self._addresses

    def start(self) -> None:
        """Begin to accept; called inside the running loop."""
        for listener in self._listeners:
            self._listen(listener)

    async def dial(self, address: Address, peer_id: PeerId, handler: ConnectionHandler) -> Connection:
        """Connect to `peer_id` at `address`; see `Transport.dial`.

        Its key is proven, but it may still refuse ours: then `handler.closed` says so, and nothing else came
        before.

        Raises:
            SelfDial: `peer_id` is our own, or our own endpoint answers there.
            IdentityMismatch: another key answers there.
            HandshakeError: what answers there is not acceptable.
            OSError: the network said no.
            ConfigError: the socket could not be given the configured options.
        """
        if peer_id == self._own:
            raise SelfDial("the key that was dialled is our own", CloseCode.SELF_DIAL)
        loop = asyncio.get_running_loop()
        began = loop.time()
        if self._small_until.get(address.host, 0.0) > began:
            return await self._secure(await self._connect(address, _SMALL_SEGMENT), address, peer_id, handler)
        sock = await self._connect(address)
        try:
            async with asyncio.timeout(None) as patience:

                def judge() -> None:
                    info = tcp_info(sock)
                    if info is not None and _too_big(info):
                        patience.reschedule(loop.time())

                check = loop.call_later(max(_SMALL_AFTER, 4 * (loop.time() - began)), judge)
                try:
                    return await self._secure(sock, address, peer_id, handler)
                finally:
                    check.cancel()
        except TimeoutError:
            if not patience.expired():
                raise
        _LOG.debug("%s is connected and does not acknowledge: trying small segments", address)
        connection = await self._secure(await self._connect(address, _SMALL_SEGMENT), address, peer_id, handler)
        self._small_until[address.host] = loop.time() + _SMALL_FOR
        while len(self._small_until) > _MAX_SMALL:
            del self._small_until[next(iter(self._small_until))]
        return connection

    async def _secure(
        self, sock: socket.socket, address: Address, peer_id: PeerId, handler: ConnectionHandler
    ) -> Connection:
        """The handshake on a connected socket, which is closed if it fails."""
        if self._closed:
            sock.close()
            raise _closing()
        proven: asyncio.Future[PeerId] = asyncio.get_running_loop().create_future()

        def done(result: PeerId | Exception) -> None:
            if proven.done():
                return
            if isinstance(result, Exception):
                proven.set_exception(result)
            else:
                proven.set_result(result)

        opening = _Opening(sock, self._profile.handshake(Role.DIALER, peer_id), done)
        self._openings.add(opening)
        try:
            opening.start(Role.DIALER)
            peer = await proven
            connection = self._connection(opening, peer, address.with_transport("tcp"), Role.DIALER, handler)
        except BaseException:
            opening.stop()
            sock.close()
            raise
        finally:
            self._openings.discard(opening)
        connection.start()
        return connection

    async def aclose(self) -> None:
        """Stop listening and abort what is open; waits up to 2 seconds for goodbyes that are under way.

        Cancelled, it aborts those too.
        """
        self._closed = True
        for pause in self._pauses.values():
            pause.cancel()
        self._pauses.clear()
        loop = asyncio.get_running_loop()
        for listener in self._listeners:
            loop.remove_reader(listener)
            listener.close()
        self._listeners.clear()
        for opening in tuple(self._openings):
            opening.fail(_closing())
        for connection in tuple(self._connections):
            if not connection.is_closed:
                connection.abort()
        if not self._connections:
            return
        self._empty = loop.create_future()
        try:
            await self._empty
        finally:
            for connection in tuple(self._connections):
                connection.abort()

    def _ended(self, connection: TcpConnection) -> None:
        self._connections.discard(connection)
        if not self._connections and self._empty is not None and not self._empty.done():
            self._empty.set_result(None)

    def _connection(
        self, opening: _Opening, peer: PeerId, remote: Address, role: Role, handler: ConnectionHandler
    ) -> TcpConnection:
        connection = TcpConnection(
            peer_id=peer,
            remote=remote,
            role=role,
            handler=handler,
            sock=opening.sock,
            ssl=opening.handshake.ssl,
            backlog=opening.backlog,
            buffer=self._buffer,
            ended=self._ended,
        )
        self._connections.add(connection)
        return connection

    async def _connect(self, address: Address, segment: int | None = None) -> socket.socket:
        """A connected socket, by the first of the configured interfaces that has a way there."""
        interfaces = self._config.interfaces or (None,)
        for interface in interfaces[:-1]:
            try:
                return await self._connect_by(address, interface, segment)
            except OSError as error:
                _LOG.debug("no way to %s by %s: %s", address, interface, error)
        return await self._connect_by(address, interfaces[-1], segment)

    async def _connect_by(self, address: Address, interface: str | None, segment: int | None) -> socket.socket:
        sock = dial_tcp_socket(address.family or 4, self._config, interface, segment=segment)
        try:
            await asyncio.get_running_loop().sock_connect(sock, address.sockaddr())
        except BaseException:
            sock.close()
            raise
        return sock

    # --- accepting

    def _listen(self, listener: socket.socket) -> None:
        self._pauses.pop(listener, None)
        asyncio.get_running_loop().add_reader(listener, self._on_connection, listener)

    def _on_connection(self, listener: socket.socket) -> None:
        for _ in range(_ACCEPTS_PER_WAKEUP):
            try:
                sock, sockaddr = listener.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as error:
                if error.errno not in _OUT_OF_RESOURCES:
                    _LOG.warning("accepting failed: %s", error)
                    return
                _LOG.warning("no connection can be accepted now: %s", error)
                loop = asyncio.get_running_loop()
                loop.remove_reader(listener)
                self._pauses[listener] = loop.call_later(_ACCEPT_PAUSE, self._listen, listener)
                return
            try:
                tune_tcp(sock)
                remote = Address.from_sockaddr("tcp", sockaddr)
            except OSError as error:
                _LOG.debug("a connection from %s was gone at once: %s", sockaddr, error)
                sock.close()
                continue
            if not self._gate.enter(remote.host):
                _LOG.debug("%s is turned away: too many handshakes", remote)
                sock.close()
                continue
            self._begin(sock, remote)

    def _begin(self, sock: socket.socket, remote: Address) -> None:
        def done(result: PeerId | Exception) -> None:
            deadline.cancel()
            self._openings.discard(opening)
            self._gate.leave(remote.host)
            if isinstance(result, Exception):
                _LOG.debug("the handshake with %s failed: %s", remote, result)
                sock.close()
            else:
                self._admit(opening, result, remote)

        opening = _Opening(sock, self._profile.handshake(Role.ACCEPTOR), done)
        self._openings.add(opening)
        timeout = HandshakeError("the handshake took too long", CloseCode.HANDSHAKE_TIMEOUT)
        deadline = asyncio.get_running_loop().call_later(self._config.handshake_timeout, opening.fail, timeout)
        opening.start(Role.ACCEPTOR)

    def _admit(self, opening: _Opening, peer: PeerId, remote: Address) -> None:
        try:
            connection = self._connection(opening, peer, remote, Role.ACCEPTOR, _Nobody())
        except OSError as error:
            _LOG.debug("%s was gone at once: %s", remote, error)
            opening.sock.close()
            return
        connection.start()
        if peer == self._own:
            connection.close(CloseCode.SELF_DIAL, "you have reached yourself")
            return
        try:
            connection.handler = self._accepted(connection)
        except HandshakeError as error:
            connection.close(error.code, str(error))
        except Exception:  # noqa: BLE001 - a bug in admission ends one connection, and is logged
            _LOG.exception("admission of %s at %s failed", peer, remote)
            connection.close(CloseCode.INTERNAL_ERROR)


def _too_big(info: TcpInfo) -> bool:
    """Whether what is missing of a handshake that stands still is what fills a segment."""
    return info.unacknowledged > 0 or (info.out_of_order > 0 and not info.received)


def _closing() -> OSError:
    return ConnectionAbortedError(errno.ECONNABORTED, "the endpoint closes")


class _Nobody:
    """Handles the events of a connection that admission turned away: there are none to keep."""

    def frame_received(self, connection: Connection, frame: object) -> None:
        """Dropped."""

    def stream_received(self, connection: Connection, stream: int, offset: int, data: bytes) -> None:
        """Dropped."""

    def datagram_received(self, connection: Connection, data: bytes) -> None:
        """Dropped."""

    def writable(self, connection: Connection) -> None:
        """Nothing to send."""

    def closed(self, connection: Connection, reason: CloseReason) -> None:
        """Nobody to tell."""
