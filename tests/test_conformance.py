"""Every transport passes the conformance suite of `overlay.testing`, on asyncio and on uvloop (see conftest.py)."""

import socket
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager

from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.connection import QuicConnection

from overlay.addresses import Address
from overlay.identity import Identity
from overlay.protocol.udp.handshake import DiallerHandshake
from overlay.testing import Conformance
from overlay.transports.base import Role
from overlay.transports.udp_handshakes import udp_profile


class TestMemory(Conformance):
    transport = "memory"


class TestTcp(Conformance):
    transport = "tcp"

    @contextmanager
    def stalled_handshake(self, address: Address) -> Iterator[object]:
        with closing(socket.create_connection((address.host, address.port))) as sock:
            sock.sendall(b"\x16")
            yield sock


class TestQuic(Conformance):
    transport = "quic"

    @contextmanager
    def stalled_handshake(self, address: Address) -> Iterator[object]:
        client = QuicConnection(configuration=QuicConfiguration(alpn_protocols=["overlay-quic/1"]))
        client.connect(address.sockaddr(), now=0.0)
        with closing(socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) as sock:
            for data, remote in client.datagrams_to_send(now=0.0):
                sock.sendto(data, remote)
            yield sock


class TestUdp(Conformance):
    transport = "udp"

    @contextmanager
    def stalled_handshake(self, address: Address) -> Iterator[object]:
        profile = udp_profile(Identity.generate())
        handshake = DiallerHandshake(bytes(8), lambda: profile.handshake(Role.DIALER))

        def begin(sock: socket.socket) -> None:
            # The cookie comes when the acceptor's loop runs, which is the one that waits for us here.
            for data in handshake.datagrams_to_send(now=0.0):
                sock.sendto(data, address.sockaddr())
            handshake.receive_datagram(sock.recv(100), now=0.0)
            for data in handshake.datagrams_to_send(now=0.0):
                sock.sendto(data, address.sockaddr())

        with closing(socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) as sock:
            sock.settimeout(10)
            knocking = threading.Thread(target=begin, args=(sock,))
            knocking.start()
            yield sock
            knocking.join()
