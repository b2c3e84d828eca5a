"""The user-space line, between two real namespaces: what was asked for against what is measured."""

import hashlib
import itertools
import json
import math
import os
import signal
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from lab import kernel, report
from lab.impairment import Counters, Impairment
from lab.kernel import LabError, wait_until
from lab.leftovers import namespace_name
from lab.line import Line, LineError

pytestmark = pytest.mark.lab

DATAGRAMS = 10_000
SIGMAS = 5
"""A fair line strays so far once in 1.7 million tests."""
SECONDS = 60.0
"""For any one wait: far more than it needs."""
RECEIVE_BUFFER = 32 * 1024 * 1024
SO_RCVBUFFORCE = 33
ADDRESSES = {"lower": "198.18.0.1", "upper": "198.18.0.2"}
MACS = {"lower": "02:00:00:00:00:01", "upper": "02:00:00:00:00:02"}
TAP = "line0"
TESTS = str(Path(__file__).resolve().parents[1])


@pytest.fixture
def ends() -> Iterator[dict[str, str]]:
    """Two namespaces, lower and upper, without IPv6: nothing speaks there but the tests."""
    names = {end: namespace_name(0, f"line-{end}") for end in ADDRESSES}
    made = []
    try:
        for name in names.values():
            kernel.create(name)
            made.append(name)
            kernel.write_sysctls(name, [("net/ipv6/conf/default/disable_ipv6", 1)])
        yield names
    finally:
        for name in made:
            kernel.delete(name)


def line_between(ends: dict[str, str], impairment: Impairment | tuple[Impairment, Impairment], mtu: int = 1500) -> Line:
    return Line((ends["lower"], TAP), (ends["upper"], TAP), mtu=mtu, impairment=impairment, seed=1)


@contextmanager
def running(
    ends: dict[str, str], impairment: Impairment | tuple[Impairment, Impairment] | None = None
) -> Iterator[Line]:
    """A line with addresses, and with fixed neighbours: only the tests' own packets cross it."""
    line = line_between(ends, impairment or Impairment())
    line.start()
    try:
        for end, other in (("lower", "upper"), ("upper", "lower")):
            commands = (
                f"link set {TAP} address {MACS[end]}",
                f"addr add {ADDRESSES[end]}/24 dev {TAP}",
                f"neigh replace {ADDRESSES[other]} lladdr {MACS[other]} dev {TAP} nud permanent",
            )
            kernel.run(["ip", "-batch", "-"], namespace=ends[end], text="\n".join(commands) + "\n")
        yield line
    finally:
        line.close()


def interfaces(namespace: str) -> set[str]:
    return {link["ifname"] for link in json.loads(kernel.run(["ip", "-json", "link"], namespace=namespace))}


@dataclass
class Wire:
    """Numbered datagrams over a line, from the end `source` to the other."""

    line: Line
    source: socket.socket
    sink: socket.socket
    direction: str

    def send(self, numbers: range) -> None:
        for number in numbers:
            self.source.send(struct.pack(">I96x", number))

    @property
    def counters(self) -> Counters:
        return self.line.counters()[self.direction]

    def await_seen(self, count: int) -> None:
        wait_until(lambda: self.counters.seen >= count, f"{count} datagrams to be in the line", SECONDS)

    def arrived(self, count: int) -> list[int]:
        """The numbers that come out, in order, once `count` datagrams went in and the line is empty."""
        self.await_seen(count)
        wait_until(lambda: self.counters.under_way == 0, "the line to be empty", SECONDS)
        return [struct.unpack_from(">I", self.sink.recv(2048))[0] for _ in range(self.counters.delivered)]


@contextmanager
def wire(line: Line, ends: dict[str, str], direction: str = "up") -> Iterator[Wire]:
    source, sink = ("lower", "upper") if direction == "up" else ("upper", "lower")
    with kernel.inside(ends[sink]):
        receiver = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    with kernel.inside(ends[source]):
        sender = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    with sender, receiver:
        receiver.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, RECEIVE_BUFFER)
        receiver.settimeout(SECONDS)
        receiver.bind((ADDRESSES[sink], 0))
        sender.connect(receiver.getsockname())
        yield Wire(line, sender, receiver, direction)


def ping(ends: dict[str, str], count: int = 5) -> list[float]:
    """Round trips from the lower end to the upper, in ms: the fastest, the mean, the slowest, the deviation."""
    command = ["ping", "-c", str(count), "-i", "0.02", "-W", "5", "-q", ADDRESSES["upper"]]
    out = kernel.run(command, namespace=ends["lower"])
    return [float(value) for value in out.rpartition(" = ")[2].split()[0].split("/")]


def bound(share: float, correlation: float = 0.0) -> float:
    """How far a share of all datagrams may be off, if what befalls neighbours is correlated."""
    return SIGMAS * math.sqrt(share * (1 - share) * (1 + correlation) / (1 - correlation) / DATAGRAMS)


def late(numbers: list[int]) -> int:
    """How many came after one with a higher number."""
    highest = itertools.accumulate(numbers, max)
    return sum(number < top for number, top in zip(numbers, highest, strict=True))


def test_round_trips_take_what_was_asked(ends: dict[str, str]) -> None:
    with running(ends) as line:
        report.measured.append("RTT asked in ms, and measured: min / mean / max / deviation")
        for asked in (20, 100, 300):
            line.impair(Impairment(delay=asked / 2000))
            times = ping(ends)
            report.measured.append(f"{asked:4}: {' / '.join(f'{value:.3f}' for value in times)}")
            # The fastest of several, and generously: a busy machine delays some of them, but hardly each.
            assert asked <= times[0] <= 2 * asked + 20


def test_the_delay_of_one_direction_is_not_that_of_the_other(ends: dict[str, str]) -> None:
    with running(ends, (Impairment(delay=0.3), Impairment())) as line, wire(line, ends) as up:
        with wire(line, ends, "down") as down:
            up.send(range(10))
            up.await_seen(10)
            down.send(range(10))
            assert down.arrived(10) == list(range(10))
            assert up.arrived(10) == list(range(10))
        assert 300 <= ping(ends)[0] < 600


def test_loss_in_one_direction_spares_the_other(ends: dict[str, str]) -> None:
    with running(ends, (Impairment(loss=1.0), Impairment())) as line:
        with wire(line, ends) as up, wire(line, ends, "down") as down:
            up.send(range(100))
            down.send(range(100))
            assert up.arrived(100) == []
            assert down.arrived(100) == list(range(100))


@pytest.mark.parametrize(
    ("impairment", "share", "correlation"),
    [
        (Impairment(loss=0.05), 0.05, 0.0),
        (Impairment(loss=0.5), 0.5, 0.0),
        (Impairment(burst_start=0.02, burst_length=5.0), 0.1 / (0.1 + 0.98), 0.8),
    ],
)
def test_losses_are_as_many_as_asked(
    ends: dict[str, str], impairment: Impairment, share: float, correlation: float
) -> None:
    with running(ends, impairment) as line, wire(line, ends) as up:
        up.send(range(DATAGRAMS))
        numbers = up.arrived(DATAGRAMS)
    assert numbers == sorted(set(numbers))
    lost = 1 - len(numbers) / DATAGRAMS
    report.measured.append(f"loss asked {share:.4f}, measured {lost:.4f}")
    assert lost == pytest.approx(share, abs=bound(share, correlation))


def test_duplicates_are_as_many_as_asked(ends: dict[str, str]) -> None:
    with running(ends, Impairment(duplicate=0.1)) as line, wire(line, ends) as up:
        up.send(range(DATAGRAMS))
        numbers = up.arrived(DATAGRAMS)
    assert set(numbers) == set(range(DATAGRAMS))
    copies = (len(numbers) - DATAGRAMS) / DATAGRAMS
    report.measured.append(f"duplication asked 0.1, measured {copies:.4f}")
    assert copies == pytest.approx(0.1, abs=bound(0.1))


def test_as_many_are_overtaken_as_asked(ends: dict[str, str]) -> None:
    # Held back for longer than the sending takes, so that there is always something to overtake.
    with running(ends, Impairment(reorder=0.1, reorder_by=0.5)) as line, wire(line, ends) as up:
        up.send(range(DATAGRAMS))
        numbers = up.arrived(DATAGRAMS)
    assert sorted(numbers) == list(range(DATAGRAMS))
    overtaken = late(numbers) / DATAGRAMS
    report.measured.append(f"reordering asked 0.1, measured {overtaken:.4f}")
    assert overtaken == pytest.approx(0.1, abs=bound(0.1))


def test_jitter_keeps_the_order(ends: dict[str, str]) -> None:
    with running(ends, Impairment(delay=0.01, jitter=0.02)) as line, wire(line, ends) as up:
        up.send(range(DATAGRAMS))
        assert up.arrived(DATAGRAMS) == list(range(DATAGRAMS))


def test_a_full_line_drops_what_comes_last(ends: dict[str, str]) -> None:
    with running(ends, Impairment(delay=0.5, queue=20_000)) as line, wire(line, ends) as up:
        up.send(range(1000))
        numbers = up.arrived(1000)
        fits = 20_000 // (100 + 8 + 20 + 14)
        assert numbers[:fits] == list(range(fits))
        assert up.counters.overflowed == 1000 - len(numbers) > 0


def test_the_weather_changes_while_packets_are_under_way(ends: dict[str, str]) -> None:
    with running(ends, Impairment(delay=0.5)) as line, wire(line, ends) as up:
        up.send(range(100))
        up.await_seen(100)
        line.impair(Impairment())
        up.send(range(100, 200))
        up.await_seen(200)
        line.impair(Impairment(loss=1.0))
        up.send(range(200, 300))
        assert up.arrived(300) == list(range(200))


def test_the_same_seed_loses_the_same_packets(ends: dict[str, str]) -> None:
    runs = []
    for _ in range(2):
        with running(ends, Impairment(loss=0.3)) as line, wire(line, ends) as up:
            up.send(range(500))
            runs.append(up.arrived(500))
    assert runs[0] == runs[1]


def test_ten_megabytes_over_tcp_arrive_whole(ends: dict[str, str]) -> None:
    rough = Impairment(delay=0.001, jitter=0.0005, loss=0.005, reorder=0.02, reorder_by=0.001, duplicate=0.01)
    data = bytes(range(256)) * 40_000
    with kernel.inside(ends["upper"]):
        listener = socket.socket()
    with kernel.inside(ends["lower"]):
        client = socket.socket()
    received = bytearray()

    def send() -> None:
        client.connect(listener.getsockname())
        client.sendall(data)
        client.shutdown(socket.SHUT_WR)

    with running(ends, rough) as line, listener, client:
        listener.settimeout(SECONDS)
        client.settimeout(SECONDS)
        listener.bind((ADDRESSES["upper"], 0))
        listener.listen()
        sender = threading.Thread(target=send)
        sender.start()
        server, _ = listener.accept()
        with server:
            server.settimeout(SECONDS)
            while piece := server.recv(1 << 18):
                received += piece
        sender.join()
        counters = line.counters()
    # Not the bytes themselves: pytest would explain ten million differences.
    assert hashlib.sha256(received).digest() == hashlib.sha256(data).digest()
    assert all(getattr(counters["up"], fate) > 0 for fate in ("lost", "reordered", "duplicated"))


def test_an_end_that_is_down_takes_nothing_and_the_line_lives(ends: dict[str, str]) -> None:
    with running(ends) as line:
        kernel.run(["ip", "link", "set", TAP, "down"], namespace=ends["upper"])
        with wire(line, ends) as up:
            up.send(range(10))
            wait_until(lambda: up.counters.refused == 10, "10 datagrams to be refused", SECONDS)
            kernel.run(["ip", "link", "set", TAP, "up"], namespace=ends["upper"])
            up.send(range(10, 20))
            up.await_seen(20)
            assert struct.unpack_from(">I", up.sink.recv(2048))[0] == 10


def test_the_interfaces_live_as_long_as_the_line(ends: dict[str, str]) -> None:
    line = line_between(ends, Impairment(), mtu=900)
    line.start()
    for name in ends.values():
        links = json.loads(kernel.run(["ip", "-json", "link", "show", TAP], namespace=name))
        assert [(link["mtu"], "UP" in link["flags"]) for link in links] == [(900, True)]
    assert kernel.processes_inside(ends.values()) == {line.pid}
    line.close()
    line.close()
    assert all(interfaces(name) == {"lo"} for name in ends.values())


PARENT = """
import sys
from lab.impairment import Impairment
from lab.leftovers import namespace_name
from lab.line import Line
line = Line((sys.argv[1], sys.argv[3]), (sys.argv[2], sys.argv[3]), mtu=1500, impairment=Impairment())
line.start()
print("ready", flush=True)
sys.stdin.read()
"""


def test_a_line_dies_with_its_parent(ends: dict[str, str]) -> None:
    command = [sys.executable, "-P", "-c", PARENT, *ends.values(), TAP]
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, env=os.environ | {"PYTHONPATH": TESTS}, **pipes) as parent:
        assert parent.stdout is not None
        try:
            assert parent.stdout.readline() == "ready\n"
            assert all(TAP in interfaces(name) for name in ends.values())
        finally:
            parent.send_signal(signal.SIGKILL)
    wait_until(lambda: all(interfaces(name) == {"lo"} for name in ends.values()), "both TAPs to vanish", SECONDS)
    wait_until(lambda: not kernel.processes_inside(ends.values()), "the line's process to end", SECONDS)


def test_what_cannot_be_made_is_said_in_one_line_and_leaves_nothing(ends: dict[str, str]) -> None:
    lower, upper = ends.values()
    for first, second, mtu, text in [
        (("overlay-lab-nowhere", TAP), (upper, TAP), 1500, r"overlay-lab-nowhere"),
        ((lower, TAP), ("overlay-lab-nowhere", TAP), 1500, r"overlay-lab-nowhere"),
        ((lower, TAP), (lower, TAP), 1500, rf"cannot make the interface {TAP} in {lower}: .*busy"),
        ((lower, TAP), (upper, TAP), 100_000, r"mtu greater than device maximum"),
    ]:
        line = Line(first, second, mtu=mtu, impairment=Impairment())
        with pytest.raises(LabError, match=text) as raised:
            line.start()
        assert "\n" not in str(raised.value)
        line.close()
        assert all(interfaces(name) == {"lo"} for name in ends.values())


def test_a_line_that_does_not_run_says_so(ends: dict[str, str]) -> None:
    line = line_between(ends, Impairment())
    for call in (lambda: line.pid, line.counters, lambda: line.impair(Impairment())):
        with pytest.raises(LineError, match=r"is not running: call start\(\)$"):
            call()
    line.start()
    with pytest.raises(LineError, match="is running already"):
        line.start()
    line.close()


def test_a_line_that_hangs_is_ended_by_force(ends: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    line = line_between(ends, Impairment())
    line.start()
    monkeypatch.setattr("lab.line.ANSWER_SECONDS", 0.1)
    os.kill(line.pid, signal.SIGSTOP)
    with pytest.raises(LineError, match=r"failed: it hung for 0.1 s and was killed$"):
        line.close()
    assert all(interfaces(name) == {"lo"} for name in ends.values())


def test_an_interface_that_is_taken_away_ends_the_line_with_a_reason(ends: dict[str, str]) -> None:
    line = line_between(ends, Impairment())
    line.start()
    kernel.run(["ip", "link", "delete", TAP], namespace=ends["lower"])
    wait_until(lambda: not kernel.processes_inside(ends.values()), "the line to end", SECONDS)
    with pytest.raises(LineError, match="failed: an interface has been taken away"):
        line.counters()
    line.close()
    line.start()
    kernel.run(["ip", "link", "delete", TAP], namespace=ends["upper"])
    wait_until(lambda: not kernel.processes_inside(ends.values()), "the line to end", SECONDS)
    with pytest.raises(LineError, match="failed: an interface has been taken away"):
        line.close()


def test_the_initial_weather_holds_from_the_first_packet(ends: dict[str, str]) -> None:
    blackout = Impairment(loss=1.0)
    with running(ends, blackout) as line, wire(line, ends) as up:
        assert up.counters == Counters()
        up.send(range(10))
        assert up.arrived(10) == []
