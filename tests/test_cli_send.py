"""`overlay send` and `overlay receive`: what arrives, what is said, and how they end."""

import hashlib
import json
import os
import signal
import subprocess
from pathlib import Path

import pytest
from cli_support import LISTEN, finish, overlay, receiving, send, start

from overlay import Identity, Ticket

CONTENT = os.urandom(700_001)
TEXT = CONTENT.hex()
ZEROS = "0" * 16 * 2**20
"""More than all windows and buffers on the way: the receiver has begun to write when a pipe has taken it."""
SHA256 = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "data.bin"
    path.write_bytes(CONTENT)
    return path


@pytest.mark.parametrize("transport", ["quic", "udp", "tcp"])
def test_a_file_arrives_and_both_sides_report_it(tmp_path: Path, file: Path, transport: str) -> None:
    """The JSON of both sides names the same bytes; `--once` ends with the sender."""
    with receiving(tmp_path / "inbox", "--once") as receiver:
        sent = send(file, receiver.ticket, "--json", "--transport", transport)
        assert (sent.code, sent.err) == (0, "")
        document = sent.json
        assert document["files"] == [{"name": "data.bin", "bytes": len(CONTENT), "sha256": SHA256}]
        assert document["refused"] == []
        assert list(document["bytes_by_transport"]) == [transport]
        assert document["bytes_by_transport"][transport] > len(CONTENT)
        assert all(isinstance(one, float) for one in document["stalls_ms"])
        assert document["seconds"] > 0
        [path] = document["paths"]
        assert (path["transport"], path["purpose"], path["tried"]) == (transport, "connect", [])
        assert path["at_ms"] >= path["connect_ms"] > 0
        assert path["why"].startswith("the first to answer, after ")
        received = receiver.event()
        assert received["event"] == "received"
        assert (received["name"], received["bytes"], received["sha256"]) == ("data.bin", len(CONTENT), SHA256)
        assert len(received["from"]) == 52
        assert received["seconds"] > 0
        assert finish(receiver.process).code == 0
        assert (tmp_path / "inbox" / "data.bin").read_bytes() == CONTENT
        assert receiver.names == ["data.bin"]


def test_several_files_and_empty_ones_arrive_in_one_command(tmp_path: Path, file: Path) -> None:
    """`--once` takes all files of one command; empty and tiny ones are files, too."""
    (tmp_path / "empty").touch()
    (tmp_path / "tiny").write_bytes(b"x")
    with receiving(tmp_path / "inbox", "--once") as receiver:
        sent = send(file, tmp_path / "empty", tmp_path / "tiny", receiver.ticket)
        assert sent.code == 0
        assert "sent 3 files" in sent.err
        assert finish(receiver.process).code == 0
        assert receiver.names == ["data.bin", "empty", "tiny"]
        assert (receiver.directory / "empty").read_bytes() == b""
        assert (receiver.directory / "tiny").read_bytes() == b"x"


def test_standard_input_is_sent_under_a_name(tmp_path: Path, file: Path) -> None:
    """From a pipe without a known size, and from a redirected file."""
    with receiving(tmp_path / "inbox") as receiver:
        with start("send", *LISTEN, "-", receiver.ticket, "--name", "piped", stdin=subprocess.PIPE) as process:
            process.communicate(TEXT, timeout=40)
            assert process.returncode == 0
        with file.open("rb") as redirected:
            assert send("-", receiver.ticket, stdin=redirected).code == 0
        assert send("-", receiver.ticket, "--name", "nothing").code == 0
        assert receiver.names == ["nothing", "piped", "stdin"]
        assert (receiver.directory / "piped").read_text() == TEXT
        assert (receiver.directory / "stdin").read_bytes() == CONTENT
        assert (receiver.directory / "nothing").read_bytes() == b""


def test_a_named_pipe_is_read_to_its_end(tmp_path: Path) -> None:
    """Its writer may come later than we do."""
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    with receiving(tmp_path / "inbox") as receiver, start("send", *LISTEN, fifo, receiver.ticket) as process:
        assert process.stderr is not None
        assert process.stderr.readline().startswith("connected to ")
        fifo.write_bytes(CONTENT)
        assert finish(process).code == 0
        assert (receiver.directory / "fifo").read_bytes() == CONTENT


def test_ctrl_c_while_it_waits_for_input(tmp_path: Path) -> None:
    """A thread that is stuck in read(2) does not hold the process back."""
    with receiving(tmp_path / "inbox") as receiver:
        with start("send", *LISTEN, "-", receiver.ticket, stdin=subprocess.PIPE) as process:
            assert process.stderr is not None
            assert process.stderr.readline().startswith("connected to ")
            process.send_signal(signal.SIGINT)
            assert process.wait(40) == 130


def test_a_receiver_whose_reader_is_gone_ends(tmp_path: Path, file: Path) -> None:
    """As in `overlay receive --json | head -1`: one exit code, no complaints of Python."""
    with receiving(tmp_path / "inbox") as receiver:
        assert receiver.process.stdout is not None
        receiver.process.stdout.close()
        send(file, receiver.ticket)
        assert receiver.process.wait(40) == 1
        assert receiver.process.stderr is not None
        assert receiver.process.stderr.read() == ""


def test_a_limit_holds_the_rate_down(tmp_path: Path, file: Path) -> None:
    """700 KB at 1 MiB/s cannot be through in less than half a second."""
    with receiving(tmp_path / "inbox") as receiver:
        sent = send(file, receiver.ticket, "--limit-rate", "1M", "--json")
        assert sent.code == 0
        assert sent.json["seconds"] > 0.5


def test_the_ticket_stands_alone_on_a_line_of_a_pipe(tmp_path: Path) -> None:
    """A script reads one line and has the ticket; the rest is on standard error."""
    with start("receive", tmp_path, "--identity", tmp_path / "key.pem", *LISTEN) as process:
        assert process.stdout is not None
        ticket = Ticket.parse(process.stdout.readline())
        assert ticket.peer_id == Identity.load_or_create(tmp_path / "key.pem").peer_id
        result = finish(process, signal.SIGINT)
        assert (result.code, result.out) == (130, "")


def test_words_instead_of_json(tmp_path: Path, file: Path) -> None:
    """Without `--json` both sides tell a person the same, on standard error."""
    with start("receive", tmp_path, "--identity", tmp_path / "key.pem", "--once", *LISTEN) as process:
        assert process.stdout is not None
        (tmp_path / "new").write_bytes(CONTENT)
        sent = send(tmp_path / "new", process.stdout.readline().strip(), "--name", "renamed")
        assert sent.code == 0
        assert sent.out == ""
        assert "SHA-256 verified" in sent.err
        assert "over quic" in sent.err
        received = finish(process)
        assert received.code == 0
        assert "received renamed: 683.6 KiB from" in received.err


def test_nobody_there_is_unreachable(tmp_path: Path, file: Path) -> None:
    """Exit code 3, one line, and one for each address that was tried."""
    with receiving(tmp_path / "inbox") as receiver:
        ticket = receiver.ticket
    sent = send(file, ticket, "--timeout", "0.5")
    assert sent.code == 3
    first, *attempts = sent.err.splitlines()
    assert first.startswith("overlay: cannot reach ")
    assert len(attempts) == 3
    assert all(line.startswith("  ") for line in attempts)
    document = send(file, ticket, "--timeout", "0.5", "--json").json
    assert document["exit_code"] == 3
    assert len(document["attempts"]) == 3


def test_somebody_else_is_a_wrong_identity(tmp_path: Path, file: Path) -> None:
    """Exit code 4 when another key answers at the ticket's address."""
    with receiving(tmp_path / "inbox") as receiver:
        ticket = Ticket(Identity.generate().peer_id, Ticket.parse(receiver.ticket).addresses)
        assert send(file, ticket).code == 4
        assert overlay("ping", *LISTEN, ticket, "-c", "1").code == 4


def test_another_key_than_from_is_refused(tmp_path: Path, file: Path) -> None:
    """Exit code 6 for all but the key that `--from` names."""
    key = tmp_path / "sender.pem"
    peer_id = Identity.load_or_create(key).peer_id
    with receiving(tmp_path / "inbox", "--from", peer_id) as receiver:
        assert send(file, receiver.ticket).code == 6
        assert send(file, receiver.ticket, "--transport", "tcp").code == 6
        assert receiver.names == []
        assert send(file, receiver.ticket, "--identity", key).code == 0
        assert receiver.names == ["data.bin"]


def test_a_receiver_that_is_gone_for_good_is_a_loss(tmp_path: Path) -> None:
    """Exit code 5 when the resume time is over without a path."""
    with receiving(tmp_path / "inbox") as receiver:
        arguments = ("-", receiver.ticket, "--resume-timeout", "0.3", "--transport", "tcp")
        with start("send", *LISTEN, *arguments, stdin=subprocess.PIPE) as process:
            assert process.stdin is not None
            process.stdin.write(ZEROS)
            receiver.process.kill()
            assert process.wait(40) == 5
            assert process.stderr is not None
            assert "Traceback" not in process.stderr.read()


def test_a_receiver_killed_leaves_no_file_under_its_name(tmp_path: Path) -> None:
    """SIGKILL cannot be cleaned up after, but what is left has a temporary name."""
    with receiving(tmp_path / "inbox") as receiver:
        with start("send", *LISTEN, "-", receiver.ticket, "--transport", "tcp", stdin=subprocess.PIPE) as process:
            assert process.stdin is not None
            process.stdin.write(ZEROS)
            receiver.process.kill()
            process.kill()
        assert [name.endswith(".part") for name in receiver.names] == [True]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("side", ["sender", "receiver"])
def test_interrupted_in_the_middle_both_sides_end_cleanly(tmp_path: Path, side: str, number: signal.Signals) -> None:
    """No traceback, no temporary file; 130 here and 5 there."""
    with receiving(tmp_path / "inbox", "--once") as receiver:
        command = ("send", *LISTEN, "-", receiver.ticket, "--transport", "tcp", "--json")
        with start(*command, stdin=subprocess.PIPE) as process:
            assert process.stdin is not None
            process.stdin.write(ZEROS)
            (process if side == "sender" else receiver.process).send_signal(number)
            code = process.wait(40)
            assert process.stdout is not None
            assert process.stderr is not None
            out, err = process.stdout.read(), process.stderr.read()
        other = finish(receiver.process)
        assert "Traceback" not in err
        assert (code, other.code) == ((130, 5) if side == "sender" else (5, 130))
        events = [json.loads(line)["event"] for line in other.out.splitlines()]
        assert events == (["lost"] if side == "sender" else [])
        assert receiver.names == []
        assert (out == "") == (side == "sender")
