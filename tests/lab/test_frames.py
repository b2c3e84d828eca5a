"""Corner case 14 of the drivers before us: a slow link must not starve routing.

A picture of 256 KiB over 400 kbit/s made all routes expire, as their announcements waited behind it.
"""

import sys

import pytest

from lab import Network

pytestmark = pytest.mark.lab

PROGRAM = """
import asyncio, sys
from overlay import Config, Driver, Endpoint, Identity, Priority

async def main(transport, listen, *tickets):
    config = Config(listen=(listen,), transports=(transport,))
    async with Endpoint(Identity.generate(), config) as endpoint, Driver(endpoint) as driver:
        print("ticket", endpoint.ticket)
        if not tickets:
            async for received in driver:
                print("picture" if len(received.frame) > 100 else f"announcement {received.frame[0]}")
        events = driver.events()
        peer_id = driver.start_peering(tickets[0])
        await anext(events)
        for _ in range(16):
            await driver.send(bytes(16 * 1024), peer_id)
        number = 0
        while (metrics := driver.metrics(peer_id)).queued_frames or metrics.unacknowledged_size > 1024:
            # Who has not got it after three seconds takes the route for dead.
            await driver.send(bytes([number]) * 64, peer_id, priority=Priority.CONTROL, deadline=3.0)
            number += 1
            await asyncio.sleep(0.2)
        await driver.flush()
        print("sent", number)
        print("lost", len(driver.undelivered()))
        await asyncio.Event().wait()

asyncio.run(main(*sys.argv[1:]))
"""


@pytest.mark.parametrize("transport", ["quic", "udp", "tcp"])
def test_14_announcements_do_not_wait_behind_a_picture(transport: str) -> None:
    with Network() as network:
        a, b = network.host("a"), network.host("b")
        network.link(a, b, rate=400e3)
        taking = b.start([sys.executable, "-c", PROGRAM, transport, f"{b.address(4)}:9330"])
        ticket = taking.line("ticket").split()[1]
        sending = a.start([sys.executable, "-c", PROGRAM, transport, f"{a.address(4)}:9330", ticket])
        sent = int(sending.line("sent", timeout=60).split()[1])
        assert sending.line("lost") == "lost 0"
        arrived = [taking.line(timeout=10) for _ in range(16 + sent)]
    assert [line for line in arrived if line != "picture"] == [f"announcement {number}" for number in range(sent)]
    assert sent >= 10, "the picture takes five seconds"
    last = max(number for number, line in enumerate(arrived) if line == "picture")
    assert arrived[:last].count("picture") == 15
    # All but those of the last second or so have overtaken the end of the picture.
    assert last - 15 >= sent - 8
