"""Namespaces: entering and leaving, sweeping, and what is said when something is missing."""

import os
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from lab import LabError, Network, missing, requirements, sweep
from lab.kernel import NAMESPACES, create, delete, end_processes_inside, inside, run, wait_until
from lab.leftovers import namespace_name, temporary_directory

pytestmark = pytest.mark.lab


def here() -> Path:
    """The calling thread's namespace."""
    return Path("/proc/thread-self/ns/net").readlink()


def name_of_the_dead() -> str:
    """A namespace's or a directory's name, of a process that has ended."""
    ended = subprocess.Popen(["true"])
    ended.wait()
    return f"overlay-lab-{ended.pid}-1-0-test"


@pytest.fixture
def namespace() -> Iterator[str]:
    name = namespace_name(99_999, "test")
    create(name)
    yield name
    end_processes_inside([name])
    delete(name)


def test_a_socket_stays_where_it_was_made(namespace: str) -> None:
    """Whoever uses it, and wherever that thread is."""
    run(["ip", "link", "set", "lo", "up"], namespace=namespace)
    with inside(namespace):
        server = socket.create_server(("127.0.0.1", 0))
        client = socket.create_connection(server.getsockname(), timeout=10)
    with server, client, server.accept()[0] as connection:
        client.sendall(b"hello")
        assert connection.recv(5) == b"hello"
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(server.getsockname(), timeout=10)


def test_the_thread_comes_back_and_the_others_never_left(namespace: str) -> None:
    """Also after an error."""
    home = here()
    others: list[Path] = []
    entered = threading.Event()
    left = threading.Event()

    def look() -> None:
        assert entered.wait(10)
        others.append(here())
        left.set()

    other = threading.Thread(target=look)
    other.start()
    with pytest.raises(ZeroDivisionError), inside(namespace):
        assert here() != home
        entered.set()
        assert left.wait(10)
        raise ZeroDivisionError
    other.join()
    assert [here(), *others] == [home, home]


def test_a_tool_that_fails_says_which_and_where(namespace: str) -> None:
    """With what it was told."""
    with pytest.raises(LabError, match=rf"ip -batch - in {namespace} failed: .*\n*.*\nlink set nowhere up"):
        run(["ip", "-batch", "-"], namespace=namespace, text="link set nowhere up\n")


def test_a_wait_has_an_end() -> None:
    """And says for what it was."""
    with pytest.raises(LabError, match=r"waited 0\.01 s for rain"):
        wait_until(lambda: False, "rain", timeout=0.01)


def test_sweep_takes_what_the_dead_have_left() -> None:
    """Its processes, its namespace, and the bare file of one who died while making it."""
    name, bare = name_of_the_dead(), name_of_the_dead()
    create(name)
    (NAMESPACES / bare).touch()
    with inside(name):
        sleeper = subprocess.Popen(["sleep", "1000"])
    assert {name, bare} <= set(sweep())
    assert sleeper.wait(10) == -9
    assert not (NAMESPACES / name).exists()
    assert not (NAMESPACES / bare).exists()


def test_sweep_takes_the_directories_of_the_dead() -> None:
    """With the keys in them; a living run keeps its own, and whatever else has such a name is left alone."""
    temporary = Path(tempfile.gettempdir())
    abandoned, foreign, link = (temporary / f"{name_of_the_dead()}-{kind}" for kind in ("ours", "foreign", "link"))
    with temporary_directory() as living:
        try:
            for directory in (abandoned, foreign):
                directory.mkdir()
                (directory / "key.pem").touch()
            os.chown(foreign, 65534, -1)
            link.symlink_to(living)
            (living / "key.pem").touch()
            assert abandoned.name in sweep()
            assert not abandoned.exists()
            assert (foreign / "key.pem").exists()
            assert (living / "key.pem").exists()
            assert link.is_symlink()
        finally:
            link.unlink(missing_ok=True)
            shutil.rmtree(foreign)
    assert not living.exists()


def test_sweep_leaves_the_living_and_strangers_alone() -> None:
    """A process number that has come back does not protect what its first owner has left."""
    mine = namespace_name(99_998, "test")
    parts = mine.split("-")
    earlier = "-".join([*parts[:3], str(int(parts[3]) - 1), *parts[4:]])
    stranger = f"someone-{mine}"
    for name in (mine, earlier, stranger):
        create(name)
    try:
        assert earlier in sweep()
        assert (NAMESPACES / mine).exists()
        assert (NAMESPACES / stranger).exists()
    finally:
        for name in (mine, earlier, stranger):
            delete(name)


def test_missing_tools_are_named_with_their_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    """And nothing is half-built."""
    assert missing() == []
    before = set(NAMESPACES.glob("*"))
    monkeypatch.setenv("PATH", "")
    assert "nft is missing: apt-get install nftables (and have /usr/sbin in PATH)" in missing()
    assert len(missing()) == len(requirements.PACKAGES)
    with pytest.raises(LabError, match="apt-get install conntrack") as caught:
        Network().__enter__()
    assert "\n" not in str(caught.value)
    assert {path for path in NAMESPACES.glob("*") if f"-{os.getpid()}-" in path.name} <= before


def test_who_is_not_root_is_told_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """And whose kernel has no TUN, and who is not on Linux."""
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert missing() == ["the lab makes network namespaces and needs root: run it with sudo"]
    with pytest.raises(LabError, match="needs root"):
        Network().__enter__()
    monkeypatch.setattr(requirements, "TUN", tmp_path / "tun")
    assert len(missing()) == 2
    monkeypatch.setattr(sys, "platform", "darwin")
    assert [line.partition(":")[0] for line in missing()] == [
        "the lab needs the network namespaces of Linux, this is darwin"
    ]


def without(capability: str, program: str) -> "subprocess.CompletedProcess[str]":
    """Run a program as a root that lacks a right, as in most containers."""
    return subprocess.run(
        ["setpriv", f"--bounding-set=-{capability}", "--inh-caps=-all", sys.executable, "-c", program],
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parent.parent)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.mark.parametrize("capability", ["sys_admin", "net_admin"])
def test_a_root_without_rights_is_told_so_in_one_line(capability: str) -> None:
    """With what the kernel has refused."""
    [line] = without(capability, "import lab; print('\\n'.join(lab.missing()))").stdout.splitlines()
    assert line.startswith("this root may not make network namespaces (")
    assert line.endswith("Operation not permitted): start the container with --privileged")


def test_a_refused_namespace_names_the_call_that_was_refused() -> None:
    """Not the way back, which would be refused as well."""
    name = name_of_the_dead()
    ended = without("sys_admin", f"from lab import kernel; kernel.create({name!r})")
    assert ended.stderr.splitlines()[-1] == "lab.kernel.LabError: unshare(1073741824) failed: Operation not permitted"
    assert not (NAMESPACES / name).exists()
