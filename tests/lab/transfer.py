"""A transfer between the two homes of a site: real `overlay send` and `overlay receive`, in real processes."""

import hashlib
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lab.kernel import LabError, wait_until
from lab.processes import Process
from lab.topology import Side, Site
from overlay import Address, Ticket

PORT = 9330
START = 30.0
"""Seconds for a process to be there."""

Step = tuple[float, Callable[[Site], object]]
"""What happens once this fraction of the file has arrived."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What became of a transfer.

    Attributes:
        connected: whether there was a session.
        paths: those that were sent on, in order, as in the JSON of `overlay send`.
        carried: bytes by transport.
        connect_ms: from the start of the dial to the peer's ACCEPT.
        stall_ms: the longest gap between two deliveries at the receiver.
        goodput: bytes of the file per second, from the connection to the receiver's word that it has them.
        intact: the receiver's file is the sender's, by SHA-256.
        error: what the sender said when it failed.
        attempts: what it had tried.
    """

    connected: bool
    paths: list[dict[str, Any]] = field(default_factory=list)
    carried: dict[str, int] = field(default_factory=dict)
    connect_ms: float | None = None
    stall_ms: float | None = None
    goodput: float | None = None
    intact: bool = False
    error: str = ""
    attempts: list[str] = field(default_factory=list)


def transfer(
    site: Site,
    directory: Path,
    *,
    dialler: Side = "a",
    size: int = 4 * 2**20,
    rate: str | None = None,
    port: int = PORT,
    steps: Sequence[Step] = (),
    timeout: float = 20.0,
    seconds: float = 60.0,
) -> Outcome:
    """Send a file from one home to the other.

    Args:
        site: where.
        directory: an empty one, for files and keys.
        dialler: who sends; the other one receives.
        size: of the file, in bytes.
        rate: what the sender is limited to, as in `--limit-rate`; steps need time to happen in.
        port: where the receiver listens.
        steps: what happens on the way, in order.
        timeout: seconds for connecting.
        seconds: for everything after it.

    Raises:
        LabError: a process did something that no network can make it do.
    """
    source = directory / "file.bin"
    digest = _random_file(source, size)
    inbox = directory / "inbox"
    inbox.mkdir()
    acceptor: Side = "b" if dialler == "a" else "a"
    host = "[::]" if site.plan.families == (6,) else "0.0.0.0"
    listen = [f"--listen={host}:{port}"]
    if site.plan.families == (4, 6):
        listen = [f"--listen=0.0.0.0:{port}", f"--listen=[::]:{port}"]
    key = f"--identity={directory / 'key.pem'}"
    receiver = site.hosts[acceptor].start(
        [sys.executable, "-m", "overlay.cli", "receive", str(inbox), "--once", "--json", key, *listen], name="receiver"
    )
    ticket = Ticket.parse(json.loads(receiver.line("ready", timeout=START))["ticket"])
    addresses = tuple(Address(None, one, port) for one in site.public_hosts(acceptor))
    there = str(Ticket(ticket.peer_id, tuple(dict.fromkeys((*addresses, *ticket.addresses)))))
    limit = [] if rate is None else [f"--limit-rate={rate}"]
    sender = site.hosts[dialler].start(
        [sys.executable, "-m", "overlay.cli", "send", "--json", f"--timeout={timeout}", *limit, str(source), there],
        name="sender",
    )
    _make_weather(site, sender, inbox, size, steps, seconds)
    code = sender.wait(START + timeout + seconds)
    report = json.loads(sender.line(timeout=START))
    if code != 0:
        receiver.stop()
        return Outcome(connected=False, error=report["error"], attempts=report.get("attempts", []))
    received = json.loads(receiver.line("received", timeout=START))
    # It would end by itself, unless the sender's goodbye is lost; then it would wait for the session's resume time.
    receiver.stop()
    return Outcome(
        connected=True,
        paths=report["paths"],
        carried=report["bytes_by_transport"],
        connect_ms=report["paths"][0]["connect_ms"],
        stall_ms=max(report["stalls_ms"], default=0.0),
        goodput=size / report["seconds"],
        intact=received["sha256"] == digest == _digest(inbox / source.name),
    )


def _make_weather(site: Site, sender: Process, inbox: Path, size: int, steps: Sequence[Step], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    for fraction, change in steps:
        wait_until(
            lambda fraction=fraction: sender.code is not None or _arrived(inbox) >= fraction * size,  # type: ignore[misc]
            f"{fraction:.0%} of the file",
            deadline - time.monotonic(),
        )
        if sender.code is not None:
            raise LabError(f"the sender ended before {fraction:.0%} of the file had arrived:\n{sender.report()}")
        change(site)


def _arrived(inbox: Path) -> int:
    """Bytes that are there, under whatever name."""
    total = 0
    for path in inbox.iterdir():
        try:
            total += path.stat().st_size
        except FileNotFoundError:
            # It was given its final name meanwhile.
            continue
    return total


def _random_file(path: Path, size: int) -> str:
    content = os.urandom(size)
    path.write_bytes(content)
    return hashlib.sha256(content).hexdigest()


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
