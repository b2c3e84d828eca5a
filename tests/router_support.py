"""Nodes of a mesh: in this process, with links that can be cut, and the router's command line as processes."""

import asyncio
import os
import signal
import sys
from asyncio.subprocess import PIPE
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from weather import Relay

from overlay import Address, Config, Driver, Endpoint, Identity, PeerId, Ticket
from overlay.testing import LOOPBACK
from overlay.testing.router import MeshRouter
from overlay.testing.router_core import Message

ANNOUNCE = 0.5
HASTY = Config(listen=LOOPBACK, idle_timeout=1.5, keepalive=0.5, resume_timeout=2.0, backoff_cap=0.5)
"""A link is given up within four seconds."""
PATIENCE = 50.0
"""Seconds: ten nodes in one process of a shared machine are slow."""
COMMAND = (sys.executable, "-m", "overlay.testing.router", "--listen", "127.0.0.1:0")
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)}


class Node:
    """An endpoint, its driver and its router, and whoever reads what comes."""

    def __init__(self, endpoint: Endpoint, driver: Driver, router: MeshRouter) -> None:
        self.endpoint = endpoint
        self.driver = driver
        self.router = router
        self.got: list[Message] = []

    @property
    def peer_id(self) -> PeerId:
        return self.endpoint.peer_id

    @property
    def payloads(self) -> Counter[bytes]:
        return Counter(message.payload for message in self.got)

    async def read(self) -> None:
        while True:
            self.got.append(await self.router.next())


@asynccontextmanager
async def node(config: Config = HASTY, identity: Identity | None = None, *, reads: bool = True) -> AsyncIterator[Node]:
    async with (
        Endpoint(identity or Identity.generate(), config) as endpoint,
        Driver(endpoint) as driver,
        MeshRouter(driver, announce=ANNOUNCE) as router,
    ):
        made = Node(endpoint, driver, router)
        reading = asyncio.create_task(made.read() if reads else asyncio.sleep(0))
        try:
            yield made
        finally:
            reading.cancel()
            await asyncio.wait([reading])


class Link(Relay):
    """What two nodes speak through; it can be cut without a word to either."""

    def __init__(self, one: Node, two: Node) -> None:
        super().__init__(two.endpoint.addresses[0].port)
        self.ends = one, two
        self.is_cut = False

    @property
    def is_up(self) -> bool:
        one, two = self.ends
        return one.peer_id in two.driver.neighbours() and two.peer_id in one.driver.neighbours()

    @property
    def is_down(self) -> bool:
        """Both sides have given it up."""
        one, two = self.ends
        return not (one.peer_id in two.driver.neighbours() or two.peer_id in one.driver.neighbours())

    @property
    def is_felt(self) -> bool:
        """One side at least has noticed that nothing comes, and nobody has given up."""
        one, two = self.ends
        metrics = (one.driver.metrics(two.peer_id), two.driver.metrics(one.peer_id))
        return any(known.lingering or any(path.suspect for path in known.paths) for known in metrics)

    def peer(self) -> None:
        one, two = self.ends
        one.driver.start_peering(Ticket(two.peer_id, (Address(None, "127.0.0.1", self.port),)))

    def cut(self) -> None:
        self.is_cut = True
        self.blocked = frozenset({"quic", "udp"})
        self.reset_tcp()

    def heal(self) -> None:
        self.is_cut = False
        self.blocked = frozenset()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self.is_cut:
            writer.transport.abort()
        else:
            await super()._accept(reader, writer)


class Process:
    """The command line of the router as a process of its own."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process
        self.ticket = ""
        self.key = ""

    async def type(self, line: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(line.encode() + b"\n")
        await self.process.stdin.drain()

    async def line(self) -> str:
        """The next line of its output."""
        assert self.process.stdout is not None
        async with asyncio.timeout(PATIENCE):
            line = await self.process.stdout.readline()
        assert line.endswith(b"\n"), line
        return line.decode().rstrip("\n")

    async def said(self, text: str) -> str:
        """The next line of its messages in which that stands."""
        assert self.process.stderr is not None
        async with asyncio.timeout(PATIENCE):
            while text.encode() not in (line := await self.process.stderr.readline()):
                assert line, "it has ended"
        return line.decode()

    async def end(self, number: signal.Signals) -> str:
        """Send it a signal, and wait for its end; what it had to say on standard error."""
        assert self.process.stderr is not None
        self.process.send_signal(number)
        said = await self.process.stderr.read()
        async with asyncio.timeout(PATIENCE):
            await self.process.wait()
        return said.decode()


@asynccontextmanager
async def process(*arguments: object) -> AsyncIterator[Process]:
    started = await asyncio.create_subprocess_exec(
        *COMMAND, *map(str, arguments), stdin=PIPE, stdout=PIPE, stderr=PIPE, env=ENVIRONMENT
    )
    try:
        made = Process(started)
        made.ticket = await made.line()
        made.key = await made.line()
        yield made
    finally:
        if started.returncode is None:
            started.kill()
        await started.communicate()
