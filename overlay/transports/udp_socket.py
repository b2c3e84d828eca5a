"""One UDP socket per address family, shared by everything that speaks over UDP.

Hole punching and NAT mappings depend on one port for all peers, dialled and accepted. The first byte of a datagram
tells who it is for (RFC 9443): QUIC sets bit 0x40 in all packets but Version Negotiation; raw UDP uses 0b10xxxxxx.

One wake-up reads up to MAX_BATCH datagrams, hands each to its receiver, and then tells each receiver once that the
batch is over: a receiver that answers only then sends one acknowledgement for a burst instead of one for each packet
(measured: 1.6 times the throughput). The bound keeps the other end of the loop, timers and writers, alive. Linux hands
datagrams of one size that came together over in one read (UDP_GRO), and so are they handed on.

Routers are multi-homed: a reply must leave from the address that the packet came to. On a socket bound to a wildcard
the kernel says which one that was (`IP_PKTINFO`, RFC 3542 section 6), and is told the same when we answer.

Where nobody listens, a router or the host itself says so by ICMP. On Linux the kernel keeps that for us
(`IP_RECVERR`, ip(7)): a queue of errors, each with the address that our datagram went to, of which receivers hear.
While the queue holds something, the socket polls as POLLERR; libuv would then stop to watch it for good, so the loop
watches an epoll object around the socket instead, which never is in error.
"""

import asyncio
import logging
import select
import socket
import sys
from collections.abc import Callable, Iterable
from typing import Final, Literal, Protocol

from overlay.addresses import Address
from overlay.transports.ancillary import (
    CONTROL_SPACE,
    ERROR_SPACE,
    IP_RECVERR,
    IPV6_RECVERR,
    UDP_GRO,
    UDP_SEGMENT,
    Local,
    Locals,
    SocketAddress,
    has_udp_option,
    segment_size,
    socket_address,
    unreachable,
    without_flow,
)
from overlay.transports.udp_sender import UdpSender

__all__ = ["Kind", "Local", "Receiver", "SocketAddress", "UdpSocket", "socket_address"]

logger = logging.getLogger(__name__)

MAX_BATCH: Final = 64
"""Reads in one wake-up: 77 KB at 1200 bytes, about 2 ms of work with aioquic."""
MAX_BATCH_BYTES: Final = 256 * 1024
"""The same where one read has many datagrams; about 2 ms of work with raw UDP."""
MAX_ERRORS: Final = 64
"""Entries of the error queue that are read at a time."""
MAX_DATAGRAM: Final = 65_535

MSG_TRUNC: Final = int(socket.MSG_TRUNC)
"""As the enum's member it costs 2 us for each datagram."""
MSG_ERRQUEUE: Final[int] = getattr(socket, "MSG_ERRQUEUE", 0x2000)

Kind = Literal["quic", "udp"]


class Receiver(Protocol):
    """Who gets the datagrams of one kind."""

    def datagram_received(self, udp: "UdpSocket", data: bytes, remote: SocketAddress, local: Local | None) -> None:
        """A datagram came from `remote` to `local` (None: the socket is bound to one address only)."""

    def burst_received(
        self, udp: "UdpSocket", data: bytes, segment: int, remote: SocketAddress, local: Local | None
    ) -> None:
        """Several came together: each of `segment` bytes, but the last one may be shorter; in `data` one by one."""

    def batch_ended(self, udp: "UdpSocket") -> None:
        """All that was there has been handed over: answer now. Called only after one of the two."""

    def unreachable(self, udp: "UdpSocket", remote: SocketAddress, code: int) -> None:
        """A datagram to `remote` came back; `code` is an errno. Nobody has signed that: it may be forged."""


class UdpSocket:
    """A bound, non-blocking UDP socket in the running loop.

    Attributes:
        family: 4 or 6.
        address: what it is bound to, without a transport.
        drop: when it returns True, a datagram is dropped; asked for each one, in both directions. It stands in for
            a network that loses packets or blocks UDP, in the demo and in tests.
    """

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock
        self._loop: asyncio.AbstractEventLoop | None = None
        self._receivers: dict[Kind, Receiver] = {}
        self._sender = UdpSender(
            sock,
            takes_bursts=has_udp_option(sock, UDP_SEGMENT, 0),
            drain_errors=self._drain_errors,
            watch_room=self._watch_room,
        )
        self._buffer = bytearray(MAX_DATAGRAM)
        self._view = memoryview(self._buffer)
        self._locals = Locals()
        self._watch: select.epoll | None = None
        self._unreachable: dict[SocketAddress, int] = {}
        self.family = 6 if sock.family == socket.AF_INET6 else 4
        self.drop: Callable[[], bool] | None = None
        name = sock.getsockname()
        self.address = Address.from_sockaddr(None, name)
        self._wildcard = name[0] in {"0.0.0.0", "::"}  # noqa: S104 - it is compared, not bound

    def register(self, kind: Kind, receiver: Receiver) -> None:
        """Hand all datagrams of `kind` to `receiver`; the first registration begins to read.

        Call it inside the running loop.
        """
        self._receivers[kind] = receiver
        if self._loop is None:
            self._loop = asyncio.get_running_loop()
            if sys.platform == "linux":
                level, option = (
                    (socket.IPPROTO_IP, IP_RECVERR) if self.family == 4 else (socket.IPPROTO_IPV6, IPV6_RECVERR)
                )
                self._socket.setsockopt(level, option, 1)
                has_udp_option(self._socket, UDP_GRO, 1)
                self._watch = select.epoll()
                self._watch.register(self._socket, select.EPOLLIN)
                self._loop.add_reader(self._watch.fileno(), self._ready)
            else:
                self._loop.add_reader(self._socket, self._readable)

    def unregister(self, kind: Kind) -> None:
        """Hand no more of `kind` to anyone; without any receiver left, the socket is closed."""
        self._receivers.pop(kind, None)
        if not self._receivers:
            self.close()

    @property
    def is_closed(self) -> bool:
        """Whether `close` was called."""
        return self._socket.fileno() < 0

    def close(self) -> None:
        """Free the socket. What still waits for room in the kernel's buffer is lost."""
        if self.is_closed:
            return
        if self._watch is not None and self._loop is not None:
            self._loop.remove_reader(self._watch.fileno())
            self._watch.close()
        elif self._loop is not None:
            self._loop.remove_reader(self._socket)
            if self._sender.waiting:
                self._loop.remove_writer(self._socket)
        self._sender.clear()
        self._socket.close()

    def local_address(self, local: Local | None, remote: SocketAddress) -> Address | None:
        """Our address as a peer at `remote` sees it from inside our network, or None when it is not known."""
        port = self._socket.getsockname()[1] if not self.is_closed else 0
        if local is None:
            return None if self._wildcard else self.address
        if self.family == 4:
            return Address.from_sockaddr(None, (socket.inet_ntop(socket.AF_INET, local.host), port))
        scope = remote[3] if len(remote) > 3 else 0
        host = socket.inet_ntop(socket.AF_INET6, local.host)
        return Address.from_sockaddr(None, (host, port, 0, local.index or scope))

    def send(self, datagrams: Iterable[bytes], remote: SocketAddress, local: Local | None = None) -> OSError | None:
        """Send datagrams to `remote` from `local`, in order.

        Nothing is promised: it is UDP. Without room in the kernel's buffer they wait in a bounded queue.

        Returns:
            What the kernel said when it refused one of them, such as ENETUNREACH: a dialler need not wait for an
            answer then. None otherwise.
        """
        if self.is_closed:
            return None
        if self.drop is not None:
            datagrams = [data for data in datagrams if not self.drop()]
        return self._sender.send(datagrams, remote, local)

    def send_burst(
        self, data: bytes, segment: int, remote: SocketAddress, local: Local | None = None
    ) -> OSError | None:
        """Send datagrams of `segment` bytes that stand in `data` one by one; the last one may be shorter.

        At most 64 of them and 65,507 bytes. Otherwise as `send`, whose errors are returned: EMSGSIZE says that the
        route does not take a datagram of that size.
        """
        if len(data) <= segment:
            return self.send((data,), remote, local)
        if self.is_closed:
            return None
        if self.drop is not None:
            return self.send([data[at : at + segment] for at in range(0, len(data), segment)], remote, local)
        return self._sender.send_burst(data, segment, remote, local)

    def _watch_room(self, wanted: bool) -> None:
        if self._watch is not None:
            self._watch.modify(self._socket, select.EPOLLIN | select.EPOLLOUT if wanted else select.EPOLLIN)
        elif self._loop is not None and wanted:
            self._loop.add_writer(self._socket, self._sender.writable)
        elif self._loop is not None:
            self._loop.remove_writer(self._socket)

    def _ready(self) -> None:
        if self._sender.waiting:
            self._sender.writable()
        self._readable()

    def _readable(self) -> None:
        touched: dict[Kind, Receiver] = {}
        try:
            self._read_batch(touched)
        finally:
            # Even if one has failed: what the others were given, and it before that, would wait for an answer.
            for receiver in touched.values():
                receiver.batch_ended(self)

    def _read_batch(self, touched: dict[Kind, Receiver]) -> None:
        read = 0
        for turn in range(MAX_BATCH):
            try:
                size, control, flags, remote = self._socket.recvmsg_into((self._buffer,), CONTROL_SPACE)
            except BlockingIOError:
                if not turn:
                    # No datagram, so it is an error that woke us, and it would do so again.
                    self._drain_errors()
                break
            except OSError as error:
                # An ICMP error for something that we sent; the datagrams behind it are fine.
                logger.debug("receiving failed: %s", error)
                self._drain_errors()
                continue
            # Port 0 can only be forged, and nothing can be sent to it.
            if not size or not remote[1] or flags & MSG_TRUNC:
                continue
            segment = segment_size(control, size)
            local = self._locals.read(control)
            self._hand_over(bytes(self._view[:size]), segment, without_flow(remote), local, touched)
            read += size
            if self.is_closed or read >= MAX_BATCH_BYTES:
                break

    def _hand_over(
        self, data: bytes, segment: int, remote: SocketAddress, local: Local | None, touched: dict[Kind, Receiver]
    ) -> None:
        """Give what one read has brought to whom it is for: mostly all of it to one."""
        if len(data) > segment:
            # The first bytes tell; the kernel joins what comes from one socket, whatever it is.
            if self.drop is not None or len({first & 0xC0 for first in data[::segment]}) > 1:
                for at in range(0, len(data), segment):
                    self._hand_over(data[at : at + segment], segment, remote, local, touched)
                return
        elif self.drop is not None and self.drop():
            return
        kind = self._kind(data[0])
        receiver = self._receivers.get(kind) if kind is not None else None
        if kind is None or receiver is None:
            return
        touched[kind] = receiver
        if len(data) > segment:
            receiver.burst_received(self, data, segment, remote, local)
        else:
            receiver.datagram_received(self, data, remote, local)

    def _drain_errors(self) -> None:
        """Read what the kernel has queued, up to a bound; receivers hear of it later, as we may be inside of one."""
        if self._watch is None or self._loop is None:
            return
        for _ in range(MAX_ERRORS):
            try:
                _, control, _, remote = self._socket.recvmsg(0, ERROR_SPACE, MSG_ERRQUEUE)
            except OSError:
                return
            code = unreachable(control)
            if code is None:
                continue
            if not self._unreachable:
                self._loop.call_soon(self._tell_unreachable)
            self._unreachable[without_flow(remote)] = code

    def _tell_unreachable(self) -> None:
        found, self._unreachable = self._unreachable, {}
        for remote, code in found.items():
            for receiver in tuple(self._receivers.values()):
                receiver.unreachable(self, remote, code)

    def _kind(self, first: int) -> Kind | None:
        if first & 0x40:
            return "quic"
        if not first & 0x80:
            return None
        # 0b10xxxxxx is raw UDP; only a Version Negotiation packet of QUIC may look like it (RFC 9000 section
        # 17.2.1), and those matter to nobody who speaks one version.
        return "udp" if "udp" in self._receivers else "quic"
