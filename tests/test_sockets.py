"""An endpoint's sockets: one port for both protocols, nothing left open on failure, clear errors."""

import errno
import socket
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import pytest

from overlay.config import Config
from overlay.errors import ConfigError
from overlay.transports import sockets
from overlay.transports.sockets import BoundPair, bind, dial_tcp_socket, tune_tcp

linux_only = sys.platform == "linux"


@contextmanager
def bound(config: Config) -> Iterator[list[BoundPair]]:
    with ExitStack() as stack:
        pairs = bind(config)
        for pair in pairs:
            stack.callback(pair.close)
        yield pairs


def ports(pairs: list[BoundPair]) -> set[int]:
    return {sock.getsockname()[1] for pair in pairs for sock in (pair.udp, pair.tcp) if sock is not None}


def has_ipv6() -> bool:
    try:
        with socket.socket(socket.AF_INET6, socket.SOCK_STREAM) as sock:
            sock.bind(("::1", 0))
    except OSError:
        return False
    return True


def test_port_zero_takes_one_port_for_all_entries_and_protocols() -> None:
    with bound(Config(listen=("127.0.0.1:0", "127.0.0.2:0"))) as pairs:
        assert [pair.family for pair in pairs] == [4, 4]
        assert len(ports(pairs)) == 1


def test_default_listens_on_every_family_there_is() -> None:
    with bound(Config()) as pairs:
        assert {pair.family for pair in pairs} == ({4, 6} if has_ipv6() else {4})
        assert len(ports(pairs)) == 1


def test_only_the_configured_transports_get_sockets() -> None:
    with bound(Config(listen=("127.0.0.1:0",), transports=("tcp",))) as [pair]:
        assert pair.udp is None
        assert pair.tcp is not None
    with bound(Config(listen=("127.0.0.1:0",), transports=("quic",))) as [pair]:
        assert pair.udp is not None
        assert pair.tcp is None
    with bound(Config(transports=("memory",))) as pairs:
        assert pairs == []


def test_sockets_do_not_block_and_listen() -> None:
    with bound(Config(listen=("127.0.0.1:0",))) as [pair]:
        assert pair.udp is not None
        assert pair.tcp is not None
        assert not pair.udp.getblocking()
        assert not pair.tcp.getblocking()
        with socket.create_connection(pair.tcp.getsockname()):
            pass


def test_wildcard_udp_reports_the_address_that_was_asked() -> None:
    if not linux_only:
        return
    with bound(Config(listen=("0.0.0.0:0",))) as [pair]:
        assert pair.udp is not None
        assert pair.udp.getsockopt(socket.IPPROTO_IP, 8) == 1
    with bound(Config(listen=("127.0.0.1:0",))) as [pair]:
        assert pair.udp is not None
        assert pair.udp.getsockopt(socket.IPPROTO_IP, 8) == 0


def test_a_port_in_use_is_named_and_nothing_stays_open() -> None:
    with bound(Config(listen=("127.0.0.1:0",))) as pairs:
        [port] = ports(pairs)
        with pytest.raises(OSError, match=f"cannot listen on 127.0.0.1:{port}") as caught:
            bind(Config(listen=("127.0.0.2:0", f"127.0.0.1:{port}")))
        assert caught.value.errno == errno.EADDRINUSE


def test_port_taken_for_one_protocol_only_is_not_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel's first choice for UDP is taken for TCP: another port is tried."""
    with bound(Config(listen=("127.0.0.1:0",), transports=("tcp",))) as pairs:
        [taken] = ports(pairs)
        real = sockets._bind_once
        tried: list[int] = []

        def first_choice_is_taken(entry: sockets._Entry, port: int, config: Config) -> BoundPair:
            tried.append(port)
            return real(entry, taken if len(tried) == 1 else port, config)

        monkeypatch.setattr(sockets, "_bind_once", first_choice_is_taken)
        with bound(Config(listen=("127.0.0.1:0",))) as others:
            assert ports(others).isdisjoint({taken})
        assert len(tried) == 2


def test_entries_get_their_own_ports_when_none_is_free_for_all(monkeypatch: pytest.MonkeyPatch) -> None:
    real = sockets._bind_once

    def second_entry_never_shares(entry: sockets._Entry, port: int, config: Config) -> BoundPair:
        if entry.host == "127.0.0.2" and port:
            raise OSError(errno.EADDRINUSE, "in use")
        return real(entry, port, config)

    monkeypatch.setattr(sockets, "_bind_once", second_entry_never_shares)
    with bound(Config(listen=("127.0.0.1:0", "127.0.0.2:0"))) as pairs:
        assert len(pairs) == 2


def test_a_missing_family_is_left_out_unless_it_is_the_only_one(monkeypatch: pytest.MonkeyPatch) -> None:
    real = sockets._open

    def no_ipv6(family: int, *rest: object) -> socket.socket:
        if family == 6:
            raise OSError(errno.EAFNOSUPPORT, "Address family not supported by protocol")
        return real(family, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(sockets, "_open", no_ipv6)
    with bound(Config()) as pairs:
        assert [pair.family for pair in pairs] == [4]
    with pytest.raises(OSError, match=r"cannot listen on \[::\]:0"):
        bind(Config(listen=("[::]:0",)))


@pytest.mark.parametrize(
    ("entry", "part"),
    [
        ("127.0.0.1", "host:port"),
        ("127.0.0.1:", "host:port"),
        ("127.0.0.1:65536", "65535"),
        ("127.0.0.1:-1", "host:port"),
        ("::1:80", "brackets"),
        ("localhost:80", "no IP address"),
        ("[fe80::1%nosuchinterface]:80", "nosuchinterface"),
    ],
)
def test_a_malformed_entry_is_named(entry: str, part: str) -> None:
    with pytest.raises(ConfigError, match=part):
        bind(Config(listen=(entry,)))


def test_an_unknown_interface_is_named() -> None:
    with pytest.raises(ConfigError, match="nosuchif"):
        bind(Config(listen=("127.0.0.1:0",), interfaces=("nosuchif",)))


def test_sockets_are_tied_to_the_named_interface() -> None:
    if not linux_only:
        return
    config = Config(listen=("127.0.0.1:0",), interfaces=("lo",))
    with bound(config) as [pair], dial_tcp_socket(4, config) as dialled:
        assert pair.udp is not None
        assert pair.tcp is not None
        for sock in (pair.udp, pair.tcp, dialled):
            assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, 16).rstrip(b"\0") == b"lo"


def test_dial_socket_keeps_little_unsent_and_does_not_delay() -> None:
    with dial_tcp_socket(4, Config()) as sock:
        assert not sock.getblocking()
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        if linux_only:
            assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT) == 128 * 1024


def test_tuning_is_repeatable() -> None:
    with dial_tcp_socket(4, Config()) as sock:
        tune_tcp(sock)
        assert not sock.getblocking()
