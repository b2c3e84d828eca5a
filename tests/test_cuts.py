"""A real transfer between two processes, cut every second."""

import asyncio
import hashlib
import json
import os
import sys
from pathlib import Path

import pytest
from weather import Relay

from overlay import Address, Ticket

SIZE = 256 * 1024 * 1024
CUTS = 12


async def start(*arguments: str) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        sys.executable, "-m", "overlay.cli", *arguments, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )


async def weather(relay: Relay) -> None:
    """Every second a cut: UDP is dropped, then TCP is reset and UDP comes back, in turn."""
    while True:
        await asyncio.sleep(1)
        relay.udp_blocked = True
        relay.cuts += 1
        await asyncio.sleep(1)
        relay.reset_tcp()
        relay.udp_blocked = False
        relay.cuts += 1


@pytest.mark.timeout(240)
async def test_256_mib_arrive_whole_through_a_cut_every_second(tmp_path: Path) -> None:
    """Complete, checked by SHA-256 on both sides, after at least 12 cuts, over both transports."""
    source = tmp_path / "random.bin"
    block = os.urandom(1024 * 1024)
    digest = hashlib.sha256()
    with source.open("wb") as file:
        for number in range(SIZE // len(block)):
            piece = number.to_bytes(8, "big") + block[8:]
            file.write(piece)
            digest.update(piece)
    inbox = tmp_path / "inbox"
    inbox.mkdir()
    receiver = await start(
        "receive", str(inbox), "--once", "--json", "--listen", "127.0.0.1:0", "--identity", str(tmp_path / "key.pem")
    )
    assert receiver.stdout is not None
    ready = json.loads(await receiver.stdout.readline())
    ticket = Ticket.parse(ready["ticket"])
    async with Relay(ticket.addresses[0].port) as relay:
        through = Ticket(ticket.peer_id, (Address(None, "127.0.0.1", relay.port),))
        cutting = asyncio.create_task(weather(relay))
        sender = await start("send", "--json", "--limit-rate", "16M", str(source), str(through))
        sent, sender_errors = await sender.communicate()
        cutting.cancel()
        received, receiver_errors = await receiver.communicate()
    assert (sender.returncode, sender_errors.decode()) == (0, "")
    assert (receiver.returncode, receiver_errors.decode()) == (0, "")
    report = json.loads(sent)
    assert relay.cuts >= CUTS
    assert report["files"] == [{"name": "random.bin", "bytes": SIZE, "sha256": digest.hexdigest()}]
    assert all(report["bytes_by_transport"][name] > 0 for name in ("quic", "tcp"))
    arrived = [json.loads(line) for line in received.splitlines()]
    assert [one["sha256"] for one in arrived if one["event"] == "received"] == [digest.hexdigest()]
    with (inbox / "random.bin").open("rb") as file:
        assert hashlib.file_digest(file, "sha256").digest() == digest.digest()
