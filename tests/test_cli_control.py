"""The control socket: who may use it, what it answers, and that no client can harm it."""

import asyncio
import contextlib
import json
import os
import signal
import socket
import stat
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from cli_node import FakeNode, a_key, a_path, a_peer, an_address, controlled
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from overlay import PathChanged, PeerConnected, Ticket
from overlay.cli import control
from overlay.cli.control import MAX_CLIENTS, MAX_REQUEST_BYTES
from overlay.cli.control_client import reach
from overlay.cli.control_place import ControlError, claim, socket_path
from overlay.cli.output import UsageError
from overlay.cli.reports import event_document, peer_document

HOLD = """
import signal, socket, sys
from pathlib import Path
from overlay.cli.control_place import claim

with claim(Path(sys.argv[1])) as path, socket.socket(socket.AF_UNIX) as listener:
    listener.bind(str(path))
    listener.listen()
    print("held", flush=True)
    signal.pause()
"""


@pytest.fixture
def book(tmp_path: Path) -> Path:
    return tmp_path / "book.sqlite"


@asynccontextmanager
async def raw(book: Path) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """A client that says what ours never would."""
    reader, writer = await asyncio.open_unix_connection(socket_path(book), limit=2**22)
    try:
        yield reader, writer
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


async def ask(book: Path, line: bytes) -> Any:
    async with raw(book) as (reader, writer):
        writer.write(line)
        return json.loads(await reader.readline())


async def until_idle(server: control.ControlServer) -> None:
    while server._clients:
        await asyncio.wait(set(server._clients))


# ---------------------------------------------------------------- what it does


async def test_peers_come_with_all_that_is_known(book: Path) -> None:
    """One document for each, equal to what the node says."""
    addresses = (an_address(last_success=5.0, successes=2, rtt=0.01), an_address("[2001:db8::7]:1", failures=3))
    node = FakeNode(a_peer(paths=(a_path(),), addresses=addresses, next_dial=4.0), a_peer(name="bob", blocked=True))
    async with controlled(node, book), reach(book) as client:
        assert await client.peers() == [peer_document(one) for one in node.peers()]
        assert await client.peers() == await client.peers()
        first = (await client.peers())[0]
    assert first["addresses"][0]["address"] == "198.51.100.7:9330"
    assert (first["addresses"][0]["rtt_ms"], first["addresses"][1]["failures"]) == (10.0, 3)
    assert (first["paths"][0]["remote"], first["paths"][0]["rtt_ms"]) == ("quic://198.51.100.7:9330", 12.5)


async def test_thousands_of_peers_are_bounded_lines(book: Path) -> None:
    """One each, in the order of the node; none is lost."""
    node = FakeNode(*(a_peer(addresses=(an_address(),) * 8) for _ in range(500)))
    async with controlled(node, book), reach(book) as client:
        assert [one["peer_id"] for one in await client.peers()] == [str(one) for one in node.table]


async def test_each_request_reaches_the_node_once(book: Path) -> None:
    """By key, name or prefix; the answer says whom it was about."""
    alice, bob = a_peer(name="alice"), a_peer()
    stranger = a_key()
    node = FakeNode(alice, bob)
    ticket = f"overlay:{stranger}@198.51.100.9:9330"
    async with controlled(node, book), reach(book) as client:
        assert await client.request("add", ticket=ticket, name="carol") == {"ok": True, "peer_id": str(stranger)}
        await client.request("add", ticket=str(bob.peer_id), name="")
        await client.request("kick", peer="alice")
        assert await client.request("kick", peer=None) == {"ok": True, "peer_id": None}
        await client.request("block", peer=str(bob.peer_id)[:12])
        await client.request("unblock", peer=str(bob.peer_id).upper())
        never_seen = a_key()
        await client.request("block", peer=str(never_seen))
        assert await client.request("remove", peer="carol") == {"ok": True, "peer_id": str(stranger)}
    assert node.calls == [
        ("keep", Ticket.parse(ticket), "carol"),
        ("keep", bob.peer_id, None),
        ("kick", alice.peer_id),
        ("kick", None),
        ("block", bob.peer_id),
        ("unblock", bob.peer_id),
        ("block", never_seen),
        ("remove", stranger),
    ]


@pytest.mark.parametrize(
    ("request_", "part"),
    [
        ({"do": "remove", "peer": "nobody"}, "no peer fits 'nobody'"),
        ({"do": "remove", "peer": ""}, "no peer fits ''"),
        ({"do": "remove"}, "'peer' is missing"),
        ({"do": "kick", "peer": 5}, "'peer' is missing, or no string"),
        ({"do": "add", "ticket": "overlay:x"}, "'x'"),
        ({"do": "add", "ticket": "overlay:" + "y" * 52 + "@1.2.3.4:5", "name": "a"}, "y"),
        ({"do": "frobnicate"}, "no request is called 'frobnicate'"),
        ({}, "no request is called None"),
        ([], "a request is a JSON object"),
    ],
)
async def test_what_cannot_be_is_refused_and_changes_nothing(book: Path, request_: Any, part: str) -> None:
    """With exit code 2, and the connection goes on."""
    node = FakeNode(a_peer(name="alice"))
    async with controlled(node, book), raw(book) as (reader, writer):
        for line in (json.dumps(request_), '{"do": "peers"}'):
            writer.write(line.encode() + b"\n")
        answer = json.loads(await reader.readline())
        assert (answer["ok"], answer["exit_code"]) == (False, 2)
        assert part in answer["error"]
        assert json.loads(await reader.readline()) == {"ok": True, "count": 1}
    assert node.calls == []


async def test_two_peers_cannot_have_one_name(book: Path) -> None:
    """The second is refused; the first may be renamed, or told again."""
    node = FakeNode()
    alice, other = a_key(), a_key()
    async with controlled(node, book), reach(book) as client:
        await client.request("add", ticket=str(alice), name="alice")
        await client.request("add", ticket=str(alice), name="alice")
        with pytest.raises(UsageError, match="another peer is called 'alice' already"):
            await client.request("add", ticket=str(other), name="alice")
    assert [call[1] for call in node.calls] == [alice, alice]


async def test_watch_sends_the_peers_and_then_each_event(book: Path) -> None:
    """What happens between the two is not lost; the node's end is the watcher's."""
    peer = a_peer()
    node = FakeNode(peer)
    connected, changed = PeerConnected(peer.peer_id), PathChanged(peer.peer_id, a_path())
    async with controlled(node, book) as server, reach(book) as client:
        documents = client.watch()
        assert await anext(documents) == {"event": "peer", **peer_document(peer)}
        node.publish(connected)
        node.publish(changed)
        assert [await anext(documents), await anext(documents)] == [event_document(connected), event_document(changed)]
        node.publish(None)
        with pytest.raises(ControlError, match="has ended"):
            await anext(documents)
        await until_idle(server)


async def test_a_watcher_that_goes_leaves_nothing_behind(book: Path) -> None:
    """Also when nothing happens any more that could fail to be sent."""
    node = FakeNode()
    async with controlled(node, book) as server:
        async with raw(book) as (reader, writer):
            writer.write(b'{"do": "watch"}\n')
            await reader.readline()
            assert len(node.queues) == 1
        await until_idle(server)
        assert node.queues == []


# ---------------------------------------------------------------- who may use it, and when


async def test_only_the_user_can_reach_it(book: Path) -> None:
    """The directory is closed to others, and so is the socket; at the end the socket is gone."""
    async with controlled(FakeNode(), book):
        path = socket_path(book)
        assert path == book.with_name("book.sqlite.control") / "socket"
        assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert list(path.parent.iterdir()) == []


async def test_a_directory_that_others_can_enter_is_refused_on_both_sides(book: Path) -> None:
    """With the cure; and what is no directory, too."""
    directory = socket_path(book).parent
    directory.mkdir()
    directory.chmod(0o750)
    with pytest.raises(ControlError, match=f"chmod 700 {directory}"), claim(book):
        pass
    with pytest.raises(ControlError, match=f"chmod 700 {directory}"):
        async with reach(book):
            pass
    directory.rmdir()
    directory.symlink_to(book.parent)
    with pytest.raises(ControlError, match=r"control: "), claim(book):
        pass


def test_a_second_one_on_the_same_book_is_an_error(book: Path) -> None:
    """However the book is spelled; afterwards it is free."""
    with claim(book):
        with pytest.raises(ControlError, match=r"an overlay runs with the book .*book.sqlite already"):
            with claim(book.parent / "." / ".." / book.parent.name / book.name):
                pass
    with claim(book):
        pass


def kill_a_holder(book: Path) -> None:
    """Leave what a process that was killed leaves."""
    with subprocess.Popen([sys.executable, "-c", HOLD, book], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        with pytest.raises(ControlError, match="already"), claim(book):
            pass
        assert socket_path(book).is_socket()
        process.send_signal(signal.SIGKILL)
        process.wait(20)


async def test_the_socket_of_a_dead_process_is_replaced(book: Path) -> None:
    """SIGKILL leaves the socket: clients are told that nobody runs, and the next one takes its place."""
    await asyncio.to_thread(kill_a_holder, book)
    assert socket_path(book).is_socket()
    with pytest.raises(ControlError, match="no overlay runs"):
        async with reach(book):
            pass
    async with controlled(FakeNode(), book), reach(book) as client:
        assert await client.peers() == []


async def test_nobody_there_is_said_with_the_cure(book: Path) -> None:
    """Word for word."""
    with pytest.raises(ControlError) as caught:
        async with reach(book):
            pass
    cure = "start `overlay run`, or give the book of another one with `--book PATH`"
    assert str(caught.value) == f"no overlay runs with the book {book}: {cure}"


async def test_a_book_too_deep_for_a_socket_is_said(tmp_path: Path) -> None:
    """Instead of what the kernel says."""
    deep = tmp_path / ("d" * 80) / "book.sqlite"
    with pytest.raises(ControlError, match=r"too long for a socket"), claim(deep):
        pass
    with pytest.raises(ControlError, match=r"too long for a socket"):
        async with reach(deep):
            pass


async def test_a_platform_without_unix_sockets_says_so(book: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On both sides."""
    monkeypatch.delattr(socket, "AF_UNIX")
    with pytest.raises(ControlError, match="no Unix sockets"), claim(book):
        pass
    with pytest.raises(ControlError, match="no Unix sockets"):
        async with reach(book):
            pass


async def test_a_file_system_without_sockets_says_so(book: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bind fails; the text has the path and the system's reason."""

    class Refusing(socket.socket):
        def bind(self, address: Any) -> None:
            raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(socket, "socket", Refusing)
    with pytest.raises(ControlError, match=r"cannot listen at .*/socket: Operation not permitted"):
        async with controlled(FakeNode(), book):
            pass


# ---------------------------------------------------------------- clients that hang or lie


async def test_a_line_without_an_end_is_refused(book: Path) -> None:
    """Its bytes are not kept, its connection is closed, others go on."""
    async with controlled(FakeNode(), book), raw(book) as (reader, writer):
        writer.write(b"x" * (MAX_REQUEST_BYTES + 1))
        answer = json.loads(await reader.readline())
        assert f"at most {MAX_REQUEST_BYTES} bytes" in answer["error"]
        assert await reader.read() == b""
        assert (await ask(book, b'{"do": "peers"}\n'))["ok"] is True


async def test_a_client_that_says_nothing_is_hung_up_on(book: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After the deadline of a request."""
    monkeypatch.setattr(control, "REQUEST_TIMEOUT", 0.05)
    async with controlled(FakeNode(), book) as server, raw(book) as (reader, writer):
        writer.write(b'{"do": ')
        assert await reader.read() == b""
        await until_idle(server)


async def test_a_watcher_that_does_not_read_is_hung_up_on(book: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """When the buffers between us are full; it does not hold the events of others."""
    monkeypatch.setattr(control, "REQUEST_TIMEOUT", 0.1)
    node = FakeNode()
    event = PathChanged(a_key(), a_path())
    async with controlled(node, book) as server:
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(os.fspath(socket_path(book)))
            client.sendall(b'{"do": "watch"}\n')
            while not node.queues:
                await asyncio.sleep(0)
            for _ in range(20_000):
                node.publish(event)
            await until_idle(server)
            assert node.queues == []


async def test_sixteen_clients_are_served_and_no_more(book: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The next one is told so, and has a place as soon as one of them is gone."""
    async with controlled(FakeNode(), book) as server, AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(reach(book)) for _ in range(MAX_CLIENTS)]
        assert [await client.peers() for client in clients] == [[]] * MAX_CLIENTS
        async with reach(book) as late:
            with pytest.raises(ControlError, match=f"{MAX_CLIENTS} others talk to this overlay already"):
                await late.peers()
        silent = [await stack.enter_async_context(raw(book)) for _ in range(MAX_CLIENTS)]
        async with raw(book) as (reader, _):
            assert await reader.read() == b""
        assert len(server._clients) <= 2 * MAX_CLIENTS
        for _, writer in silent:
            writer.close()
        clients[0]._writer.close()
        while len(server._clients) >= MAX_CLIENTS:
            await asyncio.sleep(0)
        async with reach(book) as late:
            assert await late.peers() == []


async def test_the_end_of_the_server_is_the_end_of_its_clients(book: Path) -> None:
    """They are not waited for."""
    async with AsyncExitStack() as stack:
        node = FakeNode()
        async with controlled(node, book):
            idle = await stack.enter_async_context(reach(book))
            watcher = (await stack.enter_async_context(reach(book))).watch()
            await idle.peers()
            waiting = asyncio.create_task(anext(watcher))
            while not node.queues:
                await asyncio.sleep(0)
        with pytest.raises(ControlError, match="has ended"):
            await waiting
        with pytest.raises(ControlError, match="has ended"):
            await idle.peers()


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    lines=st.lists(
        st.binary(max_size=200)
        | st.dictionaries(
            st.sampled_from(["do", "peer", "ticket", "name", "x"]),
            st.none() | st.integers() | st.text(max_size=20) | st.sampled_from(["add", "kick", "block", "peers"]),
        ).map(lambda value: json.dumps(value).encode()),
        max_size=5,
    )
)
async def test_whatever_a_client_says_it_gets_an_answer_for_each_line(tmp_path: Path, lines: list[bytes]) -> None:
    """And the next client is served."""
    said = b"".join(line.replace(b"\n", b" ") + b"\n" for line in lines)
    with claim(tmp_path / "book") as path:
        async with control.ControlServer(FakeNode(), path), raw(tmp_path / "book") as (reader, writer):
            writer.write(said)
            writer.write_eof()
            answers = (await reader.read()).splitlines()
            assert len(answers) == len(lines)
            assert all(isinstance(json.loads(answer)["ok"], bool) for answer in answers)
            assert (await ask(tmp_path / "book", b'{"do": "peers"}\n'))["ok"] is True


async def test_answers_that_are_none_of_ours_are_errors(book: Path) -> None:
    """Of another version, or of somebody who lies to us."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readline()
        writer.write(answers.pop())
        writer.close()

    refusals = [b'{"ok": false}\n', b'{"ok": false, "exit_code": 2}\n']
    answers = [b"[]\n", b"nonsense\n", b'{"ok": true}\n', b"x" * 2**23, *refusals]
    wanted = [UsageError, *[ControlError] * 5]
    with claim(book) as path:
        async with await asyncio.start_unix_server(serve, path):
            for error in wanted:
                with pytest.raises(error):
                    async with reach(book) as client:
                        await client.peers()
    assert answers == []
