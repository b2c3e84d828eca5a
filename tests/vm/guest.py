"""A guest: a virtual machine as a process of the lab, and the processes in it.

It has two networks: on one, the data network, the experiments take place, with netem; on the other one the host tells
its agent what to run, undisturbed. Both are bridges in one namespace.
"""

import re
import shlex
import sys
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import psutil
from lab import Host, LabError, Process

import overlay
from vm import agent

BOOT_SECONDS: Final = 60.0
"""Twelve times what an emulated machine takes."""
RUN_SECONDS: Final = 30.0
"""For a short command, likewise."""

REMOTE: Final = str(Path(__file__).with_name("remote.py"))
TESTS: Final = Path(__file__).parent.parent
LIBRARY: Final = Path(overlay.__file__).parent.parent
NEEDED: Final = tuple(Path(one).resolve() for one in (TESTS, LIBRARY, sys.prefix, sys.base_prefix))
"""What a guest has to see, beside the system's own programs."""

PRELUDE: Final = """
mount -t tmpfs tmpfs /run
mkdir /run/root
export TMPDIR=/run
cd /run
show() {
    mount --bind "$1" "/run/root$1"
    mount -o remount,bind,ro "/run/root$1"
}
"""
"""The host's part of the shared file system, at /run/root: read-only, whatever a guest may try. It is made in a mount
namespace of the guest's own, so nothing of it is seen from outside, and all of it goes when the guest does."""


class Guest(ABC):
    """A virtual machine: `boot` it, then `wait_until_ready`. Its kinds are in `qemu.py` and `uml.py`.

    Args:
        name: in errors and reports.
        number: from 1 to 253, unique on the switch.
        switch: the host with the bridges `net0`, for control, and `net1`, for data.

    Attributes:
        control: its address for the host.
        data: its address for experiments.
    """

    interfaces: str
    """How the guest's kernel calls its network interfaces, without their numbers."""

    def __init__(self, name: str, number: int, switch: Host) -> None:
        self.name = name
        self.control = f"10.2.0.{number}"
        self.data = f"10.1.0.{number}"
        self._number = number
        self._switch = switch
        self._console: Process | None = None
        for network in (0, 1):
            switch.ip(
                f"tuntap add {self.tap(network)} mode tap",
                f"link set {self.tap(network)} master net{network} up",
            )

    @property
    def console(self) -> Process:
        """The process that it is: its output is what the guest's kernel and agent have printed."""
        if self._console is None:
            raise LabError(f"{self.name} is not switched on: boot it first")
        return self._console

    def tap(self, network: int) -> str:
        """The host's end of the card on network 0 or 1."""
        return f"tap{self._number}-{network}"

    def mac(self, network: int) -> str:
        """The hardware address of that card; 02 says that no manufacturer gave it."""
        return f"02:00:00:00:{self._number:02x}:{network:02x}"

    def boot(self) -> None:
        """Switch it on."""
        init = [sys.executable, agent.__file__, self.interfaces, self.control, self.data, str(LIBRARY)]
        for word in init:
            if shlex.quote(word) != word:
                raise LabError(f"no kernel's command line can carry {word!r}: use paths of plain characters")
        script = [PRELUDE, *(f"show {shlex.quote(path)}" for path in _file_systems()), self.script(init)]
        # It is the first process of a namespace of processes: when it ends, all that it has started does.
        isolated = ["unshare", "--mount", "--pid", "--fork", "--kill-child"]
        self._console = self._switch.start([*isolated, "sh", "-euc", "\n".join(script)], name=f"console of {self.name}")

    def wait_until_ready(self) -> None:
        """Wait until it can run commands."""
        self.console.line(agent.READY, timeout=BOOT_SECONDS)

    def start(self, *command: str) -> Process:
        """Start a process in the guest. It ends if the one that is returned here does."""
        there = [sys.executable, REMOTE, self.control, str(agent.PORT), *command]
        return self._switch.start(there, name=f"{self.name}: {command[0]}")

    def run(self, *command: str) -> str:
        """Run a short command in the guest to its end.

        Returns:
            Its output.

        Raises:
            LabError: it failed, or did not end in time.
        """
        process = self.start(*command)
        if process.wait(RUN_SECONDS) != 0:
            raise LabError(f"{shlex.join(command)} failed in {self.name}\n{process.report()}\n{self.console.report()}")
        # A test may do this hundreds of times: the lab would keep the pipes of each.
        self._switch.processes.remove(process)
        process.close()
        return "\n".join(line.text for line in process.output)

    @contextmanager
    def impaired(self, netem: str) -> Iterator[None]:
        """Let the guest's kernel spoil what it sends on the data network, as tc-netem(8) has it."""
        interface = f"{self.interfaces}1"
        self.run("tc", "qdisc", "add", "dev", interface, "root", "netem", *netem.split())
        try:
            yield
        finally:
            self.run("tc", "qdisc", "delete", "dev", interface, "root")

    def packets_dropped(self) -> int:
        """How many packets the kernel has lost on purpose since `impaired` began."""
        shown = self.run("tc", "-s", "qdisc", "show", "dev", f"{self.interfaces}1")
        match = re.search(r"^qdisc netem .*\n Sent .*\(dropped (\d+),", shown)
        if match is None:
            raise LabError(f"{self.name} has no netem on its data network: {shown}")
        return int(match[1])

    def checksum_errors(self) -> int:
        """How many packets of TCP and UDP the kernel has dropped because of a wrong checksum since it was booted."""
        pairs = re.findall(r"^(?:Tcp|Udp): (.*)$", self.run("cat", "/proc/net/snmp"), re.MULTILINE)
        # Each protocol has a line with names and one with numbers.
        names, numbers = " ".join(pairs[::2]).split(), " ".join(pairs[1::2]).split()
        return sum(int(number) for name, number in zip(names, numbers, strict=True) if name == "InCsumErrors")

    @property
    def kernel_line(self) -> str:
        """What its kernel has written of itself on the console, first of all."""
        for line in self.console.output:
            if "Linux version" in line.text:
                return line.text
        raise LabError(f"no kernel has said its version on this console\n{self.console.report()}")

    @contextmanager
    def suspended(self) -> Iterator[None]:
        """Stop the machine between two instructions: it does nothing, and will have noticed nothing."""
        self.suspend()
        try:
            yield
        finally:
            self.resume()

    def kill(self) -> None:
        """Cut its power, if it has any, and wait until nothing is left of it."""
        if self._console is None or self._console.code is not None:
            return
        parent = psutil.Process(self._console.pid)
        # The parent buries the machine, and ends then; before it has one, it goes itself.
        for process in parent.children() or [parent]:
            process.kill()
        self._console.wait()

    @abstractmethod
    def script(self, init: Sequence[str]) -> str:
        """The shell script that becomes the machine, after `PRELUDE`.

        Args:
            init: the command line of the guest's first process, without anything that had to be quoted.
        """

    @abstractmethod
    def suspend(self) -> None:
        """Stop the machine; see `suspended`."""

    @abstractmethod
    def resume(self) -> None:
        """Undo `suspend`."""


def _file_systems() -> list[str]:
    """Where those file systems are mounted that hold what a guest needs, parents first."""
    mounted = {one.mountpoint for one in psutil.disk_partitions(all=True)}
    return sorted(one for one in mounted if any(needed.is_relative_to(one) for needed in NEEDED))
