"""Processes inside hosts: where they run, what they say, and that they end."""

import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from lab import Host, LabError, Network, Process
from lab.kernel import NAMESPACES, processes_inside, wait_until
from lab.processes import LINES, TAIL

pytestmark = pytest.mark.lab


@pytest.fixture
def host() -> Iterator[Host]:
    with Network() as network:
        yield network.host("a")


def shell(host: Host, script: str, **options: str) -> Process:
    return host.start(["sh", "-c", script], **options)  # type: ignore[arg-type]


def test_runs_inside_its_host(host: Host) -> None:
    """And nowhere else, though it was started from elsewhere."""
    process = host.start(["sleep", "1000"])
    assert Path(f"/proc/{process.pid}/ns/net").stat().st_ino == (NAMESPACES / host.namespace).stat().st_ino
    assert processes_inside([host.namespace]) == {process.pid}


def test_output_is_kept_by_line_with_its_time(host: Host) -> None:
    """Both streams; `line` reads the standard output only."""
    process = shell(host, "echo one; echo oops >&2; sleep 0.2; echo two; printf three", name="talker")
    assert process.line() == "one"
    assert process.line("thr") == "three"
    assert process.wait() == 0
    lines = {output.text: output for output in process.output}
    assert {text: output.stream for text, output in lines.items()} == {
        "one": "out",
        "oops": "err",
        "two": "out",
        "three": "out",
    }
    assert process.started < lines["one"].time < lines["two"].time
    assert lines["one"].time >= process.started
    assert "oops" in process.report()


def test_what_does_not_come_is_an_error_with_the_output(host: Host) -> None:
    """Whether the process goes on or has ended."""
    process = shell(host, "echo here >&2; echo wrong; exec sleep 1000", name="mute")
    wait_until(lambda: len(process.output) == 2, "both lines")
    with pytest.raises(LabError, match=r"(?s)^mute wrote no line with 'right' in 0.1 s\nmute \(pid.*err here"):
        process.line("right", timeout=0.1)
    with pytest.raises(LabError, match=r"mute still runs after 0\.1 s"):
        process.wait(timeout=0.1)
    process.send_signal(signal.SIGINT)
    assert process.wait() == -signal.SIGINT
    with pytest.raises(LabError, match=r"mute ended its output before a line with ''"):
        process.line()


def test_stop_is_polite_first(host: Host) -> None:
    """Who does not listen to SIGTERM is killed."""
    polite = shell(host, "trap 'echo bye; exit 3' TERM; echo ready; while :; do sleep 0.01; done")
    deaf = shell(host, "trap '' TERM; echo ready; while :; do sleep 0.01; done")
    for process in (polite, deaf):
        process.line("ready")
    assert polite.stop() == 3
    assert polite.line() == "bye"
    assert deaf.stop(grace=0.1) == -signal.SIGKILL
    assert deaf.stop() == -signal.SIGKILL


def test_output_is_bounded(host: Host) -> None:
    """A process that nobody listens to can write as much as it likes; the end of it is kept."""
    process = shell(host, f"seq 1 {3 * LINES}; head -c 200000 /dev/zero | tr '\\0' x")
    assert process.wait() == 0
    assert len(process.output) == LINES
    assert [len(output.text) for output in process.output[-4:]] == [65536, 65536, 65536, 200000 - 3 * 65536]
    assert len(process.report().splitlines()) == TAIL + 1


def test_environment_is_added(host: Host) -> None:
    """And Python's output is not held back."""
    program = "import os, time; print(os.environ['WORD']); time.sleep(1000)"
    process = host.start([sys.executable, "-c", program], environment={"WORD": "hello"})
    assert process.line() == "hello"


def test_a_program_that_does_not_exist_is_told_in_its_output(host: Host) -> None:
    """It ends at once."""
    process = host.start(["no-such-program"])
    assert process.wait() != 0
    assert "no-such-program" in process.report()


def test_ends_with_the_thread_that_started_it(host: Host) -> None:
    """So nothing outlives a killed test run, whose threads all end."""
    started: list[Process] = []

    def start() -> None:
        started.append(shell(host, "echo ready; exec sleep 1000"))
        started[0].line("ready")

    thread = threading.Thread(target=start)
    thread.start()
    thread.join()
    assert started[0].wait() == -signal.SIGKILL


def test_leaving_the_network_ends_all_and_their_children() -> None:
    """Those who do not listen, and those whom nobody has started by name."""
    with Network() as network:
        host = network.host("a")
        process = shell(host, "setsid sleep 1000 & setsid sh -c 'trap \"\" TERM; sleep 1000' & echo ready; wait")
        process.line("ready")
        wait_until(lambda: len(processes_inside([host.namespace])) >= 4, "the children")
    assert process.code == -signal.SIGTERM
    assert not (NAMESPACES / host.namespace).exists()


def test_a_failure_shows_what_the_processes_said() -> None:
    """As a note of the error, which pytest prints."""
    with pytest.raises(ZeroDivisionError) as caught, Network() as network:
        process = shell(
            network.host("a"), "trap 'echo last words; exit' TERM; echo ready; while :; do sleep 0.01; done"
        )
        process.line("ready")
        raise ZeroDivisionError
    assert "last words" in "\n".join(caught.value.__notes__)
