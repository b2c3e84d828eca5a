"""Run as a process of its own: an endpoint with a driver that takes frames, until its standard input ends.

    python driver_node.py LISTEN TRANSPORT

Prints its ticket, then a line of JSON for each frame that arrives: the first bytes as a number, and the length.
"""

import asyncio
import json
import sys

from overlay import Config, Driver, Endpoint, Identity
from overlay.testing import ticket


def say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


async def main(listen: str, transport: str) -> None:
    """Be a neighbour."""
    ended = asyncio.Event()
    asyncio.get_running_loop().add_reader(sys.stdin.fileno(), ended.set)
    config = Config(listen=(listen,), transports=(transport,))
    async with Endpoint(Identity.generate(), config) as endpoint, Driver(endpoint) as driver:
        say(str(ticket(endpoint)))

        async def take() -> None:
            async for received in driver:
                say(json.dumps([int.from_bytes(received.frame[:4]), len(received.frame)]))

        taking = asyncio.create_task(take())
        await ended.wait()
        taking.cancel()
        await asyncio.wait([taking])


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
