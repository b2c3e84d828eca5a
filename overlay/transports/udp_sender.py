"""The sending half of a UDP socket: bursts where the system takes them, a second try after somebody else's error.

**Bursts.** A system call costs as much as sealing ten packets. So Linux takes up to 64 datagrams of one size in one
call (UDP_SEGMENT, "GSO"). Whether it does is tried at run time: where a route does not (a device without checksums, or
IPsec) it says EIO, and that peer gets its datagrams one by one from then on.

**Errors.** An ICMP error fails the next call on the socket, whomever that one is for (`IP_RECVERR`, ip(7)). Anybody can
send such a message, so a refusal counts only when it is repeated. What no ICMP message can say, a full device queue
(ENOBUFS) or a firewall of our own (EPERM), is believed at once, and a burst that meets it is lost as a whole: datagram
by datagram it would cost 64 calls, to add to the crowd.
"""

import errno
import logging
import socket
from collections import deque
from collections.abc import Callable, Iterable
from functools import partial
from typing import Final

from overlay.transports.ancillary import MAX_LOCALS, ControlMessage, Local, SocketAddress, segment_control

logger = logging.getLogger(__name__)

MAX_QUEUED: Final = 1024
"""Outgoing datagrams that wait for room in the kernel's buffer; what is beyond is lost, as on any full link."""
MAX_QUEUED_BYTES: Final = 4 * 1024 * 1024
"""The same for datagrams that are longer than Ethernet's."""
MAX_SINGLES: Final = 1024
"""Peers remembered as not to be sent bursts; one that is forgotten costs one failed call."""

BELIEVED: Final = frozenset({errno.EPERM, errno.ENOBUFS})
"""Refusals that are never an ICMP message's."""
NO_BURST: Final = frozenset({errno.EIO, errno.EINVAL})
"""Refusals of a burst that its datagrams may not meet. EIO: no bursts on this route (udp(7)). EINVAL: on older Linux,
the size is beyond the route's MTU; for a single datagram that is EMSGSIZE."""
LOST_SOURCE: Final = frozenset({errno.ENETUNREACH, errno.EINVAL, errno.EADDRNOTAVAIL, errno.ENODEV})
"""What is said when the source address that PKTINFO names is ours no more: the first on Linux, for IPv4."""


class UdpSender:
    """Sends through a socket, and keeps what the kernel has no room for.

    Args:
        sock: non-blocking.
        takes_bursts: whether the system knows UDP_SEGMENT.
        drain_errors: reads the socket's error queue; called after a refusal that may be an ICMP message's.
        watch_room: told True when `writable` is to be called as soon as there is room, then False.
    """

    def __init__(
        self,
        sock: socket.socket,
        *,
        takes_bursts: bool,
        drain_errors: Callable[[], None],
        watch_room: Callable[[bool], None],
    ) -> None:
        self._socket = sock
        self._takes_bursts = takes_bursts
        self._drain_errors = drain_errors
        self._watch_room = watch_room
        self._singles: set[SocketAddress] = set()
        """Where bursts are refused."""
        self._queue: deque[tuple[bytes, SocketAddress, Local | None]] = deque()
        self._queued_bytes = 0
        self._controls: dict[Local, ControlMessage] = {}

    @property
    def waiting(self) -> int:
        """Datagrams that wait for room."""
        return len(self._queue)

    def send(self, datagrams: Iterable[bytes], remote: SocketAddress, local: Local | None) -> OSError | None:
        """Send datagrams in order; the last refusal, or None."""
        refused = None
        for data in datagrams:
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

    def send_burst(self, data: bytes, segment: int, remote: SocketAddress, local: Local | None) -> OSError | None:
        """Send datagrams of `segment` bytes that stand in `data` one by one; as `send`."""
        if self._takes_bursts and not self._queue and remote not in self._singles:
            try:
                self._send_at_once(data, segment, remote, local)
            except BlockingIOError:
                pass
            except OSError as error:
                logger.debug("sending a burst to %s failed: %s", remote, error)
                if error.errno not in NO_BURST:
                    return error
                if error.errno == errno.EIO:
                    if len(self._singles) >= MAX_SINGLES:
                        self._singles.clear()
                    self._singles.add(remote)
            else:
                return None
        view = memoryview(data)
        return self.send([bytes(view[at : at + segment]) for at in range(0, len(data), segment)], remote, local)

    def writable(self) -> None:
        """There is room: send what waits."""
        while self._queue:
            try:
                self._send_one(*self._queue[0])
            except BlockingIOError:
                return
            except OSError as error:
                logger.debug("sending to %s failed: %s", self._queue[0][1], error)
            data, _, _ = self._queue.popleft()
            self._queued_bytes -= len(data)
        self._watch_room(False)

    def clear(self) -> None:
        """Forget what waits."""
        self._queue.clear()
        self._queued_bytes = 0

    def _send_one(self, data: bytes, remote: SocketAddress, local: Local | None) -> None:
        try:
            self._transmit(data, remote, local)
        except OSError as error:
            self._try_again(error, partial(self._transmit, data, remote), local)

    def _send_at_once(self, data: bytes, segment: int, remote: SocketAddress, local: Local | None) -> None:
        try:
            self._transmit_burst(data, segment, remote, local)
        except OSError as error:
            self._try_again(error, partial(self._transmit_burst, data, segment, remote), local)

    def _try_again(self, error: OSError, transmit: Callable[[Local | None], None], local: Local | None) -> None:
        """Send after a refusal that may have been about something else."""
        if isinstance(error, BlockingIOError) or error.errno in BELIEVED:
            raise error
        self._drain_errors()
        try:
            transmit(local)
        except OSError as again:
            if local is None or again.errno not in LOST_SOURCE:
                raise
            # The address went away with its lease or interface. A client's QUIC then migrates; a server's peer
            # will not answer and dial again, which is no worse than silence.
            transmit(None)

    def _transmit(self, data: bytes, remote: SocketAddress, local: Local | None) -> None:
        if local is None:
            self._socket.sendto(data, remote)
            return
        self._socket.sendmsg((data,), (self._control(local),), 0, remote)

    def _transmit_burst(self, data: bytes, segment: int, remote: SocketAddress, local: Local | None) -> None:
        size = segment_control(segment)
        controls = (size,) if local is None else (size, self._control(local))
        self._socket.sendmsg((data,), controls, 0, remote)

    def _control(self, local: Local) -> ControlMessage:
        control = self._controls.get(local)
        if control is None:
            if len(self._controls) >= MAX_LOCALS:
                self._controls.clear()
            control = self._controls[local] = local.control()
        return control

    def _enqueue(self, data: bytes, remote: SocketAddress, local: Local | None) -> None:
        if len(self._queue) >= MAX_QUEUED or self._queued_bytes + len(data) > MAX_QUEUED_BYTES:
            return
        if not self._queue:
            self._watch_room(True)
        self._queue.append((data, remote, local))
        self._queued_bytes += len(data)
