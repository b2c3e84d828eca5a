"""Run as a process of its own: opens many sessions to one endpoint, each with a key of its own.

    python thousand_dialler.py TICKET COUNT TRANSPORT,TRANSPORT...

Each session has one of the transports, in turns.

Prints `open` when all are connected and each has had an echo; closes them at a line on standard input; prints `closed`.
"""

import asyncio
import sys

from overlay import Config, Endpoint, Identity
from overlay.testing import LOOPBACK, exchange

AT_ONCE = 16


async def main(ticket: str, count: int, transports: list[str]) -> None:
    loop = asyncio.get_running_loop()
    turn = asyncio.Semaphore(AT_ONCE)
    endpoints: list[Endpoint] = []

    async def begin(transport: str) -> None:
        async with turn:
            endpoint = Endpoint(Identity.generate(), Config(listen=LOOPBACK, transports=(transport,)))
            endpoints.append(await endpoint.__aenter__())
            assert await exchange(await endpoint.connect(ticket), b"hello") == b"hello"

    async def end(endpoint: Endpoint) -> None:
        async with turn:
            await endpoint.aclose()

    async with asyncio.TaskGroup() as group:
        for number in range(count):
            group.create_task(begin(transports[number % len(transports)]))
    sys.stdout.write("open\n")
    sys.stdout.flush()
    await loop.run_in_executor(None, sys.stdin.readline)
    async with asyncio.TaskGroup() as group:
        for endpoint in endpoints:
            group.create_task(end(endpoint))
    sys.stdout.write("closed\n")
    sys.stdout.flush()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], int(sys.argv[2]), sys.argv[3].split(",")))
