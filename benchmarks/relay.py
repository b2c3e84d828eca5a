"""A UDP relay that delays: a long link in user space, which needs no root.

Usage: python relay.py PORT SECONDS. It prints its own port, and ends with its standard input.
"""

import asyncio
import sys
from typing import Final

HOST: Final = "127.0.0.1"
MAX_CLIENTS: Final = 1024


class _Back(asyncio.DatagramProtocol):
    """What the server answers to one client."""

    def __init__(self, relay: "Relay", client: tuple[str, int]) -> None:
        self._relay = relay
        self._client = client

    def datagram_received(self, data: bytes, _address: tuple[str, int]) -> None:
        self._relay.later(self._relay.transport, data, self._client)


class Relay(asyncio.DatagramProtocol):
    """Sends what any client says to one server, and the answers back, each `delay` seconds later.

    Args:
        port: the server's.
        delay: seconds each way.
    """

    transport: asyncio.DatagramTransport

    def __init__(self, port: int, delay: float) -> None:
        self._server = (HOST, port)
        self._delay = delay
        self._loop = asyncio.get_running_loop()
        self._upstream: dict[tuple[str, int], asyncio.Future[asyncio.DatagramTransport]] = {}

    def connection_made(self, transport: asyncio.DatagramTransport) -> None:  # type: ignore[override]
        """Remember where answers leave from."""
        self.transport = transport

    def datagram_received(self, data: bytes, client: tuple[str, int]) -> None:
        """Each client gets a socket of its own, as behind a NAT."""
        upstream = self._upstream.get(client)
        if upstream is None:
            if len(self._upstream) >= MAX_CLIENTS:
                return
            upstream = self._upstream[client] = asyncio.ensure_future(self._open(client))
        if upstream.done():
            self.later(upstream.result(), data, self._server)
        else:
            upstream.add_done_callback(lambda opened: self.later(opened.result(), data, self._server))

    async def _open(self, client: tuple[str, int]) -> asyncio.DatagramTransport:
        transport, _ = await self._loop.create_datagram_endpoint(
            lambda: _Back(self, client), local_addr=(HOST, 0), family=0
        )
        return transport

    def later(self, transport: asyncio.DatagramTransport, data: bytes, address: tuple[str, int]) -> None:
        """Send after the delay."""
        self._loop.call_later(self._delay, transport.sendto, data, address)


async def main(port: int, delay: float) -> None:
    loop = asyncio.get_running_loop()
    transport, _ = await loop.create_datagram_endpoint(lambda: Relay(port, delay), local_addr=(HOST, 0))
    print(transport.get_extra_info("sockname")[1], flush=True)
    ended = asyncio.Event()
    loop.add_reader(sys.stdin.fileno(), ended.set)
    await ended.wait()


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]), float(sys.argv[2])))
