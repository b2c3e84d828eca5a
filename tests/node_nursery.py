"""Nodes in processes of their own, of which some do not end well: started by `nursery_of_nodes.py`, for tests."""

import asyncio
import json
import os
import random
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

PROGRAM = Path(__file__).with_name("nursery_of_nodes.py")


class Nursery:
    """Starts nodes, and sends them signals: see `nursery_of_nodes.py`."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self._turn = asyncio.Lock()

    async def start(self, name: str, key: Path, *, listen: str, transport: str, keep: list[str]) -> None:
        """Let a node begin: with a key, at a place, over one transport; it stays with those whose tickets are given."""
        await self._order({"name": name, "key": str(key), "listen": listen, "transport": transport, "keep": keep})

    async def signal(self, name: str, signal: str) -> None:
        """Send a node SIGKILL, SIGSTOP or SIGCONT; it has done its work when this returns."""
        await self._order({"name": name, "signal": signal})

    async def _order(self, order: dict[str, object]) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        async with self._turn:
            self._process.stdin.write(json.dumps(order).encode() + b"\n")
            answer = await self._process.stdout.readline()
        assert answer.decode() == f"{order['name']}\n"


@asynccontextmanager
async def nursery() -> AsyncIterator[Nursery]:
    """All of its nodes are gone when the block is left."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, PROGRAM, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(PROGRAM.parent.parent)},
    )  # fmt: skip
    try:
        yield Nursery(process)
    finally:
        assert process.stdin is not None
        process.stdin.close()
        assert await process.wait() == 0


def quiet_port() -> int:
    """One that no outgoing connection takes while its owner is dead."""
    while True:
        port = random.randrange(10_000, 30_000)
        with socket.socket() as tcp, socket.socket(type=socket.SOCK_DGRAM) as udp:
            try:
                tcp.bind(("127.0.0.1", port))
                udp.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
