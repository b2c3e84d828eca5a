"""The benchmark of frames runs, looks at what arrives, and says what it found as it promises; no figure is judged."""

import asyncio
import json
import os
import signal
import sys
from asyncio.subprocess import PIPE
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
from benchmark_support import ENVIRONMENT, FOLDER, run_tiny

from overlay.testing import until

sys.path.insert(0, str(FOLDER))

import frames
import frames_bench
import frames_rivals
import frames_workloads
from frames_row import Row
from subjects import write_keys
from workloads import WrongDataError

KINDS = ("64 B", "1 KiB", "32 KiB", "1 KiB unreliable")
SOCKETS = "plain UDP sockets"
AIOQUIC = "aioquic DATAGRAM"
ROWS = {
    *((kind + figure, SOCKETS) for kind in KINDS for figure in ("", ", lost", ", p50", ", p99")),
    # 32 KiB don't fit its packets.
    *((kind + figure, AIOQUIC) for kind in KINDS if kind != "32 KiB" for figure in ("", ", lost", ", p50", ", p99")),
    *((f"flood to 2, {figure}", rival) for figure in ("each", "lost") for rival in (SOCKETS, AIOQUIC)),
    *(
        (f"routing beside {load}, {figure}", "idle link")
        for load in ("a stream", "bulk frames")
        for figure in ("p50", "p99")
    ),
    ("bulk frames meanwhile", "the stream"),
    *((f"one stopped, {figure}", "all alive") for figure in ("each other", "lost by the others")),
    *((f"one stopped, {figure}", None) for figure in ("sender's memory", "came back")),
    ("one stopped, back after", "age limit"),
}
REQUIRED = {
    ("routing beside a stream, p99", "idle link"): "<= 5 x",
    ("routing beside bulk frames, p99", "idle link"): "<= 5 x",
    ("one stopped, each other", "all alive"): ">= 0.9 x",
}
REQUIRED_OF_THE_QUICKEST = {
    ("1 KiB", SOCKETS): ">= 100,000, udp or tcp",
    ("1 KiB", AIOQUIC): ">= 5 x, udp or tcp",
}


@pytest.mark.parametrize(("transport", "loop"), [("quic", "uvloop"), ("udp", "asyncio"), ("tcp", "uvloop")])
def test_each_measurement_gives_a_row(transport: str, loop: str) -> None:
    done = run_tiny("frames.py", "--json", "--transport", transport, "--loop", loop)
    assert not done.returncode, done.stderr
    assert not done.stderr
    document: dict[str, Any] = json.loads(done.stdout)
    assert (document["loop"], document["repeat"], document["neighbours"]) == (loop, 1, 2)
    rows = {(row["name"], row["rival"] and row["rival"]["name"]): row for row in document["rows"]}
    assert len(rows) == len(document["rows"])
    assert set(rows) == ROWS
    required = REQUIRED | (REQUIRED_OF_THE_QUICKEST if transport != "quic" else {})
    for key, row in rows.items():
        assert row["transport"] == transport
        assert len(row["ours"]["runs"]) == 1
        assert row["rival"] is None or len(row["rival"]["runs"]) == 1
        assert row["samples"] == ((6 if "routing" in row["name"] else 5) if row["unit"] == "us" else None)
        assert row["better"] == ("more" if row["unit"] in {"1/s", "MB/s"} else "less")
        assert row["required"] == required.get(key)
        assert row["met"] in ({True, False} if key in required else {None})
        if row["unit"] in {"1/s", "MB/s", "us"}:
            assert min(row["ours"]["median"], row["rival"]["median"]) > 0
    for kind in ("64 B", "1 KiB", "32 KiB"):
        assert rows[f"{kind}, lost", SOCKETS]["ours"]["median"] == 0
    assert rows["one stopped, lost by the others", "all alive"]["ours"]["median"] == 0
    # All that went to the neighbour that did not read, and not before 0.3 s had passed.
    assert rows["one stopped, came back", None]["ours"]["median"] == (4 if transport == "quic" else 20)
    assert rows["one stopped, came back", None]["ratio"] is None
    assert rows["one stopped, back after", "age limit"]["ours"]["median"] >= 0.3


@pytest.mark.parametrize(("met", "code"), [(True, 0), (None, 0), (False, 1)])
def test_a_figure_that_is_not_reached_fails_the_check(
    met: bool | None, code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """And without `--check` it does not."""
    required = None if met is None else ">= 1 x"
    row = Row(
        name="64 B, p99", transport="tcp", unit="us", ours=[3.0, 2.0, 1.0], rival=SOCKETS, theirs=[4.0],
        samples=1234, required=required, met=met,
    )  # fmt: skip
    idle = Row(name="64 B, lost", transport="tcp", unit="%", ours=[0.0], rival=SOCKETS, theirs=[0.0])
    alone = Row(name="came back", transport="tcp", unit="1", ours=[77.0])
    monkeypatch.setattr(frames_bench.Bench, "rows", lambda _: [row, idle, alone])
    monkeypatch.setattr(sys, "argv", ["frames.py", "--size", "tiny", "--check"])
    assert frames.main() == code
    shown = capsys.readouterr().out
    assert SOCKETS in shown
    assert "0.50" in shown
    assert "3 x 1,234" in shown
    assert "77.0" in shown
    assert ("NO" in shown) == bool(code)
    monkeypatch.setattr(sys, "argv", ["frames.py", "--size", "tiny"])
    assert frames.main() == 0


def test_a_failed_measurement_is_an_error_and_not_a_figure() -> None:
    done = run_tiny("frames.py", "--repeat", "-1")
    assert done.returncode == 2
    assert "--repeat" in done.stderr


def test_the_help_tells_what_it_does_by_default(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["frames.py", "--help"])
    with pytest.raises(SystemExit):
        frames.main()
    shown = " ".join(capsys.readouterr().out.split())
    assert "how much work; default: full" in shown
    assert "default: 5 with full, 3 with quick, 1 with tiny" in shown


def test_two_sizes_are_refused() -> None:
    done = run_tiny("frames.py", "--quick")
    assert done.returncode == 2
    assert "not allowed with argument --size" in done.stderr


async def test_an_interrupt_ends_all_of_its_processes_without_a_word() -> None:
    """Ctrl-C goes to all processes of a terminal at once."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, str(FOLDER / "frames.py"), "--size", "tiny", "--repeat", "1000",
        stdout=PIPE, stderr=PIPE, env=ENVIRONMENT, start_new_session=True,
    )  # fmt: skip
    measuring = psutil.Process(process.pid)
    await until(lambda: len(measuring.children()) >= 2, seconds=40)
    workers = measuring.children()
    os.killpg(process.pid, signal.SIGINT)
    said = await process.communicate()
    assert (process.returncode, *said) == (130, b"", b"")
    assert not any(worker.is_running() for worker in workers)


async def test_what_arrives_is_counted_once_and_its_delay_noted() -> None:
    collector = frames_workloads.Collector()
    collector.expect(7, 3, 64)
    for number in (2, 0, 1):
        collector.take(frames_workloads.frame(7, number, 64))
    report = await collector.report(may_lose=False)
    assert report["received"] == 3
    assert 0 < report["median"] <= report["tail"]


async def test_frames_of_another_measurement_do_not_count() -> None:
    collector = frames_workloads.Collector()
    collector.expect(7, 1, 64)
    for other in (frames_workloads.LOAD, 6):
        collector.take(frames_workloads.frame(other, 0, 1024))
    collector.take(frames_workloads.frame(7, 0, 64))
    assert (await collector.report(may_lose=False))["received"] == 1


def _changed(data: bytes) -> bytes:
    return data[:-1] + bytes([data[-1] ^ 1])


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: [frames_workloads.frame(7, 0, 64)] * 2,
        lambda: [_changed(frames_workloads.frame(7, 0, 64))],
        lambda: [frames_workloads.frame(7, 0, 64)[:-1]],
        lambda: [frames_workloads.frame(7, 2, 64)],
        lambda: [_changed(frames_workloads.frame(frames_workloads.LOAD, 0, 64))],
    ],
    ids=["twice", "changed", "short", "never sent", "changed beside it"],
)
async def test_what_was_not_sent_is_an_error(wrong: Callable[[], list[bytes]]) -> None:
    collector = frames_workloads.Collector()
    collector.expect(7, 2, 64)
    for data in wrong():
        collector.take(data)
    with pytest.raises(WrongDataError):
        await collector.report(may_lose=True)


async def test_a_loss_is_told_of_those_that_may_lose_and_an_error_of_the_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(frames_workloads, "QUIET", 0.01)
    monkeypatch.setattr(frames_workloads, "STUCK", 0.01)
    collector = frames_workloads.Collector()
    collector.expect(7, 2, 64)
    collector.take(frames_workloads.frame(7, 1, 64))
    assert (await collector.report(may_lose=True))["received"] == 1
    with pytest.raises(WrongDataError):
        await collector.report(may_lose=False)
    collector.expect(8, 2, 64)
    with pytest.raises(WrongDataError):
        await collector.report(may_lose=True)


async def test_a_load_runs_for_as_long_as_it_is_measured() -> None:
    """And begins before the first frame."""
    sent: list[bytes] = []
    order: list[str] = []

    class Recording:
        async def send(self, frame: bytes, *, reliable: bool = True, control: bool = False) -> None:
            assert control
            sent.append(frame)
            order.append("frame")

        async def flood(self, frame: bytes) -> None:
            raise AssertionError

        async def flush(self) -> None:
            return

    async def load(busy: asyncio.Event, stop: asyncio.Event) -> float:
        order.append("busy")
        busy.set()
        await stop.wait()
        order.append("stopped")
        return 12.5

    report = await frames_workloads.beside(Recording(), 1, 3, 64, load)
    assert report["load"] == 12.5
    assert order == ["busy", "frame", "frame", "frame", "stopped"]
    assert len(set(sent)) == 3


@pytest.mark.parametrize("name", ["sockets", "aioquic"])
async def test_a_rival_floods_all_its_neighbours(name: str, tmp_path: Path) -> None:
    write_keys(tmp_path)
    rival = frames_rivals.PlainUdp() if name == "sockets" else frames_rivals.AioquicDatagrams(tmp_path)
    one, other = frames_workloads.Collector(), frames_workloads.Collector()
    async with rival.receiver(one.take) as here, rival.receiver(other.take) as there:
        async with rival.sender([here, there]) as sender:
            for collector in (one, other):
                collector.expect(7, 10, 1024)
            await frames_workloads.flood(sender, 7, 10, 1024)
            for collector in (one, other):
                assert (await collector.report(may_lose=False))["received"] == 10
