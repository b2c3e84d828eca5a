"""A guest in user-mode Linux: a separate kernel, as a process; Debian's package brings it and its modules.

Python runs at the host's speed, system calls are slow: each is two switches between processes. Its kernel finds the
root file system by itself, so there is no image to make.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Final

import psutil

from vm.guest import Guest

MEMORY: Final = "256M"
MODULES: Final = Path("/usr/lib/uml/modules")
NETEM: Final = "kernel/net/sched/sch_netem.ko"


class UserModeLinux(Guest):
    """A process that is a machine."""

    interfaces = "vec"

    def script(self, init: Sequence[str]) -> str:
        """See `Guest`."""
        # It would append a console of its own behind init's arguments, were none named before.
        console = "con0=null,fd:1 con=null console=tty0"
        root = "root=/dev/root rootfstype=hostfs rootflags=/run/root ro"
        cards = f"{self._card(0)} {self._card(1)}"
        program = f"init={init[0]} -- {' '.join(init[1:])}"
        return f"exec linux.uml mem={MEMORY} uml_dir=/run {root} {console} {cards} {program}"

    def wait_until_ready(self) -> None:
        """See `Guest`."""
        super().wait_until_ready()
        release = self.run("uname", "-r")
        self.run("busybox", "insmod", str(MODULES / release / NETEM))

    def suspend(self) -> None:
        """See `Guest`."""
        self._kernel.suspend()

    def resume(self) -> None:
        """See `Guest`."""
        self._kernel.resume()

    @property
    def _kernel(self) -> psutil.Process:
        """The process of the guest's kernel. Those of its programs are traced by it: they stop when it does."""
        [kernel] = psutil.Process(self.console.pid).children()
        return kernel

    def _card(self, network: int) -> str:
        return f"vec{network}:transport=tap,ifname={self.tap(network)},depth=128,gro=1,mac={self.mac(network)}"
