"""Machines of their own: two guests, each with its own kernel, that run this project's environment.

What namespaces cannot show, these can: kernels other than the machine's, netem, a machine that sleeps and wakes, and
one that loses its power and boots again. A guest sees the host's files, read-only: it runs the very Python and the
very packages that run the tests. Read `guest.py` first, then `agent.py`, `qemu.py`, `uml.py`, `pair.py`.
"""

from vm.guest import Guest
from vm.images import Image, image
from vm.pair import Pair
from vm.qemu import Qemu
from vm.requirements import missing
from vm.uml import UserModeLinux

report: list[str] = []
"""What the tests have to say even when they pass, for the end of pytest's output."""

__all__ = ["Guest", "Image", "Pair", "Qemu", "UserModeLinux", "image", "missing", "report"]
