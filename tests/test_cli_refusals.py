"""What a receiver does not take: every refusal has a reason that the sender reads."""

import asyncio
import hashlib
import json
import os
import resource
from pathlib import Path

import pytest
from cli_support import Receiver, finish, names_in, next_event, open_file, receiving, send, session_with

from overlay import Config, Endpoint, Identity, Stream
from overlay.cli.transfer import DIGEST_BYTES, PROTOCOL, Header, Receipt, Refused, read_answer


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "data.bin"
    path.write_bytes(os.urandom(300_000))
    return path


async def refusal(receiver: Receiver, name: str, size: int | None = None, body: bytes = bytes(40)) -> Refused:
    """What the receiver says to a file with that header."""
    async with session_with(receiver.ticket) as session, await open_file(session, name, size) as stream:
        await stream.write(body)
        await stream.write_eof()
        with pytest.raises(Refused) as caught:
            await read_answer(stream)
    event = await next_event(receiver)
    assert (event["event"], event["code"], event["reason"]) == ("refused", caught.value.code, caught.value.reason)
    return caught.value


async def test_names_that_are_more_than_a_name_are_refused(tmp_path: Path) -> None:
    """No path, no control character, nothing hidden, nothing empty or too long gets near the file system."""
    names = ["../evil", "/etc/evil", "a/b", "..", ".", "", ".profile", "a\\b", "a\nb", "a\x1b[2J", "a\0b", "x" * 256]
    names += ["é" * 128, "\ud800", "exe\u202egpj"]
    with receiving(tmp_path / "inbox") as receiver:
        for name in names:
            assert (await refusal(receiver, name)).code == "name", name
        assert receiver.names == []
        assert names_in(tmp_path) == ["inbox", "inbox.pem"]


def test_what_is_there_is_not_overwritten(tmp_path: Path, file: Path) -> None:
    """Neither a file, nor a directory, nor what a symbolic link points to; the other files still go."""
    inbox = tmp_path / "inbox"
    inbox.mkdir()
    outside = tmp_path / "outside"
    (inbox / "data.bin").write_bytes(b"precious")
    (inbox / "link").symlink_to(outside)
    (inbox / "directory").mkdir()
    (tmp_path / "good").write_bytes(b"good")
    with receiving(inbox) as receiver:
        for name in ("link", "directory"):
            refused = send(file, receiver.ticket, "--name", name)
            assert refused.code == 6
            assert "there is already a file of that name" in refused.err
        both = send(file, tmp_path / "good", receiver.ticket, "--json")
        assert both.code == 6
        assert [one["name"] for one in both.json["files"]] == ["good"]
        assert [(one["name"], one["code"]) for one in both.json["refused"]] == [("data.bin", "exists")]
        assert both.err.count("\n") == 1
        assert receiver.names == ["data.bin", "directory", "good", "link"]
    assert (inbox / "data.bin").read_bytes() == b"precious"
    assert not outside.exists()


def test_too_large_files_are_refused(tmp_path: Path, file: Path) -> None:
    """By the header if it tells the size, by the bytes if not; `--once` then ends with 6."""
    with receiving(tmp_path / "inbox", "--max-size", "200K") as receiver:
        assert send(file, receiver.ticket).code == 6
        assert receiver.event()["code"] == "too-big"
        with (Path("/dev/zero")).open("rb") as endless:
            refused = send("-", receiver.ticket, "--name", "zero", "--json", stdin=endless)
        assert refused.code == 6
        assert refused.json["refused"][0]["code"] == "too-big"
        assert receiver.names == []
    with receiving(tmp_path / "inbox", "--max-size", "200K", "--once") as receiver:
        assert send(file, receiver.ticket).code == 6
        assert finish(receiver.process).code == 6


async def test_a_file_larger_than_the_disk_is_refused_at_once(tmp_path: Path) -> None:
    """Before a byte of it is written."""
    with receiving(tmp_path / "inbox") as receiver:
        refused = await refusal(receiver, "huge", 2**60)
        assert refused.code == "disk-full"
        assert "the disk is full" in refused.reason


def test_a_write_that_fails_in_the_middle_is_a_refusal(tmp_path: Path, file: Path) -> None:
    """The kernel says no at 100 kB: the sender reads why, and nothing stays behind."""
    with receiving(tmp_path / "inbox") as receiver:
        resource.prlimit(receiver.process.pid, resource.RLIMIT_FSIZE, (100_000, 100_000))
        refused = send(file, receiver.ticket)
        assert refused.code == 6
        assert "larger than the receiver's system allows" in refused.err
        assert receiver.names == []


async def test_bytes_that_do_not_fit_header_or_digest_are_refused(tmp_path: Path) -> None:
    """Too many, too few, others than were hashed, no digest at all."""
    with receiving(tmp_path / "inbox") as receiver:
        assert (await refusal(receiver, "long", 5, bytes(6 + DIGEST_BYTES))).code == "protocol"
        assert (await refusal(receiver, "short", 5, bytes(4 + DIGEST_BYTES))).code == "protocol"
        assert (await refusal(receiver, "other", 5, bytes(5 + DIGEST_BYTES))).code == "checksum"
        assert (await refusal(receiver, "none", None, bytes(DIGEST_BYTES - 1))).code == "protocol"
        assert receiver.names == []


async def test_a_header_that_is_none_is_refused(tmp_path: Path) -> None:
    """Each with a reason, and the receiver lives on."""
    sizes = (-1, 1.5, True, "1", 2**63, 10**400)
    texts = [json.dumps({"name": "a", "size": size}).encode() for size in sizes]
    texts += [b"{]", b"[]", b"{}", b'{"name": 1}', b"\xff", b"[" * 4000]
    messages = [len(text).to_bytes(4) + text for text in texts] + [b"\xff\xff\xff\xff"]
    with receiving(tmp_path / "inbox") as receiver:
        async with session_with(receiver.ticket) as session:
            for message in messages:
                async with await session.open_stream(PROTOCOL) as stream:
                    await stream.write(message)
                    with pytest.raises(Refused) as caught:
                        await read_answer(stream)
                    assert caught.value.code == "protocol", message
        for _ in messages:
            assert (await next_event(receiver))["event"] == "refused"
        assert (await refusal(receiver, "..")).code == "name"
        assert receiver.names == []


async def test_two_files_of_one_name_at_once_are_one_too_many(tmp_path: Path) -> None:
    """The second is refused while the first is still on its way."""
    with receiving(tmp_path / "inbox") as receiver:
        async with session_with(receiver.ticket) as session, session_with(receiver.ticket) as other:
            first = await open_file(session, "same")
            # More than all windows on the way: the receiver has the file open when it is accepted.
            await first.write(bytes(16 * 2**20))
            async with await open_file(other, "same") as second:
                with pytest.raises(Refused, match="being received already"):
                    await read_answer(second)


async def test_once_serves_one_sender_only(tmp_path: Path) -> None:
    """A second one is told so, and does not change the exit code."""
    with receiving(tmp_path / "inbox", "--once") as receiver:
        async with session_with(receiver.ticket) as session, session_with(receiver.ticket) as other:
            async with await open_file(session, "mine", 0) as stream:
                await stream.write(hashlib.sha256().digest())
                await stream.write_eof()
                assert (await read_answer(stream)).size == 0
            async with await open_file(other, "yours", 0) as refused:
                with pytest.raises(Refused) as caught:
                    await read_answer(refused)
                assert caught.value.code == "busy"
        assert finish(receiver.process).code == 0


async def test_a_sender_that_gives_up_leaves_nothing(tmp_path: Path) -> None:
    """A reset stream is no end of a file."""
    with receiving(tmp_path / "inbox") as receiver:
        async with session_with(receiver.ticket) as session:
            stream = await open_file(session, "half")
            await stream.write(bytes(16 * 2**20))
            await stream.reset(7)
            event = await next_event(receiver)
            assert (event["event"], event["name"]) == ("lost", "half")
            assert receiver.names == []


async def test_a_peer_that_takes_no_files_is_a_refusal(tmp_path: Path, file: Path) -> None:
    """Exit code 6 when nobody handles `file/1` at the other end."""
    async with Endpoint(Identity.generate(), Config(listen=("127.0.0.1:0",))) as endpoint:
        result = await asyncio.to_thread(send, file, endpoint.ticket)
        assert result.code == 6
        assert "handles no protocol" in result.err


async def test_a_receiver_with_another_digest_is_a_failure(tmp_path: Path, file: Path) -> None:
    """Exit code 1: the receipt names bytes that we have not sent. Escape sequences of a peer do not get through."""

    async def lie(stream: Stream) -> None:
        header = await Header.read(stream)
        async for _ in stream:
            pass
        if header.name == "refuse":
            await stream.write(Refused("x", "no\x1b[31m\nand more").encode())
        else:
            await stream.write(Receipt(size=header.size or 0, sha256="00" * 32, seconds=0.1).encode())

    async with Endpoint(Identity.generate(), Config(listen=("127.0.0.1:0",))) as endpoint:
        endpoint.handle(PROTOCOL, lie)
        result = await asyncio.to_thread(send, file, endpoint.ticket)
        assert result.code == 1
        assert "got something else" in result.err
        result = await asyncio.to_thread(send, file, endpoint.ticket, "--name", "refuse")
        assert result.code == 6
        assert "\x1b" not in result.err
