"""Network namespaces: made, entered, listed and deleted with the kernel's own calls.

A namespace is a file below `/run/netns` on which the kernel's namespace is mounted, as `ip netns` does it, so that
`ip -n NAME ...` works on it; whose it is, its name says, see `leftovers.py`. They are made here and not by
`ip netns add`: a tool that outlived its killed parent would go on making them.
"""

import ctypes
import errno
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

NAMESPACES = Path("/run/netns")
SECONDS = 10.0
"""For one tool, and for killed processes to be gone: a thousand times what either takes."""

CLONE_NEWNET = 0x40000000
MS_BIND = 0x1000
MNT_DETACH = 2
HERE = "/proc/thread-self/ns/net"

libc = ctypes.CDLL(None, use_errno=True)


class LabError(RuntimeError):
    """The lab could not do what it was asked for; the text says what, and what to do next."""


def create(namespace: str) -> None:
    """Make an empty namespace; the calling thread stays where it is."""
    NAMESPACES.mkdir(exist_ok=True)
    path = NAMESPACES / namespace
    path.touch(exist_ok=False)
    try:
        with _coming_back():
            _call("unshare", CLONE_NEWNET)
            _call("mount", HERE.encode(), bytes(path), b"none", MS_BIND, None)
    except LabError:
        path.unlink()
        raise


def delete(namespace: str) -> None:
    """Delete a namespace, or the bare file that a killed `create` has left; its links vanish with it."""
    path = NAMESPACES / namespace
    try:
        _call("umount2", bytes(path), MNT_DETACH)
    except LabError as error:
        # Nothing was mounted there yet, or another sweep was faster.
        if not isinstance(error.__cause__, OSError) or error.__cause__.errno not in {errno.EINVAL, errno.ENOENT}:
            raise
    path.unlink(missing_ok=True)


@contextmanager
def inside(namespace: str) -> Iterator[None]:
    """Put the calling thread into a namespace: sockets and processes made meanwhile live there for good.

    It holds for this thread only. Don't `await` inside: the event loop would run other tasks in the namespace.
    """
    with _coming_back():
        _enter(NAMESPACES / namespace)
        yield


def run(command: Sequence[str], *, namespace: str, text: str = "", check: bool = True, timeout: float = SECONDS) -> str:
    """Run a tool inside a namespace to its end.

    Args:
        command: the tool and its arguments.
        namespace: where it runs.
        text: its standard input.
        check: raise if it fails.
        timeout: seconds after which it is killed, which raises.

    Returns:
        Its standard output.
    """
    with inside(namespace):
        tool = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, encoding="utf-8"
        )
    with tool:
        try:
            out, err = tool.communicate(text, timeout=timeout)
        except subprocess.TimeoutExpired as error:
            tool.kill()
            raise LabError(f"{' '.join(command)} in {namespace} did not end within {timeout:g} s") from error
    if check and tool.returncode != 0:
        raise LabError(f"{' '.join(command)} in {namespace} failed: {err.strip() or out.strip()}\n{text}".rstrip())
    return out


def write_sysctls(namespace: str, values: Iterable[tuple[str, int]]) -> None:
    """Set kernel parameters of a namespace, by their names with slashes: `net/ipv4/ip_forward`."""
    with inside(namespace):
        for name, value in values:
            Path("/proc/sys", name).write_text(f"{value}\n", encoding="ascii")


def processes_inside(namespaces: Iterable[str]) -> set[int]:
    """The processes, other than this one, whose main thread is in one of these namespaces."""
    wanted = {(status.st_dev, status.st_ino) for name in namespaces if (status := _status(NAMESPACES / name))}
    found = set()
    for process in Path("/proc").glob("[0-9]*"):
        status = _status(process / "ns/net")
        if status and (status.st_dev, status.st_ino) in wanted:
            found.add(int(process.name))
    return found - {os.getpid()}


def end_processes_inside(namespaces: Sequence[str]) -> None:
    """Kill every process in these namespaces, however it got there, and wait until none is left."""

    def none_left() -> bool:
        alive = processes_inside(namespaces)
        for pid in alive:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                # It ended between the look and the kill, as it should.
                continue
        return not alive

    wait_until(none_left, f"processes in {', '.join(namespaces)} to end")


def wait_until(condition: Callable[[], bool], what: str, timeout: float = SECONDS) -> None:
    """Ask again and again until the condition holds.

    Args:
        condition: is asked every few milliseconds.
        what: names it in the error: "waited 10 s for {what}".
        timeout: seconds.
    """
    deadline = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > deadline:
            raise LabError(f"waited {timeout:g} s for {what}")
        time.sleep(0.005)


@contextmanager
def _coming_back() -> Iterator[None]:
    """Whatever happens, the calling thread ends in the namespace where it began."""
    home = os.open(HERE, os.O_RDONLY | os.O_CLOEXEC)
    try:
        yield
    finally:
        try:
            # Who could not leave may not be allowed to come back either: that error would hide the first one.
            if not os.path.samestat(os.fstat(home), Path(HERE).stat()):
                _call("setns", home, CLONE_NEWNET)
        finally:
            os.close(home)


def _enter(path: Path) -> None:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError as error:
        raise LabError(f"the namespace {path.name} is gone: its network has been left") from error
    try:
        _call("setns", descriptor, CLONE_NEWNET)
    finally:
        os.close(descriptor)


def _call(name: str, *arguments: int | bytes | None) -> None:
    """A system call of the C library that Python 3.11 does not offer, with its error as a cause."""
    if getattr(libc, name)(*arguments) != 0:
        number = ctypes.get_errno()
        shown = ", ".join(str(argument) for argument in arguments)
        raise LabError(f"{name}({shown}) failed: {os.strerror(number)}") from OSError(number, os.strerror(number))


def _status(path: Path) -> os.stat_result | None:
    try:
        return path.stat()
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        # It has ended between the listing and the look; or it may do more than this process, so no lab has started it.
        return None
