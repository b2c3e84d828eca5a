"""The benchmarks run, check what arrives, and say what they found as they promise; no figure is judged."""

import json
import sys
from typing import Any

import pytest
from benchmark_support import FOLDER, run_tiny

sys.path.insert(0, str(FOLDER))

import workloads

ROWS = {
    "quic": {"goodput", "connect", "echo", "messages", "first echo, early", "first echo", "idle session"},
    "udp": {
        "goodput",
        "goodput, 64 KB packets",
        "connect",
        "echo",
        "messages",
        "flood of strangers",
        "goodput in a flood",
        "connections in a flood",
        "idle session",
    },
    "tcp": {"goodput", "connect", "echo", "messages", "idle session"},
}
REQUIRED = {
    ("goodput", "quic"),
    ("goodput", "udp"),
    ("goodput", "tcp"),
    ("first echo, early", "quic"),
    ("goodput in a flood", "udp"),
    ("connections in a flood", "udp"),
}


@pytest.mark.parametrize(("transport", "loop"), [("quic", "uvloop"), ("udp", "uvloop"), ("tcp", "asyncio")])
def test_each_measurement_gives_a_row(transport: str, loop: str) -> None:
    done = run_tiny("transports.py", "--json", "--transport", transport, "--loop", loop)
    assert not done.returncode, done.stderr
    assert not done.stderr
    document: dict[str, Any] = json.loads(done.stdout)
    assert document["loop"] == loop
    assert document["repeat"] == 1
    assert document["sessions"] == 5
    assert {row["name"] for row in document["rows"]} == ROWS[transport]
    for row in document["rows"]:
        assert row["transport"] == transport
        assert row["better"] in {"more", "less"}
        assert len(row["ours"]["runs"]) == len(row["rival"]["runs"]) == 1
        assert row["ours"]["runs"] == [row["ours"]["median"]]
        if row["name"] != "idle session":
            assert row["ratio"] == pytest.approx(row["ours"]["median"] / row["rival"]["median"])
            assert row["ours"]["median"] > 0
        if (row["name"], transport) in REQUIRED:
            assert row["required"]
            assert row["met"] in {True, False}
        else:
            assert row["required"] is None
            assert row["met"] is None


def test_the_table_names_what_is_compared() -> None:
    done = run_tiny("transports.py", "--transport", "tcp", "--loop", "asyncio")
    assert not done.returncode, done.stderr
    for word in ("goodput", "connect", "echo", "messages", "idle session", "plain asyncio TLS"):
        assert word in done.stdout


def test_a_failed_measurement_is_an_error_and_not_a_figure() -> None:
    done = run_tiny("transports.py", "--repeat", "-1")
    assert done.returncode == 2
    assert "--repeat" in done.stderr


class Recorded:
    """A channel with what somebody has sent."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.answer = b""

    async def write(self, data: bytes, /) -> None:
        self.answer += data

    async def write_eof(self) -> None:
        return

    async def read(self, size: int, /) -> bytes:
        data, self.data = self.data[:size], self.data[size:]
        return data

    async def readexactly(self, size: int, /) -> bytes:
        return await self.read(size)


async def test_every_byte_is_checked_where_it_arrives() -> None:
    size = 3 * workloads.READ
    sent = bytearray(b"".join(workloads.expected(offset, 1000) for offset in range(0, size + 1000, 1000))[:size])
    right = Recorded(workloads.REQUEST.pack(b"S", size) + sent)
    await workloads.serve(right)
    assert workloads.REPORT.unpack(right.answer)[0] == size
    sent[size // 2] ^= 1
    with pytest.raises(workloads.WrongDataError):
        await workloads.serve(Recorded(workloads.REQUEST.pack(b"S", size) + sent))


@pytest.mark.parametrize("shift", [1, 16, 1024, 64 * 1024, 256 * 1024, 1024 * 1024])
def test_bytes_that_were_moved_do_not_match(shift: int) -> None:
    with pytest.raises(workloads.WrongDataError):
        workloads.check(workloads.expected(shift, 1024), 0)


async def test_messages_are_checked_one_by_one() -> None:
    data = workloads.expected(0, 2 * workloads.MESSAGE)
    twice = workloads.REQUEST.pack(b"M", 2) + data[: workloads.MESSAGE] * 2
    with pytest.raises(workloads.WrongDataError):
        await workloads.serve(Recorded(twice))


async def test_bytes_that_are_missing_are_no_goodput() -> None:
    cut = Recorded(workloads.REQUEST.pack(b"S", 2048) + workloads.expected(0, 1024))
    await workloads.serve(cut)
    assert workloads.REPORT.unpack(cut.answer)[0] == 1024
    short = Recorded(workloads.REPORT.pack(1024, 1.0))
    with pytest.raises(workloads.WrongDataError):
        await workloads.goodput(short, 2048)
