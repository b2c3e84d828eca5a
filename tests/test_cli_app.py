"""The command line itself: help, usage errors, `id` and `ping`."""

import logging
import os
import pty
import re
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from cli_support import LISTEN, finish, overlay, receiving, send, start

import overlay as library
from overlay import Identity, PeerId
from overlay.cli.app import main
from overlay.cli.options import default_identity
from overlay.cli.output import parse_size, size_text


@pytest.fixture
def logger() -> Iterator[None]:
    """The command line takes over the library's log, for its process."""
    log = logging.getLogger("overlay")
    handlers, propagate = list(log.handlers), log.propagate
    yield
    log.handlers, log.propagate = handlers, propagate


@pytest.fixture(scope="module")
def ticket() -> str:
    return f"overlay:{Identity.generate().peer_id}@127.0.0.1:9"


def test_version_and_help_teach() -> None:
    """The help shows how to begin, and what the exit codes mean."""
    assert overlay("--version").out == f"overlay {library.__version__}\n"
    shown = overlay("--help")
    assert shown.code == 0
    text = " ".join(shown.out.split())
    assert all(command in text for command in ("id", "receive", "send", "ping", "demo"))
    codes = "0 done; 1 other failure; 2 wrong usage; 3 unreachable; 4 somebody else answers (wrong identity); "
    assert codes + "5 lost after it was connected; 6 refused by the other side; 130 interrupted" in text
    assert overlay().code == 2
    assert "port 9330" in " ".join(overlay("run", "--help").out.split())
    for command in ("receive", "send"):
        assert "xample" in overlay(command, "--help").out


WRONG: list[tuple[list[str], str]] = [
    (["frobnicate"], "frobnicate"),
    (["send"], "FILE"),
    (["send", "{file}", "notaticket"], "'notatick' in 'notaticket': a ticket starts with 'overlay:'"),
    (["send", "{file}", "overlay:abc@1.2.3.4:5"], "'abc' in"),
    (["send", "{file}", "{ticket}9999"], "'99999'"),
    (["send", "{file}", "{ticket},[::1:9"], "'[::1:9' in"),
    (["send", "{ticket}", "{file}"], "the ticket goes last"),
    (["send", "{file}.missing", "{ticket}"], "No such file"),
    (["send", "{directory}", "{ticket}"], "is a directory"),
    (["send", "{file}", "{file}", "{ticket}"], "two files would be called 'plain'"),
    (["send", "{file}", "{ticket}", "--name", "a/b"], "path in it"),
    (["send", "{file}", "{ticket}", "--limit-rate", "fast"], "'fast' is no size"),
    (["send", "{file}", "{ticket}", "--transport", "pigeon"], "pigeon"),
    (["send", "{file}", "{ticket}", "--listen", "nonsense"], "nonsense"),
    (["ping", "overlay:"], "'@' and an address are missing"),
    (["ping", "{ticket}", "-c", "0"], "-c"),
    (["receive", "{directory}/missing", "--identity", "{key}", "--listen", "127.0.0.1:0"], "No such file"),
    (["receive", "{directory}", "--identity", "{key}", "--from", "me"], "'me': a peer id has 52 characters"),
    (["demo", "--size", "1K"], "--size is at least"),
]


@pytest.mark.usefixtures("logger")
def test_wrong_usage_is_one_line_and_2(tmp_path: Path, ticket: str, capsys: pytest.CaptureFixture[str]) -> None:
    """It names the part at fault, and nothing has happened."""
    file = tmp_path / "plain"
    file.write_bytes(b"x")
    names = {"file": file, "directory": tmp_path, "ticket": ticket, "key": tmp_path / "key.pem"}
    for arguments, part in WRONG:
        code = main([one.format(**names) for one in arguments])
        out, err = capsys.readouterr()
        assert (code, out, err.count("\n")) == (2, "", 1), (arguments, err)
        assert part in err
    assert overlay("send", file, "notaticket") == (2, "", f"overlay: {WRONG[2][1]}\n")


@pytest.mark.usefixtures("logger")
def test_warnings_of_the_library_are_one_line_each(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Without a traceback, without escapes, once however often a command has begun, and nothing below a warning."""
    for _ in range(2):
        assert main(["id", "--identity", str(tmp_path / "key.pem")]) == 0
    capsys.readouterr()
    log = logging.getLogger("overlay")
    log.info("nothing of interest")
    logging.getLogger("overlay.tcp").warning("the disk\nis %s", "full\x1b[2J")
    log.error("a handler failed", exc_info=ValueError("no\nluck"))
    said = ["warning: the disk is full\N{REPLACEMENT CHARACTER}[2J", "error: a handler failed: ValueError: no luck"]
    assert capsys.readouterr().err.splitlines() == [f"overlay: {one}" for one in said]


def test_id_makes_the_key_once(tmp_path: Path) -> None:
    """The same key each time, in JSON too; by default under XDG_DATA_HOME."""
    environment = os.environ | {"XDG_DATA_HOME": str(tmp_path / "data")}
    first = overlay("id", env=environment)
    assert first.code == 0
    key = tmp_path / "data" / "overlay" / "identity.pem"
    assert PeerId.parse(first.out.strip()) == Identity.load_or_create(key).peer_id
    again = overlay("id", "--json", env=environment).json
    assert again == {"peer_id": first.out.strip(), "identity": str(key)}


def test_a_relative_data_home_is_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    """As the XDG Base Directory Specification has it."""
    monkeypatch.setenv("XDG_DATA_HOME", "relative")
    assert default_identity() == Path.home() / ".local/share/overlay/identity.pem"


def test_a_key_that_others_can_read_is_one_line_with_the_cure(tmp_path: Path) -> None:
    """For all commands that use a key file."""
    key = tmp_path / "key.pem"
    Identity.load_or_create(key)
    key.chmod(0o644)
    result = overlay("id", "--identity", key)
    assert result.code == 1
    assert result.err.count("\n") == 1
    assert f"chmod 600 {key}" in result.err


def test_a_key_in_use_is_one_line(tmp_path: Path) -> None:
    """Two receivers with one key would take each other's sessions."""
    with receiving(tmp_path / "inbox"):
        result = overlay("receive", tmp_path, "--identity", tmp_path / "inbox.pem", *LISTEN)
        assert result.code == 1
        assert "in use by another endpoint" in result.err
        assert result.err.count("\n") == 1


@pytest.mark.parametrize("transport", ["quic", "udp", "tcp"])
def test_ping_tells_time_and_path(tmp_path: Path, transport: str) -> None:
    """One line per ping with the path it took, and a summary; a ping is no `send`."""
    with receiving(tmp_path / "inbox", "--once") as receiver:
        arguments = ("-c", "3", "--interval", "0", "--transport", transport)
        pinged = overlay("ping", *LISTEN, receiver.ticket, *arguments, "--json")
        assert (pinged.code, pinged.err) == (0, "")
        *pongs, summary = pinged.lines
        assert [(one["event"], one["seq"], one["transport"]) for one in pongs] == [
            ("pong", number, transport) for number in (1, 2, 3)
        ]
        assert all(one["rtt_ms"] > 0 and one["path"].startswith(f"{transport}://127.0.0.1:") for one in pongs)
        assert (summary["event"], summary["sent"], summary["answered"]) == ("summary", 3, 3)
        assert summary["min_ms"] <= summary["avg_ms"] <= summary["max_ms"]
        [path] = summary["paths"]
        assert path["path"] == pongs[0]["path"]
        assert path["rtt_ms"] > 0
        assert path["mtu"] >= 1200
        # A busy machine may make TCP send a segment again.
        assert 0 <= path["loss"] < 1
        assert path["congestion_window"] > 2400
        words = overlay("ping", *LISTEN, receiver.ticket, *arguments)
        assert re.search(rf"3: \d+\.\d\d ms over {transport}://127", words.out)
        assert "3 sent, 3 answered, min/avg/max" in words.out
        told = rf"{transport}://127\.0\.0\.1:\d+: rtt \d+\.\d\d ms, MTU \d+ bytes, loss [\d.]+ %, window [\d.]+ [KM]iB"
        assert re.search(told, words.out)
        assert receiver.process.poll() is None


def test_ping_until_interrupted(tmp_path: Path) -> None:
    """Ctrl-C ends it with its summary."""
    with receiving(tmp_path / "inbox") as receiver:
        with start("ping", *LISTEN, receiver.ticket, "--interval", "0") as process:
            assert process.stdout is not None
            assert " ms over quic" in process.stdout.readline()
            result = finish(process, signal.SIGINT)
            assert result.code == 130
            assert " answered, min/avg/max " in result.out


def test_a_terminal_gets_a_bar_with_rate_and_transport(tmp_path: Path) -> None:
    """On a pipe there is none."""
    file = tmp_path / "plain"
    file.write_bytes(bytes(2**20))
    with receiving(tmp_path / "inbox") as receiver:
        ours, theirs = pty.openpty()
        result = send(file, receiver.ticket, "--limit-rate", "2M", stderr=theirs, env=os.environ | {"COLUMNS": "150"})
        os.close(theirs)
        shown = os.read(ours, 2**16).decode()
        os.close(ours)
        assert result.code == 0
        assert "plain" in shown
        assert "over quic" in shown
        assert re.search(r"[0-9] [KM]iB/s", shown)
        assert "━" not in send(file, receiver.ticket, "--name", "again").err


@pytest.mark.parametrize(
    ("text", "size"), [("1", 1), ("10M", 10 * 2**20), ("1.5G", 3 * 2**29), ("64KiB", 2**16), ("2tb", 2**41)]
)
def test_sizes_are_read_as_curl_does(text: str, size: int) -> None:
    """Binary prefixes, either case."""
    assert parse_size(text) == size


def test_sizes_are_shown_with_their_unit() -> None:
    """For people."""
    shown = [size_text(size) for size in (0, 1023, 1024, 1.5 * 2**20, 2**30, 2**41)]
    assert shown == ["0 B", "1023 B", "1.0 KiB", "1.5 MiB", "1.0 GiB", "2.0 TiB"]
