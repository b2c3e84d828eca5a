"""What each kind of guest needs of the machine, and what to do where it is missing."""

import shutil
from pathlib import Path
from typing import Final, Literal

import lab

from vm.qemu import VIRTIOFSD

Kind = Literal["qemu", "user-mode-linux"]

BUSYBOX: Final = {"busybox": "busybox-static"}
PACKAGES: Final[dict[Kind, dict[str, str]]] = {
    "qemu": BUSYBOX
    | {
        "apt-get": "apt",
        "dpkg-deb": "dpkg",
        "qemu-system-x86_64": "qemu-system-x86",
        VIRTIOFSD: "qemu-system-common",
    },
    "user-mode-linux": BUSYBOX | {"linux.uml": "user-mode-linux"},
}
"""For each kind: its tools, each with the package of Debian 12 that brings it."""


def missing(*kinds: Kind) -> list[str]:
    """One line for each thing that is not there, each saying what to do; empty if the guests can run.

    Args:
        kinds: of guests; none: all of them.
    """
    wanted = kinds or tuple(PACKAGES)
    tools = {tool: package for kind in wanted for tool, package in PACKAGES[kind].items()}
    lines = lab.missing() + [
        f"{tool} is missing: apt-get install {package} (and have /usr/sbin in PATH)"
        for tool, package in tools.items()
        if shutil.which(tool) is None
    ]
    busybox = shutil.which("busybox")
    if "qemu" in wanted and busybox is not None and b"/ld-linux" in Path(busybox).read_bytes():
        lines.append(f"{busybox} needs libraries that an initramfs does not have: apt-get install busybox-static")
    return lines
