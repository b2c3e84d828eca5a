"""The directory that received files go to.

A file is written under a temporary name that a peer cannot choose, and gets its own name in one step that never
overwrites: link(2) fails if anything, a dangling symbolic link included, has that name. All names are resolved against
one open descriptor of the directory, so nobody can swap it for another one meanwhile.
"""

import errno
import hashlib
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from overlay.cli.output import UsageError, size_text
from overlay.cli.transfer import Code, Header, Refused, check_name

MAX_TRANSFERS: Final = 64
"""At once: each has a file open, and the usual limit on those is 1,024."""

# What file systems without hard links, and Android's sandbox, answer to link(2).
_NO_HARD_LINKS: Final = frozenset({errno.EPERM, errno.EACCES, errno.ENOSYS, errno.EOPNOTSUPP, errno.EMLINK})
_FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT})
_BAD_NAME: Final = frozenset({errno.EINVAL, errno.EILSEQ, errno.ENAMETOOLONG})


class Inbox:
    """Takes files into a directory. A context manager that holds the directory open.

    Args:
        directory: where the files go; it has to exist.
        max_size: bytes that a file may have at most; None: as many as the disk has free.

    Raises (on entering):
        UsageError: there is no such directory, or it cannot be written.
    """

    def __init__(self, directory: Path, max_size: int | None = None) -> None:
        self.directory = directory
        self.max_size = max_size
        self.descriptor = -1
        self.incoming: dict[str, IncomingFile] = {}

    def __enter__(self) -> Self:
        try:
            self.descriptor = os.open(self.directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            raise UsageError(f"cannot receive into {self.directory}: {error.strerror}") from error
        if not os.access(".", os.W_OK | os.X_OK, dir_fd=self.descriptor):
            os.close(self.descriptor)
            raise UsageError(f"cannot receive into {self.directory}: no permission to write there")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        os.close(self.descriptor)

    @contextmanager
    def receive(self, header: Header) -> Iterator["IncomingFile"]:
        """Begin to receive a file; what was not published is removed on leaving.

        Raises:
            Refused: the file cannot be taken.
        """
        name = header.name
        check_name(name)
        if len(self.incoming) >= MAX_TRANSFERS:
            raise Refused(Code.BUSY, f"{MAX_TRANSFERS} files are being received already")
        if name in self.incoming:
            raise Refused(Code.EXISTS, "a file of that name is being received already")
        with refusing():
            self._check(header)
            incoming = IncomingFile(self, header)
        self.incoming[name] = incoming
        try:
            yield incoming
        finally:
            del self.incoming[name]
            incoming.close()

    def exists(self, name: str) -> bool:
        """Whether anything has that name, a dangling symbolic link included."""
        try:
            os.stat(name, dir_fd=self.descriptor, follow_symlinks=False)
        except FileNotFoundError:
            return False
        return True

    def _check(self, header: Header) -> None:
        if self.exists(header.name):
            raise Refused(Code.EXISTS, "there is already a file of that name")
        size = header.size or 0
        if self.max_size is not None and size > self.max_size:
            raise Refused(Code.TOO_BIG, f"{size_text(size)} is more than the limit of {size_text(self.max_size)}")
        disk = os.fstatvfs(self.descriptor)
        free = disk.f_bavail * disk.f_frsize - sum(one.remaining for one in self.incoming.values())
        if size > free or free <= 0:
            raise Refused(Code.DISK_FULL, f"the disk is full: {size_text(max(0, free))} are free")


class IncomingFile:
    """A file on its way in. Made by `Inbox.receive`."""

    def __init__(self, inbox: Inbox, header: Header) -> None:
        self.header = header
        self.size = 0
        self.digest = hashlib.sha256()
        self._inbox = inbox
        self._temporary = f".overlay-{secrets.token_hex(8)}.part"
        self._file = os.open(
            self._temporary,
            os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC,
            0o666,
            dir_fd=inbox.descriptor,
        )

    @property
    def remaining(self) -> int:
        """Bytes that the header has promised and that are not here yet."""
        return max(0, (self.header.size or 0) - self.size)

    def write(self, data: bytes | memoryview) -> None:
        """Append some bytes.

        Blocks while the page cache takes them: some 50 microseconds for 256 KiB, less than a thread costs.

        Raises:
            Refused: the disk is full, or it is more than the header or the limit allows.
        """
        self.size += len(data)
        if self.header.size is not None and self.size > self.header.size:
            raise Refused(Code.PROTOCOL, f"more bytes came than the {self.header.size} that the header has promised")
        limit = self._inbox.max_size
        if limit is not None and self.size > limit:
            raise Refused(Code.TOO_BIG, f"the file is larger than the limit of {size_text(limit)}")
        self.digest.update(data)
        rest = memoryview(data)
        with refusing():
            while rest:
                rest = rest[os.write(self._file, rest) :]

    def publish(self, sha256: bytes) -> None:
        """Check the file, bring it to the disk, and give it its name. Blocks for as long as the disk takes.

        Raises:
            Refused: it is not what the sender has hashed, the name was taken meanwhile, or the disk says no.
        """
        if self.remaining:
            raise Refused(Code.PROTOCOL, f"{self.remaining} of {self.header.size} bytes are missing")
        if self.digest.digest() != sha256:
            raise Refused(Code.CHECKSUM, "what arrived is not what was sent: the SHA-256 differs")
        directory = self._inbox.descriptor
        with refusing():
            os.fsync(self._file)
            self._name()
            # Without it a power cut may take back the name of a file whose receipt the sender has.
            os.fsync(directory)

    def close(self) -> None:
        """Free the descriptor, and remove the temporary name if there is one."""
        os.close(self._file)
        with suppress(FileNotFoundError):
            os.unlink(self._temporary, dir_fd=self._inbox.descriptor)

    def _name(self) -> None:
        name, directory = self.header.name, self._inbox.descriptor
        try:
            os.link(self._temporary, name, src_dir_fd=directory, dst_dir_fd=directory, follow_symlinks=False)
        except OSError as error:
            if error.errno not in _NO_HARD_LINKS:
                raise
        else:
            return
        # Claim the name, which fails if it is taken, then move the file over our own empty one.
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        os.close(os.open(name, flags, 0o600, dir_fd=directory))
        os.rename(self._temporary, name, src_dir_fd=directory, dst_dir_fd=directory)


@contextmanager
def refusing() -> Iterator[None]:
    """Turn what the file system says into a refusal that the sender can read."""
    try:
        yield
    except FileExistsError as error:
        raise Refused(Code.EXISTS, "there is already a file of that name") from error
    except OSError as error:
        if error.errno in _FULL:
            raise Refused(Code.DISK_FULL, "the disk is full") from error
        if error.errno == errno.EFBIG:
            raise Refused(Code.TOO_BIG, "the file is larger than the receiver's system allows") from error
        if error.errno in _BAD_NAME:
            raise Refused(Code.NAME, "the receiver's file system does not take that name") from error
        raise Refused(Code.FAILED, f"the receiver cannot store it: {error.strerror}") from error
