"""Where an `overlay run` can be reached: a Unix socket beside its address book.

    BOOK.control/          only our user can enter; locked (flock) as long as an `overlay run` has the book
    BOOK.control/socket    of that process

The lock, and not the socket, tells whether somebody is there: it ends with its process, however that ends, and a socket
that a dead process has left can be replaced without a race.
"""

import os
import shlex
import socket
import stat
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from overlay.errors import OverlayError

if sys.platform != "win32":
    import fcntl

MAX_SOCKET_PATH_BYTES: Final = 103
"""The shortest `sun_path`, that of macOS and the BSDs, has 104 with the zero at its end; Linux has 108."""


class ControlError(OverlayError):
    """An `overlay run` cannot be reached, or cannot be made reachable."""


def socket_path(book: Path) -> Path:
    """Where the `overlay run` that has this book listens.

    Raises:
        ControlError: no socket can have that path, or the platform has no Unix sockets.
    """
    if not hasattr(socket, "AF_UNIX"):
        raise ControlError("this platform has no Unix sockets, by which `overlay run` is controlled")
    book = book.resolve()
    path = book.with_name(f"{book.name}.control") / "socket"
    if len(os.fsencode(path)) > MAX_SOCKET_PATH_BYTES:
        raise ControlError(f"{path}: too long for a socket, more than {MAX_SOCKET_PATH_BYTES} bytes: move the book")
    return path


def open_directory(path: Path, *, ours: bool) -> int:
    """Open the socket's directory, after a look at who can enter it; the descriptor.

    Args:
        path: of the directory.
        ours: it has to belong to us; otherwise root may use that of another user.

    Raises:
        ControlError: others can enter it, or it is none. FileNotFoundError: it is not there.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise ControlError(f"{path}: {error.strerror}") from error
    status = os.fstat(descriptor)
    if status.st_uid != os.geteuid() and (ours or os.geteuid()):
        os.close(descriptor)
        raise ControlError(f"{path} belongs to another user")
    if stat.S_IMODE(status.st_mode) & 0o077:
        os.close(descriptor)
        raise ControlError(f"{path} is open to others. Mend it with: chmod 700 {shlex.quote(str(path))}")
    return descriptor


@contextmanager
def claim(book: Path) -> Iterator[Path]:
    """Be the one `overlay run` of a book, for the life of the context; where its socket is to be.

    Raises:
        ControlError: another process is. OSError: the directory cannot be made.
    """
    path = socket_path(book)
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    descriptor = open_directory(path.parent, ours=True)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ControlError(f"an overlay runs with the book {book} already: `overlay peers` talks to it") from error
        path.unlink(missing_ok=True)
        try:
            yield path
        finally:
            path.unlink(missing_ok=True)
            # Closing alone would leave the lock to a forked child that inherited the descriptor.
            fcntl.flock(descriptor, fcntl.LOCK_UN)
    finally:
        os.close(descriptor)
