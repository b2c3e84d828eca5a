"""Every transport passes the conformance suite of `overlay.testing`, on asyncio and on uvloop (see conftest.py)."""

import socket
from collections.abc import Iterator
from contextlib import closing, contextmanager

from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.connection import QuicConnection

from overlay.addresses import Address
from overlay.testing import Conformance


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
