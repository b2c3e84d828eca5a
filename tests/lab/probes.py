"""What tests send through a lab, and what they see of it: datagrams and connections between hosts."""

import errno
import select
import socket
import time
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from typing import Literal

from lab.nodes import Host

PATIENCE = 10.0
"""Seconds for what must come: it comes within milliseconds, except on a machine that is very busy."""

SILENCE = 0.15
"""Seconds without a packet after which it counts as dropped; between hosts of the lab one takes 0.1 ms."""

Outcome = Literal["connected", "refused", "silent"]
FAMILIES = {4: socket.AF_INET, 6: socket.AF_INET6}


def udp_socket(host: Host, port: int = 0, *, family: int = 4) -> socket.socket:
    """A datagram socket of this process's that lives in a host."""
    return _socket(host, socket.SOCK_DGRAM, port, family)


def listener(host: Host, port: int, *, family: int = 4) -> socket.socket:
    """A listening TCP socket of this process's that lives in a host."""
    sock = _socket(host, socket.SOCK_STREAM, port, family)
    sock.listen()
    return sock


def received(sockets: Sequence[socket.socket], expected: int) -> list[tuple[bytes, str, int, int]]:
    """What comes to these sockets: until `expected` datagrams are there, and then until it is silent.

    Returns:
        Of each datagram: its content, its source's address and port, and the index of the socket that it came to.
    """
    seen: list[tuple[bytes, str, int, int]] = []
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        ready, _, _ = select.select(sockets, [], [], SILENCE)
        for sock in ready:
            data, source = sock.recvfrom(65536)
            seen.append((data, source[0], source[1], sockets.index(sock)))
        if not ready and len(seen) >= expected:
            break
    return seen


def tcp_outcomes(client: Host, targets: Iterable[tuple[str, int]], *, answers: int) -> list[Outcome]:
    """How connecting from a host to each of these addresses and ports goes, all at once.

    Args:
        client: who connects.
        targets: to what.
        answers: so many are waited for; the others have to answer soon after, or are silent.
    """
    with ExitStack() as stack:
        pending: dict[int, socket.socket] = {}
        outcomes: dict[int, Outcome] = {}
        for index, (address, port) in enumerate(targets):
            family = 6 if ":" in address else 4
            with client.inside():
                sock = stack.enter_context(socket.socket(FAMILIES[family], socket.SOCK_STREAM))
            sock.setblocking(False)
            assert sock.connect_ex((address, port)) == errno.EINPROGRESS
            pending[index] = sock
            outcomes[index] = "silent"
        deadline = time.monotonic() + PATIENCE
        while pending and time.monotonic() < deadline:
            _, ready, _ = select.select([], list(pending.values()), [], SILENCE)
            if not ready and len(outcomes) - len(pending) >= answers:
                break
            for index, sock in list(pending.items()):
                if sock in ready:
                    error = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
                    assert error in {0, errno.ECONNREFUSED}, errno.errorcode[error]
                    outcomes[index] = "refused" if error else "connected"
                    del pending[index]
        return list(outcomes.values())


def arrives(sender: Host, receiver: Host, family: int = 4, *, expected: int = 1) -> bool:
    """Whether a datagram arrives; it is waited for unless none is expected."""
    with udp_socket(sender, family=family) as outgoing, udp_socket(receiver, 9, family=family) as incoming:
        outgoing.sendto(b"hello", (receiver.address(family), 9))
        return bool(received([incoming], expected))


def vanishes(sender: Host, receiver: Host, family: int = 4) -> bool:
    """Whether a datagram does not arrive, and the sender is not told."""
    return not arrives(sender, receiver, family, expected=0)


def source(sender: Host, receiver: Host, family: int = 4) -> str:
    """The address from which a datagram comes."""
    with udp_socket(sender, family=family) as outgoing, udp_socket(receiver, 9, family=family) as incoming:
        outgoing.sendto(b"hello", (receiver.address(family), 9))
        return str(received([incoming], 1)[0][1])


def _socket(host: Host, kind: socket.SocketKind, port: int, family: int) -> socket.socket:
    with host.inside():
        sock = socket.socket(FAMILIES[family], kind)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.settimeout(PATIENCE)
    sock.bind(("::" if family == 6 else "0.0.0.0", port))
    return sock
