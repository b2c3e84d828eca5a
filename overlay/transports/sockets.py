"""The sockets of an endpoint: opened together, on one port, with the options that routers need.

Each entry of `Config.listen` becomes a pair, a UDP and a TCP socket on the same port number, so that one
address in a ticket stands for all transports. When `Config.interfaces` names interfaces, every socket is tied
to one of them (SO_BINDTODEVICE). The kernel takes one name for each socket, so with several names each entry
becomes one pair for each name, all on the same port, and whoever dials tries the names in their order.
"""

import contextlib
import errno
import socket
import struct
import sys
from dataclasses import dataclass
from ipaddress import ip_address

from overlay.config import Config
from overlay.errors import ConfigError

_UDP_BUFFER = 4 * 1024 * 1024
"""Bytes. The default of 208 KiB holds 150 datagrams, less than arrive while the loop does something else:
with 8 MiB QUIC moved a quarter more. The kernel cuts it down to `net.core.rmem_max` without an error."""
_NOTSENT_LOWAT = 128 * 1024
"""Bytes that TCP takes beyond what is in flight: a control frame waits behind no more. Two of our batches."""
_BACKLOG = 128
_PORT_ATTEMPTS = 16
"""A port that is free for one protocol is rarely taken for the other; 16 times
in a row, something else is wrong."""
_TCP_INFO = struct.Struct("=16xI4xI24xIII4xII4xI16xI24xQ12xI4xI32xI28xI")
"""The start of `struct tcp_info` of linux/tcp.h, which only ever grows at its end: tcpi_snd_mss at 16, tcpi_unacked
(segments) at 24, tcpi_last_data_recv and tcpi_last_ack_recv (ms) at 52 and 56, tcpi_pmtu at 60, tcpi_rtt and
tcpi_rttvar (us) at 68 and 72, tcpi_snd_cwnd (segments) at 80, tcpi_total_retrans at 100, tcpi_bytes_received at 128,
tcpi_data_segs_out at 156, tcpi_delivered (segments) at 192, tcpi_rcv_ooopack at 224, since Linux 5.4."""
_TCP_INFO_SIZE = _TCP_INFO.size
_NO_SAMPLE = 2**32 - 1
_LINUX = sys.platform == "linux"
_IP_PKTINFO = 8
"""From linux/in.h and linux/in6.h, like the next ones: the `socket` module of Python 3.11 does not name them."""
_IP_MTU_DISCOVER = 10
_IPV6_MTU_DISCOVER = 23
_PMTUDISC_PROBE = 3


@dataclass(frozen=True, slots=True)
class BoundPair:
    """The sockets of one entry of `Config.listen`, on one port; whoever takes them closes them."""

    family: int
    """4 or 6."""
    udp: socket.socket | None
    """Bound and non-blocking, or None when no configured transport uses UDP."""
    tcp: socket.socket | None
    """Listening and non-blocking, or None when `tcp` is not configured."""

    def close(self) -> None:
        """Close both."""
        for sock in (self.udp, self.tcp):
            if sock is not None:
                sock.close()


@dataclass(frozen=True, slots=True)
class _Entry:
    host: str
    port: int
    interface: str | None
    scope: int

    @property
    def family(self) -> int:
        return ip_address(self.host).version

    def sockaddr(self, port: int) -> tuple[str, int] | tuple[str, int, int, int]:
        return (self.host, port) if self.family == 4 else (self.host, port, 0, self.scope)

    def __str__(self) -> str:
        host = self.host if self.family == 4 else f"[{self.host}]"
        return f"{host}:{self.port}" + (f" on {self.interface}" if self.interface else "")


def bind(config: Config) -> list[BoundPair]:
    """Open the sockets that `config.listen` names, for the protocols that `config.transports` needs.

    A port of 0 is replaced by one that is free for both protocols, and for all entries if there is one. An
    entry whose address family the machine lacks is left out, unless none remains.

    Raises:
        ConfigError: an entry that cannot be parsed, an unknown interface, an option that this system lacks or
            does not let us set.
        OSError: what the kernel says to an entry, which the text names. In both cases nothing stays open.
    """
    entries = [_parse(text, interface) for text in config.listen for interface in config.interfaces or (None,)]
    if not {"quic", "udp", "tcp"} & set(config.transports):
        return []
    if any(entry.port == 0 for entry in entries):
        for _ in range(_PORT_ATTEMPTS):
            try:
                return _bind_all(entries, config, share_port=True)
            except OSError as error:
                if error.errno != errno.EADDRINUSE:
                    raise
    return _bind_all(entries, config, share_port=False)


def dial_tcp_socket(
    family: int, config: Config, interface: str | None = None, *, segment: int | None = None
) -> socket.socket:
    """A non-blocking TCP socket for one dial, with all options applied.

    Args:
        family: 4 or 6.
        config: its `fwmark` and `interfaces` are applied.
        interface: to which of several `config.interfaces` the socket is tied; without it, to the first.
        segment: bytes of a segment at most, in both directions (RFC 9293 section 3.7.1).

    Raises:
        ConfigError: an option that this system lacks or does not let us set.
        OSError: no such family, or no descriptor left.
    """
    if interface is None and config.interfaces:
        interface = config.interfaces[0]
    sock = _open(family, socket.SOCK_STREAM, config, interface)
    try:
        tune_tcp(sock)
        if segment is not None:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, segment)
    except BaseException:
        sock.close()
        raise
    return sock


def tune_tcp(sock: socket.socket) -> None:
    """Set what every TCP connection of ours has: non-blocking, no delay, little unsent data."""
    sock.setblocking(False)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    if hasattr(socket, "TCP_NOTSENT_LOWAT"):
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, _NOTSENT_LOWAT)


@dataclass(frozen=True, slots=True)
class TcpInfo:
    """What the kernel knows about a TCP connection; times in seconds."""

    since_data: float
    """Since data came."""
    since_ack: float
    """Since an acknowledgement came."""
    rtt: float
    """Smoothed (RFC 6298)."""
    variance: float
    """Of the round-trip time."""
    rtt_min: float | None
    """The least of the last minutes (the kernel's tcp_min_rtt_wlen); None before the first sample."""
    unacknowledged: int
    """Segments on their way."""
    delivered: int
    """Segments that have been acknowledged so far, selectively too; counts modulo 2**32."""
    received: int
    """Bytes that have come in order."""
    out_of_order: int
    """Segments that came before one that is missing."""
    mtu: int
    """Bytes of an IP packet: what the path is known to carry."""
    congestion_window: int
    """Bytes that may be on their way at once."""
    sent: int
    """Segments with data, repeated ones too."""
    repeated: int
    """Segments that were sent again."""


def tcp_info(sock: socket.socket) -> TcpInfo | None:
    """Ask the kernel; None where it cannot be asked, or the socket is closed."""
    if not _LINUX:
        return None
    try:
        raw = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO_SIZE)
    except OSError:
        return None
    if len(raw) < _TCP_INFO_SIZE:
        return None
    segment, unacknowledged, since_data, since_ack, mtu, rtt, variance, window, *counts = _TCP_INFO.unpack(raw)
    repeated, received, least, sent, delivered, out_of_order = counts
    return TcpInfo(
        since_data=since_data / 1e3,
        since_ack=since_ack / 1e3,
        rtt=rtt / 1e6,
        variance=variance / 1e6,
        rtt_min=least / 1e6 if least != _NO_SAMPLE else None,
        unacknowledged=unacknowledged,
        delivered=delivered,
        received=received,
        out_of_order=out_of_order,
        mtu=mtu,
        congestion_window=window * segment,
        sent=sent,
        repeated=repeated,
    )


def _parse(text: str, interface: str | None) -> _Entry:
    host, separator, port = text.rpartition(":")
    if not separator or not (port.isascii() and port.isdigit() and int(port) < 65536):
        raise ConfigError(f"listen: {text!r} must be host:port with a port from 0 to 65535")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:
        raise ConfigError(f"listen: put the IPv6 address of {text!r} into brackets")
    host, _, zone = host.partition("%")
    try:
        host = str(ip_address(host))
        scope = 0 if not zone else int(zone) if zone.isdigit() else socket.if_nametoindex(zone)
    except ValueError:
        raise ConfigError(f"listen: {host!r} in {text!r} is no IP address") from None
    except OSError:
        raise ConfigError(f"listen: there is no interface {zone!r}, as {text!r} says") from None
    return _Entry(host, int(port), interface, scope)


def _bind_all(entries: list[_Entry], config: Config, *, share_port: bool) -> list[BoundPair]:
    pairs: list[BoundPair] = []
    missing: OSError | None = None
    shared = 0
    with contextlib.ExitStack() as opened:
        for entry in entries:
            try:
                pair = _bind_pair(entry, entry.port or shared, config)
            except OSError as error:
                if not _family_is_missing(error, entry):
                    raise
                missing = error
                continue
            opened.callback(pair.close)
            pairs.append(pair)
            if share_port and not entry.port:
                shared = _port(pair)
        if missing is not None and not pairs:
            raise missing
        opened.pop_all()
    return pairs


def _family_is_missing(error: OSError, entry: _Entry) -> bool:
    if error.errno == errno.EADDRNOTAVAIL:
        return ip_address(entry.host).is_unspecified
    return error.errno in {errno.EAFNOSUPPORT, errno.EPROTONOSUPPORT}


def _bind_pair(entry: _Entry, port: int, config: Config) -> BoundPair:
    attempts = 1 if port else _PORT_ATTEMPTS
    while True:
        attempts -= 1
        try:
            return _bind_once(entry, port, config)
        except OSError as error:
            if not attempts or error.errno != errno.EADDRINUSE:
                text = f"cannot listen on {entry}: {error.strerror or error}"
                raise OSError(error.errno, text) from error


def _bind_once(entry: _Entry, port: int, config: Config) -> BoundPair:
    udp = tcp = None
    with contextlib.ExitStack() as opened:
        if {"quic", "udp"} & set(config.transports):
            udp = opened.enter_context(_open(entry.family, socket.SOCK_DGRAM, config, entry.interface))
            _tune_udp(udp, entry)
            udp.bind(entry.sockaddr(port))
            port = udp.getsockname()[1]
        if "tcp" in config.transports:
            tcp = opened.enter_context(_open(entry.family, socket.SOCK_STREAM, config, entry.interface))
            # Without it a restarted endpoint waits a minute for its own port. UDP has no such wait; there the
            # option would let two endpoints share a port unnoticed.
            tcp.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            tcp.bind(entry.sockaddr(port))
            # With SO_REUSEADDR the kernel reports a port in use only now.
            tcp.listen(_BACKLOG)
        opened.pop_all()
    return BoundPair(entry.family, udp, tcp)


def _port(pair: BoundPair) -> int:
    sock = pair.udp or pair.tcp
    return int(sock.getsockname()[1]) if sock is not None else 0


def _tune_udp(sock: socket.socket, entry: _Entry) -> None:
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _UDP_BUFFER)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _UDP_BUFFER)
    if _LINUX:
        # RFC 9000 section 14: no fragments. And what the kernel believes of a path's MTU, anybody may have forged.
        if entry.family == 4:
            sock.setsockopt(socket.IPPROTO_IP, _IP_MTU_DISCOVER, _PMTUDISC_PROBE)
        else:
            sock.setsockopt(socket.IPPROTO_IPV6, _IPV6_MTU_DISCOVER, _PMTUDISC_PROBE)
    if not ip_address(entry.host).is_unspecified:
        return
    if entry.family == 6 and hasattr(socket, "IPV6_RECVPKTINFO"):
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVPKTINFO, 1)
    elif entry.family == 4 and _LINUX:
        sock.setsockopt(socket.IPPROTO_IP, _IP_PKTINFO, 1)


def _open(family: int, kind: socket.SocketKind, config: Config, interface: str | None) -> socket.socket:
    sock = socket.socket(socket.AF_INET if family == 4 else socket.AF_INET6, kind)
    try:
        sock.setblocking(False)
        if family == 6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        if config.fwmark is not None:
            _set_fwmark(sock, config.fwmark)
        if interface is not None:
            _set_interface(sock, interface)
    except BaseException:
        sock.close()
        raise
    return sock


def _set_fwmark(sock: socket.socket, mark: int) -> None:
    if not hasattr(socket, "SO_MARK"):
        raise ConfigError("fwmark: this system has no SO_MARK")
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, mark)
    except PermissionError:
        raise ConfigError("fwmark: setting SO_MARK needs CAP_NET_ADMIN") from None
    except (OSError, OverflowError) as error:
        raise ConfigError(f"fwmark: {mark} is refused: {error}") from error


def _set_interface(sock: socket.socket, name: str) -> None:
    if not hasattr(socket, "SO_BINDTODEVICE"):
        raise ConfigError("interfaces: this system has no SO_BINDTODEVICE")
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, name.encode() + b"\0")
    except PermissionError:
        raise ConfigError(f"interfaces: tying a socket to {name!r} needs CAP_NET_RAW") from None
    except OSError as error:
        raise ConfigError(f"interfaces: cannot use {name!r}: {error.strerror}") from error
