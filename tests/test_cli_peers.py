"""`overlay peers`: names of peers, the table, and the real command against a node that only pretends."""

import asyncio
import io
import json
import os
import pty
import re
import signal
import time
from pathlib import Path
from typing import Any

import pytest
from cli_node import FakeNode, a_key, a_path, a_peer, an_address, controlled
from cli_support import SECONDS, Result, finish, overlay, start
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from overlay import (
    PathChanged,
    PathLost,
    PeerConnected,
    PeerDisconnected,
    SessionClosed,
    SessionReplaced,
    Ticket,
)
from overlay.cli.naming import MAX_NAME_CHARACTERS, check_peer_name, find_peer, parse_target
from overlay.cli.output import UsageError
from overlay.cli.peers import peers_table
from overlay.cli.reports import duration, event_document, event_text, peer_document
from overlay.cli.running import READER_SECONDS
from overlay.events import Event
from overlay.status import PeerStatus

WIDE = os.environ | {"COLUMNS": "160", "TERM": "xterm"}


@pytest.fixture
def book(tmp_path: Path) -> Path:
    return tmp_path / "book.sqlite"


async def peers(book: Path, *arguments: object) -> Result:
    """The command in a process of its own, while this one is the node."""
    return await asyncio.to_thread(overlay, "peers", *arguments, "--book", book)


def shown(statuses: list[PeerStatus], now: float = 1000.0) -> list[str]:
    console = Console(width=140, record=True, file=io.StringIO())
    console.print(peers_table([peer_document(one) for one in statuses], now))
    return [line.rstrip() for line in console.export_text().splitlines()]


# ---------------------------------------------------------------- who is meant


def test_a_peer_is_meant_by_key_name_or_prefix() -> None:
    """In either case of letters, as far as keys go."""
    alice, bob = a_peer(name="alice"), a_peer()
    for text in (str(alice.peer_id), str(alice.peer_id).upper(), "alice", alice.peer_id.short, str(alice.peer_id)[:30]):
        assert find_peer(text, [bob, alice]) == alice.peer_id
    stranger = a_key()
    assert find_peer(str(stranger), [bob], known=False) == stranger


@pytest.mark.parametrize("text", ["", "Alice", "alic", "{short}", "x" * 52, "y" * 60])
def test_what_fits_nobody_is_refused(text: str) -> None:
    """Seven characters of a key are too few; a key that nobody has is nobody's."""
    alice = a_peer(name="alice")
    with pytest.raises(UsageError, match="no peer fits"):
        find_peer(text.format(short=str(alice.peer_id)[:7]), [alice])
    with pytest.raises(UsageError, match="no peer fits"):
        find_peer(str(a_key()), [alice])


def test_what_is_as_long_as_a_key_but_none_is_said_to_be_none() -> None:
    """A mistyped key is not a key that nobody has; a name of that length is still a name."""
    wrong = str(a_key())[:-2] + "1a"
    for known in (True, False):
        with pytest.raises(UsageError, match=r"no peer fits .*, and it is no key either: '1' is not used in a peer id"):
            find_peer(wrong, [a_peer()], known=known)
    named = a_peer(name=wrong)
    assert find_peer(wrong, [named]) == named.peer_id


def test_what_fits_two_is_refused_with_both() -> None:
    """Two names, or one peer's name that is the beginning of another one's key; a full key stays clear."""
    alice = a_peer(name="alice")
    mask = a_peer(name=alice.peer_id.short)
    with pytest.raises(UsageError, match=rf"fits 2 peers: {alice.peer_id} \(alice\), {mask.peer_id}"):
        find_peer(alice.peer_id.short, [alice, mask])
    assert find_peer(str(alice.peer_id), [mask, alice]) == alice.peer_id
    crowd = [a_peer(name="same") for _ in range(9)]
    with pytest.raises(UsageError, match=r"fits 9 peers: .* and 4 more"):
        find_peer("same", crowd)


@given(st.text(max_size=70))
def test_a_name_that_passes_is_one_line_and_no_key(name: str) -> None:
    """What is accepted finds its peer again."""
    try:
        check_peer_name(name)
    except UsageError:
        return
    assert len(name) <= MAX_NAME_CHARACTERS
    assert name.isprintable()
    if name:
        peer = a_peer(name=name)
        assert find_peer(name, [a_peer(), peer]) == peer.peer_id


@pytest.mark.parametrize("name", ["a\nb", " a", "a\x1b[2J", "x" * 65, "{key}"])
def test_names_that_deceive_are_refused(name: str) -> None:
    """A key as the name of another key above all."""
    with pytest.raises(UsageError):
        check_peer_name(name.format(key=a_key()))


def test_a_target_is_a_ticket_or_a_key() -> None:
    """White space around it is ignored, because people paste."""
    key = a_key()
    assert parse_target(f" {key}\n") == key
    assert parse_target(f" overlay:{key}@1.2.3.4:5\n") == Ticket.parse(f"overlay:{key}@1.2.3.4:5")


# ---------------------------------------------------------------- what is shown


def test_the_table_shows_peers_and_the_evidence_for_their_addresses() -> None:
    """One line each, those with names first."""
    evidence = (
        an_address(last_success=940.0, successes=3, rtt=0.02, learnt=400.0),
        an_address("[2001:db8::7]:1", source="record", last_failure=999.0, failures=3, stage="handshake", learnt=999.5),
        an_address("host.example:2", source="static", learnt=-9e9),
    )
    silent = a_path("tcp://[2001:db8::7]:1", suspect=True, rtt=None)
    zoe = a_peer(name="zoe", state="connected", kept=True, paths=(silent,), since=7300.0)
    other = a_peer(state="backing off", next_dial=12.4, addresses=evidence, since=0.25, blocked=True)
    lines = shown([other, zoe])
    assert re.match(r"peer, addresses +┃ kept +┃ state, source +┃ +RTT ┃ +since ┃ path, evidence", lines[0])
    cells = [[cell.strip() for cell in line.split("│")] for line in lines[2:]]
    assert cells == [
        ["zoe", "yes", "connected", "", "2 h", "tcp://[2001:db8::7]:1, silent"],
        [other.peer_id.short, "blocked", "backing off", "", "0.2 s", "dials again in 12 s"],
        ["198.51.100.7:9330", "", "ticket", "20.0 ms", "10 min", "worked 1 min ago"],
        ["[2001:db8::7]:1", "", "record", "", "0.5 s", "handshake failed 3 times, 1.0 s ago"],
        ["host.example:2", "", "static", "", "104166 d", "not tried yet"],
    ]


def test_a_peer_that_only_the_book_knows_has_no_age() -> None:
    """Nobody knows for how long it has been so."""
    peer = a_peer(name="zoe", since=None)
    assert peer_document(peer)["since"] is None
    [line] = shown([peer])[2:]
    assert [cell.strip() for cell in line.split("│")] == ["zoe", "", "known", "", "", ""]


def test_the_table_obeys_nothing_that_a_name_says() -> None:
    """Neither rich's markup nor the terminal's escapes; whoever wrote them into the book."""
    [line] = shown([a_peer(name="[red]a\x1b[2J", state="known")])[2:]
    assert line.startswith("[red]a\N{REPLACEMENT CHARACTER}[2J")


def test_a_clock_that_jumped_back_makes_no_negative_ages() -> None:
    """What was learnt in the future is new."""
    assert duration(-5.0) == "0.0 s"
    assert [duration(seconds) for seconds in (0.04, 9.94, 59, 60, 3599, 3600, 86400)] == [
        "0.0 s",
        "9.9 s",
        "59 s",
        "1 min",
        "59 min",
        "1 h",
        "1 d",
    ]


def test_every_event_has_a_document_and_a_line() -> None:
    """One line, whatever the error says; the same facts for both."""
    peer, path = a_key(), a_path()
    reason = SessionClosed(by_peer=True, reason="bye\nbye")
    events: list[tuple[Event, dict[str, Any], str]] = [
        (PeerConnected(peer), {"event": "peer-connected"}, "connected"),
        (PeerDisconnected(peer, reason), {"kind": "SessionClosed"}, "disconnected: the session was closed by the peer"),
        (PathChanged(peer, path), {"event": "path-changed"}, "now over quic://198.51.100.7:9330: the first to answer"),
        (PathLost(peer, "quic", path.remote, 2), {"remaining": 2}, "lost quic://198.51.100.7:9330, 2 left"),
        (
            PathLost(peer, "quic", path.remote, 0),
            {"transport": "quic"},
            "lost quic://198.51.100.7:9330, no path is left",
        ),
        (SessionReplaced(peer), {"event": "session-replaced"}, "has begun anew"),
    ]
    for event, facts, part in events:
        document = event_document(event)
        assert json.loads(json.dumps(document)) == document
        assert document["peer_id"] == str(peer)
        assert facts.items() <= document.items()
        assert event_text(event).startswith(f"{peer.short} ")
        assert event_text(event, "alice") == event_text(event).replace(peer.short, f"{peer.short} (alice)")
        assert part in event_text(event)
        assert "\n" not in event_text(event)
    assert event_document(events[2][0])["path"]["remote"] == "quic://198.51.100.7:9330"


# ---------------------------------------------------------------- the command


async def test_peers_for_people_and_for_programs(book: Path) -> None:
    """A table that is not cut on a pipe, or one document."""
    node = FakeNode(a_peer(name="alice", state="connected", paths=(a_path(),), addresses=(an_address(),)))
    async with controlled(node, book):
        table = await peers(book)
        assert (table.code, table.err) == (0, "")
        assert re.search(r"alice +│ +│ connected +│ +12.5 ms │ +1.0 s │ quic://198.51.100.7:9330", table.out)
        assert re.search(r"  198.51.100.7:9330 +│ +│ ticket +│", table.out)
        document = await peers(book, "--json")
        assert document.json == {"book": str(book), "peers": [peer_document(one) for one in node.peers()]}
        node.table.clear()
        nobody = await peers(book)
        assert (nobody.code, nobody.out, nobody.err) == (0, "", "no peers yet: overlay peers add TICKET\n")


async def test_changes_by_command(book: Path) -> None:
    """Options stand before or behind the subcommand; the result names the key."""
    node = FakeNode()
    key = a_key()
    ticket = f"overlay:{key}@198.51.100.9:9330"
    async with controlled(node, book):
        added = await asyncio.to_thread(overlay, "peers", "--book", book, "--json", "add", ticket, "--name", "carol")
        assert added == (0, json.dumps({"done": "add", "peer_id": str(key)}) + "\n", "")
        for do, said in (
            ("block", f"refuses {key}, and no longer stays connected to it"),
            ("block", f"refuses {key}"),
            ("unblock", f"no longer refuses {key}; `overlay peers add` stays connected to it again"),
            ("kick", f"dials now: {key}"),
        ):
            assert await peers(book, do, "carol") == (0, "", f"overlay {said}\n")
        assert await peers(book, "kick") == (0, "", "overlay dials now: all that wait\n")
        assert (await peers(book, "remove", key.short, "--json")).json == {"done": "remove", "peer_id": str(key)}
        gone = await peers(book, "remove", "carol", "--json")
        assert (gone.code, gone.json["exit_code"], gone.err.count("\n")) == (2, 2, 1)
        assert "no peer fits 'carol'" in gone.err
    calls = [("block", key), ("block", key), ("unblock", key), ("kick", key), ("kick", None), ("remove", key)]
    assert node.calls == [("keep", Ticket.parse(ticket), "carol"), *calls]


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["add", "notaticket"], "a peer id has 52 characters"),
        (["add", "overlay:x@1.2.3.4:5"], "'x'"),
        (["add", "{key}", "--name", "a\tb"], "printable"),
        (["--watch", "kick"], "--watch goes without a subcommand"),
        (["remove"], "PEER"),
        (["frobnicate"], "frobnicate"),
    ],
)
def test_wrong_usage_is_found_before_anybody_is_asked(book: Path, arguments: list[str], part: str) -> None:
    """No `overlay run` is needed for that."""
    result = overlay("peers", "--book", book, *(one.format(key=a_key()) for one in arguments))
    assert (result.code, result.out, result.err.count("\n")) == (2, "", 1)
    assert part in result.err


@pytest.mark.parametrize("arguments", [(), ("--watch", "--json"), ("add", "{key}"), ("kick",)])
def test_nobody_runs(book: Path, arguments: tuple[str, ...]) -> None:
    """One line that says what to do; the book is not made."""
    cure = "start `overlay run`, or give the book of another one with `--book PATH`"
    result = overlay("peers", "--book", book, *(one.format(key=a_key()) for one in arguments))
    assert (result.code, result.err) == (1, f"overlay: no overlay runs with the book {book}: {cure}\n")
    assert list(book.parent.iterdir()) == []


async def test_watch_for_programs_is_one_document_per_line(book: Path) -> None:
    """Peers, then events; Ctrl-C ends it, and so does the end of the overlay."""
    peer = a_peer()
    node = FakeNode(peer)

    def watch(ends: Any) -> tuple[list[Any], Result]:
        with start("peers", "--watch", "--json", "--book", book) as process:
            assert process.stdout is not None
            lines = [json.loads(process.stdout.readline())]
            loop.call_soon_threadsafe(node.publish, PeerConnected(peer.peer_id))
            lines.append(json.loads(process.stdout.readline()))
            ends(process)
            return lines, finish(process)

    loop = asyncio.get_running_loop()
    async with controlled(node, book):
        lines, result = await asyncio.to_thread(watch, lambda process: process.send_signal(signal.SIGINT))
        assert [one["event"] for one in lines] == ["peer", "peer-connected"]
        assert {one["peer_id"] for one in lines} == {str(peer.peer_id)}
        assert (result.code, result.out, result.err) == (130, "", "")
        _, result = await asyncio.to_thread(watch, lambda _: loop.call_soon_threadsafe(node.publish, None))
        assert result.code == 1
        assert result.err == f"overlay: the overlay with the book {book} has ended\n"


async def test_a_watch_without_a_reader_ends_although_nothing_happens(book: Path) -> None:
    """As in `overlay peers --watch --json | head -1`."""

    def watch() -> tuple[int, str]:
        with start("peers", "--watch", "--json", "--book", book) as process:
            assert process.stdout is not None
            assert process.stderr is not None
            assert json.loads(process.stdout.readline())["event"] == "peer"
            process.stdout.close()
            return process.wait(SECONDS), process.stderr.read()

    async with controlled(FakeNode(a_peer()), book):
        assert await asyncio.to_thread(watch) == (1, "")


async def test_a_watch_may_write_to_a_file(book: Path, tmp_path: Path) -> None:
    """A file has no reader to lose; only the end of the overlay ends it."""

    def watch() -> int:
        with (tmp_path / "log").open("w") as log, start("peers", "--watch", "--json", "--book", book, stdout=log) as it:
            time.sleep(2.5 * READER_SECONDS)
            loop.call_soon_threadsafe(node.publish, PeerConnected(a_key()))
            loop.call_soon_threadsafe(node.publish, None)
            return it.wait(SECONDS)

    node, loop = FakeNode(a_peer()), asyncio.get_running_loop()
    async with controlled(node, book):
        assert await asyncio.to_thread(watch) == 1
    lines = (tmp_path / "log").read_text().splitlines()
    assert [json.loads(line).get("event") for line in lines[:2]] == ["peer", "peer-connected"]


async def test_watch_for_people_refreshes_in_place(book: Path) -> None:
    """On a terminal only; Ctrl-C leaves it in order."""
    node = FakeNode(a_peer(name="alice"))

    def watch() -> tuple[str, Result]:
        ours, theirs = pty.openpty()
        with start("peers", "--watch", "--book", book, stdout=theirs, env=WIDE) as process:
            os.close(theirs)
            seen = ""
            deadline = time.monotonic() + SECONDS
            while "second" not in seen:
                assert time.monotonic() < deadline, seen
                seen += os.read(ours, 2**16).decode()
                if "alice" in seen:
                    node.table = {peer.peer_id: peer for peer in (second,)}
            result = finish(process, signal.SIGINT)
            seen += os.read(ours, 2**16).decode()
        os.close(ours)
        return seen, result

    second = a_peer(name="second")
    async with controlled(node, book):
        seen, result = await asyncio.to_thread(watch)
        assert (result.code, result.err) == (130, "")
        assert "\x1b[1A" in seen
        assert seen.rindex("\x1b[?25h") > seen.rindex("second"), "the cursor is shown again"
        refused = await peers(book, "--watch")
        assert (refused.code, refused.out) == (2, "")
        assert "--watch needs a terminal" in refused.err


def test_the_help_teaches() -> None:
    """Each subcommand, and an example."""
    text = " ".join(overlay("peers", "--help").out.split())
    assert all(name in text for name in ("add", "remove", "block", "unblock", "kick", "--watch", "xample"))
