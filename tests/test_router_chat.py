"""The example router's command line: what it understands, what it tells, and how it ends."""

import os
import signal
import subprocess
import sys
from asyncio.subprocess import DEVNULL, PIPE, create_subprocess_exec
from pathlib import Path
from typing import Any

import pytest
from cli_node import a_path, a_peer, an_address
from router_support import COMMAND, ENVIRONMENT, HASTY, PATIENCE, node, process
from weather import Relay

from overlay import Address, Config, Driver, Endpoint, Identity, Ticket
from overlay.cli.output import UsageError
from overlay.testing import LOOPBACK, router_chat, ticket, until

KEY = Identity.generate().peer_id
"""That nobody has."""
HELLO_FAILED = an_address(failures=1, stage="hello")


async def test_three_terminals_in_a_line() -> None:
    async with process() as left, process(left.ticket) as middle, process(middle.ticket) as right:
        await left.said(f"{middle.key} is a neighbour")
        await right.said(f"{middle.key} is a neighbour")
        await right.type("good morning")
        assert await left.line() == f"{right.key[:8]}, 2 links, to all: good morning"
        assert await middle.line() == f"{right.key[:8]}, 1 link, to all: good morning"
        nobody = f"{left.key[:4]}zzzz"
        said = ""
        while right.key[:8] not in said:
            await left.type(f"{nobody}: where are you?")
            said = await left.said(f"no key that can be reached begins with '{nobody}'")
        await left.type(f"{right.key[:10]}: psst")
        assert await right.line() == f"{left.key[:8]}, 2 links, to you: psst"
        await right.type(" note: a line with a colon")
        assert await left.line() == f"{right.key[:8]}, 2 links, to all:  note: a line with a colon"
        await left.type("\x1b[31mred")
        assert await right.line() == f"{left.key[:8]}, 2 links, to all: \N{REPLACEMENT CHARACTER}[31mred"
        assert "Traceback" not in await middle.end(signal.SIGINT)
        assert middle.process.returncode == 130
        await left.said(f"{middle.key} is a neighbour no longer")


async def test_a_whole_key_need_not_be_there_and_one_is_there_for_oneself() -> None:
    async with process() as one, node() as two:
        await one.type(f"{str(two.peer_id).upper()}: in advance")
        assert "the message waits" in await one.said(str(two.peer_id))
        await one.type(f"{one.key[:12]}: note")
        assert await one.line() == f"{one.key[:8]}, 0 links, to you: note"
        two.driver.start_peering(one.ticket)
        await until(lambda: two.payloads == {b"in advance": 1}, seconds=PATIENCE)


async def test_a_neighbour_without_a_path_is_told_and_so_is_its_return() -> None:
    config = Config(listen=LOOPBACK, transports=("tcp",))
    async with node(config) as one, Relay(one.endpoint.addresses[0].port) as relay:
        reached = Ticket(one.peer_id, (Address("tcp", "127.0.0.1", relay.port),))
        async with process(reached) as other:
            await other.said(f"{one.peer_id} is a neighbour")
            await until(lambda: relay.connections == 1)
            relay.reset_tcp()
            await other.said(f"{one.peer_id} has lost its last path; frames wait")
            await other.said(f"{one.peer_id} has a path again: tcp://127.0.0.1:{relay.port}")
            assert "neighbour no longer" not in await other.end(signal.SIGINT)


async def test_who_is_not_reached_is_told_once_with_the_evidence(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(router_chat, "UNREACHED_SECONDS", 0.0)
    async with Endpoint(Identity.generate(), HASTY) as endpoint, Driver(endpoint) as driver, node() as there:
        wanted = [driver.start_peering(one) for one in (f"overlay:{KEY}@tcp://127.0.0.1:1", ticket(there.endpoint))]
        await until(lambda: driver.neighbours() == [there.peer_id])
        await until(lambda: any(one.failures for one in endpoint.book.addresses(KEY)))
        said: list[str] = []

        def all_is_said() -> bool:
            said.extend(capsys.readouterr().err.splitlines())
            return len(said) > 1

        with router_chat._telling_unreached(endpoint, driver, wanted):
            await until(all_is_said)
        assert len(said) == 2
        assert said[0].startswith(f"{KEY} is no neighbour after 0.0 s: ")
        assert said[1].startswith("  tcp://127.0.0.1:1: connect failed")


@pytest.mark.parametrize(
    ("facts", "lines"),
    [
        (
            {"state": "backing off", "next_dial": 3.21, "addresses": (an_address(), HELLO_FAILED)},
            [
                "backing off, dials again in 3.2 s",
                "  198.51.100.7:9330: no answer yet",
                "  198.51.100.7:9330: hello failed",
            ],
        ),
        (
            {"state": "dialling", "addresses": (an_address(failures=7, stage="connect"),)},
            ["dialling", "  198.51.100.7:9330: connect failed 7 times"],
        ),
        ({"state": "connected", "paths": (a_path(),)}, ["connected, but no router answers there"]),
    ],
)
def test_what_is_known_of_who_is_not_reached(facts: dict[str, Any], lines: list[str]) -> None:
    first = f"{KEY} is no neighbour after 10 s: {lines[0]}"
    assert list(router_chat._unreached(a_peer(KEY, **facts))) == [first, *lines[1:]]


class Known(str):
    """Stands in for a key: two that begin alike are not found within a test."""

    __slots__ = ()

    @property
    def short(self) -> str:
        return self[:8]


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("hello", (None, "hello")),
        ("two words: a sentence", (None, "two words: a sentence")),
        ("xyz: fewer than four", (None, "xyz: fewer than four")),
        (" abcd2: everybody", (None, " abcd2: everybody")),
        ("abcd2: one", ("abcd2222", "one")),
        ("ABCD2: one", ("abcd2222", "one")),
        ("Abcd2 : one", ("abcd2222", "one")),
        ("abcd3333:", ("abcd3333", "")),
        ("ours: note", ("ours4444", "note")),
        (f"{KEY}: in advance", (KEY, "in advance")),
        (f"{str(KEY).upper()}:in advance", (KEY, "in advance")),
        ("abcd: which", "2 keys begin with 'abcd': give more characters"),
        ("abc: too short", "2 keys begin with 'abc': give more characters"),
        ("OUR: too short", "a key begins with 'OUR': give more characters"),
        ("wxyz: who", "no key that can be reached begins with 'wxyz'.*there is abcd2222, abcd3333; or begin"),
        ("Note: no key", "no key that can be reached begins with 'Note'"),
        ("abcd22220: mistyped", "no key that can be reached begins with 'abcd22220'"),
        (f"{KEY}a: too long", "no key that can be reached"),
        (f"0{str(KEY)[1:]}: mistyped", "'0' is not used in a peer id"),
    ],
)
def test_a_line_for_one_key_never_goes_to_everybody(line: str, expected: tuple[object, str] | str) -> None:
    ours: Any = Known("ours4444")
    others: Any = (Known("abcd2222"), Known("abcd3333"))
    if isinstance(expected, tuple):
        assert router_chat._addressed(line, ours, others) == expected
    else:
        with pytest.raises(UsageError, match=expected):
            router_chat._addressed(line, ours, others)


def test_where_nobody_can_be_reached_it_says_so() -> None:
    with pytest.raises(UsageError, match="there is nobody"):
        router_chat._addressed("wxyz: who", KEY, ())


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["nonsense"], 2, "argument TICKET: a ticket starts with 'overlay:'; give tickets, as the others have printed"),
        ([str(KEY)], 2, f"not '{KEY}'\n"),
        ([f"overlay:{KEY}@127.0.0.1:0"], 2, "argument TICKET: '0': a port is a number from 1 to 65535"),
        (["--listen", "nonsense"], 2, "must be host:port"),
        (["--listen", "192.0.2.1:0"], 1, "cannot listen on 192.0.2.1:0"),
        (["--identity", "nowhere/key.pem"], 2, "argument --identity: there is no directory nowhere"),
        (["--identity", "."], 1, "name a file for the key"),
        (["--ident", "key.pem"], 2, "unrecognized arguments: --ident"),
    ],
)
def test_the_command_line_says_what_is_wrong_with_it(
    arguments: list[str], code: int, says: str, tmp_path: Path
) -> None:
    """In a line that begins with its name, as argparse has it; and it makes nothing then."""
    command = [sys.executable, "-m", "overlay.testing.router", *arguments]
    done = subprocess.run(
        command, capture_output=True, text=True, env=ENVIRONMENT, cwd=tmp_path, timeout=PATIENCE, check=False
    )
    assert (done.returncode, done.stdout) == (code, "")
    line = done.stderr.splitlines(keepends=True)[-1]
    assert line.startswith("python -m overlay.testing.router: error: ")
    assert says in line
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_the_help_tells_what_can_be_typed(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        router_chat.main(["--help"])
    assert not caught.value.code
    shown = capsys.readouterr().out
    for word in (
        "KEYPREFIX: text",
        "end of the input",
        "Ctrl-C",
        "out of order",
        "usage: python -m overlay.testing.router ",
    ):
        assert word in shown


async def test_a_key_file_is_made_where_there_is_a_directory(tmp_path: Path) -> None:
    async with process("--identity", tmp_path / "key.pem") as one:
        assert one.key == str(Identity.load_or_create(tmp_path / "key.pem").peer_id)
        assert await one.end(signal.SIGTERM) == ""
        assert one.process.returncode == 130


async def test_a_reader_that_is_gone_ends_it() -> None:
    """As in `... TICKET | head -1`: without a traceback, when there is something to say."""
    ours, theirs = os.pipe()
    async with node() as one:
        started = await create_subprocess_exec(
            *COMMAND, str(ticket(one.endpoint)), stdin=DEVNULL, stdout=theirs, stderr=PIPE, env=ENVIRONMENT
        )
        os.close(theirs)
        # It has printed its ticket before it has dialled.
        await until(one.driver.neighbours, seconds=PATIENCE)
        os.close(ours)
        await one.router.broadcast(b"anybody?")
        _, said = await started.communicate()
        assert started.returncode == 1
        assert said.decode() in {"", f"{one.peer_id} is a neighbour\n"}
