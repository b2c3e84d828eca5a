"""`overlay run` as users run it: real processes with a book each, and `overlay peers` beside them."""

import json
import signal
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from cli_support import LISTEN, Result, finish, overlay, receiving, start

from overlay import Identity, PeerId, Ticket
from overlay.cli.options import RUN_PORT


class Running:
    """An `overlay run --json` process, with its key and its book in a directory of its own."""

    def __init__(self, directory: Path, *arguments: object) -> None:
        self.directory = directory
        directory.mkdir(exist_ok=True)
        self.book = directory / "book"
        self.process = start(
            "run", "--json", "--identity", directory / "key.pem", "--book", self.book, *LISTEN, *arguments
        )
        self.ready = self.event("ready")
        self.ticket: str = self.ready["ticket"]
        self.peer_id: str = self.ready["peer_id"]

    def event(self, name: str, peer: "Running | None" = None) -> Any:
        """The next event of that name, about that peer if one is given; what comes before is passed over."""
        assert self.process.stdout is not None
        while line := self.process.stdout.readline():
            document = json.loads(line)
            if document["event"] == name and (peer is None or document["peer_id"] == peer.peer_id):
                return document
        raise AssertionError(self.process.communicate())

    def peers(self, *arguments: object) -> Result:
        return overlay("peers", *arguments, "--book", self.book)

    @property
    def table(self) -> dict[str, Any]:
        """Its peers by key."""
        result = self.peers("--json")
        assert result.code == 0, result
        return {peer["peer_id"]: peer for peer in result.json["peers"]}

    def stop(self, number: signal.Signals = signal.SIGTERM) -> Result:
        return finish(self.process, number)


@contextmanager
def running(directory: Path, *arguments: object) -> Iterator[Running]:
    node = Running(directory, *arguments)
    try:
        yield node
    finally:
        with node.process as process:
            process.kill()


def config(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


# ---------------------------------------------------------------- one process


def test_the_ticket_stands_alone_on_standard_output(tmp_path: Path) -> None:
    """A script reads one line; events go to standard error."""
    arguments = ("--identity", tmp_path / "key.pem", "--book", tmp_path / "book", *LISTEN)
    with start("run", *arguments) as process:
        assert process.stdout is not None
        ticket = Ticket.parse(process.stdout.readline())
        assert ticket.peer_id == Identity.load_or_create(tmp_path / "key.pem").peer_id
        result = finish(process, signal.SIGINT)
    assert (result.code, result.out, result.err) == (130, "", "")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_it_in_order(tmp_path: Path, number: signal.Signals) -> None:
    """No socket, no lock, no traceback stays; the same command starts again at once."""
    for _ in range(2):
        with running(tmp_path / "a") as node:
            assert node.ready["book"] == str(node.book)
            result = node.stop(number)
            assert (result.code, result.out, result.err) == (130, "", "")
            assert list((tmp_path / "a" / "book.control").iterdir()) == []


def test_a_second_one_on_the_same_book_is_one_line(tmp_path: Path) -> None:
    """Before it touches the network or the first one's key."""
    with running(tmp_path / "a") as node:
        second = overlay("run", "--identity", tmp_path / "other.pem", "--book", node.book, *LISTEN)
        assert (second.code, second.out) == (1, "")
        assert (
            second.err == f"overlay: an overlay runs with the book {node.book} already: `overlay peers` talks to it\n"
        )
        assert node.peers().code == 0


def test_after_sigkill_the_next_one_takes_over(tmp_path: Path) -> None:
    """Whatever the dead one has left."""
    with running(tmp_path / "a") as node:
        node.process.kill()
        node.process.wait(20)
        gone = node.peers()
        assert gone.code == 1
        assert gone.err.startswith(f"overlay: no overlay runs with the book {node.book}: start `overlay run`")
        with running(tmp_path / "a") as again:
            assert again.peer_id == node.peer_id
            assert again.peers().code == 0


def test_a_reader_that_is_gone_ends_it(tmp_path: Path) -> None:
    """As in `overlay run --json | head -1`."""
    with receiving(tmp_path / "inbox") as receiver, running(tmp_path / "a") as node:
        assert node.process.stdout is not None
        node.process.stdout.close()
        node.peers("add", receiver.ticket)
        assert node.process.wait(40) == 1
        assert node.process.stderr is not None
        assert node.process.stderr.read() == ""


def test_a_port_that_is_taken_is_one_line_with_the_cure(tmp_path: Path) -> None:
    """The fixed one that it takes by itself, and one that was asked for."""
    with socket.socket() as ours:
        # Another process of this machine may have it already, which is as good.
        with suppress(OSError):
            ours.bind(("0.0.0.0", RUN_PORT))
            ours.listen()
        own = ("--identity", tmp_path / "key.pem", "--book", tmp_path / "book")
        cure = "give another one with `--listen HOST:PORT`, or 0 as the port for any free one"
        result = overlay("run", *own)
        why = "Address already in use"
        assert result == (1, "", f"overlay: cannot listen on 0.0.0.0:{RUN_PORT}: {why}: {cure}\n")
    with running(tmp_path / "a") as node:
        place = str(Ticket.parse(node.ticket).addresses[0])
        result = overlay("run", *own, "--listen", place)
        assert result == (1, "", f"overlay: cannot listen on {place}: {why}: {cure}\n")


def test_a_damaged_book_is_said_in_one_line(tmp_path: Path) -> None:
    """Without being asked for: what was known is gone."""
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "book").write_bytes(b"no book at all " * 1000)
    with running(tmp_path / "a") as node:
        result = node.stop()
    assert (result.code, result.err.count("\n")) == (130, 1)
    assert result.err.startswith(f"overlay: warning: the address book {node.book} ")
    assert "set aside as" in result.err


def test_hangup_does_not_end_it(tmp_path: Path) -> None:
    """It means: try everything now."""
    with running(tmp_path / "a") as node:
        node.process.send_signal(signal.SIGHUP)
        assert node.peers().code == 0
        assert node.stop().code == 130


# ---------------------------------------------------------------- two processes


def test_peers_of_the_config_file_are_connected(tmp_path: Path) -> None:
    """Those that are kept; others are known by name and address only."""
    stranger = Identity.generate().peer_id
    with running(tmp_path / "b") as b:
        text = f"""
        [endpoint]
        book = "a/book"
        dial_timeout = 5
        [[peers]]
        ticket = "{b.ticket}"
        name = "bob"
        [[peers]]
        ticket = "overlay:{stranger}@127.0.0.1:9"
        name = "carol"
        keep = false
        """
        file = config(tmp_path / "overlay.toml", text)
        (tmp_path / "a").mkdir()
        with running(tmp_path / "a", "--config", file) as a:
            a.event("peer-connected", b)
            b.event("peer-connected", a)
            bob, carol = a.table[b.peer_id], a.table[str(stranger)]
            assert (bob["name"], bob["state"], bob["kept"], bob["blocked"]) == ("bob", "connected", True, False)
            assert bob["paths"][0]["selected"] is True
            assert any(one["last_success"] for one in bob["addresses"])
            assert (carol["name"], carol["state"], carol["kept"]) == ("carol", "known", False)
            assert [one["address"] for one in carol["addresses"]] == ["127.0.0.1:9"]
            assert "bob" in a.peers().out


def test_a_person_reads_the_name_beside_the_key(tmp_path: Path) -> None:
    """In each line about a peer that has one."""
    with running(tmp_path / "b") as b:
        arguments = ("--identity", tmp_path / "key.pem", "--book", tmp_path / "book", *LISTEN)
        words = f'[[peers]]\nticket = "{b.ticket}"\nname = "bob"\n'
        with start("run", *arguments, "--config", config(tmp_path / "overlay.toml", words)) as process:
            assert process.stderr is not None
            assert process.stderr.readline() == f"{b.peer_id[:8]} (bob) connected\n"
            finish(process, signal.SIGINT)


def test_added_over_the_socket_and_kept_over_a_restart(tmp_path: Path) -> None:
    """The book remembers whom to dial; removed ones are forgotten there, too."""
    with running(tmp_path / "b") as b:
        with running(tmp_path / "a") as a:
            assert a.peers("add", b.ticket, "--name", "bob").code == 0
            a.event("peer-connected", b)
            assert a.event("path-changed", b)["path"]["transport"] in {"quic", "tcp", "udp"}
            assert a.stop().code == 130
        b.event("peer-disconnected", a)
        with running(tmp_path / "a") as a:
            a.event("peer-connected", b)
            assert a.table[b.peer_id]["name"] == "bob"
            assert a.peers("remove", "bob").code == 0
            a.event("peer-disconnected", b)
            assert b.peer_id not in a.table
            assert a.stop().code == 130
        with running(tmp_path / "a") as a:
            assert b.peer_id not in a.table


def test_a_blocked_peer_is_out_at_once_and_stays_out(tmp_path: Path) -> None:
    """Over a restart, too; unblocked, it comes back, as it wants to."""
    with running(tmp_path / "b") as b:
        with running(tmp_path / "a") as a:
            a.peers("add", b.ticket, "--name", "bob")
            b.event("peer-connected", a)
            # From here on, b wants it as much as a.
            assert b.peers("add", a.ticket).code == 0
            assert a.peers("block", "bob").code == 0
            a.event("peer-disconnected", b)
            b.event("peer-disconnected", a)
            assert a.table[b.peer_id]["blocked"] is True
            assert a.stop().code == 130
        port = Ticket.parse(a.ticket).addresses[0].port
        with running(tmp_path / "a", "--listen", f"127.0.0.1:{port}") as again:
            b.peers("kick")
            assert overlay("ping", *LISTEN, "-c", "1", "--identity", tmp_path / "stranger.pem", again.ticket).code == 0
            blocked = again.table[b.peer_id]
            assert (blocked["blocked"], blocked["kept"], blocked["paths"]) == (True, False, [])
            assert again.peers("unblock", "bob").code == 0
            b.peers("kick")
            again.event("peer-connected", b)


def test_hangup_and_kick_dial_what_waits(tmp_path: Path) -> None:
    """A peer that was away is reached again without waiting for the end of the backoff."""
    with running(tmp_path / "b") as b, running(tmp_path / "a", "--transport", "tcp") as a:
        port = Ticket.parse(b.ticket).addresses[0].port
        assert b.stop().code == 130
        a.peers("add", b.ticket, "--name", "bob")
        while a.table[b.peer_id]["state"] != "backing off":
            assert a.process.poll() is None
        with running(tmp_path / "b", "--listen", f"127.0.0.1:{port}") as back:
            a.process.send_signal(signal.SIGHUP)
            a.event("peer-connected", back)
            assert back.stop().code == 130
        a.event("peer-disconnected", b)
        with running(tmp_path / "b", "--listen", f"127.0.0.1:{port}") as back:
            a.peers("kick", "bob")
            a.event("peer-connected", back)


def test_only_known_peers_are_let_in(tmp_path: Path) -> None:
    """`accept = "known"`, and a list of keys."""
    friend = Identity.load_or_create(tmp_path / "friend.pem").peer_id
    text = f'[endpoint]\naccept = "known"\n[[peers]]\nticket = "{friend}"\nname = "f"\nkeep = false\n'
    for words in (text, f'[endpoint]\naccept = ["{friend}"]\n'):
        with running(tmp_path / "a", "--config", config(tmp_path / "overlay.toml", words)) as a:
            ping = ("ping", *LISTEN, "-c", "1", a.ticket)
            assert overlay(*ping).code == 6
            assert overlay(*ping, "--identity", tmp_path / "friend.pem").code == 0


def test_the_config_file_does_not_unblock(tmp_path: Path) -> None:
    """Who was blocked since it was written stays out, and that is said."""
    key = Identity.generate().peer_id
    file = config(tmp_path / "overlay.toml", f'[[peers]]\nticket = "overlay:{key}@127.0.0.1:9"\nname = "mallory"\n')
    with running(tmp_path / "a", "--config", file) as a:
        assert a.peers("block", "mallory").code == 0
        assert a.stop().err == ""
    with running(tmp_path / "a", "--config", file) as a:
        assert (a.table[str(key)]["blocked"], a.table[str(key)]["kept"]) == (True, False)
        assert f"{key} stays blocked" in a.stop().err


def test_the_command_line_goes_before_the_config_file(tmp_path: Path) -> None:
    """Key, book and sockets alike."""
    words = '[endpoint]\nbook = "no/book"\nidentity = "no/key.pem"\nlisten = ["nonsense"]\ntransports = ["quic"]\n'
    file = config(tmp_path / "overlay.toml", words)
    with running(tmp_path / "a", "--config", file, "--transport", "tcp") as a:
        assert a.ready["book"] == str(tmp_path / "a" / "book")
        key = Identity.load_or_create(tmp_path / "a" / "key.pem").peer_id
        assert PeerId.parse(a.peer_id) == key
        assert overlay("ping", *LISTEN, "-c", "1", "--transport", "quic", "--timeout", "1", a.ticket).code == 3
        assert overlay("ping", *LISTEN, "-c", "1", a.ticket).code == 0
    assert not (tmp_path / "no").exists()


def test_watch_shows_real_events(tmp_path: Path) -> None:
    """From the socket of a real process."""
    with running(tmp_path / "b") as b, running(tmp_path / "a") as a:
        a.peers("add", b.ticket)
        a.event("peer-connected", b)
        with start("peers", "--watch", "--json", "--book", a.book, stderr=subprocess.DEVNULL) as watch:
            assert watch.stdout is not None
            first = json.loads(watch.stdout.readline())
            assert (first["event"], first["peer_id"], first["state"]) == ("peer", b.peer_id, "connected")
            a.peers("remove", b.peer_id)
            events = []
            while "peer-disconnected" not in events:
                events.append(json.loads(watch.stdout.readline())["event"])
            finish(watch, signal.SIGINT)
