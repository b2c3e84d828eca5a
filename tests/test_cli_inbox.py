"""The directory for received files: what no process test can bring about."""

import errno
import hashlib
import os
from pathlib import Path

import pytest
from cli_support import names_in

from overlay.cli.inbox import MAX_TRANSFERS, Inbox
from overlay.cli.output import UsageError
from overlay.cli.transfer import MAX_GAPS, GapMeter, Header, Refused

EMPTY = hashlib.sha256().digest()


@pytest.mark.parametrize(
    ("number", "code"),
    [(errno.ENOSPC, "disk-full"), (errno.EDQUOT, "disk-full"), (errno.EFBIG, "too-big"), (errno.EIO, "failed")],
)
def test_what_the_disk_says_becomes_a_refusal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, code: str
) -> None:
    """With a code for programs, and nothing left behind."""

    def full(descriptor: int, data: bytes) -> int:
        raise OSError(number, os.strerror(number))

    with Inbox(tmp_path) as inbox:
        with pytest.raises(Refused) as caught, inbox.receive(Header("a", None)) as incoming:
            monkeypatch.setattr(os, "write", full)
            incoming.write(b"x")
        assert caught.value.code == code
        assert names_in(tmp_path) == []
        assert inbox.incoming == {}


def test_a_short_write_is_continued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """write(2) may take less than it was given."""
    write = os.write
    with Inbox(tmp_path) as inbox, inbox.receive(Header("a", 10)) as incoming:
        monkeypatch.setattr(os, "write", lambda descriptor, data: write(descriptor, bytes(data[:3])))
        incoming.write(b"0123456789")
        incoming.publish(hashlib.sha256(b"0123456789").digest())
    assert (tmp_path / "a").read_bytes() == b"0123456789"


@pytest.mark.parametrize("links", [True, False])
def test_a_name_that_is_taken_meanwhile_is_not_overwritten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, links: bool
) -> None:
    """Also where there are no hard links, and also when it is a symbolic link."""
    if not links:
        monkeypatch.setattr(os, "link", no_links)
    with Inbox(tmp_path) as inbox:
        with pytest.raises(Refused, match="already a file"), inbox.receive(Header("a", None)) as incoming:
            (tmp_path / "a").write_bytes(b"precious")
            incoming.publish(EMPTY)
        with pytest.raises(Refused, match="already a file"), inbox.receive(Header("b", None)) as incoming:
            (tmp_path / "b").symlink_to(tmp_path / "elsewhere")
            incoming.publish(EMPTY)
    assert names_in(tmp_path) == ["a", "b"]
    assert (tmp_path / "a").read_bytes() == b"precious"


def test_a_file_gets_its_name_without_hard_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """FAT has none."""
    monkeypatch.setattr(os, "link", no_links)
    with Inbox(tmp_path) as inbox, inbox.receive(Header("a", 1)) as incoming:
        incoming.write(b"x")
        incoming.publish(hashlib.sha256(b"x").digest())
    assert names_in(tmp_path) == ["a"]
    assert (tmp_path / "a").read_bytes() == b"x"


def test_a_directory_that_is_moved_away_keeps_its_files(tmp_path: Path) -> None:
    """All names are resolved against the directory that was opened, not against what has its path now."""
    inside, elsewhere = tmp_path / "inside", tmp_path / "elsewhere"
    inside.mkdir()
    elsewhere.mkdir()
    with Inbox(inside) as inbox, inbox.receive(Header("a", None)) as incoming:
        inside.rename(tmp_path / "moved")
        inside.symlink_to(elsewhere)
        incoming.publish(EMPTY)
    assert names_in(elsewhere) == []
    assert names_in(tmp_path / "moved") == ["a"]


def test_promised_bytes_are_not_promised_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two files that fit one by one, but not together."""
    disk = os.statvfs(tmp_path)
    free = disk.f_bavail * disk.f_frsize
    monkeypatch.setattr(os, "fstatvfs", lambda descriptor: disk)
    with Inbox(tmp_path) as inbox, inbox.receive(Header("a", free - 10)):
        with pytest.raises(Refused, match="the disk is full: 10 B are free"), inbox.receive(Header("b", 11)):
            pass
        with inbox.receive(Header("c", 10)):
            pass


def test_the_number_of_open_files_is_bounded(tmp_path: Path) -> None:
    """A stranger may open many streams."""
    with Inbox(tmp_path) as inbox:
        files = [inbox.receive(Header(str(number), None)) for number in range(MAX_TRANSFERS)]
        for file in files:
            file.__enter__()
        with pytest.raises(Refused) as caught, inbox.receive(Header("more", None)):
            pass
        assert caught.value.code == "busy"
        for file in files:
            file.__exit__(None, None, None)
        assert names_in(tmp_path) == []


def test_a_directory_that_is_a_file_is_refused(tmp_path: Path) -> None:
    """Before a ticket is printed."""
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match="Not a directory"), Inbox(tmp_path / "file"):
        pass


def test_the_longest_gaps_are_kept() -> None:
    """Bounded, the longest first, with the time at which they began."""
    meter = GapMeter(began=100.0)
    now = 100.0
    for number in range(2 * MAX_GAPS):
        now += number / 1000
        meter.delivered(now)
    gaps = meter.gaps
    assert [round(gap.ms) for gap in gaps] == list(range(2 * MAX_GAPS - 1, MAX_GAPS - 1, -1))
    assert round(gaps[0].at_ms) == round(1000 * (now - 100.0)) - (2 * MAX_GAPS - 1)


def no_links(*arguments: object, **options: object) -> None:
    raise OSError(errno.EPERM, "no hard links here")
