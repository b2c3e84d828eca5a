"""A user-space relay for UDP and TCP on one port, with weather: what a network does to connections, without root."""

import asyncio
import socket
import struct
from types import TracebackType
from typing import Self


class Relay:
    """Forwards everything that comes to `port` to 127.0.0.1:`target`, and back.

    Attributes:
        port: where it listens, UDP and TCP alike.
        blocked: transports over UDP, "quic" and "udp", whose datagrams are dropped, in both directions.
        datagrams, connections, resets: how many it has seen.
        cuts: counted by whoever makes the weather.
    """

    def __init__(self, target: int) -> None:
        self.port = 0
        self.blocked: frozenset[str] = frozenset()
        self.datagrams = 0
        self.connections = 0
        self.resets = 0
        self.cuts = 0
        self._target = ("127.0.0.1", target)
        self._source: tuple[str, int] | None = None
        self._udp: asyncio.DatagramTransport | None = None
        self._clients: dict[tuple[str, int], asyncio.DatagramTransport] = {}
        self._server: asyncio.Server | None = None
        self._pipes: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        loop = asyncio.get_running_loop()
        while self._udp is None:
            self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
            self.port = self._server.sockets[0].getsockname()[1]
            try:
                self._udp, _ = await loop.create_datagram_endpoint(
                    lambda: _Front(self), local_addr=("127.0.0.1", self.port)
                )
            except OSError:
                self._server.close()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        assert self._udp is not None and self._server is not None
        self._server.close()
        # Before the tasks: a datagram that came meanwhile would open another socket.
        self._udp.close()
        self.reset_tcp()
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)
        for client in self._clients.values():
            client.close()
        await self._server.wait_closed()
        await asyncio.sleep(0)

    def reset_tcp(self) -> None:
        """Cut every TCP connection with a RST to both sides."""
        for writer in tuple(self._pipes):
            sock = writer.get_extra_info("socket")
            if sock.fileno() >= 0:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            writer.transport.abort()

    def rebind_udp(self, host: str | None = None) -> None:
        """Forward the datagrams of all clients from new ports, as a NAT does that has forgotten them.

        Args:
            host: from this address of the machine's, as if the clients had moved; None: as before.
        """
        self._source = self._source if host is None else (host, 0)
        for client in self._clients.values():
            client.close()
        self._clients.clear()

    def _drops(self, data: bytes) -> bool:
        """QUIC and raw UDP are told apart by the second bit (RFC 9443)."""
        return ("quic" if data[0] & 0x40 else "udp") in self.blocked

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self._pipes.add(writer)
        ends = [writer]
        try:
            there, back = await asyncio.open_connection(*self._target)
            self._pipes.add(back)
            ends.append(back)
            await asyncio.gather(self._pipe(reader, back), self._pipe(there, writer))
        except OSError:
            # A reset, ours or another's: both ends are cut below.
            self.resets += 1
        finally:
            self._tasks.discard(task)
            for end in ends:
                self._pipes.discard(end)
                end.transport.abort()

    async def _pipe(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        while data := await source.read(256 * 1024):
            sink.write(data)
            await sink.drain()
        sink.write_eof()

    async def from_client(self, data: bytes, address: tuple[str, int]) -> None:
        """Forward a datagram, from a socket of the client's own."""
        client = self._clients.get(address)
        if client is None:
            loop = asyncio.get_running_loop()
            made, _ = await loop.create_datagram_endpoint(
                lambda: _Back(self, address), local_addr=self._source, remote_addr=self._target
            )
            client = self._clients.setdefault(address, made)
            if client is not made:
                # The client's next datagram came meanwhile.
                made.close()
        client.sendto(data)

    def front_received(self, data: bytes, address: tuple[str, int]) -> None:
        """A datagram of a client's."""
        self.datagrams += 1
        if self._drops(data):
            return
        client = self._clients.get(address)
        if client is not None:
            client.sendto(data)
            return
        task = asyncio.create_task(self.from_client(data, address))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def back_received(self, data: bytes, address: tuple[str, int]) -> None:
        """A datagram of the target's."""
        if not self._drops(data) and self._udp is not None:
            self._udp.sendto(data, address)


class _Front(asyncio.DatagramProtocol):
    def __init__(self, relay: Relay) -> None:
        self._relay = relay

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        self._relay.front_received(data, addr)


class _Back(asyncio.DatagramProtocol):
    def __init__(self, relay: Relay, address: tuple[str, int]) -> None:
        self._relay = relay
        self._address = address

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        self._relay.back_received(data, self._address)
