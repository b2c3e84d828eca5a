"""One UDP socket per address family, shared by everything that speaks over UDP.

Hole punching and NAT mappings depend on one port for all peers, dialled and accepted. The first byte of a datagram
tells who it is for (RFC 9443): QUIC sets bit 0x40 in all packets but Version Negotiation; raw UDP uses 0b10xxxxxx.

One wake-up reads up to MAX_BATCH datagrams, hands each to its receiver, and then tells each receiver once that the
batch is over: a receiver that answers only then sends one acknowledgement for a burst instead of one for each packet
(measured: 1.6 times the throughput). The bound keeps the other end of the loop, timers and writers, alive.

Routers are multi-homed: a reply must leave from the address that the packet came to. On a socket bound to a wildcard
the kernel says which one that was (`IP_PKTINFO`, RFC 3542 section 6), and is told the same when we answer.

Where nobody listens, a router or the host itself says so by ICMP. On Linux the kernel keeps that for us
(`IP_RECVERR`, ip(7)): a queue of errors, each with the address that our datagram went to, and besides the next call
on the socket, whomever it is for, fails once. So a failed send is tried again, and receivers hear of the address.
While the queue holds something, the socket polls as POLLERR; libuv would then stop to watch it for good, so the loop
watches an epoll object around the socket instead, which never is in error.

**Bursts.** A system call costs as much as sealing ten packets. So Linux takes up to 64 datagrams of one size in one
call (UDP_SEGMENT, "GSO"), and hands those that came together over in one call, with their size (UDP_GRO). Whether it
does is tried at run time; where a route or a device refuses a burst, its datagrams are sent one by one.
"""

import asyncio
import errno
import logging
import select
import socket
import struct
import sys
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Final, Literal, Protocol

from overlay.addresses import Address

logger = logging.getLogger(__name__)

MAX_BATCH: Final = 64
"""Reads in one wake-up: 77 KB at 1200 bytes, about 2 ms of work with aioquic."""
MAX_BATCH_BYTES: Final = 256 * 1024
"""The same where one read has many datagrams; about 2 ms of work with raw UDP."""
MAX_QUEUED: Final = 1024
"""Outgoing datagrams that wait for room in the kernel's buffer; what is beyond is lost, as on any full link."""
MAX_QUEUED_BYTES: Final = 4 * 1024 * 1024
"""The same for datagrams that are longer than Ethernet's."""
MAX_DATAGRAM: Final = 65_535

MSG_TRUNC: Final = int(socket.MSG_TRUNC)
"""As the enum's member it costs 2 us for each datagram."""
IP_PKTINFO: Final[int] = getattr(socket, "IP_PKTINFO", 8)
"""The number on Linux; Python names it from 3.14 on."""
IPV6_PKTINFO: Final[int] = getattr(socket, "IPV6_PKTINFO", 50)
IN_PKTINFO: Final = struct.Struct("=i4s4s")
"""struct in_pktinfo: interface index, source address to use, destination address found (ip(7))."""
IN6_PKTINFO: Final = struct.Struct("=16si")
"""struct in6_pktinfo: address, interface index (RFC 3542 section 6.1)."""

MSG_ERRQUEUE: Final[int] = getattr(socket, "MSG_ERRQUEUE", 0x2000)
IP_RECVERR: Final = 11
"""The numbers on Linux (linux/in.h, linux/in6.h); Python names IP_RECVERR from 3.14 on."""
IPV6_RECVERR: Final = 25
EXTENDED_ERROR: Final = struct.Struct("=IBBBxII")
"""struct sock_extended_err: errno, origin, ICMP type, ICMP code, info, data (recv(2))."""
UNREACHABLE: Final = frozenset({(2, 3), (3, 1)})
"""Origin and type: Destination Unreachable of ICMP (RFC 792) and of ICMPv6 (RFC 4443)."""

SOL_UDP: Final = 17
UDP_SEGMENT: Final = 103
UDP_GRO: Final = 104
"""The numbers on Linux (linux/udp.h); Python does not name them."""
SEGMENT_SIZE: Final = struct.Struct("=H")
GRO_SIZE: Final = struct.Struct("=i")
CONTROL_SPACE: Final = 128
"""Bytes for the control messages of one read: IN6_PKTINFO and GRO_SIZE with their headers take 64."""

LOST_SOURCE: Final = frozenset({errno.ENETUNREACH, errno.EINVAL, errno.EADDRNOTAVAIL, errno.ENODEV})
"""What is said when the source address that PKTINFO names is ours no more: the first on Linux, for IPv4."""

SocketAddress = tuple[Any, ...]
"""(host, port), for IPv6 (host, port, 0, scope id): as the socket module takes it, with flow labels removed."""
Kind = Literal["quic", "udp"]


@dataclass(frozen=True, slots=True)
class Local:
    """Our own address that a datagram came to."""

    level: int
    kind: int
    host: bytes
    """4 or 16 bytes."""
    index: int
    """Of the interface; only kept for link-local addresses, as otherwise the routing table knows better."""

    def control(self) -> tuple[int, int, bytes]:
        """The control message that makes a datagram leave from this address."""
        if self.kind == IP_PKTINFO and self.level == socket.IPPROTO_IP:
            return self.level, self.kind, IN_PKTINFO.pack(self.index, self.host, bytes(4))
        return self.level, self.kind, IN6_PKTINFO.pack(self.host, self.index)


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
        self._queue: deque[tuple[bytes, SocketAddress, Local | None]] = deque()
        self._queued_bytes = 0
        self._buffer = bytearray(MAX_DATAGRAM)
        self._view = memoryview(self._buffer)
        self._locals: dict[bytes, Local] = {}
        self._controls: dict[Local, tuple[int, int, bytes]] = {}
        self._takes_bursts = _has_option(sock, UDP_SEGMENT, 0)
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
                _has_option(self._socket, UDP_GRO, 1)
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
            if self._queue:
                self._loop.remove_writer(self._socket)
        self._queue.clear()
        self._queued_bytes = 0
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
        refused = None
        for data in datagrams:
            if self.drop is not None and self.drop():
                continue
            if self._queue:
                self._enqueue(data, remote, local)
                continue
            try:
                self._send_one(data, remote, local)
            except BlockingIOError:
                self._enqueue(data, remote, local)
            except OSError as error:
                # Full interfaces, firewalls and missing routes all come this way.
                logger.debug("sending to %s failed: %s", remote, error)
                refused = error
        return refused

    def send_burst(
        self, data: bytes, segment: int, remote: SocketAddress, local: Local | None = None
    ) -> OSError | None:
        """Send datagrams of `segment` bytes that stand in `data` one by one; the last one may be shorter.

        At most 64 of them and 65,507 bytes. Otherwise as `send`, whose errors are returned: EMSGSIZE says that the
        route does not take a datagram of that size.
        """
        if len(data) <= segment:
            return self.send((data,), remote, local)
        if self._takes_bursts and not self._queue and self.drop is None and not self.is_closed:
            try:
                self._transmit_burst(data, segment, remote, local)
            except BlockingIOError:
                pass
            except OSError as error:
                # Perhaps an earlier datagram's ICMP error, or the route's MTU; one by one they will tell. A device
                # that cannot do it says EIO (udp(7)), and always will.
                logger.debug("sending a burst to %s failed: %s", remote, error)
                self._takes_bursts = error.errno not in {errno.EIO, errno.ENOPROTOOPT, errno.EOPNOTSUPP}
            else:
                return None
        view = memoryview(data)
        return self.send([bytes(view[at : at + segment]) for at in range(0, len(data), segment)], remote, local)

    def _send_one(self, data: bytes, remote: SocketAddress, local: Local | None) -> None:
        try:
            self._transmit(data, remote, local)
        except BlockingIOError:
            raise
        except OSError:
            # That may be an earlier datagram's ICMP error, and then this one was not sent.
            self._drain_errors()
        else:
            return
        try:
            self._transmit(data, remote, local)
        except OSError as error:
            if local is None or error.errno not in LOST_SOURCE:
                raise
            # The address went away with its lease or interface. A client's QUIC then migrates; a server's peer
            # will not answer and dial again, which is no worse than silence.
            self._socket.sendto(data, remote)

    def _transmit(self, data: bytes, remote: SocketAddress, local: Local | None) -> None:
        if local is None:
            self._socket.sendto(data, remote)
            return
        self._socket.sendmsg((data,), (self._control(local),), 0, remote)

    def _transmit_burst(self, data: bytes, segment: int, remote: SocketAddress, local: Local | None) -> None:
        size = (SOL_UDP, UDP_SEGMENT, SEGMENT_SIZE.pack(segment))
        controls = (size,) if local is None else (size, self._control(local))
        self._socket.sendmsg((data,), controls, 0, remote)

    def _control(self, local: Local) -> tuple[int, int, bytes]:
        control = self._controls.get(local)
        if control is None:
            if len(self._controls) > 64:
                self._controls.clear()
            control = self._controls[local] = local.control()
        return control

    def _enqueue(self, data: bytes, remote: SocketAddress, local: Local | None) -> None:
        if len(self._queue) >= MAX_QUEUED or self._queued_bytes + len(data) > MAX_QUEUED_BYTES:
            return
        if not self._queue:
            self._watch_room(wanted=True)
        self._queue.append((data, remote, local))
        self._queued_bytes += len(data)

    def _writable(self) -> None:
        while self._queue:
            try:
                self._send_one(*self._queue[0])
            except BlockingIOError:
                return
            except OSError as error:
                logger.debug("sending to %s failed: %s", self._queue[0][1], error)
            data, _, _ = self._queue.popleft()
            self._queued_bytes -= len(data)
        self._watch_room(wanted=False)

    def _watch_room(self, *, wanted: bool) -> None:
        if self._watch is not None:
            self._watch.modify(self._socket, select.EPOLLIN | select.EPOLLOUT if wanted else select.EPOLLIN)
        elif self._loop is not None and wanted:
            self._loop.add_writer(self._socket, self._writable)
        elif self._loop is not None:
            self._loop.remove_writer(self._socket)

    def _ready(self) -> None:
        if self._queue:
            self._writable()
        self._readable()

    def _readable(self) -> None:
        touched: dict[Kind, Receiver] = {}
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
            segment = size
            for level, kind, data in control:
                if kind == UDP_GRO and level == SOL_UDP:
                    segment = max(1, GRO_SIZE.unpack(data)[0])
            self._hand_over(bytes(self._view[:size]), segment, _without_flow(remote), self._local(control), touched)
            read += size
            if self.is_closed or read >= MAX_BATCH_BYTES:
                break
        for receiver in touched.values():
            receiver.batch_ended(self)

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
        for _ in range(MAX_BATCH):
            try:
                _, control, _, remote = self._socket.recvmsg(0, 512, MSG_ERRQUEUE)
            except OSError:
                return
            for level, kind, data in control:
                if (level, kind) not in {(socket.IPPROTO_IP, IP_RECVERR), (socket.IPPROTO_IPV6, IPV6_RECVERR)}:
                    continue
                code, origin, icmp, *_ = EXTENDED_ERROR.unpack_from(data)
                # "Fragmentation needed" has the same type: the host is there.
                if (origin, icmp) not in UNREACHABLE or code == errno.EMSGSIZE:
                    continue
                if not self._unreachable:
                    self._loop.call_soon(self._tell_unreachable)
                self._unreachable[_without_flow(remote)] = code

    def _tell_unreachable(self) -> None:
        unreachable, self._unreachable = self._unreachable, {}
        for remote, code in unreachable.items():
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

    def _local(self, control: list[tuple[int, int, bytes]]) -> Local | None:
        for level, kind, data in control:
            known = self._locals.get(data)
            if known is not None:
                return known
            if level == socket.IPPROTO_IP and kind == IP_PKTINFO:
                _, source, found = IN_PKTINFO.unpack(data[: IN_PKTINFO.size])
                # The header's destination is a group or broadcast address when the two differ in class.
                host = source if found[0] >= 224 else found
                local = Local(level, kind, host, 0)
            elif level == socket.IPPROTO_IPV6 and kind == IPV6_PKTINFO:
                host, index = IN6_PKTINFO.unpack(data[: IN6_PKTINFO.size])
                link_local = host[0] == 0xFE and host[1] & 0xC0 == 0x80
                local = Local(level, kind, host, index if link_local else 0)
            else:
                continue
            if len(self._locals) > 64:
                self._locals.clear()
            self._locals[data] = local
            return local
        return None


def socket_address(address: Address) -> SocketAddress:
    """Where to send to, in the very form in which the kernel will name the sender of an answer: aioquic compares.

    Raises:
        AddressError: the host is a name.
        OSError: no interface has the zone's name.
    """
    host, *rest = address.sockaddr()
    family = socket.AF_INET6 if address.family == 6 else socket.AF_INET
    return (socket.inet_ntop(family, socket.inet_pton(family, str(host))), *rest)


def _without_flow(remote: SocketAddress) -> SocketAddress:
    return (remote[0], remote[1], 0, remote[3]) if len(remote) == 4 and remote[2] else remote


def _has_option(sock: socket.socket, option: int, value: int) -> bool:
    """Set an option of UDP, if the system has it."""
    if sys.platform != "linux":
        return False
    try:
        sock.setsockopt(SOL_UDP, option, value)
    except OSError:
        return False
    return True
