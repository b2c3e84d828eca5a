"""A real transfer between two processes, cut every second."""

import asyncio
import hashlib
import json
import os
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
from weather import Relay

from overlay import Address, Ticket

MiB = 1024 * 1024
OPEN: frozenset[str] = frozenset()
UDP = frozenset({"quic", "udp"})


async def start(*arguments: str) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        sys.executable, "-m", "overlay.cli", *arguments, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )


def quic_or_tcp(relay: Relay, cut: int) -> None:
    """UDP is dropped, then TCP is reset and UDP comes back, in turn."""
    relay.blocked = (UDP, OPEN)[cut % 2]
    if not relay.blocked:
        relay.reset_tcp()


def every_transport(relay: Relay, cut: int) -> None:
    """QUIC is dropped, then all UDP, then TCP is reset and all UDP comes back."""
    relay.blocked = (frozenset({"quic"}), UDP, OPEN)[cut % 3]
    if not relay.blocked:
        relay.reset_tcp()


def raw_udp(relay: Relay, cut: int) -> None:
    """Everything is dropped, then comes again from other ports, in turn."""
    relay.blocked = (UDP, OPEN)[cut % 2]
    if not relay.blocked:
        relay.rebind_udp()


async def weather(relay: Relay, change: Callable[[Relay, int], None]) -> None:
    """Every second a cut."""
    while True:
        await asyncio.sleep(1)
        change(relay, relay.cuts)
        relay.cuts += 1


@pytest.mark.timeout(240)
@pytest.mark.parametrize(
    ("change", "transports", "size", "rate", "cuts"),
    [
        (quic_or_tcp, ("quic", "tcp"), 256 * MiB, "16M", 12),
        (every_transport, ("quic", "udp", "tcp"), 96 * MiB, "8M", 8),
        (raw_udp, ("udp",), 64 * MiB, "8M", 6),
    ],
)
async def test_a_file_arrives_whole_through_a_cut_every_second(
    tmp_path: Path,
    change: Callable[[Relay, int], None],
    transports: tuple[str, ...],
    size: int,
    rate: str,
    cuts: int,
) -> None:
    """Complete, checked by SHA-256 on both sides, over every transport that it may use."""
    source = tmp_path / "random.bin"
    block = os.urandom(MiB)
    digest = hashlib.sha256()
    with source.open("wb") as file:
        for number in range(size // len(block)):
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
        cutting = asyncio.create_task(weather(relay, change))
        only = [f"--transport={name}" for name in transports]
        sender = await start("send", "--json", "--limit-rate", rate, *only, str(source), str(through))
        sent, sender_errors = await sender.communicate()
        cutting.cancel()
        received = json.loads(await receiver.stdout.readline())
        # The sender's goodbye may have met a cut; then the receiver would wait for the session's resume time.
        with suppress(ProcessLookupError):
            receiver.terminate()
        _, receiver_errors = await receiver.communicate()
    assert (sender.returncode, sender_errors.decode()) == (0, "")
    assert receiver_errors.decode() == ""
    report = json.loads(sent)
    assert relay.cuts >= cuts
    assert report["files"] == [{"name": "random.bin", "bytes": size, "sha256": digest.hexdigest()}]
    assert all(report["bytes_by_transport"][name] > 0 for name in transports)
    assert (received["event"], received["sha256"]) == ("received", digest.hexdigest())
    with (inbox / "random.bin").open("rb") as file:
        assert hashlib.file_digest(file, "sha256").digest() == digest.digest()
