"""`overlay demo`: the main job, and that nothing of it stays behind."""

import os
import re
import select
import signal
from pathlib import Path

import pytest
from cli_support import finish, overlay, start

SMALL = ("demo", "--size", "4M", "--rate", "8M")


def temporary(path: Path) -> dict[str, str]:
    path.mkdir()
    return os.environ | {"TMPDIR": str(path)}


def test_the_demo_survives_the_loss_of_udp(tmp_path: Path) -> None:
    """All three phases carry bytes, and both digests agree."""
    result = overlay(*SMALL, "--json", env=temporary(tmp_path / "tmp"))
    assert (result.code, result.err) == (0, "")
    document = result.json
    assert document["ok"] is True
    assert document["sha256"]["sent"] == document["sha256"]["received"]
    assert document["files"] == [{"name": "demo.bin", "bytes": 4 * 2**20, "sha256": document["sha256"]["sent"]}]
    assert sorted(document["bytes_by_transport"]) == ["quic", "tcp"]
    assert sum(document["bytes_by_transport"].values()) > 4 * 2**20
    assert [phase["udp"] for phase in document["phases"]] == ["open", "blocked", "restored"]
    assert all(phase["carried"] for phase in document["phases"])
    assert document["phases"][1]["bytes_by_transport"]["tcp"] > 2**18
    assert document["phases"][2]["bytes_by_transport"]["quic"] > 2**16
    assert max(document["stalls_ms"]) == max(phase["stall_ms"] for phase in document["phases"])
    assert document["seconds"] > 0
    assert list((tmp_path / "tmp").iterdir()) == []


def test_the_demo_tells_a_person_what_it_shows() -> None:
    """Events while it runs, a table at the end."""
    result = overlay(*SMALL)
    assert result.code == 0
    assert re.search(r"now over tcp://127(.|\n)*now over quic://127", result.err)
    for text in ("UDP works", "UDP dropped", "UDP works again", "received in all", "Not one byte was lost"):
        assert text in result.out
    sent, received = re.findall(r"SHA-256 (?:sent|received) +([0-9a-f]{64})", result.out)
    assert sent == received


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_the_demos_end_is_the_end_of_both_processes(tmp_path: Path, number: signal.Signals) -> None:
    """Ctrl-C ends the receiver, too, and removes the files; even a killed demo leaves no process."""
    with start("demo", "--rate", "1M", env=temporary(tmp_path / "tmp")) as process:
        assert process.stderr is not None
        found = re.match(r"receiver: process (\d+),", process.stderr.readline())
        assert found is not None
        child = os.pidfd_open(int(found[1]))
        result = finish(process, number)
        readable, _, _ = select.select([child], [], [], 20)
        os.close(child)
        assert readable
        if number is signal.SIGINT:
            assert result.code == 130
            assert list((tmp_path / "tmp").iterdir()) == []
