"""What a run makes outside of itself, whose it is, and how the next run takes away what a killed one has left.

Namespaces and temporary directories are named `overlay-lab-{pid}-{start time}-...` after the process that makes them:
a process number alone can come back, together with the start time it cannot. So what a killed run has left behind can
be told from what a living one uses, and `sweep` needs no memory.
"""

import os
import re
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from lab import kernel

OWNED = re.compile(r"overlay-lab-(\d+)-(\d+)-")


def namespace_name(number: int, node: str) -> str:
    """The name of a namespace of this process.

    Args:
        number: of the network, unique in this process.
        node: the node's name in that network.
    """
    return f"{_ours()}{number}-{node}"


@contextmanager
def temporary_directory() -> Iterator[Path]:
    """An empty directory of this process, which is deleted afterwards."""
    with tempfile.TemporaryDirectory(prefix=_ours()) as directory:
        yield Path(directory)


def sweep() -> list[str]:
    """Delete what killed runs have left, processes first; what belongs to a living process is left alone.

    Returns:
        The names of the namespaces and directories that are gone now.
    """
    namespaces = [path.name for path in _of_the_dead(kernel.NAMESPACES)]
    kernel.end_processes_inside(namespaces)
    for name in namespaces:
        kernel.delete(name)
    # Where everybody may write, a name proves nothing: what another user has made is none of ours.
    directories = [path for path in _of_the_dead(Path(tempfile.gettempdir())) if _is_our_directory(path)]
    for directory in directories:
        # Another run that sweeps at the same time may be faster; if they stop each other, the next one does the rest.
        with suppress(FileNotFoundError):
            shutil.rmtree(directory)
    return [*namespaces, *(directory.name for directory in directories)]


def state_and_start(pid: int) -> tuple[str, int]:
    """Of a process: its state letter, and the clock ticks from the boot to its start (proc(5), fields 3 and 22)."""
    # The name in the second field may hold spaces and brackets; what follows the last bracket does not.
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
    return fields[0], int(fields[19])


def is_alive(pid: int, started: int) -> bool:
    """Whether a process that was started then has not ended, whether or not anybody has taken notice of its end."""
    try:
        state, start = state_and_start(pid)
    except (FileNotFoundError, ProcessLookupError):
        return False
    return start == started and state not in {"Z", "X"}


def _ours() -> str:
    """How the names begin of what this process makes."""
    _, started = state_and_start(os.getpid())
    return f"overlay-lab-{os.getpid()}-{started}-"


def _of_the_dead(folder: Path) -> list[Path]:
    """What is there of processes that have ended."""
    owners = {path: OWNED.match(path.name) for path in folder.glob("overlay-lab-*")}
    return sorted(path for path, owner in owners.items() if owner and not is_alive(int(owner[1]), int(owner[2])))


def _is_our_directory(path: Path) -> bool:
    try:
        status = path.lstat()
    except FileNotFoundError:
        # Another sweep was faster.
        return False
    return stat.S_ISDIR(status.st_mode) and status.st_uid == os.geteuid()
