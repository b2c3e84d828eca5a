"""Run as a process of its own: starts nodes as processes, and sends them signals. What it has imported they have.

    python nursery_of_nodes.py

Reads lines of JSON. `{"name", "key", "listen", "transport", "keep"}` forks a node. `{"name", "signal"}` sends it one of
SIGKILL, SIGSTOP and SIGCONT, and waits for what that does: after a SIGKILL its port is free again. Each is answered by
its name. At the end of the input all die.

A node has an echo, and speaks to the echo of everybody with whom it has a session, again and again.
"""

import asyncio
import json
import os
import signal
import sys
import traceback
from contextlib import suppress
from typing import Any

from overlay import Config, Endpoint, Identity, PeerConnected, PeerId, SessionError, Stream
from overlay.testing import echo

BLOCK = bytes(4096)
PAUSE = 0.005
"""Seconds between two blocks: a dozen streams at once are not to need all of a small machine."""


async def speak(endpoint: Endpoint, peer_id: PeerId, group: asyncio.TaskGroup) -> None:
    """Until the session ends. It does not wait for the echo: who moves has to send something to be found."""
    session = endpoint.sessions.get(peer_id)
    if session is None:
        return
    # A session ends when the other side takes this process for a new one, and when the test is over.
    with suppress(SessionError):
        stream = await session.open_stream("echo/1")
        group.create_task(listen(stream))
        while True:
            await stream.write(BLOCK)
            await asyncio.sleep(PAUSE)


async def listen(stream: Stream) -> None:
    """Take the echo away."""
    with suppress(SessionError):
        async for _ in stream:
            pass


async def live(order: dict[str, Any], leash: int) -> None:
    """Be a node until killed, or until nobody holds the leash any more."""
    let_go = asyncio.Event()
    asyncio.get_running_loop().add_reader(leash, let_go.set)
    config = Config(listen=(order["listen"],), transports=(order["transport"],), backoff_cap=2.0)
    # The endpoint ends first, and with its sessions all who speak.
    async with asyncio.TaskGroup() as group, Endpoint(Identity.load_or_create(order["key"]), config) as endpoint:
        endpoint.handle("echo/1", echo)
        events = endpoint.events()

        async def follow() -> None:
            async for event in events:
                if isinstance(event, PeerConnected):
                    group.create_task(speak(endpoint, event.peer_id, group))

        group.create_task(follow())
        for one in order["keep"]:
            endpoint.keep(one)
        await let_go.wait()


def fork(order: dict[str, Any], leash: tuple[int, int]) -> int:
    """The number of the new process."""
    child = os.fork()
    if child:
        return child
    # It must neither read our orders nor hold the leash itself.
    os.close(leash[1])
    os.close(sys.stdin.fileno())
    code = 1
    try:
        asyncio.run(live(order, leash[0]))
        code = 0
    except BaseException:
        traceback.print_exc()
        raise
    finally:
        sys.stderr.flush()
        os._exit(code)


def send(child: int, number: signal.Signals) -> None:
    """Send a signal, and wait until it has done its work."""
    os.kill(child, number)
    _, status = os.waitpid(child, os.WUNTRACED | os.WCONTINUED)
    reached = {
        signal.SIGKILL: os.WIFSIGNALED(status),
        signal.SIGSTOP: os.WIFSTOPPED(status),
        signal.SIGCONT: os.WIFCONTINUED(status),
    }
    assert reached[number], f"{number.name} found it with status {status}"


def main() -> None:
    """Do what is asked for."""
    leash = os.pipe()
    nodes: dict[str, int] = {}
    for line in sys.stdin:
        order = json.loads(line)
        if "key" in order:
            nodes[order["name"]] = fork(order, leash)
        else:
            name, number = order["name"], signal.Signals[order["signal"]]
            send(nodes.pop(name) if number is signal.SIGKILL else nodes[name], number)
        sys.stdout.write(order["name"] + "\n")
        sys.stdout.flush()
    for child in nodes.values():
        send(child, signal.SIGKILL)


if __name__ == "__main__":
    main()
