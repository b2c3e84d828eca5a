"""A directory is synchronised by its own descriptor, which is closed again."""

import os
from pathlib import Path

import pytest

from overlay.files import sync_directory


def test_the_directory_itself_is_synchronised(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synchronised: list[tuple[int, int]] = []
    descriptors: list[int] = []

    def fsync(descriptor: int) -> None:
        status = os.fstat(descriptor)
        synchronised.append((status.st_dev, status.st_ino))
        descriptors.append(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    sync_directory(tmp_path)
    expected = tmp_path.stat()
    assert synchronised == [(expected.st_dev, expected.st_ino)]
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(descriptors[0])
